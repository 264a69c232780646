//! Halts, windows that close, probes that fail, and what policies refuse: what keeps an experiment from beginning or
//! from going on. Recovery never looks here.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use squall_api::names;
use squall_api::probe::OnHalt;
use squall_api::status::{ExperimentStatus, Halted, Phase, Target, TargetPhase};

use super::kill::skip;
use super::{Effect, Input, Step, Verb, World, seconds};
use crate::pod::{NamespaceView, PodView};
use crate::policy::ledger::Hold;
use crate::policy::{Ask, Refusal, Who, choice};
use crate::probe::{Health, Steady};
use crate::spec::Spec;

/// The stable word for what a policy refused.
pub(super) const REFUSED: &str = "PolicyRefused";
/// The stable word for what `steadyState` halted.
const UNSTEADY: &str = "Unsteady";

/// How probes stand when all is over.
pub(super) enum Afterwards {
    /// Nobody has looked since.
    NotSeen,
    /// All is well.
    Steady,
    /// It isn't.
    Unsteady(Halted),
}

/// Whether `effect` may still be begun at `now`, though it was planned a while ago: nothing halts what `spec` asks for, the
/// pod's namespace is as open as it was, and nobody protects the pod. Where it may not, another plan says what is due.
pub fn may_begin(world: &dyn World, spec: &Spec, effect: &Effect, now: Timestamp) -> bool {
    if effect.verb() == Verb::Release {
        return true;
    }
    let system = world.namespace(names::NAMESPACE);
    let open = |namespace: &NamespaceView| namespace.opted_in && !namespace.protect && !namespace.terminating;
    let halted = |name: &String| {
        let namespace = world.namespace(name);
        namespace.is_some_and(|namespace| world.policies().stop(namespace, system, now).is_some())
    };
    let pod = effect.pod();
    let protected = world
        .pod(&pod.namespace, &pod.name)
        .is_some_and(|view| view.uid == pod.uid && (view.shielded || view.is_protected()));
    !system.is_some_and(|system| system.terminating)
        && !protected
        && world.namespace(&pod.namespace).is_some_and(open)
        && !spec.selector.namespaces.iter().any(halted)
}

impl Step<'_> {
    /// Whether nothing may be hit now. What says so is written down; with `onHalt: end` it stays for good.
    pub(super) fn look_for_halt(&mut self, spec: &Spec) {
        let Input { now, world, .. } = self.input;
        let system = world.namespace(names::NAMESPACE);
        let mut found = None;
        for name in &spec.selector.namespaces {
            let Some(namespace) = world.namespace(name) else { continue };
            if let Some(at) = world.policies().turns(namespace, now) {
                self.wake(at);
            }
            if found.is_none() {
                found = world.policies().stop(namespace, system, now).map(|stop| Halted {
                    at: MicroTime(now),
                    by: stop.by,
                    reason: stop.reason.to_owned(),
                    message: stop.message,
                });
            }
        }
        if found.is_none() && !spec.steady.is_empty() {
            found = match world.steady(self.ident.uid).health {
                Health::Healthy(_) => None,
                // Nobody has looked since: what was wrong is taken to be wrong still.
                Health::Unknown => self.plan.status.halted.clone().filter(|halted| halted.reason == UNSTEADY),
                Health::Unhealthy(evidence) => Some(Halted {
                    at: MicroTime(now),
                    by: "steadyState".to_owned(),
                    reason: UNSTEADY.to_owned(),
                    message: format!("spec.steadyState: {evidence}"),
                }),
            };
        }
        // What happens once can't be stopped any more when all of it has happened, or is under way.
        let begun = |target: &Target| {
            if spec.action.on_containers() { self.is_signalled(target) } else { target.ordered_at.is_some() }
        };
        let unstoppable = found.is_some()
            && !spec.lasting()
            && self.plan.status.selected_at.is_some()
            && !self
                .plan
                .status
                .targets
                .iter()
                .any(|target| target.phase == TargetPhase::Selected && !begun(target));
        let status = &mut self.plan.status;
        match (&status.halted, found) {
            (None, Some(found)) if !unstoppable => status.halted = Some(found),
            (Some(_), None) if spec.on_halt == OnHalt::Resume => status.halted = None,
            (None, Some(_) | None) | (Some(_), Some(_) | None) => {}
        }
    }

    /// Nothing may be hit now.
    pub(super) fn is_halted(&self) -> bool {
        self.plan.status.halted.is_some()
    }

    /// What has not been looked at yet, and has to be before anything is hit.
    pub(super) fn not_looked_yet(&self, spec: &Spec) -> Option<String> {
        let world = self.input.world;
        let mut namespaces = spec.selector.namespaces.iter().filter_map(|name| world.namespace(name));
        if let Some(policy) = namespaces.find_map(|namespace| world.policies().unseen(namespace)) {
            return Some(format!("looking whether haltWhen of ChaosPolicy {policy} holds"));
        }
        let unknown = !spec.steady.is_empty() && world.steady(self.ident.uid).health == Health::Unknown;
        unknown.then(|| "looking whether spec.steadyState holds".to_owned())
    }

    /// All is over. Whether `spec.steadyState` holds, and no `haltWhen` of a policy, is looked at once more, after the
    /// last thing that was done.
    pub(super) fn holds_afterwards(&mut self) -> Afterwards {
        let Input { now, world, experiment, .. } = self.input;
        let Ok(spec) = experiment.spec else { return Afterwards::Steady };
        let times = self.plan.status.targets.iter().flat_map(|target| {
            let Target { injected_at, gone_at, recovered_at, ready_at, .. } = target;
            [injected_at, gone_at, recovered_at, ready_at].into_iter().flatten().map(|at| at.0)
        });
        // Some are by the clock of a node, which may be ahead.
        let last = times.filter(|at| *at <= now).max();
        let own = (!spec.steady.is_empty()).then(|| {
            let stands = world.steady(self.ident.uid);
            ("steadyState".to_owned(), UNSTEADY, "spec.steadyState".to_owned(), stands)
        });
        let namespaces = spec.selector.namespaces.iter().filter_map(|name| world.namespace(name));
        let policies =
            namespaces.flat_map(|namespace| world.policies().over(namespace)).filter_map(|policy| {
                let by = format!("ChaosPolicy {}", policy.name);
                let what = format!("haltWhen of {by}");
                Some((by, "Halted", what, world.watched(&policy.name)?))
            });
        let mut unseen = None;
        for (by, reason, what, Steady { health, settled }) in own.into_iter().chain(policies) {
            let seen = settled.is_some_and(|at| last.is_none_or(|last| at >= last));
            match health {
                Health::Healthy(_) if seen => {}
                Health::Unhealthy(evidence) if seen => {
                    let message = format!("{what}, after it: {evidence}");
                    let reason = reason.to_owned();
                    return Afterwards::Unsteady(Halted { at: MicroTime(now), by, reason, message });
                }
                Health::Unknown | Health::Healthy(_) | Health::Unhealthy(_) => {
                    unseen.get_or_insert(what);
                }
            }
        }
        let Some(what) = unseen else { return Afterwards::Steady };
        self.plan.status.phase = Some(Phase::Recovering);
        self.plan.status.message = Some(format!("over; looking whether {what} holds after it"));
        self.wake(now + seconds(1));
        Afterwards::NotSeen
    }

    /// It was halted before anything was chosen.
    pub(super) fn not_begun(&mut self, spec: &Spec) {
        let why = self.plan.status.halted.as_ref().map(|halted| halted.message.clone()).unwrap_or_default();
        match spec.on_halt {
            OnHalt::End => self.complete(Phase::Halted, "Halted", &format!("nothing was hit: {why}")),
            OnHalt::Resume => {
                self.plan.status.phase = Some(Phase::Halted);
                self.plan.status.message = Some(format!("nothing is hit until this is over: {why}"));
            }
        }
    }

    /// A target that nothing was done to is not hit any more. Whether it is so.
    pub(super) fn is_spared(&mut self, spec: &Spec, target: &mut Target) -> bool {
        let Some(halted) = &self.plan.status.halted else { return false };
        if target.ordered_at.is_some() {
            return false;
        }
        if spec.on_halt == OnHalt::End {
            skip(target, &halted.reason, &halted.message);
        }
        true
    }

    /// Whether policies let the one who asked have this at all.
    pub(super) fn permitted(&self, spec: &Spec) -> Result<(), Refusal> {
        let Input { world, experiment, .. } = self.input;
        let annotations = experiment.metadata.annotations.as_ref();
        let recorded = annotations.and_then(|all| all.get(names::REQUESTED_BY)).map(String::as_str);
        let (ask, who) = (Ask::of(spec), Who::recorded(recorded));
        spec.selector
            .namespaces
            .iter()
            .filter_map(|name| world.namespace(name))
            .try_for_each(|namespace| world.policies().permits(namespace, &ask, &who))
    }

    /// Whether policies leave room for `pod`, which was born meanwhile, beside `targets`.
    pub(super) fn has_room(&self, pod: &PodView, targets: &[Target]) -> Result<(), Refusal> {
        let Input { now, world, .. } = self.input;
        if world.policies().iter().next().is_none() {
            return Ok(());
        }
        if let Some(refusal) =
            world.namespace(&pod.namespace).and_then(|namespace| world.policies().spares(namespace, pod, now))
        {
            return Err(refusal);
        }
        let status = ExperimentStatus {
            selected_at: self.plan.status.selected_at.clone(),
            targets: targets.to_vec(),
            ..ExperimentStatus::default()
        };
        let mine = Hold::of(&status, now);
        let choice = choice::choose(world, self.ident.uid, &mine, &[pod], 1, now)?;
        match choice.spared.into_iter().next() {
            Some((_, refusal)) => Err(refusal),
            None => Ok(()),
        }
    }
}
