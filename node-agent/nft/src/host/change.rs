//! A change: confirmed, or rolled back.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::thread::sleep;
use std::time::{Duration, Instant};

use muster_firewall::host::{render, render_with};
use muster_protocol::firewall::host::Resolved;
use muster_protocol::units::Timestamp;
use tracing::info;

use super::settle::{Undo, Undone, finish, left_behind};
use super::store::{By, ChangeId, Decided, Ended, Kept, Lock, Marker, Record};
use super::{HostError, HostFirewall, clock, guard};

/// How long the guard has until it stands.
const GUARD_WITHIN: Duration = Duration::from_secs(15);
/// How long all before the transaction may take at most.
const BEFORE_MS: u64 = 60_000;
/// How long a lock may be somebody's who only looks.
const LOCK_WITHIN: Duration = Duration::from_secs(1);
/// How long it may be held by whoever puts the table right.
const REPAIRED_WITHIN: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What a change did.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Changed {
    /// Nothing: these rules are in force already.
    Unchanged,
    /// It was confirmed; what it changed, rule by rule.
    Confirmed(Vec<String>),
}

/// A change whose rules are in force, and not confirmed.
struct Flight {
    /// While it is held, somebody waits for the confirmation.
    lock: Lock,
    marker: Marker,
    record: Record,
    deadline_ms: u64,
}

impl HostFirewall {
    /// Puts rules in force, and has them stay if `confirm` says so in time.
    ///
    /// `confirm` is begun when the new rules are in force, so what it does
    /// goes by them; it opens connections of its own. What it says against
    /// them is part of the error. When this is dropped before its end, the
    /// guard takes the change back at once.
    ///
    /// # Errors
    /// [`HostError::RolledBack`] when they did not stay; others say what is
    /// in force, too.
    pub async fn change<F>(
        &self,
        change: &ChangeId,
        rules: &Resolved,
        within: Duration,
        confirm: F,
    ) -> Result<Changed, HostError>
    where
        F: Future<Output = Result<(), String>> + Send,
    {
        let (own, id, rules) = (self.clone(), change.clone(), rules.clone());
        let begun = blocking(move || own.begin(&id, rules, within)).await?;
        let Some(flight) = begun else {
            return Ok(Changed::Unchanged);
        };
        let left = flight.deadline_ms.saturating_sub(clock::now_ms());
        let said = tokio::time::timeout(Duration::from_millis(left), confirm).await;
        let said = said.unwrap_or_else(|_| Err(unconfirmed(within)));
        let own = self.clone();
        blocking(move || own.end(flight, said)).await
    }

    /// Goes back to the rules that were confirmed before the present ones: a
    /// change as any other.
    ///
    /// # Errors
    /// [`HostError::NothingBefore`], and as [`Self::change`].
    pub async fn rollback<F>(
        &self,
        change: &ChangeId,
        within: Duration,
        confirm: F,
    ) -> Result<Changed, HostError>
    where
        F: Future<Output = Result<(), String>> + Send,
    {
        let own = self.clone();
        let before = blocking(move || own.before()).await?;
        self.change(change, &before.rules, within, confirm).await
    }

    /// Until the new rules are in force. Nothing, if they are already.
    fn begin(
        &self,
        change: &ChangeId,
        rules: Resolved,
        within: Duration,
    ) -> Result<Option<Flight>, HostError> {
        let lock = self.lock()?;
        left_behind(&self.store, &self.table, &self.setting)?;
        if let Ok(entry) = self.entry(change)
            && let Some(ended) = entry.ended
        {
            return Err(HostError::Again(ended));
        }
        let lines = self.plan(&rules)?.difference;
        if lines.is_empty() {
            return Ok(None);
        }
        let old = self.table.text()?;
        if let Some(old) = &old {
            self.table.check(old).map_err(HostError::NoWayBack)?;
        }
        let number = self.store.next()?;
        let within_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
        let record = Record {
            number,
            change: change.clone(),
            at: Timestamp::now(),
            within_ms,
            text: render(&rules),
            rules,
            difference: lines,
            old,
        };
        let begun_ms = clock::now_ms();
        let marker = Marker {
            number,
            change: change.clone(),
            token: token(),
            boot_id: clock::boot_id(&self.setting.boot_id),
            begun_ms,
            latest_ms: begun_ms.saturating_add(BEFORE_MS).saturating_add(within_ms),
        };
        // On the disk before anything happens.
        if let Err(e) = self.store.begin(&record, &marker) {
            self.forget(&marker, &record, &e.to_string());
            return Err(e.into());
        }
        // Open before anybody can take it back: what this process does later
        // than that, the kernel refuses.
        if let Err(e) = self.table.open(&marker.token) {
            self.forget(&marker, &record, &e.to_string());
            return Err(e.into());
        }
        if let Err(why) = guard::start(&self.setting, &marker, GUARD_WITHIN) {
            self.forget(&marker, &record, &why);
            return Err(HostError::Guard(why));
        }
        let deadline_ms = match self.apply(&marker, &record) {
            Ok(deadline_ms) => deadline_ms,
            Err((why, applied)) => {
                return Err(self.undo(&marker, &record, &why, applied));
            }
        };
        info!(change = %change, "new rules of the host firewall are in force, and wait to be confirmed");
        Ok(Some(Flight {
            lock,
            marker,
            record,
            deadline_ms,
        }))
    }

    fn lock(&self) -> Result<Lock, HostError> {
        let begun = Instant::now();
        loop {
            if let Some(lock) = self.store.lock()? {
                return Ok(lock);
            }
            let other = self.store.in_flight().ok().flatten();
            let patience = match other {
                Some(_) => LOCK_WITHIN,
                None => REPAIRED_WITHIN,
            };
            if begun.elapsed() >= patience {
                return Err(busy(other.as_ref().map(|marker| &marker.change)));
            }
            sleep(LOOK_EVERY);
        }
    }

    /// Puts the new rules in force. The error says whether they may be.
    fn apply(&self, marker: &Marker, record: &Record) -> Result<u64, (String, bool)> {
        let not = |e: &dyn std::fmt::Display| (e.to_string(), false);
        let foreign = || match record.rules.rules().is_raw() {
            true => self.table.foreign().map(Some),
            false => Ok(None),
        };
        let before = foreign().map_err(|e| not(&e))?;
        let counters = self.table.counters().map_err(|e| not(&e))?;
        let text = render_with(&record.rules, &counters);
        let deadline_ms = clock::now_ms()
            .saturating_add(record.within_ms)
            .min(marker.latest_ms);
        self.store
            .set_deadline(marker.number, deadline_ms)
            .map_err(|e| not(&e))?;
        self.table.put(&marker.token, &text).map_err(|e| not(&e))?;
        let after = foreign().map_err(|e| (e.to_string(), true))?;
        if before != after {
            let why = "tables that are not muster's were changed while the raw lines of these rules came in force";
            return Err((why.to_owned(), true));
        }
        Ok(deadline_ms)
    }

    /// Its end, after what was said of it.
    fn end(&self, flight: Flight, said: Result<(), String>) -> Result<Changed, HostError> {
        let Flight {
            lock,
            marker,
            record,
            deadline_ms,
        } = flight;
        let in_time = clock::now_ms() < deadline_ms;
        let said = match said {
            // It may have slept since.
            Ok(()) if !in_time => Err(unconfirmed(Duration::from_millis(record.within_ms))),
            said => said,
        };
        let said = said.and_then(|()| self.still_there(&marker));
        let why = match said {
            Ok(()) => match self.store.confirm(&marker) {
                Ok(Decided::Now) => {
                    finish(&self.store, &self.table, &marker, &record);
                    info!(change = %marker.change, "new rules of the host firewall are confirmed");
                    drop(lock);
                    return Ok(Changed::Confirmed(record.difference));
                }
                Ok(Decided::Before) => "the guard was quicker than the confirmation".to_owned(),
                Err(e) => e.to_string(),
            },
            Err(why) => why,
        };
        let error = self.undo(&marker, &record, &why, true);
        drop(lock);
        Err(error)
    }

    /// What was tried out must be what is confirmed: a table that somebody
    /// took away lets everybody in.
    fn still_there(&self, marker: &Marker) -> Result<(), String> {
        match self.table.left_open() {
            Ok(open) if open.contains(&marker.token) => Ok(()),
            Ok(_) => Err(
                "somebody else took the table inet muster_host away, or put another there, before it was confirmed (`nft monitor` shows who)"
                    .to_owned(),
            ),
            Err(e) => Err(format!("whether the new rules are still there cannot be seen: {e}")),
        }
    }

    fn undo(&self, marker: &Marker, record: &Record, why: &str, applied: bool) -> HostError {
        let undo = Undo {
            store: &self.store,
            table: &self.table,
            marker,
            record: &Kept::from(record),
            by: By::Agent,
            this_boot: true,
            until: None,
        };
        match undo.run(why, applied) {
            Ok(Undone::Done(Ended::RolledBack { after_ms, why, .. })) => HostError::RolledBack {
                after: Duration::from_millis(after_ms),
                why,
            },
            Ok(Undone::Done(Ended::NotApplied { why, .. })) => HostError::NotApplied { why },
            // Only this process confirms.
            Ok(Undone::Done(Ended::Confirmed { .. }) | Undone::Confirmed) => {
                HostError::NotApplied {
                    why: format!("{why}, though it was confirmed by somebody else"),
                }
            }
            Err(e) => e,
        }
    }

    /// Ends a change of which nothing came in force, and nobody stands guard.
    fn forget(&self, marker: &Marker, record: &Record, why: &str) {
        let _ = self.store.refuse(marker);
        let closed = match record.old {
            Some(_) => self.table.close(&marker.token),
            // Opening it has made the table.
            None => self.table.put_back(&marker.token, None),
        };
        // It was not opened, or is a chain without rules that harms nobody.
        drop(closed);
        let ended = Ended::NotApplied {
            at: record.at,
            why: why.to_owned(),
        };
        let _ = self.store.end(marker.number, &ended, None);
    }
}

fn unconfirmed(within: Duration) -> String {
    format!("nobody confirmed it within {} s", within.as_secs())
}

fn busy(change: Option<&ChangeId>) -> HostError {
    HostError::Busy {
        change: change.map(|id| format!(" ({id})")).unwrap_or_default(),
    }
}

/// Something that nothing else is called.
fn token() -> String {
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u64(clock::now_ms());
    hasher.write_u32(std::process::id());
    format!("{:016x}", hasher.finish())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, HostError> + Send + 'static,
) -> Result<T, HostError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(e) => Err(HostError::Task(e.to_string())),
    }
}
