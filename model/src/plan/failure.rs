//! pod-failure on one target: it is injected while the fault is wanted, and released when it isn't. When it is wanted
//! is said in [`super::lasting`].

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use squall_api::names;
use squall_api::podchaos::{Target, TargetPhase};

use super::kill::fail;
use super::lasting::{Asked, release, went_away};
use super::order::order;
use super::outcomes::injection_limit;
use super::{
    Effect, Ident, Input, NodeFault, Outcome, PodRef, Stage, Step, Verb, later, namespace, seconds, view,
};
use crate::pod::{ContainerState, ContainerView, PodView};
use crate::select::{Ineligible, eligible};
use crate::spec::{Spec, Whom};
use crate::substitute::{FaultImages, Holder};

/// SIGKILL, for `fast`.
const SIGKILL: i32 = 9;

impl Step<'_> {
    /// One target's next step.
    pub(super) fn fail_one(
        &mut self,
        spec: &Spec,
        fast: bool,
        index: usize,
        target: &mut Target,
        asked: Asked,
    ) {
        let Asked { wanted, expired, narrowed } = asked;
        let Input { now, world, outcomes, images, .. } = self.input;
        match target.phase {
            TargetPhase::Selected | TargetPhase::Injected | TargetPhase::Recovering => {}
            TargetPhase::Recovered if wanted => anew(target),
            TargetPhase::Recovered => return self.rests(spec, target, narrowed),
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
        if let Err(why) = eligible(spec, pod, namespace(world, target)) {
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
            // For a pause that was lifted before it could be written.
            TargetPhase::Injected if !held && self.is_released_by_us(target) => anew(target),
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
                        let ordered = target.ordered_at.get_or_insert(MicroTime(now)).0;
                        let limit = later(ordered, injection_limit());
                        if limit <= now {
                            fail(target, "NotInjected", "its images were not substituted; it was recovered");
                        } else {
                            self.wake(limit);
                        }
                    }
                    Some(Outcome::Refused { .. } | Outcome::Retry { .. }) | None => {
                        self.inject_one(spec, index, target, pod);
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
                } else if later(ordered, injection_limit()) <= now {
                    fail(
                        target,
                        "NotInjected",
                        &format!(
                            "after 60 s container {} still runs its original; it was recovered",
                            original[0].name
                        ),
                    );
                } else {
                    self.wake(later(ordered, injection_limit()));
                    // The kubelet first has to know that the old containers go, or it starts them again.
                    let kubelet_knows = later(ordered, SignedDuration::from_millis(500));
                    if fast && kubelet_knows > now {
                        self.wake(kubelet_knows);
                    } else if fast {
                        for container in original {
                            let old = Target {
                                container: Some(container.name.clone()),
                                container_id: container.id.clone(),
                                ..target.clone()
                            };
                            let kill = NodeFault::Kill { signal: SIGKILL, whom: Whom::default() };
                            self.plan.orders.extend(order(self.ident.uid, &old, kill, Stage::Fire));
                        }
                    }
                }
            }
            TargetPhase::Selected => self.inject_one(spec, index, target, pod),
            TargetPhase::Recovering
            | TargetPhase::Recovered
            | TargetPhase::Killed
            | TargetPhase::Skipped
            | TargetPhase::Failed
            | TargetPhase::Released
            | TargetPhase::Gone => {}
        }
    }

    fn inject_one(&mut self, spec: &Spec, index: usize, target: &mut Target, pod: &PodView) {
        let now = self.input.now;
        // A target of this very step is written down first.
        let recorded = self.input.status.targets.get(index).is_some_and(|known| {
            known.uid == target.uid && matches!(known.phase, TargetPhase::Selected | TargetPhase::Recovered)
        });
        if !recorded {
            return;
        }
        let ordered = target.ordered_at.get_or_insert(MicroTime(now)).0;
        // What was done before the order says nothing: it has been released since, by an answer that perhaps got lost.
        let before = |outcome: &&Outcome| matches!(outcome, Outcome::Done { at, .. } if *at < ordered);
        match self.input.outcomes.get(Verb::Inject, &target.uid).filter(|outcome| !before(outcome)) {
            Some(Outcome::Refused { reason, message }) => fail(target, reason, message),
            Some(Outcome::Retry { message, .. }) if later(ordered, injection_limit()) <= now => {
                fail(target, "NotInjected", message);
            }
            None if later(ordered, injection_limit()) <= now => {
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

    /// Whether it was let go by us after it was injected, and not by hand.
    fn is_released_by_us(&self, target: &Target) -> bool {
        let injected = target.injected_at.as_ref().map(|at| at.0);
        match self.input.outcomes.get(Verb::Release, &target.uid) {
            Some(Outcome::Done { at, .. }) => injected.is_some_and(|injected| *at >= injected),
            Some(Outcome::Refused { .. } | Outcome::Retry { .. }) | None => false,
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
        } else if later(since, seconds(600)) <= now {
            fail(target, "NotReadyAgain", "its images are back, but it wasn't Ready within 10 minutes");
        } else {
            self.wake(later(since, seconds(600)));
        }
    }
}

/// It is to be injected once more.
fn anew(target: &mut Target) {
    target.phase = TargetPhase::Selected;
    target.ordered_at = None;
    target.injected_at = None;
    target.recovered_at = None;
    target.ready_at = None;
    target.message = None;
}

fn is_fault_image(image: &str, images: &FaultImages) -> bool {
    image == images.pause || image == images.crash
}

/// Whether what runs in a container stands in for its original, by any name that the runtime may have for it: one image
/// can have the tags of several releases and the registries of several mirrors, and the runtime tells one of them.
fn stand_in_runs(running: &str, images: &FaultImages) -> bool {
    [&images.pause, &images.crash].iter().any(|image| repository(image) == repository(running))
}

/// The last part of an image's name, without registry, path, tag and digest.
fn repository(image: &str) -> &str {
    let name = image.split('@').next().unwrap_or(image);
    let name = name.rsplit('/').next().unwrap_or(name);
    name.split(':').next().unwrap_or(name)
}

/// The containers of `pod` that are substituted, by its own record.
fn substituted(pod: &PodView) -> impl Iterator<Item = &ContainerView> {
    let record = pod.annotations.get(names::ORIGINAL_IMAGES).map(String::as_str).unwrap_or_default();
    let record: serde_json::Map<String, serde_json::Value> = serde_json::from_str(record).unwrap_or_default();
    pod.containers.iter().filter(move |container| record.contains_key(&container.name))
}

/// Whether a substituted container still runs what it ran before `ordered`.
///
/// The runtime may have no name for the stand-in that tells what it is, so a container that was started after the order
/// counts as well. That alone is not enough: Kubernetes tells the second in which it was started.
fn runs_original(container: &ContainerView, images: &FaultImages, ordered: Timestamp) -> bool {
    match &container.state {
        ContainerState::Running(since) => {
            let stands_in = container
                .running_image
                .as_deref()
                .is_some_and(|image| image == container.image || stand_in_runs(image, images));
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
        let running = matches!(container.state, ContainerState::Running(_));
        let running = container.running_image.as_deref().filter(|_| running);
        is_fault_image(&container.image, images)
            || running.is_some_and(|image| image != container.image && stand_in_runs(image, images))
    });
    !stands_in && (pod.ready || !was_ready)
}
