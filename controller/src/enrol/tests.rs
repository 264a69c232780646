//! Over real TLS on loopback; only the review is scripted.

use k8s_openapi::api::authentication::v1::UserInfo;
use rcgen::{CertificateParams, KeyPair};
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use squall_api::grpc::enrolment_client::EnrolmentClient;
use tokio_rustls::TlsConnector;
use tonic::{Code, transport::Endpoint};

use super::*;
use crate::certs::{Ca, Certificate};

struct Scripted;

#[async_trait]
impl Reviewer for Scripted {
    async fn review(&self, token: &str) -> Result<DaemonPod, ReviewError> {
        match token {
            "good" => Ok(DaemonPod { pod: "squall-daemon-x".into(), uid: "u".into(), node: "node-a".into() }),
            "down" => Err(ReviewError::Api {
                verb: "have the token reviewed",
                source: kube::Error::LinesCodecMaxLineLengthExceeded,
            }),
            _ => Err(ReviewError::Refused("not one of ours".into())),
        }
    }
}

fn identity() -> Identity {
    let now = Timestamp::now();
    let ca = Ca::make(now, Duration::from_secs(86400)).unwrap();
    Identity::make(Arc::new(ca), &[], now).unwrap()
}

async fn server(identity: Option<Identity>) -> (SocketAddr, watch::Sender<Option<Identity>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, receiver) = watch::channel(identity);
    tokio::spawn(serve_on(listener, receiver, Arc::new(Scripted)));
    (address, sender)
}

/// As a daemon would: it trusts the bundle, and has no certificate yet.
async fn client(
    address: SocketAddr,
    ca: &Ca,
) -> Result<EnrolmentClient<tonic::transport::Channel>, io::Error> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.cert.der.clone()).unwrap();
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = ServerName::try_from(names::CONTROLLER_SERVER_NAME).unwrap();
    let tcp = TcpStream::connect(address).await?;
    let tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
    let mut once = Some(hyper_util::rt::TokioIo::new(tls));
    let connector = tower::service_fn(move |_| {
        let io = once.take().ok_or_else(|| io::Error::other("once"));
        async move { io }
    });
    let channel = Endpoint::from_static("http://controller").connect_with_connector(connector).await;
    Ok(EnrolmentClient::new(channel.unwrap()))
}

fn csr(key: &KeyPair) -> Vec<u8> {
    CertificateParams::new(vec!["node-b".to_owned()]).unwrap().serialize_request(key).unwrap().der().to_vec()
}

#[tokio::test]
async fn a_daemon_gets_a_certificate_for_the_node_of_its_token() {
    let identity = identity();
    let (address, _sender) = server(Some(identity.clone())).await;
    let mut client = client(address, &identity.ca).await.unwrap();
    let key = KeyPair::generate().unwrap();
    let reply =
        client.enroll(EnrollRequest { token: "good".into(), csr: csr(&key) }).await.unwrap().into_inner();
    assert_eq!(reply.node, "node-a");
    let cert = Certificate::parse(reply.certificate.as_bytes()).unwrap();
    assert_eq!(cert.names, [names::daemon_server_name("node-a")]);
    assert!(cert.is_signed_by(&identity.ca.cert));
}

#[tokio::test]
async fn everything_else_is_refused_by_the_right_code() {
    let identity = identity();
    let (address, _sender) = server(Some(identity.clone())).await;
    let mut client = client(address, &identity.ca).await.unwrap();
    let good = csr(&KeyPair::generate().unwrap());
    for (token, csr, code) in [
        ("", good.clone(), Code::Unauthenticated),
        ("stolen", good.clone(), Code::Unauthenticated),
        ("down", good.clone(), Code::Unavailable),
        ("good", Vec::new(), Code::InvalidArgument),
        ("good", vec![0x30; 10_000], Code::InvalidArgument),
        ("good", vec![0; MESSAGE + 1], Code::OutOfRange),
    ] {
        let status = client.enroll(EnrollRequest { token: token.into(), csr }).await.unwrap_err();
        assert_eq!(status.code(), code, "{token}: {status}");
    }
}

#[tokio::test]
async fn the_certificate_is_swapped_while_serving() {
    let first = identity();
    let (address, sender) = server(None).await;
    assert!(client(address, &first.ca).await.is_err(), "no CA yet: no handshake");
    sender.send_replace(Some(first.clone()));
    client(address, &first.ca).await.unwrap();
    let second = identity();
    sender.send_replace(Some(second.clone()));
    client(address, &second.ca).await.unwrap();
    assert!(client(address, &first.ca).await.is_err(), "the old CA's is gone");
}

#[tokio::test]
async fn who_takes_all_that_he_gets_leaves_room_for_the_daemons_of_other_nodes() {
    let identity = identity();
    let (address, _sender) = server(Some(identity.clone())).await;
    // Silent ones, from an address that is not the daemon's.
    let mut greedy = Vec::new();
    for _ in 0..CONNECTIONS {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        greedy.push(socket.connect(address).await.unwrap());
    }
    let began = std::time::Instant::now();
    client(address, &identity.ca).await.unwrap();
    assert!(began.elapsed() < HANDSHAKE_TIMEOUT, "it waited until the others were hung up on");
}

fn status(user: &str, audiences: &[&str], extra: &[(&str, &[&str])]) -> TokenReviewStatus {
    let owned = |values: &[&str]| values.iter().map(|value| value.to_string()).collect::<Vec<_>>();
    let extra = extra.iter().map(|(key, values)| (key.to_string(), owned(values))).collect();
    let user = UserInfo { username: Some(user.into()), extra: Some(extra), ..UserInfo::default() };
    TokenReviewStatus {
        authenticated: Some(true),
        audiences: Some(owned(audiences)),
        user: Some(user),
        ..TokenReviewStatus::default()
    }
}

#[test]
fn only_a_token_of_a_daemons_pod_for_our_audience_counts() {
    let pod: [(&str, &[&str]); 2] = [(POD_NAME, &["d"]), (POD_UID, &["u"])];
    let with_node: [(&str, &[&str]); 3] = [pod[0], pod[1], (NODE_NAME, &["n"])];
    let good = bearer(status(DAEMON_USER, &["squall.dev"], &with_node)).unwrap();
    assert_eq!((good.pod.as_str(), good.uid.as_str(), good.node.as_deref()), ("d", "u", Some("n")));
    assert_eq!(bearer(status(DAEMON_USER, &["squall.dev"], &pod)).unwrap().node, None);

    let mut unknown = status(DAEMON_USER, &["squall.dev"], &with_node);
    unknown.authenticated = Some(false);
    let other = "system:serviceaccount:default:squall-daemon";
    let two: [(&str, &[&str]); 2] = [(POD_NAME, &["d", "e"]), (POD_UID, &["u"])];
    for refused in [
        unknown,
        TokenReviewStatus::default(),
        status(other, &["squall.dev"], &with_node),
        status(DAEMON_USER, &[], &with_node),
        status(DAEMON_USER, &["https://kubernetes.default.svc"], &with_node),
        status(DAEMON_USER, &["squall.dev"], &[]),
        status(DAEMON_USER, &["squall.dev"], &two),
    ] {
        assert!(matches!(bearer(refused), Err(ReviewError::Refused(_))));
    }
}
