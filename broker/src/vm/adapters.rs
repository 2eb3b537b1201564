//! The rest of the broker, as machines need it.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use muster_protocol::api::{Configure, InviteToken, RunRequest, RunView};
use muster_protocol::freeze::Freeze;
use muster_protocol::ids::{RunId, Serial};
use muster_protocol::names::{ImageName, LanName, PrincipalName, VmName};
use muster_protocol::predicate::Predicate;
use muster_protocol::problem::{Kind, Problem};
use muster_protocol::run::{Outcome, RunPhase};
use muster_protocol::units::Timestamp;
use muster_protocol::vm::{ImageRef, VmId};
use tokio::sync::watch;

use super::images::Images;
use super::networks::Networks;
use super::only;
use super::ports::{
    Addresses, Before, Begun, Doorman, ForMachine, Look, Pictures, Reserves, WHICH, Works, refused,
};
use crate::authz::Caller;
use crate::enroll::{EnrollError, Enrolment};
use crate::http::ApiError;
use crate::inventory::{Inventory, InventoryError, NodeControl};
use crate::runs::{CreateError, EngineError};
use crate::submit::{Asked, Refused, Submit, Submitted, is_builtin};

impl Works for Submit {
    fn check<'a>(&'a self, configure: &'a Configure) -> BoxFuture<'a, Result<(), Refused>> {
        Box::pin(async move {
            let Configure { scenario, params } = configure;
            let no = |title: String, hint: &str| {
                Err(refused(
                    Problem::new(Kind::InvalidRequest, title).hint(hint),
                ))
            };
            if only::instead(scenario).is_some() || is_builtin(scenario) {
                let title = format!("`{scenario}` is no scenario that configures a machine");
                return no(title, "muster scenario list shows those that are stored");
            }
            let mut request = RunRequest::of(scenario.clone());
            request.params = serde_json::Value::Object(params.clone());
            // Its node, which is not there yet: it runs there, whether it says
            // where or not.
            request.predicate = Some(Predicate::all().text().to_owned());
            let program = self.holds(&request).await?;
            let mut secret = program.manifest.params.iter().filter(|param| param.secret);
            if let Some(param) = secret.find(|param| params.contains_key(&param.name)) {
                let title = format!(
                    "`{}` of `{scenario}` is secret, and what configures a machine is kept with it",
                    param.name
                );
                let hint =
                    "let the scenario read it on the node, from a file that only root can read";
                return no(title, hint);
            }
            Ok(())
        })
    }

    fn eased(&self) -> BoxStream<'static, ()> {
        changes_of(self.nodes.engine.freezes())
    }

    fn submit<'a>(
        &'a self,
        caller: &'a Caller,
        request: RunRequest,
        asked: Asked,
    ) -> BoxFuture<'a, Result<(), Refused>> {
        Box::pin(async move {
            match self.run(caller, request, asked).await? {
                Submitted::Run(_) => Ok(()),
                Submitted::Confirm(_) => Err(refused(Problem::new(
                    Kind::Internal,
                    "the run waits for a confirmation that nobody can give",
                ))),
            }
        })
    }

    fn stopped(&self, takes_back: bool) -> Option<Refused> {
        let freeze = self.nodes.engine.frozen().filter(|_| !takes_back)?;
        Some(refused(CreateError::Frozen(Box::new(freeze)).problem()))
    }

    fn begun(&self, run: RunId) -> BoxFuture<'_, Begun> {
        Box::pin(async move {
            let engine = &self.nodes.engine;
            match engine.lookup(&run.to_string()) {
                Ok(_) => {}
                Err(EngineError::Lookup(_)) => return Begun::Never,
                Err(_) => return Begun::NotNow,
            }
            let Ok(view) = engine.show(run).await else {
                return Begun::NotNow;
            };
            let state = view.brief.state;
            // Whoever has ended otherwise says so of each of its nodes.
            let cut = view.brief.summary.is_empty()
                && view.cancelled_by.is_none()
                && view.lapsed.is_none();
            match state {
                RunPhase::Preparing => Begun::NotNow,
                state if state.is_final() && cut => Begun::Never,
                _ => Begun::Yes,
            }
        })
    }

    fn before<'a>(&'a self, request: &'a RunRequest, run: RunId) -> BoxFuture<'a, Before> {
        Box::pin(async move {
            let engine = &self.nodes.engine;
            match engine.lookup(&run.to_string()) {
                Ok(_) => {}
                Err(EngineError::Lookup(_)) => return Before::Nothing,
                Err(_) => return Before::NotNow,
            }
            let Ok(old) = engine.show(run).await else {
                return Before::NotNow;
            };
            if self.is_like(&old, request, &WHICH).await {
                Before::Same
            } else {
                Before::Other
            }
        })
    }

    fn look(&self, run: RunId) -> BoxFuture<'_, Look> {
        Box::pin(async move {
            let engine = &self.nodes.engine;
            match engine.lookup(&run.to_string()) {
                Ok(_) => {}
                Err(EngineError::Lookup(_)) => return Look::Nothing,
                Err(_) => return Look::NotNow,
            }
            if !engine.has_ended(run) {
                return Look::Open;
            }
            match engine.show(run).await {
                Ok(view) if view.brief.state.is_final() => Look::Ended {
                    phase: view.brief.state,
                    why: why(&view),
                    at: view.brief.finished.unwrap_or_else(Timestamp::now),
                },
                Ok(_) => Look::Open,
                Err(_) => Look::NotNow,
            }
        })
    }
}

fn changes_of(freezes: Option<watch::Receiver<Freeze>>) -> BoxStream<'static, ()> {
    let Some(freezes) = freezes else {
        return stream::pending().boxed();
    };
    let next = async |mut freezes: watch::Receiver<Freeze>| {
        freezes.changed().await.ok()?;
        Some(((), freezes))
    };
    stream::unfold(freezes, next).boxed()
}

/// Why a run did not end well.
fn why(view: &RunView) -> String {
    if let Some(error) = view.main.as_ref().and_then(|main| main.error.as_ref()) {
        return error.clone();
    }
    if let Some(lapsed) = &view.lapsed {
        return lapsed.clone();
    }
    if let Some(by) = &view.cancelled_by {
        return format!("{by} cancelled it");
    }
    let failed = |outcome: Option<Outcome>| outcome.is_some_and(|o| o != Outcome::Succeeded);
    let bad = view.results.iter().find(|node| failed(node.outcome));
    bad.map_or_else(String::new, |node| {
        let outcome = node.outcome.map_or("", Outcome::as_str);
        let reason = node.reason.as_deref().unwrap_or(outcome);
        format!("{}: {reason}", node.node)
    })
}

/// The one at the door.
pub struct Door {
    /// Invites.
    pub enrolment: Enrolment,
    /// The nodes.
    pub inventory: Inventory,
    /// The way to them.
    pub control: Arc<dyn NodeControl>,
}

fn enrol(error: EnrollError) -> Refused {
    ApiError::from(error).into_problem()
}

impl Doorman for Door {
    fn token(&self) -> InviteToken {
        self.enrolment.token()
    }

    fn invite<'a>(
        &'a self,
        token: &'a InviteToken,
        invite: ForMachine,
    ) -> BoxFuture<'a, Result<(), Refused>> {
        Box::pin(async move {
            let made = self.enrolment.invite_machine(token, invite).await;
            made.map_err(enrol)
        })
    }

    fn void<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<Serial>, Refused>> {
        Box::pin(async move { self.enrolment.void(id).await.map_err(enrol) })
    }

    fn successor(&self, node: Serial) -> BoxFuture<'_, Result<Option<Serial>, Refused>> {
        Box::pin(async move { self.enrolment.successor(node).await.map_err(enrol) })
    }

    fn bar<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), Refused>> {
        Box::pin(async move { self.enrolment.bar(id).await.map_err(enrol) })
    }

    fn remove<'a>(
        &'a self,
        node: Serial,
        by: &'a PrincipalName,
    ) -> BoxFuture<'a, Result<(), Refused>> {
        Box::pin(async move {
            let snapshot = self.inventory.snapshot();
            let Some(record) = snapshot.get(node) else {
                return Ok(());
            };
            let name = &record.assignment.name;
            let control = &*self.control;
            match self.inventory.remove(name, control, by.as_str()).await {
                Ok(()) | Err(InventoryError::NoNode(_)) => Ok(()),
                Err(error) => Err(ApiError::from(error).into_problem()),
            }
        })
    }

    fn brokers(&self) -> Vec<String> {
        self.enrolment.brokers()
    }
}

impl Reserves for Networks {
    fn knows(&self, lan: &LanName) -> bool {
        self.has(lan)
    }

    fn reserve<'a>(
        &'a self,
        lan: &'a LanName,
        machine: VmId,
        name: &'a VmName,
    ) -> BoxFuture<'a, Result<Addresses, Refused>> {
        Box::pin(async move {
            let found = Self::reserve(self, lan, machine, name).await;
            let found = found.map_err(|error| ApiError::from(error).into_problem())?;
            Ok(Addresses {
                bridge: found.bridge,
                addresses: found.addresses.into_iter().zip(found.prefixes).collect(),
                gateways: found.gateways,
                dns: found.dns,
                mtu: found.mtu,
            })
        })
    }

    fn release(&self, machine: VmId) -> BoxFuture<'_, Result<(), Refused>> {
        Box::pin(async move {
            let freed = Self::release(self, machine).await;
            freed.map_err(|error| ApiError::from(error).into_problem())?;
            Ok(())
        })
    }

    fn holders(&self) -> Vec<VmId> {
        self.machines()
    }
}

impl Pictures for Images {
    fn get(&self, name: &ImageName) -> Option<ImageRef> {
        Self::get(self, name)
    }
}
