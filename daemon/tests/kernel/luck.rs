//! Narrowed kills, and bad luck: whoever is not meant lives, whatever happens, and what is lost is said.

use std::{
    env,
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt, process::ExitStatusExt},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use squall_daemon::{
    ebpf::{EbpfError, Engine, Scope as Programs, WatchSpec},
    journal::Progress,
    kill::{Tools, prepare_process, receipt::Outcome},
    order::{Action, Comm, Kill, Order, Processes, Scope, Stage, Whom},
    process::{Process, ProcessError, start_time},
    report::{Evidence, FaultReport, NAMED, Reason, State},
};

use super::{
    cases::end,
    loaded::nothing_is_loaded,
    node::Rig,
    sandbox::{Sandbox, Target, crowd, slack, stranger, struck, tools, until},
    target::SLEEPERS,
};

crate::cases![
    only_processes_of_that_name_are_signalled,
    only_processes_that_run_that_executable_are_signalled,
    a_bomb_that_runs_that_executable_is_gone_within_a_second,
    a_first_process_that_is_not_meant_is_refused,
    that_nobody_is_meant_is_said,
    after_a_restart_those_who_were_hit_are_waited_for,
    a_kill_of_some_is_not_repeated_after_a_restart,
    a_pid_that_was_given_to_another_is_not_hit,
    a_cgroup_that_goes_before_the_programs_are_attached_is_no_panic,
    two_kills_of_one_container_each_signal_once,
    records_that_found_no_room_are_counted,
    a_name_that_the_kernel_cuts_inside_a_character_is_hit_like_any_other,
    a_cgroup_whose_name_is_no_text_hides_nobody,
];

const EVERYONE: Processes = Processes { scope: Scope::All, comm: None, exe: None };

fn of(signal: i32, processes: Processes) -> Kill {
    Kill { signal, whom: Whom::Processes(processes) }
}

/// This program under another name, on the same file system.
fn program(name: &str) -> (tempfile::TempDir, PathBuf) {
    let own = env::current_exe().expect("own path");
    let dir = tempfile::tempdir_in(own.parent().expect("a directory")).expect("a directory");
    let path = dir.path().join(name);
    fs::hard_link(&own, &path).expect("another name");
    (dir, path)
}

async fn fire(tools: &Tools, sandbox: &Sandbox, init: &Target, kill: Kill) -> Outcome {
    let mut prepared = sandbox.prepare_kill(tools, init.pid(), kill);
    prepared.armed().await.expect("arming");
    struck(prepared).await.collect(std::future::ready(None)).await
}

fn hit(outcome: &Outcome) -> Vec<i32> {
    let mut pids: Vec<i32> = outcome.receipt.processes.iter().map(|process| process.pid).collect();
    pids.sort_unstable();
    pids
}

async fn only_processes_of_that_name_are_signalled() {
    let (tools, mut sandbox) = (tools(), Sandbox::new());
    sandbox.limit(100);
    let (_dir, path) = program("worker");
    let (mut init, dirs) = (sandbox.start("busy"), sandbox.dirs());
    // It forks without end, and every child has its name.
    let bomb = sandbox.start_program(&path, "bomb", &dirs);
    until(Duration::from_secs(10), "the bomb has grown", || sandbox.population() >= 60).await;
    let processes = Processes { comm: Comm::new("worker"), ..EVERYONE };
    let outcome = fire(&tools, &sandbox, &init, of(libc::SIGKILL, processes)).await;
    assert_eq!((outcome.state, outcome.receipt.evidence), (State::Done, Evidence::Ebpf), "{outcome:?}");
    assert!(outcome.receipt.processes.iter().all(|process| process.comm == "worker"), "{outcome:?}");
    bomb.wait().await;
    until(Duration::from_secs(2), "only the first is left", || sandbox.population() == 1).await;
    assert!(init.runs());
}

async fn only_processes_that_run_that_executable_are_signalled() {
    let (tools, mut sandbox) = (tools(), Sandbox::new());
    let (_dir, path) = program("the-one");
    let (mut init, dirs) = (sandbox.start("busy"), sandbox.dirs());
    let others = [sandbox.start_program(&path, "busy", &dirs), sandbox.start_program(&path, "sleep", &dirs)];
    let processes = Processes { exe: Some(path), ..EVERYONE };
    let outcome = fire(&tools, &sandbox, &init, of(libc::SIGTERM, processes)).await;
    let mut wanted = others.each_ref().map(Target::pid);
    wanted.sort_unstable();
    assert_eq!((outcome.state, hit(&outcome)), (State::Done, wanted.to_vec()), "{outcome:?}");
    for process in &outcome.receipt.processes {
        assert_eq!((process.exit_code, process.delivered.is_some()), (Some(143), true), "{process:?}");
    }
    assert!(init.runs());
    for other in others {
        assert_eq!(other.wait().await.signal(), Some(libc::SIGTERM));
    }
}

async fn a_bomb_that_runs_that_executable_is_gone_within_a_second() {
    let (tools, mut sandbox) = (tools(), Sandbox::new());
    let size = crowd(100, 30);
    sandbox.limit(size as u32);
    let (_dir, path) = program("the-one");
    let (mut init, dirs) = (sandbox.start("sleep"), sandbox.dirs());
    let bomb = sandbox.start_program(&path, "bomb", &dirs);
    until(Duration::from_secs(10), "the bomb has grown", || sandbox.population() >= size * 3 / 4).await;
    let start = Instant::now();
    let processes = Processes { exe: Some(path), ..EVERYONE };
    let outcome = fire(&tools, &sandbox, &init, of(libc::SIGKILL, processes)).await;
    let took = start.elapsed();
    println!("  {} in {took:?}", outcome.message);
    assert_eq!(outcome.state, State::Done, "{outcome:?}");
    bomb.wait().await;
    until(Duration::from_secs(2), "only the first is left", || sandbox.population() == 1).await;
    assert!(init.runs());
    assert!(took < slack(Duration::from_secs(1)), "{took:?}");
}

async fn a_first_process_that_is_not_meant_is_refused() {
    let (tools, mut sandbox) = (tools(), Sandbox::new());
    let mut target = sandbox.start("busy");
    for processes in [
        Processes { scope: Scope::Init, comm: Comm::new("nobody"), exe: None },
        Processes { scope: Scope::Init, comm: None, exe: Some("/bin/nobody".into()) },
    ] {
        let prepared = sandbox.prepare_kill(&tools, target.pid(), of(libc::SIGKILL, processes));
        let fired = prepared.fire(SystemTime::now(), |_, _| panic!("no intent")).await.map(|_| ());
        let error = fired.expect_err("it has another name");
        assert_eq!(error.reason(), Reason::NoProcess);
        assert!(error.to_string().contains("nobody"), "{error}");
    }
    assert!(target.runs());
}

async fn that_nobody_is_meant_is_said() {
    let (tools, mut sandbox) = (tools(), Sandbox::new());
    let mut target = sandbox.start("busy");
    let processes = Processes { comm: Comm::new("nobody"), ..EVERYONE };
    let outcome = fire(&tools, &sandbox, &target, of(libc::SIGKILL, processes)).await;
    assert_eq!(outcome.state, State::Failed(Reason::NoProcess), "{outcome:?}");
    assert!(target.runs());
}

fn order_to(sandbox: &Sandbox, kill: Kill) -> Order {
    Order {
        id: sandbox.id.clone(),
        experiment: "ns/x".into(),
        container: sandbox.order(),
        stage: Stage::Fire,
        ttl: slack(Duration::from_secs(30)),
        action: Some(Action::Kill(kill)),
    }
}

async fn after_a_restart_those_who_were_hit_are_waited_for() {
    let mut sandbox = Sandbox::new();
    let (_dir, path) = program("worker");
    let (mut init, dirs) = (sandbox.start("sleep"), sandbox.dirs());
    let workers = ["ignore", "ignore"].map(|duty| sandbox.start_program(&path, duty, &dirs));
    let mut rig = Rig::new(&[(&sandbox, &init)]);
    let kill = of(libc::SIGTERM, Processes { comm: Comm::new("worker"), ..EVERYONE });
    rig.order(vec![order_to(&sandbox, kill.clone())]);
    assert_eq!(rig.report().await.state, State::Fired);
    rig.start_again();
    let [first, mut second] = workers;
    end(first).await;
    rig.order(vec![order_to(&sandbox, kill)]);
    assert!(second.runs());
    end(second).await;
    let outcome = rig.outcome().await;
    assert_eq!(outcome.state, State::Done, "{outcome:?}");
    let processes = outcome.receipt.expect("a receipt").processes;
    assert!(
        processes.len() == 2 && processes.iter().all(|process| process.exited.is_some()),
        "{processes:?}"
    );
    assert!(init.runs());
}

async fn a_kill_of_some_is_not_repeated_after_a_restart() {
    let mut sandbox = Sandbox::new();
    let (_dir, path) = program("worker");
    let (mut init, dirs) = (sandbox.start("sleep"), sandbox.dirs());
    let mut rig = Rig::new(&[(&sandbox, &init)]);
    let (pid, start) = (init.pid(), start_time("/proc".as_ref(), init.pid()).expect("its start"));
    rig.restart(|journal| journal.note(&sandbox.id, Progress::Intended { pid, start }).expect("noted"));
    // The one that was meant has died of it, perhaps; this is another.
    let mut worker = sandbox.start_program(&path, "sleep", &dirs);
    let kill = of(libc::SIGKILL, Processes { comm: Comm::new("worker"), ..EVERYONE });
    rig.order(vec![order_to(&sandbox, kill)]);
    let outcome = rig.outcome().await;
    assert_eq!(outcome.state, State::Failed(Reason::Internal), "{outcome:?}");
    assert!(worker.runs() && init.runs(), "it was signalled again");
}

/// A process of ours with this PID, if the kernel can be had to give it.
fn with_pid(pid: i32) -> Option<i32> {
    /// The first version of `struct clone_args` that has the last two fields.
    #[repr(C)]
    #[derive(Default)]
    struct Arguments {
        flags: u64,
        pidfd: u64,
        child_tid: u64,
        parent_tid: u64,
        exit_signal: u64,
        stack: u64,
        stack_size: u64,
        tls: u64,
        set_tid: u64,
        set_tid_size: u64,
    }
    let arguments = Arguments {
        exit_signal: libc::SIGCHLD as u64,
        set_tid: &raw const pid as u64,
        set_tid_size: 1,
        ..Arguments::default()
    };
    // SAFETY: as fork; the child does nothing that needs the rest of this process.
    let child = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<Arguments>()) };
    if child == 0 {
        loop {
            // SAFETY: no argument.
            unsafe { libc::pause() };
        }
    }
    i32::try_from(child).ok().filter(|child| *child > 0)
}

async fn a_pid_that_was_given_to_another_is_not_hit() {
    let (tools, mut sandbox) = (tools(), Sandbox::new());
    for scope in [Scope::Init, Scope::All] {
        for _ in 0..20 {
            let target = sandbox.start("sleep");
            let (pid, start) = (target.pid(), start_time("/proc".as_ref(), target.pid()).expect("its start"));
            let mut prepared = sandbox.prepare(&tools, pid, libc::SIGKILL, scope);
            prepared.armed().await.expect("arming");
            // Start times are told in hundredths of a second.
            tokio::time::sleep(Duration::from_millis(20)).await;
            end(target).await;
            // Somebody else's process may have been faster.
            let Some(other) = with_pid(pid) else { continue };
            assert_eq!(other, pid);
            let fired = prepared.fire(SystemTime::now(), |_, _| panic!("no intent")).await.map(|_| ());
            let error = fired.expect_err("it is another process");
            assert_eq!(error.reason(), Reason::ContainerGone, "{error}");
            let again = Process::open_started("/proc".as_ref(), pid, start);
            assert!(matches!(again, Err(ProcessError::Reused { .. })), "{again:?}");
            // Whoever looks now finds a process that is not the container's.
            let kill = Kill::now(libc::SIGKILL, scope);
            let refused = prepare_process(&tools, &sandbox.order(), kill, pid).map(|_| ());
            assert_eq!(refused.map_err(|error| error.reason()), Err(Reason::ContainerMismatch));
            // It lives: a signal from us ends it now, and only now.
            // SAFETY: no pointer but the status.
            unsafe {
                let mut status = 0;
                assert_eq!(libc::waitpid(pid, &raw mut status, libc::WNOHANG), 0, "it was hit");
                libc::kill(pid, libc::SIGTERM);
                libc::waitpid(pid, &raw mut status, 0);
                assert_eq!(libc::WTERMSIG(status), libc::SIGTERM);
            }
            return;
        }
    }
    panic!("the kernel gave the PID to nobody of ours");
}

async fn a_cgroup_that_goes_before_the_programs_are_attached_is_no_panic() {
    let (tools, mut sandbox) = (tools(), Sandbox::new());
    let target = sandbox.start("sleep");
    let pid = target.pid();
    let cgroup = tools.cgroups.container(pid, &sandbox.id).expect("its cgroup");
    let comm = [0; 16];
    let spec = WatchSpec { scope: Programs::All, signal: libc::SIGKILL, init_pid: pid, init_start: 1, comm };
    let (armed, _records) = tools.engine.arm(&cgroup, spec).expect("arming");
    end(target).await;
    drop(sandbox);
    let error = armed.attach().expect_err("there is no such cgroup any more");
    assert!(matches!(error, EbpfError::Perf { .. }), "{error}");
    armed.fire().expect("nobody is there to be hit");
    drop(armed);
    nothing_is_loaded().await;
}

async fn two_kills_of_one_container_each_signal_once() {
    let (tools, mut sandbox) = (tools(), Sandbox::new());
    // It exits with the number of signals that it got within a moment.
    let target = sandbox.start("count");
    let kill = || Kill::now(libc::SIGTERM, Scope::Init);
    let mut first = sandbox.prepare_kill(&tools, target.pid(), kill());
    first.armed().await.expect("arming");
    let second = sandbox.prepare_kill(&tools, target.pid(), kill());
    let (mut first, mut second) = (struck(first).await, struck(second).await);
    // Two pending SIGTERMs are one: the kernel may merge them.
    let code = target.wait().await.code();
    assert!(matches!(code, Some(1 | 2)), "{code:?}");
    let (first, second) =
        tokio::join!(first.collect(std::future::ready(None)), second.collect(std::future::ready(code)));
    assert_eq!((first.state, second.state), (State::Done, State::Done), "{first:?} {second:?}");
    assert_eq!((hit(&first).len(), hit(&second)), (1, hit(&first)));
}

async fn records_that_found_no_room_are_counted() {
    let engine = Arc::new(Engine::new(false).with_ring(4096));
    let (tools, mut sandbox) = (Tools { engine, ..tools() }, Sandbox::new());
    let mut outside = stranger("sleep");
    // None of them runs, so the daemon alone signals, and its thread is the only one that reads: before it first lets
    // others have their turn, it has caused more records than the ring holds.
    let target = sandbox.start("sleepers");
    until(Duration::from_secs(10), "all are there", || sandbox.population() > SLEEPERS).await;
    let mut prepared = sandbox.prepare(&tools, target.pid(), libc::SIGKILL, Scope::All);
    prepared.armed().await.expect("arming");
    let outcome = struck(prepared).await.collect(std::future::ready(Some(137))).await;
    assert_eq!(outcome.state, State::Done, "{outcome:?}");
    assert!(outcome.receipt.lost > 0, "nothing was lost: {outcome:?}");
    // What is told of them is whole, what is kept of it is not.
    let all = SLEEPERS + 1;
    assert_eq!((outcome.receipt.processes.len(), outcome.receipt.total as usize), (all, all));
    let receipt = Some(outcome.receipt.clone());
    let kept = FaultReport { receipt, ..FaultReport::new("x", State::Done, String::new()) }.shortened();
    let kept = kept.receipt.expect("a receipt");
    assert_eq!((kept.processes.len(), kept.total as usize), (NAMED, all));
    // What is lost is evidence, not work.
    until(slack(Duration::from_secs(2)), "the cgroup is empty", || sandbox.population() == 0).await;
    assert!(outside.runs());
    println!("  {}, lost {}", outcome.message, outcome.receipt.lost);
    outside.0.kill().expect("ending the stranger");
    outside.wait().await;
    target.wait().await;
}

async fn a_name_that_the_kernel_cuts_inside_a_character_is_hit_like_any_other() {
    let tools = tools();
    // Twenty bytes, of which the kernel keeps fifteen: seven characters and a half.
    let (_dir, path) = program("обработчик");
    let mut sandbox = Sandbox::new();
    let (init, dirs) = (sandbox.start("sleep"), sandbox.dirs());
    let other = sandbox.start_program(&path, "sleep", &dirs);
    let outcome = fire(&tools, &sandbox, &init, of(libc::SIGTERM, EVERYONE)).await;
    let mut wanted = [init.pid(), other.pid()];
    wanted.sort_unstable();
    assert_eq!((outcome.state, hit(&outcome)), (State::Done, wanted.to_vec()), "{outcome:?}");
    let cut = outcome.receipt.processes.iter().find(|process| process.pid == other.pid());
    let cut = cut.expect("its receipt");
    assert!(cut.comm.starts_with("обработ") && cut.exit_code == Some(143), "{cut:?}");
    for target in [init, other] {
        assert_eq!(target.wait().await.signal(), Some(libc::SIGTERM));
    }
    let mut sandbox = Sandbox::new();
    let dirs = sandbox.dirs();
    let init = sandbox.start_program(&path, "sleep", &dirs);
    let outcome = fire(&tools, &sandbox, &init, Kill::now(libc::SIGKILL, Scope::Init)).await;
    assert_eq!((outcome.state, hit(&outcome)), (State::Done, vec![init.pid()]), "{outcome:?}");
    assert_eq!(init.wait().await.signal(), Some(libc::SIGKILL));
}

async fn a_cgroup_whose_name_is_no_text_hides_nobody() {
    let tools = tools();
    for init_hides in [false, true] {
        let mut sandbox = Sandbox::new();
        let (mut first, mut second) = (sandbox.dirs(), sandbox.below(OsStr::from_bytes(b"\xff")));
        if init_hides {
            std::mem::swap(&mut first, &mut second);
        }
        let (init, other) = (sandbox.start_in("sleep", &first), sandbox.start_in("sleep", &second));
        let outcome = fire(&tools, &sandbox, &init, of(libc::SIGTERM, EVERYONE)).await;
        let mut wanted = [init.pid(), other.pid()];
        wanted.sort_unstable();
        assert_eq!((outcome.state, hit(&outcome)), (State::Done, wanted.to_vec()), "{outcome:?}");
        for target in [init, other] {
            assert_eq!(target.wait().await.signal(), Some(libc::SIGTERM));
        }
    }
}
