//! What the webhook knows of the cluster while it admits a pod: experiments that may fail newborns, and
//! namespaces. It answers from memory, and says when it has not been filled yet.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube_runtime::watcher::Event;
use squall_api::{ChaosPolicy, PodChaos, names};
use squall_model::admission::{Candidate, births_for};
use squall_model::pod::{NamespaceView, PodView, says_protect};
use squall_model::policy::{Policies, Policy, Rule};
use squall_model::substitute::Holder;

use crate::experiments::Wanted;

/// See the module. Shared by all reviews; locks are held for a look-up only.
#[derive(Debug, Default)]
pub struct World {
    candidates: RwLock<Table<Candidate>>,
    namespaces: RwLock<Table<NamespaceView>>,
    policies: RwLock<Table<Arc<Policy>>>,
    /// Workloads that say that their pods are to be left alone, by kind.
    shields: RwLock<HashMap<&'static str, Table<()>>>,
    /// The same as decisions ask for them.
    asked: RwLock<Arc<Policies>>,
}

/// Why something may not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The policy; empty where a namespace is halted by its annotation.
    pub policy: String,
    /// The rule, a word of ours.
    pub rule: &'static str,
    /// In words, with the policy's name.
    pub message: String,
}

/// How many kinds of workloads there are.
const WORKLOADS: usize = 5;

type Key = (String, String);

#[derive(Debug)]
struct Table<V> {
    live: HashMap<Key, V>,
    /// A new list that is still coming in; the old one serves meanwhile.
    coming: Option<HashMap<Key, V>>,
    synced: bool,
}

impl<V> Default for Table<V> {
    fn default() -> Self {
        Self { live: HashMap::new(), coming: None, synced: false }
    }
}

impl<V> Table<V> {
    fn take_in<T>(&mut self, event: Event<T>, entry: impl Fn(T) -> (Key, Option<V>)) {
        match event {
            Event::Init => self.coming = Some(HashMap::new()),
            Event::InitApply(object) => {
                let (key, value) = entry(object);
                if let (Some(coming), Some(value)) = (&mut self.coming, value) {
                    coming.insert(key, value);
                }
            }
            Event::InitDone => {
                self.live = self.coming.take().unwrap_or_default();
                self.live.shrink_to_fit();
                self.synced = true;
            }
            Event::Apply(object) => match entry(object) {
                (key, Some(value)) => {
                    self.live.insert(key, value);
                }
                (key, None) => {
                    self.live.remove(&key);
                }
            },
            Event::Delete(object) => {
                self.live.remove(&entry(object).0);
            }
        }
    }
}

impl World {
    /// Something happened to an experiment.
    pub fn experiment(&self, event: Event<PodChaos>) {
        let mut table = self.candidates.write().unwrap_or_else(PoisonError::into_inner);
        table.take_in(event, |chaos| {
            let meta = &chaos.metadata;
            let key = (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default());
            (key, Candidate::of(&chaos))
        });
    }

    /// Something happened to a namespace.
    pub fn namespace_event(&self, event: Event<NamespaceView>) {
        let mut table = self.namespaces.write().unwrap_or_else(PoisonError::into_inner);
        table.take_in(event, |view| ((String::new(), view.name.clone()), Some(view)));
    }

    /// Something happened to a policy.
    pub fn policy_event(&self, event: Event<ChaosPolicy>) {
        let mut table = self.policies.write().unwrap_or_else(PoisonError::into_inner);
        table.take_in(event, |policy| {
            let name = policy.metadata.name.clone().unwrap_or_default();
            ((String::new(), name), Some(Arc::new(Policy::of(&policy))))
        });
        let all = Arc::new(Policies::new(table.live.values().cloned()));
        *self.asked.write().unwrap_or_else(PoisonError::into_inner) = all;
    }

    /// Something happened to a workload of this kind: its metadata.
    pub fn workload_event(&self, kind: &'static str, event: Event<ObjectMeta>) {
        let mut tables = self.shields.write().unwrap_or_else(PoisonError::into_inner);
        tables.entry(kind).or_default().take_in(event, |meta| {
            let protected = says_protect(meta.labels.as_ref(), meta.annotations.as_ref());
            let key =
                (meta.namespace.unwrap_or_default(), format!("{kind}/{}", meta.name.unwrap_or_default()));
            (key, protected.then_some(()))
        });
    }

    /// Whether the workload of `pod` says that its pods are to be left alone.
    pub fn is_shielded(&self, pod: &PodView) -> bool {
        let tables = self.shields.read().unwrap_or_else(PoisonError::into_inner);
        let key = (pod.namespace.clone(), pod.workload());
        tables.values().any(|table| table.live.contains_key(&key))
    }

    /// All policies.
    pub fn policies(&self) -> Arc<Policies> {
        self.asked.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether halts and policies let someone have what is `wanted` in these namespaces, going by the watches.
    pub fn permits<'a>(
        &self,
        namespaces: impl IntoIterator<Item = &'a String>,
        wanted: &Wanted,
        now: Timestamp,
    ) -> Result<(), Refused> {
        let Wanted { ask, who, begins } = wanted;
        let (policies, system) = (self.policies(), self.namespace(names::NAMESPACE));
        for name in namespaces {
            // One that was made a moment ago has at least its name.
            let namespace = self.namespace(name).unwrap_or_else(|| NamespaceView {
                name: name.clone(),
                labels: [("kubernetes.io/metadata.name".to_owned(), name.clone())].into(),
                ..NamespaceView::default()
            });
            if *begins && let Some(stop) = policies.stop(&namespace, system.as_ref(), now) {
                let policy = stop.policy().unwrap_or_default().to_owned();
                let rule = stop.rule.map_or(names::HALT, Rule::path);
                return Err(Refused { policy, rule, message: stop.to_string() });
            }
            policies.permits(&namespace, ask, who).map_err(|refusal| Refused {
                rule: refusal.rule.path(),
                message: refusal.to_string(),
                policy: refusal.policy,
            })?;
        }
        Ok(())
    }

    /// The namespace `name`, if it is known.
    pub fn namespace(&self, name: &str) -> Option<NamespaceView> {
        let table = self.namespaces.read().unwrap_or_else(PoisonError::into_inner);
        table.live.get(&(String::new(), name.to_owned())).cloned()
    }

    /// Who holds a pod from its birth on. Before the experiments are known nobody does.
    pub fn births(&self, pod: &PodView, namespace: &NamespaceView, now: Timestamp) -> Vec<Holder> {
        let (policies, system) = (self.policies(), self.namespace(names::NAMESPACE));
        let spared = policies.stop(namespace, system.as_ref(), now).is_some()
            || policies.spares(namespace, pod, now).is_some();
        if spared {
            return Vec::new();
        }
        let table = self.candidates.read().unwrap_or_else(PoisonError::into_inner);
        let mut holders = births_for(pod, namespace, table.live.values(), now);
        // A map has no order, and the same question shall have the same answer.
        holders.sort_by(|a, b| a.uid.cmp(&b.uid));
        holders
    }

    /// What is still missing, by name.
    pub fn missing(&self) -> Option<&'static str> {
        if !self.candidates.read().unwrap_or_else(PoisonError::into_inner).synced {
            return Some("experiments have not been listed yet");
        }
        if !self.namespaces.read().unwrap_or_else(PoisonError::into_inner).synced {
            return Some("namespaces have not been listed yet");
        }
        if !self.policies.read().unwrap_or_else(PoisonError::into_inner).synced {
            return Some("policies have not been listed yet");
        }
        let shields = self.shields.read().unwrap_or_else(PoisonError::into_inner);
        if shields.len() < WORKLOADS || shields.values().any(|table| !table.synced) {
            return Some("workloads have not been listed yet");
        }
        None
    }
}
