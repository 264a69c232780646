//! Writes a file from end to end, has it written out, and reads it back, again and again.

use std::{io, ops::Range, os::fd::OwnedFd};

use rustix::{
    fs::{Advice, fadvise, fdatasync},
    io::{pread, pwrite},
};

use super::{node_memory, taking::Taking};
use crate::stress::files::{KEPT_FREE, Room, room};

const BLOCK: u64 = 256 * 1024;
/// The file system is looked at before every stretch: others may write to it at the same time, stressors of ours in other
/// containers too, which were all allowed what was left before any of them began. They don't see what is looked at, but
/// not written yet: of all workers together no more than this, as far as stretches can be so short.
const TOGETHER: u64 = 64 * BLOCK;

/// What each of so many workers writes by one look.
pub fn stretch(workers: u64) -> u64 {
    (TOGETHER / workers.max(1)).max(BLOCK)
}

/// Works until something fails; returns what.
pub fn work(file: &OwnedFd, bytes: u64, stretch: u64, taking: &Taking) -> io::Error {
    // Not zeros, which some file systems don't write.
    let mut block = vec![0xa5; BLOCK.min(bytes) as usize];
    let mut grows = true;
    loop {
        if let Err(error) = round(file, bytes, stretch, grows.then_some(taking), &mut block) {
            return error;
        }
        // What is there is only written once more.
        grows = false;
    }
}

fn round(
    file: &OwnedFd,
    bytes: u64,
    stretch: u64,
    taking: Option<&Taking>,
    block: &mut [u8],
) -> io::Result<()> {
    let mut written = 0;
    while written < bytes {
        let next = stretch.min(bytes - written);
        let about = taking.map_or(0, |taking| taking.begin(next));
        if let Some(short) = short(file, about)? {
            return Err(io::Error::other(short));
        }
        blocks(written..written + next, block.len(), |offset, length| {
            Ok(pwrite(file, &block[..length], offset)?)
        })?;
        if let Some(taking) = taking {
            taking.done(next);
        }
        written += next;
    }
    fdatasync(file)?;
    // So that it is read from where it was written to, and not from memory.
    fadvise(file, 0, None, Advice::DontNeed)?;
    blocks(0..bytes, block.len(), |offset, length| Ok(pread(file, &mut block[..length], offset)?))
}

/// What there is too little of when `about` bytes are written.
fn short(file: &OwnedFd, about: u64) -> io::Result<Option<String>> {
    let Room { bytes, in_memory } = room(file)?;
    Ok(if bytes <= u128::from(about) {
        Some(format!("less than {KEPT_FREE} % of the file system are free, or will be"))
    } else if in_memory && node_memory() <= about {
        Some("the file system is in memory, and the node has no more to give".to_owned())
    } else {
        None
    })
}

fn blocks(
    bytes: Range<u64>,
    length: usize,
    mut each: impl FnMut(u64, usize) -> io::Result<usize>,
) -> io::Result<()> {
    let mut offset = bytes.start;
    while offset < bytes.end {
        let length = (length as u64).min(bytes.end - offset) as usize;
        match each(offset, length) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(done) => offset += done as u64,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_are_about_to_write_is_not_left_any_more() {
        let file = OwnedFd::from(tempfile::tempfile().unwrap());
        let (taking, mut block) = (Taking::default(), [1; 16]);
        let mut round = |taking| round(&file, 64, 32, taking, &mut block);
        round(Some(&taking)).unwrap();
        // All is taken, and nothing is about to be.
        let others = 1 << 62;
        assert_eq!(taking.begin(others), others);
        let error = round(Some(&taking)).unwrap_err();
        assert!(error.to_string().contains("of the file system are free"), "{error}");
        // What is there may be written again.
        round(None).unwrap();
    }

    #[test]
    fn of_all_workers_together_little_is_not_seen_by_others() {
        assert_eq!([1, 4, 64, 127].map(stretch), [TOGETHER, TOGETHER / 4, BLOCK, BLOCK]);
    }
}
