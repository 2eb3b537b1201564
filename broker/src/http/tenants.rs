//! `/v1/ssh-keys` and `/v1/accounts`.

use axum::extract::State;
use axum::http::StatusCode;
use muster_protocol::api::{AccountView, Page, PutAccount, PutSshKey, SshKeyView};
use muster_protocol::names::{AccountName, NameError, SshKeyName};
use muster_protocol::problem::{Kind, Problem};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{ApiError, ApiJson, ApiPath, AppState, finish};
use crate::authz::{Action, Authorized, Caller};

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list_keys))
        .routes(routes!(show_key, put_key, remove_key))
        .routes(routes!(list_accounts))
        .routes(routes!(put_account, remove_account))
}

fn parsed<T: std::str::FromStr<Err = NameError>>(text: &str) -> Result<T, ApiError> {
    text.parse()
        .map_err(|e: NameError| ApiError::new(Kind::InvalidRequest, e.to_string()))
}

/// What is to be changed, by somebody who may, here where it is changed.
async fn managed<T: 'static>(
    state: &AppState,
    caller: &Caller,
    what: T,
) -> Result<Authorized<T>, ApiError> {
    let what = state.authorize(caller, Action::ManageTenants, what);
    let what = what.await?;
    state.active()?;
    Ok(what)
}

fn all<T>(items: Vec<T>) -> ApiJson<Page<T>> {
    ApiJson(Page { items, next: None })
}

/// All public keys that have names.
#[utoipa::path(
    get, path = "/v1/ssh-keys", tag = "machines", security(("bearer" = [])),
    responses((status = 200, body = Page<SshKeyView>)),
    extensions(("x-authorisation" = json!("read machines")))
)]
async fn list_keys(
    State(state): State<AppState>,
    caller: Caller,
) -> Result<ApiJson<Page<SshKeyView>>, ApiError> {
    state.authorize(&caller, Action::ReadMachines, ()).await?;
    Ok(all(state.machines.ssh_keys()))
}

/// A public key.
#[utoipa::path(
    get, path = "/v1/ssh-keys/{name}", tag = "machines",
    params(("name" = SshKeyName, Path)), security(("bearer" = [])),
    responses((status = 200, body = SshKeyView), (status = 404, body = Problem)),
    extensions(("x-authorisation" = json!("read machines")))
)]
async fn show_key(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath(name): ApiPath<String>,
) -> Result<ApiJson<SshKeyView>, ApiError> {
    state.authorize(&caller, Action::ReadMachines, ()).await?;
    Ok(ApiJson(state.machines.ssh_key(&parsed(&name)?)?))
}

/// Keeps a public key under a name, for new machines.
#[utoipa::path(
    put, path = "/v1/ssh-keys/{name}", tag = "machines",
    params(("name" = SshKeyName, Path)), request_body = PutSshKey, security(("bearer" = [])),
    responses(
        (status = 200, body = SshKeyView),
        (status = 400, description = "it is no public key", body = Problem),
        (status = 409, description = "the name is another key's", body = Problem),
    ),
    extensions(("x-authorisation" = json!("change accounts or ssh keys")))
)]
async fn put_key(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath(name): ApiPath<String>,
    ApiJson(put): ApiJson<PutSshKey>,
) -> Result<ApiJson<SshKeyView>, ApiError> {
    let put = (parsed(&name)?, put);
    let put = managed(&state, &caller, put).await?;
    let view = finish(async move { state.machines.put_ssh_key(put).await }).await?;
    Ok(ApiJson(view))
}

/// Forgets a public key. Machines that were made with it keep it.
#[utoipa::path(
    delete, path = "/v1/ssh-keys/{name}", tag = "machines",
    params(("name" = SshKeyName, Path)), security(("bearer" = [])),
    responses((status = 204), (status = 404, body = Problem)),
    extensions(("x-authorisation" = json!("change accounts or ssh keys")))
)]
async fn remove_key(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath(name): ApiPath<String>,
) -> Result<StatusCode, ApiError> {
    let name = managed(&state, &caller, parsed(&name)?).await?;
    finish(async move { state.machines.remove_ssh_key(name).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// All accounts, with what their machines have.
#[utoipa::path(
    get, path = "/v1/accounts", tag = "machines", security(("bearer" = [])),
    responses((status = 200, body = Page<AccountView>)),
    extensions(("x-authorisation" = json!("read machines")))
)]
async fn list_accounts(
    State(state): State<AppState>,
    caller: Caller,
) -> Result<ApiJson<Page<AccountView>>, ApiError> {
    state.authorize(&caller, Action::ReadMachines, ()).await?;
    Ok(all(state.machines.accounts()))
}

/// Declares an account, or changes what is noted of it. Once any account is
/// declared, new machines are of those alone.
#[utoipa::path(
    put, path = "/v1/accounts/{name}", tag = "machines",
    params(("name" = AccountName, Path)), request_body = PutAccount, security(("bearer" = [])),
    responses(
        (status = 200, body = AccountView),
        (status = 400, body = Problem),
        (status = 409, description = "there are too many", body = Problem),
    ),
    extensions(("x-authorisation" = json!("change accounts or ssh keys")))
)]
async fn put_account(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath(name): ApiPath<String>,
    ApiJson(put): ApiJson<PutAccount>,
) -> Result<ApiJson<AccountView>, ApiError> {
    let put = (parsed(&name)?, put);
    let put = managed(&state, &caller, put).await?;
    let view = finish(async move { state.machines.put_account(put).await }).await?;
    Ok(ApiJson(view))
}

/// Forgets an account that no machine is of.
#[utoipa::path(
    delete, path = "/v1/accounts/{name}", tag = "machines",
    params(("name" = AccountName, Path)), security(("bearer" = [])),
    responses(
        (status = 204),
        (status = 404, body = Problem),
        (status = 409, description = "machines are its own", body = Problem),
    ),
    extensions(("x-authorisation" = json!("change accounts or ssh keys")))
)]
async fn remove_account(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath(name): ApiPath<String>,
) -> Result<StatusCode, ApiError> {
    let name = managed(&state, &caller, parsed(&name)?).await?;
    finish(async move { state.machines.remove_account(name).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}
