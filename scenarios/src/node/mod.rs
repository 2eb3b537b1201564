//! Functions of a scenario that run on a node.
//!
//! A script only says what it wants: each call becomes an [`Effect`], plain
//! data, and is handed to the one [`Host`]. So the language knows nothing of
//! processes or files, and whoever has effects sees every one of them, in
//! order, and can say no.

mod effect;
mod engine;
mod firewall;
mod machines;
mod needs;
pub(crate) mod resources;
mod template;

pub use effect::{
    Change, Effect, FileAttributes, FileWish, HttpCall, HttpWish, PackageWish, PuppetRun, Run,
    RunWhat, ServiceWish, UserWish,
};
pub use engine::{Call, Done, Ended, Host, HostError, NodeFacts, Performed, Program, Source, run};
pub use firewall::FirewallCall;
pub use needs::Capabilities;
pub(crate) use template::broken as broken_template;
