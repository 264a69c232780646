//! Enrolment: signs the server certificate of the daemon that proves on which node it runs.
//!
//! The proof is a ServiceAccount token bound to the daemon's pod, which the API server reviews. The node in the
//! certificate is the one that the API server names, never the one that the caller asks for. Every replica
//! serves this; whoever is refused learns why, but nothing about the CA.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus},
    core::v1::Pod,
};
use kube::{Api, Client, api::PostParams};
use rustls::{
    ServerConfig,
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert},
    sign::CertifiedKey,
};
use squall_api::{
    grpc::{
        EnrollReply, EnrollRequest,
        enrolment_server::{Enrolment, EnrolmentServer},
    },
    names,
};
use squall_health::limit::{Limit, Place};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, transport::server::Connected};
use tracing::{debug, info, warn};

use crate::certs::{CertError, Identity, provider};

/// Connections at a time. A daemon needs one for a moment, twice a day.
const CONNECTIONS: usize = 256;
/// Of one peer: anybody in the cluster may come, and nobody gets the places of all nodes.
const PER_PEER: usize = 8;
/// Reviews at a time.
const REVIEWS: usize = 16;
/// The longest message: a token and a request are some 2 KiB.
const MESSAGE: usize = 64 * 1024;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECTION_AGE: Duration = Duration::from_secs(30);

const DAEMON_USER: &str = "system:serviceaccount:squall-system:squall-daemon";
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

/// The daemon's pod that a token stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DaemonPod {
    /// The pod's name.
    pub pod: String,
    /// The pod's UID.
    pub uid: String,
    /// The node that it runs on.
    pub node: String,
}

/// Why a token gives no pod.
#[derive(Debug, thiserror::Error)]
pub enum ReviewError {
    /// It isn't a token of a daemon's pod.
    #[error("{0}")]
    Refused(String),
    /// It could not be found out.
    #[error("can't {verb}: {source}")]
    Api {
        /// What was tried.
        verb: &'static str,
        /// Why it failed.
        source: kube::Error,
    },
}

/// Tells whose token it is.
#[async_trait]
pub trait Reviewer: Send + Sync + 'static {
    /// The pod that `token` is bound to.
    async fn review(&self, token: &str) -> Result<DaemonPod, ReviewError>;
}

/// Asks the API server.
pub struct ApiReviewer {
    client: Client,
}

impl ApiReviewer {
    /// One that asks through `client`.
    pub fn new(client: Client) -> ApiReviewer {
        ApiReviewer { client }
    }
}

#[async_trait]
impl Reviewer for ApiReviewer {
    async fn review(&self, token: &str) -> Result<DaemonPod, ReviewError> {
        let spec = TokenReviewSpec {
            token: Some(token.to_owned()),
            audiences: Some(vec![names::TOKEN_AUDIENCE.to_owned()]),
        };
        let review = TokenReview { spec, ..TokenReview::default() };
        let reviews: Api<TokenReview> = Api::all(self.client.clone());
        let answer = reviews
            .create(&PostParams::default(), &review)
            .await
            .map_err(|source| ReviewError::Api { verb: "have the token reviewed", source })?;
        let bearer = bearer(answer.status.unwrap_or_default())?;
        let node = match bearer.node {
            Some(node) => node,
            None => self.node_of(&bearer.pod, &bearer.uid).await?,
        };
        Ok(DaemonPod { pod: bearer.pod, uid: bearer.uid, node })
    }
}

impl ApiReviewer {
    /// For API servers that don't put the node into the review.
    async fn node_of(&self, pod: &str, uid: &str) -> Result<String, ReviewError> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), names::NAMESPACE);
        let found = pods
            .get_opt(pod)
            .await
            .map_err(|source| ReviewError::Api { verb: "read the token's pod", source })?;
        found
            .filter(|found| found.metadata.uid.as_deref() == Some(uid))
            .and_then(|found| found.spec?.node_name)
            .ok_or_else(|| ReviewError::Refused(format!("the token's pod {pod} is gone")))
    }
}

struct Bearer {
    pod: String,
    uid: String,
    node: Option<String>,
}

fn bearer(status: TokenReviewStatus) -> Result<Bearer, ReviewError> {
    let refused = |why: &str| ReviewError::Refused(why.to_owned());
    if status.authenticated != Some(true) {
        return Err(refused("the API server doesn't accept the token"));
    }
    // An API server that knows nothing of audiences says yes without naming one.
    if !status.audiences.unwrap_or_default().iter().any(|audience| audience == names::TOKEN_AUDIENCE) {
        return Err(refused("the token isn't meant for the audience squall.dev"));
    }
    let user = status.user.unwrap_or_default();
    if user.username.as_deref() != Some(DAEMON_USER) {
        return Err(refused("the token isn't one of the ServiceAccount squall-daemon"));
    }
    let mut extra = user.extra.unwrap_or_default();
    let mut single = |key: &str| match extra.remove(key) {
        Some(mut values) if values.len() == 1 => values.pop().filter(|value| !value.is_empty()),
        Some(_) | None => None,
    };
    match (single(POD_NAME), single(POD_UID)) {
        (Some(pod), Some(uid)) => Ok(Bearer { pod, uid, node: single(NODE_NAME) }),
        _ => Err(refused("the token isn't bound to a pod")),
    }
}

/// Why enrolment can't be served.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// The port is taken.
    #[error("can't listen on {address} for enrolments: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// TLS can't be set up.
    #[error("can't set up TLS for enrolments: {0}")]
    Tls(#[source] rustls::Error),
    /// Serving ended.
    #[error("enrolments are no longer served: {0}")]
    Serve(#[source] tonic::transport::Error),
}

/// Serve enrolments for ever.
pub async fn serve(
    address: SocketAddr,
    identity: watch::Receiver<Option<Identity>>,
    reviewer: Arc<dyn Reviewer>,
) -> Result<(), EnrolError> {
    let listener =
        TcpListener::bind(address).await.map_err(|source| EnrolError::Listen { address, source })?;
    serve_on(listener, identity, reviewer).await
}

/// Serve enrolments on a listener that is there already.
pub async fn serve_on(
    listener: TcpListener,
    identity: watch::Receiver<Option<Identity>>,
    reviewer: Arc<dyn Reviewer>,
) -> Result<(), EnrolError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(EnrolError::Tls)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(CurrentCertificate(identity.clone())));
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    let (sender, incoming) = mpsc::channel(1);
    tokio::spawn(accept(listener, TlsAcceptor::from(Arc::new(config)), sender));
    let signer = Signer { identity, reviewer, reviews: Semaphore::new(REVIEWS) };
    let service =
        EnrolmentServer::new(signer).max_decoding_message_size(MESSAGE).max_encoding_message_size(MESSAGE);
    tonic::transport::Server::builder()
        .timeout(CALL_TIMEOUT)
        .concurrency_limit_per_connection(2)
        .max_concurrent_streams(2)
        .max_connection_age(CONNECTION_AGE)
        .max_connection_age_grace(CALL_TIMEOUT)
        .http2_max_header_list_size(16 * 1024)
        .add_service(service)
        .serve_with_incoming(ReceiverStream::new(incoming))
        .await
        .map_err(EnrolError::Serve)
}

/// Whatever certificate is the newest when a connection comes in.
#[derive(Debug)]
struct CurrentCertificate(watch::Receiver<Option<Identity>>);

impl ResolvesServerCert for CurrentCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.borrow().as_ref().map(|identity| identity.server.clone())
    }
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, sender: mpsc::Sender<io::Result<Connection>>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    // How many there are in all is the semaphore's: it waits.
    let peers = Limit::new(usize::MAX, PER_PEER);
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let (stream, peer) = match listener.accept().await {
            Ok((stream, peer)) => (stream, peer.ip()),
            Err(error) => {
                // Mostly: out of file descriptors. Others will close theirs.
                warn!(%error, "can't accept a connection for enrolment");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some(of_peer) = peers.place(peer) else {
            debug!(%peer, "has too many connections for enrolment");
            continue;
        };
        let (tls, sender, place) = (tls.clone(), sender.clone(), (place, of_peer));
        tokio::spawn(async move {
            match timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
                Ok(Ok(tls)) => {
                    let _ = sender.send(Ok(Connection { tls, _place: place })).await;
                }
                Ok(Err(error)) => debug!(%error, "an enrolment's TLS handshake failed"),
                Err(_) => debug!("an enrolment's TLS handshake took too long"),
            }
        });
    }
}

/// A connection, and its place among the [`CONNECTIONS`] and among those of its peer.
struct Connection {
    tls: TlsStream<TcpStream>,
    _place: (OwnedSemaphorePermit, Place),
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) -> Self::ConnectInfo {}
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}

struct Signer {
    identity: watch::Receiver<Option<Identity>>,
    reviewer: Arc<dyn Reviewer>,
    reviews: Semaphore,
}

#[async_trait]
impl Enrolment for Signer {
    async fn enroll(&self, request: Request<EnrollRequest>) -> Result<Response<EnrollReply>, Status> {
        let EnrollRequest { token, csr } = request.into_inner();
        if token.is_empty() {
            return Err(Status::unauthenticated("there is no token"));
        }
        let Some(ca) = self.identity.borrow().as_ref().map(|identity| identity.ca.clone()) else {
            return Err(Status::unavailable("the CA isn't there yet; try again"));
        };
        let _review = self
            .reviews
            .acquire()
            .await
            .map_err(|_| Status::unavailable("the controller is shutting down; try again"))?;
        let pod = match self.reviewer.review(&token).await {
            Ok(pod) => pod,
            Err(ReviewError::Refused(why)) => {
                warn!(%why, "refused an enrolment");
                return Err(Status::unauthenticated(why));
            }
            Err(error @ ReviewError::Api { .. }) => {
                warn!(%error, "can't judge an enrolment");
                return Err(Status::unavailable("the token could not be reviewed; try again"));
            }
        };
        let certificate = ca.sign_daemon(&csr, &pod.node, Timestamp::now()).map_err(|error| match error {
            CertError::Request(_) | CertError::RequestKey | CertError::RequestSignature => {
                warn!(%error, node = %pod.node, pod = %pod.pod, "refused an enrolment");
                Status::invalid_argument(error.to_string())
            }
            CertError::CaKey(_)
            | CertError::CaKeyKind
            | CertError::Parse(_)
            | CertError::NotACa
            | CertError::Mismatch
            | CertError::Make(_)
            | CertError::Tls(_)
            | CertError::Time(_) => {
                warn!(%error, node = %pod.node, "can't sign for a daemon");
                Status::internal("the certificate could not be made; see the controller's log")
            }
        })?;
        info!(node = %pod.node, pod = %pod.pod, uid = %pod.uid, "enrolled a daemon");
        Ok(Response::new(EnrollReply { certificate, node: pod.node }))
    }
}

#[cfg(test)]
mod tests;
