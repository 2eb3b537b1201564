//! What becomes of a packet, from what a hypervisor holds: a plain function,
//! written from what groups mean. It shares nothing with what is written for
//! the kernel, and is what that is held against.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use muster_protocol::firewall::{
    Direction, GroupRule, Holding, Interface, MembersOf, Peer, Traffic,
};
use muster_protocol::names::{GroupName, TapName};

pub use super::why::{Fixed, Verdict, Why};

/// One end of a packet's way, as a hypervisor sees it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum End {
    /// An interface of a machine here.
    Interface(TapName),
    /// The hypervisor itself, or what it routes.
    Host,
    /// Another port of the bridge.
    Outside,
}

/// A hardware address as it stands in a frame.
pub type RawMac = [u8; 6];

/// A packet that nobody expects: the first of a flow, or alone.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Packet {
    /// Where it comes from.
    pub from: End,
    /// Where it goes, whether it is addressed to it or was flooded to it.
    pub to: End,
    /// The sender's hardware address; the interface's own when absent.
    pub source_mac: Option<RawMac>,
    /// The receiver's; that of the interface that it goes to when absent.
    pub target_mac: Option<RawMac>,
    /// Whether the frame has a VLAN tag.
    pub tagged: bool,
    /// What is in it.
    pub content: Content,
}

/// What is in a frame.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Content {
    /// An IP packet; both addresses are of one family.
    Ip {
        /// Who sends it.
        source: IpAddr,
        /// Who gets it.
        target: IpAddr,
        /// How many hops it may still make.
        hops: u8,
        /// What is behind all headers of IP.
        payload: Payload,
    },
    /// ARP for IPv4 over Ethernet.
    Arp {
        /// What it does: 1 asks, 2 answers.
        operation: u16,
        /// The sender's hardware address; that of the frame when absent.
        sender_mac: Option<RawMac>,
        /// The sender's address.
        sender: Ipv4Addr,
        /// The one that is asked about.
        target: Ipv4Addr,
    },
    /// RARP.
    Rarp {
        /// The sender's hardware address.
        sender_mac: RawMac,
        /// The one that is asked about.
        target_mac: RawMac,
    },
    /// Another type of Ethernet.
    Other(u16),
}

/// What is in an IP packet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Payload {
    /// TCP.
    Tcp {
        /// From that port.
        source: u16,
        /// To that port.
        target: u16,
        /// Whether it opens a connection: SYN, and neither ACK, FIN nor RST.
        opens: bool,
    },
    /// UDP.
    Udp {
        /// From that port.
        source: u16,
        /// To that port.
        target: u16,
    },
    /// ICMP.
    Icmp {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
    },
    /// ICMPv6.
    Icmpv6 {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
        /// Of which address it speaks; for neighbour discovery.
        about: Option<Ipv6Addr>,
    },
    /// Another protocol. (IGMP is one that does not ask who listens: those
    /// that do are never let out.)
    Other(u8),
}

impl Payload {
    /// The protocol's number.
    #[must_use]
    pub fn protocol(&self) -> u8 {
        match self {
            Self::Tcp { .. } => 6,
            Self::Udp { .. } => 17,
            Self::Icmp { .. } => 1,
            Self::Icmpv6 { .. } => 58,
            Self::Other(number) => *number,
        }
    }
}

/// What becomes of it, and why.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Judged {
    /// Whether it passes.
    pub verdict: Verdict,
    /// What decided where it left an interface; none when it left none.
    pub egress: Option<Why>,
    /// What decided where it came to one; none when it came to none, or did
    /// not get that far.
    pub ingress: Option<Why>,
}

impl Judged {
    /// What decided last.
    #[must_use]
    pub fn why(&self) -> Why {
        let decided = self.ingress.clone().or_else(|| self.egress.clone());
        decided.unwrap_or(Why::Fixed(Fixed::NotOurs))
    }

    fn of(egress: Option<Why>, ingress: impl FnOnce() -> Option<Why>) -> Self {
        let passes = |why: &Option<Why>| why.as_ref().is_none_or(|w| w.verdict() == Verdict::Pass);
        let ingress = if passes(&egress) { ingress() } else { None };
        let verdict = match passes(&egress) && passes(&ingress) {
            true => Verdict::Pass,
            false => Verdict::Drop,
        };
        Self {
            verdict,
            egress,
            ingress,
        }
    }
}

/// The two ends of one way of a flow.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Way {
    /// From whom.
    pub source: IpAddr,
    /// To whom.
    pub target: IpAddr,
    /// What was said first.
    pub payload: Payload,
}

/// A flow that the kernel knows. The host may translate addresses, so that
/// who sends and who gets do not see the same.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Flow {
    /// As its sender sees it: the original tuple.
    pub sent: Way,
    /// As its receiver sees it: the reply tuple, turned round.
    pub arrives: Way,
}

/// What a hypervisor holds, ready to be asked many times.
#[derive(Debug)]
pub struct Judge<'a> {
    holding: &'a Holding,
    /// Whose own addresses they are.
    own: BTreeMap<IpAddr, BTreeSet<&'a TapName>>,
    /// Prefixes beside them.
    pairs: Vec<(IpNet, &'a TapName)>,
}

/// What becomes of a packet.
#[must_use]
pub fn judge(holding: &Holding, packet: &Packet) -> Judged {
    Judge::new(holding).packet(packet)
}

/// Whether a flow may go on.
#[must_use]
pub fn flow(holding: &Holding, flow: &Flow) -> Judged {
    Judge::new(holding).flow(flow)
}

impl<'a> Judge<'a> {
    /// Of that.
    #[must_use]
    pub fn new(holding: &'a Holding) -> Self {
        let mut own: BTreeMap<IpAddr, BTreeSet<&TapName>> = BTreeMap::new();
        let mut pairs = Vec::new();
        for (tap, interface) in &holding.interfaces {
            for address in &interface.addresses {
                own.entry(*address).or_default().insert(tap);
            }
            own.entry(link_local(interface)).or_default().insert(tap);
            pairs.extend(interface.pairs.iter().map(|pair| (pair.prefix, tap)));
        }
        // The longest one says most of who has an address.
        pairs.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.prefix_len()));
        Self {
            holding,
            own,
            pairs,
        }
    }

    /// The interfaces that have an address: as their own, else those with the
    /// longest prefix beside their own that it is in.
    #[must_use]
    pub fn who_has(&self, address: IpAddr) -> Vec<&'a TapName> {
        if let Some(taps) = self.own.get(&address) {
            return taps.iter().copied().collect();
        }
        let mut having = self.pairs.iter().filter(|(net, _)| net.contains(&address));
        let Some((longest, first)) = having.next() else {
            return Vec::new();
        };
        let same = having.take_while(|(net, _)| net.prefix_len() == longest.prefix_len());
        [*first]
            .into_iter()
            .chain(same.map(|(_, tap)| *tap))
            .collect()
    }

    /// The interfaces that have an address as their own, or as one beside it:
    /// not those that have all of a prefix, which may be behind them or not.
    #[must_use]
    pub fn who_has_alone(&self, address: IpAddr) -> Vec<&'a TapName> {
        if let Some(taps) = self.own.get(&address) {
            return taps.iter().copied().collect();
        }
        let alone = IpNet::from(address);
        let having = self.pairs.iter().filter(|(net, _)| *net == alone);
        having.map(|(_, tap)| *tap).collect()
    }

    /// What becomes of a packet.
    #[must_use]
    pub fn packet(&self, packet: &Packet) -> Judged {
        let egress = match &packet.from {
            End::Interface(tap) => Some(self.leaves(tap, packet)),
            End::Host | End::Outside => None,
        };
        Judged::of(egress, || match &packet.to {
            End::Interface(tap) => Some(self.comes(tap, packet)),
            End::Host | End::Outside => None,
        })
    }

    /// Whether a flow may go on: whether it could begin now. Where several
    /// interfaces have an address, one that allows it is enough.
    ///
    /// An address that is in a prefix of an interface may be behind it, or may
    /// not: a router has all there are. So that one is asked only where neither
    /// end is anybody's own; else a flow of a machine to the world would be
    /// held against the rules of a router that it does not pass.
    #[must_use]
    pub fn flow(&self, flow: &Flow) -> Judged {
        let best = |taps: Vec<&TapName>, ask: &dyn Fn(&Interface) -> Why| {
            let interfaces = taps
                .iter()
                .filter_map(|tap| self.holding.interfaces.get(*tap));
            let mut said: Vec<Why> = interfaces.map(ask).collect();
            let passing = said.iter().position(|why| why.verdict() == Verdict::Pass);
            match (passing, said.is_empty()) {
                (_, true) => None,
                (Some(at), false) => Some(said.swap_remove(at)),
                (None, false) => Some(said.swap_remove(0)),
            }
        };
        let alone = |address| !self.who_has_alone(address).is_empty();
        let whose = |end: IpAddr, others: [IpAddr; 2]| match alone(end) {
            true => self.who_has_alone(end),
            false if others.into_iter().any(alone) => Vec::new(),
            false => self.who_has(end),
        };
        let (way, far) = (&flow.sent, flow.arrives.target);
        let egress = best(whose(way.source, [way.target, far]), &|interface| {
            let fixed = leaves_fixed(interface, way.target, 255, &way.payload);
            fixed.unwrap_or_else(|| self.egress(interface, way.target, &way.payload))
        });
        let (way, far) = (&flow.arrives, flow.sent.source);
        Judged::of(egress, || {
            best(whose(way.target, [way.source, far]), &|interface| {
                let fixed = comes_fixed(way.source, 255, &way.payload);
                fixed.unwrap_or_else(|| self.ingress(interface, way.source, &way.payload))
            })
        })
    }

    fn leaves(&self, tap: &TapName, packet: &Packet) -> Why {
        let Some(interface) = self.holding.interfaces.get(tap) else {
            return Fixed::Unknown.into();
        };
        let own_mac = *interface.mac.as_bytes();
        let mac = packet.source_mac.unwrap_or(own_mac);
        if is_reserved(self.target_mac(packet)) {
            return Fixed::Reserved.into();
        }
        if !may_use_mac(interface, mac) {
            return Fixed::SourceMac.into();
        }
        if packet.tagged {
            return Fixed::Tagged.into();
        }
        match &packet.content {
            Content::Other(_) => Fixed::EtherType.into(),
            Content::Arp {
                operation,
                sender_mac,
                sender,
                target,
            } => {
                let sender_mac = sender_mac.unwrap_or(mac);
                let probe = *operation == 1
                    && sender.is_unspecified()
                    && may_use(interface, sender_mac, (*target).into());
                let own = may_use(interface, sender_mac, (*sender).into());
                match matches!(operation, 1 | 2) && (own || probe) {
                    true => Fixed::Arp.into(),
                    false => Fixed::ArpSender.into(),
                }
            }
            Content::Rarp {
                sender_mac,
                target_mac,
            } => {
                let own = |mac| may_use_mac(interface, mac);
                match own(*sender_mac) && own(*target_mac) {
                    true => Fixed::Rarp.into(),
                    false => Fixed::RarpSender.into(),
                }
            }
            Content::Ip {
                source,
                target,
                hops,
                payload,
            } => {
                let nobody_yet = match payload {
                    Payload::Udp {
                        source: 68,
                        target: 67,
                    } => *source == IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                    Payload::Icmpv6 {
                        kind: 131 | 132 | 133 | 135 | 143,
                        ..
                    } => *source == IpAddr::V6(Ipv6Addr::UNSPECIFIED),
                    _ => false,
                };
                if !may_use(interface, mac, *source) && !nobody_yet {
                    return Fixed::SourceAddress.into();
                }
                let probes =
                    matches!(payload, Payload::Icmpv6 { kind: 135, .. }) && source.is_unspecified();
                if probes && (*hops != 255 || !is_about_its_own(interface, payload)) {
                    return Fixed::Advertisement.into();
                }
                if let Some(why) = leaves_fixed(interface, *target, *hops, payload) {
                    return why;
                }
                if matches!(payload, Payload::Tcp { opens: false, .. }) {
                    return Fixed::NoConnection.into();
                }
                self.egress(interface, *target, payload)
            }
        }
    }

    fn comes(&self, tap: &TapName, packet: &Packet) -> Why {
        let Some(interface) = self.holding.interfaces.get(tap) else {
            return Fixed::Unknown.into();
        };
        if packet.tagged {
            return Fixed::Tagged.into();
        }
        let mac = self.target_mac(packet);
        let to_many = mac[0] & 1 == 1;
        match &packet.content {
            Content::Other(_) | Content::Rarp { .. } => Fixed::EtherType.into(),
            Content::Arp { .. } => match to_many || may_use_mac(interface, mac) {
                true => Fixed::Arp.into(),
                false => Fixed::NotForIt.into(),
            },
            Content::Ip {
                source,
                target,
                hops,
                payload,
            } => {
                let fixed = comes_fixed(*source, *hops, payload);
                // What a host sends itself goes where its address is.
                let host = packet.from == End::Host;
                if !host && !to_many && !may_use(interface, mac, *target) {
                    return Fixed::NotForIt.into();
                }
                if let Some(why) = fixed {
                    return why;
                }
                if host && target.is_multicast() {
                    return Fixed::HostToMany.into();
                }
                if host && !self.who_has(*target).contains(&tap) {
                    return Fixed::NotForIt.into();
                }
                if matches!(payload, Payload::Tcp { opens: false, .. }) {
                    return Fixed::NoConnection.into();
                }
                self.ingress(interface, *source, payload)
            }
        }
    }

    fn target_mac(&self, packet: &Packet) -> RawMac {
        let of_interface = || match &packet.to {
            End::Interface(tap) => {
                let interface = self.holding.interfaces.get(tap)?;
                Some(*interface.mac.as_bytes())
            }
            End::Host | End::Outside => None,
        };
        packet.target_mac.or_else(of_interface).unwrap_or([0; 6])
    }

    fn egress(&self, interface: &Interface, to: IpAddr, payload: &Payload) -> Why {
        let mut closed = false;
        for (group, rule) in self.rules(interface, Direction::Egress) {
            closed = true;
            if self.allows(rule, to, payload) {
                return Why::Rule {
                    group: group.clone(),
                    rule: rule.id,
                };
            }
        }
        match closed {
            true => Fixed::NoEgressRule.into(),
            false => Fixed::EgressOpen.into(),
        }
    }

    fn ingress(&self, interface: &Interface, from: IpAddr, payload: &Payload) -> Why {
        for (group, rule) in self.rules(interface, Direction::Ingress) {
            if self.allows(rule, from, payload) {
                return Why::Rule {
                    group: group.clone(),
                    rule: rule.id,
                };
            }
        }
        Fixed::NoIngressRule.into()
    }

    fn rules(
        &self,
        interface: &'a Interface,
        direction: Direction,
    ) -> impl Iterator<Item = (&'a GroupName, &'a GroupRule)> {
        let groups = interface.groups.iter().collect::<BTreeSet<_>>();
        let holding = self.holding;
        groups.into_iter().flat_map(move |group| {
            let rules = holding.groups.get(group).into_iter().flatten();
            let rules = rules.filter(move |rule| rule.direction == direction);
            rules.map(move |rule| (group, rule))
        })
    }

    fn allows(&self, rule: &GroupRule, peer: IpAddr, payload: &Payload) -> bool {
        let peer_is = match &rule.peer {
            Peer::Any => true,
            Peer::Prefix(net) => net.contains(&peer),
            Peer::Group(group) => self.is_member(&MembersOf::Group(group.clone()), peer),
            Peer::Set(set) => self.is_member(&MembersOf::Set(set.clone()), peer),
        };
        peer_is && is_about(&rule.traffic, peer, payload)
    }

    fn is_member(&self, of: &MembersOf, address: IpAddr) -> bool {
        let Some(members) = self.holding.members.get(of) else {
            return false;
        };
        // None of them is a part of another one: the last one that does not
        // begin behind the address is the only one that can hold it.
        let last = members.range(..=IpNet::from(address)).next_back();
        last.is_some_and(|net| net.contains(&address))
    }
}

fn is_about(traffic: &Traffic, peer: IpAddr, payload: &Payload) -> bool {
    match (traffic, payload) {
        (Traffic::Any, _) => true,
        (Traffic::Tcp(ports), Payload::Tcp { target, .. })
        | (Traffic::Udp(ports), Payload::Udp { target, .. }) => {
            ports.as_ref().is_none_or(|ports| ports.contains(*target))
        }
        (Traffic::Icmp(wanted), Payload::Icmp { kind, code }) => {
            peer.is_ipv4()
                && wanted.is_none_or(|w| w.kind == *kind && w.code.is_none_or(|c| c == *code))
        }
        (Traffic::Icmpv6(wanted), Payload::Icmpv6 { kind, code, .. }) => {
            peer.is_ipv6()
                && wanted.is_none_or(|w| w.kind == *kind && w.code.is_none_or(|c| c == *code))
        }
        (Traffic::Protocol(number), payload) => payload.protocol() == *number,
        _ => false,
    }
}

/// Whether neighbour discovery is about an address of the interface.
fn is_about_its_own(interface: &Interface, payload: &Payload) -> bool {
    let Payload::Icmpv6 {
        about: Some(about), ..
    } = payload
    else {
        return false;
    };
    let about = IpAddr::V6(*about);
    let pairs = || interface.pairs.iter().any(|p| p.prefix.contains(&about));
    interface.addresses.contains(&about) || link_local(interface) == about || pairs()
}

fn leaves_fixed(interface: &Interface, target: IpAddr, hops: u8, payload: &Payload) -> Option<Why> {
    let fixed = match (payload, target.is_ipv4()) {
        (Payload::Udp { target: 68, .. }, true) => Fixed::DhcpServer,
        (Payload::Udp { target: 546, .. }, false) => Fixed::DhcpServer,
        (
            Payload::Udp {
                source: 68,
                target: 67,
            },
            true,
        ) if target == IpAddr::V4(Ipv4Addr::BROADCAST) => Fixed::Dhcp,
        (
            Payload::Udp {
                source: 546,
                target: 547,
            },
            false,
        ) if is_neighbour(target) || is_all_neighbours(target) => Fixed::Dhcp,
        (Payload::Icmpv6 { kind: 136, .. }, false) => {
            match hops == 255 && is_about_its_own(interface, payload) {
                true => Fixed::Neighbor,
                false => Fixed::Advertisement,
            }
        }
        (Payload::Icmp { kind: 5 | 9, .. }, true) => Fixed::Router,
        (
            Payload::Icmpv6 {
                kind: 130 | 134 | 137,
                ..
            },
            false,
        ) => Fixed::Router,
        (
            Payload::Icmpv6 {
                kind: 133 | 135, ..
            },
            false,
        ) if hops == 255 => Fixed::Neighbor,
        (
            Payload::Icmpv6 {
                kind: 131 | 132 | 143,
                ..
            },
            false,
        ) if hops == 1 => Fixed::Listener,
        _ => return None,
    };
    Some(fixed.into())
}

/// Whether it is in `fe80::/10`.
fn is_neighbour(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(a) if a.is_unicast_link_local())
}

/// Whether it is in `ff02::/16`.
fn is_all_neighbours(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(a) if a.segments()[0] == 0xff02)
}

fn comes_fixed(source: IpAddr, hops: u8, payload: &Payload) -> Option<Why> {
    let fixed = match (payload, source.is_ipv4()) {
        (
            Payload::Udp {
                source: 67,
                target: 68,
            },
            true,
        ) => Fixed::Dhcp,
        (
            Payload::Udp {
                source: 547,
                target: 546,
            },
            false,
        ) if is_neighbour(source) => Fixed::Dhcp,
        (
            Payload::Icmpv6 {
                kind: 134..=137, ..
            },
            false,
        ) if hops == 255 => Fixed::Neighbor,
        (
            Payload::Icmpv6 {
                kind: 130 | 131 | 132 | 143,
                ..
            },
            false,
        ) if hops == 1 => Fixed::Listener,
        _ => return None,
    };
    Some(fixed.into())
}

/// `fe80::` and the hardware address with `fffe` in its middle, and one bit
/// turned.
fn link_local(interface: &Interface) -> IpAddr {
    let mac = interface.mac.as_bytes();
    let word = |at: usize| u16::from_be_bytes([mac[at], mac[at + 1]]);
    Ipv6Addr::new(
        0xfe80,
        0,
        0,
        0,
        word(0) ^ 0x0200,
        u16::from_be_bytes([mac[2], 0xff]),
        u16::from_be_bytes([0xfe, mac[3]]),
        word(4),
    )
    .into()
}

fn is_reserved(mac: RawMac) -> bool {
    mac[..5] == [0x01, 0x80, 0xc2, 0, 0] && mac[5] < 16
}

fn may_use_mac(interface: &Interface, mac: RawMac) -> bool {
    let of_pair = |wanted: Option<&muster_protocol::vm::Mac>| {
        wanted.is_some_and(|wanted| *wanted.as_bytes() == mac)
    };
    *interface.mac.as_bytes() == mac || interface.pairs.iter().any(|p| of_pair(p.mac.as_ref()))
}

fn may_use(interface: &Interface, mac: RawMac, address: IpAddr) -> bool {
    let own_mac = *interface.mac.as_bytes();
    let own = || interface.addresses.contains(&address) || link_local(interface) == address;
    (mac == own_mac && own())
        || interface.pairs.iter().any(|pair| {
            let with = pair.mac.as_ref().map_or(own_mac, |mac| *mac.as_bytes());
            with == mac && pair.prefix.contains(&address)
        })
}
