//! `muster up`: everything on one machine, each part a process of its own.

pub mod identity;
pub mod spec;
