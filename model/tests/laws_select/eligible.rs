//! Who may be hit, and why the rest may not.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use proptest::prelude::*;
use rstest::rstest;
use serde_json::json;
use squall_api::podchaos::{Action, PodChaosSpec};
use squall_api::{StressChaosSpec, names};
use squall_model::pod::{
    ComesBack, ContainerKind, ContainerState, ContainerView, NamespaceView, Owner, PodView,
};
use squall_model::select::{Ineligible, eligible};
use squall_model::spec::Spec;
use squall_model::validate::validate;

fn container(name: &str, kind: ContainerKind, runs: bool) -> ContainerView {
    ContainerView {
        name: name.to_owned(),
        kind,
        image: "web:1".to_owned(),
        id: runs.then(|| format!("containerd://{name}")),
        state: if runs {
            ContainerState::Running(None)
        } else {
            ContainerState::Waiting("CrashLoopBackOff".into())
        },
        ..ContainerView::default()
    }
}

fn pod() -> PodView {
    PodView {
        namespace: "shop".to_owned(),
        name: "web-1".to_owned(),
        uid: "u1".to_owned(),
        phase: "Running".to_owned(),
        containers: vec![
            container("setup", ContainerKind::Init, false),
            container("proxy", ContainerKind::Sidecar, true),
            container("web", ContainerKind::Main, true),
            container("log", ContainerKind::Main, true),
        ],
        ..PodView::default()
    }
}

fn namespace() -> NamespaceView {
    NamespaceView { name: "shop".to_owned(), opted_in: true, ..NamespaceView::default() }
}

fn spec(action: Action, containers: &[&str], allow_terminal: bool) -> Spec {
    let containers = containers.iter().map(|name| (*name).to_owned()).collect();
    let allow_terminal = (action == Action::ContainerKill).then_some(allow_terminal);
    let spec =
        PodChaosSpec { action, container_names: containers, allow_terminal, ..PodChaosSpec::default() };
    validate(&spec, "shop").unwrap()
}

fn names_of(hit: Vec<&ContainerView>) -> Vec<&str> {
    hit.into_iter().map(|container| container.name.as_str()).collect()
}

#[rstest]
#[case(Action::PodKill, &[], &[])]
#[case(Action::PodFailure, &[], &["setup", "proxy", "web", "log"])]
#[case(Action::PodFailure, &["log", "setup"], &["setup", "log"])]
#[case(Action::ContainerKill, &[], &["web"])]
#[case(Action::ContainerKill, &["log", "proxy"], &["proxy", "log"])]
#[case(Action::ContainerKill, &["log", "setup"], &["log"])]
fn the_containers_that_are_hit(#[case] action: Action, #[case] asked: &[&str], #[case] hit: &[&str]) {
    let pod = pod();
    assert_eq!(eligible(&spec(action, asked, false), &pod, &namespace()).map(names_of), Ok(hit.to_vec()));
}

#[rstest]
#[case(Action::PodFailure)]
#[case(Action::ContainerKill)]
fn any_missing_name_spares_the_pod(#[case] action: Action) {
    let missing = Ineligible::NoSuchContainer(vec!["cache".to_owned(), "db".to_owned()]);
    let spec = spec(action, &["cache", "web", "db"], false);
    assert_eq!(eligible(&spec, &pod(), &namespace()), Err(missing));
}

#[rstest]
#[case(Action::PodKill, false, None)]
#[case(Action::PodFailure, false, Some(Ineligible::WouldNotRecover))]
#[case(Action::ContainerKill, false, Some(Ineligible::WouldNotRecover))]
#[case(Action::ContainerKill, true, None)]
fn what_would_not_come_back_is_spared(
    #[case] action: Action,
    #[case] allow_terminal: bool,
    #[case] expected: Option<Ineligible>,
) {
    let spec = spec(action, &[], allow_terminal);
    let never = PodView { never_restarts: true, ..pod() };
    let owner = Owner { kind: "Job".to_owned(), name: "sum".to_owned(), uid: "j".to_owned() };
    let job = PodView { owner: Some(owner), ..pod() };
    for pod in [never, job] {
        assert_eq!(eligible(&spec, &pod, &namespace()).err(), expected);
    }
}

#[rstest]
#[case(ComesBack::OnFailure, "KILL", false, true)]
#[case(ComesBack::OnFailure, "TERM", false, false)]
#[case(ComesBack::OnFailure, "TERM", true, true)]
#[case(ComesBack::Never, "KILL", false, false)]
#[case(ComesBack::Never, "KILL", true, true)]
fn a_container_that_a_signal_could_end_for_good_takes_a_word_more(
    #[case] comes_back: ComesBack,
    #[case] signal: &str,
    #[case] allow_terminal: bool,
    #[case] may: bool,
) {
    let with = |names: &[&str]| {
        let container_names = names.iter().map(|name| (*name).to_owned()).collect();
        let written = PodChaosSpec {
            action: Action::ContainerKill,
            signal: Some(IntOrString::String(signal.into())),
            container_names,
            allow_terminal: Some(allow_terminal),
            ..PodChaosSpec::default()
        };
        validate(&written, "shop").unwrap()
    };
    let mut pod = pod();
    pod.containers[2].comes_back = comes_back;
    let refused = (!may).then_some(Ineligible::WouldNotRecover);
    assert_eq!(eligible(&with(&[]), &pod, &namespace()).err(), refused);
    assert_eq!(eligible(&with(&["web", "log"]), &pod, &namespace()).err(), refused);
    // What another container does is no matter, nor what one does that does not run.
    assert!(eligible(&with(&["log"]), &pod, &namespace()).is_ok());
    pod.containers[2].state = ContainerState::Terminated(0, None);
    assert!(eligible(&with(&["web", "log"]), &pod, &namespace()).is_ok());
}

#[rstest]
#[case(ComesBack::OnFailure, None)]
#[case(ComesBack::Never, Some(Ineligible::WouldNotRecover))]
fn stress_on_memory_spares_a_container_that_never_comes_back(
    #[case] comes_back: ComesBack,
    #[case] expected: Option<Ineligible>,
) {
    let with = |stressors: serde_json::Value| {
        let written = json!({ "mode": "one", "stressors": stressors });
        validate(&serde_json::from_value::<StressChaosSpec>(written).unwrap(), "shop").unwrap()
    };
    let mut pod = pod();
    pod.containers[2].comes_back = comes_back;
    let memory = with(json!({ "memory": { "workers": 1, "size": "64Mi" } }));
    assert_eq!(eligible(&memory, &pod, &namespace()).err(), expected);
    let cpu = with(json!({ "cpu": { "workers": 1 } }));
    assert!(eligible(&cpu, &pod, &namespace()).is_ok());
}

#[rstest]
#[case(json!({"stressors": {"cpu": {"workers": 1, "load": 50}}}), None)]
#[case(json!({"stressors": {"io": {"workers": 1, "size": "1Mi", "path": "/data"}}}), None)]
#[case(json!({"squeeze": {"pids": 5}}), None)]
#[case(json!({"stressors": {"memory": {"workers": 1, "size": "1Mi"}}}), Some(Ineligible::WouldNotRecover))]
#[case(json!({"stressors": {"pids": {"count": 100}}}), Some(Ineligible::WouldNotRecover))]
#[case(json!({"squeeze": {"memory": "64Mi"}}), Some(Ineligible::WouldNotRecover))]
fn stress_that_takes_memory_spares_what_would_not_come_back(
    #[case] parts: serde_json::Value,
    #[case] expected: Option<Ineligible>,
) {
    let mut whole = json!({"mode": "one"});
    whole.as_object_mut().unwrap().extend(parts.as_object().unwrap().clone());
    let spec = validate(&serde_json::from_value::<StressChaosSpec>(whole).unwrap(), "shop").unwrap();
    let never = PodView { never_restarts: true, ..pod() };
    assert_eq!(eligible(&spec, &never, &namespace()).err(), expected);
}

#[test]
fn a_container_that_does_not_run_is_not_signalled() {
    let mut pod = pod();
    pod.containers[2].state = ContainerState::Terminated(1, None);
    assert_eq!(
        eligible(&spec(Action::ContainerKill, &[], false), &pod, &namespace()),
        Err(Ineligible::NotRunning)
    );
    pod.containers[2].state = ContainerState::Running(None);
    pod.containers[2].id = None;
    assert_eq!(
        eligible(&spec(Action::ContainerKill, &[], false), &pod, &namespace()),
        Err(Ineligible::NotRunning)
    );
}

/// Every reason at once; then the first is taken away, again and again.
#[test]
fn the_most_fundamental_reason_wins() {
    let mut pod = PodView {
        namespace: "kube-system".to_owned(),
        labels: [(names::PROTECT.to_owned(), "true".to_owned())].into(),
        mirror: true,
        terminating: true,
        phase: "Succeeded".to_owned(),
        never_restarts: true,
        shielded: true,
        ..pod()
    };
    let mut namespace = NamespaceView { protect: true, ..NamespaceView::default() };
    let spec = spec(Action::PodFailure, &["nope"], false);
    let reason = |pod: &PodView, namespace: &NamespaceView| match eligible(&spec, pod, namespace) {
        Ok(_) => "eligible".to_owned(),
        Err(reason @ Ineligible::Protected(which)) => format!("{} {which}", reason.reason()),
        Err(reason) => reason.reason().to_owned(),
    };
    assert_eq!(reason(&pod, &namespace), "ProtectedNamespace");
    pod.namespace = "shop".to_owned();
    namespace.name = "shop".to_owned();
    assert_eq!(reason(&pod, &namespace), "NotOptedIn");
    namespace.opted_in = true;
    assert_eq!(reason(&pod, &namespace), "Protected pod");
    pod.labels.clear();
    assert_eq!(reason(&pod, &namespace), "Protected pod's workload");
    pod.shielded = false;
    assert_eq!(reason(&pod, &namespace), "Protected namespace");
    namespace.protect = false;
    assert_eq!(reason(&pod, &namespace), "MirrorPod");
    pod.mirror = false;
    assert_eq!(reason(&pod, &namespace), "Terminating");
    pod.terminating = false;
    namespace.terminating = true;
    assert_eq!(reason(&pod, &namespace), "Terminating", "it goes with its namespace");
    namespace.terminating = false;
    assert_eq!(reason(&pod, &namespace), "Completed");
    pod.phase = "Running".to_owned();
    assert_eq!(reason(&pod, &namespace), "WouldNotRecover");
    pod.never_restarts = false;
    assert_eq!(reason(&pod, &namespace), "NoSuchContainer");
    pod.containers.push(container("nope", ContainerKind::Main, true));
    assert_eq!(reason(&pod, &namespace), "eligible");
}

proptest! {
    #[test]
    fn nothing_protected_is_ever_hit(
        action in prop_oneof![Just(Action::PodKill), Just(Action::PodFailure), Just(Action::ContainerKill)],
        [out, pod_label, pod_annotation, workload, whole_namespace] in any::<[bool; 5]>(),
        value in prop_oneof![Just("true"), Just("yes"), Just("")],
        protected in proptest::sample::select(&names::PROTECTED_NAMESPACES[..]),
        in_protected: bool,
    ) {
        let mut pod = pod();
        let mut namespace = namespace();
        if pod_label {
            pod.labels.insert(names::PROTECT.to_owned(), value.to_owned());
        }
        if pod_annotation {
            pod.annotations.insert(names::PROTECT.to_owned(), value.to_owned());
        }
        pod.shielded = workload;
        namespace.protect = whole_namespace;
        namespace.opted_in = !out;
        if in_protected {
            pod.namespace = protected.to_owned();
            namespace.name = protected.to_owned();
        }
        let may = !(out || pod_label || pod_annotation || workload || whole_namespace || in_protected);
        let spec = spec(action, &[], true);
        prop_assert_eq!(eligible(&spec, &pod, &namespace).is_ok(), may);
    }
}
