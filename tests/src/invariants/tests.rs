//! The checker finds each contradiction that is put before it, and none where
//! there is none.

use muster_protocol::nodeset::NodeSet;
use muster_protocol::run::RunEnd;
use serde_json::json;

use super::*;
use crate::Said;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).expect("in range")
}

fn run_id() -> RunId {
    RunId::from_bytes([1; 16])
}

fn id() -> RequestId {
    RequestId {
        run: run_id(),
        step: 0,
    }
}

fn set(serials: &[u32]) -> NodeSet {
    serials.iter().map(|s| Serial(*s)).collect()
}

fn result(serial: u32, outcome: Outcome) -> NodeResult {
    let mut result = NodeResult::new(Serial(serial), outcome, "because");
    result.ms = (outcome == Outcome::Succeeded).then_some(5);
    result
}

fn created() -> RunEvent {
    let event = json!({"event": "created", "spec": {
        "id": run_id(), "principal": "ana", "door": "cli", "scenario": "command",
        "bundle": "00".repeat(32), "function": "run", "params": {"shell": "x"}, "mode": "apply",
        "title": "x", "predicate": "*", "targets": 2, "created": at(0),
        "options": {"timeout": "5m", "deliver_within": "15s", "output_bytes": 100},
    }});
    serde_json::from_value(event).expect("an event")
}

fn targets(serials: &[u32]) -> RunEvent {
    let nodes: Vec<_> = serials
        .iter()
        .map(|s| json!({"serial": s, "name": format!("n-{s}")}))
        .collect();
    serde_json::from_value(json!({"event": "targets", "nodes": nodes})).expect("an event")
}

fn intent(serials: &[u32], second: i64) -> RunEvent {
    RunEvent::Intent {
        batch: 0,
        nodes: set(serials),
        at: at(second),
    }
}

fn outcomes(results: Vec<NodeResult>) -> RunEvent {
    RunEvent::Outcomes {
        results,
        at: at(20),
    }
}

fn finished() -> RunEvent {
    RunEvent::Finished {
        end: RunEnd::Succeeded,
        at: at(21),
    }
}

fn journal(events: Vec<RunEvent>) -> Vec<RunJournal> {
    let events = events.into_iter().enumerate().map(|(n, event)| Recorded {
        sequence: n as u64 + 1,
        stored: match &event {
            RunEvent::Intent { at, .. } => *at,
            _ => at(0),
        },
        event,
    });
    vec![RunJournal {
        run: run_id(),
        events: events.collect(),
    }]
}

fn request(serials: &[u32], epoch: u64) -> Request {
    let request = json!({
        "v": 1, "cluster": "0".repeat(26), "epoch": epoch, "run": run_id(), "step": 0,
        "set": set(serials), "predicate": "*", "issued": at(5), "start_before": at(15),
        "principal": "ana", "door": "cli", "ask": {"do": "cancel"},
    });
    serde_json::from_value(request).expect("a request")
}

fn node(serial: u32) -> NodeJournal {
    NodeJournal {
        place: format!("n-{serial}"),
        serial: Serial(serial),
        epoch: 3,
        clock_off: false,
        steps: vec![Step {
            request: id(),
            state: "finished".into(),
            started: Some(at(6)),
            result: Some(result(serial, Outcome::Succeeded)),
            acknowledged: true,
            local: false,
            signed: Some(request(&[1, 2], 3)),
        }],
    }
}

fn effect(serial: u32, mark: Mark, second: i64) -> Effect {
    Effect {
        request: id(),
        serial: Serial(serial),
        name: format!("n-{serial}"),
        mark,
        at: at(second),
    }
}

/// What a run that went well leaves behind.
fn good() -> Evidence {
    let told = r#"{"type":"run_created","run":"RUN"}
{"type":"outcome","run":"RUN","node":"n-1","outcome":"succeeded"}
{"type":"run_finished","run":"RUN","state":"succeeded","nodes":{"n-1":"succeeded","n-2":"succeeded"}}
"#;
    Evidence {
        journals: journal(vec![
            created(),
            targets(&[1, 2]),
            intent(&[1, 2], 5),
            outcomes(vec![result(1, Outcome::Succeeded)]),
            outcomes(vec![result(2, Outcome::Succeeded)]),
            finished(),
        ]),
        nodes: vec![node(1), node(2)],
        effects: [1, 2]
            .into_iter()
            .flat_map(|s| [effect(s, Mark::Begin, 7), effect(s, Mark::End, 8)])
            .collect(),
        counted: [run_id()].into(),
        told: told_of(0, &told.replace("RUN", &run_id().to_string())),
        witnesses: vec![Testimony {
            request: id(),
            nodes: 2,
            most_on_a_node: 1,
        }],
        gone: BTreeSet::new(),
        restored: false,
        // And the other run that some tests have.
        recorded: Some([(run_id(), at(0)), (RunId::from_bytes([2; 16]), at(0))].into()),
    }
}

fn told_of(code: i32, out: &str) -> Vec<Told> {
    told(&Said {
        code,
        out: out.to_owned(),
        err: String::new(),
    })
}

/// What is found in evidence that was doctored.
fn found(doctor: impl FnOnce(&mut Evidence)) -> Vec<(Rule, String)> {
    let mut evidence = good();
    doctor(&mut evidence);
    violations(&evidence)
        .into_iter()
        .map(|v| (v.rule, v.to_string()))
        .collect()
}

/// Exactly this rule is violated, and the text names what matters.
#[track_caller]
fn breaks(rule: Rule, words: &[&str], doctor: impl FnOnce(&mut Evidence)) {
    let found = found(doctor);
    assert!(!found.is_empty(), "{rule:?} is not found to be violated");
    for (which, text) in &found {
        assert_eq!(*which, rule, "{found:#?}");
        assert!(
            words.iter().all(|w| text.contains(w)),
            "{words:?} in {text}"
        );
    }
}

fn events(evidence: &mut Evidence) -> &mut Vec<Recorded> {
    &mut evidence.journals[0].events
}

#[test]
fn nothing_is_found_where_nothing_is_wrong() {
    assert_eq!(found(|_| {}), []);
    assert_eq!(good().told.len(), 4);
}

#[test]
fn one_outcome_a_node_and_step() {
    breaks(Rule::OneOutcome, &["n-1", "failed"], |e| {
        let second = outcomes(vec![result(1, Outcome::Failed)]);
        events(e)[4].event = match second {
            RunEvent::Outcomes { mut results, at } => {
                results.push(result(2, Outcome::Succeeded));
                RunEvent::Outcomes { results, at }
            }
            other => other,
        };
    });
    // Also when the second says the same.
    breaks(Rule::OneOutcome, &["n-1"], |e| {
        let mut again = events(e)[3].clone();
        again.sequence = 99;
        events(e).insert(4, again);
    });
    breaks(Rule::OneOutcome, &["n-2", "no outcome"], |e| {
        events(e).remove(4);
        e.counted.clear();
        e.told.clear();
        e.nodes[1].steps[0].acknowledged = false;
    });
}

#[test]
fn nothing_runs_that_is_not_recorded_before() {
    breaks(Rule::Recorded, &["is not recorded"], |e| {
        e.recorded = Some([].into());
    });
    breaks(Rule::Recorded, &["is recorded at"], |e| {
        e.recorded = Some([(run_id(), at(9))].into());
    });
    assert_eq!(found(|e| e.recorded = None), []);
}

#[test]
fn a_journal_follows_on_itself() {
    breaks(Rule::Journal, &["follows on the end"], |e| {
        events(e).push(Recorded {
            sequence: 9,
            stored: at(30),
            event: RunEvent::Cancelling {
                by: "ana".parse().expect("a name"),
                at: at(30),
            },
        });
    });
    breaks(Rule::Journal, &["created"], |e| {
        events(e).remove(0);
    });
    breaks(Rule::Journal, &["second intent", "n-1"], |e| {
        let again = Recorded {
            sequence: 9,
            stored: at(4),
            event: intent(&[1], 4),
        };
        events(e).insert(3, again);
    });
}

/// The good run as one that waits for what `gates` says, with these events
/// before its first intent.
fn gated(e: &mut Evidence, gates: serde_json::Value, given: Vec<serde_json::Value>) {
    let all = events(e);
    if let RunEvent::Created { spec } = &mut all[0].event {
        spec.gates = serde_json::from_value(gates).expect("gates");
    }
    let first = all
        .iter()
        .position(|r| matches!(r.event, RunEvent::Intent { .. }))
        .expect("an intent");
    for event in given.into_iter().rev() {
        let event = serde_json::from_value(event).expect("an event");
        let (sequence, stored) = (all[first].sequence, all[first].stored);
        let recorded = Recorded {
            sequence,
            stored,
            event,
        };
        all.insert(first, recorded);
    }
    for (n, recorded) in all.iter_mut().enumerate() {
        recorded.sequence = n as u64 + 1;
    }
}

#[test]
fn nothing_is_sent_while_a_run_waits_or_is_paused_and_a_lock_has_one_holder() {
    let admitted = || json!({"event": "admitted", "at": at(1)});
    let by = |event: &str, by: &str| json!({"event": event, "by": by, "at": at(1)});
    let needs = || json!({"confirm_by": at(9), "approvals": 1, "locks": ["x"]});
    let well = || vec![by("confirmed", "ana"), by("approved", "bob"), admitted()];
    assert_eq!(found(|e| gated(e, needs(), well())), []);
    breaks(Rule::Held, &["intent", "not begun"], |e| {
        gated(e, needs(), Vec::new());
    });
    breaks(Rule::Held, &["begins", "confirmed"], |e| {
        gated(e, needs(), vec![by("approved", "bob"), admitted()]);
    });
    breaks(Rule::Held, &["begins", "approved"], |e| {
        let given = vec![by("confirmed", "bob"), by("approved", "ana"), admitted()];
        gated(e, needs(), given);
    });
    breaks(Rule::Held, &["intent", "paused"], |e| {
        gated(e, json!({}), vec![by("paused", "ana")]);
    });
    breaks(Rule::Held, &["lock `x`"], |e| {
        gated(e, needs(), well());
        let mut other = e.journals[0].clone();
        other.run = RunId::from_bytes([2; 16]);
        // Of it nothing was sent.
        other.events.retain(|r| {
            !matches!(
                r.event,
                RunEvent::Intent { .. } | RunEvent::Outcomes { .. } | RunEvent::Finished { .. }
            )
        });
        e.journals.push(other);
    });
}

#[test]
fn at_most_one_effect() {
    breaks(Rule::AtMostOneEffect, &["2 times", "Begin"], |e| {
        e.effects.push(effect(1, Mark::Begin, 9));
        e.counted.clear();
    });
    breaks(Rule::AtMostOneEffect, &["2 times", "End"], |e| {
        e.effects.push(effect(1, Mark::End, 9));
        e.counted.clear();
    });
    breaks(Rule::AtMostOneEffect, &["simulated", "2 times"], |e| {
        e.witnesses[0].most_on_a_node = 2;
    });
}

#[test]
fn no_effect_without_an_intent_before_it() {
    breaks(Rule::IntentFirst, &["only at"], |e| {
        events(e)[2].event = intent(&[1, 2], 10);
        events(e)[2].stored = at(10);
    });
    breaks(Rule::IntentFirst, &["no intent"], |e| {
        events(e).remove(2);
        e.witnesses.clear();
    });
    breaks(Rule::IntentFirst, &["intents for 0"], |e| {
        events(e).remove(2);
        e.effects.clear();
        e.counted.clear();
        e.nodes.clear();
    });
    breaks(Rule::IntentFirst, &["no journal"], |e| {
        e.journals.clear();
        e.told.clear();
    });
    // The node's own.
    breaks(Rule::IntentFirst, &["n-1", "not noted"], |e| {
        e.nodes[0].steps[0].started = None;
    });
    breaks(Rule::IntentFirst, &["n-1", "noted", "only at"], |e| {
        e.nodes[0].steps[0].started = Some(at(9));
    });
    breaks(Rule::IntentFirst, &["knows nothing"], |e| {
        e.nodes.clear();
    });
    // A clock that is wrong on purpose proves nothing.
    let nothing = found(|e| {
        e.nodes[0].steps[0].started = Some(at(3600));
        e.nodes[0].clock_off = true;
    });
    assert_eq!(nothing, []);
}

#[test]
fn no_effect_outside_the_frozen_set() {
    let stranger = |e: &mut Evidence| {
        e.effects.push(effect(3, Mark::Begin, 7));
        let mut other = node(3);
        other.steps[0].acknowledged = false;
        other.steps[0].result = None;
        e.nodes.push(other);
    };
    let rules: BTreeSet<Rule> = found(stranger).into_iter().map(|(rule, _)| rule).collect();
    assert!(rules.contains(&Rule::FrozenSet), "{rules:?}");
    breaks(Rule::FrozenSet, &["n-1", "others"], |e| {
        e.nodes[0].steps[0].signed = Some(request(&[2], 3));
    });
    breaks(Rule::FrozenSet, &["intent", "node 3"], |e| {
        events(e)[2].event = intent(&[1, 2, 3], 5);
    });
    breaks(Rule::FrozenSet, &["outcome", "node 3"], |e| {
        let more = Recorded {
            sequence: 9,
            stored: at(4),
            event: outcomes(vec![result(3, Outcome::Failed)]),
        };
        events(e).insert(5, more);
        e.told.retain(|t| !matches!(t, Told::Exit { .. }));
    });
    breaks(Rule::FrozenSet, &["simulated", "frozen set has 2"], |e| {
        e.witnesses[0].nodes = 3;
    });
}

#[test]
fn no_effect_after_start_before() {
    breaks(Rule::StartBefore, &["n-1", "had to be before"], |e| {
        e.nodes[0].steps[0].started = Some(at(15 + 31));
        e.effects.clear();
        e.counted.clear();
    });
}

#[test]
fn no_effect_under_an_older_epoch() {
    breaks(Rule::Epoch, &["n-1", "not noted"], |e| {
        e.nodes[0].steps[0].signed = Some(request(&[1, 2], 4));
    });
    breaks(Rule::Epoch, &["under epoch 2", "under 3"], |e| {
        let run = RunId::from_bytes([2; 16]);
        let mut second = e.nodes[0].steps[0].clone();
        second.request.run = run;
        second.started = Some(at(9));
        let mut signed = request(&[1, 2], 2);
        signed.run = run;
        second.signed = Some(signed);
        e.nodes[0].steps.push(second);
        let mut other = e.journals[0].clone();
        other.run = run;
        e.journals.push(other);
    });
}

#[test]
fn what_a_person_was_told_stays_true() {
    let run = run_id();
    breaks(Rule::Told, &["n-1 failed"], |e| {
        e.told.push(Told::Outcome {
            run,
            node: "n-1".into(),
            outcome: Outcome::Failed,
        });
    });
    breaks(Rule::Told, &["n-9"], |e| {
        e.told.push(Told::Outcome {
            run,
            node: "n-9".into(),
            outcome: Outcome::Failed,
        });
    });
    breaks(Rule::Told, &["late"], |e| {
        e.told.push(Told::Late {
            run,
            node: "n-1".into(),
            outcome: Outcome::Failed,
        });
    });
    breaks(Rule::Told, &["cancelled"], |e| {
        e.told.push(Told::Ended {
            run,
            state: "cancelled".into(),
            nodes: BTreeMap::new(),
        });
    });
    breaks(Rule::Told, &["n-2", "Unknown"], |e| {
        e.told.push(Told::Ended {
            run,
            state: "succeeded".into(),
            nodes: [("n-2".to_owned(), Outcome::Unknown)].into(),
        });
    });
    breaks(Rule::Told, &["exit code 0"], |e| {
        e.told = told_of(
            0,
            &format!(r#"{{"type":"run_finished","run":"{run}","state":"succeeded","nodes":{{}}}}"#),
        );
        events(e)[4].event = outcomes(vec![result(2, Outcome::Failed)]);
        e.counted.clear();
        e.nodes.clear();
        e.effects.clear();
    });
    let gone = |e: &mut Evidence| {
        e.journals.clear();
        e.nodes.clear();
        e.effects.clear();
        e.witnesses.clear();
    };
    breaks(Rule::Told, &["no journal"], gone);
    // Unless they were told that it is gone, too.
    assert_eq!(
        found(|e| {
            gone(e);
            e.gone.insert(run);
        }),
        []
    );
    assert_eq!(
        found(|e| {
            e.journals.clear();
            e.restored = true;
        }),
        []
    );
}

#[test]
fn what_a_node_was_told_is_stored_is_there() {
    breaks(Rule::Acknowledged, &["n-1", "says unknown"], |e| {
        events(e)[3].event = outcomes(vec![result(1, Outcome::Unknown)]);
        e.told.clear();
    });
    // As a late answer it is.
    let late = found(|e| {
        events(e)[3].event = outcomes(vec![result(1, Outcome::Unknown)]);
        e.told.clear();
        events(e).push(Recorded {
            sequence: 9,
            stored: at(30),
            event: RunEvent::Late {
                result: result(1, Outcome::Succeeded),
                at: at(30),
            },
        });
    });
    assert_eq!(late, []);
}

#[test]
fn what_the_journal_says_is_what_happened() {
    breaks(
        Rule::Testimony,
        &["succeeded", "n-1", "began 0 times"],
        |e| {
            e.effects.retain(|effect| effect.serial != Serial(1));
        },
    );
    breaks(
        Rule::Testimony,
        &["unreachable", "n-1", "began 1 times"],
        |e| {
            events(e)[3].event = outcomes(vec![result(1, Outcome::Unreachable)]);
            e.nodes[0].steps[0].acknowledged = false;
            e.told.clear();
        },
    );
    breaks(Rule::Testimony, &["never began"], |e| {
        e.effects
            .retain(|effect| effect.serial != Serial(1) || effect.mark == Mark::End);
        e.counted.clear();
    });
}

#[test]
fn what_runs_show_and_list_say_is_understood() {
    let run = run_id();
    let shown = told_of(
        0,
        &format!(
            r#"{{"id":"{run}","state":"running","results":[{{"node":"n-1","outcome":"succeeded"}},{{"node":"n-2","outcome":null}}]}}"#
        ),
    );
    assert_eq!(
        shown,
        [
            Told::Created { run },
            Told::Outcome {
                run,
                node: "n-1".into(),
                outcome: Outcome::Succeeded
            }
        ]
    );
    let listed = told_of(0, &format!(r#"[{{"id":"{run}","state":"failed"}}]"#));
    assert_eq!(
        listed[1],
        Told::Ended {
            run,
            state: "failed".into(),
            nodes: BTreeMap::new()
        }
    );
    assert_eq!(told_of(0, "run 7f3k  nginx -v  on 24 nodes\n"), []);
}
