//! muster's control plane.

pub mod authority;
pub mod authz;
pub mod bus;
pub mod events;
mod hello;
pub mod http;
pub mod inventory;
pub mod lease;
pub mod nats;
pub mod ping;
pub mod plans;
pub mod presence;
pub mod resolve;
pub mod routing;
pub mod runs;
pub mod store;
