//! Against a real gRPC server with real TLS on loopback. The daemon behind it keeps a generation and a log, as
//! the contract says; it hits nothing.

use std::{io, pin::Pin, sync::atomic::AtomicU64, time::Duration};

use rustls::{RootCertStore, ServerConfig, server::WebPkiClientVerifier};
use squall_api::grpc::{
    ApplyReply, Fault, FaultReport, FaultState, Generation, NodeReport, NodeState, Readiness, Snapshot,
    WatchRequest,
    daemon_server::{Daemon, DaemonServer},
    node_report::Report,
};
use tokio::{
    net::TcpListener,
    runtime::Runtime,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_stream::{Stream, StreamExt, wrappers::BroadcastStream};
use tonic::{Request, Response, Status};

use super::*;
use crate::certs::{Ca, Profile, provider};

/// The daemon's memory: outlives its server, as a journal does.
struct Journal {
    generation: Mutex<(u64, u64)>,
    log: mpsc::UnboundedSender<NodeState>,
    reports: tokio::sync::broadcast::Sender<NodeReport>,
    known: Mutex<Vec<FaultReport>>,
    watches: AtomicU64,
    slow: Mutex<Duration>,
    refuse: Mutex<Option<Status>>,
    ebpf_error: Mutex<String>,
}

#[derive(Clone)]
struct TestDaemon(Arc<Journal>);

#[tonic::async_trait]
impl Daemon for TestDaemon {
    async fn apply(&self, request: Request<NodeState>) -> Result<Response<ApplyReply>, Status> {
        let state = request.into_inner();
        if let Some(status) = self.0.refuse.lock().unwrap().clone() {
            return Err(status);
        }
        let generation = state.generation.unwrap();
        let new = (generation.term, generation.counter);
        {
            let mut have = self.0.generation.lock().unwrap();
            if new <= *have {
                return Err(Status::failed_precondition(format!("{new:?} is not above {have:?}")));
            }
            *have = new;
        }
        self.0.log.send(state).unwrap();
        let slow = *self.0.slow.lock().unwrap();
        sleep(slow).await;
        Ok(Response::new(ApplyReply { generation: Some(generation) }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<NodeReport, Status>> + Send>>;

    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        self.0.watches.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let (term, counter) = *self.0.generation.lock().unwrap();
        let snapshot = Snapshot {
            node: "node-a".into(),
            version: "test".into(),
            generation: Some(Generation { term, counter }),
            readiness: Some(Readiness {
                cgroups: "v2".into(),
                ebpf_error: self.0.ebpf_error.lock().unwrap().clone(),
                ..Readiness::default()
            }),
            faults: self.0.known.lock().unwrap().clone(),
        };
        let first = tokio_stream::once(Ok(NodeReport { report: Some(Report::Snapshot(snapshot)) }));
        let rest = BroadcastStream::new(self.0.reports.subscribe())
            .map(|report| report.map_err(|_| Status::data_loss("lagged")));
        Ok(Response::new(Box::pin(first.chain(rest))))
    }
}

/// One CA, one controller, one node.
struct House {
    ca: Arc<Ca>,
    journal: Arc<Journal>,
    log: mpsc::UnboundedReceiver<NodeState>,
    leadership: watch::Sender<Leadership>,
    identity: watch::Sender<Option<Identity>>,
    endpoints: watch::Sender<Endpoints>,
    events: mpsc::UnboundedReceiver<NodeEvent>,
    nodes: Nodes,
    server: Option<Runtime>,
}

fn new_ca() -> Arc<Ca> {
    Arc::new(Ca::make(Timestamp::now(), Duration::from_secs(86400)).unwrap())
}

fn identity_of(ca: &Arc<Ca>) -> Identity {
    Identity::make(ca.clone(), &[], Timestamp::now()).unwrap()
}

impl House {
    async fn new() -> House {
        let ca = new_ca();
        let (log_sender, log) = mpsc::unbounded_channel();
        let journal = Journal {
            generation: Mutex::new((0, 0)),
            log: log_sender,
            reports: tokio::sync::broadcast::channel(100).0,
            known: Mutex::default(),
            watches: AtomicU64::new(0),
            slow: Mutex::default(),
            refuse: Mutex::default(),
            ebpf_error: Mutex::default(),
        };
        let (leadership, leadership_seen) = watch::channel(Leadership::Leader { term: 5 });
        let (identity, identity_seen) = watch::channel(Some(identity_of(&ca)));
        let (endpoints, endpoints_seen) = watch::channel(None);
        let (event_sender, events) = mpsc::unbounded_channel();
        let nodes = Nodes::with_endpoints(endpoints_seen, identity_seen, leadership_seen, event_sender);
        let journal = Arc::new(journal);
        House { ca, journal, log, leadership, identity, endpoints, events, nodes, server: None }
    }

    /// With a daemon that is what it should be.
    async fn whole() -> House {
        let mut house = House::new().await;
        house.serve(&house.ca.clone(), Profile::Daemon("node-a".into())).await;
        house.nodes.complete();
        house
    }

    async fn serve(&mut self, ca: &Ca, profile: Profile) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let pair = ca.issue(&profile, Timestamp::now()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.cert.der.clone()).unwrap();
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).build().unwrap();
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(
                pair.certified_key().unwrap(),
            )));
        config.alpn_protocols = vec![b"h2".to_vec()];
        let tls = TlsAcceptor::from(Arc::new(config));
        let (sender, incoming) = mpsc::channel::<io::Result<_>>(1);
        let journal = self.journal.clone();
        // A runtime of its own: when that goes, the connections are cut, as when a process is killed.
        let runtime = Runtime::new().unwrap();
        let listener = listener.into_std().unwrap();
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            let accept = async {
                loop {
                    let (tcp, _) = listener.accept().await.unwrap();
                    if let Ok(stream) = tls.accept(tcp).await {
                        let _ = sender.send(Ok(TestConnection(stream))).await;
                    }
                }
            };
            let incoming = tokio_stream::wrappers::ReceiverStream::new(incoming);
            let serve = tonic::transport::Server::builder()
                .add_service(DaemonServer::new(TestDaemon(journal)))
                .serve_with_incoming(incoming);
            tokio::select! { _ = accept => {}, _ = serve => {} }
        });
        self.kill();
        self.server = Some(runtime);
        let endpoint = Endpoint { pod_uid: address.to_string(), address, ready: true };
        self.endpoints.send_replace(Some(BTreeMap::from([("node-a".to_owned(), endpoint)])));
    }

    fn kill(&mut self) {
        if let Some(server) = self.server.take() {
            server.shutdown_background();
        }
    }

    async fn next(&mut self) -> NodeState {
        timeout(Duration::from_secs(5), self.log.recv()).await.expect("no order came").unwrap()
    }

    async fn silence(&mut self) {
        let heard = timeout(Duration::from_millis(300), self.log.recv()).await;
        assert!(heard.is_err(), "an order that should not be: {heard:?}");
    }

    async fn presence(&mut self, wanted: impl Fn(&Presence) -> bool) -> Presence {
        let until = async {
            loop {
                let now = self.nodes.presence("node-a");
                if wanted(&now) {
                    return now;
                }
                self.events.recv().await.unwrap();
            }
        };
        timeout(Duration::from_secs(5), until).await.expect("the presence never came")
    }

    async fn refused(&mut self) -> String {
        let failed = |presence: &Presence| matches!(presence, Presence::Connecting { error: Some(_) });
        match self.presence(failed).await {
            Presence::Connecting { error } => error.unwrap(),
            Presence::NoDaemon | Presence::Unheard | Presence::Ready { .. } => unreachable!(),
        }
    }
}

impl Drop for House {
    fn drop(&mut self) {
        self.kill();
    }
}

struct TestConnection(tokio_rustls::server::TlsStream<tokio::net::TcpStream>);

impl tonic::transport::server::Connected for TestConnection {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}

impl tokio::io::AsyncRead for TestConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl tokio::io::AsyncWrite for TestConnection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &[u8],
    ) -> std::task::Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }
    fn poll_flush(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

fn fault(id: &str) -> Fault {
    Fault { id: id.into(), experiment: "default/x".into(), ..Fault::default() }
}

fn ids(state: &NodeState) -> Vec<&str> {
    state.faults.iter().map(|fault| fault.id.as_str()).collect()
}

fn generation(state: &NodeState) -> (u64, u64) {
    let generation = state.generation.unwrap();
    (generation.term, generation.counter)
}

#[tokio::test]
async fn the_whole_state_goes_out_with_rising_generations() {
    let mut house = House::whole().await;
    let empty = house.next().await;
    assert_eq!((ids(&empty), generation(&empty), empty.node.as_str()), (vec![], (5, 1), "node-a"));
    house.silence().await;
    house.nodes.set("node-a", fault("a"), None);
    assert_eq!(ids(&house.next().await), ["a"]);
    house.nodes.set("node-a", fault("a"), None);
    house.silence().await;
    house.nodes.set("node-a", fault("b"), None);
    let both = house.next().await;
    assert_eq!((ids(&both), generation(&both)), (vec!["a", "b"], (5, 3)));
    house.nodes.remove("node-a", "a");
    assert_eq!(ids(&house.next().await), ["b"]);
}

#[tokio::test]
async fn several_in_one_tick_go_out_as_one_and_nobody_waits_for_an_answer() {
    let mut house = House::whole().await;
    house.next().await;
    *house.journal.slow.lock().unwrap() = Duration::from_secs(2);
    for id in ["a", "b", "c"] {
        house.nodes.set("node-a", fault(id), None);
    }
    assert_eq!(ids(&house.next().await), ["a", "b", "c"]);
    let before = std::time::Instant::now();
    house.nodes.set("node-a", fault("d"), None);
    assert_eq!(ids(&house.next().await), ["a", "b", "c", "d"]);
    assert!(before.elapsed() < Duration::from_millis(500), "waited for the answer to the order before");
}

#[tokio::test]
async fn what_the_daemon_knows_of_is_not_ended_before_the_states_are_complete() {
    let mut house = House::new().await;
    for id in ["old", "older"] {
        let report = FaultReport { id: id.into(), ..FaultReport::default() };
        house.journal.known.lock().unwrap().push(report);
    }
    house.serve(&house.ca.clone(), Profile::Daemon("node-a".into())).await;
    house.presence(|presence| matches!(presence, Presence::Ready { .. })).await;
    assert!(house.nodes.report("node-a", "old").is_some(), "the snapshot tells of what is about to be set");
    house.nodes.set("node-a", fault("new"), None);
    house.silence().await;
    house.nodes.set("node-a", fault("old"), None);
    house.silence().await;
    house.nodes.complete();
    assert_eq!(ids(&house.next().await), ["new", "old"]);
}

#[tokio::test]
async fn a_state_with_all_that_the_daemon_knows_of_need_not_wait() {
    let mut house = House::new().await;
    house.journal.known.lock().unwrap().push(FaultReport { id: "old".into(), ..FaultReport::default() });
    house.serve(&house.ca.clone(), Profile::Daemon("node-a".into())).await;
    house.nodes.set("node-a", fault("new"), None);
    house.silence().await;
    house.nodes.set("node-a", fault("old"), None);
    assert_eq!(ids(&house.next().await), ["new", "old"]);
    // Until the states are complete, taking it out again has to wait as well.
    house.nodes.remove("node-a", "old");
    house.silence().await;
    house.nodes.complete();
    assert_eq!(ids(&house.next().await), ["new"]);
}

#[tokio::test]
async fn a_daemon_that_is_ahead_locks_nobody_out() {
    let mut house = House::new().await;
    *house.journal.generation.lock().unwrap() = (70, 12);
    house.serve(&house.ca.clone(), Profile::Daemon("node-a".into())).await;
    house.nodes.complete();
    assert_eq!(generation(&house.next().await), (70, 13));
}

#[tokio::test]
async fn orders_of_another_controller_are_not_overruled_at_once() {
    let mut house = House::whole().await;
    house.next().await;
    *house.journal.generation.lock().unwrap() = (6, 1);
    house.nodes.set("node-a", fault("a"), None);
    assert!(house.refused().await.contains("another controller"));
    house.silence().await;
}

#[tokio::test]
async fn reports_wake_and_the_newest_is_kept() {
    let mut house = House::whole().await;
    house.next().await;
    house.nodes.set("node-a", fault("a"), None);
    house.next().await;
    for state in [FaultState::Fired, FaultState::Done] {
        let report = FaultReport { id: "a".into(), state: state.into(), ..FaultReport::default() };
        house.journal.reports.send(NodeReport { report: Some(Report::Fault(report)) }).unwrap();
        let wanted = NodeEvent::Fault { node: "node-a".into(), id: "a".into() };
        while timeout(Duration::from_secs(5), house.events.recv()).await.unwrap().unwrap() != wanted {}
        assert_eq!(house.nodes.report("node-a", "a").unwrap().state(), state);
    }
    house.nodes.remove("node-a", "a");
    assert_eq!(house.nodes.report("node-a", "a"), None);
}

#[tokio::test]
async fn a_daemon_that_comes_back_gets_the_whole_state_again() {
    let mut house = House::whole().await;
    house.next().await;
    house.nodes.set("node-a", fault("a"), None);
    house.next().await;
    house.kill();
    house.presence(|presence| matches!(presence, Presence::Connecting { .. })).await;
    house.serve(&house.ca.clone(), Profile::Daemon("node-a".into())).await;
    let again = house.next().await;
    assert_eq!((ids(&again), generation(&again)), (vec!["a"], (5, 3)));
    house.endpoints.send_replace(Some(BTreeMap::new()));
    house.presence(|presence| *presence == Presence::NoDaemon).await;
}

#[tokio::test]
async fn who_no_longer_leads_forgets_and_sends_nothing() {
    let mut house = House::whole().await;
    house.next().await;
    house.nodes.set("node-a", fault("a"), None);
    house.next().await;
    house.leadership.send_replace(Leadership::Follower);
    house.nodes.set("node-a", fault("b"), None);
    house.silence().await;
    assert_eq!(house.nodes.counts(), Counts::default());
    house.leadership.send_replace(Leadership::Leader { term: 9 });
    house.nodes.set("node-a", fault("c"), None);
    house.nodes.complete();
    let state = house.next().await;
    assert_eq!((ids(&state), generation(&state)), (vec!["c"], (9, 1)));
}

#[tokio::test]
async fn who_leads_for_a_moment_only_has_not_heard_of_a_daemon_yet_and_who_does_for_longer_has_no_connection()
{
    let mut house = House::new().await;
    assert_eq!(house.nodes.presence("node-a"), Presence::Unheard, "nobody knows yet which there are");
    // Without an identity nothing is connected to.
    house.identity.send_replace(None);
    house.serve(&house.ca.clone(), Profile::Daemon("node-a".into())).await;
    while house.nodes.presence("node-b") != Presence::NoDaemon {
        house.events.recv().await.unwrap();
    }
    assert_eq!(house.nodes.presence("node-a"), Presence::Unheard);
    leap(Duration::from_secs(11)).await;
    assert_eq!(house.nodes.presence("node-a"), Presence::Connecting { error: None });
    house.identity.send_replace(Some(identity_of(&house.ca)));
    house.presence(|presence| matches!(presence, Presence::Ready { .. })).await;
    // The next term begins with what is not known.
    house.leadership.send_replace(Leadership::Follower);
    assert_eq!(house.nodes.presence("node-a"), Presence::Unheard);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_node_that_has_a_daemon_is_called_one_without_while_they_are_being_listed() {
    let house = House::new().await;
    house.identity.send_replace(None);
    let endpoint = Endpoint { pod_uid: "x".into(), address: "127.0.0.1:1".parse().unwrap(), ready: true };
    let nodes = (0..500).map(|number| (format!("node-{number:03}"), endpoint.clone()));
    house.endpoints.send_replace(Some(nodes.collect()));
    // The others' tasks have run before the last one's.
    while house.nodes.presence("elsewhere") != Presence::NoDaemon {
        std::thread::yield_now();
    }
    assert_eq!(house.nodes.presence("node-499"), Presence::Unheard);
}

#[tokio::test]
async fn a_state_that_is_refused_is_told_and_the_next_one_tried() {
    let mut house = House::whole().await;
    house.next().await;
    *house.journal.refuse.lock().unwrap() = Some(Status::invalid_argument("faults[0].id is empty"));
    house.nodes.set("node-a", fault("a"), None);
    let refused = |presence: &Presence| matches!(presence, Presence::Ready { refusal: Some(_), .. });
    let Presence::Ready { refusal, .. } = house.presence(refused).await else { unreachable!() };
    assert_eq!(refusal.as_deref(), Some("faults[0].id is empty"));
    assert_eq!(house.nodes.counts(), Counts { ready: 1, refusing: 1, ..Counts::default() });
    *house.journal.refuse.lock().unwrap() = None;
    house.nodes.remove("node-a", "a");
    assert!(ids(&house.next().await).is_empty());
    house.presence(|presence| matches!(presence, Presence::Ready { refusal: None, .. })).await;
}

#[tokio::test]
async fn a_node_without_ebpf_is_counted() {
    let mut house = House::new().await;
    *house.journal.ebpf_error.lock().unwrap() = "the kernel has no BTF".into();
    house.serve(&house.ca.clone(), Profile::Daemon("node-a".into())).await;
    house.presence(|presence| matches!(presence, Presence::Ready { .. })).await;
    assert_eq!(house.nodes.counts(), Counts { ready: 1, without_ebpf: 1, ..Counts::default() });
}

#[tokio::test]
async fn new_certificates_are_taken_up_and_the_channel_opened_anew() {
    let mut house = House::whole().await;
    house.next().await;
    house.identity.send_replace(Some(identity_of(&house.ca)));
    assert_eq!(generation(&house.next().await), (5, 2));
    assert_eq!(house.journal.watches.load(std::sync::atomic::Ordering::Relaxed), 2);
}

#[tokio::test]
async fn only_the_nodes_own_daemon_is_talked_to() {
    let ours = |house: &House| house.ca.clone();
    for (ca, profile) in [
        (ours as fn(&House) -> Arc<Ca>, Profile::Daemon("node-b".into())),
        (ours, Profile::ControllerServer),
        (ours, Profile::ControllerClient),
        ((|_| new_ca()) as fn(&House) -> Arc<Ca>, Profile::Daemon("node-a".into())),
    ] {
        let mut house = House::new().await;
        let ca = ca(&house);
        house.serve(&ca, profile.clone()).await;
        house.nodes.complete();
        house.nodes.set("node-a", fault("a"), None);
        let error = house.refused().await;
        assert!(error.contains("certificate"), "{profile:?}: {error}");
        house.silence().await;
    }
}

#[tokio::test]
async fn a_controller_of_another_ca_is_refused_by_the_daemon() {
    let mut house = House::new().await;
    let mut strange = identity_of(&new_ca());
    let other = new_ca();
    // It trusts the daemon's CA, but its own certificate is of another one.
    strange.client = Identity::make(other, &[house.ca.cert.clone()], Timestamp::now()).unwrap().client;
    house.identity.send_replace(Some(strange));
    house.serve(&house.ca.clone(), Profile::Daemon("node-a".into())).await;
    house.nodes.complete();
    house.refused().await;
    house.silence().await;
}

#[tokio::test]
async fn a_listed_fault_is_renewed_and_an_empty_state_is_not() {
    let mut house = House::whole().await;
    house.next().await;
    house.nodes.set("node-a", fault("a"), None);
    house.next().await;
    // The answer has to be there, or the leap would be its delay.
    house.silence().await;
    leap(Duration::from_secs(21)).await;
    assert_eq!(ids(&house.next().await), ["a"]);
    house.nodes.remove("node-a", "a");
    assert!(ids(&house.next().await).is_empty());
    // The answer has to be there, or the leap would be its delay.
    house.silence().await;
    leap(Duration::from_secs(21)).await;
    house.silence().await;
}

#[test]
fn no_fault_outlives_what_a_daemon_takes() {
    let now = Timestamp::now();
    let seconds = |until| Listed { fault: fault("a"), until }.at(now).ttl.unwrap().seconds;
    assert_eq!(seconds(Some(Timestamp::MIN)), 0);
    assert_eq!(seconds(Some(now + SignedDuration::from_hours(720))), 720 * 3600);
    assert_eq!(seconds(Some(Timestamp::MAX)), 31 * 24 * 3600);
    assert_eq!(seconds(None), 60);
}

/// Let this much time be over at once. The sockets are real, so the clock can't stand still for long.
async fn leap(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}
