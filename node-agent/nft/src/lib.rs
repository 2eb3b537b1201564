//! The part of the agent that puts firewalls in force: `nft`, the kernel's
//! connections, and what guards them.

mod boot;
pub mod conntrack;
pub mod groups;
pub mod host;
pub mod netlink;
pub mod nft;

pub use self::boot::{Booted, Guests, boot};
