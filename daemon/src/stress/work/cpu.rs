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
