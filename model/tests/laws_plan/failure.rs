//! pod-failure: whatever happens, every pod is as it was, and never more are failed than were drawn.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use proptest::prelude::*;
use squall_api::names;
use squall_api::podchaos::{Action, Mode, Phase, Target, TargetPhase};
use squall_model::plan::Effect;
use squall_model::substitute;

use crate::CASES;
use crate::moves::{Move, moves, play};
use crate::sim::{Sim, images, spec, told};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    /// Whatever happened meanwhile, deleting the experiment ends, and leaves nothing behind.
    #[test]
    fn deletion_always_ends_with_every_pod_as_it_was(
        mode in prop_oneof![Just((Mode::All, None)), Just((Mode::One, None)), Just((Mode::Fixed, Some("3"))), Just((Mode::FixedPercent, Some("50")))],
        duration in proptest::option::of(Just("30s".to_owned())),
        pods in 0_u32..8,
        moves in moves(),
    ) {
        let mut spec = spec(Action::PodFailure, mode.0, mode.1);
        spec.duration = duration;
        let mut sim = Sim::new(spec, pods);
        play(&mut sim, moves);
        sim.failing = 0;
        sim.delete();
        for _ in 0..50 {
            sim.wait(11);
            sim.all_catch_up();
            sim.turn(None);
        }
        prop_assert!(sim.gone, "the object is stuck: {:?}", sim.status);
        sim.assert_untouched();
    }

    /// A fault with a duration ends by itself, whatever happened meanwhile.
    #[test]
    fn a_fault_with_a_duration_ends_by_itself(pods in 1_u32..8, moves in moves()) {
        let mut spec = spec(Action::PodFailure, Mode::All, None);
        spec.duration = Some("30s".to_owned());
        let mut sim = Sim::new(spec, pods);
        play(&mut sim, moves);
        sim.failing = 0;
        sim.namespace.opted_in = true;
        sim.annotate(names::PAUSE, None);
        for _ in 0..100 {
            sim.wait(11);
            sim.all_catch_up();
            sim.turn(None);
        }
        prop_assert!(sim.status.completed_at.is_some(), "it does not end: {:?}", sim.status);
        let completed = sim.status.conditions.iter().find(|condition| condition.type_ == "Completed");
        prop_assert_eq!(completed.map(|condition| condition.status.as_str()), Some("True"));
        sim.assert_untouched();
    }

    /// Never more pods than were drawn are failed at once.
    #[test]
    fn the_number_drawn_is_never_exceeded(n in 1_u32..5, pods in 1_u32..8, moves in moves()) {
        let mut sim = Sim::new(spec(Action::PodFailure, Mode::Fixed, Some(&n.to_string())), pods);
        for step in moves {
            play(&mut sim, vec![step]);
            prop_assert!(sim.failed() <= n as usize, "{} are failed", sim.failed());
        }
    }

    /// The same input gives the same plan, and a plan changes nothing by being made again.
    #[test]
    fn a_plan_is_deterministic(pods in 0_u32..8, moves in moves()) {
        let mut sim = Sim::new(spec(Action::PodFailure, Mode::All, None), pods);
        play(&mut sim, moves);
        prop_assert_eq!(sim.plan(), sim.plan());
    }
}

#[test]
fn a_pod_whose_label_was_removed_by_hand_is_not_hit_again() {
    let mut sim = Sim::new(spec(Action::PodFailure, Mode::All, None), 2);
    sim.turn(None);
    sim.all_catch_up();
    sim.turn(None);
    assert_eq!(sim.status.phase, Some(Phase::Injected));
    play(
        &mut sim,
        vec![
            Move::RemoveLabel(0),
            Move::CatchUp,
            Move::Turn(None),
            Move::Wait(60),
            Move::CatchUp,
            Move::Turn(None),
        ],
    );
    assert_eq!(sim.failed(), 1);
    assert_eq!(sim.status.targets[0].phase, TargetPhase::Released);
    assert_eq!(sim.status.targets[0].reason.as_deref(), Some("LabelRemoved"));
}

#[test]
fn pausing_recovers_and_resuming_injects_again_without_stopping_the_clock() {
    let mut spec = spec(Action::PodFailure, Mode::All, None);
    spec.duration = Some("60s".into());
    let mut sim = Sim::new(spec, 3);
    for _ in 0..2 {
        sim.turn(None);
        sim.all_catch_up();
    }
    assert_eq!(sim.failed(), 3);
    let ends = sim.status.ends_at.clone();
    sim.annotate(names::PAUSE, Some("true"));
    for _ in 0..3 {
        sim.turn(None);
        sim.all_catch_up();
    }
    assert_eq!(sim.status.phase, Some(Phase::Paused));
    sim.assert_untouched();
    sim.wait(10);
    sim.annotate(names::PAUSE, None);
    for _ in 0..3 {
        sim.turn(None);
        sim.all_catch_up();
    }
    assert_eq!((sim.failed(), sim.status.phase), (3, Some(Phase::Injected)));
    assert_eq!(sim.status.ends_at, ends);
}

#[test]
fn a_pause_that_is_lifted_while_it_is_being_recovered_leaves_no_target_out() {
    let mut sim = Sim::new(spec(Action::PodFailure, Mode::All, None), 3);
    sim.settle();
    assert_eq!(sim.failed(), 3);
    sim.wait(60);
    sim.annotate(names::PAUSE, Some("true"));
    // The object is newer before the second is released: the status that was planned for the older is not written.
    let plan = sim.plan();
    sim.carry_out(&plan.effects[0]);
    assert_eq!(sim.failed(), 2);
    sim.annotate(names::PAUSE, None);
    sim.wait(1);
    sim.lost = 3;
    sim.settle();
    sim.lost = 0;
    assert_eq!((sim.failed(), sim.status.phase), (3, Some(Phase::Injected)), "{:?}", sim.status);
    // By hand is by hand, whatever was released before.
    sim.wait(60);
    play(&mut sim, vec![Move::RemoveLabel(0), Move::CatchUp]);
    sim.settle();
    assert_eq!((sim.failed(), sim.status.targets[0].reason.as_deref()), (2, Some("LabelRemoved")));
}

#[test]
fn a_release_whose_answer_was_lost_is_no_hand_that_removed_the_label() {
    let mut sim = Sim::new(spec(Action::PodFailure, Mode::All, None), 1);
    sim.settle();
    sim.wait(60);
    sim.annotate(names::PAUSE, Some("true"));
    sim.lost = 1;
    sim.settle();
    assert_eq!((sim.lost, sim.status.phase), (0, Some(Phase::Paused)));
    sim.assert_untouched();
    sim.wait(60);
    sim.annotate(names::PAUSE, None);
    sim.settle();
    assert_eq!((sim.failed(), sim.status.phase), (1, Some(Phase::Injected)), "{:?}", sim.status);
}

#[test]
fn a_stand_in_is_known_by_any_of_its_names_and_nothing_else_is() {
    let (digest, bare) = (format!("sha256:{}", "0a".repeat(32)), "0a".repeat(32));
    // The tag of another release, a mirror, a digest; each started within the second of the order.
    let known = [
        ("fault/pause:0", ""),
        ("mirror.example:5000/x/pause:1", ""),
        ("docker.io/fault/crash@sha256:00", ""),
        ("pause", ""),
        // Pinned by digest, with no tag on its node: by containerd, CRI-O, dockerd.
        (&*digest, "mirror.example:5000/x/pause@sha256:00"),
        (&*bare, "fault/crash@sha256:00"),
        (&*digest, "docker-pullable://fault/pause@sha256:00"),
    ];
    let others = [
        ("app:1", ""),
        ("docker.io/library/app:1", ""),
        ("pause/app:1", ""),
        ("fault/pause-app:1", ""),
        ("app:pause", ""),
        // It has a name that says what it is.
        ("app:1", "fault/pause@sha256:00"),
        (&*digest, "docker.io/library/app@sha256:00"),
        (&*digest, &*digest),
        (&*digest, ""),
        (&*bare, "pause/app@sha256:00"),
    ];
    for (image, id) in known.into_iter().chain(others) {
        let mut sim = Sim::new(spec(Action::PodFailure, Mode::All, None), 1);
        sim.turn(None);
        sim.kubelet("pod-001");
        sim.runs_under("pod-001", image, id);
        sim.see();
        sim.turn(None);
        let injected = sim.status.targets[0].phase == TargetPhase::Injected;
        assert_eq!(injected, known.contains(&(image, id)), "{image} {id}: {:?}", sim.status);
    }
}

#[test]
fn while_the_stand_in_of_another_release_runs_nothing_is_recovered() {
    let digest = format!("sha256:{}", "0a".repeat(32));
    for (image, id) in [("fault/pause:0", ""), (&*digest, "fault/pause@sha256:00")] {
        let mut sim = Sim::new(spec(Action::PodFailure, Mode::All, None), 1);
        sim.turn(None);
        sim.all_catch_up();
        sim.turn(None);
        assert_eq!(sim.status.phase, Some(Phase::Injected));
        sim.runs_under("pod-001", image, id);
        sim.annotate(names::PAUSE, Some("true"));
        for _ in 0..3 {
            sim.turn(None);
            sim.see();
        }
        assert_eq!((sim.failed(), sim.status.targets[0].phase), (0, TargetPhase::Recovering), "{image}");
        sim.all_catch_up();
        sim.turn(None);
        assert_eq!(sim.status.targets[0].phase, TargetPhase::Recovered);
    }
}

#[test]
fn a_withdrawn_opt_in_recovers_and_says_so() {
    let mut sim = Sim::new(spec(Action::PodFailure, Mode::All, None), 2);
    for _ in 0..2 {
        sim.turn(None);
        sim.all_catch_up();
    }
    sim.namespace.opted_in = false;
    for _ in 0..3 {
        sim.turn(None);
        sim.all_catch_up();
    }
    sim.assert_untouched();
    assert!(sim.status.targets.iter().all(|target| target.reason.as_deref() == Some("NotOptedIn")));
    assert_eq!(
        sim.status.conditions.iter().find(|c| c.type_ == "Completed").map(|c| c.reason.as_str()),
        Some("Aborted")
    );
}

#[test]
fn that_one_born_beyond_the_number_is_let_go_is_told_once_however_often_it_is_tried() {
    let mut sim = Sim::new(spec(Action::PodFailure, Mode::One, None), 1);
    sim.status = sim.plan().status;
    let Effect::Inject { holder, .. } = sim.plan().effects.remove(0) else { panic!("it is not failed") };
    sim.settle();
    // The webhook goes by what it has seen.
    let name = sim.birth();
    substitute::inject(sim.pods.get_mut(&name).unwrap(), &holder, &images()).unwrap();
    sim.see();
    sim.failing = 3;
    let mut told = Vec::new();
    for _ in 0..6 {
        let plan = sim.plan();
        told.extend(plan.notes);
        plan.effects.iter().for_each(|effect| sim.carry_out(effect));
        sim.wait(11);
    }
    let reasons: Vec<&str> = told.iter().map(|note| note.reason.as_str()).collect();
    assert_eq!((sim.failed(), reasons), (1, vec!["ReleasedExcess"]));
}

#[test]
fn whoever_is_born_when_the_status_is_full_is_let_go_and_told_why() {
    let mut sim = Sim::new(spec(Action::PodFailure, Mode::All, None), 1);
    sim.status = sim.plan().status;
    let Effect::Inject { holder, .. } = sim.plan().effects.remove(0) else { panic!("it is not failed") };
    sim.settle();
    // Far fewer than may be, but each with a long name and what came after it.
    let gone = |index: u32| Target {
        uid: format!("gone-{index}"),
        pod: "p".repeat(200),
        phase: TargetPhase::Gone,
        replacement: Some("r".repeat(200)),
        ..sim.status.targets[0].clone()
    };
    let past: Vec<Target> = (0..2200).map(gone).collect();
    sim.status.targets.extend(past);
    let name = sim.birth();
    substitute::inject(sim.pods.get_mut(&name).unwrap(), &holder, &images()).unwrap();
    sim.see();
    let plan = sim.plan();
    let note = plan.notes.iter().find(|note| note.reason == "ReleasedExcess").expect("it is let go");
    assert!(note.message.contains("no room for another target in its status"), "{}", note.message);
    assert!(matches!(plan.effects.as_slice(), [Effect::Release { .. }]), "{:?}", plan.effects);
    // With room it would be taken in.
    sim.status.targets.truncate(100);
    let plan = sim.plan();
    assert!(plan.notes.iter().all(|note| note.reason != "ReleasedExcess"), "{:?}", plan.notes);
}

#[test]
fn a_clock_that_jumps_loses_nothing_and_ends_nothing_for_ever() {
    let mut spec = spec(Action::PodFailure, Mode::All, None);
    spec.duration = Some("5m".into());
    let mut sim = Sim::new(spec, 2);
    let turns = |sim: &mut Sim| {
        for _ in 0..3 {
            sim.turn(None);
            sim.all_catch_up();
        }
    };
    turns(&mut sim);
    assert_eq!(told(&sim).0, Some(Phase::Injected));
    let ends = sim.status.ends_at.clone();
    sim.wait(-3600);
    turns(&mut sim);
    assert_eq!((told(&sim).0, &sim.status.ends_at), (Some(Phase::Injected), &ends));
    // Someone ends it while the clock is wrong.
    let mut other = Sim { chaos: sim.chaos.clone(), ..Sim::new(sim.chaos.spec.clone(), 2) };
    turns(&mut other);
    other.wait(-3600);
    other.chaos.metadata.deletion_timestamp = Some(Time(other.now));
    turns(&mut other);
    assert!(other.gone);
    other.assert_untouched();
    sim.wait(2 * 3600);
    turns(&mut sim);
    assert_eq!(told(&sim).0, Some(Phase::Completed));
    sim.assert_untouched();
}
