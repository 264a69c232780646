//! Lasting faults that nodes hold: they end, and nothing is called put back that nobody has seen put back.

use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use proptest::prelude::*;
use squall_api::names;
use squall_api::podchaos::{Action, Mode, Phase, TargetPhase};
use squall_model::policy::ledger::Hold;

use crate::CASES;
use crate::moves::{Move, moves, play};
use crate::sim::{Sim, spec};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    /// The same of a fault that a node holds: deleting it ends, and nothing stands or is ordered any more.
    #[test]
    fn deletion_always_ends_with_nothing_left_on_a_node(
        mode in prop_oneof![Just((Mode::All, None)), Just((Mode::One, None)), Just((Mode::Fixed, Some("3")))],
        duration in proptest::option::of(Just("30s".to_owned())),
        pods in 0_u32..8,
        away: bool,
        moves in moves(),
    ) {
        let mut spec = spec(Action::ContainerFreeze, mode.0, mode.1);
        spec.duration = duration;
        let mut sim = Sim::new(spec, pods);
        play(&mut sim, moves);
        // Even if the node is never heard of again.
        if away {
            sim.node.away = true;
        } else {
            sim.node.back();
        }
        sim.delete();
        for _ in 0..30 {
            sim.wait(11);
            sim.all_catch_up();
            sim.turn(None);
        }
        prop_assert!(sim.gone, "the object is stuck: {:?}", sim.status);
        prop_assert!(sim.desired.is_empty());
        // What a killed daemon left goes when it starts.
        sim.node.back();
        prop_assert!(sim.node.standing.is_empty(), "left standing: {:?}", sim.node.standing);
    }

    /// The status calls nothing put back that stands, however silent the node is.
    #[test]
    fn what_is_called_put_back_does_not_stand(
        duration in proptest::option::of(Just("30s".to_owned())),
        pods in 1_u32..8,
        moves in moves(),
    ) {
        let mut spec = spec(Action::ContainerFreeze, Mode::All, None);
        spec.duration = duration;
        let mut sim = Sim::new(spec, pods);
        put_back_stands_not(&mut sim, moves)?;
    }

    /// A fault that a node holds for a `duration` ends by itself, whatever happened meanwhile.
    #[test]
    fn a_nodes_fault_with_a_duration_ends_by_itself(pods in 1_u32..8, moves in moves()) {
        let mut spec = spec(Action::ContainerFreeze, Mode::All, None);
        spec.duration = Some("30s".to_owned());
        let mut sim = Sim::new(spec, pods);
        play(&mut sim, moves);
        sim.namespace.opted_in = true;
        sim.annotate(names::PAUSE, None);
        sim.node.back();
        for _ in 0..40 {
            sim.wait(11);
            sim.all_catch_up();
            sim.turn(None);
        }
        prop_assert!(sim.status.completed_at.is_some(), "it does not end: {:?}", sim.status);
        prop_assert!(sim.desired.is_empty() && sim.node.standing.is_empty());
    }

    /// Never more pods than were drawn are hit on nodes at once.
    #[test]
    fn the_number_drawn_is_never_exceeded_on_nodes(n in 1_u32..5, pods in 1_u32..8, moves in moves()) {
        let mut sim = Sim::new(spec(Action::ContainerFreeze, Mode::Fixed, Some(&n.to_string())), pods);
        for step in moves {
            play(&mut sim, vec![step]);
            prop_assert!(sim.hit_on_the_node() <= n as usize, "{:?}", sim.node.standing);
        }
    }

    /// As long as it is wanted, and its node is there, every container of every pod is hit.
    #[test]
    fn what_is_wanted_is_there_again(pods in 1_u32..8, moves in moves()) {
        let mut sim = Sim::new(spec(Action::ContainerFreeze, Mode::All, None), pods);
        play(&mut sim, moves);
        // What has failed or was released meanwhile stays so.
        let lost = |sim: &Sim| sim.status.targets.iter().any(|target| {
            matches!(target.phase, TargetPhase::Failed | TargetPhase::Released | TargetPhase::Skipped)
        });
        sim.node.back();
        sim.excess.clear();
        sim.namespace.opted_in = true;
        sim.namespace.halt = None;
        sim.policy(None);
        sim.annotate(names::PAUSE, None);
        for _ in 0..20 {
            sim.wait(1);
            sim.all_catch_up();
            sim.turn(None);
        }
        prop_assert!(sim.status.completed_at.is_some() || lost(&sim) || sim.hit_on_the_node() == sim.pods.len(), "{:?}", sim.status);
    }
}

fn put_back_stands_not(sim: &mut Sim, moves: Vec<Move>) -> Result<(), TestCaseError> {
    for step in moves {
        play(sim, vec![step]);
        sim.wait(0);
        for target in &sim.status.targets {
            let put_back = matches!(target.phase, TargetPhase::Recovered | TargetPhase::Released);
            let stands = sim.node.standing.values().any(|(id, _)| Some(id) == target.container_id.as_ref());
            prop_assert!(!put_back || !stands, "{target:?}: {:?}", sim.node.standing);
        }
    }
    Ok(())
}

/// Found by the law above.
#[test]
fn what_a_halted_node_may_hold_is_not_called_put_back_after_a_crash() {
    let mut sim = Sim::new(spec(Action::ContainerFreeze, Mode::All, None), 1);
    put_back_stands_not(
        &mut sim,
        vec![Move::Turn(Some(1)), Move::Away(true), Move::Halt(true), Move::Turn(None)],
    )
    .unwrap();
}

fn frozen(pods: u32) -> Sim {
    let mut sim = Sim::new(spec(Action::ContainerFreeze, Mode::All, None), pods);
    sim.turn(None);
    sim.turn(None);
    assert_eq!((sim.hit_on_the_node(), sim.status.phase), (pods as usize, Some(Phase::Injected)));
    sim
}

#[test]
fn a_container_that_is_started_again_is_followed() {
    let mut sim = frozen(2);
    let name = sim.pods.keys().next().cloned().unwrap();
    sim.restart(&name);
    assert_eq!(sim.hit_on_the_node(), 1);
    sim.turn(None);
    assert_eq!(
        sim.status.targets[0].phase,
        TargetPhase::Injected,
        "the watch hasn't told yet, nor has the node"
    );
    sim.news();
    sim.turn(None);
    assert_eq!(sim.status.targets[0].phase, TargetPhase::Selected);
    sim.see();
    sim.turn(None);
    // What the node has told.
    sim.turn(None);
    assert_eq!((sim.hit_on_the_node(), sim.status.phase), (2, Some(Phase::Injected)));
    assert_eq!(sim.desired.len(), 2, "the old container is ordered no more");
}

#[test]
fn a_pod_with_a_deletion_mark_is_thawed_at_once() {
    let mut sim = frozen(2);
    sim.pods.values_mut().next().unwrap().metadata.deletion_timestamp = Some(Time(sim.now));
    sim.see();
    sim.turn(None);
    assert_eq!((sim.hit_on_the_node(), sim.status.targets[0].phase), (1, TargetPhase::Gone));
}

#[test]
fn a_protected_pod_is_put_back_and_not_hit_again() {
    let mut sim = frozen(2);
    let labels = [(names::PROTECT.to_owned(), "true".to_owned())];
    sim.pods.values_mut().next().unwrap().metadata.labels = Some(labels.into());
    sim.see();
    for _ in 0..3 {
        sim.turn(None);
    }
    assert_eq!(sim.hit_on_the_node(), 1);
    assert_eq!(sim.status.targets[0].phase, TargetPhase::Released);
    assert_eq!(sim.status.targets[0].reason.as_deref(), Some("Protected"));
}

#[test]
fn what_a_silent_node_put_back_is_not_called_recovered_before_it_says_so() {
    for without_daemons in [false, true] {
        let mut sim = frozen(1);
        (sim.node.away, sim.node.killed, sim.without_daemons) = (true, true, without_daemons);
        sim.turn(None);
        let message = |sim: &Sim| sim.status.targets[0].message.clone().unwrap_or_default();
        assert_eq!(sim.status.targets[0].phase, TargetPhase::Injected);
        assert!(message(&sim).contains("can't be reached"), "{}", message(&sim));
        sim.annotate(names::PAUSE, Some("true"));
        sim.turn(None);
        sim.wait(600);
        sim.turn(None);
        assert_eq!((sim.status.phase, sim.hit_on_the_node()), (Some(Phase::Recovering), 1));
        assert!(
            message(&sim).contains("not seen") && message(&sim).contains("node node"),
            "{}",
            message(&sim)
        );
        let told = sim.status.message.clone().unwrap_or_default();
        assert!(told.contains("node node"), "{told}");
        sim.without_daemons = false;
        sim.node.back();
        sim.news();
        sim.turn(None);
        assert_eq!((sim.status.phase, sim.hit_on_the_node()), (Some(Phase::Paused), 0));
        assert!(!message(&sim).contains("not seen"), "{}", message(&sim));
    }
}

#[test]
fn a_silent_node_does_not_hold_up_a_deletion_and_an_event_names_what_nobody_has_seen() {
    let mut sim = frozen(1);
    (sim.node.away, sim.node.killed, sim.without_daemons) = (true, true, true);
    sim.delete();
    sim.turn(None);
    assert!(!sim.gone, "its daemon is perhaps being replaced");
    sim.wait(9);
    let plan = sim.plan();
    let note = plan.notes.iter().find(|note| note.reason == "NotSeenRecovered").expect("it is told");
    assert!(note.message.contains("node node") && note.message.contains("pod-001"), "{}", note.message);
    sim.turn(None);
    assert!(sim.gone && sim.desired.is_empty());
}

#[test]
fn a_container_that_has_ended_is_put_back_though_its_node_is_silent() {
    let mut sim = frozen(1);
    (sim.node.away, sim.node.killed) = (true, true);
    sim.annotate(names::PAUSE, Some("true"));
    sim.turn(None);
    assert_eq!(sim.status.phase, Some(Phase::Recovering));
    let name = sim.pods.keys().next().cloned().unwrap();
    sim.end_container(&name);
    sim.see();
    sim.turn(None);
    assert_eq!(sim.status.phase, Some(Phase::Paused), "{:?}", sim.status);
}

#[test]
fn what_a_node_gave_up_is_injected_again_when_it_is_back() {
    let mut sim = frozen(1);
    sim.node.away = true;
    sim.wait(61);
    assert_eq!(sim.hit_on_the_node(), 0);
    sim.node.away = false;
    sim.reports = sim.node.told.clone();
    sim.turn(None);
    // What the node has told.
    sim.turn(None);
    assert_eq!((sim.hit_on_the_node(), sim.status.phase), (1, Some(Phase::Injected)));
    assert_eq!(sim.status.interruptions, Some(1));
}

#[test]
fn a_container_that_is_waited_for_is_followed_by_the_next_leader_too() {
    let mut sim = frozen(1);
    let name = sim.pods.keys().next().cloned().unwrap();
    // It is started again and again, for minutes: the watch has no other that runs.
    sim.restart(&name);
    sim.news();
    sim.turn(None);
    sim.wait(120);
    sim.turn(None);
    assert_eq!(sim.status.targets[0].phase, TargetPhase::Selected);
    sim.crash();
    sim.turn(None);
    assert_eq!(sim.status.targets[0].phase, TargetPhase::Selected, "{:?}", sim.status);
    sim.see();
    sim.turn(None);
    sim.turn(None);
    assert_eq!((sim.hit_on_the_node(), sim.status.phase), (1, Some(Phase::Injected)));
}

#[test]
fn what_a_new_leader_has_not_heard_of_yet_is_no_silent_node() {
    let mut sim = frozen(1);
    sim.delete();
    sim.node.away = true;
    sim.turn(None);
    sim.wait(70);
    sim.crash();
    // It is being connected to: its word is waited for, though another leader had waited long enough.
    let plan = sim.plan();
    assert!(!plan.drop_finalizer && plan.notes.is_empty() && plan.orders.len() == 1, "{plan:?}");
    sim.wait(10);
    assert!(sim.plan().drop_finalizer, "not for ever");
    sim.wait(-10);
    sim.node.back();
    sim.turn(None);
    // What the node has told.
    sim.turn(None);
    assert!(sim.gone);
}

#[test]
fn pausing_takes_it_back_and_resuming_orders_it_by_another_name() {
    let mut sim = frozen(1);
    let first: Vec<String> = sim.desired.keys().cloned().collect();
    sim.annotate(names::PAUSE, Some("true"));
    sim.turn(None);
    sim.turn(None);
    assert_eq!((sim.status.phase, sim.hit_on_the_node()), (Some(Phase::Paused), 0));
    sim.annotate(names::PAUSE, None);
    sim.turn(None);
    // What the node has told.
    sim.turn(None);
    assert_eq!((sim.status.phase, sim.hit_on_the_node()), (Some(Phase::Injected), 1));
    assert!(!sim.desired.keys().any(|id| first.contains(id)), "a daemon never injects the same again");
}

#[test]
fn a_selector_that_is_narrowed_while_its_node_is_silent_is_not_forgotten() {
    let mut sim = frozen(2);
    sim.node.away = true;
    sim.annotate(names::PAUSE, Some("true"));
    sim.turn(None);
    assert_eq!(sim.status.phase, Some(Phase::Recovering));
    sim.narrow();
    sim.turn(None);
    sim.node.back();
    sim.news();
    sim.turn(None);
    sim.annotate(names::PAUSE, None);
    for _ in 0..3 {
        sim.turn(None);
    }
    let targets: Vec<(TargetPhase, Option<&str>, Option<&str>)> = sim
        .status
        .targets
        .iter()
        .map(|target| (target.phase, target.reason.as_deref(), target.message.as_deref()))
        .collect();
    let left_out = "the selector was changed and leaves it out";
    assert_eq!(
        (sim.hit_on_the_node(), targets),
        (
            1,
            vec![
                (TargetPhase::Injected, None, None),
                (TargetPhase::Released, Some("Narrowed"), Some(left_out))
            ]
        )
    );
}

#[test]
fn what_runs_when_its_spec_is_not_valid_any_more_is_ended_and_told_truthfully() {
    let mut failed = Sim::new(spec(Action::PodFailure, Mode::All, None), 1);
    failed.settle();
    assert_eq!(failed.failed(), 1);
    for (mut sim, phase) in [(frozen(1), TargetPhase::Failed), (failed, TargetPhase::Released)] {
        // Another version of us took it.
        sim.chaos.spec.duration = Some("soon".into());
        for _ in 0..2 {
            sim.turn(None);
            sim.all_catch_up();
        }
        let message = sim.status.message.clone().unwrap_or_default();
        assert!(message.contains("not valid any more") && !message.contains("nothing was hit"), "{message}");
        let target = &sim.status.targets[0];
        assert_eq!((target.phase, target.reason.as_deref()), (phase, Some("InvalidSpec")));
        assert_eq!(Hold::of(&sim.status, sim.now), Hold::default());
        assert!(sim.hit_on_the_node() == 0 && sim.desired.is_empty());
        sim.assert_untouched();
    }
}

#[test]
fn an_order_says_when_its_node_ends_it_by_itself() {
    let mut spec = spec(Action::ContainerFreeze, Mode::All, None);
    spec.duration = Some("5m".into());
    let mut sim = Sim::new(spec, 1);
    sim.turn(None);
    sim.turn(None);
    let ends = sim.status.ends_at.clone().unwrap().0;
    let until = sim.desired.values().next().unwrap().until.unwrap();
    assert!(until >= ends && until <= ends + SignedDuration::from_secs(5), "{until} and {ends}");
    sim.chaos.spec.duration = Some("1m".into());
    sim.chaos.metadata.generation = Some(2);
    sim.turn(None);
    let sooner = sim.desired.values().next().unwrap().until.unwrap();
    assert_eq!(until.duration_since(sooner), SignedDuration::from_secs(240));
}
