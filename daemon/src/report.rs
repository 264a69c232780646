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
}

impl State {
    /// Whether nothing will follow.
    pub fn is_final(self) -> bool {
        match self {
            Self::Armed | Self::Fired => false,
            Self::Done | Self::Refused(_) | Self::Failed(_) => true,
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
    /// This daemon does not know that fault.
    Unsupported,
    /// Something that should not happen; the message tells.
    Internal,
}

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
    /// The processes that were signalled.
    pub processes: Vec<ProcessReceipt>,
    /// Records of the kernel that were lost.
    pub lost: u64,
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

impl From<Generation> for grpc::Generation {
    fn from(Generation { term, counter }: Generation) -> Self {
        Self { term, counter }
    }
}

impl From<&FaultReport> for grpc::FaultReport {
    fn from(FaultReport { id, state, message, receipt }: &FaultReport) -> Self {
        let (state, reason) = match state {
            State::Armed => (grpc::FaultState::Armed, None),
            State::Fired => (grpc::FaultState::Fired, None),
            State::Done => (grpc::FaultState::Done, None),
            State::Refused(reason) => (grpc::FaultState::Refused, Some(reason)),
            State::Failed(reason) => (grpc::FaultState::Failed, Some(reason)),
        };
        Self {
            id: id.clone(),
            state: state.into(),
            // The variants' names are the words of the contract.
            reason: reason.map(|reason| format!("{reason:?}")).unwrap_or_default(),
            message: message.clone(),
            receipt: receipt.as_ref().map(Into::into),
            ..Self::default()
        }
    }
}

impl From<&Receipt> for grpc::Receipt {
    fn from(receipt: &Receipt) -> Self {
        let Receipt { evidence, evidence_error, signal, ordered, fired, processes, lost } = receipt;
        Self {
            evidence: word(*evidence).to_owned(),
            evidence_error: evidence_error.clone(),
            signal: *signal,
            ordered: Some((*ordered).into()),
            fired: fired.map(Into::into),
            processes: processes.iter().map(Into::into).collect(),
            lost: *lost,
            ..Self::default()
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
