//! What is hit now and by whom, as every turn of a term sees it: one book, written in the same moment in which targets
//! are chosen. Nothing is decided here, and nobody holds the book across an await.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use squall_api::ExperimentStatus;
use squall_model::policy::Refusal;
use squall_model::policy::ledger::{Hold, Ledger};
use squall_model::probe::Steady;
use tokio::sync::{Notify, watch};

/// The book. A new term begins with an empty one, which is [filled](Guard::fill) before anything is chosen.
#[derive(Clone)]
pub struct Guard {
    book: Arc<Mutex<Book>>,
    filled: Arc<watch::Sender<bool>>,
    changed: Arc<Notify>,
}

/// See [`Guard`].
#[derive(Default)]
pub struct Book {
    /// What experiments hold.
    pub ledger: Ledger,
    /// Of what is held, what is more than a policy allows: pods by UID.
    pub excess: BTreeMap<String, Refusal>,
    /// UIDs of the pods that are held by hand and were found to be within the limits.
    pub settled: BTreeSet<String>,
    /// How the probes of experiments stand, by the experiment's UID.
    pub steady: HashMap<String, Steady>,
    /// How what policies look at stands, by the policy's name.
    pub watched: HashMap<String, Steady>,
}

impl Default for Guard {
    fn default() -> Self {
        Self {
            book: Arc::default(),
            filled: Arc::new(watch::channel(false).0),
            changed: Arc::new(Notify::new()),
        }
    }
}

impl Guard {
    /// The book, for a decision.
    pub fn read(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enter what all these experiments hold, and let the choosing begin. What took its turn already is known better.
    pub fn fill(&self, experiments: impl IntoIterator<Item = (String, ExperimentStatus)>, now: Timestamp) {
        let mut book = self.read();
        for (uid, status) in experiments {
            if book.ledger.get(&uid).is_none() {
                book.ledger.set(&uid, Hold::of(&status, now));
            }
        }
        drop(book);
        self.filled.send_replace(true);
        self.changed.notify_one();
    }

    /// Wait until every experiment that there was has been entered.
    pub async fn filled(&self) {
        // An error means that the term is over, and with it whoever waits.
        let _ = self.filled.subscribe().wait_for(|filled| *filled).await;
    }

    /// Something that policies look at has changed.
    pub fn notify(&self) {
        self.changed.notify_one();
    }

    /// Wait until something has.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// The experiment is no more.
    pub fn forget(&self, uid: &str) {
        let mut book = self.read();
        book.ledger.forget(uid);
        book.steady.remove(uid);
        drop(book);
        self.notify();
    }
}

impl Book {
    /// What the experiment holds from now on; where it isn't known whether the last write came through, also what it
    /// held before. Whether that is news.
    pub fn enter(&mut self, uid: &str, hold: Hold, unsure: bool) -> bool {
        if self.ledger.get(uid) == Some(&hold) || (self.ledger.get(uid).is_none() && hold == Hold::default())
        {
            return false;
        }
        if unsure {
            self.ledger.add(uid, hold);
        } else {
            self.ledger.set(uid, hold);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
    use squall_api::status::{Target, TargetPhase};

    use super::*;

    fn status(uid: &str) -> ExperimentStatus {
        ExperimentStatus {
            selected_at: Some(MicroTime(Timestamp::UNIX_EPOCH)),
            targets: vec![Target { uid: uid.into(), phase: TargetPhase::Injected, ..Target::default() }],
            ..ExperimentStatus::default()
        }
    }

    #[tokio::test]
    async fn nothing_is_chosen_before_the_book_is_filled_and_what_is_newer_stays() {
        let guard = Guard::default();
        let now = Timestamp::UNIX_EPOCH;
        let early = tokio::time::timeout(std::time::Duration::from_millis(10), guard.filled());
        assert!(early.await.is_err());
        guard.read().enter("a", Hold::of(&status("new"), now), false);
        guard.fill([("a".to_owned(), status("old")), ("b".to_owned(), status("pod"))], now);
        guard.filled().await;
        let book = guard.read();
        assert!(book.ledger.get("a").unwrap().pods.contains_key("new"));
        assert!(book.ledger.get("b").unwrap().pods.contains_key("pod"));
    }

    #[test]
    fn what_may_have_been_written_is_held_beside_what_is_chosen_anew() {
        let mut book = Book::default();
        let now = Timestamp::UNIX_EPOCH;
        assert!(book.enter("a", Hold::of(&status("first"), now), false));
        assert!(book.enter("a", Hold::of(&status("second"), now), true));
        assert_eq!(book.ledger.get("a").unwrap().pods.len(), 2);
        assert!(book.enter("a", Hold::of(&status("second"), now), false));
        assert_eq!(book.ledger.get("a").unwrap().pods.len(), 1);
        assert!(!book.enter("a", Hold::of(&status("second"), now), false));
    }
}
