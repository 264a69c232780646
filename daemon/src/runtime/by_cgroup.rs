//! Containers of a runtime that there is no client for: found by their ID among the kubelet's cgroups.
//!
//! The kubelet itself makes the cgroup of a pod and names it after the UID, so that much is certain; the container's name
//! is seen in its mounts. Of namespace and pod name the node's kernel knows nothing, and they are left open. Reads only.

use std::path::Path;

use async_trait::async_trait;

use super::{ContainerInfo, Runtime, RuntimeError};
use crate::{cgroup::CgroupRoot, process::start_time, text};

const NAME: &str = "none";

/// The way without a runtime.
pub struct ByCgroup {
    cgroups: CgroupRoot,
}

impl ByCgroup {
    /// Looks among these cgroups.
    pub fn new(cgroups: CgroupRoot) -> Self {
        Self { cgroups }
    }
}

#[async_trait]
impl Runtime for ByCgroup {
    fn scheme(&self) -> &'static str {
        NAME
    }

    fn socket(&self) -> String {
        String::new()
    }

    async fn check(&self) -> Result<(), RuntimeError> {
        Ok(())
    }

    async fn container(&self, id: &str) -> Result<ContainerInfo, RuntimeError> {
        let gone = |why: &str| RuntimeError::Gone { id: id.to_owned(), why: why.to_owned() };
        let found =
            self.cgroups.pods_container(id).ok_or_else(|| gone("the kubelet has no cgroup for it"))?;
        let processes = found.processes();
        let proc = self.cgroups.proc();
        let init_pid = first(proc, &processes).ok_or_else(|| gone("its cgroup is empty"))?;
        let mounts = text::read(&proc.join(init_pid.to_string()).join("mountinfo"));
        let name = mounts.ok().and_then(|mounts| container_name(&mounts, &found.pod_uid));
        Ok(ContainerInfo {
            init_pid,
            namespace: None,
            pod: None,
            pod_uid: Some(found.pod_uid),
            name,
            by_cgroup: true,
        })
    }

    async fn exit_code(&self, _: &str) -> Result<i32, RuntimeError> {
        let message = "without the runtime nobody tells exit codes".to_owned();
        Err(RuntimeError::Refused { runtime: NAME, call: "wait", message })
    }
}

/// The container's first process: of those whose parent is not among them, the one that was there first. What is
/// executed in a container later has its parent outside, too.
fn first(proc: &Path, processes: &[i32]) -> Option<i32> {
    let outside = |pid: &&i32| parent(proc, **pid).is_some_and(|parent| !processes.contains(&parent));
    let started = |pid: &i32| Some((start_time(proc, *pid).ok()?, *pid));
    processes.iter().filter(outside).filter_map(started).min().map(|(_, pid)| pid)
}

fn parent(proc: &Path, pid: i32) -> Option<i32> {
    let status = text::read(&proc.join(pid.to_string()).join("status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

/// The kubelet keeps a container's termination message at `…/pods/UID/containers/NAME/…` and mounts it from there.
fn container_name(mounts: &str, pod_uid: &str) -> Option<String> {
    let before = format!("/pods/{pod_uid}/containers/");
    mounts.lines().find_map(|line| {
        let (_, rest) = line.split(' ').nth(3)?.split_once(&before)?;
        rest.split('/').next().map(str::to_owned)
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const UID: &str = "11111111-2222-3333-4444-555555555555";

    #[test]
    fn the_first_process_is_the_oldest_whose_parent_is_outside() {
        let dir = tempfile::tempdir().unwrap();
        // PID, parent, start: a child, what was executed later, the first one, a child with a smaller number.
        for (pid, parent, start) in [(50, 40, 900), (60, 1, 800), (40, 1, 700), (30, 40, 950)] {
            let proc = dir.path().join(pid.to_string());
            fs::create_dir(&proc).unwrap();
            // Its name is cut inside a character.
            let status = [b"Name:\t\xd1\nPPid:\t", parent.to_string().as_bytes(), b"\n"].concat();
            fs::write(proc.join("status"), status).unwrap();
            let zeros = "0 ".repeat(17);
            fs::write(proc.join("stat"), format!("{pid} (x) S {parent} {zeros}{start} 0")).unwrap();
        }
        assert_eq!(first(dir.path(), &[50, 60, 40, 30, 99]), Some(40));
        assert_eq!(first(dir.path(), &[]), None);
    }

    #[test]
    fn the_containers_name_is_in_its_mounts() {
        let mounts = format!(
            "1 2 0:1 / / rw - overlay overlay rw\n3 1 0:2 /var/lib/kubelet/pods/{UID}/containers/app/5e3 /dev/termination-log rw - ext4 /dev/x rw\n"
        );
        assert_eq!(container_name(&mounts, UID).as_deref(), Some("app"));
        assert_eq!(container_name(&mounts, "another"), None);
    }
}
