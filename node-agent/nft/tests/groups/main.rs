//! The engine of security groups, in network namespaces with real tables and
//! real connections.

mod connections;
mod faults;
mod sequences;
mod space;
mod updates;
mod watch;
mod world;
