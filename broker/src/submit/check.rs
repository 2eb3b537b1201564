//! What can be said of a request without running it.

use muster_protocol::api::RunRequest;
use muster_protocol::envelope::Mode;
use muster_protocol::ids::RunId;
use muster_protocol::problem::{Kind, Problem};
use muster_protocol::units::Timestamp;
use muster_scenarios::manifest::Shape;
use serde_json::Value;

use super::{Refused, Submit, create, denied, is_builtin, refused, stored};
use crate::authz::{Caller, authorize};
use crate::resolve::resolve;
use crate::runs::{self, Program};

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
                let judged = authorize(self.guard.policy(), caller, create(&frozen), ());
                judged.map_err(|e| denied(&e))?;
            }
            Err(error) if error.kind == Kind::NoMatch => {}
            Err(error) => return Err(error),
        }
        if is_builtin(request) || request.mode == Mode::Check {
            return Ok(Vec::new());
        }
        let (program, _) = self.ready(request).await?;
        self.waits_of(&program).await
    }

    /// What each run of a scenario waits for that only people can give.
    async fn waits_of(&self, program: &Program) -> Result<Vec<String>, Refused> {
        let (name, manifest) = (&program.name, &program.manifest);
        let mut waits = Vec::new();
        if manifest.confirm {
            waits.push(format!(
                "`{name}` asks for a confirmation: whoever adds the schedule confirms all of its runs by that"
            ));
        }
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

    async fn would_be(
        &self,
        caller: &Caller,
        request: &RunRequest,
    ) -> Result<runs::FrozenRun, Refused> {
        let (id, now) = (RunId::random(), Timestamp::now());
        let by = (&caller.principal, caller.door);
        let snapshot = self.inventory.snapshot();
        if is_builtin(request) {
            let mut request = request.clone();
            self.complete(&mut request)?;
            let checked = runs::check(&request).map_err(|error| refused(error.problem()))?;
            let options = runs::options(&request);
            let resolved = resolve(checked.predicate(), &snapshot, options)
                .map_err(|error| refused(error.problem()))?;
            return Ok(checked.freeze(&request, &resolved, id, by, now));
        }
        let (program, ready) = self.ready(request).await?;
        let given = |name: &str| request.params.get(name).is_some_and(|v| *v != Value::Null);
        let secret = program.manifest.params.iter();
        if let Some(param) = secret.filter(|p| p.secret).find(|p| given(&p.name)) {
            let title = format!(
                "`{}` of `{}` is secret, and what is asked for again and again would have to be kept",
                param.name, program.name
            );
            return Err(refused(Problem::new(Kind::InvalidRequest, title).hint(
                "let the scenario read it on the node, from a file that only root can read",
            )));
        }
        ready
            .freeze(&snapshot, id, by, now)
            .map_err(|error| stored(&error))
    }
}
