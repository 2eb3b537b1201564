//! Schedules: runs that begin when their time comes.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::run::RunRequest;
use crate::ids::RunId;
use crate::names::{PrincipalName, ScheduleName};
use crate::units::{Span, Timestamp};

/// What happens with a start whose time came while nobody could start it.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WhenMissed {
    /// It is left out.
    #[default]
    Skip,
    /// It is made up for, once, however many were missed.
    Run,
}

/// Makes a schedule.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PutSchedule {
    /// When, as in cron, UTC: `0 3 * * mon-fri`.
    pub cron: String,
    /// Each start is put off by up to so long, by its own share; at most 24h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jitter: Option<Span>,
    /// What happens with starts that were missed.
    #[serde(default)]
    pub missed: WhenMissed,
    /// What is run. It is confirmed beforehand, whatever its set is.
    pub run: RunRequest,
    /// Take the place of the schedule of that name, if there is one.
    #[serde(default)]
    pub replace: bool,
}

/// A schedule.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct ScheduleView {
    /// Its name. Its runs are those of the principal `schedule:NAME`.
    pub name: ScheduleName,
    /// When, as in cron, UTC.
    pub cron: String,
    /// How far each start is put off at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jitter: Option<Span>,
    /// What happens with starts that were missed.
    pub missed: WhenMissed,
    /// What is run.
    pub run: RunRequest,
    /// Who made it. It may do what that role may.
    pub by: PrincipalName,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    pub made: Timestamp,
    /// What came of the last start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<LastStart>,
    /// When the next runs begin.
    #[schema(value_type = Vec<String>)]
    pub next: Vec<Timestamp>,
    /// When it was just made: what people will have to do for its runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// What came of a start.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LastStart {
    /// The time that it was due, without jitter.
    #[schema(value_type = String, format = DateTime)]
    pub due: Timestamp,
    /// When it was tried.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// The run that it made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunId>,
    /// Why it made none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}
