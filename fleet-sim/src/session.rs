//! The life of one node: connections, one after the other, and what happens
//! on each of them.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::{HeaderMap, Message, RequestErrorKind};
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use muster_agent::pace::{Backoff, jitter};
use muster_protocol::PROTOCOL_VERSION;
use muster_protocol::envelope::{Incoming, KEY_HEADER, SIGNATURE_HEADER};
use muster_protocol::ids::{InstanceId, RequestId};
use muster_protocol::subject::NodeSays;
use muster_protocol::units::{Timestamp, after, elapsed};
use muster_protocol::wire::{
    Accepted, BEAT_EVERY, Beat, Bye, CredentialsAnswer, Facts, Hello, OUTPUT_HEADER, OutcomeAnswer,
    OutputHead, Pong, Welcome,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::chance::Draw;
use crate::connection::{ConnectError, Connection, Happened, connect};
use crate::fleet::Fleet;
use crate::node::{Act, Node};
use crate::timers::Timers;
use crate::witness::{Tally, count};

/// A step that takes longer is acknowledged; a quicker one only says its
/// outcome.
const QUICK: Duration = Duration::from_millis(200);
/// How long the broker may take to answer a hello.
const WELCOME_WITHIN: Duration = Duration::from_secs(8);
/// How long it may take to store an outcome or facts.
const STORED_WITHIN: Duration = Duration::from_secs(10);
/// Within this time after the welcome facts are sent.
const FACTS_WITHIN: Duration = Duration::from_secs(10);
/// Questions to the broker that may be open at once.
const MAX_ASKS: usize = 64;
/// Messages held while a newer key list is asked for.
const MAX_HELD: usize = 8;
/// Fewest seconds between two hellos because of unknown keys.
const ASK_KEYS_EVERY: Duration = Duration::from_secs(10);
/// Bounds for what the broker may ask for.
const BEAT_BOUNDS: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(300));
/// Bounds for how long a refused node stays out.
const REFUSED_BOUNDS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(600));

/// What is to be done later.
enum Due {
    Beat,
    Hello,
    Facts,
    Accept(RequestId),
    RunOut(RequestId),
    Report(RequestId),
    Say(NodeSays, Bytes),
    Hear(Message),
    Renew,
    Drop,
}

/// What came back.
enum Answer {
    Hello(Option<Welcome>),
    Facts(bool),
    Outcome(RequestId, Option<OutcomeAnswer>),
    Credentials(Option<Box<CredentialsAnswer>>),
}

/// Why a connection is over.
enum Over {
    Stopped,
    Lost,
    Dropped,
    Unauthorized(String),
    Renewed,
}

/// An outcome on its way.
struct Sending {
    id: RequestId,
    pace: Backoff,
    /// The answer is waited for.
    asked: bool,
}

/// A node with its life around it.
pub struct Life {
    node: Node,
    fleet: Arc<Fleet>,
    instance: InstanceId,
    draw: Draw,
    /// Held until the first welcome: few nodes begin at once.
    ramp: Option<OwnedSemaphorePermit>,
    facts_sent: bool,
    /// Outcomes that are sent now or wait for their next turn.
    reporting: Vec<Sending>,
    held: Vec<Message>,
    asked_keys: Option<Instant>,
    acts: Vec<Act>,
}

impl Life {
    /// A life that has not begun.
    #[must_use]
    pub fn new(node: Node, fleet: Arc<Fleet>) -> Self {
        let name = node.member.assignment.name.as_str();
        let draw = Draw::new(node.habits().faults.seed, name, u64::MAX);
        Self {
            draw,
            node,
            fleet,
            instance: InstanceId::random(),
            ramp: None,
            facts_sent: false,
            reporting: Vec::new(),
            held: Vec::new(),
            asked_keys: None,
            acts: Vec::new(),
        }
    }

    fn tally(&self) -> &Tally {
        &self.node.habits().witness.tally
    }

    /// Connects, again and again, until `stop`; then says goodbye.
    pub async fn run(mut self: Box<Self>, stop: CancellationToken) {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(30));
        // A node that is refused again and again asks ever more rarely.
        let mut refused = Backoff::new(Duration::from_secs(1), Duration::from_secs(120));
        self.ramp = tokio::select! {
            () = stop.cancelled() => return,
            permit = self.fleet.ramp.clone().acquire_owned() => permit.ok(),
        };
        loop {
            let connecting = self.connect();
            let connected = tokio::select! {
                () = stop.cancelled() => return,
                connected = connecting => connected,
            };
            let wait = match connected {
                Ok(connection) => {
                    count(&self.tally().connects);
                    let fleet = self.fleet.clone();
                    let mut session = Session::new(&mut self, connection);
                    let over = session.boxed(&stop).await;
                    if session.welcomed {
                        fleet.gone();
                        backoff.reset();
                        refused.reset();
                    }
                    drop(session);
                    match over {
                        Over::Stopped => return,
                        Over::Renewed => Duration::ZERO,
                        Over::Dropped => {
                            count(&self.tally().dropped);
                            backoff.wait()
                        }
                        Over::Lost => {
                            count(&self.tally().losses);
                            backoff.wait()
                        }
                        Over::Unauthorized(why) => {
                            self.refused(&why).await;
                            refused.wait()
                        }
                    }
                }
                Err(e @ ConnectError::Unauthorized { .. }) => {
                    self.refused(&e.to_string()).await;
                    refused.wait()
                }
                Err(e) => {
                    let wait = backoff.wait();
                    self.fleet.complain(&e.to_string());
                    wait
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    // These futures are made in functions of their own, boxed: whatever an
    // `async fn` holds in between has its place in it for ever, and a fleet
    // that is connected must not carry the room for connecting.

    fn connect(&self) -> BoxFuture<'_, Result<Connection, ConnectError>> {
        Box::pin(connect(&self.fleet.nats, &self.node.member))
    }

    /// The server does not take the credentials: fetches others.
    fn refused<'a>(&'a mut self, why: &str) -> BoxFuture<'a, ()> {
        count(&self.tally().unauthorized);
        debug!(node = %self.node.member.assignment.name, "fetching fresh credentials: {why}");
        Box::pin(async {
            tokio::time::sleep(jitter(Duration::from_secs(1))).await;
            match self.fleet.fetch(&self.node.member).await {
                Ok(answer) => self.renew(&answer),
                Err(e) => self.fleet.complain(&e.to_string()),
            }
        })
    }

    fn renew(&mut self, answer: &CredentialsAnswer) {
        match self.fleet.take(&mut self.node.member, answer) {
            Ok(()) => count(&self.tally().renewals),
            Err(e) => self.fleet.complain(&e.to_string()),
        }
    }
}

/// A connection in use.
struct Session<'a> {
    life: &'a mut Life,
    connection: Connection,
    welcomed: bool,
    greeting: bool,
    fetching: bool,
    renewed: bool,
    greet_pace: Backoff,
    beat_every: Duration,
    timers: Timers<Due>,
    asks: FuturesUnordered<BoxFuture<'static, Answer>>,
}

impl<'a> Session<'a> {
    fn new(life: &'a mut Life, connection: Connection) -> Self {
        let mut timers = Timers::default();
        let now = Instant::now();
        let faults = life.node.habits().faults;
        if let Some(age) = faults.connection_life(&mut life.draw)
            && let Some(at) = now.checked_add(age)
        {
            timers.put(at, Due::Drop);
        }
        let member = &life.node.member;
        let half = after(member.issued, elapsed(member.issued, member.expires) / 2);
        let left = elapsed(Timestamp::now(), half);
        // A clock beyond the end must not make a storm of it.
        let left = left.max(Duration::from_secs(30)) + jitter(Duration::from_secs(30));
        timers.put(now + left, Due::Renew);
        timers.put(now, Due::Hello);
        // Half-done reports of the connection before are begun anew when the
        // node is welcomed; what ran runs on.
        life.reporting.clear();
        for (id, work) in life.node.journal.started() {
            timers.put(now + work, Due::RunOut(id));
        }
        Self {
            life,
            connection,
            welcomed: false,
            greeting: false,
            fetching: false,
            renewed: false,
            greet_pace: Backoff::new(Duration::from_millis(500), Duration::from_secs(10)),
            beat_every: BEAT_EVERY.get(),
            timers,
            asks: FuturesUnordered::new(),
        }
    }

    fn boxed<'s>(&'s mut self, stop: &'s CancellationToken) -> BoxFuture<'s, Over> {
        Box::pin(self.live(stop))
    }

    async fn live(&mut self, stop: &CancellationToken) -> Over {
        let stopped = stop.cancelled();
        tokio::pin!(stopped);
        let mut sleep: Pin<Box<Sleep>> = Box::pin(tokio::time::sleep(Duration::ZERO));
        loop {
            if self.renewed {
                return Over::Renewed;
            }
            if let Some(next) = self.timers.next()
                && sleep.deadline() != next
            {
                sleep.as_mut().reset(next);
            }
            tokio::select! {
                biased;
                () = &mut stopped => {
                    self.goodbye().await;
                    return Over::Stopped;
                }
                happened = self.connection.events.recv() => return match happened {
                    Some(Happened::Unauthorized(why)) => Over::Unauthorized(why),
                    Some(Happened::Ended) | None => Over::Lost,
                },
                Some(answer) = self.asks.next(), if !self.asks.is_empty() => {
                    self.take(answer).await;
                }
                message = self.connection.requests.next() => match message {
                    Some(message) => self.arrive(message).await,
                    None => return Over::Lost,
                },
                () = &mut sleep, if self.timers.next().is_some() => {
                    let now = Instant::now();
                    while let Some(due) = self.timers.take(now) {
                        if matches!(due, Due::Drop) {
                            return Over::Dropped;
                        }
                        self.act(due, now).await;
                    }
                }
            }
        }
    }

    async fn goodbye(&mut self) {
        if self.welcomed {
            let bye = Bye {
                instance: self.life.instance,
            };
            self.publish(NodeSays::Bye, encode(&bye)).await;
        }
        let _ = tokio::time::timeout(Duration::from_secs(3), self.connection.client.flush()).await;
    }

    async fn act(&mut self, due: Due, now: Instant) {
        match due {
            Due::Beat => self.beat(now).await,
            Due::Hello => self.hello(),
            Due::Facts => self.facts(),
            Due::Accept(id) => self.accept(id).await,
            Due::RunOut(id) => self.run_out(id).await,
            Due::Report(id) => {
                if self.life.node.journal.is_unacknowledged(id) {
                    self.report(id).await;
                }
            }
            Due::Say(kind, bytes) => self.publish(kind, bytes).await,
            Due::Hear(message) => self.hear(message, true).await,
            Due::Renew => self.fetch(),
            Due::Drop => {}
        }
    }

    /// A message is there. Where the network is simulated to be bad, it comes
    /// later, or twice.
    async fn arrive(&mut self, message: Message) {
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

    async fn hear(&mut self, message: Message, first: bool) {
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
                let pong = Pong { request, instance };
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
            Act::Refresh => self.fetch(),
            Act::Greet => {
                let at = Instant::now() + jitter(Duration::from_millis(500));
                self.timers.put(at, Due::Hello);
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

    fn hello(&mut self) {
        if self.greeting {
            return;
        }
        self.greeting = true;
        let node = &self.life.node;
        let hello = Hello {
            protocol: PROTOCOL_VERSION,
            version: concat!(env!("CARGO_PKG_VERSION"), "-sim").to_owned(),
            instance: self.life.instance,
            boot_id: self.life.fleet.boot_id.clone(),
            time: Timestamp::now(),
            revision: node.member.assignment.revision,
            key_epoch: node.member.list.epoch,
            broker_epoch: node.seen.epoch,
            capabilities: vec!["command".to_owned(), "shell".to_owned()],
        };
        let asked = self.ask::<_, Welcome>(NodeSays::Hello, &hello, WELCOME_WITHIN);
        self.asks
            .push(Box::pin(async { Answer::Hello(asked.await) }));
    }

    fn facts(&mut self) {
        if self.life.facts_sent {
            return;
        }
        let facts = match self.life.node.facts() {
            serde_json::Value::Object(facts) => facts.clone(),
            _ => serde_json::Map::new(),
        };
        let facts = Facts {
            facts,
            notes: Vec::new(),
        };
        let asked = self.ask_bytes(NodeSays::Facts, encode(&facts), STORED_WITHIN);
        self.asks
            .push(Box::pin(async { Answer::Facts(asked.await.is_ok()) }));
    }

    fn fetch(&mut self) {
        if self.fetching {
            return;
        }
        self.fetching = true;
        let fleet = self.life.fleet.clone();
        let member = self.life.node.member.clone();
        self.asks.push(Box::pin(async move {
            // An order to all nodes must not bring all of them at once.
            tokio::time::sleep(jitter(Duration::from_millis(200))).await;
            let answer = fleet.fetch(&member).await;
            Answer::Credentials(match answer {
                Ok(answer) => Some(Box::new(answer)),
                Err(e) => {
                    fleet.complain(&e.to_string());
                    None
                }
            })
        }));
    }

    async fn beat(&mut self, now: Instant) {
        self.timers.put(now + self.beat_every, Due::Beat);
        let node = &self.life.node;
        let beat = Beat {
            instance: self.life.instance,
            time: Timestamp::now(),
            revision: node.member.assignment.revision,
            running: node.journal.running(),
            refused: node
                .refused
                .iter()
                .map(|(kind, count)| ((*kind).to_owned(), *count))
                .collect(),
        };
        self.publish(NodeSays::Beat, encode(&beat)).await;
    }

    async fn run_out(&mut self, id: RequestId) {
        if self.life.node.run_out(id) {
            self.report(id).await;
        }
    }

    async fn accept(&mut self, id: RequestId) {
        let runs = matches!(
            self.life.node.journal.look(id),
            Some(crate::journal::Entry::Started(_))
        );
        if runs {
            count(&self.life.tally().accepted);
            self.say(NodeSays::Accepted, &Accepted { request: id })
                .await;
        }
    }

    /// Sends an outcome, unless it is on its way already.
    async fn report(&mut self, id: RequestId) {
        if !self.welcomed {
            // The welcome sends everything that the broker does not have.
            return;
        }
        if self.asks.len() > MAX_ASKS {
            let at = Instant::now() + jitter(Duration::from_millis(500));
            return self.timers.put(at, Due::Report(id));
        }
        let Some(report) = self.life.node.report(id) else {
            return;
        };
        match self.life.reporting.iter_mut().find(|s| s.id == id) {
            Some(sending) if sending.asked => return,
            Some(sending) => sending.asked = true,
            None => self.life.reporting.push(Sending {
                id,
                pace: Backoff::new(Duration::from_millis(500), Duration::from_secs(60)),
                asked: true,
            }),
        }
        for chunk in 0..self.life.node.chunks(id).len() {
            self.output(id, chunk).await;
        }
        let bytes = encode(&report);
        let faults = self.life.node.habits().faults;
        if faults.disturb() {
            let (delay, copy) = faults.delays(&mut self.life.draw);
            let now = Instant::now();
            if let Some(copy) = copy {
                // A copy without a place for an answer: as a network makes it.
                count(&self.life.tally().reports);
                self.timers
                    .put(now + copy, Due::Say(NodeSays::Outcome, bytes.clone()));
            }
            return self.send_report(id, bytes, delay);
        }
        self.send_report(id, bytes, Duration::ZERO);
    }

    fn send_report(&mut self, id: RequestId, bytes: Bytes, delay: Duration) {
        count(&self.life.tally().reports);
        let asked = self.ask_bytes(NodeSays::Outcome, bytes, STORED_WITHIN);
        self.asks.push(Box::pin(async move {
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            let answer = asked.await.ok();
            let answer = answer.and_then(|bytes| serde_json::from_slice(&bytes).ok());
            Answer::Outcome(id, answer)
        }));
    }

    async fn output(&mut self, request: RequestId, number: usize) {
        let Some(data) = self.life.node.chunks(request).into_iter().nth(number) else {
            return;
        };
        let head = OutputHead {
            request,
            chunk: u32::try_from(number).unwrap_or(u32::MAX),
            stream: muster_protocol::run::Stream::Stdout,
        };
        let mut headers = HeaderMap::new();
        let head = serde_json::to_string(&head).unwrap_or_default();
        headers.insert(OUTPUT_HEADER, head.as_str());
        let subject = NodeSays::Output.subject(self.life.node.member.serial);
        let client = &self.connection.client;
        let _ = client
            .publish_with_headers(subject, headers, data.into())
            .await;
    }

    async fn take(&mut self, answer: Answer) {
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
                self.take_welcome(welcome, now).await;
            }
            Answer::Facts(true) => self.life.facts_sent = true,
            Answer::Facts(false) => {
                let at = now + Duration::from_secs(1) + jitter(Duration::from_secs(10));
                self.timers.put(at, Due::Facts);
            }
            Answer::Outcome(id, answer) => self.take_outcome(id, answer, now).await,
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
                for chunk in chunks {
                    self.output(id, chunk as usize).await;
                }
                Some(Duration::from_millis(50))
            }
            Some(OutcomeAnswer::Stored) => None,
            Some(OutcomeAnswer::Unknown) => {
                count(&self.life.tally().unwanted);
                None
            }
            None => self.pace(id),
        };
        let Some(wait) = again else {
            self.life.reporting.retain(|s| s.id != id);
            if self.life.node.journal.stored(id) {
                count(&self.life.tally().stored);
            }
            return;
        };
        if let Some(sending) = self.life.reporting.iter_mut().find(|s| s.id == id) {
            sending.asked = false;
        }
        self.timers.put(now + wait, Due::Report(id));
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
                ..
            } => {
                if let Some(keys) = keys {
                    let mut acts = Vec::new();
                    self.life.node.take_keys(&keys, &mut acts);
                    for act in acts {
                        self.follow(act).await;
                    }
                }
                if revision > self.life.node.member.assignment.revision {
                    self.fetch();
                }
                self.beat_every = beat_every.get().clamp(BEAT_BOUNDS.0, BEAT_BOUNDS.1);
                if !self.welcomed {
                    self.welcomed = true;
                    self.life.ramp = None;
                    self.life.fleet.welcomed(self.life.node.index);
                    // Spread over the whole interval: beats of a fleet that
                    // began together must not come together.
                    let first = self.beat_every.mul_f64(self.life.draw.unit());
                    self.timers.put(now + first, Due::Beat);
                    let facts = FACTS_WITHIN.mul_f64(self.life.draw.unit());
                    self.timers.put(now + facts, Due::Facts);
                    let open: Vec<_> = self.life.node.journal.unacknowledged().collect();
                    for id in open {
                        self.report(id).await;
                    }
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

    async fn say<T: Serialize>(&mut self, kind: NodeSays, message: &T) {
        let bytes = encode(message);
        let faults = self.life.node.habits().faults;
        if faults.disturb() {
            let (delay, copy) = faults.delays(&mut self.life.draw);
            let now = Instant::now();
            if let Some(copy) = copy {
                self.timers.put(now + copy, Due::Say(kind, bytes.clone()));
            }
            if !delay.is_zero() {
                return self.timers.put(now + delay, Due::Say(kind, bytes));
            }
        }
        self.publish(kind, bytes).await;
    }

    async fn publish(&mut self, kind: NodeSays, bytes: Bytes) {
        let subject = kind.subject(self.life.node.member.serial);
        let _ = self.connection.client.publish(subject, bytes).await;
    }

    fn ask<T: Serialize, A: DeserializeOwned>(
        &self,
        kind: NodeSays,
        message: &T,
        patience: Duration,
    ) -> impl Future<Output = Option<A>> + use<T, A> {
        let asked = self.ask_bytes(kind, encode(message), patience);
        async move {
            let bytes = asked.await.ok()?;
            serde_json::from_slice(&bytes)
                .inspect_err(|e| warn!("an answer of the broker cannot be read: {e}"))
                .ok()
        }
    }

    fn ask_bytes(
        &self,
        kind: NodeSays,
        bytes: Bytes,
        patience: Duration,
    ) -> impl Future<Output = Result<Bytes, RequestErrorKind>> + use<> {
        let subject = kind.subject(self.life.node.member.serial);
        let client = self.connection.client.clone();
        async move {
            match tokio::time::timeout(patience, client.request(subject, bytes)).await {
                Ok(Ok(answer)) => Ok(answer.payload),
                Ok(Err(e)) => Err(e.kind()),
                Err(_) => Err(RequestErrorKind::TimedOut),
            }
        }
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        self.fleet.ended.fetch_add(1, Ordering::Relaxed);
    }
}

fn encode<T: Serialize>(message: &T) -> Bytes {
    // Every message of the protocol has a JSON form.
    serde_json::to_vec(message).unwrap_or_default().into()
}
