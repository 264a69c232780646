//! A cluster of the user's own, by a context of the user's own kubeconfig: what is shown there, and that nothing is
//! switched. There is no other cluster here than the checkout's, so it is that one, under another name.

mod support;

use std::{env, fs, process::Command};

use serde_json::{Value, json};
use support::{BUSYBOX, Cluster, text};

#[test]
#[ignore = "runs the demo on the local cluster; `cargo xtask test` runs it"]
fn the_demo_runs_on_a_named_context_and_the_current_one_is_never_switched() {
    let cluster = Cluster::given("squall-test-context");
    // The images are there then, as from a registry.
    cluster.xtask("deploy");
    let mut config: Value = cluster.json(&["config", "view", "--raw"]);
    config["contexts"][0]["name"] = json!("theirs");
    let nowhere = json!({"name": "elsewhere", "context": {"cluster": "none", "user": "none"}});
    config["contexts"].as_array_mut().unwrap().push(nowhere);
    config["current-context"] = json!("elsewhere");
    let path = env::temp_dir().join(format!("squall-test-context-{}.yaml", std::process::id()));
    let written = config.to_string();
    fs::write(&path, &written).unwrap();

    let mut demo = Command::new(env!("CARGO_BIN_EXE_xtask"));
    demo.args(["demo", "--context", "theirs", "--image", BUSYBOX]).env("KUBECONFIG", &path);
    // Were the context not used, it would have to make a cluster of this name.
    let done = demo.env("SQUALL_CLUSTER", "squall-must-not-be-made").output().unwrap();
    let (said, after) = (text(&done), fs::read_to_string(&path).unwrap());
    fs::remove_file(&path).unwrap();
    assert!(done.status.success(), "{said}");
    for line in [
        "3 targets hit, and over",
        "kubectl --context theirs get podchaos.squall.dev",
        "undeploy --context theirs",
    ] {
        assert!(said.contains(line), "the demo did not say {line:?}: {said}");
    }
    assert_eq!(after, written, "the user's kubeconfig was changed");
    cluster.kubectl(&["delete", "namespace", "squall-demo", "--timeout=60s"]);
}
