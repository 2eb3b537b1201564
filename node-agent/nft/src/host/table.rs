//! The one table that is muster's, in the kernel.

use std::time::Duration;

use muster_firewall::host::{Count, Counters, TABLE};
use muster_protocol::firewall::host::Resolved;
use serde::Deserialize;

use crate::nft::{Nft, NftError};

const LIST: [&str; 4] = ["list", "table", "inet", "muster_host"];

/// The table.
#[derive(Clone, Debug)]
pub(super) struct Table {
    nft: Nft,
}

/// Takes away what is there, whether there is something or not.
fn anew(text: &str) -> String {
    format!("table {TABLE}\ndelete table {TABLE}\n{text}")
}

/// The chain that stands for a change in flight.
fn fence(token: &str) -> String {
    format!("chain {TABLE} try_{token}")
}

impl Table {
    pub(super) fn new(nft: Nft) -> Self {
        Self { nft }
    }

    /// The same, with at most so much time for each call.
    pub(super) fn within(&self, within: Duration) -> Self {
        Self {
            nft: self.nft.clone().at_most(within),
        }
    }

    /// Whether the kernel would take this table.
    pub(super) fn check(&self, text: &str) -> Result<(), NftError> {
        self.nft.check(&anew(text))
    }

    /// Whether it is there.
    pub(super) fn is_there(&self) -> Result<bool, NftError> {
        let all = self.nft.ask(&["list", "tables"])?;
        let own = format!("table {TABLE}");
        Ok(all.lines().any(|line| line.trim() == own))
    }

    /// It, with all that it has counted, as `nft` takes it again.
    pub(super) fn text(&self) -> Result<Option<String>, NftError> {
        match self.is_there()? {
            true => self.nft.ask(&LIST).map(Some),
            false => Ok(None),
        }
    }

    /// It, without what it has counted: what was put there, unless somebody
    /// has changed it. Raw rules may collect addresses, so that with them it
    /// is without those.
    pub(super) fn listing(&self, rules: &Resolved) -> Result<Option<String>, NftError> {
        let [a, b, c, d] = LIST;
        match self.is_there()? {
            true if rules.rules().is_raw() => self.nft.ask(&["-s", "-t", a, b, c, d]).map(Some),
            true => self.nft.ask(&["-s", a, b, c, d]).map(Some),
            false => Ok(None),
        }
    }

    /// All tables of others, without what they have counted and collected.
    pub(super) fn foreign(&self) -> Result<String, NftError> {
        let all = self.nft.ask(&["-s", "-t", "list", "ruleset"])?;
        let own = format!("table {TABLE} {{");
        let mut inside = false;
        let lines = all.lines().filter(|line| {
            inside |= *line == own;
            let foreign = !inside;
            inside &= *line != "}";
            foreign
        });
        Ok(lines.collect::<Vec<_>>().join("\n"))
    }

    /// What it has counted.
    pub(super) fn counters(&self) -> Result<Counters, NftError> {
        #[derive(Deserialize)]
        struct Listing {
            nftables: Vec<Item>,
        }
        #[derive(Deserialize)]
        struct Item {
            counter: Option<Counter>,
        }
        #[derive(Deserialize)]
        struct Counter {
            name: String,
            packets: u64,
            bytes: u64,
        }
        if !self.is_there()? {
            return Ok(Counters::new());
        }
        let text = self
            .nft
            .ask(&["-j", "list", "counters", "table", "inet", "muster_host"])?;
        let listing: Listing = serde_json::from_str(&text).map_err(|e| NftError::Output {
            program: self.nft.program().to_owned(),
            cause: e.into(),
        })?;
        let counters = listing.nftables.into_iter().filter_map(|item| item.counter);
        let count = |counter: Counter| {
            let Counter {
                name,
                packets,
                bytes,
            } = counter;
            (name, Count { packets, bytes })
        };
        Ok(counters.map(count).collect())
    }

    /// Opens a change: from now on its transactions can be made.
    pub(super) fn open(&self, token: &str) -> Result<(), NftError> {
        self.nft
            .apply(&format!("table {TABLE}\nadd {}\n", fence(token)))
    }

    /// Puts the table there, of a change that is open.
    pub(super) fn put(&self, token: &str, text: &str) -> Result<(), NftError> {
        let fence = fence(token);
        self.nft
            .apply(&format!("delete {fence}\n{}add {fence}\n", anew(text)))
    }

    /// Puts back what was there, of a change that is open; it is closed then.
    pub(super) fn put_back(&self, token: &str, old: Option<&str>) -> Result<(), NftError> {
        let text = anew(old.unwrap_or_default());
        self.nft.apply(&format!("delete {}\n{text}", fence(token)))
    }

    /// Puts a table there, whatever is.
    pub(super) fn load(&self, text: Option<&str>) -> Result<(), NftError> {
        self.nft.apply(&anew(text.unwrap_or_default()))
    }

    /// Closes a change; what is there stays.
    pub(super) fn close(&self, token: &str) -> Result<(), NftError> {
        self.nft.apply(&format!("delete {}\n", fence(token)))
    }

    /// Changes that nobody has closed.
    pub(super) fn left_open(&self) -> Result<Vec<String>, NftError> {
        let listing = self.text()?.unwrap_or_default();
        let chains = listing.lines().filter_map(|line| {
            let name = line.trim().strip_prefix("chain try_")?;
            Some(name.strip_suffix(" {")?.to_owned())
        });
        Ok(chains.collect())
    }
}
