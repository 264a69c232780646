//! One experiment's turn: observe, plan, apply, report; again until nothing is due.
//!
//! Between the event that wakes it and the first effect stands one write, the status that names the targets.
//! This module decides nothing: it carries plans out and remembers what came of them.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams, TypeMeta};
use kube::core::Request;
use kube::{Api, Client, ResourceExt};
use kube_runtime::controller::Action;
use squall_api::names;
use squall_api::status::{ExperimentStatus, Target, TargetPhase};
use squall_model::experiment::{Experiment, ExperimentSpec, parsed};
use squall_model::plan::{
    Effect, Input, Order, Outcome, Outcomes, Plan, Verb, is_progress, may_begin, notes, plan,
};
use squall_model::policy::ledger::Hold;
use squall_model::spec::Spec;

use crate::apply::{Applier, ApplyError};
use crate::chaos::{Chaos, Experiments, Named};
use crate::client::{is_conflict, is_gone};
use crate::figures;
use crate::guard::Guard;
use crate::interest::{Interest, Interests};
use crate::metrics::Metrics;
use crate::nodes::{Nodes, RollCall};
use crate::observe::Observer;
use crate::orders::fault;
use crate::probes::Probes;
use crate::tell::Teller;
use crate::world::Cluster;

/// How many effects of one experiment are under way at once.
const CONCURRENCY: usize = 64;
/// How many rounds one turn may take; the next turn follows at once.
const ROUNDS: usize = 16;

/// Why a turn ended early; it is taken again.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The status could not be written.
    #[error("writing the status of {namespace}/{name}: {source}")]
    Status {
        /// The experiment's namespace.
        namespace: String,
        /// The experiment's name.
        name: String,
        /// Why.
        source: Box<kube::Error>,
    },
    /// The finalizer could not be removed.
    #[error("removing the finalizer of {namespace}/{name}: {source}")]
    Finalizer {
        /// The experiment's namespace.
        namespace: String,
        /// The experiment's name.
        name: String,
        /// Why.
        source: Box<kube::Error>,
    },
}

/// How often mere progress is written, at most.
const PROGRESS: SignedDuration = SignedDuration::from_millis(100);
/// So much longer it waits for each target: all of them are written each time, and read by everyone who watches.
const PER_TARGET: SignedDuration = SignedDuration::from_millis(1);

/// What a turn works with.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// What is known.
    pub observer: Observer,
    /// The daemons.
    pub nodes: Nodes,
    /// What changes pods.
    pub applier: Applier,
    /// What wakes whom.
    pub interests: Interests,
    /// Events.
    pub teller: Teller,
    /// Figures.
    pub metrics: Arc<Metrics>,
    /// What is hit now.
    pub guard: Guard,
    /// The probes of experiments.
    pub probes: Probes,
    /// Who has had a turn in this term.
    pub roll: Arc<RollCall>,
    /// The experiments, as their watches have them.
    pub experiments: Experiments,
    /// What is remembered of each experiment, by UID. Taken out for a turn, put back after it.
    pub memories: Mutex<HashMap<String, Memory>>,
}

/// What is remembered of one experiment between turns. It may be lost: see [`Outcomes`].
#[derive(Default)]
pub struct Memory {
    /// As last written.
    status: ExperimentStatus,
    /// The resource version of that write.
    version: u64,
    /// When that was.
    written: Option<Timestamp>,
    /// The last write may have come through or not.
    unsure: bool,
    /// Since when targets have been put back.
    recovering: Option<Timestamp>,
    outcomes: Outcomes,
    /// What the daemons have been told to have: node and id.
    orders: Orders,
}

impl Memory {
    /// Until when writing `plan`'s status waits, if it does: mere progress is written at most once in a while.
    fn hold_back(&self, plan: &Plan) -> Option<Timestamp> {
        let at = self.written?.saturating_add(pause(plan.status.targets.len())).ok()?;
        let waits = plan.effects.is_empty()
            && at > Timestamp::now()
            && plan.notes.is_empty()
            && plan.status != self.status
            && is_progress(&self.status, &plan.status);
        waits.then_some(at)
    }
}

/// How long mere progress of so many targets waits.
fn pause(targets: usize) -> SignedDuration {
    PROGRESS.max(PER_TARGET * i32::try_from(targets).unwrap_or(i32::MAX))
}

/// The effects as they are begun: nothing waits behind an injection to be put back, and none is begun once `goes_on` says
/// no.
fn begun(mut effects: Vec<Effect>, goes_on: impl Fn(&Effect) -> bool) -> impl Iterator<Item = Effect> {
    effects.sort_by_key(|effect| effect.verb() != Verb::Release);
    effects.into_iter().take_while(move |effect| goes_on(effect))
}

/// An experiment as its status is written. Nothing is copied: a status may be large.
#[derive(serde::Serialize)]
struct Written<'a, S> {
    #[serde(flatten)]
    types: TypeMeta,
    metadata: ObjectMeta,
    spec: &'a S,
    status: &'a ExperimentStatus,
}

/// What is read of the answer, which is as large.
#[derive(serde::Deserialize)]
struct Answer {
    metadata: ObjectMeta,
}

/// Node and id of faults.
type Orders = BTreeSet<(String, String)>;

/// One turn.
pub async fn reconcile<K: Chaos>(chaos: Arc<K>, context: Arc<Context>) -> Result<Action, ReconcileError> {
    let Some(uid) = chaos.uid() else { return Ok(Action::await_change()) };
    let mut memory = context.memories().remove(&uid).unwrap_or_default();
    let seen = version(chaos.meta());
    if seen > memory.version {
        // New to us, or written by someone else after us: what it says now is what counts.
        memory.status = chaos.status().cloned().unwrap_or_default();
        memory.version = seen;
        memory.unsure = false;
    }
    // Nothing is chosen before it is known what others hold.
    context.guard.filled().await;
    let begun = Instant::now();
    let result = match context.turn(&*chaos, &uid, &mut memory).await {
        Err(ReconcileError::Status { source, .. }) if is_gone(&source) => Ok(Next::Gone),
        result => result,
    };
    context.metrics.reconciled(begun.elapsed());
    context.roll.seen(&uid);
    match result {
        Ok(Next::Gone) => {
            context.withdraw(&mut memory, Orders::new());
            context.interests.forget(&uid);
            context.no_more(&uid);
            Ok(Action::await_change())
        }
        Ok(Next::At(wake)) => {
            context.memories().insert(uid, memory);
            Ok(match wake {
                None => Action::await_change(),
                Some(wake) => {
                    let wait = Duration::try_from(wake.duration_since(Timestamp::now())).unwrap_or_default();
                    Action::requeue(wait)
                }
            })
        }
        Err(error) => {
            context.memories().insert(uid, memory);
            Err(error)
        }
    }
}

/// The resource version, as the number that it is.
fn version(meta: &ObjectMeta) -> u64 {
    meta.resource_version.as_deref().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// After an error: soon again. A conflict means that the watch is about to bring the newer object.
pub fn after_error<K: Chaos>(chaos: Arc<K>, error: &ReconcileError, context: Arc<Context>) -> Action {
    let conflict = match error {
        ReconcileError::Status { source, .. } | ReconcileError::Finalizer { source, .. } => {
            is_conflict(source)
        }
    };
    if conflict {
        return Action::requeue(Duration::from_millis(50));
    }
    context.metrics.error("reconcile");
    tracing::warn!(experiment = chaos.name_any(), namespace = chaos.namespace(), %error, "will be tried again");
    Action::requeue(Duration::from_secs(1))
}

enum Next {
    /// The object is on its way out.
    Gone,
    /// To be looked at again then, or when something changes.
    At(Option<Timestamp>),
}

impl Context {
    fn memories(&self) -> std::sync::MutexGuard<'_, HashMap<String, Memory>> {
        self.memories.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn turn<K: Chaos>(
        &self,
        chaos: &K,
        uid: &str,
        memory: &mut Memory,
    ) -> Result<Next, ReconcileError> {
        let spec = parsed(chaos.meta(), chaos.spec());
        let name = Named::of(chaos);
        let (experiment, deed) = (name.to_string(), spec.as_ref().map_or("hit", |spec| spec.action.deed()));
        let steady = match &spec {
            Ok(spec) if memory.status.completed_at.is_none() && chaos.meta().deletion_timestamp.is_none() => {
                spec.steady.as_slice()
            }
            Ok(_) | Err(_) => &[],
        };
        if !steady.is_empty() || self.guard.read().steady.contains_key(uid) {
            self.probes.of_experiment(uid, steady);
        }
        for _ in 0..ROUNDS {
            let plan = self.plan(uid, Experiment::new::<K::Spec>(chaos.meta(), &spec), memory);
            let held_back = memory.hold_back(&plan);
            let wanted = self.order(&name, memory, plan.orders);
            let due = !plan.effects.is_empty();
            if let Some(at) = held_back {
                self.interests.set(uid, interest(name, spec.as_ref().ok(), &memory.status));
                return Ok(Next::At(Some(plan.wake.map_or(at, |wake| wake.min(at)))));
            }
            if due {
                self.carry_out(&name, spec.as_ref().ok(), memory, plan.effects).await;
                if self.is_overtaken(&name, memory.version) {
                    // What was planned for the older object is not written: the newer one has its own turn, at once.
                    return Ok(Next::At(Some(Timestamp::now())));
                }
            }
            let mut told = notes(&memory.status, &plan.status, &experiment, deed);
            told.extend(plan.notes);
            let changed = plan.status != memory.status;
            if changed && !plan.drop_finalizer {
                self.write(chaos, memory, plan.status).await?;
                for refusal in &plan.refusals {
                    self.metrics.refused(&refusal.policy, refusal.rule.path());
                }
            }
            self.withdraw(memory, wanted);
            self.teller.tell(chaos, told);
            if plan.drop_finalizer {
                self.drop_finalizer(chaos).await?;
                return Ok(Next::Gone);
            }
            if due {
                continue;
            }
            self.interests.set(uid, interest(name.clone(), spec.as_ref().ok(), &memory.status));
            if !changed {
                return Ok(Next::At(plan.wake));
            }
        }
        Ok(Next::At(Some(Timestamp::now())))
    }

    /// The next step; what it chose is held from this moment on, so that whoever chooses next sees it. Should it not
    /// come to be written, the next turn chooses anew in its place.
    fn plan(&self, uid: &str, experiment: Experiment<'_>, memory: &Memory) -> Plan {
        let now = Timestamp::now();
        let index = self.observer.read();
        let mut book = self.guard.read();
        let plan = plan(Input {
            now,
            experiment,
            status: &memory.status,
            world: &Cluster { index: &index, nodes: &self.nodes, book: &book },
            outcomes: &memory.outcomes,
            images: self.applier.images(),
        });
        let hold = if plan.drop_finalizer { Hold::default() } else { Hold::of(&plan.status, now) };
        if book.enter(uid, hold, memory.unsure) {
            self.guard.notify();
        }
        plan
    }

    /// Nobody asks for the experiment's probes, and it holds nothing.
    fn no_more(&self, uid: &str) {
        self.probes.of_experiment(uid, &[]);
        self.guard.forget(uid);
    }

    /// Tell the daemons what they shall have for this experiment; what they shall have no longer is
    /// [withdrawn](Self::withdraw) once what came of it is written.
    fn order(&self, name: &Named, memory: &mut Memory, orders: Vec<Order>) -> Orders {
        let experiment = format!("{}/{}", name.namespace, name.name);
        let wanted: Orders = orders.iter().map(|order| (order.node.clone(), order.id.clone())).collect();
        for order in orders {
            let (node, until) = (order.node.clone(), order.until);
            self.nodes.set(&node, fault(order, &experiment), until);
        }
        memory.orders.extend(wanted.iter().cloned());
        wanted
    }

    /// Take back every order but those `wanted`.
    fn withdraw(&self, memory: &mut Memory, wanted: Orders) {
        for (node, id) in memory.orders.difference(&wanted) {
            self.nodes.remove(node, id);
        }
        memory.orders = wanted;
    }

    /// The experiment is no more, with or without our consent.
    pub fn forget(&self, uid: &str) {
        if let Some(mut memory) = self.memories().remove(uid) {
            self.withdraw(&mut memory, Orders::new());
        }
        self.interests.forget(uid);
        self.no_more(uid);
    }

    /// Whether somebody has changed the object since `version`: it may be on its way out, or paused.
    fn is_overtaken(&self, name: &Named, version: u64) -> bool {
        let newest = self.experiments.version(name).and_then(|text| text.parse::<u64>().ok());
        newest.is_some_and(|newest| newest > version)
    }

    /// Whether nothing has come up meanwhile that would have been planned for.
    fn goes_on(&self, name: &Named, spec: Option<&Spec>, version: u64, effect: &Effect) -> bool {
        let may_begin = |spec: &Spec| {
            let (index, book) = (self.observer.read(), self.guard.read());
            let world = Cluster { index: &index, nodes: &self.nodes, book: &book };
            may_begin(&world, spec, effect, Timestamp::now())
        };
        !self.is_overtaken(name, version) && spec.is_none_or(may_begin)
    }

    /// Carry the effects out, many at a time. Of thousands none is begun any more once it is overtaken: what else is to
    /// be done the next plan says.
    async fn carry_out(&self, name: &Named, spec: Option<&Spec>, memory: &mut Memory, effects: Vec<Effect>) {
        let version = memory.version;
        let effects = begun(effects, |effect| self.goes_on(name, spec, version, effect));
        let mut results = futures::stream::iter(effects.map(|effect| async move {
            let view = {
                let index = self.observer.read();
                index.pod(&effect.pod().namespace, &effect.pod().name).cloned()
            };
            let result = self.applier.apply(&effect, view.as_ref()).await;
            (effect, result)
        }))
        .buffer_unordered(CONCURRENCY);
        while let Some((effect, result)) = results.next().await {
            let pod = effect.pod();
            let outcome = match result {
                Ok(outcome) => {
                    tracing::info!(
                        experiment = name.name,
                        experiment_namespace = name.namespace,
                        namespace = pod.namespace,
                        pod = pod.name,
                        uid = pod.uid,
                        verb = ?effect.verb(),
                        "done"
                    );
                    outcome
                }
                Err(ApplyError::Refused(refusal)) if effect.verb() != Verb::Release => {
                    Outcome::Refused { reason: "Refused".to_owned(), message: refusal.to_string() }
                }
                Err(error) => {
                    tracing::warn!(
                        experiment = name.name,
                        experiment_namespace = name.namespace,
                        namespace = pod.namespace,
                        pod = pod.name,
                        uid = pod.uid,
                        %error,
                        "will be tried again"
                    );
                    memory.outcomes.retry(&effect, Timestamp::now(), error.to_string());
                    continue;
                }
            };
            memory.outcomes.record(&effect, outcome);
        }
    }

    /// Write the status, on the condition that the object is the one that was looked at.
    async fn write<K: Chaos>(
        &self,
        chaos: &K,
        memory: &mut Memory,
        status: ExperimentStatus,
    ) -> Result<(), ReconcileError> {
        let namespace = chaos.namespace().unwrap_or_default();
        let name = chaos.name_any();
        match self.replace_status(chaos, &namespace, &name, memory.version, &status).await {
            Ok(written) => {
                memory.version = written;
                memory.unsure = false;
                memory.written = Some(Timestamp::now());
                if status.phase != memory.status.phase {
                    tracing::info!(
                        experiment = name,
                        namespace,
                        phase = ?status.phase.unwrap_or_default(),
                        "phase"
                    );
                }
                figures::count(
                    &self.metrics,
                    chaos.spec().action_word(),
                    &memory.status,
                    &status,
                    &mut memory.recovering,
                    Timestamp::now(),
                );
                // Kept as planned, not as answered: the server rounds nothing and drops nothing that we compare.
                memory.status = status;
                Ok(())
            }
            Err(source) => {
                // What the server refused wasn't written; what it didn't answer may have been.
                memory.unsure = !matches!(source, kube::Error::Api(_));
                Err(ReconcileError::Status { namespace, name, source: Box::new(source) })
            }
        }
    }

    /// The resource version afterwards.
    async fn replace_status<K: Chaos>(
        &self,
        chaos: &K,
        namespace: &str,
        name: &str,
        version: u64,
        status: &ExperimentStatus,
    ) -> Result<u64, kube::Error> {
        let metadata = ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace.to_owned()),
            uid: chaos.uid(),
            resource_version: Some(version.to_string()),
            ..ObjectMeta::default()
        };
        let written = Written { types: TypeMeta::resource::<K>(), metadata, spec: chaos.spec(), status };
        let body = serde_json::to_vec(&written).map_err(kube::Error::SerdeError)?;
        let request = Request::new(K::url_path(&(), Some(namespace)))
            .replace_subresource("status", name, &PostParams::default(), body)
            .map_err(kube::Error::BuildRequest)?;
        let answer: Answer = self.client.request(request).await?;
        Ok(self::version(&answer.metadata))
    }

    async fn drop_finalizer<K: Chaos>(&self, chaos: &K) -> Result<(), ReconcileError> {
        let Some(index) = chaos.finalizers().iter().position(|finalizer| finalizer == names::FINALIZER)
        else {
            return Ok(());
        };
        let namespace = chaos.namespace().unwrap_or_default();
        let name = chaos.name_any();
        let api: Api<K> = Api::namespaced(self.client.clone(), &namespace);
        // Ours only, and only if it is still where it was seen.
        let patch: json_patch::Patch = serde_json::from_value(serde_json::json!([
            { "op": "test", "path": format!("/metadata/finalizers/{index}"), "value": names::FINALIZER },
            { "op": "remove", "path": format!("/metadata/finalizers/{index}") },
        ]))
        .unwrap_or_default();
        match api.patch(&name, &PatchParams::default(), &Patch::<K>::Json(patch)).await {
            Ok(_) => Ok(()),
            Err(error) if is_gone(&error) => Ok(()),
            Err(source) => Err(ReconcileError::Finalizer { namespace, name, source: Box::new(source) }),
        }
    }
}

/// What the experiment has to be woken for.
fn interest(experiment: Named, spec: Option<&Spec>, status: &ExperimentStatus) -> Interest {
    let looking =
        |spec: &&Spec| status.completed_at.is_none() && (status.selected_at.is_none() || spec.lasting());
    let looking = spec.filter(looking);
    let namespaces = looking.map(|spec| spec.selector.namespaces.clone()).unwrap_or_default();
    // After the end only what comes back is followed, and only for a while.
    let followed = |target: &&Target| match &status.completed_at {
        None => true,
        Some(at) => {
            target.phase == TargetPhase::Killed
                && target.ready_at.is_none()
                && at.0 + SignedDuration::from_mins(10) > Timestamp::now()
        }
    };
    let targets = || status.targets.iter().filter(followed);
    Interest {
        experiment,
        pods: targets().map(|target| target.uid.clone()).collect(),
        owners: targets().filter_map(|target| target.owner.clone()).collect(),
        nodes: targets().filter_map(|target| target.node.clone()).collect(),
        node_labels: looking.is_some_and(|spec| spec.selector.asks_for_node_labels()),
        opt_ins: targets().map(|target| target.namespace.clone()).collect(),
        namespaces,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use squall_model::plan::PodRef;
    use squall_model::substitute::Holder;

    use super::*;

    fn effect(verb: Verb, name: &str) -> Effect {
        let pod = PodRef { namespace: "ns".into(), name: name.into(), uid: name.into() };
        match verb {
            Verb::Delete => Effect::Delete { pod, grace: None },
            Verb::Inject => Effect::Inject { pod, holder: Holder::default() },
            Verb::Release => Effect::Release { pod, holder: "x".into() },
        }
    }

    #[tokio::test]
    async fn what_is_not_begun_yet_is_not_begun_once_it_is_overtaken() {
        let mut effects: Vec<Effect> =
            (0..1000).map(|index| effect(Verb::Inject, &index.to_string())).collect();
        effects.push(effect(Verb::Release, "first"));
        let done = Cell::new(0);
        let effects = begun(effects, |_| done.get() < 10);
        let carried_out: Vec<String> = futures::stream::iter(effects.map(|effect| {
            let done = &done;
            async move {
                tokio::task::yield_now().await;
                done.set(done.get() + 1);
                effect.pod().name.clone()
            }
        }))
        .buffer_unordered(CONCURRENCY)
        .collect()
        .await;
        assert!((10..=10 + CONCURRENCY).contains(&carried_out.len()), "{}", carried_out.len());
        assert!(carried_out[..CONCURRENCY].contains(&"first".to_owned()), "what is put back goes first");
    }

    #[test]
    fn the_more_targets_are_written_the_seldomer() {
        assert_eq!(pause(30), SignedDuration::from_millis(100));
        assert_eq!(pause(1000), SignedDuration::from_secs(1));
    }
}
