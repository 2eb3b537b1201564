//! Which bundles runs still need.

use std::collections::BTreeSet;

use muster_protocol::envelope::BundleHash;
use muster_protocol::ids::RunId;

use super::Engine;
use super::engine::lock;
use super::error::EngineError;

impl Engine {
    /// The bundles of all runs that have not ended: theirs for as long as
    /// they live, whatever becomes of the scenario.
    ///
    /// # Errors
    /// [`EngineError`]: the runs are not known, or one cannot be read; then
    /// nothing can be said to be without use.
    pub async fn open_bundles(&self) -> Result<BTreeSet<BundleHash>, EngineError> {
        if !self.is_ready() {
            return Err(EngineError::NotReady);
        }
        let open: Vec<RunId> = lock(&self.0.open).keys().copied().collect();
        let mut bundles = BTreeSet::new();
        for run in open {
            bundles.insert(self.state(run).await?.spec.bundle);
        }
        Ok(bundles)
    }
}
