//! The signed requests behind the steps, and what else is needed when one of
//! the two sides has gone back in time.
//!
//! A request is kept as it came, for as long as its outcome: by the broker's
//! own signature it proves what was ordered, to a broker whose store has lost
//! the run. The list of broker keys by which it was believed is kept with it.
//!
//! The rows' numbers only ever rise, also over starts of the agent. They are
//! the journal's position: one that says less than before is an older copy.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use muster_protocol::envelope::{Ask, BundleHash, Request, Sealed};
use muster_protocol::ids::{InstanceId, RequestId, RunId};
use muster_protocol::keys::{KeyId, SignedText};
use muster_protocol::units::Timestamp;
use muster_protocol::wire::{Acknowledged, JournalMark, MAX_MARKS, Recall};
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, Row, params};

use super::db::{Db, key, millis};
use super::{Journal, JournalError};

/// Only tables that an earlier agent does not look at: a journal goes back
/// and forth between versions as the agent does, and needs no other number.
pub(super) const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS request (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    run BLOB NOT NULL, step INTEGER NOT NULL,
    key TEXT NOT NULL, signature TEXT NOT NULL, payload BLOB NOT NULL,
    UNIQUE (run, step)
);
CREATE TABLE IF NOT EXISTS broker_key (key TEXT PRIMARY KEY, list TEXT NOT NULL) WITHOUT ROWID;
";

/// Bytes of requests that are kept; above it the oldest go first.
const MOST_BYTES: u64 = 64 << 20;
/// How many of the newest steps are looked at in each of two orders.
const MARKS_EACH: usize = MAX_MARKS / 2;

/// A request with the list by which it was believed.
#[derive(Clone, Debug, PartialEq)]
pub struct Kept {
    /// As it came.
    pub request: Sealed,
    /// The list of broker keys, signed by the root key.
    pub list: SignedText,
}

impl Journal {
    /// Notes that the agent begins: the position is higher than any that it
    /// may have said before. Durable when it returns.
    ///
    /// # Errors
    /// [`JournalError`].
    pub async fn begin(&self) -> Result<(), JournalError> {
        let position = self.with(|db| db.begin()).await?;
        self.position.store(position, Ordering::Relaxed);
        Ok(())
    }

    /// How far the journal is: see [`JournalMark::position`].
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position.load(Ordering::Relaxed)
    }

    /// How far the journal is, and what the broker has of it.
    ///
    /// # Errors
    /// [`JournalError`].
    pub async fn mark(&self) -> Result<JournalMark, JournalError> {
        let acknowledged = self.with(|db| db.newest_acknowledged()).await?;
        Ok(JournalMark {
            position: self.position(),
            acknowledged,
        })
    }

    /// Keeps the request of a step that is not begun. Durable with what is
    /// written next.
    ///
    /// # Errors
    /// [`JournalError`].
    pub async fn keep(&self, request: RequestId, kept: Kept) -> Result<(), JournalError> {
        let position = self.position.clone();
        self.with(move |db| db.keep(request, &kept, &position))
            .await
    }

    /// The request of a step, as it came; `None` when it is not kept.
    ///
    /// # Errors
    /// [`JournalError`].
    pub async fn request(&self, request: RequestId) -> Result<Option<Sealed>, JournalError> {
        self.with(move |db| db.request(request)).await
    }

    /// The newest list of broker keys with this key by which a request was
    /// believed.
    ///
    /// # Errors
    /// [`JournalError`].
    pub async fn list_with(&self, key: KeyId) -> Result<Option<SignedText>, JournalError> {
        self.with(move |db| db.list_with(key)).await
    }

    /// Throws away the request of a step that no broker wants.
    ///
    /// # Errors
    /// [`JournalError`].
    pub async fn drop_request(&self, request: RequestId) -> Result<(), JournalError> {
        self.with(move |db| db.drop_request(request)).await
    }

    /// Makes everything that was acknowledged since then, by this node's
    /// clock, as if it had not been; how many steps that are. The same recall
    /// is done once.
    ///
    /// # Errors
    /// [`JournalError`].
    pub async fn recall(&self, since: Timestamp, recall: Recall) -> Result<usize, JournalError> {
        self.with(move |db| db.recall(since, recall.id)).await
    }
}

/// Requests that are looked through for the name of a scenario.
const LOOKED_THROUGH: u32 = 5_000;

impl Db {
    /// The bundles that brokers have sent under this name, newest first, by a
    /// journal that another process may be writing.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn bundles_of(path: &Path, scenario: &str) -> Result<Vec<BundleHash>, JournalError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(Duration::from_secs(2))?;
        let mut statement =
            connection.prepare("SELECT payload FROM request ORDER BY seq DESC LIMIT ?1")?;
        let mut rows = statement.query([LOOKED_THROUGH])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            let payload: Vec<u8> = row.get(0)?;
            let Ok(request) = serde_json::from_slice::<Request>(&payload) else {
                continue;
            };
            if let Ask::Call(call) = request.ask
                && call.scenario.as_str() == scenario
                && !found.contains(&call.bundle)
            {
                found.push(call.bundle);
            }
        }
        Ok(found)
    }

    fn begin(&self) -> Result<u64, JournalError> {
        let tx = self.transaction()?;
        // A number is used up, and nothing is left of it.
        tx.execute(
            "INSERT INTO request (run, step, key, signature, payload) VALUES (x'', 0, '', '', x'')",
            [],
        )?;
        let position = tx.last_insert_rowid();
        tx.execute("DELETE FROM request WHERE seq = ?1", [position])?;
        tx.commit()?;
        Ok(u64::try_from(position).unwrap_or_default())
    }

    /// Writes something down together with the request that it follows from.
    pub(super) fn with_request(
        &self,
        request: RequestId,
        kept: &Kept,
        position: &AtomicU64,
        write: impl FnOnce() -> Result<(), JournalError>,
    ) -> Result<(), JournalError> {
        let done = self.all(|| {
            self.keep(request, kept, position)?;
            write()
        });
        if done.is_err() {
            // The list has gone with the rest.
            self.listed.set(None);
        }
        done
    }

    pub(super) fn keep(
        &self,
        request: RequestId,
        kept: &Kept,
        position: &AtomicU64,
    ) -> Result<(), JournalError> {
        let sealed = &kept.request;
        let bytes = sealed.bytes.len() as u64;
        while self.kept_bytes.get() + bytes > MOST_BYTES {
            let oldest: Option<(i64, i64)> = self
                .quick()?
                .prepare_cached("SELECT seq, length(payload) FROM request ORDER BY seq LIMIT 1")?
                .query_row([], |r| Ok((r.get(0)?, r.get(1)?)))
                .optional()?;
            let Some((seq, size)) = oldest else {
                self.kept_bytes.set(0);
                break;
            };
            self.quick()?
                .prepare_cached("DELETE FROM request WHERE seq = ?1")?
                .execute([seq])?;
            let size = u64::try_from(size).unwrap_or_default();
            self.kept_bytes
                .set(self.kept_bytes.get().saturating_sub(size));
        }
        let signer = sealed.key.to_string();
        if self.listed.get() != Some(sealed.key) {
            let list =
                serde_json::to_string(&kept.list).map_err(|e| JournalError::Row(e.to_string()))?;
            self.quick()?
                .prepare_cached("INSERT OR REPLACE INTO broker_key VALUES (?1, ?2)")?
                .execute(params![signer, list])?;
            self.listed.set(Some(sealed.key));
        }
        let (run, step) = key(&request);
        let rows = self
            .quick()?
            .prepare_cached(
                "INSERT OR IGNORE INTO request (run, step, key, signature, payload)
                 VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute(params![
                run,
                step,
                signer,
                sealed.signature.to_string(),
                &sealed.bytes[..]
            ])?;
        if rows == 1 {
            self.kept_bytes.set(self.kept_bytes.get() + bytes);
            let seq = u64::try_from(self.connection().last_insert_rowid()).unwrap_or_default();
            position.fetch_max(seq, Ordering::Relaxed);
        }
        Ok(())
    }

    fn request(&self, request: RequestId) -> Result<Option<Sealed>, JournalError> {
        let row: Option<(Vec<u8>, String, String)> = self
            .connection()
            .prepare_cached(
                "SELECT payload, key, signature FROM request WHERE run = ?1 AND step = ?2",
            )?
            .query_row(key(&request), |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))
            .optional()?;
        let Some((bytes, key, signature)) = row else {
            return Ok(None);
        };
        let bad = || JournalError::Row("a kept request".into());
        Ok(Some(Sealed {
            bytes,
            key: key.parse().map_err(|_| bad())?,
            signature: signature.parse().map_err(|_| bad())?,
        }))
    }

    fn list_with(&self, key: KeyId) -> Result<Option<SignedText>, JournalError> {
        let text: Option<String> = self
            .connection()
            .prepare_cached("SELECT list FROM broker_key WHERE key = ?1")?
            .query_row([key.to_string()], |r| r.get(0))
            .optional()?;
        text.map(|text| serde_json::from_str(&text).map_err(|e| JournalError::Row(e.to_string())))
            .transpose()
    }

    fn drop_request(&self, request: RequestId) -> Result<(), JournalError> {
        self.durable()?
            .prepare_cached("DELETE FROM request WHERE run = ?1 AND step = ?2")?
            .execute(key(&request))?;
        self.count_kept()
    }

    /// Counts what is kept, after some of it went.
    pub(super) fn count_kept(&self) -> Result<(), JournalError> {
        let bytes: i64 = self.connection().query_row(
            "SELECT coalesce(sum(length(payload)), 0) FROM request",
            [],
            |r| r.get(0),
        )?;
        self.kept_bytes
            .set(u64::try_from(bytes).unwrap_or_default());
        Ok(())
    }

    /// Of what was received last, and of what was acknowledged last. Only what
    /// could be proved: of nothing else would a broker want to hear again.
    fn newest_acknowledged(&self) -> Result<Vec<Acknowledged>, JournalError> {
        let mut found: Vec<Acknowledged> = Vec::new();
        for order in ["received", "acknowledged"] {
            let mut statement = self.connection().prepare_cached(&format!(
                "SELECT s.run, s.step, s.received FROM step s
                 JOIN request r ON r.run = s.run AND r.step = s.step
                 WHERE s.acknowledged IS NOT NULL ORDER BY s.{order} DESC LIMIT {MARKS_EACH}"
            ))?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let mark = acknowledged(row)?;
                if !found.iter().any(|known| known.request == mark.request) {
                    found.push(mark);
                }
            }
        }
        Ok(found)
    }

    fn recall(&self, since: Timestamp, id: InstanceId) -> Result<usize, JournalError> {
        let tx = self.transaction()?;
        let done: Option<String> = tx
            .query_row("SELECT value FROM meta WHERE key = 'recalled'", [], |r| {
                r.get(0)
            })
            .optional()?;
        let id = id.to_string();
        if done.as_ref() == Some(&id) {
            return Ok(0);
        }
        let rows = tx.execute(
            "UPDATE step SET acknowledged = NULL WHERE acknowledged >= ?1 AND state = 'finished'",
            [millis(since)],
        )?;
        tx.execute("INSERT OR REPLACE INTO meta VALUES ('recalled', ?1)", [id])?;
        tx.commit()?;
        Ok(rows)
    }
}

fn acknowledged(row: &Row<'_>) -> Result<Acknowledged, JournalError> {
    let run: Vec<u8> = row.get(0)?;
    let run = run
        .try_into()
        .map_err(|_| JournalError::Row("a run id".into()))?;
    Ok(Acknowledged {
        request: RequestId {
            run: RunId::from_bytes(run),
            step: row.get(1)?,
        },
        received: Timestamp::from_millisecond(row.get(2)?)
            .map_err(|e| JournalError::Row(e.to_string()))?,
    })
}
