use std::collections::BTreeMap;

use muster_protocol::envelope::{Door, Limits, MAX_START_WINDOW, Sealed};
use muster_protocol::ids::{ClusterId, RunId};
use muster_protocol::keys::{BrokerKey, BrokerKeyState, PrivateKey};
use muster_protocol::units::{Span, after};
use proptest::prelude::*;
use serde_json::json;

use super::*;

struct World {
    broker: PrivateKey,
    cluster: ClusterId,
    node: Node,
    now: Timestamp,
}

fn world(faults: Faults, output: &str) -> World {
    let (root, broker) = (PrivateKey::generate(), PrivateKey::generate());
    let cluster = ClusterId::random();
    let now = Timestamp::now();
    let key = BrokerKey {
        key: broker.public(),
        state: BrokerKeyState::Active,
        added: now,
    };
    let list = KeyList {
        cluster,
        epoch: 1,
        root: root.public(),
        keys: vec![key],
        issued: now,
    };
    let member = Member {
        keys: NodeKeys::generate(),
        serial: Serial(3),
        assignment: Assignment {
            revision: 1,
            name: "sim-3".parse().expect("a name"),
            roles: vec!["web".parse().expect("a role")],
            labels: BTreeMap::new(),
        },
        list,
        jwt: String::new(),
        issued: now,
        expires: after(now, Duration::from_secs(3600)),
    };
    let habits = Habits {
        faults,
        output: output.to_owned(),
        remember: 100,
        facts: vec![json!({"cpus": 4})],
        witness: Witness::new(1),
        orders: crate::orders::Orders::default(),
    };
    World {
        broker,
        cluster,
        node: Node::new(0, member, Arc::new(habits)),
        now,
    }
}

fn call() -> Ask {
    Ask::Call(Call {
        scenario: command::NAME.parse().expect("a name"),
        bundle: command::bundle(),
        function: command::FUNCTION.parse().expect("a name"),
        params: json!({"argv": ["true"]}),
        mode: Mode::Apply,
        limits: Limits {
            timeout: Span::from_secs(60),
            output_bytes: 1 << 20,
            retry: 0,
        },
        expect: Default::default(),
        secrets: None,
    })
}

impl World {
    fn request(&self, run: RunId, ask: Ask) -> Request {
        Request {
            v: PROTOCOL_VERSION,
            cluster: self.cluster,
            epoch: 5,
            run,
            step: 0,
            set: [Serial(3), Serial(9)].into_iter().collect(),
            whole: muster_protocol::nodeset::NodeSet::new(),
            created: None,
            predicate: "role=web and cpus>=4".into(),
            issued: self.now,
            start_before: after(self.now, MAX_START_WINDOW),
            principal: "ana".parse().expect("a name"),
            door: Door::Cli,
            promised: false,
            ask,
        }
    }

    fn hear_sealed(&mut self, sealed: &Sealed, welcomed: bool) -> Vec<Act> {
        let (key, signature) = (sealed.key.to_string(), sealed.signature.to_string());
        let incoming = Incoming {
            key: Some(&key),
            signature: Some(&signature),
            bytes: &sealed.bytes,
        };
        let mut acts = Vec::new();
        self.node.hear(incoming, welcomed, self.now, &mut acts);
        acts
    }

    fn hear(&mut self, request: &Request) -> Vec<Act> {
        let sealed = request.seal(&self.broker);
        self.hear_sealed(&sealed, true)
    }

    fn testimony(&self) -> crate::witness::Testimony {
        self.node.habits.witness.testimony()
    }
}

#[test]
fn a_call_takes_effect_once_and_its_outcome_is_given_again() {
    let mut world = world(Faults::default(), "I am {name}");
    let request = world.request(RunId::random(), call());
    let id = request.id();
    assert_eq!(world.hear(&request), [Act::Begun(id, Duration::ZERO)]);
    assert_eq!(world.hear(&request), [Act::Accept(id)]);
    assert!(world.node.report(id).is_none(), "it still runs");
    assert!(world.node.run_out(id));
    assert!(!world.node.run_out(id));
    assert_eq!(world.hear(&request), [Act::Report(id)]);
    let report = world.node.report(id).expect("an outcome");
    assert_eq!(report.result.outcome, Outcome::Succeeded);
    assert_eq!(report.inline[0].data, Data::Text("I am sim-3".into()));
    assert!(world.node.journal.stored(id));
    assert_eq!(world.hear(&request), [Act::Report(id)]);
    let said = world.testimony();
    assert_eq!(said.more_than_once, 0);
    assert_eq!(said.requests[&id.to_string()].effects, 1);
    assert_eq!(
        said.requests[&id.to_string()].outcomes,
        [(Outcome::Succeeded, 1)].into()
    );
}

#[test]
fn what_is_not_the_brokers_or_not_for_this_node_has_no_effect_and_is_counted() {
    let mut world = world(Faults::default(), "");
    let good = world.request(RunId::random(), call());
    let stranger = good.seal(&PrivateKey::generate());
    assert_eq!(world.hear_sealed(&stranger, true), [Act::Hold]);
    let mut altered = good.seal(&world.broker);
    altered.bytes[20] ^= 1;
    assert_eq!(world.hear_sealed(&altered, true), []);
    let mut elsewhere = good.clone();
    elsewhere.set = [Serial(4)].into_iter().collect();
    assert_eq!(world.hear(&elsewhere), []);
    let mut late = good.clone();
    late.issued = after(world.now, Duration::from_secs(600));
    late.start_before = late.issued;
    assert_eq!(world.hear(&late), [Act::Report(late.id())]);
    // A ping raises the epoch; then the old broker is not obeyed.
    let mut newer = world.request(RunId::random(), Ask::Ping);
    newer.epoch = 6;
    assert_eq!(world.hear(&newer), [Act::Pong(newer.id())]);
    let old = world.request(RunId::random(), call());
    assert_eq!(world.hear(&old), []);
    newer.epoch = 7;
    assert_eq!(world.hear(&newer), [Act::Greet, Act::Pong(newer.id())]);
    let said = world.testimony();
    let kinds = [
        "bad_signature",
        "early",
        "lower_epoch",
        "not_in_set",
        "unknown_key",
    ];
    assert_eq!(said.refused, kinds.map(|kind| (kind, 1)).into());
    assert!(said.requests.values().all(|r| r.effects == 0));
}

#[test]
fn nothing_is_executed_before_the_welcome_or_against_the_nodes_own_judgement() {
    let mut world = world(Faults::default(), "");
    let request = world.request(RunId::random(), call());
    let sealed = request.seal(&world.broker);
    assert_eq!(world.hear_sealed(&sealed, false), []);
    let mut foreign = world.request(RunId::random(), call());
    foreign.predicate = "role=db".into();
    assert_eq!(world.hear(&foreign), [Act::Report(foreign.id())]);
    let report = world.node.report(foreign.id()).expect("an outcome");
    assert_eq!(report.result.outcome, Outcome::Declined);
    assert!(report.result.reason.is_some_and(|r| r.contains("role=db")));
    assert!(world.testimony().requests.values().all(|r| r.effects == 0));
}

#[test]
fn large_output_goes_in_chunks_and_is_cut_where_asked() {
    let text = "x".repeat(MAX_CHUNK + 5);
    let mut world = world(Faults::default(), &text);
    let request = world.request(RunId::random(), call());
    let id = request.id();
    world.hear(&request);
    world.node.run_out(id);
    let report = world.node.report(id).expect("an outcome");
    assert_eq!((report.chunks, report.inline.len()), (2, 0));
    assert_eq!(world.node.chunks(id).concat(), text.as_bytes());
    let mut short = world.request(RunId::random(), call());
    if let Ask::Call(call) = &mut short.ask {
        call.limits.output_bytes = 10;
    }
    world.hear(&short);
    world.node.run_out(short.id());
    let report = world.node.report(short.id()).expect("an outcome");
    assert_eq!(report.result.output_bytes, 10);
    assert!(report.result.truncated);
}

proptest! {
    /// Whatever comes in whatever order: one effect at most, one outcome at
    /// most, and the outcome never changes.
    #[test]
    fn at_most_once(events in prop::collection::vec(0u8..5, 1..40), fail: bool, slow: bool) {
        let rate = |on: bool| if on { "100%" } else { "0%" };
        let faults = Faults {
            fail: rate(fail).parse().expect("a rate"),
            slow: format!("{}:300ms", rate(slow)).parse().expect("slow"),
            ..Faults::default()
        };
        let mut world = world(faults, "");
        let run = RunId::random();
        let (request, cancel) = (world.request(run, call()), world.request(run, Ask::Cancel));
        let id = request.id();
        let mut first = None;
        for event in events {
            match event {
                0 | 1 => { world.hear(&request); }
                2 => { world.hear(&cancel); }
                3 => { world.node.run_out(id); }
                _ => { world.node.journal.stored(id); }
            }
            let outcome = world.node.report(id).map(|r| r.result.outcome);
            prop_assert!(first.is_none() || outcome == first);
            first = outcome;
        }
        let said = world.testimony();
        prop_assert_eq!(said.more_than_once, 0);
        for seen in said.requests.values() {
            prop_assert!(seen.effects <= 1);
            prop_assert!(seen.outcomes.values().sum::<u32>() <= 1);
        }
    }
}

#[test]
fn a_frozen_node_begins_nothing_but_what_was_promised() {
    let mut world = world(Faults::default(), "");
    let of = |world: &World, revision, frozen| Freeze {
        cluster: world.cluster,
        revision,
        frozen,
        why: "the switch".into(),
        by: "ana".parse().expect("a name"),
        at: world.now,
    };
    let freeze = |world: &mut World, freeze: &Freeze| {
        let freeze = freeze.sign(&world.broker);
        let request = world.request(RunId::random(), Ask::Freeze { freeze });
        world.hear(&request)
    };
    assert_eq!(world.node.freeze_mark(), FreezeMark::default());
    let stop = of(&world, 5, true);
    assert_eq!(freeze(&mut world, &stop), [Act::Taken(5)]);
    assert_eq!(world.node.freeze_mark().revision, 5);
    let run = RunId::random();
    let declined = world.request(run, call());
    assert_eq!(world.hear(&declined), [Act::Report(declined.id())]);
    let report = world.node.report(declined.id()).expect("an outcome");
    assert_eq!(report.result.outcome, Outcome::Declined);
    assert_eq!(
        report.result.reason.as_deref(),
        Some("frozen by ana: the switch")
    );
    let promised = Request {
        promised: true,
        ..world.request(RunId::random(), call())
    };
    assert!(matches!(world.hear(&promised)[..], [Act::Begun(..)]));
    // Neither a stranger nor an old message thaws.
    let stranger = PrivateKey::generate();
    let forged = of(&world, 6, false).sign(&stranger);
    let mut acts = Vec::new();
    world.node.take_freeze(&forged, &mut acts);
    let old = of(&world, 4, false);
    acts.extend(freeze(&mut world, &old));
    assert_eq!(acts, []);
    let over = of(&world, 6, false);
    assert_eq!(freeze(&mut world, &over), [Act::Taken(6)]);
    let again = world.request(RunId::random(), call());
    assert!(matches!(world.hear(&again)[..], [Act::Begun(..)]));
}
