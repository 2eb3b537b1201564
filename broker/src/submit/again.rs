//! Running again what has ended.

use muster_protocol::api::{Confirm, RetryRequest, RunRequest, RunView};
use muster_protocol::ids::{RunId, Serial};
use muster_protocol::problem::{Kind, Problem};
use muster_protocol::run::{NodePhase, Outcome, RunState, Target};
use muster_protocol::units::Timestamp;
use muster_scenarios::manifest::Shape;
use muster_scenarios::secret;
use serde_json::Value;

use super::{Asked, Begin, Confirmed, Refused, Submit, Submitted, engine, refused, stored};
use crate::authz::Caller;
use crate::inventory::Snapshot;
use crate::plans::RequestHash;
use crate::runs::{self, FrozenRun};

impl Submit {
    /// Runs a run again, as one of its own.
    ///
    /// # Errors
    /// [`Refused`]; nothing was run.
    pub async fn retry(
        &self,
        caller: &Caller,
        run: RunId,
        request: RetryRequest,
        asked: Asked,
    ) -> Result<Submitted, Refused> {
        if asked.repeatable {
            let same = |old: &RunView| old.brief.retry_of == Some(run);
            if let Some(run) = self.repeated(caller, asked.id, same).await? {
                return Ok(Submitted::Run(Box::new(run)));
            }
        }
        let hash = RequestHash::of(&(
            "retry",
            run,
            &RetryRequest {
                confirm: Confirm::Ask,
                ..request.clone()
            },
        ));
        let begin = match &request.confirm {
            Confirm::Plan(plan) => match self.confirmed(caller, plan, hash, asked)? {
                Confirmed::Now(taken) => Begin {
                    frozen: taken.run().clone(),
                    taken: Some(*taken),
                    hash,
                    asks: false,
                    asked,
                },
                Confirmed::Before(run) => return self.shown(caller, run).await,
            },
            Confirm::Ask | Confirm::Yes | Confirm::Later => {
                let (frozen, asks) = self.again(caller, run, &request, asked.id).await?;
                Begin {
                    frozen,
                    taken: None,
                    hash,
                    asks,
                    asked,
                }
            }
        };
        self.begin(caller, &request.confirm, begin).await
    }

    /// The retry, frozen, and whether its scenario wants a person to see it
    /// first.
    async fn again(
        &self,
        caller: &Caller,
        run: RunId,
        request: &RetryRequest,
        id: RunId,
    ) -> Result<(FrozenRun, bool), Refused> {
        let no = |kind, title: String, hint: &str| {
            refused(Problem::new(kind, title).hint(hint.to_owned()))
        };
        let old = self.nodes.engine.state(run).await.map_err(|e| engine(&e))?;
        if !old.phase.is_final() {
            let title = format!("run {} has not ended", run.short());
            return Err(no(Kind::Conflict, title, "wait for its end, or cancel it"));
        }
        let snapshot = self.inventory.snapshot();
        let targets = chosen(&old, request, &snapshot);
        if targets.is_empty() {
            let title = format!(
                "no node of run {} is left to retry; nothing was run",
                run.short()
            );
            let hint = "nodes where it cannot be said whether it ran need --include-unknown";
            return Err(no(Kind::NoMatch, title, hint));
        }
        let by = (&caller.principal, caller.door);
        let now = Timestamp::now();
        let Some(version) = old.spec.version else {
            if request.latest {
                let title = format!(
                    "run {} is of a scenario that is built in: there are no versions of it",
                    run.short()
                );
                return Err(no(Kind::InvalidRequest, title, "leave --latest out"));
            }
            return Ok((runs::retry(&old, targets, id, by, now), false));
        };
        if secret::is_needed(&old.spec.params) {
            let title = format!(
                "run {} had secret parameters, which nobody has kept; nothing was run",
                run.short()
            );
            let hint = format!(
                "run it anew and give them: muster scenario run {}",
                old.spec.scenario
            );
            return Err(no(Kind::Conflict, title, &hint));
        }
        let wanted = (!request.latest).then_some(version);
        let program = self.programs.load(&old.spec.scenario, wanted).await?;
        if !request.latest && program.bundle != old.spec.bundle {
            let title = format!(
                "version {version} of `{}` is not what run {} has pinned; nothing was run",
                old.spec.scenario,
                run.short()
            );
            return Err(no(Kind::Conflict, title, "--latest takes the current one"));
        }
        let options = old.spec.options.clone();
        let like = RunRequest {
            predicate: Some(old.spec.predicate.clone()),
            scenario: old.spec.scenario.clone(),
            version: wanted,
            params: given(&old.spec.params),
            mode: old.spec.mode,
            timeout: Some(options.timeout),
            deliver_within: Some(options.deliver_within),
            batch: options.batch,
            max_failures: options.max_failures,
            max_failures_by: Some(options.max_failures_by),
            retry: Some(options.retry),
            limit: None,
            wait_down: options.wait_down,
            // Whoever was in the old set stays in.
            include_infrastructure: true,
            allow_unknown: true,
            output_bytes: Some(options.output_bytes),
            confirm: request.confirm.clone(),
        };
        let ready = runs::ready(&like, &program).map_err(|error| stored(&error))?;
        let asks = ready.asks();
        if !request.latest && ready.shape() == Shape::Run {
            // All that it takes is in the old run.
            return Ok((runs::retry(&old, targets, id, by, now), asks));
        }
        let frozen = ready
            .freeze(&snapshot, id, by, now)
            .map_err(|error| stored(&error))?;
        Ok((frozen.only(targets, run), asks))
    }
}

/// What a run was given: what stands in it as nothing was not.
fn given(params: &Value) -> Value {
    match params {
        Value::Object(all) => {
            let some = all.iter().filter(|(_, value)| !value.is_null());
            Value::Object(some.map(|(k, v)| (k.clone(), v.clone())).collect())
        }
        other => other.clone(),
    }
}

/// The nodes of an ended run that a retry takes, in its order.
fn chosen(old: &RunState, request: &RetryRequest, snapshot: &Snapshot) -> Vec<Target> {
    let wanted = |serial: &Serial| match old.nodes.get(serial).map(|node| &node.phase) {
        Some(NodePhase::Done(result)) => match result.outcome {
            Outcome::Unknown => !request.failed || request.include_unknown,
            Outcome::Succeeded => !request.failed,
            _ => true,
        },
        _ => false,
    };
    // The further node sets of a scenario are frozen anew.
    let own = old
        .spec
        .main
        .as_ref()
        .and_then(|main| main.sets.get("targets"));
    let targeted = |serial: &&Serial| own.is_none_or(|set| set.nodes.contains(**serial));
    old.order
        .iter()
        .filter(|serial| wanted(serial) && targeted(serial))
        .filter_map(|serial| {
            let node = old.nodes.get(serial)?;
            let serial = match snapshot.get(*serial) {
                Some(_) => *serial,
                // A new machine under the old name; a node that was removed
                // stays in, and is then said to be unreachable.
                None => snapshot
                    .by_name(&node.name)
                    .map_or(*serial, |node| node.serial),
            };
            Some(Target {
                serial,
                name: node.name.clone(),
                labels: node.labels.clone(),
            })
        })
        .collect()
}
