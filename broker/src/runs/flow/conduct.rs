//! What the task of a run with a `main` does where others send.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use muster_protocol::envelope::Mode;
use muster_protocol::ids::RunId;
use muster_protocol::names::PrincipalName;
use muster_protocol::run::{
    Flow, MadeMachine, MainEnd, Record, RunEnd, RunEvent, RunPhase, RunState, StepCall, StepEnd,
    Wanted,
};
use muster_protocol::text::printable;
use muster_protocol::units::{Timestamp, after, elapsed};
use muster_scenarios::durable::{HostCall, Reply, Step, Turn, Undo};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::super::journal::JournalError;
use super::super::task::Task;
use super::machine::Unmaking;
use super::records::{Told, cut, read};
use super::stage::{Score, StageError};
use super::turn::{Begin, Turned, World, begin, input, said_at_once};
use super::{LONGEST, MOST_CALLS, MOST_DEEP, MOST_REPLY, MOST_SLEEPS, MOST_TOLD, part_id};

/// Pause before something is tried again that could not be done.
pub(super) const PAUSE: Duration = Duration::from_secs(1);
/// The same when it is nothing that heals quickly.
pub(super) const LONG_PAUSE: Duration = Duration::from_secs(30);
/// How often a run that waits for a moment looks at the clock, which people
/// may set.
pub(super) const LOOK: Duration = Duration::from_secs(60);
/// What a `main` was told is kept in memory while it waits if it has at most
/// so many bytes.
pub(super) const KEPT: u64 = 64 * 1024;
/// Bytes of calls that were answered at once in one event.
const PAGE: usize = 256 * 1024;
/// The longest error in the journal, in characters.
const ERROR: usize = 4_000;
/// The longest answer, in bytes.
pub(super) const ANSWER: usize = 16 * 1024;

/// Why an answer is not taken.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum AnswerError {
    /// Nothing is asked.
    #[error("run {0} asks nothing now")]
    NotAsked(String),
    /// It is none of those that are allowed.
    #[error("`{text}` is no answer to that; there are: {}", .allowed.join(", "))]
    NotAllowed {
        /// What was said.
        text: String,
        /// What can be.
        allowed: Vec<String>,
    },
    /// It is too long.
    #[error("an answer has at most {ANSWER} bytes")]
    TooLong,
}

/// The state after an answer.
pub(in crate::runs) type Answered = Result<Arc<RunState>, AnswerError>;

/// What is in memory of a run with a `main`. All of it can be had again.
pub(in crate::runs) struct Conductor {
    pub(super) to: mpsc::UnboundedSender<Turned>,
    pub(super) from: mpsc::UnboundedReceiver<Turned>,
    /// A turn is under way; set it to end that.
    pub(super) turning: Option<Arc<AtomicBool>>,
    /// What the open call is.
    pub(super) wanted: Option<HostCall>,
    /// What is to be taken back, newest first.
    pub(super) undo: Option<Vec<Undo>>,
    /// Why the script must not go on.
    pub(super) diverged: Option<String>,
    pub(super) told: Option<Told>,
    /// Since the run cannot go on: until when it waits, and why.
    pub(super) stuck: Option<(Instant, String)>,
    /// What was said of that.
    pub(super) alarmed: bool,
    /// Parts that were cut while they were written down, and are being ended.
    pub(super) ending: BTreeSet<RunId>,
    /// Of the machine that is being taken back.
    pub(super) unmaking: Unmaking,
    /// When to look again.
    pub(super) wake: Option<Instant>,
}

impl Conductor {
    /// One that has done nothing yet.
    pub(in crate::runs) fn new() -> Self {
        let (to, from) = mpsc::unbounded_channel();
        Self {
            to,
            from,
            turning: None,
            wanted: None,
            undo: None,
            diverged: None,
            told: None,
            stuck: None,
            alarmed: false,
            ending: BTreeSet::new(),
            unmaking: Unmaking::default(),
            wake: None,
        }
    }

    /// When the run has to look again, if it waits for the clock.
    pub(in crate::runs) fn wake(&self) -> Option<Instant> {
        self.wake
    }

    /// The end of a turn; never when there is no `main`.
    pub(in crate::runs) async fn turned(this: &mut Option<Box<Self>>) -> Turned {
        match this {
            // It holds a sender of its own, so that there is always one more.
            Some(this) => match this.from.recv().await {
                Some(turned) => turned,
                None => std::future::pending().await,
            },
            None => std::future::pending().await,
        }
    }

    /// Hears what was written down.
    pub(in crate::runs) fn heard(&mut self, event: &RunEvent) {
        if let Some(told) = &mut self.told
            && let Err(error) = told.take(event)
        {
            tracing::error!(%error, "what was written down cannot be read");
            self.told = None;
        }
    }

    /// Somebody has cancelled the run: the script does not go on.
    pub(in crate::runs) fn stop(&mut self) {
        if let Some(turning) = &self.turning {
            turning.store(true, Ordering::Relaxed);
        }
        self.stuck = None;
    }
}

impl Task {
    pub(super) fn conductor(&mut self) -> &mut Conductor {
        self.main.get_or_insert_with(|| Box::new(Conductor::new()))
    }

    pub(super) fn flow(&self) -> &Flow {
        self.state
            .flow
            .as_ref()
            .expect("only a run with a `main` is conducted")
    }

    /// Goes on with `main`. Whether something was written down: then the
    /// state has to be asked again.
    pub(in crate::runs) async fn conduct(&mut self) -> Result<bool, JournalError> {
        self.conductor().wake = None;
        if let Some((until, _)) = &self.conductor().stuck
            && Instant::now() < *until
        {
            let until = *until;
            self.conductor().wake = Some(until);
            return Ok(false);
        }
        if self.flow().ended.is_some() {
            return self.take_back().await;
        }
        if self.flow().open().is_none()
            && let Some(error) = self.conductor().diverged.clone()
        {
            let end = MainEnd::Diverged { error };
            self.main_ended(end, Vec::new()).await?;
            return Ok(true);
        }
        let flow = self.flow();
        match flow.open() {
            Some(open) => {
                let open = open.clone();
                self.serve(open).await
            }
            // Nobody has begun with it, so there is nothing to ask the script.
            None if self.state.phase == RunPhase::Cancelling && flow.answered == 0 => {
                self.main_ended(MainEnd::Cancelled, Vec::new()).await?;
                Ok(true)
            }
            None if self.state.phase == RunPhase::Paused => Ok(false),
            None => {
                self.let_run().await;
                Ok(false)
            }
        }
    }

    /// The run cannot go on now.
    pub(super) fn stuck(&mut self, why: String, pause: Duration) {
        tracing::warn!(why, "a run's main cannot go on now");
        self.say_stalled(Some(why.clone()));
        let until = Instant::now() + pause;
        let this = self.conductor();
        this.stuck = Some((until, why));
        this.wake = Some(until);
    }

    pub(super) fn unstuck(&mut self) {
        if self.conductor().stuck.take().is_some() {
            self.say_stalled(None);
        }
    }

    /// The scenario, or a reason to wait.
    pub(super) async fn score(&mut self) -> Option<Arc<Score>> {
        let shared = Arc::clone(&self.engine.0);
        match shared.stages.score(self.state.spec.bundle).await {
            Ok(score) => Some(score),
            Err(error @ StageError::NoAnswer(_)) => {
                self.stuck(error.to_string(), PAUSE);
                None
            }
            Err(error) => {
                self.cannot_go_on(error.to_string()).await;
                None
            }
        }
    }

    /// The run cannot go on, and only people can change that. One that was
    /// cancelled ends as it is.
    pub(super) async fn cannot_go_on(&mut self, why: String) {
        self.alarm(format!(
            "it cannot go on: {why}; it is tried again, or cancel it"
        ))
        .await;
        if self.state.phase == RunPhase::Cancelling {
            self.conductor().diverged = Some(format!("nothing was taken back: {why}"));
        }
        self.stuck(why, LONG_PAUSE);
        if self.state.phase == RunPhase::Cancelling {
            let now = Instant::now();
            let this = self.conductor();
            this.stuck = Some((now, String::new()));
            this.wake = Some(now);
        }
    }

    /// Tells people once that a run waits for them.
    pub(super) async fn alarm(&mut self, text: String) {
        if std::mem::replace(&mut self.conductor().alarmed, true) {
            return;
        }
        let (short, title) = (self.short(), printable(&self.state.spec.title, 80));
        let text = format!("run {short} ({title}): {text}");
        let events = self.engine.0.events.clone();
        events.emit("alarm.run-stuck", &short, text).await;
    }

    /// What the run cannot do now it does in a moment.
    pub(super) fn wait_a_moment(&mut self, why: String) {
        self.stuck(why, PAUSE);
    }

    /// Why what the run did cannot be taken back, if so.
    pub(super) fn undo_lost(&mut self) -> Option<String> {
        self.conductor().diverged.clone()
    }

    /// What is to be taken back, once the script has said it.
    pub(super) fn undo_list(&mut self) -> Option<Vec<Undo>> {
        self.conductor().undo.clone()
    }

    /// Lets the script run from its top, if it does not already.
    pub(super) async fn let_run(&mut self) {
        if self.conductor().turning.is_some() {
            return;
        }
        let Some(score) = self.score().await else {
            return;
        };
        if self.conductor().told.is_none() {
            let shared = Arc::clone(&self.engine.0);
            match read(&shared.js, self.run, self.first()).await {
                Ok(told) => self.conductor().told = Some(told),
                Err(error) => {
                    self.stuck(error.to_string(), PAUSE);
                    return;
                }
            }
        }
        self.unstuck();
        let flow = self.flow();
        let live =
            self.state.phase == RunPhase::Running && flow.ended.is_none() && flow.open().is_none();
        let logged = flow.logged();
        let stop = Arc::new(AtomicBool::new(false));
        let records = self.conductor().told.as_ref().map(Told::records);
        let turn = Begin {
            score,
            input: input(&self.state),
            records: records.unwrap_or_default(),
            live,
            logged,
            stop: Arc::clone(&stop),
        };
        let shared = Arc::clone(&self.engine.0);
        let world = World::new(&shared, &self.state);
        let this = self.conductor();
        this.turning = Some(stop);
        begin(&shared, world, turn, this.to.clone());
    }

    /// Takes what came of a turn.
    pub(in crate::runs) async fn turned(&mut self, turned: Turned) -> Result<(), JournalError> {
        self.conductor().turning = None;
        let at = Timestamp::now();
        let ended = self.flow().ended.is_some();
        if turned.live && !ended {
            for records in pages(turned.fresh) {
                let from = self.flow().answered;
                self.store(RunEvent::Recorded { from, records, at }).await?;
            }
        }
        match turned.turn {
            Turn::Wants {
                number,
                call,
                at,
                undo,
            } => {
                let line = at.and_then(|at| u32::try_from(at.line).ok());
                self.wants(number, call, line, undo).await
            }
            Turn::Done(value) if !ended => {
                self.main_ended(MainEnd::Done { value }, Vec::new()).await
            }
            Turn::Failed { fault, undo } if !ended => {
                let end = if self.state.phase == RunPhase::Cancelling {
                    MainEnd::Cancelled
                } else {
                    let error = printable_lines(&fault.to_string());
                    MainEnd::Failed { error }
                };
                self.main_ended(end, undo).await
            }
            Turn::Failed { undo, .. } => {
                self.conductor().undo = Some(undo);
                Ok(())
            }
            // It was failed or cancelled, and comes to another end now.
            Turn::Done(_) => {
                self.conductor().undo = Some(Vec::new());
                Ok(())
            }
            Turn::Diverged { fault, .. } => self.diverged(fault.to_string()).await,
            Turn::Stopped => Ok(()),
            Turn::Broken(why) => {
                self.cannot_go_on(why).await;
                Ok(())
            }
        }
    }

    pub(super) async fn diverged(&mut self, error: String) -> Result<(), JournalError> {
        let flow = self.flow();
        if flow.ended.is_some() {
            // It has ended; what it did cannot be taken back any more.
            self.conductor().diverged = Some(error);
            return Ok(());
        }
        let error = printable_lines(&error);
        if flow.open().is_some() {
            // What is under way is ended first.
            self.conductor().diverged = Some(error);
            return Ok(());
        }
        self.main_ended(MainEnd::Diverged { error }, Vec::new())
            .await
    }

    pub(super) async fn main_ended(
        &mut self,
        end: MainEnd,
        undo: Vec<Undo>,
    ) -> Result<(), JournalError> {
        self.conductor().undo = Some(undo);
        self.conductor().wanted = None;
        let at = Timestamp::now();
        self.store(RunEvent::MainEnded { end, at }).await
    }

    /// The script wants something.
    async fn wants(
        &mut self,
        number: u64,
        call: HostCall,
        line: Option<u32>,
        undo: Vec<Undo>,
    ) -> Result<(), JournalError> {
        let flow = self.flow();
        if flow.ended.is_some() {
            self.conductor().undo = Some(undo);
            return Ok(());
        }
        if let Some(open) = flow.open() {
            if open.number == number && open.hash == call.hash().to_string() {
                self.conductor().wanted = Some(call);
                return Ok(());
            }
            let error = format!(
                "call {number} is `{}` with other arguments than the first time, or another call; the run is \
                 stopped: nobody knows what it would do",
                call.name()
            );
            return self.diverged(error).await;
        }
        let phase = self.state.phase;
        if phase == RunPhase::Cancelling {
            return self.main_ended(MainEnd::Cancelled, undo).await;
        }
        if phase != RunPhase::Running || number != flow.answered {
            // It is asked again when the run goes on.
            return Ok(());
        }
        if let Some(error) = self.too_much() {
            return self.main_ended(MainEnd::Failed { error }, undo).await;
        }
        if let Some(why) = self.no_further(&call, line) {
            return self.main_ended(MainEnd::Planned { why }, undo).await;
        }
        let hash = call.hash().to_string();
        if self.is_dry()
            && let HostCall::Machine { machine, .. } = &call
        {
            return self.would_make(number, hash, machine).await;
        }
        if let Some((reply, log)) = said_at_once(self.is_dry(), &call, self.flow().logged()) {
            let record = Record {
                call: call.name().to_owned(),
                hash,
                reply: serde_json::to_value(reply).unwrap_or_default(),
                log,
            };
            let (from, records, at) = (number, vec![record], Timestamp::now());
            return self.store(RunEvent::Recorded { from, records, at }).await;
        }
        let wanted = match self.wanted(number, &hash, &call) {
            Ok(wanted) => wanted,
            Err(error) => {
                let reply = serde_json::to_value(Reply::Error(error)).unwrap_or_default();
                let record = Record {
                    call: call.name().to_owned(),
                    hash,
                    reply,
                    log: None,
                };
                let (records, at) = (vec![record], Timestamp::now());
                return self
                    .store(RunEvent::Recorded {
                        from: number,
                        records,
                        at,
                    })
                    .await;
            }
        };
        let event = RunEvent::Called {
            number,
            call: call.name().to_owned(),
            hash,
            line,
            wanted,
            at: Timestamp::now(),
        };
        self.store(event).await?;
        self.conductor().wanted = Some(call);
        Ok(())
    }

    /// Whether the run is to change nothing.
    pub(super) fn is_dry(&self) -> bool {
        self.state.spec.mode == Mode::Check
    }

    /// Why a dry run goes no further than this call: what comes after depends
    /// on what nobody knows before it is done for real.
    fn no_further(&mut self, call: &HostCall, line: Option<u32>) -> Option<String> {
        if !self.is_dry() {
            return None;
        }
        let line = line.map_or_else(String::new, |line| format!("line {line}: "));
        match call {
            HostCall::Ask { question, .. } => Some(format!(
                "{line}what comes after depends on the answer to `{}`",
                printable(question, 200)
            )),
            HostCall::Sleep { .. } => {
                let slept = self.conductor().told.as_ref().map_or(0, Told::slept);
                (slept >= MOST_SLEEPS).then(|| {
                    format!(
                        "{line}it would have slept {MOST_SLEEPS} times; what comes after depends on \
                         something that a dry run does not bring about"
                    )
                })
            }
            _ => None,
        }
    }

    /// Why a `main` may do nothing more.
    fn too_much(&mut self) -> Option<String> {
        if self.flow().answered >= MOST_CALLS {
            return Some(format!(
                "the scenario has made {MOST_CALLS} calls, and may make no more"
            ));
        }
        let told = self.conductor().told.as_ref().map_or(0, Told::bytes);
        if told > MOST_TOLD {
            let most = MOST_TOLD >> 20;
            return Some(format!(
                "the scenario was told more than {most} MiB by its steps"
            ));
        }
        self.time_left().is_zero().then(too_old)
    }

    /// How much longer `main` may take.
    pub(super) fn time_left(&self) -> Duration {
        let age = elapsed(self.state.spec.created, Timestamp::now());
        LONGEST.saturating_sub(age)
    }

    /// What a call waits for; an error that the script is told at once.
    fn wanted(&self, number: u64, hash: &str, call: &HostCall) -> Result<Wanted, String> {
        let step = |(part, step): (u32, &Step)| {
            let strange = step
                .nodes
                .iter()
                .find(|s| !self.state.nodes.contains_key(s));
            if let Some(serial) = strange {
                return Err(format!("node {serial} is in no set of the run"));
            }
            Ok(StepCall {
                run: part_id(self.run, number, part, hash, false),
                function: step.function.clone(),
                nodes: step.nodes.clone(),
            })
        };
        Ok(match call {
            HostCall::On(one) | HostCall::TryOn(one) => Wanted::Steps {
                steps: vec![step((0, one))?],
            },
            HostCall::Parallel { steps } => Wanted::Steps {
                steps: (0..).zip(steps).map(step).collect::<Result<_, _>>()?,
            },
            HostCall::Sleep { span } => Wanted::Until {
                at: after(Timestamp::now(), span.get()),
            },
            HostCall::Contact { node, within } => Wanted::Contact {
                node: node.clone(),
                until: after(Timestamp::now(), within.get()),
                within: *within,
            },
            HostCall::Machine { machine, keep } => Wanted::Machine {
                name: machine_name(machine),
                keep: *keep,
            },
            HostCall::Ask { question, answers } => Wanted::Answer {
                question: question.clone(),
                answers: answers.clone(),
            },
            HostCall::RunScenario { scenario, .. } => {
                let callers = self.engine.callers_of(&self.state);
                if callers.contains(scenario) {
                    let chain: Vec<&str> = callers.iter().map(|name| name.as_str()).collect();
                    return Err(format!(
                        "`{scenario}` would run itself: {} → {scenario}",
                        chain.join(" → ")
                    ));
                }
                if callers.len() >= MOST_DEEP {
                    return Err(format!(
                        "scenarios call each other at most {MOST_DEEP} deep"
                    ));
                }
                Wanted::Scenario {
                    run: part_id(self.run, number, 0, hash, false),
                    scenario: scenario.clone(),
                }
            }
            _ => Wanted::Nothing,
        })
    }

    /// Takes a person's answer.
    pub(in crate::runs) async fn answer_question(
        &mut self,
        by: PrincipalName,
        text: String,
        tell: oneshot::Sender<Answered>,
    ) -> Result<(), JournalError> {
        let open = self.state.flow.as_ref().and_then(|flow| flow.open());
        let allowed = match (
            self.state.phase,
            open.map(|open| (&open.wanted, open.number)),
        ) {
            (
                RunPhase::Running | RunPhase::Paused,
                Some((Wanted::Answer { answers, .. }, number)),
            ) => Some((answers.clone(), number)),
            _ => None,
        };
        let Some((allowed, number)) = allowed else {
            let _ = tell.send(Err(AnswerError::NotAsked(self.short())));
            return Ok(());
        };
        if text.len() > ANSWER {
            let _ = tell.send(Err(AnswerError::TooLong));
            return Ok(());
        }
        if !allowed.is_empty() && !allowed.contains(&text) {
            let text = printable(&text, 60);
            let _ = tell.send(Err(AnswerError::NotAllowed { text, allowed }));
            return Ok(());
        }
        tracing::info!(%by, "answered");
        let reply = Reply::Value(text.clone().into());
        self.answered(number, reply, Vec::new(), Some((by, text)))
            .await?;
        let _ = tell.send(Ok(Arc::new(self.state.clone())));
        Ok(())
    }

    /// Writes down what a call returned.
    pub(super) async fn answered(
        &mut self,
        number: u64,
        reply: Reply,
        steps: Vec<StepEnd>,
        said: Option<(PrincipalName, String)>,
    ) -> Result<(), JournalError> {
        let came = Came {
            steps,
            machine: None,
            said,
        };
        self.answered_with(number, reply, came).await
    }

    /// The same of a machine that may be there now.
    pub(super) async fn made(
        &mut self,
        number: u64,
        reply: Reply,
        machine: Option<MadeMachine>,
    ) -> Result<(), JournalError> {
        let came = Came {
            steps: Vec::new(),
            machine,
            said: None,
        };
        self.answered_with(number, reply, came).await
    }

    async fn answered_with(
        &mut self,
        number: u64,
        reply: Reply,
        came: Came,
    ) -> Result<(), JournalError> {
        let form = |reply: &Reply| serde_json::to_string(reply).expect("a reply has a JSON form");
        let mut text = form(&reply);
        let mut error = match &reply {
            Reply::Error(error) => Some(printable(error, 500)),
            _ => None,
        };
        if text.len() > MOST_REPLY {
            let (bytes, most) = (text.len(), MOST_REPLY);
            let what = format!("what the nodes returned has {bytes} bytes; `main` takes {most}");
            text = form(&Reply::Error(what.clone()));
            error = Some(what);
        }
        let (parts, last) = cut(&text);
        for (part, text) in (0..).zip(parts) {
            let text = text.to_owned();
            self.store(RunEvent::ReplyPart { number, part, text })
                .await?;
        }
        let (by, said) = came.said.unzip();
        let event = RunEvent::Answered {
            number,
            reply: last.to_owned(),
            steps: came.steps,
            machine: came.machine,
            by,
            text: said,
            error,
            at: Timestamp::now(),
        };
        self.store(event).await?;
        self.conductor().wanted = None;
        Ok(())
    }
}

/// What came of a call, beside what the script is told.
struct Came {
    steps: Vec<StepEnd>,
    machine: Option<MadeMachine>,
    said: Option<(PrincipalName, String)>,
}

/// The name of a machine as a script says it.
fn machine_name(machine: &serde_json::Map<String, serde_json::Value>) -> String {
    let name = machine.get("name").and_then(|name| name.as_str());
    printable(name.unwrap_or_default(), 200)
}

/// Why a `main` may not go on for whose run no time is left.
pub(super) fn too_old() -> String {
    let days = LONGEST.as_secs() / 86_400;
    format!("the run is older than {days} days")
}

/// How a run ends whose `main` ended so.
pub(super) fn end_of(state: &RunState, flow: &Flow, undo_failed: bool) -> RunEnd {
    match &flow.ended {
        Some(MainEnd::Diverged { .. }) => RunEnd::Diverged,
        _ if undo_failed => RunEnd::UndoFailed,
        _ if state.phase == RunPhase::Cancelling => RunEnd::Cancelled,
        Some(MainEnd::Done { .. } | MainEnd::Planned { .. }) => RunEnd::Succeeded,
        _ => RunEnd::Failed,
    }
}

/// Calls that were answered at once, in events of bounded size.
fn pages(records: Vec<Record>) -> Vec<Vec<Record>> {
    let mut pages: Vec<Vec<Record>> = Vec::new();
    let mut bytes = 0;
    for record in records {
        let size = serde_json::to_string(&record).map_or(0, |json| json.len()) + 1;
        match pages.last_mut() {
            Some(page) if bytes + size <= PAGE => {
                page.push(record);
                bytes += size;
            }
            _ => {
                pages.push(vec![record]);
                bytes = size;
            }
        }
    }
    pages
}

/// Several lines for people, each without anything that a terminal would
/// obey.
pub(super) fn printable_lines(text: &str) -> String {
    let lines: Vec<String> = text
        .lines()
        .take(40)
        .map(|line| printable(line, 400))
        .collect();
    let mut all = lines.join("\n");
    if let Some((at, _)) = all.char_indices().nth(ERROR) {
        all.truncate(at);
    }
    all
}
