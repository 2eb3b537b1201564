//! Security groups and sets of addresses.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::firewall::{AddressPair, Comment, Direction, GroupRule, Peer, RuleId, Traffic};
use crate::names::{
    AccountName, GroupName, LabelKey, LabelValue, NodeName, PrincipalName, SetName, VmName,
};
use crate::units::Timestamp;

/// Makes a group without rules: nothing gets in, and everything out.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateGroup {
    /// Its name.
    pub name: GroupName,
    /// Whose it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountName>,
    /// Its labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<String, String>)]
    pub labels: BTreeMap<LabelKey, LabelValue>,
}

/// Adds a rule to a group.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddRule {
    /// Which way.
    pub direction: Direction,
    /// What.
    pub traffic: Traffic,
    /// From whom, or to whom.
    pub peer: Peer,
    /// What people want to remember of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<Comment>,
}

/// Makes a group, or a set, as it was in one of its versions.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RollbackGroup {
    /// Which version; the one before the newest when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<u32>,
}

/// A group.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct GroupView {
    /// Its name.
    pub name: GroupName,
    /// Whose it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountName>,
    /// Its labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<String, String>)]
    pub labels: BTreeMap<LabelKey, LabelValue>,
    /// Rises with every change.
    pub version: u32,
    /// How many rules it has.
    pub count: u32,
    /// Its rules, by number; only where one group is asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<GroupRule>,
    /// How many machines are in it.
    pub machines: u32,
    /// Those machines, by name, a thousand at most; only where one group is
    /// asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<VmName>,
    /// Groups with rules that name it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub named_by: Vec<GroupName>,
    /// Who changed it last.
    pub by: PrincipalName,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
}

/// A change of a group or of a set.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(bound(deserialize = "T: Deserialize<'de>"))]
pub struct Version<T> {
    /// Its number.
    pub version: u32,
    /// Who.
    pub by: PrincipalName,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// What, in words.
    pub what: String,
    /// What came.
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    pub added: Vec<T>,
    /// What went.
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    pub removed: Vec<T>,
}

/// A change of a group.
pub type GroupVersion = Version<GroupRule>;
/// A change of a set; prefixes as text.
pub type SetVersion = Version<String>;

/// Where a change is in force.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct InForce {
    /// Hypervisors that it concerns.
    pub of: u32,
    /// Those that have it in force.
    pub on: u32,
    /// The others; each has it as soon as it answers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waiting: Vec<NodeName>,
}

/// What became of a change of a group or of a set.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct GroupChanged {
    /// What was done, in words: `allowed: rule 3 in web`.
    pub what: String,
    /// The rule that it is about, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<RuleId>,
    /// The version of now.
    pub version: u32,
    /// Where it is in force. What is not told yet is told until it is.
    pub force: InForce,
}

/// The prefixes of a set: all of them, from now on.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PutSet {
    /// Prefixes, and addresses, IPv4 and IPv6.
    pub prefixes: Vec<String>,
}

/// A set of addresses.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct SetView {
    /// Its name.
    pub name: SetName,
    /// Rises with every change.
    pub version: u32,
    /// How many prefixes it has.
    pub count: u32,
    /// Its prefixes; only where one set is asked for.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub prefixes: BTreeSet<IpNet>,
    /// Groups with rules that name it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub named_by: Vec<GroupName>,
    /// Who changed it last.
    pub by: PrincipalName,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
}

/// Puts a machine in groups, and takes it out of others.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeVmGroups {
    /// Groups that it is to be in.
    #[serde(default)]
    pub add: Vec<GroupName>,
    /// Groups that it is not to be in.
    #[serde(default)]
    pub remove: Vec<GroupName>,
}

/// Lets a machine use addresses beside its own, or not any more.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeVmPairs {
    /// Addresses that it may use.
    #[serde(default)]
    pub add: Vec<AddressPair>,
    /// Addresses that it may not use any more.
    #[serde(default)]
    pub remove: Vec<AddressPair>,
}

/// What of a machine groups go by, after it was changed.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct VmGuarded {
    /// The machine.
    pub name: VmName,
    /// Its groups.
    pub groups: Vec<GroupName>,
    /// Addresses that it may use beside its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pairs: Vec<AddressPair>,
    /// Where that is in force.
    pub force: InForce,
}

/// What decides of a packet at one interface.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Decided {
    /// The machine.
    pub machine: VmName,
    /// Whether it lets it pass.
    pub passes: bool,
    /// The group of the rule that does, if a rule does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupName>,
    /// The number of that rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<RuleId>,
    /// What decides, in words: `rule 3 of web`.
    pub why: String,
}

/// What becomes of a packet, by what is asked for now. Nothing is sent.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Explained {
    /// Whether it passes.
    pub passes: bool,
    /// From that address.
    #[schema(value_type = String)]
    pub source: std::net::IpAddr,
    /// To that one.
    #[schema(value_type = String)]
    pub target: std::net::IpAddr,
    /// What of it is said: `tcp 443`.
    pub traffic: String,
    /// What decides where it leaves a machine; none when it leaves none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<Decided>,
    /// What decides where it comes to one; none when it comes to none, or does
    /// not get that far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Decided>,
    /// What decides in the end, in words.
    pub why: String,
}
