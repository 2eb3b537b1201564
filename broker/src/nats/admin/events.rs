//! What servers say about connections.

use serde::Deserialize;

use super::user_key;
use crate::nats::keys::UserKey;

/// Something to know about connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConnUpdate {
    /// A connection came or went.
    Event(ConnEvent),
    /// Events may have been missed: compare with the open connections.
    Resync,
}

/// A connection came or went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnEvent {
    /// Who it is; `None` when the server names no user key.
    pub user_key: Option<UserKey>,
    /// The name that the client gave itself. Not to be trusted.
    pub client_name: String,
    /// The server it is on.
    pub server_id: String,
    /// Its number on that server: with `server_id` it names one connection.
    pub connection: u64,
    /// Address of the client, as the server sees it.
    pub host: String,
    /// What happened.
    pub change: ConnChange,
}

/// What happened to a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConnChange {
    /// It was made.
    Connected,
    /// It ended.
    Disconnected {
        /// In the server's words: `Client Closed`, `Credentials Revoked`, ...
        reason: String,
    },
}

/// An open connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveConnection {
    /// Who it is; `None` when the server names no user key.
    pub user_key: Option<UserKey>,
    /// The name that the client gave itself. Not to be trusted.
    pub client_name: String,
    /// The server it is on.
    pub server_id: String,
    /// Its number on that server.
    pub connection: u64,
    /// Address of the client, as the server sees it.
    pub host: String,
}

#[derive(Deserialize)]
struct Advisory {
    #[serde(rename = "type")]
    kind: String,
    server: super::Server,
    client: ClientInfo,
    #[serde(default)]
    reason: String,
}

#[derive(Deserialize)]
struct ClientInfo {
    id: u64,
    #[serde(default)]
    user: Option<String>,
    #[serde(default)]
    name: String,
    #[serde(default)]
    host: String,
}

pub(super) fn parse_event(payload: &[u8]) -> Result<ConnEvent, serde_json::Error> {
    let said: Advisory = serde_json::from_slice(payload)?;
    let change = if said.kind.ends_with("client_disconnect") {
        ConnChange::Disconnected {
            reason: said.reason,
        }
    } else if said.kind.ends_with("client_connect") {
        ConnChange::Connected
    } else {
        return Err(serde::de::Error::custom(
            "neither client_connect nor client_disconnect",
        ));
    };
    Ok(ConnEvent {
        user_key: user_key(said.client.user.as_deref()),
        client_name: said.client.name,
        server_id: said.server.id,
        connection: said.client.id,
        host: said.client.host,
        change,
    })
}

#[derive(Deserialize)]
pub(super) struct ConnzPage {
    pub(super) data: Connz,
}

#[derive(Deserialize)]
pub(super) struct Connz {
    #[serde(default)]
    pub(super) connections: Vec<ConnzEntry>,
}

#[derive(Deserialize)]
pub(super) struct ConnzEntry {
    cid: u64,
    #[serde(default)]
    authorized_user: Option<String>,
    #[serde(default)]
    nkey: Option<String>,
    #[serde(default)]
    name: String,
    #[serde(default)]
    ip: String,
}

impl ConnzEntry {
    pub(super) fn live(self, server_id: &str) -> LiveConnection {
        LiveConnection {
            user_key: user_key(self.authorized_user.as_deref())
                .or_else(|| user_key(self.nkey.as_deref())),
            client_name: self.name,
            server_id: server_id.to_owned(),
            connection: self.cid,
            host: self.ip,
        }
    }
}
