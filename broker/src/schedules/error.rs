//! Why a schedule was not made or found.

use muster_protocol::names::ScheduleName;
use muster_protocol::problem::{Kind, Problem};
use muster_protocol::units::Span;
use muster_scenarios::when::CronError;

use super::{MAX_REQUEST, MAX_SCHEDULES};
use crate::store::kv::KvError;

/// Why something about schedules failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SchedulesError {
    /// No such schedule.
    #[error("there is no schedule `{0}`; `muster schedule list` shows what there is")]
    None(ScheduleName),
    /// The name is taken.
    #[error("there is a schedule `{0}`; take another name, or replace it: --replace")]
    Exists(ScheduleName),
    /// Not a time as in cron.
    #[error(transparent)]
    Cron(#[from] CronError),
    /// It would never come to its end.
    #[error("a jitter of {0} is too long; at most 24h are possible")]
    Jitter(Span),
    /// Nobody could be asked.
    #[error("a schedule confirms its runs beforehand; leave `confirm` out")]
    Confirm,
    /// More than is kept.
    #[error("what a schedule runs has at most {MAX_REQUEST} bytes as JSON, this has {0}")]
    TooLarge(usize),
    /// Too many.
    #[error("there are {MAX_SCHEDULES} schedules; remove some first")]
    TooMany,
    /// What it runs would be refused.
    #[error("{}", .0.title)]
    Refused(Box<Problem>),
    /// This broker may not write now.
    #[error("this broker is not the active one now; try again in a few seconds")]
    NotActive,
    /// NATS.
    #[error("a schedule could not be stored or read: {0}")]
    Store(#[from] KvError),
}

impl SchedulesError {
    /// As it is shown at the edge.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let kind = match self {
            Self::Refused(problem) => {
                let mut problem = (**problem).clone();
                // It is not the time to run anything.
                if let Some(title) = problem.title.strip_suffix("; nothing was run") {
                    problem.title = format!("{title}; no schedule was added");
                }
                return problem;
            }
            Self::None(_) => Kind::NotFound,
            Self::Exists(_) | Self::TooMany => Kind::Conflict,
            Self::Cron(_) | Self::Jitter(_) | Self::Confirm => Kind::InvalidRequest,
            Self::TooLarge(_) => Kind::TooLarge,
            Self::NotActive | Self::Store(_) => Kind::Unavailable,
        };
        let text = self.to_string();
        match text.split_once("; ") {
            Some((title, hint)) => Problem::new(kind, title).hint(hint),
            None => Problem::new(kind, text),
        }
    }
}
