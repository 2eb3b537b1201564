//! Keeping what is stored within its age and its room, and telling people
//! before the room ends.
//!
//! [`decide()`] says what goes, `runs::retention` removes it, and a [`Keeper`]
//! does both while this broker is the active one. Whole runs go, or whole
//! outputs, never a part of a journal; and never anything of a run that is
//! open. What people see of it is a [`Retention`].

mod clock;
mod decide;
mod record;
mod space;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use async_nats::jetstream::Context;
use muster_protocol::api::{self, Finding, Space};
use muster_protocol::units::Timestamp;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use self::clock::Clock;
pub(crate) use self::decide::TOO_FULL;
pub use self::decide::{Kept, Limits, Removal, What, Why, decide};
pub(crate) use self::record::{KEY, Record, removed_runs};
use self::space::{EVENTS, RUNS, Reading, Step, step, told};
use crate::events::{self, Events};
use crate::lease::Lease;
use crate::nats::admin::SystemClient;
use crate::runs::{Engine, RemoveError, Removed, Stored};
use crate::store::error::StreamError;
use crate::store::kv::{Kv, KvError};
use crate::store::stream::get_stream;

/// How often it is looked at what there is.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How often the servers are asked how much room they have.
const ASK_EVERY: Duration = Duration::from_secs(30);
/// How often leftovers are looked for.
const LEFTOVERS_EVERY: Duration = Duration::from_secs(3_600);
/// Removals that are taken down together, before the first of them is done.
const TOGETHER: usize = 50;
/// A reason that lasts is logged again after so long.
const SAY_AGAIN: Duration = Duration::from_secs(300);

/// Why something could not be looked after.
#[derive(Debug, thiserror::Error)]
enum KeepError {
    #[error(transparent)]
    Store(#[from] StreamError),
    #[error(transparent)]
    Record(#[from] KvError),
    #[error(transparent)]
    Remove(#[from] RemoveError),
}

/// What people see of retention. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Retention(Arc<ArcSwap<View>>);

/// As it was when it was last looked at.
#[derive(Clone, Debug, Default)]
struct View {
    spaces: Vec<Space>,
    removed: api::Removed,
    findings: Vec<Finding>,
}

impl Retention {
    /// The room that is used.
    #[must_use]
    pub fn spaces(&self) -> Vec<Space> {
        self.0.load().spaces.clone()
    }

    /// What was removed.
    #[must_use]
    pub fn removed(&self) -> api::Removed {
        self.0.load().removed
    }

    /// What an operator should look at.
    #[must_use]
    pub fn findings(&self) -> Vec<Finding> {
        self.0.load().findings.clone()
    }

    /// The same in a line each.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let view = self.0.load();
        view.findings.iter().map(|f| f.what.clone()).collect()
    }
}

/// What it takes to look after what is stored.
pub(crate) struct Keeper {
    /// Runs.
    pub(crate) engine: Engine,
    /// Where people are told.
    pub(crate) events: Events,
    /// Nothing is done without it.
    pub(crate) lease: Lease,
    /// JetStream of muster's account.
    pub(crate) js: Context,
    /// The system account, which knows the servers' limits.
    pub(crate) system: Option<SystemClient>,
    /// Whether NATS is on this machine, so that its disk can be looked at.
    pub(crate) same_machine: bool,
    /// Where [`Record`] is.
    pub(crate) record: Kv<Record>,
    /// As they are configured.
    pub(crate) limits: Limits,
    /// What people see.
    pub(crate) shown: Retention,
}

impl Keeper {
    /// Looks after it until it is cancelled.
    pub(crate) async fn keep(self, cancel: CancellationToken) {
        let mut said: Option<(String, Instant)> = None;
        let mut term: Option<Term> = None;
        loop {
            match self.lease.epoch() {
                None => term = None,
                Some(_) if !self.engine.is_ready() => {}
                Some(epoch) => {
                    let looked = cancel
                        .run_until_cancelled(Box::pin(self.look(epoch, &mut term)))
                        .await;
                    match looked {
                        None => return,
                        Some(Ok(())) => said = None,
                        Some(Err(error)) => {
                            let reason = error.to_string();
                            let new = said.as_ref().is_none_or(|(text, at)| {
                                *text != reason || at.elapsed() >= SAY_AGAIN
                            });
                            if new {
                                tracing::warn!(reason, "cannot look after what is stored");
                                said = Some((reason, Instant::now()));
                            }
                        }
                    }
                }
            }
            tokio::select! {
                () = cancel.cancelled() => return,
                () = sleep(LOOK_EVERY) => {}
                () = self.engine.crowded() => {
                    // As fast as it is filled, but not in a busy loop.
                    sleep(Duration::from_millis(200)).await;
                }
            }
        }
    }

    async fn look(&self, epoch: u64, term: &mut Option<Term>) -> Result<(), KeepError> {
        if term.as_ref().is_none_or(|term| term.epoch != epoch) {
            // Another broker may have written meanwhile.
            let record = self.record.get(KEY).await?;
            *term = Some(Term {
                epoch,
                record: record.map(|entry| entry.value).unwrap_or_default(),
                clock: Clock::new(Timestamp::now(), Instant::now()),
                leftovers: None,
                asked: None,
                store: None,
            });
        }
        let Some(term) = term else { return Ok(()) };
        let removed = self.remove(term).await;
        let said = self.watch_space(term).await;
        removed?;
        said
    }

    /// Removes what has its age, or for what there is no room.
    async fn remove(&self, term: &mut Term) -> Result<(), KeepError> {
        let now = term.clock.now(Timestamp::now(), Instant::now());
        // While a backup is made nothing goes; and the other way round.
        let Some(_alone) = self.engine.alone() else {
            return Ok(());
        };
        let due = term
            .leftovers
            .is_none_or(|at| at.elapsed() >= LEFTOVERS_EVERY);
        if due {
            let gone = self.engine.remove_leftovers(self.limits.runs).await?;
            if gone > 0 {
                tracing::info!(runs = gone, "what removals had left behind is gone");
            }
            term.leftovers = Some(Instant::now());
        }
        let Some(kept) = self.engine.kept() else {
            return Ok(());
        };
        let mut stored = self.engine.stored().await?;
        let limits = Limits {
            bytes: stored.limit.min(self.limits.bytes),
            ..self.limits
        };
        let plan = decide(stored.bytes, &kept, &limits, now);
        if plan.is_empty() {
            return Ok(());
        }
        let before = stored.bytes;
        let mut done = Done::default();
        for removals in plan.chunks(TOGETHER) {
            if removals[0].why == Why::Space && stored.bytes <= limits.low() {
                break;
            }
            let mut told = false;
            for removal in removals {
                told |= term.record.removing(removal);
            }
            if told {
                self.record.put(KEY, &term.record).await?;
            }
            for removal in removals {
                if removal.why == Why::Space && stored.bytes <= limits.low() {
                    break;
                }
                if self.one(removal, &mut done).await? {
                    term.record.removed_one(removal);
                    stored = self.engine.stored().await?;
                }
            }
        }
        if done == Done::default() {
            // All of it is still being talked about.
            return Ok(());
        }
        self.record.put(KEY, &term.record).await?;
        tracing::info!(
            runs = done.runs,
            outputs = done.outputs,
            before,
            now = stored.bytes,
            limit = limits.bytes,
            "retention has removed what was old or had no room"
        );
        Ok(())
    }

    /// Whether it is gone.
    async fn one(&self, removal: &Removal, done: &mut Done) -> Result<bool, KeepError> {
        let run = removal.run;
        let removed = match removal.what {
            What::Run => self.engine.remove_run(run).await,
            What::Output => match self.engine.remove_output(run, Timestamp::now()).await {
                // Not even a line of a journal fits: then the run goes with
                // all that is known of it. A store that takes nothing is
                // worse.
                Err(error) if error.is_full() && removal.why == Why::Space => {
                    tracing::warn!(%run, "a run is removed whole: there was no room to note that its output is gone");
                    self.engine.remove_run(run).await
                }
                result => result,
            },
        };
        let gone = removed? == Removed::Gone;
        if gone {
            match removal.what {
                What::Run => done.runs += 1,
                What::Output => done.outputs += 1,
            }
        }
        Ok(gone)
    }

    /// Looks how much room there is, and tells people when it gets little.
    async fn watch_space(&self, term: &mut Term) -> Result<(), KeepError> {
        let Stored {
            bytes,
            messages,
            limit,
        } = self.engine.stored().await?;
        if term.asked.is_none_or(|at| at.elapsed() >= ASK_EVERY) {
            term.store = space::store(&self.js, self.system.as_ref(), self.same_machine).await;
            term.asked = Some(Instant::now());
        }
        let runs = Space {
            what: RUNS.to_owned(),
            bytes,
            limit: Some(limit.min(self.limits.bytes)),
            count: Some(messages),
            alarm_since: None,
        };
        let readings: Vec<Reading> = Reading::new(runs)
            .into_iter()
            .chain(term.store.clone())
            .collect();
        let mut changed = Ok(());
        for reading in &readings {
            let result = self.alarm(reading, &mut term.record).await;
            changed = changed.and(result);
        }
        self.show(term, readings, self.events_space().await?, limit);
        changed
    }

    async fn alarm(&self, reading: &Reading, record: &mut Record) -> Result<(), KeepError> {
        let what = &reading.space.what;
        let (text, hint) = told(&reading.space);
        // The event comes before the record: after a crash in between people
        // are told twice. The other way round they might not be told at all.
        match step(record.alarms.contains_key(what), reading.percent) {
            Step::Nothing => return Ok(()),
            Step::Raise => {
                self.events
                    .try_emit("alarm.space", what, format!("{text}: {hint}"))
                    .await?;
                record.alarms.insert(what.clone(), Timestamp::now());
            }
            Step::Clear => {
                let text = format!("there is room again: {text}");
                self.events
                    .try_emit("alarm.space-cleared", what, text)
                    .await?;
                record.alarms.remove(what);
            }
        }
        self.record.put(KEY, record).await?;
        Ok(())
    }

    /// The events of the cluster: bounded by themselves, and counted.
    async fn events_space(&self) -> Result<Space, KeepError> {
        let stream = get_stream(&self.js, events::STREAM).await?;
        let info = stream.cached_info();
        Ok(Space {
            what: EVENTS.to_owned(),
            bytes: info.state.bytes,
            limit: u64::try_from(info.config.max_bytes).ok(),
            count: Some(info.state.messages),
            alarm_since: None,
        })
    }

    fn show(&self, term: &Term, readings: Vec<Reading>, events: Space, limit: u64) {
        let mut findings = Vec::new();
        let mut spaces = Vec::new();
        for Reading { mut space, .. } in readings {
            space.alarm_since = term.record.alarms.get(&space.what).copied();
            if space.alarm_since.is_some() {
                let (what, hint) = told(&space);
                findings.push(Finding {
                    what,
                    hint: hint.to_owned(),
                });
            }
            spaces.push(space);
        }
        spaces.insert(1.min(spaces.len()), events);
        if limit < self.limits.bytes {
            findings.push(Finding {
                what: format!(
                    "NATS has less room for runs than `retention.bytes`: {} of {}",
                    muster_protocol::units::Size::new(limit).shown(),
                    muster_protocol::units::Size::new(self.limits.bytes).shown()
                ),
                hint: "give JetStream more room (max_file, a larger disk) and restart the broker, or lower retention.bytes".into(),
            });
        }
        self.shown.0.store(Arc::new(View {
            spaces,
            removed: term.record.removed(),
            findings,
        }));
    }
}

/// What is known while this broker is the active one.
struct Term {
    epoch: u64,
    record: Record,
    clock: Clock,
    /// When leftovers were last looked for.
    leftovers: Option<Instant>,
    /// When the servers were last asked.
    asked: Option<Instant>,
    store: Option<Reading>,
}

#[derive(Debug, Default, Eq, PartialEq)]
struct Done {
    runs: u32,
    outputs: u32,
}

#[cfg(test)]
mod tests;
