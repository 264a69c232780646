//! container-freeze on real containers: nothing of it runs meanwhile, and then it goes on where it was.

use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::DeleteParams;
use serde_json::json;
use squall_api::podchaos::{Action, Mode, Phase, PodChaos, PodChaosSpec, TargetPhase};
use squall_tests::cpu::{busy, runs_within, stands_still};
use squall_tests::{
    ExperimentExt as _, LIMIT, OptIn, PodExt as _, container, experiment, pod_of, until_gone, with_ns,
};

fn freeze(change: impl FnOnce(&mut PodChaosSpec)) -> PodChaos {
    experiment("freeze", Action::ContainerFreeze, Mode::All, change)
}

async fn runs(container_id: &str) -> Result<()> {
    runs_within(LIMIT, container_id).await
}

#[test]
fn a_frozen_container_stands_still_until_the_duration_is_over_and_is_never_restarted() {
    with_ns("freeze-duration", OptIn::Yes, async |ns| {
        let id = busy(ns, "web").await?;
        runs(&id).await?;
        ns.create(&freeze(|spec| spec.duration = Some("8s".to_owned()))).await?;
        ns.condition("freeze", "Injected").await?;
        stands_still(&id).await?;
        let chaos = ns.completed("freeze").await?;
        assert_eq!(chaos.phase(), Phase::Completed, "{}", chaos.shown());
        assert_eq!(chaos.in_phase(TargetPhase::Recovered).len(), 1, "{}", chaos.shown());
        runs(&id).await?;
        assert_eq!(ns.pod("web").await?.restarts("app"), 0);
        Ok(())
    });
}

#[test]
fn deleting_the_experiment_thaws() {
    with_ns("freeze-delete", OptIn::Yes, async |ns| {
        let id = busy(ns, "web").await?;
        ns.create(&freeze(|_| ())).await?;
        ns.condition("freeze", "Injected").await?;
        stands_still(&id).await?;
        ns.end_chaos("freeze").await?;
        runs(&id).await
    });
}

#[test]
fn a_pod_that_is_deleted_is_thawed_at_once_and_goes_in_its_time() {
    with_ns("freeze-pod-deleted", OptIn::Yes, async |ns| {
        let pod = pod_of(
            "web",
            json!({
                "terminationGracePeriodSeconds": 60,
                "containers": [container("app", "trap 'exit 0' TERM; while :; do :; done")],
            }),
        );
        ns.ready_pod(&pod).await?;
        ns.create(&freeze(|_| ())).await?;
        ns.condition("freeze", "Injected").await?;
        let asked = std::time::Instant::now();
        ns.api::<Pod>().delete("web", &DeleteParams::default()).await?;
        // Frozen it could not take its SIGTERM, and would be here for a minute.
        until_gone(&ns.api::<Pod>(), "web").await?;
        ensure!(asked.elapsed() < Duration::from_secs(30), "it took {:?}", asked.elapsed());
        let chaos = ns.chaos("freeze").await?;
        assert_eq!(chaos.in_phase(TargetPhase::Gone).len(), 1, "{}", chaos.shown());
        Ok(())
    });
}
