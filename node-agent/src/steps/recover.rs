//! What an earlier start of the agent left unfinished.

use std::time::Duration;

use muster_protocol::ids::{RequestId, Serial};
use muster_protocol::run::Outcome;
use tracing::{error, info, warn};

use super::Steps;
use crate::host::cgroup::Cgroup;
use crate::host::environment::marks;
use crate::host::tree::{Ended, Tree};
use crate::journal::{JournalError, Unfinished};

impl Steps {
    /// Answers for each step that was begun and not ended: its processes are
    /// found and ended, and its outcome is `unknown`, because nobody saw how
    /// far it came. One that only waited never ran, and says so. `but` goes
    /// on: it is the upgrade by which this agent began. So does one that
    /// restarted the machine, once, and one that may be repeated.
    ///
    /// # Errors
    /// [`JournalError`] when the journal cannot be read; the agent must not
    /// begin then.
    pub async fn recover(
        &self,
        kill_grace: Duration,
        but: Option<RequestId>,
    ) -> Result<(), JournalError> {
        for mut step in self.0.parts.journal.unfinished().await? {
            let id = step.request;
            if Some(id) == but {
                continue;
            }
            // What is left of it is of the boot in which it ran last.
            if let Some(start) = &mut step.start
                && let Some(boot_id) = self.went_on(id).await?
            {
                start.boot_id = boot_id;
            }
            let orphans = async {
                let serial = self.0.parts.identity.now().serial();
                end_orphans(&step, serial, &self.0.parts.boot_id, kill_grace).await;
            };
            if self.goes_on(&step, orphans).await? {
                continue;
            }
            let rolled_back = self.0.parts.executor.rolled_back(id).await;
            let (outcome, reason) = if step.start.is_some() {
                let serial = self.0.parts.identity.now().serial();
                let boot_id = &self.0.parts.boot_id;
                let ended = end_orphans(&step, serial, boot_id, kill_grace).await;
                (Outcome::Unknown, reason("the agent", &step, boot_id, ended))
            } else {
                (
                    Outcome::Cancelled,
                    "the agent ended before the step's turn came; it never ran".to_owned(),
                )
            };
            warn!(run = %id.run, step = id.step, %outcome, "{reason}");
            let mut result = self.0.result(outcome, reason);
            if let (Some(why), Outcome::Unknown) = (rolled_back, outcome) {
                // What it did is known: nothing that is still there.
                result = self.0.result(Outcome::Failed, why);
                result.rolled_back = true;
            }
            let journal = &self.0.parts.journal;
            let mut chunks = 0;
            while let Some(chunk) = journal.chunk(id, chunks).await? {
                chunks += 1;
                result.output_bytes += chunk.data.len() as u64;
            }
            journal.finish(id, result, chunks, false).await?;
        }
        self.0.parts.reporter.wake();
        Ok(())
    }
}

/// Ends what still runs of a step that nobody looks after any more; `None`
/// when that is not known, or the machine was started anew since.
pub(crate) async fn end_orphans(
    step: &Unfinished,
    serial: Serial,
    boot_id: &str,
    kill_grace: Duration,
) -> Option<Ended> {
    if step.start.as_ref().is_none_or(|s| s.boot_id != boot_id) {
        return None;
    }
    let tree = Tree {
        root: step.process.as_ref().map(|p| (p.pid, p.started)),
        cgroup: step
            .process
            .as_ref()
            .and_then(|p| p.cgroup.as_deref())
            .and_then(Cgroup::remembered),
        marks: marks(step.request, serial),
    };
    match tokio::task::spawn_blocking(move || tree.end(kill_grace)).await {
        Ok(ended) => {
            info!(found = ended.found, left = ended.left, "orphans of a step");
            Some(ended)
        }
        Err(e) => {
            error!("orphans of a step could not be looked for: {e}");
            None
        }
    }
}

/// Why the outcome of such a step is not known; `who` is what had ended.
pub(crate) fn reason(who: &str, step: &Unfinished, boot_id: &str, ended: Option<Ended>) -> String {
    let rebooted = step.start.as_ref().is_some_and(|s| s.boot_id != boot_id);
    let rest = match ended {
        _ if rebooted => "the machine was started anew since".to_owned(),
        None => "its processes could not be looked for".to_owned(),
        Some(Ended { found: 0, .. }) => "no process of it was left".to_owned(),
        Some(Ended { found, left: 0 }) => {
            format!("{found} of its processes still ran and were ended")
        }
        Some(Ended { found, left }) => {
            format!("{found} of its processes still ran, {left} could not be ended")
        }
    };
    format!("{who} ended while the command ran; {rest}")
}
