//! Perf events with a program on each: software events scoped to one cgroup, and tracepoints.
//!
//! aya knows no perf events of cgroups, and opens those of tracepoints itself, which takes a right that no thread of the
//! daemon's but one has; so both are opened by [`super::opener`]. Those of a cgroup run their program only for tasks of it
//! and of those below it; hardware is not involved. Nothing is sampled and no buffer is mapped.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
};

use super::{
    EbpfError,
    opener::{CPU_CLOCK, Event, TYPE_SOFTWARE, open},
};

const TYPE_TRACEPOINT: u32 = 2;
const CONTEXT_SWITCHES: u64 = 3;
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
            let cgroup = Some(dir.as_raw_fd());
            let event = Event { kind: TYPE_SOFTWARE, config, sample_period, cpu, cgroup };
            events.push(open(event).and_then(|event| run(event, program)).map_err(failed(cpu))?);
        }
    }
    Ok(events)
}

/// Runs `program` at the tracepoint with this number, whoever comes by, on whatever CPU.
pub fn attach_to_tracepoint(number: u64, program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let event = Event { kind: TYPE_TRACEPOINT, config: number, sample_period: 0, cpu: 0, cgroup: None };
    run(open(event)?, program)
}

fn run(event: OwnedFd, program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
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
