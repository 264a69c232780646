//! The figures, on a real cluster: from the response to the create call until the effect is seen from outside.
//!
//! What is measured includes the bench's own watch, so a figure is an upper bound. It prints median, p90 and n of
//! each, and exits with 1 when one is above its limit times `--slack`. Run by `cargo xtask bench`.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::json;
use squall_api::podchaos::{Action, Mode, Phase, PodChaos};
use squall_tests::figures::{Arguments, PATIENCE, nth, quantile, quiet, resident, watch};
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

fn main() -> Result<()> {
    let Arguments { slack, rounds, only } = Arguments::read(true)?;
    let mut table = Table { slack, missed: 0 };
    println!(
        "{:<44} {:>9} {:>9} {:>9} {:>4}",
        "from the response to the create call", "median", "p90", "limit", "n"
    );
    table.memory()?;
    let few = |fault| Case { fault, mode: Mode::One, pods: 3, rounds };
    let many = |fault| Case { fault, mode: Mode::All, pods: MANY, rounds: (rounds / 3).max(2) };
    let faults = [Fault::PodKill, Fault::PodFailure, Fault::ContainerKill];
    for case in faults.map(few).into_iter().chain(faults.map(many)) {
        if case.fault.name().starts_with(&only) {
            case.measure(&mut table);
        }
    }
    ensure!(table.missed == 0, "{} figures are above {slack} times their limit", table.missed);
    Ok(())
}

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    PodKill,
    PodFailure,
    ContainerKill,
}

impl Fault {
    /// What `--only` knows it by.
    fn name(self) -> &'static str {
        match self {
            Self::PodKill => "pod-kill",
            Self::PodFailure => "pod-failure",
            Self::ContainerKill => "container-kill",
        }
    }
}

/// One fault, so many times.
struct Case {
    fault: Fault,
    mode: Mode,
    pods: usize,
    rounds: u32,
}

impl Case {
    /// In a namespace of its own; each round together with what the same takes without Squall, so that a machine that is
    /// slow for a while is so for both.
    fn measure(&self, table: &mut Table) {
        let &Self { fault, mode, pods, rounds } = self;
        let one = mode == Mode::One;
        let limit = |few: f64, many: f64| if one { few } else { many };
        let row = |what: &str| format!("{}: {}{what}", fault.name(), if one { "" } else { "30 pods, last " });
        with_ns(&format!("bench-{}", if one { "few" } else { "many" }), OptIn::Yes, async |ns| {
            ns.create(&deployment("web", i32::try_from(pods)?, false)).await?;
            ns.ready_pods("web", pods).await?;
            if one {
                // What is done for the first time, such as connecting, isn't measured.
                container_kill(ns, mode, pods).await?;
            }
            let (mut times, mut back, mut floor) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..rounds {
                floor.push(bare(ns, fault, mode, pods).await?);
                match fault {
                    Fault::PodKill => times.push(pod_kill(ns, mode, pods).await?),
                    Fault::PodFailure => {
                        let (there, restored) = pod_failure(ns, mode, pods).await?;
                        times.push(there);
                        back.push(restored);
                    }
                    Fault::ContainerKill => times.push(container_kill(ns, mode, pods).await?),
                }
            }
            match fault {
                Fault::PodKill => table.row(&row("deletion mark"), &times, &floor, limit(20.0, 300.0), None),
                Fault::PodFailure => {
                    table.row(&row("image substituted"), &times, &floor, limit(24.0, 300.0), None);
                    table.row(&row("image restored"), &back, &[], limit(f64::INFINITY, 300.0), None);
                }
                Fault::ContainerKill => {
                    let tail = one.then_some(40.0);
                    table.row(&row("process gone"), &times, &floor, limit(20.0, 250.0), tail);
                }
            }
            Ok(())
        });
    }
}

struct Table {
    slack: f64,
    missed: usize,
}

impl Table {
    /// A figure; and, if there is a `floor`, the same without Squall and how many times that the figure is.
    fn row(
        &mut self,
        what: &str,
        times: &[Duration],
        floor: &[Duration],
        limit: f64,
        p90_limit: Option<f64>,
    ) {
        let (median, p90) = (quantile(times, 50), quantile(times, 90));
        let missed = median > limit * self.slack || p90_limit.is_some_and(|limit| p90 > limit * self.slack);
        self.missed += usize::from(missed);
        let limit = if limit.is_finite() { format!("{limit:.0} ms") } else { "-".to_owned() };
        println!(
            "{what:<44} {median:>6.1} ms {p90:>6.1} ms {limit:>9} {:>4}{}",
            times.len(),
            if missed { "  MISSED" } else { "" }
        );
        if !floor.is_empty() {
            let bare = quantile(floor, 50);
            println!(
                "{:<44} {bare:>6.1} ms {:>6.1} ms {:>9} {:>4}  x{:.1}",
                "  the same without Squall",
                quantile(floor, 90),
                "-",
                floor.len(),
                median / bare
            );
        }
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

fn chaos_of(action: Action, mode: Mode) -> PodChaos {
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
    let (name, made) = create(ns, &chaos_of(Action::PodKill, mode)).await?;
    let took =
        nth(&mut events, made, hit(mode), PATIENCE, |pod| pod.metadata.deletion_timestamp.is_some()).await?;
    ns.completed(&name).await?;
    ns.end_chaos(&name).await?;
    ns.ready_pods("web", pods).await?;
    Ok(took)
}

/// What a fault costs without Squall, on this machine and at this moment: a client that waits for an object and, once it
/// is there, does the same to the pods, all at once. It chooses nothing, asks nobody and writes nothing down. Instead of
/// pod-failure it sets another image: there too the kubelet begins its work on the first pods while others wait.
async fn bare(ns: &Ns, fault: Fault, mode: Mode, pods: usize) -> Result<Duration> {
    quiet().await?;
    let mut orders = watch::<ConfigMap>(&ns.api(), "").await?;
    let mut events = watch::<Pod>(&ns.api(), "").await?;
    let mut gone = watch_processes(ns).await?;
    let api: Api<Pod> = ns.api();
    let hit = hit(mode);
    let targets: Vec<Pod> = ns.pods("web").await?.into_iter().take(hit).collect();
    let inits = targets.iter().flat_map(init_processes).collect::<Result<Vec<_>>>()?;
    let order = ConfigMap {
        metadata: ObjectMeta { generate_name: Some("bench-".to_owned()), ..ObjectMeta::default() },
        ..ConfigMap::default()
    };
    let client = tokio::spawn(async move {
        orders.recv().await.context("the watch ended")?;
        if fault == Fault::ContainerKill {
            for init in inits {
                pidfd_send_signal(&init, Signal::TERM)?;
            }
            return Ok(());
        }
        let image = json!({"spec": {"containers": [{"name": "app", "image": "localhost/pause:1"}]}});
        let each = targets.iter().map(async |pod| match fault {
            Fault::PodKill => api.delete(&pod.name(), &DeleteParams::default()).await.map(|_| ()),
            _ => api.patch(&pod.name(), &PatchParams::default(), &Patch::Strategic(&image)).await.map(|_| ()),
        });
        futures::future::try_join_all(each).await?;
        anyhow::Ok(())
    });
    ns.api::<ConfigMap>().create(&PostParams::default(), &order).await?;
    let made = Instant::now();
    let done = |pod: &Pod| match fault {
        Fault::PodKill => pod.metadata.deletion_timestamp.is_some(),
        _ => is_foreign(pod),
    };
    let took = match fault {
        Fault::ContainerKill => all_gone(&mut gone, hit, made).await?,
        _ => nth(&mut events, made, hit, PATIENCE, done).await?,
    };
    client.await.context("the client panicked")??;
    match fault {
        Fault::PodKill => ns.ready_pods("web", pods).await.map(|_| took),
        Fault::PodFailure | Fault::ContainerKill => fresh(ns, pods).await.map(|()| took),
    }
}

fn is_foreign(pod: &Pod) -> bool {
    pod.image("app") != squall_tests::BUSYBOX
}

async fn pod_failure(ns: &Ns, mode: Mode, pods: usize) -> Result<(Duration, Duration)> {
    quiet().await?;
    let mut events = watch::<Pod>(&ns.api(), "").await?;
    let (name, made) = create(ns, &chaos_of(Action::PodFailure, mode)).await?;
    let there = nth(&mut events, made, hit(mode), PATIENCE, is_foreign).await?;
    ns.phase(&name, Phase::Injected).await?;
    quiet().await?;
    let mut events = watch::<Pod>(&ns.api(), "").await?;
    ns.api::<PodChaos>().delete(&name, &DeleteParams::default()).await?;
    let deleted = Instant::now();
    let back = nth(&mut events, deleted, hit(mode), PATIENCE, |pod| !is_foreign(pod)).await?;
    ns.chaos_gone(&name).await?;
    fresh(ns, pods).await?;
    Ok((there, back))
}

async fn container_kill(ns: &Ns, mode: Mode, pods: usize) -> Result<Duration> {
    quiet().await?;
    // Which one is drawn is not known beforehand, so all are watched.
    let mut gone = watch_processes(ns).await?;
    let (name, made) = create(ns, &chaos_of(Action::ContainerKill, mode)).await?;
    let wall = jiff::Timestamp::now();
    let took = all_gone(&mut gone, hit(mode), made).await?;
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

/// When `count` processes had exited, counted from `since`.
async fn all_gone(
    gone: &mut mpsc::UnboundedReceiver<Instant>,
    count: usize,
    since: Instant,
) -> Result<Duration> {
    let all = async {
        for _ in 1..count {
            gone.recv().await.context("no process is watched any more")?;
        }
        gone.recv().await.context("no process is watched any more")
    };
    let last = tokio::time::timeout(PATIENCE, all).await.context("it did not happen within a minute")??;
    Ok(last.saturating_duration_since(since))
}

/// The init process of each container of the pod.
fn init_processes(pod: &Pod) -> Vec<Result<OwnedFd>> {
    let containers = pod.status.iter().filter_map(|status| status.container_statuses.as_ref()).flatten();
    let inits = containers.filter_map(|container| container.container_id.as_deref()).map(|id| {
        let init = *containers_processes(id)?.first().context("a container without a process")?;
        let pid = Pid::from_raw(init).context("a process without a PID")?;
        Ok(pidfd_open(pid, PidfdFlags::NONBLOCK)?)
    });
    inits.collect()
}

/// When each init process of the namespace's containers exits, by its pidfd.
async fn watch_processes(ns: &Ns) -> Result<mpsc::UnboundedReceiver<Instant>> {
    let (sender, receiver) = mpsc::unbounded_channel();
    for pod in ns.pods("web").await? {
        if pod.metadata.deletion_timestamp.is_some() {
            continue;
        }
        for pidfd in init_processes(&pod) {
            // SAFETY: the pidfd is owned by the AsyncFd and never closed behind its back.
            let pidfd = unsafe { AsyncFd::register(pidfd?) }?;
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
