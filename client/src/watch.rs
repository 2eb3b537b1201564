//! The events of a run, from the first to `run_finished`, whatever happens to
//! the connection.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use muster_protocol::api::Frame;
use muster_protocol::names::{NodeName, PrincipalName};
use muster_protocol::run::Outcome;

use crate::brokers::Target;
use crate::client::{Client, garbage};
use crate::error::ClientError;
use crate::reference::Reference;
use crate::sse::Event;
use crate::stream::{Ended, From, Pause, Reconnecting};

/// What a watcher sees.
#[derive(Clone, Debug, PartialEq)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all of them are frames, and each is handed on at once"
)]
pub enum Watch {
    /// Something happened in the run.
    Frame(Frame),
    /// The connection was lost; it is tried again after a pause. Nothing is
    /// lost: events go on after the last one seen.
    Reconnecting {
        /// Why.
        why: String,
        /// How often it was tried since the last event.
        attempt: u32,
    },
}

/// The events of a run. See [`Client::run_events`].
#[derive(Debug)]
pub struct RunEvents {
    client: Client,
    run: Reference,
    stream: Reconnecting,
    ready: VecDeque<Frame>,
    /// The newest id of which everything has arrived: one step behind the
    /// newest seen, because several frames can share an id.
    resume: Option<String>,
    current: Option<String>,
    seen: HashSet<Key>,
    ended: bool,
}

/// What makes a frame the same frame when it comes a second time.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
enum Key {
    Created,
    Waits(String),
    Given(String, PrincipalName),
    Begins,
    Lapsed,
    Batch(u32),
    Output(NodeName, u32),
    Outcome(NodeName),
    Late(NodeName, Outcome),
    Cancelling,
    OutputRemoved,
    /// Something of a `main`: its kind, the call, which of its steps, and
    /// whether it takes that back.
    Main(&'static str, u64, u32, bool),
    /// A line of a call, which may have several: a machine is being made, is
    /// up, is taken back.
    Line(u64, String),
    Finished,
}

impl Key {
    fn of(frame: &Frame) -> Option<Self> {
        Some(match frame {
            Frame::RunCreated { .. } => Self::Created,
            Frame::BatchSent { batch, .. } => Self::Batch(*batch),
            // Not kept by the broker, so never repeated.
            Frame::Accepted { .. }
            | Frame::Stalled { .. }
            | Frame::StepProgress { .. }
            | Frame::RunBeginsAgain { .. } => return None,
            Frame::StepBegan {
                call, part, undo, ..
            }
            | Frame::StepEnded {
                call, part, undo, ..
            } => Self::Main(frame.event(), *call, *part, *undo),
            Frame::Sleeps { call, .. }
            | Frame::Asks { call, .. }
            | Frame::Answered { call, .. } => Self::Main(frame.event(), *call, 0, false),
            Frame::Logged { call, text, .. } => Self::Line(*call, text.clone()),
            Frame::MainEnded { .. } => Self::Main(frame.event(), 0, 0, false),
            // The same can be so several times; who is told twice knows no
            // more.
            Frame::RunPaused { .. } | Frame::RunResumed { .. } => return None,
            Frame::RunWaits { waits, .. } => Self::Waits(format!("{waits:?}")),
            Frame::RunGiven { what, by, .. } => Self::Given(what.clone(), by.clone()),
            Frame::RunBegins { .. } => Self::Begins,
            Frame::RunLapsed { .. } => Self::Lapsed,
            Frame::Output { node, chunk, .. } => Self::Output(node.clone(), *chunk),
            Frame::Outcome { result, .. } => Self::Outcome(result.node.clone()),
            Frame::LateOutcome { node, outcome, .. } => Self::Late(node.clone(), *outcome),
            Frame::RunCancelling { .. } => Self::Cancelling,
            Frame::OutputRemoved { .. } => Self::OutputRemoved,
            Frame::RunFinished { .. } => Self::Finished,
        })
    }
}

impl RunEvents {
    pub(crate) fn new(client: Client, run: Reference) -> Self {
        Self {
            client,
            run,
            stream: Reconnecting::new(),
            ready: VecDeque::new(),
            resume: None,
            current: None,
            seen: HashSet::new(),
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

    /// The next event; `None` after `run_finished` or an error. Safe to drop
    /// in the middle and call again.
    ///
    /// # Errors
    /// What the broker says (no such run, not allowed), or
    /// [`ClientError::EventsLost`].
    pub async fn next(&mut self) -> Option<Result<Watch, ClientError>> {
        loop {
            if let Some(frame) = self.ready.pop_front() {
                self.ended |= matches!(frame, Frame::RunFinished { .. });
                return Some(Ok(Watch::Frame(frame)));
            }
            if self.ended {
                return None;
            }
            let lost = match self.advance().await {
                Ok(()) => continue,
                Err(error) => self.stream.lost(error),
            };
            return Some(match lost {
                Ok(Pause { why, attempt }) => Ok(Watch::Reconnecting { why, attempt }),
                Err(Ended::For(error)) => {
                    self.ended = true;
                    Err(error)
                }
                Err(Ended::Silent { after, why }) => {
                    self.ended = true;
                    Err(ClientError::EventsLost { after, why })
                }
            });
        }
    }

    /// Connects, or reads one piece.
    async fn advance(&mut self) -> Result<(), ClientError> {
        let path = ["v1", "runs", self.run.as_str(), "events"];
        let from = From {
            path: &path,
            query: &[],
            after: self.resume.as_deref(),
        };
        let piece = self.stream.advance(&self.client, &from).await?;
        for event in piece.events {
            self.take(event, &piece.target, &piece.what)?;
        }
        piece.rest
    }

    fn take(&mut self, event: Event, target: &Target, what: &str) -> Result<(), ClientError> {
        // Only ids that can go back into a header count.
        let id = event
            .id
            .filter(|id| !id.is_empty() && id.bytes().all(|b| b.is_ascii_graphic()));
        if let Some(id) = id
            && self.current.as_ref() != Some(&id)
        {
            self.resume = self.current.replace(id);
        }
        let frame: Frame = match serde_json::from_str(&event.data) {
            Ok(frame) => frame,
            Err(e) => {
                // A newer broker may say what this version does not know.
                let known = serde_json::from_str::<serde_json::Value>(&event.data)
                    .ok()
                    .and_then(|v| v.get("type").and_then(|t| t.as_str()).map(is_known));
                return if known == Some(false) {
                    tracing::debug!("an event of an unknown type was passed over");
                    Ok(())
                } else {
                    Err(garbage(target, what, 200, &e.to_string()))
                };
            }
        };
        self.stream.heard();
        if let Frame::RunBeginsAgain { .. } = frame {
            // The ids from before mean nothing; what was seen is told by what
            // it is.
            self.resume = None;
            self.current = None;
        }
        let fresh = Key::of(&frame).is_none_or(|key| self.seen.insert(key));
        if fresh {
            self.ready.push_back(frame);
        }
        Ok(())
    }
}

fn is_known(name: &str) -> bool {
    matches!(
        name,
        "run_created"
            | "batch_sent"
            | "accepted"
            | "output"
            | "outcome"
            | "late_outcome"
            | "run_cancelling"
            | "output_removed"
            | "stalled"
            | "run_begins_again"
            | "step_began"
            | "step_progress"
            | "step_ended"
            | "sleeps"
            | "asks"
            | "answered"
            | "logged"
            | "main_ended"
            | "run_finished"
    )
}
