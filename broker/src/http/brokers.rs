//! Other brokers of the cluster.

use axum::extract::State;
use muster_protocol::api::StandbyKit;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{ApiError, ApiJson, AppState};
use crate::authz::{Action, Caller};
use crate::standby::kit;

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(standby_kit))
}

/// What another broker of the cluster needs, its keys included. Whoever has
/// it can be the cluster.
#[utoipa::path(
    post, path = "/v1/brokers/kit", tag = "cluster", security(("bearer" = [])),
    responses((status = 200, body = StandbyKit)),
    extensions(("x-authorisation" = json!("add brokers")))
)]
async fn standby_kit(
    State(state): State<AppState>,
    caller: Caller,
) -> Result<ApiJson<StandbyKit>, ApiError> {
    state.active()?;
    state.authorize(&caller, Action::AddBroker, ()).await?;
    let by = caller.principal.clone();
    let list = state.authority.list();
    let made = kit(
        &state.config,
        list.cluster,
        &list,
        &state.authority.signed_list(),
    )
    .map_err(|error| ApiError::internal(&error))?;
    state
        .events
        .emit(
            "broker.kit",
            by.as_str(),
            format!("{by} took the keys of the cluster for another broker"),
        )
        .await;
    Ok(ApiJson(made))
}
