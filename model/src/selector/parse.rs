//! The selector as written → [`Selector`]: names and values by the rules of Kubernetes, every error by its field.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement;
use squall_api::names;
use squall_api::podchaos::PodSelector;

use super::{Expression, Field, PARTS, Part, Selector};
use crate::error::FieldError;
use crate::pod::{LAST_APPLIED, LONGEST_ANNOTATION};
use crate::syntax;

const PHASES: [&str; 5] = ["Pending", "Running", "Succeeded", "Failed", "Unknown"];

impl Selector {
    /// Parse the selector of an experiment in `own_namespace`; every error at once.
    pub(crate) fn parse(written: &PodSelector, own_namespace: &str) -> Result<Self, Vec<FieldError>> {
        // No `..`: a field that is added must be dealt with here.
        let PodSelector {
            namespaces,
            label_selectors,
            expression_selectors,
            annotation_selectors,
            field_selectors,
            nodes,
            node_selectors,
            pods,
            pod_phase_selectors,
        } = written;
        let mut errors = Vec::new();

        let mut selector = Self {
            namespaces: parse_list("namespaces", namespaces, namespace_name, &mut errors),
            pods: None,
            overridden: Vec::new(),
            labels: parse_labels("labelSelectors", label_selectors, &mut errors),
            expressions: parse_requirements(
                "spec.selector.expressionSelectors",
                expression_selectors,
                &mut errors,
            ),
            annotations: parse_annotations(annotation_selectors, &mut errors),
            fields: parse_fields(field_selectors, &mut errors),
            nodes: parse_list("nodes", nodes, syntax::dns_subdomain, &mut errors),
            node_labels: parse_labels("nodeSelectors", node_selectors, &mut errors),
            phases: parse_list("podPhaseSelectors", pod_phase_selectors, phase, &mut errors),
            only: None,
        };
        if !pods.is_empty() {
            let pods = parse_pods(pods, &mut errors);
            selector = Self {
                namespaces: pods.keys().cloned().collect(),
                pods: Some(pods),
                overridden: PARTS
                    .into_iter()
                    .filter(|part| selector.constrains(*part))
                    .flat_map(Part::fields)
                    .copied()
                    .collect(),
                ..Self::default()
            };
        } else if namespaces.is_empty() {
            if let Err(allowed) = namespace_name(own_namespace) {
                errors.push(FieldError::new("spec.selector.namespaces", own_namespace, allowed));
            }
            selector.namespaces.insert(own_namespace.to_owned());
        }
        if errors.is_empty() { Ok(selector) } else { Err(errors) }
    }
}

fn namespace_name(text: &str) -> Result<(), &'static str> {
    if names::is_protected_namespace(text) {
        return Err("this namespace is protected: no label can open it to faults; choose others");
    }
    syntax::dns_label(text)
}

fn phase(text: &str) -> Result<(), &'static str> {
    if PHASES.contains(&text) { Ok(()) } else { Err("use Pending, Running, Succeeded, Failed or Unknown") }
}

fn parse_list(
    field: &str,
    list: &[String],
    check: impl Fn(&str) -> Result<(), &'static str>,
    errors: &mut Vec<FieldError>,
) -> BTreeSet<String> {
    for (index, text) in list.iter().enumerate() {
        if let Err(allowed) = check(text) {
            errors.push(FieldError::new(format!("spec.selector.{field}[{index}]"), text, allowed));
        }
    }
    list.iter().cloned().collect()
}

fn parse_labels(
    field: &str,
    labels: &BTreeMap<String, String>,
    errors: &mut Vec<FieldError>,
) -> BTreeMap<String, String> {
    parse_label_map(&format!("spec.selector.{field}"), labels, errors)
}

/// Labels and their values at `path`.
pub(crate) fn parse_label_map(
    path: &str,
    labels: &BTreeMap<String, String>,
    errors: &mut Vec<FieldError>,
) -> BTreeMap<String, String> {
    for (key, value) in labels {
        if let Err(allowed) = syntax::label_key(key) {
            errors.push(FieldError::new(path, key, allowed));
        }
        if let Err(allowed) = syntax::label_value(value) {
            errors.push(FieldError::new(format!("{path}[{key}]"), value, allowed));
        }
    }
    labels.clone()
}

fn parse_annotations(
    annotations: &BTreeMap<String, String>,
    errors: &mut Vec<FieldError>,
) -> BTreeMap<String, String> {
    for (key, value) in annotations {
        if let Err(allowed) = syntax::label_key(key) {
            errors.push(FieldError::new("spec.selector.annotationSelectors", key, allowed));
        }
        let field = || format!("spec.selector.annotationSelectors[{key}]");
        if key == LAST_APPLIED {
            errors.push(FieldError::new(field(), "", "this annotation can't be selected by; choose another"));
        } else if value.len() > LONGEST_ANNOTATION {
            let found = format!("{} bytes", value.len());
            errors.push(FieldError::new(field(), found, "values of at most 1024 bytes can be selected by"));
        }
    }
    annotations.clone()
}

/// Requirements on labels, at `path`.
pub(crate) fn parse_requirements(
    path: &str,
    written: &[LabelSelectorRequirement],
    errors: &mut Vec<FieldError>,
) -> Vec<Expression> {
    let mut expressions = Vec::new();
    for (index, LabelSelectorRequirement { key, operator, values }) in written.iter().enumerate() {
        let path = format!("{path}[{index}]");
        if let Err(allowed) = syntax::label_key(key) {
            errors.push(FieldError::new(format!("{path}.key"), key, allowed));
        }
        let list = values.as_deref().unwrap_or_default();
        for (index, value) in list.iter().enumerate() {
            if let Err(allowed) = syntax::label_value(value) {
                errors.push(FieldError::new(format!("{path}.values[{index}]"), value, allowed));
            }
        }
        let set: BTreeSet<String> = list.iter().cloned().collect();
        let expression = match operator.as_str() {
            "In" => Expression::In(key.clone(), set),
            "NotIn" => Expression::NotIn(key.clone(), set),
            "Exists" => Expression::Exists(key.clone()),
            "DoesNotExist" => Expression::DoesNotExist(key.clone()),
            _ => {
                let allowed = "use In, NotIn, Exists or DoesNotExist";
                errors.push(FieldError::new(format!("{path}.operator"), operator, allowed));
                continue;
            }
        };
        let (wants_values, allowed) = match &expression {
            Expression::In(..) | Expression::NotIn(..) => (true, "In and NotIn need at least one value"),
            Expression::Exists(_) | Expression::DoesNotExist(_) => {
                (false, "Exists and DoesNotExist take no values")
            }
        };
        if wants_values == list.is_empty() {
            errors.push(FieldError::new(format!("{path}.values"), format!("[{}]", list.join(", ")), allowed));
        }
        expressions.push(expression);
    }
    expressions
}

fn parse_fields(written: &BTreeMap<String, String>, errors: &mut Vec<FieldError>) -> BTreeMap<Field, String> {
    let mut fields = BTreeMap::new();
    for (path, value) in written {
        match Field::ALL.into_iter().find(|field| field.path() == path) {
            Some(field) => {
                if field == Field::Phase
                    && let Err(allowed) = phase(value)
                {
                    let path = format!("spec.selector.fieldSelectors[{path}]");
                    errors.push(FieldError::new(path, value, allowed));
                }
                fields.insert(field, value.clone());
            }
            None => {
                let all: Vec<&str> = Field::ALL.into_iter().map(Field::path).collect();
                let allowed = format!("use one of {}", all.join(", "));
                errors.push(FieldError::new("spec.selector.fieldSelectors", path, allowed));
            }
        }
    }
    fields
}

fn parse_pods(
    written: &BTreeMap<String, Vec<String>>,
    errors: &mut Vec<FieldError>,
) -> BTreeMap<String, BTreeSet<String>> {
    for (namespace, names) in written {
        if let Err(allowed) = namespace_name(namespace) {
            errors.push(FieldError::new("spec.selector.pods", namespace, allowed));
        }
        if names.is_empty() {
            let path = format!("spec.selector.pods[{namespace}]");
            errors.push(FieldError::new(path, "[]", "name at least one pod, or leave the namespace out"));
        }
        for (index, name) in names.iter().enumerate() {
            if let Err(allowed) = syntax::dns_subdomain(name) {
                let path = format!("spec.selector.pods[{namespace}][{index}]");
                errors.push(FieldError::new(path, name, allowed));
            }
        }
    }
    written.iter().map(|(namespace, names)| (namespace.clone(), names.iter().cloned().collect())).collect()
}
