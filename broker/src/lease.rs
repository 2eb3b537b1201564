//! Which of several brokers is the active one.

use std::sync::Arc;

use tokio::sync::watch;

/// The right to write and to publish. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Lease(Arc<watch::Sender<Option<u64>>>);

impl Lease {
    /// The epoch of this broker's lease. `None`: it is not active now, and
    /// nothing may be published or written.
    #[must_use]
    pub fn epoch(&self) -> Option<u64> {
        *self.0.borrow()
    }

    /// A lease that is held for ever, for tests.
    #[must_use]
    pub fn fixed(epoch: u64) -> Self {
        Self(Arc::new(watch::Sender::new(Some(epoch))))
    }
}
