//! What can be said of a request without running it.

use muster_protocol::api::RunRequest;
use muster_protocol::envelope::Mode;
use muster_protocol::ids::RunId;
use muster_protocol::problem::{Kind, Problem};
use muster_protocol::units::Timestamp;
use muster_scenarios::manifest::Shape;
use serde_json::Value;

use super::{Refused, Submit, create, denied, is_builtin, refused, stored};
use crate::authz::{Caller, RunAsk, authorize};
use crate::resolve::resolve;
use crate::runs::{self, CreateError, Program};
use crate::vm::only;

/// What would come of a request.
#[derive(Debug, Default)]
pub struct Rehearsed {
    /// How many nodes it would be for, those of all its sets; absent when
    /// there is no run that this could be said of.
    pub nodes: Option<u32>,
    /// Whether the policy allows it; absent likewise.
    pub allowed: Option<bool>,
    /// What the run would wait for, in sentences.
    pub waits: Vec<String>,
    /// Why there would be no run.
    pub problem: Option<Refused>,
}

impl Submit {
    /// Holds a request against everything that is known now, for somebody who
    /// wants to ask for it later, again and again. That no node matches is no
    /// mistake then; a secret is: nothing would keep it.
    ///
    /// The answer is what a person has to do for each such run, in sentences;
    /// nothing mostly.
    ///
    /// # Errors
    /// [`Refused`]: why it would be refused.
    pub async fn check(
        &self,
        caller: &Caller,
        request: &RunRequest,
    ) -> Result<Vec<String>, Refused> {
        match self.would_be(caller, request).await {
            Ok(frozen) => {
                only::judge(&frozen.spec, &*self.wanted)?;
                let judged = authorize(self.guard.policy(), caller, create(&frozen), ());
                judged.map_err(|e| denied(&e))?;
            }
            Err(error) if error.kind == Kind::NoMatch => {}
            Err(error) => return Err(error),
        }
        if is_builtin(&request.scenario) || request.mode == Mode::Check {
            return Ok(Vec::new());
        }
        let (program, _) = self.ready(request).await?;
        let mut waits = Vec::new();
        if program.manifest.confirm {
            waits.push(format!(
                "`{}` asks for a confirmation: whoever adds the schedule confirms all of its runs by that",
                program.name
            ));
        }
        waits.extend(self.waits_of(&program).await?);
        Ok(waits)
    }

    /// What would come of a request if it were made now. Nothing is done, and
    /// nothing recorded.
    pub async fn rehearse(&self, caller: &Caller, request: &RunRequest) -> Rehearsed {
        let mut said = Rehearsed::default();
        said.problem = self.rehearsed_into(caller, request, &mut said).await.err();
        said
    }

    /// In the order of [`Submit::run`], so that the first problem is the one
    /// that it would have.
    async fn rehearsed_into(
        &self,
        caller: &Caller,
        request: &RunRequest,
        said: &mut Rehearsed,
    ) -> Result<(), Refused> {
        let (program, frozen) = self.frozen(caller, request).await?;
        said.nodes = Some(u32::try_from(frozen.set().len()).unwrap_or(u32::MAX));
        only::judge(&frozen.spec, &*self.wanted)?;
        let judged = authorize(self.guard.policy(), caller, create(&frozen), ());
        said.allowed = Some(judged.is_ok());
        judged.map_err(|e| denied(&e))?;
        if let Some(freeze) = self.nodes.engine.frozen() {
            return Err(refused(CreateError::Frozen(Box::new(freeze)).problem()));
        }
        self.fits(&frozen)?;
        if let Some(program) = program.filter(|_| request.mode == Mode::Apply) {
            said.waits = self.waits_of(&program).await?;
        }
        Ok(())
    }

    /// What each run of a scenario waits for that only people can give.
    async fn waits_of(&self, program: &Program) -> Result<Vec<String>, Refused> {
        let manifest = &program.manifest;
        let mut waits = Vec::new();
        let for_ever =
            "until somebody does that or cancels it; the runs after it begin all the same";
        if manifest.approvals > 0 {
            let approvals = match manifest.approvals {
                1 => "an approval".to_owned(),
                n => format!("{n} approvals"),
            };
            waits.push(format!(
                "each run waits for {approvals} (muster runs approve RUN), {for_ever}"
            ));
        }
        if manifest.shape == Shape::Main {
            let asks = self.nodes.engine.asks(program.bundle).await;
            let asks =
                asks.map_err(|error| refused(Problem::new(Kind::Unavailable, error.to_string())))?;
            if let [first, rest @ ..] = asks.as_slice() {
                let lines = match rest {
                    [] => format!("line {first}"),
                    _ => {
                        let all: Vec<String> = asks.iter().map(ToString::to_string).collect();
                        format!("lines {}", all.join(", "))
                    }
                };
                waits.push(format!(
                    "a run that comes to {lines} waits for an answer (muster runs answer RUN TEXT), {for_ever}"
                ));
            }
        }
        Ok(waits)
    }

    /// What a policy would be told of a request.
    ///
    /// # Errors
    /// [`Refused`]: why there would be no run that it could be asked of.
    pub async fn sketch(&self, caller: &Caller, request: &RunRequest) -> Result<RunAsk, Refused> {
        let (_, frozen) = self.frozen(caller, request).await?;
        Ok(RunAsk::of(&frozen))
    }

    async fn would_be(
        &self,
        caller: &Caller,
        request: &RunRequest,
    ) -> Result<runs::FrozenRun, Refused> {
        let (program, frozen) = self.frozen(caller, request).await?;
        let given = |name: &str| request.params.get(name).is_some_and(|v| *v != Value::Null);
        let params = program.iter().flat_map(|program| &program.manifest.params);
        let mut secret = params.filter(|p| p.secret);
        if let (Some(param), Some(program)) = (secret.find(|p| given(&p.name)), &program) {
            let title = format!(
                "`{}` of `{}` is secret, and what is asked for again and again would have to be kept",
                param.name, program.name
            );
            return Err(refused(Problem::new(Kind::InvalidRequest, title).hint(
                "let the scenario read it on the node, from a file that only root can read",
            )));
        }
        Ok(frozen)
    }

    /// The run that would be created now, and the stored scenario it is of.
    async fn frozen(
        &self,
        caller: &Caller,
        request: &RunRequest,
    ) -> Result<(Option<Program>, runs::FrozenRun), Refused> {
        let (id, now) = (RunId::random(), Timestamp::now());
        let by = (&caller.principal, caller.door);
        let snapshot = self.inventory.snapshot();
        if is_builtin(&request.scenario) {
            let mut request = request.clone();
            self.complete(&mut request)?;
            let checked = runs::check(&request).map_err(|error| refused(error.problem()))?;
            let options = runs::options(&request);
            let resolved = resolve(checked.predicate(), &snapshot, options)
                .map_err(|error| refused(error.problem()))?;
            return Ok((None, checked.freeze(&request, &resolved, id, by, now)));
        }
        let (program, ready) = self.ready(request).await?;
        let frozen = ready
            .freeze(&snapshot, id, by, now)
            .map_err(|error| stored(&error))?;
        Ok((Some(program), frozen))
    }
}
