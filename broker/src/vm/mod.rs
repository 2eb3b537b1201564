//! Virtual machines, as the broker keeps them.

pub mod images;
pub mod networks;
