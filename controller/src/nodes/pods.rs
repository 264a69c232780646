//! Where the daemons are: their pods, watched while this replica leads.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, ResourceExt};
use kube_runtime::{
    WatchStreamExt,
    watcher::{Config, Event, watcher},
};
use squall_api::names;
use tokio::sync::watch;
use tracing::warn;

use super::{Endpoint, Endpoints};
use crate::lease::Leadership;

/// Publish the endpoints for as long as this replica leads, again and again.
pub async fn watch(
    client: Client,
    mut leadership: watch::Receiver<Leadership>,
    sender: watch::Sender<Endpoints>,
) {
    loop {
        if leadership.wait_for(|now| matches!(now, Leadership::Leader { .. })).await.is_err() {
            return;
        }
        tokio::select! {
            changed = leadership.changed() => if changed.is_err() { return },
            () = follow(&client, &sender) => {}
        }
        sender.send_replace(None);
    }
}

/// What matters of a daemon's pod.
#[derive(Debug, Clone)]
struct Daemon {
    node: String,
    endpoint: Endpoint,
    ending: bool,
    /// Seconds since 1970; of two on one node the younger one counts.
    born: i64,
}

async fn follow(client: &Client, sender: &watch::Sender<Endpoints>) {
    let api: Api<Pod> = Api::namespaced(client.clone(), names::NAMESPACE);
    let labels = format!("{}={}", names::COMPONENT_LABEL, names::DAEMON);
    let stream = watcher(api, Config::default().labels(&labels)).backoff(crate::retry::retry());
    tokio::pin!(stream);
    let mut known: HashMap<String, Daemon> = HashMap::new();
    let mut relisted: Option<HashMap<String, Daemon>> = None;
    while let Some(event) = stream.next().await {
        match event {
            Ok(Event::Init) => relisted = Some(HashMap::new()),
            Ok(Event::InitApply(pod)) => {
                if let (Some(relisted), Some(daemon)) = (&mut relisted, daemon(&pod)) {
                    relisted.insert(pod.name_any(), daemon);
                }
                continue;
            }
            Ok(Event::InitDone) => known = relisted.take().unwrap_or_default(),
            Ok(Event::Apply(pod)) => {
                match daemon(&pod) {
                    Some(daemon) => known.insert(pod.name_any(), daemon),
                    None => known.remove(&pod.name_any()),
                };
            }
            Ok(Event::Delete(pod)) => {
                known.remove(&pod.name_any());
            }
            Err(error) => {
                warn!(%error, "can't watch the daemons' pods; trying again");
                continue;
            }
        }
        if relisted.is_none() {
            let now = Some(endpoints(known.values()));
            sender.send_if_modified(|old| std::mem::replace(old, now.clone()) != now);
        }
    }
}

fn daemon(pod: &Pod) -> Option<Daemon> {
    let node = pod.spec.as_ref()?.node_name.clone()?;
    let status = pod.status.as_ref()?;
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return None;
    }
    let ip: IpAddr = status.pod_ip.as_deref()?.parse().ok()?;
    let ready = status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
    let endpoint = Endpoint { pod_uid: pod.uid()?, address: SocketAddr::new(ip, names::DAEMON_PORT), ready };
    let born = pod.creation_timestamp().map_or(0, |time| time.0.as_second());
    Some(Daemon { node, endpoint, ending: pod.metadata.deletion_timestamp.is_some(), born })
}

fn endpoints<'a>(daemons: impl Iterator<Item = &'a Daemon>) -> BTreeMap<String, Endpoint> {
    let mut best: BTreeMap<&str, &Daemon> = BTreeMap::new();
    let rank = |daemon: &Daemon| (!daemon.ending, daemon.born, daemon.endpoint.pod_uid.clone());
    for daemon in daemons {
        let place = best.entry(&daemon.node).or_insert(daemon);
        if rank(daemon) > rank(place) {
            *place = daemon;
        }
    }
    best.into_iter().map(|(node, daemon)| (node.to_owned(), daemon.endpoint.clone())).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, node: &str, ip: &str, born: &str, phase: &str, ending: bool) -> Pod {
        let mut pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": name, "uid": format!("uid-{name}"), "creationTimestamp": born},
            "spec": {"containers": [], "nodeName": node},
            "status": {"podIP": ip, "phase": phase},
        }))
        .unwrap();
        if ending {
            pod.metadata.deletion_timestamp = pod.metadata.creation_timestamp.clone();
        }
        pod
    }

    fn chosen(pods: &[Pod]) -> BTreeMap<String, String> {
        let daemons: Vec<Daemon> = pods.iter().filter_map(daemon).collect();
        endpoints(daemons.iter()).into_iter().map(|(node, e)| (node, e.address.to_string())).collect()
    }

    #[test]
    fn the_youngest_that_lives_counts() {
        let old = pod("a", "n", "10.0.0.1", "2026-11-22T10:00:00Z", "Running", false);
        let new = pod("b", "n", "10.0.0.2", "2026-11-22T11:00:00Z", "Pending", false);
        let ending = pod("c", "n", "10.0.0.3", "2026-11-22T12:00:00Z", "Running", true);
        let ended = pod("d", "n", "10.0.0.4", "2026-11-22T13:00:00Z", "Failed", false);
        let homeless = pod("e", "m", "", "2026-11-22T13:00:00Z", "Pending", false);
        let all = [old, ending.clone(), new, ended, homeless];
        assert_eq!(chosen(&all), BTreeMap::from([("n".to_owned(), "10.0.0.2:9445".to_owned())]));
        assert_eq!(chosen(&[ending])["n"], "10.0.0.3:9445", "better than none: it may still revert");
        let six = pod("f", "n", "fd00::1", "2026-11-22T10:00:00Z", "Running", false);
        assert_eq!(chosen(&[six])["n"], "[fd00::1]:9445");
    }
}
