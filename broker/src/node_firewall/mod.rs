//! Nodes' own firewalls, as far as the broker has to do with them: which
//! addresses roles stand for ([`addresses`]), and whether a node can be
//! reached as it has to be after a change ([`confirm`], [`probe`]).
//!
//! What a node says of itself counts for nothing here: its address is what the
//! operators gave it, or where its own request came from.

mod addresses;
mod confirm;
pub mod probe;
#[cfg(test)]
mod tests;

pub use self::addresses::{ADDRESS, ADDRESSES, assigned, of_roles};
pub use self::confirm::{NodeFirewall, NodeFirewallError};
pub use self::probe::Prober;
