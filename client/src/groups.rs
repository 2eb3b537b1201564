//! Security groups and sets of addresses.

use std::time::Duration;

use muster_protocol::api::{
    AddRule, ChangeVmGroups, ChangeVmPairs, CreateGroup, GroupChanged, GroupVersion, GroupView,
    Page, PutSet, RollbackGroup, SetVersion, SetView, VmGuarded,
};
use muster_protocol::firewall::RuleId;
use muster_protocol::names::{GroupName, SetName, VmName};
use reqwest::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::client::{Ask, Client};
use crate::error::ClientError;
use crate::once::Key;

/// A change waits a moment until it is in force everywhere.
const IN_FORCE: Duration = Duration::from_secs(10);

impl Client {
    /// Changes something once, however often it has to be asked for.
    async fn change<B: Serialize + ?Sized, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &[&str],
        body: Option<&B>,
    ) -> Result<T, ClientError> {
        self.until_known(Ask {
            method,
            path,
            query: &[],
            body,
            extra_time: IN_FORCE,
            key: Some(&Key::random()),
        })
        .await
    }

    /// `GET /v1/groups`, all pages.
    ///
    /// # Errors
    /// [`ClientError`], as for every method here.
    pub async fn groups(&self) -> Result<Vec<GroupView>, ClientError> {
        self.all(&["v1", "groups"], &[]).await
    }

    /// `GET /v1/groups/{name}`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn group(&self, name: &GroupName) -> Result<GroupView, ClientError> {
        let path = ["v1", "groups", name.as_str()];
        self.ask(Ask::<()>::plain(Method::GET, &path, None)).await
    }

    /// `POST /v1/groups`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn create_group(&self, group: &CreateGroup) -> Result<GroupChanged, ClientError> {
        self.change(Method::POST, &["v1", "groups"], Some(group))
            .await
    }

    /// `DELETE /v1/groups/{name}`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn remove_group(&self, name: &GroupName) -> Result<(), ClientError> {
        let path = ["v1", "groups", name.as_str()];
        self.tell(Ask::<()>::plain(Method::DELETE, &path, None))
            .await
    }

    /// `POST /v1/groups/{name}/rules`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn allow(
        &self,
        name: &GroupName,
        rule: &AddRule,
    ) -> Result<GroupChanged, ClientError> {
        let path = ["v1", "groups", name.as_str(), "rules"];
        self.change(Method::POST, &path, Some(rule)).await
    }

    /// `DELETE /v1/groups/{name}/rules/{rule}`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn deny(&self, name: &GroupName, rule: RuleId) -> Result<GroupChanged, ClientError> {
        let rule = rule.to_string();
        let path = ["v1", "groups", name.as_str(), "rules", &rule];
        self.change::<(), _>(Method::DELETE, &path, None).await
    }

    /// `GET /v1/groups/{name}/history`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn group_history(&self, name: &GroupName) -> Result<Vec<GroupVersion>, ClientError> {
        let path = ["v1", "groups", name.as_str(), "history"];
        let page: Page<GroupVersion> = self.ask(Ask::<()>::plain(Method::GET, &path, None)).await?;
        Ok(page.items)
    }

    /// `POST /v1/groups/{name}/rollback`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn rollback_group(
        &self,
        name: &GroupName,
        to: &RollbackGroup,
    ) -> Result<GroupChanged, ClientError> {
        let path = ["v1", "groups", name.as_str(), "rollback"];
        self.change(Method::POST, &path, Some(to)).await
    }

    /// `GET /v1/address-sets`, all pages.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn address_sets(&self) -> Result<Vec<SetView>, ClientError> {
        self.all(&["v1", "address-sets"], &[]).await
    }

    /// `GET /v1/address-sets/{name}`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn address_set(&self, name: &SetName) -> Result<SetView, ClientError> {
        let path = ["v1", "address-sets", name.as_str()];
        self.ask(Ask::<()>::plain(Method::GET, &path, None)).await
    }

    /// `PUT /v1/address-sets/{name}`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn put_address_set(
        &self,
        name: &SetName,
        put: &PutSet,
    ) -> Result<GroupChanged, ClientError> {
        let path = ["v1", "address-sets", name.as_str()];
        self.change(Method::PUT, &path, Some(put)).await
    }

    /// `DELETE /v1/address-sets/{name}`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn remove_address_set(&self, name: &SetName) -> Result<(), ClientError> {
        let path = ["v1", "address-sets", name.as_str()];
        self.tell(Ask::<()>::plain(Method::DELETE, &path, None))
            .await
    }

    /// `GET /v1/address-sets/{name}/history`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn address_set_history(
        &self,
        name: &SetName,
    ) -> Result<Vec<SetVersion>, ClientError> {
        let path = ["v1", "address-sets", name.as_str(), "history"];
        let page: Page<SetVersion> = self.ask(Ask::<()>::plain(Method::GET, &path, None)).await?;
        Ok(page.items)
    }

    /// `POST /v1/address-sets/{name}/rollback`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn rollback_address_set(
        &self,
        name: &SetName,
        to: &RollbackGroup,
    ) -> Result<GroupChanged, ClientError> {
        let path = ["v1", "address-sets", name.as_str(), "rollback"];
        self.change(Method::POST, &path, Some(to)).await
    }

    /// `POST /v1/vms/{name}/groups`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn change_vm_groups(
        &self,
        name: &VmName,
        change: &ChangeVmGroups,
    ) -> Result<VmGuarded, ClientError> {
        let path = ["v1", "vms", name.as_str(), "groups"];
        self.change(Method::POST, &path, Some(change)).await
    }

    /// `POST /v1/vms/{name}/address-pairs`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn change_vm_pairs(
        &self,
        name: &VmName,
        change: &ChangeVmPairs,
    ) -> Result<VmGuarded, ClientError> {
        let path = ["v1", "vms", name.as_str(), "address-pairs"];
        self.change(Method::POST, &path, Some(change)).await
    }
}
