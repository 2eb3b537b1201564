//! `POST /v1/match`: which nodes a predicate stands for.

use muster_protocol::api::{ExplainView, MatchAnswer, MatchRequest};
use muster_protocol::problem::{Kind, Problem};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{ApiError, ApiJson, AppState};
use crate::authz::{Action, Caller};
use crate::resolve::{ResolveError, leave_out_infrastructure, matching, parse};

/// The routes of this module.
#[must_use]
pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(match_nodes))
}

/// Which nodes match
///
/// Names that no node has are refused, so that a slip never means the whole
/// fleet. With `explain`, also which clause decided on that node.
#[utoipa::path(
    post,
    path = "/v1/match",
    tag = "nodes",
    request_body = MatchRequest,
    responses(
        (status = 200, description = "The nodes, sorted by name", body = MatchAnswer),
        (status = 400, description = "The predicate has an error; `span` says where", body = Problem),
        (status = 422, description = "It compares with a name that no node has, or no node matches", body = Problem),
    ),
    security(("bearer" = [])),
    extensions(("x-authorisation" = json!("resolve predicates"))),
)]
async fn match_nodes(
    axum::extract::State(state): axum::extract::State<AppState>,
    caller: Caller,
    ApiJson(request): ApiJson<MatchRequest>,
) -> Result<ApiJson<MatchAnswer>, ApiError> {
    let request = state
        .authorize(&caller, Action::MatchNodes, request)
        .await?
        .into_inner();
    let snapshot = state.inventory.snapshot();
    let predicate = parse(&request.predicate, &snapshot, request.allow_unknown)
        .map_err(|error| refused(&error))?;
    let explanation = match &request.explain {
        None => None,
        Some(name) => {
            let node = snapshot.by_name(name).ok_or_else(|| {
                ApiError::new(Kind::NotFound, format!("there is no node {name}"))
                    .hint("muster nodes lists them")
            })?;
            let explained = predicate.explain(&**node);
            Some(ExplainView {
                node: name.clone(),
                matches: predicate.matches(&**node),
                text: explained.to_string(),
            })
        }
    };
    let nodes = matching(&predicate, &snapshot);
    let mut taken = nodes.clone();
    leave_out_infrastructure(&predicate, &mut taken);
    let left_out = u32::try_from(nodes.len() - taken.len()).unwrap_or(u32::MAX);
    if nodes.is_empty() && explanation.is_none() {
        let error = ResolveError::NoMatch {
            predicate: predicate.text().to_owned(),
            infrastructure: 0,
            enrolled: snapshot.len(),
        };
        return Err(refused(&error));
    }
    let mut nodes: Vec<_> = nodes
        .iter()
        .map(|node| node.assignment.name.clone())
        .collect();
    nodes.sort();
    Ok(ApiJson(MatchAnswer {
        predicate: predicate.text().to_owned(),
        nodes,
        left_out,
        explanation,
    }))
}

/// A resolve error where nothing would have been run anyway.
pub(super) fn refused(error: &ResolveError) -> ApiError {
    let mut problem = error.problem();
    if let Some(title) = problem.title.strip_suffix("; nothing was run") {
        problem.title = title.to_owned();
    }
    problem.into()
}
