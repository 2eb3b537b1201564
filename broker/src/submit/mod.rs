//! The one way to a new run, whatever door it comes through: read, hold
//! against the scenario, resolve, authorise, ask for a confirmation where one
//! is needed, create. HTTP, schedules and scenarios that run others all come
//! here.

mod again;
mod check;
mod plan;
mod programs;
mod stage;

use std::sync::Arc;

use muster_protocol::api::{Confirm, Plan, PlanRef, RunRequest, RunView};
use muster_protocol::envelope::Mode;
use muster_protocol::ids::RunId;
use muster_protocol::names::ScenarioName;
use muster_protocol::predicate::Predicate;
use muster_protocol::problem::{Kind, Problem};
use muster_protocol::units::Timestamp;
use muster_scenarios::upgrade::{self, Upgrade, UpgradeRequest};
use muster_scenarios::{Builtin, command};
use serde_json::Value;

use crate::authz::{Action, Authorized, Caller, Denied, Guard, RunAsk, Unauthorized};
use crate::bus::Nodes;
use crate::fit::{judge, judge_scenario};
use crate::inventory::Inventory;
use crate::lease::Lease;
use crate::plans::{RequestHash, Taken};
use crate::releases::Releases;
use crate::resolve::resolve;
use crate::runs::{self, CreateError, EngineError, FrozenRun, Program, Ready, StoredError};
use crate::vm::only::{self, Wanted};

pub use self::check::Rehearsed;
pub use self::programs::Programs;
pub use self::stage::Broker;

/// Why nothing was run, as it is shown at the edge.
pub type Refused = Box<Problem>;

/// What came of a request for a run.
#[derive(Debug)]
pub enum Submitted {
    /// It was created; or the same request had created it before.
    Run(Box<RunView>),
    /// It needs a confirmation. Nothing was run.
    Confirm(Box<Plan>),
}

/// Under which id a run is asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Asked {
    /// The run's id, if one is created.
    pub id: RunId,
    /// Whether the same request may have come before, under the same id: then
    /// it is answered with what came of it.
    pub repeatable: bool,
    /// Whether it takes back what a run did: a freeze does not stop it.
    pub takes_back: bool,
}

impl Asked {
    /// A request that comes once.
    #[must_use]
    pub fn once() -> Self {
        Self {
            id: RunId::random(),
            repeatable: false,
            takes_back: false,
        }
    }

    /// A request whose run has this id, however often it comes.
    #[must_use]
    pub fn under(id: RunId) -> Self {
        Self {
            id,
            repeatable: true,
            takes_back: false,
        }
    }

    /// The same, to take back what a run did.
    #[must_use]
    pub(crate) fn taking_back(self) -> Self {
        Self {
            takes_back: true,
            ..self
        }
    }
}

/// Makes runs. Cheap to clone.
#[derive(Clone)]
pub struct Submit {
    /// The nodes.
    pub inventory: Inventory,
    /// Runs and plans.
    pub nodes: Nodes,
    /// Agents that nodes can be upgraded to.
    pub releases: Releases,
    /// Who may do what.
    pub guard: Guard,
    /// Whether this broker may write.
    pub lease: Lease,
    /// The stored scenarios.
    pub programs: Arc<dyn Programs>,
    /// Which runs machines' records want.
    pub wanted: Arc<dyn Wanted>,
}

impl std::fmt::Debug for Submit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Submit").finish_non_exhaustive()
    }
}

pub(crate) fn refused(problem: Problem) -> Refused {
    Box::new(problem)
}

fn denied(denied: &Denied) -> Refused {
    refused(Problem::new(Kind::Denied, denied.to_string()))
}

fn unauthorized(error: &Unauthorized) -> Refused {
    match error {
        Unauthorized::Denied(no) => denied(no),
        Unauthorized::Unrecorded(error) => refused(error.problem()),
    }
}

fn engine(error: &EngineError) -> Refused {
    refused(error.problem())
}

fn stored(error: &StoredError) -> Refused {
    refused(error.problem())
}

/// Whether a scenario is built in.
pub(crate) fn is_builtin(scenario: &ScenarioName) -> bool {
    matches!(scenario.as_str(), command::NAME | upgrade::NAME)
}

/// A frozen run that is about to be begun.
struct Begin {
    frozen: FrozenRun,
    /// The plan that it is of, if one was shown.
    taken: Option<Taken>,
    /// What the request was, for a plan of it.
    hash: RequestHash,
    /// The scenario wants a person to see it first.
    asks: bool,
    /// Under which id it was asked for.
    asked: Asked,
}

impl Submit {
    /// Runs what is asked for.
    ///
    /// # Errors
    /// [`Refused`]; nothing was run, unless it says otherwise.
    pub async fn run(
        &self,
        caller: &Caller,
        request: RunRequest,
        asked: Asked,
    ) -> Result<Submitted, Refused> {
        if is_builtin(&request.scenario) {
            self.builtin(caller, request, asked).await
        } else {
            self.stored(caller, request, asked).await
        }
    }

    async fn builtin(
        &self,
        caller: &Caller,
        mut request: RunRequest,
        asked: Asked,
    ) -> Result<Submitted, Refused> {
        self.complete(&mut request)?;
        let checked = runs::check(&request).map_err(|error| refused(error.problem()))?;
        if asked.repeatable {
            let same = |old: &RunView| {
                old.params == request.params
                    && old.brief.scenario == request.scenario
                    && old.options == *checked.options()
                    && same_predicate(&old.brief.predicate, checked.predicate())
            };
            if let Some(run) = self.repeated(caller, asked.id, same).await? {
                return Ok(Submitted::Run(Box::new(run)));
            }
        }
        let hash = hash_of(&request);
        let (frozen, taken) = match &request.confirm {
            Confirm::Plan(plan) => match self.confirmed(caller, plan, hash, asked)? {
                Confirmed::Now(taken) => (taken.run().clone(), Some(*taken)),
                Confirmed::Before(run) => return self.shown(caller, run).await,
            },
            Confirm::Ask | Confirm::Yes | Confirm::Later => {
                let snapshot = self.inventory.snapshot();
                let resolved = resolve(checked.predicate(), &snapshot, runs::options(&request))
                    .map_err(|error| refused(error.problem()))?;
                let by = (&caller.principal, caller.door);
                let now = Timestamp::now();
                let frozen = checked.freeze(&request, &resolved, asked.id, by, now);
                (frozen, None)
            }
        };
        let begin = Begin {
            frozen,
            taken,
            hash,
            asks: false,
            asked,
        };
        self.begin(caller, &request.confirm, begin).await
    }

    async fn stored(
        &self,
        caller: &Caller,
        request: RunRequest,
        asked: Asked,
    ) -> Result<Submitted, Refused> {
        let hash = hash_of(&request);
        if let Confirm::Plan(plan) = &request.confirm {
            // What was shown runs, whatever the scenario has become since.
            match self.confirmed(caller, plan, hash, asked) {
                Ok(Confirmed::Now(taken)) => {
                    let begin = Begin {
                        frozen: taken.run().clone(),
                        taken: Some(*taken),
                        hash,
                        asks: false,
                        asked,
                    };
                    return self.begin(caller, &request.confirm, begin).await;
                }
                Ok(Confirmed::Before(run)) => return self.shown(caller, run).await,
                // It may have come about before this broker was started.
                Err(gone) => {
                    let before = self.stored_before(caller, &request, asked).await?;
                    return before.map_or(Err(gone), |run| Ok(Submitted::Run(Box::new(run))));
                }
            }
        }
        if let Some(run) = self.stored_before(caller, &request, asked).await? {
            return Ok(Submitted::Run(Box::new(run)));
        }
        let (program, ready) = self.ready(&request).await?;
        let asks = ready.asks();
        let snapshot = self.inventory.snapshot();
        let by = (&caller.principal, caller.door);
        let frozen = ready
            .freeze(&snapshot, asked.id, by, Timestamp::now())
            .map_err(|error| stored(&error))?;
        let rehearsed = (request.mode == Mode::Check).then(|| frozen.clone());
        let begin = Begin {
            frozen,
            taken: None,
            hash,
            asks,
            asked,
        };
        let submitted = self.begin(caller, &request.confirm, begin).await?;
        if let (Some(frozen), Submitted::Run(run)) = (rehearsed, &submitted) {
            self.rehearsed(caller, &request, &program, frozen, run.brief.id);
        }
        Ok(submitted)
    }

    /// The scenario, and the request held against it.
    async fn ready(&self, request: &RunRequest) -> Result<(Program, Ready), Refused> {
        let program = self
            .programs
            .load(&request.scenario, request.version)
            .await?;
        let ready = runs::ready(request, &program).map_err(|error| stored(&error))?;
        Ok((program, ready))
    }

    /// A stored scenario that takes what the request gives it.
    ///
    /// # Errors
    /// [`Refused`]: there is none, or it does not.
    pub(crate) async fn holds(&self, request: &RunRequest) -> Result<Program, Refused> {
        self.ready(request).await.map(|(program, _)| program)
    }

    /// The run that the same request has created before.
    async fn stored_before(
        &self,
        caller: &Caller,
        request: &RunRequest,
        asked: Asked,
    ) -> Result<Option<RunView>, Refused> {
        if !asked.repeatable {
            return Ok(None);
        }
        let Some(old) = self.known(caller, asked.id).await? else {
            return Ok(None);
        };
        // The scenario may have changed since: what counts is what ran.
        let version = request.version.or(old.brief.version);
        let pinned = RunRequest {
            version,
            ..request.clone()
        };
        let same = match self.ready(&pinned).await {
            Ok((_, ready)) => {
                old.brief.scenario == request.scenario
                    && old.brief.version == version
                    && old.brief.mode == request.mode
                    && old.params == ready.params()
                    && old.options == *ready.options()
                    && same_predicate(&old.brief.predicate, ready.predicate())
            }
            Err(_) => false,
        };
        if same {
            Ok(Some(old))
        } else {
            Err(used_key(&old))
        }
    }

    /// Whether a run does what is asked for, whatever these parameters are.
    pub(crate) async fn is_like(
        &self,
        old: &RunView,
        request: &RunRequest,
        aside: &[&str],
    ) -> bool {
        // The scenario may have changed since: what counts is what ran.
        let pinned = RunRequest {
            version: request.version.or(old.brief.version),
            ..request.clone()
        };
        let Ok((_, ready)) = self.ready(&pinned).await else {
            return false;
        };
        let rest = |mut params: Value| {
            if let Value::Object(all) = &mut params {
                all.retain(|name, _| !aside.contains(&name.as_str()));
            }
            params
        };
        old.brief.scenario == request.scenario
            && old.brief.mode == request.mode
            && rest(old.params.clone()) == rest(ready.params())
    }

    /// Puts what this broker knows of a release into the request to upgrade
    /// to it: what is confirmed and signed says it all.
    fn complete(&self, request: &mut RunRequest) -> Result<(), Refused> {
        if request.scenario.as_str() != upgrade::NAME {
            return Ok(());
        }
        let asked = UpgradeRequest::from_params(&request.params).map_err(|e| {
            refused(Problem::new(
                Kind::InvalidRequest,
                format!("{e}; nothing was run"),
            ))
        })?;
        let view = self
            .releases
            .get(asked.release)
            .map_err(|e| refused(e.problem()))?;
        let whole = Upgrade {
            release: view.id,
            size: view.size,
            about: view.release,
            allow_downgrade: asked.allow_downgrade,
        };
        request.params = serde_json::to_value(whole).map_err(|e| {
            refused(Problem::new(
                Kind::Internal,
                format!("the release cannot be told of: {e}"),
            ))
        })?;
        Ok(())
    }

    /// Refuses a run that some of its nodes' agents could not do.
    fn fits(&self, run: &FrozenRun) -> Result<(), Refused> {
        let also = run.sets.iter().flat_map(|set| &set.nodes);
        let nodes = run
            .targets
            .iter()
            .chain(also)
            .map(|target| (&target.name, self.inventory.agent(target.serial)));
        let judged = if run.spec.version.is_some() {
            judge_scenario(nodes)
        } else {
            let call = Builtin::read(&run.spec.scenario, &run.spec.params).map_err(|e| {
                refused(Problem::new(
                    Kind::InvalidRequest,
                    format!("{e}; nothing was run"),
                ))
            })?;
            judge(&call, nodes)
        };
        judged.map_err(|unfit| refused(unfit.problem()))
    }

    async fn allowed<T: 'static>(
        &self,
        caller: &Caller,
        action: Action,
        subject: T,
    ) -> Result<Authorized<T>, Refused> {
        let allowed = self.guard.authorize(caller, action, subject).await;
        allowed.map_err(|e| unauthorized(&e))
    }

    async fn allowed_run(
        &self,
        caller: &Caller,
        frozen: FrozenRun,
    ) -> Result<Authorized<FrozenRun>, Refused> {
        only::judge(&frozen.spec, &*self.wanted)?;
        let allowed = self.guard.authorize_run(caller, frozen).await;
        allowed.map_err(|e| unauthorized(&e))
    }

    /// Authorises a frozen run, asks for a confirmation where one is needed,
    /// and creates it.
    async fn begin(
        &self,
        caller: &Caller,
        confirm: &Confirm,
        begin: Begin,
    ) -> Result<Submitted, Refused> {
        let Begin {
            mut frozen,
            taken,
            hash,
            asks,
            asked,
        } = begin;
        if taken.is_some() {
            // It comes about now, not when it was shown.
            frozen.spec.created = Timestamp::now();
        }
        frozen.spec.takes_back = asked.takes_back;
        let settings = &self.nodes.settings;
        runs::confirm_later(&mut frozen, confirm, settings.confirm_within);
        let authorized = self.allowed_run(caller, frozen).await?;
        if self.lease.epoch().is_none() {
            return Err(refused(not_active()));
        }
        if let Some(freeze) = self.nodes.engine.halted(&authorized.get().spec) {
            return Err(refused(CreateError::Frozen(Box::new(freeze)).problem()));
        }
        self.fits(authorized.get())?;
        let spec = &authorized.get().spec;
        let many = authorized.get().set().len() > settings.confirm_above as usize;
        if *confirm == Confirm::Ask && (asks || (many && spec.mode == Mode::Apply)) {
            let plan = self.plan(caller, hash, authorized.into_inner());
            return Ok(Submitted::Confirm(Box::new(plan)));
        }
        let id = spec.id;
        let engine_of = self.nodes.engine.clone();
        // A run that is begun to be written down is written down, also when
        // nobody waits for the answer any more.
        let created = tokio::spawn(async move {
            let created = match engine_of.create(authorized).await {
                // The same request came twice at once, or was written down
                // although nobody said so.
                Err(CreateError::Exists(_)) => {
                    engine_of.adopt(id).await.map_err(|e| engine(&e))?;
                    engine_of.show(id).await.map_err(|e| engine(&e))?
                }
                created => created.map_err(|error| refused(error.problem()))?,
            };
            if let Some(plan) = taken {
                plan.used(asked.id);
            }
            Ok(Submitted::Run(Box::new(created)))
        });
        created.await.unwrap_or_else(|error| {
            tracing::error!(%error, "a run could not be created");
            Err(refused(Problem::new(
                Kind::Internal,
                "the broker could not do this; its log says why",
            )))
        })
    }

    /// Takes a plan. Who repeats a request is told what came of it.
    fn confirmed(
        &self,
        caller: &Caller,
        plan: &PlanRef,
        hash: RequestHash,
        asked: Asked,
    ) -> Result<Confirmed, Refused> {
        let plans = &self.nodes.plans;
        let who = &caller.principal;
        match plans.take(plan, who, hash, Timestamp::now()) {
            Ok(taken) => Ok(Confirmed::Now(Box::new(taken))),
            Err(gone) => match plans.used(plan, who, hash, asked.id) {
                Some(run) if asked.repeatable => Ok(Confirmed::Before(run)),
                _ => Err(refused(gone.problem())),
            },
        }
    }

    async fn shown(&self, caller: &Caller, run: RunId) -> Result<Submitted, Refused> {
        self.allowed(caller, Action::ReadRuns, ()).await?;
        let run = self.nodes.engine.show(run).await;
        Ok(Submitted::Run(Box::new(run.map_err(|e| engine(&e))?)))
    }

    /// A run of that id, if there is one.
    async fn known(&self, caller: &Caller, id: RunId) -> Result<Option<RunView>, Refused> {
        let runs = &self.nodes.engine;
        match runs.lookup(&id.to_string()) {
            Ok(_) => {}
            Err(EngineError::Lookup(_)) => return Ok(None),
            Err(error) => return Err(engine(&error)),
        }
        self.allowed(caller, Action::ReadRuns, ()).await?;
        let run = runs.show(id).await.map_err(|e| engine(&e))?;
        Ok(Some(run))
    }

    /// The run that the same request has created before.
    async fn repeated(
        &self,
        caller: &Caller,
        id: RunId,
        same: impl Fn(&RunView) -> bool,
    ) -> Result<Option<RunView>, Refused> {
        match self.known(caller, id).await? {
            Some(old) if !same(&old) => Err(used_key(&old)),
            known => Ok(known),
        }
    }
}

/// What a confirmation stands for.
enum Confirmed {
    /// This is to be run.
    Now(Box<Taken>),
    /// This run, which it has created before.
    Before(RunId),
}

/// Creating exactly this run.
pub(crate) fn create(frozen: &FrozenRun) -> Action {
    Action::CreateRun(Box::new(RunAsk::of(frozen)))
}

/// What was asked, whatever its confirmation.
fn hash_of(request: &RunRequest) -> RequestHash {
    RequestHash::of(&(
        "run",
        &RunRequest {
            confirm: Confirm::Ask,
            ..request.clone()
        },
    ))
}

fn used_key(old: &RunView) -> Refused {
    let title = format!(
        "this Idempotency-Key was used for another request (run {})",
        old.brief.short
    );
    refused(Problem::new(Kind::Conflict, title).hint("use a new key for a new request"))
}

fn not_active() -> Problem {
    Problem::new(Kind::Unavailable, "this broker is not the active one now")
        .detail(
            "its lease cannot be renewed: NATS is away or slow, or another broker has taken over",
        )
        .hint("try again in a few seconds; if it stays so, look at `muster doctor`")
}

/// Whether a predicate is the one that a run was resolved from.
fn same_predicate(canonical: &str, text: &str) -> bool {
    text.parse::<Predicate>()
        .is_ok_and(|predicate| predicate.text() == canonical)
}
