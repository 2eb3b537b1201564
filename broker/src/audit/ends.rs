//! The end of every run gets its record once, whatever happens to a broker
//! between the one and the other.

use std::collections::HashSet;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use muster_protocol::audit::{Entry, Line};
use muster_protocol::ids::RunId;
use muster_protocol::subject::AUDIT;
use muster_protocol::units::Timestamp;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::error::AuditError;
use super::retain::first_not;
use super::{Audit, STREAM};
use crate::store::read::read_from;
use crate::store::stream::get_stream;

/// The action of such a record.
pub(super) const ACTION: &str = "run-ended";
/// What the clocks of the store and of brokers may be apart, and a record may
/// have been late.
pub(crate) const MARGIN: Duration = Duration::from_secs(3_600);
/// Pause before it is tried again.
const PAUSE: Duration = Duration::from_secs(1);

/// A run that has ended.
#[derive(Clone, Debug)]
pub struct End {
    /// Which.
    pub run: RunId,
    /// What is recorded of it.
    pub entry: Entry,
}

/// Which ends are in the record.
struct Recorded {
    runs: HashSet<RunId>,
    /// Up to where the stream was read.
    read: u64,
}

impl Recorded {
    /// Reads on.
    async fn read(&mut self, audit: &Audit) -> Result<(), AuditError> {
        let Some(kept) = &audit.0.kept else {
            return Ok(());
        };
        let mut messages = read_from(&kept.js, STREAM, AUDIT, self.read + 1).await?;
        while let Some(message) = messages.try_next().await? {
            let text = String::from_utf8_lossy(&message.payload);
            for line in text.lines().filter(|line| line.contains(ACTION)) {
                if let Ok(Line::Record(record)) = serde_json::from_str(line)
                    && record.entry.action == ACTION
                    && let Some(run) = record.entry.about.run
                {
                    self.runs.insert(run);
                }
            }
            self.read = message.sequence;
        }
        Ok(())
    }
}

/// From where on ends may be missing: what the record held before this session
/// ended at `since`.
async fn begin(audit: &Audit, since: Option<Timestamp>) -> Result<Recorded, AuditError> {
    let mut recorded = Recorded {
        runs: HashSet::new(),
        read: 0,
    };
    if let (Some(kept), Some(since)) = (&audit.0.kept, since) {
        let stream = get_stream(&kept.js, STREAM).await?;
        let state = stream.cached_info().state.clone();
        let old = since.checked_sub(MARGIN * 2).unwrap_or(Timestamp::MIN);
        let is_old = |at: Timestamp| at < old;
        let first = first_not(&stream, state.first_sequence, state.last_sequence, is_old).await?;
        recorded.read = first.saturating_sub(1);
    }
    recorded.read(audit).await?;
    Ok(recorded)
}

/// Records what comes, until `cancel`. What is not recorded by then, the next
/// session finds.
pub(super) async fn keep(
    audit: Audit,
    mut ended: mpsc::UnboundedReceiver<End>,
    since: Option<Timestamp>,
    cancel: CancellationToken,
) {
    let work = async {
        let mut recorded = loop {
            match begin(&audit, since).await {
                Ok(recorded) => break recorded,
                Err(error) => {
                    tracing::warn!(%error, "which ends of runs are recorded cannot be read");
                    sleep(PAUSE).await;
                }
            }
        };
        while let Some(End { run, entry }) = ended.recv().await {
            while !recorded.runs.contains(&run) {
                muster_checkpoint::at("broker.audit.end", || run.to_string()).await;
                match audit.append(entry.clone()).await {
                    Ok(()) => {
                        recorded.runs.insert(run);
                    }
                    Err(error) => {
                        tracing::warn!(%run, %error, "the end of a run could not be recorded yet");
                        sleep(PAUSE).await;
                        // It may be there all the same.
                        if let Err(error) = recorded.read(&audit).await {
                            tracing::debug!(%error, "the record cannot be read");
                        }
                    }
                }
            }
        }
    };
    cancel.run_until_cancelled(work).await;
}
