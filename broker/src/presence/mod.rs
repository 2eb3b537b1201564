//! Which nodes are there.
//!
//! A node is there while its heartbeats arrive. It is gone when it says so,
//! when the NATS server says that its last connection has ended, or when too
//! many heartbeats are missing. While this broker itself is cut off from NATS
//! nobody's heartbeats are missing: that time does not count.

mod connections;
mod journals;
mod report;
mod table;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use muster_protocol::api::{Condition, Presence as State};
use muster_protocol::ids::{InstanceId, Serial};
use muster_protocol::seal::SealKey;
use muster_protocol::units::{Span, Timestamp};
use muster_protocol::wire::{BEAT_EVERY, Beat, Hello};
use tokio::sync::Notify;
use tokio::time::{Instant, interval, timeout};
use tokio_util::sync::CancellationToken;

use self::report::Reporter;
use self::table::{Heard, Node, Table};
use crate::bus::Bus;
use crate::clock::ClockWatch;
use crate::events::Events;
use crate::inventory::{Inventory, NodeRecord, PresenceView, Standing};

pub(crate) use self::connections::follow as follow_connections;
pub use self::journals::{Journals, Older, StoredJournals};
pub(crate) use self::table::Rival;

/// A clock off by more is a [`Condition::ClockSkew`].
const SKEW: Duration = Duration::from_secs(10);
/// How often the table is looked through for changes to report.
const TICK: Duration = Duration::from_millis(500);
/// How often `last_seen` is stored.
const STORE_EVERY: Duration = Duration::from_secs(10);

/// How a node can be sent to now.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Reach {
    /// It is up and lives by its newest assignment: its groups reach it.
    Groups,
    /// It may hear what is sent to it alone.
    Alone,
    /// It is not there now; what is known, for people.
    Down(String),
    /// It may not take part; why, for people.
    Barred(String),
}

/// What is known of the nodes' presence. Cheap to clone.
#[derive(Clone)]
pub struct Presence(Arc<Inner>);

struct Inner {
    table: Mutex<Table>,
    /// A node says that it holds another revision.
    revisions: Notify,
    inventory: Inventory,
    events: Events,
    beat_every: Span,
    journals: Journals,
}

impl std::fmt::Debug for Presence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Presence").finish_non_exhaustive()
    }
}

impl Presence {
    /// Nobody was heard yet. `beat_every` is what nodes are told.
    #[must_use]
    pub fn new(
        inventory: Inventory,
        events: Events,
        journals: Journals,
        beat_every: Option<Span>,
    ) -> Self {
        let beat_every = beat_every.unwrap_or(BEAT_EVERY);
        let table = Mutex::new(Table::new(beat_every.get(), Instant::now().into_std()));
        Self(Arc::new(Inner {
            table,
            revisions: Notify::new(),
            inventory,
            events,
            beat_every,
            journals,
        }))
    }

    /// How far the journals of the nodes are.
    #[must_use]
    pub fn journals(&self) -> &Journals {
        &self.0.journals
    }

    /// How often nodes are to say that they are there.
    #[must_use]
    pub fn beat_every(&self) -> Span {
        self.0.beat_every
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        let mut table = self.0.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.advance(Instant::now().into_std());
        table
    }

    /// A node beats. Says when another instance of the same node must be
    /// looked for.
    pub(crate) fn beat(&self, serial: Serial, beat: &Beat) -> Option<Rival> {
        let now = Timestamp::now();
        let heard = Heard {
            instance: beat.instance,
            at: now,
            time: Some(beat.time),
            revision: Some(beat.revision),
        };
        let mut table = self.table();
        let rival = table.heard(serial, &heard);
        if rival.is_none()
            && let Some(node) = table.get_mut(serial)
        {
            node.refused.clone_from(&beat.refused);
        }
        if let (None, Some(position)) = (rival, beat.position) {
            self.0.journals.beat(serial, beat.instance, position);
        }
        let changed = table.take_revision_change();
        drop(table);
        if changed {
            self.0.revisions.notify_waiters();
        }
        rival
    }

    /// A node was heard in another way, which says less than a beat.
    pub(crate) fn pong(&self, serial: Serial, instance: InstanceId) {
        let heard = Heard {
            instance,
            at: Timestamp::now(),
            time: None,
            revision: None,
        };
        let _ = self.table().heard(serial, &heard);
    }

    /// Another live instance of the node that says hello, if there may be
    /// one.
    pub(crate) fn rival(&self, serial: Serial, instance: InstanceId) -> Option<Rival> {
        self.table().rival(serial, instance)
    }

    /// An instance that was heard a moment ago does not answer any more; the
    /// node is `by` now.
    pub(crate) fn superseded(&self, serial: Serial, instance: InstanceId, by: InstanceId) {
        self.table().superseded(serial, instance, by);
    }

    /// To what secrets for a node are sealed now.
    pub(crate) fn seal_key(&self, serial: Serial) -> Option<SealKey> {
        self.table().get_mut(serial)?.seal
    }

    /// A node was welcomed: this instance is the node from now on, and secrets
    /// for it are sealed to that key.
    pub(crate) fn welcomed(&self, serial: Serial, hello: &Hello, seal: Option<SealKey>) {
        let heard = Heard {
            instance: hello.instance,
            at: Timestamp::now(),
            time: Some(hello.time),
            revision: Some(hello.revision),
        };
        self.table().welcomed(serial, &heard, &hello.version, seal);
        self.0.revisions.notify_waiters();
    }

    /// An agent of another protocol asked to take part.
    pub(crate) fn incompatible(&self, serial: Serial, protocol: u32) {
        self.table().node(serial).incompatible = Some(protocol);
    }

    /// A node goes in good order.
    pub(crate) fn bye(&self, serial: Serial, instance: InstanceId) {
        self.table().bye(serial, instance);
    }

    /// The server says that a node has no connection any more.
    pub(crate) fn disconnected(&self, serial: Serial) {
        self.table().disconnected(serial);
    }

    /// The server says that a node has a connection.
    pub(crate) fn connected(&self, serial: Serial) {
        self.table().connected(serial);
    }

    /// The server says that nobody but these has a connection.
    pub(crate) fn only_connected(&self, connected: &dyn Fn(Serial) -> bool) {
        let snapshot = self.0.inventory.snapshot();
        let mut table = self.table();
        for record in snapshot.iter().filter(|record| !connected(record.serial)) {
            table.disconnected(record.serial);
        }
    }

    /// A message of the node was thrown away because it sends too many.
    /// Whether that is news.
    pub(crate) fn flooded(&self, serial: Serial) -> bool {
        self.table().flooded(serial)
    }

    /// A message of the node made no sense. How many there were so far.
    pub(crate) fn nonsense(&self, serial: Serial, what: &str) -> u64 {
        let mut table = self.table();
        let node = table.node(serial);
        node.nonsense += 1;
        node.last_nonsense = what.to_owned();
        node.nonsense
    }

    /// Forgets a node that was removed.
    pub fn forget(&self, serial: Serial) {
        self.table().forget(serial);
        self.0.journals.forget(serial);
    }

    /// What is known of one node.
    #[must_use]
    pub fn view(&self, serial: Serial) -> PresenceView {
        let snapshot = self.0.inventory.snapshot();
        view(&self.table(), serial, snapshot.get(serial))
    }

    /// What is known of all nodes that are enrolled.
    #[must_use]
    pub fn views(&self) -> HashMap<Serial, PresenceView> {
        let snapshot = self.0.inventory.snapshot();
        let table = self.table();
        snapshot
            .iter()
            .map(|record| (record.serial, view(&table, record.serial, Some(record))))
            .collect()
    }

    /// How nodes can be sent to now, in their order.
    #[must_use]
    pub fn reach(&self, serials: &[Serial]) -> Vec<Reach> {
        let snapshot = self.0.inventory.snapshot();
        let table = self.table();
        let now = Timestamp::now();
        serials
            .iter()
            .map(|serial| match snapshot.get(*serial) {
                None => Reach::Barred("the node was removed".to_owned()),
                Some(record) => reach(&table, record, now),
            })
            .collect()
    }

    /// Waits until a node says that it holds this revision or a later one;
    /// `false` when it did not within that time.
    pub async fn wait_revision(&self, serial: Serial, revision: u64, within: Duration) -> bool {
        let held = async {
            loop {
                let changed = self.0.revisions.notified();
                tokio::pin!(changed);
                // From here on no change is missed.
                changed.as_mut().enable();
                let holds = self.table().get(serial).and_then(|node| node.revision);
                if holds.is_some_and(|holds| holds >= revision) {
                    return;
                }
                changed.await;
            }
        };
        timeout(within, held).await.is_ok()
    }

    /// Watches the clock: reports who came and went, and stores now and then
    /// when nodes were last heard.
    pub(crate) async fn keep(self, bus: Bus, cancel: CancellationToken) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let mut reporter = Reporter::default();
        let mut stored = Timestamp::now();
        let mut store_at = Instant::now() + STORE_EVERY;
        let mut clock = ClockWatch::new(stored, Instant::now().into_std());
        loop {
            tokio::select! {
                () = cancel.cancelled() => break,
                _ = tick.tick() => {}
            }
            let snapshot = self.0.inventory.snapshot();
            let news = {
                let mut table = self.table();
                table.hearing(bus.is_connected() && bus.lease().epoch().is_some());
                reporter.look(&table, &snapshot, Instant::now().into_std())
            };
            let step = clock.look(Timestamp::now(), Instant::now().into_std());
            if let Some(step) = step {
                tracing::warn!(step, "{}", crate::clock::told(step));
            }
            if bus.lease().epoch().is_none() {
                continue;
            }
            if let Some(step) = step {
                let text = crate::clock::told(step);
                self.0.events.emit("alarm.clock", "broker", text).await;
            }
            for event in news {
                self.0
                    .events
                    .tell(event.kind, &event.subject, event.text, event.fields)
                    .await;
            }
            if Instant::now() >= store_at {
                store_at = Instant::now() + STORE_EVERY;
                stored = self.store_seen(stored).await;
            }
        }
        if bus.lease().epoch().is_some() {
            self.store_seen(stored).await;
        }
    }

    /// Stores when nodes were last heard that were heard since `since`.
    async fn store_seen(&self, since: Timestamp) -> Timestamp {
        let now = Timestamp::now();
        let seen: Vec<(Serial, Timestamp)> = self.table().seen_since(since);
        if !seen.is_empty() {
            self.0.inventory.note_seen(&seen).await;
        }
        now
    }
}

fn state(table: &Table, record: Option<&Arc<NodeRecord>>, serial: Serial) -> State {
    table.state(
        serial,
        record.is_some_and(|record| record.last_seen.is_some()),
    )
}

fn view(table: &Table, serial: Serial, record: Option<&Arc<NodeRecord>>) -> PresenceView {
    let node = table.get(serial);
    let stored = record.and_then(|record| record.last_seen);
    let mut view = PresenceView {
        state: state(table, record, serial),
        last_seen: node.and_then(|node| node.last_seen).or(stored),
        version: node.and_then(|node| node.version.clone()),
        revision: node.and_then(|node| node.revision),
        conditions: Vec::new(),
    };
    if let Some(node) = node {
        conditions(node, view.state, record, table, &mut view.conditions);
    }
    view
}

fn conditions(
    node: &Node,
    state: State,
    record: Option<&Arc<NodeRecord>>,
    table: &Table,
    found: &mut Vec<Condition>,
) {
    if let Some(ms) = node
        .skew_ms
        .filter(|ms| u128::from(ms.unsigned_abs()) > SKEW.as_millis())
    {
        found.push(Condition::ClockSkew { ms });
    }
    if let Some(protocol) = node.incompatible {
        found.push(Condition::Incompatible { protocol });
    }
    if let (Some(record), Some(revision)) = (record, node.revision)
        && revision < record.assignment.revision
        && matches!(state, State::Up | State::Late)
    {
        found.push(Condition::Stale { revision });
    }
    // A message for a group reaches nodes outside of the set: no attack.
    let counts: std::collections::BTreeMap<String, u64> = node
        .refused
        .iter()
        .filter(|(kind, _)| *kind != "not_in_set")
        .map(|(k, n)| (k.clone(), *n))
        .collect();
    if !counts.is_empty() {
        found.push(Condition::Refusing { counts });
    }
    if table.is_flooding(node) {
        found.push(Condition::Flooding);
    }
    if node.nonsense > 0 {
        let text = format!(
            "{} messages made no sense; the last: {}",
            node.nonsense, node.last_nonsense
        );
        found.push(Condition::Note { text });
    }
}

fn reach(table: &Table, record: &Arc<NodeRecord>, now: Timestamp) -> Reach {
    if let Standing::Quarantined { reason, .. } = &record.standing {
        return Reach::Barred(format!("kept out: {reason}"));
    }
    let node = table.get(record.serial);
    if let Some(protocol) = node.and_then(|node| node.incompatible) {
        return Reach::Barred(format!(
            "its agent speaks protocol {protocol}, which this broker does not"
        ));
    }
    match state(table, Some(record), record.serial) {
        State::Up => {
            let current = node.and_then(|node| node.revision) >= Some(record.assignment.revision);
            if current { Reach::Groups } else { Reach::Alone }
        }
        State::Late => Reach::Alone,
        State::Down if node.is_some_and(|node| table.may_be_reconnecting(node)) => Reach::Alone,
        State::Down => {
            let seen = node.and_then(|node| node.last_seen).or(record.last_seen);
            Reach::Down(match seen {
                Some(seen) => format!("last seen {} ago", ago(seen, now)),
                None => "it is not connected".to_owned(),
            })
        }
        // When a node was heard is stored now and then only: a broker that was
        // killed soon after takes nodes for new that were there.
        State::Never if table.has_just_begun() && node.is_none_or(|node| !node.is_gone()) => {
            Reach::Alone
        }
        State::Never => Reach::Down("it has never been seen".to_owned()),
    }
}

/// A time that has passed, as people say it: `4 min`.
fn ago(then: Timestamp, now: Timestamp) -> String {
    let secs = muster_protocol::units::elapsed(then, now).as_secs();
    match secs {
        0..=119 => format!("{secs} s"),
        120..=7_199 => format!("{} min", secs / 60),
        7_200..=172_799 => format!("{} h", secs / 3_600),
        _ => format!("{} d", secs / 86_400),
    }
}

#[cfg(test)]
mod tests;
