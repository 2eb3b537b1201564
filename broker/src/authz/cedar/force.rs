//! The document that is in force.

use std::sync::Arc;

use arc_swap::ArcSwap;
use muster_protocol::units::Timestamp;

use super::{Document, Moment};
use crate::authz::{Action, Caller, Decision, Policy};
use crate::inventory::{Inventory, Snapshot};

/// Judges by the document that is in force, and by what is assigned to nodes
/// at the moment of the question. Cheap to clone.
#[derive(Clone)]
pub struct InForce {
    document: Arc<ArcSwap<Document>>,
    nodes: Arc<dyn Fn() -> Arc<Snapshot> + Send + Sync>,
}

impl std::fmt::Debug for InForce {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InForce")
            .field("version", &self.document().version)
            .finish_non_exhaustive()
    }
}

impl InForce {
    /// That document, and those nodes.
    #[must_use]
    pub fn new(document: Document, inventory: Inventory) -> Self {
        Self::over(document, move || inventory.snapshot())
    }

    /// That document, and nodes from wherever.
    #[must_use]
    pub fn over(
        document: Document,
        nodes: impl Fn() -> Arc<Snapshot> + Send + Sync + 'static,
    ) -> Self {
        Self {
            document: Arc::new(ArcSwap::from_pointee(document)),
            nodes: Arc::new(nodes),
        }
    }

    /// What is in force.
    #[must_use]
    pub fn document(&self) -> Arc<Document> {
        self.document.load_full()
    }

    /// From now on.
    pub fn replace(&self, document: Document) {
        self.document.store(Arc::new(document));
    }
}

impl Policy for InForce {
    fn decide(&self, caller: &Caller, action: &Action) -> Decision {
        let now = Moment(Timestamp::now());
        let document = self.document.load();
        document
            .judge(caller, action, now, &(self.nodes)())
            .decision
    }
}
