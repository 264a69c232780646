#![allow(dead_code, clippy::allow_attributes, reason = "each test file uses its part")]
//! What the tests share that take the local cluster of the checkout apart: the cluster, pods on it, and faults.
//!
//! `cargo xtask test` runs them one after another, when nothing else uses that cluster. They never skip: asked for
//! without a cluster, they fail.

use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use squall_api::names;

/// Set by `cargo xtask test`: this machine may be used.
const GATE: &str = "SQUALL_CLUSTER_TESTS";
/// The image of the tests' pods.
pub const BUSYBOX: &str = "localhost/busybox:1";
/// How long anything may take that only has to happen: the machine may be busy with much else.
const PATIENCE: Duration = Duration::from_secs(180);
/// How long removing by hand may take.
pub const DELETE: Duration = Duration::from_secs(120);
/// Kinds of ours that belong to no namespace.
const CLUSTER_KINDS: &str = "crd,clusterrole,clusterrolebinding,mutatingwebhookconfiguration,\
    validatingwebhookconfiguration,validatingadmissionpolicy,validatingadmissionpolicybinding,namespace";

/// The cluster that `cargo xtask test` names.
pub struct Cluster {
    namespace: &'static str,
    name: OsString,
    kubectl: OsString,
    pub kubeconfig: OsString,
}

impl Cluster {
    /// With a namespace of the test's own.
    pub fn given(namespace: &'static str) -> Self {
        assert!(
            env::var_os(GATE).is_some(),
            "this test takes apart what is on the local cluster; {GATE}=1 allows it"
        );
        let variable = |name: &str| {
            env::var_os(name).unwrap_or_else(|| panic!("{name} is not set: run `cargo xtask test`"))
        };
        // The chores take the cluster's name out of the environment: it is read from the state's place.
        let state = PathBuf::from(variable("SQUALL_STATE"));
        let name = state.file_name().expect("SQUALL_STATE names a directory").to_owned();
        Self {
            namespace,
            name,
            kubectl: variable("SQUALL_KUBECTL"),
            kubeconfig: variable("SQUALL_KUBECONFIG"),
        }
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.kubectl);
        command.env("KUBECONFIG", &self.kubeconfig).args(args).stdin(Stdio::null());
        command
    }

    #[track_caller]
    pub fn kubectl(&self, args: &[&str]) -> String {
        let done = self.command(args).output().expect("kubectl");
        assert!(done.status.success(), "kubectl {}: {}", args.join(" "), text(&done));
        String::from_utf8(done.stdout).unwrap()
    }

    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.kubectl(&[args, &["-o", "json"]].concat())).unwrap()
    }

    /// Applies it, again while the webhook can't be reached: it takes some seconds after a start.
    #[track_caller]
    pub fn apply(&self, object: &Value) {
        self.until("applied", || {
            let done = self.feed(&["-n", self.namespace, "apply", "-f", "-"], &object.to_string());
            if done.status.success() { Ok(()) } else { Err(text(&done)) }
        });
    }

    /// Runs kubectl with `input`, whatever comes of it.
    pub fn feed(&self, args: &[&str], input: &str) -> Output {
        let mut command = self.command(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("kubectl");
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    pub fn xtask_command(&self, command: &str) -> Command {
        let mut xtask = Command::new(env!("CARGO_BIN_EXE_xtask"));
        xtask.args(command.split(' ')).env("SQUALL_CLUSTER", &self.name).stdin(Stdio::null());
        xtask
    }

    #[track_caller]
    pub fn xtask(&self, command: &str) -> Duration {
        let began = Instant::now();
        let done = self.xtask_command(command).output().expect("xtask");
        assert!(
            done.status.success(),
            "`cargo xtask {command}` failed, and this test needs it: {}",
            text(&done)
        );
        began.elapsed()
    }

    /// Runs the script that needs nothing of ours.
    #[track_caller]
    pub fn break_glass(&self) {
        let began = Instant::now();
        let mut script = Command::new("sh");
        script.arg(root().join("deploy/break-glass.sh"));
        script.env("KUBECTL", &self.kubectl).env("KUBECONFIG", &self.kubeconfig);
        let done = script.output().expect("sh");
        assert!(done.status.success(), "break-glass.sh: {}", text(&done));
        assert!(began.elapsed() < DELETE, "break-glass.sh took {:?}", began.elapsed());
    }

    /// Looks until it is so.
    #[track_caller]
    pub fn until(&self, what: &str, mut look: impl FnMut() -> Result<(), String>) {
        let began = Instant::now();
        while let Err(why) = look() {
            assert!(began.elapsed() < PATIENCE, "not {what} after {:?}: {why}", began.elapsed());
            thread::sleep(Duration::from_millis(500));
        }
    }

    pub fn pods(&self) -> BTreeMap<String, Seen> {
        let list = self.json(&["-n", self.namespace, "get", "pods"]);
        list["items"].as_array().unwrap().iter().map(Seen::of).collect()
    }

    pub fn phase(&self, experiment: &str) -> String {
        let path = "jsonpath={.status.phase}";
        self.kubectl(&["-n", self.namespace, "get", "podchaos.squall.dev", experiment, "-o", path])
    }

    /// The same pods run their own images, and carry nothing of ours.
    #[track_caller]
    pub fn are_whole(&self, pods: &BTreeMap<String, Seen>) {
        self.until("whole", || {
            let now = self.pods();
            for (name, was) in pods {
                let pod = now.get(name).ok_or(format!("pod {name} is gone"))?;
                if pod.uid != was.uid || !pod.whole() {
                    return Err(format!("{name}: {pod:?}"));
                }
            }
            if now.len() == pods.len() { Ok(()) } else { Err(format!("{} pods", now.len())) }
        });
    }

    /// Nothing of ours is left: on no pod, and in the cluster.
    #[track_caller]
    pub fn is_clean(&self, pods: &BTreeMap<String, Seen>) {
        self.are_whole(pods);
        self.until("gone", || {
            let ours = ["get", CLUSTER_KINDS, "-l", "app.kubernetes.io/part-of=squall", "-o", "name"];
            let mut left = self.kubectl(&ours);
            // By name too: something without the label would be missed.
            let named = self.kubectl(&["get", CLUSTER_KINDS, "-o", "name"]);
            let ours = |line: &&str| {
                let (kind, name) = line.split_once('/').unwrap_or_default();
                name == names::NAMESPACE
                    || name.ends_with(&format!(".{}", names::GROUP))
                    // The namespaces of this test and of the demo are not Squall.
                    || (kind != "namespace" && (name == "squall" || name.starts_with("squall-")))
            };
            left.extend(named.lines().filter(ours).map(|line| format!("{line}\n")));
            if left.is_empty() { Ok(()) } else { Err(left) }
        });
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if thread::panicking() {
            for args in [
                &["get", "pods,podchaos", "-n", self.namespace, "-o", "yaml"][..],
                &["get", "pods", "-n", names::NAMESPACE, "-o", "wide"],
                &["get", CLUSTER_KINDS, "-l", "app.kubernetes.io/part-of=squall"],
                &[
                    "logs",
                    "-n",
                    names::NAMESPACE,
                    "-l",
                    "app.kubernetes.io/part-of=squall",
                    "--tail=40",
                    "--prefix",
                ],
            ] {
                eprintln!("--- kubectl {}", args.join(" "));
                eprintln!(
                    "{}",
                    self.command(args).output().map_or_else(|error| error.to_string(), |done| text(&done))
                );
            }
        }
        let _ = self
            .command(&["delete", "namespace", self.namespace, "--ignore-not-found", "--wait=false"])
            .output();
    }
}

/// What counts of a pod.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    pub uid: String,
    pub images: Vec<String>,
    /// Labels and annotations of ours.
    pub keys: BTreeMap<String, String>,
    pub restarts: Vec<i64>,
    pub containers: Vec<String>,
    /// What runs in them now; other names of the same image are the runtime's business.
    pub running: Vec<bool>,
    pub ready: bool,
}

impl Seen {
    fn of(pod: &Value) -> (String, Self) {
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let string = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let metadata = &pod["metadata"];
        let keys = [&metadata["labels"], &metadata["annotations"]].into_iter().filter_map(Value::as_object);
        let prefix = format!("{}/", names::GROUP);
        let statuses = list(&pod["status"]["containerStatuses"]);
        let conditions = list(&pod["status"]["conditions"]);
        let seen = Self {
            uid: string(&metadata["uid"]),
            images: list(&pod["spec"]["containers"]).iter().map(|one| string(&one["image"])).collect(),
            keys: keys
                .flatten()
                .filter(|(key, _)| key.starts_with(&prefix))
                .map(|(key, value)| (key.clone(), string(value)))
                .collect(),
            restarts: statuses.iter().map(|one| one["restartCount"].as_i64().unwrap_or(0)).collect(),
            containers: statuses.iter().map(|one| string(&one["containerID"])).collect(),
            running: statuses.iter().map(|one| one["state"]["running"].is_object()).collect(),
            ready: conditions.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"),
        };
        (string(&metadata["name"]), seen)
    }

    pub fn whole(&self) -> bool {
        self.images.iter().all(|image| image == BUSYBOX) && self.keys.is_empty() && self.ready
    }

    /// Failed by us, recorded, and the fault image has come to run.
    pub fn failed(&self) -> bool {
        self.images.iter().all(|image| image.contains("squall-pause"))
            && [names::FAULT, names::ORIGINAL_IMAGES, names::HELD_BY]
                .iter()
                .all(|key| self.keys.contains_key(*key))
            && self.restarts == [1]
            && self.running == [true]
    }
}

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

pub fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Pods whose fault image runs to the end of the fault: with `args` and no `command` the image's own program runs, so
/// that `pause` pauses, and no restart is anybody's but ours.
pub fn spec() -> Value {
    json!({"terminationGracePeriodSeconds": 1, "containers": [{"name": "app", "image": BUSYBOX,
        "args": ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.2; done"]}]})
}

pub fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": spec()})
}

pub fn chaos(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "squall.dev/v1alpha1", "kind": "PodChaos", "metadata": {"name": name}, "spec": spec})
}

/// The pods that faults are tried on, and the budget that keeps one of the faults pending.
pub fn make_pods(cluster: &Cluster) {
    cluster.kubectl(&["delete", "namespace", cluster.namespace, "--ignore-not-found", "--timeout=120s"]);
    cluster.apply(&json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": cluster.namespace, "labels": {names::INJECT: names::INJECT_ENABLED}}}));
    let app = json!({"app": "web"});
    cluster.apply(&json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {"replicas": 3, "selector": {"matchLabels": app},
            "template": {"metadata": {"labels": app}, "spec": spec()}}}));
    cluster.apply(&pod("hand"));
    cluster.apply(&pod("guarded"));
    cluster.apply(
        &json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "guarded"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "guarded"}}}}),
    );
    cluster.until("five pods Ready", || {
        let pods = cluster.pods();
        if pods.len() == 5 && pods.values().all(Seen::whole) { Ok(()) } else { Err(format!("{pods:?}")) }
    });
}

/// Makes three faults active: one by hand, one that lasts, and one that waits for leave it never gets. Restarts are
/// counted from new pods, so these are made anew.
pub fn make_faults(cluster: &Cluster) -> BTreeMap<String, Seen> {
    make_pods(cluster);
    cluster.apply(&chaos(
        "lasting",
        json!({"action": "pod-failure", "mode": "all", "faultStyle": "pause",
            "selector": {"labelSelectors": {"app": "web"}}}),
    ));
    cluster.apply(&chaos(
        "pending",
        json!({"action": "pod-kill", "mode": "all", "evict": true, "duration": "30m",
            "selector": {"labelSelectors": {"app": "guarded"}}}),
    ));
    let style = format!("{}=pause", names::FAULT_STYLE);
    cluster.kubectl(&["-n", cluster.namespace, "annotate", "pod", "hand", &style]);
    let switch = format!("{}={}", names::FAULT, names::POD_FAILURE);
    cluster.kubectl(&["-n", cluster.namespace, "label", "pod", "hand", &switch]);
    cluster.until("three faults active", || faults_hold(cluster));
    cluster.pods()
}

/// Four pods are failed, the fifth is not, and both experiments are at it.
pub fn faults_hold(cluster: &Cluster) -> Result<(), String> {
    let phases = (cluster.phase("lasting"), cluster.phase("pending"));
    if phases != ("Injected".to_owned(), "Injecting".to_owned()) {
        return Err(format!("the experiments are {phases:?}"));
    }
    for (name, pod) in cluster.pods() {
        let right = if name == "guarded" { pod.whole() } else { pod.failed() };
        if !right {
            return Err(format!("{name}: {pod:?}"));
        }
    }
    Ok(())
}
