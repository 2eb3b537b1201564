//! What was heard of each node, and when: pure. Time is passed in.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use muster_protocol::api::Presence as State;
use muster_protocol::ids::{InstanceId, Serial};
use muster_protocol::seal::SealKey;
use muster_protocol::units::Timestamp;

/// Beats that may be missing, in tenths, before a node is late …
const LATE_AFTER: u32 = 25;
/// … and down.
const DOWN_AFTER: u32 = 60;
/// What was on its way when a node was replaced or went may still arrive.
const IN_FLIGHT: Duration = Duration::from_secs(3);
/// The same, after the server said that the last connection has ended.
pub(super) const AFTER_END: Duration = Duration::from_millis(500);
/// A node that renews its credentials is back within this time.
const RECONNECT: Duration = Duration::from_secs(2);
/// A flood is shown for so long after its last message.
const FLOOD_SHOWN: Duration = Duration::from_secs(60);
/// Old instances that are remembered.
const REMEMBERED: usize = 8;

/// That a node was heard.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heard {
    pub(super) instance: InstanceId,
    /// By the broker's clock.
    pub(super) at: Timestamp,
    /// By the node's clock.
    pub(super) time: Option<Timestamp>,
    pub(super) revision: Option<u64>,
}

/// Another instance of a node that speaks, which was heard a moment ago. If
/// both answer when they are asked, there are two machines.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Rival(pub(crate) InstanceId);

/// What is known of a node.
#[derive(Clone, Debug, Default)]
pub(super) struct Node {
    pub(super) instance: Option<InstanceId>,
    /// On the table's clock.
    heard: Option<Duration>,
    pub(super) last_seen: Option<Timestamp>,
    pub(super) revision: Option<u64>,
    pub(super) version: Option<String>,
    /// To what secrets for `instance` are sealed.
    pub(super) seal: Option<SealKey>,
    /// The node's clock minus the broker's.
    pub(super) skew_ms: Option<i64>,
    pub(super) refused: BTreeMap<String, u64>,
    pub(super) incompatible: Option<u32>,
    pub(super) nonsense: u64,
    pub(super) last_nonsense: String,
    /// It said goodbye, or the server says that it has no connection.
    gone: Option<Duration>,
    /// The server says that it has a connection.
    connected: bool,
    /// It said goodbye: it will not be back in a moment.
    said_bye: bool,
    /// The instance that was heard last has no connection any more: another
    /// one is no rival.
    ended: bool,
    flooded: Option<Duration>,
    /// Instances that were replaced, and when.
    old: Vec<(InstanceId, Duration)>,
}

impl Node {
    /// Whether it said goodbye, or the server says that it has no connection.
    pub(super) fn is_gone(&self) -> bool {
        self.gone.is_some()
    }
}

/// Everything that was heard.
#[derive(Debug)]
pub(super) struct Table {
    nodes: HashMap<Serial, Node>,
    beat: Duration,
    /// The clock: it stands still while the broker cannot hear.
    now: Duration,
    hearing: bool,
    looked: Instant,
    revision_changed: bool,
}

impl Table {
    pub(super) fn new(beat: Duration, now: Instant) -> Self {
        Self {
            nodes: HashMap::new(),
            beat,
            now: Duration::ZERO,
            hearing: true,
            looked: now,
            revision_changed: false,
        }
    }

    /// Moves the clock.
    pub(super) fn advance(&mut self, now: Instant) {
        if self.hearing {
            self.now += now.saturating_duration_since(self.looked);
        }
        self.looked = now;
    }

    /// Whether the broker hears its nodes now.
    pub(super) fn hearing(&mut self, hearing: bool) {
        self.hearing = hearing;
    }

    pub(super) fn get(&self, serial: Serial) -> Option<&Node> {
        self.nodes.get(&serial)
    }

    pub(super) fn get_mut(&mut self, serial: Serial) -> Option<&mut Node> {
        self.nodes.get_mut(&serial)
    }

    pub(super) fn node(&mut self, serial: Serial) -> &mut Node {
        self.nodes.entry(serial).or_default()
    }

    pub(super) fn forget(&mut self, serial: Serial) {
        self.nodes.remove(&serial);
    }

    fn late_after(&self) -> Duration {
        self.beat * LATE_AFTER / 10
    }

    fn down_after(&self) -> Duration {
        self.beat * DOWN_AFTER / 10
    }

    /// Whether the node is there; `before` says whether it was ever heard by
    /// an earlier broker.
    pub(super) fn state(&self, serial: Serial, before: bool) -> State {
        let node = self.nodes.get(&serial);
        let heard = node.and_then(|node| node.heard);
        if node.is_some_and(|node| node.gone.is_some()) {
            return if before || heard.is_some() {
                State::Down
            } else {
                State::Never
            };
        }
        match heard {
            Some(heard) => {
                let age = self.now.saturating_sub(heard);
                if age <= self.late_after() && !node.is_some_and(|node| node.ended) {
                    State::Up
                } else if age <= self.down_after() {
                    State::Late
                } else {
                    State::Down
                }
            }
            // This broker has just begun to listen.
            None if before => {
                if self.now <= self.late_after() {
                    State::Late
                } else {
                    State::Down
                }
            }
            None => State::Never,
        }
    }

    /// Whether this broker has listened for so short a time that a node that
    /// is there may not have been heard.
    pub(super) fn has_just_begun(&self) -> bool {
        self.now <= self.beat
    }

    /// Whether its last connection ended this moment, without a goodbye: it
    /// may only be taking up new credentials.
    pub(super) fn may_be_reconnecting(&self, node: &Node) -> bool {
        !node.said_bye
            && node
                .gone
                .is_some_and(|gone| self.now.saturating_sub(gone) < RECONNECT)
            && node
                .heard
                .is_some_and(|heard| self.now.saturating_sub(heard) <= self.down_after())
    }

    /// A node was heard. When it is not the instance that was heard before,
    /// nothing changes but what is returned.
    pub(super) fn heard(&mut self, serial: Serial, heard: &Heard) -> Option<Rival> {
        if let Some(rival) = self.rival(serial, heard.instance) {
            return Some(rival);
        }
        let now = self.now;
        let late = self
            .nodes
            .get(&serial)
            .is_some_and(|node| self.on_its_way(node, heard.instance));
        if late {
            return None;
        }
        let node = self.nodes.entry(serial).or_default();
        if node
            .gone
            .is_some_and(|gone| now.saturating_sub(gone) < AFTER_END)
        {
            return None;
        }
        node.gone = None;
        node.said_bye = false;
        node.ended = false;
        node.instance = Some(heard.instance);
        node.heard = Some(now);
        node.last_seen = Some(heard.at);
        if let Some(time) = heard.time {
            let skew = time.duration_since(heard.at).as_millis();
            node.skew_ms =
                Some(i64::try_from(skew).unwrap_or(if skew < 0 { i64::MIN } else { i64::MAX }));
        }
        if heard.revision.is_some() && node.revision != heard.revision {
            node.revision = heard.revision;
            self.revision_changed = true;
        }
        None
    }

    pub(super) fn take_revision_change(&mut self) -> bool {
        std::mem::take(&mut self.revision_changed)
    }

    /// Another instance of the node that may be alive.
    pub(super) fn rival(&self, serial: Serial, instance: InstanceId) -> Option<Rival> {
        let node = self.nodes.get(&serial)?;
        let other = node.instance.filter(|other| *other != instance)?;
        let fresh = node
            .heard
            .is_some_and(|heard| self.now.saturating_sub(heard) <= self.down_after());
        let there = fresh && node.gone.is_none() && !node.ended;
        (there && !self.on_its_way(node, instance)).then_some(Rival(other))
    }

    /// Whether what this instance says may have been on its way when another
    /// one took its place.
    fn on_its_way(&self, node: &Node, instance: InstanceId) -> bool {
        let replaced = node.old.iter().find(|(old, _)| *old == instance);
        replaced.is_some_and(|(_, at)| self.now.saturating_sub(*at) <= IN_FLIGHT)
    }

    pub(super) fn welcomed(
        &mut self,
        serial: Serial,
        heard: &Heard,
        version: &str,
        seal: Option<SealKey>,
    ) {
        let now = self.now;
        let node = self.nodes.entry(serial).or_default();
        if let Some(other) = node.instance.filter(|other| *other != heard.instance) {
            node.old.retain(|(old, _)| *old != other);
            node.old.push((other, now));
            let too_many = node.old.len().saturating_sub(REMEMBERED);
            node.old.drain(..too_many);
            node.refused.clear();
        }
        node.old.retain(|(old, _)| *old != heard.instance);
        node.instance = Some(heard.instance);
        node.gone = None;
        node.incompatible = None;
        node.version = Some(muster_protocol::text::printable(version, 60));
        node.seal = seal;
        let rival = self.heard(serial, heard);
        debug_assert_eq!(rival, None);
    }

    pub(super) fn superseded(&mut self, serial: Serial, instance: InstanceId, by: InstanceId) {
        if let Some(node) = self.nodes.get_mut(&serial)
            && node.instance == Some(instance)
        {
            node.ended = true;
            node.old.retain(|(old, _)| *old != by);
        }
    }

    pub(super) fn bye(&mut self, serial: Serial, instance: InstanceId) {
        let now = self.now;
        if let Some(node) = self.nodes.get_mut(&serial)
            && node.instance == Some(instance)
        {
            node.gone = Some(now);
            node.said_bye = true;
            node.ended = true;
        }
    }

    pub(super) fn disconnected(&mut self, serial: Serial) {
        let now = self.now;
        let node = self.node(serial);
        node.connected = false;
        node.ended = true;
        node.gone.get_or_insert(now);
    }

    pub(super) fn connected(&mut self, serial: Serial) {
        let node = self.node(serial);
        if !node.connected {
            node.connected = true;
            node.gone = None;
        }
    }

    pub(super) fn flooded(&mut self, serial: Serial) -> bool {
        let now = self.now;
        let news = !self
            .nodes
            .get(&serial)
            .is_some_and(|node| self.is_flooding(node));
        self.node(serial).flooded = Some(now);
        news
    }

    pub(super) fn is_flooding(&self, node: &Node) -> bool {
        node.flooded
            .is_some_and(|at| self.now.saturating_sub(at) < FLOOD_SHOWN)
    }

    pub(super) fn seen_since(&self, since: Timestamp) -> Vec<(Serial, Timestamp)> {
        self.nodes
            .iter()
            .filter_map(|(serial, node)| {
                Some((*serial, node.last_seen.filter(|seen| *seen >= since)?))
            })
            .collect()
    }
}
