//! How soon a broken watch is tried again.
//!
//! kube's own goes up to 30 s, for the sake of big fleets. We are two, and whoever waits for a recovery shall
//! not wait half a minute after the API server has come back.

use std::time::Duration;

use kube_runtime::utils::Backoff;

/// 200 ms, doubled up to 3 s.
#[derive(Debug, Clone)]
pub struct Retry(Duration);

impl Retry {
    const FIRST: Duration = Duration::from_millis(200);
    const LONGEST: Duration = Duration::from_secs(3);

    /// From the beginning.
    pub fn new() -> Retry {
        Retry(Retry::FIRST)
    }
}

impl Default for Retry {
    fn default() -> Self {
        Retry::new()
    }
}

impl Iterator for Retry {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let now = self.0;
        self.0 = (now * 2).min(Retry::LONGEST);
        Some(now)
    }
}

impl Backoff for Retry {
    fn reset(&mut self) {
        self.0 = Retry::FIRST;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_never_gives_up_and_never_waits_long() {
        let mut retry = Retry::new();
        let total: Duration = retry.by_ref().take(5).sum();
        assert_eq!(total, Duration::from_millis(200 + 400 + 800 + 1600 + 3000));
        assert!(retry.by_ref().take(1000).all(|pause| pause == Retry::LONGEST));
        retry.reset();
        assert_eq!(retry.next(), Some(Retry::FIRST));
    }
}
