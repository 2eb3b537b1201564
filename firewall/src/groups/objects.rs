//! What the kernel is to hold of security groups, as data: tables, chains,
//! sets, counters. And what differs between two such states.
//!
//! There are two tables of one name, [`NAME`]: one of the bridge family, which
//! sees frames and knows the ports of a bridge, and one of the inet family,
//! which knows connections. Packets carry the number of an interface from one
//! to the other in their mark:
//!
//! | mark         | means                                                   |
//! |--------------|---------------------------------------------------------|
//! | `0x6d65NNNN` | came from interface N, and nobody has judged it yet      |
//! | `0x6d67NNNN` | the same, and the inet table has seen it                 |
//! | `0x6d69NNNN` | goes to interface N, and nobody has judged it yet        |
//! | `0x6d6bNNNN` | the same, and the inet table has seen it                 |
//! | `0x6d6eXXXX` | bridged to a port that is none of ours; its own mark was X |
//!
//! What is not seen by the inet table reaches no interface: with br_netfilter
//! off nothing passes, rather than everything.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use muster_protocol::firewall::{Direction, RuleId};
use muster_protocol::names::GroupName;

/// The name of both tables.
pub const NAME: &str = "muster_groups";

/// This bit in the mark of a connection says that it is not allowed any more:
/// its packets are dropped, in both directions. Taken away, it goes on.
pub const WITHDRAWN: u32 = 0x4000_0000;

/// This bit in the mark of a connection says that an interface was allowed to
/// send what is its own direction, that of its first packet. Without it, no
/// answer comes back as one: whoever can send from a port that is not ours
/// could otherwise begin a connection in the name of any machine.
pub const SENT: u32 = 0x2000_0000;

/// And this one, that an interface was allowed to get it. Without it, no
/// answer goes out as one.
pub const TAKEN: u32 = 0x1000_0000;

/// The names of the interfaces of machines begin with this.
pub const TAP_PREFIX: &str = "mt";

/// Which of the two tables. Written as nft wants it: `bridge muster_groups`.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Table {
    /// Frames.
    Bridge,
    /// Packets and connections.
    Inet,
}

impl Table {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Bridge, Self::Inet];

    /// The word of its family.
    #[must_use]
    pub fn family(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Inet => "inet",
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {NAME}", self.family())
    }
}

/// The name of a chain, a set, a map or a counter, and its table. Written as
/// nft wants it: `inet muster_groups in-web`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Name {
    /// Where.
    pub table: Table,
    /// What.
    pub name: String,
}

impl Name {
    /// In that table.
    #[must_use]
    pub fn new(table: Table, name: impl Into<String>) -> Self {
        Self {
            table,
            name: name.into(),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.table, self.name)
    }
}

/// A rule of a chain.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Rule {
    /// What it is known by in its chain.
    pub key: String,
    /// For nft.
    pub text: String,
}

impl Rule {
    /// What stands beside it in the kernel: its key, and a short hash of its
    /// text. Two rules of a chain with the same comment are the same.
    #[must_use]
    pub fn comment(&self) -> String {
        format!("{} {:012x}", self.key, fnv(&self.text) >> 16)
    }
}

/// FNV-1a. Nobody gains from a collision: who can choose rules can choose
/// those that he wants.
fn fnv(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// In what order the rules of a chain are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Order {
    /// As they stand. When one differs, the chain is emptied and filled again
    /// in one transaction.
    Fixed,
    /// Any: all of them only allow. Those that differ are replaced alone.
    Any,
}

/// A chain.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Chain {
    /// Where the kernel calls it: `type filter hook … ; policy …;`. Without
    /// it, it is called from other chains.
    pub hook: Option<&'static str>,
    /// Whether the order of its rules matters.
    pub order: Order,
    /// Its rules.
    pub rules: Vec<Rule>,
}

/// What a set holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// Single addresses: a hash. All keys are [`Key::Net`] of one address.
    Ipv4,
    /// Single addresses: a hash. All keys are [`Key::Net`] of one address.
    Ipv6,
    /// Prefixes, apart from each other. All keys are [`Key::Net`].
    Ipv4Prefixes,
    /// Prefixes, apart from each other. All keys are [`Key::Net`].
    Ipv6Prefixes,
    /// One of those that are there always: as nft declares it.
    Fixed(&'static str),
}

impl Kind {
    /// As nft declares it.
    #[must_use]
    pub fn declaration(self) -> &'static str {
        match self {
            Self::Ipv4 => "type ipv4_addr;",
            Self::Ipv6 => "type ipv6_addr;",
            Self::Ipv4Prefixes => "type ipv4_addr; flags interval;",
            Self::Ipv6Prefixes => "type ipv6_addr; flags interval;",
            Self::Fixed(text) => text,
        }
    }

    /// `map` or `set`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Fixed(text) if text.contains(" : ") => "map",
            _ => "set",
        }
    }
}

/// The key of an element.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Key {
    /// Addresses.
    Net(IpNet),
    /// As nft takes it.
    Text(String),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Net(net) if net.prefix_len() == net.max_prefix_len() => {
                fmt::Display::fmt(&net.addr(), f)
            }
            Self::Net(net) => fmt::Display::fmt(net, f),
            Self::Text(text) => f.write_str(text),
        }
    }
}

impl Key {
    /// One address.
    #[must_use]
    pub fn address(address: IpAddr) -> Self {
        Self::Net(address.into())
    }
}

/// Elements of a set; of a map with what they are mapped to.
pub type Elements = BTreeMap<Key, Option<String>>;

/// A set or a map.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Set {
    /// What it holds.
    pub kind: Kind,
    /// Its elements.
    pub elements: Elements,
}

/// All that the kernel is to hold. Everything that its parts name is in it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Objects {
    /// Chains.
    pub chains: BTreeMap<Name, Chain>,
    /// Sets and maps.
    pub sets: BTreeMap<Name, Set>,
    /// Counters, one for each rule of a group: see [`counter`].
    pub counters: BTreeSet<Name>,
}

/// What becomes otherwise. What is not in it stays.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Difference {
    /// Counters that come; those that are there keep their figures.
    pub counters_new: BTreeSet<Name>,
    /// Counters that go.
    pub counters_gone: BTreeSet<Name>,
    /// Sets and maps that come, with their elements.
    pub sets_new: BTreeMap<Name, Set>,
    /// Sets and maps that go.
    pub sets_gone: BTreeSet<Name>,
    /// Elements that come, in sets that stay.
    pub elements_new: BTreeMap<Name, Elements>,
    /// Elements that go (with what they were mapped to), in sets that stay.
    /// They go before the new ones come: a key that is in both is mapped to
    /// something else.
    pub elements_gone: BTreeMap<Name, Elements>,
    /// What kind the sets are of that stay and whose elements change.
    pub kinds: BTreeMap<Name, Kind>,
    /// Chains that come, with their rules.
    pub chains_new: BTreeMap<Name, Chain>,
    /// Chains that stay, and whose rules are these now.
    pub chains_changed: BTreeMap<Name, Chain>,
    /// Chains that go.
    pub chains_gone: BTreeSet<Name>,
}

impl Difference {
    /// Whether nothing differs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether only elements of sets come and go: then no chain has to be
    /// known for [`super::update`], and netlink can be spoken directly.
    #[must_use]
    pub fn is_elements_only(&self) -> bool {
        self.counters_new.is_empty()
            && self.counters_gone.is_empty()
            && self.sets_new.is_empty()
            && self.sets_gone.is_empty()
            && self.chains_new.is_empty()
            && self.chains_changed.is_empty()
            && self.chains_gone.is_empty()
    }

    /// The chains whose rules have to be listed (comment and handle) before
    /// [`super::update`]. One that is not listed is emptied and filled again.
    pub fn to_list(&self) -> impl Iterator<Item = &Name> {
        let any = |(name, chain): (_, &Chain)| (chain.order == Order::Any).then_some(name);
        self.chains_changed.iter().filter_map(any)
    }
}

/// A rule as the kernel lists it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ListedRule {
    /// Its handle.
    pub handle: u64,
    /// Its comment; empty when it has none, and it is none of ours then.
    pub comment: String,
}

/// The rules of chains as the kernel lists them.
pub type Listed = BTreeMap<Name, Vec<ListedRule>>;

/// What a counter has counted.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// The counter of a rule, in the inet table. Replies are not counted: no rule
/// is asked about them.
#[must_use]
pub fn counter(group: &GroupName, rule: RuleId) -> Name {
    Name::new(Table::Inet, format!("n-{group}-{rule}"))
}

/// Whose counter that is.
#[must_use]
pub fn counter_of(name: &str) -> Option<(GroupName, RuleId)> {
    let (group, rule) = name.strip_prefix("n-")?.rsplit_once('-')?;
    Some((group.parse().ok()?, rule.parse().ok()?))
}

/// The chain of a group's rules of a direction.
#[must_use]
pub fn group_chain(group: &GroupName, direction: Direction) -> Name {
    let word = match direction {
        Direction::Ingress => "in",
        Direction::Egress => "out",
    };
    Name::new(Table::Inet, format!("{word}-{group}"))
}

impl Objects {
    /// What makes this into `next`.
    #[must_use]
    pub fn difference(&self, next: &Self) -> Difference {
        let mut d = Difference {
            counters_new: next.counters.difference(&self.counters).cloned().collect(),
            counters_gone: self.counters.difference(&next.counters).cloned().collect(),
            ..Difference::default()
        };
        for (name, old) in &self.sets {
            match next.sets.get(name) {
                Some(new) => d.elements(name, old, new),
                None => {
                    d.sets_gone.insert(name.clone());
                }
            }
        }
        for (name, new) in &next.sets {
            if !self.sets.contains_key(name) {
                d.sets_new.insert(name.clone(), new.clone());
            }
        }
        for name in self.chains.keys() {
            if !next.chains.contains_key(name) {
                d.chains_gone.insert(name.clone());
            }
        }
        for (name, new) in &next.chains {
            match self.chains.get(name) {
                Some(old) if old == new => continue,
                Some(_) => d.chains_changed.insert(name.clone(), new.clone()),
                None => d.chains_new.insert(name.clone(), new.clone()),
            };
        }
        d
    }

    /// The same with that difference.
    pub fn apply(&mut self, d: &Difference) {
        for name in &d.counters_gone {
            self.counters.remove(name);
        }
        self.counters.extend(d.counters_new.iter().cloned());
        for name in &d.sets_gone {
            self.sets.remove(name);
        }
        for (name, elements) in &d.elements_gone {
            if let Some(set) = self.sets.get_mut(name) {
                for key in elements.keys() {
                    set.elements.remove(key);
                }
            }
        }
        for (name, elements) in &d.elements_new {
            if let Some(set) = self.sets.get_mut(name) {
                set.elements.extend(elements.clone());
            }
        }
        self.sets.extend(d.sets_new.clone());
        for name in &d.chains_gone {
            self.chains.remove(name);
        }
        self.chains.extend(d.chains_changed.clone());
        self.chains.extend(d.chains_new.clone());
    }
}

impl Difference {
    fn elements(&mut self, name: &Name, old: &Set, new: &Set) {
        let missing = |from: &Elements, to: &Elements| -> Elements {
            from.iter()
                .filter(|(key, value)| to.get(key) != Some(value))
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect()
        };
        let gone = missing(&old.elements, &new.elements);
        let come = missing(&new.elements, &old.elements);
        self.change_elements(name, new.kind, come, gone);
    }

    /// Elements of a set that stays.
    pub(super) fn change_elements(
        &mut self,
        name: &Name,
        kind: Kind,
        come: Elements,
        gone: Elements,
    ) {
        if come.is_empty() && gone.is_empty() {
            return;
        }
        self.kinds.insert(name.clone(), kind);
        if !come.is_empty() {
            self.elements_new.insert(name.clone(), come);
        }
        if !gone.is_empty() {
            self.elements_gone.insert(name.clone(), gone);
        }
    }
}
