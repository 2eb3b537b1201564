//! One side has gone back in time, and the other has not.

use std::sync::atomic::Ordering;

use async_nats::{Client, HeaderMap};
use bytes::Bytes;
use futures_util::StreamExt as _;
use muster_protocol::PROTOCOL_VERSION;
use muster_protocol::envelope::{
    Ask, Call, KEY_HEADER, Limits, Mode, Request, SIGNATURE_HEADER, Sealed,
};
use muster_protocol::ids::{ClusterId, InstanceId};
use muster_protocol::keys::{BrokerKey, BrokerKeyState, KeyList};
use muster_protocol::nodeset::NodeSet;
use muster_protocol::run::NodeResult;
use muster_protocol::subject::{NodeSays, inbox_prefix, node_subject};
use muster_protocol::units::after;
use muster_protocol::wire::{
    Acknowledged, Hello, JournalMark, KeysAnswer, OutcomeReport, Pong, ProofAnswer,
};
use muster_scenarios::command;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::*;
use crate::nats::permissions::node_permissions;
use crate::twin::{Sign, WentBack};

/// A node that says exactly what a test wants it to.
struct Voice {
    client: Client,
    serial: Serial,
    instance: InstanceId,
    /// What it answers to a ping; 0 is no answer.
    position: Arc<std::sync::atomic::AtomicU64>,
    pongs: tokio::task::JoinHandle<()>,
}

impl Drop for Voice {
    fn drop(&mut self) {
        self.pongs.abort();
    }
}

impl Voice {
    async fn of(world: &World, serial: u32) -> Self {
        let client = world
            .server
            .user("node", node_permissions(serial, &["web"], &[]))
            .connect_options()
            .custom_inbox_prefix(inbox_prefix(Serial(serial)))
            .connect(world.server.url())
            .await
            .expect("a node connects");
        let (serial, instance) = (Serial(serial), InstanceId::random());
        let position = Arc::<std::sync::atomic::AtomicU64>::default();
        let heard = client.subscribe(node_subject(serial)).await;
        let mut heard = heard.expect("subscribed");
        client.flush().await.expect("flushed");
        let (voice, now) = (client.clone(), Arc::clone(&position));
        let pongs = tokio::spawn(async move {
            while let Some(message) = heard.next().await {
                let asked: Request = serde_json::from_slice(&message.payload).expect("a request");
                let position = now.load(Ordering::Relaxed);
                if asked.ask != Ask::Ping || position == 0 {
                    continue;
                }
                let pong = Pong {
                    request: asked.id(),
                    instance,
                    position: Some(position),
                };
                let json = serde_json::to_vec(&pong).expect("json");
                let subject = NodeSays::Pong.subject(serial);
                voice.publish(subject, json.into()).await.expect("said");
            }
        });
        Self {
            client,
            serial,
            instance,
            position,
            pongs,
        }
    }

    async fn send<A: DeserializeOwned>(
        &self,
        kind: NodeSays,
        headers: HeaderMap,
        bytes: Bytes,
    ) -> A {
        let request = async_nats::Request::new().headers(headers).payload(bytes);
        let asked = self.client.send_request(kind.subject(self.serial), request);
        let answer = timeout(PATIENCE, asked).await.expect("in time");
        serde_json::from_slice(&answer.expect("answered").payload).expect("readable")
    }

    async fn ask<A: DeserializeOwned>(&self, kind: NodeSays, what: &impl Serialize) -> A {
        let bytes = serde_json::to_vec(what).expect("json");
        self.send(kind, HeaderMap::new(), bytes.into()).await
    }

    async fn hello(&self, position: u64, acknowledged: &[RequestId]) -> Welcome {
        self.position.store(position, Ordering::Relaxed);
        self.says_hello(position, acknowledged).await
    }

    async fn says_hello(&self, position: u64, acknowledged: &[RequestId]) -> Welcome {
        let hello = Hello {
            protocol: PROTOCOL_VERSION,
            version: "0.1.0-test".into(),
            instance: self.instance,
            boot_id: "b".into(),
            time: Timestamp::now(),
            revision: 1,
            key_epoch: 1,
            broker_epoch: 1,
            capabilities: vec!["command".into()],
            build: None,
            journal: Some(JournalMark {
                position,
                acknowledged: acknowledged
                    .iter()
                    .map(|request| Acknowledged {
                        request: *request,
                        received: Timestamp::now(),
                    })
                    .collect(),
            }),
            seal: None,
            freeze: None,
        };
        self.ask(NodeSays::Hello, &hello).await
    }

    async fn prove(&self, sealed: &Sealed) -> ProofAnswer {
        let mut headers = HeaderMap::new();
        headers.insert(KEY_HEADER, sealed.key.to_string());
        headers.insert(SIGNATURE_HEADER, sealed.signature.to_string());
        self.send(NodeSays::Proof, headers, sealed.bytes.clone().into())
            .await
    }

    async fn report(&self, run: RunId, outcome: Outcome) -> OutcomeAnswer {
        let report = OutcomeReport {
            request: RequestId { run, step: 0 },
            result: NodeResult::new(self.serial, outcome, "as it was"),
            chunks: 0,
            inline: Vec::new(),
        };
        self.ask(NodeSays::Outcome, &report).await
    }

    async fn goes(&self) {
        let bye = muster_protocol::wire::Bye {
            instance: self.instance,
        };
        let json = serde_json::to_vec(&bye).expect("json");
        let subject = NodeSays::Bye.subject(self.serial);
        self.client
            .publish(subject, json.into())
            .await
            .expect("said");
        self.client.flush().await.expect("flushed");
    }
}

fn set(serials: &[u32]) -> NodeSet {
    serials.iter().map(|s| Serial(*s)).collect()
}

/// A request as a broker of this cluster signed it a while ago.
fn request(world: &World, part: &[u32], whole: &[u32]) -> Request {
    let issued = Timestamp::now()
        .checked_sub(Duration::from_secs(600))
        .expect("in range");
    Request {
        v: PROTOCOL_VERSION,
        cluster: world.authority.signer().cluster,
        epoch: 1,
        run: RunId::random(),
        step: 0,
        set: set(part),
        whole: set(whole),
        created: None,
        predicate: "role=web".into(),
        issued,
        start_before: after(issued, Duration::from_secs(15)),
        principal: "ana".parse().expect("a name"),
        door: Door::Cli,
        promised: false,
        ask: Ask::Call(Call {
            scenario: command::NAME.parse().expect("a name"),
            bundle: command::bundle(),
            function: command::FUNCTION.parse().expect("a name"),
            params: json!({"argv": ["true", "it"]}),
            mode: Mode::Apply,
            limits: Limits {
                timeout: Span::from_secs(2),
                output_bytes: 1_000,
                retry: 0,
            },
            expect: Default::default(),
            secrets: None,
        }),
    }
}

fn refused(answer: &ProofAnswer, part: &str) {
    let ProofAnswer::Refused { reason } = answer else {
        panic!("{answer:?} for `{part}`");
    };
    assert!(reason.contains(part), "{reason}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_is_not_known_is_written_down_again_from_the_request_and_never_sent() {
    let mut world = World::new(webs(3)).await;
    let bystander = world.node(3, quick()).await;
    let key = world.authority.signer().key;
    // Of web-9 nobody knows anything any more.
    let mut lost = request(&world, &[1], &[1, 2, 3, 9]);
    // A later batch of it.
    let created = lost.issued.checked_sub(Duration::from_secs(60));
    lost.created = created.ok();
    let id = lost.id();
    let one = Voice::of(&world, 1).await;

    // Who does not say what it keeps is not asked for it.
    assert_eq!(
        one.report(lost.run, Outcome::Succeeded).await,
        OutcomeAnswer::Unknown
    );
    let Welcome::Welcome { recall, .. } = one.hello(5, &[id]).await else {
        panic!("refused");
    };
    let day_ago = Timestamp::now()
        .checked_sub(Duration::from_secs(80_000))
        .expect("in range");
    assert!(recall.is_some_and(|r| r.since < day_ago), "{recall:?}");
    assert_eq!(
        one.report(lost.run, Outcome::Succeeded).await,
        OutcomeAnswer::Prove
    );
    let sealed = lost.seal(&key);
    assert_eq!(one.prove(&sealed).await, ProofAnswer::Taken);
    assert_eq!(one.prove(&sealed).await, ProofAnswer::Taken);
    assert_eq!(
        one.report(lost.run, Outcome::Succeeded).await,
        OutcomeAnswer::Stored
    );
    // Another one answers for itself, in its own words.
    let two = Voice::of(&world, 2).await;
    two.hello(5, &[]).await;
    assert_eq!(
        two.report(lost.run, Outcome::Failed).await,
        OutcomeAnswer::Stored
    );

    let view = world.engine().show(lost.run).await.expect("known again");
    assert_eq!(view.brief.principal, lost.principal);
    assert_eq!(
        (view.brief.title.as_str(), view.brief.nodes),
        ("true it", 4)
    );
    assert_eq!(Some(view.brief.created), lost.created);
    assert!(view.rebuilt.is_some());
    // A broker that stops in the middle goes on.
    world.restart(2).await;
    let view = world.ended(lost.run).await;
    assert_eq!(
        outcomes(&view),
        BTreeMap::from([
            ("web-1".into(), Some(Outcome::Succeeded)),
            ("web-2".into(), Some(Outcome::Failed)),
            ("web-3".into(), Some(Outcome::Unknown)),
            ("node-9".into(), Some(Outcome::Unknown)),
        ])
    );
    let reason = view.results[2].reason.as_deref().expect("a reason");
    assert!(reason.contains("the store went back"), "{reason}");
    assert_eq!(bystander.log.lock().unwrap().copies, 0, "nothing was sent");
    // Whoever comes later is late, and what is known is not asked for again.
    let Welcome::Welcome { recall, .. } = one.hello(6, &[id]).await else {
        panic!("refused");
    };
    assert_eq!(recall, None);
    bystander.hello().await;
    assert_eq!(
        bystander.report(id, Outcome::Succeeded).await,
        OutcomeAnswer::Stored
    );
    let journal = world.journal(lost.run).await;
    assert!(
        matches!(journal.last(), Some(RunEvent::Late { .. })),
        "{journal:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_makes_up_a_run_or_brings_one_back_that_was_removed() {
    let world = World::new(webs(2)).await;
    let key = world.authority.signer().key;
    let one = Voice::of(&world, 1).await;
    one.hello(1, &[]).await;
    let good = request(&world, &[1, 2], &[]);

    let mut altered = good.seal(&key);
    let text = String::from_utf8(altered.bytes).expect("text");
    altered.bytes = text.replace("\"ana\"", "\"bob\"").into_bytes();
    refused(&one.prove(&altered).await, "signature");
    let forged = good.seal(&PrivateKey::generate());
    assert_eq!(one.prove(&forged).await, ProofAnswer::UnknownKey);
    let mut junk = good.seal(&key);
    junk.bytes = vec![b'['; 100_000];
    junk.signature = key.sign(muster_protocol::keys::Purpose::Request, &junk.bytes);
    refused(&one.prove(&junk).await, "cannot be read");
    for (part, change) in [
        (
            "another cluster",
            (|r| r.cluster = ClusterId::random()) as fn(&mut Request),
        ),
        ("not for this node", |r| r.set = set(&[2])),
        ("no call", |r| r.ask = Ask::Cancel),
        ("no call", |r| r.step = 1),
        ("makes no sense", |r| r.whole = set(&[1])),
        ("future", |r| {
            r.issued = after(Timestamp::now(), Duration::from_secs(3_600))
        }),
        ("older than its run", |r| r.created = Some(Timestamp::now())),
        ("its age", |r| {
            r.issued = Timestamp::from_second(1_700_000_000).expect("in range")
        }),
    ] {
        let mut bad = good.clone();
        change(&mut bad);
        refused(&one.prove(&bad.seal(&key)).await, part);
    }
    // It made room for others.
    world.engine().0.purged.up_to(good.issued).await;
    refused(&one.prove(&good.seal(&key)).await, "want of room");
    let mark = Acknowledged {
        request: good.id(),
        received: good.issued,
    };
    let lacks = world.engine().lacks(Serial(1), &[mark]).await;
    assert_eq!(lacks, Some(false));
    let (runs, _) = world.engine().list(None, 10, false).expect("listed");
    assert!(runs.is_empty(), "{runs:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_this_broker_has_lost_is_believed_by_the_root_s_word() {
    let world = World::new(webs(1)).await;
    let (root, authority) = Authority::in_memory();
    // A world whose root key is known here.
    let list = authority.list();
    let (other, revoked) = (PrivateKey::generate(), PrivateKey::generate());
    let at = Timestamp::now();
    let entry = |key: &PrivateKey, state| BrokerKey {
        key: key.public(),
        state,
        added: at,
    };
    let hour_ago = at
        .checked_sub(Duration::from_secs(3_600))
        .expect("in range");
    let mut older = KeyList {
        epoch: list.epoch,
        issued: hour_ago,
        keys: vec![
            entry(&other, BrokerKeyState::Active),
            entry(&revoked, BrokerKeyState::Revoked),
        ],
        ..(*list).clone()
    };
    let (nodes, cancel) = start(
        &world.server,
        &authority,
        &world.inventory,
        &world.past,
        7,
        Span::from_secs(1),
    )
    .await;
    world.cancel.cancel();
    timeout(PATIENCE, world.nodes.stopped())
        .await
        .expect("stopped");
    let one = Voice::of(&world, 1).await;
    one.hello(1, &[]).await;
    let mut request = request(&world, &[1], &[]);
    request.cluster = list.cluster;
    let ours = request.seal(&other);
    assert_eq!(one.prove(&ours).await, ProofAnswer::UnknownKey);
    let strange = older.sign(&PrivateKey::generate());
    let answer: KeysAnswer = one.ask(NodeSays::Keys, &strange).await;
    assert!(matches!(answer, KeysAnswer::Refused { .. }), "{answer:?}");
    assert_eq!(one.prove(&ours).await, ProofAnswer::UnknownKey);

    let answer: KeysAnswer = one.ask(NodeSays::Keys, &older.sign(&root)).await;
    assert_eq!(answer, KeysAnswer::Taken);
    assert_eq!(one.prove(&ours).await, ProofAnswer::Taken);
    // Whoever has taken a key that was revoked an hour ago signs no run of
    // ten minutes ago with it.
    request.run = RunId::random();
    refused(&one.prove(&request.seal(&revoked)).await, "revoked");
    older.cluster = ClusterId::random();
    let answer: KeysAnswer = one.ask(NodeSays::Keys, &older.sign(&root)).await;
    assert!(matches!(answer, KeysAnswer::Refused { .. }), "{answer:?}");
    cancel.cancel();
    timeout(PATIENCE, nodes.stopped()).await.expect("stopped");
}

/// What a run on `web-2` is, to take as a pattern.
async fn spec_of_one(world: &World) -> Box<muster_protocol::run::RunSpec> {
    let run = world.run(json!({"predicate": "web-2"})).await;
    world.ended(run).await;
    let first = world.journal(run).await.into_iter().next();
    let Some(RunEvent::Created { spec }) = first else {
        panic!("no beginning: {first:?}");
    };
    spec
}

/// A journal that ends with its first event.
async fn begun(
    js: &async_nats::jetstream::Context,
    spec: &muster_protocol::run::RunSpec,
    id: RunId,
    created: Timestamp,
) {
    let mut spec = Box::new(spec.clone());
    (spec.id, spec.created) = (id, created);
    let event = serde_json::to_vec(&RunEvent::Created { spec }).expect("json");
    let stored = js.publish(subject::journal(id), event.into()).await;
    stored.expect("sent").await.expect("stored");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_was_perhaps_sent_is_ended_only_when_its_nodes_had_the_time_to_prove_it() {
    let mut world = World::new(webs(2)).await;
    let _other = world.node(2, quick()).await;
    let key = world.authority.signer().key;
    let js = store::context(world.server.broker().await);
    let spec = spec_of_one(&world).await;
    // Everything here was set back, and nothing says so.
    let sent = request(&world, &[1], &[1]);
    let (never, claimed) = (RunId::random(), RunId::random());
    for (id, created) in [
        (sent.run, sent.issued),
        (never, sent.issued),
        (claimed, sent.issued),
    ] {
        begun(&js, &spec, id, created).await;
    }
    world.restart(2).await;
    let view = world.engine().show(sent.run).await.expect("shown");
    assert_eq!(view.brief.state, RunPhase::Preparing);

    let one = Voice::of(&world, 1).await;
    // One that was told that its outcome is stored, and one that was not.
    let welcome = one.hello(5, &[sent.id()]).await;
    assert!(
        matches!(
            &welcome,
            Welcome::Welcome {
                recall: Some(_),
                ..
            }
        ),
        "{welcome:?}"
    );
    for run in [sent.run, claimed] {
        assert_eq!(
            one.report(run, Outcome::Succeeded).await,
            OutcomeAnswer::Prove
        );
    }
    // A claim alone changes nothing.
    let view = world.engine().show(claimed).await.expect("shown");
    assert_eq!(view.brief.state, RunPhase::Preparing);
    assert_eq!(one.prove(&sent.seal(&key)).await, ProofAnswer::Taken);
    assert_eq!(
        one.report(sent.run, Outcome::Succeeded).await,
        OutcomeAnswer::Stored
    );
    let view = world.ended(sent.run).await;
    assert_eq!(
        outcomes(&view),
        BTreeMap::from([("web-1".into(), Some(Outcome::Succeeded))])
    );
    assert!(view.rebuilt.is_some());
    assert_eq!(world.past.recent().len(), 0, "nothing is kept of it here");
    for run in [never, claimed] {
        let view = world.ended(run).await;
        assert_eq!(view.brief.state, RunPhase::Failed);
        assert!(view.rebuilt.is_none());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_journal_that_somebody_else_writes_has_the_store_compared_and_goes_on() {
    let world = World::new(webs(1)).await;
    let node = world.node(1, Script::Hold).await;
    let run = world.run(json!({"predicate": "web-1"})).await;
    world.until("it is sent", || node.executed() == 1).await;
    let mut suspicions = world.past.suspicions();
    assert!(!suspicions.has_changed().expect("it lives"));
    let foreign = RunEvent::Cancelling {
        by: "nobody".parse().expect("a name"),
        at: Timestamp::now(),
    };
    let js = store::context(world.server.broker().await);
    let event = serde_json::to_vec(&foreign).expect("json");
    let stored = js.publish(subject::journal(run), event.into()).await;
    stored.expect("sent").await.expect("stored");
    node.release.notify_one();
    timeout(PATIENCE, suspicions.changed())
        .await
        .expect("in time")
        .expect("it lives");
    // What is stored counts, and the run ends after it.
    let view = world.ended(run).await;
    assert_eq!(
        outcomes(&view),
        BTreeMap::from([("web-1".into(), Some(Outcome::Succeeded))])
    );
    assert!(world.journal(run).await.contains(&foreign));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_of_which_the_store_kept_only_the_beginning_comes_back_from_its_nodes() {
    let mut world = World::new(webs(2)).await;
    let _other = world.node(2, quick()).await;
    let key = world.authority.signer().key;
    let js = store::context(world.server.broker().await);
    // Two runs whose journals end with their first event.
    let (before, after) = (request(&world, &[1], &[1]), RunId::random());
    let spec = spec_of_one(&world).await;
    let now = Timestamp::now();
    for (id, created) in [(before.run, before.issued), (after, now)] {
        begun(&js, &spec, id, created).await;
    }
    // Between them it came out that the store had gone back.
    let minutes = |n: u64| {
        now.checked_sub(Duration::from_secs(60 * n))
            .expect("in range")
    };
    let went_back = WentBack {
        id: InstanceId::random(),
        since: minutes(60),
        found: minutes(5),
        sign: Sign::Twin,
        leap: false,
        what: String::new(),
    };
    world.past.add(went_back).await.expect("noted");
    world.restart(2).await;

    // Of the later one it is known that nothing was sent.
    let view = world.ended(after).await;
    assert_eq!(view.brief.state, RunPhase::Failed);
    // Of the other one nothing is.
    assert!(world.engine().show(before.run).await.is_err());
    assert_eq!(world.journal(before.run).await, []);
    let one = Voice::of(&world, 1).await;
    one.hello(5, &[before.id()]).await;
    assert_eq!(
        one.report(before.run, Outcome::Succeeded).await,
        OutcomeAnswer::Prove
    );
    assert_eq!(one.prove(&before.seal(&key)).await, ProofAnswer::Taken);
    assert_eq!(
        one.report(before.run, Outcome::Succeeded).await,
        OutcomeAnswer::Stored
    );
    let view = world.ended(before.run).await;
    assert_eq!(
        outcomes(&view),
        BTreeMap::from([("web-1".into(), Some(Outcome::Succeeded))])
    );
    assert!(view.rebuilt.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_went_back_gets_nothing_twice_and_its_outcome_is_unknown() {
    let world = World::new(webs(2)).await;
    let other = world.node(2, Script::Hold).await;
    let one = Voice::of(&world, 1).await;
    one.hello(10, &[]).await;
    world
        .until("it is up", || {
            world.nodes.presence.view(Serial(1)).state == State::Up
        })
        .await;
    // Nothing says that it heard the request: it may have begun, and died.
    let run = world
        .run(json!({"predicate": "role=web", "deliver_within": "10m"}))
        .await;
    world
        .until("the other has it", || other.executed() == 1)
        .await;
    // A hello that is older than what it has said since is no sign.
    one.position.store(12, Ordering::Relaxed);
    let stale = one.says_hello(9, &[]).await;
    assert!(
        matches!(
            stale,
            Welcome::Welcome {
                follow_after: None,
                ..
            }
        ),
        "{stale:?}"
    );
    let state = world.engine().state(run).await.expect("known");
    assert_eq!(state.results().count(), 0);
    one.goes().await;

    // It comes back with what it was before.
    let back = Voice::of(&world, 1).await;
    let mut heard = back.client.subscribe("m1.do.node.1").await.expect("heard");
    let Welcome::Welcome { follow_after, .. } = back.hello(10, &[]).await else {
        panic!("refused");
    };
    assert!(follow_after.is_some());
    let state = world.engine().state(run).await.expect("known");
    let told = state.results().next().expect("at once");
    assert_eq!((told.serial, told.outcome), (Serial(1), Outcome::Unknown));
    let reason = told.reason.as_deref().expect("a reason");
    assert!(reason.contains("gone back in time"), "{reason}");
    // What is sent from here on is of another run.
    other.release.notify_one();
    world.ended(run).await;
    let next = world.run(json!({"predicate": "web-1"})).await;
    loop {
        let message = timeout(PATIENCE, heard.next()).await.expect("in time");
        let message = message.expect("heard");
        let request: Request = serde_json::from_slice(&message.payload).expect("a request");
        if request.issued > follow_after.expect("said") && matches!(request.ask, Ask::Call(_)) {
            assert_eq!(request.run, next);
            break;
        }
    }
    // A start that is further is no news.
    let again = back.hello(11, &[]).await;
    assert!(
        matches!(
            again,
            Welcome::Welcome {
                follow_after: None,
                ..
            }
        ),
        "{again:?}"
    );
}
