//! Steps that go on after the agent that began them has ended: because they
//! restarted the machine, or because they may be repeated.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use muster_protocol::envelope::{Ask, Call, Request};
use muster_protocol::ids::RequestId;
use muster_protocol::note::Note;
use muster_protocol::run::{NodeResult, Outcome};
use muster_protocol::subject::NodeSays;
use muster_protocol::units::{Span, Timestamp, after, elapsed};
use muster_protocol::wire::Accepted;
use muster_scenarios::secret::Secrets;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep_until};
use tracing::{Instrument as _, info, info_span, warn};

use super::live::Live;
use super::{Active, Entered, Inner, Leave, Steps};
use crate::executor::Step;
use crate::journal::{JournalError, Unfinished};
use crate::scenario::{Past, Restarts};

/// What is written down of a step before it restarts the machine.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Pending {
    /// The boot that is to end.
    boot_id: String,
    /// When the step's time is over.
    until: Timestamp,
    call: Call,
    past: Past,
    /// The boot in which it went on. What it did then nobody knows when the
    /// agent ends in the middle of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    went_on: Option<String>,
}

/// Remembers that a step restarts the machine.
pub(super) struct Remember {
    pub(super) inner: Arc<Inner>,
    pub(super) id: RequestId,
    pub(super) call: Call,
    pub(super) until: Timestamp,
}

impl Restarts for Remember {
    fn intend(&self, past: Past) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            let pending = Pending {
                boot_id: self.inner.parts.boot_id.clone(),
                until: self.until,
                call: self.call.clone(),
                past,
                went_on: None,
            };
            let note = serde_json::to_string(&pending).map_err(|e| e.to_string())?;
            self.inner.place("agent.restart.before", self.id).await;
            let journal = &self.inner.parts.journal;
            journal
                .set_pending(self.id, note)
                .await
                .map_err(|e| format!("it cannot be journaled that this goes on: {e}"))?;
            self.inner.place("agent.restart.after", self.id).await;
            info!(run = %self.id.run, step = self.id.step, "the machine is restarted by a step");
            Ok(())
        })
    }

    fn withdraw(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.inner.forget_pending(self.id))
    }
}

/// In which way a step goes on.
enum Again {
    /// Behind its `reboot()`.
    Behind(Box<Past>),
    /// From its beginning, once more.
    FromTheTop,
}

impl Inner {
    pub(super) async fn forget_pending(&self, id: RequestId) {
        if let Err(e) = self.parts.journal.drop_pending(id).await {
            // It is looked at only while the step has no end.
            warn!(run = %id.run, step = id.step, "a note of a restart stays in the journal: {e}");
        }
    }

    /// Waits for the end of this boot. `None` when the agent ends: the next
    /// one goes on.
    pub(super) async fn restarts(
        &self,
        id: RequestId,
        deadline: Instant,
        timeout: Duration,
    ) -> Option<NodeResult> {
        let accepted = Accepted { request: id };
        let _ = self.parts.bus.say(NodeSays::Accepted, &accepted).await;
        tokio::select! {
            () = self.closing.cancelled() => None,
            () = sleep_until(deadline) => {
                self.forget_pending(id).await;
                let limit = Span::from_millis(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
                let mut result = self.result(
                    Outcome::Failed,
                    format!("the machine was told to restart, and did not within {limit}"),
                );
                result.ms = Some(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
                Some(result)
            }
        }
    }

    /// Executes the rest of a step, or all of it once more.
    async fn execute_again(
        self: &Arc<Self>,
        id: RequestId,
        call: &Call,
        again: Again,
        (until, timeout): (Timestamp, Duration),
        (active, live): (&Active, &Live),
    ) -> Option<NodeResult> {
        let left = elapsed(Timestamp::now(), until).min(timeout);
        let deadline = Instant::now() + left;
        let (resume, begins_with) = match again {
            Again::Behind(past) => (Some(*past), None),
            Again::FromTheTop => (None, Some(Note::Repeat)),
        };
        let enrolled = self.parts.identity.now();
        let mut sink = live.clone();
        let limits = &self.parts.limits;
        let step = Step {
            request: id,
            serial: enrolled.serial(),
            name: enrolled.assignment().name.clone(),
            assignment: enrolled.assignment(),
            facts: self.parts.facts.borrow().clone(),
            timeout: left,
            output_bytes: call.limits.output_bytes.min(limits.output_bytes),
            sink: &mut sink,
            cancel: &active.cancel,
            secrets: Secrets::default(),
            restarts: Some(Arc::new(Remember {
                inner: Arc::clone(self),
                id,
                call: call.clone(),
                until,
            })),
            resume,
            begins_with,
        };
        let _running = self.run_one();
        match self.parts.executor.call(call, step).await {
            Some(result) => Some(result),
            None => self.restarts(id, deadline, timeout).await,
        }
    }

    /// The call of a step that the journal has kept.
    async fn kept_call(&self, id: RequestId) -> Result<Option<Call>, JournalError> {
        let Some(sealed) = self.parts.journal.request(id).await? else {
            return Ok(None);
        };
        // This agent believed it when it wrote it down.
        Ok(match serde_json::from_slice(&sealed.bytes) {
            Ok(Request {
                ask: Ask::Call(call),
                ..
            }) => Some(call),
            Ok(_) | Err(_) => None,
        })
    }
}

impl Steps {
    /// Lets a step that an earlier start of the agent began go on, if it can;
    /// whether it does. `orphans` ends what is left of its processes.
    pub(super) async fn goes_on(
        &self,
        step: &Unfinished,
        orphans: impl Future<Output = ()>,
    ) -> Result<bool, JournalError> {
        let (inner, id) = (&self.0, step.request);
        let Some(start) = &step.start else {
            return Ok(false);
        };
        let boot_id = &inner.parts.boot_id;
        let timeout = Duration::from_millis(start.timeout_ms);
        if let Some(note) = inner.parts.journal.pending(id).await? {
            let mut pending: Pending = match serde_json::from_str(&note) {
                Ok(pending) => pending,
                Err(e) => {
                    warn!(run = %id.run, step = id.step, "a note of a restart cannot be read: {e}");
                    return Ok(false);
                }
            };
            if pending.went_on.is_some() {
                if !inner.parts.executor.may_repeat(&pending.call).await {
                    return Ok(false);
                }
                orphans.await;
            }
            if pending.boot_id == *boot_id {
                warn!(run = %id.run, step = id.step, "the machine was told to restart by a step, and has not yet");
                self.await_restart(id, pending.until, timeout);
            } else {
                info!(run = %id.run, step = id.step, "the machine was restarted by a step, which goes on");
                pending.went_on = Some(boot_id.clone());
                // It was read from there.
                if let Ok(note) = serde_json::to_string(&pending) {
                    inner.parts.journal.set_pending(id, note).await?;
                }
                let again = Again::Behind(Box::new(pending.past));
                self.spawn_again(id, pending.call, again, (pending.until, timeout))
                    .await?;
            }
            return Ok(true);
        }
        let Some(call) = inner.kept_call(id).await? else {
            return Ok(false);
        };
        let until = after(step.received, timeout);
        let executor = &inner.parts.executor;
        if Timestamp::now() >= until
            || !executor.may_repeat(&call).await
            || executor.prepare(&call, id).await.is_err()
        {
            return Ok(false);
        }
        orphans.await;
        info!(run = %id.run, step = id.step, "a step that may be repeated begins anew");
        self.spawn_again(id, call, Again::FromTheTop, (until, timeout))
            .await?;
        Ok(true)
    }

    /// The boot in which a step went on behind a restart, if it did.
    pub(super) async fn went_on(&self, id: RequestId) -> Result<Option<String>, JournalError> {
        let note = self.0.parts.journal.pending(id).await?;
        let pending = note.and_then(|note| serde_json::from_str::<Pending>(&note).ok());
        Ok(pending.and_then(|pending| pending.went_on))
    }

    fn await_restart(&self, id: RequestId, until: Timestamp, timeout: Duration) {
        let Entered::Fresh { .. } = self.0.enter(id) else {
            return;
        };
        let inner = Arc::clone(&self.0);
        let guard = Leave {
            inner: inner.clone(),
            id,
        };
        tokio::spawn(async move {
            let _guard = guard;
            let deadline = Instant::now() + elapsed(Timestamp::now(), until);
            if let Some(result) = inner.restarts(id, deadline, timeout).await {
                let live = inner.live_again(id).await;
                inner.end(id, result, live.close().await).await;
            }
        });
    }

    async fn spawn_again(
        &self,
        id: RequestId,
        call: Call,
        again: Again,
        time: (Timestamp, Duration),
    ) -> Result<(), JournalError> {
        let Entered::Fresh { active, .. } = self.0.enter(id) else {
            return Ok(());
        };
        let inner = Arc::clone(&self.0);
        let guard = Leave {
            inner: inner.clone(),
            id,
        };
        let node = inner.parts.identity.now().assignment().name.clone();
        let span = info_span!("step", run = %id.run, step = id.step, %node);
        tokio::spawn(
            async move {
                let _guard = guard;
                let live = inner.live_again(id).await;
                let executing =
                    Box::pin(inner.execute_again(id, &call, again, time, (&active, &live)));
                if let Some(result) = executing.await {
                    inner.conclude(id, result, &active, &live).await;
                    inner.forget_pending(id).await;
                }
            }
            .instrument(span),
        );
        Ok(())
    }
}

impl Inner {
    /// The output of a step goes on behind what is there of it.
    async fn live_again(&self, id: RequestId) -> Live {
        let parts = &self.parts;
        let (mut next, mut bytes) = (0, 0);
        // A chunk that cannot be read ends what is there: the numbers behind
        // it are used again.
        while let Ok(Some(chunk)) = parts.journal.chunk(id, next).await {
            next += 1;
            bytes += chunk.data.len() as u64;
        }
        Live::again(id, parts.journal.clone(), parts.bus.clone(), (next, bytes))
    }
}
