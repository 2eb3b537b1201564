//! A certificate of the operator's own for the HTTP API: checked before it is
//! used, read again when its files change, and watched for its end.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use muster_protocol::api::Finding;
use muster_protocol::text::printable;
use muster_protocol::units::Timestamp;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{Ca, TlsError};
use crate::events::Events;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(2);
/// How often it is looked whether the end has come nearer.
const LOOK_AT_END: Duration = Duration::from_secs(3_600);
/// People are told when so many days are left.
const DAYS_LEFT: [i64; 5] = [30, 14, 7, 3, 1];
/// From so many days on it is a finding of the status.
const FINDING_DAYS: i64 = 14;

/// A certificate that can be used.
struct Loaded {
    key: Arc<CertifiedKey>,
    /// The names it is for, in lower case; `*.` at the beginning stands for
    /// one label.
    names: Vec<String>,
    /// Whether it is for an address, too: a client that asks for one sends
    /// no name.
    addresses: bool,
    ends: Timestamp,
}

/// How it stands with the files.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Noted {
    /// Why what is in the files now is not used.
    problem: Option<String>,
    /// How often another certificate was taken.
    taken: u64,
}

/// The operator's certificate, and the cluster's own for names that it is not
/// for. Cheap to clone.
#[derive(Clone)]
pub struct OwnCertificate(Arc<Own>);

struct Own {
    cert: PathBuf,
    key: PathBuf,
    loaded: ArcSwap<Loaded>,
    cluster: Arc<CertifiedKey>,
    noted: watch::Sender<Noted>,
    /// At how many days before which end people were told last.
    told: Mutex<Option<(Timestamp, i64)>>,
}

impl std::fmt::Debug for OwnCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OwnCertificate")
            .field("cert", &self.0.cert)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Own {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Own").finish_non_exhaustive()
    }
}

impl OwnCertificate {
    /// Reads and checks the files.
    ///
    /// # Errors
    /// [`TlsError`]: says which file, and what is wrong with it.
    pub fn open(
        cert: &Path,
        key: &Path,
        ca: &Ca,
        listen: std::net::SocketAddr,
        names: &[String],
    ) -> Result<Self, TlsError> {
        let loaded = load(cert, key, Timestamp::now())?;
        let noted = Noted {
            problem: None,
            taken: 0,
        };
        Ok(Self(Arc::new(Own {
            cert: cert.to_owned(),
            key: key.to_owned(),
            loaded: ArcSwap::from_pointee(loaded),
            cluster: Arc::new(ca.certified(listen, names)?),
            noted: watch::Sender::new(noted),
            told: Mutex::default(),
        })))
    }

    /// What a server needs to use it.
    ///
    /// # Errors
    /// [`TlsError::Setup`].
    pub fn server_config(&self) -> Result<Arc<rustls::ServerConfig>, TlsError> {
        let resolver: Arc<dyn ResolvesServerCert> = self.0.clone();
        let mut config = rustls::ServerConfig::builder_with_provider(
            rustls::crypto::ring::default_provider().into(),
        )
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(resolver);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// When the certificate in use ends.
    #[must_use]
    pub fn ends(&self) -> Timestamp {
        self.0.loaded.load().ends
    }

    /// What an operator should look at.
    #[must_use]
    pub fn findings(&self, now: Timestamp) -> Vec<Finding> {
        let mut found = Vec::new();
        if let Some(what) = self.0.noted.borrow().problem.clone() {
            found.push(Finding {
                what,
                hint: "the certificate before is still in use; mend the files, they are read again when they change".into(),
            });
        }
        let days = days_left(self.ends(), now);
        if days < FINDING_DAYS {
            found.push(Finding {
                what: ending(self.ends(), now),
                hint: "put a new certificate and its key into the files of `tls.cert` and `tls.key`; they are read when they change".into(),
            });
        }
        found
    }

    /// Looks at the files, and takes what is new in them, until `cancel`.
    pub async fn follow(self, cancel: CancellationToken) {
        let mut seen = self.signature();
        let mut settling = None;
        while cancel.run_until_cancelled(sleep(LOOK)).await.is_some() {
            let now = self.signature();
            // Two files are not replaced in one moment: only what has not
            // changed since the last look is read.
            if now == seen {
                settling = None;
            } else if settling.as_ref() == Some(&now) {
                settling = None;
                seen = now;
                self.read_again(Timestamp::now());
            } else {
                settling = Some(now);
            }
        }
    }

    fn signature(&self) -> [Option<(u64, u64, i64, i64)>; 2] {
        [&self.0.cert, &self.0.key].map(|path| {
            let about = std::fs::metadata(path).ok()?;
            Some((about.ino(), about.len(), about.mtime(), about.mtime_nsec()))
        })
    }

    fn read_again(&self, now: Timestamp) {
        let own = &self.0;
        match load(&own.cert, &own.key, now) {
            Ok(loaded) => {
                tracing::info!(cert = %own.cert.display(), ends = %loaded.ends, "a new certificate is in use");
                own.loaded.store(Arc::new(loaded));
                own.noted.send_modify(|noted| {
                    noted.problem = None;
                    noted.taken += 1;
                });
            }
            Err(error) => {
                tracing::error!(%error, "the new certificate is not used");
                let text = format!("the new certificate of the API is not used: {error}");
                own.noted.send_modify(|noted| noted.problem = Some(text));
            }
        }
    }

    /// Tells in events what happens to it, until `cancel`.
    pub(crate) async fn tell(self, events: Events, cancel: CancellationToken) {
        let mut noted = self.0.noted.subscribe();
        let subject = self.0.cert.display().to_string();
        let subject = printable(&subject, 200);
        let mut before = noted.borrow_and_update().clone();
        if let Some(problem) = &before.problem {
            events.emit("alarm.certificate", &subject, problem).await;
        }
        loop {
            if let Some(text) = self.ends_soon(Timestamp::now()) {
                events.emit("alarm.certificate-ends", &subject, text).await;
            }
            tokio::select! {
                () = cancel.cancelled() => return,
                () = sleep(LOOK_AT_END) => {}
                changed = noted.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
            }
            let now = noted.borrow_and_update().clone();
            match &now.problem {
                Some(problem) if before.problem != now.problem => {
                    events.emit("alarm.certificate", &subject, problem).await;
                }
                None if now.taken != before.taken => {
                    let text = format!("a new certificate is in use, until {}", self.ends());
                    events.emit("broker.certificate", &subject, text).await;
                }
                _ => {}
            }
            before = now;
        }
    }

    /// What people are to be told now: once for each number of days.
    fn ends_soon(&self, now: Timestamp) -> Option<String> {
        let ends = self.ends();
        let days = days_left(ends, now);
        let step = DAYS_LEFT.into_iter().filter(|step| days < *step).min()?;
        let step = if days < 0 { -1 } else { step };
        let mut told = self.0.told.lock().unwrap_or_else(PoisonError::into_inner);
        if *told == Some((ends, step)) {
            return None;
        }
        *told = Some((ends, step));
        Some(ending(ends, now))
    }
}

fn days_left(ends: Timestamp, now: Timestamp) -> i64 {
    (ends.as_second() - now.as_second()).div_euclid(86_400)
}

fn ending(ends: Timestamp, now: Timestamp) -> String {
    match days_left(ends, now) {
        ..0 => format!("the certificate of the API has ended, {ends}"),
        0 => format!("the certificate of the API ends in less than a day, {ends}"),
        days => format!("the certificate of the API ends in {days} days, {ends}"),
    }
}

impl ResolvesServerCert for Own {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let loaded = self.loaded.load();
        let own = match hello.server_name() {
            Some(name) => is_for(&loaded.names, name),
            None => loaded.addresses,
        };
        Some(Arc::clone(if own { &loaded.key } else { &self.cluster }))
    }
}

fn is_for(names: &[String], asked: &str) -> bool {
    let asked = asked.trim_end_matches('.').to_ascii_lowercase();
    names.iter().any(|name| match name.strip_prefix("*.") {
        Some(rest) => asked
            .split_once('.')
            .is_some_and(|(label, tail)| !label.is_empty() && tail == rest),
        None => *name == asked,
    })
}

fn load(cert: &Path, key: &Path, now: Timestamp) -> Result<Loaded, TlsError> {
    let wrong = |path: &Path, why: String| TlsError::Certificates {
        path: path.to_owned(),
        why,
    };
    let pem = std::fs::read(cert).map_err(|e| wrong(cert, e.to_string()))?;
    let chain = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| wrong(cert, e.to_string()))?;
    let Some(leaf) = chain.first() else {
        return Err(wrong(cert, "it holds no certificate".into()));
    };
    let (_, about) = X509Certificate::from_der(leaf).map_err(|e| wrong(cert, e.to_string()))?;
    let (names, addresses) = subjects(&about).map_err(|why| wrong(cert, why))?;
    let validity = about.validity();
    let ends = Timestamp::from_second(validity.not_after.timestamp())
        .map_err(|e| wrong(cert, e.to_string()))?;
    if ends <= now {
        return Err(wrong(cert, format!("the certificate has ended, {ends}")));
    }
    if validity.not_before.timestamp() > now.as_second() {
        return Err(wrong(
            cert,
            format!("the certificate begins later, {}", validity.not_before),
        ));
    }
    let about_key = std::fs::metadata(key).map_err(|e| wrong(key, e.to_string()))?;
    if about_key.permissions().mode() & 0o007 != 0 {
        return Err(wrong(
            key,
            "others than its owner and group can read the private key; `chmod o= FILE`".into(),
        ));
    }
    let pem = zeroize::Zeroizing::new(std::fs::read(key).map_err(|e| wrong(key, e.to_string()))?);
    let private = PrivateKeyDer::from_pem_slice(&pem)
        .map_err(|e| wrong(key, format!("it holds no private key ({e})")))?;
    let provider = rustls::crypto::ring::default_provider();
    let certified =
        CertifiedKey::from_der(chain.clone(), private, &provider).map_err(|e| match e {
            rustls::Error::InconsistentKeys(_) => wrong(
                key,
                format!("it is not the key of the certificate in {}", cert.display()),
            ),
            e => wrong(key, e.to_string()),
        })?;
    Ok(Loaded {
        key: Arc::new(certified),
        names,
        addresses,
        ends,
    })
}

/// The names that a certificate is for, and whether it is for an address.
fn subjects(about: &X509Certificate<'_>) -> Result<(Vec<String>, bool), String> {
    let mut names = Vec::new();
    let mut addresses = false;
    let alternatives = about
        .subject_alternative_name()
        .map_err(|e| e.to_string())?;
    for name in alternatives.iter().flat_map(|a| &a.value.general_names) {
        match name {
            GeneralName::DNSName(name) => names.push(name.to_ascii_lowercase()),
            GeneralName::IPAddress(_) => addresses = true,
            _ => {}
        }
    }
    if names.is_empty() && !addresses {
        return Err(
            "it is for no name and no address (no subjectAltName): nobody would accept it".into(),
        );
    }
    Ok((names, addresses))
}

#[cfg(test)]
mod tests;
