//! Times and durations as people say them.

use std::time::Duration;

use muster_protocol::units::{Timestamp, elapsed};

/// `4 min ago`, `in 3 h`, `just now`.
#[must_use]
pub fn ago(at: Timestamp, now: Timestamp) -> String {
    if at > now {
        let left = elapsed(now, at);
        // Rounded to the nearest: 90 days are said as 90, also a second later.
        let half = match left.as_secs() {
            0..=1 => return "now".into(),
            2..=99 => 0,
            100..=5_999 => 30,
            6_000..=172_799 => 1_800,
            _ => 43_200,
        };
        format!("in {}", coarse(left + Duration::from_secs(half)))
    } else {
        let gone = elapsed(at, now);
        if gone.as_secs() < 2 {
            "just now".into()
        } else {
            format!("{} ago", coarse(gone))
        }
    }
}

/// One number and its unit, rounded down: `45 s`, `4 min`, `3 h`, `12 days`.
#[must_use]
pub fn coarse(time: Duration) -> String {
    match time.as_secs() {
        s @ 0..=99 => format!("{s} s"),
        s @ 100..=5_999 => format!("{} min", s / 60),
        s @ 6_000..=172_799 => format!("{} h", s / 3_600),
        s => format!("{} days", s / 86_400),
    }
}

/// How long something took: `0.31 s`, `12.4 s`, `3 min 20 s`, `2 h 5 min`.
#[must_use]
pub fn took(time: Duration) -> String {
    let s = time.as_secs();
    if time < Duration::from_secs(10) {
        format!("{:.2} s", time.as_secs_f64())
    } else if s < 60 {
        format!("{:.1} s", time.as_secs_f64())
    } else if s < 3_600 {
        format!("{} min {} s", s / 60, s % 60)
    } else {
        format!("{} h {} min", s / 3_600, s % 3_600 / 60)
    }
}

/// Microseconds of a round trip: `840 µs`, `1.2 ms`, `1.20 s`.
#[must_use]
pub fn round_trip(us: u64) -> String {
    match us {
        0..=999 => format!("{us} µs"),
        1_000..=999_999 => format!("{:.1} ms", us as f64 / 1e3),
        _ => format!("{:.2} s", us as f64 / 1e6),
    }
}

/// `2026-11-21 06:17:00` UTC, to the second.
#[must_use]
pub fn moment(at: Timestamp) -> String {
    let text = at.to_string();
    text.get(..19).unwrap_or(&text).replace('T', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_short_and_true() {
        let now: Timestamp = "2026-11-21T06:00:00Z".parse().expect("time");
        let at = |text: &str| ago(text.parse().expect("time"), now);
        assert_eq!(at("2026-11-21T05:59:59.5Z"), "just now");
        assert_eq!(at("2026-11-21T05:59:15Z"), "45 s ago");
        assert_eq!(at("2026-11-21T05:55:50Z"), "4 min ago");
        assert_eq!(at("2026-11-21T02:59:00Z"), "3 h ago");
        assert_eq!(at("2026-11-08T02:59:00Z"), "13 days ago");
        assert_eq!(at("2026-11-21T07:30:00Z"), "in 90 min");
        assert_eq!(at("2026-11-21T07:29:58Z"), "in 90 min");
        assert_eq!(at("2027-02-19T05:59:58Z"), "in 90 days");
        assert_eq!(took(Duration::from_millis(310)), "0.31 s");
        assert_eq!(took(Duration::from_millis(59_940)), "59.9 s");
        assert_eq!(took(Duration::from_secs(200)), "3 min 20 s");
        assert_eq!(took(Duration::from_secs(7_500)), "2 h 5 min");
        assert_eq!(round_trip(840), "840 µs");
        assert_eq!(round_trip(1_234), "1.2 ms");
        assert_eq!(moment(now), "2026-11-21 06:00:00");
    }
}
