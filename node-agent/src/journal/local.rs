//! Runs that somebody started on this node itself: rows like those of any
//! step, with a note beside them that says whose they are. The process that
//! executes one writes them; the agent's process reports and recovers them.

use bytes::{Bytes, BytesMut};
use muster_protocol::ids::{LocalNonce, RequestId, RunId};
use muster_protocol::run::{Data, LocalRun, NodeResult, Stream};
use muster_protocol::units::{Span, Timestamp};
use muster_protocol::wire::{
    InlineChunk, LocalCall, LocalReport, MAX_CHUNK, MAX_LOCAL_CHUNKS, MAX_LOCAL_OUTPUT,
};
use rusqlite::{OptionalExtension as _, params};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::db::{Db, millis};
use super::{Chunk, Journal, JournalError, StartNote, Unfinished};

pub(super) const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS local (run BLOB PRIMARY KEY, note TEXT NOT NULL) WITHOUT ROWID;
";

/// What is fixed of a local run when it begins.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct LocalNote {
    /// From which its id follows.
    pub nonce: LocalNonce,
    /// Who, when, why.
    pub local: LocalRun,
    /// What runs, where it is a function of a scenario.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call: Option<LocalCall>,
    /// Its parameters; in the place of a secret stands its name.
    pub params: Value,
    /// How long it may.
    pub timeout: Span,
}

/// The request id under which a local run is journaled.
#[must_use]
pub fn request(run: RunId) -> RequestId {
    RequestId { run, step: 0 }
}

impl Journal {
    /// Notes that a local run begins: what it is, and that it has started.
    /// Durable when it returns: only then may anything happen.
    ///
    /// # Errors
    /// [`JournalError`]; nothing is noted then.
    pub async fn begin_local(
        &self,
        run: RunId,
        note: LocalNote,
        start: StartNote,
    ) -> Result<(), JournalError> {
        self.with(move |db| db.begin_local(run, &note, &start, Timestamp::now()))
            .await
    }

    /// Local runs that have not ended, as far as the journal knows: their
    /// processes may live, or have been killed.
    ///
    /// # Errors
    /// [`JournalError`].
    pub async fn local_open(&self) -> Result<Vec<Unfinished>, JournalError> {
        self.with(|db| db.local_open()).await
    }

    /// Local runs that have ended and that the broker does not have, oldest
    /// first.
    ///
    /// # Errors
    /// [`JournalError`].
    pub async fn local_unreported(&self, limit: u32) -> Result<Vec<RunId>, JournalError> {
        self.with(move |db| db.local_unreported(limit)).await
    }

    /// The report of a local run; `None` when it has not ended.
    ///
    /// # Errors
    /// [`JournalError`].
    pub async fn local_report(&self, run: RunId) -> Result<Option<LocalReport>, JournalError> {
        self.with(move |db| db.local_report(run)).await
    }
}

impl Db {
    fn begin_local(
        &self,
        run: RunId,
        note: &LocalNote,
        start: &StartNote,
        now: Timestamp,
    ) -> Result<(), JournalError> {
        let note = serde_json::to_string(note).map_err(|e| JournalError::Row(e.to_string()))?;
        // Both or none: a step without its note would be taken for one that
        // the broker had asked for.
        let tx = self.transaction()?;
        tx.execute(
            "INSERT INTO local (run, note) VALUES (?1, ?2)",
            params![run.as_bytes().as_slice(), note],
        )?;
        tx.execute(
            "INSERT INTO step (run, step, state, received, started, timeout_ms, instance, boot_id)
             VALUES (?1, 0, 'started', ?2, ?2, ?3, ?4, ?5)",
            params![
                run.as_bytes().as_slice(),
                millis(now),
                i64::try_from(start.timeout_ms).unwrap_or(i64::MAX),
                start.instance.to_string(),
                start.boot_id
            ],
        )?;
        Ok(tx.commit()?)
    }

    fn local_open(&self) -> Result<Vec<Unfinished>, JournalError> {
        self.unfinished_where("run IN (SELECT run FROM local)")
    }

    fn local_unreported(&self, limit: u32) -> Result<Vec<RunId>, JournalError> {
        let mut statement = self.connection().prepare_cached(
            "SELECT run FROM step WHERE acknowledged IS NULL AND state = 'finished'
             AND run IN (SELECT run FROM local) ORDER BY received LIMIT ?1",
        )?;
        let mut rows = statement.query([limit])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            let bytes: Vec<u8> = row.get(0)?;
            let bytes = bytes
                .try_into()
                .map_err(|_| JournalError::Row("a run id".into()))?;
            found.push(RunId::from_bytes(bytes));
        }
        Ok(found)
    }

    fn local_report(&self, run: RunId) -> Result<Option<LocalReport>, JournalError> {
        let row: Option<(String, String, u32)> = self
            .connection()
            .prepare_cached(
                "SELECT local.note, step.result, step.chunks FROM step JOIN local USING (run)
                 WHERE step.run = ?1 AND step.step = 0 AND step.state = 'finished'",
            )?
            .query_row([run.as_bytes().as_slice()], |r| {
                Ok((r.get(0)?, r.get(1)?, r.get(2)?))
            })
            .optional()?;
        let Some((note, result, chunks)) = row else {
            return Ok(None);
        };
        let wrong = |e: serde_json::Error| JournalError::Row(e.to_string());
        let note: LocalNote = serde_json::from_str(&note).map_err(wrong)?;
        let mut result: NodeResult = serde_json::from_str(&result).map_err(wrong)?;
        let mut output = Pieces::default();
        for number in 0..chunks {
            match self.chunk(request(run), number)? {
                Some(chunk) if output.take(&chunk) => {}
                Some(_) => break,
                None => result.truncated = true,
            }
        }
        result.truncated |= output.full;
        Ok(Some(LocalReport {
            nonce: note.nonce,
            local: note.local,
            call: note.call,
            params: note.params,
            timeout: note.timeout,
            result,
            output: output.done(),
        }))
    }
}

/// Output gathered for a report: as few pieces as can be, and no more bytes
/// than a report takes.
#[derive(Default)]
struct Pieces {
    done: Vec<(Stream, Bytes)>,
    open: BytesMut,
    stream: Option<Stream>,
    bytes: usize,
    full: bool,
}

impl Pieces {
    /// Takes a chunk; whether there is room for more.
    fn take(&mut self, chunk: &Chunk) -> bool {
        if self.stream != Some(chunk.stream) {
            self.close();
            self.stream = Some(chunk.stream);
        }
        let mut data = &chunk.data[..];
        let room = MAX_LOCAL_OUTPUT.saturating_sub(self.bytes);
        if data.len() > room {
            data = &data[..room];
            self.full = true;
        }
        self.bytes += data.len();
        self.open.extend_from_slice(data);
        while self.open.len() >= MAX_CHUNK {
            let piece = self.open.split_to(MAX_CHUNK).freeze();
            self.done.push((chunk.stream, piece));
        }
        self.full |= self.done.len() >= MAX_LOCAL_CHUNKS - 2;
        !self.full
    }

    fn close(&mut self) {
        if let Some(stream) = self.stream
            && !self.open.is_empty()
        {
            self.done.push((stream, self.open.split().freeze()));
        }
    }

    fn done(mut self) -> Vec<InlineChunk> {
        self.close();
        (0..)
            .zip(self.done)
            .map(|(chunk, (stream, data))| InlineChunk {
                chunk,
                stream,
                data: compact(&data),
            })
            .collect()
    }
}

/// As text, unless base64 is shorter: JSON writes a control character with
/// six bytes, and a report full of them would not fit into a message.
fn compact(bytes: &[u8]) -> Data {
    let data = Data::new(bytes);
    let written = serde_json::to_string(&data).map_or(usize::MAX, |json| json.len());
    if written > bytes.len() / 3 * 4 + 32 {
        Data::Bytes {
            base64: data_encoding::BASE64.encode(bytes),
        }
    } else {
        data
    }
}

#[cfg(test)]
mod tests {
    use muster_protocol::ids::{ClusterId, InstanceId, Serial};
    use muster_protocol::run::Outcome;
    use muster_protocol::wire::{MAX_LOCAL_PARAMS, MAX_MESSAGE};

    use super::*;
    use crate::config::Retention;

    fn note() -> LocalNote {
        LocalNote {
            nonce: LocalNonce::random(),
            local: LocalRun {
                user: "root".into(),
                login: None,
                why: Some("x".repeat(500)),
                forced: false,
                began: Timestamp::now(),
            },
            call: None,
            params: serde_json::json!({"argv": ["x".repeat(MAX_LOCAL_PARAMS - 20)]}),
            timeout: Span::from_secs(5),
        }
    }

    fn start() -> StartNote {
        StartNote {
            instance: InstanceId::random(),
            boot_id: "b".into(),
            timeout_ms: 5000,
        }
    }

    async fn with_output(journal: &Journal, chunks: &[Chunk]) -> LocalReport {
        let note = note();
        let run = note.nonce.run_id(ClusterId::random(), Serial(1));
        journal
            .begin_local(run, note, start())
            .await
            .expect("begins");
        for chunk in chunks {
            journal
                .output(request(run), chunk.clone())
                .await
                .expect("kept");
        }
        let result = NodeResult::new(Serial(1), Outcome::Failed, "x");
        let count = u32::try_from(chunks.len()).expect("few");
        journal
            .finish(request(run), result, count, false)
            .await
            .expect("ends");
        journal
            .local_report(run)
            .await
            .expect("reads")
            .expect("is there")
    }

    fn chunk(number: u32, stream: Stream, data: &[u8]) -> Chunk {
        Chunk {
            number,
            stream,
            data: Bytes::copy_from_slice(data),
        }
    }

    #[tokio::test]
    async fn it_is_no_step_of_the_broker_and_is_reported_until_it_is_known() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("journal.db");
        // Two processes: the one that runs it, and the agent.
        let (ours, agent) = (
            Journal::open(&path).expect("opens"),
            Journal::open(&path).expect("opens too"),
        );
        let note = note();
        let run = note.nonce.run_id(ClusterId::random(), Serial(1));
        ours.begin_local(run, note.clone(), start())
            .await
            .expect("begins");
        ours.begin_local(run, note, start())
            .await
            .expect_err("only once");
        assert_eq!(agent.local_open().await.expect("reads").len(), 1);
        assert_eq!(agent.unfinished().await.expect("reads"), []);
        assert_eq!(agent.local_report(run).await.expect("reads"), None);
        let result = NodeResult::new(Serial(1), Outcome::Failed, "exit code 3");
        ours.finish(request(run), result, 0, false)
            .await
            .expect("ends");
        assert_eq!(agent.local_open().await.expect("reads"), []);
        assert_eq!(agent.unacknowledged(9).await.expect("reads"), []);
        assert_eq!(agent.local_unreported(9).await.expect("reads"), [run]);
        agent.acknowledged(request(run));
        agent.settle().await;
        assert_eq!(ours.local_unreported(9).await.expect("reads"), []);
        agent
            .prune(Retention::default())
            .await
            .expect("nothing old");
        assert!(agent.local_report(run).await.expect("reads").is_some());
    }

    #[tokio::test]
    async fn two_processes_write_at_once_and_none_fails() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("journal.db");
        let writers = (0..4).map(|_| {
            let journal = Journal::open(&path).expect("opens");
            tokio::spawn(async move {
                for _ in 0..20 {
                    with_output(&journal, &[chunk(0, Stream::Stdout, b"x")]).await;
                    journal.prune(Retention::default()).await.expect("prunes");
                }
            })
        });
        for writer in writers.collect::<Vec<_>>() {
            writer.await.expect("no write fails");
        }
        let all = Journal::open(&path).expect("opens");
        assert_eq!(all.local_unreported(999).await.expect("reads").len(), 80);
    }

    #[tokio::test]
    async fn a_report_fits_into_a_message_whatever_was_written() {
        let dir = tempfile::tempdir().expect("tempdir");
        let journal = Journal::open(&dir.path().join("journal.db")).expect("opens");
        for byte in [0u8, b'"', b'\\', 0x7f, 0xff, b'a'] {
            let chunks: Vec<Chunk> = (0..9)
                .map(|n| chunk(n, Stream::Stdout, &vec![byte; MAX_CHUNK]))
                .collect();
            let report = with_output(&journal, &chunks).await;
            let size = serde_json::to_vec(&report).expect("json").len();
            assert!(size < MAX_MESSAGE, "{byte}: {size}");
            assert!(report.result.truncated);
            let kept: usize = report
                .output
                .iter()
                .map(|c| c.data.bytes().expect("bytes").len())
                .sum();
            assert_eq!(kept, MAX_LOCAL_OUTPUT);
        }
        // Many small pieces become few; the streams stay apart.
        let small: Vec<Chunk> = (0..3000).map(|n| chunk(n, Stream::Stderr, b"ab")).collect();
        let report = with_output(&journal, &small).await;
        assert_eq!(report.output.len(), 1);
        assert!(!report.result.truncated);
        let mixed: Vec<Chunk> = (0..3000)
            .map(|n| {
                let stream = if n % 2 == 0 {
                    Stream::Stdout
                } else {
                    Stream::Stderr
                };
                chunk(n, stream, b"ab")
            })
            .collect();
        let report = with_output(&journal, &mixed).await;
        assert!(report.output.len() <= MAX_LOCAL_CHUNKS && report.result.truncated);
    }
}
