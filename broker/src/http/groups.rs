//! `/v1/groups`, and which groups machines are in.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use muster_protocol::api::{
    AddRule, ChangeVmGroups, ChangeVmPairs, CreateGroup, GroupChanged, GroupVersion, GroupView,
    Page, RollbackGroup, VmGuarded,
};
use muster_protocol::firewall::RuleId;
use muster_protocol::names::{GroupName, NameError, VmName};
use muster_protocol::problem::{Kind, Problem};
use serde::Serialize;
use serde::de::DeserializeOwned;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::once::once_or_again;
use super::{ApiError, ApiJson, ApiPath, ApiQuery, AppState, Paging, page};
use crate::authz::{Action, Authorized, Caller};
use crate::groups::Change;
use crate::once::Unfinished;
use crate::vm::{Guarded, VmError};

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(show, remove))
        .routes(routes!(allow))
        .routes(routes!(deny))
        .routes(routes!(history))
        .routes(routes!(rollback))
        .routes(routes!(vm_groups))
        .routes(routes!(vm_pairs))
}

pub(super) fn name<T: std::str::FromStr<Err = NameError>>(text: &str) -> Result<T, ApiError> {
    text.parse()
        .map_err(|e: NameError| ApiError::new(Kind::InvalidRequest, e.to_string()))
}

/// The version that `If-Match` names, if it is there.
pub(super) fn if_match(headers: &HeaderMap) -> Result<Option<u32>, ApiError> {
    let Some(value) = headers.get(header::IF_MATCH) else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or_default().trim();
    if text == "*" {
        return Ok(None);
    }
    let number = text.trim_matches('"').parse();
    number.map(Some).map_err(|_| {
        ApiError::new(Kind::InvalidRequest, "If-Match is no version")
            .hint("give the number of the version that you saw: If-Match: \"3\"")
    })
}

/// Does a change once, however often it is asked for: to its end, also when
/// the client goes away.
pub(super) async fn once<T, E>(
    state: &AppState,
    caller: &Caller,
    (route, headers): (&str, &HeaderMap),
    request: &impl Serialize,
    work: impl Future<Output = Result<T, E>> + Send + 'static,
) -> Result<T, ApiError>
where
    T: Serialize + DeserializeOwned + Send + Sync + 'static,
    E: Into<ApiError> + Send + 'static,
{
    state.active()?;
    let asked = (caller, route, headers);
    // What was done already is found done.
    once_or_again(state, asked, request, Unfinished::Again, work).await
}

/// What is to be changed, by somebody who may.
pub(super) async fn managed<T: 'static>(
    state: &AppState,
    caller: &Caller,
    what: T,
) -> Result<Authorized<T>, ApiError> {
    state.authorize(caller, Action::ManageGroups, what).await
}

/// All groups, by name, without their rules.
#[utoipa::path(
    get, path = "/v1/groups", tag = "firewall", params(Paging), security(("bearer" = [])),
    responses((status = 200, body = Page<GroupView>)),
    extensions(("x-authorisation" = json!("read security groups")))
)]
async fn list(
    State(state): State<AppState>,
    caller: Caller,
    ApiQuery(paging): ApiQuery<Paging>,
) -> Result<ApiJson<Page<GroupView>>, ApiError> {
    state.authorize(&caller, Action::ReadGroups, ()).await?;
    let all = state.groups.list();
    page(all, |view| view.name.to_string(), &paging).map(ApiJson)
}

/// A group with its rules, who is in it, and which groups name it.
#[utoipa::path(
    get, path = "/v1/groups/{name}", tag = "firewall",
    params(("name" = GroupName, Path)), security(("bearer" = [])),
    responses((status = 200, body = GroupView), (status = 404, body = Problem)),
    extensions(("x-authorisation" = json!("read security groups")))
)]
async fn show(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath(group): ApiPath<String>,
) -> Result<ApiJson<GroupView>, ApiError> {
    show_group(&state, &caller, &name(&group)?)
        .await
        .map(ApiJson)
}

/// One group, whatever the door.
pub(crate) async fn show_group(
    state: &AppState,
    caller: &Caller,
    group: &GroupName,
) -> Result<GroupView, ApiError> {
    state.authorize(caller, Action::ReadGroups, ()).await?;
    Ok(state.groups.get(group)?)
}

/// Makes a group without rules: machines in it hear nothing that they have not
/// asked for.
#[utoipa::path(
    post, path = "/v1/groups", tag = "firewall", request_body = CreateGroup,
    params(("Idempotency-Key" = Option<String>, Header, description = "sent again with the same key, it is done once")),
    security(("bearer" = [])),
    responses(
        (status = 200, body = GroupChanged),
        (status = 409, description = "there is a group of that name", body = Problem),
    ),
    extensions(("x-authorisation" = json!("change security groups")))
)]
async fn create(
    State(state): State<AppState>,
    caller: Caller,
    headers: HeaderMap,
    ApiJson(request): ApiJson<CreateGroup>,
) -> Result<ApiJson<GroupChanged>, ApiError> {
    create_group(&state, &caller, &headers, request)
        .await
        .map(ApiJson)
}

/// Makes a group, whatever the door.
pub(crate) async fn create_group(
    state: &AppState,
    caller: &Caller,
    headers: &HeaderMap,
    request: CreateGroup,
) -> Result<GroupChanged, ApiError> {
    let asked = managed(state, caller, request.clone()).await?;
    let (groups, machines) = (state.groups.clone(), state.machines.clone());
    let work = async move {
        if let Some(account) = &asked.get().account {
            machines.has_account(account)?;
        }
        groups.create(asked).await.map_err(VmError::from)
    };
    let route = ("POST /v1/groups", headers);
    Box::pin(once(state, caller, route, &request, work)).await
}

/// Removes a group. Refused while a rule of another group names it, or a
/// machine is in it.
#[utoipa::path(
    delete, path = "/v1/groups/{name}", tag = "firewall",
    params(("name" = GroupName, Path), ("If-Match" = Option<String>, Header, description = "the version that is to be removed")),
    security(("bearer" = [])),
    responses(
        (status = 204),
        (status = 404, body = Problem),
        (status = 409, description = "somebody refers to it: who", body = Problem),
        (status = 412, description = "it is another version by now", body = Problem),
    ),
    extensions(("x-authorisation" = json!("change security groups")))
)]
async fn remove(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath(group): ApiPath<String>,
    headers: HeaderMap,
) -> Result<StatusCode, ApiError> {
    let what = Change {
        name: name(&group)?,
        what: (),
        expect: if_match(&headers)?,
    };
    remove_group(&state, &caller, what).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Removes a group, whatever the door.
pub(crate) async fn remove_group(
    state: &AppState,
    caller: &Caller,
    what: Change<()>,
) -> Result<(), ApiError> {
    let asked = managed(state, caller, what).await?;
    state.active()?;
    let groups = state.groups.clone();
    super::finish(async move { groups.remove(asked).await }).await
}

/// Adds a rule. A rule that is there already stays as it is.
#[utoipa::path(
    post, path = "/v1/groups/{name}/rules", tag = "firewall", request_body = AddRule,
    params(
        ("name" = GroupName, Path),
        ("If-Match" = Option<String>, Header, description = "the version that is to be changed"),
        ("Idempotency-Key" = Option<String>, Header, description = "sent again with the same key, it is done once"),
    ),
    security(("bearer" = [])),
    responses(
        (status = 200, body = GroupChanged),
        (status = 400, description = "no rule can be like that", body = Problem),
        (status = 404, description = "there is no such group, or none that the rule names", body = Problem),
        (status = 412, description = "it is another version by now", body = Problem),
    ),
    extensions(("x-authorisation" = json!("change security groups")))
)]
async fn allow(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath(group): ApiPath<String>,
    headers: HeaderMap,
    ApiJson(rule): ApiJson<AddRule>,
) -> Result<ApiJson<GroupChanged>, ApiError> {
    let name: GroupName = name(&group)?;
    let what = Change {
        name,
        what: rule,
        expect: if_match(&headers)?,
    };
    allow_in_group(&state, &caller, &headers, what)
        .await
        .map(ApiJson)
}

/// Lets something pass, whatever the door.
pub(crate) async fn allow_in_group(
    state: &AppState,
    caller: &Caller,
    headers: &HeaderMap,
    what: Change<AddRule>,
) -> Result<GroupChanged, ApiError> {
    let route = format!("POST /v1/groups/{}/rules", what.name);
    let request = what.what.clone();
    let asked = managed(state, caller, what).await?;
    let groups = state.groups.clone();
    let work = async move { groups.allow(asked).await };
    Box::pin(once(state, caller, (&route, headers), &request, work)).await
}

/// Takes a rule away. Connections that it had allowed end.
#[utoipa::path(
    delete, path = "/v1/groups/{name}/rules/{rule}", tag = "firewall",
    params(
        ("name" = GroupName, Path), ("rule" = u32, Path),
        ("If-Match" = Option<String>, Header, description = "the version that is to be changed"),
        ("Idempotency-Key" = Option<String>, Header, description = "sent again with the same key, it is done once"),
    ),
    security(("bearer" = [])),
    responses(
        (status = 200, body = GroupChanged),
        (status = 404, body = Problem),
        (status = 412, description = "it is another version by now", body = Problem),
    ),
    extensions(("x-authorisation" = json!("change security groups")))
)]
async fn deny(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath((group, rule)): ApiPath<(String, u32)>,
    headers: HeaderMap,
) -> Result<ApiJson<GroupChanged>, ApiError> {
    let name: GroupName = name(&group)?;
    let what = Change {
        name,
        what: RuleId(rule),
        expect: if_match(&headers)?,
    };
    deny_in_group(&state, &caller, &headers, what)
        .await
        .map(ApiJson)
}

/// Takes a rule away, whatever the door.
pub(crate) async fn deny_in_group(
    state: &AppState,
    caller: &Caller,
    headers: &HeaderMap,
    what: Change<RuleId>,
) -> Result<GroupChanged, ApiError> {
    let rule = what.what;
    let route = format!("DELETE /v1/groups/{}/rules/{rule}", what.name);
    let asked = managed(state, caller, what).await?;
    let groups = state.groups.clone();
    let work = async move { groups.deny(asked).await };
    Box::pin(once(state, caller, (&route, headers), &rule, work)).await
}

/// Its newest versions, the newest first: who changed what.
#[utoipa::path(
    get, path = "/v1/groups/{name}/history", tag = "firewall",
    params(("name" = GroupName, Path)), security(("bearer" = [])),
    responses((status = 200, body = Page<GroupVersion>), (status = 404, body = Problem)),
    extensions(("x-authorisation" = json!("read security groups")))
)]
async fn history(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath(group): ApiPath<String>,
) -> Result<ApiJson<Page<GroupVersion>>, ApiError> {
    state.authorize(&caller, Action::ReadGroups, ()).await?;
    let items = state.groups.history(&name(&group)?)?;
    Ok(ApiJson(Page { items, next: None }))
}

/// Makes its rules as they were in one of its versions: that is a new one.
#[utoipa::path(
    post, path = "/v1/groups/{name}/rollback", tag = "firewall", request_body = RollbackGroup,
    params(
        ("name" = GroupName, Path),
        ("If-Match" = Option<String>, Header, description = "the version that is to be changed"),
        ("Idempotency-Key" = Option<String>, Header, description = "sent again with the same key, it is done once"),
    ),
    security(("bearer" = [])),
    responses(
        (status = 200, body = GroupChanged),
        (status = 404, description = "there is no such group or version", body = Problem),
        (status = 412, description = "it is another version by now", body = Problem),
    ),
    extensions(("x-authorisation" = json!("change security groups")))
)]
async fn rollback(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath(group): ApiPath<String>,
    headers: HeaderMap,
    ApiJson(to): ApiJson<RollbackGroup>,
) -> Result<ApiJson<GroupChanged>, ApiError> {
    let name: GroupName = name(&group)?;
    let what = Change {
        name,
        what: to,
        expect: if_match(&headers)?,
    };
    rollback_group(&state, &caller, &headers, what)
        .await
        .map(ApiJson)
}

/// Makes a group as it was, whatever the door.
pub(crate) async fn rollback_group(
    state: &AppState,
    caller: &Caller,
    headers: &HeaderMap,
    what: Change<RollbackGroup>,
) -> Result<GroupChanged, ApiError> {
    let route = format!("POST /v1/groups/{}/rollback", what.name);
    let request = what.what.clone();
    let asked = managed(state, caller, what).await?;
    let groups = state.groups.clone();
    let work = async move { groups.rollback(asked).await };
    Box::pin(once(state, caller, (&route, headers), &request, work)).await
}

/// Puts a machine in groups, and takes it out of others: at once, also while
/// it runs.
#[utoipa::path(
    post, path = "/v1/vms/{name}/groups", tag = "firewall", request_body = ChangeVmGroups,
    params(("name" = VmName, Path), ("Idempotency-Key" = Option<String>, Header, description = "sent again with the same key, it is done once")),
    security(("bearer" = [])),
    responses(
        (status = 200, body = VmGuarded),
        (status = 404, description = "there is no such machine or group", body = Problem),
        (status = 409, description = "its hypervisor cannot keep groups", body = Problem),
    ),
    extensions(("x-authorisation" = json!("change security groups")))
)]
async fn vm_groups(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath(vm): ApiPath<String>,
    headers: HeaderMap,
    ApiJson(change): ApiJson<ChangeVmGroups>,
) -> Result<ApiJson<VmGuarded>, ApiError> {
    let vm: VmName = name(&vm)?;
    change_vm_groups(&state, &caller, &headers, (vm, change))
        .await
        .map(ApiJson)
}

/// Puts a machine in groups, or takes it out, whatever the door.
pub(crate) async fn change_vm_groups(
    state: &AppState,
    caller: &Caller,
    headers: &HeaderMap,
    (vm, change): (VmName, ChangeVmGroups),
) -> Result<VmGuarded, ApiError> {
    let route = format!("POST /v1/vms/{vm}/groups");
    let what = (vm, Guarded::Groups(change.clone()));
    let asked = managed(state, caller, what).await?;
    let machines = state.machines.clone();
    let work = async move { machines.guard(asked).await };
    Box::pin(once(state, caller, (&route, headers), &change, work)).await
}

/// Lets a machine use addresses beside its own, or not any more.
#[utoipa::path(
    post, path = "/v1/vms/{name}/address-pairs", tag = "firewall", request_body = ChangeVmPairs,
    params(("name" = VmName, Path), ("Idempotency-Key" = Option<String>, Header, description = "sent again with the same key, it is done once")),
    security(("bearer" = [])),
    responses(
        (status = 200, body = VmGuarded),
        (status = 400, description = "no machine can have such addresses", body = Problem),
        (status = 404, body = Problem),
    ),
    extensions(("x-authorisation" = json!("change security groups")))
)]
async fn vm_pairs(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath(vm): ApiPath<String>,
    headers: HeaderMap,
    ApiJson(change): ApiJson<ChangeVmPairs>,
) -> Result<ApiJson<VmGuarded>, ApiError> {
    let vm: VmName = name(&vm)?;
    let route = format!("POST /v1/vms/{vm}/address-pairs");
    let what = (vm, Guarded::Pairs(change.clone()));
    let asked = managed(&state, &caller, what).await?;
    let machines = state.machines.clone();
    let work = async move { machines.guard(asked).await };
    Box::pin(once(&state, &caller, (&route, &headers), &change, work))
        .await
        .map(ApiJson)
}
