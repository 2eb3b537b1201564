//! What a local run writes: kept in the journal up to a limit, and shown, all
//! of it, as it comes.
//!
//! It is shown as the program wrote it. This is the operator's own terminal
//! and the operator's own command, as if a shell had started it; to escape it
//! would break what is piped on. Everywhere else, and also in `muster runs
//! show` of this very run, output is data and is escaped.

use std::io::Write as _;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use muster_protocol::ids::RequestId;
use muster_protocol::note::Reader;
use muster_protocol::run::{Data, Stream};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::host::proc::Process;
use crate::host::process::Sink;
use crate::journal::{Chunk, Journal, ProcessNote};

/// Chunks that wait for a slow reader.
const WAITING: usize = 64;
/// How long a reader that does not read is waited for once the command has
/// been ended by force.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How output is shown.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Shown {
    /// As it was written, each stream on ours.
    Raw,
    /// One JSON object a chunk, on standard output.
    Json,
}

/// Takes what the command writes.
pub struct Terminal {
    request: RequestId,
    journal: Journal,
    /// Ends waiting for a reader.
    cancel: CancellationToken,
    deadline: Instant,
    /// Bytes that may still be kept.
    left: u64,
    next: u32,
    kept: u64,
    cut: bool,
    show: Option<mpsc::Sender<(Stream, Bytes)>>,
    writer: Option<JoinHandle<()>>,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Kept {
    /// Chunks in the journal.
    pub chunks: u32,
    /// Their bytes.
    pub bytes: u64,
    /// Whether there was more.
    pub truncated: bool,
}

impl Terminal {
    /// Keeps at most `limit` bytes. A reader that does not read holds the
    /// command up, as it does everywhere, but not beyond `timeout` or
    /// `cancel`.
    #[must_use]
    pub fn new(
        request: RequestId,
        journal: Journal,
        limit: u64,
        timeout: Duration,
        cancel: CancellationToken,
        shown: Shown,
    ) -> Self {
        let (show, chunks) = mpsc::channel(WAITING);
        Self {
            request,
            journal,
            cancel,
            deadline: Instant::now() + timeout,
            left: limit,
            next: 0,
            kept: 0,
            cut: false,
            show: Some(show),
            // Writing blocks, for as long as the reader likes.
            writer: Some(std::thread::spawn(move || write_all(chunks, shown))),
        }
    }

    /// Waits until all is shown, and says what was kept.
    pub async fn close(&mut self) -> Kept {
        self.show = None;
        if let Some(writer) = self.writer.take() {
            let written = async {
                while !writer.is_finished() {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            };
            let given_up = async {
                tokio::select! {
                    () = self.cancel.cancelled() => {}
                    () = tokio::time::sleep_until(self.deadline) => {}
                }
                tokio::time::sleep(LAST_WORDS).await;
            };
            tokio::select! {
                () = written => {}
                () = given_up => {}
            }
        }
        Kept {
            chunks: self.next,
            bytes: self.kept,
            truncated: self.cut,
        }
    }

    async fn keep(&mut self, stream: Stream, data: &Bytes) {
        let room = usize::try_from(self.left).unwrap_or(usize::MAX);
        let data = data.slice(..data.len().min(room));
        self.cut |= data.len() == room && room == 0;
        if data.is_empty() {
            return;
        }
        let bytes = data.len() as u64;
        let chunk = Chunk {
            number: self.next,
            stream,
            data,
        };
        match self.journal.output(self.request, chunk).await {
            Ok(()) => {
                self.next += 1;
                self.kept += bytes;
                self.left -= bytes;
            }
            Err(e) => {
                if !self.cut {
                    warn!("output is shown but not journaled: {e}");
                }
                self.cut = true;
                self.left = 0;
            }
        }
    }
}

impl Sink for Terminal {
    fn started<'a>(
        &'a mut self,
        process: &'a Process,
        cgroup: Option<&'a Path>,
    ) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let note = ProcessNote {
                pid: process.pid,
                started: process.started,
                cgroup: cgroup.map(Path::to_owned),
            };
            if let Err(e) = self.journal.process(self.request, note).await {
                warn!("the process of the command cannot be noted: {e}");
            }
        })
    }

    fn output(&mut self, stream: Stream, data: Bytes) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let before = self.kept;
            self.keep(stream, &data).await;
            self.cut |= self.kept - before < data.len() as u64;
            let Some(show) = &self.show else { return };
            let gone = tokio::select! {
                sent = show.send((stream, data)) => sent.is_err(),
                () = self.cancel.cancelled() => true,
                () = tokio::time::sleep_until(self.deadline) => true,
            };
            if gone {
                // Nobody reads; the command goes on, and is journaled.
                self.show = None;
            }
        })
    }
}

fn write_all(mut chunks: mpsc::Receiver<(Stream, Bytes)>, shown: Shown) {
    let (mut out, mut err) = (std::io::stdout(), std::io::stderr());
    let mut notes = Reader::default();
    while let Some((stream, data)) = chunks.blocking_recv() {
        let written = match (shown, stream) {
            (Shown::Raw, Stream::Stdout) => out.write_all(&data).and_then(|()| out.flush()),
            (Shown::Raw, Stream::Stderr) => err.write_all(&data),
            // What the step says of itself is no program's output: for people.
            (Shown::Raw, Stream::Note) => {
                let lines = notes.push(&data).into_iter().flat_map(|read| read.said());
                let text: String = lines.map(|line| line.text + "\n").collect();
                err.write_all(text.as_bytes())
            }
            (Shown::Json, _) => {
                let line = json!({"type": "output", "stream": stream, "data": Data::new(&data)});
                writeln!(out, "{line}")
            }
        };
        // Who closed one stream may still read the other.
        if written.is_err() && shown == Shown::Json {
            return;
        }
    }
}
