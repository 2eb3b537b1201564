//! Running something: the plan is shown first, and a yes runs exactly that.

use std::time::Duration;

use muster_protocol::api::{Confirm, Plan, PlanRef, RetryRequest, RunRequest, RunView, Say};
use muster_protocol::chat::command::{Again, OnNodes, RunCommand};
use muster_protocol::envelope::Mode;
use muster_protocol::fold::folded;
use muster_protocol::ids::RunId;
use muster_protocol::names::{NodeName, ScenarioName};
use muster_protocol::problem::Kind;
use muster_protocol::run::{Gate, Wish};
use muster_protocol::text::{nearest, printable};
use muster_protocol::units::{Timestamp, elapsed};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use tokio::time::{sleep, timeout};

use super::changes::{self, Changes};
use super::pending::{Confirms, Missing, Waiting};
use super::say::count;
use super::{Answer, Line, no, say, scenario_names};
use crate::authz::Action;
use crate::http::ApiError;
use crate::runs::EngineError;
use crate::submit::{Asked, Submitted};

/// How long somebody waits for a dry run before it is said that it takes
/// longer.
const DRY_RUN_WITHIN: Duration = Duration::from_secs(60);
/// A run that ends within this time needs no line that says that it began.
pub(super) const SHORT: Duration = Duration::from_millis(800);
/// How often it is looked whether a run has ended.
const LOOK: Duration = Duration::from_millis(10);
/// Longest list of names in a line, in characters.
const NAMES: usize = 80;

/// The id of the dry run that comes before a run.
fn dry_id(run: RunId) -> RunId {
    let mut hash = Sha256::new();
    hash.update(b"muster chat dry run 1\0");
    hash.update(run.to_string());
    let digest: [u8; 32] = hash.finalize().into();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    RunId::from_bytes(bytes)
}

fn run_of(plan: &Plan, request: RunRequest) -> Confirms {
    Confirms::Run(PlanRef::from(plan.id), Box::new(request))
}

impl Line<'_> {
    pub(super) async fn run(&self, command: &RunCommand) -> Answer {
        let (request, can_try) = self.request(command).await?;
        if command.yes {
            return self.begin(request).await;
        }
        if !can_try && !command.dry_run {
            let submit = &self.state.submit;
            let submitted = submit.plan_stored(&self.caller, &request, self.run).await?;
            return Ok(self.submitted(submitted, request).await);
        }
        let dry = RunRequest {
            mode: Mode::Check,
            confirm: Confirm::Yes,
            ..request.clone()
        };
        let submit = &self.state.submit;
        let asked = Asked::under(dry_id(self.run));
        let run = match submit.run(&self.caller, dry, asked).await? {
            Submitted::Run(run) => run.brief.id,
            Submitted::Confirm(_) => {
                return Err(no(Kind::Internal, "a dry run asks for a confirmation"));
            }
        };
        if !self.ended(run, DRY_RUN_WITHIN).await {
            self.state.desk.pending.goes_on(run, request);
            let short = run.short();
            return Ok(vec![say::about(
                say::warn(format!(
                    "the dry run {short} takes long: !diff {short} shows the plan when it has ended"
                )),
                &short,
            )]);
        }
        self.planned(run, command.dry_run, request).await
    }

    /// The plan of a dry run that has ended.
    async fn planned(&self, dry: RunId, full: bool, request: RunRequest) -> Answer {
        let engine = &self.state.nodes.engine;
        let changes = changes::of_run(engine, dry)
            .await
            .map_err(|error| ApiError(Box::new(error.problem())))?;
        let plan = self.state.submit.plan_of(&self.caller, dry).await?;
        let shown = engine.show(dry).await?;
        let left: Vec<&str> = shown
            .results
            .iter()
            .map(|node| &node.node)
            .filter(|node| !plan.nodes.contains(node))
            .map(NodeName::as_str)
            .collect();
        let mut says = vec![self.plan_line(&plan, Some(&changes))];
        if let Some(first) = says.first_mut()
            && !left.is_empty()
        {
            let why = shown
                .results
                .iter()
                .find(|node| left.contains(&node.node.as_str()))
                .and_then(|node| node.reason.clone())
                .map_or(String::new(), |why| format!(": {}", printable(&why, 200)));
            first.lines.push(format!(
                "left out, as the dry run did not succeed there: {}{why}",
                folded(left.iter().copied(), NAMES)
            ));
        }
        let diff = changes.in_full();
        if full && let Some(first) = says.first_mut() {
            first.lines.extend(diff.clone());
        }
        self.keep(&plan, run_of(&plan, request), diff);
        Ok(says)
    }

    fn keep(&self, plan: &Plan, confirms: Confirms, diff: Vec<String>) {
        let waiting = Waiting {
            run: plan.run,
            principal: self.caller.principal.clone(),
            place: self.place.clone(),
            confirms,
            diff,
            until: plan.expires,
        };
        self.state.desk.pending.keep(waiting, Timestamp::now());
    }

    /// What would run, and how it is confirmed.
    fn plan_line(&self, plan: &Plan, changes: Option<&Changes>) -> Say {
        let short = plan.run.short();
        let mut line = printable(&plan.title, 300);
        let nodes = plan.nodes.len();
        line.push_str(&format!(
            " on {} ({}: {})",
            count(nodes, "node"),
            printable(&plan.predicate, 200),
            folded(plan.nodes.iter().map(NodeName::as_str), NAMES)
        ));
        if plan.left_out > 0 {
            let left = count(plan.left_out as usize, "machine");
            line.push_str(&format!(", {left} of muster's own left out"));
        }
        for set in &plan.sets {
            line.push_str(&format!(
                ", {} {}",
                set.nodes.len(),
                printable(&set.name, 40)
            ));
        }
        if plan.batches > 1 {
            line.push_str(&format!(", {} batches", plan.batches));
        }
        if let Some(changes) = changes {
            match changes.in_short() {
                Some(short) => line.push_str(&format!(": {short}")),
                None => line.push_str(": nothing would change"),
            }
            if changes.nodes() > 0 && changes.nodes() < nodes {
                line.push_str(&format!(" ({} of {nodes} would change)", changes.nodes()));
            }
        }
        if plan.gates.approvals > 0 {
            let needed = count(plan.gates.approvals as usize, "approval");
            line.push_str(&format!("; then waits for {needed} of others"));
        }
        let left = elapsed(Timestamp::now(), plan.expires)
            .as_secs()
            .div_ceil(60);
        let diff = if changes.is_some_and(|changes| changes.nodes() > 0) {
            " · !diff"
        } else {
            ""
        };
        line.push_str(&format!(".  !yes{diff} · !no  ({left} min)"));
        say::about(say::plain(line), &short)
    }

    /// The request for a stored scenario, and whether it can be tried without
    /// changing anything.
    async fn request(&self, command: &RunCommand) -> Result<(RunRequest, bool), ApiError> {
        let unknown = || {
            let names = scenario_names(self.state);
            let near = nearest(&command.name, names.iter().map(String::as_str));
            let name = printable(&command.name, 60);
            let near = near.map_or(String::new(), |near| format!("; did you mean {near}?"));
            no(Kind::NotFound, format!("there is no scenario {name}{near}"))
        };
        let name: ScenarioName = command.name.parse().map_err(|_| unknown())?;
        if self.state.library.current(&name).is_none() {
            return Err(unknown());
        }
        let program = self.state.library.load(&name, command.version).await?;
        for param in &program.manifest.params {
            if param.secret && command.params.contains_key(param.name.as_str()) {
                return Err(no(
                    Kind::InvalidRequest,
                    format!(
                        "{} is secret, and everybody here has read it now: change it, and run {name} from the command line",
                        param.name
                    ),
                ));
            }
        }
        let amount = |what: &str, text: &Option<String>| match text {
            None => Ok(None),
            Some(text) => text
                .parse()
                .map(Some)
                .map_err(|e| no(Kind::InvalidRequest, format!("--{what}: {e}"))),
        };
        let params = command
            .params
            .iter()
            .map(|(name, value)| (name.clone(), Value::String(value.clone())))
            .collect::<Map<String, Value>>();
        let request = RunRequest {
            predicate: command.on.clone(),
            version: command.version,
            params: Value::Object(params),
            batch: amount("batch", &command.batch)?,
            max_failures: amount("max-failures", &command.max_failures)?,
            limit: amount("limit", &command.limit)?,
            timeout: command.timeout,
            allow_unknown: command.allow_unknown,
            confirm: Confirm::Yes,
            ..RunRequest::of(name)
        };
        Ok((request, program.manifest.allow_check))
    }

    pub(super) async fn on_nodes(&self, on: &OnNodes) -> Answer {
        let request = RunRequest {
            predicate: Some(on.predicate.clone()),
            params: json!({ "argv": on.argv }),
            allow_unknown: on.allow_unknown,
            confirm: if on.yes { Confirm::Yes } else { Confirm::Ask },
            ..RunRequest::of("command".parse().expect("a constant name"))
        };
        self.begin(request).await
    }

    /// Runs it, or says what it would be.
    async fn begin(&self, request: RunRequest) -> Answer {
        let asked = Asked::under(self.run);
        let submitted = self
            .state
            .submit
            .run(&self.caller, request.clone(), asked)
            .await?;
        Ok(self.submitted(submitted, request).await)
    }

    async fn submitted(&self, submitted: Submitted, request: RunRequest) -> Vec<Say> {
        match submitted {
            Submitted::Run(run) => self.begun(&run).await,
            Submitted::Confirm(plan) => {
                self.keep(&plan, run_of(&plan, request), Vec::new());
                vec![self.plan_line(&plan, None)]
            }
        }
    }

    /// What is said of a run that has begun: nothing where it has ended
    /// already, as its end is told anyway.
    async fn begun(&self, run: &RunView) -> Vec<Say> {
        let id = run.brief.id;
        let waits = run.brief.waits.as_ref();
        let short = run.brief.short.clone();
        let line = match waits {
            Some(Gate::Approvals { needed, .. }) => {
                let needed = count(*needed as usize, "approval");
                format!("waits for {needed} of others: !approve {short}")
            }
            Some(gate) => format!("waits: {}", gate.word(None)),
            None if self.ended(id, SHORT).await => return Vec::new(),
            None => {
                let mut line = format!("started: {}", count(run.brief.nodes as usize, "node"));
                if run.batches > 1 {
                    line.push_str(&format!(", {} batches", run.batches));
                }
                line
            }
        };
        vec![say::about(say::plain(line), &short)]
    }

    /// Whether a run ends within that time.
    pub(super) async fn ended(&self, run: RunId, within: Duration) -> bool {
        let engine = &self.state.nodes.engine;
        if engine.has_ended(run) {
            return true;
        }
        (self.wait)();
        let until = async {
            while !engine.has_ended(run) {
                sleep(LOOK).await;
            }
        };
        timeout(within, until).await.is_ok()
    }

    fn waiting(&self, which: Option<&str>) -> Result<Waiting, Missing> {
        let pending = &self.state.desk.pending;
        pending.find(&self.caller.principal, &self.place, which, Timestamp::now())
    }

    /// What is said to whom a plan does not wait for.
    fn missing(&self, missing: &Missing) -> Say {
        let mut line = missing.to_string();
        if let crate::authz::Origin::Chat { proof, .. } = &self.caller.origin
            && *proof == muster_protocol::chat::Proof::None
        {
            line.push_str(". You are not logged in to services");
        }
        say::warn(line)
    }

    pub(super) async fn yes(&self, which: Option<&str>) -> Answer {
        let waiting = match self.waiting(which) {
            Ok(waiting) => waiting,
            Err(missing) => {
                // The same line was told to another broker, which did it.
                let engine = &self.state.nodes.engine;
                match engine.lookup(&self.run.to_string()) {
                    Ok(_) => {
                        let run = engine.show(self.run).await?;
                        return Ok(self.begun(&run).await);
                    }
                    Err(EngineError::Lookup(_)) => {}
                    // It cannot be said yet: the line is told again.
                    Err(error) => return Err(error.into()),
                }
                if let (Missing::Unknown(_), Some(which)) = (&missing, which)
                    && let Some(said) = self.confirm_run(which).await?
                {
                    return Ok(vec![said]);
                }
                return Ok(vec![self.missing(&missing)]);
            }
        };
        let submit = &self.state.submit;
        let asked = Asked::under(self.run);
        let submitted = match waiting.confirms {
            Confirms::Destroy(id, asked) => {
                let said = self.yes_destroy(id, asked).await?;
                self.state.desk.pending.drop(waiting.run);
                return Ok(said);
            }
            Confirms::Run(plan, request) => {
                let request = RunRequest {
                    confirm: Confirm::Plan(plan),
                    ..*request
                };
                submit.run(&self.caller, request, asked).await?
            }
            Confirms::Retry(plan, run, request) => {
                let request = RetryRequest {
                    confirm: Confirm::Plan(plan),
                    ..request
                };
                submit.retry(&self.caller, run, request, asked).await?
            }
        };
        self.state.desk.pending.drop(waiting.run);
        match submitted {
            Submitted::Run(run) => Ok(self.begun(&run).await),
            Submitted::Confirm(_) => Err(no(Kind::PlanGone, "the plan is gone; ask again")),
        }
    }

    /// Confirms a run that was asked for through another door and waits for
    /// that; nothing where it does not.
    async fn confirm_run(&self, which: &str) -> Result<Option<Say>, ApiError> {
        let engine = &self.state.nodes.engine;
        let Ok(run) = engine.lookup(which) else {
            return Ok(None);
        };
        let waits = engine.show(run).await?.brief.waits;
        if !matches!(waits, Some(Gate::Confirmation { .. })) {
            return Ok(None);
        }
        let view = crate::http::wish(self.state, &self.caller, which, Wish::Confirm).await?;
        Ok(Some(say::about(
            say::good("confirmed".to_owned()),
            &view.brief.short,
        )))
    }

    pub(super) fn no(&self, which: Option<&str>) -> Answer {
        Ok(vec![match self.waiting(which) {
            Ok(waiting) => {
                self.state.desk.pending.drop(waiting.run);
                say::about(
                    say::plain("dropped: nothing was run".to_owned()),
                    &waiting.run.short(),
                )
            }
            Err(missing) => self.missing(&missing),
        }])
    }

    pub(super) async fn diff(&self, which: Option<&str>) -> Answer {
        self.allowed(Action::ReadRuns).await?;
        let missing = match self.waiting(which) {
            Ok(waiting) => {
                let lines = if waiting.diff.is_empty() {
                    vec!["no dry run was made of it, or nothing would change".to_owned()]
                } else {
                    waiting.diff
                };
                let said = say::several(lines);
                return Ok(vec![say::about(said, &waiting.run.short())]);
            }
            Err(missing) => missing,
        };
        // Of a dry run that took long, or that somebody else made.
        let engine = &self.state.nodes.engine;
        let Some(run) = which.and_then(|which| engine.lookup(which).ok()) else {
            return Ok(vec![self.missing(&missing)]);
        };
        let view = engine.show(run).await?;
        let short = view.brief.short.clone();
        if view.brief.mode != Mode::Check {
            let line = format!("{short} was no dry run: !show {short} says what it did");
            return Ok(vec![say::about(say::warn(line), &short)]);
        }
        if view.brief.finished.is_none() {
            let line = "the dry run goes on still".to_owned();
            return Ok(vec![say::about(say::plain(line), &short)]);
        }
        let changes = changes::of_run(engine, run)
            .await
            .map_err(|error| ApiError(Box::new(error.problem())))?;
        if view.brief.principal == self.caller.principal
            && let Some(request) = self.state.desk.pending.dry_run(run)
            && let Ok(plan) = self.state.submit.plan_of(&self.caller, run).await
        {
            let diff = changes.in_full();
            let said = self.plan_line(&plan, Some(&changes));
            self.keep(&plan, run_of(&plan, request), diff);
            return Ok(vec![said]);
        }
        Ok(vec![say::about(say::several(changes.in_full()), &short)])
    }

    pub(super) async fn retry(&self, run: &str, which: Again) -> Answer {
        self.allowed(Action::RetryRun).await?;
        let run = self.state.nodes.engine.lookup(run)?;
        let request = RetryRequest {
            failed: which == Again::Failed,
            confirm: Confirm::Ask,
            ..RetryRequest::default()
        };
        let asked = Asked::under(self.run);
        let submit = &self.state.submit;
        let submitted = submit
            .retry(&self.caller, run, request.clone(), asked)
            .await?;
        match submitted {
            Submitted::Run(run) => Ok(self.begun(&run).await),
            Submitted::Confirm(plan) => {
                let confirms = Confirms::Retry(PlanRef::from(plan.id), run, request);
                self.keep(&plan, confirms, Vec::new());
                Ok(vec![self.plan_line(&plan, None)])
            }
        }
    }
}
