//! A stream of server-sent events, through lost connections and from one
//! broker to the next.

use std::time::Duration;

use reqwest::header::{ACCEPT, HeaderName};
use reqwest::{Method, Response};
use tokio::time::{Instant, sleep, timeout};

use crate::brokers::Target;
use crate::client::{Client, check, describe, garbage, transport};
use crate::error::ClientError;
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

/// What is asked for when a connection is made.
pub(crate) struct From<'a> {
    pub(crate) path: &'a [&'a str],
    pub(crate) query: &'a [(&'a str, String)],
    /// The last event of which everything has arrived.
    pub(crate) after: Option<&'a str>,
}

/// What came in one piece.
pub(crate) struct Piece {
    pub(crate) events: Vec<Event>,
    /// Behind the events, what cannot be read.
    pub(crate) rest: Result<(), ClientError>,
    pub(crate) target: Target,
    pub(crate) what: String,
}

/// It is tried again.
pub(crate) struct Pause {
    pub(crate) why: String,
    /// How often it was tried since the last event.
    pub(crate) attempt: u32,
}

/// It is not tried again.
pub(crate) enum Ended {
    /// The broker's own word, or one that no pause cures.
    For(ClientError),
    /// Nothing came for too long.
    Silent { after: Duration, why: String },
}

/// A connection that is made again when it is lost.
#[derive(Debug)]
pub(crate) struct Reconnecting {
    connection: Option<Connection>,
    attempt: u32,
    alive: Instant,
    give_up: Duration,
    pause: Option<Duration>,
}

#[derive(Debug)]
struct Connection {
    target: Target,
    response: Response,
    parser: Parser,
}

impl Reconnecting {
    pub(crate) fn new() -> Self {
        Self {
            connection: None,
            attempt: 0,
            alive: Instant::now(),
            give_up: GIVE_UP,
            pause: None,
        }
    }

    /// How long to go on trying without a sign of life.
    pub(crate) fn give_up_after(&mut self, time: Duration) {
        self.give_up = time;
    }

    /// An event came that could be read.
    pub(crate) fn heard(&mut self) {
        self.attempt = 0;
    }

    /// What comes of an error of [`Reconnecting::advance`], or of what was in
    /// a piece.
    pub(crate) fn lost(&mut self, error: ClientError) -> Result<Pause, Ended> {
        self.connection = None;
        if !error.is_passing() {
            return Err(Ended::For(error));
        }
        let (after, why) = (self.alive.elapsed(), error.to_string());
        if after >= self.give_up {
            return Err(Ended::Silent { after, why });
        }
        self.attempt += 1;
        let doubled = FIRST_PAUSE.saturating_mul(1 << self.attempt.min(10).saturating_sub(1));
        self.pause = Some(doubled.min(LONGEST_PAUSE));
        let attempt = self.attempt;
        Ok(Pause { why, attempt })
    }

    /// Connects when there is no connection, and reads one piece. Every await
    /// is followed by all changes of state, so that it can be dropped at each
    /// of them.
    pub(crate) async fn advance(
        &mut self,
        client: &Client,
        from: &From<'_>,
    ) -> Result<Piece, ClientError> {
        if let Some(pause) = self.pause {
            sleep(pause).await;
            self.pause = None;
        }
        let what = describe(&Method::GET, from.path);
        // With another one to go to, less: a broker that was stopped keeps its
        // connections.
        let silence = if client.brokers().several() {
            SILENCE_OF_SEVERAL
        } else {
            SILENCE
        };
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(connect(client, from, &what, silence).await?),
        };
        let target = connection.target.clone();
        let read = match timeout(silence, connection.response.chunk()).await {
            Ok(Ok(Some(piece))) => Ok(piece),
            Ok(Ok(None)) => Err(ClientError::Lost {
                url: target.name().to_owned(),
                what: what.clone(),
                why: "the broker ended it".into(),
            }),
            Ok(Err(error)) => Err(transport(&target, &error, &what, silence)),
            Err(_) => Err(silent(&target, &what, silence)),
        };
        let piece = match read {
            Ok(piece) => piece,
            Err(error) => {
                client.brokers().doubt(&target);
                return Err(error);
            }
        };
        self.alive = Instant::now();
        let mut events = Vec::new();
        let parsed = connection.parser.push(&piece, &mut events);
        Ok(Piece {
            events,
            rest: parsed.map_err(|e| garbage(&target, &what, 200, &e.to_string())),
            target,
            what,
        })
    }
}

async fn connect(
    client: &Client,
    from: &From<'_>,
    what: &str,
    silence: Duration,
) -> Result<Connection, ClientError> {
    // Without patience: it is this that is tried again and again.
    let target = client.target(Duration::ZERO).await?;
    let request = target.http.get(target.at(from.path));
    let mut request = request.header(ACCEPT, "text/event-stream");
    if !from.query.is_empty() {
        request = request.query(from.query);
    }
    if let Some(id) = from.after {
        request = request.header(HeaderName::from_static("last-event-id"), id);
    }
    let begun = match timeout(silence, request.send()).await {
        Ok(Ok(response)) => check(response, &target, what, silence).await,
        Ok(Err(error)) => Err(transport(&target, &error, what, silence)),
        Err(_) => Err(silent(&target, what, silence)),
    };
    match begun {
        Ok(response) => Ok(Connection {
            target,
            response,
            parser: Parser::default(),
        }),
        Err(error) => {
            let _ = client.brokers().elsewhere(&target, &error, true);
            Err(error)
        }
    }
}

fn silent(target: &Target, what: &str, after: Duration) -> ClientError {
    ClientError::Timeout {
        url: target.name().to_owned(),
        what: what.to_owned(),
        after,
    }
}
