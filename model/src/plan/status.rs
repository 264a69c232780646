//! What the status says in sum: phase, conditions, summary. Everything here follows from the targets.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, Time};
use squall_api::podchaos::{ExperimentStatus, Phase, TargetPhase};

use super::effect;
use super::halt::Afterwards;
use super::size::shorten;
use super::{Plan, Step};
use crate::spec::{Action, Spec};

impl Step<'_> {
    /// It is over.
    pub(super) fn complete(&mut self, phase: Phase, reason: &str, message: &str) {
        if self.plan.status.completed_at.is_some() {
            return;
        }
        let now = self.input.now;
        self.plan.status.phase = Some(phase);
        self.plan.status.message = Some(message.to_owned());
        self.plan.status.completed_at = Some(MicroTime(now));
        let success = phase == Phase::Completed;
        // Of the end there are five kinds; what went wrong in particular stands in Failed.
        let kind = match reason {
            "Succeeded" | "Failed" | "Halted" | "NoTargets" | "Aborted" => reason,
            _ if phase == Phase::Halted => "Halted",
            _ => "Failed",
        };
        let mut conditions = self.conditions();
        conditions.set("Completed", true, kind, message);
        conditions.set("Failed", !success, if success { "Succeeded" } else { reason }, message);
    }

    /// It is over; how well, the targets tell.
    pub(super) fn complete_by_targets(&mut self) {
        if let Some(halted) = self.plan.status.halted.clone() {
            self.complete(Phase::Halted, &halted.reason, &halted.message);
            return;
        }
        let count = |phase| count(&self.plan.status, phase);
        let failed = count(TargetPhase::Failed);
        let hit = self
            .plan
            .status
            .targets
            .iter()
            .filter(|target| match target.phase {
                TargetPhase::Killed => true,
                TargetPhase::Recovered | TargetPhase::Gone => target.injected_at.is_some(),
                TargetPhase::Selected
                | TargetPhase::Injected
                | TargetPhase::Recovering
                | TargetPhase::Skipped
                | TargetPhase::Failed
                | TargetPhase::Released => false,
            })
            .count();
        let released = count(TargetPhase::Released);
        if failed > 0 {
            let why = self
                .plan
                .status
                .targets
                .iter()
                .find(|target| target.phase == TargetPhase::Failed)
                .map(|target| {
                    format!(
                        "{}/{}: {}",
                        target.namespace,
                        target.pod,
                        target.message.as_deref().unwrap_or("no reason")
                    )
                })
                .unwrap_or_default();
            self.complete(
                Phase::Failed,
                "Failed",
                &format!("{failed} of {} failed; {why}", targets(failed + hit + released)),
            );
        } else if hit > 0 {
            match self.holds_afterwards() {
                Afterwards::NotSeen => {}
                Afterwards::Unsteady(halted) => {
                    self.complete(Phase::Halted, &halted.reason, &halted.message);
                    self.plan.status.halted = Some(halted);
                }
                Afterwards::Steady => {
                    self.complete(Phase::Completed, "Succeeded", &format!("{} hit, and over", targets(hit)));
                }
            }
        } else if released > 0 {
            self.complete(
                Phase::Failed,
                "Aborted",
                "every target was released before the end; see the targets' reasons",
            );
        } else {
            self.complete(
                Phase::Failed,
                "NoTargets",
                "every chosen target had gone or changed before it was hit; see the targets' reasons",
            );
        }
    }

    fn conditions(&mut self) -> Conditions<'_> {
        Conditions {
            of: &mut self.plan.status.conditions,
            now: self.input.now,
            generation: self.ident.generation,
        }
    }

    /// Fill in what follows from the rest, and hand the plan over.
    pub(super) fn finish(mut self) -> Plan {
        let status = &mut self.plan.status;
        if let Ok(Spec { action: Action::Stress(stress), .. }) = self.input.experiment.spec {
            status.stressors = Some(stress.to_string());
            status.effect = effect::summary(status, stress);
        }
        let interruptions: i32 = status.targets.iter().filter_map(|target| target.interruptions).sum();
        status.interruptions = (interruptions > 0).then_some(interruptions);
        shorten(status);
        let phase = status.phase.unwrap_or_default();
        let chosen = chosen(status);
        let hit = hit(status);
        status.summary = status.selected_at.is_some().then(|| format!("{hit}/{chosen}"));

        let selected = status.selected_at.is_some();
        let message = status.message.clone().unwrap_or_default();
        let failed = count(status, TargetPhase::Failed);
        let open = [TargetPhase::Selected, TargetPhase::Injected, TargetPhase::Recovering]
            .into_iter()
            .map(|phase| count(status, phase))
            .sum::<usize>();
        let back = count(status, TargetPhase::Recovered);
        let one_shot = count(status, TargetPhase::Killed) > 0;
        let over = status.completed_at.is_some();
        let mut conditions = self.conditions();
        conditions.set(
            "Selected",
            selected && chosen > 0,
            if selected { "TargetsChosen" } else { "NoTargets" },
            &if selected { format!("{} chosen", targets(chosen)) } else { message.clone() },
        );
        let (injected, why) = match phase {
            Phase::Pending => (false, "Pending"),
            Phase::Injecting => (false, "Injecting"),
            Phase::Injected => (failed == 0, if failed == 0 { "AllInjected" } else { "SomeFailed" }),
            Phase::Paused => (false, "Paused"),
            Phase::Recovering => (false, "Recovering"),
            Phase::Completed => (one_shot, if one_shot { "AllInjected" } else { "Recovered" }),
            Phase::Failed | Phase::Halted => (false, "Ended"),
        };
        conditions.set("Injected", injected, why, &format!("{hit} of {} hit", targets(chosen)));
        let recovered = selected && open == 0 && back > 0;
        conditions.set(
            "Recovered",
            recovered,
            if recovered { "AllRecovered" } else { "NotRecovered" },
            &format!("{} recovered, {open} open", targets(back)),
        );
        let paused = phase == Phase::Paused;
        conditions.set("Paused", paused, if paused { "PauseAnnotation" } else { "NotPaused" }, "");
        if !over {
            conditions.set("Completed", false, "InProgress", &message);
            conditions.set("Failed", false, "InProgress", "");
        }
        // kstatus: these two are there only while they hold.
        let busy = !over && !matches!(phase, Phase::Injected | Phase::Paused | Phase::Halted);
        conditions.while_true("Reconciling", busy, "InProgress", &message);
        conditions.while_true("Stalled", matches!(phase, Phase::Failed | Phase::Halted), "Failed", &message);
        self.plan
    }
}

/// `1 target`, `2 targets`.
pub(super) fn targets(count: usize) -> String {
    format!("{count} target{}", if count == 1 { "" } else { "s" })
}

/// How many targets are in `phase`.
pub(super) fn count(status: &ExperimentStatus, phase: TargetPhase) -> usize {
    status.targets.iter().filter(|target| target.phase == phase).count()
}

/// How many were chosen to be hit.
fn chosen(status: &ExperimentStatus) -> usize {
    status.targets.len() - count(status, TargetPhase::Skipped)
}

/// How many were hit, whatever came afterwards.
fn hit(status: &ExperimentStatus) -> usize {
    status
        .targets
        .iter()
        .filter(|target| match target.phase {
            TargetPhase::Injected | TargetPhase::Killed => true,
            TargetPhase::Recovering
            | TargetPhase::Recovered
            | TargetPhase::Released
            | TargetPhase::Gone
            | TargetPhase::Failed => target.injected_at.is_some(),
            TargetPhase::Selected | TargetPhase::Skipped => false,
        })
        .count()
}

/// The conditions as they are written now.
struct Conditions<'a> {
    of: &'a mut Vec<Condition>,
    now: Timestamp,
    generation: i64,
}

impl Conditions<'_> {
    fn set(&mut self, kind: &str, holds: bool, reason: &str, message: &str) {
        let new = Condition {
            type_: kind.to_owned(),
            status: if holds { "True" } else { "False" }.to_owned(),
            reason: reason.to_owned(),
            message: message.to_owned(),
            last_transition_time: Time(self.now),
            observed_generation: Some(self.generation),
        };
        match self.of.iter_mut().find(|condition| condition.type_ == kind) {
            Some(old) => {
                let since = if old.status == new.status {
                    old.last_transition_time.clone()
                } else {
                    new.last_transition_time.clone()
                };
                *old = Condition { last_transition_time: since, ..new };
            }
            None => self.of.push(new),
        }
    }

    fn while_true(&mut self, kind: &str, holds: bool, reason: &str, message: &str) {
        if holds {
            self.set(kind, true, reason, message);
        } else {
            self.of.retain(|condition| condition.type_ != kind);
        }
    }
}
