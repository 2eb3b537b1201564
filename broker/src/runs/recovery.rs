//! From journals to open runs when this broker becomes active.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use muster_protocol::ids::RunId;
use muster_protocol::run::{RunEvent, RunState};
use muster_protocol::subject;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::engine::{Active, Engine, lock};
use super::index::Known;
use super::journal::{Folded, STREAM, ensure, fold, follow, parse};
use crate::retention::removed_runs;
use crate::store::read::read_from;
use crate::store::stream::{StreamError, purge_subject};

/// How often the lease is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// Pause after a failure.
const PAUSE: Duration = Duration::from_secs(2);

impl Engine {
    /// Serves runs whenever this broker is the active one, until it is
    /// cancelled: reads the journals, takes up what is open, and lets go when
    /// the lease ends.
    pub async fn supervise(self, cancel: CancellationToken) {
        loop {
            let epoch = tokio::select! {
                () = cancel.cancelled() => break,
                epoch = self.lease_gained() => epoch,
            };
            let term = cancel.child_token();
            let served = async {
                self.serve(epoch, &term).await;
                self.lease_lost(epoch).await;
            };
            tokio::select! {
                () = cancel.cancelled() => {}
                () = served => tracing::warn!(epoch, "this broker is not the active one any more"),
            }
            term.cancel();
            self.let_go();
        }
        self.let_go();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    fn let_go(&self) {
        self.0.ready.send_replace(false);
        if let Some(active) = lock(&self.0.active).take() {
            active.cancel.cancel();
        }
        self.0.forget_all();
    }

    async fn lease_gained(&self) -> u64 {
        loop {
            if let Some(epoch) = self.0.bus.lease().epoch() {
                return epoch;
            }
            sleep(LOOK).await;
        }
    }

    async fn lease_lost(&self, epoch: u64) {
        while self.0.bus.lease().epoch() == Some(epoch) {
            sleep(LOOK).await;
        }
    }

    /// Reads the journals, again and again until it works, then begins.
    async fn serve(&self, epoch: u64, term: &CancellationToken) {
        while self.0.bus.lease().epoch() == Some(epoch) {
            match self.recover(epoch, term).await {
                Ok(()) => return,
                Err(error) => {
                    tracing::error!(%error, "cannot read the journals of runs; trying again");
                    self.0.forget_all();
                    sleep(PAUSE).await;
                }
            }
        }
    }

    async fn recover(&self, epoch: u64, term: &CancellationToken) -> Result<(), StreamError> {
        let shared = &self.0;
        let limit = ensure(&shared.js, shared.settings.max_bytes).await?;
        shared.limit.store(limit, Ordering::Relaxed);
        let removed = removed_runs(&shared.js).await?;
        shared
            .purged
            .load(&shared.js)
            .await
            .map_err(|error| StreamError::NoAnswer {
                what: "which runs were removed".to_owned(),
                reason: error.to_string(),
            })?;
        let mut runs: HashMap<RunId, Option<Folded>> = HashMap::new();
        let mut messages = read_from(&shared.js, STREAM, subject::JOURNAL_ALL, 1).await?;
        let mut damaged = BTreeSet::new();
        let mut headless = BTreeSet::new();
        while let Some(message) = messages.try_next().await? {
            let Some(run) = run_of(&message.subject) else {
                continue;
            };
            // A part of a journal that was being removed is no run.
            if removed.contains(&run) {
                lock(&shared.leftovers).insert(run);
                continue;
            }
            let folded = match runs.entry(run) {
                std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
                std::collections::hash_map::Entry::Vacant(entry) => entry.insert(None),
            };
            let known = lock(&shared.index).first(run).is_some();
            if folded.is_none() && known {
                // It has ended; late answers change nothing that is kept.
                if let Ok(RunEvent::OutputRemoved { at }) =
                    parse(run, message.sequence, &message.payload)
                {
                    lock(&shared.index).output_removed(run, at);
                }
                continue;
            }
            let event = match parse(run, message.sequence, &message.payload) {
                Ok(event) => event,
                Err(error) => {
                    damaged.insert(run);
                    tracing::error!(%error, "a run is left out");
                    *folded = None;
                    continue;
                }
            };
            if let Err(error) = follow(folded, &event, message.sequence) {
                tracing::debug!(%run, sequence = message.sequence, %error, "an event is left out");
                if folded.is_none() {
                    headless.insert(run);
                }
                continue;
            }
            let ended = folded
                .as_ref()
                .filter(|folded| folded.state.phase.is_final());
            if let Some(ended) = ended {
                lock(&shared.index).insert(Known::new(&ended.state, ended.first));
                *folded = None;
            }
        }
        let mut open: Vec<Folded> = runs.into_values().flatten().collect();
        for folded in &open {
            lock(&shared.index).insert(Known::new(&folded.state, folded.first));
        }
        let cut: Vec<Folded> = open.extract_if(.., |folded| self.was_cut(folded)).collect();
        for folded in cut {
            self.forget_cut(&folded.state).await?;
        }
        // A journal without its head is the rest of a removal; one whose head
        // cannot be read may be a newer muster's, and stays for its age.
        headless.retain(|run| !damaged.contains(run) && lock(&shared.index).first(*run).is_none());
        lock(&shared.leftovers).extend(headless);
        if !damaged.is_empty() {
            let text = format!(
                "the journals of {} runs cannot be read; was a newer muster here before?",
                damaged.len()
            );
            shared
                .events
                .emit("alarm.journal-damaged", "runs", text)
                .await;
        }
        *lock(&shared.active) = Some(Active {
            epoch,
            cancel: term.clone(),
        });
        tracing::info!(
            epoch,
            runs = lock(&shared.index).len(),
            open = open.len(),
            "journals read"
        );
        // Who holds a lock is known before anybody asks for one.
        for folded in &open {
            shared.locks.note(&folded.state);
        }
        let under_way: BTreeSet<RunId> = open.iter().map(|f| f.state.spec.id).collect();
        for folded in open {
            let part_of = folded.state.spec.part_of;
            let of_open = part_of.is_some_and(|part| under_way.contains(&part.run));
            match (Self::is_begun(&folded), of_open) {
                // The run that it is a part of goes on with writing it down.
                (true, true) => {}
                (true, false) => self.doubt(folded, term.clone()),
                (false, _) => self.open(folded, Vec::new()),
            }
        }
        shared.ready.send_replace(true);
        Ok(())
    }

    /// Whether a run's journal ends before its set is whole because the store
    /// went back to that moment. What followed is not known here: it may well
    /// have been sent.
    fn was_cut(&self, folded: &Folded) -> bool {
        let (state, past) = (&folded.state, &self.0.past);
        Self::is_begun(folded) && past.may_have_lost(state.spec.created)
    }

    /// Makes such a run one that is not known: a node that took part proves
    /// it, and by that it is written down again as a whole. To end it would
    /// say that nothing was sent, and nodes would not be believed any more.
    async fn forget_cut(&self, state: &RunState) -> Result<(), StreamError> {
        let shared = &self.0;
        let run = state.spec.id;
        let short = lock(&shared.index).short(run);
        purge_subject(&shared.js, STREAM, &subject::journal(run)).await?;
        lock(&shared.index).remove(run);
        tracing::warn!(%run, "a run was cut short when the store went back; nodes say what became of it");
        let text = format!(
            "of run {short} of {} at {} only the beginning is left, because the store went back in \
             time; it comes back when a node that took part reports it",
            state.spec.principal, state.spec.created
        );
        shared.events.emit("run.cut", &short, text).await;
        Ok(())
    }

    /// Reads a run's journal again and goes on with it, when somebody else
    /// wrote it although this broker is the active one.
    pub(super) async fn take_up(&self, run: RunId, first: u64) {
        loop {
            if self.0.active().is_none() || lock(&self.0.open).contains_key(&run) {
                return;
            }
            match fold(&self.0.js, run, first).await {
                Ok(folded) => {
                    lock(&self.0.index).update(&folded.state);
                    if !folded.state.phase.is_final() {
                        tracing::warn!(%run, "taking a run up again");
                        self.open(folded, Vec::new());
                    }
                    return;
                }
                Err(error) => tracing::error!(%run, %error, "cannot read a run's journal again"),
            }
            sleep(PAUSE).await;
        }
    }
}

/// The run whose journal has this subject.
pub(crate) fn run_of(subject: &str) -> Option<RunId> {
    subject
        .strip_prefix("m1.run.")?
        .strip_suffix(".j")?
        .parse()
        .ok()
}
