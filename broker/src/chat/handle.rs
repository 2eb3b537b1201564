//! Everything about chat that the rest of the broker needs.

use std::sync::Arc;

use async_nats::jetstream::Context;
use tokio_util::sync::CancellationToken;

use super::alarms::Alarms;
use super::alarms::table::Table;
use super::builds::results::Results;
use super::builds::{Asked, Builds};
use super::outbox::Outbox;
use super::outputs::Ran;
use super::spoken::{Spoken, SpokenError};
use crate::events::Events;
use crate::events::place::Places;
use crate::hooks::Held;
use crate::lease::Lease;
use crate::routes::Routes;
use crate::store::kv::{BucketConfig, Kv, KvError, ensure_bucket};

/// What is remembered, beside what is to be said.
const BUCKET: &str = "muster_chat";

/// Why chat cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// What is to be said.
    #[error(transparent)]
    Spoken(#[from] SpokenError),
    /// What is remembered.
    #[error("what is remembered for chat cannot be read: {0}")]
    Store(#[from] KvError),
}

/// What is remembered: one bucket, with values of several kinds.
#[derive(Clone, Debug)]
pub struct Stores {
    pub(super) alarms: Kv<Table>,
    pub(super) results: Kv<Results>,
    pub(super) builds: Kv<Asked>,
}

impl Stores {
    /// Makes the bucket where there is none.
    ///
    /// # Errors
    /// [`KvError`].
    pub async fn ensure(js: &Context) -> Result<Self, KvError> {
        Ok(Self {
            alarms: bucket(js).await?,
            results: bucket(js).await?,
            builds: bucket(js).await?,
        })
    }
}

/// Boxed: it is opened deep in the start of a broker, where a future of its
/// size would not fit the stack of a test.
async fn bucket<T>(js: &Context) -> Result<Kv<T>, KvError>
where
    T: serde::Serialize + serde::de::DeserializeOwned,
{
    Box::pin(ensure_bucket(js, BucketConfig::new(BUCKET))).await
}

/// What it is made of.
#[derive(Debug)]
pub struct Parts {
    /// The store.
    pub js: Context,
    /// What is remembered.
    pub stores: Stores,
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
    pub(super) alarms: Alarms,
    pub(super) builds: Builds,
    pub(super) stores: Stores,
    pub(super) lease: Lease,
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
            stores,
            lease,
            events,
            places,
            numbering,
            held,
            routes,
        } = parts;
        let alarms = Alarms::open(
            stores.alarms.clone(),
            lease.clone(),
            events.clone(),
            numbering.clone(),
        );
        let alarms = Box::pin(alarms).await?;
        let builds = Builds::open(stores.builds.clone(), lease.clone(), held.clone());
        let builds = Box::pin(builds).await?;
        let spoken = Box::pin(Spoken::open(js, lease.clone(), &places, numbering)).await?;
        Ok(Self(Arc::new(Inner {
            spoken,
            alarms,
            builds,
            stores,
            lease,
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

    /// Where a run is to be seen: a URL, or what to type.
    #[must_use]
    pub fn run_link(&self, run: &str, short: &str) -> String {
        self.0.held.get().chat.link_of(run, short)
    }

    /// The alarms.
    #[must_use]
    pub fn alarms(&self) -> &Alarms {
        &self.0.alarms
    }

    /// Builds that can be asked for.
    #[must_use]
    pub fn builds(&self) -> &Builds {
        &self.0.builds
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
