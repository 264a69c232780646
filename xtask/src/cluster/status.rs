//! `cluster status`: what runs, and whether the cluster can be used.

use anyhow::{Result, bail};

use super::{Cluster, components, config::NODE, node};
use crate::sh;

/// Prints each component, the node, and where things are; an error when the cluster can't be used.
pub fn print(cluster: &Cluster) -> Result<()> {
    println!("{:<24} {}", "cluster", cluster.name());
    if !cluster.state_dir().exists() {
        bail!("there is no cluster {}; `cargo xtask cluster up` makes it", cluster.name());
    }
    let mut dead = Vec::new();
    for component in std::iter::once(node::HOLDER).chain(components::ALL) {
        match cluster.pid(component) {
            Some(pid) => println!("{component:<24} alive, process {pid}"),
            None => {
                println!("{component:<24} dead, its log is {}", cluster.log_path(component).display());
                dead.push(component);
            }
        }
    }
    let ready = node_is_ready(cluster);
    println!("{NODE:<24} {}", if ready { "Ready" } else { "not Ready" });
    println!("{:<24} {}", "kubeconfig", cluster.kubeconfig().display());
    println!("{:<24} {}", "kubectl", cluster.kubectl().display());
    if let Some(pid) = cluster.namespace_pid() {
        println!("{:<24} nsenter -t {pid} -m -n", "shell on the node");
    }
    if !dead.is_empty() || !ready {
        bail!("the cluster {} is not up; `cargo xtask cluster up` repairs it", cluster.name());
    }
    Ok(())
}

/// Whether all components live and the node is Ready.
pub fn is_up(cluster: &Cluster) -> bool {
    let mut all = std::iter::once(node::HOLDER).chain(components::ALL);
    all.all(|component| cluster.is_alive(component)) && node_is_ready(cluster)
}

/// Whether the API server says that the node is Ready.
pub fn node_is_ready(cluster: &Cluster) -> bool {
    let path = r#"jsonpath={.status.conditions[?(@.type=="Ready")].status}"#;
    let mut command = cluster.kubectl_command(&["get", "node", NODE, "--request-timeout=5s", "-o", path]);
    sh::output(&mut command).is_ok_and(|status| status == "True")
}
