//! Chat, from the broker's side: what was heard in a network is judged and
//! done here ([`desk`]), and what is to be said is put into words, without a
//! word of any network's protocol.
//!
//! [`outbox`] follows the events and puts what is to be said of them
//! ([`sentences`], pure) into one stream ([`spoken`]).

pub mod alarms;
pub mod builds;
pub mod desk;
pub mod handle;
pub mod links;
mod outbox;
pub mod outputs;
pub mod place;
pub mod result;
pub mod sentences;
pub mod settings;
pub mod spoken;
#[cfg(test)]
mod tests;
pub mod totp;

pub use self::handle::Chat;
