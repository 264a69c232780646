//! The cluster as decisions ask for it: the index, and what the daemons have told.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use squall_api::{grpc, status};
use squall_model::plan::{Daemon, Report, ReportState, World};
use squall_model::pod::{NamespaceView, PodView};
use squall_model::policy::choice::Budget;
use squall_model::policy::ledger::Ledger;
use squall_model::policy::{Policies, Refusal};
use squall_model::probe::Steady;

use crate::guard::Book;
use crate::nodes::{Nodes, Presence};
use crate::observe::Index;

/// A moment's view of the cluster.
pub struct Cluster<'a> {
    /// The API server's part.
    pub index: &'a Index,
    /// The daemons' part.
    pub nodes: &'a Nodes,
    /// What is hit now.
    pub book: &'a Book,
}

impl squall_model::select::Nodes for Cluster<'_> {
    fn labels(&self, node: &str) -> Option<&BTreeMap<String, String>> {
        self.index.node_labels(node)
    }
}

impl World for Cluster<'_> {
    fn namespace(&self, name: &str) -> Option<&NamespaceView> {
        self.index.namespace(name)
    }

    fn pods<'a>(&'a self, namespace: &str) -> Box<dyn Iterator<Item = &'a PodView> + 'a> {
        Box::new(self.index.pods_in(namespace))
    }

    fn pod(&self, namespace: &str, name: &str) -> Option<&PodView> {
        self.index.pod(namespace, name)
    }

    fn held_by<'a>(&'a self, uid: &str) -> Box<dyn Iterator<Item = &'a PodView> + 'a> {
        Box::new(self.index.held_by(uid))
    }

    fn owned_by<'a>(&'a self, uid: &str) -> Box<dyn Iterator<Item = &'a PodView> + 'a> {
        Box::new(self.index.owned_by(uid))
    }

    fn policies(&self) -> &Policies {
        self.index.rules()
    }

    fn ledger(&self) -> &Ledger {
        &self.book.ledger
    }

    fn budgets(&self, namespace: &str) -> &[Budget] {
        self.index.budgets_in(namespace)
    }

    fn excess(&self, uid: &str) -> Option<&Refusal> {
        self.book.excess.get(uid)
    }

    fn steady(&self, uid: &str) -> Steady {
        self.book.steady.get(uid).cloned().unwrap_or_default()
    }

    fn watched(&self, name: &str) -> Option<Steady> {
        self.book.watched.get(name).cloned()
    }

    fn daemon(&self, node: &str) -> Daemon {
        daemon(self.nodes.presence(node), self.nodes.are_new())
    }

    fn report(&self, node: &str, id: &str) -> Option<Report> {
        self.nodes.report(node, id).map(report)
    }
}

/// `new`: this replica has led for a moment only.
fn daemon(presence: Presence, new: bool) -> Daemon {
    match presence {
        Presence::NoDaemon => Daemon::None,
        Presence::Unheard => Daemon::Unheard,
        // One try that failed says little: the next comes within a second.
        Presence::Connecting { .. } if new => Daemon::Unheard,
        Presence::Connecting { error } => {
            Daemon::Unreachable(error.unwrap_or_else(|| "it is being connected to".to_owned()))
        }
        // What it doesn't take it will never carry out or end as ordered: as good as away, and it says why.
        Presence::Ready { readiness: _, since: _, refusal: Some(why) } => {
            Daemon::Unreachable(format!("it refuses its orders: {why}"))
        }
        Presence::Ready { readiness: _, since: _, refusal: None } => Daemon::Ready,
    }
}

/// How many processes of one container are named in a receipt; the daemon's log has all.
const NAMED_PROCESSES: usize = 5;

fn report(report: grpc::FaultReport) -> Report {
    let state = match report.state() {
        grpc::FaultState::Unspecified | grpc::FaultState::Armed | grpc::FaultState::Fired => {
            ReportState::Underway
        }
        grpc::FaultState::Done => ReportState::Done,
        grpc::FaultState::Injected => ReportState::Injected,
        grpc::FaultState::Recovered => ReportState::Recovered,
        grpc::FaultState::Refused => ReportState::Refused,
        grpc::FaultState::Failed => ReportState::Failed,
    };
    let processes = report.receipt.as_ref().map_or(&[][..], |receipt| &receipt.processes);
    let exit_code = processes.iter().find(|process| process.init).and_then(|process| process.exit_code);
    let exited = processes.iter().filter_map(|process| process.exited.as_ref()).filter_map(timestamp).max();
    Report {
        state,
        reason: report.reason,
        message: report.message,
        receipt: report.receipt.map(receipt),
        exit_code,
        exited,
        effect: report.effect.map(effect),
        interruptions: report.interruptions,
        warnings: report.warnings,
    }
}

fn effect(effect: grpc::Effect) -> status::Effect {
    let grpc::Effect { before, during, after } = effect;
    status::Effect { before: before.map(usage), during: during.map(usage), after: after.map(usage) }
}

fn usage(usage: grpc::Usage) -> status::Usage {
    let grpc::Usage { cpu_millis, memory_bytes, cpu_pressure, memory_pressure, io_pressure, pids, io_bps } =
        usage;
    let large = |value: Option<u64>| value.map(|value| i64::try_from(value).unwrap_or(i64::MAX));
    let small = |value: Option<u32>| value.map(|value| i32::try_from(value).unwrap_or(i32::MAX));
    status::Usage {
        cpu_millis: large(cpu_millis),
        memory_bytes: large(memory_bytes),
        cpu_pressure: small(cpu_pressure),
        memory_pressure: small(memory_pressure),
        io_pressure: small(io_pressure),
        pids: large(pids),
        io_bps: large(io_bps),
    }
}

fn receipt(receipt: grpc::Receipt) -> status::Receipt {
    // A daemon may list fewer than it counts; an earlier one counts none.
    let total = receipt.processes.len().max(receipt.total as usize);
    let total = i32::try_from(total).unwrap_or(i32::MAX);
    status::Receipt {
        evidence: receipt.evidence,
        evidence_error: (!receipt.evidence_error.is_empty()).then_some(receipt.evidence_error),
        signal: receipt.signal,
        processes: receipt.processes.into_iter().take(NAMED_PROCESSES).map(process).collect(),
        total,
        lost: (receipt.lost > 0).then(|| i64::try_from(receipt.lost).unwrap_or(i64::MAX)),
        oom_kills: (receipt.oom_kills > 0).then(|| i64::try_from(receipt.oom_kills).unwrap_or(i64::MAX)),
        fired_at_count: (receipt.fired_at_count > 0).then(|| i64::from(receipt.fired_at_count)),
    }
}

fn process(process: grpc::ProcessReceipt) -> status::ProcessReceipt {
    let time = |time: Option<prost_types::Timestamp>| time.as_ref().and_then(timestamp).map(MicroTime);
    status::ProcessReceipt {
        pid: i64::from(process.pid),
        comm: process.comm,
        sent: time(process.sent),
        delivered: time(process.delivered),
        exited: time(process.exited),
        exit_code: process.exit_code,
        note: (!process.note.is_empty()).then_some(process.note),
    }
}

fn timestamp(time: &prost_types::Timestamp) -> Option<Timestamp> {
    Timestamp::new(time.seconds, time.nanos).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receipt_names_few_and_counts_all() {
        let of = |listed, total| {
            let processes = vec![grpc::ProcessReceipt::default(); listed];
            let receipt = receipt(grpc::Receipt { processes, total, ..grpc::Receipt::default() });
            (receipt.processes.len(), receipt.total)
        };
        assert_eq!(of(64, 200), (NAMED_PROCESSES, 200));
        // An earlier daemon counts none.
        assert_eq!(of(64, 0), (NAMED_PROCESSES, 64));
    }

    #[test]
    fn a_first_try_that_failed_makes_no_silent_node() {
        let connecting = || Presence::Connecting { error: Some("connection refused".to_owned()) };
        assert_eq!(daemon(connecting(), true), Daemon::Unheard);
        assert_eq!(daemon(connecting(), false), Daemon::Unreachable("connection refused".to_owned()));
        assert_eq!(daemon(Presence::NoDaemon, true), Daemon::None);
    }

    #[test]
    fn a_daemon_that_refuses_its_orders_is_not_ready_and_says_why() {
        let ready = |refusal: Option<&str>| Presence::Ready {
            readiness: grpc::Readiness::default(),
            since: Timestamp::UNIX_EPOCH,
            refusal: refusal.map(str::to_owned),
        };
        let why = "writing /run/squall/journal/journal: no space left on device";
        let refusing = Daemon::Unreachable(format!("it refuses its orders: {why}"));
        for new in [true, false] {
            assert_eq!(daemon(ready(Some(why)), new), refusing);
            assert_eq!(daemon(ready(None), new), Daemon::Ready);
        }
    }

    #[test]
    fn a_daemon_of_another_version_is_understood_as_far_as_it_is_known() {
        // An earlier one says nothing of what came later.
        let earlier =
            grpc::FaultReport { state: grpc::FaultState::Done.into(), ..grpc::FaultReport::default() };
        assert_eq!(report(earlier).state, ReportState::Done);
        // A later one may be in a state that has no name yet: not over, as far as anybody here can tell.
        let later = grpc::FaultReport { state: 77, ..grpc::FaultReport::default() };
        assert_eq!(report(later).state, ReportState::Underway);
    }
}
