//! container-freeze: nothing of the container runs, and afterwards everything does, whatever happened meanwhile.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use squall_daemon::{
    cgroup::Layout,
    node::ApplyError,
    order::{
        Action, Kill, Order, Scope, Stage, Stress,
        stress::{Memory, Size},
    },
    report::{FaultReport, Reason, State},
};

use super::{
    node::Rig,
    sandbox::{Sandbox, Target, not_here, order_of, slack, stranger, stranger_with, tools, until},
    stress,
};

crate::cases![
    a_frozen_container_does_not_run_and_goes_on_afterwards,
    sub_cgroups_and_what_is_forked_meanwhile_are_frozen_too,
    a_freeze_that_is_not_renewed_thaws_at_its_deadline,
    a_node_whose_journal_cannot_be_written_thaws_all_the_same,
    two_freezes_of_one_container_end_with_the_last,
    a_freeze_that_is_ordered_anew_while_it_ends_takes_nothing_from_another,
    v1_freezes_where_version_2_has_no_cgroup_for_the_container,
    what_somebody_else_froze_stays_frozen,
    a_fault_that_is_not_there_yet_is_put_back_when_it_is_ordered,
    stressors_that_do_not_get_to_work_are_waited_for_together,
    a_frozen_container_that_is_killed_is_gone,
    a_kill_that_is_ordered_of_a_frozen_container_ends_it,
    a_daemon_that_ends_thaws,
    a_killed_daemon_leaves_it_to_the_next_to_thaw,
];

fn freeze_of(id: &str, name: &str, stage: Stage) -> Order {
    Order {
        id: format!("{name}/{id}"),
        experiment: format!("ns/{name}"),
        container: order_of(id),
        stage,
        ttl: Duration::from_secs(60),
        action: Some(Action::Freeze),
    }
}

fn freeze(sandbox: &Sandbox, stage: Stage) -> Order {
    freeze_of(&sandbox.id, "a", stage)
}

/// CPU time of a process, in ticks.
fn ran(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("its stat");
    let fields: Vec<&str> = stat.rsplit_once(')').expect("a name").1.split_whitespace().collect();
    fields[11..13].iter().map(|ticks| ticks.parse::<u64>().expect("ticks")).sum()
}

/// A busy process that gets no CPU time for a fifth of a second is frozen: it would get 20 ticks.
async fn stands_still(pid: i32) -> bool {
    let before = ran(pid);
    tokio::time::sleep(Duration::from_millis(200)).await;
    ran(pid) == before
}

async fn goes_on(pid: i32) {
    let before = ran(pid);
    until(Duration::from_secs(5), "it runs", || ran(pid) > before).await;
}

async fn injected(rig: &mut Rig) -> FaultReport {
    let report = rig.report().await;
    assert_eq!(report.state, State::Injected, "{report:?}");
    report
}

fn busy() -> (Sandbox, Target, Rig) {
    let mut sandbox = Sandbox::new();
    let target = sandbox.start("busy");
    let rig = Rig::new(&[(&sandbox, &target)]);
    (sandbox, target, rig)
}

async fn a_frozen_container_does_not_run_and_goes_on_afterwards() {
    let (sandbox, target, mut rig) = busy();
    let mut outside = stranger("busy");
    rig.order(vec![freeze(&sandbox, Stage::Arm)]);
    assert_eq!(rig.report().await.state, State::Armed);
    goes_on(target.pid()).await;
    rig.order(vec![freeze(&sandbox, Stage::Fire)]);
    injected(&mut rig).await;
    assert!(stands_still(target.pid()).await);
    goes_on(outside.pid()).await;
    rig.order(vec![freeze(&sandbox, Stage::Recover)]);
    assert_eq!(rig.outcome().await.state, State::Recovered);
    goes_on(target.pid()).await;
    outside.0.kill().expect("ending the stranger");
    outside.wait().await;
}

async fn sub_cgroups_and_what_is_forked_meanwhile_are_frozen_too() {
    let mut sandbox = Sandbox::new();
    sandbox.limit(50);
    let below = sandbox.below("init.scope");
    let (init, bomb) = (sandbox.start("sleep"), sandbox.start_in("bomb", &below));
    let mut rig = Rig::new(&[(&sandbox, &init)]);
    rig.order(vec![freeze(&sandbox, Stage::Fire)]);
    injected(&mut rig).await;
    let all = sandbox.pids();
    let before: Vec<u64> = all.iter().map(|pid| ran(*pid)).collect();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(sandbox.pids(), all, "nobody is forked");
    assert_eq!(all.iter().map(|pid| ran(*pid)).collect::<Vec<_>>(), before, "nobody runs");
    // With as many as its limit allows, it can but try to fork.
    let seen =
        || -> Vec<_> { all.iter().map(|pid| fs::read_to_string(format!("/proc/{pid}/stat")).ok()).collect() };
    let frozen = seen();
    rig.order(vec![]);
    until(Duration::from_secs(5), "it goes on", || sandbox.pids() != all || seen() != frozen).await;
    drop((init, bomb));
}

async fn a_freeze_that_is_not_renewed_thaws_at_its_deadline() {
    let (sandbox, target, mut rig) = busy();
    let start = Instant::now();
    // Long enough for the freezing and for the look at what stands still.
    let ttl = slack(Duration::from_millis(500)).max(Duration::from_secs(2));
    rig.order(vec![Order { ttl, ..freeze(&sandbox, Stage::Fire) }]);
    injected(&mut rig).await;
    assert!(stands_still(target.pid()).await);
    assert_eq!(rig.outcome().await.state, State::Recovered);
    let took = start.elapsed();
    assert!(took >= ttl && took < ttl + slack(Duration::from_millis(900)), "{took:?}");
    goes_on(target.pid()).await;
}

async fn a_node_whose_journal_cannot_be_written_thaws_all_the_same() {
    let (sandbox, target, mut rig) = busy();
    rig.order(vec![freeze(&sandbox, Stage::Fire)]);
    injected(&mut rig).await;
    fs::remove_dir_all(rig.dir.path()).expect("removing the journal");
    let refused = rig.apply(vec![freeze(&sandbox, Stage::Recover)]).expect_err("nowhere to write it down");
    assert!(matches!(refused, ApplyError::Journal(_)), "{refused}");
    assert_eq!(rig.outcome().await.state, State::Recovered);
    goes_on(target.pid()).await;
}

async fn two_freezes_of_one_container_end_with_the_last() {
    let (sandbox, target, mut rig) = busy();
    let of = |name, stage| freeze_of(&sandbox.id, name, stage);
    rig.order(vec![of("a", Stage::Fire), of("b", Stage::Fire)]);
    injected(&mut rig).await;
    injected(&mut rig).await;
    rig.order(vec![of("a", Stage::Recover), of("b", Stage::Fire)]);
    assert_eq!(rig.outcome().await.state, State::Recovered);
    assert!(stands_still(target.pid()).await);
    rig.order(vec![of("b", Stage::Recover)]);
    assert_eq!(rig.outcome().await.state, State::Recovered);
    goes_on(target.pid()).await;
}

async fn a_freeze_that_is_ordered_anew_while_it_ends_takes_nothing_from_another() {
    let mut sandbox = Sandbox::new();
    let target = sandbox.start("busy");
    // So long that whatever is done before the container is found again can be seen.
    let takes = BTreeMap::from([(sandbox.id.clone(), Duration::from_millis(500))]);
    let mut rig = Rig::with(&[(sandbox.order(), target.pid())], takes);
    let of = |name, stage| freeze_of(&sandbox.id, name, stage);
    rig.order(vec![of("a", Stage::Fire), of("b", Stage::Fire)]);
    injected(&mut rig).await;
    injected(&mut rig).await;
    rig.order(vec![of("a", Stage::Recover), of("b", Stage::Fire)]);
    // It is let go of, but its usage afterwards is still being measured.
    tokio::time::sleep(Duration::from_millis(20)).await;
    rig.order(vec![of("a", Stage::Fire), of("b", Stage::Fire)]);
    let before = ran(target.pid());
    let again = loop {
        let report = rig.report().await;
        if report.state == State::Injected {
            break report;
        }
    };
    assert!(again.id.starts_with("a/"), "{again:?}");
    assert_eq!(ran(target.pid()), before, "it ran meanwhile");
    rig.order(vec![of("b", Stage::Recover)]);
    goes_on(target.pid()).await;
}

async fn v1_freezes_where_version_2_has_no_cgroup_for_the_container() {
    if tools().cgroups.layout() == Layout::V2 {
        not_here("version 2 is all there is");
    }
    let mut sandbox = Sandbox::new();
    let dirs = sandbox.v1();
    let target = sandbox.start_in("busy", &dirs);
    let mut rig = Rig::new(&[(&sandbox, &target)]);
    rig.order(vec![freeze(&sandbox, Stage::Fire)]);
    injected(&mut rig).await;
    assert_eq!(sandbox.get("freezer.state"), "FROZEN");
    assert!(stands_still(target.pid()).await);
    rig.order(vec![freeze(&sandbox, Stage::Recover)]);
    assert_eq!(rig.outcome().await.state, State::Recovered);
    assert_eq!(sandbox.get("freezer.state"), "THAWED");
    goes_on(target.pid()).await;
}

async fn what_somebody_else_froze_stays_frozen() {
    let (sandbox, target, mut rig) = busy();
    sandbox.set("cgroup.freeze", "1");
    rig.order(vec![freeze(&sandbox, Stage::Fire)]);
    injected(&mut rig).await;
    rig.order(vec![freeze(&sandbox, Stage::Recover)]);
    assert_eq!(rig.outcome().await.state, State::Recovered);
    assert!(stands_still(target.pid()).await);
    sandbox.set("cgroup.freeze", "0");
    goes_on(target.pid()).await;
}

/// Stressors that get into a frozen container, but not to work.
fn three_stressors(sandbox: &Sandbox, stage: Stage) -> Order {
    let memory = Memory { workers: 1, size: Size::Bytes(1 << 20), ramp: Duration::ZERO, oom_score_adj: None };
    let stress = Stress { memory: Some(memory), pids: Some(1), ..stress::cpu(1, 10) };
    stress::fault(sandbox, "a", stage, &stress)
}

async fn a_fault_that_is_not_there_yet_is_put_back_when_it_is_ordered() {
    let (sandbox, target, mut rig) = busy();
    sandbox.set("cgroup.freeze", "1");
    rig.order(vec![three_stressors(&sandbox, Stage::Fire)]);
    until(Duration::from_secs(5), "they are in the container", || sandbox.pids().len() == 4).await;
    let start = Instant::now();
    rig.order(vec![three_stressors(&sandbox, Stage::Recover)]);
    let end = rig.outcome().await;
    assert_eq!(end.state, State::Recovered, "{end:?}");
    // An injection is given up after 5 s.
    assert!(start.elapsed() < slack(Duration::from_secs(2)), "{:?}", start.elapsed());
    until(Duration::from_secs(5), "they are gone", || sandbox.pids().len() == 1).await;
    sandbox.set("cgroup.freeze", "0");
    goes_on(target.pid()).await;
}

async fn stressors_that_do_not_get_to_work_are_waited_for_together() {
    let (sandbox, _target, mut rig) = busy();
    sandbox.set("cgroup.freeze", "1");
    let start = Instant::now();
    rig.order(vec![three_stressors(&sandbox, Stage::Fire)]);
    let end = rig.outcome().await;
    assert_eq!(end.state, State::Failed(Reason::Internal), "{end:?}");
    assert!(
        start.elapsed() < Duration::from_secs(5) + slack(Duration::from_secs(3)),
        "{:?}",
        start.elapsed()
    );
    sandbox.set("cgroup.freeze", "0");
}

async fn a_frozen_container_that_is_killed_is_gone() {
    let (sandbox, mut target, mut rig) = busy();
    rig.order(vec![freeze(&sandbox, Stage::Fire)]);
    injected(&mut rig).await;
    target.0.kill().expect("killing the target");
    let end = rig.outcome().await;
    assert_eq!(end.state, State::Failed(Reason::ContainerGone), "{end:?}");
    target.wait().await;
}

async fn a_kill_that_is_ordered_of_a_frozen_container_ends_it() {
    let (sandbox, target, mut rig) = busy();
    rig.order(vec![freeze(&sandbox, Stage::Fire)]);
    injected(&mut rig).await;
    let kill = Kill::now(libc::SIGKILL, Scope::All);
    let kill = Order { action: Some(Action::Kill(kill)), ..freeze_of(&sandbox.id, "kill", Stage::Fire) };
    let killed = kill.id.clone();
    rig.order(vec![freeze(&sandbox, Stage::Fire), kill]);
    let mut ends = [rig.outcome().await, rig.outcome().await];
    ends.sort_by_key(|end| end.id != killed);
    assert_eq!(ends[0].state, State::Done, "{ends:?}");
    assert_eq!(ends[1].state, State::Failed(Reason::ContainerGone), "{ends:?}");
    target.wait().await;
}

async fn a_daemon_that_ends_thaws() {
    let (sandbox, target, mut rig) = busy();
    rig.order(vec![freeze(&sandbox, Stage::Fire)]);
    injected(&mut rig).await;
    rig.node.put_back().await;
    goes_on(target.pid()).await;
}

const JOURNAL: &str = "SQUALL_TEST_JOURNAL";
const CONTAINER: &str = "SQUALL_TEST_CONTAINER";
const INIT: &str = "SQUALL_TEST_INIT";

/// What a daemon of its own, in a process of its own, does.
pub async fn hold_freeze() {
    let variable = |name| std::env::var(name).expect("a variable");
    let (id, init) = (variable(CONTAINER), variable(INIT).parse().expect("a PID"));
    let mut rig = Rig::of(&[(order_of(&id), init)]);
    rig.start_in(&PathBuf::from(variable(JOURNAL)));
    rig.order(vec![freeze_of(&id, "a", Stage::Fire)]);
    injected(&mut rig).await;
    println!("ready");
    std::future::pending::<()>().await;
}

async fn a_killed_daemon_leaves_it_to_the_next_to_thaw() {
    let (sandbox, target, mut rig) = busy();
    let dir = tempfile::tempdir().expect("a directory");
    let path = |dir: &Path| dir.to_str().expect("a path").to_owned();
    let (journal, init) = (path(dir.path()), target.pid().to_string());
    let mut daemon =
        stranger_with("hold-freeze", &[(JOURNAL, &journal), (CONTAINER, &sandbox.id), (INIT, &init)]);
    assert!(stands_still(target.pid()).await);
    daemon.0.kill().expect("killing the daemon");
    daemon.wait().await;
    rig.start_in(dir.path());
    goes_on(target.pid()).await;
    // Still ordered, it is frozen again, and that is told.
    rig.order(vec![freeze(&sandbox, Stage::Fire)]);
    assert_eq!(injected(&mut rig).await.lasting.interruptions, 1);
    assert!(stands_still(target.pid()).await);
    rig.order(vec![]);
    goes_on(target.pid()).await;
}
