//! Virtual machines: real hypervisors, real guests in software emulation.
//! What this machine lacks for them is said as skipped, unless it is required.

mod back;
mod channel;
mod cloud;
mod created;
mod groups;
mod guest;
mod inside;
mod killed;
mod many;
mod stacks;
mod web;
mod world;
