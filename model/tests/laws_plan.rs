//! The laws of the planner, on a small world that keeps the promises of the API server: effects are carried
//! out on typed pods, views may be stale, the process may crash between any two steps, the API may fail, and
//! people meddle. Whatever happens, at the end every pod has its own images and nothing of ours.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStatus, Pod,
    PodCondition, PodSpec, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use proptest::prelude::*;
use squall_api::chaospolicy::{Allow, ChaosPolicy, ChaosPolicySpec, Limits, Window};
use squall_api::names;
use squall_api::podchaos::{
    Action, ExperimentStatus, Mode, Phase, PodChaos, PodChaosSpec, ProcessReceipt, Receipt, TargetPhase,
    Trigger,
};
use squall_api::probe::OnHalt;
use squall_model::experiment::Experiment;
use squall_model::plan::{
    Daemon, Effect, Input, Order, Outcome, Outcomes, Plan, Report, ReportState, Stage, World, plan,
};
use squall_model::pod::{NamespaceView, PodView};
use squall_model::policy::ledger::Ledger;
use squall_model::policy::{Policies, Policy};
use squall_model::probe::{Health, Steady};
use squall_model::select::Nodes;
use squall_model::substitute::{self, FaultImages};
use squall_model::validate::validate;

const ORIGINAL: &str = "app:1";

fn images() -> FaultImages {
    FaultImages { pause: "fault/pause:1".into(), crash: "fault/crash:1".into() }
}

/// A cluster of one namespace, as the API server has it, and as the controller sees it.
struct Sim {
    now: Timestamp,
    version: u64,
    born: u32,
    pods: BTreeMap<String, Pod>,
    seen: BTreeMap<String, PodView>,
    namespace: NamespaceView,
    chaos: PodChaos,
    /// The status as written.
    status: ExperimentStatus,
    outcomes: Outcomes,
    /// So many effects fail before the next one succeeds.
    failing: u32,
    gone: bool,
    without_daemons: bool,
    reports: BTreeMap<String, Report>,
    killed: Vec<String>,
    /// What the controller would have the node have.
    desired: BTreeMap<String, Order>,
    node: Node,
    policies: Policies,
    ledger: Ledger,
    steady: Steady,
}

/// The node's daemon, as it keeps its promises: what is listed it holds, what isn't it puts back, and what nobody renews
/// it ends by itself.
#[derive(Default)]
struct Node {
    /// It can't be reached.
    away: bool,
    /// Its daemon was killed: it ends nothing by itself.
    killed: bool,
    /// What stands: the container, and when it ends if it is not renewed.
    standing: BTreeMap<String, (String, Timestamp)>,
    /// What it has to say of each fault that it was told of.
    told: BTreeMap<String, Report>,
}

impl Node {
    /// The whole desired state has come.
    fn apply(&mut self, desired: &BTreeMap<String, Order>, containers: &BTreeSet<String>, now: Timestamp) {
        self.standing.retain(|id, _| desired.contains_key(id));
        self.told.retain(|id, _| desired.contains_key(id));
        for (id, order) in desired {
            let told = self.told.get(id).map(|report| (report.state, report.reason.clone()));
            let over = told.is_some_and(|(state, _)| {
                matches!(state, ReportState::Recovered | ReportState::Refused | ReportState::Failed)
            });
            let say = |state, reason: &str| Report { state, reason: reason.to_owned(), ..Report::default() };
            match order.stage {
                _ if over => {}
                Stage::Arm => {
                    self.told.insert(id.clone(), say(ReportState::Underway, ""));
                }
                Stage::Recover => {
                    self.standing.remove(id);
                    self.told.insert(id.clone(), say(ReportState::Recovered, ""));
                }
                Stage::Fire if containers.contains(&order.container_id) => {
                    let lease = now + SignedDuration::from_secs(60);
                    let until = order.until.unwrap_or(lease);
                    self.standing.insert(id.clone(), (order.container_id.clone(), until));
                    self.told.insert(id.clone(), say(ReportState::Injected, ""));
                }
                Stage::Fire => {
                    self.told.insert(id.clone(), say(ReportState::Refused, "ContainerGone"));
                }
            }
        }
    }

    /// It is heard of again. A daemon that starts puts back what its journal lists, before it obeys.
    fn back(&mut self) {
        self.away = false;
        if std::mem::take(&mut self.killed) {
            for id in std::mem::take(&mut self.standing).into_keys() {
                self.told.remove(&id);
            }
        }
    }

    /// Time has passed, or containers have ended.
    fn look(&mut self, containers: &BTreeSet<String>, now: Timestamp) {
        let Self { standing, told, away: _, killed } = self;
        standing.retain(|id, (container, until)| {
            let state = if !containers.contains(container) {
                (ReportState::Failed, "ContainerGone")
            } else if *until <= now && !*killed {
                (ReportState::Recovered, "")
            } else {
                return true;
            };
            let report = Report { state: state.0, reason: state.1.to_owned(), ..Report::default() };
            told.insert(id.clone(), report);
            false
        });
    }
}

impl Nodes for Sim {
    fn labels(&self, _: &str) -> Option<&BTreeMap<String, String>> {
        None
    }
}

impl World for Sim {
    fn namespace(&self, name: &str) -> Option<&NamespaceView> {
        (name == "ns").then_some(&self.namespace)
    }

    fn pods<'a>(&'a self, _: &str) -> Box<dyn Iterator<Item = &'a PodView> + 'a> {
        Box::new(self.seen.values())
    }

    fn pod(&self, _: &str, name: &str) -> Option<&PodView> {
        self.seen.get(name)
    }

    fn held_by<'a>(&'a self, uid: &str) -> Box<dyn Iterator<Item = &'a PodView> + 'a> {
        let uid = uid.to_owned();
        Box::new(self.seen.values().filter(move |pod| pod.held_by.iter().any(|holder| holder.uid == uid)))
    }

    fn owned_by<'a>(&'a self, uid: &str) -> Box<dyn Iterator<Item = &'a PodView> + 'a> {
        let uid = uid.to_owned();
        Box::new(
            self.seen.values().filter(move |pod| pod.owner.as_ref().is_some_and(|owner| owner.uid == uid)),
        )
    }

    fn policies(&self) -> &Policies {
        &self.policies
    }

    fn steady(&self, _: &str) -> Steady {
        self.steady.clone()
    }

    fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    fn daemon(&self, node: &str) -> Daemon {
        if node == "without" || self.without_daemons {
            Daemon::None
        } else if self.node.away {
            Daemon::Unreachable("no route".to_owned())
        } else {
            Daemon::Ready
        }
    }

    fn report(&self, _: &str, id: &str) -> Option<Report> {
        self.reports.get(id).cloned()
    }
}

impl Sim {
    fn new(spec: PodChaosSpec, pods: u32) -> Self {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let mut chaos = PodChaos::new("x", spec);
        chaos.metadata = ObjectMeta {
            name: Some("x".into()),
            namespace: Some("ns".into()),
            uid: Some("chaos-uid".into()),
            generation: Some(1),
            creation_timestamp: Some(Time(now)),
            ..ObjectMeta::default()
        };
        let mut sim = Self {
            now,
            version: 0,
            born: 0,
            pods: BTreeMap::new(),
            seen: BTreeMap::new(),
            namespace: NamespaceView { name: "ns".into(), opted_in: true, ..NamespaceView::default() },
            chaos,
            status: ExperimentStatus::default(),
            outcomes: Outcomes::default(),
            failing: 0,
            gone: false,
            without_daemons: false,
            reports: BTreeMap::new(),
            killed: Vec::new(),
            desired: BTreeMap::new(),
            node: Node::default(),
            policies: Policies::NONE,
            ledger: Ledger::EMPTY,
            steady: Steady::default(),
        };
        for _ in 0..pods {
            sim.birth();
        }
        sim.see();
        sim
    }

    fn birth(&mut self) -> String {
        self.born += 1;
        self.version += 1;
        let name = format!("pod-{:03}", self.born);
        let pod = Pod {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some("ns".into()),
                uid: Some(format!("uid-{}", self.born)),
                resource_version: Some(self.version.to_string()),
                creation_timestamp: Some(Time(self.now)),
                owner_references: Some(vec![OwnerReference {
                    kind: "ReplicaSet".into(),
                    name: "rs".into(),
                    uid: "rs-uid".into(),
                    controller: Some(true),
                    ..OwnerReference::default()
                }]),
                ..ObjectMeta::default()
            },
            spec: Some(PodSpec {
                node_name: Some("node".into()),
                containers: vec![Container {
                    name: "app".into(),
                    image: Some(ORIGINAL.into()),
                    command: Some(vec!["serve".into()]),
                    ..Container::default()
                }],
                ..PodSpec::default()
            }),
            status: None,
        };
        self.pods.insert(name.clone(), pod);
        self.kubelet(&name);
        name
    }

    /// The kubelet catches up: the container runs what the spec says.
    fn kubelet(&mut self, name: &str) {
        let Some(pod) = self.pods.get_mut(name) else { return };
        let image = pod.spec.as_ref().unwrap().containers[0].image.clone().unwrap_or_default();
        let old = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
        if old.is_some_and(|statuses| statuses[0].image == image) {
            return;
        }
        self.version += 1;
        pod.metadata.resource_version = Some(self.version.to_string());
        let ready = if image == ORIGINAL || image == "app:2" { "True" } else { "False" };
        pod.status = Some(PodStatus {
            phase: Some("Running".into()),
            conditions: Some(vec![PodCondition {
                type_: "Ready".into(),
                status: ready.into(),
                ..PodCondition::default()
            }]),
            container_statuses: Some(vec![ContainerStatus {
                name: "app".into(),
                image,
                container_id: Some(format!("containerd://c{}", self.version)),
                ready: ready == "True",
                state: Some(ContainerState {
                    running: Some(ContainerStateRunning { started_at: Some(Time(self.now)) }),
                    ..ContainerState::default()
                }),
                ..ContainerStatus::default()
            }]),
            ..PodStatus::default()
        });
    }

    /// The watch catches up.
    fn see(&mut self) {
        self.seen = self.pods.iter().map(|(name, pod)| (name.clone(), PodView::of(pod))).collect();
    }

    fn all_catch_up(&mut self) {
        for name in self.pods.keys().cloned().collect::<Vec<_>>() {
            self.kubelet(&name);
        }
        self.see();
    }

    fn plan(&self) -> Plan {
        let spec = validate(&self.chaos.spec, "ns");
        plan(Input {
            now: self.now,
            experiment: Experiment::new::<PodChaosSpec>(&self.chaos.metadata, &spec),
            status: &self.status,
            world: self,
            outcomes: &self.outcomes,
            images: &images(),
        })
    }

    /// The containers that run.
    fn containers(&self) -> BTreeSet<String> {
        let statuses = self.pods.values().filter_map(|pod| pod.status.as_ref()?.container_statuses.as_ref());
        statuses.flatten().filter_map(|status| status.container_id.clone()).collect()
    }

    /// The controller would have the node have this; `whole` if nothing else.
    fn order(&mut self, orders: &[Order], whole: bool) {
        for order in orders.iter().filter(|order| order.stage == Stage::Fire) {
            let known = self.status.targets.iter().any(|target| {
                target.uid == order.pod.uid
                    && target.container_id.as_ref() == Some(&order.container_id)
                    && order.id.ends_with(&match target.attempt {
                        Some(attempt) => format!("/{attempt}"),
                        None => order.container_id.trim_start_matches("containerd://").to_owned(),
                    })
            });
            assert!(known, "ordered before the intent was written: {order:?}");
        }
        if whole {
            self.desired.clear();
        }
        self.desired.extend(orders.iter().map(|order| (order.id.clone(), order.clone())));
        self.news();
    }

    /// The node's daemon hears and tells, where it can.
    fn news(&mut self) {
        let containers = self.containers();
        self.node.look(&containers, self.now);
        if !self.node.away && self.lasting_on_containers() {
            self.node.apply(&self.desired, &containers, self.now);
            self.reports = self.node.told.clone();
        }
    }

    fn lasting_on_containers(&self) -> bool {
        self.chaos.spec.action == Action::ContainerFreeze
    }

    /// One turn, as the controller takes it; `crash_after` effects or writes the process dies.
    fn turn(&mut self, crash_after: Option<u32>) {
        let mut left = crash_after;
        let mut survives = || match &mut left {
            Some(0) => false,
            Some(left) => {
                *left -= 1;
                true
            }
            None => true,
        };
        for _ in 0..20 {
            if self.gone {
                return;
            }
            let plan = self.plan();
            assert!(
                plan.effects.is_empty()
                    || self.status.selected_at.is_some()
                    || self.chaos.metadata.deletion_timestamp.is_some(),
                "an effect before the intent was written: {:?}",
                plan.effects
            );
            self.order(&plan.orders, false);
            if plan.effects.is_empty() {
                if !survives() {
                    return self.crash();
                }
                let changed = self.status != plan.status;
                self.status = plan.status;
                if plan.drop_finalizer {
                    self.gone = true;
                    self.order(&[], true);
                    return;
                }
                self.order(&plan.orders, true);
                if !changed {
                    return;
                }
                continue;
            }
            for effect in plan.effects {
                if !survives() {
                    return self.crash();
                }
                self.carry_out(&effect);
            }
            if self.status != plan.status {
                if !survives() {
                    return self.crash();
                }
                self.status = plan.status;
            }
            self.order(&plan.orders, true);
        }
        panic!("a turn does not come to rest: {:?}", self.plan().effects);
    }

    /// What wasn't written is forgotten.
    fn crash(&mut self) {
        self.outcomes = Outcomes::default();
        self.desired.clear();
    }

    fn carry_out(&mut self, effect: &Effect) {
        if self.failing > 0 {
            self.failing -= 1;
            self.outcomes.retry(effect, self.now, "the API server is away".into());
            return;
        }
        let target = effect.pod();
        let there =
            self.pods.get(&target.name).is_some_and(|pod| pod.metadata.uid.as_ref() == Some(&target.uid));
        if !there {
            self.outcomes.record(effect, Outcome::Done { at: self.now, version: 0 });
            return;
        }
        self.version += 1;
        let version = self.version;
        match effect {
            Effect::Delete { .. } | Effect::Evict { .. } => {
                self.killed.push(target.uid.clone());
                self.pods.remove(&target.name);
                self.birth();
            }
            Effect::Inject { holder, .. } => {
                let pod = self.pods.get_mut(&target.name).unwrap();
                substitute::inject(pod, holder, &images()).unwrap();
                pod.metadata.resource_version = Some(version.to_string());
            }
            Effect::Release { holder, .. } => {
                let pod = self.pods.get_mut(&target.name).unwrap();
                substitute::release(pod, holder, &images()).unwrap();
                pod.metadata.resource_version = Some(version.to_string());
            }
        }
        self.outcomes.record(effect, Outcome::Done { at: self.now, version });
    }

    fn wait(&mut self, seconds: i64) {
        self.now += SignedDuration::from_secs(seconds);
        let containers = self.containers();
        self.node.look(&containers, self.now);
    }

    /// The container of a pod is started again.
    fn restart(&mut self, name: &str) {
        self.version += 1;
        let id = format!("containerd://c{}", self.version);
        let Some(pod) = self.pods.get_mut(name) else { return };
        pod.metadata.resource_version = Some(self.version.to_string());
        if let Some(statuses) = pod.status.as_mut().and_then(|status| status.container_statuses.as_mut()) {
            statuses[0].container_id = Some(id);
        }
        let containers = self.containers();
        self.node.look(&containers, self.now);
    }

    /// The container of a pod has ended, and is not started again.
    fn end_container(&mut self, name: &str) {
        let Some(pod) = self.pods.get_mut(name) else { return };
        if let Some(statuses) = pod.status.as_mut().and_then(|status| status.container_statuses.as_mut()) {
            let terminated = ContainerStateTerminated { exit_code: 1, ..ContainerStateTerminated::default() };
            statuses[0].state =
                Some(ContainerState { terminated: Some(terminated), ..ContainerState::default() });
        }
    }

    /// On how many pods something stands.
    fn hit_on_the_node(&self) -> usize {
        let pods = self.node.standing.keys().filter_map(|id| id.split('/').nth(1));
        pods.collect::<BTreeSet<_>>().len()
    }

    fn annotate(&mut self, key: &str, value: Option<&str>) {
        let annotations = self.chaos.metadata.annotations.get_or_insert_default();
        match value {
            Some(value) => annotations.insert(key.into(), value.into()),
            None => annotations.remove(key),
        };
    }

    fn policy(&mut self, spec: Option<ChaosPolicySpec>) {
        self.policies = Policies::new(spec.map(|spec| Policy::of(&ChaosPolicy::new("p", spec))));
    }

    /// As far as it goes, with everybody catching up in between.
    fn settle(&mut self) {
        for _ in 0..4 {
            self.turn(None);
            self.all_catch_up();
        }
    }

    fn delete(&mut self) {
        self.chaos.metadata.deletion_timestamp = Some(Time(self.now));
    }

    fn failed(&self) -> usize {
        self.pods.values().filter(|pod| pod.metadata.annotations.is_some()).count()
    }

    fn assert_untouched(&self) {
        for pod in self.pods.values() {
            let image = pod.spec.as_ref().unwrap().containers[0].image.as_deref();
            assert!(image == Some(ORIGINAL) || image == Some("app:2"), "a foreign image is left: {pod:?}");
            assert_eq!(pod.metadata.labels, None, "a label is left");
            assert_eq!(pod.metadata.annotations, None, "an annotation is left");
        }
    }
}

fn spec(action: Action, mode: Mode, value: Option<&str>) -> PodChaosSpec {
    PodChaosSpec { action, mode, value: value.map(Into::into), ..PodChaosSpec::default() }
}

#[derive(Clone, Debug)]
enum Move {
    Turn(Option<u32>),
    Wait(i64),
    CatchUp,
    See,
    Failing(u32),
    RemoveLabel(usize),
    NewImage(usize),
    DeletePod(usize),
    Birth,
    Pause(bool),
    OptIn(bool),
    Restart(usize),
    Away(bool),
    KillDaemon,
    Halt(bool),
    Policy(Option<(i32, i32)>),
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        6 => proptest::option::of(0_u32..12).prop_map(Move::Turn),
        3 => (0_i64..90).prop_map(Move::Wait),
        4 => Just(Move::CatchUp),
        2 => Just(Move::See),
        1 => (0_u32..6).prop_map(Move::Failing),
        1 => (0_usize..30).prop_map(Move::RemoveLabel),
        1 => (0_usize..30).prop_map(Move::NewImage),
        1 => (0_usize..30).prop_map(Move::DeletePod),
        1 => Just(Move::Birth),
        1 => any::<bool>().prop_map(Move::Pause),
        1 => any::<bool>().prop_map(Move::OptIn),
        1 => (0_usize..30).prop_map(Move::Restart),
        1 => any::<bool>().prop_map(Move::Away),
        1 => Just(Move::KillDaemon),
        1 => any::<bool>().prop_map(Move::Halt),
        1 => proptest::option::of((0_i32..5, 0_i32..101)).prop_map(Move::Policy),
    ];
    proptest::collection::vec(one, 0..60)
}

fn play(sim: &mut Sim, moves: Vec<Move>) {
    for step in moves {
        let name = |sim: &Sim, index: usize| sim.pods.keys().nth(index % sim.pods.len().max(1)).cloned();
        match step {
            Move::Turn(crash) => sim.turn(crash),
            Move::Wait(seconds) => sim.wait(seconds),
            Move::CatchUp => sim.all_catch_up(),
            Move::See => sim.see(),
            Move::Failing(count) => sim.failing = count,
            Move::RemoveLabel(index) => {
                if let Some(name) = name(sim, index) {
                    sim.version += 1;
                    let version = sim.version.to_string();
                    let pod = sim.pods.get_mut(&name).unwrap();
                    if pod.metadata.labels.is_some() {
                        substitute::restore(pod);
                        pod.metadata.resource_version = Some(version);
                    }
                }
            }
            Move::NewImage(index) => {
                if let Some(name) = name(sim, index) {
                    let pod = sim.pods.get_mut(&name).unwrap();
                    if pod.metadata.labels.is_none() {
                        pod.spec.as_mut().unwrap().containers[0].image = Some("app:2".into());
                    }
                }
            }
            Move::DeletePod(index) => {
                if let Some(name) = name(sim, index) {
                    sim.pods.remove(&name);
                    sim.birth();
                }
            }
            Move::Birth => {
                sim.birth();
            }
            Move::Pause(on) => sim.annotate(names::PAUSE, on.then_some("true")),
            Move::OptIn(on) => sim.namespace.opted_in = on,
            Move::Restart(index) => {
                if let Some(name) = name(sim, index) {
                    sim.restart(&name);
                }
            }
            Move::Away(true) => sim.node.away = true,
            Move::Away(false) => {
                sim.node.back();
                sim.news();
            }
            Move::KillDaemon => {
                sim.node.away = true;
                sim.node.killed = true;
            }
            Move::Halt(on) => sim.namespace.halt = on.then(|| "incident".to_owned()),
            Move::Policy(limit) => sim.policy(limit.map(|(targets, percent)| ChaosPolicySpec {
                limits: Some(Limits {
                    max_targets: Some(targets),
                    max_percent_per_workload: Some(percent),
                    ..Limits::default()
                }),
                ..ChaosPolicySpec::default()
            })),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// Whatever happened meanwhile, deleting the experiment ends, and leaves nothing behind.
    #[test]
    fn deletion_always_ends_with_every_pod_as_it_was(
        mode in prop_oneof![Just((Mode::All, None)), Just((Mode::One, None)), Just((Mode::Fixed, Some("3"))), Just((Mode::FixedPercent, Some("50")))],
        duration in proptest::option::of(Just("30s".to_owned())),
        pods in 0_u32..8,
        moves in moves(),
    ) {
        let mut spec = spec(Action::PodFailure, mode.0, mode.1);
        spec.duration = duration;
        let mut sim = Sim::new(spec, pods);
        play(&mut sim, moves);
        sim.failing = 0;
        sim.delete();
        for _ in 0..50 {
            sim.wait(11);
            sim.all_catch_up();
            sim.turn(None);
        }
        prop_assert!(sim.gone, "the object is stuck: {:?}", sim.status);
        sim.assert_untouched();
    }

    /// A fault with a duration ends by itself, whatever happened meanwhile.
    #[test]
    fn a_fault_with_a_duration_ends_by_itself(pods in 1_u32..8, moves in moves()) {
        let mut spec = spec(Action::PodFailure, Mode::All, None);
        spec.duration = Some("30s".to_owned());
        let mut sim = Sim::new(spec, pods);
        play(&mut sim, moves);
        sim.failing = 0;
        sim.namespace.opted_in = true;
        sim.annotate(names::PAUSE, None);
        for _ in 0..100 {
            sim.wait(11);
            sim.all_catch_up();
            sim.turn(None);
        }
        prop_assert!(sim.status.completed_at.is_some(), "it does not end: {:?}", sim.status);
        let completed = sim.status.conditions.iter().find(|condition| condition.type_ == "Completed");
        prop_assert_eq!(completed.map(|condition| condition.status.as_str()), Some("True"));
        sim.assert_untouched();
    }

    /// The same of a fault that a node holds: deleting it ends, and nothing stands or is ordered any more.
    #[test]
    fn deletion_always_ends_with_nothing_left_on_a_node(
        mode in prop_oneof![Just((Mode::All, None)), Just((Mode::One, None)), Just((Mode::Fixed, Some("3")))],
        duration in proptest::option::of(Just("30s".to_owned())),
        pods in 0_u32..8,
        away: bool,
        moves in moves(),
    ) {
        let mut spec = spec(Action::ContainerFreeze, mode.0, mode.1);
        spec.duration = duration;
        let mut sim = Sim::new(spec, pods);
        play(&mut sim, moves);
        // Even if the node is never heard of again.
        if away {
            sim.node.away = true;
        } else {
            sim.node.back();
        }
        sim.delete();
        for _ in 0..30 {
            sim.wait(11);
            sim.all_catch_up();
            sim.turn(None);
        }
        prop_assert!(sim.gone, "the object is stuck: {:?}", sim.status);
        prop_assert!(sim.desired.is_empty());
        // What a killed daemon left goes when it starts.
        sim.node.back();
        prop_assert!(sim.node.standing.is_empty(), "left standing: {:?}", sim.node.standing);
    }

    /// The status calls nothing put back that stands, however silent the node is.
    #[test]
    fn what_is_called_put_back_does_not_stand(
        duration in proptest::option::of(Just("30s".to_owned())),
        pods in 1_u32..8,
        moves in moves(),
    ) {
        let mut spec = spec(Action::ContainerFreeze, Mode::All, None);
        spec.duration = duration;
        let mut sim = Sim::new(spec, pods);
        for step in moves {
            play(&mut sim, vec![step]);
            sim.wait(0);
            for target in &sim.status.targets {
                let put_back = matches!(target.phase, TargetPhase::Recovered | TargetPhase::Released);
                let stands = sim.node.standing.values().any(|(id, _)| Some(id) == target.container_id.as_ref());
                prop_assert!(!put_back || !stands, "{target:?}: {:?}", sim.node.standing);
            }
        }
    }

    /// A fault that a node holds for a `duration` ends by itself, whatever happened meanwhile.
    #[test]
    fn a_nodes_fault_with_a_duration_ends_by_itself(pods in 1_u32..8, moves in moves()) {
        let mut spec = spec(Action::ContainerFreeze, Mode::All, None);
        spec.duration = Some("30s".to_owned());
        let mut sim = Sim::new(spec, pods);
        play(&mut sim, moves);
        sim.namespace.opted_in = true;
        sim.annotate(names::PAUSE, None);
        sim.node.back();
        for _ in 0..40 {
            sim.wait(11);
            sim.all_catch_up();
            sim.turn(None);
        }
        prop_assert!(sim.status.completed_at.is_some(), "it does not end: {:?}", sim.status);
        prop_assert!(sim.desired.is_empty() && sim.node.standing.is_empty());
    }

    /// Never more pods than were drawn are hit on nodes at once.
    #[test]
    fn the_number_drawn_is_never_exceeded_on_nodes(n in 1_u32..5, pods in 1_u32..8, moves in moves()) {
        let mut sim = Sim::new(spec(Action::ContainerFreeze, Mode::Fixed, Some(&n.to_string())), pods);
        for step in moves {
            play(&mut sim, vec![step]);
            prop_assert!(sim.hit_on_the_node() <= n as usize, "{:?}", sim.node.standing);
        }
    }

    /// As long as it is wanted, and its node is there, every container of every pod is hit.
    #[test]
    fn what_is_wanted_is_there_again(pods in 1_u32..8, moves in moves()) {
        let mut sim = Sim::new(spec(Action::ContainerFreeze, Mode::All, None), pods);
        play(&mut sim, moves);
        // What has failed or was released meanwhile stays so.
        let lost = |sim: &Sim| sim.status.targets.iter().any(|target| {
            matches!(target.phase, TargetPhase::Failed | TargetPhase::Released | TargetPhase::Skipped)
        });
        sim.node.back();
        sim.namespace.opted_in = true;
        sim.namespace.halt = None;
        sim.policy(None);
        sim.annotate(names::PAUSE, None);
        for _ in 0..20 {
            sim.wait(1);
            sim.all_catch_up();
            sim.turn(None);
        }
        prop_assert!(sim.status.completed_at.is_some() || lost(&sim) || sim.hit_on_the_node() == sim.pods.len(), "{:?}", sim.status);
    }

    /// Never more pods than were drawn are failed at once.
    #[test]
    fn the_number_drawn_is_never_exceeded(n in 1_u32..5, pods in 1_u32..8, moves in moves()) {
        let mut sim = Sim::new(spec(Action::PodFailure, Mode::Fixed, Some(&n.to_string())), pods);
        for step in moves {
            play(&mut sim, vec![step]);
            prop_assert!(sim.failed() <= n as usize, "{} are failed", sim.failed());
        }
    }

    /// A pod-kill kills exactly as many as it drew, once, however often the process dies in between.
    #[test]
    fn a_kill_is_neither_lost_nor_done_twice(n in 1_u32..5, pods in 1_u32..8, crashes in proptest::collection::vec(0_u32..6, 0..12)) {
        let mut sim = Sim::new(spec(Action::PodKill, Mode::Fixed, Some(&n.to_string())), pods);
        for crash in crashes {
            sim.turn(Some(crash));
            sim.see();
        }
        for _ in 0..5 {
            sim.turn(None);
            sim.all_catch_up();
            sim.wait(1);
        }
        prop_assert_eq!(sim.killed.len(), n.min(pods) as usize);
        prop_assert_eq!(sim.status.phase, Some(Phase::Completed));
        prop_assert!(sim.status.targets.iter().all(|target| target.phase == TargetPhase::Killed));
    }

    /// The status of a trigger says what its daemon said: armed; fired, at which call and by whom; how it ended. However
    /// often the controller dies, however late the words come.
    #[test]
    fn a_triggers_status_says_what_its_daemon_said(
        steps in proptest::collection::vec((any::<bool>(), 0_i64..6, proptest::option::of(0_u32..4)), 1..10),
        fires in any::<bool>(),
    ) {
        let mut sim = triggered();
        let id = sim.plan().orders[0].id.clone();
        sim.turn(None);
        let words: &[Word] =
            if fires { &[Word::Armed, Word::Fired, Word::Ended] } else { &[Word::Armed, Word::NotFired] };
        let mut said = None;
        let mut rest = words.iter();
        for (speaks, seconds, crash) in steps {
            if speaks && let Some(word) = rest.next() {
                said = Some(*word);
                sim.reports.insert(id.clone(), word.report(&sim));
            }
            sim.wait(seconds);
            if crash.is_some() {
                sim.turn(crash);
            }
            sim.turn(None);
            let (target, orders) = (&sim.status.targets[0], sim.plan().orders);
            let (phase, reason) = (target.phase, target.reason.as_deref());
            let fired_at = target.receipt.as_ref().and_then(|receipt| receipt.fired_at_count);
            let until = orders.first().map(|order| (order.stage, order.until.is_some()));
            match said {
                None => prop_assert_eq!(
                    (phase, reason, fired_at, until),
                    (TargetPhase::Selected, None, None, Some((Stage::Fire, true)))
                ),
                Some(Word::Armed) => prop_assert_eq!(
                    (phase, reason, fired_at, until),
                    (TargetPhase::Selected, Some("Armed"), None, Some((Stage::Fire, true)))
                ),
                // It has no end of its own any more: its process is waited for.
                Some(Word::Fired) => prop_assert_eq!(
                    (phase, reason, fired_at, until),
                    (TargetPhase::Selected, Some("Fired"), Some(3), Some((Stage::Fire, false)))
                ),
                Some(Word::Ended) => {
                    prop_assert_eq!((phase, reason, fired_at, until), (TargetPhase::Killed, None, Some(3), None));
                    prop_assert_eq!(sim.status.phase, Some(Phase::Completed));
                }
                Some(Word::NotFired) => {
                    prop_assert_eq!(
                        (phase, reason, fired_at, until),
                        (TargetPhase::Failed, Some("NotTriggered"), None, None)
                    );
                    prop_assert!(target.message.as_deref().unwrap_or_default().contains("2 calls so far"));
                    prop_assert_eq!(sim.status.phase, Some(Phase::Failed));
                }
            }
            let pid = target.receipt.as_ref().and_then(|receipt| receipt.processes.first()).map(|one| one.pid);
            prop_assert_eq!(pid, fired_at.map(|_| 42));
        }
    }

    /// The same input gives the same plan, and a plan changes nothing by being made again.
    #[test]
    fn a_plan_is_deterministic(pods in 0_u32..8, moves in moves()) {
        let mut sim = Sim::new(spec(Action::PodFailure, Mode::All, None), pods);
        play(&mut sim, moves);
        prop_assert_eq!(sim.plan(), sim.plan());
    }
}

#[test]
fn a_halt_recovers_and_ends_the_experiment_and_says_why() {
    let mut sim = Sim::new(spec(Action::PodFailure, Mode::All, None), 3);
    sim.settle();
    assert_eq!(sim.failed(), 3);
    sim.namespace.halt = Some("incident 4711".into());
    sim.settle();
    sim.assert_untouched();
    assert_eq!(sim.status.phase, Some(Phase::Halted));
    let condition =
        |kind: &str| sim.status.conditions.iter().find(|condition| condition.type_ == kind).unwrap().clone();
    assert_eq!(
        (condition("Completed").status.as_str(), condition("Completed").reason.as_str()),
        ("True", "Halted")
    );
    assert_eq!(condition("Failed").status, "True");
    assert!(sim.status.message.as_ref().unwrap().contains("incident 4711"));
    // It stays so.
    sim.namespace.halt = None;
    sim.settle();
    assert_eq!((sim.failed(), sim.status.phase), (0, Some(Phase::Halted)));
}

#[test]
fn with_on_halt_resume_it_goes_on_when_the_halt_is_lifted() {
    let mut spec = spec(Action::PodFailure, Mode::All, None);
    spec.on_halt = Some(squall_api::probe::OnHalt::Resume);
    let mut sim = Sim::new(spec, 3);
    sim.settle();
    sim.namespace.halt = Some(String::new());
    sim.settle();
    sim.assert_untouched();
    assert_eq!((sim.status.phase, sim.status.completed_at.is_some()), (Some(Phase::Halted), false));
    sim.namespace.halt = None;
    sim.settle();
    assert_eq!((sim.failed(), sim.status.phase), (3, Some(Phase::Injected)));
}

#[test]
fn where_it_is_halted_nothing_begins() {
    for action in [Action::PodFailure, Action::PodKill, Action::ContainerKill] {
        let mut sim = Sim::new(spec(action, Mode::All, None), 3);
        sim.namespace.halt = Some("incident".into());
        sim.settle();
        assert_eq!(sim.status.phase, Some(Phase::Halted), "{action:?}");
        assert!(sim.killed.is_empty());
        sim.assert_untouched();
    }
}

#[test]
fn a_kill_that_was_chosen_and_not_begun_is_stopped_by_a_halt() {
    let mut sim = Sim::new(spec(Action::PodKill, Mode::All, None), 3);
    sim.turn(Some(1));
    assert!(sim.status.selected_at.is_some());
    sim.namespace.halt = Some("incident".into());
    sim.settle();
    assert!(sim.killed.is_empty());
    assert_eq!(sim.status.phase, Some(Phase::Halted));
    assert!(sim.status.targets.iter().all(|target| target.phase == TargetPhase::Skipped));
}

#[test]
fn a_window_that_closes_recovers_and_is_looked_at_in_time() {
    let mut spec = spec(Action::PodFailure, Mode::All, None);
    spec.duration = Some("24h".into());
    let mut sim = Sim::new(spec, 2);
    let window = Window { from: "00:00".into(), to: "00:05".into(), ..Window::default() };
    sim.policy(Some(ChaosPolicySpec { windows: Some(vec![window]), ..ChaosPolicySpec::default() }));
    sim.settle();
    assert_eq!(sim.failed(), 2);
    assert_eq!(sim.plan().wake, Some("2026-01-01T00:05:00Z".parse().unwrap()));
    sim.wait(300);
    sim.settle();
    sim.assert_untouched();
    assert_eq!(sim.status.phase, Some(Phase::Halted));
    assert_eq!(sim.status.halted.as_ref().unwrap().reason, "WindowClosed");
}

#[test]
fn a_policy_never_forbids_recovery() {
    let nothing = ChaosPolicySpec {
        allow: Some(Allow { actions: Some(vec![]), users: Some(vec![]), ..Allow::default() }),
        windows: Some(vec![]),
        ..ChaosPolicySpec::default()
    };
    for end in [true, false] {
        let mut sim = Sim::new(spec(Action::PodFailure, Mode::All, None), 3);
        sim.settle();
        assert_eq!(sim.failed(), 3);
        sim.policy(Some(nothing.clone()));
        if end {
            sim.delete();
        } else {
            sim.annotate(names::PAUSE, Some("true"));
        }
        sim.settle();
        sim.assert_untouched();
        assert_eq!(sim.gone, end);
    }
}

#[test]
fn what_a_policy_refuses_fails_with_its_words_and_hits_nothing() {
    let mut sim = Sim::new(spec(Action::PodFailure, Mode::All, None), 5);
    let limits = Limits { max_percent_per_workload: Some(10), ..Limits::default() };
    sim.policy(Some(ChaosPolicySpec { limits: Some(limits), ..ChaosPolicySpec::default() }));
    sim.settle();
    assert_eq!(sim.status.phase, Some(Phase::Failed));
    assert_eq!(
        sim.status.message.as_deref(),
        Some(
            "nothing was hit: ChaosPolicy p, limits.maxPercentPerWorkload: found 1 of the 5 pods of ReplicaSet/rs; \
             allowed: 0 (10 % of 5 is 0)"
        )
    );
    let failed = sim.status.conditions.iter().find(|condition| condition.type_ == "Failed").unwrap();
    assert_eq!(failed.reason, "PolicyRefused");
    sim.assert_untouched();
}

#[test]
fn births_stay_within_a_policy() {
    let mut sim = Sim::new(spec(Action::PodFailure, Mode::All, None), 2);
    let limits = Limits { max_targets: Some(2), ..Limits::default() };
    sim.policy(Some(ChaosPolicySpec { limits: Some(limits), ..ChaosPolicySpec::default() }));
    sim.settle();
    sim.birth();
    sim.all_catch_up();
    sim.settle();
    assert_eq!(sim.failed(), 2);
}

#[test]
fn a_pod_whose_label_was_removed_by_hand_is_not_hit_again() {
    let mut sim = Sim::new(spec(Action::PodFailure, Mode::All, None), 2);
    sim.turn(None);
    sim.all_catch_up();
    sim.turn(None);
    assert_eq!(sim.status.phase, Some(Phase::Injected));
    play(
        &mut sim,
        vec![
            Move::RemoveLabel(0),
            Move::CatchUp,
            Move::Turn(None),
            Move::Wait(60),
            Move::CatchUp,
            Move::Turn(None),
        ],
    );
    assert_eq!(sim.failed(), 1);
    assert_eq!(sim.status.targets[0].phase, TargetPhase::Released);
    assert_eq!(sim.status.targets[0].reason.as_deref(), Some("LabelRemoved"));
}

#[test]
fn pausing_recovers_and_resuming_injects_again_without_stopping_the_clock() {
    let mut spec = spec(Action::PodFailure, Mode::All, None);
    spec.duration = Some("60s".into());
    let mut sim = Sim::new(spec, 3);
    for _ in 0..2 {
        sim.turn(None);
        sim.all_catch_up();
    }
    assert_eq!(sim.failed(), 3);
    let ends = sim.status.ends_at.clone();
    sim.annotate(names::PAUSE, Some("true"));
    for _ in 0..3 {
        sim.turn(None);
        sim.all_catch_up();
    }
    assert_eq!(sim.status.phase, Some(Phase::Paused));
    sim.assert_untouched();
    sim.wait(10);
    sim.annotate(names::PAUSE, None);
    for _ in 0..3 {
        sim.turn(None);
        sim.all_catch_up();
    }
    assert_eq!((sim.failed(), sim.status.phase), (3, Some(Phase::Injected)));
    assert_eq!(sim.status.ends_at, ends);
}

#[test]
fn a_withdrawn_opt_in_recovers_and_says_so() {
    let mut sim = Sim::new(spec(Action::PodFailure, Mode::All, None), 2);
    for _ in 0..2 {
        sim.turn(None);
        sim.all_catch_up();
    }
    sim.namespace.opted_in = false;
    for _ in 0..3 {
        sim.turn(None);
        sim.all_catch_up();
    }
    sim.assert_untouched();
    assert!(sim.status.targets.iter().all(|target| target.reason.as_deref() == Some("NotOptedIn")));
    assert_eq!(
        sim.status.conditions.iter().find(|c| c.type_ == "Completed").map(|c| c.reason.as_str()),
        Some("Aborted")
    );
}

#[test]
fn a_dry_run_hits_nothing_and_says_what_it_would() {
    let mut spec = spec(Action::PodKill, Mode::Fixed, Some("2"));
    spec.dry_run = Some(true);
    let mut sim = Sim::new(spec, 5);
    sim.turn(None);
    assert!(sim.killed.is_empty());
    assert_eq!(sim.status.phase, Some(Phase::Completed));
    let count = |phase| sim.status.targets.iter().filter(|target| target.phase == phase).count();
    assert_eq!((count(TargetPhase::Selected), count(TargetPhase::Skipped)), (2, 3));
}

#[test]
fn without_targets_a_one_shot_gives_up_ten_seconds_after_the_first_look_and_says_why() {
    let mut sim = Sim::new(spec(Action::PodKill, Mode::One, None), 0);
    let looks_at = |sim: &mut Sim, seconds, phase| {
        sim.wait(seconds);
        sim.turn(None);
        assert_eq!(sim.status.phase, Some(phase), "{:?}", sim.status);
    };
    // The controller was away for a minute: nobody has looked yet.
    looks_at(&mut sim, 60, Phase::Pending);
    looks_at(&mut sim, 9, Phase::Pending);
    // A pause is no look, and what comes after it is the first again.
    sim.annotate(names::PAUSE, Some("true"));
    looks_at(&mut sim, 60, Phase::Paused);
    sim.annotate(names::PAUSE, None);
    looks_at(&mut sim, 60, Phase::Pending);
    looks_at(&mut sim, 9, Phase::Pending);
    looks_at(&mut sim, 1, Phase::Failed);
    assert_eq!(
        sim.status.conditions.iter().find(|c| c.type_ == "Completed").map(|c| c.reason.as_str()),
        Some("NoTargets")
    );
}

#[test]
fn more_than_the_limit_hits_nothing() {
    let mut sim = Sim::new(spec(Action::PodKill, Mode::All, None), 4001);
    sim.turn(None);
    assert!(sim.killed.is_empty());
    assert!(sim.status.message.as_deref().unwrap_or_default().contains("4001"), "{:?}", sim.status.message);
}

#[test]
fn a_container_is_ordered_once_and_reported() {
    let mut sim = Sim::new(spec(Action::ContainerKill, Mode::One, None), 3);
    let first = sim.plan();
    assert!(
        first.orders.iter().all(|order| order.stage == Stage::Arm) && first.orders.len() == 1,
        "{:?}",
        first.orders
    );
    sim.turn(None);
    let orders = sim.plan().orders;
    assert!(orders.len() == 1 && orders[0].stage == Stage::Fire, "{orders:?}");
    sim.reports.insert(
        orders[0].id.clone(),
        Report { state: ReportState::Done, exit_code: Some(137), exited: Some(sim.now), ..Report::default() },
    );
    sim.turn(None);
    assert_eq!(sim.status.phase, Some(Phase::Completed));
    assert_eq!(sim.status.targets[0].exit_code, Some(137));
    assert!(sim.plan().orders.is_empty());
}

#[test]
fn a_node_without_a_daemon_is_named_within_ten_seconds() {
    let mut sim = Sim::new(spec(Action::ContainerKill, Mode::One, None), 1);
    let name = sim.pods.keys().next().cloned().unwrap();
    sim.pods.get_mut(&name).unwrap().spec.as_mut().unwrap().node_name = Some("without".into());
    sim.see();
    sim.turn(None);
    sim.wait(9);
    sim.turn(None);
    assert_eq!(sim.status.phase, Some(Phase::Failed));
    assert!(
        sim.status.message.as_deref().unwrap_or_default().contains("without"),
        "{:?}",
        sim.status.message
    );
}

#[test]
fn a_daemon_that_goes_with_the_order_is_missed_within_ten_seconds_and_the_order_stays_till_then() {
    let mut sim = Sim::new(spec(Action::ContainerKill, Mode::One, None), 1);
    sim.turn(None);
    assert!(sim.status.targets[0].ordered_at.is_some());
    sim.without_daemons = true;
    sim.wait(5);
    sim.turn(None);
    assert_eq!(sim.plan().orders.len(), 1, "a daemon that is being replaced would forget what it did");
    sim.wait(4);
    sim.turn(None);
    assert_eq!(sim.status.phase, Some(Phase::Failed));
    assert_eq!(sim.status.targets[0].reason.as_deref(), Some("NoDaemon"));
}

/// What a daemon has to say of a trigger.
#[derive(Clone, Copy, Debug)]
enum Word {
    Armed,
    Fired,
    Ended,
    NotFired,
}

impl Word {
    fn report(self, sim: &Sim) -> Report {
        let process = ProcessReceipt { pid: 42, comm: "app".into(), ..ProcessReceipt::default() };
        let receipt = Receipt {
            evidence: "ebpf".into(),
            signal: 9,
            processes: vec![process],
            total: 1,
            fired_at_count: Some(3),
            ..Receipt::default()
        };
        let fired = Report { receipt: Some(receipt), ..Report::default() };
        match self {
            Self::Armed => Report { message: "armed".into(), ..Report::default() },
            Self::Fired => Report { message: "fired".into(), ..fired },
            Self::Ended => {
                Report { state: ReportState::Done, exit_code: Some(137), exited: Some(sim.now), ..fired }
            }
            Self::NotFired => Report {
                state: ReportState::Failed,
                reason: "NotTriggered".into(),
                message: "no process called fsync in time (2 calls so far)".into(),
                ..Report::default()
            },
        }
    }
}

fn triggered() -> Sim {
    let trigger = Trigger { syscall: Some("fsync".into()), nth: Some(3), ..Trigger::default() };
    let spec = PodChaosSpec {
        trigger: Some(trigger),
        duration: Some("60s".into()),
        ..spec(Action::ContainerKill, Mode::One, None)
    };
    Sim::new(spec, 1)
}

#[test]
fn a_trigger_that_nobody_tells_of_any_more_is_given_up_and_one_that_fired_is_waited_for() {
    for (word, patience) in [(Word::Armed, 70), (Word::Fired, 190)] {
        let mut sim = triggered();
        sim.turn(None);
        let id = sim.plan().orders[0].id.clone();
        sim.reports.insert(id, word.report(&sim));
        sim.wait(patience - 1);
        sim.turn(None);
        assert_eq!(sim.status.targets[0].phase, TargetPhase::Selected, "{word:?}");
        sim.wait(1);
        sim.turn(None);
        assert_eq!(sim.status.targets[0].reason.as_deref(), Some("TimedOut"), "{word:?}");
    }
}

fn frozen(pods: u32) -> Sim {
    let mut sim = Sim::new(spec(Action::ContainerFreeze, Mode::All, None), pods);
    sim.turn(None);
    sim.turn(None);
    assert_eq!((sim.hit_on_the_node(), sim.status.phase), (pods as usize, Some(Phase::Injected)));
    sim
}

#[test]
fn a_container_that_is_started_again_is_followed() {
    let mut sim = frozen(2);
    let name = sim.pods.keys().next().cloned().unwrap();
    sim.restart(&name);
    assert_eq!(sim.hit_on_the_node(), 1);
    sim.turn(None);
    assert_eq!(
        sim.status.targets[0].phase,
        TargetPhase::Injected,
        "the watch hasn't told yet, nor has the node"
    );
    sim.news();
    sim.turn(None);
    assert_eq!(sim.status.targets[0].phase, TargetPhase::Selected);
    sim.see();
    sim.turn(None);
    // What the node has told.
    sim.turn(None);
    assert_eq!((sim.hit_on_the_node(), sim.status.phase), (2, Some(Phase::Injected)));
    assert_eq!(sim.desired.len(), 2, "the old container is ordered no more");
}

#[test]
fn a_pod_with_a_deletion_mark_is_thawed_at_once() {
    let mut sim = frozen(2);
    sim.pods.values_mut().next().unwrap().metadata.deletion_timestamp = Some(Time(sim.now));
    sim.see();
    sim.turn(None);
    assert_eq!((sim.hit_on_the_node(), sim.status.targets[0].phase), (1, TargetPhase::Gone));
}

#[test]
fn a_protected_pod_is_put_back_and_not_hit_again() {
    let mut sim = frozen(2);
    let labels = [(names::PROTECT.to_owned(), "true".to_owned())];
    sim.pods.values_mut().next().unwrap().metadata.labels = Some(labels.into());
    sim.see();
    for _ in 0..3 {
        sim.turn(None);
    }
    assert_eq!(sim.hit_on_the_node(), 1);
    assert_eq!(sim.status.targets[0].phase, TargetPhase::Released);
    assert_eq!(sim.status.targets[0].reason.as_deref(), Some("Protected"));
}

#[test]
fn what_a_silent_node_put_back_is_not_called_recovered_before_it_says_so() {
    for without_daemons in [false, true] {
        let mut sim = frozen(1);
        (sim.node.away, sim.node.killed, sim.without_daemons) = (true, true, without_daemons);
        sim.turn(None);
        let message = |sim: &Sim| sim.status.targets[0].message.clone().unwrap_or_default();
        assert_eq!(sim.status.targets[0].phase, TargetPhase::Injected);
        assert!(message(&sim).contains("can't be reached"), "{}", message(&sim));
        sim.annotate(names::PAUSE, Some("true"));
        sim.turn(None);
        sim.wait(600);
        sim.turn(None);
        assert_eq!((sim.status.phase, sim.hit_on_the_node()), (Some(Phase::Recovering), 1));
        assert!(
            message(&sim).contains("not seen") && message(&sim).contains("node node"),
            "{}",
            message(&sim)
        );
        let told = sim.status.message.clone().unwrap_or_default();
        assert!(told.contains("node node"), "{told}");
        sim.without_daemons = false;
        sim.node.back();
        sim.news();
        sim.turn(None);
        assert_eq!((sim.status.phase, sim.hit_on_the_node()), (Some(Phase::Paused), 0));
        assert!(!message(&sim).contains("not seen"), "{}", message(&sim));
    }
}

#[test]
fn a_silent_node_does_not_hold_up_a_deletion_and_an_event_names_what_nobody_has_seen() {
    let mut sim = frozen(1);
    (sim.node.away, sim.node.killed, sim.without_daemons) = (true, true, true);
    sim.delete();
    sim.turn(None);
    assert!(!sim.gone, "its daemon is perhaps being replaced");
    sim.wait(9);
    let plan = sim.plan();
    let note = plan.notes.iter().find(|note| note.reason == "NotSeenRecovered").expect("it is told");
    assert!(note.message.contains("node node") && note.message.contains("pod-001"), "{}", note.message);
    sim.turn(None);
    assert!(sim.gone && sim.desired.is_empty());
}

#[test]
fn a_container_that_has_ended_is_put_back_though_its_node_is_silent() {
    let mut sim = frozen(1);
    (sim.node.away, sim.node.killed) = (true, true);
    sim.annotate(names::PAUSE, Some("true"));
    sim.turn(None);
    assert_eq!(sim.status.phase, Some(Phase::Recovering));
    let name = sim.pods.keys().next().cloned().unwrap();
    sim.end_container(&name);
    sim.see();
    sim.turn(None);
    assert_eq!(sim.status.phase, Some(Phase::Paused), "{:?}", sim.status);
}

#[test]
fn what_a_node_gave_up_is_injected_again_when_it_is_back() {
    let mut sim = frozen(1);
    sim.node.away = true;
    sim.wait(61);
    assert_eq!(sim.hit_on_the_node(), 0);
    sim.node.away = false;
    sim.reports = sim.node.told.clone();
    sim.turn(None);
    // What the node has told.
    sim.turn(None);
    assert_eq!((sim.hit_on_the_node(), sim.status.phase), (1, Some(Phase::Injected)));
    assert_eq!(sim.status.interruptions, Some(1));
}

#[test]
fn pausing_takes_it_back_and_resuming_orders_it_by_another_name() {
    let mut sim = frozen(1);
    let first: Vec<String> = sim.desired.keys().cloned().collect();
    sim.annotate(names::PAUSE, Some("true"));
    sim.turn(None);
    sim.turn(None);
    assert_eq!((sim.status.phase, sim.hit_on_the_node()), (Some(Phase::Paused), 0));
    sim.annotate(names::PAUSE, None);
    sim.turn(None);
    // What the node has told.
    sim.turn(None);
    assert_eq!((sim.status.phase, sim.hit_on_the_node()), (Some(Phase::Injected), 1));
    assert!(!sim.desired.keys().any(|id| first.contains(id)), "a daemon never injects the same again");
}

#[test]
fn an_order_says_when_its_node_ends_it_by_itself() {
    let mut spec = spec(Action::ContainerFreeze, Mode::All, None);
    spec.duration = Some("5m".into());
    let mut sim = Sim::new(spec, 1);
    sim.turn(None);
    sim.turn(None);
    let ends = sim.status.ends_at.clone().unwrap().0;
    let until = sim.desired.values().next().unwrap().until.unwrap();
    assert!(until >= ends && until <= ends + SignedDuration::from_secs(5), "{until} and {ends}");
    sim.chaos.spec.duration = Some("1m".into());
    sim.chaos.metadata.generation = Some(2);
    sim.turn(None);
    let sooner = sim.desired.values().next().unwrap().until.unwrap();
    assert_eq!(until.duration_since(sooner), SignedDuration::from_secs(240));
}

/// An experiment that wants something steady, of one pod.
fn with_steady_state(action: Action, change: impl FnOnce(&mut PodChaosSpec)) -> Sim {
    let mut spec = spec(action, Mode::One, None);
    let probe = serde_json::json!([{ "availability": { "podSelector": {}, "below": 1 } }]);
    spec.steady_state = serde_json::from_value(probe).unwrap();
    change(&mut spec);
    Sim::new(spec, 1)
}

fn well(sim: &mut Sim) {
    sim.steady = Steady { health: Health::Healthy(String::new()), settled: Some(sim.now) };
}

fn unwell(sim: &mut Sim) {
    sim.steady = Steady { health: Health::Unhealthy("status 503".into()), settled: Some(sim.now) };
}

fn told(sim: &Sim) -> (Option<Phase>, String) {
    (sim.status.phase, sim.status.message.clone().unwrap_or_default())
}

#[test]
fn nothing_begins_before_the_steady_state_was_seen() {
    let mut sim = with_steady_state(Action::PodKill, |_| ());
    sim.turn(None);
    assert_eq!(told(&sim), (Some(Phase::Pending), "looking whether spec.steadyState holds".into()));
    unwell(&mut sim);
    sim.turn(None);
    assert_eq!(told(&sim).0, Some(Phase::Halted));
    assert!(told(&sim).1.contains("nothing was hit: spec.steadyState: status 503"), "{}", told(&sim).1);
    sim.assert_untouched();
}

#[test]
fn what_goes_wrong_during_a_fault_halts_it_with_the_evidence() {
    let mut sim = with_steady_state(Action::PodFailure, |_| ());
    well(&mut sim);
    for _ in 0..2 {
        sim.turn(None);
        sim.all_catch_up();
    }
    assert_eq!(sim.status.targets.len(), 1);
    unwell(&mut sim);
    for _ in 0..3 {
        sim.turn(None);
        sim.all_catch_up();
    }
    assert_eq!(told(&sim), (Some(Phase::Halted), "spec.steadyState: status 503".into()));
    sim.assert_untouched();
}

#[test]
fn the_steady_state_is_looked_at_once_more_after_the_last_thing_that_was_done() {
    for (holds, phase) in [(true, Phase::Completed), (false, Phase::Halted)] {
        let mut sim = with_steady_state(Action::PodKill, |_| ());
        well(&mut sim);
        sim.wait(1);
        for _ in 0..3 {
            sim.turn(None);
            sim.all_catch_up();
        }
        assert_eq!(sim.killed.len(), 1);
        // It was seen before the kill, which says nothing.
        assert_eq!(told(&sim).0, Some(Phase::Recovering), "{:?}", sim.status);
        assert!(told(&sim).1.contains("after it") && sim.plan().wake.is_some());
        sim.wait(1);
        if holds {
            well(&mut sim)
        } else {
            unwell(&mut sim)
        }
        sim.turn(None);
        assert_eq!(told(&sim).0, Some(phase), "{:?}", sim.status);
        assert_eq!(told(&sim).1.contains("after it: status 503"), !holds);
    }
}

#[test]
fn a_new_leader_that_has_not_looked_yet_lifts_no_halt() {
    let mut sim = with_steady_state(Action::PodFailure, |spec| spec.on_halt = Some(OnHalt::Resume));
    well(&mut sim);
    for _ in 0..3 {
        sim.turn(None);
        sim.all_catch_up();
    }
    unwell(&mut sim);
    for _ in 0..3 {
        sim.turn(None);
        sim.all_catch_up();
    }
    assert_eq!(told(&sim).0, Some(Phase::Halted));
    sim.crash();
    sim.steady = Steady::default();
    sim.turn(None);
    assert_eq!(told(&sim).0, Some(Phase::Halted));
    sim.assert_untouched();
    well(&mut sim);
    for _ in 0..3 {
        sim.turn(None);
        sim.all_catch_up();
    }
    assert_eq!(told(&sim).0, Some(Phase::Injected), "{:?}", sim.status);
}

#[test]
fn nothing_begins_before_what_a_policy_looks_at_was_seen() {
    let policy = |status: serde_json::Value| {
        let text = serde_json::json!({
            "apiVersion": "squall.dev/v1alpha1", "kind": "ChaosPolicy", "metadata": { "name": "p", "generation": 2 },
            "spec": { "haltWhen": [{ "http": { "url": "http://web.shop.svc" } }] }, "status": status,
        });
        let policy: ChaosPolicy = serde_json::from_value(text).unwrap();
        Policies::new([Policy::of(&policy)])
    };
    let probe = |healthy: &str, generation: i64| {
        let probe =
            serde_json::json!({ "name": "haltWhen[0].http", "healthy": healthy, "message": "status 503" });
        serde_json::json!({ "observedGeneration": generation, "probes": [probe] })
    };
    let mut sim = Sim::new(spec(Action::PodKill, Mode::One, None), 1);
    for unseen in [serde_json::Value::Null, probe("Unknown", 2), probe("True", 1)] {
        sim.policies = policy(unseen);
        sim.turn(None);
        assert_eq!(
            told(&sim),
            (Some(Phase::Pending), "looking whether haltWhen of ChaosPolicy p holds".into())
        );
    }
    sim.policies = policy(probe("False", 2));
    let halted = sim.plan().status;
    assert_eq!(halted.phase, Some(Phase::Halted));
    assert!(halted.message.unwrap_or_default().contains("status 503"));
    sim.policies = policy(probe("True", 2));
    sim.turn(None);
    assert_eq!(sim.killed.len(), 1);
}

#[test]
fn a_clock_that_jumps_loses_nothing_and_ends_nothing_for_ever() {
    let mut spec = spec(Action::PodFailure, Mode::All, None);
    spec.duration = Some("5m".into());
    let mut sim = Sim::new(spec, 2);
    let turns = |sim: &mut Sim| {
        for _ in 0..3 {
            sim.turn(None);
            sim.all_catch_up();
        }
    };
    turns(&mut sim);
    assert_eq!(told(&sim).0, Some(Phase::Injected));
    let ends = sim.status.ends_at.clone();
    sim.wait(-3600);
    turns(&mut sim);
    assert_eq!((told(&sim).0, &sim.status.ends_at), (Some(Phase::Injected), &ends));
    // Someone ends it while the clock is wrong.
    let mut other = Sim { chaos: sim.chaos.clone(), ..Sim::new(sim.chaos.spec.clone(), 2) };
    turns(&mut other);
    other.wait(-3600);
    other.chaos.metadata.deletion_timestamp = Some(Time(other.now));
    turns(&mut other);
    assert!(other.gone);
    other.assert_untouched();
    sim.wait(2 * 3600);
    turns(&mut sim);
    assert_eq!(told(&sim).0, Some(Phase::Completed));
    sim.assert_untouched();
}
