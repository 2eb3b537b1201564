//! What the inventory and the authority ask of the nodes.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use muster_protocol::envelope::Ask;
use muster_protocol::ids::Serial;
use muster_protocol::keys::SignedText;
use muster_protocol::subject;

use super::{Bus, Order};
use crate::inventory::{Inventory, NodeControl, PresenceView};
use crate::presence::Presence;

/// The bus as the inventory and the authority see it.
pub(super) struct Control {
    pub(super) bus: Bus,
    pub(super) presence: Presence,
    pub(super) inventory: Inventory,
}

impl NodeControl for Control {
    fn refresh(&self, node: Serial, revision: u64) -> BoxFuture<'_, ()> {
        async move {
            let order = Order::own([node].into_iter().collect(), Ask::Refresh { revision });
            let sent = match self.bus.sign(&order) {
                Ok(signed) => self.bus.to_node(node, &signed).await,
                Err(error) => Err(error),
            };
            if let Err(error) = sent {
                tracing::warn!(%node, revision, %error, "cannot tell a node of its new assignment");
            }
        }
        .boxed()
    }

    fn push_keys(&self, list: SignedText) -> BoxFuture<'_, ()> {
        async move {
            let snapshot = self.inventory.snapshot();
            let set = snapshot.iter().map(|node| node.serial).collect();
            let order = Order::own(set, Ask::Keys { list });
            let sent = match self.bus.sign(&order) {
                Ok(signed) => self.bus.to_group(subject::ALL.to_owned(), &signed).await,
                Err(error) => Err(error),
            };
            if let Err(error) = sent {
                tracing::warn!(%error, "cannot give the nodes the new key list; they get it when they say hello");
            }
            // On the wire, not only in a buffer.
            if let Err(error) = self.bus.client().flush().await {
                tracing::warn!(%error, "cannot flush the new key list to the nodes");
            }
        }
        .boxed()
    }

    fn wait_revision(&self, node: Serial, revision: u64, within: Duration) -> BoxFuture<'_, bool> {
        self.presence.wait_revision(node, revision, within).boxed()
    }

    fn forget(&self, node: Serial) {
        self.presence.forget(node);
    }

    fn presence(&self, node: Serial) -> PresenceView {
        self.presence.view(node)
    }

    fn presences(&self) -> HashMap<Serial, PresenceView> {
        self.presence.views()
    }
}
