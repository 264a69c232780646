//! Pods that are born during the fault.

use anyhow::Context as _;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::DeleteParams;
use serde_json::json;
use squall_api::podchaos::{Mode, TargetPhase};
use squall_tests::{
    ExperimentExt as _, OptIn, PodExt as _, SLEEPER, container, deployment, holds_for, pod_of, stateful_set,
    target_of, unschedulable, until, with_ns,
};

use super::*;

#[test]
fn a_pod_born_failed_with_an_init_container_gets_ready_after_recovery() {
    with_ns("fail-init", OptIn::Yes, async |ns| {
        ns.create(&unschedulable("first", "web")).await?;
        ns.create(&failure("down", Mode::All, |_| ())).await?;
        ns.condition("down", "Injected").await?;
        let spec = json!({
            "initContainers": [container("prepare", "true")],
            "containers": [container("app", SLEEPER)],
        });
        let born = until("a pod is born failed", async || {
            let answer = ns.create(&pod_of("born", spec.clone())).await?;
            if answer.is_failed() {
                return Ok(Ok(answer));
            }
            // The webhook may not have seen yet that the experiment is active.
            ns.api::<Pod>().delete("born", &DeleteParams::default().grace_period(0)).await?;
            Ok(Err(format!("{:?}", answer.images())))
        })
        .await?;
        assert_eq!(born.substituted(), ["prepare", "app"], "{:?}", born.images());
        ns.pod_until("born", "its init container crashes instead of being done", |pod| {
            pod.container("prepare").is_some_and(|one| {
                let ended = one.last_state.and_then(|state| state.terminated).is_some();
                ended
                    || one
                        .state
                        .and_then(|state| state.waiting)
                        .is_some_and(|why| why.reason.as_deref() != Some("PodInitializing"))
            })
        })
        .await?;
        ns.chaos_until("down", "the newborn is told of", |chaos| {
            target_of(chaos, "born").is_some_and(|target| target.born == Some(true))
        })
        .await?;
        ns.end_chaos("down").await?;
        ns.whole("born").await?;
        ns.pod_until("born", "the pod is Ready after recovery", |pod| pod.is_ready()).await?;
        Ok(())
    });
}

#[test]
fn with_mode_all_pods_are_born_failed() {
    with_ns("fail-births", OptIn::Yes, async |ns| {
        ns.create(&deployment("web", 1, true)).await?;
        ns.pods_until("web", "the pod is there", |pods| pods.len() == 1).await?;
        ns.create(&failure("down", Mode::All, |spec| app(spec, "web"))).await?;
        ns.condition("down", "Injected").await?;
        ns.merge::<Deployment>("web", json!({ "spec": { "replicas": 4 } })).await?;
        let all =
            ns.pods_until("web", "all four are failed", |pods| pods.len() == 4 && failed(pods) == 4).await?;
        let chaos = ns
            .chaos_until("down", "all four are its targets", |chaos| {
                chaos.in_phase(TargetPhase::Injected).len() == 4
            })
            .await?;
        let born = chaos.told().targets.iter().filter(|target| target.born == Some(true)).count();
        assert_eq!(born, 3, "{}", chaos.shown());
        assert!(all.iter().all(|pod| target_of(&chaos, &pod.name()).is_some()), "{}", chaos.shown());
        // A pod that the selector does not mean is born whole.
        let stranger = ns.create(&unschedulable("stranger", "other")).await?;
        assert!(stranger.substituted().is_empty() && stranger.holders().is_empty());
        ns.end_chaos("down").await?;
        ns.all_whole("web").await?;
        Ok(())
    });
}

#[test]
fn with_mode_one_a_scale_out_fails_no_more_and_a_replacement_is_failed_again() {
    with_ns("fail-one-scale", OptIn::Yes, async |ns| {
        ns.create(&deployment("web", 3, true)).await?;
        ns.pods_until("web", "three pods are there", |pods| pods.len() == 3).await?;
        ns.create(&failure("down", Mode::One, |spec| app(spec, "web"))).await?;
        let chaos = ns.condition("down", "Injected").await?;
        let hit = chaos.in_phase(TargetPhase::Injected).remove(0);
        ns.merge::<Deployment>("web", json!({ "spec": { "replicas": 10 } })).await?;
        let ten = ns.pods_until("web", "ten pods are there", |pods| pods.len() == 10).await?;
        assert_eq!(
            failed(&ten),
            1,
            "{:?}",
            ten.iter().map(|pod| (pod.name(), pod.images())).collect::<Vec<_>>()
        );
        // Creation times have whole seconds: so that it can be told which pod came last, one later than these.
        until("the ten are two seconds old", async || {
            let age = |pod: &Pod| {
                let created = pod.metadata.creation_timestamp.as_ref().map(|at| at.0);
                created.map_or(0, |at| jiff::Timestamp::now().duration_since(at).as_secs())
            };
            let youngest = ten.iter().map(age).min().unwrap_or_default();
            Ok(if youngest > 3 { Ok(()) } else { Err(format!("{youngest} s")) })
        })
        .await?;
        // The one that is failed goes, and another takes its place: it is failed too, and no other.
        ns.api::<Pod>().delete(&hit.pod, &DeleteParams::default().grace_period(0)).await?;
        let after = ns
            .pods_until("web", "the replacement is failed", |pods| pods.len() == 10 && failed(pods) == 1)
            .await?;
        let replaced = after.iter().find(|pod| pod.is_failed()).context("none is failed")?;
        assert!(ten.iter().all(|old| old.uid() != replaced.uid()), "an old pod was failed in its stead");
        ns.chaos_until("down", "the replacement is its target", |chaos| {
            target_of(chaos, &replaced.name())
                .is_some_and(|target| target.born == Some(true) && target.phase == TargetPhase::Injected)
        })
        .await?;
        holds_for(A_WHILE, "exactly one is failed", async || {
            let pods = ns.pods("web").await?;
            Ok(if failed(&pods) == 1 { Ok(()) } else { Err(format!("{} are failed", failed(&pods))) })
        })
        .await?;
        ns.end_chaos("down").await?;
        ns.all_whole("web").await?;
        Ok(())
    });
}

#[test]
fn a_stateful_replacement_of_the_same_name_is_failed_again() {
    with_ns("fail-sts", OptIn::Yes, async |ns| {
        ns.create(&stateful_set("db", 2)).await?;
        ns.ready_pods("db", 2).await?;
        ns.create(&failure("down", Mode::One, |_| ())).await?;
        let hit = ns.condition("down", "Injected").await?.in_phase(TargetPhase::Injected).remove(0);
        ns.api::<Pod>().delete(&hit.pod, &DeleteParams::default()).await?;
        let again = ns
            .pod_until(&hit.pod, "its replacement is failed", |pod| pod.uid() != hit.uid && pod.is_failed())
            .await?;
        let chaos = ns
            .chaos_until("down", "the replacement is its target", |chaos| {
                chaos.in_phase(TargetPhase::Injected).iter().any(|target| target.uid == again.uid())
            })
            .await?;
        assert_eq!(chaos.told().targets.len(), 2, "{}", chaos.shown());
        assert_eq!(failed(&ns.pods("db").await?), 1);
        ns.end_chaos("down").await?;
        ns.all_whole("db").await?;
        ns.ready_pods("db", 2).await?;
        Ok(())
    });
}
