//! `cargo xtask demo`: the faults on real pods, each with a timeline from its own status and receipts.
//!
//! It claims nothing: every line is read from the API server, and what did not happen makes it fail with the reason.
//! What it made stays for a look; its last lines say how to remove it.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use jiff::Timestamp;
use serde_json::{Value, json};
use squall_api::{
    PodChaos, names,
    podchaos::{Action, Target, TargetPhase},
};

use crate::{cluster::BUSYBOX_IMAGE, deploy, kubectl, kubectl::Kubectl, progress::Step};

/// The demo's namespace.
const NAMESPACE: &str = "squall-demo";
/// Our kind by its full name: Chaos Mesh has the same short one.
const PODCHAOS: &str = names::CRDS[0];
/// busybox where images can be pulled.
const PUBLIC_BUSYBOX: &str = "busybox:1.37";
/// The demo's own pods: somebody may have put others beside them.
const PODS: &str = "app in (web, db, solo)";
/// The one container of each.
const CONTAINER: &str = "app";
/// What a container's first process exits with when SIGKILL ends it.
const KILLED: i32 = 137;
/// How long the pods may take to be Ready, at first and again.
const READY: Duration = Duration::from_secs(90);
/// How long one experiment may take.
const EXPERIMENT: Duration = Duration::from_secs(90);
/// How long a receipt's last times may come after the end: a container's restart takes its time.
const LATE: Duration = Duration::from_secs(20);

/// Arguments of `cargo xtask demo`.
#[derive(clap::Args)]
pub struct Args {
    /// Use this context of your kubeconfig instead of the local cluster; the current context is never switched.
    #[arg(long)]
    pub context: Option<String>,
    /// Push Squall's images to this registry (and path), and take them from there; with --context.
    #[arg(long, requires = "context")]
    pub registry: Option<String>,
    /// The busybox that the demo's pods run; for a cluster that can't pull the public one.
    #[arg(long)]
    pub image: Option<String>,
}

/// One fault to show.
struct Show {
    title: &'static str,
    name: &'static str,
    spec: Value,
}

fn shows() -> [Show; 3] {
    let on = |app: &str| json!({"labelSelectors": {"app": app}});
    [
        Show {
            title: "pod-failure: every pod of the Deployment web fails for 5 s, in place",
            name: "demo-pod-failure",
            spec: json!({"action": "pod-failure", "mode": "all", "duration": "5s", "selector": on("web")}),
        },
        Show {
            title: "pod-kill: the pod of the StatefulSet db is deleted, with its grace period",
            name: "demo-pod-kill",
            spec: json!({"action": "pod-kill", "mode": "one", "selector": on("db")}),
        },
        Show {
            title: "container-kill: SIGKILL to the first process of the bare pod solo",
            name: "demo-container-kill",
            spec: json!({"action": "container-kill", "mode": "one", "selector": on("solo")}),
        },
    ]
}

/// Does it.
pub fn run(args: Args) -> Result<()> {
    let kubectl = Kubectl::up(args.context.as_deref())?;
    deploy::install(&kubectl, args.registry.as_deref())?;
    let usual = if kubectl.cluster().is_some() { BUSYBOX_IMAGE } else { PUBLIC_BUSYBOX };
    let image = args.image.as_deref().unwrap_or(usual);
    prepare(&kubectl, image)?;
    for (number, show) in shows().iter().enumerate() {
        println!("\n{}. {}", number + 1, show.title);
        let object = perform(&kubectl, show).with_context(|| format!("the demo of {} failed", show.name))?;
        for line in timeline(&object) {
            println!("   {line}");
        }
        all_ready(&kubectl)?;
    }
    all_as_before(&kubectl, image)?;
    let k = kubectl.shown();
    let context = args.context.map(|name| format!(" --context {name}")).unwrap_or_default();
    println!(
        "
Every pod runs its own images again, and carries nothing of Squall.

Try next:
  {k} get podchaos.squall.dev -n {NAMESPACE}
  {k} get podchaos.squall.dev -n {NAMESPACE} demo-container-kill -o yaml
  {k} label pod -n {NAMESPACE} solo {fault}={failure}     # fails until the label goes:
  {k} label pod -n {NAMESPACE} solo {fault}-
  {k} apply -n {NAMESPACE} -f deploy/examples/pod-kill.yaml
Remove the demo:    {k} delete namespace {NAMESPACE}
Remove Squall:      cargo xtask undeploy{context}{down}",
        fault = names::FAULT,
        failure = names::POD_FAILURE,
        down =
            if kubectl.cluster().is_some() { "\nRemove the cluster: cargo xtask cluster down" } else { "" },
    );
    Ok(())
}

/// The namespace, opted in, and its workloads, Ready; without what an earlier demo left.
fn prepare(kubectl: &Kubectl, image: &str) -> Result<()> {
    let labels = json!({names::INJECT: names::INJECT_ENABLED});
    let namespace =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}});
    kubectl.feed(&["apply", "-f", "-"], &namespace.to_string())?;
    kubectl.output(&[
        "delete",
        PODCHAOS,
        "-n",
        NAMESPACE,
        "--all",
        "--timeout=60s",
        "--request-timeout=90s",
    ])?;
    // Fresh pods: the kubelet remembers for ten minutes which containers failed, and starts those later and later.
    let old = ["deployment/web", "statefulset/db", "pod/solo"];
    let delete = ["delete", "-n", NAMESPACE, "--ignore-not-found", "--cascade=foreground", "--timeout=60s"];
    kubectl
        .output(&delete.iter().chain(&old).chain(&["--request-timeout=90s"]).copied().collect::<Vec<_>>())?;
    let step = Step::begin("a Deployment, a StatefulSet and a bare pod in the namespace squall-demo");
    kubectl.feed(&["apply", "-f", "-"], &workloads(image).to_string())?;
    all_ready(kubectl)?;
    step.done();
    Ok(())
}

fn workloads(image: &str) -> Value {
    let pod = |app: &str| {
        json!({"metadata": {"labels": {"app": app}}, "spec": {
            "terminationGracePeriodSeconds": 5,
            "containers": [{
                "name": CONTAINER, "image": image, "imagePullPolicy": "IfNotPresent",
                "command": ["sh", "-c", "trap 'exit 0' TERM; mkdir -p /tmp/www; httpd -f -p 8080 -h /tmp/www & wait"],
                "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
                "resources": {"requests": {"cpu": "5m", "memory": "8Mi"}},
            }],
        }})
    };
    let metadata = |name: &str| json!({"name": name, "namespace": NAMESPACE, "labels": {"app": name}});
    let set = |name: &str, replicas: u32| json!({"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": pod(name)});
    let mut stateful = set("db", 1);
    stateful["serviceName"] = json!("db");
    json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata("web"), "spec": set("web", 3)},
        {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": metadata("db"), "spec": stateful},
        {"apiVersion": "v1", "kind": "Pod", "metadata": metadata("solo"), "spec": pod("solo")["spec"]},
    ]})
}

/// Waits until the five pods are there and Ready.
fn all_ready(kubectl: &Kubectl) -> Result<()> {
    let mut missing = String::new();
    let done = kubectl::wait(READY, || {
        let pods = kubectl.items(&["pods", "-n", NAMESPACE, "-l", PODS])?;
        let ready = pods.iter().filter(|pod| is_ready(pod)).count();
        missing = format!("{ready} of {} Ready", pods.len());
        Ok((ready == 5 && pods.len() == 5).then_some(()))
    })?;
    if done.is_none() {
        let shown = kubectl.output(&["get", "pods", "-n", NAMESPACE])?;
        bail!("the demo's pods: {missing} after {} s\n{shown}", READY.as_secs());
    }
    Ok(())
}

fn is_ready(pod: &Value) -> bool {
    pod["metadata"]["deletionTimestamp"].is_null() && kubectl::is_ready(pod)
}

/// Applies the experiment, waits for its end, and makes sure that it did what it says.
fn perform(kubectl: &Kubectl, show: &Show) -> Result<PodChaos> {
    let object = json!({"apiVersion": format!("{}/{}", names::GROUP, names::VERSION), "kind": "PodChaos",
        "metadata": {"name": show.name, "namespace": NAMESPACE}, "spec": show.spec});
    kubectl.feed(&["create", "-f", "-"], &object.to_string())?;
    let mut last = None;
    let ended = kubectl::wait(EXPERIMENT, || {
        let now: PodChaos = kubectl.get(&[PODCHAOS, show.name, "-n", NAMESPACE])?;
        let over = condition(&now, "Completed");
        last = Some(now);
        Ok(over.then_some(()))
    })?;
    let mut last = last.context("it was never seen")?;
    ensure!(ended.is_some(), "it is not over after {} s: {}", EXPERIMENT.as_secs(), describe(&last));
    // The last times of a one-shot may come after its end.
    kubectl::wait(LATE, || {
        let now: PodChaos = kubectl.get(&[PODCHAOS, show.name, "-n", NAMESPACE])?;
        let targets = now.status.iter().flat_map(|status| &status.targets);
        let back = targets.clone().count() > 0 && targets.clone().all(|target| target.ready_at.is_some());
        let settled = back || condition(&now, "Failed");
        last = now;
        Ok(settled.then_some(()))
    })?;
    did_what_it_says(&last)?;
    Ok(last)
}

/// Whether each target was hit as the action says, by what the status tells of it.
fn did_what_it_says(object: &PodChaos) -> Result<()> {
    let said = || describe(object);
    ensure!(!condition(object, "Failed"), "it ended without success: {}", said());
    let targets = object.status.as_ref().map(|status| status.targets.as_slice()).unwrap_or_default();
    ensure!(!targets.is_empty(), "it hit nothing: {}", said());
    let action = object.spec.action;
    let wanted = match action {
        Action::PodFailure | Action::ContainerFreeze => TargetPhase::Recovered,
        Action::PodKill | Action::ContainerKill => TargetPhase::Killed,
    };
    ensure!(
        targets.iter().all(|target| target.phase == wanted),
        "not every target is {wanted:?}: {}",
        said()
    );
    for target in targets.iter().filter(|_| action == Action::ContainerKill) {
        let pod = &target.pod;
        let receipt = target.receipt.as_ref().with_context(|| format!("{pod}: there is no receipt"))?;
        ensure!(!receipt.processes.is_empty(), "{pod}: the receipt names no process");
        ensure!(
            target.exit_code == Some(KILLED),
            "{pod}: the exit code is {:?} and not {KILLED}",
            target.exit_code
        );
    }
    Ok(())
}

fn condition(object: &PodChaos, kind: &str) -> bool {
    let all = object.status.iter().flat_map(|status| &status.conditions);
    all.clone().any(|condition| condition.type_ == kind && condition.status == "True")
}

/// Where it stands, in words.
fn describe(object: &PodChaos) -> String {
    let Some(status) = &object.status else { return "no controller has looked at it".to_owned() };
    let mut text = format!("phase {:?}", status.phase.unwrap_or_default());
    for message in status.message.iter() {
        text.push_str(&format!(", {message}"));
    }
    for target in &status.targets {
        text.push_str(&format!("\n  {} {:?}", target.pod, target.phase));
        for message in target.reason.iter().chain(&target.message) {
            text.push_str(&format!(", {message}"));
        }
    }
    text
}

/// What happened when, from the choice of the targets on.
fn timeline(object: &PodChaos) -> Vec<String> {
    let Some(status) = &object.status else { return Vec::new() };
    let Some(zero) = status.selected_at.as_ref().map(|time| time.0) else { return vec![describe(object)] };
    let mut events = vec![(zero, format!("chosen: {}", count(status.targets.len(), "target")))];
    for target in &status.targets {
        events.extend(of_target(object.spec.action, target));
    }
    for time in status.completed_at.iter() {
        events.push((time.0, format!("over: {}", status.message.as_deref().unwrap_or("completed"))));
    }
    events.sort_by_key(|(time, _)| *time);
    let mut lines = vec![format!(
        "{}  {}/{} at the API server",
        clock(zero),
        NAMESPACE,
        object.metadata.name.as_deref().unwrap_or_default()
    )];
    lines.extend(events.into_iter().map(|(time, what)| {
        let millis = time.duration_since(zero).as_millis();
        format!("{:>8} ms  {what}", format!("{millis:+}"))
    }));
    lines
}

fn of_target(action: Action, target: &Target) -> Vec<(Timestamp, String)> {
    let pod = &target.pod;
    let mut events = Vec::new();
    let mut at = |time: &Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime>, what: String| {
        events.extend(time.as_ref().map(|time| (time.0, what)));
    };
    let injected = match action {
        Action::PodFailure => "failed: fault images in, old containers gone",
        Action::PodKill => "deletion mark set",
        Action::ContainerKill => "process gone",
        Action::ContainerFreeze => "no process runs",
    };
    let code = target.exit_code.map(|code| format!(", exit code {code}")).unwrap_or_default();
    at(&target.injected_at, format!("{pod}: {injected}{code}"));
    at(&target.gone_at, format!("{pod}: gone"));
    at(&target.recovered_at, format!("{pod}: own images back"));
    // The kubelet writes whole seconds: it can't have been before the process was gone.
    let restarted = target.restarted_at.as_ref().map(|time| {
        let least = target.injected_at.as_ref().map_or(time.0, |gone| gone.0);
        k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime(time.0.max(least))
    });
    at(&restarted, format!("{pod}: container started again (to the second)"));
    let again = target.replacement.as_deref().map(|name| format!("replacement {name}"));
    at(&target.ready_at, format!("{}: Ready", again.unwrap_or_else(|| pod.clone())));
    for receipt in target.receipt.iter() {
        let why = receipt.evidence_error.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
        for process in &receipt.processes {
            let who = format!("process {} ({})", process.pid, process.comm);
            at(
                &process.sent,
                format!("{pod}: signal {} sent to {who}, evidence {}{why}", receipt.signal, receipt.evidence),
            );
            at(&process.delivered, format!("{pod}: signal delivered to {who}"));
            let code = process.exit_code.map(|code| format!(" with {code}")).unwrap_or_default();
            at(&process.exited, format!("{pod}: {who} exited{code}"));
        }
    }
    events
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

fn clock(time: Timestamp) -> String {
    time.strftime("%H:%M:%S%.3f UTC").to_string()
}

/// Every pod of the demo is as it was applied.
fn all_as_before(kubectl: &Kubectl, image: &str) -> Result<()> {
    kubectl.items(&["pods", "-n", NAMESPACE, "-l", PODS])?.iter().try_for_each(|pod| as_before(pod, image))
}

/// The pod's own container has the image that was applied, and the pod no label or annotation of ours. Containers that
/// others put beside it are theirs.
fn as_before(pod: &Value, image: &str) -> Result<()> {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let containers = pod["spec"]["containers"].as_array();
    let own = containers.into_iter().flatten().find(|container| container["name"] == CONTAINER);
    let now = own.map(|container| &container["image"]).unwrap_or(&Value::Null);
    ensure!(now == image, "pod {name} has the image {now} and not {image}");
    for keys in [&pod["metadata"]["labels"], &pod["metadata"]["annotations"]] {
        let keys = keys.as_object().into_iter().flat_map(|map| map.keys());
        if let Some(key) = keys.into_iter().find(|key| key.starts_with(names::GROUP)) {
            bail!("pod {name} still carries {key}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeline_is_in_the_order_of_time_and_says_who() {
        let object: PodChaos = serde_json::from_value(json!({
            "apiVersion": "squall.dev/v1alpha1", "kind": "PodChaos", "metadata": {"name": "x"},
            "spec": {"action": "container-kill", "mode": "one"},
            "status": {"selectedAt": "2026-01-01T00:00:00.000000Z", "completedAt": "2026-01-01T00:00:00.030000Z",
                "message": "1 of 1 killed",
                "targets": [{"namespace": "n", "pod": "p", "uid": "u", "phase": "Killed",
                    "readyAt": "2026-01-01T00:00:01.500000Z", "injectedAt": "2026-01-01T00:00:00.012000Z", "exitCode": 137,
                    "receipt": {"evidence": "ebpf", "signal": 9, "total": 1, "processes": [
                        {"pid": 7, "comm": "httpd", "sent": "2026-01-01T00:00:00.008000Z"}]}}]}
        }))
        .unwrap();
        assert_eq!(
            timeline(&object),
            [
                "00:00:00.000 UTC  squall-demo/x at the API server",
                "      +0 ms  chosen: 1 target",
                "      +8 ms  p: signal 9 sent to process 7 (httpd), evidence ebpf",
                "     +12 ms  p: process gone, exit code 137",
                "     +30 ms  over: 1 of 1 killed",
                "   +1500 ms  p: Ready",
            ]
        );
    }

    #[test]
    fn a_pod_is_as_before_with_its_own_image_and_no_key_of_ours() {
        let pod = |image: &str, labels: Value, annotations: Value| {
            json!({"metadata": {"name": "p", "labels": labels, "annotations": annotations},
                "spec": {"containers": [{"name": "app", "image": image}]}})
        };
        as_before(&pod("own", json!({"app": "web"}), Value::Null), "own").unwrap();
        let why = |pod: Value| as_before(&pod, "own").unwrap_err().to_string();
        let left = why(pod("localhost/squall-pause:dev", Value::Null, Value::Null));
        assert_eq!(left, "pod p has the image \"localhost/squall-pause:dev\" and not own");
        assert!(why(pod("own", json!({names::FAULT: "pod-failure"}), Value::Null)).contains(names::FAULT));
        assert!(why(pod("own", Value::Null, json!({names::HELD_BY: "[]"}))).contains(names::HELD_BY));
        assert!(why(json!({"metadata": {"name": "p"}, "spec": {}})).contains("the image null"));
    }

    #[test]
    fn a_kill_without_receipt_or_exit_code_is_none() {
        let judged = |target: Value| {
            let object: PodChaos = serde_json::from_value(json!({
                "apiVersion": "squall.dev/v1alpha1", "kind": "PodChaos", "metadata": {"name": "x"},
                "spec": {"action": "container-kill", "mode": "one"}, "status": {"targets": [target]}
            }))
            .unwrap();
            did_what_it_says(&object).map_err(|error| error.to_string())
        };
        let mut target = json!({"namespace": "n", "pod": "p", "uid": "u", "phase": "Killed", "exitCode": 137,
            "receipt": {"evidence": "ebpf", "signal": 9, "total": 1, "processes": [{"pid": 7, "comm": "sh"}]}});
        judged(target.clone()).unwrap();
        let mut without = |key: &str, value: Value| {
            let was = std::mem::replace(&mut target[key], value);
            let why = judged(target.clone()).unwrap_err();
            target[key] = was;
            why
        };
        assert!(without("exitCode", Value::Null).contains("exit code"));
        assert!(without("exitCode", json!(143)).contains("143"));
        assert!(without("receipt", Value::Null).contains("no receipt"));
        let empty = json!({"evidence": "pidfd", "signal": 9, "total": 0});
        assert!(without("receipt", empty).contains("names no process"));
        assert!(without("phase", json!("Skipped")).contains("not every target is Killed"));
    }

    #[test]
    fn every_show_is_a_valid_experiment() {
        for show in shows() {
            serde_json::from_value::<squall_api::PodChaosSpec>(show.spec).unwrap();
        }
    }
}
