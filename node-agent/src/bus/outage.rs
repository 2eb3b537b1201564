//! What is said about the connection, for people: one line when it is lost,
//! one when it is there again, and seldom one in between.

use std::time::Duration;

use tokio::time::Instant;

/// How often it is said again why there is no connection.
const AGAIN_AFTER: Duration = Duration::from_secs(300);

/// The time without a connection, if there is none.
#[derive(Debug, Default)]
pub(super) struct Outage {
    /// When a connection on which the broker had welcomed the node ended.
    lost: Option<Instant>,
    /// What was said last, and when.
    said: Option<(String, Instant)>,
}

impl Outage {
    /// The connection is gone; what to say.
    pub(super) fn lost(&mut self, wait: Duration, now: Instant) -> String {
        self.lost.get_or_insert(now);
        format!("connection lost, trying again in {}", seconds(wait))
    }

    /// A try was in vain; what to say, if it is time to say something.
    pub(super) fn failed(&mut self, why: &str, wait: Duration, now: Instant) -> Option<String> {
        if let Some((before, at)) = &self.said
            && before == why
            && now.duration_since(*at) < AGAIN_AFTER
        {
            return None;
        }
        self.said = Some((why.to_owned(), now));
        let wait = seconds(wait);
        Some(match self.lost {
            Some(lost) => {
                let gone = seconds(now.duration_since(lost));
                format!(
                    "not connected for {gone}: {why}; trying again in {wait}, then ever more rarely"
                )
            }
            None => format!("{why}; trying again in {wait}, then ever more rarely"),
        })
    }

    /// The broker has welcomed the node; what to say, if there was an outage.
    pub(super) fn over(&mut self, now: Instant) -> Option<String> {
        self.said = None;
        let lost = self.lost.take()?;
        let gone = seconds(now.duration_since(lost));
        Some(format!("connected again after {gone}"))
    }
}

/// A time as people say it: `0.4 s`, `7 s`, `5 min`.
pub(super) fn seconds(time: Duration) -> String {
    match time.as_secs() {
        0..=1 => format!("{:.1} s", time.as_secs_f64()),
        2..=119 => format!("{:.0} s", time.as_secs_f64()),
        secs @ 120..=7_199 => format!("{} min", secs / 60),
        secs => format!("{} h", secs / 3_600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_two_lines_and_a_reason() {
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);
        let wait = Duration::from_millis(3_000);
        let mut outage = Outage::default();
        assert_eq!(outage.over(start), None);
        assert_eq!(
            outage.lost(wait, start),
            "connection lost, trying again in 3 s"
        );
        assert_eq!(
            outage.failed("nats://n cannot be reached: refused", wait, at(3)),
            Some(
                "not connected for 3 s: nats://n cannot be reached: refused; trying again in 3 s, then ever \
                 more rarely"
                    .to_owned()
            )
        );
        // The same again is not said for a while; another reason is.
        assert_eq!(
            outage.failed("nats://n cannot be reached: refused", wait, at(10)),
            None
        );
        assert!(outage.failed("another", wait, at(11)).is_some());
        assert_eq!(outage.failed("another", wait, at(300)), None);
        assert!(outage.failed("another", wait, at(311)).is_some());
        // A connection that ends at once begins no new outage.
        let _ = outage.lost(wait, at(400));
        assert_eq!(
            outage.over(at(420)),
            Some("connected again after 7 min".to_owned())
        );
        assert_eq!(outage.over(at(421)), None);
        // One that was never there has nothing to come back to.
        assert_eq!(
            outage.failed("another", Duration::from_millis(400), at(500)),
            Some("another; trying again in 0.4 s, then ever more rarely".to_owned())
        );
        assert_eq!(outage.over(at(501)), None);
    }
}
