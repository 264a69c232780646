//! PodChaos: the experiment on pods, as users write it and as Squall reports it.
//!
//! Field names follow Chaos Mesh's PodChaos where the meaning is the same. Text here becomes the help of
//! `kubectl explain`. What a field means is decided in `squall-model`; what can be refused by the schema is
//! refused there by the API server itself, so that nonsense never gets in, not even with Squall down.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelectorRequirement, MicroTime};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A fault on pods: they are killed, made to fail, or their containers are killed.
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
    status = "PodChaosStatus",
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
    validation = Rule::new("!has(self.allowTerminal) || !self.allowTerminal || self.action == 'container-kill'")
        .message("allowTerminal belongs to action container-kill only"),
    validation = Rule::new("!has(self.remoteCluster) || self.remoteCluster == ''")
        .message("remoteCluster is not supported: apply the experiment in that cluster instead"),
    validation = Rule::new("self.action == oldSelf.action && self.mode == oldSelf.mode")
        .message("action and mode can't be changed: make another experiment instead")
)]
pub struct PodChaosSpec {
    /// What is done: `pod-kill` deletes pods gracefully, `pod-failure` replaces their images for a while,
    /// `container-kill` signals the processes of a container.
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
    /// Which containers of a pod. Unset: all for pod-failure, the first for container-kill.
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
    /// pod-kill: go through the Eviction API, which respects PodDisruptionBudgets; retried until `duration`
    /// (5m) is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evict: Option<bool>,
    /// pod-failure: end the old processes at once instead of waiting for the grace period.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fast: Option<bool>,
    /// pod-failure: `pause` keeps the container up and idle, `crash` has it fail again and again. Unset: by
    /// container, so that it is not Ready either way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault_style: Option<FaultStyle>,
    /// container-kill: also hit containers that end for good (restartPolicy Never, pods of a Job).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_terminal: Option<bool>,
    /// The seed of the random draw: with the same seed and the same pods, the same are drawn. Unset: drawn,
    /// and recorded in the status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<i64>,
    /// Only say in the status what would be hit, and why the rest would not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dry_run: Option<bool>,
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
}

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

/// What a failed container does meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum FaultStyle {
    /// It sleeps.
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

/// Which pods. An empty selector selects every pod of the experiment's own namespace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodSelector {
    /// In which namespaces. Unset: the experiment's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
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

/// What Squall did, and what came of it. All times are those of the controller unless said otherwise.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodChaosStatus {
    /// Where the experiment stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// In words, what happened last and what to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// How many targets have been hit of how many chosen, such as `2/3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<String>,
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Selected, Injected, Recovered, Paused, Completed, Failed, Reconciling, Stalled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// The seed with which the targets were drawn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<i64>,
    /// How many pods `mode` asks for, of those found when the targets were drawn: the cap for replacements.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drawn: Option<i32>,
    /// When the targets were chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selected_at: Option<MicroTime>,
    /// When the clock of `duration` started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<MicroTime>,
    /// When a lasting fault will end, if it has a `duration`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends_at: Option<MicroTime>,
    /// When everything was over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<MicroTime>,
    /// How often the fault was interrupted and injected again (restarts of a daemon).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interruptions: Option<i32>,
    /// The pods, or containers of pods, that were chosen, and some that were not, with the reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<Target>,
}

/// Where an experiment stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    /// Nothing is chosen yet.
    #[default]
    Pending,
    /// Targets are chosen and being hit.
    Injecting,
    /// Every target that isn't skipped is hit.
    Injected,
    /// Recovered for as long as the pause annotation is there.
    Paused,
    /// Targets are being put back.
    Recovering,
    /// Over, a success.
    Completed,
    /// Over, no success.
    Failed,
    /// Ended by a halt.
    Halted,
}

/// One pod that was chosen (pod-kill, pod-failure) or one container of a pod (container-kill).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's UID: this, not the name, says which pod it is.
    pub uid: String,
    /// The node on which it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The UID of the workload that owns the pod: its replacement is known by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// container-kill: the container's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// container-kill: the container's ID with its runtime's scheme, which says which incarnation it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(rename = "containerID")]
    pub container_id: Option<String>,
    /// Where this target stands.
    pub phase: TargetPhase,
    /// Why, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// A stable word for the reason of Skipped, Failed, Released.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// pod-failure: the pod was Ready when it was chosen, so recovery waits until it is again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub was_ready: Option<bool>,
    /// pod-failure: chosen at its birth, as a replacement or under `mode: all`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub born: Option<bool>,
    /// When the effect was ordered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ordered_at: Option<MicroTime>,
    /// When the effect was there: deletion mark set, images substituted and old containers gone, process
    /// exited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub injected_at: Option<MicroTime>,
    /// pod-kill: when the pod was gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gone_at: Option<MicroTime>,
    /// When a lasting fault was taken back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovered_at: Option<MicroTime>,
    /// container-kill: when the container had been started again, by the node's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restarted_at: Option<MicroTime>,
    /// When the pod, or the pod that replaced it, was Ready again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_at: Option<MicroTime>,
    /// pod-kill: the pod that replaced it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replacement: Option<String>,
    /// container-kill: the exit code of the container's init process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// container-kill: what the node saw.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt: Option<Receipt>,
}

/// Where one target stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum TargetPhase {
    /// Chosen; the effect is ordered or about to be.
    #[default]
    Selected,
    /// A lasting fault is there.
    Injected,
    /// The lasting fault is being taken back; the pod isn't as before yet.
    Recovering,
    /// The lasting fault was taken back, and the pod is as before.
    Recovered,
    /// A one-shot was carried out.
    Killed,
    /// Not hit, for a reason that is no failure.
    Skipped,
    /// Not hit, or not put back, though it should have been.
    Failed,
    /// Someone took it back by hand, or protected it: it is not hit again.
    Released,
    /// The pod went away by itself.
    Gone,
}

/// What the node saw of a kill. Times are the kernel's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Receipt {
    /// `ebpf` or `pidfd`: what the receipt rests on.
    pub evidence: String,
    /// Why the evidence is not `ebpf`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence_error: Option<String>,
    /// The signal's number.
    pub signal: i32,
    /// The processes that were signalled, the init process first; shortened when there are many.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub processes: Vec<ProcessReceipt>,
    /// How many processes were signalled in all.
    pub total: i32,
    /// How many records of the kernel were lost; 0 unless the node was overrun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<i64>,
}

/// What the node saw of one process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProcessReceipt {
    /// The process, in the node's PID namespace.
    pub pid: i64,
    /// The process's name in the kernel, at most 15 bytes.
    pub comm: String,
    /// When the signal was sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent: Option<MicroTime>,
    /// When it reached the process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivered: Option<MicroTime>,
    /// When the process exited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exited: Option<MicroTime>,
    /// The exit code as a shell would show it: 128 + signal for a process that died of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// `ignored` or `blocked`, where that is why nothing came of the signal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}
