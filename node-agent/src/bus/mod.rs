//! NATS: one connection at a time, made anew whenever it ends, the
//! credentials change, or the server says no.

pub mod connection;
mod outage;
mod session;

pub use session::{Link, LinkParts};

use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, HeaderMap};
use bytes::Bytes;
use muster_protocol::envelope::{KEY_HEADER, SIGNATURE_HEADER, Sealed};
use muster_protocol::ids::Serial;
use muster_protocol::subject::NodeSays;
use muster_protocol::text::printable;
use muster_protocol::wire::{BUNDLE_HEADER, BundleHead, BundleRequest, OUTPUT_HEADER, OutputHead};
use serde::Serialize;
use tokio::sync::watch;

/// How long a message may wait for room towards the server.
const PUBLISH_WITHIN: Duration = Duration::from_secs(2);

/// Why something was not said.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SayError {
    /// There is no connection, or the broker has not welcomed this node.
    #[error("not connected")]
    Away,
    /// The server takes nothing at present.
    #[error("the connection is stuck")]
    Stuck,
    /// Nobody listens.
    #[error("no broker listens")]
    NoBroker,
    /// No answer in time.
    #[error("no answer")]
    NoAnswer,
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

/// A connection on which the broker has welcomed this node.
#[derive(Clone)]
pub struct Voice {
    client: Client,
    serial: Serial,
}

impl Voice {
    pub(crate) fn new(client: Client, serial: Serial) -> Self {
        Self { client, serial }
    }

    /// Says something.
    ///
    /// # Errors
    /// [`SayError`].
    pub async fn say<T: Serialize>(&self, kind: NodeSays, message: &T) -> Result<(), SayError> {
        let bytes = encode(message)?;
        within(self.client.publish(kind.subject(self.serial), bytes)).await
    }

    /// Says something and waits for the answer.
    ///
    /// # Errors
    /// [`SayError`].
    pub async fn ask<T: Serialize>(
        &self,
        kind: NodeSays,
        message: &T,
        patience: Duration,
    ) -> Result<Bytes, SayError> {
        let bytes = encode(message)?;
        let request = self.client.request(kind.subject(self.serial), bytes);
        answered(patience, request).await
    }

    /// Asks for a part of a bundle.
    ///
    /// # Errors
    /// [`SayError`].
    pub async fn bundle(
        &self,
        request: &BundleRequest,
        patience: Duration,
    ) -> Result<(BundleHead, Bytes), SayError> {
        let subject = NodeSays::Bundle.subject(self.serial);
        let request = self.client.request(subject, encode(request)?);
        let answer = message(patience, request).await?;
        let head = answer.headers.as_ref().and_then(|h| h.get(BUNDLE_HEADER));
        let head = head.ok_or_else(|| SayError::Other("an answer without a head".to_owned()))?;
        let head = serde_json::from_str(head.as_str())
            .map_err(|e| SayError::Other(printable(&e.to_string(), 200)))?;
        Ok((head, answer.payload))
    }

    /// Sends a request as it once came, and waits for the answer.
    ///
    /// # Errors
    /// [`SayError`].
    pub async fn prove(&self, sealed: Sealed, patience: Duration) -> Result<Bytes, SayError> {
        let mut headers = HeaderMap::new();
        headers.insert(KEY_HEADER, sealed.key.to_string());
        headers.insert(SIGNATURE_HEADER, sealed.signature.to_string());
        let request = async_nats::Request::new()
            .headers(headers)
            .payload(sealed.bytes.into());
        let subject = NodeSays::Proof.subject(self.serial);
        answered(patience, self.client.send_request(subject, request)).await
    }

    /// Sends a chunk of output.
    ///
    /// # Errors
    /// [`SayError`].
    pub async fn output(&self, head: &OutputHead, data: Bytes) -> Result<(), SayError> {
        let head = serde_json::to_string(head).map_err(|e| SayError::Other(e.to_string()))?;
        let mut headers = HeaderMap::new();
        headers.insert(OUTPUT_HEADER, head.as_str());
        let subject = NodeSays::Output.subject(self.serial);
        within(self.client.publish_with_headers(subject, headers, data)).await
    }

    /// Waits until the server has what was said before.
    ///
    /// # Errors
    /// [`SayError`].
    pub async fn flush(&self) -> Result<(), SayError> {
        within(self.client.flush()).await
    }
}

fn encode<T: Serialize>(message: &T) -> Result<Bytes, SayError> {
    serde_json::to_vec(message)
        .map(Bytes::from)
        .map_err(|e| SayError::Other(e.to_string()))
}

async fn answered(
    patience: Duration,
    request: impl Future<Output = Result<async_nats::Message, async_nats::RequestError>>,
) -> Result<Bytes, SayError> {
    Ok(message(patience, request).await?.payload)
}

async fn message(
    patience: Duration,
    request: impl Future<Output = Result<async_nats::Message, async_nats::RequestError>>,
) -> Result<async_nats::Message, SayError> {
    match tokio::time::timeout(patience, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(e)) => Err(match e.kind() {
            async_nats::RequestErrorKind::NoResponders => SayError::NoBroker,
            async_nats::RequestErrorKind::TimedOut => SayError::NoAnswer,
            _ => SayError::Other(printable(&e.to_string(), 200)),
        }),
        Err(_) => Err(SayError::NoAnswer),
    }
}

async fn within<E: std::fmt::Display>(
    publish: impl Future<Output = Result<(), E>>,
) -> Result<(), SayError> {
    match tokio::time::timeout(PUBLISH_WITHIN, publish).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(e)) => Err(SayError::Other(printable(&e.to_string(), 200))),
        Err(_) => Err(SayError::Stuck),
    }
}

/// The bus as the rest of the agent sees it: a voice, or none at present.
#[derive(Clone)]
pub struct Bus {
    voice: watch::Receiver<Option<Arc<Voice>>>,
}

impl Bus {
    /// A bus, and the end by which the connection gives it its voice.
    #[must_use]
    pub fn new() -> (watch::Sender<Option<Arc<Voice>>>, Self) {
        let (sender, voice) = watch::channel(None);
        (sender, Self { voice })
    }

    /// The voice, if there is one.
    ///
    /// # Errors
    /// [`SayError::Away`].
    pub fn voice(&self) -> Result<Arc<Voice>, SayError> {
        self.voice.borrow().clone().ok_or(SayError::Away)
    }

    /// Says something, if there is a voice.
    ///
    /// # Errors
    /// [`SayError`].
    pub async fn say<T: Serialize>(&self, kind: NodeSays, message: &T) -> Result<(), SayError> {
        self.voice()?.say(kind, message).await
    }

    /// Returns when there is a voice; never, when the agent is ending.
    pub async fn welcomed(&self) -> Arc<Voice> {
        let mut changes = self.voice.clone();
        loop {
            if let Some(voice) = changes.borrow_and_update().clone() {
                return voice;
            }
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Returns when the voice changes.
    pub async fn changed(&mut self) {
        if self.voice.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
