//! One connection to NATS, which ends for good when it ends.
//!
//! The NATS client would reconnect by itself with the credentials it began
//! with. An agent's may have been replaced meanwhile, and it has to say hello
//! again in any case, so each connection is a new one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::{Auth, AuthError, Client, ConnectErrorKind, ConnectOptions, Event, ServerError};
use muster_protocol::subject::inbox_prefix;
use muster_protocol::text::printable;
use tokio::sync::mpsc;
use tracing::{debug, warn};

use crate::identity::{Identity, NATS_CA_FILE};

const CONNECT_WITHIN: Duration = Duration::from_secs(10);
const OWN_ATTEMPT_AFTER: Duration = Duration::from_millis(300);
const PING_EVERY: Duration = Duration::from_secs(20);

/// What a connection tells about itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Happened {
    /// It is over.
    Ended,
    /// The server no longer accepts the credentials.
    Unauthorized(String),
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    /// The credentials are not accepted.
    #[error("{url} does not accept this node's credentials: {why}")]
    Unauthorized {
        /// Where.
        url: String,
        /// As the server says.
        why: String,
    },
    /// Anything else.
    #[error("{url} cannot be reached: {why}")]
    Unreachable {
        /// Where.
        url: String,
        /// Why.
        why: String,
    },
    /// Nothing to try.
    #[error("the broker gave no NATS address")]
    NoAddress,
}

/// A connection and its news. It ends when this is dropped.
pub(super) struct Connection {
    pub(super) client: Client,
    pub(super) events: mpsc::Receiver<Happened>,
    over: Arc<AtomicBool>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// Tries the addresses in order.
pub(super) async fn connect(
    identity: &Identity,
    overriding: &[String],
) -> Result<Connection, ConnectError> {
    let enrolled = identity.now();
    let urls = if overriding.is_empty() {
        enrolled.stored.credentials.nats_urls.as_slice()
    } else {
        overriding
    };
    let mut last = ConnectError::NoAddress;
    for url in urls {
        match connect_to(identity, url).await {
            Ok(connection) => return Ok(connection),
            Err(e @ ConnectError::Unauthorized { .. }) => return Err(e),
            Err(e) => last = e,
        }
    }
    Err(last)
}

async fn connect_to(identity: &Identity, url: &str) -> Result<Connection, ConnectError> {
    let enrolled = identity.now();
    let credentials = &enrolled.stored.credentials;
    let over = Arc::new(AtomicBool::new(false));
    let (news, events) = mpsc::channel(16);
    let auth = {
        let (over, jwt, pair) = (
            over.clone(),
            credentials.jwt.clone(),
            identity.keys().nats.clone(),
        );
        move |nonce: Vec<u8>| {
            let (over, jwt, pair) = (over.clone(), jwt.clone(), pair.clone());
            async move {
                // The client's own attempt to come back: not with these.
                if over.load(Ordering::Relaxed) {
                    return Err(AuthError::new("this connection is over"));
                }
                let mut auth = Auth::new();
                auth.signature = Some(pair.sign(&nonce).map_err(AuthError::new)?);
                auth.jwt = Some(jwt);
                Ok(auth)
            }
        }
    };
    let callback = {
        let over = over.clone();
        move |event: Event| {
            let (over, news) = (over.clone(), news.clone());
            async move {
                if let Some(happened) = interpret(event) {
                    over.store(true, Ordering::Relaxed);
                    let _ = news.try_send(happened);
                }
            }
        }
    };
    let first = AtomicBool::new(true);
    let mut options = ConnectOptions::with_auth_callback(auth)
        .name(format!("muster-agent {}", enrolled.assignment().name))
        .custom_inbox_prefix(inbox_prefix(enrolled.serial()))
        .event_callback(callback)
        .connection_timeout(CONNECT_WITHIN)
        .ping_interval(PING_EVERY)
        .reconnect_delay_callback(move |_| {
            // The client's own attempts to come back wait until it is known
            // here that the connection is over.
            if first.swap(false, Ordering::Relaxed) {
                Duration::ZERO
            } else {
                OWN_ATTEMPT_AFTER
            }
        })
        .max_reconnects(1)
        .ignore_discovered_servers()
        .client_capacity(64)
        .subscription_capacity(1024)
        .request_timeout(None);
    if credentials.nats_ca.is_some() {
        options = options
            .add_root_certificates(identity.dir().path(NATS_CA_FILE))
            .require_tls(true);
    }
    match options.connect(url).await {
        Ok(client) => Ok(Connection {
            client,
            events,
            over,
        }),
        Err(e) => {
            let why = printable(&e.to_string(), 300);
            let url = printable(url, 100);
            let refused = matches!(
                e.kind(),
                ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication
            ) || is_refusal(&why);
            Err(if refused {
                ConnectError::Unauthorized { url, why }
            } else {
                ConnectError::Unreachable { url, why }
            })
        }
    }
}

fn is_refusal(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    text.contains("authentication") || text.contains("authorization")
}

fn interpret(event: Event) -> Option<Happened> {
    match event {
        Event::Connected => None,
        Event::Disconnected | Event::Closed | Event::LameDuckMode => Some(Happened::Ended),
        Event::ServerError(ServerError::AuthorizationViolation) => {
            Some(Happened::Unauthorized("authorization violation".into()))
        }
        Event::ServerError(e) => {
            let text = printable(&e.to_string(), 300);
            if is_refusal(&text) {
                return Some(Happened::Unauthorized(text));
            }
            // A permission violation: the server's idea of what this node may
            // do differs from the node's.
            warn!("the NATS server refused something this node did: {text}");
            None
        }
        Event::SlowConsumer(_) => {
            warn!("messages came faster than they could be looked at; some were lost");
            None
        }
        Event::ClientError(e) => {
            debug!("NATS client: {}", printable(&e.to_string(), 300));
            None
        }
        Event::Draining => None,
    }
}
