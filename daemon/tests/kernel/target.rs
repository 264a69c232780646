//! What the targets do: this binary, started again with a duty.

use std::{
    env, fs,
    io::{self, Read, Write},
    os::unix::process::CommandExt,
    process,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, SystemTime},
};

use squall_daemon::order::{Kill, On, Scope};

/// The environment variable with the duty.
pub const DUTY: &str = "SQUALL_TEST_DUTY";
/// The environment variable with the `cgroup.procs` files to enter first.
pub const CGROUPS: &str = "SQUALL_TEST_CGROUPS";

/// So many bytes of memory `large` has.
pub const LARGE: usize = 64 << 20;

/// How many children `sleepers` has.
pub const SLEEPERS: usize = 150;

static TERMS: AtomicU32 = AtomicU32::new(0);

/// The duty of being the tests themselves, in a cgroup namespace of their own: as the daemon is on most nodes.
const PRIVATE_CGROUP_NAMESPACE: &str = "private-cgroup-namespace";

/// Enters the cgroups, says `ready`, does the duty, and never returns.
pub fn run(duty: &str) -> ! {
    if duty == super::privileges::DAEMON {
        super::privileges::be_the_daemon();
    }
    if duty != PRIVATE_CGROUP_NAMESPACE {
        enter_first_cgroup_namespace();
    }
    let files = env::var_os(CGROUPS).unwrap_or_default();
    for file in env::split_paths(&files).filter(|file| !file.as_os_str().is_empty()) {
        fs::write(&file, "0").unwrap_or_else(|error| panic!("entering {}: {error}", file.display()));
    }
    if duty == PRIVATE_CGROUP_NAMESPACE {
        in_private_cgroup_namespace();
    }
    if super::cost::DUTIES.contains(&duty) {
        super::cost::work(duty);
    }
    match duty {
        "ignore" => handle(libc::SIG_IGN),
        "count" | "count-busy" | "count-tree" | "hungry" => handle(count as *const () as libc::sighandler_t),
        "exit-7" => handle(exit_7 as *const () as libc::sighandler_t),
        "block" => block_term(),
        "sleep-as-nobody" => become_nobody(),
        _ => {}
    }
    if duty == "count-tree" {
        for _ in 0..3 {
            // SAFETY: one thread, and the child goes on with plain code.
            if unsafe { libc::fork() } == 0 {
                count_for_a_while(true);
            }
        }
    }
    if let Some(work) = duty.strip_prefix("work:") {
        super::work::run(work);
    }
    if duty == "hold-a-watch" || duty == "hold-a-trigger" {
        hold(duty == "hold-a-trigger");
    }
    if duty == "hold-stress" || duty == "stress-with-capabilities" {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        if duty == "hold-stress" {
            runtime.block_on(super::stress::hold_stress());
        } else {
            runtime.block_on(super::stress::stress_with_capabilities());
        }
    }
    if duty == "hold-freeze" {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(super::freeze::hold_freeze());
    }
    // What is not zero is there, page by page.
    let held = std::hint::black_box(vec![1_u8; if duty == "large" { LARGE } else { 0 }]);
    println!("ready");
    match duty {
        "busy" => loop {
            std::hint::spin_loop();
        },
        "bomb" => bomb(),
        "sleepers" => sleepers(),
        "hungry" => hungry(),
        "count" => count_for_a_while(false),
        "count-busy" | "count-tree" => count_for_a_while(true),
        "threads" => threads(),
        _ => loop {
            // SAFETY: no argument.
            unsafe { libc::pause() };
            std::hint::black_box(&held);
        },
    }
}

/// Targets are started by the tests, containers by their runtime, and that is not in the daemon's namespace: from there
/// nobody could be put into another cgroup.
fn enter_first_cgroup_namespace() {
    squall_daemon::cgroup::namespace::enter_nodes(std::path::Path::new("/proc"))
        .expect("the first namespace");
}

/// Starts this program again, where paths of other cgroups begin with `/..`.
fn in_private_cgroup_namespace() -> ! {
    // SAFETY: no pointer.
    let unshared = unsafe { libc::unshare(libc::CLONE_NEWCGROUP) };
    assert_eq!(unshared, 0, "a cgroup namespace: {}", io::Error::last_os_error());
    let error = process::Command::new(env::current_exe().expect("own path"))
        .args(env::args().skip(1))
        .env_remove(DUTY)
        .env_remove(CGROUPS)
        .exec();
    panic!("starting again: {error}");
}

extern "C" fn count(_: libc::c_int) {
    TERMS.fetch_add(1, Ordering::Relaxed);
}

extern "C" fn exit_7(_: libc::c_int) {
    // SAFETY: may be called from a handler.
    unsafe { libc::_exit(7) }
}

fn handle(handler: libc::sighandler_t) {
    // SAFETY: the handlers touch an atomic, or exit.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler;
        libc::sigaction(libc::SIGTERM, &action, std::ptr::null_mut());
    }
}

/// Containers run as any user.
fn become_nobody() {
    // SAFETY: plain numbers, one thread.
    let done = unsafe { libc::setgid(65534) == 0 && libc::setuid(65534) == 0 };
    assert!(done, "becoming nobody: {}", io::Error::last_os_error());
}

fn block_term() {
    // SAFETY: a set on our stack.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigaddset(&mut set, libc::SIGTERM);
        libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
    }
}

/// Waits for the first SIGTERM, then long enough for a second, and exits with how many there were.
fn count_for_a_while(busy: bool) -> ! {
    while TERMS.load(Ordering::Relaxed) == 0 {
        if busy {
            std::hint::spin_loop();
        } else {
            // A signal ends the sleep, so nothing is missed between the look and the sleep for long.
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    // A second one would be queued behind the handler of the first within a tick or two.
    let until = std::time::Instant::now() + Duration::from_millis(30);
    while std::time::Instant::now() < until {
        std::hint::spin_loop();
    }
    process::exit(TERMS.load(Ordering::Relaxed) as i32)
}

/// With the first SIGTERM it wants more memory than there is.
fn hungry() -> ! {
    while TERMS.load(Ordering::Relaxed) == 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut eaten = Vec::new();
    loop {
        // What is not zero is there, page by page.
        eaten.push(vec![1_u8; 1 << 20]);
        std::hint::black_box(&eaten);
    }
}

/// Forks as fast as it can; the number at the same time is bounded by the `pids` controller of the sandbox.
fn bomb() -> ! {
    loop {
        // SAFETY: one thread; the child does the same as its parent.
        let child = unsafe { libc::fork() };
        if child < 0 {
            // SAFETY: no argument.
            unsafe { libc::sched_yield() };
        }
    }
}

/// With many children, none of which runs.
fn sleepers() -> ! {
    for _ in 0..SLEEPERS {
        // SAFETY: one thread; the child waits at once.
        if unsafe { libc::fork() } == 0 {
            break;
        }
    }
    loop {
        // SAFETY: no argument.
        unsafe { libc::pause() };
    }
}

/// Stands in for a daemon that is killed while it has a watch or a trigger armed, on a process of its own.
fn hold(trigger: bool) -> ! {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut sandbox = super::sandbox::Sandbox::new();
        let mut target = sandbox.start("sleep");
        let tools = super::sandbox::tools();
        let on = On::Syscall { name: "fsync".into(), nth: 1 };
        let kill = if trigger { Kill::when(libc::SIGKILL, on) } else { Kill::now(libc::SIGKILL, Scope::All) };
        let mut prepared = sandbox.prepare_kill(&tools, target.pid(), kill);
        prepared.armed().await.expect("arming");
        let _held = if trigger {
            (Some(prepared.fire(SystemTime::now(), |_, _| Ok(())).await.expect("arming")), None)
        } else {
            (None, Some(prepared))
        };
        target.0.kill().expect("killing the target");
        target.wait().await;
        // What the kernel can't clean up for a killed process is cleaned up before.
        drop(sandbox);
        println!("ready");
        std::future::pending::<()>().await;
    });
    unreachable!("pending never ends")
}

/// A leader that has ended while another thread goes on.
fn threads() -> ! {
    std::thread::spawn(|| {
        let mut byte = [0];
        let _ = std::io::stdin().read(&mut byte);
        loop {
            std::thread::park();
        }
    });
    let _ = std::io::stdout().flush();
    // SAFETY: ends this thread alone.
    unsafe {
        libc::syscall(libc::SYS_exit, 0);
    }
    unreachable!("the thread has ended")
}
