//! pod-kill, and what is said before anything is hit.

use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use proptest::prelude::*;
use squall_api::names;
use squall_api::podchaos::{Action, ExperimentStatus, Mode, Phase, TargetPhase};
use squall_model::plan::notes;

use crate::CASES;
use crate::sim::{Sim, spec};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    /// A pod-kill kills exactly as many as it drew, once, however often the process dies in between.
    #[test]
    fn a_kill_is_neither_lost_nor_done_twice(n in 1_u32..5, pods in 1_u32..8, crashes in proptest::collection::vec(0_u32..6, 0..12)) {
        let mut sim = Sim::new(spec(Action::PodKill, Mode::Fixed, Some(&n.to_string())), pods);
        for crash in crashes {
            sim.turn(Some(crash));
            sim.see();
        }
        for _ in 0..5 {
            sim.turn(None);
            sim.all_catch_up();
            sim.wait(1);
        }
        prop_assert_eq!(sim.killed.len(), n.min(pods) as usize);
        prop_assert_eq!(sim.status.phase, Some(Phase::Completed));
        prop_assert!(sim.status.targets.iter().all(|target| target.phase == TargetPhase::Killed));
    }
}

#[test]
fn a_dry_run_hits_nothing_and_says_what_it_would() {
    let mut spec = spec(Action::PodKill, Mode::Fixed, Some("2"));
    spec.dry_run = Some(true);
    let mut sim = Sim::new(spec, 5);
    sim.turn(None);
    assert!(sim.killed.is_empty());
    assert_eq!(sim.status.phase, Some(Phase::Completed));
    let count = |phase| sim.status.targets.iter().filter(|target| target.phase == phase).count();
    assert_eq!((count(TargetPhase::Selected), count(TargetPhase::Skipped)), (2, 3));
}

#[test]
fn a_dry_run_over_many_counts_those_that_it_does_not_name() {
    let mut spec = spec(Action::PodKill, Mode::Fixed, Some("2"));
    spec.dry_run = Some(true);
    let mut sim = Sim::new(spec, 300);
    let protected: Vec<String> = sim.pods.keys().take(5).cloned().collect();
    for name in &protected {
        let pod = sim.pods.get_mut(name).unwrap();
        pod.metadata.labels.get_or_insert_default().insert(names::PROTECT.into(), "true".into());
    }
    sim.see();
    sim.turn(None);
    let of = |phase| sim.status.targets.iter().filter(move |target| target.phase == phase);
    assert_eq!((of(TargetPhase::Selected).count(), of(TargetPhase::Skipped).count()), (2, 100));
    // First come those that may not be hit.
    let reasons: Vec<&str> = of(TargetPhase::Skipped).filter_map(|target| target.reason.as_deref()).collect();
    assert_eq!(
        (reasons[0], reasons[4], reasons[5], reasons[99]),
        ("Protected", "Protected", "NotDrawn", "NotDrawn")
    );
    assert_eq!(
        sim.status.message.as_deref(),
        Some(
            "dry run: 2 would be hit, 298 selected ones would not (NotDrawn: 293, Protected: 5); nothing was done"
        )
    );
    // And only those are told that have something to know.
    let told = notes(&ExperimentStatus::default(), &sim.status, "PodChaos ns/x", "killed");
    assert_eq!(told.iter().filter(|note| note.pod.is_some()).count(), 5, "{told:?}");
}

#[test]
fn without_targets_a_one_shot_gives_up_ten_seconds_after_the_first_look_and_says_why() {
    let mut sim = Sim::new(spec(Action::PodKill, Mode::One, None), 0);
    let looks_at = |sim: &mut Sim, seconds, phase| {
        sim.wait(seconds);
        sim.turn(None);
        assert_eq!(sim.status.phase, Some(phase), "{:?}", sim.status);
    };
    // The controller was away for a minute: nobody has looked yet.
    looks_at(&mut sim, 60, Phase::Pending);
    looks_at(&mut sim, 9, Phase::Pending);
    // A pause is no look, and what comes after it is the first again.
    sim.annotate(names::PAUSE, Some("true"));
    looks_at(&mut sim, 60, Phase::Paused);
    sim.annotate(names::PAUSE, None);
    looks_at(&mut sim, 60, Phase::Pending);
    looks_at(&mut sim, 9, Phase::Pending);
    looks_at(&mut sim, 1, Phase::Failed);
    assert_eq!(
        sim.status.conditions.iter().find(|c| c.type_ == "Completed").map(|c| c.reason.as_str()),
        Some("NoTargets")
    );
}

#[test]
fn more_than_the_limit_hits_nothing() {
    let mut sim = Sim::new(spec(Action::PodKill, Mode::All, None), 4001);
    sim.turn(None);
    assert!(sim.killed.is_empty());
    assert!(sim.status.message.as_deref().unwrap_or_default().contains("4001"), "{:?}", sim.status.message);
}

#[test]
fn a_pod_that_a_narrower_selector_leaves_out_is_not_killed_any_more() {
    let stops: [fn(&mut Sim, bool); 2] = [
        // The API server lets nobody go, as a budget does.
        |sim, on| sim.failing = if on { u32::MAX } else { 0 },
        |sim, on| sim.annotate(names::PAUSE, on.then_some("true")),
    ];
    for stop in stops {
        let mut sim = Sim::new(spec(Action::PodKill, Mode::All, None), 2);
        // It dies right after the choice is written.
        sim.turn(Some(1));
        stop(&mut sim, true);
        sim.turn(None);
        sim.narrow();
        sim.turn(None);
        stop(&mut sim, false);
        sim.wait(11);
        sim.settle();
        let targets: Vec<(TargetPhase, Option<&str>)> =
            sim.status.targets.iter().map(|target| (target.phase, target.reason.as_deref())).collect();
        let expected = [(TargetPhase::Killed, None), (TargetPhase::Skipped, Some("Narrowed"))];
        assert_eq!((sim.killed.as_slice(), targets.as_slice()), (&["uid-1".to_owned()][..], &expected[..]));
        assert_eq!(sim.status.phase, Some(Phase::Completed));
    }
}

#[test]
fn what_replaced_a_pod_that_was_only_found_to_be_deleted_is_told() {
    for terminating in [false, true] {
        let mut sim = Sim::new(spec(Action::PodKill, Mode::All, None), 1);
        let mut old = sim.pods["pod-001"].clone();
        // It dies when the pod is deleted and before that is written.
        sim.turn(Some(2));
        assert_eq!(sim.killed.len(), 1);
        sim.wait(9);
        if terminating {
            old.metadata.deletion_timestamp = Some(Time(sim.now));
            sim.pods.insert("pod-001".to_owned(), old);
        }
        sim.see();
        sim.turn(None);
        let target = &sim.status.targets[0];
        assert_eq!((target.phase, target.replacement.as_deref()), (TargetPhase::Killed, Some("pod-002")));
        assert!(target.ready_at.is_some() && sim.killed.len() == 1);
    }
}

#[test]
fn a_replacement_is_known_though_the_clock_of_the_api_server_is_behind_and_no_other_pod_is_taken_for_it() {
    let mut sim = Sim::new(spec(Action::PodKill, Mode::One, None), 2);
    sim.wait(1);
    sim.turn(None);
    let killed = sim.status.targets[0].pod.clone();
    // The other one is all that is there yet.
    sim.seen.remove(&killed);
    sim.turn(None);
    assert_eq!(sim.status.targets[0].replacement, None);
    let born = sim.pods.get_mut("pod-003").unwrap();
    born.metadata.creation_timestamp = Some(Time(sim.now - SignedDuration::from_secs(2)));
    let status = born.status.take();
    sim.see();
    sim.turn(None);
    assert_eq!(sim.status.targets[0].replacement.as_deref(), Some("pod-003"));
    sim.pods.get_mut("pod-003").unwrap().status = status;
    sim.see();
    sim.turn(None);
    assert!(sim.status.targets[0].ready_at.is_some());
}

/// A pod with this grace period of its own, killed, and seen for as long as it takes.
fn ending(grace: i64) -> Sim {
    let mut sim = Sim::new(spec(Action::PodKill, Mode::All, None), 1);
    let name = sim.pods.keys().next().unwrap().clone();
    let pod = sim.pods.get_mut(&name).unwrap();
    pod.spec.as_mut().unwrap().termination_grace_period_seconds = Some(grace);
    let ending = pod.clone();
    sim.see();
    sim.turn(None);
    assert_eq!(sim.killed.len(), 1);
    sim.pods.insert(name, ending);
    sim.see();
    sim
}

#[test]
fn a_pod_that_takes_its_own_time_to_end_is_waited_for() {
    let mut sim = ending(3600);
    sim.wait(1000);
    sim.turn(None);
    assert!(sim.status.targets[0].gone_at.is_none(), "{:?}", sim.status.targets[0]);
    sim.wait(3600);
    sim.turn(None);
    assert!(sim.status.targets[0].gone_at.is_some(), "{:?}", sim.status.targets[0]);
}

#[test]
fn no_pods_grace_period_is_a_panic_or_waited_for_without_end() {
    for (grace, patience) in [(i64::MAX, 30 * 24 * 3600), (i64::MIN, 0)] {
        let mut sim = ending(grace);
        sim.wait(patience + 899);
        sim.turn(None);
        assert!(sim.status.targets[0].gone_at.is_none(), "{grace}: {:?}", sim.status.targets[0]);
        sim.wait(1);
        sim.turn(None);
        assert!(sim.status.targets[0].gone_at.is_some(), "{grace}: {:?}", sim.status.targets[0]);
    }
}
