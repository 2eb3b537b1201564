//! What was handed to the connection and is not known to have arrived. Pure:
//! time is handed in.
//!
//! A line has arrived when the server showed it to us as others see it
//! (`echo-message`). Where it does not do that, a PING is sent behind the line:
//! the answer to it says that everything before it was dealt with.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::queue::Next;

/// Most lines that are under way: a server that is asked for more is one that
/// does not answer.
pub const MOST: usize = 256;
/// Least time between two PINGs.
const BETWEEN: Duration = Duration::from_secs(1);
/// An echo that has not come after so long is asked for.
const ECHO: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct Sent<T> {
    token: u64,
    at: Instant,
    next: Next<T>,
}

/// What is under way on one connection.
#[derive(Debug)]
pub struct Flight<T> {
    sent: VecDeque<Sent<T>>,
    next: u64,
    /// The PING that is not answered yet.
    ping: Option<u64>,
    /// When one was sent last.
    pinged: Option<Instant>,
}

impl<T> Default for Flight<T> {
    fn default() -> Self {
        Self {
            sent: VecDeque::new(),
            next: 0,
            ping: None,
            pinged: None,
        }
    }
}

impl<T> Flight<T> {
    /// A token for what is sent next.
    #[must_use]
    pub fn token(&self) -> u64 {
        self.next
    }

    /// It was handed over, with [`Flight::token`].
    pub fn sent(&mut self, next: Next<T>, now: Instant) {
        let token = self.next;
        self.next += 1;
        self.sent.push_back(Sent {
            token,
            at: now,
            next,
        });
    }

    /// Whether nothing is under way.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sent.is_empty()
    }

    /// How many lines are under way.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sent.len()
    }

    /// That one came back, or was refused.
    pub fn settled(&mut self, token: u64) -> Option<Next<T>> {
        let at = self.sent.iter().position(|s| s.token == token)?;
        self.sent.remove(at).map(|s| s.next)
    }

    /// When a PING is to be sent, if nothing changes.
    #[must_use]
    pub fn ping_due(&self, echo: bool, now: Instant) -> Option<Instant> {
        if self.ping.is_some() {
            return None;
        }
        let first = self.sent.front()?;
        let wait = if echo { first.at + ECHO } else { now };
        let pause = self.pinged.map_or(now, |at| at + BETWEEN);
        Some(wait.max(pause))
    }

    /// A PING is sent now, with this token.
    pub fn pinged(&mut self, now: Instant) -> u64 {
        let token = self.next;
        self.next += 1;
        self.ping = Some(token);
        self.pinged = Some(now);
        token
    }

    /// A PING was answered: everything before it was dealt with.
    pub fn ponged(&mut self, token: u64) -> Vec<Next<T>> {
        if self.ping != Some(token) {
            return Vec::new();
        }
        self.ping = None;
        let until = self.sent.partition_point(|s| s.token < token);
        self.sent.drain(..until).map(|s| s.next).collect()
    }

    /// The connection is gone: all of this is in doubt.
    pub fn gone(&mut self) -> Vec<Next<T>> {
        self.ping = None;
        self.pinged = None;
        self.sent.drain(..).map(|s| s.next).collect()
    }
}

#[cfg(test)]
mod tests {
    use muster_protocol::api::Urgency;

    use super::*;
    use crate::queue::{To, Unit};

    fn next(item: u64) -> Next<()> {
        Next {
            item,
            to: To::Channel("#ops".parse().expect("a channel")),
            unit: Unit::Line("x".into()),
            last: true,
            urgency: Urgency::News,
            about: None,
            tag: (),
        }
    }

    fn items(nexts: &[Next<()>]) -> Vec<u64> {
        nexts.iter().map(|n| n.item).collect()
    }

    #[test]
    fn a_pong_settles_what_was_sent_before_its_ping() {
        let start = Instant::now();
        let mut flight = Flight::default();
        assert_eq!(flight.ping_due(false, start), None);
        flight.sent(next(1), start);
        flight.sent(next(2), start);
        assert_eq!(flight.ping_due(false, start), Some(start));
        let token = flight.pinged(start);
        assert_eq!(flight.ping_due(false, start), None);
        flight.sent(next(3), start);
        assert!(flight.ponged(token + 7).is_empty());
        assert_eq!(items(&flight.ponged(token)), [1, 2]);
        assert_eq!(flight.ping_due(false, start), Some(start + BETWEEN));
        assert!(flight.ponged(token).is_empty());
        assert_eq!(items(&flight.gone()), [3]);
        assert!(flight.is_empty());
    }

    #[test]
    fn an_echo_that_does_not_come_is_asked_for() {
        let start = Instant::now();
        let mut flight = Flight::default();
        let token = flight.token();
        flight.sent(next(1), start);
        flight.sent(next(2), start);
        assert_eq!(flight.settled(token).map(|n| n.item), Some(1));
        assert!(flight.settled(token).is_none());
        assert_eq!(flight.ping_due(true, start), Some(start + ECHO));
        let ping = flight.pinged(start + ECHO);
        assert_eq!(items(&flight.ponged(ping)), [2]);
    }
}
