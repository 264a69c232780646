//! A signal that waits until a process of the container does something.
//!
//! The kernel does the waiting and the signalling, in the context of the process that does it. The daemon arms, hears of
//! it, and takes it back when its time is over; who is first of the two is decided in one map, so a trigger that was
//! given up never fires. Refuses to arm by half: without the programs there is no trigger.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use squall_daemon_ebpf::{PATH_BYTES, RECORD_SENT, Record};
use tokio::time::{Duration, timeout};

use super::{
    oom::OomKills,
    receipt::{Collector, Times},
    strike::Striker,
};
use crate::{
    cgroup::Target,
    ebpf::{
        Armed, Event, Records, TriggerSpec,
        syscalls::{Syscall, SyscallError},
    },
    inside::{self, Unasked},
    order::{Comm, Kill, On, Trigger},
    process::Process,
    report::{Evidence, Reason, Receipt, State},
};

/// How long the record of a trigger that has fired may take.
const STRAGGLERS: Duration = Duration::from_millis(200);
/// This many records before the one that says so are kept.
const EARLY: usize = 16;

/// What the kernel is to wait for; a path as it is written.
pub(super) fn spec(trigger: &Trigger, signal: i32) -> Result<TriggerSpec, SyscallError> {
    let Trigger { comm, on } = trigger;
    let event = match on {
        On::Syscall { name, nth } => Event::Call { syscall: Syscall::find(name)?, nth: *nth },
        On::Connect { port } => {
            // Its program runs where this call is entered.
            Syscall::find("connect")?;
            Event::Connect { port: *port }
        }
        On::Exec { path } => Event::Exec { paths: vec![path.clone()] },
    };
    Ok(TriggerSpec { event, comm: comm.map(Comm::bytes).unwrap_or_default(), signal })
}

/// The same with each path by all its names below `root`. Returns when the container's file systems have answered: one
/// of the network, or of a program of the container's, may never do so.
pub(super) async fn by_all_names(spec: TriggerSpec, root: PathBuf) -> Result<TriggerSpec, Unasked> {
    let TriggerSpec { event, comm, signal } = spec;
    let event = match event {
        Event::Exec { paths } => {
            let names = move || paths.iter().flat_map(|path| names_of(path, &root)).collect();
            Event::Exec { paths: inside::ask(names).await? }
        }
        Event::Call { .. } | Event::Connect { .. } => event,
    };
    Ok(TriggerSpec { event, comm, signal })
}

/// A trigger that waits.
pub struct Waiting {
    trigger: Trigger,
    target: Target,
    kill: Kill,
    init: Process,
    armed: Arc<Armed>,
    records: Records,
    ordered: SystemTime,
    ooms: OomKills,
    early: Vec<Record>,
}

/// What became of a trigger.
pub enum Triggered {
    /// A process was signalled; what comes of it is collected from there.
    Fired(Box<Collector>),
    /// It will not fire any more.
    Ended(State, String, Receipt),
}

impl Waiting {
    pub(super) fn new(
        trigger: Trigger,
        target: Target,
        kill: Kill,
        init: Process,
        armed: Arc<Armed>,
        records: Records,
        ordered: SystemTime,
    ) -> Self {
        let ooms = OomKills::begin(&target);
        Self { trigger, target, kill, init, armed, records, ordered, ooms, early: Vec::new() }
    }

    /// What is waited for, in words.
    pub fn describe(&self) -> String {
        let Trigger { comm, on } = &self.trigger;
        let who = comm.map_or_else(|| "a process".to_owned(), |comm| format!("{:?}", comm.as_str()));
        format!("the signal waits until {who} of the container {}", on.describe())
    }

    /// Waits until it fires, or can't any more because the container has ended.
    pub async fn wait(&mut self) {
        tokio::select! {
            biased;
            () = sent(&mut self.records, &mut self.early) => {}
            // An error of waiting says nothing of the container: then its time limits it.
            ended = self.init.exited() => if ended.is_err() {
                sent(&mut self.records, &mut self.early).await;
            },
        }
    }

    /// Takes it back; what has fired before stays so.
    pub async fn end(mut self, why: Reason) -> Triggered {
        let over = self.armed.give_up();
        let fired = self.has_fired();
        if !fired && !matches!(over, Ok(true)) {
            // It has fired, and its record is on its way, or there was no room for it.
            let _ = timeout(STRAGGLERS, sent(&mut self.records, &mut self.early)).await;
        }
        if self.has_fired() {
            return Triggered::Fired(Box::new(self.collector()));
        }
        let count = self.armed.count();
        let receipt = Receipt {
            evidence: Evidence::Ebpf,
            evidence_error: String::new(),
            signal: self.kill.signal,
            ordered: self.ordered,
            fired: None,
            processes: Vec::new(),
            total: 0,
            lost: self.armed.lost(),
            oom_kills: self.ooms.so_far(),
            fired_at_count: 0,
        };
        let waited = self.trigger.on.describe();
        let (state, message) = match over {
            Ok(true) if why == Reason::ContainerGone => {
                let message =
                    format!("the container ended before a process of it {waited}; nothing was signalled");
                (State::Refused(why), message)
            }
            Ok(true) => {
                let so_far = match &self.trigger.on {
                    On::Syscall { .. } => format!(" ({count} calls so far)"),
                    On::Exec { .. } | On::Connect { .. } => String::new(),
                };
                let message =
                    format!("no process of the container {waited} in time{so_far}; nothing was signalled");
                (State::Failed(why), message)
            }
            Ok(false) => {
                let message = "the trigger has fired, but the kernel's record of it was lost".to_owned();
                (State::Failed(Reason::Internal), message)
            }
            Err(error) => {
                (State::Failed(Reason::Internal), format!("whether it has fired is not known: {error}"))
            }
        };
        // Detaching takes a moment, and nobody waits for it.
        drop(tokio::task::spawn_blocking(move || drop(self)));
        Triggered::Ended(state, message, receipt)
    }

    /// Has it never fire any more; `false`: it has, or that is not known.
    pub fn take_back(&self) -> bool {
        !self.has_fired() && matches!(self.armed.give_up(), Ok(true))
    }

    /// Whether it is known that it has fired.
    pub fn has_fired(&self) -> bool {
        self.early.iter().any(|record| record.kind == RECORD_SENT)
    }

    fn collector(self) -> Collector {
        let Self { trigger: _, target, kill, init, armed, records, ordered, ooms, early } = self;
        let fired = early
            .iter()
            .find(|record| record.kind == RECORD_SENT)
            .map_or(ordered, |record| armed.clock().at(record.ktime));
        let striker = Striker::new(target, kill, init, Some(armed));
        Collector::triggered(striker, records, Times { ordered, fired }, ooms, &early)
    }
}

/// Waits for the record that says that a process was signalled; forever if there will be none.
async fn sent(records: &mut Records, early: &mut Vec<Record>) {
    loop {
        match records.next().await {
            Some(record) => {
                let sent = record.kind == RECORD_SENT;
                if sent || early.len() < EARLY {
                    early.push(record);
                }
                if sent {
                    return;
                }
            }
            None => std::future::pending().await,
        }
    }
}

/// The names by which a process may execute `path`: as written, and as it is with links to directories followed, and,
/// where `/bin` and its like are links into `/usr`, without that.
fn names_of(path: &str, root: &Path) -> Vec<String> {
    let mut names = vec![path.to_owned()];
    let Some((dir, file)) = path.rsplit_once('/') else { return names };
    let resolve = |dir: &str| resolve_in(root, dir).ok();
    if let Some(real) = resolve(if dir.is_empty() { "/" } else { dir }) {
        names.push(format!("{}/{file}", real.trim_end_matches('/')));
        if let Some(short) = real.strip_prefix("/usr").filter(|short| short.starts_with('/'))
            && resolve(short).as_deref() == Some(real.as_str())
        {
            names.push(format!("{short}/{file}"));
        }
    }
    names.retain(|name| name.len() < PATH_BYTES);
    names.sort_unstable();
    names.dedup();
    names
}

/// `dir` with its links followed, as seen from inside `root`.
fn resolve_in(root: &Path, dir: &str) -> io::Result<String> {
    let open =
        |at, path: &str, resolve| openat2(at, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve);
    let root = rustix::fs::open(root, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let dir = dir.trim_matches('/');
    let dir = open(&root, if dir.is_empty() { "." } else { dir }, ResolveFlags::IN_ROOT)?;
    let shown = |fd: &rustix::fd::OwnedFd| {
        use std::os::fd::AsRawFd;
        std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))
    };
    let (root, dir) = (shown(&root)?, shown(&dir)?);
    let inside = Path::new("/").join(dir.strip_prefix(&root).unwrap_or(&dir));
    inside.to_str().map(str::to_owned).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::names_of;

    #[test]
    fn a_path_is_known_by_all_its_names() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        fs::create_dir_all(at("usr/bin")).unwrap();
        fs::create_dir_all(at("opt/tool")).unwrap();
        // Absolute links are those of the container, not of this machine.
        symlink("/usr/bin", at("bin")).unwrap();
        symlink("../opt/tool", at("usr/tool")).unwrap();
        assert_eq!(names_of("/bin/x", root.path()), ["/bin/x", "/usr/bin/x"]);
        assert_eq!(names_of("/usr/bin/x", root.path()), ["/bin/x", "/usr/bin/x"]);
        assert_eq!(names_of("/usr/tool/x", root.path()), ["/opt/tool/x", "/usr/tool/x"]);
        assert_eq!(names_of("/x", root.path()), ["/x"]);
        assert_eq!(names_of("/nowhere/x", root.path()), ["/nowhere/x"]);
    }
}
