//! What only the leader does: experiments take their turns, and the janitor goes round. Ends when leadership
//! does; nothing of a term is carried into the next but what is written in the cluster.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use kube::api::ObjectMeta;
use kube::{Api, Client};
use kube_runtime::controller::Config;
use kube_runtime::reflector::store::Writer;
use kube_runtime::reflector::{self, ObjectRef, Store};
use kube_runtime::watcher::{self, Event, watcher};
use kube_runtime::{Controller, WatchStreamExt};
use squall_api::status::{Phase, TargetPhase};
use squall_api::{ExperimentStatus, Schedule, names};
use squall_model::experiment::Kind;
use squall_model::pod::PodView;
use squall_model::substitute::MANUAL;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::annotate;
use crate::apply::Applier;
use crate::chaos::{Chaos, Experiments, Named};
use crate::guard::Guard;
use crate::interest::Interests;
use crate::janitor::{Janitor, PodKey};
use crate::metrics::Metrics;
use crate::nodes::{NodeEvent, Nodes, RollCall};
use crate::observe::{Change, Observer, absent_is_empty};
use crate::probes::Probes;
use crate::reconcile::{Context, after_error, reconcile};
use crate::retry::retry;
use crate::schedule;
use crate::tell::Teller;
use crate::warden::Warden;

/// Experiments that take their turns at once.
const CONCURRENCY: u16 = 32;

/// What every term needs.
#[derive(Clone)]
pub struct Parts {
    /// The API server.
    pub client: Client,
    /// What is known.
    pub observer: Observer,
    /// The daemons.
    pub nodes: Nodes,
    /// What changes pods.
    pub applier: Applier,
    /// Events.
    pub teller: Teller,
    /// Figures.
    pub metrics: Arc<Metrics>,
}

/// Where changes go while there is a leader to take them; there is none before and after a term.
#[derive(Clone, Default)]
pub struct Router(Arc<Mutex<Option<Routes>>>);

struct Routes {
    interests: Interests,
    turns: Turns,
    chores: mpsc::UnboundedSender<PodKey>,
    wakes: mpsc::UnboundedSender<annotate::Wake>,
    observer: Observer,
    experiments: Experiments,
    guard: Guard,
    probes: Probes,
}

/// Who is to take a turn, by kind.
struct Turns {
    pods: mpsc::UnboundedSender<Named>,
    stress: mpsc::UnboundedSender<Named>,
}

impl Router {
    /// Route a change in the cluster.
    pub fn change(&self, change: Change) {
        self.with(|routes| match change {
            Change::Pod { old, new } => {
                let views = || old.iter().chain(&new).map(|pod| &**pod);
                routes.wake(routes.interests.of_pod(views()));
                // What is hit by hand counts for policies, as what experiments hold does.
                let by_hand = |pod: &Option<Box<PodView>>| {
                    pod.iter().any(|pod| pod.held_by.iter().any(|holder| holder.uid == MANUAL))
                };
                if by_hand(&old) != by_hand(&new) {
                    routes.guard.notify();
                }
                for pod in views() {
                    if let Some(wake) = annotate::of_pod(pod) {
                        // The receiver goes only with the term.
                        let _ = routes.wakes.send(wake);
                    }
                }
                if let Some(pod) = new {
                    routes.pod(&pod);
                }
            }
            // That it goes means that Squall does; its halt means the whole cluster.
            Change::Namespace(name) if name == names::NAMESPACE => {
                routes.everyone();
                routes.guard.notify();
            }
            Change::Policy(_) => {
                routes.probes.of_policies(routes.observer.read().policies());
                routes.everyone();
                routes.guard.notify();
            }
            Change::Namespace(name) => {
                routes.wake(routes.interests.of_namespace(&name));
                for pod in routes.observer.read().all_held().filter(|pod| pod.namespace == name) {
                    routes.pod(pod);
                }
                routes.guard.notify();
            }
            Change::Node(_) => routes.wake(routes.interests.of_labels()),
            Change::Leaving => routes.leaving(),
            Change::Workload { woken, pods } => {
                for wake in woken.iter().filter_map(annotate::of_workload) {
                    // The receiver goes only with the term.
                    let _ = routes.wakes.send(wake);
                }
                for pod in &pods {
                    routes.wake(routes.interests.of_pod([pod].into_iter()));
                    routes.pod(pod);
                }
            }
        });
    }

    /// Wake everything that is hit or to be hit: a policy has changed, or more is hit than one allows.
    pub fn everyone(&self) {
        self.with(Routes::everyone);
    }

    /// Wake the experiment `uid`.
    pub fn experiment(&self, uid: &str) {
        self.with(|routes| routes.wake(routes.interests.of_experiment(uid)));
    }

    /// Route news from a daemon.
    pub fn node(&self, event: NodeEvent) {
        self.with(|routes| match event {
            NodeEvent::Fault { node: _, id } => {
                let experiment = id.split('/').next().unwrap_or_default();
                routes.wake(routes.interests.of_experiment(experiment));
            }
            NodeEvent::Presence { node } => routes.wake(routes.interests.of_node(&node)),
        });
    }

    fn with(&self, route: impl FnOnce(&Routes)) {
        if let Some(routes) = &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            route(routes);
        }
    }
}

impl Routes {
    fn everyone(&self) {
        self.wake(self.experiments.named());
        for pod in self.observer.read().all_held() {
            self.pod(pod);
        }
    }

    fn wake(&self, experiments: impl IntoIterator<Item = Named>) {
        for experiment in experiments {
            // The receivers go only with the term.
            let _ = match experiment.kind {
                Kind::PodChaos => self.turns.pods.send(experiment),
                Kind::StressChaos => self.turns.stress.send(experiment),
            };
        }
    }

    /// Squall is being removed, or may be: everything is put back then.
    fn leaving(&self) {
        let index = self.observer.read();
        if index.is_leaving() {
            self.wake(self.experiments.named());
        }
        index.all_held().for_each(|pod| self.pod(pod));
    }

    /// A recorded pod: its holders may have to let it go, and the janitor looks at it.
    fn pod(&self, pod: &PodView) {
        if pod.held_by.is_empty() && !pod.annotations.keys().any(|key| key.starts_with("squall.dev/")) {
            return;
        }
        self.wake(pod.held_by.iter().filter(|holder| !holder.name.is_empty()).map(|holder| Named {
            kind: Kind::PodChaos,
            namespace: holder.namespace.clone(),
            name: holder.name.clone(),
        }));
        let _ = self.chores.send((pod.namespace.clone(), pod.name.clone()));
    }
}

/// Lead until the future is dropped.
pub async fn lead(parts: Parts, router: Router) {
    let Parts { client, observer, nodes, applier, teller, metrics } = parts;
    observer.synced().await;

    let guard = Guard::default();
    let probes = {
        let router = router.clone();
        Probes::new(client.clone(), observer.clone(), guard.clone(), move |uid| router.experiment(uid))
    };
    let interests = Interests::default();
    let (pods, pods_turned) = mpsc::unbounded_channel();
    let (stress, stress_turned) = mpsc::unbounded_channel();
    let turns = Turns { pods, stress };
    let (chores, choring) = mpsc::unbounded_channel();
    let (wakes, woken) = mpsc::unbounded_channel();
    let (scheduled, schedules) = mpsc::unbounded_channel();
    // Until every experiment has had its turn, what the daemons shall have is not known in full.
    let roll = Arc::new(RollCall::new(nodes.clone()));
    let (pods, pods_writer) = reflector::store();
    let (stress, stress_writer) = reflector::store();
    let experiments = Experiments { pods, stress };
    let routes = Routes {
        interests: interests.clone(),
        turns,
        chores: chores.clone(),
        wakes: wakes.clone(),
        observer: observer.clone(),
        experiments: experiments.clone(),
        guard: guard.clone(),
        probes: probes.clone(),
    };
    *router.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(routes);
    let _unroute = Unroute { router: router.clone(), metrics: metrics.clone(), probes: probes.clone() };
    let context_nodes = nodes.clone();
    let context = Arc::new(Context {
        client: client.clone(),
        observer: observer.clone(),
        nodes,
        applier: applier.clone(),
        interests,
        teller: teller.clone(),
        metrics: metrics.clone(),
        guard: guard.clone(),
        probes: probes.clone(),
        roll: roll.clone(),
        experiments: experiments.clone(),
        memories: Mutex::new(HashMap::new()),
    });
    metrics.on_scrape(Some(Box::new({
        let (experiments, nodes, seen) = (experiments.clone(), context.nodes.clone(), observer.clone());
        move |metrics| census(metrics, &experiments, &nodes, &seen)
    })));

    let of_pods = (experiments.pods.clone(), pods_writer);
    let tell = Tell { chores, wakes: wakes.clone(), scheduled };
    let of_pods = take_turns(context.clone(), of_pods, pods_turned, tell.clone());
    let of_stress = (experiments.stress.clone(), stress_writer);
    let of_stress = take_turns(context, of_stress, stress_turned, tell);
    let janitor = Janitor {
        observer: observer.clone(),
        applier: applier.clone(),
        experiments: experiments.pods.clone(),
        teller: teller.clone(),
        guard: guard.clone(),
    };
    let scheduler = schedule::Context {
        client: client.clone(),
        experiments: experiments.clone(),
        teller: teller.clone(),
    };
    let warden = Warden {
        client: client.clone(),
        observer: observer.clone(),
        nodes: context_nodes,
        guard: guard.clone(),
        router,
        probes: probes.clone(),
        metrics,
    };
    let seen = observer.clone();
    let annotations = annotate::Annotations::new(client, observer, applier, experiments.clone(), teller);
    let rounds = async {
        // Without the list of experiments every holder would look like one that is no more.
        if experiments.listed().await {
            roll.expect(experiments.filter_map(|meta, _, _| meta.uid.clone()));
            let statuses = |meta: &ObjectMeta, _: &'static str, status: Option<&ExperimentStatus>| {
                Some((meta.uid.clone()?, status?.clone()))
            };
            probes.of_policies(seen.read().policies());
            guard.fill(experiments.filter_map(statuses), Timestamp::now());
            janitor.run(choring).await;
        }
    };
    let annotated = async {
        // Nor could anybody say which annotations have their experiments already.
        if experiments.listed().await {
            annotations.run(wakes, woken).await;
        }
    };
    let scheduling = async {
        // Nor which runs have begun.
        if experiments.listed().await {
            schedule::run(scheduler, schedules).await;
        }
    };
    tokio::join!(of_pods, of_stress, rounds, annotated, scheduling, warden.run());
}

/// Who is told of what happens to experiments.
#[derive(Clone)]
struct Tell {
    chores: mpsc::UnboundedSender<PodKey>,
    wakes: mpsc::UnboundedSender<annotate::Wake>,
    scheduled: mpsc::UnboundedSender<ObjectRef<Schedule>>,
}

/// The experiments of one kind take their turns: when they change, and when they are `turned`.
async fn take_turns<K: Chaos>(
    context: Arc<Context>,
    (experiments, writer): (Store<K>, Writer<K>),
    turned: mpsc::UnboundedReceiver<Named>,
    Tell { chores, wakes, scheduled }: Tell,
) {
    let gone = {
        let context = context.clone();
        move |event: &Event<K>| {
            if let Event::Apply(chaos) | Event::Delete(chaos) = event {
                // The receivers go only with the term.
                if let Some(wake) = annotate::of_experiment(chaos, matches!(event, Event::Delete(_))) {
                    let _ = wakes.send(wake);
                }
                if let Some(schedule) = schedule::of_experiment(chaos.meta()) {
                    let _ = scheduled.send(schedule);
                }
            }
            let index = context.observer.read();
            let look_after = |pod: &PodView| {
                // The receiver goes only with the term.
                let _ = chores.send((pod.namespace.clone(), pod.name.clone()));
            };
            match event {
                Event::Delete(chaos) => {
                    if let Some(uid) = &chaos.meta().uid {
                        context.forget(uid);
                        index.held_by(uid).for_each(look_after);
                    }
                }
                // After a new listing nobody says what went meanwhile.
                Event::InitDone => {
                    context.forget_the_gone();
                    index.all_held().for_each(look_after);
                }
                Event::Init | Event::InitApply(_) | Event::Apply(_) => {}
            }
        }
    };
    let events = watcher(Api::<K>::all(context.client.clone()), watcher::Config::default())
        .map_ok(|event| event.modify(|chaos| chaos.meta_mut().managed_fields = None))
        .backoff(retry());
    let trigger = absent_is_empty(events).reflect(writer).inspect_ok(gone).touched_objects();
    let turned = UnboundedReceiverStream::new(turned).map(|named| named.reference());
    Controller::for_stream(trigger, experiments)
        .with_config(Config::default().concurrency(CONCURRENCY))
        .reconcile_on(turned)
        .run(reconcile, after_error, context)
        .for_each(|result| async move {
            if let Err(error) = result {
                tracing::debug!(%error, "a turn ended early");
            }
        })
        .await;
}

/// How many experiments there are, by action and phase, how many targets are hit, and how many daemons there are.
fn census(metrics: &Metrics, experiments: &Experiments, nodes: &Nodes, observer: &Observer) {
    let mut counts: HashMap<(&'static str, &'static str), i64> = HashMap::new();
    let phases = experiments.filter_map(|_, action, status| {
        Some((action, status.and_then(|status| status.phase).unwrap_or_default()))
    });
    for (action, phase) in phases {
        *counts.entry((action, phase_word(phase))).or_default() += 1;
    }
    metrics.experiments(counts.into_iter().map(|((action, phase), count)| (action, phase, count)));
    let mut hit: HashMap<(&'static str, &'static str), i64> = HashMap::new();
    let there = experiments.filter_map(|_, action, status| {
        let targets = status?.targets.iter();
        Some((action, targets.filter(|target| target.phase == TargetPhase::Injected).count()))
    });
    for (action, there) in there {
        *hit.entry((action, "experiment")).or_default() += i64::try_from(there).unwrap_or(i64::MAX);
    }
    let by_hand = observer.read().held_by(MANUAL).count();
    hit.insert((names::POD_FAILURE, "hand"), i64::try_from(by_hand).unwrap_or(i64::MAX));
    metrics.active(hit.into_iter().map(|((action, by), count)| (action, by, count)));
    metrics.daemons(nodes.counts());
}

fn phase_word(phase: Phase) -> &'static str {
    match phase {
        Phase::Pending => "Pending",
        Phase::Injecting => "Injecting",
        Phase::Injected => "Injected",
        Phase::Paused => "Paused",
        Phase::Recovering => "Recovering",
        Phase::Completed => "Completed",
        Phase::Failed => "Failed",
        Phase::Halted => "Halted",
    }
}

/// Takes the routes away with the term, however it ends.
struct Unroute {
    router: Router,
    metrics: Arc<Metrics>,
    probes: Probes,
}

impl Drop for Unroute {
    fn drop(&mut self) {
        *self.router.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.metrics.on_scrape(None);
        self.probes.end();
    }
}
