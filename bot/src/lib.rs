//! The bot of an IRC network: a witness. It tells the broker what was written
//! and who the server says it was, and says what the broker wants said. It
//! decides nothing, holds no NATS credential, and knows no scenario.
//!
//! The path of a line and of its answer through the modules:
//!
//! ```text
//! irc ── Heard ──▶ voice ── intake ──▶ POST /v1/chat/lines ─┐
//!                    ▲                                      │ ChatAnswer
//!                    ├──────────────────────────────────────┘
//!                    ├────────────── GET /v1/chat/feed: Utterance
//!                    ▼
//! irc ◀── Send ── queue ◀── render (clean, split)
//! ```
//!
//! - [`irc`] is the connection; nothing else knows the protocol.
//! - [`voice`] is all that a network knows, pure; [`network`] is the task that
//!   owns it.
//! - [`intake`] is fair to those who ask, [`queue`] to those who are told.
//! - [`flight`], [`ledger`] and [`cursor`] know what arrived, so that nothing
//!   is lost and nothing is said twice without a mark.

pub mod clean;
pub mod cli;
pub mod config;
pub mod cursor;
pub mod flight;
pub mod intake;
pub mod irc;
pub mod ledger;
pub mod logging;
pub mod more;
pub mod network;
pub mod queue;
pub mod render;
pub mod split;
pub mod voice;

pub use cli::main;
