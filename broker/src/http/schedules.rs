//! `/v1/schedules`.

use axum::extract::State;
use axum::http::StatusCode;
use muster_protocol::api::{Page, PutSchedule, ScheduleView};
use muster_protocol::names::{NameError, ScheduleName};
use muster_protocol::problem::{Kind, Problem};
use serde::Deserialize;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{ApiError, ApiJson, ApiPath, ApiQuery, AppState, finish};
use crate::authz::{Action, Caller};
use crate::schedules::{Add, MAX_NEXT};

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(show, put, remove))
}

fn schedule_name(text: &str) -> Result<ScheduleName, ApiError> {
    text.parse()
        .map_err(|e: NameError| ApiError::new(Kind::InvalidRequest, e.to_string()))
}

/// How far to look ahead.
#[derive(Clone, Copy, Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct NextQuery {
    /// How many of the next starts are told, at most 100; 1 when absent.
    next: Option<usize>,
}

impl NextQuery {
    fn get(self) -> Result<usize, ApiError> {
        match self.next.unwrap_or(1) {
            next if next <= MAX_NEXT => Ok(next),
            _ => Err(ApiError::new(
                Kind::InvalidRequest,
                format!("at most {MAX_NEXT} starts are looked ahead"),
            )),
        }
    }
}

/// All schedules, by name.
#[utoipa::path(
    get, path = "/v1/schedules", tag = "schedules", params(NextQuery), security(("bearer" = [])),
    responses((status = 200, body = Page<ScheduleView>)),
    extensions(("x-authorisation" = json!("read schedules")))
)]
async fn list(
    State(state): State<AppState>,
    caller: Caller,
    ApiQuery(query): ApiQuery<NextQuery>,
) -> Result<ApiJson<Page<ScheduleView>>, ApiError> {
    state.authorize(&caller, Action::ReadSchedules, ()).await?;
    Ok(ApiJson(Page {
        items: state.schedules.list(query.get()?),
        next: None,
    }))
}

/// A schedule, with what came of its last start and when the next ones are.
#[utoipa::path(
    get, path = "/v1/schedules/{name}", tag = "schedules",
    params(("name" = ScheduleName, Path), NextQuery), security(("bearer" = [])),
    responses((status = 200, body = ScheduleView), (status = 404, body = Problem)),
    extensions(("x-authorisation" = json!("read schedules")))
)]
async fn show(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath(name): ApiPath<String>,
    ApiQuery(query): ApiQuery<NextQuery>,
) -> Result<ApiJson<ScheduleView>, ApiError> {
    state.authorize(&caller, Action::ReadSchedules, ()).await?;
    let view = state.schedules.get(&schedule_name(&name)?, query.get()?)?;
    Ok(ApiJson(view))
}

/// Makes a schedule. What it runs is held against everything that is known
/// now, and again each time. Its runs are those of the principal
/// `schedule:NAME`, which may what the role of its maker may.
#[utoipa::path(
    put, path = "/v1/schedules/{name}", tag = "schedules",
    params(("name" = ScheduleName, Path)), request_body = PutSchedule, security(("bearer" = [])),
    responses(
        (status = 200, body = ScheduleView),
        (status = 400, description = "no time as in cron, or what it runs has a mistake", body = Problem),
        (status = 404, description = "there is no such scenario", body = Problem),
        (status = 409, description = "there is a schedule of that name", body = Problem),
    ),
    extensions(("x-authorisation" = json!("add or remove schedules")))
)]
async fn put(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath(name): ApiPath<String>,
    ApiJson(put): ApiJson<PutSchedule>,
) -> Result<ApiJson<ScheduleView>, ApiError> {
    let add = Add {
        name: schedule_name(&name)?,
        put,
    };
    let add = state
        .authorize(&caller, Action::ManageSchedules, add)
        .await?;
    state.active()?;
    let view = finish(async move { state.schedules.add(add, &state.submit).await }).await?;
    Ok(ApiJson(view))
}

/// Removes a schedule. Runs that it has made go on.
#[utoipa::path(
    delete, path = "/v1/schedules/{name}", tag = "schedules",
    params(("name" = ScheduleName, Path)), security(("bearer" = [])),
    responses((status = 204), (status = 404, body = Problem)),
    extensions(("x-authorisation" = json!("add or remove schedules")))
)]
async fn remove(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath(name): ApiPath<String>,
) -> Result<StatusCode, ApiError> {
    let name = schedule_name(&name)?;
    let name = state
        .authorize(&caller, Action::ManageSchedules, name)
        .await?;
    state.active()?;
    finish(async move { state.schedules.remove(name).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}
