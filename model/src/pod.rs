//! The view of a pod, and of its namespace, that decisions are made on. Small, because the controller keeps
//! one for every pod.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Pod};

use crate::substitute::Holder;

/// A pod as decisions see it.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct PodView {
    /// Namespace.
    pub namespace: String,
    /// Name; at birth it may be empty (generateName).
    pub name: String,
    /// UID; empty at birth.
    pub uid: String,
    /// `metadata.resourceVersion`.
    pub resource_version: String,
    /// All labels.
    pub labels: BTreeMap<String, String>,
    /// All annotations but the large ones of kubectl (`last-applied-configuration`).
    pub annotations: BTreeMap<String, String>,
    /// `spec.nodeName`.
    pub node: Option<String>,
    /// `status.phase`: Pending, Running, Succeeded, Failed, Unknown.
    pub phase: String,
    /// `metadata.creationTimestamp`.
    pub created: Option<Timestamp>,
    /// It has a deletion mark.
    pub terminating: bool,
    /// The Ready condition is True.
    pub ready: bool,
    /// When the Ready condition last changed (whole seconds, as the kubelet writes it).
    pub ready_since: Option<Timestamp>,
    /// A static pod's mirror.
    pub mirror: bool,
    /// `spec.restartPolicy` is Never.
    pub never_restarts: bool,
    /// The controlling owner.
    pub owner: Option<Owner>,
    /// `spec.schedulerName`, `spec.serviceAccountName`, `spec.restartPolicy`, `status.podIP` for fieldSelectors.
    pub fields: BTreeMap<&'static str, String>,
    /// Init containers (native sidecars among them) first, then containers, each in the order of the spec.
    pub containers: Vec<ContainerView>,
    /// Who holds it, by its record ([`squall_api::names::HELD_BY`]); empty if nobody or unreadable.
    pub held_by: Vec<Holder>,
}

/// The controlling owner of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Owner {
    /// Kind, such as `ReplicaSet`.
    pub kind: String,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
}

/// One container of a pod.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct ContainerView {
    /// Name.
    pub name: String,
    /// What kind it is.
    pub kind: ContainerKind,
    /// `spec…image`, as it is now.
    pub image: String,
    /// `status…containerID`, with the runtime's scheme.
    pub id: Option<String>,
    /// `status…image`/`imageID` belong to what runs; this is `status…image`.
    pub running_image: Option<String>,
    /// State.
    pub state: ContainerState,
    /// Ready.
    pub ready: bool,
    /// Restarts.
    pub restarts: i32,
}

/// See [`ContainerView::kind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ContainerKind {
    /// Runs to its end before the containers start.
    Init,
    /// An init container with restartPolicy Always: starts before the containers and stays.
    Sidecar,
    /// A container.
    #[default]
    Main,
}

/// See [`ContainerView::state`].
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum ContainerState {
    /// Not started, or not yet told.
    #[default]
    Unknown,
    /// Waiting, with the reason (`ContainerCreating`, `CrashLoopBackOff`, `ErrImagePull`, …).
    Waiting(String),
    /// Running since.
    Running(Option<Timestamp>),
    /// Terminated: exit code, and when.
    Terminated(i32, Option<Timestamp>),
}

/// A namespace as decisions see it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct NamespaceView {
    /// Name.
    pub name: String,
    /// [`squall_api::names::INJECT`] says so, and no protection of ours forbids it.
    pub opted_in: bool,
    /// [`squall_api::names::PROTECT`] as label or annotation.
    pub protect: bool,
    /// It has a deletion mark.
    pub terminating: bool,
}

impl PodView {
    /// The view of `pod`.
    pub fn of(pod: &Pod) -> Self {
        let _ = pod;
        todo!("helper: model core")
    }
}

impl NamespaceView {
    /// The view of `namespace`.
    pub fn of(namespace: &Namespace) -> Self {
        let _ = namespace;
        todo!("helper: model core")
    }
}
