//! One time of being the active broker: everything that was loaded for it.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::Context;
use axum::Router;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::fence::Fence;
use super::{Parts, Stores};
use crate::audit::{self, Audit, AuditError};
use crate::authority::{Authority, AuthorityError};
use crate::authz::Guard;
use crate::bus::{self, Deps, Nodes, StartError};
use crate::chat::Chat;
use crate::chat::desk::Desk;
use crate::chat::handle::{self as chat, ChatError};
use crate::chat::outputs::RunsAndMachines;
use crate::chat::totp::Totps;
use crate::config::Config;
use crate::enroll::{Connect, Enrolment};
use crate::events::{Events, EventsError};
use crate::freeze::Freezer;
use crate::groups::{self, Groups};
use crate::hooks::Hooks;
use crate::http::{AppState, Limiter, PrincipalLimiter, router};
use crate::inventory::{Inventory, InventoryError};
use crate::lease::Lease;
use crate::library::{Library, LibraryError};
use crate::link::{Link, nats_ca};
use crate::metrics::Metrics;
use crate::once::Once;
use crate::peers::Peers;
use crate::policy::{Policies, PolicyError};
use crate::presence::Journals;
use crate::releases::{Releases, ReleasesError};
use crate::retention::{Keeper, Retention};
use crate::routes::Routes;
use crate::runs;
use crate::schedules::{Schedules, SchedulesError};
use crate::store::kv::KvError;
use crate::submit::{Broker, Submit};
use crate::tls::{TlsError, broker_ca};
use crate::tokens::{Tokens, TokensError};
use crate::triggers::{Places, Triggers};
use crate::twin::{Past, Twin};
use crate::vm::adapters::Door;
use crate::vm::images::{Images, ImagesError};
use crate::vm::keep::{RecordError, Records};
use crate::vm::networks::{Networks, NetworksError};
use crate::vm::{self, Cordons, Machines, Observed, Tenants};

/// How often invites that ended are forgotten.
const TIDY_EVERY: Duration = Duration::from_secs(3_600);
/// How long the journals of runs may take before the API opens without them.
/// A takeover must not wait for them.
const JOURNALS_WITHIN: Duration = Duration::from_secs(2);
/// When a comparison that failed is tried again.
const COMPARE_AGAIN: Duration = Duration::from_secs(1);
/// How often it is looked whether this broker is the active one still.
const LOOK: Duration = Duration::from_millis(500);
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
    /// The stored scenarios.
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// The schedules.
    #[error(transparent)]
    Schedules(#[from] SchedulesError),
    /// The machines.
    #[error(transparent)]
    Machines(#[from] RecordError),
    /// Disk images.
    #[error(transparent)]
    Images(#[from] ImagesError),
    /// Networks and addresses.
    #[error(transparent)]
    Networks(#[from] NetworksError),
    /// Who may do what.
    #[error(transparent)]
    Policies(#[from] PolicyError),
    /// The record of requests.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// What is said in chat networks.
    #[error(transparent)]
    Chat(#[from] ChatError),
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
            Self::Policies(error) => error.is_final(),
            Self::Task(_)
            | Self::Inventory(_)
            | Self::Events(_)
            | Self::Past(_)
            | Self::Nodes(_)
            | Self::Releases(_)
            | Self::Library(_)
            | Self::Schedules(_)
            | Self::Machines(_)
            | Self::Images(_)
            | Self::Networks(_)
            | Self::Audit(_)
            | Self::Chat(_) => false,
        }
    }
}

/// One time of being active.
pub(crate) struct Session {
    state: AppState,
    cancel: CancellationToken,
    tasks: TaskTracker,
    fence: Fence,
}

impl Session {
    /// Loads everything. Only with the lease, and with a fence that was raised
    /// before.
    pub(crate) async fn open(
        parts: &Parts,
        link: &Link,
        stores: &Stores,
        lease: &Lease,
        peers: &Peers,
        fence: Fence,
    ) -> Result<Self, SessionError> {
        peers
            .load(&stores.brokers)
            .await
            .map_err(InventoryError::from)?;
        let keep_events = parts.config.retention.events.get();
        let events = Events::open(link.js.clone(), lease.clone(), keep_events).await?;
        if let Some(from) = lease.taken_from() {
            let text = format!("{} is the active broker now, after {from}", parts.url);
            events.emit("broker.takeover", &parts.url, text).await;
        }
        let past = Past::load(stores.past.clone(), lease.clone()).await?;
        let suspicions = past.suspicions();
        let authority = Authority::load(
            parts.state.clone(),
            parts.root.clone(),
            stores.key_list.clone(),
            lease.clone(),
            events.clone(),
        )
        .await?;
        let cancel = CancellationToken::new();
        let tasks = TaskTracker::new();
        // Whatever was begun ends when the rest cannot be.
        let begun = cancel.clone().drop_guard();
        let audit = audit::Parts {
            js: link.js.clone(),
            lease: lease.clone(),
            authority: authority.clone(),
            events: events.clone(),
            state: parts.state.clone(),
            config: parts.config.audit.clone(),
        };
        let audit = Box::pin(Audit::open(audit, &tasks, &cancel)).await?;
        let inventory = Box::pin(Inventory::load(
            stores.inventory.get(),
            Arc::clone(&parts.keys),
            link.system.clone(),
            lease.clone(),
            events.clone(),
            parts.config.credentials_life,
        ))
        .await?;
        match fence.settled() {
            Some(revision) => inventory.was_settled(Some(revision)).await,
            // It is on its way just now.
            None if fence.is_open() => inventory.was_settled(None).await,
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
        let policies = Box::pin(Policies::open(
            stores.policies.clone(),
            lease.clone(),
            events.clone(),
            tokens.clone(),
            inventory.clone(),
            parts.state.path(),
        ))
        .await?;
        let releases = Box::pin(Releases::open(
            link.js.clone(),
            lease.clone(),
            events.clone(),
        ))
        .await?;
        let library = Box::pin(Library::open(
            stores.scenarios.clone(),
            stores.bundles.clone(),
            lease.clone(),
            events.clone(),
        ))
        .await?;
        let schedules =
            Schedules::load(stores.schedules.clone(), lease.clone(), events.clone()).await?;
        let images = Box::pin(Images::open(
            parts.config.images(),
            stores.images.clone(),
            lease.clone(),
            events.clone(),
        ))
        .await?;
        let networks = Box::pin(Networks::load(
            stores.networks.clone(),
            stores.addresses.clone(),
            lease.clone(),
            events.clone(),
        ))
        .await?;
        let connect = Connect {
            nats_urls: parts.config.agent_urls().to_vec(),
            nats_ca: nats_ca(&parts.config, &parts.ca)?,
            broker_ca: parts
                .https
                .then(|| broker_ca(&parts.config, &parts.ca))
                .transpose()?,
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
        let freezer = Freezer::load(
            stores.freeze.clone(),
            authority.clone(),
            lease.clone(),
            events.clone(),
        )
        .await
        .map_err(InventoryError::from)?;
        let observed = Observed::default();
        let desk = groups::Desk::default();
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
            library: Some(library.clone()),
            freezer: freezer.clone(),
            observed: observed.clone(),
            groups: desk.clone(),
            settings: bus::Settings {
                runs: runs_settings(&parts.config),
                confirm_above: parts.config.confirm_above,
                confirm_within: parts.config.confirm_within.get(),
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
        let retention = Retention::default();
        let keeper = Keeper {
            engine: nodes.engine.clone(),
            events: events.clone(),
            lease: lease.clone(),
            js: link.js.clone(),
            system: Some(link.system.clone()),
            same_machine: parts.config.nats_is_here(),
            record: stores.retention.clone(),
            limits: parts.config.retention.limits(),
            shown: retention.clone(),
        };
        let guard = Guard::new(Arc::new(policies.in_force())).recording(audit.clone());
        nodes.engine.record_with(audit.clone());
        let cluster = authority.list().cluster;
        let (machines, floor) = (stores.machines.clone(), stores.floor.clone());
        let records = Records::load(machines, floor, lease.clone(), cluster).await?;
        let submit = Submit {
            inventory: inventory.clone(),
            nodes: nodes.clone(),
            releases: releases.clone(),
            guard: guard.clone(),
            lease: lease.clone(),
            programs: Arc::new(library.clone()),
            wanted: Arc::new(records.clone()),
        };
        let cordons = Cordons::load(stores.cordons.clone(), lease.clone()).await?;
        let (keys, accounts) = (stores.ssh_keys.clone(), stores.accounts.clone());
        let tenants = Tenants::load(keys, accounts, lease.clone()).await?;
        let door = Door {
            enrolment: enrolment.clone(),
            inventory: inventory.clone(),
            control: Arc::clone(&nodes.control),
        };
        let groups = groups::Parts {
            groups: stores.groups.clone(),
            sets: stores.sets.clone(),
            records: records.clone(),
            desk,
            inventory: inventory.clone(),
            control: Arc::clone(&nodes.control),
            events: events.clone(),
            lease: lease.clone(),
        };
        let groups = Box::pin(Groups::load(groups)).await?;
        let machines = Machines::new(vm::Parts {
            groups: groups.clone(),
            records,
            observed,
            cordons,
            tenants,
            inventory: inventory.clone(),
            control: Arc::clone(&nodes.control),
            reserves: Arc::new(networks.clone()),
            pictures: Arc::new(images.clone()),
            works: Arc::new(submit.clone()),
            doorman: Arc::new(door),
            events: events.clone(),
            settings: parts.config.vm.clone(),
            keep_for: vm::KEEP_FOR,
        });
        nodes.engine.conduct_with(Arc::new(Broker {
            submit: submit.clone(),
            library: library.clone(),
            machines: machines.clone(),
        }));
        let places = Places::new(stores.places.clone(), lease.clone());
        let outside = (
            parts.hooks.clone(),
            events.clone(),
            places,
            past.numbering(),
        );
        let (held, log, places, numbering) = outside.clone();
        let triggers = Triggers::new(held, log, places, numbering);
        let (held, log, places, numbering) = outside;
        let routes = Routes::new(held.clone(), log.clone(), places.clone(), numbering.clone());
        let chat = chat::Parts {
            js: link.js.clone(),
            stores: stores.chat.clone(),
            lease: lease.clone(),
            events: log,
            places,
            numbering,
            held,
            routes: routes.clone(),
        };
        let chat = Box::pin(Chat::open(chat)).await?;
        let lapses = watch::Sender::new(0);
        let state = AppState {
            retention,
            config: Arc::clone(&parts.config),
            inventory: inventory.clone(),
            authority,
            enrolment: enrolment.clone(),
            tokens,
            lease: lease.clone(),
            audit,
            events: events.clone(),
            hooks: Hooks::new(parts.hooks.clone(), events.clone()),
            triggers: triggers.clone(),
            routes: routes.clone(),
            desk: Desk::new(Totps::new(stores.totp.clone(), lease.clone(), &parts.root)),
            chat: chat.clone(),
            freezer,
            past,
            guard,
            policies,
            submit: submit.clone(),
            control: Arc::clone(&nodes.control),
            peers: peers.clone(),
            nodes: nodes.clone(),
            link: link.clone(),
            releases,
            library: library.clone(),
            schedules: schedules.clone(),
            machines: machines.clone(),
            images: images.clone(),
            networks,
            groups: groups.clone(),
            limiter: Arc::new(Limiter::new(parts.config.open_requests_per_second)),
            principals: Arc::new(PrincipalLimiter::new(
                parts.config.limits.requests_per_second,
            )),
            watching: Arc::new(tokio::sync::Semaphore::new(
                parts.config.limits.watchers as usize,
            )),
            lapses: lapses.subscribe(),
            once: Once::new(stores.once.clone(), lease.clone(), &parts.root),
            metrics: Metrics::of_process(),
            tls: parts.own.clone(),
            backing_up: Arc::new(tokio::sync::Semaphore::new(1)),
            shutdown: cancel.clone(),
        };
        tasks.spawn(look(lapses, lease.clone(), cancel.clone()));
        if let Some(own) = &parts.own {
            tasks.spawn(own.clone().tell(state.events.clone(), cancel.clone()));
        }
        tasks.spawn(events.clone().follow(cancel.clone()));
        tasks.spawn(parts.hooks.clone().follow(events, cancel.clone()));
        tasks.spawn(triggers.keep(submit.clone(), machines.clone(), cancel.clone()));
        tasks.spawn(routes.keep(cancel.clone()));
        let ran = RunsAndMachines {
            engine: nodes.engine.clone(),
            machines: machines.clone(),
        };
        tasks.spawn(chat.keep(Arc::new(ran), cancel.clone()));
        tasks.spawn(schedules.keep(submit, cancel.clone()));
        tasks.spawn(groups.keep(nodes.bus.clone(), cancel.clone()));
        tasks.spawn(machines.clone().keep(cancel.clone()));
        tasks.spawn(machines.reconcile(cancel.clone()));
        tasks.spawn(tidy_library(library, nodes.engine.clone(), cancel.clone()));
        tasks.spawn(images.keep(cancel.clone()));
        tasks.spawn(inventory.tend(cancel.clone()));
        let remembering = peers.clone();
        tasks.spawn(remembering.remember(stores.brokers.clone(), cancel.clone()));
        tasks.spawn(tidy(enrolment, cancel.clone()));
        tasks.spawn(keeper.keep(cancel.clone()));
        tasks.spawn(compare(
            suspicions,
            parts.twin.clone(),
            link.js.clone(),
            cancel.clone(),
        ));
        tasks.spawn(async move { nodes.stopped().await });
        begun.disarm();
        Ok(Self {
            state,
            cancel,
            tasks,
            fence,
        })
    }

    /// Returns when this session is out of date because of its fence: see
    /// [`Fence::confirmed`].
    pub(crate) async fn outdated(&mut self, lease: &Lease) -> Option<u64> {
        self.fence.confirmed(lease).await
    }

    /// The API of this session.
    pub(crate) fn router(&self) -> Router {
        router(self.state.clone())
    }

    /// What is known of the room that is left.
    pub(crate) fn retention(&self) -> Retention {
        self.state.retention.clone()
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

/// Looks whether this broker is the active one still, for all who follow
/// something.
async fn look(lapses: watch::Sender<u64>, lease: Lease, cancel: CancellationToken) {
    while cancel.run_until_cancelled(sleep(LOOK)).await.is_some() {
        if lease.epoch().is_none() {
            lapses.send_modify(|times| *times += 1);
        }
    }
}

/// How runs are kept.
pub(super) fn runs_settings(config: &Config) -> runs::Settings {
    runs::Settings {
        max_age: config.retention.runs.get(),
        max_bytes: config.retention.bytes.get(),
        ..runs::Settings::default()
    }
}

/// Compares the store with the twin whenever it is suspected to have gone
/// back. When it has, the twin says so, and the session ends by that.
async fn compare(
    mut suspicions: watch::Receiver<u64>,
    twin: Twin,
    js: Context,
    cancel: CancellationToken,
) {
    while let Some(Ok(())) = cancel.run_until_cancelled(suspicions.changed()).await {
        tracing::warn!("something in the store was not written by this broker; it is compared");
        match cancel.run_until_cancelled(twin.examine(&js)).await {
            Some(Ok(true)) => tracing::error!("the store is not what it was"),
            Some(Ok(false)) => tracing::info!("nothing in the store is lost"),
            // Whenever there is an answer: it may be what is wrong.
            Some(Err(error)) => {
                tracing::warn!(%error, "the store cannot be compared; trying again");
                suspicions.mark_changed();
                let _ = cancel.run_until_cancelled(sleep(COMPARE_AGAIN)).await;
            }
            None => return,
        }
    }
}

/// Bundles that no version and no open run needs go.
async fn tidy_library(library: Library, engine: runs::Engine, cancel: CancellationToken) {
    loop {
        if cancel
            .run_until_cancelled(sleep(TIDY_EVERY))
            .await
            .is_none()
        {
            return;
        }
        match engine.open_bundles().await {
            Ok(pinned) => match library.tidy(pinned).await {
                Ok(0) => {}
                Ok(gone) => tracing::info!(gone, "bundles that nobody needs are removed"),
                Err(error) => tracing::debug!(%error, "old bundles could not be removed"),
            },
            Err(error) => tracing::debug!(%error, "old bundles could not be removed"),
        }
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
