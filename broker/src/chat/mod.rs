//! Chat: what is to be said in networks without that somebody has just asked,
//! and what came of it. The networks themselves are the bots' business.
//!
//! [`outbox`] follows the events and puts what is to be said of them
//! ([`sentences`], pure) into one stream ([`spoken`]).

pub mod alarms;
pub mod builds;
pub mod handle;
mod outbox;
pub mod outputs;
pub mod place;
pub mod result;
pub mod sentences;
pub mod settings;
pub mod spoken;
#[cfg(test)]
mod tests;

pub use self::handle::Chat;
