//! The cases. Each says in its name what must hold.

use std::{
    future::Future,
    os::unix::process::ExitStatusExt,
    pin::Pin,
    time::{Duration, Instant, SystemTime},
};

use squall_daemon::{
    cgroup::Layout,
    container::ContainerError,
    ebpf::{Claimed, Scope as Programs, WatchSpec},
    kill::{Fired, KillError, Tools, prepare_process, receipt::Outcome},
    order::{Kill, Scope},
    process::{Process, ProcessError, start_time},
    report::{Evidence, Note, ProcessReceipt, Reason, State},
};

use super::{
    loaded::{nothing_is_loaded, programs_are},
    sandbox::{Sandbox, Target, not_here, rounds, slack, stranger, struck, tools, until},
};

/// A case.
pub type Case = fn() -> Pin<Box<dyn Future<Output = ()>>>;

/// Lists the cases of a file by their names.
#[macro_export]
macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        pub const ALL: &[(&str, $crate::kernel::cases::Case)] = &[$((stringify!($name), || Box::pin($name()))),*];
    };
}

cases![
    every_program_loads_and_attaches_and_goes_with_the_last_watch,
    a_sleeping_process_dies_and_the_receipt_tells_the_whole_story,
    a_busy_loop_is_killed_by_the_program_alone,
    a_fork_bomb_is_gone_within_a_second_and_a_stranger_lives,
    each_process_gets_the_signal_exactly_once_however_both_sides_race,
    every_process_of_a_tree_gets_the_signal_exactly_once,
    an_armed_watch_has_no_effect,
    scope_init_leaves_the_others_alone,
    only_the_ends_of_those_who_were_signalled_are_recorded,
    without_a_v2_cgroup_of_its_own_only_the_container_is_hit,
    processes_of_sub_cgroups_count,
    a_container_with_an_init_system_is_hit_as_a_whole,
    an_ignored_signal_and_a_blocked_one_are_reported_as_such,
    a_sigterm_that_ends_a_process_by_default_is_delivered,
    real_time_signals_are_sent,
    an_exit_code_is_the_process_own,
    an_oom_kill_is_told_beside_the_signal,
    an_oom_kill_is_counted_from_before_the_first_signal,
    a_process_whose_leader_has_ended_is_killed,
    a_pid_with_another_start_time_is_refused,
    a_process_of_another_container_is_refused,
    a_container_that_is_gone_is_refused_after_it_was_armed,
    a_failing_intent_stops_the_kill,
    without_the_programs_the_kill_works_and_says_so,
    an_armed_kill_is_fired_within_three_milliseconds,
    arming_is_quick_up_to_the_perf_events,
    a_killed_daemon_leaves_nothing_in_the_kernel,
];

pub async fn fire(tools: &Tools, sandbox: &Sandbox, init: i32, signal: i32, scope: Scope) -> Outcome {
    let mut prepared = sandbox.prepare(tools, init, signal, scope);
    prepared.armed().await.expect("arming");
    let mut collector = struck(prepared).await;
    let outcome = collector.collect(std::future::ready(None)).await;
    if outcome.receipt.lost > 0 {
        println!("  lost {}", outcome.receipt.lost);
    }
    outcome
}

pub fn one(outcome: &Outcome) -> &ProcessReceipt {
    assert_eq!(outcome.receipt.processes.len(), 1, "{outcome:?}");
    &outcome.receipt.processes[0]
}

async fn every_program_loads_and_attaches_and_goes_with_the_last_watch() {
    nothing_is_loaded().await;
    let tools = tools();
    tools.engine.probe().expect("eBPF works here");
    nothing_is_loaded().await;
    assert!(!tools.engine.is_loaded());

    let (mut first, mut second) = (Sandbox::new(), Sandbox::new());
    let (one, other) = (first.start("sleep"), second.start("sleep"));
    let mut armed = first.prepare(&tools, one.pid(), libc::SIGKILL, Scope::Init);
    armed.armed().await.expect("arming");
    let mut also = second.prepare(&tools, other.pid(), libc::SIGKILL, Scope::All);
    also.armed().await.expect("arming");
    // One object for all watches.
    programs_are(4).await;
    drop(armed);
    programs_are(4).await;
    drop(also);
    nothing_is_loaded().await;
}

async fn a_sleeping_process_dies_and_the_receipt_tells_the_whole_story() {
    let (tools, mut sandbox) = (tools(), Sandbox::new());
    let target = sandbox.start("sleep");
    let before = SystemTime::now();
    let outcome = fire(&tools, &sandbox, target.pid(), libc::SIGKILL, Scope::Init).await;
    let after = SystemTime::now();
    assert_eq!((outcome.state, outcome.receipt.evidence), (State::Done, Evidence::Ebpf), "{outcome:?}");
    assert_eq!((outcome.receipt.evidence_error.as_str(), outcome.receipt.lost), ("", 0));
    let process = one(&outcome);
    assert_eq!((process.pid, process.init, process.exit_code), (target.pid(), true, Some(137)));
    assert!(!process.comm.is_empty());
    let (sent, delivered) = (process.sent, process.delivered.expect("delivery"));
    let exited = process.exited.expect("exit");
    // Kernel and wall clock are read one after the other: a millisecond of slack.
    let skew = slack(Duration::from_millis(1));
    assert!(
        before <= sent + skew && sent <= delivered + skew && delivered <= exited && exited <= after + skew
    );
    assert_eq!(target.wait().await.signal(), Some(libc::SIGKILL));
}

async fn a_busy_loop_is_killed_by_the_program_alone() {
    let (tools, mut sandbox) = (tools(), Sandbox::new());
    let target = sandbox.start("busy");
    let cgroup = tools.cgroups.target(target.pid()).expect("its cgroup");
    let spec = WatchSpec {
        scope: Programs::All,
        signal: libc::SIGKILL,
        init_pid: target.pid(),
        init_start: start_time(std::path::Path::new("/proc"), target.pid()).expect("its start"),
        comm: [0; 16],
    };
    let (armed, mut records) = tools.engine.arm(&cgroup, spec).expect("arming");
    armed.attach().expect("attaching");
    let start = Instant::now();
    armed.fire().expect("firing");
    // Nobody sends anything from here: what dies was hit by the program.
    assert_eq!(target.wait().await.signal(), Some(libc::SIGKILL));
    assert!(start.elapsed() < slack(Duration::from_millis(500)), "{:?}", start.elapsed());
    let first = records.next().await.expect("a record");
    assert_eq!(first.kind, squall_daemon_ebpf::RECORD_SENT);
}

async fn a_fork_bomb_is_gone_within_a_second_and_a_stranger_lives() {
    let (tools, mut sandbox) = (tools(), Sandbox::new());
    sandbox.limit(200);
    let mut outside = stranger("busy");
    let target = sandbox.start("bomb");
    until(Duration::from_secs(10), "the bomb has grown", || sandbox.population() >= 150).await;
    let mut prepared = sandbox.prepare(&tools, target.pid(), libc::SIGKILL, Scope::All);
    prepared.armed().await.expect("arming");
    let start = Instant::now();
    let mut collector = struck(prepared).await;
    let collecting = tokio::spawn(async move { collector.collect(std::future::ready(None)).await });
    until(Duration::from_secs(5), "the cgroup is empty", || sandbox.population() == 0).await;
    let took = start.elapsed();
    assert!(took < slack(Duration::from_secs(1)), "{took:?}");
    let outcome = collecting.await.expect("collecting");
    assert_eq!(outcome.state, State::Done, "{outcome:?}");
    assert!(outside.runs(), "a process outside was hit");
    println!("  {} in {took:?}, lost {}", outcome.message, outcome.receipt.lost);
    outside.0.kill().expect("ending the stranger");
    outside.wait().await;
    target.wait().await;
}

async fn each_process_gets_the_signal_exactly_once_however_both_sides_race() {
    let tools = tools();
    let (mut by_program, mut by_pidfd) = (0, 0);
    let all = rounds(100);
    for round in 0..all {
        let mut sandbox = Sandbox::new();
        let target = sandbox.start(if round % 4 == 0 { "count" } else { "count-busy" });
        let cgroup = tools.cgroups.target(target.pid()).expect("its cgroup");
        let process = Process::open(tools.cgroups.proc(), target.pid()).expect("the target");
        let spec = WatchSpec {
            scope: Programs::All,
            signal: libc::SIGTERM,
            init_pid: process.pid(),
            init_start: process.start(),
            comm: [0; 16],
        };
        let (armed, mut records) = tools.engine.arm(&cgroup, spec).expect("arming");
        armed.attach().expect("attaching");
        armed.fire().expect("firing");
        // The daemon comes at any moment of the tick at which the program runs, more often at its beginning.
        let delay = slack(Duration::from_millis(2)).mul_f64((round as f64 / all as f64).powi(2));
        let start = Instant::now();
        while start.elapsed() < delay {
            std::hint::spin_loop();
        }
        if armed.claim(process.pid(), process.start()).expect("claiming") == Claimed::Now {
            process.send(libc::SIGTERM).expect("sending");
            by_pidfd += 1;
        } else {
            by_program += 1;
        }
        assert_eq!(target.wait().await.code(), Some(1), "signalled so many times, round {round}");
        drop(armed);
        let mut sent = 0;
        while let Some(record) = records.next().await {
            sent += u32::from(record.kind == squall_daemon_ebpf::RECORD_SENT);
        }
        assert!(sent <= 1, "the program sent {sent} times");
    }
    println!("  sent by the program {by_program}, by pidfd {by_pidfd}");
    let few = rounds(5);
    assert!(by_program >= few && by_pidfd >= few, "no race: {by_program} against {by_pidfd}");
}

async fn every_process_of_a_tree_gets_the_signal_exactly_once() {
    let tools = tools();
    for _ in 0..rounds(10) {
        let mut sandbox = Sandbox::new();
        let target = sandbox.start("count-tree");
        let outcome = fire(&tools, &sandbox, target.pid(), libc::SIGTERM, Scope::All).await;
        assert_eq!((outcome.state, outcome.receipt.processes.len()), (State::Done, 4), "{outcome:?}");
        for process in &outcome.receipt.processes {
            assert_eq!(process.exit_code, Some(1), "{process:?}");
        }
        target.wait().await;
    }
}

async fn an_armed_watch_has_no_effect() {
    let (tools, mut sandbox) = (tools(), Sandbox::new());
    let mut target = sandbox.start("busy");
    let mut prepared = sandbox.prepare(&tools, target.pid(), libc::SIGKILL, Scope::All);
    prepared.armed().await.expect("arming");
    // The program runs a hundred times meanwhile.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(target.runs());
    drop(prepared);
    nothing_is_loaded().await;
    assert!(target.runs());
}

async fn scope_init_leaves_the_others_alone() {
    let (tools, mut sandbox) = (tools(), Sandbox::new());
    let (init, mut other) = (sandbox.start("busy"), sandbox.start("busy"));
    let outcome = fire(&tools, &sandbox, init.pid(), libc::SIGKILL, Scope::Init).await;
    assert_eq!((outcome.state, one(&outcome).pid), (State::Done, init.pid()));
    assert!(other.runs());
    init.wait().await;
}

async fn only_the_ends_of_those_who_were_signalled_are_recorded() {
    let (tools, mut sandbox) = (tools(), Sandbox::new());
    let (mut signalled, mut other) = (sandbox.start("sleep"), sandbox.start("sleep"));
    let cgroup = tools.cgroups.target(signalled.pid()).expect("its cgroup");
    let process = Process::open(tools.cgroups.proc(), signalled.pid()).expect("the target");
    let spec = WatchSpec {
        scope: Programs::Observe,
        signal: libc::SIGKILL,
        init_pid: process.pid(),
        init_start: process.start(),
        comm: [0; 16],
    };
    let (armed, mut records) = tools.engine.arm(&cgroup, spec).expect("arming");
    armed.fire().expect("firing");
    other.0.kill().expect("killing the other");
    other.wait().await;
    assert_eq!(armed.claim(process.pid(), process.start()).expect("claiming"), Claimed::Now);
    signalled.0.kill().expect("killing the target");
    signalled.wait().await;
    let mut ended = Vec::new();
    while let Ok(Some(record)) = tokio::time::timeout(slack(Duration::from_millis(200)), records.next()).await
    {
        if record.kind == squall_daemon_ebpf::RECORD_EXITED {
            ended.push(record.tgid as i32);
        }
    }
    assert_eq!(ended, [process.pid()]);
}

async fn without_a_v2_cgroup_of_its_own_only_the_container_is_hit() {
    let (tools, mut sandbox) = (tools(), Sandbox::new());
    if tools.cgroups.layout() == Layout::V2 {
        not_here("version 2 is all there is");
    }
    // In version 2 all of them are where this process is: as containers are where the runtime is.
    let dirs = sandbox.v1();
    let (init, other) = (sandbox.start_in("sleep", &dirs), sandbox.start_in("busy", &dirs));
    let mut outside = stranger("sleep");
    // There is nothing to scope the programs by; the receipt says so.
    let mut prepared = sandbox.prepare(&tools, init.pid(), libc::SIGKILL, Scope::All);
    prepared.armed().await.expect("nothing is attached");
    let mut collector = struck(prepared).await;
    let outcome = collector.collect(std::future::ready(Some(137))).await;
    assert_eq!((outcome.state, outcome.receipt.evidence), (State::Done, Evidence::Pidfd), "{outcome:?}");
    assert!(outcome.receipt.evidence_error.contains("no version 2 cgroup"), "{outcome:?}");
    let mut hit: Vec<i32> = outcome.receipt.processes.iter().map(|process| process.pid).collect();
    hit.sort_unstable();
    let mut wanted = [init.pid(), other.pid()];
    wanted.sort_unstable();
    assert_eq!(hit, wanted);
    assert!(outside.runs());
    outside.0.kill().expect("killing the stranger");
    outside.wait().await;
    init.wait().await;
    other.wait().await;
}

async fn processes_of_sub_cgroups_count() {
    let (tools, mut sandbox) = (tools(), Sandbox::new());
    let init = sandbox.start("sleep");
    let below = sandbox.below("init.scope");
    let (sleeping, busy) = (sandbox.start_in("sleep", &below), sandbox.start_in("busy", &below));
    let outcome = fire(&tools, &sandbox, init.pid(), libc::SIGKILL, Scope::All).await;
    assert_eq!((outcome.state, outcome.receipt.processes.len()), (State::Done, 3), "{outcome:?}");
    for process in &outcome.receipt.processes {
        assert_eq!(process.exit_code, Some(137), "{process:?}");
    }
    for target in [init, sleeping, busy] {
        target.wait().await;
    }
}

async fn a_container_with_an_init_system_is_hit_as_a_whole() {
    let (tools, mut sandbox) = (tools(), Sandbox::new());
    let (first, second) = (sandbox.below("init.scope"), sandbox.below("system.slice"));
    let (init, service) = (sandbox.start_in("sleep", &first), sandbox.start_in("busy", &second));
    let outcome = fire(&tools, &sandbox, init.pid(), libc::SIGKILL, Scope::All).await;
    assert_eq!((outcome.state, outcome.receipt.processes.len()), (State::Done, 2), "{outcome:?}");
    init.wait().await;
    service.wait().await;
}

async fn not_ended(duty: &str, note: Note) {
    let (tools, mut sandbox) = (tools(), Sandbox::new());
    let mut target = sandbox.start(duty);
    let outcome = fire(&tools, &sandbox, target.pid(), libc::SIGTERM, Scope::Init).await;
    assert_eq!(outcome.state, State::Failed(Reason::SignalIgnored), "{outcome:?}");
    let process = one(&outcome);
    assert_eq!((process.note, process.exited, process.exit_code), (Some(note), None, None));
    assert!(target.runs());
}

async fn an_ignored_signal_and_a_blocked_one_are_reported_as_such() {
    // Each is waited for until a kill's time is over.
    tokio::join!(not_ended("ignore", Note::Ignored), not_ended("block", Note::Blocked));
}

async fn a_sigterm_that_ends_a_process_by_default_is_delivered() {
    let (tools, mut sandbox) = (tools(), Sandbox::new());
    for duty in ["sleep", "busy", "exit-7"] {
        let target = sandbox.start(duty);
        let outcome = fire(&tools, &sandbox, target.pid(), libc::SIGTERM, Scope::Init).await;
        let code = if duty == "exit-7" { 7 } else { 143 };
        assert_eq!(
            (outcome.state, one(&outcome).exit_code),
            (State::Done, Some(code)),
            "{duty}: {outcome:?}"
        );
        // The kernel hands it over as a SIGKILL; the receipt says what it was.
        assert!(one(&outcome).delivered.is_some(), "{duty}: {outcome:?}");
        target.wait().await;
    }
}

async fn real_time_signals_are_sent() {
    let tools = tools();
    for signal in [libc::SIGRTMIN() + 3, libc::SIGRTMAX()] {
        for (duty, scope) in [("sleep", Scope::Init), ("busy", Scope::All)] {
            let mut sandbox = Sandbox::new();
            let target = sandbox.start(duty);
            let outcome = fire(&tools, &sandbox, target.pid(), signal, scope).await;
            assert_eq!(
                (outcome.state, one(&outcome).exit_code),
                (State::Done, Some(128 + signal)),
                "{duty}: {outcome:?}"
            );
            assert!(one(&outcome).delivered.is_some(), "{duty}: {outcome:?}");
            assert_eq!(target.wait().await.signal(), Some(signal));
        }
    }
}

async fn an_exit_code_is_the_process_own() {
    let (tools, mut sandbox) = (tools(), Sandbox::new());
    let target = sandbox.start("exit-7");
    let outcome = fire(&tools, &sandbox, target.pid(), libc::SIGTERM, Scope::Init).await;
    assert_eq!((outcome.state, one(&outcome).exit_code), (State::Done, Some(7)));
    assert_eq!(target.wait().await.code(), Some(7));
}

async fn an_oom_kill_is_told_beside_the_signal() {
    let (tools, mut sandbox, mut beside) = (tools(), Sandbox::new(), Sandbox::new());
    // Version 2 or 1, whichever counts here.
    let limit = if sandbox.find("memory.max").is_some() { "memory.max" } else { "memory.limit_in_bytes" };
    for sandbox in [&sandbox, &beside] {
        sandbox.set(limit, "67108864");
    }
    let (target, mut neighbour) = (sandbox.start("hungry"), beside.start("hungry"));
    let outcome = fire(&tools, &sandbox, target.pid(), libc::SIGTERM, Scope::Init).await;
    assert_eq!((outcome.state, outcome.receipt.oom_kills), (State::Done, 1), "{outcome:?}");
    // It took the signal, and was killed by the kernel.
    assert_eq!((one(&outcome).exit_code, one(&outcome).note), (Some(137), None), "{outcome:?}");
    assert_eq!(target.wait().await.signal(), Some(libc::SIGKILL));
    assert!(neighbour.runs());
    // The same without want of memory: there is nothing to tell, also when there was something before.
    let other = sandbox.start("sleep");
    let outcome = fire(&tools, &sandbox, other.pid(), libc::SIGKILL, Scope::Init).await;
    assert_eq!((outcome.state, outcome.receipt.oom_kills), (State::Done, 0), "{outcome:?}");
    other.wait().await;
}

async fn an_oom_kill_is_counted_from_before_the_first_signal() {
    let (tools, mut sandbox) = (tools(), Sandbox::new());
    let limit = if sandbox.find("memory.max").is_some() { "memory.max" } else { "memory.limit_in_bytes" };
    sandbox.set(limit, "67108864");
    let (init, mut hungry) = (sandbox.start("sleep"), sandbox.start("hungry"));
    let prepared = sandbox.prepare(&tools, init.pid(), libc::SIGKILL, Scope::Init);
    // The last moment at which nothing has been signalled yet.
    let intent = |_, _| {
        // SAFETY: no pointer.
        unsafe { libc::kill(hungry.pid(), libc::SIGTERM) };
        assert_eq!(hungry.0.wait().expect("its end").signal(), Some(libc::SIGKILL));
        Ok(())
    };
    let Ok(Fired::Struck(mut collector)) = prepared.fire(SystemTime::now(), intent).await else {
        panic!("not signalled")
    };
    let outcome = collector.collect(std::future::ready(Some(137))).await;
    assert_eq!((outcome.state, outcome.receipt.oom_kills), (State::Done, 1), "{outcome:?}");
    init.wait().await;
}

async fn a_process_whose_leader_has_ended_is_killed() {
    let (tools, mut sandbox) = (tools(), Sandbox::new());
    let target = sandbox.start("threads");
    let outcome = fire(&tools, &sandbox, target.pid(), libc::SIGKILL, Scope::Init).await;
    assert_eq!((outcome.state, one(&outcome).exit_code), (State::Done, Some(137)), "{outcome:?}");
    target.wait().await;
}

async fn a_pid_with_another_start_time_is_refused() {
    let target = stranger("sleep");
    let proc = std::path::Path::new("/proc");
    let start = start_time(proc, target.pid()).expect("its start");
    let refused = Process::open_started(proc, target.pid(), start - 1);
    assert!(matches!(refused, Err(ProcessError::Reused { .. })), "{refused:?}");
    end(target).await;
}

async fn a_process_of_another_container_is_refused() {
    let (tools, mut first, second) = (tools(), Sandbox::new(), Sandbox::new());
    let mut target = first.start("sleep");
    let kill = Kill::now(libc::SIGKILL, Scope::All);
    let refused = prepare_process(&tools, &second.order(), kill, target.pid()).map(|_| ());
    assert!(matches!(refused, Err(KillError::Container(ContainerError::Mismatch { .. }))), "{refused:?}");
    assert!(target.runs());
}

async fn a_container_that_is_gone_is_refused_after_it_was_armed() {
    let (tools, mut sandbox) = (tools(), Sandbox::new());
    let target = sandbox.start("sleep");
    let mut prepared = sandbox.prepare(&tools, target.pid(), libc::SIGKILL, Scope::Init);
    prepared.armed().await.expect("arming");
    end(target).await;
    let fired = prepared.fire(SystemTime::now(), |_, _| panic!("no intent for what is gone")).await;
    let error = fired.map(|_| ()).expect_err("nothing is left to be hit");
    assert_eq!(error.reason(), Reason::ContainerGone, "{error}");
}

async fn a_failing_intent_stops_the_kill() {
    let (tools, mut sandbox) = (tools(), Sandbox::new());
    let mut target = sandbox.start("sleep");
    let prepared = sandbox.prepare(&tools, target.pid(), libc::SIGKILL, Scope::Init);
    let fired = prepared.fire(SystemTime::now(), |_, _| Err("disk full".into())).await.map(|_| ());
    assert!(matches!(fired, Err(KillError::Intent(_))));
    assert!(target.runs());
}

async fn without_the_programs_the_kill_works_and_says_so() {
    let (tools, mut sandbox) = (tools(), Sandbox::new());
    let (init, other) = (sandbox.start("sleep"), sandbox.start("busy"));
    // Somebody else has the cgroup: this kill gets no watch of its own.
    let mut held = sandbox.prepare(&tools, init.pid(), libc::SIGKILL, Scope::All);
    held.armed().await.expect("arming");
    let prepared = sandbox.prepare(&tools, init.pid(), libc::SIGKILL, Scope::All);
    let mut collector = struck(prepared).await;
    let outcome = collector.collect(std::future::ready(Some(137))).await;
    assert_eq!((outcome.state, outcome.receipt.evidence), (State::Done, Evidence::Pidfd), "{outcome:?}");
    assert!(outcome.receipt.evidence_error.contains("another fault"), "{outcome:?}");
    assert_eq!(outcome.receipt.processes.len(), 2);
    assert!(outcome.receipt.processes[0].init && outcome.receipt.processes[0].exit_code == Some(137));
    init.wait().await;
    other.wait().await;
}

async fn an_armed_kill_is_fired_within_three_milliseconds() {
    let tools = tools();
    let (mut firing, mut arming) = (Vec::new(), Vec::new());
    for _ in 0..20 {
        let mut sandbox = Sandbox::new();
        let target = sandbox.start("sleep");
        let start = Instant::now();
        let mut prepared = sandbox.prepare(&tools, target.pid(), libc::SIGKILL, Scope::Init);
        prepared.armed().await.expect("arming");
        arming.push(start.elapsed());
        let start = Instant::now();
        let mut collector = struck(prepared).await;
        firing.push(start.elapsed());
        collector.collect(std::future::ready(None)).await;
        target.wait().await;
    }
    firing.sort();
    arming.sort();
    println!("  firing: median {:?}, p90 {:?}; arming: median {:?}", firing[10], firing[18], arming[10]);
    assert!(firing[10] <= slack(Duration::from_millis(3)), "{firing:?}");
}

async fn arming_is_quick_up_to_the_perf_events() {
    let (tools, mut sandbox) = (tools(), Sandbox::new());
    let target = sandbox.start("sleep");
    let cgroup = tools.cgroups.target(target.pid()).expect("its cgroup");
    let spec = WatchSpec {
        scope: Programs::Observe,
        signal: libc::SIGKILL,
        init_pid: target.pid(),
        init_start: 1,
        comm: [0; 16],
    };
    let time = |what: &mut dyn FnMut()| {
        let start = Instant::now();
        what();
        start.elapsed()
    };
    let mut held = None;
    let mut arm = || held = Some(tools.engine.arm(&cgroup, spec).expect("arming"));
    let first = time(&mut arm);
    let unloading = time(&mut || drop(held.take()));
    let mut arm = || held = Some(tools.engine.arm(&cgroup, spec).expect("arming"));
    let loading = time(&mut arm);
    drop(held);
    let (armed, _records) = tools.engine.arm(&cgroup, spec).expect("arming");
    let attaching = time(&mut || armed.attach().expect("attaching"));
    let mut second = Sandbox::new();
    let other = second.start("sleep");
    let cgroup = tools.cgroups.target(other.pid()).expect("its cgroup");
    let entering = time(&mut || drop(tools.engine.arm(&cgroup, spec).expect("arming")));
    println!(
        "  first load {first:?}, unloading {unloading:?}, load {loading:?}, perf events {attaching:?}, one more watch {entering:?}"
    );
    assert!(entering < slack(Duration::from_millis(10)), "{entering:?}");
}

async fn a_killed_daemon_leaves_nothing_in_the_kernel() {
    tools().engine.probe().expect("eBPF works here");
    for (duty, programs) in [("hold-a-watch", 4), ("hold-a-trigger", 5)] {
        nothing_is_loaded().await;
        let mut holder = stranger(duty);
        // The other process has armed.
        programs_are(programs).await;
        holder.0.kill().expect("killing the holder");
        holder.wait().await;
    }
    nothing_is_loaded().await;
}

pub async fn end(mut target: Target) {
    target.0.kill().expect("killing a target");
    target.wait().await;
}
