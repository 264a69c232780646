//! Triggers: a process dies inside the very call that was waited for, and nobody else does.

use std::{
    ffi::CString,
    fs,
    net::TcpListener,
    os::{fd::AsRawFd, unix::process::ExitStatusExt},
    path::PathBuf,
    sync::mpsc,
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};

use aya::sys::{Stats, enable_stats};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use squall_daemon::{
    kill::{
        Fired, KillError, Tools, prepare_process,
        receipt::{Collector, Outcome},
        trigger::{Triggered, Waiting},
    },
    order::{Comm, Kill, On, Scope, Stage, Trigger, Whom},
    report::{Evidence, Reason, State},
};

use super::{
    cases::one,
    loaded::{self, nothing_is_loaded, programs},
    sandbox::{Sandbox, Target, rounds, slack, sparing, stranger, tools, until},
    stress,
    work::Place,
};

crate::cases![
    a_process_dies_inside_the_nth_fsync_fifty_times_of_fifty,
    a_process_dies_before_the_first_instruction_of_what_it_executes,
    a_process_dies_inside_its_connect,
    calls_are_counted_over_all_tasks_and_sub_cgroups,
    of_many_who_call_at_once_exactly_one_dies,
    no_program_runs_for_another_call,
    only_what_a_process_of_that_name_does_counts,
    a_stranger_does_not_count,
    what_a_stressor_does_does_not_count,
    a_trigger_that_does_not_fire_expires_and_never_fires_later,
    what_is_no_longer_waited_for_is_kept_from_firing,
    the_end_of_the_container_ends_a_trigger,
    a_trigger_that_is_only_armed_has_no_effect,
    a_dead_file_system_of_the_container_holds_up_nobody,
    an_unknown_system_call_is_refused_with_what_is_like_it,
    two_triggers_and_a_kill_on_one_container,
    a_kill_after_a_trigger_has_fired_is_sent,
    programs_are_loaded_only_while_they_are_needed,
];

const KILL: i32 = libc::SIGKILL;

fn fsync(nth: u32) -> Kill {
    Kill::when(KILL, On::Syscall { name: "fsync".into(), nth })
}

fn named(kill: Kill, name: &str) -> Kill {
    let Whom::Trigger(trigger) = kill.whom else { panic!("no trigger") };
    Kill { whom: Whom::Trigger(Trigger { comm: Comm::new(name), ..trigger }), ..kill }
}

async fn arm(tools: &Tools, sandbox: &Sandbox, init: &Target, kill: Kill) -> Waiting {
    let prepared = sandbox.prepare_kill(tools, init.pid(), kill);
    match prepared.fire(SystemTime::now(), |_, _| Ok(())).await.expect("arming") {
        Fired::Waiting(waiting) => waiting,
        Fired::Struck(_) => panic!("nothing waits"),
    }
}

async fn fired(mut waiting: Waiting) -> Collector {
    tokio::time::timeout(slack(Duration::from_secs(10)), waiting.wait()).await.expect("it fires");
    match waiting.end(Reason::ContainerGone).await {
        Triggered::Fired(collector) => *collector,
        Triggered::Ended(state, message, _) => panic!("{state:?}: {message}"),
    }
}

async fn outcome(waiting: Waiting) -> Outcome {
    fired(waiting).await.collect(std::future::ready(None)).await
}

/// The outcome of one process that was hit, checked as far as all of them are alike.
async fn hit(waiting: Waiting, target: Target, count: u32) {
    let outcome = outcome(waiting).await;
    assert_eq!((outcome.state, outcome.receipt.fired_at_count), (State::Done, count), "{outcome:?}");
    let process = one(&outcome);
    assert_eq!(
        (process.pid, process.exit_code, process.init),
        (target.pid(), Some(137), true),
        "{outcome:?}"
    );
    assert!(process.delivered.is_some() && outcome.receipt.lost == 0, "{outcome:?}");
    assert!(outcome.receipt.fired.expect("fired") <= process.exited.expect("exited"));
    assert_eq!(target.wait().await.signal(), Some(KILL));
}

async fn a_process_dies_inside_the_nth_fsync_fifty_times_of_fifty() {
    let tools = tools();
    for round in 0..rounds(50) as u32 {
        let (mut sandbox, place) = (Sandbox::new(), Place::new());
        let nth = 1 + round % 5;
        let target = sandbox.start(&place.duty("fsync 20"));
        let waiting = arm(&tools, &sandbox, &target, fsync(nth)).await;
        place.go();
        hit(waiting, target, nth).await;
        let report = place.report();
        assert_eq!(report.last(), Some(&format!("enter fsync {nth}")), "round {round}: {report:?}");
        assert_eq!(report.len() as u32, 2 * nth - 1, "round {round}: {report:?}");
    }
}

/// This program under another path, on the same file system.
pub fn program(name: &str) -> (tempfile::TempDir, PathBuf) {
    let own = std::env::current_exe().expect("own path");
    let dir = tempfile::tempdir_in(own.parent().expect("a directory")).expect("a directory");
    let path = dir.path().join(name);
    fs::hard_link(&own, &path).expect("another name");
    (dir, path)
}

async fn a_process_dies_before_the_first_instruction_of_what_it_executes() {
    let tools = tools();
    let ((_one, wanted), (_other, unwanted)) = (program("wanted"), program("unwanted"));
    for round in 0..rounds(50) {
        let (mut sandbox, place, beside) = (Sandbox::new(), Place::new(), Place::new());
        let target = sandbox.start(&place.duty(&format!("exec {}", wanted.display())));
        let other = sandbox.start(&beside.duty(&format!("exec {}", unwanted.display())));
        let on = On::Exec { path: wanted.display().to_string() };
        let waiting = arm(&tools, &sandbox, &target, Kill::when(KILL, on)).await;
        beside.go();
        assert_eq!(other.wait().await.code(), Some(0), "round {round}");
        assert_eq!(beside.report(), ["exec", "marked"], "round {round}");
        place.go();
        hit(waiting, target, 1).await;
        assert_eq!(place.report(), ["exec"], "round {round}");
    }
}

async fn a_process_dies_inside_its_connect() {
    let tools = tools();
    let listen = || TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let (wanted, other) = (listen(), listen());
    let port = |listener: &TcpListener| listener.local_addr().expect("its port").port();
    let (wanted, other) = ((port(&wanted), wanted), (port(&other), other));
    for round in 0..rounds(50) {
        let (mut sandbox, place) = (Sandbox::new(), Place::new());
        let target = sandbox.start(&place.duty(&format!("connect {} {}", other.0, wanted.0)));
        let waiting = arm(&tools, &sandbox, &target, Kill::when(KILL, On::Connect { port: wanted.0 })).await;
        place.go();
        hit(waiting, target, 1).await;
        let report = place.report();
        assert_eq!(report.len(), 3, "round {round}: {report:?}");
        assert_eq!(report[2], format!("enter connect {}", wanted.0), "round {round}");
    }
}

async fn calls_are_counted_over_all_tasks_and_sub_cgroups() {
    let (tools, mut sandbox) = (tools(), Sandbox::new());
    let (first, second) = (Place::new(), Place::new());
    let below = sandbox.below("init.scope");
    let mut init = sandbox.start(&first.duty("fsync 3"));
    let other = sandbox.start_in(&second.duty("fsync 3"), &below);
    let waiting = arm(&tools, &sandbox, &init, fsync(5)).await;
    first.go();
    until(Duration::from_secs(5), "three calls", || first.report().len() == 6).await;
    second.go();
    let outcome = outcome(waiting).await;
    assert_eq!((outcome.state, outcome.receipt.fired_at_count), (State::Done, 5), "{outcome:?}");
    assert_eq!((one(&outcome).pid, one(&outcome).init), (other.pid(), false));
    assert_eq!(second.report().last().map(String::as_str), Some("enter fsync 2"));
    assert!(init.runs());
    other.wait().await;
}

async fn of_many_who_call_at_once_exactly_one_dies() {
    const CALLERS: usize = 8;
    let tools = tools();
    for round in 0..rounds(5) {
        let mut sandbox = Sandbox::new();
        let places: Vec<Place> = (0..CALLERS).map(|_| Place::new()).collect();
        let mut callers: Vec<Target> =
            places.iter().map(|place| sandbox.start(&place.duty("fsync 5"))).collect();
        let waiting = arm(&tools, &sandbox, &callers[0], fsync(20)).await;
        places.iter().for_each(Place::go);
        let outcome = outcome(waiting).await;
        assert_eq!(outcome.state, State::Done, "round {round}: {outcome:?}");
        // Of calls at the same moment any may be the one.
        let count = outcome.receipt.fired_at_count;
        assert!((20..20 + CALLERS as u32).contains(&count), "round {round}: {outcome:?}");
        let hit = one(&outcome).pid;
        for (place, caller) in places.iter().zip(&mut callers) {
            if caller.pid() == hit {
                assert!(
                    !caller.runs() && place.report().len() % 2 == 1,
                    "round {round}: {:?}",
                    place.report()
                );
            } else {
                until(Duration::from_secs(10), "its five calls", || place.report().len() == 10).await;
                assert!(caller.runs(), "round {round}: it died, too");
            }
        }
    }
}

async fn no_program_runs_for_another_call() {
    let (tools, mut sandbox) = (tools(), Sandbox::new());
    let _counted = enable_stats(Stats::RunTime).expect("the kernel counts");
    let (other, waited_for) = (Place::new(), Place::new());
    let target = sandbox.start(&other.duty(&format!("call {} 1000", libc::SYS_getppid)));
    // Nobody else on the machine makes this one.
    let _caller = sandbox.start(&waited_for.duty(&format!("call {} 2", libc::SYS_sched_get_priority_max)));
    let on = On::Syscall { name: "sched_get_priority_max".into(), nth: 9 };
    let _waiting = arm(&tools, &sandbox, &target, Kill::when(KILL, on)).await;
    other.go();
    until(Duration::from_secs(5), "its calls", || other.report().len() == 2).await;
    assert_eq!(loaded::runs("trigger_sys"), 0);
    waited_for.go();
    until(Duration::from_secs(5), "two calls", || waited_for.report().len() == 2).await;
    assert_eq!(loaded::runs("trigger_sys"), 2);
}

async fn only_what_a_process_of_that_name_does_counts() {
    let (tools, mut sandbox) = (tools(), Sandbox::new());
    let (first, second) = (Place::new(), Place::new());
    let (_dir, path) = program("by-another-name-that-is-long");
    let mut init = sandbox.start(&first.duty("fsync 3"));
    let dirs = sandbox.dirs();
    let other = sandbox.start_program(&path, &second.duty("fsync 3"), &dirs);
    // The kernel keeps 15 bytes of a name.
    let waiting = arm(&tools, &sandbox, &init, named(fsync(2), "by-another-name")).await;
    first.go();
    until(Duration::from_secs(5), "three calls", || first.report().len() == 6).await;
    second.go();
    let outcome = outcome(waiting).await;
    assert_eq!((one(&outcome).pid, outcome.receipt.fired_at_count), (other.pid(), 2), "{outcome:?}");
    assert_eq!(second.report().last().map(String::as_str), Some("enter fsync 2"));
    assert!(init.runs());
    other.wait().await;
}

async fn a_stranger_does_not_count() {
    let (tools, mut sandbox, mut beside) = (tools(), Sandbox::new(), Sandbox::new());
    let places = [Place::new(), Place::new(), Place::new()];
    let target = sandbox.start(&places[0].duty("fsync 1"));
    let mut neighbour = beside.start(&places[1].duty("fsync 3"));
    let mut outside = stranger(&places[2].duty("fsync 3"));
    let waiting = arm(&tools, &sandbox, &target, fsync(1)).await;
    for place in &places[1..] {
        place.go();
        until(Duration::from_secs(5), "three calls", || place.report().len() == 6).await;
    }
    places[0].go();
    hit(waiting, target, 1).await;
    assert!(neighbour.runs() && outside.runs());
    outside.0.kill().expect("ending the stranger");
    outside.wait().await;
}

async fn what_a_stressor_does_does_not_count() {
    let (sandbox, target, mut rig) = stress::one();
    let load = stress::cpu(1, 40);
    rig.order(vec![stress::fault(&sandbox, "a", Stage::Fire, &load)]);
    stress::injected(&mut rig).await;
    // What it rests with, some fifty times a second; the target waits in another call.
    let kill = || Kill::when(KILL, On::Syscall { name: "clock_nanosleep".into(), nth: 1 });
    let mut waiting = arm(&sparing(&rig.tools), &sandbox, &target, kill()).await;
    let time = Duration::from_millis(500);
    assert!(tokio::time::timeout(time, waiting.wait()).await.is_err(), "a stressor fired it");
    match waiting.end(Reason::Expired).await {
        Triggered::Ended(_, message, _) => assert!(message.contains("(0 calls so far)"), "{message}"),
        Triggered::Fired(_) => panic!("a stressor fired it"),
    }
    // Else it would have been the first.
    fired(arm(&rig.tools, &sandbox, &target, kill()).await).await;
}

async fn a_trigger_that_does_not_fire_expires_and_never_fires_later() {
    let (tools, mut sandbox, place) = (tools(), Sandbox::new(), Place::new());
    let mut target = sandbox.start(&place.duty("fsync 3"));
    let waiting = arm(&tools, &sandbox, &target, fsync(4)).await;
    place.go();
    until(Duration::from_secs(5), "three calls", || place.report().len() == 6).await;
    let Triggered::Ended(state, message, receipt) = waiting.end(Reason::NotTriggered).await else {
        panic!("it has fired");
    };
    assert_eq!(state, State::Failed(Reason::NotTriggered));
    assert!(message.contains("3 calls so far"), "{message}");
    assert!(receipt.processes.is_empty() && receipt.fired.is_none());
    assert!(target.runs());
    nothing_is_loaded().await;
}

/// A program may have found the trigger before it went, and go on only now.
async fn what_is_no_longer_waited_for_is_kept_from_firing() {
    let (tools, mut sandbox) = (tools(), Sandbox::new());
    let target = sandbox.start("sleep");
    // The programs stay loaded.
    let mut held = sandbox.prepare(&tools, target.pid(), KILL, Scope::Init);
    held.armed().await.expect("arming");
    let fired = || loaded::new_map("FIRED").iter().count();
    let before = fired();
    for given_up in 1..=3 {
        let waiting = arm(&tools, &sandbox, &target, fsync(1)).await;
        assert!(matches!(waiting.end(Reason::NotTriggered).await, Triggered::Ended(..)));
        // It is detached by another thread; the same can be waited for again once that is done.
        until(Duration::from_secs(2), "its program is gone", || {
            !programs().iter().any(|name| name.starts_with("trigger"))
        })
        .await;
        assert_eq!(fired(), before + given_up);
    }
}

async fn the_end_of_the_container_ends_a_trigger() {
    let (tools, mut sandbox) = (tools(), Sandbox::new());
    let target = sandbox.start("sleep");
    let mut waiting = arm(&tools, &sandbox, &target, fsync(1)).await;
    super::cases::end(target).await;
    tokio::time::timeout(slack(Duration::from_secs(5)), waiting.wait()).await.expect("it ends");
    let Triggered::Ended(state, message, _) = waiting.end(Reason::ContainerGone).await else {
        panic!("it has fired");
    };
    assert_eq!(state, State::Refused(Reason::ContainerGone), "{message}");
}

async fn a_trigger_that_is_only_armed_has_no_effect() {
    let (tools, mut sandbox, place) = (tools(), Sandbox::new(), Place::new());
    let mut target = sandbox.start(&place.duty("fsync 3"));
    let mut prepared = sandbox.prepare_kill(&tools, target.pid(), fsync(1));
    prepared.armed().await.expect("arming");
    assert!(programs().iter().any(|name| name.starts_with("trigger_sysc")), "{:?}", programs());
    place.go();
    until(Duration::from_secs(5), "three calls", || place.report().len() == 6).await;
    assert!(target.runs());
    drop(prepared);
    nothing_is_loaded().await;
}

/// A file system whose program does not answer, as one of the network whose server is gone; unmounted when dropped.
pub struct Dead {
    pub dir: tempfile::TempDir,
    /// With it the kernel lets go of whoever hangs.
    _device: fs::File,
}

impl Dead {
    /// `None` where the kernel has no such file systems.
    pub fn mount() -> Option<Self> {
        let device = fs::OpenOptions::new().read(true).write(true).open("/dev/fuse").ok()?;
        let dir = tempfile::tempdir().expect("a directory");
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        let options = CString::new(options).expect("options");
        mount("fuse", dir.path(), "fuse", MountFlags::empty(), Some(options.as_c_str())).ok()?;
        Some(Self { dir, _device: device })
    }

    /// Unmounted when the first is dropped, and in the end: whoever hangs is let go of then, so that the case can tell.
    pub fn for_a_while(self) -> (mpsc::Sender<()>, JoinHandle<()>) {
        let (over, waits) = mpsc::channel();
        let hung = thread::spawn(move || {
            let _ = waits.recv_timeout(slack(Duration::from_secs(8)));
            drop(self);
        });
        (over, hung)
    }
}

impl Drop for Dead {
    fn drop(&mut self) {
        unmount(self.dir.path(), UnmountFlags::DETACH).expect("unmounting");
    }
}

async fn a_dead_file_system_of_the_container_holds_up_nobody() {
    let Some(dead) = Dead::mount() else {
        super::sandbox::not_here("this kernel has no FUSE");
    };
    let (tools, mut sandbox) = (tools(), Sandbox::new());
    let target = sandbox.start("sleep");
    let on = On::Exec { path: dead.dir.path().join("below/program").display().to_string() };
    let (over, hung) = dead.for_a_while();
    let start = Instant::now();
    let prepared = sandbox.prepare_kill(&tools, target.pid(), Kill::when(KILL, on));
    assert!(start.elapsed() < slack(Duration::from_secs(1)), "the daemon's one thread hung");
    let error =
        prepared.fire(SystemTime::now(), |_, _| Ok(())).await.map(|_| ()).expect_err("it can't be armed");
    assert!(error.to_string().contains("arming took longer"), "{error}");
    drop(over);
    hung.join().expect("unmounting");
}

async fn an_unknown_system_call_is_refused_with_what_is_like_it() {
    let (tools, mut sandbox) = (tools(), Sandbox::new());
    let target = sandbox.start("sleep");
    let kill = Kill::when(KILL, On::Syscall { name: "fsink".into(), nth: 1 });
    let refused = prepare_process(&tools, &sandbox.order(), kill, target.pid()).map(|_| ());
    let error = refused.expect_err("there is no such call");
    assert!(matches!(error, KillError::Trigger { .. }) && error.reason() == Reason::Unsupported, "{error}");
    assert!(error.to_string().contains("fsink"), "{error}");
}

async fn two_triggers_and_a_kill_on_one_container() {
    let (tools, mut sandbox, place) = (tools(), Sandbox::new(), Place::new());
    let target = sandbox.start(&place.duty("fsync 3"));
    let later = arm(&tools, &sandbox, &target, Kill::when(KILL, On::Connect { port: 9 })).await;
    let waiting = arm(&tools, &sandbox, &target, fsync(2)).await;
    // The kernel could not tell it from the one that is there.
    let same = sandbox.prepare_kill(&tools, target.pid(), fsync(3));
    let same = same.fire(SystemTime::now(), |_, _| Ok(())).await.map(|_| ()).expect_err("the same twice");
    assert!(same.to_string().contains("waits for the same"), "{same}");
    // A signal meanwhile has a receipt of its own.
    let mut kill = sandbox.prepare(&tools, target.pid(), libc::SIGWINCH, Scope::Init);
    kill.armed().await.expect("arming");
    let kill = super::sandbox::struck(kill).await;
    assert_eq!(kill.receipt().evidence_error, "");
    drop(kill);
    place.go();
    hit(waiting, target, 2).await;
    assert!(matches!(later.end(Reason::NotTriggered).await, Triggered::Ended(..)));
}

async fn a_kill_after_a_trigger_has_fired_is_sent() {
    for scope in [Scope::Init, Scope::All] {
        let (tools, mut sandbox, place) = (tools(), Sandbox::new(), Place::new());
        let mut target = sandbox.start(&place.duty("fsync 3"));
        // By default nothing comes of this one.
        let on = On::Syscall { name: "fsync".into(), nth: 2 };
        let waiting = arm(&tools, &sandbox, &target, Kill::when(libc::SIGWINCH, on)).await;
        place.go();
        let first = fired(waiting).await;
        until(Duration::from_secs(5), "three calls", || place.report().len() == 6).await;
        assert!(target.runs());
        // The process is the trigger's for as long as that waits for an end.
        let mut kill = sandbox.prepare(&tools, target.pid(), KILL, scope);
        kill.armed().await.expect("arming");
        let mut kill = super::sandbox::struck(kill).await;
        let outcome =
            tokio::time::timeout(slack(Duration::from_secs(5)), kill.collect(std::future::ready(None)));
        let outcome = outcome.await.expect("it is sent");
        let process = one(&outcome);
        assert_eq!((outcome.state, process.sent_by), (State::Done, Evidence::Pidfd), "{outcome:?}");
        assert_eq!((process.pid, process.exit_code), (target.pid(), Some(137)), "{outcome:?}");
        drop(first);
        assert_eq!(target.wait().await.signal(), Some(KILL));
    }
}

async fn programs_are_loaded_only_while_they_are_needed() {
    let (tools, mut sandbox) = (tools(), Sandbox::new());
    let target = sandbox.start("sleep");
    let of_triggers =
        || programs().into_iter().filter(|name| name.starts_with("trigger")).collect::<Vec<_>>();
    let soon = Duration::from_secs(2);
    let mut held = sandbox.prepare(&tools, target.pid(), KILL, Scope::Init);
    held.armed().await.expect("arming");
    until(soon, "a kill needs none", || of_triggers().is_empty()).await;
    let one = arm(&tools, &sandbox, &target, fsync(9)).await;
    let other = arm(&tools, &sandbox, &target, Kill::when(KILL, On::Exec { path: "/x".into() })).await;
    until(soon, "one program a trigger", || of_triggers().len() == 2).await;
    // The kernel frees a program a moment after its last use.
    drop(one);
    until(soon, "one program is left", || of_triggers().len() == 1).await;
    drop(other);
    until(soon, "no program of a trigger is left", || of_triggers().is_empty()).await;
    assert!(tools.engine.is_loaded());
    drop(held);
    nothing_is_loaded().await;
}
