//! How long a review of a 20-container pod takes, from the last byte of the question to the answer: its p99 is
//! promised to be at most 1 ms. Run in release: `cargo run --release -p squall-webhook --example latency`.
//!
//! Prints one line of JSON an operation; ends with 1 if the promise is broken.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::{Value, json};
use squall_model::substitute::FaultImages;
use squall_webhook::pods::Pods;
use squall_webhook::review::Request;
use squall_webhook::world::World;

const ROUNDS: usize = 5_000;
const PROMISE: Duration = Duration::from_millis(1);

fn main() -> ExitCode {
    let pods = Pods {
        images: FaultImages {
            pause: "r.example/squall-pause:1".into(),
            crash: "r.example/squall-crash:1".into(),
        },
        manual_limit: Duration::from_secs(3600),
    };
    let world = World::default();
    let (whole, labelled) =
        (pod(json!({"app": "web"})), pod(json!({"app": "web", "squall.dev/fault": "pod-failure"})));
    let mut kept = true;
    for (name, body) in [
        ("create-untouched", review("CREATE", Value::Null, whole.clone())),
        ("create-failed", review("CREATE", Value::Null, labelled.clone())),
        ("update-failed", review("UPDATE", whole, labelled)),
    ] {
        let mut took: Vec<Duration> = (0..ROUNDS)
            .map(|_| {
                let start = Instant::now();
                let request = Request::parse(&body).expect("it is a review");
                let answer = pods.review(&request, &world, Timestamp::now());
                let text = answer.write(&request).expect("an answer can be written");
                let took = start.elapsed();
                assert!(!text.is_empty());
                took
            })
            .collect();
        took.sort();
        let micros = |part: usize| took[ROUNDS * part / 1000].as_micros();
        kept &= took[ROUNDS * 99 / 100] <= PROMISE;
        println!(
            "{}",
            json!({"review": name, "containers": 20, "n": ROUNDS, "median_us": micros(500), "p90_us": micros(900), "p99_us": micros(990)})
        );
    }
    if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn pod(labels: Value) -> Value {
    let container = |index: usize| {
        json!({
            "name": format!("container-{index}"), "image": format!("registry.example/team/service-{index}:1.2.3"),
            "command": ["/bin/serve", "--port", "8080"], "imagePullPolicy": "IfNotPresent",
            "env": (0..10).map(|n| json!({"name": format!("VARIABLE_{n}"), "value": "some value of some length"})).collect::<Vec<_>>(),
            "ports": [{"containerPort": 8080, "protocol": "TCP"}],
            "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "100m", "memory": "128Mi"}},
            "readinessProbe": {"httpGet": {"path": "/ready", "port": 8080, "scheme": "HTTP"}, "periodSeconds": 10},
            "volumeMounts": [{"name": "data", "mountPath": "/data"}, {"name": "token", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": true}],
            "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"
        })
    };
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web", "namespace": "team", "labels": labels, "annotations": {"a": "b"}},
        "spec": {
            "restartPolicy": "Always",
            "initContainers": (0..4).map(container).collect::<Vec<_>>(),
            "containers": (4..20).map(container).collect::<Vec<_>>(),
            "volumes": [{"name": "data", "emptyDir": {}}]
        }
    })
}

fn review(operation: &str, old: Value, new: Value) -> Vec<u8> {
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "u", "kind": {"group": "", "version": "v1", "kind": "Pod"}, "namespace": "team", "name": "web",
            "operation": operation, "userInfo": {"username": "ann"}, "object": new, "oldObject": old
        }
    })
    .to_string()
    .into_bytes()
}
