//! Triggers: the status says what the daemon said, and nobody waits for ever.

use proptest::prelude::*;
use squall_api::podchaos::{
    Action, Mode, Phase, PodChaosSpec, ProcessReceipt, Receipt, TargetPhase, Trigger,
};
use squall_model::plan::{Report, ReportState, Stage};

use crate::CASES;
use crate::sim::Sim;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    /// The status of a trigger says what its daemon said: armed; fired, at which call and by whom; how it ended. However
    /// often the controller dies, however late the words come.
    #[test]
    fn a_triggers_status_says_what_its_daemon_said(
        steps in proptest::collection::vec((any::<bool>(), 0_i64..6, proptest::option::of(0_u32..4)), 1..10),
        fires in any::<bool>(),
    ) {
        let mut sim = triggered();
        let id = sim.plan().orders[0].id.clone();
        sim.turn(None);
        let words: &[Word] =
            if fires { &[Word::Armed, Word::Fired, Word::Ended] } else { &[Word::Armed, Word::NotFired] };
        let mut said = None;
        let mut rest = words.iter();
        for (speaks, seconds, crash) in steps {
            if speaks && let Some(word) = rest.next() {
                said = Some(*word);
                sim.reports.insert(id.clone(), word.report(&sim));
            }
            sim.wait(seconds);
            if crash.is_some() {
                sim.turn(crash);
            }
            sim.turn(None);
            let (target, orders) = (&sim.status.targets[0], sim.plan().orders);
            let (phase, reason) = (target.phase, target.reason.as_deref());
            let fired_at = target.receipt.as_ref().and_then(|receipt| receipt.fired_at_count);
            let until = orders.first().map(|order| (order.stage, order.until.is_some()));
            match said {
                None => prop_assert_eq!(
                    (phase, reason, fired_at, until),
                    (TargetPhase::Selected, None, None, Some((Stage::Fire, true)))
                ),
                Some(Word::Armed) => prop_assert_eq!(
                    (phase, reason, fired_at, until),
                    (TargetPhase::Selected, Some("Armed"), None, Some((Stage::Fire, true)))
                ),
                // It has no end of its own any more: its process is waited for.
                Some(Word::Fired) => prop_assert_eq!(
                    (phase, reason, fired_at, until),
                    (TargetPhase::Selected, Some("Fired"), Some(3), Some((Stage::Fire, false)))
                ),
                Some(Word::Ended) => {
                    prop_assert_eq!((phase, reason, fired_at, until), (TargetPhase::Killed, None, Some(3), None));
                    prop_assert_eq!(sim.status.phase, Some(Phase::Completed));
                }
                Some(Word::NotFired) => {
                    prop_assert_eq!(
                        (phase, reason, fired_at, until),
                        (TargetPhase::Failed, Some("NotTriggered"), None, None)
                    );
                    prop_assert!(target.message.as_deref().unwrap_or_default().contains("2 calls so far"));
                    prop_assert_eq!(sim.status.phase, Some(Phase::Failed));
                }
            }
            let pid = target.receipt.as_ref().and_then(|receipt| receipt.processes.first()).map(|one| one.pid);
            prop_assert_eq!(pid, fired_at.map(|_| 42));
        }
    }
}

/// What a daemon has to say of a trigger.
#[derive(Clone, Copy, Debug)]
enum Word {
    Armed,
    Fired,
    Ended,
    NotFired,
}

impl Word {
    fn report(self, sim: &Sim) -> Report {
        let process = ProcessReceipt { pid: 42, comm: "app".into(), ..ProcessReceipt::default() };
        let receipt = Receipt {
            evidence: "ebpf".into(),
            signal: 9,
            processes: vec![process],
            total: 1,
            fired_at_count: Some(3),
            ..Receipt::default()
        };
        let fired = Report { receipt: Some(receipt), ..Report::default() };
        match self {
            Self::Armed => Report { message: "armed".into(), ..Report::default() },
            Self::Fired => Report { message: "fired".into(), ..fired },
            Self::Ended => {
                Report { state: ReportState::Done, exit_code: Some(137), exited: Some(sim.now), ..fired }
            }
            Self::NotFired => Report {
                state: ReportState::Failed,
                reason: "NotTriggered".into(),
                message: "no process called fsync in time (2 calls so far)".into(),
                ..Report::default()
            },
        }
    }
}

fn triggered() -> Sim {
    let trigger = Trigger { syscall: Some("fsync".into()), nth: Some(3), ..Trigger::default() };
    let spec = PodChaosSpec {
        trigger: Some(trigger),
        duration: Some("60s".into()),
        ..spec(Action::ContainerKill, Mode::One, None)
    };
    Sim::new(spec, 1)
}

#[test]
fn a_trigger_that_nobody_tells_of_any_more_is_given_up_and_one_that_fired_is_waited_for() {
    for (word, patience) in [(Word::Armed, 70), (Word::Fired, 190)] {
        let mut sim = triggered();
        sim.turn(None);
        let id = sim.plan().orders[0].id.clone();
        sim.reports.insert(id, word.report(&sim));
        sim.wait(patience - 1);
        sim.turn(None);
        assert_eq!(sim.status.targets[0].phase, TargetPhase::Selected, "{word:?}");
        sim.wait(1);
        sim.turn(None);
        assert_eq!(sim.status.targets[0].reason.as_deref(), Some("TimedOut"), "{word:?}");
    }
}
