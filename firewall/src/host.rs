//! The host firewall of a node.
