//! A node's own firewall.

use serde::{Deserialize, Serialize};

/// `POST /v1/firewall/nodes/{name}`: what is asked of a node's own firewall.
/// The answer is the run that asks it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case", tag = "do", deny_unknown_fields)]
pub enum NodeFirewallAsk {
    /// Which rules are in force.
    Show,
    /// Which changes there were.
    History,
    /// What a change was to do, and how it ended.
    Diff {
        /// The run that made it, or how its id begins; the newest change when
        /// absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        run: Option<String>,
    },
    /// Back to the rules before the present ones, confirmed as every change.
    Rollback,
}

impl NodeFirewallAsk {
    /// The scenario that asks it.
    #[must_use]
    pub fn scenario(&self) -> &'static str {
        match self {
            Self::Show => "firewall-show",
            Self::History => "firewall-history",
            Self::Diff { .. } => "firewall-diff",
            Self::Rollback => "firewall-rollback",
        }
    }
}
