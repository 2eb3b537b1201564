//! Events from outside: through a webhook, or by somebody with a token.

use muster_protocol::api::{ClusterEvent, OWN_SOURCE};
use muster_protocol::text::printable;

use super::known::{self, keys};
use super::{Events, MAX_SUBJECT, MAX_TEXT, kinds};
use crate::store::error::StreamError;

/// Most bytes of an event, as JSON.
pub const MAX_EVENT: usize = 512 * 1024;
/// Longest id, source or kind, in bytes.
pub const MAX_ATTRIBUTE: usize = 256;
/// Most extension attributes.
pub const MAX_EXTENSIONS: usize = 16;

/// Why an event was not taken.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    /// Its id, source or kind is too long, or holds what cannot be shown.
    #[error("`{0}` of an event is 1 to {MAX_ATTRIBUTE} bytes of printable text")]
    Attribute(&'static str),
    /// Too many extension attributes.
    #[error("an event has at most {MAX_EXTENSIONS} extension attributes")]
    Extensions,
    /// Its source is one of muster's own.
    #[error("`source` begins with `{OWN_SOURCE}`, which is for events that muster makes itself")]
    OwnSource,
    /// Its kind is one of muster's own.
    #[error(
        "`{0}` is a kind of events that muster makes itself; `git.…`, `build.…`, `alarm.firing` and \
         names of your own, such as `org.example.thing`, are free"
    )]
    OwnKind(String),
    /// Too large.
    #[error("an event has at most {MAX_EVENT} bytes, this one has {0}")]
    TooLarge(usize),
    /// What is stored is not known yet.
    #[error("this broker has just begun and does not know yet which events there are")]
    NotReady,
    /// The store.
    #[error(transparent)]
    Store(#[from] StreamError),
}

/// What came of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Put {
    /// Its position in the stream.
    pub seq: u64,
    /// It was there already.
    pub duplicate: bool,
}

/// Holds an event of somebody with a token against what such events may be.
///
/// # Errors
/// [`PutError`].
pub fn check(event: &ClusterEvent) -> Result<(), PutError> {
    let plain = |text: &str| {
        (1..=MAX_ATTRIBUTE).contains(&text.len()) && printable(text, MAX_ATTRIBUTE) == text
    };
    for (name, text) in [
        ("id", &event.id),
        ("source", &event.source),
        ("type", &event.kind),
    ] {
        if !plain(text) {
            return Err(PutError::Attribute(name));
        }
    }
    if event.extensions.len() > MAX_EXTENSIONS {
        return Err(PutError::Extensions);
    }
    if event.source.starts_with(OWN_SOURCE) {
        return Err(PutError::OwnSource);
    }
    if kinds::is_own(&event.kind) {
        return Err(PutError::OwnKind(printable(&event.kind, 80)));
    }
    Ok(())
}

impl Events {
    /// Stores an event from outside, unless it is there: the same source and
    /// id, or the same digest, came before. Returns once it is stored.
    ///
    /// # Errors
    /// [`PutError`]; whether it is stored is only in doubt with
    /// [`StreamError::Unconfirmed`], and then it may be put again.
    pub async fn put(&self, mut event: ClusterEvent) -> Result<Put, PutError> {
        event.subject = printable(&event.subject, MAX_SUBJECT);
        event.text = printable(&event.text, MAX_TEXT);
        let size = serde_json::to_vec(&event).map_or(usize::MAX, |json| json.len());
        if size > MAX_EVENT {
            return Err(PutError::TooLarge(size));
        }
        if !self.0.known.ready().await {
            return Err(PutError::NotReady);
        }
        match self.0.known.see(keys(&event)).await {
            known::Seen::At(seq) => Ok(Put {
                seq,
                duplicate: true,
            }),
            known::Seen::New(storing) => {
                let stored = self.append(&event).await?;
                storing.stored(stored.sequence);
                tracing::debug!(kind = event.kind, id = event.id, "an event was put in");
                Ok(Put {
                    seq: stored.sequence,
                    duplicate: stored.duplicate,
                })
            }
        }
    }
}
