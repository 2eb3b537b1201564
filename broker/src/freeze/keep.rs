//! Telling the nodes, until each connected one has it on its disk.

use std::time::Duration;

use muster_protocol::envelope::Ask;
use muster_protocol::ids::Serial;
use muster_protocol::subject;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::Freezer;
use crate::bus::{Bus, Order, SendError};
use crate::inventory::Inventory;
use crate::presence::{Presence, Reach};

/// How often those that have not said anything are told again.
const AGAIN: Duration = Duration::from_secs(1);
/// How often it is looked whether everybody has it, when nothing has changed.
const LOOK: Duration = Duration::from_secs(5);
/// More than that are told by one message to all.
const MANY: usize = 64;

impl Freezer {
    /// Tells the nodes of every change until `cancel`, and of what was in
    /// force before.
    pub(crate) async fn keep(
        self,
        bus: Bus,
        inventory: Inventory,
        presence: Presence,
        cancel: CancellationToken,
    ) {
        let mut changes = self.changes();
        let mut began = Instant::now();
        // A broker that takes over does not know who has it.
        let mut whole = changes.borrow_and_update().revision > 0;
        loop {
            let missing = self.missing(&inventory, &presence);
            let told = if whole {
                self.tell_all(&bus, &inventory).await
            } else if missing.is_empty() {
                Ok(())
            } else {
                self.tell(&bus, &inventory, &missing).await
            };
            match told {
                Ok(()) => whole = false,
                Err(error) => {
                    tracing::warn!(%error, "the nodes could not be told of the freeze yet");
                }
            }
            let wait = match (missing.is_empty() && !whole, began.elapsed() < LOOK * 6) {
                (true, _) => LOOK,
                (false, true) => AGAIN,
                (false, false) => LOOK,
            };
            tokio::select! {
                () = cancel.cancelled() => return,
                () = sleep(wait) => {}
                changed = changes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    whole = true;
                    began = Instant::now();
                }
            }
        }
    }

    /// Connected nodes that can be told, and have not said that they were.
    fn missing(&self, inventory: &Inventory, presence: &Presence) -> Vec<Serial> {
        if self.0.now.borrow().revision == 0 {
            return Vec::new();
        }
        let snapshot = inventory.snapshot();
        let all: Vec<Serial> = snapshot.iter().map(|node| node.serial).collect();
        let reach = presence.reach(&all);
        let there = all.iter().zip(reach).filter(|(serial, reach)| {
            matches!(reach, Reach::Groups | Reach::Alone)
                && self.is_able(**serial)
                && !self.has(**serial)
        });
        there.map(|(serial, _)| *serial).collect()
    }

    async fn tell_all(&self, bus: &Bus, inventory: &Inventory) -> Result<(), SendError> {
        let snapshot = inventory.snapshot();
        let all: Vec<Serial> = snapshot.iter().map(|node| node.serial).collect();
        if all.is_empty() {
            return Ok(());
        }
        self.send(bus, all, true).await
    }

    async fn tell(
        &self,
        bus: &Bus,
        inventory: &Inventory,
        missing: &[Serial],
    ) -> Result<(), SendError> {
        if missing.len() > MANY {
            return self.tell_all(bus, inventory).await;
        }
        self.send(bus, missing.to_vec(), false).await
    }

    async fn send(&self, bus: &Bus, nodes: Vec<Serial>, group: bool) -> Result<(), SendError> {
        let Some(freeze) = self.signed() else {
            return Ok(());
        };
        let order = Order::own(nodes.iter().copied().collect(), Ask::Freeze { freeze });
        let signed = bus.sign(&order)?;
        if group {
            bus.to_group(subject::ALL.to_owned(), &signed).await?;
        } else {
            for node in nodes {
                bus.to_node(node, &signed).await?;
            }
        }
        // On the wire, not only in a buffer.
        bus.client()
            .flush()
            .await
            .map_err(|e| SendError::Closed(e.to_string()))
    }
}
