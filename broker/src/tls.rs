//! The cluster's own certificate authority, and the certificates that it
//! signs.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use muster_protocol::ids::ClusterId;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use zeroize::Zeroizing;

mod own;

pub use self::own::OwnCertificate;
use crate::config::Config;
use crate::state_dir::{StateDir, StateDirError, make_dir, read_private, write_atomic, write_new};

/// How long a server certificate is valid; a new one is made at every start.
const SERVER_YEARS: i16 = 2;
/// How long the authority is valid.
const AUTHORITY_YEARS: i16 = 30;

/// Why there are no certificates.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// The disk.
    #[error(transparent)]
    State(#[from] StateDirError),
    /// The authority in the state directory cannot be used.
    #[error("the certificate authority in {} is damaged: {why}; restore it from a backup", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A certificate could not be made.
    #[error("a certificate could not be made: {0}")]
    Make(#[from] rcgen::Error),
    /// rustls does not take it.
    #[error("TLS cannot be set up: {0}")]
    Setup(#[from] rustls::Error),
    /// A file with certificates.
    #[error("cannot read certificates from {}: {why}", .path.display())]
    Certificates {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// Makes ring the provider of all TLS in this process; once is enough, and
/// again does no harm.
pub fn install_provider() {
    // An error only says that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// The cluster's certificate authority.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl std::fmt::Debug for Ca {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ca")
            .field("key", &"[redacted]")
            .finish_non_exhaustive()
    }
}

/// Files with a server's certificate and key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServerFiles {
    /// The certificate, PEM.
    pub cert: PathBuf,
    /// Its private key, PEM, mode 0600.
    pub key: PathBuf,
}

struct Leaf {
    cert_pem: String,
    cert: CertificateDer<'static>,
    key: KeyPair,
}

impl Ca {
    /// Reads the authority; makes it at the first call.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn open(state: &StateDir, cluster: ClusterId) -> Result<Self, TlsError> {
        let key_path = state.keys().join("ca.key");
        let pem_path = state.keys().join("ca.pem");
        if read_private(&key_path)?.is_none() {
            let key = KeyPair::generate()?;
            write_new(
                &key_path,
                Zeroizing::new(key.serialize_pem()).as_bytes(),
                0o600,
            )?;
        }
        let damaged = |path: &PathBuf, why: String| TlsError::Damaged {
            path: path.clone(),
            why,
        };
        let text =
            read_private(&key_path)?.ok_or_else(|| damaged(&key_path, "it is gone".into()))?;
        let key = KeyPair::from_pem(&text).map_err(|e| damaged(&key_path, e.to_string()))?;
        if read_private(&pem_path)?.is_none() {
            let cert = authority(cluster)?.self_signed(&key)?;
            write_new(&pem_path, cert.pem().as_bytes(), 0o600)?;
        }
        let pem = read_private(&pem_path)?
            .ok_or_else(|| damaged(&pem_path, "it is gone".into()))?
            .to_string();
        let issuer =
            Issuer::from_ca_cert_pem(&pem, key).map_err(|e| damaged(&pem_path, e.to_string()))?;
        Ok(Self { issuer, pem })
    }

    /// The authority's certificate, PEM.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// What a server needs that listens there: a new certificate each time.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn server_config(
        &self,
        listen: SocketAddr,
        names: &[String],
    ) -> Result<Arc<rustls::ServerConfig>, TlsError> {
        let (cert, key) = self.pair(listen, names)?;
        let mut config = rustls::ServerConfig::builder_with_provider(
            rustls::crypto::ring::default_provider().into(),
        )
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![cert], key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// A certificate of this authority for one that listens there, with its
    /// key, to be chosen from.
    pub(crate) fn certified(
        &self,
        listen: SocketAddr,
        names: &[String],
    ) -> Result<CertifiedKey, TlsError> {
        let (cert, key) = self.pair(listen, names)?;
        let provider = rustls::crypto::ring::default_provider();
        Ok(CertifiedKey::from_der(vec![cert], key, &provider)?)
    }

    fn pair(
        &self,
        listen: SocketAddr,
        names: &[String],
    ) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), TlsError> {
        let leaf = self.leaf(listen, names)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(leaf.key.serialize_der()));
        Ok((leaf.cert, key))
    }

    /// Files for a server that listens there, in `DIR/tls`: made anew each
    /// time.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn server_files(
        &self,
        state: &StateDir,
        name: &str,
        listen: SocketAddr,
        names: &[String],
    ) -> Result<ServerFiles, TlsError> {
        let dir = state.path().join("tls");
        make_dir(&dir)?;
        let leaf = self.leaf(listen, names)?;
        let files = ServerFiles {
            cert: dir.join(format!("{name}.pem")),
            key: dir.join(format!("{name}.key")),
        };
        let key = Zeroizing::new(leaf.key.serialize_pem());
        write_atomic(&files.key, key.as_bytes(), 0o600)?;
        write_atomic(&files.cert, leaf.cert_pem.as_bytes(), 0o644)?;
        Ok(files)
    }

    fn leaf(&self, listen: SocketAddr, names: &[String]) -> Result<Leaf, TlsError> {
        let mut params = CertificateParams::new(subject_names(listen, names))?;
        params.distinguished_name.push(DnType::CommonName, "muster");
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        validity(&mut params, SERVER_YEARS);
        let key = KeyPair::generate()?;
        let cert = params.signed_by(&key, &self.issuer)?;
        Ok(Leaf {
            cert_pem: cert.pem(),
            cert: cert.der().clone(),
            key,
        })
    }
}

/// The authorities that agents are to trust when they speak to this broker:
/// the cluster's own, and what the operator names besides. PEM.
///
/// # Errors
/// [`TlsError::Certificates`].
pub(crate) fn broker_ca(config: &Config, ca: &Ca) -> Result<String, TlsError> {
    let mut pem = ca.pem().to_owned();
    if let Some(path) = config.tls.authorities() {
        let wrong = |why: String| TlsError::Certificates {
            path: path.clone(),
            why,
        };
        let text = std::fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
        // Held against what reads it on the other side.
        client_config(&text, path)?;
        pem.push('\n');
        pem.push_str(&text);
    }
    Ok(pem)
}

fn authority(cluster: ClusterId) -> Result<CertificateParams, TlsError> {
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params
        .distinguished_name
        .push(DnType::CommonName, format!("muster cluster {cluster}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    validity(&mut params, AUTHORITY_YEARS);
    Ok(params)
}

/// From the first day of last month, so that no clock of a node is too early.
fn validity(params: &mut CertificateParams, years: i16) {
    let today = jiff::Timestamp::now()
        .to_zoned(jiff::tz::TimeZone::UTC)
        .date();
    let (year, month) = match today.month() {
        1 => (today.year() - 1, 12),
        month => (today.year(), month - 1),
    };
    // A month from 1 to 12 always fits, as does its first day.
    let month = u8::try_from(month).unwrap_or(1);
    params.not_before = date_time_ymd(year.into(), month, 1);
    params.not_after = date_time_ymd((today.year() + years).into(), month, 1);
}

/// The address it listens on, this machine's name and addresses, `localhost`,
/// and what the operator names.
fn subject_names(listen: SocketAddr, names: &[String]) -> Vec<String> {
    let mut all = vec![
        "localhost".to_owned(),
        "127.0.0.1".to_owned(),
        "::1".to_owned(),
    ];
    if !listen.ip().is_unspecified() {
        all.push(listen.ip().to_string());
    }
    let host = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    let dns = |name: &str| {
        !name.is_empty()
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b))
    };
    if dns(&host) {
        all.push(host);
    }
    if let Some(address) = outward_address(listen) {
        all.push(address.to_string());
    }
    all.extend(names.iter().cloned());
    all.sort();
    all.dedup();
    all
}

/// The address by which others most likely reach this machine, when it
/// listens on all of them. Nothing is sent: connecting a UDP socket only asks
/// the routing table.
pub(crate) fn outward_address(listen: SocketAddr) -> Option<IpAddr> {
    if !listen.ip().is_unspecified() {
        return None;
    }
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    // A documentation address (RFC 5737): takes the default route.
    socket.connect("192.0.2.1:9").ok()?;
    socket
        .local_addr()
        .ok()
        .map(|a| a.ip())
        .filter(|ip| !ip.is_unspecified())
}

/// A client's configuration that trusts exactly these certificates (PEM).
///
/// # Errors
/// [`TlsError`]; `path` is for the error.
pub fn client_config(pem: &str, path: &std::path::Path) -> Result<rustls::ClientConfig, TlsError> {
    let wrong = |why: String| TlsError::Certificates {
        path: path.to_owned(),
        why,
    };
    let mut roots = rustls::RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let cert = cert.map_err(|e| wrong(e.to_string()))?;
        roots.add(cert).map_err(|e| wrong(e.to_string()))?;
    }
    if roots.is_empty() {
        return Err(wrong("there is none in it".into()));
    }
    Ok(
        rustls::ClientConfig::builder_with_provider(
            rustls::crypto::ring::default_provider().into(),
        )
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn a_client_that_trusts_the_authority_gets_through() {
        let tmp = tempfile::tempdir().unwrap();
        let state = StateDir::open(tmp.path()).unwrap();
        let cluster = state.root().unwrap().cluster;
        let ca = Ca::open(&state, cluster).unwrap();
        // The same again after a restart.
        let ca2 = Ca::open(&state, cluster).unwrap();
        assert_eq!(ca.pem(), ca2.pem());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let names = ["muster.example".to_owned()];
        let server = tokio_rustls::TlsAcceptor::from(ca2.server_config(address, &names).unwrap());
        let serving = tokio::spawn(async move {
            for _ in 0..3 {
                let (tcp, _) = listener.accept().await.unwrap();
                if let Ok(mut tls) = server.accept(tcp).await {
                    tls.write_all(b"hello").await.unwrap();
                    tls.shutdown().await.unwrap();
                }
            }
        });
        let connect = async |config: rustls::ClientConfig, name: &'static str| {
            let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
            let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
            let mut tls = connector.connect(name.try_into().unwrap(), tcp).await?;
            let mut said = String::new();
            tls.read_to_string(&mut said).await?;
            std::io::Result::Ok(said)
        };
        let trusting = || client_config(ca.pem(), tmp.path()).unwrap();
        assert_eq!(
            connect(trusting(), "muster.example").await.unwrap(),
            "hello"
        );
        assert!(connect(trusting(), "other.example").await.is_err());
        let other_dir = tempfile::tempdir().unwrap();
        let other = StateDir::open(other_dir.path()).unwrap();
        let other = Ca::open(&other, ClusterId::random()).unwrap();
        let strange = client_config(other.pem(), tmp.path()).unwrap();
        assert!(connect(strange, "muster.example").await.is_err());
        serving.await.unwrap();
    }

    #[test]
    fn a_file_without_certificates_is_refused() {
        assert!(client_config("", std::path::Path::new("/x")).is_err());
        assert!(
            client_config(
                "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
                std::path::Path::new("/x")
            )
            .is_err()
        );
    }
}
