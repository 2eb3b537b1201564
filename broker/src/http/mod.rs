//! The HTTP API: every route with its authorisation, every error a problem
//! document.

mod agent;
mod audit;
mod auth;
mod backup;
mod brokers;
mod chat;
mod chat_feed;
mod document;
mod events;
mod freeze;
mod front;
mod gate;
mod hooks;
mod hypervisors;
mod images;
mod invites;
mod keys;
mod limit;
mod matching;
mod metrics;
mod networks;
mod node_firewall;
mod nodes;
mod once;
mod page;
mod ping;
mod policy;
pub mod problem;
mod reference;
mod releases;
mod runs;
mod scenarios;
mod schedules;
mod sse;
mod status;
mod tenants;
#[cfg(test)]
mod tests;
mod tokens;
mod vms;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request};
use axum::http::{Method, Uri};
use axum::middleware::{self, Next};
use axum::response::Response;
use muster_protocol::problem::Kind;
use muster_protocol::text::printable;
use tokio_util::sync::CancellationToken;
use utoipa_axum::router::OpenApiRouter;

use crate::audit::{Audit, as_request};
use crate::authority::Authority;
use crate::authz::{Action, Authorized, Caller, Guard};
use crate::bus::Nodes;
use crate::chat::Chat;
use crate::config::Config;
use crate::enroll::Enrolment;
use crate::events::Events;
use crate::freeze::Freezer;
use crate::hooks::Hooks;
use crate::inventory::{Inventory, NodeControl};
use crate::lease::Lease;
use crate::library::Library;
use crate::link::Link;
use crate::peers::Peers;
use crate::policy::Policies;
use crate::releases::Releases;
use crate::routes::Routes;
use crate::schedules::Schedules;
use crate::submit::Submit;
use crate::tokens::Tokens;
use crate::triggers::Triggers;
use crate::vm::Machines;
use crate::vm::images::Images;
use crate::vm::networks::Networks;

pub use self::auth::{OpenDoor, RemoteAddr};
pub use self::document::document;
pub(crate) use self::freeze::view as freeze_view;
pub use self::front::Front;
pub(crate) use self::hypervisors::{change_hypervisor, drain_hypervisor};
pub use self::limit::{Limiter, PrincipalLimiter};
pub(crate) use self::once::IDEMPOTENCY_KEY;
pub use self::page::{Paging, page, page_of};
pub use self::problem::{ApiError, ApiJson, ApiPath, ApiQuery};
pub(crate) use self::runs::wish;
pub(crate) use self::vms::{
    act_on_vm, create_vms, destroy_vm, show_vm, vms as find_vms, word as status_word,
};

/// Largest body of a request, in bytes.
pub const MAX_BODY: usize = 1024 * 1024;

/// Everything that handlers use. Cheap to clone.
#[derive(Clone)]
pub struct AppState {
    /// What the operator has set.
    pub config: Arc<Config>,
    /// The nodes.
    pub inventory: Inventory,
    /// What is known of the room that is left.
    pub retention: crate::retention::Retention,
    /// The keys.
    pub authority: Authority,
    /// Invites and credentials of nodes.
    pub enrolment: Enrolment,
    /// API tokens.
    pub tokens: Tokens,
    /// Whether this broker may write.
    pub lease: Lease,
    /// What happens in the cluster.
    pub events: Events,
    /// Who asked for what.
    pub audit: Audit,
    /// What comes in from outside.
    pub hooks: Hooks,
    /// Events that become runs.
    pub triggers: Triggers,
    /// Events that are sent on.
    pub routes: Routes,
    /// What is said in chats.
    pub desk: crate::chat::desk::Desk,
    /// What is to be said in chat networks.
    pub chat: Chat,
    /// Whether anything is begun on the nodes.
    pub freezer: Freezer,
    /// What the store has lost, as far as is known.
    pub past: crate::twin::Past,
    /// Who may do what.
    pub guard: Guard,
    /// Who may do what, as it is stored.
    pub policies: Policies,
    /// The way to the nodes.
    pub control: Arc<dyn NodeControl>,
    /// The brokers of the cluster.
    pub peers: Peers,
    /// The connections to NATS.
    pub link: Link,
    /// Runs, pings, plans, presence: everything that talks with the nodes.
    pub nodes: Nodes,
    /// The one way to a new run.
    pub submit: Submit,
    /// Agents that nodes can be upgraded to.
    pub releases: Releases,
    /// Stored scenarios.
    pub library: Library,
    /// Runs that begin when their time comes.
    pub schedules: Schedules,
    /// Virtual machines.
    pub machines: Machines,
    /// Disk images.
    pub images: Images,
    /// Networks that machines are in, and who has which address.
    pub networks: Networks,
    /// How much those without a token may ask.
    pub limiter: Arc<Limiter>,
    /// How much a principal may ask.
    pub principals: Arc<PrincipalLimiter>,
    /// Room for those who follow a run, or wait for its end.
    pub watching: Arc<tokio::sync::Semaphore>,
    /// How often this broker was found not to be the active one.
    pub(crate) lapses: tokio::sync::watch::Receiver<u64>,
    /// What came of requests that name themselves.
    pub once: crate::once::Once,
    /// What is counted, for Prometheus.
    pub metrics: crate::metrics::Metrics,
    /// The operator's own certificate, where there is one.
    pub tls: Option<crate::tls::OwnCertificate>,
    /// Held while a backup is made: one at a time.
    pub backing_up: Arc<tokio::sync::Semaphore>,
    /// Cancelled when this API ends: streams end then.
    pub shutdown: CancellationToken,
}

impl AppState {
    /// Changes when this broker is not the active one, from now on.
    pub(crate) fn lapses(&self) -> tokio::sync::watch::Receiver<u64> {
        let mut lapses = self.lapses.clone();
        // A clone has seen no more than what it was cloned from: lapses of
        // before, after which this broker was active again, do not count.
        lapses.mark_unchanged();
        lapses
    }

    /// [`Guard::authorize`] under this broker's policy.
    ///
    /// # Errors
    /// A `denied` problem.
    pub async fn authorize<T: 'static>(
        &self,
        caller: &Caller,
        action: Action,
        subject: T,
    ) -> Result<Authorized<T>, ApiError> {
        Ok(self.guard.authorize(caller, action, subject).await?)
    }

    /// [`Guard::admit`] under this broker's policy.
    ///
    /// # Errors
    /// A `denied` problem.
    pub async fn admit(&self, caller: &Caller, action: Action) -> Result<(), ApiError> {
        Ok(self.guard.admit(caller, action).await?)
    }

    /// The lease's epoch, for a handler that is about to write.
    ///
    /// # Errors
    /// An `unavailable` problem when this broker is not the active one now.
    pub fn active(&self) -> Result<u64, ApiError> {
        self.lease.epoch().ok_or_else(problem::not_active)
    }
}

/// Every route of the API, with its description. Whoever adds routes merges
/// them here.
#[must_use]
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::with_openapi(document::base())
        .merge(agent::routes())
        .merge(audit::routes())
        .merge(backup::routes())
        .merge(brokers::routes())
        .merge(chat::routes())
        .merge(chat_feed::routes())
        .merge(events::routes())
        .merge(hooks::routes())
        .merge(freeze::routes())
        .merge(hypervisors::routes())
        .merge(images::routes())
        .merge(invites::routes())
        .merge(keys::routes())
        .merge(matching::routes())
        .merge(metrics::routes())
        .merge(networks::routes())
        .merge(node_firewall::routes())
        .merge(nodes::routes())
        .merge(ping::routes())
        .merge(policy::routes())
        .merge(releases::routes())
        .merge(runs::routes())
        .merge(scenarios::routes())
        .merge(tenants::routes())
        .merge(schedules::routes())
        .merge(sse::routes())
        .merge(status::routes())
        .merge(tokens::routes())
        .merge(vms::routes())
}

/// The API as a service.
pub fn router(state: AppState) -> Router {
    let (router, _) = routes().split_for_parts();
    router
        .fallback(not_found)
        .method_not_allowed_fallback(not_allowed)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn(note_route))
        .layer(axum::middleware::from_fn(recorded))
        .with_state(state)
}

/// Tells whoever counts requests which route it was.
async fn note_route(request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().cloned();
    let mut response = next.run(request).await;
    if let Some(route) = route {
        response.extensions_mut().insert(route);
    }
    response
}

/// Does something that must be finished once it is begun, also when the client
/// goes away and its request is dropped.
pub(super) async fn finish<T, E>(
    work: impl Future<Output = Result<T, E>> + Send + 'static,
) -> Result<T, ApiError>
where
    T: Send + 'static,
    E: Into<ApiError> + Send + 'static,
{
    tokio::spawn(work)
        .await
        .map_err(|e| ApiError::internal(&e))?
        .map_err(Into::into)
}

/// What is decided while a request is served is recorded as of it.
async fn recorded(
    request: axum::extract::Request,
    next: axum::middleware::Next,
) -> axum::response::Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    as_request(method.as_str(), &path, next.run(request)).await
}

async fn not_found(uri: Uri) -> ApiError {
    ApiError::new(
        Kind::NotFound,
        format!("there is no {}", printable(uri.path(), 120)),
    )
    .hint("GET /openapi.json lists what there is")
}

async fn not_allowed(method: Method, uri: Uri) -> ApiError {
    let title = format!(
        "{} does not take {}",
        printable(uri.path(), 120),
        printable(method.as_str(), 20)
    );
    ApiError::new(Kind::InvalidRequest, title).status(405)
}
