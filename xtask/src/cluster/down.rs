//! `cluster down`: kills what is in the cluster's mount namespace or below its cgroups, and removes what is left.
//!
//! It never kills by name or by PID file, and works on whatever a half-failed `up` left behind.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{Cluster, need_root, node};
use crate::progress::Step;

/// How long killing and removing may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks.
const POLL: Duration = Duration::from_millis(20);

/// Kills the cluster and removes all of it.
pub fn down(cluster: &Cluster) -> Result<()> {
    need_root()?;
    cluster.check_is_ours()?;
    let _lock = cluster.lock()?;
    let step = Step::begin(format!("removing the cluster {}", cluster.name()));
    sweep(cluster)?;
    node::remove_mount_point(cluster, is_mount_point_somewhere)?;
    let state = cluster.state_dir();
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("can't read /proc/self/mountinfo")?;
    let below = format!(" {}/", state.display());
    ensure!(!mounts.contains(&below), "something is mounted below {}; not removing it", state.display());
    fs::remove_dir_all(state).with_context(|| format!("can't remove {}", state.display()))?;
    step.done();
    Ok(())
}

/// Kills every process of the cluster and removes its cgroups; the state stays.
pub fn sweep(cluster: &Cluster) -> Result<()> {
    let cgroups: Vec<_> =
        node::cgroup_mounts()?.into_iter().map(|mount| mount.join(cluster.cgroup())).collect();
    let mark = node::mark(cluster.state_dir());
    let end = Instant::now() + PATIENCE;
    loop {
        let processes = processes(&mark, &cgroups);
        for pid in &processes {
            kill(*pid, &mark, &cgroups);
        }
        if processes.is_empty() {
            for cgroup in &cgroups {
                remove_cgroup(cgroup);
            }
        }
        let left: Vec<_> = cgroups.iter().filter(|path| path.exists()).collect();
        if processes.is_empty() && left.is_empty() {
            return Ok(());
        }
        if Instant::now() > end {
            bail!("can't get rid of processes {processes:?} and cgroups {left:?} of {}", cluster.name());
        }
        std::thread::sleep(POLL);
    }
}

/// Components, shims and the forwarder are in the node's mount namespace; containers are below the cgroups.
fn processes(mark: &str, cgroups: &[PathBuf]) -> BTreeSet<i32> {
    let mut found: BTreeSet<i32> = all_processes().into_iter().filter(|pid| is_on_node(*pid, mark)).collect();
    for cgroup in cgroups {
        walk(cgroup, &mut |directory| {
            let members = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
            found.extend(members.lines().filter_map(|pid| pid.parse::<i32>().ok()).filter(|pid| *pid > 0));
        });
    }
    found
}

/// By pidfd, and only if it is still what it was when it was found: a PID may be somebody else's by now.
fn kill(pid: i32, mark: &str, cgroups: &[PathBuf]) {
    let Some(handle) = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else {
        return;
    };
    if is_on_node(pid, mark) || is_below(pid, cgroups) {
        // Already gone is what we want.
        let _ = pidfd_send_signal(&handle, Signal::KILL);
    }
}

fn all_processes() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn is_on_node(pid: i32, mark: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/mountinfo")).is_ok_and(|mounts| mounts.contains(mark))
}

fn is_below(pid: i32, cgroups: &[PathBuf]) -> bool {
    let names: Vec<_> = cgroups.iter().filter_map(|path| path.file_name()?.to_str()).collect();
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.splitn(3, ':').nth(2)?.strip_prefix('/')?.split('/').next())
        .any(|first| names.contains(&first))
}

fn is_mount_point_somewhere(path: &str) -> bool {
    let point = format!(" {path} ");
    all_processes().into_iter().any(|pid| is_on_node(pid, &point))
}

/// From the leaves up. One that is still in use is tried again on the next look.
fn remove_cgroup(cgroup: &Path) {
    walk(cgroup, &mut |directory| {
        let _ = fs::remove_dir(directory);
    });
}

/// Each directory below and the one itself, children first. What vanishes meanwhile is no error.
fn walk(directory: &Path, visit: &mut dyn FnMut(&Path)) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&entry.path(), visit);
        }
    }
    visit(directory);
}
