//! What a step says on its way to the step's sink: in order, bounded, without
//! its secrets, and notes that come together as one piece.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use muster_protocol::note::Note;
use muster_protocol::run::Stream;
use muster_protocol::wire::MAX_CHUNK;
use muster_scenarios::secret::Secrets;
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::masks::Masks;
use crate::host::process::Sink;
use crate::host::tools::Said;

/// Most changes, lines and events that one step says.
const MAX_NOTES: u32 = 10_000;
/// How long a note waits for others, to go with them.
const TOGETHER: Duration = Duration::from_millis(100);

/// What went to the step's sink, and how much more may.
pub(super) struct Passed<'a> {
    sink: &'a mut dyn Sink,
    /// Where there are secrets to hide.
    masks: Option<Masks>,
    left: u64,
    notes_left: u32,
    /// Notes that wait, as lines.
    notes: BytesMut,
    /// Since when.
    since: Instant,
    /// Bytes that went on.
    pub(super) bytes: u64,
    /// There was more.
    pub(super) truncated: bool,
    /// Set while nothing is to be seen of what the step says: a dry run
    /// before the real one. Its notes are kept, should they be wanted.
    hidden: Option<Vec<Note>>,
}

impl<'a> Passed<'a> {
    /// At most `limit` bytes, without these secrets.
    pub(super) fn new(sink: &'a mut dyn Sink, limit: u64, secrets: &Secrets) -> Self {
        Self {
            sink,
            masks: (!secrets.is_empty()).then(|| Masks::new(secrets.clone())),
            left: limit,
            notes_left: MAX_NOTES,
            notes: BytesMut::new(),
            since: Instant::now(),
            bytes: 0,
            truncated: false,
            hidden: None,
        }
    }

    /// Shows nothing until [`Passed::reveal`].
    pub(super) fn hide(&mut self) {
        self.hidden = Some(Vec::new());
    }

    /// Shows again; the notes that were not shown.
    pub(super) fn reveal(&mut self) -> Vec<Note> {
        self.hidden.take().unwrap_or_default()
    }

    /// Passes on what the step says until its function has ended; `None` when
    /// it was to end, by its time or by a cancel, and does not.
    pub(super) async fn attend<T>(
        &mut self,
        mut running: JoinHandle<T>,
        mut hearing: mpsc::Receiver<Said>,
        deadline: Instant,
        cancel: &CancellationToken,
        patience: Duration,
    ) -> Option<Result<T, JoinError>> {
        let overdue = async {
            tokio::select! {
                () = cancel.cancelled() => {}
                () = sleep_until(deadline) => {}
            }
            tokio::time::sleep(patience).await;
        };
        let mut overdue = std::pin::pin!(overdue);
        loop {
            let due = self.since + TOGETHER;
            tokio::select! {
                biased;
                Some(said) = hearing.recv() => self.take(said).await,
                ended = &mut running => {
                    // What it said last is still on its way.
                    while let Ok(said) = hearing.try_recv() {
                        self.take(said).await;
                    }
                    self.release().await;
                    return Some(ended);
                }
                () = sleep_until(due), if !self.notes.is_empty() => self.flush().await,
                () = &mut overdue => return None,
            }
        }
    }

    async fn take(&mut self, said: Said) {
        match said {
            Said::Started {
                process,
                cgroup,
                noted,
            } => {
                self.sink.started(&process, cgroup.as_deref()).await;
                let _ = noted.send(());
            }
            Said::Output(..) if self.hidden.is_some() => {}
            Said::Output(stream, data) => {
                let data = match &mut self.masks {
                    Some(masks) => masks.pass(stream, &data),
                    None => data,
                };
                self.output(stream, data).await;
            }
            Said::Note(note) => {
                self.release().await;
                self.note(&note).await;
            }
        }
    }

    /// What was held back to see whether a secret comes.
    async fn release(&mut self) {
        let Some(masks) = &mut self.masks else { return };
        for (stream, data) in masks.rest() {
            self.output(stream, data).await;
        }
    }

    async fn output(&mut self, stream: Stream, mut data: Bytes) {
        if !data.is_empty() {
            self.flush().await;
        }
        let room = usize::try_from(self.left).unwrap_or(usize::MAX);
        if data.len() > room {
            self.truncated = true;
            data.truncate(room);
        }
        if data.is_empty() {
            return;
        }
        self.left -= data.len() as u64;
        self.send(stream, data).await;
    }

    async fn send(&mut self, stream: Stream, mut data: Bytes) {
        self.bytes += data.len() as u64;
        while !data.is_empty() {
            let part = data.split_to(data.len().min(MAX_CHUNK));
            self.sink.output(stream, part).await;
        }
    }

    /// A note counts as all output does: a script that says something without
    /// an end fills no journal. Why a step failed is always said.
    pub(super) async fn note(&mut self, note: &Note) {
        if let Some(hidden) = &mut self.hidden {
            if hidden.len() < MAX_NOTES as usize {
                hidden.push(note.clone());
            }
            return;
        }
        let line = note.line();
        let size = line.len() as u64;
        let last = matches!(note, Note::Failed { .. });
        if (size > self.left || self.notes_left == 0) && !last {
            self.truncated = true;
            return;
        }
        self.notes_left = self.notes_left.saturating_sub(1);
        self.left = self.left.saturating_sub(size);
        // One that fits into a chunk is never cut in two.
        if self.notes.len() + line.len() > MAX_CHUNK {
            self.flush().await;
        }
        if self.notes.is_empty() {
            self.since = Instant::now();
        }
        self.notes.extend_from_slice(line.as_bytes());
        if self.notes.len() >= MAX_CHUNK {
            self.flush().await;
        }
    }

    /// Notes that wait go on.
    pub(super) async fn flush(&mut self) {
        if !self.notes.is_empty() {
            let notes = self.notes.split().freeze();
            self.send(Stream::Note, notes).await;
        }
    }
}
