//! The node's desired state, and one task a fault that brings it about.
//!
//! It accepts a whole state if its generation is not older than the last, starts what is new, ends what is not listed
//! any more, and tells everyone who watches what comes of it. It refuses states of other nodes and older generations.
//! What a fault *is* stands elsewhere.

mod fault;
mod lasting;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::{
    sync::{Notify, broadcast, watch},
    task::AbortHandle,
    time::Instant,
};

use crate::{
    journal::{Journal, JournalError, Progress},
    kill::Tools,
    metrics::{Kind, Metrics},
    order::{Action, Desired, Order, Stage},
    report::{FaultReport, Generation, Reason, State},
    setting::Settings,
};

/// Reports that a slow watcher may lag behind before it has to start again with a snapshot.
const BACKLOG: usize = 4096;
/// Outcomes that would be found out again after a restart are written together.
const WRITTEN_WITHIN: Duration = Duration::from_millis(5);
/// How long those that are ordered to fire together wait for each other's containers to be found.
const TOGETHER_WITHIN: Duration = Duration::from_millis(50);
/// The kubelet kills a daemon that takes longer than 30 s to end.
const PUT_BACK_WITHIN: Duration = Duration::from_secs(20);

/// Why a state was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// It is older than one that was accepted.
    #[error(
        "generation {}.{} is older than {}.{}, which this node has accepted",
        got.term, got.counter, held.term, held.counter
    )]
    Stale {
        /// What came.
        got: Generation,
        /// What is held.
        held: Generation,
    },
    /// It is for another node.
    #[error("node: the state is for {got:?}, this is {own:?}")]
    OtherNode {
        /// Whose it is.
        got: String,
        /// Who we are.
        own: String,
    },
    /// It could not be written down, so nothing was begun; what it ends was ended.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// How far a fault shall go, and until when it stands without being renewed.
#[derive(Clone, Copy, Debug)]
struct Command {
    stage: Stage,
    /// When the order to go this far came.
    ordered: SystemTime,
    expires: Instant,
    /// Whether the state still lists it.
    listed: bool,
    /// The daemon ends, and what must not outlive it is put back.
    ending: bool,
}

struct Running {
    command: watch::Sender<Command>,
    task: AbortHandle,
    /// Closed as soon as its container is found, or won't be.
    finding: watch::Receiver<()>,
    /// Whether something may stand: then it is told to recover, and never dropped.
    lasting: bool,
}

impl Running {
    /// Has it end as if nobody had renewed its order.
    fn expire(&self, now: Instant) {
        self.command.send_modify(|command| (command.expires, command.listed) = (now, true));
    }
}

struct Inner {
    journal: Journal,
    running: HashMap<String, Running>,
    /// The last report of each fault that is listed.
    reports: BTreeMap<String, FaultReport>,
    /// What sort each fault is that is listed, or still running.
    kinds: HashMap<String, Kind>,
}

/// The node.
pub struct Node {
    name: String,
    tools: Tools,
    /// What lasting faults have lowered.
    settings: Settings,
    metrics: Metrics,
    inner: Mutex<Inner>,
    told: broadcast::Sender<FaultReport>,
    write: Notify,
    /// A lasting fault has ended.
    ended: Notify,
}

impl Node {
    /// A node with the memory of `journal`. What a daemon before this one left standing is put back first.
    pub fn new(name: String, tools: Tools, mut journal: Journal) -> Arc<Self> {
        lasting::put_back_left_over(&mut journal);
        let reports = journal
            .faults()
            .filter_map(|(id, progress)| match progress {
                Progress::Intended { .. } => None,
                Progress::Standing { interruptions, .. } => Some((
                    id.clone(),
                    lasting::left_over(id, State::Failed(Reason::Internal), *interruptions),
                )),
                Progress::Interrupted { interruptions } => {
                    Some((id.clone(), lasting::left_over(id, State::Armed, *interruptions)))
                }
                Progress::Fired { report, .. } | Progress::Final(report) => {
                    Some((id.clone(), report.shortened()))
                }
            })
            .collect();
        let inner = Inner { journal, running: HashMap::new(), reports, kinds: HashMap::new() };
        let (told, _) = broadcast::channel(BACKLOG);
        Arc::new(Self {
            name,
            tools,
            settings: Settings::default(),
            metrics: Metrics::default(),
            inner: Mutex::new(inner),
            told,
            write: Notify::new(),
            ended: Notify::new(),
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What its faults work with.
    pub fn tools(&self) -> &Tools {
        &self.tools
    }

    /// What it counts, as Prometheus reads it.
    pub fn metrics(&self) -> Result<String, std::fmt::Error> {
        let mut active = BTreeMap::new();
        {
            let inner = self.lock();
            for id in inner.running.keys() {
                *active.entry(inner.kinds.get(id).copied().unwrap_or(Kind::Unknown)).or_default() += 1;
            }
        }
        self.metrics.encode(&active, self.tools.engine.is_loaded())
    }

    fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Makes `desired` the state that the node shall have.
    pub fn apply(self: &Arc<Self>, desired: Desired) -> Result<Generation, ApplyError> {
        let came = (SystemTime::now(), Instant::now());
        let Desired { generation, node, faults, senseless } = desired;
        if node != self.name {
            return Err(ApplyError::OtherNode { got: node, own: self.name.clone() });
        }
        let mut inner = self.lock();
        let held = inner.journal.generation();
        if generation < held {
            return Err(ApplyError::Stale { got: generation, held });
        }
        let (faults, unknown): (Vec<_>, Vec<_>) =
            faults.into_iter().partition(|fault| fault.action.is_some());
        let unknown = unknown.into_iter().map(|fault| (fault.id, lasting::UNKNOWN.to_owned()));
        let senseless =
            senseless.into_iter().map(|(id, error)| (id, format!("the order makes no sense: {error}")));
        let refused: BTreeMap<String, String> = senseless.chain(unknown).collect();
        let ids = faults.iter().map(|fault| &fault.id).chain(refused.keys());
        let listed: BTreeSet<&str> = ids.map(String::as_str).collect();
        let accepted = inner.journal.accept(generation, &listed);
        end_unlisted(&mut inner.running, &listed);
        if let Err(error) = accepted {
            // Nothing may begin or go on for longer, but nobody has to wait for the end of what stands: for that the
            // journal is not needed. What still stands in it is put back twice, which does no harm.
            faults.iter().for_each(|fault| end_sooner(&inner.running, fault, came.1));
            refused.keys().filter_map(|id| inner.running.get(id)).for_each(|running| running.expire(came.1));
            return Err(error.into());
        }
        inner.reports.retain(|id, _| listed.contains(id.as_str()));
        let Inner { running, kinds, .. } = &mut *inner;
        kinds.retain(|id, _| running.contains_key(id));
        let mut volley = Vec::new();
        for fault in faults {
            inner.kinds.insert(fault.id.clone(), Kind::of(fault.action.as_ref()));
            volley.extend(self.order(&mut inner, fault, came));
        }
        for (id, why) in refused {
            inner.kinds.entry(id.clone()).or_insert(Kind::Unknown);
            self.refuse(&mut inner, &id, why, came.1);
        }
        fire(volley, came.0);
        Ok(generation)
    }

    /// What is known of the listed faults, and everything that follows.
    pub fn watch(&self) -> (Generation, Vec<FaultReport>, broadcast::Receiver<FaultReport>) {
        let inner = self.lock();
        let mut reports = inner.reports.clone();
        // Whoever is told of a fault knows that a state without it ends it: so those of which nothing was told yet are
        // told of, too.
        let untold = |id: &str, state| FaultReport::new(id, state, String::new());
        for (id, progress) in inner.journal.faults() {
            match progress {
                Progress::Intended { .. } => {
                    reports.entry(id.clone()).or_insert_with(|| untold(id, State::Fired));
                }
                // They have the report that was noted.
                Progress::Fired { .. }
                | Progress::Final(_)
                | Progress::Standing { .. }
                | Progress::Interrupted { .. } => {}
            }
        }
        for (id, _) in inner.running.iter().filter(|(_, running)| running.command.borrow().listed) {
            reports.entry(id.clone()).or_insert_with(|| untold(id, State::Armed));
        }
        // Subscribed under the lock: nothing is missed, and nothing is told twice out of order.
        (inner.journal.generation(), reports.into_values().collect(), self.told.subscribe())
    }

    /// Writes outcomes down as they come, for ever.
    pub async fn keep_written(&self) {
        loop {
            self.write.notified().await;
            tokio::time::sleep(WRITTEN_WITHIN).await;
            let mut inner = self.lock();
            if inner.journal.is_unwritten()
                && let Err(error) = inner.journal.write()
            {
                tracing::error!(%error, "the journal could not be written");
            }
        }
    }

    /// Puts back what must not outlive the daemon; it will be injected again by the next one, if it is still ordered.
    pub async fn put_back(&self) {
        let end = Instant::now() + PUT_BACK_WITHIN;
        let left = || {
            let inner = self.lock();
            let lasting = inner.running.values().filter(|running| running.lasting);
            lasting.map(|running| running.command.send_modify(|command| command.ending = true)).count()
        };
        loop {
            let ended = self.ended.notified();
            match left() {
                0 => return,
                left if Instant::now() >= end => {
                    tracing::error!(left, "not all was put back in time; the next daemon will do it");
                    return;
                }
                _ => {}
            }
            // Some wait for what takes longer than the end of others.
            let _ = tokio::time::timeout_at(end, ended).await;
        }
    }

    /// Lets go of everything that is under way, and writes the last of it down. Signals that were sent stay sent.
    pub fn shut_down(&self) {
        let mut inner = self.lock();
        for (_, running) in inner.running.drain() {
            running.task.abort();
        }
        if let Err(error) = inner.journal.write() {
            tracing::error!(%error, "the journal could not be written");
        }
    }

    /// Brings an order to its fault's task, which is started if there is none. What is to be fired now is handed back.
    fn order(
        self: &Arc<Self>,
        inner: &mut Inner,
        fault: Order,
        (ordered, now): (SystemTime, Instant),
    ) -> Option<Shot> {
        let expires = now + fault.ttl;
        let lasting = match &fault.action {
            Some(Action::Freeze | Action::Stress(_)) => true,
            Some(Action::Kill(_)) | None => false,
        };
        if let Some(running) = inner.running.get(&fault.id) {
            let mut shot = None;
            running.command.send_modify(|command| {
                let on = match (command.stage, fault.stage) {
                    (Stage::Arm, Stage::Fire) if !lasting => {
                        shot =
                            Some(Shot { command: running.command.clone(), finding: running.finding.clone() });
                        false
                    }
                    (Stage::Arm, Stage::Fire) => true,
                    (Stage::Arm | Stage::Fire, Stage::Recover) | (Stage::Recover, Stage::Fire) => lasting,
                    (_, Stage::Arm) | (Stage::Fire, Stage::Fire) | (Stage::Recover, Stage::Recover) => false,
                };
                if on {
                    (command.stage, command.ordered) = (fault.stage, ordered);
                }
                (command.expires, command.listed) = (expires, true);
            });
            return shot;
        }
        let progress = inner.journal.progress(&fault.id).cloned();
        // What has an outcome is never done again; but what was put back as ordered may be ordered again.
        if let Some(Progress::Final(report)) = &progress
            && (report.state != State::Recovered || fault.stage != Stage::Fire)
        {
            return None;
        }
        tracing::info!(
            fault = fault.id, experiment = fault.experiment, pod_uid = fault.container.pod_uid,
            container = fault.container.id, stage = ?fault.stage, "ordered"
        );
        // A kill that nobody has prepared for is fired together with the others, too.
        let stage = if lasting || progress.is_some() { fault.stage } else { Stage::Arm };
        let fires = stage != fault.stage;
        let command = Command { stage, ordered, expires, listed: true, ending: false };
        let (command, commands) = watch::channel(command);
        let (found, finding) = watch::channel(());
        let (id, node) = (fault.id.clone(), Arc::clone(self));
        let task = if lasting {
            tokio::spawn(lasting::run(node, fault, commands, progress))
        } else {
            tokio::spawn(fault::run(node, fault, commands, progress, found))
        };
        let shot = fires.then(|| Shot { command: command.clone(), finding: finding.clone() });
        inner.running.insert(id, Running { command, task: task.abort_handle(), finding, lasting });
        shot
    }

    /// Refuses an order that can't be obeyed, whatever its fault is. What is under way ends at once, as if the order had
    /// not been renewed: what is wanted of it nobody knows. So it is put back, or fires no more, and what it did is told.
    fn refuse(&self, inner: &mut Inner, id: &str, why: String, now: Instant) {
        if let Some(running) = inner.running.get(id) {
            tracing::warn!(fault = id, why, "its order is no longer understood");
            running.expire(now);
            return;
        }
        let signalled = || format!("the daemon was interrupted while it signalled; {why}");
        let internal = State::Failed(Reason::Internal);
        let report = match inner.journal.progress(id) {
            None | Some(Progress::Interrupted { .. }) => {
                FaultReport::new(id, State::Refused(Reason::Unsupported), why)
            }
            // It is not done again, nor called refused.
            Some(Progress::Intended { .. }) => FaultReport::new(id, internal, signalled()),
            Some(Progress::Fired { report, .. }) => {
                FaultReport { state: internal, message: signalled(), ..report.clone() }
            }
            // It has an outcome, or is still to be put back and must not be forgotten before.
            Some(Progress::Final(_) | Progress::Standing { .. }) => return,
        };
        inner.journal.note_soon(id, Progress::Final(report.shortened()));
        self.write.notify_one();
        self.broadcast(inner, report);
    }

    /// Tells what has become of a fault; with `target`, the process that it was fired at.
    fn tell(&self, report: FaultReport, target: Option<(i32, u64)>) {
        let mut inner = self.lock();
        // Who is no longer listed has nobody to tell it to.
        if inner.running.get(&report.id).is_some_and(|running| !running.command.borrow().listed) {
            return;
        }
        if report.state.is_final() {
            inner.running.remove(&report.id);
            inner.journal.note_soon(&report.id, Progress::Final(report.shortened()));
            self.write.notify_one();
        } else if let Some((pid, start)) = target {
            inner.journal.note_soon(&report.id, Progress::Fired { pid, start, report: report.clone() });
            self.write.notify_one();
        }
        self.broadcast(&mut inner, report);
    }

    fn broadcast(&self, inner: &mut Inner, report: FaultReport) {
        let FaultReport { id, state, message, receipt, lasting: _ } = &report;
        tracing::info!(fault = id, ?state, message, "report");
        if state.is_final()
            && let Some(receipt) = receipt
        {
            receipt.processes.iter().for_each(|process| process.log(id));
        }
        let kind = inner.kinds.get(id).copied().unwrap_or(Kind::Unknown);
        self.metrics.told(kind, &report);
        // A snapshot of many large ones would be too large to be taken.
        inner.reports.insert(report.id.clone(), report.shortened());
        // Nobody may be watching now; whoever comes gets it in the snapshot.
        let _ = self.told.send(report);
    }

    /// Writes down that a signal is about to be sent.
    fn intend(&self, id: &str, pid: i32, start: u64) -> Result<(), JournalError> {
        self.lock().journal.note(id, Progress::Intended { pid, start })
    }

    /// Takes an intent back: what was intended was not done, and will not be.
    fn withdraw(&self, id: &str) {
        let mut inner = self.lock();
        // Ordered anew meanwhile, it is another's intent.
        let ours = !inner.running.contains_key(id);
        if ours && matches!(inner.journal.progress(id), Some(Progress::Intended { .. })) {
            inner.journal.forget(id);
            if let Err(error) = inner.journal.write() {
                tracing::error!(%error, "the journal could not be written");
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // The journal is replaced as a whole: a panic in between leaves nothing half-done.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends what is not listed any more.
fn end_unlisted(running: &mut HashMap<String, Running>, listed: &BTreeSet<&str>) {
    running.retain(|id, running| {
        if listed.contains(id.as_str()) {
            return true;
        }
        tracing::info!(fault = id, "no longer ordered");
        if running.lasting {
            running.command.send_modify(|command| {
                command.listed = false;
                command.stage = Stage::Recover;
            });
        } else {
            // Whatever it holds is let go of with its task.
            running.task.abort();
        }
        running.lasting
    });
}

/// Does of `fault` what ends it, or has it end sooner; nothing else.
fn end_sooner(running: &HashMap<String, Running>, fault: &Order, now: Instant) {
    let Some(running) = running.get(&fault.id) else { return };
    running.command.send_modify(|command| {
        if running.lasting && fault.stage == Stage::Recover {
            command.stage = Stage::Recover;
        }
        command.expires = command.expires.min(now + fault.ttl);
    });
}

/// A kill that is ordered to be fired.
struct Shot {
    command: watch::Sender<Command>,
    finding: watch::Receiver<()>,
}

impl Shot {
    fn fire(&self, ordered: SystemTime) {
        self.command.send_modify(|command| {
            // It may have been fired by a later state, which says the same.
            if command.stage == Stage::Arm {
                (command.stage, command.ordered) = (Stage::Fire, ordered);
            }
        });
    }
}

/// Fires all of them at once, when the container of each is found. One that was killed before the others would be taken
/// down by its runtime meanwhile, and that takes the processor from whoever looks for theirs.
fn fire(volley: Vec<Shot>, ordered: SystemTime) {
    if let [shot] = volley.as_slice() {
        return shot.fire(ordered);
    }
    tokio::spawn(async move {
        let mut volley = volley;
        let all = async {
            for shot in &mut volley {
                // Nothing is ever sent: it ends.
                let _ = shot.finding.changed().await;
            }
        };
        // Who isn't found in time is fired at when he is.
        let _ = tokio::time::timeout(TOGETHER_WITHIN, all).await;
        for shot in volley {
            shot.fire(ordered);
        }
    });
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinHandle;

    use super::*;
    use crate::{
        cgroup::CgroupRoot,
        ebpf::Engine,
        order::{ContainerRef, Kill, OrderError, Scope},
        runtime::Runtimes,
    };

    pub(super) fn tools() -> Tools {
        Tools {
            engine: Arc::new(Engine::new(false)),
            cgroups: CgroupRoot::discover("/sys/fs/cgroup".as_ref(), "/proc".as_ref()).unwrap(),
            runtimes: Runtimes::default(),
        }
    }

    fn order(id: &str, stage: Stage) -> Order {
        Order {
            id: id.into(),
            experiment: String::new(),
            container: ContainerRef {
                namespace: "ns".into(),
                pod: "p".into(),
                pod_uid: "u".into(),
                name: "c".into(),
                scheme: "none".into(),
                id: "abc".into(),
            },
            stage,
            ttl: Duration::from_secs(30),
            action: Some(Action::Kill(Kill::now(libc::SIGKILL, Scope::Init))),
        }
    }

    fn state(counter: u64, faults: Vec<Order>) -> Desired {
        let generation = Generation { term: 1, counter };
        Desired { generation, node: "n".into(), faults, senseless: BTreeMap::new() }
    }

    /// A fault that stands for a minute, without anything behind it.
    pub(super) fn stands(node: &Node, id: &str, lasting: bool) -> (watch::Receiver<Command>, JoinHandle<()>) {
        let expires = Instant::now() + Duration::from_secs(60);
        let (command, commands) = watch::channel(Command {
            stage: Stage::Fire,
            ordered: SystemTime::now(),
            expires,
            listed: true,
            ending: false,
        });
        let task = tokio::spawn(std::future::pending());
        let running = Running { command, task: task.abort_handle(), finding: watch::channel(()).1, lasting };
        node.lock().running.insert(id.into(), running);
        (commands, task)
    }

    #[tokio::test]
    async fn every_fault_is_in_the_snapshot_though_nothing_was_told_of_it_yet() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path()).unwrap();
        journal.note("interrupted", Progress::Intended { pid: i32::MAX, start: 1 }).unwrap();
        let node = Node::new("n".into(), tools(), journal);
        let told = |node: &Node| -> Vec<_> {
            node.watch().1.into_iter().map(|report| (report.id, report.state, report.receipt)).collect()
        };
        let interrupted = ("interrupted".to_owned(), State::Fired, None);
        assert_eq!(told(&node), vec![interrupted.clone()]);
        let faults = vec![order("interrupted", Stage::Arm), order("new", Stage::Arm)];
        node.apply(state(1, faults)).unwrap();
        // Nothing is awaited: their tasks have not run yet.
        assert_eq!(told(&node), [interrupted, ("new".to_owned(), State::Armed, None)]);
    }

    #[tokio::test]
    async fn what_ends_a_fault_is_done_though_the_journal_cannot_be_written() {
        let dir = tempfile::tempdir().unwrap();
        let node = Node::new("n".into(), tools(), Journal::open(dir.path()).unwrap());
        let ids = ["recovers", "shorter", "longer", "unlisted", "trigger"];
        let [recovers, shorter, longer, unlisted, trigger] = ids.map(|id| stands(&node, id, id != "trigger"));
        let before = longer.0.borrow().expires;
        drop(dir);
        let of = |id, ttl| Order { ttl: Duration::from_secs(ttl), ..order(id, Stage::Fire) };
        let faults =
            vec![order("recovers", Stage::Recover), of("shorter", 1), of("longer", 600), of("new", 600)];
        let refused = node.apply(state(1, faults)).unwrap_err();
        assert!(matches!(refused, ApplyError::Journal(_)), "{refused}");
        let told = |commands: &watch::Receiver<Command>| (commands.borrow().stage, commands.borrow().listed);
        assert_eq!(told(&recovers.0), (Stage::Recover, true));
        assert_eq!(told(&unlisted.0), (Stage::Recover, false));
        assert_eq!(told(&shorter.0), (Stage::Fire, true));
        assert!(shorter.0.borrow().expires < before);
        assert!(trigger.1.await.unwrap_err().is_cancelled());
        // Nothing begins, and nothing goes on for longer.
        assert_eq!(longer.0.borrow().expires, before);
        let inner = node.lock();
        assert!(!inner.running.contains_key("new"));
        assert_eq!(inner.journal.generation(), Generation::default());
    }
    #[tokio::test]
    async fn an_order_that_cannot_be_obeyed_ends_what_is_under_way_and_begins_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path()).unwrap();
        let internal = State::Failed(Reason::Internal);
        let known = FaultReport::new("fired", State::Fired, String::new());
        let done = FaultReport::new("done", State::Done, String::new());
        for (id, progress) in [
            ("intended", Progress::Intended { pid: 7, start: 1 }),
            ("fired", Progress::Fired { pid: 7, start: 1, report: known }),
            ("done", Progress::Final(done)),
            ("interrupted", Progress::Interrupted { interruptions: 1 }),
        ] {
            journal.note(id, progress).unwrap();
        }
        let node = Node::new("n".into(), tools(), journal);
        let running = [stands(&node, "lasting", true), stands(&node, "kill", false)];
        let standing = Progress::Standing { undos: vec![], interruptions: 0 };
        for id in ["lasting", "left"] {
            node.lock().journal.note(id, standing.clone()).unwrap();
        }
        let wrong = || OrderError { field: "stage".into(), problem: "is missing".into() };
        let ids = ["lasting", "kill", "new", "intended", "fired", "done", "interrupted", "left"];
        let senseless: BTreeMap<_, _> = ids.into_iter().map(|id| (id.to_owned(), wrong())).collect();
        let unknown = Order { action: None, ..order("unknown", Stage::Fire) };
        node.apply(Desired { senseless, ..state(1, vec![order("sense", Stage::Arm), unknown]) }).unwrap();
        for (commands, task) in running {
            assert!(commands.borrow().expires <= Instant::now() && !task.is_finished());
        }
        let inner = node.lock();
        let mut running: Vec<&str> = inner.running.keys().map(String::as_str).collect();
        running.sort_unstable();
        assert_eq!(running, ["kill", "lasting", "sense"]);
        let refused = State::Refused(Reason::Unsupported);
        for (id, state) in [
            ("new", refused),
            ("unknown", refused),
            ("interrupted", refused),
            ("intended", internal),
            ("fired", internal),
            ("done", State::Done),
        ] {
            assert_eq!(inner.reports[id].state, state, "{id}");
            let noted = Progress::Final(inner.reports[id].clone());
            assert_eq!(inner.journal.progress(id), Some(&noted), "{id}");
        }
        for id in ["lasting", "left"] {
            assert_eq!(inner.journal.progress(id), Some(&standing), "{id}");
        }
        assert!(inner.reports["new"].message.ends_with("stage: is missing"));
    }
}
