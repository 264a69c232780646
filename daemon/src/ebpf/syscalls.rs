//! System calls by name, as the running kernel knows them: number, and tracepoint.
//!
//! Refuses a name that this architecture has no number for, and one that the running kernel has no tracepoint for.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use syscalls::Sysno;

/// Where the kernel shows its tracepoints; the loader looks at the same places.
const TRACEFS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
/// Names that the kernel's functions, and so its tracepoints, have instead of the calls' own.
const KERNEL_NAMES: [(&str, &str); 6] = [
    ("fstat", "newfstat"),
    ("lstat", "newlstat"),
    ("sendfile", "sendfile64"),
    ("stat", "newstat"),
    ("umount2", "umount"),
    ("uname", "newuname"),
];
/// This many names are told when one is not known.
const SUGGESTED: usize = 8;

/// Why a system call can't be waited for.
#[derive(Debug, thiserror::Error)]
pub enum SyscallError {
    /// tracefs is not there.
    #[error(
        "the kernel's tracepoints are not to be seen: mount tracefs on the node (mount -t tracefs tracefs \
         /sys/kernel/tracing)"
    )]
    NoTracefs,
    /// No system call has that name.
    #[error("there is no system call {name:?}{hint}")]
    Unknown {
        /// The name.
        name: String,
        /// What is like it.
        hint: String,
    },
    /// The call exists, but the running kernel does not trace it.
    #[error("the running kernel can't trace the system call {name}{hint}")]
    Untraced {
        /// The name.
        name: String,
        /// What is like it.
        hint: String,
    },
    /// The tracepoints could not be read.
    #[error("reading {path}: {source}")]
    Read {
        /// The directory, or a file of it.
        path: String,
        /// Why.
        source: io::Error,
    },
}

/// A system call of the running kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Syscall {
    /// Its number.
    pub number: u32,
    /// Its tracepoint, below `syscalls`.
    pub tracepoint: String,
}

impl Syscall {
    /// Looks `name` up in the running kernel.
    pub fn find(name: &str) -> Result<Self, SyscallError> {
        Self::find_in(&events()?, name)
    }

    fn find_in(events: &Path, name: &str) -> Result<Self, SyscallError> {
        let hint = || traced(events).map(|known| hint(&known, name));
        let Ok(number) = name.parse::<Sysno>() else {
            return Err(SyscallError::Unknown { name: name.to_owned(), hint: hint()? });
        };
        let kernel_name =
            KERNEL_NAMES.iter().find(|(own, _)| *own == name).map_or(name, |(_, kernel_name)| kernel_name);
        let tracepoint = format!("sys_enter_{kernel_name}");
        if !events.join(&tracepoint).exists() {
            return Err(SyscallError::Untraced { name: name.to_owned(), hint: hint()? });
        }
        Ok(Self { number: number.id().unsigned_abs(), tracepoint })
    }
}

/// The number of a tracepoint below `syscalls`, by which perf events know it.
pub fn number_of(tracepoint: &str) -> Result<u64, SyscallError> {
    let path = events()?.join(tracepoint).join("id");
    let read = |source| SyscallError::Read { path: path.display().to_string(), source };
    let text = fs::read_to_string(&path).map_err(read)?;
    text.trim().parse().map_err(|_| read(io::ErrorKind::InvalidData.into()))
}

/// Where the tracepoints of system calls are.
fn events() -> Result<PathBuf, SyscallError> {
    let mut events = TRACEFS.iter().map(|mount| Path::new(mount).join("events/syscalls"));
    events.find(|dir| dir.exists()).ok_or(SyscallError::NoTracefs)
}

/// The names of the calls that are traced.
fn traced(events: &Path) -> Result<Vec<String>, SyscallError> {
    let read = |source| SyscallError::Read { path: events.display().to_string(), source };
    let mut names: Vec<String> = fs::read_dir(events)
        .map_err(read)?
        .flatten()
        .filter_map(|entry| Some(entry.file_name().to_str()?.strip_prefix("sys_enter_")?.to_owned()))
        .collect();
    names.sort_unstable();
    Ok(names)
}

fn hint(known: &[String], name: &str) -> String {
    let start = &name[..name.len().min(4)];
    let like = known.iter().filter(|other| {
        other.starts_with(start) || name.contains(other.as_str()) || (name.len() > 2 && other.contains(name))
    });
    let like: Vec<&str> = like.take(SUGGESTED).map(String::as_str).collect();
    let all = format!("{} are known, see syscalls(2)", known.len());
    if like.is_empty() { format!(": {all}") } else { format!("; like it are {}: {all}", like.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(names: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in names {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        dir
    }

    #[test]
    fn names_are_checked_against_the_kernel() {
        let dir = kernel(&["sys_enter_fsync", "sys_enter_fdatasync", "sys_enter_newfstat", "enable"]);
        let find = |name| Syscall::find_in(dir.path(), name);
        assert_eq!(find("fsync").unwrap().tracepoint, "sys_enter_fsync");
        assert_eq!(find("fsync").unwrap().number, libc::SYS_fsync as u32);
        // Its number and its tracepoint go by different names.
        let fstat = Syscall { number: libc::SYS_fstat as u32, tracepoint: "sys_enter_newfstat".into() };
        assert_eq!(find("fstat").unwrap(), fstat);
        let unknown = find("fsyncc").unwrap_err();
        assert!(matches!(&unknown, SyscallError::Unknown { .. }), "{unknown}");
        assert!(unknown.to_string().contains("like it are fsync: 3 are known"), "{unknown}");
        let untraced = find("openat").unwrap_err();
        assert!(matches!(&untraced, SyscallError::Untraced { .. }), "{untraced}");
    }
}
