//! Questions to the file systems of containers, each asked by a thread of its own: one whose server is dead, or whose
//! program will not answer, keeps whoever asks it, for ever if need be.
//!
//! The threads that block are one pool, which everything of the daemon shares, putting back too. So only a few of them may
//! be kept at a time; what would be one more is refused, with what can be done about it.

use std::time::Duration;

use tokio::{sync::Semaphore, task::spawn_blocking, time::timeout};

/// How many may be kept.
const THREADS: usize = 16;
/// Who answers does so soon.
const FREE_WITHIN: Duration = Duration::from_secs(3);

/// The question was not asked.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unasked {
    /// All threads are kept.
    #[error(
        "{THREADS} threads of this node's daemon wait for file systems of containers that do not answer, and no more are \
         risked; end those containers, unmount what is dead (umount -f), or restart the daemon"
    )]
    Busy,
    /// It panicked, or the daemon ends.
    #[error("a file system of the container was not asked: {0}")]
    Ended(String),
}

static FREE: Semaphore = Semaphore::const_new(THREADS);

/// Asks, if a thread is free soon. Whoever gives up waiting leaves the thread where it is.
pub async fn ask<T: Send + 'static>(question: impl FnOnce() -> T + Send + 'static) -> Result<T, Unasked> {
    ask_with(&FREE, FREE_WITHIN, question).await
}

async fn ask_with<T: Send + 'static>(
    free: &'static Semaphore,
    within: Duration,
    question: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Unasked> {
    // Nobody closes it.
    let Ok(Ok(permit)) = timeout(within, free.acquire()).await else { return Err(Unasked::Busy) };
    let asked = spawn_blocking(move || {
        let answer = question();
        // Only now, whether anybody still waits or not.
        drop(permit);
        answer
    });
    asked.await.map_err(|error| Unasked::Ended(error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn only_some_threads_are_kept_and_each_is_free_again_when_it_is_answered() {
        static TWO: Semaphore = Semaphore::const_new(2);
        const LONG: Duration = Duration::from_secs(60);
        let (answers, kept): (Vec<_>, Vec<_>) = (0..2)
            .map(|_| {
                let (answer, hangs) = mpsc::channel::<()>();
                (answer, ask_with(&TWO, LONG, move || hangs.recv().is_err()))
            })
            .unzip();
        // Nobody waits for them any more, and still they are kept.
        for asking in kept {
            assert!(timeout(Duration::from_millis(50), asking).await.is_err());
        }
        let one_more = ask_with(&TWO, Duration::from_millis(50), || ()).await.unwrap_err();
        assert_eq!(one_more, Unasked::Busy);
        drop(answers);
        assert_eq!(ask_with(&TWO, LONG, || 7).await, Ok(7));
    }
}
