//! The object stays under 1 MiB: etcd takes no more than 1.5, and kubectl reads it whole.

use squall_api::podchaos::{ExperimentStatus, Target, TargetPhase};

/// The status may be so large, in bytes of JSON; spec and metadata have the rest.
const LIMIT: usize = 1_000_000;
/// What one target takes beside its names, in bytes: keys, UIDs, phase and the times that are never dropped.
const BARE: usize = 185;
/// What a container takes beside that: how often it was ordered and interrupted.
const COUNTS: usize = 40;
/// Fewer targets than this can't reach the limit: a receipt is some hundred bytes.
const HARMLESS: usize = 300;

/// Whether so many targets fit at all, with everything dropped that may be.
pub(super) fn fits(targets: &[Target]) -> bool {
    // Only a container's kill needs the node, and what names the incarnation, to the end.
    let names = |target: &Target| {
        let container = [&target.container, &target.container_id, &target.node];
        let needed = target.container.is_some();
        let container = container.into_iter().flatten().map(|text| text.len() + 18).sum::<usize>() + COUNTS;
        target.namespace.len() + target.pod.len() + if needed { container } else { 0 }
    };
    targets.iter().map(|target| BARE + names(target)).sum::<usize>() <= LIMIT
}

/// Drop what matters least until it fits: first all but one process of each receipt, then whole receipts and
/// what was measured, then what is known of targets that are done with.
pub(super) fn shorten(status: &mut ExperimentStatus) {
    let steps: [fn(&mut Target); 4] = [
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
                target.node = None;
            }
            TargetPhase::Injected => {
                target.ordered_at = None;
                // Who takes it back from a container is its node.
                if target.container.is_none() {
                    target.node = None;
                }
            }
            TargetPhase::Selected | TargetPhase::Recovering | TargetPhase::Failed | TargetPhase::Released => {
            }
        },
        |target| match target.phase {
            TargetPhase::Killed | TargetPhase::Recovered | TargetPhase::Skipped => {
                target.owner = None;
                target.container_id = None;
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
    for step in steps {
        if status.targets.len() < HARMLESS || size(status) <= LIMIT {
            return;
        }
        status.targets.iter_mut().for_each(step);
    }
}

fn size(status: &ExperimentStatus) -> usize {
    // A status is always JSON; if it weren't, it could not be written either.
    serde_json::to_vec(status).map_or(usize::MAX, |json| json.len())
}

#[cfg(test)]
mod tests {
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
        assert!(size(&status) > LIMIT);
        assert!(fits(&status.targets));
        shorten(&mut status);
        assert!(size(&status) <= LIMIT, "{}", size(&status));
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
        assert!(!fits(&vec![long; 4000]));
    }
}
