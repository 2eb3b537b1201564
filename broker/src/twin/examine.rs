//! Whether the store is what it was.
//!
//! A stream has gone back when it ends before the twin's position, when it
//! holds something else where the twin saw its last messages, or when it was
//! made anew. Messages that are only missing prove nothing: they are replaced,
//! reach their age, and are removed.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::stream::{RawMessageErrorKind, Stream};
use futures_util::TryStreamExt as _;
use muster_protocol::ids::InstanceId;
use tokio::time::sleep;

use super::db::{Loss, Message, StreamRow};
use super::{ALL, CLUSTER, Followed, LEASE, Twin, bucket, nanos, now};
use crate::store::error::StreamError;
use crate::store::kv::is_gone;
use crate::store::read::read_from;
use crate::store::stream::get_stream;

/// So many of the newest messages are compared before nothing is said.
const COMPARED: usize = 16;
/// A stream that is missing is looked for again after so long: a server that
/// just starts may not know it yet.
const AGAIN: Duration = Duration::from_millis(250);
/// What an import of a backup leaves; see `backup::import`.
const MARKER: &str = "$KV.muster_cluster.restore";
/// How often.
const TIMES: u32 = 2;

/// Why the store could not be compared with the twin.
#[derive(Debug, thiserror::Error)]
#[error("the store cannot be compared with what was known of it: {0}")]
pub struct ExamineError(#[from] StreamError);

/// What a look at one stream shows.
enum Look {
    /// As it was, or longer.
    Same,
    /// It was not followed before.
    New { went_back: bool },
    /// It has gone back, and this is how it is now.
    Back { now: Now },
}

/// How a stream is now.
struct Now {
    row: StreamRow,
    /// The last sequence that the twin and it share; of a bucket, what it
    /// holds now.
    held: Held,
}

enum Held {
    Log { common: u64 },
    Values(HashMap<String, Message>),
}

impl Twin {
    /// Compares every stream. `true`: something was lost, now or at a look
    /// before, and is not put back yet.
    ///
    /// # Errors
    /// [`ExamineError`]: NATS gave no answer; nothing is known.
    pub async fn examine(&self, js: &Context) -> Result<bool, ExamineError> {
        let _one = self.0.looking.lock().await;
        if self.is_another(js).await? {
            tracing::warn!("the store was restored from a backup; the twin begins anew");
            self.reset().await;
        }
        let (mut found, mut until, mut known) = (Vec::new(), 0, 0);
        for followed in ALL {
            let before = self.row(followed).await;
            let look = self.look(js, followed, before).await?;
            match &look {
                Look::Same => {
                    until = until.max(before.map_or(0, |row| row.time));
                    known = known.max(before.map_or(0, |row| row.time));
                    continue;
                }
                Look::New { .. } => {
                    let mark = self.marks().get(followed.stream);
                    known = known.max(mark.map_or(0, |mark| mark.time));
                }
                Look::Back { now } => {
                    until = until.max(now.row.time);
                    known = known.max(before.map_or(0, |row| row.time));
                }
            }
            found.push((followed, look));
        }
        let loss = |marks| Loss {
            id: InstanceId::random(),
            found: now(),
            store_until: until,
            twin_until: known,
            marks,
        };
        let went_back = |look: &Look| match look {
            Look::Same => false,
            Look::New { went_back } => *went_back,
            Look::Back { .. } => true,
        };
        if found.iter().any(|(_, look)| went_back(look)) {
            // Before it is noted: what is said once by the twin is not to be
            // said again by the marks.
            for (followed, _) in found.iter().filter(|(_, look)| went_back(look)) {
                self.marks().forget(followed.stream);
            }
            self.store_marks().await;
        }
        let mut any = false;
        for (followed, look) in found {
            let stream = followed.stream;
            match look {
                Look::Same => {}
                Look::New { went_back: false } => {}
                Look::New { went_back: true } => {
                    tracing::error!(
                        stream,
                        "the store is older than this broker remembers, and the twin does not \
                         have what is missing"
                    );
                    let loss = loss(true);
                    self.write(move |db| db.nothing_held(loss)).await;
                    any = true;
                }
                Look::Back { now } => {
                    let loss = loss(false);
                    let lost = self
                        .write(move |db| match now.held {
                            Held::Log { common } => db.log_went_back(stream, common, now.row, loss),
                            Held::Values(values) => {
                                db.bucket_went_back(stream, &values, now.row, loss)
                            }
                        })
                        .await;
                    tracing::error!(stream, lost, "the store has gone back in time");
                    any |= lost.is_some_and(|lost| lost > 0);
                }
            }
        }
        if any {
            self.0.lost.send_modify(|times| *times += 1);
        }
        Ok(any || self.is_pending().await)
    }

    /// Whether something lost is not told yet.
    pub(crate) async fn is_pending(&self) -> bool {
        self.with(|db| db.loss()).await.flatten().is_some()
    }

    /// Whether a backup was put into the store after the twin last saw it: it
    /// went back on purpose.
    async fn is_another(&self, js: &Context) -> Result<bool, StreamError> {
        let Some(row) = self
            .row(bucket(CLUSTER, ""))
            .await
            .filter(|row| row.last > 0)
        else {
            return Ok(false);
        };
        let marker = match get_stream(js, CLUSTER).await {
            Ok(stream) => last(&stream, MARKER).await?,
            Err(StreamError::NoStream(_)) => None,
            Err(error) => return Err(error),
        };
        let Some(marker) = marker else {
            return Ok(false);
        };
        let held = self.with(|db| db.value(CLUSTER, MARKER)).await.flatten();
        let same = held.is_some_and(|held| held.payload == marker.payload);
        Ok(!same && marker.time > row.time)
    }

    async fn row(&self, followed: Followed) -> Option<StreamRow> {
        let name = followed.stream;
        self.with(move |db| db.stream(name)).await.flatten()
    }

    async fn look(
        &self,
        js: &Context,
        followed: Followed,
        before: Option<StreamRow>,
    ) -> Result<Look, StreamError> {
        let name = followed.stream;
        let mark = self.marks().get(name);
        let expected = before.is_some_and(|row| row.last > 0) || mark.is_some();
        // First what is held, then what the store has: what is written in
        // between only makes the store longer.
        let top = self.held_before(followed, u64::MAX, COMPARED).await;
        let stream = find(js, name, expected).await?;
        let (created, last) = stream.as_ref().map_or((0, 0), |stream| {
            let info = stream.cached_info();
            let created = i64::try_from(info.created.unix_timestamp_nanos()).unwrap_or(0);
            (created, info.state.last_sequence)
        });
        // The marks know more than both: the twin was lost, or is older.
        let marked = mark.is_some_and(|mark| {
            let other = mark.created != created && mark.created != 0;
            let more = mark.last > before.map_or(0, |row| row.last);
            more && (other || mark.last > last)
        });
        let Some(row) = before else {
            let row = StreamRow {
                created,
                last: 0,
                time: 0,
            };
            if stream.is_some() {
                self.write(move |db| db.adopt(name, row)).await;
            }
            return Ok(Look::New { went_back: marked });
        };
        if marked {
            return Ok(Look::New { went_back: true });
        }
        let end = row.last.max(top.first().map_or(0, |message| message.seq));
        let Some(stream) = stream else {
            return if end == 0 {
                Ok(Look::Same)
            } else {
                Ok(Look::Back {
                    now: Now::nothing(followed),
                })
            };
        };
        let verdict = if last < end {
            Some(false)
        } else {
            compare(&stream, followed, &top).await?
        };
        let same = match verdict {
            Some(same) => same,
            // Nothing to compare: then it must be the same stream.
            None => row.created == created || end == 0,
        };
        if same {
            if row.created != created {
                let row = StreamRow { created, ..row };
                self.write(move |db| db.adopt(name, row)).await;
            }
            return Ok(Look::Same);
        }
        let row = StreamRow {
            created,
            last,
            time: 0,
        };
        let now = if followed.is_log {
            self.log_now(&stream, followed, row).await?
        } else {
            bucket_now(js, followed, row).await?
        };
        Ok(Look::Back { now })
    }

    async fn held_before(&self, followed: Followed, below: u64, limit: usize) -> Vec<Message> {
        let Followed { stream, is_log, .. } = followed;
        self.with(move |db| db.before(stream, is_log, below, limit))
            .await
            .unwrap_or_default()
    }

    /// The last message of a log that the store still has as the twin does:
    /// in steps that double, then by halves. A step may find something
    /// missing that was there; then the place is found too early, which costs
    /// nothing but work.
    async fn log_now(
        &self,
        stream: &Stream,
        followed: Followed,
        row: StreamRow,
    ) -> Result<Now, StreamError> {
        let (mut below, mut step) = (row.last, 1);
        // The newest that differs, and the newest that is known to be shared.
        let mut differs = u64::MAX;
        let mut shared = None;
        while below > 0 {
            let some = self.held_before(followed, below, COMPARED).await;
            let Some(newest) = some.first().map(|message| message.seq) else {
                break;
            };
            if let Some(found) = newest_shared(stream, followed, &some).await? {
                shared = Some(found);
                break;
            }
            differs = newest;
            let oldest = some.last().map_or(0, |message| message.seq);
            below = oldest.saturating_sub(step);
            step *= 2;
        }
        // Between the two.
        while let Some((low, _)) = shared {
            let middle = low + differs.min(row.last).saturating_sub(low) / 2;
            if middle <= low {
                break;
            }
            let some = self.held_before(followed, middle, 1).await;
            match some.first() {
                Some(message) if message.seq > low => {
                    if let Some(found) = newest_shared(stream, followed, &some).await? {
                        shared = Some(found);
                    } else {
                        differs = message.seq;
                    }
                }
                // Nothing is held in the lower half.
                _ => {
                    let above = self
                        .held_before(followed, differs.saturating_sub(1), 1)
                        .await;
                    match above.first() {
                        Some(message) if message.seq > low => {
                            if let Some(found) = newest_shared(stream, followed, &above).await? {
                                shared = Some(found);
                                break;
                            }
                            differs = message.seq;
                        }
                        _ => break,
                    }
                }
            }
        }
        let (common, time) = shared.unwrap_or_default();
        Ok(Now {
            row: StreamRow {
                last: common,
                time,
                ..row
            },
            held: Held::Log { common },
        })
    }
}

impl Now {
    fn nothing(followed: Followed) -> Self {
        Self {
            row: StreamRow {
                created: 0,
                last: 0,
                time: 0,
            },
            held: if followed.is_log {
                Held::Log { common: 0 }
            } else {
                Held::Values(HashMap::new())
            },
        }
    }
}

/// The stream, or nothing when the server has none of that name.
async fn find(js: &Context, name: &str, expected: bool) -> Result<Option<Stream>, StreamError> {
    let mut times = 0;
    loop {
        match get_stream(js, name).await {
            Ok(stream) => return Ok(Some(stream)),
            Err(StreamError::NoStream(_)) if !expected || times == TIMES => return Ok(None),
            Err(StreamError::NoStream(_)) => times += 1,
            Err(error) => return Err(error),
        }
        sleep(AGAIN).await;
    }
}

/// Whether the store holds what the twin does; `None` when it holds nothing
/// at any of these places.
async fn compare(
    stream: &Stream,
    followed: Followed,
    held: &[Message],
) -> Result<Option<bool>, StreamError> {
    for message in held {
        if let Some(found) = at(stream, message.seq).await? {
            return Ok(Some(is_same(followed, message, &found)));
        }
    }
    Ok(None)
}

/// The newest of these that the store holds in the same way.
async fn newest_shared(
    stream: &Stream,
    followed: Followed,
    held: &[Message],
) -> Result<Option<(u64, i64)>, StreamError> {
    for message in held {
        match at(stream, message.seq).await? {
            Some(found) if is_same(followed, message, &found) => {
                return Ok(Some((message.seq, message.time)));
            }
            // Something else: all that is newer differs, too.
            Some(_) | None => {}
        }
    }
    Ok(None)
}

fn is_same(followed: Followed, held: &Message, found: &Message) -> bool {
    held.subject == found.subject
        && held.gone == found.gone
        && held.payload == found.payload
        // Whoever wrote a value told it with a time of its own.
        && (!followed.is_log || held.time == found.time)
}

/// The message at a place.
async fn at(stream: &Stream, sequence: u64) -> Result<Option<Message>, StreamError> {
    match stream.get_raw_message(sequence).await {
        Ok(found) => Ok(Some(Message {
            seq: found.sequence,
            time: i64::try_from(found.time.unix_timestamp_nanos()).unwrap_or(0),
            subject: found.subject.to_string(),
            gone: is_gone(&found.headers),
            payload: found.payload,
        })),
        Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(StreamError::NoAnswer {
            what: format!(
                "message {sequence} of `{}`",
                stream.cached_info().config.name
            ),
            reason: error.to_string(),
        }),
    }
}

/// The last message of a subject, if it has one.
pub(super) async fn last(stream: &Stream, subject: &str) -> Result<Option<Message>, StreamError> {
    match stream.get_last_raw_message_by_subject(subject).await {
        Ok(found) => Ok(Some(Message {
            seq: found.sequence,
            time: i64::try_from(found.time.unix_timestamp_nanos()).unwrap_or(0),
            subject: found.subject.to_string(),
            gone: is_gone(&found.headers),
            payload: found.payload,
        })),
        Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(StreamError::NoAnswer {
            what: format!("the last message of `{subject}`"),
            reason: error.to_string(),
        }),
    }
}

/// What a bucket holds now.
async fn bucket_now(
    js: &Context,
    followed: Followed,
    mut row: StreamRow,
) -> Result<Now, StreamError> {
    let mut messages = read_from(js, followed.stream, followed.filter, 1).await?;
    let mut values = HashMap::new();
    while let Some(message) = messages.try_next().await? {
        if message.subject == LEASE {
            continue;
        }
        let value = Message {
            seq: message.sequence,
            time: nanos(message.time),
            subject: message.subject.clone(),
            gone: is_gone(&message.headers),
            payload: message.payload,
        };
        row.time = row.time.max(value.time);
        values.insert(message.subject, value);
    }
    Ok(Now {
        row,
        held: Held::Values(values),
    })
}
