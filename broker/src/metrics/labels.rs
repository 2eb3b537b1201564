//! Labels: few values each.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};

/// The method of a request; those that HTTP does not know are one.
#[derive(Clone, Copy, Debug, EncodeLabelValue, Eq, Hash, PartialEq)]
#[allow(missing_docs, reason = "they are the methods of HTTP")]
pub enum Method {
    GET,
    HEAD,
    POST,
    PUT,
    PATCH,
    DELETE,
    OPTIONS,
    Other,
}

impl From<&axum::http::Method> for Method {
    fn from(method: &axum::http::Method) -> Self {
        match method.as_str() {
            "GET" => Self::GET,
            "HEAD" => Self::HEAD,
            "POST" => Self::POST,
            "PUT" => Self::PUT,
            "PATCH" => Self::PATCH,
            "DELETE" => Self::DELETE,
            "OPTIONS" => Self::OPTIONS,
            _ => Self::Other,
        }
    }
}

/// What a request was, and how it was answered.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub struct Answered {
    /// Its method.
    pub method: Method,
    /// The route as in the OpenAPI document, or `none`.
    pub route: String,
    /// The status of the answer.
    pub status: u16,
}

/// What a request was.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub struct Route {
    /// Its method.
    pub method: Method,
    /// The route as in the OpenAPI document, or `none`.
    pub route: String,
}

/// Which limit has turned somebody away.
#[derive(Clone, Copy, Debug, EncodeLabelValue, Eq, Hash, PartialEq)]
pub enum Why {
    /// Too many requests of one principal or address.
    Rate,
    /// Too many requests at a time.
    Overload,
    /// Too many connections.
    Connections,
    /// Too many watchers.
    Watchers,
}

/// A limit that has turned somebody away.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub struct Refusal {
    /// Which.
    pub why: Why,
}

/// A state of runs or nodes, as the API writes it.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub struct State {
    /// The state.
    pub state: String,
}

/// An outcome, as the API writes it.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub struct OutcomeLabel {
    /// The outcome.
    pub outcome: String,
}

/// A stream or bucket of muster.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub struct StreamName {
    /// Its name in JetStream.
    pub stream: String,
}
