//! Whether a message is to be obeyed: the gate of the protocol, with what
//! this node has seen on disk before anything follows from it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_nats::Message;
use muster_protocol::PROTOCOL_VERSION;
use muster_protocol::envelope::{
    Ask, Gate, HighWater, Incoming, KEY_HEADER, Refusal, Request, SIGNATURE_HEADER, Sealed,
};
use muster_protocol::units::Timestamp;
use tracing::{error, info, warn};

use crate::identity::Identity;
use crate::journal::{Journal, JournalError};

/// How often each kind of refusal is logged at most.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// What is to be done with a message.
#[derive(Debug)]
pub enum Verdict {
    /// It is authentic, new and for this node.
    Obey {
        /// The request.
        request: Box<Request>,
        /// As it came.
        sealed: Sealed,
        /// It comes from a broker that became active since.
        new_broker: bool,
    },
    /// It is authentic and asks for a call that this node does not make; the
    /// broker is told why.
    Decline {
        /// The request.
        request: Box<Request>,
        /// As it came.
        sealed: Sealed,
        /// The reason, for people.
        reason: String,
    },
    /// A key that is not on the list here: there may be a newer list.
    UnknownKey,
    /// Nothing; it was counted.
    Drop,
}

/// Counts refusals, and says them without letting a flood fill the log.
#[derive(Debug, Default)]
pub struct Refusals {
    kinds: Mutex<BTreeMap<String, Kind>>,
}

#[derive(Debug, Default)]
struct Kind {
    total: u64,
    since_logged: u64,
    logged: Option<Instant>,
}

impl Refusals {
    /// All counts since the start, by kind.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<String, u64> {
        let kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        kinds
            .iter()
            .map(|(kind, counts)| (kind.clone(), counts.total))
            .collect()
    }

    /// Counts one; how many to log now, if it is time to.
    fn count(&self, kind: &str, now: Instant) -> Option<u64> {
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        let kind = kinds.entry(kind.to_owned()).or_default();
        kind.total += 1;
        kind.since_logged += 1;
        if kind
            .logged
            .is_some_and(|at| now.duration_since(at) < LOG_EVERY)
        {
            return None;
        }
        kind.logged = Some(now);
        Some(std::mem::take(&mut kind.since_logged))
    }

    fn add(&self, why: &Refusal, subject: &str) {
        let Some(count) = self.count(why.kind(), Instant::now()) else {
            return;
        };
        let kind = why.kind();
        match why {
            // An everyday thing: a request for a part of a role is sent to
            // the whole role.
            Refusal::NotInSet => info!(kind, count, subject, "not for this node: {why}"),
            Refusal::Replayed { .. } | Refusal::Late { .. } | Refusal::Early { .. } => warn!(
                kind,
                count,
                subject,
                "declined: {why}. If this goes on, the clock of this machine or of the broker is wrong: check time synchronisation"
            ),
            _ => warn!(kind, count, subject, "refused: {why}"),
        }
    }
}

/// The gate with its memory.
pub struct Verifier {
    identity: Identity,
    journal: Journal,
    seen: tokio::sync::Mutex<HighWater>,
    refusals: Arc<Refusals>,
}

impl Verifier {
    /// With what the journal remembers.
    ///
    /// # Errors
    /// [`JournalError`].
    pub async fn new(identity: Identity, journal: Journal) -> Result<Self, JournalError> {
        let seen = tokio::sync::Mutex::new(journal.high_water().await?);
        Ok(Self {
            identity,
            journal,
            seen,
            refusals: Arc::default(),
        })
    }

    /// The counts.
    #[must_use]
    pub fn refusals(&self) -> Arc<Refusals> {
        self.refusals.clone()
    }

    /// The highest broker epoch seen.
    pub async fn epoch(&self) -> u64 {
        self.seen.lock().await.epoch
    }

    /// Judges a message. On [`Verdict::Obey`] what was seen is on disk.
    pub async fn check(&self, message: &Message, now: Timestamp) -> Verdict {
        let headers = message.headers.as_ref();
        let header = |name: &str| {
            headers
                .and_then(|h| h.get(name))
                .map(async_nats::HeaderValue::as_str)
        };
        let key_text = header(KEY_HEADER);
        let signature_text = header(SIGNATURE_HEADER);
        let incoming = Incoming {
            key: key_text,
            signature: signature_text,
            bytes: &message.payload,
        };
        // Only for what the gate has believed; it has parsed both.
        let sealed = || {
            Some(Sealed {
                bytes: message.payload.to_vec(),
                key: key_text?.parse().ok()?,
                signature: signature_text?.parse().ok()?,
            })
        };
        let enrolled = self.identity.now();
        let mut seen = self.seen.lock().await;
        let gate = Gate {
            keys: &enrolled.keys,
            node: enrolled.serial(),
            seen: &seen,
        };
        let request = match gate.check(incoming, now) {
            Ok(request) => request,
            Err(refused) => {
                self.refusals.add(&refused.why, &message.subject);
                return match (refused.why, refused.request) {
                    (Refusal::UnknownKey(_), _) => Verdict::UnknownKey,
                    (why, Some(request))
                        if why.is_answered() && matches!(request.ask, Ask::Call(_)) =>
                    {
                        sealed().map_or(Verdict::Drop, |sealed| Verdict::Decline {
                            request,
                            sealed,
                            reason: why.to_string(),
                        })
                    }
                    _ => Verdict::Drop,
                };
            }
        };
        let request = Box::new(request);
        let Some(sealed) = sealed() else {
            return Verdict::Drop;
        };
        if request.v != PROTOCOL_VERSION {
            let reason = format!(
                "this agent speaks version {PROTOCOL_VERSION} of the protocol, the request is of version {}",
                request.v
            );
            return Verdict::Decline {
                request,
                sealed,
                reason,
            };
        }
        let key = sealed.key;
        let new_broker = seen.epoch != 0 && request.epoch > seen.epoch;
        if let Some(next) = seen.advanced(&request, key) {
            if let Err(e) = self.journal.set_high_water(&next).await {
                error!("what was seen of the broker cannot be stored: {e}");
                return match request.ask {
                    Ask::Call(_) => Verdict::Decline {
                        request,
                        sealed,
                        reason: format!(
                            "nothing was executed, because it cannot be journaled here: {e}"
                        ),
                    },
                    // Only a call changes the machine.
                    _ => Verdict::Obey {
                        request,
                        sealed,
                        new_broker: false,
                    },
                };
            }
            *seen = next;
        }
        Verdict::Obey {
            request,
            sealed,
            new_broker,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_counted_whole_and_logged_once_a_minute() {
        let refusals = Refusals::default();
        let start = Instant::now();
        assert_eq!(refusals.count("unsigned", start), Some(1));
        for _ in 0..999 {
            assert_eq!(
                refusals.count("unsigned", start + Duration::from_secs(59)),
                None
            );
        }
        assert_eq!(refusals.count("late", start), Some(1));
        assert_eq!(
            refusals.count("unsigned", start + Duration::from_secs(61)),
            Some(1000)
        );
        assert_eq!(refusals.counts()["unsigned"], 1001);
    }
}
