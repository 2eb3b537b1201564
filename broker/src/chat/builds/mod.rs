//! Builds: how they ended last, and those that were asked for in chat.

pub mod results;
