//! The records, keys and globals that the eBPF programs and the daemon share.
//!
//! Layout only: no decision is made here. Every type is `#[repr(C)]`, has no padding (each byte that crosses the
//! border is named) and has its size checked when it is compiled, on both sides.
#![no_std]

/// Name of the program that signals; attached to the target's cgroup by a software perf event.
pub const PROGRAM_SIGNAL_TASKS: &str = "signal_tasks";
/// Takes its place where perf events are not to be had.
pub const PROGRAM_SIGNAL_FORKING: &str = "signal_forking";
/// Raw tracepoint programs: (name of the program, name of the tracepoint).
pub const PROGRAMS_RAW_TRACEPOINT: [(&str, &str); 3] = [
    ("signal_generate", "signal_generate"),
    ("signal_deliver", "signal_deliver"),
    ("sched_process_exit", "sched_process_exit"),
];
/// Tracepoint program on `syscalls:sys_enter_NAME`: counts the calls of watched cgroups, and signals at the nth.
pub const PROGRAM_TRIGGER_SYSCALL: &str = "trigger_syscall";
/// Tracepoint program on `syscalls:sys_enter_connect`: signals who connects to a port.
pub const PROGRAM_TRIGGER_CONNECT: &str = "trigger_connect";
/// Raw tracepoint program on `sched_process_exec`: signals who executes a path.
pub const PROGRAM_TRIGGER_EXEC: &str = "trigger_exec";
/// Map: cgroup id → [`Watch`].
pub const MAP_WATCHES: &str = "WATCHES";
/// Map: one [`Levels`].
pub const MAP_LEVELS: &str = "LEVELS";
/// Map: [`TriggerKey`] → [`Trigger`].
pub const MAP_TRIGGERS: &str = "TRIGGERS";
/// Map: [`ExecKey`] → [`Trigger`].
pub const MAP_EXECS: &str = "EXECS";
/// Map: number of a trigger → at which count it fired; who inserts with `BPF_NOEXIST` signals.
pub const MAP_FIRED: &str = "FIRED";
/// Map: [`ProcessKey`] → [`Claim`]; who inserts with `BPF_NOEXIST` sends the signal.
pub const MAP_CLAIMS: &str = "CLAIMS";
/// Ring buffer of [`Record`]s.
pub const MAP_RECORDS: &str = "RECORDS";
/// Per-CPU counters, indexed by `COUNTER_*`.
pub const MAP_COUNTERS: &str = "COUNTERS";
/// Global: [`Offsets`].
pub const GLOBAL_OFFSETS: &str = "OFFSETS";
/// Global: thread group id of the process whose children nobody signals, and nobody waits for; 0: there is none.
pub const GLOBAL_SPARED: &str = "SPARED";

/// How many cgroups can be watched at the same time.
pub const MAX_WATCHES: u32 = 1024;
/// How many triggers can be armed at the same time.
pub const MAX_TRIGGERS: u32 = 1024;
/// Length of a path that an exec trigger can wait for, and one more for the byte that ends it.
pub const PATH_BYTES: usize = 256;
/// How many processes can be claimed and alive at the same time.
pub const MAX_CLAIMS: u32 = 16384;
/// At how many levels of the cgroup tree something can be watched at the same time. Pods of one node lie at two or
/// three; a small number is quick to verify and to run.
pub const MAX_LEVELS: usize = 8;
/// Size of the ring buffer.
pub const RECORDS_BYTES: u32 = 512 * 1024;

/// Records that found no room in the ring buffer.
pub const COUNTER_LOST: u32 = 0;
/// Processes that could not be claimed because the map of claims was full.
pub const COUNTER_UNCLAIMED: u32 = 1;
/// Signals that the kernel refused to queue (they are tried again at the next hit).
pub const COUNTER_REFUSED: u32 = 2;
/// Number of counters.
pub const COUNTER_SLOTS: u32 = 3;

/// The programs signal only the init process of the watch.
pub const SCOPE_INIT: u32 = 1;
/// The programs signal every process of the cgroup.
pub const SCOPE_ALL: u32 = 2;
/// The programs signal nobody and only observe.
pub const SCOPE_OBSERVE: u32 = 3;

/// The claim was won by the eBPF program.
pub const BY_EBPF: u32 = 1;
/// The claim was won by the daemon, which sends through a pidfd.
pub const BY_PIDFD: u32 = 2;

/// Set in [`Claim::flags`] once the generation of the signal was recorded.
pub const CLAIM_GENERATED: u32 = 1;
/// Set in [`Claim::flags`] once the delivery of the signal was recorded.
pub const CLAIM_DELIVERED: u32 = 2;

/// Nanoseconds of a tick of `/proc/PID/stat` (USER_HZ is 100 on every architecture that we build for).
pub const NANOS_PER_TICK: u64 = 10_000_000;

/// What is watched in one cgroup, its sub-cgroups included.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watch {
    /// Start time of the init process, in ticks since boot.
    pub init_start: u64,
    /// Number of the watch, never used twice while the object is loaded.
    pub slot: u32,
    /// One of `SCOPE_*`.
    pub scope: u32,
    /// Thread group id of the init process.
    pub init_tgid: u32,
    /// The signal.
    pub signal: u32,
    /// 0: armed, nothing is done; 1: act and record.
    pub fire: u32,
    /// Keeps the size a multiple of eight without padding.
    pub reserved: u32,
    /// Only processes of this name, ended by a zero; empty: any.
    pub comm: [u8; 16],
}

/// The trigger counts calls of a system call; [`TriggerKey::detail`] is its number.
pub const TRIGGER_SYSCALL: u32 = 1;
/// The trigger waits for a connection; [`TriggerKey::detail`] is the port.
pub const TRIGGER_CONNECT: u32 = 2;

/// What a process of which cgroup, its sub-cgroups included, does.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TriggerKey {
    /// The cgroup's id.
    pub cgroup: u64,
    /// One of `TRIGGER_*`.
    pub kind: u32,
    /// See `TRIGGER_*`.
    pub detail: u32,
}

/// Which path a process of which cgroup executes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExecKey {
    /// The cgroup's id.
    pub cgroup: u64,
    /// The path, filled up with zeros.
    pub path: [u8; PATH_BYTES],
}

/// What is done then. Fires once.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trigger {
    /// How often it has happened so far.
    pub count: u64,
    /// At which count it fires.
    pub nth: u64,
    /// Number of the trigger, never used twice while the object is loaded.
    pub slot: u32,
    /// The signal.
    pub signal: u32,
    /// Only processes of this name, ended by a zero; empty: any.
    pub comm: [u8; 16],
}

/// The cgroup levels at which something is watched; the root, level 0, ends the list.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Levels(pub [u32; MAX_LEVELS]);

/// A process for all time: its id together with the time it started.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProcessKey {
    /// Start time in ticks since boot, as in field 22 of `/proc/PID/stat`.
    pub start: u64,
    /// Thread group id, as seen from the machine's first PID namespace.
    pub tgid: u32,
    /// Keeps the size a multiple of eight without padding.
    pub reserved: u32,
}

/// Who sends to a process, and what is known of that signal so far.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The watch on whose behalf the process was claimed.
    pub slot: u32,
    /// The signal.
    pub signal: u32,
    /// One of `BY_*`.
    pub by: u32,
    /// Bits of `CLAIM_*`.
    pub flags: u32,
}

/// The signal was sent by the eBPF program; `value` is the signal.
pub const RECORD_SENT: u32 = 1;
/// The kernel took the signal; `value` is one of `GENERATED_*`.
pub const RECORD_GENERATED: u32 = 2;
/// The receiver took the signal from its queue; `value` is the signal.
pub const RECORD_DELIVERED: u32 = 3;
/// The last thread of the process ended; `value` is the wait status, or [`UNKNOWN_EXIT`].
pub const RECORD_EXITED: u32 = 4;

/// The kernel queued the signal.
pub const GENERATED_QUEUED: u32 = 0;
/// The receiver ignores the signal.
pub const GENERATED_IGNORED: u32 = 1;
/// The signal was already pending.
pub const GENERATED_PENDING: u32 = 2;

/// `value` of an exit whose code could not be read.
pub const UNKNOWN_EXIT: u32 = u32::MAX;

/// One event, in kernel time.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Nanoseconds since boot, sleep included (`CLOCK_BOOTTIME`).
    pub ktime: u64,
    /// Id of the watched cgroup; 0 where the program did not run in the target's context.
    pub cgroup: u64,
    /// Start time of the process, in ticks since boot.
    pub start: u64,
    /// One of `RECORD_*`.
    pub kind: u32,
    /// The watch.
    pub slot: u32,
    /// Thread group id.
    pub tgid: u32,
    /// Thread id.
    pub pid: u32,
    /// See `RECORD_*`.
    pub value: u32,
    /// Of a trigger that has fired: at which count; otherwise 0.
    pub count: u32,
    /// Name of the thread; empty where the program did not run in the target's context.
    pub comm: [u8; 16],
}

/// Offsets into kernel structs, read from the running kernel's BTF when the programs are loaded.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offsets {
    /// `task_struct.group_leader`
    pub task_group_leader: u32,
    /// `task_struct.tgid`
    pub task_tgid: u32,
    /// `task_struct.start_boottime` (`real_start_time` before 5.5)
    pub task_start_boottime: u32,
    /// `task_struct.signal`
    pub task_signal: u32,
    /// `task_struct.exit_code`
    pub task_exit_code: u32,
    /// `signal_struct.live`
    pub signal_live: u32,
    /// `signal_struct.group_exit_code`
    pub signal_group_exit_code: u32,
    /// `task_struct.comm`
    pub task_comm: u32,
    /// `task_struct.real_parent`
    pub task_real_parent: u32,
    /// `linux_binprm.filename`
    pub binprm_filename: u32,
}

const _: () = assert!(size_of::<Watch>() == 48);
const _: () = assert!(size_of::<Levels>() == 32);
const _: () = assert!(size_of::<ProcessKey>() == 16);
const _: () = assert!(size_of::<Claim>() == 16);
const _: () = assert!(size_of::<Record>() == 64);
const _: () = assert!(size_of::<Offsets>() == 40);
const _: () = assert!(size_of::<TriggerKey>() == 16);
const _: () = assert!(size_of::<ExecKey>() == 264);
const _: () = assert!(size_of::<Trigger>() == 40);

// SAFETY: `#[repr(C)]`, only integers and arrays of them, no padding (see the assertions above).
#[cfg(feature = "user")]
mod user {
    unsafe impl aya::Pod for super::Watch {}
    unsafe impl aya::Pod for super::Levels {}
    unsafe impl aya::Pod for super::ProcessKey {}
    unsafe impl aya::Pod for super::Claim {}
    unsafe impl aya::Pod for super::Offsets {}
    unsafe impl aya::Pod for super::TriggerKey {}
    unsafe impl aya::Pod for super::ExecKey {}
    unsafe impl aya::Pod for super::Trigger {}
}
