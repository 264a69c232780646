//! The channels to the daemons: holds what each node shall have, and sees to it that its daemon knows.
//!
//! [`Nodes`] is a handle that never blocks; one task a node keeps the connection open, so that an order is on the
//! wire as soon as it is given. What goes over it is always the whole desired state of the node, with a
//! generation. While this replica doesn't lead, nothing is held and nothing is sent.
//! Nothing here knows of experiments, or decides what a node shall have.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use squall_api::grpc;
use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinSet,
    time::Instant,
};
use tracing::{debug, error};

use crate::{certs::Identity, lease::Leadership};

mod connect;
mod pods;
mod roll_call;
mod session;

pub use connect::ConnectError;
pub use roll_call::RollCall;

/// Where a node's daemon is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The daemon's pod, by UID: a new pod is a new daemon, whatever its address.
    pub pod_uid: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// Whether the kubelet calls it ready. It is asked anyway; this says when asking again is worth while.
    pub ready: bool,
}

/// Where every node's daemon is; `None` until that is known.
pub type Endpoints = Option<BTreeMap<String, Endpoint>>;

/// How it stands with the daemon of a node.
#[derive(Debug, Clone, PartialEq)]
pub enum Presence {
    /// There is no pod of the daemon on that node.
    NoDaemon,
    /// This replica has led for a moment only, and has not heard of it yet.
    Unheard,
    /// Not connected (yet).
    Connecting {
        /// Why the last try failed, if there was one.
        error: Option<String>,
    },
    /// Connected.
    Ready {
        /// What the daemon found on its node.
        readiness: grpc::Readiness,
        /// Since when.
        since: Timestamp,
        /// Why the daemon refuses the newest desired state, if it does.
        refusal: Option<String>,
    },
}

/// Wakes whoever cares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeEvent {
    /// There is a new report on this fault.
    Fault {
        /// On which node.
        node: String,
        /// Which fault.
        id: String,
    },
    /// The node's presence has changed.
    Presence {
        /// Which node.
        node: String,
    },
}

/// The handle.
#[derive(Clone)]
pub struct Nodes {
    shared: Arc<Shared>,
}

impl Nodes {
    /// Watch the daemons' pods, and keep a channel to each while leading.
    pub fn start(
        client: kube::Client,
        identity: watch::Receiver<Option<Identity>>,
        leadership: watch::Receiver<Leadership>,
        events: mpsc::UnboundedSender<NodeEvent>,
    ) -> Nodes {
        let (sender, endpoints) = watch::channel(None);
        tokio::spawn(pods::watch(client, leadership.clone(), sender));
        Nodes::with_endpoints(endpoints, identity, leadership, events)
    }

    /// The same, with the endpoints from elsewhere.
    pub fn with_endpoints(
        endpoints: watch::Receiver<Endpoints>,
        identity: watch::Receiver<Option<Identity>>,
        leadership: watch::Receiver<Leadership>,
        events: mpsc::UnboundedSender<NodeEvent>,
    ) -> Nodes {
        let state = Mutex::new(State::default());
        let shared = Arc::new(Shared { state, leadership: leadership.clone(), events });
        tokio::spawn(manage(shared.clone(), endpoints, identity, leadership));
        Nodes { shared }
    }

    /// Put `fault` into the node's desired state, or in the place of the one with its id. Sent at once.
    /// Setting what is set already does nothing. Dropped when this replica doesn't lead.
    ///
    /// It is renewed for as long as it is set; with `until` its daemon ends it then all the same, and without us.
    pub fn set(&self, node: &str, fault: grpc::Fault, until: Option<Timestamp>) {
        let Some(mut state) = self.shared.leading() else {
            return debug!(node, id = fault.id, "not leading: the order is dropped");
        };
        let node = state.nodes.entry(node.to_owned()).or_default();
        let listed = Listed { fault, until };
        if node.faults.get(&listed.fault.id) != Some(&listed) {
            node.faults.insert(listed.fault.id.clone(), listed);
            node.change();
        }
    }

    /// Take a fault out of the node's desired state: its daemon ends and forgets it.
    pub fn remove(&self, node: &str, id: &str) {
        let Some(mut state) = self.shared.leading() else { return };
        if let Some(node) = state.nodes.get_mut(node)
            && node.faults.remove(id).is_some()
        {
            node.reports.remove(id);
            node.change();
        }
    }

    /// The desired states are complete: every experiment that may have ordered something before this replica
    /// led has been looked at. Until then no daemon is sent a state that lacks a fault which it knows of, for
    /// that would end it, and listing it again later would carry it out twice. Call it once in each term.
    pub fn complete(&self) {
        let Some(mut state) = self.shared.leading() else { return };
        if !state.complete {
            state.complete = true;
            state.nodes.values().for_each(|node| node.wake.notify_one());
        }
    }

    /// The newest report on a fault.
    pub fn report(&self, node: &str, id: &str) -> Option<grpc::FaultReport> {
        self.shared.leading()?.nodes.get(node)?.reports.get(id).cloned()
    }

    /// How it stands with the node's daemon.
    pub fn presence(&self, node: &str) -> Presence {
        let Some(state) = self.shared.leading() else { return Presence::Unheard };
        match state.nodes.get(node).and_then(|node| node.presence.clone()) {
            None if state.listed => Presence::NoDaemon,
            None | Some(Presence::Connecting { error: None }) if state.is_young() => Presence::Unheard,
            None => Presence::Connecting { error: None },
            Some(presence) => presence,
        }
    }

    /// Whether this replica has led for a moment only, and can't have connected to all of them yet.
    pub fn are_new(&self) -> bool {
        self.shared.leading().is_none_or(|state| state.is_young())
    }

    /// How many daemons there are of each sort.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        let Some(state) = self.shared.leading() else { return counts };
        for node in state.nodes.values() {
            match &node.presence {
                Some(Presence::Ready { readiness, since: _, refusal }) => {
                    counts.ready += 1;
                    counts.refusing += usize::from(refusal.is_some());
                    counts.without_ebpf += usize::from(!readiness.ebpf_error.is_empty());
                }
                Some(Presence::Connecting { .. } | Presence::Unheard) => counts.connecting += 1,
                Some(Presence::NoDaemon) | None => {}
            }
        }
        counts
    }
}

/// How many daemons there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connected.
    pub ready: usize,
    /// There, but not connected (yet).
    pub connecting: usize,
    /// Of those that are connected, who refuses what it is ordered.
    pub refusing: usize,
    /// Of those that are connected, whose node has no eBPF.
    pub without_ebpf: usize,
}

/// A fault that a node shall have.
#[derive(PartialEq)]
struct Listed {
    fault: grpc::Fault,
    until: Option<Timestamp>,
}

/// A fault that isn't renewed for so long its daemon ends by itself.
const LEASE: SignedDuration = SignedDuration::from_secs(60);
/// No experiment lasts for longer than a daemon takes; a clock that was put back, or a status that somebody else wrote, may
/// say so.
const LONGEST: SignedDuration = SignedDuration::from_secs(grpc::MAX_TTL.as_secs().cast_signed());

impl Listed {
    /// As it is sent at `now`.
    fn at(&self, now: Timestamp) -> grpc::Fault {
        let left = |until: Timestamp| until.duration_since(now).clamp(SignedDuration::ZERO, LONGEST);
        let ttl = self.until.map_or(LEASE, left);
        let ttl = prost_types::Duration { seconds: ttl.as_secs(), nanos: ttl.subsec_nanos() };
        grpc::Fault { ttl: Some(ttl), ..self.fault.clone() }
    }
}

#[derive(Default)]
struct Node {
    faults: BTreeMap<String, Listed>,
    /// Rises with every change of `faults`.
    version: u64,
    reports: HashMap<String, grpc::FaultReport>,
    /// The faults that the daemon knew of when it was first connected in this term.
    journal: Option<HashSet<String>>,
    /// `None` while there is no daemon.
    presence: Option<Presence>,
    wake: Arc<Notify>,
}

/// So long after a term began it is no news any more that a daemon has not been heard of.
const YOUNG: Duration = Duration::from_secs(10);

impl State {
    fn is_young(&self) -> bool {
        self.began.is_some_and(|at| at.elapsed() < YOUNG)
    }
}

impl Node {
    /// Whether sending the state as it is ends or forgets nothing that may still be wanted.
    fn is_whole(&self) -> bool {
        self.journal.as_ref().is_some_and(|ids| ids.iter().all(|id| self.faults.contains_key(id)))
    }

    fn change(&mut self) {
        self.version += 1;
        self.wake.notify_one();
    }
}

#[derive(Default)]
struct State {
    term: Option<u64>,
    /// When this replica began to lead in it.
    began: Option<Instant>,
    complete: bool,
    /// The daemons' pods are known.
    listed: bool,
    nodes: HashMap<String, Node>,
}

/// What the handle and the tasks share. The lock is held for moments, never across an await.
struct Shared {
    state: Mutex<State>,
    leadership: watch::Receiver<Leadership>,
    events: mpsc::UnboundedSender<NodeEvent>,
}

impl Shared {
    fn term(&self) -> Option<u64> {
        match *self.leadership.borrow() {
            Leadership::Leader { term } => Some(term),
            Leadership::Follower => None,
        }
    }

    /// The state of this term; of another one nothing is left. `None` when this replica doesn't lead.
    fn leading(&self) -> Option<MutexGuard<'_, State>> {
        let term = self.term();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.term != term {
            *state = State { term, began: term.map(|_| Instant::now()), ..State::default() };
        }
        term.map(|_| state)
    }

    /// As [`Shared::leading`], if it is still the term that the caller works for.
    fn in_term(&self, term: u64) -> Option<MutexGuard<'_, State>> {
        self.leading().filter(|state| state.term == Some(term))
    }

    /// The node's desired state, if it may be sent.
    fn desired(&self, term: u64, node: &str) -> Option<Vec<grpc::Fault>> {
        let state = self.in_term(term)?;
        let node = state.nodes.get(node).filter(|node| state.complete || node.is_whole())?;
        let now = Timestamp::now();
        Some(node.faults.values().map(|listed| listed.at(now)).collect())
    }

    /// The version of the node's desired state, if it may be sent.
    fn version(&self, term: u64, node: &str) -> Option<u64> {
        let state = self.in_term(term)?;
        let node = state.nodes.get(node).filter(|node| state.complete || node.is_whole())?;
        Some(node.version)
    }

    /// What the daemon knows of, as it told on connecting.
    fn set_journal(&self, term: u64, node: &str, reports: &[grpc::FaultReport]) {
        let Some(mut state) = self.in_term(term) else { return };
        let node = state.nodes.entry(node.to_owned()).or_default();
        node.journal.get_or_insert_with(|| reports.iter().map(|report| report.id.clone()).collect());
    }

    fn waker(&self, term: u64, node: &str) -> Option<Arc<Notify>> {
        Some(self.in_term(term)?.nodes.entry(node.to_owned()).or_default().wake.clone())
    }

    fn set_presence(&self, term: u64, node: &str, presence: Option<Presence>) {
        let Some(mut state) = self.in_term(term) else { return };
        let entry = state.nodes.entry(node.to_owned()).or_default();
        if entry.presence != presence {
            entry.presence = presence;
            let _ = self.events.send(NodeEvent::Presence { node: node.to_owned() });
        }
    }

    fn set_refusal(&self, term: u64, node: &str, why: Option<String>) {
        let Some(mut state) = self.in_term(term) else { return };
        if let Some(Presence::Ready { refusal, .. }) =
            state.nodes.get_mut(node).and_then(|node| node.presence.as_mut())
            && *refusal != why
        {
            *refusal = why;
            let _ = self.events.send(NodeEvent::Presence { node: node.to_owned() });
        }
    }

    fn add_report(&self, term: u64, node: &str, report: grpc::FaultReport) {
        let Some(mut state) = self.in_term(term) else { return };
        let complete = state.complete;
        let entry = state.nodes.entry(node.to_owned()).or_default();
        // Before the states are complete, a report may be on a fault that is only about to be set again.
        if complete && !entry.faults.contains_key(&report.id) {
            return;
        }
        if entry.reports.get(&report.id) != Some(&report) {
            let id = report.id.clone();
            entry.reports.insert(id.clone(), report);
            let _ = self.events.send(NodeEvent::Fault { node: node.to_owned(), id });
        }
    }

    /// The daemon has the whole state: reports on anything else are of no use any more.
    fn prune(&self, term: u64, node: &str) {
        let Some(mut state) = self.in_term(term) else { return };
        if let Some(Node { faults, reports, .. }) = state.nodes.get_mut(node) {
            reports.retain(|id, _| faults.contains_key(id));
        }
    }

    /// Which daemons there are. Each has a presence from then on: or its node would be without a daemon until its task runs.
    fn set_listed(&self, term: u64, endpoints: &Endpoints) {
        let Some(mut state) = self.in_term(term) else { return };
        state.listed = endpoints.is_some();
        for node in endpoints.iter().flat_map(BTreeMap::keys) {
            let entry = state.nodes.entry(node.clone()).or_default();
            if entry.presence.is_none() {
                entry.presence = Some(Presence::Connecting { error: None });
                let _ = self.events.send(NodeEvent::Presence { node: node.clone() });
            }
        }
    }
}

/// One task a daemon, for each term anew.
async fn manage(
    shared: Arc<Shared>,
    mut endpoints: watch::Receiver<Endpoints>,
    identity: watch::Receiver<Option<Identity>>,
    mut leadership: watch::Receiver<Leadership>,
) {
    loop {
        let seen = *leadership.borrow_and_update();
        drop(shared.leading());
        let Leadership::Leader { term } = seen else {
            if leadership.changed().await.is_err() {
                return;
            }
            continue;
        };
        let mut running: HashMap<String, watch::Sender<Endpoint>> = HashMap::new();
        let mut tasks: JoinSet<String> = JoinSet::new();
        endpoints.mark_changed();
        let alive = loop {
            tokio::select! {
                changed = leadership.changed() => break changed.is_ok(),
                changed = endpoints.changed() => {
                    if changed.is_err() {
                        break false;
                    }
                    let wanted = endpoints.borrow_and_update().clone();
                    shared.set_listed(term, &wanted);
                    let wanted = wanted.unwrap_or_default();
                    running.retain(|node, _| wanted.contains_key(node));
                    for (node, endpoint) in wanted {
                        if let Some(sender) = running.get(&node) {
                            sender.send_if_modified(|old| std::mem::replace(old, endpoint.clone()) != endpoint);
                            continue;
                        }
                        let (sender, receiver) = watch::channel(endpoint);
                        running.insert(node.clone(), sender);
                        let task = session::Task::new(shared.clone(), term, node.clone(), receiver, identity.clone());
                        tasks.spawn(async move {
                            // Ends when its endpoint is taken away.
                            task.run().await;
                            node
                        });
                    }
                }
                Some(ended) = tasks.join_next() => match ended {
                    Ok(node) => debug!(node, "the daemon's pod is gone"),
                    Err(error) => {
                        error!(%error, "a task for a daemon has died: starting all of this term anew");
                        break true;
                    }
                },
            }
        };
        // Only when none of them can send any more.
        tasks.shutdown().await;
        if !alive {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
