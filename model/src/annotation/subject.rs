//! An object that is annotated, as decisions see it: the same view of a pod and of every workload.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use serde::Deserialize;

/// Kinds that take annotations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A pod.
    Pod,
    /// A Deployment.
    Deployment,
    /// A StatefulSet.
    StatefulSet,
    /// A DaemonSet.
    DaemonSet,
    /// A ReplicaSet; one of a Deployment's is but a copy.
    ReplicaSet,
}

impl Kind {
    /// Every one.
    pub const ALL: [Self; 5] =
        [Self::Pod, Self::Deployment, Self::StatefulSet, Self::DaemonSet, Self::ReplicaSet];

    /// Group, version, kind and plural.
    pub fn names(self) -> (&'static str, &'static str, &'static str, &'static str) {
        match self {
            Self::Pod => ("", "v1", "Pod", "pods"),
            Self::Deployment => ("apps", "v1", "Deployment", "deployments"),
            Self::StatefulSet => ("apps", "v1", "StatefulSet", "statefulsets"),
            Self::DaemonSet => ("apps", "v1", "DaemonSet", "daemonsets"),
            Self::ReplicaSet => ("apps", "v1", "ReplicaSet", "replicasets"),
        }
    }

    /// The kind with these names.
    pub fn of(group: &str, version: &str, kind: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| {
            let (its_group, its_version, its_kind, _) = one.names();
            (its_group, its_version, its_kind) == (group, version, kind)
        })
    }

    /// The kind, as written.
    pub fn word(self) -> &'static str {
        self.names().2
    }

    /// Group and version, as written in an object.
    pub fn api_version(self) -> String {
        match self.names() {
            ("", version, _, _) => version.to_owned(),
            (group, version, _, _) => format!("{group}/{version}"),
        }
    }

    /// Whether `owner` is of this kind.
    pub fn is_that_of(self, owner: &OwnerReference) -> bool {
        owner.kind == self.word() && owner.api_version == self.api_version()
    }
}

/// The object.
#[derive(Clone, Debug, PartialEq)]
pub struct Subject {
    /// What it is.
    pub kind: Kind,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// The controlling owner.
    pub owner: Option<OwnerReference>,
    /// It has a deletion mark.
    pub terminating: bool,
    /// Which pods are a workload's.
    pub selector: Option<LabelSelector>,
    /// The names of the containers, init containers first.
    pub containers: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(default)]
    metadata: ObjectMeta,
    #[serde(default)]
    spec: Option<Spec>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(default)]
    selector: Option<LabelSelector>,
    #[serde(default)]
    template: Option<Template>,
    #[serde(default)]
    init_containers: Option<Vec<Container>>,
    #[serde(default)]
    containers: Option<Vec<Container>>,
}

#[derive(Deserialize)]
struct Template {
    #[serde(default)]
    spec: Option<Box<Spec>>,
}

#[derive(Deserialize)]
struct Container {
    #[serde(default)]
    name: String,
}

impl Subject {
    /// The view of the object `json`.
    pub fn read(kind: Kind, json: &str) -> Result<Self, serde_json::Error> {
        let Raw { metadata, spec } = serde_json::from_str(json)?;
        let Spec { selector, template, init_containers, containers } = spec.unwrap_or_default();
        let (init_containers, containers) = match template.and_then(|template| template.spec) {
            Some(pod) => (pod.init_containers, pod.containers),
            None => (init_containers, containers),
        };
        let all = init_containers.into_iter().flatten().chain(containers.into_iter().flatten());
        let owner = metadata.owner_references.into_iter().flatten();
        Ok(Self {
            kind,
            namespace: metadata.namespace.unwrap_or_default(),
            name: metadata.name.unwrap_or_default(),
            uid: metadata.uid.unwrap_or_default(),
            labels: metadata.labels.unwrap_or_default(),
            annotations: metadata.annotations.unwrap_or_default(),
            owner: owner.into_iter().find(|owner| owner.controller == Some(true)),
            terminating: metadata.deletion_timestamp.is_some(),
            selector,
            containers: all.map(|container| container.name).collect(),
        })
    }

    /// The Deployment whose copy it is, if it is one.
    pub fn copied_from(&self) -> Option<&OwnerReference> {
        self.owner
            .as_ref()
            .filter(|owner| self.kind == Kind::ReplicaSet && Kind::Deployment.is_that_of(owner))
    }
}
