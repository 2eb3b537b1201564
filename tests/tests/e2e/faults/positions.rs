//! `kill -9` at every position of a run's journal, and of the nodes' own
//! journals: the broker, the agent, nats-server and `muster up`, one position
//! a run.
//!
//! A dry run lists the positions, so that "every" is by construction. Then, for
//! each of them, a run is held exactly there, one process is killed, all go on,
//! and in the end it is said what can be known, and nothing was done twice.

mod expect;
mod scene;

use std::collections::BTreeSet;

use muster_tests::stops::{Position, kinds};

use self::expect::Victim;
use self::scene::{Scene, Shape};

/// Kinds of positions of a run that goes well.
const PLAIN: [&str; 20] = [
    "agent.acknowledged",
    "agent.finish.after",
    "agent.finish.before",
    "agent.process.after",
    "agent.process.before",
    "agent.report.after",
    "agent.report.before",
    "agent.spawned",
    "agent.start.after",
    "agent.start.before",
    "agent.verified",
    "broker.answer.before stored",
    "broker.journal.after created",
    "broker.journal.after finished",
    "broker.journal.after intent",
    "broker.journal.after outcomes",
    "broker.journal.after targets",
    "broker.send.after call",
    "broker.send.before call",
    // With every `after` there is a `before`: see `listed`.
    "broker.journal.before created",
];

/// The positions that a dry run passes. Repeats of messages depend on time and
/// are none.
fn listed(shape: Shape, scene: &mut Scene) -> Vec<Position> {
    let all = scene.dry_run();
    let kinds = kinds(&all);
    for kind in PLAIN {
        assert!(kinds.contains_key(kind), "no {kind} in {kinds:#?}");
    }
    for (kind, times) in &kinds {
        let before = kind.replace(".after", ".before");
        if kind.starts_with("broker.") {
            assert_eq!(kinds.get(&before), Some(times), "{kind} in {kinds:#?}");
        }
    }
    for node in scene::NAMES {
        let own = all.iter().filter(|p| p.who == node).count();
        let more = if shape == Shape::Queued { 2 } else { 0 };
        assert_eq!(own, 11 + more, "{node} in {all:#?}");
    }
    let intents = kinds["broker.journal.after intent"];
    assert_eq!(intents, if shape == Shape::OneByOne { 2 } else { 1 });
    let once: BTreeSet<_> = all.iter().collect();
    assert_eq!(once.len(), all.len(), "a position twice: {all:#?}");
    all
}

/// Kills at each of these; `part` of `parts` of them, for tests side by side.
fn at_each(
    shape: Shape,
    victim: Victim,
    only: fn(&[Position], usize) -> bool,
    (part, parts): (usize, usize),
) {
    let mut scene = Scene::start(shape);
    let all = listed(shape, &mut scene);
    let mut killed = 0;
    for (index, position) in all.iter().enumerate() {
        if only(&all, index) && index % parts == part && chosen(position) {
            scene.kill_at(position, victim);
            killed += 1;
        }
    }
    assert!(
        killed > 3 || CHOOSE.is_some(),
        "only {killed} positions of {}",
        all.len()
    );
}

/// To look at one position alone: a part of its name, when this is built with
/// `MUSTER_POSITION=…` in the environment.
const CHOOSE: Option<&str> = option_env!("MUSTER_POSITION");

fn chosen(position: &Position) -> bool {
    CHOOSE.is_none_or(|part| position.to_string().contains(part))
}

fn every(_: &[Position], _: usize) -> bool {
    true
}

#[test]
fn the_broker_first_half() {
    at_each(Shape::Plain, Victim::Broker, every, (0, 2));
}

#[test]
fn the_broker_second_half() {
    at_each(Shape::Plain, Victim::Broker, every, (1, 2));
}

#[test]
fn the_agent_first_half() {
    at_each(Shape::Plain, Victim::Agent, every, (0, 2));
}

#[test]
fn the_agent_second_half() {
    at_each(Shape::Plain, Victim::Agent, every, (1, 2));
}

#[test]
fn nats_server_first_half() {
    at_each(Shape::Plain, Victim::Nats, every, (0, 2));
}

#[test]
fn nats_server_second_half() {
    at_each(Shape::Plain, Victim::Nats, every, (1, 2));
}

#[test]
fn muster_up() {
    at_each(Shape::Plain, Victim::Up, every, (0, 1));
}

/// What a run in batches does more: everything from the first outcome on.
fn between_batches(all: &[Position], index: usize) -> bool {
    let first = |point, what| all.iter().position(|p| p.is(point, what));
    let from = first("broker.journal.before", "outcomes").unwrap_or(0);
    index >= from && all[index].who == "broker"
}

#[test]
fn the_broker_between_batches() {
    at_each(Shape::OneByOne, Victim::Broker, between_batches, (0, 1));
}

#[test]
fn the_agent_between_batches() {
    at_each(Shape::OneByOne, Victim::Agent, between_batches, (0, 1));
}

/// What a cancel does more: everything from its event on.
fn from_the_cancel(all: &[Position], index: usize) -> bool {
    let from = all
        .iter()
        .position(|p| p.is("broker.journal.before", "cancelling"));
    index >= from.expect("somebody cancels")
}

#[test]
fn the_broker_while_a_run_is_cancelled() {
    at_each(Shape::Cancelled, Victim::Broker, from_the_cancel, (0, 1));
}

#[test]
fn the_agent_while_a_run_is_cancelled() {
    at_each(Shape::Cancelled, Victim::Agent, from_the_cancel, (0, 1));
}

#[test]
fn muster_up_while_a_run_is_cancelled() {
    at_each(Shape::Cancelled, Victim::Up, from_the_cancel, (0, 1));
}

/// What a node does more that has no room: the step waits for its turn.
fn in_the_queue(all: &[Position], index: usize) -> bool {
    let points = [
        "agent.queue.before",
        "agent.queue.after",
        "agent.start.before",
    ];
    points.contains(&all[index].point.as_str())
}

#[test]
fn the_agent_while_a_step_waits_for_its_turn() {
    at_each(Shape::Queued, Victim::Agent, in_the_queue, (0, 1));
}

#[test]
fn the_broker_while_a_step_waits_for_its_turn() {
    at_each(Shape::Queued, Victim::Broker, in_the_queue, (0, 1));
}

#[test]
fn nats_server_while_a_run_is_cancelled() {
    at_each(Shape::Cancelled, Victim::Nats, from_the_cancel, (0, 1));
}
