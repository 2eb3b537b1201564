//! Runs of which the journal ends before anything was sent.
//!
//! Mostly a broker was killed while it wrote such a run down, and nothing was
//! sent. But when everything of a broker was set back at once (store, twin and
//! state directory), nothing here says what followed; only the nodes know. So
//! such a run is ended only once every node that there is has said hello, and
//! a moment later, or once it has had the time for that. Until then a node that has the signed request of it
//! proves that it was sent, and the run is written down again like any other
//! that was lost.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use muster_protocol::api::Presence as State;
use muster_protocol::ids::RunId;
use muster_protocol::run::RunPhase;
use muster_protocol::subject;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::engine::{Engine, lock};
use super::journal::{Folded, STREAM};
use crate::store::stream::{StreamError, purge_subject};

/// How often it is looked who has been heard.
const LOOK: Duration = Duration::from_millis(100);
/// What a node has of a run comes after its hello: the last that was heard has
/// so long to say it.
const AFTER_HELLO: Duration = Duration::from_secs(3);

/// Runs in doubt, and whether a node has claimed that it has something of it.
#[derive(Debug, Default)]
pub(super) struct Doubts(Mutex<HashMap<RunId, bool>>);

impl Doubts {
    pub(super) fn clear(&self) {
        lock(&self.0).clear();
    }

    fn settle(&self, run: RunId) -> bool {
        lock(&self.0).remove(&run).is_some()
    }
}

impl Engine {
    /// Whether a run's journal ends before anything was sent.
    pub(super) fn is_begun(folded: &Folded) -> bool {
        let state = &folded.state;
        state.phase == RunPhase::Preparing
            && state.spec.rebuilt.is_none()
            && state.spec.local.is_none()
    }

    /// A run that [has only begun](Engine::is_begun): ends it, unless a node
    /// proves in time that it was sent.
    pub(super) fn doubt(&self, folded: Folded, cancel: CancellationToken) {
        let run = folded.state.spec.id;
        lock(&self.0.lost.doubts.0).insert(run, false);
        let this = self.clone();
        self.0.tasks.spawn(async move {
            tokio::select! {
                () = cancel.cancelled() => return,
                () = this.doubt_ends(run) => {}
            }
            if this.0.lost.doubts.settle(run) {
                this.open(folded, Vec::new());
            }
        });
    }

    async fn doubt_ends(&self, run: RunId) {
        let end = Instant::now() + self.0.settings.heard_within;
        let mut heard: Option<Instant> = None;
        while Instant::now() < end {
            let claimed = lock(&self.0.lost.doubts.0).get(&run).copied();
            heard = heard.filter(|_| self.all_heard());
            match claimed {
                // Proven, or another time of being active.
                None => return,
                // Whoever claims it is given the time to prove it.
                Some(true) => {}
                Some(false) => match heard {
                    Some(since) if since.elapsed() >= AFTER_HELLO => return,
                    Some(_) => {}
                    None if self.all_heard() => heard = Some(Instant::now()),
                    None => {}
                },
            }
            sleep(LOOK).await;
        }
    }

    fn all_heard(&self) -> bool {
        let views = self.0.presence.views();
        let snapshot = self.0.inventory.snapshot();
        snapshot.iter().filter(|node| node.is_active()).all(|node| {
            views
                .get(&node.serial)
                .is_some_and(|v| v.state == State::Up)
        })
    }

    /// A node says something of a run; whether that run is in doubt.
    pub(super) fn claims(&self, run: RunId) -> bool {
        let mut doubts = lock(&self.0.lost.doubts.0);
        doubts
            .get_mut(&run)
            .map(|claimed| *claimed = true)
            .is_some()
    }

    /// A node has proven that a run was sent: its beginning makes room for the
    /// whole. Whether it was in doubt.
    pub(super) async fn was_sent(&self, run: RunId) -> Result<bool, StreamError> {
        if !self.0.lost.doubts.settle(run) {
            return Ok(false);
        }
        tracing::warn!(%run, "a run of which only the beginning is here was sent; the store went back");
        lock(&self.0.index).remove(run);
        purge_subject(&self.0.js, STREAM, &subject::journal(run)).await?;
        Ok(true)
    }
}
