//! The verbs of the command line.

pub mod enroll;
pub mod firewall;
pub mod local;
pub mod run;
pub mod status;
