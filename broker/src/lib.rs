//! muster's control plane.

pub mod authority;
pub mod authz;
pub mod config;
pub mod enroll;
pub mod events;
pub mod http;
pub mod inventory;
pub mod lease;
pub mod link;
pub mod nats;
pub mod secrets;
pub mod state_dir;
pub mod store;
pub mod tls;
pub mod tokens;
