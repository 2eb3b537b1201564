//! Pools of addresses, and what a network is: pure.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;
use muster_protocol::api::PutNetwork;
use muster_protocol::text::printable;

use super::runs::Taken;

/// Most pools of a network.
pub const MAX_POOLS: usize = 16;
/// Most addresses of a network that are never given.
pub const MAX_RESERVED: usize = 1_000;
/// Most name servers.
pub const MAX_DNS: usize = 8;
/// The smallest and the largest packet: what every IPv4 host takes, and what
/// network cards can.
pub const MTU: std::ops::RangeInclusive<u16> = 576..=9_216;
/// What IPv6 needs.
const MTU_V6: u16 = 1_280;

/// Why a text is no pool.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// Not an address, prefix or range.
    #[error(
        "`{0}` is not a pool of addresses; write a prefix like 192.0.2.0/24, or a range like 192.0.2.10-192.0.2.99/24"
    )]
    Form(String),
    /// A prefix that does not begin where it says.
    #[error("`{text}` is within {net}; write {net}, or the range that you mean")]
    HostBits {
        /// As it was written.
        text: String,
        /// The prefix that it is in.
        net: IpNet,
    },
    /// A range that leaves its prefix, or ends before it begins.
    #[error("`{0}` is no range within one prefix; its first address comes first")]
    Range(String),
    /// Addresses that no machine can have.
    #[error(
        "no machine can have the addresses of `{0}`: they are for one host, one link, or groups"
    )]
    Special(String),
    /// Nothing is left.
    #[error("`{0}` has no address for a machine")]
    Empty(String),
}

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// That of an address.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    pub(super) fn address(self, number: u128) -> IpAddr {
        match self {
            // Numbers of this family come from its addresses.
            Self::V4 => Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX)).into(),
            Self::V6 => Ipv6Addr::from(number).into(),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// An address as a number of its family.
pub(super) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

/// Addresses that machines can have, in one subnet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Pool {
    text: String,
    net: IpNet,
    first: u128,
    last: u128,
}

impl Pool {
    /// Its family.
    #[must_use]
    pub fn family(&self) -> Family {
        Family::of(self.net.addr())
    }

    /// The subnet that its addresses are in.
    #[must_use]
    pub fn net(&self) -> IpNet {
        self.net
    }

    /// Whether the address is one of it.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        Family::of(address) == self.family() && (self.first..=self.last).contains(&number(address))
    }

    /// How many addresses it has. The largest pool has one less than fits.
    fn len(&self) -> u128 {
        (self.last - self.first).saturating_add(1)
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.family() == other.family() && self.first <= other.last && other.first <= self.last
    }
}

impl fmt::Display for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

/// The addresses of a subnet that a host can have: in IPv4 not the subnet's
/// own and not that of all, in IPv6 not the one of all its routers. A link of
/// two, and a single address, have neither.
fn hosts(net: IpNet) -> (u128, u128) {
    let (first, last) = (number(net.network()), number(net.broadcast()));
    if net.max_prefix_len() - net.prefix_len() < 2 {
        return (first, last);
    }
    match net {
        IpNet::V4(_) => (first + 1, last - 1),
        IpNet::V6(_) => (first + 1, last),
    }
}

/// Whether a part of a subnet is what no machine's interface can have.
fn is_special(first: IpAddr, last: IpAddr) -> bool {
    let nets: &[&str] = match first {
        IpAddr::V4(_) => &["0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3"],
        IpAddr::V6(_) => &["::/96", "::ffff:0:0/96", "fe80::/10", "ff00::/8"],
    };
    nets.iter()
        .filter_map(|net| net.parse::<IpNet>().ok())
        .any(|net| {
            number(net.network()) <= number(last) && number(first) <= number(net.broadcast())
        })
}

impl FromStr for Pool {
    type Err = PoolError;

    fn from_str(text: &str) -> Result<Self, PoolError> {
        let shown = printable(text, 100);
        let form = || PoolError::Form(shown.clone());
        let (addresses, prefix) = text.trim().split_once('/').ok_or_else(form)?;
        let prefix: u8 = prefix.parse().map_err(|_| form())?;
        let address = |text: &str| text.trim().parse::<IpAddr>().map_err(|_| form());
        let range = addresses.split_once('-');
        let (from, to) = match range {
            Some((from, to)) => (address(from)?, address(to)?),
            None => (address(addresses)?, address(addresses)?),
        };
        let net = IpNet::new(from, prefix).map_err(|_| form())?.trunc();
        let (mut first, mut last) = hosts(net);
        if range.is_some() {
            if Family::of(from) != Family::of(to) || from > to || !net.contains(&to) {
                return Err(PoolError::Range(shown));
            }
            first = first.max(number(from));
            last = last.min(number(to));
        } else if net.network() != from {
            return Err(PoolError::HostBits { text: shown, net });
        }
        let family = Family::of(from);
        if first > last {
            return Err(PoolError::Empty(shown));
        }
        if is_special(family.address(first), family.address(last)) {
            return Err(PoolError::Special(shown));
        }
        let text = match range {
            Some(_) => format!("{from}-{to}/{prefix}"),
            None => net.to_string(),
        };
        Ok(Self {
            text,
            net,
            first,
            last,
        })
    }
}

/// Why no network can be like that.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// A pool.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// None, or too many.
    #[error("a network has 1 to {MAX_POOLS} pools of addresses, not {0}")]
    Pools(usize),
    /// An address would be in two.
    #[error("the pools {0} and {1} have addresses in common")]
    Overlap(String, String),
    /// An interface has one address of a family, and one way out.
    #[error("the pools {0} and {1} are of different subnets; make a network of each")]
    Subnets(String, String),
    /// Two ways out.
    #[error("two gateways of {0}; a network has at most one of each family")]
    Gateways(Family),
    /// No machine could reach it.
    #[error("the gateway {0} is in no subnet of the pools; no machine could reach it")]
    Unreachable(IpAddr),
    /// Not the address of a host.
    #[error("{0} is not the address of a host")]
    NotHost(IpAddr),
    /// Name servers.
    #[error("a network has at most {MAX_DNS} name servers, not {0}")]
    Dns(usize),
    /// Addresses that are never given.
    #[error(
        "at most {MAX_RESERVED} addresses are reserved, not {0}; give ranges as pools that leave them out"
    )]
    Reserved(usize),
    /// The largest packet.
    #[error(
        "packets of at most {0} bytes: possible are {min} to {max}, with IPv6 from {MTU_V6}",
        min = MTU.start(), max = MTU.end()
    )]
    Mtu(u16),
    /// Nothing is left.
    #[error("the {0} pools have no address that is not reserved or a gateway")]
    Empty(Family),
}

/// What a network is, with everything in it parsed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Plan {
    pools: Vec<Pool>,
    /// Of its pools, what is never given.
    never: Vec<IpAddr>,
}

/// Whether a host can have this address, and be reached from another link or
/// this one.
fn is_host(address: IpAddr) -> bool {
    !address.is_unspecified() && !address.is_multicast() && address != Ipv4Addr::BROADCAST
}

impl Plan {
    /// Reads what was asked for.
    ///
    /// # Errors
    /// [`PlanError`]: the first thing that cannot be.
    pub fn read(put: &PutNetwork) -> Result<Self, PlanError> {
        let count = put.pools.len();
        if count == 0 || count > MAX_POOLS {
            return Err(PlanError::Pools(count));
        }
        let parsed: Result<Vec<Pool>, _> = put.pools.iter().map(|text| text.parse()).collect();
        let pools = parsed?;
        for (at, one) in pools.iter().enumerate() {
            for other in &pools[..at] {
                let both = || (other.to_string(), one.to_string());
                if one.overlaps(other) {
                    let (a, b) = both();
                    return Err(PlanError::Overlap(a, b));
                }
                if one.family() == other.family() && one.net != other.net {
                    let (a, b) = both();
                    return Err(PlanError::Subnets(a, b));
                }
            }
        }
        let families: Vec<Family> = Family::ALL
            .into_iter()
            .filter(|family| pools.iter().any(|pool| pool.family() == *family))
            .collect();
        for (at, gateway) in put.gateways.iter().enumerate() {
            let family = Family::of(*gateway);
            if put.gateways[..at].iter().any(|g| Family::of(*g) == family) {
                return Err(PlanError::Gateways(family));
            }
            if !is_host(*gateway) {
                return Err(PlanError::NotHost(*gateway));
            }
            // In IPv6 it is often known by its address on the link.
            let on_link = matches!(gateway, IpAddr::V6(v6) if v6.is_unicast_link_local());
            let reached = pools.iter().any(|pool| pool.net.contains(gateway));
            if !(reached || on_link && families.contains(&family)) {
                return Err(PlanError::Unreachable(*gateway));
            }
        }
        if put.dns.len() > MAX_DNS {
            return Err(PlanError::Dns(put.dns.len()));
        }
        if let Some(dns) = put.dns.iter().find(|dns| !is_host(**dns)) {
            return Err(PlanError::NotHost(*dns));
        }
        if put.reserved.len() > MAX_RESERVED {
            return Err(PlanError::Reserved(put.reserved.len()));
        }
        if let Some(mtu) = put.mtu
            && (!MTU.contains(&mtu) || (mtu < MTU_V6 && families.contains(&Family::V6)))
        {
            return Err(PlanError::Mtu(mtu));
        }
        // A name server in the pool is some host's, too.
        let mut never = [&put.gateways, &put.reserved, &put.dns]
            .into_iter()
            .flatten()
            .copied()
            .filter(|address| pools.iter().any(|pool| pool.contains(*address)))
            .collect::<Vec<IpAddr>>();
        never.sort_unstable();
        never.dedup();
        let plan = Self { pools, never };
        let none = plan.taken(std::iter::empty());
        match families.into_iter().find(|f| plan.free(*f, &none) == 0) {
            Some(family) => Err(PlanError::Empty(family)),
            None => Ok(plan),
        }
    }

    /// Its pools.
    #[must_use]
    pub fn pools(&self) -> &[Pool] {
        &self.pools
    }

    /// The families that it has pools of.
    pub fn families(&self) -> impl Iterator<Item = Family> + '_ {
        Family::ALL
            .into_iter()
            .filter(|family| self.of(*family).next().is_some())
    }

    fn of(&self, family: Family) -> impl Iterator<Item = &Pool> {
        self.pools.iter().filter(move |p| p.family() == family)
    }

    /// The pools of a family, for people.
    #[must_use]
    pub fn shown(&self, family: Family) -> String {
        let pools: Vec<String> = self.of(family).map(Pool::to_string).collect();
        pools.join(", ")
    }

    /// Whether one of its pools has this address.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.pools.iter().any(|pool| pool.contains(address))
    }

    /// Bits of the subnet of an address.
    #[must_use]
    pub fn prefix_len(&self, address: IpAddr) -> u8 {
        let mut nets = self.of(Family::of(address)).map(Pool::net);
        nets.next().map_or(0, |net| net.prefix_len())
    }

    /// A pool of this network and one of another that have addresses in common.
    #[must_use]
    pub fn overlap<'a>(&'a self, other: &'a Self) -> Option<(&'a Pool, &'a Pool)> {
        let mut pairs = self
            .pools
            .iter()
            .flat_map(|ours| other.pools.iter().map(move |theirs| (ours, theirs)));
        pairs.find(|(ours, theirs)| ours.overlaps(theirs))
    }

    /// What is taken, by family, when machines have these addresses.
    pub(super) fn taken(&self, used: impl Iterator<Item = IpAddr>) -> [Taken; 2] {
        let mut taken = [Taken::default(), Taken::default()];
        for address in used.chain(self.never.iter().copied()) {
            taken[Family::of(address) as usize].insert(number(address));
        }
        taken
    }

    /// The lowest address of a family that is free.
    pub(super) fn propose(&self, family: Family, taken: &[Taken; 2]) -> Option<IpAddr> {
        let taken = &taken[family as usize];
        self.of(family)
            .find_map(|pool| taken.lowest_free(pool.first, pool.last))
            .map(|number| family.address(number))
    }

    /// How many addresses of a family are free.
    pub(super) fn free(&self, family: Family, taken: &[Taken; 2]) -> u128 {
        let taken = &taken[family as usize];
        self.of(family)
            .map(|pool| {
                pool.len()
                    .saturating_sub(taken.count(pool.first, pool.last))
            })
            .fold(0, u128::saturating_add)
    }

    /// Whether an address is never given, though it is in a pool.
    pub(super) fn is_never(&self, address: IpAddr) -> bool {
        self.never.contains(&address)
    }
}
