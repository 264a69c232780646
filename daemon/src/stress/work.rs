//! What stressors do: the four kinds of work, each in threads of the stressor's process, all ended by its end.

mod cpu;
mod io;
mod memory;
mod pids;
mod taking;

use std::{
    os::fd::{BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};

use super::{
    limits::{NodeMemory, NodePids},
    message::{Said, Task, send},
};
use taking::Taking;

/// Threads that do nothing need no more than the least that there is.
const SMALL_STACK: usize = 64 * 1024;

/// What of a task may change while it is worked on.
#[derive(Clone, Default)]
pub struct Knobs {
    /// Millionths of one CPU, for each worker.
    share: Arc<AtomicU32>,
}

impl Knobs {
    /// Takes over what `task` says.
    pub fn turn(&self, task: &Task) {
        match task {
            Task::Cpu { workers: _, share } => self.share.store(*share, Ordering::Relaxed),
            Task::Memory { .. } | Task::Io { .. } | Task::Pids { .. } => {}
        }
    }
}

/// Starts the workers of `task`.
pub fn start(task: Task, files: Vec<OwnedFd>, socket: BorrowedFd<'static>) -> Result<Knobs, String> {
    let knobs = Knobs::default();
    knobs.turn(&task);
    match task {
        Task::Cpu { workers, share: _ } => {
            many(workers, || {
                let share = Arc::clone(&knobs.share);
                move || cpu::work(&share)
            })?;
        }
        Task::Memory { workers, bytes, ramp, oom_score_adj: _, leaves_room } => {
            let room = move || if leaves_room { node_memory() } else { u64::MAX };
            let (piece, taking) = (memory::piece(workers), Arc::new(Taking::default()));
            let workers64 = u64::from(workers);
            let each = bytes.div_ceil(workers64);
            let mut left = bytes;
            many(workers, || {
                let own = each.min(left);
                left -= own;
                let taking = Arc::clone(&taking);
                move || {
                    memory::work(own, ramp, piece, &taking, room);
                    failed(socket, "filling memory: the node has no more to give")
                }
            })?;
        }
        Task::Io { bytes } => {
            let (stretch, taking) = (io::stretch(files.len() as u64), Arc::new(Taking::default()));
            for file in files {
                let taking = Arc::clone(&taking);
                spawn(move || {
                    let problem = io::work(&file, bytes, stretch, &taking);
                    failed(socket, &format!("writing and reading: {problem}"))
                })
                .map_err(refused)?;
            }
        }
        Task::Pids { count } => {
            let has_room = || NodePids::of("/proc".as_ref()).room() > 0 && node_memory() > 0;
            if let Err(short) = pids::start(count, has_room) {
                let _ = send(socket, &Said::Short(short), &[]);
            }
        }
    }
    Ok(knobs)
}

/// Bytes that the node has left, now.
fn node_memory() -> u64 {
    NodeMemory::of("/proc".as_ref()).room()
}

/// Says why, and ends the stressor.
fn failed(socket: BorrowedFd<'_>, why: &str) {
    let _ = send(socket, &Said::Failed(why.to_owned()), &[]);
    std::process::exit(1);
}

fn many<W: FnOnce() + Send + 'static>(workers: u32, mut make: impl FnMut() -> W) -> Result<(), String> {
    for _ in 0..workers {
        spawn(make()).map_err(refused)?;
    }
    Ok(())
}

fn spawn(work: impl FnOnce() + Send + 'static) -> std::io::Result<thread::JoinHandle<()>> {
    thread::Builder::new().stack_size(SMALL_STACK).spawn(work)
}

fn refused(error: std::io::Error) -> String {
    format!("the container has no room for another worker: {error}")
}
