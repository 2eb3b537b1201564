//! The record of who asked for what.

use std::time::Duration;

use muster_protocol::api::Page;
use muster_protocol::audit::Record;
use muster_protocol::names::PrincipalName;
use muster_protocol::units::Timestamp;
use reqwest::Method;

use crate::backup::Pieces;
use crate::client::{Ask, Client};
use crate::error::ClientError;
use crate::reference::Reference;

/// Which records are wanted; what is absent does not matter.
#[derive(Clone, Debug, Default)]
pub struct AuditQuery {
    /// Of this principal.
    pub principal: Option<PrincipalName>,
    /// Of this action.
    pub action: Option<String>,
    /// About this run.
    pub run: Option<Reference>,
    /// Only what was denied.
    pub denied: bool,
    /// Not before.
    pub since: Option<Timestamp>,
    /// With a lower number.
    pub before: Option<u64>,
}

impl Client {
    /// `GET /v1/audit`: the newest records, oldest first.
    ///
    /// # Errors
    /// [`ClientError`], as for every method here.
    pub async fn audit(
        &self,
        wanted: &AuditQuery,
        limit: u32,
    ) -> Result<Page<Record>, ClientError> {
        let mut query = vec![("limit", limit.to_string())];
        let mut add = |name, value: Option<String>| query.extend(value.map(|value| (name, value)));
        add(
            "principal",
            wanted.principal.as_ref().map(ToString::to_string),
        );
        add("action", wanted.action.clone());
        add(
            "run",
            wanted.run.as_ref().map(|run| run.as_str().to_owned()),
        );
        add("denied", wanted.denied.then(|| "true".to_owned()));
        add("since", wanted.since.map(|at| at.to_string()));
        add("before", wanted.before.map(|n| n.to_string()));
        self.ask::<(), _>(Ask {
            method: Method::GET,
            path: &["v1", "audit"],
            query: &query,
            body: None,
            extra_time: Duration::from_secs(30),
            key: None,
        })
        .await
    }

    /// `GET /v1/audit/export`: everything that is kept of it, a JSON text a
    /// line.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn audit_export(&self) -> Result<Pieces, ClientError> {
        self.pieces(&["v1", "audit", "export"]).await
    }
}
