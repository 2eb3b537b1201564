//! When something begins: times as in cron, what a schedule starts, and what
//! it missed. All of it pure: the time comes in, nothing is waited for.
//!
//! All times are UTC, so there is no hour that comes twice or never.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use croner::parser::{CronParser, Seconds, Year};
use jiff::tz::TimeZone;
use muster_protocol::text::printable;
use muster_protocol::units::{Span, Timestamp, after, elapsed};
use sha2::{Digest as _, Sha256};

/// Longest text.
const MAX_TEXT: usize = 100;
/// How late a start may be and still count as on time.
const ON_TIME: Duration = Duration::from_secs(60);
/// How many missed times are counted one by one.
const COUNTED: u32 = 1_000;
/// Longest jitter.
pub const MAX_JITTER: Duration = Duration::from_secs(24 * 3600);

/// Minutes, as cron writes them: minute, hour, day of the month, month, day
/// of the week. `0 3 * * mon-fri` is at three on working days, `* 22-23 * * *`
/// is every minute of two hours. Where both days are given, either will do.
#[derive(Clone, Debug)]
pub struct Cron {
    text: String,
    cron: croner::Cron,
}

impl PartialEq for Cron {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Cron {}

/// Why a text is no [`Cron`].
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "`{text}` is not a time as in cron: {why}; write minute, hour, day of the month, month and day of the week, like `0 3 * * mon-fri`"
)]
pub struct CronError {
    text: String,
    why: String,
}

impl FromStr for Cron {
    type Err = CronError;

    fn from_str(text: &str) -> Result<Self, CronError> {
        let fail = |why: String| CronError {
            text: printable(text, 60),
            why: printable(&why, 200),
        };
        if text.len() > MAX_TEXT {
            return Err(fail(format!("it is longer than {MAX_TEXT} bytes")));
        }
        // One spelling for what is the same.
        let text: Vec<&str> = text.split_whitespace().collect();
        let text = text.join(" ").to_lowercase();
        if !text.starts_with('@') && text.split(' ').count() != 5 {
            let count = text.split(' ').filter(|field| !field.is_empty()).count();
            return Err(fail(format!("it has {count} fields and not 5")));
        }
        let parser = CronParser::builder()
            .seconds(Seconds::Disallowed)
            .year(Year::Disallowed)
            .build();
        let cron = parser.parse(&text).map_err(|error| {
            let said = error.to_string();
            let (_, why) = said.split_once(": ").unwrap_or(("", &said));
            fail(why.trim_end_matches('.').to_owned())
        })?;
        let cron = Self { text, cron };
        if cron.next(Timestamp::UNIX_EPOCH).is_none() {
            return Err(fail("there is no such day".to_owned()));
        }
        Ok(cron)
    }
}

impl fmt::Display for Cron {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl serde::Serialize for Cron {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Cron {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

impl Cron {
    /// The first of these minutes that begins after a moment. `None` when the
    /// calendar ends before it comes.
    #[must_use]
    pub fn next(&self, after: Timestamp) -> Option<Timestamp> {
        let after = after.to_zoned(TimeZone::UTC);
        let next = self.cron.find_next_occurrence(&after, false).ok()?;
        Some(next.timestamp())
    }

    /// The last of them that begins at a moment or before.
    #[must_use]
    pub fn last(&self, until: Timestamp) -> Option<Timestamp> {
        let until = until.to_zoned(TimeZone::UTC);
        let last = self.cron.find_previous_occurrence(&until, true).ok()?;
        Some(last.timestamp())
    }

    /// All that begin after a moment, in order.
    pub fn all(&self, after: Timestamp) -> impl Iterator<Item = Timestamp> + '_ {
        std::iter::successors(self.next(after), |time| self.next(*time))
    }

    /// Whether a moment is in one of these minutes.
    #[must_use]
    pub fn holds(&self, at: Timestamp) -> bool {
        self.last(at)
            .is_some_and(|minute| elapsed(minute, at) < Duration::from_secs(60))
    }
}

/// What happens with a start whose time came while nobody could start it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Missed {
    /// It is left out.
    #[default]
    Skip,
    /// It is made up for, once, however many were missed.
    Run,
}

impl FromStr for Missed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "skip" => Ok(Self::Skip),
            "run" => Ok(Self::Run),
            _ => Err(format!(
                "`{}` is neither `run` nor `skip`",
                printable(text, 20)
            )),
        }
    }
}

/// When a schedule starts its runs.
#[derive(Clone, Debug, Eq, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields)]
pub struct Timing {
    /// The times.
    pub cron: Cron,
    /// Each start is put off by up to so long, by its own share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jitter: Option<Span>,
    /// What happens with starts that were missed.
    #[serde(default)]
    pub missed: Missed,
}

/// What is due at a moment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Due {
    /// The time whose run is to be started now, if any is. At most one,
    /// however many came.
    pub start: Option<Timestamp>,
    /// The last time that this answer is about: the next question begins
    /// there.
    pub until: Timestamp,
    /// How many times came and are left out; from [`Due::MANY`] on they were
    /// not counted to the end.
    pub left_out: u32,
}

impl Due {
    /// As far as left out starts are counted.
    pub const MANY: u32 = COUNTED;
}

impl Timing {
    /// When the run for a time is started. The delay within the jitter is
    /// decided by the schedule's name and the time: it is the same for every
    /// broker and after every restart, and differs between schedules.
    #[must_use]
    pub fn starts(&self, name: &str, time: Timestamp) -> Timestamp {
        let Some(jitter) = self.jitter else {
            return time;
        };
        let most = jitter.get().min(MAX_JITTER).as_millis();
        let mut hash = Sha256::new();
        hash.update(name.as_bytes());
        hash.update(time.as_millisecond().to_be_bytes());
        let [a, b, c, d, ..] = <[u8; 32]>::from(hash.finalize());
        let share = u128::from(u32::from_be_bytes([a, b, c, d]));
        let delay = most * share / u128::from(u32::MAX);
        let delay = u64::try_from(delay).unwrap_or(u64::MAX);
        after(time, Duration::from_millis(delay))
    }

    /// When the next runs would be started, if nothing is missed.
    pub fn next_starts<'a>(
        &'a self,
        name: &'a str,
        since: Timestamp,
    ) -> impl Iterator<Item = Timestamp> + 'a {
        self.cron.all(since).map(|time| self.starts(name, time))
    }

    /// What is to be done at `now`, when everything up to `since` (the
    /// `until` of the answer before, or the moment when the schedule was
    /// made) is done. `None` while nothing is due.
    #[must_use]
    pub fn due(&self, name: &str, since: Timestamp, now: Timestamp) -> Option<Due> {
        let ripe = |time: &Timestamp| self.starts(name, *time) <= now;
        let mut times = self.cron.all(since).take_while(ripe);
        let mut last = times.next()?;
        let mut came = 1;
        for time in times.take(COUNTED as usize) {
            last = time;
            came += 1;
        }
        if came > COUNTED {
            // Too many to walk through: from the other end.
            last = std::iter::successors(self.cron.last(now), |time| {
                let before = time.checked_sub(jiff::SignedDuration::from_secs(1)).ok()?;
                self.cron.last(before)
            })
            .find(ripe)
            .unwrap_or(last);
        }
        let late = elapsed(self.starts(name, last), now) > ON_TIME;
        let start = (!late || self.missed == Missed::Run).then_some(last);
        Some(Due {
            start,
            until: last,
            left_out: came - u32::from(start.is_some()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    fn cron(text: &str) -> Cron {
        text.parse().unwrap_or_else(|e| panic!("{e}"))
    }

    fn timing(text: &str, jitter: Option<&str>, missed: Missed) -> Timing {
        Timing {
            cron: cron(text),
            jitter: jitter.map(|jitter| jitter.parse().expect("a duration")),
            missed,
        }
    }

    #[test]
    fn the_next_times_are_those_of_cron() {
        let next = |text: &str| -> String {
            let cron = cron(text);
            let times = cron.all(at("2026-11-21T12:34:56Z")).take(3);
            times.map(|t| t.to_string()).collect::<Vec<_>>().join(" ")
        };
        let all = [
            "0 3 * * *",
            "*/20 * * * *",
            "0 3 * * mon-fri",
            "0  3 * * MON-FRI",
            "30 6 1 * *",
            "0 0 29 2 *",
            "0 0 13 * 5",
            "@hourly",
            "@weekly",
            "0 22 L * *",
        ]
        .map(|text| format!("{text}: {}", next(text)));
        insta::assert_snapshot!(all.join("\n"), @r"
        0 3 * * *: 2026-11-22T03:00:00Z 2026-11-23T03:00:00Z 2026-11-24T03:00:00Z
        */20 * * * *: 2026-11-21T12:40:00Z 2026-11-21T13:00:00Z 2026-11-21T13:20:00Z
        0 3 * * mon-fri: 2026-11-23T03:00:00Z 2026-11-24T03:00:00Z 2026-11-25T03:00:00Z
        0  3 * * MON-FRI: 2026-11-23T03:00:00Z 2026-11-24T03:00:00Z 2026-11-25T03:00:00Z
        30 6 1 * *: 2026-12-01T06:30:00Z 2027-01-01T06:30:00Z 2027-02-01T06:30:00Z
        0 0 29 2 *: 2028-02-29T00:00:00Z 2032-02-29T00:00:00Z 2036-02-29T00:00:00Z
        0 0 13 * 5: 2026-11-27T00:00:00Z 2026-12-04T00:00:00Z 2026-12-11T00:00:00Z
        @hourly: 2026-11-21T13:00:00Z 2026-11-21T14:00:00Z 2026-11-21T15:00:00Z
        @weekly: 2026-11-22T00:00:00Z 2026-11-29T00:00:00Z 2026-12-06T00:00:00Z
        0 22 L * *: 2026-11-30T22:00:00Z 2026-12-31T22:00:00Z 2027-01-31T22:00:00Z
        ");
    }

    #[test]
    fn what_is_no_time_is_said() {
        let long = "1,".repeat(100);
        let all = [
            "",
            "3am",
            "0 3 * *",
            "0 0 3 * * *",
            "60 3 * * *",
            "0 3 * * fry",
            "0 0 30 2 *",
            "* * * * * 2030",
            "@reboot",
            "a\u{1b}[2J b c d e",
            &long,
        ]
        .map(|text| match text.parse::<Cron>() {
            Ok(cron) => format!("{cron} is one"),
            Err(error) => error.to_string(),
        });
        insta::assert_snapshot!(all.join("\n"), @r"
        `` is not a time as in cron: it has 0 fields and not 5; write minute, hour, day of the month, month and day of the week, like `0 3 * * mon-fri`
        `3am` is not a time as in cron: it has 1 fields and not 5; write minute, hour, day of the month, month and day of the week, like `0 3 * * mon-fri`
        `0 3 * *` is not a time as in cron: it has 4 fields and not 5; write minute, hour, day of the month, month and day of the week, like `0 3 * * mon-fri`
        `0 0 3 * * *` is not a time as in cron: it has 6 fields and not 5; write minute, hour, day of the month, month and day of the week, like `0 3 * * mon-fri`
        `60 3 * * *` is not a time as in cron: Number out of bounds; write minute, hour, day of the month, month and day of the week, like `0 3 * * mon-fri`
        `0 3 * * fry` is not a time as in cron: CronPattern contains illegal character 'F' in part 'FRY'; write minute, hour, day of the month, month and day of the week, like `0 3 * * mon-fri`
        `0 0 30 2 *` is not a time as in cron: there is no such day; write minute, hour, day of the month, month and day of the week, like `0 3 * * mon-fri`
        `* * * * * 2030` is not a time as in cron: it has 6 fields and not 5; write minute, hour, day of the month, month and day of the week, like `0 3 * * mon-fri`
        `@reboot` is not a time as in cron: Pattern must have 5 fields when seconds are disallowed; write minute, hour, day of the month, month and day of the week, like `0 3 * * mon-fri`
        `a\x1b[2J b c d e` is not a time as in cron: CronPattern contains illegal character 'A' in part 'A\x1b[2J'; write minute, hour, day of the month, month and day of the week, like `0 3 * * mon-fri`
        `1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,…` is not a time as in cron: it is longer than 100 bytes; write minute, hour, day of the month, month and day of the week, like `0 3 * * mon-fri`
        ");
    }

    #[test]
    fn a_window_is_open_in_its_minutes() {
        let window = cron("* 22-23 * * sat");
        for (time, open) in [
            ("2026-11-21T21:59:59.999Z", false),
            ("2026-11-21T22:00:00Z", true),
            ("2026-11-21T23:59:59.999Z", true),
            ("2026-11-22T00:00:00Z", false),
            ("2026-11-22T22:30:00Z", false),
        ] {
            assert_eq!(window.holds(at(time)), open, "{time}");
        }
    }

    #[test]
    fn what_was_missed_is_made_up_for_once_or_left_out() {
        let since = at("2026-11-20T12:00:00Z");
        let skip = timing("0 * * * *", None, Missed::Skip);
        let run = timing("0 * * * *", None, Missed::Run);
        assert_eq!(skip.due("a", since, at("2026-11-20T12:59:59Z")), None);
        // On time.
        let due = skip.due("a", since, at("2026-11-20T13:00:01Z"));
        assert_eq!(due.and_then(|d| d.start), Some(at("2026-11-20T13:00:00Z")));
        // A night without a broker.
        let morning = at("2026-11-21T06:30:00Z");
        let last = at("2026-11-21T06:00:00Z");
        assert_eq!(
            skip.due("a", since, morning),
            Some(Due {
                start: None,
                until: last,
                left_out: 18
            })
        );
        assert_eq!(
            run.due("a", since, morning),
            Some(Due {
                start: Some(last),
                until: last,
                left_out: 17
            })
        );
        // Years of it, minute by minute.
        let minutely = timing("* * * * *", Some("3m"), Missed::Run);
        let due = minutely
            .due("a", at("2020-01-01T00:00:00Z"), morning)
            .expect("it is due");
        assert!(elapsed(due.until, morning) <= Duration::from_secs(240));
        assert_eq!((due.start, due.left_out), (Some(due.until), Due::MANY));
    }

    #[test]
    fn a_timing_has_one_form() {
        let timing = timing("0 3 * * MON-FRI", Some("300s"), Missed::Run);
        let text = serde_json::to_string(&timing).expect("it has a form");
        insta::assert_snapshot!(text, @r#"
        {"cron":"0 3 * * mon-fri","jitter":"5m","missed":"run"}
        "#);
        let read: Timing = serde_json::from_str(&text).expect("it can be read");
        assert_eq!(read, timing);
    }

    proptest! {
        /// However often somebody looks: every time is started once, late by
        /// no more than the jitter and one look.
        #[test]
        fn each_time_is_started_once(looks in proptest::collection::vec(1..50i64, 1..200), jitter in 0..1800u64) {
            let jitter = format!("{jitter}s");
            let timing = timing("*/7 * * * *", Some(&jitter), Missed::Skip);
            let begin = at("2026-11-21T00:00:00Z");
            let (mut since, mut now) = (begin, begin);
            let mut started = Vec::new();
            for look in looks {
                now += jiff::SignedDuration::from_secs(look);
                if let Some(due) = timing.due("nightly", since, now) {
                    prop_assert!(due.until > since);
                    since = due.until;
                    started.extend(due.start);
                }
            }
            let all: Vec<Timestamp> = timing
                .cron
                .all(begin)
                .take_while(|time| *time <= since)
                .collect();
            prop_assert!(all.iter().all(|time| timing.starts("nightly", *time) <= now));
            // Two that fall into one look are one start.
            prop_assert!(started.iter().all(|time| all.contains(time)));
            prop_assert!(started.windows(2).all(|pair| pair[0] < pair[1]));
        }

        #[test]
        fn hostile_text_is_refused_without_a_panic(text in ".{0,60}") {
            if let Ok(cron) = text.parse::<Cron>() {
                prop_assert_eq!(cron.to_string().parse::<Cron>(), Ok(cron));
            }
        }

        #[test]
        fn hostile_fields_are_refused_without_a_panic(text in "[0-9*/,#lLwW+-]{1,6}( [0-9*/,#lLwW?+-]{1,6}){4}") {
            if let Ok(cron) = text.parse::<Cron>() {
                let now = at("2026-11-21T12:34:56Z");
                if let Some(next) = cron.next(now) {
                    prop_assert!(next > now);
                    prop_assert!(cron.holds(next), "{} {}", text, next);
                }
            }
        }
    }
}
