//! StressChaos: hungry processes in the cgroup of containers, and lower limits for it, as users write it. What is
//! reported of it is in [`crate::status`].
//!
//! Field names follow Chaos Mesh's StressChaos where the meaning is the same; `ramp`, `io`, `pids`, `squeeze`,
//! `allowOOM` and `onOOM` are ours. What the schema can refuse is refused there by the API server itself.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::probe::{OnHalt, Probe};
pub use crate::selection::{Mode, PodSelector};
pub use crate::status::ExperimentStatus;

/// A lasting fault on containers: they get hungry processes beside their own, or lower limits.
#[expect(clippy::duplicated_attributes, reason = "each printer column has a type and a path")]
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "squall.dev",
    version = "v1alpha1",
    kind = "StressChaos",
    plural = "stresschaos",
    singular = "stresschaos",
    shortname = "sch",
    category = "squall",
    namespaced,
    status = "ExperimentStatus",
    derive = "Default",
    derive = "PartialEq",
    printcolumn(name = "Stressors", type_ = "string", json_path = ".status.stressors"),
    printcolumn(name = "Mode", type_ = "string", json_path = ".spec.mode", priority = 1),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Targets", type_ = "string", json_path = ".status.summary"),
    printcolumn(name = "Effect", type_ = "string", json_path = ".status.effect"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.message", priority = 1)
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!(self.mode in ['fixed', 'fixed-percent', 'random-max-percent']) || (has(self.value) && self.value != '')")
        .message("value is required with mode fixed, fixed-percent and random-max-percent")
        .field_path(".value"),
    validation = Rule::new("!has(self.value) || self.value == '' || self.value.matches('^[0-9]{1,9}$')")
        .message("value must be a whole number without sign or unit, such as \"3\" or \"50\"")
        .field_path(".value"),
    validation = Rule::new("!(self.mode in ['fixed-percent', 'random-max-percent']) || !has(self.value) || !self.value.matches('^[0-9]{1,9}$') || (int(self.value) >= 1 && int(self.value) <= 100)")
        .message("value must be 1 to 100 (percent)")
        .field_path(".value"),
    validation = Rule::new("self.mode != 'fixed' || !has(self.value) || !self.value.matches('^[0-9]{1,9}$') || int(self.value) >= 1")
        .message("value must be at least 1")
        .field_path(".value"),
    validation = Rule::new("(has(self.stressors) && (has(self.stressors.cpu) || has(self.stressors.memory) || has(self.stressors.io) || has(self.stressors.pids))) || (has(self.squeeze) && (has(self.squeeze.cpu) || has(self.squeeze.memory) || has(self.squeeze.pids) || has(self.squeeze.io)))")
        .message("name at least one of stressors.cpu, stressors.memory, stressors.io, stressors.pids, squeeze.cpu, squeeze.memory, squeeze.pids and squeeze.io"),
    validation = Rule::new("!has(self.allowOOM) || !self.allowOOM || (has(self.stressors) && has(self.stressors.memory))")
        .message("allowOOM belongs to stressors.memory only"),
    validation = Rule::new("!has(self.onOOM) || (has(self.stressors) && has(self.stressors.memory))")
        .message("onOOM belongs to stressors.memory only"),
    validation = Rule::new("!has(self.stressngStressors) || self.stressngStressors == ''")
        .message("stressngStressors is not supported: use stressors or squeeze instead"),
    validation = Rule::new("!has(self.remoteCluster) || self.remoteCluster == ''")
        .message("remoteCluster is not supported: apply the experiment in that cluster instead"),
    validation = Rule::new("self.mode == oldSelf.mode")
        .message("mode can't be changed: make another experiment instead")
)]
pub struct StressChaosSpec {
    /// How many of the selected pods are hit.
    pub mode: Mode,
    /// The number that `mode` needs: a count for `fixed`, a percentage (rounded up) for `fixed-percent` and
    /// `random-max-percent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Which pods. Fields are ANDed, but `nodes` and `nodeSelectors` are a union, and `pods` overrides all.
    #[serde(default)]
    pub selector: PodSelector,
    /// Which containers of a pod. Unset: the first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100))]
    pub container_names: Vec<String>,
    /// How long the fault lasts once all targets are injected, such as `30s` or `1h5m`. Without it the fault
    /// lasts until it is deleted or paused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub duration: Option<String>,
    /// Hungry processes beside the container's own, in its cgroup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stressors: Option<Stressors>,
    /// Lower limits for the container. What is not named is not touched; of several experiments on one
    /// container the strictest holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub squeeze: Option<Squeeze>,
    /// stressors.memory: a size above the container's own limit is meant.
    #[serde(default, rename = "allowOOM", skip_serializing_if = "Option::is_none")]
    pub allow_oom: Option<bool>,
    /// See [`OnOom`]: of an optional enum the help is the enum's.
    #[serde(default, rename = "onOOM", skip_serializing_if = "Option::is_none")]
    pub on_oom: Option<OnOom>,
    /// The seed of the random draw: with the same seed and the same pods, the same are drawn. Unset: drawn,
    /// and recorded in the status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<i64>,
    /// Only say in the status what would be hit, and why the rest would not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dry_run: Option<bool>,
    /// What has to hold before and during the experiment, and once more when all is over; when it doesn't, the
    /// experiment is halted. Probes over HTTP name a Service in a namespace that the experiment looks into.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub steady_state: Vec<Probe>,
    /// See [`OnHalt`]: of an optional enum the help is the enum's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_halt: Option<OnHalt>,
    /// Not supported; here so that it is refused rather than silently dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stressng_stressors: Option<String>,
    /// Not supported; here so that it is refused rather than silently dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_cluster: Option<String>,
}

/// Hungry processes beside the container's own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Stressors {
    /// Processes that compute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<CpuStressor>,
    /// Processes that hold memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryStressor>,
    /// Processes that write to and read from a file system of the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io: Option<IoStressor>,
    /// Processes that do nothing but be there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<PidsStressor>,
}

/// Processes that compute.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CpuStressor {
    /// How many.
    #[schemars(range(min = 1, max = 1024))]
    pub workers: i32,
    /// How much of one CPU each of them uses, in percent. Unset: 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub load: Option<i32>,
    /// Options of stress-ng; accepted and ignored.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100))]
    pub options: Vec<String>,
}

/// Processes that hold memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MemoryStressor {
    /// How many.
    #[schemars(range(min = 1, max = 1024))]
    pub workers: i32,
    /// How much all of them hold together: bytes, such as `256MB` or `1Gi`, or a share such as `50%` of the
    /// container's limit (without a limit: of the node's memory).
    #[schemars(length(max = 32))]
    pub size: String,
    /// The time from nothing to the whole size, such as `30s`. Unset: at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub ramp: Option<String>,
    /// How readily the kernel ends the stressors when memory runs out, -1000 to 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -1000, max = 1000))]
    pub oom_score_adj: Option<i32>,
    /// Options of stress-ng; accepted and ignored.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100))]
    pub options: Vec<String>,
}

/// Processes that write to and read from a file system of the container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IoStressor {
    /// How many.
    #[schemars(range(min = 1, max = 1024))]
    pub workers: i32,
    /// What each of them writes and reads again and again, such as `64Mi`, in a file without a name.
    #[schemars(length(max = 32))]
    pub size: String,
    /// A directory inside the container; it says which file system.
    #[schemars(length(min = 1, max = 4096))]
    pub path: String,
}

/// Processes that do nothing but be there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PidsStressor {
    /// How many.
    #[schemars(range(min = 1, max = 100000))]
    pub count: i32,
}

/// Lower limits for a container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Squeeze {
    /// CPU, such as `200m` or `1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<IntOrString>,
    /// Memory, such as `64Mi`, above which the container is slowed down and made to give back (`memory.high`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<IntOrString>,
    /// Where the node has cgroups v1 only, and so nothing but the hard limit: lower that one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_hard: Option<bool>,
    /// Processes and threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4194304))]
    pub pids: Option<i64>,
    /// What is read from and written to a block device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io: Option<IoLimit>,
}

/// How much is read from and written to a block device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IoLimit {
    /// A path on the node such as `/dev/sda`, or `MAJOR:MINOR`.
    #[schemars(length(min = 1, max = 255))]
    pub device: String,
    /// Bytes read a second, such as `1Mi`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_bps: Option<IntOrString>,
    /// Bytes written a second, such as `1Mi`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_bps: Option<IntOrString>,
    /// Reads a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub read_iops: Option<i64>,
    /// Writes a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub write_iops: Option<i64>,
}

/// stressors.memory: what becomes of a stressor that the kernel ended for want of memory. `stop`: the fault on that
/// container ends. `restart`: the stressor is started again. Unset: `stop`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnOom {
    /// The fault on that container ends.
    #[default]
    Stop,
    /// It is started again.
    Restart,
}
