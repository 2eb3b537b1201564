//! Typed client of the broker's HTTP API.
//!
//! One method a route of [`muster_protocol::api`], problem documents as
//! [`ClientError::Problem`], and the events of a run ([`RunEvents`]) and of
//! the cluster ([`Happenings`]) as sequences that survive lost connections.
//!
//! ```no_run
//! use muster_client::{Client, Endpoint};
//!
//! # async fn example() -> Result<(), muster_client::ClientError> {
//! let client = Client::new(Endpoint::new("http://127.0.0.1:7878")?)?;
//! println!("{}", client.status().await?.version);
//! # Ok(())
//! # }
//! ```

mod audit;
mod backup;
mod brokers;
mod chat;
mod client;
mod endpoint;
mod error;
mod firewall;
mod freeze;
mod happenings;
mod images;
mod networks;
mod once;
mod policy;
mod reference;
mod releases;
mod routes;
mod scenarios;
mod schedules;
mod sse;
mod stream;
mod tenants;
mod vms;
mod watch;

pub use audit::AuditQuery;
pub use backup::Pieces;
pub use chat::{ChatFeed, ChatNews};
pub use client::{Client, MAX_BODY};
pub use endpoint::Endpoint;
pub use error::ClientError;
pub use happenings::{Happening, Happenings};
pub use once::Key;
pub use reference::Reference;
pub use routes::EventsQuery;
pub use watch::{RunEvents, Watch};

pub use muster_protocol::api::Secret;
