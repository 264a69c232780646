//! What of a pod is read: as much as the model looks at and may change, and nothing else.
//!
//! The API server waits for the answer, and most of a pod (variables, mounts, probes, who manages which field) is
//! neither looked at nor changed: it is skipped, twice for an UPDATE. A field that is missing here is missing for the
//! model too; `what_the_model_sees_is_all_there` holds them together.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, PodStatus, Probe};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use serde::Deserialize;
use serde::de::IgnoredAny;

/// A pod without what nobody asks for.
#[derive(Deserialize)]
pub struct LeanPod {
    #[serde(default)]
    metadata: LeanMeta,
    spec: Option<LeanSpec>,
    status: Option<PodStatus>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct LeanMeta {
    namespace: Option<String>,
    name: Option<String>,
    generate_name: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
    owner_references: Option<Vec<OwnerReference>>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LeanSpec {
    init_containers: Option<Vec<LeanContainer>>,
    containers: Option<Vec<LeanContainer>>,
    restart_policy: Option<String>,
    node_name: Option<String>,
    scheduler_name: Option<String>,
    service_account_name: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LeanContainer {
    #[serde(default)]
    name: String,
    image: Option<String>,
    command: Option<Vec<String>>,
    /// Only whether there is one is asked.
    readiness_probe: Option<IgnoredAny>,
    restart_policy: Option<String>,
}

impl From<LeanPod> for Pod {
    fn from(LeanPod { metadata, spec, status }: LeanPod) -> Self {
        Self { metadata: metadata.into(), spec: spec.map(PodSpec::from), status }
    }
}

impl From<LeanMeta> for ObjectMeta {
    fn from(meta: LeanMeta) -> Self {
        Self {
            namespace: meta.namespace,
            name: meta.name,
            generate_name: meta.generate_name,
            uid: meta.uid,
            resource_version: meta.resource_version,
            labels: meta.labels,
            annotations: meta.annotations,
            owner_references: meta.owner_references,
            creation_timestamp: meta.creation_timestamp,
            deletion_timestamp: meta.deletion_timestamp,
            ..Self::default()
        }
    }
}

impl From<LeanSpec> for PodSpec {
    fn from(spec: LeanSpec) -> Self {
        let containers = |these: Vec<LeanContainer>| these.into_iter().map(Container::from).collect();
        Self {
            init_containers: spec.init_containers.map(containers),
            containers: spec.containers.map(containers).unwrap_or_default(),
            restart_policy: spec.restart_policy,
            node_name: spec.node_name,
            scheduler_name: spec.scheduler_name,
            service_account_name: spec.service_account_name,
            ..Self::default()
        }
    }
}

impl From<LeanContainer> for Container {
    fn from(container: LeanContainer) -> Self {
        Self {
            name: container.name,
            image: container.image,
            command: container.command,
            readiness_probe: container.readiness_probe.map(|_| Probe::default()),
            restart_policy: container.restart_policy,
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::{Value, json};
    use squall_model::pod::PodView;
    use squall_model::substitute::{FaultImages, Holder, inject, release};

    use super::*;

    /// Every field that the model looks at is set.
    fn whole() -> Value {
        let container = |name: &str, policy: Option<&str>| {
            json!({
                "name": name, "image": format!("r.example/{name}:1"), "restartPolicy": policy, "command": ["/bin/serve"],
                "env": [{"name": "A", "value": "b"}], "readinessProbe": {"tcpSocket": {"port": 80}}
            })
        };
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "namespace": "shop", "name": "web-1", "generateName": "web-", "uid": "u-1", "resourceVersion": "7",
                "labels": {"app": "web", "pod-template-hash": "abc"}, "annotations": {"squall.dev/duration": "5m", "other": "x"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-abc", "uid": "u-2", "controller": true}],
                "creationTimestamp": "2026-11-01T00:00:00Z", "deletionTimestamp": "2026-11-02T00:00:00Z",
                "managedFields": [{"manager": "kubelet", "operation": "Update", "fieldsType": "FieldsV1", "fieldsV1": {"f:a": {}}}]
            },
            "spec": {
                "initContainers": [container("prepare", None), container("proxy", Some("Always"))],
                "containers": [container("app", None), container("log", None)],
                "restartPolicy": "Always", "nodeName": "node1", "schedulerName": "default-scheduler",
                "serviceAccountName": "web", "volumes": [{"name": "data", "emptyDir": {}}]
            },
            "status": {
                "phase": "Running", "podIP": "10.0.0.7",
                "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-11-01T00:00:09Z"}],
                "containerStatuses": [{
                    "name": "app", "image": "i", "imageID": "i", "ready": true, "restartCount": 2,
                    "containerID": "containerd://c1", "state": {"running": {"startedAt": "2026-11-01T00:00:01Z"}}
                }]
            }
        })
    }

    fn images() -> FaultImages {
        FaultImages { pause: "pause".into(), crash: "crash".into() }
    }

    fn both(value: &Value) -> (Pod, Pod) {
        let lean: LeanPod = serde_json::from_value(value.clone()).unwrap();
        (serde_json::from_value(value.clone()).unwrap(), lean.into())
    }

    #[test]
    fn what_the_model_sees_is_all_there() {
        let (full, lean) = both(&whole());
        assert_eq!(PodView::of(&lean), PodView::of(&full));
        assert_ne!(PodView::of(&lean), PodView::of(&Pod::default()));
        assert_eq!(lean.metadata.generate_name, full.metadata.generate_name);
        // Each of them is looked at: without it the model sees another pod, in the whole one and in the lean one alike.
        for path in [
            "/metadata/namespace",
            "/metadata/name",
            "/metadata/uid",
            "/metadata/resourceVersion",
            "/metadata/labels",
            "/metadata/ownerReferences",
            "/metadata/annotations",
            "/metadata/creationTimestamp",
            "/metadata/deletionTimestamp",
            "/spec/initContainers",
            "/spec/containers",
            "/spec/restartPolicy",
            "/spec/nodeName",
            "/spec/schedulerName",
            "/spec/serviceAccountName",
            "/status",
        ] {
            let mut without = whole();
            *without.pointer_mut(path).unwrap() = Value::Null;
            let (full, less) = both(&without);
            assert_eq!(PodView::of(&less), PodView::of(&full), "{path}");
            assert_ne!(PodView::of(&less), PodView::of(&lean), "{path}");
        }
    }

    #[test]
    fn a_container_that_never_restarts_is_seen() {
        for path in ["/spec/restartPolicy", "/spec/containers/0/restartPolicy"] {
            let mut never = whole();
            *never.pointer_mut(path).unwrap() = "Never".into();
            let (mut full, mut lean) = both(&never);
            assert_eq!(PodView::of(&lean), PodView::of(&full), "{path}");
            let refused = inject(&mut lean, &Holder::default(), &images());
            assert!(refused.is_err(), "{path}");
            assert_eq!(refused, inject(&mut full, &Holder::default(), &images()), "{path}");
        }
    }

    #[test]
    fn images_are_put_where_they_are() {
        let mut styles = BTreeSet::new();
        // What a container does without another image's command, and without a probe, decides on the image.
        for without in [&[][..], &["command"], &["readinessProbe"], &["command", "readinessProbe"]] {
            let mut pod = whole();
            for field in without {
                pod["spec"]["containers"][0][field] = Value::Null;
            }
            let (full, lean) = both(&pod);
            let (mut whole, mut skimmed) = (full.clone(), lean.clone());
            for pod in [&mut whole, &mut skimmed] {
                inject(pod, &Holder { uid: "x".into(), ..Holder::default() }, &images()).unwrap();
            }
            assert_eq!(PodView::of(&skimmed), PodView::of(&whole), "{without:?}");
            styles.extend(skimmed.spec.iter().map(|spec| spec.containers[0].image.clone()));
            for pod in [&mut whole, &mut skimmed] {
                release(pod, "x", &images()).unwrap();
            }
            assert_eq!((&whole, &skimmed), (&full, &lean), "{without:?}");
        }
        assert_eq!(styles.len(), 2, "{styles:?}");
    }

    #[test]
    fn nothing_and_null_are_what_they_are_to_a_whole_pod() {
        for value in [
            json!({}),
            json!({"metadata": {}, "spec": null, "status": null}),
            json!({"metadata": {"labels": null, "annotations": {}}, "spec": {"containers": null, "initContainers": []}}),
        ] {
            let (full, lean) = both(&value);
            assert_eq!(lean, full, "{value}");
        }
    }
}
