//! What the kernel is to hold for what a hypervisor holds, and what of it a
//! change touches.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Bound;

use ipnet::IpNet;
use muster_protocol::firewall::{
    Change, Direction, GroupRule, Holding, Icmp, Interface, Members, MembersOf, Peer, Ports,
    Traffic,
};
use muster_protocol::names::{BridgeName, GroupName, TapName};
use muster_protocol::vm::Mac;

use super::fixed;
use super::ids::Ids;
use super::objects::{
    Chain, Difference, Elements, Key, Kind, Name, Objects, Order, Rule, Set, TAP_PREFIX, Table,
    counter, group_chain,
};

/// All that the kernel is to hold. An interface without a number is not in
/// it, so that nothing passes to it or from it.
#[must_use]
pub fn objects(holding: &Holding, ids: &Ids) -> Objects {
    let mut objects = Objects::default();
    fixed::put(&mut objects);
    let owners = owners(holding);
    for (tap, interface) in &holding.interfaces {
        put_interface(&mut objects, holding, ids, &owners, tap, interface);
    }
    let shapes = Shapes::new(holding);
    for (group, rules) in &holding.groups {
        put_group(&mut objects, &shapes, group, rules);
    }
    for (of, members) in &holding.members {
        put_members(&mut objects, of, members);
    }
    objects
}

/// What a change makes different, at a cost proportional to the change (and
/// to the number of interfaces, where interfaces change). `after` is `before`
/// with the change; `ids` has the numbers of the interfaces of both.
#[must_use]
pub fn touched(before: &Holding, after: &Holding, change: &Change, ids: &Ids) -> Difference {
    let mut groups: BTreeSet<&GroupName> = change.groups.keys().collect();
    let prefixes = |holding: &Holding, of| holding.members.get(of).is_some_and(has_prefixes);
    for (of, members) in &change.members {
        let single = |net: &IpNet| is_single(*net);
        let same_kinds = !members.gone
            && before.members.contains_key(of)
            && members.add.iter().all(single)
            && members.remove.iter().all(single);
        if !same_kinds && prefixes(before, of) != prefixes(after, of) {
            for (group, rules) in before.groups.iter().chain(&after.groups) {
                if rules
                    .iter()
                    .any(|rule| MembersOf::of(&rule.peer).as_ref() == Some(of))
                {
                    groups.insert(group);
                }
            }
        }
    }
    let mut taps: BTreeSet<&TapName> = change.interfaces.keys().collect();
    let closed =
        |holding: &Holding, group| holding.groups.get(group).is_some_and(|r| has_egress(r));
    let turned: BTreeSet<&GroupName> = change
        .groups
        .keys()
        .filter(|group| closed(before, *group) != closed(after, *group))
        .collect();
    if !turned.is_empty() {
        for (tap, interface) in &after.interfaces {
            if interface.groups.iter().any(|group| turned.contains(group)) {
                taps.insert(tap);
            }
        }
    }
    let (mut owners_before, mut owners_after) = (Owners::default(), Owners::default());
    if !taps.is_empty() {
        owners_before = owners(before);
        owners_after = owners(after);
        // Who has an address of theirs from now on, or no longer.
        let mut others = Vec::new();
        for tap in &taps {
            for interface in [before, after]
                .iter()
                .filter_map(|h| h.interfaces.get(*tap))
            {
                for address in single_addresses(interface) {
                    let at = (&interface.bridge, address);
                    others.extend(owners_before.single.get(&at).copied());
                    others.extend(owners_after.single.get(&at).copied());
                }
                // Prefixes are cut by those of others.
                if prefixes_beside(interface).next().is_some() {
                    for owners in [&owners_before, &owners_after] {
                        others.extend(owners.ranges.keys().copied());
                    }
                }
            }
        }
        taps.extend(others);
    }
    let part = |holding: &Holding, owners: &Owners<'_>| {
        let mut part = Objects::default();
        fixed::put_sets(&mut part);
        for tap in &taps {
            if let Some(interface) = holding.interfaces.get(*tap) {
                put_interface(&mut part, holding, ids, owners, tap, interface);
            }
        }
        let shapes = Shapes::new(holding);
        for group in &groups {
            if let Some(rules) = holding.groups.get(*group) {
                put_group(&mut part, &shapes, group, rules);
            }
        }
        part
    };
    let (old, new) = (part(before, &owners_before), part(after, &owners_after));
    let mut difference = old.difference(&new);
    for of in change.members.keys() {
        put_members_change(&mut difference, before, after, change, of);
    }
    difference
}

fn put_members_change(
    d: &mut Difference,
    before: &Holding,
    after: &Holding,
    change: &Change,
    of: &MembersOf,
) {
    match (before.members.get(of), after.members.get(of)) {
        (None, None) => {}
        (Some(_), None) => d.sets_gone.extend(Kinds::ALL.map(|kind| kind.name(of))),
        (None, Some(new)) => {
            let mut objects = Objects::default();
            put_members(&mut objects, of, new);
            d.sets_new.extend(objects.sets);
        }
        (Some(old), Some(new)) => {
            let Some(change) = change.members.get(of) else {
                return;
            };
            let named = || change.add.iter().chain(&change.remove).copied();
            let come: Members = named()
                .filter(|n| new.contains(n) && !old.contains(n))
                .collect();
            let gone: Members = named()
                .filter(|n| old.contains(n) && !new.contains(n))
                .collect();
            for kind in Kinds::ALL {
                let of_kind = |nets: &Members| -> Elements {
                    let nets = nets.iter().filter(|net| Kinds::of(**net) == kind);
                    nets.map(|net| (Key::Net(*net), None)).collect()
                };
                d.change_elements(&kind.name(of), kind.kind(), of_kind(&come), of_kind(&gone));
            }
        }
    }
}

/// The four sets of somebody's addresses: one address is found, added and
/// taken away at the same cost in any number of others; prefixes are not.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Kinds {
    Four,
    Six,
    FourPrefixes,
    SixPrefixes,
}

impl Kinds {
    const ALL: [Self; 4] = [Self::Four, Self::Six, Self::FourPrefixes, Self::SixPrefixes];

    fn of(net: IpNet) -> Self {
        match (net, is_single(net)) {
            (IpNet::V4(_), true) => Self::Four,
            (IpNet::V6(_), true) => Self::Six,
            (IpNet::V4(_), false) => Self::FourPrefixes,
            (IpNet::V6(_), false) => Self::SixPrefixes,
        }
    }

    fn kind(self) -> Kind {
        match self {
            Self::Four => Kind::Ipv4,
            Self::Six => Kind::Ipv6,
            Self::FourPrefixes => Kind::Ipv4Prefixes,
            Self::SixPrefixes => Kind::Ipv6Prefixes,
        }
    }

    fn is_v4(self) -> bool {
        matches!(self, Self::Four | Self::FourPrefixes)
    }

    fn short(self) -> &'static str {
        match self {
            Self::Four => "4",
            Self::Six => "6",
            Self::FourPrefixes => "4p",
            Self::SixPrefixes => "6p",
        }
    }

    fn name(self, of: &MembersOf) -> Name {
        let short = self.short();
        let name = match of {
            MembersOf::Group(group) => format!("g{short}-{group}"),
            MembersOf::Set(set) => format!("s{short}-{set}"),
        };
        Name::new(Table::Inet, name)
    }
}

fn is_single(net: IpNet) -> bool {
    net.prefix_len() == net.max_prefix_len()
}

fn has_prefixes(members: &Members) -> bool {
    members.iter().any(|net| !is_single(*net))
}

fn has_egress(rules: &[GroupRule]) -> bool {
    rules.iter().any(|rule| rule.direction == Direction::Egress)
}

/// Whether there are prefixes among somebody's addresses: asked by many rules,
/// counted once.
struct Shapes<'a> {
    holding: &'a Holding,
    known: RefCell<BTreeMap<MembersOf, bool>>,
}

impl<'a> Shapes<'a> {
    fn new(holding: &'a Holding) -> Self {
        Self {
            holding,
            known: RefCell::default(),
        }
    }

    /// None when nothing is known of them.
    fn has_prefixes(&self, of: &MembersOf) -> Option<bool> {
        if let Some(known) = self.known.borrow().get(of) {
            return Some(*known);
        }
        let has = has_prefixes(self.holding.members.get(of)?);
        self.known.borrow_mut().insert(of.clone(), has);
        Some(has)
    }
}

fn put_members(objects: &mut Objects, of: &MembersOf, members: &Members) {
    for kind in Kinds::ALL {
        let nets = members.iter().filter(|net| Kinds::of(**net) == kind);
        let set = Set {
            kind: kind.kind(),
            elements: nets.map(|net| (Key::Net(*net), None)).collect(),
        };
        objects.sets.insert(kind.name(of), set);
    }
}

fn put_group(objects: &mut Objects, shapes: &Shapes<'_>, group: &GroupName, rules: &[GroupRule]) {
    for direction in [Direction::Ingress, Direction::Egress] {
        let mut chain = Chain {
            hook: None,
            order: Order::Any,
            rules: Vec::new(),
        };
        for rule in rules.iter().filter(|rule| rule.direction == direction) {
            let counter = counter(group, rule.id);
            put_rule(&mut chain.rules, shapes, rule, &counter.name);
            objects.counters.insert(counter);
        }
        objects.chains.insert(group_chain(group, direction), chain);
    }
}

fn put_rule(into: &mut Vec<Rule>, shapes: &Shapes<'_>, rule: &GroupRule, counter: &str) {
    let traffics = traffics(&rule.traffic);
    let only_v4 = matches!(rule.traffic, Traffic::Icmp(_));
    let only_v6 = matches!(rule.traffic, Traffic::Icmpv6(_));
    let mut put = |key: String, peer: String| {
        for (at, traffic) in traffics.iter().enumerate() {
            let parts = [peer.as_str(), traffic.as_str()];
            let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
            let matches = parts.join(" ");
            let space = if matches.is_empty() { "" } else { " " };
            into.push(Rule {
                key: match at {
                    0 => key.clone(),
                    _ => format!("{key}+{at}"),
                },
                text: format!("{matches}{space}counter name {counter} accept"),
            });
        }
    };
    let side = |v4: bool| match (v4, rule.direction) {
        (true, Direction::Ingress) => "ip saddr",
        (true, Direction::Egress) => "ip daddr",
        (false, Direction::Ingress) => "ip6 saddr",
        (false, Direction::Egress) => "ip6 daddr",
    };
    match &rule.peer {
        Peer::Any => put(rule.id.to_string(), String::new()),
        Peer::Prefix(prefix) => {
            let v4 = matches!(prefix, IpNet::V4(_));
            // Everybody of a family is no address to compare with.
            let peer = match (prefix.prefix_len(), v4) {
                (0, true) => "meta nfproto ipv4".to_owned(),
                (0, false) => "meta nfproto ipv6".to_owned(),
                _ => format!("{} {}", side(v4), Key::Net(prefix.trunc())),
            };
            put(rule.id.to_string(), peer);
        }
        Peer::Group(_) | Peer::Set(_) => {
            let Some(of) = MembersOf::of(&rule.peer) else {
                return;
            };
            let Some(prefixes) = shapes.has_prefixes(&of) else {
                return;
            };
            for kind in Kinds::ALL {
                let wanted = if kind.is_v4() { !only_v6 } else { !only_v4 };
                if wanted && (prefixes || matches!(kind, Kinds::Four | Kinds::Six)) {
                    put(
                        format!("{}/{}", rule.id, kind.short()),
                        format!("{} @{}", side(kind.is_v4()), kind.name(&of).name),
                    );
                }
            }
        }
    }
}

/// Up to so many ranges of ports are a rule each. More are a set: the kernel
/// looks through all unnamed sets of a table for the name of each new one, so
/// that tens of thousands of them take minutes.
const FEW_PORTS: usize = 4;

/// What matches it: any of these.
fn traffics(traffic: &Traffic) -> Vec<String> {
    let ports = |word: &str, ports: &Option<Ports>| match ports {
        None => vec![format!("meta l4proto {word}")],
        Some(ports) if ports.ranges().len() <= FEW_PORTS => {
            let ranges = ports.ranges().iter();
            ranges
                .map(|range| format!("{word} dport {range}"))
                .collect()
        }
        Some(ports) => {
            let many: Vec<String> = ports.ranges().iter().map(ToString::to_string).collect();
            vec![format!("{word} dport {{ {} }}", many.join(", "))]
        }
    };
    let icmp = |family: &str, word: &str, icmp: &Option<Icmp>| {
        let of = format!("meta nfproto {family} meta l4proto {word}");
        match icmp {
            None => of,
            Some(Icmp { kind, code: None }) => format!("{of} {word} type {kind}"),
            Some(Icmp {
                kind,
                code: Some(code),
            }) => format!("{of} {word} type {kind} {word} code {code}"),
        }
    };
    match traffic {
        Traffic::Any => vec![String::new()],
        Traffic::Tcp(list) => ports("tcp", list),
        Traffic::Udp(list) => ports("udp", list),
        Traffic::Icmp(kind) => vec![icmp("ipv4", "icmp", kind)],
        Traffic::Icmpv6(kind) => vec![icmp("ipv6", "icmpv6", kind)],
        Traffic::Protocol(number) => vec![format!("meta l4proto {number}")],
    }
}

/// Who gets what goes to an address of a bridge. Where two interfaces have
/// one address, the first one gets it: the kernel takes no address twice.
#[derive(Default)]
struct Owners<'a> {
    single: BTreeMap<(&'a BridgeName, IpAddr), &'a TapName>,
    /// From one address to another, of the prefixes beside their own: each is
    /// of the longest prefix that it is in.
    ranges: BTreeMap<&'a TapName, Vec<(IpAddr, IpAddr)>>,
}

fn owners(holding: &Holding) -> Owners<'_> {
    let mut owners = Owners::default();
    let mut prefixes: BTreeMap<&BridgeName, BTreeMap<IpNet, &TapName>> = BTreeMap::new();
    for (tap, interface) in &holding.interfaces {
        for address in single_addresses(interface) {
            let at = (&interface.bridge, address);
            owners.single.entry(at).or_insert(tap);
        }
        for net in prefixes_beside(interface) {
            let of = prefixes.entry(&interface.bridge).or_default();
            of.entry(net).or_insert(tap);
        }
    }
    for of in prefixes.values() {
        put_ranges(&mut owners.ranges, of);
    }
    owners
}

fn prefixes_beside(interface: &Interface) -> impl Iterator<Item = IpNet> {
    let pairs = interface.pairs.iter().map(|pair| pair.prefix.trunc());
    pairs.filter(|net| !is_single(*net))
}

/// What is left of each prefix without those that are in it.
fn put_ranges<'a>(
    into: &mut BTreeMap<&'a TapName, Vec<(IpAddr, IpAddr)>>,
    of: &BTreeMap<IpNet, &'a TapName>,
) {
    for (net, tap) in of {
        // In the order of their first addresses, a prefix before those in it.
        let behind = of.range((Bound::Excluded(*net), Bound::Unbounded));
        let inside = behind.map(|(other, _)| other);
        let inside = inside.take_while(|other| net.contains(*other));
        let mut next = Some(number(net.network()));
        let last = number(net.broadcast());
        let ranges = into.entry(*tap).or_default();
        let mut put = |first: u128, last: u128| {
            ranges.push((address(*net, first), address(*net, last)));
        };
        for other in inside {
            let Some(first) = next else { break };
            let begin = number(other.network());
            if begin > first {
                put(first, begin - 1);
            }
            next = number(other.broadcast())
                .max(first.saturating_sub(1))
                .checked_add(1);
        }
        if let Some(first) = next.filter(|first| *first <= last) {
            put(first, last);
        }
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => u32::from(a).into(),
        IpAddr::V6(a) => a.into(),
    }
}

/// The address of a number, of the family of a prefix that it is in.
fn address(within: IpNet, number: u128) -> IpAddr {
    match (within, u32::try_from(number)) {
        (IpNet::V4(_), Ok(number)) => Ipv4Addr::from(number).into(),
        _ => Ipv6Addr::from(number).into(),
    }
}

/// The address that follows from a hardware address (RFC 4291, appendix A).
fn link_local(mac: &Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = *mac.as_bytes();
    Ipv6Addr::from([
        0xfe,
        0x80,
        0,
        0,
        0,
        0,
        0,
        0,
        a ^ 2,
        b,
        c,
        0xff,
        0xfe,
        d,
        e,
        f,
    ])
}

fn own_addresses(interface: &Interface) -> impl Iterator<Item = IpAddr> {
    let link_local = IpAddr::V6(link_local(&interface.mac));
    interface.addresses.iter().copied().chain([link_local])
}

fn single_addresses(interface: &Interface) -> BTreeSet<IpAddr> {
    let pairs = interface.pairs.iter().map(|pair| pair.prefix);
    let pairs = pairs.filter(|net| is_single(*net)).map(|net| net.addr());
    own_addresses(interface).chain(pairs).collect()
}

fn put_interface(
    objects: &mut Objects,
    holding: &Holding,
    ids: &Ids,
    owners: &Owners<'_>,
    tap: &TapName,
    interface: &Interface,
) {
    let Some(number) = ids.of(tap) else {
        return;
    };
    if !tap.as_str().starts_with(TAP_PREFIX) {
        return;
    }
    let mark = |kind: u32| format!("0x{:08x}", (kind << 16) | u32::from(number));
    let (from, from_seen) = (mark(0x6d65), mark(0x6d67));
    let (to, to_seen) = (mark(0x6d69), mark(0x6d6b));
    let quoted = format!("\"{tap}\"");
    let mut put = |table, set: &str, key: String, value: Option<String>| {
        if let Some(set) = objects.sets.get_mut(&Name::new(table, set)) {
            set.elements.insert(Key::Text(key), value);
        }
    };
    put(Table::Bridge, fixed::TAPS, quoted.clone(), None);
    put(Table::Bridge, fixed::MARKS_FROM, quoted.clone(), Some(from));
    put(
        Table::Bridge,
        fixed::MARKS_TO,
        quoted.clone(),
        Some(to.clone()),
    );
    put(
        Table::Bridge,
        fixed::JUDGED,
        format!("{quoted} . {to_seen}"),
        None,
    );

    // What it may use: single addresses and prefixes, by hardware address.
    let own = own_addresses(interface).map(|address| (interface.mac, address.into()));
    let pairs = interface.pairs.iter().map(|pair| {
        let mac = pair.mac.as_ref().unwrap_or(&interface.mac);
        (*mac, pair.prefix.trunc())
    });
    let mut uses: BTreeMap<[u8; 6], (Mac, Vec<IpNet>)> = BTreeMap::new();
    for (mac, net) in own.chain(pairs) {
        let uses = uses.entry(*mac.as_bytes());
        uses.or_insert_with(|| (mac, Vec::new())).1.push(net);
    }
    let mut advertised: Vec<IpNet> = Vec::new();
    for (mac, nets) in uses.into_values() {
        put(
            Table::Bridge,
            fixed::MACS,
            format!("{quoted} . {mac}"),
            None,
        );
        let raw: String = mac.to_string().replace(':', "");
        put(
            Table::Bridge,
            fixed::RARP,
            format!("{quoted} . 0x{raw}"),
            None,
        );
        let (single, prefixes): (Vec<IpNet>, Vec<IpNet>) =
            nets.into_iter().partition(|net| is_single(*net));
        let prefixes = IpNet::aggregate(&prefixes);
        for net in single.iter().chain(&prefixes) {
            let set = match (net, is_single(*net)) {
                (IpNet::V4(_), true) => fixed::OWN4,
                (IpNet::V6(_), true) => fixed::OWN6,
                (IpNet::V4(_), false) => fixed::PAIRS4,
                (IpNet::V6(_), false) => fixed::PAIRS6,
            };
            let net = Key::Net(*net);
            put(
                Table::Bridge,
                set,
                format!("{quoted} . {mac} . {net}"),
                None,
            );
        }
        advertised.extend(single);
        advertised.extend(prefixes);
    }
    let (single, prefixes): (Vec<IpNet>, Vec<IpNet>) =
        advertised.into_iter().partition(|net| is_single(*net));
    let raw = |address: IpAddr| match address {
        IpAddr::V6(a) => Some(format!("0x{:032x}", u128::from(a))),
        IpAddr::V4(_) => None,
    };
    for address in single.iter().filter_map(|net| raw(net.addr())) {
        put(
            Table::Inet,
            fixed::NEIGHBOR,
            format!("{from_seen} . {address}"),
            None,
        );
    }
    for net in IpNet::aggregate(&prefixes) {
        if let (Some(first), Some(last)) = (raw(net.network()), raw(net.broadcast())) {
            let key = format!("{from_seen} . {first}-{last}");
            put(Table::Inet, fixed::NEIGHBOR_PAIRS, key, None);
        }
    }
    for address in single_addresses(interface) {
        if owners.single.get(&(&interface.bridge, address)) == Some(&tap) {
            let set = match address {
                IpAddr::V4(_) => fixed::ROUTED4,
                IpAddr::V6(_) => fixed::ROUTED6,
            };
            let key = format!("\"{}\" . {address}", interface.bridge);
            put(Table::Inet, set, key, Some(to.clone()));
        }
    }
    for (first, last) in owners.ranges.get(tap).into_iter().flatten() {
        let set = match first {
            IpAddr::V4(_) => fixed::ROUTED_PAIRS4,
            IpAddr::V6(_) => fixed::ROUTED_PAIRS6,
        };
        let key = match first == last {
            true => format!("\"{}\" . {first}", interface.bridge),
            false => format!("\"{}\" . {first}-{last}", interface.bridge),
        };
        put(Table::Inet, set, key, Some(to.clone()));
    }
    let goto = |word: &str| Some(format!("goto {word}-{tap}"));
    put(Table::Inet, fixed::FROM, from_seen, goto("from"));
    put(Table::Inet, fixed::TO, to_seen, goto("to"));
    put_interface_chains(objects, holding, tap, interface);
}

fn put_interface_chains(
    objects: &mut Objects,
    holding: &Holding,
    tap: &TapName,
    interface: &Interface,
) {
    let groups: BTreeSet<&GroupName> = interface.groups.iter().collect();
    let known = || {
        let rules = |group: &&GroupName| holding.groups.get_key_value(*group);
        groups.iter().filter_map(rules)
    };
    let closed = known().any(|(_, rules)| has_egress(rules));
    for (word, direction) in [("to", Direction::Ingress), ("from", Direction::Egress)] {
        let mut texts = Vec::new();
        if direction == Direction::Egress && !closed {
            texts.push("accept".to_owned());
        } else {
            for (group, _) in known() {
                texts.push(format!("jump {}", group_chain(group, direction).name));
            }
            texts.push("drop".to_owned());
        }
        let rules = texts.into_iter().enumerate().map(|(at, text)| Rule {
            key: (at + 1).to_string(),
            text,
        });
        let chain = Chain {
            hook: None,
            order: Order::Fixed,
            rules: rules.collect(),
        };
        let name = Name::new(Table::Inet, format!("{word}-{tap}"));
        objects.chains.insert(name, chain);
    }
}
