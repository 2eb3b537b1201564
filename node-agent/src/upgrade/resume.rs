//! What the start of an agent finds of an upgrade.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use muster_protocol::ids::Serial;
use muster_protocol::release::ReleaseId;
use muster_protocol::run::{NodeResult, Stream};
use tracing::{error, info, warn};

use super::{Confirmed, Intent, IntentError, Intents, Phase, failed, succeeded};
use crate::bus::Bus;
use crate::host::program;
use crate::journal::{Chunk, Entry, Journal, JournalError};
use crate::pace::Backoff;
use crate::release;
use crate::report::Reporter;

/// What is to be done about it.
#[derive(Debug)]
pub enum Resumed {
    /// Nothing was under way, or it is over.
    Nothing,
    /// This is the new agent: it stays if the broker welcomes it in time.
    Pending(Box<Pending>),
    /// This is the new agent, and the old one is to run.
    Become(PathBuf),
}

/// Looks at what is on disk and settles what can be settled.
///
/// # Errors
/// [`JournalError`]; the agent must not begin then.
pub async fn resume(
    intents: &Intents,
    journal: &Journal,
    serial: Serial,
    own: impl FnOnce() -> std::io::Result<ReleaseId>,
) -> Result<Resumed, JournalError> {
    let intent = match intents.read() {
        Ok(None) => return Ok(Resumed::Nothing),
        Ok(Some(intent)) => intent,
        Err(e) => {
            error!("what is known of an upgrade cannot be read: {e}");
            return Ok(Resumed::Nothing);
        }
    };
    let own = match own() {
        Ok(id) => Some(id),
        Err(e) => {
            error!("this executable cannot be read: {e}");
            None
        }
    };
    info!(
        run = %intent.request.run, from = %intent.from.version, to = %intent.to.version,
        phase = ?intent.phase, "an upgrade is under way"
    );
    let (is_old, is_new) = (own == Some(intent.from.id), own == Some(intent.to.id));
    let why = match &intent.phase {
        Phase::Confirmed => {
            settle(journal, &intent, succeeded(&intent, serial)).await?;
            forget(intents, &intent);
            return Ok(Resumed::Nothing);
        }
        Phase::Fetching => "the agent ended before it had the release".to_owned(),
        _ if !is_old && !is_new => {
            "an agent that is neither the old nor the new one was started".to_owned()
        }
        Phase::Switching if is_new => {
            note(intents.hold(intent.request, false));
            return Ok(Resumed::Pending(Box::new(Pending {
                intents: intents.clone(),
                intent,
            })));
        }
        Phase::Switching => {
            let why = "the agent ended before the new one began";
            note(intents.roll_back(intent.request, why));
            why.to_owned()
        }
        Phase::RolledBack { reason } => match intents.roll_back(intent.request, reason) {
            Ok(_) if is_new => return Ok(Resumed::Become(intent.executable)),
            Ok(_) => reason.clone(),
            // Better the new one than none.
            Err(e) => {
                error!("{e}");
                format!("{reason}, but {e}")
            }
        },
    };
    warn!(run = %intent.request.run, "the upgrade has failed: {why}");
    settle(
        journal,
        &intent,
        (failed(&intent, serial, &why), String::new()),
    )
    .await?;
    forget(intents, &intent);
    Ok(Resumed::Nothing)
}

fn note<T>(done: Result<T, IntentError>) {
    if let Err(e) = done {
        error!("{e}");
    }
}

fn forget(intents: &Intents, intent: &Intent) {
    // What an agent that was killed had fetched.
    let _ = std::fs::remove_file(program::beside(&intent.executable, "new"));
    note(intents.end(intent.request));
}

/// Gives the step its outcome, if it has none.
async fn settle(
    journal: &Journal,
    intent: &Intent,
    (result, output): (NodeResult, String),
) -> Result<(), JournalError> {
    // One that never began gets its outcome, too: the broker may have been
    // told that it was accepted, and asks no more then.
    if journal.look(intent.request).await? == Some(Entry::Finished) {
        return Ok(());
    }
    let chunks = if output.is_empty() {
        0
    } else if journal.chunk(intent.request, 0).await?.is_some() {
        1
    } else {
        let chunk = Chunk {
            number: 0,
            stream: Stream::Stdout,
            data: Bytes::from(output),
        };
        journal.output(intent.request, chunk).await?;
        1
    };
    journal
        .finish(intent.request, result, chunks, chunks > 0)
        .await?;
    Ok(())
}

/// A place at which a test may hold this agent.
async fn place(point: &'static str, intent: &Intent) {
    muster_checkpoint::at(point, || intent.request.run.to_string()).await;
}

/// The new agent, before it is known whether it stays.
#[derive(Clone, Debug)]
pub struct Pending {
    intents: Intents,
    intent: Intent,
}

impl Pending {
    /// The step that goes on.
    #[must_use]
    pub fn request(&self) -> muster_protocol::ids::RequestId {
        self.intent.request
    }

    /// The agent is stopped in good order: nobody is to go back meanwhile.
    pub fn hold(&self) {
        note(self.intents.hold(self.intent.request, true));
    }

    /// Waits for the welcome, and ends the step. `Some` when the old agent is
    /// to run: become it.
    pub async fn confirm(
        self,
        bus: Bus,
        journal: Journal,
        reporter: Reporter,
        serial: Serial,
    ) -> Option<PathBuf> {
        let within = Duration::from_millis(self.intent.confirm_ms);
        let request = self.intent.request;
        place("agent.upgrade.new", &self.intent).await;
        let verdict = match tokio::time::timeout(within, bus.welcomed()).await {
            Ok(_) => self.intents.confirm(request),
            Err(_) => {
                let why = format!(
                    "rolled back: the broker did not welcome {} within {} s",
                    release::version(),
                    within.as_secs()
                );
                error!("{why}");
                match self.intents.roll_back(request, &why) {
                    Ok(true) => Ok(Confirmed::RolledBack),
                    Ok(false) => Ok(Confirmed::Yes),
                    Err(e) => Err(e),
                }
            }
        };
        match verdict {
            Ok(Confirmed::Yes) => {}
            Ok(Confirmed::RolledBack) => return Some(self.intent.executable),
            // The step stays open until the next start; the agent works.
            Err(e) => {
                error!("whether the new agent stays cannot be written down: {e}");
                return None;
            }
        }
        place("agent.upgrade.confirmed", &self.intent).await;
        info!(run = %request.run, version = release::version(), "the new agent stays");
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
        while let Err(e) = settle(&journal, &self.intent, succeeded(&self.intent, serial)).await {
            error!(run = %request.run, "the outcome cannot be journaled: {e}");
            tokio::time::sleep(backoff.wait()).await;
        }
        place("agent.upgrade.settled", &self.intent).await;
        reporter.wake();
        forget(&self.intents, &self.intent);
        None
    }
}
