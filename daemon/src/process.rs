//! One process, held by a pidfd, so that what is checked is what is signalled.
//!
//! A PID alone is never trusted: it is opened first, its start time and cgroup are read afterwards, and the signal goes
//! through the descriptor. Refuses to signal what it could not identify. Waiting is by the descriptor: nothing polls.

use std::time::Duration;
use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};
use tokio::io::{Interest, unix::AsyncFd};

use crate::{
    cgroup::{CgroupError, Memberships},
    privileges::{Privilege, hint},
    text,
};

/// What can go wrong with a process.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// There is no such process, or not any more.
    #[error("process {pid} is gone")]
    Gone {
        /// The process.
        pid: i32,
    },
    /// Another process has the PID now.
    #[error("process {pid} started at {found}, not at {wanted}: another process has its PID now")]
    Reused {
        /// The process.
        pid: i32,
        /// The start time that was expected, in ticks since boot.
        wanted: u64,
        /// The start time that was found.
        found: u64,
    },
    /// The pidfd could not be had.
    #[error("opening process {pid}: {source}")]
    Open {
        /// The process.
        pid: i32,
        /// Why.
        source: io::Error,
    },
    /// A file of `/proc` could not be read or understood.
    #[error("reading {}: {source}{}", path.display(), hint(source, Privilege::SysPtrace))]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel refused the signal.
    #[error("sending signal {signal} to process {pid}: {source}{}", hint(source, Privilege::Kill))]
    Signal {
        /// The process.
        pid: i32,
        /// The signal.
        signal: i32,
        /// Why.
        source: io::Error,
    },
    /// Waiting for the end was not possible.
    #[error("waiting for process {pid}: {source}")]
    Wait {
        /// The process.
        pid: i32,
        /// Why.
        source: io::Error,
    },
    /// Its cgroup could not be read.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
}

/// What the process does with a signal that it gets from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// The default action is taken.
    Default,
    /// It has a handler.
    Caught,
    /// It is thrown away.
    Ignored,
    /// It waits until the process unblocks it.
    Blocked,
}

/// A process that can't be mistaken for another.
#[derive(Debug)]
pub struct Process {
    pid: i32,
    start: u64,
    parent: i32,
    pidfd: OwnedFd,
    proc: PathBuf,
}

impl Process {
    /// Opens `pid`, and reads when it started.
    pub fn open(proc: &Path, pid: i32) -> Result<Self, ProcessError> {
        let id = Pid::from_raw(pid).ok_or(ProcessError::Gone { pid })?;
        let pidfd = pidfd_open(id, PidfdFlags::empty()).map_err(|errno| match errno {
            rustix::io::Errno::SRCH => ProcessError::Gone { pid },
            other => ProcessError::Open { pid, source: other.into() },
        })?;
        let Stat { parent, start } = stat(proc, pid)?;
        let process = Self { pid, start, parent, pidfd, proc: proc.to_owned() };
        // While what the descriptor holds is not reaped, nobody else can have its PID: so what was read was its.
        process.send(0)?;
        Ok(process)
    }

    /// Opens `pid`, and refuses it if it is not the process that started at `start`.
    pub fn open_started(proc: &Path, pid: i32, start: u64) -> Result<Self, ProcessError> {
        let process = Self::open(proc, pid)?;
        if process.start != start {
            return Err(ProcessError::Reused { pid, wanted: start, found: process.start });
        }
        Ok(process)
    }

    /// Its PID, in our PID namespace.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// When it started, in ticks since boot.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// The PID of its parent, when it was opened.
    pub fn parent(&self) -> i32 {
        self.parent
    }

    /// How long ago it started; `None` when the clock does not tell.
    pub fn age(&self) -> Option<Duration> {
        let ticks = rustix::param::clock_ticks_per_second();
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let now = Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32);
        now.checked_sub(Duration::from_millis(self.start.checked_mul(1000)?.checked_div(ticks)?))
    }

    /// CPU time that it has used, all threads together.
    pub fn cpu_time(&self) -> Option<Duration> {
        let text = text::read(&self.file("stat")).ok()?;
        let mut fields = text.rsplit_once(')')?.1.split_whitespace().skip(11);
        let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let ticks = rustix::param::clock_ticks_per_second();
        Some(Duration::from_millis((user + system) * 1000 / ticks))
    }

    /// Memory of its own that is resident.
    pub fn resident(&self) -> Option<u64> {
        let text = text::read(&self.file("status")).ok()?;
        let kib = text.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
        Some(kib.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
    }

    /// Its descriptor, for a process that shall end with it.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Its name.
    pub fn comm(&self) -> String {
        let text = text::read(&self.file("comm")).unwrap_or_default();
        text.trim_end_matches('\n').to_owned()
    }

    /// The executable that it runs, as a path inside its own root. Needs the right to trace it.
    pub fn exe(&self) -> Result<PathBuf, ProcessError> {
        let link = |name: &str| {
            let path = self.file(name);
            fs::read_link(&path).map_err(|source| self.read_error(path, source))
        };
        let (exe, root) = (link("exe")?, link("root")?);
        // If it ended meanwhile, what was read may be another's.
        self.send(0)?;
        Ok(inside(&exe, &root))
    }

    /// Its cgroups, now.
    pub fn memberships(&self) -> Result<Memberships, ProcessError> {
        let memberships = Memberships::of(&self.proc, self.pid);
        // If it ended meanwhile, what was read may be another's.
        self.send(0)?;
        Ok(memberships?)
    }

    /// What it does with `signal`, now.
    pub fn disposition(&self, signal: i32) -> Result<Disposition, ProcessError> {
        let path = self.file("status");
        let text = text::read(&path).map_err(|source| self.read_error(path, source))?;
        Ok(disposition(&text, signal))
    }

    /// Sends `signal` to it, and to no other; 0 only asks whether it is still there.
    pub fn send(&self, signal: i32) -> Result<(), ProcessError> {
        // The typed call of rustix knows neither signal 0 nor all real-time signals.
        // SAFETY: a descriptor that we own, two numbers, and no siginfo.
        let result = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.pidfd.as_raw_fd(),
                signal,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        if result == 0 {
            // A zombie takes every signal, and nothing comes of it.
            return if signal == 0 && self.has_ended() {
                Err(ProcessError::Gone { pid: self.pid })
            } else {
                Ok(())
            };
        }
        let source = io::Error::last_os_error();
        match source.raw_os_error() {
            Some(libc::ESRCH) => Err(ProcessError::Gone { pid: self.pid }),
            _ => Err(ProcessError::Signal { pid: self.pid, signal, source }),
        }
    }

    /// Waits until it has ended (a zombie has).
    pub async fn exited(&self) -> Result<(), ProcessError> {
        let wait = |source| ProcessError::Wait { pid: self.pid, source };
        let own = self.pidfd.try_clone().map_err(wait)?;
        // SAFETY: the descriptor is owned by what is registered, and stays the same.
        let fd = unsafe { AsyncFd::register_with_interest(own, Interest::READABLE) }
            .map_err(|error| wait(error.into()))?;
        fd.readable().await.map_err(wait)?.retain_ready();
        Ok(())
    }

    /// How it ended, as `wait` would tell its parent; `None` while it runs, and where the kernel does not say.
    pub fn exit_status(&self) -> Option<u32> {
        // As long as nobody has reaped it `/proc` tells; afterwards the descriptor does, since Linux 6.15.
        match text::read(&self.file("stat")) {
            Ok(stat) if parse_stat(&stat).is_some_and(|stat| stat.start == self.start) => parse_exit(&stat),
            Ok(_) | Err(_) => exit_by(&self.pidfd),
        }
    }

    /// Whether it has ended (a zombie has): its descriptor can be read from then on.
    fn has_ended(&self) -> bool {
        self.ends_within(Duration::ZERO)
    }

    /// Whether it has ended, or does within `limit`; blocks that long at most.
    pub fn ends_within(&self, limit: Duration) -> bool {
        let mut asked = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let limit = Timespec::try_from(limit).unwrap_or_default();
        // An error of poll says nothing; ESRCH and the wait tell later.
        matches!(poll(&mut asked, Some(&limit)), Ok(1..))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.proc.join(self.pid.to_string()).join(name)
    }

    fn read_error(&self, path: PathBuf, source: io::Error) -> ProcessError {
        match source.raw_os_error() {
            Some(libc::ENOENT | libc::ESRCH) => ProcessError::Gone { pid: self.pid },
            _ => ProcessError::Read { path, source },
        }
    }
}

/// When `pid` started, in ticks since boot.
pub fn start_time(proc: &Path, pid: i32) -> Result<u64, ProcessError> {
    stat(proc, pid).map(|stat| stat.start)
}

/// What is read of `/proc/PID/stat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    parent: i32,
    start: u64,
}

fn stat(proc: &Path, pid: i32) -> Result<Stat, ProcessError> {
    let path = proc.join(pid.to_string()).join("stat");
    let text = match text::read(&path) {
        Ok(text) => text,
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => {
            return Err(ProcessError::Gone { pid });
        }
        Err(source) => return Err(ProcessError::Read { path, source }),
    };
    parse_stat(&text).ok_or_else(|| ProcessError::Read { path, source: io::ErrorKind::InvalidData.into() })
}

/// The path `exe` below `root`. What was removed while it runs is shown with a mark behind it.
fn inside(exe: &Path, root: &Path) -> PathBuf {
    let path = Path::new("/").join(exe.strip_prefix(root).unwrap_or(exe));
    match path.to_str().and_then(|path| path.strip_suffix(" (deleted)")) {
        Some(path) => PathBuf::from(path),
        None => path,
    }
}

fn parse_stat(stat: &str) -> Option<Stat> {
    // The name may hold spaces and parentheses: the fields go on after the last one. Start time is field 22.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some(Stat { parent: fields.nth(1)?.parse().ok()?, start: fields.nth(17)?.parse().ok()? })
}

/// The status of a zombie. Without the right to trace it the kernel shows 0; and before Linux 5.17 that is what it shows
/// when the first thread has ended before the others were killed. So 0 is not believed.
fn parse_exit(stat: &str) -> Option<u32> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    // State is field 3, the exit code field 52.
    let ended = matches!(fields.next()?, "Z" | "X");
    let status = fields.nth(48)?.parse().ok()?;
    (ended && status != 0).then_some(status)
}

/// The kernel's `struct pidfd_info`, in its first published size.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroup: u64,
    ids: [u32; 11],
    exit_code: i32,
}

const _: () = assert!(size_of::<PidfdInfo>() == 64);

const PIDFD_GET_INFO: libc::c_ulong = 0xc040_ff0b;
const PIDFD_INFO_EXIT: u64 = 1 << 3;

/// The status of a process that has been reaped. It is the first thread's, so 0 is not believed here either.
fn exit_by(pidfd: &OwnedFd) -> Option<u32> {
    let mut info = PidfdInfo { mask: PIDFD_INFO_EXIT, ..PidfdInfo::default() };
    // SAFETY: the kernel fills in as many bytes as the request names, which is the size of the struct.
    let done = unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO, &raw mut info) };
    let told = done == 0 && info.mask & PIDFD_INFO_EXIT != 0 && info.exit_code != 0;
    told.then_some(info.exit_code.cast_unsigned())
}

fn disposition(status: &str, signal: i32) -> Disposition {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let has = |name: &str| {
        let mask = field(name).and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or(0);
        (1..=64).contains(&signal) && mask & (1 << (signal - 1)) != 0
    };
    if matches!(signal, libc::SIGKILL | libc::SIGSTOP) {
        return Disposition::Default;
    }
    // The first process of a PID namespace gets only what it has a handler for, SIGKILL and SIGSTOP apart.
    let ids = field("NSpid:").map(|ids| ids.split_whitespace().collect::<Vec<_>>()).unwrap_or_default();
    let first = ids.len() > 1 && ids.last() == Some(&"1");
    if has("SigBlk:") {
        Disposition::Blocked
    } else if has("SigIgn:") {
        Disposition::Ignored
    } else if has("SigCgt:") {
        Disposition::Caught
    } else if first {
        Disposition::Ignored
    } else {
        Disposition::Default
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parent_and_start_time_are_found_behind_any_name() {
        let fields: Vec<String> = (3..=52).map(|field| field.to_string()).collect();
        let stat = format!("77 (a) b (c)) {}", fields.join(" "));
        assert_eq!(parse_stat(&stat), Some(Stat { parent: 4, start: 22 }));
        assert_eq!(parse_stat("77 (x) S 1"), None);
    }

    #[test]
    fn a_name_that_is_no_text_hides_no_start_time() {
        let dir = tempfile::tempdir().unwrap();
        let fields: Vec<String> = (3..=52).map(|field| field.to_string()).collect();
        let mut stat = b"77 (\xd0\xbe\xd0\xb1\xd1) ".to_vec();
        stat.extend(fields.join(" ").bytes());
        fs::create_dir(dir.path().join("77")).unwrap();
        fs::write(dir.path().join("77/stat"), stat).unwrap();
        assert_eq!(start_time(dir.path(), 77).unwrap(), 22);
    }

    #[test]
    fn only_of_a_zombie_a_status_is_read_and_never_zero() {
        let stat = |state: &str, status: u32| {
            let fields: Vec<String> = (4..=51).map(|field| field.to_string()).collect();
            format!("77 (a) b (c)) {state} {} {status}", fields.join(" "))
        };
        assert_eq!(parse_exit(&stat("Z", 9)), Some(9));
        assert_eq!(parse_exit(&stat("Z", 0)), None);
        assert_eq!(parse_exit(&stat("S", 9)), None);
        assert_eq!(parse_exit("77 (x) Z 1"), None);
    }

    #[test]
    fn the_status_is_known_before_and_after_it_is_reaped() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::open(Path::new("/proc"), child.id() as i32).unwrap();
        assert_eq!(process.exit_status(), None);
        process.send(libc::SIGTERM).unwrap();
        while !process.has_ended() {
            std::thread::yield_now();
        }
        assert_eq!(process.exit_status(), Some(libc::SIGTERM as u32));
        child.wait().unwrap();
        // Only newer kernels tell afterwards; none tells anything else.
        assert!(matches!(process.exit_status(), None | Some(15)), "{:?}", process.exit_status());
    }

    #[test]
    fn an_executable_is_a_path_inside_the_root() {
        let of = |exe: &str, root: &str| inside(Path::new(exe), Path::new(root)).display().to_string();
        assert_eq!(of("/bin/x", "/"), "/bin/x");
        assert_eq!(of("/srv/root/bin/x", "/srv/root"), "/bin/x");
        assert_eq!(of("/srv/rooted/x", "/srv/root"), "/srv/rooted/x");
        assert_eq!(of("/bin/x (deleted)", "/"), "/bin/x");
    }

    #[test]
    fn dispositions() {
        let status = |ids: &str, blocked: u64, ignored: u64, caught: u64| {
            format!(
                "NSpid:\t{ids}\nSigBlk:\t{blocked:016x}\nSigIgn:\t{ignored:016x}\nSigCgt:\t{caught:016x}\n"
            )
        };
        let term = 1 << (libc::SIGTERM - 1);
        assert_eq!(disposition(&status("9", 0, 0, 0), libc::SIGTERM), Disposition::Default);
        assert_eq!(disposition(&status("9", term, 0, 0), libc::SIGTERM), Disposition::Blocked);
        assert_eq!(disposition(&status("9", 0, term, 0), libc::SIGTERM), Disposition::Ignored);
        assert_eq!(disposition(&status("9\t1", 0, 0, term), libc::SIGTERM), Disposition::Caught);
        assert_eq!(disposition(&status("9\t1", 0, 0, 0), libc::SIGTERM), Disposition::Ignored);
        assert_eq!(disposition(&status("9\t1", 0, 0, 0), libc::SIGKILL), Disposition::Default);
        assert_eq!(disposition(&status("1", 0, 0, 0), libc::SIGTERM), Disposition::Default);
    }

    #[test]
    fn a_zombie_is_gone() {
        let proc = Path::new("/proc");
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id() as i32;
        let process = Process::open(proc, pid).unwrap();
        assert!(process.send(0).is_ok());
        process.send(libc::SIGKILL).unwrap();
        // Not reaped before `wait`: the PID stays its own.
        while !process.has_ended() {
            std::thread::yield_now();
        }
        assert!(matches!(process.send(0), Err(ProcessError::Gone { .. })));
        assert!(matches!(Process::open(proc, pid), Err(ProcessError::Gone { .. })));
        assert!(matches!(process.memberships(), Err(ProcessError::Gone { .. })));
        child.wait().unwrap();
    }

    #[test]
    fn another_start_time_is_refused() {
        let own = std::process::id() as i32;
        let start = start_time(Path::new("/proc"), own).unwrap();
        assert!(Process::open_started(Path::new("/proc"), own, start).is_ok());
        let refused = Process::open_started(Path::new("/proc"), own, start + 1);
        assert!(matches!(refused, Err(ProcessError::Reused { .. })));
    }
}
