//! How long the webhook takes for a pod of 20 containers, from the last byte of the question to the answer. No cluster,
//! no connection: those are in the figures of `bench`.
//!
//! It prints median, p90 and p99 of each operation, and exits with 1 when a p99 is above its limit times the first
//! argument. Run by `cargo xtask bench`.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use serde_json::{Value, json};
use squall_model::substitute::FaultImages;
use squall_webhook::pods::Pods;
use squall_webhook::review::Request;
use squall_webhook::world::World;

const ROUNDS: usize = 5_000;
/// What a p99 may be.
const LIMIT: Duration = Duration::from_millis(1);

fn main() -> Result<()> {
    let slack: f64 =
        std::env::args().nth(1).map_or(Ok(1.0), |text| text.parse()).context("the slack is a number")?;
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
    println!(
        "{:<44} {:>9} {:>9} {:>9} {:>9}",
        "webhook, a pod of 20 containers", "median", "p90", "p99", "limit"
    );
    let mut missed = 0;
    for (name, body) in [
        ("created without the label", review("CREATE", Value::Null, whole.clone())),
        ("created with it: images substituted", review("CREATE", Value::Null, labelled.clone())),
        ("labelled: images substituted", review("UPDATE", whole, labelled)),
    ] {
        let mut times = Vec::new();
        for _ in 0..ROUNDS {
            let start = Instant::now();
            let request = Request::parse(&body)?;
            let answer = pods.review(&request, &world, Timestamp::now());
            let text = answer.write(&request)?;
            times.push(start.elapsed());
            ensure!(!text.is_empty(), "an empty answer");
        }
        times.sort();
        let millis = |part: usize| times[ROUNDS * part / 100].as_secs_f64() * 1000.0;
        let above = times[ROUNDS * 99 / 100] > LIMIT.mul_f64(slack);
        missed += u32::from(above);
        println!(
            "{name:<44} {:>6.3} ms {:>6.3} ms {:>6.3} ms {LIMIT:>9?}{}",
            millis(50),
            millis(90),
            millis(99),
            if above { "  MISSED" } else { "" }
        );
    }
    ensure!(missed == 0, "{missed} figures are above {slack} times their limit");
    Ok(())
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
        "metadata": {
            "name": "web", "namespace": "team", "labels": labels, "annotations": {"a": "b"},
            "managedFields": [{"manager": "kubectl", "operation": "Update", "fieldsType": "FieldsV1", "fieldsV1": managed()}]
        },
        "spec": {
            "restartPolicy": "Always",
            "initContainers": (0..4).map(container).collect::<Vec<_>>(),
            "containers": (4..20).map(container).collect::<Vec<_>>(),
            "volumes": [{"name": "data", "emptyDir": {}}]
        }
    })
}

/// Who manages which field, which is as long as a pod.
fn managed() -> Value {
    let container = |index: usize| {
        let fields = [
            "name",
            "image",
            "command",
            "imagePullPolicy",
            "env",
            "ports",
            "resources",
            "readinessProbe",
            "volumeMounts",
        ];
        let set: Value = fields.iter().map(|field| (format!("f:{field}"), json!({}))).collect();
        (format!("k:{{\"name\":\"container-{index}\"}}"), set)
    };
    json!({"f:spec": {"f:containers": (0..20).map(container).collect::<Value>()}})
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
