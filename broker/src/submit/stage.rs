//! What runs with a `main` need of the rest of the broker.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use muster_protocol::api::{Confirm, CreateVms, RunRequest, VmView};
use muster_protocol::envelope::BundleHash;
use muster_protocol::problem::{Kind, Problem};
use muster_protocol::run::PartOf;
use muster_protocol::units::Timestamp;
use muster_scenarios::secret;
use serde_json::Value;

use super::{Submit, is_builtin, refused, stored, unauthorized};
use crate::authz::{Action, Authorized, Caller, Policy};
use crate::library::{Library, LibraryError};
use crate::runs::{Another, FrozenRun, MachineNow, Machinery, Score, Stage, StageError};
use crate::vm::{Destroy, Machines, VmError};

/// The stage on which a `main` plays.
pub struct Broker {
    /// The one way to a new run.
    pub submit: Submit,
    /// The stored scenarios.
    pub library: Library,
    /// The machines.
    pub machines: Machines,
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

    fn machinery(&self) -> Option<&dyn Machinery> {
        Some(self)
    }
}

impl Machinery for Broker {
    fn now(&self, of: PartOf) -> MachineNow {
        self.machines.of_call(of)
    }

    fn would_make(
        &self,
        caller: Caller,
        asked: CreateVms,
    ) -> BoxFuture<'_, Result<VmView, Problem>> {
        Box::pin(async move {
            let asked = CreateVms {
                dry_run: true,
                ..asked
            };
            let asked = self.judged(&caller, asked).await?;
            let planned = self.machines.create(asked).await;
            let planned = planned.map_err(VmError::problem)?;
            let plan = planned.machines.into_iter().next();
            let none = || Problem::new(Kind::Internal, "nothing would be made");
            Ok(plan.ok_or_else(none)?.vm)
        })
    }

    fn make(
        &self,
        caller: Caller,
        asked: CreateVms,
        of: PartOf,
    ) -> BoxFuture<'_, Result<(), Problem>> {
        Box::pin(async move {
            if asked.agent {
                // Whoever has a machine made that enrols itself invites it.
                let invites = self.submit.guard.admit(&caller, Action::Invite).await;
                invites.map_err(|e| *unauthorized(&e))?;
            }
            if !asked.groups.is_empty() {
                // Others may let in whoever is in a group.
                let groups = self.submit.guard.admit(&caller, Action::ManageGroups).await;
                groups.map_err(|e| *unauthorized(&e))?;
            }
            let asked = self.judged(&caller, asked).await?;
            let machines = self.machines.clone();
            // What is begun to be written down is written down.
            let made = tokio::spawn(async move { machines.create_for(asked, of).await });
            match made.await {
                Ok(made) => made.map_err(VmError::problem),
                Err(error) => Err(Problem::new(Kind::Internal, error.to_string())),
            }
        })
    }

    fn call_off(&self, of: PartOf) -> BoxFuture<'_, Result<(), Problem>> {
        Box::pin(async move {
            let machines = self.machines.clone();
            let done = tokio::spawn(async move { machines.call_off(of).await });
            match done.await {
                Ok(done) => done.map_err(VmError::problem),
                Err(error) => Err(Problem::new(Kind::Internal, error.to_string())),
            }
        })
    }

    fn unmake(&self, caller: Caller, of: PartOf) -> BoxFuture<'_, Result<(), Problem>> {
        Box::pin(async move {
            let Some(name) = self.machines.name_of(of) else {
                return Ok(());
            };
            let asked = Destroy::named(name, true);
            let guard = &self.submit.guard;
            let asked = guard
                .authorize(&caller, Action::ManageMachines, asked)
                .await;
            let asked = asked.map_err(|e| *unauthorized(&e))?;
            let machines = self.machines.clone();
            let done = tokio::spawn(async move { machines.destroy_for(asked, of).await });
            match done.await {
                Ok(done) => done.map_err(VmError::problem),
                Err(error) => Err(Problem::new(Kind::Internal, error.to_string())),
            }
        })
    }
}

impl Broker {
    /// A machine, as whoever the run is for may have it made.
    async fn judged(
        &self,
        caller: &Caller,
        asked: CreateVms,
    ) -> Result<Authorized<CreateVms>, Problem> {
        let guard = &self.submit.guard;
        let asked = guard.authorize(caller, Action::ManageMachines, asked).await;
        asked.map_err(|e| *unauthorized(&e))
    }

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
            predicate: asked.on,
            mode: asked.mode,
            confirm: Confirm::Yes,
            ..RunRequest::of(asked.scenario)
        };
        if is_builtin(&request.scenario) {
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
