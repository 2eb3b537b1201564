//! Everything about chat that the rest of the broker needs.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::outbox::Outbox;
use super::outputs::Ran;
use super::spoken::{Spoken, SpokenError};
use crate::events::Events;
use crate::events::place::Places;
use crate::hooks::Held;
use crate::lease::Lease;
use crate::routes::Routes;

/// Why chat cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// What is to be said.
    #[error(transparent)]
    Spoken(#[from] SpokenError),
}

/// What it is made of.
#[derive(Debug)]
pub struct Parts {
    /// The store.
    pub js: async_nats::jetstream::Context,
    /// Whether this broker may write.
    pub lease: Lease,
    /// What happens.
    pub events: Events,
    /// Places in the events.
    pub places: Places,
    /// Which numbering they are of.
    pub numbering: String,
    /// What is declared.
    pub held: Held,
    /// The routes, for what is counted of them.
    pub routes: Routes,
}

/// See the module. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Chat(pub(super) Arc<Inner>);

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) spoken: Spoken,
    pub(super) events: Events,
    pub(super) places: Places,
    pub(super) held: Held,
    pub(super) routes: Routes,
}

impl Chat {
    /// Reads what is stored.
    ///
    /// # Errors
    /// [`ChatError`].
    pub async fn open(parts: Parts) -> Result<Self, ChatError> {
        let Parts {
            js,
            lease,
            events,
            places,
            numbering,
            held,
            routes,
        } = parts;
        let spoken = Spoken::open(js, lease, &places, numbering).await?;
        Ok(Self(Arc::new(Inner {
            spoken,
            events,
            places,
            held,
            routes,
        })))
    }

    /// What is to be said.
    #[must_use]
    pub fn spoken(&self) -> &Spoken {
        &self.0.spoken
    }

    /// Says what is to be said of every event, until `cancel`.
    /// `ran` knows what runs came to.
    pub async fn keep(self, ran: Arc<dyn Ran>, cancel: CancellationToken) {
        let work = async {
            Outbox::begin(self, ran).await.work().await;
        };
        cancel.run_until_cancelled(Box::pin(work)).await;
    }
}
