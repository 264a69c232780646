//! The files that IO stressors write: unnamed, in a directory of the container, and with room for what will be written.
//!
//! The path is looked up below the container's root, whatever links are in it, and the file never has a name, so nothing
//! is left of it however its stressor ends. A file system whose server is dead answers nobody: it is asked by a thread of
//! its own, which alone then hangs. Refuses what would fill a file system up, before anything is written.

use std::{os::fd::OwnedFd, path::Path, time::Duration};

use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, StatVfs, fstatvfs, openat, openat2},
    io::Errno,
};

use tokio::{task::spawn_blocking, time::timeout};

use super::message::DESCRIPTORS;
use crate::{container::Container, lasting::LastingError, order::stress::Io, report::Reason};

/// How long the file system may take to answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);
/// Percent of a file system that stay free. Where less than 15 are, kubelets remove images and evict pods; they count in
/// what is kept for root (5 on ext4), which is left out here as `df` does, so it is one more.
pub const KEPT_FREE: u8 = 16;

/// Opens one for each worker.
pub async fn unnamed(proc: &Path, container: &Container, io: &Io) -> Result<Vec<OwnedFd>, LastingError> {
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
    let opening = spawn_blocking(move || open(&root, &below, count));
    let opened = timeout(ANSWERS_WITHIN, opening)
        .await
        .map_err(|_| unsupported(format!("io.path: {path} does not answer within {ANSWERS_WITHIN:?}")))?
        .map_err(|error| LastingError::because(Reason::Internal, error.to_string()))?;
    // If the container ended meanwhile, that root may have been another's.
    container.check_again()?;
    let (files, room) = opened.map_err(failed)?;
    // Without an overflow, whatever is asked for.
    if u128::from(*workers) * u128::from(*bytes) > room {
        return Err(unsupported(format!(
            "io.size: {workers} times {bytes} bytes are more than the {room} that may be written to {path}: \
             {KEPT_FREE} % of a file system stay free, because kubelets evict pods where they don't"
        )));
    }
    Ok(files)
}

/// The files, and how many bytes may be written to them.
fn open(root: &Path, path: &str, count: u32) -> Result<(Vec<OwnedFd>, u128), (String, Errno)> {
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
        let room = files.first().map_or(Ok(0), room)?;
        Ok((files, room))
    };
    below().map_err(|errno| (format!("a file in {path}"), errno))
}

/// How many bytes may be written to the file system of `file`.
pub fn room(file: &OwnedFd) -> Result<u128, Errno> {
    fstatvfs(file).map(|found| room_of(&found))
}

fn room_of(found: &StatVfs) -> u128 {
    let [whole, free, available, unit] =
        [found.f_blocks, found.f_bfree, found.f_bavail, found.f_frsize].map(u128::from);
    if whole == 0 {
        // It has no size, and so is none of the node's disks.
        return u128::MAX;
    }
    let kept = (whole.saturating_sub(free) + available) * u128::from(KEPT_FREE) / 100;
    available.saturating_sub(kept) * unit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_every_file_system_that_has_a_size_is_kept_free() {
        let of = |blocks, free, available| {
            let mut found = fstatvfs(std::fs::File::open("/").unwrap()).unwrap();
            (found.f_blocks, found.f_bfree, found.f_bavail, found.f_frsize) = (blocks, free, available, 4096);
            room_of(&found)
        };
        assert_eq!(of(1000, 300, 300), (300 - 160) * 4096);
        // What root alone may use is no part of it: of 900 blocks 200 are free.
        assert_eq!(of(1000, 300, 200), (200 - 144) * 4096);
        assert_eq!((of(1000, 160, 160), of(1000, 10, 0)), (0, 0));
        assert_eq!(of(0, 0, 0), u128::MAX);
        // A file system of the container's may say anything.
        assert!(of(1, u64::MAX, u64::MAX) > u128::from(u64::MAX));
    }
}
