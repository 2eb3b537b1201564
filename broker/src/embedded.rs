//! The files of the NATS server that `muster up` supervises, and the text for
//! a server that somebody else runs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use crate::inventory::{ACCOUNT_NAME, SYSTEM_NAME};
use crate::nats::config::{
    ConfigError, EmbeddedConfig, Identity, TlsFiles, embedded_config, external_config,
};
use crate::nats::jwt::{AccountClaims, JetStreamLimits, JwtError, OperatorClaims, UnixSeconds};
use crate::nats::keys::{KeyError, NatsKeys};
use crate::nats::revocations::Revocations;
use crate::nats::version::ServerVersion;
use crate::state_dir::{StateDir, StateDirError, make_dir, write_atomic};
use crate::tls::{Ca, TlsError, outward_address};

/// When the claims in a server's configuration claim to be issued. The claims
/// that the broker pushes later, with the revocations, must always be newer.
const PRELOAD_ISSUED_AT: UnixSeconds = 1;
/// Memory that JetStream may use; muster keeps everything on disk.
const JETSTREAM_MEMORY: u64 = 64 * 1024 * 1024;

/// Why the server cannot be prepared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EmbeddedError {
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateDirError),
    /// The NATS keys.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// Certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The claims.
    #[error("the identity of the NATS server cannot be signed: {0}")]
    Sign(#[from] JwtError),
    /// No port.
    #[error("cannot find a free port for NATS on {ip}: {source}")]
    Port {
        /// Where.
        ip: IpAddr,
        /// What the system said.
        source: std::io::Error,
    },
}

/// What `muster up` wants of its server.
#[derive(Clone, Debug)]
pub struct EmbeddedOptions {
    /// Where it listens. `None`: on loopback, on a port that is chosen once.
    /// Port 0: the same for that address. Beyond loopback it has TLS.
    pub listen: Option<SocketAddr>,
    /// Names and addresses that its certificate is for, besides this
    /// machine's own.
    pub names: Vec<String>,
    /// Version of the program that will read the configuration.
    pub version: ServerVersion,
}

/// What was prepared.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Embedded {
    /// For `nats-server -c`.
    pub config: PathBuf,
    /// Where the server writes its process id.
    pub pid_file: PathBuf,
    /// Where it logs.
    pub log_file: PathBuf,
    /// Where it listens.
    pub listen: SocketAddr,
    /// For `nats.urls` of the broker on this machine.
    pub urls: Vec<String>,
    /// For `nats.agent_urls`.
    pub agent_urls: Vec<String>,
}

/// Writes what a supervised server needs into the state directory, and opens
/// or makes that. The same again gives the same addresses.
///
/// # Errors
/// [`EmbeddedError`].
pub fn prepare_embedded(dir: &Path, options: &EmbeddedOptions) -> Result<Embedded, EmbeddedError> {
    let state = StateDir::open(dir)?;
    let root = state.root()?;
    let keys = NatsKeys::load_or_create(&state.keys())?;
    // nats-server reads relative paths from its own directory.
    let base = std::path::absolute(state.path()).map_err(|source| StateDirError::Io {
        action: "find",
        path: dir.to_owned(),
        source,
    })?;
    let nats = base.join("nats");
    make_dir(&nats)?;
    let listen = choose(&nats, options.listen)?;
    let tls = if listen.ip().is_loopback() {
        None
    } else {
        let ca = Ca::open(&StateDir::open(&base)?, root.cluster)?;
        let files = ca.server_files(&StateDir::open(&base)?, "nats", listen, &options.names)?;
        Some(TlsFiles {
            cert: files.cert,
            key: files.key,
            client_ca: None,
        })
    };
    let (scheme, secure) = if tls.is_some() {
        ("tls", true)
    } else {
        ("nats", false)
    };
    let text = embedded_config(&EmbeddedConfig {
        version: options.version,
        server_name: format!("muster-{}", root.cluster),
        listen,
        tls,
        identity: identity(&keys)?,
        resolver_dir: nats.join("accounts"),
        jetstream_dir: nats.join("store"),
        jetstream_memory: JETSTREAM_MEMORY,
        jetstream_disk: None,
        pid_file: nats.join("nats.pid"),
        ports_dir: None,
        log_file: Some(nats.join("nats.log")),
    })?;
    let config = nats.join("nats.conf");
    write_atomic(&config, text.as_bytes(), 0o600)?;
    let here = if listen.ip().is_unspecified() {
        match listen.ip() {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        }
    } else {
        listen.ip()
    };
    let url = |host: String| format!("{scheme}://{host}");
    let urls = vec![url(SocketAddr::new(here, listen.port()).to_string())];
    let mut agent_urls: Vec<String> = options
        .names
        .iter()
        .filter(|name| secure && !name.contains('*'))
        .map(|name| url(host(name, listen.port())))
        .collect();
    if listen.ip().is_unspecified() {
        let outward = outward_address(listen).unwrap_or(here);
        agent_urls.push(url(SocketAddr::new(outward, listen.port()).to_string()));
    } else {
        agent_urls.extend(urls.iter().cloned());
    }
    Ok(Embedded {
        config,
        pid_file: nats.join("nats.pid"),
        log_file: nats.join("nats.log"),
        listen,
        urls,
        agent_urls,
    })
}

fn host(name: &str, port: u16) -> String {
    match name.parse::<IpAddr>() {
        Ok(ip) => SocketAddr::new(ip, port).to_string(),
        Err(_) => format!("{name}:{port}"),
    }
}

/// What an existing NATS server or cluster needs, as text for its
/// configuration. Opens or makes the state directory: the keys are in it.
///
/// # Errors
/// [`EmbeddedError`].
pub fn nats_config(
    dir: &Path,
    resolver_dir: &Path,
    version: Option<ServerVersion>,
) -> Result<String, EmbeddedError> {
    let state = StateDir::open(dir)?;
    let keys = NatsKeys::load_or_create(&state.keys())?;
    Ok(external_config(&identity(&keys)?, resolver_dir, version)?)
}

fn identity(keys: &NatsKeys) -> Result<Identity, JwtError> {
    let account = |name: &str, account, jetstream| {
        AccountClaims {
            name: name.to_owned(),
            account,
            issued_at: PRELOAD_ISSUED_AT,
            jetstream,
            revocations: Revocations::default(),
        }
        .sign(keys.operator())
    };
    let operator = OperatorClaims {
        name: ACCOUNT_NAME.to_owned(),
        system_account: keys.system_key(),
        issued_at: PRELOAD_ISSUED_AT,
    };
    Ok(Identity {
        operator_jwt: operator.sign(keys.operator())?,
        system_account: keys.system_key(),
        system_jwt: account(SYSTEM_NAME, keys.system_key(), None)?,
        account: keys.account_key(),
        account_jwt: account(
            ACCOUNT_NAME,
            keys.account_key(),
            Some(JetStreamLimits::default()),
        )?,
    })
}

/// The address to listen on. A port that was chosen stays: agents know it.
fn choose(nats: &Path, wanted: Option<SocketAddr>) -> Result<SocketAddr, EmbeddedError> {
    let wanted = wanted.unwrap_or((Ipv4Addr::LOCALHOST, 0).into());
    if wanted.port() != 0 {
        return Ok(wanted);
    }
    let file = nats.join("port");
    let kept = std::fs::read_to_string(&file)
        .ok()
        .and_then(|text| text.trim().parse::<u16>().ok());
    if let Some(port) = kept.filter(|port| *port != 0) {
        return Ok(SocketAddr::new(wanted.ip(), port));
    }
    let port = TcpListener::bind(wanted)
        .and_then(|listener| listener.local_addr())
        .map_err(|source| EmbeddedError::Port {
            ip: wanted.ip(),
            source,
        })?
        .port();
    write_atomic(&file, format!("{port}\n").as_bytes(), 0o600)?;
    Ok(SocketAddr::new(wanted.ip(), port))
}
