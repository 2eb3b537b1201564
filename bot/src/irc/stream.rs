//! The bytes under a connection: TCP, and TLS where it is not switched off.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{NetworkSettings, Pin, TlsSettings};

/// How long one address may take to answer.
const ONE_ADDRESS: Duration = Duration::from_secs(10);

/// Both directions of a connection.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    /// Nobody answers.
    #[error("{host}:{port} cannot be reached: {why}")]
    Reach {
        host: String,
        port: u16,
        why: io::Error,
    },
    /// What answers is not trusted.
    #[error("no TLS with {host}:{port}: {why}{hint}")]
    Tls {
        host: String,
        port: u16,
        why: String,
        hint: &'static str,
    },
    /// TLS cannot be set up.
    #[error("TLS cannot be set up: {0}")]
    Config(String),
}

/// Opens a connection.
pub(super) async fn open(settings: &NetworkSettings) -> Result<Box<dyn Stream>, OpenError> {
    let tcp = reach(&settings.host, settings.port)
        .await
        .map_err(|why| OpenError::Reach {
            host: settings.host.clone(),
            port: settings.port,
            why,
        })?;
    // Lines are short, and people wait for them.
    let _ = tcp.set_nodelay(true);
    let Some(tls) = &settings.tls else {
        return Ok(Box::new(tcp));
    };
    let config = config(tls)?;
    let connecting = TlsConnector::from(Arc::new(config)).connect(tls.server_name.clone(), tcp);
    let stream = connecting.await.map_err(|why| OpenError::Tls {
        host: settings.host.clone(),
        port: settings.port,
        hint: hint(&why),
        // As rustls calls what our own check says.
        why: why.to_string().replace("unexpected error: ", ""),
    })?;
    Ok(Box::new(stream))
}

async fn reach(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in tokio::net::lookup_host((host, port)).await? {
        match tokio::time::timeout(ONE_ADDRESS, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::Error::new(io::ErrorKind::TimedOut, "no answer"),
        }
    }
    Err(last)
}

fn hint(error: &io::Error) -> &'static str {
    use rustls::{CertificateError as C, Error as E};
    let inner = error.get_ref().and_then(|e| e.downcast_ref::<E>());
    match inner {
        Some(E::InvalidCertificate(C::UnknownIssuer | C::BadSignature)) => {
            ": name its authority in `tls_ca_file`, or the certificate in `tls_fingerprint`"
        }
        Some(E::InvalidCertificate(C::NotValidForName | C::NotValidForNameContext { .. })) => {
            ": give the name that the certificate is for as `server_name`"
        }
        Some(E::InvalidMessage(_)) => ": does this port speak TLS? If not: `tls = false`",
        _ => "",
    }
}

fn config(tls: &TlsSettings) -> Result<ClientConfig, OpenError> {
    let wrong = |e: &dyn std::fmt::Display| OpenError::Config(e.to_string());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|e| wrong(&e))?;
    let builder = match tls.pin {
        Some(pin) => {
            let chain = match &tls.roots {
                Some(roots) => Some(
                    WebPkiServerVerifier::builder_with_provider(
                        Arc::new(roots.clone()),
                        Arc::clone(&provider),
                    )
                    .build()
                    .map_err(|e| wrong(&e))?,
                ),
                None => None,
            };
            let pinned = Pinned {
                pin,
                chain,
                provider,
            };
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(pinned))
        }
        None => {
            let roots = match &tls.roots {
                Some(roots) => roots.clone(),
                None => machine_roots()?,
            };
            builder.with_root_certificates(roots)
        }
    };
    match tls.identity.clone() {
        Some(identity) => builder
            .with_client_auth_cert(identity.chain, identity.key)
            .map_err(|e| wrong(&e)),
        None => Ok(builder.with_no_client_auth()),
    }
}

fn machine_roots() -> Result<RootCertStore, OpenError> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        return Err(OpenError::Config(
            "this machine has no certificates of authorities (on Debian: the package \
             ca-certificates); install them, or name the server's authority in `tls_ca_file`"
                .into(),
        ));
    }
    Ok(roots)
}

/// Trusts one certificate; and only if an authority signed it for that name,
/// where authorities are given too.
#[derive(Debug)]
struct Pinned {
    pin: Pin,
    chain: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let is = Pin(Sha256::digest(end_entity.as_ref()).into());
        if is != self.pin {
            return Err(rustls::Error::General(format!(
                "its certificate is {is}, not the one in `tls_fingerprint`: somebody is in \
                 between, or it was renewed"
            )));
        }
        match &self.chain {
            Some(chain) => {
                chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
            }
            None => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
