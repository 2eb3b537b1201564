//! Bundles that this node lacks, from the broker. Nothing that comes is
//! believed before its hash is that of the signed request.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use muster_protocol::envelope::BundleHash;
use muster_protocol::text::printable;
use muster_protocol::wire::{BundleHead, BundleRequest};
use muster_scenarios::bundle::{Bundle, UnpackError};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{debug, warn};

use super::store::{BundleStore, Bundles, MAX_PACKED, StoreError};
use crate::bus::{Bus, SayError, Voice};
use crate::pace::Backoff;

/// How long one part may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often bytes of another hash are taken from the beginning again.
const WRONG: u32 = 3;

/// Why a bundle is not here.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Nobody to ask.
    #[error("this node does not have the scenario, and has no broker to ask for it")]
    Nobody,
    /// It did not come in time.
    #[error("the scenario did not come in time: {0}")]
    Late(String),
    /// The broker does not have it either.
    #[error("the broker did not give the scenario: {0}")]
    None(String),
    /// Other bytes came.
    #[error("what came is not the scenario that was signed: {0}")]
    Wrong(UnpackError),
    /// It could not be kept.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Bundles on disk, and the broker for those that are not there. Cheap to
/// clone.
#[derive(Clone)]
pub struct Fetcher(Arc<Inner>);

struct Inner {
    store: BundleStore,
    /// Set once the agent has a bus.
    bus: OnceLock<Bus>,
    /// One comes at a time: whoever waits finds it there.
    one: Mutex<()>,
}

impl Fetcher {
    /// Over the bundles on disk, without anybody to ask yet.
    #[must_use]
    pub fn new(store: BundleStore) -> Self {
        Self(Arc::new(Inner {
            store,
            bus: OnceLock::new(),
            one: Mutex::new(()),
        }))
    }

    /// From now on the broker is asked for what is not there.
    pub fn ask(&self, bus: Bus) {
        // A second bus would be a second agent.
        let _ = self.0.bus.set(bus);
    }

    /// Whether it is not on disk here.
    #[must_use]
    pub fn lacks(&self, hash: BundleHash) -> bool {
        !self.0.store.may_have(hash)
    }

    /// Has the bundle come, if it is not there: asks again and again until
    /// then.
    ///
    /// # Errors
    /// [`FetchError`].
    pub async fn fetch(&self, hash: BundleHash, until: Instant) -> Result<(), FetchError> {
        let bus = self.0.bus.get().ok_or(FetchError::Nobody)?;
        let late = || FetchError::Late("others were fetched".to_owned());
        let _one = timeout_at(until, self.0.one.lock())
            .await
            .map_err(|_| late())?;
        if !self.lacks(hash) {
            return Ok(());
        }
        let bundle = coming(bus, hash, until).await?;
        let store = self.0.store.clone();
        let kept = tokio::task::spawn_blocking(move || store.put(&bundle)).await;
        kept.map_err(|e| FetchError::Late(e.to_string()))??;
        Ok(())
    }
}

async fn coming(bus: &Bus, hash: BundleHash, until: Instant) -> Result<Bundle, FetchError> {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(2));
    let mut have: Vec<u8> = Vec::new();
    let mut wrong = 0;
    let mut last = "the broker is away".to_owned();
    loop {
        let voice = match timeout_at(until, bus.welcomed()).await {
            Ok(voice) => voice,
            Err(_) => return Err(FetchError::Late(last)),
        };
        let from = have.len() as u64;
        let request = BundleRequest { bundle: hash, from };
        match timeout_at(until, part(&voice, &request)).await {
            Err(_) => return Err(FetchError::Late(last)),
            Ok(Ok(Part::Bytes { bytes, whole })) => {
                have.extend_from_slice(&bytes);
                backoff.reset();
                if (have.len() as u64) < whole {
                    continue;
                }
                match Bundle::unpack_as(&have, hash) {
                    Ok(bundle) => return Ok(bundle),
                    Err(error) => {
                        wrong += 1;
                        warn!(%hash, "a bundle that came is not what it was to be: {error}");
                        if wrong == WRONG {
                            return Err(FetchError::Wrong(error));
                        }
                        have.clear();
                    }
                }
            }
            Ok(Ok(Part::None(reason))) => return Err(FetchError::None(reason)),
            Ok(Ok(Part::Busy)) => last = "the broker gives out many at this time".to_owned(),
            Ok(Err(error)) => {
                debug!(%hash, "a bundle does not come: {error}");
                last = error.to_string();
            }
        }
        if timeout_at(until, sleep(backoff.wait())).await.is_err() {
            return Err(FetchError::Late(last));
        }
    }
}

/// What came.
enum Part {
    Bytes { bytes: Bytes, whole: u64 },
    Busy,
    None(String),
}

async fn part(voice: &Voice, request: &BundleRequest) -> Result<Part, SayError> {
    let (head, bytes) = voice.bundle(request, PATIENCE).await?;
    match head {
        BundleHead::Part { from, bytes: whole } => {
            let came = from.saturating_add(bytes.len() as u64);
            let fits =
                from == request.from && whole <= MAX_PACKED && came <= whole && !bytes.is_empty();
            if !fits {
                return Err(SayError::Other("a part that cannot be".to_owned()));
            }
            Ok(Part::Bytes { bytes, whole })
        }
        BundleHead::Busy => Ok(Part::Busy),
        BundleHead::None { reason } => Ok(Part::None(printable(&reason, 300))),
    }
}

impl Bundles for Fetcher {
    fn may_have(&self, hash: BundleHash) -> bool {
        self.0.bus.get().is_some() || self.0.store.may_have(hash)
    }

    fn get(&self, hash: BundleHash) -> BoxFuture<'_, Result<Bundle, StoreError>> {
        self.0.store.get(hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn without_a_broker_there_is_what_is_on_disk() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = BundleStore::new(dir.path().to_owned());
        let fetcher = Fetcher::new(store.clone());
        let bundle = Bundle::new("fn run(p) {}".to_owned(), Default::default()).expect("a bundle");
        let hash = bundle.hash();
        assert!(fetcher.lacks(hash) && !fetcher.may_have(hash));
        let until = Instant::now() + Duration::from_secs(60);
        let error = fetcher.fetch(hash, until).await.expect_err("nobody to ask");
        assert!(matches!(error, FetchError::Nobody), "{error}");
        store.put(&bundle).expect("kept");
        assert!(!fetcher.lacks(hash) && fetcher.may_have(hash));
        assert_eq!(fetcher.get(hash).await.expect("there"), bundle);
    }

    #[tokio::test(start_paused = true)]
    async fn a_broker_that_stays_away_is_waited_for_and_not_longer() {
        let dir = tempfile::tempdir().expect("a directory");
        let fetcher = Fetcher::new(BundleStore::new(dir.path().to_owned()));
        let (_voice, bus) = Bus::new();
        fetcher.ask(bus);
        let hash = BundleHash::of(b"x");
        assert!(fetcher.may_have(hash) && fetcher.lacks(hash));
        let until = Instant::now() + Duration::from_secs(15);
        let error = fetcher
            .fetch(hash, until)
            .await
            .expect_err("nobody is there");
        assert_eq!(
            error.to_string(),
            "the scenario did not come in time: the broker is away"
        );
        assert!(Instant::now() >= until);
    }
}
