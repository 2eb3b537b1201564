//! A node's own firewall, in force: changed so that a change that locks
//! everybody out takes itself back.
//!
//! A change is *confirmed or rolled back*. Before it, what it is and what was
//! before it are on the disk, and a process that outlives the agent stands
//! guard. The rules are changed in one transaction. Then somebody else has to
//! say that the node can still be reached ([`HostFirewall::change`] is given
//! what asks them). Whoever renames the change's marker first decides: the
//! agent, when it is confirmed, or the agent, the guard or the next start,
//! when it is not.
//!
//! A late hand cannot undo what another one has decided: between both there
//! is a chain without rules in the table, named after the change, and every
//! transaction of the change begins by deleting it. Without it the kernel
//! refuses the whole transaction.

mod change;
mod clock;
pub mod guard;
mod settle;
mod store;
mod table;
mod watch;

use std::path::PathBuf;
use std::time::Duration;

use muster_firewall::host::{Counters, difference};
use muster_protocol::firewall::host::Resolved;

use crate::nft::{Nft, NftError};

pub use self::change::Changed;
pub use self::settle::{Restored, restore};
pub use self::store::{By, ChangeId, ChangeIdError, Ended, Entry, StoreError};
pub use self::watch::Repaired;

use self::store::{Record, Store};
use self::table::Table;

/// Where things are.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Where what is known of changes is kept; made when it is not there.
    pub dir: PathBuf,
    /// `nft`.
    pub nft: Nft,
    /// The program that becomes the guard when it is given
    /// [`guard::VERB`] and its arguments: the agent's own.
    pub program: PathBuf,
    /// The file with the machine's boot id.
    pub boot_id: PathBuf,
}

impl Setting {
    /// With the system's own boot id.
    #[must_use]
    pub fn new(dir: PathBuf, nft: Nft, program: PathBuf) -> Self {
        Self {
            dir,
            nft,
            program,
            boot_id: PathBuf::from("/proc/sys/kernel/random/boot_id"),
        }
    }
}

/// Why a host firewall is not as it was wanted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// It was, for a while.
    #[error("rolled back after {} s; {why}; the old rules are in force", .after.as_secs())]
    RolledBack {
        /// How long the new rules were in force.
        after: Duration,
        /// Why they did not stay.
        why: String,
    },
    /// It never was.
    #[error("the new rules did not come in force: {why}; the old rules are in force")]
    NotApplied {
        /// Why.
        why: String,
    },
    /// It should have been taken back and could not be.
    #[error(
        "{why}; and the old rules could not be put back: {cause}; {}", .by.tries_again()
    )]
    Stuck {
        /// Why it should.
        why: String,
        /// Why it could not.
        cause: NftError,
        /// Who tried.
        by: By,
    },
    /// They are in force, but not all of them.
    #[error(
        "the confirmed rules ({change}) are in force without their raw lines, which cannot be loaded: {cause}; the agent tries again, or correct them"
    )]
    WithoutRaw {
        /// Which change's.
        change: ChangeId,
        /// Why.
        cause: NftError,
    },
    /// Another change is on its way.
    #[error(
        "another change of this node's firewall{change} is not confirmed yet; it is confirmed or taken back in a moment, then try again"
    )]
    Busy {
        /// `" (RUN)"`, where it is known.
        change: String,
    },
    /// This change was made before.
    #[error("this change was made before; {0}")]
    Again(Ended),
    /// There is nothing to go back to.
    #[error("no rules were confirmed before the present ones, so there is nothing to go back to")]
    NothingBefore,
    /// A change that is not known.
    #[error("nothing is known of a change {0} of this node's firewall; the last {kept} are kept", kept = store::KEPT)]
    Unknown(ChangeId),
    /// Nobody can be set to watch.
    #[error("nothing was changed: nobody could be set to watch over the change: {0}")]
    Guard(String),
    /// The rules, or what is there now, cannot be told to the kernel.
    #[error("nothing was changed: {0}")]
    Nft(#[from] NftError),
    /// What is in force could not be loaded again, so there is no way back.
    #[error(
        "nothing was changed: the table inet muster_host that is in force could not be loaded again as it is, so there would be no way back: {0}; delete what somebody added to it"
    )]
    NoWayBack(NftError),
    /// What is known of changes.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A task of this process.
    #[error("a task of the agent ended early: {0}")]
    Task(String),
}

/// What a change would do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Plan {
    /// Rule by rule; empty when nothing would change.
    pub difference: Vec<String>,
}

impl Plan {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.difference.is_empty()
    }
}

/// What a host firewall is at the moment.
#[derive(Clone, Debug)]
pub struct Show {
    /// The change that was confirmed last.
    pub confirmed: Option<Entry>,
    /// A change that waits to be confirmed.
    pub in_flight: Option<Entry>,
    /// What the kernel has of muster's own table, as text.
    pub table: Option<String>,
    /// What its counters say, by the names that
    /// [`muster_firewall::host::counter_names`] gives.
    pub counters: Counters,
    /// Whether somebody else has changed the table.
    pub foreign: bool,
}

/// A node's own firewall.
#[derive(Clone, Debug)]
pub struct HostFirewall {
    setting: Setting,
    store: Store,
    table: Table,
}

impl HostFirewall {
    /// Opens what is known of it, and sees whether this system can do it.
    /// Blocks for a moment.
    ///
    /// # Errors
    /// [`HostError`]: `nft` or something that it needs of the kernel is
    /// missing, or the directory cannot be used.
    pub fn open(setting: Setting) -> Result<Self, HostError> {
        let table = Table::new(setting.nft.clone());
        table.check(SAMPLE)?;
        let store = Store::open(&setting.dir)?;
        Ok(Self {
            setting,
            store,
            table,
        })
    }

    /// What a change would do, after asking `nft` whether it could be done.
    /// Blocks.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn plan(&self, rules: &Resolved) -> Result<Plan, HostError> {
        let text = muster_firewall::host::render(rules);
        self.table.check(&text)?;
        let (confirmed, unread) = match self.store.confirmed() {
            Ok(confirmed) => (confirmed, None),
            // Enough of it for a way back.
            Err(e) if matches!(self.store.confirmed_kept(), Ok(Some(_))) => (None, Some(e)),
            Err(e) => return Err(e.into()),
        };
        let old = confirmed.as_ref().map(|record| &record.rules);
        let mut lines = difference(old, rules);
        if let Some(e) = unread {
            lines.push(format!(
                "~ the confirmed rules are none that this version reads, so all are told as new: {e}"
            ));
        }
        if let Some(record) = &confirmed
            && self.is_changed(record)?
        {
            lines.push("~ somebody else has changed the table inet muster_host; it becomes what these rules say".to_owned());
        }
        Ok(Plan { difference: lines })
    }

    /// Whether the kernel's table is another one than what was confirmed.
    fn is_changed(&self, record: &Record) -> Result<bool, HostError> {
        let listing = self.table.listing(&record.rules)?;
        // A listing that was lost says nothing of it.
        let known = self.store.listing(record.number).ok().flatten();
        Ok(listing.is_none() || known.is_some_and(|known| Some(known) != listing))
    }

    /// What is in force, and what is known of it. Blocks.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn show(&self) -> Result<Show, HostError> {
        let confirmed = self.store.confirmed()?;
        let in_flight = self.store.in_flight()?;
        let foreign = match &confirmed {
            Some(record) if in_flight.is_none() => self.is_changed(record)?,
            _ => false,
        };
        Ok(Show {
            confirmed: confirmed.map(|record| self.store.entry(record)),
            in_flight: match in_flight {
                Some(marker) => Some(self.store.entry(self.store.record(marker.number)?)),
                None => None,
            },
            table: self.table.text()?,
            counters: self.table.counters()?,
            foreign,
        })
    }

    /// The last changes, the newest first. What cannot be read of them is
    /// left out. Blocks.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn history(&self) -> Result<Vec<Entry>, HostError> {
        Ok(self.store.history()?)
    }

    /// A change, and how it ended. Blocks.
    ///
    /// # Errors
    /// [`HostError::Unknown`], and what else.
    pub fn entry(&self, change: &ChangeId) -> Result<Entry, HostError> {
        let known = self.store.history()?;
        let found = known.into_iter().find(|entry| entry.change == *change);
        found.ok_or_else(|| HostError::Unknown(change.clone()))
    }

    /// The rules that were confirmed before the present ones. Blocks.
    ///
    /// # Errors
    /// [`HostError::NothingBefore`], and what else.
    pub fn before(&self) -> Result<Entry, HostError> {
        let now = self.store.confirmed()?.ok_or(HostError::NothingBefore)?;
        let mut known = self.store.history()?.into_iter();
        let before = known.find(|entry| {
            entry.number < now.number
                && entry.rules != now.rules
                && matches!(entry.ended, Some(Ended::Confirmed { .. }))
        });
        before.ok_or(HostError::NothingBefore)
    }
}

/// Something of all that rules may need of the kernel.
const SAMPLE: &str = "table inet muster_host {
	counter c { packets 0 bytes 0 }
	limit l { rate 1/second burst 5 packets }
	set s { type ipv6_addr; flags interval; elements = { 2001:db8::/32 }; }
	chain input {
		type filter hook input priority filter; policy drop;
		ct state established,related accept
		ip6 saddr @s limit name \"l\" log prefix \"muster\" counter name \"c\" accept
		tcp dport { 22, 80-90 } reject with tcp reset
		reject with icmpx type admin-prohibited
	}
}
";
