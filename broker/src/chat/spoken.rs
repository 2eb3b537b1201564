//! What is to be said in chat networks, in one stream with a subject for each
//! network: whoever says it goes on from a place in it, so that nothing is
//! lost while nobody is there to say it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::DeliverPolicy;
use data_encoding::HEXLOWER;
use futures_util::TryStreamExt as _;
use muster_protocol::api::{Say, Utterance};
use muster_protocol::names::NetworkName;
use muster_protocol::subject;
use muster_protocol::text::printable;
use sha2::{Digest as _, Sha256};

use crate::events::place::{Place, Places};
use crate::lease::Lease;
use crate::store::append::{Append, append};
use crate::store::error::StreamError;
use crate::store::kv::KvError;
use crate::store::live::Live;
use crate::store::read::read_from;
use crate::store::stream::{StreamSettings, WhenFull, ensure_stream, get_stream};

/// The stream that holds it.
pub const STREAM: &str = "MUSTER_CHAT";
/// How long it is kept: what was to be said before is no news.
pub const KEPT: Duration = Duration::from_secs(2 * 86_400);
/// Most bytes of all of it; the oldest goes first. On a small disk the next of
/// these that there is room for.
const MAX_BYTES: [u64; 2] = [16 << 20, 2 << 20];
/// Within this time the server itself knows what it has.
const KNOWN_FOR: Duration = Duration::from_secs(600);
/// Messages fetched at a time for whoever listens.
const BATCH: usize = 50;
/// The name of the place that [`Spoken::begins_after`] is of.
const PLACE: &str = "chat.feed";
/// Most lines of one utterance.
pub const MAX_LINES: usize = 40;
/// Longest line, in characters.
pub const MAX_LINE: usize = 1_000;

/// Why it cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("what is to be said in chat cannot be kept: {0}")]
pub enum SpokenError {
    /// The stream.
    Stream(#[from] StreamError),
    /// The place.
    Place(#[from] KvError),
}

/// See the module. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Spoken(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    js: Context,
    lease: Lease,
    numbering: String,
    begins_after: u64,
}

impl Spoken {
    /// Makes the stream where there is none.
    ///
    /// # Errors
    /// [`SpokenError`].
    pub async fn open(
        js: Context,
        lease: Lease,
        places: &Places,
        numbering: String,
    ) -> Result<Self, SpokenError> {
        let mut limits = MAX_BYTES.into_iter();
        let mut limit = limits.next().unwrap_or_default();
        let last = loop {
            let settings = StreamSettings {
                max_bytes: Some(limit),
                max_age: Some(KEPT),
                duplicate_window: KNOWN_FOR,
                when_full: WhenFull::DropOld,
                ..StreamSettings::journal(
                    STREAM,
                    "what is to be said in chat networks",
                    &[subject::CHAT_ALL],
                )
            };
            match ensure_stream(&js, &settings).await {
                Err(StreamError::Full { what, reason }) => match limits.next() {
                    Some(less) => limit = less,
                    None => return Err(StreamError::Full { what, reason }.into()),
                },
                result => break result?.cached_info().state.last_sequence,
            }
        };
        // Places of another numbering lead behind what there was when this
        // one began.
        let begins_after = match places.get(PLACE).await? {
            Some(place) if place.numbering == numbering => place.seq.min(last),
            _ => {
                let place = Place {
                    seq: last,
                    numbering: numbering.clone(),
                    ..Place::default()
                };
                places.set(PLACE, &place).await?;
                last
            }
        };
        Ok(Self(Arc::new(Inner {
            js,
            lease,
            numbering,
            begins_after,
        })))
    }

    /// Which numbering its places are of.
    #[must_use]
    pub fn numbering(&self) -> &str {
        &self.0.numbering
    }

    /// The place behind which everything is of this numbering.
    #[must_use]
    pub fn begins_after(&self) -> u64 {
        self.0.begins_after
    }

    /// The last place.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn last(&self) -> Result<u64, StreamError> {
        let stream = get_stream(&self.0.js, STREAM).await?;
        Ok(stream.cached_info().state.last_sequence)
    }

    /// Puts something in; the same id soon after is the same. Only what can be
    /// shown, and not too much of it, is kept.
    ///
    /// # Errors
    /// [`StreamError`]; while this broker is not the active one,
    /// [`StreamError::NotReady`].
    pub async fn put(&self, utterance: Utterance) -> Result<(), StreamError> {
        let not_stored = |reason: &str| StreamError::NotReady {
            what: "what is to be said".into(),
            reason: reason.to_owned(),
        };
        if self.0.lease.epoch().is_none() {
            return Err(not_stored("this broker is not active now"));
        }
        let utterance = Utterance {
            say: clean(utterance.say),
            ..utterance
        };
        let json = serde_json::to_vec(&utterance).map_err(|e| not_stored(&e.to_string()))?;
        let subject = subject::chat(&utterance.place.network);
        let message = Append::new(subject, json).with_id(utterance.id);
        append(&self.0.js, STREAM, &message).await.map(drop)
    }

    /// The ids of the newest ones, at most so many.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn newest_ids(&self, most: u64) -> Result<HashSet<String>, StreamError> {
        let from = self.last().await?.saturating_sub(most).saturating_add(1);
        let mut messages = read_from(&self.0.js, STREAM, subject::CHAT_ALL, from).await?;
        let mut ids = HashSet::new();
        while let Some(message) = messages.try_next().await? {
            if let Ok(utterance) = serde_json::from_slice::<Utterance>(&message.payload) {
                ids.insert(utterance.id);
            }
        }
        Ok(ids)
    }

    /// What is to be said in that network behind a place.
    pub(crate) async fn listen(
        &self,
        network: &NetworkName,
        after: u64,
    ) -> Result<Live, StreamError> {
        let from = DeliverPolicy::ByStartSequence {
            start_sequence: after.saturating_add(1),
        };
        let why = "a bot listens for what it is to say";
        let subject = subject::chat(network);
        Live::begin(&self.0.js, STREAM, &subject, from, BATCH, why).await
    }
}

/// Only what can be shown, and not too much of it.
fn clean(mut say: Say) -> Say {
    let left = say.lines.len().saturating_sub(MAX_LINES);
    if left > 0 {
        say.lines.truncate(MAX_LINES - 1);
        say.lines.push(format!("+{} more lines", left + 1));
    }
    for line in &mut say.lines {
        *line = printable(line, MAX_LINE);
    }
    say.about = say.about.map(|about| printable(&about, 64));
    say.link = say.link.map(|link| printable(&link, MAX_LINE));
    say
}

/// The id of what is said of an event at a place: always the same.
#[must_use]
pub fn id_of(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    hash.update("muster chat 1");
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    HEXLOWER.encode(&hash.finalize()[..16])
}

#[cfg(test)]
mod tests {
    use muster_protocol::api::{Tone, Urgency};

    use super::*;

    #[test]
    fn what_is_kept_can_be_shown_and_has_bounds() {
        let say = clean(Say {
            urgency: Urgency::News,
            tone: Tone::Plain,
            about: Some("a\u{2}b".into()),
            lines: vec!["x\r\nPRIVMSG #ops :y\u{202e}".repeat(300); 100],
            link: Some("https://a\n".into()),
        });
        assert_eq!(say.lines.len(), MAX_LINES);
        assert_eq!(say.lines[MAX_LINES - 1], "+61 more lines");
        assert!(say.lines[0].starts_with("x\\x0d\\x0aPRIVMSG #ops :y\\u{202e}x"));
        assert!(say.lines.iter().all(|line| line.len() < 8 * MAX_LINE));
        assert_eq!(say.about.as_deref(), Some("a\\x02b"));
        assert_eq!(say.link.as_deref(), Some("https://a\\x0a"));
        assert_ne!(id_of(&["a", "b"]), id_of(&["ab", ""]));
    }
}
