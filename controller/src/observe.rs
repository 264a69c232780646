//! What the controller knows of the cluster: one index of small views, fed by watches, read by decisions.
//!
//! It holds views, not objects: a pod is some hundred bytes here. Nothing is decided in this module, and
//! nothing is written to the cluster.

mod workloads;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, RwLock, RwLockReadGuard};

use futures::{Stream, StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::PartialObjectMeta;
use kube::{Api, Client};
use kube_runtime::WatchStreamExt;
use kube_runtime::watcher::{self, Event, watcher};
use squall_api::{ChaosPolicy, names};
use squall_model::pod::{NamespaceView, PodView};
use squall_model::policy::choice::Budget;
use squall_model::policy::{Labels, Policies, Policy};
use squall_model::probe::NodeHealth;
use tokio::sync::{mpsc, watch};

pub use self::workloads::WorkloadKey;
use self::workloads::WorkloadView;
use crate::retry::retry;

/// Something changed that an experiment may depend on.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A pod: as it was, if it was known, and as it is, if it still is.
    Pod {
        /// Before.
        old: Option<Box<PodView>>,
        /// Now.
        new: Option<Box<PodView>>,
    },
    /// A namespace, by name.
    Namespace(String),
    /// A node's labels, by its name.
    Node(String),
    /// Whether [Squall is being removed](Index::is_leaving).
    Leaving,
    /// A policy, by name.
    Policy(String),
    /// A workload.
    Workload {
        /// Whose annotations are to be looked at.
        woken: Vec<WorkloadKey>,
        /// The pods that are to be left alone because of it, or not any more.
        pods: Vec<PodView>,
    },
}

/// The index and its feeders.
#[derive(Clone)]
pub struct Observer {
    index: Arc<RwLock<Index>>,
    synced: watch::Receiver<u8>,
}

/// How many kinds are waited for. Our CRDs aren't: nothing is decided by them but that Squall is being removed.
const KINDS: u8 = 5 + workloads::KINDS;

impl Observer {
    /// Watch the cluster; every change after the first listing is sent to `changes`.
    pub fn start(client: &Client, changes: mpsc::UnboundedSender<Change>) -> Self {
        let index = Arc::new(RwLock::new(Index::default()));
        let (done, synced) = watch::channel(0);
        let done = Arc::new(done);

        // What a view doesn't use is dropped as soon as it is parsed.
        let pods = watcher(Api::<Pod>::all(client.clone()), watcher::Config::default())
            .map_ok(|event| event.modify(|pod| pod.metadata.managed_fields = None));
        let namespaces =
            watcher(Api::<PartialObjectMeta<Namespace>>::all(client.clone()), watcher::Config::default());
        let nodes = watcher(Api::<Node>::all(client.clone()), watcher::Config::default())
            .map_ok(|event| event.modify(|node| node.metadata.managed_fields = None));
        let policies = watcher(Api::<ChaosPolicy>::all(client.clone()), watcher::Config::default())
            .map_ok(|event| event.modify(|policy| policy.metadata.managed_fields = None));
        let budgets = watcher(Api::<PodDisruptionBudget>::all(client.clone()), watcher::Config::default());

        let feed = Feed { index: index.clone(), changes, done };
        feed.start(pods, PodView::of, Index::pods());
        feed.start(
            namespaces,
            |meta: &PartialObjectMeta<Namespace>| {
                NamespaceView::of(&Namespace { metadata: meta.metadata.clone(), ..Namespace::default() })
            },
            Index::namespaces_kind(),
        );
        feed.start(policies, ChaosPolicy::clone, Index::policies_kind());
        feed.start(budgets, budget, Index::budgets_kind());
        feed.start(nodes, node_view, Index::nodes());
        workloads::start(client, &feed);
        let uncounted = Feed { done: Arc::new(watch::channel(0).0), ..feed };
        for name in names::CRDS {
            // By name: more than that we may not see.
            let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
            let crds =
                watcher(Api::<PartialObjectMeta<CustomResourceDefinition>>::all(client.clone()), config);
            let view = |meta: &PartialObjectMeta<CustomResourceDefinition>| CrdView {
                name: meta.metadata.name.clone().unwrap_or_default(),
                terminating: meta.metadata.deletion_timestamp.is_some(),
            };
            uncounted.start(crds, view, Index::crds(name));
        }
        Self { index, synced }
    }

    /// The index, for a decision. Not to be held across an await.
    pub fn read(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Whether every kind has been listed once.
    pub fn is_synced(&self) -> bool {
        *self.synced.borrow() >= KINDS
    }

    /// Wait until every kind has been listed once.
    pub async fn synced(&self) {
        // An error means that the feeders are gone, and with them the process.
        let _ = self.synced.clone().wait_for(|kinds| *kinds >= KINDS).await;
    }
}

/// A node as decisions see it.
#[derive(Clone, Debug, Default)]
struct NodeView {
    name: String,
    labels: BTreeMap<String, String>,
    health: NodeHealth,
}

/// One of our CRDs as decisions see it.
#[derive(Clone, Debug, Default)]
struct CrdView {
    name: String,
    terminating: bool,
}

fn node_view(node: &Node) -> NodeView {
    let labels = node.metadata.labels.clone().unwrap_or_default();
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let conditions = conditions.map(|condition| (condition.type_.as_str(), condition.status.as_str()));
    NodeView {
        name: node.metadata.name.clone().unwrap_or_default(),
        health: NodeHealth::of(labels.clone(), conditions),
        labels,
    }
}

/// The view of a budget. One without a selector covers no pod, one whose selector makes no sense every one.
fn budget(budget: &PodDisruptionBudget) -> Budget {
    let whole = |number: Option<i32>| usize::try_from(number.unwrap_or_default()).unwrap_or_default();
    let status = budget.status.as_ref();
    let mut errors = Vec::new();
    let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    let pods = selector.map(|selector| Labels::parse("spec.selector", selector, &mut errors));
    Budget {
        namespace: budget.metadata.namespace.clone().unwrap_or_default(),
        name: budget.metadata.name.clone().unwrap_or_default(),
        pods: pods.filter(|_| errors.is_empty()).unwrap_or_default(),
        desired: whole(status.map(|status| status.desired_healthy)),
        allowed: match selector {
            None => usize::MAX,
            Some(_) => whole(status.map(|status| status.disruptions_allowed)),
        },
    }
}

/// Forgets everything of the kind that is known and not listed any more.
type Retain<V> = Box<dyn Fn(&mut Index, &[V]) -> Vec<Change> + Send + Sync>;

/// How the views of one kind are kept.
struct Kind<V> {
    put: fn(&mut Index, V) -> Option<Change>,
    remove: fn(&mut Index, &V) -> Option<Change>,
    retain: Retain<V>,
}

/// Where what is watched goes.
struct Feed {
    index: Arc<RwLock<Index>>,
    changes: mpsc::UnboundedSender<Change>,
    done: Arc<watch::Sender<u8>>,
}

impl Feed {
    fn start<K, V>(
        &self,
        events: impl Stream<Item = Result<Event<K>, watcher::Error>> + Send + 'static,
        view: fn(&K) -> V,
        kind: Kind<V>,
    ) where
        K: Send + 'static,
        V: Send + Sync + 'static,
    {
        let Self { index, changes, done } = self;
        tokio::spawn(feed(events, index.clone(), changes.clone(), done.clone(), view, kind));
    }
}

/// Feed one kind's events into the index, for ever.
async fn feed<K, V>(
    events: impl Stream<Item = Result<Event<K>, watcher::Error>> + Send,
    index: Arc<RwLock<Index>>,
    changes: mpsc::UnboundedSender<Change>,
    done: Arc<watch::Sender<u8>>,
    view: fn(&K) -> V,
    kind: Kind<V>,
) {
    let mut listed: Vec<V> = Vec::new();
    let mut first = true;
    let mut events = std::pin::pin!(absent_is_empty(events.backoff(retry())));
    while let Some(event) = events.next().await {
        // It has been told.
        let Ok(event) = event else { continue };
        let mut told = Vec::new();
        {
            let mut index = index.write().unwrap_or_else(std::sync::PoisonError::into_inner);
            match event {
                Event::Init => listed.clear(),
                Event::InitApply(object) => listed.push(view(&object)),
                Event::InitDone => {
                    told.extend((kind.retain)(&mut index, &listed));
                    for view in listed.drain(..) {
                        told.extend((kind.put)(&mut index, view));
                    }
                    if first {
                        first = false;
                        done.send_modify(|kinds| *kinds += 1);
                    }
                }
                Event::Apply(object) => told.extend((kind.put)(&mut index, view(&object))),
                Event::Delete(object) => told.extend((kind.remove)(&mut index, &view(&object))),
            }
        }
        for change in told {
            // The receiver goes only with the process.
            let _ = changes.send(change);
        }
    }
}

/// Of a kind that isn't installed (any more) there are none: nothing waits for its return. Whatever else keeps a list from
/// being read is waited for; every error is told.
pub fn absent_is_empty<K>(
    events: impl Stream<Item = Result<Event<K>, watcher::Error>>,
) -> impl Stream<Item = Result<Event<K>, watcher::Error>> {
    let mut listed = false;
    events.flat_map(move |event| {
        let mut then = Vec::new();
        match &event {
            Ok(Event::InitDone) => listed = true,
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "a watch was interrupted; it is taken up again");
                if !listed && is_unknown(error) {
                    listed = true;
                    then.extend([Ok(Event::Init), Ok(Event::InitDone)]);
                }
            }
        }
        futures::stream::iter([event].into_iter().chain(then))
    })
}

fn is_unknown(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status)) => status.code == 404,
        _ => false,
    }
}

/// Views by the questions that decisions ask.
#[derive(Default)]
pub struct Index {
    namespaces: HashMap<String, NamespaceView>,
    nodes: HashMap<String, BTreeMap<String, String>>,
    pods: HashMap<String, HashMap<String, PodView>>,
    /// By holder's UID: namespace and name of the pods that it holds.
    held: HashMap<String, BTreeSet<(String, String)>>,
    /// By owner's UID: namespace and name of the pods that it owns.
    owned: HashMap<String, BTreeSet<(String, String)>>,
    /// Our CRDs that are being deleted.
    leaving: BTreeSet<String>,
    /// By node: what it says of itself.
    healths: HashMap<String, NodeHealth>,
    policies: BTreeMap<String, ChaosPolicy>,
    /// The same as decisions ask for them.
    rules: Policies,
    /// By namespace.
    budgets: HashMap<String, Vec<Budget>>,
    /// Those with a key of ours.
    workloads: HashMap<WorkloadKey, WorkloadView>,
    /// Of those the protected ones, as [`PodView::workload`] names them, each with its namespace before it.
    shields: BTreeSet<(String, String)>,
}

impl Index {
    /// All policies, as decisions ask for them.
    pub fn rules(&self) -> &Policies {
        &self.rules
    }

    /// All policies, as they are written.
    pub fn policies(&self) -> impl Iterator<Item = &ChaosPolicy> {
        self.policies.values()
    }

    /// What nodes say of themselves.
    pub fn node_healths(&self) -> impl Iterator<Item = &NodeHealth> {
        self.healths.values()
    }

    /// All namespaces.
    pub fn namespaces(&self) -> impl Iterator<Item = &NamespaceView> {
        self.namespaces.values()
    }

    /// The PodDisruptionBudgets of a namespace.
    pub fn budgets_in(&self, namespace: &str) -> &[Budget] {
        self.budgets.get(namespace).map(Vec::as_slice).unwrap_or_default()
    }

    /// A namespace.
    pub fn namespace(&self, name: &str) -> Option<&NamespaceView> {
        self.namespaces.get(name)
    }

    /// Squall itself is being removed: its namespace or one of its CRDs has a deletion mark.
    pub fn is_leaving(&self) -> bool {
        !self.leaving.is_empty()
            || self.namespace(names::NAMESPACE).is_some_and(|namespace| namespace.terminating)
    }

    /// A node's labels.
    pub fn node_labels(&self, name: &str) -> Option<&BTreeMap<String, String>> {
        self.nodes.get(name)
    }

    /// A pod by name.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<&PodView> {
        self.pods.get(namespace)?.get(name)
    }

    /// The pods of a namespace.
    pub fn pods_in<'a>(&'a self, namespace: &str) -> impl Iterator<Item = &'a PodView> + use<'a> {
        self.pods.get(namespace).into_iter().flat_map(HashMap::values)
    }

    /// Every pod.
    pub fn pods_everywhere(&self) -> impl Iterator<Item = &PodView> {
        self.pods.values().flat_map(HashMap::values)
    }

    /// The pods that the holder holds.
    pub fn held_by<'a>(&'a self, holder: &str) -> impl Iterator<Item = &'a PodView> + use<'a> {
        self.listed(self.held.get(holder))
    }

    /// The pods that the workload owns.
    pub fn owned_by<'a>(&'a self, owner: &str) -> impl Iterator<Item = &'a PodView> + use<'a> {
        self.listed(self.owned.get(owner))
    }

    /// The pods that anyone holds.
    pub fn all_held(&self) -> impl Iterator<Item = &PodView> {
        self.held.values().flat_map(|keys| self.listed(Some(keys)))
    }

    fn listed<'a>(
        &'a self,
        keys: Option<&'a BTreeSet<(String, String)>>,
    ) -> impl Iterator<Item = &'a PodView> {
        keys.into_iter().flatten().filter_map(|(namespace, name)| self.pod(namespace, name))
    }

    fn put_pod(&mut self, mut pod: PodView) -> Option<Change> {
        pod.shielded = self.is_shielded(&pod);
        let old = self.take_pod(&pod.namespace, &pod.name);
        let key = || (pod.namespace.clone(), pod.name.clone());
        for holder in holders(&pod) {
            self.held.entry(holder.to_owned()).or_default().insert(key());
        }
        if let Some(owner) = &pod.owner {
            self.owned.entry(owner.uid.clone()).or_default().insert(key());
        }
        let new = Some(Box::new(pod.clone()));
        self.pods.entry(pod.namespace.clone()).or_default().insert(pod.name.clone(), pod);
        Some(Change::Pod { old: old.map(Box::new), new })
    }

    fn take_pod(&mut self, namespace: &str, name: &str) -> Option<PodView> {
        let pods = self.pods.get_mut(namespace)?;
        let pod = pods.remove(name)?;
        if pods.is_empty() {
            self.pods.remove(namespace);
        }
        let key = (namespace.to_owned(), name.to_owned());
        for holder in holders(&pod) {
            forget(&mut self.held, holder, &key);
        }
        if let Some(owner) = &pod.owner {
            forget(&mut self.owned, &owner.uid, &key);
        }
        Some(pod)
    }

    fn pods() -> Kind<PodView> {
        Kind {
            put: Index::put_pod,
            remove: |index, pod| {
                let known = index.pod(&pod.namespace, &pod.name)?;
                // The name may have been taken over by then.
                if known.uid != pod.uid {
                    return None;
                }
                let old = index.take_pod(&pod.namespace, &pod.name)?;
                Some(Change::Pod { old: Some(Box::new(old)), new: None })
            },
            retain: Box::new(|index, listed| {
                let there: BTreeSet<(&str, &str)> =
                    listed.iter().map(|pod| (pod.namespace.as_str(), pod.name.as_str())).collect();
                let gone: Vec<(String, String)> = index
                    .pods
                    .iter()
                    .flat_map(|(namespace, pods)| pods.keys().map(move |name| (namespace, name)))
                    .filter(|(namespace, name)| !there.contains(&(namespace.as_str(), name.as_str())))
                    .map(|(namespace, name)| (namespace.clone(), name.clone()))
                    .collect();
                gone.iter()
                    .filter_map(|(namespace, name)| index.take_pod(namespace, name))
                    .map(|old| Change::Pod { old: Some(Box::new(old)), new: None })
                    .collect()
            }),
        }
    }

    fn policies_kind() -> Kind<ChaosPolicy> {
        Kind {
            put: |index, policy| {
                let name = policy.metadata.name.clone().unwrap_or_default();
                let changed = index.rules.put(Policy::of(&policy));
                index.policies.insert(name.clone(), policy);
                // That its usage was written is no news: we wrote it.
                changed.then_some(Change::Policy(name))
            },
            remove: |index, policy| {
                let name = policy.metadata.name.clone().unwrap_or_default();
                index.policies.remove(&name)?;
                index.rule();
                Some(Change::Policy(name))
            },
            retain: Box::new(|index, listed| {
                let there: BTreeSet<&String> =
                    listed.iter().filter_map(|policy| policy.metadata.name.as_ref()).collect();
                let gone: Vec<String> =
                    index.policies.keys().filter(|name| !there.contains(name)).cloned().collect();
                index.policies.retain(|name, _| there.contains(name));
                index.rule();
                gone.into_iter().map(Change::Policy).collect()
            }),
        }
    }

    /// What the policies say now.
    fn rule(&mut self) {
        self.rules = Policies::new(self.policies.values().map(Policy::of));
    }

    fn budgets_kind() -> Kind<Budget> {
        fn take(index: &mut Index, namespace: &str, name: &str) {
            if let Some(list) = index.budgets.get_mut(namespace) {
                list.retain(|budget| budget.name != name);
                if list.is_empty() {
                    index.budgets.remove(namespace);
                }
            }
        }
        // Nobody waits for a budget: whoever has too few targets looks again when its pods change.
        Kind {
            put: |index, budget| {
                take(index, &budget.namespace, &budget.name);
                index.budgets.entry(budget.namespace.clone()).or_default().push(budget);
                None
            },
            remove: |index, budget| {
                take(index, &budget.namespace, &budget.name);
                None
            },
            retain: Box::new(|index, _| {
                index.budgets.clear();
                Vec::new()
            }),
        }
    }

    fn namespaces_kind() -> Kind<NamespaceView> {
        Kind {
            put: |index, view| {
                let name = view.name.clone();
                let old = index.namespaces.insert(name.clone(), view);
                (old.as_ref() != index.namespaces.get(&name)).then_some(Change::Namespace(name))
            },
            remove: |index, view| {
                index.namespaces.remove(&view.name).map(|view| Change::Namespace(view.name))
            },
            retain: Box::new(|index, listed| {
                let gone: Vec<String> = index
                    .namespaces
                    .keys()
                    .filter(|name| !listed.iter().any(|view| &view.name == *name))
                    .cloned()
                    .collect();
                gone.into_iter()
                    .filter_map(|name| index.namespaces.remove(&name))
                    .map(|view| Change::Namespace(view.name))
                    .collect()
            }),
        }
    }

    fn nodes() -> Kind<NodeView> {
        Kind {
            put: |index, node| {
                let old = index.nodes.insert(node.name.clone(), node.labels);
                index.healths.insert(node.name.clone(), node.health);
                // Nodes report themselves every few seconds, and nothing of that matters here.
                (old.as_ref() != index.nodes.get(&node.name)).then_some(Change::Node(node.name))
            },
            remove: |index, node| {
                index.healths.remove(&node.name);
                index.nodes.remove(&node.name).map(|_| Change::Node(node.name.clone()))
            },
            retain: Box::new(|index, listed| {
                let there: BTreeSet<&str> = listed.iter().map(|node| node.name.as_str()).collect();
                index.healths.retain(|name, _| there.contains(name.as_str()));
                index
                    .nodes
                    .extract_if(|name, _| !there.contains(name.as_str()))
                    .map(|(name, _)| Change::Node(name))
                    .collect()
            }),
        }
    }

    /// The CRD `name`: each watch is of one, and says nothing of the others.
    fn crds(name: &'static str) -> Kind<CrdView> {
        Kind {
            put: |index, crd| {
                let changed = if crd.terminating {
                    index.leaving.insert(crd.name)
                } else {
                    index.leaving.remove(&crd.name)
                };
                changed.then_some(Change::Leaving)
            },
            remove: |index, crd| index.leaving.remove(&crd.name).then_some(Change::Leaving),
            retain: Box::new(move |index, listed| {
                let gone = listed.is_empty() && index.leaving.remove(name);
                gone.then_some(Change::Leaving).into_iter().collect()
            }),
        }
    }
}

/// The UIDs under which a pod is held; one with a record that names nobody is held by nobody, the empty UID.
fn holders(pod: &PodView) -> impl Iterator<Item = &str> {
    let recorded =
        [names::HELD_BY, names::ORIGINAL_IMAGES].iter().any(|key| pod.annotations.contains_key(*key));
    let nobody = (recorded && pod.held_by.is_empty()).then_some("");
    pod.held_by.iter().map(|holder| holder.uid.as_str()).chain(nobody)
}

fn forget(map: &mut HashMap<String, BTreeSet<(String, String)>>, uid: &str, key: &(String, String)) {
    if let Some(keys) = map.get_mut(uid) {
        keys.remove(key);
        if keys.is_empty() {
            map.remove(uid);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;
    use kube_runtime::reflector;
    use squall_api::StressChaos;
    use squall_model::pod::Owner;
    use squall_model::substitute::Holder;

    use super::*;

    fn pod(name: &str, uid: &str, holder: Option<&str>) -> PodView {
        PodView {
            namespace: "ns".into(),
            name: name.into(),
            uid: uid.into(),
            owner: Some(Owner { kind: "ReplicaSet".into(), name: "rs".into(), uid: "rs-uid".into() }),
            held_by: holder.map(|uid| Holder { uid: uid.into(), ..Holder::default() }).into_iter().collect(),
            ..PodView::default()
        }
    }

    #[test]
    fn every_question_is_answered_from_the_newest_view() {
        let mut index = Index::default();
        index.put_pod(pod("a", "1", Some("x")));
        index.put_pod(pod("b", "2", None));
        assert_eq!(index.held_by("x").count(), 1);
        assert_eq!(index.owned_by("rs-uid").count(), 2);
        index.put_pod(pod("a", "1", None));
        assert_eq!(index.held_by("x").count(), 0);
        assert_eq!(index.pods_in("ns").count(), 2);
        index.take_pod("ns", "a");
        index.take_pod("ns", "b");
        assert_eq!(index.owned_by("rs-uid").count(), 0);
        assert!(index.pods.is_empty() && index.held.is_empty() && index.owned.is_empty());
    }

    #[test]
    fn a_late_deletion_does_not_remove_the_pod_that_took_the_name_over() {
        let mut index = Index::default();
        index.put_pod(pod("a", "2", None));
        assert_eq!((Index::pods().remove)(&mut index, &pod("a", "1", None)), None);
        assert!(index.pod("ns", "a").is_some());
    }

    #[test]
    fn a_node_is_told_of_when_its_labels_change_only() {
        let mut index = Index::default();
        let node = |zone: &str| NodeView {
            name: "n".into(),
            labels: [("zone".into(), zone.into())].into(),
            ..NodeView::default()
        };
        let told = Some(Change::Node("n".to_owned()));
        assert_eq!((Index::nodes().put)(&mut index, node("a")), told);
        assert_eq!((Index::nodes().put)(&mut index, node("a")), None);
        assert_eq!((Index::nodes().put)(&mut index, node("b")), told);
        assert_eq!((Index::nodes().retain)(&mut index, &[]), [Change::Node("n".to_owned())]);
        assert_eq!(index.node_labels("n"), None);
    }

    #[test]
    fn a_crd_on_its_way_out_means_that_squall_is_removed_until_it_is_gone() {
        let mut index = Index::default();
        let crd = |terminating| CrdView { name: names::CRDS[0].into(), terminating };
        let crds = || Index::crds(names::CRDS[0]);
        assert_eq!((crds().put)(&mut index, crd(false)), None);
        assert!(!index.is_leaving());
        assert_eq!((crds().put)(&mut index, crd(true)), Some(Change::Leaving));
        assert_eq!((crds().put)(&mut index, crd(true)), None);
        assert!(index.is_leaving());
        assert_eq!((crds().remove)(&mut index, &crd(true)), Some(Change::Leaving));
        assert!(!index.is_leaving());
    }

    #[test]
    fn a_listing_without_one_crd_says_nothing_of_another() {
        let mut index = Index::default();
        let crd = CrdView { name: names::CRDS[1].into(), terminating: true };
        (Index::crds(names::CRDS[1]).put)(&mut index, crd);
        assert_eq!((Index::crds(names::CRDS[0]).retain)(&mut index, &[]), []);
        assert!(index.is_leaving());
        assert_eq!((Index::crds(names::CRDS[1]).retain)(&mut index, &[]), [Change::Leaving]);
        assert!(!index.is_leaving());
    }

    #[test]
    fn a_new_listing_removes_what_it_does_not_name() {
        let mut index = Index::default();
        index.put_pod(pod("a", "1", None));
        index.put_pod(pod("b", "2", None));
        let gone = (Index::pods().retain)(&mut index, &[pod("b", "2", None)]);
        assert_eq!(gone.len(), 1);
        assert!(index.pod("ns", "a").is_none() && index.pod("ns", "b").is_some());
    }

    fn failed(code: u16) -> Result<Event<StressChaos>, watcher::Error> {
        let status = kube::core::Status { code, ..kube::core::Status::default() };
        Err(watcher::Error::InitialListFailed(kube::Error::Api(Box::new(status))))
    }

    /// Whether the kind counts as listed after these.
    fn listed(events: Vec<Result<Event<StressChaos>, watcher::Error>>) -> bool {
        let (store, writer) = reflector::store();
        let events = absent_is_empty(futures::stream::iter(events)).reflect(writer);
        block_on(events.for_each(|_| async {}));
        // The writer is gone with the stream: what isn't ready now never is.
        let ready = block_on(store.wait_until_ready()).is_ok();
        assert!(store.is_empty());
        ready
    }

    #[test]
    fn a_kind_that_is_not_installed_holds_up_nobody_and_one_that_cannot_be_read_is_waited_for() {
        assert!(listed(vec![failed(404)]));
        assert!(listed(vec![failed(403), failed(404), failed(404)]));
        assert!(!listed(vec![failed(403), failed(500)]));
        assert!(!listed(vec![Ok(Event::Init), failed(410)]));
    }
}
