//! Machines that a `main` asks for: made once, and taken back when the run
//! fails.
//!
//! A machine is no part of the run, but its record says which call made it.
//! So it is looked first, then made, whoever was stopped when; and what is
//! there of it when the run fails is known from the record, too.

use muster_protocol::ids::RunId;
use muster_protocol::problem::{Kind, Problem};
use muster_protocol::run::{
    CallState, MachineEnd, MadeMachine, PartOf, Record, RunEvent, RunPhase,
};
use muster_protocol::text::printable;
use muster_protocol::units::Timestamp;
use muster_scenarios::durable::{HostCall, Reply, wanted};
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::super::journal::JournalError;
use super::super::task::Task;
use super::MOST_LOG;
use super::conduct::{PAUSE, too_old};
use super::parts::{Part, caller};
use super::serve::LISTEN;
use super::stage::{MachineNow, StageError, UpMachine};
use super::turn::log_is_full;
use crate::refusal::Refusal;

/// How often what others do with a machine may be in the way of its end.
const MOST_TRIES: u32 = 50;
/// The longest reason, in characters.
const MOST_WHY: usize = 500;

/// Taking a machine back, as far as it is in memory.
#[derive(Debug, Default)]
pub(super) struct Unmaking {
    /// This broker has asked for its end.
    asked: bool,
    /// How often that was refused for what others do.
    refused: u32,
}

/// Why no machine is made now.
enum NoMachine {
    /// Perhaps in a moment.
    Stuck(String),
    /// The script is told.
    Told(String),
}

/// What stands in a problem, in a line.
fn words(problem: &Problem) -> String {
    let mut text = problem.title.clone();
    if let Some(detail) = &problem.detail {
        text.push_str(": ");
        text.push_str(&detail.replace('\n', "; "));
    }
    printable(&text, MOST_WHY)
}

/// What the script is told of a machine that is up.
fn told(up: &UpMachine) -> Value {
    json!({
        "name": up.made.name,
        "node": up.node,
        "hypervisor": up.made.hypervisor,
        "addresses": up.addresses,
        "made": true,
    })
}

impl Task {
    /// The call, as the record of the machine names it.
    fn asked_by(&self, call: u64) -> PartOf {
        PartOf {
            run: self.run,
            call,
            part: 0,
            undo: false,
        }
    }

    /// How the machine of a call is.
    fn machine_now(&self, call: u64) -> Result<MachineNow, NoMachine> {
        let stuck = |error: StageError| NoMachine::Stuck(error.to_string());
        let stage = self.engine.0.stages.get().map_err(stuck)?;
        let machinery = stage.machinery();
        let machinery =
            machinery.ok_or_else(|| NoMachine::Told("this broker makes no machines".to_owned()))?;
        Ok(machinery.now(self.asked_by(call)))
    }

    fn look_soon(&mut self) {
        self.conductor().wake = Some(Instant::now() + LISTEN);
    }

    /// Asks for the end of what makes or configures a machine: of its run, or,
    /// where nobody has taken that yet, that it is not asked for any more.
    async fn end_run_of(&mut self, call: u64, run: Option<RunId>) {
        let none_open = self.end_parts(run.as_slice());
        if none_open
            && run.is_some_and(|run| self.engine.part(run) == Part::Missing)
            && let Ok(Some(machinery)) = self.engine.0.stages.get().map(|s| s.machinery())
            && let Err(problem) = machinery.call_off(self.asked_by(call)).await
        {
            tracing::debug!(why = problem.title, "a machine is not called off yet");
        }
        self.look_soon();
    }

    /// Ends the making of a machine, if it is under way; whether it is not.
    pub(super) async fn machine_ended(&mut self, call: u64) -> bool {
        match self.machine_now(call) {
            Ok(MachineNow::Coming(run)) => {
                self.end_run_of(call, run).await;
                false
            }
            Err(NoMachine::Stuck(_)) => {
                self.look_soon();
                false
            }
            _ => true,
        }
    }

    /// Makes the machine that the open call asks for, and waits until it is
    /// up or is known not to be.
    pub(super) async fn serve_machine(
        &mut self,
        open: &CallState,
        name: &str,
        cancelled: Option<String>,
    ) -> Result<bool, JournalError> {
        let number = open.number;
        let late = self.state.phase == RunPhase::Running && self.time_left().is_zero();
        let end = cancelled.map(|by| format!("{by} cancelled the run"));
        let end = end.or_else(|| late.then(too_old));
        let now = match self.machine_now(number) {
            Ok(now) => now,
            Err(NoMachine::Stuck(why)) => {
                self.stuck(why, PAUSE);
                return Ok(false);
            }
            Err(NoMachine::Told(why)) => return self.no_machine(number, why, None).await,
        };
        let name = printable(name, 80);
        match (now, end) {
            (MachineNow::Coming(run), Some(_)) => {
                self.end_run_of(number, run).await;
                Ok(false)
            }
            (MachineNow::Nothing | MachineNow::Gone(_), Some(why)) => {
                self.no_machine(number, why, None).await
            }
            (
                MachineNow::Busy(made, _)
                | MachineNow::Kept(made)
                | MachineNow::Going(made)
                | MachineNow::Doubtful(made, _),
                Some(why),
            ) => self.no_machine(number, why, Some(made)).await,
            (MachineNow::Nothing, None) => self.make_machine(number).await,
            (MachineNow::Coming(_) | MachineNow::Busy(..), None) => {
                self.unstuck();
                self.look_soon();
                Ok(false)
            }
            // Also when nobody wants it any more: it is there, so the script
            // is told of it, and it is taken back with the rest.
            (MachineNow::Up(up), _) => {
                muster_checkpoint::at("broker.run.machine-up", || up.made.name.to_string()).await;
                self.unstuck();
                let reply = Reply::Value(told(&up));
                self.made(number, reply, Some(up.made)).await?;
                Ok(true)
            }
            (MachineNow::Gone(why), None) => {
                let why = format!("machine {name} was not made: {why}");
                self.no_machine(number, why, None).await
            }
            (MachineNow::Kept(made) | MachineNow::Going(made), None) => {
                let why = format!("machine {} was destroyed by somebody else", made.name);
                self.no_machine(number, why, Some(made)).await
            }
            (MachineNow::Doubtful(made, why), None) => {
                let why = format!(
                    "it cannot be said whether machine {} is on {}: {why}",
                    made.name, made.hypervisor
                );
                self.no_machine(number, why, Some(made)).await
            }
        }
    }

    /// The script is told that it has no machine; `made` is what may be there
    /// all the same.
    async fn no_machine(
        &mut self,
        number: u64,
        why: String,
        made: Option<MadeMachine>,
    ) -> Result<bool, JournalError> {
        self.unstuck();
        self.made(number, Reply::Error(why), made).await?;
        Ok(true)
    }

    async fn make_machine(&mut self, number: u64) -> Result<bool, JournalError> {
        if self.state.phase == RunPhase::Paused {
            return Ok(false);
        }
        // What is wanted of it is not in the journal: the script says it again.
        let Some(HostCall::Machine { machine, .. }) = self.conductor().wanted.clone() else {
            self.let_run().await;
            return Ok(false);
        };
        let asked = match wanted(&machine) {
            Ok(asked) => asked,
            Err(why) => {
                return self
                    .no_machine(number, format!("machine: {why}"), None)
                    .await;
            }
        };
        let name = printable(&asked.name, 80);
        let (by, of) = (caller(&self.state), self.asked_by(number));
        let made = match self.engine.0.stages.get().map(|stage| stage.machinery()) {
            Ok(Some(machinery)) => machinery.make(by, asked, of).await,
            // It was looked at a moment ago.
            Ok(None) | Err(_) => Err(Problem::new(Kind::Unavailable, "the broker starts")),
        };
        match made {
            Ok(()) => {
                self.unstuck();
                self.look_soon();
                Ok(false)
            }
            Err(problem) if Refusal::of(&problem).passes() => {
                self.stuck(format!("machine {name}: {}", words(&problem)), PAUSE);
                Ok(false)
            }
            Err(problem) => match self.machine_now(number) {
                // Another broker has begun it, or it is being given back.
                Ok(MachineNow::Nothing | MachineNow::Gone(_)) | Err(_) => {
                    let why = format!("machine {name} was not made: {}", words(&problem));
                    self.no_machine(number, why, None).await
                }
                Ok(_) => {
                    self.look_soon();
                    Ok(false)
                }
            },
        }
    }

    /// In a dry run: what would be made, at once.
    pub(super) async fn would_make(
        &mut self,
        number: u64,
        hash: String,
        machine: &Map<String, Value>,
    ) -> Result<(), JournalError> {
        let planned = match wanted(machine) {
            Err(why) => Err(why),
            Ok(asked) => match self.engine.0.stages.get().map(|stage| stage.machinery()) {
                Ok(Some(machinery)) => {
                    let planned = machinery.would_make(caller(&self.state), asked).await;
                    planned.map_err(|problem| words(&problem))
                }
                Ok(None) => Err("this broker makes no machines".to_owned()),
                Err(error) => {
                    self.stuck(error.to_string(), PAUSE);
                    return Ok(());
                }
            },
        };
        let (reply, log) = match planned {
            Err(why) => (Reply::Error(format!("machine: {why}")), None),
            Ok(vm) => {
                let line = format!(
                    "would make machine {} on {}: {} cpus, {} of memory, {} of disk, from {}",
                    vm.name, vm.hypervisor, vm.cpus, vm.memory, vm.disk, vm.image
                );
                let value = json!({
                    "name": vm.name,
                    "node": vm.agent.then_some(&vm.name),
                    "hypervisor": vm.hypervisor,
                    "addresses": [],
                    "made": false,
                });
                (Reply::Value(value), Some(line))
            }
        };
        let bytes = log.as_ref().map_or(0, |line| line.len() as u64 + 1);
        let (reply, log) = if self.flow().logged() + bytes > MOST_LOG {
            (log_is_full(), None)
        } else {
            (reply, log)
        };
        let record = Record {
            call: "machine".to_owned(),
            hash,
            reply: serde_json::to_value(reply).unwrap_or_default(),
            log,
        };
        let (from, records, at) = (number, vec![record], Timestamp::now());
        self.store(RunEvent::Recorded { from, records, at }).await
    }

    /// Goes on with taking a machine back. Whether something was written down.
    pub(super) async fn go_on_unmaking(
        &mut self,
        of: u64,
        machine: &MadeMachine,
    ) -> Result<bool, JournalError> {
        let now = match self.machine_now(of) {
            Ok(now) => now,
            Err(NoMachine::Stuck(why)) => {
                self.wait_a_moment(why);
                return Ok(false);
            }
            Err(NoMachine::Told(why)) => return self.unmade(MachineEnd::Left { why }).await,
        };
        let asked = self.conductor().unmaking.asked;
        match now {
            MachineNow::Nothing | MachineNow::Gone(_) => self.unmade(MachineEnd::Gone).await,
            // It goes: nobody waits until it is configured.
            MachineNow::Coming(run) | MachineNow::Busy(_, run) => {
                self.end_run_of(of, run).await;
                Ok(false)
            }
            MachineNow::Going(_) => {
                self.look_soon();
                Ok(false)
            }
            // It runs on with whatever was done to it.
            MachineNow::Up(up) if up.protected => {
                let name = &machine.name;
                let why =
                    format!("{name} is protected; muster vm unprotect {name}, then destroy it");
                self.unmade(MachineEnd::Left { why }).await
            }
            MachineNow::Doubtful(_, why) if asked => self.unmade(MachineEnd::Left { why }).await,
            MachineNow::Up(_) | MachineNow::Kept(_) | MachineNow::Doubtful(..) => {
                self.unmake(of).await
            }
        }
    }

    async fn unmake(&mut self, of: u64) -> Result<bool, JournalError> {
        let (by, part) = (caller(&self.state), self.asked_by(of));
        let done = match self.engine.0.stages.get().map(|stage| stage.machinery()) {
            Ok(Some(machinery)) => machinery.unmake(by, part).await,
            Ok(None) | Err(_) => Err(Problem::new(Kind::Unavailable, "the broker starts")),
        };
        match done {
            Ok(()) => {
                self.unstuck();
                self.conductor().unmaking.asked = true;
                self.look_soon();
                Ok(false)
            }
            Err(problem) if Refusal::of(&problem).passes() => {
                self.wait_a_moment(words(&problem));
                Ok(false)
            }
            Err(problem) => {
                let tries = &mut self.conductor().unmaking.refused;
                *tries += 1;
                // Somebody does something with it just now.
                if problem.kind == Kind::Conflict && *tries < MOST_TRIES {
                    self.look_soon();
                    return Ok(false);
                }
                let why = words(&problem);
                self.unmade(MachineEnd::Left { why }).await
            }
        }
    }

    async fn unmade(&mut self, end: MachineEnd) -> Result<bool, JournalError> {
        self.unstuck();
        self.conductor().unmaking = Unmaking::default();
        let index = self.flow().undo.len().saturating_sub(1);
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        let at = Timestamp::now();
        self.store(RunEvent::Unmade { index, end, at }).await?;
        Ok(true)
    }
}
