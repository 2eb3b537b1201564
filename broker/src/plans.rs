//! Plans that wait for a confirmation.
//!
//! A plan lives five minutes and works once, for the principal that it was
//! made for and for the same request. It holds the frozen set that the person
//! was shown: exactly that runs.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use muster_protocol::api::PlanRef;
use muster_protocol::ids::{PlanId, RunId};
use muster_protocol::names::PrincipalName;
use muster_protocol::problem::{Kind, Problem};
use muster_protocol::units::{Timestamp, after};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::runs::FrozenRun;

/// How long a plan waits when nothing else is set.
pub const PLAN_LIFE: Duration = Duration::from_secs(300);
/// Dry runs whose real run is remembered.
const MOST_REHEARSALS: usize = 200;
/// Plans kept at a time; above it the oldest goes.
const MOST: usize = 1_000;
/// Targets of all plans together; above it the oldest go. A target is some
/// hundred bytes.
const MOST_TARGETS: usize = 500_000;

/// Stands for what was asked, whatever its confirmation: the plan of one
/// request confirms no other.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RequestHash([u8; 32]);

impl RequestHash {
    /// Of anything that has a JSON form; what is hashed must not hold the
    /// confirmation itself.
    #[must_use]
    pub fn of<T: Serialize>(what: &T) -> Self {
        let mut json = serde_json::to_value(what).unwrap_or_default();
        // Who confirms may write the parameters down in another order.
        json.sort_all_objects();
        Self(Sha256::digest(json.to_string()).into())
    }
}

/// Why a plan cannot be confirmed.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("plan {} is not there any more, was used already, or was made for something else; nothing was run", .0.as_str().chars().take(8).collect::<String>())]
pub struct PlanGone(pub PlanRef);

impl PlanGone {
    /// As it is shown at the edge.
    #[must_use]
    pub fn problem(&self) -> Problem {
        Problem::new(Kind::PlanGone, self.to_string())
            .hint("ask again without the plan, to be shown what would run now")
    }
}

/// A plan that was taken: it is used up once [`Taken::used`] says so. Until
/// then, or when this is dropped, whatever was to be done with it has not
/// come about, and it waits again.
#[must_use]
pub struct Taken {
    plans: Plans,
    id: PlanId,
    run: FrozenRun,
}

impl std::fmt::Debug for Taken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Taken")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Taken {
    /// What runs. Its id is fixed since the plan was made, so that what is
    /// confirmed twice is created once.
    #[must_use]
    pub fn run(&self) -> &FrozenRun {
        &self.run
    }

    /// It has come about, by the request under this id.
    pub fn used(self, by: RunId) {
        let mut table = self.plans.table();
        if let Some(plan) = table.waiting.get_mut(&self.id) {
            plan.stage = Stage::Used(by);
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if let Some(plan) = self.plans.table().waiting.get_mut(&self.id)
            && plan.stage == Stage::Taken
        {
            plan.stage = Stage::Waits;
        }
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Stage {
    Waits,
    /// Somebody is about to create its run.
    Taken,
    /// By the request under this id.
    Used(RunId),
}

struct Waiting {
    stage: Stage,
    principal: PrincipalName,
    request: RequestHash,
    run: FrozenRun,
    expires: Timestamp,
    /// Rises with each plan: which is the oldest.
    order: u64,
}

/// What a dry run is a rehearsal of.
#[derive(Clone, Debug)]
pub struct Rehearsal {
    /// Who asked for it.
    pub principal: PrincipalName,
    /// The request for the real run.
    pub request: RequestHash,
    /// The real run.
    pub run: FrozenRun,
}

#[derive(Default)]
struct Table {
    waiting: BTreeMap<PlanId, Waiting>,
    /// By the dry run; with its place in the order.
    rehearsals: BTreeMap<RunId, (u64, Rehearsal)>,
    made: u64,
}

impl Table {
    /// The plan of that principal that a text stands for.
    fn find(&self, plan: &PlanRef, principal: &PrincipalName) -> Option<PlanId> {
        if let Ok(id) = plan.as_str().parse::<PlanId>() {
            return self.waiting.contains_key(&id).then_some(id);
        }
        let mut found = self.waiting.iter().filter(|(id, waiting)| {
            waiting.principal == *principal && id.to_string().starts_with(plan.as_str())
        });
        match (found.next(), found.next()) {
            (Some((id, _)), None) => Some(*id),
            _ => None,
        }
    }
}

/// The plans of this broker, in memory: after a restart a person is asked
/// again. Cheap to clone.
#[derive(Clone, Default)]
pub struct Plans(Arc<Mutex<Table>>);

impl std::fmt::Debug for Plans {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plans").finish_non_exhaustive()
    }
}

impl Plans {
    /// Keeps a run until it is confirmed. Its id, and when it stops working.
    pub fn keep(
        &self,
        principal: &PrincipalName,
        request: RequestHash,
        run: FrozenRun,
        now: Timestamp,
        life: Duration,
    ) -> (PlanId, Timestamp) {
        let mut table = self.table();
        table.waiting.retain(|_, plan| plan.expires > now);
        let mut targets: usize = table
            .waiting
            .values()
            .map(|plan| plan.run.targets.len())
            .sum();
        targets += run.targets.len();
        while table.waiting.len() >= MOST || targets > MOST_TARGETS {
            let oldest = table
                .waiting
                .iter()
                .min_by_key(|(_, plan)| plan.order)
                .map(|(id, _)| *id);
            let Some(gone) = oldest.and_then(|id| table.waiting.remove(&id)) else {
                break;
            };
            targets -= gone.run.targets.len();
        }
        let id = PlanId::random();
        let expires = after(now, life);
        table.made += 1;
        let order = table.made;
        let plan = Waiting {
            stage: Stage::Waits,
            principal: principal.clone(),
            request,
            run,
            expires,
            order,
        };
        table.waiting.insert(id, plan);
        (id, expires)
    }

    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers what a dry run is of; the oldest go.
    pub fn rehearse(&self, run: RunId, rehearsal: Rehearsal) {
        let mut table = self.table();
        table.made += 1;
        let order = table.made;
        table.rehearsals.insert(run, (order, rehearsal));
        let targets = |table: &Table| -> usize {
            let all = table.rehearsals.values();
            all.map(|(_, kept)| kept.run.targets.len()).sum()
        };
        while table.rehearsals.len() > MOST_REHEARSALS || targets(&table) > MOST_TARGETS {
            let oldest = table.rehearsals.iter().min_by_key(|(_, (order, _))| *order);
            let Some(oldest) = oldest.map(|(run, _)| *run) else {
                break;
            };
            table.rehearsals.remove(&oldest);
        }
    }

    /// What a dry run was of.
    #[must_use]
    pub fn rehearsal(&self, run: RunId) -> Option<Rehearsal> {
        let table = self.table();
        table.rehearsals.get(&run).map(|(_, kept)| kept.clone())
    }

    /// The run of a plan that was used by the request under that id: whoever
    /// repeats it, because the answer was lost, is to be told of it.
    #[must_use]
    pub fn used(
        &self,
        plan: &PlanRef,
        principal: &PrincipalName,
        request: RequestHash,
        by: RunId,
    ) -> Option<RunId> {
        let table = self.table();
        let plan = table.waiting.get(&table.find(plan, principal)?)?;
        let same = plan.principal == *principal && plan.request == request;
        (same && plan.stage == Stage::Used(by)).then_some(plan.run.spec.id)
    }

    /// Takes the run of a plan: it works once. A plan that was made for
    /// somebody or something else stays, and is not told from one that is
    /// gone.
    ///
    /// # Errors
    /// [`PlanGone`].
    pub fn take(
        &self,
        plan: &PlanRef,
        principal: &PrincipalName,
        request: RequestHash,
        now: Timestamp,
    ) -> Result<Taken, PlanGone> {
        let mut table = self.table();
        let gone = || PlanGone(plan.clone());
        let id = table.find(plan, principal).ok_or_else(gone)?;
        let fits = |plan: &&mut Waiting| {
            plan.principal == *principal
                && plan.request == request
                && plan.expires > now
                && plan.stage == Stage::Waits
        };
        let waiting = table.waiting.get_mut(&id).filter(fits).ok_or_else(gone)?;
        waiting.stage = Stage::Taken;
        Ok(Taken {
            plans: self.clone(),
            id,
            run: waiting.run.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use muster_protocol::api::RunRequest;
    use muster_protocol::envelope::Door;
    use muster_protocol::units::elapsed;

    use super::*;
    use crate::inventory::Snapshot;
    use crate::resolve::{Resolved, matching};

    fn run() -> FrozenRun {
        let request: RunRequest =
            serde_json::from_str(r#"{"predicate":"*","params":{"argv":["true"]}}"#)
                .expect("a request");
        let predicate = "*".parse().expect("a predicate");
        let nodes = matching(&predicate, &Snapshot::new([]));
        let resolved = Resolved {
            predicate,
            nodes,
            left_out: 0,
        };
        let ana: PrincipalName = "ana".parse().expect("a name");
        let checked = crate::runs::check(&request).expect("fine");
        checked.freeze(
            &request,
            &resolved,
            RunId::random(),
            (&ana, Door::Cli),
            Timestamp::UNIX_EPOCH,
        )
    }

    #[test]
    fn a_plan_works_once_for_its_principal_its_request_and_five_minutes() {
        let plans = Plans::default();
        let (ana, eve) = (
            "ana".parse().expect("a name"),
            "eve".parse().expect("a name"),
        );
        let (asked, other) = (RequestHash::of(&"a"), RequestHash::of(&"b"));
        let now = Timestamp::UNIX_EPOCH;
        let by = RunId::random();
        let run = run();
        let (id, expires) = plans.keep(&ana, asked, run.clone(), now, PLAN_LIFE);
        let id = &PlanRef::from(id);
        assert_eq!(elapsed(now, expires), PLAN_LIFE);
        let gone = |id: &PlanRef, who, request, now| {
            let taken = plans.take(id, who, request, now);
            taken.expect_err("it does not work") == PlanGone(id.clone())
        };
        assert!(gone(id, &eve, asked, now));
        assert!(gone(id, &ana, other, now));
        assert!(gone(id, &ana, asked, expires));
        // What does not come about leaves it as it was; meanwhile nobody else
        // can use it.
        for _ in 0..2 {
            let taken = plans.take(id, &ana, asked, now).expect("it works");
            assert_eq!(*taken.run(), run);
            assert!(gone(id, &ana, asked, now));
            assert_eq!(plans.used(id, &ana, asked, by), None);
            drop(taken);
        }
        let taken = plans.take(id, &ana, asked, now).expect("it works");
        taken.used(by);
        assert!(gone(id, &ana, asked, now));
        assert_eq!(plans.used(id, &ana, asked, by), Some(run.spec.id));
        assert_eq!(plans.used(id, &ana, asked, RunId::random()), None);
        assert_eq!(plans.used(id, &eve, asked, by), None);
        assert_eq!(plans.used(id, &ana, other, by), None);
        // They are bounded: the oldest goes.
        let (first, _) = plans.keep(&ana, asked, run.clone(), now, PLAN_LIFE);
        let first = &PlanRef::from(first);
        for _ in 0..MOST {
            plans.keep(&eve, asked, run.clone(), now, PLAN_LIFE);
        }
        assert!(gone(first, &ana, asked, now));
    }
}
