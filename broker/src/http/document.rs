//! The OpenAPI document.

use muster_protocol::api::Role;
use muster_protocol::problem::Problem;
use utoipa::OpenApi;
use utoipa::openapi::path::Operation;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{ContentBuilder, RefOr, ResponseBuilder};

use crate::authz::{Action, FixedRoles};

/// The extension of every operation that says what its caller must be allowed
/// to do: the words of [`Action::what`], or `open: ` and why.
pub(super) const AUTHORISATION: &str = "x-authorisation";

#[derive(OpenApi)]
#[openapi(
    info(
        title = "muster",
        description = "Remote execution on exactly the machines that a predicate names. Every error is an \
                       `application/problem+json` document of schema `Problem`."
    ),
    components(schemas(Problem))
)]
struct Base;

/// The document before any route is in it.
pub(super) fn base() -> utoipa::openapi::OpenApi {
    let mut api = Base::openapi();
    env!("CARGO_PKG_VERSION").clone_into(&mut api.info.version);
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some(
            "an API token, `mt1_…`; `muster token create` makes one",
        ))
        .build();
    api.components
        .get_or_insert_default()
        .add_security_scheme("bearer", SecurityScheme::Http(bearer));
    api
}

/// The whole document, with who may do what written out for the fixed roles.
#[must_use]
pub fn document() -> utoipa::openapi::OpenApi {
    let mut api = super::routes().split_for_parts().1;
    api.merge(super::front::routes().split_for_parts().1);
    for (path, item) in &mut api.paths.paths {
        let acts = [&item.put, &item.post, &item.delete, &item.patch]
            .into_iter()
            .flatten()
            .map(|operation| operation.operation_id.clone())
            .collect::<Vec<_>>();
        for operation in operations(item) {
            let note = operation
                .extensions
                .as_ref()
                .and_then(|e| e.get(AUTHORISATION))
                .and_then(|note| note.as_str().map(str::to_owned));
            let Some(note) = note else {
                continue;
            };
            let open = note.strip_prefix("open: ");
            let text = match open {
                Some(why) => format!("Needs no token: {why}."),
                None => format!("To {note}: {}.", roles(&note)),
            };
            let described = operation.description.take().unwrap_or_default();
            operation.description = Some(format!("{described}\n\n{text}").trim().to_owned());
            let acts = acts.contains(&operation.operation_id);
            common_answers(operation, open.is_none(), acts, path == "/healthz");
        }
    }
    api
}

fn roles(what: &str) -> String {
    let may: Vec<_> = Role::ALL
        .iter()
        .filter(|role| {
            Action::examples()
                .iter()
                .any(|a| a.what() == what && FixedRoles::may(**role, a))
        })
        .map(|role| role.as_str())
        .collect();
    format!("role {}", may.join(", "))
}

const PROBLEM: &str = "application/problem+json";

/// Adds what any request can be answered with, where the route says nothing
/// of its own, and gives problem documents the type that they have.
fn common_answers(operation: &mut Operation, token: bool, acts: bool, probe: bool) {
    let body = operation.request_body.is_some();
    let answers = &mut operation.responses.responses;
    for answer in answers.values_mut() {
        let RefOr::T(answer) = answer else { continue };
        let is_problem = answer
            .content
            .get("application/json")
            .is_some_and(|content| {
                serde_json::to_value(content).is_ok_and(|schema| {
                    schema["schema"]["$ref"].as_str() == Some("#/components/schemas/Problem")
                })
            });
        if is_problem && let Some(content) = answer.content.swap_remove("application/json") {
            answer.content.insert(PROBLEM.to_owned(), content);
        }
    }
    let common = [
        (
            "400",
            true,
            "The path, a parameter or the body cannot be read",
        ),
        ("401", token, "There is no valid token in it"),
        (
            "403",
            token || acts,
            "The caller may not do this; or it comes from a page elsewhere",
        ),
        ("404", token, "There is no such thing"),
        ("408", body, "The body came too slowly; nothing was done"),
        ("409", acts, "It is in a state that does not allow this"),
        ("413", body, "The body is larger than allowed"),
        ("415", body, "The body is of another type"),
        ("422", body, "The body has a value that cannot be"),
        (
            "429",
            !probe,
            "Too many requests; `Retry-After` says when to come again",
        ),
        (
            "500",
            !probe,
            "A defect of muster; the broker's log says more",
        ),
        (
            "503",
            !probe,
            "This broker cannot serve now; `Retry-After` says when to come again",
        ),
    ];
    for (status, when, what) in common {
        if when && !answers.contains_key(status) {
            let schema = utoipa::openapi::Ref::from_schema_name("Problem");
            let content = ContentBuilder::new().schema(Some(schema)).build();
            let answer = ResponseBuilder::new()
                .description(what)
                .content(PROBLEM, content);
            answers.insert(status.to_owned(), answer.build().into());
        }
    }
}

/// The operations of a path, whatever their method.
pub(super) fn operations(
    item: &mut utoipa::openapi::PathItem,
) -> impl Iterator<Item = &mut utoipa::openapi::path::Operation> {
    [
        &mut item.get,
        &mut item.put,
        &mut item.post,
        &mut item.delete,
        &mut item.options,
        &mut item.head,
        &mut item.patch,
        &mut item.trace,
    ]
    .into_iter()
    .filter_map(Option::as_mut)
}
