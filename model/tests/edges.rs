//! What may depend on what. A decision that needs a client, a runtime or a clock is no decision: `model` can't
//! even name one.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// From each package to those of ours that it may use.
const ALLOWED: [(&str, &[&str]); 10] = [
    ("squall-api", &[]),
    ("squall-model", &["squall-api"]),
    ("squall-webhook", &["squall-api", "squall-health", "squall-model"]),
    ("squall-controller", &["squall-api", "squall-health", "squall-model"]),
    ("squall-daemon", &["squall-api", "squall-daemon-ebpf", "squall-health"]),
    ("squall-daemon-ebpf", &[]),
    ("squall-fault", &[]),
    ("squall-health", &[]),
    ("squall-tests", &["squall-api", "squall-model"]),
    ("xtask", &["squall-api"]),
];

/// What `model` must not pull in, by crate name.
const FORBIDDEN: [&str; 12] = [
    "tokio",
    "tonic",
    "tonic-prost",
    "prost",
    "kube-client",
    "kube-runtime",
    "hyper",
    "rustls",
    "axum",
    "rustix",
    "rand",
    "tracing-subscriber",
];

fn cargo(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO"))
        .args(arguments)
        .arg("--offline")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "cargo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Every edge between packages of ours, dependencies of tests and builds included.
fn edges() -> BTreeMap<String, BTreeSet<String>> {
    let metadata: Value =
        serde_json::from_str(&cargo(&["metadata", "--no-deps", "--format-version", "1"])).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let name = |value: &Value| value["name"].as_str().unwrap().to_owned();
    packages
        .iter()
        .map(|package| {
            let dependencies = package["dependencies"].as_array().unwrap().iter();
            // With a path it is one of ours.
            let ours = dependencies.filter(|dependency| dependency["path"].is_string()).map(name);
            (name(package), ours.collect())
        })
        .collect()
}

/// The names of the packages that `package` is built with.
fn built_with(package: &str) -> BTreeSet<String> {
    let tree = cargo(&["tree", "--package", package, "--edges", "normal", "--prefix", "none"]);
    tree.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

#[test]
fn packages_use_only_those_that_the_design_allows() {
    let edges = edges();
    let known: BTreeMap<&str, &[&str]> = ALLOWED.into_iter().collect();
    for (package, uses) in &edges {
        let Some(allowed) = known.get(package.as_str()) else {
            panic!("{package} is new: say in this test what it may use, and in ARCHITECTURE.md why");
        };
        for used in uses {
            assert!(allowed.contains(&used.as_str()), "{package} must not use {used}; allowed: {allowed:?}");
        }
    }
    for package in known.keys() {
        assert!(edges.contains_key(*package), "{package} is gone: take it out of this test");
    }
}

#[test]
fn the_model_can_do_nothing_but_decide() {
    let there = built_with("squall-model");
    for forbidden in FORBIDDEN {
        assert!(
            !there.contains(forbidden),
            "squall-model pulls in {forbidden}: `cargo tree -i {forbidden}` says why"
        );
    }
    assert!(there.contains("squall-api"), "the tree was read: {there:?}");
}

#[test]
fn the_contracts_without_grpc_pull_in_no_client() {
    let there = built_with("squall-api");
    for forbidden in ["tokio", "tonic", "prost", "kube-client", "kube-runtime"] {
        assert!(!there.contains(forbidden), "squall-api pulls in {forbidden} without its feature grpc");
    }
}
