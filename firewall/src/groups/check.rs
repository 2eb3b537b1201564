//! Whether what a broker says can be put in force at all. What it says is
//! not trusted: a name or a number that nft does not take would keep all the
//! rest from being put in force, too.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use muster_protocol::firewall::{
    Change, GroupRule, Holding, Interface, MAX_GROUP_RULES, Members, MembersOf, RuleError, RuleId,
    UpdateError,
};
use muster_protocol::names::{BridgeName, GroupName, TapName};

use super::ids::MAX_INTERFACES;
use super::objects::TAP_PREFIX;

/// Why what a hypervisor shall hold cannot be put in force.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// Something that it names is not in it.
    #[error(transparent)]
    Missing(#[from] UpdateError),
    /// Not the name of a machine's interface.
    #[error("`{0}` is no interface of a machine: their names begin with `{TAP_PREFIX}`")]
    Tap(TapName),
    /// Too many.
    #[error("{0} interfaces: a hypervisor takes {MAX_INTERFACES}")]
    Interfaces(usize),
    /// The name of a bridge that the rules would take for an interface's.
    #[error(
        "the bridge {bridge} of the interface {tap} has a name as interfaces of machines have: rename it, or nothing passes"
    )]
    Bridge {
        /// Whose.
        tap: TapName,
        /// Which.
        bridge: BridgeName,
    },
    /// An address that nobody can have.
    #[error("{address} of the interface {tap} is not the address of one interface")]
    Address {
        /// Whose.
        tap: TapName,
        /// Which.
        address: IpAddr,
    },
    /// Too many.
    #[error("the group `{group}` has {count} rules; a group takes {MAX_GROUP_RULES}")]
    Rules {
        /// Which group.
        group: GroupName,
        /// How many.
        count: usize,
    },
    /// The same number twice.
    #[error("the group `{group}` has two rules with the number {rule}")]
    Twice {
        /// Which group.
        group: GroupName,
        /// Which number.
        rule: RuleId,
    },
    /// A rule that can never match.
    #[error("rule {rule} of the group `{group}`: {why}")]
    Rule {
        /// Which group.
        group: GroupName,
        /// Which rule.
        rule: RuleId,
        /// Why.
        why: RuleError,
    },
    /// Prefixes that overlap, or with bits behind them.
    #[error("{second} of {members} has bits behind its prefix, or is a part of {first}")]
    Members {
        /// Whose.
        members: MembersOf,
        /// The one before it; itself when its bits are meant.
        first: IpNet,
        /// Which.
        second: IpNet,
    },
}

/// Whether that can be put in force. With a change, only what it names is
/// looked at (beside what is cheap), as the rest was in force before.
///
/// # Errors
/// [`Refused`]: the first thing that cannot be.
pub fn check(after: &Holding, change: Option<&Change>) -> Result<(), Refused> {
    after.check()?;
    if after.interfaces.len() > MAX_INTERFACES {
        return Err(Refused::Interfaces(after.interfaces.len()));
    }
    for (tap, interface) in &after.interfaces {
        if change.is_none_or(|change| change.interfaces.contains_key(tap)) {
            check_interface(tap, interface)?;
        }
    }
    for (group, rules) in &after.groups {
        if change.is_none_or(|change| change.groups.contains_key(group)) {
            check_group(group, rules)?;
        }
    }
    for (of, members) in &after.members {
        if change.is_none_or(|change| change.members.contains_key(of)) {
            check_members(of, members)?;
        }
    }
    Ok(())
}

fn check_interface(tap: &TapName, interface: &Interface) -> Result<(), Refused> {
    if !tap.as_str().starts_with(TAP_PREFIX) {
        return Err(Refused::Tap(tap.clone()));
    }
    if interface.bridge.as_str().starts_with(TAP_PREFIX) {
        return Err(Refused::Bridge {
            tap: tap.clone(),
            bridge: interface.bridge.clone(),
        });
    }
    let nobody = |address: &&IpAddr| match address {
        IpAddr::V4(a) => {
            a.is_unspecified() || a.is_multicast() || a.is_broadcast() || a.is_loopback()
        }
        IpAddr::V6(a) => a.is_unspecified() || a.is_multicast() || a.is_loopback(),
    };
    match interface.addresses.iter().find(nobody) {
        Some(address) => Err(Refused::Address {
            tap: tap.clone(),
            address: *address,
        }),
        None => Ok(()),
    }
}

fn check_group(group: &GroupName, rules: &[GroupRule]) -> Result<(), Refused> {
    if rules.len() > MAX_GROUP_RULES {
        return Err(Refused::Rules {
            group: group.clone(),
            count: rules.len(),
        });
    }
    let mut numbers = BTreeSet::new();
    for rule in rules {
        if !numbers.insert(rule.id) {
            return Err(Refused::Twice {
                group: group.clone(),
                rule: rule.id,
            });
        }
        rule.check().map_err(|why| Refused::Rule {
            group: group.clone(),
            rule: rule.id,
            why,
        })?;
    }
    Ok(())
}

fn check_members(of: &MembersOf, members: &Members) -> Result<(), Refused> {
    // Sorted, a prefix stands right before what is a part of it, but for
    // others that are a part of it, too.
    let mut before: Option<IpNet> = None;
    for net in members {
        let inside = before.filter(|before| before.contains(net));
        let bits = (net.trunc() != *net).then_some(*net);
        if let Some(first) = bits.or(inside) {
            return Err(Refused::Members {
                members: of.clone(),
                first,
                second: *net,
            });
        }
        before = Some(*net);
    }
    Ok(())
}
