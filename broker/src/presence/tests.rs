use std::time::Instant as StdInstant;

use super::table::AFTER_END;
use super::*;

const NODE: Serial = Serial(1);

struct Clock {
    table: Table,
    now: StdInstant,
}

impl Clock {
    fn new() -> Self {
        let now = StdInstant::now();
        Self {
            table: Table::new(Duration::from_secs(5), now),
            now,
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.table.advance(self.now);
    }

    fn beat(&mut self, instance: InstanceId) -> Option<Rival> {
        let heard = Heard {
            instance,
            at: Timestamp::now(),
            time: None,
            revision: Some(1),
        };
        self.table.heard(NODE, &heard)
    }

    fn hello(&mut self, instance: InstanceId) {
        let heard = Heard {
            instance,
            at: Timestamp::now(),
            time: None,
            revision: Some(1),
        };
        self.table.welcomed(NODE, &heard, "0.1.0", None);
    }

    fn state(&self) -> State {
        self.table.state(NODE, true)
    }
}

#[test]
fn a_node_is_up_then_late_then_down_as_its_beats_stay_away() {
    let mut clock = Clock::new();
    let instance = InstanceId::random();
    assert_eq!(clock.table.state(NODE, false), State::Never);
    clock.hello(instance);
    assert_eq!(clock.state(), State::Up);
    clock.pass(Duration::from_secs(12));
    assert_eq!(clock.state(), State::Up);
    clock.pass(Duration::from_secs(1));
    assert_eq!(clock.state(), State::Late);
    clock.pass(Duration::from_secs(18));
    assert_eq!(clock.state(), State::Down);
    assert_eq!(clock.beat(instance), None);
    assert_eq!(clock.state(), State::Up);
}

#[test]
fn while_the_broker_is_deaf_nobody_is_missing() {
    let mut clock = Clock::new();
    clock.hello(InstanceId::random());
    clock.table.hearing(false);
    clock.pass(Duration::from_secs(3_600));
    assert_eq!(clock.state(), State::Up);
    clock.table.hearing(true);
    clock.pass(Duration::from_secs(13));
    assert_eq!(clock.state(), State::Late);
}

#[test]
fn a_broker_that_has_just_begun_gives_everybody_time_to_be_heard() {
    let mut clock = Clock::new();
    assert_eq!(clock.state(), State::Late);
    clock.pass(Duration::from_secs(13));
    assert_eq!(clock.state(), State::Down);
}

#[test]
fn a_broker_that_has_just_begun_calls_nobody_unseen() {
    let mut clock = Clock::new();
    let mut new = record(1, "a-1");
    new.last_seen = None;
    let new = Arc::new(new);
    let now = Timestamp::now();
    assert_eq!(reach(&clock.table, &new, now), Reach::Alone);
    clock.pass(Duration::from_secs(6));
    let unseen = Reach::Down("it has never been seen".to_owned());
    assert_eq!(reach(&clock.table, &new, now), unseen);

    // The server knows better.
    let mut clock = Clock::new();
    clock.table.disconnected(NODE);
    assert_eq!(reach(&clock.table, &new, now), unseen);
}

#[test]
fn the_end_of_the_last_connection_is_the_end_until_it_is_heard_again() {
    let mut clock = Clock::new();
    let instance = InstanceId::random();
    clock.table.connected(NODE);
    clock.hello(instance);
    clock.table.disconnected(NODE);
    assert_eq!(clock.state(), State::Down);
    let reconnecting = |clock: &Clock| {
        clock
            .table
            .get(NODE)
            .is_some_and(|node| clock.table.may_be_reconnecting(node))
    };
    assert!(reconnecting(&clock));
    // What was on its way does not bring it back.
    assert_eq!(clock.beat(instance), None);
    assert_eq!(clock.state(), State::Down);
    clock.pass(AFTER_END);
    clock.table.connected(NODE);
    assert_eq!(clock.state(), State::Late);
    clock.hello(instance);
    assert_eq!(clock.state(), State::Up);
    clock.table.bye(NODE, InstanceId::random());
    assert_eq!(clock.state(), State::Up);
    clock.table.bye(NODE, instance);
    assert_eq!(clock.state(), State::Down);
    assert!(!reconnecting(&clock));
    clock.hello(instance);
    clock.table.disconnected(NODE);
    clock.pass(Duration::from_secs(2));
    assert!(!reconnecting(&clock));
}

#[test]
fn a_second_live_instance_is_a_rival_and_a_successor_is_not() {
    let mut clock = Clock::new();
    let (a, b) = (InstanceId::random(), InstanceId::random());
    clock.hello(a);
    assert_eq!(clock.table.rival(NODE, a), None);
    assert_eq!(clock.table.rival(NODE, b), Some(Rival(a)));
    assert_eq!(clock.beat(b), Some(Rival(a)));
    // It turned out to be gone.
    clock.table.superseded(NODE, a, b);
    clock.hello(b);
    // A beat of the old one that was on its way.
    assert_eq!(clock.beat(a), None);
    assert_eq!(clock.table.get(NODE).and_then(|n| n.instance), Some(b));
    clock.pass(Duration::from_secs(4));
    // Later both are asked: the old one may live, or somebody repeats it.
    assert_eq!(clock.beat(a), Some(Rival(b)));
    assert_eq!(clock.table.get(NODE).and_then(|n| n.instance), Some(b));
    // It lives, and alone.
    clock.table.superseded(NODE, b, a);
    assert_eq!(clock.beat(a), None);
    assert_eq!(clock.table.get(NODE).and_then(|n| n.instance), Some(a));
    // After its connection has ended, another one is no rival.
    clock.table.disconnected(NODE);
    assert_eq!(clock.table.rival(NODE, InstanceId::random()), None);
}

#[test]
fn a_burst_is_one_event_and_a_reconnect_none() {
    let names: Vec<NodeRecord> = (0..6).map(|n| record(n, &format!("web-{n}"))).collect();
    let snapshot = crate::inventory::Snapshot::new(names);
    let mut clock = Clock::new();
    let mut reporter = Reporter::default();
    let instances: Vec<InstanceId> = (0..6).map(|_| InstanceId::random()).collect();
    let hello = |clock: &mut Clock, n: u32| {
        let heard = Heard {
            instance: instances[n as usize],
            at: Timestamp::now(),
            time: None,
            revision: Some(1),
        };
        clock.table.welcomed(Serial(n), &heard, "v", None);
    };
    (0..6).for_each(|n| hello(&mut clock, n));
    assert_eq!(reporter.look(&clock.table, &snapshot, clock.now), []);
    (0..6).for_each(|n| clock.table.disconnected(Serial(n)));
    assert_eq!(reporter.look(&clock.table, &snapshot, clock.now), []);
    clock.pass(Duration::from_secs(1));
    hello(&mut clock, 5);
    let mut news = Vec::new();
    for _ in 0..18 {
        news.extend(reporter.look(&clock.table, &snapshot, clock.now));
        clock.pass(Duration::from_secs(1));
    }
    let texts: Vec<&str> = news.iter().map(|n| n.text.as_str()).collect();
    assert_eq!(
        texts,
        ["5 nodes down within 10 s: web-0, web-1, web-2, web-3, web-4"]
    );
    assert_eq!(
        serde_json::Value::Object(news[0].fields.clone()),
        serde_json::json!({
            "count": 5, "within": 10, "names": ["web-0", "web-1", "web-2", "web-3", "web-4"],
            "roles": { "web": 5 }, "labels": { "zone": { "gva2": 5 } },
            "common": { "zone": "gva2" }
        })
    );
    hello(&mut clock, 0);
    news.clear();
    for _ in 0..16 {
        news.extend(reporter.look(&clock.table, &snapshot, clock.now));
        clock.pass(Duration::from_secs(1));
    }
    assert_eq!(
        news.iter()
            .map(|n| (n.kind, n.subject.as_str()))
            .collect::<Vec<_>>(),
        [("node.up", "web-0")]
    );
}

fn record(serial: u32, name: &str) -> NodeRecord {
    NodeRecord {
        serial: Serial(serial),
        node_key: muster_protocol::keys::PrivateKey::generate().public(),
        nats_key: String::new(),
        assignment: muster_protocol::wire::Assignment {
            revision: 1,
            name: name.parse().expect("a name"),
            roles: vec!["web".parse().expect("a role")],
            labels: std::collections::BTreeMap::from([(
                "zone".parse().expect("a key"),
                "gva2".parse().expect("a value"),
            )]),
        },
        infrastructure: false,
        enrolled: Timestamp::now(),
        jwt_iat: 0,
        standing: Standing::Active,
        facts: Arc::default(),
        notes: Vec::new(),
        last_seen: Some(Timestamp::now()),
    }
}

#[test]
fn time_that_has_passed_is_said_as_people_say_it() {
    let at = |secs: i64| Timestamp::from_second(1_000_000 - secs).expect("a time");
    let said = [5, 119, 240, 7_300, 200_000].map(|secs| ago(at(secs), at(0)));
    assert_eq!(said, ["5 s", "119 s", "4 min", "2 h", "2 d"]);
}
