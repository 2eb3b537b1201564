//! What a run tells the cluster: events that scenarios make on nodes, and
//! steps that failed. Each once: its id says what it is of, and a broker that
//! takes a run up looks whether the one before it came so far.

use std::time::Instant;

use async_nats::jetstream::Context;
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use muster_protocol::envelope::{Door, Mode};
use muster_protocol::ids::{RunId, Serial};
use muster_protocol::note::{EVENT_PREFIX, MAX_EVENT, MAX_KIND, Note, Read, Reader};
use muster_protocol::run::{NodeResult, Outcome, RunEvent, RunSpec, Stream, Summary};
use muster_protocol::subject;
use muster_protocol::text::printable;
use muster_scenarios::{command, upgrade};
use serde_json::{Map, Value};

use super::frames::{StoredOutput, batches};
use super::journal::STREAM;
use super::task::Task;
use crate::events::Once;
use crate::hooks::rate::Rate;
use crate::store::read::read_from;
use crate::store::stream::StreamError;

/// Most events of one run.
const MOST_TOLD: u32 = 500;
/// Nodes that are named in one event.
const NAMED: usize = 5;
/// Longest text of one field in the line for people.
const MAX_FIELD: usize = 200;
/// How many commands are told: whoever runs more of them does so by a program,
/// and would push everything else out of the stream.
pub(super) const COMMANDS: Rate = Rate::new(600, 3_600);
/// A step has failed.
const STEP_FAILED: &str = "run.step-failed";
/// Below so many nodes nobody is told how far a run is.
const MANY: usize = 10;

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

/// `23 succeeded, 1 unreachable`.
fn counts(summary: &Summary) -> String {
    let counts: Vec<String> = summary
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(outcome, count)| format!("{count} {outcome}"))
        .collect();
    if counts.is_empty() {
        "nothing was sent to any node".to_owned()
    } else {
        counts.join(", ")
    }
}

fn is_failure(result: &NodeResult) -> bool {
    matches!(
        result.outcome,
        Outcome::Failed | Outcome::TimedOut | Outcome::Unknown
    )
}

/// Whether begin and end of a run are told: a part is the business of its
/// whole.
fn is_shown(spec: &RunSpec) -> bool {
    // A dry run happens to nobody: nothing may be made of its end.
    spec.mode == Mode::Apply
        && spec.local.is_none()
        && spec.rebuilt.is_none()
        && spec.part_of.is_none()
}

/// Whether it is told how far a run is: that of a command is for whoever typed
/// it.
fn is_followed(spec: &RunSpec) -> bool {
    is_shown(spec) && (spec.bundle != command::bundle() || is_answered(spec))
}

/// Whether somebody waits in a chat network to be told of it.
fn is_answered(spec: &RunSpec) -> bool {
    spec.door == Door::Irc || spec.chat.is_some()
}

impl Task {
    /// What every event of the run's life has.
    fn life(&self) -> Map<String, Value> {
        let spec = &self.state.spec;
        let mut fields = Map::from_iter([
            ("run".to_owned(), self.run.to_string().into()),
            ("scenario".to_owned(), spec.scenario.as_str().into()),
            ("principal".to_owned(), spec.principal.as_str().into()),
            ("door".to_owned(), serde_json::json!(spec.door)),
            ("mode".to_owned(), serde_json::json!(spec.mode)),
            ("nodes".to_owned(), self.state.order.len().into()),
        ]);
        if let Some(version) = spec.version {
            fields.insert("version".to_owned(), version.into());
        }
        fields.insert("title".to_owned(), printable(&spec.title, 200).into());
        if let Some(chat) = &spec.chat {
            fields.insert("chat".to_owned(), serde_json::json!(chat));
        }
        fields
    }

    async fn tell_life(&self, kind: &str, which: &str, text: String, fields: Map<String, Value>) {
        let once = Once {
            id: format!("{}.{which}", self.run),
            kind: kind.to_owned(),
            subject: self.run.short(),
            text,
            fields,
        };
        self.engine.0.events.once(once).await;
    }

    /// Whether begin and end are told: one with the other.
    fn shows(&mut self) -> bool {
        if is_followed(&self.state.spec) {
            return true;
        }
        let engine = &self.engine.0;
        let spec = &self.state.spec;
        *self.shown.get_or_insert_with(|| {
            is_shown(spec) && engine.commands.take(COMMANDS, Instant::now()).is_ok()
        })
    }

    /// Tells that the run begins to do something; once.
    pub(super) async fn tell_begun(&mut self) {
        if std::mem::replace(&mut self.begun, true) || !self.shows() {
            return;
        }
        let text = format!(
            "{} by {} on {} nodes has begun",
            printable(&self.state.spec.title, 200),
            self.state.spec.principal,
            self.state.order.len()
        );
        let mut fields = self.life();
        fields.insert("batches".to_owned(), batches(&self.state).into());
        // Else whoever asked for it was told that it begins.
        fields.insert("waited".to_owned(), (!self.waits_told.is_empty()).into());
        self.tell_life("run.begun", "begun", text, fields).await;
    }

    /// Tells of each tenth of the nodes that is done; `new` of them just now.
    pub(super) async fn tell_progress(&self, new: usize) {
        let all = self.state.order.len();
        if all < MANY || !is_followed(&self.state.spec) {
            return;
        }
        let done = self.state.results().count();
        let tenth = done * 10 / all;
        if tenth == 0 || tenth >= 10 || done.saturating_sub(new) * 10 / all == tenth {
            return;
        }
        let mut fields = self.life();
        fields.insert("done".to_owned(), done.into());
        fields.insert(
            "outcomes".to_owned(),
            serde_json::json!(self.state.summary()),
        );
        let title = printable(&self.state.spec.title, 200);
        let text = format!("{title}: {done}/{all} nodes");
        let which = format!("progress.{tenth}");
        self.tell_life("run.progress", &which, text, fields).await;
    }

    /// Tells that another call of the run's `main` was answered after it
    /// waited, when it was steps on nodes.
    pub(super) async fn tell_steps(&self, number: u64, steps: usize) {
        if steps == 0 || !is_followed(&self.state.spec) {
            return;
        }
        let mut fields = self.life();
        fields.insert("step".to_owned(), number.into());
        let summary = self.state.summary();
        fields.insert("outcomes".to_owned(), serde_json::json!(summary));
        let title = printable(&self.state.spec.title, 200);
        let text = format!("{title}: step {number} is done, {}", counts(&summary));
        let which = format!("step.{number}");
        self.tell_life("run.progress", &which, text, fields).await;
    }

    /// Tells that the run has ended.
    pub(super) async fn tell_ended(&mut self) {
        if !self.shows() {
            return;
        }
        let summary = self.state.summary();
        let state = self.state.phase.as_str();
        let mut fields = self.life();
        fields.insert("state".to_owned(), state.into());
        fields.insert("outcomes".to_owned(), serde_json::json!(summary));
        let title = printable(&self.state.spec.title, 200);
        let text = format!("{title}: {state}, {}", counts(&summary));
        self.tell_life("run.ended", "ended", text, fields).await;
    }

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
