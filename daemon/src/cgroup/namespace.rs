//! The node's cgroup namespace, and what it takes to get there.
//!
//! On nodes with version 2 the runtime gives the daemon a cgroup namespace of its own, and where the hierarchy is mounted
//! with `nsdelegate` the kernel lets nobody put a process into a cgroup outside of his namespace. The daemon enters the
//! node's once, when it starts and before it has another thread, and gives up the capability for that at once.

use std::{
    fs::{self, File},
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use rustix::thread::{
    CapabilitySet, LinkNameSpaceType, capabilities, move_into_link_name_space, set_capabilities,
    set_no_new_privs,
};

/// The kernel's number of the first cgroup namespace, the same on every machine.
const FIRST: &str = "cgroup:[4026531835]";

/// The node's namespace was not entered.
#[derive(Debug, thiserror::Error)]
#[error("{what} {}: {source}", path.display())]
pub struct NamespaceError {
    what: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// Puts this thread, and those that it will start, into the cgroup namespace of the node's first process. Says whether
/// it was in another.
pub fn enter_nodes(proc: &Path) -> Result<bool, NamespaceError> {
    let (nodes, own) = (proc.join("1/ns/cgroup"), proc.join("self/ns/cgroup"));
    let error = |what, path: &Path| {
        let path = path.to_owned();
        move |source: io::Error| NamespaceError { what, path, source }
    };
    let looked_at = |path: &Path| fs::read_link(path).map_err(error("looking at", path));
    let own = looked_at(&own)?;
    // Where it is the kernel's first, the node's first process need not be looked at, which takes a capability.
    if own == Path::new(FIRST) || own == looked_at(&nodes)? {
        return Ok(false);
    }
    let namespace = File::open(&nodes).map_err(error("opening", &nodes))?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::ControlGroup))
        .map_err(|errno| error("entering", &nodes)(errno.into()))?;
    Ok(true)
}

/// Gives up what this thread needs for [`enter_nodes`] alone, also for what it starts: the kernel would give it back to a
/// program that root starts, and would then let nobody who has less put it into another cpuset.
pub fn give_up_administration() -> io::Result<()> {
    let mut own = capabilities(None)?;
    for set in [&mut own.effective, &mut own.permitted, &mut own.inheritable] {
        set.remove(CapabilitySet::SYS_ADMIN);
    }
    set_no_new_privs(true)?;
    Ok(set_capabilities(None, own)?)
}
