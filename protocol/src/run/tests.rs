use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::envelope::{BundleHash, Door, Mode};
use crate::ids::RunId;
use crate::note::Expected;
use crate::units::{Amount, Span};

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
        expect: Expected::default(),
        gates: Gates::default(),
        retry_of: None,
        left_out: 0,
        local: None,
        rebuilt: None,
        main: None,
        part_of: None,
        takes_back: false,
        chat: None,
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
                Next::Main => unreachable!("this run has no `main`"),
                Next::Gate(gate) => unreachable!("this run has none: {gate:?}"),
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

fn name(text: &str) -> PrincipalName {
    text.parse().expect("valid")
}

const T0: Timestamp = Timestamp::UNIX_EPOCH;

fn late() -> Timestamp {
    Timestamp::from_second(300).expect("a time")
}

fn gated(n: u32, gates: Gates) -> RunState {
    let mut spec = spec(n, Some(Amount::Count(2)), None);
    spec.gates = gates;
    let spec = Box::new(spec);
    let mut state = RunState::begin(&RunEvent::Created { spec }).expect("created");
    let nodes = (0..n)
        .map(|i| Target::new(Serial(i), format!("n{i}").parse().expect("valid")))
        .collect();
    state.apply(&RunEvent::Targets { nodes }).expect("fits");
    state
}

fn wisher(by: &str) -> Wisher {
    Wisher {
        by: name(by),
        door: Some(Door::Cli),
    }
}

#[test]
fn approvals_count_through_the_doors_that_are_asked_for() {
    let gates = Gates {
        approvals: 1,
        approve_through: Some([Door::Cli].into()),
        ..Gates::default()
    };
    let mut s = gated(1, gates);
    for door in [Some(Door::Http), None] {
        let who = Wisher {
            by: name("bob"),
            door,
        };
        let no = s.wish(Wish::Approve, &who, T0).unwrap_err();
        assert_eq!(no.to_string(), "counts approvals through cli only");
        let (by, at) = (name("bob"), T0);
        let forged = RunEvent::Approved { by, door, at };
        assert!(s.apply(&forged).is_err());
    }
    let event = s.wish(Wish::Approve, &wisher("bob"), T0).unwrap().unwrap();
    s.apply(&event).unwrap();
    assert!(matches!(s.next(), Next::Gate(Gate::Turn { .. })));
}

fn all_gates() -> Gates {
    Gates {
        confirm_by: Some(late()),
        approvals: 2,
        approve_through: None,
        locks: ["deploy".to_owned()].into(),
        windows: vec![],
    }
}

#[test]
fn a_run_begins_when_all_is_given_and_not_before() {
    let mut s = gated(3, all_gates());
    assert_eq!(s.phase, RunPhase::Waiting);
    assert_eq!(s.next(), Next::Gate(Gate::Confirmation { until: late() }));
    assert_eq!(
        s.apply(&intent(&[Serial(0)])),
        Err(FoldError::Held(Serial(0)))
    );
    let admitted = RunEvent::Admitted { at: T0 };
    assert_eq!(s.apply(&admitted), Err(FoldError::Gate("admitted")));
    let wish = |s: &mut RunState, wish: Wish, by: &str| {
        let event = s.wish(wish, &wisher(by), T0)?;
        if let Some(event) = &event {
            s.apply(event).expect("follows");
        }
        Ok::<bool, WishError>(event.is_some())
    };
    // Nobody is asked in an order.
    assert_eq!(wish(&mut s, Wish::Approve, "bob"), Ok(true));
    assert_eq!(wish(&mut s, Wish::Approve, "bob"), Ok(false));
    assert_eq!(
        wish(&mut s, Wish::Approve, "ana"),
        Err(WishError::OwnRun(name("ana")))
    );
    assert_eq!(wish(&mut s, Wish::Confirm, "eve"), Ok(true));
    assert_eq!(wish(&mut s, Wish::Confirm, "ana"), Ok(false));
    let given = Gate::Approvals {
        given: vec![name("bob")],
        needed: 2,
        through: None,
    };
    assert_eq!(s.next(), Next::Gate(given));
    assert_eq!(wish(&mut s, Wish::Approve, "eve"), Ok(true));
    assert_eq!(
        wish(&mut s, Wish::Approve, "joe"),
        Err(WishError::NotToApprove)
    );
    assert!(matches!(s.next(), Next::Gate(Gate::Turn { .. })));
    // Paused, it does not get its turn.
    assert_eq!(wish(&mut s, Wish::Pause, "joe"), Ok(true));
    assert_eq!(wish(&mut s, Wish::Pause, "ana"), Ok(false));
    assert_eq!((s.phase, s.next()), (RunPhase::Paused, Next::Wait));
    assert_eq!(s.apply(&admitted), Err(FoldError::Gate("admitted")));
    assert_eq!(wish(&mut s, Wish::Resume, "ana"), Ok(true));
    assert_eq!(wish(&mut s, Wish::Resume, "ana"), Err(WishError::NotPaused));
    s.apply(&admitted).expect("its turn");
    assert!(matches!(s.next(), Next::Send { .. }));
    assert_eq!(s.gate(), None);
}

#[test]
fn what_is_not_confirmed_in_time_is_never_sent() {
    let mut s = gated(2, all_gates());
    assert_eq!(
        s.wish(Wish::Confirm, &wisher("ana"), late()),
        Err(WishError::TooLate(late()))
    );
    s.apply(&RunEvent::Lapsed {
        why: "not confirmed within 5m".into(),
        at: late(),
    })
    .expect("follows");
    assert_eq!(
        s.wish(Wish::Confirm, &wisher("ana"), T0),
        Err(WishError::Cancelling)
    );
    let Next::Skip {
        nodes,
        outcome,
        reason,
    } = s.next()
    else {
        panic!("{:?}", s.next())
    };
    assert_eq!((nodes.len(), outcome), (2, Outcome::Skipped));
    assert_eq!(reason, "not started: not confirmed within 5m");
    s.apply(&outcomes(vec![done(0, outcome), done(1, outcome)]))
        .expect("follows");
    assert_eq!(s.next(), Next::Finish(RunEnd::Cancelled));
}

#[test]
fn a_paused_run_takes_outcomes_and_sends_nothing() {
    let mut s = gated(4, Gates::default());
    s.apply(&intent(&[Serial(0), Serial(1)])).expect("intent");
    let paused = RunEvent::Paused {
        by: name("ana"),
        at: T0,
    };
    s.apply(&paused).expect("paused");
    assert_eq!(s.apply(&paused), Err(FoldError::Gate("paused")));
    s.apply(&outcomes(vec![
        done(0, Outcome::Succeeded),
        done(1, Outcome::Succeeded),
    ]))
    .expect("outcomes");
    assert_eq!((s.phase, s.next()), (RunPhase::Paused, Next::Wait));
    assert_eq!(
        s.apply(&intent(&[Serial(2)])),
        Err(FoldError::Held(Serial(2)))
    );
    // The last ones may come while it is paused: then it ends.
    let mut last = s.clone();
    last.apply(&RunEvent::Resumed {
        by: name("ana"),
        at: T0,
    })
    .expect("goes on");
    last.apply(&intent(&[Serial(2), Serial(3)]))
        .expect("intent");
    last.apply(&paused).expect("paused");
    last.apply(&outcomes(vec![
        done(2, Outcome::Succeeded),
        done(3, Outcome::Failed),
    ]))
    .expect("outcomes");
    assert_eq!(last.next(), Next::Finish(RunEnd::Failed));
    // A cancel ends it, paused as it is.
    s.apply(&RunEvent::Cancelling {
        by: name("ana"),
        at: T0,
    })
    .expect("cancel");
    assert!(matches!(s.next(), Next::Skip { .. }));
}

#[test]
fn a_budget_by_label_stops_the_run_for_all() {
    let mut spec = spec(6, Some(Amount::Count(2)), None);
    let rack = || "rack".parse().expect("a label");
    spec.options.max_failures_by = [(rack(), Amount::Count(1))].into();
    let spec = Box::new(spec);
    let mut s = RunState::begin(&RunEvent::Created { spec }).expect("created");
    let nodes = (0..6)
        .map(|i| Target {
            labels: if i == 5 {
                BTreeMap::new()
            } else {
                [(rack(), format!("r{}", i % 2).parse().expect("a value"))].into()
            },
            ..Target::new(Serial(i), format!("n{i}").parse().expect("valid"))
        })
        .collect();
    s.apply(&RunEvent::Targets { nodes }).expect("fits");
    // One in each rack may fail.
    s.apply(&intent(&[Serial(0), Serial(1)])).expect("intent");
    s.apply(&outcomes(vec![
        done(0, Outcome::Failed),
        done(1, Outcome::Unknown),
    ]))
    .expect("outcomes");
    assert!(matches!(s.next(), Next::Send { .. }));
    s.apply(&intent(&[Serial(2), Serial(3)])).expect("intent");
    s.apply(&outcomes(vec![
        done(2, Outcome::Unreachable),
        done(3, Outcome::Succeeded),
    ]))
    .expect("outcomes");
    let Next::Skip { reason, .. } = s.next() else {
        panic!("{:?}", s.next())
    };
    assert_eq!(
        reason,
        "not started: 2 with rack=r0 failed, the budget was 1 for each rack"
    );
}

proptest! {
    /// Whatever people do in whatever order: a node is sent to only while
    /// nothing is waited for and nobody has paused the run; a run that does
    /// what `next` says ends once it may; and a fold of its journal, cut
    /// anywhere, gives its state.
    #[test]
    fn nothing_is_sent_while_a_run_waits_or_is_paused(
        n in 0u32..8,
        confirm in any::<bool>(),
        approvals in 0u32..3,
        lock in any::<bool>(),
        through in any::<bool>(),
        doings in prop::collection::vec((0usize..7, 0usize..4), 0..60),
    ) {
        let gates = Gates {
            confirm_by: confirm.then(late),
            approvals,
            approve_through: through.then(|| [Door::Cli].into()),
            locks: if lock { ["x".to_owned()].into() } else { [].into() },
            windows: vec![],
        };
        let needs = !gates.is_open();
        let mut s = gated(n, gates);
        let mut journal = Vec::new();
        let start = s.clone();
        let who = ["ana", "bob", "eve", "joe"];
        let (mut confirmed, mut approved) = (false, std::collections::BTreeSet::new());
        let (mut admitted, mut paused) = (!needs, false);
        let rest = (0..40).map(|_| (6, 0));
        let end = [(3, 0), (0, 0), (1, 1), (1, 2), (3, 0)].into_iter().chain(rest);
        for (what, by) in doings.into_iter().chain(end) {
            let by = name(who[by]);
            let before = (s.phase, s.next());
            let event = match what {
                0..4 => match s.wish(Wish::ALL[what], &wisher(by.as_str()), T0) {
                    Ok(Some(event)) => event,
                    Ok(None) | Err(_) => continue,
                },
                // What does not follow is refused, and changes nothing.
                4 => {
                    let held = intent(&[Serial(0)]);
                    if needs && !admitted || paused {
                        let was = s.clone();
                        prop_assert!(s.apply(&held).is_err());
                        prop_assert_eq!(&was, &s);
                    }
                    continue;
                }
                5 if matches!(before.1, Next::Gate(Gate::Confirmation { .. })) && journal.len() > 6 => {
                    RunEvent::Lapsed { why: "late".into(), at: T0 }
                }
                _ => match s.next() {
                    Next::Send { nodes, .. } => {
                        prop_assert!(admitted && !paused, "{:?}", s.phase);
                        prop_assert!(!confirm || confirmed || !needs);
                        prop_assert!(approved.len() >= approvals as usize);
                        intent(&nodes)
                    }
                    Next::Gate(Gate::Turn { .. }) => RunEvent::Admitted { at: T0 },
                    Next::Gate(_) | Next::Main => continue,
                    Next::Skip { nodes, outcome, reason } => {
                        outcomes(nodes.iter().map(|s| NodeResult::new(*s, outcome, reason.clone())).collect())
                    }
                    Next::Wait => {
                        let sent = s.open().find(|(_, n)| matches!(n.phase, NodePhase::Sent { .. }));
                        match sent {
                            Some((serial, _)) => outcomes(vec![done(serial.0, Outcome::Succeeded)]),
                            None => continue,
                        }
                    }
                    Next::Finish(end) => RunEvent::Finished { end, at: T0 },
                    Next::Ended => break,
                },
            };
            match &event {
                RunEvent::Confirmed { .. } => confirmed = true,
                RunEvent::Approved { by, .. } => {
                    prop_assert_ne!(by.as_str(), "ana");
                    prop_assert!(approved.insert(by.clone()));
                }
                RunEvent::Admitted { .. } => admitted = true,
                RunEvent::Paused { .. } => paused = true,
                RunEvent::Resumed { .. } => paused = false,
                _ => {}
            }
            s.apply(&event).expect("follows");
            journal.push(event);
        }
        prop_assert_eq!(s.next(), Next::Ended, "{:?}", journal);
        let mut again = start;
        for event in &journal {
            let json = serde_json::to_string(event).expect("json");
            again.apply(&serde_json::from_str(&json).expect("reads")).expect("replays");
        }
        prop_assert_eq!(again, s);
    }
}
