//! A node as a test scripts it: it speaks the protocol over NATS, verifies
//! every request, and keeps a journal of one line.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::{Client, HeaderMap, Message as NatsMessage};
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::select_all;
use muster_protocol::PROTOCOL_VERSION;
use muster_protocol::envelope::{
    Ask, Gate, HighWater, Incoming, KEY_HEADER, Mode, Request, SIGNATURE_HEADER,
};
use muster_protocol::ids::{InstanceId, RequestId, Serial};
use muster_protocol::keys::KeyList;
use muster_protocol::note::{Digest, Tally};
use muster_protocol::run::{NodeResult, Outcome, Stream};
use muster_protocol::subject::{
    ALL, NodeSays, inbox_prefix, label_subject, node_subject, role_subject,
};
use muster_protocol::units::Timestamp;
use muster_protocol::wire::{
    Accepted, Assignment, Beat, Hello, InlineChunk, OUTPUT_HEADER, OutcomeAnswer, OutcomeReport,
    OutputHead, Pong, Welcome,
};
use serde::Serialize;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::nats::permissions::node_permissions;
use crate::nats::testing::TestServer;

/// What a node does with a call.
#[derive(Clone, Debug)]
pub(crate) enum Script {
    /// Ends it at once with this output, small enough to travel inside.
    Quick(Outcome, Vec<u8>),
    /// Sends output in chunks; these are lost on the way the first time.
    Chunks {
        chunks: Vec<Vec<u8>>,
        lost: Vec<u32>,
    },
    /// Ends it at once: each function with the outcome that is named here,
    /// else well.
    Functions(HashMap<String, Outcome>),
    /// Ends it at once and well, with this in its result.
    Returns(NodeResult),
    /// Says that it runs, and ends when it is released or cancelled.
    Hold,
    /// Says nothing, ever.
    Mute,
}

/// What happened on the node.
#[derive(Debug, Default)]
pub(crate) struct Log {
    /// Calls that it executed.
    pub(crate) executed: Vec<RequestId>,
    /// The functions that it executed, with what they were given.
    pub(crate) called: Vec<String>,
    /// Copies of calls that came.
    pub(crate) copies: u32,
    /// Copies that are dropped before anything else.
    pub(crate) drop: u32,
    pub(crate) cancels: u32,
    /// Answers to its outcomes.
    pub(crate) answers: Vec<OutcomeAnswer>,
    /// Requests that it refused.
    pub(crate) refused: Vec<String>,
}

pub(crate) struct Node {
    pub(crate) instance: InstanceId,
    pub(crate) client: Client,
    pub(crate) script: Arc<Mutex<Script>>,
    pub(crate) log: Arc<Mutex<Log>>,
    pub(crate) release: Arc<Notify>,
    pub(crate) welcome: watch::Receiver<Option<Welcome>>,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Shared {
    serial: Serial,
    instance: InstanceId,
    revision: u64,
    client: Client,
    keys: Arc<KeyList>,
    script: Arc<Mutex<Script>>,
    log: Arc<Mutex<Log>>,
    release: Arc<Notify>,
    state: Mutex<State>,
    welcome: watch::Sender<Option<Welcome>>,
    capabilities: Vec<String>,
}

#[derive(Default)]
struct State {
    seen: HighWater,
    done: HashMap<RequestId, Option<NodeResult>>,
}

impl Node {
    /// Connects with a node's own credentials, says hello, and listens.
    pub(crate) async fn start(
        server: &TestServer,
        serial: Serial,
        assignment: &Assignment,
        keys: Arc<KeyList>,
        script: Script,
    ) -> Self {
        let roles: Vec<&str> = assignment.roles.iter().map(|r| r.as_str()).collect();
        let labels: Vec<(&str, &str)> = assignment
            .labels
            .iter()
            .map(|(k, v)| (k.as_str(), v.as_str()))
            .collect();
        let client = server
            .user("node", node_permissions(serial.0, &roles, &labels))
            .connect_options()
            .custom_inbox_prefix(inbox_prefix(serial))
            .connect(server.url())
            .await
            .expect("a node connects");
        Self::over(client, serial, assignment, keys, script).await
    }

    /// The same over a connection of the node's own.
    pub(crate) async fn over(
        client: Client,
        serial: Serial,
        assignment: &Assignment,
        keys: Arc<KeyList>,
        script: Script,
    ) -> Self {
        let mut subjects = vec![ALL.to_owned(), node_subject(serial)];
        subjects.extend(assignment.roles.iter().map(|r| role_subject(r.as_str())));
        subjects.extend(
            assignment
                .labels
                .iter()
                .map(|(k, v)| label_subject(k.as_str(), v.as_str())),
        );
        Self::listen(client, serial, assignment.revision, keys, script, subjects).await
    }

    async fn listen(
        client: Client,
        serial: Serial,
        revision: u64,
        keys: Arc<KeyList>,
        script: Script,
        subjects: Vec<String>,
    ) -> Self {
        let mut capabilities = vec!["command".to_owned()];
        if subjects.contains(&role_subject(crate::vm::HYPERVISOR)) {
            capabilities.push("vm".to_owned());
        }
        let mut heard = Vec::new();
        for subject in subjects {
            heard.push(client.subscribe(subject).await.expect("subscribed"));
        }
        let (welcome, welcomed) = watch::channel(None);
        let instance = InstanceId::random();
        let shared = Arc::new(Shared {
            serial,
            instance,
            revision,
            client: client.clone(),
            keys,
            script: Arc::new(Mutex::new(script)),
            log: Arc::default(),
            release: Arc::default(),
            state: Mutex::default(),
            welcome,
            capabilities,
        });
        client.flush().await.expect("flushed");
        let this = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            let mut heard = select_all(heard);
            let every = Duration::from_millis(500);
            let mut beat = tokio::time::interval_at(tokio::time::Instant::now() + every, every);
            loop {
                tokio::select! {
                    message = heard.next() => match message {
                        Some(message) => this.hear(&message).await,
                        None => return,
                    },
                    _ = beat.tick() => this.say(NodeSays::Beat, &this.beat()).await,
                }
            }
        });
        // A node that says hello may be asked by a ping who it is.
        shared.hello().await;
        Self {
            instance,
            client,
            script: Arc::clone(&shared.script),
            log: Arc::clone(&shared.log),
            release: Arc::clone(&shared.release),
            welcome: welcomed,
            shared,
            task,
        }
    }

    pub(crate) async fn hello(&self) {
        self.shared.hello().await;
    }

    /// Stops listening and ends the connection.
    pub(crate) async fn stop(self) {
        self.task.abort();
        let _ = self.client.drain().await;
    }

    pub(crate) fn executed(&self) -> usize {
        self.log.lock().unwrap().executed.len()
    }

    /// Sends an outcome that nobody asked for now.
    pub(crate) async fn report(&self, request: RequestId, outcome: Outcome) -> OutcomeAnswer {
        let report = OutcomeReport {
            request,
            result: NodeResult::new(Serial(4_000_000), outcome, "reported again"),
            chunks: 0,
            inline: Vec::new(),
        };
        self.shared.deliver(&report, &[]).await
    }
}

impl Shared {
    async fn say<T: Serialize>(&self, kind: NodeSays, what: &T) {
        let json = serde_json::to_vec(what).expect("json");
        self.client
            .publish(kind.subject(self.serial), json.into())
            .await
            .expect("published");
    }

    fn beat(&self) -> Beat {
        Beat {
            instance: self.instance,
            time: Timestamp::now(),
            revision: self.revision,
            running: 0,
            refused: [].into(),
            position: None,
        }
    }

    async fn hello(&self) {
        let hello = Hello {
            protocol: PROTOCOL_VERSION,
            version: "0.1.0-test".into(),
            instance: self.instance,
            boot_id: "b".into(),
            time: Timestamp::now(),
            revision: self.revision,
            key_epoch: self.keys.epoch,
            broker_epoch: 0,
            capabilities: self.capabilities.clone(),
            build: None,
            journal: None,
            seal: None,
            freeze: None,
        };
        let json = serde_json::to_vec(&hello).expect("json");
        let subject = NodeSays::Hello.subject(self.serial);
        let asked = timeout(
            Duration::from_secs(5),
            self.client.request(subject, json.into()),
        )
        .await;
        if let Ok(Ok(answer)) = asked {
            let welcome = serde_json::from_slice(&answer.payload).expect("a welcome");
            self.welcome.send_replace(Some(welcome));
        }
    }

    async fn hear(self: &Arc<Self>, message: &NatsMessage) {
        let header = |name: &str| {
            message
                .headers
                .as_ref()
                .and_then(|h| h.get(name))
                .map(|v| v.as_str())
        };
        let incoming = Incoming {
            key: header(KEY_HEADER),
            signature: header(SIGNATURE_HEADER),
            bytes: &message.payload,
        };
        let checked = {
            let state = self.state.lock().unwrap();
            Gate {
                keys: &self.keys,
                node: self.serial,
                seen: &state.seen,
            }
            .check(incoming, Timestamp::now())
        };
        let request = match checked {
            Ok(request) => request,
            Err(refused) => {
                self.log
                    .lock()
                    .unwrap()
                    .refused
                    .push(refused.why.kind().to_owned());
                return;
            }
        };
        let key = header(KEY_HEADER)
            .and_then(|k| k.parse().ok())
            .expect("checked");
        {
            let mut state = self.state.lock().unwrap();
            if let Some(seen) = state.seen.advanced(&request, key) {
                state.seen = seen;
            }
        }
        match &request.ask {
            Ask::Ping => {
                self.say(
                    NodeSays::Pong,
                    &Pong {
                        request: request.id(),
                        instance: self.instance,
                        position: None,
                    },
                )
                .await
            }
            Ask::Call(_) => self.call(&request).await,
            Ask::Cancel => {
                self.log.lock().unwrap().cancels += 1;
                let fresh = self
                    .state
                    .lock()
                    .unwrap()
                    .done
                    .insert(request.id(), None)
                    .is_none();
                if fresh {
                    let result = NodeResult::new(
                        self.serial,
                        Outcome::Cancelled,
                        "cancelled before it started",
                    );
                    self.end(request.id(), result, Vec::new(), Vec::new());
                } else {
                    self.release.notify_one();
                }
            }
            Ask::Refresh { .. }
            | Ask::Recall(_)
            | Ask::Freeze { .. }
            | Ask::Groups(_)
            | Ask::Probe(_)
            | Ask::Keys { .. } => {}
        }
    }

    async fn call(self: &Arc<Self>, request: &Request) {
        let id = request.id();
        {
            let mut log = self.log.lock().unwrap();
            log.copies += 1;
            if log.drop > 0 {
                log.drop -= 1;
                return;
            }
        }
        let script = self.script.lock().unwrap().clone();
        if matches!(script, Script::Mute) {
            return;
        }
        let known = self.state.lock().unwrap().done.get(&id).cloned();
        match known {
            Some(None) => {
                return self
                    .say(NodeSays::Accepted, &Accepted { request: id })
                    .await;
            }
            Some(Some(result)) => return self.end(id, result, Vec::new(), Vec::new()),
            None => {}
        }
        self.state.lock().unwrap().done.insert(id, None);
        {
            let mut log = self.log.lock().unwrap();
            log.executed.push(id);
            if let Ask::Call(call) = &request.ask {
                log.called
                    .push(format!("{} {}", call.function, call.params));
            }
        }
        let mut result = NodeResult::new(self.serial, Outcome::Succeeded, "");
        result.reason = None;
        result.exit = Some(0);
        if let Ask::Call(call) = &request.ask {
            if call.mode == Mode::Check {
                result.digest = Some(Digest::NOTHING);
            }
            // It would change nothing, whatever it is asked to.
            if call
                .expect
                .get(self.serial)
                .is_some_and(|d| d != Digest::NOTHING)
            {
                result.outcome = Outcome::Declined;
                result.reason = Some("drifted: it would change nothing".into());
            }
        }
        match script {
            Script::Quick(outcome, output) => {
                result.outcome = outcome;
                if outcome != Outcome::Succeeded {
                    result.reason = Some("as scripted".into());
                }
                self.end(id, result, vec![output], Vec::new());
            }
            Script::Functions(outcomes) => {
                let Ask::Call(call) = &request.ask else {
                    return;
                };
                result.outcome = outcomes
                    .get(call.function.as_str())
                    .copied()
                    .unwrap_or(Outcome::Succeeded);
                if result.outcome != Outcome::Succeeded {
                    result.reason = Some("as scripted".into());
                }
                if call.mode == Mode::Check {
                    result.tally = Some(Tally {
                        would_change: 1,
                        ..Tally::default()
                    });
                }
                let said = format!("{} on {}\n", call.function, self.serial);
                self.end(id, result, vec![said.into_bytes()], Vec::new());
            }
            Script::Returns(with) => {
                result.value = with.value;
                result.value_bytes = with.value_bytes;
                self.end(id, result, Vec::new(), Vec::new());
            }
            Script::Chunks { chunks, lost } => {
                for (number, chunk) in (0u32..).zip(&chunks) {
                    if !lost.contains(&number) {
                        self.chunk(id, number, chunk).await;
                    }
                }
                self.end(id, result, Vec::new(), chunks);
            }
            Script::Hold => {
                self.say(NodeSays::Accepted, &Accepted { request: id })
                    .await;
                let this = Arc::clone(self);
                tokio::spawn(async move {
                    this.release.notified().await;
                    if this.log.lock().unwrap().cancels > 0 {
                        result.outcome = Outcome::Cancelled;
                        result.reason = Some("cancelled".into());
                    }
                    this.end(id, result, Vec::new(), Vec::new());
                });
            }
            Script::Mute => {}
        }
    }

    async fn chunk(&self, request: RequestId, chunk: u32, data: &[u8]) {
        let head = OutputHead {
            request,
            chunk,
            stream: Stream::Stdout,
        };
        let mut headers = HeaderMap::new();
        headers.insert(OUTPUT_HEADER, serde_json::to_string(&head).expect("json"));
        let subject = NodeSays::Output.subject(self.serial);
        let data = Bytes::copy_from_slice(data);
        self.client
            .publish_with_headers(subject, headers, data)
            .await
            .expect("published");
    }

    /// Writes the outcome down and sends it until it is stored.
    fn end(
        self: &Arc<Self>,
        id: RequestId,
        result: NodeResult,
        inline: Vec<Vec<u8>>,
        chunks: Vec<Vec<u8>>,
    ) {
        self.state
            .lock()
            .unwrap()
            .done
            .insert(id, Some(result.clone()));
        let inline: Vec<InlineChunk> = (0u32..)
            .zip(inline.iter().filter(|data| !data.is_empty()))
            .map(|(chunk, data)| InlineChunk {
                chunk,
                stream: Stream::Stdout,
                data: muster_protocol::run::Data::new(data),
            })
            .collect();
        let count = inline.len() + chunks.len();
        let report = OutcomeReport {
            request: id,
            result,
            chunks: u32::try_from(count).expect("few"),
            inline,
        };
        let this = Arc::clone(self);
        tokio::spawn(async move {
            this.deliver(&report, &chunks).await;
        });
    }

    async fn deliver(&self, report: &OutcomeReport, chunks: &[Vec<u8>]) -> OutcomeAnswer {
        let json = serde_json::to_vec(report).expect("json");
        loop {
            let subject = NodeSays::Outcome.subject(self.serial);
            let asked = timeout(
                Duration::from_secs(2),
                self.client.request(subject, json.clone().into()),
            )
            .await;
            if let Ok(Ok(answer)) = asked {
                let answer: OutcomeAnswer =
                    serde_json::from_slice(&answer.payload).expect("an answer");
                self.log.lock().unwrap().answers.push(answer.clone());
                match &answer {
                    OutcomeAnswer::Missing { chunks: missing } => {
                        for number in missing {
                            if let Some(data) = chunks.get(*number as usize) {
                                self.chunk(report.request, *number, data).await;
                            }
                        }
                    }
                    OutcomeAnswer::Stored | OutcomeAnswer::Unknown | OutcomeAnswer::Prove => {
                        return answer;
                    }
                }
            }
            sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Many nodes over one connection: they say hello, and end every call at once
/// with a line of output.
pub(crate) struct Swarm {
    task: JoinHandle<()>,
    pub(crate) stored: Arc<Mutex<std::collections::BTreeSet<Serial>>>,
}

impl Drop for Swarm {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Swarm {
    pub(crate) async fn start(
        server: &TestServer,
        serials: Vec<Serial>,
        keys: Arc<KeyList>,
    ) -> Self {
        let client = server.broker().await;
        let asked = client.subscribe("m1.do.>").await.expect("subscribed");
        let answers = client.subscribe("_INBOX.m1.*.*").await.expect("subscribed");
        client.flush().await.expect("flushed");
        let stored: Arc<Mutex<std::collections::BTreeSet<Serial>>> = Arc::default();
        let said = |serial: Serial, kind: NodeSays, json: Vec<u8>| {
            let client = client.clone();
            async move {
                let reply = format!("{}.r", inbox_prefix(serial));
                client
                    .publish_with_reply(kind.subject(serial), reply, json.into())
                    .await
                    .expect("published");
            }
        };
        for serial in &serials {
            let hello = Hello {
                protocol: PROTOCOL_VERSION,
                version: "0.1.0-test".into(),
                instance: InstanceId::random(),
                boot_id: "b".into(),
                time: Timestamp::now(),
                revision: 1,
                key_epoch: keys.epoch,
                broker_epoch: 0,
                capabilities: Vec::new(),
                build: None,
                journal: None,
                seal: None,
                freeze: None,
            };
            said(
                *serial,
                NodeSays::Hello,
                serde_json::to_vec(&hello).expect("json"),
            )
            .await;
        }
        let noted = Arc::clone(&stored);
        let voice = client.clone();
        let task = tokio::spawn(async move {
            let mut heard = futures_util::stream::select(asked, answers);
            while let Some(message) = heard.next().await {
                if let Some(rest) = message.subject.strip_prefix("_INBOX.m1.") {
                    let serial = rest.split('.').next().and_then(|s| s.parse().ok());
                    if let (Some(serial), Ok(OutcomeAnswer::Stored)) =
                        (serial, serde_json::from_slice(&message.payload))
                    {
                        noted.lock().unwrap().insert(serial);
                    }
                    continue;
                }
                let header = |name: &str| {
                    message
                        .headers
                        .as_ref()
                        .and_then(|h| h.get(name))
                        .map(|v| v.as_str())
                };
                let incoming = Incoming {
                    key: header(KEY_HEADER),
                    signature: header(SIGNATURE_HEADER),
                    bytes: &message.payload,
                };
                let seen = HighWater::default();
                // The set is signed once for all: one check speaks for them.
                let Some(request) = serials.iter().find_map(|serial| {
                    Gate {
                        keys: &keys,
                        node: *serial,
                        seen: &seen,
                    }
                    .check(incoming, Timestamp::now())
                    .ok()
                }) else {
                    continue;
                };
                let Ask::Call(_) = &request.ask else { continue };
                for serial in request.set.iter() {
                    let line = format!("hello from {serial}\n");
                    let mut result = NodeResult::new(serial, Outcome::Succeeded, "");
                    result.reason = None;
                    let data = muster_protocol::run::Data::new(line.as_bytes());
                    let inline = vec![InlineChunk {
                        chunk: 0,
                        stream: Stream::Stdout,
                        data,
                    }];
                    let report = OutcomeReport {
                        request: request.id(),
                        result,
                        chunks: 1,
                        inline,
                    };
                    let reply = format!("{}.r", inbox_prefix(serial));
                    let json = serde_json::to_vec(&report).expect("json");
                    voice
                        .publish_with_reply(NodeSays::Outcome.subject(serial), reply, json.into())
                        .await
                        .expect("published");
                }
            }
        });
        Self { task, stored }
    }
}
