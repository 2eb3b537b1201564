use super::*;
use proptest::prelude::*;

fn spec(targets: u32, batch: Option<Amount>, max_failures: Option<Amount>) -> RunSpec {
    RunSpec {
        id: RunId::from_bytes([1; 16]),
        principal: "ana".parse().expect("valid"),
        door: Door::Cli,
        scenario: "command".parse().expect("valid"),
        version: None,
        bundle: BundleHash::of(b""),
        function: "run".parse().expect("valid"),
        params: Value::Null,
        mode: Mode::Apply,
        title: "true".into(),
        predicate: "*".into(),
        targets,
        options: RunOptions {
            timeout: Span::from_secs(300),
            deliver_within: Span::from_secs(15),
            batch,
            max_failures,
            max_failures_by: BTreeMap::new(),
            retry: 0,
            wait_down: false,
            output_bytes: 1 << 20,
        },
        gates: Gates::default(),
        retry_of: None,
        left_out: 0,
        local: None,
        rebuilt: None,
        main: None,
        part_of: None,
        created: Timestamp::UNIX_EPOCH,
    }
}

fn state(targets: u32, batch: Option<Amount>, max_failures: Option<Amount>) -> RunState {
    let spec = Box::new(spec(targets, batch, max_failures));
    let mut state = RunState::begin(&RunEvent::Created { spec }).expect("created");
    let nodes = (0..targets)
        .map(|i| Target::new(Serial(i), format!("n{i}").parse().expect("valid")))
        .collect();
    state.apply(&RunEvent::Targets { nodes }).expect("fits");
    state
}

fn done(serial: u32, outcome: Outcome) -> NodeResult {
    NodeResult::new(Serial(serial), outcome, "")
}

fn outcomes(results: Vec<NodeResult>) -> RunEvent {
    RunEvent::Outcomes {
        results,
        at: Timestamp::UNIX_EPOCH,
    }
}

fn intent(nodes: &[Serial]) -> RunEvent {
    RunEvent::Intent {
        batch: 0,
        nodes: nodes.iter().copied().collect(),
        at: Timestamp::UNIX_EPOCH,
    }
}

/// What is counted as nodes move, counted anew.
fn recount(state: &RunState) -> Tally {
    let mut tally = Tally::default();
    for node in state.nodes.values() {
        tally.add(&node.phase);
    }
    tally
}

#[test]
fn a_second_outcome_is_refused_whole() {
    let mut s = state(3, None, None);
    s.apply(&outcomes(vec![done(0, Outcome::Failed)]))
        .expect("first");
    let before = s.clone();
    for bad in [
        vec![done(1, Outcome::Succeeded), done(0, Outcome::Succeeded)],
        vec![done(1, Outcome::Succeeded), done(1, Outcome::Failed)],
        vec![done(9, Outcome::Succeeded)],
    ] {
        assert!(s.apply(&outcomes(bad)).is_err());
        assert_eq!(s, before);
    }
}

#[test]
fn a_late_answer_is_kept_and_changes_nothing() {
    let mut s = state(1, None, None);
    s.apply(&outcomes(vec![done(0, Outcome::Unknown)]))
        .expect("outcome");
    s.apply(&RunEvent::Finished {
        end: RunEnd::Failed,
        at: Timestamp::UNIX_EPOCH,
    })
    .expect("end");
    let late = RunEvent::Late {
        result: done(0, Outcome::Succeeded),
        at: Timestamp::UNIX_EPOCH,
    };
    s.apply(&late).expect("late");
    s.apply(&late).expect("again");
    assert_eq!(s.summary(), Summary::from([(Outcome::Unknown, 1)]));
    assert_eq!(s.nodes[&Serial(0)].late.len(), 1);
    assert_eq!(s.phase, RunPhase::Failed);
}

#[test]
fn a_run_does_not_end_while_a_node_is_open() {
    let mut s = state(2, None, None);
    let end = RunEvent::Finished {
        end: RunEnd::Succeeded,
        at: Timestamp::UNIX_EPOCH,
    };
    assert_eq!(s.apply(&end), Err(FoldError::Open(Serial(0))));
}

#[test]
fn a_spent_budget_skips_the_rest_and_a_cancel_too() {
    let mut s = state(4, Some(Amount::Count(2)), Some(Amount::Count(0)));
    assert_eq!(
        s.next(),
        Next::Send {
            batch: 0,
            nodes: vec![Serial(0), Serial(1)]
        }
    );
    s.apply(&intent(&[Serial(0), Serial(1)])).expect("intent");
    assert_eq!(s.next(), Next::Wait);
    s.apply(&outcomes(vec![done(0, Outcome::Unreachable)]))
        .expect("outcome");
    let Next::Skip {
        nodes,
        outcome,
        reason,
    } = s.next()
    else {
        panic!("{:?}", s.next())
    };
    assert_eq!(
        (nodes, outcome),
        (vec![Serial(2), Serial(3)], Outcome::Skipped)
    );
    assert_eq!(reason, "not started: 1 failed, the budget was 0");

    let mut c = state(2, Some(Amount::Count(1)), None);
    c.apply(&RunEvent::Cancelling {
        by: "ana".parse().expect("valid"),
        at: Timestamp::UNIX_EPOCH,
    })
    .expect("cancel");
    assert!(matches!(c.next(), Next::Skip { .. }));
}

#[test]
fn output_that_is_not_text_survives_json() {
    for bytes in [&b"caf\xc3\xa9"[..], &b"\xff\x00"[..], b""] {
        let json = serde_json::to_string(&Data::new(bytes)).expect("json");
        let back: Data = serde_json::from_str(&json).expect("reads");
        assert_eq!(back.bytes().as_deref(), Some(bytes));
    }
}

proptest! {
    /// Whatever the nodes answer, a run that does what `next` says ends, with
    /// one outcome for each node, no node sent to twice, and never more nodes
    /// under way than a batch; and a fold of its journal gives its state.
    #[test]
    fn every_run_ends_with_one_outcome_each(
        n in 0u32..30,
        batch in prop::option::of(prop_oneof![(1u32..12).prop_map(Amount::Count), (1u8..=100).prop_map(Amount::Percent)]),
        budget in prop::option::of((0u32..5).prop_map(Amount::Count)),
        answers in prop::collection::vec(0usize..6, 30),
        cancel_at in prop::option::of(0usize..20),
    ) {
        let mut s = state(n, batch, budget);
        let mut journal = Vec::new();
        let start = s.clone();
        for turn in 0..200 {
            if cancel_at == Some(turn) && !s.phase.is_final() {
                let event = RunEvent::Cancelling { by: "ana".parse().expect("valid"), at: Timestamp::UNIX_EPOCH };
                s.apply(&event).expect("cancel");
                journal.push(event);
            }
            let event = match s.next() {
                Next::Send { nodes, .. } => {
                    prop_assert!(!nodes.is_empty() && nodes.len() <= s.batch_size());
                    intent(&nodes)
                }
                Next::Skip { nodes, outcome, reason } => {
                    outcomes(nodes.iter().map(|s| NodeResult::new(*s, outcome, reason.clone())).collect())
                }
                Next::Wait => {
                    let (serial, _) = s.open().find(|(_, n)| matches!(n.phase, NodePhase::Sent { .. })).expect("waits for one");
                    outcomes(vec![done(serial.0, Outcome::ALL[answers[serial.0 as usize]])])
                }
                Next::Finish(end) => RunEvent::Finished { end, at: Timestamp::UNIX_EPOCH },
                Next::Ended => break,
            };
            s.apply(&event).expect("follows");
            prop_assert_eq!(&s.tally, &recount(&s));
            journal.push(event);
        }
        prop_assert_eq!(s.next(), Next::Ended);
        prop_assert_eq!(s.results().count(), n as usize);
        let mut again = start;
        for event in &journal {
            again.apply(event).expect("replays");
        }
        prop_assert_eq!(again, s);
    }
}

#[test]
fn what_a_node_did_by_itself_is_never_sent() {
    let target = Target::new(Serial(3), "web-01".parse().expect("valid"));
    let mut spec = spec(1, None, None);
    spec.local = Some(Box::new(LocalRecord {
        local: LocalRun {
            user: "root".into(),
            login: None,
            why: None,
            forced: false,
            began: Timestamp::UNIX_EPOCH,
        },
        target: target.clone(),
        result: NodeResult::new(Serial(3), Outcome::Unknown, "x"),
    }));
    let created = RunEvent::Created {
        spec: Box::new(spec),
    };
    let mut state = RunState::begin(&created).expect("begins");
    let nodes = vec![target];
    state.apply(&RunEvent::Targets { nodes }).expect("follows");
    assert_eq!(state.phase, RunPhase::Running);
    assert_eq!(state.next(), Next::Wait);
}
