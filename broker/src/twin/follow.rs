//! The twin is filled behind the back of whoever writes: by a consumer on each
//! stream, in small batches.

use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::DeliverPolicy;
use futures_util::TryStreamExt as _;
use tokio::sync::watch;
use tokio::time::{Instant, interval, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::db::{Message, StreamRow};
use super::marks::Mark;
use super::{ALL, Followed, LEASE, Twin, nanos, now};
use crate::store::error::StreamError;
use crate::store::kv::is_gone;
use crate::store::live::Live;
use crate::store::read::{StoredMessage, read_from};

/// Messages fetched at a time.
const BATCH: usize = 500;
/// How long what comes is gathered before it is written.
const GATHER: Duration = Duration::from_millis(20);
/// Most messages and bytes written at a time.
const MOST: usize = 1_000;
const MOST_BYTES: usize = 4 << 20;
/// Pauses before it is tried again.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// How often a position is written that has nothing but a lease in it.
const POSITION_EVERY: Duration = Duration::from_secs(10);
/// How often the disk is made to have everything, while there is something.
const SYNC_EVERY: Duration = Duration::from_millis(200);
/// How often the marks are written.
const MARKS_EVERY: Duration = Duration::from_secs(15);
/// How long the end of a broker waits for the last messages.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How often what is old is let go, in [`MARKS_EVERY`].
const PRUNE_EVERY: u32 = 40;

impl Twin {
    /// Follows every stream until `cancel`. `connects` changes whenever a
    /// connection to NATS begins.
    pub async fn follow(
        self,
        js: Context,
        connects: watch::Receiver<u64>,
        cancel: CancellationToken,
    ) {
        let tasks = TaskTracker::new();
        for followed in ALL {
            let follower = Follower {
                twin: self.clone(),
                js: js.clone(),
                followed,
                connects: connects.clone(),
                written: Instant::now(),
            };
            let cancel = cancel.clone();
            tasks.spawn(async move {
                cancel.run_until_cancelled(Box::pin(follower.run())).await;
            });
        }
        let (twin, ended) = (self.clone(), cancel.clone());
        tasks.spawn(async move {
            ended.run_until_cancelled(twin.sync()).await;
        });
        let (twin, ended) = (self.clone(), cancel.clone());
        tasks.spawn(async move {
            ended.run_until_cancelled(twin.tend()).await;
        });
        tasks.close();
        tasks.wait().await;
        // What was written last, when there is the time for it.
        let rest = async {
            self.examine(&js).await.ok()?;
            self.catch_up(&js).await.ok()
        };
        if timeout(LAST_WORDS, rest).await.ok().flatten().is_none() {
            tracing::debug!("the twin does not have the last messages");
        }
        self.sync_now().await;
        self.store_marks().await;
    }

    /// Sees to it that the disk has everything soon, and nobody waits for it.
    async fn sync(&self) {
        let mut unsynced = self.0.unsynced.subscribe();
        loop {
            if unsynced.wait_for(|unsynced| *unsynced).await.is_err() {
                return;
            }
            self.sync_now().await;
            sleep(SYNC_EVERY).await;
        }
    }

    async fn sync_now(&self) {
        if !self.0.unsynced.send_replace(false) {
            return;
        }
        let Some(path) = self.with(|db| Ok(db.wal().to_owned())).await else {
            return;
        };
        // What is not in the log any more was synced when it was folded back.
        let synced = tokio::task::spawn_blocking(move || match std::fs::File::open(path) {
            Ok(file) => file.sync_data(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e),
        });
        if let Ok(Err(error)) = synced.await {
            tracing::warn!(%error, "the twin of the store cannot be synced to disk");
        }
    }

    async fn tend(&self) {
        let mut tick = interval(MARKS_EVERY);
        let mut looks = 0u32;
        loop {
            tick.tick().await;
            self.store_marks().await;
            if looks.is_multiple_of(PRUNE_EVERY) {
                self.prune().await;
            }
            looks = looks.wrapping_add(1);
        }
    }

    pub(super) async fn store_marks(&self) {
        let twin = self.clone();
        let stored = tokio::task::spawn_blocking(move || twin.marks().store(&twin.0.state));
        if let Ok(Err(error)) = stored.await {
            tracing::warn!(%error, "the marks of the twin cannot be stored");
        }
    }

    /// Lets go what is older or more than is kept.
    pub(super) async fn prune(&self) {
        let settings = self.0.settings;
        let keep = i64::try_from(settings.keep.as_nanos()).unwrap_or(i64::MAX);
        let before = now().saturating_sub(keep);
        let gone = self
            .write(move |db| db.prune(before, settings.max_bytes))
            .await;
        if let Some(gone @ 1..) = gone {
            tracing::debug!(gone, "the twin let go what is old");
        }
    }
}

impl Twin {
    /// Takes what the store has now and the twin does not, without waiting
    /// for the followers.
    ///
    /// # Errors
    /// [`StreamError`].
    pub(super) async fn catch_up(&self, js: &Context) -> Result<(), StreamError> {
        for followed in ALL {
            let Followed { stream, filter, .. } = followed;
            let Some(Some(row)) = self.with(move |db| db.stream(stream)).await else {
                continue;
            };
            let mut messages = read_from(js, stream, filter, row.last + 1).await?;
            let (mut batch, mut bytes, mut to) = (Vec::new(), 0, None);
            loop {
                let message = messages.try_next().await?;
                let ended = message.is_none();
                if let Some(message) = message {
                    to = Some((message.sequence, nanos(message.time)));
                    if let Some(message) = held(message) {
                        bytes += message.payload.len();
                        batch.push(message);
                    }
                }
                if ended || batch.len() >= MOST || bytes >= MOST_BYTES {
                    let batch = std::mem::take(&mut batch);
                    bytes = 0;
                    self.take(followed, batch, to).await;
                }
                if ended {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Takes messages of a stream that is followed, up to a position. `None`:
    /// there is no twin any more.
    async fn take(
        &self,
        followed: Followed,
        batch: Vec<Message>,
        to: Option<(u64, i64)>,
    ) -> Option<()> {
        let Followed { stream, is_log, .. } = followed;
        let row = self
            .write(move |db| {
                db.take(stream, is_log, &batch, to)?;
                db.stream(stream)
            })
            .await?;
        if let Some(StreamRow {
            created,
            last,
            time,
        }) = row
        {
            let mark = Mark {
                created,
                last,
                time,
            };
            self.marks().set(stream, mark);
        }
        Some(())
    }
}

/// What the twin holds of a message; nothing of a lease.
fn held(message: StoredMessage) -> Option<Message> {
    (message.subject != LEASE).then(|| Message {
        seq: message.sequence,
        time: nanos(message.time),
        gone: is_gone(&message.headers),
        subject: message.subject,
        payload: message.payload,
    })
}

struct Follower {
    twin: Twin,
    js: Context,
    followed: Followed,
    connects: watch::Receiver<u64>,
    /// When the position was written.
    written: Instant,
}

impl Follower {
    async fn run(mut self) {
        let mut connects = self.connects.clone();
        let mut pause = FIRST_PAUSE;
        loop {
            connects.borrow_and_update();
            let began = Instant::now();
            let broken = tokio::select! {
                // Whatever was under way is lost, and begins again.
                _ = connects.changed() => continue,
                read = self.read() => match read {
                    Ok(()) => return,
                    Err(reason) => reason,
                },
            };
            tracing::debug!(
                stream = self.followed.stream,
                broken,
                "the twin begins to follow anew"
            );
            pause = if began.elapsed() > LONGEST_PAUSE {
                FIRST_PAUSE
            } else {
                (pause * 2).min(LONGEST_PAUSE)
            };
            tokio::select! {
                () = sleep(pause) => {}
                _ = connects.changed() => {}
            }
        }
    }

    /// Reads until something breaks; `Ok` when there is no twin.
    async fn read(&mut self) -> Result<(), String> {
        let Followed {
            stream,
            filter,
            is_log,
        } = self.followed;
        // Never on from a position that the store does not share.
        let shared = self.twin.examine(&self.js).await;
        shared.map_err(|e| e.to_string())?;
        let Some(row) = self.twin.with(move |db| db.stream(stream)).await else {
            return Ok(());
        };
        let row = row.ok_or("there is no such stream")?;
        let deliver_policy = if row.last == 0 && is_log {
            let keep = self.twin.0.settings.keep;
            let from = std::time::SystemTime::now()
                .checked_sub(keep)
                .unwrap_or(std::time::UNIX_EPOCH);
            DeliverPolicy::ByStartTime {
                start_time: from.into(),
            }
        } else {
            DeliverPolicy::ByStartSequence {
                start_sequence: row.last + 1,
            }
        };
        let why = "muster keeps a twin";
        let live = Live::begin(&self.js, stream, filter, deliver_policy, BATCH, why).await;
        let mut live = live.map_err(|e| e.to_string())?;
        loop {
            let mut next = Some(live.next().await);
            let end = Instant::now() + GATHER;
            let (mut batch, mut bytes, mut to) = (Vec::new(), 0, (0, 0));
            while let Some(message) = next.take() {
                let message = message.map_err(|e| e.to_string())?;
                to = (message.sequence, nanos(message.time));
                if let Some(message) = held(message) {
                    bytes += message.payload.len();
                    batch.push(message);
                }
                if batch.len() < MOST && bytes < MOST_BYTES {
                    next = timeout_at(end, live.next()).await.ok();
                }
            }
            self.take(batch, to).await?;
        }
    }

    async fn take(&mut self, batch: Vec<Message>, to: (u64, i64)) -> Result<(), String> {
        if batch.is_empty() && self.written.elapsed() < POSITION_EVERY {
            return Ok(());
        }
        let taken = self.twin.take(self.followed, batch, Some(to)).await;
        self.written = Instant::now();
        taken.ok_or_else(|| "there is no twin any more".into())
    }
}
