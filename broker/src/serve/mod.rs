//! The broker's life: ordered start, one session for each time it is active,
//! ordered end.

mod listen;
mod session;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::Context;
use muster_protocol::api::Readiness;
use tokio::net::TcpListener;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use self::session::{Session, SessionError};
use crate::backup::import::{ImportError, import};
use crate::config::Config;
use crate::http::Front;
use crate::inventory::{AccountValue, Buckets, SeenValue, SerialCounter, StoredFacts, StoredNode};
use crate::lease::{Lease, LeaseError, LeaseValue, Place};
use crate::link::{Link, LinkError};
use crate::nats::keys::NatsKeys;
use crate::state_dir::{Root, StateDir, StateDirError};
use crate::store::kv::{BucketConfig, Kv, KvError, ensure_bucket};
use crate::tls::{Ca, TlsError, install_provider};

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

/// What is the same for all sessions.
pub(crate) struct Parts {
    pub(crate) config: Arc<Config>,
    pub(crate) state: StateDir,
    pub(crate) root: Root,
    pub(crate) keys: Arc<NatsKeys>,
    pub(crate) ca: Ca,
    pub(crate) https: bool,
}

/// The buckets, once they are there.
pub(crate) struct Stores {
    pub(crate) inventory: InventoryBuckets,
    pub(crate) key_list: Kv<muster_protocol::keys::SignedText>,
    pub(crate) lease: Kv<LeaseValue>,
    pub(crate) invites: Kv<crate::enroll::StoredInvite>,
    pub(crate) tokens: Kv<crate::tokens::StoredToken>,
    pub(crate) retention: Kv<crate::retention::Record>,
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
    /// Makes the buckets where there are none.
    pub(crate) async fn ensure(js: &Context) -> Result<Self, KvError> {
        Ok(Self {
            inventory: InventoryBuckets {
                nodes: bucket(js, "muster_nodes").await?,
                facts: bucket(js, "muster_facts").await?,
                seen: bucket(js, "muster_cluster").await?,
                serial: bucket(js, "muster_cluster").await?,
                account: bucket(js, "muster_cluster").await?,
            },
            key_list: bucket(js, "muster_cluster").await?,
            lease: bucket(js, "muster_cluster").await?,
            invites: bucket(js, "muster_invites").await?,
            tokens: bucket(js, "muster_tokens").await?,
            retention: bucket(js, "muster_cluster").await?,
            past: bucket(js, "muster_cluster").await?,
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
    let parts = Parts {
        config: Arc::new(config),
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
    let result = tokio::select! {
        result = Box::pin(sessions(parts, front, &link, &stores, &lease, cancel)) => result,
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
    link.close().await;
    result
}

/// Connects and makes the buckets; tries again until it works.
async fn connect(parts: &Parts, front: &Front) -> (Link, Stores) {
    let mut waiting = Waiting::new(front);
    loop {
        match Box::pin(Link::connect(&parts.config, &parts.keys, &parts.ca)).await {
            Ok(link) => match Box::pin(Stores::ensure(&link.js)).await {
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

async fn sessions(
    parts: &Parts,
    front: &Front,
    link: &Link,
    stores: &Stores,
    lease: &Lease,
    cancel: &CancellationToken,
) -> Result<(), ServeError> {
    let mut places = lease.places();
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
        let importing = Box::pin(import(&link.js, &parts.state, lease));
        match until(cancel, importing).await {
            None => return Ok(()),
            Some(Ok(())) => {}
            Some(Err(error)) if error.is_final() => return Err(error.into()),
            Some(Err(error)) => {
                waiting.say(&error);
                if until(cancel, sleep(RETRY)).await.is_none() {
                    return Ok(());
                }
                continue;
            }
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
        front.open(session.router(), lease.clone(), session.retention());
        let stopped = until(cancel, async {
            // Suspended is not the end: while nobody else was active, what is
            // in memory holds.
            let other = |place: &Place| match place {
                Place::Standby { .. } => true,
                Place::Active { term: now, .. } => *now != term,
                Place::Suspended => false,
            };
            // An error says that the lease's task has ended.
            let _ = places.wait_for(other).await;
        })
        .await
        .is_none();
        let end = if stopped {
            Readiness::Stopping
        } else {
            Readiness::Standby {
                reason: "another broker has taken over".into(),
            }
        };
        front.close(end);
        session.end().await;
        if stopped {
            return Ok(());
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
