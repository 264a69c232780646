//! ChaosPolicy: what may be hit, how much, when and by whom; and what stops everything.
//!
//! Every policy whose `namespaceSelector` matches a namespace applies there, and the strictest wins. A field that is
//! unset does not restrict, an empty list allows nothing. Recovery never asks a policy.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::probe::Probe;

/// What may be hit in some namespaces, how much, when and by whom, and what stops everything there.
#[expect(clippy::duplicated_attributes, reason = "each printer column has a type and a path")]
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "squall.dev",
    version = "v1alpha1",
    kind = "ChaosPolicy",
    plural = "chaospolicies",
    singular = "chaospolicy",
    shortname = "cpol",
    category = "squall",
    status = "ChaosPolicyStatus",
    derive = "Default",
    derive = "PartialEq",
    printcolumn(name = "State", type_ = "string", json_path = ".status.state"),
    printcolumn(name = "Namespaces", type_ = "integer", json_path = ".status.usage.namespaces"),
    printcolumn(name = "Targets", type_ = "string", json_path = ".status.usage.summary"),
    printcolumn(name = "Experiments", type_ = "integer", json_path = ".status.usage.experiments"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.message", priority = 1)
)]
#[serde(rename_all = "camelCase")]
pub struct ChaosPolicySpec {
    /// The namespaces that this policy is for, by their labels. Unset or empty: every namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
    /// What may be asked for, and by whom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow: Option<Allow>,
    /// How much may be hit at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// When something may be hit; outside, nothing new is, and lasting faults are recovered. Unset: always.
    /// An empty list: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 50))]
    pub windows: Option<Vec<Window>>,
    /// Pods that are never hit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protect: Option<Protect>,
    /// What ends every experiment in these namespaces when it goes wrong, and keeps new ones from beginning.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    pub halt_when: Vec<Probe>,
    /// Stop everything in these namespaces, now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub halt: Option<Halt>,
}

/// What may be asked for, and by whom.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Allow {
    /// The actions that are allowed. Unset: all. An empty list: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 20))]
    pub actions: Option<Vec<PolicyAction>>,
    /// The signals that container-kill may send, by number or name. Unset: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub signals: Option<Vec<IntOrString>>,
    /// Who may ask, by user name; a ServiceAccount is `system:serviceaccount:NAMESPACE:NAME`. Where both
    /// `users` and `groups` are set, being named in one of them is enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 500))]
    pub users: Option<Vec<String>>,
    /// Who may ask, by group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 500))]
    pub groups: Option<Vec<String>>,
}

/// What a policy can allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyAction {
    /// Pods are deleted or evicted.
    PodKill,
    /// Pods are failed, by an experiment or by the label.
    PodFailure,
    /// Processes of containers are signalled.
    ContainerKill,
    /// Containers are frozen.
    ContainerFreeze,
    /// Containers are stressed or squeezed (every StressChaos).
    Stress,
}

/// How much may be hit at a time. Faults by label count like those of experiments.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// At most so many pods in all namespaces of this policy together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub max_targets: Option<i32>,
    /// At most so many percent of the pods of one workload, rounded down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub max_percent_per_workload: Option<i32>,
    /// So many pods of each workload stay Ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub min_available_per_workload: Option<i32>,
    /// At most so many experiments in all namespaces of this policy together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub max_concurrent_experiments: Option<i32>,
    /// Lasting faults have a `duration` of at most this, such as `10m`; one without a `duration` is refused. No trigger
    /// waits for longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub max_duration: Option<String>,
    /// Pods that are younger are not hit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub min_pod_age: Option<String>,
    /// Pods whose PodDisruptionBudget has nothing left are not hit, by whatever action.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub respect_disruption_budgets: Option<bool>,
}

/// A time of the week in which something may be hit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Window {
    /// The days on which the window opens. Unset: every day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 7))]
    pub days: Option<Vec<Day>>,
    /// When it opens, such as `09:00`.
    #[schemars(regex(pattern = r"^([01][0-9]|2[0-3]):[0-5][0-9]$"))]
    pub from: String,
    /// When it closes, such as `17:00`, or `24:00`. Earlier than `from`: on the day after.
    #[schemars(regex(pattern = r"^(([01][0-9]|2[0-3]):[0-5][0-9]|24:00)$"))]
    pub to: String,
    /// The IANA time zone of `from`, `to` and the days, such as `Europe/Berlin`. Unset: UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub time_zone: Option<String>,
    /// Dates, such as `2026-12-24`, on which it stays closed from midnight to midnight.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 400), inner(regex(pattern = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$")))]
    pub except: Vec<String>,
}

/// A day of the week.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "they are the days of the week")]
pub enum Day {
    Mon,
    Tue,
    Wed,
    Thu,
    Fri,
    Sat,
    Sun,
}

/// Pods that are never hit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Protect {
    /// By their labels. An empty selector protects every pod.
    pub pod_selector: LabelSelector,
}

/// Stop everything.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Halt {
    /// While it is true nothing new is hit, and what lasts is recovered.
    pub active: bool,
    /// Why; it is shown wherever something is refused or ended because of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub reason: Option<String>,
}

/// How a policy stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ChaosPolicyStatus {
    /// See [`PolicyState`]: of an optional enum the help is the enum's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<PolicyState>,
    /// In words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Valid, Open, Halted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// What is hit now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// When the windows open or close next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_change: Option<Time>,
    /// How the probes of `haltWhen` stand, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub probes: Vec<ProbeStatus>,
}

/// How the policy stands. `Open`: what it allows may be done now. `Closed`: it is outside its windows. `Halted`: by its
/// own `halt` or by one of its probes. `Invalid`: it makes no sense, and nothing may be hit until it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum PolicyState {
    /// What it allows may be done now.
    Open,
    /// Outside its windows.
    Closed,
    /// Halted by its own `halt` or by one of its probes.
    Halted,
    /// It makes no sense, and until it does nothing may be hit in its namespaces.
    Invalid,
}

/// What is hit now in the namespaces of a policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// Namespaces that take part and are selected.
    pub namespaces: i32,
    /// Pods that are hit, by experiments or by hand.
    pub targets: i32,
    /// Those of them that were labelled by hand.
    pub by_hand: i32,
    /// Experiments that have targets.
    pub experiments: i32,
    /// `2/5`: the targets, and how many there may be where that is limited.
    pub summary: String,
}

/// How a probe stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProbeStatus {
    /// Which, by its name or place.
    pub name: String,
    /// Whether all is well: `True`, `False`, or `Unknown` before the first answer.
    pub healthy: String,
    /// The evidence: a status code, a number, a time; never what was answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Since when it stands like that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
}
