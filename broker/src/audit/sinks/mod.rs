//! Where the record is also written, out of the broker's reach.
//!
//! A sink is fed from the stream, not by requests: one that is down holds
//! nothing up, and gets what it missed when it is back. What it has is noted
//! on this broker's disk; after a crash it may get some lines twice.

mod file;
mod http;
mod syslog;

use std::time::Duration;

use async_nats::jetstream::Context;
use futures_util::TryStreamExt as _;
use muster_protocol::audit::{Checkpoint, Head, Line};
use muster_protocol::subject::AUDIT;
use muster_protocol::text::printable;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::settings::SyslogTo;
use super::{Parts, STREAM, SinkConfig, known};
use crate::events::Events;
use crate::state_dir::StateDir;
use crate::store::error::StreamError;
use crate::store::read::read_from;
use crate::store::stream::get_stream;

/// Lines, and bytes of them, that are delivered at a time.
const MOST: usize = 1_000;
const MOST_BYTES: usize = 1 << 20;
/// Pauses while it is down.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// The stream is looked at so often also when nobody says that there is more.
const LOOK: Duration = Duration::from_secs(30);
/// How long the end of a broker waits for a sink.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// An alarm follows after so many failures in a row.
const ALARM_AFTER: u32 = 3;

/// Why lines could not be delivered.
#[derive(Debug, thiserror::Error)]
pub(super) enum SinkError {
    /// The stream.
    #[error(transparent)]
    Store(#[from] StreamError),
    /// The sink itself.
    #[error("{0}")]
    Sink(String),
}

/// One line to deliver.
#[derive(Clone, Debug)]
pub(super) struct Out {
    pub(super) text: String,
    pub(super) is_checkpoint: bool,
    /// How many records there are with it.
    pub(super) count: u64,
}

impl Out {
    fn read(text: &str) -> Option<Self> {
        let (is_checkpoint, count) = match serde_json::from_str::<Line>(text).ok()? {
            Line::Record(record) => (false, record.n),
            Line::Checkpoint(signed) => {
                let said: Checkpoint = serde_json::from_str(&signed.text).ok()?;
                (true, if said.cut { u64::MAX } else { said.count })
            }
            Line::Trust(_) => return None,
        };
        Some(Self {
            text: text.to_owned(),
            is_checkpoint,
            count,
        })
    }
}

/// What a sink has.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
struct Position {
    /// Up to which message of the stream.
    sequence: u64,
    /// Up to which record.
    count: u64,
}

enum To {
    File(file::FileSink),
    Syslog(syslog::SyslogSink),
    Http(http::HttpSink),
}

/// See the module.
pub(super) struct Sink {
    name: String,
    /// The file with its position.
    place: String,
    to: To,
    js: Context,
    state: StateDir,
    events: Events,
    written: watch::Receiver<u64>,
    position: Position,
}

impl Sink {
    pub(super) fn new(config: SinkConfig, parts: &Parts, written: watch::Receiver<u64>) -> Self {
        let name = config.name();
        let id = data_encoding::HEXLOWER.encode(&Sha256::digest(&name)[..8]);
        let place = format!("audit-sink-{id}.json");
        let mut position = match parts.state.load::<Position>(&place) {
            Ok(position) => position.unwrap_or_default(),
            Err(error) => {
                tracing::warn!(%error, sink = name, "what a sink of the audit has is not known; it gets all of it again");
                Position::default()
            }
        };
        let to = match config {
            SinkConfig::File { path } => {
                // It says itself what it has.
                if let Some(tail) = known::last_of(&path) {
                    position.count = position.count.max(tail.count);
                }
                To::File(file::FileSink::new(path))
            }
            SinkConfig::Syslog { to, records } => {
                // It was checked when the settings were read.
                let to = SyslogTo::parse(&to).unwrap_or(SyslogTo::Local("/dev/log".into()));
                To::Syslog(syslog::SyslogSink::new(to, records))
            }
            SinkConfig::Http { url, token_file } => To::Http(http::HttpSink::new(url, token_file)),
        };
        Self {
            name,
            place,
            to,
            js: parts.js.clone(),
            state: parts.state.clone(),
            events: parts.events.clone(),
            written,
            position,
        }
    }

    /// Delivers until `cancel`, and then what there is if it goes quickly.
    pub(super) async fn run(mut self, cancel: CancellationToken) {
        let (mut failures, mut pause) = (0u32, FIRST_PAUSE);
        loop {
            self.written.mark_unchanged();
            // What is being delivered is delivered whole, and noted.
            let ended = async {
                cancel.cancelled().await;
                sleep(LAST_WORDS).await;
            };
            let done = tokio::select! {
                biased;
                done = self.carry() => Some(done),
                () = ended => None,
            };
            let wait = match done {
                None => break,
                Some(Ok(())) => {
                    if failures >= ALARM_AFTER {
                        let text = format!(
                            "{} takes the audit again, and has all of it up to record {}",
                            self.name, self.position.count
                        );
                        self.events.emit("audit.sink-back", &self.name, text).await;
                    }
                    (failures, pause) = (0, FIRST_PAUSE);
                    LOOK
                }
                Some(Err(error)) => {
                    failures = failures.saturating_add(1);
                    let why = printable(&error.to_string(), 300);
                    tracing::warn!(sink = self.name, why, "the audit cannot be written there");
                    if failures == ALARM_AFTER {
                        let text = format!(
                            "the audit cannot be written to {}: {why}. It is kept in NATS and tried again; until then \
                             nothing outside shows what is changed in it",
                            self.name
                        );
                        self.events.emit("alarm.audit-sink", &self.name, text).await;
                    }
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    pause
                }
            };
            let more = async {
                if failures > 0 {
                    return std::future::pending().await;
                }
                if self.written.changed().await.is_err() {
                    std::future::pending().await
                }
            };
            tokio::select! {
                () = cancel.cancelled() => break,
                () = sleep(wait) => {}
                () = more => {}
            }
        }
        if failures == 0 {
            // The last checkpoint is written at the end, too.
            let last = async {
                let _ = self.written.changed().await;
                self.carry().await
            };
            let _ = tokio::time::timeout(LAST_WORDS, last).await;
        }
    }

    /// Everything that the stream has and the sink does not.
    async fn carry(&mut self) -> Result<(), SinkError> {
        let last = get_stream(&self.js, STREAM)
            .await?
            .cached_info()
            .state
            .last_sequence;
        if last < self.position.sequence {
            // The store went back, and is numbered anew.
            self.position.sequence = 0;
        }
        if last == self.position.sequence {
            return Ok(());
        }
        let mut messages = read_from(&self.js, STREAM, AUDIT, self.position.sequence + 1).await?;
        let (mut lines, mut bytes, mut next) = (Vec::new(), 0, self.position);
        while let Some(message) = messages.try_next().await? {
            let text = String::from_utf8_lossy(&message.payload);
            for line in text.lines() {
                let Some(out) = Out::read(line) else {
                    tracing::warn!(
                        sequence = message.sequence,
                        "a line of the audit cannot be read"
                    );
                    continue;
                };
                let has_it =
                    out.count < next.count || (out.count == next.count && !out.is_checkpoint);
                if !has_it {
                    if !out.is_checkpoint {
                        next.count = out.count;
                    }
                    bytes += out.text.len();
                    lines.push(out);
                }
            }
            next.sequence = message.sequence;
            if lines.len() >= MOST || bytes >= MOST_BYTES {
                self.deliver(std::mem::take(&mut lines), next).await?;
                bytes = 0;
            }
        }
        if next != self.position {
            self.deliver(lines, next).await?;
        }
        Ok(())
    }

    async fn deliver(&mut self, lines: Vec<Out>, next: Position) -> Result<(), SinkError> {
        if !lines.is_empty() {
            let delivered = match &mut self.to {
                To::File(file) => file.deliver(lines).await,
                To::Syslog(syslog) => syslog.deliver(lines).await,
                To::Http(http) => http.deliver(lines).await,
            };
            delivered.map_err(SinkError::Sink)?;
        }
        self.position = next;
        let stored = self.state.store(&self.place, &next);
        stored.map_err(|error| SinkError::Sink(error.to_string()))
    }
}

/// What stands for a line that is too long for a sink: its number and hash.
fn short_form(out: &Out) -> String {
    serde_json::json!({
        "audit": "too_long", "n": out.count, "bytes": out.text.len(), "head": Head::of(out.text.as_bytes()),
    })
    .to_string()
}
