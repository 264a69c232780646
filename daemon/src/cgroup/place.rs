//! Where in each hierarchy a container is: the directories with its counters and limits, and those that a process of
//! ours has to enter to count as one of its own.

use std::path::PathBuf;

use super::{Membership, Memberships, Target, join};

/// The directory of a container in the hierarchy of one controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The directory.
    pub dir: PathBuf,
    /// Whether it is of version 2.
    pub v2: bool,
}

/// One cgroup that a process of ours has to enter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home {
    /// Its directory.
    pub dir: PathBuf,
    /// How `/proc/PID/cgroup` shows it.
    pub membership: Membership,
}

impl Target {
    /// Where `controller` counts and limits this container; `None`: the node does not, or not for it. `file` is one
    /// that version 2 has only where the controller is enabled.
    pub fn place(&self, controller: &str, file: &str) -> Option<Place> {
        if let Some(v2) = &self.v2
            && v2.dir.join(file).exists()
        {
            return Some(Place { dir: v2.dir.clone(), v2: true });
        }
        let (_, mount) =
            self.root.v1.iter().find(|(names, _)| names.iter().any(|name| name == controller))?;
        let path = self.memberships.v1(controller).filter(|path| *path != "/")?;
        Some(Place { dir: join(mount, path), v2: false })
    }

    /// The cgroups that a process with these memberships is in, as far as they are this container's. In version 2 a
    /// cgroup with controllers for those below it takes no processes, so the place of a process that is there already
    /// is the one that takes another.
    pub fn homes(&self, process: &Memberships) -> Vec<Home> {
        let home = |membership: &Membership| {
            let Membership { subsystems, path } = membership;
            let dir = match subsystems.first() {
                None => {
                    let (v2, ours) = (self.v2.as_ref()?, self.memberships.v2()?);
                    join(&v2.dir, within(ours, path)?)
                }
                Some(name) => {
                    within(self.memberships.v1(name)?, path)?;
                    let (_, mount) = self.root.v1.iter().find(|(names, _)| names.contains(name))?;
                    join(mount, path)
                }
            };
            Some(Home { dir, membership: membership.clone() })
        };
        process.0.iter().filter_map(home).collect()
    }
}

/// What `path` has behind `ours`, if it is that cgroup or one below.
fn within<'a>(ours: &str, path: &'a str) -> Option<&'a str> {
    let rest = path.strip_prefix(ours)?;
    (ours != "/" && (rest.is_empty() || rest.starts_with('/'))).then_some(rest)
}
