//! The system-account connection: muster's way to administer a running server
//! or cluster.
//!
//! New account claims reach a server here, and here the broker sees the
//! connections of nodes come and go, as the server itself reports them: a node
//! cannot forge these.

mod events;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, ConnectErrorKind, Event, RequestErrorKind};
use futures_util::{Stream, StreamExt as _, stream};
use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

pub use self::events::{ConnChange, ConnEvent, ConnUpdate, LiveConnection};
use self::events::{ConnzPage, parse_event};
use super::credentials::Credentials;
use super::keys::{AccountKey, UserKey};
use super::version::{ServerVersion, VersionError};

/// How long a request to the servers may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A round of answers from several servers ends when none came for this long.
const QUIET: Duration = Duration::from_millis(300);

/// Connections asked for at a time: about half a megabyte of answer.
const PAGE: usize = 1000;

/// Why administering the servers failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdminError {
    /// No connection.
    #[error("cannot connect to NATS at {url} as its administrator: {source}{hint}")]
    Connect {
        /// Where.
        url: String,
        /// What the client said.
        source: async_nats::ConnectError,
        /// What to do, when it is known.
        hint: &'static str,
    },
    /// Not a version muster works with.
    #[error(transparent)]
    Version(#[from] VersionError),
    /// Nobody listens for claims.
    #[error("the NATS server does not take account claims; its configuration needs `resolver {{ type: full }}`: see `muster nats-config`")]
    NoResolver,
    /// A server refused the claims.
    #[error("the NATS server {server} refused the account claims: {reason}")]
    Refused {
        /// Name of the server.
        server: String,
        /// What it said.
        reason: String,
    },
    /// Some servers did not say that they have the claims.
    #[error("these NATS servers did not confirm the new account claims: {}; a removed node may still be connected to them; it is tried again", .missing.join(", "))]
    Unconfirmed {
        /// Names or ids of the servers.
        missing: Vec<String>,
    },
    /// The server is too old for this.
    #[error("NATS server {version} cannot {what}; version {needed} can")]
    Unsupported {
        /// Its version.
        version: String,
        /// What was wanted.
        what: &'static str,
        /// First version that can.
        needed: &'static str,
    },
    /// No answer, or a broken connection.
    #[error("the NATS server did not answer ({what}): {reason}")]
    NoAnswer {
        /// What was asked.
        what: &'static str,
        /// What the client said.
        reason: String,
    },
    /// An answer that makes no sense.
    #[error("cannot understand the NATS server's answer ({what}): {source}")]
    Answer {
        /// What was asked.
        what: &'static str,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

/// One server of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServerId {
    /// Its key, new at each start.
    pub id: String,
    /// Its name.
    pub name: String,
}

/// A connection in the system account. Cheap to clone.
#[derive(Clone, Debug)]
pub struct SystemClient {
    client: Client,
    version: ServerVersion,
    // Counts whenever events may have been missed.
    gaps: Arc<watch::Sender<u64>>,
}

impl SystemClient {
    /// Connects with a user of the system account. `customise` may add TLS
    /// settings and the like; it must not change name, events or inbox.
    ///
    /// # Errors
    /// [`AdminError::Connect`], or [`AdminError::Version`] for a server older
    /// than [`super::version::MINIMUM`].
    pub async fn connect(
        urls: &[String],
        credentials: &Credentials,
        customise: impl FnOnce(async_nats::ConnectOptions) -> async_nats::ConnectOptions,
    ) -> Result<Self, AdminError> {
        let gaps = Arc::new(watch::Sender::new(0));
        let noted = Arc::clone(&gaps);
        let url = urls.join(",");
        let connect = |source: async_nats::ConnectError| AdminError::Connect {
            url: url.clone(),
            hint: match source.kind() {
                ConnectErrorKind::AuthorizationViolation => {
                    "; the server has another operator or system account: see `muster nats-config`"
                }
                ConnectErrorKind::Io | ConnectErrorKind::TimedOut | ConnectErrorKind::Dns => {
                    "; is the server running, and is the address right?"
                }
                ConnectErrorKind::Tls => "; is the certificate authority right?",
                _ => "",
            },
            source,
        };
        let options = customise(credentials.connect_options())
            .name("muster-broker (system)")
            .custom_inbox_prefix("_INBOX.muster.system")
            .event_callback(move |event| {
                let noted = Arc::clone(&noted);
                async move {
                    match event {
                        // Both ends of an outage: what happened in between
                        // was not heard.
                        Event::Connected | Event::Disconnected | Event::SlowConsumer(_) => {
                            noted.send_modify(|n| *n += 1);
                        }
                        other => tracing::warn!(event = %other, "system connection to NATS"),
                    }
                }
            });
        let client = options.connect(urls).await.map_err(connect)?;
        let version = client.server_info().version.parse::<ServerVersion>()?.require_minimum()?;
        Ok(Self { client, version, gaps })
    }

    /// Version of the server that this is connected to; never below
    /// [`super::version::MINIMUM`].
    #[must_use]
    pub fn server_version(&self) -> ServerVersion {
        self.version
    }

    /// The connection itself.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The servers of the cluster that answer now, in the order of their ids.
    ///
    /// # Errors
    /// [`AdminError::NoAnswer`] when not even one answers.
    pub async fn servers(&self) -> Result<Vec<ServerId>, AdminError> {
        #[derive(Deserialize)]
        struct Pong {
            server: Server,
        }
        const WHAT: &str = "which servers are there";
        let answers = self.scatter(WHAT, "$SYS.REQ.SERVER.PING", Vec::new(), None).await?;
        let mut servers = BTreeSet::new();
        for answer in answers {
            let pong: Pong = serde_json::from_slice(&answer)
                .map_err(|source| AdminError::Answer { what: WHAT, source })?;
            servers.insert(ServerId { id: pong.server.id, name: pong.server.name });
        }
        if servers.is_empty() {
            return Err(AdminError::NoAnswer { what: WHAT, reason: "no server answered".into() });
        }
        Ok(servers.into_iter().collect())
    }

    /// Gives an account's new claims to every server. When this returns, each
    /// server that is up enforces them: connections of users that they revoke
    /// are being closed, and stay out after a restart of the server.
    ///
    /// The claims must have been issued later than those that the servers have
    /// ([`super::jwt::next_issued_at`]).
    ///
    /// # Errors
    /// [`AdminError::NoResolver`], [`AdminError::Refused`], or
    /// [`AdminError::Unconfirmed`] when only some servers have them: push again.
    pub async fn push_account_claims(&self, jwt: &str) -> Result<(), AdminError> {
        #[derive(Deserialize)]
        struct Answer {
            server: Server,
            error: Option<Failure>,
        }
        #[derive(Deserialize)]
        struct Failure {
            description: String,
        }
        const WHAT: &str = "new account claims";
        let mut waiting: BTreeSet<ServerId> = self.servers().await?.into_iter().collect();
        let answers = self
            .scatter(WHAT, "$SYS.REQ.CLAIMS.UPDATE", jwt.as_bytes().to_vec(), Some(waiting.len()))
            .await?;
        if answers.is_empty() {
            return Err(AdminError::NoResolver);
        }
        for answer in answers {
            let answer: Answer = serde_json::from_slice(&answer)
                .map_err(|source| AdminError::Answer { what: WHAT, source })?;
            if let Some(error) = answer.error {
                return Err(AdminError::Refused {
                    server: answer.server.name,
                    reason: error.description,
                });
            }
            waiting.remove(&ServerId { id: answer.server.id, name: answer.server.name });
        }
        if waiting.is_empty() {
            Ok(())
        } else {
            Err(AdminError::Unconfirmed { missing: waiting.into_iter().map(|s| s.name).collect() })
        }
    }

    /// Connections of `account` as they come and go, from now on. When some
    /// may have been missed (an outage, a slow reader), [`ConnUpdate::Resync`]
    /// comes: then ask [`SystemClient::live_connections`]. The first item is
    /// always a `Resync`, sent once the subscription is in place.
    ///
    /// # Errors
    /// [`AdminError::NoAnswer`] when the connection is closed.
    pub async fn connection_events(
        &self,
        account: &AccountKey,
    ) -> Result<impl Stream<Item = ConnUpdate> + Send + Unpin + use<>, AdminError> {
        const WHAT: &str = "connection events";
        let broken = |reason: String| AdminError::NoAnswer { what: WHAT, reason };
        let mut gaps = self.gaps.subscribe();
        gaps.mark_changed();
        let subscribe = async |what: &str| {
            self.client
                .subscribe(format!("$SYS.ACCOUNT.{account}.{what}"))
                .await
                .map_err(|e| broken(e.to_string()))
        };
        let came = subscribe("CONNECT").await?;
        let went = subscribe("DISCONNECT").await?;
        // The server has both subscriptions once it answered a ping.
        timeout(TIMEOUT, self.client.flush())
            .await
            .map_err(|_| broken("timed out".into()))?
            .map_err(|e| broken(e.to_string()))?;
        let messages = stream::select(came, went);
        Ok(Box::pin(stream::unfold((messages, gaps), async |(mut messages, mut gaps)| {
            loop {
                tokio::select! {
                    biased;
                    changed = gaps.changed() => {
                        return changed.ok().map(|()| (ConnUpdate::Resync, (messages, gaps)));
                    }
                    message = messages.next() => match parse_event(&message?.payload) {
                        Ok(event) => return Some((ConnUpdate::Event(event), (messages, gaps))),
                        Err(error) => {
                            tracing::warn!(%error, "cannot understand a NATS connection event");
                        }
                    }
                }
            }
        })))
    }

    /// All open connections of `account`, on all servers that answer now.
    ///
    /// # Errors
    /// [`AdminError::NoAnswer`], [`AdminError::Answer`].
    pub async fn live_connections(
        &self,
        account: &AccountKey,
    ) -> Result<Vec<LiveConnection>, AdminError> {
        const WHAT: &str = "open connections";
        let mut found = Vec::new();
        for server in self.servers().await? {
            let subject = format!("$SYS.REQ.SERVER.{}.CONNZ", server.id);
            let mut offset = 0;
            loop {
                // Sorted by connection id: a connection that goes away between
                // two pages can hide another from this list, but not for long:
                // each end of a connection is an event, too.
                let ask = serde_json::json!({
                    "auth": true, "acc": account, "state": 0, "sort": "cid",
                    "limit": PAGE, "offset": offset,
                });
                let page: ConnzPage = self.ask(WHAT, subject.clone(), &ask).await?;
                let got = page.data.connections.len();
                found.extend(page.data.connections.into_iter().map(|c| c.live(&server.id)));
                offset += got;
                if got < PAGE {
                    break;
                }
            }
        }
        Ok(found)
    }

    /// Closes one connection. The user may come back: to keep it out, revoke it.
    ///
    /// # Errors
    /// [`AdminError::Unsupported`] on servers before 2.11, which close a
    /// connection only when its user is revoked.
    pub async fn kick(&self, server_id: &str, connection: u64) -> Result<(), AdminError> {
        const FIRST: ServerVersion = ServerVersion { major: 2, minor: 11, patch: 0 };
        if self.version < FIRST {
            return Err(AdminError::Unsupported {
                version: self.version.to_string(),
                what: "close a single connection",
                needed: "2.11",
            });
        }
        #[derive(Deserialize)]
        struct Answer {
            error: Option<Failure>,
        }
        #[derive(Deserialize)]
        struct Failure {
            description: String,
        }
        let subject = format!("$SYS.REQ.SERVER.{server_id}.KICK");
        let ask = serde_json::json!({ "cid": connection });
        let answer: Answer = self.ask("close a connection", subject, &ask).await?;
        match answer.error {
            None => Ok(()),
            Some(error) => Err(AdminError::Refused {
                server: server_id.to_owned(),
                reason: error.description,
            }),
        }
    }

    async fn ask<T: serde::de::DeserializeOwned>(
        &self,
        what: &'static str,
        subject: String,
        ask: &serde_json::Value,
    ) -> Result<T, AdminError> {
        let no_answer = |reason: String| AdminError::NoAnswer { what, reason };
        let payload = ask.to_string().into();
        let answer = timeout(TIMEOUT, self.client.request(subject, payload))
            .await
            .map_err(|_| no_answer("timed out".into()))?
            .map_err(|e| match e.kind() {
                RequestErrorKind::NoResponders => no_answer("it is gone, or too old".into()),
                _ => no_answer(e.to_string()),
            })?;
        serde_json::from_slice(&answer.payload).map_err(|source| AdminError::Answer { what, source })
    }

    /// Sends one request and gathers the answers of all servers: until `want`
    /// have come, or none came for a while, or nobody listens.
    async fn scatter(
        &self,
        what: &'static str,
        subject: &'static str,
        payload: Vec<u8>,
        want: Option<usize>,
    ) -> Result<Vec<bytes::Bytes>, AdminError> {
        let no_answer = |reason: String| AdminError::NoAnswer { what, reason };
        let inbox = self.client.new_inbox();
        let mut replies = self
            .client
            .subscribe(inbox.clone())
            .await
            .map_err(|e| no_answer(e.to_string()))?;
        self.client
            .publish_with_reply(subject, inbox, payload.into())
            .await
            .map_err(|e| no_answer(e.to_string()))?;
        let mut answers = Vec::new();
        let end = Instant::now() + TIMEOUT;
        while want.is_none_or(|want| answers.len() < want) {
            // Without a number to wait for, silence after an answer ends it.
            let until = match want {
                None if !answers.is_empty() => end.min(Instant::now() + QUIET),
                _ => end,
            };
            match timeout_at(until, replies.next()).await {
                Ok(Some(reply)) if reply.status == Some(async_nats::StatusCode::NO_RESPONDERS) => break,
                Ok(Some(reply)) => answers.push(reply.payload),
                Ok(None) => return Err(no_answer("the connection is closed".into())),
                Err(_) if answers.is_empty() => return Err(no_answer("timed out".into())),
                Err(_) => break,
            }
        }
        Ok(answers)
    }
}

#[derive(Deserialize)]
struct Server {
    id: String,
    name: String,
}

/// The user that a text names, when it is one: events of the system account
/// itself, and of servers, carry other things there.
fn user_key(text: Option<&str>) -> Option<UserKey> {
    text.and_then(|text| text.parse().ok())
}

#[cfg(test)]
mod tests;
