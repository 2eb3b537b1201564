//! What decides about a packet.

use std::fmt;

use muster_protocol::firewall::RuleId;
use muster_protocol::names::GroupName;

/// Whether it passes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// It does.
    Pass,
    /// It does not.
    Drop,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Pass => "pass",
            Self::Drop => "drop",
        })
    }
}

/// What decides.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Why {
    /// A rule allows it.
    Rule {
        /// Of this group.
        group: GroupName,
        /// This one.
        rule: RuleId,
    },
    /// What holds always.
    Fixed(Fixed),
}

/// What holds always.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[non_exhaustive]
pub enum Fixed {
    /// The interface is not known.
    Unknown,
    /// A VLAN tag.
    Tagged,
    /// Not IP, not ARP.
    EtherType,
    /// To an address that bridges keep to themselves.
    Reserved,
    /// Another one's hardware address.
    SourceMac,
    /// Another one's address.
    SourceAddress,
    /// Another one's addresses within ARP.
    ArpSender,
    /// Another one's hardware address within RARP.
    RarpSender,
    /// An answer to who asks for an address.
    DhcpServer,
    /// What only routers say.
    Router,
    /// An advertisement for another one's address.
    Advertisement,
    /// Addressed to somebody else, and flooded.
    NotForIt,
    /// A TCP packet of a connection that is not known.
    NoConnection,
    /// No rule allows it to come in.
    NoIngressRule,
    /// There are rules for what goes out, and none allows it.
    NoEgressRule,
    /// The host sends to many, and no interface is meant alone.
    HostToMany,
    /// No group has rules for what goes out.
    EgressOpen,
    /// Who asks for an address, and the answer.
    Dhcp,
    /// Neighbour discovery.
    Neighbor,
    /// Who listens to which groups.
    Listener,
    /// ARP.
    Arp,
    /// RARP.
    Rarp,
    /// It goes to none of the interfaces here, and comes from none.
    NotOurs,
}

impl Fixed {
    /// All of them.
    pub const ALL: [Self; 23] = [
        Self::Unknown,
        Self::Tagged,
        Self::EtherType,
        Self::Reserved,
        Self::SourceMac,
        Self::SourceAddress,
        Self::ArpSender,
        Self::RarpSender,
        Self::DhcpServer,
        Self::Router,
        Self::Advertisement,
        Self::NotForIt,
        Self::NoConnection,
        Self::NoIngressRule,
        Self::NoEgressRule,
        Self::HostToMany,
        Self::EgressOpen,
        Self::Dhcp,
        Self::Neighbor,
        Self::Listener,
        Self::Arp,
        Self::Rarp,
        Self::NotOurs,
    ];

    /// Whether it lets pass.
    #[must_use]
    pub fn verdict(self) -> Verdict {
        match self {
            Self::EgressOpen
            | Self::Dhcp
            | Self::Neighbor
            | Self::Listener
            | Self::Arp
            | Self::Rarp
            | Self::NotOurs => Verdict::Pass,
            _ => Verdict::Drop,
        }
    }

    /// The word of it, for files.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Tagged => "tagged",
            Self::EtherType => "ether-type",
            Self::Reserved => "reserved",
            Self::SourceMac => "source-mac",
            Self::SourceAddress => "source-address",
            Self::ArpSender => "arp-sender",
            Self::RarpSender => "rarp-sender",
            Self::DhcpServer => "dhcp-server",
            Self::Router => "router",
            Self::Advertisement => "advertisement",
            Self::NotForIt => "not-for-it",
            Self::NoConnection => "no-connection",
            Self::NoIngressRule => "no-ingress-rule",
            Self::NoEgressRule => "no-egress-rule",
            Self::HostToMany => "host-to-many",
            Self::EgressOpen => "egress-open",
            Self::Dhcp => "dhcp",
            Self::Neighbor => "neighbor",
            Self::Listener => "listener",
            Self::Arp => "arp",
            Self::Rarp => "rarp",
            Self::NotOurs => "not-ours",
        }
    }

    /// In a sentence.
    #[must_use]
    pub fn says(self) -> &'static str {
        match self {
            Self::Unknown => "nothing is known of the interface, so nothing passes",
            Self::Tagged => "frames with a VLAN tag never pass",
            Self::EtherType => "only IPv4, IPv6 and ARP pass",
            Self::Reserved => "it goes to an address that bridges keep to themselves",
            Self::SourceMac => "its sender uses a hardware address that is not the interface's",
            Self::SourceAddress => "its sender uses an address that is not the interface's",
            Self::ArpSender => "its ARP sender is not the interface",
            Self::RarpSender => "its RARP is not about the interface itself",
            Self::DhcpServer => "machines may not answer those who ask for an address",
            Self::Router => "machines may not say what only routers say",
            Self::Advertisement => {
                "it advertises, or claims, an address that is not the interface's"
            }
            Self::NotForIt => "it is addressed to somebody else",
            Self::NoConnection => "it is a TCP packet of a connection that is not known",
            Self::NoIngressRule => "no rule of the interface's groups allows it to come in",
            Self::NoEgressRule => {
                "the interface's groups have egress rules, and none of them allows it"
            }
            Self::HostToMany => "the host sends it to many, and no interface is meant alone",
            Self::EgressOpen => "no group of the interface has egress rules, so all may go out",
            Self::Dhcp => "asking for an address, and the answer, always pass",
            Self::Neighbor => "neighbour discovery always passes",
            Self::Listener => "saying who listens to which group always passes",
            Self::Arp => "ARP always passes",
            Self::Rarp => "RARP about the interface itself always passes",
            Self::NotOurs => "it concerns no interface of a machine here",
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule { group, rule } => write!(f, "rule {rule} of {group}"),
            Self::Fixed(fixed) => f.write_str(fixed.says()),
        }
    }
}

impl From<Fixed> for Why {
    fn from(fixed: Fixed) -> Self {
        Self::Fixed(fixed)
    }
}

impl Why {
    /// Whether it lets pass.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        match self {
            Self::Rule { .. } => Verdict::Pass,
            Self::Fixed(fixed) => fixed.verdict(),
        }
    }
}
