//! How a change ends when nobody confirms it, and what a start finds.

use std::thread::sleep;
use std::time::{Duration, Instant};

use muster_protocol::units::{Timestamp, elapsed};
use tracing::{info, warn};

use super::store::{By, ChangeId, Decided, Ended, Kept, Lock, Marker, Record, Store, StoreError};
use super::table::Table;
use super::{HostError, Setting, clock};
use crate::nft::NftError;

/// How often old rules are put back in one go until it counts as failed.
const TRIES: u32 = 3;
/// How long somebody else who puts them back is left alone with it.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a start may take with putting old rules back; the confirmed ones
/// come after that, and the machine waits for it.
const START_WITHIN: Duration = Duration::from_secs(30);
/// So long a program has in any case.
const AT_LEAST: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long a lock may be somebody's who only looks.
const LOCK_WITHIN: Duration = Duration::from_secs(1);

/// What came of taking a change back.
#[derive(Debug)]
pub(super) enum Undone {
    /// The old rules are in force.
    Done(Ended),
    /// It had been confirmed.
    Confirmed,
}

/// A change that may be taken back.
pub(super) struct Undo<'a> {
    pub(super) store: &'a Store,
    pub(super) table: &'a Table,
    pub(super) marker: &'a Marker,
    pub(super) record: &'a Kept,
    pub(super) by: By,
    /// Of this start of the machine.
    pub(super) this_boot: bool,
    /// Until when it is tried, where others wait for it.
    pub(super) until: Option<Instant>,
}

impl Undo<'_> {
    /// Takes it back, unless it is confirmed. Blocks.
    pub(super) fn run(&self, why: &str, applied: bool) -> Result<Undone, HostError> {
        let number = self.marker.number;
        let ended = self.ended(why, applied);
        let sure = match self.store.refuse(self.marker) {
            Ok(Decided::Now) => false,
            Ok(Decided::Before) => {
                self.leave_to_other();
                if !self.store.is_undoing(number) {
                    return Ok(self.decided_before(ended));
                }
                false
            }
            Err(e) => {
                // Then nobody can confirm it either.
                warn!(change = %self.marker.change, "{e}; the old rules are put back all the same");
                true
            }
        };
        self.put_back(sure).map_err(|cause| HostError::Stuck {
            why: why.to_owned(),
            cause,
            by: self.by,
        })?;
        warn!(change = %self.marker.change, "{ended}");
        if let Err(e) = self.store.end(number, &ended, None) {
            warn!("how a change ended cannot be written down: {e}");
        }
        Ok(Undone::Done(ended))
    }

    /// Somebody else has decided and is done with it, or all that was known
    /// of it is gone.
    fn decided_before(&self, own: Ended) -> Undone {
        let number = self.marker.number;
        let theirs = self.store.ended(number);
        if self.store.is_confirmed(number) || matches!(theirs, Some(Ended::Confirmed { .. })) {
            return Undone::Confirmed;
        }
        // Whoever was quicker has closed the change, and the kernel refuses
        // this. If it was nobody, the new rules are still there.
        if self
            .table()
            .put_back(&self.marker.token, self.record.old.as_deref())
            .is_ok()
        {
            warn!(change = %self.marker.change, "{own}");
        }
        self.store.forget_deadline(number);
        Undone::Done(theirs.unwrap_or(own))
    }

    fn ended(&self, why: &str, applied: bool) -> Ended {
        let (at, why) = (Timestamp::now(), why.to_owned());
        let Some(deadline) = self
            .store
            .deadline_set(self.marker.number)
            .filter(|_| applied)
        else {
            return Ended::NotApplied { at, why };
        };
        let after_ms = match self.this_boot {
            true => clock::now_ms().saturating_sub(deadline.saturating_sub(self.record.within_ms)),
            // What it was before is not known any more.
            false => u64::try_from(elapsed(self.record.at, at).as_millis()).unwrap_or(u64::MAX),
        };
        Ended::RolledBack {
            at,
            after_ms,
            why,
            by: self.by,
        }
    }

    /// Waits until somebody else is done, who may have ended himself.
    fn leave_to_other(&self) {
        let until = Instant::now() + PATIENCE;
        while self.store.is_undoing(self.marker.number) && Instant::now() < until {
            sleep(LOOK_EVERY);
        }
    }

    fn put_back(&self, sure: bool) -> Result<(), NftError> {
        let old = self.record.old.as_deref();
        let mut tries = 0;
        loop {
            let Err(_) = self.table().put_back(&self.marker.token, old) else {
                return Ok(());
            };
            // The change is closed already, or somebody has taken the whole
            // table away.
            if !sure && !self.store.is_undoing(self.marker.number) {
                return Ok(());
            }
            match self.table().load(old) {
                Ok(()) => return Ok(()),
                Err(e) => {
                    tries += 1;
                    if self.until.is_some_and(|until| Instant::now() >= until) {
                        return Err(e);
                    }
                    if tries == TRIES {
                        return self.confirmed_instead().ok_or(e);
                    }
                    sleep(LOOK_EVERY);
                }
            }
        }
    }

    /// The table, with what is left of the time.
    fn table(&self) -> Table {
        match self.until {
            Some(until) => {
                let left = until.saturating_duration_since(Instant::now());
                self.table.within(left.max(AT_LEAST))
            }
            None => self.table.clone(),
        }
    }

    /// What was in force cannot be loaded, because of what somebody else has
    /// added to it, say; but what was confirmed can.
    fn confirmed_instead(&self) -> Option<()> {
        let kept = self.store.confirmed_kept().ok().flatten()?;
        let left_out = load_confirmed(&self.table(), &kept).ok()?;
        warn!(change = %kept.change, "what was in force cannot be loaded; the confirmed rules are in force");
        if let Some(cause) = left_out {
            warn!("they are without their raw lines: {cause}");
        }
        Some(())
    }
}

/// Loads them without their raw lines if it must be, and says why then: they
/// are what may need something that is not there at a start.
fn load_confirmed(table: &Table, kept: &Kept) -> Result<Option<NftError>, NftError> {
    let Err(cause) = table.load(Some(&kept.text)) else {
        return Ok(None);
    };
    match kept.without_raw() {
        Some(rest) => table.load(Some(&rest)).map(|()| Some(cause)),
        None => Err(cause),
    }
}

/// Writes down what is left to write of a change that was confirmed.
pub(super) fn finish(store: &Store, table: &Table, marker: &Marker, record: &Record) {
    // Without rules in it, the chain harms nobody if it stays.
    if let Err(e) = table.close(&marker.token) {
        warn!("a change cannot be closed: {e}");
    }
    let listing = table.listing(&record.rules).ok().flatten();
    let ended = Ended::Confirmed {
        at: Timestamp::now(),
    };
    if let Err(e) = store.end(marker.number, &ended, listing) {
        warn!("how a change ended cannot be written down: {e}");
    }
}

/// Takes back what somebody has left in flight. Whoever calls it holds the
/// lock, so nobody waits for a confirmation any more.
pub(super) fn left_behind(
    store: &Store,
    table: &Table,
    setting: &Setting,
) -> Result<Option<(ChangeId, Ended)>, HostError> {
    let mut taken_back = None;
    let mut failed = None;
    let until = Instant::now() + START_WITHIN;
    for found in [store.in_flight(), store.undoing()] {
        let done = match found {
            Ok(None) => continue,
            Ok(Some(marker)) => take_back(store, table, setting, marker, until),
            Err(e) => Err(e.into()),
        };
        match done {
            Ok(done) => taken_back = done.or(taken_back),
            Err(e) => failed = failed.or(Some(e)),
        }
    }
    match failed {
        Some(e) => Err(e),
        None => Ok(taken_back),
    }
}

fn take_back(
    store: &Store,
    table: &Table,
    setting: &Setting,
    marker: Marker,
    until: Instant,
) -> Result<Option<(ChangeId, Ended)>, HostError> {
    let this_boot = marker.boot_id == clock::boot_id(&setting.boot_id);
    let undo = Undo {
        store,
        table,
        marker: &marker,
        record: &store.kept(marker.number)?,
        by: By::Restore,
        this_boot,
        until: Some(until),
    };
    let why = match this_boot {
        true => "the agent ended before it was confirmed",
        false => "the machine was restarted before it was confirmed",
    };
    Ok(match undo.run(why, true)? {
        Undone::Done(ended) => Some((marker.change, ended)),
        Undone::Confirmed => None,
    })
}

/// What a start has found and done.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Restored {
    /// A change that was taken back, and how it ended.
    pub rolled_back: Option<(ChangeId, Ended)>,
    /// The change whose rules were put in force.
    pub loaded: Option<ChangeId>,
    /// Somebody makes a change at this moment; all is left to him.
    pub busy: bool,
}

/// At a start of the machine, before its network, and of the agent: a change
/// that nobody can confirm any more is taken back, and the confirmed rules
/// are put in force if the kernel has none. A table that is there is left
/// alone. Where nothing was ever changed, nothing is done. Blocks.
///
/// # Errors
/// [`HostError`]; what is in force stays in force.
pub fn restore(setting: &Setting) -> Result<Restored, HostError> {
    let mut restored = Restored::default();
    if !setting.dir.exists() {
        return Ok(restored);
    }
    let table = Table::new(setting.nft.clone());
    let (store, lock) = match opened(setting) {
        Ok((store, Some(lock))) => (store, lock),
        Ok((_, None)) => {
            restored.busy = true;
            return Ok(restored);
        }
        // A disk on which nothing can be written yet: what is in flight must
        // wait, and the machine must not be open as long.
        Err(e) => {
            let store = Store::existing(&setting.dir);
            if let Err(more) = put_confirmed(&store, &table, Found::Unlocked, &mut restored) {
                warn!("{more}");
            }
            return Err(e.into());
        }
    };
    // Whatever is wrong with it, the confirmed rules are better than none.
    let taken_back = left_behind(&store, &table, setting);
    let found = match &taken_back {
        Ok(_) => Found::Settled,
        Err(_) => Found::Lost,
    };
    let done = put_confirmed(&store, &table, found, &mut restored);
    drop(lock);
    match taken_back {
        Ok(taken_back) => restored.rolled_back = taken_back,
        Err(e) => {
            if let Err(more) = done {
                warn!("{more}");
            }
            return Err(e);
        }
    }
    done.map(|()| restored)
}

/// The directory, and its lock unless somebody else keeps it.
fn opened(setting: &Setting) -> Result<(Store, Option<Lock>), StoreError> {
    let store = Store::open(&setting.dir)?;
    let until = Instant::now() + LOCK_WITHIN;
    loop {
        match store.lock()? {
            None if Instant::now() < until => sleep(LOOK_EVERY),
            lock => return Ok((store, lock)),
        }
    }
}

/// What is known of changes in flight.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Found {
    /// There is none any more.
    Settled,
    /// There may be one that cannot be taken back.
    Lost,
    /// Somebody may be making one.
    Unlocked,
}

/// Puts the confirmed rules in force if the kernel has no table; or if it has
/// one of a change in flight of which nothing is known.
fn put_confirmed(
    store: &Store,
    table: &Table,
    found: Found,
    restored: &mut Restored,
) -> Result<(), HostError> {
    let Some(kept) = store.confirmed_kept()? else {
        return Ok(());
    };
    let mut left_out = None;
    if !table.is_there()? || (found == Found::Lost && !table.left_open()?.is_empty()) {
        left_out = load_confirmed(table, &kept)?;
        info!(change = %kept.change, "the host firewall's confirmed rules are in force");
        restored.loaded = Some(kept.change.clone());
    }
    // Whoever holds no lock does not know whether somebody makes a change.
    if found != Found::Unlocked {
        for token in table.left_open()? {
            table.close(&token)?;
        }
    }
    if let Some(cause) = left_out {
        // What is written down of the table is that of all of them.
        let change = kept.change;
        return Err(HostError::WithoutRaw { change, cause });
    }
    let ended = store.ended(kept.number);
    if restored.loaded.is_some() || ended.is_none() {
        let ended = ended.unwrap_or(Ended::Confirmed {
            at: Timestamp::now(),
        });
        let listing = match store.record(kept.number) {
            Ok(record) => table.listing(&record.rules)?,
            Err(_) => None,
        };
        store.end(kept.number, &ended, listing)?;
    }
    Ok(())
}
