//! Pods and workloads that the tests hit.
//!
//! All run one image that the local cluster has, stop at once on SIGTERM unless a test wants it otherwise, and
//! pull nothing.

use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::Pod;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// The image of every pod of the tests.
pub const BUSYBOX: &str = "localhost/busybox:1";
/// A program that ends at once on SIGTERM. PID 1 ignores a signal that it has no handler for, so there is one.
pub const SLEEPER: &str = "trap 'exit 0' TERM; while :; do sleep 1000 & wait $!; done";
/// A program that ignores SIGTERM.
pub const STUBBORN: &str = "trap '' TERM; while :; do sleep 1; done";

/// A typed object from JSON.
pub fn from_json<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("the test's own object is well-formed")
}

/// A container that runs `script`.
pub fn container(name: &str, script: &str) -> Value {
    json!({
        "name": name,
        "image": BUSYBOX,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", script],
    })
}

/// A spec with one container, `app`, that sleeps.
fn sleeping() -> Value {
    json!({ "terminationGracePeriodSeconds": 1, "containers": [container("app", SLEEPER)] })
}

/// A pod with one container, `app`, that sleeps; labelled `app: NAME`.
pub fn pod(name: &str) -> Pod {
    pod_of(name, sleeping())
}

/// A pod with `spec`, labelled `app: NAME`. A missing grace period is one second.
pub fn pod_of(name: &str, mut spec: Value) -> Pod {
    if spec.get("terminationGracePeriodSeconds").is_none() {
        spec["terminationGracePeriodSeconds"] = json!(1);
    }
    from_json(json!({
        "metadata": { "name": name, "labels": { "app": name } },
        "spec": spec,
    }))
}

/// A pod that no node takes: it costs the node nothing, and has an image to be substituted all the same.
pub fn unschedulable(name: &str, app: &str) -> Pod {
    let mut spec = sleeping();
    spec["nodeSelector"] = json!({ "squall-test/nowhere": "true" });
    from_json(json!({ "metadata": { "name": name, "labels": { "app": app } }, "spec": spec }))
}

/// A Deployment of sleeping pods, labelled `app: NAME`; `nowhere` makes them [`unschedulable`].
pub fn deployment(name: &str, replicas: i32, nowhere: bool) -> Deployment {
    let mut spec = sleeping();
    if nowhere {
        spec["nodeSelector"] = json!({ "squall-test/nowhere": "true" });
    }
    from_json(json!({
        "metadata": { "name": name },
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": { "app": name } },
            "template": { "metadata": { "labels": { "app": name } }, "spec": spec },
        },
    }))
}

/// A StatefulSet of sleeping pods, labelled `app: NAME`.
pub fn stateful_set(name: &str, replicas: i32) -> StatefulSet {
    from_json(json!({
        "metadata": { "name": name },
        "spec": {
            "replicas": replicas,
            "serviceName": name,
            "podManagementPolicy": "Parallel",
            "selector": { "matchLabels": { "app": name } },
            "template": { "metadata": { "labels": { "app": name } }, "spec": sleeping() },
        },
    }))
}
