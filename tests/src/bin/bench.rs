//! The figures, on a real cluster: from the response to the create call until the effect is seen from outside.
//!
//! What is measured includes the bench's own watch, so a figure is an upper bound. It runs at real-time priority, and so
//! does its client that does the same without Squall; Squall doesn't. It prints median, p90 and n of each, and exits with
//! 1 when one is above its limit times `--slack`. Run by `cargo xtask bench`. Where the cluster has Chaos Mesh too, its
//! experiments are measured between ours, on the same pods.

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
use squall_api::podchaos::{Phase, PodChaos};
use squall_tests::figures::{Arguments, PATIENCE, first_in_line, nth, quantile, quiet, resident, watch};
use squall_tests::injector::Injector;
use squall_tests::{
    ExperimentExt as _, Ns, OptIn, PodExt as _, client, containers_processes, deployment, pods_of_component,
    runtime, with_ns_within,
};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

/// Set, each experiment also says where its time went.
const EXPLAIN: &str = "SQUALL_BENCH_EXPLAIN";
/// Pods of the large cases.
const MANY: usize = 30;

fn main() -> Result<()> {
    let Arguments { slack, rounds, only } = Arguments::read(true)?;
    first_in_line()?;
    let mut table = Table { slack, missed: 0 };
    println!(
        "{:<44} {:>9} {:>9} {:>9} {:>4}",
        "from the response to the create call", "median", "p90", "limit", "n"
    );
    table.memory()?;
    let injectors = runtime().block_on(async { Injector::installed(&client().await?).await })?;
    let few = |fault| Case { fault, injectors: &injectors, one: true, pods: 3, rounds };
    let many =
        |fault| Case { fault, injectors: &injectors, one: false, pods: MANY, rounds: (rounds / 2).max(2) };
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
    /// What `--only` and a PodChaos know it by.
    fn name(self) -> &'static str {
        match self {
            Self::PodKill => "pod-kill",
            Self::PodFailure => "pod-failure",
            Self::ContainerKill => "container-kill",
        }
    }
}

/// One fault, so many times.
struct Case<'a> {
    fault: Fault,
    injectors: &'a [Injector],
    one: bool,
    pods: usize,
    rounds: u32,
}

/// How long it took by one of them, each time.
#[derive(Default)]
struct Times {
    there: Vec<Duration>,
    back: Vec<Duration>,
}

impl Case<'_> {
    /// In a namespace of its own; each round together with what the same takes without Squall, so that a machine that is
    /// slow for a while is so for both.
    fn measure(&self, table: &mut Table) {
        let &Self { fault, injectors, one, pods, rounds } = self;
        let limit = |few: f64, many: f64| if one { few } else { many };
        let row = |what: &str| format!("{}: {}{what}", fault.name(), if one { "" } else { "30 pods, last " });
        // A minute for each of them in each round is far more than they take.
        let limit_of_all = PATIENCE * rounds * (1 + injectors.len() as u32);
        let stem = format!("bench-{}", if one { "few" } else { "many" });
        with_ns_within(limit_of_all, &stem, OptIn::Yes, async |ns| {
            ns.create(&deployment("web", i32::try_from(pods)?, false)).await?;
            ns.ready_pods("web", pods).await?;
            let round = Round { ns, fault, hit: if one { 1 } else { MANY }, pods };
            if one {
                // What is done for the first time, such as connecting, isn't measured.
                for &by in injectors {
                    Round { fault: Fault::ContainerKill, ..round }.of(by).await?;
                }
            }
            let mut floor = Vec::new();
            let mut times: Vec<Times> = injectors.iter().map(|_| Times::default()).collect();
            for _ in 0..rounds {
                floor.push(round.bare().await?);
                for (&by, times) in injectors.iter().zip(&mut times) {
                    let (there, back) = round.of(by).await?;
                    times.there.push(there);
                    times.back.extend(back);
                }
            }
            let (ours, theirs) = times.split_first().context("nobody is installed")?;
            match fault {
                Fault::PodKill => table.row(&row("deletion mark"), &ours.there, limit(20.0, 300.0), None),
                Fault::PodFailure => {
                    table.row(&row("image substituted"), &ours.there, limit(24.0, 300.0), None);
                }
                Fault::ContainerKill => {
                    table.row(&row("process gone"), &ours.there, limit(20.0, 250.0), one.then_some(40.0));
                }
            }
            table.beside("the same without Squall", &ours.there, &floor);
            for theirs in theirs {
                table.beside("the same by Chaos Mesh", &ours.there, &theirs.there);
            }
            if fault == Fault::PodFailure {
                table.row(&row("image restored"), &ours.back, limit(f64::INFINITY, 300.0), None);
                for theirs in theirs {
                    table.beside("the same by Chaos Mesh", &ours.back, &theirs.back);
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
    /// A figure.
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

    /// The same by somebody else, and how many times that the figure is.
    fn beside(&self, what: &str, ours: &[Duration], theirs: &[Duration]) {
        let median = quantile(theirs, 50);
        println!(
            "  {what:<42} {median:>6.1} ms {:>6.1} ms {:>9} {:>4}  x{:.1}",
            quantile(theirs, 90),
            "-",
            theirs.len(),
            quantile(ours, 50) / median
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

/// One fault, once.
#[derive(Clone, Copy)]
struct Round<'a> {
    ns: &'a Ns,
    fault: Fault,
    /// How many are hit, of `pods`.
    hit: usize,
    pods: usize,
}

impl Round<'_> {
    /// By an experiment; what is lasting also says how long it took to be put back.
    async fn of(&self, by: Injector) -> Result<(Duration, Option<Duration>)> {
        match self.fault {
            Fault::PodKill => self.pod_kill(by).await.map(|took| (took, None)),
            Fault::PodFailure => self.pod_failure(by).await.map(|(there, back)| (there, Some(back))),
            Fault::ContainerKill => self.container_kill(by).await.map(|took| (took, None)),
        }
    }

    async fn create(&self, by: Injector) -> Result<(String, Instant)> {
        by.create(self.ns, self.fault.name(), if self.hit == 1 { "one" } else { "all" }).await
    }

    async fn injected(&self, by: Injector, name: &str) -> Result<()> {
        by.injected(self.ns, self.fault.name(), name).await
    }

    async fn pod_kill(&self, by: Injector) -> Result<Duration> {
        quiet().await?;
        let mut events = watch::<Pod>(&self.ns.api(), "").await?;
        let (name, made) = self.create(by).await?;
        let marked = |pod: &Pod| pod.metadata.deletion_timestamp.is_some();
        let took = nth(&mut events, made, self.hit, PATIENCE, marked).await?;
        self.injected(by, &name).await?;
        by.delete(self.ns, &name).await?;
        by.gone(self.ns, &name).await?;
        self.ns.ready_pods("web", self.pods).await?;
        Ok(took)
    }

    async fn pod_failure(&self, by: Injector) -> Result<(Duration, Duration)> {
        quiet().await?;
        let mut events = watch::<Pod>(&self.ns.api(), "").await?;
        let (name, made) = self.create(by).await?;
        let wall = Timestamp::now();
        let there = nth(&mut events, made, self.hit, PATIENCE, is_foreign).await?;
        self.injected(by, &name).await?;
        if by == Injector::Squall && is_explained() {
            explain(&self.ns.chaos(&name).await?, wall, there);
        }
        quiet().await?;
        let mut events = watch::<Pod>(&self.ns.api(), "").await?;
        let deleted = by.delete(self.ns, &name).await?;
        let back = nth(&mut events, deleted, self.hit, PATIENCE, |pod| !is_foreign(pod)).await?;
        by.gone(self.ns, &name).await?;
        fresh(self.ns, self.pods).await?;
        Ok((there, back))
    }

    async fn container_kill(&self, by: Injector) -> Result<Duration> {
        quiet().await?;
        // Which one is drawn is not known beforehand, so all are watched.
        let mut gone = watch_processes(self.ns).await?;
        let (name, made) = self.create(by).await?;
        let wall = Timestamp::now();
        let took = all_gone(&mut gone, self.hit, made).await?;
        self.injected(by, &name).await?;
        if by == Injector::Squall {
            let chaos = self.ns.chaos(&name).await?;
            ensure!(chaos.phase() == Phase::Completed, "{}", chaos.shown());
            if is_explained() {
                explain(&chaos, wall, took);
            }
        }
        by.delete(self.ns, &name).await?;
        by.gone(self.ns, &name).await?;
        fresh(self.ns, self.pods).await?;
        Ok(took)
    }

    /// What a fault costs without Squall, on this machine and at this moment: a client that waits for an object and,
    /// once it is there, does the same to the pods, all at once. It chooses nothing, asks nobody and writes nothing
    /// down. Instead of pod-failure it sets another image: there too the kubelet begins its work on the first pods
    /// while others wait.
    async fn bare(&self) -> Result<Duration> {
        let &Self { ns, fault, hit, pods } = self;
        quiet().await?;
        let mut orders = watch::<ConfigMap>(&ns.api(), "").await?;
        let mut events = watch::<Pod>(&ns.api(), "").await?;
        let mut gone = watch_processes(ns).await?;
        let api: Api<Pod> = ns.api();
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
                _ => api
                    .patch(&pod.name(), &PatchParams::default(), &Patch::Strategic(&image))
                    .await
                    .map(|_| ()),
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
}

fn is_foreign(pod: &Pod) -> bool {
    pod.image("app") != squall_tests::BUSYBOX
}

/// Whether it is asked for.
fn is_explained() -> bool {
    std::env::var_os(EXPLAIN).is_some()
}

/// Where the time went, in milliseconds since the answer to the create call: one line a target.
fn explain(chaos: &PodChaos, made: Timestamp, gone: Duration) {
    let since = |at: Option<&MicroTime>| match at {
        Some(at) => format!("{:.1}", (at.0 - made).total(jiff::Unit::Millisecond).unwrap_or(f64::NAN)),
        None => "-".to_owned(),
    };
    let Some(status) = &chaos.status else { return };
    for target in &status.targets {
        let Some(receipt) = &target.receipt else {
            eprintln!(
                "chosen {} ordered {} injected {}, last one seen {:.1}",
                since(status.selected_at.as_ref()),
                since(target.ordered_at.as_ref()),
                since(target.injected_at.as_ref()),
                gone.as_secs_f64() * 1000.0,
            );
            continue;
        };
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
