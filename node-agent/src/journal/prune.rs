//! What the journal forgets, and in which order.

use muster_protocol::run::NodeResult;
use muster_protocol::units::Timestamp;
use rusqlite::params;

use super::JournalError;
use super::db::{Db, millis};
use crate::config::Retention;

/// An outcome must outlive every copy of its request: those are refused two
/// minutes after they were issued. Nothing younger goes, whatever the bounds.
const NEVER_BEFORE_MS: i64 = 600_000;

/// What was thrown away.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Pruned {
    /// Outcomes.
    pub outcomes: usize,
    /// Outputs whose outcome stays.
    pub outputs: usize,
}

impl Db {
    pub(super) fn prune(&self, keep: &Retention, now: Timestamp) -> Result<Pruned, JournalError> {
        let now = millis(now);
        let ago = |span: muster_protocol::units::Span| {
            let ms = i64::try_from(span.get().as_millis()).unwrap_or(i64::MAX);
            now.saturating_sub(ms.max(NEVER_BEFORE_MS))
        };
        let mut pruned = Pruned::default();
        let tx = self.transaction()?;
        pruned.outcomes +=
            tx.execute("DELETE FROM step WHERE acknowledged < ?1", [ago(keep.keep)])?;
        pruned.outcomes += tx.execute(
            "DELETE FROM step WHERE state = 'finished' AND acknowledged IS NULL AND finished < ?1",
            [ago(keep.keep_unsent)],
        )?;
        let acknowledged: i64 = tx.query_row(
            "SELECT count(*) FROM step WHERE acknowledged IS NOT NULL",
            [],
            |r| r.get(0),
        )?;
        let over = acknowledged.saturating_sub(i64::from(keep.max_outcomes));
        if over > 0 {
            pruned.outcomes += tx.execute(
                "DELETE FROM step WHERE (run, step) IN (
                     SELECT run, step FROM step WHERE acknowledged < ?1 ORDER BY acknowledged LIMIT ?2)",
                [now.saturating_sub(NEVER_BEFORE_MS), over],
            )?;
        }
        if pruned.outcomes > 0 {
            tx.execute(
                "DELETE FROM output WHERE NOT EXISTS (
                     SELECT 1 FROM step WHERE step.run = output.run AND step.step = output.step)",
                [],
            )?;
            tx.execute(
                "DELETE FROM local WHERE run NOT IN (SELECT run FROM step)",
                [],
            )?;
            tx.execute(
                "DELETE FROM request WHERE NOT EXISTS (
                     SELECT 1 FROM step WHERE step.run = request.run AND step.step = request.step)",
                [],
            )?;
            tx.execute(
                "DELETE FROM broker_key WHERE key NOT IN (SELECT key FROM request)",
                [],
            )?;
        }
        let most = i64::try_from(keep.max_output_bytes).unwrap_or(i64::MAX);
        let mut bytes: i64 = tx.query_row(
            "SELECT coalesce(sum(length(data)), 0) FROM output",
            [],
            |r| r.get(0),
        )?;
        if bytes > most {
            let candidates: Vec<(Vec<u8>, u32, i64, String)> = tx
                .prepare(
                    "SELECT s.run, s.step, sum(length(o.data)), s.result FROM step s
                     JOIN output o ON o.run = s.run AND o.step = s.step
                     WHERE s.state = 'finished' GROUP BY s.run, s.step
                     ORDER BY s.acknowledged IS NULL, s.finished",
                )?
                .query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?)))?
                .collect::<Result<_, _>>()?;
            for (run, step, size, result) in candidates {
                if bytes <= most {
                    break;
                }
                tx.execute(
                    "DELETE FROM output WHERE run = ?1 AND step = ?2",
                    params![run, step],
                )?;
                // A report that still has to be sent must not promise chunks
                // that are gone.
                let mut result: NodeResult =
                    serde_json::from_str(&result).map_err(|e| JournalError::Row(e.to_string()))?;
                result.truncated = true;
                result.output_bytes = 0;
                let result =
                    serde_json::to_string(&result).map_err(|e| JournalError::Row(e.to_string()))?;
                tx.execute(
                    "UPDATE step SET result = ?3, chunks = 0 WHERE run = ?1 AND step = ?2",
                    params![run, step, result],
                )?;
                bytes -= size;
                pruned.outputs += 1;
            }
        }
        tx.commit()?;
        if pruned.outcomes > 0 {
            self.listed.set(None);
            self.count_kept()?;
        }
        if pruned != Pruned::default() {
            self.durable()?
                .execute_batch("PRAGMA incremental_vacuum; PRAGMA wal_checkpoint(TRUNCATE);")?;
        }
        Ok(pruned)
    }
}
