//! One connection of one node to NATS, made as an agent makes it.

use std::time::Duration;

use async_nats::{Client, Subscriber};
use futures_util::stream::SelectAll;
use muster_agent::bus::connection::{self as agent, Size, Ticket, Trust};
pub use muster_agent::bus::connection::{ConnectError, Happened};
use tokio::sync::mpsc;

use crate::node::Member;

/// Bytes of a connection's read buffer to begin with. The client's own
/// choice, 64 KiB, would be most of what a simulated node weighs.
pub const READ_BUFFER: u16 = 2048;
/// More patient than an agent: thousands share one machine.
const SIZE: Size = Size {
    connect_within: Duration::from_secs(20),
    ping_every: Duration::from_secs(60),
    outgoing: 32,
    incoming: 1024,
    read_buffer: Some(READ_BUFFER),
};

/// Where NATS is, the same for the whole fleet.
#[derive(Clone, Debug)]
pub struct Address {
    /// Addresses, in the order to try.
    pub urls: Vec<String>,
    /// How its certificate is checked, when it has one.
    pub tls: Option<rustls::ClientConfig>,
}

/// A connection, its subscriptions and its news. It ends when it is dropped.
pub struct Connection {
    /// For what the node says.
    pub client: Client,
    /// What it hears.
    pub requests: SelectAll<Subscriber>,
    /// What happens to it.
    pub events: mpsc::Receiver<Happened>,
}

/// Connects and subscribes to what this node may hear.
///
/// # Errors
/// [`ConnectError`] of the last address.
pub async fn connect(address: &Address, member: &Member) -> Result<Connection, ConnectError> {
    let ticket = Ticket {
        client: format!("muster-fleet-sim {}", member.assignment.name),
        serial: member.serial,
        jwt: &member.jwt,
        key: &member.keys.nats,
        trust: match &address.tls {
            Some(tls) => Trust::Config(Box::new(tls.clone())),
            None => Trust::Address,
        },
        size: SIZE,
    };
    let agent::Connection { client, events } = agent::connect(&address.urls, &ticket).await?;
    let mut requests = SelectAll::new();
    for subject in agent::subjects(member.serial, &member.assignment) {
        let heard = client.subscribe(subject).await;
        requests.push(heard.map_err(|e| ConnectError::Unreachable {
            url: "NATS".to_owned(),
            why: e.to_string(),
        })?);
    }
    Ok(Connection {
        client,
        requests,
        events,
    })
}
