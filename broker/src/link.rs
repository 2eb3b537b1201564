//! The broker's own connections to NATS.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_nats::connection::State;
use async_nats::jetstream::Context;
use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event};

use crate::config::{Config, NatsCa};
use crate::nats::admin::{AdminError, SystemClient};
use crate::nats::credentials::Credentials;
use crate::nats::jwt::{JwtError, UnixSeconds, UserClaims};
use crate::nats::keys::NatsKeys;
use crate::nats::permissions::{Permissions, broker_permissions, system_permissions};
use crate::nats::version::{ServerVersion, VersionError, connected};
use crate::store;
use crate::tls::{Ca, TlsError, client_config};

/// When a broker's own credentials claim to be issued: in the far future, so
/// that revoking everything that is older than a node's credentials live
/// never ends a broker's connection. Their key is only in this process.
const BROKER_ISSUED_AT: UnixSeconds = 32_503_680_000;

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
}

impl Link {
    /// Connects, once.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn connect(config: &Config, keys: &NatsKeys, ca: &Ca) -> Result<Self, LinkError> {
        let tls = tls(config, ca)?;
        let urls = &config.nats.urls;
        let system = issue(keys.system(), "muster-broker-system", system_permissions())?;
        let system =
            SystemClient::connect(urls, &system, |o| with_tls(o, tls.clone(), config)).await?;
        let user = issue(keys.account(), "muster-broker", broker_permissions())?;
        let quiet = Arc::new(AtomicBool::new(false));
        let options = with_tls(user.connect_options(), tls, config)
            .name("muster-broker")
            .custom_inbox_prefix("_INBOX.muster.broker")
            .client_capacity(4096)
            .subscription_capacity(65_536)
            .event_callback(move |event| {
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
        })
    }

    /// Whether the connection is up now.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// Sends what is under way and ends the connections.
    pub async fn close(&self) {
        for client in [&self.client, self.system.client()] {
            let ended =
                tokio::time::timeout(std::time::Duration::from_secs(2), client.drain()).await;
            if !matches!(ended, Ok(Ok(()))) {
                tracing::debug!("a connection to NATS did not end in good order");
            }
        }
    }
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
