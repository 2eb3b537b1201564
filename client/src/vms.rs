//! Virtual machines, and the hypervisors that they are on.

use std::time::Duration;

use muster_protocol::api::{
    AdoptHypervisor, Adopted, CreateVms, DrainHypervisor, Drained, HypervisorChange,
    HypervisorView, VmAction, VmBrief, VmChanged, VmView, VmsCreated,
};
use muster_protocol::names::{NodeName, VmName};
use muster_protocol::vm::VmId;
use reqwest::Method;

use crate::client::{Ask, Client};
use crate::error::ClientError;
use crate::once::Key;

/// How long the broker may take beyond what every request may.
const FOR_MANY: Duration = Duration::from_secs(60);
/// Machines in short that are asked for in one page: enough that few pages are
/// asked for, and few enough that one is read while the next is written.
const BRIEFS: u32 = 2_500;

/// Which machines.
fn which(predicate: Option<&str>, deleted: bool) -> Vec<(&'static str, String)> {
    let mut query = Vec::new();
    if let Some(predicate) = predicate {
        query.push(("match", predicate.to_owned()));
    }
    if deleted {
        query.push(("deleted", "true".to_owned()));
    }
    query
}

impl Client {
    /// `GET /v1/vms`, all pages: those that match, or those of them that were
    /// destroyed.
    ///
    /// # Errors
    /// [`ClientError`], as for every method here.
    pub async fn vms(
        &self,
        predicate: Option<&str>,
        deleted: bool,
    ) -> Result<Vec<VmView>, ClientError> {
        let query = which(predicate, deleted);
        self.all(&["v1", "vms"], &query).await
    }

    /// `GET /v1/vms?brief=true`, following its pages: the same, each in short.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn vm_briefs(
        &self,
        predicate: Option<&str>,
        deleted: bool,
    ) -> Result<Vec<VmBrief>, ClientError> {
        let mut query = which(predicate, deleted);
        query.push(("brief", "true".to_owned()));
        self.all_by(&["v1", "vms"], &query, BRIEFS).await
    }

    /// `GET /v1/vms/{name}`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn vm(&self, name: &VmName) -> Result<VmView, ClientError> {
        self.ask::<(), _>(Ask {
            method: Method::GET,
            path: &["v1", "vms", name.as_str()],
            query: &[],
            body: None,
            extra_time: Duration::ZERO,
            key: None,
        })
        .await
    }

    /// `POST /v1/vms`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn create_vms(
        &self,
        request: &CreateVms,
        key: &Key,
    ) -> Result<VmsCreated, ClientError> {
        self.ask(Ask {
            method: Method::POST,
            path: &["v1", "vms"],
            query: &[],
            body: Some(request),
            extra_time: FOR_MANY,
            key: Some(key),
        })
        .await
    }

    /// `DELETE /v1/vms/{name}`: with `purge` its disk goes, too. It is done
    /// once, however often it has to be asked for.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn destroy_vm(&self, name: &VmName, purge: bool) -> Result<VmChanged, ClientError> {
        self.destroy(name, None, purge).await
    }

    /// The same, of the machine of that UUID: another one that has the name by
    /// now stays.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn destroy_this_vm(
        &self,
        (name, id): (&VmName, VmId),
        purge: bool,
    ) -> Result<VmChanged, ClientError> {
        self.destroy(name, Some(id), purge).await
    }

    async fn destroy(
        &self,
        name: &VmName,
        id: Option<VmId>,
        purge: bool,
    ) -> Result<VmChanged, ClientError> {
        let mut query = vec![("purge", purge.to_string())];
        query.extend(id.map(|id| ("id", id.to_string())));
        self.until_known::<(), _>(Ask {
            method: Method::DELETE,
            path: &["v1", "vms", name.as_str()],
            query: &query,
            body: None,
            extra_time: Duration::ZERO,
            key: Some(&Key::random()),
        })
        .await
    }

    /// `POST /v1/vms/{name}/actions`. It is done once, however often it has to
    /// be asked for.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn act_on_vm(
        &self,
        name: &VmName,
        action: &VmAction,
    ) -> Result<VmChanged, ClientError> {
        self.until_known(Ask {
            method: Method::POST,
            path: &["v1", "vms", name.as_str(), "actions"],
            query: &[],
            body: Some(action),
            extra_time: Duration::ZERO,
            key: Some(&Key::random()),
        })
        .await
    }

    /// `GET /v1/hypervisors`, all pages.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn hypervisors(&self) -> Result<Vec<HypervisorView>, ClientError> {
        self.all(&["v1", "hypervisors"], &[]).await
    }

    /// `PATCH /v1/hypervisors/{node}`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn change_hypervisor(
        &self,
        node: &NodeName,
        change: &HypervisorChange,
    ) -> Result<HypervisorView, ClientError> {
        self.ask(Ask {
            method: Method::PATCH,
            path: &["v1", "hypervisors", node.as_str()],
            query: &[],
            body: Some(change),
            extra_time: Duration::ZERO,
            key: None,
        })
        .await
    }

    /// `POST /v1/hypervisors/{node}/drain`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn drain_hypervisor(
        &self,
        node: &NodeName,
        how: &DrainHypervisor,
    ) -> Result<Drained, ClientError> {
        self.ask(Ask {
            method: Method::POST,
            path: &["v1", "hypervisors", node.as_str(), "drain"],
            query: &[],
            body: Some(how),
            extra_time: FOR_MANY,
            key: None,
        })
        .await
    }

    /// `POST /v1/hypervisors/{node}/adopt`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn adopt_hypervisor(
        &self,
        node: &NodeName,
        how: &AdoptHypervisor,
    ) -> Result<Adopted, ClientError> {
        self.ask(Ask {
            method: Method::POST,
            path: &["v1", "hypervisors", node.as_str(), "adopt"],
            query: &[],
            body: Some(how),
            extra_time: FOR_MANY,
            key: None,
        })
        .await
    }
}
