//! What the status says in sum: phase, conditions, summary. Everything here follows from the targets.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, Time};
use squall_api::podchaos::{ExperimentStatus, Phase, TargetPhase};

use super::effect;
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
        let generation = self.ident.generation;
        let success = phase == Phase::Completed;
        let status = &mut self.plan.status;
        // Of the end there are five kinds; what went wrong in particular stands in Failed.
        let kind = match reason {
            "Succeeded" | "Failed" | "Halted" | "NoTargets" | "Aborted" => reason,
            _ if phase == Phase::Halted => "Halted",
            _ => "Failed",
        };
        set(status, "Completed", true, kind, message, now, generation);
        set(status, "Failed", !success, if success { "Succeeded" } else { reason }, message, now, generation);
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
            self.complete(Phase::Completed, "Succeeded", &format!("{} hit, and over", targets(hit)));
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

    /// Fill in what follows from the rest, and hand the plan over.
    pub(super) fn finish(mut self) -> Plan {
        let now = self.input.now;
        let generation = self.ident.generation;
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
        set(
            status,
            "Selected",
            selected && chosen > 0,
            if selected { "TargetsChosen" } else { "NoTargets" },
            &if selected { format!("{} chosen", targets(chosen)) } else { message.clone() },
            now,
            generation,
        );
        let (injected, why) = match phase {
            Phase::Pending => (false, "Pending"),
            Phase::Injecting => (false, "Injecting"),
            Phase::Injected => (failed == 0, if failed == 0 { "AllInjected" } else { "SomeFailed" }),
            Phase::Paused => (false, "Paused"),
            Phase::Recovering => (false, "Recovering"),
            Phase::Completed => {
                let one_shot = count(status, TargetPhase::Killed) > 0;
                (one_shot, if one_shot { "AllInjected" } else { "Recovered" })
            }
            Phase::Failed | Phase::Halted => (false, "Ended"),
        };
        set(status, "Injected", injected, why, &format!("{hit} of {} hit", targets(chosen)), now, generation);
        let open = [TargetPhase::Selected, TargetPhase::Injected, TargetPhase::Recovering]
            .into_iter()
            .map(|phase| count(status, phase))
            .sum::<usize>();
        let back = count(status, TargetPhase::Recovered);
        let recovered = selected && open == 0 && back > 0;
        set(
            status,
            "Recovered",
            recovered,
            if recovered { "AllRecovered" } else { "NotRecovered" },
            &format!("{} recovered, {open} open", targets(back)),
            now,
            generation,
        );
        let paused = phase == Phase::Paused;
        set(
            status,
            "Paused",
            paused,
            if paused { "PauseAnnotation" } else { "NotPaused" },
            "",
            now,
            generation,
        );
        let over = status.completed_at.is_some();
        if !over {
            set(status, "Completed", false, "InProgress", &message, now, generation);
            set(status, "Failed", false, "InProgress", "", now, generation);
        }
        // kstatus: these two are there only while they hold.
        let busy = !over && !matches!(phase, Phase::Injected | Phase::Paused | Phase::Halted);
        while_true(status, "Reconciling", busy, "InProgress", &message, now, generation);
        while_true(
            status,
            "Stalled",
            matches!(phase, Phase::Failed | Phase::Halted),
            "Failed",
            &message,
            now,
            generation,
        );
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

fn while_true(
    status: &mut ExperimentStatus,
    kind: &str,
    holds: bool,
    reason: &str,
    message: &str,
    now: Timestamp,
    generation: i64,
) {
    if holds {
        set(status, kind, true, reason, message, now, generation);
    } else {
        status.conditions.retain(|condition| condition.type_ != kind);
    }
}

fn set(
    status: &mut ExperimentStatus,
    kind: &str,
    holds: bool,
    reason: &str,
    message: &str,
    now: Timestamp,
    generation: i64,
) {
    let value = if holds { "True" } else { "False" };
    let new = Condition {
        type_: kind.to_owned(),
        status: value.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        last_transition_time: Time(now),
        observed_generation: Some(generation),
    };
    match status.conditions.iter_mut().find(|condition| condition.type_ == kind) {
        Some(old) => {
            let since = if old.status == new.status {
                old.last_transition_time.clone()
            } else {
                new.last_transition_time.clone()
            };
            *old = Condition { last_transition_time: since, ..new };
        }
        None => status.conditions.push(new),
    }
}
