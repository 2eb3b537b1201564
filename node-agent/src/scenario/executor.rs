//! The executor of scenarios: the second way through the one door.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use muster_protocol::envelope::{BundleHash, Call};
use muster_protocol::run::{NodeResult, Outcome, Stream};
use muster_protocol::text::printable;
use muster_protocol::units::Span;
use muster_protocol::wire::{Assignment, MAX_CHUNK};
use muster_scenarios::fault::Fault;
use muster_scenarios::node::{self, Done, Ended, NodeFacts, Program};
use muster_scenarios::secret::Secrets;
use serde_json::{Map, Value};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tracing::{error, warn};

use super::effects::{Effects, Grants};
use super::masks::Masks;
use super::store::Bundles;
use crate::config::Config;
use crate::executor::{Executor, Refused, Step};
use crate::host::cgroup::Cgroups;
use crate::host::environment::{Environment, marks};
use crate::host::note::{Note, Returned};
use crate::host::process::Sink;
use crate::host::tools::{Said, Shared, Tools};

/// Scenarios that are kept compiled: those of the steps that run now, and a
/// few that may come again soon.
const KEPT: usize = 4;
/// Most bytes of a value that goes into a result.
const MAX_VALUE: usize = 64 * 1024;
/// Most changes, lines and events that one step says.
const MAX_NOTES: u32 = 10_000;
/// What a step may say ahead of who writes it down.
const AHEAD: usize = 32;
/// How long a step that is to end is waited for, beside what its programs
/// have to end in.
const PATIENCE: Duration = Duration::from_secs(15);

/// Runs functions of scenarios.
pub struct Scenarios {
    bundles: Arc<dyn Bundles>,
    grants: Grants,
    environment: Environment,
    cgroups: Option<Cgroups>,
    kill_grace: Span,
    /// The last used one is last.
    programs: Mutex<Vec<(BundleHash, Program)>>,
}

/// How a function ended, and why.
struct Verdict {
    outcome: Outcome,
    reason: Option<String>,
}

/// What went to the step's sink, and how much more may.
struct Passed<'a> {
    sink: &'a mut dyn Sink,
    /// Where there are secrets to hide.
    masks: Option<Masks>,
    left: u64,
    /// Notes, many of which have no line of their own.
    notes_left: u32,
    bytes: u64,
    truncated: bool,
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
            programs: Mutex::default(),
        }
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
        let file = format!("{}.rhai", call.scenario);
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

    /// Executes a call, with the secret parameters that came for it. What the
    /// step says, to whomever, has none of them in it.
    pub async fn run(&self, call: &Call, secrets: Secrets, step: Step<'_>) -> NodeResult {
        let begun = Instant::now();
        let serial = step.serial;
        let refused = |reason: String| NodeResult::new(serial, Outcome::Declined, reason);
        if let Err(e) = self.check(call) {
            return refused(e.to_string());
        }
        let Some(params) = call.params.as_object().cloned() else {
            return refused(Refused::Shape.to_string());
        };
        let program = match self.program(call).await {
            Ok(program) => program,
            Err(verdict) => return refused(verdict.reason.unwrap_or_default()),
        };
        let (said, hearing) = mpsc::channel(AHEAD);
        let deadline = begun + step.timeout;
        let tools = Arc::new(Tools::new(Shared {
            runtime: Handle::current(),
            environment: self.environment.for_step(step.request, serial, &step.name),
            marks: marks(step.request, serial),
            cgroups: self.cgroups.clone(),
            cgroup_name: format!(
                "{}-{}-{serial}",
                step.request.run.short(),
                step.request.step
            ),
            kill_grace: self.kill_grace.get(),
            deadline,
            cancel: step.cancel.clone(),
            output_bytes: step.output_bytes,
            said: said.clone(),
        }));
        let facts = Arc::new(facts(step.assignment, &step.facts));
        let effects = Effects::new(tools, self.grants, call.mode, facts, secrets.clone());
        let effects = Arc::new(effects);
        let asked = node::Call {
            function: call.function.clone(),
            params,
            secrets: secrets.clone(),
            mode: call.mode,
        };
        let host = Arc::clone(&effects);
        let running = tokio::task::spawn_blocking(move || program.call(&asked, host));
        let mut passed = Passed {
            sink: step.sink,
            masks: (!secrets.is_empty()).then(|| Masks::new(secrets)),
            left: step.output_bytes,
            notes_left: MAX_NOTES,
            bytes: 0,
            truncated: false,
        };
        // What a program needs to end, and something on top.
        let patience = self.kill_grace.get() + PATIENCE;
        let ended = attend(
            running,
            hearing,
            &mut passed,
            deadline,
            step.cancel,
            patience,
        )
        .await;
        let verdict = match ended {
            Some(Ok(ended)) => {
                self.close(
                    ended,
                    &effects,
                    &mut passed,
                    step.timeout,
                    step.cancel.is_cancelled(),
                )
                .await
            }
            Some(Err(e)) => {
                error!("a function of a scenario could not be run: {e}");
                Verdict {
                    outcome: Outcome::Failed,
                    reason: Some("the agent itself failed while it ran the function".to_owned()),
                }
            }
            None => {
                warn!("a function of a scenario does not end");
                Verdict {
                    outcome: Outcome::Unknown,
                    reason: Some(
                        "it was to end and did not; what it was about may still happen".to_owned(),
                    ),
                }
            }
        };
        NodeResult {
            serial,
            outcome: verdict.outcome,
            reason: verdict.reason,
            exit: None,
            signal: None,
            ms: Some(u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX)),
            output_bytes: passed.bytes,
            truncated: passed.truncated,
        }
    }

    /// Says how it ended, in the step's own output too.
    async fn close(
        &self,
        ended: Result<Done, Ended>,
        effects: &Effects,
        passed: &mut Passed<'_>,
        timeout: Duration,
        cancelled: bool,
    ) -> Verdict {
        passed.release().await;
        let (verdict, value) = match ended {
            Ok(done) => (
                Verdict {
                    outcome: Outcome::Succeeded,
                    reason: None,
                },
                returned(done.value),
            ),
            Err(Ended::Failed(fault)) => {
                let note = Note::Failed {
                    text: fault.to_string(),
                };
                passed.note(note).await;
                let verdict = Verdict {
                    outcome: Outcome::Failed,
                    reason: Some(first_line(&fault)),
                };
                (verdict, Returned::Nothing)
            }
            Err(Ended::Stopped) if cancelled => (
                Verdict {
                    outcome: Outcome::Cancelled,
                    reason: Some("cancelled while it ran".to_owned()),
                },
                Returned::Nothing,
            ),
            Err(Ended::Stopped) => {
                let ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
                let limit = Span::from_millis(ms);
                (
                    Verdict {
                        outcome: Outcome::TimedOut,
                        reason: Some(format!("still running after {limit}")),
                    },
                    Returned::Nothing,
                )
            }
        };
        let tally = effects.tally();
        passed.note(Note::Ended { value, tally }).await;
        verdict
    }
}

/// Passes on what the step says until its function has ended; `None` when it
/// was to end, by its time or by a cancel, and does not.
async fn attend<T>(
    mut running: tokio::task::JoinHandle<T>,
    mut hearing: mpsc::Receiver<Said>,
    passed: &mut Passed<'_>,
    deadline: Instant,
    cancel: &tokio_util::sync::CancellationToken,
    patience: Duration,
) -> Option<Result<T, tokio::task::JoinError>> {
    let overdue = async {
        tokio::select! {
            () = cancel.cancelled() => {}
            () = sleep_until(deadline) => {}
        }
        tokio::time::sleep(patience).await;
    };
    let mut overdue = std::pin::pin!(overdue);
    loop {
        tokio::select! {
            biased;
            Some(said) = hearing.recv() => passed.take(said).await,
            ended = &mut running => {
                // What it said last is still on its way.
                while let Ok(said) = hearing.try_recv() {
                    passed.take(said).await;
                }
                return Some(ended);
            }
            () = &mut overdue => return None,
        }
    }
}

impl Passed<'_> {
    async fn take(&mut self, said: Said) {
        match said {
            Said::Started {
                process,
                cgroup,
                noted,
            } => {
                self.sink.started(&process, cgroup.as_deref()).await;
                let _ = noted.send(());
            }
            Said::Output(stream, data) => {
                let data = match &mut self.masks {
                    Some(masks) => masks.pass(stream, &data),
                    None => data,
                };
                self.output(stream, data).await;
            }
            Said::Note(note) => {
                self.release().await;
                self.note(note).await;
            }
        }
    }

    /// What was held back to see whether a secret comes.
    async fn release(&mut self) {
        let Some(masks) = &mut self.masks else { return };
        for (stream, data) in masks.rest() {
            self.output(stream, data).await;
        }
    }

    async fn output(&mut self, stream: Stream, mut data: Bytes) {
        let room = usize::try_from(self.left).unwrap_or(usize::MAX);
        if data.len() > room {
            self.truncated = true;
            data.truncate(room);
        }
        if data.is_empty() {
            return;
        }
        self.left -= data.len() as u64;
        self.bytes += data.len() as u64;
        while !data.is_empty() {
            let part = data.split_to(data.len().min(MAX_CHUNK));
            self.sink.output(stream, part).await;
        }
    }

    /// A note counts as its lines do: a script that says something without an
    /// end fills no journal.
    async fn note(&mut self, note: Note) {
        let size = note.lines().1.len() as u64;
        let last = matches!(note, Note::Ended { .. } | Note::Failed { .. });
        if (size > self.left || self.notes_left == 0) && !last {
            self.truncated = true;
            return;
        }
        self.notes_left = self.notes_left.saturating_sub(1);
        self.left = self.left.saturating_sub(size);
        self.bytes += size;
        self.sink.note(note).await;
    }
}

fn returned(value: Value) -> Returned {
    if value.is_null() {
        return Returned::Nothing;
    }
    let bytes = value.to_string().len();
    if bytes > MAX_VALUE {
        return Returned::TooLarge { bytes };
    }
    Returned::Value(value)
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

    fn call<'a>(&'a self, call: &'a Call, step: Step<'a>) -> BoxFuture<'a, NodeResult> {
        Box::pin(self.run(call, Secrets::default(), step))
    }

    fn capabilities(&self) -> Vec<String> {
        self.grants.beyond_commands()
    }
}

#[cfg(test)]
mod tests;
