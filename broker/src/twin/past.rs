//! What is known of times that the store has lost.
//!
//! The list is in `muster_cluster` beside the lease, so that whichever broker
//! is active next knows it too.

use std::sync::Arc;
use std::time::Duration;

use muster_protocol::ids::InstanceId;
use muster_protocol::names::NodeName;
use muster_protocol::units::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, watch};

use crate::events::Events;
use crate::lease::Lease;
use crate::store::kv::{Kv, KvError};

/// The key in `muster_cluster`.
pub(crate) const KEY: &str = "went-back";
/// So many times are remembered.
const MOST: usize = 16;
/// A time that is so long ago concerns no node any more: none keeps what it
/// could report for longer.
const KEEP: Duration = Duration::from_secs(40 * 86_400);
/// What a node may still have, at most, when nothing better is known.
const NODES_KEEP: Duration = Duration::from_secs(30 * 86_400);
/// How far above a node's epoch the next one is: other nodes may have seen
/// later ones.
const ABOVE: u64 = crate::backup::LEAP;
/// No second node is believed within so long: one that lies could else keep
/// the broker from working at all.
/// Clocks and what is on its way: so much around a time belongs to it.
const SAME_TIME: Duration = Duration::from_secs(60);
const BELIEVE_EVERY: Duration = Duration::from_secs(86_400);
/// Characters of a numbering.
const NUMBERING: usize = 6;
/// People are told for so long.
const RECENT: Duration = Duration::from_secs(86_400);

/// How it came out that the store is older than it was.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Sign {
    /// This broker's twin held more; it was put back.
    Twin,
    /// The store is older than this broker remembers, and there was no twin
    /// that held more.
    Marks,
    /// A node has obeyed a broker of a higher epoch than any known here.
    Node,
    /// A node has shown the signed request of a run that is not known here.
    Run,
    /// A backup was restored.
    Backup,
}

/// One time that the store went back.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct WentBack {
    /// Which one.
    pub id: InstanceId,
    /// What nodes have said up to here is known (again). What they said later
    /// may be missing, and nodes are to report it again.
    pub since: Timestamp,
    /// When it was found.
    pub found: Timestamp,
    /// How.
    pub sign: Sign,
    /// What only ever rises (enrolment serials, revisions, issue times) has
    /// yet to jump above what nodes may have seen.
    pub leap: bool,
    /// In a few words, for people.
    pub what: String,
}

impl WentBack {
    /// Whether what happened at `at` may be missing already, as far as the
    /// beginning of that time goes.
    fn begins_by(&self, at: Timestamp) -> bool {
        self.since
            .checked_sub(SAME_TIME)
            .is_ok_and(|from| from <= at)
    }
}

/// What a node is told: everything that happened after `since`, of which it
/// still has the outcome, is to be reported again, unless it has done so for
/// `id` before.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ReportAgain {
    /// Rises with nothing: another id is another request.
    pub id: InstanceId,
    /// From when on.
    pub since: Timestamp,
}

/// The value of [`KEY`].
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct StoredPast {
    /// Oldest first.
    pub times: Vec<WentBack>,
}

impl StoredPast {
    /// What two brokers know, together.
    pub(super) fn and(mut self, other: Self) -> Self {
        for time in other.times {
            match self.times.iter_mut().find(|known| known.id == time.id) {
                Some(known) => known.leap &= time.leap,
                None => self.times.push(time),
            }
        }
        self.times.sort_by_key(|time| time.found);
        let more = self.times.len().saturating_sub(MOST);
        self.times.drain(..more);
        self
    }
}

/// The times that the store went back. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Past(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    known: watch::Sender<StoredPast>,
    /// Counts signs that the store is not what it was; see [`Past::suspect`].
    suspected: watch::Sender<u64>,
    kept: Option<Kept>,
}

#[derive(Debug)]
struct Kept {
    bucket: Kv<StoredPast>,
    lease: Lease,
    writing: Mutex<()>,
}

impl Past {
    /// What NATS knows of it. Only the active broker asks.
    ///
    /// # Errors
    /// [`KvError`].
    pub async fn load(bucket: Kv<StoredPast>, lease: Lease) -> Result<Self, KvError> {
        let known = bucket.get(KEY).await?.map(|e| e.value).unwrap_or_default();
        Ok(Self(Arc::new(Inner {
            known: watch::Sender::new(known),
            suspected: watch::Sender::new(0),
            kept: Some(Kept {
                bucket,
                lease,
                writing: Mutex::new(()),
            }),
        })))
    }

    /// A store that never went back, for tests.
    #[must_use]
    pub fn unbroken() -> Self {
        Self(Arc::new(Inner {
            known: watch::Sender::new(StoredPast::default()),
            suspected: watch::Sender::new(0),
            kept: None,
        }))
    }

    /// The numbering of streams that is in force; empty while the store never
    /// went back. A position of another numbering means nothing.
    #[must_use]
    pub fn numbering(&self) -> String {
        let known = self.0.known.borrow();
        let last = known.times.last();
        let text = last.map(|time| time.id.to_string()).unwrap_or_default();
        text.chars().take(NUMBERING).collect()
    }

    /// What nodes are to report again, if anything.
    #[must_use]
    pub fn report_again(&self) -> Option<ReportAgain> {
        let now = Timestamp::now();
        let known = self.0.known.borrow();
        let mut live = known
            .times
            .iter()
            .filter(|time| is_within(time.found, now, KEEP));
        let first = live.next()?;
        let mut told = ReportAgain {
            id: first.id,
            since: first.since,
        };
        for time in live {
            told.id = time.id;
            told.since = told.since.min(time.since);
        }
        Some(told)
    }

    /// Whether what was written of something that began at `at` may be lost in
    /// part. What began after that came out is whole: nothing was lost since.
    #[must_use]
    pub fn may_have_lost(&self, at: Timestamp) -> bool {
        let known = self.0.known.borrow();
        known
            .times
            .iter()
            .any(|time| time.begins_by(at) && at <= time.found)
    }

    /// Something that only this broker writes is not as it left it. Whether
    /// the store has gone back shows a comparison with the twin.
    pub fn suspect(&self) {
        self.0.suspected.send_modify(|times| *times += 1);
    }

    /// Changes whenever [something is suspected](Past::suspect).
    #[must_use]
    pub fn suspicions(&self) -> watch::Receiver<u64> {
        self.0.suspected.subscribe()
    }

    /// Changes of [`Past::report_again`] while a session lasts: nodes that are
    /// connected are to be told.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<StoredPast> {
        self.0.known.subscribe()
    }

    /// The times that people should still hear of, newest first.
    #[must_use]
    pub fn recent(&self) -> Vec<WentBack> {
        let now = Timestamp::now();
        let known = self.0.known.borrow();
        let recent = known
            .times
            .iter()
            .rev()
            .filter(|time| is_within(time.found, now, RECENT));
        recent.cloned().collect()
    }

    /// Remembers one more time, for ever and everybody.
    ///
    /// # Errors
    /// [`KvError`]: it is not stored, and not known here either.
    pub async fn add(&self, time: WentBack) -> Result<(), KvError> {
        let mut next;
        if let Some(kept) = &self.0.kept {
            let _one = kept.writing.lock().await;
            let stored = kept.bucket.get(KEY).await?;
            next = stored.as_ref().map(|e| e.value.clone()).unwrap_or_default();
            if next.times.iter().any(|known| known.id == time.id) {
                self.0.known.send_replace(next);
                return Ok(());
            }
            push(&mut next, time);
            match stored {
                Some(entry) => kept.bucket.update(KEY, &next, entry.revision).await?,
                None => kept.bucket.create(KEY, &next).await?,
            };
        } else {
            next = self.0.known.borrow().clone();
            push(&mut next, time);
        }
        self.0.known.send_replace(next);
        Ok(())
    }

    /// A node has obeyed a broker of a higher epoch than this one's: this
    /// broker, its disk included, has gone back in time. It gives its lease
    /// up and takes one above that epoch, and nodes are to report what they
    /// have. The session ends by that; the next one knows it.
    pub async fn node_saw(&self, node: &NodeName, epoch: u64, events: &Events) {
        let Some(kept) = &self.0.kept else { return };
        let Some(ours) = kept.lease.epoch().filter(|ours| *ours < epoch) else {
            return;
        };
        if kept.lease.seen() >= epoch {
            // Another node has said so, and the lease is being taken anew.
            return;
        }
        let now = Timestamp::now();
        let believed = self
            .0
            .known
            .borrow()
            .times
            .iter()
            .any(|time| time.sign == Sign::Node && is_within(time.found, now, BELIEVE_EVERY));
        if believed {
            tracing::error!(%node, theirs = epoch, ours, "a second node tells of an epoch that cannot be");
            let text = format!(
                "{node} has seen broker epoch {epoch}, this broker has {ours}: it refuses what this \
                 broker sends; if that lasts, look at that machine"
            );
            events.emit("alarm.epoch-behind", node.as_str(), text).await;
            return;
        }
        let what = format!(
            "{node} has obeyed a broker of epoch {epoch}, and this one had {ours}: this broker was \
             set back in time"
        );
        let time = WentBack {
            id: InstanceId::random(),
            since: now.checked_sub(NODES_KEEP).unwrap_or(Timestamp::MIN),
            found: now,
            sign: Sign::Node,
            leap: true,
            what: what.clone(),
        };
        if !kept.lease.can_exceed(epoch.saturating_add(ABOVE)) {
            tracing::error!(%node, epoch, "a node tells of an epoch that cannot be; it is not believed");
            return;
        }
        tracing::error!(%node, theirs = epoch, ours, "this broker was set back in time");
        if let Err(error) = self.add(time).await {
            tracing::error!(%error, "cannot note that the store went back");
        }
        let text = format!(
            "{what}. What nodes still know is reported again; everything else that happened since \
             is gone for good. Look at `muster nodes`, `muster token list` and `muster node invites`"
        );
        events
            .emit("alarm.store-went-back", node.as_str(), text)
            .await;
        // Last: it ends the session, and the right to write.
        kept.lease.exceed(epoch.saturating_add(ABOVE));
    }
}

impl Past {
    /// A node has shown a request that a broker of this cluster signed, of a
    /// run that this store does not know: it has lost what was written then.
    /// When that is news, all nodes are to report what they have: the lease is
    /// taken anew, and the session that begins with it knows it.
    pub async fn run_was_lost(&self, node: &NodeName, issued: Timestamp, events: &Events) {
        let Some(kept) = &self.0.kept else { return };
        let Some(ours) = kept.lease.epoch() else {
            return;
        };
        let covered = |time: &WentBack| {
            let to = time.found.checked_add(SAME_TIME);
            time.begins_by(issued) && to.is_ok_and(|to| issued <= to)
        };
        if self.0.known.borrow().times.iter().any(covered) {
            return;
        }
        let now = Timestamp::now();
        let what = format!(
            "{node} has done its part of a run of {issued} that is not known here: this broker was \
             set back in time"
        );
        let time = WentBack {
            id: InstanceId::random(),
            since: now.checked_sub(NODES_KEEP).unwrap_or(Timestamp::MIN),
            found: now,
            sign: Sign::Run,
            leap: true,
            what: what.clone(),
        };
        tracing::error!(%node, %issued, "this broker was set back in time");
        if let Err(error) = self.add(time).await {
            tracing::error!(%error, "cannot note that the store went back");
            return;
        }
        let text = format!(
            "{what}. What nodes still know is reported again; everything else that happened since \
             is gone for good. Look at `muster nodes`, `muster token list` and `muster node invites`"
        );
        events
            .emit("alarm.store-went-back", node.as_str(), text)
            .await;
        // Last: it ends the session, and the right to write.
        kept.lease.exceed(ours);
    }
}

fn push(past: &mut StoredPast, time: WentBack) {
    past.times.push(time);
    if past.times.len() > MOST {
        // Its beginning is not forgotten: nodes may yet have to report it.
        let old = past.times.remove(0);
        if let Some(first) = past.times.first_mut() {
            first.since = first.since.min(old.since);
        }
    }
}

/// Whether `at` is at most `span` ago; what is in the future is.
fn is_within(at: Timestamp, now: Timestamp, span: Duration) -> bool {
    now.checked_sub(span).is_ok_and(|from| at >= from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(found: Timestamp, since: i64) -> WentBack {
        WentBack {
            id: InstanceId::random(),
            since: Timestamp::from_second(since).unwrap(),
            found,
            sign: Sign::Twin,
            leap: false,
            what: String::new(),
        }
    }

    #[tokio::test]
    async fn nodes_report_from_the_earliest_time_and_old_times_are_over() {
        let past = Past::unbroken();
        assert_eq!((past.report_again(), past.numbering().as_str()), (None, ""));
        let now = Timestamp::now();
        let long_ago = now.checked_sub(KEEP * 2).unwrap();
        past.add(time(long_ago, 5)).await.unwrap();
        assert_eq!(past.report_again(), None);
        assert_eq!(past.numbering().len(), NUMBERING);
        past.add(time(now, 50)).await.unwrap();
        let last = time(now, 70);
        past.add(last.clone()).await.unwrap();
        let told = past.report_again().unwrap();
        assert_eq!((told.id, told.since.as_second()), (last.id, 50));
        assert_eq!(past.recent().len(), 2);
        for second in 0..20 {
            past.add(time(now, 100 + second)).await.unwrap();
        }
        let known = past.changes().borrow().clone();
        assert_eq!(known.times.len(), MOST);
        assert_eq!(known.times[0].since.as_second(), 5, "the earliest stays");
    }
}
