//! Laws of validation: nothing panics, defaults change no meaning, what the CRD's rules refuse is refused
//! here too, and what may change while an experiment runs.

mod junk;
mod rules;
mod stress;
mod updates;
#[expect(dead_code, reason = "shared with the laws of selection, which use all of it")]
#[path = "../laws_select/world.rs"]
mod world;

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use proptest::prelude::*;
use rstest::rstest;
use squall_api::podchaos::{Action, Mode, PodChaosSpec, PodSelector};
use squall_model::spec;
use squall_model::time::{LONGEST, format_duration, parse_duration};
use squall_model::validate::{defaults, validate, validate_update, warnings};

proptest! {
    #[test]
    fn durations_survive_being_written(nanos in 1_u64..=LONGEST.as_secs() * 1_000_000_000) {
        let duration = Duration::from_nanos(nanos);
        prop_assert_eq!(parse_duration("spec.duration", &format_duration(duration)), Ok(duration));
    }

    #[test]
    fn no_text_is_a_panic(text in ".{0,80}", units in "[-+0-9.hmsnu\u{b5}]{0,30}") {
        let _ = parse_duration("spec.duration", &text);
        if let Ok(duration) = parse_duration("spec.duration", &units) {
            prop_assert!(duration > Duration::ZERO && duration <= LONGEST);
        }
    }

    #[test]
    fn any_spec_is_valid_or_refused_by_field(spec in junk::spec(), namespace in junk::text()) {
        match validate(&spec, &namespace) {
            Ok(parsed) => {
                let _ = warnings(&parsed);
                prop_assert!(!parsed.selector.namespaces.is_empty());
            }
            Err(errors) => {
                prop_assert!(!errors.is_empty());
                for error in errors {
                    prop_assert!(error.field.starts_with("spec."), "{}", error);
                    prop_assert!(!error.allowed.is_empty());
                }
            }
        }
    }

    #[test]
    fn defaults_change_no_meaning(spec in junk::spec()) {
        let mut filled = spec.clone();
        defaults(&mut filled);
        prop_assert_eq!(validate(&spec, "shop"), validate(&filled, "shop"));
        let mut twice = filled.clone();
        defaults(&mut twice);
        prop_assert_eq!(twice, filled);
    }

    #[test]
    fn no_change_is_always_allowed(spec in junk::spec(), other in junk::spec(), active: bool) {
        if validate(&spec, "shop").is_ok() {
            prop_assert_eq!(validate_update(&spec, &spec, "shop", active), Ok(()));
        }
        // An invalid spec never gets in by an update.
        if validate(&other, "shop").is_err() {
            prop_assert!(validate_update(&spec, &other, "shop", active).is_err());
        }
    }
}

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn expression(operator: &str, values: Option<&[&str]>) -> LabelSelectorRequirement {
    LabelSelectorRequirement {
        key: "app".to_owned(),
        operator: operator.to_owned(),
        values: values.map(|values| values.iter().map(|value| (*value).to_owned()).collect()),
    }
}

fn selector(change: impl FnOnce(&mut PodSelector)) -> PodChaosSpec {
    let mut spec = PodChaosSpec::default();
    change(&mut spec.selector);
    spec
}

fn spec(change: impl FnOnce(&mut PodChaosSpec)) -> PodChaosSpec {
    let mut spec = PodChaosSpec::default();
    change(&mut spec);
    spec
}

#[rstest]
#[case(selector(|s| s.namespaces = vec!["ok".into(), "Not_ok".into()]), "spec.selector.namespaces[1]")]
#[case(selector(|s| s.namespaces = vec!["kube-system".into()]), "spec.selector.namespaces[0]")]
#[case(selector(|s| s.label_selectors = map(&[("a b", "x")])), "spec.selector.labelSelectors")]
#[case(selector(|s| s.label_selectors = map(&[("app", "-")])), "spec.selector.labelSelectors[app]")]
#[case(selector(|s| s.expression_selectors = vec![expression("Equals", None)]), "spec.selector.expressionSelectors[0].operator")]
#[case(selector(|s| s.expression_selectors = vec![expression("In", None)]), "spec.selector.expressionSelectors[0].values")]
#[case(selector(|s| s.expression_selectors = vec![expression("NotIn", Some(&[]))]), "spec.selector.expressionSelectors[0].values")]
#[case(selector(|s| s.expression_selectors = vec![expression("Exists", Some(&["x"]))]), "spec.selector.expressionSelectors[0].values")]
#[case(selector(|s| s.expression_selectors = vec![expression("In", Some(&["x", "-"]))]), "spec.selector.expressionSelectors[0].values[1]")]
#[case(selector(|s| s.annotation_selectors = map(&[("/x", "y")])), "spec.selector.annotationSelectors")]
#[case(selector(|s| s.annotation_selectors = map(&[("x", &"y".repeat(1025))])), "spec.selector.annotationSelectors[x]")]
#[case(selector(|s| s.field_selectors = map(&[("status.hostIP", "1")])), "spec.selector.fieldSelectors")]
#[case(selector(|s| s.field_selectors = map(&[("status.phase", "Up")])), "spec.selector.fieldSelectors[status.phase]")]
#[case(selector(|s| s.nodes = vec!["node_1".into()]), "spec.selector.nodes[0]")]
#[case(selector(|s| s.node_selectors = map(&[("", "x")])), "spec.selector.nodeSelectors")]
#[case(selector(|s| s.pod_phase_selectors = vec!["running".into()]), "spec.selector.podPhaseSelectors[0]")]
#[case(selector(|s| s.pods = BTreeMap::from([("squall-system".into(), vec!["x".into()])])), "spec.selector.pods")]
#[case(selector(|s| s.pods = BTreeMap::from([("web".into(), vec![])])), "spec.selector.pods[web]")]
#[case(selector(|s| s.pods = BTreeMap::from([("web".into(), vec!["A".into()])])), "spec.selector.pods[web][0]")]
#[case(spec(|s| s.container_names = vec!["a".into(), "b/c".into()]), "spec.containerNames[1]")]
#[case(spec(|s| s.container_names = vec!["a".into(); 101]), "spec.containerNames")]
#[case(spec(|s| s.grace_period = Some(-1)), "spec.gracePeriod")]
#[case(spec(|s| s.grace_period = Some(86_401)), "spec.gracePeriod")]
#[case(spec(|s| s.duration = Some("1d".into())), "spec.duration")]
#[case(spec(|s| { s.action = Action::ContainerKill; s.signal = Some(IntOrString::Int(0)); }), "spec.signal")]
fn each_error_names_its_field(#[case] spec: PodChaosSpec, #[case] field: &str) {
    let errors = validate(&spec, "shop").unwrap_err();
    let fields: Vec<&str> = errors.iter().map(|error| error.field.as_str()).collect();
    assert_eq!(fields, [field]);
}

#[test]
fn every_error_is_told_at_once() {
    let spec = PodChaosSpec {
        mode: Mode::Fixed,
        value: Some("many".into()),
        duration: Some("-5s".into()),
        fast: Some(true),
        selector: PodSelector { nodes: vec!["".into()], ..PodSelector::default() },
        ..PodChaosSpec::default()
    };
    let fields: Vec<String> =
        validate(&spec, "kube-system").unwrap_err().into_iter().map(|error| error.field).collect();
    for field in
        ["spec.fast", "spec.value", "spec.selector.nodes[0]", "spec.selector.namespaces", "spec.duration"]
    {
        assert!(fields.iter().any(|there| there == field), "{field} is not among {fields:?}");
    }
}

#[test]
fn what_is_unset_is_filled_in_where_it_has_one_meaning() {
    let mut kill = spec(|s| s.action = Action::ContainerKill);
    defaults(&mut kill);
    let expected = serde_json::json!({
        "action": "container-kill", "mode": "one", "selector": {},
        "signal": "SIGKILL", "processes": { "scope": "init" },
    });
    assert_eq!(serde_json::to_value(&kill).unwrap(), expected);
    for action in [Action::PodKill, Action::PodFailure] {
        let before = spec(|s| s.action = action);
        let mut after = before.clone();
        defaults(&mut after);
        assert_eq!(after, before);
    }
}

#[rstest]
#[case(spec(|s| s.action = Action::PodFailure), &["spec.duration is unset"])]
#[case(spec(|s| { s.action = Action::PodFailure; s.duration = Some("30s".into()); }), &[])]
#[case(spec(|_| {}), &[])]
#[case(spec(|s| s.mode = Mode::All), &["spec.selector selects every pod in shop"])]
#[case(spec(|s| s.container_names = vec!["web".into()]), &["spec.containerNames is ignored"])]
#[case(spec(|s| s.grace_period = Some(0)), &["spec.gracePeriod 0"])]
#[case(spec(|s| s.dry_run = Some(true)), &["spec.dryRun"])]
#[case(spec(|s| { s.action = Action::ContainerKill; s.signal = Some(IntOrString::String("STOP".into())); }), &["spec.signal SIGSTOP"])]
#[case(
    selector(|s| {
        s.pods = BTreeMap::from([("web".into(), vec!["x".into()])]);
        s.namespaces = vec!["db".into()];
        s.label_selectors = map(&[("app", "web")]);
    }),
    &["spec.selector.pods overrides the other fields of the selector; ignored: namespaces, labelSelectors"]
)]
fn what_a_user_should_know(#[case] spec: PodChaosSpec, #[case] expected: &[&str]) {
    let warnings = warnings(&validate(&spec, "shop").unwrap());
    assert_eq!(warnings.len(), expected.len(), "{warnings:?}");
    for (warning, expected) in warnings.iter().zip(expected) {
        assert!(warning.starts_with(expected), "{warning}");
    }
}

/// The shapes in Chaos Mesh's examples and documentation, and one seen in use: only apiVersion was changed.
#[rstest]
#[case(r#"{"action":"pod-failure","mode":"one","duration":"30s","selector":{"labelSelectors":{"app.kubernetes.io/component":"tikv"}}}"#)]
#[case(r#"{"action":"pod-failure","mode":"one","value":"","duration":"30s","selector":{"labelSelectors":{"app":"tikv"}}}"#)]
#[case(r#"{"action":"pod-kill","mode":"one","selector":{"namespaces":["tidb-cluster-demo"],"labelSelectors":{"app":"tikv"}}}"#)]
#[case(r#"{"action":"container-kill","mode":"one","selector":{"labelSelectors":{"app":"monitor"}},"containerNames":["prometheus"]}"#)]
#[case(r#"{"action":"container-kill","mode":"all","duration":"30s","selector":{"namespaces":["demo"]},"containerNames":["mssql"]}"#)]
#[case(r#"{"action":"pod-failure","mode":"one","duration":"180s","gracePeriod":0,"selector":{"pods":{"demo":["rg-1"]}}}"#)]
#[case(r#"{"action":"pod-kill","gracePeriod":3,"mode":"fixed-percent","value":"100","selector":{"namespaces":["pulsar"]}}"#)]
#[case(r#"{"action":"pod-kill","mode":"random-max-percent","value":"50","selector":{"expressionSelectors":[{"key":"tier","operator":"In","values":["cache"]}],"podPhaseSelectors":["Running"]}}"#)]
fn chaos_meshs_manifests_are_valid(#[case] manifest: &str) {
    let spec: PodChaosSpec = serde_json::from_str(manifest).unwrap();
    let parsed: Result<spec::Spec, _> = validate(&spec, "chaos-testing");
    assert!(parsed.is_ok(), "{parsed:?}");
    assert_eq!(rules::refused(&spec, None), Vec::<String>::new());
}
