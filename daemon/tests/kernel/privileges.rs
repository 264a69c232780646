//! Each capability is needed: with all of them everything works, and without any one something fails, and says so.

use std::{
    env, fs, io,
    net::TcpListener,
    os::unix::{fs::symlink, process::CommandExt},
    path::{Path, PathBuf},
    process::{self, Command},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use squall_daemon::{
    cgroup::namespace,
    ebpf::opener,
    kill::{Fired, Tools, prepare_process, trigger::Triggered},
    order::{Kill, On, Processes, Scope, Whom},
    privileges::{AT_START, NEEDED, Privilege},
    readiness::Readiness,
    report::Reason,
};

use super::{
    sandbox::{Sandbox, Target, crowd, order_of, slack, tools, until},
    target::DUTY,
    triggers::program,
    work::Place,
};

crate::cases![
    the_capabilities_of_the_manifest_are_enough,
    with_them_a_fork_bomb_is_gone_within_a_second,
    a_trigger_fires_with_the_capabilities_of_the_manifest,
    without_kill_other_users_processes_are_not_signalled,
    without_bpf_the_kill_goes_through_pidfds,
    without_perfmon_the_kill_goes_through_pidfds,
    where_perf_events_take_sys_admin_one_thread_has_it_for_the_call_alone,
    without_sys_ptrace_a_containers_root_is_closed,
    without_sys_ptrace_a_kill_by_executable_says_why_it_hits_nobody,
    without_sys_admin_the_nodes_cgroup_namespace_is_closed,
];

/// The duty of being the daemon.
pub const DAEMON: &str = "daemon";
/// The environment variable with the target: its container's ID and its PID.
const TARGET: &str = "SQUALL_TEST_TARGET";
/// The one with the executable of those who are meant, if not all are.
const EXE: &str = "SQUALL_TEST_EXE";
/// The one with what the daemon shall wait for, if it shall, and the one with the directory of the target's files.
const TRIGGER: &str = "SQUALL_TEST_TRIGGER";
const PLACE: &str = "SQUALL_TEST_PLACE";
const LAST_CAPABILITY: u32 = 63;

/// What a daemon without `lacking` says of this node and of a kill; the target is another user's.
async fn daemon_without(lacking: Option<Privilege>) -> (String, bool) {
    let mut sandbox = Sandbox::new();
    let mut target = sandbox.start("sleep-as-nobody");
    let said = daemon_on(&sandbox, &target, lacking, &[]).await;
    let lives = target.runs();
    if lives {
        target.0.kill().expect("ending the target");
    }
    target.wait().await;
    (said, lives)
}

async fn daemon_on(
    sandbox: &Sandbox,
    target: &Target,
    lacking: Option<Privilege>,
    told: &[(&str, &str)],
) -> String {
    let mut command = Command::new(env::current_exe().expect("own path"));
    command.env(DUTY, DAEMON).env(TARGET, format!("{} {}", sandbox.id, target.pid()));
    command.envs(told.iter().copied());
    // SAFETY: prctl alone, between fork and exec.
    unsafe { command.pre_exec(move || keep_only(lacking)) };
    let done =
        tokio::task::spawn_blocking(move || command.output()).await.expect("a thread").expect("the daemon");
    let said = format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    println!("{}", said.lines().map(|line| format!("  {line}\n")).collect::<String>().trim_end());
    said
}

/// As on most nodes, the daemon begins in a cgroup namespace of its own. As the manifest has it: everything is dropped
/// but what is needed, here less one, and nothing can be gained.
fn keep_only(lacking: Option<Privilege>) -> io::Result<()> {
    // SAFETY: a plain number.
    if unsafe { libc::unshare(libc::CLONE_NEWCGROUP) } != 0 {
        return Err(io::Error::last_os_error());
    }
    for bit in 0..=LAST_CAPABILITY {
        let given = NEEDED.into_iter().chain([AT_START]);
        let needed = given.into_iter().any(|privilege| privilege.bit() == bit && Some(privilege) != lacking);
        // SAFETY: plain numbers. Beyond the last that this kernel knows it is an error.
        if !needed && unsafe { libc::prctl(libc::PR_CAPBSET_DROP, bit, 0, 0, 0) } != 0 {
            let error = io::Error::last_os_error();
            if error.raw_os_error() != Some(libc::EINVAL) {
                return Err(error);
            }
        }
    }
    // SAFETY: plain numbers. As root a program that is executed gets what is left.
    match unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A `/proc` with that process as its first one. The machine's own may have more capabilities than we do (on no node of
/// Kubernetes), and then the kernel keeps its namespaces closed whatever we have: the case could not fail.
fn node_whose_first_process_is(process: &Path) -> tempfile::TempDir {
    let proc = tempfile::tempdir().expect("a directory");
    symlink(process, proc.path().join("1")).expect("a first process");
    symlink("/proc/self", proc.path().join("self")).expect("ourselves");
    proc
}

/// Looks at the node, kills, and tells.
pub fn be_the_daemon() -> ! {
    let target = env::var(TARGET).expect("a target");
    let (id, pid) = target.split_once(' ').expect("an ID and a PID");
    // As the daemon does it, before anything else.
    let proc = Path::new("/proc");
    let node = node_whose_first_process_is(&proc.join(pid));
    println!("namespace: {:?}", namespace::enter_nodes(node.path()).map_err(|error| error.to_string()));
    let kept = opener::keep_if_needed().map_err(|error| error.to_string());
    println!("kept: {kept:?}");
    namespace::give_up_administration().expect("giving up");
    println!("perf events: {:?}", opener::check().map_err(|error| error.kind()));
    // A thread that was waited for is seen for a moment longer.
    let start = Instant::now();
    while administrators().0 > usize::from(kept == Ok(true)) && start.elapsed() < Duration::from_secs(1) {
        std::thread::yield_now();
    }
    println!("SYS_ADMIN: {:?}", administrators());
    let root = fs::File::open(proc.join(pid).join("root"));
    println!("root: {:?}", root.map(drop).map_err(|error| error.kind()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let tools = tools();
        let readiness = Readiness::find(tools.clone()).await;
        println!("eBPF: {}", Arc::clone(&readiness).report().await.ebpf_error);
        if let Ok(trigger) = env::var(TRIGGER) {
            return wait(&tools, id, pid.parse().expect("a PID"), &trigger).await;
        }
        let exe = env::var_os(EXE).map(PathBuf::from);
        let whom = Whom::Processes(Processes { scope: Scope::All, comm: None, exe });
        let kill = Kill { signal: libc::SIGTERM, whom };
        let mut prepared = match prepare_process(&tools, &order_of(id), kill, pid.parse().expect("a PID")) {
            Ok(prepared) => prepared,
            Err(error) => return println!("kill: {error}"),
        };
        let armed = prepared.armed().await.err().unwrap_or_default();
        let start = Instant::now();
        match prepared.fire(SystemTime::now(), |_, _| Ok(())).await {
            Ok(Fired::Waiting(waiting)) => println!("kill: {}", waiting.describe()),
            Ok(Fired::Struck(mut collector)) => {
                let outcome = collector.collect(std::future::pending()).await;
                println!("kill: {:?} by {:?} {armed}", outcome.state, outcome.receipt.evidence);
                println!("said: {}", outcome.message);
                println!("took: {} ms", start.elapsed().as_millis());
            }
            Err(error) => println!("kill: {error}"),
        }
    });
    process::exit(0)
}

/// How many threads of ours have SYS_ADMIN permitted, and how many have it in effect.
fn administrators() -> (usize, usize) {
    let tasks = fs::read_dir("/proc/self/task").expect("our threads").flatten();
    // One may end in between.
    let texts: Vec<String> =
        tasks.filter_map(|task| fs::read_to_string(task.path().join("status")).ok()).collect();
    let having = |set: &str| {
        let mask = |text: &str| {
            let mask = text.lines().find_map(|line| line.strip_prefix(set)).expect("its capabilities");
            u64::from_str_radix(mask.trim(), 16).expect("a mask")
        };
        texts.iter().filter(|text| mask(text) >> AT_START.bit() & 1 == 1).count()
    };
    (having("CapPrm:"), having("CapEff:"))
}

/// Arms a trigger, lets its target begin, and tells what came of it.
async fn wait(tools: &Tools, id: &str, pid: i32, trigger: &str) {
    let (what, argument) = trigger.split_once(' ').expect("an event and its argument");
    let on = match what {
        "fsync" => On::Syscall { name: what.into(), nth: argument.parse().expect("a number") },
        "connect" => On::Connect { port: argument.parse().expect("a port") },
        "exec" => On::Exec { path: argument.into() },
        other => panic!("no such event: {other}"),
    };
    let prepared =
        prepare_process(tools, &order_of(id), Kill::when(libc::SIGKILL, on), pid).expect("preparing");
    let mut waiting = match prepared.fire(SystemTime::now(), |_, _| Ok(())).await {
        Ok(Fired::Waiting(waiting)) => waiting,
        Ok(Fired::Struck(_)) => panic!("nothing waits"),
        Err(error) => return println!("trigger: {error}"),
    };
    Place::go_in(Path::new(&env::var(PLACE).expect("a directory")));
    // What does not fire is told by the end.
    let _ = tokio::time::timeout(slack(Duration::from_secs(10)), waiting.wait()).await;
    match waiting.end(Reason::NotTriggered).await {
        Triggered::Fired(mut collector) => {
            let outcome = collector.collect(std::future::ready(None)).await;
            println!("trigger: {:?} at {}", outcome.state, outcome.receipt.fired_at_count);
        }
        Triggered::Ended(state, message, _) => println!("trigger: {state:?}: {message}"),
    }
}

async fn the_capabilities_of_the_manifest_are_enough() {
    let (said, lives) = daemon_without(None).await;
    assert!(said.contains("eBPF: \n") && said.contains("kill: Done by Ebpf \n"), "{said}");
    assert!(said.contains("root: Ok"), "{said}");
    assert!(said.contains("namespace: Ok(true)") && said.contains("perf events: Ok"), "{said}");
    assert!(!lives);
}

async fn with_them_a_fork_bomb_is_gone_within_a_second() {
    let mut sandbox = Sandbox::new();
    let size = crowd(200, 60);
    sandbox.limit(size as u32);
    let target = sandbox.start("bomb");
    until(Duration::from_secs(10), "the bomb has grown", || sandbox.population() >= size * 3 / 4).await;
    let said = daemon_on(&sandbox, &target, None, &[]).await;
    assert!(said.contains("kill: Done by Ebpf \n"), "{said}");
    let took = said.lines().find_map(|line| line.strip_prefix("took: ")?.strip_suffix(" ms"));
    let took = Duration::from_millis(took.expect("a time").parse().expect("a number"));
    assert!(took < slack(Duration::from_secs(1)), "{took:?}");
    assert_eq!(sandbox.population(), 0);
    target.wait().await;
}

async fn a_trigger_fires_with_the_capabilities_of_the_manifest() {
    let (_dir, wanted) = program("wanted");
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let connect = format!("connect {}", listener.local_addr().expect("its port").port());
    let exec = format!("exec {}", wanted.display());
    for (work, trigger, count) in [
        ("fsync 9", "fsync 3", 3),
        (connect.as_str(), connect.as_str(), 1),
        (exec.as_str(), exec.as_str(), 1),
    ] {
        let (mut sandbox, place) = (Sandbox::new(), Place::new());
        let mut target = sandbox.start(&place.duty(work));
        let dir = place.path().to_str().expect("a path");
        let said = daemon_on(&sandbox, &target, None, &[(TRIGGER, trigger), (PLACE, dir)]).await;
        assert!(said.contains(&format!("trigger: Done at {count}\n")), "{trigger}: {said}");
        assert!(!target.runs(), "{trigger}");
    }
}

async fn without_kill_other_users_processes_are_not_signalled() {
    let (said, lives) = daemon_without(Some(Privilege::Kill)).await;
    assert!(said.contains("eBPF: \n"), "{said}");
    assert!(said.contains("lacks the capability KILL") && !said.contains("Done"), "{said}");
    assert!(lives, "it was signalled all the same");
}

async fn only_pidfds_without(privilege: Privilege) {
    let (said, lives) = daemon_without(Some(privilege)).await;
    let ebpf = said.lines().find(|line| line.starts_with("eBPF: ")).expect("a line on eBPF");
    assert!(ebpf.contains(&format!("lacks the capability {}", privilege.name())), "{said}");
    assert!(said.contains("kill: Done by Pidfd"), "{said}");
    assert!(!lives);
}

async fn without_bpf_the_kill_goes_through_pidfds() {
    only_pidfds_without(Privilege::Bpf).await;
}

async fn without_perfmon_the_kill_goes_through_pidfds() {
    only_pidfds_without(Privilege::Perfmon).await;
}

/// Every kernel asks whoever lacks PERFMON for SYS_ADMIN, some kernels everybody.
async fn where_perf_events_take_sys_admin_one_thread_has_it_for_the_call_alone() {
    let (said, _) = daemon_without(Some(Privilege::Perfmon)).await;
    assert!(said.contains("kept: Ok(true)") && said.contains("perf events: Ok"), "{said}");
    assert!(said.contains("SYS_ADMIN: (1, 0)"), "{said}");
    // Where they don't take it nobody has it.
    let (said, _) = daemon_without(None).await;
    let kept = said.contains("kept: Ok(true)");
    assert!(said.contains(&format!("SYS_ADMIN: ({}, 0)", u32::from(kept))), "{said}");
}

async fn without_sys_ptrace_a_containers_root_is_closed() {
    let (said, lives) = daemon_without(Some(Privilege::SysPtrace)).await;
    assert!(said.contains("root: Err(PermissionDenied)") && said.contains("kill: Done by Ebpf"), "{said}");
    assert!(!lives);
}

async fn without_sys_ptrace_a_kill_by_executable_says_why_it_hits_nobody() {
    let mut sandbox = Sandbox::new();
    let mut target = sandbox.start("sleep-as-nobody");
    let exe = env::current_exe().expect("own path");
    let told = [(EXE, exe.to_str().expect("a path"))];
    let said = daemon_on(&sandbox, &target, Some(Privilege::SysPtrace), &told).await;
    assert!(said.contains("kill: Failed(Unsupported)"), "{said}");
    assert!(
        said.contains("said: nobody was signalled") && said.contains("the capability SYS_PTRACE"),
        "{said}"
    );
    assert!(target.runs());
    let said = daemon_on(&sandbox, &target, None, &told).await;
    assert!(said.contains("kill: Done by Ebpf"), "{said}");
    assert!(!target.runs());
}

async fn without_sys_admin_the_nodes_cgroup_namespace_is_closed() {
    let (said, lives) = daemon_without(Some(Privilege::SysAdmin)).await;
    let namespace =
        said.lines().find(|line| line.starts_with("namespace: ")).expect("a line on the namespace");
    assert!(said.contains("kept: Ok(false)") && said.contains("SYS_ADMIN: (0, 0)"), "{said}");
    // It is looked at, which SYS_PTRACE allows, and not entered.
    assert!(namespace.contains("Err(") && namespace.contains("entering"), "{said}");
    assert!(namespace.contains("1/ns/cgroup"), "{said}");
    assert!(said.contains("kill: Done by Ebpf"), "{said}");
    assert!(!lives);
}
