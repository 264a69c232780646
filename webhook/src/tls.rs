//! The webhook's certificate: loaded while it runs, replaced while it runs. TLS 1.3 only.
//!
//! A pair that makes no sense is refused and the old one stays: a bad write must not take the webhook down.

use std::sync::{Arc, PoisonError, RwLock};

use jiff::Timestamp;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

/// Why a pair can't be served.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The certificates can't be read.
    #[error("the certificate can't be read: {0}")]
    Certificate(String),
    /// The key can't be read.
    #[error("the key can't be read: {0}")]
    Key(String),
    /// They don't belong together.
    #[error("key and certificate don't belong together: {0}")]
    Mismatch(#[source] rustls::Error),
    /// TLS 1.3 is missing from the cryptography that was built in.
    #[error("TLS can't be set up: {0}")]
    Setup(#[source] rustls::Error),
}

/// The certificate that is served now, if there is one.
#[derive(Debug, Default)]
pub struct Certificates {
    current: RwLock<Option<Served>>,
}

#[derive(Debug)]
struct Served {
    pair: Arc<CertifiedKey>,
    ends: Timestamp,
}

impl Certificates {
    /// Serve this pair from the next connection on.
    ///
    /// Returns whether it is another one than before.
    pub fn load(&self, certificate: &[u8], key: &[u8]) -> Result<bool, TlsError> {
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(certificate)
            .collect::<Result<_, _>>()
            .map_err(|error| TlsError::Certificate(error.to_string()))?;
        let Some(first) = chain.first() else {
            return Err(TlsError::Certificate("there is none in it".to_owned()));
        };
        let ends = ends(first)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| TlsError::Key(error.to_string()))?;
        let key = ring::sign::any_supported_type(&key).map_err(|error| TlsError::Key(error.to_string()))?;
        let pair = CertifiedKey::new(chain, key);
        pair.keys_match().map_err(TlsError::Mismatch)?;
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let other = current.as_ref().is_none_or(|current| current.pair.cert != pair.cert);
        *current = Some(Served { pair: Arc::new(pair), ends });
        Ok(other)
    }

    /// When the one that is served ends.
    pub fn ends(&self) -> Option<Timestamp> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).as_ref().map(|served| served.ends)
    }

    /// How connections are taken.
    pub fn server_config(self: Arc<Self>) -> Result<Arc<ServerConfig>, TlsError> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(TlsError::Setup)?
            .with_no_client_auth()
            .with_cert_resolver(self);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        current.as_ref().map(|served| served.pair.clone())
    }
}

fn ends(certificate: &CertificateDer<'_>) -> Result<Timestamp, TlsError> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|error| TlsError::Certificate(error.to_string()))?;
    Timestamp::from_second(parsed.validity().not_after.timestamp())
        .map_err(|error| TlsError::Certificate(error.to_string()))
}
