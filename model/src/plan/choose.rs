//! Choosing the targets: once, and written down before anything is hit.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use sha2::{Digest, Sha256};
use squall_api::podchaos::{Phase, Target, TargetPhase};

use super::halt::REFUSED;
use super::order::order;
use super::size::Room;
use super::status::targets as counted;
use super::{MAX_TARGETS, NodeFault, Stage, Step, World, later, seconds};
use crate::pod::{ContainerView, NamespaceView, PodView};
use crate::policy::ledger::Hold;
use crate::policy::{Refusal, choice};
use crate::select::{Ineligible, count, draw, eligible};
use crate::spec::{Action, Spec};

/// How many of those that are not hit are named in the status.
const NAMED_SKIPPED: usize = 20;
/// The same of a dry run. Of the others it says how many there are for each reason: written out, those of a large cluster
/// would be half a megabyte, and half a second's work for the API server.
const NAMED_IN_A_DRY_RUN: usize = 100;
/// Why a dry run leaves a pod out that might be hit.
pub(super) const NOT_DRAWN: &str = "NotDrawn";

impl Step<'_> {
    /// Choose the targets, or wait for some, or say that there are none.
    pub(super) fn choose(&mut self, spec: &Spec) {
        let now = self.input.now;
        if self.ident.paused {
            self.plan.status.phase = Some(Phase::Paused);
            self.plan.status.message = Some("paused before anything was chosen".to_owned());
            self.plan.status.looking_since = None;
            return;
        }
        if let Err(refusal) = self.permitted(spec) {
            self.refused(&refusal);
            return;
        }
        let seed = spec.seed.unwrap_or_else(|| seed_of(self.ident.uid));
        let (found, mut skipped) = candidates(self.input.world, spec, now);
        let wanted = count(spec.mode, found.len(), seed.cast_unsigned());
        if wanted == 0 {
            self.no_targets(spec, &skipped);
            return;
        }
        if wanted > MAX_TARGETS {
            let message = format!(
                "nothing was hit: {wanted} pods would be, and at most {MAX_TARGETS} may be in one experiment; narrow the selector or lower the value"
            );
            self.complete(Phase::Failed, "TooManyTargets", &message);
            return;
        }
        let by_uid: HashMap<&str, &PodView> = found.iter().map(|(pod, _)| (pod.uid.as_str(), *pod)).collect();
        let ranked: Vec<&PodView> = draw(by_uid.keys().copied(), found.len(), seed.cast_unsigned())
            .into_iter()
            .filter_map(|uid| by_uid.get(uid).copied())
            .collect();
        let world = self.input.world;
        let choice = match choice::choose(world, self.ident.uid, &Hold::default(), &ranked, wanted, now) {
            Ok(choice) => choice,
            Err(refusal) => {
                self.refused(&refusal);
                return;
            }
        };
        let spared: BTreeSet<&str> = choice.spared.iter().map(|(pod, _)| pod.uid.as_str()).collect();
        skipped
            .extend(choice.spared.iter().map(|(pod, why)| (*pod, Ineligible::Policy(Box::new(why.clone())))));
        if choice.taken.is_empty() {
            self.no_targets(spec, &skipped);
            return;
        }
        let drawn: BTreeSet<&str> = choice.taken.iter().map(|pod| pod.uid.as_str()).collect();
        let mut targets = Vec::new();
        let mut not_drawn: Vec<&PodView> = Vec::new();
        for (pod, containers) in &found {
            if drawn.contains(pod.uid.as_str()) {
                match spec.action {
                    Action::ContainerKill { .. } | Action::ContainerFreeze | Action::Stress(_) => {
                        targets.extend(containers.iter().map(|container| of_container(pod, container)));
                    }
                    Action::PodKill { .. } => targets.push(of_pod(pod)),
                    Action::PodFailure { .. } => {
                        targets.push(Target { was_ready: Some(pod.ready), ..of_pod(pod) });
                    }
                }
            } else if spec.dry_run && !spared.contains(pod.uid.as_str()) {
                not_drawn.push(pod);
            }
        }
        if !Room::default().takes(&targets) {
            let message = format!(
                "nothing was hit: {} targets are too many for one experiment; narrow the selector or lower the value",
                targets.len()
            );
            self.complete(Phase::Failed, "TooManyTargets", &message);
            return;
        }
        targets.sort_by(|a, b| (&a.namespace, &a.pod).cmp(&(&b.namespace, &b.pod)));
        let not_hit = skipped.len() + not_drawn.len();
        let why_not = by_reason(&skipped, not_drawn.len());
        let others = named(spec, skipped, not_drawn);

        let status = &mut self.plan.status;
        status.seed = Some(seed);
        status.drawn = Some(i32::try_from(drawn.len()).unwrap_or(i32::MAX));
        status.selected_at = Some(MicroTime(now));
        status.looking_since = None;
        let hit = targets.len();
        status.targets = targets;
        status.targets.extend(others);
        if spec.dry_run {
            let message = format!(
                "dry run: {hit} would be hit, {not_hit} selected ones would not{why_not}; nothing was done"
            );
            self.complete(Phase::Completed, "Succeeded", &message);
            return;
        }
        status.phase = Some(Phase::Injecting);
        status.message = Some(if not_hit == 0 {
            format!("{} chosen", counted(hit))
        } else {
            format!("{} chosen; {not_hit} selected pods are not hit, see the targets' reasons", counted(hit))
        });
        self.arm(spec);
    }

    /// A policy says no.
    fn refused(&mut self, refusal: &Refusal) {
        self.complete(Phase::Failed, REFUSED, &format!("nothing was hit: {refusal}"));
        self.plan.refusals.push(refusal.clone());
    }

    /// Nothing to hit: a one-shot looks again for 10 s, a lasting fault until its duration is over.
    fn no_targets(&mut self, spec: &Spec, skipped: &[(&PodView, Ineligible)]) {
        let now = self.input.now;
        let message = match skipped.first() {
            Some((pod, why)) => format!(
                "{} pods are selected, but none may be hit; {}/{}: {why}",
                skipped.len(),
                pod.namespace,
                pod.name
            ),
            None => {
                let world = self.input.world;
                let pods = spec.selector.namespaces.iter().flat_map(|name| world.pods(name));
                spec.selector.explain_nothing(pods, as_nodes(world))
            }
        };
        let until = if spec.lasting() {
            let since = self.ident.created.unwrap_or(now);
            spec.duration.map(|duration| later(since, duration))
        } else {
            // From the first look: a controller that was away has not looked.
            let since = self.plan.status.looking_since.get_or_insert(MicroTime(now)).0;
            Some(later(since, seconds(10)))
        };
        if spec.dry_run || until.is_some_and(|until| until <= now) {
            self.plan.status.targets = named(spec, skipped.to_vec(), Vec::new());
            self.complete(Phase::Failed, "NoTargets", &format!("nothing was hit: {message}"));
            return;
        }
        self.plan.status.phase = Some(Phase::Pending);
        self.plan.status.message = Some(format!("waiting for targets: {message}"));
        // Pods that are too young grow old without an event.
        let world = self.input.world;
        let old_enough = skipped.iter().filter_map(|(pod, _)| {
            let namespace = world.namespace(&pod.namespace)?;
            world.policies().over(namespace).filter_map(|policy| policy.old_enough(pod)).max()
        });
        if let Some(at) = old_enough.filter(|at| *at > now).min() {
            self.wake(at);
        }
        if let Some(until) = until {
            self.wake(until);
        }
    }

    /// Have the daemons prepare while the choice is written.
    fn arm(&mut self, spec: &Spec) {
        let Some(fault) = NodeFault::of(spec) else { return };
        // Written with the choice: whoever finds it there knows that it may have been ordered.
        let now = MicroTime(self.input.now);
        let chosen = self.plan.status.targets.iter_mut();
        for target in chosen.filter(|target| target.phase == TargetPhase::Selected) {
            target.ordered_at = Some(now.clone());
        }
        self.plan.orders = self
            .plan
            .status
            .targets
            .iter()
            .filter(|target| target.phase == TargetPhase::Selected)
            .filter_map(|target| order(self.ident.uid, target, fault.clone(), Stage::Arm))
            .collect();
    }
}

/// A pod that may be hit, with the containers concerned.
type Candidate<'a> = (&'a PodView, Vec<&'a ContainerView>);

/// The selected pods: those that may be hit with the containers concerned, and those that may not.
fn candidates<'a>(
    world: &'a dyn World,
    spec: &Spec,
    now: Timestamp,
) -> (Vec<Candidate<'a>>, Vec<(&'a PodView, Ineligible)>) {
    let mut found = Vec::new();
    let mut skipped = Vec::new();
    for name in &spec.selector.namespaces {
        let missing = NamespaceView { name: name.clone(), ..NamespaceView::default() };
        let namespace = world.namespace(name).unwrap_or(&missing);
        let policies = world.policies().sieve(namespace, now);
        for pod in world.pods(name).filter(|pod| spec.selector.matches(pod, as_nodes(world))) {
            match eligible(spec, pod, namespace) {
                Ok(containers) => match policies.spares(pod) {
                    None => found.push((pod, containers)),
                    Some(refusal) => skipped.push((pod, Ineligible::Policy(Box::new(refusal)))),
                },
                Err(why) => skipped.push((pod, why)),
            }
        }
    }
    (found, skipped)
}

/// The target that a pod is.
pub(super) fn of_pod(pod: &PodView) -> Target {
    Target {
        namespace: pod.namespace.clone(),
        pod: pod.name.clone(),
        uid: pod.uid.clone(),
        node: pod.node.clone(),
        owner: pod.owner.as_ref().map(|owner| owner.uid.clone()),
        workload: Some(pod.workload()),
        ..Target::default()
    }
}

/// The target that a container is.
pub(super) fn of_container(pod: &PodView, container: &ContainerView) -> Target {
    Target { container: Some(container.name.clone()), container_id: container.id.clone(), ..of_pod(pod) }
}

fn left_out(pod: &PodView, reason: &str, message: &str) -> Target {
    Target {
        phase: TargetPhase::Skipped,
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        ..of_pod(pod)
    }
}

/// Those that are not hit, as far as they are named: first those that may not be.
fn named(spec: &Spec, mut skipped: Vec<(&PodView, Ineligible)>, mut not_drawn: Vec<&PodView>) -> Vec<Target> {
    fn place(pod: &PodView) -> (&str, &str) {
        (&pod.namespace, &pod.name)
    }
    skipped.sort_by(|(a, _), (b, _)| place(a).cmp(&place(b)));
    not_drawn.sort_by(|a, b| place(a).cmp(&place(b)));
    let skipped = skipped.iter().map(|(pod, why)| left_out(pod, why.reason(), &why.to_string()));
    let not_drawn = not_drawn.iter().map(|pod| left_out(pod, NOT_DRAWN, "not drawn"));
    skipped.chain(not_drawn).take(if spec.dry_run { NAMED_IN_A_DRY_RUN } else { NAMED_SKIPPED }).collect()
}

/// How many are not hit for each reason, in brackets.
fn by_reason(skipped: &[(&PodView, Ineligible)], not_drawn: usize) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, why) in skipped {
        *counts.entry(why.reason()).or_default() += 1;
    }
    if not_drawn > 0 {
        counts.insert(NOT_DRAWN, not_drawn);
    }
    let counts: Vec<String> = counts.iter().map(|(reason, count)| format!("{reason}: {count}")).collect();
    if counts.is_empty() { String::new() } else { format!(" ({})", counts.join(", ")) }
}

/// The seed of an experiment whose user chose none: the same experiment draws the same again.
fn seed_of(uid: &str) -> i64 {
    let digest = Sha256::digest(uid.as_bytes());
    let bytes: [u8; 8] = std::array::from_fn(|index| digest[index]);
    // Positive and exact in JSON numbers, so that it can be copied into a spec.
    i64::from_be_bytes(bytes) & ((1 << 53) - 1)
}

/// A world is asked for its nodes only.
pub(super) fn as_nodes(world: &dyn super::World) -> &dyn crate::select::Nodes {
    world
}

/// Whole seconds, as the API server writes creation times.
pub(super) fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}
