//! The host firewall, changed in network namespaces: confirmed, or rolled
//! back, whoever is killed.

mod changes;
mod faults;
mod processes;
mod restarts;
mod world;
