//! Firewalls: what may pass.
//!
//! Two things share the words of this module: *security groups*, which say
//! what machines' interfaces may say and hear ([`GroupRule`]), and the
//! *host firewall* of a node ([`host::HostRules`]). What a hypervisor holds of groups is a
//! [`Holding`]; it is changed by [`GroupsUpdate`]s, never guessed.

mod group;
mod holding;
pub mod host;
mod node;
mod traffic;

pub use self::group::{
    Comment, CommentError, Direction, GroupRule, MAX_COMMENT, MAX_GROUP_RULES, Peer, PeerError,
    RuleError, RuleId, SetName,
};
pub use self::holding::{
    AddressPair, Change, GroupsAnswer, GroupsMark, GroupsUpdate, Holding, Interface, MAX_UPDATE,
    Members, MembersChange, MembersOf, UpdateError,
};
pub use self::node::{
    AddressesRequest, ConfirmRequest, Confirmation, FirewallRepaired, MAX_PROBES_ASKED,
    MAX_ROLES_ASKED, ProbeAsk, ProbeResult, ProbeWish, Probed, RoleAddresses,
};
pub use self::traffic::{Icmp, MAX_PORTS, PortRange, Ports, PortsError, Traffic, TrafficError};
