//! The capabilities that the daemon needs, each with what doesn't work without it, and which of them it lacks.
//!
//! Looks and tells; takes none and drops none: that is the manifest's business.

use std::{fmt, fs, io, path::Path};

/// A capability that the daemon needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// To signal processes of other users.
    Kill,
    /// To load programs and maps.
    Bpf,
    /// To attach programs to tracepoints and to perf events.
    Perfmon,
    /// To look at what belongs to processes of other users: their root directory, their namespaces.
    SysPtrace,
    /// To enter the node's cgroup namespace, and on some kernels to open perf events.
    SysAdmin,
}

/// Those that it needs all the time.
pub const NEEDED: [Privilege; 4] =
    [Privilege::Kill, Privilege::Bpf, Privilege::Perfmon, Privilege::SysPtrace];
/// The one that it needs when it starts, and then gives up; all but one thread, where the kernel asks for it later, too.
pub const AT_START: Privilege = Privilege::SysAdmin;

impl Privilege {
    /// Its name, as manifests have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "KILL",
            Self::Bpf => "BPF",
            Self::Perfmon => "PERFMON",
            Self::SysPtrace => "SYS_PTRACE",
            Self::SysAdmin => "SYS_ADMIN",
        }
    }

    /// Its number, as the kernel counts.
    pub fn bit(self) -> u32 {
        match self {
            Self::Kill => 5,
            Self::SysPtrace => 19,
            Self::SysAdmin => 21,
            Self::Perfmon => 38,
            Self::Bpf => 39,
        }
    }

    /// What doesn't work without it.
    pub fn without(self) -> &'static str {
        match self {
            Self::Kill => "processes of other users can't be signalled",
            Self::Bpf => "eBPF programs can't be loaded: kills go through pidfds alone",
            Self::Perfmon => "eBPF programs can't be attached: kills go through pidfds alone",
            Self::SysPtrace => {
                "IO stress can't make its files in a container, and which executable a process runs is not to be seen"
            }
            Self::SysAdmin => {
                "on nodes with version 2 cgroups no stressor can be placed, and where kernel.perf_event_paranoid is 3 or \
                 more (Debian, Ubuntu) no trigger on a system call or a connection can be armed"
            }
        }
    }
}

impl fmt::Display for Privilege {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the daemon lacks the capability {}: {}", self.name(), self.without())
    }
}

/// Those that this process lacks.
pub fn missing(proc: &Path) -> io::Result<Vec<Privilege>> {
    let status = fs::read_to_string(proc.join("self/status"))?;
    effective(&status).map(lacking).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// For people, behind an error of the kernel's that a missing capability explains; else nothing.
pub fn hint(error: &io::Error, needed: Privilege) -> String {
    let denied = error.kind() == io::ErrorKind::PermissionDenied;
    let lacks = denied && missing(Path::new("/proc")).is_ok_and(|missing| missing.contains(&needed));
    if lacks { format!(" ({needed})") } else { String::new() }
}

fn effective(status: &str) -> Option<u64> {
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(mask.trim(), 16).ok()
}

fn lacking(effective: u64) -> Vec<Privilege> {
    let has = |bit: u32| effective >> bit & 1 == 1;
    let given = |privilege: Privilege| match privilege {
        Privilege::Kill | Privilege::SysPtrace | Privilege::SysAdmin => has(privilege.bit()),
        // The kernel takes this one for either of the two, too.
        Privilege::Bpf | Privilege::Perfmon => has(privilege.bit()) || has(Privilege::SysAdmin.bit()),
    };
    NEEDED.into_iter().filter(|privilege| !given(*privilege)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_read_from_the_effective_set() {
        let of =
            |mask: &str| lacking(effective(&format!("Name:\tx\nCapPrm:\tffff\nCapEff:\t{mask}\n")).unwrap());
        assert_eq!(of("0000000000000000"), NEEDED);
        assert_eq!(of("000000c000080020"), []);
        assert_eq!(of("0000008000080020"), [Privilege::Perfmon]);
        assert_eq!(of("0000000000200000"), [Privilege::Kill, Privilege::SysPtrace]);
        assert_eq!(effective("CapEff:\tnonsense\n"), None);
    }

    #[test]
    fn the_manifest_adds_exactly_these() {
        let manifest = include_str!("../../deploy/daemon.yaml");
        let (_, added) = manifest.split_once("            add:\n").unwrap();
        let listed = added.lines().take_while(|line| line.starts_with("            "));
        let names = listed.filter_map(|line| line.trim().strip_prefix("- ")?.split_whitespace().next());
        let wanted = NEEDED.into_iter().chain([AT_START]).map(Privilege::name);
        assert_eq!(names.collect::<Vec<_>>(), wanted.collect::<Vec<_>>());
    }
}
