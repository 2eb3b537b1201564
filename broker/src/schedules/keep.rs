//! The one who looks at the clock.

use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use muster_protocol::api::LastStart;
use muster_protocol::freeze::Freeze;
use muster_protocol::names::ScheduleName;
use muster_protocol::problem::{Kind, Problem};
use muster_protocol::units::{Timestamp, elapsed};
use muster_scenarios::when::{Due, Missed};
use serde_json::{Map, json};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::stored::StoredSchedule;
use super::{Schedules, SchedulesError};
use crate::events::Once;
use crate::freeze::changed as freeze_changed;
use crate::refusal::Refusal;
use crate::submit::{Asked, Submit, Submitted};

/// How long nobody looks at the clock at most: it may be set.
const LOOK: Duration = Duration::from_secs(10);
/// Until a start is tried again that could not be made.
const AGAIN: Duration = Duration::from_secs(2);
/// The least time between two looks.
const PAUSE: Duration = Duration::from_millis(200);
/// Schedules that are started at a time.
const AT_ONCE: usize = 8;

impl Schedules {
    /// Starts what is due, until `cancel`.
    pub async fn keep(self, submit: Submit, cancel: CancellationToken) {
        let ready = submit.nodes.engine.wait_ready();
        if cancel.run_until_cancelled(ready).await.is_none() {
            return;
        }
        let mut freezes = submit.nodes.engine.freezes();
        loop {
            let changed = self.0.changed.notified();
            let mut changed = std::pin::pin!(changed);
            // Before the look: one that is added after it is noticed.
            changed.as_mut().enable();
            let failed = if self.active().is_ok() {
                self.look(&submit, Timestamp::now()).await
            } else {
                false
            };
            let pause = if failed {
                AGAIN
            } else if submit.nodes.engine.frozen().is_some() {
                LOOK
            } else {
                self.pause(Timestamp::now())
            };
            tokio::select! {
                () = cancel.cancelled() => return,
                () = sleep(pause) => {}
                () = changed => {}
                () = freeze_changed(&mut freezes) => {}
            }
        }
    }

    /// Until something may be due.
    fn pause(&self, now: Timestamp) -> Duration {
        let held = self.held();
        let wakes = held
            .iter()
            .filter_map(|(name, held)| held.schedule.wakes(name));
        let next = wakes.min().map(|at| elapsed(now, at));
        next.unwrap_or(LOOK).clamp(PAUSE, LOOK)
    }

    /// The clock was ahead when something was done, and is not any more: what
    /// comes from now on comes once more. What was started for those times is
    /// found by its id; what was left out then is not left out now.
    fn back_to(&self, now: Timestamp) {
        for (name, held) in self.held_mut().iter_mut() {
            if held.schedule.done > now {
                tracing::warn!(schedule = %name, done = %held.schedule.done, "the clock was ahead");
                held.schedule.done = now;
            }
        }
    }

    /// Starts what is due now; whether something is to be tried again.
    pub(super) async fn look(&self, submit: &Submit, now: Timestamp) -> bool {
        self.back_to(now);
        let due: Vec<(ScheduleName, StoredSchedule, Due)> = self
            .held()
            .iter()
            .filter_map(|(name, held)| {
                let due = held.schedule.due(name, now)?;
                Some((name.clone(), held.schedule.clone(), due))
            })
            .collect();
        // What comes meanwhile is not done: once the freeze is over, it is what
        // was missed.
        if let Some(freeze) = submit.nodes.engine.frozen() {
            for (name, schedule, due) in due {
                self.tell_frozen(&name, &schedule, due, &freeze).await;
            }
            return false;
        }
        let started = stream::iter(due)
            .map(|(name, schedule, due)| self.start(submit, name, schedule, due))
            .buffer_unordered(AT_ONCE);
        let again: Vec<bool> = started.collect().await;
        again.contains(&true)
    }

    /// Does what is due of one schedule; whether it is to be tried again.
    async fn start(
        &self,
        submit: &Submit,
        name: ScheduleName,
        schedule: StoredSchedule,
        due: Due,
    ) -> bool {
        let mut next = schedule.clone();
        next.done = due.until;
        let mut problem = None;
        if let Some(time) = due.start {
            let id = schedule.run_id(&name, time);
            let caller = schedule.caller(&name);
            let request = schedule.request.clone();
            let (run, why) = match submit.run(&caller, request, Asked::under(id)).await {
                Ok(Submitted::Run(run)) => (Some(run.brief.id), None),
                Ok(Submitted::Confirm(_)) => {
                    let why = "it waits for a confirmation that nobody can give";
                    (None, Some(Problem::new(Kind::Internal, why)))
                }
                // The same run, of another version or with other options by
                // now: it was made before.
                Err(error) if error.kind == Kind::Conflict && self.is_there(submit, id) => {
                    (Some(id), None)
                }
                Err(error) if Refusal::of(&error).passes() => {
                    tracing::warn!(schedule = %name, error = error.title, "a schedule cannot start its run now");
                    return true;
                }
                Err(error) => (None, Some(*error)),
            };
            next.last = Some(LastStart {
                due: time,
                at: Timestamp::now(),
                run,
                problem: why.as_ref().map(|why| why.title.clone()),
            });
            problem = why;
        }
        muster_checkpoint::at("broker.schedule.started", || name.to_string()).await;
        if let Err(error) = self.done(&name, next).await {
            tracing::warn!(schedule = %name, %error, "what a schedule did is not written down yet");
            return true;
        }
        self.tell(&name, &schedule, due, problem).await;
        false
    }

    /// Says that it makes no run now: once for each freeze.
    async fn tell_frozen(
        &self,
        name: &ScheduleName,
        schedule: &StoredSchedule,
        due: Due,
        freeze: &Freeze,
    ) {
        let then = match schedule.timing.missed {
            Missed::Run => "once it is thawed, one run makes up for what it missed",
            Missed::Skip => "what it misses is left out",
        };
        let text = format!(
            "the time of schedule {name} has come ({}), and it does not run {}: {}; {then}",
            due.until,
            schedule.title(),
            freeze.reason()
        );
        let event = Once {
            id: format!("schedule.{name}.frozen.{}", freeze.revision),
            kind: "schedule.frozen".to_owned(),
            subject: name.to_string(),
            text,
            fields: Map::from_iter([
                ("schedule".to_owned(), json!(name)),
                ("due".to_owned(), json!(due.until)),
                ("by".to_owned(), json!(freeze.by)),
            ]),
        };
        self.0.events.once(event).await;
    }

    fn is_there(&self, submit: &Submit, id: muster_protocol::ids::RunId) -> bool {
        submit.nodes.engine.lookup(&id.to_string()).is_ok()
    }

    async fn tell(
        &self,
        name: &ScheduleName,
        schedule: &StoredSchedule,
        due: Due,
        problem: Option<Problem>,
    ) {
        let events = &self.0.events;
        if let Some(problem) = problem {
            let mut text = format!(
                "schedule {name} could not run {}: {}",
                schedule.title(),
                problem.title
            );
            for more in [problem.detail, problem.hint].into_iter().flatten() {
                text.push_str("; ");
                text.push_str(&more);
            }
            events
                .emit("alarm.schedule-failed", name.as_str(), text)
                .await;
        }
        if due.left_out > 0 {
            let many = if due.left_out >= Due::MANY {
                format!("{} or more starts", Due::MANY)
            } else if due.left_out == 1 {
                "1 start".to_owned()
            } else {
                format!("{} starts", due.left_out)
            };
            let text = match due.start {
                Some(_) => {
                    format!("schedule {name} missed {many}, and made up for all of them by one run")
                }
                None => format!(
                    "schedule {name} missed {many}: no broker was there, the fleet was frozen, or it could not start \
                     them; they are left out"
                ),
            };
            events.emit("schedule.missed", name.as_str(), text).await;
        }
    }
}

impl From<SchedulesError> for crate::http::ApiError {
    fn from(error: SchedulesError) -> Self {
        match error {
            SchedulesError::Store(_) => Self::storage(&error),
            error => error.problem().into(),
        }
    }
}
