//! `/v1/firewall/nodes`, and what nodes ask about their own firewalls.

use axum::extract::{Extension, State};
use axum::http::HeaderMap;
use muster_protocol::api::{NodeFirewallAsk, RunRequest, RunView};
use muster_protocol::firewall::{AddressesRequest, ConfirmRequest, Confirmation, RoleAddresses};
use muster_protocol::names::NodeName;
use muster_protocol::problem::{Kind, Problem};
use serde_json::json;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::nodes::node_name;
use super::runs::{answer, asked};
use super::{ApiError, ApiJson, ApiPath, AppState, OpenDoor, RemoteAddr};
use crate::authz::Caller;
use crate::node_firewall::NodeFirewallError;

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(ask))
        .routes(routes!(addresses))
        .routes(routes!(confirm))
}

impl From<NodeFirewallError> for ApiError {
    fn from(error: NodeFirewallError) -> Self {
        let kind = match error {
            NodeFirewallError::NotOpen(_) => Kind::Denied,
            NodeFirewallError::Wrong(_) => Kind::InvalidRequest,
            NodeFirewallError::Busy => Kind::RateLimited,
            NodeFirewallError::Engine(error) => return error.into(),
        };
        Self::new(kind, error.to_string())
    }
}

/// The run that asks something of a node's firewall.
fn request(node: &NodeName, ask: &NodeFirewallAsk) -> Result<RunRequest, ApiError> {
    let scenario = ask.scenario().parse();
    let scenario = scenario.map_err(|e| ApiError::internal(&format!("{e}")))?;
    let mut request = RunRequest::of(scenario);
    request.predicate = Some(format!("name={node}"));
    request.include_infrastructure = true;
    request.params = match ask {
        NodeFirewallAsk::Diff { run: Some(run) } => {
            json!({ "run": run })
        }
        _ => json!({}),
    };
    Ok(request)
}

/// Asks something of a node's own firewall: a run of one of the scenarios
/// `firewall-show`, `firewall-history`, `firewall-diff` and
/// `firewall-rollback`, whose value is the answer.
#[utoipa::path(
    post, path = "/v1/firewall/nodes/{name}", tag = "firewall",
    params(("name" = NodeName, Path), ("Idempotency-Key" = Option<String>, Header, description = "sent again with the same key, it is asked once")),
    request_body = NodeFirewallAsk, security(("bearer" = [])),
    responses(
        (status = 200, description = "the run, begun", body = RunView),
        (status = 422, description = "there is no such node", body = Problem),
    ),
    extensions(("x-authorisation" = json!("run anything")))
)]
async fn ask(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath(name): ApiPath<String>,
    headers: HeaderMap,
    ApiJson(what): ApiJson<NodeFirewallAsk>,
) -> Result<ApiJson<RunView>, ApiError> {
    let node = node_name(&name)?;
    let under = asked(
        &caller,
        &format!("POST /v1/firewall/nodes/{node}"),
        &headers,
    )?;
    let request = request(&node, &what)?;
    answer(&state, state.submit.run(&caller, request, under).await?)
}

/// The addresses that the operators gave to nodes of some roles, for a node
/// that is to change its firewall and proves its key.
#[utoipa::path(
    post, path = "/v1/agent/firewall/addresses", tag = "agents", security(()), request_body = AddressesRequest,
    responses(
        (status = 200, body = RoleAddresses),
        (status = 403, description = "that step is not open on that node, or the proof is not valid", body = Problem),
        (status = 409, description = "the challenge is not valid", body = Problem),
        (status = 429, body = Problem),
    ),
    extensions(("x-authorisation" = json!("open: the proof in the request shows that it is the node itself")))
)]
async fn addresses(
    _open: OpenDoor,
    State(state): State<AppState>,
    ApiJson(asks): ApiJson<AddressesRequest>,
) -> Result<ApiJson<RoleAddresses>, ApiError> {
    state.active()?;
    let enrolment = &state.enrolment;
    enrolment
        .prove_firewalled(asks.serial, &asks.challenge, &asks.proof)
        .await?;
    let machines = state.machines.records(false);
    let firewall = &state.nodes.firewall;
    Ok(ApiJson(
        firewall
            .addresses(asks.serial, asks.request, &asks.roles, &machines)
            .await?,
    ))
}

/// Whether a node's new rules may stay: it has reached this broker through
/// them, and the other nodes that it names reach it.
#[utoipa::path(
    post, path = "/v1/agent/firewall/confirm", tag = "agents", security(()), request_body = ConfirmRequest,
    responses(
        (status = 200, body = Confirmation),
        (status = 403, description = "that step is not open on that node, or the proof is not valid", body = Problem),
        (status = 409, description = "the challenge is not valid", body = Problem),
        (status = 429, body = Problem),
    ),
    extensions(("x-authorisation" = json!("open: the proof in the request shows that it is the node itself")))
)]
async fn confirm(
    _open: OpenDoor,
    State(state): State<AppState>,
    remote: Option<Extension<RemoteAddr>>,
    ApiJson(asks): ApiJson<ConfirmRequest>,
) -> Result<ApiJson<Confirmation>, ApiError> {
    state.active()?;
    let enrolment = &state.enrolment;
    enrolment
        .prove_firewalled(asks.serial, &asks.challenge, &asks.proof)
        .await?;
    let machines = state.machines.records(false);
    let remote = remote.map(|Extension(RemoteAddr(address))| address.ip());
    let firewall = &state.nodes.firewall;
    Ok(ApiJson(
        firewall
            .confirm(
                asks.serial,
                asks.request,
                &asks.probes,
                asks.within,
                (remote, &machines),
            )
            .await?,
    ))
}
