//! Halts, windows and policies: what they keep from beginning, what they end, and that recovery asks none.

use squall_api::chaospolicy::{Allow, ChaosPolicySpec, Limits, Window};
use squall_api::names;
use squall_api::podchaos::{Action, Mode, Phase, TargetPhase};
use squall_model::plan::{Effect, may_begin};
use squall_model::validate::validate;

use crate::sim::{Sim, spec};

#[test]
fn a_halt_recovers_and_ends_the_experiment_and_says_why() {
    let mut sim = Sim::new(spec(Action::PodFailure, Mode::All, None), 3);
    sim.settle();
    assert_eq!(sim.failed(), 3);
    sim.namespace.halt = Some("incident 4711".into());
    sim.settle();
    sim.assert_untouched();
    assert_eq!(sim.status.phase, Some(Phase::Halted));
    let condition =
        |kind: &str| sim.status.conditions.iter().find(|condition| condition.type_ == kind).unwrap().clone();
    assert_eq!(
        (condition("Completed").status.as_str(), condition("Completed").reason.as_str()),
        ("True", "Halted")
    );
    assert_eq!(condition("Failed").status, "True");
    assert!(sim.status.message.as_ref().unwrap().contains("incident 4711"));
    // It stays so.
    sim.namespace.halt = None;
    sim.settle();
    assert_eq!((sim.failed(), sim.status.phase), (0, Some(Phase::Halted)));
}

#[test]
fn with_on_halt_resume_it_goes_on_when_the_halt_is_lifted() {
    let mut spec = spec(Action::PodFailure, Mode::All, None);
    spec.on_halt = Some(squall_api::probe::OnHalt::Resume);
    let mut sim = Sim::new(spec, 3);
    sim.settle();
    sim.namespace.halt = Some(String::new());
    sim.settle();
    sim.assert_untouched();
    assert_eq!((sim.status.phase, sim.status.completed_at.is_some()), (Some(Phase::Halted), false));
    sim.namespace.halt = None;
    sim.settle();
    assert_eq!((sim.failed(), sim.status.phase), (3, Some(Phase::Injected)));
}

#[test]
fn where_it_is_halted_nothing_begins() {
    for action in [Action::PodFailure, Action::PodKill, Action::ContainerKill] {
        let mut sim = Sim::new(spec(action, Mode::All, None), 3);
        sim.namespace.halt = Some("incident".into());
        sim.settle();
        assert_eq!(sim.status.phase, Some(Phase::Halted), "{action:?}");
        assert!(sim.killed.is_empty());
        sim.assert_untouched();
    }
}

#[test]
fn a_kill_that_was_chosen_and_not_begun_is_stopped_by_a_halt() {
    let mut sim = Sim::new(spec(Action::PodKill, Mode::All, None), 3);
    sim.turn(Some(1));
    assert!(sim.status.selected_at.is_some());
    sim.namespace.halt = Some("incident".into());
    sim.settle();
    assert!(sim.killed.is_empty());
    assert_eq!(sim.status.phase, Some(Phase::Halted));
    assert!(sim.status.targets.iter().all(|target| target.phase == TargetPhase::Skipped));
}

#[test]
fn a_window_that_closes_recovers_and_is_looked_at_in_time() {
    let mut spec = spec(Action::PodFailure, Mode::All, None);
    spec.duration = Some("24h".into());
    let mut sim = Sim::new(spec, 2);
    let window = Window { from: "00:00".into(), to: "00:05".into(), ..Window::default() };
    sim.policy(Some(ChaosPolicySpec { windows: Some(vec![window]), ..ChaosPolicySpec::default() }));
    sim.settle();
    assert_eq!(sim.failed(), 2);
    assert_eq!(sim.plan().wake, Some("2026-01-01T00:05:00Z".parse().unwrap()));
    sim.wait(300);
    sim.settle();
    sim.assert_untouched();
    assert_eq!(sim.status.phase, Some(Phase::Halted));
    assert_eq!(sim.status.halted.as_ref().unwrap().reason, "WindowClosed");
}

#[test]
fn a_policy_never_forbids_recovery() {
    let nothing = ChaosPolicySpec {
        allow: Some(Allow { actions: Some(vec![]), users: Some(vec![]), ..Allow::default() }),
        windows: Some(vec![]),
        ..ChaosPolicySpec::default()
    };
    for end in [true, false] {
        let mut sim = Sim::new(spec(Action::PodFailure, Mode::All, None), 3);
        sim.settle();
        assert_eq!(sim.failed(), 3);
        sim.policy(Some(nothing.clone()));
        if end {
            sim.delete();
        } else {
            sim.annotate(names::PAUSE, Some("true"));
        }
        sim.settle();
        sim.assert_untouched();
        assert_eq!(sim.gone, end);
    }
}

#[test]
fn what_a_policy_refuses_fails_with_its_words_and_hits_nothing() {
    let mut sim = Sim::new(spec(Action::PodFailure, Mode::All, None), 5);
    let limits = Limits { max_percent_per_workload: Some(10), ..Limits::default() };
    sim.policy(Some(ChaosPolicySpec { limits: Some(limits), ..ChaosPolicySpec::default() }));
    sim.settle();
    assert_eq!(sim.status.phase, Some(Phase::Failed));
    assert_eq!(
        sim.status.message.as_deref(),
        Some(
            "nothing was hit: ChaosPolicy p, limits.maxPercentPerWorkload: found 1 of the 5 pods of ReplicaSet/rs; \
             allowed: 0 (10 % of 5 is 0)"
        )
    );
    let failed = sim.status.conditions.iter().find(|condition| condition.type_ == "Failed").unwrap();
    assert_eq!(failed.reason, "PolicyRefused");
    sim.assert_untouched();
}

#[test]
fn births_stay_within_a_policy() {
    let mut sim = Sim::new(spec(Action::PodFailure, Mode::All, None), 2);
    let limits = Limits { max_targets: Some(2), ..Limits::default() };
    sim.policy(Some(ChaosPolicySpec { limits: Some(limits), ..ChaosPolicySpec::default() }));
    sim.settle();
    sim.birth();
    sim.all_catch_up();
    sim.settle();
    assert_eq!(sim.failed(), 2);
}

#[test]
fn nothing_more_is_begun_where_it_is_halted_closed_protected_or_being_removed() {
    let stops: [fn(&mut Sim); 7] = [
        |sim| sim.namespace.halt = Some(String::new()),
        |sim| sim.namespace.opted_in = false,
        |sim| sim.namespace.protect = true,
        |sim| sim.namespace.terminating = true,
        |sim| sim.policy(Some(ChaosPolicySpec { windows: Some(vec![]), ..ChaosPolicySpec::default() })),
        |sim| sim.seen.values_mut().for_each(|pod| pod.shielded = true),
        |sim| {
            let protect = || (names::PROTECT.to_owned(), "true".to_owned());
            sim.seen.values_mut().for_each(|pod| pod.annotations.extend([protect()]));
        },
    ];
    for (stop, action) in
        stops.into_iter().flat_map(|stop| [(stop, Action::PodFailure), (stop, Action::PodKill)])
    {
        let mut sim = Sim::new(spec(action, Mode::All, None), 1);
        let parsed = validate(&sim.chaos.spec, "ns").unwrap();
        sim.status = sim.plan().status;
        let begins = sim.plan().effects.remove(0);
        assert!(may_begin(&sim, &parsed, &begins, sim.now));
        stop(&mut sim);
        assert!(!may_begin(&sim, &parsed, &begins, sim.now));
        // It would not be planned any more, either; what puts back always is.
        assert_eq!(sim.plan().effects, []);
        let release = Effect::Release { pod: begins.pod().clone(), holder: "chaos-uid".into() };
        assert!(may_begin(&sim, &parsed, &release, sim.now));
    }
}
