//! muster's control plane.

pub mod authority;
pub mod authz;
pub mod events;
pub mod http;
pub mod inventory;
pub mod lease;
pub mod nats;
pub mod store;
