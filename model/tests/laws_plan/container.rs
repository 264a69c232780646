//! container-kill: ordered once, reported, given up in time; no container gets its signal twice.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use proptest::prelude::*;
use squall_api::names;
use squall_api::podchaos::{Action, Mode, Phase, PodChaosSpec, TargetPhase, Trigger};
use squall_api::probe::OnHalt;
use squall_model::plan::{Report, ReportState, Stage};

use crate::CASES;
use crate::moves::{Move, moves, play};
use crate::sim::{Sim, spec};

#[test]
fn a_container_is_ordered_once_and_reported() {
    let mut sim = Sim::new(spec(Action::ContainerKill, Mode::One, None), 3);
    let first = sim.plan();
    assert!(
        first.orders.iter().all(|order| order.stage == Stage::Arm) && first.orders.len() == 1,
        "{:?}",
        first.orders
    );
    sim.turn(None);
    let orders = sim.plan().orders;
    assert!(orders.len() == 1 && orders[0].stage == Stage::Fire, "{orders:?}");
    sim.reports.insert(
        orders[0].id.clone(),
        Report { state: ReportState::Done, exit_code: Some(137), exited: Some(sim.now), ..Report::default() },
    );
    sim.turn(None);
    assert_eq!(sim.status.phase, Some(Phase::Completed));
    assert_eq!(sim.status.targets[0].exit_code, Some(137));
    assert!(sim.plan().orders.is_empty());
}

#[test]
fn a_node_without_a_daemon_is_named_within_ten_seconds() {
    let mut sim = Sim::new(spec(Action::ContainerKill, Mode::One, None), 1);
    let name = sim.pods.keys().next().cloned().unwrap();
    sim.pods.get_mut(&name).unwrap().spec.as_mut().unwrap().node_name = Some("without".into());
    sim.see();
    sim.turn(None);
    sim.wait(9);
    sim.turn(None);
    assert_eq!(sim.status.phase, Some(Phase::Failed));
    assert!(
        sim.status.message.as_deref().unwrap_or_default().contains("without"),
        "{:?}",
        sim.status.message
    );
}

#[test]
fn a_daemon_that_goes_with_the_order_is_missed_within_ten_seconds_and_the_order_stays_till_then() {
    let mut sim = Sim::new(spec(Action::ContainerKill, Mode::One, None), 1);
    sim.turn(None);
    assert!(sim.status.targets[0].ordered_at.is_some());
    sim.without_daemons = true;
    sim.wait(5);
    sim.turn(None);
    assert_eq!(sim.plan().orders.len(), 1, "a daemon that is being replaced would forget what it did");
    sim.wait(4);
    sim.turn(None);
    assert_eq!(sim.status.phase, Some(Phase::Failed));
    assert_eq!(sim.status.targets[0].reason.as_deref(), Some("NoDaemon"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    /// However often the controller dies, the node is away and people pause, halt or withdraw: no container is signalled
    /// twice, and each that was is called killed.
    #[test]
    fn no_container_is_signalled_twice_and_no_signal_is_forgotten(
        waits: bool,
        pods in 1_u32..5,
        moves in moves(),
    ) {
        let trigger = Trigger { syscall: Some("fsync".into()), ..Trigger::default() };
        let mut sim = Sim::new(PodChaosSpec {
            signal: Some(IntOrString::String("SIGTERM".into())),
            trigger: waits.then_some(trigger),
            duration: Some("24h".into()),
            on_halt: Some(OnHalt::Resume),
            ..spec(Action::ContainerKill, Mode::All, None)
        }, pods);
        sim.kills = true;
        for step in moves {
            match step {
                // What a killed daemon had armed nobody knows, and what becomes of a pod that goes neither.
                Move::KillDaemon | Move::DeletePod(_) => continue,
                step => play(&mut sim, vec![step]),
            }
            let once: BTreeSet<&String> = sim.node.signalled.iter().collect();
            prop_assert_eq!(once.len(), sim.node.signalled.len(), "signalled twice: {:?}", sim.node.signalled);
        }
        sim.node.back();
        for _ in 0..4 {
            sim.exits();
            sim.all_catch_up();
            sim.news();
            sim.turn(None);
        }
        for id in &sim.node.signalled {
            let target = sim.status.targets.iter().find(|target| target.container_id.as_ref() == Some(id));
            prop_assert_eq!(target.map(|target| target.phase), Some(TargetPhase::Killed), "{:?}", sim.status);
        }
    }
}

#[test]
fn a_kill_that_its_leader_never_heard_of_again_is_not_repeated_after_a_pause() {
    let mut sim = Sim::new(spec(Action::ContainerKill, Mode::One, None), 1);
    sim.kills = true;
    sim.turn(None);
    assert_eq!(sim.node.signalled.len(), 1);
    sim.crash();
    sim.annotate(names::PAUSE, Some("true"));
    sim.turn(None);
    sim.crash();
    sim.annotate(names::PAUSE, None);
    sim.turn(None);
    sim.exits();
    sim.turn(None);
    sim.turn(None);
    assert_eq!((sim.node.signalled.len(), sim.status.targets[0].phase), (1, TargetPhase::Killed));
}

#[test]
fn a_process_that_takes_its_time_to_end_is_waited_for_by_the_next_leader_too() {
    let mut sim = Sim::new(spec(Action::ContainerKill, Mode::One, None), 1);
    sim.kills = true;
    sim.turn(None);
    sim.wait(70);
    sim.turn(None);
    assert!(sim.status.targets[0].receipt.is_some());
    sim.crash();
    for _ in 0..2 {
        sim.turn(None);
        assert_eq!(sim.status.targets[0].phase, TargetPhase::Selected, "{:?}", sim.status);
        assert_eq!(sim.desired.len(), 1);
    }
    sim.exits();
    sim.turn(None);
    // What the node has told.
    sim.turn(None);
    assert_eq!((sim.node.signalled.len(), sim.status.targets[0].phase), (1, TargetPhase::Killed));
}

#[test]
fn a_kill_whose_time_is_over_is_not_begun_by_a_leader_that_has_not_heard_of_its_node() {
    let mut sim = Sim::new(spec(Action::ContainerKill, Mode::One, None), 1);
    (sim.kills, sim.node.away) = (true, true);
    sim.turn(None);
    sim.wait(65);
    sim.crash();
    sim.turn(None);
    assert_eq!(sim.status.targets[0].phase, TargetPhase::Selected, "{:?}", sim.status);
    sim.node.back();
    sim.news();
    sim.turn(None);
    assert_eq!(sim.node.signalled, Vec::<String>::new());
    assert_eq!(sim.status.targets[0].reason.as_deref(), Some("TimedOut"), "{:?}", sim.status);
}

#[test]
fn a_container_that_a_narrower_selector_leaves_out_is_not_signalled_any_more() {
    let mut sim = Sim::new(spec(Action::ContainerKill, Mode::All, None), 2);
    sim.kills = true;
    // It dies right after the choice is written; the daemon has armed both.
    let plan = sim.plan();
    sim.order(&plan.orders, false);
    sim.status = plan.status;
    sim.crash();
    sim.narrow();
    for _ in 0..3 {
        sim.turn(None);
        sim.news();
        sim.exits();
    }
    assert_eq!(sim.node.signalled.len(), 1);
    let phases: Vec<(TargetPhase, Option<&str>)> =
        sim.status.targets.iter().map(|target| (target.phase, target.reason.as_deref())).collect();
    assert_eq!(phases, [(TargetPhase::Killed, None), (TargetPhase::Skipped, Some("Narrowed"))]);
}

#[test]
fn a_kill_that_was_chosen_and_not_ordered_is_not_ordered_under_a_halt() {
    let mut sim = Sim::new(spec(Action::ContainerKill, Mode::One, None), 1);
    sim.kills = true;
    // It dies right after the choice is written; the daemon has armed.
    let plan = sim.plan();
    sim.order(&plan.orders, false);
    sim.status = plan.status;
    sim.crash();
    sim.namespace.halt = Some("incident".into());
    for _ in 0..3 {
        sim.turn(None);
        sim.news();
    }
    assert!(sim.node.signalled.is_empty());
    let target = &sim.status.targets[0];
    assert_eq!((target.phase, target.reason.as_deref()), (TargetPhase::Skipped, Some("Halted")));
    assert_eq!(sim.status.phase, Some(Phase::Halted));
}
