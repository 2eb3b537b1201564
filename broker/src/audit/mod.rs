//! The record of who asked for what, and what was answered.
//!
//! Everything that is allowed to act, and everything that is denied, is in the
//! record before it goes on: [`Audit::append`] returns when JetStream has it.
//! What is only read is written behind, in order; the same question asked again
//! within a minute is counted ([`repeats`]). One task ([`owner`]) gives each
//! entry its place in the chain, takes all that wait into one message, and
//! signs checkpoints. [`sinks`] carry it all to places that the broker cannot
//! rewrite, each at its own pace, from the stream.

mod asked;
mod ends;
mod error;
mod known;
mod owner;
mod put_back;
mod read;
mod repeats;
mod retain;
mod settings;
mod sinks;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::jetstream::Context;
use muster_protocol::audit::{About, Entry, Verdict, Who};
use muster_protocol::subject::AUDIT;
use muster_protocol::units::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) use self::asked::Asked;
pub use self::asked::as_request;
pub use self::ends::End;
pub use self::error::AuditError;
use self::owner::{Owner, Place, ToRecord};
pub(crate) use self::put_back::put_back;
pub use self::read::{Filter, Found};
use self::repeats::Repeats;
pub use self::settings::{AuditConfig, SinkConfig};
use crate::authority::Authority;
use crate::events::Events;
use crate::lease::Lease;
use crate::state_dir::StateDir;
use crate::store::stream::{StreamSettings, ensure_stream};

/// The stream that holds it.
pub const STREAM: &str = "MUSTER_AUDIT";
/// Entries that wait to be written.
const WAITING: usize = 8_192;
/// How long a request waits for its entry to be written.
const WITHIN: Duration = Duration::from_secs(8);

/// What the record is opened with.
pub struct Parts {
    /// Where it is stored.
    pub js: Context,
    /// The right to write.
    pub lease: Lease,
    /// Signs checkpoints.
    pub authority: Authority,
    /// Where alarms go.
    pub events: Events,
    /// Where this broker notes how far the record was.
    pub state: StateDir,
    /// What the operator has set.
    pub config: AuditConfig,
}

/// The record. Cheap to clone.
#[derive(Clone)]
pub struct Audit(Arc<Inner>);

struct Inner {
    kept: Option<Kept>,
    repeats: Mutex<Repeats>,
}

struct Kept {
    js: Context,
    to_owner: mpsc::Sender<ToRecord>,
    ends: mpsc::UnboundedSender<End>,
    /// When the last message was stored before this session.
    since: Option<Timestamp>,
}

impl std::fmt::Debug for Audit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Audit").finish_non_exhaustive()
    }
}

/// Makes the stream where there is none.
///
/// # Errors
/// [`AuditError::Store`].
pub(crate) async fn ensure(js: &Context) -> Result<(), AuditError> {
    let settings = StreamSettings {
        duplicate_window: Duration::from_secs(600),
        ..StreamSettings::journal(STREAM, "who asked muster for what", &[AUDIT])
    };
    ensure_stream(js, &settings).await?;
    Ok(())
}

impl Audit {
    /// Opens the record and starts its tasks, which end with `cancel`, after
    /// what waits was written. Finds out whether the store has lost some of
    /// it, and records that.
    ///
    /// # Errors
    /// [`AuditError`].
    pub async fn open(
        parts: Parts,
        tasks: &TaskTracker,
        cancel: &CancellationToken,
    ) -> Result<Self, AuditError> {
        ensure(&parts.js).await?;
        let (place, damaged) = Place::find_or_damaged(&parts.js).await?;
        let since = place.time;
        let (to_owner, inbox) = mpsc::channel(WAITING);
        let (ends, ended) = mpsc::unbounded_channel();
        let (wrote, written) = watch::channel(place.sequence);
        let audit = Self(Arc::new(Inner {
            kept: Some(Kept {
                js: parts.js.clone(),
                to_owner,
                ends,
                since,
            }),
            repeats: Mutex::default(),
        }));
        for sink in &parts.config.sinks {
            let sink = sinks::Sink::new(sink.clone(), &parts, written.clone());
            let cancel = cancel.clone();
            tasks.spawn(sink.run(cancel));
        }
        tasks.spawn(retain::keep(
            audit.clone(),
            parts.config.keep.get(),
            cancel.clone(),
        ));
        tasks.spawn(ends::keep(audit.clone(), ended, since, cancel.clone()));
        let owner = Owner::new(parts, (place, damaged), wrote).await?;
        tasks.spawn(owner.run(inbox, audit.clone(), cancel.clone()));
        Ok(audit)
    }

    /// A record that nothing is written into, for tests.
    #[must_use]
    pub fn off() -> Self {
        Self(Arc::new(Inner {
            kept: None,
            repeats: Mutex::default(),
        }))
    }

    /// Writes an entry; when this returns it is in the record.
    ///
    /// # Errors
    /// [`AuditError`]; it may be in the record all the same, but whoever asked
    /// must not go on.
    pub async fn append(&self, entry: Entry) -> Result<(), AuditError> {
        let Some(kept) = &self.0.kept else {
            return Ok(());
        };
        let (tell, told) = oneshot::channel();
        let asked = async {
            let to = ToRecord::Entry {
                entry: Box::new(entry),
                tell: Some(tell),
            };
            kept.to_owner
                .send(to)
                .await
                .map_err(|_| AuditError::NotActive)?;
            told.await.map_err(|_| AuditError::NotActive)?
        };
        timeout(WITHIN, asked)
            .await
            .unwrap_or(Err(AuditError::Busy))
    }

    /// Writes an entry behind the caller's back; the same once more within a
    /// minute is only counted.
    pub fn note(&self, entry: Entry) {
        let Some(kept) = &self.0.kept else {
            return;
        };
        let Some(entry) = self.repeats().first(entry) else {
            return;
        };
        let to = ToRecord::Entry {
            entry: Box::new(entry),
            tell: None,
        };
        if kept.to_owner.try_send(to).is_err() {
            self.repeats().lost(Timestamp::now());
        }
    }

    /// A request without a valid token, from an address.
    pub fn stranger(&self, address: Option<std::net::IpAddr>, request: &str, why: &str) {
        let origin = match address {
            Some(address) => serde_json::json!({ "address": address }),
            None => serde_json::json!("unknown"),
        };
        self.note(Entry {
            who: Who {
                door: Some("http".to_owned()),
                origin: Some(origin),
                ..Who::default()
            },
            why: Some(muster_protocol::text::printable(why, 200)),
            about: Box::new(About {
                request: Some(muster_protocol::text::printable(request, 200)),
                ..About::default()
            }),
            ..Self::entry("authenticate", Verdict::Denied)
        });
    }

    /// A delivery was taken by a hook. What it leads to is recorded by itself.
    pub fn delivered(&self, address: Option<std::net::IpAddr>, hook: &str) {
        let hook = muster_protocol::text::printable(hook, 100);
        let mut entry = Self::entry("deliver", Verdict::Allowed);
        entry.who.door = Some("hook".to_owned());
        entry.who.origin = address.map(|address| serde_json::json!({ "address": address }));
        entry.about.request = Some(format!("POST /hooks/{hook}"));
        self.note(entry);
    }

    /// A machine wants to become a node by an invite.
    ///
    /// # Errors
    /// [`AuditError`].
    pub async fn enrols(&self, key: &muster_protocol::keys::PublicKey) -> Result<(), AuditError> {
        let mut entry = Self::entry("enroll", Verdict::Noted);
        entry.about.request = Some("POST /v1/enroll".to_owned());
        let key = serde_json::json!(key);
        entry.about.more.insert("node_key".to_owned(), key);
        self.append(entry).await
    }

    /// A run has ended: it gets its record, once, whatever happens to this
    /// broker. It is not waited for.
    pub(crate) fn ended(&self, end: End) {
        if let Some(kept) = &self.0.kept {
            let _ = kept.ends.send(end);
        }
    }

    /// From when on ends of runs may be missing in the record, when it has been
    /// kept before this session.
    pub(crate) fn missing_since(&self) -> Option<Timestamp> {
        let since = self.0.kept.as_ref()?.since?;
        Some(since.checked_sub(ends::MARGIN).unwrap_or(since))
    }

    /// Waits until nothing more is recorded.
    pub(crate) async fn closed(&self) {
        if let Some(kept) = &self.0.kept {
            kept.to_owner.closed().await;
        }
    }

    /// An entry of now, about nothing yet.
    #[must_use]
    pub fn entry(action: &str, verdict: Verdict) -> Entry {
        Entry {
            at: Timestamp::now(),
            who: Who::default(),
            action: action.to_owned(),
            verdict,
            why: None,
            times: None,
            until: None,
            about: Box::default(),
        }
    }

    /// Asks the owner for a checkpoint now.
    ///
    /// # Errors
    /// [`AuditError`].
    pub async fn checkpoint(&self) -> Result<(), AuditError> {
        let Some(kept) = &self.0.kept else {
            return Ok(());
        };
        let (tell, told) = oneshot::channel();
        let asked = async {
            let sent = kept.to_owner.send(ToRecord::Checkpoint(tell)).await;
            sent.map_err(|_| AuditError::NotActive)?;
            told.await.map_err(|_| AuditError::NotActive)?
        };
        timeout(WITHIN, asked)
            .await
            .unwrap_or(Err(AuditError::Busy))
    }

    fn repeats(&self) -> std::sync::MutexGuard<'_, Repeats> {
        self.0
            .repeats
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
