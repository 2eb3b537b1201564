use proptest::prelude::*;

use super::super::MachineEnd;
use super::super::{FoldError, Gates, Next, RunEnd, RunOptions, RunSpec, Target, Wish};
use super::*;
use crate::envelope::{BundleHash, Door, Mode};
use crate::note::Expected;
use crate::units::Span;

const NODES: u32 = 4;

fn spec() -> RunSpec {
    let set = |from: u32, to: u32| FrozenSet {
        predicate: format!("name=n{from}"),
        nodes: (from..to).map(Serial).collect(),
    };
    RunSpec {
        id: RunId::from_bytes([1; 16]),
        principal: "ana".parse().expect("valid"),
        door: Door::Cli,
        scenario: "up".parse().expect("valid"),
        version: Some(1),
        bundle: BundleHash::of(b""),
        function: "main".parse().expect("valid"),
        params: Value::Null,
        mode: Mode::Apply,
        title: "up".into(),
        predicate: "*".into(),
        targets: NODES,
        options: RunOptions {
            timeout: Span::from_secs(300),
            deliver_within: Span::from_secs(15),
            batch: None,
            max_failures: None,
            max_failures_by: BTreeMap::new(),
            retry: 0,
            wait_down: false,
            output_bytes: 1 << 20,
        },
        gates: Gates::default(),
        expect: Expected::default(),
        retry_of: None,
        left_out: 0,
        local: None,
        rebuilt: None,
        main: Some(Box::new(Main {
            sets: BTreeMap::from([
                ("targets".to_owned(), set(0, 3)),
                ("balancers".to_owned(), set(2, NODES)),
            ]),
            role: Role::Operator,
            origin: crate::origin::Origin::Unknown,
        })),
        part_of: None,
        takes_back: false,
        chat: None,
        created: Timestamp::UNIX_EPOCH,
    }
}

fn begun() -> RunState {
    let spec = Box::new(spec());
    let mut state = RunState::begin(&RunEvent::Created { spec }).expect("created");
    let target = |n: u32| Target::new(Serial(n), format!("n{n}").parse().expect("valid"));
    let nodes = (0..NODES).map(target).collect();
    state.apply(&RunEvent::Targets { nodes }).expect("fits");
    state
}

const AT: Timestamp = Timestamp::UNIX_EPOCH;

fn step(nodes: &[u32]) -> StepCall {
    StepCall {
        run: RunId::random(),
        function: "f".parse().expect("valid"),
        nodes: nodes.iter().copied().map(Serial).collect(),
    }
}

fn end(outcome: Outcome, nodes: &[u32]) -> StepEnd {
    StepEnd {
        outcomes: BTreeMap::from([(outcome, nodes.iter().copied().map(Serial).collect())]),
        ..StepEnd::default()
    }
}

fn machine() -> MadeMachine {
    MadeMachine {
        name: "web-25".parse().expect("valid"),
        hypervisor: "hv-1".parse().expect("valid"),
    }
}

fn outcomes(state: &RunState) -> RunEvent {
    let open: Vec<Serial> = state.open().map(|(serial, _)| serial).collect();
    let results = open
        .iter()
        .map(|serial| state.main_result(*serial))
        .collect();
    RunEvent::Outcomes { results, at: AT }
}

/// One of every kind of event, most of which do not fit at most moments.
fn event(state: &RunState, kind: u8, number: u64, ok: bool) -> RunEvent {
    let by = || "bruno".parse().expect("valid");
    match kind {
        0 => RunEvent::Recorded {
            from: number,
            records: vec![Record {
                call: "log".into(),
                hash: "00".into(),
                reply: Value::Null,
                log: Some("a line".into()),
            }],
            at: AT,
        },
        1 | 2 => RunEvent::Called {
            number,
            call: "on".into(),
            hash: "00".into(),
            line: None,
            wanted: if kind == 1 {
                Wanted::Steps {
                    steps: vec![step(&[0, 1])],
                }
            } else {
                Wanted::Until { at: AT }
            },
            at: AT,
        },
        3 => RunEvent::ReplyPart {
            number,
            part: u32::from(!ok),
            text: "\"a".into(),
        },
        4 => RunEvent::Answered {
            number,
            reply: "null".into(),
            steps: vec![end(
                if ok {
                    Outcome::Succeeded
                } else {
                    Outcome::Failed
                },
                &[0, 1],
            )],
            machine: None,
            by: None,
            text: None,
            error: None,
            at: AT,
        },
        5 => RunEvent::MainEnded {
            end: if ok {
                MainEnd::Done { value: Value::Null }
            } else {
                MainEnd::Failed { error: "e".into() }
            },
            at: AT,
        },
        6 => RunEvent::MainEnded {
            end: if ok {
                MainEnd::Cancelled
            } else {
                MainEnd::Diverged { error: "e".into() }
            },
            at: AT,
        },
        7 => RunEvent::Undoing {
            index: u32::try_from(number).expect("small"),
            of: 0,
            part: 0,
            step: step(&[0]),
            at: AT,
        },
        8 => RunEvent::Undone {
            index: u32::try_from(number).expect("small"),
            end: end(Outcome::Succeeded, &[0]),
            at: AT,
        },
        9 => RunEvent::Cancelling { by: by(), at: AT },
        10 => RunEvent::Paused { by: by(), at: AT },
        11 => RunEvent::Resumed { by: by(), at: AT },
        12 => outcomes(state),
        13 => RunEvent::Finished {
            end: RunEnd::Failed,
            at: AT,
        },
        14 => RunEvent::Called {
            number,
            call: "machine".into(),
            hash: "00".into(),
            line: None,
            wanted: Wanted::Machine {
                name: "web-25".into(),
                keep: false,
            },
            at: AT,
        },
        15 => RunEvent::Unmaking {
            index: u32::try_from(number).expect("small"),
            of: 0,
            machine: machine(),
            at: AT,
        },
        16 => RunEvent::Unmade {
            index: u32::try_from(number).expect("small"),
            end: if ok {
                MachineEnd::Gone
            } else {
                MachineEnd::Left {
                    why: "nobody answers".into(),
                }
            },
            at: AT,
        },
        _ => RunEvent::Intent {
            batch: 0,
            nodes: [Serial(0)].into_iter().collect(),
            at: AT,
        },
    }
}

proptest! {
    #[test]
    fn whatever_is_written_its_calls_are_in_order_and_it_ends_once_and_whole(
        events in proptest::collection::vec((0..18u8, 0..2u64, any::<bool>()), 0..120),
    ) {
        let mut state = begun();
        for (kind, off, ok) in events {
            let flow = state.flow.as_ref().expect("it has one");
            // Mostly the number that fits.
            let fits = match kind {
                4 | 3 => flow.open().map_or(0, |open| open.number),
                7 | 15 => flow.undo.len() as u64,
                8 | 16 => flow.undo.len().saturating_sub(1) as u64,
                _ => flow.answered,
            };
            let event = event(&state, kind, fits + off * u64::from(kind % 2), ok);
            let before = state.clone();
            if state.apply(&event).is_err() {
                prop_assert_eq!(&state, &before, "what is refused changes nothing");
                continue;
            }
            let (was, is) = (
                before.flow.as_ref().expect("it has one"),
                state.flow.as_ref().expect("it has one"),
            );
            // Nothing new is begun but in a run that goes on.
            if matches!(event, RunEvent::Called { .. }) {
                prop_assert_eq!(before.phase, RunPhase::Running);
                prop_assert!(was.open().is_none() && was.ended.is_none());
            }
            prop_assert!(was.answered <= is.answered);
            prop_assert!(was.ended.is_none() || was.ended == is.ended);
            prop_assert!(is.open().is_none() || is.open_undo().is_none());
            prop_assert!(is.calls.is_sorted_by(|a, b| a.number < b.number));
            let waiting = is.calls.iter().filter(|call| call.ended.is_none()).count();
            prop_assert!(waiting <= 1);
            if state.phase.is_final() {
                prop_assert!(is.ended.is_some() && is.open_undo().is_none());
                prop_assert_eq!(state.results().count(), NODES as usize);
                prop_assert_eq!(state.next(), Next::Ended);
            } else if matches!(state.phase, RunPhase::Running | RunPhase::Cancelling) {
                prop_assert_eq!(state.next(), Next::Main);
            }
        }
    }
}

#[test]
fn a_node_is_as_well_as_its_worst_step() {
    let mut state = begun();
    let called = |number, nodes: &[u32]| RunEvent::Called {
        number,
        call: "try_on".into(),
        hash: "00".into(),
        line: Some(3),
        wanted: Wanted::Steps {
            steps: vec![step(nodes)],
        },
        at: AT,
    };
    let answered = |number, steps| RunEvent::Answered {
        number,
        reply: "null".into(),
        steps,
        machine: None,
        by: None,
        text: None,
        error: None,
        at: AT,
    };
    for (number, outcome) in [
        (0, Outcome::Succeeded),
        (1, Outcome::Failed),
        (2, Outcome::Succeeded),
    ] {
        state.apply(&called(number, &[0, 1])).expect("called");
        state
            .apply(&answered(number, vec![end(outcome, &[0, 1])]))
            .expect("answered");
    }
    assert_eq!(state.summary(), Summary::from([(Outcome::Failed, 2)]));
    let fold = state.apply(&RunEvent::Finished {
        end: RunEnd::Failed,
        at: AT,
    });
    assert_eq!(fold, Err(FoldError::Main("`main` has not ended")));
    assert!(
        state
            .wish(
                Wish::Pause,
                &crate::run::Wisher {
                    by: "ana".parse().expect("valid"),
                    door: None,
                },
                AT,
            )
            .is_ok()
    );
    let done = MainEnd::Done { value: Value::Null };
    state
        .apply(&RunEvent::MainEnded { end: done, at: AT })
        .expect("ended");
    state.apply(&outcomes(&state.clone())).expect("outcomes");
    assert_eq!(
        state.summary(),
        Summary::from([(Outcome::Failed, 2), (Outcome::Skipped, 2)])
    );
    let why = state.main_result(Serial(3)).reason.expect("a reason");
    assert_eq!(why, "not started: no step came to this node");
}

#[test]
fn the_predicate_of_a_step_is_that_of_the_sets_that_hold_it() {
    let state = begun();
    let of = |nodes: &[u32]| {
        let set = nodes.iter().copied().map(Serial).collect();
        state.predicate_of(&set)
    };
    assert_eq!(of(&[0, 2]).as_deref(), Some("name=n0"));
    assert_eq!(of(&[3]).as_deref(), Some("name=n2"));
    assert_eq!(of(&[0, 3]).as_deref(), Some("(name=n0) or (name=n2)"));
    assert_eq!(of(&[9]), None);
}

#[test]
fn a_machine_is_taken_back_as_what_it_is() {
    let mut state = begun();
    let called = |number, wanted| RunEvent::Called {
        number,
        call: "machine".into(),
        hash: "00".into(),
        line: None,
        wanted,
        at: AT,
    };
    let made = |number, machine| RunEvent::Answered {
        number,
        reply: "null".into(),
        steps: Vec::new(),
        machine,
        by: None,
        text: None,
        error: None,
        at: AT,
    };
    let keep = false;
    let name = "web-25".to_owned();
    let nothing = Wanted::Until { at: AT };
    for event in [
        called(0, Wanted::Machine { name, keep }),
        made(0, Some(machine())),
        called(1, nothing),
        made(1, None),
        RunEvent::MainEnded {
            end: MainEnd::Failed { error: "e".into() },
            at: AT,
        },
    ] {
        state.apply(&event).expect("fits");
    }
    let unmaking = |of| RunEvent::Unmaking {
        index: 0,
        of,
        machine: machine(),
        at: AT,
    };
    assert!(state.apply(&unmaking(1)).is_err(), "that made no machine");
    state.apply(&unmaking(0)).expect("fits");
    let as_step = RunEvent::Undone {
        index: 0,
        end: end(Outcome::Succeeded, &[0]),
        at: AT,
    };
    assert!(state.apply(&as_step).is_err(), "it is no step");
    let why = "nobody answers".to_owned();
    let left = RunEvent::Unmade {
        index: 0,
        end: MachineEnd::Left { why },
        at: AT,
    };
    state.apply(&left).expect("fits");
    let flow = state.flow.as_ref().expect("it has one");
    assert!(flow.open_undo().is_none());
    assert_eq!(flow.undo_failed().count(), 1);
    assert_eq!(flow.parts(RunId::random()).count(), 0);
    assert!(state.apply(&left).is_err(), "once");
}

#[test]
fn what_older_brokers_wrote_is_read() {
    let event: RunEvent = serde_json::from_str(
        r#"{"event":"answered","number":1,"reply":"null","at":"2026-01-01T00:00:00Z"}"#,
    )
    .expect("it is read");
    let again = serde_json::to_string(&event).expect("JSON");
    assert!(!again.contains("machine"), "{again}");
}
