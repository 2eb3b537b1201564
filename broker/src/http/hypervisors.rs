//! `/v1/hypervisors`.

use axum::extract::State;
use muster_protocol::api::{
    AdoptHypervisor, Adopted, DrainHypervisor, Drained, HypervisorChange, HypervisorView, Page,
};
use muster_protocol::names::NodeName;
use muster_protocol::problem::Problem;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::nodes::node_name;
use super::{ApiError, ApiJson, ApiPath, ApiQuery, AppState, Paging, finish, page};
use crate::authz::{Action, Caller};
use crate::vm::{Adopt, StopAll};

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(change))
        .routes(routes!(drain))
        .routes(routes!(adopt))
}

/// Hypervisors by name, with what they have and what of it is given.
#[utoipa::path(
    get, path = "/v1/hypervisors", tag = "machines", params(Paging), security(("bearer" = [])),
    responses((status = 200, body = Page<HypervisorView>)),
    extensions(("x-authorisation" = json!("read machines")))
)]
async fn list(
    State(state): State<AppState>,
    caller: Caller,
    ApiQuery(paging): ApiQuery<Paging>,
) -> Result<ApiJson<Page<HypervisorView>>, ApiError> {
    state.authorize(&caller, Action::ReadMachines, ()).await?;
    let all = state.machines.hypervisors();
    Ok(ApiJson(page(all, |one| one.node.to_string(), &paging)?))
}

/// Cordons a hypervisor: nothing new is put on it, and what is there stays.
/// Disks are on the hypervisor itself, so no machine can be moved away.
#[utoipa::path(
    patch, path = "/v1/hypervisors/{node}", tag = "machines", params(("node" = NodeName, Path)),
    request_body = HypervisorChange, security(("bearer" = [])),
    responses((status = 200, body = HypervisorView), (status = 404, body = Problem)),
    extensions(("x-authorisation" = json!("change networks or hypervisors")))
)]
async fn change(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath(node): ApiPath<String>,
    ApiJson(change): ApiJson<HypervisorChange>,
) -> Result<ApiJson<HypervisorView>, ApiError> {
    let asked = (node_name(&node)?, change);
    change_hypervisor(&state, &caller, asked).await.map(ApiJson)
}

/// Changes a hypervisor, whatever the door.
pub(crate) async fn change_hypervisor(
    state: &AppState,
    caller: &Caller,
    asked: (NodeName, HypervisorChange),
) -> Result<HypervisorView, ApiError> {
    let asked = state
        .authorize(caller, Action::ManageNetworks, asked)
        .await?;
    state.active()?;
    let machines = state.machines.clone();
    finish(async move { machines.change_hypervisor(asked).await }).await
}

/// Drains a hypervisor: nothing new is put on it, and its machines are stopped
/// where that is asked for. Disks are on the hypervisor itself, so no machine
/// is moved away. With `stop` one must also be allowed to change machines.
#[utoipa::path(
    post, path = "/v1/hypervisors/{node}/drain", tag = "machines", params(("node" = NodeName, Path)),
    request_body = DrainHypervisor, security(("bearer" = [])),
    responses((status = 200, body = Drained), (status = 404, body = Problem)),
    extensions(("x-authorisation" = json!("change networks or hypervisors")))
)]
async fn drain(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath(node): ApiPath<String>,
    ApiJson(how): ApiJson<DrainHypervisor>,
) -> Result<ApiJson<Drained>, ApiError> {
    drain_hypervisor(&state, &caller, node_name(&node)?, how)
        .await
        .map(ApiJson)
}

/// Drains a hypervisor, whatever the door.
pub(crate) async fn drain_hypervisor(
    state: &AppState,
    caller: &Caller,
    node: NodeName,
    how: DrainHypervisor,
) -> Result<Drained, ApiError> {
    let stop = if how.stop {
        let all = StopAll { grace: how.grace };
        let all = state.authorize(caller, Action::ManageMachines, all).await;
        Some(all?)
    } else {
        None
    };
    let asked = state
        .authorize(caller, Action::ManageNetworks, node)
        .await?;
    state.active()?;
    let machines = state.machines.clone();
    finish(async move { machines.drain(asked, stop).await }).await
}

/// Says that the new key of a hypervisor is that of the same host: machines of
/// the key before that it reports are its own from now on.
#[utoipa::path(
    post, path = "/v1/hypervisors/{node}/adopt", tag = "machines", params(("node" = NodeName, Path)),
    request_body = AdoptHypervisor, security(("bearer" = [])),
    responses(
        (status = 200, body = Adopted),
        (status = 404, body = Problem),
        (status = 409, description = "it has not said which machines it has", body = Problem),
    ),
    extensions(("x-authorisation" = json!("change networks or hypervisors")))
)]
async fn adopt(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath(node): ApiPath<String>,
    ApiJson(how): ApiJson<AdoptHypervisor>,
) -> Result<ApiJson<Adopted>, ApiError> {
    let asked = Adopt {
        node: node_name(&node)?,
        missing: how.missing,
    };
    let asked = state
        .authorize(&caller, Action::ManageNetworks, asked)
        .await?;
    state.active()?;
    let done = finish(async move { state.machines.adopt(asked).await }).await?;
    Ok(ApiJson(done))
}
