//! Telling hypervisors what they are to hold, until each has said that it
//! does.

use std::collections::BTreeSet;
use std::time::Duration;

use muster_protocol::api::{InForce, Presence as Is};
use muster_protocol::envelope::Ask;
use muster_protocol::firewall::Holding;
use muster_protocol::ids::Serial;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

use super::{CAPABILITY, Groups};
use crate::bus::{Bus, Order, SendError};
use crate::inventory::NodeRecord;
use crate::vm::is_hypervisor;

/// How long a change waits until it is in force everywhere.
const WITHIN: Duration = Duration::from_secs(2);
/// How often it is looked whether there is something to send, at least.
const LOOK: Duration = Duration::from_secs(1);

impl Groups {
    /// Takes up what has become of machines' records.
    pub(crate) fn refresh(&self) {
        let records = &self.0.records;
        self.0.desk.change(|model| {
            for name in records.touched() {
                let held = records.get(&name);
                model.machine(&name, held.as_ref().map(|held| &*held.vm));
            }
        });
    }

    /// Whether a hypervisor's agent says that it can keep groups; none while
    /// it has said nothing.
    #[must_use]
    pub fn is_able(&self, serial: Serial) -> Option<bool> {
        let agent = self.0.inventory.agent(serial)?;
        Some(agent.capabilities.iter().any(|one| one == CAPABILITY))
    }

    fn is_there(&self, node: &NodeRecord) -> bool {
        let state = self.0.control.presence(node.serial).state;
        node.is_active() && matches!(state, Is::Up | Is::Late)
    }

    /// The newest change of what hypervisors are to hold.
    pub(crate) fn generation(&self) -> u64 {
        self.0.desk.generation()
    }

    /// Takes up what has become of machines, and says where what has changed
    /// after that change is in force; waits a moment for it.
    pub(crate) async fn settled_after(&self, before: u64) -> InForce {
        self.refresh();
        self.settled(self.0.desk.concerned(before)).await
    }

    /// Whether what a hypervisor is to hold is in force there; waits a moment
    /// for it.
    pub(crate) async fn on(&self, serial: Serial) -> InForce {
        let all = self.0.desk.concerned(0);
        let its = all.into_iter().filter(|(other, _)| *other == serial);
        self.settled(its.collect()).await
    }

    /// Where changes are in force; waits a moment for it. Of hypervisors that
    /// cannot keep groups nobody waits.
    pub(super) async fn settled(&self, concerned: Vec<(Serial, u64)>) -> InForce {
        let snapshot = self.0.inventory.snapshot();
        let nodes = concerned.into_iter().filter_map(|(serial, generation)| {
            let able = self.is_able(serial) == Some(true);
            let node = snapshot.get(serial).filter(|_| able)?;
            Some((node.clone(), generation))
        });
        let nodes: Vec<_> = nodes.collect();
        let mut heard = self.0.desk.heard_something();
        let until = Instant::now() + WITHIN;
        loop {
            heard.mark_unchanged();
            let missing: Vec<_> = nodes
                .iter()
                .filter(|(node, at)| !self.0.desk.is_in_force(node.serial, *at))
                .collect();
            // Who is away learns it when it comes.
            let waits = missing.iter().any(|(node, _)| self.is_there(node));
            let more = waits && matches!(timeout_at(until, heard.changed()).await, Ok(Ok(())));
            if !more {
                let count = |len| u32::try_from(len).unwrap_or(u32::MAX);
                let names = missing.iter().map(|(node, _)| node.assignment.name.clone());
                return InForce {
                    of: count(nodes.len()),
                    on: count(nodes.len() - missing.len()),
                    waiting: names.collect(),
                };
            }
        }
    }

    /// Tells the hypervisors of every change until `cancel`.
    pub(crate) async fn keep(self, bus: Bus, cancel: CancellationToken) {
        let mut records = self.0.records.changes();
        loop {
            records.mark_unchanged();
            self.refresh();
            let wait = match self.tell(&bus).await {
                Ok(wait) => wait.unwrap_or(LOOK).min(LOOK),
                Err(error) => {
                    tracing::debug!(%error, "hypervisors could not be told of groups yet");
                    LOOK
                }
            };
            tokio::select! {
                () = cancel.cancelled() => return,
                () = sleep(wait.max(Duration::from_millis(1))) => {}
                () = self.0.desk.stirred() => {}
                changed = records.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
            }
        }
    }

    async fn tell(&self, bus: &Bus) -> Result<Option<Duration>, SendError> {
        let epoch = bus.lease().epoch().ok_or(SendError::NotActive)?;
        let snapshot = self.0.inventory.snapshot();
        let (mut nodes, mut there) = (BTreeSet::new(), Vec::new());
        for node in snapshot.iter() {
            nodes.insert(node.serial);
            let able = is_hypervisor(node) && self.is_able(node.serial) == Some(true);
            if able && self.is_there(node) {
                there.push(node.serial);
            }
        }
        self.0.desk.tidy(&nodes);
        let (updates, wait) = self.0.desk.send(&there, epoch);
        if updates.is_empty() {
            return Ok(wait);
        }
        for (serial, update) in updates {
            let ask = Ask::Groups(Box::new(update));
            let order = Order::own([serial].into_iter().collect(), ask);
            bus.to_node(serial, &bus.sign(&order)?).await?;
        }
        // On the wire, not only in a buffer.
        let flushed = bus.client().flush().await;
        flushed.map_err(|e| SendError::Closed(e.to_string()))?;
        Ok(wait)
    }

    /// What a hypervisor is to hold.
    #[must_use]
    pub fn holding(&self, serial: Serial) -> Holding {
        self.0.desk.holding(serial)
    }

    /// What a hypervisor with all machines would hold.
    #[must_use]
    pub fn everything(&self) -> Holding {
        self.refresh();
        self.0.desk.everything()
    }
}
