//! What people do in the middle of it.

use anyhow::Context as _;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use squall_api::names;
use squall_api::podchaos::{Mode, Phase, PodChaos, TargetPhase};
use squall_tests::{
    BUSYBOX, ExperimentExt as _, OptIn, PodExt as _, holds_for, kubectl, pod, pod_of, target_of,
    unschedulable, with_ns,
};

use super::*;

#[test]
fn an_image_that_is_set_during_the_fault_is_what_comes_back() {
    // The one other image that the local cluster brings; both run without a command.
    const OTHER: &str = "localhost/pause:1";
    with_ns("fail-image", OptIn::Yes, async |ns| {
        ns.runs_image(OTHER);
        let spec = json!({
            "containers": [{ "name": "app", "image": BUSYBOX, "stdin": true, "tty": true }],
        });
        let before = ns.ready_pod(&pod_of("web", spec)).await?;
        ns.create(&failure("down", Mode::All, |_| ())).await?;
        ns.condition("down", "Injected").await?;
        let image = json!({ "spec": { "containers": [{ "name": "app", "image": OTHER }] } });
        let answer: Pod = ns.api().patch("web", &PatchParams::default(), &Patch::Strategic(&image)).await?;
        assert!(answer.is_failed(), "the fault stays: {:?}", answer.images());
        assert_ne!(answer.image("app"), OTHER, "the fault stays");
        ns.end_chaos("down").await?;
        let now = ns
            .pod_until("web", "it runs the new image", |pod| {
                pod.is_ready() && pod.image("app") == OTHER && pod.label(names::FAULT).is_none()
            })
            .await?;
        assert_eq!(now.uid(), before.uid());
        Ok(())
    });
}

#[test]
fn pausing_recovers_and_resuming_injects_again() {
    with_ns("fail-pause", OptIn::Yes, async |ns| {
        ns.ready_pod(&pod("web")).await?;
        ns.create(&failure("down", Mode::All, |_| ())).await?;
        ns.condition("down", "Injected").await?;
        ns.annotate::<PodChaos>("down", names::PAUSE, Some("true")).await?;
        let paused = ns.phase("down", Phase::Paused).await?;
        assert!(
            paused.is("Paused") && !paused.is("Injected") && !paused.is("Completed"),
            "{}",
            paused.shown()
        );
        assert!(ns.whole("web").await?.is_ready());
        // Neither are pods that are born meanwhile.
        let born = ns.create(&unschedulable("born", "web")).await?;
        assert!(!born.is_failed());
        ns.annotate::<PodChaos>("down", names::PAUSE, None).await?;
        ns.condition("down", "Injected").await?;
        let again = ns.pod("web").await?;
        assert!(again.is_failed(), "{:?}", again.images());
        ns.end_chaos("down").await?;
        ns.whole("web").await?;
        Ok(())
    });
}

#[test]
fn withdrawing_the_opt_in_recovers() {
    with_ns("fail-optout", OptIn::Yes, async |ns| {
        ns.ready_pod(&pod("web")).await?;
        ns.create(&failure("down", Mode::All, |_| ())).await?;
        ns.condition("down", "Injected").await?;
        let api: Api<Namespace> = Api::all(ns.client.clone());
        let patch = json!({ "metadata": { "labels": { names::INJECT: null } } });
        api.patch(&ns.name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
        ns.whole("web").await?;
        let chaos = ns
            .chaos_until("down", "its target is released", |chaos| {
                target_of(chaos, "web").is_some_and(|target| target.phase == TargetPhase::Released)
            })
            .await?;
        let target = target_of(&chaos, "web").context("no such target")?;
        assert_eq!(target.reason.as_deref(), Some("NotOptedIn"), "{}", chaos.shown());
        ns.pod_until("web", "it is Ready again", |pod| pod.is_ready()).await?;
        ns.end_chaos("down").await
    });
}

#[test]
fn protecting_a_pod_during_the_fault_recovers_it_alone() {
    with_ns("fail-protect", OptIn::Yes, async |ns| {
        ns.keeps(names::PROTECT);
        ns.create(&unschedulable("safe", "web")).await?;
        ns.create(&unschedulable("open", "web")).await?;
        ns.create(&failure("down", Mode::All, |_| ())).await?;
        ns.condition("down", "Injected").await?;
        ns.label::<Pod>("safe", names::PROTECT, Some("true")).await?;
        ns.whole("safe").await?;
        let chaos = ns
            .chaos_until("down", "the protected pod is released", |chaos| {
                target_of(chaos, "safe").is_some_and(|target| target.phase == TargetPhase::Released)
            })
            .await?;
        let target = target_of(&chaos, "safe").context("no such target")?;
        assert!(target.reason.is_some() && target.message.is_some(), "{}", chaos.shown());
        assert!(ns.pod("open").await?.is_failed(), "the other stays failed");
        ns.end_chaos("down").await?;
        ns.whole("open").await?;
        Ok(())
    });
}

#[test]
fn removing_an_experiments_label_by_hand_wins_for_good() {
    with_ns("fail-by-hand", OptIn::Yes, async |ns| {
        ns.ready_pod(&pod("web")).await?;
        ns.create(&failure("down", Mode::All, |_| ())).await?;
        ns.condition("down", "Injected").await?;
        let said = kubectl(&["-n", &ns.name, "label", "pod", "web", &format!("{}-", names::FAULT)])?.ok()?;
        assert!(said.contains("PodChaos"), "kubectl does not say who let go: {said}");
        let at_once = ns.pod("web").await?;
        assert!(at_once.substituted().is_empty(), "not in that same request: {:?}", at_once.images());
        let chaos = ns
            .chaos_until("down", "its target is released", |chaos| {
                target_of(chaos, "web").is_some_and(|target| target.phase == TargetPhase::Released)
            })
            .await?;
        let target = target_of(&chaos, "web").context("no such target")?;
        assert_eq!(target.reason.as_deref(), Some("LabelRemoved"), "{}", chaos.shown());
        holds_for(A_WHILE, "it is not failed again", async || {
            let now = ns.pod("web").await?;
            let whole = now.substituted().is_empty() && now.label(names::FAULT).is_none();
            Ok(if whole { Ok(()) } else { Err(format!("{:?}", now.images())) })
        })
        .await?;
        let over = ns.completed("down").await?;
        assert_eq!(over.reason("Completed"), "Aborted", "{}", over.shown());
        Ok(())
    });
}

#[test]
fn a_narrowed_selector_lets_go_of_what_falls_out() {
    with_ns("fail-narrow", OptIn::Yes, async |ns| {
        for name in ["a", "b"] {
            ns.create(&unschedulable(name, name)).await?;
        }
        ns.create(&failure("down", Mode::All, |_| ())).await?;
        ns.condition("down", "Injected").await?;
        let narrower = json!({ "spec": { "selector": { "labelSelectors": { "app": "a" } } } });
        ns.merge::<PodChaos>("down", narrower).await?;
        ns.whole("b").await?;
        let chaos = ns
            .chaos_until("down", "what fell out is released", |chaos| {
                target_of(chaos, "b").is_some_and(|target| target.phase == TargetPhase::Released)
            })
            .await?;
        let target = target_of(&chaos, "b").context("no such target")?;
        assert_eq!(target.reason.as_deref(), Some("Narrowed"), "{}", chaos.shown());
        assert!(ns.pod("a").await?.is_failed());
        ns.end_chaos("down").await?;
        ns.whole("a").await?;
        Ok(())
    });
}
