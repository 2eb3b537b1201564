//! Whether the table is still what was confirmed, and putting it right.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use muster_firewall::host::render_with;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::store::Ended;
use super::{HostError, HostFirewall};
use crate::netlink::Kernel;

/// How often is looked whether anything at all has changed.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Most lines of what was changed that are told.
const TOLD: usize = 20;

/// What somebody else had changed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Repaired {
    /// In the table's own lines, a few of them: `-` in front of what was
    /// missing, `+` of what should not have been there.
    pub lines: Vec<String>,
}

impl HostFirewall {
    /// Puts the confirmed rules back if the kernel's table is another one, or
    /// gone. Does nothing while a change is made, and where nothing was
    /// confirmed. Blocks.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn repair(&self) -> Result<Option<Repaired>, HostError> {
        let Some(_lock) = self.store.lock()? else {
            return Ok(None);
        };
        if self.store.in_flight()?.is_some() || self.store.undoing()?.is_some() {
            return Ok(None);
        }
        let Some(record) = self.store.confirmed()? else {
            return Ok(None);
        };
        let found = self.table.listing(&record.rules)?;
        let wanted = self.store.listing(record.number).ok().flatten();
        let lines = match (&wanted, &found) {
            (Some(wanted), Some(found)) if wanted == found => return Ok(None),
            // What was there is not known, and something is: nobody can say
            // that it is wrong.
            (None, Some(_)) => return Ok(None),
            (_, None) => vec!["- table inet muster_host".to_owned()],
            (Some(wanted), Some(found)) => differ(wanted, found),
        };
        let counters = self.table.counters()?;
        self.table
            .load(Some(&render_with(&record.rules, &counters)))?;
        let now = self.table.listing(&record.rules)?;
        if now != wanted {
            // Another `nft` writes it otherwise: from now on it is this.
            let ended = self.store.ended(record.number);
            let ended = ended.unwrap_or(Ended::Confirmed { at: record.at });
            self.store.end(record.number, &ended, now)?;
        }
        Ok(Some(Repaired { lines }))
    }

    /// Looks all the time whether somebody else changes the table, puts the
    /// confirmed rules back within a second, and tells. Ends with `stop`.
    pub async fn watch(&self, stop: CancellationToken, mut told: impl FnMut(Repaired)) {
        let mut seen: Option<u32> = None;
        let mut failed = false;
        loop {
            match self.look(&mut seen).await {
                Ok(Some(repaired)) => {
                    warn!(
                        "somebody else had changed the host firewall; it is as it was confirmed: {}",
                        repaired.lines.join("; ")
                    );
                    told(repaired);
                    failed = false;
                }
                Ok(None) => {
                    if std::mem::replace(&mut failed, false) {
                        info!("the host firewall can be looked at again");
                    }
                }
                Err(e) => {
                    if !std::mem::replace(&mut failed, true) {
                        warn!("the host firewall cannot be looked after: {e}");
                    }
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    async fn look(&self, seen: &mut Option<u32>) -> Result<Option<Repaired>, HostError> {
        let generation = |e: io::Error| HostError::Task(e.to_string());
        // One question to the kernel, and mostly that is all.
        let now = Kernel::open()
            .and_then(|kernel| kernel.generation())
            .map_err(generation)?;
        if *seen == Some(now) {
            return Ok(None);
        }
        let own = self.clone();
        let repaired = tokio::task::spawn_blocking(move || own.repair())
            .await
            .map_err(|e| HostError::Task(e.to_string()))??;
        // What has changed since is looked at once more, this repair too.
        *seen = Some(now);
        Ok(repaired)
    }
}

/// The lines of a listing, each with what it stands in.
fn placed(listing: &str) -> Vec<String> {
    let mut place = String::new();
    let mut lines = Vec::new();
    for line in listing.lines() {
        let (depth, line) = (line.len() - line.trim_start().len(), line.trim());
        match (depth, line.strip_suffix(" {")) {
            (1, Some(head)) => {
                place = format!("{head}: ");
                lines.push(head.to_owned());
            }
            _ if line.is_empty() || line == "}" => {}
            (0 | 1, _) => lines.push(line.to_owned()),
            _ => lines.push(format!("{place}{line}")),
        }
    }
    lines
}

/// The lines that are in one and not in the other.
fn differ(wanted: &str, found: &str) -> Vec<String> {
    let (wanted, found) = (placed(wanted), placed(found));
    let mut lines = Vec::new();
    for (sign, these, those) in [('-', &wanted, &found), ('+', &found, &wanted)] {
        let mut count: BTreeMap<&str, usize> = BTreeMap::new();
        for line in those {
            *count.entry(line).or_default() += 1;
        }
        for line in these {
            match count.get_mut(line.as_str()) {
                Some(left) if *left > 0 => *left -= 1,
                _ => lines.push(format!("{sign} {line}")),
            }
        }
    }
    if lines.is_empty() {
        lines.push("~ the same lines in another order".to_owned());
    }
    if lines.len() > TOLD {
        let more = lines.len() - TOLD;
        lines.truncate(TOLD);
        lines.push(format!("and {more} lines more"));
    }
    lines
}
