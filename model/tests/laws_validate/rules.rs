//! The rules in the CRD, evaluated, beside what validation says: whoever is asked first, the answer agrees.

use std::collections::BTreeSet;

use cel::{Context, Program, Value};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::CustomResourceExt as _;
use proptest::prelude::*;
use squall_api::PodChaos;
use squall_api::podchaos::{Action, FaultStyle, Mode, PodChaosSpec, Processes, Trigger};
use squall_model::validate::{validate, validate_update};

use crate::junk;

type Change = fn(&mut PodChaosSpec);

struct Rule {
    message: String,
    program: Program,
    /// It compares with the old object, so it is asked on updates only.
    transition: bool,
}

thread_local! {
    // Parsing is what takes the time.
    static RULES: Vec<Rule> = rules();
}

fn rules() -> Vec<Rule> {
    let crd = serde_json::to_value(PodChaos::crd()).unwrap();
    let rules = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["x-kubernetes-validations"];
    let rules: Vec<Rule> = rules
        .as_array()
        .expect("the spec has rules")
        .iter()
        .map(|rule| {
            let text = rule["rule"].as_str().unwrap();
            Rule {
                message: rule["message"].as_str().expect("every rule has a message").to_owned(),
                program: Program::compile(text).unwrap(),
                transition: text.contains("oldSelf"),
            }
        })
        .collect();
    assert!(rules.len() >= 13, "only {} rules", rules.len());
    rules
}

/// The messages of the CRD's rules that refuse `spec` (as an update of `old`, if there is one).
pub fn refused(spec: &PodChaosSpec, old: Option<&PodChaosSpec>) -> Vec<String> {
    let mut context = Context::default();
    context.add_variable("self", spec).unwrap();
    if let Some(old) = old {
        context.add_variable("oldSelf", old).unwrap();
    }
    RULES.with(|rules| {
        let asked = rules.iter().filter(|rule| !rule.transition || old.is_some());
        // As for the API server, a rule that can't be evaluated refuses.
        asked
            .filter(|rule| rule.program.execute(&context) != Ok(Value::Bool(true)))
            .map(|rule| rule.message.clone())
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn what_the_crd_refuses_validation_refuses(spec in junk::spec(), old in junk::spec()) {
        let by_rule = refused(&spec, None);
        if !by_rule.is_empty() {
            prop_assert!(validate(&spec, "shop").is_err(), "only the CRD refuses: {by_rule:?}");
        }
        if validate(&spec, "shop").is_ok() {
            let changed = spec.action != old.action || spec.mode != old.mode;
            prop_assert_eq!(!refused(&spec, Some(&old)).is_empty(), changed);
            prop_assert!(!changed || validate_update(&old, &spec, "shop", false).is_err());
        }
    }

    /// The other way round, for the fields that the rules are about.
    #[test]
    fn what_validation_refuses_of_these_fields_the_crd_refuses(spec in junk::spec()) {
        if let Err(errors) = validate(&spec, "shop") {
            let about = |field: &str| {
                let owned = ["evict", "fast", "faultStyle", "processes", "allowTerminal", "remoteCluster", "value", "trigger"];
                owned.iter().any(|owned| field == format!("spec.{owned}"))
            };
            if errors.iter().any(|error| about(&error.field)) {
                prop_assert!(!refused(&spec, None).is_empty(), "only validation refuses: {errors:?}");
            }
        }
    }
}

fn exec() -> Trigger {
    Trigger { exec: Some("/bin/x".into()), ..Trigger::default() }
}

/// For each rule of the CRD: specs that break it, and it alone.
#[test]
fn every_rule_has_a_case_that_both_refuse() {
    let spec = |change: Change| {
        let mut spec = PodChaosSpec::default();
        change(&mut spec);
        spec
    };
    let cases: &[(&str, Change)] = &[
        ("value is required", |s| s.mode = Mode::Fixed),
        ("value is required", |s| {
            s.mode = Mode::FixedPercent;
            s.value = Some(String::new());
        }),
        ("value is required", |s| s.mode = Mode::RandomMaxPercent),
        ("value must be a whole number", |s| s.value = Some("3.5".into())),
        ("value must be a whole number", |s| {
            s.mode = Mode::Fixed;
            s.value = Some("-3".into());
        }),
        ("value must be a whole number", |s| {
            s.mode = Mode::FixedPercent;
            s.value = Some("50%".into());
        }),
        ("value must be a whole number", |s| s.value = Some("1234567890".into())),
        ("value must be 1 to 100", |s| {
            s.mode = Mode::FixedPercent;
            s.value = Some("101".into());
        }),
        ("value must be 1 to 100", |s| {
            s.mode = Mode::RandomMaxPercent;
            s.value = Some("0".into());
        }),
        ("value must be at least 1", |s| {
            s.mode = Mode::Fixed;
            s.value = Some("000".into());
        }),
        ("gracePeriod belongs", |s| {
            s.action = Action::PodFailure;
            s.grace_period = Some(5);
        }),
        ("evict belongs", |s| {
            s.action = Action::PodFailure;
            s.evict = Some(true);
        }),
        ("fast belongs", |s| s.fast = Some(true)),
        ("faultStyle belongs", |s| s.fault_style = Some(FaultStyle::Crash)),
        ("signal belongs", |s| s.signal = Some(IntOrString::Int(9))),
        ("processes belongs", |s| s.processes = Some(Processes::default())),
        ("trigger belongs", |s| s.trigger = Some(exec())),
        ("processes can't be together", |s| {
            s.action = Action::ContainerKill;
            s.trigger = Some(exec());
            s.processes = Some(Processes::default());
        }),
        ("trigger needs exactly one", |s| {
            s.action = Action::ContainerKill;
            s.trigger = Some(Trigger { syscall: Some("fsync".into()), ..exec() });
        }),
        ("trigger needs exactly one", |s| {
            s.action = Action::ContainerKill;
            s.trigger = Some(Trigger::default());
        }),
        ("nth belongs", |s| {
            s.action = Action::ContainerKill;
            s.trigger = Some(Trigger { nth: Some(2), ..exec() });
        }),
        ("allowTerminal belongs", |s| s.allow_terminal = Some(true)),
        ("remoteCluster is not supported", |s| s.remote_cluster = Some("other".into())),
    ];
    let mut covered = BTreeSet::new();
    for (message, change) in cases {
        let spec = spec(*change);
        let by_rule = refused(&spec, None);
        assert!(by_rule.len() == 1 && by_rule[0].starts_with(message), "{message}: {by_rule:?}");
        assert!(validate(&spec, "shop").is_err(), "{message}");
        covered.extend(by_rule);
    }
    let (old, new) = (spec(|_| {}), spec(|s| s.mode = Mode::All));
    let by_rule = refused(&new, Some(&old));
    assert_eq!(by_rule, ["action and mode can't be changed: make another experiment instead"]);
    assert!(validate_update(&old, &new, "shop", false).is_err());
    covered.extend(by_rule);
    let all: BTreeSet<String> = RULES.with(|rules| rules.iter().map(|rule| rule.message.clone()).collect());
    assert_eq!(covered, all, "a rule without a case: add one");
}
