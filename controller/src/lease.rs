//! Which replica leads: an election on one Lease.
//!
//! Every write is preconditioned by the resourceVersion that was seen. Whether another's lease has run out is
//! judged by how long *this* process has seen it unchanged, never by comparing clocks. A leader that could
//! not renew in time steps down by its own clock, whether or not the API server answers.
//! What a leader does is not decided here.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, future};
use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{Api, Client, api::PostParams};
use kube_runtime::{WatchStreamExt, watcher};
use squall_api::names;
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::{Instant, sleep_until, timeout_at},
};
use tracing::{info, warn};

/// How long a lease that isn't renewed still counts. A halt is carried out within 10 s of it also if the leader has
/// died: what remains is for its successor's first look.
pub const DURATION: Duration = Duration::from_secs(8);
/// How long a leader may go without a renewal. Whoever takes over later than it is not met by a leader that still acts.
pub const RENEW_DEADLINE: Duration = Duration::from_secs(6);
/// How often a leader renews, and tries again after a failure.
pub const RETRY: Duration = Duration::from_millis(1500);
/// The longest that a holder's own idea of its lease's duration is believed.
const MAX_DURATION: Duration = Duration::from_secs(60);

/// Whether this replica leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leadership {
    /// Another one does, or none.
    Follower,
    /// This one does.
    Leader {
        /// The Lease's transitions after it was taken: higher than that of every leader before.
        term: u64,
    },
}

/// What to do about the lease as it was seen.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// There is none: create it.
    Create(Box<LeaseSpec>),
    /// It is free, has run out, or is that of an earlier life of ours: take it.
    Take(Box<LeaseSpec>),
    /// Someone holds it: look again when it changes, at the latest then.
    Wait(Instant),
}

/// Decide about a lease that has been seen unchanged since `since`.
pub fn decide(lease: Option<&Lease>, since: Instant, now: Instant, wall: Timestamp, me: &str) -> Decision {
    let Some(lease) = lease else { return Decision::Create(Box::new(spec(me, 1, wall, wall))) };
    let held = lease.spec.clone().unwrap_or_default();
    let holder = held.holder_identity.as_deref().unwrap_or_default();
    if !holder.is_empty() && holder != me {
        let seconds = held.lease_duration_seconds.and_then(|s| u64::try_from(s).ok());
        let lasts = seconds.map_or(DURATION, Duration::from_secs).min(MAX_DURATION);
        if now < since + lasts {
            return Decision::Wait(since + lasts);
        }
    }
    // A new life of the same pod is a new leader, too: its predecessor's orders have to lose against its own.
    let transitions = held.lease_transitions.unwrap_or(0).max(0).saturating_add(1);
    Decision::Take(Box::new(spec(me, transitions, wall, wall)))
}

/// A running election.
pub struct Election {
    /// Whether this replica leads now.
    pub leadership: watch::Receiver<Leadership>,
    stop: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Election {
    /// Stand for election as `me`, the pod's name.
    pub fn start(client: Client, me: String) -> Election {
        let (sender, leadership) = watch::channel(Leadership::Follower);
        let stop = Arc::new(Notify::new());
        let candidate = Candidate { api: Api::namespaced(client, names::NAMESPACE), me, sender };
        let task = tokio::spawn(candidate.run(stop.clone()));
        Election { leadership, stop, task }
    }

    /// Step down, and give the lease back so that another takes over at once. For SIGTERM.
    pub async fn release(self) {
        self.stop.notify_one();
        if let Err(error) = self.task.await {
            warn!(%error, "the election's task has died");
        }
    }
}

struct Candidate {
    api: Api<Lease>,
    me: String,
    sender: watch::Sender<Leadership>,
}

/// A lease that is ours, and until when.
struct Held {
    lease: Lease,
    deadline: Instant,
}

impl Candidate {
    async fn run(self, stop: Arc<Notify>) {
        let stopped = stop.notified();
        tokio::pin!(stopped);
        loop {
            let held = match future::select(stopped.as_mut(), Box::pin(self.follow())).await {
                future::Either::Left(_) => return,
                future::Either::Right((held, _)) => held,
            };
            let term = term(&held.lease);
            info!(term, "leading");
            self.sender.send_replace(Leadership::Leader { term });
            let mut held = held;
            let stopping = {
                let lead = self.lead(&mut held);
                tokio::pin!(lead);
                matches!(future::select(stopped.as_mut(), lead).await, future::Either::Left(_))
            };
            self.sender.send_replace(Leadership::Follower);
            if stopping {
                self.give_back(held).await;
                return;
            }
            info!(term, "no longer leading");
        }
    }

    /// Until the lease is ours.
    async fn follow(&self) -> Held {
        'watching: loop {
            let stream = watcher::watch_object(self.api.clone(), names::LEASE).backoff(crate::retry::retry());
            tokio::pin!(stream);
            let mut seen: Option<(Option<Lease>, Instant)> = None;
            let mut retry_at: Option<Instant> = None;
            loop {
                let wake = match &seen {
                    None => None,
                    Some((lease, since)) => {
                        match decide(lease.as_ref(), *since, Instant::now(), Timestamp::now(), &self.me) {
                            Decision::Wait(until) => Some(until),
                            decision @ (Decision::Create(_) | Decision::Take(_)) => {
                                if retry_at.is_none_or(|at| at <= Instant::now()) {
                                    if let Some(held) = self.take(lease.as_ref(), decision).await {
                                        return held;
                                    }
                                    retry_at = Some(Instant::now() + RETRY);
                                }
                                retry_at
                            }
                        }
                    }
                };
                let timer = async {
                    match wake {
                        Some(at) => sleep_until(at).await,
                        None => future::pending().await,
                    }
                };
                tokio::select! {
                    event = stream.next() => match event {
                        Some(Ok(lease)) => {
                            // A relist tells the same again: that is no sign of life.
                            let same = seen.as_ref().is_some_and(|(old, _)| version(old) == version(&lease));
                            if !same {
                                seen = Some((lease, Instant::now()));
                                retry_at = None;
                            }
                        }
                        Some(Err(error)) => warn!(%error, "can't watch the Lease; trying again"),
                        None => continue 'watching,
                    },
                    () = timer => {}
                }
            }
        }
    }

    /// One try to write the lease as ours.
    async fn take(&self, seen: Option<&Lease>, decision: Decision) -> Option<Held> {
        let sent = Instant::now();
        let wanted = match decision {
            Decision::Create(spec) => {
                let mut lease = Lease { spec: Some(*spec), ..Lease::default() };
                lease.metadata.name = Some(names::LEASE.into());
                lease.metadata.labels =
                    Some([("app.kubernetes.io/managed-by".to_owned(), "squall".to_owned())].into());
                lease
            }
            Decision::Take(spec) => Lease { spec: Some(*spec), ..seen?.clone() },
            Decision::Wait(_) => return None,
        };
        let write = async {
            match seen {
                None => self.api.create(&PostParams::default(), &wanted).await,
                Some(_) => self.api.replace(names::LEASE, &PostParams::default(), &wanted).await,
            }
        };
        match timeout_at(sent + RENEW_DEADLINE, write).await {
            Ok(Ok(lease)) => Some(Held { lease, deadline: sent + RENEW_DEADLINE }),
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => None,
            Ok(Err(error)) => {
                warn!(%error, "can't take the Lease; trying again");
                None
            }
            Err(_) => {
                warn!("taking the Lease got no answer; trying again");
                None
            }
        }
    }

    /// Renew until it is lost.
    async fn lead(&self, held: &mut Held) {
        let mut next = Instant::now() + RETRY;
        loop {
            // Never beyond the deadline, be the API server there or not.
            sleep_until(next.min(held.deadline)).await;
            if Instant::now() >= held.deadline {
                warn!("the Lease could not be renewed for {RENEW_DEADLINE:?}: stepping down");
                return;
            }
            let sent = Instant::now();
            next = sent + RETRY;
            let mut wanted = held.lease.clone();
            if let Some(spec) = &mut wanted.spec {
                spec.renew_time = Some(MicroTime(Timestamp::now()));
            }
            let params = PostParams::default();
            let write = self.api.replace(names::LEASE, &params, &wanted);
            match timeout_at(held.deadline, write).await {
                Ok(Ok(lease)) => *held = Held { lease, deadline: sent + RENEW_DEADLINE },
                Ok(Err(kube::Error::Api(status))) if status.code == 409 || status.code == 404 => {
                    match timeout_at(held.deadline, self.api.get_opt(names::LEASE)).await {
                        // Somebody else changed something about it, or our last write came through after all.
                        Ok(Ok(Some(lease))) if self.is_mine(&lease, &held.lease) => {
                            held.lease = lease;
                            next = Instant::now();
                        }
                        Ok(Ok(_)) => {
                            warn!("the Lease was taken away or deleted: stepping down");
                            return;
                        }
                        Ok(Err(error)) => warn!(%error, "can't read the Lease; trying again"),
                        Err(_) => {}
                    }
                }
                Ok(Err(error)) => warn!(%error, "can't renew the Lease; trying again"),
                Err(_) => {}
            }
        }
    }

    fn is_mine(&self, lease: &Lease, mine: &Lease) -> bool {
        let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref());
        holder == Some(self.me.as_str())
            && term(lease) == term(mine)
            && lease.metadata.uid == mine.metadata.uid
    }

    async fn give_back(&self, held: Held) {
        let mut wanted = held.lease;
        if let Some(spec) = &mut wanted.spec {
            spec.holder_identity = None;
            spec.lease_duration_seconds = Some(1);
            spec.renew_time = Some(MicroTime(Timestamp::now()));
        }
        let params = PostParams::default();
        let write = self.api.replace(names::LEASE, &params, &wanted);
        let limit = held.deadline.min(Instant::now() + Duration::from_secs(3));
        match timeout_at(limit, write).await {
            Ok(Ok(_)) => info!("gave the Lease back"),
            Ok(Err(error)) => warn!(%error, "can't give the Lease back; it runs out by itself"),
            Err(_) => warn!("giving the Lease back got no answer; it runs out by itself"),
        }
    }
}

fn spec(me: &str, transitions: i32, acquired: Timestamp, renewed: Timestamp) -> LeaseSpec {
    LeaseSpec {
        holder_identity: Some(me.to_owned()),
        lease_duration_seconds: Some(DURATION.as_secs() as i32),
        lease_transitions: Some(transitions),
        acquire_time: Some(MicroTime(acquired)),
        renew_time: Some(MicroTime(renewed)),
        ..LeaseSpec::default()
    }
}

fn term(lease: &Lease) -> u64 {
    let transitions = lease.spec.as_ref().and_then(|spec| spec.lease_transitions);
    transitions.and_then(|n| u64::try_from(n).ok()).unwrap_or(0)
}

fn version(lease: &Option<Lease>) -> Option<&str> {
    lease.as_ref().and_then(|lease| lease.metadata.resource_version.as_deref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_leader_is_replaced_in_time_and_a_living_one_steps_down_before() {
        assert!(DURATION <= Duration::from_secs(8));
        // The Lease says it in whole seconds.
        assert_eq!(DURATION.subsec_nanos(), 0);
        assert!(RENEW_DEADLINE + RETRY < DURATION && 3 * RETRY < RENEW_DEADLINE);
    }

    fn lease(holder: &str, transitions: i32) -> Lease {
        let wall = Timestamp::UNIX_EPOCH;
        Lease { spec: Some(spec(holder, transitions, wall, wall)), ..Lease::default() }
    }

    fn look(lease: Option<&Lease>, unchanged: Duration) -> Decision {
        let since = Instant::now();
        decide(lease, since, since + unchanged, Timestamp::UNIX_EPOCH, "me")
    }

    fn transitions(decision: Decision) -> i32 {
        match decision {
            Decision::Create(spec) | Decision::Take(spec) => spec.lease_transitions.unwrap(),
            Decision::Wait(_) => panic!("waits"),
        }
    }

    #[test]
    fn none_is_created() {
        let decision = look(None, Duration::ZERO);
        assert!(matches!(decision, Decision::Create(_)));
        assert_eq!(transitions(decision), 1);
    }

    #[test]
    fn anothers_is_waited_for_however_old_its_times_are() {
        let other = lease("other", 7);
        assert!(matches!(look(Some(&other), Duration::ZERO), Decision::Wait(_)));
        assert!(matches!(look(Some(&other), DURATION - Duration::from_millis(1)), Decision::Wait(_)));
        assert_eq!(transitions(look(Some(&other), DURATION)), 8);
    }

    #[test]
    fn a_free_one_and_our_own_are_taken_at_once_with_a_higher_term() {
        assert_eq!(transitions(look(Some(&lease("", 7)), Duration::ZERO)), 8);
        assert_eq!(transitions(look(Some(&lease("me", 7)), Duration::ZERO)), 8);
        assert_eq!(transitions(look(Some(&Lease::default()), Duration::ZERO)), 1);
    }

    #[test]
    fn nonsense_in_a_lease_locks_nobody_out() {
        let mut odd = lease("other", -5);
        odd.spec.as_mut().unwrap().lease_duration_seconds = Some(i32::MAX);
        assert_eq!(transitions(look(Some(&odd), MAX_DURATION)), 1);
        odd.spec.as_mut().unwrap().lease_duration_seconds = Some(-1);
        assert!(matches!(look(Some(&odd), Duration::ZERO), Decision::Wait(_)));
        assert_eq!(transitions(look(Some(&odd), DURATION)), 1);
    }
}
