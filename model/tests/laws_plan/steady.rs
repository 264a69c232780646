//! Probes, of experiments and of policies: looked at before, during and after.

use squall_api::chaospolicy::{ChaosPolicy, ChaosPolicySpec};
use squall_api::podchaos::{Action, Mode, Phase, PodChaosSpec};
use squall_api::probe::OnHalt;
use squall_model::policy::{Policies, Policy};
use squall_model::probe::{Health, Steady};

use crate::sim::{Sim, spec, told};

/// An experiment that wants something steady, of one pod.
fn with_steady_state(action: Action, change: impl FnOnce(&mut PodChaosSpec)) -> Sim {
    let mut spec = spec(action, Mode::One, None);
    let probe = serde_json::json!([{ "availability": { "podSelector": {}, "below": 1 } }]);
    spec.steady_state = serde_json::from_value(probe).unwrap();
    change(&mut spec);
    Sim::new(spec, 1)
}

fn well(sim: &mut Sim) {
    sim.steady = Steady { health: Health::Healthy(String::new()), settled: Some(sim.now) };
}

fn unwell(sim: &mut Sim) {
    sim.steady = Steady { health: Health::Unhealthy("status 503".into()), settled: Some(sim.now) };
}

#[test]
fn nothing_begins_before_the_steady_state_was_seen() {
    let mut sim = with_steady_state(Action::PodKill, |_| ());
    sim.turn(None);
    assert_eq!(told(&sim), (Some(Phase::Pending), "looking whether spec.steadyState holds".into()));
    unwell(&mut sim);
    sim.turn(None);
    assert_eq!(told(&sim).0, Some(Phase::Halted));
    assert!(told(&sim).1.contains("nothing was hit: spec.steadyState: status 503"), "{}", told(&sim).1);
    sim.assert_untouched();
}

#[test]
fn what_goes_wrong_during_a_fault_halts_it_with_the_evidence() {
    let mut sim = with_steady_state(Action::PodFailure, |_| ());
    well(&mut sim);
    for _ in 0..2 {
        sim.turn(None);
        sim.all_catch_up();
    }
    assert_eq!(sim.status.targets.len(), 1);
    unwell(&mut sim);
    for _ in 0..3 {
        sim.turn(None);
        sim.all_catch_up();
    }
    assert_eq!(told(&sim), (Some(Phase::Halted), "spec.steadyState: status 503".into()));
    sim.assert_untouched();
}

#[test]
fn the_steady_state_is_looked_at_once_more_after_the_last_thing_that_was_done() {
    for (holds, phase) in [(true, Phase::Completed), (false, Phase::Halted)] {
        let mut sim = with_steady_state(Action::PodKill, |_| ());
        well(&mut sim);
        sim.wait(1);
        for _ in 0..3 {
            sim.turn(None);
            sim.all_catch_up();
        }
        assert_eq!(sim.killed.len(), 1);
        // It was seen before the kill, which says nothing.
        assert_eq!(told(&sim).0, Some(Phase::Recovering), "{:?}", sim.status);
        assert!(told(&sim).1.contains("after it") && sim.plan().wake.is_some());
        sim.wait(1);
        if holds {
            well(&mut sim)
        } else {
            unwell(&mut sim)
        }
        sim.turn(None);
        assert_eq!(told(&sim).0, Some(phase), "{:?}", sim.status);
        assert_eq!(told(&sim).1.contains("after it: status 503"), !holds);
    }
}

#[test]
fn a_new_leader_that_has_not_looked_yet_lifts_no_halt() {
    let mut sim = with_steady_state(Action::PodFailure, |spec| spec.on_halt = Some(OnHalt::Resume));
    well(&mut sim);
    for _ in 0..3 {
        sim.turn(None);
        sim.all_catch_up();
    }
    unwell(&mut sim);
    for _ in 0..3 {
        sim.turn(None);
        sim.all_catch_up();
    }
    assert_eq!(told(&sim).0, Some(Phase::Halted));
    sim.crash();
    sim.steady = Steady::default();
    sim.turn(None);
    assert_eq!(told(&sim).0, Some(Phase::Halted));
    sim.assert_untouched();
    well(&mut sim);
    for _ in 0..3 {
        sim.turn(None);
        sim.all_catch_up();
    }
    assert_eq!(told(&sim).0, Some(Phase::Injected), "{:?}", sim.status);
}

#[test]
fn nothing_begins_before_what_a_policy_looks_at_was_seen() {
    let policy = |status: serde_json::Value| {
        let text = serde_json::json!({
            "apiVersion": "squall.dev/v1alpha1", "kind": "ChaosPolicy", "metadata": { "name": "p", "generation": 2 },
            "spec": { "haltWhen": [{ "http": { "url": "http://web.shop.svc" } }] }, "status": status,
        });
        let policy: ChaosPolicy = serde_json::from_value(text).unwrap();
        Policies::new([Policy::of(&policy)])
    };
    let probe = |healthy: &str, generation: i64| {
        let probe =
            serde_json::json!({ "name": "haltWhen[0].http", "healthy": healthy, "message": "status 503" });
        serde_json::json!({ "observedGeneration": generation, "probes": [probe] })
    };
    let mut sim = Sim::new(spec(Action::PodKill, Mode::One, None), 1);
    for unseen in [serde_json::Value::Null, probe("Unknown", 2), probe("True", 1)] {
        sim.policies = policy(unseen);
        sim.turn(None);
        assert_eq!(
            told(&sim),
            (Some(Phase::Pending), "looking whether haltWhen of ChaosPolicy p holds".into())
        );
    }
    sim.policies = policy(probe("False", 2));
    let halted = sim.plan().status;
    assert_eq!(halted.phase, Some(Phase::Halted));
    assert!(halted.message.unwrap_or_default().contains("status 503"));
    sim.policies = policy(probe("True", 2));
    sim.turn(None);
    assert_eq!(sim.killed.len(), 1);
}

#[test]
fn what_policies_look_at_is_looked_at_once_more_after_the_last_thing_that_was_done() {
    for (health, phase) in [
        (Health::Healthy(String::new()), Phase::Completed),
        (Health::Unhealthy("1 of 3 pods Ready".into()), Phase::Halted),
    ] {
        let mut sim = Sim::new(spec(Action::PodKill, Mode::One, None), 1);
        sim.policy(Some(ChaosPolicySpec::default()));
        sim.watched = Some(Steady { health: Health::Healthy(String::new()), settled: Some(sim.now) });
        sim.wait(1);
        sim.settle();
        assert_eq!(sim.killed.len(), 1);
        assert_eq!(
            told(&sim),
            (
                Some(Phase::Recovering),
                "over; looking whether haltWhen of ChaosPolicy p holds after it".into()
            )
        );
        sim.wait(1);
        sim.watched = Some(Steady { health: health.clone(), settled: Some(sim.now) });
        sim.turn(None);
        assert_eq!(told(&sim).0, Some(phase), "{:?}", sim.status);
        if let Health::Unhealthy(evidence) = health {
            assert_eq!(told(&sim).1, format!("haltWhen of ChaosPolicy p, after it: {evidence}"));
            assert_eq!(sim.status.halted.unwrap().by, "ChaosPolicy p");
        }
    }
}
