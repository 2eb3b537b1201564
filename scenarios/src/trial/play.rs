//! A run of a scenario on fake nodes, from its parameters to its end.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use muster_protocol::envelope::Mode;
use muster_protocol::ids::Serial;
use muster_protocol::names::{FunctionName, NodeName};
use muster_protocol::nodeset::NodeSet;
use muster_protocol::predicate::Predicate;
use muster_protocol::run::Outcome;
use muster_protocol::units::{Amount, Timestamp, after};
use serde_json::{Map, Value};

use super::fleet::{Done, Fake, Pattern, Shared};
use crate::bundle::Bundle;
use crate::durable::{
    self, HostCall, Input, Member, NodeReply, Reply, Step, StepOptions, StepReply, Turn, Undo,
    UndoStep,
};
use crate::fault::Fault;
use crate::manifest::{self, Budget, Manifest, RUN, Shape};
use crate::node::{self, Call, Ended};
use crate::param::{Given, bind};
use crate::secret::Secrets;

/// When every run of a test begins.
const BEGIN: &str = "2026-01-01T00:00:00Z";

/// A scenario that is ready to be tried out. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Subject {
    pub(super) manifest: Arc<Manifest>,
    main: Option<durable::Program>,
    node: node::Program,
}

impl Subject {
    pub(super) fn new(file: &str, bundle: &Bundle, manifest: Manifest) -> Result<Self, Box<Fault>> {
        let main = match manifest.shape {
            Shape::Main => Some(durable::Program::new(file, bundle.script())?),
            Shape::Run => None,
        };
        Ok(Self {
            main,
            node: node::Program::new(file, bundle)?,
            manifest: Arc::new(manifest),
        })
    }
}

/// What a person would say.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) question: Pattern,
    pub(super) text: String,
}

/// How a run is begun.
#[derive(Clone, Debug)]
pub(super) struct Begin {
    pub(super) params: Map<String, Value>,
    /// Targets, for a scenario that declares none.
    pub(super) on: Option<Predicate>,
    pub(super) mode: Mode,
}

/// One step as it went.
#[derive(Clone, Debug)]
pub(super) struct Went {
    pub(super) function: FunctionName,
    pub(super) reply: StepReply,
}

/// A run that came to its end.
#[derive(Clone, Debug)]
pub(super) struct Played {
    /// Why it failed.
    pub(super) error: Option<String>,
    pub(super) value: Value,
    pub(super) steps: Vec<Went>,
    /// Steps that took others back.
    pub(super) undone: Vec<Went>,
    pub(super) asked: Vec<String>,
    pub(super) done: Done,
}

/// Everything outside of the script.
pub(super) struct World {
    subject: Subject,
    pub(super) fleet: Shared,
    answers: Vec<Answer>,
    secrets: Secrets,
    pub(super) mode: Mode,
    now: Timestamp,
    asked: Vec<String>,
    pub(super) steps: Vec<Went>,
    /// The steps of each call, to be taken back.
    by_call: BTreeMap<u64, Vec<StepReply>>,
    /// The machines that it made, by call.
    pub(super) machines: BTreeMap<u64, NodeName>,
}

/// Plays a run.
///
/// # Errors
/// Why it could not be begun: what a person would be told at once.
pub(super) fn play(
    subject: &Subject,
    fleet: &Shared,
    answers: &[Answer],
    begin: &Begin,
) -> Result<Played, String> {
    let manifest = Arc::clone(&subject.manifest);
    let given: BTreeMap<String, Given> = begin
        .params
        .iter()
        .map(|(name, value)| (name.clone(), Given::Json(value.clone())))
        .collect();
    let bound = bind(&manifest.params, &given).map_err(|mistakes| {
        let all: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
        match all.as_slice() {
            [one] => one.clone(),
            several => {
                let count = several.len();
                let lines = several.join("\n    ");
                format!("{count} parameters do not fit:\n    {lines}")
            }
        }
    })?;
    let sets = frozen(&manifest, fleet, begin.on.as_ref());
    fleet.lock().done = Done::default();
    let world = Arc::new(Mutex::new(World {
        subject: subject.clone(),
        fleet: fleet.clone(),
        answers: answers.to_vec(),
        secrets: Secrets::new(bound.secret().clone()),
        mode: begin.mode,
        now: BEGIN.parse().unwrap_or(Timestamp::UNIX_EPOCH),
        asked: Vec::new(),
        steps: Vec::new(),
        by_call: BTreeMap::new(),
        machines: BTreeMap::new(),
    }));
    let params = bound.sealed();
    let (error, value, undone) = match &subject.main {
        Some(program) => main(program, &world, Input { params, sets })?,
        None => run(&manifest, &world, params, &sets)?,
    };
    let mut world = world.lock().unwrap_or_else(PoisonError::into_inner);
    let done = std::mem::take(&mut fleet.lock().done);
    Ok(Played {
        error,
        value,
        undone,
        done,
        steps: std::mem::take(&mut world.steps),
        asked: std::mem::take(&mut world.asked),
    })
}

/// The node sets, as they would be frozen.
fn frozen(
    manifest: &Manifest,
    fleet: &Shared,
    on: Option<&Predicate>,
) -> BTreeMap<String, Vec<Member>> {
    let fleet = fleet.lock();
    let mut nodes: Vec<&Fake> = fleet.there().collect();
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    let set = |(name, predicate): (&str, Option<&Predicate>)| {
        let predicate = match (name, on) {
            ("targets", Some(on)) => Some(on),
            _ => predicate,
        };
        let members = nodes
            .iter()
            .filter(|node| predicate.is_none_or(|predicate| predicate.matches(**node)))
            .map(|node| Member {
                serial: node.serial,
                name: node.name.clone(),
            });
        (name.to_owned(), members.collect())
    };
    manifest.sets().map(set).collect()
}

type End = (Option<String>, Value, Vec<Went>);

fn main(
    program: &durable::Program,
    world: &Arc<Mutex<World>>,
    input: Input,
) -> Result<End, String> {
    let inside = Arc::clone(world);
    let inline = move |number: u64, call: &HostCall| {
        let mut world = inside.lock().unwrap_or_else(PoisonError::into_inner);
        // A dry run asks nobody: it ends there.
        let asks = world.mode == Mode::Check && matches!(call, HostCall::Ask { .. });
        (!asks).then(|| world.answer(number, call))
    };
    let (turn, _) = durable::turn(program, &input, durable::Records::default(), inline, || {
        false
    });
    Ok(match turn {
        Turn::Done(value) => (None, value, Vec::new()),
        Turn::Failed { fault, undo } => {
            let mut world = world.lock().unwrap_or_else(PoisonError::into_inner);
            let undone = match world.mode {
                Mode::Apply => world.take_back(&undo),
                // It has done nothing.
                Mode::Check => Vec::new(),
            };
            (Some(fault.message), Value::Null, undone)
        }
        Turn::Wants {
            call: HostCall::Ask { .. },
            ..
        } => (None, Value::Null, Vec::new()),
        Turn::Wants { call, .. } => return Err(format!("nobody answers `{}`", call.name())),
        Turn::Diverged { fault, .. } => return Err(fault.message),
        Turn::Stopped => return Err("it was stopped".to_owned()),
        Turn::Broken(why) => return Err(why),
    })
}

fn run(
    manifest: &Manifest,
    world: &Mutex<World>,
    params: Map<String, Value>,
    sets: &BTreeMap<String, Vec<Member>>,
) -> Result<End, String> {
    let targets = sets.get("targets").into_iter().flatten();
    let step = Step {
        nodes: targets.map(|member| member.serial).collect(),
        function: RUN.parse().map_err(|e| format!("{e}"))?,
        params,
        options: StepOptions {
            batch: manifest.batch,
            retry: Some(manifest.retry),
            ..StepOptions::default()
        },
        undo: None,
    };
    let mut world = world.lock().unwrap_or_else(PoisonError::into_inner);
    let reply = world.step(&step);
    Ok((reply.stopped, Value::Null, Vec::new()))
}

impl World {
    fn answer(&mut self, number: u64, call: &HostCall) -> Reply {
        match call {
            HostCall::On(step) | HostCall::TryOn(step) => {
                let reply = self.step(step);
                self.by_call.insert(number, vec![reply.clone()]);
                Reply::Step(reply)
            }
            HostCall::Parallel { steps } => {
                let replies: Vec<StepReply> = steps.iter().map(|step| self.step(step)).collect();
                self.by_call.insert(number, replies.clone());
                Reply::Steps(replies)
            }
            HostCall::Where { nodes, predicate } => match Predicate::parse(predicate) {
                Ok(predicate) => Reply::Nodes(self.those(nodes, &predicate)),
                Err(error) => Reply::Error(error.to_string()),
            },
            HostCall::Spread { nodes, size, label } => {
                let fleet = self.fleet.lock();
                let nodes: Vec<(Serial, Option<&str>)> = nodes
                    .iter()
                    .map(|serial| (serial, fleet.label(serial, label)))
                    .collect();
                let size = size.of_rounded_up(nodes.len());
                Reply::Batches(durable::spread(&nodes, size))
            }
            HostCall::Sleep { span } => {
                self.now = after(self.now, span.get());
                Reply::Value(Value::Null)
            }
            HostCall::Contact { .. } if self.mode == Mode::Check => Reply::Value(Value::Null),
            HostCall::Contact { node, within } => {
                if self.fleet.lock().is_there(node.as_str()) {
                    Reply::Value(Value::Null)
                } else {
                    self.now = after(self.now, within.get());
                    Reply::Error(format!("{node} was not heard within {within}"))
                }
            }
            HostCall::Now => Reply::Value(self.now.to_string().into()),
            HostCall::Random { from, .. } => Reply::Value((*from).into()),
            HostCall::Ask { question, answers } => self.ask(question, answers),
            HostCall::Emit { kind, .. } if self.mode == Mode::Check => {
                let line = format!("would emit scenario.{kind}");
                self.fleet.lock().done.logs.push(line);
                Reply::Value(Value::Null)
            }
            HostCall::Emit { kind, fields } => {
                let event = (kind.clone(), fields.clone());
                self.fleet.lock().done.events.push(event);
                Reply::Value(Value::Null)
            }
            HostCall::Log { text } => {
                self.fleet.lock().done.logs.push(text.clone());
                Reply::Value(Value::Null)
            }
            HostCall::RunScenario { scenario, on, .. } => self.another(scenario, on.as_deref()),
            HostCall::Machine { machine, .. } => self.machine(number, machine),
        }
    }

    fn those(&self, nodes: &NodeSet, predicate: &Predicate) -> NodeSet {
        let fleet = self.fleet.lock();
        let holds = |serial: &Serial| {
            fleet
                .node(*serial)
                .is_some_and(|node| predicate.matches(node))
        };
        nodes.iter().filter(holds).collect()
    }

    fn ask(&mut self, question: &str, answers: &[String]) -> Reply {
        self.asked.push(question.to_owned());
        let answer = self
            .answers
            .iter()
            .rev()
            .find(|a| a.question.fits(question));
        match answer {
            None => Reply::Error(format!(
                "the test does not say what the answer to `{question}` is: answer(\"*\", \"yes\")"
            )),
            Some(answer) if !answers.is_empty() && !answers.contains(&answer.text) => {
                let text = &answer.text;
                Reply::Error(format!("`{text}` is none of {}", answers.join(", ")))
            }
            Some(answer) => Reply::Value(answer.text.clone().into()),
        }
    }

    /// A step, batch by batch, until it is done or its budget is used up.
    fn step(&mut self, step: &Step) -> StepReply {
        let budgets = match step.options.max_failures {
            Some(amount) => vec![Budget { amount, by: None }],
            None if self.subject.manifest.budgets.is_empty() => vec![Budget {
                amount: Amount::Count(0),
                by: None,
            }],
            None => self.subject.manifest.budgets.clone(),
        };
        let mut all: Vec<(Serial, Option<Outcome>)> =
            step.nodes.iter().map(|serial| (serial, None)).collect();
        let size = match step.options.batch {
            Some(batch) => batch.of_rounded_up(all.len()).max(1),
            None => all.len().max(1),
        };
        let mut reply = StepReply::default();
        for begin in (0..all.len()).step_by(size) {
            let end = all.len().min(begin + size);
            for (serial, outcome) in &mut all[begin..end] {
                let node = self.on_node(step, *serial);
                *outcome = Some(node.outcome);
                reply.nodes.push(node);
            }
            let fleet = self.fleet.lock();
            let domain = |serial: Serial, label: &_| fleet.label(serial, label);
            reply.stopped = manifest::spent(&budgets, &all, domain);
            if reply.stopped.is_some() {
                let rest = all[end..].iter();
                reply
                    .nodes
                    .extend(rest.map(|(serial, _)| ended(*serial, Outcome::Skipped, None)));
                break;
            }
        }
        self.steps.push(Went {
            function: step.function.clone(),
            reply: reply.clone(),
        });
        reply
    }

    fn on_node(&self, step: &Step, serial: Serial) -> NodeReply {
        let (node, down) = {
            let fleet = self.fleet.lock();
            let Some(node) = fleet.node(serial) else {
                return ended(serial, Outcome::Unreachable, Some("it is not there".into()));
            };
            (node.clone(), node.down)
        };
        if down {
            return ended(serial, Outcome::Unreachable, Some("it is down".to_owned()));
        }
        let call = Call {
            function: step.function.clone(),
            params: step.params.clone(),
            secrets: self.secrets.clone(),
            mode: self.mode,
        };
        self.fleet.lock().printed.remove(&serial);
        let host = self.fleet.host(&node);
        let tries = step.options.retry.unwrap_or(0);
        let mut result = self.subject.node.call(&call, host.clone());
        for _ in 0..tries {
            if !matches!(result, Err(Ended::Failed(_))) {
                break;
            }
            result = self.subject.node.call(&call, host.clone());
        }
        let stdout = self.fleet.lock().printed.remove(&serial);
        let reply = match result {
            Ok(done) => NodeReply {
                value: Some(done.value),
                ..ended(serial, Outcome::Succeeded, None)
            },
            Err(Ended::Failed(fault)) => {
                let place = fault.at.map_or(String::new(), |at| format!(":{}", at.line));
                let reason = format!("{}{place} {}", fault.file, fault.message);
                ended(serial, Outcome::Failed, Some(reason))
            }
            Err(Ended::Stopped) => ended(serial, Outcome::Cancelled, None),
        };
        NodeReply { stdout, ..reply }
    }

    /// Takes steps back, newest first.
    fn take_back(&mut self, undo: &[Undo]) -> Vec<Went> {
        let before = self.steps.len();
        for undo in undo {
            let undo = match undo {
                Undo::Step(undo) => undo,
                Undo::Machine { of } => {
                    self.destroy(*of);
                    continue;
                }
            };
            let UndoStep {
                function, params, ..
            } = undo.clone();
            let reply = self
                .by_call
                .get(&undo.of)
                .and_then(|replies| replies.get(undo.part));
            let nodes = reply.into_iter().flat_map(|reply| &reply.nodes);
            let touched = nodes.filter(|node| {
                matches!(
                    node.outcome,
                    Outcome::Succeeded | Outcome::Failed | Outcome::TimedOut | Outcome::Unknown
                )
            });
            let step = Step {
                nodes: touched.map(|node| node.serial).collect(),
                function,
                params,
                options: StepOptions::default(),
                undo: None,
            };
            self.step(&step);
        }
        self.steps.split_off(before)
    }
}

pub(super) fn ended(serial: Serial, outcome: Outcome, reason: Option<String>) -> NodeReply {
    NodeReply {
        serial,
        outcome,
        value: None,
        reason,
        exit: None,
        stdout: None,
    }
}
