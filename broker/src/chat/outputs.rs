//! What the nodes of a run printed, read from the run's journal, as far as it
//! is shown in a channel.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::future::BoxFuture;
use muster_protocol::api::{Frame, RunView};
use muster_protocol::ids::RunId;
use muster_protocol::names::NodeName;
use muster_protocol::run::Stream;
use muster_protocol::text::{lossy, printable};
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;

use super::result::{Outputs, Printed};
use super::sentences::vms::OfMachine;
use crate::runs::Engine;
use crate::vm::Machines;

/// How long it may take.
const WITHIN: Duration = Duration::from_secs(10);
/// Bytes that are kept of the beginning of what a node printed.
const FIRST: usize = 4 * 1024;
/// And of its end.
const LAST: usize = 1024;
/// Bytes of all of them together; above it only whether they are equal is
/// known.
const ALL: usize = 8 << 20;
/// Longest line, in characters.
const MAX_LINE: usize = 300;
/// Lines that are kept of the beginning, and of the end.
const LINES: (usize, usize) = (12, 3);

/// What one node printed so far.
#[derive(Default)]
struct Page {
    hash: Sha256,
    first: Vec<u8>,
    last: Vec<u8>,
    breaks: usize,
    ends_open: bool,
    bytes: usize,
}

impl Page {
    /// Takes a piece; how many bytes more are kept. `room`: whether any may.
    fn push(&mut self, data: &[u8], room: bool) -> usize {
        self.hash.update(data);
        self.bytes += data.len();
        self.breaks += data.iter().filter(|b| **b == b'\n').count();
        self.ends_open = data.last().is_some_and(|b| *b != b'\n');
        if !room {
            return 0;
        }
        let before = self.first.len() + self.last.len();
        let left = FIRST.saturating_sub(self.first.len()).min(data.len());
        self.first.extend_from_slice(&data[..left]);
        self.last.extend_from_slice(data);
        let over = self.last.len().saturating_sub(LAST);
        self.last.drain(..over);
        (self.first.len() + self.last.len()).saturating_sub(before)
    }

    fn printed(self) -> Printed {
        let lines = |bytes: &[u8]| -> Vec<String> {
            lossy(bytes)
                .lines()
                .map(|line| printable(line.trim_end(), MAX_LINE))
                .collect()
        };
        let count = self.breaks + usize::from(self.ends_open);
        let mut first = lines(&self.first);
        first.truncate(LINES.0);
        let mut last = Vec::new();
        if count > LINES.0 || self.bytes > FIRST {
            last = lines(&self.last);
            let over = last.len().saturating_sub(LINES.1);
            last.drain(..over);
        }
        Printed {
            digest: self.hash.finalize().into(),
            first,
            last,
            count,
        }
    }
}

/// Whoever knows what runs came to.
pub trait Ran: std::fmt::Debug + Send + Sync {
    /// A run as far as it is, and what its nodes printed; `None` where it is
    /// not known any more.
    fn came_to(&self, run: RunId) -> BoxFuture<'_, Option<(RunView, Outputs)>>;

    /// The machine that a run does something with; `None` of every other run.
    fn machine_of(&self, _run: RunId) -> Option<OfMachine> {
        None
    }
}

/// The runs, and which machines they are of.
#[derive(Clone, Debug)]
pub struct RunsAndMachines {
    /// The runs.
    pub engine: Engine,
    /// The machines.
    pub machines: Machines,
}

impl Ran for RunsAndMachines {
    fn came_to(&self, run: RunId) -> BoxFuture<'_, Option<(RunView, Outputs)>> {
        self.engine.came_to(run)
    }

    fn machine_of(&self, run: RunId) -> Option<OfMachine> {
        let vm = self.machines.of_run(run)?;
        Some(OfMachine {
            name: vm.name.clone(),
            is_one_of_many: !vm.order.with.is_empty(),
        })
    }
}

impl Ran for Engine {
    fn came_to(&self, run: RunId) -> BoxFuture<'_, Option<(RunView, Outputs)>> {
        Box::pin(async move {
            self.wait_ready().await;
            let view = match self.show(run).await {
                Ok(view) => view,
                Err(error) => {
                    tracing::warn!(%run, %error, "what a run came to cannot be read for chat");
                    return None;
                }
            };
            let printed = view.main.is_none() && view.results.iter().any(|r| r.output_bytes > 0);
            let outputs = if printed {
                read(self, run).await
            } else {
                Outputs::new()
            };
            Some((view, outputs))
        })
    }
}

/// What they printed; nothing when it cannot be read in time.
async fn read(engine: &Engine, run: RunId) -> Outputs {
    let reading = async {
        let mut pages: HashMap<NodeName, Page> = HashMap::new();
        let mut watch = engine.watch(run, None).await.ok()?;
        let mut kept = 0;
        while let Some(seen) = watch.next().await {
            let Frame::Output {
                node, stream, data, ..
            } = seen.ok()?.frame
            else {
                continue;
            };
            if stream == Stream::Note {
                continue;
            }
            let bytes = data.bytes().unwrap_or_default();
            kept += pages.entry(node).or_default().push(&bytes, kept < ALL);
        }
        let printed = pages.into_iter().map(|(node, page)| (node, page.printed()));
        Some(printed.collect())
    };
    match timeout(WITHIN, reading).await {
        Ok(Some(outputs)) => outputs,
        Ok(None) | Err(_) => {
            tracing::warn!(%run, "what a run printed cannot be read for chat");
            Outputs::new()
        }
    }
}
