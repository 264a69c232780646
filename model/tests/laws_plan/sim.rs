//! A small world that keeps the promises of the API server.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStatus, Pod,
    PodCondition, PodSpec, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use squall_api::chaospolicy::{ChaosPolicy, ChaosPolicySpec};
use squall_api::podchaos::{Action, ExperimentStatus, Mode, Phase, PodChaos, PodChaosSpec};
use squall_model::plan::{Daemon, Order, Outcomes, Report, World};
use squall_model::pod::{NamespaceView, PodView};
use squall_model::policy::ledger::Ledger;
use squall_model::policy::{Policies, Policy, Refusal, Rule};
use squall_model::probe::Steady;
use squall_model::select::Nodes;
use squall_model::substitute::FaultImages;

use crate::daemon::Node;

pub const ORIGINAL: &str = "app:1";

pub fn images() -> FaultImages {
    FaultImages { pause: "fault/pause:1".into(), crash: "fault/crash:1".into() }
}

/// A cluster of one namespace, as the API server has it, and as the controller sees it.
pub struct Sim {
    pub now: Timestamp,
    pub version: u64,
    pub born: u32,
    pub pods: BTreeMap<String, Pod>,
    pub seen: BTreeMap<String, PodView>,
    pub namespace: NamespaceView,
    pub chaos: PodChaos,
    /// The status as written.
    pub status: ExperimentStatus,
    pub outcomes: Outcomes,
    /// So many effects fail before the next one succeeds.
    pub failing: u32,
    /// So many effects are carried out, and nobody hears of it.
    pub lost: u32,
    pub gone: bool,
    pub without_daemons: bool,
    pub reports: BTreeMap<String, Report>,
    pub killed: Vec<String>,
    /// Its leader has had a turn: before, no daemon is sent anything.
    pub led: bool,
    /// Since when another leads that has not heard of the node yet.
    pub unheard: Option<Timestamp>,
    /// What the controller would have the node have.
    pub desired: BTreeMap<String, Order>,
    pub node: Node,
    pub policies: Policies,
    pub ledger: Ledger,
    pub steady: Steady,
    /// How what the policy looks at stands.
    pub watched: Option<Steady>,
    /// Kills are the node's; otherwise the test says what it tells.
    pub kills: bool,
    /// What is more than a policy allows.
    pub excess: BTreeMap<String, Refusal>,
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

    fn watched(&self, _: &str) -> Option<Steady> {
        self.watched.clone()
    }

    fn excess(&self, uid: &str) -> Option<&Refusal> {
        self.excess.get(uid)
    }

    fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    fn daemon(&self, node: &str) -> Daemon {
        if node == "without" || self.without_daemons {
            Daemon::None
        } else if self.unheard.is_some_and(|since| self.now < since + SignedDuration::from_secs(10)) {
            Daemon::Unheard
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
    pub fn new(spec: PodChaosSpec, pods: u32) -> Self {
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
            lost: 0,
            gone: false,
            without_daemons: false,
            reports: BTreeMap::new(),
            killed: Vec::new(),
            led: false,
            unheard: None,
            desired: BTreeMap::new(),
            node: Node::default(),
            policies: Policies::NONE,
            ledger: Ledger::EMPTY,
            steady: Steady::default(),
            watched: None,
            kills: false,
            excess: BTreeMap::new(),
        };
        for _ in 0..pods {
            sim.birth();
        }
        sim.see();
        sim
    }

    pub fn birth(&mut self) -> String {
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
    pub fn kubelet(&mut self, name: &str) {
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

    /// The runtime calls what runs by another of its names, and by that of its digest; without a probe it is Ready,
    /// whatever it is.
    pub fn runs_under(&mut self, name: &str, image: &str, image_id: &str) {
        let status = self.pods.get_mut(name).and_then(|pod| pod.status.as_mut()).unwrap();
        let container = &mut status.container_statuses.as_mut().unwrap()[0];
        (container.image, container.image_id) = (image.into(), image_id.into());
        status.conditions.as_mut().unwrap()[0].status = "True".into();
    }

    /// The watch catches up.
    pub fn see(&mut self) {
        self.seen = self.pods.iter().map(|(name, pod)| (name.clone(), PodView::of(pod))).collect();
    }

    pub fn all_catch_up(&mut self) {
        for name in self.pods.keys().cloned().collect::<Vec<_>>() {
            self.kubelet(&name);
        }
        self.see();
    }

    pub fn wait(&mut self, seconds: i64) {
        self.now += SignedDuration::from_secs(seconds);
        let containers = self.containers();
        self.node.look(&containers, self.now);
    }

    /// The container of a pod is started again.
    pub fn restart(&mut self, name: &str) {
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

    /// What was signalled ends, and is started again.
    pub fn exits(&mut self) {
        for name in self.pods.keys().cloned().collect::<Vec<_>>() {
            let statuses =
                self.pods[&name].status.as_ref().and_then(|status| status.container_statuses.as_ref());
            let id = statuses.and_then(|statuses| statuses[0].container_id.as_ref());
            if id.is_some_and(|id| self.node.signalled.contains(id)) {
                self.restart(&name);
            }
        }
    }

    /// A pod is more than a policy allows.
    pub fn exceed(&mut self, uid: &str) {
        let (policy, found, allowed) = ("p".to_owned(), "2".to_owned(), "1".to_owned());
        self.excess.insert(uid.to_owned(), Refusal { policy, rule: Rule::Targets, found, allowed });
    }

    /// The container of a pod has ended, and is not started again.
    pub fn end_container(&mut self, name: &str) {
        let Some(pod) = self.pods.get_mut(name) else { return };
        if let Some(statuses) = pod.status.as_mut().and_then(|status| status.container_statuses.as_mut()) {
            let terminated = ContainerStateTerminated { exit_code: 1, ..ContainerStateTerminated::default() };
            statuses[0].state =
                Some(ContainerState { terminated: Some(terminated), ..ContainerState::default() });
        }
    }

    /// On how many pods something stands.
    pub fn hit_on_the_node(&self) -> usize {
        let pods = self.node.standing.keys().filter_map(|id| id.split('/').nth(1));
        pods.collect::<BTreeSet<_>>().len()
    }

    pub fn annotate(&mut self, key: &str, value: Option<&str>) {
        let annotations = self.chaos.metadata.annotations.get_or_insert_default();
        match value {
            Some(value) => annotations.insert(key.into(), value.into()),
            None => annotations.remove(key),
        };
    }

    /// The selector is narrowed to the first pod.
    pub fn narrow(&mut self) {
        let labels = BTreeMap::from([("in".to_owned(), "it".to_owned())]);
        self.pods.values_mut().next().unwrap().metadata.labels = Some(labels.clone());
        self.see();
        self.chaos.spec.selector.label_selectors = labels;
        let generation = self.chaos.metadata.generation.get_or_insert_default();
        *generation += 1;
    }

    pub fn policy(&mut self, spec: Option<ChaosPolicySpec>) {
        self.policies = Policies::new(spec.map(|spec| Policy::of(&ChaosPolicy::new("p", spec))));
    }

    /// As far as it goes, with everybody catching up in between.
    pub fn settle(&mut self) {
        for _ in 0..4 {
            self.turn(None);
            self.all_catch_up();
        }
    }

    pub fn delete(&mut self) {
        self.chaos.metadata.deletion_timestamp = Some(Time(self.now));
    }

    pub fn failed(&self) -> usize {
        self.pods.values().filter(|pod| pod.metadata.annotations.is_some()).count()
    }

    pub fn assert_untouched(&self) {
        for pod in self.pods.values() {
            let image = pod.spec.as_ref().unwrap().containers[0].image.as_deref();
            assert!(image == Some(ORIGINAL) || image == Some("app:2"), "a foreign image is left: {pod:?}");
            assert_eq!(pod.metadata.labels, None, "a label is left");
            assert_eq!(pod.metadata.annotations, None, "an annotation is left");
        }
    }
}

pub fn spec(action: Action, mode: Mode, value: Option<&str>) -> PodChaosSpec {
    PodChaosSpec { action, mode, value: value.map(Into::into), ..PodChaosSpec::default() }
}

/// What the experiment says of itself.
pub fn told(sim: &Sim) -> (Option<Phase>, String) {
    (sim.status.phase, sim.status.message.clone().unwrap_or_default())
}
