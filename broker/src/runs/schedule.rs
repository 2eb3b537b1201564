//! When a request is sent again, and when waiting for a node ends: pure.
//!
//! A [`Delivery`] knows, for each node that a run has sent to and that has no
//! outcome, what was sent and what came back. [`Delivery::schedule`] says what
//! is due; whoever acts on it says so ([`Delivery::copied`]). Time is a
//! [`Moment`] that the caller passes.

use std::collections::BTreeMap;
use std::time::Duration;

use muster_protocol::ids::Serial;

/// Pause before the first repeat; each further one is twice as long …
const FIRST_PAUSE: i64 = 500;
/// … with a millisecond more for so many open nodes: the answers of a large
/// fleet take a while to be read, and a repeat before that has every node
/// verify a signature for nothing …
const NODES_PER_MILLISECOND: i64 = 4;
/// … up to this.
const LONGEST_PAUSE: i64 = 4_000;
/// A node that got the request in the last moment still has so long to say it.
const ACK_SLACK: i64 = 2_000;
/// What a node may take beyond its timeout, to end a process tree and report.
const FINISH_SLACK: i64 = 15_000;
/// How long a cancel is tried, at least.
const CANCEL_AT_LEAST: i64 = 30_000;
/// After a restart of the broker, nodes have at least so long to bring what
/// they could not report in the meantime.
const RECOVERY_GRACE: i64 = 20_000;

/// A moment on the run's own monotonic clock, in milliseconds since its task
/// started; negative for what happened before.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Moment(pub(super) i64);

impl Moment {
    /// So much later.
    #[must_use]
    pub(super) fn plus(self, by: Duration) -> Self {
        Self(self.0.saturating_add(millis(by)))
    }

    /// So much earlier.
    #[must_use]
    pub(super) fn minus(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(millis(by)))
    }

    /// How long until this moment, seen from `now`; zero when it has passed.
    #[must_use]
    pub(super) fn after(self, now: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(now.0)).unwrap_or(0))
    }

    const fn ms(self, by: i64) -> Self {
        Self(self.0.saturating_add(by))
    }
}

fn millis(by: Duration) -> i64 {
    i64::try_from(by.as_millis()).unwrap_or(i64::MAX)
}

/// How copies of one message to one node fared.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Copies {
    /// How many were sent.
    sent: u32,
    /// Of these, how many went to nobody, as the server said.
    unheard: u32,
    /// Whether one may have reached the node without the server being able to
    /// say: it went to a group, or before this task knew.
    in_the_dark: bool,
    /// When the next one is due.
    next: Moment,
}

impl Copies {
    fn due(next: Moment) -> Self {
        Self {
            next,
            ..Self::default()
        }
    }

    /// Whether certainly none has arrived.
    fn none_arrived(self) -> bool {
        !self.in_the_dark && self.unheard >= self.sent
    }

    fn note(&mut self, now: Moment, how: Sent, open: usize) {
        self.sent += 1;
        self.in_the_dark |= how == Sent::ToGroup;
        let doublings = self.sent.saturating_sub(1).min(8);
        let crowd = i64::try_from(open).unwrap_or(i64::MAX) / NODES_PER_MILLISECOND;
        let first = FIRST_PAUSE.saturating_add(crowd).min(LONGEST_PAUSE);
        self.next = now.ms((first << doublings).min(LONGEST_PAUSE));
    }
}

/// How a copy was sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Sent {
    /// On a subject of several nodes: nobody says when one does not hear it.
    ToGroup,
    /// On the node's own subject, with a reply subject on which the server
    /// says when nobody hears it.
    ToNode,
}

/// Which message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Message {
    /// The call.
    Call,
    /// Its cancel.
    Cancel,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Ack {
    /// Nothing was heard.
    None,
    /// It said that it runs it.
    Accepted(Moment),
    /// Sent to before this task began: whether it was accepted is not known.
    Unclear,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Attempt {
    begun: Moment,
    ack: Ack,
    call: Copies,
    cancel: Copies,
}

/// Why a node is no longer waited for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum GivenUp {
    /// Every copy went to nobody: it has not run.
    NobodyListened {
        /// How many copies.
        copies: u32,
    },
    /// It was sent, and the node has said nothing.
    NotAcknowledged,
    /// It was accepted (or may have been), and no outcome came.
    NoOutcome,
    /// It was cancelled, and no outcome came.
    CancelUnanswered,
}

/// What is due.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Due {
    /// Send the call again to these; each was sent at least once.
    pub(super) call: Vec<Serial>,
    /// Send the cancel (again) to these.
    pub(super) cancel: Vec<Serial>,
    /// Stop waiting for these.
    pub(super) given_up: Vec<(Serial, GivenUp)>,
    /// Nothing else is due before this moment; `None` while nothing is open.
    pub(super) wake: Option<Moment>,
}

/// What was sent to the open nodes of a run, and what they said.
#[derive(Clone, Debug)]
pub(super) struct Delivery {
    deliver_within: i64,
    timeout: i64,
    cancelled: Option<Moment>,
    /// No node is given up before this moment.
    not_before: Moment,
    open: BTreeMap<Serial, Attempt>,
}

impl Delivery {
    /// Nothing sent yet.
    #[must_use]
    pub(super) fn new(deliver_within: Duration, timeout: Duration) -> Self {
        Self {
            deliver_within: millis(deliver_within),
            timeout: millis(timeout),
            cancelled: None,
            not_before: Moment(i64::MIN),
            open: BTreeMap::new(),
        }
    }

    /// The intent to send to these nodes is in the journal; say with
    /// [`Delivery::copied`] how the first copy went out.
    pub(super) fn begin(&mut self, nodes: impl IntoIterator<Item = Serial>, now: Moment) {
        for serial in nodes {
            let call = Copies::due(now);
            let attempt = Attempt {
                begun: now,
                ack: Ack::None,
                call,
                cancel: Copies::due(now),
            };
            self.open.insert(serial, attempt);
        }
    }

    /// A node that the journal says was sent to at `begun`, by a broker that
    /// is no more.
    pub(super) fn resume(&mut self, node: Serial, begun: Moment, now: Moment) {
        let call = Copies {
            in_the_dark: true,
            ..Copies::due(now)
        };
        let cancel = Copies {
            in_the_dark: true,
            ..Copies::due(now)
        };
        self.open.insert(
            node,
            Attempt {
                begun,
                ack: Ack::Unclear,
                call,
                cancel,
            },
        );
        self.not_before = self.not_before.max(now.ms(RECOVERY_GRACE));
    }

    /// A copy of a message went out to a node.
    pub(super) fn copied(&mut self, node: Serial, message: Message, how: Sent, now: Moment) {
        let open = self.open.len();
        if let Some(attempt) = self.open.get_mut(&node) {
            match message {
                Message::Call => attempt.call.note(now, how, open),
                Message::Cancel => attempt.cancel.note(now, how, open),
            }
        }
    }

    /// The server said that a copy to that node alone went to nobody.
    pub(super) fn nobody_heard(&mut self, node: Serial, message: Message) {
        if let Some(attempt) = self.open.get_mut(&node) {
            let copies = match message {
                Message::Call => &mut attempt.call,
                Message::Cancel => &mut attempt.cancel,
            };
            copies.unheard = (copies.unheard + 1).min(copies.sent);
        }
    }

    /// The node runs it. Whether that is news.
    pub(super) fn accepted(&mut self, node: Serial, now: Moment) -> bool {
        match self.open.get_mut(&node) {
            Some(attempt) if !matches!(attempt.ack, Ack::Accepted(_)) => {
                attempt.ack = Ack::Accepted(now);
                true
            }
            _ => false,
        }
    }

    /// The node has (re)connected: what it has not acknowledged is due now.
    pub(super) fn returned(&mut self, node: Serial, now: Moment) {
        if let Some(attempt) = self.open.get_mut(&node) {
            attempt.call.next = attempt.call.next.min(now);
            attempt.cancel.next = attempt.cancel.next.min(now);
        }
    }

    /// Somebody cancelled the run: no call is sent any more, cancels are.
    pub(super) fn cancel(&mut self, now: Moment) {
        if self.cancelled.is_none() {
            self.cancelled = Some(now);
            for attempt in self.open.values_mut() {
                attempt.cancel.next = now;
            }
        }
    }

    /// The node has forgotten what it did: whether it may have got the call,
    /// so that it must not be sent again.
    pub(super) fn may_have_begun(&self, node: Serial) -> bool {
        self.open
            .get(&node)
            .is_some_and(|attempt| attempt.ack != Ack::None || !attempt.call.none_arrived())
    }

    /// No node is given up before this moment.
    pub(super) fn none_before(&mut self, moment: Moment) {
        self.not_before = self.not_before.max(moment);
    }

    /// The node has its outcome.
    pub(super) fn settled(&mut self, node: Serial) {
        self.open.remove(&node);
    }

    /// The broker could not hear for so long: no deadline may count it.
    pub(super) fn was_deaf(&mut self, by: Duration) {
        let by = millis(by);
        for attempt in self.open.values_mut() {
            attempt.begun = attempt.begun.ms(by);
            if let Ack::Accepted(at) = &mut attempt.ack {
                *at = at.ms(by);
            }
        }
        self.cancelled = self.cancelled.map(|at| at.ms(by));
    }

    /// Whether no node is open.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// How long a copy of the call that is sent now may wait to be started.
    #[must_use]
    pub(super) fn start_within(&self, node: Serial, now: Moment) -> Duration {
        self.open.get(&node).map_or(Duration::ZERO, |a| {
            a.begun.ms(self.deliver_within).after(now)
        })
    }

    /// What is due now.
    #[must_use]
    pub(super) fn schedule(&self, now: Moment) -> Due {
        let mut due = Due::default();
        for (&serial, attempt) in &self.open {
            let (deadline, why) = self.deadline(attempt);
            if now >= deadline {
                due.given_up.push((serial, why));
                continue;
            }
            let mut wake = deadline;
            let (list, next) = match self.cancelled {
                Some(_) => (&mut due.cancel, Some(attempt.cancel.next)),
                None => (&mut due.call, self.next_call(attempt, now)),
            };
            if let Some(next) = next {
                if next <= now {
                    list.push(serial);
                } else {
                    wake = wake.min(next);
                }
            }
            due.wake = Some(due.wake.map_or(wake, |w| w.min(wake)));
        }
        due
    }

    /// When the call is to be repeated, while it still can be.
    fn next_call(&self, attempt: &Attempt, now: Moment) -> Option<Moment> {
        let open = !matches!(attempt.ack, Ack::Accepted(_));
        let end = attempt.begun.ms(self.deliver_within);
        (open && now < end && attempt.call.next < end).then_some(attempt.call.next)
    }

    fn deadline(&self, attempt: &Attempt) -> (Moment, GivenUp) {
        let delivered = attempt.begun.ms(self.deliver_within);
        let finish = |from: Moment| from.ms(self.timeout).ms(FINISH_SLACK);
        let (mut at, mut why) = match attempt.ack {
            Ack::Accepted(at) => (finish(at), GivenUp::NoOutcome),
            Ack::Unclear => (finish(delivered), GivenUp::NoOutcome),
            Ack::None if attempt.call.none_arrived() && attempt.call.sent > 0 => (
                delivered,
                GivenUp::NobodyListened {
                    copies: attempt.call.sent,
                },
            ),
            Ack::None => (delivered.ms(ACK_SLACK), GivenUp::NotAcknowledged),
        };
        if let Some(cancelled) = self.cancelled {
            let until = cancelled.ms(self.deliver_within.max(CANCEL_AT_LEAST));
            if until < at {
                (at, why) = (until, GivenUp::CancelUnanswered);
            }
            // It has not started and cannot any more.
            if attempt.ack == Ack::None && attempt.call.none_arrived() && attempt.cancel.unheard > 0
            {
                (at, why) = (
                    cancelled,
                    GivenUp::NobodyListened {
                        copies: attempt.call.sent,
                    },
                );
            }
        }
        (at.max(self.not_before), why)
    }
}

#[cfg(test)]
mod tests;
