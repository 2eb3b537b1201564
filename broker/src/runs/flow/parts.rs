//! The parts of a run: made once, however often that is tried, and heard of
//! when they end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures_util::TryStreamExt as _;
use muster_protocol::api::{Frame, Role};
use muster_protocol::ids::{RunId, Serial};
use muster_protocol::names::{PrincipalName, ScenarioName};
use muster_protocol::note::Expected;
use muster_protocol::run::{
    Gates, PartOf, RunEvent, RunOptions, RunPhase, RunSpec, RunState, Stream, TARGETS_PER_EVENT,
    Target, Wish, Wisher,
};
use muster_protocol::subject;
use muster_protocol::units::{Amount, Timestamp};
use muster_scenarios::durable::{Step, StepOptions};
use tokio::sync::{mpsc, oneshot};

use super::super::engine::{Engine, Shared, lock};
use super::super::error::CreateError;
use super::super::index::Known;
use super::super::journal::{Journal, ReadError, STREAM, fold, output_head};
use super::super::request::FrozenRun;
use super::super::task::ToRun;
use crate::authz::{Action, Authorized, Caller, Denied, Origin, RunAsk, authorize};
use crate::store::read::read_from;
use crate::store::stream::StreamError;

/// Bytes of stored output that are read to find how each node's began.
const MOST_READ: usize = 64 << 20;

/// Where a part of a run is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Part {
    /// It is not there, or was never written down whole.
    Missing,
    /// It is under way.
    Open(RunPhase),
    /// It has ended.
    Ended,
}

/// Why a part was not made.
#[derive(Debug, thiserror::Error)]
pub(super) enum PartError {
    /// Not now.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// There is another run of that id.
    #[error("there is another run {0}, which is no part of this one")]
    Foreign(RunId),
    /// Its journal cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The principal may not do that any more.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The policies have changed since the run began.
    #[error("by now this needs {0} approvals, which were not asked for when the run began")]
    Approvals(u32),
    /// It needs what nobody has any more.
    #[error("the secret parameters were only in the memory of the broker that stopped")]
    SecretsGone,
}

impl PartError {
    /// Whether it may be otherwise in a while.
    pub(super) fn passes(&self) -> bool {
        match self {
            Self::Create(CreateError::TooLarge(_))
            | Self::Foreign(_)
            | Self::Denied(_)
            | Self::Approvals(_)
            | Self::SecretsGone => false,
            Self::Create(_) | Self::Read(_) => true,
        }
    }
}

impl Engine {
    /// Where a part is.
    pub(super) fn part(&self, run: RunId) -> Part {
        let open = lock(&self.0.open).contains_key(&run);
        match lock(&self.0.index).phase(run) {
            None => Part::Missing,
            // Nobody goes on with it but whoever has asked for it.
            Some(RunPhase::Preparing) if !open => Part::Missing,
            Some(phase) if phase.is_final() => Part::Ended,
            Some(phase) => Part::Open(phase),
        }
    }

    /// Of a part whose set was never written down whole, and that nobody goes
    /// on with: where its journal begins.
    pub(super) fn unwritten(&self, run: RunId) -> Option<u64> {
        if lock(&self.0.open).contains_key(&run) {
            return None;
        }
        let index = lock(&self.0.index);
        let begun = index.phase(run) == Some(RunPhase::Preparing);
        index.first(run).filter(|_| begun)
    }

    /// Ends such a part. Only once: whoever does it reads its journal first.
    pub(super) fn end_unwritten(&self, run: RunId, first: u64) {
        let engine = self.clone();
        self.0.tasks.spawn(async move {
            // Its task ends it at once, and tells the run that it is a part of.
            engine.take_up(run, first).await;
        });
    }

    /// Makes a part of a run, or goes on with making it.
    pub(super) async fn make_part(&self, frozen: Authorized<FrozenRun>) -> Result<(), PartError> {
        let (id, part_of) = {
            let spec = &frozen.get().spec;
            (spec.id, spec.part_of)
        };
        let targets = frozen.get().targets.clone();
        match self.create(frozen).await {
            Ok(_) => Ok(()),
            Err(CreateError::Exists(_)) => self.complete_part(id, part_of, &targets).await,
            Err(error) => Err(error.into()),
        }
    }

    /// A part whose journal has been begun: its set is written down whole, and
    /// it begins.
    async fn complete_part(
        &self,
        run: RunId,
        part_of: Option<PartOf>,
        targets: &[Target],
    ) -> Result<(), PartError> {
        let shared = &self.0;
        let (epoch, _) = shared.active().ok_or(CreateError::NotReady)?;
        let mut folded = fold(&shared.js, run, 1).await?;
        if folded.state.spec.part_of != part_of {
            return Err(PartError::Foreign(run));
        }
        if lock(&shared.open).contains_key(&run) {
            return Ok(());
        }
        if folded.state.phase == RunPhase::Preparing {
            let lease = shared.bus.lease().clone();
            let mut journal = Journal::new(shared.js.clone(), lease, epoch, run, folded.last);
            let written = folded.state.order.len();
            for nodes in targets
                .get(written..)
                .unwrap_or_default()
                .chunks(TARGETS_PER_EVENT)
            {
                let nodes = nodes.to_vec();
                let page = RunEvent::Targets { nodes };
                folded.last = journal.append(&page).await.map_err(CreateError::from)?;
                folded
                    .state
                    .apply(&page)
                    .map_err(|source| ReadError::Fold {
                        run,
                        sequence: folded.last,
                        source,
                    })?;
            }
        }
        lock(&shared.index).insert(Known::new(&folded.state, folded.first));
        if !folded.state.phase.is_final() {
            self.open(folded, Vec::new());
        }
        Ok(())
    }

    /// Has a part wait, or go on.
    pub(super) fn wish_part(&self, run: RunId, wish: Wish, by: PrincipalName) {
        let inbox = lock(&self.0.open).get(&run).map(|open| open.inbox.clone());
        if let Some(inbox) = inbox {
            let (tell, _) = oneshot::channel();
            self.0.tasks.spawn(async move {
                let who = Wisher { by, door: None };
                let _ = inbox.send(ToRun::Wish { wish, who, tell }).await;
            });
        }
    }

    /// Asks for the end of a part.
    pub(super) fn end_part(&self, run: RunId, by: PrincipalName) {
        let inbox = lock(&self.0.open).get(&run).map(|open| open.inbox.clone());
        if let Some(inbox) = inbox {
            let (tell, _) = oneshot::channel();
            self.0.tasks.spawn(async move {
                // Else it has ended.
                let _ = inbox.send(ToRun::Cancel { by, tell }).await;
            });
        }
    }

    /// How the standard output of each node of a run began, `each` bytes of
    /// it.
    pub(super) async fn begun_output(
        &self,
        state: &RunState,
        each: usize,
    ) -> Result<BTreeMap<Serial, String>, StreamError> {
        let run = state.spec.id;
        let mut heads: BTreeMap<Serial, Vec<u8>> = BTreeMap::new();
        if state.results().all(|result| result.output_bytes == 0) {
            return Ok(BTreeMap::new());
        }
        let Some(first) = lock(&self.0.index).first(run) else {
            return Ok(BTreeMap::new());
        };
        let mut stored = read_from(&self.0.js, STREAM, &subject::output(run), first).await?;
        let mut read = 0;
        while read < MOST_READ
            && let Some(message) = stored.try_next().await?
        {
            read += message.payload.len();
            let Some(head) = output_head(&message.headers) else {
                continue;
            };
            if head.stream == Stream::Stdout {
                let text = heads.entry(head.serial).or_default();
                let room = each.saturating_sub(text.len());
                text.extend(message.payload.iter().take(room));
            }
        }
        let text = |(serial, bytes): (Serial, Vec<u8>)| {
            (serial, String::from_utf8_lossy(&bytes).into_owned())
        };
        Ok(heads.into_iter().map(text).collect())
    }

    /// Of which scenarios a run is a part, from the top.
    pub(super) fn callers_of(&self, state: &RunState) -> Vec<ScenarioName> {
        let mut names = vec![state.spec.scenario.clone()];
        let mut above = state.spec.part_of;
        while let Some(part) = above
            && names.len() <= super::MOST_DEEP
        {
            let index = lock(&self.0.index);
            let Some(brief) = index.get(part.run) else {
                break;
            };
            names.push(brief.scenario);
            above = brief.part_of;
        }
        names.reverse();
        names
    }

    /// The locks that a run, and those that it is a part of, hold: a part of it
    /// has them by that.
    pub(super) fn locks_above(&self, state: &RunState) -> BTreeSet<String> {
        let mut runs = vec![state.spec.id];
        let mut above = state.spec.part_of;
        while let Some(part) = above
            && runs.len() <= super::MOST_DEEP
        {
            runs.push(part.run);
            above = lock(&self.0.index).part_of(part.run);
        }
        self.0.locks.held_by(&runs)
    }

    /// A step of a run, as a run of its own. `budgets` says whether some of
    /// its nodes may fail and others are left out for that; else all of them
    /// have their turn.
    pub(super) fn step_run(
        &self,
        parent: &RunState,
        id: RunId,
        part_of: PartOf,
        step: &Step,
        budgets: bool,
    ) -> Result<Authorized<FrozenRun>, PartError> {
        let targets: Vec<Target> = parent
            .order
            .iter()
            .filter(|serial| step.nodes.contains(**serial))
            .filter_map(|serial| {
                let node = parent.nodes.get(serial)?;
                Some(Target {
                    serial: *serial,
                    name: node.name.clone(),
                    labels: node.labels.clone(),
                })
            })
            .collect();
        let secrets = if step.secrets().is_empty() {
            None
        } else {
            let held = lock(&self.0.secrets).get(&parent.spec.id).cloned();
            Some(held.ok_or(PartError::SecretsGone)?)
        };
        let spec = &parent.spec;
        let spec_gates = spec.gates.clone();
        let spec = RunSpec {
            id,
            function: step.function.clone(),
            params: serde_json::Value::Object(step.params.clone()),
            title: format!("{} {}", spec.scenario, step.function),
            predicate: parent
                .predicate_of(&step.nodes)
                .unwrap_or_else(|| spec.predicate.clone()),
            targets: u32::try_from(targets.len()).unwrap_or(u32::MAX),
            options: step_options(&spec.options, &step.options, budgets),
            gates: Gates::default(),
            expect: Expected::default(),
            retry_of: None,
            left_out: 0,
            local: None,
            rebuilt: None,
            main: None,
            part_of: Some(part_of),
            // What is told of it is told of the whole.
            chat: None,
            created: Timestamp::now(),
            ..spec.clone()
        };
        let mut frozen = FrozenRun::step(spec, targets);
        if let Some(secrets) = secrets {
            frozen.secrets = secrets;
        }
        let action = Action::CreateRun(Box::new(RunAsk::of_step(parent, &frozen.set())));
        let stage = self.0.stages.get().map_err(|_| CreateError::NotReady)?;
        let step = authorize(stage.policy(), &caller(parent), action, frozen)?;
        // What the policies ask for by now, beside what was given.
        if !step.grant().is_met_by(&spec_gates) {
            return Err(PartError::Approvals(step.grant().approvals));
        }
        Ok(step)
    }
}

/// How a step goes about its nodes: as it says, else as the whole run does.
/// The batch of the scenario is for those without a `main`.
fn step_options(whole: &RunOptions, step: &StepOptions, budgets: bool) -> RunOptions {
    let mut options = whole.clone();
    options.batch = step.batch;
    options.timeout = step.timeout.unwrap_or(whole.timeout);
    options.retry = step.retry.unwrap_or(whole.retry);
    if !budgets {
        options.max_failures = None;
        options.max_failures_by.clear();
    } else if let Some(own) = step.max_failures {
        options.max_failures = Some(own);
        options.max_failures_by.clear();
    } else if options.max_failures.is_none() && options.max_failures_by.is_empty() {
        options.max_failures = Some(Amount::Count(0));
    }
    options
}

/// The principal of a run with what it might do when it asked.
pub(super) fn caller(parent: &RunState) -> Caller {
    let main = parent.spec.main.as_ref();
    Caller {
        principal: parent.spec.principal.clone(),
        // Without one it may do nothing but look.
        role: main.map_or(Role::Reader, |main| main.role),
        token: format!("run {}", parent.spec.id),
        door: parent.spec.door,
        origin: Origin::Run {
            run: parent.spec.id,
            asked: parent.spec.created,
            whence: Box::new(main.map_or(Origin::Unknown, |main| main.origin.clone())),
        },
    }
}

impl Shared {
    /// Tells the run that this one is a part of what has become of it.
    pub(in crate::runs) fn tell_parent(self: &Arc<Self>, state: &RunState, event: &RunEvent) {
        let Some(part) = state.spec.part_of else {
            return;
        };
        let parent = lock(&self.open).get(&part.run).cloned();
        let Some(parent) = parent else { return };
        if matches!(event, RunEvent::Outcomes { .. }) {
            // Nobody may be watching.
            let _ = parent.live.send(Frame::StepProgress {
                run: part.run,
                step: state.spec.id,
                nodes: state.spec.targets,
                summary: state.summary(),
            });
        }
        if !matches!(event, RunEvent::Finished { .. }) {
            return;
        }
        // It looks for itself; it only has to be woken.
        if let Err(mpsc::error::TrySendError::Full(message)) =
            parent.inbox.try_send(ToRun::PartEnded)
        {
            self.tasks.spawn(async move {
                let _ = parent.inbox.send(message).await;
            });
        }
    }
}
