//! Policies, halts and the opt-in on a real cluster: what they refuse, what they end, and how soon.
//!
//! A policy is for all namespaces that it selects, so each test's selects the test's own alone, and goes with the test.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use futures::future::join_all;
use k8s_openapi::api::core::v1::Event;
use kube::api::{ListParams, PostParams};
use serde_json::{Value, json};
use squall_api::chaospolicy::PolicyState;
use squall_api::names;
use squall_api::podchaos::{Action, Mode, Phase, PodChaos, PodChaosSpec};
use squall_api::probe::OnHalt;
use squall_tests::{
    ExperimentExt as _, Ns, OptIn, PAUSE, PodExt as _, Policy, Ran, deployment, experiment, hit, holds_for,
    kubectl, kubectl_stdin, pod, refusal, says, stateful_set, unschedulable, until, with_ns,
};

/// What the order gives a halt, from its write to the last image that is back.
const HALTED_WITHIN: Duration = Duration::from_secs(2);
/// What it gives the withdrawal of an opt-in.
const WITHDRAWN_WITHIN: Duration = Duration::from_secs(5);

fn failure(name: &str, change: impl FnOnce(&mut PodChaosSpec)) -> PodChaos {
    experiment(name, Action::PodFailure, Mode::All, change)
}

fn fixed(name: &str, count: usize) -> PodChaos {
    experiment(name, Action::PodFailure, Mode::Fixed, |spec| spec.value = Some(count.to_string()))
}

async fn nothing_is_hit(ns: &Ns, app: &str) -> Result<()> {
    let hit = hit(ns, app).await?;
    ensure!(hit.is_empty(), "{hit:?}");
    Ok(())
}

/// How long after `began` all pods with this label have their own images.
async fn images_are_back(ns: &Ns, app: &str, began: Instant) -> Result<Duration> {
    ns.pods_until(app, "all images are back", |pods| {
        !pods.is_empty() && pods.iter().all(|pod| pod.substituted().is_empty())
    })
    .await?;
    Ok(began.elapsed())
}

/// How long it took is for who reads the log of a run, too.
fn in_time(what: &str, took: Duration, limit: Duration) -> Result<()> {
    println!("{what}: {took:?} (at most {limit:?})");
    ensure!(took <= limit, "{what}: {took:?}, at most {limit:?}");
    Ok(())
}

fn on_namespace(ns: &Ns, verb: &str, what: &str) -> Result<Ran> {
    kubectl(&[verb, "namespace", &ns.name, "--overwrite", what])
}

fn switch(ns: &Ns, pod: &str, extra: &[&str]) -> Result<Ran> {
    let mut args = vec!["-n", &ns.name, "label", "pod", pod, "squall.dev/fault=pod-failure"];
    args.extend(extra);
    kubectl(&args)
}

/// Each replica of the webhook learns of a halt by its own watch.
async fn until_the_switch_is_refused(ns: &Ns, pod: &str) -> Result<()> {
    until("the webhook knows of the halt", async || {
        let ran = switch(ns, pod, &["--dry-run=server"])?;
        Ok(if ran.success { Err(ran.text) } else { Ok(()) })
    })
    .await
}

async fn events_of(ns: &Ns, chaos: &str) -> Result<Vec<String>> {
    let events = ns.api::<Event>().list(&ListParams::default()).await?;
    let about = events.items.into_iter().filter(|event| event.involved_object.name.as_deref() == Some(chaos));
    Ok(about.filter_map(|event| event.message).collect())
}

#[test]
fn more_targets_than_the_policy_allows_are_refused_with_all_four() {
    with_ns("policy-targets", OptIn::Yes, async |ns| {
        ns.create(&deployment("web", 4, true)).await?;
        ns.pods_until("web", "there are four", |pods| pods.len() == 4).await?;
        let policy = Policy::make(ns, json!({ "limits": { "maxTargets": 2 } })).await?;
        let why = refusal(ns, &fixed("three", 3)).await?;
        says(&why, &[&policy.name, "limits.maxTargets", "found 3", "allowed: 2"])?;
        // How many these are is known only when the pods are counted: that is the leader's to refuse.
        ns.create(&failure("all", |_| ())).await?;
        let all = ns.completed("all").await?;
        assert_eq!(
            (all.phase(), all.reason("Failed").as_str()),
            (Phase::Failed, "PolicyRefused"),
            "{}",
            all.shown()
        );
        says(
            &all.told().message.unwrap_or_default(),
            &[&policy.name, "limits.maxTargets", "found 4", "allowed: 2"],
        )?;
        nothing_is_hit(ns, "web").await?;
        until("an Event tells it", async || {
            let told = events_of(ns, "all").await?;
            let said = told.iter().any(|text| text.contains("limits.maxTargets"));
            Ok(if said { Ok(()) } else { Err(format!("{told:?}")) })
        })
        .await?;
        // What fits is not kept from happening, and is counted.
        ns.create(&fixed("two", 2)).await?;
        ns.phase("two", Phase::Injected).await?;
        assert_eq!(hit(ns, "web").await?.len(), 2);
        until("the policy's status counts them", async || {
            let usage = policy.now(ns).await?.status.and_then(|status| status.usage).unwrap_or_default();
            let fits = usage.targets == 2 && usage.experiments == 1 && usage.summary == "2/2";
            Ok(if fits { Ok(()) } else { Err(format!("{usage:?}")) })
        })
        .await?;
        says(&kubectl(&["get", "chaospolicy", &policy.name])?.ok()?, &["Open", "2/2"])
    });
}

#[test]
fn a_workload_keeps_its_percentage_and_rounding_is_told() {
    with_ns("policy-percent", OptIn::Yes, async |ns| {
        ns.create(&deployment("web", 5, true)).await?;
        ns.pods_until("web", "there are five", |pods| pods.len() == 5).await?;
        let policy = Policy::make(ns, json!({ "limits": { "maxPercentPerWorkload": 10 } })).await?;
        let why = refusal(ns, &fixed("one", 1)).await?;
        says(
            &why,
            &[
                &policy.name,
                "limits.maxPercentPerWorkload",
                "found 1 of the 5 pods",
                "allowed: 0 (10 % of 5 is 0)",
            ],
        )?;
        nothing_is_hit(ns, "web").await?;
        policy.patch(r#"{"spec": {"limits": {"maxPercentPerWorkload": 50}}}"#)?;
        policy.state(ns, PolicyState::Open).await?;
        let why = refusal(ns, &fixed("three", 3)).await?;
        says(&why, &[&policy.name, "limits.maxPercentPerWorkload", "50 % of 5 is 2"])?;
        ns.create(&fixed("two", 2)).await?;
        ns.phase("two", Phase::Injected).await?;
        assert_eq!(hit(ns, "web").await?.len(), 2);
        Ok(())
    });
}

#[test]
fn each_rule_that_asks_no_clock_refuses_in_its_own_words() {
    with_ns("policy-rules", OptIn::Yes, async |ns| {
        // None of its pods is ever Ready.
        ns.create(&deployment("web", 2, true)).await?;
        ns.pods_until("web", "there are two", |pods| pods.len() == 2).await?;
        let cases: [(&str, Value, PolicyState, &[&str]); 6] = [
            (
                "duration",
                json!({ "limits": { "maxDuration": "1m" } }),
                PolicyState::Open,
                &["limits.maxDuration", "found 5m", "allowed: at most 1m"],
            ),
            (
                "available",
                json!({ "limits": { "minAvailablePerWorkload": 1 } }),
                PolicyState::Open,
                &["limits.minAvailablePerWorkload", "found 0 pods of Deployment/web", "allowed: at least 1"],
            ),
            (
                "action",
                json!({ "allow": { "actions": ["pod-kill", "stress"] } }),
                PolicyState::Open,
                &["allow.actions", "found pod-failure", "allowed: pod-kill, stress"],
            ),
            (
                "user",
                json!({ "allow": { "users": ["dora"] } }),
                PolicyState::Open,
                &["allow.users", "found", "allowed: ", "dora"],
            ),
            ("window", json!({ "windows": [] }), PolicyState::Closed, &["windows", "no window ever opens"]),
            (
                "halt",
                json!({ "halt": { "active": true, "reason": "incident 4714" } }),
                PolicyState::Halted,
                &["spec.halt", "incident 4714"],
            ),
        ];
        for (name, rules, state, parts) in cases {
            let policy = Policy::make_that_is(ns, rules, state).await?;
            let chaos = experiment(name, Action::PodFailure, Mode::One, |spec| {
                spec.duration = Some("5m".to_owned());
            });
            let why = refusal(ns, &chaos).await.with_context(|| name.to_owned())?;
            says(&why, &[&policy.name]).and_then(|()| says(&why, parts)).with_context(|| name.to_owned())?;
            nothing_is_hit(ns, "web").await?;
        }
        Ok(())
    });
}

/// The most that `count` ever was until `work` was done.
async fn most<T>(
    work: impl Future<Output = Result<T>>,
    count: impl AsyncFn() -> Result<usize>,
) -> Result<(T, usize)> {
    let mut work = std::pin::pin!(work);
    let mut most = 0;
    loop {
        most = most.max(count().await?);
        match tokio::time::timeout(PAUSE, &mut work).await {
            Ok(done) => return Ok((done?, most)),
            Err(_) => continue,
        }
    }
}

/// Creates so many experiments at once, and waits until each is either active or over.
async fn fifty(ns: &Ns) -> Result<Vec<PodChaos>> {
    let all: Vec<PodChaos> = (0..50).map(|number| fixed(&format!("one-{number}"), 1)).collect();
    let api = ns.api::<PodChaos>();
    let params = PostParams::default();
    for made in join_all(all.iter().map(|chaos| api.create(&params, chaos))).await {
        match made {
            Ok(_) => {}
            // Admission may see that the policy is full already.
            Err(kube::Error::Api(status)) if status.message.contains("ChaosPolicy") => {}
            Err(error) => return Err(error.into()),
        }
    }
    until("each is injected or refused", async || {
        let items = api.list(&ListParams::default()).await?.items;
        let open = items.iter().find(|chaos| {
            chaos.completed_at().is_none() && (chaos.phase() != Phase::Injected || !chaos.is("Injected"))
        });
        Ok(match open {
            None => Ok(items),
            Some(chaos) => Err(format!("{:?} {}", chaos.metadata.name, chaos.shown())),
        })
    })
    .await
}

#[test]
fn fifty_experiments_at_once_never_hit_more_pods_than_allowed() {
    with_ns("policy-fifty", OptIn::Yes, async |ns| {
        ns.create(&deployment("web", 12, true)).await?;
        ns.pods_until("web", "there are twelve", |pods| pods.len() == 12).await?;
        let _policy = Policy::make(ns, json!({ "limits": { "maxTargets": 5 } })).await?;
        let (all, most) = most(fifty(ns), async || Ok(hit(ns, "web").await?.len())).await?;
        ensure!(most <= 5, "{most} pods were hit at once");
        // A pod that is hit already may be another's target too.
        let targets: BTreeSet<String> = all
            .iter()
            .filter(|chaos| chaos.completed_at().is_none())
            .flat_map(|chaos| chaos.told().targets)
            .map(|target| target.pod)
            .collect();
        assert_eq!(targets.len(), 5, "{targets:?}");
        assert_eq!(hit(ns, "web").await?, targets);
        Ok(())
    });
}

#[test]
fn fifty_experiments_at_once_are_never_more_than_allowed() {
    with_ns("policy-many", OptIn::Yes, async |ns| {
        ns.create(&deployment("web", 12, true)).await?;
        ns.pods_until("web", "there are twelve", |pods| pods.len() == 12).await?;
        let policy = Policy::make(ns, json!({ "limits": { "maxConcurrentExperiments": 7 } })).await?;
        let active = async || -> Result<usize> {
            let items = ns.api::<PodChaos>().list(&ListParams::default()).await?.items;
            let chosen =
                |chaos: &PodChaos| chaos.completed_at().is_none() && !chaos.told().targets.is_empty();
            Ok(items.iter().filter(|chaos| chosen(chaos)).count())
        };
        let (all, most) = most(fifty(ns), active).await?;
        ensure!(most <= 7, "{most} experiments were active at once");
        assert_eq!(active().await?, 7);
        let Some(refused) = all.iter().find(|chaos| chaos.completed_at().is_some()) else {
            bail!("none was refused by the leader");
        };
        says(
            &refused.told().message.unwrap_or_default(),
            &[&policy.name, "limits.maxConcurrentExperiments", "found 8 with this one", "allowed: 7"],
        )?;
        let holders: BTreeSet<String> = ns.pods("web").await?.iter().flat_map(|pod| pod.holders()).collect();
        assert_eq!(holders.len(), 7, "{holders:?}");
        Ok(())
    });
}

#[test]
fn halt_on_the_namespace_recovers_in_two_seconds_and_refuses_what_is_new() {
    with_ns("halt-namespace", OptIn::Yes, async |ns| {
        ns.create(&stateful_set("db", 3)).await?;
        ns.ready_pods("db", 3).await?;
        ns.create(&failure("fail", |_| ())).await?;
        ns.phase("fail", Phase::Injected).await?;
        on_namespace(ns, "annotate", "squall.dev/halt=incident 4711")?.ok()?;
        let took = images_are_back(ns, "db", Instant::now()).await?;
        in_time("recovered by a halt of the namespace", took, HALTED_WITHIN)?;
        let chaos = ns.completed("fail").await?;
        assert_eq!(
            (chaos.phase(), chaos.reason("Completed").as_str()),
            (Phase::Halted, "Halted"),
            "{}",
            chaos.shown()
        );
        says(&chaos.told().message.unwrap_or_default(), &["incident 4711", &ns.name])?;
        until("an Event tells it", async || {
            let told = events_of(ns, "fail").await?;
            let said = told.iter().any(|text| text.contains("incident 4711"));
            Ok(if said { Ok(()) } else { Err(format!("{told:?}")) })
        })
        .await?;
        ns.all_whole("db").await?;
        let why = refusal(ns, &failure("late", |_| ())).await?;
        says(&why, &["incident 4711", "kubectl annotate namespace", "squall.dev/halt-"])?;
        nothing_is_hit(ns, "db").await?;
        // What ended stays ended, and what is new may be again.
        on_namespace(ns, "annotate", "squall.dev/halt-")?.ok()?;
        let again = failure("again", |_| ());
        until("it may be again", async || {
            Ok(ns.api::<PodChaos>().create(&PostParams::default(), &again).await)
        })
        .await?;
        ns.phase("again", Phase::Injected).await?;
        ns.end_chaos("again").await?;
        ns.ready_pods("db", 3).await?;
        holds_for(Duration::from_secs(1), "it stays halted", async || {
            let chaos = ns.chaos("fail").await?;
            let hit = hit(ns, "db").await?;
            Ok(if chaos.phase() == Phase::Halted && hit.is_empty() { Ok(()) } else { Err(chaos.shown()) })
        })
        .await
    });
}

#[test]
fn halt_by_a_policy_recovers_too_and_resume_injects_again() {
    with_ns("halt-policy", OptIn::Yes, async |ns| {
        ns.create(&stateful_set("db", 2)).await?;
        ns.ready_pods("db", 2).await?;
        let policy = Policy::make(ns, json!({})).await?;
        ns.create(&failure("resumes", |spec| spec.on_halt = Some(OnHalt::Resume))).await?;
        ns.phase("resumes", Phase::Injected).await?;
        policy.patch(r#"{"spec": {"halt": {"active": true, "reason": "incident 4712"}}}"#)?;
        let took = images_are_back(ns, "db", Instant::now()).await?;
        in_time("recovered by a halt of a policy", took, HALTED_WITHIN)?;
        let chaos = ns.phase("resumes", Phase::Halted).await?;
        ensure!(chaos.completed_at().is_none(), "{}", chaos.shown());
        says(&chaos.told().message.unwrap_or_default(), &[&policy.name, "halt", "incident 4712"])?;
        ns.all_whole("db").await?;
        let halted = policy.state(ns, PolicyState::Halted).await?;
        says(&halted.status.and_then(|status| status.message).unwrap_or_default(), &["incident 4712"])?;
        let why = refusal(ns, &failure("late", |_| ())).await?;
        says(&why, &[&policy.name, "halt", "incident 4712"])?;
        policy.patch(r#"{"spec": {"halt": null}}"#)?;
        ns.phase("resumes", Phase::Injected).await?;
        ns.pods_until("db", "both are failed again", |pods| {
            pods.len() == 2 && pods.iter().all(|pod| pod.is_failed())
        })
        .await?;
        ns.end_chaos("resumes").await?;
        ns.all_whole("db").await?;
        Ok(())
    });
}

#[test]
fn withdrawing_the_opt_in_recovers_in_five_seconds() {
    with_ns("policy-opt-out", OptIn::Yes, async |ns| {
        ns.create(&stateful_set("db", 2)).await?;
        ns.create(&unschedulable("solo", "solo")).await?;
        ns.ready_pods("db", 2).await?;
        ns.create(&failure("fail", |spec| {
            spec.selector.label_selectors.insert("app".to_owned(), "db".to_owned());
        }))
        .await?;
        ns.phase("fail", Phase::Injected).await?;
        // And one by hand.
        switch(ns, "solo", &[])?.ok()?;
        ns.pod_until("solo", "it is failed", |pod| pod.is_failed()).await?;
        on_namespace(ns, "label", "squall.dev/inject-")?.ok()?;
        let began = Instant::now();
        let took = images_are_back(ns, "db", began).await?;
        in_time("recovered by withdrawing the opt-in", took, WITHDRAWN_WITHIN)?;
        let took = images_are_back(ns, "solo", began).await?;
        in_time("the one by hand", took, WITHDRAWN_WITHIN)?;
        ns.all_whole("db").await?;
        ns.whole("solo").await?;
        Ok(())
    });
}

#[test]
fn the_switch_is_refused_under_a_halt_and_lets_go_of_what_it_held() {
    with_ns("halt-switch", OptIn::Yes, async |ns| {
        ns.create(&unschedulable("held", "held")).await?;
        ns.create(&unschedulable("web", "web")).await?;
        switch(ns, "held", &[])?.ok()?;
        ns.pod_until("held", "it is failed", |pod| pod.is_failed()).await?;
        on_namespace(ns, "annotate", "squall.dev/halt=incident 4713")?.ok()?;
        let took = images_are_back(ns, "held", Instant::now()).await?;
        in_time("a fault by hand recovered by a halt", took, HALTED_WITHIN)?;
        ns.whole("held").await?;
        until_the_switch_is_refused(ns, "web").await?;
        let why = switch(ns, "web", &[])?.refused()?;
        says(&why, &["incident 4713", &ns.name])?;
        ns.whole("web").await?;
        on_namespace(ns, "annotate", "squall.dev/halt-")?.ok()?;
        until("the switch works again", async || {
            let ran = switch(ns, "web", &[])?;
            Ok(if ran.success { Ok(()) } else { Err(ran.text) })
        })
        .await?;
        kubectl(&["-n", &ns.name, "label", "pod", "web", "squall.dev/fault-"])?.ok()?;
        ns.whole("web").await?;
        Ok(())
    });
}

#[test]
fn the_switch_outside_of_the_opt_in_is_warned_of_and_does_nothing() {
    with_ns("policy-warning", OptIn::No, async |ns| {
        ns.keeps(names::FAULT);
        ns.ready_pod(&pod("web")).await?;
        let said = switch(ns, "web", &[])?.ok()?;
        says(
            &said,
            &[
                "Warning:",
                "the label squall.dev/fault does nothing here",
                &format!("kubectl label namespace {} squall.dev/inject=enabled", ns.name),
            ],
        )?;
        let now = ns.pod("web").await?;
        assert_eq!(now.label(names::FAULT), Some(names::POD_FAILURE));
        assert_eq!(now.substituted(), Vec::<String>::new());
        // Nothing is added by other changes of the pod, and nothing is said.
        let said = kubectl(&["-n", &ns.name, "label", "pod", "web", "example.org/a=b"])?.ok()?;
        ensure!(!said.contains("Warning"), "{said}");
        Ok(())
    });
}

#[test]
fn where_the_switch_works_nothing_is_warned_of_and_protected_namespaces_say_that_no_label_opens_them() {
    with_ns("policy-warnings", OptIn::Yes, async |ns| {
        const NOTHING: &str = "does nothing";
        // Born with it, where it works, where it doesn't, and where it never will.
        let born = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": "born", "labels": { names::FAULT: names::POD_FAILURE } },
            "spec": pod("born").spec,
        });
        let create = |namespace: &str| {
            kubectl_stdin(&["-n", namespace, "create", "--dry-run=server", "-f", "-"], &born.to_string())
        };
        let said = create(&ns.name)?.ok()?;
        ensure!(!said.contains(NOTHING), "{said}");
        let other = ns.another("policy-out", OptIn::No).await?;
        let opens = format!("kubectl label namespace {} squall.dev/inject=enabled", other.name);
        says(&create(&other.name)?.ok()?, &["Warning:", NOTHING, &opens])?;
        for namespace in ["kube-system", "kube-public", names::NAMESPACE] {
            let said = create(namespace)?.ok()?;
            says(&said, &["Warning:", NOTHING, namespace, "it is protected, no label opens it"])?;
        }
        // Added to a live pod, changed, taken away.
        ns.create(&unschedulable("web", "web")).await?;
        let said = switch(ns, "web", &[])?.ok()?;
        ensure!(!said.contains(NOTHING), "{said}");
        kubectl(&["-n", &ns.name, "label", "pod", "web", "squall.dev/fault-"])?.ok()?;
        ns.whole("web").await?;
        other.create(&unschedulable("web", "web")).await?;
        says(&switch(&other, "web", &[])?.ok()?, &["Warning:", NOTHING])?;
        for what in ["squall.dev/fault=other", "squall.dev/fault-"] {
            let said = kubectl(&["-n", &other.name, "label", "pod", "web", "--overwrite", what])?.ok()?;
            ensure!(!said.contains("Warning"), "{what}: {said}");
        }
        Ok(())
    });
}

#[test]
fn what_a_workload_says_protects_its_pods_and_said_during_a_fault_it_recovers_them() {
    with_ns("protect-workload", OptIn::Yes, async |ns| {
        for name in ["safe", "web"] {
            ns.create(&deployment(name, 2, true)).await?;
            ns.pods_until(name, "there are two", |pods| pods.len() == 2).await?;
        }
        let protect = |name: &str, verb: &str, what: &str| {
            kubectl(&["-n", &ns.name, verb, "deployment", name, what])?.ok()
        };
        protect("safe", "label", "squall.dev/protect=true")?;
        // Each replica of the webhook learns of it by its own watch.
        let safe = ns.pods("safe").await?.remove(0).name();
        until("the hand may not fail its pods", async || {
            let ran = switch(ns, &safe, &["--dry-run=server"])?;
            let refused = !ran.success && ran.text.contains("the pod's workload is protected");
            Ok(if refused { Ok(()) } else { Err(ran.text) })
        })
        .await?;
        let said = kubectl(&["-n", &ns.name, "annotate", "deployment", "safe", "squall.dev/pod-kill=one"])?;
        says(
            &said.refused()?,
            &["squall.dev/pod-kill", "the Deployment is protected", "squall.dev/protect"],
        )?;
        ns.create(&failure("all", |_| ())).await?;
        let injected = ns.phase("all", Phase::Injected).await?;
        assert_eq!(hit(ns, "web").await?.len(), 2, "{}", injected.shown());
        assert!(hit(ns, "safe").await?.is_empty(), "{}", injected.shown());
        let skipped = injected
            .told()
            .targets
            .into_iter()
            .filter(|target| target.reason.as_deref() == Some("Protected"));
        assert_eq!(skipped.count(), 2);
        // An annotation says the same.
        protect("web", "annotate", "squall.dev/protect=true")?;
        let took = images_are_back(ns, "web", Instant::now()).await?;
        in_time("recovered by protecting the workload", took, WITHDRAWN_WITHIN)?;
        let ended = ns.completed("all").await?;
        assert_eq!(ended.reason("Completed"), "Aborted", "{}", ended.shown());
        ns.all_whole("web").await?;
        // And what is not protected any more may be hit again.
        protect("web", "annotate", "squall.dev/protect-")?;
        ns.create(&failure("again", |_| ())).await?;
        ns.phase("again", Phase::Injected).await?;
        assert_eq!(hit(ns, "web").await?.len(), 2);
        ns.end_chaos("again").await
    });
}

#[test]
fn policies_that_contradict_each_other_leave_nothing_and_the_one_that_refuses_is_named() {
    with_ns("policy-contradict", OptIn::Yes, async |ns| {
        ns.create(&unschedulable("web", "web")).await?;
        let _kills = Policy::make(ns, json!({ "allow": { "actions": ["pod-kill"] } })).await?;
        let other = ns.another("policy-contradict", OptIn::No).await?;
        // Of the same namespace, under another name.
        let stress = json!({
            "apiVersion": "squall.dev/v1alpha1", "kind": "ChaosPolicy", "metadata": { "name": other.name },
            "spec": {
                "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": ns.name } },
                "allow": { "actions": ["stress"] },
            },
        });
        kubectl_stdin(&["create", "-f", "-"], &stress.to_string())?.ok()?;
        let second = Policy { name: other.name.clone() };
        second.state(ns, PolicyState::Open).await?;
        let kill = experiment("kill", Action::PodKill, Mode::One, |_| ());
        says(
            &refusal(ns, &kill).await?,
            &[&second.name, "allow.actions", "found pod-kill", "allowed: stress"],
        )?;
        let why = refusal(ns, &failure("fail", |_| ())).await?;
        says(&why, &["allow.actions", "found pod-failure"])?;
        nothing_is_hit(ns, "web").await
    });
}
