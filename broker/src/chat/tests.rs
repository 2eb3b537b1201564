//! The outbox and its feed, with a real NATS server.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::Context;
use futures_util::TryStreamExt as _;
use futures_util::future::BoxFuture;
use muster_protocol::api::{ClusterEvent, RunView, Utterance};
use muster_protocol::ids::RunId;
use muster_protocol::subject;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::Chat;
use super::handle::{Parts, Stores};
use super::outputs::Ran;
use super::result::Outputs;
use super::sentences::vms::OfMachine;
use super::spoken::STREAM;
use crate::events::Events;
use crate::events::place::Places;
use crate::hooks::Held;
use crate::lease::Lease;
use crate::nats::testing::{PATIENCE, TestServer};
use crate::routes::Routes;
use crate::store::kv::{BucketConfig, ensure_bucket};
use crate::store::read::read_from;
use crate::testing::{TestBroker, config_for, state_for, wait_for};

const HOOKS: &str = r##"
[routes.pushes]
kinds = ["git.*"]
channels = ["ops/#dev", "home/#Dev"]
repository = "web*"
where = { branch = "main" }

[routes.alarms]
kinds = ["alarm.*", "org.example.*"]
channel = "ops/#ops"
"##;

/// Nobody knows what runs came to.
#[derive(Debug)]
struct Nobody;

impl Ran for Nobody {
    fn came_to(&self, _: RunId) -> BoxFuture<'_, Option<(RunView, Outputs)>> {
        Box::pin(async { None })
    }
}

/// Every run is one of a machine.
#[derive(Debug)]
struct Machines;

impl Ran for Machines {
    fn came_to(&self, _: RunId) -> BoxFuture<'_, Option<(RunView, Outputs)>> {
        Box::pin(async { None })
    }

    fn machine_of(&self, _: RunId) -> Option<OfMachine> {
        Some(OfMachine {
            name: "web-03".parse().unwrap(),
            is_one_of_many: false,
        })
    }
}

/// Everything of a broker that chat needs.
struct World {
    js: Context,
    places: Places,
    hooks: String,
    _server: TestServer,
}

impl World {
    async fn new(hooks: &str) -> Self {
        let server = TestServer::start().await;
        let js = crate::store::context(server.broker().await);
        let bucket = ensure_bucket(&js, BucketConfig::new("muster_places"));
        Self {
            places: Places::new(bucket.await.unwrap(), Lease::fixed(1)),
            js,
            hooks: hooks.to_owned(),
            _server: server,
        }
    }

    /// One time of being the active broker.
    async fn term(&self) -> Term {
        self.term_with(Arc::new(Nobody)).await
    }

    async fn term_with(&self, ran: Arc<dyn Ran>) -> Term {
        let lease = Lease::fixed(1);
        let keep = Duration::from_secs(3_600);
        let events = Events::open(self.js.clone(), lease.clone(), keep);
        let events = events.await.unwrap();
        let cancel = CancellationToken::new();
        tokio::spawn(events.clone().follow(cancel.clone()));
        let dir = tempfile::tempdir().unwrap();
        write_hooks(dir.path(), &self.hooks);
        let held = Held::open(Some(&dir.path().join("hooks.toml"))).unwrap();
        let routes = Routes::new(
            held.clone(),
            events.clone(),
            self.places.clone(),
            String::new(),
        );
        let parts = Parts {
            js: self.js.clone(),
            stores: Stores::ensure(&self.js).await.unwrap(),
            lease,
            events: events.clone(),
            places: self.places.clone(),
            numbering: String::new(),
            held,
            routes: routes.clone(),
        };
        let chat = Chat::open(parts).await.unwrap();
        tokio::spawn(chat.clone().keep(ran, cancel.clone()));
        wait_for("the outbox has its place", async || {
            self.places.get("chat").await.unwrap()
        })
        .await;
        Term {
            chat,
            events,
            routes,
            cancel,
        }
    }

    /// Everything that is to be said, by network.
    async fn said(&self) -> Vec<(String, Utterance)> {
        let mut messages = read_from(&self.js, STREAM, subject::CHAT_ALL, 1)
            .await
            .unwrap();
        let mut said = Vec::new();
        while let Some(message) = messages.try_next().await.unwrap() {
            let utterance: Utterance = serde_json::from_slice(&message.payload).unwrap();
            said.push((message.subject, utterance));
        }
        said
    }
}

struct Term {
    chat: Chat,
    events: Events,
    routes: Routes,
    cancel: CancellationToken,
}

fn write_hooks(dir: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    let path = dir.join("hooks.toml");
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

fn push(id: &str, repository: &str, branch: &str) -> ClusterEvent {
    let mut event = ClusterEvent::own(id.to_owned(), "git.push", repository, "pushed".to_owned());
    event.source = "/muster/hooks/github".to_owned();
    for (name, value) in [
        ("repository", json!(repository)),
        ("branch", json!(branch)),
        ("pusher", json!("bruno")),
        ("commits_total", json!(1)),
        ("commits", json!([{ "id": "1", "message": id }])),
    ] {
        event.fields.insert(name.to_owned(), value);
    }
    event
}

fn other(id: &str) -> ClusterEvent {
    ClusterEvent {
        source: "https://ci.example.org".to_owned(),
        ..ClusterEvent::own(
            id.to_owned(),
            "org.example.done",
            "x",
            format!("event {id}"),
        )
    }
}

#[tokio::test]
async fn what_fits_a_route_is_said_in_its_channels_and_nowhere_else() {
    let world = World::new(HOOKS).await;
    let term = world.term().await;
    for event in [
        push("a", "acme/webapp", "main"),
        push("b", "acme/webapp", "topic"),
        push("c", "acme/other", "main"),
        other("d"),
    ] {
        term.events.put(event).await.unwrap();
    }
    let said = wait_for("all of it is said", async || {
        let said = world.said().await;
        (said.len() >= 3).then_some(said)
    })
    .await;
    let seen: Vec<(&str, &str, Vec<&str>)> = said
        .iter()
        .map(|(subject, u)| {
            let channel = u.place.channel.as_ref().unwrap().as_str();
            let lines = u.say.lines.iter().map(String::as_str).collect();
            (subject.as_str(), channel, lines)
        })
        .collect();
    let pushed = vec!["webapp: bruno pushed 1 to main", "  a"];
    assert_eq!(
        seen,
        [
            ("m1.chat.ops", "#dev", pushed.clone()),
            ("m1.chat.home", "#dev", pushed),
            ("m1.chat.ops", "#ops", vec!["event d"]),
        ]
    );
    let views = term.routes.list();
    let to: Vec<(&str, u64, &str)> = views
        .iter()
        .map(|view| (view.to.as_str(), view.sent, view.format.as_str()))
        .collect();
    assert_eq!(
        to,
        [("ops/#ops", 1, "chat"), ("ops/#dev, home/#dev", 2, "chat")]
    );
    term.cancel.cancel();
}

#[tokio::test]
async fn a_broker_that_ends_anywhere_loses_nothing_and_says_nothing_twice() {
    let world = World::new(HOOKS).await;
    let mut put = 0;
    for round in 0..6 {
        let term = world.term().await;
        for _ in 0..20 {
            term.events.put(other(&put.to_string())).await.unwrap();
            put += 1;
        }
        // Somewhere in the middle, another one each time.
        wait_for("some is said", async || {
            (world.said().await.len() >= put - 20 + round).then_some(())
        })
        .await;
        term.cancel.cancel();
        // As if the last place had not been stored any more.
        let mut place = world.places.get("chat").await.unwrap().unwrap();
        place.seq = place.seq.saturating_sub(7);
        world.places.set("chat", &place).await.unwrap();
    }
    let _last = world.term().await;
    let said = wait_for("all of it is said", async || {
        let said = world.said().await;
        (said.len() >= put).then_some(said)
    })
    .await;
    let lines: Vec<String> = said
        .into_iter()
        .map(|(_, u)| u.say.lines.concat())
        .collect();
    let all: Vec<String> = (0..put).map(|n| format!("event {n}")).collect();
    assert_eq!(lines, all);
}

fn about(kind: &str, id: &str, subject: &str, fields: serde_json::Value) -> ClusterEvent {
    ClusterEvent {
        source: "/muster/hooks/x".to_owned(),
        fields: fields.as_object().unwrap().clone(),
        ..ClusterEvent::own(id.to_owned(), kind, subject, String::new())
    }
}

/// The first lines of what is said in a channel.
async fn lines_in(world: &World, channel: &str) -> Vec<String> {
    let said = world.said().await;
    said.into_iter()
        .filter(|(_, u)| u.place.channel.as_ref().unwrap().as_str() == channel)
        .map(|(_, u)| u.say.lines[0].clone())
        .collect()
}

#[tokio::test]
async fn what_is_remembered_outlives_the_broker() {
    let hooks = "[routes.a]\nkinds = [\"alarm.*\"]\nchannel = \"ops/#ops\"\n\
                 [routes.b]\nkinds = [\"build.*\"]\nchannel = \"ops/#dev\"\n";
    let world = World::new(hooks).await;
    let disk = |kind: &str, id: &str| {
        let alarms = json!([{ "fingerprint": "f1", "name": "DiskFull", "instance": "web-1" }]);
        about(kind, id, "DiskFull", json!({ "alarms": alarms }))
    };
    let build = |id: &str, result: &str| {
        let fields = json!({ "repository": "acme/web", "name": "web", "number": id, "branch": "main", "result": result });
        about("build.finished", &format!("b{id}"), "acme/web", fields)
    };
    let term = world.term().await;
    for event in [
        disk("alarm.firing", "1"),
        disk("alarm.firing", "2"),
        build("1", "success"),
        build("2", "failure"),
        build("3", "cancelled"),
    ] {
        term.events.put(event).await.unwrap();
    }
    let done = async |term: &Term| {
        let last = term.events.last().await.unwrap();
        wait_for("all of it is looked at", async || {
            let place = world.places.get("chat").await.unwrap().unwrap();
            (place.seq >= last).then_some(())
        })
        .await;
    };
    done(&term).await;
    let by = super::alarms::By {
        principal: "ana".parse().unwrap(),
        place: Some(
            "ops/#ops"
                .parse::<super::place::ChannelAt>()
                .unwrap()
                .place(),
        ),
    };
    term.chat.alarms().ack(1, &by).await.unwrap();
    done(&term).await;
    term.cancel.cancel();
    // As if nothing of it had been written down as done.
    let mut place = world.places.get("chat").await.unwrap().unwrap();
    place.seq = 0;
    world.places.set("chat", &place).await.unwrap();
    let term = world.term().await;
    for event in [
        disk("alarm.resolved", "3"),
        disk("alarm.resolved", "4"),
        build("4", "success"),
        build("5", "success"),
        build("6", "failure"),
    ] {
        term.events.put(event).await.unwrap();
    }
    done(&term).await;
    let ops = lines_in(&world, "#ops").await;
    assert_eq!(ops[0], "DiskFull on web-1  !ack 1");
    assert!(
        ops[1].starts_with("DiskFull on web-1: resolved after"),
        "{ops:?}"
    );
    // Whoever acknowledged it did so there.
    assert_eq!(ops.len(), 2, "{ops:?}");
    assert_eq!(
        lines_in(&world, "#dev").await,
        [
            "web build 2 of main failed (was fine)",
            "web build 4 of main is fine again (was failing)",
            "web build 6 of main failed (was fine)"
        ]
    );
}

#[tokio::test]
async fn who_asked_for_a_run_is_told_where_they_asked_and_others_by_their_routes() {
    let hooks = "[routes.a]\nkinds = [\"run.*\"]\nchannels = [\"ops/#ops\", \"ops/#dev\"]\n";
    let world = World::new(hooks).await;
    let term = world.term().await;
    let chat = json!({ "network": "ops", "channel": "#dev", "person": { "nick": "ana", "account": "ana" } });
    let fields = json!({
        "run": "0123456789abcdefghjkmnpqrs", "title": "deploy", "principal": "ana", "door": "irc",
        "nodes": 12, "chat": chat, "waited": true, "batches": 4
    });
    let fields = fields.as_object().unwrap();
    let text = "deploy: succeeded, 12 succeeded".to_owned();
    for kind in ["run.begun", "run.ended"] {
        term.events
            .tell(kind, "8k2d", text.clone(), fields.clone())
            .await;
    }
    // Nobody else says where somebody is told something.
    let forged = about(
        "run.ended",
        "x",
        "8k2d",
        json!({ "chat": chat, "state": "failed" }),
    );
    term.events.put(forged).await.unwrap();
    wait_for("all of it is said", async || {
        (world.said().await.len() >= 6).then_some(())
    })
    .await;
    let said = world.said().await;
    let to_ana: Vec<&str> = said
        .iter()
        .filter(|(_, u)| u.place.person.is_some())
        .map(|(_, u)| u.say.lines[0].as_str())
        .collect();
    assert_eq!(
        to_ana,
        [
            "8k2d started: 12 nodes, 4 batches",
            "8k2d deploy: succeeded, 12 succeeded"
        ]
    );
    let ops = lines_in(&world, "#ops").await;
    assert_eq!(ops[0], "8k2d deploy started by ana (irc): 12 nodes");
    assert_eq!(ops.len(), 3, "{ops:?}");
    assert_eq!(lines_in(&world, "#dev").await.len(), 3);
}

#[tokio::test]
async fn who_had_a_machine_configured_is_told_its_end_once_by_the_machine() {
    let world = World::new("").await;
    let term = world.term_with(Arc::new(Machines)).await;
    let chat = json!({ "network": "ops", "channel": "#dev", "person": { "nick": "ana" } });
    let fields = json!({
        "run": RunId::from_bytes([7; 16]), "scenario": "deploy", "nodes": 1, "chat": chat,
        "waited": true, "state": "succeeded",
    });
    let told = [
        ("run.begun", "deploy"),
        ("run.ended", "deploy: succeeded, 1 succeeded"),
        ("vm.configured", "machine web-03 is configured by deploy"),
    ];
    for (kind, text) in told {
        let fields = fields.as_object().unwrap().clone();
        term.events
            .tell(kind, "8k2d", text.to_owned(), fields)
            .await;
    }
    wait_for("the machine's end is said", async || {
        let said = world.said().await;
        let last = said.last()?.1.say.lines.first()?.clone();
        last.contains("configured").then_some(())
    })
    .await;
    let said = lines_in(&world, "#dev").await;
    assert_eq!(
        said,
        ["8k2d started: 1 node", "web-03 is configured by deploy"]
    );
}

/// A request for the feed; the stream of the answer.
async fn listen(broker: &TestBroker, token: &str, network: &str, more: &str) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", broker.port))
        .await
        .unwrap();
    let ask = format!(
        "GET /v1/chat/feed?network={network} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n{more}\r\n"
    );
    stream.write_all(ask.as_bytes()).await.unwrap();
    stream
}

async fn read_until(stream: &mut TcpStream, done: impl Fn(&str) -> bool) -> String {
    let (mut text, mut piece) = (Vec::new(), vec![0; 1 << 16]);
    loop {
        let got = timeout(PATIENCE, stream.read(&mut piece)).await;
        let got = got
            .unwrap_or_else(|_| panic!("only {}", String::from_utf8_lossy(&text)))
            .unwrap();
        text.extend_from_slice(&piece[..got]);
        let whole = String::from_utf8_lossy(&text).into_owned();
        if done(&whole) || got == 0 {
            return whole;
        }
    }
}

async fn witness(broker: &TestBroker, network: &str) -> String {
    let body = json!({ "for": format!("irc:{network}"), "role": "witness" });
    let (status, answer) = broker.call("POST", "/v1/tokens", Some(body)).await;
    assert_eq!(status, 201, "{answer}");
    answer["token"].as_str().unwrap().to_owned()
}

async fn tell(broker: &TestBroker, id: &str) {
    let event = json!({
        "specversion": "1.0", "id": id, "source": "https://ci.example.org",
        "type": "org.example.done", "data": { "text": format!("event {id}") }
    });
    let (status, answer) = broker.call("POST", "/v1/events", Some(event)).await;
    assert_eq!(status, 200, "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bot_hears_its_own_network_from_where_it_was() {
    let (server, tmp) = (TestServer::start().await, tempfile::tempdir().unwrap());
    state_for(&server, tmp.path());
    let hooks = "[routes.a]\nkinds = [\"org.example.*\"]\nchannel = \"ops/#ops\"\n\
                 [routes.b]\nkinds = [\"org.example.*\"]\nchannel = \"home/#dev\"\n";
    write_hooks(tmp.path(), hooks);
    let config = || crate::Config {
        hooks_file: Some(tmp.path().join("hooks.toml")),
        ..config_for(&server, tmp.path())
    };
    let mut broker = TestBroker::begin(config()).await;
    broker.wait_active().await;
    broker.read_token(tmp.path());
    let (ops, home) = (
        witness(&broker, "ops").await,
        witness(&broker, "home").await,
    );
    // Of another network it hears nothing, and nobody else hears anything.
    for token in [&home, &broker.token] {
        let mut refused = listen(&broker, token, "ops", "Connection: close\r\n").await;
        let answer = read_until(&mut refused, |text| text.contains("denied")).await;
        assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    }
    let mut feed = listen(&broker, &ops, "ops", "").await;
    let begun = read_until(&mut feed, |text| text.contains("event: here\nid: 0\n")).await;
    assert!(begun.contains("text/event-stream"), "{begun}");
    tell(&broker, "1").await;
    tell(&broker, "2").await;
    let all = |text: &str| text.contains("event 1") && text.contains("event 2");
    let seen = read_until(&mut feed, all).await;
    assert!(seen.contains("#ops") && !seen.contains("#dev"), "{seen}");
    let place = seen
        .lines()
        .filter_map(|line| line.strip_prefix("id: "))
        .next()
        .unwrap()
        .to_owned();
    // The bot saw the first, and was away when the broker was another one.
    drop(feed);
    broker.stop().await;
    let mut broker = TestBroker::begin(config()).await;
    broker.wait_active().await;
    broker.read_token(tmp.path());
    tell(&broker, "3").await;
    let again = format!("Last-Event-ID: {place}\r\n");
    let mut feed = listen(&broker, &ops, "ops", &again).await;
    let rest = read_until(&mut feed, |text| text.contains("event 3")).await;
    assert!(
        rest.contains("event 2") && !rest.contains("event 1"),
        "{rest}"
    );
    for (id, wanted) in [
        ("x7abcd-3", "event: renumbered"),
        ("99999", "event: renumbered"),
    ] {
        let again = format!("Last-Event-ID: {id}\r\n");
        let mut feed = listen(&broker, &ops, "ops", &again).await;
        let answer = read_until(&mut feed, |text| text.contains(wanted)).await;
        assert!(answer.contains(wanted), "{answer}");
    }
    let mut bad = listen(
        &broker,
        &ops,
        "ops",
        "Last-Event-ID: x\r\nConnection: close\r\n",
    )
    .await;
    let answer = read_until(&mut bad, |text| text.contains("invalid-request")).await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    broker.stop().await;
}
