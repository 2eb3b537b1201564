//! Secret parameters of runs: in the memory of this broker alone, for as long
//! as the run is open, and sealed to each node that is sent to.
//!
//! A journal holds their names. A broker that takes a run up has no values,
//! and nobody could tell it: what was not sent by then is not sent.

use std::collections::BTreeSet;

use muster_protocol::ids::{RunId, Serial};
use muster_protocol::run::{NodeResult, Outcome, RunSpec};
use muster_protocol::seal::SecretBox;
use muster_scenarios::secret;

use super::engine::{Engine, Shared, lock};
use super::secrets::SecretValues;

/// Why what a node would be sent cannot be sealed for it.
const FORGOTTEN: &str = "not started: the secret parameters were only in the memory of the broker that stopped; start \
                         the run anew";

impl Engine {
    /// The secret parameters of an open run, for the parts of it; `None` when
    /// this broker does not have them.
    #[must_use]
    pub fn secrets_of(&self, run: RunId) -> Option<SecretValues> {
        lock(&self.0.secrets).get(&run).cloned()
    }
}

/// The names of the secrets that go with each call of a run.
fn wanted(spec: &RunSpec) -> BTreeSet<String> {
    spec.params
        .as_object()
        .map(secret::names)
        .unwrap_or_default()
}

/// Whether each node is sent to alone, with secrets in a box.
#[must_use]
pub(super) fn is_secret(spec: &RunSpec) -> bool {
    !wanted(spec).is_empty()
}

impl Shared {
    /// The outcomes of those nodes that cannot be sent their secrets.
    pub(super) fn unsealable(&self, spec: &RunSpec, nodes: &[Serial]) -> Vec<NodeResult> {
        if !is_secret(spec) {
            return Vec::new();
        }
        let skipped = |serial: Serial, why: &str| NodeResult::new(serial, Outcome::Skipped, why);
        if !lock(&self.secrets).contains_key(&spec.id) {
            return nodes.iter().map(|node| skipped(*node, FORGOTTEN)).collect();
        }
        let without = nodes
            .iter()
            .filter(|node| self.presence.seal_key(**node).is_none());
        without
            .map(|node| {
                let version = self.inventory.agent(*node).map(|a| a.version.clone());
                let why = format!(
                    "not started: its agent{} has said no key to seal secret parameters to; upgrade it, or \
                     wait until it has connected again",
                    version.map(|v| format!(" (version {v})")).unwrap_or_default()
                );
                skipped(*node, &why)
            })
            .collect()
    }

    /// The secrets of a run, for one node; `None` when that is not possible
    /// any more.
    pub(super) fn boxed(&self, spec: &RunSpec, node: Serial) -> Option<SecretBox> {
        let secrets = lock(&self.secrets).get(&spec.id).cloned()?;
        let key = self.presence.seal_key(node)?;
        let wanted = wanted(spec);
        let some = secrets.expose().iter();
        let some = some.filter(|(name, _)| wanted.contains(*name));
        let some = some
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        match SecretBox::seal(&some, key) {
            Ok(sealed) => Some(sealed),
            Err(error) => {
                tracing::error!(%node, %error, "secret parameters cannot be sealed");
                None
            }
        }
    }
}
