//! A fleet on a real nats-server, with the test as its broker.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use async_nats::{Client, HeaderMap, Message};
use futures_util::StreamExt as _;
use muster_agent::identity::NodeKeys;
use muster_fleet_sim::chance::Faults;
use muster_fleet_sim::fleet::{Fleet, Running, Statistics};
use muster_fleet_sim::node::{Habits, Member};
use muster_fleet_sim::server::Server;
use muster_fleet_sim::store::{Common, Store};
use muster_fleet_sim::witness::Witness;
use muster_protocol::PROTOCOL_VERSION;
use muster_protocol::envelope::{
    Ask, Call, Door, KEY_HEADER, Limits, Mode, Request, SIGNATURE_HEADER,
};
use muster_protocol::ids::{ClusterId, RunId, Serial};
use muster_protocol::keys::{BrokerKey, BrokerKeyState, KeyList, PrivateKey};
use muster_protocol::run::Outcome;
use muster_protocol::subject::{self, NodeSays};
use muster_protocol::units::{Span, Timestamp, after};
use muster_protocol::wire::{
    Assignment, Hello, OUTPUT_HEADER, OutcomeAnswer, OutcomeReport, Pong, Welcome,
};
use muster_scenarios::command;
use serde_json::json;
use tokio::sync::mpsc;

const PATIENCE: Duration = Duration::from_secs(60);

/// The test as a broker.
struct Broker {
    client: Client,
    key: PrivateKey,
    root: PrivateKey,
    cluster: ClusterId,
    nodes: u32,
    said: mpsc::UnboundedReceiver<(Serial, NodeSays, Message)>,
}

async fn listen(
    client: &Client,
    kinds: &[NodeSays],
    to: &mpsc::UnboundedSender<(Serial, NodeSays, Message)>,
) -> Result<()> {
    for kind in kinds {
        let all = format!("m1.from.*.{}", kind.as_str());
        let mut messages = client.subscribe(all).await?;
        let to = to.clone();
        tokio::spawn(async move {
            while let Some(message) = messages.next().await {
                if let Some((serial, kind)) = NodeSays::parse(&message.subject) {
                    let _ = to.send((serial, kind, message));
                }
            }
        });
    }
    client.flush().await?;
    Ok(())
}

struct World {
    broker: Broker,
    running: Running,
    say: mpsc::UnboundedSender<(Serial, NodeSays, Message)>,
    _server: Server,
}

impl World {
    /// A fleet that was welcomed. Outcomes are not listened to yet.
    async fn begin(nodes: u32, faults: Faults, output: &str) -> Result<Self> {
        let server = Server::start("nats-server", None).await?;
        let client = async_nats::connect(server.url()).await?;
        let (say, said) = mpsc::unbounded_channel();
        let kinds = [
            NodeSays::Hello,
            NodeSays::Facts,
            NodeSays::Pong,
            NodeSays::Accepted,
            NodeSays::Output,
        ];
        listen(&client, &kinds, &say).await?;
        let (key, root) = (PrivateKey::generate(), PrivateKey::generate());
        let cluster = ClusterId::random();
        let now = Timestamp::now();
        let broker_key = BrokerKey {
            key: key.public(),
            state: BrokerKeyState::Active,
            added: now,
        };
        let list = KeyList {
            cluster,
            epoch: 1,
            root: root.public(),
            keys: vec![broker_key],
            issued: now,
        };
        let members = (1..=nodes)
            .map(|n| {
                Ok(Member {
                    keys: NodeKeys::generate(),
                    serial: Serial(n),
                    assignment: Assignment {
                        revision: 1,
                        name: format!("sim-{n:03}").parse()?,
                        roles: vec!["web".parse()?],
                        labels: BTreeMap::new(),
                    },
                    list: list.clone(),
                    jwt: "none".into(),
                    issued: now,
                    expires: after(now, Duration::from_secs(86_400)),
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let common = Common {
            root: root.public(),
            ca: None,
            nats_urls: vec![server.url().to_owned()],
            nats_ca: None,
        };
        let habits = Habits {
            faults,
            output: output.to_owned(),
            remember: 100,
            facts: Vec::new(),
            witness: Witness::new(members.len()),
            orders: muster_fleet_sim::orders::Orders::default(),
        };
        let fleet = Fleet::new(members.len(), &common, None, Store::nowhere())?;
        let running = Running::begin(fleet, members, Arc::new(habits));
        let broker = Broker {
            client,
            key,
            root,
            cluster,
            nodes,
            said,
        };
        let mut world = Self {
            broker,
            running,
            say,
            _server: server,
        };
        world.welcome_all().await?;
        Ok(world)
    }

    async fn welcome_all(&mut self) -> Result<()> {
        let ready = self.running.ready();
        let broker = &mut self.broker;
        let answer = async {
            loop {
                broker.next().await?;
            }
        };
        tokio::select! {
            _ = ready => Ok(()),
            failed = answer => failed,
            () = tokio::time::sleep(PATIENCE) => anyhow::bail!("not all were welcomed"),
        }
    }

    async fn hear_outcomes(&self) -> Result<()> {
        listen(&self.broker.client, &[NodeSays::Outcome], &self.say).await
    }

    /// Serves until the statistics are as wanted.
    async fn until(&mut self, what: &str, wanted: impl Fn(&Statistics) -> bool) -> Result<Seen> {
        let end = tokio::time::Instant::now() + PATIENCE;
        let mut seen = Seen::default();
        let mut look = tokio::time::interval(Duration::from_millis(20));
        loop {
            tokio::select! {
                said = self.broker.next() => seen.take(said?)?,
                _ = look.tick() => {
                    let now = self.running.statistics();
                    if wanted(&now) {
                        return Ok(seen);
                    }
                    ensure!(tokio::time::Instant::now() < end, "waited for {what}: {now:#?}");
                }
            }
        }
    }
}

/// What the broker heard.
#[derive(Default)]
struct Seen {
    outcomes: HashMap<Serial, Vec<OutcomeReport>>,
    output: HashMap<Serial, Vec<u8>>,
}

impl Seen {
    fn take(&mut self, said: Option<(Serial, NodeSays, Message)>) -> Result<()> {
        let Some((serial, kind, message)) = said else {
            return Ok(());
        };
        match kind {
            NodeSays::Outcome => {
                let report = serde_json::from_slice(&message.payload)?;
                self.outcomes.entry(serial).or_default().push(report);
            }
            NodeSays::Output => {
                ensure!(
                    message
                        .headers
                        .is_some_and(|h| h.get(OUTPUT_HEADER).is_some())
                );
                let output = self.output.entry(serial).or_default();
                output.extend_from_slice(&message.payload);
            }
            NodeSays::Pong => {
                serde_json::from_slice::<Pong>(&message.payload)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn by_node(&self) -> BTreeMap<Serial, Outcome> {
        let first = |reports: &Vec<OutcomeReport>| reports[0].result.outcome;
        self.outcomes.iter().map(|(s, r)| (*s, first(r))).collect()
    }
}

impl Broker {
    /// Hears one message and answers it.
    async fn next(&mut self) -> Result<Option<(Serial, NodeSays, Message)>> {
        let (serial, kind, message) = self.said.recv().await.context("the fleet is gone")?;
        let answer = match kind {
            NodeSays::Hello => {
                let hello: Hello = serde_json::from_slice(&message.payload)?;
                ensure!(hello.protocol == PROTOCOL_VERSION);
                serde_json::to_vec(&Welcome::Welcome {
                    time: Timestamp::now(),
                    keys: None,
                    revision: 1,
                    beat_every: Span::from_secs(5),
                    recall: None,
                    wants_keys: false,
                    follow_after: None,
                    freeze: None,
                })?
            }
            NodeSays::Facts => Vec::new(),
            NodeSays::Outcome => serde_json::to_vec(&OutcomeAnswer::Stored)?,
            _ => return Ok(Some((serial, kind, message))),
        };
        if let Some(reply) = message.reply.clone() {
            self.client.publish(reply, answer.into()).await?;
        }
        Ok(Some((serial, kind, message)))
    }

    fn request(&self, run: RunId, ask: Ask) -> Request {
        let issued = Timestamp::now();
        Request {
            v: PROTOCOL_VERSION,
            cluster: self.cluster,
            epoch: 1,
            run,
            step: 0,
            set: (1..=self.nodes).map(Serial).collect(),
            whole: muster_protocol::nodeset::NodeSet::new(),
            created: None,
            predicate: "role=web".into(),
            issued,
            start_before: after(issued, Duration::from_secs(60)),
            principal: "ana".parse().expect("a name"),
            door: Door::Cli,
            promised: false,
            ask,
        }
    }

    async fn send(&self, subject: &str, request: &Request) -> Result<()> {
        let sealed = request.seal(&self.key);
        let mut headers = HeaderMap::new();
        headers.insert(KEY_HEADER, sealed.key.to_string().as_str());
        headers.insert(SIGNATURE_HEADER, sealed.signature.to_string().as_str());
        self.client
            .publish_with_headers(subject.to_owned(), headers, sealed.bytes.into())
            .await?;
        Ok(self.client.flush().await?)
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

#[tokio::test(flavor = "multi_thread")]
async fn duplicated_and_reordered_requests_take_effect_once_and_outcomes_are_sent_until_stored()
-> Result<()> {
    let faults = Faults {
        duplicate: "50%".parse()?,
        reorder: true,
        work: "0ms..20ms".parse()?,
        ..Faults::default()
    };
    let mut world = World::begin(40, faults, "hello from {name}").await?;
    let run = RunId::random();
    let request = world.broker.request(run, call());
    for _ in 0..3 {
        world.broker.send(subject::ALL, &request).await?;
        world
            .broker
            .send(&subject::role_subject("web"), &request)
            .await?;
    }
    // Nobody listens to outcomes: they are sent, and sent again.
    world
        .until("outcomes that nobody hears", |now| now.reports > 80)
        .await?;
    assert_eq!(world.running.statistics().stored, 0);
    world.hear_outcomes().await?;
    let seen = world
        .until("all outcomes stored", |now| now.stored == 40)
        .await?;
    assert_eq!(seen.outcomes.len(), 40);
    for (serial, reports) in &seen.outcomes {
        for report in reports {
            assert_eq!(report.result.serial, *serial);
            assert_eq!(report.result.outcome, Outcome::Succeeded);
            let text = format!("hello from sim-{:03}", serial.0);
            assert_eq!(report.inline[0].data.bytes(), Some(text.into_bytes()));
        }
    }
    // And once more, freshly signed, to one node: the same outcome again.
    let before = world.running.statistics().reports;
    let node = subject::node_subject(Serial(7));
    world
        .broker
        .send(&node, &world.broker.request(run, call()))
        .await?;
    world
        .until("the outcome again", |now| now.reports > before)
        .await?;
    let said = world.running.end().await;
    assert_eq!(said.testimony.more_than_once, 0);
    let step = &said.testimony.requests[&request.id().to_string()];
    assert_eq!((step.effects, step.nodes, step.most_on_a_node), (40, 40, 1));
    assert_eq!(step.outcomes, [(Outcome::Succeeded, 40)].into());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_end_lose_nothing() -> Result<()> {
    let faults = Faults {
        // Each lives for a few seconds.
        drop_connection: "100%/min".parse()?,
        work: "50ms..900ms".parse()?,
        ..Faults::default()
    };
    let mut world = World::begin(20, faults, "").await?;
    world.hear_outcomes().await?;
    let request = world.broker.request(RunId::random(), call());
    let mut sends = 0;
    // As a broker does: until everybody has answered.
    loop {
        world.broker.send(subject::ALL, &request).await?;
        sends += 1;
        let stored = world.running.statistics().stored;
        let connects = world.running.statistics().connects;
        if stored == 20 && connects > 40 {
            break;
        }
        ensure!(sends < 200, "{:#?}", world.running.statistics());
        let until = tokio::time::Instant::now() + Duration::from_millis(250);
        while let Ok(said) = tokio::time::timeout_at(until, world.broker.next()).await {
            said?;
        }
    }
    let said = world.running.end().await;
    assert_eq!(said.testimony.more_than_once, 0);
    assert_eq!(
        said.testimony.requests[&request.id().to_string()].effects,
        20
    );
    assert!(said.dropped > 20, "{said:#?}");
    Ok(())
}

async fn outcomes(seed: u64) -> Result<Vec<BTreeMap<Serial, Outcome>>> {
    let faults = Faults {
        seed,
        fail: "20%".parse()?,
        decline: "10%".parse()?,
        ..Faults::default()
    };
    let mut world = World::begin(60, faults, "").await?;
    world.hear_outcomes().await?;
    let mut all = Vec::new();
    for run in 1..=2 {
        let request = world.broker.request(RunId::random(), call());
        world.broker.send(subject::ALL, &request).await?;
        let seen = world
            .until("all outcomes", |now| now.stored == run * 60)
            .await?;
        all.push(seen.by_node());
    }
    world.running.end().await;
    Ok(all)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_seed_fails_in_the_same_way() -> Result<()> {
    let first = outcomes(11).await?;
    assert_eq!(first, outcomes(11).await?);
    assert_ne!(first, outcomes(12).await?);
    assert_ne!(first[0], first[1], "each run is drawn for itself");
    let failed = first[0].values().filter(|o| **o == Outcome::Failed).count();
    assert!((2..=28).contains(&failed), "{failed}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_node_says_nothing_a_slow_one_accepts_and_a_cancel_ends_it() -> Result<()> {
    let faults = Faults {
        slow: "100%:30s".parse()?,
        ..Faults::default()
    };
    let mut world = World::begin(5, faults, "").await?;
    world.hear_outcomes().await?;
    let run = RunId::random();
    let request = world.broker.request(run, call());
    world.broker.send(subject::ALL, &request).await?;
    world.until("acceptance", |now| now.accepted == 5).await?;
    let cancel = world.broker.request(run, Ask::Cancel);
    world.broker.send(subject::ALL, &cancel).await?;
    let seen = world.until("the end", |now| now.stored == 5).await?;
    assert!(seen.by_node().values().all(|o| *o == Outcome::Cancelled));
    // A cancel that comes first keeps the call from ever starting.
    let run = RunId::random();
    let cancel = world.broker.request(run, Ask::Cancel);
    world.broker.send(subject::ALL, &cancel).await?;
    let request = world.broker.request(run, call());
    world.broker.send(subject::ALL, &request).await?;
    world.until("tombstones", |now| now.stored == 10).await?;
    let ping = world.broker.request(RunId::random(), Ask::Ping);
    world.broker.send(subject::ALL, &ping).await?;
    world.until("pongs", |now| now.pongs == 5).await?;
    let said = world.running.end().await;
    let effects = |request: &Request| said.testimony.requests[&request.id().to_string()].effects;
    assert_eq!(effects(&request), 0);
    assert_eq!(said.testimony.more_than_once, 0);

    let faults = Faults {
        silent: "100%".parse()?,
        ..Faults::default()
    };
    let mut world = World::begin(5, faults, "").await?;
    world.hear_outcomes().await?;
    let request = world.broker.request(RunId::random(), call());
    world.broker.send(subject::ALL, &request).await?;
    let ping = world.broker.request(RunId::random(), Ask::Ping);
    world.broker.send(subject::ALL, &ping).await?;
    let seen = world.until("pongs", |now| now.pongs == 5).await?;
    assert!(seen.outcomes.is_empty());
    assert_eq!(world.running.end().await.testimony.requests.len(), 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn large_output_comes_in_chunks_and_a_stranger_is_only_counted() -> Result<()> {
    let text = "0123456789".repeat(5000);
    let mut world = World::begin(3, Faults::default(), &text).await?;
    world.hear_outcomes().await?;
    let request = world.broker.request(RunId::random(), call());
    // Signed by the root key, which signs no requests.
    let key = std::mem::replace(&mut world.broker.key, world.broker.root.clone());
    world.broker.send(subject::ALL, &request).await?;
    world
        .until("a refusal", |now| {
            now.testimony
                .refused
                .get("unknown_key")
                .is_some_and(|n| *n >= 3)
        })
        .await?;
    assert!(world.running.statistics().testimony.requests.is_empty());
    world.broker.key = key;
    world.broker.send(subject::ALL, &request).await?;
    let seen = world.until("outcomes", |now| now.stored == 3).await?;
    for node in 1..=3 {
        assert_eq!(seen.output[&Serial(node)], text.as_bytes());
        assert_eq!(seen.outcomes[&Serial(node)][0].chunks, 2);
    }
    world.running.end().await;
    Ok(())
}
