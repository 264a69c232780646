//! What of the loaded object belongs to triggers: their entries in the maps, and the places in the kernel where their
//! programs run, each attached while some trigger needs it; and the one place that a kill may need for a while.
//!
//! Refuses two triggers of one container that wait for the same: the kernel could not tell them apart.

use std::{
    collections::{BTreeMap, VecDeque},
    os::fd::{AsFd, OwnedFd},
};

use aya::{
    Ebpf,
    maps::{HashMap, MapData},
    programs::{ProgramFd, RawTracePoint, TracePoint, links::Link as _, raw_trace_point::RawTracePointLink},
};
use squall_daemon_ebpf::{
    ExecKey, MAP_EXECS, MAP_FIRED, MAP_TRIGGERS, MAX_TRIGGERS, PATH_BYTES, PROGRAM_SIGNAL_FORKING,
    PROGRAM_TRIGGER_CONNECT, PROGRAM_TRIGGER_EXEC, PROGRAM_TRIGGER_SYSCALL, TRIGGER_CONNECT, TRIGGER_SYSCALL,
    Trigger, TriggerKey,
};

use super::{
    EbpfError,
    loaded::{BPF_NOEXIST, exists, map_error, program, take},
    misses, perf,
    syscalls::{self, Syscall},
};

/// So many triggers that are over still can't fire.
const KEPT_OVER: usize = MAX_TRIGGERS as usize;
/// Room for them, for as many as there may be, and for as many that wait for paths.
pub const ROOM_FIRED: u32 = 3 * MAX_TRIGGERS;

/// What a trigger waits for, as the kernel knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The nth call of a system call.
    Call {
        /// Which.
        syscall: Syscall,
        /// From 1.
        nth: u32,
    },
    /// A connection to a port.
    Connect {
        /// The port.
        port: u16,
    },
    /// One of these paths is executed.
    Exec {
        /// Absolute, each shorter than [`PATH_BYTES`].
        paths: Vec<String>,
    },
}

/// A place in the kernel at which a program of ours runs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Call(String),
    Connect,
    Exec,
    /// No trigger: see [`Triggers::attach_to_forks`].
    Fork,
}

impl Place {
    fn of(event: &Event) -> Self {
        match event {
            Event::Call { syscall, .. } => Self::Call(syscall.tracepoint.clone()),
            Event::Connect { .. } => Self::Connect,
            Event::Exec { .. } => Self::Exec,
        }
    }

    fn program(&self) -> &'static str {
        match self {
            Self::Call(_) => PROGRAM_TRIGGER_SYSCALL,
            Self::Connect => PROGRAM_TRIGGER_CONNECT,
            Self::Exec => PROGRAM_TRIGGER_EXEC,
            Self::Fork => PROGRAM_SIGNAL_FORKING,
        }
    }
}

/// What keeps a program at its place.
enum Link {
    /// A perf event.
    Tracepoint(OwnedFd),
    Raw(RawTracePointLink),
}

/// The triggers' part of the object.
pub struct Triggers {
    calls: HashMap<MapData, TriggerKey, Trigger>,
    execs: HashMap<MapData, ExecKey, Trigger>,
    fired: HashMap<MapData, u32, u64>,
    /// Those that are no more, the oldest first, whose entry in `fired` still keeps them from firing.
    over: VecDeque<u32>,
    /// How many triggers need a place, and what holds it.
    places: BTreeMap<Place, Held>,
    /// How many runs of programs that are no longer loaded the kernel had left out.
    left_out_before: u64,
}

struct Held {
    count: u32,
    link: Link,
    program: OwnedFd,
}

impl Triggers {
    /// Takes the maps out of the object; nothing is loaded into the kernel beyond them.
    pub fn new(object: &mut Ebpf) -> Result<Self, EbpfError> {
        Ok(Self {
            calls: take(object, MAP_TRIGGERS)?,
            execs: take(object, MAP_EXECS)?,
            fired: take(object, MAP_FIRED)?,
            over: VecDeque::new(),
            places: BTreeMap::new(),
            left_out_before: 0,
        })
    }

    /// Has the program for `event` run. Blocks for as long as the kernel takes.
    pub fn attach(&mut self, object: &mut Ebpf, event: &Event) -> Result<(), EbpfError> {
        self.hold(object, Place::of(event))
    }

    /// Has whoever forks in a watched cgroup signalled, where the program for every task of it can't be attached.
    pub fn attach_to_forks(&mut self, object: &mut Ebpf) -> Result<(), EbpfError> {
        self.hold(object, Place::Fork)
    }

    /// The opposite of [`Triggers::attach_to_forks`].
    pub fn detach_from_forks(&mut self, object: &mut Ebpf) {
        self.let_go(object, Place::Fork);
    }

    fn hold(&mut self, object: &mut Ebpf, place: Place) -> Result<(), EbpfError> {
        if let Some(held) = self.places.get_mut(&place) {
            held.count += 1;
            return Ok(());
        }
        let (link, program) = attach(object, &place)?;
        self.places.insert(place, Held { count: 1, link, program });
        Ok(())
    }

    /// The opposite of [`Triggers::attach`]; with the last one that needs it the program goes out of the kernel.
    pub fn detach(&mut self, object: &mut Ebpf, event: &Event) {
        self.let_go(object, Place::of(event));
    }

    fn let_go(&mut self, object: &mut Ebpf, place: Place) {
        let Some(held) = self.places.get_mut(&place) else { return };
        held.count -= 1;
        if held.count > 0 {
            return;
        }
        let name = place.program();
        let Some(Held { count: _, link, program }) = self.places.remove(&place) else { return };
        if let Err(error) = link.detach() {
            tracing::warn!(program = name, ?error, "could not be detached");
        }
        if self.places.keys().any(|other| other.program() == name) {
            return;
        }
        self.left_out_before += misses::of(program.as_fd());
        if let Err(error) = unload(object, &place) {
            tracing::warn!(program = name, %error, "could not be unloaded");
        }
    }

    /// How many runs of the triggers' programs the kernel has left out: what happened then was not counted.
    pub fn left_out(&self) -> u64 {
        // One program may be at several places.
        let programs: BTreeMap<_, _> =
            self.places.iter().map(|(place, held)| (place.program(), held.program.as_fd())).collect();
        self.left_out_before + programs.into_values().map(misses::of).sum::<u64>()
    }

    /// From now on `event` counts in `cgroup`.
    pub fn enter(&mut self, cgroup: u64, event: &Event, trigger: Trigger) -> Result<(), EbpfError> {
        let busy =
            |map| move |error| if exists(&error) { EbpfError::SameTrigger } else { map_error(map)(error) };
        if let Some(key) = call_key(cgroup, event) {
            return self.calls.insert(key, trigger, BPF_NOEXIST).map_err(busy(MAP_TRIGGERS));
        }
        let mut entered = Vec::new();
        for key in exec_keys(cgroup, event) {
            if let Err(error) = self.execs.insert(key, trigger, BPF_NOEXIST) {
                for key in entered {
                    // Gone is what it shall be.
                    let _ = self.execs.remove(&key);
                }
                return Err(busy(MAP_EXECS)(error));
            }
            entered.push(key);
        }
        Ok(())
    }

    /// The opposite of [`Triggers::enter`], for who has entered: it never fires any more.
    pub fn leave(&mut self, cgroup: u64, event: &Event, slot: u32) {
        if let Err(error) = self.give_up(slot) {
            tracing::warn!(slot, %error, "a trigger could not be given up");
        }
        // Gone is what they shall be.
        if let Some(key) = call_key(cgroup, event) {
            let _ = self.calls.remove(&key);
        }
        for key in exec_keys(cgroup, event) {
            let _ = self.execs.remove(&key);
        }
        // A program that has found the trigger before may only now be about to fire it; it may have been preempted in
        // between. So the entry stays until so many others are over that it no longer can be.
        self.over.push_back(slot);
        if self.over.len() > KEPT_OVER
            && let Some(oldest) = self.over.pop_front()
        {
            let _ = self.fired.remove(&oldest);
        }
    }

    /// Sees to it that the trigger does not fire any more; `false`: it has.
    pub fn give_up(&mut self, slot: u32) -> Result<bool, EbpfError> {
        match self.fired.insert(slot, 0, BPF_NOEXIST) {
            Ok(()) => Ok(true),
            Err(error) if exists(&error) => Ok(false),
            Err(error) => Err(map_error(MAP_FIRED)(error)),
        }
    }

    /// How often it has happened so far.
    pub fn count(&self, cgroup: u64, event: &Event) -> u64 {
        let calls = call_key(cgroup, event).into_iter().filter_map(|key| self.calls.get(&key, 0).ok());
        let execs = exec_keys(cgroup, event).into_iter().filter_map(|key| self.execs.get(&key, 0).ok());
        calls.chain(execs).map(|trigger| trigger.count).sum()
    }
}

fn call_key(cgroup: u64, event: &Event) -> Option<TriggerKey> {
    match event {
        Event::Call { syscall, .. } => {
            Some(TriggerKey { cgroup, kind: TRIGGER_SYSCALL, detail: syscall.number })
        }
        Event::Connect { port } => {
            Some(TriggerKey { cgroup, kind: TRIGGER_CONNECT, detail: u32::from(*port) })
        }
        Event::Exec { .. } => None,
    }
}

fn exec_keys(cgroup: u64, event: &Event) -> Vec<ExecKey> {
    match event {
        Event::Call { .. } | Event::Connect { .. } => Vec::new(),
        Event::Exec { paths } => paths
            .iter()
            // A longer one is never seen whole, so it can't be waited for.
            .filter(|path| path.len() < PATH_BYTES)
            .map(|path| {
                let mut bytes = [0; PATH_BYTES];
                bytes[..path.len()].copy_from_slice(path.as_bytes());
                ExecKey { cgroup, path: bytes }
            })
            .collect(),
    }
}

impl Link {
    fn detach(self) -> Result<(), aya::programs::ProgramError> {
        match self {
            Self::Tracepoint(event) => {
                drop(event);
                Ok(())
            }
            Self::Raw(link) => link.detach(),
        }
    }
}

fn attach(object: &mut Ebpf, place: &Place) -> Result<(Link, OwnedFd), EbpfError> {
    let name = place.program();
    let failed =
        |error: aya::programs::ProgramError| EbpfError::Attach { program: name, source: error.into() };
    let refused = |error: aya::programs::ProgramError| EbpfError::Load(error.into());
    match place {
        Place::Call(_) | Place::Connect => {
            let tracepoint =
                if let Place::Call(tracepoint) = place { tracepoint } else { "sys_enter_connect" };
            let program: &mut TracePoint = program(object, name)?;
            if program.fd().is_err() {
                program.load().map_err(refused)?;
            }
            let fd = kept(program.fd().map_err(refused)?)?;
            let event = perf::attach_to_tracepoint(syscalls::number_of(tracepoint)?, fd.as_fd())
                .map_err(|error| EbpfError::Attach { program: name, source: error.into() })?;
            Ok((Link::Tracepoint(event), fd))
        }
        Place::Exec | Place::Fork => {
            let program: &mut RawTracePoint = program(object, name)?;
            if program.fd().is_err() {
                program.load().map_err(refused)?;
            }
            let tracepoint = if *place == Place::Fork { "sched_process_fork" } else { "sched_process_exec" };
            let id = program.attach(tracepoint).map_err(failed)?;
            let fd = kept(program.fd().map_err(refused)?)?;
            Ok((program.take_link(id).map(Link::Raw).map_err(failed)?, fd))
        }
    }
}

fn kept(program: &ProgramFd) -> Result<OwnedFd, EbpfError> {
    program.as_fd().try_clone_to_owned().map_err(|error| EbpfError::Load(error.into()))
}

fn unload(object: &mut Ebpf, place: &Place) -> Result<(), EbpfError> {
    let refused = |error: aya::programs::ProgramError| EbpfError::Load(error.into());
    match place {
        Place::Call(_) | Place::Connect => {
            program::<TracePoint>(object, place.program())?.unload().map_err(refused)
        }
        Place::Exec | Place::Fork => {
            program::<RawTracePoint>(object, place.program())?.unload().map_err(refused)
        }
    }
}
