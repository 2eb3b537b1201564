//! Who may do what.

use std::time::Duration;

use muster_protocol::api::{
    ExplainRequest, Explained, Page, PolicySchema, PolicyStored, PolicyVersion, PolicyView,
    PrincipalView, PutPolicy,
};
use reqwest::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::client::{Ask, Client};
use crate::error::ClientError;

impl Client {
    async fn policy_ask<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&'static str, String)],
        body: Option<&B>,
    ) -> Result<T, ClientError> {
        self.ask(Ask {
            method,
            path,
            query,
            body,
            extra_time: Duration::ZERO,
            key: None,
        })
        .await
    }

    /// `GET /v1/policy`: the version in force when none is named.
    ///
    /// # Errors
    /// [`ClientError`], as for every method here.
    pub async fn policy(&self, version: Option<u32>) -> Result<PolicyView, ClientError> {
        let query: Vec<_> = version
            .map(|version| ("version", version.to_string()))
            .into_iter()
            .collect();
        self.policy_ask::<(), _>(Method::GET, &["v1", "policy"], &query, None)
            .await
    }

    /// `PUT /v1/policy`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn put_policy(&self, put: &PutPolicy) -> Result<PolicyStored, ClientError> {
        self.policy_ask(Method::PUT, &["v1", "policy"], &[], Some(put))
            .await
    }

    /// `GET /v1/policy/history`: the newest first.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn policy_history(&self) -> Result<Vec<PolicyVersion>, ClientError> {
        let path = ["v1", "policy", "history"];
        let page: Page<PolicyVersion> = self
            .policy_ask::<(), _>(Method::GET, &path, &[], None)
            .await?;
        Ok(page.items)
    }

    /// `GET /v1/policy/schema`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn policy_schema(&self) -> Result<PolicySchema, ClientError> {
        let path = ["v1", "policy", "schema"];
        self.policy_ask::<(), _>(Method::GET, &path, &[], None)
            .await
    }

    /// `POST /v1/policy/explain`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn explain(&self, request: &ExplainRequest) -> Result<Explained, ClientError> {
        let path = ["v1", "policy", "explain"];
        self.policy_ask(Method::POST, &path, &[], Some(request))
            .await
    }

    /// `GET /v1/principals`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn principals(&self) -> Result<Vec<PrincipalView>, ClientError> {
        let path = ["v1", "principals"];
        let page: Page<PrincipalView> = self
            .policy_ask::<(), _>(Method::GET, &path, &[], None)
            .await?;
        Ok(page.items)
    }
}
