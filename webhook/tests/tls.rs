//! The wire, really: TLS on loopback, a certificate that changes while it is served, and an orderly end.

mod support;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use squall_api::names;
use squall_webhook::health::Health;
use squall_webhook::serve::{PEER, serve};
use squall_webhook::tls::Certificates;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

struct Pair {
    certificate: String,
    key: String,
}

fn pair() -> Pair {
    let made = rcgen::generate_simple_self_signed(vec![names::WEBHOOK_SERVER_NAME.to_owned()]).unwrap();
    Pair { certificate: made.cert.pem(), key: made.signing_key.serialize_pem() }
}

async fn connect(
    port: u16,
    trusted: &Pair,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> std::io::Result<TlsStream<TcpStream>> {
    connect_as(port, trusted, versions, "").await
}

async fn connect_as(
    port: u16,
    trusted: &Pair,
    versions: &[&'static rustls::SupportedProtocolVersion],
    alpn: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(trusted.certificate.as_bytes()).unwrap()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols.extend(Some(alpn.as_bytes().to_vec()).filter(|alpn| !alpn.is_empty()));
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let name = ServerName::try_from(names::WEBHOOK_SERVER_NAME).unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

async fn ask(stream: &mut TlsStream<TcpStream>) -> String {
    let body = "{}";
    let head = format!(
        "POST {} HTTP/1.1\r\nhost: squall\r\ncontent-length: {}\r\n\r\n{body}",
        names::PATH_MUTATE_PODS,
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = vec![0; 4096];
    let read = stream.read(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer[..read]).into_owned()
}

const TLS13: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];

#[tokio::test]
async fn a_certificate_is_replaced_while_it_is_served() {
    let certificates = Arc::new(Certificates::default());
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (stop, stopped) = oneshot::channel::<()>();
    let config = certificates.clone().server_config().unwrap();
    let server = tokio::spawn(serve(listener, config, support::bench().router, PEER, async {
        let _ = stopped.await;
    }));

    let (first, second) = (pair(), pair());
    assert_eq!(certificates.ends(), None);
    assert!(connect(port, &first, TLS13).await.is_err(), "nothing is served without a certificate");

    assert!(certificates.load(first.certificate.as_bytes(), first.key.as_bytes()).unwrap());
    assert!(!certificates.load(first.certificate.as_bytes(), first.key.as_bytes()).unwrap());
    let mut old = connect(port, &first, TLS13).await.unwrap();
    assert!(ask(&mut old).await.starts_with("HTTP/1.1 400"));
    assert!(connect(port, &second, TLS13).await.is_err());

    // What makes no sense changes nothing.
    for (certificate, key) in [
        (first.certificate.as_str(), second.key.as_str()),
        ("", first.key.as_str()),
        (first.certificate.as_str(), "nonsense"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", first.key.as_str()),
    ] {
        assert!(certificates.load(certificate.as_bytes(), key.as_bytes()).is_err());
    }
    connect(port, &first, TLS13).await.unwrap();

    assert!(certificates.load(second.certificate.as_bytes(), second.key.as_bytes()).unwrap());
    let mut new = connect(port, &second, TLS13).await.unwrap();
    assert!(ask(&mut new).await.starts_with("HTTP/1.1 400"));
    assert!(connect(port, &first, TLS13).await.is_err(), "the old one is served no more");
    assert!(ask(&mut old).await.starts_with("HTTP/1.1 400"), "who is connected stays so");

    // Someone who says nothing keeps nobody from leaving.
    let silent = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stop.send(()).unwrap();
    tokio::time::timeout(Duration::from_secs(10), server).await.unwrap().unwrap();
    assert!(TcpStream::connect(("127.0.0.1", port)).await.is_err());
    drop(silent);
}

/// A server with a certificate and at most `peer` connections to anyone; its port, the certificate, and what to drop to
/// end it.
async fn serving(peer: usize) -> (u16, Pair, oneshot::Sender<()>) {
    let certificates = Arc::new(Certificates::default());
    let pair = pair();
    certificates.load(pair.certificate.as_bytes(), pair.key.as_bytes()).unwrap();
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (stop, stopped) = oneshot::channel::<()>();
    let config = certificates.server_config().unwrap();
    tokio::spawn(serve(listener, config, support::bench().router, peer, async {
        let _ = stopped.await;
    }));
    (port, pair, stop)
}

#[rstest::rstest]
#[case::nothing_said("", "")]
#[case::half_a_head("", "POST / HTTP/1.1\r\n")]
#[case::nothing_said_in_h2("h2", "")]
#[case::h2_without_a_request("h2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")]
#[tokio::test]
async fn who_asks_nothing_is_hung_up_on(#[case] alpn: &str, #[case] said: &str) {
    let (port, pair, _stop) = serving(PEER).await;
    let mut silent = connect_as(port, &pair, TLS13, alpn).await.unwrap();
    silent.write_all(said.as_bytes()).await.unwrap();
    // From here on the clock goes on whenever nobody has anything to do.
    tokio::time::pause();
    let mut heard = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(30), silent.read_to_end(&mut heard)).await;
    assert!(ended.is_ok(), "still connected after half a minute");
}

#[tokio::test]
async fn one_peer_does_not_take_every_connection() {
    let (port, pair, _stop) = serving(32).await;
    let mut held = Vec::new();
    for _ in 0..32 {
        held.push(TcpStream::connect(("127.0.0.1", port)).await.unwrap());
    }
    assert!(connect(port, &pair, TLS13).await.is_err());
    held.clear();
    let freed = async {
        loop {
            match connect(port, &pair, TLS13).await {
                Ok(stream) => return stream,
                // The server has not noticed yet.
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    let mut stream = tokio::time::timeout(Duration::from_secs(5), freed).await.unwrap();
    assert!(ask(&mut stream).await.starts_with("HTTP/1.1 400"));
}

/// An API server has a connection for each review under way.
#[tokio::test]
async fn two_hundred_reviews_at_once_from_one_peer_are_all_answered() {
    let (port, pair, _stop) = serving(PEER).await;
    // All are connected before the first is answered, and stay so.
    let mut held = Vec::new();
    for number in 0..200 {
        match connect_as(port, &pair, TLS13, "http/1.1").await {
            Ok(stream) => held.push(stream),
            Err(error) => panic!("connection {number}: {error}"),
        }
    }
    for stream in &mut held {
        assert!(ask(stream).await.starts_with("HTTP/1.1 400"));
    }
}

/// It keeps one that it doesn't use for 90 s. When we hang up first, it may be asking just then, and that is an error.
#[tokio::test]
async fn a_connection_is_kept_for_longer_than_an_api_server_keeps_it() {
    let (port, pair, _stop) = serving(PEER).await;
    let mut kept = connect_as(port, &pair, TLS13, "http/1.1").await.unwrap();
    assert!(ask(&mut kept).await.starts_with("HTTP/1.1 400"));
    tokio::time::pause();
    let ended = tokio::time::timeout(Duration::from_secs(95), kept.read(&mut [0; 8])).await;
    assert!(ended.is_err(), "hung up on: {ended:?}");
    assert!(ask(&mut kept).await.starts_with("HTTP/1.1 400"));
}

#[test]
fn with_a_certificate_that_is_over_it_is_not_ready() {
    let certificates = Arc::new(Certificates::default());
    let health = Health {
        world: Arc::default(),
        certificates: certificates.clone(),
        leaving: AtomicBool::new(false),
        metrics: Arc::default(),
    };
    let mut made = rcgen::CertificateParams::new(vec![names::WEBHOOK_SERVER_NAME.to_owned()]).unwrap();
    made.not_after = rcgen::date_time_ymd(2030, 1, 1);
    let key = rcgen::KeyPair::generate().unwrap();
    let made = made.self_signed(&key).unwrap();
    let at = |time: &str| health.missing(time.parse().unwrap()).unwrap_or_default();
    assert!(at("2026-11-22T20:00:00Z").contains("no certificate"));
    certificates.load(made.pem().as_bytes(), key.serialize_pem().as_bytes()).unwrap();
    assert!(at("2029-12-31T23:59:59Z").contains("experiments"));
    assert!(at("2030-01-01T00:00:00Z").contains("is over"));
}
