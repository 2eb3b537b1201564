//! What of a run's journal is to be appended again: pure.

use bytes::Bytes;
use muster_protocol::run::{FoldError, NodePhase, NodeResult, RunEvent, RunState};

/// What came of comparing two copies of a journal.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Merged {
    /// The store has everything.
    Whole,
    /// These are to follow on what the store has.
    Append(Vec<Bytes>),
    /// The known part cannot be put after what the store has: its beginning
    /// is not known, or it cannot be read.
    Impossible(&'static str),
}

/// Compares the journal that the store holds with what is known of it, both
/// in their order. What is known may lack its beginning.
pub(super) fn merge(store: &[Bytes], known: &[Bytes]) -> Merged {
    let Some(first) = known.first() else {
        return Merged::Whole;
    };
    // Where the known part begins in the store's.
    let at = match store.iter().position(|stored| stored == first) {
        Some(at) => at,
        None if store.is_empty() => 0,
        // All of what is known comes after what the store has, or beside it.
        None => store.len(),
    };
    let shared = store[at..]
        .iter()
        .zip(known)
        .take_while(|(stored, known)| stored == known)
        .count();
    if shared == known.len() {
        return Merged::Whole;
    }
    if shared > 0 && at + shared == store.len() {
        return fits(store, &known[shared..]);
    }
    fits(store, known)
}

/// Appends event by event what the fold takes; an outcome that comes too late
/// is written down as one.
fn fits(store: &[Bytes], known: &[Bytes]) -> Merged {
    let mut state: Option<RunState> = None;
    for payload in store {
        let Ok(event) = serde_json::from_slice::<RunEvent>(payload) else {
            return Merged::Impossible("the store holds an event that cannot be read");
        };
        // As whoever reads a journal: what does not follow is left out.
        let _ = follow(&mut state, &event);
    }
    let mut out = Vec::new();
    for payload in known {
        if store.contains(payload) {
            continue;
        }
        let Ok(event) = serde_json::from_slice::<RunEvent>(payload) else {
            return Merged::Impossible("an event of it cannot be read");
        };
        match follow(&mut state, &event) {
            Ok(()) => out.push(payload.clone()),
            Err(FoldError::Created) if state.is_none() => {
                return Merged::Impossible("its beginning is not known");
            }
            Err(_) => {
                let Some(state) = &mut state else { continue };
                for event in salvage(state, event) {
                    if state.apply(&event).is_ok()
                        && let Ok(json) = serde_json::to_vec(&event)
                    {
                        out.push(json.into());
                    }
                }
            }
        }
    }
    if out.is_empty() {
        Merged::Whole
    } else {
        Merged::Append(out)
    }
}

fn follow(state: &mut Option<RunState>, event: &RunEvent) -> Result<(), FoldError> {
    match state {
        Some(state) => state.apply(event),
        None => {
            *state = Some(RunState::begin(event)?);
            Ok(())
        }
    }
}

/// What of an event that does not follow can be kept: outcomes of nodes that
/// have none yet, and the others as late ones.
fn salvage(state: &RunState, event: RunEvent) -> Vec<RunEvent> {
    let RunEvent::Outcomes { results, at } = event else {
        return Vec::new();
    };
    let (mut new, mut late) = (Vec::new(), Vec::new());
    for result in results {
        match state.nodes.get(&result.serial).map(|node| &node.phase) {
            Some(NodePhase::Done(told)) if says_the_same(told, &result) => {}
            Some(NodePhase::Done(_)) => late.push(RunEvent::Late { result, at }),
            Some(NodePhase::Waiting | NodePhase::Sent { .. }) if !state.phase.is_final() => {
                new.push(result);
            }
            _ => {}
        }
    }
    let mut events = late;
    if !new.is_empty() {
        events.insert(0, RunEvent::Outcomes { results: new, at });
    }
    events
}

fn says_the_same(one: &NodeResult, other: &NodeResult) -> bool {
    (one.outcome, one.exit, one.signal) == (other.outcome, other.exit, other.signal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_protocol::ids::Serial;
    use muster_protocol::run::{Outcome, RunEnd};
    use serde_json::json;

    fn json(event: &RunEvent) -> Bytes {
        serde_json::to_vec(event).unwrap().into()
    }

    fn result(serial: u32, outcome: Outcome) -> NodeResult {
        NodeResult::new(Serial(serial), outcome, "because")
    }

    fn outcomes(second: u32, results: Vec<NodeResult>) -> RunEvent {
        let at = format!("2026-11-21T10:00:{second:02}Z").parse().unwrap();
        RunEvent::Outcomes { results, at }
    }

    /// A run on nodes 1 and 2: created, targets, sent, two outcomes, the end.
    fn journal() -> Vec<RunEvent> {
        let run: RunEvent = serde_json::from_value(json!({
            "event": "created",
            "spec": {
                "id": muster_protocol::ids::RunId::from_bytes([7; 16]), "principal": "ana",
                "door": "cli", "scenario": "command", "bundle": "0".repeat(64),
                "function": "run", "params": {}, "mode": "apply", "title": "true",
                "predicate": "role=web", "targets": 2,
                "options": {
                    "timeout": "5m", "deliver_within": "30s", "wait_down": false,
                    "output_bytes": 1000,
                },
                "created": "2026-11-21T10:00:00Z",
            },
        }))
        .unwrap();
        let at = "2026-11-21T10:00:01Z".parse().unwrap();
        vec![
            run,
            serde_json::from_value(json!({
                "event": "targets",
                "nodes": [{ "serial": 1, "name": "web-01" }, { "serial": 2, "name": "web-02" }],
            }))
            .unwrap(),
            RunEvent::Intent {
                batch: 0,
                nodes: [Serial(1), Serial(2)].into_iter().collect(),
                at,
            },
            outcomes(2, vec![result(1, Outcome::Succeeded)]),
            outcomes(3, vec![result(2, Outcome::Failed)]),
            RunEvent::Finished {
                end: RunEnd::Failed,
                at,
            },
        ]
    }

    fn bytes(events: &[RunEvent]) -> Vec<Bytes> {
        events.iter().map(json).collect()
    }

    fn fold(payloads: &[Bytes]) -> RunState {
        let events: Vec<RunEvent> = payloads
            .iter()
            .map(|p| serde_json::from_slice(p).unwrap())
            .collect();
        let mut state = RunState::begin(&events[0]).unwrap();
        for event in &events[1..] {
            state.apply(event).unwrap();
        }
        state
    }

    #[test]
    fn wherever_the_store_ends_the_rest_follows_and_a_second_time_nothing() {
        let whole = bytes(&journal());
        for end in 0..whole.len() {
            let Merged::Append(rest) = merge(&whole[..end], &whole) else {
                panic!("cut at {end}");
            };
            assert_eq!(rest, whole[end..]);
            assert_eq!(
                merge(&[&whole[..end], &rest].concat(), &whole),
                Merged::Whole
            );
        }
        assert_eq!(
            merge(&whole, &whole[..3]),
            Merged::Whole,
            "the store has more"
        );
        assert_eq!(merge(&whole, &[]), Merged::Whole);
    }

    #[test]
    fn a_known_part_without_its_beginning_follows_where_it_fits() {
        let whole = bytes(&journal());
        for from in 1..whole.len() {
            for end in 0..whole.len() {
                let merged = merge(&whole[..end], &whole[from..]);
                if end >= from {
                    assert_eq!(
                        merged,
                        Merged::Append(whole[end..].to_vec()),
                        "{from} {end}"
                    );
                } else if end == 0 {
                    assert!(matches!(merged, Merged::Impossible(_)), "{from} {end}");
                }
            }
        }
    }

    #[test]
    fn what_was_told_twice_and_differently_is_late_and_what_is_new_counts() {
        let whole = journal();
        // Somebody went on with the older journal: node 1 is unknown there.
        let mut other = whole[..3].to_vec();
        other.push(outcomes(9, vec![result(1, Outcome::Unknown)]));
        let store = bytes(&other);
        let Merged::Append(rest) = merge(&store, &bytes(&whole)) else {
            panic!("something is missing");
        };
        let state = fold(&[&store[..], &rest].concat());
        assert_eq!(
            state.nodes[&Serial(1)].phase,
            NodePhase::Done(result(1, Outcome::Unknown)),
            "the first outcome stays"
        );
        assert_eq!(
            state.nodes[&Serial(1)].late,
            [result(1, Outcome::Succeeded)]
        );
        assert_eq!(
            state.nodes[&Serial(2)].phase,
            NodePhase::Done(result(2, Outcome::Failed))
        );
        assert!(state.phase.is_final());
        // The same outcome, taken down at another time, is no news.
        let mut same = whole[..3].to_vec();
        same.push(outcomes(9, vec![result(1, Outcome::Succeeded)]));
        same.push(outcomes(9, vec![result(2, Outcome::Failed)]));
        same.push(whole[5].clone());
        assert_eq!(merge(&bytes(&same), &bytes(&whole)), Merged::Whole);
    }
}
