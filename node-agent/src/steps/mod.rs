//! Steps: each request is executed at most once, and always accounted for.
//!
//! ```text
//! known? → predicate → granted? → room? → [queued] → started on disk
//!        → effect → finished on disk → reported
//! ```

mod again;
mod live;
pub(crate) mod recover;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use muster_protocol::envelope::{Call, MAX_SKEW, Request, Sealed};
use muster_protocol::ids::{InstanceId, RequestId};
use muster_protocol::run::{Data, NodeResult, Outcome};
use muster_protocol::seal::{OpenKey, SealError, SecretBox};
use muster_protocol::subject::NodeSays;
use muster_protocol::text::printable;
use muster_protocol::units::{Timestamp, after, elapsed};
use muster_protocol::wire::{Accepted, InlineChunk, OutcomeReport};
use muster_scenarios::secret::Secrets;
use serde_json::Value;
use tokio::sync::{Notify, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, error, info, info_span, warn};

use crate::bus::Bus;
use crate::config::Limits;
use crate::executor::{Executor, Step};
use crate::freeze::Frost;
use crate::identity::Identity;
use crate::journal::{Chunk, Entry, Journal, Kept, StartNote};
use crate::pace::Backoff;
use crate::report::Reporter;
use crate::view::NodeView;
use live::{Live, Output};

/// A step that takes longer is acknowledged; a quicker one only says its
/// outcome.
const QUICK: Duration = Duration::from_millis(200);

/// What steps need of the agent.
pub struct StepsParts {
    /// Whether anything is begun.
    pub frost: Frost,
    /// Where they are written down.
    pub journal: Journal,
    /// Where output and acknowledgements go.
    pub bus: Bus,
    /// Where outcomes go.
    pub reporter: Reporter,
    /// Who this node is.
    pub identity: Identity,
    /// This start of the agent.
    pub instance: InstanceId,
    /// This start of the machine.
    pub boot_id: String,
    /// Bounds.
    pub limits: Limits,
    /// Who executes.
    pub executor: Arc<dyn Executor>,
    /// The facts that the predicate is held against.
    pub facts: watch::Receiver<Arc<Value>>,
    /// Opens the secret parameters that come for steps.
    pub key: OpenKey,
}

/// All steps of this agent.
#[derive(Clone)]
pub struct Steps(Arc<Inner>);

struct Inner {
    parts: StepsParts,
    slots: Semaphore,
    running: AtomicU32,
    /// Bytes of output that came since somebody asked.
    output: AtomicU64,
    active: Mutex<Book>,
    /// A step has left `active`.
    left: Notify,
    /// The agent ends.
    closing: CancellationToken,
}

/// Whether steps are taken.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum Doors {
    #[default]
    Open,
    /// The running ones are waited for, for an upgrade; new ones are
    /// declined.
    Draining,
    /// Nobody is answered: whoever comes after this agent may.
    Closed,
}

/// The steps that wait or run.
#[derive(Default)]
struct Book {
    doors: Doors,
    steps: HashMap<RequestId, Active>,
}

/// A step that waits or runs.
#[derive(Clone, Default)]
struct Active {
    cancel: CancellationToken,
    /// Why it was cancelled.
    why: Arc<OnceLock<&'static str>>,
}

impl Active {
    fn cancel(&self, why: &'static str) {
        let _ = self.why.set(why);
        self.cancel.cancel();
    }
}

impl Steps {
    /// None yet.
    #[must_use]
    pub fn new(parts: StepsParts) -> Self {
        Self(Arc::new(Inner {
            slots: Semaphore::new(parts.limits.concurrent.into()),
            parts,
            running: AtomicU32::new(0),
            output: AtomicU64::new(0),
            active: Mutex::default(),
            left: Notify::new(),
            closing: CancellationToken::new(),
        }))
    }

    /// How many run now.
    #[must_use]
    pub fn running(&self) -> u32 {
        self.0.running.load(Ordering::Relaxed)
    }

    /// Bytes of output that ended steps have left since this was last asked
    /// with `reset`.
    pub fn output(&self, reset: bool) -> u64 {
        if reset {
            self.0.output.swap(0, Ordering::Relaxed)
        } else {
            self.0.output.load(Ordering::Relaxed)
        }
    }

    /// What this node grants, by name.
    #[must_use]
    pub fn capabilities(&self) -> Vec<String> {
        self.0.parts.executor.capabilities()
    }

    /// Does what an authentic request asks, or answers for it. `sealed` is the
    /// request as it came, to be kept; `secrets` came beside it, and are not.
    pub async fn call(
        &self,
        request: &Request,
        call: &Call,
        sealed: Sealed,
        secrets: Option<SecretBox>,
    ) {
        let inner = &self.0;
        let id = request.id();
        let (active, others, doors) = match inner.enter(id) {
            Entered::Fresh {
                active,
                others,
                doors,
            } => (active, others, doors),
            // The broker sends it again, and whoever comes after this agent
            // may answer.
            Entered::Closed => return,
            Entered::Known => {
                let _ = inner
                    .parts
                    .bus
                    .say(NodeSays::Accepted, &Accepted { request: id })
                    .await;
                return;
            }
        };
        let guard = Leave {
            inner: inner.clone(),
            id,
        };
        if inner.answer_again(id).await {
            return;
        }
        let kept = inner.kept(sealed);
        let judged = match doors {
            Doors::Draining => Err(
                "this agent waits for its running steps to end, to upgrade itself; \
                 try again in a minute"
                    .to_owned(),
            ),
            _ => match inner.frozen(request.promised).await {
                Some(why) => Err(why),
                None => inner.judge(request, call, others),
            },
        };
        let judged = judged.and_then(|()| match inner.opened(call, secrets.as_ref()) {
            // Sealed to a start of the agent that has ended. The broker knows
            // of this one now, and sends it again.
            Err(SealError::NotOurs) => Ok(None),
            Err(e) => Err(e.to_string()),
            Ok(secrets) => Ok(Some(secrets)),
        });
        let secrets = match judged {
            Ok(Some(secrets)) => secrets,
            Ok(None) => {
                warn!(run = %request.run, "a call is not followed: {}", SealError::NotOurs);
                return;
            }
            Err(reason) => {
                inner.keep(id, kept).await;
                let declined = inner.result(Outcome::Declined, reason);
                inner.end(id, declined, Output::default()).await;
                return;
            }
        };
        let span = info_span!(
            "step",
            run = %request.run,
            step = request.step,
            node = %inner.parts.identity.now().assignment().name
        );
        inner.place("agent.verified", id).await;
        let order = Order {
            call: call.clone(),
            promised: request.promised,
            start_before: request.start_before,
            kept,
            secrets,
        };
        let (inner, principal) = (inner.clone(), request.principal.clone());
        tokio::spawn(
            async move {
                let _guard = guard;
                info!(%principal, scenario = %order.call.scenario, "step");
                Box::pin(inner.run(id, order, &active)).await;
            }
            .instrument(span),
        );
    }

    /// Answers an authentic request that this node does not follow.
    pub async fn decline(&self, id: RequestId, reason: String, sealed: Sealed) {
        let inner = &self.0;
        let Entered::Fresh { .. } = inner.enter(id) else {
            return;
        };
        let _guard = Leave {
            inner: inner.clone(),
            id,
        };
        if !inner.answer_again(id).await {
            inner.keep(id, inner.kept(sealed)).await;
            inner
                .end(
                    id,
                    inner.result(Outcome::Declined, reason),
                    Output::default(),
                )
                .await;
        }
    }

    /// Ends a step, or keeps it from ever starting.
    pub async fn cancel(&self, id: RequestId) {
        let inner = &self.0;
        match inner.enter(id) {
            Entered::Fresh { .. } => {}
            Entered::Closed => return,
            Entered::Known => {
                let active = inner.active().steps.get(&id).cloned();
                if let Some(active) = active {
                    info!(run = %id.run, step = id.step, "cancelled");
                    active.cancel("cancelled");
                }
                return;
            }
        }
        let _guard = Leave {
            inner: inner.clone(),
            id,
        };
        if !inner.answer_again(id).await {
            let result = inner.result(Outcome::Cancelled, "cancelled before it started");
            inner.end(id, result, Output::default()).await;
        }
    }

    /// Takes no more steps, waits for those that run, and ends those that
    /// still run after `grace`. The journal has all of them when it returns.
    pub async fn stop(&self, grace: Duration) {
        let inner = &self.0;
        inner.active().doors = Doors::Closed;
        inner.closing.cancel();
        if tokio::time::timeout(grace, inner.left(0)).await.is_err() {
            let open: Vec<Active> = inner.active().steps.values().cloned().collect();
            warn!("{} steps still run; they are ended", open.len());
            for active in open {
                active.cancel("the agent was stopped");
            }
            // The kill grace, the kill, and the journal.
            let _ = tokio::time::timeout(Duration::from_secs(15), inner.left(0)).await;
        }
    }

    /// Declines new steps and waits until only `but` is left; from then on
    /// nobody is answered.
    ///
    /// # Errors
    /// How many others still run at `until`; steps are taken again then.
    pub async fn drain(&self, but: RequestId, until: tokio::time::Instant) -> Result<(), usize> {
        let inner = &self.0;
        {
            let mut book = inner.active();
            if book.doors == Doors::Closed {
                return Err(book.steps.len());
            }
            book.doors = Doors::Draining;
        }
        loop {
            let idle = tokio::time::timeout_at(until, inner.left(1)).await.is_ok();
            let mut book = inner.active();
            let others = book.steps.keys().filter(|id| **id != but).count();
            if others == 0 {
                book.doors = Doors::Closed;
                return Ok(());
            }
            if !idle {
                book.doors = Doors::Open;
                return Err(others);
            }
        }
    }

    /// Takes steps again, after [`Steps::drain`].
    pub fn open(&self) {
        self.0.active().doors = Doors::Open;
    }
}

/// What a step needs to run.
struct Order {
    call: Call,
    /// It is done also where nothing new is begun.
    promised: bool,
    start_before: Timestamp,
    kept: Kept,
    /// Only ever here.
    secrets: Secrets,
}

/// A step that runs.
struct Running<'a>(&'a AtomicU32);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What came of a request to be on the list.
enum Entered {
    /// It is on it now.
    Fresh {
        active: Active,
        /// How many others are on it.
        others: usize,
        doors: Doors,
    },
    /// It was on it.
    Known,
    /// Nothing is taken.
    Closed,
}

/// Takes a step off the list, however its task ends.
struct Leave {
    inner: Arc<Inner>,
    id: RequestId,
}

impl Drop for Leave {
    fn drop(&mut self) {
        self.inner.active().steps.remove(&self.id);
        self.inner.left.notify_waiters();
    }
}

impl Inner {
    /// A place at which a test may hold this agent.
    async fn place(&self, point: &'static str, id: RequestId) {
        let identity = &self.parts.identity;
        muster_checkpoint::at(point, || {
            format!("{} {}", id.run, identity.now().assignment().name)
        })
        .await;
    }

    fn active(&self) -> std::sync::MutexGuard<'_, Book> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a step on the list.
    fn enter(&self, id: RequestId) -> Entered {
        let mut book = self.active();
        if book.doors == Doors::Closed {
            return Entered::Closed;
        }
        if book.steps.contains_key(&id) {
            return Entered::Known;
        }
        Entered::Fresh {
            others: book.steps.len(),
            doors: book.doors,
            active: book.steps.entry(id).or_default().clone(),
        }
    }

    /// Returns when at most so many are on the list.
    async fn left(&self, at_most: usize) {
        loop {
            let mut left = std::pin::pin!(self.left.notified());
            // Before the look: whoever leaves after it is noticed.
            left.as_mut().enable();
            if self.active().steps.len() <= at_most {
                return;
            }
            left.await;
        }
    }

    fn result(&self, outcome: Outcome, reason: impl Into<String>) -> NodeResult {
        NodeResult::new(self.parts.identity.now().serial(), outcome, reason)
    }

    /// Whether the request was answered for before; the outcome is sent
    /// again then. A journal that cannot be read counts as such, because
    /// nobody knows.
    async fn answer_again(&self, id: RequestId) -> bool {
        if self.parts.reporter.holds(id) {
            self.parts.reporter.wake();
            return true;
        }
        match self.parts.journal.look(id).await {
            Ok(None) => false,
            Ok(Some(Entry::Finished)) => {
                self.parts.reporter.again(id);
                true
            }
            // Rows of an earlier start are answered for when the agent
            // begins; until then the broker asks again.
            Ok(Some(Entry::Queued | Entry::Started)) => true,
            Err(e) => {
                error!(run = %id.run, step = id.step, "nothing is executed: {e}");
                true
            }
        }
    }

    /// Why nothing is begun here now, if so.
    async fn frozen(&self, promised: bool) -> Option<String> {
        if promised {
            return None;
        }
        self.parts.frost.reason().await
    }

    /// The node's own checks.
    fn judge(&self, request: &Request, call: &Call, others: usize) -> Result<(), String> {
        let enrolled = self.parts.identity.now();
        let facts = self.parts.facts.borrow().clone();
        NodeView {
            assignment: enrolled.assignment(),
            facts: &facts,
        }
        .check(&request.predicate)?;
        self.parts
            .executor
            .check(call)
            .map_err(|e| printable(&e.to_string(), 500))?;
        let limits = &self.parts.limits;
        if others >= usize::from(limits.concurrent) + usize::from(limits.queued) {
            return Err(format!(
                "busy: {} steps run and {} wait, which is as many as this node takes",
                limits.concurrent, limits.queued
            ));
        }
        Ok(())
    }

    /// The secret parameters that came for a call.
    fn opened(&self, call: &Call, sealed: Option<&SecretBox>) -> Result<Secrets, SealError> {
        let Some(hash) = call.secrets else {
            return Ok(Secrets::default());
        };
        let sealed = sealed.ok_or(SealError::Other)?;
        self.parts.key.open(sealed, hash).map(Secrets::new)
    }

    async fn run(self: &Arc<Self>, id: RequestId, order: Order, active: &Active) {
        let live = Live::new(id, self.parts.journal.clone(), self.parts.bus.clone());
        let slow = live.clone();
        let bus = self.parts.bus.clone();
        // Says that it goes on, once it is no longer quick.
        let acknowledge = tokio::spawn(async move {
            tokio::time::sleep(QUICK).await;
            let _ = bus.say(NodeSays::Accepted, &Accepted { request: id }).await;
            slow.go_live().await;
        });
        let result = self.execute(id, order, active, &live).await;
        acknowledge.abort();
        if let Some(result) = result {
            self.conclude(id, result, active, &live).await;
        }
    }

    /// A step has ended: its outcome, with what it wrote.
    async fn conclude(&self, id: RequestId, mut result: NodeResult, active: &Active, live: &Live) {
        let output = live.close().await;
        result.truncated |= output.lost;
        result.output_bytes += output.before;
        if let (Outcome::Cancelled, Some(why)) = (result.outcome, active.why.get()) {
            result.reason = Some(match result.reason.take() {
                Some(reason) if *why != "cancelled" => format!("{why}; {reason}"),
                Some(reason) => reason,
                None => (*why).to_owned(),
            });
        }
        info!(outcome = %result.outcome, exit = result.exit, ms = result.ms, "step ended");
        self.end(id, result, output).await;
    }

    /// Counts a step that runs, until the end of what is returned.
    fn run_one(&self) -> Running<'_> {
        self.running.fetch_add(1, Ordering::Relaxed);
        Running(&self.running)
    }

    /// Waits for a slot, writes `started` down, and only then acts.
    async fn execute(
        self: &Arc<Self>,
        id: RequestId,
        order: Order,
        active: &Active,
        live: &Live,
    ) -> Option<NodeResult> {
        let Order {
            call,
            promised,
            start_before,
            kept,
            secrets,
        } = order;
        let unwritten = |e: crate::journal::JournalError| {
            error!("nothing is executed: {e}");
            Some(self.result(
                Outcome::Declined,
                format!("nothing was executed, because it cannot be journaled here: {e}"),
            ))
        };
        let mut queued = false;
        let left = elapsed(Timestamp::now(), after(start_before, MAX_SKEW));
        let until = tokio::time::Instant::now() + left;
        if let Some(fetching) = self.parts.executor.fetch(&call, until) {
            self.place("agent.queue.before", id).await;
            if let Err(e) = self.parts.journal.queue(id, kept.clone()).await {
                return unwritten(e);
            }
            self.place("agent.queue.after", id).await;
            queued = true;
            let fetched = tokio::select! {
                fetched = fetching => fetched,
                () = active.cancel.cancelled() => {
                    return Some(self.result(Outcome::Cancelled, "cancelled before it started"));
                }
            };
            if let Err(reason) = fetched {
                return Some(self.result(Outcome::Declined, printable(&reason, 500)));
            }
        }
        let slot = match self.slots.try_acquire() {
            Ok(slot) => slot,
            Err(_) => {
                if !queued {
                    self.place("agent.queue.before", id).await;
                    if let Err(e) = self.parts.journal.queue(id, kept.clone()).await {
                        return unwritten(e);
                    }
                    self.place("agent.queue.after", id).await;
                }
                tokio::select! {
                    slot = self.slots.acquire() => slot.ok()?,
                    () = active.cancel.cancelled() => {
                        return Some(self.result(Outcome::Cancelled, "cancelled before it started"));
                    }
                }
            }
        };
        if active.cancel.is_cancelled() {
            return Some(self.result(Outcome::Cancelled, "cancelled before it started"));
        }
        let now = Timestamp::now();
        if now > after(start_before, MAX_SKEW) {
            return Some(self.result(
                Outcome::Declined,
                format!("it waited here for its turn until {now}, but had to start before {start_before}"),
            ));
        }
        let limits = &self.parts.limits;
        let timeout = call.limits.timeout.get().min(limits.timeout.get());
        let note = StartNote {
            instance: self.parts.instance,
            boot_id: self.parts.boot_id.clone(),
            timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
        };
        // From here to where it is begun nothing freezes this node.
        let begin = match self.parts.frost.begin().await {
            Ok(begin) => Some(begin),
            Err(_) if promised => None,
            Err(why) => return Some(self.result(Outcome::Declined, why)),
        };
        if let Err(reason) = self.parts.executor.prepare(&call, id).await {
            return Some(self.result(Outcome::Declined, printable(&reason, 500)));
        }
        self.place("agent.start.before", id).await;
        if let Err(e) = self.parts.journal.start(id, note, kept).await {
            self.parts.executor.abandon(id);
            return unwritten(e);
        }
        drop(begin);
        self.place("agent.start.after", id).await;
        let running = self.run_one();
        let deadline = tokio::time::Instant::now() + timeout;
        let enrolled = self.parts.identity.now();
        let mut sink = live.clone();
        let step = Step {
            request: id,
            serial: enrolled.serial(),
            name: enrolled.assignment().name.clone(),
            assignment: enrolled.assignment(),
            facts: self.parts.facts.borrow().clone(),
            timeout,
            output_bytes: call.limits.output_bytes.min(limits.output_bytes),
            sink: &mut sink,
            cancel: &active.cancel,
            secrets,
            restarts: Some(Arc::new(again::Remember {
                inner: Arc::clone(self),
                id,
                call: call.clone(),
                until: after(Timestamp::now(), timeout),
            })),
            resume: None,
            begins_with: None,
        };
        let result = self.parts.executor.call(&call, step).await;
        drop((running, slot));
        match result {
            Some(result) => Some(result),
            None => {
                // Nobody waits for the end to see what it wrote.
                live.go_live().await;
                self.restarts(id, deadline, timeout).await
            }
        }
    }

    fn kept(&self, request: Sealed) -> Kept {
        Kept {
            request,
            list: self.parts.identity.now().stored.keys.clone(),
        }
    }

    /// Keeps the request of a step that never begins.
    async fn keep(&self, id: RequestId, kept: Kept) {
        if let Err(e) = self.parts.journal.keep(id, kept).await {
            // Its outcome is worth more; whether that can be written shows.
            warn!(run = %id.run, step = id.step, "a request cannot be kept: {e}");
        }
    }

    /// Writes an outcome down and has it reported. A full disk is waited
    /// out where something was executed: its outcome must not be lost.
    async fn end(&self, id: RequestId, mut result: NodeResult, mut output: Output) {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
        let executed = result.ms.is_some();
        self.output
            .fetch_add(result.output_bytes, Ordering::Relaxed);
        self.place("agent.finish.before", id).await;
        loop {
            let (chunks, inline) = (output.chunks, !output.inline.is_empty());
            let journal = &self.parts.journal;
            let e = match journal.finish(id, result.clone(), chunks, inline).await {
                Ok(true) => break,
                // It has another end, which counts.
                Ok(false) => return self.parts.reporter.wake(),
                Err(e) => e,
            };
            error!(run = %id.run, step = id.step, "the outcome cannot be journaled: {e}");
            if !executed {
                output = Output::default();
                return self.parts.reporter.volatile(report(id, result, output));
            }
            // Room for the outcome is worth more than output.
            if chunks > 0 && journal.drop_output(id).await.is_ok() {
                result.truncated = true;
                result.output_bytes = 0;
                output = Output::default();
            }
            tokio::time::sleep(backoff.wait()).await;
        }
        self.place("agent.finish.after", id).await;
        self.parts.reporter.fresh(report(id, result, output));
    }
}

/// As the journal would give it.
fn report(request: RequestId, result: NodeResult, output: Output) -> OutcomeReport {
    let inline = |chunk: Chunk| InlineChunk {
        chunk: chunk.number,
        stream: chunk.stream,
        data: Data::new(&chunk.data),
    };
    OutcomeReport {
        request,
        result,
        chunks: output.chunks,
        inline: output.inline.into_iter().map(inline).collect(),
    }
}
