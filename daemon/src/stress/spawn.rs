//! The daemon's side of a stressor: started, placed in every cgroup of the target, checked, and only then told what to
//! do. Ended by TERM, then KILL; dropping it ends it at once.

use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicI32, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tokio::io::{Interest, unix::AsyncFd};

use super::{
    message::{Said, Task, receive, send},
    stressor::MARK,
};
use crate::{
    cgroup::{CgroupError, Home, Memberships},
    process::{Process, ProcessError, start_time},
    text,
};

/// How long a stressor may take until it works.
const READY: Duration = Duration::from_secs(5);
/// How long it may take to end by itself.
const TERM: Duration = Duration::from_millis(200);
/// How long the kernel may take to end it.
const KILL: Duration = Duration::from_secs(2);
/// What the kernel calls it until it has given itself its name: after the link that it was started by.
const UNNAMED: &str = "exe";

/// Why a stressor did not come about.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// It could not be started.
    #[error("starting a stressor: {0}")]
    Start(#[source] io::Error),
    /// It ended at once, or its PID could not be held.
    #[error("starting a stressor: {0}")]
    Process(#[from] ProcessError),
    /// The kernel did not take it into a cgroup.
    #[error("placing a stressor in {}: {source}{}", dir.display(), hint(source))]
    Place {
        /// The cgroup.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Where it is could not be read.
    #[error("placing a stressor: {0}")]
    Cgroup(#[from] CgroupError),
    /// It is not where it was put.
    #[error("placing a stressor: it is not in {cgroup}, where it was put")]
    Elsewhere {
        /// The cgroup, as `/proc` should show it.
        cgroup: String,
    },
    /// It could not be told what to do.
    #[error("telling a stressor what to do: {0}")]
    Tell(#[source] io::Error),
    /// It says why it can't.
    #[error("{0}")]
    Failed(String),
    /// It ended before it worked.
    #[error("the stressor ended at once: {0}")]
    Ended(ExitStatus),
    /// It does not get to work.
    #[error("the stressor did not get to work within {READY:?}")]
    Late,
}

fn hint(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::ENOENT) => {
            " (the container has ended, or the daemon could not enter the node's cgroup namespace, for which it needs \
             the capabilities SYS_ADMIN and SYS_PTRACE)"
        }
        _ => "",
    }
}

impl SpawnError {
    /// Whether a signal ended it that nobody but the kernel, for want of memory, or an outsider sends.
    pub fn was_killed(&self) -> bool {
        matches!(self, Self::Ended(status) if status.signal() == Some(libc::SIGKILL))
    }
}

/// One stressor.
#[derive(Debug)]
pub struct Stressor {
    child: Child,
    process: Process,
    socket: AsyncFd<OwnedFd>,
}

impl Stressor {
    /// Starts one; it waits for its task and has none of the target's cgroups yet. Not from a thread that may end: the
    /// kernel would end it, too.
    pub fn start(proc: &Path, id: &str) -> Result<Self, SpawnError> {
        let start = |errno: rustix::io::Errno| SpawnError::Start(errno.into());
        let (own, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(start)?;
        rustix::io::ioctl_fionbio(&own, true).map_err(start)?;
        let another = || theirs.try_clone().map(Stdio::from).map_err(SpawnError::Start);
        let child = Command::new("/proc/self/exe")
            .arg0(MARK)
            .arg(owner(proc)?)
            .arg(id)
            .env_clear()
            .stdin(another()?)
            .stdout(another()?)
            .stderr(another()?)
            .spawn()
            .map_err(SpawnError::Start)?;
        let mut child = Unheld(Some(child));
        let process = Process::open(proc, child.pid())?;
        // SAFETY: the descriptor is owned by what is registered, and stays the same.
        let socket = unsafe { AsyncFd::register_with_interest(own, Interest::READABLE) }
            .map_err(|error| SpawnError::Start(error.into()))?;
        match child.0.take() {
            Some(child) => Ok(Self { child, process, socket }),
            None => Err(SpawnError::Late),
        }
    }

    /// Moves it into `homes`, and makes sure that it is there.
    pub fn place(&self, proc: &Path, homes: &[Home]) -> Result<(), SpawnError> {
        let pid = self.process.pid();
        for home in homes {
            fs::write(home.dir.join("cgroup.procs"), pid.to_string())
                .map_err(|source| SpawnError::Place { dir: home.dir.clone(), source })?;
        }
        let found = Memberships::of(proc, pid)?;
        match homes.iter().find(|home| !found.0.contains(&home.membership)) {
            None => Ok(()),
            Some(home) => Err(SpawnError::Elsewhere { cgroup: home.membership.path.clone() }),
        }
    }

    /// Tells it what to do.
    pub fn tell(&self, task: &Task, init: BorrowedFd<'_>, files: &[OwnedFd]) -> Result<(), SpawnError> {
        let descriptors: Vec<BorrowedFd<'_>> =
            std::iter::once(init).chain(files.iter().map(AsFd::as_fd)).collect();
        send(self.socket.as_fd(), task, &descriptors).map_err(SpawnError::Tell)
    }

    /// Tells it that its task has changed.
    pub fn tell_more(&self, task: &Task) -> Result<(), SpawnError> {
        send(self.socket.as_fd(), task, &[]).map_err(SpawnError::Tell)
    }

    /// Returns when it works, with what of that it can't do.
    pub async fn ready(&mut self) -> Result<Option<String>, SpawnError> {
        let ready = async {
            let mut short = None;
            loop {
                match self.listen().await {
                    Heard::Said(Said::Ready) => return Ok(short),
                    Heard::Said(Said::Short(what)) => short = Some(what),
                    Heard::Said(Said::Failed(why)) => return Err(SpawnError::Failed(why)),
                    Heard::Ended(status) => return Err(SpawnError::Ended(status)),
                }
            }
        };
        tokio::time::timeout(READY, ready).await.map_err(|_| SpawnError::Late)?
    }

    /// Waits for its next word, or its end. May be dropped at any time.
    pub async fn listen(&mut self) -> Heard {
        loop {
            let Ok(mut ready) = self.socket.readable().await else { break };
            match ready.try_io(|socket| receive::<Said>(socket.get_ref())) {
                Ok(Ok(Some((said, _)))) => return Heard::Said(said),
                Ok(Ok(None) | Err(_)) => break,
                Err(_) => {}
            }
        }
        // The socket is closed: it has ended, or is about to.
        if self.process.exited().await.is_err() {
            let _ = self.child.kill();
        }
        match self.child.wait() {
            Ok(status) => Heard::Ended(status),
            Err(_) => Heard::Ended(ExitStatus::from_raw(0)),
        }
    }

    /// CPU time that it has used.
    pub fn cpu_time(&self) -> Option<Duration> {
        self.process.cpu_time()
    }

    /// Memory of its own that is resident.
    pub fn resident(&self) -> Option<u64> {
        self.process.resident()
    }

    /// Asks it to end.
    pub fn ask_to_end(&self) {
        // It has ended, or ends by KILL.
        let _ = self.process.send(libc::SIGTERM);
    }

    /// Waits for its end, and makes it. `false`: the kernel has not ended it yet.
    pub async fn end(mut self) -> bool {
        if tokio::time::timeout(TERM, self.process.exited()).await.is_err() {
            let _ = self.process.send(libc::SIGKILL);
            if tokio::time::timeout(KILL, self.process.exited()).await.is_err() {
                return false;
            }
        }
        let _ = self.child.wait();
        true
    }
}

impl Drop for Stressor {
    fn drop(&mut self) {
        // Also of one that has ended, and was reaped already: both calls know that.
        let _ = self.child.kill();
        if self.process.ends_within(TERM) {
            let _ = self.child.wait();
        }
    }
}

/// What is heard of a stressor.
#[derive(Debug)]
pub enum Heard {
    /// Its word.
    Said(Said),
    /// Its end.
    Ended(ExitStatus),
}

/// A child that is not held by its pidfd yet.
struct Unheld(Option<Child>);

impl Unheld {
    fn pid(&self) -> i32 {
        self.0.as_ref().map_or(0, |child| child.id() as i32)
    }
}

impl Drop for Unheld {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// This daemon, as its stressors bear it: PID and start time.
fn owner(proc: &Path) -> Result<String, ProcessError> {
    let pid = std::process::id() as i32;
    Ok(format!("{pid}:{}", start_time(proc, pid)?))
}

/// The sweep did not come to its end.
#[derive(Debug, thiserror::Error)]
#[error("process {pid} has the name of a stressor, but does not let its arguments be read within {limit:?}")]
pub struct Unanswered {
    pid: i32,
    limit: Duration,
}

/// Ends every stressor whose daemon is no more, and returns how many. By the kernel's own means there should be none.
///
/// A process that hangs in a page fault hangs whoever reads its arguments, and anybody may give it a stressor's name: a
/// thread of its own looks, is waited for no longer than `limit`, and goes on if it is ever let go.
pub fn sweep(proc: &Path, limit: Duration) -> Result<usize, Unanswered> {
    let (looked_at, (tell, told)) = (Arc::new(AtomicI32::new(0)), mpsc::channel());
    let (proc, looks_at) = (proc.to_owned(), Arc::clone(&looked_at));
    thread::spawn(move || {
        let entries = fs::read_dir(&proc).into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let ended = pids.filter(|pid| {
            looks_at.store(*pid, Ordering::Relaxed);
            end_orphan(&proc, *pid)
        });
        // Nobody waits any more if it took too long.
        let _ = tell.send(ended.count());
    });
    told.recv_timeout(limit).map_err(|_| Unanswered { pid: looked_at.load(Ordering::Relaxed), limit })
}

fn end_orphan(proc: &Path, pid: i32) -> bool {
    // Looked at, then held, then looked at again: the PID may be another's by now.
    is_orphan(proc, pid)
        && Process::open(proc, pid)
            .is_ok_and(|process| is_orphan(proc, pid) && process.send(libc::SIGKILL).is_ok())
}

fn is_orphan(proc: &Path, pid: i32) -> bool {
    let Some((daemon, start)) = owner_of(proc, pid) else { return false };
    !start_time(proc, daemon).is_ok_and(|found| found == start)
}

/// The daemon of the stressor `pid`; `None`: it is no stressor.
pub fn owner_of(proc: &Path, pid: i32) -> Option<(i32, u64)> {
    let dir = proc.join(pid.to_string());
    // Whoever reads the arguments of a process that hangs while it maps a file of a dead server, hangs with it.
    if ![MARK, UNNAMED].contains(&text::read(&dir.join("comm")).ok()?.trim_end()) {
        return None;
    }
    let line = fs::read(dir.join("cmdline")).ok()?;
    let mut arguments = line.split(|byte| *byte == 0).map(|part| std::str::from_utf8(part).unwrap_or(""));
    if arguments.next()? != MARK {
        return None;
    }
    let (daemon, start) = arguments.next()?.split_once(':')?;
    Some((daemon.parse().ok()?, start.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    /// The files of a stressor of a daemon that is no more.
    fn orphan(proc: &Path, pid: u32) -> PathBuf {
        let dir = proc.join(pid.to_string());
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("comm"), format!("{MARK}\n")).unwrap();
        fs::write(dir.join("cmdline"), format!("{MARK}\0{}:900\0id\0", i32::MAX - 1)).unwrap();
        fs::write(dir.join("stat"), format!("{pid} ({MARK}) S {}900 0", "0 ".repeat(18))).unwrap();
        dir
    }

    #[test]
    fn orphans_are_ended_when_the_sweep_returns() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        orphan(dir.path(), child.id());
        assert_eq!(sweep(dir.path(), Duration::from_secs(60)).unwrap(), 1);
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
    }

    #[test]
    fn a_process_that_hangs_whoever_looks_at_it_does_not_hold_up_the_start() {
        let dir = tempfile::tempdir().unwrap();
        // No process has that PID.
        let arguments = orphan(dir.path(), i32::MAX.unsigned_abs()).join("cmdline");
        fs::remove_file(&arguments).unwrap();
        mknodat(CWD, &arguments, FileType::Fifo, Mode::RUSR, 0).unwrap();
        let start = Instant::now();
        let error = sweep(dir.path(), Duration::from_millis(50)).unwrap_err();
        assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
        assert!(error.to_string().starts_with(&format!("process {} has the name", i32::MAX)), "{error}");
    }

    #[test]
    fn an_orphan_is_known_by_its_name_first_and_then_by_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            fs::create_dir_all(dir.path().join(path).parent().unwrap()).unwrap();
            fs::write(dir.path().join(path), text).unwrap();
        };
        write("7/stat", &format!("7 (squall-daemon) S {}900 0", "0 ".repeat(18)));
        let process = |pid: i32, comm: &str, owner: &str| {
            write(&format!("{pid}/comm"), &format!("{comm}\n"));
            write(&format!("{pid}/cmdline"), &format!("{MARK}\0{owner}\0id\0"));
        };
        process(10, MARK, "7:900");
        // Its daemon's PID is another's; its daemon is gone; it had no time to give itself a name.
        process(11, MARK, "7:899");
        process(12, MARK, "8:900");
        process(13, UNNAMED, "8:900");
        // Of others the arguments are not looked at.
        process(14, "nfsd", "8:900");
        let orphans: Vec<i32> = (7..16).filter(|pid| is_orphan(dir.path(), *pid)).collect();
        assert_eq!(orphans, [11, 12, 13]);
        assert_eq!((owner_of(dir.path(), 10), owner_of(dir.path(), 14)), (Some((7, 900)), None));
    }
}
