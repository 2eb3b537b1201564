//! Everything muster says to a NATS server about identity: keys, claims,
//! permissions, configuration, and the system-account connection through
//! which claims get into a running server.
//!
//! muster runs NATS in *operator mode*. One mechanism serves the supervised
//! server and an existing cluster alike: accounts live in a `full` resolver,
//! and changed claims are pushed over the system account
//! ([`admin::SystemClient::push_account_claims`]).

pub mod admin;
pub mod config;
pub mod credentials;
pub mod jwt;
pub mod keys;
pub mod permissions;
pub mod revocations;
pub mod version;

#[cfg(test)]
pub mod testing;
