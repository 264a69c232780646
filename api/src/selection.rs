//! Which pods, and how many of them: the part of a spec that all kinds of experiments have alike.
//!
//! Field names follow Chaos Mesh's. What a field means is decided in `squall-model`.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How many of the selected pods are hit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// One, drawn at random.
    #[default]
    One,
    /// Every one.
    All,
    /// As many as `value` says, or all when there are fewer.
    Fixed,
    /// `value` percent, rounded up.
    FixedPercent,
    /// A random percentage up to `value`.
    RandomMaxPercent,
}

/// Which pods. An empty selector selects every pod of the experiment's own namespace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodSelector {
    /// In which namespaces. At most 100. Unset: the experiment's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100))]
    pub namespaces: Vec<String>,
    /// Labels that the pod has.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub label_selectors: BTreeMap<String, String>,
    /// Requirements on the pod's labels, as in a Deployment's `matchExpressions`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100))]
    pub expression_selectors: Vec<LabelSelectorRequirement>,
    /// Annotations that the pod has.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotation_selectors: BTreeMap<String, String>,
    /// Fields of the pod: `metadata.name`, `metadata.namespace`, `spec.nodeName`, `spec.restartPolicy`,
    /// `spec.schedulerName`, `spec.serviceAccountName`, `status.phase`, `status.podIP`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub field_selectors: BTreeMap<String, String>,
    /// Names of nodes on which the pod runs; a union with `nodeSelectors`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 5000))]
    pub nodes: Vec<String>,
    /// Labels of the node on which the pod runs; a union with `nodes`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selectors: BTreeMap<String, String>,
    /// Pods by namespace and name; overrides all other fields.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub pods: BTreeMap<String, Vec<String>>,
    /// Phases of the pod: `Pending`, `Running`, `Succeeded`, `Failed`, `Unknown`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 5))]
    pub pod_phase_selectors: Vec<String>,
}
