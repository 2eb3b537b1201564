//! What runs with a `main` need of the rest of the broker.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use muster_protocol::api::{Confirm, RunRequest};
use muster_protocol::envelope::BundleHash;
use muster_protocol::problem::{Kind, Problem};
use muster_protocol::units::Timestamp;
use muster_scenarios::secret;
use serde_json::Value;

use super::{Submit, is_builtin, refused, stored};
use crate::authz::{Authorized, Policy};
use crate::library::{Library, LibraryError};
use crate::runs::{Another, FrozenRun, Score, Stage, StageError};

/// The stage on which a `main` plays.
pub struct Broker {
    /// The one way to a new run.
    pub submit: Submit,
    /// The stored scenarios.
    pub library: Library,
}

impl std::fmt::Debug for Broker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Broker").finish_non_exhaustive()
    }
}

impl Stage for Broker {
    fn score(&self, bundle: BundleHash) -> BoxFuture<'_, Result<Arc<Score>, StageError>> {
        Box::pin(async move {
            let loaded = self
                .library
                .by_hash(bundle)
                .await
                .map_err(|error| match error {
                    LibraryError::NoBundle(hash) => StageError::NotThere(hash),
                    other => StageError::NoAnswer(other.to_string()),
                })?;
            let file = loaded.bundle.script_file(loaded.version.name.as_str());
            let score = tokio::task::spawn_blocking(move || Score::new(&file, &loaded.bundle));
            let score = score
                .await
                .map_err(|e| StageError::NoAnswer(e.to_string()))?;
            score
                .map(Arc::new)
                .map_err(|fault| StageError::Unreadable(fault.to_string()))
        })
    }

    fn another(&self, asked: Another) -> BoxFuture<'_, Result<Authorized<FrozenRun>, Problem>> {
        Box::pin(async move { self.freeze(asked).await.map_err(|refused| *refused) })
    }

    fn policy(&self) -> &dyn Policy {
        self.submit.guard.policy()
    }
}

impl Broker {
    /// The same way that a person's request goes, up to where the run is
    /// created. What a person would be asked, whoever confirmed the whole has
    /// said.
    async fn freeze(&self, asked: Another) -> Result<Authorized<FrozenRun>, super::Refused> {
        let no = |text: String| refused(Problem::new(Kind::InvalidRequest, text));
        let params = Value::Object(asked.params);
        if secret::is_needed(&params) {
            return Err(no(
                "a secret parameter cannot be handed to another scenario".to_owned(),
            ));
        }
        let request = RunRequest {
            params,
            mode: asked.mode,
            confirm: Confirm::Yes,
            ..RunRequest::of(asked.scenario)
        };
        if is_builtin(&request) {
            let name = request.scenario;
            return Err(no(format!(
                "`{name}` is built in; `on` runs functions on nodes"
            )));
        }
        let (_, ready) = self.submit.ready(&request).await?;
        let by = (&asked.caller.principal, asked.caller.door);
        let snapshot = self.submit.inventory.snapshot();
        let frozen = ready.freeze(&snapshot, asked.id, by, Timestamp::now());
        let mut frozen = frozen.map_err(|error| stored(&error))?;
        frozen.spec.part_of = Some(asked.part_of);
        frozen
            .spec
            .gates
            .locks
            .retain(|name| !asked.held.contains(name));
        let authorized = self.submit.allowed_run(&asked.caller, frozen).await?;
        self.submit.fits(authorized.get())?;
        Ok(authorized)
    }
}
