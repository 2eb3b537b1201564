//! Times, durations, counts and percentages as people write them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::text_form::text_form;

/// A moment in UTC; RFC 3339 in JSON.
pub type Timestamp = jiff::Timestamp;

/// `at` moved by `by`, or the last moment that can be said.
#[must_use]
pub fn after(at: Timestamp, by: Duration) -> Timestamp {
    at.checked_add(by).unwrap_or(Timestamp::MAX)
}

/// How far `later` is behind `earlier`; zero when it is not later.
#[must_use]
pub fn elapsed(earlier: Timestamp, later: Timestamp) -> Duration {
    Duration::try_from(later.duration_since(earlier)).unwrap_or_default()
}

/// Why a text is not a duration, a count or a percentage.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{text}` is not {what}; write it like {example}")]
pub struct UnitError {
    text: String,
    what: &'static str,
    example: &'static str,
}

/// A length of time, written `250ms`, `30s`, `5m`, `1h30m`, `90d`; whole
/// milliseconds, at most ten years.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Span(Duration);

const UNITS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];
const MAX_SPAN_MS: u64 = 3_660 * 86_400_000;

impl Span {
    /// From whole seconds, at most ten years.
    #[must_use]
    pub const fn from_secs(secs: u64) -> Self {
        Self::from_millis(secs.saturating_mul(1000))
    }

    /// From milliseconds, at most ten years.
    #[must_use]
    pub const fn from_millis(ms: u64) -> Self {
        Self(Duration::from_millis(if ms > MAX_SPAN_MS {
            MAX_SPAN_MS
        } else {
            ms
        }))
    }

    /// The duration.
    #[must_use]
    pub const fn get(self) -> Duration {
        self.0
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        if rest == 0 {
            return f.write_str("0s");
        }
        for (unit, ms) in UNITS {
            if rest >= ms {
                write!(f, "{}{unit}", rest / ms)?;
                rest %= ms;
            }
        }
        Ok(())
    }
}

impl FromStr for Span {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let fail = || UnitError {
            text: crate::text::printable(text, 40),
            what: "a duration",
            example: "`30s`, `5m` or `1h30m`",
        };
        let mut rest = text;
        let mut total = 0u64;
        let mut last = u64::MAX;
        if rest.is_empty() || rest.len() > 40 {
            return Err(fail());
        }
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let number: u64 = rest[..digits].parse().map_err(|_| fail())?;
            rest = &rest[digits..];
            let letters = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
            let unit = &rest[..letters];
            rest = &rest[letters..];
            let (_, ms) = UNITS
                .iter()
                .find(|(name, _)| *name == unit)
                .ok_or_else(fail)?;
            // `5m1h` and `5m5m` are slips, not durations.
            if *ms >= last {
                return Err(fail());
            }
            last = *ms;
            total = number
                .checked_mul(*ms)
                .and_then(|n| total.checked_add(n))
                .ok_or_else(fail)?;
        }
        if total > MAX_SPAN_MS {
            return Err(fail());
        }
        Ok(Self(Duration::from_millis(total)))
    }
}
text_form!(Span, "^([0-9]{1,9}(d|h|m|s|ms))+$", 40);

/// A number of nodes, or a part of them: `10` or `25%`.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Amount {
    /// So many nodes.
    Count(u32),
    /// So many of each hundred, 0 to 100.
    Percent(u8),
}

impl Amount {
    /// How many of `total` that is, rounded up: `10%` of 5 nodes is one, so
    /// that a batch is never empty.
    #[must_use]
    pub fn of_rounded_up(self, total: usize) -> usize {
        match self {
            Self::Count(n) => (n as usize).min(total),
            Self::Percent(p) => (total * usize::from(p)).div_ceil(100),
        }
    }

    /// How many of `total` that is, rounded down: a budget of `10%` of 5
    /// nodes allows no failure.
    #[must_use]
    pub fn of_rounded_down(self, total: usize) -> usize {
        match self {
            Self::Count(n) => (n as usize).min(total),
            Self::Percent(p) => total * usize::from(p) / 100,
        }
    }

    /// Whether it is zero, which makes no batch and no limit.
    #[must_use]
    pub fn is_zero(self) -> bool {
        matches!(self, Self::Count(0) | Self::Percent(0))
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(n) => write!(f, "{n}"),
            Self::Percent(p) => write!(f, "{p}%"),
        }
    }
}

impl FromStr for Amount {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let fail = || UnitError {
            text: crate::text::printable(text, 40),
            what: "a number of nodes or a percentage",
            example: "`10` or `25%`",
        };
        let digits = text.strip_suffix('%').unwrap_or(text);
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(fail());
        }
        if text.ends_with('%') {
            let percent: u8 = digits.parse().map_err(|_| fail())?;
            if percent > 100 {
                return Err(fail());
            }
            return Ok(Self::Percent(percent));
        }
        digits.parse().map(Self::Count).map_err(|_| fail())
    }
}
text_form!(Amount, "^[0-9]{1,9}%?$", 10);

/// A number of bytes, written `512KiB`, `10MiB`, `4GiB`, or as a plain number
/// where the format has them (TOML).
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Size(u64);

const SIZES: [(&str, u64); 4] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
];

impl Size {
    /// From a number of bytes.
    #[must_use]
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// Bytes.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// For people, rounded to one place: `8.1 MiB`.
    #[must_use]
    pub fn shown(self) -> String {
        for (unit, bytes) in SIZES {
            if self.0 >= bytes {
                let tenths = u128::from(self.0) * 10 / u128::from(bytes);
                return match tenths % 10 {
                    0 => format!("{} {unit}", tenths / 10),
                    tenth => format!("{}.{tenth} {unit}", tenths / 10),
                };
            }
        }
        format!("{} bytes", self.0)
    }
}

/// Exact: the largest unit that leaves no rest.
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, bytes) in SIZES {
            if self.0 >= bytes && self.0.is_multiple_of(bytes) {
                return write!(f, "{}{unit}", self.0 / bytes);
            }
        }
        write!(f, "{}", self.0)
    }
}

impl FromStr for Size {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let fail = || UnitError {
            text: crate::text::printable(text, 40),
            what: "a size",
            example: "`512MiB`, `4GiB` or `1048576`",
        };
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = text[..digits].parse().map_err(|_| fail())?;
        let factor = match &text[digits..] {
            "" | "B" => 1,
            unit => SIZES
                .iter()
                .find(|(name, _)| *name == unit)
                .map(|(_, bytes)| *bytes)
                .ok_or_else(fail)?,
        };
        number.checked_mul(factor).map(Self).ok_or_else(fail)
    }
}

impl serde::Serialize for Size {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Size {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Either;
        impl serde::de::Visitor<'_> for Either {
            type Value = Size;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size, like \"4GiB\" or 1048576")
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Size, E> {
                Ok(Size(number))
            }

            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Size, E> {
                u64::try_from(number).map(Size).map_err(E::custom)
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Size, E> {
                text.parse().map_err(E::custom)
            }
        }
        d.deserialize_any(Either)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_are_what_people_write() {
        for (text, ms) in [
            ("0s", 0),
            ("250ms", 250),
            ("30s", 30_000),
            ("5m", 300_000),
            ("1h30m", 5_400_000),
        ] {
            assert_eq!(
                text.parse::<Span>().map(|s| s.get().as_millis()),
                Ok(ms),
                "{text}"
            );
        }
        for bad in [
            "",
            "5",
            "m",
            "5 m",
            "-5m",
            "5m5m",
            "5m1h",
            "1.5h",
            "99999999999999999999s",
            "20000d",
        ] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
    }

    #[test]
    fn amounts_never_round_the_dangerous_way() {
        let ten = Amount::Percent(10);
        assert_eq!(ten.of_rounded_up(5), 1);
        assert_eq!(ten.of_rounded_down(5), 0);
        assert_eq!(Amount::Count(7).of_rounded_up(5), 5);
        for bad in ["", "%", "101%", "-1", "+1", "1.5", "1 %"] {
            assert!(bad.parse::<Amount>().is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_are_what_people_write() {
        for (text, bytes, shown) in [
            ("0", 0, "0 bytes"),
            ("4095", 4_095, "3.9 KiB"),
            ("10MiB", 10 << 20, "10 MiB"),
            ("4GiB", 4 << 30, "4 GiB"),
        ] {
            let size = text.parse::<Size>();
            assert_eq!(size, Ok(Size::new(bytes)), "{text}");
            assert_eq!(size.map(Size::shown).as_deref(), Ok(shown));
        }
        for bad in ["", "MiB", "1MB", "-1", "1.5GiB", "1 GiB", "99999999TiB"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn sizes_round_trip(bytes: u64) {
            let size = Size::new(bytes);
            prop_assert_eq!(size.to_string().parse::<Size>(), Ok(size));
        }

        #[test]
        fn spans_round_trip(ms in 0..MAX_SPAN_MS) {
            let span = Span::from_millis(ms);
            prop_assert_eq!(span.to_string().parse::<Span>(), Ok(span));
        }
    }
}
