//! `/v1/runs`: create, list, show, cancel, retry.

use std::time::Duration;

use axum::extract::{Extension, State};
use axum::http::HeaderMap;
use muster_protocol::api::{
    AnswerRequest, Page, Plan, RetryRequest, RunBrief, RunRequest, RunView,
};
use muster_protocol::problem::{Kind, Problem};
use muster_protocol::run::Wish;
use muster_protocol::text::printable;
use muster_protocol::units::Span;
use serde::Deserialize;
use tokio::time::{sleep, timeout};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::gate::{LONGEST_WAIT, Slot};
use super::once::named_run;
use super::sse::watcher;
use super::{ApiError, ApiJson, ApiPath, ApiQuery, AppState};
use crate::authz::{Action, Caller, RunAsk};
use crate::runs::{EngineError, cursor, parse_cursor};
use crate::submit::{Asked, Submitted};

/// How often it is looked whether a run has ended.
const LOOK: Duration = Duration::from_millis(50);
/// Runs on a page when nothing is said.
const PAGE: usize = 50;
/// Most runs on a page.
const LONGEST_PAGE: usize = 1_000;

/// The routes of this module.
#[must_use]
pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(create, list))
        .routes(routes!(show))
        .routes(routes!(cancel))
        .routes(routes!(retry))
        .routes(routes!(answer_question))
        .routes(routes!(plan))
        .routes(routes!(confirm))
        .routes(routes!(approve))
        .routes(routes!(pause))
        .routes(routes!(resume))
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        error.problem().into()
    }
}

/// Run a scenario
///
/// The predicate is resolved once; that frozen set is what is authorised,
/// confirmed, journaled, signed and sent. Above the confirmation threshold the
/// answer is 428 with the plan, whose id confirms exactly that set. With an
/// `Idempotency-Key` a repeated request answers with the run that the first
/// one created, also after this broker was started again: the run's id follows
/// from principal and key. The request that confirms a plan carries the same
/// key as the one that asked for it.
///
/// With `wait` the answer comes when the run has ended, or when that time is
/// over: `finished` is there when it has ended. A caller who goes away while
/// it waits ends nothing; one that comes back with the same key waits on.
#[utoipa::path(
    post,
    path = "/v1/runs",
    tag = "runs",
    request_body = RunRequest,
    params(
        WaitQuery,
        ("Idempotency-Key" = Option<String>, Header, description = "Names this request; at most 200 bytes"),
    ),
    responses(
        (status = 200, description = "The run, begun; with `wait` as it was when it ended or the time was over", body = RunView),
        (status = 400, description = "The request or its predicate has an error", body = Problem),
        (status = 410, description = "The plan is gone", body = Problem),
        (status = 413, description = "The parameters are too large", body = Problem),
        (status = 422, description = "No node matches, a name in the predicate is unknown, or agents of the nodes cannot do it", body = Problem),
        (status = 428, description = "It needs a confirmation; `plan` says of what", body = Problem),
        (status = 503, description = "This broker cannot run anything now", body = Problem),
        (status = 507, description = "The store has no room to write the run down; nothing was run", body = Problem),
    ),
    security(("bearer" = [])),
    extensions(("x-authorisation" = json!("run anything"))),
)]
async fn create(
    State(state): State<AppState>,
    caller: Caller,
    ApiQuery(query): ApiQuery<WaitQuery>,
    Extension(slot): Extension<Slot>,
    headers: HeaderMap,
    ApiJson(request): ApiJson<RunRequest>,
) -> Result<ApiJson<RunView>, ApiError> {
    let wait = query.get()?;
    let asked = asked(&caller, "run", &headers)?;
    let submitted = state.submit.run(&caller, request, asked).await?;
    ended(&state, &slot, answer(&state, submitted)?, wait).await
}

/// List runs
///
/// Newest first.
#[utoipa::path(
    get,
    path = "/v1/runs",
    tag = "runs",
    params(ListQuery),
    responses(
        (status = 200, description = "A page of runs", body = Page<RunBrief>),
        (status = 400, description = "A cursor or limit that is none", body = Problem),
    ),
    security(("bearer" = [])),
    extensions(("x-authorisation" = json!("read runs"))),
)]
async fn list(
    State(state): State<AppState>,
    caller: Caller,
    ApiQuery(query): ApiQuery<ListQuery>,
) -> Result<ApiJson<Page<RunBrief>>, ApiError> {
    let query = state
        .authorize(&caller, Action::ReadRuns, query)
        .await?
        .into_inner();
    let before = match &query.cursor {
        None => None,
        Some(text) => Some(parse_cursor(text).ok_or_else(|| {
            ApiError::new(
                Kind::InvalidRequest,
                format!("`{}` is not a cursor", printable(text, 60)),
            )
            .hint("take it from `next` of the page before")
        })?),
    };
    let limit = query.limit.unwrap_or(PAGE);
    if !(1..=LONGEST_PAGE).contains(&limit) {
        return Err(ApiError::new(
            Kind::InvalidRequest,
            format!("a limit is from 1 to {LONGEST_PAGE}"),
        ));
    }
    let (items, more) = state.nodes.engine.list(before, limit, query.parts)?;
    let next = more.then(|| items.last().map(cursor)).flatten();
    Ok(ApiJson(Page { items, next }))
}

/// Which page of the runs.
#[derive(Clone, Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    /// `next` of the page before.
    cursor: Option<String>,
    /// Runs on the page; 50 when absent, at most 1000.
    limit: Option<usize>,
    /// With those that are parts of others.
    #[serde(default)]
    parts: bool,
}

/// Show a run
///
/// With its nodes, as it is now.
#[utoipa::path(
    get,
    path = "/v1/runs/{run}",
    tag = "runs",
    params(("run" = String, Path, pattern = "^[0-9a-z]{4,26}$", description = "Its id, or a beginning of at least four characters")),
    responses(
        (status = 200, description = "The run", body = RunView),
        (status = 404, description = "There is no such run", body = Problem),
        (status = 409, description = "The prefix stands for several runs", body = Problem),
    ),
    security(("bearer" = [])),
    extensions(("x-authorisation" = json!("read runs"))),
)]
async fn show(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath(run): ApiPath<String>,
) -> Result<ApiJson<RunView>, ApiError> {
    let run = state
        .authorize(&caller, Action::ReadRuns, run)
        .await?
        .into_inner();
    let engine = &state.nodes.engine;
    let run = engine.lookup(&run)?;
    Ok(ApiJson(engine.show(run).await?))
}

/// Cancel a run
///
/// Nothing more is started; what runs is ended. The answer comes when that is
/// written down; the nodes' outcomes follow.
#[utoipa::path(
    post,
    path = "/v1/runs/{run}/cancel",
    tag = "runs",
    params(("run" = String, Path, pattern = "^[0-9a-z]{4,26}$", description = "Its id, or a beginning of at least four characters")),
    responses(
        (status = 200, description = "The run, being cancelled", body = RunView),
        (status = 404, description = "There is no such run", body = Problem),
        (status = 409, description = "It has ended, or the prefix stands for several runs", body = Problem),
    ),
    security(("bearer" = [])),
    extensions(("x-authorisation" = json!("cancel runs"))),
)]
async fn cancel(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath(run): ApiPath<String>,
) -> Result<ApiJson<RunView>, ApiError> {
    state.admit(&caller, Action::CancelRun).await?;
    let engine = &state.nodes.engine;
    let run = state
        .authorize(&caller, Action::CancelRun, engine.lookup(&run)?)
        .await?;
    Ok(ApiJson(engine.cancel(run).await?))
}

/// Answer a run
///
/// What its scenario asks. The answer comes when that is written down.
#[utoipa::path(
    post,
    path = "/v1/runs/{run}/answer",
    tag = "runs",
    request_body = AnswerRequest,
    params(("run" = String, Path, pattern = "^[0-9a-z]{4,26}$", description = "Its id, or a beginning of at least four characters")),
    responses(
        (status = 200, description = "The run, which goes on", body = RunView),
        (status = 400, description = "That is no answer to the question", body = Problem),
        (status = 404, description = "There is no such run", body = Problem),
        (status = 409, description = "It asks nothing now, or the prefix stands for several runs", body = Problem),
    ),
    security(("bearer" = [])),
    extensions(("x-authorisation" = json!("answer runs"))),
)]
async fn answer_question(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath(run): ApiPath<String>,
    ApiJson(request): ApiJson<AnswerRequest>,
) -> Result<ApiJson<RunView>, ApiError> {
    state.admit(&caller, Action::AnswerRun).await?;
    let engine = &state.nodes.engine;
    let run = state
        .authorize(&caller, Action::AnswerRun, engine.lookup(&run)?)
        .await?;
    Ok(ApiJson(engine.answer(run, request.text).await?))
}

/// Retry a run
///
/// A run of its own, with the same scenario, parameters and options, on all
/// nodes of the old one or on those that did not succeed. A node whose machine
/// was replaced is taken under its name. With `wait` the answer comes when it
/// has ended, as for a new run.
#[utoipa::path(
    post,
    path = "/v1/runs/{run}/retry",
    tag = "runs",
    request_body = RetryRequest,
    params(
        ("run" = String, Path, pattern = "^[0-9a-z]{4,26}$", description = "Its id, or a beginning of at least four characters"),
        WaitQuery,
        ("Idempotency-Key" = Option<String>, Header, description = "Names this request; at most 200 bytes"),
    ),
    responses(
        (status = 200, description = "The new run, begun; with `wait` as it was when it ended or the time was over", body = RunView),
        (status = 404, description = "There is no such run", body = Problem),
        (status = 409, description = "It has not ended, or the prefix stands for several runs", body = Problem),
        (status = 422, description = "No node is left to retry", body = Problem),
        (status = 428, description = "It needs a confirmation; `plan` says of what", body = Problem),
    ),
    security(("bearer" = [])),
    extensions(("x-authorisation" = json!("retry runs"))),
)]
async fn retry(
    State(state): State<AppState>,
    caller: Caller,
    ApiQuery(query): ApiQuery<WaitQuery>,
    Extension(slot): Extension<Slot>,
    headers: HeaderMap,
    ApiPath(run): ApiPath<String>,
    ApiJson(request): ApiJson<RetryRequest>,
) -> Result<ApiJson<RunView>, ApiError> {
    let wait = query.get()?;
    let run = state
        .authorize(&caller, Action::RetryRun, run)
        .await?
        .into_inner();
    let engine = &state.nodes.engine;
    let run = engine.lookup(&run)?;
    let asked = asked(&caller, "retry", &headers)?;
    let submitted = state.submit.retry(&caller, run, request, asked).await?;
    ended(&state, &slot, answer(&state, submitted)?, wait).await
}

/// Plan what a dry run has shown
///
/// When a dry run has ended: a plan of exactly its nodes. Confirmed, it runs
/// where a node would still change the same; the others decline. Only for the
/// one who asked for the dry run, and only as long as the broker remembers it.
#[utoipa::path(
    post,
    path = "/v1/runs/{run}/plan",
    tag = "runs",
    params(("run" = String, Path, pattern = "^[0-9a-z]{4,26}$", description = "Its id, or a beginning of at least four characters")),
    responses(
        (status = 200, description = "The plan", body = Plan),
        (status = 404, description = "There is no such run", body = Problem),
        (status = 409, description = "It was no dry run, or has not ended", body = Problem),
        (status = 410, description = "It is not remembered any more", body = Problem),
    ),
    security(("bearer" = [])),
    extensions(("x-authorisation" = json!("run anything"))),
)]
async fn plan(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath(run): ApiPath<String>,
) -> Result<ApiJson<Plan>, ApiError> {
    let run = state
        .authorize(&caller, Action::ReadRuns, run)
        .await?
        .into_inner();
    let run = state.nodes.engine.lookup(&run)?;
    Ok(ApiJson(state.submit.plan_of(&caller, run).await?))
}

/// Confirm a run
///
/// One that was asked for with `"confirm": "later"`, before its time is over.
/// Whoever may run it may confirm it.
#[utoipa::path(
    post,
    path = "/v1/runs/{run}/confirm",
    tag = "runs",
    params(("run" = String, Path, pattern = "^[0-9a-z]{4,26}$", description = "Its id, or a beginning of at least four characters")),
    responses(
        (status = 200, description = "The run, confirmed", body = RunView),
        (status = 404, description = "There is no such run", body = Problem),
        (status = 409, description = "It waits for no confirmation, or it is too late", body = Problem),
    ),
    security(("bearer" = [])),
    extensions(("x-authorisation" = json!("run anything"))),
)]
async fn confirm(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath(run): ApiPath<String>,
) -> Result<ApiJson<RunView>, ApiError> {
    wish(&state, &caller, &run, Wish::Confirm)
        .await
        .map(ApiJson)
}

/// Approve a run
///
/// Where its scenario wants others to agree: anybody who may run it, but not
/// the one who asked for it. Twice by the same one counts once.
#[utoipa::path(
    post,
    path = "/v1/runs/{run}/approve",
    tag = "runs",
    params(("run" = String, Path, pattern = "^[0-9a-z]{4,26}$", description = "Its id, or a beginning of at least four characters")),
    responses(
        (status = 200, description = "The run, approved", body = RunView),
        (status = 403, description = "It is the caller's own", body = Problem),
        (status = 404, description = "There is no such run", body = Problem),
        (status = 409, description = "It waits for no approval", body = Problem),
    ),
    security(("bearer" = [])),
    extensions(("x-authorisation" = json!("run anything"))),
)]
async fn approve(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath(run): ApiPath<String>,
) -> Result<ApiJson<RunView>, ApiError> {
    wish(&state, &caller, &run, Wish::Approve)
        .await
        .map(ApiJson)
}

/// Pause a run
///
/// What was sent goes on to its end; nothing new is sent until somebody
/// resumes it. It stays paused when the broker is started again.
#[utoipa::path(
    post,
    path = "/v1/runs/{run}/pause",
    tag = "runs",
    params(("run" = String, Path, pattern = "^[0-9a-z]{4,26}$", description = "Its id, or a beginning of at least four characters")),
    responses(
        (status = 200, description = "The run, paused", body = RunView),
        (status = 404, description = "There is no such run", body = Problem),
        (status = 409, description = "It has ended or is being cancelled", body = Problem),
    ),
    security(("bearer" = [])),
    extensions(("x-authorisation" = json!("cancel runs"))),
)]
async fn pause(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath(run): ApiPath<String>,
) -> Result<ApiJson<RunView>, ApiError> {
    wish(&state, &caller, &run, Wish::Pause).await.map(ApiJson)
}

/// Resume a run
#[utoipa::path(
    post,
    path = "/v1/runs/{run}/resume",
    tag = "runs",
    params(("run" = String, Path, pattern = "^[0-9a-z]{4,26}$", description = "Its id, or a beginning of at least four characters")),
    responses(
        (status = 200, description = "The run, which goes on", body = RunView),
        (status = 404, description = "There is no such run", body = Problem),
        (status = 409, description = "It is not paused", body = Problem),
    ),
    security(("bearer" = [])),
    extensions(("x-authorisation" = json!("cancel runs"))),
)]
async fn resume(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath(run): ApiPath<String>,
) -> Result<ApiJson<RunView>, ApiError> {
    wish(&state, &caller, &run, Wish::Resume).await.map(ApiJson)
}

/// Does what somebody wants of a run. Who lets it begin has to be one who may
/// run it.
pub(crate) async fn wish(
    state: &AppState,
    caller: &Caller,
    run: &str,
    wish: Wish,
) -> Result<RunView, ApiError> {
    let engine = &state.nodes.engine;
    state.admit(caller, Action::ReadRuns).await?;
    let run = engine.lookup(run)?;
    let action = match wish {
        Wish::Pause | Wish::Resume => Action::CancelRun,
        Wish::Confirm | Wish::Approve => {
            let run = engine.state(run).await?;
            Action::CreateRun(Box::new(RunAsk::of_state(&run)))
        }
    };
    let run = state.authorize(caller, action, run).await?;
    Ok(engine.wish(run, wish).await?)
}

/// What is answered to whoever asked for a run.
pub(super) fn answer(state: &AppState, submitted: Submitted) -> Result<ApiJson<RunView>, ApiError> {
    let plan = match submitted {
        Submitted::Run(run) => return Ok(ApiJson(*run)),
        Submitted::Confirm(plan) => plan,
    };
    let above = state.nodes.settings.confirm_above;
    let (count, what) = (plan.nodes.len(), &plan.title);
    let title = if count > above as usize {
        let on = &plan.predicate;
        format!(
            "{count} nodes match {on}; running `{what}` on more than {above} needs a confirmation"
        )
    } else {
        format!("`{what}` is only run once somebody has confirmed what it would do")
    };
    let mut problem = Problem::new(Kind::ConfirmationRequired, title)
        .hint("send the request again with the plan's id, or with `\"confirm\": \"yes\"`");
    problem.plan = serde_json::to_value(&plan).ok();
    Err(problem.into())
}

/// How long to wait for the end of a run.
#[derive(Clone, Copy, Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct WaitQuery {
    /// Answer when the run has ended, or when so much time is over, like
    /// `60s`; at most 10m. At once when absent.
    #[param(value_type = Option<String>, example = "60s")]
    wait: Option<Span>,
}

impl WaitQuery {
    fn get(self) -> Result<Duration, ApiError> {
        let wait = self.wait.map_or(Duration::ZERO, Span::get);
        if wait > LONGEST_WAIT {
            let most = Span::from_secs(LONGEST_WAIT.as_secs());
            return Err(
                ApiError::new(Kind::InvalidRequest, format!("`wait` is at most {most}"))
                    .hint("ask again with the same Idempotency-Key to wait on"),
            );
        }
        Ok(wait)
    }
}

/// The run once it has ended, or as it is when that time is over. Whoever
/// waits does not take the place of those who ask.
async fn ended(
    state: &AppState,
    slot: &Slot,
    answer: ApiJson<RunView>,
    wait: Duration,
) -> Result<ApiJson<RunView>, ApiError> {
    let run = answer.0.brief.id;
    let engine = &state.nodes.engine;
    if wait.is_zero() || engine.has_ended(run) {
        return Ok(answer);
    }
    slot.give_back();
    // The run has begun: who finds no place to wait is told how it stands.
    let Ok(_place) = watcher(state) else {
        return Ok(answer);
    };
    let until = async {
        while !engine.has_ended(run) {
            sleep(LOOK).await;
        }
    };
    let mut lapses = state.lapses();
    tokio::select! {
        _ = timeout(wait, until) => {}
        // The run goes on at another broker.
        _ = lapses.changed() => return Err(super::problem::not_active()),
        () = state.shutdown.cancelled() => return Err(super::problem::not_active()),
    }
    Ok(ApiJson(engine.show(run).await?))
}

/// Under which id this is asked for: the journal then holds it once, also when
/// two requests race or this broker starts again in between.
pub(super) fn asked(caller: &Caller, route: &str, headers: &HeaderMap) -> Result<Asked, ApiError> {
    let named = named_run(caller, route, headers)?;
    Ok(named.map_or_else(Asked::once, Asked::under))
}

#[cfg(test)]
mod tests;
