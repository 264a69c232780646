//! pod-kill on real pods: who is hit, how gracefully, and what the status says of it.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::DeleteParams;
use serde_json::json;
use squall_api::names;
use squall_api::podchaos::{Action, Mode, Phase, PodChaos, TargetPhase};
use squall_tests::{
    ExperimentExt as _, Ns, OF, OptIn, PodExt as _, STUBBORN, container, deployment, event_on, experiment,
    from_json, holds_for, in_each_mode, kubectl, pod, pod_of, says, spawn_kubectl, stateful_set, target_of,
    unschedulable, until, with_ns,
};

fn app(chaos: &mut squall_api::podchaos::PodChaosSpec, app: &str) {
    chaos.selector.label_selectors.insert("app".into(), app.into());
}

fn uids(pods: &[Pod]) -> Vec<String> {
    let mut uids: Vec<String> = pods.iter().map(|pod| pod.uid()).collect();
    uids.sort_unstable();
    uids
}

fn seconds_between(from: Option<Timestamp>, to: Option<Timestamp>) -> Result<f64> {
    let (from, to) = from.zip(to).context("a time is missing in the status")?;
    Ok(to.duration_since(from).as_secs_f64())
}

#[test]
fn one_of_three_is_killed_replaced_and_told_of() {
    with_ns("kill-one", OptIn::Yes, async |ns| {
        ns.create(&deployment("web", 3, false)).await?;
        let before = ns.ready_pods("web", 3).await?;
        ns.create(&experiment("kill", Action::PodKill, Mode::One, |spec| app(spec, "web"))).await?;
        let chaos = ns.completed("kill").await?;
        assert_eq!(chaos.phase(), Phase::Completed, "{}", chaos.shown());
        assert_eq!(chaos.reason("Completed"), "Succeeded", "{}", chaos.shown());
        assert!(!chaos.is("Failed"), "{}", chaos.shown());
        let killed = chaos.in_phase(TargetPhase::Killed);
        assert_eq!(killed.len(), 1, "{}", chaos.shown());
        assert_eq!(chaos.told().summary.as_deref(), Some("1/1"));
        let target = &killed[0];
        assert!(before.iter().any(|pod| pod.uid() == target.uid && pod.name() == target.pod));
        assert!(target.gone_at.is_some() && target.ordered_at.is_some(), "{}", chaos.shown());

        let after = ns.ready_pods("web", 3).await?;
        let kept = after.iter().filter(|pod| before.iter().any(|old| old.uid() == pod.uid())).count();
        assert_eq!(kept, 2, "only one pod was to be hit");
        let newcomer = after.iter().find(|pod| before.iter().all(|old| old.uid() != pod.uid()));
        let newcomer = newcomer.context("there is no replacement")?.name();
        let chaos = ns
            .chaos_until("kill", "the replacement's Ready time is told", |chaos| {
                target_of(chaos, &target.pod).is_some_and(|target| target.ready_at.is_some())
            })
            .await?;
        let told = target_of(&chaos, &target.pod).and_then(|target| target.replacement.clone());
        assert_eq!(told.as_deref(), Some(newcomer.as_str()), "{}", chaos.shown());

        // On the pod that was hit, and on the experiment.
        let said = event_on(ns, "Pod", &target.pod, "Killed").await?;
        assert!(said.contains(&format!("{}/kill", ns.name)), "{said:?} does not say by whom");
        event_on(ns, "PodChaos", "kill", "Completed").await?;
        Ok(())
    });
}

#[test]
fn each_mode_hits_as_many_as_it_says() {
    with_ns("kill-modes", OptIn::Yes, async |ns| {
        for case in in_each_mode(ns, Action::PodKill).await? {
            let (name, wanted) = (case.name, &case.chosen);
            let chaos = ns.completed(name).await?;
            let killed = chaos.in_phase(TargetPhase::Killed).len();
            assert!(wanted.contains(&killed), "{name}: {killed} instead of {wanted:?}: {}", chaos.shown());
            assert_eq!(
                chaos.told().drawn.map(usize::try_from),
                Some(Ok(killed)),
                "{name}: {}",
                chaos.shown()
            );
            assert_eq!(ns.pods(name).await?.len(), OF - killed, "{name}");
        }
        Ok(())
    });
}

#[test]
fn the_grace_period_is_really_waited_for() {
    with_ns("kill-grace", OptIn::Yes, async |ns| {
        // Needs three seconds to put its things in order, and has twenty.
        let tidy = "trap 'sleep 3; exit 0' TERM; while :; do sleep 1000 & wait $!; done";
        let spec = json!({ "terminationGracePeriodSeconds": 20, "containers": [container("app", tidy)] });
        // Never ends by itself: the grace period that the experiment gives is what ends it.
        let deaf =
            json!({ "terminationGracePeriodSeconds": 600, "containers": [container("app", STUBBORN)] });
        ns.create(&pod_of("tidy", spec)).await?;
        ns.create(&pod_of("deaf", deaf.clone())).await?;
        ns.create(&pod_of("evicted", deaf)).await?;
        for name in ["tidy", "deaf", "evicted"] {
            ns.pod_until(name, "it is Ready", |pod| pod.is_ready()).await?;
        }
        ns.create(&experiment("own", Action::PodKill, Mode::All, |spec| app(spec, "tidy"))).await?;
        ns.create(&experiment("given", Action::PodKill, Mode::All, |spec| {
            app(spec, "deaf");
            spec.grace_period = Some(2);
        }))
        .await?;
        ns.create(&experiment("evict", Action::PodKill, Mode::All, |spec| {
            app(spec, "evicted");
            spec.grace_period = Some(2);
            spec.evict = Some(true);
        }))
        .await?;
        // Marked first, gone later: in between the experiment isn't over.
        let marked = ns.phase("own", Phase::Injected).await?;
        assert!(!marked.is("Completed"), "{}", marked.shown());
        assert!(ns.pod("tidy").await?.is_terminating());

        let cases =
            [("own", "tidy", 2.9, 12.0), ("given", "deaf", 1.9, 12.0), ("evict", "evicted", 1.9, 12.0)];
        for (name, pod, least, most) in cases {
            let chaos = ns.completed(name).await?;
            let target = target_of(&chaos, pod).context("no such target")?.clone();
            let took = seconds_between(target.ordered_at.map(|at| at.0), target.gone_at.map(|at| at.0))?;
            assert!((least..most).contains(&took), "{name}: gone after {took} s: {}", chaos.shown());
            assert!(ns.api::<Pod>().get_opt(pod).await?.is_none(), "{pod} is still there");
        }
        Ok(())
    });
}

fn budget(name: &str, app: &str) -> PodDisruptionBudget {
    from_json(json!({
        "metadata": { "name": name },
        "spec": { "maxUnavailable": 0, "selector": { "matchLabels": { "app": app } } },
    }))
}

async fn blocking_budget(ns: &Ns, name: &str, app: &str) -> Result<()> {
    ns.create(&budget(name, app)).await?;
    until("the budget is observed", async || {
        let status = ns.api::<PodDisruptionBudget>().get(name).await?.status.unwrap_or_default();
        let seen = status.observed_generation == Some(1) && status.expected_pods > 0;
        Ok(if seen { Ok(()) } else { Err(format!("{status:?}")) })
    })
    .await
}

#[test]
fn a_replacement_of_the_same_name_is_not_hit() {
    with_ns("kill-sts", OptIn::Yes, async |ns| {
        ns.create(&stateful_set("db", 1)).await?;
        let first = ns.ready_pods("db", 1).await?.remove(0);
        blocking_budget(ns, "hold", "db").await?;
        // Chosen, and held up by the budget: between choice and effect the pod is replaced under the same name.
        ns.create(&experiment("evict", Action::PodKill, Mode::One, |spec| spec.evict = Some(true))).await?;
        ns.chaos_until("evict", "db-0 is chosen and its eviction was tried", |chaos| {
            target_of(chaos, "db-0")
                .is_some_and(|target| target.phase == TargetPhase::Selected && target.message.is_some())
        })
        .await?;
        ns.api::<Pod>().delete("db-0", &DeleteParams::default()).await?;
        let second = ns
            .pod_until("db-0", "its replacement is Ready", |pod| pod.uid() != first.uid() && pod.is_ready())
            .await?;
        ns.api::<PodDisruptionBudget>().delete("hold", &DeleteParams::default()).await?;
        let chaos = ns.completed("evict").await?;
        let targets = chaos.told().targets;
        assert_eq!(targets.len(), 1, "{}", chaos.shown());
        assert_eq!(targets[0].uid, first.uid(), "{}", chaos.shown());
        holds_for(Duration::from_millis(1500), "the replacement is left alone", async || {
            let now = ns.pod("db-0").await?;
            let same = now.uid() == second.uid() && !now.is_terminating();
            Ok(if same { Ok(()) } else { Err(format!("{:?}", now.metadata)) })
        })
        .await
    });
}

#[test]
fn a_stateful_pod_is_killed_once_and_its_replacement_followed() {
    with_ns("kill-sts-one", OptIn::Yes, async |ns| {
        ns.create(&stateful_set("db", 1)).await?;
        let first = ns.ready_pods("db", 1).await?.remove(0);
        ns.create(&experiment("kill", Action::PodKill, Mode::All, |_| ())).await?;
        let chaos = ns
            .chaos_until("kill", "the replacement is Ready again", |chaos| {
                target_of(chaos, "db-0").is_some_and(|target| target.ready_at.is_some())
            })
            .await?;
        let targets = chaos.told().targets;
        assert_eq!(targets.len(), 1, "{}", chaos.shown());
        assert_eq!(targets[0].uid, first.uid(), "{}", chaos.shown());
        assert_eq!(targets[0].replacement.as_deref(), Some("db-0"), "{}", chaos.shown());
        let second = ns.pod("db-0").await?;
        assert_ne!(second.uid(), first.uid());
        assert!(second.is_ready());
        Ok(())
    });
}

#[test]
fn eviction_waits_for_a_disruption_budget() {
    with_ns("kill-evict", OptIn::Yes, async |ns| {
        ns.create(&deployment("web", 1, false)).await?;
        let pod = ns.ready_pods("web", 1).await?.remove(0);
        blocking_budget(ns, "hold", "web").await?;
        ns.create(&experiment("evict", Action::PodKill, Mode::One, |spec| spec.evict = Some(true))).await?;
        let blocked = ns
            .chaos_until("evict", "it says what holds the eviction up", |chaos| {
                target_of(chaos, &pod.name()).is_some_and(|target| target.message.is_some())
            })
            .await?;
        assert_eq!(blocked.phase(), Phase::Injecting, "{}", blocked.shown());
        let why =
            target_of(&blocked, &pod.name()).and_then(|target| target.message.clone()).unwrap_or_default();
        assert!(why.contains("budget"), "{why:?} does not name the budget");
        holds_for(Duration::from_secs(1), "the pod is spared", async || {
            let now = ns.pod(&pod.name()).await?;
            Ok(if now.is_terminating() { Err("it is being deleted".to_owned()) } else { Ok(()) })
        })
        .await?;
        ns.api::<PodDisruptionBudget>().delete("hold", &DeleteParams::default()).await?;
        let chaos = ns.completed("evict").await?;
        assert_eq!(chaos.in_phase(TargetPhase::Killed).len(), 1, "{}", chaos.shown());
        Ok(())
    });
}

#[test]
fn an_eviction_that_stays_blocked_fails_when_its_duration_is_over() {
    with_ns("kill-evict-out", OptIn::Yes, async |ns| {
        ns.create(&deployment("web", 1, false)).await?;
        let pod = ns.ready_pods("web", 1).await?.remove(0);
        blocking_budget(ns, "hold", "web").await?;
        ns.create(&experiment("evict", Action::PodKill, Mode::One, |spec| {
            spec.evict = Some(true);
            spec.duration = Some("2s".into());
        }))
        .await?;
        let chaos = ns.completed("evict").await?;
        assert_eq!(chaos.phase(), Phase::Failed, "{}", chaos.shown());
        assert!(chaos.is("Failed") && chaos.is("Stalled"), "{}", chaos.shown());
        let target = target_of(&chaos, &pod.name()).context("no such target")?;
        assert_eq!(target.reason.as_deref(), Some("EvictionBlocked"), "{}", chaos.shown());
        assert!(!ns.pod(&pod.name()).await?.is_terminating());
        Ok(())
    });
}

#[test]
fn a_dry_run_says_what_it_would_do_and_hits_nothing() {
    with_ns("kill-dry", OptIn::Yes, async |ns| {
        ns.keeps(names::PROTECT);
        let all: Vec<Pod> = (0..4).map(|n| unschedulable(&format!("web-{n}"), "web")).collect();
        try_join_all(all.iter().map(|pod| ns.create(pod))).await?;
        ns.label::<Pod>("web-3", names::PROTECT, Some("true")).await?;
        let before = uids(&ns.pods("web").await?);
        let dry = |name: &str| {
            experiment(name, Action::PodKill, Mode::Fixed, |spec| {
                spec.value = Some("2".into());
                spec.dry_run = Some(true);
                spec.seed = Some(7);
            })
        };
        ns.create(&dry("first")).await?;
        ns.create(&dry("second")).await?;
        let (first, second) = (ns.completed("first").await?, ns.completed("second").await?);
        assert_eq!(first.phase(), Phase::Completed, "{}", first.shown());
        let chosen = |chaos: &PodChaos| {
            chaos.in_phase(TargetPhase::Selected).into_iter().map(|target| target.pod).collect::<Vec<_>>()
        };
        assert_eq!(chosen(&first).len(), 2, "{}", first.shown());
        assert_eq!(chosen(&first), chosen(&second), "the same seed and the same pods");
        let why = |pod: &str| target_of(&first, pod).and_then(|target| target.reason.clone());
        assert_eq!(why("web-3").as_deref(), Some("Protected"), "{}", first.shown());
        let left_out = first.in_phase(TargetPhase::Skipped);
        assert_eq!(left_out.len(), 2, "{}", first.shown());
        assert!(left_out.iter().all(|target| target.message.is_some()), "{}", first.shown());
        assert_eq!(uids(&ns.pods("web").await?), before, "a dry run hit something");
        Ok(())
    });
}

#[test]
fn kubectl_can_wait_for_the_end() {
    with_ns("kill-wait", OptIn::Yes, async |ns| {
        ns.ready_pod(&pod("web")).await?;
        ns.create(&experiment("kill", Action::PodKill, Mode::One, |_| ())).await?;
        let waiting = spawn_kubectl(&[
            "-n",
            &ns.name,
            "wait",
            "--for=condition=Completed",
            "podchaos/kill",
            "--timeout=30s",
        ])?;
        let output = waiting.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        assert!(text.contains("condition met"), "{text}");
        assert!(ns.api::<Pod>().get_opt("web").await?.is_none(), "Completed before the pod was gone");
        // What people see first.
        let table = kubectl(&["-n", &ns.name, "get", "pch"])?.ok()?;
        for column in ["ACTION", "MODE", "PHASE", "TARGETS", "AGE", "pod-kill", "one", "Completed", "1/1"] {
            assert!(table.contains(column), "{column} is missing in\n{table}");
        }
        Ok(())
    });
}

#[test]
fn nothing_to_hit_ends_with_the_reason() {
    with_ns("kill-none", OptIn::Yes, async |ns| {
        ns.create(&unschedulable("web", "web")).await?;
        let began = Timestamp::now();
        ns.create(&experiment("kill", Action::PodKill, Mode::One, |spec| app(spec, "wbe"))).await?;
        let chaos = ns.completed("kill").await?;
        assert_eq!(chaos.reason("Completed"), "NoTargets", "{}", chaos.shown());
        assert!(chaos.is("Failed"), "{}", chaos.shown());
        says(&chaos.told().message.unwrap_or_default(), &["labelSelectors", "wbe"])?;
        let waited = Timestamp::now().duration_since(began);
        assert!(waited >= SignedDuration::from_secs(9), "it looked for {waited} only");
        assert_eq!(ns.pods("web").await?.len(), 1);
        Ok(())
    });
}

#[test]
fn a_pod_that_comes_within_ten_seconds_is_hit() {
    with_ns("kill-late", OptIn::Yes, async |ns| {
        ns.create(&experiment("kill", Action::PodKill, Mode::One, |spec| app(spec, "web"))).await?;
        ns.phase("kill", Phase::Pending).await?;
        ns.create(&unschedulable("web", "web")).await?;
        let chaos = ns.completed("kill").await?;
        assert_eq!(chaos.phase(), Phase::Completed, "{}", chaos.shown());
        assert!(ns.api::<Pod>().get_opt("web").await?.is_none());
        Ok(())
    });
}

#[test]
fn a_protected_pod_is_skipped_with_the_reason() {
    with_ns("kill-protected", OptIn::Yes, async |ns| {
        ns.keeps(names::PROTECT);
        ns.create(&unschedulable("safe", "web")).await?;
        ns.label::<Pod>("safe", names::PROTECT, Some("true")).await?;
        ns.create(&unschedulable("open", "web")).await?;
        ns.create(&experiment("kill", Action::PodKill, Mode::All, |_| ())).await?;
        let chaos = ns.completed("kill").await?;
        assert_eq!(chaos.phase(), Phase::Completed, "{}", chaos.shown());
        let safe = target_of(&chaos, "safe").context("the protected pod isn't told of")?;
        assert_eq!(safe.phase, TargetPhase::Skipped, "{}", chaos.shown());
        assert_eq!(safe.reason.as_deref(), Some("Protected"), "{}", chaos.shown());
        assert!(!ns.pod("safe").await?.is_terminating());
        Ok(())
    });
}

#[test]
fn a_one_shot_is_not_repeated_by_pausing_and_resuming() {
    with_ns("kill-pause", OptIn::Yes, async |ns| {
        ns.create(&deployment("web", 1, true)).await?;
        ns.pods_until("web", "the pod is there", |pods| pods.len() == 1).await?;
        ns.create(&experiment("kill", Action::PodKill, Mode::All, |_| ())).await?;
        ns.completed("kill").await?;
        let after = uids(&ns.pods_until("web", "the replacement is there", |pods| pods.len() == 1).await?);
        ns.annotate::<PodChaos>("kill", names::PAUSE, Some("true")).await?;
        ns.annotate::<PodChaos>("kill", names::PAUSE, None).await?;
        holds_for(Duration::from_millis(1500), "the replacement is left alone", async || {
            let now = uids(&ns.pods("web").await?);
            Ok(if now == after { Ok(()) } else { Err(format!("{now:?} instead of {after:?}")) })
        })
        .await?;
        let chaos = ns.chaos("kill").await?;
        assert_eq!(chaos.phase(), Phase::Completed, "{}", chaos.shown());
        Ok(())
    });
}

#[test]
fn it_reaches_into_every_namespace_that_is_named() {
    with_ns("kill-far", OptIn::Yes, async |ns| {
        let far = ns.another("kill-far-b", OptIn::Yes).await?;
        ns.create(&unschedulable("near", "web")).await?;
        far.create(&unschedulable("far", "web")).await?;
        ns.create(&experiment("kill", Action::PodKill, Mode::All, |spec| {
            spec.selector.namespaces = vec![ns.name.clone(), far.name.clone()];
        }))
        .await?;
        let chaos = ns.completed("kill").await?;
        assert_eq!(chaos.in_phase(TargetPhase::Killed).len(), 2, "{}", chaos.shown());
        assert!(far.api::<Pod>().get_opt("far").await?.is_none());
        assert!(ns.api::<Pod>().get_opt("near").await?.is_none());
        Ok(())
    });
}
