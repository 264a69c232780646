//! What a container may use at most: the strictest of its own cgroup and of all above it.
//!
//! Reads only. Where nothing limits it, the node does.

use std::{fmt, fs, path::Path};

use rustix::{process::Pid, thread::sched_getaffinity};

use crate::{
    cgroup::{Place, Target},
    container::Container,
    usage::working_set,
};

/// v1 says "no limit" by a number near this.
const V1_UNLIMITED: u64 = 1 << 62;

/// What limits a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Thousandths of a CPU, by quota and by the CPUs it may run on.
    pub cpu_millis: u64,
    /// Bytes, where there is a limit.
    pub memory: Option<u64>,
    /// The node's own.
    pub node: NodeMemory,
    /// Tasks, where there is a limit.
    pub pids: Option<u64>,
}

/// The memory of a node. Where little is left, kubelets evict pods and the kernel ends processes of anybody's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeMemory {
    /// All of it, in bytes.
    pub whole: u64,
    /// What could be had without taking it from anybody, in bytes.
    pub available: u64,
}

impl NodeMemory {
    /// A kubelet evicts below 100 MiB, unless it is told otherwise.
    const KEPT: u64 = 128 * 1024 * 1024;

    /// Reads it, now. Where the kernel does not tell, there is no room.
    pub fn of(proc: &Path) -> Self {
        let text = fs::read_to_string(proc.join("meminfo")).unwrap_or_default();
        let field = |name: &str| {
            let kib = text.lines().find_map(|line| line.strip_prefix(name))?;
            Some(kib.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
        };
        let (whole, available) = field("MemTotal:").zip(field("MemAvailable:")).unwrap_or_default();
        Self { whole, available }
    }

    /// So many bytes may be taken: a twentieth of all, and 128 MiB at least, are kept for everybody else.
    pub fn room(&self) -> u64 {
        self.available.saturating_sub((self.whole / 20).max(Self::KEPT))
    }
}

/// A limit of memory, of the container's own cgroup or of one above it, where others use of it too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryLimit {
    /// In bytes.
    pub limit: u64,
    /// What of it is used and can't simply be dropped, by whomever, in bytes.
    pub used: u64,
    /// It is the container's own.
    pub own: bool,
}

impl MemoryLimit {
    /// The one that leaves the container of `target` the least, now. Its own is about to be lowered to `squeezed`.
    pub fn tightest(target: &Target, squeezed: Option<u64>) -> Option<Self> {
        Self::tightest_from(&target.place("memory", "memory.max")?, squeezed)
    }

    fn tightest_from(place: &Place, squeezed: Option<u64>) -> Option<Self> {
        let limits = levels(place).filter_map(|level| {
            let own = level == *place;
            let limit = memory_limit(&level).into_iter().chain(squeezed.filter(|_| own)).min()?;
            // Where the kernel does not tell, there is no room.
            Some(Self { limit, used: working_set(&level).unwrap_or(limit), own })
        });
        limits.min_by_key(Self::room)
    }

    /// So many bytes may be taken.
    pub fn room(&self) -> u64 {
        self.limit.saturating_sub(self.used)
    }
}

impl fmt::Display for MemoryLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { limit, used, own } = self;
        if *own {
            write!(f, "the container's limit is {limit}, and it uses {used}")
        } else {
            write!(f, "a cgroup above the container's has the limit {limit}, and all in it use {used}")
        }
    }
}

/// The tasks of a node. Who takes the last ones keeps everybody from starting anything, the kubelet too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodePids {
    /// There may be so many.
    pub most: u64,
    /// There are so many.
    pub there: u64,
}

impl NodePids {
    /// Reads them, now. Where the kernel does not tell, there is no room.
    pub fn of(proc: &Path) -> Self {
        let limit = |name: &str| number(&proc.join("sys/kernel").join(name));
        let most = limit("pid_max").zip(limit("threads-max")).map(|(ids, threads)| ids.min(threads));
        // Runnable tasks and all: "2/237".
        let text = fs::read_to_string(proc.join("loadavg")).unwrap_or_default();
        let there = text.split(' ').nth(3).and_then(|tasks| tasks.split_once('/')?.1.parse().ok());
        let (most, there) = most.zip(there).unwrap_or_default();
        Self { most, there }
    }

    /// So many may be added: a quarter of what the node takes is kept for everybody else.
    pub fn room(&self) -> u64 {
        (self.most - self.most / 4).saturating_sub(self.there)
    }
}

impl Limits {
    /// Reads those of `container`, now.
    pub fn of(container: &Container) -> Self {
        Self::at(&container.target, container.init.pid())
    }

    /// As [`Limits::of`], of the container whose first process is `init`.
    pub fn at(target: &Target, init: i32) -> Self {
        let cpus = cpus(init) * 1000;
        let quota = strictest(target, "cpu", "cpu.max", |Place { dir, v2 }| {
            let (quota, period) = if *v2 {
                let text = fs::read_to_string(dir.join("cpu.max")).ok()?;
                let (quota, period) = text.trim().split_once(' ')?;
                (quota.parse::<u64>().ok()?, period.parse::<u64>().ok()?)
            } else {
                (number(&dir.join("cpu.cfs_quota_us"))?, number(&dir.join("cpu.cfs_period_us"))?)
            };
            (period > 0).then(|| quota * 1000 / period)
        });
        let memory = strictest(target, "memory", "memory.max", memory_limit);
        let pids = strictest(target, "pids", "pids.max", |place| number(&place.dir.join("pids.max")));
        Self {
            cpu_millis: quota.map_or(cpus, |quota| quota.min(cpus)),
            memory,
            node: NodeMemory::of(target.proc()),
            pids,
        }
    }
}

fn strictest(
    target: &Target,
    controller: &str,
    file: &str,
    read: impl Fn(&Place) -> Option<u64>,
) -> Option<u64> {
    let place = target.place(controller, file)?;
    levels(&place).filter_map(|level| read(&level)).min()
}

/// It and all above it.
fn levels(place: &Place) -> impl Iterator<Item = Place> {
    let dirs = place.dir.ancestors().take_while(|dir| dir.join("cgroup.procs").exists());
    dirs.map(|dir| Place { dir: dir.to_owned(), v2: place.v2 })
}

fn memory_limit(place: &Place) -> Option<u64> {
    let file = if place.v2 { "memory.max" } else { "memory.limit_in_bytes" };
    number(&place.dir.join(file)).filter(|limit| *limit < V1_UNLIMITED)
}

fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// How many CPUs `pid` may run on.
fn cpus(pid: i32) -> u64 {
    let set = Pid::from_raw(pid).and_then(|pid| sched_getaffinity(Some(pid)).ok());
    set.map_or(1, |set| u64::from(set.count()).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_twentieth_of_the_nodes_memory_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let of = |text: &str| {
            fs::write(dir.path().join("meminfo"), text).unwrap();
            NodeMemory::of(dir.path())
        };
        let (mib, gib) = (1 << 20, 1 << 30);
        let found =
            of("MemTotal:       16777216 kB\nMemFree:  5 kB\nMemAvailable:    2097152 kB\nBuffers: 7 kB\n");
        assert_eq!(found, NodeMemory { whole: 16 * gib, available: 2 * gib });
        assert_eq!(found.room(), 2 * gib - 16 * gib / 20);
        let small = NodeMemory { whole: gib, available: 200 * mib };
        assert_eq!(small.room(), 72 * mib);
        assert_eq!(NodeMemory { available: 100 * mib, ..small }.room(), 0);
        for unreadable in ["", "MemTotal: 16777216 kB\n", "MemTotal: many kB\nMemAvailable: 5 kB\n"] {
            assert_eq!(of(unreadable), NodeMemory { whole: 0, available: 0 });
        }
    }

    #[test]
    fn what_others_use_of_a_limit_above_is_no_room() {
        for v2 in [false, true] {
            let top = tempfile::tempdir().unwrap();
            let (pod, own) = (top.path().join("pod"), top.path().join("pod/own"));
            fs::create_dir_all(&own).unwrap();
            let cgroup = |dir: &Path, limit: &str, used: u64, inactive: u64| {
                let [limits, usage, stat] = if v2 {
                    ["memory.max", "memory.current", "inactive_file"]
                } else {
                    ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"]
                };
                fs::write(dir.join("cgroup.procs"), "").unwrap();
                fs::write(dir.join(limits), limit).unwrap();
                fs::write(dir.join(usage), used.to_string()).unwrap();
                fs::write(dir.join("memory.stat"), format!("cache 9\n{stat} {inactive}\n")).unwrap();
            };
            let none = if v2 { "max" } else { "9223372036854771712" };
            let place = Place { dir: own.clone(), v2 };
            let tightest = |squeezed| MemoryLimit::tightest_from(&place, squeezed);
            cgroup(top.path(), none, 999, 0);
            cgroup(&pod, none, 950, 0);
            cgroup(&own, none, 100, 30);
            assert_eq!(tightest(None), None);
            assert_eq!(tightest(Some(90)), Some(MemoryLimit { limit: 90, used: 70, own: true }));
            cgroup(&own, "400", 100, 30);
            assert_eq!(tightest(None), Some(MemoryLimit { limit: 400, used: 70, own: true }));
            // The larger limit, and less room.
            cgroup(&pod, "1000", 950, 0);
            let found = tightest(None).unwrap();
            assert_eq!((found, found.room()), (MemoryLimit { limit: 1000, used: 950, own: false }, 50));
            assert_eq!(tightest(Some(90)).map(|found| found.room()), Some(20));
            // What is not told is no room.
            fs::remove_file(pod.join(if v2 { "memory.current" } else { "memory.usage_in_bytes" })).unwrap();
            assert_eq!(tightest(None).map(|found| found.room()), Some(0));
        }
    }

    #[test]
    fn a_quarter_of_the_tasks_of_the_node_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = dir.path().join("sys/kernel");
        fs::create_dir_all(&kernel).unwrap();
        let of = |pid_max: &str, threads_max: &str, tasks: &str| {
            fs::write(kernel.join("pid_max"), pid_max).unwrap();
            fs::write(kernel.join("threads-max"), threads_max).unwrap();
            fs::write(dir.path().join("loadavg"), format!("1.18 2.10 6.71 {tasks} 4093\n")).unwrap();
            NodePids::of(dir.path())
        };
        let found = of("32768\n", "192729\n", "2/237");
        assert_eq!((found, found.room()), (NodePids { most: 32768, there: 237 }, 24576 - 237));
        assert_eq!(of("4194304\n", "1000\n", "2/237").room(), 750 - 237);
        assert_eq!(of("1000\n", "1000\n", "2/900").room(), 0);
        assert_eq!(of("many\n", "1000\n", "2/9"), NodePids { most: 0, there: 0 });
        assert_eq!(of("1000\n", "1000\n", "2").room(), 0);
    }
}
