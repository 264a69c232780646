//! The node: a mount and a network namespace, held by a process that does nothing, and the cgroup of its pods.
//!
//! Everything here is inside those namespaces, so nothing stays mounted or routed on the host when they are gone.

use std::{
    fs, io,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use rustix::{
    fs::FlockOperation,
    mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change},
};

use super::{
    Cluster,
    config::{IP, PODS, SERVICES},
};
use crate::{build, sh};

/// The process that holds the namespaces.
pub const HOLDER: &str = "node";
/// Usual paths that on the node are directories of its own, below `node` in the state directory.
const OWN: [&str; 3] = ["/run", "/var/log", "/var/lib/kubelet"];
/// The one of them that the host may lack; a mount point must be there.
const KUBELET: &str = "/var/lib/kubelet";
/// What the kubelet would set in the whole machine's kernel: it only looks, when it finds these.
const SYSCTLS: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// Starts the holder unless it lives. What was left of an older one is gone by then.
pub fn ensure(cluster: &Cluster) -> Result<()> {
    if !cluster.is_alive(HOLDER) {
        // A directory of its own: the cluster does not wait for a build of images.
        let pause = build::static_binaries_in("target/node", &["squall-fault"], &[])?;
        let pause = pause.get("pause").context("squall-fault has no program called pause")?;
        copy(pause, &cluster.state.join("bin/pause"))?;
        copy(Path::new("/proc/self/exe"), &cluster.state.join("bin/xtask"))?;
    }
    // Another cluster's `down` must not remove the mount point before it is one.
    let _guard = mount_point_lock()?;
    if !Path::new(KUBELET).exists() {
        fs::create_dir(KUBELET).with_context(|| format!("can't make {KUBELET}"))?;
        fs::write(cluster.state.join("made"), KUBELET)?;
    }
    for own in OWN {
        let path = cluster.state.join("node").join(&own[1..]);
        fs::create_dir_all(&path).with_context(|| format!("can't make {}", path.display()))?;
    }
    let state = cluster.state.display();
    let become_holder =
        format!("unshare -m -n --propagation private {state}/bin/xtask cluster node {state}/");
    let words: Vec<_> = become_holder.split(' ').map(str::to_owned).collect();
    cluster.start(HOLDER, &words)?;
    cluster.wait(HOLDER, 20, "the node's namespaces are ready", || is_ready(cluster))
}

/// Removes the mount point that we made, once nobody needs it.
pub fn remove_mount_point(cluster: &Cluster, in_use: impl Fn(&str) -> bool) -> Result<()> {
    let _guard = mount_point_lock()?;
    if cluster.state.join("made").exists() && !in_use(KUBELET) {
        match fs::remove_dir(KUBELET) {
            Ok(()) => {}
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => {}
            Err(error) => return Err(error).with_context(|| format!("can't remove {KUBELET}")),
        }
    }
    Ok(())
}

/// Groups of components beside that of all pods, and how many times the usual weight they have for a CPU.
///
/// A node of systemd's has runtime, shims and kubelet in one group, and pods in another of twice its weight. The control
/// plane has machines of its own elsewhere. Here, each on a weight of its own as sessions are, thirty shims that start
/// containers would leave it next to nothing of two cores.
const GROUPS: [(&str, u32); 2] = [(CONTROL_PLANE, 16), (SYSTEM, 1)];
const CONTROL_PLANE: &str = "control-plane";
const SYSTEM: &str = "system";

/// The group of a component.
fn group(component: &str) -> &'static str {
    match component {
        // The forwarder is the only way to it.
        "etcd" | "kube-apiserver" | "kube-controller-manager" | "kube-scheduler" | "forward" => CONTROL_PLANE,
        _ => SYSTEM,
    }
}

/// The files by which a cgroup of version 1 or 2 says what CPU it gets, and what stands for the usual weight in them.
const WEIGHTS: [(&str, u32); 2] = [("cpu.shares", 1024), ("cpu.weight", 100)];

/// Puts the process of a component into its group.
pub fn place(cluster: &Cluster, component: &str, pid: u32) -> Result<()> {
    for mount in cgroup_mounts()? {
        let path = mount.join(cluster.cgroup()).join(group(component));
        if path.exists() {
            fs::write(path.join("cgroup.procs"), pid.to_string())
                .with_context(|| format!("can't put {component} into {}", path.display()))?;
        }
    }
    Ok(())
}

/// The cgroup of all pods, in each hierarchy; in a pure v2 with all of its controllers. Beside it, where the CPU is
/// shared out, the groups of the components.
pub fn make_cgroups(cluster: &Cluster) -> Result<()> {
    for mount in cgroup_mounts()? {
        let path = mount.join(cluster.cgroup());
        fs::create_dir_all(&path).with_context(|| format!("can't make {}", path.display()))?;
        if mount == Path::new("/sys/fs/cgroup") {
            for controller in fs::read_to_string(mount.join("cgroup.controllers"))?.split_whitespace() {
                // One that can't be had here is the kubelet's to complain about.
                let _ = fs::write(mount.join("cgroup.subtree_control"), format!("+{controller}"));
            }
        }
        make_groups(&path)?;
    }
    Ok(())
}

/// The groups of the components below this cgroup, if its hierarchy shares out the CPU.
fn make_groups(cgroup: &Path) -> Result<()> {
    let Some((file, usual)) = WEIGHTS.into_iter().find(|(file, _)| cgroup.join(file).exists()) else {
        return Ok(());
    };
    // Version 1 has no such file, and nothing to switch on.
    let _ = fs::write(cgroup.join("cgroup.subtree_control"), "+cpu");
    for (group, times) in GROUPS {
        let path = cgroup.join(group);
        fs::create_dir_all(&path).with_context(|| format!("can't make {}", path.display()))?;
        fs::write(path.join(file), (usual * times).to_string())
            .with_context(|| format!("can't write {file} in {}", path.display()))?;
    }
    Ok(())
}

/// Where each cgroup hierarchy is mounted.
pub fn cgroup_mounts() -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("can't read /proc/self/mountinfo")?;
    Ok(cgroups_in(&mounts))
}

/// What marks a process's mount namespace as this cluster's: a tmpfs of that name, as `mountinfo` shows it.
pub fn mark(state: &Path) -> String {
    format!(" - tmpfs {} ", state.display())
}

/// Runs in the new namespaces: makes the node of them, and becomes the process that holds them.
pub fn become_holder(state: &Path) -> Result<()> {
    // As the caller wrote it, but without the slash at its end.
    let state: PathBuf = state.components().collect();
    // Shared inside, so that propagation works for pods that ask for it.
    mount_change("/", MountPropagationFlags::SHARED | MountPropagationFlags::REC)
        .context("can't share the mounts")?;
    let sysctls = state.join("sysctl");
    mount(&state, &sysctls, "tmpfs", MountFlags::empty(), None).context("can't mount a tmpfs")?;
    for (name, value) in SYSCTLS {
        let target = Path::new("/proc/sys").join(name);
        if target.exists() {
            let file = sysctls.join(name.replace('/', "."));
            fs::write(&file, format!("{value}\n"))?;
            mount_bind(&file, &target).with_context(|| format!("can't mount over {}", target.display()))?;
        }
    }
    if !Path::new("/sys/kernel/tracing/events").exists() && Path::new("/sys/kernel/tracing").exists() {
        // The daemon's pod reads tracepoints there. A kernel without it has no use for them either.
        let _ = mount("tracefs", "/sys/kernel/tracing", "tracefs", MountFlags::empty(), None);
    }
    for own in OWN {
        mount_bind(state.join("node").join(&own[1..]), own)
            .with_context(|| format!("can't mount over {own}"))?;
    }
    let length = PODS.split('/').nth(1).unwrap_or("24");
    for line in [
        "link set lo up".to_owned(),
        "link add cni0 type bridge".to_owned(),
        format!("addr add {IP}/{length} dev cni0"),
        "link set cni0 up".to_owned(),
        // kube-proxy rewrites what is sent there; without a route it would not even be sent.
        format!("route add {SERVICES} dev cni0"),
    ] {
        sh::output(&mut sh::command("ip", line.split(' ')))?;
    }
    // From pod to service to pod; pods have no route beyond the services.
    fs::write("/proc/sys/net/ipv4/ip_forward", "1")
        .context("can't set ip_forward in the node's namespace")?;
    let pause = state.join("bin/pause");
    let error = Command::new(&pause).arg(format!("{}/", state.display())).exec();
    Err(error).with_context(|| format!("can't become {}", pause.display()))
}

/// It has become `pause`, which comes last.
fn is_ready(cluster: &Cluster) -> bool {
    let executable = cluster.namespace_pid().map(|pid| fs::read_link(format!("/proc/{pid}/exe")));
    matches!(executable, Some(Ok(path)) if path == cluster.state.join("bin/pause"))
}

fn mount_point_lock() -> Result<fs::File> {
    let directory = fs::File::open("/var/lib").context("can't open /var/lib")?;
    rustix::fs::flock(&directory, FlockOperation::LockExclusive).context("can't lock /var/lib")?;
    Ok(directory)
}

/// A new file under the old name: the old one may be running.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let new = to.with_extension("new");
    fs::copy(from, &new)
        .and_then(|_| fs::rename(&new, to))
        .with_context(|| format!("can't copy {} to {}", from.display(), to.display()))
}

fn cgroups_in(mountinfo: &str) -> Vec<PathBuf> {
    let mounts = mountinfo.lines().filter_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        let kind = kind.split(' ').next()?;
        ["cgroup", "cgroup2"].contains(&kind).then(|| place.split(' ').nth(4).map(PathBuf::from))?
    });
    mounts.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup_mounts_of_both_versions_are_found() {
        let mountinfo = "\
24 1 0:22 / /sys rw,relatime - sysfs sysfs rw
30 24 0:26 / /sys/fs/cgroup rw,relatime shared:4 - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
40 30 0:36 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
        assert_eq!(
            cgroups_in(mountinfo),
            [PathBuf::from("/sys/fs/cgroup/cpu"), PathBuf::from("/sys/fs/cgroup/unified")]
        );
    }
}
