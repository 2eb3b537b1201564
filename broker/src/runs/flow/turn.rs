//! One turn of a script, on a thread that may block, and what is answered
//! within it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use muster_protocol::envelope::Mode;
use muster_protocol::ids::{Serial, random_bytes};
use muster_protocol::names::LabelKey;
use muster_protocol::nodeset::NodeSet;
use muster_protocol::predicate::Predicate;
use muster_protocol::run::{FrozenSet, NodeState, Record, RunState};
use muster_protocol::text::printable;
use muster_protocol::units::{Amount, Timestamp};
use muster_scenarios::durable::{
    HostCall, Input, Member, Recorded, Records, Reply, Turn, spread, turn,
};
use serde_json::Value;
use tokio::sync::mpsc::UnboundedSender;

use super::super::engine::{Shared, lock};
use super::records::slept;
use super::stage::Score;
use super::{MOST_CALLS, MOST_LOG, MOST_SLEEPS};
use crate::inventory::Snapshot;

/// Bytes of a reply that is answered at once, as JSON; larger ones go their
/// own way, in parts.
const AT_ONCE: usize = 64 * 1024;
/// Bytes of everything that is answered at once in one turn, about: it is in
/// memory until the turn ends.
const ONE_TURN: u64 = 4 << 20;

/// The longest line of what a dry run would emit, in characters.
const MOST_LINE: usize = 1_000;

/// What came of a turn.
pub(in crate::runs) struct Turned {
    pub(super) turn: Turn,
    /// What was answered within it.
    pub(super) fresh: Vec<Record>,
    /// Whether anything could be.
    pub(super) live: bool,
}

/// What a turn begins with.
pub(super) struct Begin {
    pub(super) score: Arc<Score>,
    pub(super) input: Input,
    pub(super) records: Records,
    /// Whether calls are answered at once; else the first new one ends the
    /// turn.
    pub(super) live: bool,
    /// Bytes of log that the run has.
    pub(super) logged: u64,
    /// Ends the turn.
    pub(super) stop: Arc<AtomicBool>,
}

/// What `main` begins with, from the run's first events.
pub(super) fn input(state: &RunState) -> Input {
    let member = |serial: &Serial| {
        state.nodes.get(serial).map(|node: &NodeState| Member {
            serial: *serial,
            name: node.name.clone(),
        })
    };
    let set = |set: &FrozenSet| {
        let inside = state.order.iter().filter(|s| set.nodes.contains(**s));
        inside.filter_map(member).collect()
    };
    let sets = state.spec.main.iter().flat_map(|main| &main.sets);
    Input {
        params: state.spec.params.as_object().cloned().unwrap_or_default(),
        sets: sets.map(|(name, of)| (name.clone(), set(of))).collect(),
    }
}

/// What calls are answered from that need no waiting.
#[derive(Clone)]
pub(super) struct World {
    snapshot: Arc<Snapshot>,
    /// The run's nodes in the order in which they are taken.
    order: Arc<Vec<Serial>>,
    /// It is a dry run.
    dry: bool,
}

impl World {
    pub(super) fn new(shared: &Shared, state: &RunState) -> Self {
        Self {
            snapshot: shared.inventory.snapshot(),
            order: Arc::new(state.order.clone()),
            dry: state.spec.mode == Mode::Check,
        }
    }

    /// What a call returns that needs no waiting; `None` for those that do.
    pub(super) fn answer(&self, call: &HostCall) -> Option<Reply> {
        Some(match call {
            HostCall::Now => Reply::Value(Timestamp::now().to_string().into()),
            HostCall::Random { from, to } => Reply::Value(random(*from, *to).into()),
            HostCall::Log { .. } => Reply::Value(Value::Null),
            HostCall::Emit { .. } | HostCall::Sleep { .. } | HostCall::Contact { .. }
                if self.dry =>
            {
                Reply::Value(Value::Null)
            }
            HostCall::Where { nodes, predicate } => match Predicate::parse(predicate) {
                Ok(predicate) => Reply::Nodes(self.those(nodes, &predicate)),
                Err(error) => Reply::Error(error.to_string()),
            },
            HostCall::Spread { nodes, size, label } => {
                Reply::Batches(self.batches(nodes, *size, label))
            }
            _ => return None,
        })
    }

    fn those(&self, nodes: &NodeSet, predicate: &Predicate) -> NodeSet {
        let holds = |serial: &Serial| {
            self.snapshot
                .get(*serial)
                .is_some_and(|node| predicate.matches(&**node))
        };
        nodes.iter().filter(holds).collect()
    }

    fn batches(&self, nodes: &NodeSet, size: Amount, label: &LabelKey) -> Vec<NodeSet> {
        let value = |serial: Serial| {
            let node = self.snapshot.get(serial)?;
            node.assignment
                .labels
                .get(label)
                .map(|value| value.as_str())
        };
        let inside = self.order.iter().filter(|serial| nodes.contains(**serial));
        let nodes: Vec<(Serial, Option<&str>)> =
            inside.map(|serial| (*serial, value(*serial))).collect();
        spread(&nodes, size.of_rounded_up(nodes.len()))
    }
}

/// The line that a call adds to the run's log: a dry run says what it does not
/// do.
fn line(dry: bool, call: &HostCall) -> Option<String> {
    match call {
        HostCall::Log { text } => Some(text.clone()),
        HostCall::Emit { kind, fields } if dry => {
            let fields = match fields.is_empty() {
                true => String::new(),
                false => format!(" {}", Value::Object(fields.clone())),
            };
            let text = format!("would emit scenario.{kind}{fields}");
            Some(printable(&text, MOST_LINE))
        }
        HostCall::Sleep { span } if dry => Some(format!("would sleep {span}")),
        HostCall::Contact { node, within } if dry => {
            Some(format!("would wait for {node} for up to {within}"))
        }
        _ => None,
    }
}

/// What such a call returns, and its line; `None` for all others. The run has
/// `logged` bytes of log.
pub(super) fn said_at_once(
    dry: bool,
    call: &HostCall,
    logged: u64,
) -> Option<(Reply, Option<String>)> {
    let line = line(dry, call)?;
    if logged + line.len() as u64 + 1 > MOST_LOG {
        return Some((log_is_full(), None));
    }
    Some((Reply::Value(Value::Null), Some(line)))
}

pub(super) fn log_is_full() -> Reply {
    let most = MOST_LOG >> 20;
    Reply::Error(format!("a run's log takes {most} MiB at most"))
}

/// A whole number from one to another, both included.
fn random(from: i64, to: i64) -> i64 {
    let span = u128::from(to.abs_diff(from)) + 1;
    // The rest of the division by at most 2^64 is as good as even.
    let drawn = u128::from_be_bytes(random_bytes()) % span;
    let drawn = i128::try_from(drawn).unwrap_or_default() + i128::from(from);
    i64::try_from(drawn).unwrap_or(from)
}

/// What is said in the journal of a call that was answered at once.
struct Desk {
    world: World,
    live: bool,
    /// The lines of log calls.
    lines: Mutex<BTreeMap<u64, String>>,
    logged: AtomicU64,
    bytes: AtomicU64,
    slept: AtomicU64,
}

impl Desk {
    fn answer(&self, number: u64, call: &HostCall) -> Option<Reply> {
        if !self.live || number >= MOST_CALLS || self.bytes.load(Ordering::Relaxed) > ONE_TURN {
            return None;
        }
        if matches!(call, HostCall::Sleep { .. })
            && self.slept.fetch_add(1, Ordering::Relaxed) >= MOST_SLEEPS
        {
            return None;
        }
        if let Some(text) = line(self.world.dry, call) {
            let line = text.len() as u64 + 1;
            self.bytes.fetch_add(line, Ordering::Relaxed);
            if self.logged.fetch_add(line, Ordering::Relaxed) + line > MOST_LOG {
                return Some(log_is_full());
            }
            lock(&self.lines).insert(number, text);
        }
        let reply = self.world.answer(call)?;
        let bytes = serde_json::to_string(&reply).map_or(usize::MAX, |json| json.len());
        if bytes > AT_ONCE {
            return None;
        }
        self.bytes.fetch_add(bytes as u64 + 100, Ordering::Relaxed);
        Some(reply)
    }
}

/// Lets the script run as far as it comes, and tells `to` about it.
pub(super) fn begin(shared: &Arc<Shared>, world: World, begin: Begin, to: UnboundedSender<Turned>) {
    let turns = Arc::clone(&shared.stages.turns);
    shared.tasks.spawn(async move {
        // Never closed.
        let Ok(permit) = turns.acquire_owned().await else {
            return;
        };
        let turned = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            whole(world, begin)
        })
        .await;
        // A panic in it was caught: what is left is a runtime that ends.
        if let Ok(turned) = turned {
            let _ = to.send(turned);
        }
    });
}

fn whole(world: World, begin: Begin) -> Turned {
    let desk = Arc::new(Desk {
        world,
        live: begin.live,
        lines: Mutex::default(),
        logged: AtomicU64::new(begin.logged),
        bytes: AtomicU64::new(0),
        slept: AtomicU64::new(slept(&begin.records)),
    });
    let inside = Arc::clone(&desk);
    let known = begin.records.len() as u64;
    let (turn, fresh) = turn(
        &begin.score.program,
        &begin.input,
        begin.records,
        move |number, call| inside.answer(number, call),
        move || begin.stop.load(Ordering::Relaxed),
    );
    let mut lines = std::mem::take(&mut *lock(&desk.lines));
    let record = |(number, record): (u64, Recorded)| Record {
        call: record.call,
        hash: record.hash.to_string(),
        reply: serde_json::to_value(&record.reply).unwrap_or_default(),
        log: lines.remove(&number),
    };
    Turned {
        turn,
        fresh: (known..).zip(fresh).map(record).collect(),
        live: begin.live,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_drawn_number_is_between(from: i64, more in 0..u64::MAX) {
            let to = from.saturating_add_unsigned(more);
            let drawn = random(from, to);
            prop_assert!(from <= drawn && drawn <= to);
        }
    }

    #[test]
    fn every_number_is_drawn_at_some_time() {
        let all: std::collections::BTreeSet<i64> = (0..1_000).map(|_| random(-1, 2)).collect();
        assert_eq!(all, [-1, 0, 1, 2].into());
        assert_eq!(random(i64::MAX, i64::MAX), i64::MAX);
    }
}
