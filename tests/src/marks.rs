//! What Squall leaves on a node: its processes, and every limit in the cgroups of the cluster's pods.
//!
//! Read from the kernel, on this machine. Other clusters on it are left out: each has a cgroup of its own, below which
//! its pods are.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::cluster::containers_processes;

/// Every value that Squall may lower, of version 1 and 2.
const LIMITS: [&str; 13] = [
    "cpu.cfs_quota_us",
    "cpu.max",
    "memory.limit_in_bytes",
    "memory.high",
    "memory.max",
    "pids.max",
    "io.max",
    "blkio.throttle.read_bps_device",
    "blkio.throttle.write_bps_device",
    "blkio.throttle.read_iops_device",
    "blkio.throttle.write_iops_device",
    "freezer.state",
    "cgroup.freeze",
];
/// The name that stressors are started under.
const STRESSOR: &str = "squall-stressor";

/// A cluster's cgroups on this machine.
pub struct Cgroups {
    /// The name of the topmost.
    root: String,
}

impl Cgroups {
    /// Those of the cluster that runs this container.
    pub fn around(container_id: &str) -> Result<Self> {
        let init = *containers_processes(container_id)?.first().context("it has no process")?;
        let text = fs::read_to_string(format!("/proc/{init}/cgroup"))?;
        let id = container_id.rsplit('/').next().unwrap_or(container_id);
        let path = text.lines().filter(|line| line.contains(id)).find_map(|line| line.splitn(3, ':').nth(2));
        let root = path.and_then(|path| path.trim_start_matches('/').split('/').next());
        Ok(Self { root: root.context("it has no cgroup of its own")?.to_owned() })
    }

    /// Every limit in every cgroup.
    pub fn limits(&self) -> Result<BTreeMap<PathBuf, String>> {
        let mut limits = BTreeMap::new();
        let top = Path::new("/sys/fs/cgroup");
        let mounts = fs::read_dir(top)?.flatten().map(|entry| entry.path()).filter(|path| !path.is_symlink());
        for mount in mounts.chain([top.to_owned()]) {
            collect(&mount.join(&self.root), &mut limits);
        }
        if limits.is_empty() {
            bail!("no cgroup {} was found", self.root);
        }
        Ok(limits)
    }

    /// The stressors in any of the cgroups, by PID; with the daemon's that each belongs to.
    pub fn stressors(&self) -> Result<Vec<(i32, i32)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let mut arguments = line.split(|byte| *byte == 0).map(|part| String::from_utf8_lossy(part));
            if arguments.next().as_deref() != Some(STRESSOR) {
                continue;
            }
            let cgroups = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
            if cgroups.contains(&format!("/{}/", self.root)) {
                let daemon = arguments.next().unwrap_or_default();
                found.push((pid, daemon.split(':').next().unwrap_or_default().parse().unwrap_or(0)));
            }
        }
        Ok(found)
    }
}

fn collect(dir: &Path, limits: &mut BTreeMap<PathBuf, String>) {
    for name in LIMITS {
        let file = dir.join(name);
        if let Some(value) = lasting(&file) {
            limits.insert(file, value);
        }
    }
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&entry.path(), limits);
        }
    }
}

/// What the file says, and goes on to say: a runtime freezes any container for a moment, to update or to end it.
fn lasting(file: &Path) -> Option<String> {
    let frozen = match file.file_name()?.to_str()? {
        "freezer.state" => ["FREEZING", "FROZEN"].as_slice(),
        "cgroup.freeze" => &["1"],
        _ => &[],
    };
    let until = Instant::now() + Duration::from_secs(1);
    loop {
        let text = fs::read_to_string(file).ok()?;
        let value = text.trim();
        if !frozen.contains(&value) || Instant::now() > until {
            return Some(value.to_owned());
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// The limits that are not as they were, of cgroups that are still there.
pub fn changed(before: &BTreeMap<PathBuf, String>, now: &BTreeMap<PathBuf, String>) -> Vec<String> {
    let differs = |(file, was): (&PathBuf, &String)| {
        let is = now.get(file).filter(|is| *is != was)?;
        Some(format!("{}: {is}, was {was}", file.display()))
    };
    before.iter().filter_map(differs).collect()
}
