//! Opens perf events, also where the kernel gives them to SYS_ADMIN only: Debian's and Ubuntu's do, with
//! `kernel.perf_event_paranoid` 3 or more.
//!
//! There, and nowhere else, one thread keeps that capability when the daemon gives it up: permitted, but not effective.
//! It is raised for one `perf_event_open` and lowered before the answer is given. The thread does nothing else and starts
//! nothing, so no other thread and no process of the daemon's has it.

use std::{
    io,
    os::fd::{FromRawFd, OwnedFd, RawFd},
    process,
    sync::{
        OnceLock,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
};

use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use crate::privileges::{Privilege, hint};

/// The first published size of `struct perf_event_attr`: every kernel takes it.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    breakpoint: u32,
    config1: u64,
}

const _: () = assert!(size_of::<Attributes>() == 64);

pub(super) const TYPE_SOFTWARE: u32 = 1;
pub(super) const CPU_CLOCK: u64 = 0;
const FLAG_DISABLED: u64 = 1;
const OPEN_PID_CGROUP: libc::c_ulong = 1 << 2;
const OPEN_CLOEXEC: libc::c_ulong = 1 << 3;

/// It calls nothing that needs more.
const STACK: usize = 64 << 10;

/// A perf event that is wanted. It is opened disabled.
#[derive(Clone, Copy, Debug)]
pub(super) struct Event {
    pub(super) kind: u32,
    pub(super) config: u64,
    pub(super) sample_period: u64,
    pub(super) cpu: u32,
    /// The open directory of the cgroup that it is scoped to; `None`: every task.
    pub(super) cgroup: Option<RawFd>,
}

/// An event of every kernel: where it can be had, others of ours can.
const PROBE: Event = Event { kind: TYPE_SOFTWARE, config: CPU_CLOCK, sample_period: 0, cpu: 0, cgroup: None };

type Asked = (Event, Sender<io::Result<OwnedFd>>);

/// Where the thread that kept the right is asked.
static KEPT: OnceLock<Sender<Asked>> = OnceLock::new();

/// Keeps the right for as long as this process lives, if the kernel gives perf events with it and not without. To be
/// called by a thread that has it and will then give it up. Says whether it was kept.
pub fn keep_if_needed() -> io::Result<bool> {
    let ((asking, asked), (deciding, decided)) = (channel(), channel());
    let keeper = thread::Builder::new().name("perf-events".to_owned()).stack_size(STACK);
    let keeper = keeper.spawn(move || keep(&asked, &deciding))?;
    let kept = decided.recv().map_err(io::Error::other)??;
    if kept {
        // Set before, it is a thread like this one that is asked.
        let _ = KEPT.set(asking);
    } else if keeper.join().is_err() {
        return Err(io::Error::other("the thread that would have kept it panicked"));
    }
    Ok(kept)
}

/// Whether perf events can be had, by whatever way.
pub fn check() -> io::Result<()> {
    open(PROBE).map(drop)
}

/// Opens one; blocks for as long as the kernel takes.
pub(super) fn open(event: Event) -> io::Result<OwnedFd> {
    let refused = match event.open() {
        Err(error) if is_denied(&error) => error,
        done => return done,
    };
    let Some(kept) = KEPT.get() else {
        let hint = match hint(&refused, Privilege::Perfmon) {
            hint if hint.is_empty() => {
                " (where kernel.perf_event_paranoid is 3 or more it takes SYS_ADMIN)".to_owned()
            }
            hint => hint,
        };
        return Err(io::Error::new(refused.kind(), format!("{refused}{hint}")));
    };
    let (answering, answered) = channel();
    kept.send((event, answering)).map_err(io::Error::other)?;
    // What the event is scoped to stays open meanwhile: whoever asked waits here.
    answered.recv().map_err(io::Error::other)?
}

/// The life of the thread that keeps the right.
fn keep(asked: &Receiver<Asked>, deciding: &Sender<io::Result<bool>>) {
    // What the kernel does tells, not a number in a file: it means something else on each.
    let needed = set_administration(false).map(|()| {
        PROBE.open().is_err_and(|error| is_denied(&error)) && as_administrator(|| PROBE.open()).is_ok()
    });
    let kept = matches!(needed, Ok(true));
    if deciding.send(needed).is_err() || !kept {
        return;
    }
    while let Ok((event, answering)) = asked.recv() {
        // Whoever asked waits for it.
        let _ = answering.send(as_administrator(|| event.open()));
    }
}

fn is_denied(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied
}

fn as_administrator<T>(work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let _raised = Raised::new()?;
    work()
}

/// While it is there this thread has SYS_ADMIN in effect.
struct Raised;

impl Raised {
    fn new() -> io::Result<Self> {
        set_administration(true)?;
        Ok(Self)
    }
}

impl Drop for Raised {
    fn drop(&mut self) {
        // The kernel refuses nobody who wants less.
        if let Err(error) = set_administration(false) {
            tracing::error!(%error, "SYS_ADMIN could not be lowered");
            process::abort();
        }
    }
}

/// This thread's own; what it would start would not have it.
fn set_administration(effective: bool) -> io::Result<()> {
    let mut own = capabilities(None)?;
    own.effective.set(CapabilitySet::SYS_ADMIN, effective);
    own.inheritable.remove(CapabilitySet::SYS_ADMIN);
    Ok(set_capabilities(None, own)?)
}

impl Event {
    fn open(self) -> io::Result<OwnedFd> {
        let Self { kind, config, sample_period, cpu, cgroup } = self;
        let attributes = Attributes {
            kind,
            size: size_of::<Attributes>() as u32,
            config,
            sample_period,
            flags: FLAG_DISABLED,
            ..Attributes::default()
        };
        let scoped = if cgroup.is_some() { OPEN_PID_CGROUP } else { 0 };
        // SAFETY: the attributes outlive the call, and their size is in them.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_perf_event_open,
                &raw const attributes,
                cgroup.unwrap_or(-1),
                cpu as libc::c_int,
                -1,
                scoped | OPEN_CLOEXEC,
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just given us this descriptor.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
    }
}
