//! One simulated node: what it knows and how it decides. It does no I/O and
//! reads no clock; [`crate::session`] lends it a connection.
//!
//! Every request is verified here for each node on its own, as on a real
//! machine: nothing is shared between nodes but memory that never changes.

use std::sync::Arc;
use std::time::Duration;

use muster_agent::identity::NodeKeys;
use muster_agent::view::NodeView;
use muster_protocol::PROTOCOL_VERSION;
use muster_protocol::envelope::{Ask, Call, Gate, HighWater, Incoming, Mode, Refusal, Request};
use muster_protocol::freeze::{Freeze, FreezeMark};
use muster_protocol::ids::{InstanceId, RequestId, Serial};
use muster_protocol::keys::{KeyId, KeyList, SignedText};
use muster_protocol::run::{Data, NodeResult, Outcome, Stream};
use muster_protocol::text::printable;
use muster_protocol::units::Timestamp;
use muster_protocol::wire::{
    Acknowledged, Assignment, InlineChunk, JournalMark, MAX_CHUNK, MAX_INLINE, OutcomeReport,
    Recall,
};
use muster_scenarios::command::{self, Command};
use serde_json::Value;

use crate::chance::Faults;
use crate::journal::{Ended, Entry, Journal};
use crate::orders::Orders;
use crate::witness::{Witness, count};

/// Most steps that are not settled before a node is busy.
const MAX_OPEN: usize = 1000;

/// What an enrolment gave a node.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its private keys.
    pub keys: NodeKeys,
    /// Its serial.
    pub serial: Serial,
    /// Name, roles, labels.
    pub assignment: Assignment,
    /// Whom it obeys.
    pub list: KeyList,
    /// Its NATS credentials.
    pub jwt: String,
    /// When they were issued.
    pub issued: Timestamp,
    /// When they end.
    pub expires: Timestamp,
}

/// What all nodes of a fleet have in common.
#[derive(Debug)]
pub struct Habits {
    /// What goes wrong.
    pub faults: Faults,
    /// What every step prints; `{name}` stands for the node's name.
    pub output: String,
    /// Settled steps that a node remembers.
    pub remember: usize,
    /// Sets of facts; a node has the one of its number, round and round.
    pub facts: Vec<Value>,
    /// Who watches.
    pub witness: Witness,
    /// The requests that nodes keep.
    pub orders: Orders,
}

/// Something that a node wants to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Act {
    /// Answer a ping.
    Pong(RequestId),
    /// Say that a step runs.
    Accept(RequestId),
    /// A step has begun: let it run out after this time.
    Begun(RequestId, Duration),
    /// Send an outcome.
    Report(RequestId),
    /// Fetch fresh credentials.
    Refresh,
    /// Say hello again.
    Greet,
    /// Some outcomes that the broker had are to be reported again.
    ReportAll,
    /// Say that it goes by this revision of the freeze.
    Taken(u64),
    /// A newer key list was taken; keep it.
    Keys(Box<SignedText>),
    /// Keep the message until the key list is renewed.
    Hold,
}

/// A simulated node.
#[derive(Debug)]
pub struct Node {
    /// Its number in the fleet, from 0.
    pub index: u32,
    /// What it was given.
    pub member: Member,
    /// What it has seen of brokers.
    pub seen: HighWater,
    /// Its steps.
    pub journal: Journal,
    /// Messages it refused, by kind.
    pub refused: Vec<(&'static str, u64)>,
    /// This node has gone back in time: no call that was signed before is
    /// followed.
    pub follow_after: Option<Timestamp>,
    /// Whether it begins anything new, and as it was said.
    freeze: Option<(Box<Freeze>, Box<SignedText>)>,
    habits: Arc<Habits>,
    /// Steps that it has seen.
    steps: u64,
    /// See [`JournalMark::position`]. It begins with the clock, so that it
    /// rises with each start of the simulation.
    position: u64,
    /// The newest step whose outcome the broker has.
    acknowledged: Option<Acknowledged>,
    /// The recall that was done last.
    recalled: Option<InstanceId>,
}

impl Node {
    /// A node that knows nothing yet.
    #[must_use]
    pub fn new(index: u32, member: Member, habits: Arc<Habits>) -> Self {
        Self {
            index,
            member,
            seen: HighWater::default(),
            journal: Journal::new(habits.remember),
            refused: Vec::new(),
            habits,
            steps: 0,
            position: u64::try_from(Timestamp::now().as_millisecond()).unwrap_or_default(),
            acknowledged: None,
            recalled: None,
            follow_after: None,
            freeze: None,
        }
    }

    /// How far its journal is.
    #[must_use]
    pub fn mark(&self) -> JournalMark {
        JournalMark {
            position: self.position,
            acknowledged: self.acknowledged.into_iter().collect(),
        }
    }

    /// The broker has the outcome of a step; whether that is news.
    pub fn stored(&mut self, request: RequestId, now: Timestamp) -> bool {
        self.acknowledged = Some(Acknowledged {
            request,
            received: now,
        });
        self.journal.stored(request)
    }

    /// The broker has gone back in time: everything that is remembered is to
    /// be reported again, once for each recall. Whether there is something.
    pub fn recall(&mut self, recall: Recall) -> bool {
        if self.recalled == Some(recall.id) {
            return false;
        }
        self.recalled = Some(recall.id);
        self.journal.recall()
    }

    /// What it has in common with the others.
    #[must_use]
    pub fn habits(&self) -> &Arc<Habits> {
        &self.habits
    }

    /// Its facts: a JSON object.
    #[must_use]
    pub fn facts(&self) -> &Value {
        match self.habits.facts.len() {
            0 => &Value::Null,
            sets => &self.habits.facts[self.index as usize % sets],
        }
    }

    /// Judges a message and decides what follows.
    pub fn hear(
        &mut self,
        message: Incoming<'_>,
        welcomed: bool,
        now: Timestamp,
        acts: &mut Vec<Act>,
    ) {
        let gate = Gate {
            keys: &self.member.list,
            node: self.member.serial,
            seen: &self.seen,
        };
        let request = match gate.check(message, now) {
            Ok(request) => request,
            Err(refused) => {
                self.refuse(refused.why.kind());
                match (refused.why, refused.request) {
                    (Refusal::UnknownKey(_), _) => acts.push(Act::Hold),
                    (why, Some(request))
                        if welcomed && why.is_answered() && matches!(request.ask, Ask::Call(_)) =>
                    {
                        self.decline(request.id(), why.to_string(), acts);
                    }
                    _ => {}
                }
                return;
            }
        };
        if request.v != PROTOCOL_VERSION {
            if welcomed && matches!(request.ask, Ask::Call(_)) {
                let reason = format!("this node speaks version {PROTOCOL_VERSION} of the protocol");
                self.decline(request.id(), reason, acts);
            }
            return;
        }
        // The gate has parsed it already.
        let Some(key) = message.key.and_then(|k| k.parse::<KeyId>().ok()) else {
            return;
        };
        if self.seen.epoch != 0 && request.epoch > self.seen.epoch {
            acts.push(Act::Greet);
        }
        if let Some(next) = self.seen.advanced(&request, key) {
            self.seen = next;
        }
        let known = self.journal.look(request.id()).is_some();
        self.obey(&request, welcomed, acts);
        if !known && matches!(request.ask, Ask::Call(_)) {
            self.journal
                .keep(request.id(), || self.habits.orders.keep(message));
        }
    }

    fn obey(&mut self, request: &Request, welcomed: bool, acts: &mut Vec<Act>) {
        let id = request.id();
        match &request.ask {
            Ask::Call(_) if self.follow_after.is_some_and(|at| request.issued < at) => {}
            Ask::Recall(recall) => {
                if self.recall(*recall) && welcomed {
                    acts.push(Act::ReportAll);
                }
            }
            Ask::Ping => acts.push(Act::Pong(id)),
            Ask::Call(call) if welcomed => self.call(request, call, acts),
            Ask::Cancel if welcomed => self.cancel(id, acts),
            Ask::Call(_) | Ask::Cancel => {}
            Ask::Refresh { revision } => {
                if *revision > self.member.assignment.revision {
                    acts.push(Act::Refresh);
                }
            }
            Ask::Freeze { freeze } => self.take_freeze(freeze, acts),
            // It has no machines.
            Ask::Groups(_) | Ask::Probe(_) => {}
            Ask::Keys { list } => self.take_keys(list, acts),
        }
    }

    /// Goes by a freeze or its end, if it is a broker's and not of before.
    pub fn take_freeze(&mut self, signed: &SignedText, acts: &mut Vec<Act>) {
        let held = self.freeze.as_ref().map(|(freeze, _)| &**freeze);
        match Freeze::successor(signed, &self.member.list, held) {
            Ok(next) => {
                acts.push(Act::Taken(next.revision));
                self.freeze = Some((Box::new(next), Box::new(signed.clone())));
            }
            Err(_) => self.refuse("freeze"),
        }
    }

    /// What it says of a freeze.
    #[must_use]
    pub fn freeze_mark(&self) -> FreezeMark {
        match &self.freeze {
            Some((freeze, signed)) => FreezeMark {
                revision: freeze.revision,
                held: Some((**signed).clone()),
            },
            None => FreezeMark::default(),
        }
    }

    /// Takes a key list, if it is newer and the root's.
    pub fn take_keys(&mut self, signed: &SignedText, acts: &mut Vec<Act>) {
        match self.member.list.successor(signed) {
            Ok(list) if list == self.member.list => {}
            Ok(list) => {
                self.habits.orders.list(&list, signed);
                self.member.list = list;
                count(&self.habits.witness.tally.key_lists);
                acts.push(Act::Keys(Box::new(signed.clone())));
            }
            Err(_) => self.refuse("key_list"),
        }
    }

    fn call(&mut self, request: &Request, call: &Call, acts: &mut Vec<Act>) {
        let id = request.id();
        match self.journal.look(id) {
            Some(Entry::Started(_)) => return acts.push(Act::Accept(id)),
            Some(Entry::Finished { .. }) => return acts.push(Act::Report(id)),
            Some(Entry::Silent) => return,
            None => {}
        }
        if let Err(reason) = self.judge(request, call) {
            return self.decline(id, reason, acts);
        }
        let freeze = self.freeze.as_ref().map(|(freeze, _)| freeze);
        if let Some(freeze) = freeze.filter(|freeze| freeze.frozen && !request.promised) {
            return self.decline(id, freeze.reason(), acts);
        }
        let fate = self
            .habits
            .faults
            .fate(self.member.assignment.name.as_str(), self.steps);
        self.steps += 1;
        if fate.silent {
            return self.journal.silence(id);
        }
        if fate.decline {
            return self.decline(id, "the simulated node declines this one".into(), acts);
        }
        let timeout = call.limits.timeout.get();
        let (outcome, reason, exit, work) = if fate.work > timeout {
            let reason = format!("it ran longer than {} and was ended", call.limits.timeout);
            (Outcome::TimedOut, Some(reason), None, timeout)
        } else if fate.fail {
            let reason = "exit code 1".to_owned();
            (Outcome::Failed, Some(reason), Some(1), fate.work)
        } else {
            (Outcome::Succeeded, None, Some(0), fate.work)
        };
        let output = self.output().len() as u64;
        let will_end = Ended {
            outcome,
            reason: reason.map(Into::into),
            ms: Some(u32::try_from(work.as_millis()).unwrap_or(u32::MAX)),
            exit,
            output: u32::try_from(output.min(call.limits.output_bytes)).unwrap_or(u32::MAX),
        };
        self.position += 1;
        // Intent before effect.
        if self.journal.start(id, will_end) {
            self.habits.witness.effect(self.index, id);
            acts.push(Act::Begun(id, work));
        }
    }

    /// The node's own checks, as an agent makes them.
    fn judge(&self, request: &Request, call: &Call) -> Result<(), String> {
        NodeView {
            assignment: &self.member.assignment,
            facts: self.facts(),
        }
        .check(&request.predicate)?;
        if call.bundle != command::bundle() || call.function.as_str() != command::FUNCTION {
            return Err(format!(
                "a simulated node does not have the function `{}` of the scenario `{}`",
                call.function, call.scenario
            ));
        }
        Command::from_params(&call.params).map_err(|e| printable(&e.to_string(), 500))?;
        if call.mode == Mode::Check {
            return Err("a command cannot be tried in check mode".to_owned());
        }
        if self.journal.open() >= MAX_OPEN {
            return Err(format!(
                "busy: {MAX_OPEN} steps are open, which is as many as it takes"
            ));
        }
        Ok(())
    }

    fn cancel(&mut self, id: RequestId, acts: &mut Vec<Act>) {
        let ended = match self.journal.look(id) {
            Some(Entry::Finished { .. }) => return acts.push(Act::Report(id)),
            Some(Entry::Silent) => return,
            Some(Entry::Started(will_end)) => Ended {
                outcome: Outcome::Cancelled,
                reason: Some("cancelled".into()),
                exit: None,
                output: 0,
                ..(**will_end).clone()
            },
            None => Ended::without_effect(Outcome::Cancelled, "cancelled before it started"),
        };
        self.finish(id, ended, acts);
    }

    fn decline(&mut self, id: RequestId, reason: String, acts: &mut Vec<Act>) {
        match self.journal.look(id) {
            None => {
                let ended = Ended::without_effect(Outcome::Declined, reason);
                self.finish(id, ended, acts);
            }
            Some(Entry::Finished { .. }) => acts.push(Act::Report(id)),
            Some(Entry::Started(_) | Entry::Silent) => {}
        }
    }

    fn finish(&mut self, id: RequestId, ended: Ended, acts: &mut Vec<Act>) {
        let outcome = ended.outcome;
        if self.journal.finish(id, ended) {
            self.habits.witness.outcome(id, outcome);
            acts.push(Act::Report(id));
        }
    }

    /// The time of a step is up; whether it has its outcome now.
    pub fn run_out(&mut self, id: RequestId) -> bool {
        let Some(outcome) = self.journal.run_out(id) else {
            return false;
        };
        self.habits.witness.outcome(id, outcome);
        true
    }

    fn refuse(&mut self, kind: &'static str) {
        match self.refused.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, count)) => *count += 1,
            None => self.refused.push((kind, 1)),
        }
        self.habits.witness.refused(kind);
    }

    fn output(&self) -> String {
        self.habits
            .output
            .replace("{name}", self.member.assignment.name.as_str())
    }

    /// What a step printed, in pieces that travel on their own. Empty when it
    /// fits into the outcome.
    #[must_use]
    pub fn chunks(&self, id: RequestId) -> Vec<Vec<u8>> {
        let text = self.kept(id);
        if text.len() <= MAX_INLINE {
            return Vec::new();
        }
        text.chunks(MAX_CHUNK).map(<[u8]>::to_vec).collect()
    }

    fn kept(&self, id: RequestId) -> Vec<u8> {
        let Some(Entry::Finished { ended, .. }) = self.journal.look(id) else {
            return Vec::new();
        };
        let mut text = if ended.output > 0 {
            self.output().into_bytes()
        } else {
            Vec::new()
        };
        text.truncate(ended.output as usize);
        text
    }

    /// The outcome of a step, to be sent; `None` when it has none.
    #[must_use]
    pub fn report(&self, request: RequestId) -> Option<OutcomeReport> {
        let Some(Entry::Finished { ended, .. }) = self.journal.look(request) else {
            return None;
        };
        let text = self.kept(request);
        let apart = text.len().div_ceil(MAX_CHUNK);
        let mut inline = Vec::new();
        if !text.is_empty() && text.len() <= MAX_INLINE {
            inline.push(InlineChunk {
                chunk: 0,
                stream: Stream::Stdout,
                data: Data::new(&text),
            });
        }
        let whole = ended.output > 0 && self.output().len() > text.len();
        Some(OutcomeReport {
            request,
            result: NodeResult {
                serial: self.member.serial,
                outcome: ended.outcome,
                reason: ended.reason.as_deref().map(str::to_owned),
                exit: ended.exit,
                signal: None,
                ms: ended.ms.map(u64::from),
                output_bytes: text.len() as u64,
                truncated: whole,
                value: None,
                value_bytes: None,
                tally: None,
                digest: None,
                rolled_back: false,
            },
            chunks: u32::try_from(apart).unwrap_or(u32::MAX),
            inline,
        })
    }
}

#[cfg(test)]
mod tests;
