//! Stress on the real kernel: hungry as ordered, seen in the cgroup's own counters, and nothing of it left.

use std::{
    ffi::CStr,
    fs,
    io::ErrorKind,
    os::unix::fs::symlink,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use squall_daemon::{
    cgroup::namespace::{enter_nodes, give_up_administration},
    container::Container,
    lasting::Lasting,
    order::{
        Action, Order, Scope, Stage, Stress,
        stress::{Cpu, Io, MAX_PIDS, Memory, OnOom, Size, Squeeze},
    },
    report::{FaultReport, Reason, State},
    stress::{Starving, spawn::owner_of},
};

use rustix::{
    fs::statvfs,
    mount::{MountFlags, UnmountFlags, mount, unmount},
    thread::{CapabilitySet, CapabilitySets, set_capabilities},
};

use super::{
    cases::fire,
    node::Rig,
    sandbox::{Sandbox, Target, about, crowd, order_of, slack, sparing, stranger_with, until},
    triggers::Dead,
};

crate::cases![
    a_cpu_stressor_holds_its_load,
    a_cpu_stressor_makes_up_for_no_freeze,
    a_cpu_stressor_holds_its_share_of_the_containers_limit,
    cpu_stressors_add_up_and_each_ends_alone,
    a_neighbour_notices_nothing,
    memory_is_resident_and_goes,
    memory_above_the_limit_is_refused_by_name,
    memory_that_others_use_of_a_limit_above_is_refused_by_name,
    memory_that_the_node_has_no_room_for_is_refused_by_name,
    an_oom_killed_stressor_ends_the_fault,
    an_oom_killed_stressor_is_started_again_when_asked_for,
    a_negative_oom_score_that_cannot_be_set_is_told,
    io_leaves_no_file,
    io_paths_stay_in_the_container,
    an_io_path_that_does_not_answer_holds_up_nobody_else,
    a_containers_root_that_does_not_answer_holds_up_nobody_else,
    io_leaves_room_on_the_file_system,
    io_in_memory_that_there_is_no_room_for_is_refused_by_name,
    pids_are_there_and_go,
    pids_that_the_node_has_no_room_for_are_refused_by_name,
    pids_that_there_is_no_memory_for_are_refused_by_name,
    stressors_of_every_kind_are_the_first_that_the_kernel_ends,
    stressors_have_no_capability_and_no_file,
    a_stressor_shows_nobody_the_daemons_files,
    squeezes_hold_the_stricter_and_each_ends_alone,
    somebody_elses_limit_stays,
    soft_memory_is_refused_where_there_is_none,
    an_order_that_is_not_renewed_is_put_back_and_comes_back,
    stressors_end_with_the_container,
    what_is_no_longer_ordered_is_put_back,
    a_daemon_that_ends_puts_back_and_the_next_injects_again,
    a_killed_daemon_leaves_nothing_and_the_next_puts_back,
    a_daemon_killed_before_the_effect_changes_nothing,
    a_stressor_is_quickly_there_and_quickly_gone,
    a_kill_of_all_processes_spares_stressors,
    stress_needs_the_capabilities_of_the_manifest_and_no_more,
    fifty_stressed_containers_take_little_memory,
];

pub fn none() -> Stress {
    Stress {
        cpu: None,
        memory: None,
        io: None,
        pids: None,
        squeeze: Squeeze::default(),
        allow_oom: false,
        on_oom: OnOom::Stop,
    }
}

pub fn cpu(workers: u32, load: u32) -> Stress {
    Stress { cpu: Some(Cpu { workers, load }), ..none() }
}

fn memory(bytes: u64) -> Stress {
    let memory = Memory { workers: 2, size: Size::Bytes(bytes), ramp: Duration::ZERO, oom_score_adj: None };
    Stress { memory: Some(memory), ..none() }
}

pub fn squeeze(squeeze: Squeeze) -> Stress {
    Stress { squeeze, ..none() }
}

pub fn fault(sandbox: &Sandbox, name: &str, stage: Stage, stress: &Stress) -> Order {
    fault_of(&sandbox.id, name, stage, stress)
}

fn fault_of(id: &str, name: &str, stage: Stage, stress: &Stress) -> Order {
    Order {
        id: format!("{name}/{id}"),
        experiment: format!("ns/{name}"),
        container: order_of(id),
        stage,
        ttl: Duration::from_secs(60),
        action: Some(Action::Stress(Box::new(stress.clone()))),
    }
}

/// Stressors in the sandbox, by the mark that a scan finds them by.
pub fn stressors(sandbox: &Sandbox) -> Vec<i32> {
    sandbox.pids().into_iter().filter(|pid| owner_of(Path::new("/proc"), *pid).is_some()).collect()
}

/// Stressors anywhere that belong to this process.
fn ours() -> Vec<i32> {
    let own = std::process::id() as i32;
    all().into_iter().filter(|(_, owner)| *owner == own).map(|(pid, _)| pid).collect()
}

fn all() -> Vec<(i32, i32)> {
    let entries = fs::read_dir("/proc").expect("processes").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| Some((pid, owner_of(Path::new("/proc"), pid)?.0))).collect()
}

async fn nothing_left(sandbox: &Sandbox) {
    until(Duration::from_secs(2), "no stressor is left", || stressors(sandbox).is_empty()).await;
}

/// Whether the controllers are of version 2.
fn v2(sandbox: &Sandbox) -> bool {
    sandbox.find("memory.current").is_some()
}

fn cpu_nanos(sandbox: &Sandbox) -> u64 {
    if sandbox.find("cpuacct.usage").is_some() {
        return sandbox.get("cpuacct.usage").parse().expect("nanoseconds");
    }
    let stat = sandbox.get("cpu.stat");
    let micros = stat.lines().find_map(|line| line.strip_prefix("usage_usec ")).expect("CPU time");
    micros.parse::<u64>().expect("microseconds") * 1000
}

pub fn memory_limit(sandbox: &Sandbox) -> &'static str {
    if v2(sandbox) { "memory.max" } else { "memory.limit_in_bytes" }
}

/// What a squeeze of memory lowers.
fn memory_squeezed(sandbox: &Sandbox) -> &'static str {
    if v2(sandbox) { "memory.high" } else { "memory.limit_in_bytes" }
}

/// The quota of the usual period, -1 for none.
fn quota(sandbox: &Sandbox) -> String {
    if !v2(sandbox) {
        return sandbox.get("cpu.cfs_quota_us");
    }
    let text = sandbox.get("cpu.max");
    let quota = text.split(' ').next().expect("a quota");
    if quota == "max" { "-1".to_owned() } else { quota.to_owned() }
}

fn set_quota(sandbox: &Sandbox, micros: u32) {
    let file = if v2(sandbox) { "cpu.max" } else { "cpu.cfs_quota_us" };
    sandbox.set(file, &micros.to_string());
}

/// Percent of one CPU that the sandbox uses, over `time`.
async fn load(sandbox: &Sandbox, time: Duration) -> f64 {
    let (start, before) = (Instant::now(), cpu_nanos(sandbox));
    tokio::time::sleep(time).await;
    (cpu_nanos(sandbox) - before) as f64 / start.elapsed().as_nanos() as f64 * 100.0
}

pub fn memory_used(sandbox: &Sandbox) -> u64 {
    sandbox.get(if v2(sandbox) { "memory.current" } else { "memory.usage_in_bytes" }).parse().expect("bytes")
}

pub async fn injected(rig: &mut Rig) -> FaultReport {
    let report = rig.report().await;
    assert_eq!(report.state, State::Injected, "{report:?}");
    report
}

pub fn one() -> (Sandbox, Target, Rig) {
    // As the daemon does when it starts.
    enter_nodes(Path::new("/proc")).expect("the node's cgroup namespace");
    let mut sandbox = Sandbox::new();
    let target = sandbox.start("sleep");
    let rig = Rig::new(&[(&sandbox, &target)]);
    (sandbox, target, rig)
}

async fn a_cpu_stressor_holds_its_load() {
    let (sandbox, _target, mut rig) = one();
    rig.order(vec![fault(&sandbox, "a", Stage::Fire, &cpu(1, 40))]);
    let first = injected(&mut rig).await;
    assert!(first.lasting.effect.expect("an effect").before.is_some());
    let found = load(&sandbox, Duration::from_secs(3)).await;
    assert!(about(found, 40.0, 5.0), "{found} %, not 40 %");
    let shown = injected(&mut rig).await.lasting.effect.expect("an effect").during.expect("measured");
    let millis = shown.cpu_millis.expect("CPU time");
    assert!(about(millis as f64 / 10.0, 40.0, 5.0), "{millis}m");
    rig.order(vec![fault(&sandbox, "a", Stage::Recover, &cpu(1, 40))]);
    let end = rig.outcome().await;
    assert_eq!(end.state, State::Recovered, "{end:?}");
    let effect = end.lasting.effect.expect("an effect");
    assert!(
        effect.during.and_then(|usage| usage.cpu_millis).is_some_and(|millis| millis > 250),
        "{effect:?}"
    );
    assert!(effect.after.and_then(|usage| usage.cpu_millis).is_some_and(|millis| millis < 50), "{effect:?}");
    assert!(stressors(&sandbox).is_empty() && ours().is_empty());
}

async fn a_cpu_stressor_makes_up_for_no_freeze() {
    let (sandbox, _target, mut rig) = one();
    rig.order(vec![fault(&sandbox, "a", Stage::Fire, &cpu(1, 40))]);
    injected(&mut rig).await;
    // Frozen before its effect was measured, it would count as without any.
    injected(&mut rig).await;
    sandbox.set("cgroup.freeze", "1");
    tokio::time::sleep(Duration::from_millis(1500)).await;
    sandbox.set("cgroup.freeze", "0");
    let found = load(&sandbox, Duration::from_secs(2)).await;
    // Made up for, it would be all of a CPU; others may have a part of so short a time.
    assert!(about(found, 40.0, 15.0), "{found} %, not 40 %");
}

async fn a_cpu_stressor_holds_its_share_of_the_containers_limit() {
    let (sandbox, _target, mut rig) = one();
    set_quota(&sandbox, 50_000);
    rig.order(vec![fault(&sandbox, "a", Stage::Fire, &cpu(4, 60))]);
    injected(&mut rig).await;
    let found = load(&sandbox, Duration::from_secs(4)).await;
    // 60 % of the half core that the container may use.
    assert!(about(found, 30.0, 5.0), "{found} %, not 30 %");
    // Also when the limit changes meanwhile.
    set_quota(&sandbox, 25_000);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let found = load(&sandbox, Duration::from_secs(3)).await;
    assert!(about(found, 15.0, 5.0), "{found} %, not 15 %");
}

async fn cpu_stressors_add_up_and_each_ends_alone() {
    let (sandbox, _target, mut rig) = one();
    let (a, b) = (cpu(1, 20), cpu(1, 30));
    let order = |name, stress| fault(&sandbox, name, Stage::Fire, stress);
    rig.order(vec![order("a", &a), order("b", &b)]);
    injected(&mut rig).await;
    injected(&mut rig).await;
    let both = load(&sandbox, Duration::from_secs(3)).await;
    assert!(about(both, 50.0, 6.0), "{both} %, not 50 %");
    rig.order(vec![order("a", &a)]);
    until(Duration::from_secs(2), "one is gone", || stressors(&sandbox).len() == 1).await;
    let left = load(&sandbox, Duration::from_secs(3)).await;
    assert!(about(left, 20.0, 5.0), "{left} %, not 20 %");
}

async fn a_neighbour_notices_nothing() {
    let (sandbox, _target, mut rig) = one();
    let mut neighbour = Sandbox::new();
    let _other = neighbour.start("sleep");
    let (memory_before, cpu_before, start) = (memory_used(&neighbour), cpu_nanos(&neighbour), Instant::now());
    let both = Stress { memory: memory(64 << 20).memory, ..cpu(1, 100) };
    rig.order(vec![fault(&sandbox, "a", Stage::Fire, &both)]);
    injected(&mut rig).await;
    let found = load(&sandbox, Duration::from_secs(2)).await;
    assert!(found > 50.0, "{found} %");
    until(Duration::from_secs(4), "it is filled", || memory_used(&sandbox) > 64 << 20).await;
    let theirs = (cpu_nanos(&neighbour) - cpu_before) as f64 / start.elapsed().as_nanos() as f64;
    assert!(about(theirs * 100.0, 0.0, 1.0), "{theirs}");
    assert!(memory_used(&neighbour) <= memory_before + (1 << 20));
}

async fn memory_is_resident_and_goes() {
    let (sandbox, _target, mut rig) = one();
    let size = 200 << 20;
    let before = memory_used(&sandbox);
    rig.order(vec![fault(&sandbox, "a", Stage::Fire, &memory(size))]);
    injected(&mut rig).await;
    until(Duration::from_secs(4), "it is filled", || memory_used(&sandbox) >= before + size).await;
    assert!(memory_used(&sandbox) < before + size + (16 << 20));
    // Page by page, for the sums in `status` are kept in batches; and the last page may be on its way.
    let resident = || -> u64 {
        let of = |pid: i32| {
            let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("its memory");
            let line = rollup.lines().find_map(|line| line.strip_prefix("Anonymous:")).expect("its pages");
            line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
        };
        stressors(&sandbox).into_iter().map(of).sum()
    };
    until(Duration::from_secs(4), "it is resident", || resident() >= size).await;
    // Told once when it should be there, on a slow machine a little early; and once more when it ends.
    assert!(injected(&mut rig).await.lasting.effect.is_some_and(|effect| effect.during.is_some()));
    rig.order(vec![fault(&sandbox, "a", Stage::Recover, &memory(size))]);
    let end = rig.outcome().await;
    assert_eq!(end.state, State::Recovered, "{end:?}");
    let effect = end.lasting.effect.expect("an effect");
    let grown = effect.during.and_then(|usage| usage.memory_bytes).expect("measured")
        - effect.before.and_then(|usage| usage.memory_bytes).expect("measured");
    // The kernel counts in batches, one a CPU.
    assert!(grown + (1 << 20) >= size, "{grown}");
    assert!(memory_used(&sandbox) < before + (8 << 20));
}

async fn memory_above_the_limit_is_refused_by_name() {
    let (sandbox, _target, mut rig) = one();
    sandbox.set(memory_limit(&sandbox), "67108864");
    rig.order(vec![fault(&sandbox, "a", Stage::Fire, &memory(128 << 20))]);
    let refused = rig.outcome().await;
    assert_eq!(refused.state, State::Refused(Reason::OutOfMemory), "{refused:?}");
    assert!(refused.message.contains("memory.size") && refused.message.contains("allowOOM"), "{refused:?}");
    assert!(stressors(&sandbox).is_empty());
}

async fn memory_that_others_use_of_a_limit_above_is_refused_by_name() {
    let (mut sandbox, _target, mut rig) = one();
    sandbox.set(memory_limit(&sandbox), &(96 << 20).to_string());
    sandbox.set_above(memory_limit(&sandbox), &(128 << 20).to_string());
    let order = |sandbox: &Sandbox, stage| fault(sandbox, "a", stage, &memory(64 << 20));
    rig.order(vec![order(&sandbox, Stage::Fire)]);
    injected(&mut rig).await;
    rig.order(vec![order(&sandbox, Stage::Recover)]);
    assert_eq!(rig.outcome().await.state, State::Recovered);
    let beside = sandbox.beside("other");
    let _other = sandbox.start_in("large", &beside);
    rig.order(vec![fault(&sandbox, "b", Stage::Fire, &memory(64 << 20))]);
    let refused = rig.outcome().await;
    assert_eq!(refused.state, State::Refused(Reason::OutOfMemory), "{refused:?}");
    let limit = format!("above the container's has the limit {}", 128 << 20);
    assert!(refused.message.contains("memory.size") && refused.message.contains(&limit), "{refused:?}");
    assert!(stressors(&sandbox).is_empty());
}

async fn memory_that_the_node_has_no_room_for_is_refused_by_name() {
    let (sandbox, _target, mut rig) = one();
    // The kernel and we have some of it already.
    let whole = rustix::system::sysinfo().totalram;
    // Without a limit; and with one that the node can't keep.
    for limit in [None, Some(2 * whole)] {
        if let Some(limit) = limit {
            sandbox.set(memory_limit(&sandbox), &limit.to_string());
        }
        rig.order(vec![]);
        rig.order(vec![fault(&sandbox, &format!("{limit:?}"), Stage::Fire, &memory(whole))]);
        let refused = rig.outcome().await;
        assert_eq!(refused.state, State::Refused(Reason::OutOfMemory), "{refused:?}");
        for part in ["memory.size", "for everybody else", "allowOOM"] {
            assert!(refused.message.contains(part), "{part}: {refused:?}");
        }
        assert!(stressors(&sandbox).is_empty());
    }
}

fn too_much(on_oom: OnOom) -> Stress {
    Stress { allow_oom: true, on_oom, ..memory(128 << 20) }
}

async fn an_oom_killed_stressor_ends_the_fault() {
    let (sandbox, mut target, mut rig) = one();
    sandbox.set(memory_limit(&sandbox), "67108864");
    rig.order(vec![fault(&sandbox, "a", Stage::Fire, &too_much(OnOom::Stop))]);
    let ended = rig.outcome().await;
    assert_eq!(ended.state, State::Failed(Reason::OutOfMemory), "{ended:?}");
    assert!(target.runs(), "the stressor goes first");
    assert!(stressors(&sandbox).is_empty());
}

async fn an_oom_killed_stressor_is_started_again_when_asked_for() {
    let (sandbox, mut target, mut rig) = one();
    sandbox.set(memory_limit(&sandbox), "67108864");
    rig.order(vec![fault(&sandbox, "a", Stage::Fire, &too_much(OnOom::Restart))]);
    injected(&mut rig).await;
    let first = stressors(&sandbox);
    let told = injected(&mut rig).await;
    assert!(told.lasting.warnings.iter().any(|warning| warning.contains("onOOM")), "{told:?}");
    until(Duration::from_secs(4), "another is there", || {
        stressors(&sandbox).iter().any(|pid| !first.contains(pid))
    })
    .await;
    assert!(target.runs());
    rig.order(vec![fault(&sandbox, "a", Stage::Recover, &too_much(OnOom::Restart))]);
    assert_eq!(rig.outcome().await.state, State::Recovered);
    assert!(stressors(&sandbox).is_empty());
}

async fn a_negative_oom_score_that_cannot_be_set_is_told() {
    let (sandbox, _target, mut rig) = one();
    let mut stress = memory(8 << 20);
    if let Some(memory) = &mut stress.memory {
        memory.oom_score_adj = Some(-1000);
    }
    rig.order(vec![fault(&sandbox, "a", Stage::Fire, &stress)]);
    let report = rig.report().await;
    // Where root may do everything it can be set.
    if report.state != State::Injected {
        assert_eq!(report.state, State::Failed(Reason::Unsupported), "{report:?}");
        assert!(report.message.contains("oomScoreAdj"), "{report:?}");
    }
}

fn io(path: &str) -> Stress {
    Stress { io: Some(Io { workers: 2, bytes: 1 << 20, path: path.into() }), ..none() }
}

/// A file system of 32 MiB: how full the machine's disks are, and so whether they may be written to, is nobody's promise.
/// It is in memory, of which there is far more.
struct Small(tempfile::TempDir);

impl Small {
    fn mount() -> Self {
        Self::of("tmpfs", c"size=32m")
    }

    fn of(kind: &str, options: &CStr) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        mount(kind, dir.path(), kind, MountFlags::empty(), Some(options)).expect("a file system");
        Self(dir)
    }

    fn path(&self) -> &str {
        self.0.path().to_str().expect("a path")
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        unmount(self.0.path(), UnmountFlags::DETACH).expect("unmounting");
    }
}

async fn io_leaves_no_file() {
    let (sandbox, _target, mut rig) = one();
    let small = Small::mount();
    let path = small.path();
    rig.order(vec![fault(&sandbox, "a", Stage::Fire, &io(path))]);
    injected(&mut rig).await;
    let pid = stressors(&sandbox)[0];
    // By the kernel's counters of the process: those of the cgroup of version 1 count nothing without a throttle.
    let written = || {
        let text = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
        let value = text.lines().find_map(|line| line.strip_prefix("wchar:")?.trim().parse::<u64>().ok());
        value.is_some_and(|bytes| bytes > 0)
    };
    until(Duration::from_secs(5), "it writes", written).await;
    assert_eq!(fs::read_dir(path).expect("the directory").count(), 0, "the file has a name");
    // In memory it would outlive the stressor that the kernel ends for that very memory.
    let ours = fs::read_dir("/proc/self/fd").expect("our files").flatten();
    let mut ours = ours.filter_map(|entry| fs::read_link(entry.path()).ok());
    assert_eq!(ours.find(|file| file.starts_with(path)), None, "the daemon has it open");
    rig.order(vec![]);
    nothing_left(&sandbox).await;
    assert_eq!(fs::read_dir(path).expect("the directory").count(), 0);
}

async fn io_paths_stay_in_the_container() {
    let (sandbox, _target, mut rig) = one();
    for path in ["/nowhere/at/all", "/proc/self/root/tmp"] {
        rig.order(vec![]);
        rig.order(vec![fault(&sandbox, path, Stage::Fire, &io(path))]);
        let refused = rig.outcome().await;
        assert_eq!(refused.state, State::Refused(Reason::Unsupported), "{refused:?}");
        assert!(refused.message.contains("io.path"), "{refused:?}");
    }
}

async fn an_io_path_that_does_not_answer_holds_up_nobody_else() {
    let Some(dead) = Dead::mount() else {
        super::sandbox::not_here("this kernel has no FUSE");
    };
    let (sandbox, _target, mut rig) = one();
    let path = dead.dir.path().join("below").display().to_string();
    let (over, hung) = dead.for_a_while();
    let order = |name, stress| fault(&sandbox, name, Stage::Fire, stress);
    let start = Instant::now();
    rig.order(vec![order("hangs", &io(&path)), order("beside", &cpu(1, 20))]);
    let first = injected(&mut rig).await;
    assert!(first.id.starts_with("beside/"), "{first:?}");
    assert!(start.elapsed() < slack(Duration::from_secs(2)), "the daemon's one thread hung");
    let refused = rig.outcome().await;
    assert_eq!(refused.state, State::Refused(Reason::Unsupported), "{refused:?}");
    assert!(refused.message.contains("does not answer"), "{refused:?}");
    drop(over);
    hung.join().expect("unmounting");
}

async fn a_containers_root_that_does_not_answer_holds_up_nobody_else() {
    let Some(dead) = Dead::mount() else {
        super::sandbox::not_here("this kernel has no FUSE");
    };
    let (sandbox, target, rig) = one();
    let container = Container::of(&rig.tools, &sandbox.order(), target.pid()).expect("the container");
    // Stands in for one whose root is dead: nothing could be started there.
    let proc = tempfile::tempdir().expect("a directory");
    let process = proc.path().join(target.pid().to_string());
    fs::create_dir(&process).expect("a process");
    symlink(dead.dir.path().join("below"), process.join("root")).expect("its root");
    let (over, hung) = dead.for_a_while();
    let mut fault = Starving::new(proc.path().to_owned(), "a", io("/"));
    let start = Instant::now();
    let asked = tokio::time::timeout(Duration::from_millis(100), fault.intend(&container)).await;
    assert!(asked.is_err(), "it answered: {:?}", asked.map(|answer| answer.map(|_| ())));
    assert!(start.elapsed() < slack(Duration::from_secs(2)), "the daemon's one thread hung");
    drop(over);
    hung.join().expect("unmounting");
}

async fn io_leaves_room_on_the_file_system() {
    let (sandbox, _target, mut rig) = one();
    let small = Small::mount();
    let used = || {
        let found = statvfs(small.path()).expect("its numbers");
        (found.f_blocks - found.f_bfree) * found.f_frsize
    };
    let of = |bytes| {
        let path = small.path().to_owned();
        Stress { io: Some(Io { workers: 2, bytes, path }), ..none() }
    };
    // The second is more than there are numbers for.
    for (name, bytes) in [("a", 14 << 20), ("b", u64::MAX)] {
        rig.order(vec![fault(&sandbox, name, Stage::Fire, &of(bytes))]);
        let refused = rig.outcome().await;
        assert_eq!(refused.state, State::Refused(Reason::Unsupported), "{refused:?}");
        assert!(refused.message.contains("io.size"), "{refused:?}");
    }
    assert_eq!(used(), 0);
    rig.order(vec![fault(&sandbox, "c", Stage::Fire, &of(8 << 20))]);
    injected(&mut rig).await;
    until(Duration::from_secs(5), "it is written", || used() >= 16 << 20).await;
    // Somebody else fills it up meanwhile.
    fs::write(Path::new(small.path()).join("other"), vec![1; 12 << 20]).expect("a file");
    let ended = rig.outcome().await;
    assert_eq!(ended.state, State::Failed(Reason::NoEffect), "{ended:?}");
    assert!(ended.message.contains("of the file system are free"), "{ended:?}");
    assert_eq!(used(), 12 << 20);
}

async fn io_in_memory_that_there_is_no_room_for_is_refused_by_name() {
    let (sandbox, _target, mut rig) = one();
    let whole = rustix::system::sysinfo().totalram;
    // More than the container may have; and of those without a size, more than the node has, by whatever name.
    let cases = [
        ("tmpfs", c"size=256m", Some(64 << 20), 40 << 20, "the container's limit is 67108864"),
        ("tmpfs", c"size=0", Some(64 << 20), 40 << 20, "the container's limit is 67108864"),
        ("tmpfs", c"size=0", None, whole, "for everybody else"),
        ("ramfs", c"", None, whole, "for everybody else"),
    ];
    for (number, (kind, options, limit, bytes, why)) in cases.into_iter().enumerate() {
        let limit = limit.map_or("-1".to_owned(), |limit: u64| limit.to_string());
        let limit = if v2(&sandbox) { limit.replace("-1", "max") } else { limit };
        sandbox.set(memory_limit(&sandbox), &limit);
        let small = Small::of(kind, options);
        let path = small.path().to_owned();
        let stress = Stress { io: Some(Io { workers: 2, bytes, path }), ..none() };
        rig.order(vec![fault(&sandbox, &number.to_string(), Stage::Fire, &stress)]);
        let refused = rig.outcome().await;
        assert_eq!(refused.state, State::Refused(Reason::OutOfMemory), "{refused:?}");
        for part in ["io.size", "in memory", why] {
            assert!(refused.message.contains(part), "{part}: {refused:?}");
        }
        assert!(stressors(&sandbox).is_empty());
        // What there is room for is written.
        let order = |stage| fault(&sandbox, &format!("{number}-fits"), stage, &io(small.path()));
        rig.order(vec![order(Stage::Fire)]);
        injected(&mut rig).await;
        rig.order(vec![order(Stage::Recover)]);
        assert_eq!(rig.outcome().await.state, State::Recovered);
    }
}

async fn pids_are_there_and_go() {
    let (sandbox, _target, mut rig) = one();
    let before: u64 = sandbox.get("pids.current").parse().expect("a number");
    let stress = Stress { pids: Some(150), ..none() };
    rig.order(vec![fault(&sandbox, "a", Stage::Fire, &stress)]);
    injected(&mut rig).await;
    let during: u64 = sandbox.get("pids.current").parse().expect("a number");
    assert_eq!(during, before + 150);
    rig.order(vec![fault(&sandbox, "a", Stage::Recover, &stress)]);
    assert_eq!(rig.outcome().await.state, State::Recovered);
    assert_eq!(sandbox.get("pids.current").parse::<u64>().expect("a number"), before);
    // As many as the container's limit lets through, and that is told.
    sandbox.limit(50);
    rig.order(vec![fault(&sandbox, "b", Stage::Fire, &stress)]);
    injected(&mut rig).await;
    let told = injected(&mut rig).await;
    assert!(told.lasting.warnings.iter().any(|warning| warning.contains("of 150 tasks")), "{told:?}");
}

async fn pids_that_the_node_has_no_room_for_are_refused_by_name() {
    let (sandbox, _target, mut rig) = one();
    let stress = Stress { pids: Some(MAX_PIDS), ..none() };
    rig.order(vec![fault(&sandbox, "a", Stage::Fire, &stress)]);
    let refused = rig.outcome().await;
    assert_eq!(refused.state, State::Refused(Reason::Unsupported), "{refused:?}");
    assert!(refused.message.contains("pids.count") && refused.message.contains("pid_max"), "{refused:?}");
    assert!(stressors(&sandbox).is_empty());
    // What the container's limit keeps back is no burden to the node.
    sandbox.limit(50);
    rig.order(vec![fault(&sandbox, "b", Stage::Fire, &stress)]);
    injected(&mut rig).await;
}

async fn pids_that_there_is_no_memory_for_are_refused_by_name() {
    let (sandbox, _target, mut rig) = one();
    sandbox.set(memory_limit(&sandbox), "67108864");
    let stress = |count| Stress { pids: Some(count), ..none() };
    rig.order(vec![fault(&sandbox, "a", Stage::Fire, &stress(2000))]);
    let refused = rig.outcome().await;
    assert_eq!(refused.state, State::Refused(Reason::OutOfMemory), "{refused:?}");
    assert!(refused.message.contains("pids.count: 2000 tasks, 81920000 bytes"), "{refused:?}");
    assert!(stressors(&sandbox).is_empty());
    // Beside what another stressor takes.
    let both = Stress { memory: memory(48 << 20).memory, ..stress(500) };
    rig.order(vec![fault(&sandbox, "b", Stage::Fire, &both)]);
    let refused = rig.outcome().await;
    assert_eq!(refused.state, State::Refused(Reason::OutOfMemory), "{refused:?}");
    assert!(
        refused.message.contains("pids.count: 500") && refused.message.contains("50331648"),
        "{refused:?}"
    );
    // And they take no more than they are said to, on any kernel; the rest is the process's.
    let before = memory_used(&sandbox);
    rig.order(vec![fault(&sandbox, "c", Stage::Fire, &stress(500))]);
    injected(&mut rig).await;
    let grown = memory_used(&sandbox).saturating_sub(before);
    println!("  500 tasks take {grown} bytes");
    assert!(grown < 500 * (40 << 10) + (8 << 20), "{grown}");
}

async fn stressors_of_every_kind_are_the_first_that_the_kernel_ends() {
    let (sandbox, _target, mut rig) = one();
    let small = Small::mount();
    let stress =
        Stress { memory: memory(8 << 20).memory, io: io(small.path()).io, pids: Some(5), ..cpu(1, 10) };
    rig.order(vec![fault(&sandbox, "a", Stage::Fire, &stress)]);
    injected(&mut rig).await;
    let found = stressors(&sandbox);
    let adj = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("a number");
    assert_eq!(found.iter().map(adj).collect::<Vec<_>>(), ["1000\n"; 4]);
}

async fn a_stressor_shows_nobody_the_daemons_files() {
    let (sandbox, _target, mut rig) = one();
    rig.order(vec![fault(&sandbox, "a", Stage::Fire, &cpu(1, 10))]);
    injected(&mut rig).await;
    let root = Path::new("/proc").join(stressors(&sandbox)[0].to_string()).join("root");
    assert!(fs::read_link(&root).is_ok(), "the daemon may");
    // As root in a pod with `hostPID`; of what such a process has less than the stressor there is nothing.
    let looked = thread::spawn(move || {
        let none = CapabilitySet::empty();
        let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
        set_capabilities(None, sets).expect("fewer capabilities");
        fs::read_link(root).map_err(|error| error.kind())
    });
    assert_eq!(looked.join().expect("a thread"), Err(ErrorKind::PermissionDenied));
}

async fn stressors_have_no_capability_and_no_file() {
    let (sandbox, target, mut rig) = one();
    rig.order(vec![fault(&sandbox, "a", Stage::Fire, &cpu(1, 10))]);
    injected(&mut rig).await;
    let pid = stressors(&sandbox)[0];
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    for field in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
        let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("a field");
        assert_eq!(line.trim(), "0000000000000000", "{field}");
    }
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    let mut open: Vec<String> = fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("its files")
        .flatten()
        .map(|entry| fs::read_link(entry.path()).expect("a file").display().to_string())
        .collect();
    open.sort();
    assert_eq!(open.len(), 4, "{open:?}");
    assert!(
        open[0] == "anon_inode:[pidfd]" && open[1..].iter().all(|file| file.starts_with("socket:")),
        "{open:?}"
    );
    assert_eq!(fs::read(format!("/proc/{pid}/environ")).expect("its environment"), b"");
    // In every hierarchy where the target is.
    let cgroups = |pid| fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("its cgroups");
    assert_eq!(cgroups(pid), cgroups(target.pid()));
}

async fn squeezes_hold_the_stricter_and_each_ends_alone() {
    let (sandbox, _target, mut rig) = one();
    let before = (quota(&sandbox), sandbox.get(memory_squeezed(&sandbox)), sandbox.get("pids.max"));
    let a = squeeze(Squeeze { cpu_millis: Some(300), pids: Some(40), ..Squeeze::default() });
    let b = squeeze(Squeeze {
        cpu_millis: Some(100),
        memory: Some((64 << 20) + 1),
        memory_hard: true,
        ..Squeeze::default()
    });
    let order = |name, stress| fault(&sandbox, name, Stage::Fire, stress);
    rig.order(vec![order("a", &a)]);
    injected(&mut rig).await;
    assert_eq!((quota(&sandbox), sandbox.get("pids.max")), ("30000".into(), "40".into()));
    rig.order(vec![order("a", &a), order("b", &b)]);
    injected(&mut rig).await;
    assert_eq!(quota(&sandbox), "10000");
    assert_eq!(sandbox.get(memory_squeezed(&sandbox)), (64 << 20).to_string());
    rig.order(vec![order("a", &a), fault(&sandbox, "b", Stage::Recover, &b)]);
    assert_eq!(rig.outcome().await.state, State::Recovered);
    assert_eq!(quota(&sandbox), "30000");
    assert_eq!(sandbox.get(memory_squeezed(&sandbox)), before.1);
    rig.order(vec![fault(&sandbox, "a", Stage::Recover, &a)]);
    assert_eq!(rig.outcome().await.state, State::Recovered);
    let after = (quota(&sandbox), sandbox.get(memory_squeezed(&sandbox)), sandbox.get("pids.max"));
    assert_eq!(after, before);
}

async fn somebody_elses_limit_stays() {
    let (sandbox, _target, mut rig) = one();
    let stress = squeeze(Squeeze { cpu_millis: Some(300), pids: Some(40), ..Squeeze::default() });
    rig.order(vec![fault(&sandbox, "a", Stage::Fire, &stress)]);
    injected(&mut rig).await;
    sandbox.set("pids.max", "77");
    rig.order(vec![fault(&sandbox, "a", Stage::Recover, &stress)]);
    let end = rig.outcome().await;
    assert_eq!(end.state, State::Recovered);
    assert!(end.lasting.warnings.iter().any(|warning| warning.contains("pids.max")), "{end:?}");
    assert_eq!((quota(&sandbox), sandbox.get("pids.max")), ("-1".into(), "77".into()));
}

async fn soft_memory_is_refused_where_there_is_none() {
    let (sandbox, _target, mut rig) = one();
    let stress = squeeze(Squeeze { memory: Some(64 << 20), ..Squeeze::default() });
    rig.order(vec![fault(&sandbox, "a", Stage::Fire, &stress)]);
    if v2(&sandbox) {
        injected(&mut rig).await;
        assert_eq!(sandbox.get("memory.high"), (64 << 20).to_string());
        return;
    }
    let refused = rig.outcome().await;
    assert_eq!(refused.state, State::Refused(Reason::Unsupported), "{refused:?}");
    assert!(refused.message.contains("memoryHard"), "{refused:?}");
}

/// A CPU stressor and a squeeze.
fn both() -> Stress {
    Stress { squeeze: Squeeze { pids: Some(60), ..Squeeze::default() }, ..cpu(1, 20) }
}

fn stands(sandbox: &Sandbox) -> bool {
    sandbox.get("pids.max") == "60" && stressors(sandbox).len() == 1
}

fn is_as_before(sandbox: &Sandbox) -> bool {
    sandbox.get("pids.max") == "max" && stressors(sandbox).is_empty()
}

async fn an_order_that_is_not_renewed_is_put_back_and_comes_back() {
    let (sandbox, _target, mut rig) = one();
    let ttl = slack(Duration::from_millis(500));
    let order = || Order { ttl, ..fault(&sandbox, "a", Stage::Fire, &both()) };
    rig.order(vec![order()]);
    injected(&mut rig).await;
    assert!(stands(&sandbox));
    let end = rig.outcome().await;
    assert_eq!(end.state, State::Recovered);
    assert!(end.message.contains("not renewed") && is_as_before(&sandbox), "{end:?}");
    rig.order(vec![order()]);
    assert_eq!(injected(&mut rig).await.lasting.interruptions, 1);
    assert!(stands(&sandbox));
}

async fn stressors_end_with_the_container() {
    let (sandbox, mut target, mut rig) = one();
    rig.order(vec![fault(&sandbox, "a", Stage::Fire, &both())]);
    injected(&mut rig).await;
    target.0.kill().expect("killing the target");
    target.wait().await;
    let end = rig.outcome().await;
    assert_eq!(end.state, State::Failed(Reason::ContainerGone), "{end:?}");
    assert!(is_as_before(&sandbox) && ours().is_empty());
}

async fn what_is_no_longer_ordered_is_put_back() {
    let (sandbox, _target, mut rig) = one();
    rig.order(vec![fault(&sandbox, "a", Stage::Fire, &both())]);
    injected(&mut rig).await;
    rig.order(vec![]);
    until(Duration::from_secs(2), "all is as before", || is_as_before(&sandbox)).await;
    assert!(rig.node.watch().1.is_empty());
    // Ordered again while it ends, it stands again.
    for _ in 0..5 {
        rig.order(vec![fault(&sandbox, "a", Stage::Fire, &both())]);
        rig.order(vec![]);
        rig.order(vec![fault(&sandbox, "a", Stage::Fire, &both())]);
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    until(Duration::from_secs(2), "it stands", || stands(&sandbox)).await;
}

async fn a_daemon_that_ends_puts_back_and_the_next_injects_again() {
    let (sandbox, _target, mut rig) = one();
    rig.order(vec![fault(&sandbox, "a", Stage::Fire, &both())]);
    injected(&mut rig).await;
    rig.node.put_back().await;
    assert!(is_as_before(&sandbox));
    rig.start_again();
    let (_, known, _) = rig.node.watch();
    assert_eq!((known.len(), known[0].state, known[0].lasting.interruptions), (1, State::Armed, 1));
    rig.order(vec![fault(&sandbox, "a", Stage::Fire, &both())]);
    assert_eq!(injected(&mut rig).await.lasting.interruptions, 1);
    assert!(stands(&sandbox));
}

/// A daemon of its own, in a process of its own, that can be killed.
fn daemon(duty: &str, sandbox: &Sandbox, target: &Target, dir: &Path) -> Target {
    stranger_with(
        duty,
        &[
            ("SQUALL_TEST_JOURNAL", dir.to_str().expect("a path")),
            ("SQUALL_TEST_CONTAINER", &sandbox.id),
            ("SQUALL_TEST_INIT", &target.pid().to_string()),
        ],
    )
}

/// What that daemon does.
pub async fn hold_stress() {
    let variable = |name| std::env::var(name).expect("a variable");
    let init = variable("SQUALL_TEST_INIT").parse().expect("a PID");
    let id = variable("SQUALL_TEST_CONTAINER");
    let mut rig = Rig::of(&[(order_of(&id), init)]);
    rig.start_in(Path::new(&variable("SQUALL_TEST_JOURNAL")));
    rig.order(vec![fault_of(&id, "a", Stage::Fire, &both())]);
    injected(&mut rig).await;
    println!("ready");
    std::future::pending::<()>().await;
}

async fn a_killed_daemon_leaves_nothing_and_the_next_puts_back() {
    let (sandbox, target, mut rig) = one();
    let dir = tempfile::tempdir().expect("a directory");
    let mut other = daemon("hold-stress", &sandbox, &target, dir.path());
    assert!(stands(&sandbox));
    let pid = other.pid();
    other.0.kill().expect("killing the daemon");
    other.wait().await;
    // By the kernel's own means, without anybody's help.
    until(Duration::from_secs(2), "its stressors are gone", || all().iter().all(|(_, owner)| *owner != pid))
        .await;
    nothing_left(&sandbox).await;
    assert_eq!(sandbox.get("pids.max"), "60");
    let start = Instant::now();
    rig.start_in(dir.path());
    assert!(is_as_before(&sandbox));
    assert!(start.elapsed() < slack(Duration::from_secs(1)));
    rig.order(vec![fault(&sandbox, "a", Stage::Fire, &both())]);
    assert_eq!(injected(&mut rig).await.lasting.interruptions, 1);
    assert!(stands(&sandbox));
}

async fn a_daemon_killed_before_the_effect_changes_nothing() {
    use squall_daemon::{
        journal::{Journal, Progress},
        setting::{Setting, Undo, Value},
    };
    let (sandbox, _target, mut rig) = one();
    sandbox.set("pids.max", "99");
    let setting = Setting::new(sandbox.file("pids.max"), Value::Number);
    let undos = vec![Undo { setting, original: Some(99), wanted: 60 }];
    // Killed before the write; after it; and somebody else's value, written while no daemon was there.
    for (found, left) in [("99", "99"), ("60", "99"), ("77", "77")] {
        sandbox.set("pids.max", found);
        let dir = tempfile::tempdir().expect("a directory");
        let standing = Progress::Standing { undos: undos.clone(), interruptions: 0 };
        Journal::open(dir.path()).expect("a journal").note("a/x", standing).expect("noted");
        rig.start_in(dir.path());
        assert_eq!(sandbox.get("pids.max"), left);
        let interrupted = Progress::Interrupted { interruptions: 1 };
        let text = fs::read_to_string(dir.path().join("journal")).expect("the journal");
        assert!(text.contains("Interrupted"), "{text} has no {interrupted:?}");
    }
}

async fn a_stressor_is_quickly_there_and_quickly_gone() {
    let (sandbox, _target, mut rig) = one();
    let (mut there, mut gone) = (Vec::new(), Vec::new());
    for round in 0..10 {
        let name = format!("round-{round}");
        let order = |stage| fault(&sandbox, &name, stage, &cpu(1, 100));
        rig.order(vec![order(Stage::Arm)]);
        assert_eq!(rig.report().await.state, State::Armed);
        let start = Instant::now();
        rig.order(vec![order(Stage::Fire)]);
        injected(&mut rig).await;
        there.push(start.elapsed());
        let start = Instant::now();
        rig.order(vec![order(Stage::Recover)]);
        until(Duration::from_secs(2), "it is gone", || stressors(&sandbox).is_empty()).await;
        gone.push(start.elapsed());
        rig.outcome().await;
    }
    there.sort();
    gone.sort();
    println!("  there after {:?}, gone after {:?} (medians)", there[5], gone[5]);
    // Unoptimised, and on a busy machine.
    let limit = slack(Duration::from_millis(100));
    assert!(there[5] < limit && gone[5] < limit);
}

/// What the daemon's manifest adds, as far as stress needs it.
const ADDED: [(&str, CapabilitySet); 3] = [
    ("KILL", CapabilitySet::KILL),
    ("SYS_PTRACE", CapabilitySet::SYS_PTRACE),
    ("SYS_ADMIN", CapabilitySet::SYS_ADMIN),
];

/// A daemon with these capabilities alone, which stresses in every way, and says what came of it.
pub async fn stress_with_capabilities() {
    let variable = |name| std::env::var(name).expect("a variable");
    let named = variable("SQUALL_TEST_CAPABILITIES");
    let mut own = CapabilitySet::empty();
    for (_, capability) in ADDED.iter().filter(|(name, _)| named.split(',').any(|one| one == *name)) {
        own |= *capability;
    }
    let sets = CapabilitySets { effective: own, permitted: own, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).expect("fewer capabilities");
    let init = variable("SQUALL_TEST_INIT").parse().expect("a PID");
    let id = variable("SQUALL_TEST_CONTAINER");
    let entered = enter_nodes(Path::new("/proc"));
    give_up_administration().expect("one fewer");
    let mut rig = Rig::of(&[(order_of(&id), init)]);
    let stress = Stress {
        memory: memory(8 << 20).memory,
        io: io(&variable("SQUALL_TEST_PATH")).io,
        pids: Some(5),
        ..both()
    };
    rig.order(vec![fault_of(&id, "a", Stage::Fire, &stress)]);
    let report = rig.report().await;
    rig.order(vec![]);
    rig.node.put_back().await;
    fs::write(variable("SQUALL_TEST_OUT"), format!("{entered:?} {:?} {}", report.state, report.message))
        .expect("written");
    println!("ready");
    std::process::exit(0);
}

async fn a_kill_of_all_processes_spares_stressors() {
    for spares in [true, false] {
        enter_nodes(Path::new("/proc")).expect("the node's cgroup namespace");
        let mut sandbox = Sandbox::new();
        // A process with three children; all of them run all the time, as the stressor does.
        let target = sandbox.start("count-tree");
        let mut rig = Rig::new(&[(&sandbox, &target)]);
        rig.order(vec![fault(&sandbox, "a", Stage::Fire, &cpu(1, 60))]);
        injected(&mut rig).await;
        let stressor = stressors(&sandbox);
        assert_eq!((stressor.len(), sandbox.pids().len()), (1, 5), "{:?}", sandbox.pids());
        let tools = if spares { sparing(&rig.tools) } else { rig.tools.clone() };
        let outcome = fire(&tools, &sandbox, target.pid(), libc::SIGKILL, Scope::All).await;
        let hit: Vec<i32> = outcome.receipt.processes.iter().map(|process| process.pid).collect();
        assert_eq!(hit.contains(&stressor[0]), !spares, "{outcome:?}");
        assert_eq!(outcome.receipt.total, if spares { 4 } else { 5 }, "{outcome:?}");
    }
}

async fn stress_needs_the_capabilities_of_the_manifest_and_no_more() {
    let (sandbox, target, _rig) = one();
    let small = Small::mount();
    let out = tempfile::NamedTempFile::new().expect("a file");
    let outcome = |capabilities: &str| {
        let pid = target.pid().to_string();
        let daemon = stranger_with(
            "stress-with-capabilities",
            &[
                ("SQUALL_TEST_CONTAINER", &sandbox.id),
                ("SQUALL_TEST_INIT", &pid),
                ("SQUALL_TEST_CAPABILITIES", capabilities),
                ("SQUALL_TEST_PATH", small.path()),
                ("SQUALL_TEST_OUT", out.path().to_str().expect("a path")),
            ],
        );
        drop(daemon);
        fs::read_to_string(out.path()).expect("what came of it")
    };
    let all: Vec<&str> = ADDED.iter().map(|(name, _)| *name).collect();
    let enough = outcome(&all.join(","));
    assert!(enough.contains("Injected"), "{enough}");
    // Each that the manifest adds for stress is necessary: the target has capabilities that the daemon has not.
    let blind = outcome("KILL,SYS_ADMIN");
    assert!(blind.contains("opening the container's root") && blind.contains("ermission denied"), "{blind}");
    nothing_left(&sandbox).await;
}

/// Stands in for a daemon with many stressed containers; only what is its own counts.
async fn fifty_stressed_containers_take_little_memory() {
    let count = crowd(50, 15);
    let mut sandboxes: Vec<Sandbox> = (0..count).map(|_| Sandbox::new()).collect();
    let targets: Vec<Target> = sandboxes.iter_mut().map(|sandbox| sandbox.start("sleep")).collect();
    let pairs: Vec<_> = sandboxes.iter().zip(&targets).collect();
    let mut rig = Rig::new(&pairs);
    let resident = || {
        let status = fs::read_to_string("/proc/self/status").expect("our status");
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("our memory");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number")
    };
    let (before, start) = (resident(), Instant::now());
    rig.order(sandboxes.iter().map(|sandbox| fault(sandbox, "a", Stage::Fire, &cpu(1, 1))).collect());
    for _ in 0..count {
        injected(&mut rig).await;
    }
    let grown = resident().saturating_sub(before);
    println!("  {count} injected after {:?}, {grown} KiB more", start.elapsed());
    assert!(grown < 8 * 1024, "{grown} KiB");
    rig.order(vec![]);
    rig.node.put_back().await;
    assert!(ours().is_empty());
}
