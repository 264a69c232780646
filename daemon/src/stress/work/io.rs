//! Writes a file from end to end, has it written out, and reads it back, again and again.

use std::{io, os::fd::OwnedFd};

use rustix::{
    fs::{Advice, fadvise, fdatasync},
    io::{pread, pwrite},
};

const BLOCK: u64 = 256 * 1024;

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
    blocks(bytes, block.len(), |offset, length| pwrite(file, &block[..length], offset))?;
    fdatasync(file)?;
    // So that it is read from where it was written to, and not from memory.
    fadvise(file, 0, None, Advice::DontNeed)?;
    blocks(bytes, block.len(), |offset, length| pread(file, &mut block[..length], offset))
}

fn blocks(
    bytes: u64,
    length: usize,
    mut each: impl FnMut(u64, usize) -> rustix::io::Result<usize>,
) -> io::Result<()> {
    let mut offset = 0;
    while offset < bytes {
        let length = (length as u64).min(bytes - offset) as usize;
        match each(offset, length) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(done) => offset += done as u64,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}
