//! pod-failure on real pods: injected, recovered, and put back whatever happens in between.

use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::future::try_join_all;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;
use squall_api::names;
use squall_api::podchaos::{Action, FaultStyle, Mode, Phase, PodChaos, PodChaosSpec, TargetPhase};
use squall_tests::{
    BUSYBOX, ExperimentExt as _, Ns, OptIn, PodExt as _, SLEEPER, STUBBORN, container, deployment,
    experiment, from_json, holds_for, kubectl, pod, pod_of, target_of, unschedulable, until, until_within,
    with_ns,
};

fn app(spec: &mut PodChaosSpec, app: &str) {
    spec.selector.label_selectors.insert("app".into(), app.into());
}

fn failure(name: &str, mode: Mode, change: impl FnOnce(&mut PodChaosSpec)) -> PodChaos {
    experiment(name, Action::PodFailure, mode, change)
}

fn failed(pods: &[Pod]) -> usize {
    pods.iter().filter(|pod| pod.is_failed()).count()
}

/// What the test may take for "it is left alone".
const A_WHILE: Duration = Duration::from_millis(1500);

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
        let cases: [(&str, Mode, Option<&str>, std::ops::RangeInclusive<usize>); 6] = [
            ("one", Mode::One, None, 1..=1),
            ("all", Mode::All, None, 5..=5),
            ("two", Mode::Fixed, Some("2"), 2..=2),
            ("nine", Mode::Fixed, Some("9"), 5..=5),
            ("half", Mode::FixedPercent, Some("50"), 3..=3),
            ("random", Mode::RandomMaxPercent, Some("60"), 1..=3),
        ];
        let pods = cases
            .iter()
            .flat_map(|(name, ..)| (0..5).map(move |n| unschedulable(&format!("{name}-{n}"), name)));
        let pods: Vec<Pod> = pods.collect();
        try_join_all(pods.iter().map(|pod| ns.create(pod))).await?;
        let chaos: Vec<PodChaos> = cases
            .iter()
            .map(|(name, mode, value, _)| {
                failure(name, *mode, |spec| {
                    app(spec, name);
                    spec.value = value.map(str::to_owned);
                })
            })
            .collect();
        try_join_all(chaos.iter().map(|chaos| ns.create(chaos))).await?;
        for (name, _, _, wanted) in &cases {
            let chaos = ns.condition(name, "Injected").await?;
            let hit = failed(&ns.pods(name).await?);
            assert!(wanted.contains(&hit), "{name}: {hit} instead of {wanted:?}: {}", chaos.shown());
            assert_eq!(chaos.in_phase(TargetPhase::Injected).len(), hit, "{name}: {}", chaos.shown());
        }
        try_join_all(cases.iter().map(|(name, ..)| ns.end_chaos(name))).await?;
        for (name, ..) in &cases {
            assert_eq!(ns.all_whole(name).await?.len(), 5);
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

async fn overlap(ns: &Ns, first_to_end: &str, last_to_end: &str) -> Result<()> {
    let before = ns.ready_pod(&pod("web")).await?;
    for name in ["one", "two"] {
        ns.create(&failure(name, Mode::All, |_| ())).await?;
        ns.condition(name, "Injected").await?;
    }
    assert_eq!(ns.pod("web").await?.holders().len(), 2);
    let last = ns.chaos(last_to_end).await?.metadata.uid.context("it has no UID")?;
    ns.end_chaos(first_to_end).await?;
    let held = ns.pod("web").await?;
    assert!(held.is_failed(), "still held by {last_to_end}: {:?}", held.images());
    assert_eq!(held.holders(), [last]);
    ns.end_chaos(last_to_end).await?;
    let now = ns.whole("web").await?;
    assert_eq!(now.uid(), before.uid());
    ns.pod_until("web", "it is Ready again", |pod| pod.is_ready()).await?;
    Ok(())
}

#[test]
fn of_two_that_overlap_the_older_may_end_first() {
    with_ns("fail-overlap-a", OptIn::Yes, async |ns| overlap(ns, "one", "two").await);
}

#[test]
fn of_two_that_overlap_the_younger_may_end_first() {
    with_ns("fail-overlap-b", OptIn::Yes, async |ns| overlap(ns, "two", "one").await);
}

#[test]
fn an_overlap_of_different_containers_gives_each_back_in_its_time() {
    with_ns("fail-overlap-c", OptIn::Yes, async |ns| {
        let spec = json!({ "containers": [container("a", SLEEPER), container("b", SLEEPER)] });
        ns.ready_pod(&pod_of("web", spec)).await?;
        for name in ["a", "b"] {
            ns.create(&failure(name, Mode::All, |spec| spec.container_names = vec![name.into()])).await?;
            ns.condition(name, "Injected").await?;
        }
        assert_eq!(ns.pod("web").await?.substituted(), ["a", "b"]);
        ns.end_chaos("a").await?;
        assert_eq!(ns.pod("web").await?.substituted(), ["b"]);
        ns.end_chaos("b").await?;
        ns.whole("web").await?;
        Ok(())
    });
}

#[test]
fn equal_names_in_two_namespaces_do_not_collide() {
    with_ns("fail-names", OptIn::Yes, async |ns| {
        let other = ns.another("fail-names-b", OptIn::Yes).await?;
        ns.create(&unschedulable("web", "web")).await?;
        for home in [ns, &other] {
            let chaos = failure("same", Mode::All, |spec| spec.selector.namespaces = vec![ns.name.clone()]);
            home.create(&chaos).await?;
            home.condition("same", "Injected").await?;
        }
        assert_eq!(ns.pod("web").await?.holders().len(), 2);
        ns.end_chaos("same").await?;
        let held = ns.pod("web").await?;
        let uid = other.chaos("same").await?.metadata.uid.context("it has no UID")?;
        assert!(held.is_failed(), "the other still holds it");
        assert_eq!(held.holders(), [uid]);
        other.end_chaos("same").await?;
        ns.whole("web").await?;
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
fn deletion_in_the_middle_of_the_injection_puts_everything_back() {
    with_ns("fail-mid", OptIn::Yes, async |ns| {
        let pods: Vec<Pod> = (0..15).map(|n| unschedulable(&format!("web-{n}"), "web")).collect();
        try_join_all(pods.iter().map(|pod| ns.create(pod))).await?;
        ns.create(&failure("down", Mode::All, |_| ())).await?;
        // As soon as the first is failed, and not when the last is.
        ns.pods_until("web", "one is failed", |pods| failed(pods) > 0).await?;
        ns.end_chaos("down").await?;
        let left = failed(&ns.pods("web").await?);
        assert_eq!(left, 0, "the object went before its pods were whole");
        ns.all_whole("web").await?;
        Ok(())
    });
}

#[test]
fn the_objects_namespace_is_deleted_during_the_fault() {
    with_ns("fail-home-gone", OptIn::Yes, async |ns| {
        let home = ns.another("fail-home-gone-b", OptIn::Yes).await?;
        ns.create(&unschedulable("web", "web")).await?;
        let chaos = failure("down", Mode::All, |spec| spec.selector.namespaces = vec![ns.name.clone()]);
        home.create(&chaos).await?;
        home.condition("down", "Injected").await?;
        namespace_goes(ns, &home.name).await?;
        ns.whole("web").await?;
        Ok(())
    });
}

#[test]
fn the_targets_namespace_is_deleted_during_the_fault() {
    with_ns("fail-ns-gone", OptIn::Yes, async |ns| {
        let far = ns.another("fail-ns-gone-b", OptIn::Yes).await?;
        far.ready_pod(&pod("web")).await?;
        let chaos = failure("down", Mode::All, |spec| spec.selector.namespaces = vec![far.name.clone()]);
        ns.create(&chaos).await?;
        ns.condition("down", "Injected").await?;
        namespace_goes(ns, &far.name).await?;
        ns.chaos_until("down", "its target is gone", |chaos| {
            target_of(chaos, "web").is_some_and(|target| target.phase == TargetPhase::Gone)
        })
        .await?;
        ns.end_chaos("down").await
    });
}

async fn namespace_goes(ns: &Ns, name: &str) -> Result<()> {
    let api: Api<Namespace> = Api::all(ns.client.clone());
    api.delete(name, &DeleteParams::background()).await?;
    until_within(Duration::from_secs(60), &format!("the namespace {name} is gone"), async || {
        Ok(match api.get_opt(name).await? {
            None => Ok(()),
            Some(namespace) => Err(format!("{:?}", namespace.status)),
        })
    })
    .await
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

#[test]
fn a_forced_clean_up_lets_the_object_go() {
    with_ns("fail-forced", OptIn::Yes, async |ns| {
        ns.create(&unschedulable("web", "web")).await?;
        ns.create(&failure("down", Mode::All, |_| ())).await?;
        ns.condition("down", "Injected").await?;
        ns.annotate::<PodChaos>("down", names::CLEANUP, Some(names::CLEANUP_FORCED)).await?;
        ns.end_chaos("down").await?;
        ns.whole("web").await?;
        Ok(())
    });
}

#[test]
fn a_target_that_goes_by_itself_holds_nothing_up() {
    with_ns("fail-gone", OptIn::Yes, async |ns| {
        ns.create(&unschedulable("web", "web")).await?;
        ns.create(&unschedulable("other", "web")).await?;
        ns.create(&failure("down", Mode::All, |_| ())).await?;
        ns.condition("down", "Injected").await?;
        ns.api::<Pod>().delete("web", &DeleteParams::default()).await?;
        ns.chaos_until("down", "the pod that went is told of", |chaos| {
            target_of(chaos, "web").is_some_and(|target| target.phase == TargetPhase::Gone)
        })
        .await?;
        ns.end_chaos("down").await?;
        ns.whole("other").await?;
        Ok(())
    });
}
