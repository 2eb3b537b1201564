//! Routes: events that are sent on, to outgoing webhooks. At least once, in
//! their order, signed as Standard Webhooks; the place up to which they are
//! sent is stored.

mod declared;
mod send;
pub mod template;
#[cfg(test)]
mod tests;

pub use self::declared::{Format, Outgoing, RawRoute, Route, To, Wanted, parse_url};
pub use self::send::Routes;
