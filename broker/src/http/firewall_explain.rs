//! `/v1/firewall/explain`.

use axum::extract::State;
use muster_protocol::api::PacketExplained;
use muster_protocol::firewall::{Traffic, TrafficError};
use muster_protocol::problem::{Kind, Problem};
use serde::Deserialize;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{ApiError, ApiJson, ApiQuery, AppState};
use crate::authz::{Action, Caller};

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(explain))
}

/// Which packet is asked about.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct Question {
    /// From whom: an address, with a port or without, or a machine.
    from: String,
    /// To whom, with the port for tcp and udp.
    to: String,
    /// `tcp`, `udp`, `icmp TYPE`, `icmpv6 TYPE` or `proto NUMBER`.
    proto: String,
}

/// Which rule decides of a packet, by what is asked for now. Nothing is sent.
#[utoipa::path(
    get, path = "/v1/firewall/explain", tag = "firewall", params(Question),
    security(("bearer" = [])),
    responses(
        (status = 200, body = PacketExplained),
        (status = 400, description = "no packet can be like that", body = Problem),
        (status = 404, description = "there is no such machine", body = Problem),
    ),
    extensions(("x-authorisation" = json!("read security groups")))
)]
async fn explain(
    State(state): State<AppState>,
    caller: Caller,
    ApiQuery(question): ApiQuery<Question>,
) -> Result<ApiJson<PacketExplained>, ApiError> {
    state.authorize(&caller, Action::ReadGroups, ()).await?;
    let traffic: Traffic = question
        .proto
        .parse()
        .map_err(|e: TrafficError| ApiError::new(Kind::InvalidRequest, e.to_string()))?;
    let ends = (question.from.as_str(), question.to.as_str());
    Ok(ApiJson(state.groups.explain(ends, &traffic)?))
}
