//! Parts of Squall are taken away, stopped or killed: nobody's pods are held up, and every fault is put back.
//!
//! These take turns, and no other test program runs beside this one: they break what the others need.

use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, anyhow};
use futures::FutureExt as _;
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams, PostParams};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use squall_api::names;
use squall_api::podchaos::{Action, Mode, Phase, PodChaos, PodChaosSpec, TargetPhase};
use squall_tests::cpu::{frozen, runs_within};
use squall_tests::{
    ExperimentExt as _, Ns, OptIn, PodExt as _, containers_processes, delete_lease, deployment, disrupt,
    experiment, holds_for, kubectl, kubectl_stdin, leader, nowhere, patch_daemon_set, pod, pods_of_component,
    restart_now, restore, scale, settled, sigkill, silence_the_api_server, target_of, unschedulable, until,
    until_within,
};

/// What the order gives a halt while nobody leads: the lease's time, and a look at the cluster.
const LEADERLESS: Duration = Duration::from_secs(10);

fn failure(name: &str, change: impl FnOnce(&mut PodChaosSpec)) -> PodChaos {
    experiment(name, Action::PodFailure, Mode::All, change)
}

async fn pods_of(ns: &Ns, component: &str) -> Result<Vec<Pod>> {
    pods_of_component(&ns.client, component).await
}

/// Some time below `limit`, another one each time.
fn some_time_below(limit: Duration) -> Duration {
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    Duration::from_micros(u64::try_from(nanos / 1000 % limit.as_micros().max(1)).unwrap_or_default())
}

#[test]
fn without_the_webhook_the_controller_injects_and_recovers() {
    disrupt("down-webhook", async |ns| {
        ns.ready_pod(&pod("web")).await?;
        // An experiment can only be made with the webhook there; resuming one is no affair of its.
        let mut chaos = failure("down", |_| ());
        chaos.metadata.annotations = Some([(names::PAUSE.to_owned(), "true".to_owned())].into());
        ns.create(&chaos).await?;
        ns.phase("down", Phase::Paused).await?;
        scale(&ns.client, names::WEBHOOK, 0).await?;
        ns.annotate::<PodChaos>("down", names::PAUSE, None).await?;
        let chaos = ns.condition("down", "Injected").await?;
        let failed = ns.pod("web").await?;
        assert!(failed.is_failed(), "{:?}", failed.images());
        assert_eq!(failed.holders(), [chaos.metadata.uid.clone().unwrap_or_default()]);
        // Pods are born, and nothing is refused but new experiments.
        ns.create(&unschedulable("born", "born")).await?;
        let refused = ns.api::<PodChaos>().create(&PostParams::default(), &failure("more", |_| ())).await;
        let why = refused.err().context("an experiment was accepted unseen")?.to_string();
        assert!(why.contains("squall.dev") && why.contains("webhook"), "{why}");
        ns.end_chaos("down").await?;
        ns.whole("web").await?;
        ns.pod_until("web", "it is Ready again", |pod| pod.is_ready()).await?;
        ns.whole("born").await?;
        Ok(())
    });
}

#[test]
fn faults_that_the_webhook_injected_are_recovered_without_it() {
    disrupt("down-webhook-late", async |ns| {
        for name in ["by-experiment", "by-hand", "by-time"] {
            ns.create(&unschedulable(name, name)).await?;
        }
        ns.create(&failure("down", |spec| {
            spec.selector.label_selectors.insert("app".into(), "by-experiment".into());
        }))
        .await?;
        ns.condition("down", "Injected").await?;
        ns.annotate::<Pod>("by-time", names::UNTIL, Some("12s")).await?;
        for name in ["by-hand", "by-time"] {
            let answer = ns.label::<Pod>(name, names::FAULT, Some(names::POD_FAILURE)).await?;
            assert!(answer.is_failed(), "{name}: {:?}", answer.images());
        }
        scale(&ns.client, names::WEBHOOK, 0).await?;
        ns.end_chaos("down").await?;
        ns.whole("by-experiment").await?;
        ns.label::<Pod>("by-hand", names::FAULT, None).await?;
        ns.whole("by-hand").await?;
        ns.whole("by-time").await?;
        Ok(())
    });
}

#[test]
fn without_the_controller_experiments_can_be_paused_and_deleted() {
    disrupt("down-controller", async |ns| {
        for name in ["a", "b"] {
            ns.create(&unschedulable(name, name)).await?;
            ns.create(&failure(name, |spec| {
                spec.selector.label_selectors.insert("app".into(), name.into());
            }))
            .await?;
            ns.condition(name, "Injected").await?;
        }
        scale(&ns.client, names::CONTROLLER, 0).await?;
        kubectl(&["-n", &ns.name, "annotate", "podchaos", "a", &format!("{}=true", names::PAUSE)])?.ok()?;
        kubectl(&["-n", &ns.name, "delete", "podchaos", "b", "--wait=false"])?.ok()?;
        // The object stays until its pod is whole.
        let marked = ns.chaos("b").await?;
        assert!(marked.metadata.deletion_timestamp.is_some());
        assert!(ns.pod("b").await?.is_failed());
        // Pods come and go, and the label works by hand: that is the webhook's.
        ns.ready_pod(&pod("born")).await?;
        let answer = ns.label::<Pod>("born", names::FAULT, Some(names::POD_FAILURE)).await?;
        assert!(answer.is_failed());
        let answer = ns.label::<Pod>("born", names::FAULT, None).await?;
        assert!(!answer.is_failed());
        scale(&ns.client, names::CONTROLLER, 2).await?;
        ns.chaos_gone("b").await?;
        ns.whole("b").await?;
        ns.phase("a", Phase::Paused).await?;
        ns.whole("a").await?;
        Ok(())
    });
}

#[test]
fn without_all_of_squall_nobodys_pods_are_held_up() {
    disrupt("down-all", async |ns| {
        ns.create(&unschedulable("hit", "hit")).await?;
        ns.create(&failure("down", |spec| {
            spec.selector.label_selectors.insert("app".into(), "hit".into());
        }))
        .await?;
        ns.condition("down", "Injected").await?;
        scale(&ns.client, names::CONTROLLER, 0).await?;
        scale(&ns.client, names::WEBHOOK, 0).await?;
        let began = Instant::now();
        ns.create(&deployment("web", 3, false)).await?;
        let pods = ns.ready_pods("web", 3).await?;
        assert!(began.elapsed() < Duration::from_secs(30), "it took {:?}", began.elapsed());
        assert!(pods.iter().all(|pod| pod.substituted().is_empty()));
        // That the switch does nothing is said by the API server itself.
        let out = ns.another("down-out", OptIn::No).await?;
        out.create(&unschedulable("web", "web")).await?;
        let label = ["-n", &out.name, "label", "pod", "web", "squall.dev/fault=pod-failure"];
        let said = kubectl(&label)?.ok()?;
        assert!(said.contains("Warning:") && said.contains("does nothing here"), "{said}");
        out.label::<Pod>("web", names::FAULT, None).await?;
        // Whoever labels a failed pod otherwise, annotates or deletes it is not held up either.
        ns.label::<Pod>("hit", "team", Some("blue")).await?;
        ns.annotate::<PodChaos>("down", names::PAUSE, Some("true")).await?;
        ns.annotate::<PodChaos>("down", names::PAUSE, None).await?;
        ns.delete_chaos("down").await?;
        ns.api::<Pod>().delete(&pods[0].name(), &DeleteParams::default()).await?;
        restore(ns).await?;
        ns.chaos_gone("down").await?;
        let whole = ns.whole("hit").await?;
        assert_eq!(whole.label("team"), Some("blue"));
        Ok(())
    });
}

#[test]
fn a_controller_killed_at_any_moment_leaves_nothing_failed() {
    disrupt("killed-controller", async |ns| {
        let mut pods: Vec<Pod> = (0..27).map(|n| unschedulable(&format!("web-{n}"), "web")).collect();
        for n in 27..30 {
            let mut running = pod(&format!("web-{n}"));
            running.metadata.labels = Some([("app".to_owned(), "web".to_owned())].into());
            pods.push(running);
        }
        try_join_all(pods.iter().map(|pod| ns.create(pod))).await?;
        for n in 27..30 {
            ns.pod_until(&format!("web-{n}"), "it is Ready", |pod| pod.is_ready()).await?;
        }
        for round in 0..10 {
            let name = format!("down-{round}");
            let leads = until("a replica leads, and another waits", async || {
                let pods = pods_of(ns, names::CONTROLLER).await?;
                let leads = leader(&ns.client).await?;
                let leads = pods.iter().find(|pod| Some(pod.name()) == leads && pod.is_ready()).cloned();
                let others = pods.iter().filter(|pod| pod.is_ready()).count();
                Ok(match leads {
                    Some(pod) if others > 1 => Ok(pod),
                    other => Err(format!("{:?} of {others}", other.map(|pod| pod.name()))),
                })
            })
            .await?;
            let moment = some_time_below(Duration::from_millis(600));
            ns.create(&failure(&name, |_| ())).await?;
            tokio::time::sleep(moment).await;
            sigkill(&leads, "controller")?;
            let hit = ns.pods("web").await?.iter().filter(|pod| pod.is_failed()).count();
            println!("round {round}: killed {moment:?} after the order, {hit} of 30 failed");
            ns.delete_chaos(&name).await?;
            // Neither the kubelet's patience nor the lease's is what is tried here.
            restart_now(&ns.client, &leads.name()).await?;
            delete_lease(&ns.client).await?;
            ns.chaos_gone(&name).await?;
            let left: Vec<String> =
                ns.pods("web").await?.iter().filter(|pod| pod.is_failed()).map(|pod| pod.name()).collect();
            assert!(left.is_empty(), "round {round}: left failed: {left:?}");
        }
        ns.all_whole("web").await?;
        Ok(())
    });
}

#[test]
fn the_other_replica_takes_over_and_is_obeyed() {
    disrupt("takeover", async |ns| {
        ns.create(&unschedulable("idle", "idle")).await?;
        ns.ready_pod(&pod("web")).await?;
        ns.create(&failure("down", |spec| {
            spec.selector.label_selectors.insert("app".into(), "idle".into());
        }))
        .await?;
        ns.condition("down", "Injected").await?;
        let first = leader(&ns.client).await?.context("nobody leads")?;
        let pods = pods_of(ns, names::CONTROLLER).await?;
        let leads = pods.iter().find(|pod| pod.name() == first).context("the leader has no pod")?;
        sigkill(leads, "controller")?;
        restart_now(&ns.client, &first).await?;
        let second = until_within(Duration::from_secs(25), "another leads", async || {
            let now = leader(&ns.client).await?.unwrap_or_default();
            Ok(if now != first && !now.is_empty() { Ok(now) } else { Err(now) })
        })
        .await?;
        assert_ne!(second, first);
        // Faults of before are known to it, its orders to the daemons are newer than those of before.
        ns.create(&experiment("kill", Action::ContainerKill, Mode::One, |spec| {
            spec.selector.label_selectors.insert("app".into(), "web".into());
        }))
        .await?;
        let chaos = ns.completed("kill").await?;
        assert_eq!(chaos.phase(), Phase::Completed, "{}", chaos.shown());
        assert_eq!(chaos.in_phase(TargetPhase::Killed).len(), 1, "{}", chaos.shown());
        assert!(ns.pod("idle").await?.is_failed(), "a change of leaders ended a fault");
        ns.end_chaos("down").await?;
        ns.whole("idle").await?;
        Ok(())
    });
}

/// The whole cluster is halted, and isn't any more when this goes, also when an assertion fails.
struct HaltedCluster;

impl HaltedCluster {
    fn begin(why: &str) -> Result<Self> {
        let halt = format!("{}={why}", names::HALT);
        kubectl(&["annotate", "namespace", names::NAMESPACE, "--overwrite", &halt])?.ok()?;
        Ok(Self)
    }
}

impl Drop for HaltedCluster {
    fn drop(&mut self) {
        let lift = format!("{}-", names::HALT);
        let _ = kubectl(&["annotate", "namespace", names::NAMESPACE, &lift]);
    }
}

/// How long it took until these pods had their own images.
async fn images_are_back(namespaces: &[&Ns], began: Instant) -> Result<Duration> {
    for ns in namespaces {
        ns.pods_until("web", "all images are back", |pods| pods.iter().all(|pod| !pod.is_failed())).await?;
    }
    Ok(began.elapsed())
}

#[test]
fn a_halt_of_squalls_own_namespace_halts_the_whole_cluster() {
    disrupt("halt-cluster", async |ns| {
        let other = ns.another("halt-cluster-too", OptIn::Yes).await?;
        for ns in [ns, &other] {
            for name in ["web-0", "web-1"] {
                ns.create(&unschedulable(name, "web")).await?;
            }
            ns.create(&failure("down", |spec| {
                spec.selector.pods.insert(ns.name.clone(), vec!["web-0".to_owned()]);
            }))
            .await?;
            ns.condition("down", "Injected").await?;
            let answer = ns.label::<Pod>("web-1", names::FAULT, Some(names::POD_FAILURE)).await?;
            assert!(answer.is_failed());
        }
        let halted = HaltedCluster::begin("incident 4716")?;
        let took = images_are_back(&[ns, &other], Instant::now()).await?;
        println!("recovered by a halt of the cluster: {took:?} (at most 2 s)");
        assert!(took <= Duration::from_secs(2), "it took {took:?}");
        for ns in [ns, &other] {
            let chaos = ns.completed("down").await?;
            assert_eq!(chaos.phase(), Phase::Halted, "{}", chaos.shown());
            let message = chaos.told().message.unwrap_or_default();
            assert!(message.contains("the whole cluster is halted: incident 4716"), "{message}");
        }
        let label = ["-n", &other.name, "label", "pod", "web-1", "squall.dev/fault=pod-failure"];
        let said = until("the webhook knows of the halt", async || {
            let ran = kubectl(&[&label[..], &["--dry-run=server"]].concat())?;
            Ok(if ran.success { Err(ran.text) } else { Ok(ran.text) })
        })
        .await?;
        assert!(said.contains("kubectl annotate namespace squall-system squall.dev/halt-"), "{said}");
        drop(halted);
        until("the label works again", async || {
            let ran = kubectl(&label)?;
            Ok(if ran.success { Ok(()) } else { Err(ran.text) })
        })
        .await?;
        other.label::<Pod>("web-1", names::FAULT, None).await?;
        for ns in [ns, &other] {
            ns.all_whole("web").await?;
        }
        Ok(())
    });
}

#[test]
fn a_halt_is_carried_out_within_the_lease_also_if_the_leader_has_just_died() {
    disrupt("halt-no-leader", async |ns| {
        for name in ["web-0", "web-1"] {
            ns.create(&unschedulable(name, "web")).await?;
        }
        ns.create(&failure("down", |spec| {
            spec.selector.pods.insert(ns.name.clone(), vec!["web-0".to_owned()]);
        }))
        .await?;
        ns.condition("down", "Injected").await?;
        assert!(ns.label::<Pod>("web-1", names::FAULT, Some(names::POD_FAILURE)).await?.is_failed());
        // And one that the daemon holds.
        let frozen = frozen(ns, "cold").await?;
        let first = leader(&ns.client).await?.context("nobody leads")?;
        let pods = pods_of(ns, names::CONTROLLER).await?;
        let leads = pods.iter().find(|pod| pod.name() == first).context("the leader has no pod")?;
        // Its Lease stays: whoever takes over waits for it to run out.
        sigkill(leads, "controller")?;
        let halt = format!("{}=incident 4717", names::HALT);
        kubectl(&["annotate", "namespace", &ns.name, &halt])?.ok()?;
        let began = Instant::now();
        let took = images_are_back(&[ns], began).await?;
        println!("recovered by a halt without a leader: {took:?} (at most {LEADERLESS:?})");
        assert!(took <= LEADERLESS, "it took {took:?}");
        runs_within(LEADERLESS.saturating_sub(began.elapsed()), &frozen).await?;
        let chaos = ns.completed("down").await?;
        assert_eq!(chaos.phase(), Phase::Halted, "{}", chaos.shown());
        ns.all_whole("web").await?;
        Ok(())
    });
}

#[test]
fn a_node_without_a_daemon_is_named_within_ten_seconds() {
    disrupt("no-daemon", async |ns| {
        let web = ns.ready_pod(&pod("web")).await?;
        let node = web.spec.and_then(|spec| spec.node_name).context("it has no node")?;
        patch_daemon_set(&ns.client, nowhere(Some("true"))).await?;
        until("no daemon is left", async || {
            let api: kube::Api<Pod> = kube::Api::namespaced(ns.client.clone(), names::NAMESPACE);
            let selector =
                ListParams::default().labels(&format!("{}={}", names::COMPONENT_LABEL, names::DAEMON));
            let left = api.list(&selector).await?.items.len();
            Ok(if left == 0 { Ok(()) } else { Err(format!("{left} left")) })
        })
        .await?;
        let began = Instant::now();
        ns.create(&experiment("kill", Action::ContainerKill, Mode::One, |_| ())).await?;
        // What needs no daemon works without.
        ns.create(&unschedulable("idle", "idle")).await?;
        ns.create(&failure("down", |spec| {
            spec.selector.label_selectors.insert("app".into(), "idle".into());
        }))
        .await?;
        ns.condition("down", "Injected").await?;
        let chaos = ns.completed("kill").await?;
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "it took {:?}: {}",
            began.elapsed(),
            chaos.shown()
        );
        assert!(chaos.is("Failed"), "{}", chaos.shown());
        let target = target_of(&chaos, "web").context("no such target")?;
        assert_eq!(target.reason.as_deref(), Some("NoDaemon"), "{}", chaos.shown());
        assert!(target.message.as_deref().unwrap_or_default().contains(&node), "{}", chaos.shown());
        assert_eq!(ns.pod("web").await?.restarts("app"), 0);
        ns.end_chaos("down").await?;
        ns.ready_pod(&pod("gone")).await?;
        ns.create(&experiment("delete", Action::PodKill, Mode::One, |spec| {
            spec.selector.label_selectors.insert("app".into(), "gone".into());
        }))
        .await?;
        let chaos = ns.completed("delete").await?;
        assert_eq!(chaos.in_phase(TargetPhase::Killed).len(), 1, "{}", chaos.shown());
        // A daemon that comes later does not make up for it.
        patch_daemon_set(&ns.client, nowhere(None)).await?;
        settled(&ns.client).await?;
        holds_for(Duration::from_secs(2), "the container is left alone", async || {
            let restarts = ns.pod("web").await?.restarts("app");
            Ok(if restarts == 0 { Ok(()) } else { Err(format!("{restarts} restarts")) })
        })
        .await
    });
}

/// Longer than a leader renews its Lease without an answer, so another term begins in it.
const SILENCE: u32 = 12;

/// Twenty pods that nobody runs, and one that runs.
async fn many(ns: &Ns) -> Result<Pod> {
    let pods: Vec<Pod> = (0..20).map(|n| unschedulable(&format!("web-{n}"), "web")).collect();
    try_join_all(pods.iter().map(|pod| ns.create(pod))).await?;
    ns.ready_pod(&pod("app")).await
}

async fn all_are_back(ns: &Ns, running: &Pod) -> Result<()> {
    ns.all_whole("web").await?;
    let now = ns.whole("app").await?;
    assert_eq!(now.uid(), running.uid());
    Ok(())
}

#[test]
fn an_api_server_that_is_silent_during_an_injection_holds_up_nothing_for_good() {
    disrupt("silent-inject", async |ns| {
        let running = many(ns).await?;
        ns.create(&failure("down", |spec| spec.duration = Some("2s".into()))).await?;
        tokio::time::sleep(some_time_below(Duration::from_millis(300))).await;
        // In the middle of the injection, or soon after it; the end of the fault falls into the silence.
        silence_the_api_server(SILENCE)?;
        let chaos = ns.completed("down").await?;
        assert_eq!(chaos.phase(), Phase::Completed, "{}", chaos.shown());
        assert_eq!(chaos.in_phase(TargetPhase::Recovered).len(), 21, "{}", chaos.shown());
        all_are_back(ns, &running).await
    });
}

#[test]
fn an_api_server_that_is_silent_during_a_recovery_holds_up_nothing_for_good() {
    disrupt("silent-recover", async |ns| {
        let running = many(ns).await?;
        ns.create(&failure("down", |_| ())).await?;
        ns.condition("down", "Injected").await?;
        ns.delete_chaos("down").await?;
        tokio::time::sleep(some_time_below(Duration::from_millis(150))).await;
        silence_the_api_server(SILENCE)?;
        ns.chaos_gone("down").await?;
        all_are_back(ns, &running).await
    });
}

/// The first process of the daemon, on this machine.
async fn daemons_process(ns: &Ns) -> Result<Pid> {
    let daemons = pods_of(ns, names::DAEMON).await?;
    let daemon = daemons.first().context("there is no daemon")?;
    let id =
        daemon.container("daemon").and_then(|one| one.container_id).context("the daemon does not run")?;
    let process = *containers_processes(&id)?.first().context("the daemon has no process")?;
    Pid::from_raw(process).context("the daemon has no process")
}

#[test]
fn a_container_that_restarts_between_choice_and_kill_is_not_hit() {
    disrupt("stale-container", async |ns| {
        let before = ns.ready_pod(&pod("web")).await?;
        let id =
            before.container("app").and_then(|one| one.container_id).context("it has no container ID")?;
        // A daemon that hears the order, and can't act on it yet.
        let daemon = daemons_process(ns).await?;
        kill_process(daemon, Signal::STOP)?;
        let chosen = async {
            ns.create(&experiment("kill", Action::ContainerKill, Mode::One, |_| ())).await?;
            ns.chaos_until("kill", "the container is chosen", |chaos| {
                target_of(chaos, "web").is_some_and(|target| target.container_id.as_deref() == Some(&id))
            })
            .await?;
            for process in containers_processes(&id)? {
                if let Some(process) = Pid::from_raw(process) {
                    let _ = kill_process(process, Signal::KILL);
                }
            }
            ns.pod_until("web", "it runs again", |pod| pod.is_ready() && pod.restarts("app") == 1).await
        }
        .await;
        kill_process(daemon, Signal::CONT)?;
        chosen?;
        let chaos = ns.completed("kill").await?;
        let target = target_of(&chaos, "web").context("no such target")?;
        assert_eq!(target.phase, TargetPhase::Skipped, "{}", chaos.shown());
        assert_eq!(target.reason.as_deref(), Some("ContainerGone"), "{}", chaos.shown());
        holds_for(Duration::from_millis(1500), "the next incarnation is left alone", async || {
            let restarts = ns.pod("web").await?.restarts("app");
            Ok(if restarts == 1 { Ok(()) } else { Err(format!("{restarts} restarts")) })
        })
        .await
    });
}

#[test]
fn a_daemon_that_is_killed_hits_nothing_twice() {
    disrupt("killed-daemon", async |ns| {
        ns.ready_pod(&pod("web")).await?;
        let daemon = daemons_process(ns).await?;
        ns.create(&experiment("kill", Action::ContainerKill, Mode::One, |_| ())).await?;
        tokio::time::sleep(some_time_below(Duration::from_millis(200))).await;
        kill_process(daemon, Signal::KILL)?;
        let chaos = ns.completed("kill").await?;
        let target = target_of(&chaos, "web").context("no such target")?;
        println!("{:?}: {:?}", target.phase, target.message);
        settled(&ns.client).await?;
        holds_for(Duration::from_secs(2), "it was hit once at most", async || {
            let restarts = ns.pod("web").await?.restarts("app");
            Ok(if restarts <= 1 { Ok(()) } else { Err(format!("{restarts} restarts")) })
        })
        .await?;
        if target.phase == TargetPhase::Killed {
            assert_eq!(ns.pod("web").await?.restarts("app"), 1, "{}", chaos.shown());
        }
        // It is of use again.
        ns.pod_until("web", "it is Ready", |pod| pod.is_ready()).await?;
        ns.create(&experiment("again", Action::ContainerKill, Mode::One, |_| ())).await?;
        let chaos = ns.completed("again").await?;
        assert_eq!(chaos.phase(), Phase::Completed, "{}", chaos.shown());
        Ok(())
    });
}

#[test]
fn a_change_of_leader_amid_fifty_experiments_hits_no_more_than_the_policy_allows() {
    disrupt("down-policy", async |ns| {
        ns.create(&deployment("web", 12, true)).await?;
        ns.pods_until("web", "there are twelve", |pods| pods.len() == 12).await?;
        let policy = json!({
            "apiVersion": "squall.dev/v1alpha1", "kind": "ChaosPolicy", "metadata": { "name": ns.name },
            "spec": {
                "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": ns.name } },
                "limits": { "maxTargets": 5 },
            },
        });
        kubectl_stdin(&["create", "-f", "-"], &policy.to_string())?.ok()?;
        let held = AssertUnwindSafe(never_more_than_five(ns)).catch_unwind().await;
        kubectl(&["delete", "chaospolicy", &ns.name])?.ok()?;
        held.unwrap_or_else(|_| Err(anyhow!("an assertion failed, see above")))
    });
}

async fn never_more_than_five(ns: &Ns) -> Result<()> {
    until("the controller knows of the policy", async || {
        let said = kubectl(&["get", "chaospolicy", &ns.name])?.ok()?;
        Ok(if said.contains("Open") { Ok(()) } else { Err(said) })
    })
    .await?;
    let api = ns.api::<PodChaos>();
    let all: Vec<PodChaos> = (0..50)
        .map(|number| experiment(&format!("one-{number}"), Action::PodFailure, Mode::One, |_| ()))
        .collect();
    let params = PostParams::default();
    let make = async {
        for (number, ten) in all.chunks(10).enumerate() {
            try_join_all(ten.iter().map(|chaos| api.create(&params, chaos))).await?;
            if number == 1 {
                let leads = leader(&ns.client).await?.context("nobody leads")?;
                let pods = pods_of(ns, names::CONTROLLER).await?;
                let pod = pods.iter().find(|pod| pod.name() == leads).context("the leader is no pod")?;
                sigkill(pod, "controller")?;
            }
        }
        until_within(Duration::from_secs(60), "each is injected", async || {
            let items = api.list(&ListParams::default()).await?.items;
            let open = items.into_iter().find(|chaos| !chaos.is("Injected"));
            Ok(match open {
                None => Ok(()),
                Some(chaos) => Err(format!("{:?} {}", chaos.metadata.name, chaos.shown())),
            })
        })
        .await
    };
    let mut make = std::pin::pin!(make);
    loop {
        let pods = ns.pods("web").await?;
        let hit: Vec<String> = pods
            .iter()
            .filter(|pod| pod.label(names::FAULT).is_some() || !pod.substituted().is_empty())
            .map(|pod| pod.name())
            .collect();
        anyhow::ensure!(hit.len() <= 5, "{hit:?}");
        match tokio::time::timeout(Duration::from_millis(60), &mut make).await {
            Ok(made) => {
                made?;
                assert_eq!(hit.len(), 5, "{hit:?}");
                return Ok(());
            }
            Err(_) => continue,
        }
    }
}
