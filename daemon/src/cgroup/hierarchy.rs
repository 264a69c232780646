//! The host's hierarchies for cgroups-rs, wherever they are mounted.
//!
//! cgroups-rs takes it that v2 is mounted at `/sys/fs/cgroup`; this hands it the mounts that were found instead, so
//! that it reads cgroups of a hybrid machine, or under another mount point, too. Reads only.

use std::path::{Path, PathBuf};

use cgroups_rs::{Cgroup, Hierarchy, Subsystem, freezer::FreezerController, pid::PidController};

use super::{CgroupRoot, procs_of};

/// One hierarchy of the host, as cgroups-rs wants to see it.
#[derive(Clone, Debug)]
pub struct HostHierarchy {
    mount: PathBuf,
    path: PathBuf,
    v2: bool,
}

impl HostHierarchy {
    /// The hierarchy in which the cgroup directory `dir` lies.
    pub fn at(root: &CgroupRoot, dir: &Path) -> Self {
        let v2 = root.v2.as_deref().filter(|mount| dir.starts_with(mount));
        let v1 = || root.v1.iter().map(|(_, mount)| mount.as_path()).find(|mount| dir.starts_with(mount));
        let mount = v2.or_else(v1).unwrap_or(&root.mount).to_owned();
        let path = dir.strip_prefix(&mount).unwrap_or(Path::new("")).to_owned();
        Self { mount, path, v2: v2.is_some() }
    }

    /// The processes of the cgroup itself, without those of its sub-cgroups.
    pub fn processes(self) -> Vec<i32> {
        // cgroups-rs panics at a name that is no UTF-8, and a container names the cgroups below its own as it likes.
        if self.path.to_str().is_none() {
            return procs_of(&self.mount.join(&self.path));
        }
        let path = self.path.clone();
        let cgroup = Cgroup::load(Box::new(self), path);
        cgroup
            .procs()
            .into_iter()
            .filter_map(|pid| i32::try_from(pid.pid).ok())
            .filter(|pid| *pid > 0)
            .collect()
    }
}

impl Hierarchy for HostHierarchy {
    fn subsystems(&self) -> Vec<Subsystem> {
        // cgroups-rs reads `cgroup.procs` through a controller. In v2 the freezer is part of every cgroup; in v1 the
        // file is the same in each hierarchy, so one controller stands for whichever is mounted there.
        let mount = self.mount.clone();
        vec![if self.v2 {
            Subsystem::Freezer(FreezerController::new(mount, true))
        } else {
            Subsystem::Pid(PidController::new(mount, false))
        }]
    }

    fn root(&self) -> PathBuf {
        self.mount.clone()
    }

    fn root_control_group(&self) -> Cgroup {
        Cgroup::load(Box::new(self.clone()), "")
    }

    fn parent_control_group(&self, path: &str) -> Cgroup {
        let parent = Path::new(path).parent().unwrap_or(Path::new("")).to_owned();
        Cgroup::load(Box::new(self.clone()), parent)
    }

    fn v2(&self) -> bool {
        self.v2
    }
}
