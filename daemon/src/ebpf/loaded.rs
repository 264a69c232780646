//! The loaded object: its programs, its maps, and the task that hands each record to the watch that it belongs to.
//!
//! Lives as long as somebody holds it. Refuses nothing and decides nothing.

use std::{
    collections::{BTreeMap, HashMap as StdHashMap},
    fmt, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, MapData, MapError, PerCpuArray, RingBuf},
    programs::{PerfEvent, RawTracePoint},
};
use squall_daemon_ebpf::{
    COUNTER_LOST, COUNTER_UNCLAIMED, Claim, GLOBAL_OFFSETS, GLOBAL_SPARED, Levels, MAP_CLAIMS, MAP_COUNTERS,
    MAP_FIRED, MAP_LEVELS, MAP_RECORDS, MAP_WATCHES, MAX_LEVELS, Offsets, PROGRAM_SIGNAL_TASKS,
    PROGRAMS_RAW_TRACEPOINT, ProcessKey, Record, Watch,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::mpsc::{Receiver, Sender, channel, error::TrySendError},
    task::AbortHandle,
};

use super::{
    EbpfError, lock, misses,
    triggers::{ROOM_FIRED, Triggers},
};

const BPF_ANY: u64 = 0;
pub(super) const BPF_NOEXIST: u64 = 1;

static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("SQUALL_BPF_OBJECT"));

/// Records of one watch that may wait: more than the ring holds, and a megabyte.
const WAITING: usize = 16384;
/// So many are handed over before those who take them get their turn.
const IN_A_ROW: usize = 1024;

/// Where the records of a watch go.
struct Route {
    sender: Sender<Record>,
    /// How many found no room.
    dropped: Arc<AtomicU64>,
}

type Routes = Arc<Mutex<StdHashMap<u32, Route>>>;

/// Whose a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claimed {
    /// Whoever asked has it now.
    Now,
    /// The programs have it, for the same watch.
    Before,
    /// Another watch or trigger has it, with a signal of its own.
    ByAnother,
}

/// The records of one watch, and how many of them found no room.
pub type Entered = (Receiver<Record>, Arc<AtomicU64>);

/// What the object is loaded with. It is kept, because aya reads all of the kernel's BTF for each new one, and that
/// takes longer than everything else.
pub struct Loader {
    loader: EbpfLoader<'static>,
    log_level: u8,
}

impl Loader {
    /// Loads with these globals.
    pub fn new(offsets: Offsets, spared: u32, log_level: u8, ring: Option<u32>) -> Self {
        // A few bytes for the life of the one engine of the process: the loader wants to borrow them.
        let kept: &'static (Offsets, u32, u8) = Box::leak(Box::new((offsets, spared, log_level)));
        let mut loader = EbpfLoader::new();
        loader
            .btf(None)
            .override_global(GLOBAL_OFFSETS, &kept.0, true)
            .override_global(GLOBAL_SPARED, &kept.1, true)
            .override_global(aya_log::LEVEL, &kept.2, true);
        loader.map_max_entries(MAP_FIRED, ROOM_FIRED);
        if let Some(bytes) = ring {
            loader.map_max_entries(MAP_RECORDS, bytes);
        }
        Self { loader, log_level }
    }
}

impl fmt::Debug for Loader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loader").finish_non_exhaustive()
    }
}

/// Programs and maps in the kernel.
pub struct Loaded {
    /// First to be dropped: its links detach the tracepoints. Locked before what it is locked together with.
    object: Mutex<Ebpf>,
    triggers: Mutex<Triggers>,
    signal_program: OwnedFd,
    /// Those that record.
    recording: Vec<OwnedFd>,
    watches: Mutex<Watches>,
    claims: Mutex<HashMap<MapData, ProcessKey, Claim>>,
    counters: PerCpuArray<MapData, u64>,
    routes: Routes,
    slots: AtomicU32,
    readers: Vec<AbortHandle>,
}

struct Watches {
    by_cgroup: HashMap<MapData, u64, Watch>,
    mask: Array<MapData, Levels>,
    /// How many watches there are at each level.
    levels: BTreeMap<u32, u32>,
}

impl fmt::Debug for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loaded").finish_non_exhaustive()
    }
}

impl Loaded {
    /// Loads the object, attaches the tracepoints and starts reading.
    pub fn load(loader: &mut Loader) -> Result<Self, EbpfError> {
        let load = |error: Box<dyn std::error::Error + Send + Sync>| EbpfError::Load(error);
        let Loader { loader, log_level } = loader;
        let log_level = *log_level;
        let mut object = loader.load(OBJECT).map_err(|error| load(error.into()))?;

        let mut readers = Vec::new();
        if log_level > 0 {
            let logger = aya_log::EbpfLogger::init(&mut object).map_err(|error| load(error.into()))?;
            readers.push(read_log(logger).map_err(|error| load(error.into()))?);
        }
        let routes = Routes::default();
        let records: RingBuf<_> = take(&mut object, MAP_RECORDS)?;
        let watches = Watches {
            by_cgroup: take(&mut object, MAP_WATCHES)?,
            mask: take(&mut object, MAP_LEVELS)?,
            levels: BTreeMap::new(),
        };
        let triggers = Triggers::new(&mut object)?;
        let claims = take(&mut object, MAP_CLAIMS)?;
        let counters = take(&mut object, MAP_COUNTERS)?;

        let signal: &mut PerfEvent = program(&mut object, PROGRAM_SIGNAL_TASKS)?;
        signal.load().map_err(|error| load(error.into()))?;
        let signal_program = signal
            .fd()
            .map_err(io::Error::other)
            .and_then(|fd| fd.as_fd().try_clone_to_owned())
            .map_err(|error| load(error.into()))?;
        let mut recording = Vec::new();
        for (name, tracepoint) in PROGRAMS_RAW_TRACEPOINT {
            let tracing: &mut RawTracePoint = program(&mut object, name)?;
            tracing.load().map_err(|error| load(error.into()))?;
            tracing
                .attach(tracepoint)
                .map_err(|error| EbpfError::Attach { program: name, source: error.into() })?;
            let fd = tracing.fd().map_err(io::Error::other).and_then(|fd| fd.as_fd().try_clone_to_owned());
            recording.push(fd.map_err(|error| load(error.into()))?);
        }
        readers.push(read_records(records, Arc::clone(&routes)).map_err(|error| load(error.into()))?);
        Ok(Self {
            object: Mutex::new(object),
            triggers: Mutex::new(triggers),
            signal_program,
            recording,
            watches: Mutex::new(watches),
            claims: Mutex::new(claims),
            counters,
            routes,
            slots: AtomicU32::new(1),
            readers,
        })
    }

    /// A number for a watch.
    pub fn next_slot(&self) -> u32 {
        self.slots.fetch_add(1, Ordering::Relaxed)
    }

    /// The program to be set on perf events.
    pub fn signal_program(&self) -> BorrowedFd<'_> {
        self.signal_program.as_fd()
    }

    /// Has the programs look at cgroups of that level, too; the records of `slot` come through the channel.
    pub fn enter(&self, level: u32, slot: u32) -> Result<Entered, EbpfError> {
        let mut watches = lock(&self.watches);
        let (sender, receiver) = channel(WAITING);
        let dropped = Arc::new(AtomicU64::new(0));
        lock(&self.routes).insert(slot, Route { sender, dropped: Arc::clone(&dropped) });
        *watches.levels.entry(level).or_default() += 1;
        if let Err(error) = watches.write_mask() {
            drop(watches);
            self.leave(level, slot);
            return Err(error);
        }
        Ok((receiver, dropped))
    }

    /// The opposite of [`Loaded::enter`]; takes the claims of `slot` away, too.
    pub fn leave(&self, level: u32, slot: u32) {
        let mut watches = lock(&self.watches);
        if let Some(count) = watches.levels.get_mut(&level) {
            *count -= 1;
            if *count == 0 {
                watches.levels.remove(&level);
            }
        }
        if let Err(error) = watches.write_mask() {
            tracing::warn!(%error, "could not narrow the levels that are watched");
        }
        drop(watches);
        lock(&self.routes).remove(&slot);
        let mut claims = lock(&self.claims);
        let ours: Vec<_> =
            claims.iter().flatten().filter(|(_, claim)| claim.slot == slot).map(|(key, _)| key).collect();
        for key in ours {
            // Gone is what it shall be: the process may have ended meanwhile.
            let _ = claims.remove(&key);
        }
    }

    /// Begins to watch a cgroup that nobody else watches.
    pub fn add_watch(&self, cgroup: u64, watch: Watch) -> Result<(), EbpfError> {
        let added = lock(&self.watches).by_cgroup.insert(cgroup, watch, BPF_NOEXIST);
        added.map_err(|error| if exists(&error) { EbpfError::Busy } else { map_error(MAP_WATCHES)(error) })
    }

    /// Replaces a watch.
    pub fn set_watch(&self, cgroup: u64, watch: Watch) -> Result<(), EbpfError> {
        lock(&self.watches).by_cgroup.insert(cgroup, watch, BPF_ANY).map_err(map_error(MAP_WATCHES))
    }

    /// Takes a watch away.
    pub fn remove_watch(&self, cgroup: u64) {
        if let Err(error) = lock(&self.watches).by_cgroup.remove(&cgroup) {
            tracing::warn!(cgroup, %error, "could not remove a watch");
        }
    }

    /// The triggers.
    pub fn triggers(&self) -> MutexGuard<'_, Triggers> {
        lock(&self.triggers)
    }

    /// The triggers, with the object that their programs are in.
    pub fn with_object<T>(&self, work: impl FnOnce(&mut Triggers, &mut Ebpf) -> T) -> T {
        let mut object = lock(&self.object);
        work(&mut lock(&self.triggers), &mut object)
    }

    /// Claims a process, unless somebody has.
    pub fn claim(&self, key: ProcessKey, claim: Claim) -> Result<Claimed, EbpfError> {
        let mut claims = lock(&self.claims);
        loop {
            match claims.insert(key, claim, BPF_NOEXIST) {
                Ok(()) => return Ok(Claimed::Now),
                Err(error) if exists(&error) => {}
                Err(error) => return Err(map_error(MAP_CLAIMS)(error)),
            }
            match claims.get(&key, 0) {
                Ok(found) if found.slot == claim.slot => return Ok(Claimed::Before),
                Ok(_) => return Ok(Claimed::ByAnother),
                // It has ended in between, or could not be signalled.
                Err(MapError::KeyNotFound) => {}
                Err(error) => return Err(map_error(MAP_CLAIMS)(error)),
            }
        }
    }

    /// Gives a claim back.
    pub fn unclaim(&self, key: ProcessKey) {
        // Gone is what it shall be.
        let _ = lock(&self.claims).remove(&key);
    }

    /// Records lost, runs that the kernel left out, and claims that found no room, over all CPUs.
    pub fn lost(&self) -> u64 {
        let sum = |counter| {
            self.counters.get(&counter, 0).map(|values| values.iter().sum::<u64>()).unwrap_or_default()
        };
        let left_out: u64 = self.recording.iter().map(|program| misses::of(program.as_fd())).sum();
        sum(COUNTER_LOST) + sum(COUNTER_UNCLAIMED) + left_out + lock(&self.triggers).left_out()
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        for reader in &self.readers {
            reader.abort();
        }
    }
}

impl Route {
    fn hand_over(&self, record: Record) {
        match self.sender.try_send(record) {
            // Nobody takes them any more.
            Ok(()) | Err(TrySendError::Closed(_)) => {}
            Err(TrySendError::Full(_)) => {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

impl Watches {
    fn write_mask(&mut self) -> Result<(), EbpfError> {
        let mut used = Levels::default();
        if self.levels.len() > MAX_LEVELS {
            return Err(EbpfError::TooManyLevels);
        }
        for (slot, level) in used.0.iter_mut().zip(self.levels.keys()) {
            *slot = *level;
        }
        self.mask.set(0, used, BPF_ANY).map_err(map_error(MAP_LEVELS))
    }
}

pub(super) fn take<M: TryFrom<aya::maps::Map, Error = MapError>>(
    object: &mut Ebpf,
    name: &'static str,
) -> Result<M, EbpfError> {
    let missing = || EbpfError::Load(format!("the object has no map {name}").into());
    object.take_map(name).ok_or_else(missing)?.try_into().map_err(map_error(name))
}

pub(super) fn program<'a, P>(object: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, EbpfError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = aya::programs::ProgramError>,
{
    let missing = || EbpfError::Load(format!("the object has no program {name}").into());
    object
        .program_mut(name)
        .ok_or_else(missing)?
        .try_into()
        .map_err(|error: aya::programs::ProgramError| EbpfError::Load(error.into()))
}

pub(super) fn map_error(map: &'static str) -> impl Fn(MapError) -> EbpfError {
    move |error| EbpfError::Map { map, source: error.into() }
}

pub(super) fn exists(error: &MapError) -> bool {
    match error {
        MapError::SyscallError(error) => error.io_error.raw_os_error() == Some(libc::EEXIST),
        _ => false,
    }
}

fn read_records(records: RingBuf<MapData>, routes: Routes) -> io::Result<AbortHandle> {
    let mut fd = register(records)?;
    let task = tokio::spawn(async move {
        while let Ok(mut guard) = fd.readable_mut().await {
            let mut taken = 0;
            while let Some(record) = guard.get_inner_mut().next().map(|item| parse(&item)) {
                // A watch that has been disarmed meanwhile wants no records.
                if let Some(record) = record
                    && let Some(route) = lock(&routes).get(&record.slot)
                {
                    route.hand_over(record);
                }
                taken += 1;
                if taken % IN_A_ROW == 0 {
                    tokio::task::yield_now().await;
                }
            }
            guard.clear_ready();
        }
    });
    Ok(task.abort_handle())
}

fn parse(bytes: &[u8]) -> Option<Record> {
    if bytes.len() != size_of::<Record>() {
        return None;
    }
    // SAFETY: the length fits, every bit pattern is a record, and the read needs no alignment.
    Some(unsafe { bytes.as_ptr().cast::<Record>().read_unaligned() })
}

fn register<T: AsRawFd>(map: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: each map owns its descriptor and keeps it for life.
    unsafe { AsyncFd::register_with_interest(map, Interest::READABLE) }.map_err(Into::into)
}

fn read_log(logger: aya_log::EbpfLogger<&'static dyn log::Log>) -> io::Result<AbortHandle> {
    let mut fd = register(logger)?;
    let task = tokio::spawn(async move {
        while let Ok(mut guard) = fd.readable_mut().await {
            guard.get_inner_mut().flush();
            guard.clear_ready();
        }
    });
    Ok(task.abort_handle())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_that_nobody_takes_are_counted_not_kept() {
        let (sender, mut receiver) = channel(2);
        let route = Route { sender, dropped: Arc::default() };
        // SAFETY: every bit pattern is a record.
        let record: Record = unsafe { std::mem::zeroed() };
        for _ in 0..5 {
            route.hand_over(record);
        }
        assert_eq!(route.dropped.load(Ordering::Relaxed), 3);
        assert!(receiver.try_recv().is_ok() && receiver.try_recv().is_ok() && receiver.try_recv().is_err());
        drop(receiver);
        route.hand_over(record);
        assert_eq!(route.dropped.load(Ordering::Relaxed), 3);
    }
}
