//! Runs that were done on a node itself, without this broker: written down
//! when the node reports them, once each.
//!
//! Nothing here can send anything: such a run never has a task. All of it is
//! in its first event, so that a broker that stops in the middle of writing
//! it finishes when it starts again, without the node.
//!
//! A node can report only its own runs (the id comes out of a hash with its
//! serial), and only so many: [`MOST_A_DAY`] and [`MOST_KEPT`], each of a
//! bounded size. What is written down is never thrown away for what the same
//! node reports later: it could hide something so.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::Subject;
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use muster_protocol::envelope::{Door, Mode};
use muster_protocol::ids::{RunId, Serial};
use muster_protocol::names::{NodeName, PrincipalName};
use muster_protocol::note::Expected;
use muster_protocol::run::{
    Gates, LocalRecord, LocalRun, NodeResult, Outcome, RunEnd, RunEvent, RunOptions, RunSpec,
    RunState, Stream, Target,
};
use muster_protocol::subject;
use muster_protocol::text::printable;
use muster_protocol::units::{Span, Timestamp};
use muster_protocol::wire::{
    InlineChunk, LocalAnswer, LocalCall, LocalReport, MAX_LOCAL_CHUNKS, MAX_LOCAL_OUTPUT,
    MAX_LOCAL_PARAMS, MAX_WHY,
};
use muster_scenarios::command::{self, Command};
use muster_scenarios::{manifest, upgrade};
use tokio::time::Instant;

use super::engine::{Engine, lock};
use super::frames::StoredOutput;
use super::index::Known;
use super::journal::{Folded, Journal, JournalError, ReadError, STREAM, fold};
use super::journal::{output_head, output_message};
use super::outcome::from_node;
use crate::inventory::NodeRecord;
use crate::store::append::{Append, append_all};
use crate::store::error::StreamError;
use crate::store::read::read_from;

/// Local runs of one node that are written down in a day.
pub(super) const MOST_A_DAY: usize = 100;
/// Local runs of one node that are kept at a time, whatever their age.
pub(super) const MOST_KEPT: usize = 500;
/// When a node that has reported so many asks again.
const LATER: Span = Span::from_secs(600);
/// How often it is said that a node reports too many.
const SAY_EVERY: Duration = Duration::from_secs(3600);
/// Reports that are being written at a time.
const AT_ONCE: usize = 16;
/// Longest name of a user that is kept.
const MAX_USER: usize = 64;
const DAY: Duration = Duration::from_secs(86_400);

/// Whose reports are being written.
#[derive(Debug, Default)]
pub(super) struct Desk {
    busy: Mutex<HashSet<Serial>>,
    /// When it was said of a node that it reports too many.
    said: Mutex<HashMap<Serial, Instant>>,
}

/// Takes a node off the desk, however its report ends.
struct Seat {
    engine: Engine,
    node: Serial,
}

impl Drop for Seat {
    fn drop(&mut self) {
        lock(&self.engine.0.locals.busy).remove(&self.node);
    }
}

/// Why a report is not written down now.
#[derive(Debug, thiserror::Error)]
enum LocalError {
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Store(#[from] StreamError),
    #[error("the journal of run {0} is none of a local run")]
    NotLocal(RunId),
}

impl Engine {
    /// A node reports what was run on it. One report of a node at a time;
    /// what comes meanwhile is dropped, because the node repeats it.
    pub(crate) fn local(
        &self,
        node: Arc<NodeRecord>,
        report: Box<LocalReport>,
        reply: Option<Subject>,
    ) {
        if self.0.active().is_none() {
            return;
        }
        let Some(seat) = self.seat(node.serial) else {
            return;
        };
        let this = self.clone();
        self.0.tasks.spawn(async move {
            let _seat = seat;
            match this.record(&node, *report).await {
                Ok(Some(answer)) => {
                    if let Some(reply) = &reply {
                        this.0.bus.reply(node.serial, reply, &answer).await;
                    }
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(node = %node.assignment.name, %error, "a local run is not written down yet");
                }
            }
        });
    }

    fn seat(&self, node: Serial) -> Option<Seat> {
        let mut busy = lock(&self.0.locals.busy);
        (busy.len() < AT_ONCE && busy.insert(node)).then(|| Seat {
            engine: self.clone(),
            node,
        })
    }

    /// Finishes writing a local run down that this broker, or the one before,
    /// had begun with.
    pub(super) fn finish_local(&self, folded: Folded) {
        let Some(node) = folded.state.spec.local.as_ref().map(|l| l.target.serial) else {
            return;
        };
        // Taken: the node has reported it again, which finishes it too.
        let Some(seat) = self.seat(node) else { return };
        let this = self.clone();
        self.0.tasks.spawn(async move {
            let _seat = seat;
            let run = folded.state.spec.id;
            if let Err(error) = this.complete(folded, None).await {
                tracing::warn!(%run, %error, "a local run is not written down whole yet");
            }
        });
    }

    /// Writes a report down; the answer, or none while that cannot be done.
    async fn record(
        &self,
        node: &NodeRecord,
        report: LocalReport,
    ) -> Result<Option<LocalAnswer>, LocalError> {
        let shared = &self.0;
        let Some((epoch, _)) = shared.active() else {
            return Ok(None);
        };
        let cluster = shared.bus.authority().signer().cluster;
        let run = report.nonce.run_id(cluster, node.serial);
        let stored = Ok(Some(LocalAnswer::Stored { run }));
        let known = {
            let index = lock(&shared.index);
            index.first(run).map(|first| {
                let ended = index.get(run).is_some_and(|b| b.state.is_final());
                (first, ended)
            })
        };
        if let Some((first, ended)) = known {
            if !ended {
                let folded = fold(&shared.js, run, first).await?;
                self.complete(folded, Some(report.output)).await?;
            }
            return stored;
        }
        let spec = match spec(run, node, &report) {
            Ok(spec) => spec,
            Err(reason) => return Ok(Some(LocalAnswer::Refused { reason })),
        };
        if self.too_many(node.serial) {
            self.say_too_many(node).await;
            return Ok(Some(LocalAnswer::Later { retry_after: LATER }));
        }
        let lease = shared.bus.lease().clone();
        let mut journal = Journal::new(shared.js.clone(), lease, epoch, run, 0);
        let created = RunEvent::Created {
            spec: Box::new(spec),
        };
        let folded = match journal.append(&created).await {
            Ok(first) => Folded {
                state: RunState::begin(&created).expect("it is a `created`"),
                first,
                last: first,
            },
            // It is there, and the index has forgotten it, or never knew.
            Err(JournalError::Conflict(_)) => fold(&shared.js, run, 1).await?,
            Err(error) => return Err(error.into()),
        };
        if folded.state.phase.is_final() {
            return stored;
        }
        lock(&shared.index).insert(Known::new(&folded.state, folded.first));
        self.complete(folded, Some(report.output)).await?;
        stored
    }

    fn too_many(&self, node: Serial) -> bool {
        let day_ago = Timestamp::now().checked_sub(DAY).unwrap_or(Timestamp::MIN);
        let (recent, kept) = lock(&self.0.index).locals(node, day_ago);
        recent >= MOST_A_DAY || kept >= MOST_KEPT
    }

    async fn say_too_many(&self, node: &NodeRecord) {
        {
            let mut said = lock(&self.0.locals.said);
            let now = Instant::now();
            said.retain(|_, at| now.duration_since(*at) < SAY_EVERY);
            if said.contains_key(&node.serial) {
                return;
            }
            said.insert(node.serial, now);
        }
        let name = &node.assignment.name;
        let text = format!(
            "{name} reports more local runs than are taken ({MOST_A_DAY} a day, {MOST_KEPT} in all); the rest waits in its own journal"
        );
        self.0
            .events
            .emit("alarm.local-runs", name.as_str(), text)
            .await;
    }

    /// Writes what is missing of a local run's journal. Without `output` the
    /// node's report is gone, and what is not stored of it is lost here.
    async fn complete(
        &self,
        mut folded: Folded,
        output: Option<Vec<InlineChunk>>,
    ) -> Result<(), LocalError> {
        let shared = &self.0;
        let run = folded.state.spec.id;
        let (epoch, _) = shared.active().ok_or(JournalError::NotActive)?;
        let record = folded.state.spec.local.clone();
        let record = *record.ok_or(LocalError::NotLocal(run))?;
        if folded.state.phase.is_final() {
            return Ok(());
        }
        let lease = shared.bus.lease().clone();
        let mut journal = Journal::new(shared.js.clone(), lease, epoch, run, folded.last);
        let at = Timestamp::now();
        // Before the output: watchers show none of a node that they do not
        // know yet.
        if folded.state.order.is_empty() {
            let nodes = vec![record.target.clone()];
            write(&mut journal, &mut folded, RunEvent::Targets { nodes }).await?;
        }
        let mut result = record.result.clone();
        let unsettled = folded.state.results().next().is_none();
        if unsettled {
            let serial = record.target.serial;
            let had = self.stored_output(run, folded.first).await?;
            let (bytes, lost) = match output {
                Some(output) => self.store_output(run, serial, output, &had).await,
                None => (had.values().sum(), result.output_bytes > 0),
            };
            result.truncated |= lost || bytes < result.output_bytes;
            result.output_bytes = bytes;
            let results = vec![result.clone()];
            let settled = RunEvent::Outcomes { results, at };
            write(&mut journal, &mut folded, settled).await?;
        }
        let end = match result.outcome {
            Outcome::Succeeded => RunEnd::Succeeded,
            Outcome::Cancelled => RunEnd::Cancelled,
            _ => RunEnd::Failed,
        };
        write(&mut journal, &mut folded, RunEvent::Finished { end, at }).await?;
        lock(&shared.index).update(&folded.state);
        shared.remember(&Arc::new(folded.state.clone()));
        self.tell_of(&folded.state, &record).await;
        Ok(())
    }

    async fn tell_of(&self, state: &RunState, record: &LocalRecord) {
        let shared = &self.0;
        let name = &record.target.name;
        let short = lock(&shared.index).short(state.spec.id);
        let by = &record.local.user;
        let forced = if record.local.forced {
            ", against the node's policy"
        } else {
            ""
        };
        let why = record
            .local
            .why
            .as_ref()
            .map_or_else(String::new, |why| format!(", because: {why}"));
        let text = format!(
            "{name} reports that {by} ran `{}` on it itself at {}{forced}{why}: {} (run {short})",
            state.spec.title, record.local.began, record.result.outcome
        );
        tracing::info!(run = %state.spec.id, node = %name, outcome = %record.result.outcome, "a local run is written down");
        shared
            .events
            .emit("node.local-run", name.as_str(), text)
            .await;
    }

    /// Which chunks are stored, and their sizes.
    async fn stored_output(
        &self,
        run: RunId,
        first: u64,
    ) -> Result<HashMap<u32, u64>, StreamError> {
        let mut stored = HashMap::new();
        let mut messages = read_from(&self.0.js, STREAM, &subject::output(run), first).await?;
        while let Some(message) = messages.try_next().await? {
            if let Some(head) = output_head(&message.headers) {
                stored.insert(head.chunk, message.payload.len() as u64);
            }
        }
        Ok(stored)
    }

    /// Stores output that is not stored yet; how many bytes there are now,
    /// and whether some are lost.
    async fn store_output(
        &self,
        run: RunId,
        serial: Serial,
        output: Vec<InlineChunk>,
        had: &HashMap<u32, u64>,
    ) -> (u64, bool) {
        let shared = &self.0;
        let mut bytes: u64 = had.values().sum();
        let (pieces, mut lost) = pieces(output);
        let fresh: Vec<(u64, Append)> = (0..)
            .zip(pieces)
            .filter(|(chunk, _)| !had.contains_key(chunk))
            .map(|(chunk, (stream, data))| {
                let head = StoredOutput {
                    serial,
                    chunk,
                    stream,
                };
                (data.len() as u64, output_message(run, head, data))
            })
            .collect();
        if fresh.is_empty() {
            return (bytes, lost);
        }
        if !shared.has_room(fresh.iter().map(|(size, _)| size).sum()) {
            return (bytes, true);
        }
        let (sizes, messages): (Vec<u64>, Vec<Append>) = fresh.into_iter().unzip();
        let results = append_all(&shared.js, STREAM, &messages).await;
        for (size, result) in sizes.into_iter().zip(results) {
            match result {
                Ok(_) => bytes += size,
                Err(error) => {
                    tracing::warn!(%run, %error, "output of a local run is lost");
                    lost = true;
                }
            }
        }
        (bytes, lost)
    }
}

async fn write(
    journal: &mut Journal,
    folded: &mut Folded,
    event: RunEvent,
) -> Result<(), JournalError> {
    folded.last = journal.append(&event).await?;
    if let Err(error) = folded.state.apply(&event) {
        tracing::error!(%error, ?event, "an event does not follow on the state it was made from");
    }
    Ok(())
}

/// A node's output within its bounds, and whether there was more.
fn pieces(output: Vec<InlineChunk>) -> (Vec<(Stream, Bytes)>, bool) {
    let mut left = MAX_LOCAL_OUTPUT;
    let mut lost = output.len() > MAX_LOCAL_CHUNKS;
    let mut pieces = Vec::new();
    for chunk in output.into_iter().take(MAX_LOCAL_CHUNKS) {
        let Some(mut data) = chunk.data.bytes() else {
            lost = true;
            continue;
        };
        if data.len() > left {
            data.truncate(left);
            lost = true;
        }
        left -= data.len();
        if !data.is_empty() {
            pieces.push((chunk.stream, data.into()));
        }
    }
    (pieces, lost)
}

/// A report as a run: bounded, escaped where it is text, and everything that
/// the broker knows itself in place of what the node says.
///
/// # Errors
/// Why this broker does not take it.
fn spec(run: RunId, node: &NodeRecord, report: &LocalReport) -> Result<RunSpec, String> {
    if report.params.to_string().len() > MAX_LOCAL_PARAMS {
        return Err(format!(
            "the parameters have more than {MAX_LOCAL_PARAMS} bytes"
        ));
    }
    let (call, title) = called(report)?;
    let name = &node.assignment.name;
    let said = &report.local;
    let mut result: NodeResult = from_node(node.serial, report.result.clone());
    result.reason = result.reason.map(|reason| printable(&reason, 1_000));
    Ok(RunSpec {
        id: run,
        principal: principal(name, node.serial),
        door: Door::Local,
        scenario: call.scenario,
        version: None,
        bundle: call.bundle,
        function: call.function,
        params: report.params.clone(),
        mode: call.mode,
        title,
        predicate: name.to_string(),
        targets: 1,
        options: RunOptions {
            timeout: report.timeout,
            deliver_within: super::request::DELIVER_WITHIN,
            batch: None,
            max_failures: None,
            max_failures_by: BTreeMap::new(),
            wait_down: false,
            output_bytes: super::request::OUTPUT_BYTES,
            retry: 0,
        },
        expect: Expected::default(),
        gates: Gates::default(),
        retry_of: None,
        left_out: 0,
        local: Some(Box::new(LocalRecord {
            local: LocalRun {
                user: printable(&said.user, MAX_USER),
                login: said.login.as_ref().map(|l| printable(l, MAX_USER)),
                why: said.why.as_ref().map(|w| printable(w, MAX_WHY)),
                forced: said.forced,
                began: said.began,
            },
            target: Target::new(node.serial, name.clone()),
            result,
        })),
        rebuilt: None,
        main: None,
        part_of: None,
        takes_back: false,
        chat: None,
        // By this broker's clock: with the node's, it could be the newest
        // run for ever, or old enough to be forgotten at once.
        created: Timestamp::now(),
    })
}

/// What ran, and in one line.
fn called(report: &LocalReport) -> Result<(LocalCall, String), String> {
    let Some(call) = &report.call else {
        let command =
            Command::from_params(&report.params).map_err(|e| printable(&e.to_string(), 300))?;
        let call = LocalCall {
            scenario: command::NAME.parse().expect("a constant name"),
            bundle: command::bundle(),
            function: command::FUNCTION.parse().expect("a constant name"),
            mode: Mode::Apply,
        };
        return Ok((call, command.title()));
    };
    if !report.params.is_object() {
        return Err("the parameters of a scenario are a map".to_owned());
    }
    if [command::bundle(), upgrade::bundle()].contains(&call.bundle) {
        return Err("what is built in is no scenario of the node's own".to_owned());
    }
    let mut title = call.scenario.to_string();
    if call.function.as_str() != manifest::RUN {
        title = format!("{title} {}", call.function);
    }
    if call.mode == Mode::Check {
        title.push_str(" (dry run)");
    }
    Ok((call.clone(), title))
}

/// Who asked, as far as this broker can vouch: the node. Which of its users
/// it was is the node's word, and stands beside it.
fn principal(name: &NodeName, serial: Serial) -> PrincipalName {
    format!("node/{name}")
        .parse()
        .or_else(|_| format!("node/{serial}").parse())
        .expect("`node/` and a number are a principal's name")
}

#[cfg(test)]
mod tests {
    use muster_protocol::run::Data;

    use super::*;

    #[test]
    fn a_node_with_a_long_name_still_has_a_principal() {
        let long: NodeName = "a".repeat(63).parse().expect("a name");
        assert_eq!(principal(&long, Serial(7)).as_str(), "node/7");
        let name: NodeName = "web-01".parse().expect("a name");
        assert_eq!(principal(&name, Serial(7)).as_str(), "node/web-01");
    }

    #[test]
    fn output_is_cut_to_its_bounds() {
        let chunk = |data: Data| InlineChunk {
            chunk: 0,
            stream: Stream::Stdout,
            data,
        };
        let many = vec![chunk(Data::Text("x".into())); MAX_LOCAL_CHUNKS + 5];
        let (kept, lost) = pieces(many);
        assert_eq!((kept.len(), lost), (MAX_LOCAL_CHUNKS, true));
        let large = vec![chunk(Data::Text("x".repeat(MAX_LOCAL_OUTPUT - 1))); 2];
        let (kept, lost) = pieces(large);
        assert_eq!(
            kept.iter().map(|(_, d)| d.len()).sum::<usize>(),
            MAX_LOCAL_OUTPUT
        );
        assert!(lost);
        let bad = chunk(Data::Bytes { base64: "!".into() });
        assert_eq!(pieces(vec![bad]), (vec![], true));
    }
}
