//! What came of requests that name themselves (`Idempotency-Key`): whoever
//! sends such a request again gets the answer of the first one, also from a
//! broker that was started again or has taken over.
//!
//! Runs need none of this: their id follows from the key. What is kept here
//! are answers that cannot be made a second time, and some hold secrets that
//! are shown once: they are sealed with a key that follows from the cluster's
//! root key and from the request's own key, which is not kept.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use data_encoding::{BASE32_NOPAD, BASE64};
use muster_protocol::names::PrincipalName;
use muster_protocol::units::Timestamp;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom as _, SystemRandom};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::lease::Lease;
use crate::state_dir::Root;
use crate::store::kv::{Kv, KvError};

/// How long an answer is kept.
pub const KEPT: Duration = Duration::from_secs(24 * 3_600);
/// Most bytes of all answers together; beyond it requests with a key are
/// refused. The server sets all of it aside at once: on a small disk it is the
/// next of these that there is room for.
pub const MOST_BYTES: [u64; 3] = [64 << 20, 8 << 20, 1 << 20];
/// Largest answer that is kept, in bytes.
const LARGEST: usize = 512 * 1024;

/// A value of `muster_once`; the key is a hash of who asked, for what, under
/// which key.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct StoredOnce {
    /// A hash of the request.
    request: String,
    /// When it came.
    at: Timestamp,
    /// The answer, sealed; absent while it is worked on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    answer: Option<String>,
}

/// Why a request with a key is not done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OnceError {
    /// The key stands for something else.
    #[error("this Idempotency-Key was used for another request; use a new one for each request")]
    Other,
    /// It is not known what came of the first one.
    #[error(
        "the broker ended while it did this for the first time; look whether it was done before you ask with a new Idempotency-Key"
    )]
    Unknown,
    /// The answer cannot be kept.
    #[error(
        "the answer is too large to be kept; ask without an Idempotency-Key, or for less at a time"
    )]
    TooLarge,
    /// This broker may not write now.
    #[error("this broker is not the active one now; try again in a few seconds")]
    NotActive,
    /// NATS.
    #[error("what came of requests could not be read or written: {0}")]
    Store(#[from] KvError),
    /// A kept answer cannot be read.
    #[error("a kept answer cannot be read: {0}")]
    Damaged(&'static str),
}

/// What is done when a request comes again of which it is not known what came
/// of the first one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Unfinished {
    /// Nothing: whoever asks has to look.
    Unknown,
    /// It is asked for again: the work finds what was done for it by itself.
    Again,
}

/// The answers. Cheap to clone.
#[derive(Clone)]
pub struct Once(Arc<Inner>);

struct Inner {
    bucket: Kv<StoredOnce>,
    lease: Lease,
    secret: Zeroizing<[u8; 32]>,
    /// Who works on what: the second one waits for the first.
    running: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

impl std::fmt::Debug for Once {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Once")
            .field("secret", &"[redacted]")
            .finish_non_exhaustive()
    }
}

/// A request that names itself.
pub struct Named {
    /// Where it is kept.
    place: String,
    seal: Zeroizing<[u8; 32]>,
    request: String,
}

impl std::fmt::Debug for Named {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Named")
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

impl Once {
    /// The answers in that bucket.
    #[must_use]
    pub(crate) fn new(bucket: Kv<StoredOnce>, lease: Lease, root: &Root) -> Self {
        let seed = root.key.seed();
        let secret = hash(&[b"muster once 1", &*seed]);
        Self(Arc::new(Inner {
            bucket,
            lease,
            secret: Zeroizing::new(secret),
            running: Mutex::default(),
        }))
    }

    /// The request of that principal under that key; `request` is what it
    /// says, whole.
    #[must_use]
    pub fn named(
        &self,
        principal: &PrincipalName,
        route: &str,
        key: &str,
        request: &[u8],
    ) -> Named {
        let parts: [&[u8]; 3] = [
            route.as_bytes(),
            principal.as_str().as_bytes(),
            key.as_bytes(),
        ];
        let place = hash(&[b"place", parts[0], parts[1], parts[2]]);
        let seal = hash(&[&*self.0.secret, parts[0], parts[1], parts[2]]);
        Named {
            place: BASE32_NOPAD.encode(&place).to_lowercase(),
            seal: Zeroizing::new(seal),
            request: BASE64.encode(&hash(&[b"request", request])),
        }
    }

    /// Does something once: whoever asks again gets the same answer. When it
    /// fails nothing is kept, and it can be asked again.
    ///
    /// # Errors
    /// [`OnceError`], or why `work` failed.
    pub async fn answer<T, E>(
        &self,
        named: Named,
        unfinished: Unfinished,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E>
    where
        T: Serialize + DeserializeOwned,
        E: From<OnceError>,
    {
        let turn = self.turn(&named.place);
        let _turn = turn.lock().await;
        if self.0.lease.epoch().is_none() {
            return Err(OnceError::NotActive.into());
        }
        let kept = self
            .0
            .bucket
            .get(&named.place)
            .await
            .map_err(OnceError::from)?;
        let (mut stored, revision) = match kept {
            Some(kept) if kept.value.request != named.request => {
                return Err(OnceError::Other.into());
            }
            Some(kept) => match (&kept.value.answer, unfinished) {
                (Some(sealed), _) => return Ok(open(&named, sealed)?),
                (None, Unfinished::Unknown) => return Err(OnceError::Unknown.into()),
                (None, Unfinished::Again) => (kept.value, kept.revision),
            },
            None => {
                let stored = StoredOnce {
                    request: named.request.clone(),
                    at: Timestamp::now(),
                    answer: None,
                };
                let created = self.0.bucket.create(&named.place, &stored).await;
                (stored, created.map_err(OnceError::from)?)
            }
        };
        let done = match work.await {
            Ok(done) => done,
            Err(error) => {
                if let Err(error) = self.0.bucket.delete(&named.place, revision).await {
                    tracing::warn!(%error, "a request that failed is remembered all the same");
                }
                return Err(error);
            }
        };
        match seal(&named, &done) {
            Ok(answer) => stored.answer = Some(answer),
            // The same: it is done.
            Err(error) => {
                tracing::warn!(%error, "what came of a request is not kept");
                return Ok(done);
            }
        }
        if let Err(error) = self.0.bucket.update(&named.place, &stored, revision).await {
            // It is done, and the caller is told; only a second one would not
            // be.
            tracing::warn!(%error, "what came of a request is not kept");
        }
        Ok(done)
    }

    fn turn(&self, place: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut running = self
            .0
            .running
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(turn) = running.get(place).and_then(Weak::upgrade) {
            return turn;
        }
        running.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::new(tokio::sync::Mutex::default());
        running.insert(place.to_owned(), Arc::downgrade(&turn));
        turn
    }
}

fn cipher(named: &Named) -> Result<LessSafeKey, OnceError> {
    let key = UnboundKey::new(&CHACHA20_POLY1305, &*named.seal)
        .map_err(|_| OnceError::Damaged("its key is none"))?;
    Ok(LessSafeKey::new(key))
}

fn seal<T: Serialize>(named: &Named, answer: &T) -> Result<String, OnceError> {
    let mut bytes =
        serde_json::to_vec(answer).map_err(|_| OnceError::Damaged("it has no JSON form"))?;
    if bytes.len() > LARGEST {
        return Err(OnceError::TooLarge);
    }
    let mut nonce = [0; NONCE_LEN];
    SystemRandom::new()
        .fill(&mut nonce)
        .map_err(|_| OnceError::Damaged("the system gives no random numbers"))?;
    let about = Aad::from(named.request.as_bytes());
    cipher(named)?
        .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), about, &mut bytes)
        .map_err(|_| OnceError::Damaged("it cannot be sealed"))?;
    let mut sealed = nonce.to_vec();
    sealed.append(&mut bytes);
    Ok(BASE64.encode(&sealed))
}

fn open<T: DeserializeOwned>(named: &Named, sealed: &str) -> Result<T, OnceError> {
    let mut bytes = BASE64
        .decode(sealed.as_bytes())
        .map_err(|_| OnceError::Damaged("it is not base64"))?;
    let (nonce, rest) = bytes
        .split_at_mut_checked(NONCE_LEN)
        .ok_or(OnceError::Damaged("it is cut"))?;
    let nonce =
        Nonce::try_assume_unique_for_key(nonce).map_err(|_| OnceError::Damaged("it is cut"))?;
    let about = Aad::from(named.request.as_bytes());
    let plain = cipher(named)?
        .open_in_place(nonce, about, rest)
        .map_err(|_| OnceError::Damaged("it was sealed by another cluster, or changed"))?;
    serde_json::from_slice(plain).map_err(|_| OnceError::Damaged("it is of another version"))
}
