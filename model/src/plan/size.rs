//! The object stays under 1 MiB: etcd takes no more than 1.5, and kubectl reads it whole.

use serde::Serialize;
use squall_api::podchaos::{ExperimentStatus, Target, TargetPhase};

use super::MAX_TARGETS;

/// The status may be so large, in bytes of JSON; spec and metadata have the rest.
const LIMIT: usize = 1_000_000;
/// What one target takes beside its names, in bytes: keys, UIDs, phase and the times that are never dropped.
const BARE: usize = 185;
/// What a container takes beside that: how often it was ordered and interrupted.
const COUNTS: usize = 40;
/// Fewer targets than this can't reach the limit: a receipt is some hundred bytes.
const HARMLESS: usize = 300;

/// How many targets an experiment has, and what they take with everything dropped that may be.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Room {
    targets: usize,
    bytes: usize,
}

impl Room {
    /// What is left beside targets that have a past.
    pub(super) fn beside(targets: &[Target]) -> Self {
        Self { targets: targets.len(), bytes: targets.iter().map(shortest).sum() }
    }

    /// Whether there is room for these new ones, too; then it is theirs.
    pub(super) fn takes(&mut self, more: &[Target]) -> bool {
        let targets = self.targets + more.len();
        let bytes = self.bytes + more.iter().map(least).sum::<usize>();
        let fits = targets <= MAX_TARGETS && bytes <= LIMIT;
        if fits {
            *self = Self { targets, bytes };
        }
        fits
    }
}

/// What a target takes now with all that may be dropped, in bytes.
fn shortest(target: &Target) -> usize {
    let mut target = target.clone();
    STEPS.iter().for_each(|step| step(&mut target));
    json(&target)
}

/// What is left in the end of a target that is new, in bytes.
fn least(target: &Target) -> usize {
    // Only a container needs its node, and what names the incarnation, to the end: a fault may come back to it.
    let container = [&target.container, &target.container_id, &target.node];
    let needed = target.container.is_some();
    let container = container.into_iter().flatten().map(|text| text.len() + 18).sum::<usize>() + COUNTS;
    BARE + target.namespace.len() + target.pod.len() + if needed { container } else { 0 }
}

/// What matters least, first: all but one process of each receipt, then whole receipts and what was measured, then what
/// is known of targets that are done with.
const STEPS: [fn(&mut Target); 4] = [
    |target| {
        if let Some(receipt) = &mut target.receipt {
            receipt.processes.truncate(1);
        }
    },
    |target| {
        target.receipt = None;
        target.effect = None;
        target.warnings.clear();
    },
    |target| match target.phase {
        TargetPhase::Killed | TargetPhase::Recovered | TargetPhase::Skipped | TargetPhase::Gone => {
            target.message = None;
            target.ordered_at = None;
            forget_node(target);
        }
        TargetPhase::Injected => {
            target.ordered_at = None;
            forget_node(target);
        }
        TargetPhase::Selected | TargetPhase::Recovering | TargetPhase::Failed | TargetPhase::Released => {}
    },
    |target| match target.phase {
        TargetPhase::Killed | TargetPhase::Recovered | TargetPhase::Skipped => {
            target.owner = None;
            target.was_ready = None;
        }
        TargetPhase::Selected
        | TargetPhase::Injected
        | TargetPhase::Recovering
        | TargetPhase::Failed
        | TargetPhase::Released
        | TargetPhase::Gone => {}
    },
];

/// Drop what matters least until it fits.
pub(super) fn shorten(status: &mut ExperimentStatus) {
    for step in STEPS {
        if status.targets.len() < HARMLESS || json(status) <= LIMIT {
            return;
        }
        status.targets.iter_mut().for_each(step);
    }
}

/// A fault on a container is its node's to put back, and to inject again after a pause or a halt.
fn forget_node(target: &mut Target) {
    if target.container.is_none() {
        target.node = None;
    }
}

/// How long it is when it is written.
fn json(what: &impl Serialize) -> usize {
    // A status is always JSON; if it weren't, it could not be written either.
    serde_json::to_vec(what).map_or(usize::MAX, |json| json.len())
}

#[cfg(test)]
mod tests {
    use std::slice;

    use squall_api::podchaos::{ProcessReceipt, Receipt};

    use super::*;

    fn killed(index: usize) -> Target {
        let process = ProcessReceipt { pid: 1, comm: "c".repeat(15), ..ProcessReceipt::default() };
        Target {
            namespace: "n".repeat(20),
            pod: format!("{}{index}", "p".repeat(40)),
            uid: "u".repeat(36),
            phase: TargetPhase::Killed,
            receipt: Some(Receipt { processes: vec![process; 5], ..Receipt::default() }),
            ..Target::default()
        }
    }

    #[test]
    fn four_thousand_receipts_are_shortened_until_they_fit() {
        let mut status =
            ExperimentStatus { targets: (0..4000).map(killed).collect(), ..ExperimentStatus::default() };
        assert!(json(&status) > LIMIT);
        assert!(Room::default().takes(&status.targets));
        shorten(&mut status);
        assert!(json(&status) <= LIMIT, "{}", json(&status));
        let once = status.clone();
        shorten(&mut status);
        assert_eq!(status, once);
    }

    #[test]
    fn few_are_left_alone() {
        let mut status =
            ExperimentStatus { targets: (0..100).map(killed).collect(), ..ExperimentStatus::default() };
        let before = status.clone();
        shorten(&mut status);
        assert_eq!(status, before);
    }

    #[test]
    fn names_that_are_too_long_in_sum_do_not_fit() {
        let long = Target { pod: "p".repeat(253), namespace: "n".repeat(63), ..Target::default() };
        assert!(!Room::default().takes(&vec![long; 4000]));
    }

    #[test]
    fn what_is_left_of_containers_that_come_and_go_is_counted_as_it_is_written() {
        let gone = |index: usize| Target {
            phase: TargetPhase::Gone,
            container: Some("app".to_owned()),
            container_id: Some(format!("containerd://{}", "c".repeat(64))),
            node: Some("node".repeat(5)),
            owner: Some("o".repeat(36)),
            workload: Some("Deployment/web".to_owned()),
            replacement: Some("p".repeat(40)),
            ..killed(index)
        };
        let mut targets: Vec<Target> = Vec::new();
        let new = Target { phase: TargetPhase::Selected, receipt: None, ..gone(0) };
        while targets.len() < MAX_TARGETS && Room::beside(&targets).takes(slice::from_ref(&new)) {
            targets.extend((0..50).map(gone));
        }
        assert!(targets.len() > 1000 && targets.len() < MAX_TARGETS, "{}", targets.len());
        let mut status = ExperimentStatus { targets, ..ExperimentStatus::default() };
        shorten(&mut status);
        // Fifty came in at once.
        assert!(json(&status) <= LIMIT + 50 * json(&gone(0)), "{}", json(&status));
    }

    #[test]
    fn what_a_fault_needs_to_come_back_to_a_container_stays() {
        let recovered = |index: usize| Target {
            phase: TargetPhase::Recovered,
            container: Some("app".to_owned()),
            container_id: Some("containerd://c".to_owned()),
            node: Some("node-1".to_owned()),
            message: Some("m".repeat(600)),
            ..killed(index)
        };
        let mut status =
            ExperimentStatus { targets: (0..2000).map(recovered).collect(), ..ExperimentStatus::default() };
        shorten(&mut status);
        assert_eq!(status.targets[0].message, None);
        assert!(status.targets.iter().all(|target| target.node.is_some() && target.container_id.is_some()));
    }
}
