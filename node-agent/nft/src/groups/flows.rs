//! Connections that were allowed and are not any more, and the other way
//! round. The rules let replies of what the kernel follows pass; so each
//! connection of an interface that something changed for is judged again, and
//! what is not allowed is marked for the rules to drop.

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use muster_firewall::groups::objects::WITHDRAWN;
use muster_protocol::firewall::{Change, Holding, Interface, MembersOf};
use muster_protocol::names::GroupName;

use crate::conntrack::{Connections, Followed, Tuple};

/// Whose connections are looked at.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Concern {
    /// Connections of these may not be allowed any more.
    addresses: HashSet<IpAddr>,
    prefixes: BTreeSet<IpNet>,
    /// Nobody here has these any more: what is left of their connections goes.
    gone: BTreeSet<IpAddr>,
    /// Connections that were withdrawn may be allowed again.
    allows: bool,
}

/// What became of them.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Ended {
    /// Are not allowed any more.
    pub(crate) withdrawn: usize,
    /// Are allowed again.
    pub(crate) resumed: usize,
    /// Are forgotten.
    pub(crate) forgotten: usize,
}

impl Concern {
    /// All interfaces.
    pub(crate) fn all(holding: &Holding) -> Self {
        let mut all = Self {
            allows: true,
            ..Self::default()
        };
        all.interfaces(holding.interfaces.values());
        all
    }

    /// Whom that change concerns. `before` may be without what did not change.
    pub(crate) fn of(before: &Holding, after: &Holding, change: &Change) -> Self {
        let mut all = Self {
            allows: !change.is_empty(),
            ..Self::default()
        };
        let of_interfaces = change.interfaces.keys();
        all.interfaces(of_interfaces.filter_map(|tap| after.interfaces.get(tap)));
        let is_less = |of: &MembersOf| {
            let change = change.members.get(of);
            change.is_some_and(|change| change.gone || !change.remove.is_empty())
        };
        let rules = after.groups.iter();
        let withdrawn: HashSet<&GroupName> = rules
            .filter(|(group, rules)| {
                let mut named = rules.iter().filter_map(|rule| MembersOf::of(&rule.peer));
                change.groups.contains_key(*group) || named.any(|of| is_less(&of))
            })
            .map(|(group, _)| group)
            .collect();
        if !withdrawn.is_empty() {
            let concerned = |interface: &&Interface| {
                let mut groups = interface.groups.iter();
                groups.any(|group| withdrawn.contains(group))
            };
            all.interfaces(after.interfaces.values().filter(concerned));
        }
        // Addresses that an interface had, and none has now. A tap that was
        // used again for another machine is among them.
        let had = change.interfaces.keys();
        let had = had.filter_map(|tap| before.interfaces.get(tap));
        let had: BTreeSet<IpAddr> = had.flat_map(|one| one.addresses.clone()).collect();
        if !had.is_empty() {
            let have = after.interfaces.values();
            let have: HashSet<IpAddr> = have.flat_map(|one| one.addresses.clone()).collect();
            all.gone = had.into_iter().filter(|one| !have.contains(one)).collect();
        }
        all
    }

    fn interfaces<'a>(&mut self, all: impl Iterator<Item = &'a Interface>) {
        for interface in all {
            self.addresses.extend(&interface.addresses);
            self.prefixes.extend(interface.pairs.iter().map(|pair| pair.prefix));
        }
    }

    /// Both.
    pub(crate) fn join(&mut self, other: Self) {
        self.addresses.extend(other.addresses);
        self.prefixes.extend(other.prefixes);
        self.gone.extend(other.gone);
        self.allows |= other.allows;
    }

    /// Forgets of what is gone what somebody has.
    pub(crate) fn is_here(&mut self, holding: &Holding) {
        if self.gone.is_empty() {
            return;
        }
        for interface in holding.interfaces.values() {
            for address in &interface.addresses {
                self.gone.remove(address);
            }
        }
    }

    pub(crate) fn is_nobody(&self) -> bool {
        *self == Self::default()
    }

    fn is_one(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address)
            || self.prefixes.iter().any(|prefix| prefix.contains(&address))
    }

    /// Judges them again.
    pub(crate) fn see_to(&self, allowed: impl Fn(&Tuple) -> bool) -> io::Result<Ended> {
        let mut ended = Ended::default();
        if self.is_nobody() {
            return Ok(ended);
        }
        let kernel = Connections::open()?;
        // One that another connection spoke of is allowed as that one is.
        let allowed = |one: &Followed| allowed(&one.master.unwrap_or(one.original));
        let whose = |one: &Followed| one.ends().any(|end| self.is_one(end));
        let is_gone = |one: &Followed| one.ends().any(|end| self.gone.contains(&end));
        if !self.gone.is_empty() || !self.addresses.is_empty() || !self.prefixes.is_empty() {
            let all = kernel.all(|one| {
                is_gone(one) || (one.mark & WITHDRAWN == 0 && whose(one) && !allowed(one))
            })?;
            for one in all {
                if is_gone(&one) {
                    ended.forgotten += usize::from(kernel.forget(&one)?);
                } else {
                    ended.withdrawn += usize::from(kernel.mark(&one, WITHDRAWN, WITHDRAWN)?);
                }
            }
        }
        if self.allows {
            for one in kernel.marked(WITHDRAWN, allowed)? {
                ended.resumed += usize::from(kernel.mark(&one, 0, WITHDRAWN)?);
            }
        }
        Ok(ended)
    }
}
