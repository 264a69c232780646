//! pod-failure: targets are injected while the fault is wanted and released when it isn't; pods that are born
//! meanwhile are adopted or let go.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use squall_api::names;
use squall_api::podchaos::{Phase, Scope, Target, TargetPhase};

use super::choose::{as_nodes, of_pod, order, whole_seconds};
use super::kill::fail;
use super::outcomes::injection_limit;
use super::status::{count, targets};
use super::{
    Effect, Ident, Input, MAX_TARGETS, Note, NoteKind, Outcome, PodRef, Step, Verb, later, seconds, view,
};
use crate::pod::{ContainerState, ContainerView, PodView};
use crate::select::{Ineligible, eligible};
use crate::spec::{Mode, Spec};
use crate::substitute::{FaultImages, Holder};

/// SIGKILL, for `fast`.
const SIGKILL: i32 = 9;

impl Step<'_> {
    pub(super) fn pod_failure(&mut self, spec: &Spec, fast: bool) {
        let now = self.input.now;
        let ends = self
            .plan
            .status
            .started_at
            .as_ref()
            .zip(spec.duration)
            .map(|(at, duration)| later(at.0, duration));
        self.plan.status.ends_at = ends.map(MicroTime);
        let expired = ends.is_some_and(|at| at <= now);
        let wanted = !expired && !self.ident.paused;

        // Ended targets stay ended whatever happens; a resumed experiment takes up the recovered ones.
        let narrowed = self.plan.status.observed_generation.is_some_and(|seen| seen < self.ident.generation);
        let asked = Asked { wanted, expired, fast, narrowed };
        let mut targets = std::mem::take(&mut self.plan.status.targets);
        for target in &mut targets {
            self.fail_one(spec, target, asked);
        }
        if wanted {
            self.births(spec, &mut targets);
        }
        let kept: BTreeSet<String> = targets
            .iter()
            .filter(|target| wanted && matches!(target.phase, TargetPhase::Selected | TargetPhase::Injected))
            .map(|target| target.uid.clone())
            .collect();
        self.plan.status.targets = targets;
        let held = self.release_unwanted(|uid| kept.contains(uid));
        self.clock(spec);
        self.failure_phase(spec, wanted, expired, held.len());
    }

    /// One target's next step.
    fn fail_one(&mut self, spec: &Spec, target: &mut Target, asked: Asked) {
        let Asked { wanted, expired, fast, narrowed } = asked;
        let Input { now, world, outcomes, images, .. } = self.input;
        match target.phase {
            TargetPhase::Selected | TargetPhase::Injected | TargetPhase::Recovering => {}
            TargetPhase::Recovered if wanted => {
                *target = Target {
                    phase: TargetPhase::Selected,
                    ordered_at: None,
                    injected_at: None,
                    recovered_at: None,
                    ready_at: None,
                    message: None,
                    ..target.clone()
                };
            }
            TargetPhase::Recovered => {
                // Its successor may be born while the experiment is paused.
                if view(world, target).is_none_or(|pod| pod.terminating) {
                    went_away(target, now);
                } else if narrowed {
                    self.narrow(spec, target);
                }
                return;
            }
            TargetPhase::Killed
            | TargetPhase::Skipped
            | TargetPhase::Failed
            | TargetPhase::Released
            | TargetPhase::Gone => return,
        }
        let Some(pod) = view(world, target).filter(|pod| !pod.terminating) else {
            went_away(target, now);
            return;
        };
        if narrowed && self.narrow(spec, target) {
            return;
        }
        let held = outcomes.holds(pod, self.ident.uid);
        if expired && target.phase == TargetPhase::Selected && target.ordered_at.is_some() {
            fail(target, "NotInjected", "its time was over before it was injected; it was recovered");
            return;
        }
        if target.phase == TargetPhase::Recovering || !wanted {
            self.recover_one(target, pod, held);
            return;
        }
        let namespace = world.namespace(&target.namespace).cloned().unwrap_or_default();
        if let Err(why) = eligible(spec, pod, &namespace) {
            if why == Ineligible::Terminating {
                // Its namespace goes, and the pod with it.
                went_away(target, now);
                return;
            }
            release(target, now, why.reason(), &why.to_string());
            if !held && target.injected_at.is_none() {
                target.phase = TargetPhase::Skipped;
                target.recovered_at = None;
            }
            return;
        }
        match target.phase {
            TargetPhase::Injected if !held => {
                release(
                    target,
                    now,
                    "LabelRemoved",
                    "the fault label was removed by hand; it is not hit again",
                );
            }
            TargetPhase::Injected => {}
            // The switch is on, and the images aren't there: not seen yet, or only the label came through.
            TargetPhase::Selected if held && substituted(pod).next().is_none() => {
                match outcomes.get(Verb::Inject, &target.uid) {
                    Some(Outcome::Done { .. }) => {
                        let limit = target.ordered_at.get_or_insert(MicroTime(now)).0 + injection_limit();
                        if limit <= now {
                            fail(target, "NotInjected", "its images were not substituted; it was recovered");
                        } else {
                            self.wake(limit);
                        }
                    }
                    Some(Outcome::Refused { .. } | Outcome::Retry { .. }) | None => {
                        self.inject_one(spec, target, pod, now);
                    }
                }
            }
            TargetPhase::Selected if held => {
                let answered = match outcomes.get(Verb::Inject, &target.uid) {
                    Some(Outcome::Done { at, .. }) => *at,
                    Some(Outcome::Refused { .. } | Outcome::Retry { .. }) | None => now,
                };
                let ordered = target.ordered_at.get_or_insert(MicroTime(answered)).0;
                let original: Vec<&ContainerView> =
                    substituted(pod).filter(|container| runs_original(container, images, ordered)).collect();
                if original.is_empty() {
                    target.phase = TargetPhase::Injected;
                    target.injected_at = Some(MicroTime(now));
                    target.message = why_down(pod);
                } else if ordered + injection_limit() <= now {
                    fail(
                        target,
                        "NotInjected",
                        &format!(
                            "after 60 s container {} still runs its original; it was recovered",
                            original[0].name
                        ),
                    );
                } else {
                    self.wake(ordered + injection_limit());
                    // The kubelet first has to know that the old containers go, or it starts them again.
                    let kubelet_knows = ordered + SignedDuration::from_millis(500);
                    if fast && kubelet_knows > now {
                        self.wake(kubelet_knows);
                    } else if fast {
                        for container in original {
                            let old = Target {
                                container: Some(container.name.clone()),
                                container_id: container.id.clone(),
                                ..target.clone()
                            };
                            self.plan.orders.extend(order(self.ident.uid, &old, SIGKILL, Scope::Init, false));
                        }
                    }
                }
            }
            TargetPhase::Selected => self.inject_one(spec, target, pod, now),
            TargetPhase::Recovering
            | TargetPhase::Recovered
            | TargetPhase::Killed
            | TargetPhase::Skipped
            | TargetPhase::Failed
            | TargetPhase::Released
            | TargetPhase::Gone => {}
        }
    }

    /// Release the target if the changed selector leaves it out.
    fn narrow(&mut self, spec: &Spec, target: &mut Target) -> bool {
        let Input { now, world, .. } = self.input;
        let out = view(world, target).is_some_and(|pod| !spec.selector.matches(pod, as_nodes(world)));
        if out {
            release(target, now, "Narrowed", "the selector was changed and leaves it out");
        }
        out
    }

    fn inject_one(&mut self, spec: &Spec, target: &mut Target, pod: &PodView, now: Timestamp) {
        // A target of this very step is written down first.
        let recorded = self.input.status.targets.iter().any(|known| {
            known.uid == target.uid && matches!(known.phase, TargetPhase::Selected | TargetPhase::Recovered)
        });
        if !recorded {
            return;
        }
        let ordered = target.ordered_at.get_or_insert(MicroTime(now)).0;
        match self.input.outcomes.get(Verb::Inject, &target.uid) {
            Some(Outcome::Refused { reason, message }) => fail(target, reason, message),
            Some(Outcome::Retry { message, .. }) if ordered + injection_limit() <= now => {
                fail(target, "NotInjected", message);
            }
            None if ordered + injection_limit() <= now => {
                fail(target, "NotInjected", "it was not injected within 60 s");
            }
            Some(Outcome::Retry { at, .. }) if *at > now => {
                let at = *at;
                self.wake(at);
            }
            // It was gone when it was to be injected; the watch will say so.
            Some(Outcome::Done { version: 0, .. }) => self.wake(now + seconds(1)),
            Some(Outcome::Done { .. }) => {
                release(
                    target,
                    now,
                    "LabelRemoved",
                    "the fault label was removed by hand; it is not hit again",
                );
            }
            Some(Outcome::Retry { .. }) | None => {
                let Ident { namespace, name, uid, .. } = self.ident;
                let holder = Holder::experiment(namespace, name, uid, spec, pod);
                self.plan.effects.push(Effect::Inject { pod: PodRef::of(target), holder });
            }
        }
    }

    /// The fault isn't wanted any more: when is the pod as before?
    fn recover_one(&mut self, target: &mut Target, pod: &PodView, held: bool) {
        let Input { now, images, outcomes, .. } = self.input;
        if target.phase != TargetPhase::Recovering {
            target.phase = TargetPhase::Recovering;
            target.recovered_at = None;
            target.message = None;
        }
        if held {
            if let Some(Outcome::Retry { message, .. }) = outcomes.get(Verb::Release, &target.uid) {
                target.message = Some(message.clone());
            }
            return;
        }
        let since = target.recovered_at.get_or_insert(MicroTime(now)).0;
        if !pod.held_by.iter().all(|holder| holder.uid == self.ident.uid) {
            target.phase = TargetPhase::Recovered;
            target.message = Some("released; it stays failed for another holder".to_owned());
        } else if is_whole(pod, images, target.was_ready.unwrap_or(false)) {
            target.phase = TargetPhase::Recovered;
            target.message = None;
            if pod.ready {
                target.ready_at = Some(MicroTime(now));
            }
        } else if since + seconds(600) <= now {
            fail(target, "NotReadyAgain", "its images are back, but it wasn't Ready within 10 minutes");
        } else {
            self.wake(since + seconds(600));
        }
    }

    /// Pods that were born since the targets were chosen: adopt them up to the number drawn, oldest first. What
    /// is held beyond that isn't wanted, and so is released.
    fn births(&mut self, spec: &Spec, targets: &mut Vec<Target>) {
        let Input { world, outcomes, .. } = self.input;
        let Some(selected) = self.plan.status.selected_at.as_ref().map(|at| whole_seconds(at.0)) else {
            return;
        };
        let known: BTreeSet<&str> = targets.iter().map(|target| target.uid.as_str()).collect();
        let mut born: Vec<(&PodView, bool)> = Vec::new();
        for name in &spec.selector.namespaces {
            let Some(namespace) = world.namespace(name) else { continue };
            for pod in world.pods(name) {
                let held = outcomes.holds(pod, self.ident.uid);
                let candidate = !known.contains(pod.uid.as_str())
                    && !pod.terminating
                    && (held || pod.created.is_some_and(|at| at >= selected))
                    && spec.selector.matches(pod, as_nodes(world))
                    && eligible(spec, pod, namespace).is_ok();
                if candidate {
                    born.push((pod, held));
                }
            }
        }
        if born.is_empty() {
            return;
        }
        // Those that are failed already come first, then by age.
        born.sort_by(|(a, a_held), (b, b_held)| {
            (!a_held, a.created, &a.name).cmp(&(!b_held, b.created, &b.name))
        });
        let live = targets
            .iter()
            .filter(|target| matches!(target.phase, TargetPhase::Selected | TargetPhase::Injected))
            .count();
        let mut room = match spec.mode {
            Mode::All => MAX_TARGETS.saturating_sub(live),
            Mode::One | Mode::Fixed(_) | Mode::FixedPercent(_) | Mode::RandomMaxPercent(_) => {
                usize::try_from(self.plan.status.drawn.unwrap_or(0)).unwrap_or(0).saturating_sub(live)
            }
        };
        room = room.min(MAX_TARGETS.saturating_sub(targets.len()));
        for (pod, held) in born {
            let left = targets.iter_mut().find(|target| replaces(pod, held, target));
            let adopt = room > 0 && (spec.mode == Mode::All || left.is_some());
            if adopt {
                room -= 1;
                if let Some(left) = left {
                    left.replacement = Some(pod.name.clone());
                }
                targets.push(Target { born: Some(true), was_ready: Some(true), ..of_pod(pod) });
            } else if held {
                self.plan.notes.push(Note::pod(
                    NoteKind::Normal,
                    PodRef::of_view(pod),
                    "ReleasedExcess",
                    format!(
                        "born failed for PodChaos {}/{}, which has its number of targets already; released",
                        self.ident.namespace, self.ident.name
                    ),
                ));
            }
        }
    }

    /// The clock of `duration` starts when no target is left to be injected, at the latest 30 s after the first
    /// effect.
    fn clock(&mut self, spec: &Spec) {
        let now = self.input.now;
        if self.plan.status.started_at.is_none() {
            let first = self
                .plan
                .status
                .targets
                .iter()
                .filter_map(|target| target.ordered_at.as_ref())
                .map(|at| at.0)
                .min();
            let Some(first) = first else { return };
            let waiting = count(&self.plan.status, TargetPhase::Selected) > 0;
            let latest = first + seconds(30);
            if waiting && latest > now {
                self.wake(latest);
                return;
            }
            self.plan.status.started_at = Some(MicroTime(now));
        }
        if let (Some(started), Some(duration)) = (&self.plan.status.started_at, spec.duration) {
            let ends = later(started.0, duration);
            self.plan.status.ends_at = Some(MicroTime(ends));
            if ends > now {
                self.wake(ends);
            }
        }
    }

    fn failure_phase(&mut self, spec: &Spec, wanted: bool, expired: bool, held: usize) {
        let status = &self.plan.status;
        let selected = count(status, TargetPhase::Selected);
        let injected = count(status, TargetPhase::Injected);
        let recovering = count(status, TargetPhase::Recovering);
        // A pod that went away may still be replaced, and its replacement failed.
        let replaceable = status.targets.iter().any(|target| {
            target.phase == TargetPhase::Gone && target.owner.is_some() && target.replacement.is_none()
        });
        let (phase, message) = if wanted && (selected > 0 || injected > 0 || replaceable) {
            if selected > 0 {
                (Phase::Injecting, format!("{} still to be injected", targets(selected)))
            } else {
                let until = match (&status.ends_at, spec.duration) {
                    (Some(at), Some(_)) => format!("until {}", at.0.strftime("%Y-%m-%dT%H:%M:%SZ")),
                    (Some(_) | None, _) => "until it is deleted or paused".to_owned(),
                };
                (Phase::Injected, format!("{} failed, {until}", targets(injected)))
            }
        } else if recovering > 0 || held > 0 {
            (Phase::Recovering, format!("{} being put back", targets(recovering.max(held))))
        } else if self.ident.paused && !expired {
            (Phase::Paused, "recovered for as long as the pause annotation is there".to_owned())
        } else {
            self.complete_by_targets();
            return;
        };
        self.plan.status.phase = Some(phase);
        self.plan.status.message = Some(message);
    }
}

/// Whether `pod` may be what took the place of the target `gone`.
///
/// Its owner may have been scaled out long before: such a pod replaces nothing. Creation times have whole
/// seconds, and that the target went is seen a little later than the replacement is made.
fn replaces(pod: &PodView, held: bool, gone: &Target) -> bool {
    let owner = pod.owner.as_ref().map(|owner| &owner.uid);
    let came_after = || {
        let times = pod.created.zip(gone.gone_at.as_ref());
        times.is_some_and(|(created, at)| created >= whole_seconds(at.0) - seconds(2))
    };
    gone.phase == TargetPhase::Gone
        && gone.replacement.is_none()
        && owner.is_some()
        && owner == gone.owner.as_ref()
        && (held || pod.name == gone.pod || came_after())
}

/// What is asked of every target now.
#[derive(Clone, Copy)]
struct Asked {
    /// The fault shall be there.
    wanted: bool,
    /// Its time is over.
    expired: bool,
    /// The daemon ends the old processes.
    fast: bool,
    /// The selector was changed since the last look.
    narrowed: bool,
}

fn went_away(target: &mut Target, now: Timestamp) {
    target.phase = TargetPhase::Gone;
    target.gone_at = Some(MicroTime(now));
    target.message = Some("the pod went away during the fault".to_owned());
}

/// Someone took the fault back, or forbade it.
fn release(target: &mut Target, now: Timestamp, reason: &str, message: &str) {
    target.phase = TargetPhase::Released;
    target.reason = Some(reason.to_owned());
    target.message = Some(message.to_owned());
    target.recovered_at = Some(MicroTime(now));
}

fn is_fault_image(image: &str, images: &FaultImages) -> bool {
    image == images.pause || image == images.crash
}

/// The containers of `pod` that are substituted, by its own record.
fn substituted(pod: &PodView) -> impl Iterator<Item = &ContainerView> {
    let record = pod.annotations.get(names::ORIGINAL_IMAGES).map(String::as_str).unwrap_or_default();
    let record: serde_json::Map<String, serde_json::Value> = serde_json::from_str(record).unwrap_or_default();
    pod.containers.iter().filter(move |container| record.contains_key(&container.name))
}

/// Whether a substituted container still runs what it ran before `ordered`.
///
/// The runtime may call the image that runs by another of its names, so a container that was started after the
/// order counts as well.
fn runs_original(container: &ContainerView, images: &FaultImages, ordered: Timestamp) -> bool {
    match &container.state {
        ContainerState::Running(since) => {
            let stands_in = container
                .running_image
                .as_deref()
                .is_some_and(|image| image == container.image || is_fault_image(image, images));
            !stands_in && !since.is_some_and(|since| since > ordered)
        }
        ContainerState::Unknown | ContainerState::Waiting(_) | ContainerState::Terminated(..) => false,
    }
}

/// In words, how the failed containers are down, where it isn't by sleeping in the fault image.
fn why_down(pod: &PodView) -> Option<String> {
    substituted(pod).find_map(|container| match &container.state {
        ContainerState::Waiting(reason) => Some(format!("container {} is down: {reason}", container.name)),
        ContainerState::Terminated(code, _) => {
            Some(format!("container {} is down: exited with {code}", container.name))
        }
        ContainerState::Running(_) | ContainerState::Unknown => None,
    })
}

/// Whether the pod runs its originals, and is Ready if it was before.
fn is_whole(pod: &PodView, images: &FaultImages, was_ready: bool) -> bool {
    let stands_in = pod.containers.iter().any(|container| {
        is_fault_image(&container.image, images)
            || (matches!(container.state, ContainerState::Running(_))
                && container.running_image.as_deref().is_some_and(|image| is_fault_image(image, images)))
    });
    !stands_in && (pod.ready || !was_ready)
}
