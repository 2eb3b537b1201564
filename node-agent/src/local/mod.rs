//! Runs that root starts on this node itself, with `muster-agent local run`:
//! the way in that is left when the broker is dead.
//!
//! The command is executed by the process that the operator started, whether
//! the agent runs or not; both write the same journal. That process holds a
//! lock for as long as it lives. The agent looks every few seconds for local
//! runs that have ended, and reports them until the broker has them; and for
//! some whose process is gone without having said how they ended: it ends
//! what is left of them, and their outcome is `unknown`.

mod owner;
mod scenario;
mod terminal;

use std::collections::HashMap;
use std::time::Duration;

use muster_protocol::ids::{RunId, Serial};
use muster_protocol::run::{NodeResult, Outcome};
use muster_protocol::subject::NodeSays;
use muster_protocol::text::printable;
use muster_protocol::wire::LocalAnswer;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

pub use owner::{Owner, like_its_directory};
pub use scenario::{Chosen, NotChosen, One, Wish};
pub use terminal::{Shown, Terminal};

use crate::bus::Bus;
use crate::journal::{Journal, JournalError, local_request};
use crate::pace::{Backoff, jitter};
use crate::state::StateDir;
use crate::steps::recover::{end_orphans, reason};

/// How often the agent looks for local runs.
const LOOK: Duration = Duration::from_secs(5);
/// Reports of one look.
const AT_ONCE: u32 = 64;
/// How long the broker may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How long a report waits that the broker does not understand.
const REFUSED_FOR: Duration = Duration::from_secs(3600);
/// Bounds for how long the broker may put a report off.
const LATER: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(6 * 3600));

/// The agent's part in local runs.
pub struct LocalRuns {
    /// Where their locks are.
    pub dir: StateDir,
    /// Where they are written down.
    pub journal: Journal,
    /// This node.
    pub serial: Serial,
    /// This start of the machine.
    pub boot_id: String,
    /// How long orphans have between SIGTERM and SIGKILL.
    pub kill_grace: Duration,
}

/// What came of a report.
enum Sent {
    Stored,
    /// Nothing now; ask again after this.
    Later(Duration),
    /// Not this one.
    Refused,
    Unanswered,
}

impl LocalRuns {
    /// Looks after them until `stop`.
    pub async fn keep(self, mut bus: Bus, stop: CancellationToken) {
        let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(60));
        let mut not_before = Instant::now();
        let mut refused: HashMap<RunId, Instant> = HashMap::new();
        loop {
            if let Err(e) = self.recover().await {
                error!("local runs cannot be recovered: {e}");
            }
            if Instant::now() >= not_before {
                let pause = self.report(&bus, &mut refused, &mut backoff).await;
                not_before = Instant::now() + pause;
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(jitter(LOOK)) => {}
                () = bus.changed() => {
                    // Perhaps another broker, which knows nothing of it yet.
                    backoff.reset();
                    not_before = Instant::now();
                }
            }
        }
    }

    /// Answers for local runs whose process is gone.
    ///
    /// # Errors
    /// [`JournalError`].
    pub async fn recover(&self) -> Result<(), JournalError> {
        for step in self.journal.local_open().await? {
            let run = step.request.run;
            let Some(_owner) = Owner::gone(&self.dir, run) else {
                continue;
            };
            // It may have ended in good order since it was looked for.
            if self.journal.local_report(run).await?.is_some() {
                continue;
            }
            let ended = end_orphans(&step, self.serial, &self.boot_id, self.kill_grace).await;
            let reason = reason("the local run's process", &step, &self.boot_id, ended);
            warn!(%run, "a local run has no end: {reason}");
            let mut result = NodeResult::new(self.serial, Outcome::Unknown, reason);
            let mut chunks = 0;
            while let Some(chunk) = self.journal.chunk(step.request, chunks).await? {
                chunks += 1;
                result.output_bytes += chunk.data.len() as u64;
            }
            self.journal
                .finish(step.request, result, chunks, false)
                .await?;
        }
        Ok(())
    }

    /// Reports what the broker does not have; how long to wait before it is
    /// done again.
    async fn report(
        &self,
        bus: &Bus,
        refused: &mut HashMap<RunId, Instant>,
        backoff: &mut Backoff,
    ) -> Duration {
        if bus.voice().is_err() {
            return Duration::ZERO;
        }
        let runs = match self.journal.local_unreported(AT_ONCE).await {
            Ok(runs) => runs,
            Err(e) => {
                warn!("local runs cannot be read from the journal: {e}");
                return Duration::ZERO;
            }
        };
        let now = Instant::now();
        refused.retain(|_, until| *until > now);
        for run in runs {
            if refused.contains_key(&run) {
                continue;
            }
            match self.send(bus, run).await {
                Ok(Sent::Stored) => backoff.reset(),
                Ok(Sent::Refused) => {
                    refused.insert(run, Instant::now() + REFUSED_FOR);
                }
                Ok(Sent::Later(pause)) => return pause,
                Ok(Sent::Unanswered) => return backoff.wait(),
                Err(e) => {
                    warn!(%run, "a local run cannot be reported: {e}");
                    refused.insert(run, Instant::now() + LOOK * 12);
                }
            }
        }
        Duration::ZERO
    }

    async fn send(&self, bus: &Bus, run: RunId) -> Result<Sent, JournalError> {
        let Ok(voice) = bus.voice() else {
            return Ok(Sent::Unanswered);
        };
        let Some(report) = self.journal.local_report(run).await? else {
            return Ok(Sent::Refused);
        };
        let answer = match voice.ask(NodeSays::Local, &report, ANSWER_WITHIN).await {
            Ok(answer) => answer,
            Err(e) => {
                debug!(%run, "a local run is not acknowledged: {e}");
                return Ok(Sent::Unanswered);
            }
        };
        Ok(match serde_json::from_slice(&answer) {
            Ok(LocalAnswer::Stored { .. }) => {
                self.journal.acknowledged(local_request(run));
                self.journal.settle().await;
                Owner::forget(&self.dir, run);
                info!(%run, "the broker has a local run");
                Sent::Stored
            }
            Ok(LocalAnswer::Later { retry_after }) => {
                let pause = retry_after.get().clamp(LATER.0, LATER.1);
                warn!("the broker takes no more local runs of this node for {pause:?}");
                Sent::Later(pause)
            }
            Ok(LocalAnswer::Refused { reason }) => {
                error!(%run, "the broker does not take a local run, it stays in this node's journal: {}", printable(&reason, 300));
                Sent::Refused
            }
            Err(e) => {
                warn!(%run, "the broker's answer to a local run cannot be read: {e}");
                Sent::Unanswered
            }
        })
    }
}
