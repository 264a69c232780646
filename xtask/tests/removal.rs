//! Upgrade, removal and break-glass, really: each with three faults active, on the local cluster of the checkout.
//!
//! One test, because it takes Squall away from everybody on that cluster: `cargo xtask test` runs it when nothing else
//! uses it. It starts from whatever is installed, and leaves Squall installed from this tree; if it fails it leaves
//! what it found wrong, and `cargo xtask deploy` repairs. It never skips: asked for without a cluster, it fails.

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
/// The namespace of this test alone.
const NAMESPACE: &str = "squall-test-removal";
/// The image of its pods.
const BUSYBOX: &str = "localhost/busybox:1";
/// How long anything may take that only has to happen: the machine may be busy with much else.
const PATIENCE: Duration = Duration::from_secs(180);
/// How long `cargo xtask undeploy` may take.
const UNDEPLOY: Duration = Duration::from_secs(90);
/// How long `kubectl delete -k deploy/` may take.
const DELETE: Duration = Duration::from_secs(120);
/// How long nothing may change for it to count as unchanged.
const STILL: Duration = Duration::from_secs(5);
/// A finalizer that is not ours.
const THEIRS: &str = "example.com/theirs";
/// Kinds of ours that belong to no namespace.
const CLUSTER_KINDS: &str = "crd,clusterrole,clusterrolebinding,mutatingwebhookconfiguration,\
    validatingwebhookconfiguration,validatingadmissionpolicy,validatingadmissionpolicybinding,namespace";

/// The cluster that `cargo xtask test` names.
struct Cluster {
    name: OsString,
    kubectl: OsString,
    kubeconfig: OsString,
}

impl Cluster {
    fn given() -> Self {
        assert!(
            env::var_os(GATE).is_some(),
            "this test takes Squall off the local cluster; {GATE}=1 allows it"
        );
        let variable = |name: &str| {
            env::var_os(name).unwrap_or_else(|| panic!("{name} is not set: run `cargo xtask test removal`"))
        };
        // The chores take the cluster's name out of the environment: it is read from the state's place.
        let state = PathBuf::from(variable("SQUALL_STATE"));
        let name = state.file_name().expect("SQUALL_STATE names a directory").to_owned();
        Self { name, kubectl: variable("SQUALL_KUBECTL"), kubeconfig: variable("SQUALL_KUBECONFIG") }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.kubectl);
        command.env("KUBECONFIG", &self.kubeconfig).args(args).stdin(Stdio::null());
        command
    }

    #[track_caller]
    fn kubectl(&self, args: &[&str]) -> String {
        let done = self.command(args).output().expect("kubectl");
        assert!(done.status.success(), "kubectl {}: {}", args.join(" "), text(&done));
        String::from_utf8(done.stdout).unwrap()
    }

    #[track_caller]
    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.kubectl(&[args, &["-o", "json"]].concat())).unwrap()
    }

    /// Applies it, again while the webhook can't be reached: it takes some seconds after a start.
    #[track_caller]
    fn apply(&self, object: &Value) {
        self.until("applied", || {
            let mut command = self.command(&["-n", NAMESPACE, "apply", "-f", "-"]);
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = command.spawn().expect("kubectl");
            child.stdin.take().unwrap().write_all(object.to_string().as_bytes()).unwrap();
            let done = child.wait_with_output().unwrap();
            if done.status.success() { Ok(()) } else { Err(text(&done)) }
        });
    }

    #[track_caller]
    fn xtask(&self, command: &str) -> Duration {
        let began = Instant::now();
        let mut xtask = Command::new(env!("CARGO_BIN_EXE_xtask"));
        let done = xtask.arg(command).env("SQUALL_CLUSTER", &self.name).output().expect("xtask");
        assert!(
            done.status.success(),
            "`cargo xtask {command}` failed, and this test needs it: {}",
            text(&done)
        );
        began.elapsed()
    }

    /// Runs the script that needs nothing of ours.
    #[track_caller]
    fn break_glass(&self) {
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
    fn until(&self, what: &str, mut look: impl FnMut() -> Result<(), String>) {
        let began = Instant::now();
        while let Err(why) = look() {
            assert!(began.elapsed() < PATIENCE, "not {what} after {:?}: {why}", began.elapsed());
            thread::sleep(Duration::from_millis(500));
        }
    }

    fn pods(&self) -> BTreeMap<String, Seen> {
        let list = self.json(&["-n", NAMESPACE, "get", "pods"]);
        list["items"].as_array().unwrap().iter().map(Seen::of).collect()
    }

    fn phase(&self, experiment: &str) -> String {
        let path = "jsonpath={.status.phase}";
        self.kubectl(&["-n", NAMESPACE, "get", "podchaos", experiment, "-o", path])
    }

    /// Nothing of ours is left: on no pod, and in the cluster.
    #[track_caller]
    fn is_clean(&self, pods: &BTreeMap<String, Seen>) {
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
                &["get", "pods,podchaos", "-n", NAMESPACE, "-o", "yaml"][..],
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
        let _ =
            self.command(&["delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait=false"]).output();
    }
}

/// What counts of a pod.
#[derive(Clone, Debug, PartialEq)]
struct Seen {
    uid: String,
    images: Vec<String>,
    /// Labels and annotations of ours.
    keys: BTreeMap<String, String>,
    restarts: Vec<i64>,
    containers: Vec<String>,
    /// What runs in them now; other names of the same image are the runtime's business.
    running: Vec<bool>,
    ready: bool,
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

    fn whole(&self) -> bool {
        self.images.iter().all(|image| image == BUSYBOX) && self.keys.is_empty() && self.ready
    }

    /// Failed by us, recorded, and the fault image has come to run.
    fn failed(&self) -> bool {
        self.images.iter().all(|image| image.contains("squall-pause"))
            && [names::FAULT, names::ORIGINAL_IMAGES, names::HELD_BY]
                .iter()
                .all(|key| self.keys.contains_key(*key))
            && self.restarts == [1]
            && self.running == [true]
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Pods whose fault image runs to the end of the fault: with `args` and no `command` the image's own program runs, so
/// that `pause` pauses, and no restart is anybody's but ours.
fn spec() -> Value {
    json!({"terminationGracePeriodSeconds": 1, "containers": [{"name": "app", "image": BUSYBOX,
        "args": ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.2; done"]}]})
}

fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": spec()})
}

/// The pods that faults are tried on, and the budget that keeps one of the faults pending.
fn make_pods(cluster: &Cluster) {
    cluster.kubectl(&["delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=120s"]);
    cluster.apply(&json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": NAMESPACE, "labels": {names::INJECT: names::INJECT_ENABLED}}}));
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
fn make_faults(cluster: &Cluster) -> BTreeMap<String, Seen> {
    make_pods(cluster);
    let chaos = |name: &str, spec: Value| json!({"apiVersion": "squall.dev/v1alpha1", "kind": "PodChaos", "metadata": {"name": name}, "spec": spec});
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
    cluster.kubectl(&["-n", NAMESPACE, "annotate", "pod", "hand", &style]);
    let switch = format!("{}={}", names::FAULT, names::POD_FAILURE);
    cluster.kubectl(&["-n", NAMESPACE, "label", "pod", "hand", &switch]);
    cluster.until("three faults active", || faults_hold(cluster));
    cluster.pods()
}

/// Four pods are failed, the fifth is not, and both experiments are at it.
fn faults_hold(cluster: &Cluster) -> Result<(), String> {
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

/// Restarts every component, one after another, and sees that nobody noticed.
fn upgrade(cluster: &Cluster, before: &BTreeMap<String, Seen>) {
    let workloads =
        [("deployment", names::CONTROLLER), ("deployment", names::WEBHOOK), ("daemonset", names::DAEMON)];
    for (kind, name) in workloads {
        let workload = format!("{kind}/{name}");
        cluster.kubectl(&["-n", names::NAMESPACE, "rollout", "restart", &workload]);
        cluster.kubectl(&["-n", names::NAMESPACE, "rollout", "status", &workload, "--timeout=180s"]);
        assert_eq!(cluster.pods(), *before, "the restart of {name} changed pods");
    }
    // What a new leader would do wrong it does soon.
    let began = Instant::now();
    while began.elapsed() < STILL {
        faults_hold(cluster).unwrap_or_else(|why| panic!("after the upgrade: {why}"));
        assert_eq!(cluster.pods(), *before, "the upgrade changed pods");
    }
}

/// `kubectl delete -k deploy/`, as a user does it. That it comes to an end is asked of it, not that it succeeds: what it
/// can't finish is the break-glass script's.
fn delete(cluster: &Cluster) {
    let base = root().join("deploy");
    let began = Instant::now();
    let done = cluster
        .command(&["delete", "-k", base.to_str().unwrap(), "--wait", "--timeout=60s"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    eprintln!("delete -k: {:?}, {}: {}", began.elapsed(), done.status, said.trim());
    for (name, pod) in cluster.pods().iter().filter(|(_, pod)| !pod.whole()) {
        eprintln!("left to the script: {name}: {pod:?}");
    }
    assert!(began.elapsed() < DELETE, "delete -k took {:?}", began.elapsed());
}

/// Takes every program of Squall away; the webhooks' registration, the rights and the CRD stay.
fn kill_squall(cluster: &Cluster) {
    let workloads = ["-n", names::NAMESPACE, "delete", "deployment,daemonset", "--all"];
    cluster.kubectl(&[&workloads[..], &["--cascade=foreground", "--timeout=120s"]].concat());
}

#[test]
#[ignore = "takes Squall off the local cluster; `cargo xtask test` runs it"]
fn faults_outlive_an_upgrade_and_end_with_every_way_of_removal() {
    let cluster = Cluster::given();

    cluster.xtask("deploy");
    let pods = make_faults(&cluster);
    upgrade(&cluster, &pods);
    let took = cluster.xtask("undeploy");
    eprintln!("undeploy: {took:?}");
    assert!(took < UNDEPLOY, "undeploy took {took:?}");
    cluster.is_clean(&pods);

    // By hand, with Squall alive: it recovers as its namespace goes.
    cluster.xtask("deploy");
    let pods = make_faults(&cluster);
    delete(&cluster);
    cluster.break_glass();
    cluster.is_clean(&pods);

    // With Squall dead: nobody recovers, so the records have to do.
    cluster.xtask("deploy");
    let pods = make_faults(&cluster);
    kill_squall(&cluster);
    let took = cluster.xtask("undeploy");
    eprintln!("undeploy of a dead Squall: {took:?}");
    assert!(took < UNDEPLOY, "undeploy of a dead Squall took {took:?}");
    cluster.is_clean(&pods);

    // By hand, with Squall dead: what it left can't go before the glass is broken.
    cluster.xtask("deploy");
    let pods = make_faults(&cluster);
    kill_squall(&cluster);
    let finalizers = |object: &str, list: &[&str]| {
        let patch = json!({"metadata": {"finalizers": list}}).to_string();
        cluster.kubectl(&["-n", NAMESPACE, "patch", "podchaos", object, "--type=merge", "-p", &patch]);
    };
    finalizers("lasting", &[THEIRS, names::FINALIZER]);
    let base = root().join("deploy");
    cluster.kubectl(&["delete", "-k", base.to_str().unwrap(), "--ignore-not-found", "--wait=false"]);
    assert_eq!(cluster.pods(), pods, "nobody is there who could have put them back");
    cluster.break_glass();
    let path = "jsonpath={.metadata.finalizers[*]}";
    let kept = cluster.kubectl(&["-n", NAMESPACE, "get", "podchaos", "lasting", "-o", path]);
    assert_eq!(kept, THEIRS, "ours goes, also where it is not alone, and nobody else's");
    finalizers("lasting", &[]);
    cluster.is_clean(&pods);
    // And once more, with nothing to do.
    cluster.break_glass();
    cluster.is_clean(&pods);

    cluster.xtask("deploy");
}
