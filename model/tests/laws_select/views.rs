//! The views: what is kept of an object, and that nothing missing is a panic.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use proptest::prelude::*;
use rstest::rstest;
use serde_json::json;
use squall_model::pod::{ComesBack, ContainerKind, ContainerState, NamespaceView, PodView, says_protect};

fn view(pod: serde_json::Value) -> PodView {
    PodView::of(&serde_json::from_value::<Pod>(pod).unwrap())
}

#[test]
fn nothing_there_is_an_empty_view() {
    assert_eq!(PodView::of(&Pod::default()), PodView::default());
    assert_eq!(NamespaceView::of(&Namespace::default()), NamespaceView::default());
    assert_eq!(view(json!({"spec": {"containers": []}, "status": {}})), PodView::default());
}

#[test]
fn a_running_pod() {
    let view = view(json!({
        "metadata": {
            "namespace": "shop", "name": "web-1", "uid": "u1", "resourceVersion": "7",
            "labels": {"app": "web"},
            "annotations": {
                "kubectl.kubernetes.io/last-applied-configuration": "{}",
                "large": "x".repeat(1025),
                "small": "x".repeat(1024),
                "squall.dev/original-images": "y".repeat(5000),
                "squall.dev/held-by":
                    "[{\"kind\":\"PodChaos\",\"namespace\":\"shop\",\"name\":\"e\",\"uid\":\"e1\"}, 5, {\"kind\":\"x\"}]",
            },
            "creationTimestamp": "2030-01-01T00:00:00Z",
            "deletionTimestamp": "2030-01-02T00:00:00Z",
            "ownerReferences": [
                {"apiVersion": "v1", "kind": "Other", "name": "o", "uid": "o1"},
                {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "r1", "controller": true},
            ],
        },
        "spec": {
            "nodeName": "n1", "restartPolicy": "Always", "schedulerName": "s", "serviceAccountName": "sa",
            "initContainers": [
                {"name": "setup", "image": "setup:1"},
                {"name": "proxy", "image": "proxy:1", "restartPolicy": "Always"},
            ],
            "containers": [{"name": "web", "image": "web:1"}, {"name": "log"}],
        },
        "status": {
            "phase": "Running", "podIP": "10.0.0.1",
            "conditions": [
                {"type": "PodScheduled", "status": "True"},
                {"type": "Ready", "status": "True", "lastTransitionTime": "2030-01-01T00:00:05Z"},
            ],
            "initContainerStatuses": [
                {"name": "setup", "ready": true, "restartCount": 0, "image": "setup:1", "imageID": "",
                 "state": {"terminated": {"exitCode": 3, "finishedAt": "2030-01-01T00:00:02Z"}}},
            ],
            "containerStatuses": [
                {"name": "web", "ready": true, "restartCount": 2, "image": "docker.io/web:1", "imageID": "i",
                 "containerID": "containerd://abc", "state": {"running": {"startedAt": "2030-01-01T00:00:03Z"}}},
                {"name": "log", "ready": false, "restartCount": 0, "image": "", "imageID": "", "containerID": "",
                 "state": {"waiting": {"reason": "CrashLoopBackOff"}}},
            ],
        },
    }));
    let at = |text: &str| Some(text.parse::<Timestamp>().unwrap());
    assert_eq!((view.namespace.as_str(), view.name.as_str(), view.uid.as_str()), ("shop", "web-1", "u1"));
    let kept: Vec<&str> = view.annotations.keys().map(String::as_str).collect();
    assert_eq!(kept, ["small", "squall.dev/held-by", "squall.dev/original-images"]);
    assert_eq!((view.created, view.ready_since), (at("2030-01-01T00:00:00Z"), at("2030-01-01T00:00:05Z")));
    assert!(view.terminating && view.ready && !view.mirror && !view.never_restarts);
    assert_eq!(view.owner.map(|owner| owner.uid), Some("r1".to_owned()));
    assert_eq!(view.held_by.iter().map(|holder| holder.uid.as_str()).collect::<Vec<_>>(), ["e1"]);
    assert_eq!(view.fields.len(), 4);
    let kinds: Vec<(&str, ContainerKind)> =
        view.containers.iter().map(|c| (c.name.as_str(), c.kind)).collect();
    let expected = [
        ("setup", ContainerKind::Init),
        ("proxy", ContainerKind::Sidecar),
        ("web", ContainerKind::Main),
        ("log", ContainerKind::Main),
    ];
    assert_eq!(kinds, expected);
    let states: Vec<ContainerState> = view.containers.iter().map(|c| c.state.clone()).collect();
    let expected = [
        ContainerState::Terminated(3, at("2030-01-01T00:00:02Z")),
        ContainerState::Unknown,
        ContainerState::Running(at("2030-01-01T00:00:03Z")),
        ContainerState::Waiting("CrashLoopBackOff".to_owned()),
    ];
    assert_eq!(states, expected);
    let web = &view.containers[2];
    assert_eq!((web.id.as_deref(), web.restarts), (Some("containerd://abc"), 2));
    assert_eq!(web.running_image.as_deref(), Some("docker.io/web:1"));
    assert_eq!((view.containers[3].id.as_deref(), view.containers[3].image.as_str()), (None, ""));
}

#[rstest]
#[case(None, None, ComesBack::Always)]
#[case(Some("Always"), None, ComesBack::Always)]
#[case(Some("OnFailure"), None, ComesBack::OnFailure)]
#[case(Some("Never"), None, ComesBack::Never)]
#[case(Some("Always"), Some("Never"), ComesBack::Never)]
#[case(Some("Always"), Some("OnFailure"), ComesBack::OnFailure)]
#[case(Some("Never"), Some("Always"), ComesBack::Always)]
fn a_containers_own_restart_policy_goes_before_its_pods(
    #[case] pods: Option<&str>,
    #[case] own: Option<&str>,
    #[case] comes_back: ComesBack,
) {
    let pod = json!({"spec": {"restartPolicy": pods, "containers": [{"name": "web", "restartPolicy": own}]}});
    assert_eq!(view(pod).containers[0].comes_back, comes_back);
}

#[rstest]
#[case(json!({"annotations": {"kubernetes.io/config.mirror": "x"}}), true)]
#[case(json!({"ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "n", "controller": true}]}), true)]
#[case(json!({"annotations": {"kubernetes.io/config.source": "api"}}), false)]
fn static_pods_mirrors_are_known(#[case] metadata: serde_json::Value, #[case] mirror: bool) {
    assert_eq!(view(json!({"metadata": metadata})).mirror, mirror);
}

#[rstest]
#[case("shop", "enabled", true)]
#[case("shop", "Enabled", false)]
#[case("shop", "true", false)]
#[case("kube-system", "enabled", false)]
#[case("squall-system", "enabled", false)]
fn only_one_value_opts_in_and_never_a_protected_namespace(
    #[case] name: &str,
    #[case] value: &str,
    #[case] opted_in: bool,
) {
    let namespace = json!({"metadata": {"name": name, "labels": {"squall.dev/inject": value}}});
    let view = NamespaceView::of(&serde_json::from_value(namespace).unwrap());
    assert_eq!((view.name.as_str(), view.opted_in), (name, opted_in));
}

#[test]
fn in_doubt_protect_protects() {
    let with = |value: &str| [("squall.dev/protect".to_owned(), value.to_owned())].into();
    for (value, protects) in [("true", true), ("yes", true), ("", true), ("false", false)] {
        assert_eq!(says_protect(Some(&with(value)), None), protects);
        assert_eq!(says_protect(None, Some(&with(value))), protects);
    }
    assert!(!says_protect(None, None));
}

proptest! {
    #[test]
    fn no_record_of_holders_is_a_panic(record in ".{0,60}") {
        let pod = json!({"metadata": {"annotations": {"squall.dev/held-by": record}}});
        let _ = view(pod);
    }
}
