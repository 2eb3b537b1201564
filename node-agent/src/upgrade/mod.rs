//! The agent replaces its own executable, and finishes the step as the new
//! one.
//!
//! ```text
//! intent on disk ─ fetch ─ verify ─ ask the new one ─ no step runs any more
//!   ─ guard started ─ `switching` on disk ─ swap ─ become the new one
//!   ─ welcomed ─ `confirmed` on disk ─ the step's outcome
//! ```
//!
//! Whatever ends the agent in between, what is on disk says which of the two
//! is to run and how the step ended: [`resume`] reads it at every start. The
//! [`guard`] is a process of the old executable that puts it back when the new
//! one ends, hangs, or is not welcomed in time.

mod fetch;
pub mod guard;
mod intent;
mod resume;
mod work;

use std::time::Duration;

use futures_util::future::BoxFuture;
use muster_protocol::envelope::{Call, Mode};
use muster_protocol::ids::{RequestId, Serial};
use muster_protocol::release::Version;
use muster_protocol::run::{NodeResult, Outcome};
use muster_protocol::units::Timestamp;
use muster_scenarios::upgrade::{self, Upgrade};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::executor::{Refused, Step};
use crate::host::program;
use crate::release;
use crate::state::StateDir;

pub use intent::{Confirmed, Intent, IntentError, Intents, Phase, Side};
pub use resume::{Pending, Resumed, resume};
pub use work::{Departure, Worker};

/// Least and most time that the new agent has to be welcomed.
const CONFIRM: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(60));

/// Why an upgrade is declined before anything happens.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Unfit {
    /// The parameters.
    #[error(transparent)]
    Parameters(#[from] upgrade::UpgradeError),
    /// Another platform.
    #[error("this machine is {own}, the release is for {release}")]
    Platform {
        /// This agent's.
        own: String,
        /// The release's.
        release: String,
    },
    /// It could not read what is here.
    #[error("the release reads {what} up to format {theirs}, here is {ours}")]
    State {
        /// State directory or journal.
        what: &'static str,
        /// What it reads.
        theirs: u32,
        /// What is here.
        ours: u32,
    },
    /// It is older.
    #[error("this agent is {own}, the release is {release}, and going back is not allowed")]
    Downgrade {
        /// This agent.
        own: Version,
        /// The release.
        release: Version,
    },
}

/// The built-in scenario `agent-upgrade`.
#[derive(Clone, Debug)]
pub struct Upgrades {
    granted: bool,
    state: std::path::PathBuf,
    jobs: mpsc::Sender<Job>,
}

/// An upgrade to be done by the agent as a whole.
#[derive(Debug)]
pub struct Job {
    request: RequestId,
    serial: Serial,
    upgrade: Upgrade,
    timeout: Duration,
    cancel: CancellationToken,
    answer: oneshot::Sender<NodeResult>,
}

/// How long the new agent has, of the whole time.
fn confirm_within(timeout: Duration) -> Duration {
    (timeout / 4).clamp(CONFIRM.0, CONFIRM.1)
}

impl Upgrades {
    /// From the configuration; the jobs are for a [`Worker`].
    #[must_use]
    pub fn new(config: &Config) -> (Self, mpsc::Receiver<Job>) {
        let (jobs, receive) = mpsc::channel(1);
        let upgrades = Self {
            granted: config.capabilities.upgrade,
            state: config.state.clone(),
            jobs,
        };
        (upgrades, receive)
    }

    /// Whether the node's policy grants it.
    #[must_use]
    pub fn granted(&self) -> bool {
        self.granted
    }

    /// Whether the call is well formed, is granted, and makes sense here.
    ///
    /// # Errors
    /// [`Refused`]; nothing has happened then.
    pub fn check(&self, call: &Call) -> Result<Upgrade, Refused> {
        if call.function.as_str() != upgrade::FUNCTION {
            return Err(Refused::Function {
                scenario: call.scenario.to_string(),
                function: call.function.to_string(),
            });
        }
        let upgrade = Upgrade::from_params(&call.params).map_err(Unfit::from)?;
        if !self.granted {
            return Err(Refused::Capability(upgrade::CAPABILITY));
        }
        if call.mode == Mode::Check {
            return Err(Refused::CheckMode);
        }
        fits(&upgrade)?;
        Ok(upgrade)
    }

    /// Writes down what is about to happen, so that whoever starts next knows
    /// how the step ended.
    pub fn prepare(
        &self,
        call: &Call,
        request: RequestId,
    ) -> BoxFuture<'static, Result<(), String>> {
        let upgrade = self.check(call).map_err(|e| e.to_string());
        let state = self.state.clone();
        let timeout = call.limits.timeout.get();
        Box::pin(async move {
            let upgrade = upgrade?;
            let begin = move || -> Result<bool, Box<dyn std::error::Error + Send + Sync>> {
                let intent = Intent {
                    request,
                    from: Side {
                        version: release::about().version.clone(),
                        id: program::own_id()?,
                    },
                    to: Side {
                        version: upgrade.about.version.clone(),
                        id: upgrade.release,
                    },
                    executable: program::own_path()?,
                    confirm_ms: u64::try_from(confirm_within(timeout).as_millis())
                        .unwrap_or(u64::MAX),
                    began: Timestamp::now(),
                    held: false,
                    phase: Phase::Fetching,
                };
                Ok(Intents::new(StateDir::open(&state)?).begin(&intent)?)
            };
            match tokio::task::spawn_blocking(begin).await {
                Ok(Ok(true)) => Ok(()),
                Ok(Ok(false)) => Err("another upgrade of this agent is under way".into()),
                Ok(Err(e)) => Err(format!("the upgrade cannot be written down here: {e}")),
                Err(e) => Err(format!("the upgrade cannot be written down here: {e}")),
            }
        })
    }

    /// The step did not begin after all.
    pub fn abandon(&self, request: RequestId) {
        let ended = StateDir::open(&self.state)
            .map_err(IntentError::from)
            .and_then(|dir| Intents::new(dir).end(request));
        if let Err(e) = ended {
            tracing::warn!("an upgrade that did not begin cannot be forgotten: {e}");
        }
    }

    /// Has it done. Returns when it has failed; when it goes well, this
    /// process becomes another program first.
    pub async fn call(&self, call: &Call, step: Step<'_>) -> NodeResult {
        let serial = step.serial;
        let upgrade = match self.check(call) {
            Ok(upgrade) => upgrade,
            Err(e) => {
                self.abandon(step.request);
                return NodeResult::new(serial, Outcome::Declined, e.to_string());
            }
        };
        let (answer, answered) = oneshot::channel();
        let job = Job {
            request: step.request,
            serial,
            upgrade,
            timeout: step.timeout,
            cancel: step.cancel.clone(),
            answer,
        };
        if self.jobs.try_send(job).is_ok()
            && let Ok(mut result) = answered.await
        {
            if result.outcome == Outcome::Succeeded
                && let Some(text) = &result.reason
            {
                let text = bytes::Bytes::from(format!("{text}\n"));
                result.output_bytes = text.len() as u64;
                step.sink
                    .output(muster_protocol::run::Stream::Stdout, text)
                    .await;
                result.reason = None;
            }
            return result;
        }
        self.abandon(step.request);
        NodeResult::new(
            serial,
            Outcome::Failed,
            "the agent ends, or does another upgrade; nothing was changed",
        )
    }
}

/// Whether the release makes sense on this node.
fn fits(upgrade: &Upgrade) -> Result<(), Unfit> {
    let (own, theirs) = (release::build(), &upgrade.about.build);
    if own.platform() != theirs.platform() {
        return Err(Unfit::Platform {
            own: own.platform(),
            release: theirs.platform(),
        });
    }
    for (what, ours, theirs) in [
        ("a state directory", own.state, theirs.state),
        ("a journal", own.journal, theirs.journal),
    ] {
        if theirs < ours {
            return Err(Unfit::State { what, theirs, ours });
        }
    }
    let version = &release::about().version;
    if upgrade.about.version < *version && !upgrade.allow_downgrade {
        return Err(Unfit::Downgrade {
            own: version.clone(),
            release: upgrade.about.version.clone(),
        });
    }
    Ok(())
}

/// How the step ended with the new agent.
fn succeeded(intent: &Intent, serial: Serial) -> (NodeResult, String) {
    let mut result = NodeResult::new(serial, Outcome::Succeeded, "");
    result.reason = None;
    let text = format!("{} → {}\n", intent.from.version, intent.to.version);
    result.output_bytes = text.len() as u64;
    result.ms = took(intent);
    (result, text)
}

fn took(intent: &Intent) -> Option<u64> {
    let took = muster_protocol::units::elapsed(intent.began, Timestamp::now());
    Some(u64::try_from(took.as_millis()).unwrap_or(u64::MAX))
}

/// How it ended with the old one.
fn failed(intent: &Intent, serial: Serial, why: &str) -> NodeResult {
    let mut result = NodeResult::new(
        serial,
        Outcome::Failed,
        format!("{why}; {} runs", release::version()),
    );
    result.ms = took(intent);
    result
}

#[cfg(test)]
mod tests;
