//! What a container uses, by its cgroups' own counters, of version 2 or 1, whichever the node has for each.
//!
//! Reads only. What is not counted is left out, never guessed.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::{
    cgroup::{Place, Target},
    report::Usage,
};

/// Where the counters of one container are.
#[derive(Clone, Debug)]
pub struct Meter {
    cpu: Option<Counter>,
    memory: Option<PathBuf>,
    pids: Option<PathBuf>,
    io: Option<Counter>,
    /// The v2 directory: only there is pressure told.
    pressure: Option<PathBuf>,
    oom: Option<PathBuf>,
}

#[derive(Clone, Debug)]
enum Counter {
    V1(PathBuf),
    V2(PathBuf),
}

/// The counters at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    at: Instant,
    cpu_nanos: Option<u64>,
    io_bytes: Option<u64>,
    /// What is no counter is told as it is.
    now: Usage,
}

impl Meter {
    /// Finds the counters of `target`.
    pub fn new(target: &Target) -> Self {
        let counter = |controller, v2: &str, v1: &str| {
            target.place(controller, v2).map(|place| {
                if place.v2 { Counter::V2(place.dir.join(v2)) } else { Counter::V1(place.dir.join(v1)) }
            })
        };
        let file = |controller, v2: &str, v1: &str| {
            counter(controller, v2, v1).map(|counter| match counter {
                Counter::V1(path) | Counter::V2(path) => path,
            })
        };
        Self {
            cpu: counter("cpuacct", "cpu.stat", "cpuacct.usage"),
            memory: file("memory", "memory.current", "memory.usage_in_bytes"),
            pids: file("pids", "pids.current", "pids.current"),
            io: counter("blkio", "io.stat", "blkio.throttle.io_service_bytes_recursive"),
            pressure: target.v2.as_ref().map(|v2| v2.dir.clone()),
            oom: file("memory", "memory.events", "memory.oom_control"),
        }
    }

    /// Reads them.
    pub fn read(&self) -> Reading {
        let cpu_nanos = self.cpu.as_ref().and_then(|counter| match counter {
            Counter::V1(path) => number(path),
            Counter::V2(path) => Some(field(&text(path)?, "usage_usec")? * 1000),
        });
        let io_bytes = self.io.as_ref().and_then(|counter| match counter {
            // Without a throttle the kernel counts nothing there: that is no zero.
            Counter::V1(path) => Some(v1_io(&text(path)?)).filter(|bytes| *bytes > 0),
            Counter::V2(path) => Some(v2_io(&text(path)?)),
        });
        let pressure = |name: &str| {
            let path = self.pressure.as_ref()?.join(format!("{name}.pressure"));
            some_avg10(&text(&path)?)
        };
        let now = Usage {
            cpu_millis: None,
            memory_bytes: self.memory.as_deref().and_then(number),
            cpu_pressure: pressure("cpu"),
            memory_pressure: pressure("memory"),
            io_pressure: pressure("io"),
            pids: self.pids.as_deref().and_then(number),
            io_bps: None,
        };
        Reading { at: Instant::now(), cpu_nanos, io_bytes, now }
    }

    /// Whether the kernel ends all of the container together for want of memory.
    pub fn oom_takes_all(&self) -> bool {
        let dir = self.memory.as_deref().and_then(Path::parent);
        dir.and_then(|dir| number(&dir.join("memory.oom.group"))) == Some(1)
    }

    /// How many processes of it the kernel has killed for want of memory.
    pub fn oom_kills(&self) -> Option<u64> {
        field(&text(self.oom.as_deref()?)?, "oom_kill")
    }
}

impl Reading {
    /// When it was taken.
    pub fn at(&self) -> Instant {
        self.at
    }

    /// What was used from `earlier` to now.
    pub fn since(&self, earlier: &Self) -> Usage {
        let less = |now: Option<u64>, then: Option<u64>| Some(now?.saturating_sub(then?));
        self.rates(
            less(self.cpu_nanos, earlier.cpu_nanos),
            less(self.io_bytes, earlier.io_bytes),
            self.at.saturating_duration_since(earlier.at),
        )
    }

    /// What was used on average since the container started, so long ago.
    pub fn over(&self, age: Duration) -> Usage {
        self.rates(self.cpu_nanos, self.io_bytes, age)
    }

    fn rates(&self, cpu_nanos: Option<u64>, io_bytes: Option<u64>, time: Duration) -> Usage {
        let nanos = time.as_nanos();
        let rate = |used: Option<u64>, unit: u128| {
            let used = u128::from(used?);
            (nanos > 0).then(|| (used * unit / nanos) as u64)
        };
        Usage { cpu_millis: rate(cpu_nanos, 1000), io_bps: rate(io_bytes, 1_000_000_000), ..self.now }
    }
}

/// Memory of the cgroup at `place`, and of all below it, that can't simply be dropped.
pub fn working_set(place: &Place) -> Option<u64> {
    let used = if place.v2 { "memory.current" } else { "memory.usage_in_bytes" };
    let current = number(&place.dir.join(used))?;
    let stat = text(&place.dir.join("memory.stat")).unwrap_or_default();
    let file = field(&stat, "total_inactive_file").or_else(|| field(&stat, "inactive_file"));
    Some(current.saturating_sub(file.unwrap_or(0)))
}

fn text(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok()
}

fn number(path: &Path) -> Option<u64> {
    text(path)?.trim().parse().ok()
}

/// The number behind `name` in lines of the form `NAME NUMBER`.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

fn v1_io(text: &str) -> u64 {
    let lines = text.lines().filter(|line| line.contains(" Read ") || line.contains(" Write "));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

fn v2_io(text: &str) -> u64 {
    let values = text.split_whitespace().filter_map(|part| {
        part.strip_prefix("rbytes=").or_else(|| part.strip_prefix("wbytes="))?.parse::<u64>().ok()
    });
    values.sum()
}

/// In hundredths of a percent.
fn some_avg10(text: &str) -> Option<u32> {
    let line = text.lines().find(|line| line.starts_with("some "))?;
    let (_, rest) = line.split_once("avg10=")?;
    let percent: f64 = rest.split(' ').next()?.parse().ok()?;
    Some((percent * 100.0).round() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read() {
        assert_eq!(field("usage_usec 12\nuser_usec 7\n", "user_usec"), Some(7));
        assert_eq!(field("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", "oom_kill"), Some(3));
        assert_eq!(v1_io("8:0 Read 10\n8:0 Write 5\n8:0 Sync 15\nTotal 15\n"), 15);
        assert_eq!(v2_io("8:0 rbytes=10 wbytes=5 rios=1 wios=1 dbytes=9 dios=0\n"), 15);
        assert_eq!(
            some_avg10("some avg10=12.34 avg60=0.00 avg300=0.00 total=1\nfull avg10=1.00\n"),
            Some(1234)
        );
        assert_eq!(some_avg10(""), None);
    }
}
