//! Keys and certificates: made, parsed and signed in memory.
//!
//! Every certificate has one of the [`Profile`]s, so that a server's can never be used as a client's, and a
//! daemon's is worth nothing for another node. Of a daemon's request only the key is used.
//! Nothing here reads or writes the cluster: that is `ca`'s.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SubjectPublicKeyInfo,
};
use rustls::{
    ClientConfig, RootCertStore,
    client::Resumption,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use squall_api::names;
use x509_parser::{certification_request::X509CertificationRequest, prelude::FromDer};

/// How long a daemon's certificate and the controller's own are good for.
pub const LEAF_LIFE: Duration = Duration::from_secs(24 * 3600);
/// How long the webhook's certificate is good for.
pub const WEBHOOK_LIFE: Duration = Duration::from_secs(90 * 24 * 3600);
/// Certificates begin this much before they are made: clocks of nodes differ.
pub const BACKDATE: Duration = Duration::from_secs(3600);
/// The shortest time between two renewals of the controller's own.
const RENEW_PAUSE: Duration = Duration::from_secs(30);

/// What went wrong with a key or certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertError {
    /// The CA's key can't be used.
    #[error("the CA's key can't be used: {0}")]
    CaKey(#[source] rcgen::Error),
    /// The CA's key is of another kind than we make.
    #[error("the CA's key isn't ECDSA P-256")]
    CaKeyKind,
    /// The certificate can't be parsed.
    #[error("the certificate can't be parsed: {0}")]
    Parse(String),
    /// The CA's certificate is no CA's.
    #[error("the certificate isn't one of a CA")]
    NotACa,
    /// Key and certificate belong to different pairs.
    #[error("the key doesn't belong to the certificate")]
    Mismatch,
    /// A certificate could not be made.
    #[error("can't make the certificate: {0}")]
    Make(#[source] rcgen::Error),
    /// rustls refuses what we made.
    #[error("can't use the certificate for TLS: {0}")]
    Tls(#[source] rustls::Error),
    /// A time is out of range.
    #[error("the time {0} can't be written into a certificate")]
    Time(Timestamp),
    /// A request to sign is no PKCS #10 request.
    #[error("the request isn't a PKCS #10 request in DER: {0}")]
    Request(String),
    /// A request to sign has the wrong kind of key.
    #[error("the request's key isn't ECDSA P-256")]
    RequestKey,
    /// A request to sign isn't signed by its own key.
    #[error("the request isn't signed by its own key")]
    RequestSignature,
}

/// What a certificate is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Profile {
    /// The webhook's TLS server.
    Webhook,
    /// The controller's enrolment server.
    ControllerServer,
    /// The controller as the daemons' client.
    ControllerClient,
    /// The daemon of this node.
    Daemon(String),
}

impl Profile {
    /// The DNS names in the certificate, the first being the one that is asked for.
    pub fn names(&self) -> Vec<String> {
        match self {
            Profile::Webhook => {
                vec![names::WEBHOOK_SERVER_NAME.into(), format!("{}.{}", names::WEBHOOK, names::NAMESPACE)]
            }
            Profile::ControllerServer => vec![names::CONTROLLER_SERVER_NAME.into()],
            Profile::ControllerClient => vec![names::CONTROLLER_CLIENT_NAME.into()],
            Profile::Daemon(node) => vec![names::daemon_server_name(node)],
        }
    }

    /// How long the certificate is good for.
    pub fn life(&self) -> Duration {
        match self {
            Profile::Webhook => WEBHOOK_LIFE,
            Profile::ControllerServer | Profile::ControllerClient | Profile::Daemon(_) => LEAF_LIFE,
        }
    }

    fn usage(&self) -> ExtendedKeyUsagePurpose {
        match self {
            Profile::Webhook | Profile::ControllerServer | Profile::Daemon(_) => {
                ExtendedKeyUsagePurpose::ServerAuth
            }
            Profile::ControllerClient => ExtendedKeyUsagePurpose::ClientAuth,
        }
    }

    fn common_name(&self) -> &'static str {
        match self {
            Profile::Webhook => names::WEBHOOK,
            Profile::ControllerServer | Profile::ControllerClient => names::CONTROLLER,
            Profile::Daemon(_) => names::DAEMON,
        }
    }
}

/// From when to when something is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// When it was made.
    pub made: Timestamp,
    /// When it ends.
    pub ends: Timestamp,
}

impl Validity {
    /// When two thirds are over: time for a new one.
    pub fn renew_at(&self) -> Timestamp {
        Timestamp::from_second(
            self.made.as_second() + (self.ends.as_second() - self.made.as_second()) * 2 / 3,
        )
        .unwrap_or(self.made)
    }
}

/// A certificate that was parsed: a CA's or a leaf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// The certificate itself.
    pub der: CertificateDer<'static>,
    /// From when to when.
    pub validity: Validity,
    /// The DNS names in it.
    pub names: Vec<String>,
    /// Whether it is a CA's.
    pub is_ca: bool,
    public_key: Vec<u8>,
}

impl Certificate {
    /// Parse the first certificate in a PEM text.
    pub fn parse(pem: &[u8]) -> Result<Certificate, CertError> {
        let der =
            CertificateDer::from_pem_slice(pem).map_err(|error| CertError::Parse(format!("{error:?}")))?;
        let (rest, parsed) =
            x509_parser::parse_x509_certificate(&der).map_err(|error| CertError::Parse(error.to_string()))?;
        if !rest.is_empty() {
            return Err(CertError::Parse("bytes after its end".into()));
        }
        let time = |seconds: i64| {
            Timestamp::from_second(seconds).map_err(|error| CertError::Parse(error.to_string()))
        };
        let made = time(parsed.validity().not_before.timestamp().saturating_add(BACKDATE.as_secs() as i64))?;
        let ends = time(parsed.validity().not_after.timestamp())?;
        let mut dns_names = Vec::new();
        if let Ok(Some(san)) = parsed.subject_alternative_name() {
            for name in &san.value.general_names {
                if let x509_parser::extensions::GeneralName::DNSName(name) = name {
                    dns_names.push((*name).to_owned());
                }
            }
        }
        let is_ca = parsed.is_ca();
        let public_key = parsed.public_key().subject_public_key.data.to_vec();
        Ok(Certificate { validity: Validity { made, ends }, names: dns_names, is_ca, public_key, der })
    }

    /// Whether `issuer`'s key signed this certificate.
    pub fn is_signed_by(&self, issuer: &Certificate) -> bool {
        let (Ok((_, mine)), Ok((_, theirs))) = (
            x509_parser::parse_x509_certificate(&self.der),
            x509_parser::parse_x509_certificate(&issuer.der),
        ) else {
            return false;
        };
        mine.verify_signature(Some(theirs.public_key())).is_ok()
    }

    /// Whether `key_pem` is this certificate's private key.
    pub fn has_key(&self, key_pem: &[u8]) -> bool {
        std::str::from_utf8(key_pem)
            .ok()
            .and_then(|pem| KeyPair::from_pem(pem).ok())
            .is_some_and(|key| key.public_key_raw() == self.public_key)
    }
}

/// A CA: signs certificates.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate, PEM.
    pub cert_pem: String,
    /// Its certificate, parsed.
    pub cert: Certificate,
}

impl std::fmt::Debug for Ca {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ca").field("validity", &self.cert.validity).finish_non_exhaustive()
    }
}

impl Ca {
    /// Make a new CA; the key comes out only through [`Ca::key_pem`].
    pub fn make(now: Timestamp, life: Duration) -> Result<Ca, CertError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(CertError::Make)?;
        let mut params = CertificateParams::default();
        set_validity(&mut params, now, now + life)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        // Old and new must have different names, or a verifier may try the wrong one and give up.
        let id: String = params.key_identifier(&key)[..4].iter().map(|byte| format!("{byte:02x}")).collect();
        let mut name = DistinguishedName::new();
        name.push(DnType::CommonName, format!("squall-ca {id}"));
        params.distinguished_name = name;
        let cert_pem = params.self_signed(&key).map_err(CertError::Make)?.pem();
        Ca::parse(key.serialize_pem().as_bytes(), cert_pem.as_bytes())
    }

    /// Take a CA from its PEM texts.
    pub fn parse(key_pem: &[u8], cert_pem: &[u8]) -> Result<Ca, CertError> {
        let cert = Certificate::parse(cert_pem)?;
        let cert_pem = String::from_utf8(cert_pem.to_vec()).map_err(|e| CertError::Parse(e.to_string()))?;
        let key_pem = std::str::from_utf8(key_pem).map_err(|_| CertError::CaKeyKind)?;
        let key = KeyPair::from_pem(key_pem).map_err(CertError::CaKey)?;
        if key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
            return Err(CertError::CaKeyKind);
        }
        if key.public_key_raw() != cert.public_key {
            return Err(CertError::Mismatch);
        }
        if !cert.is_ca {
            return Err(CertError::NotACa);
        }
        let issuer =
            Issuer::from_ca_cert_der(&cert.der, key).map_err(|error| CertError::Parse(error.to_string()))?;
        Ok(Ca { issuer, cert_pem, cert })
    }

    /// The private key, for the Secret.
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// Make a key and a certificate for it.
    pub fn issue(&self, profile: &Profile, now: Timestamp) -> Result<Pair, CertError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(CertError::Make)?;
        let cert_pem = self.sign(&key, profile, now)?;
        let cert = Certificate::parse(cert_pem.as_bytes())?;
        Ok(Pair { key_pem: key.serialize_pem(), key_der: key.serialize_der(), cert_pem, cert })
    }

    /// Sign the key in a daemon's request; the names are ours. Answers the certificate, PEM.
    pub fn sign_daemon(&self, request_der: &[u8], node: &str, now: Timestamp) -> Result<String, CertError> {
        let (rest, request) = X509CertificationRequest::from_der(request_der)
            .map_err(|error| CertError::Request(error.to_string()))?;
        if !rest.is_empty() {
            return Err(CertError::Request("bytes after its end".into()));
        }
        let key = SubjectPublicKeyInfo::from_der(request.certification_request_info.subject_pki.raw)
            .map_err(|_| CertError::RequestKey)?;
        if key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
            return Err(CertError::RequestKey);
        }
        request.verify_signature().map_err(|_| CertError::RequestSignature)?;
        self.sign(&key, &Profile::Daemon(node.to_owned()), now)
    }

    fn sign(&self, key: &impl PublicKeyData, profile: &Profile, now: Timestamp) -> Result<String, CertError> {
        let mut params = CertificateParams::new(profile.names()).map_err(CertError::Make)?;
        set_validity(&mut params, now, (now + profile.life()).min(self.cert.validity.ends))?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![profile.usage()];
        params.use_authority_key_identifier_extension = true;
        let mut name = DistinguishedName::new();
        name.push(DnType::CommonName, profile.common_name());
        params.distinguished_name = name;
        Ok(params.signed_by(key, &self.issuer).map_err(CertError::Make)?.pem())
    }
}

/// A private key with its certificate.
#[derive(Clone)]
pub struct Pair {
    /// The key, PEM.
    pub key_pem: String,
    key_der: Vec<u8>,
    /// The certificate, PEM.
    pub cert_pem: String,
    /// The certificate, parsed.
    pub cert: Certificate,
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pair").field("names", &self.cert.names).finish_non_exhaustive()
    }
}

impl Pair {
    /// As rustls wants it.
    pub fn certified_key(&self) -> Result<CertifiedKey, CertError> {
        let chain = vec![self.cert.der.clone()];
        CertifiedKey::from_der(chain, self.private_key(), &provider()).map_err(CertError::Tls)
    }

    fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key_der.clone()))
    }
}

/// What a controller replica is, in memory only: made anew whenever the CA changes or two thirds are over.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Signs enrolments.
    pub ca: Arc<Ca>,
    /// The enrolment server's pair.
    pub server: Arc<CertifiedKey>,
    /// For talking to daemons: client certificate, TLS 1.3, HTTP/2, our CAs as the only roots.
    pub client: Arc<ClientConfig>,
    /// When it has to be made anew.
    pub renew_at: Timestamp,
}

impl Identity {
    /// Make one. `trusted` are the certificates of further CAs to accept, in a rotation.
    pub fn make(ca: Arc<Ca>, trusted: &[Certificate], now: Timestamp) -> Result<Identity, CertError> {
        let server = ca.issue(&Profile::ControllerServer, now)?;
        let client = ca.issue(&Profile::ControllerClient, now)?;
        let mut roots = RootCertStore::empty();
        for cert in std::iter::once(&ca.cert).chain(trusted) {
            roots.add(cert.der.clone()).map_err(CertError::Tls)?;
        }
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(CertError::Tls)?
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![client.cert.der.clone()], client.private_key())
            .map_err(CertError::Tls)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        // Each connection shall look at the daemon's certificate.
        config.resumption = Resumption::disabled();
        // A CA about to run out clips what it signs; nobody shall go round in circles for that.
        let renew_at =
            server.cert.validity.renew_at().min(client.cert.validity.renew_at()).max(now + RENEW_PAUSE);
        Ok(Identity { ca, server: Arc::new(server.certified_key()?), client: Arc::new(config), renew_at })
    }
}

/// The one crypto provider of ours; never rustls's process-wide default, which other crates may set.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: std::sync::LazyLock<Arc<CryptoProvider>> =
        std::sync::LazyLock::new(|| Arc::new(rustls::crypto::ring::default_provider()));
    PROVIDER.clone()
}

fn set_validity(params: &mut CertificateParams, from: Timestamp, to: Timestamp) -> Result<(), CertError> {
    let time = |at: Timestamp| {
        time::OffsetDateTime::from_unix_timestamp(at.as_second()).map_err(|_| CertError::Time(at))
    };
    params.not_before = time(from - BACKDATE)?;
    params.not_after = time(to)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-11-22T12:00:00Z".parse().unwrap()
    }

    fn ca() -> Ca {
        Ca::make(now(), Duration::from_secs(365 * 86400)).unwrap()
    }

    fn request(key: &KeyPair, names: &[&str]) -> Vec<u8> {
        let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
        CertificateParams::new(names).unwrap().serialize_request(key).unwrap().der().to_vec()
    }

    #[test]
    fn a_ca_survives_the_secret() {
        let ca = ca();
        let again = Ca::parse(ca.key_pem().as_bytes(), ca.cert_pem.as_bytes()).unwrap();
        assert_eq!(again.cert, ca.cert);
        assert_eq!(again.cert.validity.made, now());
        let leaf = again.issue(&Profile::Webhook, now()).unwrap();
        assert!(leaf.cert.is_signed_by(&ca.cert));
        assert!(leaf.cert.has_key(leaf.key_pem.as_bytes()));
        assert_eq!(leaf.cert.names, ["squall-webhook.squall-system.svc", "squall-webhook.squall-system"]);
    }

    #[test]
    fn a_leaf_is_no_ca_and_a_strange_key_no_pair() {
        let (one, two) = (ca(), ca());
        let mixed = Ca::parse(one.key_pem().as_bytes(), two.cert_pem.as_bytes());
        assert!(matches!(mixed, Err(CertError::Mismatch)));
        let leaf = one.issue(&Profile::Webhook, now()).unwrap();
        let posing = Ca::parse(leaf.key_pem.as_bytes(), leaf.cert_pem.as_bytes());
        assert!(matches!(posing, Err(CertError::NotACa)));
        assert!(!leaf.cert.is_signed_by(&two.cert));
    }

    #[test]
    fn usages_are_separate_and_single() {
        for (profile, server) in [
            (Profile::Webhook, true),
            (Profile::ControllerServer, true),
            (Profile::ControllerClient, false),
            (Profile::Daemon("n".into()), true),
        ] {
            let pair = ca().issue(&profile, now()).unwrap();
            let (_, cert) = x509_parser::parse_x509_certificate(&pair.cert.der).unwrap();
            let usage = cert.extended_key_usage().unwrap().unwrap().value;
            assert_eq!((usage.server_auth, usage.client_auth, usage.any), (server, !server, false));
            assert!(!pair.cert.is_ca);
        }
    }

    #[test]
    fn a_leaf_never_outlives_its_ca() {
        let ca = Ca::make(now(), Duration::from_secs(3600)).unwrap();
        let leaf = ca.issue(&Profile::Webhook, now()).unwrap();
        assert_eq!(leaf.cert.validity.ends, ca.cert.validity.ends);
    }

    #[test]
    fn a_daemons_names_are_ours_whatever_it_asks() {
        let key = KeyPair::generate().unwrap();
        let csr = request(&key, &["controller.client.squall.dev", "*.squall.dev"]);
        let pem = ca().sign_daemon(&csr, "node-a", now()).unwrap();
        let cert = Certificate::parse(pem.as_bytes()).unwrap();
        assert_eq!(cert.names, [names::daemon_server_name("node-a")]);
        assert!(cert.has_key(key.serialize_pem().as_bytes()));
        assert_eq!(cert.validity.ends, now() + LEAF_LIFE);
    }

    #[test]
    fn hostile_requests_are_refused() {
        let ca = ca();
        let key = KeyPair::generate().unwrap();
        let good = request(&key, &["x"]);
        let refuse = |der: &[u8]| ca.sign_daemon(der, "node-a", now()).unwrap_err();
        assert!(matches!(refuse(b""), CertError::Request(_)));
        assert!(matches!(refuse(&[0x30; 4096]), CertError::Request(_)));
        let mut trailing = good.clone();
        trailing.push(0);
        assert!(matches!(refuse(&trailing), CertError::Request(_)));
        let mut forged = good.clone();
        let last = forged.len() - 1;
        forged[last] ^= 1;
        assert!(matches!(refuse(&forged), CertError::RequestSignature));
        // Somebody else's key, signed by one's own: no proof of possession.
        let other = KeyPair::generate().unwrap();
        let at = good.windows(65).position(|bytes| bytes == key.public_key_raw()).unwrap();
        let mut stolen = good.clone();
        stolen[at..at + 65].copy_from_slice(other.public_key_raw());
        assert!(matches!(refuse(&stolen), CertError::RequestSignature));
        let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        assert!(matches!(refuse(&request(&p384, &["x"])), CertError::RequestKey));
        // No single flipped byte makes it panic.
        for at in 0..good.len() {
            let mut bent = good.clone();
            bent[at] ^= 0xff;
            let _ = ca.sign_daemon(&bent, "node-a", now());
            let _ = ca.sign_daemon(&good[..at], "node-a", now());
        }
    }
}
