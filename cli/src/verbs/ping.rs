//! `muster ping`

use clap::Args;
use muster_protocol::api::{PingAnswer, PingRequest};
use muster_protocol::units::{Span, Timestamp};

use crate::Context;
use crate::failure::{Failure, NOT_ALL};
use crate::ui::time::{ago, round_trip};
use crate::ui::{Paint, count, pad, width};
use crate::verbs::now;

/// Arguments of `muster ping`.
#[derive(Args, Debug)]
pub struct PingArgs {
    /// Which nodes
    #[arg(value_name = "PREDICATE", default_value = "*")]
    pub predicate: String,
    /// How long to wait for the last answer, at most 60s [default: 2s]
    #[arg(long, value_name = "TIME")]
    pub timeout: Option<Span>,
    /// Names that no node has are meant
    #[arg(long)]
    pub allow_unknown: bool,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Asks who is there.
///
/// # Errors
/// [`Failure`].
pub async fn run(context: &Context, args: &PingArgs) -> Result<u8, Failure> {
    let request = PingRequest {
        predicate: args.predicate.clone(),
        allow_unknown: args.allow_unknown,
        timeout: args.timeout,
    };
    let answer = context.client()?.ping(&request).await?;
    if args.json {
        context.term.json(&answer)?;
    } else {
        context
            .term
            .say(&render(&answer, context.term.out, now()))?;
    }
    Ok(if answer.silent.is_empty() { 0 } else { NOT_ALL })
}

/// The smallest value that `percent` of all do not exceed; `sorted` is not
/// empty.
fn percentile(sorted: &[u64], percent: usize) -> u64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).or(sorted.last()).copied().unwrap_or(0)
}

/// What was answered, and by whom not.
#[must_use]
pub fn render(answer: &PingAnswer, paint: Paint, now: Timestamp) -> String {
    let mut out = format!(
        "{} of {} answered in {}\n",
        answer.answered.len(),
        count(answer.asked as usize, "node"),
        round_trip(answer.total_us)
    );
    let mut times: Vec<u64> = answer.answered.iter().map(|r| r.us).collect();
    times.sort_unstable();
    if let Some(max) = times.last() {
        out.push_str("round trip");
        for percent in [50, 95, 99] {
            out.push_str(&format!(
                "  p{percent} {}",
                round_trip(percentile(&times, percent))
            ));
        }
        out.push_str(&format!("  max {}\n", round_trip(*max)));
    }
    let columns = answer
        .silent
        .iter()
        .map(|s| width(s.node.as_str()))
        .max()
        .unwrap_or(0);
    for silent in &answer.silent {
        let seen = silent.last_seen.map_or("never seen".to_owned(), |at| {
            format!("last seen {}", ago(at, now))
        });
        out.push_str(&format!(
            "{}  no answer  {}\n",
            pad(silent.node.as_str(), columns),
            paint.odd(&format!("{}, {seen}", silent.state.as_str()))
        ));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_protocol::api::{PingReply, Presence, Silent};

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let times: Vec<u64> = (1..=100).collect();
        assert_eq!([50, 95, 99].map(|p| percentile(&times, p)), [50, 95, 99]);
        assert_eq!([50, 95, 99].map(|p| percentile(&[7], p)), [7, 7, 7]);
        assert_eq!(percentile(&[1, 2], 50), 1);
    }

    #[test]
    fn who_is_silent_is_said() {
        let name = |text: &str| text.parse().expect("name");
        let answer = PingAnswer {
            asked: 4,
            answered: vec![
                PingReply {
                    node: name("web-01"),
                    us: 840,
                },
                PingReply {
                    node: name("web-02"),
                    us: 1_234,
                },
            ],
            silent: vec![
                Silent {
                    node: name("web-19"),
                    state: Presence::Down,
                    last_seen: Some("2026-11-21T05:56:00Z".parse().expect("time")),
                },
                Silent {
                    node: name("db"),
                    state: Presence::Never,
                    last_seen: None,
                },
            ],
            total_us: 2_001_000,
        };
        let now = "2026-11-21T06:00:00Z".parse().expect("time");
        insta::assert_snapshot!(render(&answer, Paint::plain(), now), @r"
        2 of 4 nodes answered in 2.00 s
        round trip  p50 840 µs  p95 1.2 ms  p99 1.2 ms  max 1.2 ms
        web-19  no answer  down, last seen 4 min ago
        db      no answer  never, never seen
        ");
    }
}
