//! TLS 1.3 for the daemon's port: its own certificate, replaced while running, and the one client that it listens to.
//!
//! A client needs a certificate of the CA, for client usage, *and* with the controller's name: another certificate of
//! the same CA, such as another daemon's, is worth nothing here. Sessions are not resumed, for a resumed one would not
//! be checked against the present bundle. No certificate yet means no handshake.

use std::{
    fs, io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, UnixTime, pem::PemObject},
    server::{
        ClientHello, NoServerSessionStorage, ResolvesServerCert, VerifierBuilderError, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
};
use squall_api::names;
use x509_parser::{extensions::GeneralName, prelude::FromDer};

/// What can go wrong when TLS is set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The bundle could not be read.
    #[error("reading the CA bundle {}: {source}", path.display())]
    Bundle {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no usable certificate in the bundle.
    #[error("the CA bundle {} has no usable certificate: {why}", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
        /// More on that.
        why: String,
    },
    /// The check of clients could not be set up.
    #[error("setting up the check of clients: {0}")]
    Verifier(#[from] VerifierBuilderError),
    /// TLS could not be set up.
    #[error("setting up TLS: {0}")]
    Config(#[from] rustls::Error),
}

/// The CA's certificates, from a file that changes when the CA is rotated.
#[derive(Debug)]
pub struct Bundle {
    path: PathBuf,
}

impl Bundle {
    /// The bundle at `path`.
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    fn read(&self) -> Result<Vec<u8>, TlsError> {
        fs::read(&self.path).map_err(|source| TlsError::Bundle { path: self.path.clone(), source })
    }

    /// The certificates that are trusted now.
    pub fn roots(&self) -> Result<RootCertStore, TlsError> {
        self.parse(&self.read()?)
    }

    fn parse(&self, pem: &[u8]) -> Result<RootCertStore, TlsError> {
        let empty = |why: String| TlsError::Empty { path: self.path.clone(), why };
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate = certificate.map_err(|error| empty(error.to_string()))?;
            roots.add(certificate).map_err(|error| empty(error.to_string()))?;
        }
        if roots.is_empty() { Err(empty("it is empty".into())) } else { Ok(roots) }
    }
}

/// The certificate that the daemon shows; it may come late and be replaced at any time.
#[derive(Debug, Default)]
pub struct Current(RwLock<Option<Arc<CertifiedKey>>>);

impl Current {
    /// From now on `key` is shown.
    pub fn replace(&self, key: Arc<CertifiedKey>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(key);
    }

    /// Whether there is one, and whether it still stands at `now`.
    pub fn validity(&self, now: SystemTime) -> Validity {
        let key = self.0.read().unwrap_or_else(PoisonError::into_inner).clone();
        match key.and_then(|key| key.cert.first().map(|leaf| not_after(leaf))) {
            None => Validity::Missing,
            // One that can't be read shows nobody who this is.
            Some(until) if until.is_some_and(|until| now <= until) => Validity::Valid,
            Some(_) => Validity::Expired,
        }
    }
}

/// What there is to be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// Nothing yet.
    Missing,
    /// A certificate whose time is over.
    Expired,
    /// A certificate that stands.
    Valid,
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The server's side of TLS, made anew whenever the bundle has changed.
#[derive(Debug)]
pub struct ServerTls {
    bundle: Bundle,
    current: Arc<Current>,
    built: Mutex<Option<(Vec<u8>, Arc<ServerConfig>)>>,
}

impl ServerTls {
    /// Trusts what is in `bundle`, shows what is in `current`.
    pub fn new(bundle: Bundle, current: Arc<Current>) -> Self {
        Self { bundle, current, built: Mutex::new(None) }
    }

    /// The configuration for the next connection, and whether the bundle has changed since the last one.
    pub fn config(&self) -> Result<(Arc<ServerConfig>, bool), TlsError> {
        let pem = self.bundle.read()?;
        let mut built = self.built.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, config)) = &*built
            && *known == pem
        {
            return Ok((Arc::clone(config), false));
        }
        let roots = Arc::new(self.bundle.parse(&pem)?);
        let inner = WebPkiClientVerifier::builder_with_provider(roots, provider()).build()?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(OnlyTheController { inner }))
            .with_cert_resolver(Arc::clone(&self.current) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        let config = Arc::new(config);
        let changed = built.replace((pem, Arc::clone(&config))).is_some();
        Ok((config, changed))
    }
}

/// The cryptography that is used everywhere.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Adds the name to the checks of the chain, the time and the usage.
#[derive(Debug)]
struct OnlyTheController {
    inner: Arc<dyn ClientCertVerifier>,
}

impl ClientCertVerifier for OnlyTheController {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now)?;
        if dns_names(end_entity).iter().any(|name| name == names::CONTROLLER_CLIENT_NAME) {
            Ok(verified)
        } else {
            Err(CertificateError::NotValidForName.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Until when a certificate stands.
fn not_after(certificate: &[u8]) -> Option<SystemTime> {
    let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(certificate).ok()?;
    let until = u64::try_from(certificate.validity().not_after.timestamp()).ok()?;
    UNIX_EPOCH.checked_add(Duration::from_secs(until))
}

/// The DNS names in a certificate; none if it can't be read.
pub fn dns_names(certificate: &[u8]) -> Vec<String> {
    let Ok((_, certificate)) = x509_parser::certificate::X509Certificate::from_der(certificate) else {
        return Vec::new();
    };
    let names = certificate.subject_alternative_name().ok().flatten();
    names
        .into_iter()
        .flat_map(|names| &names.value.general_names)
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};
    use rustls::pki_types::PrivateKeyDer;

    use super::*;

    #[test]
    fn a_certificate_stands_until_its_last_second() {
        let current = Current::default();
        let now = SystemTime::now();
        assert_eq!(current.validity(now), Validity::Missing);
        let pair = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["a".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(2040, 1, 1);
        let certificate = params.self_signed(&pair).unwrap().der().clone();
        let private = PrivateKeyDer::Pkcs8(pair.serialize_der().into());
        let signing = rustls::crypto::ring::sign::any_supported_type(&private).unwrap();
        current.replace(Arc::new(CertifiedKey::new(vec![certificate], signing)));
        let until = UNIX_EPOCH + Duration::from_secs(2_208_988_800);
        assert_eq!(current.validity(until), Validity::Valid);
        assert_eq!(current.validity(until + Duration::from_secs(1)), Validity::Expired);
    }
}
