//! Where the scenarios come from that runs are made of.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use muster_protocol::names::ScenarioName;

use super::{Refused, refused};
use crate::library::Library;
use crate::runs::Program;

/// The stored scenarios, as far as runs are made of them.
pub trait Programs: Send + Sync {
    /// A scenario, at that version or as it is now.
    fn load<'a>(
        &'a self,
        name: &'a ScenarioName,
        version: Option<u32>,
    ) -> BoxFuture<'a, Result<Program, Refused>>;
}

impl Programs for Library {
    fn load<'a>(
        &'a self,
        name: &'a ScenarioName,
        version: Option<u32>,
    ) -> BoxFuture<'a, Result<Program, Refused>> {
        Box::pin(async move {
            let loaded = Self::load(self, name, version)
                .await
                .map_err(|error| refused(error.problem()))?;
            Ok(Program {
                name: loaded.version.name.clone(),
                version: loaded.version.version,
                bundle: loaded.version.hash,
                manifest: Arc::new(loaded.manifest.clone()),
            })
        })
    }
}
