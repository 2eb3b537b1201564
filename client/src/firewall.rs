//! Nodes' own firewalls.

use std::time::Duration;

use muster_protocol::api::{NodeFirewallAsk, RunView};
use muster_protocol::names::NodeName;
use reqwest::Method;

use crate::client::{Ask, Client};
use crate::error::ClientError;
use crate::once::Key;

impl Client {
    /// `POST /v1/firewall/nodes/{name}`. It is asked once, however often that
    /// has to be tried.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn ask_firewall(
        &self,
        node: &NodeName,
        ask: &NodeFirewallAsk,
    ) -> Result<RunView, ClientError> {
        self.until_known(Ask {
            method: Method::POST,
            path: &["v1", "firewall", "nodes", node.as_str()],
            query: &[],
            body: Some(ask),
            extra_time: Duration::ZERO,
            key: Some(&Key::random()),
        })
        .await
    }
}
