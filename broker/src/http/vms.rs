//! `/v1/vms`.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::extract::State;
use axum::http::HeaderMap;
use muster_protocol::api::{
    CreateVms, Page, VmAction, VmBrief, VmChanged, VmStatus, VmView, VmsCreated,
};
use muster_protocol::names::{NameError, VmName};
use muster_protocol::predicate::{Attributes, Predicate};
use muster_protocol::problem::{Kind, Problem};
use muster_protocol::vm::{SeedText, VmId};
use muster_protocol::wire::SeedRequest;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::matching::refused;
use super::once::{named_run, once_or_again};
use super::{
    ApiError, ApiJson, ApiPath, ApiQuery, AppState, OpenDoor, Paging, finish, page, page_of,
};
use crate::authz::{Action, Caller};
use crate::once::Unfinished;
use crate::resolve::ResolveError;
use crate::vm::{Act, Destroy, StoredVm};

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(show, destroy))
        .routes(routes!(act))
        .routes(routes!(seed))
}

fn vm_name(text: &str) -> Result<VmName, ApiError> {
    text.parse()
        .map_err(|e: NameError| ApiError::new(Kind::InvalidRequest, e.to_string()))
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct Filter {
    /// A predicate over name, roles and labels, and over `hypervisor`,
    /// `account`, `status` and `image`; all machines when absent.
    #[serde(default, rename = "match")]
    matching: Option<String>,
    /// Those that were destroyed, in place of those that are there.
    #[serde(default)]
    deleted: bool,
    /// `next` of the page before.
    #[serde(default)]
    cursor: Option<String>,
    /// Machines on a page, 1 to 1000, in short 1 to 10000; 100 when absent.
    #[serde(default)]
    limit: Option<u32>,
    /// Each in short: what people look for in a long list.
    #[serde(default)]
    brief: bool,
}

/// Most machines on a page that has them in short.
const MANY: u32 = 10_000;

/// A page of machines, as they were asked for.
#[derive(Serialize, utoipa::ToSchema)]
#[serde(untagged)]
enum VmPage {
    /// With everything.
    Whole(Page<VmView>),
    /// In short.
    Brief(Page<VmBrief>),
}

/// What every machine has beside its own labels.
const OWN: [&str; 4] = ["account", "hypervisor", "image", "status"];

/// A machine as a predicate sees it.
struct Seen<'a>(&'a StoredVm, VmStatus);

impl Attributes for Seen<'_> {
    fn name(&self) -> &str {
        self.0.name.as_str()
    }

    fn any_role(&self, test: &mut dyn FnMut(&str) -> bool) -> bool {
        self.0.wish.roles.iter().any(|role| test(role.as_str()))
    }

    fn label(&self, key: &str) -> Option<&str> {
        if let Some(value) = self.0.wish.labels.get(key) {
            return Some(value.as_str());
        }
        match key {
            "account" => self.0.wish.account.as_ref().map(|account| account.as_str()),
            "hypervisor" => Some(self.0.place.node.as_str()),
            "image" => Some(self.0.wish.image.name.as_str()),
            "status" => Some(word(self.1)),
            _ => None,
        }
    }

    fn fact(&self, _path: &str) -> Option<&Value> {
        None
    }
}

/// How it is, in a word.
pub(crate) fn word(status: VmStatus) -> &'static str {
    match status {
        VmStatus::Creating => "creating",
        VmStatus::Running => "running",
        VmStatus::Paused => "paused",
        VmStatus::Stopped => "stopped",
        VmStatus::Crashed => "crashed",
        VmStatus::Unreachable => "unreachable",
        VmStatus::Missing => "missing",
        VmStatus::Destroying => "destroying",
        VmStatus::Deleted => "deleted",
        VmStatus::Doubtful => "doubtful",
    }
}

/// Reads a predicate and checks that the labels in it exist.
fn parse(text: &str, vms: &[(Arc<StoredVm>, VmStatus)]) -> Result<Predicate, ResolveError> {
    let cut = |text: &str| {
        let most = muster_protocol::predicate::MAX_LEN;
        text.chars().take(most).collect::<String>()
    };
    let predicate = Predicate::parse(text).map_err(|error| ResolveError::Syntax {
        error,
        source_text: cut(text),
    })?;
    let labels: BTreeSet<&str> = vms
        .iter()
        .flat_map(|(vm, _)| vm.wish.labels.keys().map(|key| key.as_str()))
        .chain(OWN)
        .collect();
    let candidates: Vec<String> = labels.iter().map(|key| (*key).to_owned()).collect();
    predicate
        .check_known(&|name| labels.contains(name), &candidates)
        .map_err(|unknown| ResolveError::UnknownName {
            unknown,
            source_text: predicate.source().to_owned(),
        })?;
    Ok(predicate)
}

/// Machines that match, by name, each with how it is: whatever the door.
pub(crate) async fn vms(
    state: &AppState,
    caller: &Caller,
    matching: Option<&str>,
    deleted: bool,
) -> Result<Vec<(Arc<StoredVm>, VmStatus)>, ApiError> {
    state.authorize(caller, Action::ReadMachines, ()).await?;
    let mut vms = state.machines.list(deleted);
    if let Some(text) = matching {
        let predicate = parse(text, &vms).map_err(|e| refused(&e))?;
        vms.retain(|(vm, is)| predicate.matches(&Seen(vm, *is)));
    }
    Ok(vms)
}

/// Machines by name, as they are wanted and as they are seen.
#[utoipa::path(
    get, path = "/v1/vms", tag = "machines", params(Filter), security(("bearer" = [])),
    responses(
        (status = 200, body = VmPage),
        (status = 400, description = "the predicate has an error", body = Problem),
        (status = 422, description = "the predicate names what no machine has", body = Problem),
    ),
    extensions(("x-authorisation" = json!("read machines")))
)]
async fn list(
    State(state): State<AppState>,
    caller: Caller,
    ApiQuery(filter): ApiQuery<Filter>,
) -> Result<ApiJson<VmPage>, ApiError> {
    let machines = &state.machines;
    let vms: Vec<Arc<StoredVm>> = match filter.matching.as_deref() {
        // How each is matters on this page only.
        None => {
            state.authorize(&caller, Action::ReadMachines, ()).await?;
            machines.records(filter.deleted)
        }
        matching => vms(&state, &caller, matching, filter.deleted)
            .await?
            .into_iter()
            .map(|(vm, _)| vm)
            .collect(),
    };
    let paging = Paging {
        cursor: filter.cursor,
        limit: filter.limit,
    };
    let key = |vm: &Arc<StoredVm>| vm.name.to_string();
    Ok(ApiJson(if filter.brief {
        let part = page_of(vms, key, &paging, paging.up_to(MANY)?)?;
        VmPage::Brief(Page {
            items: machines.briefs(&part.items),
            next: part.next,
        })
    } else {
        let part = page(vms, key, &paging)?;
        let view = |vm: &Arc<StoredVm>| machines.view(vm);
        VmPage::Whole(Page {
            items: part.items.iter().map(view).collect(),
            next: part.next,
        })
    }))
}

/// Makes machines: each is placed and written down, its addresses are
/// reserved, and a run of `vm-create` makes it. All of them are begun, or none.
#[utoipa::path(
    post, path = "/v1/vms", tag = "machines", request_body = CreateVms,
    params(("Idempotency-Key" = Option<String>, Header, description = "sent again with the same key, it is done once")),
    security(("bearer" = [])),
    responses(
        (status = 200, body = VmsCreated),
        (status = 400, description = "there can be no such machine", body = Problem),
        (status = 404, description = "there is no such image or network", body = Problem),
        (status = 409, description = "somebody has the name", body = Problem),
        (status = 422, description = "no hypervisor can take it: `detail` says of each why not", body = Problem),
    ),
    extensions(("x-authorisation" = json!("make, change or destroy machines")))
)]
async fn create(
    State(state): State<AppState>,
    caller: Caller,
    headers: HeaderMap,
    ApiJson(request): ApiJson<CreateVms>,
) -> Result<ApiJson<VmsCreated>, ApiError> {
    create_vms(&state, &caller, &headers, request)
        .await
        .map(ApiJson)
}

/// Makes machines, whatever the door.
pub(crate) async fn create_vms(
    state: &AppState,
    caller: &Caller,
    headers: &HeaderMap,
    request: CreateVms,
) -> Result<VmsCreated, ApiError> {
    if request.agent && !request.dry_run {
        // Whoever has a machine made that enrols itself invites it.
        state.admit(caller, Action::Invite).await?;
    }
    if !request.groups.is_empty() {
        // Others may let in whoever is in a group.
        state.admit(caller, Action::ManageGroups).await?;
    }
    let asked = state
        .authorize(caller, Action::ManageMachines, request.clone())
        .await?;
    state.active()?;
    let machines = state.machines.clone();
    let route = "POST /v1/vms";
    let under = named_run(caller, route, headers)?;
    let work = async move { Box::pin(machines.create_once(asked, under)).await };
    let asked = (caller, route, headers);
    once_or_again(state, asked, &request, Unfinished::Again, work).await
}

/// One machine, also one that was destroyed.
#[utoipa::path(
    get, path = "/v1/vms/{name}", tag = "machines", params(("name" = VmName, Path)),
    security(("bearer" = [])),
    responses((status = 200, body = VmView), (status = 404, body = Problem)),
    extensions(("x-authorisation" = json!("read machines")))
)]
async fn show(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath(name): ApiPath<String>,
) -> Result<ApiJson<VmView>, ApiError> {
    show_vm(&state, &caller, vm_name(&name)?).await.map(ApiJson)
}

/// One machine, as it is now, whatever the door.
pub(crate) async fn show_vm(
    state: &AppState,
    caller: &Caller,
    name: VmName,
) -> Result<VmView, ApiError> {
    state.authorize(caller, Action::ReadMachines, ()).await?;
    let machines = state.machines.clone();
    finish(async move {
        machines.look_after(&name).await;
        machines.show(&name)
    })
    .await
}

/// How it is destroyed.
#[derive(Clone, Copy, Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct How {
    /// Whether its disk goes, too; else it is kept for a day.
    #[serde(default)]
    purge: bool,
    /// The UUID of the machine that is meant: another one that has the name by
    /// now stays.
    #[serde(default)]
    #[param(value_type = Option<String>)]
    id: Option<VmId>,
}

/// Destroys a machine. Its disk and its addresses are kept for a day, unless
/// it is purged.
///
/// With an `Idempotency-Key` a repeated request answers with the run of the
/// first one, also after another broker has taken over.
#[utoipa::path(
    delete, path = "/v1/vms/{name}", tag = "machines",
    params(("name" = VmName, Path), How, ("Idempotency-Key" = Option<String>, Header, description = "sent again with the same key, it is done once")),
    security(("bearer" = [])),
    responses(
        (status = 200, body = VmChanged),
        (status = 404, body = Problem),
        (status = 409, description = "it is protected, or something is done with it", body = Problem),
        (status = 410, description = "another machine has the name by now", body = Problem),
    ),
    extensions(("x-authorisation" = json!("make, change or destroy machines")))
)]
async fn destroy(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath(name): ApiPath<String>,
    ApiQuery(how): ApiQuery<How>,
    headers: HeaderMap,
) -> Result<ApiJson<VmChanged>, ApiError> {
    let name = vm_name(&name)?;
    let under = named_run(&caller, &format!("DELETE /v1/vms/{name}"), &headers)?;
    let asked = Destroy {
        name,
        purge: how.purge,
        only: how.id,
        under,
    };
    destroy_vm(&state, &caller, asked).await.map(ApiJson)
}

/// Destroys a machine, whatever the door.
pub(crate) async fn destroy_vm(
    state: &AppState,
    caller: &Caller,
    asked: Destroy,
) -> Result<VmChanged, ApiError> {
    let asked = state
        .authorize(caller, Action::ManageMachines, asked)
        .await?;
    state.active()?;
    let machines = state.machines.clone();
    finish(async move { machines.destroy(asked).await }).await
}

/// Does something with a machine. What a node has to do is a run, which the
/// answer names.
///
/// With an `Idempotency-Key` a repeated request answers with the run of the
/// first one, also after another broker has taken over.
#[utoipa::path(
    post, path = "/v1/vms/{name}/actions", tag = "machines",
    params(("name" = VmName, Path), ("Idempotency-Key" = Option<String>, Header, description = "sent again with the same key, it is done once")),
    request_body = VmAction, security(("bearer" = [])),
    responses(
        (status = 200, body = VmChanged),
        (status = 400, description = "it cannot be like that", body = Problem),
        (status = 404, body = Problem),
        (status = 409, description = "something else is done with it", body = Problem),
    ),
    extensions(("x-authorisation" = json!("make, change or destroy machines")))
)]
async fn act(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath(name): ApiPath<String>,
    headers: HeaderMap,
    ApiJson(what): ApiJson<VmAction>,
) -> Result<ApiJson<VmChanged>, ApiError> {
    let name = vm_name(&name)?;
    let under = named_run(&caller, &format!("POST /v1/vms/{name}/actions"), &headers)?;
    let asked = Act { name, what, under };
    act_on_vm(&state, &caller, asked).await.map(ApiJson)
}

/// Does something with a machine, whatever the door.
pub(crate) async fn act_on_vm(
    state: &AppState,
    caller: &Caller,
    asked: Act,
) -> Result<VmChanged, ApiError> {
    let asked = state
        .authorize(caller, Action::ManageMachines, asked)
        .await?;
    state.active()?;
    let machines = state.machines.clone();
    finish(async move { machines.act(asked).await }).await
}

/// The seed of a machine, for the hypervisor that makes it and proves its key.
/// The invite in it is a new one each time; the one before works no more.
#[utoipa::path(
    post, path = "/v1/agent/seed", tag = "agents", security(()), request_body = SeedRequest,
    responses(
        (status = 200, body = SeedText),
        (status = 403, description = "the machine is not that node's to make now, or the proof is not valid", body = Problem),
        (status = 409, description = "the challenge is not valid", body = Problem),
        (status = 429, body = Problem),
    ),
    extensions(("x-authorisation" = json!("open: the proof in the request shows that it is the hypervisor of that machine")))
)]
async fn seed(
    _open: OpenDoor,
    State(state): State<AppState>,
    ApiJson(request): ApiJson<SeedRequest>,
) -> Result<ApiJson<SeedText>, ApiError> {
    state.active()?;
    state.enrolment.prove_maker(&request).await?;
    let text = finish(async move {
        let machines = &state.machines;
        machines.seed(request.serial, request.machine).await
    })
    .await?;
    Ok(ApiJson(text))
}
