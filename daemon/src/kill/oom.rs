//! How many processes of a container the kernel has killed for want of memory since a moment.
//! Reads only; where nothing counts them the number is 0.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::{cgroup::Target, usage::Meter};

/// The count from a moment on. What was seen stays, also when the cgroup has gone.
pub(super) struct OomKills {
    meter: Meter,
    before: u64,
    most: AtomicU64,
}

impl OomKills {
    /// Counts from now on.
    pub(super) fn begin(target: &Target) -> Self {
        let meter = Meter::new(target);
        let before = meter.oom_kills().unwrap_or(0);
        Self { meter, before, most: AtomicU64::new(0) }
    }

    /// How many there have been.
    pub(super) fn so_far(&self) -> u64 {
        let now = self.meter.oom_kills().map_or(0, |count| count.saturating_sub(self.before));
        self.most.fetch_max(now, Ordering::Relaxed).max(now)
    }
}
