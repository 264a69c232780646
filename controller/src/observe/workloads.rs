//! Workloads, by their metadata alone: which of them ask for small faults, and which are to be left alone. Of those
//! without a key of ours nothing is kept.

use std::fmt::Debug;

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use kube::api::PartialObjectMeta;
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource};
use kube_runtime::watcher::{self, watcher};
use serde::de::DeserializeOwned;
use squall_model::pod::{PodView, says_protect};

use super::{Change, Feed, Index, Kind};
use crate::annotate::is_marked;

/// How many kinds of workloads are watched.
pub(super) const KINDS: u8 = 5;

/// A workload.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct WorkloadKey {
    /// Its kind, as written.
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// A workload as decisions see it.
#[derive(Clone, Debug, PartialEq, Default)]
pub(super) struct WorkloadView {
    key: WorkloadKey,
    uid: String,
    /// The UID of what controls it.
    owner: Option<String>,
    /// It asks for a small fault, or did.
    marked: bool,
    /// It says that its pods are to be left alone.
    protected: bool,
}

fn view<K>(object: &PartialObjectMeta<K>) -> WorkloadView
where
    K: Resource<DynamicType = ()>,
{
    let meta = &object.metadata;
    let owners = meta.owner_references.iter().flatten();
    WorkloadView {
        key: WorkloadKey {
            kind: K::kind(&()).into_owned(),
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
        },
        uid: meta.uid.clone().unwrap_or_default(),
        owner: owners.into_iter().find(|owner| owner.controller == Some(true)).map(|owner| owner.uid.clone()),
        marked: meta.annotations.as_ref().is_some_and(is_marked),
        protected: says_protect(meta.labels.as_ref(), meta.annotations.as_ref()),
    }
}

/// Follow every kind of workload.
pub(super) fn start(client: &Client, feed: &Feed) {
    follow::<Deployment>(client, feed);
    follow::<StatefulSet>(client, feed);
    follow::<DaemonSet>(client, feed);
    follow::<ReplicaSet>(client, feed);
    follow::<Job>(client, feed);
}

fn follow<K>(client: &Client, feed: &Feed)
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + Sync
        + 'static,
{
    let all = Api::<PartialObjectMeta<K>>::all(client.clone());
    feed.start(watcher(all, watcher::Config::default()), view::<K>, Index::workloads(&K::kind(&())));
}

impl Index {
    /// The workloads that ask for a small fault, or did.
    pub fn marked(&self) -> impl Iterator<Item = &WorkloadKey> {
        self.workloads.iter().filter(|(_, known)| known.marked).map(|(key, _)| key)
    }

    /// Whether the workload of `pod` says that its pods are to be left alone. What a Deployment says its ReplicaSets
    /// need not: they keep copies of annotations for longer.
    pub(super) fn is_shielded(&self, pod: &PodView) -> bool {
        !self.shields.is_empty() && self.shields.contains(&(pod.namespace.clone(), pod.workload()))
    }

    fn put_workload(&mut self, now: WorkloadView) -> Option<Change> {
        let before = self.workloads.remove(&now.key);
        let told = before.as_ref().is_some_and(|before| before.marked) || now.marked;
        let mut woken = Vec::new();
        if told {
            // What a Deployment no longer has its copies must not keep.
            let copies = self.workloads.iter().filter(|(_, known)| {
                known.marked && known.owner.is_some() && known.owner.as_ref() == Some(&now.uid)
            });
            woken.extend(copies.map(|(key, _)| key.clone()));
            woken.push(now.key.clone());
        }
        let pods = self.shield(&now.key, now.protected);
        if now.marked || now.protected {
            self.workloads.insert(now.key.clone(), now);
        }
        (!woken.is_empty() || !pods.is_empty()).then_some(Change::Workload { woken, pods })
    }

    fn take_workload(&mut self, key: &WorkloadKey) -> Option<Change> {
        self.workloads.remove(key)?;
        let pods = self.shield(key, false);
        (!pods.is_empty()).then_some(Change::Workload { woken: Vec::new(), pods })
    }

    /// The pods of the workload are to be left alone, or not any more; those for which that is news.
    fn shield(&mut self, key: &WorkloadKey, shielded: bool) -> Vec<PodView> {
        let name = format!("{}/{}", key.kind, key.name);
        let entry = (key.namespace.clone(), name);
        let news = if shielded { self.shields.insert(entry.clone()) } else { self.shields.remove(&entry) };
        if !news {
            return Vec::new();
        }
        let pods = self.pods.get_mut(&key.namespace).into_iter().flat_map(|pods| pods.values_mut());
        pods.filter(|pod| pod.workload() == entry.1)
            .map(|pod| {
                pod.shielded = shielded;
                pod.clone()
            })
            .collect()
    }

    fn workloads(kind: &str) -> Kind<WorkloadView> {
        let kind = kind.to_owned();
        Kind {
            put: Index::put_workload,
            remove: |index, workload| index.take_workload(&workload.key),
            retain: Box::new(move |index, listed| {
                let gone: Vec<WorkloadKey> = index
                    .workloads
                    .keys()
                    .filter(|key| key.kind == kind && !listed.iter().any(|view| view.key == **key))
                    .cloned()
                    .collect();
                gone.iter().filter_map(|key| index.take_workload(key)).collect()
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use squall_model::pod::Owner;

    use super::*;

    fn workload(kind: &str, marked: bool, protected: bool) -> WorkloadView {
        WorkloadView {
            key: WorkloadKey { kind: kind.into(), namespace: "shop".into(), name: "web".into() },
            uid: format!("{kind}-uid"),
            owner: None,
            marked,
            protected,
        }
    }

    fn pod(name: &str, set: &str) -> PodView {
        PodView {
            namespace: "shop".into(),
            name: name.into(),
            uid: name.into(),
            owner: Some(Owner { kind: "ReplicaSet".into(), name: set.into(), uid: set.into() }),
            labels: [("pod-template-hash".to_owned(), "abc".to_owned())].into(),
            ..PodView::default()
        }
    }

    fn shielded(index: &Index, name: &str) -> bool {
        index.pod("shop", name).is_some_and(|pod| pod.shielded)
    }

    #[test]
    fn what_a_deployment_says_holds_for_its_pods_whichever_comes_first() {
        let mut index = Index::default();
        index.put_pod(pod("early", "web-abc"));
        index.put_pod(pod("other", "api-abc"));
        let Some(Change::Workload { woken, pods }) = index.put_workload(workload("Deployment", false, true))
        else {
            panic!("it is news")
        };
        assert_eq!((woken.len(), pods.len(), pods[0].name.as_str()), (0, 1, "early"));
        index.put_pod(pod("late", "web-abc"));
        assert!(shielded(&index, "early") && shielded(&index, "late") && !shielded(&index, "other"));
        assert_eq!(index.put_workload(workload("Deployment", false, true)), None);
        // What its copies say is not asked.
        assert_eq!(index.put_workload(workload("Deployment", false, false)).map(|_| ()), Some(()));
        assert!(!shielded(&index, "early") && !shielded(&index, "late"));
        assert!(index.workloads.is_empty() && index.shields.is_empty());
    }

    #[test]
    fn a_listing_of_one_kind_says_nothing_of_another() {
        let mut index = Index::default();
        index.put_pod(pod("web", "web-abc"));
        index.put_workload(workload("Deployment", false, true));
        index.put_workload(workload("StatefulSet", true, false));
        let listed = |index: &mut Index, kind: &str| (Index::workloads(kind).retain)(index, &[]);
        assert_eq!(listed(&mut index, "Job"), []);
        assert_eq!(listed(&mut index, "StatefulSet"), []);
        assert!(index.marked().next().is_none() && shielded(&index, "web"));
        assert_eq!(listed(&mut index, "Deployment").len(), 1);
        assert!(!shielded(&index, "web"));
    }

    #[test]
    fn copies_are_looked_at_with_their_original() {
        let mut index = Index::default();
        let copy =
            WorkloadView { owner: Some("Deployment-uid".into()), ..workload("ReplicaSet", true, false) };
        index.put_workload(copy);
        index.put_workload(workload("Deployment", true, false));
        let Some(Change::Workload { woken, .. }) = index.put_workload(workload("Deployment", false, false))
        else {
            panic!("it is news")
        };
        assert_eq!(
            woken.iter().map(|key| key.kind.as_str()).collect::<Vec<_>>(),
            ["ReplicaSet", "Deployment"]
        );
        assert_eq!(index.put_workload(workload("Deployment", false, false)), None);
    }
}
