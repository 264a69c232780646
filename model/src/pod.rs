//! The view of a pod, and of its namespace, that decisions are made on. Small, because the controller keeps
//! one for every pod.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    self as core, Container, ContainerStatus, Namespace, Pod, PodSpec, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use squall_api::names;

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
    /// How many seconds it has to end, when it is deleted and nobody says otherwise
    /// (`spec.terminationGracePeriodSeconds`).
    pub grace: Option<i64>,
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
    /// [`squall_api::names::PROTECT`] is on its [workload](Self::workload). Not read from the pod: whoever keeps views
    /// fills it in.
    pub shielded: bool,
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
    /// `status…image`/`imageID` belong to what runs; this is `status…image`, where that names a repository.
    pub running_image: Option<String>,
    /// State.
    pub state: ContainerState,
    /// Ready.
    pub ready: bool,
    /// Restarts.
    pub restarts: i32,
    /// Whether it is started again when it has ended: its own restartPolicy, or else its pod's.
    pub comes_back: ComesBack,
}

/// See [`ContainerView::comes_back`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ComesBack {
    /// However it has ended.
    #[default]
    Always,
    /// Not if it has ended well, as many do when they are asked to by a signal.
    OnFailure,
    /// Never.
    Never,
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
    /// All labels: policies are chosen by them.
    pub labels: BTreeMap<String, String>,
    /// [`squall_api::names::HALT`]: nothing is hit there, and why.
    pub halt: Option<String>,
}

/// Annotations with a longer value are not kept (our own are): no decision rests on them, and the controller
/// holds one view for every pod.
pub const LONGEST_ANNOTATION: usize = 1024;

/// The annotation of kubectl that holds the whole object once more; never kept.
pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

const MIRROR: &str = "kubernetes.io/config.mirror";

impl ContainerView {
    /// Whether it runs, and it is known as what.
    pub fn runs(&self) -> bool {
        matches!(self.state, ContainerState::Running(_)) && self.id.is_some()
    }
}

impl PodView {
    /// The view of `pod`. What is missing there is empty here.
    pub fn of(pod: &Pod) -> Self {
        let meta = &pod.metadata;
        let spec = pod.spec.as_ref();
        let status = pod.status.as_ref();
        let owner = meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
        let annotations = meta.annotations.as_ref();
        let ready = status
            .and_then(|status| status.conditions.as_ref())
            .and_then(|conditions| conditions.iter().find(|condition| condition.type_ == "Ready"));
        let restart_policy = spec.and_then(|spec| spec.restart_policy.as_deref());

        let mut fields = BTreeMap::new();
        let mut field = |key: &'static str, value: Option<&String>| {
            if let Some(value) = value.filter(|value| !value.is_empty()) {
                fields.insert(key, value.clone());
            }
        };
        field("spec.schedulerName", spec.and_then(|spec| spec.scheduler_name.as_ref()));
        field("spec.serviceAccountName", spec.and_then(|spec| spec.service_account_name.as_ref()));
        field("spec.restartPolicy", spec.and_then(|spec| spec.restart_policy.as_ref()));
        field("status.podIP", status.and_then(|status| status.pod_ip.as_ref()));

        Self {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            resource_version: meta.resource_version.clone().unwrap_or_default(),
            labels: meta.labels.clone().unwrap_or_default(),
            annotations: annotations
                .into_iter()
                .flatten()
                .filter(|(key, value)| is_kept(key, value))
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
            node: spec.and_then(|spec| spec.node_name.clone()).filter(|node| !node.is_empty()),
            phase: status.and_then(|status| status.phase.clone()).unwrap_or_default(),
            created: meta.creation_timestamp.as_ref().map(|time| time.0),
            terminating: meta.deletion_timestamp.is_some(),
            grace: spec.and_then(|spec| spec.termination_grace_period_seconds),
            ready: ready.is_some_and(|condition| condition.status == "True"),
            ready_since: ready
                .and_then(|condition| condition.last_transition_time.as_ref())
                .map(|time| time.0),
            // The kubelet also makes the node the mirror's owner; either is enough.
            mirror: annotations.is_some_and(|annotations| annotations.contains_key(MIRROR))
                || owner.is_some_and(|owner| owner.kind == "Node" && owner.api_version == "v1"),
            never_restarts: restart_policy == Some("Never"),
            owner: owner.map(|owner| Owner {
                kind: owner.kind.clone(),
                name: owner.name.clone(),
                uid: owner.uid.clone(),
            }),
            fields,
            containers: containers(spec, status),
            held_by: annotations
                .and_then(|annotations| annotations.get(names::HELD_BY))
                .map(|record| holders(record))
                .unwrap_or_default(),
            shielded: false,
        }
    }

    /// As much of the pod as a view knows: enough to put its images back and take our keys away, not enough to fail
    /// it. Its maps are never empty, so that the difference to a changed sketch takes away keys of ours and never the
    /// map, which may hold more than the view kept.
    pub fn sketch(&self) -> Pod {
        let map = |kept: &BTreeMap<String, String>| {
            let mut map = kept.clone();
            map.insert(String::new(), String::new());
            Some(map)
        };
        let containers = |init: bool| {
            let of_this_kind =
                self.containers.iter().filter(move |one| (one.kind != ContainerKind::Main) == init);
            of_this_kind
                .map(|one| Container {
                    name: one.name.clone(),
                    image: Some(one.image.clone()).filter(|image| !image.is_empty()),
                    restart_policy: (one.kind == ContainerKind::Sidecar).then(|| "Always".to_owned()),
                    ..Container::default()
                })
                .collect()
        };
        Pod {
            metadata: ObjectMeta {
                namespace: Some(self.namespace.clone()),
                name: Some(self.name.clone()),
                uid: Some(self.uid.clone()),
                resource_version: Some(self.resource_version.clone()),
                labels: map(&self.labels),
                annotations: map(&self.annotations),
                ..ObjectMeta::default()
            },
            spec: Some(PodSpec {
                init_containers: Some(containers(true)),
                containers: containers(false),
                ..PodSpec::default()
            }),
            status: None,
        }
    }

    /// The workload that it belongs to, as `KIND/NAME`: a Deployment through its ReplicaSet, else the controlling
    /// owner; a bare pod is one of its own.
    pub fn workload(&self) -> String {
        let Some(owner) = &self.owner else { return format!("Pod/{}", self.name) };
        let deployment = || {
            let hash = self.labels.get("pod-template-hash")?;
            owner.name.strip_suffix(hash.as_str())?.strip_suffix('-')
        };
        match owner.kind.as_str() {
            "ReplicaSet" => match deployment() {
                Some(name) => format!("Deployment/{name}"),
                None => format!("ReplicaSet/{}", owner.name),
            },
            kind => format!("{kind}/{}", owner.name),
        }
    }

    /// Whether the pod itself asks to be left alone.
    pub fn is_protected(&self) -> bool {
        says_protect(Some(&self.labels), Some(&self.annotations))
    }
}

impl NamespaceView {
    /// The view of `namespace`.
    pub fn of(namespace: &Namespace) -> Self {
        let meta = &namespace.metadata;
        let name = meta.name.clone().unwrap_or_default();
        let label = meta.labels.as_ref().and_then(|labels| labels.get(names::INJECT));
        Self {
            opted_in: label.is_some_and(|value| value == names::INJECT_ENABLED)
                && !names::is_protected_namespace(&name),
            protect: says_protect(meta.labels.as_ref(), meta.annotations.as_ref()),
            terminating: meta.deletion_timestamp.is_some(),
            labels: meta.labels.clone().unwrap_or_default(),
            halt: meta.annotations.as_ref().and_then(|annotations| annotations.get(names::HALT)).cloned(),
            name,
        }
    }
}

/// Whether [`names::PROTECT`] is there as label or annotation. Any value but `false` protects: someone who
/// wrote `yes` meant it, and in doubt nothing is hit.
pub fn says_protect(
    labels: Option<&BTreeMap<String, String>>,
    annotations: Option<&BTreeMap<String, String>>,
) -> bool {
    [labels, annotations]
        .into_iter()
        .flatten()
        .filter_map(|map| map.get(names::PROTECT))
        .any(|value| value != "false")
}

fn is_kept(key: &str, value: &str) -> bool {
    key != LAST_APPLIED && (value.len() <= LONGEST_ANNOTATION || key.starts_with("squall.dev/"))
}

/// The entries of a record that can be read; the others are as if they weren't there.
fn holders(record: &str) -> Vec<Holder> {
    let entries: Vec<serde_json::Value> = serde_json::from_str(record).unwrap_or_default();
    entries.into_iter().filter_map(|entry| serde_json::from_value(entry).ok()).collect()
}

fn containers(spec: Option<&PodSpec>, status: Option<&PodStatus>) -> Vec<ContainerView> {
    let Some(spec) = spec else { return Vec::new() };
    let init_statuses =
        status.and_then(|status| status.init_container_statuses.as_deref()).unwrap_or_default();
    let statuses = status.and_then(|status| status.container_statuses.as_deref()).unwrap_or_default();
    let pods_own = spec.restart_policy.as_deref();
    let init = spec.init_containers.iter().flatten().map(|container| {
        let stays = container.restart_policy.as_deref() == Some("Always");
        let kind = if stays { ContainerKind::Sidecar } else { ContainerKind::Init };
        container_view(container, kind, init_statuses, pods_own)
    });
    let main = spec
        .containers
        .iter()
        .map(|container| container_view(container, ContainerKind::Main, statuses, pods_own));
    init.chain(main).collect()
}

fn container_view(
    container: &Container,
    kind: ContainerKind,
    statuses: &[ContainerStatus],
    pods_own: Option<&str>,
) -> ContainerView {
    let status = statuses.iter().find(|status| status.name == container.name);
    ContainerView {
        name: container.name.clone(),
        kind,
        image: container.image.clone().unwrap_or_default(),
        id: status.and_then(|status| status.container_id.clone()).filter(|id| !id.is_empty()),
        running_image: status.map(running_image).filter(|image| !image.is_empty()).map(ToOwned::to_owned),
        state: status.and_then(|status| status.state.as_ref()).map(container_state).unwrap_or_default(),
        ready: status.is_some_and(|status| status.ready),
        restarts: status.map_or(0, |status| status.restart_count),
        comes_back: match container.restart_policy.as_deref().or(pods_own) {
            Some("Never") => ComesBack::Never,
            Some("OnFailure") => ComesBack::OnFailure,
            Some(_) | None => ComesBack::Always,
        },
    }
}

/// By which name what runs was pulled. Of an image without a tag on its node, as one pinned by digest may be, `image` is
/// its bare ID; in which repository it is stands in `imageID`.
fn running_image(status: &ContainerStatus) -> &str {
    let ContainerStatus { image, image_id, .. } = status;
    let is_id = |image: &str| {
        let digits = image.strip_prefix("sha256:").unwrap_or(image);
        digits.len() == 64 && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
    };
    if is_id(image) && !image_id.is_empty() {
        image_id.strip_prefix("docker-pullable://").unwrap_or(image_id)
    } else {
        image
    }
}

fn container_state(state: &core::ContainerState) -> ContainerState {
    if let Some(running) = &state.running {
        return ContainerState::Running(running.started_at.as_ref().map(|time| time.0));
    }
    if let Some(terminated) = &state.terminated {
        let finished = terminated.finished_at.as_ref().map(|time| time.0);
        return ContainerState::Terminated(terminated.exit_code, finished);
    }
    if let Some(waiting) = &state.waiting {
        return ContainerState::Waiting(waiting.reason.clone().unwrap_or_default());
    }
    ContainerState::Unknown
}
