//! How often something may happen: `10/1h`.

use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use muster_protocol::text::printable;
use muster_protocol::units::Span;

/// Most that may happen within the time.
const MOST: u32 = 10_000_000;
/// Longest time that is counted.
const LONGEST: Duration = Duration::from_secs(86_400);

/// So many within that time.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rate {
    count: u32,
    per: Span,
}

/// Why a text is no rate.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{0}` is no rate; write it like `10/1h`: at least 1, within at most 24h")]
pub struct RateError(String);

impl Rate {
    /// So many within that many seconds.
    #[must_use]
    pub const fn new(count: u32, secs: u64) -> Self {
        Self {
            count,
            per: Span::from_secs(secs),
        }
    }

    /// How many.
    #[must_use]
    pub fn count(self) -> u32 {
        self.count
    }

    /// Within which time.
    #[must_use]
    pub fn per(self) -> Duration {
        self.per.get()
    }
}

impl FromStr for Rate {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Self, RateError> {
        let fail = || RateError(printable(text, 40));
        let (count, per) = text.split_once('/').ok_or_else(fail)?;
        let count: u32 = count.trim().parse().map_err(|_| fail())?;
        let per: Span = per.trim().parse().map_err(|_| fail())?;
        let fits = (1..=MOST).contains(&count) && !per.get().is_zero() && per.get() <= LONGEST;
        fits.then_some(Self { count, per }).ok_or_else(fail)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.count, self.per)
    }
}

/// A bucket that fills at a rate.
#[derive(Debug)]
pub struct Bucket(Mutex<Level>);

#[derive(Debug)]
struct Level {
    left: f64,
    at: Instant,
}

impl Bucket {
    /// A full one.
    #[must_use]
    pub fn full(rate: Rate, now: Instant) -> Self {
        Self(Mutex::new(Level {
            left: f64::from(rate.count),
            at: now,
        }))
    }

    /// Takes one out.
    ///
    /// # Errors
    /// How long to wait until there is one.
    pub fn take(&self, rate: Rate, now: Instant) -> Result<(), Duration> {
        let mut level = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let per_second = f64::from(rate.count) / rate.per().as_secs_f64();
        let waited = now.saturating_duration_since(level.at).as_secs_f64();
        level.left = (level.left + waited * per_second).min(f64::from(rate.count));
        level.at = now;
        if level.left < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - level.left) / per_second));
        }
        level.left -= 1.0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_and_shown() {
        let rate: Rate = "10/1h".parse().unwrap();
        assert_eq!((rate.count(), rate.per().as_secs()), (10, 3600));
        assert_eq!(rate.to_string(), "10/1h");
        for bad in [
            "",
            "10",
            "0/1h",
            "10/0s",
            "10/48h",
            "x/1h",
            "1/h",
            "-1/1h",
            "99999999999/1s",
        ] {
            assert!(bad.parse::<Rate>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_bucket_gives_what_is_in_it_and_fills_again() {
        let (rate, now) = (Rate::new(3, 60), Instant::now());
        let bucket = Bucket::full(rate, now);
        for _ in 0..3 {
            assert_eq!(bucket.take(rate, now), Ok(()));
        }
        let wait = bucket.take(rate, now).unwrap_err();
        assert!((19.0..=20.1).contains(&wait.as_secs_f64()), "{wait:?}");
        assert_eq!(bucket.take(rate, now + Duration::from_secs(21)), Ok(()));
        assert!(bucket.take(rate, now + Duration::from_secs(21)).is_err());
        // It never holds more than it did.
        let later = now + Duration::from_secs(9_000);
        assert_eq!(
            (0..10).filter(|_| bucket.take(rate, later).is_ok()).count(),
            3
        );
    }
}
