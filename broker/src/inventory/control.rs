//! What the inventory and the authority ask of whoever talks to the nodes.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::future::BoxFuture;
use muster_protocol::api::{Condition, Presence};
use muster_protocol::ids::Serial;
use muster_protocol::keys::SignedText;
use muster_protocol::units::Timestamp;

/// What is known of a node's presence now. Nothing of it is stored.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PresenceView {
    /// Whether it is there.
    pub state: Presence,
    /// When it was last heard; `None` when this broker never heard it.
    pub last_seen: Option<Timestamp>,
    /// Version of its agent, from its `Hello`.
    pub version: Option<String>,
    /// The revision of the assignment that it says it holds.
    pub revision: Option<u64>,
    /// What an operator should look at.
    pub conditions: Vec<Condition>,
}

impl PresenceView {
    /// Of a node that this broker has not heard.
    #[must_use]
    pub fn never() -> Self {
        Self {
            state: Presence::Never,
            last_seen: None,
            version: None,
            revision: None,
            conditions: Vec::new(),
        }
    }
}

/// The connection to the nodes, as far as the inventory and the authority
/// need it. The bus implements it.
pub trait NodeControl: Send + Sync {
    /// Tells a node, signed, that its assignment has this revision now. Sent
    /// once, not acknowledged: see [`NodeControl::wait_revision`].
    fn refresh(&self, node: Serial, revision: u64) -> BoxFuture<'_, ()>;

    /// Gives all nodes that are there a new key list, and returns when it is
    /// on the wire.
    fn push_keys(&self, list: SignedText) -> BoxFuture<'_, ()>;

    /// Waits until the node itself says that it holds this revision or a
    /// later one; `false` when it did not within that time.
    fn wait_revision(&self, node: Serial, revision: u64, within: Duration) -> BoxFuture<'_, bool>;

    /// Forgets what is known of a node that was removed.
    fn forget(&self, node: Serial);

    /// What is known of one node.
    fn presence(&self, node: Serial) -> PresenceView;

    /// What is known of all nodes that were ever heard.
    fn presences(&self) -> HashMap<Serial, PresenceView>;
}

/// No way to any node: every node is as if it had never been heard. For tests
/// and for a broker that only administers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Detached;

impl NodeControl for Detached {
    fn refresh(&self, _node: Serial, _revision: u64) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }

    fn push_keys(&self, _list: SignedText) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }

    fn wait_revision(
        &self,
        _node: Serial,
        _revision: u64,
        _within: Duration,
    ) -> BoxFuture<'_, bool> {
        Box::pin(std::future::ready(false))
    }

    fn forget(&self, _node: Serial) {}

    fn presence(&self, _node: Serial) -> PresenceView {
        PresenceView::never()
    }

    fn presences(&self) -> HashMap<Serial, PresenceView> {
        HashMap::new()
    }
}
