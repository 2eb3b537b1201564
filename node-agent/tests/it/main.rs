//! The real agent against a real NATS server; the test speaks the broker's
//! side of the protocol.
#![allow(
    clippy::unwrap_used,
    clippy::zombie_processes,
    missing_docs,
    unreachable_pub,
    reason = "a test"
)]

mod again;
mod bundles;
mod enrolment;
mod http;
mod lab;
mod lifecycle;
mod nats;
mod output;
mod reconcile;
mod requests;
mod scenario;
