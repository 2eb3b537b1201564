//! This node's own firewall, for scenarios: a change is in force at once, and
//! stays when the cluster says, over connections that did not exist before,
//! that the node is as reachable as it has to be.
//!
//! | | |
//! |---|---|
//! | [`Firewall`] | what each call of a scenario means |
//! | [`Door`] | the ways to the cluster, tried anew |
//! | [`look_after`] | what somebody else changes is put right, and told |

mod door;
mod perform;
mod watch;

pub use door::{Door, DoorError};
pub use perform::{Came, Firewall};
pub use watch::look_after;
