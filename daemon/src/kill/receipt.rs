//! Collects what came of a kill, until every process that was signalled has ended.
//!
//! Two sources: the records of the programs (with kernel times and exit codes) and the pidfds (which alone say that a
//! process is gone for good, and tell the exit code where the record is lost). It changes nothing but what [`super::strike`] left to do: in scope `all` a process that
//! shows up late is signalled too.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use squall_daemon_ebpf::{
    GENERATED_IGNORED, RECORD_DELIVERED, RECORD_EXITED, RECORD_GENERATED, RECORD_SENT, Record, UNKNOWN_EXIT,
};
use tokio::time::{Instant, sleep_until};

use super::{
    oom::OomKills,
    strike::{Key, Striker, key_of},
};
use crate::{
    ebpf::Records,
    report::{Evidence, Note, ProcessReceipt, Reason, Receipt, State},
};

/// After this long a signal that everyone left ignores or blocks is called ignored.
pub const IGNORED_AFTER: Duration = Duration::from_secs(10);
/// After this long a signal that was taken, but ended nobody, is called so too.
pub const SURVIVED_AFTER: Duration = Duration::from_secs(120);
/// How long the last records may take after the last process is gone.
const STRAGGLERS: Duration = Duration::from_millis(50);
/// This many descriptors are held for waiting; the rest is looked at when these have ended.
const WAITED_FOR: usize = 512;
/// This many exit codes are kept for when no record brings them.
const TOLD: usize = 4096;
/// What became of a kill.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Done, or failed with the reason.
    pub state: State,
    /// For people.
    pub message: String,
    /// The receipt.
    pub receipt: Receipt,
}

/// What a receipt rests on, and why it is not eBPF.
pub(super) struct Evidenced {
    pub(super) evidence: Evidence,
    pub(super) evidence_error: String,
}

/// When the order came, and when the first signal went out.
#[derive(Clone, Copy)]
pub(super) struct Times {
    pub(super) ordered: SystemTime,
    pub(super) fired: SystemTime,
}

/// A kill under way.
pub struct Collector {
    striker: Striker,
    records: Option<Records>,
    evidence: Evidence,
    evidence_error: String,
    times: Times,
    ooms: OomKills,
    fired_at_count: u32,
    /// Exit codes by another source than the records, which are waited for.
    told: BTreeMap<Key, i32>,
}

enum Event {
    Record(Box<Record>),
    NoMoreRecords,
    /// With its status, where the kernel still tells.
    Ended(Key, Option<u32>),
    NobodyWaitedFor,
    Ignored,
    Survived,
}

impl Collector {
    pub(super) fn new(
        striker: Striker,
        records: Option<Records>,
        Evidenced { evidence, evidence_error }: Evidenced,
        times: Times,
        ooms: OomKills,
    ) -> Self {
        Self {
            striker,
            records,
            evidence,
            evidence_error,
            times,
            ooms,
            fired_at_count: 0,
            told: BTreeMap::new(),
        }
    }

    /// The same, of a trigger that has fired: `ooms` began when it was armed, and `first` are the records so far.
    pub(super) fn triggered(
        striker: Striker,
        records: Records,
        times: Times,
        ooms: OomKills,
        first: &[Record],
    ) -> Self {
        let count = first.iter().find(|record| record.kind == RECORD_SENT).map_or(0, |record| record.count);
        let evidence = Evidence::Ebpf;
        let mut collector = Self {
            striker,
            records: Some(records),
            evidence,
            evidence_error: String::new(),
            times,
            ooms,
            fired_at_count: count,
            told: BTreeMap::new(),
        };
        // That the signal was sent comes first, whatever the order in which the kernel told of it.
        let (sent, rest): (Vec<&Record>, Vec<_>) =
            first.iter().partition(|record| record.kind == RECORD_SENT);
        for record in sent.into_iter().chain(rest) {
            collector.take(record);
        }
        collector
    }

    /// The process that a trigger hit first: PID and start time.
    pub fn first_hit(&self) -> Option<Key> {
        self.striker.hit.keys().next().copied()
    }

    /// The receipt as it stands.
    pub fn receipt(&self) -> Receipt {
        let mut processes: Vec<ProcessReceipt> = self.striker.hit.values().cloned().collect();
        // The container's own process first, then in the order of signalling.
        processes.sort_by_key(|process| (!process.init, process.sent, process.pid));
        let (total, _) = self.striker.count();
        Receipt {
            evidence: self.evidence,
            evidence_error: self.evidence_error.clone(),
            signal: self.striker.signal(),
            ordered: self.times.ordered,
            fired: Some(self.times.fired),
            processes,
            total: u32::try_from(total).unwrap_or(u32::MAX),
            lost: self.striker.armed().map_or(0, crate::ebpf::Armed::lost),
            oom_kills: self.ooms.so_far(),
            fired_at_count: self.fired_at_count,
        }
    }

    /// Waits until everyone who was signalled has ended. `init_exit` gives the exit code of the container's first
    /// process from another source, for when the programs can't.
    pub async fn collect(&mut self, init_exit: impl Future<Output = Option<i32>> + Send) -> Outcome {
        let mut waiting: FuturesUnordered<BoxFuture<'static, (Key, Option<u32>)>> = FuturesUnordered::new();
        let start = Instant::now();
        let (mut ignored_called, ignored_at, survived_at) =
            (false, start + IGNORED_AFTER, start + SURVIVED_AFTER);
        loop {
            for process in self.striker.opened.drain(..) {
                if waiting.len() < WAITED_FOR {
                    waiting.push(Box::pin(async move {
                        // If waiting is not possible the process is looked at again when nobody is waited for.
                        if process.exited().await.is_err() {
                            tokio::time::sleep(STRAGGLERS).await;
                        }
                        ((process.pid(), process.start()), process.exit_status())
                    }));
                }
            }
            let event = tokio::select! {
                // The deadlines first: a container that forks without end has a record at any time.
                biased;
                () = sleep_until(ignored_at), if !ignored_called => Event::Ignored,
                () = sleep_until(survived_at) => Event::Survived,
                record = next(&mut self.records) => match record {
                    Some(record) => Event::Record(Box::new(record)),
                    None => Event::NoMoreRecords,
                },
                ended = waiting.next() => match ended {
                    Some((key, status)) => Event::Ended(key, status),
                    None => Event::NobodyWaitedFor,
                },
            };
            match event {
                Event::Record(record) => self.take(&record),
                Event::NoMoreRecords => self.records = None,
                Event::Ended(key, status) => self.ended(key, status),
                Event::NobodyWaitedFor => {
                    self.look_again();
                    if self.striker.opened.is_empty()
                        && !self.striker.strike().await
                        && self.striker.opened.is_empty()
                    {
                        return self.finish(init_exit).await;
                    }
                }
                Event::Ignored => {
                    ignored_called = true;
                    if self.is_ignored() {
                        return self.give_up("ignore it or have it blocked", IGNORED_AFTER);
                    }
                }
                Event::Survived => return self.out_of_time(init_exit).await,
            }
        }
    }

    fn take(&mut self, record: &Record) {
        let Some(at) = self.striker.armed().map(|armed| armed.clock().at(record.ktime)) else { return };
        let key = key_of(record);
        if record.kind == RECORD_SENT {
            let length = record.comm.iter().position(|byte| *byte == 0).unwrap_or(record.comm.len());
            let comm = String::from_utf8_lossy(&record.comm[..length]).into_owned();
            self.striker.sent_by_program(record, comm, at);
            return;
        }
        // What others of the cgroup do is not this kill's work.
        let Some(process) = self.striker.hit.get_mut(&key) else { return };
        match record.kind {
            RECORD_GENERATED if record.value == GENERATED_IGNORED => process.note = Some(Note::Ignored),
            RECORD_GENERATED => {}
            RECORD_DELIVERED => {
                process.delivered.get_or_insert(at);
                // Delivered is stronger than what was read of its mask a moment ago.
                process.note = None;
            }
            RECORD_EXITED => {
                // A guess by the pidfd, a moment too late, gives way to the kernel's own time.
                process.exited = Some(at);
                if record.value != UNKNOWN_EXIT {
                    process.exit_code = Some(shell_code(record.value));
                }
            }
            other => tracing::warn!(kind = other, "a record of a kind that is not known"),
        }
    }

    fn ended(&mut self, key: Key, status: Option<u32>) {
        // Later the cgroup may be gone, and its counters with it.
        self.ooms.so_far();
        let Some(process) = self.striker.hit.get_mut(&key) else { return };
        process.exited.get_or_insert_with(SystemTime::now);
        if let (None, Some(status)) = (process.exit_code, status)
            && self.told.len() < TOLD
        {
            self.told.insert(key, shell_code(status));
        }
    }

    /// What `/proc` told of those whose record is lost, or was never to come.
    fn fill_in(&mut self) {
        for (key, code) in std::mem::take(&mut self.told) {
            if let Some(process) = self.striker.hit.get_mut(&key) {
                process.exit_code.get_or_insert(code);
            }
        }
    }

    /// Looks at those whose end nobody has told.
    fn look_again(&mut self) {
        let left: Vec<Key> = self.left().map(|process| (process.pid, process.start)).collect();
        for key in left {
            // The rest is looked at when these have ended.
            if self.striker.opened.len() >= WAITED_FOR {
                break;
            }
            match self.striker.reopen(key) {
                Some(process) => self.striker.opened.push(process),
                None => self.ended(key, None),
            }
        }
    }

    fn left(&self) -> impl Iterator<Item = &ProcessReceipt> {
        self.striker.hit.values().filter(|process| process.exited.is_none())
    }

    /// Whether somebody is left, and nobody of them takes the signal.
    fn is_ignored(&self) -> bool {
        let mut left = self.left().peekable();
        left.peek().is_some() && left.all(|process| process.note.is_some())
    }

    /// An init whose exit the kernel has told of is not gone before its whole PID namespace is, which may take longer
    /// than anybody waits: that is no survivor.
    async fn out_of_time(&mut self, init_exit: impl Future<Output = Option<i32>>) -> Outcome {
        match self.left().count() {
            0 => self.finish(init_exit).await,
            _ => self.give_up("go on all the same", SURVIVED_AFTER),
        }
    }

    async fn finish(&mut self, init_exit: impl Future<Output = Option<i32>>) -> Outcome {
        // The records of the last ends may still be on their way.
        let until = Instant::now() + STRAGGLERS;
        while self.evidence == Evidence::Ebpf
            && self.striker.hit.values().any(|process| process.exit_code.is_none())
        {
            match tokio::time::timeout_at(until, next(&mut self.records)).await {
                Ok(Some(record)) => self.take(&record),
                Ok(None) | Err(_) => break,
            }
        }
        self.fill_in();
        let unknown =
            self.striker.hit.values_mut().find(|process| process.init && process.exit_code.is_none());
        if let Some(init) = unknown {
            init.exit_code = tokio::time::timeout(STRAGGLERS * 4, init_exit).await.ok().flatten();
        }
        let (count, more) = self.striker.count();
        let unseen = self.striker.unseen.take();
        let message = match (count, more) {
            (0, _) if unseen.is_some() => "nobody was signalled".to_owned(),
            (0, _) if self.striker.is_narrowed() => {
                "no process of the container has that name, or runs that executable".to_owned()
            }
            (0, _) => "nobody was left to signal".to_owned(),
            (1, false) => "1 process was signalled and has exited".to_owned(),
            (_, false) => format!("{count} processes were signalled and have exited"),
            (_, true) => format!("more than {count} processes were signalled and have exited"),
        };
        let state = match count {
            _ if unseen.is_some() => State::Failed(Reason::Unsupported),
            0 if self.striker.is_narrowed() => State::Failed(Reason::NoProcess),
            0 => State::Failed(Reason::ContainerGone),
            _ => State::Done,
        };
        let message = match unseen {
            None => message,
            Some(why) => format!("{message}; whether others are meant is not to be seen: {why}"),
        };
        Outcome { state, message, receipt: self.receipt() }
    }

    fn give_up(&mut self, how: &str, after: Duration) -> Outcome {
        self.fill_in();
        let left = self.left().count();
        let message = format!(
            "signal {} was sent, but {left} processes {how} after {} s",
            self.striker.signal(),
            after.as_secs()
        );
        Outcome { state: State::Failed(Reason::SignalIgnored), message, receipt: self.receipt() }
    }
}

async fn next(records: &mut Option<Records>) -> Option<Record> {
    match records {
        Some(records) => records.next().await,
        None => std::future::pending().await,
    }
}

/// The wait status as a shell would show it.
pub fn shell_code(status: u32) -> i32 {
    let signal = status & 0x7f;
    (if signal == 0 { (status >> 8) & 0xff } else { 128 + signal }) as i32
}

#[cfg(test)]
mod tests {
    use std::{future::ready, path::Path};

    use super::*;
    use crate::{
        cgroup::CgroupRoot,
        order::{Kill, Scope},
        process::Process,
    };

    #[tokio::test]
    async fn only_who_is_left_can_have_ignored_or_survived_it() {
        let proc = Path::new("/proc");
        let own = std::process::id() as i32;
        let target = CgroupRoot::discover(Path::new("/sys/fs/cgroup"), proc).unwrap().target(own).unwrap();
        let now = SystemTime::now();
        let process = |exited, note| ProcessReceipt {
            pid: own,
            start: 1,
            comm: "x".into(),
            init: true,
            sent_by: Evidence::Pidfd,
            sent: now,
            delivered: None,
            exited,
            exit_code: exited.map(|_| 137),
            note,
        };
        for (process, ignored, state) in [
            // Its record has come; by its pidfd it is still there.
            (process(Some(now), None), false, State::Done),
            (process(None, None), false, State::Failed(Reason::SignalIgnored)),
            (process(None, Some(Note::Ignored)), true, State::Failed(Reason::SignalIgnored)),
        ] {
            let kill = Kill::now(libc::SIGKILL, Scope::Init);
            let mut striker = Striker::new(target.clone(), kill, Process::open(proc, own).unwrap(), None);
            striker.hit.insert((own, 1), process);
            let evidence = Evidenced { evidence: Evidence::Pidfd, evidence_error: String::new() };
            let (times, ooms) = (Times { ordered: now, fired: now }, OomKills::begin(&target));
            let mut collector = Collector::new(striker, None, evidence, times, ooms);
            assert_eq!(collector.is_ignored(), ignored);
            let outcome = collector.out_of_time(ready(None)).await;
            assert_eq!(outcome.state, state, "{}", outcome.message);
        }
    }

    #[test]
    fn wait_statuses() {
        assert_eq!(shell_code(0), 0);
        assert_eq!(shell_code(3 << 8), 3);
        assert_eq!(shell_code(9), 137);
        // Core dumped.
        assert_eq!(shell_code(0x80 | 11), 139);
    }
}
