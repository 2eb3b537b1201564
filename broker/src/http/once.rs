//! `Idempotency-Key`: a request that is sent again does the same thing once.

use axum::http::HeaderMap;
use muster_protocol::ids::RunId;
use muster_protocol::problem::Kind;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use super::{ApiError, AppState, finish};
use crate::authz::Caller;
use crate::once::Unfinished;

/// Header under which a client repeats a request without doing it twice.
pub(crate) const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// Longest such key, in bytes.
const LONGEST_KEY: usize = 200;

/// The key of a request, if it has one.
///
/// # Errors
/// An `invalid-request` problem for one that is none.
pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let (value, None) = (values.next(), values.next()) else {
        return Err(ApiError::new(
            Kind::InvalidRequest,
            "there is more than one Idempotency-Key",
        ));
    };
    let Some(value) = value else {
        return Ok(None);
    };
    match value.to_str() {
        Ok(key) if !key.is_empty() && key.len() <= LONGEST_KEY => Ok(Some(key)),
        _ => Err(ApiError::new(
            Kind::InvalidRequest,
            format!("an Idempotency-Key has 1 to {LONGEST_KEY} printable characters"),
        )),
    }
}

/// The run that a principal asks for under the key of its request, if that has
/// one: the same run, however often it is asked for.
///
/// # Errors
/// As for [`idempotency_key`].
pub(super) fn named_run(
    caller: &Caller,
    route: &str,
    headers: &HeaderMap,
) -> Result<Option<RunId>, ApiError> {
    let Some(key) = idempotency_key(headers)? else {
        return Ok(None);
    };
    let mut hash = Sha256::new();
    hash.update(b"muster idempotency key 1\0");
    hash.update(route);
    hash.update(b"\0");
    hash.update(caller.principal.as_str());
    hash.update(b"\0");
    hash.update(key);
    let digest: [u8; 32] = hash.finalize().into();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    Ok(Some(RunId::from_bytes(bytes)))
}

/// Does what was asked for and authorised: to its end, also when the client
/// goes away, and with an `Idempotency-Key` once, however often it is asked.
/// `request` is all that it says.
///
/// # Errors
/// Why `work` failed; and that the key cannot be used.
pub(super) async fn once<T, E>(
    state: &AppState,
    caller: &Caller,
    route: &str,
    headers: &HeaderMap,
    request: &impl Serialize,
    work: impl Future<Output = Result<T, E>> + Send + 'static,
) -> Result<T, ApiError>
where
    T: Serialize + DeserializeOwned + Send + Sync + 'static,
    E: Into<ApiError> + Send + 'static,
{
    let asked = (caller, route, headers);
    once_or_again(state, asked, request, Unfinished::Unknown, work).await
}

/// The same, of work that may have been left unfinished by a broker before.
///
/// # Errors
/// As above.
pub(super) async fn once_or_again<T, E>(
    state: &AppState,
    (caller, route, headers): (&Caller, &str, &HeaderMap),
    request: &impl Serialize,
    unfinished: Unfinished,
    work: impl Future<Output = Result<T, E>> + Send + 'static,
) -> Result<T, ApiError>
where
    T: Serialize + DeserializeOwned + Send + Sync + 'static,
    E: Into<ApiError> + Send + 'static,
{
    let Some(key) = idempotency_key(headers)? else {
        return finish(work).await;
    };
    let request = serde_json::to_vec(request).map_err(|e| ApiError::internal(&e))?;
    let named = state.once.named(&caller.principal, route, key, &request);
    let once = state.once.clone();
    finish(async move {
        let work = async { work.await.map_err(Into::into) };
        once.answer::<T, ApiError>(named, unfinished, work).await
    })
    .await
}
