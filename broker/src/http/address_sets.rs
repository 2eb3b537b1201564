//! `/v1/address-sets`.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use muster_protocol::api::{GroupChanged, Page, PutSet, RollbackGroup, SetVersion, SetView};
use muster_protocol::names::SetName;
use muster_protocol::problem::Problem;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::groups::{if_match, managed, name, once};
use super::{ApiError, ApiJson, ApiPath, ApiQuery, AppState, Paging, page};
use crate::authz::{Action, Caller};
use crate::groups::ChangeSet;

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(show, put, remove))
        .routes(routes!(history))
        .routes(routes!(rollback))
}

/// All sets of addresses, by name, without their prefixes.
#[utoipa::path(
    get, path = "/v1/address-sets", tag = "firewall", params(Paging), security(("bearer" = [])),
    responses((status = 200, body = Page<SetView>)),
    extensions(("x-authorisation" = json!("read security groups")))
)]
async fn list(
    State(state): State<AppState>,
    caller: Caller,
    ApiQuery(paging): ApiQuery<Paging>,
) -> Result<ApiJson<Page<SetView>>, ApiError> {
    state.authorize(&caller, Action::ReadGroups, ()).await?;
    let all = state.groups.sets();
    page(all, |view| view.name.to_string(), &paging).map(ApiJson)
}

/// A set, with its prefixes and the groups that name it.
#[utoipa::path(
    get, path = "/v1/address-sets/{name}", tag = "firewall",
    params(("name" = SetName, Path)), security(("bearer" = [])),
    responses((status = 200, body = SetView), (status = 404, body = Problem)),
    extensions(("x-authorisation" = json!("read security groups")))
)]
async fn show(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath(set): ApiPath<String>,
) -> Result<ApiJson<SetView>, ApiError> {
    state.authorize(&caller, Action::ReadGroups, ()).await?;
    Ok(ApiJson(state.groups.set(&name(&set)?)?))
}

/// Makes a set, or changes it: it has these prefixes from now on, and no
/// others.
#[utoipa::path(
    put, path = "/v1/address-sets/{name}", tag = "firewall", request_body = PutSet,
    params(
        ("name" = SetName, Path),
        ("If-Match" = Option<String>, Header, description = "the version that is to be changed"),
        ("Idempotency-Key" = Option<String>, Header, description = "sent again with the same key, it is done once"),
    ),
    security(("bearer" = [])),
    responses(
        (status = 200, body = GroupChanged),
        (status = 400, description = "one of them is no prefix", body = Problem),
        (status = 412, description = "it is another version by now", body = Problem),
    ),
    extensions(("x-authorisation" = json!("change security groups")))
)]
async fn put(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath(set): ApiPath<String>,
    headers: HeaderMap,
    ApiJson(prefixes): ApiJson<PutSet>,
) -> Result<ApiJson<GroupChanged>, ApiError> {
    let name: SetName = name(&set)?;
    let route = format!("PUT /v1/address-sets/{name}");
    let what = ChangeSet {
        name,
        what: prefixes.clone(),
        expect: if_match(&headers)?,
    };
    let asked = managed(&state, &caller, what).await?;
    let groups = state.groups.clone();
    let work = async move { groups.put_set(asked).await };
    Box::pin(once(&state, &caller, (&route, &headers), &prefixes, work))
        .await
        .map(ApiJson)
}

/// Removes a set that no rule names.
#[utoipa::path(
    delete, path = "/v1/address-sets/{name}", tag = "firewall",
    params(("name" = SetName, Path), ("If-Match" = Option<String>, Header, description = "the version that is to be removed")),
    security(("bearer" = [])),
    responses(
        (status = 204),
        (status = 404, body = Problem),
        (status = 409, description = "rules name it: of which groups", body = Problem),
    ),
    extensions(("x-authorisation" = json!("change security groups")))
)]
async fn remove(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath(set): ApiPath<String>,
    headers: HeaderMap,
) -> Result<StatusCode, ApiError> {
    let what = ChangeSet {
        name: name(&set)?,
        what: (),
        expect: if_match(&headers)?,
    };
    let asked = managed(&state, &caller, what).await?;
    state.active()?;
    let groups = state.groups.clone();
    super::finish(async move { groups.remove_set(asked).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Its newest versions, the newest first: who changed what.
#[utoipa::path(
    get, path = "/v1/address-sets/{name}/history", tag = "firewall",
    params(("name" = SetName, Path)), security(("bearer" = [])),
    responses((status = 200, body = Page<SetVersion>), (status = 404, body = Problem)),
    extensions(("x-authorisation" = json!("read security groups")))
)]
async fn history(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath(set): ApiPath<String>,
) -> Result<ApiJson<Page<SetVersion>>, ApiError> {
    state.authorize(&caller, Action::ReadGroups, ()).await?;
    let items = state.groups.set_history(&name(&set)?)?;
    Ok(ApiJson(Page { items, next: None }))
}

/// Makes it as it was in one of its versions: that is a new one.
#[utoipa::path(
    post, path = "/v1/address-sets/{name}/rollback", tag = "firewall",
    request_body = RollbackGroup,
    params(
        ("name" = SetName, Path),
        ("If-Match" = Option<String>, Header, description = "the version that is to be changed"),
        ("Idempotency-Key" = Option<String>, Header, description = "sent again with the same key, it is done once"),
    ),
    security(("bearer" = [])),
    responses(
        (status = 200, body = GroupChanged),
        (status = 404, description = "there is no such set or version", body = Problem),
        (status = 412, description = "it is another version by now", body = Problem),
    ),
    extensions(("x-authorisation" = json!("change security groups")))
)]
async fn rollback(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath(set): ApiPath<String>,
    headers: HeaderMap,
    ApiJson(to): ApiJson<RollbackGroup>,
) -> Result<ApiJson<GroupChanged>, ApiError> {
    let name: SetName = name(&set)?;
    let route = format!("POST /v1/address-sets/{name}/rollback");
    let what = ChangeSet {
        name,
        what: to.clone(),
        expect: if_match(&headers)?,
    };
    let asked = managed(&state, &caller, what).await?;
    let groups = state.groups.clone();
    let work = async move { groups.rollback_set(asked).await };
    Box::pin(once(&state, &caller, (&route, &headers), &to, work))
        .await
        .map(ApiJson)
}
