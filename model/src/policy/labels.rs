//! A Kubernetes label selector, parsed once.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::error::FieldError;
use crate::selector::Expression;
use crate::selector::parse::{parse_label_map, parse_requirements};

/// A valid label selector. The empty one selects everything.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Labels {
    /// A list, for it is gone through for every pod.
    labels: Vec<(String, String)>,
    expressions: Vec<Expression>,
}

impl Labels {
    /// Parse the selector at `path`; every error at once.
    pub fn parse(path: &str, written: &LabelSelector, errors: &mut Vec<FieldError>) -> Self {
        let LabelSelector { match_labels, match_expressions } = written;
        let none = BTreeMap::new();
        Self {
            labels: parse_label_map(
                &format!("{path}.matchLabels"),
                match_labels.as_ref().unwrap_or(&none),
                errors,
            )
            .into_iter()
            .collect(),
            expressions: parse_requirements(
                &format!("{path}.matchExpressions"),
                match_expressions.as_deref().unwrap_or_default(),
                errors,
            ),
        }
    }

    /// Whether something with these labels is selected.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.expressions.iter().all(|expression| expression.matches(labels))
    }
}
