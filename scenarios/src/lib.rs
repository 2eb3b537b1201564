//! Scenarios: what a run executes.
//!
//! Here is what broker and agent must agree on: the built-in scenario
//! [`command`], and of stored ones the form ([`bundle`]), the language
//! ([`engine`]), the manifest ([`manifest`]) with its parameters ([`param`]),
//! and how a fault is shown ([`fault`]).

pub mod bundle;
pub mod catalogue;
pub mod check;
pub mod command;
pub mod durable;
pub mod engine;
pub mod fault;
pub mod manifest;
pub mod node;
pub mod param;
