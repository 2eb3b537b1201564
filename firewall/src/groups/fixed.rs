//! What is the same on every hypervisor: the chains that the kernel calls,
//! and the sets and maps that say which interface is which.
//!
//! The way of a frame from an interface: `bridge prerouting` holds its
//! addresses against the interface's own and marks it; `inet prerouting`
//! (called by br_netfilter, behind the kernel's defragmentation) judges it as
//! egress. On its way to an interface: on the same bridge, `bridge forward`
//! marks it and `inet forward` judges it; from the host or routed by it, `inet
//! postrouting` marks it by bridge and address and judges it; and `bridge
//! postrouting` lets nothing pass to an interface that was not judged for it.

use super::objects::{Chain, Kind, Name, Objects, Order, Rule, Set, Table};

/// `tap`: those that are known.
pub(super) const TAPS: &str = "taps";
/// `tap . hardware address` that it may use.
pub(super) const MACS: &str = "macs";
/// The same, for the sender within a RARP.
pub(super) const RARP: &str = "rarp";
/// `tap . hardware address . IPv4 address`.
pub(super) const OWN4: &str = "own4";
/// `tap . hardware address . IPv6 address`.
pub(super) const OWN6: &str = "own6";
/// `tap . hardware address . IPv4 prefix`.
pub(super) const PAIRS4: &str = "pairs4";
/// `tap . hardware address . IPv6 prefix`.
pub(super) const PAIRS6: &str = "pairs6";
/// `tap : mark` of what comes from it.
pub(super) const MARKS_FROM: &str = "marks-from";
/// `tap : mark` of what goes to it.
pub(super) const MARKS_TO: &str = "marks-to";
/// `tap . mark` of what was judged for it.
pub(super) const JUDGED: &str = "judged";
/// `mark : chain` of what came from an interface.
pub(super) const FROM: &str = "from-mark";
/// `mark : chain` of what goes to an interface.
pub(super) const TO: &str = "to-mark";
/// `bridge . IPv4 address : mark` of what goes to it.
pub(super) const ROUTED4: &str = "routed4";
/// `bridge . IPv6 address : mark` of what goes to it.
pub(super) const ROUTED6: &str = "routed6";
/// `bridge . IPv4 addresses : mark`, of the prefixes beside.
pub(super) const ROUTED_PAIRS4: &str = "routed-pairs4";
/// `bridge . IPv6 addresses : mark`, of the prefixes beside.
pub(super) const ROUTED_PAIRS6: &str = "routed-pairs6";
/// `mark . IPv6 address` that it may advertise.
pub(super) const NEIGHBOR: &str = "neighbor";
/// `mark . IPv6 prefix` that it may advertise.
pub(super) const NEIGHBOR_PAIRS: &str = "neighbor-pairs";

const SETS: &[(Table, &str, &str)] = &[
    (Table::Bridge, TAPS, "type ifname;"),
    (Table::Bridge, MACS, "type ifname . ether_addr;"),
    (Table::Bridge, RARP, "typeof iifname . @nh,64,48;"),
    (Table::Bridge, OWN4, "type ifname . ether_addr . ipv4_addr;"),
    (Table::Bridge, OWN6, "type ifname . ether_addr . ipv6_addr;"),
    (
        Table::Bridge,
        PAIRS4,
        "type ifname . ether_addr . ipv4_addr; flags interval;",
    ),
    (
        Table::Bridge,
        PAIRS6,
        "type ifname . ether_addr . ipv6_addr; flags interval;",
    ),
    (Table::Bridge, MARKS_FROM, "type ifname : mark;"),
    (Table::Bridge, MARKS_TO, "type ifname : mark;"),
    (Table::Bridge, JUDGED, "type ifname . mark;"),
    (Table::Inet, FROM, "type mark : verdict;"),
    (Table::Inet, TO, "type mark : verdict;"),
    (Table::Inet, ROUTED4, "type ifname . ipv4_addr : mark;"),
    (Table::Inet, ROUTED6, "type ifname . ipv6_addr : mark;"),
    (
        Table::Inet,
        ROUTED_PAIRS4,
        "type ifname . ipv4_addr : mark; flags interval;",
    ),
    (
        Table::Inet,
        ROUTED_PAIRS6,
        "type ifname . ipv6_addr : mark; flags interval;",
    ),
    (Table::Inet, NEIGHBOR, "typeof meta mark . @th,64,128;"),
    (
        Table::Inet,
        NEIGHBOR_PAIRS,
        "typeof meta mark . @th,64,128; flags interval;",
    ),
];

type FixedChain = (
    Table,
    &'static str,
    Option<&'static str>,
    &'static [&'static str],
);

const CHAINS: &[FixedChain] = &[
    (
        Table::Bridge,
        "prerouting",
        Some("type filter hook prerouting priority -300; policy accept;"),
        &[
            "iifname != \"mt*\" accept",
            "ether daddr & ff:ff:ff:ff:ff:f0 == 01:80:c2:00:00:00 drop",
            // One that is not known has no hardware address either.
            "iifname . ether saddr != @macs drop",
            "meta mark set iifname map @marks-from",
            // A tagged frame is of the type 0x8100 here.
            "ether type vmap { ip : goto from-ipv4, 0x86dd : goto from-ipv6, arp : goto from-arp, 0x8035 : goto from-rarp }",
            "drop",
        ],
    ),
    (
        Table::Bridge,
        "from-ipv4",
        None,
        &[
            "iifname . ether saddr . ip saddr @own4 accept",
            "iifname . ether saddr . ip saddr @pairs4 accept",
            // Who has no address yet asks for one.
            "ip saddr 0.0.0.0 udp sport 68 udp dport 67 accept",
            "drop",
        ],
    ),
    (
        Table::Bridge,
        "from-ipv6",
        None,
        &[
            "iifname . ether saddr . ip6 saddr @own6 accept",
            "iifname . ether saddr . ip6 saddr @pairs6 accept",
            // Who has no address yet asks whether one is free, and for routers.
            "ip6 saddr :: icmpv6 type { 131, 132, 133, 135, 143 } accept",
            "drop",
        ],
    ),
    (
        Table::Bridge,
        "from-arp",
        None,
        &[
            "arp htype != 1 drop",
            "arp ptype != ip drop",
            "arp hlen != 6 drop",
            "arp plen != 4 drop",
            "arp operation != { request, reply } drop",
            "iifname . arp saddr ether . arp saddr ip @own4 accept",
            "iifname . arp saddr ether . arp saddr ip @pairs4 accept",
            // A probe whether its own address is free: for another one's, it
            // would keep that one from taking it.
            "arp operation request arp saddr ip 0.0.0.0 iifname . arp saddr ether . arp daddr ip @own4 accept",
            "arp operation request arp saddr ip 0.0.0.0 iifname . arp saddr ether . arp daddr ip @pairs4 accept",
            "drop",
        ],
    ),
    (
        Table::Bridge,
        "from-rarp",
        None,
        &[
            // Sender and target are the interface itself: so a machine that
            // has moved tells the switches where it is.
            "iifname . @nh,64,48 @rarp iifname . @nh,144,48 @rarp accept",
            "drop",
        ],
    ),
    (
        Table::Bridge,
        "input",
        Some("type filter hook input priority -300; policy accept;"),
        &[
            // These do not go through prerouting, and would reach the host as
            // if its own device had got them.
            "iifname \"mt*\" ether daddr & ff:ff:ff:ff:ff:f0 == 01:80:c2:00:00:00 drop",
        ],
    ),
    (
        Table::Bridge,
        "forward",
        Some("type filter hook forward priority -300; policy accept;"),
        &[
            // Not judged as egress: br_netfilter is off.
            "meta mark & 0xffff0000 == 0x6d650000 ether type ip drop",
            "meta mark & 0xffff0000 == 0x6d650000 ether type 0x86dd drop",
            "oifname != \"mt*\" accept",
            "oifname != @taps drop",
            "meta mark set oifname map @marks-to",
            // What is addressed to all is judged at each port. What is not is
            // for this interface, or was flooded.
            "ether daddr & 01:00:00:00:00:00 != 00:00:00:00:00:00 accept",
            "ether type ip oifname . ether daddr . ip daddr @own4 accept",
            "ether type ip oifname . ether daddr . ip daddr @pairs4 accept",
            "ether type 0x86dd oifname . ether daddr . ip6 daddr @own6 accept",
            "ether type 0x86dd oifname . ether daddr . ip6 daddr @pairs6 accept",
            "ether type arp oifname . ether daddr @macs accept",
            "drop",
        ],
    ),
    (
        Table::Bridge,
        "elsewhere",
        // What is bridged to a port that is none of ours goes through `inet
        // forward` and `inet postrouting`, too, where it looks like what the
        // host routes and sends. Before br_netfilter's own, at 0: the host's
        // firewall knows by it what only crosses a bridge.
        Some("type filter hook forward priority -100; policy accept;"),
        &[
            "oifname != \"mt*\" meta mark & 0xffff0000 == 0x00000000 ether type { ip, 0x86dd } meta mark set meta mark | 0x6d6e0000",
        ],
    ),
    (
        Table::Bridge,
        "postrouting",
        Some("type filter hook postrouting priority 0; policy accept;"),
        &[
            "oifname != \"mt*\" accept",
            "oifname != @taps drop",
            "ether type vmap { ip : goto to-tap, 0x86dd : goto to-tap, arp : accept }",
            "drop",
        ],
    ),
    (
        Table::Bridge,
        "to-tap",
        None,
        &[
            "oifname . meta mark @judged accept",
            // The host's own, to addresses that no interface has.
            "ether type ip udp sport 67 udp dport 68 accept",
            "ip6 saddr fe80::/10 udp sport 547 udp dport 546 accept",
            "ip6 hoplimit 255 icmpv6 type { 134, 135, 136, 137 } accept",
            "ip6 hoplimit 1 icmpv6 type { 130, 131, 132, 143 } accept",
            "drop",
        ],
    ),
    (
        Table::Inet,
        "prerouting",
        // Right behind the tracking of connections (-200), and before all that
        // sets marks (mangle, -150): what comes with another mark is not ours.
        Some("type filter hook prerouting priority -199; policy accept;"),
        &[
            // A port of a bridge is no interface of the host.
            "iifname \"mt*\" drop",
            "meta mark & 0xffff0000 != 0x6d650000 accept",
            "meta mark set meta mark | 0x00020000",
            // No answers to who asks for an address.
            "meta nfproto ipv4 udp dport 68 drop",
            "meta nfproto ipv6 udp dport 546 drop",
            "ip6 hoplimit 255 icmpv6 type 136 meta mark . @th,64,128 @neighbor accept",
            "ip6 hoplimit 255 icmpv6 type 136 meta mark . @th,64,128 @neighbor-pairs accept",
            // Nobody else's address, no router, nobody who asks for listeners.
            // (One by one: while a table is replaced, a packet may be held
            // against a set that is empty already, and has to be dropped then.)
            "meta nfproto ipv4 icmp type 5 drop",
            "meta nfproto ipv4 icmp type 9 drop",
            "ip protocol igmp @th,0,8 0x11 drop",
            "icmpv6 type 130 drop",
            "icmpv6 type 134 drop",
            "icmpv6 type 136 drop",
            "icmpv6 type 137 drop",
            "ct mark & 0x40000000 == 0x40000000 drop",
            // Only to all: to anybody, it would be a way out for anything.
            "ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept",
            "ip6 daddr { fe80::/10, ff02::/16 } udp sport 546 udp dport 547 accept",
            // Who asks for everybody whether an address is free can keep others
            // from taking theirs.
            "ip6 saddr :: ip6 hoplimit 255 icmpv6 type 135 meta mark . @th,64,128 @neighbor accept",
            "ip6 saddr :: ip6 hoplimit 255 icmpv6 type 135 meta mark . @th,64,128 @neighbor-pairs accept",
            "ip6 saddr :: icmpv6 type 135 drop",
            "ip6 hoplimit 255 icmpv6 type { 133, 135 } accept",
            "ip6 hoplimit 1 icmpv6 type { 131, 132, 143 } accept",
            // What was once let go its own way, and answers to what was let in.
            "ct direction original ct mark & 0x20000000 == 0x20000000 ct state established,related accept",
            "ct direction reply ct mark & 0x10000000 == 0x10000000 ct state established,related accept",
            // Another connection that one of them spoke of.
            "ct direction original ct state related meta l4proto != { icmp, ipv6-icmp } accept",
            // Somebody who goes on with what is not known, or is no more.
            "tcp flags & (fin | syn | rst | ack) != syn drop",
            "meta mark vmap @from-mark",
            "drop",
        ],
    ),
    (
        Table::Inet,
        "seen",
        // Behind the chain above: what it let pass goes on without a mark, and
        // is routed as if there were none.
        Some("type filter hook prerouting priority -198; policy accept;"),
        &[
            "meta mark & 0xffff0000 != 0x6d670000 accept",
            "ct direction original ct mark & 0x20000000 != 0x20000000 ct mark set ct mark | 0x20000000",
            "meta mark set 0x00000000",
        ],
    ),
    (
        Table::Inet,
        "forward",
        Some("type filter hook forward priority -150; policy accept;"),
        &[
            "meta mark & 0xffff0000 != 0x6d690000 accept",
            "goto ingress",
        ],
    ),
    (
        Table::Inet,
        "let-in",
        // Behind the chain above, and what it let pass.
        Some("type filter hook forward priority -149; policy accept;"),
        &[
            "meta mark & 0xffff0000 == 0x6d6b0000 ct direction original ct mark & 0x10000000 != 0x10000000 ct mark set ct mark | 0x10000000",
        ],
    ),
    (
        Table::Inet,
        "postrouting",
        // Behind the translation of addresses: what the machine sees.
        Some("type filter hook postrouting priority 150; policy accept;"),
        &[
            "oifname \"mt*\" drop",
            // Bridged to a port that is none of ours: it gets its mark back.
            "meta mark & 0xffff0000 == 0x6d6e0000 meta mark set meta mark & 0x0000ffff accept",
            // Bridged, and judged when it was forwarded.
            "meta mark & 0xffff0000 == 0x6d6b0000 accept",
            // An address of its own is more than a prefix that it is in.
            "meta mark set oifname . ip daddr map @routed-pairs4",
            "meta mark set oifname . ip6 daddr map @routed-pairs6",
            "meta mark set oifname . ip daddr map @routed4",
            "meta mark set oifname . ip6 daddr map @routed6",
            "meta mark & 0xffff0000 != 0x6d690000 accept",
            "goto ingress",
        ],
    ),
    (
        Table::Inet,
        "let-in-by-host",
        Some("type filter hook postrouting priority 151; policy accept;"),
        &[
            "meta mark & 0xffff0000 == 0x6d6b0000 ct direction original ct mark & 0x10000000 != 0x10000000 ct mark set ct mark | 0x10000000",
        ],
    ),
    (
        Table::Inet,
        "ingress",
        None,
        &[
            "meta mark set meta mark | 0x00020000",
            "ct mark & 0x40000000 == 0x40000000 drop",
            "meta nfproto ipv4 udp sport 67 udp dport 68 accept",
            "ip6 saddr fe80::/10 udp sport 547 udp dport 546 accept",
            "ip6 hoplimit 255 icmpv6 type { 134, 135, 136, 137 } accept",
            "ip6 hoplimit 1 icmpv6 type { 130, 131, 132, 143 } accept",
            // What was once let in, and answers to what was let go.
            "ct direction original ct mark & 0x10000000 == 0x10000000 ct state established,related accept",
            "ct direction reply ct mark & 0x20000000 == 0x20000000 ct state established,related accept",
            // Another connection that one of them spoke of.
            "ct direction original ct state related meta l4proto != { icmp, ipv6-icmp } accept",
            "tcp flags & (fin | syn | rst | ack) != syn drop",
            "meta mark vmap @to-mark",
            "drop",
        ],
    ),
];

/// All of it.
pub(super) fn put(objects: &mut Objects) {
    for (table, name, declaration) in SETS {
        objects
            .sets
            .insert(Name::new(*table, *name), empty(declaration));
    }
    for (table, name, hook, rules) in CHAINS {
        let rules = rules.iter().enumerate().map(|(at, text)| Rule {
            key: format!("{name} {}", at + 1),
            text: (*text).to_owned(),
        });
        let chain = Chain {
            hook: *hook,
            order: Order::Fixed,
            rules: rules.collect(),
        };
        objects.chains.insert(Name::new(*table, *name), chain);
    }
}

/// The sets alone, for a part of what is held.
pub(super) fn put_sets(objects: &mut Objects) {
    for (table, name, declaration) in SETS {
        objects
            .sets
            .insert(Name::new(*table, *name), empty(declaration));
    }
}

fn empty(declaration: &'static str) -> Set {
    Set {
        kind: Kind::Fixed(declaration),
        elements: std::collections::BTreeMap::new(),
    }
}
