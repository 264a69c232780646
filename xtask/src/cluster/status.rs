//! `cluster status`: what runs, and whether the cluster can be used.

use std::{
    fs,
    time::{Duration, SystemTime},
};

use anyhow::{Result, bail};

use super::{Cluster, components, config::NODE, node};
use crate::sh;

/// Prints each component, the node, and where things are; an error when the cluster can't be used.
pub fn print(cluster: &Cluster) -> Result<()> {
    if !cluster.state_dir().exists() {
        bail!("there is no cluster {}; `cargo xtask cluster up` makes it", cluster.name());
    }
    let mut dead = 0;
    let mut rows = vec![("cluster", cluster.name().to_owned())];
    for component in std::iter::once(node::HOLDER).chain(components::ALL) {
        let state = match cluster.pid(component) {
            Some(pid) => format!("alive, process {pid}"),
            None => {
                dead += 1;
                format!("dead, its log is {}", cluster.log_path(component).display())
            }
        };
        rows.push((component, state));
    }
    let ready = node_is_ready(cluster);
    rows.push((NODE, if ready { "Ready" } else { "not Ready" }.to_owned()));
    rows.push(("kubeconfig", cluster.kubeconfig().display().to_string()));
    rows.push(("kubectl", cluster.kubectl().display().to_string()));
    if let Some(pid) = cluster.namespace_pid() {
        rows.push(("shell on the node", format!("nsenter -t {pid} -m -n")));
    }
    let text: String = rows.iter().map(|(what, is)| format!("{what:<24} {is}\n")).collect();
    print!("{text}");
    if dead > 0 || !ready {
        bail!("the cluster {} is not up; `cargo xtask cluster up` repairs it", cluster.name());
    }
    Ok(())
}

/// Whether all components live and the node is Ready.
pub fn is_up(cluster: &Cluster) -> bool {
    let mut all = std::iter::once(node::HOLDER).chain(components::ALL);
    all.all(|component| cluster.is_alive(component)) && node_is_ready(cluster)
}

/// Whether the API server says that the node is Ready, and has heard so from the kubelet that runs now: after a kubelet's
/// death what it said last stands for a while.
pub fn node_is_ready(cluster: &Cluster) -> bool {
    let path =
        r#"jsonpath={range .status.conditions[?(@.type=="Ready")]}{.status} {.lastHeartbeatTime}{end}"#;
    let mut command = cluster.kubectl_command(&["get", "node", NODE, "--request-timeout=5s", "-o", path]);
    let started = fs::metadata(cluster.pid_path("kubelet")).and_then(|file| file.modified());
    match (sh::output(&mut command), started) {
        (Ok(said), Ok(started)) => is_ready_since(&said, started),
        (Err(_), _) | (_, Err(_)) => false,
    }
}

/// Heartbeats carry whole seconds.
fn is_ready_since(said: &str, started: SystemTime) -> bool {
    let Some(heard) = said.strip_prefix("True ").and_then(|time| time.parse::<jiff::Timestamp>().ok()) else {
        return false;
    };
    SystemTime::from(heard) + Duration::from_secs(1) > started
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_present_kubelet_said_counts() {
        let started = SystemTime::UNIX_EPOCH + Duration::from_millis(10_500);
        assert!(is_ready_since("True 1970-01-01T00:00:10Z", started));
        assert!(is_ready_since("True 1970-01-01T00:00:12Z", started));
        assert!(!is_ready_since("True 1970-01-01T00:00:09Z", started));
        assert!(!is_ready_since("False 1970-01-01T00:00:12Z", started));
        assert!(!is_ready_since("", started));
    }
}
