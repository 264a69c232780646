//! StressChaos: each error names its field, the CRD's rules and validation agree, Chaos Mesh's manifests are understood,
//! and what may change meanwhile.

use std::collections::BTreeSet;

use cel::{Context, Program, Value};
use kube::CustomResourceExt as _;
use rstest::rstest;
use serde_json::json;
use squall_api::{StressChaos, StressChaosSpec};
use squall_model::experiment::ExperimentSpec as _;
use squall_model::spec::Action;
use squall_model::stress::{Cpu, Size};
use squall_model::validate::{defaults, validate, validate_update, warnings};

/// A valid spec with `parts` put in, and what is `null` in it taken out.
fn spec(parts: serde_json::Value) -> StressChaosSpec {
    let mut spec = json!({"mode": "one", "stressors": {"cpu": {"workers": 1, "load": 50}}});
    merge(&mut spec, &parts);
    serde_json::from_value(spec).unwrap()
}

fn merge(into: &mut serde_json::Value, parts: &serde_json::Value) {
    match (into, parts) {
        (serde_json::Value::Object(into), serde_json::Value::Object(parts)) => {
            for (key, part) in parts {
                if part.is_null() {
                    into.remove(key);
                } else {
                    merge(into.entry(key).or_insert(serde_json::Value::Null), part);
                }
            }
        }
        (into, part) => *into = part.clone(),
    }
}

#[rstest]
#[case(json!({"stressors": {"cpu": {"workers": 0}}}), "spec.stressors.cpu.workers")]
#[case(json!({"stressors": {"cpu": {"workers": 1025}}}), "spec.stressors.cpu.workers")]
#[case(json!({"stressors": {"cpu": {"load": 0}}}), "spec.stressors.cpu.load")]
#[case(json!({"stressors": {"cpu": {"load": 101}}}), "spec.stressors.cpu.load")]
#[case(json!({"stressors": {"memory": {"workers": 0, "size": "1Mi"}}}), "spec.stressors.memory.workers")]
#[case(json!({"stressors": {"memory": {"workers": 1, "size": "much"}}}), "spec.stressors.memory.size")]
#[case(json!({"stressors": {"memory": {"workers": 1, "size": "0%"}}}), "spec.stressors.memory.size")]
#[case(json!({"stressors": {"memory": {"workers": 1, "size": "50.5%"}}}), "spec.stressors.memory.size")]
#[case(json!({"stressors": {"memory": {"workers": 1, "size": "150%"}}}), "spec.stressors.memory.size")]
#[case(json!({"stressors": {"memory": {"workers": 1, "size": "1Mi", "ramp": "soon"}}}), "spec.stressors.memory.ramp")]
#[case(json!({"stressors": {"memory": {"workers": 1, "size": "1Mi", "oomScoreAdj": 1001}}}), "spec.stressors.memory.oomScoreAdj")]
#[case(json!({"stressors": {"io": {"workers": 0, "size": "1Mi", "path": "/tmp"}}}), "spec.stressors.io.workers")]
#[case(json!({"stressors": {"io": {"workers": 1, "size": "0", "path": "/tmp"}}}), "spec.stressors.io.size")]
#[case(json!({"stressors": {"io": {"workers": 1, "size": "1Mi", "path": "tmp"}}}), "spec.stressors.io.path")]
#[case(json!({"stressors": {"pids": {"count": 0}}}), "spec.stressors.pids.count")]
#[case(json!({"squeeze": {"cpu": "fast"}}), "spec.squeeze.cpu")]
#[case(json!({"squeeze": {"cpu": 0}}), "spec.squeeze.cpu")]
#[case(json!({"squeeze": {"memory": "-64Mi"}}), "spec.squeeze.memory")]
#[case(json!({"squeeze": {"pids": 5, "memoryHard": true}}), "spec.squeeze.memoryHard")]
#[case(json!({"squeeze": {"pids": 0}}), "spec.squeeze.pids")]
#[case(json!({"squeeze": {"io": {"device": "sda", "readBps": "1Mi"}}}), "spec.squeeze.io.device")]
#[case(json!({"squeeze": {"io": {"device": "8:0"}}}), "spec.squeeze.io")]
#[case(json!({"squeeze": {"io": {"device": "8:0", "readBps": "x"}}}), "spec.squeeze.io.readBps")]
#[case(json!({"squeeze": {"io": {"device": "8:0", "writeIops": 0}}}), "spec.squeeze.io.writeIops")]
#[case(json!({"stressors": null}), "spec")]
#[case(json!({"stressors": {"cpu": null}, "squeeze": {}}), "spec")]
#[case(json!({"allowOOM": true}), "spec.allowOOM")]
#[case(json!({"onOOM": "restart"}), "spec.onOOM")]
#[case(json!({"stressngStressors": "--cpu 1"}), "spec.stressngStressors")]
#[case(json!({"remoteCluster": "other"}), "spec.remoteCluster")]
#[case(json!({"mode": "fixed"}), "spec.value")]
#[case(json!({"duration": "1d"}), "spec.duration")]
#[case(json!({"containerNames": ["a b"]}), "spec.containerNames[0]")]
fn each_error_names_its_field(#[case] parts: serde_json::Value, #[case] field: &str) {
    let errors = validate(&spec(parts), "shop").unwrap_err();
    let fields: Vec<&str> = errors.iter().map(|error| error.field.as_str()).collect();
    assert_eq!(fields, [field]);
    assert!(errors.iter().all(|error| !error.allowed.is_empty()));
}

#[test]
fn a_manifest_of_chaos_mesh_is_valid_and_what_is_ignored_is_said() {
    let written = json!({
        "mode": "one",
        "selector": {"labelSelectors": {"app": "app1"}},
        "stressors": {
            "cpu": {"workers": 1, "options": ["--cpu 2", "--timeout 600", "--hdd 1"]},
            "memory": {"workers": 4, "size": "256MB", "oomScoreAdj": -1000},
        },
    });
    let mut spec: StressChaosSpec = serde_json::from_value(written).unwrap();
    let before = validate(&spec, "shop");
    assert_eq!(refused(&spec, None), Vec::<String>::new());
    defaults(&mut spec);
    let parsed = validate(&spec, "shop").unwrap();
    assert_eq!(before.as_ref(), Ok(&parsed), "defaults change no meaning");
    let Action::Stress(stress) = &parsed.action else { panic!("{parsed:?}") };
    assert_eq!(stress.cpu, Some(Cpu { workers: 1, load: 100 }));
    assert_eq!(stress.memory.map(|memory| memory.size), Some(Size::Bytes(256_000_000)));
    let ignored = spec.ignored();
    assert!(
        ignored.len() == 1 && ignored[0].starts_with("spec.stressors.cpu.options is ignored"),
        "{ignored:?}"
    );
    assert!(warnings(&parsed).iter().any(|warning| warning.starts_with("spec.duration is unset")));
}

#[test]
fn once_targets_are_chosen_only_time_and_a_narrower_selection_may_change() {
    let old = spec(json!({"selector": {"labelSelectors": {"app": "web"}}}));
    let update = |parts: serde_json::Value, active| {
        let mut written = serde_json::to_value(&old).unwrap();
        merge(&mut written, &parts);
        let new: StressChaosSpec = serde_json::from_value(written).unwrap();
        let errors = validate_update(&old, &new, "shop", active).err().unwrap_or_default();
        errors.into_iter().map(|error| error.field).collect::<Vec<_>>()
    };
    for free in [json!({"duration": "5m"}), json!({"selector": {"labelSelectors": {"tier": "front"}}})] {
        assert_eq!(update(free.clone(), true), Vec::<String>::new(), "{free}");
    }
    for (fixed, field) in [
        (json!({"stressors": {"cpu": {"load": 60}}}), "spec.stressors"),
        (json!({"squeeze": {"cpu": "1"}}), "spec.squeeze"),
        (json!({"containerNames": ["app"]}), "spec.containerNames"),
        (json!({"seed": 1}), "spec.seed"),
        (json!({"selector": {"labelSelectors": {"app": null}}}), "spec.selector.labelSelectors"),
    ] {
        assert_eq!(update(fixed.clone(), true), [field], "{fixed}");
        assert_eq!(update(fixed, false), Vec::<String>::new());
    }
    assert_eq!(update(json!({"mode": "all"}), false), ["spec.mode"]);
}

/// The messages of the CRD's rules that refuse `spec`, as an update of `old` if there is one.
fn refused(spec: &StressChaosSpec, old: Option<&StressChaosSpec>) -> Vec<String> {
    let mut context = Context::default();
    context.add_variable("self", spec).unwrap();
    if let Some(old) = old {
        context.add_variable("oldSelf", old).unwrap();
    }
    let asked = rules().into_iter().filter(|(rule, _)| !rule.contains("oldSelf") || old.is_some());
    // As for the API server, a rule that can't be evaluated refuses.
    asked
        .filter(|(rule, _)| Program::compile(rule).unwrap().execute(&context) != Ok(Value::Bool(true)))
        .map(|(_, message)| message)
        .collect()
}

fn rules() -> Vec<(String, String)> {
    let crd = serde_json::to_value(StressChaos::crd()).unwrap();
    let rules = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["x-kubernetes-validations"];
    let text = |rule: &serde_json::Value, key: &str| rule[key].as_str().unwrap().to_owned();
    rules.as_array().unwrap().iter().map(|rule| (text(rule, "rule"), text(rule, "message"))).collect()
}

/// For each rule of the CRD: a spec that breaks it, and it alone, and that validation refuses too.
#[test]
fn every_rule_has_a_case_that_both_refuse() {
    let cases = [
        json!({"mode": "fixed"}),
        json!({"value": "3.5"}),
        json!({"mode": "fixed-percent", "value": "101"}),
        json!({"mode": "fixed", "value": "0"}),
        json!({"stressors": {"cpu": null}}),
        json!({"allowOOM": true}),
        json!({"onOOM": "stop"}),
        json!({"stressngStressors": "x"}),
        json!({"remoteCluster": "x"}),
    ];
    let mut covered = BTreeSet::new();
    for parts in cases {
        let spec = spec(parts.clone());
        let by_rule = refused(&spec, None);
        assert_eq!(by_rule.len(), 1, "{parts}: {by_rule:?}");
        assert!(validate(&spec, "shop").is_err(), "{parts}");
        covered.extend(by_rule);
    }
    let (old, new) = (spec(json!({})), spec(json!({"mode": "all"})));
    assert_eq!(refused(&old, None), Vec::<String>::new());
    covered.extend(refused(&new, Some(&old)));
    let all: BTreeSet<String> = rules().into_iter().map(|(_, message)| message).collect();
    assert_eq!(covered, all, "a rule without a case: add one");
}
