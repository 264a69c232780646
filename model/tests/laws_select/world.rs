//! Small worlds: so few names, labels and nodes that generated selectors often match generated pods.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use squall_api::podchaos::{PodChaosSpec, PodSelector};
use squall_model::select::Selector;
use squall_model::validate::validate;

/// The experiment's own namespace.
pub const OWN: &str = "a";

/// Labels (or annotations) of two keys and two values.
pub fn labels() -> impl Strategy<Value = BTreeMap<String, String>> {
    btree_map(
        select(vec!["k1".to_owned(), "k2".to_owned()]),
        select(vec!["v1".to_owned(), "v2".to_owned()]),
        0..=2,
    )
}

/// Some of `all`, in their order; often all or none.
pub fn some(all: &'static [&'static str]) -> impl Strategy<Value = Vec<String>> {
    let most = all.len();
    subsequence(all, 0..=most).prop_map(|list| list.into_iter().map(str::to_owned).collect())
}

/// A selector that is valid, with each part there in about a third of the cases.
pub fn selector() -> impl Strategy<Value = PodSelector> {
    let sparse = |weight: u32| proptest::bool::weighted(1.0 / f64::from(weight));
    let pods = btree_map(
        select(vec!["a".to_owned(), "b".to_owned()]),
        some(&["p0", "p1", "p2"]).prop_filter("names", |names| !names.is_empty()),
        1..=2,
    );
    let fields = prop_oneof![
        Just(("metadata.name", "p0")),
        Just(("metadata.namespace", "a")),
        Just(("spec.nodeName", "n1")),
        Just(("spec.restartPolicy", "Always")),
        Just(("status.phase", "Running")),
        Just(("status.podIP", "10.0.0.1")),
    ]
    .prop_map(|(field, value)| BTreeMap::from([(field.to_owned(), value.to_owned())]));
    let parts = (
        some(&["a", "b"]),
        labels(),
        vec(expression(), 0..3),
        labels(),
        fields,
        some(&["n1", "n2"]),
        labels(),
        pods,
        some(&["Pending", "Running"]),
    );
    (parts, proptest::array::uniform7(sparse(3)), sparse(8)).prop_map(|(parts, kept, by_name)| {
        let (namespaces, label_selectors, expression_selectors, annotation_selectors, field_selectors, ..) =
            &parts;
        let (.., nodes, node_selectors, pods, pod_phase_selectors) = &parts;
        fn keep<T: Clone + Default>(kept: bool, value: &T) -> T {
            if kept { value.clone() } else { T::default() }
        }
        PodSelector {
            namespaces: namespaces.clone(),
            label_selectors: keep(kept[0], label_selectors),
            expression_selectors: keep(kept[1], expression_selectors),
            annotation_selectors: keep(kept[2], annotation_selectors),
            field_selectors: keep(kept[3], field_selectors),
            nodes: keep(kept[4], nodes),
            node_selectors: keep(kept[5], node_selectors),
            pods: keep(by_name, pods),
            pod_phase_selectors: keep(kept[6], pod_phase_selectors),
        }
    })
}

/// One requirement on the labels.
pub fn expression() -> impl Strategy<Value = LabelSelectorRequirement> {
    let values = some(&["v1", "v2", "v3"]).prop_filter("values", |values| !values.is_empty());
    (select(vec!["k1", "k2"]), select(vec!["In", "NotIn", "Exists", "DoesNotExist"]), values).prop_map(
        |(key, operator, values)| LabelSelectorRequirement {
            key: key.to_owned(),
            operator: operator.to_owned(),
            values: operator.ends_with("In").then_some(values),
        },
    )
}

/// A spec with this selector, all else at its default.
pub fn with(selector: PodSelector) -> PodChaosSpec {
    PodChaosSpec { selector, ..PodChaosSpec::default() }
}

/// The selector parsed.
pub fn parsed(selector: &PodSelector) -> Selector {
    validate(&with(selector.clone()), OWN).expect("generated selectors are valid").selector
}
