//! Small faults by annotation: each annotated pod or workload gets its turn when it, or what was made for it, changes.
//!
//! Workloads are watched by their metadata alone, and of those without a key of ours nothing is kept. What is due is
//! decided in `squall-model`; [`turn`] carries it out.

mod turn;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::Debug;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use kube::api::PartialObjectMeta;
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource, ResourceExt};
use kube_runtime::WatchStreamExt;
use kube_runtime::watcher::{self, Event, watcher};
use serde::de::DeserializeOwned;
use squall_api::names;
use squall_model::annotation::{Kind, Known, Made};
use squall_model::pod::PodView;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::apply::Applier;
use crate::chaos::Experiments;
use crate::observe::Observer;
use crate::retry::Retry;
use crate::tell::Teller;

/// Objects that take their turns at once.
const TOGETHER: usize = 8;
/// How long an experiment that was deleted is remembered: longer than its annotation could have it made anew.
const MEMORY: Duration = Duration::from_secs(180);

/// An object that may be annotated.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// Why an object gets its turn.
#[derive(Clone, Debug)]
pub enum Wake {
    /// It changed.
    Object(Key),
    /// An experiment that was made for it changed, or is going.
    Experiment {
        /// For which object.
        key: Key,
        /// The experiment's name.
        name: String,
        /// What it was made for.
        made: Made,
        /// It is on its way out.
        going: bool,
    },
}

/// What the turns work with.
pub struct Annotations {
    /// The API server.
    pub client: Client,
    /// What is known.
    pub observer: Observer,
    /// What changes pods.
    pub applier: Applier,
    /// The experiments that there are.
    pub experiments: Experiments,
    /// Events.
    pub teller: Teller,
    ended: Mutex<BTreeMap<(String, String), (Instant, Made)>>,
}

/// Whether the annotations have anything to do with this module.
fn is_marked(annotations: &BTreeMap<String, String>) -> bool {
    names::SMALL_FAULTS.iter().chain(&[names::REQUESTED_BY]).any(|key| annotations.contains_key(*key))
}

/// The turn of a pod that changed, if it is one for us.
pub fn of_pod(pod: &PodView) -> Option<Wake> {
    is_marked(&pod.annotations).then(|| {
        Wake::Object(Key { kind: Kind::Pod, namespace: pod.namespace.clone(), name: pod.name.clone() })
    })
}

/// The turn of the object that an experiment was made for, if it was made for one.
pub fn of_experiment(chaos: &impl ResourceExt, gone: bool) -> Option<Wake> {
    let made = Made::read(chaos.annotations().get(names::MADE_FOR)?)?;
    let owner = chaos.owner_references().iter().find_map(|owner| {
        let (group, version) = owner.api_version.rsplit_once('/').unwrap_or(("", &owner.api_version));
        Some((Kind::of(group, version, &owner.kind)?, owner.name.clone()))
    })?;
    let key = Key { kind: owner.0, namespace: chaos.namespace()?, name: owner.1 };
    let going = gone || chaos.meta().deletion_timestamp.is_some();
    Some(Wake::Experiment { key, name: chaos.name_any(), made, going })
}

impl Annotations {
    /// The parts, and nothing remembered.
    pub fn new(
        client: Client,
        observer: Observer,
        applier: Applier,
        experiments: Experiments,
        teller: Teller,
    ) -> Self {
        Self { client, observer, applier, experiments, teller, ended: Mutex::default() }
    }

    /// Follow workloads, and give every object its turn when it is woken, for ever.
    pub async fn run(self, wakes: mpsc::UnboundedSender<Wake>, woken: mpsc::UnboundedReceiver<Wake>) {
        {
            let index = self.observer.read();
            for wake in index.pods_everywhere().filter_map(of_pod) {
                // The receiver is ours.
                let _ = wakes.send(wake);
            }
        }
        let marks = Marks { wakes, marked: Mutex::default() };
        tokio::join!(
            marks.follow::<Deployment>(Kind::Deployment, &self.client),
            marks.follow::<StatefulSet>(Kind::StatefulSet, &self.client),
            marks.follow::<DaemonSet>(Kind::DaemonSet, &self.client),
            marks.follow::<ReplicaSet>(Kind::ReplicaSet, &self.client),
            self.turns(woken),
        );
    }

    async fn turns(&self, mut woken: mpsc::UnboundedReceiver<Wake>) {
        let mut queue: BTreeSet<Key> = BTreeSet::new();
        let mut later: BTreeSet<(Instant, Key)> = BTreeSet::new();
        let mut busy: HashSet<Key> = HashSet::new();
        let mut tries: HashMap<Key, u32> = HashMap::new();
        let mut under_way = FuturesUnordered::new();
        loop {
            while under_way.len() < TOGETHER
                && let Some(key) = queue.iter().find(|key| !busy.contains(*key)).cloned()
            {
                queue.remove(&key);
                busy.insert(key.clone());
                under_way.push(async move {
                    let result = self.turn(&key).await;
                    (key, result)
                });
            }
            let soon = later.first().map(|(at, _)| *at);
            tokio::select! {
                wake = woken.recv() => match wake {
                    Some(wake) => {
                        queue.insert(self.note(wake));
                    }
                    None => return,
                },
                Some((key, result)) = under_way.next() => {
                    busy.remove(&key);
                    match result {
                        Ok(()) => {
                            tries.remove(&key);
                        }
                        Err(error) => {
                            let tried = tries.entry(key.clone()).or_default();
                            *tried += 1;
                            let wait = Duration::from_millis(50 << (*tried).min(7));
                            if *tried > 1 {
                                tracing::warn!(kind = key.kind.word(), namespace = key.namespace, name = key.name, %error, "will be tried again");
                            }
                            later.insert((Instant::now() + wait, key));
                        }
                    }
                },
                () = tokio::time::sleep_until(soon.unwrap_or_else(Instant::now)), if soon.is_some() => {
                    if let Some((_, key)) = later.pop_first() {
                        queue.insert(key);
                    }
                }
            }
        }
    }

    /// Remember what has to be, and say whose turn it is.
    fn note(&self, wake: Wake) -> Key {
        match wake {
            Wake::Object(key) => key,
            Wake::Experiment { key, name, made, going } => {
                if going {
                    let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
                    ended.retain(|_, (at, _)| at.elapsed() < MEMORY);
                    ended.insert((key.namespace.clone(), name), (Instant::now(), made));
                }
                key
            }
        }
    }

    /// The experiments in `namespace` that were made for annotations, those that went a moment ago too.
    fn known(&self, namespace: &str) -> Vec<Known> {
        let ended: Vec<(String, Made)> = {
            let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
            let here = ended.iter().filter(|((there, _), _)| there == namespace);
            here.map(|((_, name), (_, made))| (name.clone(), made.clone())).collect()
        };
        let mut known: Vec<Known> = self.experiments.filter_map(|meta, _, status| {
            if meta.namespace.as_deref() != Some(namespace) {
                return None;
            }
            Some(Known {
                name: meta.name.clone().unwrap_or_default(),
                made: Made::read(meta.annotations.as_ref()?.get(names::MADE_FOR)?)?,
                created: meta.creation_timestamp.as_ref().map(|time| time.0),
                completed: status.is_some_and(|status| status.completed_at.is_some()),
                deleting: meta.deletion_timestamp.is_some(),
            })
        });
        for (name, made) in ended {
            match known.iter_mut().find(|one| one.name == name) {
                Some(one) => one.deleting = true,
                None => known.push(Known { name, made, created: None, completed: false, deleting: true }),
            }
        }
        known
    }
}

/// Which workloads carry a key of ours.
struct Marks {
    wakes: mpsc::UnboundedSender<Wake>,
    /// To each its own UID, and that of its owner.
    marked: Mutex<HashMap<Key, (String, Option<String>)>>,
}

impl Marks {
    async fn follow<K>(&self, kind: Kind, client: &Client)
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned + Send + 'static,
        K::DynamicType: Default + Clone + Debug + Eq + std::hash::Hash + Send + Sync,
    {
        let api: Api<PartialObjectMeta<K>> = Api::all(client.clone());
        let events = watcher(api, watcher::Config::default()).backoff(Retry::new());
        let mut events = std::pin::pin!(events);
        let mut listed: HashSet<Key> = HashSet::new();
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init) => listed.clear(),
                Ok(Event::InitApply(object)) => {
                    let key = key(kind, &object);
                    listed.insert(key.clone());
                    self.seen(key, &object);
                }
                Ok(Event::InitDone) => {
                    let mut marked = self.marked.lock().unwrap_or_else(PoisonError::into_inner);
                    marked.retain(|key, _| key.kind != kind || listed.contains(key));
                    listed = HashSet::new();
                }
                Ok(Event::Apply(object)) => self.seen(key(kind, &object), &object),
                Ok(Event::Delete(object)) => {
                    let mut marked = self.marked.lock().unwrap_or_else(PoisonError::into_inner);
                    marked.remove(&key(kind, &object));
                }
                Err(error) => {
                    tracing::warn!(%error, kind = kind.word(), "a watch was interrupted; it is taken up again");
                }
            }
        }
    }

    fn seen<K>(&self, key: Key, object: &PartialObjectMeta<K>)
    where
        K: Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        let mut marked = self.marked.lock().unwrap_or_else(PoisonError::into_inner);
        let uid = object.metadata.uid.clone().unwrap_or_default();
        let before = marked.remove(&key);
        let now = object.metadata.annotations.as_ref().is_some_and(is_marked);
        if now {
            let owners = object.metadata.owner_references.iter().flatten();
            let owner = owners.into_iter().find(|owner| owner.controller == Some(true));
            marked.insert(key.clone(), (uid.clone(), owner.map(|owner| owner.uid.clone())));
        }
        if !now && before.is_none() {
            return;
        }
        // What a Deployment no longer has its copies must not keep.
        let copies = marked.iter().filter(|(_, (_, owner))| owner.as_ref() == Some(&uid));
        for key in copies.map(|(key, _)| key.clone()).chain([key]) {
            // The receiver goes only with the term.
            let _ = self.wakes.send(Wake::Object(key));
        }
    }
}

fn key<K>(kind: Kind, object: &PartialObjectMeta<K>) -> Key {
    let meta = &object.metadata;
    Key {
        kind,
        namespace: meta.namespace.clone().unwrap_or_default(),
        name: meta.name.clone().unwrap_or_default(),
    }
}
