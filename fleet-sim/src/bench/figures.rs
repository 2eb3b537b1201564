//! Figures: how a measurement is summed up, compared and fitted.

use serde::Serialize;

/// Several measurements of one thing.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The one in the middle.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
    /// How many there were.
    pub count: usize,
}

impl Spread {
    /// Sums up; `None` when nothing was measured.
    #[must_use]
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let upper = sorted.len() / 2;
        let lower = (sorted.len() - 1) / 2;
        Some(Self {
            median: f64::midpoint(sorted[lower], sorted[upper]),
            min,
            max,
            count: sorted.len(),
        })
    }
}

/// The value below which a share of all lies, `share` from 0 to 1.
#[must_use]
pub fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index into a list of measurements"
    )]
    let at = (sorted.len().saturating_sub(1) as f64 * share.clamp(0.0, 1.0)).round() as usize;
    sorted.get(at).copied().unwrap_or_default()
}

/// The straight line through points by least squares: slope and height at 0.
/// `None` for fewer than two different places.
#[must_use]
pub fn line(points: &[(f64, f64)]) -> Option<(f64, f64)> {
    #[allow(clippy::cast_precision_loss, reason = "a handful of points")]
    let n = points.len() as f64;
    let mean_x = points.iter().map(|p| p.0).sum::<f64>() / n;
    let mean_y = points.iter().map(|p| p.1).sum::<f64>() / n;
    let spread = points.iter().map(|p| (p.0 - mean_x).powi(2)).sum::<f64>();
    if points.len() < 2 || spread <= 0.0 {
        return None;
    }
    let both = points
        .iter()
        .map(|p| (p.0 - mean_x) * (p.1 - mean_y))
        .sum::<f64>();
    let slope = both / spread;
    Some((slope, mean_y - slope * mean_x))
}

/// The exponent `e` of `y = c · x^e`, by least squares over the logarithms.
#[must_use]
pub fn exponent(points: &[(f64, f64)]) -> Option<f64> {
    let logs: Vec<_> = points
        .iter()
        .filter(|(x, y)| *x > 0.0 && *y > 0.0)
        .map(|(x, y)| (x.ln(), y.ln()))
        .collect();
    line(&logs).map(|(slope, _)| slope)
}

/// What a figure counts.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Milliseconds.
    Ms,
    /// Kibibytes.
    Kib,
    /// Mebibytes.
    Mib,
    /// Hundredths of one core.
    PercentOfACore,
    /// How many.
    Count,
    /// How many in a second.
    PerSecond,
}

impl Unit {
    /// As people read it.
    #[must_use]
    pub fn show(self, value: f64) -> String {
        match self {
            Self::Ms if value >= 100.0 => format!("{value:.0} ms"),
            Self::Ms => format!("{value:.1} ms"),
            Self::Kib => format!("{value:.1} KiB"),
            Self::Mib => format!("{value:.1} MiB"),
            Self::PercentOfACore => format!("{value:.3} %"),
            Self::Count => format!("{value:.0}"),
            Self::PerSecond => format!("{value:.0} /s"),
        }
    }
}

/// What is to be reached.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// At most so much, in the row's unit.
    AtMost(f64),
    /// At least so much, in the row's unit.
    AtLeast(f64),
    /// At most so many times the floor of the same run.
    TimesFloor(f64),
}

/// Whether it was.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The median is within the target.
    Met,
    /// It is not.
    Missed,
    /// There is no target: it is only said.
    Told,
    /// It could not be measured on this machine; a note says why.
    Skipped,
}

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// What was measured.
    pub what: String,
    /// What is to be reached.
    pub target: Option<Target>,
    /// In what it is counted.
    pub unit: Unit,
    /// What it was.
    #[serde(flatten)]
    pub spread: Spread,
    /// The median as a multiple of the floor's.
    pub floors: Option<f64>,
    /// Whether the target was reached.
    pub verdict: Verdict,
}

impl Row {
    /// A line without a target or a floor.
    #[must_use]
    pub fn told(what: impl Into<String>, unit: Unit, spread: Spread) -> Self {
        Self {
            what: what.into(),
            target: None,
            unit,
            spread,
            floors: None,
            verdict: Verdict::Told,
        }
    }

    /// A line that is judged by its median.
    #[must_use]
    pub fn at_most(what: impl Into<String>, unit: Unit, spread: Spread, most: f64) -> Self {
        Self {
            target: Some(Target::AtMost(most)),
            verdict: judge(spread.median <= most),
            ..Self::told(what, unit, spread)
        }
    }

    /// A line that is judged by its median, which is to be large.
    #[must_use]
    pub fn at_least(what: impl Into<String>, unit: Unit, spread: Spread, least: f64) -> Self {
        Self {
            target: Some(Target::AtLeast(least)),
            verdict: judge(spread.median >= least),
            ..Self::told(what, unit, spread)
        }
    }

    /// A line of what this machine cannot do.
    #[must_use]
    pub fn skipped(what: impl Into<String>, unit: Unit, target: Target) -> Self {
        let nothing = Spread {
            median: 0.0,
            min: 0.0,
            max: 0.0,
            count: 0,
        };
        Self {
            target: Some(target),
            verdict: Verdict::Skipped,
            ..Self::told(what, unit, nothing)
        }
    }

    /// A line that is judged by its multiple of the floor.
    #[must_use]
    pub fn of_floor(what: impl Into<String>, spread: Spread, floor: Spread, most: f64) -> Self {
        let floors = spread.median / floor.median;
        Self {
            target: Some(Target::TimesFloor(most)),
            floors: Some(floors),
            verdict: judge(floors <= most),
            ..Self::told(what, Unit::Ms, spread)
        }
    }
}

fn judge(met: bool) -> Verdict {
    if met { Verdict::Met } else { Verdict::Missed }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_an_even_number_lies_between_two() {
        let spread = Spread::of(&[4.0, 1.0, 3.0, 2.0]).expect("four");
        assert_eq!((spread.median, spread.min, spread.max), (2.5, 1.0, 4.0));
        assert_eq!(Spread::of(&[7.0]).expect("one").median, 7.0);
        assert_eq!(Spread::of(&[]), None);
        let many: Vec<f64> = (0..=100).map(f64::from).collect();
        assert_eq!(percentile(&many, 0.99), 99.0);
        assert_eq!(percentile(&[], 0.5), 0.0);
    }

    #[test]
    fn a_power_law_gives_its_exponent_back() {
        let points: Vec<_> = [1000.0, 5000.0, 20_000.0]
            .map(|x: f64| (x, 0.07 * x.powf(1.25)))
            .into();
        assert!((exponent(&points).expect("fits") - 1.25).abs() < 1e-9);
        let (slope, height) = line(&[(1.0, 5.0), (3.0, 9.0)]).expect("fits");
        assert!((slope - 2.0).abs() < 1e-9 && (height - 3.0).abs() < 1e-9);
        assert_eq!(line(&[(1.0, 5.0), (1.0, 9.0)]), None);
    }

    #[test]
    fn a_row_is_judged_by_its_median_and_by_the_floor_of_the_same_run() {
        let of = |v: f64| Spread::of(&[v]).expect("one");
        let row = Row::at_most("x", Unit::Ms, of(40.0), 40.0);
        assert_eq!(row.verdict, Verdict::Met);
        assert_eq!(
            Row::at_most("x", Unit::Ms, of(40.1), 40.0).verdict,
            Verdict::Missed
        );
        let quick = Row::at_least("x", Unit::PerSecond, of(99.0), 100.0);
        assert_eq!(quick.verdict, Verdict::Missed);
        let row = Row::of_floor("x", of(300.0), of(200.0), 1.4);
        assert_eq!((row.floors, row.verdict), (Some(1.5), Verdict::Missed));
    }
}
