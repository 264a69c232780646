//! Small faults by annotation: each annotated pod or workload gets its turn when it, or what was made for it, changes.
//!
//! What is due is decided in `squall-model`; [`turn`] carries it out.

mod turn;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use kube::{Client, ResourceExt};
use squall_api::names;
use squall_model::annotation::{Kind, Known, Made};
use squall_model::pod::PodView;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::apply::Applier;
use crate::chaos::Experiments;
use crate::observe::{Observer, WorkloadKey};
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
pub(crate) fn is_marked(annotations: &BTreeMap<String, String>) -> bool {
    names::SMALL_FAULTS.iter().chain(&[names::REQUESTED_BY]).any(|key| annotations.contains_key(*key))
}

/// The turn of a pod that changed, if it is one for us.
pub fn of_pod(pod: &PodView) -> Option<Wake> {
    is_marked(&pod.annotations).then(|| {
        Wake::Object(Key { kind: Kind::Pod, namespace: pod.namespace.clone(), name: pod.name.clone() })
    })
}

/// The turn of a workload whose annotations changed; not every kind takes annotations.
pub fn of_workload(workload: &WorkloadKey) -> Option<Wake> {
    let kind = Kind::ALL.into_iter().find(|kind| kind.word() == workload.kind)?;
    let WorkloadKey { kind: _, namespace, name } = workload.clone();
    Some(Wake::Object(Key { kind, namespace, name }))
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

    /// Give every object its turn, now and when it is woken, for ever.
    pub async fn run(self, wakes: mpsc::UnboundedSender<Wake>, woken: mpsc::UnboundedReceiver<Wake>) {
        {
            let index = self.observer.read();
            let pods = index.pods_everywhere().filter_map(of_pod);
            for wake in pods.chain(index.marked().filter_map(of_workload)) {
                // The receiver is ours.
                let _ = wakes.send(wake);
            }
        }
        self.turns(woken).await;
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
                            // One try at a time, however often it was woken meanwhile.
                            later.retain(|(_, other)| *other != key);
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
