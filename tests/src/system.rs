//! Squall itself, for the tests that take a part of it away: scaled, killed, and put back.
//!
//! Only one test at a time does so, see [`alone`](crate::alone), and none in the same program as tests that need it whole.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use squall_api::names;
use squall_api::podchaos::{Action, Mode, PodChaos};

use crate::cluster::{containers_processes, variable};
use crate::experiment::experiment;
use crate::pods::PodExt as _;
use crate::wait::until;

/// The pods of `component` that are not being deleted.
pub async fn pods_of_component(client: &Client, component: &str) -> Result<Vec<Pod>> {
    let api: Api<Pod> = Api::namespaced(client.clone(), names::NAMESPACE);
    let selector = ListParams::default().labels(&format!("{}={component}", names::COMPONENT_LABEL));
    let list = api.list(&selector).await.with_context(|| format!("can't list the pods of {component}"))?;
    Ok(list.items.into_iter().filter(|pod| !pod.is_terminating()).collect())
}

/// Scales a Deployment of Squall and waits until as many pods are Ready, and those that go are gone.
pub async fn scale(client: &Client, deployment: &str, replicas: i32) -> Result<()> {
    let api: Api<Deployment> = Api::namespaced(client.clone(), names::NAMESPACE);
    let patch = json!({ "spec": { "replicas": replicas } });
    api.patch_scale(deployment, &PatchParams::default(), &Patch::Merge(&patch)).await?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), names::NAMESPACE);
    let selector = ListParams::default().labels(&format!("{}={deployment}", names::COMPONENT_LABEL));
    until(&format!("{deployment} has {replicas} pods"), async || {
        let all = pods.list(&selector).await?.items;
        let ready = all.iter().filter(|pod| pod.is_ready()).count();
        let fits = all.len() == ready && i32::try_from(ready).ok() == Some(replicas);
        Ok(if fits { Ok(()) } else { Err(format!("{} pods, {ready} Ready", all.len())) })
    })
    .await
}

/// Waits until all of Squall is there and one replica leads.
pub async fn settled(client: &Client) -> Result<()> {
    scale(client, names::CONTROLLER, 2).await?;
    scale(client, names::WEBHOOK, 2).await?;
    let api: Api<DaemonSet> = Api::namespaced(client.clone(), names::NAMESPACE);
    until("the daemon is Ready on every node", async || {
        let status = api.get(names::DAEMON).await?.status.unwrap_or_default();
        let ready = status.desired_number_scheduled > 0
            && status.number_ready == status.desired_number_scheduled
            && status.number_misscheduled == 0;
        Ok(if ready { Ok(()) } else { Err(format!("{status:?}")) })
    })
    .await?;
    reachable(client).await?;
    until("a replica of the controller leads", async || {
        let leads = leader(client).await?;
        let pods = pods_of_component(client, names::CONTROLLER).await?;
        Ok(match leads {
            Some(holder) if pods.iter().any(|pod| pod.name() == holder) => Ok(()),
            other => Err(format!("held by {other:?}")),
        })
    })
    .await
}

/// Waits until the API server reaches the webhook, which is a moment after its pods are Ready. Which of them answers is
/// chance, so it is asked some times.
async fn reachable(client: &Client) -> Result<()> {
    let api: Api<PodChaos> = Api::namespaced(client.clone(), names::NAMESPACE);
    let chaos =
        experiment("is-the-webhook-there", Action::PodKill, Mode::One, |spec| spec.dry_run = Some(true));
    let params = PostParams { dry_run: true, ..PostParams::default() };
    let mut answered = 0;
    until("the API server reaches the webhook", async || {
        // In a protected namespace: being refused by the webhook is an answer too.
        let error = match api.create(&params, &chaos).await {
            Ok(_) => bail!("an experiment in {} was accepted", names::NAMESPACE),
            Err(error) => error.to_string(),
        };
        answered = if error.contains("failed calling webhook") { 0 } else { answered + 1 };
        Ok(if answered >= 6 { Ok(()) } else { Err(error) })
    })
    .await
}

/// The name of the controller's pod that leads.
pub async fn leader(client: &Client) -> Result<Option<String>> {
    let api: Api<Lease> = Api::namespaced(client.clone(), names::NAMESPACE);
    let lease = api.get_opt(names::LEASE).await?;
    let holder = lease.and_then(|lease| lease.spec).and_then(|spec| spec.holder_identity);
    // The identity begins with the pod's name.
    Ok(holder.map(|holder| holder.split(['_', '/']).next().unwrap_or_default().to_owned()))
}

/// Has the next leader not wait for the old one's lease to run out.
pub async fn delete_lease(client: &Client) -> Result<()> {
    let api: Api<Lease> = Api::namespaced(client.clone(), names::NAMESPACE);
    match api.delete(names::LEASE, &DeleteParams::default()).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// SIGKILL for every process of a pod of Squall, on this machine.
pub fn sigkill(pod: &Pod, container: &str) -> Result<()> {
    let status = pod.container(container).with_context(|| format!("{} has no {container}", pod.name()))?;
    let id = status.container_id.context("the container does not run")?;
    let processes = containers_processes(&id)?;
    ensure!(!processes.is_empty(), "no process of {id} was found");
    for process in processes {
        if let Some(pid) = Pid::from_raw(process) {
            // It may be gone already, with its parent.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
    Ok(())
}

/// Replaces a pod of Squall at once: the kubelet would wait longer each time before it restarts a container.
pub async fn restart_now(client: &Client, pod: &str) -> Result<()> {
    let api: Api<Pod> = Api::namespaced(client.clone(), names::NAMESPACE);
    match api.delete(pod, &DeleteParams::default().grace_period(0)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Merges `patch` into the daemon's DaemonSet.
pub async fn patch_daemon_set(client: &Client, patch: Value) -> Result<()> {
    let api: Api<DaemonSet> = Api::namespaced(client.clone(), names::NAMESPACE);
    api.patch(names::DAEMON, &PatchParams::default(), &Patch::Merge(&patch)).await?;
    Ok(())
}

/// Has the API server of the local cluster answer nobody for `seconds`.
///
/// It is woken by a process of its own, so that it is whatever becomes of the test.
pub fn silence_the_api_server(seconds: u32) -> Result<()> {
    let state = variable("SQUALL_STATE")?;
    let text = fs::read_to_string(Path::new(&state).join("pid/kube-apiserver"))
        .with_context(|| format!("can't tell which process the API server is, from {state}"))?;
    let process: i32 =
        text.split_whitespace().next().and_then(|pid| pid.parse().ok()).context("no process ID")?;
    let mut waker = Command::new("sh")
        .args(["-c", &format!("kill -STOP {process}; sleep {seconds}; kill -CONT {process}")])
        .stdin(Stdio::null())
        .spawn()
        .context("can't start sh")?;
    std::thread::spawn(move || waker.wait());
    Ok(())
}
