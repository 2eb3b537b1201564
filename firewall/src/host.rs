//! The host firewall of a node: its rules as nftables text, and what changes
//! from one state of them to the next.

mod difference;
mod render;
#[cfg(test)]
mod tests;

pub use self::difference::difference;
pub use self::render::{Count, Counters, TABLE, counter_names, render, render_with};
