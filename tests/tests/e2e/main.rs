//! End-to-end tests: real executables, a real NATS server, effects on a real
//! file system, driven as a user would.

mod audit;
mod backup;
mod bad_input;
mod chat;
mod enrolment;
mod faults;
mod freeze;
mod hostile;
mod library;
mod lifecycle;
mod local;
mod on_nodes;
mod once;
mod path;
mod policy;
mod reboot;
mod retention;
mod rolling;
mod runs;
mod scenarios;
mod sealed;
mod upgrade;
mod webhooks;
