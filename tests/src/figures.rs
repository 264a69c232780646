//! What the benches share: their arguments, quantiles, and when something was seen to happen.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use futures::StreamExt as _;
use kube::Api;
use kube::api::{ListParams, WatchEvent, WatchParams};
use tokio::sync::mpsc;

/// The longest that anything may take.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The arguments of a bench.
pub struct Arguments {
    /// A figure is missed when it is above so many times its limit.
    pub slack: f64,
    /// How often the small cases are measured.
    pub rounds: u32,
    /// The fault that alone is measured; empty: all.
    pub only: String,
}

impl Arguments {
    /// Those of this process; `with_only`: one of the faults may be asked for.
    pub fn read(with_only: bool) -> Result<Self> {
        let mut read = Self { slack: 1.0, rounds: 10, only: String::new() };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let value = arguments.next().with_context(|| format!("{argument} needs a value"))?;
            match argument.as_str() {
                "--slack" => read.slack = value.parse().context("--slack takes a number")?,
                "--rounds" => read.rounds = value.parse().context("--rounds takes a whole number")?,
                "--only" if with_only => read.only = value,
                other if with_only => {
                    bail!("unknown argument {other}; there are --slack, --rounds and --only FAULT")
                }
                other => bail!("unknown argument {other}; there are --slack and --rounds"),
            }
        }
        Ok(read)
    }
}

/// From now on this process gets a CPU whenever it has something to do. Who measures must not stand in line behind what
/// is measured: with thirty containers starting on two cores, it would see for 100 ms and more too late what has happened.
pub fn first_in_line() -> Result<()> {
    let priority = libc::sched_param { sched_priority: 1 };
    // SAFETY: 0 is this process, and `priority` outlives the call, which only reads it.
    let done = unsafe { libc::sched_setscheduler(0, libc::SCHED_RR, &raw const priority) };
    ensure!(done == 0, "no real-time priority for the bench: {}", std::io::Error::last_os_error());
    Ok(())
}

/// The smallest of `times` that at least `percent` of them don't exceed, in milliseconds.
pub fn quantile(times: &[Duration], percent: usize) -> f64 {
    let mut sorted: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1000.0).collect();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// The resident memory of a process, in MiB.
pub fn resident(process: i32) -> Result<f64> {
    let status =
        std::fs::read_to_string(format!("/proc/{process}/status")).context("reading a process's status")?;
    let line =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("a process without VmRSS")?;
    let kibibytes: f64 = line.trim().trim_end_matches(" kB").parse().context("VmRSS isn't a number")?;
    Ok(kibibytes / 1024.0)
}

/// The objects with these labels as they change, from now on.
pub async fn watch<K>(api: &Api<K>, labels: &str) -> Result<mpsc::UnboundedReceiver<(Instant, K)>>
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + 'static,
{
    let first = ListParams::default().limit(1);
    let version = api.list_metadata(&first).await?.metadata.resource_version.unwrap_or_default();
    let params = WatchParams::default().labels(labels).timeout(280);
    let (sender, receiver) = mpsc::unbounded_channel();
    let mut events = api.watch(&params, &version).await?.boxed();
    tokio::spawn(async move {
        while let Some(Ok(event)) = events.next().await {
            if let WatchEvent::Added(object) | WatchEvent::Modified(object) | WatchEvent::Deleted(object) =
                event
                && sender.send((Instant::now(), object)).is_err()
            {
                return;
            }
        }
    });
    Ok(receiver)
}

/// When `count` different objects had come to be as `wanted`, counted from `since`.
pub async fn nth<K: kube::Resource>(
    events: &mut mpsc::UnboundedReceiver<(Instant, K)>,
    since: Instant,
    count: usize,
    patience: Duration,
    wanted: impl Fn(&K) -> bool,
) -> Result<Duration> {
    let mut seen = HashSet::new();
    let all = async {
        while let Some((at, object)) = events.recv().await {
            let uid = object.meta().uid.clone().unwrap_or_default();
            if wanted(&object) && seen.insert(uid) && seen.len() == count {
                return Ok(at.saturating_duration_since(since));
            }
        }
        bail!("the watch ended")
    };
    tokio::time::timeout(patience, all).await.with_context(|| format!("not {count} within {patience:?}"))?
}

/// Waits until the machine has nothing left to do of the round before: containers are taken down for seconds after
/// their pods are gone.
pub async fn quiet() -> Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_by_nearest_rank() {
        let times = |count: u64| (1..=count).rev().map(Duration::from_millis).collect::<Vec<_>>();
        assert_eq!([50, 90, 100].map(|percent| quantile(&times(10), percent)), [5.0, 9.0, 10.0]);
        assert_eq!([50, 90].map(|percent| quantile(&times(5), percent)), [3.0, 5.0]);
        assert_eq!(quantile(&times(1), 50), 1.0);
        assert!(quantile(&[], 50).is_nan());
    }
}
