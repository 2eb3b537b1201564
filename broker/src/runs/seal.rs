//! Secret parameters of runs: in the memory of this broker alone, for as long
//! as the run is open, and sealed to each node that is sent to.
//!
//! A journal holds their names. A broker that takes a run up has no values,
//! and nobody could tell it: what was not sent by then is not sent.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};

use muster_protocol::ids::{RunId, Serial};
use muster_protocol::run::{NodeResult, Outcome, RunSpec};
use muster_protocol::seal::SecretBox;
use muster_scenarios::secret::{self, Secrets};

use super::engine::{Engine, Shared};

/// Why what a node would be sent cannot be sealed for it.
const FORGOTTEN: &str = "not started: the secret parameters were only in the memory of the broker that stopped; start \
                         the run anew";

/// The secrets of the open runs.
#[derive(Debug, Default)]
pub(super) struct Vault(Mutex<HashMap<RunId, Secrets>>);

impl Vault {
    fn all(&self) -> std::sync::MutexGuard<'_, HashMap<RunId, Secrets>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(&self, run: RunId) -> Option<Secrets> {
        self.all().get(&run).cloned()
    }

    /// The run has ended.
    pub(super) fn forget(&self, run: RunId) {
        self.all().remove(&run);
    }
}

impl Engine {
    /// Holds the secret parameters of a run that is about to be created, until
    /// it ends. Nothing of them is ever written down.
    pub fn entrust(&self, run: RunId, secrets: Secrets) {
        if !secrets.is_empty() {
            self.0.vault.all().insert(run, secrets);
        }
    }

    /// What was entrusted, for the parts of a run; `None` when this broker
    /// does not have it.
    #[must_use]
    pub fn entrusted(&self, run: RunId) -> Option<Secrets> {
        self.0.vault.of(run)
    }

    /// The run was not created after all.
    pub fn distrust(&self, run: RunId) {
        self.0.vault.forget(run);
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
        if self.vault.of(spec.id).is_none() {
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
        let secrets = self.vault.of(spec.id)?;
        let key = self.presence.seal_key(node)?;
        match secrets.seal(&wanted(spec), key) {
            Ok(sealed) => Some(sealed),
            Err(error) => {
                tracing::error!(%node, %error, "secret parameters cannot be sealed");
                None
            }
        }
    }
}
