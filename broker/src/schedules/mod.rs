//! Schedules: runs that begin when their time comes, through the same door as
//! all others.
//!
//! A schedule is one value: what is run, when, and up to which time everything
//! is done. The id of a run follows from the schedule and the time that it was
//! due, so that a broker that was killed after it made the run, and before it
//! wrote that down, makes it once; so does the one that takes over, and a
//! clock that comes by the same hour again.

mod error;
mod keep;
mod stored;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use muster_protocol::api::{Confirm, PutSchedule, RunRequest, ScheduleView, WhenMissed};
use muster_protocol::envelope::Door;
use muster_protocol::names::{PrincipalName, ScheduleName};
use muster_protocol::units::Timestamp;
use muster_scenarios::when::{Cron, MAX_JITTER, Missed, Timing};
use tokio::sync::{Mutex, Notify};

pub use self::error::SchedulesError;
pub use self::stored::StoredSchedule;
use crate::authz::{Authorized, Caller, Origin};
use crate::events::Events;
use crate::lease::Lease;
use crate::store::kv::{Kv, KvError};
use crate::submit::Submit;

/// Most schedules.
pub const MAX_SCHEDULES: usize = 1_000;
/// Most bytes of what one runs, as JSON.
const MAX_REQUEST: usize = 512 * 1024;
/// Most starts that are looked ahead.
pub const MAX_NEXT: usize = 100;

/// A schedule to be made.
#[derive(Clone, Debug)]
pub struct Add {
    /// Its name.
    pub name: ScheduleName,
    /// What it is.
    pub put: PutSchedule,
}

/// All schedules. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Schedules(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    bucket: Kv<StoredSchedule>,
    lease: Lease,
    events: Events,
    held: RwLock<BTreeMap<ScheduleName, Held>>,
    writing: Mutex<()>,
    /// There is another schedule than a moment ago.
    changed: Notify,
}

/// A schedule with the revision to name when it is replaced.
#[derive(Clone, Debug)]
struct Held {
    schedule: StoredSchedule,
    revision: u64,
}

impl Schedules {
    /// Reads which there are.
    ///
    /// # Errors
    /// [`SchedulesError::Store`].
    pub async fn load(
        bucket: Kv<StoredSchedule>,
        lease: Lease,
        events: Events,
    ) -> Result<Self, SchedulesError> {
        let mut held = BTreeMap::new();
        for entry in bucket.list().await?.entries {
            match entry.key.parse::<ScheduleName>() {
                Ok(name) => {
                    let (schedule, revision) = (entry.value, entry.revision);
                    held.insert(name, Held { schedule, revision });
                }
                Err(error) => tracing::warn!(%error, "a schedule that muster never makes"),
            }
        }
        Ok(Self(Arc::new(Inner {
            bucket,
            lease,
            events,
            held: RwLock::new(held),
            writing: Mutex::new(()),
            changed: Notify::new(),
        })))
    }

    /// All of them, by name, each with so many of its next starts.
    #[must_use]
    pub fn list(&self, next: usize) -> Vec<ScheduleView> {
        let now = Timestamp::now();
        let held = self.held();
        held.iter()
            .map(|(name, held)| held.schedule.view(name, now, next))
            .collect()
    }

    /// One of them.
    ///
    /// # Errors
    /// [`SchedulesError::None`].
    pub fn get(&self, name: &ScheduleName, next: usize) -> Result<ScheduleView, SchedulesError> {
        let held = self.held();
        let held = held.get(name).ok_or_else(|| self::none(name))?;
        Ok(held.schedule.view(name, Timestamp::now(), next))
    }

    /// Makes a schedule, after what it runs was held against everything that
    /// can be known of it now.
    ///
    /// # Errors
    /// [`SchedulesError`]; nothing was changed.
    pub async fn add(
        &self,
        add: Authorized<Add>,
        submit: &Submit,
    ) -> Result<ScheduleView, SchedulesError> {
        let (by, role) = (add.principal().clone(), add.caller().role);
        let Add { name, put } = add.into_inner();
        let timing = timing(&put)?;
        let request = request(put.run)?;
        let schedule = StoredSchedule {
            done: Timestamp::now(),
            made: Timestamp::now(),
            request,
            timing,
            by,
            role,
            last: None,
        };
        let warnings = submit
            .check(&schedule.caller(&name), &schedule.request)
            .await
            .map_err(SchedulesError::Refused)?;
        let _one = self.0.writing.lock().await;
        self.active()?;
        let old = self.held().get(&name).cloned();
        if old.is_some() && !put.replace {
            return Err(SchedulesError::Exists(name));
        }
        if old.is_none() && self.held().len() >= MAX_SCHEDULES {
            return Err(SchedulesError::TooMany);
        }
        let written = match &old {
            Some(old) => {
                let bucket = &self.0.bucket;
                bucket.update(name.as_str(), &schedule, old.revision).await
            }
            None => self.0.bucket.create(name.as_str(), &schedule).await,
        };
        let revision = match written {
            Ok(revision) => revision,
            Err(error) => {
                self.look_again(&name).await;
                return Err(error.into());
            }
        };
        let text = format!(
            "{} {} schedule {name}: `{}` runs {}",
            schedule.by,
            if old.is_some() { "changed" } else { "added" },
            schedule.timing.cron,
            schedule.title(),
        );
        let mut view = schedule.view(&name, Timestamp::now(), 1);
        view.warnings = warnings;
        let held = Held { schedule, revision };
        self.held_mut().insert(name.clone(), held);
        self.0.changed.notify_waiters();
        self.0
            .events
            .emit("schedule.added", name.as_str(), text)
            .await;
        Ok(view)
    }

    /// Removes a schedule. A run that it has made goes on.
    ///
    /// # Errors
    /// [`SchedulesError`].
    pub async fn remove(&self, name: Authorized<ScheduleName>) -> Result<(), SchedulesError> {
        let by = name.principal().clone();
        let name = name.into_inner();
        let _one = self.0.writing.lock().await;
        self.active()?;
        let held = self.held().get(&name).cloned();
        let held = held.ok_or_else(|| self::none(&name))?;
        // First here: nothing is started by it from now on.
        self.held_mut().remove(&name);
        if let Err(error) = self.0.bucket.delete(name.as_str(), held.revision).await {
            self.look_again(&name).await;
            if self.held().contains_key(&name) {
                return Err(error.into());
            }
        }
        let text = format!("{by} removed schedule {name}");
        self.0
            .events
            .emit("schedule.removed", name.as_str(), text)
            .await;
        Ok(())
    }

    async fn look_again(&self, name: &ScheduleName) {
        match self.0.bucket.get(name.as_str()).await {
            Ok(Some(entry)) => {
                let (schedule, revision) = (entry.value, entry.revision);
                let held = Held { schedule, revision };
                self.held_mut().insert(name.clone(), held);
            }
            Ok(None) => drop(self.held_mut().remove(name)),
            Err(error) => tracing::warn!(schedule = %name, %error, "a schedule cannot be read"),
        }
    }

    /// Writes down what came of a start, unless the schedule is another one by
    /// now.
    async fn done(&self, name: &ScheduleName, next: StoredSchedule) -> Result<(), KvError> {
        let _one = self.0.writing.lock().await;
        let held = self.held().get(name).cloned();
        let Some(held) = held.filter(|held| held.schedule.made == next.made) else {
            return Ok(());
        };
        let bucket = &self.0.bucket;
        match bucket.update(name.as_str(), &next, held.revision).await {
            Ok(revision) => {
                let schedule = next;
                let held = Held { schedule, revision };
                self.held_mut().insert(name.clone(), held);
                Ok(())
            }
            Err(error) => {
                self.look_again(name).await;
                Err(error)
            }
        }
    }

    fn active(&self) -> Result<u64, SchedulesError> {
        self.0.lease.epoch().ok_or(SchedulesError::NotActive)
    }

    fn held(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<ScheduleName, Held>> {
        self.0.held.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn held_mut(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<ScheduleName, Held>> {
        self.0.held.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn none(name: &ScheduleName) -> SchedulesError {
    SchedulesError::None(name.clone())
}

fn timing(put: &PutSchedule) -> Result<Timing, SchedulesError> {
    if let Some(jitter) = put.jitter.filter(|jitter| jitter.get() > MAX_JITTER) {
        return Err(SchedulesError::Jitter(jitter));
    }
    Ok(Timing {
        cron: put.cron.parse::<Cron>()?,
        jitter: put.jitter.filter(|jitter| !jitter.get().is_zero()),
        missed: match put.missed {
            WhenMissed::Skip => Missed::Skip,
            WhenMissed::Run => Missed::Run,
        },
    })
}

/// What is run each time. Nobody is there to be asked.
fn request(request: RunRequest) -> Result<RunRequest, SchedulesError> {
    match request.confirm {
        Confirm::Ask | Confirm::Yes => {}
        Confirm::Later | Confirm::Plan(_) => return Err(SchedulesError::Confirm),
    }
    let request = RunRequest {
        confirm: Confirm::Yes,
        ..request
    };
    let bytes = serde_json::to_vec(&request).map_or(usize::MAX, |json| json.len());
    if bytes > MAX_REQUEST {
        return Err(SchedulesError::TooLarge(bytes));
    }
    Ok(request)
}

/// The principal of a schedule.
fn principal(name: &ScheduleName) -> PrincipalName {
    let text = format!("schedule:{name}");
    text.parse()
        .expect("a schedule's name is short enough and of the same letters")
}

impl StoredSchedule {
    /// As whom it asks for runs.
    fn caller(&self, name: &ScheduleName) -> Caller {
        Caller {
            principal: principal(name),
            role: self.role,
            token: "none: a schedule".to_owned(),
            door: Door::Schedule,
            origin: Origin::Schedule(name.clone()),
        }
    }
}
