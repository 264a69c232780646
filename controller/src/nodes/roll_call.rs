//! Finds out when every experiment has had its first turn of a term, and then calls [`Nodes::complete`].

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
};

use super::Nodes;

/// The roll of one term: make a new one for each.
pub struct RollCall {
    nodes: Nodes,
    roll: Mutex<Roll>,
}

#[derive(Default)]
struct Roll {
    /// Who hasn't had a turn yet. `None` until the list is known.
    missing: Option<HashSet<String>>,
    /// Who had one before the list was known.
    early: HashSet<String>,
}

impl RollCall {
    /// Nobody has been seen, and nobody is known to be missing.
    pub fn new(nodes: Nodes) -> RollCall {
        RollCall { nodes, roll: Mutex::default() }
    }

    /// The experiments, by UID, that were there when the term began. Once, when they are first listed.
    pub fn expect(&self, uids: impl IntoIterator<Item = String>) {
        let mut roll = self.roll.lock().unwrap_or_else(PoisonError::into_inner);
        let early = std::mem::take(&mut roll.early);
        let missing: HashSet<String> = uids.into_iter().filter(|uid| !early.contains(uid)).collect();
        let all = missing.is_empty();
        roll.missing = Some(missing);
        drop(roll);
        if all {
            self.nodes.complete();
        }
    }

    /// Only these are still there: nobody waits for a turn of another.
    pub fn keep(&self, there: &HashSet<String>) {
        let missing: Vec<String> = {
            let roll = self.roll.lock().unwrap_or_else(PoisonError::into_inner);
            roll.missing.iter().flatten().filter(|uid| !there.contains(*uid)).cloned().collect()
        };
        missing.iter().for_each(|uid| self.seen(uid));
    }

    /// This one has had a turn, whatever came of it, or is no more. As often as one likes.
    pub fn seen(&self, uid: &str) {
        let mut roll = self.roll.lock().unwrap_or_else(PoisonError::into_inner);
        let last = match &mut roll.missing {
            Some(missing) => missing.remove(uid) && missing.is_empty(),
            None => {
                roll.early.insert(uid.to_owned());
                false
            }
        };
        drop(roll);
        if last {
            self.nodes.complete();
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::{mpsc, watch};

    use super::*;
    use crate::lease::Leadership;

    /// The nodes of a leader, and what has to live for as long as its term.
    fn leading() -> (Nodes, impl Sized) {
        let (leads, leadership) = watch::channel(Leadership::Leader { term: 1 });
        let (no_identity, identity) = watch::channel(None);
        let (no_endpoints, endpoints) = watch::channel(None);
        let nodes = Nodes::with_endpoints(endpoints, identity, leadership, mpsc::unbounded_channel().0);
        (nodes, (leads, no_identity, no_endpoints))
    }

    #[tokio::test]
    async fn complete_comes_with_the_last_one_whatever_the_order() {
        let all = || ["a", "b"].map(str::to_owned);
        for order in [["expect", "a", "b"], ["a", "expect", "b"], ["b", "a", "expect"]] {
            let (nodes, _term) = leading();
            let roll = RollCall::new(nodes.clone());
            for (turn, step) in order.into_iter().enumerate() {
                assert!(!nodes.shared.leading().unwrap().complete, "{order:?}: too early at {turn}");
                match step {
                    "expect" => roll.expect(all()),
                    uid => roll.seen(uid),
                }
            }
            assert!(nodes.shared.leading().unwrap().complete, "{order:?}");
        }
    }

    #[tokio::test]
    async fn who_went_without_a_word_is_not_waited_for() {
        let (nodes, _term) = leading();
        let roll = RollCall::new(nodes.clone());
        roll.expect(["a", "b"].map(str::to_owned));
        roll.keep(&HashSet::from(["a".to_owned()]));
        assert!(!nodes.shared.leading().unwrap().complete, "a is still there");
        roll.keep(&HashSet::new());
        assert!(nodes.shared.leading().unwrap().complete);
    }

    #[tokio::test]
    async fn with_no_experiments_it_is_complete_at_once() {
        let (nodes, _term) = leading();
        RollCall::new(nodes.clone()).expect([]);
        assert!(nodes.shared.leading().unwrap().complete);
    }
}
