//! What happens in the cluster, as it happens, whatever happens to the
//! connection.

use std::collections::VecDeque;
use std::time::Duration;

use muster_protocol::api::ClusterEvent;
use muster_protocol::problem::Kind;

use crate::client::{Client, garbage};
use crate::error::ClientError;
use crate::sse::Event;
use crate::stream::{Ended, From, Pause, Reconnecting};

/// The name of the event that says that places are numbered anew.
const RENUMBERED: &str = "renumbered";

/// What whoever follows the cluster's events sees.
#[derive(Clone, Debug, PartialEq)]
pub enum Happening {
    /// Something happened.
    Event(Box<ClusterEvent>),
    /// The store went back in time, and events are numbered anew: those in
    /// between were not seen. What happens from now on follows.
    Renumbered,
    /// The connection was lost; it is tried again after a pause, and events go
    /// on after the last one seen.
    Reconnecting {
        /// Why.
        why: String,
        /// How often it was tried since the last event.
        attempt: u32,
    },
}

/// The cluster's events. See [`Client::follow_events`].
#[derive(Debug)]
pub struct Happenings {
    client: Client,
    query: Vec<(&'static str, String)>,
    /// Where to begin, until there is an id.
    after: Option<u64>,
    /// The last id that was seen.
    resume: Option<String>,
    stream: Reconnecting,
    ready: VecDeque<Happening>,
    ended: bool,
}

impl Happenings {
    pub(crate) fn new(
        client: Client,
        after: Option<u64>,
        kinds: &[String],
        subject: Option<&str>,
    ) -> Self {
        let mut query = Vec::new();
        if !kinds.is_empty() {
            query.push(("kind", kinds.join(",")));
        }
        if let Some(subject) = subject {
            query.push(("subject", subject.to_owned()));
        }
        Self {
            client,
            query,
            after,
            resume: None,
            stream: Reconnecting::new(),
            ready: VecDeque::new(),
            ended: false,
        }
    }

    /// How long to go on trying without a sign of life; two minutes unless
    /// said.
    #[must_use]
    pub fn give_up_after(mut self, time: Duration) -> Self {
        self.stream.give_up_after(time);
        self
    }

    /// What happens next; `None` after an error. Safe to drop in the middle
    /// and call again.
    ///
    /// # Errors
    /// What the broker says (not allowed, a filter that is none), or
    /// [`ClientError::FollowingLost`].
    pub async fn next(&mut self) -> Option<Result<Happening, ClientError>> {
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
            if error.kind() == Some(Kind::Conflict) && self.resume.is_none() {
                // There is no such place any more.
                if self.after.take().is_some() {
                    return Some(Ok(Happening::Renumbered));
                }
            }
            return Some(match self.stream.lost(error) {
                Ok(Pause { why, attempt }) => Ok(Happening::Reconnecting { why, attempt }),
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
        let mut query = self.query.clone();
        if let Some(after) = self.after {
            query.push(("after", after.to_string()));
        }
        let from = From {
            path: &["v1", "events", "watch"],
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
        let next = if event.name.as_deref() == Some(RENUMBERED) {
            Happening::Renumbered
        } else {
            let event = serde_json::from_str(&event.data).map_err(|e| e.to_string())?;
            Happening::Event(Box::new(event))
        };
        // Only ids that can go back into a header count.
        let id = event.id.filter(|id| !id.is_empty());
        if let Some(id) = id.filter(|id| id.bytes().all(|b| b.is_ascii_graphic())) {
            self.resume = Some(id);
        }
        self.stream.heard();
        self.ready.push_back(next);
        Ok(())
    }
}
