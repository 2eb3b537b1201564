//! The SQL.

use std::cell::Cell;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use muster_protocol::ids::{InstanceId, RequestId, RunId};
use muster_protocol::keys::KeyId;
use muster_protocol::run::{Data, NodeResult, Stream};
use muster_protocol::text::printable_line;
use muster_protocol::units::Timestamp;
use muster_protocol::wire::{InlineChunk, OutcomeReport};
use rusqlite::config::DbConfig;
use rusqlite::{
    Connection, OpenFlags, OptionalExtension as _, Row, Transaction, TransactionBehavior, params,
};

use super::{Chunk, Counts, Entry, JournalError, ProcessNote, StartNote, Unfinished};

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS step (
    run BLOB NOT NULL, step INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('queued', 'started', 'finished')),
    received INTEGER NOT NULL,
    started INTEGER, timeout_ms INTEGER, instance TEXT, boot_id TEXT,
    pid INTEGER, pid_started INTEGER, cgroup TEXT,
    finished INTEGER, result TEXT, chunks INTEGER, inline INTEGER,
    acknowledged INTEGER,
    PRIMARY KEY (run, step)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS step_open ON step (received) WHERE acknowledged IS NULL;
CREATE INDEX IF NOT EXISTS step_old ON step (acknowledged) WHERE acknowledged IS NOT NULL;
CREATE TABLE IF NOT EXISTS output (
    run BLOB NOT NULL, step INTEGER NOT NULL, chunk INTEGER NOT NULL,
    stream INTEGER NOT NULL, data BLOB NOT NULL,
    PRIMARY KEY (run, step, chunk)
);
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
PRAGMA user_version = 1;
";

/// A larger journal is not read through at the start: it takes too long.
const MAX_CHECKED: u64 = 64 << 20;

/// The connection, with what is known of the file. See the module's text.
pub struct Db {
    connection: Connection,
    /// How it commits now.
    commits: Cell<Commits>,
    /// Bytes of requests that are kept.
    pub(super) kept_bytes: Cell<u64>,
    /// The broker key whose list was kept last.
    pub(super) listed: Cell<Option<KeyId>>,
}

/// What a commit waits for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Commits {
    /// The disk has it, and everything before it.
    Durably,
    /// The kernel has it: it outlives the agent, not the machine.
    Quickly,
}

pub(super) fn millis(at: Timestamp) -> i64 {
    at.as_millisecond()
}

fn run_of(row: &Row<'_>) -> Result<RequestId, JournalError> {
    let bytes: Vec<u8> = row.get(0)?;
    let bytes = bytes
        .try_into()
        .map_err(|_| JournalError::Row("a run id".into()))?;
    Ok(RequestId {
        run: RunId::from_bytes(bytes),
        step: row.get(1)?,
    })
}

pub(super) fn key(request: &RequestId) -> (&[u8], u32) {
    (request.run.as_bytes().as_slice(), request.step)
}

fn connect(path: &Path) -> Result<Connection, rusqlite::Error> {
    let connection = Connection::open(path)?;
    // A local run writes too, but never for long; and what cannot be written
    // must be declined while the broker still waits for the answer.
    connection.busy_timeout(Duration::from_secs(2))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    // An idle agent holds little: 256 KiB of pages, and a log that is folded
    // back at 1 MiB.
    connection.pragma_update(None, "cache_size", -256)?;
    connection.pragma_update(None, "wal_autocheckpoint", 256)?;
    connection.pragma_update(None, "journal_size_limit", 4 << 20)?;
    connection.set_prepared_statement_cache_capacity(32);
    // A statement is planned once, not anew for each value that is put in.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    Ok(connection)
}

impl Db {
    /// Opens or makes the file, for its owner alone.
    ///
    /// # Errors
    /// [`JournalError::Open`].
    pub fn open(path: &Path) -> Result<Self, JournalError> {
        let fail = |why: String| JournalError::Open {
            path: path.to_owned(),
            why,
        };
        // SQLite gives its log files the mode of the main file.
        let mut options = std::fs::OpenOptions::new();
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        options
            .create(true)
            .append(true)
            .open(path)
            .map_err(|e| fail(e.to_string()))?;
        let open = || -> Result<Self, rusqlite::Error> {
            let fresh = Connection::open(path)?;
            // Only takes effect on an empty file.
            fresh.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
            drop(fresh);
            let connection = connect(path)?;
            let version: u32 = connection.pragma_query_value(None, "user_version", |r| r.get(0))?;
            if version > super::FORMAT {
                return Err(rusqlite::Error::InvalidPath(path.to_owned()));
            }
            connection.execute_batch(SCHEMA)?;
            // What was executed must be known: a damaged journal is found
            // now, not by a request that is done twice.
            if std::fs::metadata(path).is_ok_and(|m| m.len() <= MAX_CHECKED) {
                let found: String =
                    connection.pragma_query_value(None, "quick_check", |r| r.get(0))?;
                if found != "ok" {
                    return Err(rusqlite::Error::InvalidColumnName(found));
                }
            }
            connection.execute_batch(super::local::SCHEMA)?;
            connection.execute_batch(super::requests::SCHEMA)?;
            connection.execute_batch(super::pending::SCHEMA)?;
            Ok(Self {
                connection,
                commits: Cell::new(Commits::Durably),
                kept_bytes: Cell::default(),
                listed: Cell::default(),
            })
        };
        let db = open().map_err(|e| match e {
            rusqlite::Error::InvalidPath(_) => fail("a newer agent has written it".into()),
            rusqlite::Error::InvalidColumnName(found) => {
                fail(format!("it is damaged ({})", printable_line(&found)))
            }
            e => fail(e.to_string()),
        })?;
        db.count_kept().map_err(|e| fail(e.to_string()))?;
        Ok(db)
    }

    /// Counts in a journal that another process may be writing.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn counts_of(path: &Path) -> Result<Counts, JournalError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection =
            Connection::open_with_flags(path, flags).map_err(|e| JournalError::Open {
                path: path.to_owned(),
                why: e.to_string(),
            })?;
        connection.busy_timeout(Duration::from_secs(2))?;
        counts(&connection)
    }

    /// To read.
    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// To write what is on the disk when the commit returns.
    pub(super) fn durable(&self) -> Result<&Connection, rusqlite::Error> {
        self.committing(Commits::Durably)
    }

    /// To write what need not be: it is on the disk with the next durable
    /// commit, and lost only with the machine.
    pub(super) fn quick(&self) -> Result<&Connection, rusqlite::Error> {
        self.committing(Commits::Quickly)
    }

    /// One connection for both: with two, each write of one makes the other
    /// read its pages anew.
    fn committing(&self, how: Commits) -> Result<&Connection, rusqlite::Error> {
        // Within a transaction it stays as its beginner wants it.
        if self.commits.get() != how && self.connection.is_autocommit() {
            let synchronous = match how {
                Commits::Durably => "FULL",
                Commits::Quickly => "NORMAL",
            };
            self.connection
                .pragma_update(None, "synchronous", synchronous)?;
            self.commits.set(how);
        }
        Ok(&self.connection)
    }

    /// One that is on the disk when its commit returns.
    pub(super) fn transaction(&self) -> Result<Transaction<'_>, rusqlite::Error> {
        Transaction::new_unchecked(self.durable()?, TransactionBehavior::Immediate)
    }

    /// Everything or nothing, on the disk when it returns.
    pub(super) fn all<T>(
        &self,
        work: impl FnOnce() -> Result<T, JournalError>,
    ) -> Result<T, JournalError> {
        let transaction = self.transaction()?;
        let done = work()?;
        transaction.commit()?;
        Ok(done)
    }

    pub(super) fn look(&self, request: RequestId) -> Result<Option<Entry>, JournalError> {
        let mut statement = self
            .connection()
            .prepare_cached("SELECT state FROM step WHERE run = ?1 AND step = ?2")?;
        let state: Option<String> = statement
            .query_row(key(&request), |r| r.get(0))
            .optional()?;
        match state.as_deref() {
            None => Ok(None),
            Some("queued") => Ok(Some(Entry::Queued)),
            Some("started") => Ok(Some(Entry::Started)),
            Some("finished") => Ok(Some(Entry::Finished)),
            Some(other) => Err(JournalError::Row(other.to_owned())),
        }
    }

    pub(super) fn queue(&self, request: RequestId, now: Timestamp) -> Result<(), JournalError> {
        let (run, step) = key(&request);
        self.durable()?
            .prepare_cached(
                "INSERT INTO step (run, step, state, received) VALUES (?1, ?2, 'queued', ?3)",
            )?
            .execute(params![run, step, millis(now)])?;
        Ok(())
    }

    pub(super) fn start(
        &self,
        request: RequestId,
        note: &StartNote,
        now: Timestamp,
    ) -> Result<(), JournalError> {
        let (run, step) = key(&request);
        let rows = self
            .durable()?
            .prepare_cached(
                "INSERT INTO step (run, step, state, received, started, timeout_ms, instance, boot_id)
                 VALUES (?1, ?2, 'started', ?3, ?3, ?4, ?5, ?6)
                 ON CONFLICT (run, step) DO UPDATE SET state = 'started', started = ?3,
                     timeout_ms = ?4, instance = ?5, boot_id = ?6
                 WHERE state = 'queued'",
            )?
            .execute(params![
                run,
                step,
                millis(now),
                i64::try_from(note.timeout_ms).unwrap_or(i64::MAX),
                note.instance.to_string(),
                note.boot_id
            ])?;
        if rows == 1 {
            Ok(())
        } else {
            Err(JournalError::Sql(format!("{request} was begun before")))
        }
    }

    pub(super) fn process(
        &self,
        request: RequestId,
        note: &ProcessNote,
    ) -> Result<(), JournalError> {
        let (run, step) = key(&request);
        self.quick()?
            .prepare_cached(
                "UPDATE step SET pid = ?3, pid_started = ?4, cgroup = ?5 WHERE run = ?1 AND step = ?2",
            )?
            .execute(params![
                run,
                step,
                note.pid,
                i64::try_from(note.started).unwrap_or(i64::MAX),
                note.cgroup.as_ref().map(|p| p.to_string_lossy().into_owned())
            ])?;
        Ok(())
    }

    pub(super) fn output(&self, request: RequestId, chunk: &Chunk) -> Result<(), JournalError> {
        let (run, step) = key(&request);
        let stream = number_of(chunk.stream);
        self.quick()?
            .prepare_cached("INSERT OR REPLACE INTO output VALUES (?1, ?2, ?3, ?4, ?5)")?
            .execute(params![run, step, chunk.number, stream, &chunk.data[..]])?;
        Ok(())
    }

    pub(super) fn finish(
        &self,
        request: RequestId,
        result: &NodeResult,
        chunks: u32,
        inline: bool,
        now: Timestamp,
    ) -> Result<bool, JournalError> {
        let (run, step) = key(&request);
        let result = serde_json::to_string(result).map_err(|e| JournalError::Row(e.to_string()))?;
        let rows = self
            .durable()?
            .prepare_cached(
                "INSERT INTO step (run, step, state, received, finished, result, chunks, inline)
                 VALUES (?1, ?2, 'finished', ?3, ?3, ?4, ?5, ?6)
                 ON CONFLICT (run, step) DO UPDATE SET state = 'finished', finished = ?3, result = ?4,
                     chunks = ?5, inline = ?6
                 WHERE state <> 'finished'",
            )?
            .execute(params![run, step, millis(now), result, chunks, inline])?;
        Ok(rows == 1)
    }

    pub(super) fn drop_output(&self, request: RequestId) -> Result<(), JournalError> {
        self.durable()?
            .prepare_cached("DELETE FROM output WHERE run = ?1 AND step = ?2")?
            .execute(key(&request))?;
        Ok(())
    }

    pub(super) fn unfinished(&self) -> Result<Vec<Unfinished>, JournalError> {
        // A local run is its own process's while that lives.
        self.unfinished_where("run NOT IN (SELECT run FROM local)")
    }

    pub(super) fn unfinished_where(&self, which: &str) -> Result<Vec<Unfinished>, JournalError> {
        let mut statement = self.connection().prepare_cached(&format!(
            "SELECT run, step, state, timeout_ms, instance, boot_id, pid, pid_started, cgroup,
                 coalesce(started, received)
             FROM step WHERE state <> 'finished' AND acknowledged IS NULL AND {which}
             ORDER BY received",
        ))?;
        let mut rows = statement.query([])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            let request = run_of(row)?;
            let state: String = row.get(2)?;
            let start = if state == "started" {
                let instance: String = row.get(4)?;
                Some(StartNote {
                    instance: instance
                        .parse::<InstanceId>()
                        .map_err(|e| JournalError::Row(e.to_string()))?,
                    boot_id: row.get(5)?,
                    timeout_ms: u64::try_from(row.get::<_, i64>(3)?).unwrap_or_default(),
                })
            } else {
                None
            };
            let pid: Option<u32> = row.get(6)?;
            let started: Option<i64> = row.get(7)?;
            let cgroup: Option<String> = row.get(8)?;
            let process = pid.zip(started).map(|(pid, started)| ProcessNote {
                pid,
                started: u64::try_from(started).unwrap_or_default(),
                cgroup: cgroup.map(Into::into),
            });
            let received = Timestamp::from_millisecond(row.get(9)?)
                .map_err(|e| JournalError::Row(e.to_string()))?;
            found.push(Unfinished {
                request,
                received,
                start,
                process,
            });
        }
        Ok(found)
    }

    pub(super) fn unacknowledged(&self, limit: u32) -> Result<Vec<RequestId>, JournalError> {
        let mut statement = self.connection().prepare_cached(
            "SELECT run, step FROM step WHERE acknowledged IS NULL AND state = 'finished'
             AND run NOT IN (SELECT run FROM local) ORDER BY received LIMIT ?1",
        )?;
        let mut rows = statement.query([limit])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push(run_of(row)?);
        }
        Ok(found)
    }

    pub(super) fn report(&self, request: RequestId) -> Result<Option<OutcomeReport>, JournalError> {
        let row: Option<(String, u32, bool)> = self
            .connection()
            .prepare_cached(
                "SELECT result, chunks, inline FROM step
                 WHERE run = ?1 AND step = ?2 AND state = 'finished'",
            )?
            .query_row(key(&request), |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))
            .optional()?;
        let Some((result, chunks, inline)) = row else {
            return Ok(None);
        };
        let result = serde_json::from_str(&result).map_err(|e| JournalError::Row(e.to_string()))?;
        let mut report = OutcomeReport {
            request,
            result,
            chunks,
            inline: Vec::new(),
        };
        if inline {
            for number in 0..chunks {
                if let Some(chunk) = self.chunk(request, number)? {
                    let data = Data::new(&chunk.data);
                    report.inline.push(InlineChunk {
                        chunk: number,
                        stream: chunk.stream,
                        data,
                    });
                }
            }
        }
        Ok(Some(report))
    }

    pub(super) fn chunk(
        &self,
        request: RequestId,
        number: u32,
    ) -> Result<Option<Chunk>, JournalError> {
        let (run, step) = key(&request);
        let row: Option<(i64, Vec<u8>)> = self
            .connection()
            .prepare_cached(
                "SELECT stream, data FROM output WHERE run = ?1 AND step = ?2 AND chunk = ?3",
            )?
            .query_row(params![run, step, number], |r| Ok((r.get(0)?, r.get(1)?)))
            .optional()?;
        Ok(row.map(|(stream, data)| Chunk {
            number,
            stream: stream_of(stream),
            data: Bytes::from(data),
        }))
    }

    /// Writes down what a broker has said that it has: a transaction of its
    /// own, unless there is one.
    pub(super) fn acknowledged(
        &self,
        noted: &[(RequestId, Timestamp)],
    ) -> Result<(), JournalError> {
        if noted.is_empty() {
            return Ok(());
        }
        let connection = self.quick()?;
        let all = connection
            .is_autocommit()
            .then(|| connection.unchecked_transaction())
            .transpose()?;
        for (request, now) in noted {
            let (run, step) = key(request);
            connection
                .prepare_cached(
                    "UPDATE step SET acknowledged = ?3
                     WHERE run = ?1 AND step = ?2 AND state = 'finished' AND acknowledged IS NULL",
                )?
                .execute(params![run, step, millis(*now)])?;
        }
        if let Some(all) = all {
            all.commit()?;
        }
        Ok(())
    }

    pub(super) fn meta(&self, name: &str) -> Result<Option<String>, JournalError> {
        Ok(self
            .connection()
            .prepare_cached("SELECT value FROM meta WHERE key = ?1")?
            .query_row([name], |r| r.get(0))
            .optional()?)
    }

    pub(super) fn set_meta(&self, name: &str, value: &str) -> Result<(), JournalError> {
        self.durable()?
            .prepare_cached("INSERT OR REPLACE INTO meta VALUES (?1, ?2)")?
            .execute([name, value])?;
        Ok(())
    }

    pub(super) fn counts(&self) -> Result<Counts, JournalError> {
        counts(&self.connection)
    }
}

/// How a stream is written down. An agent of before there were notes takes
/// them for standard error.
fn number_of(stream: Stream) -> i64 {
    match stream {
        Stream::Stdout => 0,
        Stream::Stderr => 1,
        Stream::Note => 2,
    }
}

fn stream_of(number: i64) -> Stream {
    match number {
        0 => Stream::Stdout,
        2 => Stream::Note,
        _ => Stream::Stderr,
    }
}

fn counts(connection: &Connection) -> Result<Counts, JournalError> {
    let number = |sql: &str| -> Result<u64, JournalError> {
        let n: i64 = connection.query_row(sql, [], |r| r.get(0))?;
        Ok(u64::try_from(n).unwrap_or_default())
    };
    Ok(Counts {
        open: number("SELECT count(*) FROM step WHERE state <> 'finished'")?,
        acknowledged: number("SELECT count(*) FROM step WHERE acknowledged IS NOT NULL")?,
        unacknowledged: number(
            "SELECT count(*) FROM step WHERE state = 'finished' AND acknowledged IS NULL",
        )?,
        output_bytes: number("SELECT coalesce(sum(length(data)), 0) FROM output")?,
    })
}
