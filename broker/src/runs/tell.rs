//! What a run tells the cluster: events that scenarios make on nodes, and
//! steps that failed. Each once: its id says what it is of, and a broker that
//! takes a run up looks whether the one before it came so far.

use async_nats::jetstream::Context;
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use muster_protocol::ids::{RunId, Serial};
use muster_protocol::note::{EVENT_PREFIX, MAX_EVENT, MAX_KIND, Note, Read, Reader};
use muster_protocol::run::{NodeResult, Outcome, RunEvent, RunSpec, Stream};
use muster_protocol::subject;
use muster_protocol::text::printable;
use muster_scenarios::{command, upgrade};
use serde_json::{Map, Value};

use super::frames::StoredOutput;
use super::journal::STREAM;
use super::task::Task;
use crate::events::Once;
use crate::store::read::read_from;
use crate::store::stream::StreamError;

/// Most events of one run.
const MOST_TOLD: u32 = 500;
/// Nodes that are named in one event.
const NAMED: usize = 5;
/// Longest text of one field in the line for people.
const MAX_FIELD: usize = 200;
/// A step has failed.
const STEP_FAILED: &str = "run.step-failed";

/// Events that a piece of a node's notes holds: their number in it, kind and
/// fields. A note that fits into a piece is never cut in two, so each piece
/// is read by itself; what an agent cuts all the same tells nothing.
fn events(stream: Stream, data: &[u8]) -> Vec<(usize, String, Map<String, Value>)> {
    // Most notes are no events, and reading them all costs more.
    if stream != Stream::Note || !data.windows(7).any(|word| word == b"\"event\"") {
        return Vec::new();
    }
    let mut reader = Reader::default();
    let read = reader.push(data);
    let events = read.into_iter().enumerate().filter_map(|(n, read)| {
        let Read::Note(Note::Event { kind, fields }) = read else {
            return None;
        };
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
        let fits = kind.starts_with(EVENT_PREFIX)
            && kind.len() <= MAX_KIND
            && kind.chars().all(plain)
            && Value::Object(fields.clone()).to_string().len() <= MAX_EVENT;
        fits.then_some((n, kind, fields))
    });
    events.collect()
}

/// `version=1.4.2 batch=2`.
fn line(fields: &Map<String, Value>) -> String {
    let parts: Vec<String> = fields
        .iter()
        .map(|(name, value)| {
            let value = match value {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            format!("{}={}", printable(name, 60), printable(&value, MAX_FIELD))
        })
        .collect();
    parts.join(" ")
}

/// Whether failures of a run are told: those of commands and upgrades are for
/// whoever typed them.
fn is_told(spec: &RunSpec) -> bool {
    spec.local.is_none()
        && spec.rebuilt.is_none()
        // Of its steps each tells for itself.
        && spec.main.is_none()
        && ![command::bundle(), upgrade::bundle()].contains(&spec.bundle)
}

fn is_failure(result: &NodeResult) -> bool {
    matches!(
        result.outcome,
        Outcome::Failed | Outcome::TimedOut | Outcome::Unknown
    )
}

impl Task {
    /// Tells of the events in a piece of output that is stored.
    pub(super) async fn tell_events(&mut self, head: StoredOutput, data: &Bytes) {
        for (n, kind, fields) in events(head.stream, data) {
            self.told = self.told.saturating_add(1);
            let Some(node) = self.state.nodes.get(&head.serial) else {
                return;
            };
            let once = match self.told {
                told if told < MOST_TOLD => Once {
                    id: format!("{}.{}.{}.{n}", self.run, head.serial, head.chunk),
                    kind,
                    subject: node.name.to_string(),
                    text: line(&fields),
                    fields,
                },
                MOST_TOLD => Once {
                    id: format!("{}.more-events", self.run),
                    kind: "run.more-events".to_owned(),
                    subject: self.run.short(),
                    text: format!(
                        "the run makes more than {MOST_TOLD} events; the others are only in its output"
                    ),
                    fields: Map::new(),
                },
                _ => return,
            };
            self.engine.0.events.once(once).await;
        }
    }

    /// Tells of steps that failed; `results` are those of one event of the
    /// journal.
    pub(super) async fn tell_failures(&self, results: &[NodeResult]) {
        let failed: Vec<&NodeResult> = results.iter().filter(|r| is_failure(r)).collect();
        let Some(first) = failed.first() else { return };
        if !is_told(&self.state.spec) {
            return;
        }
        let name = |serial: &Serial| {
            let node = self.state.nodes.get(serial);
            node.map_or_else(|| serial.to_string(), |node| node.name.to_string())
        };
        let names: Vec<String> = failed
            .iter()
            .take(NAMED)
            .map(|result| name(&result.serial))
            .collect();
        let more = match failed.len().saturating_sub(NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let why = first.reason.as_deref().unwrap_or(first.outcome.as_str());
        let short = self.run.short();
        let text = format!(
            "{}: {} {} on {}{more}: {}",
            printable(&self.state.spec.title, 200),
            self.state.spec.function,
            if failed.iter().all(|r| r.outcome == Outcome::Failed) {
                "failed"
            } else {
                "did not end well"
            },
            names.join(", "),
            printable(why, 400)
        );
        let fields = Map::from_iter([
            ("run".to_owned(), self.run.to_string().into()),
            (
                "function".to_owned(),
                self.state.spec.function.as_str().into(),
            ),
            ("failed".to_owned(), failed.len().into()),
            ("nodes".to_owned(), names.into()),
        ]);
        // A node has one outcome, so it is first in one event alone.
        let once = Once {
            id: format!("{}.failed.{}", self.run, first.serial),
            kind: STEP_FAILED.to_owned(),
            subject: short,
            text,
            fields,
        };
        self.engine.0.events.once(once).await;
    }

    /// Tells what the broker before this one may not have told any more: of
    /// the last outcomes in the journal. `first` is the run's first message.
    pub(super) async fn tell_the_last(&self, first: u64) {
        if !is_told(&self.state.spec) {
            return;
        }
        let js = self.engine.0.js.clone();
        match last_results(&js, self.run, first).await {
            Ok(results) => self.tell_failures(&results).await,
            Err(error) => {
                tracing::warn!(%error, "whether a failure was told cannot be read");
            }
        }
    }
}

/// The outcomes in the last event of a journal, if it holds outcomes.
async fn last_results(
    js: &Context,
    run: RunId,
    first: u64,
) -> Result<Vec<NodeResult>, StreamError> {
    let mut messages = read_from(js, STREAM, &subject::journal(run), first).await?;
    let mut last = None;
    while let Some(message) = messages.try_next().await? {
        last = Some(message.payload);
    }
    let event = last.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    Ok(match event {
        Some(RunEvent::Outcomes { results, .. }) => results,
        _ => Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_is_the_event_of_a_scenario_becomes_one() {
        let fields = Map::from_iter([("a".to_owned(), json!("x\u{1b}"))]);
        let event = |kind: &str| {
            let (kind, fields) = (kind.to_owned(), fields.clone());
            Note::Event { kind, fields }.line()
        };
        let log = Note::Log {
            text: "\"event\"".into(),
            at: None,
        };
        let text = [
            log.line(),
            event("scenario.deployed"),
            event("alarm.cloned-node"),
            event("scenario.No"),
            event(&format!("scenario.{}", "x".repeat(100))),
            "{\"note\":\"event\"}\n".to_owned(),
            event("scenario.done"),
            "{\"note\":\"event\",\"kind\":\"scenario.cut".to_owned(),
        ]
        .concat();
        let found = events(Stream::Note, text.as_bytes());
        let found: Vec<(usize, &str)> = found.iter().map(|(n, k, _)| (*n, k.as_str())).collect();
        assert_eq!(found, [(1, "scenario.deployed"), (6, "scenario.done")]);
        assert_eq!(events(Stream::Stdout, text.as_bytes()), []);
        assert_eq!(line(&fields), "a=x\\x1b");
    }
}
