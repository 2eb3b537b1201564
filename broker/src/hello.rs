//! Who may take part: the first exchange with every agent.
//!
//! A cloned machine is two agents with one node key. They are told apart by
//! their instance: when a second one speaks while the first was heard a moment
//! ago, both are asked by one fresh signed ping. If both answer, both are kept
//! out until an operator replaces the node. What was said before and is said
//! again, by a network or by somebody who can write to NATS, answers no ping,
//! and so cannot have an honest node kept out.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::Subject;
use muster_protocol::PROTOCOL_VERSION;
use muster_protocol::ids::{InstanceId, Serial};
use muster_protocol::names::NodeName;
use muster_protocol::seal::SealKey;
use muster_protocol::units::{Span, Timestamp};
use muster_protocol::wire::{Acknowledged, AgentInfo, Hello, Welcome};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::bus::Bus;
use crate::events::Events;
use crate::freeze::Freezer;
use crate::groups::Desk;
use crate::inventory::{Absent, Inventory, NodeRecord, Standing};
use crate::ping::Pinger;
use crate::presence::{Older, Presence, Rival};
use crate::runs::Engine;
use crate::twin::Past;

/// How long an instance may take to show that it lives.
const STILL_THERE: Duration = Duration::from_secs(2);
/// How long a hello waits until the journals of runs are read.
const READ_WITHIN: Duration = Duration::from_secs(5);
/// When a node that was refused is to ask again.
const RETRY: Span = Span::from_secs(300);
/// Checks for a clone that run at a time; what is above waits for the agent's
/// own repeat.
const CHECKS: usize = 256;

/// Which of two instances of a node answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Lives {
    Both,
    /// The one that speaks.
    Claimant,
    /// The one that was heard before.
    Rival,
    Neither,
}

/// Welcomes agents. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Porter(Arc<Inner>);

struct Inner {
    bus: Bus,
    inventory: Inventory,
    presence: Presence,
    pinger: Pinger,
    events: Events,
    engine: Engine,
    past: Past,
    freezer: Freezer,
    groups: Desk,
    checks: Semaphore,
    /// Nodes that are being checked.
    checking: Mutex<HashSet<Serial>>,
}

/// To what secrets for this start of the agent are sealed, when the node's
/// identity key says so.
fn seal_key(record: &NodeRecord, hello: &Hello) -> Option<SealKey> {
    let offer = hello.seal.as_ref()?;
    let checked = offer.checked(&record.node_key, record.serial, hello.instance);
    if checked.is_err() {
        tracing::warn!(node = %record.assignment.name, "an encryption key that the node's identity key has not signed");
    }
    checked.ok()
}

impl Porter {
    pub(crate) fn new(
        bus: Bus,
        inventory: Inventory,
        presence: Presence,
        pinger: Pinger,
        events: Events,
        engine: Engine,
        (past, freezer, groups): (Past, Freezer, Desk),
    ) -> Self {
        Self(Arc::new(Inner {
            bus,
            inventory,
            presence,
            pinger,
            events,
            engine,
            past,
            freezer,
            groups,
            checks: Semaphore::new(CHECKS),
            checking: Mutex::default(),
        }))
    }

    /// An agent says hello.
    pub(crate) async fn hello(&self, serial: Serial, hello: Hello, reply: Option<Subject>) {
        let Some((record, reply)) = self.admitted(serial, reply).await else {
            return;
        };
        if hello.protocol != PROTOCOL_VERSION {
            self.0.inventory.note_agent(serial, hello.agent());
            self.incompatible(&record, hello.protocol, &reply).await;
            return;
        }
        let inner = &*self.0;
        match inner.presence.rival(serial, hello.instance) {
            None => self.welcome(&record, &hello, &reply).await,
            Some(rival) => {
                let this = self.clone();
                self.check(serial, async move {
                    match this.tell_apart(&record, rival, hello.instance).await {
                        Lives::Both => {
                            let reason = "another machine lives with this node's key".to_owned();
                            this.refuse(serial, &reply, reason).await;
                        }
                        Lives::Claimant => this.welcome(&record, &hello, &reply).await,
                        Lives::Rival => this.echo(&record),
                        // It says hello again.
                        Lives::Neither => {}
                    }
                });
            }
        }
    }

    /// An agent says hello in a protocol that this broker does not speak.
    pub(crate) async fn stranger(&self, serial: Serial, protocol: u32, reply: Option<Subject>) {
        if let Some((record, reply)) = self.admitted(serial, reply).await {
            // All else that it said is in words that are not known here.
            let agent = AgentInfo {
                version: String::new(),
                protocol,
                capabilities: Vec::new(),
                build: None,
            };
            self.0.inventory.note_agent(serial, agent);
            self.incompatible(&record, protocol, &reply).await;
        }
    }

    /// An agent says hello for a node that is not in the inventory.
    pub(crate) async fn absent(&self, serial: Serial, reply: Subject) {
        // Each costs a lock that writers need.
        let Ok(_permit) = self.0.checks.try_acquire() else {
            return;
        };
        let reason = match self.0.inventory.knock(serial).await {
            Absent::Removed => format!("node {serial} was removed or replaced"),
            Absent::Unknown => format!(
                "node {serial} is not known to this broker; it may have been restored from a \
                 backup: enrol again"
            ),
        };
        self.refuse(serial, &reply, reason).await;
    }

    /// A beat came of another instance than the one that was heard before.
    pub(crate) fn rival_beats(&self, serial: Serial, instance: InstanceId, rival: Rival) {
        let Some(record) = self.0.inventory.snapshot().get(serial).cloned() else {
            return;
        };
        if !record.is_active() {
            return;
        }
        let this = self.clone();
        self.check(serial, async move {
            // When the other one is gone, the next beat finds it so.
            if let Lives::Rival = this.tell_apart(&record, rival, instance).await {
                this.echo(&record);
            }
        });
    }

    /// The node, if it may ask at all; what cannot be answered is dropped.
    async fn admitted(
        &self,
        serial: Serial,
        reply: Option<Subject>,
    ) -> Option<(Arc<NodeRecord>, Subject)> {
        let reply = reply?;
        let record = self.0.inventory.snapshot().get(serial).cloned()?;
        if let Standing::Quarantined { reason, .. } = &record.standing {
            self.refuse(
                serial,
                &reply,
                format!("this node is kept out until it is replaced: {reason}"),
            )
            .await;
            return None;
        }
        Some((record, reply))
    }

    async fn incompatible(&self, record: &NodeRecord, protocol: u32, reply: &Subject) {
        self.0.presence.incompatible(record.serial, protocol);
        tracing::warn!(node = %record.assignment.name, protocol, "an agent speaks another protocol");
        let reason = format!(
            "this agent speaks protocol {protocol}, the broker speaks {PROTOCOL_VERSION}: install the agent \
             of the broker's version"
        );
        self.refuse(record.serial, reply, reason).await;
    }

    async fn refuse(&self, serial: Serial, reply: &Subject, reason: String) {
        self.0
            .bus
            .reply(
                serial,
                reply,
                &Welcome::Refused {
                    reason,
                    retry_after: RETRY,
                },
            )
            .await;
    }

    /// Runs a check in the background, one for a node at a time.
    fn check(&self, serial: Serial, check: impl Future<Output = ()> + Send + 'static) {
        let this = self.clone();
        let fresh = this
            .0
            .checking
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(serial);
        if !fresh {
            return;
        }
        tokio::spawn(async move {
            if let Ok(_permit) = this.0.checks.try_acquire() {
                check.await;
            }
            this.0
                .checking
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&serial);
        });
    }

    /// Which of two instances live. If it is both, both are kept out from now
    /// on.
    async fn tell_apart(&self, record: &NodeRecord, rival: Rival, instance: InstanceId) -> Lives {
        let inner = &*self.0;
        let Rival(other) = rival;
        let asked = [instance, other];
        let answered = inner
            .pinger
            .answering(record.serial, &asked, STILL_THERE)
            .await;
        let lives = match (
            answered.contains_key(&instance),
            answered.contains_key(&other),
        ) {
            (true, true) => Lives::Both,
            (true, false) => Lives::Claimant,
            (false, true) => Lives::Rival,
            (false, false) => Lives::Neither,
        };
        match lives {
            Lives::Both => self.keep_out(record, instance).await,
            Lives::Claimant => inner.presence.superseded(record.serial, other, instance),
            Lives::Rival | Lives::Neither => {}
        }
        lives
    }

    /// Something was said in the name of an instance that is not there, while
    /// the node is.
    fn echo(&self, record: &NodeRecord) {
        let what = "said in the name of another start of the agent, which answers no ping: old messages \
                    were sent again, or there is a copy that cannot obey (a wrong clock?)";
        let times = self.0.presence.nonsense(record.serial, what);
        if times.is_power_of_two() {
            tracing::warn!(node = %record.assignment.name, times, "{what}");
        }
    }

    /// Two machines live with the node's key.
    async fn keep_out(&self, record: &NodeRecord, instance: InstanceId) {
        let inner = &*self.0;
        let name = &record.assignment.name;
        tracing::error!(node = %name, serial = %record.serial, %instance, "two machines live with one node key");
        let reason = format!("two machines live with the key of {name}");
        if let Err(error) = inner.inventory.quarantine(record.serial, reason).await {
            tracing::error!(node = %name, %error, "cannot keep a cloned node out");
        }
        let text = format!(
            "two machines live with the key of {name}; both are kept out. Find the copy, then: muster node \
             replace {name}"
        );
        inner
            .events
            .emit("alarm.cloned-node", name.as_str(), text)
            .await;
    }

    async fn welcome(&self, record: &NodeRecord, hello: &Hello, reply: &Subject) {
        let inner = &*self.0;
        let Some(epoch) = inner.bus.lease().epoch() else {
            return;
        };
        let (serial, name) = (record.serial, &record.assignment.name);
        if hello.broker_epoch > epoch {
            inner
                .past
                .node_saw(name, hello.broker_epoch, &inner.events)
                .await;
            // Under the next lease, which is above: the node asks again.
            return;
        }
        let authority = inner.bus.authority();
        let (mut recall, mut wants_keys, mut follow_after) = (None, false, None);
        if let Some(mark) = &hello.journal {
            let journals = inner.presence.journals();
            if journals
                .older(serial, hello.instance, mark.position)
                .is_some()
            {
                // It waits, too, while what was sent to it may be sent again.
                let Some(position) = self.confirmed(hello, serial, mark.position).await else {
                    return;
                };
                if let Some(older) = journals.older(serial, hello.instance, position) {
                    if !self.went_back(serial, name, older).await {
                        return;
                    }
                    journals.reset(serial);
                    follow_after = Some(Timestamp::now());
                }
            }
            // Before the journals are read nobody can say; it asks again.
            let Some(lacks) = self.lacks(serial, &mark.acknowledged).await else {
                return;
            };
            recall = if lacks {
                Some(inner.engine.recall())
            } else {
                inner.past.report_again().map(crate::bus::recall)
            };
            wants_keys = hello.key_epoch > authority.list().epoch;
            journals.welcomed(serial, hello.instance, mark.position);
        }
        let mark = hello.freeze.as_ref();
        inner.freezer.greeted(serial, name, mark).await;
        inner
            .presence
            .welcomed(serial, hello, seal_key(record, hello));
        inner.inventory.note_agent(serial, hello.agent());
        let keys = (hello.key_epoch < authority.list().epoch).then(|| authority.signed_list());
        // Read again: it may have changed while the node was checked.
        let snapshot = inner.inventory.snapshot();
        let revision = snapshot
            .get(serial)
            .map_or(record.assignment.revision, |r| r.assignment.revision);
        let welcome = Welcome::Welcome {
            time: Timestamp::now(),
            keys,
            revision,
            beat_every: inner.presence.beat_every(),
            recall,
            wants_keys,
            follow_after,
            freeze: mark.and_then(|_| inner.freezer.signed()),
        };
        inner.bus.reply(serial, reply, &welcome).await;
        tracing::debug!(node = %name, version = hello.version, "welcomed");
        inner.engine.returned(serial);
        inner.groups.greeted(serial);
    }

    /// Whether outcomes are missing here that this node was told are stored.
    async fn lacks(&self, serial: Serial, marks: &[Acknowledged]) -> Option<bool> {
        if marks.is_empty() {
            return Some(false);
        }
        let engine = &self.0.engine;
        timeout(READ_WITHIN, engine.wait_ready()).await.ok()?;
        engine.lacks(serial, marks).await
    }

    /// How far the journal of a node that says hello is now. A hello may have
    /// been on its way for long, or be repeated by somebody: a ping is not.
    async fn confirmed(&self, hello: &Hello, serial: Serial, position: u64) -> Option<u64> {
        let inner = &*self.0;
        if hello.key_epoch < inner.bus.authority().list().epoch {
            // It may not know the key that signs the ping; the welcome brings
            // it the list.
            return Some(position);
        }
        let instance = hello.instance;
        let asked = [instance];
        let answered = inner.pinger.answering(serial, &asked, STILL_THERE).await;
        answered.get(&instance).copied().flatten()
    }

    /// A node has an older journal than it had. Whether nothing that it may
    /// have begun is sent to it again.
    async fn went_back(&self, serial: Serial, name: &NodeName, older: Older) -> bool {
        let inner = &*self.0;
        tracing::error!(
            node = %name, was = older.was, is = older.is,
            "a node has gone back in time: was its machine or its disk restored?"
        );
        if !inner.engine.forgot(serial, older).await {
            return false;
        }
        let text = format!(
            "{name} has gone back in time (its journal was at {}, it is at {}), as after a restored snapshot: \
             what it did since is forgotten there. What was sent to it and had no outcome is `unknown`, and is \
             not sent again",
            older.was, older.is
        );
        inner
            .events
            .emit("alarm.node-went-back", name.as_str(), text)
            .await;
        true
    }
}
