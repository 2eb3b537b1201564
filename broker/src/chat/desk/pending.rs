//! Plans that somebody in a chat was shown and has not confirmed yet: whose
//! they are, and where they were shown. What they would run is kept where all
//! plans are ([`crate::plans`]).

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use muster_protocol::api::{ChatPlace, PlanRef, RetryRequest, RunRequest};
use muster_protocol::ids::RunId;
use muster_protocol::names::PrincipalName;
use muster_protocol::units::Timestamp;
use muster_protocol::vm::VmId;

use crate::vm::Destroy;

/// Most plans that are kept; the oldest go.
const MOST: usize = 1_000;
/// Most dry runs that are remembered; the oldest go.
const MOST_DRY_RUNS: usize = 200;

/// What confirms a plan.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Confirms {
    /// This request, with the plan in it.
    Run(PlanRef, Box<RunRequest>),
    /// A run that is done again.
    Retry(PlanRef, RunId, RetryRequest),
    /// The end of this machine.
    Destroy(VmId, Destroy),
}

/// A plan that waits.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Waiting {
    /// The run that it becomes.
    pub(super) run: RunId,
    /// Whose it is.
    pub(super) principal: PrincipalName,
    /// Where it was shown.
    pub(super) place: ChatPlace,
    /// What confirms it.
    pub(super) confirms: Confirms,
    /// What it would change, as far as a dry run has shown.
    pub(super) diff: Vec<String>,
    /// Until when.
    pub(super) until: Timestamp,
}

impl Waiting {
    fn is_here(&self, place: &ChatPlace) -> bool {
        self.place.network == place.network && self.place.channel == place.channel
    }

    /// `#ops`, or where else.
    fn shown_in(&self) -> String {
        match &self.place.channel {
            Some(channel) => channel.to_string(),
            None => "a private message".to_owned(),
        }
    }
}

/// Why no plan is meant.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum Missing {
    /// There is none.
    #[error("nothing of yours waits here for a yes")]
    None,
    /// There are several.
    #[error("several of yours wait here: {}", .0.join(", "))]
    Several(Vec<String>),
    /// Not known.
    #[error("nothing called {0} waits: it was confirmed, dropped, or its time is over")]
    Unknown(String),
    /// It is somebody else's.
    #[error("{run} waits for {whose}, not for you")]
    NotYours {
        /// The run.
        run: String,
        /// Whose it is.
        whose: PrincipalName,
    },
    /// It was shown somewhere else.
    #[error("{run} was shown in {shown}: say it there, where others see it")]
    Elsewhere {
        /// The run.
        run: String,
        /// Where.
        shown: String,
    },
}

#[derive(Debug, Default)]
struct Tables {
    plans: Mutex<BTreeMap<RunId, Waiting>>,
    /// Dry runs that took long, newest last, and the request for the real one.
    dry_runs: Mutex<VecDeque<(RunId, RunRequest)>>,
}

/// The plans that wait, in memory as all plans are. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Pending(Arc<Tables>);

impl Pending {
    fn table(&self) -> std::sync::MutexGuard<'_, BTreeMap<RunId, Waiting>> {
        self.0.plans.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn dry_runs(&self) -> std::sync::MutexGuard<'_, VecDeque<(RunId, RunRequest)>> {
        let runs = self.0.dry_runs.lock();
        runs.unwrap_or_else(PoisonError::into_inner)
    }

    /// A dry run goes on: what it is of is kept.
    pub(super) fn goes_on(&self, run: RunId, request: RunRequest) {
        let mut runs = self.dry_runs();
        while runs.len() >= MOST_DRY_RUNS {
            runs.pop_front();
        }
        runs.push_back((run, request));
    }

    /// What a dry run that took long was of.
    pub(super) fn dry_run(&self, run: RunId) -> Option<RunRequest> {
        let runs = self.dry_runs();
        let found = runs.iter().find(|(id, _)| *id == run);
        found.map(|(_, request)| request.clone())
    }

    /// Keeps one.
    pub(super) fn keep(&self, waiting: Waiting, now: Timestamp) {
        let mut table = self.table();
        table.retain(|_, old| old.until > now);
        while table.len() >= MOST {
            let oldest = table
                .values()
                .min_by_key(|old| old.until)
                .map(|old| old.run);
            let Some(oldest) = oldest else { break };
            table.remove(&oldest);
        }
        table.insert(waiting.run, waiting);
    }

    /// It waits no more.
    pub(super) fn drop(&self, run: RunId) {
        self.table().remove(&run);
    }

    /// The one that `which` stands for, or the only one of that principal in
    /// that place.
    ///
    /// # Errors
    /// [`Missing`].
    pub(super) fn find(
        &self,
        principal: &PrincipalName,
        place: &ChatPlace,
        which: Option<&str>,
        now: Timestamp,
    ) -> Result<Waiting, Missing> {
        let table = self.table();
        let mut alive = table.values().filter(|waiting| waiting.until > now);
        let Some(which) = which else {
            let mine: Vec<&Waiting> = alive
                .filter(|waiting| waiting.principal == *principal && waiting.is_here(place))
                .collect();
            return match mine.as_slice() {
                [] => Err(Missing::None),
                [one] => Ok((*one).clone()),
                some => Err(Missing::Several(
                    some.iter().map(|waiting| waiting.run.short()).collect(),
                )),
            };
        };
        let which = which.to_ascii_lowercase();
        let unknown = || Missing::Unknown(muster_protocol::text::printable(&which, 30));
        if which.len() < 4 {
            return Err(unknown());
        }
        let found = alive
            .find(|waiting| waiting.run.to_string().starts_with(&which))
            .ok_or_else(unknown)?;
        let run = found.run.short();
        if found.principal != *principal {
            let whose = found.principal.clone();
            return Err(Missing::NotYours { run, whose });
        }
        if !found.is_here(place) {
            let shown = found.shown_in();
            return Err(Missing::Elsewhere { run, shown });
        }
        Ok(found.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use muster_protocol::units::after;

    use super::*;

    fn place(channel: Option<&str>) -> ChatPlace {
        ChatPlace {
            network: "ops".parse().unwrap(),
            channel: channel.map(|channel| channel.parse().unwrap()),
            person: None,
        }
    }

    #[test]
    fn a_plan_is_confirmed_by_whose_it_is_where_it_was_shown() {
        let (pending, now) = (Pending::default(), Timestamp::now());
        let principal = |name: &str| name.parse::<PrincipalName>().unwrap();
        let (ana, bruno) = (principal("ana"), principal("bruno"));
        let (ops, dev) = (place(Some("#ops")), place(Some("#dev")));
        let one = |n: u8| Waiting {
            run: RunId::from_bytes([n; 16]),
            principal: ana.clone(),
            place: ops.clone(),
            confirms: Confirms::Retry(
                "abcd".parse().unwrap(),
                RunId::from_bytes([9; 16]),
                RetryRequest::default(),
            ),
            diff: Vec::new(),
            until: after(now, Duration::from_secs(300)),
        };
        let find = |who: &PrincipalName, place: &ChatPlace, which: Option<&str>| {
            pending.find(who, place, which, now)
        };
        assert_eq!(find(&ana, &ops, None), Err(Missing::None));
        pending.keep(one(1), now);
        let id = one(1).run.short();
        assert_eq!(find(&ana, &ops, None), Ok(one(1)));
        assert_eq!(find(&ana, &ops, Some(&id.to_uppercase())), Ok(one(1)));
        assert_eq!(find(&ana, &dev, None), Err(Missing::None));
        let said = |result: Result<Waiting, Missing>| result.unwrap_err().to_string();
        assert_eq!(
            said(find(&ana, &dev, Some(&id))),
            format!("{id} was shown in #ops: say it there, where others see it")
        );
        assert_eq!(find(&bruno, &ops, None), Err(Missing::None));
        assert_eq!(
            said(find(&bruno, &ops, Some(&id))),
            format!("{id} waits for ana, not for you")
        );
        pending.keep(one(2), now);
        assert!(said(find(&ana, &ops, None)).starts_with("several of yours wait here: "));
        let late = after(now, Duration::from_secs(301));
        assert_eq!(pending.find(&ana, &ops, None, late), Err(Missing::None));
        pending.drop(one(1).run);
        assert_eq!(find(&ana, &ops, None), Ok(one(2)));
        assert!(matches!(
            find(&ana, &ops, Some("1")),
            Err(Missing::Unknown(_))
        ));
    }
}
