//! The figures of stress, on a real cluster: from the response to the create call until the container's cgroup has used
//! more than half a core for 20 ms, from the response to the delete call until no stressor is left, and the daemon's
//! memory with fifty stressed containers.
//!
//! Looked at from outside, by the cgroup's own counters. It prints median, p90 and n of each, and exits with 1 when one
//! is above its limit times `--slack`. Run by `cargo xtask bench stress`.

use std::{
    collections::VecDeque,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, PostParams};
use serde_json::json;
use squall_api::{names, stresschaos::StressChaos};
use squall_tests::figures::{Arguments, quantile, resident};
use squall_tests::{
    Ns, OptIn, containers_processes, deployment, from_json, pods_of_component, until, until_gone, with_ns,
};

/// What is looked at for CPU use.
const WINDOW: Duration = Duration::from_millis(20);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(1);
/// The longest that anything may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Containers that are stressed at the same time for the daemon's memory.
const MANY: usize = 50;

fn main() -> Result<()> {
    let Arguments { slack, rounds, only: _ } = Arguments::read(false)?;
    let mut missed = 0;
    let mut check = |value: f64, limit: f64| {
        let above = value > limit * slack;
        missed += u32::from(above);
        if above { "  MISSED" } else { "" }
    };
    with_ns("bench-stress", OptIn::Yes, async |ns| {
        ns.create(&deployment("web", 1, false)).await?;
        let pod = ns.ready_pods("web", 1).await?.remove(0);
        let site = Site::of(&pod)?;
        // What is done for the first time isn't measured.
        round(ns, &site).await?;
        let (mut there, mut gone) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            let (injected, ended) = round(ns, &site).await?;
            there.push(injected);
            gone.push(ended);
        }
        for (what, times, limit) in
            [("stress: more than half a core", there, 45.0), ("stress: gone after deletion", gone, 40.0)]
        {
            let (median, p90) = (quantile(&times, 50), quantile(&times, 90));
            let verdict = check(median, limit);
            println!("{what:<44} {median:>6.1} ms {p90:>6.1} ms {limit:>6.0} ms {:>4}{verdict}", times.len());
        }
        Ok(())
    });
    with_ns("bench-stress-many", OptIn::Yes, async |ns| {
        ns.create(&deployment("web", MANY as i32, false)).await?;
        let pods = ns.ready_pods("web", MANY).await?;
        let name = create(ns, "all", 1).await?.0;
        for pod in &pods {
            let site = Site::of(pod)?;
            until("every container is stressed", async || {
                Ok(if site.stressors() > 0 { Ok(()) } else { Err("not yet") })
            })
            .await?;
        }
        let used = daemon_resident().await?;
        let verdict = check(used, 30.0);
        println!(
            "{:<44} {used:>6.1} MiB {:>9} {:>6} MiB {MANY:>3}{verdict}",
            "memory, 50 stressed containers: daemon", "", 30
        );
        delete(ns, &name).await?;
        Ok(())
    });
    ensure!(missed == 0, "{missed} figures are above {slack} times their limit");
    Ok(())
}

/// Where one container is on this machine.
struct Site {
    cpu: PathBuf,
    procs: PathBuf,
}

impl Site {
    fn of(pod: &Pod) -> Result<Self> {
        let status = pod.status.clone().unwrap_or_default();
        let container = status.container_statuses.unwrap_or_default().into_iter().next();
        let id =
            container.and_then(|container| container.container_id).context("a container without an ID")?;
        let init = *containers_processes(&id)?.first().context("a container without a process")?;
        let text = fs::read_to_string(format!("/proc/{init}/cgroup"))?;
        let root = Path::new("/sys/fs/cgroup");
        let v1 = text.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            parts.next()?.split(',').any(|name| name == "cpuacct").then(|| parts.next())?
        });
        let (dir, file) = match v1 {
            Some(path) => (root.join("cpuacct").join(path.trim_start_matches('/')), "cpuacct.usage"),
            None => {
                let path = text.lines().find_map(|line| line.strip_prefix("0::/")).context("no cgroup")?;
                (root.join(path), "cpu.stat")
            }
        };
        Ok(Self { cpu: dir.join(file), procs: dir.join("cgroup.procs") })
    }

    fn cpu(&self) -> Result<Duration> {
        let text = fs::read_to_string(&self.cpu)?;
        let nanos = match text.lines().find_map(|line| line.strip_prefix("usage_usec ")) {
            Some(micros) => micros.parse::<u64>()? * 1000,
            None => text.trim().parse()?,
        };
        Ok(Duration::from_nanos(nanos))
    }

    fn stressors(&self) -> usize {
        let pids = fs::read_to_string(&self.procs).unwrap_or_default();
        let ours = |pid: &&str| {
            fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(b"squall-stressor\0"))
        };
        pids.lines().filter(ours).count()
    }

    async fn half_a_core_since(&self, since: Instant) -> Result<Duration> {
        let mut seen = VecDeque::from([(Instant::now(), self.cpu()?)]);
        while since.elapsed() < PATIENCE {
            tokio::time::sleep(PAUSE).await;
            let (at, used) = (Instant::now(), self.cpu()?);
            seen.push_back((at, used));
            while seen.len() > 2 && at - seen[1].0 >= WINDOW {
                seen.pop_front();
            }
            let (first, before) = seen[0];
            if at - first >= WINDOW && (used - before) * 2 > at - first {
                return Ok(at - since);
            }
        }
        bail!("the container has not used half a core within {PATIENCE:?}")
    }

    async fn no_stressor_since(&self, since: Instant) -> Result<Duration> {
        while since.elapsed() < PATIENCE {
            if self.stressors() == 0 {
                return Ok(since.elapsed());
            }
            tokio::time::sleep(PAUSE).await;
        }
        bail!("a stressor was left after {PATIENCE:?}")
    }
}

async fn round(ns: &Ns, site: &Site) -> Result<(Duration, Duration)> {
    let (name, made) = create(ns, "one", 100).await?;
    let there = site.half_a_core_since(made).await?;
    // The figure of the end is not to wait for the report of the beginning.
    until("the experiment is injected", async || {
        let chaos = ns.api::<StressChaos>().get(&name).await?;
        let told = chaos.status.map(|status| serde_json::to_value(status.phase)).transpose()?;
        Ok(if told == Some(json!("Injected")) { Ok(()) } else { Err(format!("{told:?}")) })
    })
    .await?;
    ns.api::<StressChaos>().delete(&name, &DeleteParams::default()).await?;
    let gone = site.no_stressor_since(Instant::now()).await?;
    until_gone(&ns.api::<StressChaos>(), &name).await?;
    Ok((there, gone))
}

async fn create(ns: &Ns, mode: &str, load: u32) -> Result<(String, Instant)> {
    let chaos: StressChaos = from_json(json!({
        "apiVersion": "squall.dev/v1alpha1",
        "kind": "StressChaos",
        "metadata": { "generateName": "bench-" },
        "spec": { "mode": mode, "stressors": { "cpu": { "workers": 1, "load": load } } },
    }));
    let made = ns.api::<StressChaos>().create(&PostParams::default(), &chaos).await?;
    Ok((made.metadata.name.unwrap_or_default(), Instant::now()))
}

async fn delete(ns: &Ns, name: &str) -> Result<()> {
    ns.api::<StressChaos>().delete(name, &DeleteParams::default()).await?;
    until_gone(&ns.api::<StressChaos>(), name).await
}

async fn daemon_resident() -> Result<f64> {
    let client = squall_tests::client().await?;
    let pod = pods_of_component(&client, names::DAEMON).await?.into_iter().next().context("no daemon")?;
    let status = pod.status.unwrap_or_default().container_statuses.unwrap_or_default();
    let id = status.into_iter().find_map(|container| container.container_id).context("no container ID")?;
    let init = *containers_processes(&id)?.first().context("no process of the daemon")?;
    resident(init)
}
