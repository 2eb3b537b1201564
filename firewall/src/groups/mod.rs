//! Security groups of the interfaces of machines.
//!
//! [`objects`] says what the kernel is to hold, as data; [`build`] makes that
//! of what a hypervisor holds; [`text`] writes it for `nft`. [`judge`] says
//! what becomes of a packet, and knows nothing of the other three: it is what
//! they are held against.

mod build;
mod check;
mod fixed;
pub mod ids;
pub mod judge;
pub mod objects;
pub mod table;
pub mod text;
mod why;

pub use build::{objects, touched};
pub use check::{Refused, check};
pub use text::{bare, update, whole};

#[cfg(test)]
mod past;
#[cfg(test)]
mod tests;
