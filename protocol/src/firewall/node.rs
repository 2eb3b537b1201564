//! What a node and the broker say to each other when the node's own firewall
//! changes.
//!
//! ```text
//! node  → broker  POST /v1/agent/firewall/addresses   who has the role bastion?
//! node            the new rules are in force, and a guard will take them back
//! node  → broker  POST /v1/agent/firewall/confirm     by a new connection
//! broker → others Ask::Probe                          is tcp/22 open there?
//! others → broker NodeSays::Probed
//! broker → node   Confirmation                        the rules stay, or do not
//! ```

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::holding::Members;
use crate::ids::{RequestId, Serial};
use crate::keys::Signature;
use crate::names::RoleName;
use crate::text::printable;
use crate::units::Span;

/// Most roles that are asked for at once.
pub const MAX_ROLES_ASKED: usize = 64;
/// Most probes that a change asks for.
pub const MAX_PROBES_ASKED: usize = 16;
/// Longest text that says why a probe did not pass, in characters.
pub(super) const MAX_WHY: usize = 200;

/// `POST /v1/agent/firewall/addresses`: a node that is to change its firewall
/// asks which addresses the operators gave to nodes of these roles.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddressesRequest {
    /// The node's serial.
    pub serial: Serial,
    /// A challenge from `POST /v1/agent/challenge`.
    pub challenge: String,
    /// By the identity key, over [`crate::wire::proof_text`].
    pub proof: Signature,
    /// The step for which it asks. It is answered while that is open there.
    pub request: RequestId,
    /// Which roles, at most [`MAX_ROLES_ASKED`].
    pub roles: Vec<RoleName>,
}

/// The answer. A role that no node has is not in it; one whose nodes have no
/// address that an operator gave has an empty list.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RoleAddresses {
    /// By role.
    #[schema(value_type = BTreeMap<String, Vec<String>>)]
    pub roles: BTreeMap<RoleName, Members>,
}

impl RoleAddresses {
    /// Adds addresses of a role; the role is known from then on, also without.
    pub fn add(&mut self, role: &RoleName, addresses: impl IntoIterator<Item = IpAddr>) {
        let members = self.roles.entry(role.clone()).or_default();
        members.extend(addresses.into_iter().map(IpNet::from));
    }
}

/// `POST /v1/agent/firewall/confirm`: the node's new rules are in force, this
/// request came through them, and the broker is to have the probes made.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ConfirmRequest {
    /// The node's serial.
    pub serial: Serial,
    /// A challenge from `POST /v1/agent/challenge`.
    pub challenge: String,
    /// By the identity key, over [`crate::wire::proof_text`].
    pub proof: Signature,
    /// The step whose change it is. It is confirmed while that is open there.
    pub request: RequestId,
    /// Who has to reach the node now, at most [`MAX_PROBES_ASKED`].
    pub probes: Vec<ProbeWish>,
    /// How long the broker has for them.
    pub within: Span,
}

/// Others have to be able to connect to the node.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProbeWish {
    /// Which nodes: a predicate.
    pub from: String,
    /// To which port.
    pub tcp: u16,
}

/// The answer: whether the node is as reachable as it has to be.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Confirmation {
    /// What did not pass: `probe from bastion-1 to tcp/22 got no answer`. The
    /// rules stay when it is empty.
    pub failed: Vec<String>,
    /// What did.
    pub passed: Vec<String>,
}

/// `Ask::Probe`: connect to there, and say whether that was possible.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeAsk {
    /// The address of the node whose firewall has changed.
    pub address: IpAddr,
    /// The port.
    pub tcp: u16,
    /// How long to try.
    pub within: Span,
}

/// What came of a probe.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "is", deny_unknown_fields)]
pub enum ProbeResult {
    /// A connection was made.
    Open,
    /// Somebody said no at once.
    Refused,
    /// Nobody said anything.
    Silent,
    /// It could not be tried, or the network said no.
    Failed {
        /// Why, for people.
        why: String,
    },
}

impl ProbeResult {
    /// As words after `probe from bastion-1 to tcp/22`.
    #[must_use]
    pub fn words(&self) -> String {
        match self {
            Self::Open => "passed".to_owned(),
            Self::Refused => "was refused".to_owned(),
            Self::Silent => "got no answer".to_owned(),
            Self::Failed { why } => format!("failed: {}", printable(why, MAX_WHY)),
        }
    }
}

/// What a node says of a probe that it was asked for.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Probed {
    /// Which.
    pub request: RequestId,
    /// What came of it.
    pub result: ProbeResult,
}

/// `NodeSays::Repaired`: somebody else had changed this node's own firewall,
/// and it is as it was confirmed again.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct FirewallRepaired {
    /// A few lines of the table: `-` in front of what was missing, `+` of
    /// what should not have been there.
    pub lines: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_is_said_in_words() {
        let failed = ProbeResult::Failed {
            why: "no route\u{1b}[2J".to_owned(),
        };
        let said = [
            ProbeResult::Open,
            ProbeResult::Refused,
            ProbeResult::Silent,
            failed,
        ]
        .map(|result| format!("probe from bastion-1 to tcp/22 {}", result.words()))
        .join("\n");
        insta::assert_snapshot!(said, @r"
        probe from bastion-1 to tcp/22 passed
        probe from bastion-1 to tcp/22 was refused
        probe from bastion-1 to tcp/22 got no answer
        probe from bastion-1 to tcp/22 failed: no route\x1b[2J
        ");
    }

    #[test]
    fn a_role_without_an_address_is_known_all_the_same() {
        let mut all = RoleAddresses::default();
        let role = |name: &str| name.parse::<RoleName>().expect("a role");
        all.add(&role("bastion"), []);
        all.add(&role("lb"), ["192.0.2.7".parse().expect("an address")]);
        let text = serde_json::to_string(&all).expect("is JSON");
        insta::assert_snapshot!(text, @r#"{"roles":{"bastion":[],"lb":["192.0.2.7/32"]}}"#);
    }
}
