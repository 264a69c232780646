//! Holds memory that is really there: every page is written, and written again now and then.

use std::{
    hint::black_box,
    thread,
    time::{Duration, Instant},
};

use super::taking::Taking;

/// The node is looked at before every piece: others may take memory at the same time, stressors of ours in other
/// containers too, which were all allowed what was left before any of them began. They don't see what is looked at, but
/// not taken yet: of all workers together no more than this, as far as pieces can be so small.
const TOGETHER: u64 = 4 * LARGEST;
/// Taken at once.
const LARGEST: u64 = 1024 * 1024;
/// A look takes as long as filling this.
const SMALLEST: u64 = 64 * 1024;
/// No page is larger than it looks to whoever writes one byte in each of these.
const PAGE: usize = 4096;
/// What the kernel took away is brought back after this long.
const AGAIN: Duration = Duration::from_secs(5);

/// What each of so many workers takes at once.
pub fn piece(workers: u32) -> u64 {
    (TOGETHER / u64::from(workers)).clamp(SMALLEST, LARGEST)
}

/// Fills `bytes` within `ramp`, piece by piece, and holds them until the process ends; returns when there is no room for
/// the rest.
pub fn work(bytes: u64, ramp: Duration, piece: u64, taking: &Taking, room: impl Fn() -> u64) {
    let began = Instant::now();
    let mut held: Vec<Vec<u8>> = Vec::new();
    let mut filled = 0;
    while filled < bytes {
        let piece = piece.min(bytes - filled);
        let about = taking.begin(piece);
        if room() <= about {
            return;
        }
        // Not zeros: those would be pages that are shared.
        held.push(vec![1; piece as usize]);
        taking.done(piece);
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
    use std::sync::{
        Barrier,
        atomic::{AtomicU64, Ordering},
    };

    use super::*;

    #[test]
    fn the_last_memory_of_the_node_is_not_taken() {
        let looks = AtomicU64::new(0);
        let room = || if looks.fetch_add(1, Ordering::Relaxed) < 2 { u64::MAX } else { 0 };
        work(64 * LARGEST, Duration::ZERO, piece(1), &Taking::default(), room);
        assert_eq!(looks.into_inner(), 3);
    }

    /// Each would hold less than what was once taken without a look.
    #[test]
    fn many_workers_that_look_at_once_do_not_take_the_last_memory_either() {
        let (workers, looks, taking) = (64, AtomicU64::new(0), Taking::default());
        let together = Barrier::new(workers as usize);
        let room = || {
            if looks.fetch_add(1, Ordering::Relaxed) >= workers.into() {
                return 0;
            }
            together.wait();
            TOGETHER / 2
        };
        thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| work(15 * LARGEST, Duration::ZERO, piece(workers), &taking, room));
            }
        });
        // So many have been let through to a second look, and no byte more.
        assert_eq!((looks.into_inner() - u64::from(workers) + 1) * SMALLEST, TOGETHER / 2);
    }

    #[test]
    fn of_all_workers_together_little_is_not_seen_by_others() {
        assert_eq!([1, 4, 64].map(piece), [LARGEST, LARGEST, SMALLEST]);
        // Nor does a large number make a look out of every few pages.
        assert_eq!(piece(1024), SMALLEST);
    }
}
