//! What the daemon knows of a fault: its state, the reason, and the receipt.
//!
//! The same values go into the journal and, translated, over the wire. Nothing is decided here.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use squall_api::grpc;

/// Orders are compared by it: by term, then by counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Generation {
    /// Rises with each leader.
    pub term: u64,
    /// Rises with each state that a leader sends.
    pub counter: u64,
}

/// How far a fault has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Prepared, without effect.
    Armed,
    /// The signal is sent; exits are awaited.
    Fired,
    /// Every process that was signalled has exited.
    Done,
    /// Not carried out, and never will be.
    Refused(Reason),
    /// Could not be carried out, or not wholly.
    Failed(Reason),
    /// A lasting fault is there.
    Injected,
    /// A lasting fault has been put back.
    Recovered,
}

impl State {
    /// Whether nothing will follow.
    pub fn is_final(self) -> bool {
        match self {
            Self::Armed | Self::Fired | Self::Injected => false,
            Self::Done | Self::Refused(_) | Self::Failed(_) | Self::Recovered => true,
        }
    }
}

/// Why a fault was refused or failed; the names are part of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    /// The container is not there, or does not run.
    ContainerGone,
    /// The container is not the one that the order describes.
    ContainerMismatch,
    /// Nothing in that namespace is ever hit.
    ProtectedNamespace,
    /// There is no client for that kind of container ID.
    UnknownRuntime,
    /// The runtime did not answer, or answered nonsense.
    RuntimeError,
    /// The signal was sent, but the process goes on.
    SignalIgnored,
    /// The order was not renewed in time.
    Expired,
    /// This daemon, or this node, can't do that.
    Unsupported,
    /// A lasting fault was there and did less than half of what was asked for.
    NoEffect,
    /// There is not enough memory for it, or the kernel ended it for want of memory.
    OutOfMemory,
    /// What the trigger waits for did not happen in time.
    NotTriggered,
    /// No process of the container has that name, or runs that executable.
    NoProcess,
    /// Something that should not happen; the message tells.
    Internal,
}

/// This many processes are named in a receipt that is kept.
pub const NAMED: usize = 64;

/// Everything that is known of one fault.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FaultReport {
    /// Names the fault.
    pub id: String,
    /// How far it has come.
    pub state: State,
    /// For people.
    pub message: String,
    /// What was done and seen.
    pub receipt: Option<Receipt>,
    /// More of a lasting fault.
    #[serde(default)]
    pub lasting: Lasting,
}

impl FaultReport {
    /// A report with no more than these.
    pub fn new(id: &str, state: State, message: String) -> Self {
        Self { id: id.to_owned(), state, message, receipt: None, lasting: Lasting::default() }
    }

    /// The same with no more than [`NAMED`] processes in its receipt: what is kept of it, and told again.
    pub fn shortened(&self) -> Self {
        let mut kept = self.clone();
        if let Some(receipt) = &mut kept.receipt {
            receipt.processes.truncate(NAMED);
        }
        kept
    }
}

/// What a report says of a lasting fault alone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Lasting {
    /// What it did to the container.
    pub effect: Option<Effect>,
    /// How often it was interrupted and injected again.
    pub interruptions: u32,
    /// What the user should know and that is no failure.
    pub warnings: Vec<String>,
}

/// What the container's cgroup counted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Effect {
    /// Before anything was done.
    pub before: Option<Usage>,
    /// While the fault was there.
    pub during: Option<Usage>,
    /// After it was put back.
    pub after: Option<Usage>,
}

/// What a container uses; what the node does not count is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time, in thousandths of one CPU.
    pub cpu_millis: Option<u64>,
    /// Memory.
    pub memory_bytes: Option<u64>,
    /// Share of the last 10 s in which some task waited for CPU time, in hundredths of a percent.
    pub cpu_pressure: Option<u32>,
    /// The same, for memory.
    pub memory_pressure: Option<u32>,
    /// The same, for IO.
    pub io_pressure: Option<u32>,
    /// Tasks.
    pub pids: Option<u64>,
    /// Bytes read and written in a second.
    pub io_bps: Option<u64>,
}

/// Where the evidence of a receipt comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Evidence {
    /// The kernel's tracepoints.
    Ebpf,
    /// The daemon's own calls.
    Pidfd,
}

/// What a process does with the signal instead of ending.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Note {
    /// It ignores it.
    Ignored,
    /// It has it blocked.
    Blocked,
}

/// What was done, and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Receipt {
    /// Where the times come from.
    pub evidence: Evidence,
    /// What of eBPF did not work.
    pub evidence_error: String,
    /// The signal.
    pub signal: i32,
    /// When the order to fire came.
    pub ordered: SystemTime,
    /// When the first signal went out.
    pub fired: Option<SystemTime>,
    /// The processes that were signalled, the container's first before all others.
    pub processes: Vec<ProcessReceipt>,
    /// How many there were in all.
    #[serde(default)]
    pub total: u32,
    /// Events that the programs did not see or could not record, of whatever container of the node.
    pub lost: u64,
    /// Processes of the container that the kernel killed for want of memory meanwhile.
    #[serde(default)]
    pub oom_kills: u64,
    /// Of a trigger: at which call it fired; otherwise 0.
    #[serde(default)]
    pub fired_at_count: u32,
}

/// What became of one process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProcessReceipt {
    /// Its PID.
    pub pid: i32,
    /// When it started, in ticks since boot.
    pub start: u64,
    /// Its name.
    pub comm: String,
    /// Whether it is the container's first.
    pub init: bool,
    /// Who sent the signal.
    pub sent_by: Evidence,
    /// When it was sent.
    pub sent: SystemTime,
    /// When the process took it.
    pub delivered: Option<SystemTime>,
    /// When its last thread ended.
    pub exited: Option<SystemTime>,
    /// As a shell would show it.
    pub exit_code: Option<i32>,
    /// Why it goes on.
    pub note: Option<Note>,
}

impl ProcessReceipt {
    /// Puts what became of it into the log.
    pub fn log(&self, fault: &str) {
        let Self { pid, start: _, comm, init, sent_by, sent, delivered, exited, exit_code, note } = self;
        let sent_at = prost_types::Timestamp::from(*sent);
        // What the wall clock, set back in between, can't tell is left out.
        let after =
            |time: &Option<SystemTime>| Some(time.as_ref()?.duration_since(*sent).ok()?.as_micros() as u64);
        tracing::info!(
            fault, pid, comm, init, sent_by = word(*sent_by), %sent_at, delivered_after_us = after(delivered),
            exited_after_us = after(exited), exit_code, ?note, "process"
        );
    }
}

impl From<Generation> for grpc::Generation {
    fn from(Generation { term, counter }: Generation) -> Self {
        Self { term, counter }
    }
}

impl From<&FaultReport> for grpc::FaultReport {
    fn from(FaultReport { id, state, message, receipt, lasting }: &FaultReport) -> Self {
        let Lasting { effect, interruptions, warnings } = lasting;
        let (state, reason) = match state {
            State::Armed => (grpc::FaultState::Armed, None),
            State::Fired => (grpc::FaultState::Fired, None),
            State::Done => (grpc::FaultState::Done, None),
            State::Refused(reason) => (grpc::FaultState::Refused, Some(reason)),
            State::Failed(reason) => (grpc::FaultState::Failed, Some(reason)),
            State::Injected => (grpc::FaultState::Injected, None),
            State::Recovered => (grpc::FaultState::Recovered, None),
        };
        Self {
            id: id.clone(),
            state: state.into(),
            // The variants' names are the words of the contract.
            reason: reason.map(|reason| format!("{reason:?}")).unwrap_or_default(),
            message: message.clone(),
            receipt: receipt.as_ref().map(Into::into),
            effect: effect.as_ref().map(Into::into),
            interruptions: *interruptions,
            warnings: warnings.clone(),
        }
    }
}

impl From<&Effect> for grpc::Effect {
    fn from(Effect { before, during, after }: &Effect) -> Self {
        Self { before: before.map(Into::into), during: during.map(Into::into), after: after.map(Into::into) }
    }
}

impl From<Usage> for grpc::Usage {
    fn from(usage: Usage) -> Self {
        let Usage { cpu_millis, memory_bytes, cpu_pressure, memory_pressure, io_pressure, pids, io_bps } =
            usage;
        Self { cpu_millis, memory_bytes, cpu_pressure, memory_pressure, io_pressure, pids, io_bps }
    }
}

impl From<&Receipt> for grpc::Receipt {
    fn from(receipt: &Receipt) -> Self {
        let Receipt {
            evidence,
            evidence_error,
            signal,
            ordered,
            fired,
            processes,
            total,
            lost,
            oom_kills,
            fired_at_count,
        } = receipt;
        Self {
            evidence: word(*evidence).to_owned(),
            evidence_error: evidence_error.clone(),
            signal: *signal,
            ordered: Some((*ordered).into()),
            fired: fired.map(Into::into),
            processes: processes.iter().map(Into::into).collect(),
            lost: *lost,
            oom_kills: *oom_kills,
            fired_at_count: *fired_at_count,
            total: *total,
        }
    }
}

impl From<&ProcessReceipt> for grpc::ProcessReceipt {
    fn from(process: &ProcessReceipt) -> Self {
        let ProcessReceipt { pid, start: _, comm, init, sent_by, sent, delivered, exited, exit_code, note } =
            process;
        Self {
            pid: pid.unsigned_abs(),
            comm: comm.clone(),
            init: *init,
            sent_by: word(*sent_by).to_owned(),
            sent: Some((*sent).into()),
            delivered: delivered.map(Into::into),
            exited: exited.map(Into::into),
            exit_code: *exit_code,
            note: match note {
                None => "",
                Some(Note::Ignored) => "ignored",
                Some(Note::Blocked) => "blocked",
            }
            .to_owned(),
        }
    }
}

fn word(evidence: Evidence) -> &'static str {
    match evidence {
        Evidence::Ebpf => "ebpf",
        Evidence::Pidfd => "pidfd",
    }
}
