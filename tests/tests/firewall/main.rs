//! Nodes' own firewalls: a real broker and NATS, agents in namespaces of their
//! own, nftables, and packets between them. What this machine lacks for them is
//! said as skipped, unless it is required.

mod cut;
mod doors;
mod fleet;
