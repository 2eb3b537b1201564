//! Who asks: bearer tokens, and the door for those who have none yet.

use std::net::SocketAddr;
use std::time::Instant;

use axum::extract::FromRequestParts;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use muster_protocol::api::DOOR_HEADER;
use muster_protocol::envelope::Door;
use muster_protocol::problem::Kind;
use muster_protocol::units::Timestamp;

use super::{ApiError, AppState};
use crate::authz::{Caller, Origin};
use crate::metrics::Why;

/// The other end of the connection, put into every request by the server.
#[derive(Clone, Copy, Debug)]
pub struct RemoteAddr(pub SocketAddr);

fn address(parts: &Parts) -> Option<SocketAddr> {
    parts.extensions.get::<RemoteAddr>().map(|remote| remote.0)
}

/// The caller, by its bearer token. A handler that takes no `Caller` is open.
impl FromRequestParts<AppState> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        let ip = address(parts).map(|address| address.ip());
        // One answer for every reason: it tells a guesser nothing. Whoever
        // guesses often is as one without a token.
        let refuse = |why: &dyn std::fmt::Display| {
            if !state.limiter.allows(ip, Instant::now()) {
                state.metrics.refused(Why::Rate);
                return too_often("too many requests without a valid token from this address");
            }
            let request = format!("{} {}", parts.method, parts.uri.path());
            state.audit.stranger(ip, &request, &why.to_string());
            let address = address(parts).map(|a| a.to_string());
            tracing::warn!(
                address, method = %parts.method, path = parts.uri.path(), %why,
                "a request without a valid token was refused"
            );
            ApiError::new(Kind::Unauthenticated, "a valid API token is needed").hint(
                "send it as `Authorization: Bearer TOKEN`; an administrator makes one with `muster token create`",
            )
        };
        let mut values = parts.headers.get_all(AUTHORIZATION).iter();
        let (Some(value), None) = (values.next(), values.next()) else {
            return Err(refuse(&"none, or more than one, in the request"));
        };
        let text = value.to_str().ok().and_then(|text| {
            let (scheme, token) = text.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
        });
        let Some(text) = text else {
            return Err(refuse(&"not a bearer token"));
        };
        let bearer = state
            .tokens
            .authenticate(text, Timestamp::now())
            .map_err(|why| refuse(&why))?;
        if !state.principals.allows(&bearer.principal, Instant::now()) {
            state.metrics.refused(Why::Rate);
            tracing::info!(principal = %bearer.principal, path = parts.uri.path(), "too many requests");
            let title = format!("{} makes too many requests", bearer.principal);
            return Err(too_often(&title));
        }
        let door = match parts.headers.get(DOOR_HEADER).map(|door| door.as_bytes()) {
            Some(b"cli") => Door::Cli,
            _ => Door::Http,
        };
        let caller = Self {
            principal: bearer.principal,
            role: bearer.role,
            token: bearer.id,
            door,
            origin: address(parts).map_or(Origin::Unknown, |a| Origin::Address(a.ip())),
        };
        tracing::debug!(
            principal = %caller.principal, token = caller.token, method = %parts.method,
            path = parts.uri.path(), "authenticated"
        );
        Ok(caller)
    }
}

/// Taken by every handler that needs no token: no address may ask too much.
#[derive(Clone, Copy, Debug)]
pub struct OpenDoor;

impl FromRequestParts<AppState> for OpenDoor {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        let ip = address(parts).map(|address| address.ip());
        if state.limiter.allows(ip, Instant::now()) {
            return Ok(Self);
        }
        tracing::debug!(address = ?ip, path = parts.uri.path(), "too many requests without a token");
        state.metrics.refused(Why::Rate);
        Err(too_often("too many requests from this address"))
    }
}

fn too_often(title: &str) -> ApiError {
    ApiError::new(Kind::RateLimited, title).hint("nothing was done; try again in a second")
}
