//! What the nodes say, heard and handed on.
//!
//! One task reads everything. It does nothing slow: what takes time is
//! spawned, and what a busy part cannot take is dropped, because every node
//! repeats what matters until it is answered.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::{Message as NatsMessage, StatusCode, Subject, SubscribeError};
use futures_util::{StreamExt as _, stream};
use muster_protocol::firewall::{FirewallRepaired, GroupsAnswer};
use muster_protocol::ids::{RunId, Serial};
use muster_protocol::keys::SignedText;
use muster_protocol::subject::{self, NodeSays};
use muster_protocol::wire::{Facts, KeysAnswer};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::bundles::BundleDesk;
use super::control::Control;
use super::meter::Meters;
use super::said::{Said, kind, read};
use super::{Bus, Purpose};
use crate::events::Events;
use crate::events::facts::{self, Patience};
use crate::freeze::Freezer;
use crate::groups::{Alarm, Desk};
use crate::hello::Porter;
use crate::inventory::{Inventory, NodeRecord, Snapshot};
use crate::node_firewall::Prober;
use crate::ping::Pinger;
use crate::presence::Presence;
use crate::runs::Engine;
use crate::runs::Message;
use crate::vm::{Observed, is_hypervisor};

/// Facts that are being stored at a time.
const FACTS_AT_ONCE: usize = 64;
/// How often meters of silent nodes are forgotten.
const TIDY_EVERY: Duration = Duration::from_secs(60);

/// Who is told what.
#[derive(Clone)]
pub(super) struct Ears {
    pub(super) bus: Bus,
    pub(super) control: Arc<Control>,
    /// Lists of broker keys that are looked at now.
    pub(super) lists: Arc<Semaphore>,
    pub(super) inventory: Inventory,
    pub(super) presence: Presence,
    pub(super) pinger: Pinger,
    pub(super) prober: Prober,
    pub(super) porter: Porter,
    pub(super) freezer: Freezer,
    pub(super) observed: Observed,
    pub(super) groups: Desk,
    pub(super) engine: Engine,
    pub(super) events: Events,
    pub(super) facts: Arc<FactsDesk>,
    pub(super) bundles: Arc<BundleDesk>,
}

/// Which nodes' facts are being stored.
pub(super) struct FactsDesk {
    patience: Patience,
    room: Semaphore,
    busy: Mutex<HashSet<Serial>>,
}

impl FactsDesk {
    pub(super) fn new() -> Self {
        Self {
            patience: Patience::default(),
            room: Semaphore::new(FACTS_AT_ONCE),
            busy: Mutex::default(),
        }
    }
}

type Ear = stream::Select<async_nats::Subscriber, async_nats::Subscriber>;

impl Ears {
    /// Subscribes; what is said from then on is heard.
    pub(super) async fn open(&self) -> Result<Ear, SubscribeError> {
        let client = self.bus.client();
        let nodes = client.subscribe(subject::FROM_ALL).await?;
        let unheard = client.subscribe(format!("{}.>", self.bus.0.inbox)).await?;
        Ok(stream::select(nodes, unheard))
    }

    /// Listens until it is cancelled.
    pub(super) async fn listen(self, mut ear: Ear, cancel: CancellationToken) {
        let mut meters = Meters::default();
        let start = Instant::now();
        let mut tidied = start;
        loop {
            let message = tokio::select! {
                () = cancel.cancelled() => return,
                message = ear.next() => message,
            };
            let Some(message) = message else {
                // The client gives up a subscription only when it is closed.
                tracing::error!("the subscription to the nodes ended; subscribing again");
                sleep(Duration::from_secs(1)).await;
                match self.open().await {
                    Ok(new) => ear = new,
                    Err(error) => tracing::error!(%error, "cannot subscribe to the nodes"),
                }
                continue;
            };
            let now = Instant::now();
            if now - tidied > TIDY_EVERY {
                tidied = now;
                meters.tidy(now - start);
            }
            // A broker that is not active hears nothing: the active one does.
            if self.bus.lease().epoch().is_some() {
                self.hear(message, &mut meters, now - start).await;
            }
        }
    }

    async fn hear(&self, message: NatsMessage, meters: &mut Meters, now: Duration) {
        if message.subject.starts_with(self.bus.0.inbox.as_str()) {
            self.unheard(&message);
            return;
        }
        let Some((serial, kind)) = kind(&message.subject) else {
            tracing::debug!(subject = %message.subject, "a subject that no agent uses");
            return;
        };
        let Some(record) = self.inventory.snapshot().get(serial).cloned() else {
            self.absent(serial, kind, message.reply);
            return;
        };
        if !meters.allow(serial, message.payload.len(), now) {
            self.flooded(&record);
            return;
        }
        let said = match read(kind, &message) {
            Ok(said) => said,
            Err(why) => {
                let times = self.presence.nonsense(serial, &why.0);
                if times.is_power_of_two() {
                    tracing::warn!(node = %record.assignment.name, times, %why, "a node says what makes no sense");
                }
                return;
            }
        };
        // Of a node that is kept out only a hello is heard, to say so.
        if record.is_active() || matches!(said, Said::Hello(_) | Said::Stranger { .. }) {
            self.hand_on(record, said, message.payload.len(), message.reply)
                .await;
        }
    }

    async fn hand_on(
        &self,
        record: Arc<NodeRecord>,
        said: Said,
        bytes: usize,
        reply: Option<Subject>,
    ) {
        let serial = record.serial;
        match said {
            Said::Hello(hello) => {
                let porter = self.porter.clone();
                tokio::spawn(async move { porter.hello(serial, *hello, reply).await });
            }
            Said::Stranger { protocol } => {
                let porter = self.porter.clone();
                tokio::spawn(async move { porter.stranger(serial, protocol, reply).await });
            }
            Said::Beat(beat) => {
                if let Some(rival) = self.presence.beat(serial, &beat) {
                    self.porter.rival_beats(serial, beat.instance, rival);
                }
            }
            Said::Facts(facts) => self.store_facts(serial, facts, reply),
            Said::Pong(pong) => {
                self.presence.pong(serial, pong.instance);
                self.pinger.pong(serial, &pong);
            }
            Said::Accepted(accepted) => self.engine.accepted(serial, &accepted),
            Said::Output(head, data) => self.engine.output(serial, head, data),
            Said::Outcome(report) => self.engine.outcome(serial, report, bytes, reply).await,
            Said::Proof(proof) => self.engine.prove(record, proof, reply),
            Said::Keys(list) => self.hear_keys(record, list, reply),
            Said::Local(report) => self.engine.local(record, report, reply),
            Said::Bundle(request) => self.bundles.serve(&self.bus, serial, request, reply),
            Said::Freeze(taken) => self.freezer.taken(serial, taken.revision),
            Said::Machines(report) => self.observed.hear(&record, *report),
            Said::Probed(probed) => self.prober.probed(serial, probed),
            Said::Repaired(repaired) => self.hear_repaired(&record, &repaired),
            Said::Groups(answer) => self.hear_groups(&record, &answer),
            Said::Bye(bye) => self.presence.bye(serial, bye.instance),
        }
    }

    /// A hypervisor says what it holds of groups.
    fn hear_groups(&self, record: &NodeRecord, answer: &GroupsAnswer) {
        if !is_hypervisor(record) {
            return;
        }
        for alarm in self.groups.heard(record.serial, answer) {
            self.tell(record, alarm);
        }
    }

    /// A node says that its own firewall was changed by somebody else.
    fn hear_repaired(&self, record: &NodeRecord, repaired: &FirewallRepaired) {
        if let Some(alarm) = self.groups.repaired(record.serial, repaired) {
            self.tell(record, alarm);
        }
    }

    fn tell(&self, record: &NodeRecord, alarm: Alarm) {
        let name = record.assignment.name.clone();
        let (kind, text) = alarm.told(&name);
        tracing::warn!(node = %name, "{text}");
        let events = self.events.clone();
        tokio::spawn(async move { events.emit(kind, name.as_str(), text).await });
    }

    /// Somebody who is not in the inventory is told so when it says hello.
    fn absent(&self, serial: Serial, kind: NodeSays, reply: Option<Subject>) {
        if kind == NodeSays::Hello
            && let Some(reply) = reply
        {
            let porter = self.porter.clone();
            tokio::spawn(async move { porter.absent(serial, reply).await });
        }
    }

    /// A node gives a list of broker keys that it holds.
    fn hear_keys(&self, record: Arc<NodeRecord>, list: SignedText, reply: Option<Subject>) {
        let Ok(room) = Arc::clone(&self.lists).try_acquire_owned() else {
            // It gives it again when it is asked to.
            return;
        };
        let this = self.clone();
        tokio::spawn(async move {
            let _room = room;
            let name = &record.assignment.name;
            let heard = this
                .bus
                .authority()
                .hear(&list, this.control.as_ref(), name.as_str())
                .await;
            let answer = match heard {
                Ok(()) => KeysAnswer::Taken,
                Err(error) => {
                    tracing::warn!(node = %name, %error, "a list of broker keys that a node gives is not taken");
                    KeysAnswer::Refused {
                        reason: error.to_string(),
                    }
                }
            };
            if let Some(reply) = &reply {
                this.bus.reply(record.serial, reply, &answer).await;
            }
        });
    }

    fn flooded(&self, record: &NodeRecord) {
        if !self.presence.flooded(record.serial) {
            return;
        }
        let name = record.assignment.name.clone();
        tracing::warn!(node = %name, "a node sends more than it may; the rest is thrown away");
        let events = self.events.clone();
        tokio::spawn(async move {
            let text = format!("{name} sends more than it may; the rest is thrown away");
            events
                .emit("alarm.flooding-node", name.as_str(), text)
                .await;
        });
    }

    fn store_facts(&self, serial: Serial, facts: Facts, reply: Option<Subject>) {
        let fresh = self
            .facts
            .busy
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(serial);
        if !fresh {
            // It sends them again when it is not answered.
            return;
        }
        let this = self.clone();
        tokio::spawn(async move {
            if let Ok(_room) = this.facts.room.acquire().await {
                let before = this.inventory.snapshot();
                match this.inventory.set_facts(serial, facts).await {
                    Ok(()) => {
                        if let Some(reply) = &reply {
                            this.bus.acknowledge(serial, reply).await;
                        }
                        this.tell_facts(serial, &before).await;
                    }
                    Err(error) => {
                        tracing::warn!(node = %serial, %error, "cannot store the facts of a node")
                    }
                }
            }
            this.facts
                .busy
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&serial);
        });
    }

    /// Tells which facts of a node are others than before.
    async fn tell_facts(&self, serial: Serial, before: &Snapshot) {
        let now = self.inventory.snapshot();
        let (Some(before), Some(now)) = (before.get(serial), now.get(serial)) else {
            return;
        };
        // The first ones are no change.
        if before.facts.is_empty() || before.facts == now.facts {
            return;
        }
        let changes = facts::changes(&before.facts, &now.facts);
        if changes.is_empty()
            || !self
                .facts
                .patience
                .allows(serial, std::time::Instant::now())
        {
            return;
        }
        let name = now.assignment.name.as_str();
        let (text, fields) = facts::told(name, &changes);
        self.events.tell("node.facts", name, text, fields).await;
    }

    /// The server says that nobody heard a message to one node.
    fn unheard(&self, message: &NatsMessage) {
        if message.status != Some(StatusCode::NO_RESPONDERS) {
            return;
        }
        let Some((purpose, run, serial)) = self.bus.notice(&message.subject) else {
            return;
        };
        match purpose {
            Purpose::Call => self.engine.unheard(run, serial, Message::Call),
            Purpose::Cancel => self.engine.unheard(run, serial, Message::Cancel),
            Purpose::Ping => self.pinger.unheard(run, serial),
            Purpose::Probe => self.prober.unheard(run, serial),
            Purpose::Other => {}
        }
    }
}

impl Bus {
    /// What a notice on the bus's own inbox is about.
    fn notice(&self, subject: &Subject) -> Option<(Purpose, RunId, Serial)> {
        let rest = subject
            .strip_prefix(self.0.inbox.as_str())?
            .strip_prefix('.')?;
        let mut tokens = rest.split('.');
        let purpose = Purpose::parse(tokens.next()?)?;
        let run = tokens.next()?.parse().ok()?;
        let serial = tokens.next()?.parse().ok()?;
        tokens.next().is_none().then_some((purpose, run, serial))
    }
}
