//! Schedule: an experiment again and again, as users write it and as Squall reports it.
//!
//! Field names follow Chaos Mesh's Schedule where the meaning is the same; `timeZone`, `jitter`, `mtbf`, `seed` and
//! `suspend` are ours.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, Time};
use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::podchaos::PodChaosSpec;
use crate::stresschaos::StressChaosSpec;

/// An experiment again and again: by the clock, or at random.
#[expect(clippy::duplicated_attributes, reason = "each printer column has a type and a path")]
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "squall.dev",
    version = "v1alpha1",
    kind = "Schedule",
    plural = "schedules",
    singular = "schedule",
    shortname = "sqs",
    category = "squall",
    namespaced,
    status = "ScheduleStatus",
    derive = "Default",
    derive = "PartialEq",
    printcolumn(name = "Schedule", type_ = "string", json_path = ".spec.schedule"),
    printcolumn(name = "MTBF", type_ = "string", json_path = ".spec.mtbf"),
    printcolumn(name = "Type", type_ = "string", json_path = ".spec.type"),
    printcolumn(name = "Last", type_ = "string", json_path = ".status.lastScheduleTime"),
    printcolumn(name = "Next", type_ = "string", json_path = ".status.nextScheduleTime"),
    printcolumn(name = "Active", type_ = "integer", json_path = ".status.activeCount"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.message", priority = 1)
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.schedule) != has(self.mtbf)")
        .message("write either schedule or mtbf"),
    validation = Rule::new("!has(self.mtbf) || !has(self.jitter)")
        .message("jitter belongs to schedule only: mtbf is random by itself")
        .field_path(".jitter"),
    validation = Rule::new("!has(self.mtbf) || !has(self.timeZone)")
        .message("timeZone belongs to schedule only")
        .field_path(".timeZone"),
    validation = Rule::new("(self.type == 'PodChaos') == has(self.podChaos)")
        .message("podChaos belongs to type PodChaos, and to no other"),
    validation = Rule::new("(self.type == 'StressChaos') == has(self.stressChaos)")
        .message("stressChaos belongs to type StressChaos, and to no other")
)]
pub struct ScheduleSpec {
    /// When: five cron fields (`0 9 * * mon-fri`), six with seconds first, `@hourly` and the like, or
    /// `@every 90m`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub schedule: Option<String>,
    /// The time zone of `schedule`, such as `Europe/Berlin`. Unset: UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub time_zone: Option<String>,
    /// Instead of `schedule`: at random, this long apart on average, such as `4h`; however long ago the last was,
    /// the next is as likely as ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub mtbf: Option<String>,
    /// Each run begins this much later at most, such as `10m`, drawn anew for each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub jitter: Option<String>,
    /// The seed of `jitter` and `mtbf`. Unset: the object's UID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<i64>,
    /// How many seconds late a run may begin; what is later is missed, and skipped. Unset: 60.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 2592000))]
    pub starting_deadline_seconds: Option<i64>,
    /// See [`ConcurrencyPolicy`]: of an optional enum the help is the enum's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency_policy: Option<ConcurrencyPolicy>,
    /// How many experiments that are over are kept. Unset: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub history_limit: Option<i32>,
    /// No run begins for as long as it is true; those that are active go on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspend: Option<bool>,
    /// The kind of the experiment.
    #[serde(rename = "type")]
    pub type_: ScheduleType,
    /// The experiment, with type PodChaos.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "embedded::<PodChaosSpec>")]
    pub pod_chaos: Option<PodChaosSpec>,
    /// The experiment, with type StressChaos.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "embedded::<StressChaosSpec>")]
    pub stress_chaos: Option<StressChaosSpec>,
}

/// The kind of the experiment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum ScheduleType {
    /// A PodChaos.
    #[default]
    PodChaos,
    /// A StressChaos.
    StressChaos,
}

/// What becomes of a run while another is active. `Forbid`: it is skipped. `Allow`: it begins all the same. `Replace`:
/// it ends the other. Unset: `Forbid`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum ConcurrencyPolicy {
    /// It is skipped.
    #[default]
    Forbid,
    /// It begins all the same.
    Allow,
    /// It ends the other.
    Replace,
}

/// What Squall did, and what it will do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScheduleStatus {
    /// In words, what happened last and what to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, Suspended.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// Runs are counted from here: the object's creation, the last change of its spec, or the end of a suspension.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counted_from: Option<MicroTime>,
    /// The last run that was due, begun or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_due_time: Option<Time>,
    /// The last run that began: the time that it was due.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_schedule_time: Option<Time>,
    /// When the next run is to begin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_schedule_time: Option<Time>,
    /// The experiments that are not over.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub active: Vec<String>,
    /// How many there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active_count: Option<i32>,
    /// How many runs began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runs: Option<i64>,
    /// How many did not, since another was active.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forbidden: Option<i64>,
    /// How many did not, since it was too late when somebody could have begun them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missed: Option<i64>,
}

/// The schema of an experiment that is part of something else: its rules on what may change are not for here, since
/// every run is another experiment.
fn embedded<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = T::json_schema(generator);
    if let Some(Value::Array(rules)) = schema.get_mut("x-kubernetes-validations") {
        rules.retain(|rule| !rule["rule"].as_str().is_some_and(|text| text.contains("oldSelf")));
    }
    schema
}
