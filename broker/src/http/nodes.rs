//! Nodes.

use std::collections::HashMap;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use muster_protocol::api::{
    Condition, Invite, NodeChange, NodeChanged, NodeView, Page, Presence, ReplaceRequest,
};
use muster_protocol::ids::Serial;
use muster_protocol::names::NodeName;
use muster_protocol::predicate::Predicate;
use muster_protocol::problem::{Kind, Problem};
use serde::Deserialize;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::matching::refused;
use super::once::once;
use super::{ApiError, ApiJson, ApiPath, ApiQuery, AppState, Paging, finish, page};
use crate::authz::{Action, Caller};
use crate::inventory::{Inventory, NodeRecord, PresenceView, Standing};
use crate::resolve::parse;

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(show, change, remove))
        .routes(routes!(replace))
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct Filter {
    /// A predicate; all nodes when absent.
    #[serde(default, rename = "match")]
    matching: Option<String>,
    /// Names in it that no node has are meant.
    #[serde(default)]
    allow_unknown: bool,
    /// `next` of the page before.
    #[serde(default)]
    cursor: Option<String>,
    /// Nodes on a page, 1 to 1000; 100 when absent.
    #[serde(default)]
    limit: Option<u32>,
}

/// Nodes by name, all or those that match.
#[utoipa::path(
    get, path = "/v1/nodes", tag = "nodes", params(Filter), security(("bearer" = [])),
    responses(
        (status = 200, body = Page<NodeView>),
        (status = 400, description = "the predicate has an error", body = Problem),
        (status = 422, description = "the predicate names what no node has", body = Problem),
    ),
    extensions(("x-authorisation" = json!("read nodes")))
)]
async fn list(
    State(state): State<AppState>,
    caller: Caller,
    ApiQuery(filter): ApiQuery<Filter>,
) -> Result<ApiJson<Page<NodeView>>, ApiError> {
    state.authorize(&caller, Action::ReadNodes, ()).await?;
    let snapshot = state.inventory.snapshot();
    let predicate = match &filter.matching {
        None => Predicate::all(),
        Some(text) => parse(text, &snapshot, filter.allow_unknown).map_err(|e| refused(&e))?,
    };
    let mut nodes: Vec<_> = snapshot
        .iter()
        .filter(|node| predicate.matches(&***node))
        .collect();
    nodes.sort_by(|a, b| a.assignment.name.cmp(&b.assignment.name));
    let paging = Paging {
        cursor: filter.cursor,
        limit: filter.limit,
    };
    let part = page(nodes, |node| node.assignment.name.to_string(), &paging)?;
    let items = part
        .items
        .into_iter()
        .map(|node| view(node, state.control.presence(node.serial), &state.inventory))
        .collect();
    Ok(ApiJson(Page {
        items,
        next: part.next,
    }))
}

/// One node.
#[utoipa::path(
    get, path = "/v1/nodes/{name}", tag = "nodes", params(("name" = NodeName, Path)),
    security(("bearer" = [])),
    responses((status = 200, body = NodeView), (status = 404, body = Problem)),
    extensions(("x-authorisation" = json!("read nodes")))
)]
async fn show(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath(name): ApiPath<String>,
) -> Result<ApiJson<NodeView>, ApiError> {
    state.authorize(&caller, Action::ReadNodes, ()).await?;
    let name = node_name(&name)?;
    let snapshot = state.inventory.snapshot();
    let node = snapshot.by_name(&name).ok_or_else(|| no_node(&name))?;
    Ok(ApiJson(view(
        node,
        state.control.presence(node.serial),
        &state.inventory,
    )))
}

/// Changes roles and labels, all or nothing, and waits a few seconds for the
/// node to take it up.
#[utoipa::path(
    patch, path = "/v1/nodes/{name}", tag = "nodes", params(("name" = NodeName, Path)),
    request_body = NodeChange, security(("bearer" = [])),
    responses((status = 200, body = NodeChanged), (status = 400, body = Problem), (status = 404, body = Problem)),
    extensions(("x-authorisation" = json!("change roles and labels of nodes")))
)]
async fn change(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath(name): ApiPath<String>,
    ApiJson(change): ApiJson<NodeChange>,
) -> Result<ApiJson<NodeChanged>, ApiError> {
    state.active()?;
    let name = node_name(&name)?;
    let change = state
        .authorize(&caller, Action::ChangeNodes, change)
        .await?
        .into_inner();
    let by = caller.principal.as_str();
    let done = {
        let (state, name, by) = (state.clone(), name.clone(), by.to_owned());
        finish(async move {
            state
                .inventory
                .change(&name, &change, &*state.control, &by)
                .await
        })
        .await?
    };
    let node = view(
        &done.node,
        state.control.presence(done.node.serial),
        &state.inventory,
    );
    Ok(ApiJson(NodeChanged {
        node,
        applied: done.applied,
    }))
}

/// Removes a node: its connections end, its key is refused for ever.
#[utoipa::path(
    delete, path = "/v1/nodes/{name}", tag = "nodes", params(("name" = NodeName, Path)),
    security(("bearer" = [])),
    responses((status = 204), (status = 404, body = Problem)),
    extensions(("x-authorisation" = json!("remove or replace nodes")))
)]
async fn remove(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath(name): ApiPath<String>,
) -> Result<StatusCode, ApiError> {
    state.active()?;
    let name = node_name(&name)?;
    state.authorize(&caller, Action::RemoveNodes, ()).await?;
    let by = caller.principal.to_string();
    finish(async move { state.inventory.remove(&name, &*state.control, &by).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// An invite by which a new key takes the place of a node, with its name,
/// roles and labels. The old key works until the invite is used.
#[utoipa::path(
    post, path = "/v1/nodes/{name}/replace", tag = "nodes",
    params(("name" = NodeName, Path), ("Idempotency-Key" = Option<String>, Header, description = "Names this request; at most 200 bytes")),
    request_body = ReplaceRequest, security(("bearer" = [])),
    responses((status = 201, body = Invite), (status = 404, body = Problem)),
    extensions(("x-authorisation" = json!("remove or replace nodes")))
)]
async fn replace(
    State(state): State<AppState>,
    caller: Caller,
    headers: HeaderMap,
    ApiPath(name): ApiPath<String>,
    ApiJson(request): ApiJson<ReplaceRequest>,
) -> Result<(StatusCode, ApiJson<Invite>), ApiError> {
    state.active()?;
    let name = node_name(&name)?;
    state.authorize(&caller, Action::RemoveNodes, ()).await?;
    let asked = (name.clone(), request.clone());
    let (enrolment, by) = (state.enrolment.clone(), caller.principal.clone());
    let work = async move {
        enrolment
            .invite_replacement(&name, request.expires, &by)
            .await
    };
    let invite = Box::pin(once(&state, &caller, "replace", &headers, &asked, work)).await?;
    Ok((StatusCode::CREATED, ApiJson(invite)))
}

pub(super) fn node_name(text: &str) -> Result<NodeName, ApiError> {
    text.parse()
        .map_err(|e: muster_protocol::names::NameError| {
            ApiError::new(Kind::InvalidRequest, e.to_string())
        })
}

fn no_node(name: &NodeName) -> ApiError {
    ApiError::new(Kind::NotFound, format!("there is no node {name}"))
        .hint("`muster nodes` lists them")
}

/// A node as people see it: what is stored, and what is known of its presence.
pub(super) fn view(node: &NodeRecord, presence: PresenceView, inventory: &Inventory) -> NodeView {
    let mut conditions = presence.conditions;
    let mut state = presence.state;
    if let Standing::Quarantined { reason, .. } = &node.standing {
        state = Presence::Down;
        add(&mut conditions, Condition::Cloned);
        add(
            &mut conditions,
            Condition::Note {
                text: reason.clone(),
            },
        );
    } else if let Some(revision) = presence.revision
        && revision < node.assignment.revision
        && !conditions
            .iter()
            .any(|c| matches!(c, Condition::Stale { .. }))
    {
        conditions.push(Condition::Stale { revision });
    }
    for note in &node.notes {
        add(
            &mut conditions,
            Condition::Note {
                text: muster_protocol::text::printable(note, 300),
            },
        );
    }
    let last_seen = presence
        .last_seen
        .max(inventory.last_seen(node.serial))
        .max(node.last_seen);
    // "Never seen" is only said of a node that nobody ever heard.
    if state == Presence::Never && last_seen.is_some() {
        state = Presence::Down;
    }
    let agent = inventory.agent(node.serial);
    NodeView {
        name: node.assignment.name.clone(),
        serial: node.serial,
        roles: node.assignment.roles.clone(),
        labels: node.assignment.labels.clone(),
        facts: (*node.facts).clone(),
        state,
        last_seen,
        version: presence.version.or_else(|| {
            agent
                .as_ref()
                .map(|agent| agent.version.clone())
                .filter(|version| !version.is_empty())
        }),
        agent: agent.map(|agent| (*agent).clone()),
        infrastructure: node.infrastructure,
        enrolled: node.enrolled,
        key: node.node_key.fingerprint(),
        conditions,
    }
}

fn add(conditions: &mut Vec<Condition>, condition: Condition) {
    if !conditions.contains(&condition) {
        conditions.push(condition);
    }
}

/// How many nodes have each presence.
pub(super) fn count(
    inventory: &Inventory,
    presences: &HashMap<Serial, PresenceView>,
) -> std::collections::BTreeMap<Presence, u32> {
    let mut counts = std::collections::BTreeMap::new();
    for node in inventory.snapshot().iter() {
        let known = presences
            .get(&node.serial)
            .map_or(Presence::Never, |p| p.state);
        let state = match known {
            _ if !node.is_active() => Presence::Down,
            Presence::Never if inventory.last_seen(node.serial).is_some() => Presence::Down,
            state => state,
        };
        *counts.entry(state).or_insert(0) += 1;
    }
    counts
}
