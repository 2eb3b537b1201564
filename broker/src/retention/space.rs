//! How much room there is, and when somebody must be told.

use std::path::Path;

use async_nats::jetstream::Context;
use async_nats::jetstream::response::Response;
use muster_protocol::api::Space;
use muster_protocol::units::Size;
use serde::Deserialize;

use crate::nats::admin::SystemClient;

/// People are told when so many hundredths are used …
pub(crate) const RAISE: u64 = 80;
/// … and that it is over below so many.
pub(crate) const CLEAR: u64 = 70;
/// A store is taken to need at least so much on its disk: with little in it,
/// a disk that is full for another reason is seen all the same.
const LEAST_STORE: u64 = 256 << 20;

/// What is watched.
pub(crate) const RUNS: &str = "runs";
/// What is only counted: the oldest go by themselves.
pub(crate) const EVENTS: &str = "events";
/// What is watched.
pub(crate) const STORE: &str = "store";

/// What an alarm does next.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Step {
    Nothing,
    Raise,
    Clear,
}

/// Whether to say something. Between the two thresholds everything stays as
/// it was, so that what goes up and down around one of them is said once.
#[must_use]
pub(super) fn step(raised: bool, percent: u64) -> Step {
    match (raised, percent) {
        (false, RAISE..) => Step::Raise,
        (true, ..CLEAR) => Step::Clear,
        _ => Step::Nothing,
    }
}

/// How much is used of what there is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Reading {
    /// For people.
    pub(super) space: Space,
    /// Hundredths that are used, as the alarm counts them.
    pub(super) percent: u64,
}

impl Reading {
    pub(super) fn new(space: Space) -> Option<Self> {
        let percent = space.percent()?;
        Some(Self { space, percent })
    }
}

/// What people are told: what, how much, and what to do.
pub(super) fn told(space: &Space) -> (String, &'static str) {
    let used = Size::new(space.bytes).shown();
    let limit = space.limit.unwrap_or(space.bytes);
    if space.what == STORE {
        let left = Size::new(limit.saturating_sub(space.bytes)).shown();
        (
            format!(
                "NATS keeps {used}, and its disk or its limits leave it room for {left} more; when that is full nothing can be run"
            ),
            "free space on the disk of JetStream's directory, raise JetStream's max_file, or lower retention.bytes",
        )
    } else {
        let of = Size::new(limit).shown();
        let percent = space.percent().unwrap_or(100);
        (
            format!(
                "runs and their output use {used} of {of} ({percent}%); from 90% on the oldest go before their age"
            ),
            "raise retention.bytes, or shorten retention.output or retention.runs, in the broker's configuration",
        )
    }
}

/// What NATS keeps in all, and how much it could: the server with the least
/// room left. `None` when nobody says, or nothing limits it.
pub(super) async fn store(
    js: &Context,
    system: Option<&SystemClient>,
    same_machine: bool,
) -> Option<Reading> {
    let mut found: Vec<Reading> = account(js).await.into_iter().collect();
    let servers = match system {
        Some(system) => system.jetstream().await.unwrap_or_else(|error| {
            tracing::debug!(%error, "the NATS servers do not say how much room they have");
            Vec::new()
        }),
        None => Vec::new(),
    };
    for server in servers {
        found.extend(Reading::new(space(server.storage, server.max_storage)));
        if same_machine && let Some(free) = free_on_disk(&server.store_dir) {
            found.push(on_disk(server.storage, free));
        }
    }
    found.into_iter().max_by_key(|reading| reading.percent)
}

/// A store on a disk with so much free space.
fn on_disk(storage: u64, free: u64) -> Reading {
    let all = |used: u64| used.saturating_add(free);
    let counted = storage.max(LEAST_STORE);
    Reading {
        percent: space(counted, Some(all(counted))).percent().unwrap_or(0),
        space: space(storage, Some(all(storage))),
    }
}

fn space(bytes: u64, limit: Option<u64>) -> Space {
    Space {
        what: STORE.to_owned(),
        bytes,
        limit,
        count: None,
        alarm_since: None,
    }
}

/// What the account may have.
async fn account(js: &Context) -> Option<Reading> {
    #[derive(Deserialize)]
    struct Info {
        storage: u64,
        #[serde(default)]
        limits: Limits,
    }
    #[derive(Default, Deserialize)]
    struct Limits {
        #[serde(default)]
        max_storage: i64,
    }
    // The client's own type cannot read what 2.9 answers.
    let answer: Response<Info> = js.request("INFO", &()).await.ok()?;
    let Response::Ok(info) = answer else {
        return None;
    };
    let limit = u64::try_from(info.limits.max_storage)
        .ok()
        .filter(|n| *n > 0);
    Reading::new(space(info.storage, limit))
}

/// Bytes that are free for others than root.
fn free_on_disk(dir: &Path) -> Option<u64> {
    let found = rustix::fs::statvfs(dir).ok()?;
    found.f_bavail.checked_mul(found.f_frsize)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_goes_up_and_down_around_a_threshold_is_said_once() {
        let mut raised = false;
        let mut said = Vec::new();
        for percent in [10, 79, 80, 79, 80, 85, 99, 80, 71, 70, 79, 69, 70, 79, 69] {
            match step(raised, percent) {
                Step::Nothing => {}
                Step::Raise => {
                    raised = true;
                    said.push(percent);
                }
                Step::Clear => {
                    raised = false;
                    said.push(percent);
                }
            }
        }
        assert_eq!(said, [80, 69]);
    }

    #[test]
    fn an_alarm_says_what_how_much_and_what_to_do() {
        let (text, hint) = told(&Space {
            what: RUNS.into(),
            bytes: 8_500_000,
            limit: Some(10 << 20),
            count: Some(3),
            alarm_since: None,
        });
        insta::assert_snapshot!(format!("{text}\n{hint}"));
        let (text, hint) = told(&space(900 << 20, Some(1 << 30)));
        insta::assert_snapshot!(format!("{text}\n{hint}"));
    }

    #[test]
    fn a_disk_that_others_have_filled_is_seen() {
        let gib = 1 << 30;
        assert!(on_disk(1 << 20, 50 * gib).percent < 1);
        assert!(on_disk(1 << 20, 60 << 20).percent >= RAISE);
        assert!(on_disk(10 * gib, gib).percent >= RAISE);
        assert!(on_disk(10 * gib, 5 * gib).percent < CLEAR);
        assert_eq!(on_disk(0, 0).percent, 100);
    }

    proptest! {
        #[test]
        fn an_alarm_is_up_above_and_down_below(percents in proptest::collection::vec(0u64..120, 1..50)) {
            let mut raised = false;
            for percent in percents {
                match step(raised, percent) {
                    Step::Raise => raised = true,
                    Step::Clear => raised = false,
                    Step::Nothing => {}
                }
                prop_assert!(percent < RAISE || raised);
                prop_assert!(percent >= CLEAR || !raised);
            }
        }
    }
}
