//! Nodes that say they are of this cluster, and of which nothing is known:
//! as after a restore, those that enrolled after the backup.

use std::collections::HashSet;
use std::sync::PoisonError;

use muster_protocol::ids::Serial;

use super::Inventory;

/// So many are told of, each once: anybody can say a number.
const MOST_TOLD: usize = 256;

/// Why a serial is not in the snapshot.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Absent {
    /// It was removed or replaced.
    Removed,
    /// It never was, as far as this broker knows.
    Unknown,
}

/// Of whom has been told.
pub(super) type Told = std::sync::Mutex<HashSet<Serial>>;

impl Inventory {
    /// A node that is not in the snapshot asks to be let in. The first time
    /// an unknown one does, it is an event.
    pub(crate) async fn knock(&self, serial: Serial) -> Absent {
        let Some(kept) = &self.0.kept else {
            return Absent::Unknown;
        };
        if kept.index.lock().await.revisions.contains_key(&serial) {
            return Absent::Removed;
        }
        let fresh = {
            let mut told = self.0.told.lock().unwrap_or_else(PoisonError::into_inner);
            told.len() < MOST_TOLD && told.insert(serial)
        };
        if fresh {
            let text = format!(
                "a machine says that it is node {serial}, which is not known here; if this cluster \
                 was restored from a backup, the node enrolled after that and must enrol again"
            );
            kept.events
                .emit("node.unknown", &serial.to_string(), text)
                .await;
        }
        Absent::Unknown
    }
}
