//! Stopping everything new.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::names::{NodeName, PrincipalName};
use crate::units::Timestamp;

/// Stops everything new.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FreezeRequest {
    /// Why: whoever is stopped by it reads it. At most 300 characters.
    pub why: String,
}

/// Lets it go on.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ThawRequest {
    /// Why, if there is something to say. At most 300 characters.
    #[serde(default)]
    pub why: String,
}

/// Whether the fleet is frozen, and who goes by that.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct FreezeView {
    /// Whether nothing new is begun.
    pub frozen: bool,
    /// Rises with every change; 0 when there was none.
    pub revision: u64,
    /// Who made the last change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<PrincipalName>,
    /// Why.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// When.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub at: Option<Timestamp>,
    /// Connected nodes that have it on their disk and go by it.
    pub taken: u32,
    /// Connected nodes that have not said so yet.
    pub missing: u32,
    /// Connected nodes whose agents cannot be frozen: too old.
    pub unable: u32,
    /// Nodes that are not connected: they learn it before they execute
    /// anything.
    pub away: u32,
    /// Some of those that are missing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing_names: Vec<NodeName>,
    /// Some of those that cannot.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unable_names: Vec<NodeName>,
}
