//! The figures, on a real cluster: from the response to the create call until the effect is seen from outside.
//!
//! What is measured includes the bench's own watch, so a figure is an upper bound. It prints median, p90 and n of
//! each, and exits with 1 when one is above its limit times `--slack`. Run by `cargo xtask bench`.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use squall_api::podchaos::{Action, Mode, Phase, PodChaos};
use squall_tests::figures::{Arguments, nth, quantile, resident, watch};
use squall_tests::{
    ExperimentExt as _, Ns, OptIn, PodExt as _, containers_processes, deployment, experiment,
    pods_of_component, runtime, with_ns,
};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

/// Set, each container-kill also says where its time went.
const EXPLAIN: &str = "SQUALL_BENCH_EXPLAIN";
/// Pods of the large cases.
const MANY: usize = 30;
/// The longest that anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> Result<()> {
    let Arguments { slack, rounds, only } = Arguments::read(true)?;
    let wanted = |fault: &str| fault.starts_with(&only);
    let mut table = Table { slack, missed: 0 };
    println!(
        "{:<44} {:>9} {:>9} {:>9} {:>4}",
        "from the response to the create call", "median", "p90", "limit", "n"
    );
    table.memory()?;
    with_ns("bench-few", OptIn::Yes, async |ns| {
        ns.create(&deployment("web", 3, false)).await?;
        ns.ready_pods("web", 3).await?;
        // What is done for the first time, such as connecting, isn't measured.
        container_kill(ns, Mode::One, 3).await?;
        let mut times = Vec::new();
        if wanted("pod-kill") {
            for _ in 0..rounds {
                times.push(pod_kill(ns, Mode::One, 3).await?);
            }
            table.row("pod-kill: deletion mark", &times, 20.0, None);
            times.clear();
        }
        if wanted("pod-failure") {
            let mut back = Vec::new();
            for _ in 0..rounds {
                let (there, restored) = pod_failure(ns, Mode::One, 3).await?;
                times.push(there);
                back.push(restored);
            }
            table.row("pod-failure: images substituted", &times, 24.0, None);
            table.row("pod-failure: image restored after deletion", &back, f64::INFINITY, None);
            times.clear();
        }
        if wanted("container-kill") {
            for _ in 0..rounds {
                times.push(container_kill(ns, Mode::One, 3).await?);
            }
            table.row("container-kill: process gone", &times, 20.0, Some(40.0));
        }
        Ok(())
    });
    with_ns("bench-many", OptIn::Yes, async |ns| {
        ns.create(&deployment("web", 30, false)).await?;
        ns.ready_pods("web", MANY).await?;
        let few = (rounds / 3).max(2);
        if wanted("pod-failure") {
            let (mut there, mut back) = (Vec::new(), Vec::new());
            for _ in 0..few {
                let (injected, restored) = pod_failure(ns, Mode::All, MANY).await?;
                there.push(injected);
                back.push(restored);
            }
            table.row("pod-failure: 30 pods, last one substituted", &there, 300.0, None);
            table.row("pod-failure: 30 pods, last one restored", &back, 300.0, None);
        }
        let mut times = Vec::new();
        if wanted("container-kill") {
            for _ in 0..few {
                times.push(container_kill(ns, Mode::All, MANY).await?);
            }
            table.row("container-kill: 30 containers, last one gone", &times, 250.0, None);
            times.clear();
        }
        if wanted("pod-kill") {
            for _ in 0..few {
                times.push(pod_kill(ns, Mode::All, MANY).await?);
            }
            table.row("pod-kill: 30 pods, last deletion mark", &times, 300.0, None);
        }
        Ok(())
    });
    ensure!(table.missed == 0, "{} figures are above {slack} times their limit", table.missed);
    Ok(())
}

struct Table {
    slack: f64,
    missed: usize,
}

impl Table {
    fn row(&mut self, what: &str, times: &[Duration], limit: f64, p90_limit: Option<f64>) {
        let (median, p90) = (quantile(times, 50), quantile(times, 90));
        let missed = median > limit * self.slack || p90_limit.is_some_and(|limit| p90 > limit * self.slack);
        self.missed += usize::from(missed);
        let limit = if limit.is_finite() { format!("{limit:.0} ms") } else { "-".to_owned() };
        println!(
            "{what:<44} {median:>6.1} ms {p90:>6.1} ms {limit:>9} {:>4}{}",
            times.len(),
            if missed { "  MISSED" } else { "" }
        );
    }

    /// Resident memory of each component, idle.
    fn memory(&mut self) -> Result<()> {
        let rows = runtime().block_on(async {
            let client = squall_tests::client().await?;
            let mut rows = Vec::new();
            for component in ["squall-webhook", "squall-controller", "squall-daemon"] {
                for pod in pods_of_component(&client, component).await? {
                    let status = pod.status.unwrap_or_default();
                    for container in status.container_statuses.unwrap_or_default() {
                        let id = container.container_id.context("a component has no container ID")?;
                        for process in containers_processes(&id)? {
                            rows.push((component, resident(process)?));
                        }
                    }
                }
            }
            anyhow::Ok(rows)
        })?;
        for (component, mebibytes) in rows {
            let missed = mebibytes > 20.0 * self.slack;
            self.missed += usize::from(missed);
            println!(
                "{:<44} {mebibytes:>5.1} MiB {:>9} {:>9} {:>4}{}",
                format!("memory, idle: {component}"),
                "",
                "20 MiB",
                1,
                if missed { "  MISSED" } else { "" }
            );
        }
        Ok(())
    }
}

async fn create(ns: &Ns, chaos: &PodChaos) -> Result<(String, Instant)> {
    let made = ns.api::<PodChaos>().create(&PostParams::default(), chaos).await?;
    Ok((made.metadata.name.unwrap_or_default(), Instant::now()))
}

fn fault(action: Action, mode: Mode) -> PodChaos {
    let mut chaos = experiment("", action, mode, |_| {});
    chaos.metadata.name = None;
    chaos.metadata.generate_name = Some("bench-".to_owned());
    chaos
}

fn hit(mode: Mode) -> usize {
    if mode == Mode::All { MANY } else { 1 }
}

async fn pod_kill(ns: &Ns, mode: Mode, pods: usize) -> Result<Duration> {
    quiet().await?;
    let mut events = watch::<Pod>(&ns.api(), "").await?;
    let (name, made) = create(ns, &fault(Action::PodKill, mode)).await?;
    let took =
        nth(&mut events, made, hit(mode), PATIENCE, |pod| pod.metadata.deletion_timestamp.is_some()).await?;
    ns.completed(&name).await?;
    ns.end_chaos(&name).await?;
    ns.ready_pods("web", pods).await?;
    Ok(took)
}

async fn pod_failure(ns: &Ns, mode: Mode, pods: usize) -> Result<(Duration, Duration)> {
    let foreign = |pod: &Pod| pod.image("app") != squall_tests::BUSYBOX;
    quiet().await?;
    let mut events = watch::<Pod>(&ns.api(), "").await?;
    let (name, made) = create(ns, &fault(Action::PodFailure, mode)).await?;
    let there = nth(&mut events, made, hit(mode), PATIENCE, foreign).await?;
    ns.phase(&name, Phase::Injected).await?;
    quiet().await?;
    let mut events = watch::<Pod>(&ns.api(), "").await?;
    ns.api::<PodChaos>().delete(&name, &DeleteParams::default()).await?;
    let deleted = Instant::now();
    let back = nth(&mut events, deleted, hit(mode), PATIENCE, |pod| !foreign(pod)).await?;
    ns.chaos_gone(&name).await?;
    fresh(ns, pods).await?;
    Ok((there, back))
}

async fn container_kill(ns: &Ns, mode: Mode, pods: usize) -> Result<Duration> {
    quiet().await?;
    // Which one is drawn is not known beforehand, so all are watched.
    let mut gone = watch_processes(ns).await?;
    let (name, made) = create(ns, &fault(Action::ContainerKill, mode)).await?;
    let wall = jiff::Timestamp::now();
    let count = hit(mode);
    let all = async {
        let mut left = count;
        while let Some(at) = gone.recv().await {
            left -= 1;
            if left == 0 {
                return Ok(at.saturating_duration_since(made));
            }
        }
        bail!("no process is watched any more")
    };
    let took = tokio::time::timeout(PATIENCE, all).await.context("it did not happen within a minute")??;
    let chaos = ns.completed(&name).await?;
    ensure!(chaos.phase() == Phase::Completed, "{}", chaos.shown());
    if std::env::var_os(EXPLAIN).is_some() {
        explain(&chaos, wall, took);
    }
    ns.end_chaos(&name).await?;
    fresh(ns, pods).await?;
    Ok(took)
}

/// Where the time went, in milliseconds since the answer to the create call: one line a target.
fn explain(chaos: &PodChaos, made: Timestamp, gone: Duration) {
    let since = |at: Option<&MicroTime>| match at {
        Some(at) => format!("{:.1}", (at.0 - made).total(jiff::Unit::Millisecond).unwrap_or(f64::NAN)),
        None => "-".to_owned(),
    };
    let Some(status) = &chaos.status else { return };
    for target in &status.targets {
        let receipt = target.receipt.clone().unwrap_or_default();
        let first = receipt.processes.first().cloned().unwrap_or_default();
        eprintln!(
            "chosen {} ordered {} sent {} delivered {} exited {} (by {}), last one seen gone {:.1}, completed {}",
            since(status.selected_at.as_ref()),
            since(target.ordered_at.as_ref()),
            since(first.sent.as_ref()),
            since(first.delivered.as_ref()),
            since(first.exited.as_ref()),
            receipt.evidence,
            gone.as_secs_f64() * 1000.0,
            since(status.completed_at.as_ref()),
        );
    }
}

/// Replace every pod that was restarted: the next restart would meet the kubelet's back-off, and it, not Squall, would
/// be what is measured.
async fn fresh(ns: &Ns, pods: usize) -> Result<()> {
    let api: Api<Pod> = ns.api();
    let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    for pod in ns.pods("web").await? {
        api.delete(&pod.name(), &now).await?;
    }
    ns.ready_pods("web", pods).await?;
    Ok(())
}

/// Waits until the machine has nothing left to do of the round before: containers are taken down for seconds after
/// their pods are gone.
async fn quiet() -> Result<()> {
    /// How long it must be idle, and by how much.
    const WINDOW: Duration = Duration::from_millis(500);
    const BUSY: f64 = 0.25;
    let spent = || -> Result<(u64, u64)> {
        let text = std::fs::read_to_string("/proc/stat").context("reading what the CPUs do")?;
        let line =
            text.lines().next().and_then(|line| line.strip_prefix("cpu ")).context("no line of CPUs")?;
        let times: Vec<u64> = line.split_whitespace().map_while(|word| word.parse().ok()).collect();
        // user nice system idle iowait irq softirq steal; guest times are in user.
        let all = times.iter().take(8).sum::<u64>();
        Ok((all, times.iter().skip(3).take(2).sum()))
    };
    let begun = Instant::now();
    let mut before = spent()?;
    loop {
        tokio::time::sleep(WINDOW).await;
        let now = spent()?;
        let (all, idle) = ((now.0 - before.0) as f64, (now.1 - before.1) as f64);
        if idle >= all * (1.0 - BUSY) {
            return Ok(());
        }
        ensure!(
            begun.elapsed() < PATIENCE,
            "the machine is busy with something else; figures would say nothing"
        );
        before = now;
    }
}

/// When each init process of the namespace's containers exits, by its pidfd.
async fn watch_processes(ns: &Ns) -> Result<mpsc::UnboundedReceiver<Instant>> {
    let (sender, receiver) = mpsc::unbounded_channel();
    for pod in ns.pods("web").await? {
        if pod.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let status = pod.status.unwrap_or_default();
        for container in status.container_statuses.unwrap_or_default() {
            let Some(id) = container.container_id else { continue };
            let Some(&init) = containers_processes(&id)?.first() else { continue };
            let pid = rustix::process::Pid::from_raw(init).context("a process without a PID")?;
            let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::NONBLOCK)?;
            // SAFETY: the pidfd is owned by the AsyncFd and never closed behind its back.
            let pidfd = unsafe { AsyncFd::register(pidfd) }?;
            let sender = sender.clone();
            tokio::spawn(async move {
                if pidfd.readable().await.is_ok() {
                    // The receiver goes when enough have exited.
                    let _ = sender.send(Instant::now());
                }
            });
        }
    }
    Ok(receiver)
}
