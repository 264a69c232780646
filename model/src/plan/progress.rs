//! Which changes of a status may wait for more of their kind.

use squall_api::status::{ExperimentStatus, Target};

/// Whether all that is new is how far targets have come. With thirty containers killed at once each tells several
/// times; to write the object each time would take the CPU from what is reported.
///
/// What tells a user more than that (the phase, a condition), what others wait for, and what effects rest on (which
/// targets there are) is no mere progress.
pub fn is_progress(old: &ExperimentStatus, new: &ExperimentStatus) -> bool {
    let rest = |status: &ExperimentStatus| {
        let mut rest = ExperimentStatus {
            targets: Vec::new(),
            summary: None,
            message: None,
            effect: None,
            ..status.clone()
        };
        // Their messages count the targets.
        rest.conditions.iter_mut().for_each(|condition| condition.message.clear());
        rest
    };
    // That an order went out is what the next leader has to know.
    let same = |(old, new): (&Target, &Target)| {
        old.uid == new.uid
            && old.container_id == new.container_id
            && old.attempt == new.attempt
            && old.ordered_at == new.ordered_at
    };
    old.targets.len() == new.targets.len()
        && old.targets.iter().zip(&new.targets).all(same)
        && rest(old) == rest(new)
}

#[cfg(test)]
mod tests {
    use squall_api::status::{Phase, TargetPhase};

    use super::*;

    fn status(phase: Phase, targets: &[(&str, TargetPhase)]) -> ExperimentStatus {
        let targets = targets.iter().map(|(uid, phase)| Target {
            uid: (*uid).to_owned(),
            phase: *phase,
            ..Target::default()
        });
        ExperimentStatus { phase: Some(phase), targets: targets.collect(), ..ExperimentStatus::default() }
    }

    #[test]
    fn only_how_far_targets_have_come_may_wait() {
        let old = status(Phase::Injecting, &[("a", TargetPhase::Selected), ("b", TargetPhase::Selected)]);
        let progress = status(Phase::Injecting, &[("a", TargetPhase::Killed), ("b", TargetPhase::Selected)]);
        assert!(is_progress(&old, &progress));
        assert!(!is_progress(&old, &ExperimentStatus { phase: Some(Phase::Completed), ..progress.clone() }));
        assert!(!is_progress(&old, &status(Phase::Injecting, &[("a", TargetPhase::Selected)])));
        let another = status(Phase::Injecting, &[("a", TargetPhase::Selected), ("c", TargetPhase::Selected)]);
        assert!(!is_progress(&old, &another));
        assert!(!is_progress(&ExperimentStatus::default(), &old));
    }
}
