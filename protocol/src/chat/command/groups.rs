//! What can be said of security groups.

use std::fmt;

use super::machines::MachineCommand;
use super::{CommandError, Rest, Verb, verb};
use crate::api::{AddRule, ChangeVmGroups, CreateGroup, RollbackGroup};
use crate::firewall::{Direction, Peer, RuleId};
use crate::names::{GroupName, SetName, VmName};

/// What follows `group` and `address-set`, and `vm group`, in the order in
/// which help shows it.
pub const GROUP_VERBS: &[Verb] = &[
    verb("group list", "", "security groups"),
    verb("group show", "GROUP", "its rules, and who is in it"),
    verb(
        "group create",
        "GROUP [--account ACCOUNT]",
        "make one without rules",
    ),
    verb("group remove", "GROUP", "remove one that nobody refers to"),
    verb(
        "group allow",
        "GROUP ingress|egress TRAFFIC [--from WHO] [--to WHO] [--comment TEXT]",
        "let something pass: tcp 80,443, udp 53, icmp 8, any; WHO is any, a prefix, group:NAME or set:NAME",
    ),
    verb(
        "group deny",
        "GROUP RULE",
        "take a rule away by its number; what it had allowed ends",
    ),
    verb("group history", "GROUP", "who changed what"),
    verb(
        "group rollback",
        "GROUP [--to VERSION]",
        "its rules as they were",
    ),
    verb("address-set list", "", "sets of addresses that rules name"),
    verb("address-set show", "SET", "what is in it"),
];

/// What somebody wants of security groups.
#[derive(Clone, Debug, PartialEq)]
pub enum GroupCommand {
    /// List groups.
    List,
    /// One, with its rules.
    Show(GroupName),
    /// Make one.
    Create(CreateGroup),
    /// Remove one.
    Remove(GroupName),
    /// Let something pass.
    Allow(GroupName, AddRule),
    /// Take a rule away.
    Deny(GroupName, RuleId),
    /// Who changed what.
    History(GroupName),
    /// As it was.
    Rollback(GroupName, RollbackGroup),
    /// List sets.
    Sets,
    /// One, with its prefixes.
    Set(SetName),
    /// Put a machine in groups, or take it out.
    Vm(VmName, ChangeVmGroups),
}

impl GroupCommand {
    /// Its first word.
    #[must_use]
    pub fn family(&self) -> &'static str {
        match self {
            Self::Sets | Self::Set(_) => "address-set",
            Self::Vm(..) => "vm",
            _ => "group",
        }
    }
}

impl fmt::Display for GroupCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |all: &[GroupName]| {
            let all: Vec<&str> = all.iter().map(GroupName::as_str).collect();
            all.join(", ")
        };
        match self {
            Self::List => f.write_str("security groups"),
            Self::Show(name) => write!(f, "the group {name}"),
            Self::Create(group) => write!(f, "make the group {}", group.name),
            Self::Remove(name) => write!(f, "remove the group {name}"),
            Self::Allow(name, rule) => {
                let way = match rule.direction {
                    Direction::Ingress => "from",
                    Direction::Egress => "to",
                };
                let AddRule {
                    direction,
                    traffic,
                    peer,
                    ..
                } = rule;
                write!(f, "allow in {name}: {direction} {traffic} {way} {peer}")
            }
            Self::Deny(name, rule) => write!(f, "take rule {rule} of {name} away"),
            Self::History(name) => write!(f, "the history of the group {name}"),
            Self::Rollback(name, RollbackGroup { to: Some(to) }) => {
                write!(f, "make the group {name} as in version {to}")
            }
            Self::Rollback(name, _) => write!(f, "make the group {name} as it was before"),
            Self::Sets => f.write_str("address sets"),
            Self::Set(name) => write!(f, "the address set {name}"),
            Self::Vm(vm, change) if change.remove.is_empty() => {
                write!(f, "put the machine {vm} in {}", list(&change.add))
            }
            Self::Vm(vm, change) => {
                write!(f, "take the machine {vm} out of {}", list(&change.remove))
            }
        }
    }
}

/// Flags that take a value; `None` of a command that is none of these.
pub(super) fn valued(verb: &str) -> Option<&'static [&'static str]> {
    Some(match verb {
        "group list" | "group show" | "group history" | "address-set list" | "address-set show" => {
            &[]
        }
        "group create" => &["account", "code"],
        "group allow" => &["from", "to", "comment", "code"],
        "group rollback" => &["to", "code"],
        _ => return None,
    })
}

impl Rest<'_> {
    /// What is said of groups.
    pub(super) fn groups(&mut self) -> Result<MachineCommand, CommandError> {
        let command = match self.verb.name {
            "group list" => GroupCommand::List,
            "address-set list" => GroupCommand::Sets,
            "address-set show" => GroupCommand::Set(self.name("the set")?),
            verb => {
                let name: GroupName = self.name("the group")?;
                match verb {
                    "group create" => GroupCommand::Create(CreateGroup {
                        name,
                        account: self.value("account")?,
                        labels: std::collections::BTreeMap::new(),
                    }),
                    "group remove" => GroupCommand::Remove(name),
                    "group allow" => GroupCommand::Allow(name, self.rule()?),
                    "group deny" => {
                        let text = self.need("the number of the rule")?;
                        let number = text.parse();
                        let number = number
                            .map_err(|_| self.wrong("a rule is said by its number: !group show"))?;
                        GroupCommand::Deny(name, number)
                    }
                    "group history" => GroupCommand::History(name),
                    "group rollback" => {
                        let to = self.value("to")?;
                        GroupCommand::Rollback(name, RollbackGroup { to })
                    }
                    _ => GroupCommand::Show(name),
                }
            }
        };
        Ok(MachineCommand::Groups(Box::new(command)))
    }

    /// `vm group VM add|remove GROUP...`
    pub(super) fn vm_groups(&mut self) -> Result<MachineCommand, CommandError> {
        let vm: VmName = self.name("the machine")?;
        let what = self.need("`add` or `remove`")?;
        let mut groups: Vec<GroupName> = vec![self.name("the group")?];
        while !self.plain.is_empty() {
            groups.push(self.name("the group")?);
        }
        let mut change = ChangeVmGroups::default();
        match what.as_str() {
            "add" => change.add = groups,
            "remove" => change.remove = groups,
            _ => return Err(self.wrong("`add` or `remove` belongs behind the machine")),
        }
        let command = GroupCommand::Vm(vm, change);
        Ok(MachineCommand::Groups(Box::new(command)))
    }

    fn rule(&mut self) -> Result<AddRule, CommandError> {
        let way = self.need("`ingress` or `egress`")?;
        let direction = match way.as_str() {
            "ingress" => Direction::Ingress,
            "egress" => Direction::Egress,
            _ => return Err(self.wrong("`ingress` or `egress` belongs behind the group")),
        };
        let traffic = self.text();
        let traffic =
            traffic.ok_or_else(|| self.wrong("the traffic is missing, like tcp 80,443"))?;
        let traffic = traffic.parse().map_err(|e| self.wrong(format!("{e}")))?;
        let (from, to): (Option<Peer>, Option<Peer>) = (self.value("from")?, self.value("to")?);
        let (peer, other) = match direction {
            Direction::Ingress => (from, to),
            Direction::Egress => (to, from),
        };
        if other.is_some() {
            return Err(self.wrong(match direction {
                Direction::Ingress => "ingress comes from somebody: `--from`",
                Direction::Egress => "egress goes to somebody: `--to`",
            }));
        }
        Ok(AddRule {
            direction,
            traffic,
            peer: peer.unwrap_or(Peer::Any),
            comment: self.value("comment")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Command, read};
    use super::*;
    use crate::chat::alias::Aliases;

    fn said(line: &str) -> String {
        let aliases = Aliases::new(&[].into(), |word| super::super::find(word).is_some());
        match read(line, &aliases.expect("no aliases"), std::iter::empty()) {
            Ok(said) => match said.command {
                Command::Machines(MachineCommand::Groups(command)) => command.to_string(),
                other => format!("{other:?}"),
            },
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn what_is_said_of_groups_is_read() {
        insta::assert_snapshot!(said("group allow web ingress tcp 80,443 --from group:lb"), @"allow in web: ingress tcp 80,443 from group:lb");
        insta::assert_snapshot!(said("group allow web egress udp 53 --to 192.0.2.53"), @"allow in web: egress udp 53 to 192.0.2.53/32");
        insta::assert_snapshot!(said("group deny web 3"), @"take rule 3 of web away");
        insta::assert_snapshot!(said("group rollback web --to 2"), @"make the group web as in version 2");
        insta::assert_snapshot!(said("vm group web-03 add web lb"), @"put the machine web-03 in web, lb");
        insta::assert_snapshot!(said("vm group web-03 remove web"), @"take the machine web-03 out of web");
        insta::assert_snapshot!(said("address-set show office"), @"the address set office");
    }

    #[test]
    fn what_makes_no_sense_is_said() {
        insta::assert_snapshot!(said("group allow web inside tcp 80"), @"`ingress` or `egress` belongs behind the group: group allow GROUP ingress|egress TRAFFIC [--from WHO] [--to WHO] [--comment TEXT]");
        insta::assert_snapshot!(said("group allow web ingress tcp 0"), @"`0` is not a port; ports are 1 to 65535, written like 80,443,8000-8999: group allow GROUP ingress|egress TRAFFIC [--from WHO] [--to WHO] [--comment TEXT]");
        insta::assert_snapshot!(said("group allow web ingress tcp 80 --to any"), @"ingress comes from somebody: `--from`: group allow GROUP ingress|egress TRAFFIC [--from WHO] [--to WHO] [--comment TEXT]");
        insta::assert_snapshot!(said("group deny web first"), @"a rule is said by its number: !group show: group deny GROUP RULE");
        insta::assert_snapshot!(said("vm group web-03 put web"), @"`add` or `remove` belongs behind the machine: vm group VM add|remove GROUP...");
        insta::assert_snapshot!(said("group alow web"), @"there is no command `group alow`; did you mean `group allow`?");
    }
}
