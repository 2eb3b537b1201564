//! Public keys that have names, and accounts.

use muster_protocol::api::{AccountView, Page, PutAccount, PutSshKey, SshKeyView};
use muster_protocol::names::{AccountName, SshKeyName};
use reqwest::Method;

use crate::client::{Ask, Client};
use crate::error::ClientError;

impl Client {
    /// `GET /v1/ssh-keys`.
    ///
    /// # Errors
    /// [`ClientError`], as for every method here.
    pub async fn ssh_keys(&self) -> Result<Vec<SshKeyView>, ClientError> {
        let path = ["v1", "ssh-keys"];
        let page: Page<SshKeyView> = self.ask(Ask::<()>::plain(Method::GET, &path, None)).await?;
        Ok(page.items)
    }

    /// `GET /v1/ssh-keys/{name}`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn ssh_key(&self, name: &SshKeyName) -> Result<SshKeyView, ClientError> {
        let path = ["v1", "ssh-keys", name.as_str()];
        self.ask(Ask::<()>::plain(Method::GET, &path, None)).await
    }

    /// `PUT /v1/ssh-keys/{name}`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn put_ssh_key(
        &self,
        name: &SshKeyName,
        put: &PutSshKey,
    ) -> Result<SshKeyView, ClientError> {
        let path = ["v1", "ssh-keys", name.as_str()];
        self.ask(Ask::plain(Method::PUT, &path, Some(put))).await
    }

    /// `DELETE /v1/ssh-keys/{name}`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn remove_ssh_key(&self, name: &SshKeyName) -> Result<(), ClientError> {
        let path = ["v1", "ssh-keys", name.as_str()];
        self.tell(Ask::<()>::plain(Method::DELETE, &path, None))
            .await
    }

    /// `GET /v1/accounts`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn accounts(&self) -> Result<Vec<AccountView>, ClientError> {
        let path = ["v1", "accounts"];
        let page: Page<AccountView> = self.ask(Ask::<()>::plain(Method::GET, &path, None)).await?;
        Ok(page.items)
    }

    /// `PUT /v1/accounts/{name}`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn put_account(
        &self,
        name: &AccountName,
        put: &PutAccount,
    ) -> Result<AccountView, ClientError> {
        let path = ["v1", "accounts", name.as_str()];
        self.ask(Ask::plain(Method::PUT, &path, Some(put))).await
    }

    /// `DELETE /v1/accounts/{name}`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn remove_account(&self, name: &AccountName) -> Result<(), ClientError> {
        let path = ["v1", "accounts", name.as_str()];
        self.tell(Ask::<()>::plain(Method::DELETE, &path, None))
            .await
    }
}
