//! What a node hears on a connection: requests, and the broker's answers.

use std::time::Duration;

use async_nats::Message;
use muster_agent::pace::{jitter, spread};
use muster_protocol::envelope::{Incoming, KEY_HEADER, SIGNATURE_HEADER};
use muster_protocol::freeze::FreezeTaken;
use muster_protocol::ids::RequestId;
use muster_protocol::subject::NodeSays;
use muster_protocol::units::Timestamp;
use muster_protocol::wire::{OutcomeAnswer, Pong, ProofAnswer, Welcome};
use tokio::time::Instant;

use super::{Answer, Due, QUICK, Session};
use crate::node::Act;
use crate::witness::count;

/// Within this time after a broker took over each node says hello to it, as
/// an agent does.
const GREET_WITHIN: Duration = Duration::from_secs(1);
/// Within this time after the welcome facts are sent.
const FACTS_WITHIN: Duration = Duration::from_secs(10);
/// Messages held while a newer key list is asked for.
const MAX_HELD: usize = 8;
/// Fewest seconds between two hellos because of unknown keys.
const ASK_KEYS_EVERY: Duration = Duration::from_secs(10);
/// Bounds for what the broker may ask for.
const BEAT_BOUNDS: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(300));
/// Bounds for how long a refused node stays out.
const REFUSED_BOUNDS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(600));

impl Session<'_> {
    /// A message is there. Where the network is simulated to be bad, it comes
    /// later, or twice.
    pub(super) async fn arrive(&mut self, message: Message) {
        let faults = self.life.node.habits().faults;
        if !faults.disturb() {
            return self.hear(message, true).await;
        }
        let (first, copy) = faults.delays(&mut self.life.draw);
        let now = Instant::now();
        if let Some(copy) = copy {
            self.timers.put(now + copy, Due::Hear(message.clone()));
        }
        if first.is_zero() {
            self.hear(message, true).await;
        } else {
            self.timers.put(now + first, Due::Hear(message));
        }
    }

    pub(super) async fn hear(&mut self, message: Message, first: bool) {
        let header = |name: &str| {
            let value = message.headers.as_ref().and_then(|h| h.get(name));
            value.map(async_nats::HeaderValue::as_str)
        };
        let incoming = Incoming {
            key: header(KEY_HEADER),
            signature: header(SIGNATURE_HEADER),
            bytes: &message.payload,
        };
        let mut acts = std::mem::take(&mut self.life.acts);
        let now = Timestamp::now();
        self.life.node.hear(incoming, self.welcomed, now, &mut acts);
        let mut hold = false;
        for act in acts.drain(..) {
            match act {
                Act::Hold => hold = first,
                act => self.follow(act).await,
            }
        }
        self.life.acts = acts;
        if hold {
            self.hold(message);
        }
    }

    async fn follow(&mut self, act: Act) {
        match act {
            Act::Pong(request) => {
                count(&self.life.tally().pongs);
                let instance = self.life.instance;
                let pong = Pong {
                    request,
                    instance,
                    position: Some(self.life.node.mark().position),
                };
                self.say(NodeSays::Pong, &pong).await;
            }
            Act::Accept(id) => self.accept(id).await,
            Act::Begun(id, work) => {
                let now = Instant::now();
                if work > QUICK {
                    self.timers.put(now + QUICK, Due::Accept(id));
                }
                if work.is_zero() {
                    self.run_out(id).await;
                } else {
                    self.timers.put(now + work, Due::RunOut(id));
                }
            }
            Act::Report(id) => self.report(id).await,
            Act::ReportAll => self.report_all().await,
            Act::Refresh => self.fetch(),
            Act::Greet => {
                let at = Instant::now() + spread(GREET_WITHIN);
                self.timers.put(at, Due::Hello);
            }
            Act::Taken(revision) => {
                let instance = self.life.instance;
                let taken = FreezeTaken { instance, revision };
                self.say(NodeSays::Freeze, &taken).await;
            }
            Act::Keys(list) => self.life.fleet.keep_keys(&self.life.node.member, &list),
            Act::Hold => {}
        }
    }

    /// Keeps a message by an unknown key, and asks whether there is a newer
    /// list of keys. Rarely, because a stranger can send such messages too.
    fn hold(&mut self, message: Message) {
        let now = Instant::now();
        let asked = self.life.asked_keys;
        let lately = asked.is_some_and(|at| now.duration_since(at) < ASK_KEYS_EVERY);
        if lately && !self.greeting {
            return;
        }
        if self.life.held.len() < MAX_HELD {
            self.life.held.push(message);
        }
        if !self.greeting {
            self.life.asked_keys = Some(now);
            self.hello();
        }
    }

    pub(super) async fn take(&mut self, answer: Answer) {
        let now = Instant::now();
        match answer {
            Answer::Hello(None) => {
                self.greeting = false;
                let wait = self.greet_pace.wait();
                self.timers.put(now + wait, Due::Hello);
            }
            Answer::Hello(Some(welcome)) => {
                self.greeting = false;
                self.greet_pace.reset();
                self.take_welcome(*welcome, now).await;
            }
            Answer::Facts(true) => self.life.facts_sent = true,
            Answer::Facts(false) => {
                let at = now + Duration::from_secs(1) + jitter(Duration::from_secs(10));
                self.timers.put(at, Due::Facts);
            }
            Answer::Outcome(id, answer) => self.take_outcome(id, answer, now).await,
            Answer::Proof(id, answer) => self.take_proof(id, answer, now).await,
            Answer::Credentials(None) => {
                self.fetching = false;
                let at = now + jitter(Duration::from_secs(10));
                self.timers.put(at, Due::Renew);
            }
            Answer::Credentials(Some(answer)) => {
                self.fetching = false;
                let before = self.life.node.member.jwt.clone();
                self.life.renew(&answer);
                self.renewed = self.life.node.member.jwt != before;
            }
        }
    }

    async fn take_outcome(&mut self, id: RequestId, answer: Option<OutcomeAnswer>, now: Instant) {
        let again = match answer {
            Some(OutcomeAnswer::Missing { chunks }) => {
                for (number, data) in (0..).zip(self.life.node.chunks(id)) {
                    if chunks.contains(&number) {
                        self.output(id, number, data).await;
                    }
                }
                Some(Duration::from_millis(50))
            }
            Some(OutcomeAnswer::Stored) => {
                self.life.reporting.retain(|s| s.id != id);
                if self.life.node.stored(id, Timestamp::now()) {
                    count(&self.life.tally().stored);
                }
                return;
            }
            Some(OutcomeAnswer::Unknown) => return self.disowned(id),
            Some(OutcomeAnswer::Prove) => return self.prove(id),
            None => self.pace(id),
        };
        self.report_in(id, again, now);
    }

    /// No broker will ever want this outcome.
    fn disowned(&mut self, id: RequestId) {
        count(&self.life.tally().unwanted);
        self.life.reporting.retain(|s| s.id != id);
        if self.life.node.journal.stored(id) {
            count(&self.life.tally().stored);
        }
    }

    /// Sends an outcome again after a while.
    fn report_in(&mut self, id: RequestId, again: Option<Duration>, now: Instant) {
        let Some(wait) = again else { return };
        if let Some(sending) = self.life.reporting.iter_mut().find(|s| s.id == id) {
            sending.asked = false;
        }
        self.timers.put(now + wait, Due::Report(id));
    }

    async fn take_proof(&mut self, id: RequestId, answer: Option<ProofAnswer>, now: Instant) {
        let request = self.life.node.journal.request(id);
        let again = match answer {
            Some(ProofAnswer::Taken) => Some(Duration::ZERO),
            Some(ProofAnswer::UnknownKey) => {
                let key = request.map(|request| request.key);
                if !self.give_keys(key).await {
                    return self.disowned(id);
                }
                self.pace(id)
            }
            Some(ProofAnswer::Later { retry_after }) => Some(jitter(retry_after.get())),
            Some(ProofAnswer::Refused { .. }) => return self.disowned(id),
            None if request.is_none() => return self.disowned(id),
            None => self.pace(id),
        };
        self.report_in(id, again, now);
    }

    /// Reports everything that the broker does not have.
    async fn report_all(&mut self) {
        let open: Vec<_> = self.life.node.journal.unacknowledged().collect();
        for id in open {
            self.report(id).await;
        }
    }

    /// How long to wait before an outcome is sent again.
    fn pace(&mut self, id: RequestId) -> Option<Duration> {
        let sending = self.life.reporting.iter_mut().find(|s| s.id == id);
        sending.map(|sending| sending.pace.wait())
    }

    async fn take_welcome(&mut self, welcome: Welcome, now: Instant) {
        match welcome {
            Welcome::Welcome {
                keys,
                revision,
                beat_every,
                recall,
                wants_keys,
                follow_after,
                freeze,
                ..
            } => {
                let mut acts = Vec::new();
                if let Some(keys) = keys {
                    self.life.node.take_keys(&keys, &mut acts);
                }
                // Before anything is begun on this connection.
                if let Some(freeze) = freeze {
                    self.life.node.take_freeze(&freeze, &mut acts);
                }
                for act in acts {
                    self.follow(act).await;
                }
                if wants_keys {
                    self.give_keys(None).await;
                }
                if follow_after.is_some() {
                    self.life.node.follow_after = follow_after;
                }
                let recalled = recall.is_some_and(|recall| self.life.node.recall(recall));
                if revision != self.life.node.member.assignment.revision {
                    self.fetch();
                }
                self.beat_every = beat_every.get().clamp(BEAT_BOUNDS.0, BEAT_BOUNDS.1);
                self.life.fleet.greeted(self.life.node.index);
                if !self.welcomed {
                    self.welcomed = true;
                    self.life.ramp = None;
                    self.life.fleet.welcomed();
                    // Spread over the whole interval: beats of a fleet that
                    // began together must not come together.
                    let first = self.beat_every.mul_f64(self.life.draw.unit());
                    self.timers.put(now + first, Due::Beat);
                    let facts = FACTS_WITHIN.mul_f64(self.life.draw.unit());
                    self.timers.put(now + facts, Due::Facts);
                    self.report_all().await;
                } else if recalled {
                    self.report_all().await;
                }
                for message in std::mem::take(&mut self.life.held) {
                    self.hear(message, false).await;
                }
            }
            Welcome::Refused {
                reason,
                retry_after,
            } => {
                count(&self.life.tally().hellos_refused);
                self.life.fleet.complain(&format!("refused: {reason}"));
                if self.welcomed {
                    self.welcomed = false;
                    self.life.fleet.gone();
                }
                self.life.ramp = None;
                let wait = retry_after.get().clamp(REFUSED_BOUNDS.0, REFUSED_BOUNDS.1);
                self.timers.put(now + wait, Due::Hello);
            }
        }
    }
}
