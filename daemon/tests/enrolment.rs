//! Enrolment from the daemon's side: what it sends, whom it believes, and what it takes for an answer.

use std::{fs, io, sync::Arc, time::SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::{
    ServerConfig,
    pki_types::{CertificateSigningRequestDer, PrivateKeyDer},
};
use squall_api::{
    grpc::{
        EnrollReply, EnrollRequest,
        enrolment_server::{Enrolment as Contract, EnrolmentServer},
    },
    names,
};
use squall_daemon::{
    enrol::{EnrolError, Enrolment},
    tls::{Bundle, dns_names, provider},
};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, transport::Server};

const TOKEN: &str = "a token";

type Issuer = CertifiedIssuer<'static, KeyPair>;

/// Signs as the controller does, for the node that it was told.
struct Signer {
    ca: Arc<Issuer>,
    node: String,
}

#[tonic::async_trait]
impl Contract for Signer {
    async fn enroll(&self, request: Request<EnrollRequest>) -> Result<Response<EnrollReply>, Status> {
        let EnrollRequest { token, csr } = request.into_inner();
        if token != TOKEN {
            return Err(Status::unauthenticated("the token is not one of a daemon's pod"));
        }
        let der = CertificateSigningRequestDer::from(csr);
        let mut csr =
            CertificateSigningRequestParams::from_der(&der).map_err(|_| Status::invalid_argument("csr"))?;
        let name = names::daemon_server_name(&self.node);
        csr.params.subject_alt_names = vec![SanType::DnsName(name.try_into().unwrap())];
        csr.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = csr.signed_by(&self.ca).unwrap().pem();
        Ok(Response::new(EnrollReply { certificate, node: self.node.clone() }))
    }
}

fn ca() -> Issuer {
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

async fn controller(ca: Arc<Issuer>, name: &str, node: &str) -> String {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let certificate = params.signed_by(&key, &ca).unwrap().der().clone();
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (sender, incoming) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            if let Ok(tls) = acceptor.accept(tcp).await {
                // tonic wants to know whom it talks to only from types of its own.
                let (ours, theirs) = tokio::io::duplex(64 * 1024);
                tokio::spawn(async move {
                    let (mut tls, mut theirs) = (tls, theirs);
                    let _ = tokio::io::copy_bidirectional(&mut tls, &mut theirs).await;
                });
                let _ = sender.send(Ok::<_, io::Error>(ours)).await;
            }
        }
    });
    let signer = Signer { ca, node: node.to_owned() };
    tokio::spawn(
        Server::builder()
            .add_service(EnrolmentServer::new(signer))
            .serve_with_incoming(ReceiverStream::new(incoming)),
    );
    address
}

fn daemon(address: String, trusted: &Issuer, token: &str) -> (TempDir, Enrolment) {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("ca.crt"), trusted.pem()).unwrap();
    fs::write(dir.path().join("token"), format!("{token}\n")).unwrap();
    let bundle = Bundle::new(dir.path().join("ca.crt"));
    let enrolment = Enrolment {
        addresses: vec![address],
        token: dir.path().join("token"),
        bundle,
        node: "node-a".into(),
    };
    (dir, enrolment)
}

#[tokio::test]
async fn the_daemon_gets_a_certificate_for_its_node_and_renews_it_in_time() {
    let ca = Arc::new(ca());
    let address = controller(Arc::clone(&ca), names::CONTROLLER_SERVER_NAME, "node-a").await;
    let (_dir, enrolment) = daemon(address, &ca, TOKEN);
    let enrolled = enrolment.enrol().await.unwrap();
    assert_eq!(dns_names(&enrolled.key.cert[0]), [names::daemon_server_name("node-a")]);
    assert!(enrolled.renew > SystemTime::now());
    let again = enrolment.enrol().await.unwrap();
    assert_ne!(enrolled.key.cert, again.key.cert, "each has a key of its own");
}

#[tokio::test]
async fn a_controller_that_is_not_where_it_was_is_found_by_its_other_address() {
    let ca = Arc::new(ca());
    let address = controller(Arc::clone(&ca), names::CONTROLLER_SERVER_NAME, "node-a").await;
    // Where nobody listens any more, and where another one does now.
    let closed = TcpListener::bind(("127.0.0.1", 0)).await.unwrap().local_addr().unwrap().to_string();
    let another = controller(Arc::clone(&ca), &names::daemon_server_name("node-b"), "node-a").await;
    let (_dir, mut enrolment) = daemon(closed.clone(), &ca, TOKEN);
    enrolment.addresses.extend([another, address]);
    enrolment.enrol().await.expect("the third address");
    enrolment.addresses.truncate(1);
    let error = enrolment.enrol().await.unwrap_err();
    assert!(matches!(&error, EnrolError::Connect { address, .. } if *address == closed), "{error}");
}

#[tokio::test]
async fn a_refusal_is_told() {
    let ca = Arc::new(ca());
    let address = controller(Arc::clone(&ca), names::CONTROLLER_SERVER_NAME, "node-a").await;
    let (_dir, enrolment) = daemon(address, &ca, "another token");
    let refused = enrolment.enrol().await.unwrap_err();
    assert!(matches!(refused, EnrolError::Refused { code: Code::Unauthenticated, .. }), "{refused}");
}

#[tokio::test]
async fn the_token_goes_to_nobody_but_the_controller() {
    let (known, stranger) = (Arc::new(ca()), Arc::new(ca()));
    let of_another_ca = controller(Arc::clone(&stranger), names::CONTROLLER_SERVER_NAME, "node-a").await;
    let (_dir, enrolment) = daemon(of_another_ca, &known, TOKEN);
    assert!(matches!(enrolment.enrol().await.unwrap_err(), EnrolError::Connect { .. }));
    let of_another_name =
        controller(Arc::clone(&known), &names::daemon_server_name("node-b"), "node-a").await;
    let (_dir, enrolment) = daemon(of_another_name, &known, TOKEN);
    assert!(matches!(enrolment.enrol().await.unwrap_err(), EnrolError::Connect { .. }));
}

#[tokio::test]
async fn a_certificate_for_another_node_is_not_taken() {
    let ca = Arc::new(ca());
    let address = controller(Arc::clone(&ca), names::CONTROLLER_SERVER_NAME, "node-b").await;
    let (_dir, enrolment) = daemon(address, &ca, TOKEN);
    let refused = enrolment.enrol().await.unwrap_err();
    assert!(matches!(refused, EnrolError::Answer(_)), "{refused}");
}
