//! Everything that talks with the nodes, put together and started.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::{Client, SubscribeError};
use muster_protocol::units::{Span, Timestamp};
use muster_protocol::wire::Recall;
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Bus;
use super::bundles::BundleDesk;
use super::control::Control;
use super::listen::{Ears, FactsDesk};
use crate::authority::Authority;
use crate::events::Events;
use crate::freeze::Freezer;
use crate::hello::Porter;
use crate::inventory::{Inventory, NodeControl};
use crate::lease::Lease;
use crate::library::Library;
use crate::nats::admin::SystemClient;
use crate::nats::keys::AccountKey;
use crate::node_firewall::{NodeFirewall, Prober};
use crate::ping::Pinger;
use crate::plans::Plans;
use crate::presence::{Journals, Presence, follow_connections};
use crate::runs::{self, Engine};
use crate::twin::{Past, ReportAgain};
use crate::vm::Observed;

/// So much before the time from which on something may be missing is reported
/// again, too.
const MARGIN: Duration = Duration::from_secs(120);
/// Lists of broker keys from nodes that are looked at at a time.
const LISTS_AT_ONCE: usize = 4;
/// How often the lease is looked at, for the roll call.
const LOOK: Duration = Duration::from_millis(200);

/// How the broker deals with its nodes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Settings {
    /// How runs are kept.
    pub runs: runs::Settings,
    /// How often nodes say that they are there; 5 s when absent.
    pub beat_every: Option<Span>,
    /// A run on more nodes needs a confirmation.
    pub confirm_above: u32,
    /// How long a plan, or a run that is to be confirmed later, waits.
    pub confirm_within: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            runs: runs::Settings::default(),
            beat_every: None,
            confirm_above: 20,
            confirm_within: crate::plans::PLAN_LIFE,
        }
    }
}

/// What it takes to talk with the nodes.
pub struct Deps {
    /// The broker's connection in muster's account.
    pub client: Client,
    /// JetStream over it, from [`crate::store::context`].
    pub js: Context,
    /// The nodes.
    pub inventory: Inventory,
    /// The keys.
    pub authority: Authority,
    /// Whether this broker may write and publish.
    pub lease: Lease,
    /// What happens in the cluster.
    pub events: Events,
    /// How far the journals of the nodes are.
    pub journals: Journals,
    /// What the store has lost, as far as is known.
    pub past: Past,
    /// The system account's connection, through which the server says whose
    /// connection has ended; without it only missing heartbeats say so.
    pub connections: Option<(SystemClient, AccountKey)>,
    /// Where nodes get the bundles from that they lack; without it they are
    /// told that there are none.
    pub library: Option<Library>,
    /// Whether anything is begun on the nodes.
    pub freezer: Freezer,
    /// What hypervisors say of their machines.
    pub observed: Observed,
    /// How.
    pub settings: Settings,
    /// Ends everything.
    pub cancel: CancellationToken,
}

/// Why it could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The subscription to what nodes say.
    #[error("cannot subscribe to what the nodes say: {0}")]
    Subscribe(#[from] SubscribeError),
    /// The server did not confirm it.
    #[error("the NATS server does not answer: {0}")]
    Flush(String),
}

/// Everything that talks with the nodes. Cheap to clone.
#[derive(Clone)]
pub struct Nodes {
    /// Runs.
    pub engine: Engine,
    /// Pings.
    pub pinger: Pinger,
    /// Changes of nodes' own firewalls.
    pub firewall: NodeFirewall,
    /// Plans that wait for a confirmation.
    pub plans: Plans,
    /// Who is there.
    pub presence: Presence,
    /// For the inventory and the authority.
    pub control: Arc<dyn NodeControl>,
    /// As it was started.
    pub settings: Settings,
    tasks: TaskTracker,
}

impl std::fmt::Debug for Nodes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nodes")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl Nodes {
    /// Begins to listen; runs are served as soon as this broker is active.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(deps: Deps) -> Result<Self, StartError> {
        let Deps {
            client,
            js,
            inventory,
            authority,
            lease,
            events,
            journals,
            past,
            connections,
            library,
            freezer,
            observed,
            settings,
            cancel,
        } = deps;
        let bus = Bus::new(client, authority, lease);
        let presence = Presence::new(
            inventory.clone(),
            events.clone(),
            journals.clone(),
            settings.beat_every,
        );
        let pinger = Pinger::new(bus.clone(), inventory.clone(), presence.clone());
        let engine = Engine::new(
            js,
            bus.clone(),
            inventory.clone(),
            presence.clone(),
            (events.clone(), past.clone()),
            settings.runs.clone(),
        );
        engine.freeze_with(freezer.clone());
        let porter = Porter::new(
            bus.clone(),
            inventory.clone(),
            presence.clone(),
            pinger.clone(),
            events.clone(),
            engine.clone(),
            (past.clone(), freezer.clone()),
        );
        let control = Arc::new(Control {
            bus: bus.clone(),
            presence: presence.clone(),
            inventory: inventory.clone(),
        });
        let prober = Prober::new(bus.clone());
        let firewall = NodeFirewall::new(inventory.clone(), engine.clone(), prober.clone());
        let ears = Ears {
            control: control.clone(),
            bus: bus.clone(),
            inventory: inventory.clone(),
            presence: presence.clone(),
            pinger: pinger.clone(),
            prober: prober.clone(),
            porter,
            freezer: freezer.clone(),
            observed,
            engine: engine.clone(),
            events,
            facts: Arc::new(FactsDesk::new()),
            bundles: Arc::new(BundleDesk::new(library)),
            lists: Arc::new(Semaphore::new(LISTS_AT_ONCE)),
        };
        let ear = ears.open().await?;
        bus.client()
            .flush()
            .await
            .map_err(|e| StartError::Flush(e.to_string()))?;
        let tasks = TaskTracker::new();
        tasks.spawn(ears.listen(ear, cancel.clone()));
        tasks.spawn(presence.clone().keep(bus.clone(), cancel.clone()));
        tasks.spawn(engine.clone().supervise(cancel.clone()));
        tasks.spawn(freezer.keep(
            bus.clone(),
            inventory.clone(),
            presence.clone(),
            cancel.clone(),
        ));
        let roll = call_the_roll(bus.clone(), pinger.clone(), past, cancel.clone());
        tasks.spawn(roll);
        tasks.spawn(journals.keep(cancel.clone()));
        if let Some((system, account)) = connections {
            let follow = follow_connections(presence.clone(), inventory, system, account, cancel);
            tasks.spawn(follow);
        }
        tasks.close();
        Ok(Self {
            engine,
            pinger,
            firewall,
            plans: Plans::default(),
            presence,
            control,
            settings,
            tasks,
        })
    }

    /// Waits until everything has ended, after the token was cancelled.
    pub async fn stopped(&self) {
        self.tasks.wait().await;
    }
}

/// Asks every node to show itself whenever this broker becomes the active one,
/// and to report what the store has lost, if it has.
async fn call_the_roll(bus: Bus, pinger: Pinger, past: Past, cancel: CancellationToken) {
    let mut called = None;
    loop {
        let epoch = bus.lease().epoch();
        if epoch != called && bus.is_connected() {
            called = epoch;
            if epoch.is_some() {
                pinger.call_the_roll().await;
                if let Some(again) = past.report_again() {
                    // Who says hello hears it then; this is for those that
                    // were welcomed before it was known.
                    pinger.recall(recall(again)).await;
                }
            }
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            () = sleep(LOOK) => {}
        }
    }
}

/// What nodes are told about a time that the store has lost.
pub(crate) fn recall(again: ReportAgain) -> Recall {
    // Margins for clocks that are apart and what was on its way.
    let since = again.since.checked_sub(MARGIN).unwrap_or(Timestamp::MIN);
    Recall {
        id: again.id,
        since,
    }
}
