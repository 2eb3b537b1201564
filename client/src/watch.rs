//! The events of a run, from the first to `run_finished`, whatever happens to
//! the connection.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use muster_protocol::api::Frame;
use muster_protocol::names::{NodeName, PrincipalName};
use muster_protocol::run::Outcome;
use reqwest::header::{ACCEPT, HeaderName};
use reqwest::{Method, Response};
use tokio::time::{Instant, sleep, timeout};

use crate::brokers::Target;
use crate::client::{Client, check, describe, garbage, transport};
use crate::error::ClientError;
use crate::reference::Reference;
use crate::sse::{Event, Parser};

/// First pause before a new connection; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How long to go on without a single event or sign of life.
const GIVE_UP: Duration = Duration::from_secs(120);
/// A broker says something at least every 15 s, if only a comment.
const SILENCE: Duration = Duration::from_secs(45);
/// One of several says something at least every 3 s.
const SILENCE_OF_SEVERAL: Duration = Duration::from_secs(9);

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
    connection: Option<Connection>,
    ready: VecDeque<Frame>,
    /// The newest id of which everything has arrived: one step behind the
    /// newest seen, because several frames can share an id.
    resume: Option<String>,
    current: Option<String>,
    seen: HashSet<Key>,
    attempt: u32,
    alive: Instant,
    give_up: Duration,
    pause: Option<Duration>,
    ended: bool,
}

#[derive(Debug)]
struct Connection {
    target: Target,
    response: Response,
    parser: Parser,
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
            | Frame::Answered { call, .. }
            | Frame::Logged { call, .. } => Self::Main(frame.event(), *call, 0, false),
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
            connection: None,
            ready: VecDeque::new(),
            resume: None,
            current: None,
            seen: HashSet::new(),
            attempt: 0,
            alive: Instant::now(),
            give_up: GIVE_UP,
            pause: None,
            ended: false,
        }
    }

    /// How long to go on trying without a sign of life; two minutes unless
    /// said.
    #[must_use]
    pub fn give_up_after(mut self, time: Duration) -> Self {
        self.give_up = time;
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
            if let Err(error) = self.advance().await {
                self.connection = None;
                if !error.is_passing() {
                    self.ended = true;
                    return Some(Err(error));
                }
                let tried = self.alive.elapsed();
                if tried >= self.give_up {
                    self.ended = true;
                    return Some(Err(ClientError::EventsLost {
                        after: tried,
                        why: error.to_string(),
                    }));
                }
                self.attempt += 1;
                let doubled =
                    FIRST_PAUSE.saturating_mul(1 << self.attempt.min(10).saturating_sub(1));
                self.pause = Some(doubled.min(LONGEST_PAUSE));
                return Some(Ok(Watch::Reconnecting {
                    why: error.to_string(),
                    attempt: self.attempt,
                }));
            }
        }
    }

    /// Connects, or reads one piece. Every await is followed by all changes of
    /// state, so that it can be dropped at each of them.
    async fn advance(&mut self) -> Result<(), ClientError> {
        if let Some(pause) = self.pause {
            sleep(pause).await;
            self.pause = None;
        }
        let path = ["v1", "runs", self.run.as_str(), "events"];
        let what = describe(&Method::GET, &path);
        let silence = self.silence();
        let Some(connection) = &mut self.connection else {
            // Without patience: it is this that is tried again and again.
            let target = self.client.target(Duration::ZERO).await?;
            let request = target.http.get(target.at(&path));
            let mut request = request.header(ACCEPT, "text/event-stream");
            if let Some(id) = &self.resume {
                request = request.header(HeaderName::from_static("last-event-id"), id);
            }
            let begun = match timeout(silence, request.send()).await {
                Ok(Ok(response)) => check(response, &target, &what, silence).await,
                Ok(Err(error)) => Err(transport(&target, &error, &what, silence)),
                Err(_) => Err(silent(&target, &what, silence)),
            };
            match begun {
                Ok(response) => {
                    self.connection = Some(Connection {
                        target,
                        response,
                        parser: Parser::default(),
                    });
                    return Ok(());
                }
                Err(error) => {
                    let _ = self.client.brokers().elsewhere(&target, &error, true);
                    return Err(error);
                }
            }
        };
        let target = &connection.target;
        let read = match timeout(silence, connection.response.chunk()).await {
            Ok(Ok(Some(piece))) => Ok(piece),
            Ok(Ok(None)) => Err(ClientError::Lost {
                url: target.name().to_owned(),
                what: what.clone(),
                why: "the broker ended it".into(),
            }),
            Ok(Err(error)) => Err(transport(target, &error, &what, silence)),
            Err(_) => Err(silent(target, &what, silence)),
        };
        let piece = match read {
            Ok(piece) => piece,
            Err(error) => {
                self.client.brokers().doubt(target);
                return Err(error);
            }
        };
        self.alive = Instant::now();
        let mut events = Vec::new();
        let parsed = connection.parser.push(&piece, &mut events);
        let target = target.clone();
        for event in events {
            self.take(event, &target, &what)?;
        }
        parsed.map_err(|e| garbage(&target, &what, 200, &e.to_string()))
    }

    /// How long a broker may say nothing. With another one to go to, less: a
    /// broker that was stopped keeps its connections.
    fn silence(&self) -> Duration {
        if self.client.brokers().several() {
            SILENCE_OF_SEVERAL
        } else {
            SILENCE
        }
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
        self.attempt = 0;
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

fn silent(target: &Target, what: &str, after: Duration) -> ClientError {
    ClientError::Timeout {
        url: target.name().to_owned(),
        what: what.to_owned(),
        after,
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
