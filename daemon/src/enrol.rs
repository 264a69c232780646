//! Enrolment: how the daemon comes by its certificate.
//!
//! The key is made in memory and never leaves it. The controller signs for the node that the pod's ServiceAccount token
//! names, so nothing that the daemon says of itself counts. It is renewed at two thirds of its life, and at once when
//! the CA has changed. Refuses to talk to anyone but the controller, as known by the CA bundle.

use std::{
    fs, io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures::FutureExt;
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::{
    ClientConfig,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    sign::CertifiedKey,
};
use squall_api::{
    grpc::{EnrollReply, EnrollRequest, enrolment_client::EnrolmentClient},
    names,
};
use tokio::{
    net::TcpStream,
    sync::Notify,
    time::{sleep, timeout},
};
use tokio_rustls::TlsConnector;
use tonic::transport::Endpoint;
use x509_parser::prelude::FromDer;

use crate::tls::{Bundle, Current, TlsError, dns_names, provider};

/// How long one attempt may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long to wait after a failed attempt, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// The longest sleep: clocks may be set, machines suspended, and a sleep of hours would not notice.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// The token could not be read.
    #[error("reading the token {}: {source}", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The key or the request could not be made.
    #[error("making a key and a request: {0}")]
    Request(#[from] rcgen::Error),
    /// The CA bundle is not usable.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The client's side of TLS could not be set up.
    #[error("setting up TLS: {0}")]
    Config(#[from] rustls::Error),
    /// Nobody has said where the controller is.
    #[error("no address of the controller is known")]
    Nowhere,
    /// The controller could not be reached.
    #[error("connecting to the controller at {address}: {source}")]
    Connect {
        /// Where.
        address: String,
        /// Why.
        source: tonic::transport::Error,
    },
    /// No answer in time.
    #[error("the controller at {address} gave no answer within {DEADLINE:?}")]
    Timeout {
        /// Where.
        address: String,
    },
    /// The controller refused.
    #[error("the controller refused to enrol this daemon ({code:?}): {message}")]
    Refused {
        /// Its code.
        code: tonic::Code,
        /// What it said.
        message: String,
    },
    /// The answer is of no use.
    #[error("the controller's answer is of no use: {0}")]
    Answer(String),
}

impl EnrolError {
    /// Whether this was not the controller, or it was not there.
    fn is_elsewhere(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Timeout { .. } => true,
            Self::Token { .. }
            | Self::Request(_)
            | Self::Tls(_)
            | Self::Config(_)
            | Self::Nowhere
            | Self::Refused { .. }
            | Self::Answer(_) => false,
        }
    }
}

/// Where and with what to enrol.
#[derive(Debug)]
pub struct Enrolment {
    /// The controller's enrolment server, HOST:PORT: where it is looked for, one after the other.
    pub addresses: Vec<String>,
    /// The projected token; read each time, because the kubelet renews it.
    pub token: PathBuf,
    /// By what the controller is known.
    pub bundle: Bundle,
    /// This node's name.
    pub node: String,
}

/// A certificate with its key, and when to renew it.
#[derive(Debug)]
pub struct Enrolled {
    /// To be shown.
    pub key: Arc<CertifiedKey>,
    /// Two thirds of its life.
    pub renew: SystemTime,
}

impl Enrolment {
    /// Keeps `current` fresh, for ever; `changed` has it enrol again at once.
    pub async fn keep(&self, current: &Current, changed: &Notify) {
        let mut pause = RETRY.0;
        loop {
            let wait = match self.enrol().await {
                Ok(Enrolled { key, renew }) => {
                    pause = RETRY.0;
                    current.replace(key);
                    let renewed_in = renew.duration_since(SystemTime::now()).unwrap_or_default();
                    tracing::info!(node = self.node, ?renewed_in, "enrolled");
                    sleep_till(renew).left_future()
                }
                Err(error) => {
                    tracing::warn!(%error, again_in = ?pause, "not enrolled");
                    let wait = pause;
                    pause = (pause * 2).min(RETRY.1);
                    sleep(wait).right_future()
                }
            };
            tokio::select! {
                () = wait => {}
                () = changed.notified() => tracing::info!("the CA bundle has changed"),
            }
        }
    }

    /// Asks once, at the first address where the controller is.
    pub async fn enrol(&self) -> Result<Enrolled, EnrolError> {
        let mut addresses = self.addresses.iter().peekable();
        while let Some(address) = addresses.next() {
            let asked = timeout(DEADLINE, self.ask(address)).await;
            match asked.unwrap_or_else(|_| Err(EnrolError::Timeout { address: address.clone() })) {
                Err(error) if error.is_elsewhere() && addresses.peek().is_some() => {
                    tracing::warn!(%error, "the controller is looked for elsewhere");
                }
                answer => return answer,
            }
        }
        Err(EnrolError::Nowhere)
    }

    async fn ask(&self, address: &str) -> Result<Enrolled, EnrolError> {
        let token = fs::read_to_string(&self.token)
            .map_err(|source| EnrolError::Token { path: self.token.clone(), source })?
            .trim()
            .to_owned();
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let csr = CertificateParams::new(Vec::new())?.serialize_request(&key)?.der().to_vec();

        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(self.bundle.roots()?)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let connector = TlsConnector::from(Arc::new(config));
        let to = address.to_owned();
        let connect = tower::service_fn(move |_| {
            let (connector, address) = (connector.clone(), to.clone());
            async move {
                let name = ServerName::try_from(names::CONTROLLER_SERVER_NAME).map_err(io::Error::other)?;
                let tcp = TcpStream::connect(&address).await?;
                Ok::<_, io::Error>(TokioIo::new(connector.connect(name, tcp).await?))
            }
        });
        // TLS is the connector's business, and so is the address; this is only what the request is called.
        let endpoint = Endpoint::from_static("http://squall-controller");
        let channel = endpoint
            .connect_with_connector(connect)
            .await
            .map_err(|source| EnrolError::Connect { address: address.to_owned(), source })?;
        let reply =
            EnrolmentClient::new(channel).enroll(EnrollRequest { token, csr }).await.map_err(|status| {
                EnrolError::Refused { code: status.code(), message: status.message().to_owned() }
            })?;
        self.accept(reply.into_inner(), &key)
    }

    fn accept(&self, reply: EnrollReply, key: &KeyPair) -> Result<Enrolled, EnrolError> {
        let EnrollReply { certificate, node } = reply;
        if node != self.node {
            return Err(EnrolError::Answer(format!("it is for node {node}, this is {}", self.node)));
        }
        let useless = |error: &dyn std::fmt::Display| EnrolError::Answer(error.to_string());
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(certificate.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|error| useless(&error))?;
        let leaf = chain.first().ok_or_else(|| useless(&"there is no certificate in it"))?;
        if !dns_names(leaf).contains(&names::daemon_server_name(&self.node)) {
            return Err(useless(&"the certificate is not for this node"));
        }
        let renew = renewal(leaf).ok_or_else(|| useless(&"the certificate can't be read"))?;
        let private = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let signing = rustls::crypto::ring::sign::any_supported_type(&private)?;
        let key = CertifiedKey::new(chain, signing);
        key.keys_match()?;
        Ok(Enrolled { key: Arc::new(key), renew })
    }
}

/// Sleeps until then by the wall clock.
async fn sleep_till(at: SystemTime) {
    loop {
        sleep(nap(at, SystemTime::now())).await;
        if SystemTime::now() >= at {
            return;
        }
    }
}

/// How long to sleep before the clock is looked at again. With a clock that is wrong every certificate may be due.
fn nap(at: SystemTime, now: SystemTime) -> Duration {
    at.duration_since(now).unwrap_or_default().clamp(RETRY.0, LONGEST_SLEEP)
}

/// Two thirds of a certificate's life.
fn renewal(certificate: &[u8]) -> Option<SystemTime> {
    let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(certificate).ok()?;
    let validity = certificate.validity();
    let (from, to) = (validity.not_before.timestamp(), validity.not_after.timestamp());
    let at = from + (to - from) / 3 * 2;
    Some(UNIX_EPOCH + Duration::from_secs(u64::try_from(at).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_is_looked_at_every_minute_and_never_without_a_pause() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let hours = Duration::from_secs(16 * 3600);
        assert_eq!(nap(now + hours, now), LONGEST_SLEEP);
        assert_eq!(nap(now + Duration::from_secs(20), now), Duration::from_secs(20));
        // It was set, or the machine slept, and the time is long over.
        assert_eq!(nap(now, now + hours), RETRY.0);
    }
}
