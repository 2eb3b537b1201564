//! Errors at the edges: RFC 9457 problem details, and the exit code of the
//! command line that each kind stands for.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The kind of an error that a person or a program is shown. The kind picks
/// the HTTP status and the exit code.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The request is malformed: JSON, a field, a value.
    InvalidRequest,
    /// The predicate has an error; `span` says where.
    InvalidPredicate,
    /// The predicate names what no node has; `span` says where.
    UnknownName,
    /// No node matches.
    NoMatch,
    /// The run needs a confirmation: `plan` holds what would run.
    ConfirmationRequired,
    /// A confirmation for a plan that is gone, was used, or has changed.
    PlanGone,
    /// No token, or one that is not valid.
    Unauthenticated,
    /// The principal may not do this.
    Denied,
    /// There is no such thing.
    NotFound,
    /// A prefix of an id that stands for more than one.
    Ambiguous,
    /// Agents of these nodes cannot do what is asked, as they said
    /// themselves: nothing was sent to any.
    Incompatible,
    /// The fleet is frozen: nothing new is begun.
    Frozen,
    /// It exists already, or is in a state that does not allow this.
    Conflict,
    /// The body is larger than allowed.
    TooLarge,
    /// Too many requests; `Retry-After` says when.
    RateLimited,
    /// This broker cannot serve now: it starts, stops, is not the active
    /// one, or NATS is away.
    Unavailable,
    /// What must be written down before it can be done finds no room in the
    /// store; nothing was done.
    NoRoom,
    /// A defect of muster.
    Internal,
}

impl Kind {
    /// All kinds, for the documentation and its tests.
    pub const ALL: [Self; 18] = [
        Self::InvalidRequest,
        Self::InvalidPredicate,
        Self::UnknownName,
        Self::NoMatch,
        Self::ConfirmationRequired,
        Self::PlanGone,
        Self::Unauthenticated,
        Self::Denied,
        Self::NotFound,
        Self::Ambiguous,
        Self::Incompatible,
        Self::Frozen,
        Self::Conflict,
        Self::TooLarge,
        Self::RateLimited,
        Self::Unavailable,
        Self::NoRoom,
        Self::Internal,
    ];

    /// HTTP status.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::InvalidRequest | Self::InvalidPredicate => 400,
            Self::UnknownName | Self::NoMatch | Self::Incompatible => 422,
            Self::ConfirmationRequired => 428,
            Self::PlanGone => 410,
            Self::Unauthenticated => 401,
            Self::Denied => 403,
            Self::NotFound => 404,
            Self::Ambiguous | Self::Conflict | Self::Frozen => 409,
            Self::TooLarge => 413,
            Self::RateLimited => 429,
            Self::Unavailable => 503,
            Self::NoRoom => 507,
            Self::Internal => 500,
        }
    }

    /// Exit code of the command line: 2 usage, 3 nothing matches, 4 denied,
    /// 5 unreachable, 6 not confirmed.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::InvalidRequest
            | Self::InvalidPredicate
            | Self::NotFound
            | Self::Ambiguous
            | Self::Incompatible
            | Self::Conflict
            | Self::TooLarge => 2,
            Self::UnknownName | Self::NoMatch => 3,
            Self::Unauthenticated | Self::Denied | Self::Frozen => 4,
            Self::RateLimited | Self::Unavailable | Self::NoRoom | Self::Internal => 5,
            Self::ConfirmationRequired | Self::PlanGone => 6,
        }
    }

    /// The word, as in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid-request",
            Self::InvalidPredicate => "invalid-predicate",
            Self::UnknownName => "unknown-name",
            Self::NoMatch => "no-match",
            Self::ConfirmationRequired => "confirmation-required",
            Self::PlanGone => "plan-gone",
            Self::Unauthenticated => "unauthenticated",
            Self::Denied => "denied",
            Self::NotFound => "not-found",
            Self::Ambiguous => "ambiguous",
            Self::Incompatible => "incompatible",
            Self::Frozen => "frozen",
            Self::Conflict => "conflict",
            Self::TooLarge => "too-large",
            Self::RateLimited => "rate-limited",
            Self::Unavailable => "unavailable",
            Self::NoRoom => "no-room",
            Self::Internal => "internal",
        }
    }
}

/// A problem document (RFC 9457), `application/problem+json`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Problem {
    /// `urn:muster:problem:<kind>`: stable, for programs.
    #[serde(rename = "type")]
    pub type_uri: String,
    /// The kind again, as a word.
    pub kind: Kind,
    /// What went wrong, one line, for people.
    pub title: String,
    /// HTTP status.
    pub status: u16,
    /// Where and why, when the title does not say all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Where in the predicate: byte offsets, end exclusive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub span: Option<(usize, usize)>,
    /// The text that `span` points into.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// With `confirmation-required`: the [`crate::api::Plan`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub plan: Option<Value>,
    /// With `unavailable`: this broker is not the active one, and has done
    /// nothing with the request. Another one may be.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub not_active: bool,
    /// With `not_active`: the URL of the active broker, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<String>,
}

impl Problem {
    /// A problem of that kind.
    #[must_use]
    pub fn new(kind: Kind, title: impl Into<String>) -> Self {
        Self {
            type_uri: format!("urn:muster:problem:{}", kind.as_str()),
            kind,
            title: title.into(),
            status: kind.status(),
            detail: None,
            hint: None,
            span: None,
            source: None,
            plan: None,
            not_active: false,
            active: None,
        }
    }

    /// With where and why.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// With what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_has_one_spelling_everywhere() {
        for kind in Kind::ALL {
            let json = serde_json::to_value(kind).expect("json");
            assert_eq!(json, kind.as_str());
            assert!((400..600).contains(&kind.status()));
            assert!((2..=6).contains(&kind.exit_code()));
        }
    }
}
