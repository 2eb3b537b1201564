//! Errors as problem documents, and extractors that answer with them.

use std::marker::PhantomData;

use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use muster_protocol::problem::{Kind, Problem};
use muster_protocol::text::printable;
use muster_protocol::vm::is_private_key;
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::authority::AuthorityError;
use crate::authz::{Denied, Unauthorized};
use crate::enroll::EnrollError;
use crate::inventory::InventoryError;
use crate::library::LibraryError;
use crate::once::OnceError;
use crate::releases::ReleasesError;
use crate::tokens::TokensError;

/// What a handler returns instead of its answer.
#[derive(Clone, Debug)]
pub struct ApiError(pub Box<Problem>);

impl ApiError {
    /// A problem of that kind.
    #[must_use]
    pub fn new(kind: Kind, title: impl Into<String>) -> Self {
        Self(Box::new(Problem::new(kind, title)))
    }

    /// As a problem, for those who are no handlers.
    pub(crate) fn into_problem(self) -> Box<Problem> {
        self.0
    }

    /// With where and why.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.0.detail = Some(detail.into());
        self
    }

    /// With what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// With a more precise HTTP status than its kind has.
    #[must_use]
    pub fn status(mut self, status: u16) -> Self {
        self.0.status = status;
        self
    }

    /// A defect, or something that the caller can do nothing about: the
    /// details are in the log alone.
    #[must_use]
    pub fn internal(error: &dyn std::fmt::Display) -> Self {
        tracing::error!(%error, "a request failed");
        Self::new(
            Kind::Internal,
            "the broker could not do this; its log says why",
        )
    }

    /// NATS, or JetStream in it, does not do what is asked.
    #[must_use]
    pub fn storage(error: &dyn std::fmt::Display) -> Self {
        tracing::error!(%error, "NATS failed a request");
        Self::new(
            Kind::Unavailable,
            "NATS does not take what the broker stores",
        )
        .detail(printable(&error.to_string(), 500))
        .hint("`muster doctor` shows what is wrong")
    }
}

/// This broker may not write now.
#[must_use]
pub(super) fn not_active() -> ApiError {
    ApiError::new(Kind::Unavailable, "this broker is not the active one now")
        .detail(
            "its lease cannot be renewed: NATS is away or slow, or another broker has taken over",
        )
        .hint("try again in a few seconds; if it stays so, look at `muster doctor`")
}

impl From<InventoryError> for ApiError {
    fn from(error: InventoryError) -> Self {
        use InventoryError as E;
        let kind = match &error {
            E::NoNode(_) => Kind::NotFound,
            E::NameTaken(_) | E::KnownKey(_) | E::Quarantined { .. } => Kind::Conflict,
            E::TooMany | E::Contradiction(_) => Kind::InvalidRequest,
            E::FactsTooLarge(_) => Kind::TooLarge,
            E::NotActive => return not_active(),
            E::Store(_) | E::Account(_) => return Self::storage(&error),
            E::NoSerials => return Self::internal(&error),
        };
        Self::split(kind, &error.to_string())
    }
}

impl From<EnrollError> for ApiError {
    fn from(error: EnrollError) -> Self {
        use EnrollError as E;
        let kind = match error {
            E::Inventory(error) => return error.into(),
            E::Pattern(_) | E::TooMany | E::Life | E::BadNatsKey => Kind::InvalidRequest,
            E::NoInvite(_) => Kind::NotFound,
            E::BadInvite
            | E::Expired(_)
            | E::Used
            | E::BadProof
            | E::Gone(_)
            | E::Unknown(_)
            | E::NoHypervisor(_) => Kind::Denied,
            E::BadChallenge => Kind::Conflict,
            E::Busy => Kind::RateLimited,
            E::NotActive => return not_active(),
            E::Store(_) => return Self::storage(&error),
            E::Sign(_) => return Self::internal(&error),
        };
        Self::split(kind, &error.to_string())
    }
}

impl From<OnceError> for ApiError {
    fn from(error: OnceError) -> Self {
        use OnceError as E;
        let kind = match &error {
            E::Other | E::Unknown => Kind::Conflict,
            E::TooLarge => Kind::TooLarge,
            E::NotActive => return not_active(),
            E::Store(_) => return Self::storage(&error),
            E::Damaged(_) => return Self::internal(&error),
        };
        Self::split(kind, &error.to_string())
    }
}

impl From<TokensError> for ApiError {
    fn from(error: TokensError) -> Self {
        use TokensError as E;
        let kind = match &error {
            E::NoToken(_) => Kind::NotFound,
            E::LastAdmin(_) | E::TooMany => Kind::Conflict,
            E::NoLife => Kind::InvalidRequest,
            E::NotActive => return not_active(),
            E::Store(_) => return Self::storage(&error),
            E::State(_) => return Self::internal(&error),
        };
        Self::split(kind, &error.to_string())
    }
}

impl From<AuthorityError> for ApiError {
    fn from(error: AuthorityError) -> Self {
        use AuthorityError as E;
        let kind = match &error {
            E::NoKey(_) => Kind::NotFound,
            E::LastKey(_) | E::Full => Kind::Conflict,
            E::NotActive => return not_active(),
            E::Store(_) => return Self::storage(&error),
            _ => return Self::internal(&error),
        };
        Self::split(kind, &error.to_string())
    }
}

impl ApiError {
    /// What went wrong; and after a semicolon, what to do.
    fn split(kind: Kind, message: &str) -> Self {
        match message.split_once("; ") {
            Some((title, hint)) => Self::new(kind, title).hint(hint),
            None => Self::new(kind, message),
        }
    }
}

impl From<ReleasesError> for ApiError {
    fn from(error: ReleasesError) -> Self {
        match error {
            ReleasesError::NotActive => not_active(),
            ReleasesError::Store(_) => Self::storage(&error),
            error => error.problem().into(),
        }
    }
}

impl From<Box<Problem>> for ApiError {
    fn from(problem: Box<Problem>) -> Self {
        Self(problem)
    }
}

impl From<LibraryError> for ApiError {
    fn from(error: LibraryError) -> Self {
        match error {
            LibraryError::NotActive => not_active(),
            LibraryError::Store(_) => Self::storage(&error),
            LibraryError::Task(_) => Self::internal(&error),
            error => error.problem().into(),
        }
    }
}

impl From<Problem> for ApiError {
    fn from(problem: Problem) -> Self {
        Self(Box::new(problem))
    }
}

impl From<Unauthorized> for ApiError {
    fn from(error: Unauthorized) -> Self {
        match error {
            Unauthorized::Denied(denied) => denied.into(),
            Unauthorized::Unrecorded(error) => error.into(),
        }
    }
}

impl From<Denied> for ApiError {
    fn from(denied: Denied) -> Self {
        Self::new(Kind::Denied, denied.to_string())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self.0).unwrap_or_default();
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        let retry = match self.0.kind {
            Kind::RateLimited => Some("1"),
            Kind::Unavailable => Some("2"),
            _ => None,
        };
        if let Some(seconds) = retry {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static(seconds));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// A JSON body; anything else is answered with a problem document.
#[derive(Clone, Copy, Debug)]
pub struct ApiJson<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for ApiJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        match axum::Json::<Object<T>>::from_request(request, state).await {
            Ok(axum::Json(value)) => Ok(Self(value.0)),
            Err(rejection) => Err(bad_json(&rejection)),
        }
    }
}

/// What is written as a JSON object. Without this, a list of values in the
/// order of the fields would be taken, too, as no document says.
pub(super) struct Object<T>(pub(super) T);

impl<'de, T: DeserializeOwned> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Fields<T>(PhantomData<T>);

        impl<'de, T: DeserializeOwned> Visitor<'de> for Fields<T> {
            type Value = T;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map))
            }
        }

        from.deserialize_map(Fields(PhantomData)).map(Self)
    }
}

impl<T: serde::Serialize> IntoResponse for ApiJson<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

fn bad_json(rejection: &JsonRejection) -> ApiError {
    let text = rejection.body_text();
    // It repeats what stood where something else was to stand.
    let detail = if is_private_key(&text) {
        "a private key is no part of a request".to_owned()
    } else {
        printable(&text, 300)
    };
    match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            ApiError::new(Kind::TooLarge, "the body is larger than allowed").detail(detail)
        }
        StatusCode::UNSUPPORTED_MEDIA_TYPE => {
            ApiError::new(Kind::InvalidRequest, "the body must be JSON")
                .hint("send it with `Content-Type: application/json`")
                .status(415)
        }
        _ => ApiError::new(Kind::InvalidRequest, "the body cannot be read").detail(detail),
    }
}

/// Parameters of the query string.
#[derive(Clone, Copy, Debug)]
pub struct ApiQuery<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for ApiQuery<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        axum::extract::Query::<T>::from_request_parts(parts, state)
            .await
            .map(|axum::extract::Query(value)| Self(value))
            .map_err(|rejection: QueryRejection| {
                ApiError::new(
                    Kind::InvalidRequest,
                    "a parameter of the query cannot be read",
                )
                .detail(printable(&rejection.body_text(), 300))
            })
    }
}

/// Parameters of the path.
#[derive(Clone, Copy, Debug)]
pub struct ApiPath<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for ApiPath<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        axum::extract::Path::<T>::from_request_parts(parts, state)
            .await
            .map(|axum::extract::Path(value)| Self(value))
            .map_err(|rejection: PathRejection| {
                ApiError::new(Kind::InvalidRequest, "the path cannot be read")
                    .detail(printable(&rejection.body_text(), 300))
            })
    }
}
