//! The kernel's time since boot as wall time, with an offset measured when it is asked for.
//! Refuses to guess: it corrects nothing when the wall clock is set in between.

use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, clock_gettime};

/// Turns `CLOCK_BOOTTIME` nanoseconds into wall time.
#[derive(Clone, Copy, Debug)]
pub struct BootClock {
    booted: SystemTime,
}

impl BootClock {
    /// Measures the offset between the two clocks.
    pub fn measure() -> Self {
        let since_boot = clock_gettime(ClockId::Boottime);
        let now = SystemTime::now();
        let since_boot =
            Duration::new(since_boot.tv_sec.unsigned_abs(), since_boot.tv_nsec.unsigned_abs() as u32);
        Self { booted: now.checked_sub(since_boot).unwrap_or(SystemTime::UNIX_EPOCH) }
    }

    /// The wall time of `nanos` since boot.
    pub fn at(&self, nanos: u64) -> SystemTime {
        self.booted + Duration::from_nanos(nanos)
    }
}
