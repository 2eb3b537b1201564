//! What stands behind `--node`.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use muster_protocol::api::{InviteRequest, NodeChange, NodeView};
use muster_protocol::names::{LabelKey, LabelValue, NodeName, RoleName};

/// A node that `muster up` runs: `web-01:role=web,role=canary,zone=gva2`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NodeSpec {
    /// Its name.
    pub name: NodeName,
    /// Its roles: each `role=`.
    pub roles: BTreeSet<RoleName>,
    /// Its labels: everything else.
    pub labels: BTreeMap<LabelKey, LabelValue>,
}

impl FromStr for NodeSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, rest) = text.split_once(':').unwrap_or((text, ""));
        let name = name.parse().map_err(|e| format!("{e}"))?;
        let mut spec = Self {
            name,
            roles: BTreeSet::new(),
            labels: BTreeMap::new(),
        };
        for part in rest.split(',').filter(|p| !p.is_empty()) {
            let (key, value) = part
                .split_once('=')
                .ok_or_else(|| format!("`{part}` is neither role=NAME nor KEY=VALUE"))?;
            if key == "role" {
                spec.roles
                    .insert(value.parse().map_err(|e| format!("{e}"))?);
                continue;
            }
            let key: LabelKey = key.parse().map_err(|e| format!("{e}"))?;
            let value = value.parse().map_err(|e| format!("{e}"))?;
            if spec.labels.insert(key, value).is_some() {
                return Err(format!("`{part}` gives a label twice"));
            }
        }
        Ok(spec)
    }
}

/// As it is read, in one spelling.
impl std::fmt::Display for NodeSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let roles = self.roles.iter().map(|r| format!("role={r}"));
        let labels = self.labels.iter().map(|(k, v)| format!("{k}={v}"));
        let parts: Vec<String> = roles.chain(labels).collect();
        write!(f, "{}", self.name)?;
        if parts.is_empty() {
            Ok(())
        } else {
            write!(f, ":{}", parts.join(","))
        }
    }
}

impl NodeSpec {
    /// As an invite is asked for.
    #[must_use]
    pub fn invite(&self) -> InviteRequest {
        InviteRequest {
            name: self.name.to_string(),
            count: None,
            roles: self.roles.iter().cloned().collect(),
            labels: self.labels.clone(),
            infrastructure: false,
            expires: None,
        }
    }

    /// What must change of a node that is there already; `None` when nothing
    /// must. A spec without roles and labels asks for no change.
    #[must_use]
    pub fn change(&self, node: &NodeView) -> Option<NodeChange> {
        if self.roles.is_empty() && self.labels.is_empty() {
            return None;
        }
        let has: BTreeSet<RoleName> = node.roles.iter().cloned().collect();
        let change = NodeChange {
            add_roles: self.roles.difference(&has).cloned().collect(),
            remove_roles: has.difference(&self.roles).cloned().collect(),
            set_labels: self
                .labels
                .iter()
                .filter(|(k, v)| node.labels.get(*k) != Some(*v))
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect(),
            remove_labels: node
                .labels
                .keys()
                .filter(|k| !self.labels.contains_key(*k))
                .cloned()
                .collect(),
            infrastructure: None,
        };
        (change != NodeChange::default()).then_some(change)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_has_one_spelling() {
        for text in ["db", "web-01:role=canary,role=web,rack=r1,zone=gva2"] {
            assert_eq!(
                text.parse::<NodeSpec>().map(|s| s.to_string()),
                Ok(text.to_owned())
            );
        }
        let other = "web-01:zone=gva2,role=web,rack=r1,role=canary".parse::<NodeSpec>();
        assert_eq!(
            other.map(|s| s.to_string()).ok().as_deref(),
            Some("web-01:role=canary,role=web,rack=r1,zone=gva2")
        );
    }

    #[test]
    fn specs_are_read_whole_or_not_at_all() {
        let spec: NodeSpec = "web-01:role=web,zone=gva2,role=canary"
            .parse()
            .expect("spec");
        assert_eq!(spec.name.as_str(), "web-01");
        let roles: Vec<_> = spec.roles.iter().map(RoleName::as_str).collect();
        assert_eq!(roles, ["canary", "web"]);
        assert_eq!(spec.labels.len(), 1);
        assert!("db".parse::<NodeSpec>().is_ok_and(|s| s.roles.is_empty()));
        for bad in [
            "",
            ":role=web",
            "A",
            "a:web",
            "a:role=",
            "a:zone=x,zone=y",
            "a:name=b",
            "a:zone",
        ] {
            assert!(bad.parse::<NodeSpec>().is_err(), "{bad}");
        }
    }
}
