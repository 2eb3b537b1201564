//! Triggers: events that become runs.
//!
//! The place in the stream of events up to which triggers have looked is
//! stored, so that each event is looked at, whichever broker dies in between;
//! and the id of a run follows from its trigger and its event, so that one
//! that is looked at again makes no second run.

mod declared;
mod keep;

#[cfg(test)]
mod tests;

pub use self::declared::{RawTrigger, Trigger, Unfit, When};
pub use self::keep::Triggers;
pub use crate::events::place::{Place, Places};
