//! Bundles for nodes that lack them: in parts, as nodes ask, each node no
//! more than its share.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::Subject;
use bytes::Bytes;
use muster_protocol::ids::Serial;
use muster_protocol::wire::{BUNDLE_PART, BundleHead, BundleRequest};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::Bus;
use crate::library::{Library, LibraryError};

/// Parts that are on their way at a time.
const AT_ONCE: usize = 32;
/// How long a node waits for its turn before it is told to ask again.
const TURN_WITHIN: Duration = Duration::from_secs(3);
/// Bytes that a node may be given at once: a few of the largest bundles …
const BURST: u64 = 24 << 20;
/// … and in a second, for ever.
const PER_SECOND: u64 = 1 << 20;

/// Who is being given what.
pub(super) struct BundleDesk {
    library: Option<Library>,
    room: Semaphore,
    book: Mutex<Book>,
}

#[derive(Default)]
struct Book {
    /// Nodes that are being answered.
    busy: HashSet<Serial>,
    shares: Shares,
}

/// What nodes have been given: pure.
#[derive(Debug, Default)]
struct Shares(HashMap<Serial, Share>);

#[derive(Clone, Copy, Debug)]
struct Share {
    left: u64,
    filled: Instant,
}

impl Shares {
    /// Whether a node may have so many bytes now.
    fn take(&mut self, node: Serial, bytes: u64, now: Instant) -> bool {
        // Those that are full again need no note.
        let full = Duration::from_secs(BURST / PER_SECOND);
        if self.0.len() > 10_000 {
            self.0.retain(|_, share| now - share.filled < full);
        }
        let share = self.0.entry(node).or_insert(Share {
            left: BURST,
            filled: now,
        });
        let passed = u64::try_from((now - share.filled).as_millis()).unwrap_or(u64::MAX);
        let more = passed.saturating_mul(PER_SECOND) / 1_000;
        if more > 0 {
            share.left = share.left.saturating_add(more).min(BURST);
            share.filled = now;
        }
        match share.left.checked_sub(bytes) {
            Some(left) => {
                share.left = left;
                true
            }
            None => false,
        }
    }
}

impl BundleDesk {
    pub(super) fn new(library: Option<Library>) -> Self {
        Self {
            library,
            room: Semaphore::new(AT_ONCE),
            book: Mutex::default(),
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers a node, beside everything else. One that asks for several at
    /// a time is answered for the first.
    pub(super) fn serve(
        self: &Arc<Self>,
        bus: &Bus,
        node: Serial,
        request: BundleRequest,
        reply: Option<Subject>,
    ) {
        let Some(reply) = reply else { return };
        if !self.book().busy.insert(node) {
            return;
        }
        let (this, bus) = (Arc::clone(self), bus.clone());
        tokio::spawn(async move {
            let _done = Done { desk: &this, node };
            let (head, part) = match timeout(TURN_WITHIN, this.room.acquire()).await {
                Ok(Ok(_room)) => {
                    let (head, part) = this.answer(node, request).await;
                    // With the room still held: it is what bounds how much is
                    // on its way.
                    return bus.give(node, &reply, &head, part).await;
                }
                _ => (BundleHead::Busy, Bytes::new()),
            };
            bus.give(node, &reply, &head, part).await;
        });
    }

    async fn answer(&self, node: Serial, request: BundleRequest) -> (BundleHead, Bytes) {
        let none = |reason: String| (BundleHead::None { reason }, Bytes::new());
        let Some(library) = &self.library else {
            return none("this broker has no scenarios".to_owned());
        };
        let packed = match library.packed(request.bundle).await {
            Ok(packed) => packed,
            Err(error @ (LibraryError::NoBundle(_) | LibraryError::Damaged { .. })) => {
                tracing::warn!(%node, bundle = %request.bundle, %error, "a node asks for a bundle in vain");
                return none(error.to_string());
            }
            Err(error) => {
                tracing::warn!(%node, bundle = %request.bundle, %error, "a bundle cannot be read now");
                return (BundleHead::Busy, Bytes::new());
            }
        };
        let bytes = packed.len();
        let from = usize::try_from(request.from).unwrap_or(usize::MAX);
        if from >= bytes {
            return none(format!("the bundle has {bytes} bytes only"));
        }
        let part = packed.slice(from..bytes.min(from + BUNDLE_PART));
        if !self
            .book()
            .shares
            .take(node, part.len() as u64, Instant::now())
        {
            return (BundleHead::Busy, Bytes::new());
        }
        let head = BundleHead::Part {
            from: request.from,
            bytes: bytes as u64,
        };
        (head, part)
    }
}

/// A node is answered, however that ended.
struct Done<'a> {
    desk: &'a BundleDesk,
    node: Serial,
}

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.desk.book().busy.remove(&self.node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_gets_its_share_and_no_more_and_takes_from_nobody() {
        let begin = Instant::now();
        let mut shares = Shares::default();
        let part = BUNDLE_PART as u64;
        let taken = |shares: &mut Shares, node, at: u64| {
            let at = begin + Duration::from_millis(at);
            (0..1_000)
                .filter(|_| shares.take(Serial(node), part, at))
                .count() as u64
        };
        assert_eq!(taken(&mut shares, 1, 0), BURST / part);
        assert_eq!(taken(&mut shares, 2, 0), BURST / part);
        assert_eq!(taken(&mut shares, 1, 100), 0);
        assert_eq!(taken(&mut shares, 1, 1_100), PER_SECOND / part);
        assert_eq!(taken(&mut shares, 1, 1_000_000), BURST / part);
    }
}
