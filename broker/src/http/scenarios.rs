//! `/v1/scenarios`: the library of stored scenarios.

use std::collections::BTreeMap;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::header::{CONTENT_TYPE, ETAG};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse as _, Response};
use data_encoding::BASE64;
use muster_protocol::api::{
    Page, PutScenario, RollbackScenario, ScenarioFile, ScenarioStored, ScenarioVersion,
    ScenarioView,
};
use muster_protocol::names::ScenarioName;
use muster_protocol::problem::{Kind, Problem};
use muster_scenarios::bundle::{Bundle, BundleError, MAX_BYTES, SCRIPT};
use serde::Deserialize;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::once::once;
use super::problem::{ApiJson, Object};
use super::{ApiError, ApiPath, ApiQuery, AppState, finish};
use crate::authz::{Action, Caller};
use crate::library::{LibraryError, Loaded, Put, Remove, Rollback, Version};

/// Largest body: a bundle in JSON, its files in base64.
const LARGEST: usize = MAX_BYTES * 4 / 3 + (1 << 20);

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(show, put, remove))
        .routes(routes!(bundle))
        .routes(routes!(history))
        .routes(routes!(rollback))
        .layer(DefaultBodyLimit::max(LARGEST))
}

fn scenario_name(text: &str) -> Result<ScenarioName, ApiError> {
    text.parse()
        .map_err(|e: muster_protocol::names::NameError| {
            ApiError::new(Kind::InvalidRequest, e.to_string())
        })
}

/// Stored scenarios, each in its newest version, by name. Version 0 came with
/// muster.
#[utoipa::path(
    get, path = "/v1/scenarios", tag = "scenarios", security(("bearer" = [])),
    responses((status = 200, body = Page<ScenarioVersion>)),
    extensions(("x-authorisation" = json!("read scenarios")))
)]
async fn list(
    State(state): State<AppState>,
    caller: Caller,
) -> Result<ApiJson<Page<ScenarioVersion>>, ApiError> {
    state.authorize(&caller, Action::ReadScenarios, ()).await?;
    let items = state.library.list();
    Ok(ApiJson(Page {
        items: items.iter().map(crate::library::Version::view).collect(),
        next: None,
    }))
}

/// Which version.
#[derive(Clone, Copy, Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct VersionQuery {
    /// Its number; the newest when absent.
    version: Option<u32>,
}

async fn load(
    state: &AppState,
    caller: &Caller,
    name: &str,
    query: VersionQuery,
) -> Result<std::sync::Arc<Loaded>, ApiError> {
    state.authorize(caller, Action::ReadScenarios, ()).await?;
    let name = scenario_name(name)?;
    Ok(state.library.load(&name, query.version).await?)
}

/// A stored scenario: what it is for, what it takes, on which nodes, its
/// functions and files.
#[utoipa::path(
    get, path = "/v1/scenarios/{name}", tag = "scenarios",
    params(("name" = ScenarioName, Path), VersionQuery), security(("bearer" = [])),
    responses(
        (status = 200, body = ScenarioView),
        (status = 404, description = "there is no such scenario or version", body = Problem),
    ),
    extensions(("x-authorisation" = json!("read scenarios")))
)]
async fn show(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath(name): ApiPath<String>,
    ApiQuery(query): ApiQuery<VersionQuery>,
) -> Result<ApiJson<ScenarioView>, ApiError> {
    let loaded = load(&state, &caller, &name, query).await?;
    let bundle = &loaded.bundle;
    let mut files: BTreeMap<&str, usize> = bundle
        .files()
        .iter()
        .map(|(path, data)| (path.as_str(), data.len()))
        .collect();
    files.insert(SCRIPT, bundle.script().len());
    Ok(ApiJson(ScenarioView {
        newest: state.library.newest(&loaded.version.name),
        version: loaded.version.view(),
        manifest: loaded.manifest.view(),
        files: files
            .into_iter()
            .map(|(path, bytes)| ScenarioFile {
                path: path.to_owned(),
                bytes: bytes as u64,
            })
            .collect(),
    }))
}

/// The packed bundle of a stored scenario; `ETag` holds its hash, which is
/// that of the bytes.
#[utoipa::path(
    get, path = "/v1/scenarios/{name}/bundle", tag = "scenarios",
    params(("name" = ScenarioName, Path), VersionQuery), security(("bearer" = [])),
    responses(
        (status = 200, description = "the bytes", content_type = "application/octet-stream"),
        (status = 404, description = "there is no such scenario or version", body = Problem),
    ),
    extensions(("x-authorisation" = json!("read scenarios")))
)]
async fn bundle(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath(name): ApiPath<String>,
    ApiQuery(query): ApiQuery<VersionQuery>,
) -> Result<Response, ApiError> {
    let loaded = load(&state, &caller, &name, query).await?;
    let tag = format!("\"{}\"", loaded.version.hash);
    let tag = HeaderValue::from_str(&tag).map_err(|e| ApiError::internal(&e))?;
    let kind = HeaderValue::from_static("application/octet-stream");
    let headers = [(CONTENT_TYPE, kind), (ETAG, tag)];
    Ok((headers, loaded.bundle.pack()).into_response())
}

/// About a change, beside its content.
#[derive(Clone, Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ChangeQuery {
    /// The version that the change is made from: refused when that is not the
    /// newest one any more. 0 where there is none yet.
    expect: Option<u32>,
    /// Why, for the history.
    note: Option<String>,
}

/// Stores a new version of a scenario, if it has no mistake. The body is JSON,
/// or a packed bundle as `GET …/bundle` gives it; then `note` and `expect` are
/// in the query. Equal content is not stored again.
#[utoipa::path(
    put, path = "/v1/scenarios/{name}", tag = "scenarios",
    params(("name" = ScenarioName, Path), ChangeQuery, ("Idempotency-Key" = Option<String>, Header, description = "Names this request; at most 200 bytes")),
    request_body(content(
        (PutScenario = "application/json"),
        (String = "application/octet-stream"),
    )),
    security(("bearer" = [])),
    responses(
        (status = 200, description = "what is the newest version now", body = ScenarioStored),
        (status = 400, description = "it has mistakes; `detail` lists all of them", body = Problem),
        (status = 409, description = "somebody else has changed it meanwhile", body = Problem),
        (status = 413, description = "it is too large", body = Problem),
    ),
    extensions(("x-authorisation" = json!("store or remove scenarios")))
)]
async fn put(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath(name): ApiPath<String>,
    ApiQuery(query): ApiQuery<ChangeQuery>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<ApiJson<ScenarioStored>, ApiError> {
    state.authorize(&caller, Action::StoreScenarios, ()).await?;
    state.active()?;
    let name = scenario_name(&name)?;
    let put = read_put(name, query, &headers, &body)?;
    let put = state
        .authorize(&caller, Action::StoreScenarios, put)
        .await?;
    let asked = put.get();
    let again = state.clone();
    let request = (
        asked.name.clone(),
        asked.bundle.hash(),
        asked.note.clone(),
        asked.expect,
    );
    let work = async move {
        let done = state.library.put(put).await;
        done.map(|done| stored(&done))
    };
    let stored = Box::pin(once(&again, &caller, "scenarios", &headers, &request, work)).await?;
    Ok(ApiJson(stored))
}

fn stored((version, new): &(Version, bool)) -> ScenarioStored {
    ScenarioStored {
        version: version.view(),
        new: *new,
    }
}

fn read_put(
    name: ScenarioName,
    query: ChangeQuery,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Put, ApiError> {
    let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    if kind.is_some_and(|kind| kind.starts_with(b"application/json")) {
        let Object(asked): Object<PutScenario> = serde_json::from_slice(body).map_err(|e| {
            let detail = muster_protocol::text::printable(&e.to_string(), 300);
            ApiError::new(Kind::InvalidRequest, "the body cannot be read").detail(detail)
        })?;
        let mut files = BTreeMap::new();
        for (path, text) in asked.files {
            let path = path.parse().map_err(no_bundle)?;
            let data = BASE64.decode(text.as_bytes()).map_err(|_| {
                ApiError::new(
                    Kind::InvalidRequest,
                    format!("the file `{path}` is not base64"),
                )
            })?;
            files.insert(path, data);
        }
        return Ok(Put {
            name,
            bundle: Bundle::new(asked.script, files).map_err(no_bundle)?,
            note: asked.note.or(query.note),
            expect: asked.expect.or(query.expect),
        });
    }
    if kind.is_some_and(|kind| kind != b"application/octet-stream") {
        return Err(ApiError::new(
            Kind::InvalidRequest,
            "the body must be JSON or a packed scenario",
        )
        .hint("send it as `application/json` or `application/octet-stream`")
        .status(415));
    }
    Ok(Put {
        name,
        bundle: Bundle::unpack(body).map_err(LibraryError::from)?,
        note: query.note,
        expect: query.expect,
    })
}

fn no_bundle(error: BundleError) -> ApiError {
    let kind = match error {
        BundleError::TooLarge { .. } => Kind::TooLarge,
        _ => Kind::InvalidRequest,
    };
    ApiError::new(kind, format!("this is no scenario: {error}"))
}

/// Removes a scenario: nobody can run it any more. Its history stays, and a
/// rollback brings it back.
#[utoipa::path(
    delete, path = "/v1/scenarios/{name}", tag = "scenarios",
    params(("name" = ScenarioName, Path), ChangeQuery), security(("bearer" = [])),
    responses(
        (status = 200, description = "the version that is its removal", body = ScenarioStored),
        (status = 404, body = Problem),
        (status = 409, description = "somebody else has changed it meanwhile", body = Problem),
    ),
    extensions(("x-authorisation" = json!("store or remove scenarios")))
)]
async fn remove(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath(name): ApiPath<String>,
    ApiQuery(query): ApiQuery<ChangeQuery>,
) -> Result<ApiJson<ScenarioStored>, ApiError> {
    let remove = Remove {
        name: scenario_name(&name)?,
        note: query.note,
        expect: query.expect,
    };
    let remove = state
        .authorize(&caller, Action::StoreScenarios, remove)
        .await?;
    state.active()?;
    let version = finish(async move { state.library.remove(remove).await }).await?;
    Ok(ApiJson(ScenarioStored { version, new: true }))
}

/// All versions of a scenario, the newest first.
#[utoipa::path(
    get, path = "/v1/scenarios/{name}/history", tag = "scenarios",
    params(("name" = ScenarioName, Path)), security(("bearer" = [])),
    responses(
        (status = 200, body = Page<ScenarioVersion>),
        (status = 404, body = Problem),
    ),
    extensions(("x-authorisation" = json!("read scenarios")))
)]
async fn history(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath(name): ApiPath<String>,
) -> Result<ApiJson<Page<ScenarioVersion>>, ApiError> {
    state.authorize(&caller, Action::ReadScenarios, ()).await?;
    let items = state.library.history(&scenario_name(&name)?)?;
    Ok(ApiJson(Page { items, next: None }))
}

/// Makes the content of an old version the newest one, under a new number.
#[utoipa::path(
    post, path = "/v1/scenarios/{name}/rollback", tag = "scenarios",
    params(("name" = ScenarioName, Path), ("Idempotency-Key" = Option<String>, Header, description = "Names this request; at most 200 bytes")),
    request_body = RollbackScenario,
    security(("bearer" = [])),
    responses(
        (status = 200, description = "what is the newest version now", body = ScenarioStored),
        (status = 404, description = "there is no such version, or its files are not kept any more", body = Problem),
        (status = 409, description = "somebody else has changed it meanwhile", body = Problem),
    ),
    extensions(("x-authorisation" = json!("store or remove scenarios")))
)]
async fn rollback(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath(name): ApiPath<String>,
    headers: HeaderMap,
    ApiJson(asked): ApiJson<RollbackScenario>,
) -> Result<ApiJson<ScenarioStored>, ApiError> {
    let rollback = Rollback {
        name: scenario_name(&name)?,
        version: asked.version,
        note: asked.note,
        expect: asked.expect,
    };
    let rollback = state
        .authorize(&caller, Action::StoreScenarios, rollback)
        .await?;
    state.active()?;
    let asked = rollback.get();
    let request = (
        asked.name.clone(),
        asked.version,
        asked.note.clone(),
        asked.expect,
    );
    let again = state.clone();
    let work = async move {
        let done = state.library.rollback(rollback).await;
        done.map(|done| stored(&done))
    };
    let stored = Box::pin(once(
        &again,
        &caller,
        "scenario-rollback",
        &headers,
        &request,
        work,
    ))
    .await?;
    Ok(ApiJson(stored))
}
