//! One daemon, for one term: connect, read what it has, send what it shall have, hear what comes of it; again.

use std::{pin::pin, sync::Arc, time::Duration};

use futures::{StreamExt, future, stream::FuturesUnordered};
use jiff::Timestamp;
use squall_api::grpc::{self, daemon_client::DaemonClient, node_report::Report};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until, timeout},
};
use tonic::{Code, Status, Streaming, transport::Channel};
use tracing::{debug, info, warn};

use super::{Endpoint, Presence, Shared, connect::connect};
use crate::{certs::Identity, lease};

const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A daemon that doesn't answer an order in this time is taken for gone.
const APPLY_TIMEOUT: Duration = Duration::from_secs(5);
/// Well within the 60 s after which a fault that isn't renewed ends by itself.
const RENEW: Duration = Duration::from_secs(20);
/// How soon a state that the daemon refused is sent again, unless it changes.
const REFUSED: Duration = Duration::from_secs(5);
/// Orders under way at a time. An order doesn't wait for the answer to the one before: it is whole.
const UNDER_WAY: usize = 4;
/// A snapshot tells of every fault that the journal lists.
const MESSAGE: usize = 32 * 1024 * 1024;

/// Ordered by term, then by counter.
type Generation = (u64, u64);

/// Why a session ended.
enum End {
    /// The endpoint was taken away: there is no daemon any more.
    Gone,
    /// Connect again at once: another pod, other certificates.
    Renew,
    /// Read the daemon's generation again.
    Reread,
    /// The daemon has orders that aren't ours.
    Foreign(Generation),
    /// It broke.
    Broken(String),
}

/// The task of one node.
pub struct Task {
    shared: Arc<Shared>,
    term: u64,
    node: String,
    endpoint: watch::Receiver<Endpoint>,
    identity: watch::Receiver<Option<Identity>>,
    /// The newest generation that was sent in this term.
    newest: Option<Generation>,
    pause: Duration,
    /// When the last connection was made, if it is not accounted for yet.
    connected: Option<Instant>,
}

impl Task {
    pub fn new(
        shared: Arc<Shared>,
        term: u64,
        node: String,
        endpoint: watch::Receiver<Endpoint>,
        identity: watch::Receiver<Option<Identity>>,
    ) -> Task {
        Task { shared, term, node, endpoint, identity, newest: None, pause: SHORTEST_PAUSE, connected: None }
    }

    /// Until the endpoint is taken away.
    pub async fn run(mut self) {
        let Some(wake) = self.shared.waker(self.term, &self.node) else { return };
        self.presence(Some(Presence::Connecting { error: None }));
        loop {
            match self.session(&wake).await {
                End::Gone => break,
                End::Renew => {}
                End::Reread => {
                    info!(node = self.node, "reading the daemon's generation again");
                    tokio::time::sleep(SHORTEST_PAUSE).await;
                }
                End::Foreign((term, counter)) => {
                    // Either another replica leads, or one did until a moment ago. Who still leads after the
                    // renewal deadline has renewed the Lease since, and so is the right one.
                    warn!(
                        node = self.node,
                        term, counter, "the daemon has orders that aren't ours: holding still"
                    );
                    let error = Some("the daemon has orders of another controller".to_owned());
                    self.presence(Some(Presence::Connecting { error }));
                    if self.hold(lease::RENEW_DEADLINE).await.is_none() {
                        break;
                    }
                    self.newest = None;
                }
                End::Broken(error) => {
                    debug!(node = self.node, error, "no connection with the daemon");
                    self.presence(Some(Presence::Connecting { error: Some(error) }));
                    if self.back_off(&wake).await.is_none() {
                        break;
                    }
                }
            }
        }
        self.presence(None);
    }

    /// One connection, from beginning to end.
    async fn session(&mut self, wake: &Notify) -> End {
        let address = self.endpoint.borrow_and_update().address;
        let Some(identity) = self.identity.borrow_and_update().clone() else {
            return match self.wait_for_identity().await {
                Some(()) => End::Renew,
                None => End::Gone,
            };
        };
        let channel = match connect(&self.node, address, &identity).await {
            Ok(channel) => channel,
            Err(error) => return End::Broken(error.to_string()),
        };
        let mut client = DaemonClient::new(channel).max_decoding_message_size(MESSAGE);
        let (snapshot, reports) = match open(&mut client).await {
            Ok(opened) => opened,
            Err(status) => return End::Broken(explain("watch the daemon", &status)),
        };
        let grpc::Snapshot { node, version, generation, readiness, faults } = snapshot;
        if node != self.node {
            return End::Broken(format!("the daemon at {address} says that it is node {node:?}'s"));
        }
        let theirs = generation.map_or((0, 0), |g| (g.term, g.counter));
        if self.newest.is_some_and(|ours| theirs > ours) {
            return End::Foreign(theirs);
        }
        // A term below the daemon's means that the Lease was made anew; the counter goes on from the daemon's.
        let base = theirs.max(self.newest.unwrap_or_default()).max((self.term, 0));
        info!(node = self.node, version, term = base.0, counter = base.1, "connected to the daemon");
        self.newest = Some(base);
        self.connected = Some(Instant::now());
        self.shared.set_journal(self.term, &self.node, &faults);
        for report in faults {
            self.shared.add_report(self.term, &self.node, report);
        }
        let readiness = readiness.unwrap_or_default();
        tell_lacks(&self.node, &readiness);
        self.presence(Some(Presence::Ready { readiness, since: Timestamp::now(), refusal: None }));
        self.converse(client, reports, wake).await
    }

    /// Send every change, and hear every report.
    async fn converse(
        &mut self,
        client: DaemonClient<Channel>,
        mut reports: Streaming<grpc::NodeReport>,
        wake: &Notify,
    ) -> End {
        let pod_uid = self.endpoint.borrow().pod_uid.clone();
        let address = self.endpoint.borrow().address;
        let mut under_way = FuturesUnordered::new();
        let mut sent: Option<u64> = None;
        let mut again: Option<Instant> = None;
        loop {
            let due = again.is_some_and(|at| at <= Instant::now());
            let version = self.shared.version(self.term, &self.node).filter(|now| due || sent != Some(*now));
            if version.is_some()
                && under_way.len() < UNDER_WAY
                && let Some(faults) = self.shared.desired(self.term, &self.node)
            {
                let generation = self.next_generation();
                sent = version;
                again = (!faults.is_empty()).then(|| Instant::now() + RENEW);
                under_way.push(apply(client.clone(), self.node.clone(), generation, faults));
                // Below, to have it polled: that is what sends it.
            }
            let full = under_way.len() >= UNDER_WAY;
            tokio::select! {
                biased;
                Some((generation, outcome)) = under_way.next() => {
                    let newest = Some(generation) == self.newest;
                    match outcome {
                        Ok(()) if newest => {
                            self.shared.prune(self.term, &self.node);
                            self.shared.set_refusal(self.term, &self.node, None);
                        }
                        // Overtaken by a newer one, which says it all.
                        Ok(()) => {}
                        Err(Refused::Older) if newest => return End::Reread,
                        Err(Refused::Older) => {}
                        Err(Refused::Broken(error)) => return End::Broken(error),
                        Err(Refused::Senseless(error)) => {
                            warn!(node = self.node, error, "the daemon refuses its desired state");
                            if newest {
                                self.shared.set_refusal(self.term, &self.node, Some(error));
                                again = Some(Instant::now() + REFUSED);
                            }
                        }
                    }
                }
                () = wake.notified() => {}
                message = reports.message() => match message {
                    Ok(Some(grpc::NodeReport { report: Some(Report::Fault(report)) })) => {
                        self.shared.add_report(self.term, &self.node, report);
                    }
                    Ok(Some(grpc::NodeReport { report: Some(Report::Snapshot(_)) | None })) => {
                        debug!(node = self.node, "a report that means nothing to this version");
                    }
                    Ok(None) => return End::Broken("the daemon ended the connection".into()),
                    Err(status) => return End::Broken(explain("watch the daemon", &status)),
                },
                () = sleep(again), if !full => {}
                changed = self.endpoint.changed() => {
                    if changed.is_err() {
                        return End::Gone;
                    }
                    let now = self.endpoint.borrow_and_update();
                    if now.pod_uid != pod_uid || now.address != address {
                        return End::Renew;
                    }
                }
                changed = self.identity.changed() => {
                    if changed.is_err() {
                        return End::Gone;
                    }
                    if self.identity.borrow_and_update().is_some() {
                        return End::Renew;
                    }
                }
            }
        }
    }

    fn next_generation(&mut self) -> Generation {
        let (term, counter) = self.newest.unwrap_or((self.term, 0));
        let next = (term, counter.saturating_add(1));
        self.newest = Some(next);
        next
    }

    fn presence(&self, presence: Option<Presence>) {
        self.shared.set_presence(self.term, &self.node, presence);
    }

    /// Wait a while, or until there is a reason to try again. `None` when the daemon is gone.
    async fn back_off(&mut self, wake: &Notify) -> Option<()> {
        // One that held for a while was good: its successor may come soon.
        if self.connected.take().is_some_and(|at| at.elapsed() > LONGEST_PAUSE) {
            self.pause = SHORTEST_PAUSE;
        }
        let (shortest, longest) = (Instant::now() + SHORTEST_PAUSE, Instant::now() + self.pause);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        let outcome = tokio::select! {
            () = sleep_until(longest) => Some(()),
            () = wake.notified() => Some(()),
            changed = self.endpoint.changed() => changed.ok(),
            changed = self.identity.changed() => changed.ok(),
        };
        // Never faster than this, however many reasons there are.
        sleep_until(shortest).await;
        outcome
    }

    /// Wait all of it. `None` when the daemon is gone meanwhile.
    async fn hold(&mut self, time: Duration) -> Option<()> {
        let mut end = pin!(tokio::time::sleep(time));
        loop {
            tokio::select! {
                () = end.as_mut() => return Some(()),
                changed = self.endpoint.changed() => changed.ok()?,
            }
        }
    }

    async fn wait_for_identity(&mut self) -> Option<()> {
        loop {
            tokio::select! {
                changed = self.endpoint.changed() => changed.ok()?,
                changed = self.identity.changed() => return changed.ok(),
            }
        }
    }
}

/// What this node can't do stands in the log, before somebody wonders why a fault says so.
fn tell_lacks(node: &str, readiness: &grpc::Readiness) {
    let grpc::Readiness { runtimes, ebpf_error, cgroups } = readiness;
    debug!(node, cgroups, ?runtimes, "what the daemon has found");
    if !ebpf_error.is_empty() {
        warn!(
            node,
            error = ebpf_error,
            "the node has no eBPF: no triggers, and kills go through pidfds alone"
        );
    }
    for grpc::RuntimeReadiness { scheme, socket, error } in runtimes {
        if !error.is_empty() {
            warn!(node, runtime = scheme, socket, error, "the daemon can't ask a runtime of its node");
        }
    }
}

/// Why an order was not taken.
enum Refused {
    /// The daemon has a newer one.
    Older,
    /// The connection is of no use.
    Broken(String),
    /// The daemon won't have it.
    Senseless(String),
}

async fn open(
    client: &mut DaemonClient<Channel>,
) -> Result<(grpc::Snapshot, Streaming<grpc::NodeReport>), Status> {
    let opening = async {
        let mut reports = client.watch(grpc::WatchRequest {}).await?.into_inner();
        match reports.message().await? {
            Some(grpc::NodeReport { report: Some(Report::Snapshot(snapshot)) }) => Ok((snapshot, reports)),
            Some(_) => Err(Status::internal("its first report isn't a snapshot")),
            None => Err(Status::unavailable("it said nothing")),
        }
    };
    let late = |_| Status::deadline_exceeded(format!("no snapshot within {APPLY_TIMEOUT:?}"));
    timeout(APPLY_TIMEOUT, opening).await.map_err(late)?
}

async fn apply(
    mut client: DaemonClient<Channel>,
    node: String,
    generation: Generation,
    faults: Vec<grpc::Fault>,
) -> (Generation, Result<(), Refused>) {
    let (term, counter) = generation;
    let state = grpc::NodeState { generation: Some(grpc::Generation { term, counter }), node, faults };
    let mut request = tonic::Request::new(state);
    request.set_timeout(APPLY_TIMEOUT);
    let outcome = match timeout(APPLY_TIMEOUT, client.apply(request)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(status)) => Err(judge(&status)),
        Err(_) => Err(Refused::Broken(format!("the daemon didn't take an order within {APPLY_TIMEOUT:?}"))),
    };
    (generation, outcome)
}

fn judge(status: &Status) -> Refused {
    let text = explain("give the daemon its orders", status);
    match status.code() {
        Code::FailedPrecondition => Refused::Older,
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::Internal
        | Code::DataLoss
        | Code::Unauthenticated => Refused::Senseless(status.message().to_owned()),
        Code::Ok | Code::Cancelled | Code::Unknown | Code::DeadlineExceeded | Code::Unavailable => {
            Refused::Broken(text)
        }
    }
}

/// tonic says little more than "transport error" itself; the reason is what stands behind it.
fn explain(what: &str, status: &Status) -> String {
    let mut text = format!("can't {what}: {}", status.message());
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        source = error.source();
    }
    text
}

async fn sleep(until: Option<Instant>) {
    match until {
        Some(at) => sleep_until(at).await,
        None => future::pending().await,
    }
}
