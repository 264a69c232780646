//! What to tell as Events: read off the change of the status, so that each is told once and only when it is
//! written.

use squall_api::podchaos::{ExperimentStatus, Phase, Target, TargetPhase};

use super::PodRef;
use super::choose::NOT_DRAWN;

/// Something to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Normal or Warning.
    pub kind: NoteKind,
    /// On which pod; `None` means on the experiment.
    pub pod: Option<PodRef>,
    /// A stable word.
    pub reason: String,
    /// In words.
    pub message: String,
}

/// The type of an Event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoteKind {
    /// As it should be.
    Normal,
    /// Someone should look.
    Warning,
}

impl Note {
    /// On the experiment.
    pub fn experiment(kind: NoteKind, reason: &str, message: impl Into<String>) -> Self {
        Self { kind, pod: None, reason: reason.to_owned(), message: message.into() }
    }

    /// On a pod.
    pub fn pod(kind: NoteKind, pod: PodRef, reason: &str, message: impl Into<String>) -> Self {
        Self { kind, pod: Some(pod), reason: reason.to_owned(), message: message.into() }
    }
}

/// What the change from `old` to `new` tells; `experiment` is `PodChaos NAMESPACE/NAME`, and `deed` says what it did to
/// a target that it hit ([`crate::spec::Action::deed`]).
pub fn notes(old: &ExperimentStatus, new: &ExperimentStatus, experiment: &str, deed: &str) -> Vec<Note> {
    let mut notes = Vec::new();
    if new.phase != old.phase
        && let Some(phase) = new.phase
    {
        let kind = match phase {
            Phase::Failed | Phase::Halted => NoteKind::Warning,
            Phase::Pending
            | Phase::Injecting
            | Phase::Injected
            | Phase::Paused
            | Phase::Recovering
            | Phase::Completed => NoteKind::Normal,
        };
        notes.push(Note::experiment(kind, &format!("{phase:?}"), new.message.clone().unwrap_or_default()));
    }
    for (index, target) in new.targets.iter().enumerate() {
        // Targets are only ever appended.
        let before = old.targets.get(index).filter(|before| before.uid == target.uid);
        if before.map(|before| before.phase) != Some(target.phase)
            && let Some(note) = of_target(target, experiment, deed)
        {
            notes.push(note);
        }
        let told = before.map(|before| before.warnings.as_slice()).unwrap_or_default();
        for warning in target.warnings.iter().filter(|warning| !told.contains(warning)) {
            let message = format!("{}{experiment}: {warning}", container(target));
            notes.push(Note::pod(NoteKind::Warning, PodRef::of(target), "NodeWarning", message));
        }
    }
    notes
}

fn of_target(target: &Target, experiment: &str, deed: &str) -> Option<Note> {
    let injected = format!("{deed} by");
    let (kind, reason, what) = match target.phase {
        TargetPhase::Selected | TargetPhase::Recovering => return None,
        TargetPhase::Injected => (NoteKind::Warning, "Injected", injected.as_str()),
        TargetPhase::Recovered => (NoteKind::Normal, "Recovered", "recovered from"),
        TargetPhase::Killed => (NoteKind::Warning, "Killed", "killed by"),
        // Nobody has to know that a dry run would not have drawn a pod.
        TargetPhase::Skipped if target.reason.as_deref() == Some(NOT_DRAWN) => return None,
        TargetPhase::Skipped => (NoteKind::Normal, "Skipped", "skipped by"),
        TargetPhase::Failed => (NoteKind::Warning, "FaultFailed", "not hit, or not put back, by"),
        TargetPhase::Released => (NoteKind::Normal, "Released", "released from"),
        TargetPhase::Gone => return None,
    };
    let container = container(target);
    let message = target.message.as_ref().map(|message| format!(": {message}")).unwrap_or_default();
    Some(Note::pod(kind, PodRef::of(target), reason, format!("{container}{what} {experiment}{message}")))
}

fn container(target: &Target) -> String {
    target.container.as_ref().map(|name| format!("container {name} ")).unwrap_or_default()
}
