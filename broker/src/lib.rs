//! muster

pub mod nats;
pub mod store;
