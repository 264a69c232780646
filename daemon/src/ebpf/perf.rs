//! Software perf events scoped to one cgroup, with a program on each.
//!
//! aya knows no perf events of cgroups, so the system call is our own. The program runs only for tasks of that cgroup
//! and of those below it; hardware is not involved. Nothing is sampled and no buffer is mapped.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    path::Path,
};

use super::EbpfError;

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

const TYPE_SOFTWARE: u32 = 1;
const CPU_CLOCK: u64 = 0;
const CONTEXT_SWITCHES: u64 = 3;
const FLAG_DISABLED: u64 = 1;
const OPEN_PID_CGROUP: libc::c_ulong = 1 << 2;
const OPEN_CLOEXEC: libc::c_ulong = 1 << 3;
const IOC_ENABLE: libc::c_ulong = 0x2400;
const IOC_SET_BPF: libc::c_ulong = 0x4004_2408;

/// Runs `program` for each millisecond of CPU time, and at each switch, of the tasks in `cgroup`, on every CPU.
pub fn attach(cgroup: &Path, program: BorrowedFd<'_>) -> Result<Vec<OwnedFd>, EbpfError> {
    let failed = |cpu| move |source| EbpfError::Perf { cgroup: cgroup.to_owned(), cpu, source };
    let dir = File::open(cgroup).map_err(failed(0))?;
    let mut events = Vec::new();
    for cpu in online_cpus().map_err(EbpfError::Cpus)? {
        // Switches come first: they alone reach a process that has just been forked and goes to sleep.
        for (config, sample_period) in [(CONTEXT_SWITCHES, 1), (CPU_CLOCK, 1_000_000)] {
            events.push(open(&dir, cpu, config, sample_period, program).map_err(failed(cpu))?);
        }
    }
    Ok(events)
}

fn open(
    dir: &File,
    cpu: u32,
    config: u64,
    sample_period: u64,
    program: BorrowedFd<'_>,
) -> io::Result<OwnedFd> {
    let attributes = Attributes {
        kind: TYPE_SOFTWARE,
        size: size_of::<Attributes>() as u32,
        config,
        sample_period,
        flags: FLAG_DISABLED,
        ..Attributes::default()
    };
    // SAFETY: the attributes outlive the call, and their size is in them.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attributes,
            dir.as_raw_fd(),
            cpu as libc::c_int,
            -1,
            OPEN_PID_CGROUP | OPEN_CLOEXEC,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor.
    let event = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    control(&event, IOC_SET_BPF, program.as_raw_fd())?;
    control(&event, IOC_ENABLE, 0)?;
    Ok(event)
}

fn control(event: &OwnedFd, request: libc::c_ulong, argument: i32) -> io::Result<()> {
    // SAFETY: both requests take a plain number.
    if unsafe { libc::ioctl(event.as_raw_fd(), request, argument) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn online_cpus() -> io::Result<Vec<u32>> {
    let text = fs::read_to_string("/sys/devices/system/cpu/online")?;
    parse_cpus(text.trim()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn parse_cpus(list: &str) -> Option<Vec<u32>> {
    let mut cpus = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        cpus.extend(first.parse::<u32>().ok()?..=last.parse().ok()?);
    }
    Some(cpus)
}

#[cfg(test)]
mod tests {
    use super::parse_cpus;

    #[test]
    fn lists_of_cpus() {
        assert_eq!(parse_cpus("0"), Some(vec![0]));
        assert_eq!(parse_cpus("0-2,5"), Some(vec![0, 1, 2, 5]));
        assert_eq!(parse_cpus(""), None);
    }
}
