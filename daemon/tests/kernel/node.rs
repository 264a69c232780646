//! Orders to the node, from the whole desired state to the report: armed, fired once, remembered, and let go of.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};

use squall_api::grpc;
use squall_daemon::{
    EBPF_LOG_TARGET,
    ebpf::Engine,
    journal::{Journal, Progress},
    kill::Tools,
    node::{ApplyError, Node},
    order::{Action, ContainerRef, Desired, Kill, On, Order, Scope, Stage},
    report::{Evidence, FaultReport, Generation, Reason, State},
    runtime::{ContainerInfo, Runtime, RuntimeError, Runtimes},
};
use tempfile::TempDir;
use tokio::sync::broadcast::Receiver;

use super::{
    sandbox::{Sandbox, Target, crowd, rounds, slack, struck, tools, until},
    work::Place,
};

#[path = "../server/hostile.rs"]
mod hostile;

crate::cases![
    an_armed_kill_is_fired_when_ordered_and_only_once,
    what_is_no_longer_ordered_is_disarmed,
    an_order_that_is_not_renewed_expires_and_disarms,
    an_order_that_is_renewed_stays,
    thirty_containers_die_together,
    two_hundred_containers_die_together,
    kills_that_are_ordered_together_are_sent_together,
    a_protected_namespace_is_refused,
    a_trigger_is_armed_fires_and_is_done,
    a_trigger_that_does_not_fire_in_time_says_so,
    a_trigger_is_armed_again_after_a_restart,
    a_trigger_that_may_have_fired_is_not_armed_again,
    a_daemon_that_died_after_the_signal_does_not_send_it_again,
    a_daemon_that_died_before_the_signal_sends_it_when_ordered_again,
    a_daemon_that_died_while_it_signalled_sends_no_second_sigterm,
    a_daemon_that_died_while_the_target_died_reports_it_done,
    an_order_for_another_pod_is_refused,
    hostile_orders_for_a_container_that_is_there_kill_no_task,
    the_programs_log_what_they_do_when_they_are_told_to,
];

/// Knows the sandboxes as a runtime knows its containers.
#[derive(Default)]
struct Sandboxes {
    known: Mutex<BTreeMap<String, ContainerInfo>>,
    /// How long it takes to tell of a container; unset: no time.
    takes: BTreeMap<String, Duration>,
}

#[async_trait::async_trait]
impl Runtime for Sandboxes {
    fn scheme(&self) -> &'static str {
        "test"
    }

    fn socket(&self) -> String {
        String::new()
    }

    async fn check(&self) -> Result<(), RuntimeError> {
        Ok(())
    }

    async fn container(&self, id: &str) -> Result<ContainerInfo, RuntimeError> {
        if let Some(takes) = self.takes.get(id) {
            tokio::time::sleep(*takes).await;
        }
        let known = self.known.lock().expect("the sandboxes").get(id).cloned();
        known.ok_or_else(|| RuntimeError::Gone { id: id.to_owned(), why: "unknown".into() })
    }

    async fn exit_code(&self, _: &str) -> Result<i32, RuntimeError> {
        std::future::pending().await
    }
}

impl Sandboxes {
    fn add(&self, order: ContainerRef, init_pid: i32) {
        let info = ContainerInfo {
            init_pid,
            namespace: Some(order.namespace),
            pod: Some(order.pod),
            pod_uid: Some(order.pod_uid),
            name: Some(order.name),
            by_cgroup: false,
        };
        self.known.lock().expect("the sandboxes").insert(order.id, info);
    }
}

pub struct Rig {
    sandboxes: Arc<Sandboxes>,
    pub dir: TempDir,
    pub tools: Tools,
    pub node: Arc<Node>,
    reports: Receiver<FaultReport>,
    counter: u64,
}

impl Rig {
    pub fn new(targets: &[(&Sandbox, &Target)]) -> Self {
        let targets: Vec<_> =
            targets.iter().map(|(sandbox, target)| (sandbox.order(), target.pid())).collect();
        Self::of(&targets)
    }

    /// For containers that are known by their first processes.
    pub fn of(targets: &[(ContainerRef, i32)]) -> Self {
        Self::with(targets, BTreeMap::new())
    }

    /// The same, of which it takes so long to be told.
    pub fn with(targets: &[(ContainerRef, i32)], takes: BTreeMap<String, Duration>) -> Self {
        let sandboxes = Arc::new(Sandboxes { takes, ..Sandboxes::default() });
        for (order, init_pid) in targets.iter().cloned() {
            sandboxes.add(order, init_pid);
        }
        let runtime: Arc<dyn Runtime> = Arc::clone(&sandboxes) as _;
        let tools = Tools { runtimes: Runtimes::new(vec![runtime]), ..tools() };
        let dir = tempfile::tempdir().expect("a directory");
        let (node, reports) = start(&tools, dir.path());
        Self { sandboxes, dir, tools, node, reports, counter: 0 }
    }

    /// A new daemon with the memory of this one.
    pub fn start_again(&mut self) {
        self.node.shut_down();
        // The old one may hold its lock for a moment longer.
        let dir = tempfile::tempdir().expect("a directory");
        fs::copy(self.dir.path().join("journal"), dir.path().join("journal")).expect("copying the journal");
        self.start_in(dir.path());
        self.dir = dir;
    }

    /// A new daemon with the memory in `dir`.
    pub fn start_in(&mut self, dir: &Path) {
        self.node.shut_down();
        (self.node, self.reports) = start(&self.tools, dir);
        self.counter = self.node.watch().0.counter;
    }

    pub fn order(&mut self, faults: Vec<Order>) {
        self.apply(faults).expect("accepted");
    }

    pub fn apply(&mut self, faults: Vec<Order>) -> Result<Generation, ApplyError> {
        self.counter += 1;
        let generation = Generation { term: 1, counter: self.counter };
        self.node.apply(Desired { generation, node: "n".into(), faults, senseless: BTreeMap::new() })
    }

    pub async fn report(&mut self) -> FaultReport {
        tokio::time::timeout(slack(Duration::from_secs(10)), self.reports.recv())
            .await
            .expect("a report")
            .expect("reports")
    }

    pub async fn outcome(&mut self) -> FaultReport {
        loop {
            let report = self.report().await;
            if report.state.is_final() {
                return report;
            }
        }
    }

    /// A new daemon that finds in the journal what `written` left there.
    pub fn restart(&mut self, written: impl FnOnce(&mut Journal)) {
        self.node.shut_down();
        // The old one may hold its lock for a moment longer; a kill -9 would not.
        self.dir = tempfile::tempdir().expect("a directory");
        written(&mut Journal::open(self.dir.path()).expect("a journal"));
        (self.node, self.reports) = start(&self.tools, self.dir.path());
        // Orders of the new one start anew, too.
        self.counter += 1;
    }
}

fn start(tools: &Tools, dir: &Path) -> (Arc<Node>, Receiver<FaultReport>) {
    let node = Node::new("n".into(), tools.clone(), Journal::open(dir).expect("a journal"));
    let keeper = Arc::clone(&node);
    tokio::spawn(async move { keeper.keep_written().await });
    let (_, _, reports) = node.watch();
    (node, reports)
}

fn fault(sandbox: &Sandbox, stage: Stage, signal: i32) -> Order {
    Order {
        id: sandbox.id.clone(),
        experiment: "ns/x".into(),
        container: sandbox.order(),
        stage,
        ttl: slack(Duration::from_secs(30)),
        action: Some(Action::Kill(Kill::now(signal, Scope::Init))),
    }
}

async fn an_armed_kill_is_fired_when_ordered_and_only_once() {
    let mut sandbox = Sandbox::new();
    let target = sandbox.start("count");
    let mut rig = Rig::new(&[(&sandbox, &target)]);
    rig.order(vec![fault(&sandbox, Stage::Arm, libc::SIGTERM)]);
    let armed = rig.report().await;
    assert_eq!((armed.state, armed.message.as_str()), (State::Armed, ""));
    for _ in 0..3 {
        rig.order(vec![fault(&sandbox, Stage::Fire, libc::SIGTERM)]);
    }
    let fired = rig.report().await;
    assert_eq!(fired.state, State::Fired, "{fired:?}");
    let receipt = fired.receipt.expect("a receipt");
    let took = receipt.fired.expect("fired").duration_since(receipt.ordered).expect("in order");
    // The figure is measured over many; this only says that nothing waits.
    assert!(took < slack(Duration::from_millis(50)), "{took:?}");
    let done = rig.outcome().await;
    assert_eq!(done.state, State::Done, "{done:?}");
    let receipt = done.receipt.expect("a receipt");
    assert_eq!((receipt.evidence, receipt.processes[0].exit_code), (Evidence::Ebpf, Some(1)));
    target.wait().await;
    // Ordered again: the outcome stands, and nothing is signalled.
    rig.order(vec![fault(&sandbox, Stage::Fire, libc::SIGTERM)]);
    let (_, known, _) = rig.node.watch();
    assert_eq!((known.len(), known[0].state), (1, State::Done));
    rig.counter = 0;
    let stale = rig.apply(vec![]);
    assert!(matches!(stale, Err(ApplyError::Stale { .. })));
}

async fn what_is_no_longer_ordered_is_disarmed() {
    let mut sandbox = Sandbox::new();
    let mut target = sandbox.start("busy");
    let mut rig = Rig::new(&[(&sandbox, &target)]);
    rig.order(vec![fault(&sandbox, Stage::Arm, libc::SIGKILL)]);
    assert_eq!(rig.report().await.state, State::Armed);
    assert!(rig.tools.engine.is_loaded());
    rig.order(vec![]);
    let engine = Arc::clone(&rig.tools.engine);
    until(Duration::from_secs(2), "the programs are gone", || !engine.is_loaded()).await;
    assert!(target.runs());
    assert!(rig.node.watch().1.is_empty());
}

async fn an_order_that_is_not_renewed_expires_and_disarms() {
    let mut sandbox = Sandbox::new();
    let mut target = sandbox.start("busy");
    let mut rig = Rig::new(&[(&sandbox, &target)]);
    rig.order(vec![Order { ttl: Duration::from_millis(300), ..fault(&sandbox, Stage::Arm, libc::SIGKILL) }]);
    let expired = rig.outcome().await;
    assert_eq!(expired.state, State::Failed(Reason::Expired), "{expired:?}");
    let engine = Arc::clone(&rig.tools.engine);
    until(Duration::from_secs(2), "the programs are gone", || !engine.is_loaded()).await;
    assert!(target.runs());
}

async fn an_order_that_is_renewed_stays() {
    let mut sandbox = Sandbox::new();
    let target = sandbox.start("sleep");
    let mut rig = Rig::new(&[(&sandbox, &target)]);
    let short =
        |stage| Order { ttl: slack(Duration::from_millis(400)), ..fault(&sandbox, stage, libc::SIGKILL) };
    for _ in 0..3 {
        rig.order(vec![short(Stage::Arm)]);
        tokio::time::sleep(slack(Duration::from_millis(150))).await;
    }
    rig.order(vec![short(Stage::Fire)]);
    assert_eq!(rig.outcome().await.state, State::Done);
    target.wait().await;
}

async fn containers_die_together(count: usize, within: Duration) {
    let mut sandboxes: Vec<Sandbox> = (0..count).map(|_| Sandbox::new()).collect();
    let targets: Vec<Target> = sandboxes.iter_mut().map(|sandbox| sandbox.start("sleep")).collect();
    let pairs: Vec<_> = sandboxes.iter().zip(&targets).collect();
    let mut rig = Rig::new(&pairs);
    // Without arming first: the worst case.
    let start = Instant::now();
    rig.order(sandboxes.iter().map(|sandbox| fault(sandbox, Stage::Fire, libc::SIGKILL)).collect());
    let mut evidence = BTreeMap::new();
    for _ in 0..count {
        let done = rig.outcome().await;
        assert_eq!(done.state, State::Done, "{done:?}");
        let receipt = done.receipt.expect("a receipt");
        assert_eq!(receipt.processes.len(), 1, "{receipt:?}");
        *evidence.entry(format!("{:?} {}", receipt.evidence, receipt.evidence_error)).or_insert(0) += 1;
    }
    let took = start.elapsed();
    println!("  last report after {took:?}: {evidence:?}");
    // Unoptimised, and on a busy machine.
    assert!(took < slack(within), "{took:?}");
    for target in targets {
        target.wait().await;
    }
}

async fn thirty_containers_die_together() {
    containers_die_together(30, Duration::from_secs(3)).await;
}

async fn two_hundred_containers_die_together() {
    containers_die_together(crowd(200, 40), Duration::from_secs(20)).await;
}

async fn kills_that_are_ordered_together_are_sent_together() {
    let mut sandboxes: Vec<Sandbox> = (0..4).map(|_| Sandbox::new()).collect();
    let targets: Vec<Target> = sandboxes.iter_mut().map(|sandbox| sandbox.start("sleep")).collect();
    let known: Vec<_> =
        sandboxes.iter().zip(&targets).map(|(sandbox, target)| (sandbox.order(), target.pid())).collect();
    // One is found a little later, and is waited for; one much later, and isn't.
    let (late, lost) =
        (Duration::from_millis(30), slack(Duration::from_millis(300)).max(Duration::from_secs(1)));
    let takes = BTreeMap::from([(sandboxes[2].id.clone(), late), (sandboxes[3].id.clone(), lost)]);
    let mut rig = Rig::with(&known, takes);
    let before = SystemTime::now();
    rig.order(sandboxes.iter().map(|sandbox| fault(sandbox, Stage::Fire, libc::SIGKILL)).collect());
    let mut fired = BTreeMap::new();
    for _ in 0..4 {
        let done = rig.outcome().await;
        assert_eq!(done.state, State::Done, "{done:?}");
        fired.insert(done.id, done.receipt.and_then(|receipt| receipt.fired).expect("fired"));
    }
    let after = |index: usize| fired[&sandboxes[index].id].duration_since(before).expect("in order");
    assert!((0..3).all(|index| after(index) >= late && after(index) < lost), "{fired:?}");
    assert!(after(3) >= lost, "{fired:?}");
    for target in targets {
        target.wait().await;
    }
}

fn fired(sandbox: &Sandbox) -> FaultReport {
    FaultReport::new(&sandbox.id, State::Fired, String::new())
}

fn start_of(target: &Target) -> u64 {
    squall_daemon::process::start_time(Path::new("/proc"), target.pid()).expect("its start")
}

async fn a_daemon_that_died_after_the_signal_does_not_send_it_again() {
    let mut sandbox = Sandbox::new();
    let mut target = sandbox.start("sleep");
    let (pid, start) = (target.pid(), start_of(&target));
    let mut rig = Rig::new(&[(&sandbox, &target)]);
    let report = fired(&sandbox);
    rig.restart(|journal| journal.note(&sandbox.id, Progress::Fired { pid, start, report }).expect("noted"));
    rig.order(vec![Order { ttl: Duration::from_millis(500), ..fault(&sandbox, Stage::Fire, libc::SIGKILL) }]);
    let outcome = rig.outcome().await;
    assert_eq!(outcome.state, State::Failed(Reason::SignalIgnored), "{outcome:?}");
    assert!(target.runs(), "it was signalled a second time");
}

async fn a_daemon_that_died_before_the_signal_sends_it_when_ordered_again() {
    let mut sandbox = Sandbox::new();
    let target = sandbox.start("sleep");
    let (pid, start) = (target.pid(), start_of(&target));
    let mut rig = Rig::new(&[(&sandbox, &target)]);
    rig.restart(|journal| journal.note(&sandbox.id, Progress::Intended { pid, start }).expect("noted"));
    rig.order(vec![fault(&sandbox, Stage::Fire, libc::SIGKILL)]);
    assert_eq!(rig.outcome().await.state, State::Done);
    target.wait().await;
}

async fn a_daemon_that_died_while_it_signalled_sends_no_second_sigterm() {
    let mut sandbox = Sandbox::new();
    let mut target = sandbox.start("sleep");
    let (pid, start) = (target.pid(), start_of(&target));
    let mut rig = Rig::new(&[(&sandbox, &target)]);
    rig.restart(|journal| journal.note(&sandbox.id, Progress::Intended { pid, start }).expect("noted"));
    let (_, known, _) = rig.node.watch();
    assert_eq!((known.len(), known[0].state), (1, State::Fired));
    rig.order(vec![fault(&sandbox, Stage::Fire, libc::SIGTERM)]);
    let outcome = rig.outcome().await;
    assert_eq!(outcome.state, State::Failed(Reason::Internal), "{outcome:?}");
    assert!(target.runs(), "it was signalled a second time");
}

async fn a_daemon_that_died_while_the_target_died_reports_it_done() {
    let mut sandbox = Sandbox::new();
    let mut target = sandbox.start("sleep");
    let (pid, start) = (target.pid(), start_of(&target));
    let mut rig = Rig::new(&[(&sandbox, &target)]);
    target.0.kill().expect("killing the target");
    target.wait().await;
    let mut report = fired(&sandbox);
    report.receipt = Some(squall_daemon::report::Receipt {
        evidence: Evidence::Ebpf,
        evidence_error: String::new(),
        signal: 9,
        ordered: SystemTime::now(),
        fired: Some(SystemTime::now()),
        processes: vec![],
        total: 0,
        lost: 0,
        oom_kills: 0,
        fired_at_count: 0,
    });
    for progress in [Progress::Intended { pid, start }, Progress::Fired { pid, start, report }] {
        rig.restart(|journal| journal.note(&sandbox.id, progress).expect("noted"));
        rig.order(vec![fault(&sandbox, Stage::Fire, libc::SIGKILL)]);
        let outcome = rig.outcome().await;
        assert_eq!(outcome.state, State::Done, "{outcome:?}");
    }
}

async fn an_order_for_another_pod_is_refused() {
    let mut sandbox = Sandbox::new();
    let mut target = sandbox.start("sleep");
    let mut rig = Rig::new(&[(&sandbox, &target)]);
    let mut order = fault(&sandbox, Stage::Fire, libc::SIGKILL);
    order.container.pod_uid = "another".into();
    rig.order(vec![order]);
    let outcome = rig.outcome().await;
    assert_eq!(outcome.state, State::Refused(Reason::ContainerMismatch), "{outcome:?}");
    assert!(target.runs() && rig.dir.path().exists());
}

async fn a_protected_namespace_is_refused() {
    let mut sandbox = Sandbox::new();
    let mut target = sandbox.start("sleep");
    let mut rig = Rig::new(&[(&sandbox, &target)]);
    for namespace in ["kube-system", "squall-system"] {
        let mut order = fault(&sandbox, Stage::Fire, libc::SIGKILL);
        order.id = namespace.into();
        order.container.namespace = namespace.into();
        rig.order(vec![order]);
        let outcome = rig.outcome().await;
        assert_eq!(outcome.state, State::Refused(Reason::ProtectedNamespace), "{outcome:?}");
    }
    assert!(target.runs());
}

fn third_fsync(sandbox: &Sandbox) -> Order {
    let kill = Kill::when(libc::SIGKILL, On::Syscall { name: "fsync".into(), nth: 3 });
    Order { action: Some(Action::Kill(kill)), ..fault(sandbox, Stage::Fire, libc::SIGKILL) }
}

async fn a_trigger_is_armed_fires_and_is_done() {
    let (mut sandbox, place) = (Sandbox::new(), Place::new());
    let target = sandbox.start(&place.duty("fsync 9"));
    let mut rig = Rig::new(&[(&sandbox, &target)]);
    rig.order(vec![third_fsync(&sandbox)]);
    let armed = rig.report().await;
    assert_eq!(armed.state, State::Armed, "{armed:?}");
    assert!(armed.message.contains("calls fsync for the 3. time"), "{armed:?}");
    place.go();
    let fired = rig.report().await;
    assert_eq!(fired.state, State::Fired, "{fired:?}");
    assert_eq!(fired.receipt.expect("a receipt").fired_at_count, 3);
    let done = rig.outcome().await;
    assert_eq!(done.state, State::Done, "{done:?}");
    assert_eq!(place.report().last().map(String::as_str), Some("enter fsync 3"));
    target.wait().await;
}

async fn a_trigger_that_does_not_fire_in_time_says_so() {
    let (mut sandbox, place) = (Sandbox::new(), Place::new());
    let mut target = sandbox.start(&place.duty("fsync 2"));
    let mut rig = Rig::new(&[(&sandbox, &target)]);
    rig.order(vec![Order { ttl: slack(Duration::from_millis(400)), ..third_fsync(&sandbox) }]);
    assert_eq!(rig.report().await.state, State::Armed);
    place.go();
    let end = rig.outcome().await;
    assert_eq!(end.state, State::Failed(Reason::NotTriggered), "{end:?}");
    assert!(end.message.contains("2 calls so far") && target.runs(), "{end:?}");
}

async fn a_trigger_is_armed_again_after_a_restart() {
    let (mut sandbox, place) = (Sandbox::new(), Place::new());
    let target = sandbox.start(&place.duty("fsync 9"));
    let mut rig = Rig::new(&[(&sandbox, &target)]);
    rig.order(vec![third_fsync(&sandbox)]);
    assert_eq!(rig.report().await.state, State::Armed);
    let journal = || fs::read_to_string(rig.dir.path().join("journal")).expect("the journal");
    assert!(journal().contains("Intended"));
    rig.node.shut_down();
    until(Duration::from_secs(2), "the intent is taken back", || !journal().contains("Intended")).await;
    rig.start_again();
    rig.order(vec![third_fsync(&sandbox)]);
    assert_eq!(rig.report().await.state, State::Armed);
    place.go();
    assert_eq!(rig.outcome().await.state, State::Done);
    target.wait().await;
}

async fn a_trigger_that_may_have_fired_is_not_armed_again() {
    let mut sandbox = Sandbox::new();
    let mut target = sandbox.start("sleep");
    let (pid, start) = (target.pid(), start_of(&target));
    let mut rig = Rig::new(&[(&sandbox, &target)]);
    rig.restart(|journal| journal.note(&sandbox.id, Progress::Intended { pid, start }).expect("noted"));
    rig.order(vec![third_fsync(&sandbox)]);
    let outcome = rig.outcome().await;
    assert_eq!(outcome.state, State::Failed(Reason::Internal), "{outcome:?}");
    assert!(outcome.message.contains("whether it has fired is not known"), "{outcome:?}");
    assert!(target.runs());
}

/// Hostile states that are tried.
const HOSTILE: u64 = 150;

/// Whatever of it can be carried out is: on a container of its own each time, so that nothing is left of the last.
async fn hostile_orders_for_a_container_that_is_there_kill_no_task() {
    let before = hostile::panics();
    let dir = tempfile::tempdir_in(".").expect("a directory on a disk");
    let path = dir.path().canonicalize().expect("its path").display().to_string();
    let mut rig = Rig::of(&[]);
    let (mut refused, mut told) = (0, BTreeMap::new());
    // The same samples, whatever the ID is; it differs from one to the next.
    let mark = "f".repeat(64);
    let ContainerRef { namespace, pod, pod_uid, name, scheme, id: _ } = super::sandbox::order_of(&mark);
    let container = grpc::Container { namespace, pod, pod_uid, name, id: format!("{scheme}://{mark}") };
    let usual = hostile::Usual { node: "n".into(), container, path };
    let count = rounds(HOSTILE);
    for mut state in hostile::samples(hostile::state(&usual), count as usize) {
        let mut sandbox = Sandbox::new();
        let target = sandbox.start("sleep");
        rig.sandboxes.add(sandbox.order(), target.pid());
        for container in state.faults.iter_mut().filter_map(|fault| fault.container.as_mut()) {
            container.id = container.id.replace(&mark, &sandbox.id);
        }
        rig.counter += 1;
        if let Some(generation) = &mut state.generation {
            *generation = grpc::Generation { term: 1, counter: rig.counter };
        }
        match Desired::try_from(state) {
            Ok(desired) => {
                let faults = desired.faults.len();
                let taken = rig.node.apply(desired).is_ok() && faults > 0;
                // As far as it comes: what is armed waits, and what stands stays.
                let silence = slack(Duration::from_millis(if taken { 100 } else { 0 }));
                while let Ok(Ok(report)) = tokio::time::timeout(silence, rig.reports.recv()).await {
                    *told.entry(format!("{:?}", report.state)).or_insert(0) += 1;
                }
            }
            Err(_) => refused += 1,
        }
        rig.order(vec![]);
        let idle = || {
            let text = rig.node.metrics().expect("metrics");
            let mut active = text.lines().filter(|line| line.starts_with("squall_daemon_active_faults{"));
            active.all(|line| line.ends_with(" 0"))
        };
        until(Duration::from_secs(10), "all is put back", idle).await;
    }
    println!("  {refused} refused, {told:?}");
    // Of a few samples not every outcome can be wanted, but that something is done.
    let wanted: &[&str] = if count == HOSTILE { &["Armed", "Injected", "Done"] } else { &[] };
    assert!(!told.is_empty() && wanted.iter().all(|state| told.contains_key(*state)), "{told:?}");
    assert_eq!(hostile::panics(), before, "a task has died of it");
    until(Duration::from_secs(2), "the programs are gone", || !rig.tools.engine.is_loaded()).await;
}

/// Keeps what is logged.
struct Lines(Mutex<Vec<String>>);

static LINES: Lines = Lines(Mutex::new(Vec::new()));

impl log::Log for Lines {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.target() == EBPF_LOG_TARGET
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            self.0.lock().expect("the lines").push(format!("{} {}", record.level(), record.args()));
        }
    }

    fn flush(&self) {}
}

async fn the_programs_log_what_they_do_when_they_are_told_to() {
    log::set_logger(&LINES).expect("no other logger");
    log::set_max_level(log::LevelFilter::Debug);
    tools().engine.probe().expect("eBPF works here");
    for told in [false, true] {
        let tools = Tools { engine: Arc::new(Engine::new(told)), ..tools() };
        let mut sandbox = Sandbox::new();
        let target = sandbox.start("sleep");
        let mut prepared = sandbox.prepare(&tools, target.pid(), libc::SIGKILL, Scope::Init);
        prepared.armed().await.expect("arming");
        struck(prepared).await.collect(std::future::ready(None)).await;
        target.wait().await;
        let delivered =
            || LINES.0.lock().expect("the lines").iter().any(|line| line.starts_with("DEBUG slot "));
        if told {
            until(Duration::from_secs(2), "the programs' lines are logged", delivered).await;
        } else {
            assert!(!delivered(), "nobody has asked for them");
        }
    }
}
