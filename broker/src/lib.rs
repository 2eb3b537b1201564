//! muster's control plane: who the nodes and the principals are, what they
//! may do, and what runs.
//!
//! [`serve`] is the whole broker. [`run_broker`] is `muster broker`,
//! [`nats_config`] is `muster nats-config`, and [`prepare_embedded`] prepares
//! the NATS server of `muster up`.

pub mod audit;
pub mod authority;
pub mod authz;
pub mod backup;
pub mod bus;
pub mod chat;
mod clock;
pub mod config;
pub mod embedded;
pub mod enroll;
pub mod events;
pub mod fit;
pub mod freeze;
mod hello;
pub mod hooks;
pub mod http;
pub mod inventory;
pub mod lease;
pub mod library;
pub mod link;
pub mod metrics;
pub mod nats;
pub mod node_firewall;
pub mod once;
pub mod peers;
pub mod ping;
pub mod plans;
pub mod policy;
pub mod presence;
mod refusal;
pub mod releases;
pub mod resolve;
pub mod retention;
pub mod routes;
pub mod routing;
mod run;
pub mod runs;
pub mod schedules;
pub mod secrets;
mod serve;
pub mod standby;
pub mod state_dir;
pub mod store;
pub mod submit;
#[cfg(test)]
mod testing;
pub mod tls;
pub mod tokens;
pub mod triggers;
pub mod twin;
pub mod vm;

pub use self::config::Config;
pub use self::embedded::{Embedded, EmbeddedError, EmbeddedOptions, nats_config, prepare_embedded};
pub use self::run::{BrokerArgs, init_log, run_broker};
pub use self::serve::{ServeError, serve};
