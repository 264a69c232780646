//! Injected as asked, and back when it is over.

use anyhow::Context as _;
use futures::future::try_join_all;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::api::DeleteParams;
use serde_json::json;
use squall_api::names;
use squall_api::podchaos::{Action, FaultStyle, Mode, Phase, TargetPhase};
use squall_tests::{
    BUSYBOX, ExperimentExt as _, OF, OptIn, PodExt as _, SLEEPER, STUBBORN, container, deployment, event_on,
    from_json, in_each_mode, pod, pod_of, target_of, unschedulable, with_ns,
};

use super::*;

#[test]
fn a_ready_pod_fails_and_is_ready_again() {
    with_ns("fail-recover", OptIn::Yes, async |ns| {
        ns.create(&deployment("web", 2, false)).await?;
        let before = ns.ready_pods("web", 2).await?;
        ns.create(&failure("down", Mode::All, |spec| app(spec, "web"))).await?;
        let chaos = ns.condition("down", "Injected").await?;
        assert_eq!(chaos.phase(), Phase::Injected, "{}", chaos.shown());
        assert_eq!(chaos.in_phase(TargetPhase::Injected).len(), 2, "{}", chaos.shown());
        let pods =
            ns.pods_until("web", "no pod is Ready", |pods| pods.iter().all(|pod| !pod.is_ready())).await?;
        let uid = chaos.metadata.uid.clone().context("it has no UID")?;
        for pod in &pods {
            assert!(pod.is_failed(), "{:?}", pod.images());
            assert_eq!(pod.holders(), [uid.as_str()]);
            assert!(before.iter().any(|old| old.uid() == pod.uid()), "the same pods, failed in place");
            let said = event_on(ns, "Pod", &pod.name(), "Injected").await?;
            assert!(said.contains(&format!("{}/down", ns.name)), "{said:?} does not say by whom");
        }
        ns.end_chaos("down").await?;
        for pod in &before {
            let now = ns.whole(&pod.name()).await?;
            assert_eq!(now.uid(), pod.uid());
        }
        ns.ready_pods("web", 2).await?;
        Ok(())
    });
}

#[test]
fn each_mode_fails_as_many_as_it_says() {
    with_ns("fail-modes", OptIn::Yes, async |ns| {
        let cases = in_each_mode(ns, Action::PodFailure).await?;
        for case in cases {
            let (name, wanted) = (case.name, &case.chosen);
            let chaos = ns.condition(name, "Injected").await?;
            let hit = failed(&ns.pods(name).await?);
            assert!(wanted.contains(&hit), "{name}: {hit} instead of {wanted:?}: {}", chaos.shown());
            assert_eq!(chaos.in_phase(TargetPhase::Injected).len(), hit, "{name}: {}", chaos.shown());
        }
        try_join_all(cases.iter().map(|case| ns.end_chaos(case.name))).await?;
        for case in cases {
            assert_eq!(ns.all_whole(case.name).await?.len(), OF);
        }
        Ok(())
    });
}

#[test]
fn a_duration_ends_the_fault() {
    with_ns("fail-duration", OptIn::Yes, async |ns| {
        ns.ready_pod(&pod("web")).await?;
        ns.create(&failure("down", Mode::One, |spec| spec.duration = Some("3s".into()))).await?;
        let injected = ns.condition("down", "Injected").await?;
        assert!(injected.told().ends_at.is_some(), "{}", injected.shown());
        let chaos = ns.completed("down").await?;
        assert_eq!(chaos.reason("Completed"), "Succeeded", "{}", chaos.shown());
        assert!(chaos.is("Recovered") && !chaos.is("Injected") && !chaos.is("Failed"), "{}", chaos.shown());
        let told = chaos.told();
        let (started, ends) = told.started_at.zip(told.ends_at).context("a time is missing")?;
        assert_eq!(ends.0.duration_since(started.0).as_secs(), 3, "{}", chaos.shown());
        let target = target_of(&chaos, "web").context("no such target")?;
        assert_eq!(target.phase, TargetPhase::Recovered, "{}", chaos.shown());
        let (recovered, ready) =
            target.recovered_at.clone().zip(target.ready_at.clone()).context("a time is missing")?;
        assert!(recovered.0 >= ends.0 && ready.0 >= recovered.0, "{}", chaos.shown());
        assert!(ns.whole("web").await?.is_ready(), "it is over only when the pod is Ready again");
        let said = event_on(ns, "Pod", "web", "Recovered").await?;
        assert!(said.contains(&format!("{}/down", ns.name)), "{said:?} does not say from what");
        Ok(())
    });
}

#[test]
fn a_native_sidecar_fails_alone() {
    with_ns("fail-sidecar", OptIn::Yes, async |ns| {
        let mut sidecar = container("sidecar", SLEEPER);
        sidecar["restartPolicy"] = json!("Always");
        let spec = json!({ "initContainers": [sidecar], "containers": [container("app", SLEEPER)] });
        ns.ready_pod(&pod_of("web", spec)).await?;
        ns.create(&failure("down", Mode::One, |spec| spec.container_names = vec!["sidecar".into()])).await?;
        ns.condition("down", "Injected").await?;
        let now = ns.pod("web").await?;
        assert_eq!(now.substituted(), ["sidecar"], "{:?}", now.images());
        assert_eq!(now.restarts("app"), 0, "its neighbour was touched");
        ns.end_chaos("down").await?;
        ns.whole("web").await?;
        let back = ns
            .pod_until("web", "its sidecar runs again", |pod| {
                pod.is_ready() && pod.container("sidecar").is_some_and(|one| one.started == Some(true))
            })
            .await?;
        assert_eq!(back.restarts("app"), 0);
        Ok(())
    });
}

#[test]
fn a_jobs_pod_is_left_alone() {
    with_ns("fail-job", OptIn::Yes, async |ns| {
        let job: Job = from_json(json!({
            "metadata": { "name": "batch" },
            "spec": { "backoffLimit": 0, "template": {
                "metadata": { "labels": { "app": "batch" } },
                "spec": {
                    "restartPolicy": "OnFailure",
                    "terminationGracePeriodSeconds": 1,
                    "containers": [container("app", SLEEPER)],
                },
            } },
        }));
        ns.create(&job).await?;
        let before = ns.ready_pods("batch", 1).await?.remove(0);
        ns.create(&unschedulable("web", "web")).await?;
        ns.create(&failure("down", Mode::All, |_| ())).await?;
        let chaos = ns.condition("down", "Injected").await?;
        let target = target_of(&chaos, &before.name()).context("the Job's pod isn't told of")?;
        assert_eq!(target.phase, TargetPhase::Skipped, "{}", chaos.shown());
        assert_eq!(target.reason.as_deref(), Some("WouldNotRecover"), "{}", chaos.shown());
        let now = ns.pod(&before.name()).await?;
        assert!(now.is_ready() && now.substituted().is_empty() && now.restarts("app") == 0);
        ns.end_chaos("down").await
    });
}

#[test]
fn fast_does_not_wait_for_the_grace_period() {
    with_ns("fail-fast", OptIn::Yes, async |ns| {
        // It would take 25 s to end by itself.
        let spec = json!({ "terminationGracePeriodSeconds": 25, "containers": [container("app", STUBBORN)] });
        ns.ready_pod(&pod_of("web", spec)).await?;
        ns.create(&failure("down", Mode::All, |spec| spec.fast = Some(true))).await?;
        let chaos = ns.condition("down", "Injected").await?;
        let target = target_of(&chaos, "web").context("no such target")?;
        let (ordered, injected) =
            target.ordered_at.clone().zip(target.injected_at.clone()).context("a time is missing")?;
        let took = injected.0.duration_since(ordered.0).as_secs_f64();
        assert!(took < 10.0, "it took {took} s: {}", chaos.shown());
        ns.end_chaos("down").await?;
        ns.whole("web").await?;
        // The namespace need not wait for the grace period either.
        ns.api::<Pod>().delete("web", &DeleteParams::default().grace_period(0)).await?;
        Ok(())
    });
}

#[test]
fn the_style_can_be_chosen() {
    with_ns("fail-style", OptIn::Yes, async |ns| {
        for name in ["crash", "pause"] {
            let spec =
                json!({ "containers": [{ "name": "app", "image": BUSYBOX, "stdin": true, "tty": true }] });
            ns.ready_pod(&pod_of(name, spec)).await?;
        }
        for (name, style) in [("crash", FaultStyle::Crash), ("pause", FaultStyle::Pause)] {
            ns.create(&failure(name, Mode::All, |spec| {
                app(spec, name);
                spec.fault_style = Some(style);
            }))
            .await?;
        }
        ns.condition("crash", "Injected").await?;
        ns.condition("pause", "Injected").await?;
        ns.pod_until("crash", "it crashes again and again", |pod| !pod.is_ready() && pod.restarts("app") > 0)
            .await?;
        // Without a command the pause image itself runs, and nothing asks whether it is ready.
        ns.pod_until("pause", "it sleeps", |pod| {
            pod.container("app").is_some_and(|one| one.started == Some(true))
        })
        .await?;
        ns.end_chaos("crash").await?;
        ns.end_chaos("pause").await?;
        ns.whole("crash").await?;
        ns.whole("pause").await?;
        Ok(())
    });
}

#[test]
fn a_dry_run_fails_nothing() {
    with_ns("fail-dry", OptIn::Yes, async |ns| {
        ns.create(&unschedulable("web", "web")).await?;
        ns.create(&failure("dry", Mode::All, |spec| spec.dry_run = Some(true))).await?;
        let chaos = ns.completed("dry").await?;
        assert_eq!(chaos.in_phase(TargetPhase::Selected).len(), 1, "{}", chaos.shown());
        let now = ns.pod("web").await?;
        assert!(now.substituted().is_empty() && now.annotation(names::HELD_BY).is_none());
        Ok(())
    });
}
