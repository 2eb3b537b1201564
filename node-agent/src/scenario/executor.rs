//! The executor of scenarios: the second way through the one door.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use muster_protocol::envelope::{BundleHash, Call, DRIFTED, Mode};
use muster_protocol::ids::{RequestId, Serial};
use muster_protocol::names::NodeName;
use muster_protocol::note::{Digest, Note, Tally};
use muster_protocol::run::{NodeResult, Outcome};
use muster_protocol::text::printable;
use muster_protocol::units::Span;
use muster_protocol::wire::Assignment;
use muster_scenarios::fault::Fault;
use muster_scenarios::manifest;
use muster_scenarios::node::{self, Done, Ended, NodeFacts, Program};
use muster_scenarios::secret::Secrets;
use serde_json::{Map, Value};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::effects::{Effects, Grants};
use super::passed::Passed;
use super::restart::{Past, Restarting, Restarts};
use super::store::Bundles;
use crate::config::Config;
use crate::executor::{Executor, Refused, Step};
use crate::host::cgroup::Cgroups;
use crate::host::environment::{Environment, marks};
use crate::host::firewall::Firewall;
use crate::host::tools::{Shared, Tools};
use crate::host::vm::Machines;

/// Scenarios that are kept compiled: those of the steps that run now, and a
/// few that may come again soon.
const KEPT: usize = 4;
/// What a step may say ahead of who writes it down.
const AHEAD: usize = 32;
/// How long a step that is to end is waited for, beside what its programs
/// have to end in.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long a function that failed waits before it is tried again; twice as
/// long each time, up to the last.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Runs functions of scenarios.
pub struct Scenarios {
    bundles: Arc<dyn Bundles>,
    grants: Grants,
    environment: Environment,
    cgroups: Option<Cgroups>,
    kill_grace: Span,
    /// Where this node is a hypervisor, and the agent runs.
    machines: OnceLock<Machines>,
    /// Where scenarios may change it, and the agent runs.
    firewall: OnceLock<Firewall>,
    /// The last used one is last.
    programs: Mutex<Vec<(BundleHash, Program)>>,
}

/// How a function ended, and why.
struct Verdict {
    outcome: Outcome,
    reason: Option<String>,
}

/// What came of one try of a function.
struct Tried {
    verdict: Verdict,
    value: Value,
    tally: Tally,
    digest: Digest,
    /// The machine is being restarted, and the function goes on after it.
    restarting: bool,
    /// The machine was restarted before it ended.
    restarted: bool,
    /// Why the old rules of the firewall are in force again, if they are.
    rolled_back: Option<String>,
}

/// A step, apart from where its output goes.
struct Doing<'a> {
    request: RequestId,
    serial: Serial,
    name: NodeName,
    timeout: Duration,
    output_bytes: u64,
    cancel: &'a CancellationToken,
    secrets: Secrets,
    restarts: Option<Arc<dyn Restarts>>,
    /// For the first try only.
    resume: Option<Past>,
}

/// What all tries of a step have in common.
struct Trying<'a> {
    call: &'a Call,
    program: &'a Program,
    params: &'a Map<String, Value>,
    facts: &'a Arc<NodeFacts>,
    deadline: Instant,
}

impl Scenarios {
    /// From the configuration; nothing is loaded before the first step.
    #[must_use]
    pub fn new(config: &Config, bundles: Arc<dyn Bundles>, cgroups: Option<Cgroups>) -> Self {
        Self {
            bundles,
            grants: Grants::new(config.capabilities),
            environment: Environment::new(&config.command.environment),
            cgroups,
            kill_grace: config.command.kill_grace,
            machines: OnceLock::new(),
            firewall: OnceLock::new(),
            programs: Mutex::default(),
        }
    }

    /// From now on scenarios have these machines.
    pub fn keep(&self, machines: Machines) {
        // Once: an agent has one libvirt.
        let _ = self.machines.set(machines);
    }

    /// From now on scenarios have this firewall.
    pub fn guard(&self, firewall: Firewall) {
        // Once: a node has one.
        let _ = self.firewall.set(firewall);
    }

    /// Whether a call may be one of a scenario that this node has.
    #[must_use]
    pub fn may_have(&self, hash: BundleHash) -> bool {
        self.bundles.may_have(hash)
    }

    /// The compiled scenario.
    async fn program(&self, call: &Call) -> Result<Program, Verdict> {
        let kept = || self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut kept = kept();
            if let Some(place) = kept.iter().position(|(hash, _)| *hash == call.bundle) {
                let found = kept.remove(place);
                let program = found.1.clone();
                kept.push(found);
                return Ok(program);
            }
        }
        let declined = |reason: String| Verdict {
            outcome: Outcome::Declined,
            reason: Some(printable(&reason, 500)),
        };
        let bundle = self
            .bundles
            .get(call.bundle)
            .await
            .map_err(|e| declined(e.to_string()))?;
        let file = bundle.script_file(call.scenario.as_str());
        let compiled = tokio::task::spawn_blocking(move || Program::new(&file, &bundle)).await;
        let program = match compiled {
            Ok(Ok(program)) => program,
            Ok(Err(fault)) => return Err(declined(first_line(&fault))),
            Err(e) => return Err(declined(format!("the scenario cannot be read: {e}"))),
        };
        let mut kept = kept();
        kept.push((call.bundle, program.clone()));
        if kept.len() > KEPT {
            kept.remove(0);
        }
        Ok(program)
    }

    /// Before `started` is written down: the scenario is here, it has the
    /// function, and this node grants everything that the function can come
    /// to, as far as its text tells.
    async fn ready(&self, call: &Call) -> Result<(), String> {
        let program = match self.program(call).await {
            Ok(program) => program,
            Err(verdict) => return Err(verdict.reason.unwrap_or_default()),
        };
        let function = call.function.as_str();
        if !program.has(function) {
            let (scenario, function) = (call.scenario.to_string(), function.to_owned());
            return Err(Refused::Function { scenario, function }.to_string());
        }
        let needs = program.needs(function);
        if let Some(missing) = needs.iter().find(|needed| !self.grants.has(needed)) {
            return Err(Refused::Capability(missing).to_string());
        }
        if call.secrets.is_some() && needs.contains("reboot") {
            return Err(
                "a function with secret parameters cannot restart the machine: they are only in the \
                 agent's memory, and it could not go on"
                    .to_owned(),
            );
        }
        Ok(())
    }

    /// A dry run changes nothing, and of others the scenario says which may
    /// be. Secrets are not here any more.
    async fn is_repeatable(&self, call: &Call) -> bool {
        if call.secrets.is_some() {
            return false;
        }
        if call.mode == Mode::Check {
            return true;
        }
        let Ok(bundle) = self.bundles.get(call.bundle).await else {
            return false;
        };
        let file = bundle.script_file(call.scenario.as_str());
        let function = call.function.clone();
        let read = tokio::task::spawn_blocking(move || {
            manifest::read(&file, bundle.script()).is_ok_and(|m| m.idempotent.contains(&function))
        });
        read.await.unwrap_or(false)
    }

    /// Executes a call. What the step says, to whomever, has none of its
    /// secrets in it. `None` when the machine is being restarted: whoever
    /// comes after it goes on with the step.
    pub async fn run(&self, call: &Call, step: Step<'_>) -> Option<NodeResult> {
        let begun = Instant::now();
        let serial = step.serial;
        let refused = |reason: String| Some(NodeResult::new(serial, Outcome::Declined, reason));
        if let Err(e) = self.check(call) {
            return refused(e.to_string());
        }
        let Some(params) = call.params.as_object() else {
            return refused(Refused::Shape.to_string());
        };
        let program = match self.program(call).await {
            Ok(program) => program,
            Err(verdict) => return refused(verdict.reason.unwrap_or_default()),
        };
        let facts = Arc::new(facts(step.assignment, &step.facts));
        let trying = Trying {
            call,
            program: &program,
            params,
            facts: &facts,
            deadline: begun + step.timeout,
        };
        let mut passed = Passed::new(step.sink, step.output_bytes, &step.secrets);
        if let Some(note) = &step.begins_with {
            passed.note(note).await;
        }
        let mut step = Doing {
            request: step.request,
            serial,
            name: step.name,
            timeout: step.timeout,
            output_bytes: step.output_bytes,
            cancel: step.cancel,
            secrets: step.secrets,
            restarts: step.restarts,
            resume: step.resume,
        };
        let tried = self.tries(&trying, &mut step, &mut passed).await;
        passed.flush().await;
        if tried.restarting {
            return None;
        }
        let mut result = NodeResult {
            reason: tried.verdict.reason,
            ms: Some(u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX)),
            ..NodeResult::new(serial, tried.verdict.outcome, "")
        };
        if let Some(why) = tried.rolled_back
            && result.outcome != Outcome::Succeeded
        {
            result.rolled_back = true;
            // What people look for, without where in the script it was.
            if result
                .reason
                .as_ref()
                .is_some_and(|reason| reason.ends_with(&why))
            {
                result.reason = Some(printable(&why, 500));
            }
        }
        if result.outcome != Outcome::Declined {
            result.tally = (!tried.tally.is_empty()).then_some(tried.tally);
            let well = result.outcome == Outcome::Succeeded;
            result.digest = (call.mode == Mode::Check && well).then_some(tried.digest);
            if result.set_value(tried.value.clone()) {
                passed.note(&Note::Value { value: tried.value }).await;
                passed.flush().await;
            }
        }
        result.output_bytes = passed.bytes;
        result.truncated = passed.truncated;
        Some(result)
    }

    /// The dry run before, where one is asked for, and then the function, as
    /// often as it may be tried.
    async fn tries(
        &self,
        trying: &Trying<'_>,
        step: &mut Doing<'_>,
        passed: &mut Passed<'_>,
    ) -> Tried {
        let (call, resumed) = (trying.call, step.resume.is_some());
        let expected = call.expect.get(step.serial);
        if let (Mode::Apply, Some(expected), false) = (call.mode, expected, resumed) {
            passed.hide();
            let tried = self.attempt(trying, Mode::Check, step, passed).await;
            let notes = passed.reveal();
            let drifted = match tried.verdict.outcome {
                Outcome::Succeeded if tried.digest == expected => None,
                Outcome::Succeeded => Some(format!(
                    "{DRIFTED}what it would change now is not what was shown: {}",
                    if tried.tally.would_change == 0 {
                        "nothing".to_owned()
                    } else {
                        tried.tally.to_string()
                    }
                )),
                Outcome::Failed => Some(format!(
                    "{DRIFTED}the dry run fails now: {}",
                    tried.verdict.reason.as_deref().unwrap_or_default()
                )),
                _ => return tried,
            };
            if let Some(reason) = drifted {
                for note in notes {
                    passed.note(&note).await;
                }
                let verdict = Verdict {
                    outcome: Outcome::Declined,
                    reason: Some(reason),
                };
                return Tried { verdict, ..tried };
            }
        }
        let of = call.limits.retry.saturating_add(1);
        let mut pause = PAUSES.0;
        let mut attempt = 1;
        loop {
            let tried = self.attempt(trying, call.mode, step, passed).await;
            let again = tried.verdict.outcome == Outcome::Failed
                && !tried.restarting
                // Twice is once too often.
                && !tried.restarted
                && attempt < of
                && Instant::now() + pause < trying.deadline;
            if !again {
                return tried;
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = step.cancel.cancelled() => {
                    let verdict = Verdict {
                        outcome: Outcome::Cancelled,
                        reason: Some("cancelled before it was tried again".to_owned()),
                    };
                    return Tried { verdict, ..tried };
                }
            }
            attempt += 1;
            passed.note(&Note::Again { attempt, of }).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    /// One try.
    async fn attempt(
        &self,
        trying: &Trying<'_>,
        mode: Mode,
        step: &mut Doing<'_>,
        passed: &mut Passed<'_>,
    ) -> Tried {
        let (said, hearing) = mpsc::channel(AHEAD);
        let Trying {
            call,
            program,
            deadline,
            ..
        } = *trying;
        let tools = Arc::new(Tools::new(Shared {
            runtime: Handle::current(),
            environment: self
                .environment
                .for_step(step.request, step.serial, &step.name),
            marks: marks(step.request, step.serial),
            cgroups: self.cgroups.clone(),
            cgroup_name: format!(
                "{}-{}-{}",
                step.request.run.short(),
                step.request.step,
                step.serial
            ),
            kill_grace: self.kill_grace.get(),
            deadline,
            cancel: step.cancel.clone(),
            output_bytes: step.output_bytes,
            said: said.clone(),
        }));
        let effects = Effects::new(
            Arc::clone(&tools),
            self.grants,
            mode,
            Arc::clone(trying.facts),
            step.secrets.clone(),
            (self.machines.get().cloned(), self.firewall.get().cloned()),
            step.request,
        );
        let effects = Arc::new(effects);
        // What is done and cannot be done again is remembered only where it
        // is wanted: before a restart of the machine.
        let host = Arc::new(Restarting::new(
            Arc::clone(&effects),
            tools,
            (mode == Mode::Apply && program.needs(call.function.as_str()).contains("reboot"))
                .then(|| step.restarts.clone())
                .flatten(),
            step.resume.take(),
        ));
        let asked = node::Call {
            function: call.function.clone(),
            params: trying.params.clone(),
            secrets: step.secrets.clone(),
            mode,
        };
        let (program, on) = (program.clone(), Arc::clone(&host));
        let running = tokio::task::spawn_blocking(move || program.call(&asked, on));
        drop(said);
        // What a program needs to end, and something on top.
        let patience = self.kill_grace.get() + PATIENCE;
        let ended = passed
            .attend(running, hearing, deadline, step.cancel, patience)
            .await;
        let (verdict, value) = match ended {
            Some(Ok(ended)) => {
                let cancelled = step.cancel.is_cancelled();
                concluded(ended, passed, step.timeout, cancelled).await
            }
            Some(Err(e)) => {
                error!("a function of a scenario could not be run: {e}");
                let verdict = Verdict {
                    outcome: Outcome::Failed,
                    reason: Some("the agent itself failed while it ran the function".to_owned()),
                };
                (verdict, Value::Null)
            }
            None => {
                warn!("a function of a scenario does not end");
                let verdict = Verdict {
                    outcome: Outcome::Unknown,
                    reason: Some(
                        "it was to end and did not; what it was about may still happen".to_owned(),
                    ),
                };
                (verdict, Value::Null)
            }
        };
        let (tally, digest) = effects.counted();
        Tried {
            verdict,
            value,
            tally,
            digest,
            restarting: host.is_restarting(),
            restarted: host.has_restarted(),
            rolled_back: effects.rolled_back(),
        }
    }
}

/// How it ended, and what it returned; why it failed is said in the step's
/// own output, too.
async fn concluded(
    ended: Result<Done, Ended>,
    passed: &mut Passed<'_>,
    timeout: Duration,
    cancelled: bool,
) -> (Verdict, Value) {
    let (outcome, reason) = match ended {
        Ok(done) => {
            let verdict = Verdict {
                outcome: Outcome::Succeeded,
                reason: None,
            };
            return (verdict, done.value);
        }
        Err(Ended::Failed(fault)) => {
            let text = fault.to_string();
            passed.note(&Note::Failed { text }).await;
            (Outcome::Failed, first_line(&fault))
        }
        Err(Ended::Stopped) if cancelled => {
            (Outcome::Cancelled, "cancelled while it ran".to_owned())
        }
        Err(Ended::Stopped) => {
            let ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
            let limit = Span::from_millis(ms);
            (Outcome::TimedOut, format!("still running after {limit}"))
        }
    };
    let reason = Some(reason);
    (Verdict { outcome, reason }, Value::Null)
}

/// `web.rhai:12:5: package webapp: …`, without the line of the source.
fn first_line(fault: &Fault) -> String {
    let text = fault.to_string();
    printable(text.lines().next().unwrap_or_default(), 500)
}

/// What a script can know of this node.
fn facts(assignment: &Assignment, facts: &Value) -> NodeFacts {
    let roles = assignment.roles.iter().map(|r| Value::from(r.as_str()));
    let labels: Map<String, Value> = assignment
        .labels
        .iter()
        .map(|(key, value)| (key.as_str().to_owned(), Value::from(value.as_str())))
        .collect();
    let node = [
        ("name", Value::from(assignment.name.as_str())),
        ("roles", roles.collect()),
        ("labels", Value::Object(labels)),
    ];
    NodeFacts {
        node: node
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect(),
        facts: facts.clone(),
    }
}

impl Executor for Scenarios {
    fn check(&self, call: &Call) -> Result<(), Refused> {
        if !self.bundles.may_have(call.bundle) {
            return Err(Refused::Bundle(call.scenario.to_string()));
        }
        if !call.params.is_object() {
            return Err(Refused::Shape);
        }
        Ok(())
    }

    fn prepare<'a>(
        &'a self,
        call: &'a Call,
        _request: RequestId,
    ) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(self.ready(call))
    }

    fn may_repeat<'a>(&'a self, call: &'a Call) -> BoxFuture<'a, bool> {
        Box::pin(self.is_repeatable(call))
    }

    fn call<'a>(&'a self, call: &'a Call, step: Step<'a>) -> BoxFuture<'a, Option<NodeResult>> {
        Box::pin(self.run(call, step))
    }

    fn capabilities(&self) -> Vec<String> {
        self.grants.beyond_commands()
    }

    fn rolled_back(&self, request: RequestId) -> BoxFuture<'_, Option<String>> {
        Box::pin(async move {
            match self.firewall.get() {
                Some(firewall) => firewall.rolled_back(request).await,
                None => None,
            }
        })
    }
}

#[cfg(test)]
mod tests;
