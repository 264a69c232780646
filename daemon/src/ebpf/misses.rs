//! How often the kernel has left out a run of a program.
//!
//! Each program runs at most once at a time on a CPU. Newer kernels (7.2 does, 6.18 does not) preempt a task in the middle
//! of a tracepoint's program; until it goes on, that program is left out for every other task of this CPU, silently but
//! for a counter. Reads that counter; where a kernel has none (before 5.12) there are none to be told.

use std::os::fd::{AsRawFd, BorrowedFd};

/// `struct bpf_prog_info` up to the counter, which is the last of it here.
#[repr(C)]
struct Info {
    before: [u64; 26],
    recursion_misses: u64,
}

/// The part of `union bpf_attr` for this command.
#[repr(C)]
struct Ask {
    fd: u32,
    size: u32,
    info: u64,
}

const OBJ_GET_INFO_BY_FD: libc::c_int = 15;

/// How many runs of `program` have been left out, for whatever task, since it was loaded.
pub fn of(program: BorrowedFd<'_>) -> u64 {
    let mut info = Info { before: [0; 26], recursion_misses: 0 };
    let ask = Ask {
        fd: program.as_raw_fd().cast_unsigned(),
        size: size_of::<Info>() as u32,
        info: (&raw mut info).expose_provenance() as u64,
    };
    // SAFETY: the kernel reads as much as it is told of the question, and writes as much as that says to the answer;
    // both outlive the call. All pointers in the answer are 0, so it writes nowhere else.
    let done = unsafe { libc::syscall(libc::SYS_bpf, OBJ_GET_INFO_BY_FD, &raw const ask, size_of::<Ask>()) };
    if done == 0 { info.recursion_misses } else { 0 }
}
