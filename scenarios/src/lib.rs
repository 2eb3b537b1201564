//! Scenarios: what a run executes.
//!
//! Here is what broker and agent must agree on about the built-in scenarios:
//! their names, the hash that pins them, and their parameters, checked in one
//! place on both sides.

pub mod command;
