//! What may change, and when.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use rstest::rstest;
use squall_api::podchaos::{Action, FaultStyle, Mode, PodChaosSpec, PodSelector, Processes, Scope, Trigger};
use squall_model::validate::{defaults, validate_update};

fn kill() -> PodChaosSpec {
    PodChaosSpec { selector: selector(), ..PodChaosSpec::default() }
}

fn failure() -> PodChaosSpec {
    PodChaosSpec { action: Action::PodFailure, selector: selector(), ..PodChaosSpec::default() }
}

fn container() -> PodChaosSpec {
    PodChaosSpec { action: Action::ContainerKill, selector: selector(), ..PodChaosSpec::default() }
}

fn selector() -> PodSelector {
    PodSelector {
        namespaces: vec!["a".into(), "b".into()],
        label_selectors: BTreeMap::from([("app".into(), "web".into())]),
        nodes: vec!["n1".into(), "n2".into()],
        pod_phase_selectors: vec!["Running".into(), "Pending".into()],
        ..PodSelector::default()
    }
}

/// The fields that an update is refused for; none if it is allowed.
fn refused(old: &PodChaosSpec, change: fn(&mut PodChaosSpec), active: bool) -> Vec<String> {
    let mut new = old.clone();
    change(&mut new);
    match validate_update(old, &new, "shop", active) {
        Ok(()) => Vec::new(),
        Err(errors) => errors.into_iter().map(|error| error.field).collect(),
    }
}

#[rstest]
#[case(failure(), |s: &mut PodChaosSpec| s.duration = Some("5m".into()))]
#[case(kill(), |s: &mut PodChaosSpec| s.grace_period = Some(3))]
#[case(kill(), |s: &mut PodChaosSpec| { s.selector.namespaces.pop(); })]
#[case(kill(), |s: &mut PodChaosSpec| { s.selector.label_selectors.insert("tier".into(), "front".into()); })]
#[case(kill(), |s: &mut PodChaosSpec| { s.selector.annotation_selectors.insert("x".into(), "y".into()); })]
#[case(kill(), |s: &mut PodChaosSpec| { s.selector.field_selectors.insert("metadata.name".into(), "web-1".into()); })]
#[case(kill(), |s: &mut PodChaosSpec| { s.selector.nodes.pop(); })]
#[case(kill(), |s: &mut PodChaosSpec| { s.selector.pod_phase_selectors.pop(); })]
#[case(kill(), |s: &mut PodChaosSpec| s.evict = Some(false))]
#[case(container(), |s: &mut PodChaosSpec| s.signal = Some(IntOrString::String("KILL".into())))]
#[case(container(), defaults)]
fn an_active_experiment_allows(#[case] old: PodChaosSpec, #[case] change: fn(&mut PodChaosSpec)) {
    assert_eq!(refused(&old, change, true), Vec::<String>::new());
}

#[rstest]
#[case(kill(), |s: &mut PodChaosSpec| s.action = Action::PodFailure, "spec.action")]
#[case(kill(), |s: &mut PodChaosSpec| s.mode = Mode::All, "spec.mode")]
#[case(kill(), |s: &mut PodChaosSpec| s.container_names = vec!["web".into()], "spec.containerNames")]
#[case(kill(), |s: &mut PodChaosSpec| s.evict = Some(true), "spec.evict")]
#[case(kill(), |s: &mut PodChaosSpec| s.seed = Some(1), "spec.seed")]
#[case(kill(), |s: &mut PodChaosSpec| s.dry_run = Some(true), "spec.dryRun")]
#[case(failure(), |s: &mut PodChaosSpec| s.fast = Some(true), "spec.fast")]
#[case(failure(), |s: &mut PodChaosSpec| s.fault_style = Some(FaultStyle::Pause), "spec.faultStyle")]
#[case(container(), |s: &mut PodChaosSpec| s.signal = Some(IntOrString::Int(15)), "spec.signal")]
#[case(container(), |s: &mut PodChaosSpec| s.processes = Some(Processes { scope: Scope::All, ..Processes::default() }), "spec.processes")]
#[case(container(), |s: &mut PodChaosSpec| s.trigger = Some(Trigger { syscall: Some("fsync".into()), ..Trigger::default() }), "spec.trigger")]
#[case(container(), |s: &mut PodChaosSpec| s.allow_terminal = Some(true), "spec.allowTerminal")]
#[case(PodChaosSpec { mode: Mode::Fixed, value: Some("3".into()), ..kill() }, |s: &mut PodChaosSpec| s.value = Some("2".into()), "spec.value")]
#[case(kill(), |s: &mut PodChaosSpec| s.selector.namespaces.push("c".into()), "spec.selector.namespaces")]
#[case(kill(), |s: &mut PodChaosSpec| { s.selector.label_selectors.clear(); }, "spec.selector.labelSelectors")]
#[case(kill(), |s: &mut PodChaosSpec| { s.selector.label_selectors.insert("app".into(), "db".into()); }, "spec.selector.labelSelectors")]
#[case(kill(), |s: &mut PodChaosSpec| s.selector.pod_phase_selectors.clear(), "spec.selector.podPhaseSelectors")]
#[case(kill(), |s: &mut PodChaosSpec| s.selector.nodes.push("n3".into()), "spec.selector.nodes")]
#[case(kill(), |s: &mut PodChaosSpec| { s.selector.node_selectors.insert("zone".into(), "x".into()); }, "spec.selector.nodes")]
#[case(kill(), |s: &mut PodChaosSpec| { s.selector.pods.insert("a".into(), vec!["web-1".into()]); }, "spec.selector.pods")]
fn an_active_experiment_refuses(
    #[case] old: PodChaosSpec,
    #[case] change: fn(&mut PodChaosSpec),
    #[case] field: &str,
) {
    assert_eq!(refused(&old, change, true).first().map(String::as_str), Some(field));
    // Before anything is chosen all but action and mode may change.
    let fixed = field == "spec.action" || field == "spec.mode";
    assert_eq!(refused(&old, change, false).is_empty(), !fixed);
}

#[test]
fn pods_by_name_are_narrowed_by_leaving_names_out() {
    let by_name = |pods: &[(&str, &[&str])]| PodChaosSpec {
        selector: PodSelector {
            pods: pods
                .iter()
                .map(|(namespace, names)| {
                    ((*namespace).to_owned(), names.iter().map(|name| (*name).to_owned()).collect())
                })
                .collect(),
            ..PodSelector::default()
        },
        ..PodChaosSpec::default()
    };
    let old = by_name(&[("a", &["p1", "p2"]), ("b", &["p1"])]);
    assert_eq!(validate_update(&old, &by_name(&[("a", &["p2"])]), "shop", true), Ok(()));
    for wider in [by_name(&[("a", &["p3"])]), by_name(&[("c", &["p1"])]), by_name(&[])] {
        assert!(validate_update(&old, &wider, "shop", true).is_err());
    }
    // From everything in a namespace to some of it by name.
    let everything = PodChaosSpec {
        selector: PodSelector { namespaces: vec!["a".into()], ..PodSelector::default() },
        ..PodChaosSpec::default()
    };
    assert_eq!(validate_update(&everything, &by_name(&[("a", &["p1"])]), "shop", true), Ok(()));
    assert!(validate_update(&everything, &by_name(&[("b", &["p1"])]), "shop", true).is_err());
}

/// An object from before a rule of today: it can still be given another duration, and nothing else.
#[test]
fn what_does_not_parse_any_more_is_compared_as_written() {
    let mut old = kill();
    old.duration = Some("for ever".into());
    assert_eq!(refused(&old, |s| s.duration = Some("5m".into()), true), Vec::<String>::new());
    let both = |s: &mut PodChaosSpec| {
        s.duration = None;
        s.seed = Some(1);
    };
    assert_eq!(refused(&old, both, true), ["spec"]);
}
