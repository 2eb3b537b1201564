//! This node's own firewall, for scenarios: a change is in force at once, and
//! stays when the cluster says, over connections that did not exist before,
//! that the node is as reachable as it has to be.
//!
//! | | |
//! |---|---|
//! | [`Firewall`] | what each call of a scenario means |
//! | [`Door`] | the ways to the cluster, tried anew |

mod door;
mod perform;

pub use door::{Door, DoorError};
pub use perform::{Asking, Came, Firewall};
