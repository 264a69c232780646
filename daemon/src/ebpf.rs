//! The daemon's side of the eBPF programs: loaded when the first watch is armed, shared by all watches, and gone with
//! the last one.
//!
//! Everything that can fail here is a value: a kill never depends on eBPF. Nothing is pinned, so a daemon that dies
//! leaves nothing in the kernel. Refuses to work from inside a nested PID namespace, because the programs would see
//! other numbers than `/proc` shows, and two parties that don't agree on who is who can't share claims.

pub mod btf;
mod loaded;
mod misses;
pub mod opener;
mod perf;
pub mod syscalls;
mod triggers;

use std::{
    fs, io,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
};

use squall_daemon_ebpf::{
    BY_PIDFD, Claim, ProcessKey, Record, SCOPE_ALL, SCOPE_INIT, SCOPE_OBSERVE, Trigger, Watch,
};
use tokio::sync::mpsc::Receiver;

use crate::{
    cgroup::{Target, V2Cgroup},
    clock::BootClock,
    inside::Unasked,
};
pub use loaded::Claimed;
use loaded::{Loaded, Loader};
pub use triggers::Event;
use triggers::Triggers;

/// What keeps eBPF from working.
#[derive(Debug, thiserror::Error)]
pub enum EbpfError {
    /// The kernel has no usable type information.
    #[error("the kernel's BTF: {0}")]
    Btf(#[from] btf::BtfError),
    /// The daemon sees other PIDs than the kernel.
    #[error("the daemon is not in the machine's first PID namespace (a nested node?)")]
    NestedPids,
    /// The container has no v2 cgroup, and so no id that the programs could know it by.
    #[error("the container has no version 2 cgroup")]
    NoCgroupId,
    /// The root of the hierarchy is the whole machine.
    #[error("the process is in the root cgroup")]
    Root,
    /// Watches lie at more levels of the tree than the programs look at.
    #[error("cgroups at more than {} levels of the tree would be watched", squall_daemon_ebpf::MAX_LEVELS)]
    TooManyLevels,
    /// Another fault watches this cgroup.
    #[error("another fault watches this cgroup")]
    Busy,
    /// Another trigger of this cgroup waits for the same.
    #[error("another fault waits for the same in this container")]
    SameTrigger,
    /// The path that is waited for could not be looked up in the container.
    #[error(transparent)]
    Inside(#[from] Unasked),
    /// A system call that can't be waited for.
    #[error(transparent)]
    Syscall(#[from] syscalls::SyscallError),
    /// The object was not accepted.
    #[error("loading the programs: {}", brief(.0))]
    Load(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A program could not be attached.
    #[error("attaching {program}: {source}")]
    Attach {
        /// The program.
        program: &'static str,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A map could not be read or written.
    #[error("map {map}: {source}")]
    Map {
        /// The map.
        map: &'static str,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A perf event scoped to the cgroup could not be opened.
    #[error("opening a perf event on cgroup {} for CPU {cpu}: {source}", cgroup.display())]
    Perf {
        /// The cgroup's directory.
        cgroup: PathBuf,
        /// The CPU.
        cpu: u32,
        /// Why.
        source: io::Error,
    },
    /// The list of CPUs could not be read.
    #[error("reading the list of CPUs: {0}")]
    Cpus(#[source] io::Error),
}

/// Whom the programs signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The init process of the container.
    Init,
    /// Every process of the container's cgroup.
    All,
    /// Nobody: they observe.
    Observe,
}

/// What is to be watched.
#[derive(Clone, Copy, Debug)]
pub struct WatchSpec {
    /// Whom to signal.
    pub scope: Scope,
    /// The signal.
    pub signal: i32,
    /// The container's init process.
    pub init_pid: i32,
    /// When it started, in ticks since boot.
    pub init_start: u64,
    /// Only processes of this name, ended by a zero; empty: any.
    pub comm: [u8; 16],
}

/// What is to be waited for.
#[derive(Clone, Debug)]
pub struct TriggerSpec {
    /// What.
    pub event: Event,
    /// Only what a process of this name does, ended by a zero; empty: any.
    pub comm: [u8; 16],
    /// The signal for who does it.
    pub signal: i32,
}

/// The one door to the programs.
#[derive(Debug)]
pub struct Engine {
    /// 0: no debug output of the programs.
    log_level: u8,
    /// The process whose children are spared; 0: there is none.
    spared: u32,
    /// Size of the ring of records; `None`: as the object says.
    ring: Option<u32>,
    loader: Mutex<Option<Loader>>,
    loaded: Mutex<Weak<Loaded>>,
}

impl Engine {
    /// An engine with nothing loaded; `debug` turns on the programs' own log.
    pub fn new(debug: bool) -> Self {
        let log_level = if debug { aya_log::Level::Debug as u8 } else { 0 };
        Self { log_level, spared: 0, ring: None, loader: Mutex::new(None), loaded: Mutex::new(Weak::new()) }
    }

    /// The same, with room for `bytes` of records at a time: a power of two and at least a page.
    pub fn with_ring(self, bytes: u32) -> Self {
        Self { ring: Some(bytes), ..self }
    }

    /// The same, for a daemon with that PID: no kill hits its children, its stressors in the cgroups of their targets,
    /// and nothing that they do fires a trigger.
    pub fn sparing_children_of(self, daemon: u32) -> Self {
        Self { spared: daemon, ..self }
    }

    /// The PID of the process whose children are spared, if there is one.
    pub fn spared(&self) -> Option<i32> {
        i32::try_from(self.spared).ok().filter(|pid| *pid != 0)
    }

    /// Loads and attaches everything once, and lets go of it again: says whether eBPF works here.
    /// Blocks; needs a tokio runtime around it.
    pub fn probe(&self) -> Result<(), EbpfError> {
        self.load().map(drop)
    }

    /// Prepares a watch without any effect: loads the programs if need be, and enters the cgroup.
    /// Blocks; needs a tokio runtime around it.
    pub fn arm(&self, target: &Target, spec: WatchSpec) -> Result<(Armed, Records), EbpfError> {
        let cgroup = known_by(target)?;
        let loaded = self.load()?;
        let slot = loaded.next_slot();
        let watch = Watch {
            init_start: spec.init_start,
            slot,
            scope: match spec.scope {
                Scope::Init => SCOPE_INIT,
                Scope::All => SCOPE_ALL,
                Scope::Observe => SCOPE_OBSERVE,
            },
            init_tgid: spec.init_pid.unsigned_abs(),
            signal: spec.signal.unsigned_abs(),
            fire: 0,
            reserved: 0,
            comm: spec.comm,
        };
        let (lease, records) = Lease::take(loaded, cgroup.level, slot, spec.signal)?;
        lease.loaded.add_watch(cgroup.id, watch)?;
        let perf_dir = target.perf.clone();
        let events = Mutex::new(Vec::new());
        let (forks, settled) = (AtomicBool::new(false), AtomicBool::new(false));
        let work = Work::Watch { watch, perf_dir, events, forks, settled };
        Ok((Armed { cgroup: cgroup.id, work, lease }, records))
    }

    /// Prepares a trigger without any effect: nothing counts yet. Blocks; needs a tokio runtime around it.
    pub fn arm_trigger(&self, target: &Target, spec: TriggerSpec) -> Result<(Armed, Records), EbpfError> {
        let cgroup = known_by(target)?;
        let loaded = self.load()?;
        let slot = loaded.next_slot();
        let TriggerSpec { event, comm, signal } = spec;
        let nth = match &event {
            Event::Call { nth, .. } => u64::from(*nth),
            Event::Connect { .. } | Event::Exec { .. } => 1,
        };
        let trigger = Trigger { count: 0, nth, slot, signal: signal.unsigned_abs(), comm };
        let (lease, records) = Lease::take(loaded, cgroup.level, slot, signal)?;
        let work = Work::Trigger { event, trigger, held: AtomicU8::new(HELD_NOTHING) };
        Ok((Armed { cgroup: cgroup.id, work, lease }, records))
    }

    /// Has the programs in the kernel for as long as the answer is held, so that arming doesn't wait for them. What
    /// goes wrong is told by [`Engine::arm`].
    /// Blocks; needs a tokio runtime around it.
    pub fn warm(&self) -> Warm {
        Warm { _loaded: self.load().ok() }
    }

    /// Whether the programs are in the kernel now.
    pub fn is_loaded(&self) -> bool {
        lock(&self.loaded).strong_count() > 0
    }

    fn load(&self) -> Result<Arc<Loaded>, EbpfError> {
        // Held while loading: those who come together share one object.
        let mut slot = lock(&self.loaded);
        if let Some(loaded) = slot.upgrade() {
            return Ok(loaded);
        }
        first_pid_namespace()?;
        let mut kept = lock(&self.loader);
        let loader = match &mut *kept {
            Some(loader) => loader,
            None => kept.insert(Loader::new(btf::offsets()?, self.spared, self.log_level, self.ring)),
        };
        let loaded = Arc::new(Loaded::load(loader)?);
        *slot = Arc::downgrade(&loaded);
        Ok(loaded)
    }
}

/// See [`Engine::warm`].
#[derive(Debug)]
pub struct Warm {
    _loaded: Option<Arc<Loaded>>,
}

/// One armed watch or trigger; dropping it disarms.
#[derive(Debug)]
pub struct Armed {
    cgroup: u64,
    work: Work,
    /// Dropped last: the programs stay until everything of ours is out of the maps.
    lease: Lease,
}

#[derive(Debug)]
enum Work {
    Watch {
        watch: Watch,
        perf_dir: Option<PathBuf>,
        events: Mutex<Vec<std::os::fd::OwnedFd>>,
        /// In place of the events the program that signals whoever forks is attached.
        forks: AtomicBool,
        /// The daemon has signalled everyone whom the program would.
        settled: AtomicBool,
    },
    Trigger {
        event: Event,
        trigger: Trigger,
        held: AtomicU8,
    },
}

/// What of a trigger is in the kernel, and so has to be taken out again.
const HELD_NOTHING: u8 = 0;
const HELD_PLACE: u8 = 1;
const HELD_ENTRY: u8 = 2;

/// A number of its own, a level that the programs look at, and a channel for records.
#[derive(Debug)]
struct Lease {
    level: u32,
    slot: u32,
    signal: u32,
    clock: BootClock,
    lost_before: u64,
    dropped: Arc<AtomicU64>,
    loaded: Arc<Loaded>,
}

impl Lease {
    fn take(loaded: Arc<Loaded>, level: u32, slot: u32, signal: i32) -> Result<(Self, Records), EbpfError> {
        let (records, dropped) = loaded.enter(level, slot)?;
        let (clock, lost_before) = (BootClock::measure(), loaded.lost());
        let lease = Self { level, slot, signal: signal.unsigned_abs(), clock, lost_before, dropped, loaded };
        Ok((lease, Records(records)))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.loaded.leave(self.level, self.slot);
    }
}

impl Armed {
    /// Has the program run that does the work. The slow part of arming: it blocks for milliseconds. Without it a watch
    /// still tells what happens, and a trigger never fires.
    pub fn attach(&self) -> Result<(), EbpfError> {
        match &self.work {
            Work::Watch { perf_dir, events, forks, settled, watch: _ } => {
                if !settled.load(Ordering::Relaxed) {
                    let dir = perf_dir.as_deref().ok_or(EbpfError::NoCgroupId)?;
                    match perf::attach(dir, self.lease.loaded.signal_program()) {
                        Ok(opened) => lock(events).extend(opened),
                        // Some kernels want SYS_ADMIN for a perf event, and the daemon was not given it.
                        Err(EbpfError::Perf { source, .. })
                            if source.kind() == io::ErrorKind::PermissionDenied =>
                        {
                            self.lease.loaded.with_object(Triggers::attach_to_forks)?;
                            forks.store(true, Ordering::Release);
                        }
                        Err(error) => return Err(error),
                    }
                }
            }
            Work::Trigger { event, held, .. } => {
                self.lease.loaded.with_object(|triggers, object| triggers.attach(object, event))?;
                held.store(HELD_PLACE, Ordering::Release);
            }
        }
        Ok(())
    }

    /// From now on the programs signal and record.
    pub fn fire(&self) -> Result<(), EbpfError> {
        match &self.work {
            Work::Watch { watch, .. } => {
                self.lease.loaded.set_watch(self.cgroup, Watch { fire: 1, ..*watch })
            }
            Work::Trigger { event, trigger, held } => {
                self.lease.loaded.triggers().enter(self.cgroup, event, *trigger)?;
                held.store(HELD_ENTRY, Ordering::Release);
                Ok(())
            }
        }
    }

    /// Sees to it that a trigger does not fire any more; `false`: it has fired before.
    pub fn give_up(&self) -> Result<bool, EbpfError> {
        self.lease.loaded.triggers().give_up(self.lease.slot)
    }

    /// How often that which a trigger waits for has happened so far.
    pub fn count(&self) -> u64 {
        match &self.work {
            Work::Watch { .. } => 0,
            Work::Trigger { event, .. } => self.lease.loaded.triggers().count(self.cgroup, event),
        }
    }

    /// Claims a process for the daemon. If it was claimed before, the program has sent the signal; if by another, nobody
    /// has sent this one, and the program will not.
    pub fn claim(&self, pid: i32, start: u64) -> Result<Claimed, EbpfError> {
        let Lease { slot, signal, .. } = self.lease;
        self.lease.loaded.claim(key(pid, start), Claim { slot, signal, by: BY_PIDFD, flags: 0 })
    }

    /// Gives a claim back after the signal could not be sent.
    pub fn unclaim(&self, pid: i32, start: u64) {
        self.lease.loaded.unclaim(key(pid, start));
    }

    /// Nobody is left for the program to signal: if it isn't attached yet, it need not be. With thirty containers at
    /// once the attaching would take the CPU from those that are about to end.
    pub fn settle(&self) {
        match &self.work {
            Work::Watch { settled, .. } => settled.store(true, Ordering::Relaxed),
            Work::Trigger { .. } => {}
        }
    }

    /// Kernel time as wall time.
    pub fn clock(&self) -> BootClock {
        self.lease.clock
    }

    /// Records that the kernel could not hand over or that nobody took in time, and claims that found no room, since
    /// this was armed.
    pub fn lost(&self) -> u64 {
        let Lease { lost_before, dropped, loaded, .. } = &self.lease;
        loaded.lost().saturating_sub(*lost_before) + dropped.load(Ordering::Relaxed)
    }
}

/// The records of one watch.
#[derive(Debug)]
pub struct Records(Receiver<Record>);

impl Records {
    /// The next record; `None` once the watch is disarmed.
    pub async fn next(&mut self) -> Option<Record> {
        self.0.recv().await
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        let Lease { loaded, slot, .. } = &self.lease;
        match &self.work {
            Work::Watch { forks, .. } => {
                loaded.remove_watch(self.cgroup);
                if forks.load(Ordering::Acquire) {
                    loaded.with_object(Triggers::detach_from_forks);
                }
            }
            Work::Trigger { event, held, .. } => {
                let held = held.load(Ordering::Acquire);
                if held >= HELD_ENTRY {
                    loaded.triggers().leave(self.cgroup, event, *slot);
                }
                if held >= HELD_PLACE {
                    loaded.with_object(|triggers, object| triggers.detach(object, event));
                }
            }
        }
    }
}

fn known_by(target: &Target) -> Result<&V2Cgroup, EbpfError> {
    let cgroup = target.v2.as_ref().ok_or(EbpfError::NoCgroupId)?;
    if cgroup.level == 0 {
        return Err(EbpfError::Root);
    }
    Ok(cgroup)
}

fn key(pid: i32, start: u64) -> ProcessKey {
    ProcessKey { start, tgid: pid.unsigned_abs(), reserved: 0 }
}

/// Of the verifier's log, which may have thousands of lines, the one that says what is wrong.
fn brief(error: &impl std::fmt::Display) -> String {
    let text = error.to_string();
    let Some((what, log)) = text.split_once("Verifier output:") else { return text };
    let figures = ["verification time", "stack depth", "processed "];
    let telling = |line: &&str| !line.is_empty() && !figures.iter().any(|start| line.starts_with(start));
    let why = log.lines().map(str::trim).rfind(telling).unwrap_or_default();
    format!("{what}{why}")
}

fn first_pid_namespace() -> Result<(), EbpfError> {
    // The inode number of the first PID namespace is part of the kernel's interface (PROC_PID_INIT_INO).
    let link = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    if link.as_os_str() == "pid:[4026531836]" { Ok(()) } else { Err(EbpfError::NestedPids) }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // A panic in between leaves nothing half-written that the next user would trip over.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_verifiers_log_only_the_reason_is_told() {
        let log = "the syscall returned EINVAL. Verifier output: 0: (b7) r1 = 0\n20: (85) call x#1\n\
                   unknown func x#1\nverification time 9 usec\nstack depth 72+0\nprocessed 20 insns\n";
        let error = EbpfError::Load(log.into()).to_string();
        assert_eq!(error, "loading the programs: the syscall returned EINVAL. unknown func x#1");
        assert_eq!(EbpfError::Load("no map".into()).to_string(), "loading the programs: no map");
    }
}
