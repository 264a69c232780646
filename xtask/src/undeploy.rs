//! `cargo xtask undeploy`: stops new work, has everything recovered, and takes Squall away, in that order.
//!
//! It works also when Squall is dead, half there or not there at all, and every wait has an end: what Squall does not
//! put back in time is put back here, from the pod's own record. What only a node's daemon can put back is named
//! where nobody has seen it do so. What can't be removed is named, and the exit code says so. It never touches the opt-in
//! labels of namespaces: those are the user's.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};
use squall_api::{
    names,
    status::{Target, TargetPhase},
};

use crate::{build, kubectl, kubectl::Kubectl, progress::Step};

/// How long is waited for what others have to do.
#[derive(Clone, Copy)]
struct Patience(Duration);

impl Patience {
    /// How long Squall has to recover everything.
    fn recovery(self) -> Duration {
        self.0
    }

    /// How long it has once the experiments are told to go whatever could not be recovered.
    fn forced(self) -> Duration {
        self.0 / 4
    }

    /// How long the namespace and the CRDs may take to be gone.
    fn gone(self) -> Duration {
        self.0 * 2
    }
}

/// The admission policy that keeps new experiments out meanwhile.
const CLOSED: &str = "squall-removal";
/// The kinds of experiments, by their full names: Chaos Mesh has the same short ones, and what is deleted here are ours.
const KINDS: [&str; 2] = names::CRDS;
/// The kind that makes experiments, in the same way.
const SCHEDULES: &str = "schedules.squall.dev";
/// Reasons of targets that failed and of which nobody has seen that nothing is left on their node.
const IN_DOUBT: [&str; 4] = ["NotRecovered", "NotInjected", "InvalidSpec", "Internal"];
/// Every annotation of ours on a pod.
const ANNOTATIONS: [&str; 8] = [
    names::ORIGINAL_IMAGES,
    names::HELD_BY,
    names::UNTIL,
    names::CONTAINERS,
    names::FAULT_STYLE,
    names::LAST_ERROR,
    names::ASK_POD_FAILURE,
    names::REQUESTED_BY,
];

/// Arguments of `cargo xtask undeploy`.
#[derive(clap::Args)]
#[command(
    after_help = "Without this tree, or with Squall already gone: deploy/break-glass.sh puts the pods' images back \
                        with nothing but kubectl."
)]
pub struct Args {
    /// Use this context of your kubeconfig instead of the local cluster; the current context is never switched.
    #[arg(long)]
    pub context: Option<String>,
    /// How long Squall has to recover everything, before it is forced to, or it is done here; and half of how long the
    /// cluster has to take its objects away.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub patience: u64,
}

/// Does it.
pub fn run(args: Args) -> Result<()> {
    let kubectl = Kubectl::of(args.context.as_deref())?;
    if let Some(cluster) = kubectl.cluster()
        && !cluster.is_up()
    {
        let name = cluster.name();
        ensure!(
            !cluster.state_dir().exists(),
            "the local cluster {name} is not up, so nothing can be recovered: `cargo xtask cluster up` repairs it, \
             `cargo xtask cluster down` removes it with all that is in it"
        );
        println!("there is no local cluster {name}: nothing to remove");
        return Ok(());
    }
    let step = Step::begin("keeping new experiments out");
    kubectl.feed(&["apply", "-f", "-"], &closed().to_string())?;
    step.done();
    let removed = remove(&kubectl, Patience(Duration::from_secs(args.patience)));
    // Also after an error: a policy that outlived us would be a riddle to whoever installs Squall again.
    for kind in ["validatingadmissionpolicybinding", "validatingadmissionpolicy"] {
        kubectl.output(&["delete", kind, CLOSED, "--ignore-not-found"])?;
    }
    removed?;
    let left = left(&kubectl)?;
    if !left.is_empty() {
        bail!("left behind:\n  {}", left.join("\n  "));
    }
    println!("Squall is removed");
    let opted = ["get", "namespaces", "-l", names::INJECT, "-o", "name"];
    let opted = kubectl.output(&opted)?.replace("namespace/", "");
    if !opted.is_empty() {
        println!(
            "left on purpose: the label {} on {}",
            names::INJECT,
            opted.split_whitespace().collect::<Vec<_>>().join(", ")
        );
    }
    Ok(())
}

fn remove(kubectl: &Kubectl, patience: Patience) -> Result<()> {
    end_schedules(kubectl)?;
    end_experiments(kubectl, patience)?;
    // With the webhook there, taking the label off is enough; without it, and for what it left, the record is used.
    restore_pods(kubectl)?;
    let step = Step::begin("removing webhooks, workloads, roles, CRDs and the namespace");
    for kind in ["mutatingwebhookconfiguration", "validatingwebhookconfiguration"] {
        kubectl.output(&["delete", kind, names::MUTATING_WEBHOOKS, "--ignore-not-found"])?;
    }
    let base = build::checkout()?.join("deploy");
    kubectl.output(&["delete", "-k", &base.to_string_lossy(), "--ignore-not-found", "--wait=false"])?;
    step.done();
    wait_until_gone(kubectl, patience)?;
    // A pod may have been failed between the first look and the webhook's end.
    restore_pods(kubectl)
}

/// Deletes every schedule, so that none begins another run; what they began is ended with the other experiments.
fn end_schedules(kubectl: &Kubectl) -> Result<()> {
    if kubectl.find(&["crd", SCHEDULES])?.is_some() {
        kubectl.output(&["delete", SCHEDULES, "-A", "--all", "--wait=false"])?;
    }
    Ok(())
}

/// Deletes every experiment and waits until Squall has put back what they did; what hangs is let go by force.
fn end_experiments(kubectl: &Kubectl, patience: Patience) -> Result<()> {
    for kind in KINDS {
        if kubectl.items(&[kind, "-A"])?.is_empty() {
            continue;
        }
        kubectl.output(&["delete", kind, "-A", "--all", "--wait=false"])?;
        if !controller_runs(kubectl)? {
            println!("no controller runs that could recover them: pods are put back from their own records");
            drop_finalizers(kubectl, kind)?;
            continue;
        }
        let what = "deleting the experiments and waiting until they are recovered";
        if none_left(kubectl, kind, what, patience.recovery())? {
            continue;
        }
        for object in held(kubectl, kind)? {
            let (namespace, name) = id(&object);
            println!(
                "{kind} {namespace}/{name} is not recovered after {} s: forcing it",
                patience.recovery().as_secs()
            );
            name_what_may_stand(&object);
            let forced = format!("{}={}", names::CLEANUP, names::CLEANUP_FORCED);
            kubectl.attempt(&["annotate", kind, &name, "-n", &namespace, &forced, "--overwrite"])?;
        }
        if !none_left(kubectl, kind, "waiting for those", patience.forced())? {
            drop_finalizers(kubectl, kind)?;
        }
    }
    Ok(())
}

/// Whether there is somebody to wait for.
fn controller_runs(kubectl: &Kubectl) -> Result<bool> {
    let deployment = kubectl.find(&["deployment", names::CONTROLLER, "-n", names::NAMESPACE])?;
    Ok(deployment.is_some_and(|found| found["status"]["readyReplicas"].as_i64().unwrap_or(0) > 0))
}

/// The objects of that kind that carry our finalizer. What others hold is not ours to wait for.
fn held(kubectl: &Kubectl, kind: &str) -> Result<Vec<Value>> {
    let mut all = kubectl.items(&[kind, "-A"])?;
    all.retain(|object| ours(object).is_some());
    Ok(all)
}

/// Where our finalizer stands among the others.
fn ours(object: &Value) -> Option<usize> {
    finalizers(object).iter().position(|finalizer| *finalizer == names::FINALIZER)
}

fn finalizers(object: &Value) -> Vec<&str> {
    object["metadata"]["finalizers"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Waits until no object of that kind carries our finalizer.
fn none_left(kubectl: &Kubectl, kind: &str, what: &str, limit: Duration) -> Result<bool> {
    let mut step = Step::begin(what);
    let gone = kubectl::wait(limit, || {
        let left = held(kubectl, kind)?;
        step.at(&format!("{} left", left.len()));
        Ok(left.is_empty().then_some(()))
    })?;
    step.done();
    Ok(gone.is_some())
}

/// Takes our finalizer, and no other's, off every object of that kind.
fn drop_finalizers(kubectl: &Kubectl, kind: &str) -> Result<()> {
    for object in kubectl.items(&[kind, "-A"])? {
        let (namespace, name) = id(&object);
        let Some(ours) = ours(&object) else { continue };
        let path = format!("/metadata/finalizers/{ours}");
        let patch =
            json!([{"op": "test", "path": path, "value": names::FINALIZER}, {"op": "remove", "path": path}]);
        println!("{kind} {namespace}/{name}: nobody recovers it; taking our finalizer off");
        name_what_may_stand(&object);
        kubectl.attempt(&[
            "patch",
            kind,
            &name,
            "-n",
            &namespace,
            "--type=json",
            "-p",
            &patch.to_string(),
        ])?;
    }
    Ok(())
}

/// Names what the experiment may leave on nodes. With the object goes the last that is written of it.
fn name_what_may_stand(object: &Value) {
    for container in may_stand(object) {
        println!(
            "{container}: delete the pod, or run that node's daemon again, which puts back what it finds"
        );
    }
}

/// The containers that a fault of this experiment may still hold on their nodes: frozen, or with lowered limits. Stressors
/// are not among it, for they end with their daemon.
fn may_stand(object: &Value) -> Vec<String> {
    let how = if object["kind"] == "StressChaos" && !object["spec"]["squeeze"].is_null() {
        "limited"
    } else if object["spec"]["action"] == "container-freeze" {
        "frozen"
    } else {
        return Vec::new();
    };
    let targets = object["status"]["targets"].as_array().into_iter().flatten();
    // One by one: what is written there may be another version's.
    let targets = targets.filter_map(|target| serde_json::from_value::<Target>(target.clone()).ok());
    targets
        .filter(|target| match target.phase {
            TargetPhase::Selected => target.ordered_at.is_some(),
            TargetPhase::Injected | TargetPhase::Recovering => true,
            TargetPhase::Failed => IN_DOUBT.contains(&target.reason.as_deref().unwrap_or_default()),
            TargetPhase::Recovered
            | TargetPhase::Killed
            | TargetPhase::Skipped
            | TargetPhase::Released
            | TargetPhase::Gone => false,
        })
        .map(|Target { namespace, pod, node, container, .. }| {
            let (container, node) = (container.unwrap_or_default(), node.unwrap_or_default());
            format!("container {container} of pod {namespace}/{pod} on node {node} may still be {how}")
        })
        .collect()
}

/// Puts every pod right that still carries something of ours.
fn restore_pods(kubectl: &Kubectl) -> Result<()> {
    // A pod that changes meanwhile is looked at again.
    for _ in 0..5 {
        let marked: Vec<_> = kubectl
            .items(&["pods", "-A"])?
            .into_iter()
            .filter_map(|pod| Some((restoration(&pod)?, pod)))
            .collect();
        if marked.is_empty() {
            return Ok(());
        }
        for (patch, pod) in marked {
            let (namespace, name) = id(&pod);
            let args = ["patch", "pod", &name, "-n", &namespace, "--type=json", "-p", &patch.to_string()];
            let done = kubectl.attempt(&args)?;
            let said = String::from_utf8_lossy(&done.stderr);
            println!(
                "pod {namespace}/{name}: {}",
                if done.status.success() { "put back" } else { said.trim() }
            );
        }
    }
    Ok(())
}

/// The JSON patch that puts a pod's images back from its record and takes away what is ours; none if nothing is.
///
/// It holds for the version of the pod that was read only.
fn restoration(pod: &Value) -> Option<Value> {
    let metadata = &pod["metadata"];
    let labelled = metadata["labels"].get(names::FAULT).is_some();
    let ours: Vec<_> =
        ANNOTATIONS.iter().filter(|key| metadata["annotations"].get(**key).is_some()).collect();
    // What an owner wrote for a fault by label that never was is his.
    let failed = labelled || ours.iter().any(|key| [names::ORIGINAL_IMAGES, names::HELD_BY].contains(key));
    if !failed || !metadata["deletionTimestamp"].is_null() {
        return None;
    }
    let originals: BTreeMap<String, String> = metadata["annotations"][names::ORIGINAL_IMAGES]
        .as_str()
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default();
    let mut patch = vec![
        json!({"op": "test", "path": "/metadata/resourceVersion", "value": metadata["resourceVersion"]}),
    ];
    for list in ["containers", "initContainers"] {
        for (index, container) in pod["spec"][list].as_array().into_iter().flatten().enumerate() {
            let image = container["name"].as_str().and_then(|name| originals.get(name));
            if let Some(image) = image.filter(|image| !image.is_empty()) {
                patch.push(
                    json!({"op": "replace", "path": format!("/spec/{list}/{index}/image"), "value": image}),
                );
            }
        }
    }
    if labelled {
        patch.push(json!({"op": "remove", "path": format!("/metadata/labels/{}", escape(names::FAULT))}));
    }
    for key in ours {
        patch.push(json!({"op": "remove", "path": format!("/metadata/annotations/{}", escape(key))}));
    }
    Some(Value::Array(patch))
}

/// A key as a part of a JSON pointer.
fn escape(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

/// Waits until the namespace and the CRDs are gone; objects that appear or hang meanwhile lose our finalizer.
fn wait_until_gone(kubectl: &Kubectl, patience: Patience) -> Result<()> {
    let mut step = Step::begin("waiting until they are gone");
    let mut looks = 0;
    kubectl::wait(patience.gone(), || {
        let mut there = Vec::new();
        if kubectl.find(&["namespace", names::NAMESPACE])?.is_some() {
            there.push(format!("namespace {}", names::NAMESPACE));
        }
        for crd in KINDS.into_iter().chain([SCHEDULES]) {
            if kubectl.find(&["crd", crd])?.is_some() {
                there.push(crd.to_owned());
            }
        }
        looks += 1;
        if looks % 10 == 0 {
            for kind in KINDS {
                drop_finalizers(kubectl, kind)?;
            }
        }
        step.at(&there.join(", "));
        Ok(there.is_empty().then_some(()))
    })?;
    step.done();
    Ok(())
}

/// What of ours is still there.
fn left(kubectl: &Kubectl) -> Result<Vec<String>> {
    let mut left = Vec::new();
    if let Some(namespace) = kubectl.find(&["namespace", names::NAMESPACE])? {
        let why = namespace["status"]["conditions"].as_array().into_iter().flatten();
        let why: Vec<_> =
            why.filter(|c| c["status"] == "True").filter_map(|c| c["message"].as_str()).collect();
        left.push(format!("namespace {}: {}", names::NAMESPACE, why.join("; ")));
    }
    let kinds = "crd,clusterrole,clusterrolebinding,mutatingwebhookconfiguration,validatingwebhookconfiguration,\
        validatingadmissionpolicy,validatingadmissionpolicybinding";
    let ours = kubectl.output(&["get", kinds, "-l", "app.kubernetes.io/part-of=squall", "-o", "name"])?;
    left.extend(ours.lines().map(str::to_owned));
    for kind in KINDS {
        for object in kubectl.items(&[kind, "-A"])? {
            let (namespace, name) = id(&object);
            left.push(format!(
                "{kind} {namespace}/{name}: its finalizers {}",
                finalizers(&object).join(", ")
            ));
        }
    }
    for pod in kubectl.items(&["pods", "-A"])? {
        if restoration(&pod).is_some() {
            let (namespace, name) = id(&pod);
            left.push(format!("pod {namespace}/{name} still carries a fault of ours"));
        }
    }
    Ok(left)
}

fn id(object: &Value) -> (String, String) {
    let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default().to_owned();
    (text("namespace"), text("name"))
}

/// An admission policy that lets no experiment be created. It needs nothing of ours to be alive.
fn closed() -> Value {
    let policy = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": CLOSED},
        "spec": {"failurePolicy": "Fail",
            "matchConstraints": {"resourceRules": [{"apiGroups": [names::GROUP], "apiVersions": ["*"],
                "operations": ["CREATE"], "resources": ["*"]}]},
            "validations": [{"expression": "false", "message": "Squall is being removed from this cluster"}]}
    });
    let binding = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": CLOSED}, "spec": {"policyName": CLOSED, "validationActions": ["Deny"]}
    });
    json!({"apiVersion": "v1", "kind": "List", "items": [policy, binding]})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(metadata: Value) -> Value {
        json!({"metadata": metadata, "spec": {
            "initContainers": [{"name": "init", "image": "crash"}],
            "containers": [{"name": "a", "image": "pause"}, {"name": "added", "image": "own"}, {"name": "b", "image": "pause"}]}})
    }

    #[test]
    fn images_come_back_by_name_and_every_key_of_ours_goes() {
        let originals = json!({"init": "i:1", "a": "a:1", "b": "host:5000/b@sha256:00"}).to_string();
        let patch = restoration(&pod(
            json!({"name": "p", "resourceVersion": "7", "labels": {names::FAULT: "pod-failure", "app": "x"},
            "annotations": {names::ORIGINAL_IMAGES: originals, names::HELD_BY: "[]", "theirs": "1"}}),
        ));
        assert_eq!(
            patch.unwrap(),
            json!([
                {"op": "test", "path": "/metadata/resourceVersion", "value": "7"},
                {"op": "replace", "path": "/spec/containers/0/image", "value": "a:1"},
                {"op": "replace", "path": "/spec/containers/2/image", "value": "host:5000/b@sha256:00"},
                {"op": "replace", "path": "/spec/initContainers/0/image", "value": "i:1"},
                {"op": "remove", "path": "/metadata/labels/squall.dev~1fault"},
                {"op": "remove", "path": "/metadata/annotations/squall.dev~1original-images"},
                {"op": "remove", "path": "/metadata/annotations/squall.dev~1held-by"},
            ])
        );
    }

    #[test]
    fn what_no_status_says_was_put_back_on_a_node_is_named() {
        let target = |pod: &str, phase: &str, more: Value| {
            let mut target = json!({"namespace": "shop", "pod": pod, "uid": pod, "node": "n1", "container": "app",
                "phase": phase});
            target.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            target
        };
        let at = json!({"orderedAt": "2026-11-30T08:00:00.000000Z"});
        let targets = json!([
            target("chosen", "Selected", json!({})),
            target("ordered", "Selected", at.clone()),
            target("held", "Injected", at),
            target("silent", "Recovering", json!({"recoveredAt": "2026-11-30T08:01:00.000000Z"})),
            target("back", "Recovered", json!({})),
            target("refused", "Failed", json!({"reason": "Unsupported"})),
            target("unseen", "Failed", json!({"reason": "NotRecovered"})),
            target("released", "Released", json!({"reason": "Protected"})),
            target("gone", "Gone", json!({})),
            {"of": "another version"},
        ]);
        let of = |kind: &str, spec: Value| {
            may_stand(&json!({"kind": kind, "spec": spec, "status": {"targets": targets}}))
        };
        let named = |how: &str| {
            ["ordered", "held", "silent", "unseen"]
                .map(|pod| format!("container app of pod shop/{pod} on node n1 may still be {how}"))
        };
        assert_eq!(of("PodChaos", json!({"action": "container-freeze"})), named("frozen"));
        assert_eq!(of("StressChaos", json!({"squeeze": {"pids": 9}})), named("limited"));
        // What ends with the daemon, what is on no node, and what does not last.
        assert_eq!(of("StressChaos", json!({"stressors": {"pids": {"count": 9}}})), [""; 0]);
        for action in ["pod-failure", "container-kill"] {
            assert_eq!(of("PodChaos", json!({"action": action})), [""; 0]);
        }
        assert_eq!(may_stand(&json!({"kind": "PodChaos", "spec": {"action": "container-freeze"}})), [""; 0]);
    }

    #[test]
    fn a_pod_of_nobody_is_left_alone() {
        assert_eq!(restoration(&pod(json!({"name": "p", "annotations": {names::UNTIL: "5m"}}))), None);
        assert_eq!(restoration(&pod(json!({"name": "p"}))), None);
    }

    #[test]
    fn the_label_goes_even_when_the_record_is_unreadable() {
        let patch = restoration(&pod(json!({"resourceVersion": "7", "labels": {names::FAULT: "x"},
            "annotations": {names::ORIGINAL_IMAGES: "{"}})));
        assert_eq!(patch.unwrap().as_array().unwrap().len(), 3);
    }
}
