//! Uses a share of one CPU: as much as it should have used by now, and no more.

use std::{
    hint::black_box,
    thread,
    time::{Duration, Instant},
};

use rustix::time::{ClockId, clock_gettime};

/// One turn of work and rest.
const PERIOD: Duration = Duration::from_millis(20);
/// What others took is made up for, but not more than this: a share is meant for now.
const BEHIND: Duration = Duration::from_millis(250);
/// Rounds between two looks at the clock: some tens of microseconds.
const ROUNDS: u32 = 20_000;

/// Works until the process ends.
pub fn work(share: f64) {
    // The whole of a CPU needs no clock.
    if share >= 0.995 {
        loop {
            spin();
        }
    }
    let (mut began, mut used_before) = (Instant::now(), used());
    loop {
        let due = Duration::from_secs_f64((began.elapsed() + PERIOD).as_secs_f64() * share);
        let mut has = used() - used_before;
        while has < due {
            spin();
            has = used() - used_before;
        }
        // As long as that was due for.
        let until = Duration::from_secs_f64(has.as_secs_f64() / share);
        match until.checked_sub(began.elapsed()) {
            Some(rest) => thread::sleep(rest),
            None if began.elapsed() - until > BEHIND => {
                (began, used_before) = (Instant::now(), used());
            }
            None => {}
        }
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
