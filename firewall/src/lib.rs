//! What firewalls mean: rules as the text that nftables takes, and what they
//! decide, as pure functions. No I/O.

pub mod groups;
pub mod host;
