//! What Squall reports of an experiment, whatever its kind.
//!
//! Text here becomes the help of `kubectl explain`. What is written when is decided in `squall-model`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What Squall did, and what came of it. All times are those of the controller unless said otherwise.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExperimentStatus {
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
    /// Since when targets have been looked for in vain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub looking_since: Option<MicroTime>,
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
    /// What ended it, or keeps it from going on: a halt, a window that closed, a probe that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub halted: Option<Halted>,
    /// StressChaos: what is done, in short, such as `cpu 2x50%, squeeze memory 64Mi`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stressors: Option<String>,
    /// StressChaos: what was measured during the fault, in short; of several targets the range.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<String>,
    /// The pods, or containers of pods, that were chosen, and some that were not, with the reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<Target>,
}

/// What ended an experiment, or keeps it from going on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Halted {
    /// When it was seen.
    pub at: MicroTime,
    /// What said so: `Namespace shop`, `ChaosPolicy team-a`, `steadyState`.
    pub by: String,
    /// `Halted`, `WindowClosed` or `Unsteady`.
    pub reason: String,
    /// In words, with the evidence.
    pub message: String,
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

/// One pod that was chosen (pod-kill, pod-failure) or one container of a pod (faults that a node's daemon carries
/// out).
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
    /// The workload that the pod belongs to, such as `Deployment/web`: limits of policies are counted by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<String>,
    /// Faults on containers: the container's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// Faults on containers: the container's ID with its runtime's scheme, which says which incarnation it is.
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
    /// Lasting faults: chosen at its birth, as a replacement or under `mode: all`.
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
    /// Lasting faults on containers: what the container's cgroup counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<Effect>,
    /// Lasting faults on containers: how often the fault was interrupted and injected again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interruptions: Option<i32>,
    /// Faults on containers: how often it was ordered anew for this container, after a pause or a halt, or because its node
    /// had ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<i32>,
    /// What should be known and is no failure, such as a limit that somebody else changed meanwhile.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
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
    /// How many events of the node the programs did not see or could not record; 0 unless it was overrun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<i64>,
    /// How many processes of the container the kernel killed for want of memory meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom_kills: Option<i64>,
    /// Of a trigger: at which call it fired.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fired_at_count: Option<i64>,
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

/// What the container's cgroup counted, as its node measured it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Effect {
    /// Before the fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Usage>,
    /// While it was there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub during: Option<Usage>,
    /// After it had been taken back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Usage>,
}

/// What a container uses. What its node can't measure is not there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// CPU time, in thousandths of one CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<i64>,
    /// Memory, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<i64>,
    /// Share of the last 10 s in which some task waited for a CPU, in hundredths of a percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_pressure: Option<i32>,
    /// The same for memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_pressure: Option<i32>,
    /// The same for block devices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_pressure: Option<i32>,
    /// Tasks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<i64>,
    /// Bytes read and written a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_bps: Option<i64>,
}
