//! `cargo xtask deploy`: builds and loads the images, applies `deploy/`, and waits until Squall can be used.
//!
//! What is applied is an overlay of `deploy/` with a hash of each program in its pods' template: a second deploy
//! restarts what has changed and nothing else. Removal is `undeploy.rs`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use squall_api::names;

use crate::{build, images, kubectl, kubectl::Kubectl, progress::Step};

/// Annotation on our pods' templates: the hash of the image.
const CONTENT: &str = "squall.dev/content";
/// What each image's content comes to, by its name.
type Hashes = BTreeMap<&'static str, String>;
/// How long the workloads may take: the first time a node pulls five images.
const ROLLOUT: Duration = Duration::from_secs(180);
/// How long the webhook may take to be reached once its pods are Ready.
const REACHED: Duration = Duration::from_secs(30);

/// Arguments of `cargo xtask deploy`.
#[derive(clap::Args)]
pub struct Args {
    /// Use this context of your kubeconfig instead of the local cluster; the current context is never switched.
    #[arg(long)]
    pub context: Option<String>,
    /// Push the images to this registry (and path), and take them from there.
    #[arg(long)]
    pub registry: Option<String>,
}

/// A workload of ours.
struct Workload {
    kind: &'static str,
    name: &'static str,
}

const WORKLOADS: [Workload; 3] = [
    Workload { kind: "Deployment", name: names::CONTROLLER },
    Workload { kind: "Deployment", name: names::WEBHOOK },
    Workload { kind: "DaemonSet", name: names::DAEMON },
];

/// Does it.
pub fn run(args: Args) -> Result<()> {
    let kubectl = Kubectl::up(args.context.as_deref())?;
    install(&kubectl, args.registry.as_deref())?;
    print!("{}", overview(&kubectl)?);
    println!("try:    {} label namespace NAME {}={}", kubectl.shown(), names::INJECT, names::INJECT_ENABLED);
    println!("        {} apply -n NAME -f deploy/examples/pod-kill.yaml", kubectl.shown());
    println!(
        "remove: cargo xtask undeploy{}",
        args.context.map(|name| format!(" --context {name}")).unwrap_or_default()
    );
    Ok(())
}

/// Installs this tree's Squall there, and waits until it can be used.
pub fn install(kubectl: &Kubectl, registry: Option<&str>) -> Result<()> {
    let hashes = if kubectl.cluster().is_some() || registry.is_some() {
        let push = registry.map(str::to_owned);
        images::deliver(images::Args { push, load: images::Kind::Local, cluster: None })?
    } else {
        // Loaded by whoever runs that cluster: what has been built since restarts, too.
        let built = images::built()?;
        ensure!(
            !built.is_empty(),
            "that cluster can have no images of this tree, for none are built: push them with --registry REGISTRY, or load \
             them with `cargo xtask images --load kind --cluster NAME` (or k3d) first"
        );
        built
    };
    let directory = build::checkout()?.join("target/deploy");
    write_overlay(&directory, registry, &hashes)?;
    let step = Step::begin("applying deploy/");
    // What is said on stderr is a remark on the order, which is on purpose.
    kubectl.output(&["apply", "-k", &directory.to_string_lossy()])?;
    step.done();
    rollout(kubectl)?;
    reached(kubectl)
}

/// Writes a kustomization on top of `deploy/`; kustomize takes bases by relative paths only.
fn write_overlay(directory: &Path, registry: Option<&str>, hashes: &Hashes) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("can't make {}", directory.display()))?;
    let file: PathBuf = directory.join("kustomization.yaml");
    let text = serde_json::to_string_pretty(&overlay(registry, hashes))?;
    fs::write(&file, text).with_context(|| format!("can't write {}", file.display()))
}

/// The kustomization: JSON is YAML.
fn overlay(registry: Option<&str>, hashes: &Hashes) -> Value {
    let patches: Vec<_> = WORKLOADS
        .iter()
        .filter_map(|Workload { kind, name }| {
            let hash = hashes.get(*name)?;
            let patch = json!({"apiVersion": "apps/v1", "kind": kind,
                "metadata": {"name": name, "namespace": names::NAMESPACE},
                "spec": {"template": {"metadata": {"annotations": {CONTENT: hash}}}}});
            Some(json!({"patch": patch.to_string()}))
        })
        .collect();
    let images: Vec<_> = hashes
        .iter()
        .filter_map(|(image, hash)| {
            let (local, name) = (format!("localhost/{image}"), images::repository(registry?, image));
            Some(json!({"name": local, "newName": name, "newTag": images::tag(hash)}))
        })
        .collect();
    json!({"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
           "resources": ["../../deploy"], "patches": patches, "images": images})
}

/// Waits until every workload has what it wants, and says which has not. Daemons on nodes that are not Ready are named,
/// and not waited for.
fn rollout(kubectl: &Kubectl) -> Result<()> {
    let mut step = Step::begin("waiting for the controller, the webhook and the daemons");
    let mut missing = Vec::new();
    let mut away = BTreeSet::new();
    let done = kubectl::wait(ROLLOUT, || {
        missing = Vec::new();
        for Workload { kind, name } in WORKLOADS {
            let object: Value = kubectl.get(&[kind, name, "-n", names::NAMESPACE])?;
            let lack = if kind == "DaemonSet" {
                let ours = format!("{}={name}", names::COMPONENT_LABEL);
                let pods = kubectl.items(&["pods", "-n", names::NAMESPACE, "-l", &ours])?;
                away = nodes_away(&kubectl.items(&["nodes"])?, &pods);
                daemons_lack(&object, &pods, &away)
            } else {
                lacks(&object)
            };
            missing.extend(lack.map(|lack| format!("{name} {lack}")));
        }
        step.at(&missing.join(", "));
        Ok(missing.is_empty().then_some(()))
    })?;
    if done.is_none() {
        let pods = overview(kubectl).unwrap_or_default();
        bail!(
            "not ready after {} s: {}\n{pods}{}",
            ROLLOUT.as_secs(),
            missing.join(", "),
            last_words(kubectl).unwrap_or_default()
        );
    }
    step.done();
    if !away.is_empty() {
        let away: Vec<_> = away.into_iter().collect();
        println!(
            "not Ready, and not waited for: {}: what daemons do can't be done there until they are",
            away.join(", ")
        );
    }
    Ok(())
}

/// What a Deployment still lacks.
fn lacks(object: &Value) -> Option<String> {
    let number = |pointer: &str| number(object, pointer);
    if is_unseen(object) {
        return Some("is not yet looked at".to_owned());
    }
    let (wanted, all) = (number("/spec/replicas"), number("/status/replicas"));
    let (updated, ready) = (number("/status/updatedReplicas"), number("/status/readyReplicas"));
    if updated < wanted {
        return Some(format!("{updated}/{wanted} updated"));
    }
    if all > wanted {
        return Some(format!("{} old to end", all - wanted));
    }
    (ready < wanted).then(|| format!("{ready}/{wanted} Ready"))
}

/// What the daemons still lack on the nodes that are not `away`. On those no pod becomes Ready, nor does an old one end.
fn daemons_lack(object: &Value, pods: &[Value], away: &BTreeSet<String>) -> Option<String> {
    if is_unseen(object) {
        return Some("is not yet looked at".to_owned());
    }
    let away = i64::try_from(away.len()).unwrap_or(i64::MAX);
    let wanted = number(object, "/status/desiredNumberScheduled") - away;
    let updated = number(object, "/status/updatedNumberScheduled");
    if updated < wanted {
        return Some(format!("{updated}/{wanted} updated"));
    }
    // An updated one on a node that is away may have been counted in place of one that isn't updated.
    let staying = pods.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    let revisions: BTreeSet<_> =
        staying.filter_map(|pod| pod["metadata"]["labels"]["controller-revision-hash"].as_str()).collect();
    if revisions.len() > 1 {
        return Some("still has old ones".to_owned());
    }
    let ready = number(object, "/status/numberReady");
    (ready < wanted).then(|| format!("{ready}/{wanted} Ready"))
}

/// The nodes of these pods that are not Ready.
fn nodes_away(nodes: &[Value], pods: &[Value]) -> BTreeSet<String> {
    let with_pods: BTreeSet<_> = pods.iter().filter_map(|pod| pod["spec"]["nodeName"].as_str()).collect();
    let named = nodes.iter().filter_map(|node| Some((node["metadata"]["name"].as_str()?, node)));
    named
        .filter(|(name, node)| with_pods.contains(name) && !kubectl::is_ready(node))
        .map(|(name, _)| name.to_owned())
        .collect()
}

/// Whether its controller has not seen the object as it is written now.
fn is_unseen(object: &Value) -> bool {
    number(object, "/status/observedGeneration") < number(object, "/metadata/generation")
}

fn number(object: &Value, pointer: &str) -> i64 {
    object.pointer(pointer).and_then(Value::as_i64).unwrap_or(0)
}

/// Waits until the API server reaches the webhook: some seconds after its pods are Ready.
fn reached(kubectl: &Kubectl) -> Result<()> {
    let step = Step::begin("waiting for the API server to reach the webhook");
    // Refused or not, an answer is an answer; nothing is made.
    let probe = json!({"apiVersion": format!("{}/{}", names::GROUP, names::VERSION), "kind": "PodChaos",
        "metadata": {"name": "squall-probe", "namespace": "default"}, "spec": {"action": "pod-kill", "mode": "one"}});
    let mut last = String::new();
    let answer = kubectl::wait(REACHED, || {
        let Err(error) = kubectl.feed(&["create", "--dry-run=server", "-f", "-"], &probe.to_string()) else {
            return Ok(Some(()));
        };
        last = format!("{error:#}");
        // The reason of the API server's Status: InternalError means that the webhook could not be called.
        Ok((!last.contains("(InternalError)")).then_some(()))
    })?;
    ensure!(answer.is_some(), "the webhook can't be reached after {} s: {last}", REACHED.as_secs());
    step.done();
    Ok(())
}

/// The pods of ours, as kubectl shows them.
fn overview(kubectl: &Kubectl) -> Result<String> {
    let pods = kubectl.output(&["get", "pods", "-n", names::NAMESPACE, "-o", "wide"])?;
    Ok(format!("{pods}\n"))
}

/// The last lines of the pods of ours that are not Ready.
fn last_words(kubectl: &Kubectl) -> Result<String> {
    let mut text = String::new();
    for pod in kubectl.items(&["pods", "-n", names::NAMESPACE])? {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        if kubectl::is_ready(&pod) {
            continue;
        }
        let logs =
            kubectl.attempt(&["logs", "-n", names::NAMESPACE, name, "--all-containers", "--tail=10"])?;
        text.push_str(&format!("--- {name}\n{}", String::from_utf8_lossy(&logs.stdout)));
        let events = ["events", "-n", names::NAMESPACE, "--for", &format!("pod/{name}"), "--types=Warning"];
        text.push_str(&String::from_utf8_lossy(&kubectl.attempt(&events)?.stdout));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sh;

    #[test]
    fn only_what_changed_gets_another_template() {
        let hashes = BTreeMap::from([(names::WEBHOOK, "abc".to_owned()), ("squall-pause", "def".to_owned())]);
        let overlay = overlay(Some("registry.example/x/"), &hashes);
        let patches = overlay["patches"].as_array().unwrap();
        assert_eq!(patches.len(), 1);
        let patch: Value = serde_json::from_str(patches[0]["patch"].as_str().unwrap()).unwrap();
        assert_eq!(patch["metadata"]["name"], names::WEBHOOK);
        assert_eq!(patch["spec"]["template"]["metadata"]["annotations"], json!({CONTENT: "abc"}));
        let pause = json!({"name": "localhost/squall-pause", "newName": "registry.example/x/squall-pause",
            "newTag": "dev-def"});
        assert_eq!(overlay["images"][0], pause);
        assert_eq!(super::overlay(None, &hashes)["images"], json!([]));
    }

    /// Rendering takes kubectl, as in `tests/manifests.rs`.
    #[test]
    fn with_a_registry_what_is_applied_names_the_tags_that_were_pushed() {
        let registry = "registry.example/team";
        let images = ["squall-controller", "squall-webhook", "squall-daemon", "squall-pause", "squall-crash"];
        let hashes: Hashes =
            images.into_iter().map(|image| (image, format!("0123{}", image.len()))).collect();
        let directory = build::checkout().unwrap().join(format!("target/deploy-{}", std::process::id()));
        write_overlay(&directory, Some(registry), &hashes).unwrap();
        let kubectl = std::env::var_os("SQUALL_KUBECTL").unwrap_or_else(|| "kubectl".into());
        let text = sh::output(sh::command(kubectl, ["kustomize"]).arg(&directory));
        fs::remove_dir_all(&directory).unwrap();
        let text = text.unwrap();
        for (image, hash) in &hashes {
            let pushed = format!("{}:{}", images::repository(registry, image), images::tag(hash));
            assert!(text.contains(&pushed), "{pushed} is not named");
        }
        assert!(!text.contains("localhost/"), "an image of the local cluster is named");
    }

    #[test]
    fn a_rollout_is_over_when_the_new_ones_are_ready_and_the_old_ones_gone() {
        let of = |replicas: i64, updated: i64, ready: i64| {
            lacks(
                &json!({"kind": "Deployment", "metadata": {"generation": 2}, "spec": {"replicas": 2}, "status": {
                "observedGeneration": 2, "replicas": replicas, "updatedReplicas": updated, "readyReplicas": ready}}),
            )
        };
        assert_eq!(of(2, 2, 2), None);
        assert_eq!(of(3, 2, 2).unwrap(), "1 old to end");
        assert_eq!(of(2, 1, 2).unwrap(), "1/2 updated");
        assert_eq!(of(2, 2, 1).unwrap(), "1/2 Ready");
        let unseen = json!({"metadata": {"generation": 2}, "status": {"observedGeneration": 1}});
        assert_eq!(lacks(&unseen).unwrap(), "is not yet looked at");
        assert_eq!(daemons_lack(&unseen, &[], &BTreeSet::new()).unwrap(), "is not yet looked at");
    }

    #[test]
    fn daemons_are_waited_for_where_nodes_are_ready() {
        let node = |name: &str, ready: &str| {
            let condition = json!({"type": "Ready", "status": ready});
            json!({"metadata": {"name": name}, "status": {"conditions": [condition]}})
        };
        let nodes = [node("a", "True"), node("b", "True"), node("c", "Unknown"), node("windows", "False")];
        let pod = |node: &str, revision: &str| {
            let labels = json!({"controller-revision-hash": revision});
            json!({"metadata": {"labels": labels}, "spec": {"nodeName": node}})
        };
        let of = |updated: i64, ready: i64, pods: &[Value]| {
            let daemons = json!({"metadata": {"generation": 2}, "status": {"observedGeneration": 2,
                "desiredNumberScheduled": 3, "updatedNumberScheduled": updated, "numberReady": ready}});
            daemons_lack(&daemons, pods, &nodes_away(&nodes, pods))
        };
        let new = [pod("a", "new"), pod("b", "new"), pod("c", "new")];
        assert_eq!(nodes_away(&nodes, &new), BTreeSet::from(["c".to_owned()]));
        assert_eq!(of(3, 2, &new), None);
        assert_eq!(of(3, 1, &new).unwrap(), "1/2 Ready");
        assert_eq!(of(1, 2, &new).unwrap(), "1/2 updated");
        // Counted there, and missing here.
        assert_eq!(
            of(2, 2, &[pod("a", "new"), pod("b", "old"), pod("c", "new")]).unwrap(),
            "still has old ones"
        );
        // One that can't end where nobody ends it.
        let mut stuck = pod("c", "old");
        stuck["metadata"]["deletionTimestamp"] = json!("2026-11-30T08:00:00Z");
        assert_eq!(of(2, 2, &[pod("a", "new"), pod("b", "new"), stuck]), None);
    }
}
