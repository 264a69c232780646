//! The next step of an experiment.
//!
//! [`plan`] looks at the experiment, at what was last written to its status and at the world, and says what
//! the status is now, which effects are due, and what each node's daemon shall have. It is called again after
//! every effect and every event, and says the same again as long as nothing changed. Two rules carry the rest:
//!
//! - **Intent before effect.** An effect is only ever due for a target that the status *handed in* records.
//!   So choosing is a step of its own, written before anything is hit, and a crash can't choose others.
//! - **Recovery by the pods' own records.** Whoever holds a pod is written on the pod. What is held for this
//!   experiment and isn't wanted is released, whatever the status says.
//!
//! This module refuses to know how anything is done: no client, no clock, no randomness.

mod back;
mod choose;
mod container;
mod effect;
mod failure;
mod halt;
mod janitor;
mod kill;
mod lasting;
mod node;
mod notes;
mod order;
mod outcomes;
mod progress;
mod size;
mod status;

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use squall_api::names;
use squall_api::status::{Effect as Measured, ExperimentStatus, Phase, Receipt, Target};

use self::back::Left;
pub use self::halt::may_begin;
pub use self::janitor::{Chore, chore};
pub use self::notes::{Note, NoteKind, notes};
pub use self::order::{NodeFault, Order, Stage};
pub use self::outcomes::{Outcome, Outcomes, Verb};
pub use self::progress::is_progress;
use crate::experiment::Experiment;
use crate::pod::{NamespaceView, PodView};
use crate::policy::choice::Budget;
use crate::policy::ledger::Ledger;
use crate::policy::{Policies, Refusal};
use crate::probe::Steady;
use crate::select::Nodes;
use crate::spec::{Action, Spec};
use crate::substitute::{FaultImages, Holder};

/// The stable word for a spec that can't be read.
const INVALID_SPEC: &str = "InvalidSpec";

/// At most so many targets; above, nothing is hit.
pub const MAX_TARGETS: usize = 4000;

/// What the controller knows of the cluster.
pub trait World: Nodes {
    /// A namespace.
    fn namespace(&self, name: &str) -> Option<&NamespaceView>;
    /// The pods of a namespace.
    fn pods<'a>(&'a self, namespace: &str) -> Box<dyn Iterator<Item = &'a PodView> + 'a>;
    /// A pod by name.
    fn pod(&self, namespace: &str, name: &str) -> Option<&PodView>;
    /// The pods whose record names the holder `uid`.
    fn held_by<'a>(&'a self, uid: &str) -> Box<dyn Iterator<Item = &'a PodView> + 'a>;
    /// The pods that the workload `uid` owns.
    fn owned_by<'a>(&'a self, uid: &str) -> Box<dyn Iterator<Item = &'a PodView> + 'a>;
    /// The policies.
    fn policies(&self) -> &Policies {
        const { &Policies::NONE }
    }
    /// What is hit now, by every experiment.
    fn ledger(&self) -> &Ledger {
        const { &Ledger::EMPTY }
    }
    /// The PodDisruptionBudgets of a namespace.
    fn budgets(&self, _namespace: &str) -> &[Budget] {
        &[]
    }
    /// Why the pod `uid` is more than a policy allows, of what is hit already.
    fn excess(&self, _uid: &str) -> Option<&Refusal> {
        None
    }
    /// How the probes of the experiment `uid` stand.
    fn steady(&self, _uid: &str) -> Steady {
        Steady::default()
    }
    /// How what the policy `name` looks at stands; `None`: it looks at nothing.
    fn watched(&self, _name: &str) -> Option<Steady> {
        None
    }
    /// How things stand with a node's daemon.
    fn daemon(&self, node: &str) -> Daemon;
    /// The newest that `node`'s daemon has told of the fault `id`.
    fn report(&self, node: &str, id: &str) -> Option<Report>;
}

/// How things stand with a node's daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Daemon {
    /// The node runs none.
    None,
    /// Nobody has heard of it since this leader's term began, a moment ago: what it has to tell isn't known yet. The world
    /// says so for some seconds only.
    Unheard,
    /// There is one, but it can't be talked to; why.
    Unreachable(String),
    /// It answers.
    Ready,
}

/// What a daemon has told of a fault.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// How far it is.
    pub state: ReportState,
    /// A stable word, where it failed.
    pub reason: String,
    /// In words.
    pub message: String,
    /// What it saw.
    pub receipt: Option<Receipt>,
    /// The exit code of the container's init process.
    pub exit_code: Option<i32>,
    /// When the last signalled process had exited.
    pub exited: Option<Timestamp>,
    /// Of a lasting fault: what it did to the container.
    pub effect: Option<Measured>,
    /// Of a lasting fault: how often it was interrupted and injected again.
    pub interruptions: u32,
    /// What the user should know and that is no failure.
    pub warnings: Vec<String>,
}

/// See [`Report::state`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReportState {
    /// Not fired yet, or not over yet.
    #[default]
    Underway,
    /// Carried out.
    Done,
    /// A lasting fault is there.
    Injected,
    /// A lasting fault has been put back.
    Recovered,
    /// Not carried out, and never will be.
    Refused,
    /// Tried, without success.
    Failed,
}

/// Everything that a step depends on.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    /// Now.
    pub now: Timestamp,
    /// The experiment.
    pub experiment: Experiment<'a>,
    /// The status that was last written.
    pub status: &'a ExperimentStatus,
    /// The cluster.
    pub world: &'a dyn World,
    /// What came of the effects so far.
    pub outcomes: &'a Outcomes,
    /// The images that stand in.
    pub images: &'a FaultImages,
}

/// The next step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// What the status is now.
    pub status: ExperimentStatus,
    /// What is to be done now. Order doesn't matter.
    pub effects: Vec<Effect>,
    /// All that daemons shall have for this experiment; what isn't listed shall end.
    pub orders: Vec<Order>,
    /// The object may go.
    pub drop_finalizer: bool,
    /// What to tell, beside what the change of the status tells by itself.
    pub notes: Vec<Note>,
    /// What policies refused, where that is news; to be counted.
    pub refusals: Vec<Refusal>,
    /// When to look again if nothing happens.
    pub wake: Option<Timestamp>,
}

/// Something done to a pod through the API.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Delete it gracefully, this incarnation only.
    Delete {
        /// Which.
        pod: PodRef,
        /// Seconds; `None` means the pod's own.
        grace: Option<u32>,
    },
    /// Evict it, this incarnation only.
    Evict {
        /// Which.
        pod: PodRef,
        /// Seconds; `None` means the pod's own.
        grace: Option<u32>,
    },
    /// Fail it for `holder`.
    Inject {
        /// Which.
        pod: PodRef,
        /// For whom.
        holder: Holder,
    },
    /// Let the holder go.
    Release {
        /// Which.
        pod: PodRef,
        /// The holder's UID.
        holder: String,
    },
}

impl Effect {
    /// The pod that it is done to.
    pub fn pod(&self) -> &PodRef {
        match self {
            Self::Delete { pod, .. }
            | Self::Evict { pod, .. }
            | Self::Inject { pod, .. }
            | Self::Release { pod, .. } => pod,
        }
    }

    /// Under which verb its outcome is kept.
    pub fn verb(&self) -> Verb {
        match self {
            Self::Delete { .. } | Self::Evict { .. } => Verb::Delete,
            Self::Inject { .. } => Verb::Inject,
            Self::Release { .. } => Verb::Release,
        }
    }
}

/// A pod, this incarnation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PodRef {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

impl PodRef {
    /// The pod that `target` is about.
    pub fn of(target: &Target) -> Self {
        Self { namespace: target.namespace.clone(), name: target.pod.clone(), uid: target.uid.clone() }
    }

    /// The pod in `view`.
    pub fn of_view(view: &PodView) -> Self {
        Self { namespace: view.namespace.clone(), name: view.name.clone(), uid: view.uid.clone() }
    }
}

/// What the metadata of the experiment says.
struct Ident<'a> {
    uid: &'a str,
    namespace: &'a str,
    name: &'a str,
    generation: i64,
    deleted: Option<Timestamp>,
    paused: bool,
    forced: bool,
    created: Option<Timestamp>,
}

impl<'a> Ident<'a> {
    fn of(meta: &'a ObjectMeta) -> Self {
        let annotation =
            |key: &str| meta.annotations.as_ref().and_then(|all| all.get(key)).map(String::as_str);
        Self {
            uid: meta.uid.as_deref().unwrap_or_default(),
            namespace: meta.namespace.as_deref().unwrap_or_default(),
            name: meta.name.as_deref().unwrap_or_default(),
            generation: meta.generation.unwrap_or_default(),
            deleted: meta.deletion_timestamp.as_ref().map(|time| time.0),
            paused: annotation(names::PAUSE) == Some("true"),
            forced: annotation(names::CLEANUP) == Some(names::CLEANUP_FORCED),
            created: meta.creation_timestamp.as_ref().map(|time| time.0),
        }
    }
}

/// A step in the making.
struct Step<'a> {
    input: Input<'a>,
    ident: Ident<'a>,
    plan: Plan,
}

/// The next step of `input.experiment`.
pub fn plan(input: Input<'_>) -> Plan {
    let ident = Ident::of(input.experiment.metadata);
    let mut step = Step { input, ident, plan: Plan { status: input.status.clone(), ..Plan::default() } };
    // Squall being removed means the same: put everything back, and hold nobody up.
    let leaving = input.world.namespace(names::NAMESPACE).is_some_and(|namespace| namespace.terminating);
    if step.ident.deleted.is_some() || leaving {
        step.deleted();
        return step.plan;
    }
    match input.experiment.spec {
        Ok(spec) => step.live(spec),
        Err(errors) => {
            let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
            step.invalid(&errors.join("; "));
            step.plan.status.observed_generation = Some(step.ident.generation);
        }
    }
    step.finish()
}

impl Step<'_> {
    fn live(&mut self, spec: &Spec) {
        if self.plan.status.completed_at.is_some() {
            // The end is final; only what is told of it may still grow.
            self.release_unwanted(|_| false);
            match spec.action {
                Action::PodKill { .. } => self.follow_replacements(),
                Action::ContainerKill { .. } => self.follow_restarts(),
                Action::PodFailure { .. } | Action::ContainerFreeze | Action::Stress(_) => {}
            }
            self.plan.status.observed_generation = Some(self.ident.generation);
            return;
        }
        self.look_for_halt(spec);
        if self.plan.status.selected_at.is_none() {
            if self.is_halted() {
                self.not_begun(spec);
            } else if let Some(why) = self.not_looked_yet(spec) {
                self.plan.status.phase = Some(Phase::Pending);
                self.plan.status.message = Some(why);
            } else {
                self.choose(spec);
            }
        } else {
            match spec.action {
                Action::PodKill { grace, evict } => self.pod_kill(spec, grace, evict),
                Action::ContainerKill { .. } => {
                    if let Some(fault) = NodeFault::of(spec) {
                        self.container_kill(spec, &fault);
                    }
                }
                Action::PodFailure { .. } | Action::ContainerFreeze | Action::Stress(_) => self.lasting(spec),
            }
        }
        self.plan.status.observed_generation = Some(self.ident.generation);
    }

    /// The spec can't be read. One that has begun under it was read by another version of us.
    fn invalid(&mut self, errors: &str) {
        if self.plan.status.completed_at.is_none() && self.plan.status.selected_at.is_some() {
            self.complete(
                Phase::Failed,
                INVALID_SPEC,
                &format!("ended before its time, for its spec is not valid any more: {errors}"),
            );
            self.let_all_go();
        } else {
            self.complete(Phase::Failed, INVALID_SPEC, &format!("nothing was hit: {errors}"));
        }
        self.release_unwanted(|_| false);
    }

    /// The object is being deleted: put everything back, then let it go. A forced clean-up waits for nothing.
    fn deleted(&mut self) {
        let mut left = self.release_unwanted(|_| false);
        let Left { waited_for, unseen } = self.take_all_back();
        left.extend(waited_for);
        let one_shot = self.input.experiment.spec.is_ok_and(|spec| !spec.lasting());
        if left.is_empty() {
            if !unseen.is_empty() {
                let (what, then) = if one_shot {
                    (
                        "these triggers taken back",
                        "If it lives, they may fire until it is heard of or their time is over",
                    )
                } else {
                    ("these put back", "It puts them back when it starts")
                };
                self.plan.notes.push(Note::experiment(
                    NoteKind::Warning,
                    "NotSeenRecovered",
                    format!(
                        "nobody has seen {what}, for their node's daemon is silent: {}. {then}; to be certain at once, \
                         delete the pod",
                        unseen.join(", ")
                    ),
                ));
            }
            self.plan.drop_finalizer = true;
        } else if self.ident.forced {
            left.extend(unseen);
            self.plan.notes.push(Note::experiment(
                NoteKind::Warning,
                "ForcedCleanup",
                format!("let go by force; still to be restored, and tried once more: {}", left.join(", ")),
            ));
            self.plan.orders.clear();
            self.plan.drop_finalizer = true;
        } else {
            self.plan.status.phase = Some(Phase::Recovering);
            let what = match self.input.experiment.spec {
                Ok(_) if one_shot => "triggers are still to be taken back",
                Ok(spec) if spec.action.on_containers() => "containers are still to be restored",
                Ok(_) | Err(_) => "pods are still to be restored",
            };
            self.plan.status.message = Some(format!(
                "being deleted; {} {what}. To let the object go without waiting: kubectl annotate {} {} {}={}",
                left.len(),
                self.input.experiment.kind.plural(),
                self.ident.name,
                names::CLEANUP,
                names::CLEANUP_FORCED,
            ));
        }
    }

    /// Release every pod that is held for this experiment and whose UID isn't `wanted`; which ones are.
    fn release_unwanted(&mut self, wanted: impl Fn(&str) -> bool) -> Vec<String> {
        let Input { world, outcomes, now, status, .. } = self.input;
        // A pod that was injected a moment ago may not show it yet.
        let unseen = status.targets.iter().filter_map(|target| view(world, target));
        let mut held = BTreeMap::new();
        for view in world.held_by(self.ident.uid).chain(unseen) {
            if !wanted(&view.uid) && outcomes.holds(view, self.ident.uid) {
                held.insert(view.uid.as_str(), view);
            }
        }
        for (uid, view) in &held {
            match outcomes.get(Verb::Release, uid) {
                Some(Outcome::Retry { at, .. }) if *at > now => self.wake(*at),
                Some(Outcome::Retry { .. } | Outcome::Done { .. } | Outcome::Refused { .. }) | None => {
                    self.plan.effects.push(Effect::Release {
                        pod: PodRef::of_view(view),
                        holder: self.ident.uid.to_owned(),
                    });
                }
            }
        }
        held.values().map(|view| format!("{}/{}", view.namespace, view.name)).collect()
    }

    /// Look again at `at` at the latest.
    fn wake(&mut self, at: Timestamp) {
        self.plan.wake = Some(self.plan.wake.map_or(at, |wake| wake.min(at)));
    }
}

/// The pod that `target` is about, if this incarnation is still there.
fn view<'a>(world: &'a dyn World, target: &Target) -> Option<&'a PodView> {
    world.pod(&target.namespace, &target.pod).filter(|view| view.uid == target.uid)
}

/// The namespace of `target`. One that isn't known is not opted in.
fn namespace<'a>(world: &'a dyn World, target: &Target) -> &'a NamespaceView {
    static UNKNOWN: NamespaceView = NamespaceView {
        name: String::new(),
        opted_in: false,
        protect: false,
        terminating: false,
        labels: BTreeMap::new(),
        halt: None,
    };
    world.namespace(&target.namespace).unwrap_or(&UNKNOWN)
}

fn seconds(seconds: i64) -> SignedDuration {
    SignedDuration::from_secs(seconds)
}

/// `by` after `from`, or the last moment that there is: pods and statuses may say any time and any number.
fn later(from: Timestamp, by: impl TryInto<SignedDuration>) -> Timestamp {
    by.try_into().ok().and_then(|by| from.saturating_add(by).ok()).unwrap_or(Timestamp::MAX)
}
