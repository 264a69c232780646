//! Tasks that do nothing, as many as are asked for, and as there is room for.

use std::thread;

use super::spawn;

/// After so many the node is looked at, its tasks and its memory: others may take them at the same time, stressors of ours
/// in other containers too, which were all allowed what was left before any of them began.
const LOOKS_AFTER: u32 = 64;

/// Starts them; `Err` says how many of them there are, and why there are no more.
pub fn start(count: u32, has_room: impl Fn() -> bool) -> Result<(), String> {
    // The first is this one.
    for number in 1..count {
        let short = |why: &str| format!("{number} of {count} tasks were to be had: {why}");
        if number % LOOKS_AFTER == 0 && !has_room() {
            return Err(short("the node has no more room"));
        }
        let parked = spawn(|| {
            loop {
                thread::park();
            }
        });
        parked.map_err(|error| short(&error.to_string()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_tasks_of_the_node_are_not_taken() {
        assert_eq!(start(3, || false), Ok(()));
        let short = start(1000, || false).unwrap_err();
        assert_eq!(short, "64 of 1000 tasks were to be had: the node has no more room");
    }
}
