//! Records go by age; a signed checkpoint says up to where.

use std::time::Duration;

use async_nats::jetstream::stream::{RawMessageErrorKind, Stream};
use muster_protocol::audit::{Line, Tail};
use muster_protocol::units::{Timestamp, elapsed};
use tokio::sync::oneshot;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::error::AuditError;
use super::owner::ToRecord;
use super::{Audit, STREAM};
use crate::store::error::StreamError;
use crate::store::stream::get_stream;

/// How often it is looked at.
const EVERY: Duration = Duration::from_secs(6 * 3_600);
/// When it is looked at first.
const FIRST: Duration = Duration::from_secs(300);

/// Removes what is older than `keep`, until `cancel`.
pub(super) async fn keep(audit: Audit, keep: Duration, cancel: CancellationToken) {
    let mut wait = FIRST;
    loop {
        if cancel.run_until_cancelled(sleep(wait)).await.is_none() {
            return;
        }
        wait = EVERY;
        match cancel.run_until_cancelled(audit.cut_before(keep)).await {
            Some(Ok(())) => {}
            Some(Err(error)) => {
                tracing::warn!(%error, "old records of the audit could not be removed");
            }
            None => return,
        }
    }
}

impl Audit {
    /// Removes what is older than `keep`. The last record always stays.
    ///
    /// # Errors
    /// [`AuditError`].
    pub(super) async fn cut_before(&self, keep: Duration) -> Result<(), AuditError> {
        let Some(kept) = &self.0.kept else {
            return Ok(());
        };
        let stream = get_stream(&kept.js, STREAM).await?;
        let state = stream.cached_info().state.clone();
        if state.messages == 0 {
            return Ok(());
        }
        let now = Timestamp::now();
        let is_old = |at: Timestamp| elapsed(at, now) > keep && at < now;
        let from = first_not(&stream, state.first_sequence, state.last_sequence, is_old).await?;
        if from <= state.first_sequence {
            return Ok(());
        }
        // It must begin with a record, which says what it was built on.
        let mut at = from;
        while at <= state.last_sequence {
            if let Some((_, payload)) = message(&stream, at).await?
                && let Some(line) = String::from_utf8_lossy(&payload).lines().next()
                && let Ok(Line::Record(record)) = serde_json::from_str(line)
            {
                let tail = Tail {
                    count: record.n - 1,
                    head: record.prev,
                };
                let (tell, told) = oneshot::channel();
                let cut = ToRecord::Cut {
                    tail,
                    keep_from: at,
                    tell,
                };
                let sent = kept.to_owner.send(cut).await;
                sent.map_err(|_| AuditError::NotActive)?;
                return told.await.map_err(|_| AuditError::NotActive)?;
            }
            at += 1;
        }
        Ok(())
    }
}

/// The first sequence from `low` to `high` whose message is not of that kind,
/// where all of the kind come first; `high + 1` when all are.
pub(super) async fn first_not(
    stream: &Stream,
    mut low: u64,
    high: u64,
    is: impl Fn(Timestamp) -> bool,
) -> Result<u64, AuditError> {
    let mut above = high + 1;
    while low < above {
        let middle = low + (above - low) / 2;
        // What was removed by hand is looked past.
        let mut at = middle;
        let found = loop {
            if at >= above {
                break None;
            }
            match message(stream, at).await? {
                Some((time, _)) => break Some(time),
                None => at += 1,
            }
        };
        match found {
            Some(time) if is(time) => low = at + 1,
            _ => above = middle,
        }
    }
    Ok(low)
}

/// One message: when it was stored, and its payload.
pub(super) async fn message(
    stream: &Stream,
    sequence: u64,
) -> Result<Option<(Timestamp, bytes::Bytes)>, AuditError> {
    match stream.get_raw_message(sequence).await {
        Ok(found) => {
            let time = Timestamp::from_nanosecond(found.time.unix_timestamp_nanos());
            Ok(Some((time.unwrap_or(Timestamp::UNIX_EPOCH), found.payload)))
        }
        Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(AuditError::Store(StreamError::NoAnswer {
            what: format!("message {sequence} of `{STREAM}`"),
            reason: error.to_string(),
        })),
    }
}
