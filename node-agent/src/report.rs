//! Outcomes go to the broker until it says that it has them.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use muster_protocol::ids::RequestId;
use muster_protocol::subject::NodeSays;
use muster_protocol::wire::{OutcomeAnswer, OutcomeReport, OutputHead};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::bus::{Bus, Voice};
use crate::journal::{Journal, JournalError};
use crate::pace::Backoff;

/// How long the broker may take: it answers after the outcome is durable.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Reports on their way at once.
const AT_ONCE: usize = 8;
/// Outcomes looked at in one round.
const BATCH: u32 = 512;
/// Most outcomes held in memory because the journal takes none.
const MAX_VOLATILE: usize = 1024;
/// Rounds of missing output before a report waits for its next turn.
const MAX_ROUNDS: usize = 8;

/// The handle by which others say that there is something to report.
#[derive(Clone, Default)]
pub struct Reporter {
    wake: Arc<Notify>,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    /// Acknowledged before, asked for again.
    again: HashSet<RequestId>,
    /// Not in the journal, because it could not be written.
    volatile: HashMap<RequestId, OutcomeReport>,
    order: VecDeque<RequestId>,
}

impl Reporter {
    /// One that nobody runs yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There is a new outcome in the journal.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    /// The broker asked again for an outcome that is in the journal.
    pub fn again(&self, request: RequestId) {
        {
            let mut inner = self.inner();
            if inner.again.len() < MAX_VOLATILE {
                inner.again.insert(request);
            }
        }
        self.wake();
    }

    /// An outcome that could not be journaled.
    pub fn volatile(&self, report: OutcomeReport) {
        {
            let mut inner = self.inner();
            if inner.volatile.contains_key(&report.request) {
                return;
            }
            inner.order.push_back(report.request);
            inner.volatile.insert(report.request, report);
            if inner.order.len() > MAX_VOLATILE
                && let Some(oldest) = inner.order.pop_front()
            {
                inner.volatile.remove(&oldest);
            }
        }
        self.wake();
    }

    /// Whether that request has an outcome that is only in memory; it is sent
    /// again then.
    #[must_use]
    pub fn holds(&self, request: RequestId) -> bool {
        self.inner().volatile.contains_key(&request)
    }

    /// Sends until `stop`.
    pub async fn run(self, journal: Journal, mut bus: Bus, stop: CancellationToken) {
        let mut waiting: HashMap<RequestId, (Backoff, Instant)> = HashMap::new();
        loop {
            let voice = tokio::select! {
                () = stop.cancelled() => return,
                voice = bus.welcomed() => voice,
            };
            let due = match self.due(&journal, &mut waiting).await {
                Ok(due) => due,
                Err(e) => {
                    warn!("outcomes cannot be read from the journal: {e}");
                    Vec::new()
                }
            };
            let sent: Vec<(RequestId, bool)> = futures_util::stream::iter(due)
                .map(|report| self.send(&journal, &voice, report))
                .buffer_unordered(AT_ONCE)
                .collect()
                .await;
            let now = Instant::now();
            for (request, done) in sent {
                if done {
                    waiting.remove(&request);
                } else {
                    let entry = waiting.entry(request).or_insert_with(|| {
                        (
                            Backoff::new(Duration::from_millis(500), Duration::from_secs(60)),
                            now,
                        )
                    });
                    entry.1 = now + entry.0.wait();
                }
            }
            let next = waiting.values().map(|(_, at)| *at).min();
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.wake.notified() => {}
                () = bus.changed() => waiting.clear(),
                () = tokio::time::sleep_until(next.unwrap_or(now)), if next.is_some() => {}
            }
        }
    }

    /// Sends what is there once, for an agent that ends.
    pub async fn flush(&self, journal: &Journal, voice: &Voice) {
        if let Ok(due) = self.due(journal, &mut HashMap::new()).await {
            futures_util::stream::iter(due)
                .map(|report| self.send(journal, voice, report))
                .buffer_unordered(AT_ONCE)
                .collect::<Vec<_>>()
                .await;
        }
    }

    async fn due(
        &self,
        journal: &Journal,
        waiting: &mut HashMap<RequestId, (Backoff, Instant)>,
    ) -> Result<Vec<OutcomeReport>, JournalError> {
        let mut ids = journal.unacknowledged(BATCH).await?;
        let mut volatile: Vec<OutcomeReport> = Vec::new();
        {
            let mut inner = self.inner();
            ids.extend(inner.again.drain());
            volatile.extend(inner.volatile.values().cloned());
        }
        let known: HashSet<RequestId> = ids
            .iter()
            .copied()
            .chain(volatile.iter().map(|r| r.request))
            .collect();
        waiting.retain(|id, _| known.contains(id));
        let now = Instant::now();
        let is_due = |id: &RequestId| waiting.get(id).is_none_or(|(_, at)| *at <= now);
        let mut due = Vec::new();
        for id in known.iter().filter(|id| is_due(id)) {
            if let Some(report) = volatile.iter().find(|r| r.request == *id) {
                due.push(report.clone());
            } else if let Some(report) = journal.report(*id).await? {
                due.push(report);
            }
        }
        Ok(due)
    }

    /// Sends one, with what the broker misses of its output; whether it is
    /// done with.
    async fn send(
        &self,
        journal: &Journal,
        voice: &Voice,
        report: OutcomeReport,
    ) -> (RequestId, bool) {
        let request = report.request;
        let place = |point| muster_checkpoint::at(point, move || request.run.to_string());
        place("agent.report.before").await;
        for _ in 0..MAX_ROUNDS {
            let answer = match voice.ask(NodeSays::Outcome, &report, ANSWER_WITHIN).await {
                Ok(answer) => answer,
                Err(e) => {
                    debug!(run = %request.run, step = request.step, "the outcome is not acknowledged: {e}");
                    return (request, false);
                }
            };
            match serde_json::from_slice(&answer) {
                Ok(OutcomeAnswer::Stored) => {}
                Ok(OutcomeAnswer::Unknown) => {
                    warn!(run = %request.run, step = request.step, "the broker does not know this run; its outcome stays here only");
                }
                Ok(OutcomeAnswer::Missing { chunks }) => {
                    if let Err(e) = fill(journal, voice, request, &chunks).await {
                        debug!(run = %request.run, step = request.step, "output is not sent again: {e}");
                        return (request, false);
                    }
                    continue;
                }
                Err(e) => {
                    warn!(run = %request.run, step = request.step, "the broker's answer to an outcome cannot be read: {e}");
                    return (request, false);
                }
            }
            place("agent.report.after").await;
            {
                let mut inner = self.inner();
                inner.volatile.remove(&request);
                inner.order.retain(|id| *id != request);
            }
            if let Err(e) = journal.acknowledged(request).await {
                debug!("the acknowledgement cannot be noted: {e}");
            }
            place("agent.acknowledged").await;
            return (request, true);
        }
        (request, false)
    }
}

async fn fill(
    journal: &Journal,
    voice: &Voice,
    request: RequestId,
    chunks: &[u32],
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    for number in chunks {
        if let Some(chunk) = journal.chunk(request, *number).await? {
            let head = OutputHead {
                request,
                chunk: chunk.number,
                stream: chunk.stream,
            };
            voice.output(&head, chunk.data).await?;
        }
    }
    Ok(voice.flush().await?)
}
