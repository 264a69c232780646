//! One experiment's turn: observe, plan, apply, report; again until nothing is due.
//!
//! Between the event that wakes it and the first effect stands one write, the status that names the targets.
//! This module decides nothing: it carries plans out and remembers what came of them.

mod carry;
mod write;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use kube::api::ObjectMeta;
use kube::{Client, ResourceExt};
use kube_runtime::controller::Action;
use squall_api::status::{ExperimentStatus, Target, TargetPhase};
use squall_model::experiment::{Experiment, parsed};
use squall_model::plan::{Input, Order, Outcomes, Plan, is_progress, notes, plan};
use squall_model::policy::ledger::Hold;
use squall_model::spec::Spec;

use crate::apply::Applier;
use crate::chaos::{Chaos, Experiments, Named};
use crate::client::{is_conflict, is_gone};
use crate::guard::Guard;
use crate::interest::{Interest, Interests};
use crate::metrics::Metrics;
use crate::nodes::{Nodes, RollCall};
use crate::observe::Observer;
use crate::orders::fault;
use crate::probes::Probes;
use crate::tell::Teller;
use crate::world::Cluster;

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
/// How long a turn sleeps at most: what it waits for is a time of day, and a clock may be set.
const LONGEST: Duration = Duration::from_secs(60);
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
    // Nothing is chosen before it is known what others hold; who goes chooses nobody.
    if chaos.meta().deletion_timestamp.is_none() {
        context.guard.filled().await;
    }
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
            context.remember(&Named::of(&*chaos), uid, memory);
            Ok(match wake {
                None => Action::await_change(),
                Some(wake) => {
                    let wait = Duration::try_from(wake.duration_since(Timestamp::now())).unwrap_or_default();
                    Action::requeue(wait.min(LONGEST))
                }
            })
        }
        Err(error) => {
            context.remember(&Named::of(&*chaos), uid, memory);
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
        let begun = Instant::now();
        let plan = plan(Input {
            now,
            experiment,
            status: &memory.status,
            world: &Cluster { index: &index, nodes: &self.nodes, book: &book },
            outcomes: &memory.outcomes,
            images: self.applier.images(),
        });
        if memory.status.selected_at.is_none() && plan.status.selected_at.is_some() {
            self.metrics.chosen(begun.elapsed());
        }
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

    /// Keep it for the next turn, unless the experiment went during this one: there is no next turn then.
    fn remember(&self, name: &Named, uid: String, memory: Memory) {
        self.memories().insert(uid.clone(), memory);
        // The watch tells its store first, and us afterwards: whoever goes from now on is forgotten by that.
        if !self.experiments.has(name, &uid) {
            self.forget(&uid);
        }
    }

    /// Forget everybody who is no more: after a new listing nobody says who went meanwhile.
    pub fn forget_the_gone(&self) {
        let there: HashSet<String> =
            self.experiments.filter_map(|meta, _, _| meta.uid.clone()).into_iter().collect();
        let gone: Vec<String> = self.memories().keys().filter(|uid| !there.contains(*uid)).cloned().collect();
        gone.iter().for_each(|uid| self.forget(uid));
        self.roll.keep(&there);
    }

    /// The experiment is no more, with or without our consent.
    pub fn forget(&self, uid: &str) {
        self.roll.seen(uid);
        if let Some(mut memory) = self.memories().remove(uid) {
            self.withdraw(&mut memory, Orders::new());
        }
        self.interests.forget(uid);
        self.no_more(uid);
    }
}

/// What the experiment has to be woken for.
fn interest(experiment: Named, spec: Option<&Spec>, status: &ExperimentStatus) -> Interest {
    let looking =
        |spec: &&Spec| status.completed_at.is_none() && (status.selected_at.is_none() || spec.lasting());
    let looking = spec.filter(looking);
    // After the end only what comes back is followed, and only for a while.
    let followed = |target: &&Target| match &status.completed_at {
        None => true,
        Some(at) => {
            target.phase == TargetPhase::Killed
                && target.ready_at.is_none()
                && Timestamp::now().duration_since(at.0) < SignedDuration::from_mins(10)
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
        looking: looking.map(|spec| spec.selector.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_targets_are_written_the_seldomer() {
        assert_eq!(pause(30), SignedDuration::from_millis(100));
        assert_eq!(pause(1000), SignedDuration::from_secs(1));
    }
}
