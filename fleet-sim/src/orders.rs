//! The signed requests that nodes keep to prove what they were asked. Nodes
//! that heard the same message share one copy: it never changes.
//!
//! Unlike an agent's, a simulated node's memory is not on a disk. It ends with
//! the process, and so does what it could report or prove.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use muster_protocol::envelope::{Incoming, Sealed};
use muster_protocol::keys::{KeyId, KeyList, Signature, SignedText};

/// Above so many messages those that nobody keeps are forgotten.
const TIDY_ABOVE: usize = 1_024;
/// Lists of broker keys that are remembered.
const MOST_LISTS: usize = 16;

/// What a fleet keeps together.
#[derive(Debug, Default)]
pub struct Orders(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// By signature; those of another message differ.
    messages: HashMap<String, Weak<Sealed>>,
    lists: Vec<(KeyList, SignedText)>,
}

impl Orders {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A message to be kept, which the gate has let through.
    #[must_use]
    pub fn keep(&self, message: Incoming<'_>) -> Option<Arc<Sealed>> {
        let text = message.signature?;
        let mut inner = self.inner();
        if let Some(known) = inner.messages.get(text).and_then(Weak::upgrade)
            && known.bytes == message.bytes
        {
            return Some(known);
        }
        let kept = Arc::new(Sealed {
            bytes: message.bytes.to_vec(),
            key: message.key?.parse().ok()?,
            signature: text.parse::<Signature>().ok()?,
        });
        if inner.messages.len() > TIDY_ABOVE {
            inner.messages.retain(|_, kept| kept.strong_count() > 0);
        }
        inner
            .messages
            .insert(text.to_owned(), Arc::downgrade(&kept));
        Some(kept)
    }

    /// A list of broker keys that a node has taken.
    pub fn list(&self, list: &KeyList, signed: &SignedText) {
        let mut inner = self.inner();
        if inner
            .lists
            .iter()
            .any(|(known, _)| known.epoch == list.epoch)
        {
            return;
        }
        if inner.lists.len() >= MOST_LISTS {
            inner.lists.remove(0);
        }
        inner.lists.push((list.clone(), signed.clone()));
    }

    /// The newest list that names a key, or the newest of all.
    #[must_use]
    pub fn list_with(&self, key: Option<KeyId>) -> Option<SignedText> {
        let inner = self.inner();
        let names = |list: &KeyList| key.is_none_or(|key| list.find(key).is_some());
        let newest = inner.lists.iter().filter(|(list, _)| names(list));
        let newest = newest.max_by_key(|(list, _)| list.epoch);
        newest.map(|(_, signed)| signed.clone())
    }
}
