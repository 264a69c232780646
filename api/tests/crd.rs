//! The CRDs as they are checked in: what `kubectl get`, `kubectl explain` and the API server make of an experiment.
//!
//! That it is up to date is compared in `xtask`; what its rules refuse is evaluated in the tests of `model`.

use std::path::Path;

use serde_json::Value;
use squall_api::podchaos::{PodChaosSpec, PodSelector};
use squall_api::{PodChaos, StressChaosSpec, names};

/// The kinds of experiments, with their plural and short name.
const KINDS: [(&str, &str, &str); 2] =
    [("PodChaos", "podchaos", "pch"), ("StressChaos", "stresschaos", "sch")];

fn crd(plural: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../deploy/crds/{plural}.yaml"));
    let text = std::fs::read_to_string(&path).expect("the CRD is there: run `cargo xtask gen`");
    serde_saphyr::from_str(&text).expect("it is YAML")
}

fn version(plural: &str) -> Value {
    let versions = crd(plural)["spec"]["versions"].clone();
    assert_eq!(versions.as_array().map(Vec::len), Some(1));
    versions[0].clone()
}

fn schema(plural: &str, path: &[&str]) -> Value {
    path.iter().fold(version(plural)["schema"]["openAPIV3Schema"].clone(), |schema, field| {
        let field = &schema["properties"][field];
        assert!(field.is_object(), "{path:?} is in the schema");
        field.clone()
    })
}

#[test]
fn it_is_ours_by_every_name() {
    for (kind, plural, short) in KINDS {
        let crd = crd(plural);
        assert_eq!(crd["metadata"]["name"], format!("{plural}.squall.dev"));
        let spec = &crd["spec"];
        assert_eq!(spec["group"], names::GROUP);
        assert_eq!(spec["scope"], "Namespaced");
        assert_eq!(spec["names"]["kind"], kind);
        assert_eq!(spec["names"]["plural"], plural);
        assert_eq!(spec["names"]["singular"], plural);
        assert_eq!(spec["names"]["shortNames"], serde_json::json!([short]));
        assert_eq!(spec["names"]["categories"], serde_json::json!(["squall"]));
        let version = version(plural);
        assert_eq!(version["name"], names::VERSION);
        assert_eq!((&version["served"], &version["storage"]), (&Value::Bool(true), &Value::Bool(true)));
    }
}

#[test]
fn status_is_a_subresource() {
    for (_, plural, _) in KINDS {
        assert!(version(plural)["subresources"]["status"].is_object());
    }
}

#[test]
fn kubectl_get_prints_what_matters() {
    let columns = |plural: &str| -> Vec<(String, String, String)> {
        let version = version(plural);
        let columns = version["additionalPrinterColumns"].as_array().unwrap().iter();
        columns
            .map(|column| {
                let text = |key: &str| column[key].as_str().unwrap().to_owned();
                let wide = if column["priority"] == 1 { " (wide)" } else { "" };
                (text("name") + wide, text("type"), text("jsonPath"))
            })
            .collect()
    };
    let own = |expected: &[(&str, &str, &str)]| -> Vec<(String, String, String)> {
        let owned = |(name, kind, path): &(&str, &str, &str)| {
            ((*name).to_owned(), (*kind).to_owned(), (*path).to_owned())
        };
        expected.iter().map(owned).collect()
    };
    let expected = [
        ("Action", "string", ".spec.action"),
        ("Mode", "string", ".spec.mode"),
        ("Phase", "string", ".status.phase"),
        ("Targets", "string", ".status.summary"),
        ("Age", "date", ".metadata.creationTimestamp"),
        ("Message (wide)", "string", ".status.message"),
    ];
    assert_eq!(columns("podchaos"), own(&expected));
    let expected = [
        ("Stressors", "string", ".status.stressors"),
        ("Mode (wide)", "string", ".spec.mode"),
        ("Phase", "string", ".status.phase"),
        ("Targets", "string", ".status.summary"),
        ("Effect", "string", ".status.effect"),
        ("Age", "date", ".metadata.creationTimestamp"),
        ("Message (wide)", "string", ".status.message"),
    ];
    assert_eq!(columns("stresschaos"), own(&expected));
    // A path that leads nowhere prints an empty column for ever.
    for (_, plural, _) in KINDS {
        for (name, _, path) in columns(plural) {
            if let [_, root @ ("spec" | "status"), field] = path.split('.').collect::<Vec<_>>()[..] {
                assert!(schema(plural, &[root])["properties"][field].is_object(), "column {name}: {path}");
            }
        }
    }
}

#[test]
fn every_rule_says_what_to_do() {
    for (plural, fewest) in [("podchaos", 13), ("stresschaos", 10)] {
        rules_say_what_to_do(plural, fewest);
    }
}

fn rules_say_what_to_do(plural: &str, fewest: usize) {
    let spec = schema(plural, &["spec"]);
    let rules = spec["x-kubernetes-validations"].as_array().unwrap();
    assert!(rules.len() >= fewest, "only {} rules", rules.len());
    for rule in rules {
        let text = rule["rule"].as_str().unwrap();
        assert!(rule["message"].as_str().is_some_and(|message| !message.is_empty()), "{text}");
        // A rule that names a field that isn't there would refuse everything.
        for (at, _) in text.match_indices("elf.") {
            let field: String = text[at + 4..].chars().take_while(char::is_ascii_alphanumeric).collect();
            assert!(spec["properties"][&field].is_object(), "{text}: there is no {field}");
        }
        if let Some(path) = rule["fieldPath"].as_str() {
            assert!(spec["properties"][path.trim_start_matches('.')].is_object(), "{path}");
        }
    }
}

#[test]
fn the_schema_bounds_what_it_can() {
    let spec = schema("podchaos", &["spec"]);
    let required: Vec<&str> = spec["required"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert_eq!(required, ["action", "mode"]);
    assert_eq!(
        spec["properties"]["action"]["enum"],
        serde_json::json!(["pod-kill", "pod-failure", "container-kill", "container-freeze"])
    );
    let modes = serde_json::json!(["one", "all", "fixed", "fixed-percent", "random-max-percent"]);
    assert_eq!(spec["properties"]["mode"]["enum"], modes);
    let grace = &spec["properties"]["gracePeriod"];
    assert_eq!((grace["minimum"].as_f64(), grace["maximum"].as_f64()), (Some(0.0), Some(86_400.0)));
    assert_eq!(spec["properties"]["signal"]["x-kubernetes-int-or-string"], true);
    for (field, schema) in spec["properties"]["selector"]["properties"].as_object().unwrap() {
        if schema["type"] == "array" {
            assert!(schema["maxItems"].is_u64(), "selector.{field} has no maxItems");
        }
    }
    // As many as admission asks the API server about (`webhook/src/experiments.rs`).
    assert_eq!(spec["properties"]["selector"]["properties"]["namespaces"]["maxItems"], 100);
}

/// The help of `kubectl explain` comes from here.
#[test]
fn every_field_is_explained() {
    fn explained(path: &str, schema: &Value) {
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            // The object's own top level is explained by Kubernetes.
            let top = [".apiVersion", ".kind", ".metadata"].contains(&path.as_str());
            assert!(
                top || field["description"].as_str().is_some_and(|text| text.len() > 3),
                "{path} says nothing"
            );
            explained(&path, field);
            explained(&path, &field["items"]);
        }
    }
    for (_, plural, _) in KINDS {
        let schema = version(plural)["schema"]["openAPIV3Schema"].clone();
        assert!(schema["properties"]["spec"].is_object());
        explained("", &schema);
    }
}

/// Of an optional enum the schema has the enum's text, not the field's; and in a terminal a link of rustdoc leads
/// nowhere.
#[test]
fn the_help_is_that_of_the_field_and_for_people() {
    fn descriptions(path: &str, schema: &Value, see: &mut impl FnMut(&str, &str)) {
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            see(&path, field["description"].as_str().unwrap_or_default());
            descriptions(&path, field, see);
            for inner in ["items", "additionalProperties"] {
                descriptions(&path, &field[inner], see);
            }
        }
    }
    let mut unset = Vec::new();
    for plural in ["podchaos", "stresschaos", "schedule", "chaospolicy"] {
        let schema = version(plural)["schema"]["openAPIV3Schema"].clone();
        descriptions(plural, &schema, &mut |path, text| {
            assert!(!text.contains("[`"), "{path}: {text}");
            let field = path.rsplit('.').next().unwrap_or_default();
            if ["faultStyle", "onHalt", "onOOM", "concurrencyPolicy"].contains(&field) {
                assert!(text.contains("Unset: "), "{path} does not say what unset means: {text}");
                unset.push(field.to_owned());
            }
        });
    }
    unset.sort_unstable();
    unset.dedup();
    assert_eq!(unset, ["concurrencyPolicy", "faultStyle", "onHalt", "onOOM"]);
}

/// Structural: every node has a type, and nothing unknown is kept.
#[test]
fn the_schema_is_structural() {
    fn structural(path: &str, schema: &Value) {
        let typed = schema["type"].is_string() || schema["x-kubernetes-int-or-string"] == true;
        assert!(typed, "{path} has no type");
        assert!(schema["x-kubernetes-preserve-unknown-fields"].is_null(), "{path} keeps unknown fields");
        assert!(schema["$ref"].is_null(), "{path} refers elsewhere");
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            structural(&format!("{path}.{name}"), field);
        }
        for inner in ["items", "additionalProperties"] {
            if schema[inner].is_object() {
                structural(&format!("{path}.{inner}"), &schema[inner]);
            }
        }
    }
    for (kind, plural, _) in KINDS {
        structural(kind, &version(plural)["schema"]["openAPIV3Schema"]);
    }
}

/// What the code writes is in the schema (else the API server would drop it without a word), and the fields
/// have the names that Chaos Mesh's users know.
#[test]
fn the_fields_are_those_of_the_code() {
    let spec = schema("podchaos", &["spec"]);
    for field in
        ["containerNames", "gracePeriod", "duration", "selector", "value", "action", "mode", "remoteCluster"]
    {
        assert!(spec["properties"][field].is_object(), "spec.{field}");
    }
    let selector = &spec["properties"]["selector"];
    let fields: Vec<&str> = selector["properties"].as_object().unwrap().keys().map(String::as_str).collect();
    let mut expected = [
        "annotationSelectors",
        "expressionSelectors",
        "fieldSelectors",
        "labelSelectors",
        "namespaces",
        "nodeSelectors",
        "nodes",
        "podPhaseSelectors",
        "pods",
    ];
    expected.sort_unstable();
    let mut fields = fields;
    fields.sort_unstable();
    assert_eq!(fields, expected);
}

/// A manifest of Chaos Mesh, with nothing changed but its `apiVersion`.
#[test]
fn a_stresschaos_of_chaos_mesh_is_understood() {
    let written = serde_json::json!({
        "mode": "one",
        "selector": {"labelSelectors": {"app": "web"}},
        "stressors": {
            "cpu": {"workers": 2, "load": 50, "options": ["--cpu 2", "--hdd 1"]},
            "memory": {"workers": 4, "size": "256MB", "oomScoreAdj": 100, "options": [""]},
        },
        "containerNames": ["app"],
        "duration": "30s",
    });
    let spec: StressChaosSpec = serde_json::from_value(written.clone()).unwrap();
    assert_eq!(serde_json::to_value(&spec).unwrap(), written);
    let known = schema("stresschaos", &["spec"]);
    for field in ["stressngStressors", "remoteCluster", "value", "squeeze", "allowOOM", "onOOM"] {
        assert!(known["properties"][field].is_object(), "spec.{field}");
    }
}

#[test]
fn an_object_survives_the_wire() {
    let selector = PodSelector { namespaces: vec!["shop".to_owned()], ..PodSelector::default() };
    let spec = PodChaosSpec { selector, duration: Some("30s".to_owned()), ..PodChaosSpec::default() };
    let experiment = PodChaos::new("kill", spec);
    let wire = serde_json::to_value(&experiment).unwrap();
    assert_eq!(wire["apiVersion"], format!("{}/{}", names::GROUP, names::VERSION));
    // What is unset is not sent: a server-side apply would own it.
    let spec = serde_json::json!({
        "action": "pod-kill", "mode": "one", "duration": "30s", "selector": {"namespaces": ["shop"]},
    });
    assert_eq!(wire["spec"], spec);
    assert_eq!(serde_json::from_value::<PodChaos>(wire).unwrap(), experiment);
}
