//! Triggers: the status says what the daemon said, and nobody waits for ever.

use jiff::SignedDuration;
use proptest::prelude::*;
use squall_api::chaospolicy::{ChaosPolicySpec, Limits};
use squall_api::names;
use squall_api::podchaos::{
    Action, Mode, Phase, PodChaosSpec, ProcessReceipt, Receipt, TargetPhase, Trigger,
};
use squall_api::probe::OnHalt;
use squall_model::plan::{Report, ReportState, Stage};

use crate::CASES;
use crate::sim::{Sim, spec};

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
                if let Word::NotFired = word {
                    // Only when its time is over; before, it was taken back.
                    sim.now = sim.now.max(sim.status.selected_at.as_ref().map_or(sim.now, |at| at.0 + SignedDuration::from_secs(60)));
                }
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

/// One with a node of its own that has armed it, for a month.
fn armed() -> Sim {
    let mut sim = triggered();
    sim.kills = true;
    sim.chaos.spec.duration = Some("720h".into());
    sim.turn(None);
    assert_eq!(sim.status.targets[0].reason.as_deref(), Some("Armed"), "{:?}", sim.status);
    sim
}

#[test]
fn an_armed_trigger_is_taken_back_when_its_target_is_not_to_be_hit_any_more() {
    type Stop = fn(&mut Sim);
    let stops: [(&str, Stop); 4] = [
        ("Halted", |sim| sim.namespace.halt = Some("incident".into())),
        ("WindowClosed", |sim| {
            let never = ChaosPolicySpec { windows: Some(vec![]), ..ChaosPolicySpec::default() };
            sim.policy(Some(never));
        }),
        ("NotOptedIn", |sim| sim.namespace.opted_in = false),
        ("Protected", |sim| sim.namespace.protect = true),
    ];
    for (reason, stop) in stops {
        for away in [false, true] {
            let mut sim = armed();
            // Its node may be told later, or by another leader.
            if away {
                sim.node.away = true;
                sim.crash();
            }
            stop(&mut sim);
            sim.turn(None);
            sim.node.back();
            for _ in 0..3 {
                sim.news();
                sim.turn(None);
            }
            sim.node.trip();
            assert_eq!(sim.node.signalled, Vec::<String>::new(), "{reason}");
            let target = &sim.status.targets[0];
            assert_eq!((target.phase, target.reason.as_deref()), (TargetPhase::Skipped, Some(reason)));
            assert!(sim.status.completed_at.is_some() && sim.desired.is_empty());
        }
    }
}

#[test]
fn what_a_narrower_selector_leaves_out_is_taken_back_and_nothing_else() {
    for away in [false, true] {
        let trigger = Trigger { syscall: Some("fsync".into()), ..Trigger::default() };
        let mut sim = Sim::new(
            PodChaosSpec {
                trigger: Some(trigger),
                duration: Some("24h".into()),
                ..spec(Action::ContainerKill, Mode::All, None)
            },
            2,
        );
        sim.kills = true;
        sim.turn(None);
        sim.node.away = away;
        sim.narrow();
        sim.turn(None);
        // It may take its node long to hear of it, and its leader may change meanwhile.
        if away {
            sim.crash();
            sim.turn(None);
        }
        sim.node.back();
        for _ in 0..3 {
            sim.news();
            sim.turn(None);
        }
        let left_out = &sim.status.targets[1];
        assert_eq!((left_out.phase, left_out.reason.as_deref()), (TargetPhase::Skipped, Some("Narrowed")));
        sim.node.trip();
        assert_eq!(
            sim.node.signalled,
            sim.status.targets[0].container_id.iter().cloned().collect::<Vec<_>>()
        );
    }
}

#[test]
fn a_deletion_waits_for_a_silent_node_that_has_a_trigger_armed_and_then_names_what_nobody_has_seen() {
    let mut sim = armed();
    sim.node.away = true;
    sim.delete();
    sim.turn(None);
    assert!(!sim.gone, "it is perhaps heard of again");
    let mut other = armed();
    other.node.away = true;
    other.delete();
    other.turn(None);
    other.node.back();
    other.news();
    other.wait(0);
    other.node.trip();
    other.turn(None);
    assert!(other.gone && other.node.signalled.is_empty() && other.desired.is_empty());
    sim.wait(9);
    let plan = sim.plan();
    let note = plan.notes.iter().find(|note| note.reason == "NotSeenRecovered").expect("it is told");
    assert!(note.message.contains("pod-001 app on node node"), "{}", note.message);
    sim.turn(None);
    assert!(sim.gone && sim.desired.is_empty());
}

#[test]
fn a_trigger_that_is_heard_of_or_has_fired_holds_up_no_deletion() {
    let stops: [fn(&mut Sim); 2] = [
        |_| (),
        |sim| {
            sim.node.trip();
            sim.news();
            sim.turn(None);
            sim.node.away = true;
        },
    ];
    for stop in stops {
        let mut sim = armed();
        stop(&mut sim);
        sim.delete();
        let plan = sim.plan();
        assert!(plan.drop_finalizer && plan.notes.is_empty(), "{plan:?}");
    }
}

#[test]
fn a_trigger_waits_no_longer_while_it_is_paused_or_halted_and_waits_again_afterwards() {
    let stops: [fn(&mut Sim, bool); 2] = [
        |sim, on| sim.annotate(names::PAUSE, on.then_some("true")),
        |sim, on| sim.namespace.halt = on.then(|| "incident".to_owned()),
    ];
    for stop in stops {
        let mut sim = armed();
        sim.chaos.spec.on_halt = Some(OnHalt::Resume);
        stop(&mut sim, true);
        for _ in 0..3 {
            sim.news();
            sim.turn(None);
        }
        sim.node.trip();
        assert!(sim.node.signalled.is_empty() && sim.desired.is_empty());
        assert_eq!(
            (sim.status.targets[0].phase, sim.status.completed_at.is_some()),
            (TargetPhase::Selected, false)
        );
        stop(&mut sim, false);
        sim.turn(None);
        sim.node.trip();
        assert_eq!(sim.node.signalled.len(), 1);
    }
}

#[test]
fn a_trigger_that_had_fired_is_waited_for_under_a_halt() {
    let mut sim = armed();
    sim.node.trip();
    sim.namespace.halt = Some("incident".into());
    sim.turn(None);
    sim.exits();
    sim.turn(None);
    sim.turn(None);
    assert_eq!(sim.status.targets[0].phase, TargetPhase::Killed, "{:?}", sim.status);
}

#[test]
fn a_trigger_that_fired_just_before_its_end_is_no_failure_though_its_leader_never_heard_of_it() {
    let mut sim = triggered();
    sim.kills = true;
    sim.turn(None);
    sim.wait(59);
    sim.turn(None);
    assert_eq!(sim.status.targets[0].reason.as_deref(), Some("Armed"), "{:?}", sim.status);
    sim.node.trip();
    sim.crash();
    sim.wait(5);
    sim.crash();
    sim.turn(None);
    // What the node has told.
    sim.turn(None);
    assert_eq!(sim.status.targets[0].reason.as_deref(), Some("Fired"), "{:?}", sim.status);
    sim.exits();
    sim.turn(None);
    sim.turn(None);
    assert_eq!((sim.node.signalled.len(), sim.status.targets[0].phase), (1, TargetPhase::Killed));
}

#[test]
fn a_policys_longest_duration_is_the_longest_that_a_trigger_waits() {
    let limits = |duration: &str| Limits { max_duration: Some(duration.into()), ..Limits::default() };
    for (most, phase) in [("59s", Phase::Failed), ("60s", Phase::Injecting)] {
        let mut sim = triggered();
        sim.policy(Some(ChaosPolicySpec { limits: Some(limits(most)), ..ChaosPolicySpec::default() }));
        sim.turn(None);
        assert_eq!(sim.status.phase, Some(phase), "{:?}", sim.status.message);
    }
}
