//! The broker's traffic with the nodes, all of it: what is signed and sent,
//! and what is heard.
//!
//! Nothing is sent while this broker is not the active one. Nothing that a
//! node says is believed beyond the serial in its subject, which the server
//! has checked.

mod bundles;
mod control;
mod listen;
mod meter;
mod said;
mod service;

use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, HeaderMap, Subject};
use bytes::Bytes;
use muster_protocol::PROTOCOL_VERSION;
use muster_protocol::envelope::{
    Ask, Door, KEY_HEADER, MAX_PAYLOAD, MAX_START_WINDOW, Request, SIGNATURE_HEADER,
};
use muster_protocol::ids::{RequestId, RunId, Serial};
use muster_protocol::names::PrincipalName;
use muster_protocol::nodeset::NodeSet;
use muster_protocol::seal::{SECRETS_HEADER, SecretBox};
use muster_protocol::subject;
use muster_protocol::units::{Timestamp, after};
use muster_protocol::wire::{BUNDLE_HEADER, BundleHead};
use serde::Serialize;

use crate::authority::Authority;
use crate::lease::Lease;
use crate::routing::Route;

pub(crate) use self::service::recall;
pub use self::service::{Deps, Nodes, Settings, StartError};

/// Why nothing was sent.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SendError {
    /// This broker is not the active one.
    #[error("this broker is not the active one now; nothing was sent")]
    NotActive,
    /// The message is larger than nodes and NATS take.
    #[error("the request has {bytes} bytes; at most {most} can be sent")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        most: usize,
    },
    /// The connection is closed for good.
    #[error("the NATS connection is closed: {0}")]
    Closed(String),
}

/// What a request says besides what the bus knows itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Order {
    /// The id that a node answers for once.
    pub id: RequestId,
    /// Who is to obey.
    pub set: NodeSet,
    /// The run's frozen set, where `set` is only a part of it; else empty.
    pub whole: NodeSet,
    /// When the run was created, if it is of one.
    pub created: Option<Timestamp>,
    /// The predicate that must still hold on the node.
    pub predicate: String,
    /// Who asks.
    pub principal: PrincipalName,
    /// Through which door.
    pub door: Door,
    /// How long it may wait to be started; cut to the envelope's limit.
    pub start_within: Duration,
    /// It takes back what a run did: also on nodes that are frozen.
    pub promised: bool,
    /// What is asked.
    pub ask: Ask,
}

impl Order {
    /// Something that the broker itself asks of nodes, outside of any run.
    #[must_use]
    pub fn own(set: NodeSet, ask: Ask) -> Self {
        Self {
            id: RequestId {
                run: RunId::random(),
                step: 0,
            },
            set,
            whole: NodeSet::new(),
            created: None,
            predicate: "*".to_owned(),
            principal: "muster".parse().expect("a constant name"),
            door: Door::Broker,
            start_within: MAX_START_WINDOW,
            promised: false,
            ask,
        }
    }
}

/// What a notice of the server that nobody heard a message is about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Purpose {
    Call,
    Cancel,
    Ping,
    Probe,
    /// Nobody wants to know.
    Other,
}

impl Purpose {
    fn token(self) -> &'static str {
        match self {
            Self::Call => "call",
            Self::Cancel => "cancel",
            Self::Ping => "ping",
            Self::Probe => "probe",
            Self::Other => "other",
        }
    }

    fn parse(token: &str) -> Option<Self> {
        [Self::Call, Self::Cancel, Self::Ping, Self::Probe]
            .into_iter()
            .find(|p| p.token() == token)
    }
}

/// A signed request, ready to be sent to several subjects.
#[derive(Clone, Debug)]
pub struct Signed {
    run: RunId,
    purpose: Purpose,
    headers: HeaderMap,
    bytes: Bytes,
}

impl Signed {
    /// Says so, for whoever looks how long something takes.
    fn is_sent(&self) {
        if matches!(self.purpose, Purpose::Call) {
            tracing::debug!(run = %self.run, "a request is on its way to a run's nodes");
        }
    }
}

impl Signed {
    /// The same with secret parameters beside it, which the request names.
    #[must_use]
    pub(crate) fn with_secrets(mut self, sealed: &SecretBox) -> Self {
        self.headers.insert(SECRETS_HEADER, sealed.to_string());
        self
    }
}

/// The broker's voice. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Bus(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    client: Client,
    authority: Authority,
    lease: Lease,
    /// Where the server says that nobody heard a message to one node:
    /// `<inbox>.<purpose>.<run>.<serial>`.
    inbox: String,
}

impl Bus {
    /// A bus over this connection.
    #[must_use]
    pub fn new(client: Client, authority: Authority, lease: Lease) -> Self {
        let inbox = client.new_inbox();
        Self(Arc::new(Inner {
            client,
            authority,
            lease,
            inbox,
        }))
    }

    /// Whether the connection to NATS is there now.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.0.client.connection_state() == async_nats::connection::State::Connected
    }

    /// The connection.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.0.client
    }

    /// The keys.
    #[must_use]
    pub fn authority(&self) -> &Authority {
        &self.0.authority
    }

    /// The lease.
    #[must_use]
    pub fn lease(&self) -> &Lease {
        &self.0.lease
    }

    /// Signs, freshly: with the key, the epoch and the time of now.
    ///
    /// # Errors
    /// [`SendError::NotActive`], [`SendError::TooLarge`].
    pub fn sign(&self, order: &Order) -> Result<Signed, SendError> {
        let epoch = self.0.lease.epoch().ok_or(SendError::NotActive)?;
        let signer = self.0.authority.signer();
        let issued = Timestamp::now();
        let request = Request {
            v: PROTOCOL_VERSION,
            cluster: signer.cluster,
            epoch,
            run: order.id.run,
            step: order.id.step,
            set: order.set.clone(),
            whole: order.whole.clone(),
            created: order.created,
            predicate: order.predicate.clone(),
            issued,
            start_before: after(issued, order.start_within.min(MAX_START_WINDOW)),
            principal: order.principal.clone(),
            door: order.door,
            promised: order.promised,
            ask: order.ask.clone(),
        };
        let sealed = request.seal(&signer.key);
        let most = MAX_PAYLOAD.min(self.0.client.server_info().max_payload);
        if sealed.bytes.len() > most {
            return Err(SendError::TooLarge {
                bytes: sealed.bytes.len(),
                most,
            });
        }
        let mut headers = HeaderMap::new();
        headers.insert(KEY_HEADER, sealed.key.to_string());
        headers.insert(SIGNATURE_HEADER, sealed.signature.to_string());
        let purpose = match &order.ask {
            Ask::Call(_) => Purpose::Call,
            Ask::Cancel => Purpose::Cancel,
            Ask::Ping => Purpose::Ping,
            Ask::Probe(_) => Purpose::Probe,
            Ask::Refresh { .. }
            | Ask::Recall(_)
            | Ask::Freeze { .. }
            | Ask::Groups(_)
            | Ask::Keys { .. } => Purpose::Other,
        };
        Ok(Signed {
            run: order.id.run,
            purpose,
            headers,
            bytes: sealed.bytes.into(),
        })
    }

    /// Sends to a subject of several nodes.
    ///
    /// # Errors
    /// [`SendError::NotActive`], [`SendError::Closed`].
    pub async fn to_group(&self, subject: String, signed: &Signed) -> Result<(), SendError> {
        self.active()?;
        self.0
            .client
            .publish_with_headers(subject, signed.headers.clone(), signed.bytes.clone())
            .await
            .map_err(|e| SendError::Closed(e.to_string()))?;
        signed.is_sent();
        Ok(())
    }

    /// Sends to one node on its own subject; when nobody hears it, the server
    /// says so and whoever waits is told.
    ///
    /// # Errors
    /// [`SendError::NotActive`], [`SendError::Closed`].
    pub async fn to_node(&self, node: Serial, signed: &Signed) -> Result<(), SendError> {
        self.active()?;
        let reply = format!(
            "{}.{}.{}.{node}",
            self.0.inbox,
            signed.purpose.token(),
            signed.run
        );
        let (headers, bytes) = (signed.headers.clone(), signed.bytes.clone());
        self.0
            .client
            .publish_with_reply_and_headers(subject::node_subject(node), reply, headers, bytes)
            .await
            .map_err(|e| SendError::Closed(e.to_string()))?;
        signed.is_sent();
        Ok(())
    }

    /// Sends along a route.
    ///
    /// # Errors
    /// [`SendError::NotActive`], [`SendError::Closed`].
    pub async fn along(&self, route: &Route, signed: &Signed) -> Result<(), SendError> {
        match route {
            Route::Group(subject) => self.to_group(subject.clone(), signed).await,
            Route::Nodes(nodes) => {
                for node in nodes {
                    self.to_node(*node, signed).await?;
                }
                Ok(())
            }
        }
    }

    /// Answers a node. The subject is the node's own words: it is used only
    /// when it lies in that node's inbox, for with it a node could else make
    /// the broker say something to anybody.
    pub async fn reply<T: Serialize>(&self, node: Serial, to: &Subject, answer: &T) {
        if self.active().is_err() || !in_inbox(node, to) {
            return;
        }
        match serde_json::to_vec(answer) {
            Ok(bytes) => {
                if let Err(error) = self.0.client.publish(to.clone(), bytes.into()).await {
                    tracing::warn!(%node, %error, "cannot answer a node");
                }
            }
            Err(error) => tracing::error!(%node, %error, "an answer has no JSON form"),
        }
    }

    /// Answers a node with a part of a bundle, or with why there is none, and
    /// waits until the connection has taken it.
    pub(super) async fn give(&self, node: Serial, to: &Subject, head: &BundleHead, part: Bytes) {
        if self.active().is_err() || !in_inbox(node, to) {
            return;
        }
        let Ok(head) = serde_json::to_string(head) else {
            return;
        };
        let mut headers = HeaderMap::new();
        headers.insert(BUNDLE_HEADER, head.as_str());
        let client = &self.0.client;
        let given = client.publish_with_headers(to.clone(), headers, part).await;
        if let Err(error) = given {
            tracing::warn!(%node, %error, "cannot give a node a bundle");
        } else if let Err(error) = client.flush().await {
            tracing::warn!(%node, %error, "cannot give a node a bundle");
        }
    }

    /// Answers a node with nothing, which says that its message is stored.
    pub async fn acknowledge(&self, node: Serial, to: &Subject) {
        if self.active().is_ok() && in_inbox(node, to) {
            let _ = self.0.client.publish(to.clone(), Bytes::new()).await;
        }
    }

    fn active(&self) -> Result<(), SendError> {
        self.0.lease.epoch().map(drop).ok_or(SendError::NotActive)
    }
}

fn in_inbox(node: Serial, to: &Subject) -> bool {
    let rest = to
        .strip_prefix(&subject::inbox_prefix(node))
        .and_then(|rest| rest.strip_prefix('.'));
    rest.is_some_and(|rest| !rest.is_empty() && !rest.contains(['*', '>', ' ', '\t', '\r', '\n']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_goes_only_into_the_inbox_of_the_node_itself() {
        let fits = |to: &str| in_inbox(Serial(7), &Subject::from(to));
        assert!(fits("_INBOX.m1.7.abc"));
        assert!(fits("_INBOX.m1.7.abc.1"));
        for bad in [
            "_INBOX.m1.7",
            "_INBOX.m1.7.",
            "_INBOX.m1.77.abc",
            "_INBOX.m1.8.abc",
            "m1.do.all",
            "$JS.API.STREAM.DELETE.MUSTER_RUNS",
            "_INBOX.m1.7.*",
            "_INBOX.m1.7.>",
            "",
        ] {
            assert!(!fits(bad), "{bad}");
        }
    }
}
