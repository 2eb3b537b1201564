//! The engine of security groups, in network namespaces with real tables and
//! real connections.

mod connections;
mod space;
mod updates;
mod world;
