//! The system-account connection: muster's way to administer a running server
//! or cluster.
//!
//! New account claims reach a server here, and here the broker sees the
//! connections of nodes come and go, as the server itself reports them: a node
//! cannot forge these.

mod error;
mod events;
mod jetstream;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, ConnectErrorKind, Event, RequestErrorKind, StatusCode};
use futures_util::{Stream, StreamExt as _, stream};
use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

pub use self::error::AdminError;
pub use self::events::{ConnChange, ConnEvent, ConnUpdate, LiveConnection};
use self::events::{ConnzPage, parse_event};
pub use self::jetstream::JetStreamUse;
use super::credentials::Credentials;
use super::jwt::verify;
use super::keys::{AccountKey, KeyError, UserKey};
use super::version::ServerVersion;

/// How long a request to the servers may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// How long servers may take to put new claims in force: they look at every
/// connection of the account, and check its credentials again.
const CLAIMS_WITHIN: Duration = Duration::from_secs(30);

/// A round of answers from several servers ends when none came for this long.
const QUIET: Duration = Duration::from_secs(1);

const LOOKUP: &str = "present account claims";

/// Connections asked for at a time: about half a megabyte of answer.
const PAGE: usize = 1000;

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
                        // Its own doing: at the end, and between two tries.
                        Event::Draining | Event::Closed => {}
                        // The other connection to the same servers says it.
                        Event::ClientError(e) => {
                            tracing::debug!(error = %e, "system connection to NATS");
                        }
                        other => tracing::warn!(event = %other, "system connection to NATS"),
                    }
                }
            });
        let client = options.connect(urls).await.map_err(connect)?;
        let version = super::version::connected(&client)?;
        if !client.server_info().auth_required {
            return Err(AdminError::Open {
                url: urls.join(","),
            });
        }
        Ok(Self {
            client,
            version,
            gaps,
        })
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
            #[serde(default)]
            statsz: Stats,
        }
        #[derive(Deserialize, Default)]
        struct Stats {
            #[serde(default)]
            active_servers: usize,
        }
        const WHAT: &str = "which servers are there";
        // Each server tells how many it knows: so nobody waits for silence.
        let all = |answers: &[bytes::Bytes]| {
            answers
                .iter()
                .filter_map(|a| serde_json::from_slice::<Pong>(a).ok())
                .any(|pong| {
                    pong.statsz.active_servers > 0 && answers.len() >= pong.statsz.active_servers
                })
        };
        let answers = self
            .scatter(WHAT, "$SYS.REQ.SERVER.PING".into(), Vec::new(), QUIET, all)
            .await?;
        let mut servers = BTreeSet::new();
        for answer in answers {
            let pong: Pong = serde_json::from_slice(&answer)
                .map_err(|source| AdminError::Answer { what: WHAT, source })?;
            servers.insert(ServerId {
                id: pong.server.id,
                name: pong.server.name,
            });
        }
        if servers.is_empty() {
            return Err(AdminError::NoAnswer {
                what: WHAT,
                reason: "no server answered".into(),
            });
        }
        Ok(servers.into_iter().collect())
    }

    /// The claims that the servers have for an account: the newest that any of
    /// `servers` knows. `None` when none knows the account.
    ///
    /// # Errors
    /// [`AdminError::NoAnswer`].
    pub async fn account_claims(&self, account: &AccountKey) -> Result<Option<String>, AdminError> {
        let count = self.servers().await?.len();
        self.newest_claims(account, count).await
    }

    async fn newest_claims(
        &self,
        account: &AccountKey,
        servers: usize,
    ) -> Result<Option<String>, AdminError> {
        let subject = format!("$SYS.REQ.ACCOUNT.{account}.CLAIMS.LOOKUP");
        let all = |answers: &[bytes::Bytes]| answers.len() >= servers;
        let answers = match self.scatter(LOOKUP, subject, Vec::new(), QUIET, all).await {
            Ok(answers) => answers,
            // A server that does not know the account says nothing.
            Err(AdminError::NoAnswer { .. }) => Vec::new(),
            Err(e) => return Err(e),
        };
        Ok(answers
            .iter()
            .filter_map(|answer| std::str::from_utf8(answer).ok())
            .filter_map(|jwt| Some((verify(jwt).ok()?.issued_at, jwt)))
            .max()
            .map(|(_, jwt)| jwt.to_owned()))
    }

    /// Gives an account's new claims to every server. When this returns, each
    /// server that is up enforces them: connections of users that they revoke
    /// are being closed, and stay out after a restart of the server.
    ///
    /// The claims must have been issued later than those that the servers have
    /// ([`super::jwt::next_issued_at`]): a server itself would take older ones,
    /// and let revoked users in again, and servers of a cluster that compare
    /// their claims would keep either of two with the same time. It would also
    /// take those of a strange operator, and so lock the account. Therefore both
    /// are looked at here, before.
    ///
    /// # Errors
    /// [`AdminError::Outdated`], [`AdminError::OtherOperator`],
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
        let new = verify(jwt).map_err(|e| AdminError::NotClaims(e.to_string()))?;
        let account: AccountKey = new
            .subject
            .parse()
            .map_err(|e: KeyError| AdminError::NotClaims(e.to_string()))?;
        let mut waiting: BTreeSet<ServerId> = self.servers().await?.into_iter().collect();
        let all = waiting.len();
        if let Some(old) = self.newest_claims(&account, all).await? {
            // Pushing the same again is how a half-done push is finished.
            if let Ok(old_claims) = verify(&old)
                && old != jwt
            {
                if old_claims.issuer != new.issuer {
                    return Err(AdminError::OtherOperator { account });
                }
                if new.issued_at <= old_claims.issued_at {
                    return Err(AdminError::Outdated {
                        account,
                        have: old_claims.issued_at,
                        got: new.issued_at,
                    });
                }
            }
        }
        let subject = "$SYS.REQ.CLAIMS.UPDATE".to_owned();
        let answers = self
            .scatter_within(
                CLAIMS_WITHIN,
                WHAT,
                subject,
                jwt.as_bytes().to_vec(),
                CLAIMS_WITHIN,
                |a| a.len() >= all,
            )
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
            waiting.remove(&ServerId {
                id: answer.server.id,
                name: answer.server.name,
            });
        }
        if waiting.is_empty() {
            Ok(())
        } else {
            Err(AdminError::Unconfirmed {
                missing: waiting.into_iter().map(|s| s.name).collect(),
            })
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
        // A server works in order: when it answers, it has the subscriptions.
        // (`flush` of the client would only mean that they were sent.)
        self.servers().await?;
        let messages = stream::select(came, went);
        Ok(Box::pin(stream::unfold(
            (messages, gaps),
            async |(mut messages, mut gaps)| {
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
            },
        )))
    }

    /// All open connections of `account`, on all servers that answer now.
    ///
    /// # Errors
    /// [`AdminError::NoAnswer`], [`AdminError::Answer`].
    pub async fn live_connections(
        &self,
        account: &AccountKey,
    ) -> Result<Vec<LiveConnection>, AdminError> {
        self.live_in_pages(account, PAGE).await
    }

    async fn live_in_pages(
        &self,
        account: &AccountKey,
        page_size: usize,
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
                    "limit": page_size, "offset": offset,
                });
                let page: ConnzPage = self.ask(WHAT, subject.clone(), &ask).await?;
                let got = page.data.connections.len();
                found.extend(
                    page.data
                        .connections
                        .into_iter()
                        .map(|c| c.live(&server.id)),
                );
                offset += got;
                if got < page_size {
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
        const FIRST: ServerVersion = ServerVersion {
            major: 2,
            minor: 11,
            patch: 0,
        };
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
        serde_json::from_slice(&answer.payload)
            .map_err(|source| AdminError::Answer { what, source })
    }

    /// Sends one request and gathers the answers of several servers: until
    /// there are `enough`, or none came for `quiet` after the last one, or
    /// nobody listens.
    async fn scatter(
        &self,
        what: &'static str,
        subject: String,
        payload: Vec<u8>,
        quiet: Duration,
        enough: impl Fn(&[bytes::Bytes]) -> bool,
    ) -> Result<Vec<bytes::Bytes>, AdminError> {
        self.scatter_within(TIMEOUT, what, subject, payload, quiet, enough)
            .await
    }

    async fn scatter_within(
        &self,
        within: Duration,
        what: &'static str,
        subject: String,
        payload: Vec<u8>,
        quiet: Duration,
        enough: impl Fn(&[bytes::Bytes]) -> bool,
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
        let end = Instant::now() + within;
        while !enough(&answers) {
            let until = if answers.is_empty() {
                end
            } else {
                end.min(Instant::now() + quiet)
            };
            match timeout_at(until, replies.next()).await {
                Ok(Some(reply)) if reply.status == Some(StatusCode::NO_RESPONDERS) => break,
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
