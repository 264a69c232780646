//! `cargo xtask bench ebpf`: what the programs cost a process, for each system call and each fork, in a container that
//! is a target and in one that isn't. As ratios to the same process with nothing armed, all in one run.
//!
//! What is measured is CPU time, not the clock on the wall, so that others on the machine disturb it less. The rounds
//! are interleaved and the ratios are formed within a round, so that a machine that changes its pace changes both.

use std::{
    env,
    process::{self, Command, Stdio},
    time::{Duration, Instant, SystemTime},
};

use squall_daemon::{
    kill::{Fired, Prepared, Tools, trigger::Waiting},
    order::{Kill, On, Scope},
};

use super::{
    sandbox::{Sandbox, Target, tools},
    target::{CGROUPS, DUTY},
};

/// The duty of doing one sort of work, and telling what one piece of it took.
pub const DUTIES: [&str; 2] = ["cost-syscalls", "cost-forks"];

const ROUNDS: usize = 9;
const SYSCALLS: u32 = 200_000;
const FORKS: u32 = 200;
/// The least of so many is what it takes undisturbed.
const BATCHES: u32 = 5;
/// With nothing armed there is nothing of ours in the kernel: this is how far noise may go.
const NOISE: f64 = 0.05;

/// What is armed while it is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Armed {
    Nothing,
    /// A kill of the target, not yet fired: the tracepoints of the receipt, and the perf events of its cgroup.
    Receipt,
    /// A trigger on a call that nobody makes here: what others pay is the kernel's own path of traced calls.
    Trigger,
}

const CONDITIONS: [(Armed, &str); 3] =
    [(Armed::Nothing, "nothing"), (Armed::Receipt, "a receipt"), (Armed::Trigger, "a trigger")];

/// What is held while it is measured.
enum Held {
    Nothing,
    Kill(Prepared),
    Waiting(Waiting),
}

/// Measures, prints the table, and says whether it is as it shall be.
pub fn run() -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let tools = tools();
        let (mut target, other) = (Sandbox::new(), Sandbox::new());
        let held = target.start("sleep");
        // Ratios of each condition, for each sort of work, in each container.
        let mut ratios = vec![[[Vec::new(), Vec::new()], [Vec::new(), Vec::new()]]; CONDITIONS.len()];
        let mut plain = [Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            let base = measure(&target, &other);
            for (work, nanos) in plain.iter_mut().zip(base) {
                work.push(nanos[1]);
            }
            for (ratios, (armed, _)) in ratios.iter_mut().zip(CONDITIONS) {
                let measured = while_armed(&tools, armed, &target, &held, || measure(&target, &other)).await;
                for work in 0..2 {
                    for container in 0..2 {
                        ratios[work][container].push(measured[work][container] / base[work][container]);
                    }
                }
            }
        }
        println!(
            "plain: a system call {:.0} ns, a fork {:.1} us",
            median(&mut plain[0]),
            median(&mut plain[1]) / 1e3
        );
        println!("| armed     | call, target | call, other | fork, target | fork, other |");
        println!("| --------- | ------------ | ----------- | ------------ | ----------- |");
        let mut quiet = true;
        for (mut ratios, (armed, name)) in ratios.into_iter().zip(CONDITIONS) {
            let [[call_target, call_other], [fork_target, fork_other]] = &mut ratios;
            let all = [call_target, call_other, fork_target, fork_other].map(|ratios| median(ratios));
            println!("| {name:9} | {:12.2} | {:11.2} | {:12.2} | {:11.2} |", all[0], all[1], all[2], all[3]);
            quiet &= armed != Armed::Nothing || all.iter().all(|ratio| (ratio - 1.0).abs() <= NOISE);
        }
        println!("nothing armed is {}1.00 within {NOISE}", if quiet { "" } else { "NOT " });
        quiet
    })
}

async fn while_armed<T>(
    tools: &Tools,
    armed: Armed,
    sandbox: &Sandbox,
    held: &Target,
    work: impl FnOnce() -> T,
) -> T {
    let arm = async |kill| {
        let mut prepared = sandbox.prepare_kill(tools, held.pid(), kill);
        prepared.armed().await.expect("arming");
        prepared
    };
    let held = match armed {
        Armed::Nothing => Held::Nothing,
        Armed::Receipt => Held::Kill(arm(Kill::now(libc::SIGKILL, Scope::Init)).await),
        Armed::Trigger => {
            let never = On::Syscall { name: "fsync".into(), nth: u32::MAX };
            let prepared = arm(Kill::when(libc::SIGKILL, never)).await;
            match prepared.fire(SystemTime::now(), |_, _| Ok(())).await.expect("arming") {
                Fired::Waiting(waiting) => Held::Waiting(waiting),
                Fired::Struck(_) => panic!("nothing waits"),
            }
        }
    };
    let done = work();
    match held {
        Held::Nothing => {}
        Held::Kill(prepared) => drop(prepared),
        Held::Waiting(waiting) => drop(waiting),
    }
    let began = Instant::now();
    while tools.engine.is_loaded() {
        assert!(began.elapsed() < Duration::from_secs(30), "the programs stay");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    done
}

/// Nanoseconds of a piece of each sort of work, in the target and in the other.
fn measure(target: &Sandbox, other: &Sandbox) -> [[f64; 2]; 2] {
    DUTIES.map(|duty| [target, other].map(|sandbox| ask(duty, sandbox)))
}

fn ask(duty: &str, sandbox: &Sandbox) -> f64 {
    let done = Command::new(env::current_exe().expect("own path"))
        .env(DUTY, duty)
        .env(CGROUPS, sandbox.entrances())
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .expect("starting a worker");
    let said = String::from_utf8_lossy(&done.stdout);
    said.trim().parse().unwrap_or_else(|_| panic!("{duty} said {said:?}"))
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Does the work, and tells.
pub fn work(duty: &str) -> ! {
    let (pieces, piece): (u32, fn()) =
        if duty == DUTIES[0] { (SYSCALLS, one_syscall) } else { (FORKS, one_fork) };
    let batch = || {
        let before = cpu_nanos();
        for _ in 0..pieces {
            piece();
        }
        (cpu_nanos() - before) as f64 / f64::from(pieces)
    };
    batch();
    println!("{}", (0..BATCHES).map(|_| batch()).fold(f64::INFINITY, f64::min));
    process::exit(0)
}

fn one_syscall() {
    // SAFETY: no argument; the cheapest call that the C library doesn't answer by itself.
    unsafe { libc::syscall(libc::SYS_getppid) };
}

fn one_fork() {
    // SAFETY: one thread; the child ends at once, and its parent waits for it.
    unsafe {
        match libc::fork() {
            0 => libc::_exit(0),
            child => libc::waitpid(child, std::ptr::null_mut(), 0),
        };
    }
}

/// CPU time of this process and of its children that have ended.
fn cpu_nanos() -> u64 {
    // SAFETY: both fill in what they are given.
    unsafe {
        let mut own: libc::timespec = std::mem::zeroed();
        libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut own);
        let mut children: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_CHILDREN, &mut children);
        let micros = |time: libc::timeval| time.tv_sec as u64 * 1_000_000 + time.tv_usec as u64;
        own.tv_sec as u64 * 1_000_000_000
            + own.tv_nsec as u64
            + 1000 * (micros(children.ru_utime) + micros(children.ru_stime))
    }
}
