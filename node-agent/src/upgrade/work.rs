//! The old agent's part: from the release to the moment in which it becomes
//! the new one.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use muster_protocol::ids::RequestId;
use muster_protocol::release::Release;
use muster_protocol::run::{NodeResult, Outcome};
use muster_scenarios::upgrade::Upgrade;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::{info, warn};

use super::fetch::fetch_release;
use super::{Intent, Intents, Job, failed, guard};
use crate::host::program;
use crate::identity::Identity;
use crate::release;
use crate::steps::Steps;
use crate::verbs::run::SELF_TEST;

/// How long the new executable has to say what it is.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// The agent is to become another program.
#[derive(Debug)]
pub struct Departure {
    /// Which.
    pub program: PathBuf,
    /// Told when it was not possible after all.
    pub failed: oneshot::Sender<String>,
}

/// Does upgrades, one at a time.
pub struct Worker {
    /// What is to be done.
    pub jobs: mpsc::Receiver<Job>,
    /// What is known of it on disk.
    pub intents: Intents,
    /// Who this node is.
    pub identity: Identity,
    /// Where the broker is.
    pub brokers: Vec<String>,
    /// The steps that must have ended first.
    pub steps: Steps,
    /// Told when everything is in place.
    pub depart: mpsc::Sender<Departure>,
}

/// Why it did not come so far.
enum Stopped {
    Failed(String),
    Cancelled,
}

impl From<String> for Stopped {
    fn from(why: String) -> Self {
        Self::Failed(why)
    }
}

impl Worker {
    /// Works until nobody asks any more.
    pub async fn run(mut self) {
        while let Some(job) = self.jobs.recv().await {
            self.one(job).await;
        }
    }

    async fn one(&self, job: Job) {
        let begun = Instant::now();
        let intent = match self.intents.read() {
            Ok(Some(intent)) if intent.request == job.request => intent,
            Ok(_) => return self.answer(job, begun, "what was written down about it is gone"),
            Err(e) => return self.answer(job, begun, &e.to_string()),
        };
        if intent.from.id == intent.to.id {
            let text = format!("{} already", release::version());
            self.end(job.request);
            let mut result = NodeResult::new(job.serial, Outcome::Succeeded, text);
            result.ms = Some(millis(begun));
            let _ = job.answer.send(result);
            return;
        }
        let new = program::beside(&intent.executable, "new");
        let done = tokio::select! {
            done = self.ready(&intent, &job.upgrade, &new, begun + job.timeout) => done,
            () = job.cancel.cancelled() => Err(Stopped::Cancelled),
        };
        let done = match done {
            // From here on it is not cancelled: it takes a moment.
            Ok(()) => self.leave(&intent, &new).await.map_err(Stopped::Failed),
            Err(e) => Err(e),
        };
        let _ = std::fs::remove_file(&new);
        self.steps.open();
        self.end(job.request);
        let mut result = match done {
            Ok(never) => match never {},
            Err(Stopped::Failed(why)) => {
                warn!(run = %job.request.run, "the upgrade has failed: {why}");
                failed(&intent, job.serial, &why)
            }
            Err(Stopped::Cancelled) => NodeResult::new(
                job.serial,
                Outcome::Cancelled,
                format!("nothing was changed; {} runs", release::version()),
            ),
        };
        result.ms = Some(millis(begun));
        let _ = job.answer.send(result);
    }

    fn answer(&self, job: Job, begun: Instant, why: &str) {
        let mut result = NodeResult::new(
            job.serial,
            Outcome::Failed,
            format!("nothing was changed: {why}"),
        );
        result.ms = Some(millis(begun));
        let _ = job.answer.send(result);
    }

    fn end(&self, request: RequestId) {
        if let Err(e) = self.intents.end(request) {
            warn!("an upgrade that is over cannot be forgotten: {e}");
        }
    }

    /// Everything before the point from which somebody must know the way
    /// back.
    async fn ready(
        &self,
        intent: &Intent,
        upgrade: &Upgrade,
        new: &Path,
        deadline: Instant,
    ) -> Result<(), Stopped> {
        let executable = &intent.executable;
        match program::is_private(executable) {
            Ok(true) => {}
            Ok(false) => {
                return Err(Stopped::Failed(format!(
                    "others than root may write to the directory of {}",
                    executable.display()
                )));
            }
            Err(e) => return Err(format!("{}: {e}", executable.display()).into()),
        }
        // Time for the new one to be welcomed, and for the way back.
        let confirm = Duration::from_millis(intent.confirm_ms);
        let until = deadline
            .checked_sub(confirm + confirm / 2)
            .unwrap_or(deadline);
        place("agent.upgrade.fetch", intent).await;
        info!(run = %intent.request.run, version = %upgrade.about.version, "fetching a release");
        tokio::time::timeout_at(
            until,
            fetch_release(&self.identity, &self.brokers, upgrade, new),
        )
        .await
        .map_err(|_| "the release could not be fetched in time".to_owned())??;
        verify(new, upgrade).await?;
        try_out(new, &upgrade.about).await?;
        info!(run = %intent.request.run, "waiting for running steps to end");
        self.steps
            .drain(intent.request, until)
            .await
            .map_err(|left| {
                format!("{left} other steps still ran on this node when its time was over")
            })?;
        Ok(())
    }

    /// Puts the new one in place and has the agent become it. Returns only
    /// when that fails; the old one is in its place then.
    async fn leave(&self, intent: &Intent, new: &Path) -> Result<std::convert::Infallible, String> {
        place("agent.upgrade.ready", intent).await;
        guard::start(&self.intents, intent)
            .await
            .map_err(|e| format!("nobody could be set to watch over it: {e}"))?;
        let checkpoint = |point| place(point, intent);
        checkpoint("agent.upgrade.guarded").await;
        match self.intents.switching(intent) {
            Ok(true) => {}
            Ok(false) => return Err("it was ended by somebody else".into()),
            Err(e) => return Err(e.to_string()),
        }
        checkpoint("agent.upgrade.switching").await;
        let why = match program::swap(&intent.executable, new) {
            Err(e) => format!(
                "the new executable could not be put in place of {}: {e}",
                intent.executable.display()
            ),
            Ok(()) => {
                checkpoint("agent.upgrade.swapped").await;
                let (failed, told) = oneshot::channel();
                let departure = Departure {
                    program: intent.executable.clone(),
                    failed,
                };
                if self.depart.send(departure).await.is_err() {
                    "the agent is ending".into()
                } else {
                    told.await
                        .unwrap_or_else(|_| "the agent is ending".to_owned())
                }
            }
        };
        match self.intents.roll_back(intent.request, &why) {
            Ok(_) => Err(why),
            Err(e) => Err(format!("{why}; {e}")),
        }
    }
}

/// A place at which a test may hold this agent.
async fn place(point: &'static str, intent: &Intent) {
    muster_checkpoint::at(point, || intent.request.run.to_string()).await;
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Holds the file against what the broker has signed.
pub(super) async fn verify(new: &Path, upgrade: &Upgrade) -> Result<(), String> {
    let path = new.to_owned();
    let seen = tokio::task::spawn_blocking(move || program::inspect(&path))
        .await
        .map_err(|e| e.to_string())?
        .map_err(|e| format!("{} cannot be read: {e}", new.display()))?;
    if seen.id != upgrade.release || seen.size != upgrade.size {
        return Err(format!(
            "what came is not the release that was signed: its hash is {}, not {}",
            seen.id.short(),
            upgrade.release.short()
        ));
    }
    match seen.release {
        Ok(release) if release == upgrade.about => Ok(()),
        Ok(_) => Err("the release is not what the request says of it".into()),
        Err(e) => Err(format!("the release cannot be used: {e}")),
    }
}

/// Asks the new executable whether it can be started with this agent's own
/// arguments, configuration and state.
async fn try_out(new: &Path, about: &Release) -> Result<(), String> {
    let mut args: Vec<OsString> = std::env::args_os().skip(1).collect();
    args.push(SELF_TEST.into());
    let said = program::ask(new, &args, ANSWER_WITHIN)
        .await
        .map_err(|e| format!("{} does not start here: {e}", about.version))?;
    if !said.well {
        return Err(format!(
            "{} does not work here: {}",
            about.version, said.error
        ));
    }
    match serde_json::from_str::<Release>(said.out.trim()) {
        Ok(release) if release == *about => Ok(()),
        _ => Err(format!("{} says of itself what it is not", about.version)),
    }
}
