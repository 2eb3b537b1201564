//! What has to be said in the end, for each position and whoever was killed
//! there: pure.

use std::fmt;

use muster_tests::stops::Position;

use super::scene::Shape;

/// Who is killed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Victim {
    /// The broker.
    Broker,
    /// An agent: the one that is at the position, else the first node's.
    Agent,
    /// The NATS server.
    Nats,
    /// `muster up` itself, whose children live on.
    Up,
}

impl fmt::Display for Victim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Broker => "the broker",
            Self::Agent => "the agent",
            Self::Nats => "nats-server",
            Self::Up => "`muster up`",
        })
    }
}

/// How far a node is with its step.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Progress {
    /// Nothing is on its disk.
    Nothing,
    /// It waits for its turn, and that is on its disk.
    Queued,
    /// `started` is, and no process was made.
    Started,
    /// Its process runs.
    Running,
    /// Its process has ended, and that is not on its disk.
    Ended,
    /// `finished` is on its disk.
    Finished,
}

/// What is said of a node, and what its counter shows.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Expected {
    /// Its outcome is one of these.
    pub(super) outcomes: &'static [&'static str],
    /// How often it may have begun.
    pub(super) begun: &'static [usize],
    /// How often it may have come to its end.
    pub(super) ended: &'static [usize],
    /// What the reason says, if it is not the usual outcome.
    pub(super) reason: Option<&'static str>,
}

const fn expected(
    outcomes: &'static [&'static str],
    begun: &'static [usize],
    ended: &'static [usize],
) -> Expected {
    Expected {
        outcomes,
        begun,
        ended,
        reason: None,
    }
}

/// How far `node` is while somebody is held at `position`; `seen` is where
/// everybody was before.
pub(super) fn progress(node: &str, position: &Position, seen: &[Position]) -> Progress {
    let own = |p: &&Position| p.who == node;
    let last = seen.iter().rfind(own);
    let queued = || {
        seen.iter()
            .any(|p| own(&p) && p.point == "agent.queue.after")
    };
    let at = if position.who == node {
        Some(position)
    } else {
        last
    };
    match at.map(|p| p.point.as_str()) {
        Some("agent.queue.after") => Progress::Queued,
        Some("agent.start.before") if queued() => Progress::Queued,
        None | Some("agent.verified" | "agent.queue.before" | "agent.start.before") => {
            Progress::Nothing
        }
        Some("agent.start.after") => Progress::Started,
        Some("agent.spawned" | "agent.process.before" | "agent.process.after") => Progress::Running,
        Some("agent.finish.before") => Progress::Ended,
        Some(_) => Progress::Finished,
    }
}

/// What is expected of a node whose own agent lives, of a run that exists.
pub(super) fn untouched(shape: Shape) -> Expected {
    match shape {
        Shape::Plain | Shape::OneByOne | Shape::Queued => expected(&["succeeded"], &[1], &[1]),
        Shape::Cancelled => expected(&["cancelled"], &[1], &[0]),
    }
}

/// What is expected of a node whose agent was killed there.
pub(super) fn killed(shape: Shape, at: Progress) -> Expected {
    let ended = "the agent ended while the command ran";
    match at {
        // It is asked again when it is back.
        Progress::Nothing => untouched(shape),
        // Its turn may never come; it is not begun behind anybody's back.
        Progress::Queued => Expected {
            reason: Some("it never ran"),
            ..expected(&["cancelled"], &[0], &[0])
        },
        Progress::Started => Expected {
            reason: Some(ended),
            ..expected(&["unknown"], &[0], &[0])
        },
        // The orphan is found and ended before it comes to its end.
        Progress::Running => Expected {
            reason: Some(ended),
            ..expected(&["unknown"], &[0, 1], &[0])
        },
        Progress::Ended => {
            let all: &[usize] = if shape == Shape::Cancelled {
                &[0]
            } else {
                &[1]
            };
            Expected {
                reason: Some(ended),
                ..expected(&["unknown"], &[1], all)
            }
        }
        Progress::Finished => untouched(shape),
    }
}

/// Whether a run whose broker was killed there was never begun: not all of its
/// nodes were written down. Of one of which nothing was, nobody knows, and who
/// asked for it asks again.
pub(super) fn never_begun(position: &Position) -> bool {
    position.is("broker.journal.after", "created")
        || position.is("broker.journal.before", "targets")
}

#[test]
fn what_is_expected_follows_from_the_position() {
    let place = |who: &str, point: &str, what: &str| Position {
        who: who.into(),
        point: point.into(),
        what: what.into(),
        nth: 1,
    };
    // Each place of an agent, in order, with what its disk holds there.
    let own = [
        ("agent.verified", Progress::Nothing),
        ("agent.queue.before", Progress::Nothing),
        ("agent.queue.after", Progress::Queued),
        ("agent.start.before", Progress::Nothing),
        ("agent.start.after", Progress::Started),
        ("agent.spawned", Progress::Running),
        ("agent.process.before", Progress::Running),
        ("agent.process.after", Progress::Running),
        ("agent.finish.before", Progress::Ended),
        ("agent.finish.after", Progress::Finished),
        ("agent.report.before", Progress::Finished),
        ("agent.report.after", Progress::Finished),
        ("agent.acknowledged", Progress::Finished),
    ];
    for (point, at) in own {
        let here = place("a-1", point, "");
        assert_eq!(progress("a-1", &here, &[]), at, "{point}");
        // Somebody else's place says nothing of it; its own last one does.
        assert_eq!(progress("a-2", &here, &[]), Progress::Nothing);
        let other = place("broker", "broker.journal.before", "outcomes");
        assert_eq!(progress("a-1", &other, &[here]), at, "{point}");
    }
    // What can be known is known: only where the process was not seen to its
    // end, or not written down, it is not.
    let outcomes = |shape, at| killed(shape, at).outcomes;
    for shape in [Shape::Plain, Shape::OneByOne] {
        for known in [Progress::Nothing, Progress::Finished] {
            assert_eq!(outcomes(shape, known), ["succeeded"]);
        }
    }
    for at in [Progress::Started, Progress::Running, Progress::Ended] {
        for shape in [Shape::Plain, Shape::OneByOne, Shape::Cancelled] {
            assert_eq!(outcomes(shape, at), ["unknown"]);
        }
    }
    assert_eq!(killed(Shape::Plain, Progress::Started).begun, [0]);
    assert_eq!(killed(Shape::Plain, Progress::Running).ended, [0]);
    assert_eq!(killed(Shape::Plain, Progress::Ended).ended, [1]);
    assert_eq!(killed(Shape::Cancelled, Progress::Ended).ended, [0]);
    assert_eq!(
        outcomes(Shape::Cancelled, Progress::Finished),
        ["cancelled"]
    );
}
