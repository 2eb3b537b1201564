//! The one task that writes the record: it alone knows what the next entry
//! builds on.

use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::stream::RawMessageErrorKind;
use muster_protocol::audit::{Checkpoint, Entry, Line, Tail, Verdict};
use muster_protocol::subject::AUDIT;
use muster_protocol::units::Timestamp;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use super::error::AuditError;
use super::{Audit, Parts, STREAM, known};
use crate::store::append::{Append, append};
use crate::store::error::StreamError;
use crate::store::stream::{get_stream, last_of_subject};

/// Entries that share a message at most, and their bytes.
const MOST: usize = 512;
const MOST_BYTES: usize = 256 * 1024;
/// Bytes of what one entry is about.
const MOST_ABOUT: usize = 96 * 1024;
/// How often the clock is looked at.
const TICK: Duration = Duration::from_secs(1);
/// How long a session may take to end when its store has gone back.
const ABOUT_TO_END: Duration = Duration::from_secs(1);
/// A checkpoint follows so long after the first entry that it covers.
const CHECKPOINT_WITHIN: Duration = Duration::from_secs(60);
/// How long the end of a session waits for its last entries and checkpoint.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Messages without a record that are gone back over.
const BACK: u64 = 1_000;

type Told = oneshot::Sender<Result<(), AuditError>>;

/// What the owner is told.
pub(super) enum ToRecord {
    /// Something happened.
    Entry {
        entry: Box<Entry>,
        /// Who waits for it.
        tell: Option<Told>,
    },
    /// A checkpoint is wanted now.
    Checkpoint(Told),
    /// Everything before the message `keep_from` goes; it begins behind `tail`.
    Cut {
        tail: Tail,
        keep_from: u64,
        tell: Told,
    },
}

/// Where the record ends in the stream.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Place {
    /// The last message; 0 for none.
    pub(super) sequence: u64,
    /// The end of the chain.
    pub(super) tail: Tail,
    /// When the last message was stored.
    pub(super) time: Option<Timestamp>,
}

impl Place {
    /// Reads it from the stream.
    ///
    /// # Errors
    /// [`AuditError`].
    pub(super) async fn find(js: &Context) -> Result<Self, AuditError> {
        let Some(last) = last_of_subject(js, STREAM, AUDIT).await? else {
            return Ok(Self {
                sequence: 0,
                tail: Tail::START,
                time: None,
            });
        };
        let (sequence, time) = (last.sequence, Some(last.time));
        let mut payload = last.payload;
        let mut at = sequence;
        let stream = get_stream(js, STREAM).await?;
        loop {
            let text = String::from_utf8_lossy(&payload);
            if let Some(tail) = Tail::after_lines(&text) {
                return Ok(Self {
                    sequence,
                    tail,
                    time,
                });
            }
            // What is not a line of a record is not skipped in silence.
            let known = text
                .lines()
                .all(|line| serde_json::from_str::<Line>(line).is_ok());
            if !known || sequence - at >= BACK {
                return Err(AuditError::Unreadable { sequence: at });
            }
            at -= 1;
            payload = match stream.get_raw_message(at).await {
                Ok(message) => message.payload,
                Err(e) if e.kind() == RawMessageErrorKind::NoMessageFound => {
                    return Err(AuditError::Unreadable { sequence: at });
                }
                Err(e) => {
                    return Err(AuditError::Store(StreamError::NoAnswer {
                        what: format!("message {at} of `{STREAM}`"),
                        reason: e.to_string(),
                    }));
                }
            };
        }
    }
}

impl Place {
    /// The same; when the end cannot be read, behind it, and where that was.
    ///
    /// # Errors
    /// [`AuditError`].
    pub(super) async fn find_or_damaged(js: &Context) -> Result<(Self, Option<u64>), AuditError> {
        let damaged = match Self::find(js).await {
            Ok(place) => return Ok((place, None)),
            Err(AuditError::Unreadable { sequence }) => sequence,
            Err(error) => return Err(error),
        };
        let last = last_of_subject(js, STREAM, AUDIT).await?;
        let place = Self {
            sequence: last.as_ref().map_or(0, |last| last.sequence),
            tail: Tail::START,
            time: last.map(|last| last.time),
        };
        Ok((place, Some(damaged)))
    }
}

/// See the module.
pub(super) struct Owner {
    parts: Parts,
    /// Unknown after an append of which it is not known what came of it.
    place: Option<Place>,
    /// Where the record certainly goes to, whatever the store says later.
    reached: Tail,
    /// Cancelled when this session ends.
    ends: CancellationToken,
    /// How many records the last checkpoint counts.
    covered: u64,
    /// When the first entry was written that no checkpoint covers.
    uncovered: Option<Instant>,
    wrote: watch::Sender<u64>,
}

impl Owner {
    /// With what the stream and this disk know; a difference is recorded.
    ///
    /// # Errors
    /// [`AuditError`].
    pub(super) async fn new(
        parts: Parts,
        (place, damaged): (Place, Option<u64>),
        wrote: watch::Sender<u64>,
    ) -> Result<Self, AuditError> {
        let known = known::furthest(&parts.state, &parts.config)?.map(Tail::from);
        let owner = Self {
            reached: place.tail,
            ends: CancellationToken::new(),
            covered: place.tail.count,
            place: Some(place),
            uncovered: Some(Instant::now()),
            parts,
            wrote,
        };
        let tail = place.tail;
        if let Some(sequence) = damaged {
            let text = format!(
                "message {sequence} of the audit in the store is none that muster writes: it was changed there"
            );
            let more = json!({ "sequence": sequence });
            let place = Place {
                tail: known.unwrap_or(tail),
                ..place
            };
            return owner.goes_on(place, "audit-changed", text, more).await;
        }
        match known {
            Some(known) if known.count > tail.count => {
                let text = format!(
                    "the store has lost records {} to {} of the audit: it ends with record {}, and this broker's disk \
                     knows {}. Sinks may have them",
                    tail.count + 1,
                    known.count,
                    tail.count,
                    known.count
                );
                let more = json!({ "from": tail.count + 1, "to": known.count, "head": known.head });
                // The numbers that were given are not given again.
                let place = Place {
                    tail: known,
                    ..place
                };
                return owner.goes_on(place, "audit-gap", text, more).await;
            }
            Some(known) if known.count == tail.count && known.head != tail.head => {
                let text = format!(
                    "record {} of the audit is not the one that this broker has written: the record was changed in \
                     the store",
                    tail.count
                );
                let more = json!({ "record": tail.count, "head": known.head });
                return owner.goes_on(place, "audit-changed", text, more).await;
            }
            _ => {}
        }
        Ok(owner)
    }

    /// Something is wrong with the record: it says so itself, and people are
    /// told.
    async fn goes_on(
        mut self,
        place: Place,
        action: &str,
        text: String,
        more: serde_json::Value,
    ) -> Result<Self, AuditError> {
        tracing::error!("{text}");
        let mut entry = Audit::entry(action, Verdict::Noted);
        entry.why = Some(text.clone());
        entry.about.more = more.as_object().cloned().unwrap_or_default();
        self.write_at(place, vec![entry]).await?;
        let kind = format!("alarm.{action}");
        self.parts.events.emit(&kind, "audit", text).await;
        Ok(self)
    }

    /// Writes what comes, until `cancel` and everything that waits then.
    pub(super) async fn run(
        mut self,
        mut inbox: mpsc::Receiver<ToRecord>,
        audit: Audit,
        cancel: CancellationToken,
    ) {
        self.ends = cancel.clone();
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut batch = Vec::new();
        let work = async {
            loop {
                tokio::select! {
                    biased;
                    got = inbox.recv_many(&mut batch, MOST) => if got == 0 {
                        break;
                    },
                    () = cancel.cancelled() => break,
                    _ = tick.tick() => {
                        let due = audit.repeats().due(Timestamp::now(), false);
                        self.write_quietly(due).await;
                        self.tend().await;
                    }
                }
                self.take(std::mem::take(&mut batch)).await;
            }
            inbox.close();
            while inbox.recv_many(&mut batch, MOST).await > 0 {
                self.take(std::mem::take(&mut batch)).await;
            }
            let due = audit.repeats().due(Timestamp::now(), true);
            self.write_quietly(due).await;
            if let Err(error) = self.checkpoint().await {
                tracing::debug!(%error, "the last checkpoint of the audit could not be written");
            }
        };
        let over = async {
            cancel.cancelled().await;
            sleep(LAST_WORDS).await;
        };
        // A stream that is gone does not hold up the end; who waits for an
        // entry is told that it was not recorded.
        tokio::select! {
            () = work => {}
            () = over => tracing::warn!(
                "the last entries of the audit could not be written within {} s",
                LAST_WORDS.as_secs()
            ),
        }
        // Also where no checkpoint could be written: a store that goes back
        // behind this is found out.
        if self.reached.count > 0
            && let Err(error) = known::store(&self.parts.state, self.reached)
        {
            tracing::debug!(%error, "how far the record goes could not be noted");
        }
    }

    async fn take(&mut self, batch: Vec<ToRecord>) {
        let (mut entries, mut waiting) = (Vec::new(), Vec::new());
        let mut rest = Vec::new();
        for told in batch {
            match told {
                ToRecord::Entry { entry, tell } => {
                    entries.push(*entry);
                    waiting.push(tell);
                }
                other => rest.push(other),
            }
        }
        if !entries.is_empty() {
            self.write_all(entries, waiting).await;
        }
        for told in rest {
            match told {
                ToRecord::Checkpoint(tell) => {
                    let _ = tell.send(self.checkpoint().await);
                }
                ToRecord::Cut {
                    tail,
                    keep_from,
                    tell,
                } => {
                    let _ = tell.send(self.cut(tail, keep_from).await);
                }
                ToRecord::Entry { .. } => {}
            }
        }
        let every = u64::from(self.parts.config.checkpoint_every);
        let count = self.place.map_or(0, |place| place.tail.count);
        if count >= self.covered + every {
            self.tend_now().await;
        }
    }

    /// Messages of bounded size; each waiter is told what came of its own.
    async fn write_all(&mut self, entries: Vec<Entry>, waiting: Vec<Option<Told>>) {
        let mut pairs = entries.into_iter().map(bounded).zip(waiting).peekable();
        while pairs.peek().is_some() {
            let (mut page, mut told, mut bytes) = (Vec::new(), Vec::new(), 0);
            for ((entry, size), tell) in pairs.by_ref() {
                bytes += size;
                page.push(entry);
                told.push(tell);
                if bytes >= MOST_BYTES {
                    break;
                }
            }
            let written = self.write(page).await;
            for tell in told {
                let result = match &written {
                    Ok(()) => Ok(()),
                    Err(error) => {
                        if tell.is_none() {
                            tracing::warn!(%error, "a read request could not be recorded");
                        }
                        Err(again(error))
                    }
                };
                if let Some(tell) = tell {
                    let _ = tell.send(result);
                }
            }
        }
    }

    async fn write_quietly(&mut self, entries: Vec<Entry>) {
        if entries.is_empty() {
            return;
        }
        let waiting = entries.iter().map(|_| None).collect();
        self.write_all(entries, waiting).await;
    }

    async fn write(&mut self, entries: Vec<Entry>) -> Result<(), AuditError> {
        let known = self.place.is_some();
        let place = self.place().await?;
        match self.write_at(place, entries.clone()).await {
            // What was thought lost was stored after all; once more, behind it.
            Err(AuditError::Store(StreamError::Conflict { .. })) if known => {
                self.place = None;
                let place = self.place().await?;
                self.write_at(place, entries).await
            }
            result => result,
        }
    }

    async fn write_at(&mut self, place: Place, entries: Vec<Entry>) -> Result<(), AuditError> {
        let mut tail = place.tail;
        let lines: Vec<String> = entries
            .into_iter()
            .map(|entry| tail.append(entry))
            .collect();
        self.store(place, tail, lines.join("\n")).await?;
        self.uncovered.get_or_insert_with(Instant::now);
        Ok(())
    }

    /// The place, read from the stream when it is not known.
    async fn place(&mut self) -> Result<Place, AuditError> {
        if self.parts.lease.epoch().is_none() {
            return Err(AuditError::NotActive);
        }
        match self.place {
            Some(place) => Ok(place),
            None => {
                let mut place = Place::find(&self.parts.js).await?;
                // Where the store has gone back, this session is about to end:
                // behind what is written now, what is lost could not be put
                // back.
                if place.tail.count < self.reached.count {
                    let waited = self.ends.run_until_cancelled(sleep(ABOUT_TO_END)).await;
                    if waited.is_none() || self.parts.lease.epoch().is_none() {
                        return Err(AuditError::NotActive);
                    }
                    place = Place::find(&self.parts.js).await?;
                }
                Ok(*self.place.insert(place))
            }
        }
    }

    async fn store(&mut self, place: Place, tail: Tail, text: String) -> Result<(), AuditError> {
        if self.parts.lease.epoch().is_none() {
            return Err(AuditError::NotActive);
        }
        // The hash of the text: whoever repeats it, repeats this message.
        let id = data_encoding::HEXLOWER.encode(&Sha256::digest(text.as_bytes()));
        let message = Append::new(AUDIT, text)
            .expecting(place.sequence)
            .with_id(id);
        muster_checkpoint::at("broker.audit.before", || tail.count.to_string()).await;
        self.place = None;
        let appended = append(&self.parts.js, STREAM, &message).await?;
        muster_checkpoint::at("broker.audit.after", || tail.count.to_string()).await;
        self.reached = tail;
        self.place = Some(Place {
            sequence: appended.sequence,
            tail,
            time: Some(Timestamp::now()),
        });
        self.wrote.send_replace(appended.sequence);
        Ok(())
    }

    async fn tend(&mut self) {
        if self
            .uncovered
            .is_some_and(|since| since.elapsed() >= CHECKPOINT_WITHIN)
        {
            self.tend_now().await;
        }
    }

    async fn tend_now(&mut self) {
        if let Err(error) = self.checkpoint().await {
            tracing::warn!(%error, "a checkpoint of the audit could not be written");
        }
    }

    /// Signs how far the record is, unless that is said already.
    async fn checkpoint(&mut self) -> Result<(), AuditError> {
        let place = self.place().await?;
        if place.tail.count == 0 || (place.tail.count == self.covered && self.uncovered.is_none()) {
            return Ok(());
        }
        let line = self.signed(place.tail, false)?;
        self.store(place, place.tail, line).await?;
        self.covered = place.tail.count;
        self.uncovered = None;
        known::store(&self.parts.state, place.tail)?;
        Ok(())
    }

    fn signed(&self, tail: Tail, cut: bool) -> Result<String, AuditError> {
        let signer = self.parts.authority.signer();
        let said = Checkpoint {
            cluster: signer.cluster,
            epoch: self.parts.lease.epoch().ok_or(AuditError::NotActive)?,
            count: tail.count,
            head: tail.head,
            at: Timestamp::now(),
            cut,
        };
        let line = Line::Checkpoint(said.sign(&signer.key));
        Ok(serde_json::to_string(&line).unwrap_or_default())
    }

    /// Says what goes, then removes it.
    async fn cut(&mut self, tail: Tail, keep_from: u64) -> Result<(), AuditError> {
        let place = self.place().await?;
        let line = self.signed(tail, true)?;
        self.store(place, place.tail, line).await?;
        let stream = get_stream(&self.parts.js, STREAM).await?;
        let purged = stream.purge().sequence(keep_from).await;
        purged.map_err(|e| {
            AuditError::Store(StreamError::NoAnswer {
                what: format!("remove what is old from `{STREAM}`"),
                reason: e.to_string(),
            })
        })?;
        tracing::info!(
            records = tail.count,
            "old records of the audit were removed"
        );
        Ok(())
    }
}

/// The entry, cut to what is ever stored of one, and about how large it is.
fn bounded(mut entry: Entry) -> (Entry, usize) {
    let size = |entry: &Entry| serde_json::to_vec(&entry.about).map_or(0, |json| json.len());
    let mut bytes = size(&entry);
    if bytes > MOST_ABOUT
        && let Some(params) = &entry.about.params
    {
        let json = serde_json::to_vec(params).unwrap_or_default();
        let hash = data_encoding::HEXLOWER.encode(&Sha256::digest(&json));
        entry.about.params = Some(json!({ "too_long": { "bytes": json.len(), "sha256": hash } }));
        bytes = size(&entry);
    }
    if bytes > MOST_ABOUT {
        let json = serde_json::to_vec(&entry.about).unwrap_or_default();
        let hash = data_encoding::HEXLOWER.encode(&Sha256::digest(&json));
        let counts: serde_json::Map<String, serde_json::Value> = entry
            .about
            .sets
            .iter()
            .take(100)
            .map(|set| (set.name.clone(), set.count.into()))
            .collect();
        entry.about.sets.clear();
        entry.about.predicate = None;
        let more = json!({ "too_long": { "bytes": json.len(), "sha256": hash }, "sets": counts });
        entry.about.more = more.as_object().cloned().unwrap_or_default();
        bytes = size(&entry);
    }
    (entry, bytes + 500)
}

/// The same error for another one that waits.
fn again(error: &AuditError) -> AuditError {
    match error {
        AuditError::NotActive => AuditError::NotActive,
        AuditError::Busy => AuditError::Busy,
        AuditError::Unreadable { sequence } => AuditError::Unreadable {
            sequence: *sequence,
        },
        AuditError::Store(StreamError::Full { what, reason }) => {
            AuditError::Store(StreamError::Full {
                what: what.clone(),
                reason: reason.clone(),
            })
        }
        other @ (AuditError::Store(_) | AuditError::State(_)) => {
            AuditError::Store(StreamError::NoAnswer {
                what: "the record of requests".to_owned(),
                reason: other.to_string(),
            })
        }
    }
}
