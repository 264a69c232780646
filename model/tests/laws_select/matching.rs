//! The selector: its parts, its birth, its narrowing.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use rstest::rstest;
use squall_api::podchaos::PodSelector;
use squall_model::pod::PodView;
use squall_model::select::AtBirth;
use squall_model::validate::validate_update;

use crate::pods::{SomeNodes, newborn, nodes, pod};
use crate::world::{OWN, expression, labels, parsed, selector, with};

/// Change one part of a selector: most of these narrow it, some widen it, some do neither.
fn changed() -> impl Strategy<Value = (PodSelector, PodSelector)> {
    let other = (selector(), labels(), expression(), any::<Index>());
    (selector(), other, 0_usize..12).prop_map(|(old, (other, more, expression, index), which)| {
        let mut new = old.clone();
        let shorten = |list: &mut Vec<String>| {
            if !list.is_empty() {
                list.remove(index.index(list.len()));
            }
        };
        match which {
            0 => shorten(&mut new.namespaces),
            1 => new.label_selectors.extend(more),
            2 => new.expression_selectors.push(expression),
            3 => new.annotation_selectors.extend(more),
            4 => new.field_selectors.extend(other.field_selectors),
            5 => shorten(&mut new.nodes),
            6 => new.node_selectors.extend(more),
            7 => shorten(&mut new.pod_phase_selectors),
            8 => {
                new.pods.retain(|_, names| {
                    shorten(names);
                    !names.is_empty()
                });
            }
            9 => new.nodes = other.nodes,
            10 => new.pods = other.pods,
            _ => new = other,
        }
        (old, new)
    })
}

proptest! {
    #[test]
    fn what_is_accepted_as_narrowed_selects_a_subset(
        (old, new) in changed(),
        pods in vec(pod(), 1..20),
        nodes in nodes(),
    ) {
        if validate_update(&with(old.clone()), &with(new.clone()), OWN, true).is_ok() {
            let (old, new) = (parsed(&old), parsed(&new));
            for pod in &pods {
                prop_assert!(!new.matches(pod, &nodes) || old.matches(pod, &nodes), "{pod:?}");
            }
        }
    }

    #[test]
    fn asking_for_more_is_always_a_narrowing(
        old in selector(),
        more in (labels(), vec(expression(), 0..2), labels()),
    ) {
        let (more_labels, expressions, annotations) = more;
        let mut new = old.clone();
        for (key, value) in more_labels {
            new.label_selectors.entry(key).or_insert(value);
        }
        new.expression_selectors.extend(expressions);
        for (key, value) in annotations {
            new.annotation_selectors.entry(key).or_insert(value);
        }
        prop_assert_eq!(validate_update(&with(old.clone()), &with(new), OWN, true), Ok(()));
        prop_assert_eq!(validate_update(&with(old.clone()), &with(old), OWN, true), Ok(()));
    }

    #[test]
    fn birth_foretells_what_is_selected_later(
        selector in selector(),
        pod in pod(),
        nodes in nodes(),
        generated_name: bool,
    ) {
        let selector = parsed(&selector);
        match selector.at_birth(&newborn(&pod, generated_name)) {
            AtBirth::Yes => prop_assert!(selector.matches(&pod, &nodes)),
            AtBirth::No => prop_assert!(!selector.matches(&pod, &nodes)),
            AtBirth::Unknown => {}
        }
    }

    #[test]
    fn the_parts_are_anded_and_pods_overrides_them(written in selector(), pod in pod(), nodes in nodes()) {
        let whole = parsed(&written).matches(&pod, &nodes);
        if let Some(names) = parsed(&written).names_in(&pod.namespace) {
            prop_assert_eq!(whole, names.contains(&pod.name));
        }
        if written.pods.is_empty() {
            let only = |part: fn(&PodSelector, &mut PodSelector)| {
                let mut only = PodSelector { namespaces: written.namespaces.clone(), ..PodSelector::default() };
                part(&written, &mut only);
                parsed(&only).matches(&pod, &nodes)
            };
            let parts = [
                only(|all, one| one.label_selectors = all.label_selectors.clone()),
                only(|all, one| one.expression_selectors = all.expression_selectors.clone()),
                only(|all, one| one.annotation_selectors = all.annotation_selectors.clone()),
                only(|all, one| one.field_selectors = all.field_selectors.clone()),
                only(|all, one| one.pod_phase_selectors = all.pod_phase_selectors.clone()),
            ];
            let by_name = only(|all, one| one.nodes = all.nodes.clone());
            let by_label = only(|all, one| one.node_selectors = all.node_selectors.clone());
            let on_node = match (written.nodes.is_empty(), written.node_selectors.is_empty()) {
                (false, false) => by_name || by_label,
                _ => by_name && by_label,
            };
            prop_assert_eq!(whole, parts.into_iter().all(|part| part) && on_node);
        }
    }

    #[test]
    fn a_selection_of_nothing_is_explained(selector in selector(), pods in vec(pod(), 0..10), nodes in nodes()) {
        let selector = parsed(&selector);
        let none = !pods.iter().any(|pod| selector.matches(pod, &nodes));
        let why = selector.explain_nothing(pods.iter(), &nodes);
        prop_assert_eq!(none, !why.starts_with("the selector matches"), "{}", why);
    }
}

/// Every expression over two keys and three values, and every pod that they can tell apart (a fourth value
/// stands for all others): one may replace another exactly where it selects no more.
#[test]
fn expressions_narrow_exactly_where_they_select_a_subset() {
    let nodes = SomeNodes::default();
    let values = [None, Some("v1"), Some("v2"), Some("v3"), Some("v4")];
    let pods: Vec<PodView> = values
        .iter()
        .flat_map(|one| values.iter().map(move |two| [("k1", one), ("k2", two)]))
        .map(|labels| {
            let there: Vec<(&str, &str)> =
                labels.iter().filter_map(|(key, value)| value.map(|value| (*key, value))).collect();
            pod_with(&there)
        })
        .collect();
    let mut expressions = Vec::new();
    for key in ["k1", "k2"] {
        for operator in ["Exists", "DoesNotExist"] {
            expressions.push(requirement(key, operator, &[]));
        }
        for which in 1..8 {
            let values: Vec<&str> =
                (0..3).filter(|bit| which & (1 << bit) != 0).map(|bit| ["v1", "v2", "v3"][bit]).collect();
            expressions.push(requirement(key, "In", &values));
            expressions.push(requirement(key, "NotIn", &values));
        }
    }
    let by_expression = |one: &LabelSelectorRequirement| PodSelector {
        expression_selectors: vec![one.clone()],
        ..PodSelector::default()
    };
    let by_label = values.iter().flatten().map(|value| PodSelector {
        label_selectors: BTreeMap::from([("k1".to_owned(), (*value).to_owned())]),
        ..PodSelector::default()
    });
    let new: Vec<PodSelector> = expressions.iter().map(by_expression).chain(by_label).collect();
    let selected = |selector: &PodSelector| -> Vec<bool> {
        let selector = parsed(selector);
        pods.iter().map(|pod| selector.matches(pod, &nodes)).collect()
    };
    let mut narrowed = 0;
    for old in expressions.iter().map(by_expression) {
        let before = selected(&old);
        for new in &new {
            let subset = selected(new).iter().zip(&before).all(|(new, old)| *old || !new);
            let accepted = validate_update(&with(old.clone()), &with(new.clone()), OWN, true).is_ok();
            assert_eq!(accepted, subset, "from {old:?} to {new:?}");
            narrowed += usize::from(accepted);
        }
    }
    assert!(narrowed > 100, "{narrowed}");
}

#[test]
fn what_the_newborn_does_not_have_yet_is_unknown() {
    let fields = |field: &str, value: &str| {
        let field_selectors = BTreeMap::from([(field.to_owned(), value.to_owned())]);
        parsed(&PodSelector { field_selectors, ..PodSelector::default() })
    };
    let unnamed = PodView { name: String::new(), ..pod_with(&[]) };
    assert_eq!(fields("metadata.name", "web-1").at_birth(&unnamed), AtBirth::Unknown);
    assert_eq!(fields("metadata.name", "web-1").at_birth(&pod_with(&[])), AtBirth::Yes);
    assert_eq!(fields("metadata.name", "web-2").at_birth(&pod_with(&[])), AtBirth::No);
    // The ServiceAccount may be filled in by a plugin that comes later.
    assert_eq!(fields("spec.serviceAccountName", "default").at_birth(&pod_with(&[])), AtBirth::Unknown);
    assert_eq!(fields("spec.nodeName", "n1").at_birth(&pod_with(&[])), AtBirth::Unknown);
    assert_eq!(fields("status.phase", "Pending").at_birth(&pod_with(&[])), AtBirth::Unknown);
    let by_name = BTreeMap::from([(OWN.to_owned(), vec!["web-1".to_owned()])]);
    let by_name = parsed(&PodSelector { pods: by_name, ..PodSelector::default() });
    assert_eq!(by_name.at_birth(&unnamed), AtBirth::Unknown);
    assert_eq!(by_name.at_birth(&pod_with(&[])), AtBirth::Yes);
}

fn requirement(key: &str, operator: &str, values: &[&str]) -> LabelSelectorRequirement {
    LabelSelectorRequirement {
        key: key.to_owned(),
        operator: operator.to_owned(),
        values: Some(values.iter().map(|value| (*value).to_owned()).collect()),
    }
}

fn pod_with(labels: &[(&str, &str)]) -> PodView {
    let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    PodView {
        namespace: OWN.to_owned(),
        name: "web-1".to_owned(),
        labels: labels.collect(),
        ..PodView::default()
    }
}

/// The rules of Kubernetes, an absent key among them.
#[rstest]
#[case("In", &["v1"], true, false, false)]
#[case("NotIn", &["v1"], false, true, true)]
#[case("Exists", &[], true, true, false)]
#[case("DoesNotExist", &[], false, false, true)]
fn expressions(
    #[case] operator: &str,
    #[case] values: &[&str],
    #[case] with_v1: bool,
    #[case] with_v2: bool,
    #[case] without: bool,
) {
    let requirement = requirement("k1", operator, values);
    let selector = parsed(&PodSelector { expression_selectors: vec![requirement], ..PodSelector::default() });
    let nodes = SomeNodes::default();
    assert_eq!(selector.matches(&pod_with(&[("k1", "v1")]), &nodes), with_v1);
    assert_eq!(selector.matches(&pod_with(&[("k1", "v2")]), &nodes), with_v2);
    assert_eq!(selector.matches(&pod_with(&[("k2", "v1")]), &nodes), without);
}

#[test]
fn the_explanation_names_the_first_field_that_left_nothing() {
    let pods = [pod_with(&[("app", "db")]), pod_with(&[("app", "web")])];
    let labels = |value: &str| BTreeMap::from([("app".to_owned(), value.to_owned())]);
    let explain =
        |selector: PodSelector| parsed(&selector).explain_nothing(pods.iter(), &SomeNodes::default());
    assert_eq!(
        explain(PodSelector { label_selectors: labels("cache"), ..PodSelector::default() }),
        "selector.labelSelectors (app=cache) left none of 2 pods"
    );
    assert_eq!(
        explain(PodSelector {
            label_selectors: labels("web"),
            pod_phase_selectors: vec!["Running".into()],
            ..PodSelector::default()
        }),
        "selector.podPhaseSelectors (Running) left none of 1 pod"
    );
    assert_eq!(
        explain(PodSelector { namespaces: vec!["b".into()], ..PodSelector::default() }),
        "there is no pod in b"
    );
    let by_name = BTreeMap::from([(OWN.to_owned(), vec!["x".to_owned()])]);
    assert_eq!(
        explain(PodSelector { pods: by_name, ..PodSelector::default() }),
        "none of the pods in selector.pods exists: a/x"
    );
}
