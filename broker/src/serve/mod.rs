//! The broker's life: ordered start, one session for each time it is active,
//! ordered end.

mod listen;
mod session;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::Duration;

use async_nats::jetstream::Context;
use muster_protocol::api::Readiness;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use self::session::{Session, SessionError};
use crate::backup::import::{ImportError, import, is_pending};
use crate::config::Config;
use crate::http::Front;
use crate::inventory::{AccountValue, Buckets, SeenValue, SerialCounter, StoredFacts, StoredNode};
use crate::lease::{Lease, LeaseError, LeaseValue, Place};
use crate::link::{Link, LinkError};
use crate::nats::keys::NatsKeys;
use crate::state_dir::{Root, StateDir, StateDirError};
use crate::store::kv::{BucketConfig, Kv, KvError, ensure_bucket};
use crate::tls::{Ca, TlsError, install_provider};
use crate::twin::{self, PutBackError, Twin};

/// How long to wait before NATS is tried again.
const RETRY: Duration = Duration::from_millis(500);
/// A reason that lasts is logged again after so long.
const SAY_AGAIN: Duration = Duration::from_secs(30);

/// Why a broker ends, or does not begin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateDirError),
    /// The NATS keys.
    #[error(transparent)]
    Keys(#[from] crate::nats::keys::KeyError),
    /// Certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The listener.
    #[error("the listener cannot say its address: {0}")]
    Listener(std::io::Error),
    /// It may not be active.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// What NATS holds does not fit.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// A backup that waits in the state directory cannot be put into NATS.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// A task of the broker panicked.
    #[error("a part of the broker failed: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// Why the store is not what it should be yet.
#[derive(Debug, thiserror::Error)]
enum PrepareError {
    #[error(transparent)]
    State(#[from] StateDirError),
    #[error(transparent)]
    Import(#[from] ImportError),
    #[error(transparent)]
    PutBack(#[from] PutBackError),
}

/// What is the same for all sessions.
pub(crate) struct Parts {
    pub(crate) config: Arc<Config>,
    pub(crate) state: StateDir,
    pub(crate) root: Root,
    pub(crate) keys: Arc<NatsKeys>,
    pub(crate) ca: Ca,
    pub(crate) https: bool,
    pub(crate) twin: Twin,
}

/// The buckets, once they are there.
pub(crate) struct Stores {
    pub(crate) inventory: InventoryBuckets,
    pub(crate) key_list: Kv<muster_protocol::keys::SignedText>,
    pub(crate) lease: Kv<LeaseValue>,
    pub(crate) invites: Kv<crate::enroll::StoredInvite>,
    pub(crate) tokens: Kv<crate::tokens::StoredToken>,
    pub(crate) past: Kv<crate::twin::StoredPast>,
}

/// [`Buckets`], to be cloned for each session.
pub(crate) struct InventoryBuckets {
    nodes: Kv<StoredNode>,
    facts: Kv<StoredFacts>,
    seen: Kv<SeenValue>,
    serial: Kv<SerialCounter>,
    account: Kv<AccountValue>,
}

impl InventoryBuckets {
    pub(crate) fn get(&self) -> Buckets {
        Buckets {
            nodes: self.nodes.clone(),
            facts: self.facts.clone(),
            seen: self.seen.clone(),
            serial: self.serial.clone(),
            account: self.account.clone(),
        }
    }
}

impl Stores {
    /// Makes the buckets where there are none. The twin is told of what is
    /// written to them, but for the lease.
    pub(crate) async fn ensure(js: &Context, twin: &Twin) -> Result<Self, KvError> {
        let told = || twin.witness();
        Ok(Self {
            inventory: InventoryBuckets {
                nodes: bucket(js, "muster_nodes").await?.witnessed(told()),
                facts: bucket(js, "muster_facts").await?.witnessed(told()),
                seen: bucket(js, "muster_cluster").await?,
                serial: bucket(js, "muster_cluster").await?.witnessed(told()),
                account: bucket(js, "muster_cluster").await?.witnessed(told()),
            },
            key_list: bucket(js, "muster_cluster").await?.witnessed(told()),
            lease: bucket(js, "muster_cluster").await?,
            invites: bucket(js, "muster_invites").await?.witnessed(told()),
            tokens: bucket(js, "muster_tokens").await?.witnessed(told()),
            past: bucket(js, "muster_cluster").await?.witnessed(told()),
        })
    }
}

/// Boxed: what it takes to open a bucket is a large future.
async fn bucket<T>(js: &Context, name: &str) -> Result<Kv<T>, KvError>
where
    T: serde::Serialize + serde::de::DeserializeOwned,
{
    Box::pin(ensure_bucket(js, BucketConfig::new(name))).await
}

/// Runs a broker until `cancel`. Without NATS, or with one that cannot be
/// worked with, it waits, and says on `/readyz` and in its log for what.
///
/// # Errors
/// [`ServeError`]: what waiting would not cure.
pub async fn serve(
    config: Config,
    listener: TcpListener,
    cancel: CancellationToken,
) -> Result<(), ServeError> {
    install_provider();
    let state = StateDir::open(&config.state)?;
    let _lock = state.lock()?;
    let root = state.root()?;
    let keys = Arc::new(NatsKeys::load_or_create(&state.keys())?);
    let ca = Ca::open(&state, root.cluster)?;
    let address = listener.local_addr().map_err(ServeError::Listener)?;
    // What is not this machine alone is never spoken to in the clear.
    let https = !address.ip().is_loopback();
    let tls = https
        .then(|| ca.server_config(address, &config.names))
        .transpose()?;
    let settings = twin::Settings {
        keep: config.twin.keep.get(),
        max_bytes: config.twin.max_bytes,
    };
    let parts = Parts {
        config: Arc::new(config),
        twin: Twin::open(&state, settings)?,
        state,
        root,
        keys,
        ca,
        https,
    };
    let front = Front::new(https);
    let scheme = if https { "https" } else { "http" };
    tracing::info!(url = %format!("{scheme}://{address}"), cluster = %parts.root.cluster, "listening");

    let stop_listening = CancellationToken::new();
    let serving = tokio::spawn(listen::listen(
        listener,
        tls,
        front.router(),
        stop_listening.clone(),
    ));
    let result = Box::pin(live(&parts, &front, &cancel)).await;
    front.close(Readiness::Stopping);
    stop_listening.cancel();
    serving.await?;
    result
}

async fn live(parts: &Parts, front: &Front, cancel: &CancellationToken) -> Result<(), ServeError> {
    let Some((link, stores)) = until(cancel, Box::pin(connect(parts, front))).await else {
        return Ok(());
    };
    tracing::info!(version = %link.version, "connected to NATS");
    let holder = parts.state.holder()?;
    // The lease ends last: what a session still writes at its end needs it.
    let end_lease = CancellationToken::new();
    let (lease, mut seeking) = Lease::seek(
        stores.lease.clone(),
        parts.state.clone(),
        holder,
        end_lease.clone(),
    );
    let following = Following::new(parts, &link);
    let result = tokio::select! {
        result = Box::pin(sessions(parts, front, &link, &stores, &lease, &following, cancel)) => result,
        // The server that comes back may be an empty one.
        () = keep_buckets(parts, &link) => Ok(()),
        ended = &mut seeking => match ended {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(error.into()),
            Err(error) => Err(error.into()),
        },
    };
    end_lease.cancel();
    if !seeking.is_finished() {
        seeking.await??;
    }
    following.end().await;
    link.close().await;
    result
}

/// Connects and makes the buckets; tries again until it works.
async fn connect(parts: &Parts, front: &Front) -> (Link, Stores) {
    let mut waiting = Waiting::new(front);
    loop {
        match Box::pin(Link::connect(&parts.config, &parts.keys, &parts.ca)).await {
            Ok(link) => match Box::pin(Stores::ensure(&link.js, &parts.twin)).await {
                Ok(stores) => return (link, stores),
                Err(error) => {
                    waiting.say(&error);
                    link.close().await;
                }
            },
            Err(error) => waiting.say(&error as &LinkError),
        }
        sleep(RETRY).await;
    }
}

/// Makes the buckets that are missing, whenever a connection begins; for ever.
async fn keep_buckets(parts: &Parts, link: &Link) {
    let mut connects = link.connects.clone();
    loop {
        if connects.changed().await.is_err() {
            return std::future::pending().await;
        }
        while let Err(error) = Box::pin(Stores::ensure(&link.js, &parts.twin)).await {
            tracing::warn!(%error, "the buckets are not there");
            sleep(RETRY).await;
        }
    }
}

/// The twin, and what fills it.
struct Following<'a> {
    parts: &'a Parts,
    link: &'a Link,
    task: StdMutex<Option<JoinHandle<()>>>,
    cancel: CancellationToken,
}

impl<'a> Following<'a> {
    fn new(parts: &'a Parts, link: &'a Link) -> Self {
        Self {
            parts,
            link,
            task: StdMutex::new(None),
            cancel: CancellationToken::new(),
        }
    }

    /// Begins, once. Not before a backup that waits is in NATS: what was there
    /// until then is none of this cluster's.
    fn begin(&self) {
        let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        task.get_or_insert_with(|| {
            let (js, connects) = (self.link.js.clone(), self.link.connects.clone());
            let twin = self.parts.twin.clone();
            tokio::spawn(twin.follow(js, connects, self.cancel.clone()))
        });
    }

    /// Ends it, and waits until the disk has everything.
    async fn end(&self) {
        self.cancel.cancel();
        let task = self
            .task
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(task) = task {
            let _ = task.await;
        }
    }
}

impl Drop for Following<'_> {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// Makes the store what it should be, before anybody is served from it.
async fn prepare(
    parts: &Parts,
    link: &Link,
    stores: &Stores,
    lease: &Lease,
    following: &Following<'_>,
) -> Result<(), PrepareError> {
    if is_pending(&parts.state)? {
        parts.twin.reset().await;
    } else {
        let runs = session::runs_settings(&parts.config);
        let place = twin::Place {
            js: &link.js,
            lease,
            runs: &runs,
            past: stores.past.clone(),
        };
        Box::pin(parts.twin.heal(&place)).await?;
    }
    Box::pin(import(&link.js, &parts.state, lease)).await?;
    following.begin();
    Ok(())
}

async fn sessions(
    parts: &Parts,
    front: &Front,
    link: &Link,
    stores: &Stores,
    lease: &Lease,
    following: &Following<'_>,
    cancel: &CancellationToken,
) -> Result<(), ServeError> {
    if !is_pending(&parts.state)? {
        following.begin();
    }
    let mut places = lease.places();
    let mut lost = parts.twin.lost();
    let mut waiting = Waiting::new(front);
    loop {
        let place = places.borrow_and_update().clone();
        let term = match place {
            Place::Active { term, .. } => term,
            Place::Standby { why } => {
                front.say(Readiness::Standby { reason: why });
                if until(cancel, places.changed()).await.is_none() {
                    return Ok(());
                }
                continue;
            }
            Place::Suspended => {
                front.say(Readiness::Standby {
                    reason: "NATS is away or slow".into(),
                });
                if until(cancel, places.changed()).await.is_none() {
                    return Ok(());
                }
                continue;
            }
        };
        let preparing = Box::pin(prepare(parts, link, stores, lease, following));
        match until(cancel, preparing).await {
            None => return Ok(()),
            Some(Ok(())) => {}
            Some(Err(PrepareError::Import(error))) if error.is_final() => return Err(error.into()),
            Some(Err(PrepareError::State(error))) => return Err(error.into()),
            Some(Err(error)) => {
                waiting.say(&error);
                if until(cancel, sleep(RETRY)).await.is_none() {
                    return Ok(());
                }
                continue;
            }
        }
        lost.borrow_and_update();
        if parts.twin.is_pending().await {
            continue;
        }
        let session = match until(cancel, Box::pin(Session::open(parts, link, stores, lease))).await
        {
            None => return Ok(()),
            Some(Ok(session)) => session,
            Some(Err(error)) if error.is_final() => return Err(error.into()),
            Some(Err(error)) => {
                waiting.say(&error);
                if until(cancel, sleep(RETRY)).await.is_none() {
                    return Ok(());
                }
                continue;
            }
        };
        front.open(session.router(), lease.clone());
        let ended = until(cancel, async {
            // Suspended is not the end: while nobody else was active, what is
            // in memory holds.
            let other = |place: &Place| match place {
                Place::Standby { .. } => true,
                Place::Active { term: now, .. } => *now != term,
                Place::Suspended => false,
            };
            tokio::select! {
                // An error says that the lease's task has ended.
                _ = places.wait_for(other) => "another broker has taken over",
                _ = lost.changed() => "the store went back in time; what it lost is put back",
            }
        })
        .await;
        let stopped = ended.is_none();
        let end = match ended {
            None => Readiness::Stopping,
            Some(reason) => Readiness::Standby {
                reason: reason.into(),
            },
        };
        front.close(end);
        session.end().await;
        if stopped {
            return Ok(());
        }
        if parts.twin.is_pending().await
            && let Some(epoch) = lease.epoch()
        {
            // The lease, too, is older than what is held.
            lease.exceed(epoch);
            let risen =
                |place: &Place| !matches!(place, Place::Active { epoch: now, .. } if *now <= epoch);
            if until(cancel, places.wait_for(risen)).await.is_none() {
                return Ok(());
            }
        }
    }
}

/// The future's output, or `None` when `cancel` comes first.
async fn until<T>(cancel: &CancellationToken, future: impl Future<Output = T>) -> Option<T> {
    cancel.run_until_cancelled(future).await
}

/// Says why the broker waits: at `/readyz` always, in the log when the reason
/// is new or has lasted.
struct Waiting<'a> {
    front: &'a Front,
    said: Option<(String, tokio::time::Instant)>,
}

impl<'a> Waiting<'a> {
    fn new(front: &'a Front) -> Self {
        Self { front, said: None }
    }

    fn say(&mut self, error: &dyn std::error::Error) {
        let reason = error.to_string();
        self.front.say(Readiness::Starting {
            reason: reason.clone(),
        });
        let new = self
            .said
            .as_ref()
            .is_none_or(|(said, at)| *said != reason || at.elapsed() >= SAY_AGAIN);
        if new {
            tracing::warn!(reason, "the broker waits");
            self.said = Some((reason, tokio::time::Instant::now()));
        }
    }
}
