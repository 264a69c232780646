//! The cluster's long-running processes: started in the background with a log and a PID file, and looked after.
//!
//! A PID file alone proves nothing: the process must also carry the state directory's path among its arguments.

use std::{
    fs,
    fs::File,
    os::fd::{BorrowedFd, RawFd},
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::io::FdFlags;

use super::{Cluster, node};
use crate::sh;

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(50);
/// How much of a log an error shows.
const TAIL: usize = 6;

impl Cluster {
    /// The process of that name, if it runs.
    pub(super) fn pid(&self, name: &str) -> Option<i32> {
        let pid = fs::read_to_string(self.pid_path(name)).ok()?.trim().parse().ok()?;
        let arguments = arguments(pid)?;
        let mark = format!("{}/", self.state.display());
        arguments.windows(mark.len()).any(|window| window == mark.as_bytes()).then_some(pid)
    }

    /// Whether the process of that name runs.
    pub(super) fn is_alive(&self, name: &str) -> bool {
        self.pid(name).is_some()
    }

    /// Starts it in the background unless it runs.
    ///
    /// It gets a session of its own and next to nothing of our environment: a proxy set there would come between the
    /// components.
    pub(super) fn start(&self, name: &str, words: &[String]) -> Result<()> {
        if self.is_alive(name) {
            return Ok(());
        }
        let path = self.log_path(name);
        let log = File::options()
            .append(true)
            .create(true)
            .open(&path)
            .with_context(|| format!("can't open {}", path.display()))?;
        let mut command = Command::new("setsid");
        command.args(words).env_clear();
        command.env("PATH", super::prereq::search_path()).env("HOME", "/root").env("LANG", "C.UTF-8");
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).current_dir("/");
        let child = command.spawn().with_context(|| format!("can't start {}", sh::show(&command)))?;
        let path = self.pid_path(name);
        fs::write(&path, format!("{}\n", child.id()))
            .with_context(|| format!("can't write {}", path.display()))?;
        node::place(self, name, child.id())
    }

    /// These words as they are run on the node: in its mount and network namespaces.
    pub(super) fn on_node(&self, words: impl IntoIterator<Item = String>) -> Result<Vec<String>> {
        let pid = self.namespace_pid().context("the node's namespaces are gone")?;
        let enter = ["nsenter", "-t", &pid.to_string(), "-m", "-n", "--"].map(str::to_owned);
        Ok(enter.into_iter().chain(words).collect())
    }

    /// Waits until it is so, while the process of that name lives.
    pub(super) fn wait(
        &self,
        name: &str,
        seconds: u64,
        what: &str,
        mut ok: impl FnMut() -> bool,
    ) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(seconds);
        loop {
            // Asked before `ok`: what ended after a last success is the next wait's business.
            let alive = self.is_alive(name);
            if ok() {
                return Ok(());
            }
            if !alive {
                bail!("{name} ended while waiting until {what}; {}", self.log_tail(name));
            }
            if Instant::now() >= end {
                bail!("waited {seconds} s until {what}; {}", self.log_tail(name));
            }
            std::thread::sleep(POLL);
        }
    }

    pub(super) fn pid_path(&self, name: &str) -> PathBuf {
        self.state.join("pid").join(name)
    }

    pub(super) fn log_path(&self, name: &str) -> PathBuf {
        self.state.join("log").join(format!("{name}.log"))
    }

    fn log_tail(&self, name: &str) -> String {
        let path = self.log_path(name);
        let log = fs::read(&path).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<_> = log.lines().collect();
        let last = lines[lines.len().saturating_sub(TAIL)..].join("\n  ");
        format!("its log is {}, and ends:\n  {last}", path.display())
    }
}

/// Makes the processes started from here on let go of what our own caller left open: a pipe that they held would
/// keep its reader waiting for as long as the cluster runs.
pub fn let_go_of_descriptors() -> Result<()> {
    let entries = fs::read_dir("/proc/self/fd").context("can't read /proc/self/fd")?;
    let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<RawFd>().ok());
    for number in numbers.filter(|number| *number > 2).collect::<Vec<_>>() {
        // SAFETY: borrowed for this call only; one that is closed by now (the directory's own) gives an error.
        let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
        let _ = rustix::io::fcntl_setfd(descriptor, FdFlags::CLOEXEC);
    }
    Ok(())
}

/// The arguments of a process. In the middle of an exec they are empty for a moment, on a busy machine for a long one; a
/// dead one's stay so.
fn arguments(pid: i32) -> Option<Vec<u8>> {
    for _ in 0..400 {
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let dead =
            stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z") || rest.starts_with(" X"));
        if dead || !arguments.is_empty() {
            return Some(arguments);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    None
}
