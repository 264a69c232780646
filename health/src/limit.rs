//! How many connections may be there at the same time: in all, and from one peer, so that one peer that holds all it
//! can get leaves room for the others. It counts and nothing else; who is refused gets no answer.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

/// Places for connections.
#[derive(Debug)]
pub struct Limit {
    total: usize,
    per_peer: usize,
    held: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// A place, held until it is dropped.
#[derive(Debug)]
pub struct Place {
    peer: IpAddr,
    held: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

impl Limit {
    /// So many in all, and so many from one peer.
    pub fn new(total: usize, per_peer: usize) -> Self {
        Self { total, per_peer, held: Arc::default() }
    }

    /// A place for a connection from `peer`; `None` when there is no more.
    pub fn place(&self, peer: IpAddr) -> Option<Place> {
        let peer = peer.to_canonical();
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let theirs = held.get(&peer).copied().unwrap_or(0);
        if theirs >= self.per_peer || held.values().sum::<usize>() >= self.total {
            return None;
        }
        held.insert(peer, theirs + 1);
        Some(Place { peer, held: Arc::clone(&self.held) })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(theirs) = held.get_mut(&self.peer) {
            *theirs -= 1;
            if *theirs == 0 {
                held.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greedy_peer_leaves_room_for_the_others() {
        let limit = Limit::new(3, 2);
        let peer = |text: &str| text.parse::<IpAddr>().unwrap();
        let one = limit.place(peer("10.0.0.1"));
        let two = limit.place(peer("::ffff:10.0.0.1"));
        assert!(one.is_some() && two.is_some() && limit.place(peer("10.0.0.1")).is_none());
        let other = limit.place(peer("10.0.0.2"));
        assert!(other.is_some() && limit.place(peer("10.0.0.3")).is_none());
        drop(one);
        assert!(limit.place(peer("10.0.0.3")).is_some() && limit.place(peer("10.0.0.1")).is_some());
        drop((two, other));
        assert!(limit.held.lock().unwrap().is_empty());
    }
}
