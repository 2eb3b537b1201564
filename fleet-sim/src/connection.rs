//! One connection of one node to NATS, which ends for good when it ends, as
//! an agent's does: the node has to say hello again in any case.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::{
    Auth, AuthError, Client, ConnectErrorKind, ConnectOptions, Event, ServerError, Subscriber,
};
use futures_util::stream::SelectAll;
use muster_protocol::subject::{self, inbox_prefix};
use muster_protocol::text::printable;
use tokio::sync::mpsc;
use tracing::debug;

use crate::node::Member;

/// Bytes of a connection's read buffer to begin with. The client's own
/// choice, 64 KiB, would be most of what a simulated node weighs.
pub const READ_BUFFER: u16 = 2048;
const CONNECT_WITHIN: Duration = Duration::from_secs(20);
const PING_EVERY: Duration = Duration::from_secs(60);

/// Where NATS is, the same for the whole fleet.
#[derive(Clone, Debug)]
pub struct Address {
    /// Addresses, in the order to try.
    pub urls: Vec<String>,
    /// How its certificate is checked, when it has one.
    pub tls: Option<rustls::ClientConfig>,
}

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
    #[error("{url} does not accept the credentials of {name}: {why}")]
    Unauthorized {
        /// Where.
        url: String,
        /// Whose.
        name: String,
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
}

/// A connection, its subscriptions and its news. It ends when it is dropped.
pub struct Connection {
    /// For what the node says.
    pub client: Client,
    /// What it hears.
    pub requests: SelectAll<Subscriber>,
    /// What happens to it.
    pub events: mpsc::Receiver<Happened>,
    over: Arc<AtomicBool>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// Connects and subscribes to what this node may hear.
///
/// # Errors
/// [`ConnectError`] of the last address.
pub async fn connect(address: &Address, member: &Member) -> Result<Connection, ConnectError> {
    let mut last = ConnectError::Unreachable {
        url: "NATS".to_owned(),
        why: "the broker gave no address".to_owned(),
    };
    for url in &address.urls {
        match connect_to(url, address, member).await {
            Ok(connection) => return Ok(connection),
            Err(e @ ConnectError::Unauthorized { .. }) => return Err(e),
            Err(e) => last = e,
        }
    }
    Err(last)
}

async fn connect_to(
    url: &str,
    address: &Address,
    member: &Member,
) -> Result<Connection, ConnectError> {
    let over = Arc::new(AtomicBool::new(false));
    let (news, events) = mpsc::channel(4);
    let ended = news.clone();
    let auth = {
        let (over, jwt, pair) = (over.clone(), member.jwt.clone(), member.keys.nats.clone());
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
                if let Some(happened) = interpret(&event) {
                    over.store(true, Ordering::Relaxed);
                    let _ = news.try_send(happened);
                }
            }
        }
    };
    let (first, lost) = (AtomicBool::new(true), over.clone());
    let mut options = ConnectOptions::with_auth_callback(auth)
        .name(format!("muster-fleet-sim {}", member.assignment.name))
        .custom_inbox_prefix(inbox_prefix(member.serial))
        .event_callback(callback)
        .connection_timeout(CONNECT_WITHIN)
        .ping_interval(PING_EVERY)
        .reconnect_delay_callback(move |_| {
            // It is asked before each attempt, the very first one too. By the
            // second one the connection is over; the attempt then fails at
            // once and the client is gone, which a delay would keep alive.
            if !first.swap(false, Ordering::Relaxed) {
                lost.store(true, Ordering::Relaxed);
                let _ = ended.try_send(Happened::Ended);
            }
            Duration::ZERO
        })
        .max_reconnects(1)
        .ignore_discovered_servers()
        .client_capacity(32)
        .subscription_capacity(1024)
        .read_buffer_capacity(READ_BUFFER)
        .request_timeout(None);
    if let Some(tls) = &address.tls {
        options = options.tls_client_config(tls.clone()).require_tls(true);
    }
    let fail = |why: &dyn std::fmt::Display| ConnectError::Unreachable {
        url: printable(url, 100),
        why: printable(&why.to_string(), 300),
    };
    let client = match options.connect(url).await {
        Ok(client) => client,
        Err(e) => {
            let refused = matches!(
                e.kind(),
                ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication
            ) || is_refusal(&e.to_string());
            return Err(if refused {
                ConnectError::Unauthorized {
                    url: printable(url, 100),
                    name: member.assignment.name.to_string(),
                    why: printable(&e.to_string(), 300),
                }
            } else {
                fail(&e)
            });
        }
    };
    let mut requests = SelectAll::new();
    for subject in subjects(member) {
        requests.push(client.subscribe(subject).await.map_err(|e| fail(&e))?);
    }
    Ok(Connection {
        client,
        requests,
        events,
        over,
    })
}

/// The subjects that a node hears, as an agent subscribes to them.
fn subjects(member: &Member) -> Vec<String> {
    let assignment = &member.assignment;
    let mut all = vec![
        subject::ALL.to_owned(),
        subject::node_subject(member.serial),
    ];
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
            debug!("the NATS server refused something: {text}");
            None
        }
        _ => None,
    }
}
