//! Triggers on real containers: the process that does it dies of it, the others live, and the status says what happened.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;
use squall_api::names;
use squall_api::podchaos::{Action, ConnectTrigger, Mode, Phase, PodChaos, Target, TargetPhase, Trigger};
use squall_tests::{
    ExperimentExt as _, Ns, OptIn, PodExt as _, container, event_on, experiment, pod_of, with_ns,
};

/// A pod whose first process does `work` five times a second, each time in a process of its own.
async fn working(ns: &Ns, work: &str) -> Result<()> {
    let script = format!("trap 'exit 0' TERM; while :; do {work} > /dev/null 2>&1; sleep 0.2; done");
    ns.ready_pod(&pod_of("web", json!({ "containers": [container("app", &script)] }))).await?;
    Ok(())
}

fn when(trigger: Trigger, duration: &str) -> PodChaos {
    experiment("when", Action::ContainerKill, Mode::One, |spec| {
        spec.trigger = Some(trigger);
        spec.duration = Some(duration.to_owned());
    })
}

async fn over(ns: &Ns) -> Result<(PodChaos, Target)> {
    let chaos = ns.chaos_until("when", "it is over", |chaos| chaos.told().completed_at.is_some()).await?;
    let target = chaos.told().targets.first().context("there is no target")?.clone();
    Ok((chaos, target))
}

/// The pod's owner is told, who may not see the experiment: an Event on the pod says what its status does.
async fn the_pod_is_told(ns: &Ns, what: &str) -> Result<()> {
    let said = event_on(ns, "Pod", "web", "FaultFailed").await?;
    ensure!(said.contains(what) && said.contains("container app"), "{said}");
    Ok(())
}

fn armed(chaos: &PodChaos) -> bool {
    chaos.told().targets.first().is_some_and(|target| {
        let message = target.message.as_deref().unwrap_or_default();
        target.reason.as_deref() == Some("Armed") && message.contains("connects to port 5432")
    })
}

/// One process was killed, and it was not the container's first.
async fn one_was_hit(ns: &Ns, count: i64) -> Result<()> {
    let (chaos, target) = over(ns).await?;
    assert_eq!((chaos.phase(), target.phase), (Phase::Completed, TargetPhase::Killed), "{}", chaos.shown());
    let receipt = target.receipt.context("there is no receipt")?;
    assert_eq!((receipt.evidence.as_str(), receipt.total), ("ebpf", 1), "{}", chaos.shown());
    assert_eq!(receipt.fired_at_count, Some(count), "{}", chaos.shown());
    assert_eq!(receipt.processes[0].exit_code, Some(137), "{}", chaos.shown());
    assert!(receipt.processes[0].delivered.is_some(), "{}", chaos.shown());
    assert_eq!(ns.pod("web").await?.restarts("app"), 0, "the container's first process was hit");
    Ok(())
}

#[test]
fn a_process_dies_in_the_third_fsync_of_its_container() {
    with_ns("trigger-fsync", OptIn::Yes, async |ns| {
        working(ns, "dd if=/dev/zero of=/tmp/data bs=1 count=1 conv=fsync").await?;
        let trigger = Trigger { syscall: Some("fsync".into()), nth: Some(3), ..Trigger::default() };
        ns.create(&when(trigger, "30s")).await?;
        one_was_hit(ns, 3).await
    });
}

#[test]
fn a_process_dies_when_it_connects() {
    with_ns("trigger-connect", OptIn::Yes, async |ns| {
        working(ns, "nc -w 1 127.0.0.1 5432 < /dev/null").await?;
        let trigger = Trigger { connect: Some(ConnectTrigger { port: 5432 }), ..Trigger::default() };
        ns.create(&when(trigger, "30s")).await?;
        one_was_hit(ns, 1).await
    });
}

#[test]
fn a_process_dies_when_it_executes_a_path() {
    with_ns("trigger-exec", OptIn::Yes, async |ns| {
        working(ns, "/bin/busybox true").await?;
        let trigger = Trigger { exec: Some("/bin/busybox".into()), ..Trigger::default() };
        ns.create(&when(trigger, "30s")).await?;
        one_was_hit(ns, 1).await
    });
}

#[test]
fn a_trigger_is_armed_until_its_time_is_over_and_says_so() {
    with_ns("trigger-never", OptIn::Yes, async |ns| {
        working(ns, "true").await?;
        let trigger = Trigger { connect: Some(ConnectTrigger { port: 5432 }), ..Trigger::default() };
        ns.create(&when(trigger, "4s")).await?;
        ns.chaos_until("when", "it is armed", armed).await?;
        let (chaos, target) = over(ns).await?;
        assert_eq!((chaos.phase(), target.phase), (Phase::Failed, TargetPhase::Failed), "{}", chaos.shown());
        assert_eq!(target.reason.as_deref(), Some("NotTriggered"), "{}", chaos.shown());
        assert_eq!(ns.pod("web").await?.restarts("app"), 0);
        the_pod_is_told(ns, "connects to port 5432").await
    });
}

#[test]
fn a_trigger_waits_no_longer_while_it_is_paused_nor_once_its_pod_is_protected() {
    with_ns("trigger-back", OptIn::Yes, async |ns| {
        working(ns, "true").await?;
        let trigger = Trigger { connect: Some(ConnectTrigger { port: 5432 }), ..Trigger::default() };
        ns.create(&when(trigger, "1h")).await?;
        ns.chaos_until("when", "it is armed", armed).await?;
        ns.annotate::<PodChaos>("when", names::PAUSE, Some("true")).await?;
        let taken_back = |chaos: &PodChaos| chaos.told().targets[0].attempt == Some(1);
        let chaos = ns.chaos_until("when", "it is taken back", taken_back).await?;
        assert_eq!((chaos.phase(), armed(&chaos)), (Phase::Paused, false), "{}", chaos.shown());
        ns.annotate::<PodChaos>("when", names::PAUSE, None).await?;
        ns.chaos_until("when", "it is armed again", armed).await?;
        ns.label::<Pod>("web", names::PROTECT, Some("true")).await?;
        let (chaos, target) = over(ns).await?;
        assert_eq!(target.phase, TargetPhase::Skipped, "{}", chaos.shown());
        assert_eq!(target.reason.as_deref(), Some("Protected"), "{}", chaos.shown());
        assert_eq!(ns.pod("web").await?.restarts("app"), 0);
        ns.label::<Pod>("web", names::PROTECT, None).await?;
        Ok(())
    });
}

#[test]
fn a_system_call_that_the_node_does_not_know_is_refused_by_name() {
    with_ns("trigger-unknown", OptIn::Yes, async |ns| {
        working(ns, "true").await?;
        let trigger = Trigger { syscall: Some("fsync_twice".into()), ..Trigger::default() };
        ns.create(&when(trigger, "30s")).await?;
        let (chaos, target) = over(ns).await?;
        assert_eq!(target.reason.as_deref(), Some("Unsupported"), "{}", chaos.shown());
        let message = target.message.unwrap_or_default();
        assert!(message.contains("fsync_twice") && message.contains("fsync"), "{message}");
        the_pod_is_told(ns, "fsync_twice").await
    });
}
