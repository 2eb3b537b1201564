//! The handle to all runs.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::Subject;
use async_nats::jetstream::Context;
use bytes::Bytes;
use muster_protocol::api::{Frame, RunBrief, RunView};
use muster_protocol::envelope::BundleHash;
use muster_protocol::ids::{RunId, Serial};
use muster_protocol::run::{Gate, RunEvent, RunState, TARGETS_PER_EVENT};
use muster_protocol::subject;
use muster_protocol::units::Timestamp;
use muster_protocol::wire::{Accepted, OutcomeAnswer, OutcomeReport, OutputHead};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::error::{CreateError, EngineError};
use super::flow::{Stage, StageError, Stages};
use super::index::{Index, Known, LookupError, brief};
use super::journal::{Folded, Journal, JournalError, fold};
use super::local::Desk;
use super::rebuild::{Lost, Purged};
use super::request::FrozenRun;
use super::schedule::Message;
use super::secrets::SecretValues;
use super::task::{Task, ToRun};
use super::view::{PartBrief, main_view, view};
use crate::authz::Authorized;
use crate::bus::Bus;
use crate::events::Events;
use crate::inventory::Inventory;
use crate::presence::Presence;
use crate::retention::TOO_FULL;
use crate::store::error::StreamError;
use crate::twin::Past;

/// How long a run's task may take to answer.
pub(super) const ANSWER: Duration = Duration::from_secs(15);
/// How long a new run waits for room.
const ROOM_WITHIN: Duration = Duration::from_secs(6);
/// How often it looks.
const LOOK_FOR_ROOM: Duration = Duration::from_millis(200);
/// How long a page of a run's nodes may take to be written down, when the run
/// has been begun to be.
const WRITE_WITHIN: Duration = Duration::from_secs(8);
/// Messages that wait for one run's task.
const INBOX: usize = 4_096;
/// What nodes have said and no task has taken yet, over all runs, in KiB.
const WAITING_KIB: usize = 128 * 1024;
/// Open runs at a time.
pub(super) const MOST_OPEN: usize = 1_000;
/// Ended runs that are opened again at a time, for answers that come late.
const MOST_REOPENED: usize = 16;
/// Ended runs whose state is kept in memory.
const CACHED: usize = 8;
/// Output is taken up to so many hundredths of the stream's limit: the rest is
/// for the journals.
const OUTPUT_PART: u64 = 95;
/// Targets of all cached states together.
const CACHED_TARGETS: usize = 100_000;

/// How runs are kept.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Settings {
    /// Age at which an ended run is removed.
    pub max_age: Duration,
    /// Bytes of journals and output together that are asked of the store.
    pub max_bytes: u64,
    /// How long the nodes of a run that was lost may take to report it again,
    /// at least.
    pub lost_within: Duration,
    /// How long a run of which nothing was sent, as far as this broker knows,
    /// waits for nodes to say otherwise, at most.
    pub heard_within: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_age: Duration::from_secs(30 * 86_400),
            max_bytes: 4 << 30,
            lost_within: Duration::from_secs(300),
            heard_within: Duration::from_secs(30),
        }
    }
}

/// An open run, as the engine holds it.
#[derive(Clone)]
pub(super) struct Open {
    pub(super) inbox: mpsc::Sender<ToRun>,
    /// What is not kept: acknowledgements, for live watchers.
    pub(super) live: broadcast::Sender<Frame>,
    /// Which task it is.
    pub(super) number: u64,
}

pub(super) struct Active {
    pub(super) epoch: u64,
    pub(super) cancel: CancellationToken,
}

/// Everything that the engine and its tasks share.
pub(super) struct Shared {
    pub(super) js: Context,
    pub(super) bus: Bus,
    pub(super) inventory: Inventory,
    pub(super) presence: Presence,
    pub(super) events: Events,
    pub(super) settings: Settings,
    pub(super) index: Mutex<Index>,
    pub(super) open: Mutex<HashMap<RunId, Open>>,
    /// Present while this broker is active and has read its journals.
    pub(super) active: Mutex<Option<Active>>,
    pub(super) ready: watch::Sender<bool>,
    pub(super) tasks: TaskTracker,
    waiting: Arc<Semaphore>,
    reopened: Arc<Semaphore>,
    cache: Mutex<VecDeque<Arc<RunState>>>,
    numbers: AtomicU64,
    /// Who reports local runs now.
    pub(super) locals: Desk,
    /// Times that the store went back.
    pub(super) past: Past,
    /// Who reports of runs that are not known here.
    pub(super) lost: Lost,
    /// Which runs were removed.
    pub(super) purged: Purged,
    /// Outcomes and output for runs or steps that their node has no part in.
    pub(super) strays: AtomicU64,
    /// Most bytes in the stream.
    pub(super) limit: AtomicU64,
    /// Bytes in the stream, as far as known.
    pub(super) stored: AtomicU64,
    /// Held by whoever reads all runs: none is removed meanwhile.
    pub(super) reading: Arc<tokio::sync::RwLock<()>>,
    /// Somebody should look after the room in the stream.
    pub(super) crowded: tokio::sync::Notify,
    /// Runs whose removal was cut off.
    pub(super) leftovers: Mutex<BTreeSet<RunId>>,
    /// What runs with a `main` need.
    pub(super) stages: Stages,
    /// Who holds which lock, and who waits for it.
    pub(super) locks: super::gates::Locks,
    /// How many commands are told yet.
    pub(super) commands: crate::hooks::rate::Bucket,
    /// Whether anything is begun.
    pub(super) freezer: std::sync::OnceLock<crate::freeze::Freezer>,
    /// Where ends of runs are recorded.
    pub(super) audit: std::sync::OnceLock<crate::audit::Audit>,
    /// Who follows which run.
    pub(super) hubs: super::hub::Hubs,
    /// Secret parameters of open runs: here and nowhere else.
    pub(super) secrets: Mutex<HashMap<RunId, SecretValues>>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All runs. Cheap to clone.
#[derive(Clone)]
pub struct Engine(pub(super) Arc<Shared>);

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").finish_non_exhaustive()
    }
}

impl Engine {
    /// An engine that knows no run yet; [`Engine::supervise`] makes it go.
    #[must_use]
    pub fn new(
        js: Context,
        bus: Bus,
        inventory: Inventory,
        presence: Presence,
        (events, past): (Events, Past),
        settings: Settings,
    ) -> Self {
        Self(Arc::new(Shared {
            js,
            bus,
            inventory,
            presence,
            events,
            settings,
            index: Mutex::default(),
            open: Mutex::default(),
            active: Mutex::new(None),
            ready: watch::Sender::new(false),
            tasks: TaskTracker::new(),
            waiting: Arc::new(Semaphore::new(WAITING_KIB)),
            reopened: Arc::new(Semaphore::new(MOST_REOPENED)),
            cache: Mutex::default(),
            numbers: AtomicU64::new(0),
            locals: Desk::default(),
            past,
            lost: Lost::default(),
            purged: Purged::default(),
            strays: AtomicU64::new(0),
            limit: AtomicU64::new(u64::MAX),
            stored: AtomicU64::new(0),
            reading: Arc::default(),
            crowded: tokio::sync::Notify::new(),
            leftovers: Mutex::default(),
            stages: Stages::default(),
            locks: super::gates::Locks::default(),
            commands: crate::hooks::rate::Bucket::full(
                super::tell::COMMANDS,
                std::time::Instant::now(),
            ),
            freezer: std::sync::OnceLock::new(),
            audit: std::sync::OnceLock::new(),
            hubs: super::hub::Hubs::default(),
            secrets: Mutex::default(),
        }))
    }

    /// Gives runs with a `main` what they need; before that they wait.
    pub fn conduct_with(&self, stage: Arc<dyn Stage>) {
        self.0.stages.set(stage);
    }

    /// The lines in which the `main` of a scenario asks a person.
    ///
    /// # Errors
    /// [`StageError`].
    pub async fn asks(&self, bundle: BundleHash) -> Result<Vec<usize>, StageError> {
        Ok(self.0.stages.score(bundle).await?.program.asks())
    }

    /// While the guard lives, no run is removed from the stream to make room.
    pub async fn keep_all(&self) -> tokio::sync::OwnedRwLockReadGuard<()> {
        Arc::clone(&self.0.reading).read_owned().await
    }

    /// Whether runs are served: this broker is active and has read its
    /// journals.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        *self.0.ready.borrow()
    }

    /// Waits until runs are served.
    pub async fn wait_ready(&self) {
        let mut ready = self.0.ready.subscribe();
        // The sender lives as long as this handle.
        let _ = ready.wait_for(|ready| *ready).await;
    }

    /// How many runs have not ended.
    #[must_use]
    pub fn open_runs(&self) -> u32 {
        u32::try_from(lock(&self.0.index).open()).unwrap_or(u32::MAX)
    }

    /// How many runs there are of each state, without parts of others.
    #[must_use]
    pub fn by_state(&self) -> std::collections::BTreeMap<&'static str, u64> {
        lock(&self.0.index).by_state()
    }

    /// Whether a run has ended.
    #[must_use]
    pub fn has_ended(&self, run: RunId) -> bool {
        lock(&self.0.index).has_ended(run)
    }

    /// How many messages came from nodes for runs or steps that they have no
    /// part in.
    #[must_use]
    pub fn strays(&self) -> u64 {
        self.0.strays.load(Ordering::Relaxed)
    }

    /// Creates a run: writes it down, then begins with it. The only entry,
    /// and nothing comes to it that was not authorised.
    ///
    /// # Errors
    /// [`CreateError`]; nothing was sent.
    pub async fn create(&self, run: Authorized<FrozenRun>) -> Result<RunView, CreateError> {
        let shared = &self.0;
        let caller = run.caller();
        let (role, origin) = (caller.role, caller.origin.clone());
        let chat = origin.chat_place().map(Box::new);
        let FrozenRun {
            mut spec,
            targets,
            secrets,
            ..
        } = run.into_inner().whole(role, origin);
        spec.chat = chat.filter(|_| spec.part_of.is_none());
        let id = spec.id;
        let (epoch, _) = shared.active().ok_or(CreateError::NotReady)?;
        if let Some(freeze) = shared.frozen(&spec) {
            return Err(CreateError::Frozen(Box::new(freeze)));
        }
        shared
            .fits(&spec, &targets)
            .map_err(CreateError::TooLarge)?;
        // A run that has begun may go on: its parts do not count, nor does what
        // takes back what it did.
        if spec.part_of.is_none() && !spec.takes_back && shared.busy() >= MOST_OPEN {
            return Err(CreateError::Busy);
        }
        // Room is being made at this moment, if there can be any.
        let asked = Instant::now();
        while !shared.takes_runs(&spec) {
            if asked.elapsed() >= ROOM_WITHIN {
                return Err(CreateError::NoRoom);
            }
            sleep(LOOK_FOR_ROOM).await;
        }
        let mut journal = Journal::new(shared.js.clone(), shared.bus.lease().clone(), epoch, id, 0);
        let created = RunEvent::Created {
            spec: Box::new(spec),
        };
        let first = match journal.append(&created).await {
            Err(JournalError::Conflict(_)) => return Err(CreateError::Exists(id)),
            Err(error) => {
                if let JournalError::Store(error) = &error {
                    shared.waits_for(error);
                }
                return Err(error.into());
            }
            Ok(first) => first,
        };
        if !secrets.is_empty() {
            lock(&shared.secrets).insert(id, secrets);
        }
        let mut state = RunState::begin(&created).expect("it is a `created`");
        let mut written = Ok(());
        for nodes in targets.chunks(TARGETS_PER_EVENT) {
            let page = RunEvent::Targets {
                nodes: nodes.to_vec(),
            };
            let appended = match timeout(WRITE_WITHIN, journal.append(&page)).await {
                Ok(appended) => appended,
                Err(_) => Err(JournalError::Store(StreamError::Unconfirmed {
                    subject: subject::journal(id),
                    reason: "timed out".into(),
                })),
            };
            if let Err(error) = appended {
                written = Err(match error {
                    JournalError::Store(
                        StreamError::Unconfirmed { .. } | StreamError::NoAnswer { .. },
                    ) => CreateError::Unsure(id, error),
                    error => error.into(),
                });
                break;
            }
            state
                .apply(&page)
                .expect("a frozen set holds each node once");
        }
        let known = Known::new(&state, first);
        let run = &known.brief;
        tracing::info!(
            run = %id, principal = %run.principal, title = run.title, predicate = run.predicate, nodes = run.nodes,
            "run created"
        );
        lock(&shared.index).insert(known);
        let answer = self.view_of(&state);
        // Also when its targets could not be written: then the task ends it.
        self.open(
            Folded {
                last: journal.last(),
                first,
                state,
            },
            Vec::new(),
        );
        written?;
        Ok(answer)
    }

    /// Takes up a run of which this broker knows nothing although its journal
    /// has been begun: the store did not say so in time when it was created.
    /// Nothing of it has been sent; it ends, or begins, as its journal says.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn adopt(&self, run: RunId) -> Result<(), EngineError> {
        let shared = &self.0;
        shared.active().ok_or(EngineError::NotReady)?;
        if lock(&shared.index).first(run).is_some() {
            return Ok(());
        }
        let folded = fold(&shared.js, run, 1).await?;
        let known = Known::new(&folded.state, folded.first);
        {
            let mut index = lock(&shared.index);
            if index.first(run).is_some() {
                return Ok(());
            }
            index.insert(known);
        }
        if !folded.state.phase.is_final() {
            self.open(folded, Vec::new());
        }
        Ok(())
    }

    /// The run that a text stands for: its id, or an unambiguous beginning of
    /// at least four characters.
    ///
    /// # Errors
    /// [`EngineError::NotReady`], [`EngineError::Lookup`].
    pub fn lookup(&self, text: &str) -> Result<RunId, EngineError> {
        self.0.active().ok_or(EngineError::NotReady)?;
        Ok(lock(&self.0.index).lookup(text)?)
    }

    /// Runs, newest first, and whether there are more; with those that are
    /// parts of others when `parts` says so.
    ///
    /// # Errors
    /// [`EngineError::NotReady`].
    pub fn list(
        &self,
        before: Option<(Timestamp, RunId)>,
        limit: usize,
        parts: bool,
    ) -> Result<(Vec<RunBrief>, bool), EngineError> {
        self.0.active().ok_or(EngineError::NotReady)?;
        let (mut page, more) = lock(&self.0.index).page(before, limit, parts);
        self.0.show_frozen(&mut page);
        Ok((page, more))
    }

    /// A run with its nodes, as it is now.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn show(&self, run: RunId) -> Result<RunView, EngineError> {
        Ok(self.view_of(&*self.state(run).await?))
    }

    /// The state of a run, as it is now.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn state(&self, run: RunId) -> Result<Arc<RunState>, EngineError> {
        let shared = &self.0;
        shared.active().ok_or(EngineError::NotReady)?;
        let open = lock(&shared.open).get(&run).cloned();
        if let Some(open) = open {
            let (tell, told) = oneshot::channel();
            let asked = async {
                open.inbox.send(ToRun::State(tell)).await.ok()?;
                told.await.ok()
            };
            match timeout(ANSWER, asked).await {
                Ok(Some(state)) => return Ok(state),
                // Its task has ended in this moment.
                Ok(None) => {}
                Err(_) => return Err(EngineError::NoAnswer(run)),
            }
        }
        shared.folded(run).await
    }

    /// Where a run's journal begins, and its acknowledgements while it is
    /// open, for a watcher.
    pub(super) fn watched(
        &self,
        run: RunId,
    ) -> Result<(u64, Option<broadcast::Receiver<Frame>>), EngineError> {
        self.0.active().ok_or(EngineError::NotReady)?;
        let first = lock(&self.0.index)
            .first(run)
            .ok_or_else(|| LookupError::NoRun(run.to_string()))?;
        let live = lock(&self.0.open)
            .get(&run)
            .map(|open| open.live.subscribe());
        Ok((first, live))
    }

    pub(super) fn view_of(&self, state: &RunState) -> RunView {
        let mut brief = brief(state);
        if let Some(Gate::Turn { why, .. }) = &mut brief.waits {
            *why = self.kept_by(state, Timestamp::now());
        }
        if let Some(frozen) = self.0.waits_frozen(state) {
            brief.waits = Some(frozen);
        }
        let index = lock(&self.0.index);
        brief.short = index.short(brief.id);
        let mut view = view(state, brief);
        let part = |run| {
            let known = index.get(run);
            PartBrief {
                short: index.short(run),
                state: known.as_ref().map(|brief| brief.state),
                nodes: known.as_ref().map_or(0, |brief| brief.nodes),
                summary: known.map(|brief| brief.summary).unwrap_or_default(),
            }
        };
        view.main = state
            .flow
            .as_ref()
            .map(|flow| Box::new(main_view(state, flow, part)));
        view
    }

    /// A node says that it runs its part.
    pub(crate) fn accepted(&self, node: Serial, accepted: &Accepted) {
        if accepted.request.step == 0 && !self.claims(accepted.request.run) {
            self.0.tell(accepted.request.run, ToRun::Accepted(node));
        }
    }

    /// A node sends output.
    pub(crate) fn output(&self, node: Serial, head: OutputHead, data: Bytes) {
        if head.request.step == 0
            && let Some(room) = self.0.room(data.len())
        {
            self.0.tell(
                head.request.run,
                ToRun::Output {
                    node,
                    head,
                    data,
                    room,
                },
            );
        }
    }

    /// A node says how its part ended.
    pub(crate) async fn outcome(
        &self,
        node: Serial,
        report: Box<OutcomeReport>,
        bytes: usize,
        reply: Option<Subject>,
    ) {
        let shared = &self.0;
        // Before the journals are read, nobody knows what is known.
        if shared.active().is_none() {
            return;
        }
        let run = report.request.run;
        let known = lock(&shared.index).first(run).is_some();
        let in_doubt = report.request.step == 0 && self.claims(run);
        if !known || in_doubt || report.request.step != 0 {
            let provable = report.request.step == 0 && shared.presence.journals().can_prove(node);
            let answer = if provable {
                // Nothing is sent before it is written down: what was is lost.
                OutcomeAnswer::Prove
            } else if in_doubt {
                // It says it again, when it is known what became of the run.
                return;
            } else {
                shared.strays.fetch_add(1, Ordering::Relaxed);
                OutcomeAnswer::Unknown
            };
            if let Some(reply) = &reply {
                shared.bus.reply(node, reply, &answer).await;
            }
            return;
        }
        let Some(room) = shared.room(bytes) else {
            return;
        };
        let message = ToRun::Outcome {
            node,
            report,
            reply,
            room,
        };
        if let Some(message) = shared.tell(run, message) {
            self.reopen(run, message);
        }
    }

    /// The server says that nobody heard what was sent to a node alone.
    pub(crate) fn unheard(&self, run: RunId, node: Serial, message: Message) {
        self.0.tell(run, ToRun::Unheard(node, message));
    }

    /// A node has (re)connected and takes part.
    pub(crate) fn returned(&self, node: Serial) {
        let open: Vec<mpsc::Sender<ToRun>> = lock(&self.0.open)
            .values()
            .map(|open| open.inbox.clone())
            .collect();
        for inbox in open {
            let _ = inbox.try_send(ToRun::Returned(node));
        }
    }

    /// Gives an open run a task.
    pub(super) fn open(&self, folded: Folded, messages: Vec<ToRun>) {
        let shared = &self.0;
        let Some((epoch, cancel)) = shared.active() else {
            return;
        };
        if folded.state.spec.local.is_some() {
            // The node did it, and nothing of it is ever sent: there is only
            // its record to finish.
            return self.finish_local(folded);
        }
        let run = folded.state.spec.id;
        let (inbox, outbox) = mpsc::channel(INBOX);
        // A run with a `main` has little to say, and there may be many that
        // wait.
        let said = if folded.state.flow.is_some() {
            32
        } else {
            1_024
        };
        let (live, _) = broadcast::channel(said);
        let number = shared.numbers.fetch_add(1, Ordering::Relaxed);
        for message in messages {
            let _ = inbox.try_send(message);
        }
        let open = Open {
            inbox,
            live: live.clone(),
            number,
        };
        {
            let mut all = lock(&shared.open);
            // Retention may have removed it while it was read for a late
            // answer.
            if folded.state.phase.is_final() && lock(&shared.index).first(run).is_none() {
                return;
            }
            all.insert(run, open);
        }
        shared.locks.note(&folded.state);
        let task = Task::new(self.clone(), folded, epoch, live, number);
        shared.tasks.spawn(async move {
            tokio::select! {
                () = cancel.cancelled() => {}
                () = task.run(outbox) => {}
            }
        });
    }

    /// Opens an ended run again for an answer that came late.
    fn reopen(&self, run: RunId, message: ToRun) {
        let Ok(permit) = Arc::clone(&self.0.reopened).try_acquire_owned() else {
            return;
        };
        let this = self.clone();
        self.0.tasks.spawn(async move {
            let folded = fold_known(&this.0, run).await;
            match folded {
                Ok(folded) if folded.state.phase.is_final() => {
                    // Somebody else may have opened it in the meantime.
                    if let Some(message) = this.0.tell(run, message) {
                        this.open(folded, vec![message]);
                    }
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(%run, %error, "cannot read a run for a late answer"),
            }
            drop(permit);
        });
    }
}

async fn fold_known(shared: &Shared, run: RunId) -> Result<Folded, EngineError> {
    let first = lock(&shared.index)
        .first(run)
        .ok_or_else(|| LookupError::NoRun(run.to_string()))?;
    Ok(fold(&shared.js, run, first).await?)
}

impl Shared {
    /// How many runs are under way that are no parts of others.
    fn busy(&self) -> usize {
        let index = lock(&self.index);
        let open = lock(&self.open);
        open.keys()
            .filter(|run| index.part_of(**run).is_none())
            .count()
    }

    /// The epoch, and what ends with it, while this broker serves runs.
    pub(super) fn active(&self) -> Option<(u64, CancellationToken)> {
        let active = lock(&self.active);
        let active = active
            .as_ref()
            .filter(|active| self.bus.lease().epoch() == Some(active.epoch))?;
        Some((active.epoch, active.cancel.clone()))
    }

    /// Room for so many bytes that a node sent; `None` drops them: the node
    /// sends them again.
    fn room(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let kib = u32::try_from(bytes / 1024 + 1).ok()?;
        Arc::clone(&self.waiting).try_acquire_many_owned(kib).ok()
    }

    /// Gives a message to a run's task; what cannot be given because the run
    /// is not open comes back. A task with too much to do loses messages:
    /// whoever sent them does so again.
    fn tell(&self, run: RunId, message: ToRun) -> Option<ToRun> {
        let inbox = lock(&self.open).get(&run).map(|open| open.inbox.clone());
        let Some(inbox) = inbox else {
            return Some(message);
        };
        match inbox.try_send(message) {
            Ok(()) => None,
            Err(mpsc::error::TrySendError::Full(_)) => {
                tracing::debug!(%run, "a run has more to read than it can");
                None
            }
            Err(mpsc::error::TrySendError::Closed(message)) => Some(message),
        }
    }

    /// The state of a run that has no task.
    async fn folded(&self, run: RunId) -> Result<Arc<RunState>, EngineError> {
        let cached = lock(&self.cache)
            .iter()
            .find(|state| state.spec.id == run)
            .cloned();
        if let Some(state) = cached {
            return Ok(state);
        }
        let state = Arc::new(fold_known(self, run).await?.state);
        if state.phase.is_final() {
            self.remember(&state);
        }
        Ok(state)
    }

    /// Whether there is room for so many bytes of output: the journals need
    /// what is left above it. Counts them, if so.
    pub(super) fn has_room(&self, bytes: u64) -> bool {
        let limit = self.limit.load(Ordering::Relaxed);
        let stored = self.stored.fetch_add(bytes, Ordering::Relaxed);
        let stored = stored.saturating_add(bytes);
        if stored / TOO_FULL >= limit / 100 {
            self.crowded.notify_one();
        }
        let room = stored <= limit / 100 * OUTPUT_PART;
        if !room {
            // It is not going to be there.
            self.stored.fetch_sub(bytes, Ordering::Relaxed);
        }
        room
    }

    /// Forgets the state of a run that is kept for whoever asks next.
    pub(super) fn forget(&self, run: RunId) {
        lock(&self.cache).retain(|state| state.spec.id != run);
    }

    /// Keeps the state of an ended run for a while.
    pub(super) fn remember(&self, state: &Arc<RunState>) {
        let mut cache = lock(&self.cache);
        cache.retain(|old| old.spec.id != state.spec.id);
        cache.push_back(Arc::clone(state));
        let targets =
            |cache: &VecDeque<Arc<RunState>>| cache.iter().map(|s| s.order.len()).sum::<usize>();
        while cache.len() > CACHED || (cache.len() > 1 && targets(&cache) > CACHED_TARGETS) {
            cache.pop_front();
        }
    }

    /// The end of a run's task.
    pub(super) fn close(&self, run: RunId, number: u64) {
        let mut open = lock(&self.open);
        if open.get(&run).is_some_and(|open| open.number == number) {
            open.remove(&run);
        }
    }

    /// Forgets everything that was read for an epoch that has ended.
    pub(super) fn forget_all(&self) {
        lock(&self.leftovers).clear();
        lock(&self.open).clear();
        lock(&self.index).clear();
        lock(&self.cache).clear();
        lock(&self.secrets).clear();
        self.locks.clear();
        self.lost.doubts.clear();
    }
}
