//! The words of muster as types, and the pure functions over them.
//!
//! Everything that crosses a boundary between two parts of muster is defined
//! here: names and ids, the predicate language, NATS subjects, the signed
//! envelope, what a node says, what a run is and how its state is folded from
//! its events, and the shapes of the HTTP API.
//!
//! This crate does no I/O and reads no clock: whoever calls passes the time.

pub mod api;
pub mod audit;
pub mod chat;
pub mod envelope;
pub mod firewall;
pub mod fold;
pub mod freeze;
pub mod ids;
pub mod keys;
pub mod names;
pub mod nodeset;
pub mod note;
pub mod origin;
pub mod predicate;
pub mod problem;
pub mod release;
pub mod run;
pub mod seal;
pub mod subject;
pub mod text;
mod text_form;
pub mod units;
pub mod vm;
pub mod wire;

/// Version of the protocol between broker and agents. Both sides say theirs
/// in the first exchange; a mismatch is refused before anything is sent.
pub const PROTOCOL_VERSION: u32 = 1;
