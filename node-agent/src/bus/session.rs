//! What happens on a connection: hello, then requests, beats, and the end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, Message};
use futures_util::future::BoxFuture;
use futures_util::stream::SelectAll;
use futures_util::{FutureExt as _, StreamExt as _};
use muster_protocol::PROTOCOL_VERSION;
use muster_protocol::envelope::{Ask, Request};
use muster_protocol::firewall::{ProbeAsk, Probed};
use muster_protocol::freeze::FreezeTaken;
use muster_protocol::ids::{InstanceId, RequestId};
use muster_protocol::seal::{OpenKey, SECRETS_HEADER, SecretBox};
use muster_protocol::subject::NodeSays;
use muster_protocol::text::printable;
use muster_protocol::units::{Span, Timestamp, after, elapsed};
use muster_protocol::wire::{BEAT_EVERY, Beat, Bye, Hello, KeysAnswer, Pong, Recall, Welcome};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::connection::{
    ConnectError, Connection, Happened, Size, Ticket, Trust, connect, subjects,
};
use super::outage::Outage;
use super::{SayError, Voice};
use crate::freeze::Frost;
use crate::host::groups::Inlet;
use crate::identity::{Identity, NATS_CA_FILE};
use crate::journal::Journal;
use crate::keeper::Keeper;
use crate::pace::{Backoff, Comeback, spread};
use crate::probe::Probes;
use crate::report::Reporter;
use crate::steps::Steps;
use crate::verify::{Verdict, Verifier};

/// How long the broker may take to answer a hello; it may have to find out
/// whether this node is a clone.
const WELCOME_WITHIN: Duration = Duration::from_secs(8);
/// Within this time after a broker took over each node says hello to it.
const GREET_WITHIN: Duration = Duration::from_secs(1);
/// Bounds of an agent's connection.
const SIZE: Size = Size {
    connect_within: Duration::from_secs(10),
    ping_every: Duration::from_secs(20),
    outgoing: 64,
    incoming: 1024,
    read_buffer: None,
};
/// Messages held while a newer key list is asked for.
const MAX_HELD: usize = 64;
/// Fewest seconds between two hellos because of unknown keys.
const ASK_KEYS_EVERY: Duration = Duration::from_secs(10);
/// Bounds for what the broker may ask for.
const BEAT_BOUNDS: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(300));
/// Bounds for how long a refused node stays out.
const REFUSED_BOUNDS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(600));

/// What the link needs of the agent.
pub struct LinkParts {
    /// Whether anything is begun.
    pub frost: Frost,
    /// Who this node is.
    pub identity: Identity,
    /// What this node has done.
    pub journal: Journal,
    /// Reports it.
    pub reporter: Reporter,
    /// Asked for fresh credentials.
    pub keeper: Keeper,
    /// Judges messages.
    pub verifier: Arc<Verifier>,
    /// Does what they ask.
    pub steps: Steps,
    /// This start of the agent.
    pub instance: InstanceId,
    /// This start of the machine.
    pub boot_id: String,
    /// NATS addresses in place of the broker's.
    pub nats: Vec<String>,
    /// Its public half is offered in the hello.
    pub key: OpenKey,
    /// Gives the bus its voice.
    pub voice: watch::Sender<Option<Arc<Voice>>>,
    /// Who takes what is said of security groups, if anybody does here.
    pub groups: Option<Inlet>,
}

/// The task that keeps a connection.
pub struct Link {
    parts: LinkParts,
}

/// Why a session ended.
#[derive(Debug)]
enum Over {
    Stopped,
    Lost,
    Unauthorized(String),
    Renewed,
}

impl Link {
    /// One that nobody runs yet.
    #[must_use]
    pub fn new(parts: LinkParts) -> Self {
        Self { parts }
    }

    /// Connects, again and again, until `stop`; then says goodbye.
    pub async fn run(self, stop: CancellationToken) {
        let mut pace = Comeback::default();
        let mut outage = Outage::default();
        loop {
            let mut changes = self.parts.identity.watch();
            let jwt = self.parts.identity.now().stored.credentials.jwt.clone();
            let connected = tokio::select! {
                () = stop.cancelled() => return,
                connected = self.connect() => connected,
            };
            let wait = match connected {
                Ok(connection) => {
                    let (over, welcomed) =
                        Box::pin(self.session(connection, &mut outage, &stop)).await;
                    self.parts.voice.send_replace(None);
                    if welcomed {
                        pace.welcomed();
                    }
                    match over {
                        Over::Stopped => return,
                        Over::Renewed => Duration::ZERO,
                        Over::Lost => {
                            let wait = pace.lost();
                            warn!("{}", outage.lost(wait, Instant::now()));
                            wait
                        }
                        Over::Unauthorized(why) => {
                            warn!(
                                "NATS no longer accepts this node's credentials ({why}); fetching fresh ones"
                            );
                            self.parts.keeper.want();
                            pace.refused()
                        }
                    }
                }
                Err(e @ ConnectError::Unauthorized { .. }) => {
                    warn!("{e}; fetching fresh ones");
                    self.parts.keeper.want();
                    pace.refused()
                }
                Err(e) => {
                    let wait = pace.failed();
                    match outage.failed(&e.to_string(), wait, Instant::now()) {
                        Some(said) => warn!("{said}"),
                        None => debug!("{e}; trying again in {wait:.1?}"),
                    }
                    wait
                }
            };
            // Fresh credentials are tried at once, unless fresh ones were
            // refused too.
            let renewed = async {
                while self.parts.identity.now().stored.credentials.jwt == jwt {
                    if changes.changed().await.is_err() {
                        std::future::pending::<()>().await;
                    }
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
                () = renewed, if pace.trusts_fresh() => {}
            }
        }
    }

    /// With the credentials that the node has now.
    async fn connect(&self) -> Result<Connection, ConnectError> {
        let identity = &self.parts.identity;
        let enrolled = identity.now();
        let credentials = &enrolled.stored.credentials;
        let urls = if self.parts.nats.is_empty() {
            &credentials.nats_urls
        } else {
            &self.parts.nats
        };
        let ticket = Ticket {
            client: format!("muster-agent {}", enrolled.assignment().name),
            serial: enrolled.serial(),
            jwt: &credentials.jwt,
            key: &identity.keys().nats,
            trust: match credentials.nats_ca {
                Some(_) => Trust::Authority(identity.dir().path(NATS_CA_FILE)),
                None => Trust::Address,
            },
            size: SIZE,
        };
        connect(urls, &ticket).await
    }

    /// One connection to its end; whether the broker welcomed the node on it.
    async fn session(
        &self,
        connection: Connection,
        outage: &mut Outage,
        stop: &CancellationToken,
    ) -> (Over, bool) {
        let mut session = match Session::begin(&self.parts, connection, outage).await {
            Ok(session) => session,
            Err(e) => {
                warn!("NATS takes no subscriptions: {e}");
                return (Over::Lost, false);
            }
        };
        let over = session.live(stop).await;
        if matches!(over, Over::Stopped) {
            let bye = Bye {
                instance: self.parts.instance,
            };
            let voice = Voice::new(session.connection.client.clone(), session.serial);
            let _ = voice.say(NodeSays::Bye, &bye).await;
            let _ = voice.flush().await;
        }
        (over, session.ever_welcomed)
    }
}

/// A connection in use.
struct Session<'a> {
    parts: &'a LinkParts,
    connection: Connection,
    outage: &'a mut Outage,
    serial: muster_protocol::ids::Serial,
    requests: SelectAll<async_nats::Subscriber>,
    jwt: String,
    greeting: Option<BoxFuture<'static, Welcome>>,
    welcomed: bool,
    ever_welcomed: bool,
    beat_every: Duration,
    next_beat: Instant,
    held: Vec<Message>,
    probes: Probes,
    asked_keys: Option<Instant>,
    /// This node has gone back in time: what was signed before may have been
    /// followed already.
    follow_after: Option<Timestamp>,
}

impl<'a> Session<'a> {
    async fn begin(
        parts: &'a LinkParts,
        connection: Connection,
        outage: &'a mut Outage,
    ) -> Result<Self, SayError> {
        let enrolled = parts.identity.now();
        let mut requests = SelectAll::new();
        for subject in subjects(enrolled.serial(), enrolled.assignment()) {
            let subscriber = connection
                .client
                .subscribe(subject)
                .await
                .map_err(|e| SayError::Other(printable(&e.to_string(), 200)))?;
            requests.push(subscriber);
        }
        let mut session = Self {
            parts,
            serial: enrolled.serial(),
            requests,
            jwt: enrolled.stored.credentials.jwt.clone(),
            greeting: None,
            welcomed: false,
            ever_welcomed: false,
            beat_every: BEAT_EVERY.get(),
            next_beat: Instant::now(),
            held: Vec::new(),
            probes: Probes::default(),
            asked_keys: None,
            follow_after: None,
            connection,
            outage,
        };
        session.greet(Duration::ZERO).await;
        Ok(session)
    }

    async fn live(&mut self, stop: &CancellationToken) -> Over {
        let mut changes = self.parts.identity.watch();
        loop {
            if self.parts.identity.now().stored.credentials.jwt != self.jwt {
                info!("connecting again, with fresh credentials");
                return Over::Renewed;
            }
            let greeting = async {
                match &mut self.greeting {
                    Some(greeting) => greeting.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return Over::Stopped,
                happened = self.connection.events.recv() => return match happened {
                    Some(Happened::Unauthorized(why)) => Over::Unauthorized(why),
                    Some(Happened::Ended) | None => Over::Lost,
                },
                _ = changes.changed() => {}
                welcome = greeting => {
                    self.greeting = None;
                    self.take_welcome(welcome).await;
                }
                () = tokio::time::sleep_until(self.next_beat), if self.welcomed => self.beat().await,
                message = self.requests.next() => match message {
                    Some(message) => self.hear(message, true).await,
                    None => return Over::Lost,
                },
            }
        }
    }

    /// Says hello after `delay`, until the broker answers.
    async fn greet(&mut self, delay: Duration) {
        let enrolled = self.parts.identity.now();
        let hello = Hello {
            protocol: PROTOCOL_VERSION,
            version: crate::release::version().to_owned(),
            instance: self.parts.instance,
            boot_id: self.parts.boot_id.clone(),
            time: Timestamp::now(),
            revision: enrolled.assignment().revision,
            key_epoch: enrolled.keys.epoch,
            broker_epoch: self.parts.verifier.epoch().await,
            capabilities: self.parts.steps.capabilities(),
            build: Some(crate::release::build().clone()),
            journal: match self.parts.journal.mark().await {
                Ok(mark) => Some(mark),
                Err(e) => {
                    warn!("how far the journal is cannot be read: {e}");
                    None
                }
            },
            seal: Some(self.parts.key.offer(
                &self.parts.identity.keys().identity,
                enrolled.serial(),
                self.parts.instance,
            )),
            freeze: Some(self.parts.frost.mark().await),
        };
        let client = self.connection.client.clone();
        self.greeting = Some(ask_welcome(client, self.serial, hello, delay).boxed());
    }

    async fn take_welcome(&mut self, welcome: Welcome) {
        match welcome {
            Welcome::Welcome {
                time,
                keys,
                revision,
                beat_every,
                recall,
                wants_keys,
                follow_after,
                freeze,
            } => {
                if let Some(keys) = keys {
                    self.take_keys(&keys);
                }
                // Before anything is executed on this connection.
                if let Some(freeze) = freeze {
                    self.take_freeze(&freeze).await;
                }
                if let Some(at) = follow_after {
                    warn!(
                        "this node's journal is older than one it had before: nothing that was signed before {at} is followed"
                    );
                    self.follow_after = Some(at);
                }
                if revision != self.parts.identity.now().assignment().revision {
                    // A lower one is of a broker that has gone back in time.
                    info!(revision, "this node's assignment has changed");
                    self.parts.keeper.want();
                }
                let now = Timestamp::now();
                let apart = elapsed(time, now).max(elapsed(now, time));
                if apart > muster_protocol::envelope::MAX_SKEW {
                    warn!(
                        "the clock of this machine and the broker's are {} s apart (here {now}, there {time}): requests will be declined. Check time synchronisation",
                        apart.as_secs()
                    );
                }
                self.beat_every = beat_every.get().clamp(BEAT_BOUNDS.0, BEAT_BOUNDS.1);
                if let Some(said) = self.outage.over(Instant::now()) {
                    info!("{said}");
                } else if !self.welcomed {
                    let enrolled = self.parts.identity.now();
                    info!(
                        node = %enrolled.assignment().name,
                        serial = self.serial.0,
                        revision = enrolled.assignment().revision,
                        "welcomed by the broker"
                    );
                }
                self.welcomed = true;
                self.ever_welcomed = true;
                self.next_beat = Instant::now();
                let voice = Voice::new(self.connection.client.clone(), self.serial);
                let voice = Arc::new(voice);
                if wants_keys {
                    self.give_keys(voice.clone());
                }
                if let Some(recall) = recall {
                    recall_since(self.parts, recall, (time, now)).await;
                }
                self.parts.voice.send_replace(Some(voice));
                for message in std::mem::take(&mut self.held) {
                    self.hear(message, false).await;
                }
            }
            Welcome::Refused {
                reason,
                retry_after,
            } => {
                let wait = retry_after.get().clamp(REFUSED_BOUNDS.0, REFUSED_BOUNDS.1);
                error!(
                    "the broker refuses this node: {}; asking again in {}",
                    printable(&reason, 300),
                    Span::from_millis(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX))
                );
                self.welcomed = false;
                self.parts.voice.send_replace(None);
                self.greet(wait).await;
            }
        }
    }

    fn take_keys(&self, keys: &muster_protocol::keys::SignedText) {
        match self.parts.identity.take_keys(keys) {
            Ok(true) => {
                let epoch = self.parts.identity.now().keys.epoch;
                info!(epoch, "a newer list of broker keys");
            }
            Ok(false) => {}
            Err(e) => warn!("a list of broker keys is refused: {e}"),
        }
    }

    /// Whether anything new is begun here; the broker is told when this node
    /// goes by it.
    async fn take_freeze(&mut self, freeze: &muster_protocol::keys::SignedText) {
        match self.parts.frost.take(freeze).await {
            Ok(revision) => {
                let taken = FreezeTaken {
                    instance: self.parts.instance,
                    revision,
                };
                let voice = Voice::new(self.connection.client.clone(), self.serial);
                if let Err(e) = voice.say(NodeSays::Freeze, &taken).await {
                    debug!("the broker is not told of a freeze: {e}");
                }
            }
            Err(e) => warn!("{e}"),
        }
    }

    /// The broker's list of its own keys is older than the one here.
    fn give_keys(&self, voice: Arc<Voice>) {
        let list = self.parts.identity.now().stored.keys.clone();
        info!("giving the broker the newer list of broker keys");
        tokio::spawn(async move {
            match voice.ask(NodeSays::Keys, &list, WELCOME_WITHIN).await {
                Ok(answer) => match serde_json::from_slice(&answer) {
                    Ok(KeysAnswer::Taken) => {}
                    Ok(KeysAnswer::Refused { reason }) => warn!(
                        "the broker refuses this node's list of broker keys: {}",
                        printable(&reason, 300)
                    ),
                    Err(e) => warn!("the broker's answer to the list of keys cannot be read: {e}"),
                },
                // It asks again at the next hello.
                Err(e) => debug!("the broker did not take the list of keys: {e}"),
            }
        });
    }

    async fn beat(&mut self) {
        self.next_beat = Instant::now() + self.beat_every;
        let refused: BTreeMap<String, u64> = self.parts.verifier.refusals().counts();
        let beat = Beat {
            instance: self.parts.instance,
            time: Timestamp::now(),
            revision: self.parts.identity.now().assignment().revision,
            running: self.parts.steps.running(),
            refused,
            position: Some(self.parts.journal.position()),
        };
        let voice = Voice::new(self.connection.client.clone(), self.serial);
        if let Err(e) = voice.say(NodeSays::Beat, &beat).await {
            debug!("no beat: {e}");
        }
    }

    /// Judges a message and does what it asks. `first` is false for one that
    /// was held until the key list was renewed.
    async fn hear(&mut self, message: Message, first: bool) {
        let (request, sealed, new_broker) =
            match self.parts.verifier.check(&message, Timestamp::now()).await {
                Verdict::Obey {
                    request,
                    sealed,
                    new_broker,
                } => (request, sealed, new_broker),
                Verdict::Decline {
                    request,
                    sealed,
                    reason,
                } => {
                    if self.welcomed && !self.is_stale(&request) {
                        self.parts.steps.decline(request.id(), reason, sealed).await;
                    }
                    return;
                }
                Verdict::UnknownKey if first => return self.hold(message).await,
                Verdict::UnknownKey | Verdict::Drop => return,
            };
        if new_broker && self.greeting.is_none() {
            // Another broker is active, or the same one began anew: it has
            // to know this node.
            self.greet(spread(GREET_WITHIN)).await;
        }
        match &request.ask {
            Ask::Call(_) if self.welcomed && self.is_stale(&request) => {
                info!(run = %request.run, "not followed: it was signed before this node went back");
            }
            Ask::Call(call) if self.welcomed => {
                let secrets = secrets(&message);
                self.parts.steps.call(&request, call, sealed, secrets).await;
            }
            Ask::Cancel if self.welcomed => self.parts.steps.cancel(request.id()).await,
            Ask::Call(_) | Ask::Cancel => {
                debug!(run = %request.run, "not followed before the broker's welcome");
            }
            Ask::Ping => {
                let pong = Pong {
                    request: request.id(),
                    instance: self.parts.instance,
                    position: Some(self.parts.journal.position()),
                };
                let voice = Voice::new(self.connection.client.clone(), self.serial);
                let _ = voice.say(NodeSays::Pong, &pong).await;
            }
            Ask::Refresh { revision } => {
                if *revision > self.parts.identity.now().assignment().revision {
                    info!(revision, "this node's assignment has changed");
                    self.parts.keeper.want();
                }
            }
            Ask::Recall(recall) => {
                let at = (request.issued, Timestamp::now());
                recall_since(self.parts, *recall, at).await;
            }
            Ask::Freeze { freeze } => self.take_freeze(freeze).await,
            Ask::Probe(ask) => self.probe(request.id(), ask.clone()),
            Ask::Groups(update) => match &self.parts.groups {
                Some(groups) => groups.take(update.clone()),
                None => debug!("no groups are looked after here"),
            },
            Ask::Keys { list } => self.take_keys(list),
        }
    }

    /// Tries whether another node can be reached, for the broker to know
    /// whether that one's new rules may stay.
    fn probe(&self, request: RequestId, ask: ProbeAsk) {
        let voice = Voice::new(self.connection.client.clone(), self.serial);
        let probes = self.probes.clone();
        tokio::spawn(async move {
            let result = probes.make(&ask).await;
            debug!(address = %ask.address, tcp = ask.tcp, ?result, "a probe");
            let _ = voice
                .say(NodeSays::Probed, &Probed { request, result })
                .await;
        });
    }

    /// Whether a call may have been followed before this node went back.
    fn is_stale(&self, request: &Request) -> bool {
        self.follow_after.is_some_and(|at| request.issued < at)
    }

    /// Keeps a message by an unknown key, and asks whether there is a newer
    /// list of keys. Rarely, because a stranger can send such messages too.
    async fn hold(&mut self, message: Message) {
        let now = Instant::now();
        let asked = self
            .asked_keys
            .is_some_and(|at| now.duration_since(at) < ASK_KEYS_EVERY);
        if self.greeting.is_none() && asked {
            return;
        }
        if self.held.len() < MAX_HELD {
            self.held.push(message);
        }
        if self.greeting.is_none() {
            self.asked_keys = Some(now);
            self.greet(Duration::ZERO).await;
        }
    }
}

/// What came beside a request, sealed. Something else is as nothing: the
/// request says whether there has to be a box, and which.
fn secrets(message: &Message) -> Option<SecretBox> {
    let header = message.headers.as_ref()?.get(SECRETS_HEADER)?;
    header.as_str().parse().ok()
}

/// The broker has gone back in time: what it had acknowledged since is
/// reported again.
async fn recall_since(parts: &LinkParts, recall: Recall, (theirs, ours): (Timestamp, Timestamp)) {
    // By the broker's clock; the journal's times are by this machine's.
    let since = if ours > theirs {
        after(recall.since, elapsed(theirs, ours))
    } else {
        recall
            .since
            .checked_sub(elapsed(ours, theirs))
            .unwrap_or(Timestamp::MIN)
    };
    match parts.journal.recall(since, recall).await {
        Ok(0) => {}
        Ok(outcomes) => {
            warn!(outcomes, %since, "the broker has gone back in time: outcomes that it had are reported again");
            parts.reporter.wake();
        }
        Err(e) => error!("what the broker has lost cannot be reported again: {e}"),
    }
}

async fn ask_welcome(
    client: Client,
    serial: muster_protocol::ids::Serial,
    mut hello: Hello,
    delay: Duration,
) -> Welcome {
    tokio::time::sleep(delay).await;
    let voice = Voice::new(client, serial);
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(10));
    let mut said = false;
    loop {
        hello.time = Timestamp::now();
        match voice.ask(NodeSays::Hello, &hello, WELCOME_WITHIN).await {
            Ok(answer) => match serde_json::from_slice(&answer) {
                Ok(welcome) => return welcome,
                Err(e) => warn!("the broker's answer to the hello cannot be read: {e}"),
            },
            Err(e) if !said => {
                info!("connected to NATS; waiting for a broker: {e}");
                said = true;
            }
            Err(e) => debug!("no answer to the hello: {e}"),
        }
        tokio::time::sleep(backoff.wait()).await;
    }
}
