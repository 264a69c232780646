//! How soon a halt, a withdrawn opt-in and a protection recover what is hit, an annotation acts and a kill without grace
//! takes a pod away: seconds that are promised, measured with nothing beside.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kube::api::{ListParams, PostParams};
use serde_json::json;
use squall_api::chaospolicy::PolicyState;
use squall_api::names;
use squall_api::podchaos::{Action, Mode, Phase, PodChaos, PodChaosSpec};
use squall_api::probe::OnHalt;
use squall_tests::cpu::{frozen, runs_within};
use squall_tests::{
    ExperimentExt as _, Ns, OptIn, PodExt as _, Policy, Ran, STUBBORN, alone, container, deployment,
    events_of, experiment, hit, holds_for, kubectl, nothing_is_hit, pod_of, refusal, says, stateful_set,
    switch, target_of, unschedulable, until, with_ns,
};

/// What the order gives a halt, from its write to the last image that is back.
const HALTED_WITHIN: Duration = Duration::from_secs(2);
/// What it gives the withdrawal of an opt-in.
const WITHDRAWN_WITHIN: Duration = Duration::from_secs(5);
/// What it gives an annotation on a workload, and its removal, from kubectl's answer to the last image.
const ANNOTATED_WITHIN: Duration = Duration::from_secs(1);
/// A pod that is deleted with no grace at all, however long its own would be.
const GONE_WITHIN: Duration = Duration::from_millis(1500);

fn failure(name: &str, change: impl FnOnce(&mut PodChaosSpec)) -> PodChaos {
    experiment(name, Action::PodFailure, Mode::All, change)
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

/// Each replica of the webhook learns of a halt by its own watch.
async fn until_the_switch_is_refused(ns: &Ns, pod: &str) -> Result<()> {
    until("the webhook knows of the halt", async || {
        let ran = switch(ns, pod, &["--dry-run=server"])?;
        Ok(if ran.success { Err(ran.text) } else { Ok(()) })
    })
    .await
}

#[test]
fn halt_on_the_namespace_recovers_in_two_seconds_and_refuses_what_is_new() {
    let _alone = alone();
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
    let _alone = alone();
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
    let _alone = alone();
    with_ns("policy-opt-out", OptIn::Yes, async |ns| {
        ns.create(&stateful_set("db", 2)).await?;
        ns.create(&unschedulable("solo", "solo")).await?;
        ns.ready_pods("db", 2).await?;
        ns.create(&failure("fail", |spec| {
            spec.selector.label_selectors.insert("app".to_owned(), "db".to_owned());
        }))
        .await?;
        ns.phase("fail", Phase::Injected).await?;
        // And one by hand, and one that the daemon holds.
        switch(ns, "solo", &[])?.ok()?;
        ns.pod_until("solo", "it is failed", |pod| pod.is_failed()).await?;
        let frozen = frozen(ns, "cold").await?;
        on_namespace(ns, "label", "squall.dev/inject-")?.ok()?;
        let began = Instant::now();
        let took = images_are_back(ns, "db", began).await?;
        in_time("recovered by withdrawing the opt-in", took, WITHDRAWN_WITHIN)?;
        let took = images_are_back(ns, "solo", began).await?;
        in_time("the one by hand", took, WITHDRAWN_WITHIN)?;
        runs_within(WITHDRAWN_WITHIN.saturating_sub(began.elapsed()), &frozen).await?;
        ns.all_whole("db").await?;
        ns.whole("solo").await?;
        Ok(())
    });
}

#[test]
fn the_switch_is_refused_under_a_halt_and_lets_go_of_what_it_held() {
    let _alone = alone();
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
fn what_a_workload_says_protects_its_pods_and_said_during_a_fault_it_recovers_them() {
    let _alone = alone();
    with_ns("protect-workload", OptIn::Yes, async |ns| {
        ns.keeps(names::PROTECT);
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
fn pod_failure_on_a_workload_follows_its_annotation_within_a_second() {
    let _alone = alone();
    with_ns("annotate-fail", OptIn::Yes, async |ns| {
        ns.create(&stateful_set("db", 2)).await?;
        ns.ready_pods("db", 2).await?;
        let annotate = |what: &str| kubectl(&["-n", &ns.name, "annotate", "statefulset/db", what])?.ok();
        annotate("squall.dev/pod-failure=all")?;
        // From kubectl's answer.
        let began = Instant::now();
        ns.pods_until("db", "both are failed", |pods| {
            pods.len() == 2 && pods.iter().all(|pod| pod.is_failed())
        })
        .await?;
        in_time("failed by an annotation", began.elapsed(), ANNOTATED_WITHIN)?;
        let experiments = ns.api::<PodChaos>();
        let made = experiments.list(&ListParams::default()).await?.items;
        let durations: Vec<_> = made.into_iter().map(|chaos| chaos.spec.duration).collect();
        assert_eq!(durations, [Some("5m".to_owned())]);
        annotate("squall.dev/pod-failure-")?;
        let took = images_are_back(ns, "db", Instant::now()).await?;
        in_time("recovered by removing the annotation", took, ANNOTATED_WITHIN)?;
        until("the experiment is gone", async || {
            let left = experiments.list(&ListParams::default()).await?.items;
            Ok(if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) })
        })
        .await?;
        ns.all_whole("db").await?;
        Ok(())
    });
}

#[test]
fn grace_period_zero_removes_a_pod_at_once() {
    let _alone = alone();
    with_ns("kill-now", OptIn::Yes, async |ns| {
        let deaf =
            json!({ "terminationGracePeriodSeconds": 600, "containers": [container("app", STUBBORN)] });
        ns.ready_pod(&pod_of("deaf", deaf)).await?;
        ns.create(&experiment("now", Action::PodKill, Mode::One, |spec| spec.grace_period = Some(0))).await?;
        let chaos = ns.completed("now").await?;
        let target = target_of(&chaos, "deaf").context("no such target")?;
        let (ordered, gone) =
            target.ordered_at.as_ref().zip(target.gone_at.as_ref()).context("a time is missing")?;
        let took = Duration::try_from(gone.0.duration_since(ordered.0))?;
        in_time("gone without grace", took, GONE_WITHIN)
    });
}
