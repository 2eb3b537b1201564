//! Runs over a real server with scripted nodes.

mod chat;
mod lost;
mod main;
mod more;
pub(crate) mod node;
mod retention;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use muster_protocol::api::{ClusterEvent, Frame, Presence as State, Role, RunRequest, RunView};
use muster_protocol::envelope::Door;
use muster_protocol::ids::{RequestId, RunId, Serial};
use muster_protocol::keys::PrivateKey;
use muster_protocol::run::{Outcome, RunEvent, RunPhase};
use muster_protocol::subject;
use muster_protocol::units::{Span, Timestamp};
use muster_protocol::wire::{Assignment, OutcomeAnswer, Welcome};
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use self::node::{Node, Script, Swarm};
use super::frames::Place;
use super::request::FrozenRun;
use super::{Engine, STREAM, Seen, Settings, check, options};
use crate::authority::Authority;
use crate::authz::{Action, Authorized, Caller, FixedRoles, Origin, RunAsk, authorize};
use crate::bus::{self, Deps, Nodes};
use crate::events::Events;
use crate::inventory::{Inventory, NodeRecord, Standing};
use crate::lease::Lease;
use crate::nats::testing::{PATIENCE, TestServer};
use crate::resolve::resolve;
use crate::store;
use crate::twin::Past;

/// A server, an inventory, and the broker's side of the bus.
struct World {
    server: TestServer,
    authority: Authority,
    inventory: Inventory,
    past: Past,
    nodes: Nodes,
    cancel: CancellationToken,
    beat: Span,
}

fn assignment(name: &str, roles: &[&str], labels: &[(&str, &str)]) -> Assignment {
    Assignment {
        revision: 1,
        name: name.parse().expect("a name"),
        roles: roles.iter().map(|r| r.parse().expect("a role")).collect(),
        labels: labels
            .iter()
            .map(|(k, v)| (k.parse().expect("a key"), v.parse().expect("a value")))
            .collect(),
    }
}

fn record(serial: u32, assignment: Assignment) -> NodeRecord {
    NodeRecord {
        serial: Serial(serial),
        node_key: PrivateKey::generate().public(),
        nats_key: format!("U{serial}"),
        assignment,
        infrastructure: false,
        enrolled: Timestamp::now(),
        jwt_iat: 0,
        standing: Standing::Active,
        facts: Arc::default(),
        notes: Vec::new(),
        last_seen: None,
    }
}

/// `web-1` … `web-N` with serials from 1.
pub(crate) fn webs(n: u32) -> Vec<NodeRecord> {
    (1..=n)
        .map(|i| {
            record(
                i,
                assignment(&format!("web-{i}"), &["web"], &[("zone", "gva2")]),
            )
        })
        .collect()
}

fn caller() -> Caller {
    Caller {
        principal: "ana".parse().expect("a name"),
        role: Role::Operator,
        token: "t".into(),
        door: Door::Cli,
        origin: Origin::Unknown,
    }
}

async fn start(
    server: &TestServer,
    authority: &Authority,
    inventory: &Inventory,
    past: &Past,
    epoch: u64,
    beat: Span,
) -> (Nodes, CancellationToken) {
    let client = server.broker().await;
    let cancel = CancellationToken::new();
    let runs = Settings {
        max_bytes: 64 << 20,
        lost_within: Duration::from_secs(3),
        heard_within: Duration::from_secs(3),
        ..Settings::default()
    };
    let (js, lease) = (store::context(client.clone()), Lease::fixed(epoch));
    let events = Events::open(js, lease, crate::events::KEEP).await;
    let events = events.expect("there is room");
    tokio::spawn(events.clone().follow(cancel.clone()));
    let nodes = Nodes::start(Deps {
        observed: crate::vm::Observed::default(),
        groups: crate::groups::Desk::default(),
        freezer: crate::freeze::Freezer::never(authority),
        js: store::context(client.clone()),
        client,
        inventory: inventory.clone(),
        authority: authority.clone(),
        lease: Lease::fixed(epoch),
        events,
        journals: crate::presence::Journals::in_memory(),
        past: past.clone(),
        connections: None,
        library: None,
        settings: bus::Settings {
            runs,
            beat_every: Some(beat),
            ..bus::Settings::default()
        },
        cancel: cancel.clone(),
    })
    .await
    .expect("started");
    timeout(PATIENCE, nodes.engine.wait_ready())
        .await
        .expect("ready in time");
    (nodes, cancel)
}

impl World {
    async fn new(records: Vec<NodeRecord>) -> Self {
        let server = TestServer::start().await;
        let (_, authority) = Authority::in_memory();
        let inventory = Inventory::in_memory(records);
        let past = Past::unbroken();
        let beat = Span::from_secs(1);
        let (nodes, cancel) = start(&server, &authority, &inventory, &past, 1, beat).await;
        Self {
            server,
            authority,
            inventory,
            past,
            nodes,
            cancel,
            beat,
        }
    }

    /// What happened in the cluster.
    async fn told(&self) -> Vec<ClusterEvent> {
        let told = self
            .engine()
            .0
            .events
            .newest(&crate::events::Filter::default(), 1_000)
            .await;
        told.expect("they can be read")
    }

    fn engine(&self) -> &Engine {
        &self.nodes.engine
    }

    async fn node(&self, serial: u32, script: Script) -> Node {
        let record = Arc::clone(
            self.inventory
                .snapshot()
                .get(Serial(serial))
                .expect("enrolled"),
        );
        let node = Node::start(
            &self.server,
            Serial(serial),
            &record.assignment,
            self.authority.list(),
            script,
        )
        .await;
        self.until("the node is up", || {
            self.nodes.presence.view(Serial(serial)).state == State::Up
        })
        .await;
        node
    }

    async fn all(&self, script: &Script) -> Vec<Node> {
        let serials: Vec<u32> = self
            .inventory
            .snapshot()
            .iter()
            .map(|r| r.serial.0)
            .collect();
        let mut nodes = Vec::new();
        for serial in serials {
            nodes.push(self.node(serial, script.clone()).await);
        }
        nodes
    }

    async fn until(&self, what: &str, done: impl Fn() -> bool) {
        let end = Instant::now() + PATIENCE;
        while !done() {
            assert!(Instant::now() < end, "waited too long until {what}");
            sleep(Duration::from_millis(10)).await;
        }
    }

    fn frozen(&self, request: serde_json::Value) -> Authorized<FrozenRun> {
        let mut full = json!({"params": {"argv": ["true"]}});
        full.as_object_mut()
            .expect("object")
            .extend(request.as_object().expect("object").clone());
        let request: RunRequest = serde_json::from_value(full).expect("a request");
        let resolved = resolve(
            request.predicate.as_deref().expect("a predicate"),
            &self.inventory.snapshot(),
            options(&request),
        )
        .expect("resolves");
        let caller = caller();
        let by = (&caller.principal, caller.door);
        let run = check(&request).expect("fine").freeze(
            &request,
            &resolved,
            RunId::random(),
            by,
            Timestamp::now(),
        );
        let action = Action::CreateRun(Box::new(RunAsk::of(&run)));
        authorize(&FixedRoles, &caller, action, run).expect("allowed")
    }

    async fn run(&self, request: serde_json::Value) -> RunId {
        let run = self.frozen(request);
        self.engine().create(run).await.expect("created").brief.id
    }

    async fn cancel(&self, run: RunId) -> RunView {
        let run = authorize(&FixedRoles, &caller(), Action::CancelRun, run).expect("allowed");
        self.engine().cancel(run).await.expect("cancelled")
    }

    async fn ended(&self, run: RunId) -> RunView {
        let end = Instant::now() + PATIENCE * 2;
        loop {
            let view = self.engine().show(run).await.expect("shown");
            if view.brief.state.is_final() {
                return view;
            }
            assert!(Instant::now() < end, "the run does not end: {view:?}");
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn frames(&self, run: RunId, after: Option<Place>) -> Vec<Seen> {
        let read = async {
            let mut watch = self.engine().watch(run, after).await.expect("watched");
            let mut seen = Vec::new();
            while let Some(next) = watch.next().await {
                seen.push(next.expect("a frame"));
            }
            seen
        };
        timeout(PATIENCE * 2, read).await.expect("the watch ends")
    }

    /// The journal of a run as it is stored.
    async fn journal(&self, run: RunId) -> Vec<RunEvent> {
        use futures_util::TryStreamExt as _;
        let js = store::context(self.server.broker().await);
        let stored = store::read::read_from(&js, STREAM, &subject::journal(run), 1)
            .await
            .expect("read");
        let messages: Vec<_> = stored.try_collect().await.expect("read");
        messages
            .iter()
            .map(|m| serde_json::from_slice(&m.payload).expect("an event"))
            .collect()
    }

    /// Ends the broker's side without a word to anybody, and starts another.
    async fn restart(&mut self, epoch: u64) {
        self.cancel.cancel();
        timeout(PATIENCE, self.nodes.stopped())
            .await
            .expect("stopped");
        (self.nodes, self.cancel) = start(
            &self.server,
            &self.authority,
            &self.inventory,
            &self.past,
            epoch,
            self.beat,
        )
        .await;
    }
}

fn outcomes(view: &RunView) -> BTreeMap<String, Option<Outcome>> {
    view.results
        .iter()
        .map(|r| (r.node.to_string(), r.outcome))
        .collect()
}

fn quick() -> Script {
    Script::Quick(Outcome::Succeeded, b"hello\n".to_vec())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_reaches_exactly_its_nodes_and_ends_with_their_outcomes_and_output() {
    let mut records = webs(3);
    records.push(record(4, assignment("db-1", &["db"], &[("zone", "gva2")])));
    let world = World::new(records).await;
    let nodes = world.all(&quick()).await;
    *nodes[1].script.lock().unwrap() = Script::Quick(Outcome::Failed, b"\xff\x1b[2J".to_vec());

    let run = world.run(json!({"predicate": "role=web"})).await;
    let view = world.ended(run).await;
    assert_eq!(view.brief.state, RunPhase::Failed);
    assert_eq!(
        outcomes(&view),
        BTreeMap::from([
            ("web-1".into(), Some(Outcome::Succeeded)),
            ("web-2".into(), Some(Outcome::Failed)),
            ("web-3".into(), Some(Outcome::Succeeded)),
        ])
    );
    assert_eq!(
        nodes.iter().map(Node::executed).collect::<Vec<_>>(),
        [1, 1, 1, 0]
    );
    // What the node says of itself does not count: its subject does.
    assert!(view.results.iter().all(|r| r.serial.0 <= 3));

    let frames = world.frames(run, None).await;
    let kinds: Vec<&str> = frames.iter().map(|seen| seen.frame.event()).collect();
    assert_eq!(kinds.first(), Some(&"run_created"));
    assert_eq!(kinds.last(), Some(&"run_finished"));
    assert_eq!(kinds.iter().filter(|k| **k == "output").count(), 3);
    // A node's output stands before its outcome.
    for node in ["web-1", "web-2", "web-3"] {
        let place = |wanted: &str| {
            frames.iter().position(|seen| match &seen.frame {
                Frame::Output { node: n, .. } => wanted == "output" && n.as_str() == node,
                Frame::Outcome { result, .. } => {
                    wanted == "outcome" && result.node.as_str() == node
                }
                _ => false,
            })
        };
        assert!(place("output").expect("output") < place("outcome").expect("outcome"));
    }
    // Anybody who comes later sees the same.
    assert_eq!(world.frames(run, None).await, frames);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_request_is_sent_again_and_runs_once() {
    let world = World::new(webs(2)).await;
    let nodes = world.all(&quick()).await;
    nodes[0].log.lock().unwrap().drop = 2;
    let run = world.run(json!({"predicate": "*"})).await;
    let view = world.ended(run).await;
    assert_eq!(view.brief.state, RunPhase::Succeeded);
    assert_eq!(nodes[0].executed(), 1);
    assert_eq!(nodes[0].log.lock().unwrap().copies, 3);
    assert_eq!(nodes[1].executed(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_has_one_outcome_and_what_it_says_later_is_kept_apart() {
    let world = World::new(webs(1)).await;
    let nodes = world.all(&quick()).await;
    let run = world.run(json!({"predicate": "*"})).await;
    world.ended(run).await;
    let request = RequestId { run, step: 0 };
    // The node's own words with another exit code are another answer.
    assert_eq!(
        nodes[0].report(request, Outcome::Failed).await,
        OutcomeAnswer::Stored
    );
    assert_eq!(
        nodes[0].report(request, Outcome::Failed).await,
        OutcomeAnswer::Stored
    );
    let view = world.ended(run).await;
    assert_eq!(view.results[0].outcome, Some(Outcome::Succeeded));
    assert_eq!(view.results[0].late, [Outcome::Failed]);
    // A run that nobody knows, and one that the node has no part in.
    let strange = RequestId {
        run: RunId::random(),
        step: 0,
    };
    assert_eq!(
        nodes[0].report(strange, Outcome::Succeeded).await,
        OutcomeAnswer::Unknown
    );
    let journal = world.journal(run).await;
    let outcomes = journal
        .iter()
        .filter(|e| matches!(e, RunEvent::Outcomes { .. }))
        .count();
    let late = journal
        .iter()
        .filter(|e| matches!(e, RunEvent::Late { .. }))
        .count();
    assert_eq!((outcomes, late), (1, 1));
    assert_eq!(world.engine().strays(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn late_answers_reach_a_run_that_was_closed_long_ago() {
    let mut world = World::new(webs(2)).await;
    let nodes = world.all(&quick()).await;
    let run = world.run(json!({"predicate": "web-1"})).await;
    world.ended(run).await;
    // A broker that knows the run only from its journal.
    world.restart(2).await;
    let request = RequestId { run, step: 0 };
    assert_eq!(
        nodes[0].report(request, Outcome::TimedOut).await,
        OutcomeAnswer::Stored
    );
    // Not its run: it is told to forget it, and nothing is written.
    assert_eq!(
        nodes[1].report(request, Outcome::Succeeded).await,
        OutcomeAnswer::Unknown
    );
    let view = world.engine().show(run).await.expect("shown");
    assert_eq!(
        (view.results[0].outcome, &view.results[0].late),
        (Some(Outcome::Succeeded), &vec![Outcome::TimedOut])
    );
    assert_eq!(view.results.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_output_is_asked_for_and_the_cap_holds() {
    let world = World::new(webs(1)).await;
    let chunks: Vec<Vec<u8>> = (0..6u8).map(|n| vec![b'a' + n; 1000]).collect();
    let _nodes = world
        .all(&Script::Chunks {
            chunks,
            lost: vec![1, 4],
        })
        .await;
    let run = world.run(json!({"predicate": "*"})).await;
    world.ended(run).await;
    let frames = world.frames(run, None).await;
    let mut got: Vec<u32> = frames
        .iter()
        .filter_map(|seen| match &seen.frame {
            Frame::Output { chunk, .. } => Some(*chunk),
            _ => None,
        })
        .collect();
    got.sort_unstable();
    assert_eq!(got, [0, 1, 2, 3, 4, 5]);

    let run = world
        .run(json!({"predicate": "*", "output_bytes": 2500}))
        .await;
    world.ended(run).await;
    let frames = world.frames(run, None).await;
    let outputs = frames
        .iter()
        .filter(|seen| seen.frame.event() == "output")
        .count();
    let truncated = frames.iter().any(|seen| {
        matches!(
            seen.frame,
            Frame::Outcome {
                truncated: true,
                ..
            }
        )
    });
    assert_eq!((outputs, truncated), (2, true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_ends_what_runs_and_starts_nothing_more() {
    let world = World::new(webs(3)).await;
    let nodes = world.all(&Script::Hold).await;
    let run = world.run(json!({"predicate": "*", "batch": "2"})).await;
    world
        .until("two run", || {
            nodes.iter().map(Node::executed).sum::<usize>() == 2
        })
        .await;
    let view = world.cancel(run).await;
    assert_eq!(view.brief.state, RunPhase::Cancelling);
    let view = world.ended(run).await;
    assert_eq!(view.brief.state, RunPhase::Cancelled);
    assert_eq!(
        outcomes(&view).into_values().collect::<Vec<_>>(),
        [
            Some(Outcome::Cancelled),
            Some(Outcome::Cancelled),
            Some(Outcome::Skipped)
        ]
    );
    assert_eq!(nodes[2].executed(), 0);
    let again = authorize(&FixedRoles, &caller(), Action::CancelRun, run).expect("allowed");
    let error = world
        .engine()
        .cancel(again)
        .await
        .expect_err("it has ended");
    assert!(error.to_string().contains("has ended"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_that_overtakes_the_call_keeps_it_from_starting() {
    let world = World::new(webs(1)).await;
    let nodes = world.all(&quick()).await;
    // The call is lost, the cancel is not.
    nodes[0].log.lock().unwrap().drop = 1_000;
    let run = world.run(json!({"predicate": "*"})).await;
    world
        .until("a copy came", || nodes[0].log.lock().unwrap().copies >= 1)
        .await;
    world.cancel(run).await;
    let view = world.ended(run).await;
    assert_eq!(view.results[0].outcome, Some(Outcome::Cancelled));
    assert_eq!(nodes[0].executed(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_follow_each_other_and_a_spent_budget_skips_the_rest() {
    let world = World::new(webs(5)).await;
    let nodes = world.all(&quick()).await;
    *nodes[2].script.lock().unwrap() = Script::Quick(Outcome::Failed, Vec::new());
    let run = world
        .run(json!({"predicate": "*", "batch": "2", "max_failures": "0"}))
        .await;
    let view = world.ended(run).await;
    assert_eq!(
        outcomes(&view).into_values().collect::<Vec<_>>(),
        [
            Some(Outcome::Succeeded),
            Some(Outcome::Succeeded),
            Some(Outcome::Failed),
            Some(Outcome::Succeeded),
            Some(Outcome::Skipped)
        ]
    );
    let sent: Vec<Vec<u32>> = world
        .journal(run)
        .await
        .iter()
        .filter_map(|event| match event {
            RunEvent::Intent { nodes, .. } => Some(nodes.iter().map(|s| s.0).collect()),
            _ => None,
        })
        .collect();
    assert_eq!(sent, [vec![1, 2], vec![3, 4]]);
    assert_eq!(nodes[4].executed(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_down_is_unreachable_and_one_that_is_silent_is_unknown() {
    let mut records = webs(3);
    records[2].last_seen = Some(Timestamp::now() - jiff::SignedDuration::from_secs(300));
    let world = World::new(records).await;
    let _one = world.node(1, quick()).await;
    let _two = world.node(2, Script::Mute).await;
    world
        .until("web-3 is taken for down", || {
            world.nodes.presence.view(Serial(3)).state == State::Down
        })
        .await;
    let run = world
        .run(json!({"predicate": "*", "deliver_within": "1s"}))
        .await;
    let view = world.ended(run).await;
    assert_eq!(
        outcomes(&view).into_values().collect::<Vec<_>>(),
        [
            Some(Outcome::Succeeded),
            Some(Outcome::Unknown),
            Some(Outcome::Unreachable)
        ]
    );
    assert_eq!(
        view.results[2].reason.as_deref(),
        Some("last seen 5 min ago")
    );
    // Nothing was sent to it: it is in no intent.
    let intents = world.journal(run).await;
    let sent = |event: &RunEvent| matches!(event, RunEvent::Intent { nodes, .. } if nodes.contains(Serial(3)));
    assert!(!intents.iter().any(sent));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_wait_down_a_node_that_comes_back_in_time_runs_and_one_that_does_not_is_unreachable() {
    let world = World::new(webs(2)).await;
    let run = world
        .run(json!({"predicate": "*", "deliver_within": "3s", "wait_down": true}))
        .await;
    let one = world.node(1, quick()).await;
    let view = world.ended(run).await;
    assert_eq!(
        outcomes(&view).into_values().collect::<Vec<_>>(),
        [Some(Outcome::Succeeded), Some(Outcome::Unreachable)]
    );
    assert_eq!(one.executed(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_dies_in_mid_run_goes_on_where_it_stopped() {
    let mut world = World::new(webs(4)).await;
    let nodes = world.all(&Script::Hold).await;
    *nodes[0].script.lock().unwrap() = quick();
    let run = world.run(json!({"predicate": "*", "batch": "2"})).await;
    world
        .until("the first batch runs", || {
            nodes[0].executed() + nodes[1].executed() == 2
        })
        .await;
    let before = world.journal(run).await;
    world.restart(2).await;
    assert_eq!(world.engine().open_runs(), 1);
    for node in &nodes {
        *node.script.lock().unwrap() = quick();
    }
    nodes[1].release.notify_one();
    let view = world.ended(run).await;
    assert_eq!(view.brief.state, RunPhase::Succeeded, "{view:?}");
    assert_eq!(
        nodes.iter().map(Node::executed).collect::<Vec<_>>(),
        [1, 1, 1, 1]
    );
    let after = world.journal(run).await;
    assert_eq!(after[..before.len()], before);
    // No node is intended twice, and each has one outcome.
    let mut intended: Vec<u32> = Vec::new();
    let mut ended: Vec<u32> = Vec::new();
    for event in &after {
        match event {
            RunEvent::Intent { nodes, .. } => intended.extend(nodes.iter().map(|s| s.0)),
            RunEvent::Outcomes { results, .. } => ended.extend(results.iter().map(|r| r.serial.0)),
            _ => {}
        }
    }
    ended.sort_unstable();
    assert_eq!((intended, ended), (vec![1, 2, 3, 4], vec![1, 2, 3, 4]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_a_dead_broker_did_not_send_is_sent_by_the_next() {
    let mut world = World::new(webs(1)).await;
    let nodes = world.all(&quick()).await;
    nodes[0].log.lock().unwrap().drop = 1_000;
    let run = world
        .run(json!({"predicate": "*", "deliver_within": "30s"}))
        .await;
    world
        .until("a copy came", || nodes[0].log.lock().unwrap().copies >= 1)
        .await;
    world.restart(2).await;
    nodes[0].log.lock().unwrap().drop = 0;
    let view = world.ended(run).await;
    assert_eq!(view.brief.state, RunPhase::Succeeded);
    assert_eq!(nodes[0].executed(), 1);
}
