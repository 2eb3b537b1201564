//! The host firewall, in force: confirmed, or rolled back.
