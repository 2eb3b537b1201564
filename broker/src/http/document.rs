//! The OpenAPI document.

use muster_protocol::api::Role;
use muster_protocol::problem::Problem;
use utoipa::OpenApi;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};

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
    for item in api.paths.paths.values_mut() {
        for operation in operations(item) {
            let Some(note) = operation
                .extensions
                .as_ref()
                .and_then(|e| e.get(AUTHORISATION))
                .and_then(|note| note.as_str().map(str::to_owned))
            else {
                continue;
            };
            let text = match note.strip_prefix("open: ") {
                Some(why) => format!("Needs no token: {why}."),
                None => format!("To {note}: {}.", roles(&note)),
            };
            let described = operation.description.take().unwrap_or_default();
            operation.description = Some(format!("{described}\n\n{text}").trim().to_owned());
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
