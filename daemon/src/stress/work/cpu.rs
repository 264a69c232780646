//! Uses a share of one CPU: as much as it should have used by now, and no more.

use std::{
    hint::black_box,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use rustix::time::{ClockId, clock_gettime};

/// One turn of work and rest.
const PERIOD: Duration = Duration::from_millis(20);
/// What others took is made up for, but not more than this: a share is meant for now.
const BEHIND: Duration = Duration::from_millis(250);
/// Millionths that are as good as all.
const WHOLE: u32 = 995_000;
/// Rounds between two looks at the clock: some tens of microseconds.
const ROUNDS: u32 = 20_000;

/// Works until the process ends, by the share that is set at the time, in millionths.
pub fn work(share: &AtomicU32) {
    loop {
        turns(share, share.load(Ordering::Relaxed));
    }
}

/// Works until the share is another.
fn turns(setting: &AtomicU32, set: u32) {
    let share = f64::from(set.max(1)) / 1e6;
    let (mut began, mut used_before) = (Instant::now(), used());
    while setting.load(Ordering::Relaxed) == set {
        // The whole of a CPU needs no clock.
        if set >= WHOLE {
            spin();
            continue;
        }
        // As long as what it has used was due for.
        let done = || Duration::from_secs_f64((used() - used_before).as_secs_f64() / share);
        let now = began.elapsed();
        // Before anything is made up for: frozen, it wakes far behind.
        if now.saturating_sub(done()) > BEHIND {
            (began, used_before) = (Instant::now(), used());
            continue;
        }
        while done() < now + PERIOD {
            spin();
        }
        thread::sleep(done().saturating_sub(began.elapsed()));
    }
}

fn spin() {
    for round in 0..ROUNDS {
        black_box(round);
    }
}

fn used() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}
