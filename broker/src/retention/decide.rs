//! What retention removes now: pure.
//!
//! Age comes first: a run goes when it has reached its age, its output
//! earlier. When more bytes are used than there should be, the oldest output
//! goes, and only when that is not enough, the oldest runs. A run that has not
//! ended is never touched, however old it is and however little room there is.

use std::time::Duration;

use muster_protocol::ids::RunId;
use muster_protocol::units::{Timestamp, elapsed};

/// Above so many hundredths of the limit, things go before their age …
pub(crate) const TOO_FULL: u64 = 90;
/// … until it is below so many.
pub(crate) const FULL_ENOUGH: u64 = 75;
/// What has just ended is kept even then: somebody may be reading it.
pub(crate) const JUST_ENDED: Duration = Duration::from_secs(15);

/// How long, and how much.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Age at which an ended run goes, counted from its end.
    pub runs: Duration,
    /// Age at which its output goes.
    pub output: Duration,
    /// Bytes of journals and output together.
    pub bytes: u64,
}

impl Limits {
    /// Above so many bytes, things go before their age.
    #[must_use]
    pub(crate) fn high(&self) -> u64 {
        part(self.bytes, TOO_FULL)
    }

    /// Below so many, nothing goes before its age any more.
    #[must_use]
    pub(crate) fn low(&self) -> u64 {
        part(self.bytes, FULL_ENOUGH)
    }
}

/// From so many hundredths on not even what has just ended is spared: there is
/// no room for the output of what runs.
const NO_ROOM: u64 = 94;

/// How long what has ended is kept although there is too little room.
fn spared(used: u64, limits: &Limits) -> Duration {
    if used >= part(limits.bytes, NO_ROOM) {
        Duration::ZERO
    } else {
        JUST_ENDED
    }
}

/// So many hundredths.
pub(super) fn part(of: u64, hundredths: u64) -> u64 {
    u64::try_from(u128::from(of) * u128::from(hundredths) / 100).unwrap_or(u64::MAX)
}

/// What is known of a kept run.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Kept {
    /// The run.
    pub run: RunId,
    /// When it ended; `None` while it is open.
    pub ended: Option<Timestamp>,
    /// Bytes of its journal, about.
    pub journal: u64,
    /// Bytes of its output that is there, about; 0 when there is none.
    pub output: u64,
}

/// How much of a run goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum What {
    /// Its output; its journal stays.
    Output,
    /// Everything.
    Run,
}

/// Why it goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Why {
    /// It has reached its age.
    Age,
    /// There is too little room.
    Space,
}

/// Something that goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Removal {
    /// Of which run.
    pub run: RunId,
    /// When that run ended.
    pub ended: Timestamp,
    /// How much of it.
    pub what: What,
    /// Why.
    pub why: Why,
    /// What it frees, about.
    pub bytes: u64,
}

/// What to remove, in this order, when `used` bytes are used at `now`. Sizes
/// of single runs are estimates: whoever does it measures in between, and
/// leaves out what is for [`Why::Space`] once there is room again.
#[must_use]
pub fn decide(used: u64, runs: &[Kept], limits: &Limits, now: Timestamp) -> Vec<Removal> {
    // An age of nothing would take away what nobody could have read.
    let old = |at: Timestamp, age: Duration| elapsed(at, now) >= age.max(JUST_ENDED);
    let spared = spared(used, limits);
    let young = |at: Timestamp| elapsed(at, now) < spared;
    let mut ended: Vec<(Timestamp, Kept)> = runs
        .iter()
        .filter_map(|kept| Some((kept.ended?, *kept)))
        .collect();
    ended.sort_by_key(|(at, kept)| (*at, kept.run));
    let mut plan = Plan {
        left: used,
        removals: Vec::new(),
    };
    ended.retain_mut(|(at, kept)| {
        if old(*at, limits.runs) {
            plan.run(*at, kept, Why::Age);
            return false;
        }
        if old(*at, limits.output) {
            plan.output(*at, kept, Why::Age);
        }
        true
    });
    if plan.left < limits.high() {
        return plan.removals;
    }
    let goal = limits.low();
    let soon = ended.iter().any(|(at, kept)| kept.output > 0 && young(*at));
    ended.retain(|(at, _)| !young(*at));
    for (at, kept) in &mut ended {
        if plan.left <= goal {
            break;
        }
        plan.output(*at, kept, Why::Space);
    }
    // A run is worth more than the output that is about to be old enough.
    for (at, kept) in &ended {
        if soon || plan.left <= goal {
            break;
        }
        plan.run(*at, kept, Why::Space);
    }
    plan.removals
}

struct Plan {
    /// Bytes that are left once all of it is done.
    left: u64,
    removals: Vec<Removal>,
}

impl Plan {
    fn output(&mut self, ended: Timestamp, kept: &mut Kept, why: Why) {
        if kept.output > 0 {
            self.add(kept.run, ended, What::Output, why, kept.output);
            kept.output = 0;
        }
    }

    fn run(&mut self, ended: Timestamp, kept: &Kept, why: Why) {
        let bytes = kept.journal.saturating_add(kept.output);
        self.add(kept.run, ended, What::Run, why, bytes);
    }

    fn add(&mut self, run: RunId, ended: Timestamp, what: What, why: Why, bytes: u64) {
        self.left = self.left.saturating_sub(bytes);
        self.removals.push(Removal {
            run,
            ended,
            what,
            why,
            bytes,
        });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits {
        runs: Duration::from_secs(9_000),
        output: Duration::from_secs(1_400),
        bytes: 1_000,
    };

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn kept(n: u8, ended: Option<i64>, journal: u64, output: u64) -> Kept {
        Kept {
            run: RunId::from_bytes([n; 16]),
            ended: ended.map(at),
            journal,
            output,
        }
    }

    fn said(plan: &[Removal]) -> Vec<(u8, What, Why)> {
        plan.iter()
            .map(|r| (r.run.as_bytes()[0], r.what, r.why))
            .collect()
    }

    #[test]
    fn age_takes_output_first_and_the_run_later() {
        let runs = [
            kept(1, Some(0), 10, 10),
            kept(2, Some(7_000), 10, 10),
            kept(3, Some(9_999), 10, 10),
            kept(4, None, 10, 10),
            kept(5, Some(7_000), 10, 0),
        ];
        let plan = decide(70, &runs, &LIMITS, at(10_000));
        assert_eq!(
            said(&plan),
            [(1, What::Run, Why::Age), (2, What::Output, Why::Age)]
        );
    }

    #[test]
    fn room_is_made_by_output_before_runs_and_by_the_oldest_first() {
        let runs = [
            kept(1, Some(9_700), 100, 50),
            kept(2, Some(9_600), 100, 50),
            kept(3, Some(9_800), 100, 50),
            kept(4, None, 100, 350),
            kept(5, Some(9_995), 100, 0),
        ];
        let now = at(10_000);
        assert_eq!(decide(899, &runs, &LIMITS, now), []);
        let space = |what| move |n| (n, what, Why::Space);
        let outputs = [2, 1, 3].map(space(What::Output));
        assert_eq!(said(&decide(900, &runs, &LIMITS, now)), outputs);
        let both: Vec<_> = outputs
            .into_iter()
            .chain([2].map(space(What::Run)))
            .collect();
        assert_eq!(said(&decide(1_000, &runs, &LIMITS, now)), both);
        // Somebody may still be reading what has just ended; it goes soon, and
        // no run goes in its place.
        let mut young = runs;
        young[4].output = 50;
        assert_eq!(said(&decide(930, &young, &LIMITS, now)), outputs);
        // Without any room left nothing is spared.
        let all: Vec<_> = outputs
            .into_iter()
            .chain([5].map(space(What::Output)))
            .collect();
        assert_eq!(said(&decide(950, &young, &LIMITS, now)), all);
    }

    #[test]
    fn what_ends_in_the_future_of_this_clock_is_young() {
        let runs = [kept(1, Some(20_000), 10, 10)];
        assert_eq!(decide(930, &runs, &LIMITS, at(10_000)), []);
    }

    fn some_runs() -> impl Strategy<Value = Vec<Kept>> {
        let run = (
            proptest::option::weighted(0.8, -200i64..12_000),
            0u64..200,
            prop_oneof![Just(0u64), 0u64..200],
        );
        proptest::collection::vec(run, 0..60).prop_map(|runs| {
            let of = |(n, (ended, journal, output)): (usize, (Option<i64>, u64, u64))| {
                kept(u8::try_from(n).expect("few"), ended, journal, output)
            };
            runs.into_iter().enumerate().map(of).collect()
        })
    }

    proptest! {
        #[test]
        fn the_goal_is_reached_or_everything_allowed_goes(
            runs in some_runs(),
            more in 0u64..2_000,
            bytes in 1u64..8_000,
            now in 0i64..12_000,
        ) {
            let limits = Limits { bytes, ..LIMITS };
            let now = at(now);
            // What nobody knows of takes room, too.
            let used = runs.iter().map(|r| r.journal + r.output).sum::<u64>() + more;
            let plan = decide(used, &runs, &limits, now);
            let by_id: BTreeMap<_, _> = runs.iter().map(|r| (r.run, *r)).collect();

            // Never an open run, never one that has just ended; nothing twice.
            let mut outputs = BTreeSet::new();
            let mut whole = BTreeSet::new();
            let mut left = used;
            for removal in &plan {
                let run = by_id[&removal.run];
                let ended = run.ended.expect("never an open run");
                let least = match removal.why {
                    Why::Age => JUST_ENDED,
                    Why::Space => spared(used, &limits),
                };
                prop_assert!(elapsed(ended, now) >= least);
                prop_assert!(!whole.contains(&run.run));
                match removal.what {
                    What::Output => {
                        prop_assert!(outputs.insert(run.run));
                        prop_assert!(run.output > 0);
                    }
                    What::Run => prop_assert!(whole.insert(run.run)),
                }
                let expected = match removal.what {
                    What::Output => run.output,
                    What::Run if outputs.contains(&run.run) => run.journal,
                    What::Run => run.journal + run.output,
                };
                prop_assert_eq!(removal.bytes, expected);
                // Nothing goes for room that is there.
                if removal.why == Why::Space {
                    prop_assert!(left > limits.low());
                }
                left = left.saturating_sub(removal.bytes);
            }

            // Each kind goes from the oldest on, without one left out.
            let allowed: Vec<Kept> = runs
                .iter()
                .filter(|r| r.ended.is_some_and(|at| elapsed(at, now) >= spared(used, &limits)))
                .copied()
                .collect();
            let newest = |gone: &BTreeSet<RunId>| gone.iter().map(|id| (by_id[id].ended, *id)).max();
            for run in &allowed {
                let place = (run.ended, run.run);
                if newest(&whole).is_some_and(|newest| place <= newest) {
                    prop_assert!(whole.contains(&run.run));
                }
                if newest(&outputs).is_some_and(|newest| place <= newest) && run.output > 0 {
                    prop_assert!(outputs.contains(&run.run) || whole.contains(&run.run));
                }
            }

            // Everything that has its age is gone.
            for run in &allowed {
                let age = elapsed(run.ended.expect("ended"), now);
                prop_assert!(age < limits.runs.max(JUST_ENDED) || whole.contains(&run.run));
                prop_assert!(age < limits.output || run.output == 0
                    || outputs.contains(&run.run) || whole.contains(&run.run));
            }

            // Runs go for room only when no output is left.
            if plan.iter().any(|r| r.what == What::Run && r.why == Why::Space) {
                prop_assert!(allowed.iter().all(|r| r.output == 0
                    || outputs.contains(&r.run) || whole.contains(&r.run)));
            }
            let by_age: u64 = plan.iter().filter(|r| r.why == Why::Age).map(|r| r.bytes).sum();
            let crowded = used.saturating_sub(by_age) >= limits.high();
            let soon = runs.iter().any(|r| r.output > 0
                && r.ended.is_some_and(|at| elapsed(at, now) < spared(used, &limits)));
            let none_left = |r: &Kept| r.output == 0 || outputs.contains(&r.run) || whole.contains(&r.run);
            prop_assert!(
                !crowded || left <= limits.low() || whole.len() == allowed.len()
                    || (soon && allowed.iter().all(none_left)),
                "{left} bytes left, and not all that is allowed is gone"
            );
        }
    }
}
