//! The daemon's half of the signalling: each process is opened, checked, claimed, and then signalled.
//!
//! Refuses to signal a process that the program has claimed for the same kill, or that is not in the container's cgroup
//! at that moment.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use squall_daemon_ebpf::Record;

use crate::{
    cgroup::Target,
    ebpf::{Armed, Claimed, EbpfError},
    order::{Kill, Processes, Scope, Whom},
    process::{Disposition, Process, ProcessError},
    report::{Evidence, NAMED, Note, ProcessReceipt},
};

/// A process for all time.
pub type Key = (i32, u64);

/// A claim may fail for want of room; then this many rounds are made over those that are left.
const ROUNDS: u32 = 64;

/// So many processes are kept in mind, and named in a receipt; of more, only how many there were.
const KEPT: usize = 4096;

/// Who is signalled, and who was.
pub struct Striker {
    target: Target,
    kill: Kill,
    init: Key,
    /// Whose children are not of the container, though they are in its cgroup: the daemon's stressors.
    spared: Option<i32>,
    /// Held until it has been signalled: nobody can take its PID.
    init_process: Option<Process>,
    armed: Option<Arc<Armed>>,
    /// Those who were signalled, by whomever: all who live, and some of those who have ended.
    pub(super) hit: BTreeMap<Key, ProcessReceipt>,
    /// How many more had been signalled and have ended.
    forgotten: usize,
    /// How many more the program has told of when no more could be kept; some of them may be found again.
    untold: usize,
    /// Those of them whose end can be waited for.
    pub(super) opened: Vec<Process>,
    /// Why of some it can't be seen whether they are meant; they are not signalled.
    pub(super) unseen: Option<String>,
}

impl Striker {
    pub(super) fn new(target: Target, kill: Kill, init: Process, armed: Option<Arc<Armed>>) -> Self {
        let key = (init.pid(), init.start());
        Self {
            target,
            kill,
            init: key,
            spared: None,
            init_process: Some(init),
            armed,
            hit: BTreeMap::new(),
            forgotten: 0,
            untold: 0,
            opened: Vec::new(),
            unseen: None,
        }
    }

    /// The same, but the children of that process are none of the container's.
    pub(super) fn sparing_children_of(self, spared: Option<i32>) -> Self {
        Self { spared, ..self }
    }

    pub(super) fn signal(&self) -> i32 {
        self.kill.signal
    }

    pub(super) fn armed(&self) -> Option<&Armed> {
        self.armed.as_deref()
    }

    /// Whether only some of the processes are meant.
    pub(super) fn is_narrowed(&self) -> bool {
        match &self.kill.whom {
            Whom::Processes(Processes { scope: _, comm, exe }) => comm.is_some() || exe.is_some(),
            Whom::Trigger(_) => false,
        }
    }

    /// How many were signalled, and whether there may have been more.
    pub(super) fn count(&self) -> (usize, bool) {
        (self.hit.len() + self.forgotten, self.untold > 0)
    }

    /// Lets the programs act; `false` when there are none.
    pub(super) fn open_fire(&mut self) -> Result<bool, EbpfError> {
        let Some(armed) = &self.armed else { return Ok(false) };
        if let Err(error) = armed.fire() {
            self.armed = None;
            return Err(error);
        }
        Ok(true)
    }

    /// Signals everyone who has not been, until nobody is left who has not been. Says whether it hit anyone.
    pub(super) async fn strike(&mut self) -> bool {
        let mut any = false;
        match &self.kill.whom {
            // The programs alone signal who does it.
            Whom::Trigger(_) => self.init_process = None,
            Whom::Processes(Processes { scope: Scope::Init, .. }) => {
                if let Some(init) = self.init_process.take() {
                    any |= self.hit_one(init);
                }
                if any && let Some(armed) = &self.armed {
                    armed.settle();
                }
            }
            Whom::Processes(Processes { scope: Scope::All, .. }) => {
                for _ in 0..ROUNDS {
                    if !self.round().await {
                        break;
                    }
                    any = true;
                }
            }
        }
        any
    }

    /// One round over the processes of the cgroup; the first process comes last, because its end is that of all others,
    /// by SIGKILL, in its PID namespace.
    async fn round(&mut self) -> bool {
        let mut any = false;
        self.forget();
        for (count, pid) in self.target.processes().into_iter().enumerate() {
            // Other faults shall not wait for a container with thousands of processes.
            if count % 64 == 63 {
                tokio::task::yield_now().await;
            }
            if pid == self.init.0 {
                continue;
            }
            let Ok(process) = Process::open(self.target.proc(), pid) else { continue };
            if self.spared == Some(process.parent()) || self.hit.contains_key(&(pid, process.start())) {
                continue;
            }
            match process.memberships() {
                Ok(memberships) if self.target.holds(&memberships) => any |= self.hit_one(process),
                Ok(_) | Err(_) => {}
            }
        }
        if let Some(init) = self.init_process.take() {
            any |= self.hit_one(init);
        }
        any
    }

    /// Claims and signals one process; `false` if somebody else has, or it is gone.
    fn hit_one(&mut self, process: Process) -> bool {
        let key = (process.pid(), process.start());
        match &self.kill.whom {
            Whom::Trigger(_) => return false,
            Whom::Processes(processes) => match matches(processes, &process) {
                Ok(()) => {}
                Err(Mismatch::Another(_)) => return false,
                Err(Mismatch::Unseen(error)) => {
                    self.unseen = Some(error.to_string());
                    return false;
                }
            },
        }
        // Now: of one that the program has ended meanwhile nothing could be read.
        let comm = process.comm();
        let claimed = self.armed.as_deref().map(|armed| armed.claim(key.0, key.1));
        match &claimed {
            // Without the programs there is nobody to share with; another fault's claim keeps them off.
            None | Some(Ok(Claimed::Now | Claimed::ByAnother)) => {}
            Some(Ok(Claimed::Before)) => {
                // The program has sent, or is about to; its record will tell the exact time.
                self.add(key, comm, Evidence::Ebpf, SystemTime::now(), None);
                self.opened.push(process);
                return true;
            }
            Some(Err(error)) => {
                // No room: if the programs can't claim either, only we can send.
                tracing::warn!(pid = key.0, %error, "could not claim a process");
            }
        }
        let sent = SystemTime::now();
        if let Err(error) = process.send(self.kill.signal) {
            tracing::debug!(pid = key.0, %error, "not signalled");
            if let (Some(armed), Some(Ok(Claimed::Now))) = (&self.armed, &claimed) {
                armed.unclaim(key.0, key.1);
            }
            return false;
        }
        let note = note(&process, self.kill.signal);
        self.add(key, comm, Evidence::Pidfd, sent, note);
        self.opened.push(process);
        true
    }

    /// Takes note of a process that the program has signalled.
    pub(super) fn sent_by_program(&mut self, record: &Record, comm: String, at: SystemTime) {
        let key = key_of(record);
        let known = self.hit.contains_key(&key);
        // It goes on without being looked at: whoever lives is found by the next round.
        if !known && self.hit.len() >= KEPT {
            self.untold += 1;
            return;
        }
        let process = Process::open_started(self.target.proc(), key.0, key.1).ok();
        let note = process.as_ref().and_then(|process| note(process, self.kill.signal));
        self.add(key, String::new(), Evidence::Ebpf, at, note);
        if let Some(hit) = self.hit.get_mut(&key) {
            hit.comm = comm;
            hit.sent = at;
            hit.note = hit.note.or(note);
        }
        if !known {
            self.opened.extend(process);
        }
    }

    /// Makes room: a container that forks faster than it is signalled would fill all memory.
    fn forget(&mut self) {
        if self.hit.len() < KEPT {
            return;
        }
        let (before, mut kept) = (self.hit.len(), 0);
        self.hit.retain(|_, process| {
            kept += usize::from(process.exited.is_some());
            process.init || process.exited.is_none() || kept <= NAMED
        });
        self.forgotten += before - self.hit.len();
    }

    /// Whether `key` still runs.
    pub(super) fn reopen(&self, key: Key) -> Option<Process> {
        Process::open_started(self.target.proc(), key.0, key.1).ok()
    }

    fn add(&mut self, key: Key, comm: String, sent_by: Evidence, sent: SystemTime, note: Option<Note>) {
        self.hit.entry(key).or_insert(ProcessReceipt {
            pid: key.0,
            start: key.1,
            comm,
            init: key == self.init,
            sent_by,
            sent,
            delivered: None,
            exited: None,
            exit_code: None,
            note,
        });
    }
}

/// Why a process is not signalled.
pub(super) enum Mismatch {
    /// It is not meant.
    Another(String),
    /// Whether it is can't be seen.
    Unseen(ProcessError),
}

/// Whether a process is one of those that are meant.
pub(super) fn matches(processes: &Processes, process: &Process) -> Result<(), Mismatch> {
    let Processes { scope: _, comm, exe } = processes;
    if let Some(comm) = comm {
        let found = process.comm();
        if found != comm.as_str() {
            let why = format!("process {} has the name {found:?}, not {:?}", process.pid(), comm.as_str());
            return Err(Mismatch::Another(why));
        }
    }
    if let Some(exe) = exe {
        let found = process.exe().map_err(|error| match error {
            ProcessError::Gone { .. } => Mismatch::Another(error.to_string()),
            error => Mismatch::Unseen(error),
        })?;
        if found != *exe {
            let (found, exe) = (found.display(), exe.display());
            return Err(Mismatch::Another(format!("process {} runs {found}, not {exe}", process.pid())));
        }
    }
    Ok(())
}

/// The process that a record is about.
pub fn key_of(record: &Record) -> Key {
    (i32::try_from(record.tgid).unwrap_or(0), record.start)
}

fn note(process: &Process, signal: i32) -> Option<Note> {
    if signal == libc::SIGKILL {
        return None;
    }
    match process.disposition(signal).ok()? {
        Disposition::Default | Disposition::Caught => None,
        Disposition::Ignored => Some(Note::Ignored),
        Disposition::Blocked => Some(Note::Blocked),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::cgroup::CgroupRoot;

    #[test]
    fn a_container_that_forks_without_end_fills_no_memory() {
        let proc = Path::new("/proc");
        let own = std::process::id() as i32;
        let target = CgroupRoot::discover(Path::new("/sys/fs/cgroup"), proc).unwrap().target(own).unwrap();
        let kill = Kill::now(libc::SIGTERM, Scope::All);
        let mut striker = Striker::new(target, kill, Process::open(proc, own).unwrap(), None);
        // SAFETY: every bit pattern is a record.
        let mut record: Record = unsafe { std::mem::zeroed() };
        for start in 0..KEPT as u64 + 10 {
            // No process has this PID.
            (record.tgid, record.start) = (i32::MAX as u32, start);
            striker.sent_by_program(&record, "x".into(), SystemTime::now());
        }
        assert_eq!((striker.hit.len(), striker.count()), (KEPT, (KEPT, true)));
        // Only those who have ended are forgotten, and not all of them.
        striker.hit.values_mut().skip(1000).for_each(|process| process.exited = Some(SystemTime::now()));
        striker.forget();
        assert_eq!((striker.hit.len(), striker.count()), (1000 + NAMED, (KEPT, true)));
    }
}
