//! What is wanted of a node's own firewall, as people write it, and with the
//! addresses that its roles stand for.
//!
//! ```text
//! firewall::host(#{
//!     policy: #{ input: "drop" },
//!     sets: #{ office: ["192.0.2.0/24", "2001:db8:1::/48"] },
//!     rules: [
//!         #{ accept: "tcp 22", from: ["role:bastion", "set:office"], comment: "operators" },
//!         #{ accept: "tcp 80,443", rate: "500/second burst 1000" },
//!         #{ reject: "tcp 25", direction: "output", log: "mail " },
//!     ],
//!     probe: [#{ from: "role=bastion", tcp: 22 }],
//!     confirm_within: "60s",
//! })
//! ```

mod order;
mod parts;
mod read;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::group::Comment;
use super::holding::Members;
use super::traffic::Traffic;
use crate::names::{RoleName, SetName};

pub use self::order::{
    ConfirmWithin, ConfirmWithinError, HostOrder, MAX_PROBES, Probe, ProbeTarget,
};
pub use self::parts::{
    Fixed, HostAction, HostDirection, HostPeer, LogPrefix, LogPrefixError, Policy, Rate, RateError,
    RatePer, RawLine, RawLineError, WordError,
};
pub use self::read::{HostFault, HostRulesError};

/// Most rules.
pub const MAX_HOST_RULES: usize = 2_000;
/// Most named sets.
pub const MAX_HOST_SETS: usize = 200;
/// Most addresses and prefixes of all sets, or of all roles.
pub const MAX_HOST_ADDRESSES: usize = 20_000;
/// Most peers on one side of a rule.
pub const MAX_HOST_PEERS: usize = 64;
/// Most lines that the rules may become in the kernel: a rule is as many as
/// it names kinds of peers on one side, times those on the other.
pub const MAX_HOST_LINES: usize = 20_000;

/// What becomes of a packet that no rule is about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Policies {
    /// To the node; dropped unless said otherwise.
    pub input: Policy,
    /// From the node; accepted unless said otherwise.
    pub output: Policy,
    /// Through it; accepted unless said otherwise.
    pub forward: Policy,
}

impl Default for Policies {
    fn default() -> Self {
        Self {
            input: Policy::Drop,
            output: Policy::Accept,
            forward: Policy::Accept,
        }
    }
}

impl Policies {
    /// The one of this direction.
    #[must_use]
    pub fn of(&self, direction: HostDirection) -> Policy {
        match direction {
            HostDirection::Input => self.input,
            HostDirection::Output => self.output,
            HostDirection::Forward => self.forward,
        }
    }
}

/// What a rule is about, and what becomes of that.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HostMatch {
    /// What becomes of it.
    pub action: HostAction,
    /// What.
    pub traffic: Traffic,
    /// From whom; from anybody when there are none.
    pub from: Vec<HostPeer>,
    /// To whom; to anybody when there are none.
    pub to: Vec<HostPeer>,
    /// How much of it: beyond that the rule is as if it were not there.
    pub rate: Option<Rate>,
    /// Written to the kernel's log, at most ten a second, with this in front.
    pub log: Option<LogPrefix>,
}

/// What a rule says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum RuleBody {
    /// In muster's words.
    Match(Box<HostMatch>),
    /// In nft's.
    Raw(RawLine),
}

/// A rule. The first one that is about a packet decides.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HostRule {
    /// Which way.
    pub direction: HostDirection,
    /// What it says.
    pub body: RuleBody,
    /// What people want to remember of it.
    pub comment: Option<Comment>,
}

impl HostRule {
    /// The peers that it names, with the side on which it does.
    pub fn peers(&self) -> impl Iterator<Item = (&'static str, &HostPeer)> {
        let (from, to) = match &self.body {
            RuleBody::Match(what) => (&what.from[..], &what.to[..]),
            RuleBody::Raw(_) => (&[][..], &[][..]),
        };
        let from = from.iter().map(|peer| ("from", peer));
        from.chain(to.iter().map(|peer| ("to", peer)))
    }
}

impl fmt::Display for HostRule {
    /// `input accept tcp 22 from role:bastion # operators`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn side(f: &mut fmt::Formatter<'_>, word: &str, peers: &[HostPeer]) -> fmt::Result {
            for (at, peer) in peers.iter().enumerate() {
                match at {
                    0 => write!(f, " {word} {peer}")?,
                    _ => write!(f, ", {peer}")?,
                }
            }
            Ok(())
        }
        match &self.body {
            RuleBody::Match(what) => {
                write!(f, "{} {} {}", self.direction, what.action, what.traffic)?;
                side(f, "from", &what.from)?;
                side(f, "to", &what.to)?;
                if let Some(rate) = &what.rate {
                    write!(f, ", {rate}")?;
                }
                if let Some(log) = &what.log {
                    write!(f, ", log \"{log}\"")?;
                }
            }
            RuleBody::Raw(line) => write!(f, "{} raw: {line}", self.direction)?,
        }
        match &self.comment {
            Some(comment) => write!(f, " # {comment}"),
            None => Ok(()),
        }
    }
}

/// What is wanted of a node's own firewall, as it was written. A value is
/// within its limits, names no set that it has not, and has no rule that
/// could never match.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct HostRules {
    policy: Policies,
    without: BTreeSet<Fixed>,
    sets: BTreeMap<SetName, Members>,
    rules: Vec<HostRule>,
}

impl HostRules {
    /// What becomes of the rest.
    #[must_use]
    pub fn policy(&self) -> Policies {
        self.policy
    }

    /// Which of the meanings that are always there are not.
    #[must_use]
    pub fn without(&self) -> &BTreeSet<Fixed> {
        &self.without
    }

    /// Addresses that have a name in it. None is empty.
    #[must_use]
    pub fn sets(&self) -> &BTreeMap<SetName, Members> {
        &self.sets
    }

    /// The rules, in their order.
    #[must_use]
    pub fn rules(&self) -> &[HostRule] {
        &self.rules
    }

    /// Whether any of it is said in nft's words, of which muster knows
    /// nothing.
    #[must_use]
    pub fn is_raw(&self) -> bool {
        let raw = |rule: &HostRule| matches!(rule.body, RuleBody::Raw(_));
        self.rules.iter().any(raw)
    }

    /// The roles that it names.
    #[must_use]
    pub fn roles(&self) -> BTreeSet<RoleName> {
        let peers = self.rules.iter().flat_map(HostRule::peers);
        peers
            .filter_map(|(_, peer)| match peer {
                HostPeer::Role(role) => Some(role.clone()),
                HostPeer::Prefix(_) | HostPeer::Set(_) => None,
            })
            .collect()
    }

    /// The same with the addresses of its roles, which must be ones that an
    /// operator has assigned. Addresses of other roles are left out.
    ///
    /// # Errors
    /// [`ResolveError`].
    pub fn resolve(
        &self,
        addresses: &BTreeMap<RoleName, Members>,
    ) -> Result<Resolved, ResolveError> {
        let mut roles = BTreeMap::new();
        for (number, rule) in self.rules.iter().enumerate() {
            for (side, peer) in rule.peers() {
                let HostPeer::Role(role) = peer else {
                    continue;
                };
                let at = || format!("rules[{number}].{side}");
                let Some(members) = addresses.get(role) else {
                    return Err(ResolveError::Unknown {
                        at: at(),
                        role: role.clone(),
                    });
                };
                if members.is_empty() {
                    return Err(ResolveError::Empty {
                        at: at(),
                        role: role.clone(),
                    });
                }
                if !roles.contains_key(role) {
                    let members: Vec<IpNet> = members.iter().map(IpNet::trunc).collect();
                    roles.insert(
                        role.clone(),
                        IpNet::aggregate(&members).into_iter().collect(),
                    );
                }
            }
        }
        let all: usize = roles.values().map(Members::len).sum();
        if all > MAX_HOST_ADDRESSES {
            return Err(ResolveError::Many(all));
        }
        let resolved = Resolved {
            rules: self.clone(),
            roles,
        };
        for (number, rule) in self.rules.iter().enumerate() {
            if let RuleBody::Match(what) = &rule.body {
                read::check_families(what, |peer| resolved.families(peer)).map_err(|why| {
                    ResolveError::Never {
                        at: format!("rules[{number}]"),
                        why,
                    }
                })?;
            }
        }
        Ok(resolved)
    }
}

impl Serialize for HostRules {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        read::write(self).serialize(s)
    }
}

impl<'de> Deserialize<'de> for HostRules {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(d)?;
        Self::read(&value).map_err(serde::de::Error::custom)
    }
}

/// Why roles cannot be addresses.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ResolveError {
    /// Nothing is known of it.
    #[error("{at}: there is no node with the role `{role}`; give it to one, or write addresses")]
    Unknown {
        /// Where it is named.
        at: String,
        /// The role.
        role: RoleName,
    },
    /// Nobody in it has an address.
    #[error(
        "{at}: no node with the role `{role}` has an address that an operator assigned; give its nodes the label `address`, or write addresses"
    )]
    Empty {
        /// Where it is named.
        at: String,
        /// The role.
        role: RoleName,
    },
    /// Too many addresses.
    #[error(
        "the roles of these rules have {0} addresses, at most {MAX_HOST_ADDRESSES} are allowed; write prefixes"
    )]
    Many(usize),
    /// With these addresses a rule can never match.
    #[error("{at}: {why}")]
    Never {
        /// Which.
        at: String,
        /// Why.
        why: HostFault,
    },
}

/// [`HostRules`] with the addresses of the roles that they name: what a node
/// puts in force, and nothing in it has to be asked for any more.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Resolved {
    rules: HostRules,
    roles: BTreeMap<RoleName, Members>,
}

impl Resolved {
    /// As they were written.
    #[must_use]
    pub fn rules(&self) -> &HostRules {
        &self.rules
    }

    /// The addresses of the roles that they name. None is empty.
    #[must_use]
    pub fn roles(&self) -> &BTreeMap<RoleName, Members> {
        &self.roles
    }

    /// Whose addresses these are.
    #[must_use]
    pub fn addresses(&self, peer: &HostPeer) -> Members {
        match peer {
            HostPeer::Prefix(prefix) => Members::from([*prefix]),
            HostPeer::Set(set) => self.rules.sets.get(set).cloned().unwrap_or_default(),
            HostPeer::Role(role) => self.roles.get(role).cloned().unwrap_or_default(),
        }
    }

    /// Whether there are addresses of IPv6 among them, or of IPv4.
    #[must_use]
    pub fn has_family(&self, peer: &HostPeer, six: bool) -> bool {
        let (v4, v6) = self.families(peer);
        if six { v6 } else { v4 }
    }

    fn families(&self, peer: &HostPeer) -> (bool, bool) {
        match peer {
            HostPeer::Prefix(prefix) => read::family(prefix),
            HostPeer::Set(set) => read::families(self.rules.sets.get(set)),
            HostPeer::Role(role) => read::families(self.roles.get(role)),
        }
    }
}

impl<'de> Deserialize<'de> for Resolved {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Form {
            rules: HostRules,
            roles: BTreeMap<RoleName, Members>,
        }
        let form = Form::deserialize(d)?;
        let resolved = form.rules.resolve(&form.roles);
        resolved.map_err(serde::de::Error::custom)
    }
}
