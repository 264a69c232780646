//! What Squall stands on is gone for good: its CA, a node.
//!
//! These take turns, and no other test program runs beside this one.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, Secret};
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::json;
use squall_api::names;
use squall_api::podchaos::{Action, Mode, Phase, PodChaos};
use squall_tests::{
    BUSYBOX, ExperimentExt as _, Ns, PodExt as _, disrupt, experiment, from_json, pod, restart_now, until,
    until_within,
};

/// In which everybody has followed a new CA.
const FOLLOWED: Duration = Duration::from_secs(120);

#[test]
fn a_ca_that_is_lost_is_replaced_and_everybody_follows_it() {
    disrupt("gone-ca", async |ns| {
        ns.ready_pod(&pod("web")).await?;
        let secrets: Api<Secret> = Api::namespaced(ns.client.clone(), names::NAMESPACE);
        let lost = published(ns).await?;
        let began = Instant::now();
        secrets.delete(names::CA_SECRET, &DeleteParams::default()).await?;
        until("another CA is what the API server asks of the webhook", async || {
            let now = published(ns).await?;
            let hooks: Api<MutatingWebhookConfiguration> = Api::all(ns.client.clone());
            let hooks = hooks.get(names::MUTATING_WEBHOOKS).await?.webhooks.unwrap_or_default();
            let mut bundles = hooks.iter().map(|hook| hook.client_config.ca_bundle.as_ref());
            let asked = bundles.all(|bundle| bundle.is_some_and(|bundle| bundle.0 == now.as_bytes()));
            Ok(if now != lost && asked { Ok(()) } else { Err("it is the old one, or not everywhere") })
        })
        .await?;
        // The webhook has to show a certificate of the new CA to be asked at all, and so has the daemon.
        let mut tries = 0;
        until_within(FOLLOWED.saturating_sub(began.elapsed()), "a container is killed", async || {
            tries += 1;
            // A kubelet refreshes what a pod has mounted once a minute, and when the pod changes.
            touch(ns, tries).await?;
            let name = format!("kill-{tries}");
            let kill = experiment(&name, Action::ContainerKill, Mode::One, |spec| {
                spec.duration = Some("10s".into());
            });
            if let Err(error) = ns.api::<PodChaos>().create(&PostParams::default(), &kill).await {
                return Ok(Err(error.to_string()));
            }
            let chaos = ns.completed(&name).await?;
            Ok(if chaos.phase() == Phase::Completed { Ok(()) } else { Err(chaos.shown()) })
        })
        .await?;
        println!("followed after {:?}, at try {tries}", began.elapsed());
        assert!(ns.pod("web").await?.restarts("app") <= 1, "it was hit more than once");
        ns.pod_until("web", "it is Ready again", |pod| pod.is_ready() && pod.restarts("app") == 1).await?;
        Ok(())
    });
}

/// Changes every pod of Squall's, in a way that matters to nobody.
async fn touch(ns: &Ns, times: u32) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(ns.client.clone(), names::NAMESPACE);
    let patch = json!({ "metadata": { "annotations": { "example.com/touched": times.to_string() } } });
    for pod in pods.list(&ListParams::default()).await?.items {
        pods.patch(&pod.name(), &PatchParams::default(), &Patch::Merge(&patch)).await?;
    }
    Ok(())
}

/// The CA's certificates, as they are published.
async fn published(ns: &Ns) -> Result<String> {
    let maps: Api<ConfigMap> = Api::namespaced(ns.client.clone(), names::NAMESPACE);
    let data = maps.get(names::CA_BUNDLE).await?.data.unwrap_or_default();
    data.get(names::CA_BUNDLE_KEY).cloned().context("the bundle has no certificates")
}

#[test]
fn a_node_that_is_gone_holds_up_no_deletion() {
    disrupt("gone-node", async |ns| {
        let tried = failed_where_the_node_goes(ns).await;
        let nodes: Api<Node> = Api::all(ns.client.clone());
        if nodes.get_opt(&ns.name).await?.is_some() {
            nodes.delete(&ns.name, &DeleteParams::default()).await?;
        }
        // Nobody ends what is bound to it: the daemon's pod, and the test's own.
        let there = ListParams::default().fields(&format!("spec.nodeName={}", ns.name));
        let daemons: Api<Pod> = Api::namespaced(ns.client.clone(), names::NAMESPACE);
        for daemon in daemons.list(&there).await?.items {
            restart_now(&ns.client, &daemon.name()).await?;
        }
        ns.api::<Pod>().delete_collection(&DeleteParams::default().grace_period(0), &there).await?;
        tried
    });
}

async fn failed_where_the_node_goes(ns: &Ns) -> Result<()> {
    let nodes: Api<Node> = Api::all(ns.client.clone());
    let node = json!({ "metadata": { "name": ns.name }, "spec": { "unschedulable": true } });
    nodes.create(&PostParams::default(), &from_json(node)).await?;
    let mut web = pod("web");
    web.spec.get_or_insert_default().node_name = Some(ns.name.clone());
    ns.create(&web).await?;
    // As its kubelet left it: it was Ready before, so that recovery would like to see it Ready again.
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let status = json!({ "status": {
        "phase": "Running",
        "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": now }],
        "containerStatuses": [{
            "name": "app", "image": BUSYBOX, "imageID": BUSYBOX, "containerID": "containerd://0", "ready": true,
            "restartCount": 0, "started": true, "state": { "running": { "startedAt": now } },
        }],
    } });
    ns.api::<Pod>().patch_status("web", &PatchParams::default(), &Patch::Strategic(status)).await?;
    ns.create(&experiment("down", Action::PodFailure, Mode::All, |_| ())).await?;
    ns.pod_until("web", "it is failed", |pod| pod.is_failed()).await?;
    nodes.delete(&ns.name, &DeleteParams::default()).await?;
    ns.end_chaos("down").await?;
    // Whether the pod itself is still there is the garbage collector's affair.
    let left = ns.api::<Pod>().get_opt("web").await?;
    assert!(left.is_none_or(|pod| pod.substituted().is_empty() && pod.holders().is_empty()));
    Ok(())
}
