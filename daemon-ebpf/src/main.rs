//! The eBPF programs: they signal the processes of a watched cgroup in their own context, and record what became of
//! the signal.
//!
//! They decide nothing that the daemon could decide: which cgroup, which signal, which scope and when all come from
//! the map of watches. They hold no offset of a kernel struct that was not read from the running kernel's BTF.
//!
//! The kernel lends `bpf_probe_read_kernel` to programs with a GPL-compatible licence only: this file (and the object
//! built from it) is also offered under the MIT licence and the GPL, version 2.
#![no_std]
#![no_main]
// The target has no compare-and-swap, so the library's atomics are not there; the addition is one instruction.
#![feature(core_intrinsics)]
#![expect(internal_features, reason = "the only way to that instruction")]
#![expect(
    missing_docs,
    reason = "the macros of aya-ebpf wrap each documented program in a function without documentation"
)]

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::{
    EbpfContext, Global,
    bindings::BPF_NOEXIST,
    cty::c_void,
    helpers::{
        bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_probe_read_kernel,
        bpf_probe_read_kernel_str_bytes, bpf_probe_read_user,
        generated::{
            bpf_get_current_ancestor_cgroup_id, bpf_get_current_task, bpf_ktime_get_boot_ns, bpf_send_signal,
        },
    },
    macros::{map, perf_event, raw_tracepoint, tracepoint},
    maps::{Array, HashMap, PerCpuArray, RingBuf},
    programs::{PerfEventContext, RawTracePointContext, TracePointContext},
};
use aya_log_ebpf::debug;
use squall_daemon_ebpf::*;

#[map]
static WATCHES: HashMap<u64, Watch> = HashMap::with_max_entries(MAX_WATCHES, 0);
#[map]
static LEVELS: Array<Levels> = Array::with_max_entries(1, 0);
#[map]
static TRIGGERS: HashMap<TriggerKey, Trigger> = HashMap::with_max_entries(MAX_TRIGGERS, 0);
#[map]
static EXECS: HashMap<ExecKey, Trigger> = HashMap::with_max_entries(MAX_TRIGGERS, 0);
#[map]
static FIRED: HashMap<u32, u64> = HashMap::with_max_entries(MAX_TRIGGERS, 0);
/// Room for a key that the stack has none for.
#[map]
static SCRATCH: PerCpuArray<ExecKey> = PerCpuArray::with_max_entries(1, 0);
#[map]
static CLAIMS: HashMap<ProcessKey, Claim> = HashMap::with_max_entries(MAX_CLAIMS, 0);
#[map]
static RECORDS: RingBuf = RingBuf::with_byte_size(RECORDS_BYTES, 0);
#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(COUNTER_SLOTS, 0);

#[unsafe(no_mangle)]
static OFFSETS: Global<Offsets> = Global::new(Offsets {
    task_group_leader: 0,
    task_tgid: 0,
    task_start_boottime: 0,
    task_signal: 0,
    task_exit_code: 0,
    signal_live: 0,
    signal_group_exit_code: 0,
    task_comm: 0,
    task_real_parent: 0,
    binprm_filename: 0,
});

/// The daemon: its stressors, which are its children, stand in the cgroups of their targets.
#[unsafe(no_mangle)]
static SPARED: Global<u32> = Global::new(0);

/// Runs every millisecond of CPU time of, and at every switch away from, a task of a watched cgroup.
#[perf_event]
pub fn signal_tasks(ctx: PerfEventContext) -> u32 {
    let _ = signal_current(&ctx);
    0
}

/// Runs in the context of the task that has just made another: whoever does so while it is fired is signalled, so that
/// those whom nobody has seen yet become fewer.
#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub fn signal_forking(ctx: RawTracePointContext) -> i32 {
    let _ = signal_current(&ctx);
    0
}

/// Runs in the *sender's* context: only the claim tells whose signal this is.
#[raw_tracepoint(tracepoint = "signal_generate")]
pub fn signal_generate(ctx: RawTracePointContext) -> i32 {
    let _ = generated(&ctx);
    0
}

/// Runs in the receiver's context, for SIGKILL too.
#[raw_tracepoint(tracepoint = "signal_deliver")]
pub fn signal_deliver(ctx: RawTracePointContext) -> i32 {
    let _ = delivered(&ctx);
    0
}

/// Runs in the context of the thread that ends.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn sched_process_exit(ctx: RawTracePointContext) -> i32 {
    let _ = exited(&ctx);
    0
}

/// Runs in the context of the task that enters the system call, before the call does anything.
#[tracepoint]
pub fn trigger_syscall(ctx: TracePointContext) -> u32 {
    let _ = called(&ctx);
    0
}

/// Runs in the context of the task that connects, before it does.
#[tracepoint]
pub fn trigger_connect(ctx: TracePointContext) -> u32 {
    let _ = connecting(&ctx);
    0
}

/// Runs in the context of the task that has become another program, before that program's first instruction.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn trigger_exec(ctx: RawTracePointContext) -> i32 {
    let _ = executed(&ctx);
    0
}

const SIGKILL: u32 = 9;

/// Where the tracepoints of system calls keep the number, and the first argument.
const SYSCALL_NUMBER: usize = 8;
const SYSCALL_ARGUMENTS: usize = 16;

fn called(ctx: &TracePointContext) -> Option<()> {
    // SAFETY: a field of every such tracepoint, see its format file.
    let number: i32 = unsafe { ctx.read_at(SYSCALL_NUMBER) }.ok()?;
    for level in LEVELS.get(0)?.0 {
        let cgroup = cgroup_at(level)?;
        let key = TriggerKey { cgroup, kind: TRIGGER_SYSCALL, detail: number as u32 };
        if let Some(trigger) = TRIGGERS.get_ptr_mut(key) {
            happened(cgroup, trigger);
        }
    }
    None
}

fn connecting(ctx: &TracePointContext) -> Option<()> {
    // SAFETY: the second argument of connect.
    let address: u64 = unsafe { ctx.read_at(SYSCALL_ARGUMENTS + 8) }.ok()?;
    // SAFETY: the helper checks the address and fails instead of faulting. IPv4 and IPv6 begin alike.
    let [family, port]: [u16; 2] = unsafe { bpf_probe_read_user(address as *const [u16; 2]) }.ok()?;
    if family != AF_INET && family != AF_INET6 {
        return None;
    }
    for level in LEVELS.get(0)?.0 {
        let cgroup = cgroup_at(level)?;
        let detail = u32::from(u16::from_be(port));
        if let Some(trigger) = TRIGGERS.get_ptr_mut(TriggerKey { cgroup, kind: TRIGGER_CONNECT, detail }) {
            happened(cgroup, trigger);
        }
    }
    None
}

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

fn executed(ctx: &RawTracePointContext) -> Option<()> {
    let program: *const c_void = ctx.arg(2);
    let at = OFFSETS.load();
    for level in LEVELS.get(0)?.0 {
        let cgroup = cgroup_at(level)?;
        let key = SCRATCH.get_ptr_mut(0)?;
        // SAFETY: per CPU, and valid while the program runs.
        let key = unsafe { &mut *key };
        key.cgroup = cgroup;
        key.path = [0; PATH_BYTES];
        let name: u64 = read(program as u64, at.binprm_filename)?;
        // SAFETY: the helper checks the address and fails instead of faulting.
        unsafe { bpf_probe_read_kernel_str_bytes(name as *const u8, &mut key.path) }.ok()?;
        if let Some(trigger) = EXECS.get_ptr_mut(&*key) {
            happened(cgroup, trigger);
        }
    }
    None
}

/// What a trigger waits for has happened once more, in the current task.
#[inline(always)]
fn happened(cgroup: u64, trigger: *mut Trigger) -> Option<()> {
    // SAFETY: the entry stays until the program ends; the daemon does not write to it.
    let trigger = unsafe { &mut *trigger };
    let task = current_task();
    if is_spared(task)? || !named(task, &trigger.comm)? {
        return None;
    }
    // SAFETY: in the map's value, aligned. Nothing but the sum is asked for: fetching it takes a newer kernel, and of
    // two calls at the same moment either may be the nth; that only one is, the map of what has fired sees to.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(&raw mut trigger.count, 1) };
    // SAFETY: as above.
    let count = unsafe { (&raw const trigger.count).read_volatile() };
    if count < trigger.nth {
        return None;
    }
    if FIRED.insert(trigger.slot, count, u64::from(BPF_NOEXIST)).is_err() {
        return None;
    }
    let key = key_of(task)?;
    // A process that another fault has claimed is signalled all the same: that is what was asked for.
    let claim = Claim { slot: trigger.slot, signal: trigger.signal, by: BY_EBPF, flags: 0 };
    let claimed = CLAIMS.insert(key, claim, u64::from(BPF_NOEXIST)).is_ok();
    // SAFETY: no pointer is passed.
    if unsafe { bpf_send_signal(trigger.signal) } != 0 {
        // The next time then.
        if claimed {
            let _ = CLAIMS.remove(key);
        }
        let _ = FIRED.remove(trigger.slot);
        crate::count(COUNTER_REFUSED);
        return None;
    }
    emit_counted(RECORD_SENT, trigger.slot, cgroup, key, trigger.signal, count as u32, true);
    Some(())
}

/// The current task's cgroup at that level; `None` where there is none, and at the end of the list.
#[inline(always)]
fn cgroup_at(level: u32) -> Option<u64> {
    if level == 0 {
        return None;
    }
    // SAFETY: no pointer is passed. The answer is 0 where the cgroup does not lie that deep, and no map has that key.
    Some(unsafe { bpf_get_current_ancestor_cgroup_id(level as i32) })
}

/// Whether the process of `task` is a child of the one whose children are spared.
#[inline(always)]
fn is_spared(task: u64) -> Option<bool> {
    let spared = SPARED.load();
    if spared == 0 {
        return Some(false);
    }
    let at = OFFSETS.load();
    let parent: u32 = read(read(task, at.task_real_parent)?, at.task_tgid)?;
    Some(parent == spared)
}

/// Whether the process of `task` has that name; everyone has the empty one.
#[inline(always)]
fn named(task: u64, wanted: &[u8; 16]) -> Option<bool> {
    if wanted[0] == 0 {
        return Some(true);
    }
    let at = OFFSETS.load();
    let leader: u64 = read(task, at.task_group_leader)?;
    let found: [u8; 16] = read(leader, at.task_comm)?;
    for (found, wanted) in found.iter().zip(wanted) {
        if found != wanted {
            return Some(false);
        }
        // What stands behind the end is not to be looked at.
        if *wanted == 0 {
            return Some(true);
        }
    }
    Some(true)
}

#[inline(always)]
fn signal_current(ctx: &impl EbpfContext) -> Option<()> {
    let (cgroup, watch) = watch_of_current()?;
    let task = current_task();
    // A process whose last thread is on its way out keeps being switched; nothing is left to signal.
    if live_threads(task)? == 0 {
        return None;
    }
    let key = key_of(task)?;
    match watch.scope {
        SCOPE_ALL => {}
        SCOPE_INIT if key.tgid == watch.init_tgid && key.start == watch.init_start => {}
        _ => return None,
    }
    if is_spared(task)? || !named(task, &watch.comm)? {
        return None;
    }
    let claim = Claim { slot: watch.slot, signal: watch.signal, by: BY_EBPF, flags: 0 };
    match CLAIMS.insert(key, claim, u64::from(BPF_NOEXIST)) {
        Ok(()) => {}
        Err(errno) => {
            // -EEXIST is the daemon's, or our own, earlier claim; anything else means no room.
            if errno != -17 {
                count(COUNTER_UNCLAIMED);
            }
            return None;
        }
    }
    // SAFETY: no pointer is passed.
    if unsafe { bpf_send_signal(watch.signal) } != 0 {
        let _ = CLAIMS.remove(key);
        count(COUNTER_REFUSED);
        return None;
    }
    emit(RECORD_SENT, watch.slot, cgroup, key, watch.signal, true);
    debug!(ctx, "slot {}: signal {} sent to {}", watch.slot, watch.signal, key.tgid);
    Some(())
}

fn generated(ctx: &RawTracePointContext) -> Option<()> {
    let signal: i32 = ctx.arg(0);
    let task: *const c_void = ctx.arg(2);
    let result: i32 = ctx.arg(4);
    let key = key_of(task as u64)?;
    let claim = claim_of(key)?;
    if claim.signal != signal as u32 || claim.flags & CLAIM_GENERATED != 0 {
        return None;
    }
    claim.flags |= CLAIM_GENERATED;
    emit(RECORD_GENERATED, claim.slot, 0, key, result as u32, false);
    debug!(ctx, "slot {}: signal {} to {}: result {}", claim.slot, signal, key.tgid, result);
    Some(())
}

fn delivered(ctx: &RawTracePointContext) -> Option<()> {
    let signal = ctx.arg::<i32>(0) as u32;
    let task = current_task();
    let key = key_of(task)?;
    let claim = claim_of(key)?;
    // SIGKILL is taken by each thread: the first one counts.
    if claim.flags & CLAIM_DELIVERED != 0 {
        return None;
    }
    // A signal that ends the process by default is handed over as a SIGKILL to each thread; which one it was stands in
    // the exit code that the kernel has set already.
    let ends_as_kill = signal == SIGKILL && exit_status(task).unwrap_or(0) & 0x7f == claim.signal;
    if claim.signal != signal && !ends_as_kill {
        return None;
    }
    claim.flags |= CLAIM_DELIVERED;
    emit(RECORD_DELIVERED, claim.slot, 0, key, claim.signal, true);
    debug!(ctx, "slot {}: signal {} delivered to {}", claim.slot, signal, key.tgid);
    Some(())
}

fn exited(ctx: &RawTracePointContext) -> Option<()> {
    let task = current_task();
    // A leader may end before its threads; the process has ended with its last thread. Two threads that end together
    // may both see zero: the daemon drops the second record.
    if live_threads(task)? != 0 {
        return None;
    }
    let key = key_of(task)?;
    // What others of the cgroup do is not the fault's work; they could be many.
    let slot = claim_of(key)?.slot;
    let status = exit_status(task).unwrap_or(UNKNOWN_EXIT);
    emit(RECORD_EXITED, slot, 0, key, status, true);
    let _ = CLAIMS.remove(key);
    debug!(ctx, "slot {}: {} exited with status {}", slot, key.tgid, status);
    Some(())
}

/// The watch that the current task is under, if it has been fired.
#[inline(always)]
fn watch_of_current() -> Option<(u64, Watch)> {
    for level in LEVELS.get(0)?.0 {
        let id = cgroup_at(level)?;
        // SAFETY: the daemon replaces the value as a whole, and it is copied at once.
        if let Some(watch) = unsafe { WATCHES.get(id) } {
            return if watch.fire != 0 { Some((id, *watch)) } else { None };
        }
    }
    None
}

#[inline(always)]
fn claim_of(key: ProcessKey) -> Option<&'static mut Claim> {
    // SAFETY: the entry stays until the program ends; a flag lost between two CPUs costs one record too many.
    CLAIMS.get_ptr_mut(key).map(|claim| unsafe { &mut *claim })
}

#[inline(always)]
fn current_task() -> u64 {
    // SAFETY: no pointer is passed.
    unsafe { bpf_get_current_task() }
}

#[inline(always)]
fn key_of(task: u64) -> Option<ProcessKey> {
    let at = OFFSETS.load();
    let leader: u64 = read(task, at.task_group_leader)?;
    let started: u64 = read(leader, at.task_start_boottime)?;
    let tgid: u32 = read(task, at.task_tgid)?;
    Some(ProcessKey { start: started / NANOS_PER_TICK, tgid, reserved: 0 })
}

#[inline(always)]
fn live_threads(task: u64) -> Option<u32> {
    let at = OFFSETS.load();
    read(read(task, at.task_signal)?, at.signal_live)
}

#[inline(always)]
fn exit_status(task: u64) -> Option<u32> {
    let at = OFFSETS.load();
    // As in the kernel's own wait: the code of the group where there is one, else the leader's.
    let group: u32 = read(read(task, at.task_signal)?, at.signal_group_exit_code)?;
    if group != 0 {
        return Some(group);
    }
    read(read(task, at.task_group_leader)?, at.task_exit_code)
}

#[inline(always)]
fn read<T>(base: u64, offset: u32) -> Option<T> {
    // SAFETY: the helper checks the address and fails instead of faulting.
    unsafe { bpf_probe_read_kernel((base + u64::from(offset)) as *const T) }.ok()
}

#[inline(always)]
fn emit(kind: u32, slot: u32, cgroup: u64, key: ProcessKey, value: u32, in_target: bool) {
    emit_counted(kind, slot, cgroup, key, value, 0, in_target);
}

#[inline(always)]
fn emit_counted(
    kind: u32,
    slot: u32,
    cgroup: u64,
    key: ProcessKey,
    value: u32,
    count_at: u32,
    in_target: bool,
) {
    let Some(mut entry) = RECORDS.reserve::<Record>(0) else {
        count(COUNTER_LOST);
        return;
    };
    let (comm, pid) = if in_target {
        (bpf_get_current_comm().unwrap_or_default(), bpf_get_current_pid_tgid() as u32)
    } else {
        ([0; 16], key.tgid)
    };
    // SAFETY: no pointer is passed.
    let ktime = unsafe { bpf_ktime_get_boot_ns() };
    entry.write(Record {
        ktime,
        cgroup,
        start: key.start,
        kind,
        slot,
        tgid: key.tgid,
        pid,
        value,
        count: count_at,
        comm,
    });
    entry.submit(0);
}

#[inline(always)]
fn count(counter: u32) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter) {
        // SAFETY: per CPU, and valid while the program runs.
        unsafe { *value += 1 };
    }
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
