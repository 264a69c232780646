//! The cluster's cgroups: below one in each hierarchy are all pods, and, where processors are shared out, the components.
//!
//! Each weighs what it weighs on a node that kubeadm has set up with systemd. Left in the machine's topmost cgroup, every
//! single thread of a component would weigh as much as all pods together, Squall's among them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::Cluster;

/// Below the cluster's own cgroup: what weighs how much, in shares of version 1 (1024 for a processor). A component is in
/// the one of its name. `kubepods` is the kubelet's, as heavy as the node has processors.
///
/// kubeadm's static pods ask for these (`kubeadm/app/constants`, `phases/controlplane`); systemd gives each service 1024.
const WEIGHTS: [(&str, u64); 9] = [
    ("system", 1024),
    ("system/containerd", 1024),
    ("system/kubelet", 1024),
    ("system/kube-proxy", 1024),
    ("kubepods/control-plane", 664),
    ("kubepods/control-plane/etcd", 102),
    ("kubepods/control-plane/kube-apiserver", 256),
    ("kubepods/control-plane/kube-controller-manager", 204),
    ("kubepods/control-plane/kube-scheduler", 102),
];

/// Makes the cluster's cgroup in each hierarchy, in version 2 with all controllers; and those of the components.
pub fn make(cluster: &Cluster) -> Result<()> {
    for mount in mounts()? {
        let top = mount.join(cluster.cgroup());
        fs::create_dir_all(&top).with_context(|| format!("can't make {}", top.display()))?;
        if mount == Path::new("/sys/fs/cgroup") {
            for controller in fs::read_to_string(mount.join("cgroup.controllers"))?.split_whitespace() {
                // One that can't be had here is the kubelet's to complain about.
                let _ = fs::write(mount.join("cgroup.subtree_control"), format!("+{controller}"));
            }
        }
        let Some(weigh) = weigher(&top) else { continue };
        let processors = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
        weigh(&top, 1024 * (processors + 1))?;
        for (path, shares) in WEIGHTS {
            let mut directory = top.clone();
            for part in Path::new(path) {
                // Of version 2 only; a file that is not there is not written.
                let control = directory.join("cgroup.subtree_control");
                if control.exists() {
                    fs::write(&control, "+cpu")
                        .with_context(|| format!("can't write {}", control.display()))?;
                }
                directory.push(part);
                fs::create_dir_all(&directory)
                    .with_context(|| format!("can't make {}", directory.display()))?;
            }
            weigh(&directory, shares)?;
        }
    }
    Ok(())
}

/// Puts a component that was started where it is weighed.
pub fn place(cluster: &Cluster, component: &str, pid: i32) -> Result<()> {
    let own = WEIGHTS.iter().map(|(path, _)| Path::new(path)).find(|path| path.ends_with(component));
    let Some(own) = own else { return Ok(()) };
    for top in mounts()?.into_iter().map(|mount| mount.join(cluster.cgroup())) {
        if weigher(&top).is_some() {
            let file = top.join(own).join("cgroup.procs");
            fs::write(&file, pid.to_string()).with_context(|| format!("can't write {}", file.display()))?;
        }
    }
    Ok(())
}

type Weigh = fn(&Path, u64) -> Result<()>;

/// How a cgroup of this hierarchy is weighed, if it shares out processors.
fn weigher(top: &Path) -> Option<Weigh> {
    fn write(file: &Path, value: u64) -> Result<()> {
        fs::write(file, value.to_string()).with_context(|| format!("can't write {}", file.display()))
    }
    if top.join("cpu.shares").exists() {
        return Some(|cgroup, shares| write(&cgroup.join("cpu.shares"), shares));
    }
    let weigh: Weigh = |cgroup, shares| write(&cgroup.join("cpu.weight"), weight(shares));
    top.join("cpu.weight").exists().then_some(weigh)
}

/// Shares of version 1 (2 to 262144) as a weight of version 2 (1 to 10000), as the kubelet and runc translate them.
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

/// Where each cgroup hierarchy is mounted.
pub fn mounts() -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("can't read /proc/self/mountinfo")?;
    Ok(mounted_in(&mounts))
}

fn mounted_in(mountinfo: &str) -> Vec<PathBuf> {
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
    use crate::cluster::components;

    #[test]
    fn cgroup_mounts_of_both_versions_are_found() {
        let mountinfo = "\
24 1 0:22 / /sys rw,relatime - sysfs sysfs rw
30 24 0:26 / /sys/fs/cgroup rw,relatime shared:4 - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
40 30 0:36 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
        assert_eq!(
            mounted_in(mountinfo),
            [PathBuf::from("/sys/fs/cgroup/cpu"), PathBuf::from("/sys/fs/cgroup/unified")]
        );
    }

    #[test]
    fn every_component_but_the_forwarder_is_weighed_and_what_holds_others_comes_before_them() {
        for component in components::ALL {
            let found = WEIGHTS.iter().filter(|(path, _)| Path::new(path).ends_with(component)).count();
            assert_eq!(found, usize::from(component != "forward"), "{component}");
        }
        let control: u64 = WEIGHTS
            .iter()
            .filter(|(path, _)| path.starts_with("kubepods/control-plane/"))
            .map(|one| one.1)
            .sum();
        assert!(WEIGHTS.contains(&("kubepods/control-plane", control)), "{control}");
    }

    #[test]
    fn shares_are_translated_as_runc_does() {
        assert_eq!([2, 102, 1024, 2048, 262_144].map(weight), [1, 4, 39, 79, 10_000]);
    }
}
