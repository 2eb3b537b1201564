//! What the agent and the program that links libvirt say to each other, and
//! the XML of domains and volumes.

pub mod message;
