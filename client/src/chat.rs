//! What a bot says and hears.

use std::collections::VecDeque;
use std::time::Duration;

use muster_protocol::api::{
    ChatAnswer, ChatDevice, ChatDeviceRequest, ChatLine, ChatLink, Utterance,
};
use muster_protocol::names::NetworkName;
use reqwest::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::client::{Ask, Client, garbage};
use crate::error::ClientError;
use crate::once::Key;
use crate::sse::Event;
use crate::stream::{Ended, From, Pause, Reconnecting};

/// The name of the event that says that places are numbered anew.
const RENUMBERED: &str = "renumbered";
/// The name of the event that says from which place on it is told.
const HERE: &str = "here";
/// A line can start a dry run, and is answered when that has ended.
const FOR_A_DRY_RUN: Duration = Duration::from_secs(80);

/// What whoever follows what is to be said sees.
#[derive(Clone, Debug, PartialEq)]
pub enum ChatNews {
    /// Something to be said.
    Utterance {
        /// Go on from here once it was said.
        place: String,
        /// What and where.
        utterance: Box<Utterance>,
    },
    /// What was to be said up to here is known: by the place that was named,
    /// or because it is followed from now on.
    Here {
        /// Go on from here.
        place: String,
    },
    /// The store went back in time, and places are numbered anew: what was to
    /// be said in between is lost. What follows is new.
    Renumbered {
        /// Go on from here.
        place: String,
    },
    /// The connection was lost; it is tried again after a pause.
    Reconnecting {
        /// Why.
        why: String,
        /// How often it was tried since the last event.
        attempt: u32,
    },
}

/// What is to be said in a network. See [`Client::chat_feed`].
#[derive(Debug)]
pub struct ChatFeed {
    client: Client,
    network: NetworkName,
    /// The last place that was seen.
    resume: Option<String>,
    stream: Reconnecting,
    ready: VecDeque<ChatNews>,
    ended: bool,
}

impl ChatFeed {
    /// What comes next; `None` after an error. Safe to drop in the middle and
    /// call again.
    ///
    /// # Errors
    /// What the broker says, or [`ClientError::FollowingLost`].
    pub async fn next(&mut self) -> Option<Result<ChatNews, ClientError>> {
        loop {
            if let Some(next) = self.ready.pop_front() {
                return Some(Ok(next));
            }
            if self.ended {
                return None;
            }
            let error = match self.advance().await {
                Ok(()) => continue,
                Err(error) => error,
            };
            return Some(match self.stream.lost(error) {
                Ok(Pause { why, attempt }) => Ok(ChatNews::Reconnecting { why, attempt }),
                Err(Ended::For(error)) => {
                    self.ended = true;
                    Err(error)
                }
                Err(Ended::Silent { after, why }) => {
                    self.ended = true;
                    Err(ClientError::FollowingLost { after, why })
                }
            });
        }
    }

    async fn advance(&mut self) -> Result<(), ClientError> {
        let query = [("network", self.network.to_string())];
        let from = From {
            path: &["v1", "chat", "feed"],
            query: &query,
            after: self.resume.as_deref(),
        };
        let piece = self.stream.advance(&self.client, &from).await?;
        for event in piece.events {
            let taken = self.take(event);
            taken.map_err(|why| garbage(&piece.target, &piece.what, 200, &why))?;
        }
        piece.rest
    }

    fn take(&mut self, event: Event) -> Result<(), String> {
        // Only ids that can go back into a header count.
        let place = event
            .id
            .filter(|id| !id.is_empty() && id.bytes().all(|b| b.is_ascii_graphic()))
            .ok_or("an event without its place")?;
        // Whoever is cut off before anything is said comes back to it.
        self.resume = Some(place.clone());
        let next = match event.name.as_deref() {
            Some(HERE) => ChatNews::Here { place },
            Some(RENUMBERED) => ChatNews::Renumbered { place },
            _ => {
                let utterance = serde_json::from_str(&event.data).map_err(|e| e.to_string())?;
                ChatNews::Utterance { place, utterance }
            }
        };
        self.stream.heard();
        self.ready.push_back(next);
        Ok(())
    }
}

impl Client {
    /// `POST /v1/chat/lines`: tells what was heard. A line that is told again
    /// does nothing a second time.
    ///
    /// # Errors
    /// [`ClientError`]. What the speaker may not do is no error: it is in the
    /// answer, in words.
    pub async fn chat_line(&self, line: &ChatLine, key: &Key) -> Result<ChatAnswer, ClientError> {
        self.ask(Ask {
            method: Method::POST,
            path: &["v1", "chat", "lines"],
            query: &[],
            body: Some(line),
            extra_time: FOR_A_DRY_RUN,
            key: Some(key),
        })
        .await
    }

    /// `POST /v1/chat/links`: a one-time code for the caller.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn chat_link(&self) -> Result<ChatLink, ClientError> {
        self.of_chat::<(), _>(Method::POST, "links", None).await
    }

    /// `POST /v1/chat/device`: a device for one-time codes, for the caller.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn add_chat_device(
        &self,
        request: &ChatDeviceRequest,
    ) -> Result<ChatDevice, ClientError> {
        self.of_chat(Method::POST, "device", Some(request)).await
    }

    /// `DELETE /v1/chat/device`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn remove_chat_device(&self) -> Result<(), ClientError> {
        self.delete(&["v1", "chat", "device"]).await
    }

    async fn of_chat<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        what: &str,
        body: Option<&B>,
    ) -> Result<T, ClientError> {
        self.ask(Ask {
            method,
            path: &["v1", "chat", what],
            query: &[],
            body,
            extra_time: Duration::ZERO,
            key: None,
        })
        .await
    }

    /// `GET /v1/chat/feed`: what is to be said in a network, after that place;
    /// what comes about from now on without one. Reconnects by itself, for
    /// ever when `patience` is absent.
    #[must_use]
    pub fn chat_feed(
        &self,
        network: &NetworkName,
        after: Option<String>,
        patience: Option<Duration>,
    ) -> ChatFeed {
        let mut stream = Reconnecting::new();
        // A year is longer than any bot runs without a broker.
        stream.give_up_after(patience.unwrap_or(Duration::from_secs(365 * 86_400)));
        ChatFeed {
            client: self.clone(),
            network: network.clone(),
            resume: after,
            stream,
            ready: VecDeque::new(),
            ended: false,
        }
    }
}
