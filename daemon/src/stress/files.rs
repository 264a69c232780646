//! The files that IO stressors write: unnamed, in a directory of the container, and with room for what will be written.
//!
//! The path is looked up below the container's root, whatever links are in it, and the file never has a name, so nothing
//! is left of it however its stressor ends. A file system whose server is dead answers nobody: it is asked by a thread of
//! its own, which alone then hangs (`inside.rs`). Refuses what would fill a file system up, before anything is written.
//! Whether there is memory for what is written to a file system in memory is weighed with all other memory.

use std::{os::fd::OwnedFd, path::Path, time::Duration};

use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, StatVfs, fstatfs, fstatvfs, openat, openat2},
    io::Errno,
};

use tokio::time::timeout;

use super::message::DESCRIPTORS;
use crate::{
    container::Container,
    inside::{self, Unasked},
    lasting::LastingError,
    order::stress::Io,
    report::Reason,
};

/// How long the file system may take to answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);
/// Percent of a file system that stay free. Where less than 15 are, kubelets remove images and evict pods; they count in
/// what is kept for root (5 on ext4), which is left out here as `df` does, so it is one more.
pub const KEPT_FREE: u8 = 16;
/// File systems that are nowhere but in memory.
const IN_MEMORY: [u32; 2] = [0x0102_1994 /* tmpfs */, 0x8584_58f6 /* ramfs */];

/// The files of one stressor.
#[derive(Debug, Default)]
pub struct Unnamed {
    /// One for each worker.
    pub files: Vec<OwnedFd>,
    /// What is written to them is memory of the container's.
    pub in_memory: bool,
}

/// How much may be written to a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// So many bytes, as far as it has a size.
    pub bytes: u128,
    /// It is none of the node's disks, and so has memory for them or not.
    pub in_memory: bool,
}

/// Opens one for each worker.
pub async fn unnamed(proc: &Path, container: &Container, io: &Io) -> Result<Unnamed, LastingError> {
    let Io { workers, bytes, path } = io;
    // One place is the pidfd's.
    if *workers as usize >= DESCRIPTORS {
        let message = format!("io.workers: {workers} are more than {}", DESCRIPTORS - 1);
        return Err(LastingError::because(Reason::Unsupported, message));
    }
    let unsupported = |message: String| LastingError::because(Reason::Unsupported, message);
    let failed = |(what, errno): (String, Errno)| {
        unsupported(match errno {
            Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL => format!(
                "io.path: the file system of {path} has no unnamed files; choose the path of a volume, such as an \
                 emptyDir"
            ),
            Errno::NOENT => format!("io.path: the container has no directory {path}"),
            Errno::NOTDIR => format!("io.path: {path} is no directory"),
            _ => format!("io.path: {what}: {errno}"),
        })
    };
    let root = proc.join(container.init.pid().to_string()).join("root");
    let (count, below) = (*workers, path.clone());
    let opening = inside::ask(move || open(&root, &below, count));
    let opened = timeout(ANSWERS_WITHIN, opening)
        .await
        .map_err(|_| unsupported(format!("io.path: {path} does not answer within {ANSWERS_WITHIN:?}")))?
        .map_err(|error| match error {
            Unasked::Busy => unsupported(format!("io.path: {error}")),
            Unasked::Ended(_) => LastingError::because(Reason::Internal, error.to_string()),
        })?;
    // If the container ended meanwhile, that root may have been another's.
    container.check_again()?;
    let (files, Room { bytes: room, in_memory }) = opened.map_err(failed)?;
    // Without an overflow, whatever is asked for.
    if u128::from(*workers) * u128::from(*bytes) > room {
        return Err(unsupported(format!(
            "io.size: {workers} times {bytes} bytes are more than the {room} that may be written to {path}: \
             {KEPT_FREE} % of a file system stay free, because kubelets evict pods where they don't"
        )));
    }
    Ok(Unnamed { files, in_memory })
}

/// The files, and what may be written to them.
fn open(root: &Path, path: &str, count: u32) -> Result<(Vec<OwnedFd>, Room), (String, Errno)> {
    let root = openat(CWD, root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| ("opening the container's root".into(), errno))?;
    let below = || -> Result<_, Errno> {
        let open = |_| {
            openat2(
                &root,
                path,
                OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC,
                Mode::RUSR | Mode::WUSR,
                ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
            )
        };
        let files = (0..count).map(open).collect::<Result<Vec<_>, _>>()?;
        let none = Room { bytes: 0, in_memory: false };
        let room = files.first().map_or(Ok(none), room)?;
        Ok((files, room))
    };
    below().map_err(|errno| (format!("a file in {path}"), errno))
}

/// How much may be written to the file system of `file`.
pub fn room(file: &OwnedFd) -> Result<Room, Errno> {
    let kind = fstatfs(file)?.f_type as u32;
    fstatvfs(file).map(|found| room_of(kind, &found))
}

fn room_of(kind: u32, found: &StatVfs) -> Room {
    let [whole, free, available, unit] =
        [found.f_blocks, found.f_bfree, found.f_bavail, found.f_frsize].map(u128::from);
    if whole == 0 {
        return Room { bytes: u128::MAX, in_memory: true };
    }
    let kept = (whole.saturating_sub(free) + available) * u128::from(KEPT_FREE) / 100;
    Room { bytes: available.saturating_sub(kept) * unit, in_memory: IN_MEMORY.contains(&kind) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_every_file_system_that_has_a_size_is_kept_free() {
        let room = |kind, blocks, free, available| {
            let mut found = fstatvfs(std::fs::File::open("/").unwrap()).unwrap();
            (found.f_blocks, found.f_bfree, found.f_bavail, found.f_frsize) = (blocks, free, available, 4096);
            room_of(kind, &found)
        };
        let ext4 = 0xef53;
        let of = |blocks, free, available| room(ext4, blocks, free, available).bytes;
        assert_eq!(of(1000, 300, 300), (300 - 160) * 4096);
        // What root alone may use is no part of it: of 900 blocks 200 are free.
        assert_eq!(of(1000, 300, 200), (200 - 144) * 4096);
        assert_eq!((of(1000, 160, 160), of(1000, 10, 0)), (0, 0));
        assert!(!room(ext4, 1000, 300, 300).in_memory);
        assert!(IN_MEMORY.iter().all(|kind| room(*kind, 1000, 300, 300).in_memory));
        // Without a size it is none of the node's disks.
        assert_eq!(room(ext4, 0, 0, 0), Room { bytes: u128::MAX, in_memory: true });
        // A file system of the container's may say anything.
        assert!(of(1, u64::MAX, u64::MAX) > u128::from(u64::MAX));
    }
}
