//! The life of one node: connections, one after the other, and what happens
//! on each of them.

mod hear;
mod say;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::Message;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use muster_agent::pace::{Backoff, Comeback, jitter};
use muster_protocol::ids::{InstanceId, RequestId};
use muster_protocol::subject::NodeSays;
use muster_protocol::units::{Timestamp, after, elapsed};
use muster_protocol::wire::{BEAT_EVERY, CredentialsAnswer, OutcomeAnswer, ProofAnswer, Welcome};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::chance::Draw;
use crate::connection::{ConnectError, Connection, Happened, connect};
use crate::fleet::Fleet;
use crate::node::{Act, Node};
use crate::timers::Timers;
use crate::witness::{Tally, count};

/// A step that takes longer is acknowledged; a quicker one only says its
/// outcome.
const QUICK: Duration = Duration::from_millis(200);

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
    Hello(Option<Box<Welcome>>),
    Facts(bool),
    Outcome(RequestId, Option<OutcomeAnswer>),
    Proof(RequestId, Option<ProofAnswer>),
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
        let mut pace = Comeback::default();
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
                    self.fleet.connected(self.node.index);
                    let fleet = self.fleet.clone();
                    let mut session = Session::new(&mut self, connection);
                    let over = session.boxed(&stop).await;
                    if session.welcomed {
                        fleet.gone();
                        pace.welcomed();
                    }
                    drop(session);
                    match over {
                        Over::Stopped => return,
                        Over::Renewed => Duration::ZERO,
                        Over::Dropped => {
                            count(&self.tally().dropped);
                            pace.lost()
                        }
                        Over::Lost => {
                            count(&self.tally().losses);
                            pace.lost()
                        }
                        Over::Unauthorized(why) => {
                            self.refused(&why).await;
                            pace.refused()
                        }
                    }
                }
                Err(e @ ConnectError::Unauthorized { .. }) => {
                    self.refused(&e.to_string()).await;
                    pace.refused()
                }
                Err(e) => {
                    let wait = pace.failed();
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
            let node = &self.node;
            match self.fleet.fetch(&node.member, &node.habits().orders).await {
                Ok(answer) => self.renew(&answer),
                Err(e) => self.fleet.complain(&e.to_string()),
            }
        })
    }

    fn renew(&mut self, answer: &CredentialsAnswer) {
        match self.fleet.take(&mut self.node.member, answer) {
            Ok(()) => {
                let node = &self.node;
                node.habits().orders.list(&node.member.list, &answer.keys);
                count(&self.tally().renewals);
            }
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
}

impl Drop for Life {
    fn drop(&mut self) {
        self.fleet.ended.fetch_add(1, Ordering::Relaxed);
    }
}
