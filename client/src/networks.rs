//! Networks that machines are in.

use muster_protocol::api::{NetworkView, Page, PutNetwork};
use muster_protocol::names::LanName;
use reqwest::Method;

use crate::client::{Ask, Client};
use crate::error::ClientError;

impl Client {
    /// `GET /v1/networks`.
    ///
    /// # Errors
    /// [`ClientError`], as for every method here.
    pub async fn networks(&self) -> Result<Vec<NetworkView>, ClientError> {
        let page: Page<NetworkView> = self
            .ask::<(), _>(Ask::plain(Method::GET, &["v1", "networks"], None))
            .await?;
        Ok(page.items)
    }

    /// `GET /v1/networks/{name}`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn network(&self, name: &LanName) -> Result<NetworkView, ClientError> {
        self.ask::<(), _>(Ask::plain(
            Method::GET,
            &["v1", "networks", name.as_str()],
            None,
        ))
        .await
    }

    /// `PUT /v1/networks/{name}`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn put_network(
        &self,
        name: &LanName,
        network: &PutNetwork,
    ) -> Result<NetworkView, ClientError> {
        self.ask(Ask::plain(
            Method::PUT,
            &["v1", "networks", name.as_str()],
            Some(network),
        ))
        .await
    }

    /// `DELETE /v1/networks/{name}`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn remove_network(&self, name: &LanName) -> Result<(), ClientError> {
        self.tell::<()>(Ask::plain(
            Method::DELETE,
            &["v1", "networks", name.as_str()],
            None,
        ))
        .await
    }
}
