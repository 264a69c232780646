//! Tests that can have no other beside them: they take Squall apart, want a CPU for themselves, or measure a time that is
//! promised. All of them are in one program.

use std::sync::{Mutex, MutexGuard, PoisonError};

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Held by a test that no other may run beside.
pub struct Alone(#[expect(dead_code, reason = "held, not read")] MutexGuard<'static, ()>);

/// Waits for its turn.
pub fn alone() -> Alone {
    // A test that failed while it held the lock has nothing to say about the next.
    Alone(ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner))
}
