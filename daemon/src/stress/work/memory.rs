//! Holds memory that is really there: every page is written, and written again now and then.

use std::{
    hint::black_box,
    thread,
    time::{Duration, Instant},
};

/// Taken at once.
const PIECE: u64 = 1024 * 1024;
/// After so many bytes the node is looked at: others may take memory at the same time, stressors of ours in other
/// containers too, which were all allowed what was left before any of them began.
const LOOKS_AFTER: u64 = 16 * PIECE;
/// No page is larger than it looks to whoever writes one byte in each of these.
const PAGE: usize = 4096;
/// What the kernel took away is brought back after this long.
const AGAIN: Duration = Duration::from_secs(5);

/// Fills `bytes` within `ramp`, and holds them until the process ends; returns when there is no room for the rest.
pub fn work(bytes: u64, ramp: Duration, has_room: impl Fn() -> bool) {
    let began = Instant::now();
    let mut held: Vec<Vec<u8>> = Vec::new();
    let mut filled = 0;
    while filled < bytes {
        let piece = PIECE.min(bytes - filled);
        if filled % LOOKS_AFTER == 0 && !has_room() {
            return;
        }
        // Not zeros: those would be pages that are shared.
        held.push(vec![1; piece as usize]);
        filled += piece;
        let due = ramp.mul_f64(filled as f64 / bytes as f64);
        if let Some(early) = due.checked_sub(began.elapsed()) {
            thread::sleep(early);
        }
    }
    loop {
        thread::sleep(AGAIN);
        for piece in &mut held {
            for byte in piece.iter_mut().step_by(PAGE) {
                *byte = black_box(byte.wrapping_add(1));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn the_last_memory_of_the_node_is_not_taken() {
        let looks = Cell::new(0);
        work(64 * LOOKS_AFTER, Duration::ZERO, || looks.replace(looks.get() + 1) < 2);
        assert_eq!(looks.get(), 3);
    }
}
