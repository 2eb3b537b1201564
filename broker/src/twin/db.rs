//! The twin's file: SQLite.
//!
//! `value` and `message` are what the store is known to hold; `lost_value`
//! and `lost_message` what it held once and does not hold any more, until
//! that is put back and told. Every change of which is which is one
//! transaction.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use muster_protocol::ids::InstanceId;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS stream (
    name TEXT PRIMARY KEY, created INTEGER NOT NULL, last INTEGER NOT NULL, time INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS value (
    stream TEXT NOT NULL, subject TEXT NOT NULL, seq INTEGER NOT NULL, time INTEGER NOT NULL,
    gone INTEGER NOT NULL, payload BLOB NOT NULL, PRIMARY KEY (stream, subject)
);
CREATE INDEX IF NOT EXISTS value_seq ON value (stream, seq);
CREATE TABLE IF NOT EXISTS message (
    stream TEXT NOT NULL, seq INTEGER NOT NULL, time INTEGER NOT NULL, subject TEXT NOT NULL,
    payload BLOB NOT NULL, PRIMARY KEY (stream, seq)
);
CREATE INDEX IF NOT EXISTS message_subject ON message (stream, subject, seq);
CREATE TABLE IF NOT EXISTS journal (
    stream TEXT NOT NULL, subject TEXT NOT NULL, time INTEGER NOT NULL, bytes INTEGER NOT NULL,
    PRIMARY KEY (stream, subject)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS lost_value (
    stream TEXT NOT NULL, subject TEXT NOT NULL, seq INTEGER NOT NULL, time INTEGER NOT NULL,
    gone INTEGER NOT NULL, payload BLOB NOT NULL, done INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (stream, subject)
);
CREATE TABLE IF NOT EXISTS lost_message (
    id INTEGER PRIMARY KEY, stream TEXT NOT NULL, seq INTEGER NOT NULL, time INTEGER NOT NULL,
    subject TEXT NOT NULL, payload BLOB NOT NULL, done INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS lost_subject ON lost_message (stream, subject, id);
CREATE TABLE IF NOT EXISTS loss (
    one INTEGER PRIMARY KEY CHECK (one = 1), id TEXT NOT NULL, found INTEGER NOT NULL,
    store_until INTEGER NOT NULL, twin_until INTEGER NOT NULL, marks INTEGER NOT NULL
);
PRAGMA user_version = 1;
";

/// The format that this version writes, and the only one that it reads.
const FORMAT: u32 = 1;
/// A message costs so many bytes beside its payload, about.
const OVERHEAD: i64 = 120;

/// Why the twin cannot be used. The broker goes on without it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DbError {
    /// The file.
    #[error("the twin {}: {source}", .path.display())]
    File {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// SQLite.
    #[error("the twin: {0}")]
    Sql(#[from] rusqlite::Error),
    /// A newer muster wrote it.
    #[error("the twin has format {0}, this muster knows {FORMAT}")]
    Format(u32),
    /// It is not what was written.
    #[error("the twin is damaged: {0}")]
    Damaged(String),
}

/// A message as the store held it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Message {
    pub(super) seq: u64,
    /// Nanoseconds since the epoch by the NATS server's clock; 0: not known.
    pub(super) time: i64,
    pub(super) subject: String,
    /// Of a bucket: the key has no value any more.
    pub(super) gone: bool,
    pub(super) payload: Bytes,
}

/// What is known of a stream as a whole.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct StreamRow {
    /// When it was made, nanoseconds since the epoch.
    pub(super) created: i64,
    /// The last sequence that was seen.
    pub(super) last: u64,
    /// When that was stored; 0: nothing was.
    pub(super) time: i64,
}

/// What was lost and is not told yet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Loss {
    pub(super) id: InstanceId,
    /// When it was found, nanoseconds.
    pub(super) found: i64,
    /// Up to when the store is as it was; 0: it is empty.
    pub(super) store_until: i64,
    /// Up to when it was known.
    pub(super) twin_until: i64,
    /// The twin held nothing of it: only that there was more is known.
    pub(super) marks: bool,
}

/// What became of something lost.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Done {
    /// It is in the store again.
    Back,
    /// The store has it, or something newer.
    Needless,
    /// It could not be put back.
    Gone,
}

impl Done {
    fn number(self) -> i64 {
        match self {
            Self::Back => 1,
            Self::Needless => 2,
            Self::Gone => 3,
        }
    }

    fn of(number: i64) -> Option<Self> {
        match number {
            1 => Some(Self::Back),
            2 => Some(Self::Needless),
            3 => Some(Self::Gone),
            _ => None,
        }
    }
}

/// Something lost, and what became of it.
#[derive(Clone, Debug)]
pub(super) struct LostValue {
    pub(super) stream: String,
    pub(super) value: Message,
    pub(super) done: Option<Done>,
}

fn int(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn seq(row: &Row<'_>, at: usize) -> rusqlite::Result<u64> {
    Ok(u64::try_from(row.get::<_, i64>(at)?).unwrap_or(0))
}

/// `seq, time, subject, gone, payload`
fn message(row: &Row<'_>) -> rusqlite::Result<Message> {
    Ok(Message {
        seq: seq(row, 0)?,
        time: row.get(1)?,
        subject: row.get(2)?,
        gone: row.get(3)?,
        payload: row.get::<_, Vec<u8>>(4)?.into(),
    })
}

/// The open file.
#[derive(Debug)]
pub(super) struct Db {
    connection: Connection,
    wal: PathBuf,
}

/// Subjects that all messages of their stream share.
const SINGLE: [&str; 2] = [
    muster_protocol::subject::EVENT,
    muster_protocol::subject::AUDIT,
];

impl Db {
    /// Opens or makes the file, for its owner alone.
    pub(super) fn open(path: &Path) -> Result<Self, DbError> {
        let file = |source| DbError::File {
            path: path.to_owned(),
            source,
        };
        // SQLite gives its log files the mode of the main file.
        File::options()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(path)
            .map_err(file)?;
        let connection = Connection::open(path)?;
        connection.busy_timeout(Duration::from_secs(2))?;
        connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        // What is written outlives this process at once; [`Db::sync`] sees to
        // power cuts, off the path of whoever waits.
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        connection.pragma_update(None, "cache_size", -2_048)?;
        connection.pragma_update(None, "journal_size_limit", 16 << 20)?;
        connection.set_prepared_statement_cache_capacity(32);
        let version: u32 = connection.pragma_query_value(None, "user_version", |r| r.get(0))?;
        if version > FORMAT {
            return Err(DbError::Format(version));
        }
        connection.execute_batch(SCHEMA)?;
        let mut wal = path.as_os_str().to_owned();
        wal.push("-wal");
        Ok(Self {
            connection,
            wal: wal.into(),
        })
    }

    /// The log file, for a sync without holding anybody up.
    pub(super) fn wal(&self) -> &Path {
        &self.wal
    }

    pub(super) fn stream(&self, name: &str) -> Result<Option<StreamRow>, DbError> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT created, last, time FROM stream WHERE name = ?1")?;
        let row = statement.query_row([name], |row| {
            Ok(StreamRow {
                created: row.get(0)?,
                last: seq(row, 1)?,
                time: row.get(2)?,
            })
        });
        Ok(row.optional()?)
    }

    /// Notes that a stream is followed from now on.
    pub(super) fn adopt(&self, name: &str, row: StreamRow) -> Result<(), DbError> {
        self.connection.execute(
            "INSERT INTO stream (name, created, last, time) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (name) DO UPDATE SET created = ?2, last = ?3, time = ?4",
            params![name, row.created, int(row.last), row.time],
        )?;
        Ok(())
    }

    /// Takes what the store has now: values, or messages of a log. `to` is
    /// how far the stream was seen, and when that was stored.
    pub(super) fn take(
        &mut self,
        stream: &str,
        is_log: bool,
        batch: &[Message],
        to: Option<(u64, i64)>,
    ) -> Result<(), DbError> {
        let transaction = self.connection.transaction()?;
        for message in batch {
            if is_log {
                put_message(&transaction, stream, message)?;
            } else {
                put_value(&transaction, stream, message)?;
            }
        }
        if let Some((last, time)) = to {
            transaction
                .prepare_cached(
                    "UPDATE stream SET last = MAX(last, ?2), time = MAX(time, ?3) WHERE name = ?1",
                )?
                .execute(params![stream, int(last), time])?;
        }
        transaction.commit()?;
        Ok(())
    }

    /// A key of a bucket was purged: nothing is known of it any more.
    pub(super) fn forget(&self, stream: &str, subject: &str) -> Result<(), DbError> {
        self.connection.execute(
            "DELETE FROM value WHERE stream = ?1 AND subject = ?2",
            params![stream, subject],
        )?;
        Ok(())
    }

    /// The newest message held at or before `below`, newest first.
    pub(super) fn before(
        &self,
        stream: &str,
        is_log: bool,
        below: u64,
        limit: usize,
    ) -> Result<Vec<Message>, DbError> {
        let sql = if is_log {
            "SELECT seq, time, subject, 0, payload FROM message WHERE stream = ?1 AND seq <= ?2
             ORDER BY seq DESC LIMIT ?3"
        } else {
            "SELECT seq, time, subject, gone, payload FROM value WHERE stream = ?1 AND seq <= ?2
             ORDER BY seq DESC LIMIT ?3"
        };
        let mut statement = self.connection.prepare_cached(sql)?;
        let rows = statement.query_map(params![stream, int(below), int(limit as u64)], message)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// One value of a bucket.
    pub(super) fn value(&self, stream: &str, subject: &str) -> Result<Option<Message>, DbError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT seq, time, subject, gone, payload FROM value WHERE stream = ?1 AND subject = ?2",
        )?;
        Ok(statement.query_row([stream, subject], message).optional()?)
    }

    /// The bucket went back: what the twin has and `now` has not is lost;
    /// from here on the twin holds `now`. Returns how much is lost.
    pub(super) fn bucket_went_back(
        &mut self,
        stream: &str,
        now: &HashMap<String, Message>,
        row: StreamRow,
        loss: Loss,
    ) -> Result<usize, DbError> {
        let transaction = self.connection.transaction()?;
        let mut lost = 0;
        {
            let mut statement = transaction.prepare(
                "SELECT seq, time, subject, gone, payload FROM value WHERE stream = ?1 ORDER BY seq",
            )?;
            let mut insert = transaction.prepare(
                "INSERT INTO lost_value (stream, subject, seq, time, gone, payload)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                 ON CONFLICT (stream, subject) DO UPDATE
                 SET seq = ?3, time = ?4, gone = ?5, payload = ?6, done = 0 WHERE time <= ?4",
            )?;
            let mut rows = statement.query([stream])?;
            while let Some(row) = rows.next()? {
                let held = message(row)?;
                let same = match now.get(&held.subject) {
                    Some(now) => now.gone == held.gone && now.payload == held.payload,
                    // What is not there is as good as gone.
                    None => held.gone,
                };
                if !same {
                    lost += insert.execute(params![
                        stream,
                        held.subject,
                        int(held.seq),
                        held.time,
                        held.gone,
                        &held.payload[..]
                    ])?;
                }
            }
        }
        transaction.execute("DELETE FROM value WHERE stream = ?1", [stream])?;
        for message in now.values() {
            put_value(&transaction, stream, message)?;
        }
        transaction.execute(
            "UPDATE stream SET created = ?2, last = ?3, time = ?4 WHERE name = ?1",
            params![stream, row.created, int(row.last), row.time],
        )?;
        note(&transaction, loss)?;
        transaction.commit()?;
        Ok(lost)
    }

    /// The log went back: what is after `common` is lost, and it is followed
    /// again from there. Returns how much is lost.
    pub(super) fn log_went_back(
        &mut self,
        stream: &str,
        common: u64,
        row: StreamRow,
        loss: Loss,
    ) -> Result<usize, DbError> {
        let transaction = self.connection.transaction()?;
        let lost = transaction.execute(
            "INSERT INTO lost_message (stream, seq, time, subject, payload)
             SELECT stream, seq, time, subject, payload FROM message
             WHERE stream = ?1 AND seq > ?2 ORDER BY seq",
            params![stream, int(common)],
        )?;
        transaction.execute(
            "DELETE FROM message WHERE stream = ?1 AND seq > ?2",
            params![stream, int(common)],
        )?;
        transaction.execute("DELETE FROM journal WHERE stream = ?1", [stream])?;
        transaction.execute(
            "INSERT INTO journal (stream, subject, time, bytes)
             SELECT stream, subject, MAX(time), SUM(LENGTH(payload) + ?2) FROM message
             WHERE stream = ?1 GROUP BY subject",
            params![stream, OVERHEAD],
        )?;
        transaction.execute(
            "UPDATE stream SET created = ?2, last = ?3, time = ?4 WHERE name = ?1",
            params![stream, row.created, int(row.last), row.time],
        )?;
        note(&transaction, loss)?;
        transaction.commit()?;
        Ok(lost)
    }

    /// There was more than the store has, and the twin has none of it.
    pub(super) fn nothing_held(&mut self, loss: Loss) -> Result<(), DbError> {
        let transaction = self.connection.transaction()?;
        note(&transaction, loss)?;
        transaction.commit()?;
        Ok(())
    }

    /// What was lost and is not told yet.
    pub(super) fn loss(&self) -> Result<Option<Loss>, DbError> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT id, found, store_until, twin_until, marks FROM loss")?;
        let row = statement.query_row([], |row| {
            Ok((
                row.get::<_, String>(0)?,
                Loss {
                    id: InstanceId::from_bytes([0; 16]),
                    found: row.get(1)?,
                    store_until: row.get(2)?,
                    twin_until: row.get(3)?,
                    marks: row.get(4)?,
                },
            ))
        });
        let Some((id, loss)) = row.optional()? else {
            return Ok(None);
        };
        let id = id
            .parse()
            .map_err(|_| DbError::Damaged("the id of a loss".into()))?;
        Ok(Some(Loss { id, ..loss }))
    }

    /// All values that were lost.
    pub(super) fn lost_values(&self) -> Result<Vec<LostValue>, DbError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT seq, time, subject, gone, payload, stream, done FROM lost_value
             ORDER BY stream, seq",
        )?;
        let rows = statement.query_map([], |row| {
            Ok(LostValue {
                value: message(row)?,
                stream: row.get(5)?,
                done: Done::of(row.get(6)?),
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    pub(super) fn value_is(&self, stream: &str, subject: &str, done: Done) -> Result<(), DbError> {
        self.connection.execute(
            "UPDATE lost_value SET done = ?3 WHERE stream = ?1 AND subject = ?2",
            params![stream, subject, done.number()],
        )?;
        Ok(())
    }

    /// Subjects of a log with lost messages, in their order, and what became
    /// of each.
    pub(super) fn lost_subjects(
        &self,
        stream: &str,
    ) -> Result<Vec<(String, Option<Done>)>, DbError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT subject, MIN(done) FROM lost_message WHERE stream = ?1
             GROUP BY subject ORDER BY MIN(id)",
        )?;
        let rows = statement.query_map([stream], |row| {
            Ok((row.get(0)?, Done::of(row.get::<_, i64>(1)?)))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Everything that is known of one subject of a log: what the store has,
    /// as far as the twin has seen it, and what it lost.
    pub(super) fn known(
        &self,
        stream: &str,
        subject: &str,
    ) -> Result<(Vec<Message>, Vec<Message>), DbError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT seq, time, subject, 0, payload FROM message
             WHERE stream = ?1 AND subject = ?2 ORDER BY seq",
        )?;
        let held = statement.query_map([stream, subject], message)?;
        let held = held.collect::<Result<_, _>>()?;
        let mut statement = self.connection.prepare_cached(
            "SELECT seq, time, subject, 0, payload FROM lost_message
             WHERE stream = ?1 AND subject = ?2 ORDER BY id",
        )?;
        let lost = statement.query_map([stream, subject], message)?;
        Ok((held, lost.collect::<Result<_, _>>()?))
    }

    pub(super) fn subject_is(
        &self,
        stream: &str,
        subject: &str,
        done: Done,
    ) -> Result<(), DbError> {
        self.connection.execute(
            "UPDATE lost_message SET done = ?3 WHERE stream = ?1 AND subject = ?2",
            params![stream, subject, done.number()],
        )?;
        Ok(())
    }

    /// How many lost messages there are of a log.
    pub(super) fn count_lost(&self, stream: &str, done: Done) -> Result<usize, DbError> {
        let n: i64 = self.connection.query_row(
            "SELECT COUNT(*) FROM lost_message WHERE stream = ?1 AND done = ?2",
            params![stream, done.number()],
            |row| row.get(0),
        )?;
        Ok(usize::try_from(n).unwrap_or(0))
    }

    /// Everything lost is told.
    pub(super) fn told(&mut self, id: InstanceId) -> Result<(), DbError> {
        let transaction = self.connection.transaction()?;
        if transaction.execute("DELETE FROM loss WHERE id = ?1", [id.to_string()])? > 0 {
            transaction.execute("DELETE FROM lost_value", [])?;
            transaction.execute("DELETE FROM lost_message", [])?;
        }
        transaction.commit()?;
        Ok(())
    }

    /// Lets go what is older than `before` (nanoseconds) or above `bytes`:
    /// whole journals, the one with the oldest end first, and single messages
    /// of other logs. Values stay for ever.
    pub(super) fn prune(&mut self, before: i64, bytes: u64) -> Result<usize, DbError> {
        let transaction = self.connection.transaction()?;
        let total: i64 =
            transaction.query_row("SELECT COALESCE(SUM(bytes), 0) FROM journal", [], |row| {
                row.get(0)
            })?;
        let mut above = total.saturating_sub(int(bytes));
        let mut gone = Vec::new();
        {
            let mut statement = transaction
                .prepare("SELECT stream, subject, time, bytes FROM journal ORDER BY time")?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let (time, size): (i64, i64) = (row.get(2)?, row.get(3)?);
                if time >= before && above <= 0 {
                    break;
                }
                above -= size;
                gone.push((row.get::<_, String>(0)?, row.get::<_, String>(1)?));
            }
        }
        let mut count = 0;
        for (stream, subject) in &gone {
            if SINGLE.contains(&subject.as_str()) {
                // One subject for all of them: each for itself.
                continue;
            }
            count += transaction
                .prepare_cached("DELETE FROM message WHERE stream = ?1 AND subject = ?2")?
                .execute(params![stream, subject])?;
            transaction
                .prepare_cached("DELETE FROM journal WHERE stream = ?1 AND subject = ?2")?
                .execute(params![stream, subject])?;
        }
        for subject in SINGLE {
            let (size, n): (i64, i64) = transaction.query_row(
                "SELECT COALESCE(SUM(LENGTH(payload) + ?3), 0), COUNT(*) FROM message
                 WHERE subject = ?1 AND time < ?2",
                params![subject, before, OVERHEAD],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )?;
            if n > 0 {
                count += transaction.execute(
                    "DELETE FROM message WHERE subject = ?1 AND time < ?2",
                    params![subject, before],
                )?;
                transaction.execute(
                    "UPDATE journal SET bytes = MAX(0, bytes - ?2) WHERE subject = ?1",
                    params![subject, size],
                )?;
            }
        }
        transaction.commit()?;
        if count > 0 {
            self.connection
                .execute_batch("PRAGMA incremental_vacuum(4096)")?;
        }
        Ok(count)
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) -> Result<(), DbError> {
        self.connection.execute_batch(
            "BEGIN; DELETE FROM stream; DELETE FROM value; DELETE FROM message;
             DELETE FROM journal; DELETE FROM lost_value; DELETE FROM lost_message;
             DELETE FROM loss; COMMIT;",
        )?;
        Ok(())
    }
}

fn put_value(connection: &Connection, stream: &str, value: &Message) -> Result<(), DbError> {
    // Whoever wrote tells it before the follower comes to it, and does not
    // know the time.
    connection
        .prepare_cached(
            "INSERT INTO value (stream, subject, seq, time, gone, payload)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT (stream, subject) DO UPDATE
             SET seq = ?3, time = MAX(time, ?4), gone = ?5, payload = ?6 WHERE seq <= ?3",
        )?
        .execute(params![
            stream,
            value.subject,
            int(value.seq),
            value.time,
            value.gone,
            &value.payload[..]
        ])?;
    Ok(())
}

fn put_message(connection: &Connection, stream: &str, message: &Message) -> Result<(), DbError> {
    let new = connection
        .prepare_cached(
            "INSERT OR IGNORE INTO message (stream, seq, time, subject, payload)
             VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![
            stream,
            int(message.seq),
            message.time,
            message.subject,
            &message.payload[..]
        ])?;
    if new == 0 {
        return Ok(());
    }
    let bytes = int(message.payload.len() as u64) + OVERHEAD;
    connection
        .prepare_cached(
            "INSERT INTO journal (stream, subject, time, bytes) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (stream, subject) DO UPDATE
             SET time = MAX(time, ?3), bytes = bytes + ?4",
        )?
        .execute(params![stream, message.subject, message.time, bytes])?;
    Ok(())
}

/// Notes a loss, or makes the one that is noted larger.
fn note(connection: &Connection, loss: Loss) -> Result<(), DbError> {
    connection.execute(
        "INSERT INTO loss (one, id, found, store_until, twin_until, marks)
         VALUES (1, ?1, ?2, ?3, ?4, ?5)
         ON CONFLICT (one) DO UPDATE SET store_until = MAX(store_until, ?3),
         twin_until = MAX(twin_until, ?4), marks = MIN(marks, ?5)",
        params![
            loss.id.to_string(),
            loss.found,
            loss.store_until,
            loss.twin_until,
            loss.marks
        ],
    )?;
    Ok(())
}
