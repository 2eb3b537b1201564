//! The task of one run: owns its state and is the only one to write its
//! journal.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_nats::Subject;
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use muster_protocol::api::Frame;
use muster_protocol::ids::{RunId, Serial};
use muster_protocol::names::PrincipalName;
use muster_protocol::nodeset::NodeSet;
use muster_protocol::run::{
    Next, NodePhase, NodeResult, Outcome, RESULTS_PER_EVENT, RunEnd, RunEvent, RunPhase, RunState,
    Wish, WishError, Wisher,
};
use muster_protocol::subject;
use muster_protocol::units::{Timestamp, elapsed};
use muster_protocol::wire::{OutcomeReport, OutputHead};
use tokio::sync::{OwnedSemaphorePermit, broadcast, mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::Instrument as _;

use super::engine::{Engine, lock};
use super::flow::{Answered, Conductor};
use super::frozen::changed;
use super::journal::{Folded, Journal, JournalError, STREAM, output_head};
use super::outcome::Book;
use super::rebuild::lost_for_good;
use super::schedule::{Delivery, GivenUp, Message, Moment, Sent};
use super::send::Split;
use crate::bus::SendError;
use crate::presence::{Older, Reach};
use crate::store::read::read_from;
use crate::store::stream::StreamError;

/// How long the task of an ended run waits for repeats of what it knows.
const LINGER: Duration = Duration::from_secs(5);
/// How long the task of a run whose `main` waits for nothing but what it is
/// told lets it be.
pub(super) const REST: Duration = Duration::from_secs(600);
/// Messages taken in one go: their outcomes share an event.
const TAKE: usize = RESULTS_PER_EVENT;
/// Bytes of results in one event, far below the largest NATS message.
const EVENT_BYTES: usize = 384 * 1024;
/// An append that takes longer means that the broker was deaf as well.
const SLOW: Duration = Duration::from_secs(1);
/// How often the connection is looked at while it is gone.
const LOOK: Duration = Duration::from_millis(100);

/// The state after a cancel; an error when the run had ended before.
pub(super) type Cancelled = Result<Arc<RunState>, Arc<RunState>>;

/// The state after a wish, or why it was not granted.
pub(super) type Wished = Result<Arc<RunState>, WishError>;

/// What the task of a run is told.
pub(super) enum ToRun {
    /// A node runs its part.
    Accepted(Serial),
    /// A node sends output.
    Output {
        node: Serial,
        head: OutputHead,
        data: Bytes,
        room: OwnedSemaphorePermit,
    },
    /// A node says how its part ended.
    Outcome {
        node: Serial,
        report: Box<OutcomeReport>,
        reply: Option<Subject>,
        room: OwnedSemaphorePermit,
    },
    /// Nobody heard what was sent to a node alone.
    Unheard(Serial, Message),
    /// A node takes part (again).
    Returned(Serial),
    /// A node has gone back in time; say when that is written down.
    Forgot {
        node: Serial,
        older: Older,
        tell: oneshot::Sender<()>,
    },
    /// Somebody wants the state.
    State(oneshot::Sender<Arc<RunState>>),
    /// Somebody wants something else of it; the state comes back.
    Wish {
        wish: Wish,
        who: Wisher,
        tell: oneshot::Sender<Wished>,
    },
    /// Somebody wants the end; the state comes back, as an error when it has
    /// ended already.
    Cancel {
        by: PrincipalName,
        tell: oneshot::Sender<Cancelled>,
    },
    /// Somebody answers what the run asks.
    Answer {
        by: PrincipalName,
        text: String,
        tell: oneshot::Sender<Answered>,
    },
    /// A part of the run has ended.
    PartEnded,
}

/// See the module.
pub(super) struct Task {
    pub(super) engine: Engine,
    pub(super) run: RunId,
    pub(super) state: RunState,
    frozen: NodeSet,
    journal: Journal,
    pub(super) delivery: Delivery,
    pub(super) books: BTreeMap<Serial, Book>,
    pub(super) live: broadcast::Sender<Frame>,
    /// Of a run with a `main`.
    pub(super) main: Option<Box<Conductor>>,
    number: u64,
    /// Events that scenarios made on its nodes.
    pub(super) told: u32,
    /// That it begins was told.
    pub(super) begun: bool,
    /// Whether its life is told, once that is decided.
    pub(super) shown: Option<bool>,
    /// What it was told that the run waits for.
    pub(super) waits_told: BTreeSet<String>,
    first: u64,
    began: Instant,
    began_at: Timestamp,
}

impl Task {
    pub(super) fn new(
        engine: Engine,
        folded: Folded,
        epoch: u64,
        live: broadcast::Sender<Frame>,
        number: u64,
    ) -> Self {
        let run = folded.state.spec.id;
        let shared = &engine.0;
        let lease = shared.bus.lease().clone();
        let journal = Journal::new(shared.js.clone(), lease, epoch, run, folded.last);
        let options = &folded.state.spec.options;
        let deliver_within = match folded.state.spec.rebuilt {
            // What was lost is only listened for.
            Some(_) => Duration::ZERO,
            None => options.deliver_within.get(),
        };
        let delivery = Delivery::new(deliver_within, options.timeout.get());
        Self {
            run,
            journal,
            delivery,
            books: BTreeMap::new(),
            live,
            main: (folded.state.flow.is_some()).then(|| Box::new(Conductor::new())),
            number,
            told: 0,
            begun: false,
            shown: None,
            waits_told: BTreeSet::new(),
            first: folded.first,
            frozen: folded.state.order.iter().copied().collect(),
            state: folded.state,
            began: Instant::now(),
            began_at: Timestamp::now(),
            engine,
        }
    }

    /// Works until the run has ended and nobody asks any more.
    pub(super) async fn run(mut self, mut inbox: mpsc::Receiver<ToRun>) {
        let span = tracing::info_span!("run", run = %self.run);
        async {
            let worked = self.work(&mut inbox).await;
            let shared = Arc::clone(&self.engine.0);
            if self.state.phase.is_final() {
                shared.remember(&Arc::new(self.state.clone()));
            }
            shared.close(self.run, self.number);
            match worked {
                Ok(()) => {}
                Err(JournalError::NotActive) => tracing::warn!("no longer the writer of this run"),
                Err(error) => self.failed(&error),
            }
        }
        .instrument(span)
        .await;
    }

    /// The journal could not be written for a reason that time does not heal.
    fn failed(&self, error: &JournalError) {
        tracing::error!(%error, "stopped writing a run's journal");
        let shared = Arc::clone(&self.engine.0);
        let short = lock(&shared.index).short(self.run);
        // Whoever wrote it holds no lease, or we do not: in the first case
        // what it wrote counts, and this broker goes on from there. Or the
        // store went back in time, which a comparison shows: then this session
        // has ended by then.
        if let JournalError::Conflict(_) = error {
            shared.past.suspect();
        }
        let (engine, run, first) = (self.engine.clone(), self.run, self.first);
        let error = error.to_string();
        shared.tasks.spawn(async move {
            sleep(Duration::from_secs(2)).await;
            let shared = &engine.0;
            if shared.active().is_none() {
                return;
            }
            shared
                .events
                .emit("alarm.journal-conflict", &short, error)
                .await;
            engine.take_up(run, first).await;
        });
    }

    async fn work(&mut self, inbox: &mut mpsc::Receiver<ToRun>) -> Result<(), JournalError> {
        self.begin().await?;
        let mut messages = Vec::new();
        let mut linger = None;
        let mut freezes = self.engine.0.freezes();
        loop {
            let deaf = self.while_deaf(inbox, &mut messages).await;
            if !deaf.is_zero() {
                self.delivery.was_deaf(deaf);
            }
            if !messages.is_empty() {
                self.take(&mut messages).await?;
            }
            // Before it is asked whether the turn has come: what changes
            // after that is seen.
            let turn = Arc::clone(&self.engine.0);
            let mut turn = std::pin::pin!(turn.locks.changed());
            turn.as_mut().enable();
            self.drive().await?;
            let wake = match self.act().await? {
                Acted::Settled => continue,
                Acted::Nothing { wake } => wake,
            };
            let ended = self.state.phase.is_final();
            let until = if ended {
                *linger.get_or_insert_with(|| Instant::now() + LINGER)
            } else if let Some(main) = &self.main
                && self.state.phase != RunPhase::Waiting
            {
                // It is woken by what it waits for.
                main.wake().unwrap_or_else(|| Instant::now() + REST)
            } else {
                let pause = wake.map_or(LINGER, |wake| wake.after(self.now()));
                let look = self.looks_again(Timestamp::now()).unwrap_or(LINGER);
                Instant::now() + pause.min(look).min(LINGER)
            };
            tokio::select! {
                got = inbox.recv_many(&mut messages, TAKE) => if got == 0 {
                    return Ok(());
                },
                turned = Conductor::turned(&mut self.main) => self.turned(turned).await?,
                () = changed(&mut freezes) => self.thaws(),
                () = turn.as_mut(), if self.state.phase == RunPhase::Waiting => {}
                () = sleep_until(until) => if ended {
                    return Ok(());
                },
            }
            // Who only looks at it does not keep it open.
            if messages
                .iter()
                .any(|message| !matches!(message, ToRun::State(_)))
            {
                linger = None;
            }
            if !messages.is_empty() {
                self.take(&mut messages).await?;
            }
        }
    }

    pub(super) fn now(&self) -> Moment {
        Moment(0).plus(self.began.elapsed())
    }

    /// Where the journal leaves off.
    async fn begin(&mut self) -> Result<(), JournalError> {
        if let Some(rebuilt) = self.state.spec.rebuilt.clone() {
            if !self.state.phase.is_final() {
                self.write_down_again(&rebuilt).await?;
                self.frozen = rebuilt.set;
            }
        } else if self.state.phase == RunPhase::Preparing {
            return self.abandon().await;
        }
        if self.state.batches > 0 && !self.state.phase.is_final() {
            self.tell_the_last(self.first).await;
        }
        let now = self.now();
        let sent: Vec<(Serial, Timestamp)> = self
            .state
            .open()
            .filter_map(|(serial, node)| match node.phase {
                NodePhase::Sent { at } => Some((serial, at)),
                NodePhase::Waiting | NodePhase::Done(_) => None,
            })
            .collect();
        if sent.is_empty() {
            return Ok(());
        }
        tracing::info!(
            nodes = sent.len(),
            "taking up a run where the journal leaves off"
        );
        for (serial, at) in sent {
            self.delivery
                .resume(serial, now.minus(elapsed(at, self.began_at)), now);
        }
        if self.state.phase == RunPhase::Cancelling {
            self.delivery.cancel(now);
        }
        if let Err(error) = self.read_output().await {
            // What came is then taken for missing and asked for again.
            tracing::warn!(%error, "cannot read which output has come");
        }
        Ok(())
    }

    /// Which output of open nodes is stored.
    async fn read_output(&mut self) -> Result<(), StreamError> {
        let js = self.engine.0.js.clone();
        let limit = self.state.spec.options.output_bytes;
        let mut stored = read_from(&js, STREAM, &subject::output(self.run), self.first).await?;
        while let Some(message) = stored.try_next().await? {
            if let Some(head) = output_head(&message.headers)
                && self.is_sent(head.serial)
            {
                let book = self.books.entry(head.serial).or_default();
                let _ = book.take(head.chunk, message.payload.len(), limit);
                self.tell_events(head, &message.payload).await;
            }
        }
        Ok(())
    }

    /// A run whose set was never written down whole: nothing was sent.
    async fn abandon(&mut self) -> Result<(), JournalError> {
        tracing::warn!("ending a run whose nodes were never written down whole; nothing was sent");
        let reason = "not started: the broker stopped while the run was written down";
        let results = self
            .state
            .open()
            .map(|(serial, _)| NodeResult::new(serial, Outcome::Skipped, reason))
            .collect();
        self.store_results(results).await?;
        self.finish(RunEnd::Failed).await
    }

    pub(super) fn is_sent(&self, serial: Serial) -> bool {
        self.state
            .nodes
            .get(&serial)
            .is_some_and(|n| matches!(n.phase, NodePhase::Sent { .. }))
    }

    pub(super) async fn store(&mut self, event: RunEvent) -> Result<(), JournalError> {
        let asked = Instant::now();
        let (live, run, shared) = (self.live.clone(), self.run, Arc::clone(&self.engine.0));
        let mut stalled = false;
        self.journal
            .append_surely(&event, |error| {
                stalled = true;
                // Nobody may be watching; who comes later is told the next time.
                let why = Some(shared.waits_for(error));
                let _ = live.send(Frame::Stalled { run, why });
            })
            .await?;
        if stalled {
            let _ = self.live.send(Frame::Stalled { run, why: None });
        }
        let took = asked.elapsed();
        if took > SLOW {
            self.delivery.was_deaf(took);
        }
        if let Err(error) = self.state.apply(&event) {
            // The event was made from this state: a defect. The journal
            // refuses it in every fold, so nothing is lost but time.
            tracing::error!(%error, ?event, "an event does not follow on the state it was made from");
        }
        if let Some(main) = &mut self.main {
            main.heard(&event);
        }
        let shared = &self.engine.0;
        lock(&shared.index).update(&self.state);
        shared.tell_parent(&self.state, &event);
        if let RunEvent::Answered { number, steps, .. } = &event {
            self.tell_steps(*number, steps.len()).await;
        }
        Ok(())
    }

    /// Sequence of the first event of its journal.
    pub(super) fn first(&self) -> u64 {
        self.first
    }

    /// The run's id as people see it.
    pub(super) fn short(&self) -> String {
        lock(&self.engine.0.index).short(self.run)
    }

    /// Tells who is watching why the run does not go on, or that it does.
    pub(super) fn say_stalled(&self, why: Option<String>) {
        let run = self.run;
        let _ = self.live.send(Frame::Stalled { run, why });
    }

    /// Stores outcomes, in events of bounded size.
    pub(super) async fn store_results(
        &mut self,
        results: Vec<NodeResult>,
    ) -> Result<(), JournalError> {
        for results in pages(results) {
            let serials: Vec<Serial> = results.iter().map(|r| r.serial).collect();
            let event = RunEvent::Outcomes {
                results,
                at: Timestamp::now(),
            };
            self.store(event.clone()).await?;
            if let RunEvent::Outcomes { results, .. } = &event {
                // Before anything else is written: see `tell_the_last`.
                self.tell_failures(results).await;
                self.tell_progress(results.len()).await;
            }
            for serial in serials {
                self.delivery.settled(serial);
                self.books.remove(&serial);
            }
        }
        Ok(())
    }

    pub(super) async fn finish(&mut self, end: RunEnd) -> Result<(), JournalError> {
        self.store(RunEvent::Finished {
            end,
            at: Timestamp::now(),
        })
        .await?;
        let shared = &self.engine.0;
        shared.locks.release(self.run);
        lock(&shared.secrets).remove(&self.run);
        shared.record_end(&self.state);
        tracing::info!(state = self.state.phase.as_str(), summary = ?self.state.summary(), "run ended");
        if self.state.batches > 0 {
            // The broker before this one may have sent and said nothing.
            self.tell_begun().await;
        }
        self.tell_ended().await;
        Ok(())
    }

    /// Does what the state asks for, until it asks to wait.
    async fn drive(&mut self) -> Result<(), JournalError> {
        loop {
            match self.state.next() {
                Next::Send { .. } if self.is_frozen() => return Ok(()),
                Next::Send { batch, nodes } => {
                    self.send_batch(batch, nodes).await?;
                    // Behind it: nobody waits for the news.
                    self.tell_begun().await;
                }
                Next::Skip {
                    nodes,
                    outcome,
                    reason,
                } => {
                    let result = |serial| NodeResult::new(serial, outcome, reason.clone());
                    self.store_results(nodes.into_iter().map(result).collect())
                        .await?;
                }
                Next::Finish(end) => self.finish(end).await?,
                Next::Main if self.main_is_frozen() => return Ok(()),
                Next::Main => {
                    self.tell_begun().await;
                    if !self.conduct().await? {
                        return Ok(());
                    }
                }
                Next::Gate(gate) => {
                    if !self.pass(&gate).await? {
                        return Ok(());
                    }
                }
                Next::Wait | Next::Ended => return Ok(()),
            }
        }
    }

    /// Sends to a batch of nodes; those that are known not to hear get their
    /// outcome instead, and the state is asked again.
    async fn send_batch(&mut self, batch: u32, nodes: Vec<Serial>) -> Result<(), JournalError> {
        if self.lacks_secrets() {
            let why = "not started: the secret parameters were only in the memory of the broker that stopped";
            let skip = |serial: &Serial| NodeResult::new(*serial, Outcome::Skipped, why);
            let waiting: Vec<Serial> = self.waiting();
            return self.store_results(waiting.iter().map(skip).collect()).await;
        }
        let wait_down = self.state.spec.options.wait_down;
        let mut split = Split::default();
        let mut not_there = self.engine.0.unsealable(&self.state.spec, &nodes);
        if !not_there.is_empty() {
            return self.store_results(not_there).await;
        }
        for (serial, reach) in nodes.iter().zip(self.engine.0.presence.reach(&nodes)) {
            match reach {
                Reach::Groups => split.groups.push(*serial),
                Reach::Alone => split.alone.push(*serial),
                Reach::Down(_) if wait_down => split.alone.push(*serial),
                Reach::Down(why) | Reach::Barred(why) => {
                    not_there.push(NodeResult::new(*serial, Outcome::Unreachable, why));
                }
            }
        }
        if !not_there.is_empty() {
            return self.store_results(not_there).await;
        }
        let intent = RunEvent::Intent {
            batch,
            nodes: nodes.iter().copied().collect(),
            at: Timestamp::now(),
        };
        self.store(intent).await?;
        self.delivery.begin(nodes.iter().copied(), self.now());
        tracing::debug!(batch, nodes = nodes.len(), "sending");
        self.place("broker.send.before", "call").await;
        self.send(Message::Call, &split).await?;
        self.place("broker.send.after", "call").await;
        Ok(())
    }

    pub(super) async fn place(&self, point: &'static str, what: &str) {
        muster_checkpoint::at(point, || format!("{} {what}", self.run)).await;
    }

    async fn send(&mut self, message: Message, split: &Split) -> Result<(), JournalError> {
        let now = self.now();
        let all = split.groups.iter().chain(&split.alone);
        let start_within = match message {
            Message::Call => all
                .map(|s| self.delivery.start_within(*s, now))
                .min()
                .unwrap_or_default(),
            Message::Cancel => self
                .state
                .spec
                .options
                .deliver_within
                .get()
                .max(Duration::from_secs(15)),
        };
        let shared = Arc::clone(&self.engine.0);
        match shared
            .send(
                (&self.state.spec, &self.frozen),
                message,
                split,
                start_within,
            )
            .await
        {
            Ok(sent) => {
                for (serial, how) in sent {
                    self.delivery.copied(serial, message, how, now);
                }
                Ok(())
            }
            Err(SendError::NotActive) => Err(JournalError::NotActive),
            Err(error) => {
                // Whether some of it went out is not known: as if it had.
                tracing::error!(%error, "cannot send");
                for serial in split.groups.iter().chain(&split.alone) {
                    self.delivery
                        .copied(*serial, message, super::schedule::Sent::ToGroup, now);
                }
                Ok(())
            }
        }
    }

    /// Repeats what is due, and gives up whom to wait for is over.
    async fn act(&mut self) -> Result<Acted, JournalError> {
        let due = self.delivery.schedule(self.now());
        for (message, nodes) in [(Message::Call, &due.call), (Message::Cancel, &due.cancel)] {
            if message == Message::Call && !nodes.is_empty() && self.is_frozen() {
                // As if it had been: who has not answered in time by then is
                // not known to have done nothing.
                let now = self.now();
                for node in nodes {
                    self.delivery.copied(*node, message, Sent::ToGroup, now);
                }
                continue;
            }
            if !nodes.is_empty() {
                tracing::debug!(?message, nodes = nodes.len(), "sending again");
                let split = self.engine.0.split_repeat(nodes);
                let what = match message {
                    Message::Call => "call-again",
                    Message::Cancel => "cancel",
                };
                self.place("broker.send.before", what).await;
                self.send(message, &split).await?;
                self.place("broker.send.after", what).await;
            }
        }
        if due.given_up.is_empty() {
            let wake = if due.call.is_empty() && due.cancel.is_empty() {
                due.wake
            } else {
                self.delivery.schedule(self.now()).wake
            };
            return Ok(Acted::Nothing { wake });
        }
        let results = due
            .given_up
            .into_iter()
            .map(|(serial, why)| self.given_up(serial, why))
            .collect();
        self.store_results(results).await?;
        Ok(Acted::Settled)
    }

    fn given_up(&self, serial: Serial, why: GivenUp) -> NodeResult {
        if self.state.spec.rebuilt.is_some() && why == GivenUp::NoOutcome {
            return lost_for_good(serial);
        }
        let options = &self.state.spec.options;
        let seen = || match self.engine.0.presence.reach(&[serial]).pop() {
            Some(Reach::Down(what) | Reach::Barred(what)) => format!("; {what}"),
            _ => String::new(),
        };
        let (outcome, reason) = match why {
            GivenUp::NobodyListened { .. } => (
                Outcome::Unreachable,
                format!(
                    "it was not connected within {}{}",
                    options.deliver_within,
                    seen()
                ),
            ),
            GivenUp::NotAcknowledged => (
                Outcome::Unknown,
                format!(
                    "sent, and not acknowledged within {}{}",
                    options.deliver_within,
                    seen()
                ),
            ),
            GivenUp::NoOutcome => (
                Outcome::Unknown,
                format!(
                    "sent, and no outcome came after {}{}",
                    options.timeout,
                    seen()
                ),
            ),
            GivenUp::CancelUnanswered => (
                Outcome::Unknown,
                format!("sent, and the cancel was not answered{}", seen()),
            ),
        };
        NodeResult::new(serial, outcome, reason)
    }

    pub(super) async fn cancel(&mut self, by: PrincipalName) -> Result<Cancelled, JournalError> {
        if self.state.phase.is_final() {
            return Ok(Err(Arc::new(self.state.clone())));
        }
        if self.state.phase != RunPhase::Cancelling {
            tracing::info!(%by, "cancelled");
            self.store(RunEvent::Cancelling {
                by,
                at: Timestamp::now(),
            })
            .await?;
            self.delivery.cancel(self.now());
            if let Some(main) = &mut self.main {
                main.stop();
            }
        }
        Ok(Ok(Arc::new(self.state.clone())))
    }

    pub(super) async fn wish(&mut self, wish: Wish, who: &Wisher) -> Result<Wished, JournalError> {
        let event = match self.state.wish(wish, who, Timestamp::now()) {
            Err(why) => return Ok(Err(why)),
            Ok(event) => event,
        };
        if let Some(event) = event {
            tracing::info!(by = %who.by, wish = wish.as_str(), "somebody wants something of a run");
            self.store(event).await?;
            if self.state.phase == RunPhase::Paused && !self.state.has_begun() {
                // Who cannot begin keeps nobody else from it.
                self.engine.0.locks.release(self.run);
            }
        }
        Ok(Ok(Arc::new(self.state.clone())))
    }

    /// Waits while the connection to NATS is gone, keeping what it is told;
    /// how long that was.
    async fn while_deaf(
        &self,
        inbox: &mut mpsc::Receiver<ToRun>,
        kept: &mut Vec<ToRun>,
    ) -> Duration {
        let bus = &self.engine.0.bus;
        if bus.is_connected() {
            return Duration::ZERO;
        }
        let since = Instant::now();
        tracing::warn!("NATS is away; waiting");
        while !bus.is_connected() {
            tokio::select! {
                message = inbox.recv(), if kept.len() < TAKE => match message {
                    Some(ToRun::State(tell)) => {
                        let _ = tell.send(Arc::new(self.state.clone()));
                    }
                    Some(message) => kept.push(message),
                    None => return since.elapsed(),
                },
                () = sleep(LOOK) => {}
            }
        }
        since.elapsed()
    }
}

/// What came of looking at the clock.
enum Acted {
    /// Nodes have got their outcome: ask the state again.
    Settled,
    /// Nothing but repeats; nothing is due before `wake`.
    Nothing {
        /// When to look again.
        wake: Option<Moment>,
    },
}

/// Results in events of bounded size.
fn pages(results: Vec<NodeResult>) -> Vec<Vec<NodeResult>> {
    let mut pages: Vec<Vec<NodeResult>> = Vec::new();
    let mut bytes = 0;
    for result in results {
        let size = serde_json::to_string(&result).map_or(0, |json| json.len()) + 1;
        let fits = bytes + size <= EVENT_BYTES;
        match pages.last_mut() {
            Some(page) if fits && page.len() < RESULTS_PER_EVENT => {
                page.push(result);
                bytes += size;
            }
            _ => {
                pages.push(vec![result]);
                bytes = size;
            }
        }
    }
    pages
}
