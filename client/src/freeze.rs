//! Stopping everything new, and letting it go on.

use std::time::Duration;

use muster_protocol::api::{FreezeRequest, FreezeView, ThawRequest};
use reqwest::Method;
use serde::Serialize;

use crate::client::{Ask, Client};
use crate::error::ClientError;

impl Client {
    /// `GET /v1/freeze`.
    ///
    /// # Errors
    /// [`ClientError`], as for every method here.
    pub async fn freeze_state(&self) -> Result<FreezeView, ClientError> {
        self.of_freeze::<()>(Method::GET, "freeze", None).await
    }

    /// `POST /v1/freeze`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn freeze(&self, request: &FreezeRequest) -> Result<FreezeView, ClientError> {
        self.of_freeze(Method::POST, "freeze", Some(request)).await
    }

    /// `POST /v1/thaw`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn thaw(&self, request: &ThawRequest) -> Result<FreezeView, ClientError> {
        self.of_freeze(Method::POST, "thaw", Some(request)).await
    }

    async fn of_freeze<B: Serialize>(
        &self,
        method: Method,
        what: &str,
        body: Option<&B>,
    ) -> Result<FreezeView, ClientError> {
        self.ask(Ask {
            method,
            path: &["v1", what],
            query: &[],
            body,
            extra_time: Duration::ZERO,
            key: None,
        })
        .await
    }
}
