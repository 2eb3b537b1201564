//! `/v1/networks`.

use axum::extract::State;
use axum::http::StatusCode;
use muster_protocol::api::{NetworkView, Page, PutNetwork};
use muster_protocol::names::{LanName, NameError};
use muster_protocol::problem::{Kind, Problem};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{ApiError, ApiJson, ApiPath, AppState, finish};
use crate::authz::{Action, Caller};

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(show, put, remove))
}

fn network_name(text: &str) -> Result<LanName, ApiError> {
    text.parse()
        .map_err(|e: NameError| ApiError::new(Kind::InvalidRequest, e.to_string()))
}

/// All networks, by name.
#[utoipa::path(
    get, path = "/v1/networks", tag = "machines", security(("bearer" = [])),
    responses((status = 200, body = Page<NetworkView>)),
    extensions(("x-authorisation" = json!("read machines")))
)]
async fn list(
    State(state): State<AppState>,
    caller: Caller,
) -> Result<ApiJson<Page<NetworkView>>, ApiError> {
    state.authorize(&caller, Action::ReadMachines, ()).await?;
    Ok(ApiJson(Page {
        items: state.networks.list(),
        next: None,
    }))
}

/// A network, with which machine has which address.
#[utoipa::path(
    get, path = "/v1/networks/{name}", tag = "machines",
    params(("name" = LanName, Path)), security(("bearer" = [])),
    responses((status = 200, body = NetworkView), (status = 404, body = Problem)),
    extensions(("x-authorisation" = json!("read machines")))
)]
async fn show(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath(name): ApiPath<String>,
) -> Result<ApiJson<NetworkView>, ApiError> {
    state.authorize(&caller, Action::ReadMachines, ()).await?;
    Ok(ApiJson(state.networks.get(&network_name(&name)?)?))
}

/// Makes a network, or changes it. Addresses that are in use stay in use: a
/// pool that does not have them is refused, with the names of the machines.
#[utoipa::path(
    put, path = "/v1/networks/{name}", tag = "machines",
    params(("name" = LanName, Path)), request_body = PutNetwork, security(("bearer" = [])),
    responses(
        (status = 200, body = NetworkView),
        (status = 400, description = "no network can be like that", body = Problem),
        (status = 409, description = "there is a network of that name, or addresses are in use", body = Problem),
    ),
    extensions(("x-authorisation" = json!("change networks or hypervisors")))
)]
async fn put(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath(name): ApiPath<String>,
    ApiJson(put): ApiJson<PutNetwork>,
) -> Result<ApiJson<NetworkView>, ApiError> {
    let put = (network_name(&name)?, put);
    let put = state
        .authorize(&caller, Action::ManageNetworks, put)
        .await?;
    state.active()?;
    let view = finish(async move { state.networks.put(put).await }).await?;
    Ok(ApiJson(view))
}

/// Removes a network that no machine is in.
#[utoipa::path(
    delete, path = "/v1/networks/{name}", tag = "machines",
    params(("name" = LanName, Path)), security(("bearer" = [])),
    responses(
        (status = 204),
        (status = 404, body = Problem),
        (status = 409, description = "machines have addresses of it", body = Problem),
    ),
    extensions(("x-authorisation" = json!("change networks or hypervisors")))
)]
async fn remove(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath(name): ApiPath<String>,
) -> Result<StatusCode, ApiError> {
    let name = network_name(&name)?;
    let name = state
        .authorize(&caller, Action::ManageNetworks, name)
        .await?;
    state.active()?;
    finish(async move { state.networks.remove(name).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}
