//! The broker's own connections to NATS.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::Context;
use async_nats::{Client, ClientError, ConnectErrorKind, ConnectOptions, Event, ServerError};
use tokio::sync::watch;

use crate::config::{Config, NatsCa};
use crate::nats::admin::{AdminError, SystemClient};
use crate::nats::credentials::Credentials;
use crate::nats::jwt::{JwtError, UnixSeconds, UserClaims};
use crate::nats::keys::{NatsKeys, UserKey};
use crate::nats::permissions::{Permissions, broker_permissions, system_permissions};
use crate::nats::version::{ServerVersion, VersionError, connected};
use crate::store;
use crate::tls::{Ca, TlsError, client_config};

/// When a broker's own credentials claim to be issued: in the far future, so
/// that revoking everything that is older than a node's credentials live
/// never ends a broker's connection. Their key is only in this process, and
/// what voids them names it.
pub(crate) const BROKER_ISSUED_AT: UnixSeconds = 32_503_680_000;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// No connection.
    #[error("cannot connect to NATS at {urls}: {source}{hint}")]
    Connect {
        /// Where.
        urls: String,
        /// What the client said.
        source: async_nats::ConnectError,
        /// What to do.
        hint: &'static str,
    },
    /// Too old.
    #[error(transparent)]
    Version(#[from] VersionError),
    /// The system account.
    #[error(transparent)]
    System(#[from] AdminError),
    /// Certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Credentials.
    #[error("the broker's NATS credentials cannot be made: {0}")]
    Sign(#[from] JwtError),
}

/// The client library tries to come back for ever, also when nobody holds the
/// client any more. Once a link is over, its next attempt is so far away.
const NEVER: Duration = Duration::from_secs(100 * 365 * 86_400);

/// Says what happens to the connection: of an outage its begin, the first
/// reason why it goes on, and its end; not each try.
fn say(event: &Event, quiet: &AtomicBool) {
    match event {
        Event::Connected => {
            quiet.store(false, Ordering::Relaxed);
            tracing::info!("connected to NATS");
        }
        Event::Disconnected => {
            quiet.store(false, Ordering::Relaxed);
            tracing::warn!("the connection to NATS is lost; trying again until it is there");
        }
        // Its own doing: at the end, and between two tries.
        Event::Draining | Event::Closed => tracing::debug!(%event, "connection to NATS"),
        Event::ClientError(_) if quiet.swap(true, Ordering::Relaxed) => {
            tracing::debug!(%event, "connection to NATS");
        }
        other => tracing::warn!(event = %other, "connection to NATS"),
    }
}

/// The broker's connections: one in muster's account, one that administers.
#[derive(Clone, Debug)]
pub struct Link {
    /// In muster's account.
    pub client: Client,
    /// JetStream of muster's account.
    pub js: Context,
    /// In the system account.
    pub system: SystemClient,
    /// Version of the server.
    pub version: ServerVersion,
    /// Counts the connections in muster's account: whatever is at the other
    /// end may have changed since the last one.
    pub connects: watch::Receiver<u64>,
    /// The users of both connections: theirs alone, new for each link.
    pub users: Vec<UserKey>,
    refused: Arc<watch::Sender<bool>>,
    over: Arc<AtomicBool>,
}

impl Link {
    /// Connects, once.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn connect(config: &Config, keys: &NatsKeys, ca: &Ca) -> Result<Self, LinkError> {
        let tls = tls(config, ca)?;
        let urls = &config.nats.urls;
        let system_user = issue(keys.system(), "muster-broker-system", system_permissions())?;
        let over = Arc::new(AtomicBool::new(false));
        let system = SystemClient::connect(urls, &system_user, |o| {
            with_tls(o, tls.clone(), config).reconnect_delay_callback(pauses(&over))
        })
        .await?;
        let user = issue(keys.account(), "muster-broker", broker_permissions())?;
        let quiet = Arc::new(AtomicBool::new(false));
        let (count, connects) = watch::channel(0);
        let users = [&user, &system_user]
            .iter()
            .filter_map(|credentials| credentials.public_key().parse().ok())
            .collect();
        let refused = Arc::new(watch::Sender::new(false));
        let noted = (Arc::clone(&refused), Arc::clone(&over));
        let options = with_tls(user.connect_options(), tls, config)
            .name("muster-broker")
            .reconnect_delay_callback(pauses(&over))
            .custom_inbox_prefix(inbox(&user.public_key()))
            .client_capacity(4096)
            .subscription_capacity(65_536)
            .event_callback(move |event| {
                if event == Event::Connected {
                    count.send_modify(|count| *count += 1);
                }
                if is_refusal(&event) {
                    let (refused, over) = &noted;
                    over.store(true, Ordering::Relaxed);
                    refused.send_replace(true);
                }
                let quiet = Arc::clone(&quiet);
                async move { say(&event, &quiet) }
            });
        let client = options
            .connect(urls)
            .await
            .map_err(|source| LinkError::Connect {
                urls: urls.join(", "),
                hint: hint(&source),
                source,
            })?;
        let version = connected(&client)?;
        Ok(Self {
            js: store::context(client.clone()),
            client,
            system,
            version,
            connects,
            users,
            refused,
            over,
        })
    }

    /// Returns once the server does not take this broker's credentials any
    /// more: another broker has become the active one and has shut it out.
    pub async fn refused(&self) {
        // It ends with this link only.
        let _ = self.refused.subscribe().wait_for(|refused| *refused).await;
    }

    /// Whether the connection is up now.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// Sends what is under way and ends the connections.
    pub async fn close(&self) {
        self.over.store(true, Ordering::Relaxed);
        for client in [&self.client, self.system.client()] {
            let ended =
                tokio::time::timeout(std::time::Duration::from_secs(2), client.drain()).await;
            if !matches!(ended, Ok(Ok(()))) {
                tracing::debug!("a connection to NATS did not end in good order");
            }
        }
    }
}

/// Where answers to this connection go: whose a request is shows on the wire.
fn inbox(user: &str) -> String {
    let end = user.len().saturating_sub(10);
    format!("_INBOX.muster.broker.{}", user.get(end..).unwrap_or(user))
}

/// How long to wait before the connection is tried again.
fn pauses(over: &Arc<AtomicBool>) -> impl Fn(usize) -> Duration + Send + Sync + 'static {
    let over = Arc::clone(over);
    move |attempts| {
        if over.load(Ordering::Relaxed) {
            return NEVER;
        }
        match u32::try_from(attempts).unwrap_or(u32::MAX) {
            0 | 1 => Duration::ZERO,
            // 2 ms, 4 ms, ... 2 s.
            n => Duration::from_millis(1 << (n - 1).min(11)),
        }
    }
}

fn is_refusal(event: &Event) -> bool {
    let text = match event {
        Event::ServerError(ServerError::AuthorizationViolation) => return true,
        Event::ServerError(error) => error.to_string(),
        // How the client says that it was refused when it came back.
        Event::ClientError(ClientError::Other(text)) => text.clone(),
        _ => return false,
    };
    let text = text.to_ascii_lowercase();
    ["authorization violation", "authentication"]
        .iter()
        .any(|word| text.contains(word))
}

fn hint(error: &async_nats::ConnectError) -> &'static str {
    match error.kind() {
        ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
            "; the server has another operator: see `muster nats-config`"
        }
        ConnectErrorKind::Io | ConnectErrorKind::TimedOut | ConnectErrorKind::Dns => {
            "; is the server running, and is the address in `nats.urls` right?"
        }
        ConnectErrorKind::Tls => "; does `nats.ca` name the authority of its certificate?",
        _ => "",
    }
}

fn issue(
    account: &nkeys::KeyPair,
    name: &str,
    permissions: Permissions,
) -> Result<Credentials, JwtError> {
    Credentials::issue(account, |user| UserClaims {
        name: name.to_owned(),
        user,
        issued_at: BROKER_ISSUED_AT,
        expires_at: None,
        permissions,
        max_subscriptions: None,
        max_payload: None,
    })
}

fn tls(config: &Config, ca: &Ca) -> Result<Option<Arc<rustls::ClientConfig>>, LinkError> {
    if !config.nats_tls() {
        return Ok(None);
    }
    Ok(nats_ca(config, ca)?
        .map(|pem| client_config(&pem, std::path::Path::new("nats.ca")))
        .transpose()?
        .map(Arc::new))
}

/// The certificates (PEM) that sign those of the NATS servers; `None` for
/// what the machine trusts, or without TLS.
///
/// # Errors
/// [`TlsError::Certificates`] for a file that cannot be read.
pub fn nats_ca(config: &Config, ca: &Ca) -> Result<Option<String>, TlsError> {
    if !config.nats_tls() {
        return Ok(None);
    }
    match &config.nats.ca {
        NatsCa::Own => Ok(Some(ca.pem().to_owned())),
        NatsCa::System => Ok(None),
        NatsCa::File(path) => {
            std::fs::read_to_string(path)
                .map(Some)
                .map_err(|e| TlsError::Certificates {
                    path: path.clone(),
                    why: e.to_string(),
                })
        }
    }
}

fn with_tls(
    options: ConnectOptions,
    tls: Option<Arc<rustls::ClientConfig>>,
    config: &Config,
) -> ConnectOptions {
    match tls {
        Some(tls) => options.tls_client_config((*tls).clone()).require_tls(true),
        None => options.require_tls(config.nats_tls()),
    }
}
