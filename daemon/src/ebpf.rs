//! The daemon's side of the eBPF programs: loaded when the first watch is armed, shared by all watches, and gone with
//! the last one.
//!
//! Everything that can fail here is a value: a kill never depends on eBPF. Nothing is pinned, so a daemon that dies
//! leaves nothing in the kernel. Refuses to work from inside a nested PID namespace, because the programs would see
//! other numbers than `/proc` shows, and two parties that don't agree on who is who can't share claims.

pub mod btf;
mod loaded;
mod perf;

use std::{
    fs, io,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use squall_daemon_ebpf::{BY_PIDFD, Claim, ProcessKey, Record, SCOPE_ALL, SCOPE_INIT, SCOPE_OBSERVE, Watch};
use tokio::sync::mpsc::Receiver;

use crate::{cgroup::Target, clock::BootClock};
use loaded::{Loaded, Loader};

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
    /// The object was not accepted.
    #[error("loading the programs: {0}")]
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
}

/// The one door to the programs.
#[derive(Debug)]
pub struct Engine {
    /// 0: no debug output of the programs.
    log_level: u8,
    loader: Mutex<Option<Loader>>,
    loaded: Mutex<Weak<Loaded>>,
}

impl Engine {
    /// An engine with nothing loaded; `debug` turns on the programs' own log.
    pub fn new(debug: bool) -> Self {
        let log_level = if debug { aya_log::Level::Debug as u8 } else { 0 };
        Self { log_level, loader: Mutex::new(None), loaded: Mutex::new(Weak::new()) }
    }

    /// Loads and attaches everything once, and lets go of it again: says whether eBPF works here.
    /// Blocks; needs a tokio runtime around it.
    pub fn probe(&self) -> Result<(), EbpfError> {
        self.load().map(drop)
    }

    /// Prepares a watch without any effect: loads the programs if need be, and enters the cgroup.
    /// Blocks; needs a tokio runtime around it.
    pub fn arm(&self, target: &Target, spec: WatchSpec) -> Result<(Armed, Records), EbpfError> {
        let cgroup = target.v2.as_ref().ok_or(EbpfError::NoCgroupId)?;
        if cgroup.level == 0 {
            return Err(EbpfError::Root);
        }
        let loaded = self.load()?;
        let watch = Watch {
            init_start: spec.init_start,
            slot: loaded.next_slot(),
            scope: match spec.scope {
                Scope::Init => SCOPE_INIT,
                Scope::All => SCOPE_ALL,
                Scope::Observe => SCOPE_OBSERVE,
            },
            init_tgid: spec.init_pid.unsigned_abs(),
            signal: spec.signal.unsigned_abs(),
            fire: 0,
            reserved: 0,
        };
        let (records, dropped) = loaded.enter(cgroup.id, cgroup.level, watch)?;
        let lost_before = loaded.lost();
        let armed = Armed {
            cgroup: cgroup.id,
            level: cgroup.level,
            perf_dir: target.perf.clone(),
            watch,
            clock: BootClock::measure(),
            lost_before,
            dropped,
            settled: AtomicBool::new(false),
            events: Mutex::new(Vec::new()),
            loaded,
        };
        Ok((armed, Records(records)))
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
            None => kept.insert(Loader::new(btf::offsets()?, self.log_level)),
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

/// One armed watch; dropping it disarms.
#[derive(Debug)]
pub struct Armed {
    cgroup: u64,
    level: u32,
    perf_dir: Option<PathBuf>,
    watch: Watch,
    clock: BootClock,
    lost_before: u64,
    dropped: Arc<AtomicU64>,
    /// The daemon has signalled everyone whom the program would.
    settled: AtomicBool,
    events: Mutex<Vec<std::os::fd::OwnedFd>>,
    loaded: Arc<Loaded>,
}

impl Armed {
    /// Has the signalling program run for the tasks of the cgroup. The slow part of arming: it blocks for milliseconds,
    /// and without it the tracepoints still tell what happens.
    pub fn attach(&self) -> Result<(), EbpfError> {
        if self.settled.load(Ordering::Relaxed) {
            return Ok(());
        }
        let dir = self.perf_dir.as_deref().ok_or(EbpfError::NoCgroupId)?;
        let events = perf::attach(dir, self.loaded.signal_program())?;
        lock(&self.events).extend(events);
        Ok(())
    }

    /// From now on the programs signal and record.
    pub fn fire(&self) -> Result<(), EbpfError> {
        self.loaded.set_watch(self.cgroup, Watch { fire: 1, ..self.watch })
    }

    /// Claims a process for the daemon; `false`: the program was there first, and has sent the signal.
    pub fn claim(&self, pid: i32, start: u64) -> Result<bool, EbpfError> {
        let claim = Claim { slot: self.watch.slot, signal: self.watch.signal, by: BY_PIDFD, flags: 0 };
        self.loaded.claim(key(pid, start), claim)
    }

    /// Gives a claim back after the signal could not be sent.
    pub fn unclaim(&self, pid: i32, start: u64) {
        self.loaded.unclaim(key(pid, start));
    }

    /// Nobody is left for the program to signal: if it isn't attached yet, it need not be. With thirty containers at
    /// once the attaching would take the CPU from those that are about to end.
    pub fn settle(&self) {
        self.settled.store(true, Ordering::Relaxed);
    }

    /// Kernel time as wall time.
    pub fn clock(&self) -> BootClock {
        self.clock
    }

    /// Records that the kernel could not hand over or that nobody took in time, and claims that found no room, since
    /// this was armed.
    pub fn lost(&self) -> u64 {
        self.loaded.lost().saturating_sub(self.lost_before) + self.dropped.load(Ordering::Relaxed)
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
        self.loaded.leave(self.cgroup, self.level, self.watch.slot);
    }
}

fn key(pid: i32, start: u64) -> ProcessKey {
    ProcessKey { start, tgid: pid.unsigned_abs(), reserved: 0 }
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
