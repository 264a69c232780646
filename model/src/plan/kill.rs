//! pod-kill: each target is deleted or evicted once, by UID; afterwards its replacement is followed.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use squall_api::podchaos::{Phase, Target, TargetPhase};

use super::choose::whole_seconds;
use super::lasting::{LEFT_OUT, NARROWED};
use super::{Effect, Input, Outcome, PodRef, Step, Verb, later, namespace, seconds, view};
use crate::pod::PodView;
use crate::select::eligible;
use crate::spec::Spec;
use crate::time::LONGEST;

/// A pod's own grace period has no upper bound in Kubernetes. Beyond 30 days a typo is likelier than a wish.
const LONGEST_GRACE: i64 = LONGEST.as_secs().cast_signed();

/// Pods are created by another clock than ours, which may be so far behind.
const SKEW: SignedDuration = SignedDuration::from_secs(2);

impl Step<'_> {
    pub(super) fn pod_kill(&mut self, spec: &Spec, grace: Option<u32>, evict: bool) {
        let give_up = self.plan.status.selected_at.as_ref().map(|at| later(at.0, spec.patience()));
        let mut targets = std::mem::take(&mut self.plan.status.targets);
        for target in &mut targets {
            if target.phase == TargetPhase::Selected {
                self.kill_one(spec, target, give_up, grace, evict);
            }
            if target.phase == TargetPhase::Killed && target.gone_at.is_none() {
                let pod = view(self.input.world, target);
                if pod.is_none() {
                    target.gone_at = Some(MicroTime(self.input.now));
                } else if let Some(at) = &target.injected_at {
                    // A node that is down never confirms; the deletion itself is done.
                    let own = pod.and_then(|pod| pod.grace).unwrap_or(30).clamp(0, LONGEST_GRACE);
                    let limit = later(at.0, seconds(grace.map_or(own, i64::from) + 900));
                    if limit <= self.input.now {
                        target.gone_at = Some(MicroTime(self.input.now));
                        target.message =
                            Some("deleted, but still terminating: its node may be down".to_owned());
                    } else {
                        self.wake(limit);
                    }
                }
            }
        }
        let open = targets.iter().any(|target| target.phase == TargetPhase::Selected);
        let leaving =
            targets.iter().any(|target| target.phase == TargetPhase::Killed && target.gone_at.is_none());
        self.plan.status.targets = targets;
        if open && self.is_halted() {
            self.plan.status.phase = Some(Phase::Halted);
        } else if open && self.ident.paused {
            self.plan.status.phase = Some(Phase::Paused);
        } else if open {
            self.plan.status.phase = Some(Phase::Injecting);
        } else if leaving {
            self.plan.status.phase = Some(Phase::Injected);
            self.plan.status.message =
                Some("every target has its deletion mark; waiting until they are gone".to_owned());
        } else {
            self.complete_by_targets();
        }
        self.follow_replacements();
    }

    fn kill_one(
        &mut self,
        spec: &Spec,
        target: &mut Target,
        give_up: Option<Timestamp>,
        grace: Option<u32>,
        evict: bool,
    ) {
        let Input { now, world, outcomes, .. } = self.input;
        let outcome = outcomes.get(Verb::Delete, &target.uid);
        if let Some(Outcome::Done { at, .. }) = outcome {
            target.phase = TargetPhase::Killed;
            target.ordered_at = Some(MicroTime(*at));
            target.injected_at = Some(MicroTime(*at));
            return;
        }
        let Some(pod) = view(world, target) else {
            target.phase = TargetPhase::Killed;
            target.injected_at = Some(MicroTime(now));
            target.gone_at = Some(MicroTime(now));
            target.message = Some("was gone when it was looked at".to_owned());
            return;
        };
        if pod.terminating {
            target.phase = TargetPhase::Killed;
            target.injected_at = Some(MicroTime(now));
            target.message = Some("had a deletion mark when it was looked at".to_owned());
            return;
        }
        if self.is_changed() && self.leaves_out(spec, target) {
            skip(target, NARROWED, LEFT_OUT);
            return;
        }
        if let Err(why) = eligible(spec, pod, namespace(world, target)) {
            skip(target, why.reason(), &why.to_string());
            return;
        }
        if self.is_spared(spec, target) || self.ident.paused {
            return;
        }
        let expired = give_up.is_some_and(|at| at <= now);
        match outcome {
            Some(Outcome::Refused { reason, message }) => fail(target, reason, message),
            Some(Outcome::Retry { message, .. }) if expired => {
                fail(target, if evict { "EvictionBlocked" } else { "NotDeleted" }, message);
            }
            None if expired => fail(target, "NotDeleted", "its time was over before it could be tried"),
            Some(Outcome::Retry { at, message, .. }) if *at > now => {
                target.message = Some(message.clone());
                self.wake(*at);
                if let Some(at) = give_up {
                    self.wake(at);
                }
            }
            Some(Outcome::Retry { .. } | Outcome::Done { .. }) | None => {
                let pod = PodRef::of(target);
                self.plan.effects.push(if evict {
                    Effect::Evict { pod, grace }
                } else {
                    Effect::Delete { pod, grace }
                });
            }
        }
    }

    /// Which pod replaced which, and when it was Ready. Told for ten minutes after the end.
    pub(super) fn follow_replacements(&mut self) {
        if !self.still_followed() {
            return;
        }
        let Input { now, world, .. } = self.input;
        let selected = self.plan.status.selected_at.as_ref().map(|at| whole_seconds(at.0));
        let earliest = selected.map(|at| later(at, -SKEW));
        let mut targets = std::mem::take(&mut self.plan.status.targets);
        let taken: BTreeSet<String> =
            targets.iter().filter_map(|target| target.replacement.clone()).collect();
        let ours: BTreeSet<String> = targets.iter().map(|target| target.uid.clone()).collect();
        // The newcomers of each workload, looked up once, oldest first.
        let mut newcomers: BTreeMap<String, Vec<&PodView>> = BTreeMap::new();
        for target in &mut targets {
            let (TargetPhase::Killed, None, Some(owner)) = (target.phase, &target.ready_at, &target.owner)
            else {
                continue;
            };
            // What was only found to be deleted was deleted at any time since the choice, perhaps by the leader before.
            let ordered = target.ordered_at.as_ref().and(target.injected_at.as_ref());
            let since = ordered.map_or(earliest, |at| Some(later(whole_seconds(at.0), -SKEW)));
            if target.replacement.is_none() {
                let pods = newcomers.entry(owner.clone()).or_insert_with(|| {
                    let mut pods: Vec<&PodView> = world
                        .owned_by(owner)
                        .filter(|pod| {
                            !pod.terminating && !ours.contains(&pod.uid) && !taken.contains(&pod.name)
                        })
                        .filter(|pod| {
                            // By a clock that may be behind: what is Ready already was there before.
                            pod.created >= if pod.ready { selected } else { earliest }
                        })
                        .collect();
                    pods.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
                    pods
                });
                let fits = |pod: &&PodView| pod.namespace == target.namespace && pod.created >= since;
                let namesake = pods.iter().position(|pod| fits(pod) && pod.name == target.pod);
                if let Some(index) = namesake.or_else(|| pods.iter().position(fits)) {
                    target.replacement = Some(pods.remove(index).name.clone());
                }
            }
            let replacement =
                target.replacement.as_deref().and_then(|name| world.pod(&target.namespace, name));
            if replacement.is_some_and(|pod| pod.ready && !ours.contains(&pod.uid)) {
                target.ready_at = Some(MicroTime(now));
            }
        }
        self.plan.status.targets = targets;
    }

    /// Whether what comes after the end is still of interest.
    pub(super) fn still_followed(&mut self) -> bool {
        match &self.plan.status.completed_at {
            None => true,
            Some(at) => later(at.0, seconds(600)) > self.input.now,
        }
    }
}

/// It is not hit, and that is no failure.
pub(super) fn skip(target: &mut Target, reason: &str, message: &str) {
    target.phase = TargetPhase::Skipped;
    target.reason = Some(reason.to_owned());
    target.message = Some(message.to_owned());
}

pub(super) fn fail(target: &mut Target, reason: &str, message: &str) {
    target.phase = TargetPhase::Failed;
    target.reason = Some(reason.to_owned());
    target.message = Some(message.to_owned());
}
