//! Lasting faults by the clock, what is released as too much, and what the conditions say meanwhile.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use proptest::prelude::*;
use squall_api::names;
use squall_api::podchaos::{Action, Mode, Phase, TargetPhase};

use crate::CASES;
use crate::moves::{moves, play};
use crate::sim::{Sim, spec, told};

fn failing(pods: u32) -> Sim {
    let mut spec = spec(Action::PodFailure, Mode::All, None);
    spec.duration = Some("5m".into());
    Sim::new(spec, pods)
}

fn reasons(sim: &Sim) -> Vec<(TargetPhase, Option<&str>)> {
    sim.status.targets.iter().map(|target| (target.phase, target.reason.as_deref())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    /// kstatus and `kubectl wait` are told the truth in each phase, of the generation that was looked at.
    #[test]
    fn conditions_follow_the_phase(
        action in prop_oneof![Just(Action::PodFailure), Just(Action::PodKill), Just(Action::ContainerFreeze)],
        pods in 0_u32..4,
        moves in moves(),
    ) {
        let mut sim = Sim::new(spec(action, Mode::All, None), pods);
        for (generation, step) in (2..).zip(moves) {
            sim.chaos.metadata.generation = Some(generation);
            play(&mut sim, vec![step]);
            let status = sim.plan().status;
            prop_assert_eq!(status.observed_generation, Some(generation));
            let find = |kind: &str| status.conditions.iter().find(|condition| condition.type_ == kind);
            let holds = |kind: &str| find(kind).map(|condition| condition.status == "True");
            let (busy, stalled, over) = match status.phase.unwrap_or_default() {
                Phase::Pending | Phase::Injecting | Phase::Recovering => (true, None, false),
                Phase::Injected | Phase::Paused => (false, None, false),
                Phase::Completed => (false, None, true),
                Phase::Failed => (false, Some(true), true),
                // With a halt that may be lifted it is not over.
                Phase::Halted => (false, Some(true), status.completed_at.is_some()),
            };
            prop_assert_eq!((holds("Reconciling"), holds("Stalled")), (busy.then_some(true), stalled), "{:?}", status);
            prop_assert_eq!((holds("Completed"), status.completed_at.is_some()), (Some(over), over));
            prop_assert_eq!(holds("Paused"), Some(status.phase == Some(Phase::Paused)));
            for kind in ["Selected", "Injected", "Recovered", "Paused", "Reconciling", "Stalled"] {
                let seen = find(kind).map(|condition| condition.observed_generation);
                prop_assert!(seen.is_none_or(|seen| over || seen == Some(generation)), "{kind}: {:?}", status);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    /// Whoever may write a status may write any time into it.
    #[test]
    fn no_time_in_a_status_is_a_panic(
        action in prop_oneof![
            Just(Action::PodFailure),
            Just(Action::PodKill),
            Just(Action::ContainerKill),
            Just(Action::ContainerFreeze),
        ],
        duration: bool,
        pods in 0_u32..4,
        moves in moves(),
        last: bool,
        which: [bool; 5],
        end in 0..4,
    ) {
        let mut spec = spec(action, Mode::All, None);
        spec.duration = duration.then(|| "30s".to_owned());
        let mut sim = Sim::new(spec, pods);
        play(&mut sim, moves);
        let at = MicroTime(if last { Timestamp::MAX } else { Timestamp::MIN });
        let write = |time: &mut Option<MicroTime>| {
            if time.is_some() {
                *time = Some(at.clone());
            }
        };
        let status = &mut sim.status;
        let times = [
            &mut status.selected_at,
            &mut status.looking_since,
            &mut status.started_at,
            &mut status.ends_at,
            &mut status.completed_at,
        ];
        times.into_iter().zip(which).filter(|(_, this)| *this).for_each(|(time, _)| write(time));
        for target in &mut status.targets {
            let times = [
                &mut target.ordered_at,
                &mut target.injected_at,
                &mut target.gone_at,
                &mut target.recovered_at,
                &mut target.ready_at,
            ];
            times.into_iter().zip(which).filter(|(_, this)| *this).for_each(|(time, _)| write(time));
        }
        match end {
            0 => sim.delete(),
            1 => sim.annotate(names::PAUSE, Some("true")),
            2 => sim.chaos.spec.duration = Some("720h".to_owned()),
            _ => {}
        }
        sim.plan();
        sim.node.back();
        sim.news();
        sim.plan();
    }
}

#[test]
fn what_the_api_refuses_for_a_minute_is_not_injected_any_more() {
    let mut sim = failing(2);
    sim.failing = u32::MAX;
    sim.turn(None);
    sim.wait(59);
    sim.turn(None);
    assert_eq!(reasons(&sim), [(TargetPhase::Selected, None); 2]);
    sim.wait(2);
    sim.turn(None);
    assert_eq!(reasons(&sim), [(TargetPhase::Failed, Some("NotInjected")); 2]);
    sim.failing = 0;
    sim.settle();
    sim.assert_untouched();
}

#[test]
fn a_target_that_still_runs_its_original_after_a_minute_is_recovered() {
    let mut sim = failing(1);
    for seconds in [0, 59] {
        sim.wait(seconds);
        sim.turn(None);
        // The kubelet does nothing.
        sim.see();
        assert_eq!((sim.failed(), sim.status.targets[0].phase), (1, TargetPhase::Selected));
    }
    sim.wait(1);
    sim.turn(None);
    assert_eq!(reasons(&sim), [(TargetPhase::Failed, Some("NotInjected"))]);
    sim.settle();
    sim.assert_untouched();
}

#[test]
fn the_clock_starts_when_all_are_injected_and_at_the_latest_after_half_a_minute() {
    let mut sim = failing(2);
    sim.settle();
    assert_eq!(sim.status.started_at.as_ref().map(|at| at.0), Some(sim.now));
    let mut sim = failing(2);
    sim.turn(None);
    let first = sim.now;
    // Of one the kubelet does nothing.
    let name = sim.pods.keys().next().cloned().unwrap();
    sim.kubelet(&name);
    for seconds in [0, 29] {
        sim.wait(seconds);
        sim.see();
        sim.turn(None);
        assert_eq!((sim.status.started_at.clone(), told(&sim).0), (None, Some(Phase::Injecting)));
    }
    assert_eq!(sim.plan().wake, Some(first + SignedDuration::from_secs(30)));
    sim.wait(1);
    sim.turn(None);
    assert_eq!(sim.status.started_at.as_ref().map(|at| at.0), Some(sim.now));
}

#[test]
fn a_pod_that_is_not_ready_again_is_waited_for_for_ten_minutes() {
    let mut sim = failing(1);
    sim.settle();
    sim.annotate(names::PAUSE, Some("true"));
    // Its images are back, and the kubelet starts nothing.
    for (seconds, phase) in
        [(0, TargetPhase::Recovering), (599, TargetPhase::Recovering), (1, TargetPhase::Failed)]
    {
        sim.wait(seconds);
        sim.turn(None);
        sim.see();
        sim.turn(None);
        assert_eq!(sim.status.targets[0].phase, phase);
    }
    assert_eq!(sim.status.targets[0].reason.as_deref(), Some("NotReadyAgain"));
    sim.assert_untouched();
}

#[test]
fn a_newborn_that_never_was_ready_need_not_become_so() {
    let mut sim = failing(1);
    sim.settle();
    let first = sim.pods.keys().next().cloned().unwrap();
    sim.pods.remove(&first);
    let born = sim.birth();
    sim.see();
    // There is no room for it: no kubelet ever has it.
    sim.pods.get_mut(&born).unwrap().status = None;
    sim.see();
    for _ in 0..3 {
        sim.turn(None);
        sim.see();
    }
    assert_eq!((sim.failed(), sim.status.targets.len()), (1, 2));
    sim.wait(301);
    for _ in 0..3 {
        sim.turn(None);
        sim.see();
    }
    sim.assert_untouched();
    assert_eq!(told(&sim).0, Some(Phase::Completed), "{:?}", sim.status);
}

#[test]
fn what_is_more_than_a_policy_allows_is_released_and_not_hit_again() {
    for action in [Action::PodFailure, Action::ContainerFreeze] {
        let mut sim = Sim::new(spec(action, Mode::All, None), 2);
        sim.settle();
        let hit = |sim: &Sim| sim.failed() + sim.hit_on_the_node();
        assert_eq!(hit(&sim), 2);
        let uid = sim.status.targets[0].uid.clone();
        sim.exceed(&uid);
        sim.settle();
        sim.excess.clear();
        sim.settle();
        assert_eq!(hit(&sim), 1);
        let target = &sim.status.targets[0];
        assert_eq!((target.phase, target.reason.as_deref()), (TargetPhase::Released, Some("PolicyRefused")));
        let message = target.message.clone().unwrap_or_default();
        assert!(message.contains("ChaosPolicy p, limits.maxTargets"), "{message}");
    }
}
