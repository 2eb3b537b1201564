//! What happened in the cluster: alarms, node changes, keys.

use std::sync::Arc;

use muster_protocol::api::ClusterEvent;

/// Why the events could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EventsError {}

/// The stream of cluster events. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Events(Arc<()>);

impl Events {
    /// Stores an event. An event that cannot be stored is logged: whatever it
    /// tells of has happened.
    pub async fn emit(&self, kind: &str, subject: &str, text: impl Into<String>) {
        tracing::info!(kind, subject, text = text.into(), "event");
    }

    /// Events after the position `after`, oldest first, at most `limit`.
    ///
    /// # Errors
    /// [`EventsError`].
    pub async fn list(&self, after: u64, limit: usize) -> Result<Vec<ClusterEvent>, EventsError> {
        let _ = (after, limit);
        Ok(Vec::new())
    }

    /// Events that are only logged, for tests.
    #[must_use]
    pub fn log_only() -> Self {
        Self(Arc::new(()))
    }
}
