//! Faults that last (pod-failure, container-freeze, stress): when they are wanted, for how long, what becomes of pods
//! that are born meanwhile. How one target is hit and put back is in [`super::failure`] and [`super::node`].

use std::collections::{BTreeMap, BTreeSet};
use std::slice;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use squall_api::probe::OnHalt;
use squall_api::status::{Phase, Target, TargetPhase};

use super::back::unseen;
use super::choose::{as_nodes, of_container, of_pod, whole_seconds};
use super::halt::REFUSED;
use super::size::Room;
use super::status::{count, targets};
use super::{
    Input, MAX_TARGETS, NodeFault, Note, NoteKind, Outcome, PodRef, Step, Verb, later, seconds, view,
};
use crate::pod::{ContainerView, PodView};
use crate::select::eligible;
use crate::spec::{Action, Mode, Spec};

/// The stable word for what a changed selector leaves out.
pub(super) const NARROWED: &str = "Narrowed";
/// The same in words.
pub(super) const LEFT_OUT: &str = "the selector was changed and leaves it out";

impl Step<'_> {
    pub(super) fn lasting(&mut self, spec: &Spec) {
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
        let wanted = !expired && !self.ident.paused && !self.is_halted();

        // Ended targets stay ended whatever happens; a resumed experiment takes up the recovered ones.
        let narrowed = self.is_changed();
        let asked = Asked { wanted, expired, narrowed };
        let fault = NodeFault::of(spec);
        let mut targets = std::mem::take(&mut self.plan.status.targets);
        for (index, target) in targets.iter_mut().enumerate() {
            let live = matches!(target.phase, TargetPhase::Selected | TargetPhase::Injected);
            if live && let Some(refusal) = self.input.world.excess(&target.uid) {
                let why = format!("released, for it is more than a policy allows: {refusal}");
                match &fault {
                    None => release(target, now, REFUSED, &why),
                    Some(fault) => {
                        target.message = Some(why);
                        self.end(fault, target, Some(REFUSED));
                    }
                }
                continue;
            }
            match &spec.action {
                Action::PodFailure { fast, .. } => self.fail_one(spec, *fast, index, target, asked),
                Action::ContainerFreeze | Action::Stress(_) => {
                    if let Some(fault) = &fault {
                        self.hold_one(spec, fault, index, target, asked);
                    }
                }
                Action::PodKill { .. } | Action::ContainerKill { .. } => {}
            }
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
        self.lasting_phase(spec, wanted, expired, held.len());
    }

    /// Whether the spec was changed since the last look: its selector can only have been narrowed.
    pub(super) fn is_changed(&self) -> bool {
        self.plan.status.observed_generation.is_some_and(|seen| seen < self.ident.generation)
    }

    /// Release the target if the changed selector leaves it out.
    pub(super) fn narrow(&mut self, spec: &Spec, target: &mut Target) -> bool {
        let out = self.leaves_out(spec, target);
        if out {
            release(target, self.input.now, NARROWED, LEFT_OUT);
        }
        out
    }

    /// Whether the selector does not match the target.
    pub(super) fn leaves_out(&self, spec: &Spec, target: &Target) -> bool {
        let world = self.input.world;
        view(world, target).is_some_and(|pod| !spec.selector.matches(pod, as_nodes(world)))
    }

    /// A target that was put back and isn't wanted now. Its successor may be born while the experiment is paused.
    pub(super) fn rests(&mut self, spec: &Spec, target: &mut Target, narrowed: bool) {
        let Input { now, world, .. } = self.input;
        if view(world, target).is_none_or(|pod| pod.terminating) {
            went_away(target, now);
        } else if narrowed {
            self.narrow(spec, target);
        }
    }

    /// Pods, and containers of pods, that have come since the targets were chosen: adopt them up to the number drawn,
    /// oldest first. What is held beyond that isn't wanted, and so is released.
    fn births(&mut self, spec: &Spec, targets: &mut Vec<Target>) {
        let Input { world, outcomes, .. } = self.input;
        let Some(selected) = self.plan.status.selected_at.as_ref().map(|at| whole_seconds(at.0)) else {
            return;
        };
        let known = Known::of(targets);
        // A container that wasn't running when its pod was chosen, or when all were to be hit, is hit when it does.
        let late = spec.action.on_containers();
        let mut joined: Vec<Target> = Vec::new();
        let mut born: Vec<Born<'_>> = Vec::new();
        for name in &spec.selector.namespaces {
            let Some(namespace) = world.namespace(name) else { continue };
            for pod in world.pods(name) {
                // The cheap questions first: this is every pod of the namespace.
                let before = known.pods.get(pod.uid.as_str());
                let possible = before.is_none_or(|live| late && *live);
                if !possible || pod.terminating || !spec.selector.matches(pod, as_nodes(world)) {
                    continue;
                }
                let new = late && spec.mode == Mode::All || pod.created.is_some_and(|at| at >= selected);
                let held = before.is_none() && outcomes.holds(pod, self.ident.uid);
                if before.is_none() && !held && !new {
                    continue;
                }
                let Ok(containers) = eligible(spec, pod, namespace) else { continue };
                if before.is_none() {
                    born.push(Born { pod, held, containers });
                    continue;
                }
                let unknown = |container: &&ContainerView| {
                    !known.containers.contains(&(pod.uid.as_str(), container.name.as_str()))
                };
                joined.extend(
                    containers.into_iter().filter(unknown).map(|container| of_container(pod, container)),
                );
            }
        }
        let live = known.pods.values().filter(|live| **live).count();
        if !joined.is_empty() {
            let mut list = Room::beside(targets);
            let ordered_at = Some(MicroTime(self.input.now));
            let join = |target| Target { born: Some(true), ordered_at: ordered_at.clone(), ..target };
            targets.extend(joined.into_iter().map(join).filter(|target| list.takes(slice::from_ref(target))));
        }
        if !born.is_empty() {
            self.adopt(spec, targets, born, live);
        }
    }

    fn adopt(&mut self, spec: &Spec, targets: &mut Vec<Target>, mut born: Vec<Born<'_>>, live: usize) {
        // Those that are failed already come first, then by age.
        born.sort_by(|a, b| {
            (!a.held, a.pod.created, &a.pod.name).cmp(&(!b.held, b.pod.created, &b.pod.name))
        });
        let mut room = match spec.mode {
            Mode::All => MAX_TARGETS.saturating_sub(live),
            Mode::One | Mode::Fixed(_) | Mode::FixedPercent(_) | Mode::RandomMaxPercent(_) => {
                usize::try_from(self.plan.status.drawn.unwrap_or(0)).unwrap_or(0).saturating_sub(live)
            }
        };
        // Weighing what there is takes its time: only where somebody is asked for.
        let mut list: Option<Room> = None;
        for Born { pod, held, containers } in born {
            let left = targets.iter().find(|target| replaces(pod, held, target)).map(|gone| gone.uid.clone());
            let asked_for = room > 0 && (spec.mode == Mode::All || left.is_some());
            let refused = if asked_for { self.has_room(pod, targets).err() } else { None };
            let new: Vec<Target> = if spec.action.on_containers() {
                let ordered_at = Some(MicroTime(self.input.now));
                let new = containers.into_iter().map(|container| Target {
                    born: Some(true),
                    ordered_at: ordered_at.clone(),
                    ..of_container(pod, container)
                });
                new.collect()
            } else {
                // One that was born failed was never Ready with its own images, and perhaps can't be.
                let was_ready = Some(pod.ready && !held);
                vec![Target { born: Some(true), was_ready, ..of_pod(pod) }]
            };
            let asked_for = asked_for && refused.is_none();
            if asked_for && list.get_or_insert_with(|| Room::beside(targets)).takes(&new) {
                room -= 1;
                for gone in targets.iter_mut().filter(|target| Some(&target.uid) == left.as_ref()) {
                    gone.replacement = Some(pod.name.clone());
                }
                targets.extend(new);
            } else if held
                && !matches!(self.input.outcomes.get(Verb::Release, &pod.uid), Some(Outcome::Retry { .. }))
            {
                // Told when it is first to be done, however often that is tried.
                self.plan.notes.push(Note::pod(
                    NoteKind::Normal,
                    PodRef::of_view(pod),
                    "ReleasedExcess",
                    format!(
                        "born failed for {} {}/{}, {}; it is let go",
                        self.input.experiment.kind,
                        self.ident.namespace,
                        self.ident.name,
                        match &refused {
                            None if asked_for =>
                                "which has no room for another target in its status".to_owned(),
                            None => "which has its number of targets already".to_owned(),
                            Some(refusal) => format!("which a policy leaves no room for: {refusal}"),
                        }
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
            let waiting = count(&self.plan.status, TargetPhase::Selected) > 0;
            match first {
                Some(first) if waiting && later(first, seconds(30)) > now => {
                    self.wake(later(first, seconds(30)));
                    return;
                }
                Some(_) => {}
                None if waiting || self.ident.paused => return,
                // Every target went before it was hit: their replacements are not waited for without end.
                None => {}
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

    fn lasting_phase(&mut self, spec: &Spec, wanted: bool, expired: bool, held: usize) {
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
                (Phase::Injected, format!("{} {}, {until}", targets(injected), spec.action.deed()))
            }
        } else if recovering > 0 || held > 0 {
            let mut why = match &status.halted {
                Some(halted) => format!(": {}", halted.message),
                None => String::new(),
            };
            if let Some(silent) = status.targets.iter().find_map(unseen) {
                why.push_str("; ");
                why.push_str(silent);
            }
            (Phase::Recovering, format!("{} being put back{why}", targets(recovering.max(held))))
        } else if let Some(halted) = &status.halted
            && spec.on_halt == OnHalt::Resume
            && !expired
        {
            (Phase::Halted, format!("recovered until this is over: {}", halted.message))
        } else if self.ident.paused && !expired && status.halted.is_none() {
            (Phase::Paused, "recovered for as long as the pause annotation is there".to_owned())
        } else {
            self.complete_by_targets();
            return;
        };
        self.plan.status.phase = Some(phase);
        self.plan.status.message = Some(message);
    }
}

/// A pod that has come since the targets were chosen.
struct Born<'a> {
    pod: &'a PodView,
    /// The fault is on it already.
    held: bool,
    /// Which of its containers are concerned.
    containers: Vec<&'a ContainerView>,
}

/// What the targets are, for looking them up.
struct Known<'a> {
    /// By UID, whether the fault is on it or about to be.
    pods: BTreeMap<&'a str, bool>,
    /// By the pod's UID and name.
    containers: BTreeSet<(&'a str, &'a str)>,
}

impl<'a> Known<'a> {
    fn of(targets: &'a [Target]) -> Self {
        let mut pods = BTreeMap::new();
        // A pod none of whose containers ran when the targets were chosen may be a target yet.
        let not_yet = |target: &&Target| target.reason.as_deref() != Some("NotRunning");
        for target in targets.iter().filter(not_yet) {
            let live = matches!(target.phase, TargetPhase::Selected | TargetPhase::Injected);
            *pods.entry(target.uid.as_str()).or_insert(false) |= live;
        }
        let of = |target: &'a Target| Some((target.uid.as_str(), target.container.as_deref()?));
        Self { pods, containers: targets.iter().filter_map(of).collect() }
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
        times.is_some_and(|(created, at)| created >= later(whole_seconds(at.0), seconds(-2)))
    };
    gone.phase == TargetPhase::Gone
        && gone.replacement.is_none()
        && owner.is_some()
        && owner == gone.owner.as_ref()
        && (held || pod.name == gone.pod || came_after())
}

/// What is asked of every target now.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    /// The fault shall be there.
    pub wanted: bool,
    /// Its time is over.
    pub expired: bool,
    /// The selector was changed since the last look.
    pub narrowed: bool,
}

pub(super) fn went_away(target: &mut Target, now: Timestamp) {
    target.phase = TargetPhase::Gone;
    target.gone_at = Some(MicroTime(now));
    target.message = Some("the pod went away during the fault".to_owned());
}

/// Someone took the fault back, or forbade it.
pub(super) fn release(target: &mut Target, now: Timestamp, reason: &str, message: &str) {
    target.phase = TargetPhase::Released;
    target.reason = Some(reason.to_owned());
    target.message = Some(message.to_owned());
    target.recovered_at = Some(MicroTime(now));
}
