//! The cluster's certificates: one CA, one pair for each component, made once and kept in the state directory.

use std::{
    fs,
    io::Write as _,
    net::{IpAddr, Ipv4Addr},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType, date_time_ymd,
};

use super::config::{API_SERVICE, IP, NODE};

/// Components that are known by `CN=system:<name>`.
pub const CLIENTS: [&str; 3] = ["kube-controller-manager", "kube-scheduler", "kube-proxy"];

/// Makes what is missing.
pub fn ensure(directory: &Path, cluster: &str) -> Result<()> {
    let pki = Pki { directory };
    if !pki.path("sa.key").exists() {
        let key = KeyPair::generate()?;
        // The public half first: the private one says that both are there.
        pki.write("sa.pub", &key.public_key_pem())?;
        pki.write("sa.key", &key.serialize_pem())?;
    }
    if !pki.path("ca.crt").exists() {
        let key = KeyPair::generate()?;
        let mut params = params(&format!("{cluster}-ca"), None);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        pki.write("ca.key", &key.serialize_pem())?;
        pki.write("ca.crt", &params.self_signed(&key)?.pem())?;
    }
    pki.pair("kube-apiserver", "kube-apiserver", None, &api_server_names()?)?;
    pki.pair("front-proxy", "front-proxy", None, &[])?;
    pki.pair("admin", "admin", Some("system:masters"), &[])?;
    pki.pair("kubelet", &format!("system:node:{NODE}"), Some("system:nodes"), &[])?;
    for client in CLIENTS {
        pki.pair(client, &format!("system:{client}"), None, &[])?;
    }
    Ok(())
}

struct Pki<'a> {
    directory: &'a Path,
}

impl Pki<'_> {
    fn path(&self, file: &str) -> PathBuf {
        self.directory.join(file)
    }

    fn read(&self, file: &str) -> Result<String> {
        let path = self.path(file);
        fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))
    }

    /// All at once: a file that is there is whole.
    fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.path(file);
        let new = self.path(&format!("{file}.new"));
        let written = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new);
        written
            .and_then(|mut written| written.write_all(text.as_bytes()))
            .and_then(|()| fs::rename(&new, &path))
            .with_context(|| format!("can't write {}", path.display()))
    }

    /// A key and its certificate, for client and server usage.
    fn pair(&self, file: &str, name: &str, organisation: Option<&str>, names: &[SanType]) -> Result<()> {
        if self.path(&format!("{file}.crt")).exists() {
            return Ok(());
        }
        let ca_key = KeyPair::from_pem(&self.read("ca.key")?).context("can't read the CA's key")?;
        let ca = Issuer::from_ca_cert_pem(&self.read("ca.crt")?, ca_key)
            .context("can't read the CA's certificate")?;
        let key = KeyPair::generate()?;
        let mut params = params(name, organisation);
        params.subject_alt_names = names.to_vec();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate =
            params.signed_by(&key, &ca).with_context(|| format!("can't sign the certificate of {name}"))?;
        self.write(&format!("{file}.key"), &key.serialize_pem())?;
        self.write(&format!("{file}.crt"), &certificate.pem())
    }
}

/// The clusters of this kind live for hours: these dates only have to be around now.
fn params(name: &str, organisation: Option<&str>) -> CertificateParams {
    let mut subject = DistinguishedName::new();
    if let Some(organisation) = organisation {
        subject.push(DnType::OrganizationName, organisation);
    }
    subject.push(DnType::CommonName, name);
    let mut params = CertificateParams::default();
    params.distinguished_name = subject;
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2120, 1, 1);
    params
}

fn api_server_names() -> Result<Vec<SanType>> {
    let addresses = [IP.parse()?, API_SERVICE.parse()?, IpAddr::from(Ipv4Addr::LOCALHOST)];
    let names = [
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ];
    let mut all: Vec<_> = addresses.into_iter().map(SanType::IpAddress).collect();
    for name in names {
        all.push(SanType::DnsName(name.try_into()?));
    }
    Ok(all)
}
