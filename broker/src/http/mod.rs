//! The HTTP API: every route with its authorisation, every error a problem
//! document.

pub mod matching;
pub mod ping;
pub mod problem;
pub mod runs;
pub mod sse;

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use muster_protocol::problem::Kind;

use crate::authority::Authority;
use crate::authz::{Action, Authorized, Caller, Policy, authorize};
use crate::events::Events;
use crate::inventory::{Inventory, NodeControl};
use crate::lease::Lease;

pub use self::problem::{ApiError, ApiJson, ApiPath, ApiQuery};

/// Everything that handlers use. Cheap to clone.
#[derive(Clone)]
pub struct AppState {
    /// The nodes.
    pub inventory: Inventory,
    /// The keys.
    pub authority: Authority,
    /// Whether this broker may write.
    pub lease: Lease,
    /// What happens in the cluster.
    pub events: Events,
    /// Who may do what.
    pub policy: Arc<dyn Policy>,
    /// The way to the nodes.
    pub control: Arc<dyn NodeControl>,
    /// Runs, pings, plans: everything that talks with the nodes.
    pub nodes: crate::bus::Nodes,
}

impl AppState {
    /// [`authorize`] under this broker's policy.
    ///
    /// # Errors
    /// A `denied` problem.
    pub fn authorize<T>(
        &self,
        caller: &Caller,
        action: Action,
        subject: T,
    ) -> Result<Authorized<T>, ApiError> {
        Ok(authorize(&*self.policy, caller, action, subject)?)
    }

    /// The lease's epoch, for a handler that is about to write.
    ///
    /// # Errors
    /// An `unavailable` problem when this broker is not the active one now.
    pub fn active(&self) -> Result<u64, ApiError> {
        self.lease.epoch().ok_or_else(|| {
            ApiError::new(Kind::Unavailable, "this broker is not the active one now")
                .hint("try again in a few seconds; if it stays so, look at `muster doctor`")
        })
    }
}

/// The caller, by its bearer token. A handler that takes no `Caller` is open.
impl FromRequestParts<AppState> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(_parts: &mut Parts, _state: &AppState) -> Result<Self, ApiError> {
        Err(ApiError::new(
            Kind::Unauthenticated,
            "a valid API token is needed",
        ))
    }
}
