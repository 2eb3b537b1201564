//! The broker's life: ordered start, one session for each time it is active,
//! ordered end.

mod fence;
mod io;
mod listen;
mod session;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::Duration;

use async_nats::jetstream::Context;
use muster_protocol::api::Readiness;
use muster_protocol::text::printable;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use self::fence::Fence;
use self::session::{Session, SessionError};
use crate::backup::import::{ImportError, import, is_pending};
use crate::config::Config;
use crate::http::Front;
use crate::inventory::{
    AccountValue, AgentsValue, Buckets, SeenValue, SerialCounter, StoredFacts, StoredNode,
};
use crate::lease::{Lease, LeaseError, LeaseValue, Place, Who};
use crate::link::{Link, LinkError};
use crate::nats::keys::NatsKeys;
use crate::peers::{KnownBrokers, Peers};
use crate::state_dir::{Root, StateDir, StateDirError};
use crate::store::error::StreamError;
use crate::store::kv::{BucketConfig, Kv, KvError, ensure_bucket};
use crate::tls::{Ca, OwnCertificate, TlsError, install_provider};
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
    /// What the store has lost cannot be put back.
    #[error(transparent)]
    PutBack(#[from] PutBackError),
    /// Webhooks, triggers and routes.
    #[error(transparent)]
    Hooks(#[from] crate::hooks::file::FileError),
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

impl PrepareError {
    /// Whether waiting would not cure it.
    fn is_final(&self) -> bool {
        match self {
            Self::State(_) => true,
            Self::Import(error) => error.is_final(),
            Self::PutBack(_) => false,
        }
    }
}

/// What is the same for all sessions.
pub(crate) struct Parts {
    pub(crate) config: Arc<Config>,
    pub(crate) state: StateDir,
    pub(crate) root: Root,
    pub(crate) keys: Arc<NatsKeys>,
    pub(crate) ca: Ca,
    pub(crate) https: bool,
    /// The operator's own certificate.
    pub(crate) own: Option<OwnCertificate>,
    pub(crate) twin: Twin,
    /// Webhooks, triggers and routes.
    pub(crate) hooks: crate::hooks::Held,
    /// Where people and agents reach this broker.
    pub(crate) url: String,
}

/// The buckets, once they are there.
pub(crate) struct Stores {
    pub(crate) inventory: InventoryBuckets,
    pub(crate) key_list: Kv<muster_protocol::keys::SignedText>,
    pub(crate) lease: Kv<LeaseValue>,
    pub(crate) brokers: Kv<KnownBrokers>,
    pub(crate) invites: Kv<crate::enroll::StoredInvite>,
    pub(crate) tokens: Kv<crate::tokens::StoredToken>,
    pub(crate) retention: Kv<crate::retention::Record>,
    pub(crate) past: Kv<crate::twin::StoredPast>,
    pub(crate) scenarios: Kv<crate::library::History>,
    pub(crate) bundles: Kv<crate::library::StoredPart>,
    pub(crate) schedules: Kv<crate::schedules::StoredSchedule>,
    pub(crate) policies: Kv<crate::policy::StoredPolicy>,
    pub(crate) machines: Kv<crate::vm::StoredVm>,
    pub(crate) cordons: Kv<crate::vm::StoredCordons>,
    pub(crate) floor: Kv<u64>,
    pub(crate) ssh_keys: Kv<crate::vm::StoredSshKeys>,
    pub(crate) accounts: Kv<crate::vm::StoredAccounts>,
    pub(crate) images: Kv<crate::vm::images::StoredImage>,
    pub(crate) networks: Kv<crate::vm::networks::StoredNetwork>,
    pub(crate) addresses: Kv<crate::vm::networks::StoredAddress>,
    pub(crate) groups: Kv<crate::groups::StoredGroup>,
    pub(crate) sets: Kv<crate::groups::StoredSet>,
    pub(crate) journals: Kv<crate::presence::StoredJournals>,
    pub(crate) once: Kv<crate::once::StoredOnce>,
    pub(crate) places: Kv<crate::triggers::Place>,
    pub(crate) freeze: Kv<crate::freeze::FreezeValue>,
    pub(crate) totp: Kv<crate::chat::totp::StoredTotp>,
    pub(crate) chat: crate::chat::handle::Stores,
}

/// [`Buckets`], to be cloned for each session.
pub(crate) struct InventoryBuckets {
    nodes: Kv<StoredNode>,
    facts: Kv<StoredFacts>,
    seen: Kv<SeenValue>,
    agents: Kv<AgentsValue>,
    serial: Kv<SerialCounter>,
    account: Kv<AccountValue>,
}

impl InventoryBuckets {
    pub(crate) fn get(&self) -> Buckets {
        Buckets {
            nodes: self.nodes.clone(),
            facts: self.facts.clone(),
            seen: self.seen.clone(),
            agents: self.agents.clone(),
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
                agents: bucket(js, "muster_cluster").await?,
                serial: bucket(js, "muster_cluster").await?.witnessed(told()),
                account: bucket(js, "muster_cluster").await?.witnessed(told()),
            },
            key_list: bucket(js, "muster_cluster").await?.witnessed(told()),
            lease: bucket(js, "muster_cluster").await?,
            brokers: bucket(js, "muster_cluster").await?,
            invites: bucket(js, "muster_invites").await?.witnessed(told()),
            tokens: bucket(js, "muster_tokens").await?.witnessed(told()),
            past: bucket(js, "muster_cluster").await?.witnessed(told()),
            scenarios: bucket(js, "muster_scenarios").await?.witnessed(told()),
            bundles: bucket(js, "muster_bundles").await?.witnessed(told()),
            schedules: bucket(js, "muster_schedules").await?.witnessed(told()),
            policies: bucket(js, "muster_policy").await?.witnessed(told()),
            machines: bucket(js, "muster_vms").await?.witnessed(told()),
            cordons: bucket(js, "muster_cluster").await?.witnessed(told()),
            floor: bucket(js, "muster_cluster").await?.witnessed(told()),
            ssh_keys: bucket(js, "muster_cluster").await?.witnessed(told()),
            accounts: bucket(js, "muster_cluster").await?.witnessed(told()),
            images: bucket(js, "muster_images").await?.witnessed(told()),
            networks: bucket(js, "muster_networks").await?.witnessed(told()),
            groups: bucket(js, "muster_groups").await?.witnessed(told()),
            sets: bucket(js, "muster_address_sets").await?.witnessed(told()),
            addresses: bucket(js, "muster_addresses").await?.witnessed(told()),
            journals: bucket(js, "muster_cluster").await?,
            once: Box::pin(once_bucket(js)).await?,
            // After the store went back, its places mean nothing.
            places: bucket(js, "muster_places").await?,
            freeze: bucket(js, "muster_cluster").await?.witnessed(told()),
            // After the store went back, a code of the last minute counts once
            // more at most.
            totp: bucket(js, "muster_totp").await?,
            chat: Box::pin(crate::chat::handle::Stores::ensure(js)).await?,
            retention: bucket(js, "muster_cluster").await?.witnessed(told()),
        })
    }
}

/// With as much of the room that it may take as there is.
async fn once_bucket<T>(js: &Context) -> Result<Kv<T>, KvError>
where
    T: serde::Serialize + serde::de::DeserializeOwned,
{
    let [wanted, less @ ..] = crate::once::MOST_BYTES;
    let with = |max_bytes| BucketConfig {
        max_age: Some(crate::once::KEPT),
        max_bytes: Some(max_bytes),
        ..BucketConfig::new("muster_once")
    };
    let mut opened = ensure_bucket(js, with(wanted)).await;
    for fewer in less {
        match opened {
            Err(KvError::Stream {
                source: StreamError::Full { .. },
                ..
            }) => opened = ensure_bucket(js, with(fewer)).await,
            opened => return opened,
        }
    }
    opened
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
    let hooks = crate::hooks::Held::open(config.hooks_file.as_deref())?;
    let state = StateDir::open(&config.state)?;
    let _lock = state.lock()?;
    let root = state.root()?;
    let keys = Arc::new(NatsKeys::load_or_create(&state.keys())?);
    let ca = Ca::open(&state, root.cluster)?;
    let address = listener.local_addr().map_err(ServeError::Listener)?;
    let own = config
        .tls
        .files()
        .map(|(cert, key)| OwnCertificate::open(cert, key, &ca, address, &config.names))
        .transpose()?;
    // What is not this machine alone is never spoken to in the clear.
    let https = own.is_some() || !address.ip().is_loopback();
    let tls = match &own {
        Some(own) => Some(own.server_config()?),
        None => https
            .then(|| ca.server_config(address, &config.names))
            .transpose()?,
    };
    let connections = listen::room_for(config.limits.connections);
    let settings = twin::Settings {
        keep: config.twin.keep.get(),
        max_bytes: config.twin.max_bytes,
    };
    let url = config.public_url(address);
    let parts = Parts {
        config: Arc::new(config),
        twin: Twin::open(&state, settings)?,
        hooks,
        state,
        root,
        keys,
        ca,
        https,
        own,
        url,
    };
    let front = Front::new(https, Arc::clone(&parts.config));
    tracing::info!(url = %parts.url, cluster = %parts.root.cluster, "listening");

    let stop_listening = CancellationToken::new();
    let serving = tokio::spawn(listen::listen(
        listener,
        tls,
        front.router(),
        connections,
        stop_listening.clone(),
    ));
    if let Some(own) = &parts.own {
        tokio::spawn(own.clone().follow(stop_listening.clone()));
    }
    let result = Box::pin(live(&parts, &front, &cancel)).await;
    front.close(Readiness::Stopping);
    stop_listening.cancel();
    serving.await?;
    result
}

/// How a time of being connected ended.
enum Ended {
    /// The process is to end.
    Stopped,
    /// Another broker is the active one, and this one's connections are shut
    /// out, or will be: it begins anew, with new ones.
    Overtaken,
}

async fn live(parts: &Parts, front: &Front, cancel: &CancellationToken) -> Result<(), ServeError> {
    let mut known = false;
    loop {
        let connecting = Box::pin(connect(parts, front, known));
        let Some((link, stores)) = until(cancel, connecting).await else {
            return Ok(());
        };
        known = true;
        tracing::info!(version = %link.version, "connected to NATS");
        let result = Box::pin(linked(parts, front, &link, &stores, cancel)).await;
        link.close().await;
        match result? {
            Ended::Stopped => return Ok(()),
            Ended::Overtaken => {}
        }
    }
}

/// From one connection to its end: seeks the lease, and serves while it is
/// held.
async fn linked(
    parts: &Parts,
    front: &Front,
    link: &Link,
    stores: &Stores,
    cancel: &CancellationToken,
) -> Result<Ended, ServeError> {
    let holder = parts.state.holder()?;
    let me = holder.id;
    let who = Who {
        url: Some(parts.url.clone()),
        users: link.users.clone(),
    };
    // The lease ends last: what a session still writes at its end needs it.
    let end_lease = CancellationToken::new();
    let (lease, mut seeking) = Lease::seek(
        stores.lease.clone(),
        parts.state.clone(),
        holder,
        who,
        end_lease.clone(),
    );
    let peers = Peers::new(me, parts.url.clone(), lease.clone());
    let talking = tokio::spawn(peers.clone().keep(link.client.clone(), end_lease.clone()));
    let following = Following::new(parts, link);
    let active = Active {
        parts,
        link,
        stores,
        lease: &lease,
        peers: &peers,
        following: &following,
    };
    let result = tokio::select! {
        result = Box::pin(sessions(&active, front, cancel)) => result,
        // The server that comes back may be an empty one.
        () = keep_buckets(parts, link) => Ok(Ended::Stopped),
        ended = &mut seeking => match ended {
            Ok(Ok(())) => Ok(Ended::Stopped),
            Ok(Err(error)) => Err(error.into()),
            Err(error) => Err(error.into()),
        },
    };
    end_lease.cancel();
    talking.await?;
    if !seeking.is_finished() {
        seeking.await??;
    }
    following.end().await;
    result
}

/// Connects and makes the buckets; tries again until it works.
/// `again`: it was connected before, and stands by until the first failure.
async fn connect(parts: &Parts, front: &Front, again: bool) -> (Link, Stores) {
    let mut waiting = Waiting::new(front);
    if !again {
        front.say(Readiness::Starting {
            reason: "connecting to NATS".into(),
        });
    }
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

/// What sessions are opened with.
struct Active<'a> {
    parts: &'a Parts,
    link: &'a Link,
    stores: &'a Stores,
    lease: &'a Lease,
    peers: &'a Peers,
    following: &'a Following<'a>,
}

/// Shuts out whoever is to be out, and makes the store what it should be,
/// before anybody is served from it. `settled` is what the last session gave.
async fn prepare(active: &Active<'_>, settled: Option<u64>) -> Result<Fence, OpenError> {
    let Active {
        parts,
        link,
        stores,
        lease,
        following,
        ..
    } = *active;
    let put_in = async || {
        let done = Box::pin(import(&link.js, &parts.state, lease)).await;
        done.map_err(PrepareError::Import)
    };
    let fence = if is_pending(&parts.state).map_err(PrepareError::State)? {
        // Until the backup is there, nothing in NATS is this cluster's.
        parts.twin.reset().await;
        put_in().await?;
        Box::pin(Fence::raise(active, None, settled)).await?
    } else {
        let lost = Box::pin(parts.twin.compare(&link.js)).await;
        let lost = lost.map_err(|error| PrepareError::PutBack(error.into()))?;
        let fence = Box::pin(Fence::raise(active, lost.clone(), settled)).await?;
        let runs = session::runs_settings(&parts.config);
        let place = twin::Place {
            js: &link.js,
            lease,
            runs: &runs,
            past: stores.past.clone(),
        };
        let healed = Box::pin(parts.twin.heal(&place, lost.as_ref())).await;
        healed.map_err(PrepareError::PutBack)?;
        put_in().await?;
        fence
    };
    following.begin();
    Ok(fence)
}

async fn sessions(
    active: &Active<'_>,
    front: &Front,
    cancel: &CancellationToken,
) -> Result<Ended, ServeError> {
    let Active {
        parts,
        link,
        stores,
        lease,
        peers,
        following,
    } = *active;
    if !is_pending(&parts.state)? {
        following.begin();
    }
    let mut places = lease.places();
    let mut lost = parts.twin.lost();
    let mut waiting = Waiting::new(front);
    let mut settled = None;
    loop {
        let place = places.borrow_and_update().clone();
        let term = match place {
            Place::Active { term, .. } => term,
            Place::Standby { why, active } => {
                front.say(Readiness::Standby {
                    reason: why,
                    active,
                });
                match next_place(&mut places, link, cancel).await {
                    Some(ended) => return Ok(ended),
                    None => continue,
                }
            }
            Place::Suspended => {
                front.say(Readiness::Standby {
                    reason: "NATS is away or slow".into(),
                    active: None,
                });
                match next_place(&mut places, link, cancel).await {
                    Some(ended) => return Ok(ended),
                    None => continue,
                }
            }
        };
        let opening = Box::pin(async {
            let fence = prepare(active, settled).await?;
            lost.borrow_and_update();
            if parts.twin.is_pending().await {
                // Found in between: once more.
                return Ok(None);
            }
            let session = Box::pin(Session::open(parts, link, stores, lease, peers, fence));
            Ok::<_, OpenError>(Some(session.await?))
        });
        let mut session = match until(cancel, opening).await {
            None => return Ok(Ended::Stopped),
            Some(Ok(None)) => continue,
            Some(Ok(Some(session))) => session,
            Some(Err(error)) if error.is_final() => return Err(error.into()),
            Some(Err(error)) => {
                waiting.say(&error);
                tokio::select! {
                    () = cancel.cancelled() => return Ok(Ended::Stopped),
                    () = link.refused() => return Ok(Ended::Overtaken),
                    () = sleep(RETRY) => continue,
                }
            }
        };
        front.open(session.router(), lease.clone(), session.retention());
        let end = tokio::select! {
            () = cancel.cancelled() => Readiness::Stopping,
            () = link.refused() => {
                tracing::error!("NATS has shut this broker out: another one has taken over");
                overtaken(None)
            }
            // Suspended is not the end: while nobody else was active, what is
            // in memory holds.
            active = other_active(&mut places, term) => overtaken(active),
            // Nor does anything in memory hold, nor the lease itself.
            _ = lost.changed() => Readiness::Standby {
                reason: "the store went back in time; what it lost is put back".into(),
                active: None,
            },
            revision = session.outdated(lease) => {
                settled = revision;
                Readiness::Starting {
                    reason: "what the broker before has written is read".into(),
                }
            }
        };
        let again = matches!(end, Readiness::Starting { .. });
        let stopped = end == Readiness::Stopping;
        front.close(end);
        session.end().await;
        if again {
            continue;
        }
        return Ok(if stopped {
            Ended::Stopped
        } else {
            Ended::Overtaken
        });
    }
}

fn overtaken(active: Option<String>) -> Readiness {
    let reason = match &active {
        Some(url) => format!("the broker at {} has taken over", printable(url, 200)),
        None => "another broker has taken over".into(),
    };
    Readiness::Standby { reason, active }
}

/// Waits until the place is another one; `Some` when there will be none.
async fn next_place(
    places: &mut watch::Receiver<Place>,
    link: &Link,
    cancel: &CancellationToken,
) -> Option<Ended> {
    tokio::select! {
        () = cancel.cancelled() => Some(Ended::Stopped),
        () = link.refused() => Some(Ended::Overtaken),
        changed = places.changed() => changed.is_err().then_some(Ended::Stopped),
    }
}

/// Waits until another broker is or was active; its URL, where it is known.
async fn other_active(places: &mut watch::Receiver<Place>, term: u64) -> Option<String> {
    let other = |place: &Place| match place {
        Place::Standby { .. } => true,
        Place::Active { term: now, .. } => *now != term,
        Place::Suspended => false,
    };
    // An error says that the lease's task has ended.
    match places.wait_for(other).await.as_deref() {
        Ok(Place::Standby { active, .. }) => active.clone(),
        _ => None,
    }
}

/// Why a session could not be opened.
#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    #[error(transparent)]
    Session(#[from] SessionError),
}

impl OpenError {
    fn is_final(&self) -> bool {
        match self {
            Self::Prepare(error) => error.is_final(),
            Self::Session(error) => error.is_final(),
        }
    }
}

impl From<OpenError> for ServeError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Prepare(PrepareError::State(error)) => error.into(),
            OpenError::Prepare(PrepareError::Import(error)) => error.into(),
            OpenError::Prepare(PrepareError::PutBack(error)) => error.into(),
            OpenError::Session(error) => error.into(),
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
