//! What would run, for a person to confirm; and what a dry run was of.

use std::collections::BTreeMap;

use muster_protocol::api::{Confirm, Plan, PlanSet, RunRequest};
use muster_protocol::envelope::Mode;
use muster_protocol::ids::RunId;
use muster_protocol::names::{LabelKey, NodeName};
use muster_protocol::note::Expected;
use muster_protocol::problem::{Kind, Problem};
use muster_protocol::run::{Outcome, Target};
use muster_protocol::units::Timestamp;
use muster_scenarios::manifest::Shape;

use super::{Asked, Begin, Refused, Submit, Submitted, create, engine, hash_of, refused, stored};
use crate::authz::Caller;
use crate::plans::{Rehearsal, RequestHash};
use crate::runs::{FrozenRun, Program, gates};

fn names(targets: &[Target]) -> Vec<NodeName> {
    targets.iter().map(|target| target.name.clone()).collect()
}

impl Submit {
    /// Keeps a run as a plan.
    pub(super) fn plan(&self, caller: &Caller, hash: RequestHash, frozen: FrozenRun) -> Plan {
        let snapshot = self.inventory.snapshot();
        let mut labels: BTreeMap<LabelKey, BTreeMap<String, u32>> = BTreeMap::new();
        for target in &frozen.targets {
            let Some(node) = snapshot.get(target.serial) else {
                continue;
            };
            for (key, value) in &node.assignment.labels {
                *labels
                    .entry(key.clone())
                    .or_default()
                    .entry(value.to_string())
                    .or_default() += 1;
            }
        }
        let spec = frozen.spec.clone();
        let nodes = names(&frozen.targets);
        let sets = frozen
            .sets
            .iter()
            .map(|set| PlanSet {
                name: set.name.clone(),
                predicate: set.predicate.clone(),
                nodes: names(&set.nodes),
            })
            .collect();
        let batches = match frozen.shape {
            // The scenario decides while it runs.
            Shape::Main => 0,
            Shape::Run => {
                let all = frozen.targets.len();
                let size = spec.options.batch.map_or(all, |b| b.of_rounded_up(all));
                u32::try_from(all.div_ceil(size.max(1))).unwrap_or(u32::MAX)
            }
        };
        let is_stored = spec.version.is_some();
        let expect = spec.expect;
        let checked = frozen
            .targets
            .iter()
            .filter(|t| expect.get(t.serial).is_some());
        let checked = u32::try_from(checked.count()).unwrap_or(u32::MAX);
        let plans = &self.nodes.plans;
        let life = self.nodes.settings.confirm_within;
        let (id, expires) = plans.keep(&caller.principal, hash, frozen, Timestamp::now(), life);
        Plan {
            id,
            run: spec.id,
            title: spec.title,
            predicate: spec.predicate,
            nodes,
            labels,
            left_out: spec.left_out,
            scenario: is_stored.then_some(spec.scenario),
            version: spec.version,
            params: if is_stored {
                spec.params
            } else {
                serde_json::Value::Null
            },
            mode: spec.mode,
            options: is_stored.then_some(spec.options),
            sets,
            batches: if is_stored { batches } else { 0 },
            gates: spec.gates,
            checked,
            expires,
        }
    }

    /// A dry run has been begun: what it is a rehearsal of is kept, so that
    /// exactly that can be run when it has ended.
    pub(super) fn rehearsed(
        &self,
        caller: &Caller,
        request: &RunRequest,
        program: &Program,
        mut frozen: FrozenRun,
        run: RunId,
    ) {
        let real = RunRequest {
            mode: Mode::Apply,
            ..request.clone()
        };
        frozen.spec.mode = Mode::Apply;
        frozen.spec.gates = gates(&program.manifest);
        let rehearsal = Rehearsal {
            principal: caller.principal.clone(),
            request: hash_of(&real),
            run: frozen,
        };
        self.nodes.plans.rehearse(run, rehearsal);
    }

    /// The plan of a stored scenario as it is asked for, without a dry run: for
    /// a door at which everything is shown before it is run.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn plan_stored(
        &self,
        caller: &Caller,
        request: &RunRequest,
        asked: RunId,
    ) -> Result<Submitted, Refused> {
        let (_, ready) = self.ready(request).await?;
        let snapshot = self.inventory.snapshot();
        let by = (&caller.principal, caller.door);
        let frozen = ready
            .freeze(&snapshot, asked, by, Timestamp::now())
            .map_err(|error| stored(&error))?;
        let begin = Begin {
            frozen,
            taken: None,
            hash: hash_of(request),
            asks: true,
            asked: Asked::under(asked),
        };
        self.begin(caller, &Confirm::Ask, begin).await
    }

    /// The plan of what a dry run has shown: exactly its nodes, each of which
    /// looks again whether it would still do the same.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn plan_of(&self, caller: &Caller, run: RunId) -> Result<Plan, Refused> {
        let state = self.nodes.engine.state(run).await.map_err(|e| engine(&e))?;
        let no = |kind, title: String, hint: &str| {
            refused(Problem::new(kind, title).hint(hint.to_owned()))
        };
        let short = run.short();
        if state.spec.mode != Mode::Check {
            let title = format!("run {short} was no dry run, so there is nothing to plan");
            return Err(no(Kind::Conflict, title, "muster runs retry runs it again"));
        }
        if !state.phase.is_final() {
            let title = format!("dry run {short} has not ended");
            return Err(no(Kind::Conflict, title, "wait for its end"));
        }
        let again = "make the dry run again: plans are kept for a short time, and by the broker \
                     that was asked alone";
        let gone = || {
            let title = format!("what dry run {short} was of is not known any more");
            no(Kind::PlanGone, title, again)
        };
        let rehearsal = self.nodes.plans.rehearsal(run).ok_or_else(gone)?;
        if rehearsal.principal != caller.principal {
            return Err(gone());
        }
        let mut frozen = rehearsal.run;
        if frozen.shape == Shape::Run {
            // Only what was seen to work: a node that did not get through the
            // dry run has shown nothing that it could do again.
            let said: Expected = state
                .results()
                .filter(|result| result.outcome == Outcome::Succeeded)
                .filter_map(|result| Some((result.serial, result.digest?)))
                .collect();
            frozen.targets.retain(|t| said.get(t.serial).is_some());
            frozen.spec.targets = u32::try_from(frozen.targets.len()).unwrap_or(u32::MAX);
            frozen.spec.expect = said;
            if frozen.targets.is_empty() {
                let title =
                    format!("dry run {short} succeeded on no node: there is nothing to plan");
                let hint = format!("muster runs show {short} says why");
                return Err(no(Kind::Conflict, title, &hint));
            }
        }
        frozen.spec.id = RunId::random();
        frozen.spec.created = Timestamp::now();
        let frozen = self
            .allowed(caller, create(&frozen), frozen)
            .await?
            .into_inner();
        Ok(self.plan(caller, rehearsal.request, frozen))
    }
}
