//! The wire, really: TLS on loopback, a certificate that changes while it is served, and an orderly end.

mod support;

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use squall_api::names;
use squall_webhook::serve::serve;
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
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(trusted.certificate.as_bytes()).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
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
    let server = tokio::spawn(serve(listener, config, support::bench().router, async {
        let _ = stopped.await;
    }));

    let (first, second) = (pair(), pair());
    assert!(!certificates.is_loaded());
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
