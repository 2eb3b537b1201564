//! `/v1/runs`: create, list, show, cancel, retry.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::http::HeaderMap;
use muster_protocol::api::{Confirm, Page, Plan, RetryRequest, RunBrief, RunRequest, RunView};
use muster_protocol::ids::{PlanId, RunId, Serial};
use muster_protocol::names::LabelKey;
use muster_protocol::predicate::Predicate;
use muster_protocol::problem::{Kind, Problem};
use muster_protocol::run::{NodePhase, Outcome, RunState, Target};
use muster_protocol::text::printable;
use muster_protocol::units::Timestamp;
use muster_scenarios::Builtin;
use muster_scenarios::upgrade::{self, Upgrade, UpgradeRequest};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{ApiError, ApiJson, ApiPath, ApiQuery, AppState, finish};
use crate::authz::{Action, Caller};
use crate::fit::judge;
use crate::inventory::Snapshot;
use crate::plans::{RequestHash, Taken};
use crate::resolve::resolve;
use crate::runs::{self, CreateError, EngineError, FrozenRun, cursor, parse_cursor};

/// Header under which a client repeats a request without running it twice.
const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// Longest such key, in bytes.
const LONGEST_KEY: usize = 200;
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
#[utoipa::path(
    post,
    path = "/v1/runs",
    tag = "runs",
    request_body = RunRequest,
    params(("Idempotency-Key" = Option<String>, Header, description = "Names this request; at most 200 bytes")),
    responses(
        (status = 200, description = "The run, begun", body = RunView),
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
    headers: HeaderMap,
    ApiJson(mut request): ApiJson<RunRequest>,
) -> Result<ApiJson<RunView>, ApiError> {
    complete(&state, &mut request)?;
    let id = match idempotency_key(&headers)? {
        None => RunId::random(),
        Some(key) => derived_id(&caller, "run", key),
    };
    let checked = runs::check(&request).map_err(|error| ApiError::from(error.problem()))?;
    if idempotency_key(&headers)?.is_some() {
        let same = |old: &RunView| {
            old.params == request.params
                && old.brief.scenario == request.scenario
                && old.options == *checked.options()
                && same_predicate(&old.brief.predicate, &request.predicate)
        };
        if let Some(run) = repeated(&state, &caller, id, same).await? {
            return Ok(ApiJson(run));
        }
    }
    let hash = RequestHash::of(&(
        "run",
        &RunRequest {
            confirm: Confirm::Ask,
            ..request.clone()
        },
    ));
    let keyed = idempotency_key(&headers)?.is_some();
    let (frozen, plan) = match &request.confirm {
        Confirm::Plan(plan) => match confirmed(&state, &caller, *plan, hash, keyed)? {
            Confirmed::Now(taken) => (taken.run().clone(), Some(*taken)),
            Confirmed::Before(run) => return shown(&state, &caller, run).await,
        },
        Confirm::Ask | Confirm::Yes => {
            let snapshot = state.inventory.snapshot();
            let resolved = resolve(&request.predicate, &snapshot, runs::options(&request))
                .map_err(|error| ApiError::from(error.problem()))?;
            let by = (&caller.principal, caller.door);
            let frozen = checked.freeze(&request, &resolved, id, by, Timestamp::now());
            (frozen, None)
        }
    };
    begin(&state, &caller, &request.confirm, hash, (frozen, plan))
        .await
        .map(ApiJson)
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
        .authorize(&caller, Action::ReadRuns, query)?
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
    let (items, more) = state.nodes.engine.list(before, limit)?;
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
}

/// Show a run
///
/// With its nodes, as it is now.
#[utoipa::path(
    get,
    path = "/v1/runs/{run}",
    tag = "runs",
    params(("run" = String, Path, description = "Its id, or a beginning of at least four characters")),
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
        .authorize(&caller, Action::ReadRuns, run)?
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
    params(("run" = String, Path, description = "Its id, or a beginning of at least four characters")),
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
    let run = state
        .authorize(&caller, Action::CancelRun, run)?
        .into_inner();
    let engine = &state.nodes.engine;
    let run = state.authorize(&caller, Action::CancelRun, engine.lookup(&run)?)?;
    Ok(ApiJson(engine.cancel(run).await?))
}

/// Retry a run
///
/// A run of its own, with the same scenario, parameters and options, on all
/// nodes of the old one or on those that did not succeed. A node whose machine
/// was replaced is taken under its name.
#[utoipa::path(
    post,
    path = "/v1/runs/{run}/retry",
    tag = "runs",
    request_body = RetryRequest,
    params(
        ("run" = String, Path, description = "Its id, or a beginning of at least four characters"),
        ("Idempotency-Key" = Option<String>, Header, description = "Names this request; at most 200 bytes"),
    ),
    responses(
        (status = 200, description = "The new run, begun", body = RunView),
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
    headers: HeaderMap,
    ApiPath(run): ApiPath<String>,
    ApiJson(request): ApiJson<RetryRequest>,
) -> Result<ApiJson<RunView>, ApiError> {
    let run = state
        .authorize(&caller, Action::RetryRun, run)?
        .into_inner();
    let engine = &state.nodes.engine;
    let run = engine.lookup(&run)?;
    let keyed = idempotency_key(&headers)?.is_some();
    let id = match idempotency_key(&headers)? {
        None => RunId::random(),
        Some(key) => {
            let id = derived_id(&caller, "retry", key);
            let same = |old: &RunView| old.brief.retry_of == Some(run);
            if let Some(run) = repeated(&state, &caller, id, same).await? {
                return Ok(ApiJson(run));
            }
            id
        }
    };
    let hash = RequestHash::of(&(
        "retry",
        run,
        &RetryRequest {
            confirm: Confirm::Ask,
            ..request.clone()
        },
    ));
    let (frozen, plan) = match &request.confirm {
        Confirm::Plan(plan) => match confirmed(&state, &caller, *plan, hash, keyed)? {
            Confirmed::Now(taken) => (taken.run().clone(), Some(*taken)),
            Confirmed::Before(run) => return shown(&state, &caller, run).await,
        },
        Confirm::Ask | Confirm::Yes => {
            let old = engine.state(run).await?;
            if !old.phase.is_final() {
                return Err(ApiError::new(
                    Kind::Conflict,
                    format!("run {} has not ended", run.short()),
                )
                .hint("wait for its end, or cancel it"));
            }
            let targets = chosen(&old, &request, &state.inventory.snapshot());
            if targets.is_empty() {
                let title = format!(
                    "no node of run {} is left to retry; nothing was run",
                    run.short()
                );
                return Err(ApiError::new(Kind::NoMatch, title)
                    .hint("nodes where it cannot be said whether it ran need --include-unknown"));
            }
            let by = (&caller.principal, caller.door);
            let frozen = runs::retry(&old, targets, id, by, Timestamp::now());
            (frozen, None)
        }
    };
    begin(&state, &caller, &request.confirm, hash, (frozen, plan))
        .await
        .map(ApiJson)
}

/// Puts what this broker knows of a release into the request to upgrade to
/// it: what is confirmed and signed says it all.
fn complete(state: &AppState, request: &mut RunRequest) -> Result<(), ApiError> {
    if request.scenario.as_str() != upgrade::NAME {
        return Ok(());
    }
    let asked = UpgradeRequest::from_params(&request.params)
        .map_err(|e| ApiError::new(Kind::InvalidRequest, format!("{e}; nothing was run")))?;
    let view = state
        .releases
        .get(asked.release)
        .map_err(|e| ApiError::from(e.problem()))?;
    let whole = Upgrade {
        release: view.id,
        size: view.size,
        about: view.release,
        allow_downgrade: asked.allow_downgrade,
    };
    request.params = serde_json::to_value(whole).map_err(|e| ApiError::internal(&e))?;
    Ok(())
}

/// Refuses a run that some of its nodes' agents could not do.
fn fits(state: &AppState, run: &FrozenRun) -> Result<(), ApiError> {
    let call = Builtin::read(&run.spec.scenario, &run.spec.params)
        .map_err(|e| ApiError::new(Kind::InvalidRequest, format!("{e}; nothing was run")))?;
    let nodes = run
        .targets
        .iter()
        .map(|target| (&target.name, state.inventory.agent(target.serial)));
    judge(&call, nodes).map_err(|unfit| ApiError::from(unfit.problem()))
}

/// The nodes of an ended run that a retry takes, in its order.
fn chosen(old: &RunState, request: &RetryRequest, snapshot: &Snapshot) -> Vec<Target> {
    let wanted = |serial: &Serial| match old.nodes.get(serial).map(|node| &node.phase) {
        Some(NodePhase::Done(result)) => match result.outcome {
            Outcome::Unknown => !request.failed || request.include_unknown,
            Outcome::Succeeded => !request.failed,
            _ => true,
        },
        _ => false,
    };
    old.order
        .iter()
        .filter(|serial| wanted(serial))
        .filter_map(|serial| {
            let name = old.nodes.get(serial)?.name.clone();
            let serial = match snapshot.get(*serial) {
                Some(_) => *serial,
                // A new machine under the old name; a node that was removed
                // stays in, and is then said to be unreachable.
                None => snapshot.by_name(&name).map_or(*serial, |node| node.serial),
            };
            Some(Target { serial, name })
        })
        .collect()
}

/// Authorises a frozen run, asks for a confirmation where one is needed, and
/// creates it.
async fn begin(
    state: &AppState,
    caller: &Caller,
    confirm: &Confirm,
    hash: RequestHash,
    (frozen, taken): (FrozenRun, Option<Taken>),
) -> Result<RunView, ApiError> {
    let action = Action::CreateRun {
        scenario: frozen.spec.scenario.clone(),
        mode: frozen.spec.mode,
        targets: frozen.set(),
    };
    let authorized = state.authorize(caller, action, frozen)?;
    state.active()?;
    fits(state, authorized.get())?;
    let nodes = &state.nodes;
    if *confirm == Confirm::Ask && authorized.get().spec.targets > nodes.settings.confirm_above {
        let plan = plan(state, caller, hash, authorized.into_inner());
        let title = format!(
            "{} nodes match {}; running `{}` on more than {} needs a confirmation",
            plan.nodes.len(),
            plan.predicate,
            plan.title,
            nodes.settings.confirm_above
        );
        let mut problem = Problem::new(Kind::ConfirmationRequired, title)
            .hint("send the request again with the plan's id, or with `\"confirm\": \"yes\"`");
        problem.plan = serde_json::to_value(&plan).ok();
        return Err(problem.into());
    }
    let id = authorized.get().spec.id;
    let engine = nodes.engine.clone();
    // A run that is begun to be written down is written down, also when
    // nobody waits for the answer any more.
    finish(async move {
        let created = match engine.create(authorized).await {
            // The same request came twice at once, or was written down
            // although nobody said so.
            Err(CreateError::Exists(_)) => {
                engine.adopt(id).await?;
                Ok(engine.show(id).await?)
            }
            created => created,
        };
        match created {
            Ok(run) => {
                if let Some(plan) = taken {
                    plan.used();
                }
                Ok(run)
            }
            Err(error) => Err(ApiError::from(error.problem())),
        }
    })
    .await
}

/// What a confirmation stands for.
enum Confirmed {
    /// This is to be run.
    Now(Box<Taken>),
    /// This run, which it has created before.
    Before(RunId),
}

/// Takes a plan. Who repeats a request with a key is told what came of it.
fn confirmed(
    state: &AppState,
    caller: &Caller,
    plan: PlanId,
    hash: RequestHash,
    keyed: bool,
) -> Result<Confirmed, ApiError> {
    let plans = &state.nodes.plans;
    match plans.take(plan, &caller.principal, hash, Timestamp::now()) {
        Ok(taken) => Ok(Confirmed::Now(Box::new(taken))),
        Err(gone) => match plans.used(plan, &caller.principal, hash) {
            Some(run) if keyed => Ok(Confirmed::Before(run)),
            _ => Err(gone.problem().into()),
        },
    }
}

async fn shown(
    state: &AppState,
    caller: &Caller,
    run: RunId,
) -> Result<ApiJson<RunView>, ApiError> {
    state.authorize(caller, Action::ReadRuns, ())?;
    Ok(ApiJson(state.nodes.engine.show(run).await?))
}

/// Keeps a run as a plan.
fn plan(state: &AppState, caller: &Caller, hash: RequestHash, frozen: FrozenRun) -> Plan {
    let snapshot = state.inventory.snapshot();
    let mut labels: BTreeMap<LabelKey, BTreeMap<String, u32>> = BTreeMap::new();
    for target in &frozen.targets {
        let Some(node) = snapshot.get(target.serial) else {
            continue;
        };
        for (key, value) in &node.assignment.labels {
            *labels
                .entry(key.clone())
                .or_default()
                .entry(value.to_string())
                .or_default() += 1;
        }
    }
    let title = frozen.spec.title.clone();
    let predicate = frozen.spec.predicate.clone();
    let left_out = frozen.spec.left_out;
    let nodes = frozen
        .targets
        .iter()
        .map(|target| target.name.clone())
        .collect();
    let (id, expires) = state
        .nodes
        .plans
        .keep(&caller.principal, hash, frozen, Timestamp::now());
    Plan {
        id,
        title,
        predicate,
        nodes,
        labels,
        left_out,
        expires,
    }
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    let Some(value) = headers.get(IDEMPOTENCY_KEY) else {
        return Ok(None);
    };
    match value.to_str() {
        Ok(key) if !key.is_empty() && key.len() <= LONGEST_KEY => Ok(Some(key)),
        _ => Err(ApiError::new(
            Kind::InvalidRequest,
            format!("an Idempotency-Key has 1 to {LONGEST_KEY} printable characters"),
        )),
    }
}

/// The id of the run that a principal asks for under that key: the journal
/// then holds it once, also when two requests race or this broker starts
/// again in between.
fn derived_id(caller: &Caller, route: &str, key: &str) -> RunId {
    let mut hash = Sha256::new();
    hash.update(b"muster idempotency key 1\0");
    hash.update(route);
    hash.update(b"\0");
    hash.update(caller.principal.as_str());
    hash.update(b"\0");
    hash.update(key);
    let digest: [u8; 32] = hash.finalize().into();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    RunId::from_bytes(bytes)
}

/// Whether a predicate is the one that a run was resolved from.
fn same_predicate(canonical: &str, text: &str) -> bool {
    text.parse::<Predicate>()
        .is_ok_and(|predicate| predicate.text() == canonical)
}

/// The run that the same request has created before.
async fn repeated(
    state: &AppState,
    caller: &Caller,
    id: RunId,
    same: impl Fn(&RunView) -> bool,
) -> Result<Option<RunView>, ApiError> {
    let engine = &state.nodes.engine;
    match engine.lookup(&id.to_string()) {
        Ok(_) => {}
        Err(EngineError::Lookup(_)) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    state.authorize(caller, Action::ReadRuns, ())?;
    let old = engine.show(id).await?;
    if !same(&old) {
        return Err(ApiError::new(
            Kind::Conflict,
            format!(
                "this Idempotency-Key was used for another request (run {})",
                old.brief.short
            ),
        )
        .hint("use a new key for a new request"));
    }
    Ok(Some(old))
}

#[cfg(test)]
mod tests;
