//! `/v1/policy`: who may do what.

use axum::extract::{DefaultBodyLimit, State};
use muster_protocol::api::{
    Confirm, ExplainRequest, Explained, ExplainedClass, Page, PolicySchema, PolicyStored,
    PolicyVersion, PolicyView, PrincipalView, PutPolicy, Role, RunRequest,
};
use muster_protocol::envelope::Door;
use muster_protocol::names::PrincipalName;
use muster_protocol::origin::Origin;
use muster_protocol::problem::{Kind, Problem};
use muster_protocol::text::printable;
use muster_protocol::units::Timestamp;
use muster_scenarios::fault::nearest;
use serde::Deserialize;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::problem::ApiJson;
use super::{ApiError, ApiQuery, AppState, finish};
use crate::authz::cedar::{Judged, Moment, SCHEMA, check};
use crate::authz::{Action, Caller, Decision, PolicyId};
use crate::policy::{PolicyError, Put};

/// Largest body: both files in JSON.
const LARGEST: usize = 4 * crate::authz::cedar::MAX_FILES;

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(show, put))
        .routes(routes!(history))
        .routes(routes!(schema))
        .routes(routes!(explain))
        .routes(routes!(principals))
        .layer(DefaultBodyLimit::max(LARGEST))
}

impl From<PolicyError> for ApiError {
    fn from(error: PolicyError) -> Self {
        match error {
            PolicyError::Store(_) => Self::storage(&error),
            PolicyError::Task(_) => Self::internal(&error),
            error => error.problem().into(),
        }
    }
}

/// Which version.
#[derive(Clone, Copy, Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct VersionQuery {
    /// Its number; the one in force when absent. 0 is what muster comes with.
    version: Option<u32>,
}

/// Who may do what: both files, as they are in force.
#[utoipa::path(
    get, path = "/v1/policy", tag = "policy", params(VersionQuery), security(("bearer" = [])),
    responses(
        (status = 200, body = PolicyView),
        (status = 404, description = "there is no such version", body = Problem),
    ),
    extensions(("x-authorisation" = json!("read policies")))
)]
async fn show(
    State(state): State<AppState>,
    caller: Caller,
    ApiQuery(query): ApiQuery<VersionQuery>,
) -> Result<ApiJson<PolicyView>, ApiError> {
    state.authorize(&caller, Action::ReadPolicies, ()).await?;
    Ok(ApiJson(state.policies.show(query.version).await?))
}

/// Stores who may do what: both files, checked whole. The next request is
/// judged by them.
#[utoipa::path(
    put, path = "/v1/policy", tag = "policy", request_body = PutPolicy, security(("bearer" = [])),
    responses(
        (status = 200, description = "what is in force now", body = PolicyStored),
        (status = 400, description = "the files have mistakes; `detail` has them all", body = Problem),
        (status = 409, description = "somebody else has changed it meanwhile, or nobody could change it again", body = Problem),
    ),
    extensions(("x-authorisation" = json!("change policies")))
)]
async fn put(
    State(state): State<AppState>,
    caller: Caller,
    ApiJson(asked): ApiJson<PutPolicy>,
) -> Result<ApiJson<PolicyStored>, ApiError> {
    let put = Put {
        files: asked.files,
        note: asked.note,
        expect: asked.expect,
        force: asked.force,
    };
    let put = state
        .authorize(&caller, Action::ManagePolicies, put)
        .await?;
    state.active()?;
    let (version, new) = finish(async move { state.policies.put(put).await }).await?;
    Ok(ApiJson(PolicyStored { version, new }))
}

/// All versions that are kept, the newest first.
#[utoipa::path(
    get, path = "/v1/policy/history", tag = "policy", security(("bearer" = [])),
    responses((status = 200, body = Page<PolicyVersion>)),
    extensions(("x-authorisation" = json!("read policies")))
)]
async fn history(
    State(state): State<AppState>,
    caller: Caller,
) -> Result<ApiJson<Page<PolicyVersion>>, ApiError> {
    state.authorize(&caller, Action::ReadPolicies, ()).await?;
    let items = state.policies.history().await?;
    Ok(ApiJson(Page { items, next: None }))
}

/// What policies can speak of, as a schema of Cedar.
#[utoipa::path(
    get, path = "/v1/policy/schema", tag = "policy", security(("bearer" = [])),
    responses((status = 200, body = PolicySchema)),
    extensions(("x-authorisation" = json!("read policies")))
)]
async fn schema(
    State(state): State<AppState>,
    caller: Caller,
) -> Result<ApiJson<PolicySchema>, ApiError> {
    state.authorize(&caller, Action::ReadPolicies, ()).await?;
    let text = SCHEMA.to_owned();
    Ok(ApiJson(PolicySchema { text }))
}

/// What the policies say of what somebody might ask: judged as the request
/// itself would be, and nothing is done.
#[utoipa::path(
    post, path = "/v1/policy/explain", tag = "policy", request_body = ExplainRequest,
    security(("bearer" = [])),
    responses(
        (status = 200, description = "yes or no, and why", body = Explained),
        (status = 400, description = "that cannot be asked", body = Problem),
        (status = 404, description = "there is no such action or scenario", body = Problem),
        (status = 422, description = "the predicate matches no node", body = Problem),
    ),
    extensions(("x-authorisation" = json!("read policies")))
)]
async fn explain(
    State(state): State<AppState>,
    caller: Caller,
    ApiJson(asked): ApiJson<ExplainRequest>,
) -> Result<ApiJson<Explained>, ApiError> {
    let asked = state
        .authorize(&caller, Action::ReadPolicies, asked)
        .await?
        .into_inner();
    let role = role_of(&state, &asked)?;
    let who = Caller {
        principal: asked.principal.clone(),
        role,
        token: "explain".to_owned(),
        door: asked.door.unwrap_or(Door::Http),
        origin: asked.address.map_or(Origin::Unknown, Origin::Address),
    };
    let action = action(&state, &who, &asked).await?;
    let at = Moment(asked.at.unwrap_or_else(Timestamp::now));
    let draft = asked.files.map(|files| {
        check(&files)
            .map(|checked| checked.document)
            .map_err(PolicyError::Refused)
    });
    let document = match draft {
        None => state.policies.document(),
        Some(draft) => std::sync::Arc::new(draft?),
    };
    let judged = document.judge(&who, &action, at, &state.inventory.snapshot());
    Ok(ApiJson(explained(judged, &who, &action, document.version)))
}

fn role_of(state: &AppState, asked: &ExplainRequest) -> Result<Role, ApiError> {
    if let Some(role) = asked.role {
        return Ok(role);
    }
    let roles = roles(state, &asked.principal);
    match roles.as_slice() {
        [] => Ok(Role::Member),
        [one] => Ok(*one),
        some => {
            let some: Vec<&str> = some.iter().map(|role| role.as_str()).collect();
            let title = format!(
                "{} has tokens of several roles: {}",
                asked.principal,
                some.join(", ")
            );
            Err(ApiError::new(Kind::InvalidRequest, title).hint("say which: `role`, --role"))
        }
    }
}

/// The roles of a principal's tokens that work.
fn roles(state: &AppState, principal: &PrincipalName) -> Vec<Role> {
    let tokens = state.tokens.list();
    let own = tokens.iter().filter(|token| token.principal == *principal);
    let mut roles: Vec<Role> = own.map(|token| token.role).collect();
    roles.sort_unstable();
    roles.dedup();
    roles
}

/// What is asked about.
async fn action(
    state: &AppState,
    who: &Caller,
    asked: &ExplainRequest,
) -> Result<Action, ApiError> {
    let mut all = Action::examples();
    let Some(at) = all.iter().position(|action| action.name() == asked.action) else {
        let near = nearest(&asked.action, all.iter().map(Action::name));
        let title = format!("there is no action `{}`", printable(&asked.action, 60));
        return Err(ApiError::new(Kind::NotFound, title).hint(match near {
            Some(near) => format!("did you mean `{near}`?"),
            None => "`muster policy schema` has them all".to_owned(),
        }));
    };
    let action = all.swap_remove(at);
    if !matches!(action, Action::CreateRun(_)) {
        return Ok(action);
    }
    let Some(scenario) = asked.scenario.clone() else {
        let title = "a run is of a scenario: say of which";
        return Err(ApiError::new(Kind::InvalidRequest, title).hint("`scenario`, --scenario"));
    };
    let request = RunRequest {
        predicate: asked.predicate.clone(),
        version: asked.version,
        params: asked.params.clone(),
        mode: asked.mode,
        confirm: Confirm::Yes,
        ..RunRequest::of(scenario)
    };
    let ask = state.submit.sketch(who, &request).await;
    let ask = ask.map_err(|refused| ApiError::from(*refused))?;
    Ok(Action::CreateRun(Box::new(ask)))
}

fn explained(judged: Judged, who: &Caller, action: &Action, version: Option<u32>) -> Explained {
    let (allowed, text, approvals, doors) = match judged.decision {
        Decision::Allow(grant) => {
            let by: Vec<String> = grant.by.iter().map(|id| format!("`{id}`")).collect();
            let what = match action {
                Action::CreateRun(run) => format!("run {}", run.scenario),
                other => other.what().to_owned(),
            };
            let text = format!("{} may {what}: {}", who.principal, by.join(", "));
            (true, text, grant.approvals, grant.doors)
        }
        Decision::Deny(denied) => (false, denied.to_string(), 0, None),
    };
    let names = |ids: Vec<PolicyId>| ids.iter().map(ToString::to_string).collect();
    let classes = judged.classes.into_iter().map(|class| ExplainedClass {
        set: class.set,
        roles: class.roles.iter().map(ToString::to_string).collect(),
        labels: class
            .labels
            .iter()
            .map(|(key, value)| (key.to_string(), value.to_string()))
            .collect(),
        nodes: class.nodes,
        allowed: class.allowed,
        permitted_by: names(class.permits),
        forbidden_by: names(class.forbids),
        errors: class
            .errors
            .into_iter()
            .map(|(id, why)| format!("{id}: {why}"))
            .collect(),
    });
    Explained {
        allowed,
        text,
        role: who.role,
        version,
        approvals,
        approve_through: doors.map(|doors| doors.into_iter().collect()),
        judged: classes.collect(),
    }
}

/// Whoever may ask for something: those that the policies name, and those who
/// have tokens.
#[utoipa::path(
    get, path = "/v1/principals", tag = "policy", security(("bearer" = [])),
    responses((status = 200, body = Page<PrincipalView>)),
    extensions(("x-authorisation" = json!("read policies")))
)]
async fn principals(
    State(state): State<AppState>,
    caller: Caller,
) -> Result<ApiJson<Page<PrincipalView>>, ApiError> {
    state.authorize(&caller, Action::ReadPolicies, ()).await?;
    let document = state.policies.document();
    let tokens = state.tokens.list();
    let mut names: std::collections::BTreeSet<PrincipalName> =
        document.principals.names().cloned().collect();
    names.extend(tokens.into_iter().map(|token| token.principal));
    let items = names
        .into_iter()
        .map(|name| PrincipalView {
            kind: document.principals.kind(&name),
            groups: document.principals.groups_of(&name).cloned().collect(),
            roles: roles(&state, &name),
            name,
        })
        .collect();
    Ok(ApiJson(Page { items, next: None }))
}
