//! muster

pub mod predicate;
