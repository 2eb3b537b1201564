//! What a `main` needs from the rest of the broker.

use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, OnceLock};

use futures_util::future::BoxFuture;
use muster_protocol::api::{CreateVms, VmView};
use muster_protocol::envelope::{BundleHash, Mode};
use muster_protocol::ids::RunId;
use muster_protocol::names::{NodeName, ScenarioName};
use muster_protocol::problem::Problem;
use muster_protocol::run::{MadeMachine, PartOf};
use muster_scenarios::bundle::Bundle;
use muster_scenarios::durable::Program;
use muster_scenarios::fault::Fault;
use muster_scenarios::manifest::{self, Manifest};
use serde_json::{Map, Value};
use tokio::sync::Semaphore;

use super::super::engine::lock;
use super::super::request::FrozenRun;
use crate::authz::{Authorized, Caller, Policy};

/// Scenarios that are held ready. Those of runs that only wait need not be.
const HELD: usize = 32;
/// Scripts that compute at a time.
const AT_ONCE: usize = 2;

/// A scenario that is ready to be run.
#[derive(Debug)]
pub struct Score {
    /// Its script.
    pub program: Program,
    /// What stands at its top.
    pub manifest: Manifest,
}

impl Score {
    /// Reads a bundle.
    ///
    /// # Errors
    /// The first thing that is wrong in the script.
    pub fn new(file: &str, bundle: &Bundle) -> Result<Self, Box<Fault>> {
        let manifest = manifest::read(file, bundle.script()).map_err(|faults| {
            let first = faults.into_iter().next();
            Box::new(first.expect("what is refused has a fault"))
        })?;
        let program = Program::new(file, bundle.script())?;
        Ok(Self { program, manifest })
    }
}

/// Why a scenario cannot be had.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum StageError {
    /// It is not stored here.
    #[error("the scenario with the hash {0} is not stored here; `muster scenario put` it again")]
    NotThere(BundleHash),
    /// The store gives no answer.
    #[error("the store gives no answer: {0}")]
    NoAnswer(String),
    /// It cannot be read any more: a newer muster may have written it.
    #[error("the stored scenario cannot be read: {0}")]
    Unreadable(String),
}

/// A run that a `main` asks for with `run_scenario`.
#[derive(Clone, Debug)]
pub struct Another {
    /// Who asks: the principal of the run, with what it might do then.
    pub caller: Caller,
    /// Which scenario.
    pub scenario: ScenarioName,
    /// What it is given.
    pub params: Map<String, Value>,
    /// The predicate of its targets; its own when absent.
    pub on: Option<String>,
    /// Apply or check.
    pub mode: Mode,
    /// The id of the run.
    pub id: RunId,
    /// Locks that it has already, because those have them that it is a part
    /// of.
    pub held: BTreeSet<String>,
    /// Of what it is a part.
    pub part_of: PartOf,
}

/// A machine that a call asked for, as its record says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum MachineNow {
    /// Nothing was begun.
    Nothing,
    /// It is being made, by that run once there is one.
    Coming(Option<RunId>),
    /// It is there.
    Up(Box<UpMachine>),
    /// Something else is done with it: by that run, where it is configured.
    Busy(MadeMachine, Option<RunId>),
    /// It was destroyed, and its disk is kept.
    Kept(MadeMachine),
    /// It is destroyed for good.
    Going(MadeMachine),
    /// It cannot be said whether it is there.
    Doubtful(MadeMachine, String),
    /// Nothing of it is there, and why.
    Gone(String),
}

/// A machine that is up.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct UpMachine {
    /// Which, and where.
    pub made: MadeMachine,
    /// The node that it is, if an agent is in it.
    pub node: Option<NodeName>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether somebody protects it.
    pub protected: bool,
}

/// Whoever makes machines.
pub trait Machinery: Send + Sync {
    /// How the machine is that a call asked for.
    fn now(&self, of: PartOf) -> MachineNow;

    /// What would be made; nothing is.
    fn would_make(
        &self,
        caller: Caller,
        asked: CreateVms,
    ) -> BoxFuture<'_, Result<VmView, Problem>>;

    /// Begins to make it. Whoever asks has looked whether it was begun.
    fn make(
        &self,
        caller: Caller,
        asked: CreateVms,
        of: PartOf,
    ) -> BoxFuture<'_, Result<(), Problem>>;

    /// Ends its making, or its configuring, where nobody has taken the run that
    /// does it.
    fn call_off(&self, of: PartOf) -> BoxFuture<'_, Result<(), Problem>>;

    /// Begins to destroy it, with its disk.
    fn unmake(&self, caller: Caller, of: PartOf) -> BoxFuture<'_, Result<(), Problem>>;
}

/// The rest of the broker, as a `main` sees it.
pub trait Stage: Send + Sync + 'static {
    /// The scenario with that hash.
    fn score(&self, bundle: BundleHash) -> BoxFuture<'_, Result<Arc<Score>, StageError>>;

    /// A run of another scenario, judged and frozen as if its principal had
    /// asked for it.
    fn another(&self, asked: Another) -> BoxFuture<'_, Result<Authorized<FrozenRun>, Problem>>;

    /// Who may do what.
    fn policy(&self) -> &dyn Policy;

    /// Whoever makes machines, if anybody does.
    fn machinery(&self) -> Option<&dyn Machinery> {
        None
    }
}

/// The stage, once it is there, and the scenarios that are held ready.
pub(in crate::runs) struct Stages {
    stage: OnceLock<Arc<dyn Stage>>,
    held: Mutex<VecDeque<(BundleHash, Arc<Score>)>>,
    /// Whoever lets a script compute has one of these.
    pub(super) turns: Arc<Semaphore>,
}

impl Default for Stages {
    fn default() -> Self {
        Self {
            stage: OnceLock::new(),
            held: Mutex::default(),
            turns: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }
}

impl Stages {
    /// Sets the stage; the first one stays.
    pub(in crate::runs) fn set(&self, stage: Arc<dyn Stage>) {
        let _ = self.stage.set(stage);
    }

    /// The stage.
    ///
    /// # Errors
    /// It is not there: the broker starts.
    pub(super) fn get(&self) -> Result<&Arc<dyn Stage>, StageError> {
        self.stage
            .get()
            .ok_or_else(|| StageError::NoAnswer("the broker starts".to_owned()))
    }

    /// A scenario by its hash.
    ///
    /// # Errors
    /// [`StageError`].
    pub(in crate::runs) async fn score(
        &self,
        bundle: BundleHash,
    ) -> Result<Arc<Score>, StageError> {
        {
            let mut held = lock(&self.held);
            if let Some(at) = held.iter().position(|(hash, _)| *hash == bundle)
                && let Some(found) = held.remove(at)
            {
                let score = Arc::clone(&found.1);
                held.push_back(found);
                return Ok(score);
            }
        }
        let score = self.get()?.score(bundle).await?;
        let mut held = lock(&self.held);
        held.push_back((bundle, Arc::clone(&score)));
        while held.len() > HELD {
            held.pop_front();
        }
        Ok(score)
    }
}
