//! How the installation is.

use axum::extract::State;
use muster_protocol::api::{Finding, Presence, Status};
use muster_protocol::keys::BrokerKeyState;
use muster_protocol::units::{Timestamp, elapsed};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::nodes::count;
use super::{ApiError, ApiJson, AppState};
use crate::authz::{Action, Caller};
use crate::inventory::Standing;

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(status))
}

/// `5 min ago`
fn ago(at: Timestamp) -> String {
    let minutes = elapsed(at, Timestamp::now()).as_secs() / 60;
    match minutes {
        0 => "just now".to_owned(),
        1..=119 => format!("{minutes} min ago"),
        _ => format!("{} h ago", minutes / 60),
    }
}

/// How the installation is, and what an operator should look at.
#[utoipa::path(
    get, path = "/v1/status", tag = "cluster", security(("bearer" = [])),
    responses((status = 200, body = Status)),
    extensions(("x-authorisation" = json!("read the status")))
)]
async fn status(
    State(state): State<AppState>,
    caller: Caller,
) -> Result<ApiJson<Status>, ApiError> {
    state.authorize(&caller, Action::ReadStatus, ()).await?;
    let list = state.authority.list();
    let nodes = count(&state.inventory, &state.control.presences());
    let epoch = state.lease.epoch();
    let connected = state.link.is_connected();
    let mut findings = Vec::new();
    let mut find = |what: String, hint: &str| {
        findings.push(Finding {
            what,
            hint: hint.to_owned(),
        })
    };
    if !connected {
        find(
            "the broker is not connected to NATS".into(),
            "is nats-server running, and is `nats.urls` right?",
        );
    }
    if epoch.is_none() {
        find(
            "this broker does not hold the lease now: nothing can be changed or run".into(),
            "it takes it again when NATS answers; look at the broker's log",
        );
    }
    if !state.inventory.is_settled() {
        find(
            "not every NATS server has the newest revocations: a removed node may still be connected".into(),
            "it is tried again every few seconds; the broker's log says which server is missing",
        );
    }
    if let Some(freeze) = state.nodes.engine.frozen() {
        let on = super::freeze::view(&state);
        find(
            format!(
                "the fleet is {} ({}; {} connected nodes are on it, {} are not yet)",
                freeze.reason(),
                ago(freeze.at),
                on.taken,
                on.missing + on.unable
            ),
            "nothing new is begun; `muster thaw` ends it",
        );
    }
    for time in state.past.recent() {
        find(
            format!(
                "the store went back in time ({}): {}",
                ago(time.found),
                time.what
            ),
            "`muster events` says what was put back and what is gone (alarm.store-went-back)",
        );
    }
    let active = list
        .keys
        .iter()
        .filter(|k| k.state == BrokerKeyState::Active)
        .count();
    // Brokers may each have a key of their own.
    if active > state.peers.list().len() {
        find(
            format!("{active} broker keys are active"),
            "after a rotation, once every node is up, revoke the old one: `muster keys revoke`",
        );
    }
    for node in state.inventory.snapshot().iter() {
        if let Standing::Quarantined { reason, .. } = &node.standing {
            let name = &node.assignment.name;
            find(
                format!("{name} is quarantined: {reason}"),
                &format!("`muster node replace {name}` gives its name to a new key"),
            );
        }
    }
    let gone = [Presence::Down, Presence::Never]
        .iter()
        .filter_map(|p| nodes.get(p))
        .sum::<u32>();
    if gone > 0 {
        find(
            format!("{gone} node(s) are not there"),
            "`muster nodes` shows which, and since when",
        );
    }
    let certificate = state.tls.as_ref().map(|tls| tls.findings(Timestamp::now()));
    for Finding { what, hint } in certificate.into_iter().flatten() {
        find(what, &hint);
    }
    for Finding { what, hint } in state.retention.findings() {
        find(what, &hint);
    }
    Ok(ApiJson(Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        cluster: list.cluster,
        active: epoch.is_some(),
        epoch: epoch.unwrap_or(0),
        key_epoch: list.epoch,
        nats_version: Some(state.link.version.to_string()),
        nats_connected: connected,
        nodes,
        open_runs: state.nodes.engine.open_runs(),
        brokers: state.peers.list(),
        time: Timestamp::now(),
        space: state.retention.spaces(),
        removed: state.retention.removed(),
        findings,
    }))
}
