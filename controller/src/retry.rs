//! How soon a broken watch is tried again.

use std::time::Duration;

use backon::ExponentialBuilder;
use kube_runtime::watcher::ExponentialBackoff;

/// 200 ms, doubled up to 3 s, for as long as it takes.
///
/// kube's own goes up to 30 s, for the sake of big fleets. We are two, and whoever waits for a recovery shall not wait
/// half a minute after the API server has come back.
pub fn retry() -> ExponentialBackoff {
    let builder = ExponentialBuilder::new().with_min_delay(Duration::from_millis(200));
    builder.with_max_delay(Duration::from_secs(3)).without_max_times().into()
}

#[cfg(test)]
mod tests {
    use kube_runtime::utils::Backoff as _;

    use super::*;

    #[test]
    fn it_never_gives_up_and_never_waits_long() {
        let mut retry = retry();
        let total: Duration = retry.by_ref().take(5).sum();
        // It is multiplied by a float.
        assert_eq!(total.as_millis(), 200 + 400 + 800 + 1600 + 3000);
        assert!(retry.by_ref().take(1000).all(|pause| pause == Duration::from_secs(3)));
        retry.reset();
        assert_eq!(retry.next(), Some(Duration::from_millis(200)));
    }
}
