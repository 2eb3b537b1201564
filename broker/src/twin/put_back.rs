//! What was lost is written into the store again.
//!
//! Before a session is opened, and only with the lease. Everything compares
//! with what the store has at that moment, so that a broker that is killed in
//! the middle begins again, and does nothing twice.

use std::collections::HashSet;

use async_nats::jetstream::Context;
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use muster_protocol::ids::RunId;
use muster_protocol::run::{RunEvent, RunState};
use muster_protocol::subject;

use super::db::{Done, LostValue, Message};
use super::examine::{ExamineError, last};
use super::merge::{Merged, merge};
use super::tell::Report;
use super::values::{Write, decide};
use super::{
    AUDIT, BUNDLES, CLUSTER, EVENTS, FACTS, INVITES, NODES, Past, RUNS, MACHINES, SCENARIOS, SCHEDULES,
    TOKENS, Twin,
};
use crate::events::{Events, EventsError};
use crate::inventory::{AccountValue, StoredNode};
use crate::lease::Lease;
use crate::retention::removed_runs;
use crate::runs;
use crate::store::append::{Append, append, append_all};
use crate::store::error::StreamError;
use crate::store::kv::{KvError, OPERATION};
use crate::store::read::read_from;
use crate::store::stream::get_stream;

/// Messages of a log that are appended at a time.
const CHUNK: usize = 256;
/// So often a value that changes meanwhile is looked at again.
const TIMES: u32 = 5;
/// Who is revoked; see `inventory::accounts`.
const ACCOUNT: &str = "$KV.muster_cluster.account";

/// Why the store is not whole again yet.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PutBackError {
    /// It could not be compared.
    #[error(transparent)]
    Examine(#[from] ExamineError),
    /// This broker may not write now.
    #[error("this broker is not the active one now")]
    NotActive,
    /// NATS.
    #[error("what the store has lost could not be put back yet: {0}")]
    Stream(#[from] StreamError),
    /// NATS.
    #[error("what the store has lost could not be put back yet: {0}")]
    Kv(#[from] KvError),
    /// NATS.
    #[error(transparent)]
    Events(#[from] EventsError),
    /// The record of requests.
    #[error(transparent)]
    Audit(#[from] crate::audit::AuditError),
}

/// Where it is put.
pub(crate) struct Place<'a> {
    /// The store.
    pub(crate) js: &'a Context,
    /// The right to write to it.
    pub(crate) lease: &'a Lease,
    /// How runs are kept.
    pub(crate) runs: &'a runs::Settings,
    /// What is known of lost times.
    pub(crate) past: crate::store::kv::Kv<super::StoredPast>,
}

impl Place<'_> {
    fn active(&self) -> Result<(), PutBackError> {
        self.lease.epoch().map(drop).ok_or(PutBackError::NotActive)
    }
}

impl Twin {
    /// Compares the store with the twin. What comes back is what is known to
    /// be void and the store has lost; `None` when nothing is lost, as on most
    /// days.
    ///
    /// # Errors
    /// [`ExamineError`]; to be called again.
    pub(crate) async fn compare(&self, js: &Context) -> Result<Option<AccountValue>, ExamineError> {
        self.examine(js).await?;
        Ok(self.void().await)
    }

    /// Of what was lost, that which keeps somebody out of NATS.
    async fn void(&self) -> Option<AccountValue> {
        self.with(|db| db.loss()).await.flatten()?;
        let lost = self.with(|db| db.lost_values()).await.unwrap_or_default();
        let mut void = AccountValue::default();
        for LostValue { stream, value, .. } in &lost {
            match stream.as_str() {
                CLUSTER if value.subject == ACCOUNT && !value.gone => {
                    match serde_json::from_slice(&value.payload) {
                        Ok(account) => void = void.and(account),
                        Err(error) => tracing::error!(%error, "who was revoked cannot be read"),
                    }
                }
                NODES => {
                    let node = serde_json::from_slice::<StoredNode>(&value.payload).ok();
                    let out = node.as_ref().and_then(StoredNode::void);
                    let user = out.and_then(|(user, until)| Some((user.parse().ok()?, until)));
                    void = void.and(AccountValue::void(user));
                }
                _ => {}
            }
        }
        Some(void)
    }

    /// Puts back what the store has lost, and says so. `void` is what
    /// [`Twin::compare`] gave, and the NATS servers know it by now: whoever
    /// was shut out does not get in meanwhile. What was lost since then waits
    /// for the next time.
    ///
    /// # Errors
    /// [`PutBackError`]; to be called again.
    pub(crate) async fn heal(
        &self,
        place: &Place<'_>,
        void: Option<&AccountValue>,
    ) -> Result<(), PutBackError> {
        if self.void().await.as_ref() != void {
            return Ok(());
        }
        if let Some(report) = Box::pin(self.put_back(place)).await? {
            let events =
                Events::open(place.js.clone(), place.lease.clone(), crate::events::KEEP).await?;
            let past = Past::load(place.past.clone(), place.lease.clone()).await?;
            past.add(report.time()).await?;
            // The twin lets go of what it has only when it has it anew.
            self.catch_up(place.js).await?;
            super::tell::tell(&events, &report).await;
            let id = report.loss.id;
            self.write(move |db| db.told(id)).await;
        }
        super::leap::leap(place.js, place.lease, &place.past).await
    }

    async fn put_back(&self, place: &Place<'_>) -> Result<Option<Report>, PutBackError> {
        let Some(loss) = self.with(|db| db.loss()).await.flatten() else {
            return Ok(None);
        };
        place.active()?;
        tracing::warn!("putting back what the store has lost");
        muster_checkpoint::at("broker.put-back", || loss.id.to_string()).await;
        let mut report = Report::new(loss);
        self.values(place, &mut report).await?;
        // The streams themselves may be gone.
        drop(Events::open(place.js.clone(), place.lease.clone(), crate::events::KEEP).await?);
        runs::ensure(place.js, place.runs).await?;
        crate::audit::ensure(place.js).await?;
        self.runs(place, &mut report).await?;
        self.events(place, &mut report).await?;
        self.audit(place).await?;
        Ok(Some(report))
    }

    async fn values(&self, place: &Place<'_>, report: &mut Report) -> Result<(), PutBackError> {
        let mut lost = self.with(|db| db.lost_values()).await.unwrap_or_default();
        lost.sort_by_cached_key(rank);
        for lost in lost {
            let done = match lost.done {
                Some(done) => done,
                None => {
                    let done = put_value(place, &lost).await?;
                    let (stream, subject) = (lost.stream.clone(), lost.value.subject.clone());
                    self.write(move |db| db.value_is(&stream, &subject, done))
                        .await;
                    done
                }
            };
            report.value(&lost.stream, done);
        }
        Ok(())
    }

    async fn runs(&self, place: &Place<'_>, report: &mut Report) -> Result<(), PutBackError> {
        let subjects = self.with(|db| db.lost_subjects(RUNS)).await;
        // The record of them is a value, and is back by now.
        let removed = removed_runs(place.js).await?;
        for (journal, done) in subjects.unwrap_or_default() {
            let Some(run) = runs::run_of(&journal) else {
                continue;
            };
            if removed.contains(&run) {
                self.write(move |db| db.subject_is(RUNS, &journal, Done::Needless))
                    .await;
                continue;
            }
            let asked = journal.clone();
            let (held, lost) = self
                .with(move |db| db.known(RUNS, &asked))
                .await
                .unwrap_or_default();
            let known: Vec<Bytes> = held
                .iter()
                .chain(&lost)
                .map(|m| m.payload.clone())
                .collect();
            let done = match done {
                Some(done) => done,
                None => {
                    let done = put_journal(place, run, &journal, &known).await?;
                    self.write(move |db| db.subject_is(RUNS, &journal, done))
                        .await;
                    done
                }
            };
            report.run(run, done);
            if done != Done::Gone && output_is_gone(place, run, &known).await? {
                report.output_gone(run);
            }
        }
        Ok(())
    }

    async fn events(&self, place: &Place<'_>, report: &mut Report) -> Result<(), PutBackError> {
        let subjects = self.with(|db| db.lost_subjects(EVENTS)).await;
        for (name, done) in subjects.unwrap_or_default() {
            if done.is_none() {
                let asked = name.clone();
                let (_, lost) = self
                    .with(move |db| db.known(EVENTS, &asked))
                    .await
                    .unwrap_or_default();
                put_events(place, &name, &lost).await?;
                let name = name.clone();
                self.write(move |db| db.subject_is(EVENTS, &name, Done::Back))
                    .await;
            }
        }
        let back = self.with(|db| db.count_lost(EVENTS, Done::Back)).await;
        report.events(back.unwrap_or(0));
        Ok(())
    }
}

impl Twin {
    /// The end of the record, as far as it follows on what is there. What does
    /// not is found missing when the record is opened.
    async fn audit(&self, place: &Place<'_>) -> Result<(), PutBackError> {
        let subjects = self.with(|db| db.lost_subjects(AUDIT)).await;
        for (name, done) in subjects.unwrap_or_default() {
            if done.is_some() {
                continue;
            }
            let asked = name.clone();
            let (held, lost) = self
                .with(move |db| db.known(AUDIT, &asked))
                .await
                .unwrap_or_default();
            // What is held of the place where it broke may be missing, too.
            let texts = held.iter().chain(&lost).map(|m| m.payload.clone());
            place.active()?;
            let back = crate::audit::put_back(place.js, texts.collect()).await?;
            tracing::warn!(back, "messages of the audit were put back");
            self.write(move |db| db.subject_is(AUDIT, &name, Done::Back))
                .await;
        }
        Ok(())
    }
}

/// What is put back first: what was taken away from somebody, so that it is
/// so whatever happens next; then who the nodes are, on which their facts
/// depend.
fn rank(lost: &LostValue) -> u8 {
    let value = &lost.value;
    match lost.stream.as_str() {
        CLUSTER if value.subject == ACCOUNT => 0,
        NODES => {
            let node = serde_json::from_slice::<StoredNode>(&value.payload);
            let out = value.gone || node.is_ok_and(|node| node.void().is_some());
            if out { 1 } else { 3 }
        }
        // That which was revoked, withdrawn or used up; and broker keys.
        TOKENS | INVITES if value.gone => 1,
        INVITES | CLUSTER => 2,
        TOKENS => 3,
        // No history names what is not there.
        BUNDLES => 3,
        _ => 4,
    }
}

async fn put_value(place: &Place<'_>, lost: &LostValue) -> Result<Done, PutBackError> {
    let subject = lost.value.subject.as_str();
    let Some((bucket, key)) = subject
        .strip_prefix("$KV.")
        .and_then(|rest| rest.split_once('.'))
    else {
        return Ok(Done::Needless);
    };
    let stream = get_stream(place.js, &lost.stream).await?;
    for _ in 0..TIMES {
        let now = last(&stream, subject).await?;
        if lost.stream == FACTS && !is_enrolled(place, key).await? {
            return Ok(Done::Needless);
        }
        let write = match decide(&lost.stream, key, now.as_ref(), &lost.value) {
            Ok(Some(write)) => write,
            Ok(None) => return Ok(Done::Needless),
            Err(error) => {
                tracing::error!(bucket, key, error = error.0, "a lost value cannot be read");
                return Ok(Done::Gone);
            }
        };
        place.active()?;
        let mut message = match write {
            Write::Put(value) => Append::new(subject, value),
            Write::Delete => {
                let mut message = Append::new(subject, Bytes::new());
                message.headers.insert(OPERATION, "DEL");
                message
            }
        };
        message.expect = Some(now.map_or(0, |now| now.seq));
        match append(place.js, &lost.stream, &message).await {
            Ok(_) => return Ok(Done::Back),
            Err(StreamError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    tracing::error!(
        bucket,
        key,
        "somebody else writes a value that was lost; it is left to them"
    );
    Ok(Done::Gone)
}

/// Whether the store has a node of that serial.
async fn is_enrolled(place: &Place<'_>, serial: &str) -> Result<bool, PutBackError> {
    let nodes = get_stream(place.js, NODES).await?;
    let node = last(&nodes, &format!("$KV.muster_nodes.{serial}")).await?;
    Ok(node.is_some_and(|node| {
        serde_json::from_slice::<StoredNode>(&node.payload).is_ok_and(|node| !node.is_removed())
    }))
}

async fn put_journal(
    place: &Place<'_>,
    run: RunId,
    journal: &str,
    known: &[Bytes],
) -> Result<Done, PutBackError> {
    let stream = get_stream(place.js, RUNS).await?;
    // Conflicts: the lease says that nobody else writes; a message whose
    // confirmation was lost shows like that.
    for _ in 0..TIMES {
        let (mut stored, mut end) = (Vec::new(), 0);
        if last(&stream, journal).await?.is_some() {
            let mut messages = read_from(place.js, RUNS, journal, 1).await?;
            while let Some(message) = messages.try_next().await? {
                end = message.sequence;
                stored.push(message.payload);
            }
        }
        let missing = match merge(&stored, known) {
            Merged::Whole => return Ok(Done::Needless),
            Merged::Append(missing) => missing,
            Merged::Impossible(why) => {
                tracing::error!(%run, why, "a lost journal cannot be put back");
                return Ok(Done::Gone);
            }
        };
        place.active()?;
        let messages: Vec<Append> = missing
            .into_iter()
            .enumerate()
            .map(|(n, payload)| {
                let message = Append::new(journal, payload);
                if n == 0 {
                    message.expecting(end)
                } else {
                    message
                }
            })
            .collect();
        let mut conflict = false;
        for result in append_all(place.js, RUNS, &messages).await {
            match result {
                Ok(_) => {}
                Err(StreamError::Conflict { .. } | StreamError::NotSent { .. }) => conflict = true,
                Err(error) => return Err(error.into()),
            }
        }
        if !conflict {
            return Ok(Done::Back);
        }
    }
    tracing::error!(%run, "somebody else writes a journal that was lost; it is left to them");
    Ok(Done::Gone)
}

async fn put_events(place: &Place<'_>, name: &str, lost: &[Message]) -> Result<(), PutBackError> {
    let mut there = HashSet::new();
    let mut messages = read_from(place.js, EVENTS, name, 1).await?;
    while let Some(message) = messages.try_next().await? {
        there.insert(message.payload);
    }
    let missing: Vec<Append> = lost
        .iter()
        .filter(|message| !there.contains(&message.payload))
        .map(|message| crate::events::again(&message.payload))
        .collect();
    for chunk in missing.chunks(CHUNK) {
        place.active()?;
        for result in append_all(place.js, EVENTS, chunk).await {
            result?;
        }
    }
    Ok(())
}

/// Whether the store has less output of a run than its journal says.
async fn output_is_gone(
    place: &Place<'_>,
    run: RunId,
    known: &[Bytes],
) -> Result<bool, PutBackError> {
    let mut state: Option<RunState> = None;
    for payload in known {
        let Ok(event) = serde_json::from_slice::<RunEvent>(payload) else {
            continue;
        };
        if matches!(event, RunEvent::OutputRemoved { .. }) {
            // Not lost: it was removed for its age, and that is said.
            return Ok(false);
        }
        match &mut state {
            Some(state) => drop(state.apply(&event)),
            None => state = RunState::begin(&event).ok(),
        }
    }
    let told: u64 = state
        .iter()
        .flat_map(RunState::results)
        .map(|result| result.output_bytes)
        .sum();
    if told == 0 {
        return Ok(false);
    }
    let output = subject::output(run);
    let stream = get_stream(place.js, RUNS).await?;
    if last(&stream, &output).await?.is_none() {
        return Ok(true);
    }
    let (mut messages, mut there) = (read_from(place.js, RUNS, &output, 1).await?, 0);
    while let Some(message) = messages.try_next().await? {
        there += message.payload.len() as u64;
    }
    Ok(there < told)
}

/// Which bucket counts as what, for people.
pub(super) fn kind(stream: &str) -> Option<Kind> {
    match stream {
        NODES => Some(Kind::Node),
        TOKENS => Some(Kind::Token),
        INVITES => Some(Kind::Invite),
        SCENARIOS => Some(Kind::Scenario),
        SCHEDULES => Some(Kind::Schedule),
        MACHINES => Some(Kind::Machine),
        _ => None,
    }
}

/// What people are told of one by one.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Kind {
    Node,
    Token,
    Invite,
    Scenario,
    Schedule,
    Machine,
}
