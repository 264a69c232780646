//! What a container on this machine does with the CPU.

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;
use squall_api::podchaos::{Action, Mode};

use crate::builders::{container, pod_of};
use crate::cluster::containers_processes;
use crate::experiment::experiment;
use crate::namespace::Ns;
use crate::pods::PodExt as _;
use crate::wait::{holds_for, until_within};

/// CPU time that a process has used, in ticks.
fn of_process(pid: i32) -> Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit_once(") ").map(|(_, rest)| rest).unwrap_or_default();
    Ok(fields.split(' ').skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum())
}

/// CPU time that the processes of a container have used, in ticks. One that has just ended counts nothing.
pub fn ticks(container_id: &str) -> Result<u64> {
    Ok(containers_processes(container_id)?.into_iter().map(|pid| of_process(pid).unwrap_or_default()).sum())
}

/// CPU time that the container's first process has used, in ticks.
pub fn init_ticks(container_id: &str) -> Result<u64> {
    let init = *containers_processes(container_id)?.first().context("it has no process")?;
    of_process(init)
}

/// A pod whose one container computes all the time, Ready; the ID of the container.
pub async fn busy(ns: &Ns, name: &str) -> Result<String> {
    let pod = pod_of(name, json!({ "containers": [container("app", "while :; do :; done")] }));
    ns.ready_pod(&pod)
        .await?
        .container("app")
        .and_then(|one| one.container_id)
        .context("it has no container ID")
}

/// A [`busy`] pod that an experiment of its own, `freeze`, has frozen; the ID of its container.
pub async fn frozen(ns: &Ns, name: &str) -> Result<String> {
    let id = busy(ns, name).await?;
    ns.create(&experiment("freeze", Action::ContainerFreeze, Mode::All, |spec| {
        spec.selector.label_selectors.insert("app".to_owned(), name.to_owned());
    }))
    .await?;
    ns.condition("freeze", "Injected").await?;
    stands_still(&id).await?;
    Ok(id)
}

/// Waits until the container's first process uses the CPU, for so long at most.
pub async fn runs_within(limit: Duration, container_id: &str) -> Result<()> {
    let before = init_ticks(container_id)?;
    until_within(limit, "it runs", async || {
        let used = init_ticks(container_id)? - before;
        Ok(if used > 5 { Ok(()) } else { Err(format!("{used} ticks")) })
    })
    .await
}

/// For a second the container's first process, which would use a whole CPU, uses none.
pub async fn stands_still(container_id: &str) -> Result<()> {
    let before = init_ticks(container_id)?;
    holds_for(Duration::from_secs(1), "it stands still", async || {
        let used = init_ticks(container_id)? - before;
        Ok(if used <= 1 { Ok(()) } else { Err(format!("{used} ticks")) })
    })
    .await
}
