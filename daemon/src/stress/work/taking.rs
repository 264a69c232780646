//! What the workers of one stressor are about to take: looked at, but not taken yet, so that no look of another's shows it.

use std::sync::atomic::{AtomicU64, Ordering};

/// In bytes, of all workers together.
#[derive(Debug, Default)]
pub struct Taking(AtomicU64);

impl Taking {
    /// To be called before the look: so many bytes will be taken. Returns what all are about to take, which there has to
    /// be room for; what another takes before the look is counted twice then, and never not at all.
    pub fn begin(&self, bytes: u64) -> u64 {
        self.0.fetch_add(bytes, Ordering::Relaxed) + bytes
    }

    /// They are taken: whoever looks now sees it.
    pub fn done(&self, bytes: u64) {
        self.0.fetch_sub(bytes, Ordering::Relaxed);
    }
}
