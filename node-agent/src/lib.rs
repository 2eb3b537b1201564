//! The agent that runs on every node: it hears signed requests on NATS,
//! decides for itself whether to obey, executes, and accounts for the outcome.
//!
//! The path of a request through the modules:
//!
//! ```text
//! bus::session ── verify ── steps ── executor ── host::process
//!                   │         │          │
//!                   └──── journal ◄──────┘ ── report ── bus
//! ```
//!
//! - [`verify`]: is it from the broker, for this node, now, and new?
//! - [`steps`]: does the predicate hold here, is it granted, is there room,
//!   was it done before? Then `started` on disk, effect, `finished` on disk.
//! - [`executor`]: the one door to an effect; [`host`] is the only module that
//!   touches processes.
//! - [`report`]: an outcome is sent until the broker has it.
//! - [`local`] is the other way in: what root runs on the node itself goes
//!   through the same journal and executor, and is reported later.
//! - [`upgrade`]: the agent replaces its own executable, and ends its step as
//!   the new one.
//! - [`bus`] connects, says hello, and hears; [`keeper`] keeps credentials
//!   fresh over HTTP; [`facts`] says what this machine is.

pub mod agent;
pub mod bus;
pub mod cli;
pub mod config;
pub mod enroll;
pub mod executor;
pub mod facts;
pub mod freeze;
pub mod host;
pub mod http;
pub mod identity;
pub mod journal;
pub mod keeper;
pub mod local;
pub mod logging;
pub mod pace;
pub mod probe;
pub mod release;
pub mod report;
pub mod scenario;
pub mod state;
pub mod steps;
pub mod upgrade;
pub mod verbs;
pub mod verify;
pub mod view;

pub use cli::main;

/// Makes ring the cryptography of every TLS connection of this process. Safe
/// to call more than once.
pub fn install_crypto() {
    // An error means that a provider is already there, which is what we want.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
