//! The bot of an IRC network: a witness. It tells the broker what was written
//! and who the server says it was, and says what the broker wants said. It
//! decides nothing, holds no NATS credential, and knows no scenario.

pub mod clean;
pub mod irc;
pub mod more;
pub mod config;
pub mod cursor;
pub mod flight;
pub mod intake;
pub mod ledger;
pub mod queue;
pub mod render;
pub mod split;

use std::process::ExitCode;

/// Runs the bot.
#[must_use]
pub fn main() -> ExitCode {
    ExitCode::FAILURE
}
