//! What the NATS server says about the nodes' connections: it sees one end
//! before any heartbeat is missed, and no node can forge it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use muster_protocol::ids::Serial;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::Presence;
use crate::inventory::{Inventory, Snapshot};
use crate::nats::admin::{AdminError, ConnChange, ConnEvent, ConnUpdate, SystemClient};
use crate::nats::keys::AccountKey;

/// How long nodes have to come back after this broker could not see them: after
/// a restart of the server everybody is on the way.
const COME_BACK: Duration = Duration::from_secs(10);
/// Pause after a failure.
const PAUSE: Duration = Duration::from_secs(2);

/// Follows the connections of the account until it is cancelled.
pub(crate) async fn follow(
    presence: Presence,
    inventory: Inventory,
    system: SystemClient,
    account: AccountKey,
    cancel: CancellationToken,
) {
    let mut watch = Watch {
        presence,
        inventory,
        live: HashMap::new(),
        serials: None,
    };
    let followed = async {
        loop {
            match watch.follow(&system, &account).await {
                Ok(()) => tracing::warn!("the NATS server's connection events ended; asking again"),
                Err(error) => tracing::warn!(%error, "cannot follow the nodes' connections"),
            }
            sleep(PAUSE).await;
        }
    };
    tokio::select! {
        () = cancel.cancelled() => {}
        () = followed => {}
    }
}

/// One connection: the server's id and its number there.
type Connection = (String, u64);

struct Watch {
    presence: Presence,
    inventory: Inventory,
    /// Open connections by user key.
    live: HashMap<String, HashSet<Connection>>,
    /// Nodes by user key, of one snapshot.
    serials: Option<(u64, HashMap<String, Serial>)>,
}

impl Watch {
    async fn follow(
        &mut self,
        system: &SystemClient,
        account: &AccountKey,
    ) -> Result<(), AdminError> {
        let mut updates = system.connection_events(account).await?;
        // When those who have not come back are gone.
        let mut settle: Option<Instant> = None;
        loop {
            let settled = async {
                match settle {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                update = updates.next() => match update {
                    None => return Ok(()),
                    Some(ConnUpdate::Event(event)) => self.event(event),
                    Some(ConnUpdate::Resync) => {
                        self.live.clear();
                        for open in system.live_connections(account).await? {
                            if let Some(key) = open.user_key {
                                let connections = self.live.entry(key.to_string()).or_default();
                                connections.insert((open.server_id, open.connection));
                            }
                        }
                        for serial in self.live_nodes() {
                            self.presence.connected(serial);
                        }
                        settle = Some(Instant::now() + COME_BACK);
                    }
                },
                () = settled => {
                    settle = None;
                    let live = self.live_nodes();
                    self.presence.only_connected(&|serial| live.contains(&serial));
                }
            }
        }
    }

    fn live_nodes(&mut self) -> HashSet<Serial> {
        let keys: Vec<String> = self.live.keys().cloned().collect();
        keys.iter().filter_map(|key| self.serial(key)).collect()
    }

    fn event(&mut self, event: ConnEvent) {
        let Some(key) = event.user_key.map(|key| key.to_string()) else {
            return;
        };
        let connection = (event.server_id, event.connection);
        match event.change {
            ConnChange::Connected => {
                self.live.entry(key.clone()).or_default().insert(connection);
                if let Some(serial) = self.serial(&key) {
                    self.presence.connected(serial);
                }
            }
            ConnChange::Disconnected { reason } => {
                let last = match self.live.get_mut(&key) {
                    Some(open) => {
                        open.remove(&connection);
                        open.is_empty()
                    }
                    None => true,
                };
                if last {
                    self.live.remove(&key);
                    if let Some(serial) = self.serial(&key) {
                        tracing::debug!(node = %serial, reason, "the last connection of a node ended");
                        self.presence.disconnected(serial);
                    }
                }
            }
        }
    }

    fn serial(&mut self, key: &str) -> Option<Serial> {
        let snapshot: Arc<Snapshot> = self.inventory.snapshot();
        let revision = snapshot.revision();
        if self.serials.as_ref().is_none_or(|(of, _)| *of != revision) {
            let serials = snapshot
                .iter()
                .map(|r| (r.nats_key.clone(), r.serial))
                .collect();
            self.serials = Some((revision, serials));
        }
        self.serials
            .as_ref()
            .and_then(|(_, serials)| serials.get(key).copied())
    }
}
