//! The one who looks at events for triggers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use muster_protocol::api::{ClusterEvent, TriggerLast, TriggerTested, TriggerView};
use muster_protocol::ids::RunId;
use muster_protocol::names::TriggerName;
use muster_protocol::problem::{Kind, Problem};
use muster_protocol::units::{Timestamp, elapsed};
use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::declared::{Trigger, run_id};
use crate::authz::{Action, Caller, authorize};
use crate::events::follower::{Anew, Follower, How};
use crate::events::place::{Place, Places};
use crate::events::{Events, Once};
use crate::hooks::Held;
use crate::http::ApiError;
use crate::submit::{Asked, Submit, Submitted};
use crate::vm::{Machines, Repair, Repaired};

/// The name of the place.
const PLACE: &str = "triggers";
/// Pause before something is tried again.
const AGAIN: Duration = Duration::from_millis(500);
/// How long a run is tried that cannot be made now.
const TRY_FOR: Duration = Duration::from_secs(600);

/// Triggers at work. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Triggers(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    held: Held,
    events: Events,
    places: Places,
    numbering: String,
    last: Mutex<BTreeMap<TriggerName, TriggerLast>>,
}

/// What came of one try.
enum Tried {
    Run(RunId),
    /// There is nothing to do any more.
    Nothing,
    Refused(Box<Problem>),
    /// Waiting may cure it.
    Later(Box<Problem>),
}

impl Triggers {
    /// Those that are declared, over those events.
    #[must_use]
    pub fn new(held: Held, events: Events, places: Places, numbering: String) -> Self {
        Self(Arc::new(Inner {
            held,
            events,
            places,
            numbering,
            last: Mutex::default(),
        }))
    }

    /// All of them, by name.
    #[must_use]
    pub fn list(&self) -> Vec<TriggerView> {
        let last = self.0.last.lock().unwrap_or_else(PoisonError::into_inner);
        let declared = self.0.held.get();
        declared
            .triggers
            .iter()
            .map(|(name, trigger)| TriggerView {
                last: last.get(name).cloned(),
                ..trigger.view(name)
            })
            .collect()
    }

    /// What they would do with an event. Nothing is done.
    pub async fn test(&self, submit: &Submit, event: &ClusterEvent) -> Vec<TriggerTested> {
        let value = serde_json::to_value(event).unwrap_or_default();
        let mut tested = Vec::new();
        for (name, trigger) in &self.0.held.get().triggers {
            let mut one = trigger.tested(name, event, &value);
            if one.would_run() && trigger.machine(event).is_some() {
                let caller = trigger.caller(name, event);
                let judged = authorize(submit.guard.policy(), &caller, Action::ManageMachines, ());
                one.allowed = Some(judged.is_ok());
                one.problem = judged.err().map(|denied| denied.to_string());
            } else if one.would_run() {
                let request = trigger.request(one.params.clone());
                let caller = trigger.caller(name, event);
                let said = submit.rehearse(&caller, &request).await;
                one.nodes = said.nodes;
                one.allowed = said.allowed;
                one.waits = said.waits;
                one.problem = said.problem.as_deref().map(told);
            }
            tested.push(one);
        }
        tested
    }

    /// Looks at every event, from where the broker before left off, until
    /// `cancel`.
    pub async fn keep(self, submit: Submit, machines: Machines, cancel: CancellationToken) {
        let with = With { submit, machines };
        let work = async {
            with.submit.nodes.engine.wait_ready().await;
            let how = How {
                key: PLACE.to_owned(),
                name: "triggers".to_owned(),
                does: "triggers saw them".to_owned(),
                // Which events were looked at is not known. Each makes the
                // run that it made, and old ones make none.
                anew: Anew::First,
            };
            let inner = &self.0;
            let follower = Follower::begin(&inner.events, &inner.places, &inner.numbering, how);
            let mut follower = follower.await;
            let again_to = follower.again_to();
            loop {
                for event in &follower.next().await {
                    let place = follower.place_mut();
                    if self.look(&with, event, place, again_to).await {
                        follower.done(event.seq).await;
                    }
                }
            }
        };
        cancel.run_until_cancelled(Box::pin(work)).await;
    }

    /// Looks at one event; whether a trigger was for it.
    async fn look(
        &self,
        with: &With,
        event: &ClusterEvent,
        place: &mut Place,
        again_to: u64,
    ) -> bool {
        let declared = self.0.held.get();
        let mut any = false;
        let mut value: Option<Value> = None;
        for (name, trigger) in &declared.triggers {
            if !trigger.when.may_fit(event) {
                continue;
            }
            let value =
                value.get_or_insert_with(|| serde_json::to_value(event).unwrap_or_default());
            if trigger.when.unfit(event, value).is_some() {
                continue;
            }
            if let Some(Err(not)) = trigger.machine(event) {
                tracing::debug!(trigger = %name, event = event.id, "{not}");
                continue;
            }
            if trigger.is_own(event) {
                tracing::debug!(trigger = %name, event = event.id, "it tells of this trigger's own run");
                continue;
            }
            let age = elapsed(event.at, Timestamp::now());
            if event.seq <= again_to && trigger.in_time(age).is_err() {
                // What came of it was told in its time.
                continue;
            }
            any = true;
            self.fire(with, name, trigger, event, value, place).await;
        }
        any
    }

    async fn fire(
        &self,
        with: &With,
        name: &TriggerName,
        trigger: &Trigger,
        event: &ClusterEvent,
        value: &Value,
        place: &mut Place,
    ) {
        let age = elapsed(event.at, Timestamp::now());
        let params = trigger.params(value);
        let began = Instant::now();
        let tried = match params.and_then(|params| trigger.in_time(age).map(|()| params)) {
            Err(unfit) => Tried::Refused(problem(&unfit.to_string())),
            Ok(params) => loop {
                let tried = with.attempt(name, trigger, event, &params, place).await;
                match tried {
                    Tried::Later(why) if began.elapsed() < TRY_FOR => {
                        tracing::warn!(trigger = %name, why = why.title, "a trigger cannot start its run now");
                        sleep(AGAIN).await;
                    }
                    tried => break tried,
                }
            },
        };
        muster_checkpoint::at("broker.trigger.started", || name.to_string()).await;
        let (run, why) = match tried {
            Tried::Run(run) => (Some(run), None),
            Tried::Nothing => return,
            Tried::Refused(why) | Tried::Later(why) => (None, Some(told(&why))),
        };
        self.tell(name, trigger, event, run, why.as_deref()).await;
        let last = TriggerLast {
            seq: event.seq,
            at: Timestamp::now(),
            run,
            problem: why,
        };
        let mut held = self.0.last.lock().unwrap_or_else(PoisonError::into_inner);
        held.insert(name.clone(), last);
    }

    /// Says what came of it, once for each event.
    async fn tell(
        &self,
        name: &TriggerName,
        trigger: &Trigger,
        event: &ClusterEvent,
        run: Option<RunId>,
        why: Option<&str>,
    ) {
        let id = run_id(name, event);
        let mut fields = Map::from_iter([
            ("trigger".to_owned(), json!(name)),
            ("event".to_owned(), json!(event.id)),
            ("event_seq".to_owned(), json!(event.seq)),
            ("event_kind".to_owned(), json!(event.kind)),
            ("scenario".to_owned(), json!(trigger.title())),
        ]);
        let what = match event.subject.as_str() {
            "" => event.kind.clone(),
            subject => format!("{} of {subject}", event.kind),
        };
        let once = match (run, why) {
            (Some(run), _) => {
                fields.insert("run".to_owned(), json!(run));
                Once {
                    id: format!("{id}.started"),
                    kind: "trigger.started".to_owned(),
                    subject: name.to_string(),
                    text: format!("{what}: run {} {}", run.short(), trigger.title()),
                    fields,
                }
            }
            (None, why) => {
                let why = why.unwrap_or_default();
                fields.insert("why".to_owned(), json!(why));
                Once {
                    id: format!("{id}.refused"),
                    kind: "alarm.trigger-refused".to_owned(),
                    subject: name.to_string(),
                    text: format!(
                        "{what} (event {}) should have run {}: {why}",
                        event.seq,
                        trigger.title()
                    ),
                    fields,
                }
            }
        };
        self.0.events.once(once).await;
    }
}

/// What triggers work with.
struct With {
    submit: Submit,
    machines: Machines,
}

impl With {
    /// Asks for the run.
    async fn attempt(
        &self,
        name: &TriggerName,
        trigger: &Trigger,
        event: &ClusterEvent,
        params: &Map<String, Value>,
        place: &mut Place,
    ) -> Tried {
        let submit = &self.submit;
        let id = run_id(name, event);
        let is_there = || submit.nodes.engine.lookup(&id.to_string()).is_ok();
        // The one before came so far, and no further.
        if is_there() {
            return Tried::Run(id);
        }
        let now = Timestamp::now();
        let started = place.started.entry(name.clone()).or_default();
        started.retain(|at| elapsed(*at, now) < trigger.rate().per());
        if started.len() >= trigger.rate().count() as usize {
            let why = format!(
                "it has started {} runs within {} already, which is its rate",
                started.len(),
                muster_protocol::units::Span::from_secs(trigger.rate().per().as_secs())
            );
            return Tried::Refused(problem(&why));
        }
        let caller = trigger.caller(name, event);
        if let Some(Ok(repair)) = trigger.machine(event) {
            let tried = Box::pin(self.start(&caller, repair)).await;
            if let Tried::Run(_) = tried {
                started.push(now);
            }
            return tried;
        }
        let request = trigger.request(params.clone());
        match submit.run(&caller, request, Asked::under(id)).await {
            Ok(Submitted::Run(run)) => {
                started.push(now);
                Tried::Run(run.brief.id)
            }
            Ok(Submitted::Confirm(_)) => {
                Tried::Refused(problem("it waits for a confirmation that nobody can give"))
            }
            // The same run, of another version by now: it was made before.
            Err(error) if error.kind == Kind::Conflict && is_there() => Tried::Run(id),
            Err(error) => refused(error),
        }
    }

    /// Starts a machine again, through its record.
    async fn start(&self, caller: &Caller, repair: Repair) -> Tried {
        let guard = &self.submit.guard;
        let asked = guard.authorize(caller, Action::ManageMachines, repair);
        let asked = match asked.await {
            Ok(asked) => asked,
            Err(error) => return refused(ApiError::from(error).into_problem()),
        };
        match self.machines.repair(asked).await {
            Ok(Repaired::Run(run)) => Tried::Run(run),
            Ok(Repaired::Nothing) => Tried::Nothing,
            Err(error) => refused(Box::new(error.problem())),
        }
    }
}

/// What may be cured by waiting, and what not.
fn refused(error: Box<Problem>) -> Tried {
    match error.kind {
        Kind::Unavailable | Kind::RateLimited | Kind::NoRoom => Tried::Later(error),
        _ => Tried::Refused(error),
    }
}

fn problem(why: &str) -> Box<Problem> {
    Box::new(Problem::new(Kind::InvalidRequest, why.to_owned()))
}

/// A problem in one line.
fn told(problem: &Problem) -> String {
    let more = [&problem.detail, &problem.hint];
    let more = more.into_iter().flatten().map(String::as_str);
    let all: Vec<&str> = std::iter::once(problem.title.as_str())
        .chain(more)
        .collect();
    all.join("; ")
}
