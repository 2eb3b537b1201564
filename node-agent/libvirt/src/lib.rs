//! What the agent and the program that links libvirt say to each other, and
//! the XML of domains and volumes. Nothing here links libvirt: the agent uses
//! this, and the program's own modules belong to its binary alone.

pub mod message;
pub mod xml;
