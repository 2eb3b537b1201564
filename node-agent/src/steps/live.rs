//! A step's output on its way: numbered, kept in the journal, and sent while
//! the step runs, unless the step is so quick and quiet that all of it fits
//! into the outcome.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use muster_protocol::ids::RequestId;
use muster_protocol::run::Stream;
use muster_protocol::wire::{MAX_INLINE, OutputHead};
use tokio::sync::Mutex;
use tracing::warn;

use crate::bus::Bus;
use crate::host::proc::Process;
use crate::host::process::Sink;
use crate::journal::{Chunk, Journal, ProcessNote};

/// What there is of a step's output in the journal.
#[derive(Clone, Default)]
pub(super) struct Output {
    /// How many chunks.
    pub(super) chunks: u32,
    /// All of them, when they travel inside the outcome.
    pub(super) inline: Vec<Chunk>,
    /// Some could not be kept.
    pub(super) lost: bool,
    /// Bytes of it that an earlier start of the agent had kept.
    pub(super) before: u64,
}

/// The output of one step, while it runs.
#[derive(Clone)]
pub(super) struct Live {
    request: RequestId,
    journal: Journal,
    bus: Bus,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// The number of the next chunk.
    next: u32,
    /// Held back while it may still travel inside the outcome.
    held: Vec<Chunk>,
    bytes: usize,
    before: u64,
    /// Chunks are sent as they come.
    live: bool,
    /// Some could not be kept.
    lost: bool,
    closed: bool,
}

impl Live {
    pub(super) fn new(request: RequestId, journal: Journal, bus: Bus) -> Self {
        Self {
            request,
            journal,
            bus,
            state: Arc::default(),
        }
    }

    /// The output of a step that goes on, behind these chunks and bytes.
    pub(super) fn again(
        request: RequestId,
        journal: Journal,
        bus: Bus,
        (next, before): (u32, u64),
    ) -> Self {
        let state = State {
            next,
            before,
            live: true,
            ..State::default()
        };
        Self {
            request,
            journal,
            bus,
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// Holds nothing back any more.
    pub(super) async fn go_live(&self) {
        let mut state = self.state.lock().await;
        if !state.closed {
            self.release(&mut state).await;
        }
    }

    /// No more output.
    pub(super) async fn close(&self) -> Output {
        let mut state = self.state.lock().await;
        state.closed = true;
        Output {
            chunks: state.next,
            inline: std::mem::take(&mut state.held),
            lost: state.lost,
            before: state.before,
        }
    }

    async fn release(&self, state: &mut State) {
        state.live = true;
        for chunk in std::mem::take(&mut state.held) {
            self.send(chunk).await;
        }
    }

    /// Best effort: what does not arrive is asked for when the step has
    /// ended.
    async fn send(&self, chunk: Chunk) {
        if let Ok(voice) = self.bus.voice() {
            let head = OutputHead {
                request: self.request,
                chunk: chunk.number,
                stream: chunk.stream,
            };
            let _ = voice.output(&head, chunk.data).await;
        }
    }
}

impl Sink for Live {
    fn started<'a>(
        &'a mut self,
        process: &'a Process,
        cgroup: Option<&'a Path>,
    ) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let cgroup = cgroup.map(Path::to_owned);
            let note = ProcessNote {
                pid: process.pid,
                started: process.started,
                cgroup,
            };
            let request = self.request;
            muster_checkpoint::at("agent.process.before", || request.run.to_string()).await;
            if let Err(e) = self.journal.process(self.request, note).await {
                warn!("the process of a step cannot be noted: {e}");
            }
            muster_checkpoint::at("agent.process.after", || request.run.to_string()).await;
        })
    }

    fn output(&mut self, stream: Stream, data: Bytes) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let mut state = self.state.lock().await;
            let chunk = Chunk {
                number: state.next,
                stream,
                data,
            };
            if let Err(e) = self.journal.output(self.request, chunk.clone()).await {
                if !state.lost {
                    warn!("output is lost, because it cannot be journaled: {e}");
                }
                state.lost = true;
                return;
            }
            state.next += 1;
            state.bytes += chunk.data.len();
            if state.live {
                self.send(chunk).await;
                return;
            }
            state.held.push(chunk);
            if state.bytes > MAX_INLINE {
                self.release(&mut state).await;
            }
        })
    }
}
