//! Outcomes go to the broker until it says that it has them.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use muster_protocol::ids::RequestId;
use muster_protocol::subject::NodeSays;
use muster_protocol::text::printable;
use muster_protocol::wire::{OutcomeAnswer, OutcomeReport, OutputHead, ProofAnswer};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::bus::{Bus, Voice};
use crate::journal::{Journal, JournalError};
use crate::pace::Backoff;

/// How long the broker may take: it answers after the outcome is durable.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Reports on their way at once.
const AT_ONCE: usize = 8;
/// Outcomes looked at in one round.
const BATCH: u32 = 512;
/// Most fresh outcomes that wait in memory to be sent; each holds at most what
/// travels inside a report.
const MAX_FRESH: usize = 64;
/// Most outcomes held in memory because the journal takes none.
const MAX_VOLATILE: usize = 1024;
/// How often a broker is asked to take an outcome without its proof.
const MAX_UNPROVED: u8 = 6;
/// Rounds of missing output before a report waits for its next turn.
const MAX_ROUNDS: usize = 8;

/// The handle by which others say that there is something to report.
#[derive(Clone, Default)]
pub struct Reporter {
    wake: Arc<Notify>,
    /// The broker asks for an outcome.
    asked: Arc<Notify>,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    /// Outcomes that were just written down: to send them, nobody needs to
    /// read them.
    fresh: VecDeque<OutcomeReport>,
    /// The journal has some that are not in `fresh`.
    look: bool,
    /// Acknowledged before, asked for again.
    again: HashSet<RequestId>,
    /// Of these, those that were asked for since they were sent last.
    urgent: HashSet<RequestId>,
    /// Not in the journal, because it could not be written.
    volatile: HashMap<RequestId, OutcomeReport>,
    order: VecDeque<RequestId>,
    /// How often a broker wanted proof that is not here.
    unproved: HashMap<RequestId, u8>,
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

    /// There may be outcomes in the journal.
    pub fn wake(&self) {
        self.inner().look = true;
        self.wake.notify_one();
    }

    /// There is a new outcome in the journal, and this is it.
    pub fn fresh(&self, report: OutcomeReport) {
        {
            let mut inner = self.inner();
            // What does not fit is read when there is time.
            if inner.fresh.len() < MAX_FRESH {
                inner.fresh.push_back(report);
            } else {
                inner.look = true;
            }
        }
        self.wake.notify_one();
    }

    /// What has come since this was last asked; and whether the journal has
    /// to be looked through.
    fn news(&self) -> (VecDeque<OutcomeReport>, bool) {
        let mut inner = self.inner();
        let look = std::mem::take(&mut inner.look);
        (std::mem::take(&mut inner.fresh), look)
    }

    /// The broker asked again for an outcome that is in the journal.
    pub fn again(&self, request: RequestId) {
        {
            let mut inner = self.inner();
            if inner.again.len() < MAX_VOLATILE {
                inner.again.insert(request);
                inner.urgent.insert(request);
            }
        }
        self.asked.notify_waiters();
        self.wake();
    }

    /// Waits until the broker asks for an outcome that is on its way.
    async fn asked_again(&self, request: RequestId) {
        loop {
            let asked = self.asked.notified();
            tokio::pin!(asked);
            // From here on no question is missed.
            asked.as_mut().enable();
            if self.inner().urgent.remove(&request) {
                return;
            }
            asked.await;
        }
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

    /// Sends until `stop`. What is asked for again goes out at once, also while
    /// an answer to it is still waited for: the broker that was to give it may
    /// have ended.
    pub async fn run(self, journal: Journal, mut bus: Bus, stop: CancellationToken) {
        let mut waiting: HashMap<RequestId, (Backoff, Instant)> = HashMap::new();
        loop {
            let voice = tokio::select! {
                () = stop.cancelled() => return,
                voice = bus.welcomed() => voice,
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.session(&journal, &voice, &mut waiting) => {}
                () = bus.changed() => waiting.clear(),
            }
        }
    }

    /// Sends on one connection, for as long as it is there.
    async fn session(
        &self,
        journal: &Journal,
        voice: &Voice,
        waiting: &mut HashMap<RequestId, (Backoff, Instant)>,
    ) {
        let mut away: HashSet<RequestId> = HashSet::new();
        let mut sending = FuturesUnordered::new();
        let mut queue: VecDeque<OutcomeReport> = VecDeque::new();
        let mut look = true;
        let mut more = false;
        loop {
            let (fresh, asked) = self.news();
            if std::mem::take(&mut look) || asked {
                match self.due(journal, waiting, &away).await {
                    Ok(due) => {
                        more = due.len() >= BATCH as usize;
                        queue = due.into();
                    }
                    Err(e) => warn!("outcomes cannot be read from the journal: {e}"),
                }
            }
            for report in fresh {
                let known = |other: &OutcomeReport| other.request == report.request;
                if !away.contains(&report.request) && !queue.iter().any(known) {
                    queue.push_back(report);
                }
            }
            while away.len() < AT_ONCE
                && let Some(report) = queue.pop_front()
            {
                away.insert(report.request);
                sending.push(self.send(journal, voice, report));
            }
            let next = waiting
                .iter()
                .filter(|(id, _)| !away.contains(id))
                .map(|(_, (_, at))| *at)
                .min();
            tokio::select! {
                Some((request, done)) = sending.next() => {
                    away.remove(&request);
                    if done {
                        waiting.remove(&request);
                    } else {
                        let first = || Backoff::new(Duration::from_millis(500), Duration::from_secs(60));
                        let now = Instant::now();
                        let entry = waiting.entry(request).or_insert_with(|| (first(), now));
                        entry.1 = now + entry.0.wait();
                    }
                    // More than fits into one look.
                    look = more && queue.is_empty();
                }
                () = self.wake.notified() => {}
                () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() && away.len() < AT_ONCE => {
                    look = true;
                }
            }
        }
    }

    /// Sends what is there once, for an agent that ends.
    pub async fn flush(&self, journal: &Journal, voice: &Voice) {
        let (mut waiting, away) = (HashMap::new(), HashSet::new());
        if let Ok(due) = self.due(journal, &mut waiting, &away).await {
            futures_util::stream::iter(due)
                .map(|report| self.send(journal, voice, report))
                .buffer_unordered(AT_ONCE)
                .collect::<Vec<_>>()
                .await;
        }
    }

    /// What is to be sent now and is not on its way (`away`).
    async fn due(
        &self,
        journal: &Journal,
        waiting: &mut HashMap<RequestId, (Backoff, Instant)>,
        away: &HashSet<RequestId>,
    ) -> Result<Vec<OutcomeReport>, JournalError> {
        let mut ids = journal.unacknowledged(BATCH).await?;
        let mut volatile: Vec<OutcomeReport> = Vec::new();
        let urgent: HashSet<RequestId>;
        {
            let mut inner = self.inner();
            ids.extend(inner.again.iter());
            // What is on its way hears of it there.
            urgent = inner.urgent.extract_if(|id| !away.contains(id)).collect();
            volatile.extend(inner.volatile.values().cloned());
        }
        let known: HashSet<RequestId> = ids
            .iter()
            .copied()
            .chain(volatile.iter().map(|r| r.request))
            .collect();
        waiting.retain(|id, _| known.contains(id));
        let now = Instant::now();
        let is_due = |id: &&RequestId| {
            let waits = waiting.get(*id).is_some_and(|(_, at)| *at > now);
            !away.contains(*id) && (!waits || urgent.contains(*id))
        };
        let mut due = Vec::new();
        let ids: Vec<&RequestId> = known.iter().filter(is_due).collect();
        for id in ids {
            if let Some(report) = volatile.iter().find(|r| r.request == *id) {
                due.push(report.clone());
            } else if let Some(report) = journal.report(*id).await? {
                due.push(report);
            } else {
                // Thrown away for its age meanwhile.
                self.inner().again.remove(id);
                waiting.remove(id);
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
            let asked = voice.ask(NodeSays::Outcome, &report, ANSWER_WITHIN);
            let answer = tokio::select! {
                answer = asked => answer,
                () = self.asked_again(request) => continue,
            };
            let answer = match answer {
                Ok(answer) => answer,
                Err(e) => {
                    debug!(run = %request.run, step = request.step, "the outcome is not acknowledged: {e}");
                    return (request, false);
                }
            };
            match serde_json::from_slice(&answer) {
                Ok(OutcomeAnswer::Stored) => {}
                Ok(OutcomeAnswer::Unknown) => self.disowned(journal, request).await,
                Ok(OutcomeAnswer::Prove) => match self.prove(journal, voice, request).await {
                    Proved::Taken => continue,
                    Proved::NotNow => return (request, false),
                    Proved::Never => self.disowned(journal, request).await,
                },
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
                inner.again.remove(&request);
                inner.urgent.remove(&request);
                inner.volatile.remove(&request);
                inner.order.retain(|id| *id != request);
                inner.unproved.remove(&request);
            }
            journal.acknowledged(request);
            place("agent.acknowledged").await;
            return (request, true);
        }
        (request, false)
    }
}

/// What came of showing a broker what it once signed.
enum Proved {
    /// The run is in its journal again.
    Taken,
    /// It must be tried again.
    NotNow,
    /// It does not want it.
    Never,
}

impl Reporter {
    /// No broker will ever want this outcome.
    async fn disowned(&self, journal: &Journal, request: RequestId) {
        warn!(run = %request.run, step = request.step, "the broker does not know this run; its outcome stays here only");
        if let Err(e) = journal.drop_request(request).await {
            debug!("a request that nobody wants is not thrown away: {e}");
        }
    }

    /// Sends the request of a run that the broker has lost, as it was signed.
    async fn prove(&self, journal: &Journal, voice: &Voice, request: RequestId) -> Proved {
        let (run, step) = (request.run, request.step);
        let sealed = match journal.request(request).await {
            Ok(Some(sealed)) => sealed,
            // Kept from starting by a cancel, or kept no longer. Another node
            // of the run may have it, so it is tried for a while.
            Ok(None) => {
                let mut inner = self.inner();
                if inner.unproved.len() > MAX_VOLATILE {
                    inner.unproved.clear();
                }
                let tries = inner.unproved.entry(request).or_default();
                *tries += 1;
                return if *tries < MAX_UNPROVED {
                    Proved::NotNow
                } else {
                    Proved::Never
                };
            }
            Err(e) => {
                warn!(%run, step, "a kept request cannot be read: {e}");
                return Proved::NotNow;
            }
        };
        let key = sealed.key;
        for _ in 0..2 {
            let answer = match voice.prove(sealed.clone(), ANSWER_WITHIN).await {
                Ok(answer) => answer,
                Err(e) => {
                    debug!(%run, step, "the broker does not answer to a request of its own: {e}");
                    return Proved::NotNow;
                }
            };
            match serde_json::from_slice(&answer) {
                Ok(ProofAnswer::Taken) => {
                    info!(%run, step, "the broker had lost this run, and has it again");
                    return Proved::Taken;
                }
                Ok(ProofAnswer::UnknownKey) => {
                    let Ok(Some(list)) = journal.list_with(key).await else {
                        return Proved::Never;
                    };
                    if let Err(e) = voice.ask(NodeSays::Keys, &list, ANSWER_WITHIN).await {
                        debug!("the broker does not take a list of its keys: {e}");
                        return Proved::NotNow;
                    }
                }
                Ok(ProofAnswer::Later { .. }) => return Proved::NotNow,
                Ok(ProofAnswer::Refused { reason }) => {
                    warn!(%run, step, "the broker does not take its own request for a proof: {}", printable(&reason, 300));
                    return Proved::Never;
                }
                Err(e) => {
                    warn!(%run, step, "the broker's answer to a proof cannot be read: {e}");
                    return Proved::NotNow;
                }
            }
        }
        Proved::NotNow
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
