//! A delivery, from its bytes to an event that is stored.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, header};
use data_encoding::HEXLOWER;
use muster_protocol::api::{ClusterEvent, HookView, OWN_SOURCE};
use muster_protocol::names::HookName;
use muster_protocol::text::printable;
use muster_protocol::units::Timestamp;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::Held;
use super::file::Hook;
use super::payload::{self, Draft, Unread};
use super::rate::{Bucket, Rate};
use super::verify::{Delivery, Refusal, verify};
use crate::events::Events;
use crate::events::put::PutError;

/// What came of a delivery.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Taken {
    /// It is an event.
    New,
    /// It had come before.
    Repeated,
    /// It is fine, and there is nothing to tell.
    Nothing,
}

/// Why a delivery was not taken.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// There is no such webhook, or the signature is not right: nobody is told
    /// which.
    #[error("there is no such webhook, or the delivery is not signed as it must be")]
    Refused,
    /// More than it may.
    #[error("more deliveries than this webhook takes ({rate})")]
    Limited {
        /// Its rate.
        rate: Rate,
        /// When there is room again.
        after: Duration,
    },
    /// Not JSON by its own word.
    #[error("the body must be JSON, with `Content-Type: application/json`")]
    ContentType,
    /// Not JSON.
    #[error("the body is no JSON: {0}")]
    Json(String),
    /// Not what the product sends.
    #[error(transparent)]
    Unread(Unread),
    /// It cannot be stored.
    #[error(transparent)]
    Put(#[from] PutError),
}

/// Webhooks at work. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Hooks(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    held: Held,
    events: Events,
    state: Mutex<BTreeMap<HookName, Arc<State>>>,
}

#[derive(Debug)]
struct State {
    bucket: Bucket,
    rate: Rate,
    taken: AtomicU64,
    repeated: AtomicU64,
    refused: AtomicU64,
    limited: AtomicU64,
    last: Mutex<(Option<Timestamp>, Option<String>)>,
}

impl State {
    fn new(rate: Rate) -> Self {
        Self {
            bucket: Bucket::full(rate, Instant::now()),
            rate,
            taken: AtomicU64::new(0),
            repeated: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            limited: AtomicU64::new(0),
            last: Mutex::default(),
        }
    }

    fn refuse(&self, why: &dyn std::fmt::Display) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        let why = printable(&why.to_string(), 300);
        self.last.lock().unwrap_or_else(PoisonError::into_inner).1 = Some(why);
    }
}

impl Hooks {
    /// The short names of what is typed in chats.
    #[must_use]
    pub fn aliases(&self) -> muster_protocol::chat::alias::Aliases {
        self.0.held.get().aliases.clone()
    }

    /// Those that are declared; what they tell goes into those events.
    #[must_use]
    pub fn new(held: Held, events: Events) -> Self {
        Self(Arc::new(Inner {
            held,
            events,
            state: Mutex::default(),
        }))
    }

    /// Most bytes of a body.
    #[must_use]
    pub fn max_body(&self) -> usize {
        self.0.held.get().max_body
    }

    /// All of them, by name.
    #[must_use]
    pub fn list(&self) -> Vec<HookView> {
        let declared = self.0.held.get();
        let views = declared.hooks.iter().map(|(name, hook)| {
            let state = self.state(name, hook);
            let (last, last_refusal) = state
                .last
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone();
            HookView {
                name: name.clone(),
                kind: hook.kind,
                path: format!("/hooks/{name}"),
                secrets: hook.secrets.len(),
                rate: hook.rate.to_string(),
                taken: state.taken.load(Ordering::Relaxed),
                repeated: state.repeated.load(Ordering::Relaxed),
                refused: state.refused.load(Ordering::Relaxed),
                limited: state.limited.load(Ordering::Relaxed),
                last,
                last_refusal,
            }
        });
        views.collect()
    }

    fn state(&self, name: &HookName, hook: &Hook) -> Arc<State> {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        let held = state
            .entry(name.clone())
            .or_insert_with(|| Arc::new(State::new(hook.rate)));
        if held.rate != hook.rate {
            *held = Arc::new(State::new(hook.rate));
        }
        Arc::clone(held)
    }

    /// Takes a delivery: whoever sent it may be told that it was taken once
    /// this returns.
    ///
    /// # Errors
    /// [`TakeError`]; it is not stored, or whether it is stored is in doubt
    /// and it may be sent again.
    pub async fn take(&self, name: &str, delivery: &Delivery<'_>) -> Result<Taken, TakeError> {
        let declared = self.0.held.get();
        let name = name.parse::<HookName>().ok();
        let found = name.and_then(|name| {
            let hook = declared.hooks.get(&name)?;
            Some((name, hook))
        });
        let now = Timestamp::now();
        let Some((name, hook)) = found else {
            // The same work as for one that there is.
            let _ = verify(
                muster_protocol::api::HookKind::Github,
                &[],
                Duration::ZERO,
                delivery,
                now,
            );
            return Err(TakeError::Refused);
        };
        let state = self.state(&name, hook);
        if let Err(refusal) = verify(hook.kind, &hook.secrets, hook.max_skew, delivery, now) {
            self.refused(&name, &state, &refusal);
            return Err(TakeError::Refused);
        }
        if let Err(after) = state.bucket.take(hook.rate, Instant::now()) {
            state.limited.fetch_add(1, Ordering::Relaxed);
            let rate = hook.rate;
            return Err(TakeError::Limited { rate, after });
        }
        let events = match read(&name, hook, delivery) {
            Ok(events) => events,
            Err(TakeError::Unread(Unread::Ignored(why))) => {
                tracing::debug!(hook = %name, why, "a delivery tells nothing");
                return Ok(Taken::Nothing);
            }
            Err(error) => {
                state.refuse(&error);
                return Err(error);
            }
        };
        // Once it is begun to be stored it is stored, also when whoever sent
        // it does not wait for the answer.
        let (store, count) = (self.0.events.clone(), events.len());
        let storing = tokio::spawn(async move {
            let mut repeated = 0;
            for event in events {
                let put = Box::pin(store.put(event)).await?;
                repeated += usize::from(put.duplicate);
            }
            Ok::<usize, PutError>(repeated)
        });
        let repeated = storing.await.unwrap_or(Err(PutError::NotReady));
        let repeated = match repeated {
            Ok(repeated) => repeated,
            Err(error) => {
                state.refuse(&error);
                return Err(error.into());
            }
        };
        if repeated == count {
            state.repeated.fetch_add(1, Ordering::Relaxed);
            return Ok(Taken::Repeated);
        }
        state.taken.fetch_add(1, Ordering::Relaxed);
        state.last.lock().unwrap_or_else(PoisonError::into_inner).0 = Some(now);
        Ok(Taken::New)
    }

    fn refused(&self, name: &HookName, state: &State, refusal: &Refusal) {
        tracing::warn!(hook = %name, %refusal, "a delivery was refused");
        state.refuse(refusal);
    }

    /// What a delivery would become, whoever sends it.
    ///
    /// # Errors
    /// `None`: there is no such webhook. Else why it becomes nothing.
    pub fn test(
        &self,
        name: &HookName,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Option<Result<Vec<ClusterEvent>, TakeError>> {
        let declared = self.0.held.get();
        let hook = declared.hooks.get(name)?;
        let mut headers = headers.clone();
        headers
            .entry(header::CONTENT_TYPE)
            .or_insert(header::HeaderValue::from_static("application/json"));
        let delivery = Delivery {
            headers: &headers,
            query: None,
            body,
        };
        Some(read(name, hook, &delivery))
    }
}

/// The events that a delivery becomes.
fn read(
    name: &HookName,
    hook: &Hook,
    delivery: &Delivery<'_>,
) -> Result<Vec<ClusterEvent>, TakeError> {
    let content = delivery.headers.get(header::CONTENT_TYPE);
    let content = content.and_then(|value| value.to_str().ok());
    let is_json = content.is_some_and(|content| {
        let kind = content.split(';').next().unwrap_or_default().trim();
        let kind = kind.to_ascii_lowercase();
        kind.ends_with("/json") || kind.ends_with("+json")
    });
    if !is_json {
        return Err(TakeError::ContentType);
    }
    let body: Value = serde_json::from_slice(delivery.body)
        .map_err(|error| TakeError::Json(error.to_string()))?;
    let drafts = payload::read(hook.kind, delivery.headers, body).map_err(TakeError::Unread)?;
    let digest = HEXLOWER.encode(&Sha256::digest(delivery.body));
    let said = payload::delivery_id(hook.kind, delivery.headers);
    let (id, known) = match said {
        Some(id) => (id, true),
        // Nobody says which one it is: then it is what it says, and when.
        None => {
            let mut hash = Sha256::new();
            for name in ["x-muster-timestamp", "x-gitlab-event"] {
                let value = super::verify::header(delivery.headers, name).unwrap_or_default();
                hash.update(value);
                hash.update(b"\0");
            }
            hash.update(delivery.body);
            let hash: [u8; 32] = hash.finalize().into();
            (HEXLOWER.encode(&hash[..16]), false)
        }
    };
    let several = drafts.len() > 1;
    let events = drafts.into_iter().map(|draft| {
        let Draft {
            kind,
            subject,
            text,
            at,
            data,
            unique,
        } = draft;
        let part = if several {
            format!(".{}", kind.rsplit('.').next().unwrap_or_default())
        } else {
            String::new()
        };
        ClusterEvent {
            source: format!("{OWN_SOURCE}/hooks/{name}"),
            at: at.unwrap_or_else(Timestamp::now),
            fields: data,
            hook: Some(name.clone()),
            delivery: Some(id.clone()),
            digest: (unique && known).then(|| digest.clone()),
            ..ClusterEvent::own(format!("{id}{part}"), &kind, &subject, text)
        }
    });
    Ok(events.collect())
}
