//! One connection of one node to NATS, which ends for good when it ends. The
//! simulated fleet connects by it, too.
//!
//! The NATS client would reconnect by itself with the credentials it began
//! with. A node's may have been replaced meanwhile, and it has to say hello
//! again in any case, so each connection is a new one.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::{
    Auth, AuthError, Client, ConnectErrorKind, ConnectOptions, Event, ReconnectToServer,
    ServerAddr, ServerError,
};
use muster_protocol::ids::Serial;
use muster_protocol::subject::{self, inbox_prefix};
use muster_protocol::text::printable;
use muster_protocol::wire::Assignment;
use tokio::sync::mpsc;
use tracing::{debug, warn};

/// Where the client goes when its connection has ended: no TCP connection
/// leads there, on any machine, and the attempt fails without a packet. So it
/// gives up, and ends.
const NOWHERE: &str = "nats://255.255.255.255:1";
/// How long the news that a connection has ended may take on the usual way.
const NEWS_WITHIN: Duration = Duration::from_millis(300);
/// News that may wait.
const NEWS: usize = 16;

/// What a connection tells about itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Happened {
    /// It is over.
    Ended,
    /// The server no longer accepts the credentials.
    Unauthorized(String),
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
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

/// How the server's certificate is checked.
#[derive(Clone, Debug)]
pub enum Trust {
    /// As the address says; what has a certificate must be known to this
    /// machine.
    Address,
    /// TLS, with an authority from a file.
    Authority(PathBuf),
    /// TLS, checked so.
    Config(Box<rustls::ClientConfig>),
}

/// How much a connection may hold, and how patient it is.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// How long connecting may take.
    pub connect_within: Duration,
    /// How often it is asked whether the server is still there; at the third
    /// silence the connection has ended.
    pub ping_every: Duration,
    /// Messages towards the server that may wait.
    pub outgoing: usize,
    /// Messages that may wait to be heard, for each subject.
    pub incoming: usize,
    /// Bytes of the read buffer to begin with; `None` for the client's choice.
    pub read_buffer: Option<u16>,
}

/// Who connects, and how.
#[derive(Clone, Debug)]
pub struct Ticket<'a> {
    /// What the server shows to its operators.
    pub client: String,
    /// The node.
    pub serial: Serial,
    /// Its credentials.
    pub jwt: &'a str,
    /// Its key, which they are for.
    pub key: &'a Arc<nkeys::KeyPair>,
    /// How the server is known.
    pub trust: Trust,
    /// Bounds.
    pub size: Size,
}

/// A connection and its news. It ends when this and its client are dropped.
pub struct Connection {
    /// To speak and hear by.
    pub client: Client,
    /// What happens to it.
    pub events: mpsc::Receiver<Happened>,
}

/// Tries the addresses in order.
///
/// # Errors
/// [`ConnectError`] of the last address, or the first that refuses the
/// credentials.
pub async fn connect(urls: &[String], ticket: &Ticket<'_>) -> Result<Connection, ConnectError> {
    let mut last = ConnectError::NoAddress;
    for url in urls {
        match connect_to(url, ticket).await {
            Ok(connection) => return Ok(connection),
            Err(e @ ConnectError::Unauthorized { .. }) => return Err(e),
            Err(e) => last = e,
        }
    }
    Err(last)
}

async fn connect_to(url: &str, ticket: &Ticket<'_>) -> Result<Connection, ConnectError> {
    let unreachable = |why: &dyn std::fmt::Display| ConnectError::Unreachable {
        url: printable(url, 100),
        why: printable(&why.to_string(), 300),
    };
    let address: ServerAddr = url.parse().map_err(|e| unreachable(&e))?;
    let nowhere: ServerAddr = NOWHERE.parse().map_err(|e| unreachable(&e))?;
    let (news, events) = mpsc::channel(NEWS);
    let auth = {
        let (jwt, pair) = (ticket.jwt.to_owned(), ticket.key.clone());
        move |nonce: Vec<u8>| {
            let (jwt, pair) = (jwt.clone(), pair.clone());
            async move {
                let mut auth = Auth::new();
                auth.signature = Some(pair.sign(&nonce).map_err(AuthError::new)?);
                auth.jwt = Some(jwt);
                Ok(auth)
            }
        }
    };
    let callback = {
        let news = news.clone();
        move |event: Event| {
            let news = news.clone();
            async move {
                if let Some(happened) = interpret(&event) {
                    let _ = news.try_send(happened);
                }
            }
        }
    };
    let first = Arc::new(AtomicBool::new(true));
    let pool = [address.clone(), nowhere.clone()];
    let whereto = move |_, _| {
        let first = first.swap(false, Ordering::Relaxed);
        let addr = if first { &address } else { &nowhere }.clone();
        let news = news.clone();
        async move {
            if !first {
                // Should the event have been lost among others.
                tokio::time::sleep(NEWS_WITHIN).await;
                let _ = news.try_send(Happened::Ended);
            }
            let delay = Some(Duration::ZERO);
            Some(ReconnectToServer { addr, delay })
        }
    };
    let mut options = ConnectOptions::with_auth_callback(auth)
        .name(ticket.client.clone())
        .custom_inbox_prefix(inbox_prefix(ticket.serial))
        .event_callback(callback)
        .connection_timeout(ticket.size.connect_within)
        .ping_interval(ticket.size.ping_every)
        .reconnect_to_server_callback(whereto)
        .max_reconnects(1)
        .ignore_discovered_servers()
        .client_capacity(ticket.size.outgoing)
        .subscription_capacity(ticket.size.incoming)
        .request_timeout(None);
    if let Some(bytes) = ticket.size.read_buffer {
        options = options.read_buffer_capacity(bytes);
    }
    options = match &ticket.trust {
        Trust::Address => options,
        Trust::Authority(file) => options
            .add_root_certificates(file.clone())
            .require_tls(true),
        Trust::Config(tls) => options.tls_client_config((**tls).clone()).require_tls(true),
    };
    match options.connect(&pool[..]).await {
        Ok(client) => Ok(Connection { client, events }),
        Err(e) => {
            let why = printable(&e.to_string(), 300);
            let refused = matches!(
                e.kind(),
                ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication
            ) || is_refusal(&why);
            Err(if refused {
                let url = printable(url, 100);
                ConnectError::Unauthorized { url, why }
            } else {
                unreachable(&why)
            })
        }
    }
}

/// The subjects that a node with this assignment hears.
#[must_use]
pub fn subjects(serial: Serial, assignment: &Assignment) -> Vec<String> {
    let mut all = vec![subject::ALL.to_owned(), subject::node_subject(serial)];
    let roles = assignment.roles.iter();
    all.extend(roles.map(|role| subject::role_subject(role.as_str())));
    let labels = assignment.labels.iter();
    all.extend(labels.map(|(k, v)| subject::label_subject(k.as_str(), v.as_str())));
    all
}

fn is_refusal(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    text.contains("authentication") || text.contains("authorization")
}

fn interpret(event: &Event) -> Option<Happened> {
    match event {
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
        Event::Connected | Event::Draining => None,
    }
}

#[cfg(test)]
mod tests;
