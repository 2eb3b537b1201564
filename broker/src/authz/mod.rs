//! Who may do what: the only way to an [`Authorized`].

mod action;
mod caller;
pub mod cedar;
mod decision;
mod fixed;
mod guard;
mod run;
#[cfg(test)]
mod tests;

pub use self::action::{Action, Group};
pub use self::caller::{Caller, Origin};
pub use self::decision::{Decision, Denied, Grant, PolicyId, Unauthorized};
pub use self::fixed::FixedRoles;
pub use self::guard::{Authorized, Guard, Policy, authorize};
pub use self::run::{AskedSet, RunAsk};
