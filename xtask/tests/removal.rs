//! Upgrade, removal and break-glass, really: each with three faults active, on the local cluster of the checkout.
//!
//! They take Squall away from everybody on that cluster: `cargo xtask test` runs them when nothing else uses it. Each
//! starts by installing it from this tree, whatever is there, and leaves what it made of it: `cargo xtask deploy` repairs.

mod support;

use std::{
    collections::BTreeMap,
    env,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use squall_api::names;
use support::{Cluster, DELETE, Seen, chaos, faults_hold, make_faults, root, text};

/// The namespace of these tests alone.
const NAMESPACE: &str = "squall-test-removal";
/// How long `cargo xtask undeploy` may take.
const UNDEPLOY: Duration = Duration::from_secs(90);
/// How long nothing may change for it to count as unchanged.
const STILL: Duration = Duration::from_secs(5);
/// A finalizer that is not ours.
const THEIRS: &str = "example.com/theirs";

/// With Squall from this tree.
fn with_squall(test: impl FnOnce(&Cluster)) {
    let cluster = Cluster::given(NAMESPACE);
    cluster.xtask("deploy");
    test(&cluster);
}

/// Has the Squall that is installed use fault images of other names, as that of another release does.
fn make_older(cluster: &Cluster) {
    let socket = env::var_os("SQUALL_CONTAINERD_SOCKET").expect("SQUALL_CONTAINERD_SOCKET is not set");
    let older = |image: &str| format!("localhost/squall-{image}:older");
    for image in ["pause", "crash"] {
        let mut ctr = Command::new("ctr");
        ctr.arg("-a").arg(&socket).args(["-n", "k8s.io", "images", "tag", "--force"]);
        let done = ctr.args([&format!("localhost/squall-{image}:dev"), &older(image)]).output().expect("ctr");
        assert!(done.status.success(), "ctr: {}", text(&done));
    }
    let (pause, crash) = (older("pause"), older("crash"));
    for name in [names::CONTROLLER, names::WEBHOOK] {
        let workload = format!("deployment/{name}");
        let (pause, crash) =
            (format!("{}={pause}", names::ENV_PAUSE_IMAGE), format!("{}={crash}", names::ENV_CRASH_IMAGE));
        cluster.kubectl(&["-n", names::NAMESPACE, "set", "env", &workload, &pause, &crash]);
    }
    let workload = format!("daemonset/{}", names::DAEMON);
    let (pause, crash) = (format!("pull-pause={pause}"), format!("pull-crash={crash}"));
    cluster.kubectl(&["-n", names::NAMESPACE, "set", "image", &workload, &pause, &crash]);
    for (kind, name) in
        [("deployment", names::CONTROLLER), ("deployment", names::WEBHOOK), ("daemonset", names::DAEMON)]
    {
        let workload = format!("{kind}/{name}");
        cluster.kubectl(&["-n", names::NAMESPACE, "rollout", "status", &workload, "--timeout=180s"]);
    }
    // A webhook that is being replaced still answers, with its own images, until it is gone.
    cluster.until("down to the older Squall", || {
        let path = "jsonpath={.items[?(@.metadata.deletionTimestamp)].metadata.name}";
        let ending = cluster.kubectl(&["-n", names::NAMESPACE, "get", "pods", "-o", path]);
        if ending.is_empty() { Ok(()) } else { Err(ending) }
    });
}

/// A CRD of Chaos Mesh's with one object, and what that has to look like afterwards.
struct Stranger<'a>(&'a Cluster);

impl<'a> Stranger<'a> {
    const CRD: &'static str = "podchaos.chaos-mesh.org";

    fn make(cluster: &'a Cluster) -> Self {
        let made = Self(cluster);
        let schema =
            json!({"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}});
        cluster.apply(&json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": Self::CRD}, "spec": {"group": "chaos-mesh.org", "scope": "Namespaced",
                "names": {"kind": "PodChaos", "plural": "podchaos", "singular": "podchaos"},
                "versions": [{"name": "v1alpha1", "served": true, "storage": true, "schema": schema}]}}));
        cluster.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", "crd", Self::CRD]);
        // With a finalizer like ours: nobody takes that off either.
        cluster.apply(&json!({"apiVersion": "chaos-mesh.org/v1alpha1", "kind": "PodChaos",
            "metadata": {"name": "theirs", "finalizers": [names::FINALIZER]}}));
        // Else this shows nothing: the short name is theirs now.
        cluster.until("theirs by the short name", || {
            let path = "jsonpath={.apiVersion}";
            let said = text(
                &cluster
                    .command(&["-n", NAMESPACE, "get", "podchaos", "theirs", "-o", path])
                    .output()
                    .unwrap(),
            );
            if said == "chaos-mesh.org/v1alpha1" { Ok(()) } else { Err(said) }
        });
        made
    }

    #[track_caller]
    fn is_untouched(&self) {
        let theirs = self.0.json(&["-n", NAMESPACE, "get", Self::CRD, "theirs"]);
        let metadata = &theirs["metadata"];
        assert!(metadata.get("deletionTimestamp").is_none(), "{theirs}");
        assert_eq!(metadata["finalizers"], json!([names::FINALIZER]));
    }
}

impl Drop for Stranger<'_> {
    fn drop(&mut self) {
        let none = json!({"metadata": {"finalizers": null}}).to_string();
        let _ = self
            .0
            .command(&["-n", NAMESPACE, "patch", Self::CRD, "theirs", "--type=merge", "-p", &none])
            .output();
        let _ = self.0.command(&["delete", "crd", Self::CRD, "--ignore-not-found", "--timeout=60s"]).output();
    }
}

/// Every component is another one now, and nobody noticed: what a new leader would do wrong it does soon.
fn nobody_noticed(cluster: &Cluster, before: &BTreeMap<String, Seen>) {
    let began = Instant::now();
    while began.elapsed() < STILL {
        faults_hold(cluster).unwrap_or_else(|why| panic!("after the upgrade: {why}"));
        assert_eq!(cluster.pods(), *before, "the upgrade changed pods");
    }
}

/// `kubectl delete … --timeout=…`, as the README has it, and how it went. It comes to an end.
fn delete(cluster: &Cluster, what: &[&str], timeout: &str) -> bool {
    let began = Instant::now();
    let timeout = format!("--timeout={timeout}");
    let words = [&["delete"], what, &[&timeout]].concat();
    let done = cluster.command(&words).output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    eprintln!("{}: {:?}, {}: {}", words.join(" "), began.elapsed(), done.status, said.trim());
    for (name, pod) in cluster.pods().iter().filter(|(_, pod)| !pod.whole()) {
        eprintln!("not put back: {name}: {pod:?}");
    }
    assert!(began.elapsed() < DELETE, "{} took {:?}", words.join(" "), began.elapsed());
    done.status.success()
}

/// Stops every program of Squall; all that is applied stays.
fn stop_squall(cluster: &Cluster) {
    let ours = |words: &[&str]| cluster.kubectl(&[&["-n", names::NAMESPACE], words].concat());
    ours(&["scale", "deployment", "--all", "--replicas=0"]);
    let nowhere = json!({"spec": {"template": {"spec": {"nodeSelector": {"squall-test/nowhere": "true"}}}}});
    ours(&["patch", "daemonset", names::DAEMON, "-p", &nowhere.to_string()]);
    cluster.until("stopped", || {
        let left = ours(&["get", "pods", "-o", "name"]);
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
}

fn set_finalizers(cluster: &Cluster, experiment: &str, list: &[&str]) {
    let patch = json!({"metadata": {"finalizers": list}}).to_string();
    cluster.kubectl(&[
        "-n",
        NAMESPACE,
        "patch",
        "podchaos.squall.dev",
        experiment,
        "--type=merge",
        "-p",
        &patch,
    ]);
}

/// For as long as it lives the controller may change no pod of this test.
struct Forbidden<'a>(&'a Cluster);

impl<'a> Forbidden<'a> {
    const NAME: &'static str = "removal-test-forbidden";

    fn make(cluster: &'a Cluster) -> Self {
        let controller = format!("system:serviceaccount:{}:{}", names::NAMESPACE, names::CONTROLLER);
        let rules = json!([{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["UPDATE"], "resources": ["pods"]}]);
        let here = json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": NAMESPACE}}});
        let object = |kind: &str, spec: Value| json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": Self::NAME}, "spec": spec});
        let made = Self(cluster);
        cluster.apply(&object(
            "ValidatingAdmissionPolicy",
            json!({"matchConstraints": {"resourceRules": rules},
                "validations": [{"expression": format!("request.userInfo.username != '{controller}'")}]}),
        ));
        cluster.apply(&object(
            "ValidatingAdmissionPolicyBinding",
            json!({"policyName": Self::NAME, "validationActions": ["Deny"], "matchResources": here}),
        ));
        cluster.until("forbidden", || {
            let tried =
                ["-n", NAMESPACE, "label", "pod", "hand", "tried=1", "--dry-run=server", "--as", &controller];
            let said = text(&cluster.command(&tried).output().unwrap());
            if said.contains(Self::NAME) { Ok(()) } else { Err(said) }
        });
        made
    }
}

impl Drop for Forbidden<'_> {
    fn drop(&mut self) {
        let both = "validatingadmissionpolicybinding,validatingadmissionpolicy";
        let _ = self.0.command(&["delete", both, Self::NAME, "--ignore-not-found"]).output();
    }
}

fn undeploy(cluster: &Cluster) {
    let took = cluster.xtask("undeploy");
    eprintln!("undeploy: {took:?}");
    assert!(took < UNDEPLOY, "undeploy took {took:?}");
}

#[test]
#[ignore = "takes Squall off the local cluster; `cargo xtask test` runs it"]
fn faults_of_an_older_version_outlive_an_upgrade_and_undeploy_ends_them() {
    with_squall(|cluster| {
        make_older(cluster);
        let pods = make_faults(cluster);
        let failed = pods.values().filter(|pod| pod.images.iter().all(|image| image.ends_with(":older")));
        assert_eq!(failed.count(), 4, "{pods:?}");
        cluster.xtask("deploy");
        nobody_noticed(cluster, &pods);
        undeploy(cluster);
        cluster.is_clean(&pods);
    });
}

#[test]
#[ignore = "takes Squall off the local cluster; `cargo xtask test` runs it"]
fn delete_k_waits_until_a_squall_that_is_alive_has_put_everything_back() {
    with_squall(|cluster| {
        let pods = make_faults(cluster);
        let base = root().join("deploy");
        assert!(delete(cluster, &["-k", base.to_str().unwrap()], "60s"), "delete -k failed");
        cluster.is_clean(&pods);
    });
}

#[test]
#[ignore = "takes Squall's CRDs off the local cluster; `cargo xtask test` runs it"]
fn a_crd_that_goes_alone_ends_every_fault() {
    with_squall(|cluster| {
        let pods = make_faults(cluster);
        let crds: Vec<_> = ["crd"].into_iter().chain(names::CRDS).collect();
        assert!(delete(cluster, &crds, "60s"), "the CRDs are still there");
        cluster.are_whole(&pods);
        // And Squall is of use again as soon as they are back.
        cluster.xtask("deploy");
        let pods = make_faults(cluster);
        cluster.kubectl(&["-n", NAMESPACE, "delete", "podchaos.squall.dev", "--all", "--timeout=60s"]);
        cluster.kubectl(&["-n", NAMESPACE, "label", "pod", "hand", &format!("{}-", names::FAULT)]);
        cluster.are_whole(&pods);
    });
}

#[test]
#[ignore = "takes Squall's namespace off the local cluster; `cargo xtask test` runs it"]
fn our_namespace_that_goes_alone_ends_every_fault() {
    with_squall(|cluster| {
        let pods = make_faults(cluster);
        assert!(delete(cluster, &["namespace", names::NAMESPACE], "60s"), "the namespace is still there");
        cluster.are_whole(&pods);
        // Nobody is there any more who would let them go.
        for (resource, name) in [("podchaos.squall.dev", "lasting"), ("podchaos.squall.dev", "pending")] {
            let path = "jsonpath={.metadata.finalizers}";
            assert_eq!(cluster.kubectl(&["-n", NAMESPACE, "get", resource, name, "-o", path]), "");
        }
        cluster.kubectl(&["-n", NAMESPACE, "delete", "podchaos.squall.dev", "--all", "--timeout=10s"]);
    });
}

#[test]
#[ignore = "takes Squall off the local cluster; `cargo xtask test` runs it"]
fn a_dead_squall_is_removed_and_its_faults_are_ended_from_their_records() {
    with_squall(|cluster| {
        let pods = make_faults(cluster);
        let stranger = Stranger::make(cluster);
        stop_squall(cluster);
        undeploy(cluster);
        stranger.is_untouched();
        cluster.is_clean(&pods);
    });
}

#[test]
#[ignore = "takes Squall off the local cluster; `cargo xtask test` runs it"]
fn undeploy_lets_nothing_in_meanwhile_and_names_what_others_hold() {
    with_squall(|cluster| {
        let pods = make_faults(cluster);
        set_finalizers(cluster, "lasting", &[THEIRS, names::FINALIZER]);
        // So it waits for as long as it may, and has to put the pods back itself.
        let forbidden = Forbidden::make(cluster);
        let mut undeploy = cluster.xtask_command("undeploy --patience 15");
        let undeploy = undeploy.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("xtask");
        let late = chaos("late", json!({"action": "pod-kill", "mode": "one"})).to_string();
        cluster.until("closed to new experiments", || {
            let said = cluster.feed(&["-n", NAMESPACE, "create", "--dry-run=server", "-f", "-"], &late);
            if text(&said).contains("Squall is being removed") { Ok(()) } else { Err(text(&said)) }
        });
        let done = undeploy.wait_with_output().expect("xtask");
        let said = text(&done);
        eprintln!("{said}");
        assert!(!done.status.success(), "it says that nothing was left");
        let left = said.split_once("left behind:").map(|(_, left)| left).unwrap_or_default();
        assert!(
            left.contains(&format!("podchaos.squall.dev {NAMESPACE}/lasting")) && left.contains(THEIRS),
            "{said}"
        );
        assert!(!left.contains("pending") && !left.contains("pod "), "{said}");
        cluster.are_whole(&pods);
        drop(forbidden);
        set_finalizers(cluster, "lasting", &[]);
        cluster.is_clean(&pods);
    });
}

#[test]
#[ignore = "takes Squall off the local cluster; `cargo xtask test` runs it"]
fn what_delete_k_leaves_of_a_dead_squall_is_for_the_break_glass_script() {
    with_squall(|cluster| {
        let pods = make_faults(cluster);
        stop_squall(cluster);
        set_finalizers(cluster, "lasting", &[THEIRS, names::FINALIZER]);
        let base = root().join("deploy");
        assert!(
            !delete(cluster, &["-k", base.to_str().unwrap()], "15s"),
            "nobody can have let the experiments go"
        );
        assert_eq!(cluster.pods(), pods, "nobody is there who could have put them back");
        let stranger = Stranger::make(cluster);
        cluster.break_glass();
        stranger.is_untouched();
        let path = "jsonpath={.metadata.finalizers[*]}";
        let kept = cluster.kubectl(&["-n", NAMESPACE, "get", "podchaos.squall.dev", "lasting", "-o", path]);
        assert_eq!(kept, THEIRS, "ours goes, also where it is not alone, and nobody else's");
        set_finalizers(cluster, "lasting", &[]);
        cluster.is_clean(&pods);
        // And once more, with nothing to do.
        cluster.break_glass();
        cluster.is_clean(&pods);
    });
}
