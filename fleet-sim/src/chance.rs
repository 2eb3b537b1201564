//! What goes wrong, how often, and for whom: drawn from a seed, so that the
//! same fleet fails in the same way again.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use muster_protocol::text::printable;
use muster_protocol::units::Span;

/// Why a text is not a rate, a time or both.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{text}` is not {what}; write it like {example}")]
pub struct ChanceError {
    text: String,
    what: &'static str,
    example: &'static str,
}

impl ChanceError {
    fn new(text: &str, what: &'static str, example: &'static str) -> Self {
        let text = printable(text, 40);
        Self {
            text,
            what,
            example,
        }
    }
}

/// A part of all cases, from 0 to 1; written in percent: `0.5%`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rate(f64);

impl Rate {
    /// From 0 to 1.
    #[must_use]
    pub fn get(self) -> f64 {
        self.0
    }
}

impl FromStr for Rate {
    type Err = ChanceError;

    fn from_str(text: &str) -> Result<Self, ChanceError> {
        let fail = || ChanceError::new(text, "a rate", "`1%` or `0.05%`");
        let digits = text.strip_suffix('%').ok_or_else(fail)?;
        let plain = digits.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        let percent: f64 = digits.parse().map_err(|_| fail())?;
        if !plain || !(0.0..=100.0).contains(&percent) {
            return Err(fail());
        }
        Ok(Self(percent / 100.0))
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0 * 100.0)
    }
}

/// How likely something is within a minute: `0.1%/min`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MinuteRate(Rate);

impl FromStr for MinuteRate {
    type Err = ChanceError;

    fn from_str(text: &str) -> Result<Self, ChanceError> {
        let fail = || ChanceError::new(text, "a rate in time", "`0.1%/min`");
        let rate = text.strip_suffix("/min").ok_or_else(fail)?;
        rate.parse().map(Self).map_err(|_| fail())
    }
}

/// A time between two bounds: `0ms..10ms`, or always the same: `5ms`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Between {
    from: Duration,
    to: Duration,
}

impl FromStr for Between {
    type Err = ChanceError;

    fn from_str(text: &str) -> Result<Self, ChanceError> {
        let fail = || ChanceError::new(text, "a range of times", "`0ms..10ms` or `5ms`");
        let (from, to) = text.split_once("..").unwrap_or((text, text));
        let time = |text: &str| -> Result<Duration, ChanceError> {
            text.parse::<Span>().map(Span::get).map_err(|_| fail())
        };
        let (from, to) = (time(from)?, time(to)?);
        if to < from {
            return Err(fail());
        }
        Ok(Self { from, to })
    }
}

/// Some take another time: `5%:200ms..2s`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Slow {
    rate: Rate,
    time: Between,
}

impl FromStr for Slow {
    type Err = ChanceError;

    fn from_str(text: &str) -> Result<Self, ChanceError> {
        let fail = || ChanceError::new(text, "a rate and a range of times", "`5%:200ms..2s`");
        let (rate, time) = text.split_once(':').ok_or_else(fail)?;
        Ok(Self {
            rate: rate.parse().map_err(|_| fail())?,
            time: time.parse().map_err(|_| fail())?,
        })
    }
}

/// What goes wrong in this fleet, and how often.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Faults {
    /// Everything is drawn from it.
    pub seed: u64,
    /// Steps that fail.
    pub fail: Rate,
    /// Steps that the node declines.
    pub decline: Rate,
    /// Steps that are never answered.
    pub silent: Rate,
    /// Steps that take longer.
    pub slow: Slow,
    /// How long the others take.
    pub work: Between,
    /// Messages that arrive twice, in either direction.
    pub duplicate: Rate,
    /// Messages overtake each other.
    pub reorder: bool,
    /// Connections that end.
    pub drop_connection: MinuteRate,
}

/// How far messages may overtake each other.
const REORDER_WITHIN: Between = Between {
    from: Duration::ZERO,
    to: Duration::from_millis(20),
};
/// How far apart the two copies of a message arrive.
const COPY_WITHIN: Between = Between {
    from: Duration::ZERO,
    to: Duration::from_millis(50),
};

/// What becomes of one step on one node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Fate {
    /// It is never answered.
    pub silent: bool,
    /// The node's own check says no.
    pub decline: bool,
    /// It fails.
    pub fail: bool,
    /// How long it takes.
    pub work: Duration,
}

impl Faults {
    /// The fate of the `step`-th step that this node sees. It depends on the
    /// seed, the node's name and that number only: neither on the run's id,
    /// which is random, nor on the time.
    #[must_use]
    pub fn fate(&self, node: &str, step: u64) -> Fate {
        let mut draw = Draw::new(self.seed, node, step);
        // Always all of them in one order, so that one option does not
        // change what the others do.
        let silent = draw.hits(self.silent);
        let decline = draw.hits(self.decline);
        let fail = draw.hits(self.fail);
        let slow = draw.hits(self.slow.rate);
        let work = draw.within(if slow { self.slow.time } else { self.work });
        Fate {
            silent,
            decline,
            fail,
            work,
        }
    }

    /// Whether messages are tampered with at all.
    #[must_use]
    pub fn disturb(&self) -> bool {
        self.reorder || self.duplicate.0 > 0.0
    }

    /// When a message and perhaps its copy arrive.
    pub fn delays(&self, draw: &mut Draw) -> (Duration, Option<Duration>) {
        let first = if self.reorder {
            draw.within(REORDER_WITHIN)
        } else {
            Duration::ZERO
        };
        let copy = draw.hits(self.duplicate).then(|| draw.within(COPY_WITHIN));
        (first, copy)
    }

    /// How long a connection lives; `None` for ever.
    pub fn connection_life(&self, draw: &mut Draw) -> Option<Duration> {
        let rate = self.drop_connection.0.0;
        if rate <= 0.0 {
            return None;
        }
        // Each minute it ends with that probability, whatever its age.
        let per_minute = -(1.0 - rate.min(0.999_999)).ln();
        let minutes = -(1.0 - draw.unit()).ln() / per_minute;
        Duration::try_from_secs_f64(minutes * 60.0).ok()
    }
}

/// A row of numbers that look random, the same for the same beginning
/// (splitmix64). Nothing secret comes of it.
#[derive(Clone, Debug)]
pub struct Draw(u64);

impl Draw {
    /// Begins a row of its own for each node and number.
    #[must_use]
    pub fn new(seed: u64, node: &str, number: u64) -> Self {
        let mut draw = Self(seed);
        for chunk in node.as_bytes().chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            draw.0 ^= u64::from_le_bytes(word);
            draw.0 = draw.next();
        }
        draw.0 ^= number;
        draw.0 = draw.next();
        draw
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 up to, and without, 1.
    pub fn unit(&mut self) -> f64 {
        #[allow(
            clippy::cast_precision_loss,
            reason = "53 bits are what a double holds"
        )]
        let unit = (self.next() >> 11) as f64 / (1u64 << 53) as f64;
        unit
    }

    /// True so often.
    pub fn hits(&mut self, rate: Rate) -> bool {
        self.unit() < rate.0
    }

    /// A time within the bounds.
    pub fn within(&mut self, time: Between) -> Duration {
        time.from + (time.to - time.from).mul_f64(self.unit())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(seed: u64) -> Faults {
        Faults {
            seed,
            fail: "1%".parse().expect("rate"),
            decline: "0.5%".parse().expect("rate"),
            silent: "0.1%".parse().expect("rate"),
            slow: "5%:200ms..2s".parse().expect("slow"),
            work: "0ms..10ms".parse().expect("work"),
            duplicate: "1%".parse().expect("rate"),
            reorder: true,
            drop_connection: "10%/min".parse().expect("rate"),
        }
    }

    fn fates(faults: &Faults) -> Vec<Fate> {
        (0..20_000)
            .map(|n| faults.fate(&format!("sim-{:05}", n % 5000), n / 5000))
            .collect()
    }

    #[test]
    fn the_same_seed_gives_the_same_fates_and_another_gives_others() {
        assert_eq!(fates(&faults(7)), fates(&faults(7)));
        assert_ne!(fates(&faults(7)), fates(&faults(8)));
    }

    #[test]
    fn rates_are_kept() {
        let all = fates(&faults(1));
        let part = |test: fn(&Fate) -> bool| all.iter().filter(|fate| test(fate)).count();
        // 20,000 draws: within about five standard deviations.
        assert!((130..=270).contains(&part(|f| f.fail)));
        assert!((50..=150).contains(&part(|f| f.decline)));
        assert!((3..=45).contains(&part(|f| f.silent)));
        assert!((840..=1160).contains(&part(|f| f.work > Duration::from_millis(10))));
    }

    #[test]
    fn one_option_does_not_change_another() {
        let all = fates(&faults(3));
        let mut without = faults(3);
        without.decline = Rate::default();
        for (a, b) in all.iter().zip(fates(&without)) {
            assert_eq!((a.silent, a.fail, a.work), (b.silent, b.fail, b.work));
        }
    }

    #[test]
    fn connections_end_as_often_as_said() {
        let faults = faults(5);
        let ended = (0..10_000)
            .filter(|n| {
                let mut draw = Draw::new(faults.seed, "sim", *n);
                let life = faults.connection_life(&mut draw);
                life.is_some_and(|life| life < Duration::from_secs(60))
            })
            .count();
        assert!((850..=1150).contains(&ended), "{ended}");
        let mut draw = Draw::new(1, "sim", 1);
        assert_eq!(Faults::default().connection_life(&mut draw), None);
    }

    #[test]
    fn what_people_write_is_read_or_refused() {
        for bad in ["", "1", "%", "101%", "-1%", "nan%", "inf%", "1e1%", "1 %"] {
            assert!(bad.parse::<Rate>().is_err(), "{bad}");
        }
        for bad in ["", "10ms..1ms", "1..2", "..", "5ms.."] {
            assert!(bad.parse::<Between>().is_err(), "{bad}");
        }
        for bad in ["5%", "5%:", "200ms", "5:1ms"] {
            assert!(bad.parse::<Slow>().is_err(), "{bad}");
        }
        assert!("1%".parse::<MinuteRate>().is_err());
        assert!("0%/min".parse::<MinuteRate>().is_ok());
    }
}
