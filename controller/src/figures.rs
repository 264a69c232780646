//! What a change of an experiment's status means in figures: read off the difference, so that each is counted once and
//! only when it is written.

use jiff::Timestamp;
use squall_api::status::{ExperimentStatus, Target, TargetPhase};

use crate::metrics::{Metrics, Span};

/// Count what came between `old` and `new`. `recovering` remembers since when targets have been put back.
pub fn count(
    metrics: &Metrics,
    action: &'static str,
    old: &ExperimentStatus,
    new: &ExperimentStatus,
    recovering: &mut Option<Timestamp>,
    now: Timestamp,
) {
    if let (None, Some(halted)) = (&old.halted, &new.halted) {
        metrics.halted(halted_by(&halted.by), &halted.reason);
    }
    for (index, target) in new.targets.iter().enumerate() {
        // Targets are only ever appended.
        let before = old.targets.get(index).filter(|before| before.uid == target.uid);
        if before.map(|before| before.phase) != Some(target.phase) {
            if target.phase == TargetPhase::Recovering {
                recovering.get_or_insert(now);
            }
            if let Some(outcome) = outcome(target.phase) {
                metrics.target(action, outcome);
            }
        }
        let took = |span, from: Option<Timestamp>, to: fn(&Target) -> Option<Timestamp>| {
            if before.and_then(to).is_none()
                && let (Some(from), Some(to)) = (from, to(target))
            {
                let took = to.duration_since(from);
                metrics.took(span, action, std::time::Duration::try_from(took).unwrap_or_default());
            }
        };
        let injected = target.injected_at.as_ref().map(|at| at.0);
        let recovered = target.recovered_at.as_ref().map(|at| at.0);
        took(Span::Inject, target.ordered_at.as_ref().map(|at| at.0), |target| {
            target.injected_at.as_ref().map(|at| at.0)
        });
        // What was never there needs no recovery.
        let asked = injected.and(recovering.or(recovered));
        took(Span::Recover, asked, |target| target.recovered_at.as_ref().map(|at| at.0));
        took(Span::Ready, recovered.or(injected), |target| target.ready_at.as_ref().map(|at| at.0));
    }
    if !new.targets.iter().any(|target| target.phase == TargetPhase::Recovering) {
        *recovering = None;
    }
}

/// `None`: it has not come to anything yet.
fn outcome(phase: TargetPhase) -> Option<&'static str> {
    match phase {
        TargetPhase::Selected | TargetPhase::Recovering => None,
        TargetPhase::Injected => Some("injected"),
        TargetPhase::Recovered => Some("recovered"),
        TargetPhase::Killed => Some("killed"),
        TargetPhase::Skipped => Some("skipped"),
        TargetPhase::Failed => Some("failed"),
        TargetPhase::Released => Some("released"),
        TargetPhase::Gone => Some("gone"),
    }
}

/// What halted it, without its name.
fn halted_by(by: &str) -> &'static str {
    match by.split_once(' ') {
        Some(("Namespace", _)) => "Namespace",
        Some(("ChaosPolicy", _)) => "ChaosPolicy",
        Some(_) | None => "steadyState",
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
    use squall_api::status::Halted;

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn time(seconds: i64) -> Option<MicroTime> {
        Some(MicroTime(at(seconds)))
    }

    fn status(target: Target) -> ExperimentStatus {
        ExperimentStatus { targets: vec![target], ..ExperimentStatus::default() }
    }

    #[test]
    fn a_life_is_counted_once_with_its_times() {
        let metrics = Metrics::new();
        let mut since = None;
        let chosen = Target { uid: "u".into(), ordered_at: time(10), ..Target::default() };
        let injected = Target { phase: TargetPhase::Injected, injected_at: time(12), ..chosen.clone() };
        let going = Target { phase: TargetPhase::Recovering, ..injected.clone() };
        let back = Target { phase: TargetPhase::Recovered, recovered_at: time(41), ..going.clone() };
        let ready = Target { ready_at: time(46), ..back.clone() };
        let mut old = ExperimentStatus::default();
        for (now, new) in [(10, chosen), (12, injected), (40, going), (41, back), (46, ready)] {
            let new = status(new);
            count(&metrics, "pod-failure", &old, &new, &mut since, at(now));
            // What is the same says nothing.
            count(&metrics, "pod-failure", &new, &new, &mut since, at(now));
            old = new;
        }
        let text = metrics.encode().unwrap();
        for line in [
            r#"squall_targets_total{action="pod-failure",outcome="injected"} 1"#,
            r#"squall_targets_total{action="pod-failure",outcome="recovered"} 1"#,
            r#"squall_inject_seconds_sum{action="pod-failure"} 2.0"#,
            r#"squall_recover_seconds_sum{action="pod-failure"} 1.0"#,
            r#"squall_ready_seconds_sum{action="pod-failure"} 5.0"#,
            r#"squall_ready_seconds_count{action="pod-failure"} 1"#,
        ] {
            assert!(text.contains(line), "{line} is missing in {text}");
        }
    }

    #[test]
    fn a_halt_is_counted_by_what_said_so_and_never_by_name() {
        let metrics = Metrics::new();
        for by in ["Namespace shop", "ChaosPolicy team-a", "steadyState"] {
            let halted =
                Halted { at: MicroTime(at(1)), by: by.into(), reason: "Halted".into(), message: "".into() };
            let new = ExperimentStatus { halted: Some(halted), ..ExperimentStatus::default() };
            count(&metrics, "stress", &ExperimentStatus::default(), &new, &mut None, at(1));
            count(&metrics, "stress", &new, &new, &mut None, at(2));
        }
        let text = metrics.encode().unwrap();
        for by in ["Namespace", "ChaosPolicy", "steadyState"] {
            let line = format!(r#"squall_halts_total{{by="{by}",reason="Halted"}} 1"#);
            assert!(text.contains(&line), "{line} is missing in {text}");
        }
        assert!(!text.contains("shop") && !text.contains("team-a"));
    }
}
