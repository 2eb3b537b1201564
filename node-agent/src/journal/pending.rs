//! Steps during which the machine is restarted: what the agent of the next
//! boot needs to go on.

use muster_protocol::ids::RequestId;
use rusqlite::{OptionalExtension as _, params};

use super::db::{Db, key};
use super::{Journal, JournalError};

/// A table that an earlier agent does not look at.
pub(super) const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS pending (
    run BLOB NOT NULL, step INTEGER NOT NULL, note TEXT NOT NULL,
    PRIMARY KEY (run, step)
) WITHOUT ROWID;
";

impl Journal {
    /// Notes that a step restarts the machine. Durable when it returns: only
    /// then may the machine be told.
    ///
    /// # Errors
    /// [`JournalError`].
    pub async fn set_pending(&self, request: RequestId, note: String) -> Result<(), JournalError> {
        self.with(move |db| db.set_pending(request, &note)).await
    }

    /// What is noted of a step that restarts the machine.
    ///
    /// # Errors
    /// [`JournalError`].
    pub async fn pending(&self, request: RequestId) -> Result<Option<String>, JournalError> {
        self.with(move |db| db.pending(request)).await
    }

    /// The step does not, or not any more.
    ///
    /// # Errors
    /// [`JournalError`].
    pub async fn drop_pending(&self, request: RequestId) -> Result<(), JournalError> {
        self.with(move |db| db.drop_pending(request)).await
    }
}

impl Db {
    fn set_pending(&self, request: RequestId, note: &str) -> Result<(), JournalError> {
        let (run, step) = key(&request);
        self.durable()?
            .prepare_cached("INSERT OR REPLACE INTO pending VALUES (?1, ?2, ?3)")?
            .execute(params![run, step, note])?;
        Ok(())
    }

    fn pending(&self, request: RequestId) -> Result<Option<String>, JournalError> {
        Ok(self
            .connection()
            .prepare_cached("SELECT note FROM pending WHERE run = ?1 AND step = ?2")?
            .query_row(key(&request), |r| r.get(0))
            .optional()?)
    }

    fn drop_pending(&self, request: RequestId) -> Result<(), JournalError> {
        self.durable()?
            .prepare_cached("DELETE FROM pending WHERE run = ?1 AND step = ?2")?
            .execute(key(&request))?;
        Ok(())
    }
}
