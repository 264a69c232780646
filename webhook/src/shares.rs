//! Something that there is only so much of, and of which one peer gets a part at most: anyone in the cluster can ask,
//! and nobody shall be able to keep it from the others.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// See the module.
#[derive(Debug)]
pub struct Shares {
    all: Arc<Semaphore>,
    /// How much a peer gets.
    each: usize,
    /// What is left to those that have some.
    peers: Mutex<HashMap<IpAddr, Arc<Semaphore>>>,
}

/// Some of it; given back when dropped.
#[derive(Debug)]
pub struct Share {
    own: OwnedSemaphorePermit,
    all: OwnedSemaphorePermit,
}

impl Shares {
    /// So much there is, and so much of it `each` peer gets.
    pub fn new(all: usize, each: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(all)), each, peers: Mutex::default() }
    }

    /// Wait for so much for `peer`; `None` never comes as long as nobody closes the semaphores, and nobody does.
    pub async fn take(&self, peer: IpAddr, amount: u32) -> Option<Share> {
        // Who waits for his own share holds nothing that others wait for.
        let own = self.of(peer).acquire_many_owned(amount).await.ok()?;
        let all = self.all.clone().acquire_many_owned(amount).await.ok()?;
        Some(Share { own, all })
    }

    /// One for `peer`, if there is one now.
    pub fn try_take(&self, peer: IpAddr) -> Option<Share> {
        let own = self.of(peer).try_acquire_owned().ok()?;
        let all = self.all.clone().try_acquire_owned().ok()?;
        Some(Share { own, all })
    }

    fn of(&self, peer: IpAddr) -> Arc<Semaphore> {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if !peers.contains_key(&peer) {
            // Whoever has or waits for some holds on to his.
            peers.retain(|_, own| Arc::strong_count(own) > 1);
        }
        peers.entry(peer).or_insert_with(|| Arc::new(Semaphore::new(self.each))).clone()
    }
}

impl Share {
    /// Both as one.
    pub fn merge(&mut self, more: Self) {
        let Self { own, all } = more;
        self.own.merge(own);
        self.all.merge(all);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_peer_leaves_something_to_the_others_and_gets_it_back() {
        let shares = Shares::new(4, 2);
        let [greedy, other] = [1, 2].map(|last| IpAddr::from([10, 0, 0, last]));
        let mut held = shares.take(greedy, 1).await.unwrap();
        held.merge(shares.take(greedy, 1).await.unwrap());
        assert!(shares.try_take(greedy).is_none());
        assert!(shares.try_take(other).is_some());
        assert_eq!(shares.peers.lock().unwrap().len(), 2);
        drop(held);
        assert!(shares.try_take(greedy).is_some());
        // Nobody is remembered for ever.
        assert!(shares.try_take(IpAddr::from([10, 0, 0, 3])).is_some());
        assert_eq!(shares.peers.lock().unwrap().len(), 1);
    }
}
