//! The node restarts under Squall: every process on it is killed, `/run` is empty, and all starts again.
//!
//! The local cluster has one node, so the API server goes with it, and nobody can put anything back meanwhile.

mod support;

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use squall_api::names;
use support::{BUSYBOX, Cluster, Seen, pod};

/// How long nothing may change for it to count as over.
const STILL: Duration = Duration::from_secs(5);

/// Power off, power on.
fn reboot(cluster: &Cluster) {
    let state = PathBuf::from(std::env::var_os("SQUALL_STATE").expect("SQUALL_STATE is not set"));
    let holder = fs::read_to_string(state.join("pid/node")).unwrap();
    let holder = Pid::from_raw(holder.trim().parse().unwrap()).unwrap();
    kill_process(holder, Signal::KILL).unwrap();
    let end = Instant::now() + Duration::from_secs(5);
    let arguments = format!("/proc/{}/cmdline", holder.as_raw_nonzero());
    while fs::read(&arguments).is_ok_and(|arguments| !arguments.is_empty()) {
        assert!(Instant::now() < end, "the node does not die");
        std::thread::yield_now();
    }
    // Without its namespaces nothing of the node is left to live: `up` kills the rest and empties /run.
    cluster.xtask("cluster up");
    let workloads = [
        format!("deployment/{}", names::CONTROLLER),
        format!("deployment/{}", names::WEBHOOK),
        format!("daemonset/{}", names::DAEMON),
    ];
    for workload in workloads {
        cluster.kubectl(&["-n", names::NAMESPACE, "rollout", "status", &workload, "--timeout=180s"]);
    }
}

fn chaos(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "squall.dev/v1alpha1", "kind": "PodChaos", "metadata": {"name": name}, "spec": spec})
}

fn on(app: &str) -> Value {
    json!({"labelSelectors": {"app": app}})
}

#[test]
#[ignore = "restarts the local cluster's node; `cargo xtask test` runs it"]
fn after_a_restart_of_the_node_every_pod_is_whole_and_nothing_was_done_twice() {
    const NAMESPACE: &str = "squall-test-reboot";
    let cluster = Cluster::given(NAMESPACE);
    cluster.xtask("deploy");
    cluster.kubectl(&["delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=120s"]);
    cluster.apply(&json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": NAMESPACE, "labels": {names::INJECT: names::INJECT_ENABLED}}}));
    let apps = ["lasting", "ends", "hand", "killed", "hit"];
    for app in apps {
        cluster.apply(&pod(app));
    }
    cluster.until("Ready", || {
        let pods = cluster.pods();
        if pods.len() == apps.len() && pods.values().all(Seen::whole) {
            Ok(())
        } else {
            Err(format!("{pods:?}"))
        }
    });

    // Over before; one that lasts beyond it; two that end meanwhile, by an experiment and by hand.
    let failure = |app: &str| json!({"action": "pod-failure", "mode": "all", "faultStyle": "pause", "selector": on(app)});
    cluster.apply(&chaos(
        "killed",
        json!({"action": "container-kill", "mode": "one", "selector": on("killed")}),
    ));
    cluster.apply(&chaos("lasting", failure("lasting")));
    let mut ends = failure("ends");
    ends["duration"] = json!("6s");
    let until = format!("{}=8s", names::UNTIL);
    cluster.kubectl(&[
        "-n",
        NAMESPACE,
        "wait",
        "--for=condition=Completed",
        "podchaos.squall.dev/killed",
        "--timeout=60s",
    ]);
    cluster.until("injected", || match cluster.phase("lasting").as_str() {
        "Injected" => Ok(()),
        other => Err(other.to_owned()),
    });
    cluster.kubectl(&["-n", NAMESPACE, "annotate", "pod", "hand", &until]);
    let switch = format!("{}={}", names::FAULT, names::POD_FAILURE);
    cluster.kubectl(&["-n", NAMESPACE, "label", "pod", "hand", &switch]);
    cluster.apply(&chaos("ends", ends));
    // And one that is under way when the power goes.
    cluster.apply(&chaos("hit", json!({"action": "container-kill", "mode": "one", "selector": on("hit")})));
    let before = cluster.pods();
    reboot(&cluster);

    cluster.until("over", || {
        let phases: Vec<_> = ["ends", "hit"].map(|name| cluster.phase(name)).into();
        if phases.iter().all(|phase| ["Completed", "Failed"].contains(&phase.as_str())) {
            Ok(())
        } else {
            Err(format!("{phases:?}"))
        }
    });
    assert_eq!(cluster.phase("lasting"), "Injected", "a fault that lasts outlives the restart");
    let failed = cluster.pods().remove("lasting").expect("its pod");
    assert!(failed.images.iter().all(|image| image != BUSYBOX), "{failed:?}");
    cluster.kubectl(&["-n", NAMESPACE, "delete", "podchaos.squall.dev", "lasting", "--timeout=90s"]);
    cluster.are_whole(&before);
    // Until the kubelet has seen the images, what is Ready is the container that stood in.
    cluster.until("restarted", || match &cluster.pods()["lasting"] {
        pod if pod.ready && pod.containers != failed.containers => Ok(()),
        pod => Err(format!("{pod:?}")),
    });

    // What was done is not done again: nobody restarts a container any more.
    let settled = cluster.pods();
    let began = Instant::now();
    while began.elapsed() < STILL {
        assert_eq!(cluster.pods(), settled, "something was done after all was over");
    }
    // Once by the kill, once by the restart of the node.
    assert_eq!(settled["killed"].restarts, [2], "{:?}", settled["killed"]);
    assert!(settled["hit"].restarts[0] <= 2, "{:?}", settled["hit"]);
    cluster.kubectl(&["delete", "namespace", NAMESPACE, "--timeout=120s"]);
}
