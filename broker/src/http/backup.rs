//! Backups.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use axum::response::{IntoResponse as _, Response};
use muster_protocol::problem::{Kind, Problem};
use tokio_stream::wrappers::ReceiverStream;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{ApiError, AppState};
use crate::authz::{Action, Caller};
use crate::backup::take::{Source, take};

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(backup))
}

/// Everything that the cluster is: keys, state, runs. Whoever has it can be
/// the cluster. It is read while it is sent; one that does not end with its
/// manifest is none.
#[utoipa::path(
    get, path = "/v1/backup", tag = "cluster", security(("bearer" = [])),
    responses(
        (status = 200, description = "a backup, for `muster restore`", content_type = "application/octet-stream"),
        (status = 409, description = "another one is being made", body = Problem),
    ),
    extensions(("x-authorisation" = json!("make backups")))
)]
async fn backup(State(state): State<AppState>, caller: Caller) -> Result<Response, ApiError> {
    state.active()?;
    state.authorize(&caller, Action::Backup, ()).await?;
    let permit = Arc::clone(&state.backing_up)
        .try_acquire_owned()
        .map_err(|_| {
            ApiError::new(Kind::Conflict, "another backup is being made")
                .hint("wait until it is finished")
        })?;
    let by = &caller.principal;
    state
        .events
        .emit(
            "cluster.backup",
            by.as_str(),
            format!("{by} makes a backup: it holds every secret of the cluster"),
        )
        .await;
    let pieces = take(
        Source {
            js: state.link.js.clone(),
            config: state.config,
            authority: state.authority,
            lease: state.lease,
            engine: state.nodes.engine,
            cancel: state.shutdown,
        },
        permit,
    );
    let headers = [
        (CONTENT_TYPE, "application/octet-stream"),
        (
            CONTENT_DISPOSITION,
            "attachment; filename=\"muster.backup\"",
        ),
    ];
    Ok((headers, Body::from_stream(ReceiverStream::new(pieces))).into_response())
}
