//! The daemon's port from outside: who may talk to it, which states it accepts, and what it tells.

mod server {
    pub mod hostile;
}

use std::{fs, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use prost::bytes::{Buf as _, BufMut as _};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use rustls::{
    ClientConfig,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName},
    sign::CertifiedKey,
};
use server::hostile::{self, Usual, samples};
use squall_api::{
    grpc::{self, daemon_client::DaemonClient, node_report::Report},
    names,
};
use squall_daemon::{
    cgroup::CgroupRoot,
    ebpf::Engine,
    journal::Journal,
    kill::Tools,
    node::Node,
    order::MAX_FAULTS,
    readiness::Readiness,
    runtime::{Runtimes, containerd::Containerd},
    server::serve,
    tls::{Bundle, Current, ServerTls, provider},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Notify,
};
use tokio_rustls::TlsConnector;
use tonic::{
    Code, Request, Response, Status, Streaming,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};

const NODE: &str = "node-a";
/// Of a container that nobody knows.
const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

struct Ca(CertifiedIssuer<'static, KeyPair>);

impl Ca {
    fn new() -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn sign(
        &self,
        name: &str,
        usage: ExtendedKeyUsagePurpose,
    ) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages = vec![usage];
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (certificate.der().clone(), PrivateKeyDer::Pkcs8(key.serialize_der().into()))
    }

    fn client(&self, name: &str) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        self.sign(name, ExtendedKeyUsagePurpose::ClientAuth)
    }
}

struct Daemon {
    dir: TempDir,
    port: u16,
    current: Arc<Current>,
    changed: Arc<Notify>,
    ca: Ca,
}

impl Daemon {
    async fn start() -> Self {
        let (dir, ca) = (tempfile::tempdir().unwrap(), Ca::new());
        fs::write(dir.path().join("ca.crt"), ca.0.pem()).unwrap();
        let current = Arc::new(Current::default());
        current.replace(identity(&ca));
        let tools = Tools {
            engine: Arc::new(Engine::new(false)),
            cgroups: CgroupRoot::discover("/sys/fs/cgroup".as_ref(), "/proc".as_ref()).unwrap(),
            runtimes: Runtimes::new(vec![Arc::new(Containerd::new(Some("/nowhere".into()), "/".as_ref()))]),
        };
        let journal = Journal::open(&dir.path().join("journal")).unwrap();
        let node = Node::new(NODE.into(), tools.clone(), journal);
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let tls = Arc::new(ServerTls::new(Bundle::new(dir.path().join("ca.crt")), Arc::clone(&current)));
        let changed = Arc::new(Notify::new());
        let notify = Arc::clone(&changed);
        tokio::spawn(async move {
            let readiness = Readiness::find(tools).await;
            serve(listener, tls, notify, node, readiness, std::future::pending()).await
        });
        Self { dir, port, current, changed, ca }
    }

    async fn connect(
        &self,
        ca: &Ca,
        client: Option<(CertificateDer<'static>, PrivateKeyDer<'static>)>,
    ) -> Result<DaemonClient<Channel>, Box<dyn std::error::Error>> {
        let mut client = DaemonClient::new(self.channel_as(ca, client).await?);
        // In TLS 1.3 a client hears of its rejection with the first answer.
        client.watch(grpc::WatchRequest {}).await?;
        Ok(client)
    }

    async fn channel_as(
        &self,
        ca: &Ca,
        client: Option<(CertificateDer<'static>, PrivateKeyDer<'static>)>,
    ) -> Result<Channel, Box<dyn std::error::Error>> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(ca.0.der().clone())?;
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots);
        let mut config = match client {
            Some((certificate, key)) => config.with_client_auth_cert(vec![certificate], key)?,
            None => config.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        let (connector, port) = (TlsConnector::from(Arc::new(config)), self.port);
        let connect = tower::service_fn(move |_| {
            let connector = connector.clone();
            async move {
                let name = ServerName::try_from(names::daemon_server_name(NODE)).unwrap();
                let tcp = TcpStream::connect(("127.0.0.1", port)).await?;
                // As the controller's.
                tcp.set_nodelay(true)?;
                Ok::<_, std::io::Error>(TokioIo::new(connector.connect(name, tcp).await?))
            }
        });
        Ok(Endpoint::from_static("http://daemon").connect_with_connector(connect).await?)
    }

    async fn channel(&self) -> Channel {
        let client = self.ca.client(names::CONTROLLER_CLIENT_NAME);
        self.channel_as(&self.ca, Some(client)).await.unwrap()
    }

    async fn controller(&self) -> DaemonClient<Channel> {
        self.connect(&self.ca, Some(self.ca.client(names::CONTROLLER_CLIENT_NAME))).await.unwrap()
    }
}

fn identity(ca: &Ca) -> Arc<CertifiedKey> {
    let (certificate, key) = ca.sign(&names::daemon_server_name(NODE), ExtendedKeyUsagePurpose::ServerAuth);
    let signing = rustls::crypto::ring::sign::any_supported_type(&key).unwrap();
    Arc::new(CertifiedKey::new(vec![certificate], signing))
}

fn fault(id: &str, scheme: &str, stage: grpc::Stage) -> grpc::Fault {
    grpc::Fault {
        id: id.into(),
        experiment: "ns/x".into(),
        container: Some(grpc::Container {
            namespace: "ns".into(),
            pod: "p".into(),
            pod_uid: "u".into(),
            name: "c".into(),
            id: format!("{scheme}://{ID}"),
        }),
        stage: stage.into(),
        ttl: None,
        action: Some(grpc::fault::Action::Kill(grpc::Kill {
            signal: 9,
            scope: grpc::Scope::Init.into(),
            ..grpc::Kill::default()
        })),
    }
}

fn state(term: u64, counter: u64, faults: Vec<grpc::Fault>) -> grpc::NodeState {
    grpc::NodeState { generation: Some(grpc::Generation { term, counter }), node: NODE.into(), faults }
}

async fn snapshot(client: &mut DaemonClient<Channel>) -> (grpc::Snapshot, Streaming<grpc::NodeReport>) {
    let mut stream = client.watch(grpc::WatchRequest {}).await.unwrap().into_inner();
    match stream.message().await.unwrap().unwrap().report.unwrap() {
        Report::Snapshot(snapshot) => (snapshot, stream),
        Report::Fault(fault) => panic!("no snapshot first: {fault:?}"),
    }
}

async fn report(stream: &mut Streaming<grpc::NodeReport>) -> grpc::FaultReport {
    let next =
        tokio::time::timeout(Duration::from_secs(30), stream.message()).await.expect("a report in time");
    match next.unwrap().unwrap().report.unwrap() {
        Report::Fault(fault) => fault,
        Report::Snapshot(snapshot) => panic!("a second snapshot: {snapshot:?}"),
    }
}

#[tokio::test]
async fn only_the_controllers_identity_is_listened_to() {
    let daemon = Daemon::start().await;
    let name = names::CONTROLLER_CLIENT_NAME;
    assert!(daemon.connect(&daemon.ca, Some(daemon.ca.client(name))).await.is_ok());
    assert!(daemon.connect(&daemon.ca, None).await.is_err(), "without a certificate");
    let other_name = daemon.ca.client("webhook.client.squall.dev");
    assert!(daemon.connect(&daemon.ca, Some(other_name)).await.is_err(), "another name");
    let a_daemon = daemon.ca.sign(&names::daemon_server_name("node-b"), ExtendedKeyUsagePurpose::ServerAuth);
    assert!(daemon.connect(&daemon.ca, Some(a_daemon)).await.is_err(), "another daemon");
    let for_servers = daemon.ca.sign(name, ExtendedKeyUsagePurpose::ServerAuth);
    assert!(daemon.connect(&daemon.ca, Some(for_servers)).await.is_err(), "server usage");
    let stranger = Ca::new();
    assert!(daemon.connect(&daemon.ca, Some(stranger.client(name))).await.is_err(), "another CA");
}

#[tokio::test]
async fn a_stranger_who_holds_its_handshakes_holds_up_nobody_else() {
    let daemon = Daemon::start().await;
    let mut client = daemon.controller().await;
    let connect = async |from: [u8; 4]| {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind((from, 0).into()).unwrap();
        socket.connect(([127, 0, 0, 1], daemon.port).into()).await.unwrap()
    };
    let closed = async |mut stream: TcpStream| {
        let mut answer = [0; 8];
        tokio::time::timeout(Duration::from_millis(500), stream.read(&mut answer)).await.is_ok()
    };
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(connect([127, 0, 0, 2]).await);
    }
    assert!(closed(connect([127, 0, 0, 2]).await).await, "a fifth handshake");
    assert!(!closed(connect([127, 0, 0, 3]).await).await, "another's handshake");
    daemon.controller().await;
    snapshot(&mut client).await;
    drop(held);
}

#[tokio::test]
async fn a_rotated_ca_is_trusted_with_the_next_connection_and_asks_for_a_new_certificate() {
    let daemon = Daemon::start().await;
    daemon.controller().await;
    let new = Ca::new();
    fs::write(daemon.dir.path().join("ca.crt"), new.0.pem()).unwrap();
    let name = names::CONTROLLER_CLIENT_NAME;
    assert!(daemon.connect(&daemon.ca, Some(daemon.ca.client(name))).await.is_err(), "the old CA is trusted");
    tokio::time::timeout(Duration::from_secs(1), daemon.changed.notified()).await.expect("enrolment is told");
    daemon.current.replace(identity(&new));
    assert!(daemon.connect(&new, Some(new.client(name))).await.is_ok());
}

#[tokio::test]
async fn older_generations_and_other_nodes_are_refused() {
    let daemon = Daemon::start().await;
    let mut client = daemon.controller().await;
    let reply = client.apply(state(3, 5, vec![])).await.unwrap().into_inner();
    assert_eq!(reply.generation, Some(grpc::Generation { term: 3, counter: 5 }));
    client.apply(state(3, 5, vec![])).await.expect("sending it again is harmless");
    for (term, counter) in [(3, 4), (2, 99)] {
        let refused = client.apply(state(term, counter, vec![])).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert!(
            refused.message().contains(&format!("{term}.{counter}")) && refused.message().contains("3.5")
        );
    }
    client.apply(state(4, 0, vec![])).await.expect("a new leader");
    let other = grpc::NodeState { node: "node-b".into(), ..state(9, 9, vec![]) };
    assert_eq!(client.apply(other).await.unwrap_err().code(), Code::InvalidArgument);
    let twice = vec![fault("a", "docker", grpc::Stage::Fire), fault("a", "docker", grpc::Stage::Arm)];
    let nonsense = client.apply(state(9, 9, twice)).await.unwrap_err();
    assert_eq!(nonsense.code(), Code::InvalidArgument);
    assert!(nonsense.message().contains("a is there twice"), "{nonsense}");
    let (snapshot, _) = snapshot(&mut client).await;
    assert_eq!(snapshot.generation, Some(grpc::Generation { term: 4, counter: 0 }));
}

#[tokio::test]
async fn what_cannot_be_done_is_reported_with_its_reason_and_kept_while_it_is_listed() {
    let daemon = Daemon::start().await;
    let mut client = daemon.controller().await;
    let (first, mut stream) = snapshot(&mut client).await;
    let readiness = first.readiness.unwrap();
    assert!(readiness.runtimes[0].error.contains("/nowhere"), "{readiness:?}");

    let mut protected = fault("protected", "containerd", grpc::Stage::Fire);
    protected.container.as_mut().unwrap().namespace = "kube-system".into();
    let mut unknown = fault("unknown", "containerd", grpc::Stage::Fire);
    unknown.action = None;
    // It stops no other.
    let senseless = fault("senseless", "", grpc::Stage::Fire);
    let faults = vec![
        senseless,
        fault("docker", "docker", grpc::Stage::Fire),
        fault("silent", "containerd", grpc::Stage::Arm),
        protected,
        unknown,
    ];
    client.apply(state(1, 1, faults.clone())).await.unwrap();
    let mut reasons = std::collections::BTreeMap::new();
    for _ in &faults {
        let report = report(&mut stream).await;
        assert_eq!(report.state(), grpc::FaultState::Refused);
        reasons.insert(report.id, report.reason);
    }
    let expected = [
        ("docker", "UnknownRuntime"),
        ("protected", "ProtectedNamespace"),
        ("senseless", "Unsupported"),
        ("silent", "RuntimeError"),
        ("unknown", "Unsupported"),
    ];
    assert!(reasons.iter().map(|(id, reason)| (id.as_str(), reason.as_str())).eq(expected), "{reasons:?}");

    client.apply(state(1, 2, faults[1..3].to_vec())).await.unwrap();
    let (second, _) = snapshot(&mut client).await;
    let kept: Vec<_> = second.faults.iter().map(|fault| fault.id.as_str()).collect();
    assert_eq!(kept, ["docker", "silent"]);
}

/// Of a container that no runtime here has; what becomes of one that is there is the kernel tests' business.
#[tokio::test]
async fn hostile_states_are_refused_or_end_in_a_report() {
    let before = hostile::panics();
    let daemon = Daemon::start().await;
    let mut client = daemon.controller().await;
    let (mut refused, mut taken) = (0, 0);
    let container = fault("a", "docker", grpc::Stage::Fire).container.unwrap();
    let usual = Usual { node: NODE.into(), container, path: "/".into() };
    for (term, mut state) in samples(hostile::state(&usual), 400).into_iter().enumerate() {
        // Mostly newer than the one before.
        if let Some(generation) = &mut state.generation {
            generation.term += term as u64;
        }
        match client.apply(state.clone()).await {
            Ok(_) => taken += 1,
            Err(status) => {
                let known = [Code::InvalidArgument, Code::FailedPrecondition];
                assert!(known.contains(&status.code()), "{status}: {state:?}");
                assert!(!status.message().is_empty());
                refused += 1;
            }
        }
    }
    // Of both kinds, or the strategy has lost its point: most of what makes no sense is refused by itself.
    assert!(refused > 25 && taken > 50, "{refused} refused, {taken} taken");
    // It holds, and obeys.
    client.apply(state(u64::MAX, u64::MAX, vec![])).await.expect("a last state");
    assert!(snapshot(&mut client).await.0.faults.is_empty());
    assert_eq!(hostile::panics(), before, "a task has died of it");
}

/// Sends bytes as they are, and takes any answer.
#[derive(Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = ();
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, bytes: Vec<u8>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put_slice(&bytes);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = ();
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<()>, Status> {
        from.advance(from.remaining());
        Ok(Some(()))
    }
}

/// `bytes` where a whole state belongs, from one who may order.
async fn apply_raw(channel: &Channel, bytes: Vec<u8>) -> Result<(), Status> {
    call(channel, "/squall.v1alpha1.Daemon/Apply", bytes).await
}

async fn call(channel: &Channel, path: &'static str, bytes: Vec<u8>) -> Result<(), Status> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    client.unary(Request::new(bytes), PathAndQuery::from_static(path), Raw).await.map(Response::into_inner)
}

#[tokio::test]
async fn nothing_is_served_but_orders_reports_and_health() {
    let daemon = Daemon::start().await;
    let channel = daemon.channel().await;
    call(&channel, "/grpc.health.v1.Health/Check", vec![]).await.expect("health");
    for path in [
        "/squall.v1alpha1.Daemon/Exec",
        "/squall.v1alpha1.Enrolment/Enroll",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    ] {
        let refused = call(&channel, path, vec![]).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unimplemented, "{path}: {refused}");
    }
}

#[tokio::test]
async fn bytes_that_are_no_message_harm_nobody() {
    use prost::Message;
    let before = hostile::panics();
    let daemon = Daemon::start().await;
    let mut client = daemon.controller().await;
    let whole = state(1, 1, vec![fault("a", "containerd", grpc::Stage::Fire)]).encode_to_vec();
    let cut = (any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>()).prop_map(
        move |(end, at, byte)| {
            let mut bytes = whole.clone();
            let length = bytes.len();
            bytes[at.index(length)] = byte;
            bytes.truncate(end.index(length + 1));
            bytes
        },
    );
    let noise = prop_oneof![cut, prop::collection::vec(any::<u8>(), 0..512)];
    let channel = daemon.channel().await;
    let mut senseless = 0;
    for bytes in samples(noise, 500) {
        match apply_raw(&channel, bytes.clone()).await {
            Ok(()) => {}
            // Parsed and refused by a field's name, or not even parsed.
            Err(status) if status.code() == Code::InvalidArgument => {}
            // Older than one that was taken before.
            Err(status) if status.code() == Code::FailedPrecondition => {}
            Err(status) => {
                assert!(grpc::NodeState::decode(bytes.as_slice()).is_err(), "{status}: {bytes:?}");
                assert_eq!(status.code(), Code::Internal, "{status}: {bytes:?}");
                senseless += 1;
            }
        }
    }
    assert!(senseless > 100, "only {senseless} were no message: the strategy has lost its point");
    // On the wire: before TLS, and instead of a request.
    for bytes in samples(prop::collection::vec(any::<u8>(), 1..2048), 32) {
        let mut stream = TcpStream::connect(("127.0.0.1", daemon.port)).await.unwrap();
        // It may have closed already.
        let _ = stream.write_all(&bytes).await;
    }
    // Larger than any state that makes sense.
    let mut huge = fault("a", "containerd", grpc::Stage::Arm);
    huge.experiment = "x".repeat(64 * 1024 * 1024);
    assert!(client.apply(state(1, 1, vec![huge])).await.is_err());
    let mut client = daemon.controller().await;
    client.apply(state(u64::MAX, u64::MAX, vec![])).await.expect("it still listens");
    // More than any node has, in a message that is not too large.
    let faults = (0..=MAX_FAULTS).map(|_| grpc::Fault::default()).collect();
    let refused = client.apply(state(u64::MAX, u64::MAX, faults)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(refused.message().contains("faults: are"), "{refused}");
    assert_eq!(hostile::panics(), before, "a task has died of it");
}

#[tokio::test]
async fn a_runtime_that_comes_late_is_asked_again() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("runtime.sock");
    let tools = Tools {
        engine: Arc::new(Engine::new(false)),
        cgroups: CgroupRoot::discover("/sys/fs/cgroup".as_ref(), "/proc".as_ref()).unwrap(),
        runtimes: Runtimes::new(vec![Arc::new(Containerd::new(Some(socket.clone()), "/".as_ref()))]),
    };
    let order = squall_daemon::order::ContainerRef {
        namespace: "ns".into(),
        pod: "p".into(),
        pod_uid: "u".into(),
        name: "c".into(),
        scheme: "containerd".into(),
        id: "abc".into(),
    };
    let late = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        // It takes connections and never says a word.
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let (_stream, _) = listener.accept().await.unwrap();
        std::future::pending::<()>().await;
    };
    let start = std::time::Instant::now();
    let found = tokio::select! {
        found = squall_daemon::container::Container::find(&tools, &order) => found.map(drop),
        () = late => unreachable!("it waits for ever"),
    };
    let error = found.expect_err("nobody answers");
    assert_eq!(error.reason(), squall_daemon::report::Reason::RuntimeError);
    // Asked again, it was there; it did not answer, and the deadline says so by name.
    assert!(error.to_string().contains("no answer"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}
