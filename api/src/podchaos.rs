//! PodChaos: the experiment on pods, as users write it. What is reported of it is in [`crate::status`].
//!
//! Field names follow Chaos Mesh's PodChaos where the meaning is the same. Text here becomes the help of
//! `kubectl explain`. What a field means is decided in `squall-model`; what can be refused by the schema is
//! refused there by the API server itself, so that nonsense never gets in, not even with Squall down.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::probe::{OnHalt, Probe};
pub use crate::selection::{Mode, PodSelector};
pub use crate::status::{
    Effect, ExperimentStatus, Phase, ProcessReceipt, Receipt, Target, TargetPhase, Usage,
};

/// A fault on pods: they are killed, made to fail, or their containers are killed or frozen.
#[expect(clippy::duplicated_attributes, reason = "each printer column has a type and a path")]
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "squall.dev",
    version = "v1alpha1",
    kind = "PodChaos",
    plural = "podchaos",
    singular = "podchaos",
    shortname = "pch",
    category = "squall",
    namespaced,
    status = "ExperimentStatus",
    derive = "Default",
    derive = "PartialEq",
    printcolumn(name = "Action", type_ = "string", json_path = ".spec.action"),
    printcolumn(name = "Mode", type_ = "string", json_path = ".spec.mode"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Targets", type_ = "string", json_path = ".status.summary"),
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
    validation = Rule::new("!has(self.gracePeriod) || self.gracePeriod == 0 || self.action == 'pod-kill'")
        .message("gracePeriod belongs to action pod-kill only"),
    validation = Rule::new("!has(self.evict) || !self.evict || self.action == 'pod-kill'")
        .message("evict belongs to action pod-kill only"),
    validation = Rule::new("!has(self.fast) || !self.fast || self.action == 'pod-failure'")
        .message("fast belongs to action pod-failure only"),
    validation = Rule::new("!has(self.faultStyle) || self.action == 'pod-failure'")
        .message("faultStyle belongs to action pod-failure only"),
    validation = Rule::new("!has(self.signal) || self.action == 'container-kill'")
        .message("signal belongs to action container-kill only"),
    validation = Rule::new("!has(self.processes) || self.action == 'container-kill'")
        .message("processes belongs to action container-kill only"),
    validation = Rule::new("!has(self.trigger) || self.action == 'container-kill'")
        .message("trigger belongs to action container-kill only"),
    validation = Rule::new("!has(self.trigger) || !has(self.processes)")
        .message("processes can't be together with trigger: the signal goes to the process that does it"),
    validation = Rule::new("!has(self.trigger) || (has(self.trigger.syscall) ? 1 : 0) + (has(self.trigger.exec) ? 1 : 0) + (has(self.trigger.connect) ? 1 : 0) == 1")
        .message("trigger needs exactly one of syscall, exec and connect")
        .field_path(".trigger"),
    validation = Rule::new("!has(self.trigger) || !has(self.trigger.nth) || has(self.trigger.syscall)")
        .message("nth belongs to trigger.syscall only")
        .field_path(".trigger"),
    validation = Rule::new("!has(self.allowTerminal) || !self.allowTerminal || self.action == 'container-kill'")
        .message("allowTerminal belongs to action container-kill only"),
    validation = Rule::new("!has(self.remoteCluster) || self.remoteCluster == ''")
        .message("remoteCluster is not supported: apply the experiment in that cluster instead"),
    validation = Rule::new("self.action == oldSelf.action && self.mode == oldSelf.mode")
        .message("action and mode can't be changed: make another experiment instead")
)]
pub struct PodChaosSpec {
    /// What is done: `pod-kill` deletes pods gracefully, `pod-failure` replaces their images for a while,
    /// `container-kill` signals the processes of a container, `container-freeze` stops them for a while.
    pub action: Action,
    /// How many of the selected pods are hit.
    pub mode: Mode,
    /// The number that `mode` needs: a count for `fixed`, a percentage (rounded up) for `fixed-percent` and
    /// `random-max-percent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Which pods. Fields are ANDed, but `nodes` and `nodeSelectors` are a union, and `pods` overrides all.
    #[serde(default)]
    pub selector: PodSelector,
    /// Which containers of a pod. Unset: all for pod-failure, the first for container-kill and container-freeze.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100))]
    pub container_names: Vec<String>,
    /// pod-kill: seconds that a pod has to end. Unset: the pod's own; 0: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 86400))]
    pub grace_period: Option<i64>,
    /// How long the fault lasts once all targets are injected, such as `30s` or `1h5m`. A lasting fault
    /// without it lasts until it is deleted or paused. For a one-shot: for how long it is tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub duration: Option<String>,
    /// container-kill: the signal, by number or name (`9`, `SIGTERM`, `TERM`). Unset: SIGKILL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<IntOrString>,
    /// container-kill: which processes of the container. Unset: its init process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processes: Option<Processes>,
    /// container-kill: not at once, but when a process of the container does this; the signal goes to that process,
    /// before the call returns to it. What the call does in the kernel may still take place. Unset: at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trigger: Option<Trigger>,
    /// pod-kill: go through the Eviction API, which respects PodDisruptionBudgets; retried until `duration`
    /// (5m) is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evict: Option<bool>,
    /// pod-failure: end the old processes at once instead of waiting for the grace period.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fast: Option<bool>,
    /// See [`FaultStyle`]: of an optional enum the help is the enum's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault_style: Option<FaultStyle>,
    /// container-kill: also hit containers that may end for good (restartPolicy Never or OnFailure, pods of a Job).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_terminal: Option<bool>,
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
    pub remote_cluster: Option<String>,
}

/// What a PodChaos does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Delete pods gracefully.
    #[default]
    PodKill,
    /// Replace the images of pods for a while.
    PodFailure,
    /// Signal the processes of containers.
    ContainerKill,
    /// Stop the processes of containers for a while, without them noticing.
    ContainerFreeze,
}

/// pod-failure: what a failed container does meanwhile. `pause`: it is up and idle. `crash`: it exits at once, again
/// and again. Unset: `crash` for a container with neither `command` nor readiness probe, which asleep would count as
/// Ready, and `pause` for all others. An init container always crashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum FaultStyle {
    /// It is up and idle; with a `command` that the image lacks it can't start.
    Pause,
    /// It exits with 1 at once, again and again.
    Crash,
}

/// Which processes of a container are signalled.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Processes {
    /// `init`: the container's first process. `all`: every process, also those forked meanwhile.
    #[serde(default)]
    pub scope: Scope,
    /// Of those, only processes with this name in the kernel, 1 to 15 bytes (`ps -o comm`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 15))]
    pub comm: Option<String>,
    /// Of those, only processes that run this executable: an absolute path inside the container, links followed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4095), regex(pattern = r"^/"))]
    pub exe: Option<String>,
}

/// What a process of the container does to be signalled. Armed until it has happened, or `duration` (60s) is over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Trigger {
    /// It enters this system call, such as `fsync`. The node's kernel must know it by that name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), regex(pattern = r"^[a-z0-9_]+$"))]
    pub syscall: Option<String>,
    /// At which call, counted over all tasks of the container since the trigger was armed. Unset: the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub nth: Option<i64>,
    /// It executes this absolute path inside the container, as it names it or with links to directories followed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 255), regex(pattern = r"^/"))]
    pub exec: Option<String>,
    /// It connects to a port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect: Option<ConnectTrigger>,
    /// Only what a process with this name in the kernel does, 1 to 15 bytes. With `exec`: the name that it has
    /// afterwards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 15))]
    pub comm: Option<String>,
}

/// See [`Trigger::connect`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConnectTrigger {
    /// The port that is connected to, over IPv4 or IPv6.
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
}

/// See [`Processes::scope`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// The container's first process.
    #[default]
    Init,
    /// Every process, also those forked meanwhile.
    All,
}
