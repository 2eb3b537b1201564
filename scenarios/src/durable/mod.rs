//! `main`, which survives the crash of the broker that runs it.
//!
//! Every call out of the script (a *host call*) has a number, and is in the
//! run's journal with its arguments' hash and its reply. Going on after a
//! crash is running the script again from the top: a call that is in the
//! journal returns what it returned, the first that is not is what the script
//! now wants. So a run that waits for days holds no thread and no memory but
//! its journal, and there is one way of running for live use and recovery.
//!
//! [`turn`] is a pure function: script, parameters, node sets and journal in;
//! what to do next out. It does no I/O and reads no clock.

mod call;
pub(crate) mod host;
mod machine;
mod nodes;
mod outcome;
mod turn;

pub use call::{ArgsHash, HostCall, Recorded, Records, Reply, Step, StepOptions, Undo, UndoStep};
pub use machine::wanted;
pub use nodes::{Member, Nodes, spread};
pub use outcome::{NodeReply, StepReply};
pub use turn::{Input, Program, Turn, turn};
