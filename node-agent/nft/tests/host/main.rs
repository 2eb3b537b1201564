//! The host firewall, changed in network namespaces: confirmed, or rolled
//! back, whoever is killed.

mod boots;
mod changes;
mod faults;
mod packets;
mod processes;
mod restarts;
mod watch;
mod world;
