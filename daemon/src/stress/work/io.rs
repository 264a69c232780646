//! Writes a file from end to end, has it written out, and reads it back, again and again.

use std::{io, os::fd::OwnedFd};

use rustix::{
    fs::{Advice, fadvise, fdatasync},
    io::{pread, pwrite},
};

use crate::stress::files::{KEPT_FREE, room};

const BLOCK: u64 = 256 * 1024;
/// After so many bytes the file system is looked at: others may write to it at the same time, stressors of ours in other
/// containers too, which were all allowed what was left before any of them began.
const LOOKS_AFTER: u64 = 64 * BLOCK;

/// Works until something fails; returns what.
pub fn work(file: &OwnedFd, bytes: u64) -> io::Error {
    // Not zeros, which some file systems don't write.
    let mut block = vec![0xa5; BLOCK.min(bytes) as usize];
    loop {
        if let Err(error) = round(file, bytes, &mut block) {
            return error;
        }
    }
}

fn round(file: &OwnedFd, bytes: u64, block: &mut [u8]) -> io::Result<()> {
    blocks(bytes, block.len(), |offset, length| {
        if offset % LOOKS_AFTER == 0 && room(file)? == 0 {
            return Err(io::Error::other(format!("less than {KEPT_FREE} % of the file system are free")));
        }
        Ok(pwrite(file, &block[..length], offset)?)
    })?;
    fdatasync(file)?;
    // So that it is read from where it was written to, and not from memory.
    fadvise(file, 0, None, Advice::DontNeed)?;
    blocks(bytes, block.len(), |offset, length| Ok(pread(file, &mut block[..length], offset)?))
}

fn blocks(
    bytes: u64,
    length: usize,
    mut each: impl FnMut(u64, usize) -> io::Result<usize>,
) -> io::Result<()> {
    let mut offset = 0;
    while offset < bytes {
        let length = (length as u64).min(bytes - offset) as usize;
        match each(offset, length) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(done) => offset += done as u64,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
