//! The engine of security groups, in network namespaces with real tables and
//! real connections.

#![allow(
    clippy::print_stderr,
    reason = "what a failed test is begun again with"
)]

mod connections;
mod faults;
mod host;
mod sequences;
mod space;
mod updates;
mod watch;
mod world;
