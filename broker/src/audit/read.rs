//! Reading the record.

use futures_util::{StreamExt as _, TryStreamExt as _};
use muster_protocol::audit::{Line, Record, Verdict};
use muster_protocol::ids::RunId;
use muster_protocol::names::PrincipalName;
use muster_protocol::subject::AUDIT;
use muster_protocol::units::Timestamp;

use super::error::AuditError;
use super::retain::first_not;
use super::{Audit, STREAM};
use crate::store::read::read_from;
use crate::store::stream::get_stream;

/// Messages that are looked through at a time, going backwards.
const WINDOW: u64 = 2_000;

/// Which records are wanted; what is absent does not matter.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Filter {
    /// Of this principal.
    pub principal: Option<PrincipalName>,
    /// Of actions that are this, or begin with it and a dash.
    pub action: Option<String>,
    /// About this run.
    pub run: Option<RunId>,
    /// Only what was denied.
    pub denied: bool,
    /// Not before.
    pub since: Option<Timestamp>,
    /// With a lower number.
    pub before: Option<u64>,
}

impl Filter {
    /// Whether a record is wanted.
    #[must_use]
    pub fn takes(&self, record: &Record) -> bool {
        let entry = &record.entry;
        let action = |wanted: &String| {
            entry.action == *wanted
                || entry
                    .action
                    .strip_prefix(wanted.as_str())
                    .is_some_and(|rest| rest.starts_with('-'))
        };
        self.principal
            .as_ref()
            .is_none_or(|wanted| entry.who.principal.as_ref() == Some(wanted))
            && self.action.as_ref().is_none_or(action)
            && self.run.is_none_or(|run| entry.about.run == Some(run))
            && (!self.denied || entry.verdict == Verdict::Denied)
            && self
                .since
                .is_none_or(|since| entry.until.unwrap_or(entry.at) >= since)
            && self.before.is_none_or(|before| record.n < before)
    }
}

/// Records that were found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    /// Oldest first.
    pub records: Vec<Record>,
    /// Whether there are older ones.
    pub more: bool,
}

impl Audit {
    /// The newest `limit` records that the filter takes.
    ///
    /// # Errors
    /// [`AuditError`].
    pub async fn newest(&self, filter: &Filter, limit: usize) -> Result<Found, AuditError> {
        let Some(kept) = &self.0.kept else {
            return Ok(Found::default());
        };
        let stream = get_stream(&kept.js, STREAM).await?;
        let state = stream.cached_info().state.clone();
        let mut first = state.first_sequence;
        if let Some(since) = filter.since {
            // A minute: what is counted is stored when its minute is over.
            let is_before = |at: Timestamp| at < since;
            first = first_not(&stream, first, state.last_sequence, is_before).await?;
        }
        let mut to = state.last_sequence + 1;
        let mut found: Vec<Record> = Vec::new();
        while to > first && found.len() <= limit {
            let from = to.saturating_sub(WINDOW).max(first);
            let mut window = Vec::new();
            let mut messages = read_from(&kept.js, STREAM, AUDIT, from).await?;
            while let Some(message) = messages.try_next().await? {
                if message.sequence >= to {
                    break;
                }
                let text = String::from_utf8_lossy(&message.payload);
                for line in text.lines() {
                    if let Ok(Line::Record(record)) = serde_json::from_str(line)
                        && filter.takes(&record)
                    {
                        window.push(*record);
                    }
                }
            }
            window.append(&mut found);
            found = window;
            to = from;
        }
        let surplus = found.len().saturating_sub(limit);
        found.drain(..surplus);
        Ok(Found {
            records: found,
            more: surplus > 0,
        })
    }

    /// Every line as it is stored, oldest first, up to what is there now.
    ///
    /// # Errors
    /// [`AuditError`]; as an item: the same.
    pub async fn lines(
        &self,
    ) -> Result<
        impl futures_util::Stream<Item = Result<String, AuditError>> + Send + use<>,
        AuditError,
    > {
        let messages = match &self.0.kept {
            Some(kept) => read_from(&kept.js, STREAM, AUDIT, 1).await?.left_stream(),
            None => futures_util::stream::empty().right_stream(),
        };
        Ok(messages.map_err(AuditError::from).map_ok(|message| {
            let mut text = String::from_utf8_lossy(&message.payload).into_owned();
            text.push('\n');
            text
        }))
    }
}
