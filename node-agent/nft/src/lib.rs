//! The part of the agent that puts firewalls in force: `nft`, the kernel's
//! connections, and what guards them.

pub mod conntrack;
pub mod groups;
pub mod host;
pub mod netlink;
pub mod nft;
