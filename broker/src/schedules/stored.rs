//! A schedule as it is kept: pure.

use muster_protocol::api::{LastStart, Role, RunRequest, ScheduleView, WhenMissed, version_shown};
use muster_protocol::ids::RunId;
use muster_protocol::names::{PrincipalName, ScheduleName};
use muster_protocol::text::printable;
use muster_protocol::units::Timestamp;
use muster_scenarios::when::{Due, Missed, Timing};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::MAX_NEXT;

/// A value of `muster_schedules`; the key is the schedule's name.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct StoredSchedule {
    /// What is run.
    pub(super) request: RunRequest,
    /// When.
    pub(super) timing: Timing,
    /// Who made it.
    pub(super) by: PrincipalName,
    /// What it may do.
    pub(super) role: Role,
    /// When it was made; with the name, what tells it from others.
    pub(super) made: Timestamp,
    /// Everything up to this time is done or left out.
    pub(super) done: Timestamp,
    /// What came of the last start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) last: Option<LastStart>,
}

impl StoredSchedule {
    /// What is to be done now.
    pub(super) fn due(&self, name: &ScheduleName, now: Timestamp) -> Option<Due> {
        self.timing.due(name.as_str(), self.done, now)
    }

    /// When it is to be looked at again.
    pub(super) fn wakes(&self, name: &ScheduleName) -> Option<Timestamp> {
        self.timing.next_starts(name.as_str(), self.done).next()
    }

    /// The run for a time: always the same.
    pub(super) fn run_id(&self, name: &ScheduleName, due: Timestamp) -> RunId {
        let mut hash = Sha256::new();
        hash.update(b"muster schedule 1\0");
        hash.update(name.as_str());
        hash.update(b"\0");
        hash.update(self.made.as_nanosecond().to_be_bytes());
        hash.update(due.as_second().to_be_bytes());
        let digest: [u8; 32] = hash.finalize().into();
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&digest[..16]);
        RunId::from_bytes(bytes)
    }

    /// What it runs, in a few words.
    pub(super) fn title(&self) -> String {
        let mut title = self.request.scenario.to_string();
        if let Some(version) = self.request.version {
            title.push_str(&format!(" {}", version_shown(version)));
        }
        if let Some(predicate) = &self.request.predicate {
            title.push_str(&format!(" on {}", printable(predicate, 100)));
        }
        title
    }

    /// As it is shown.
    pub(super) fn view(&self, name: &ScheduleName, now: Timestamp, next: usize) -> ScheduleView {
        ScheduleView {
            name: name.clone(),
            cron: self.timing.cron.to_string(),
            jitter: self.timing.jitter,
            missed: match self.timing.missed {
                Missed::Skip => WhenMissed::Skip,
                Missed::Run => WhenMissed::Run,
            },
            run: self.request.clone(),
            by: self.by.clone(),
            made: self.made,
            last: self.last.clone(),
            next: self
                .timing
                .next_starts(name.as_str(), self.done.max(now))
                .take(next.min(MAX_NEXT))
                .collect(),
            warnings: Vec::new(),
        }
    }

    /// Two copies of which one may lack what the other has: what the newer
    /// one says it is, and what either has done.
    #[must_use]
    pub fn reconciled(now: Self, lost: Self, lost_is_newer: bool) -> Self {
        let (newer, older) = if lost_is_newer {
            (lost, now)
        } else {
            (now, lost)
        };
        if newer.made != older.made {
            return newer;
        }
        let last = [newer.last.clone(), older.last.clone()];
        let last = last.into_iter().flatten().max_by_key(|last| last.at);
        Self {
            done: newer.done.max(older.done),
            last,
            ..newer
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn schedule(done: &str) -> StoredSchedule {
        serde_json::from_value(json!({
            "request": { "scenario": "ping" }, "timing": { "cron": "0 * * * *" },
            "by": "ana", "role": "operator", "made": "2026-11-01T00:00:00Z", "done": done,
        }))
        .unwrap()
    }

    fn name() -> ScheduleName {
        "nightly".parse().unwrap()
    }

    #[test]
    fn a_run_is_that_of_its_schedule_and_its_time() {
        let one = schedule("2026-11-21T10:00:00Z");
        let due = one.due(&name(), at("2026-11-21T11:00:01Z")).unwrap();
        let time = due.start.unwrap();
        assert_eq!(time, at("2026-11-21T11:00:00Z"));
        assert_eq!(one.wakes(&name()), Some(time));
        let id = one.run_id(&name(), time);
        let done = schedule("2026-11-21T11:00:00Z");
        assert_eq!(done.run_id(&name(), time), id);
        assert_ne!(done.run_id(&name(), at("2026-11-21T12:00:00Z")), id);
        assert_ne!(done.run_id(&"other".parse().unwrap(), time), id);
        let anew = StoredSchedule {
            made: at("2026-11-20T00:00:00Z"),
            ..done
        };
        assert_ne!(anew.run_id(&name(), time), id);
    }

    #[test]
    fn what_is_done_stays_done_whichever_copy_is_newer() {
        let old = schedule("2026-11-21T10:00:00Z");
        let mut new = schedule("2026-11-21T12:00:00Z");
        new.last = Some(LastStart {
            due: at("2026-11-21T12:00:00Z"),
            at: at("2026-11-21T12:00:01Z"),
            run: None,
            problem: Some("x".into()),
        });
        for newer in [true, false] {
            let both = StoredSchedule::reconciled(old.clone(), new.clone(), newer);
            assert_eq!((both.done, both.last.clone()), (new.done, new.last.clone()));
        }
        let other = StoredSchedule {
            made: at("2026-11-21T11:00:00Z"),
            ..old.clone()
        };
        assert_eq!(StoredSchedule::reconciled(old, other.clone(), true), other);
    }
}
