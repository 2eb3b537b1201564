//! One time of being the active broker: everything that was loaded for it.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Parts, Stores};
use crate::authority::{Authority, AuthorityError};
use crate::authz::FixedRoles;
use crate::bus::{self, Deps, Nodes, StartError};
use crate::config::Config;
use crate::enroll::{Connect, Enrolment};
use crate::events::{Events, EventsError};
use crate::http::{AppState, Limiter, router};
use crate::inventory::{Inventory, InventoryError, shut_out};
use crate::lease::Lease;
use crate::link::{Link, nats_ca};
use crate::nats::keys::UserKey;
use crate::peers::Peers;
use crate::presence::Journals;
use crate::releases::{Releases, ReleasesError};
use crate::runs;
use crate::store::kv::KvError;
use crate::tls::TlsError;
use crate::tokens::{Tokens, TokensError};
use crate::twin::Past;

/// How often invites that ended are forgotten.
const TIDY_EVERY: Duration = Duration::from_secs(3_600);
/// How long the journals of runs may take before the API opens without them.
/// A takeover must not wait for them.
const JOURNALS_WITHIN: Duration = Duration::from_secs(2);
/// How long a session waits for the brokers before to be shut out.
const SHUT_OUT_WITHIN: Duration = Duration::from_secs(1);
/// How long the tasks of a session may take to end.
const END_WITHIN: Duration = Duration::from_secs(10);

/// Why a session cannot begin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The broker keys.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The nodes.
    #[error(transparent)]
    Inventory(#[from] InventoryError),
    /// The tokens.
    #[error(transparent)]
    Tokens(#[from] TokensError),
    /// The events.
    #[error(transparent)]
    Events(#[from] EventsError),
    /// What is known of times that the store has lost.
    #[error("what the store has lost could not be read: {0}")]
    Past(#[from] KvError),
    /// A task panicked.
    #[error("a part of the broker failed: {0}")]
    Task(#[from] tokio::task::JoinError),
    /// Certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The subscriptions to what the nodes say.
    #[error(transparent)]
    Nodes(#[from] StartError),
    /// The agent releases.
    #[error(transparent)]
    Releases(#[from] ReleasesError),
}

impl SessionError {
    /// Whether waiting would not cure it.
    pub(super) fn is_final(&self) -> bool {
        match self {
            Self::Authority(error) => {
                !matches!(error, AuthorityError::Store(_) | AuthorityError::NotActive)
            }
            Self::Tokens(error) => matches!(error, TokensError::State(_)),
            Self::Tls(_) => true,
            Self::Task(_)
            | Self::Inventory(_)
            | Self::Events(_)
            | Self::Past(_)
            | Self::Nodes(_)
            | Self::Releases(_) => false,
        }
    }
}

/// One time of being active.
pub(crate) struct Session {
    state: AppState,
    cancel: CancellationToken,
    tasks: TaskTracker,
    shutting: Option<Shutting>,
}

/// The NATS users of brokers before, who are being shut out.
struct Shutting {
    task: JoinHandle<Result<Option<u64>, InventoryError>>,
    users: Vec<UserKey>,
}

impl Session {
    /// Loads everything. Only with the lease.
    pub(crate) async fn open(
        parts: &Parts,
        link: &Link,
        stores: &Stores,
        lease: &Lease,
        peers: &Peers,
        settled: Option<u64>,
    ) -> Result<Self, SessionError> {
        // First of all: a broker that was stopped in the middle of a write
        // must not end it after this one has read what is there.
        let others = lease.to_shut_out();
        let mut shutting = {
            let (users, keys, system) =
                (others.clone(), Arc::clone(&parts.keys), link.system.clone());
            let (bucket, life) = (
                stores.inventory.get().account,
                parts.config.credentials_life,
            );
            tokio::spawn(Box::pin(async move {
                shut_out(&users, bucket, keys, system, life).await
            }))
        };
        // A server that holds very many connections needs seconds for it. A
        // takeover does not wait so long: then everything is read again
        // afterwards.
        let (settled, shutting) = match timeout(SHUT_OUT_WITHIN, &mut shutting).await {
            Ok(done) => {
                let revision = done??;
                lease.are_shut_out(&others);
                (revision.or(settled), None)
            }
            Err(_) => (
                None,
                Some(Shutting {
                    task: shutting,
                    users: others,
                }),
            ),
        };
        peers
            .load(&stores.brokers)
            .await
            .map_err(InventoryError::from)?;
        let events = Events::open(link.js.clone(), lease.clone()).await?;
        if let Some(from) = lease.taken_from() {
            let text = format!("{} is the active broker now, after {from}", parts.url);
            events.emit("broker.takeover", &parts.url, text).await;
        }
        let past = Past::load(stores.past.clone(), lease.clone()).await?;
        let authority = Authority::load(
            parts.state.clone(),
            parts.root.clone(),
            stores.key_list.clone(),
            lease.clone(),
            events.clone(),
        )
        .await?;
        let inventory = Box::pin(Inventory::load(
            stores.inventory.get(),
            Arc::clone(&parts.keys),
            link.system.clone(),
            lease.clone(),
            events.clone(),
            parts.config.credentials_life,
        ))
        .await?;
        match settled {
            Some(revision) => inventory.was_settled(Some(revision)).await,
            // It is on its way just now.
            None if shutting.is_some() => inventory.was_settled(None).await,
            None => {}
        }
        // Before anybody connects: a server that was set up anew, or set
        // back in time, must know who is revoked.
        inventory.settle().await.map_err(InventoryError::from)?;
        let tokens = Tokens::load(stores.tokens.clone(), lease.clone(), events.clone()).await?;
        let path = parts.state.admin_token();
        if tokens.ensure_admin(&path).await? {
            tracing::info!(file = %path.display(), "a new admin token was written");
        }
        let releases = Box::pin(Releases::open(
            link.js.clone(),
            lease.clone(),
            events.clone(),
        ))
        .await?;
        let connect = Connect {
            nats_urls: parts.config.agent_urls().to_vec(),
            nats_ca: nats_ca(&parts.config, &parts.ca)?,
            broker_ca: parts.https.then(|| parts.ca.pem().to_owned()),
            life: parts.config.credentials_life,
            peers: peers.clone(),
        };
        let enrolment = Enrolment::new(
            stores.invites.clone(),
            inventory.clone(),
            authority.clone(),
            Arc::clone(&parts.keys),
            lease.clone(),
            events.clone(),
            connect,
        );
        let cancel = CancellationToken::new();
        let tasks = TaskTracker::new();
        let nodes = Nodes::start(Deps {
            client: link.client.clone(),
            js: link.js.clone(),
            inventory: inventory.clone(),
            authority: authority.clone(),
            lease: lease.clone(),
            events: events.clone(),
            journals: Journals::load(stores.journals.clone(), lease.clone()).await?,
            past: past.clone(),
            connections: Some((link.system.clone(), parts.keys.account_key())),
            settings: bus::Settings {
                runs: runs_settings(&parts.config),
                confirm_above: parts.config.confirm_above,
                ..bus::Settings::default()
            },
            cancel: cancel.clone(),
        })
        .await?;
        // Whoever asks as soon as the broker is ready finds every run. When
        // the journals take longer, runs are `unavailable` for that time, and
        // everything else is there.
        if timeout(JOURNALS_WITHIN, nodes.engine.wait_ready())
            .await
            .is_err()
        {
            tracing::warn!("the journals of runs are still being read");
        }
        let state = AppState {
            config: Arc::clone(&parts.config),
            inventory: inventory.clone(),
            authority,
            enrolment: enrolment.clone(),
            tokens,
            lease: lease.clone(),
            events,
            past,
            policy: Arc::new(FixedRoles),
            control: Arc::clone(&nodes.control),
            peers: peers.clone(),
            nodes: nodes.clone(),
            link: link.clone(),
            releases,
            limiter: Arc::new(Limiter::new(parts.config.open_requests_per_second)),
            backing_up: Arc::new(tokio::sync::Semaphore::new(1)),
            shutdown: cancel.clone(),
        };
        tasks.spawn(inventory.tend(cancel.clone()));
        let remembering = peers.clone();
        tasks.spawn(remembering.remember(stores.brokers.clone(), cancel.clone()));
        tasks.spawn(tidy(enrolment, cancel.clone()));
        tasks.spawn(async move { nodes.stopped().await });
        Ok(Self {
            state,
            cancel,
            tasks,
            shutting,
        })
    }

    /// Returns once the brokers before are shut out, when that was not so when
    /// this session was opened: what they have written in between is to be
    /// read. Gives what [`Session::open`] takes then.
    pub(crate) async fn outdated(&mut self, lease: &Lease) -> Option<u64> {
        let Some(shutting) = &mut self.shutting else {
            return std::future::pending().await;
        };
        let done = (&mut shutting.task).await;
        let users = std::mem::take(&mut shutting.users);
        self.shutting = None;
        match done {
            Ok(Ok(revision)) => {
                tracing::info!("the broker before is shut out; everything is read again");
                lease.are_shut_out(&users);
                revision
            }
            // The next session tries it again.
            Ok(Err(error)) => {
                tracing::warn!(%error, "the broker before could not be shut out");
                None
            }
            Err(error) => {
                tracing::error!(%error, "shutting the broker before out failed");
                None
            }
        }
    }

    /// The API of this session.
    pub(crate) fn router(&self) -> Router {
        router(self.state.clone())
    }

    /// Ends what runs for it; what is only in memory is written.
    pub(crate) async fn end(self) {
        self.cancel.cancel();
        self.tasks.close();
        if timeout(END_WITHIN, self.tasks.wait()).await.is_err() {
            tracing::warn!(
                tasks = self.tasks.len(),
                "parts of the broker did not end in time"
            );
        }
    }
}

/// How runs are kept.
pub(super) fn runs_settings(config: &Config) -> runs::Settings {
    runs::Settings {
        max_age: config.keep_runs.get(),
        ..runs::Settings::default()
    }
}

async fn tidy(enrolment: Enrolment, cancel: CancellationToken) {
    loop {
        if let Err(error) = enrolment.tidy().await {
            tracing::debug!(%error, "old invites could not be forgotten");
        }
        if cancel
            .run_until_cancelled(sleep(TIDY_EVERY))
            .await
            .is_none()
        {
            return;
        }
    }
}
