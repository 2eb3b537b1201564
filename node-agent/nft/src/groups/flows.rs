//! Connections that were allowed and are not any more, and the other way
//! round. The rules let replies of what the kernel follows pass; so each
//! connection of an interface that something changed for is judged again, and
//! what is not allowed is marked for the rules to drop.

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::net::{IpAddr, Ipv6Addr};

use muster_firewall::groups::judge::{Flow, Judge, Payload, Verdict, Way};
use muster_firewall::groups::objects::{SENT, TAKEN, WITHDRAWN};
use muster_protocol::firewall::{Change, Holding, Interface, MembersOf};
use muster_protocol::names::{GroupName, TapName};

use crate::conntrack::{Connections, Followed, Tuple};

/// Whose connections are looked at.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Concern {
    /// Connections of these may not be allowed any more.
    taps: BTreeSet<TapName>,
    /// Whoever had these does not, as long as nobody else has them: what is
    /// left of their connections goes.
    gone: BTreeSet<IpAddr>,
    /// Connections that were withdrawn may be allowed again.
    allows: bool,
    /// There were no groups before: whatever connections there are began
    /// without them, and go on where they could begin now.
    begins: bool,
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
        Self {
            taps: holding.interfaces.keys().cloned().collect(),
            gone: BTreeSet::new(),
            allows: true,
            begins: false,
        }
    }

    /// Those that were withdrawn: one may have got its mark back by whoever
    /// saves and restores marks.
    pub(crate) fn withdrawn() -> Self {
        Self {
            allows: true,
            ..Self::default()
        }
    }

    /// All interfaces, and there were no groups before.
    pub(crate) fn first(holding: &Holding) -> Self {
        Self {
            begins: true,
            ..Self::all(holding)
        }
    }

    /// Whom that change concerns. `before` may be without what did not change.
    pub(crate) fn of(before: &Holding, after: &Holding, change: &Change) -> Self {
        let is_less = |of: &MembersOf| {
            let change = change.members.get(of);
            change.is_some_and(|change| change.gone || !change.remove.is_empty())
        };
        let withdrawn: HashSet<&GroupName> = after
            .groups
            .iter()
            .filter(|(group, rules)| {
                let mut named = rules.iter().filter_map(|rule| MembersOf::of(&rule.peer));
                change.groups.contains_key(*group) || named.any(|of| is_less(&of))
            })
            .map(|(group, _)| group)
            .collect();
        let concerned = |(tap, interface): &(&TapName, &Interface)| {
            let mut groups = interface.groups.iter();
            change.interfaces.contains_key(*tap) || groups.any(|group| withdrawn.contains(group))
        };
        let taps = after.interfaces.iter().filter(concerned);
        // A tap that was used again for another machine is among them.
        let had = change.interfaces.keys();
        let had = had.filter_map(|tap| before.interfaces.get(tap));
        Self {
            taps: taps.map(|(tap, _)| tap.clone()).collect(),
            gone: had.flat_map(had_alone).collect(),
            allows: !change.is_empty(),
            begins: false,
        }
    }

    /// Both.
    pub(crate) fn join(&mut self, other: Self) {
        self.taps.extend(other.taps);
        self.gone.extend(other.gone);
        self.allows |= other.allows;
        self.begins |= other.begins;
    }

    pub(crate) fn is_nobody(&self) -> bool {
        *self == Self::default()
    }

    /// Judges them again.
    pub(crate) fn see_to(&self, holding: &Holding) -> io::Result<Ended> {
        let mut ended = Ended::default();
        if self.is_nobody() {
            return Ok(ended);
        }
        let judge = Judge::new(holding);
        let kernel = Connections::open()?;
        if !self.taps.is_empty() || !self.gone.is_empty() {
            let (mut forget, mut go_on) = (Vec::new(), Vec::new());
            let withdraw = kernel.all(|one| {
                if self.is_gone(&judge, one) {
                    forget.push(one.clone());
                    return false;
                }
                if one.mark & WITHDRAWN != 0 || !self.is_theirs(&judge, one) {
                    return false;
                }
                let may = may_go_on(&judge, one);
                if may && self.begins && one.mark & (SENT | TAKEN) == 0 {
                    go_on.push(one.clone());
                }
                !may
            })?;
            for one in go_on {
                kernel.mark(&one, SENT | TAKEN, SENT | TAKEN)?;
            }
            for one in forget {
                ended.forgotten += usize::from(kernel.forget(&one)?);
            }
            for one in withdraw {
                ended.withdrawn += usize::from(kernel.mark(&one, WITHDRAWN, WITHDRAWN)?);
            }
        }
        if self.allows {
            // What has no end here was not marked here.
            let is_ours = |one: &Followed| one.ends().any(|end| !judge.who_has(end).is_empty());
            let allowed = |one: &Followed| is_ours(one) && may_go_on(&judge, one);
            for one in kernel.marked(WITHDRAWN, allowed)? {
                ended.resumed += usize::from(kernel.mark(&one, 0, WITHDRAWN)?);
            }
        }
        Ok(ended)
    }

    fn is_theirs(&self, judge: &Judge<'_>, one: &Followed) -> bool {
        let theirs = |end| {
            judge
                .who_has(end)
                .iter()
                .any(|tap| self.taps.contains(*tap))
        };
        one.ends().any(theirs)
    }

    fn is_gone(&self, judge: &Judge<'_>, one: &Followed) -> bool {
        one.ends()
            .any(|end| self.gone.contains(&end) && judge.who_has_alone(end).is_empty())
    }
}

/// The addresses that were an interface's alone. What is in a prefix beside
/// them may be anybody's: a router has all there are.
fn had_alone(interface: &Interface) -> impl Iterator<Item = IpAddr> {
    let [a, b, c, d, e, f] = *interface.mac.as_bytes();
    let low = [a ^ 2, b, c, 0xff, 0xfe, d, e, f];
    let link_local = u128::from(u64::from_be_bytes(low)) | 0xfe80 << 112;
    let own = interface.addresses.iter().copied();
    let own = own.chain([IpAddr::V6(Ipv6Addr::from(link_local))]);
    let pairs = interface.pairs.iter().map(|pair| pair.prefix);
    let pairs = pairs.filter(|net| net.prefix_len() == net.max_prefix_len());
    own.chain(pairs.map(|net| net.addr()))
}

/// Whether a connection may go on. One that another one spoke of may as long
/// as that one may.
fn may_go_on(judge: &Judge<'_>, one: &Followed) -> bool {
    let flow = match &one.master {
        Some(master) => {
            let way = way(master, master.from, master.to);
            Flow {
                sent: way.clone(),
                arrives: way,
            }
        }
        None => {
            let (original, reply) = (&one.original, &one.reply);
            // Where it goes in the end is where answers come from.
            let arrives = Tuple {
                from: reply.to,
                to: reply.from,
                from_port: reply.to_port,
                to_port: reply.from_port,
                ..*original
            };
            Flow {
                sent: way(original, original.from, original.to),
                arrives: way(&arrives, arrives.from, arrives.to),
            }
        }
    };
    judge.flow(&flow).verdict == Verdict::Pass
}

fn way(tuple: &Tuple, source: IpAddr, target: IpAddr) -> Way {
    let ports = (
        tuple.from_port.unwrap_or_default(),
        tuple.to_port.unwrap_or_default(),
    );
    let (kind, code) = tuple.icmp.unwrap_or_default();
    let payload = match tuple.protocol {
        6 => Payload::Tcp {
            source: ports.0,
            target: ports.1,
            opens: true,
        },
        17 => Payload::Udp {
            source: ports.0,
            target: ports.1,
        },
        1 => Payload::Icmp { kind, code },
        58 => Payload::Icmpv6 {
            kind,
            code,
            about: None,
        },
        other => Payload::Other(other),
    };
    Way {
        source,
        target,
        payload,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_router_that_goes_takes_nobodys_connections_with_it() {
        let state = json!({
            "interfaces": {"mt1": {
                "machine": "0c7e1a52-93b4-8d3f-a1c2-5d6e7f809102", "name": "router",
                "bridge": "br0", "mac": "52:54:00:00:00:01", "addresses": ["10.7.0.1"],
                "pairs": [{"prefix": "0.0.0.0/0"}, {"prefix": "10.7.0.9/32"}], "groups": [],
            }},
            "groups": {}, "members": {},
        });
        let before: Holding = serde_json::from_value(state).expect("a holding");
        let after = Holding::default();
        let concern = Concern::of(&before, &after, &before.change_to(&after));
        let gone: Vec<_> = concern.gone.iter().map(ToString::to_string).collect();
        assert_eq!(gone, ["10.7.0.1", "10.7.0.9", "fe80::5054:ff:fe00:1"]);
    }
}
