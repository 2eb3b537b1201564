//! One node, one NATS server, and a broker whose answers the test decides.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use async_nats::{Client, HeaderMap};
use futures_util::StreamExt as _;
use muster_agent::identity::{Enrolled, Enrolment, NodeKeys};
use muster_agent::state::StateDir;
use muster_protocol::envelope::{
    Ask, Call, Door, KEY_HEADER, Limits, Mode, Request, SIGNATURE_HEADER, Sealed,
};
use muster_protocol::ids::{ClusterId, RequestId, RunId, Serial};
use muster_protocol::keys::{BrokerKey, BrokerKeyState, KeyList, PrivateKey, SignedText};
use muster_protocol::run::Stream;
use muster_protocol::subject::{FROM_ALL, NodeSays, node_subject};
use muster_protocol::units::{Span, Timestamp, after};
use muster_protocol::wire::*;
use muster_scenarios::command;
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::nats::{Nats, PATIENCE};

pub const SERIAL: Serial = Serial(7);

/// The cluster's secrets.
#[derive(Clone)]
pub struct Cluster {
    pub id: ClusterId,
    pub root: PrivateKey,
    pub broker: PrivateKey,
}

impl Cluster {
    pub fn new() -> Self {
        Self {
            id: ClusterId::random(),
            root: PrivateKey::generate(),
            broker: PrivateKey::generate(),
        }
    }

    pub fn list(&self, epoch: u64, keys: &[(&PrivateKey, BrokerKeyState)]) -> SignedText {
        // Fixed, so that the list of an epoch is always the same.
        let now = Timestamp::UNIX_EPOCH;
        let keys = keys
            .iter()
            .map(|(k, state)| BrokerKey {
                key: k.public(),
                state: *state,
                added: now,
            })
            .collect();
        KeyList {
            cluster: self.id,
            epoch,
            root: self.root.public(),
            keys,
            issued: now,
        }
        .sign(&self.root)
    }

    pub fn first_list(&self) -> SignedText {
        self.list(1, &[(&self.broker, BrokerKeyState::Active)])
    }

    pub fn credentials(&self, node: &NodeKeys, nats: &str) -> Credentials {
        let now = Timestamp::now();
        Credentials {
            cluster: self.id,
            serial: SERIAL,
            node_key: node.identity.public(),
            assignment: serde_json::from_value(json!({
                "revision": 1, "name": "web-01", "roles": ["web"], "labels": {"zone": "gva2"},
            }))
            .unwrap(),
            nats_urls: vec![nats.to_owned()],
            brokers: Vec::new(),
            nats_ca: None,
            jwt: "not looked at by a server without authentication".into(),
            expires: after(now, Duration::from_secs(7 * 86_400)),
            issued: now,
        }
    }
}

/// How the broker answers.
#[derive(Clone, Debug)]
pub enum Greeting {
    Welcome {
        keys: Option<SignedText>,
        revision: u64,
    },
    Refuse,
    Silence,
}

#[derive(Clone, Debug)]
pub enum Receipt {
    Stored,
    Silence,
    /// Asks for these chunks, once for each request.
    MissingOnce(Vec<u32>),
    /// Knows no run that was not proved to it.
    Prove,
    /// Knows no run, and wants no proof.
    Unknown,
}

/// What the broker heard.
#[derive(Default)]
pub struct Heard {
    pub hellos: Vec<Hello>,
    pub beats: Vec<Beat>,
    pub facts: Vec<Facts>,
    pub pongs: Vec<Pong>,
    pub accepted: Vec<RequestId>,
    pub output: BTreeMap<(RequestId, u32), (Stream, Vec<u8>)>,
    pub output_messages: usize,
    pub outcomes: Vec<OutcomeReport>,
    pub byes: usize,
    /// Requests that the node has shown, as they came.
    pub proofs: Vec<Sealed>,
    pub lists: Vec<SignedText>,
    pub bundles: Vec<BundleRequest>,
    missing_asked: HashMap<RequestId, ()>,
}

impl Heard {
    /// How often a request was shown.
    pub fn proved(&self, id: RequestId) -> usize {
        let of = |sealed: &&Sealed| {
            let request: Request = serde_json::from_slice(&sealed.bytes).unwrap();
            request.id() == id
        };
        self.proofs.iter().filter(of).count()
    }
}

pub struct Broker {
    pub client: Client,
    heard: Arc<Mutex<Heard>>,
    changed: Arc<Notify>,
    greeting: Arc<Mutex<Greeting>>,
    receipt: Arc<Mutex<Receipt>>,
    supply: Arc<Mutex<Supply>>,
}

/// Who answers nodes that ask for a bundle; `None` is silence.
pub type Supply = Box<dyn FnMut(BundleRequest) -> Option<(BundleHead, Vec<u8>)> + Send>;

impl Broker {
    async fn start(url: &str) -> Self {
        let client = async_nats::connect(url).await.unwrap();
        let mut all = client.subscribe(FROM_ALL).await.unwrap();
        client.flush().await.unwrap();
        let broker = Self {
            client: client.clone(),
            heard: Arc::default(),
            changed: Arc::default(),
            greeting: Arc::new(Mutex::new(Greeting::Welcome {
                keys: None,
                revision: 1,
            })),
            receipt: Arc::new(Mutex::new(Receipt::Stored)),
            supply: Arc::new(Mutex::new(Box::new(|_| None))),
        };
        let (heard, changed) = (broker.heard.clone(), broker.changed.clone());
        let (greeting, receipt) = (broker.greeting.clone(), broker.receipt.clone());
        let supply = broker.supply.clone();
        tokio::spawn(async move {
            while let Some(message) = all.next().await {
                let answer = {
                    let mut heard = heard.lock().unwrap();
                    answer(
                        &mut heard,
                        &message,
                        &greeting.lock().unwrap(),
                        &receipt.lock().unwrap(),
                    )
                };
                let wanted = match NodeSays::parse(&message.subject) {
                    Some((_, NodeSays::Bundle)) => {
                        Some(serde_json::from_slice(&message.payload).unwrap())
                    }
                    _ => None,
                };
                let given = wanted.and_then(|wanted| (supply.lock().unwrap())(wanted));
                changed.notify_waiters();
                if let (Some(reply), Some((head, part))) = (message.reply.clone(), given) {
                    let mut headers = HeaderMap::new();
                    let head = serde_json::to_string(&head).unwrap();
                    headers.insert(BUNDLE_HEADER, head.as_str());
                    client
                        .publish_with_headers(reply, headers, part.into())
                        .await
                        .unwrap();
                }
                if let (Some(reply), Some(answer)) = (message.reply, answer) {
                    client.publish(reply, answer.into()).await.unwrap();
                }
            }
        });
        broker
    }

    pub fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap()
    }

    pub fn greet(&self, greeting: Greeting) {
        *self.greeting.lock().unwrap() = greeting;
    }

    pub fn supply(
        &self,
        supply: impl FnMut(BundleRequest) -> Option<(BundleHead, Vec<u8>)> + Send + 'static,
    ) {
        *self.supply.lock().unwrap() = Box::new(supply);
    }

    pub fn acknowledge(&self, receipt: Receipt) {
        *self.receipt.lock().unwrap() = receipt;
    }

    /// Waits until `look` finds something in what was heard.
    pub async fn wait<T>(&self, what: &str, mut look: impl FnMut(&Heard) -> Option<T>) -> T {
        let end = tokio::time::Instant::now() + PATIENCE;
        loop {
            let changed = self.changed.notified();
            if let Some(found) = look(&self.heard()) {
                return found;
            }
            assert!(
                tokio::time::timeout_at(end, changed).await.is_ok(),
                "waited too long for {what}"
            );
        }
    }

    pub async fn outcome(&self, id: RequestId) -> OutcomeReport {
        self.wait("an outcome", |h| {
            h.outcomes.iter().find(|o| o.request == id).cloned()
        })
        .await
    }

    pub fn count_outcomes(&self, id: RequestId) -> usize {
        self.heard()
            .outcomes
            .iter()
            .filter(|o| o.request == id)
            .count()
    }

    pub async fn welcomed(&self) {
        let beats = self.heard().beats.len();
        self.wait("a beat", |h| (h.beats.len() > beats).then_some(()))
            .await;
    }
}

fn answer(
    heard: &mut Heard,
    message: &async_nats::Message,
    greeting: &Greeting,
    receipt: &Receipt,
) -> Option<Vec<u8>> {
    fn read<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> T {
        serde_json::from_slice(bytes).expect("the agent says what the protocol knows")
    }
    let (serial, kind) = NodeSays::parse(&message.subject).expect("a subject of the protocol");
    assert_eq!(serial, SERIAL);
    assert!(message.payload.len() <= MAX_MESSAGE);
    let bytes = &message.payload;
    match kind {
        NodeSays::Hello => {
            heard.hellos.push(read(bytes));
            let welcome = match greeting {
                Greeting::Silence => return None,
                Greeting::Refuse => Welcome::Refused {
                    reason: "cloned".into(),
                    retry_after: Span::from_secs(1),
                },
                Greeting::Welcome { keys, revision } => Welcome::Welcome {
                    time: Timestamp::now(),
                    keys: keys.clone(),
                    revision: *revision,
                    beat_every: Span::from_millis(500),
                    recall: None,
                    wants_keys: false,
                    follow_after: None,
                    freeze: None,
                },
            };
            return Some(serde_json::to_vec(&welcome).unwrap());
        }
        NodeSays::Local => panic!("nobody started a local run here"),
        // That it has learnt of a freeze; nobody has it probe anything.
        NodeSays::Freeze | NodeSays::Probed | NodeSays::Repaired => {}
        NodeSays::Beat => heard.beats.push(read(bytes)),
        NodeSays::Facts => {
            heard.facts.push(read(bytes));
            return Some(Vec::new());
        }
        NodeSays::Pong => heard.pongs.push(read(bytes)),
        NodeSays::Accepted => heard.accepted.push(read::<Accepted>(bytes).request),
        NodeSays::Output => {
            let head = message
                .headers
                .as_ref()
                .unwrap()
                .get(OUTPUT_HEADER)
                .unwrap()
                .as_str();
            let head: OutputHead = serde_json::from_str(head).unwrap();
            assert!(bytes.len() <= MAX_CHUNK);
            heard
                .output
                .insert((head.request, head.chunk), (head.stream, bytes.to_vec()));
            heard.output_messages += 1;
        }
        NodeSays::Outcome => {
            let report: OutcomeReport = read(bytes);
            let id = report.request;
            for chunk in &report.inline {
                let data = chunk.data.bytes().unwrap();
                heard.output.insert((id, chunk.chunk), (chunk.stream, data));
            }
            // As a broker does: an agent that was killed may have written to
            // a socket what never left the machine.
            let came = |n: &u32| heard.output.contains_key(&(id, *n));
            let missing: Vec<u32> = (0..report.chunks).filter(|n| !came(n)).collect();
            if matches!(receipt, Receipt::Stored) && !missing.is_empty() {
                let answer = OutcomeAnswer::Missing { chunks: missing };
                return Some(serde_json::to_vec(&answer).unwrap());
            }
            heard.outcomes.push(report);
            let answer = match receipt {
                Receipt::Silence => return None,
                // Again while they have not come: the answer may be lost.
                Receipt::MissingOnce(chunks)
                    if heard.missing_asked.insert(id, ()).is_none()
                        || chunks.iter().any(|n| !heard.output.contains_key(&(id, *n))) =>
                {
                    OutcomeAnswer::Missing {
                        chunks: chunks.clone(),
                    }
                }
                Receipt::Prove if heard.proved(id) < 2 => OutcomeAnswer::Prove,
                Receipt::Unknown => OutcomeAnswer::Unknown,
                Receipt::MissingOnce(_) | Receipt::Stored | Receipt::Prove => OutcomeAnswer::Stored,
            };
            return Some(serde_json::to_vec(&answer).unwrap());
        }
        NodeSays::Proof => {
            let headers = message.headers.as_ref().unwrap();
            let header = |name: &str| headers.get(name).unwrap().as_str();
            heard.proofs.push(Sealed {
                bytes: bytes.to_vec(),
                key: header(KEY_HEADER).parse().unwrap(),
                signature: header(SIGNATURE_HEADER).parse().unwrap(),
            });
            // The key is known once a list was shown.
            let answer = if heard.lists.is_empty() {
                ProofAnswer::UnknownKey
            } else {
                ProofAnswer::Taken
            };
            return Some(serde_json::to_vec(&answer).unwrap());
        }
        NodeSays::Keys => {
            heard.lists.push(read(bytes));
            return Some(serde_json::to_vec(&KeysAnswer::Taken).unwrap());
        }
        NodeSays::Bundle => heard.bundles.push(read(bytes)),
        NodeSays::Machines | NodeSays::Groups => {}
        NodeSays::Bye => heard.byes += 1,
    }
    None
}

pub struct Lab {
    pub nats: Nats,
    pub cluster: Cluster,
    pub broker: Broker,
    pub dir: tempfile::TempDir,
    pub keys: NodeKeys,
    pub config: String,
    /// Starts the agent with a file open that it was not meant to have.
    pub inherit: bool,
    pub agent: Option<Child>,
}

impl Lab {
    /// A node that is enrolled and does not run yet.
    pub async fn prepare() -> Self {
        let nats = Nats::start().await;
        let cluster = Cluster::new();
        let broker = Broker::start(&nats.url()).await;
        let dir = tempfile::tempdir().unwrap();
        let keys = NodeKeys::generate();
        let state = StateDir::create(&dir.path().join("state")).unwrap();
        keys.save(&state).unwrap();
        let credentials = cluster.credentials(&keys, &nats.url());
        Enrolled::new(Enrolment {
            url: "http://127.0.0.1:1".into(),
            others: Vec::new(),
            root: cluster.root.public(),
            keys: cluster.first_list(),
            ca: None,
            credentials,
        })
        .unwrap()
        .save(&state)
        .unwrap();
        Self {
            nats,
            cluster,
            broker,
            dir,
            keys,
            config: String::new(),
            inherit: false,
            agent: None,
        }
    }

    /// A node that the broker has welcomed.
    pub async fn start() -> Self {
        let mut lab = Self::prepare().await;
        lab.begin().await;
        lab
    }

    /// Starts the agent and waits for its first beat.
    pub async fn begin(&mut self) {
        self.spawn();
        self.broker.welcomed().await;
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn spawn(&mut self) {
        let config = self.path("agent.toml");
        let state = self.path("state");
        let facts = self.path("facts.d");
        std::fs::write(&config, format!("facts_dir = {facts:?}\n{}", self.config)).unwrap();
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path("log"))
            .unwrap();
        let exec = if self.inherit {
            "echo -500 > /proc/self/oom_score_adj; exec \"$0\" \"$@\" 9</etc/passwd"
        } else {
            "exec \"$0\" \"$@\""
        };
        let child = Command::new("/bin/sh")
            .args(["-c", exec, env!("CARGO_BIN_EXE_muster-agent"), "run"])
            .arg("--state")
            .arg(&state)
            .arg("--config")
            .arg(&config)
            .env(
                "MUSTER_LOG",
                "debug,async_nats=error,hyper=error,reqwest=error,rustls=error",
            )
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.agent = Some(child);
    }

    /// As a crash: nothing is said, nothing is written.
    pub fn kill(&mut self) {
        let mut child = self.agent.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub fn terminate(&self) {
        let pid = i32::try_from(self.agent.as_ref().unwrap().id()).unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }

    /// Waits until the agent has ended; its exit code.
    pub async fn ended(&mut self) -> Option<i32> {
        let end = Instant::now() + PATIENCE;
        let mut child = self.agent.take().unwrap();
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < end, "the agent did not end");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// A request for this node, not yet signed.
    pub fn request(&self, ask: Ask) -> Request {
        let now = Timestamp::now();
        Request {
            v: 1,
            cluster: self.cluster.id,
            epoch: 5,
            run: RunId::random(),
            step: 0,
            set: [SERIAL].into_iter().collect(),
            whole: muster_protocol::nodeset::NodeSet::new(),
            created: None,
            predicate: "role=web".into(),
            issued: now,
            start_before: after(now, Duration::from_secs(15)),
            principal: "ana".parse().unwrap(),
            door: Door::Cli,
            promised: false,
            ask,
        }
    }

    pub fn call(&self, params: Value) -> Request {
        self.request(Ask::Call(call(params)))
    }

    pub fn shell(&self, line: impl Into<String>) -> Request {
        self.call(json!({ "shell": line.into() }))
    }

    pub async fn send_to(&self, subject: String, sealed: &Sealed) {
        let mut headers = HeaderMap::new();
        headers.insert(KEY_HEADER, sealed.key.to_string().as_str());
        headers.insert(SIGNATURE_HEADER, sealed.signature.to_string().as_str());
        let client = &self.broker.client;
        client
            .publish_with_headers(subject, headers, sealed.bytes.clone().into())
            .await
            .unwrap();
        client.flush().await.unwrap();
    }

    pub async fn send(&self, request: &Request) -> RequestId {
        self.send_to(node_subject(SERIAL), &request.seal(&self.cluster.broker))
            .await;
        request.id()
    }

    /// Runs a line of shell and waits for its outcome.
    pub async fn run(&self, line: impl Into<String>) -> OutcomeReport {
        let id = self.send(&self.shell(line)).await;
        self.broker.outcome(id).await
    }

    /// Everything that a step wrote to a stream.
    pub fn output(&self, id: RequestId, stream: Stream) -> Vec<u8> {
        let heard = self.broker.heard();
        let of = heard.output.range((id, 0)..=(id, u32::MAX));
        of.filter(|(_, (s, _))| *s == stream)
            .flat_map(|(_, (_, data))| data.clone())
            .collect()
    }

    /// Waits for a state of the machine.
    pub async fn until(&self, what: &str, mut ready: impl FnMut() -> bool) {
        until(what, &mut ready).await;
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some(mut child) = self.agent.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            #[allow(clippy::print_stderr)]
            for line in &lines[lines.len().saturating_sub(40)..] {
                eprintln!("agent: {line}");
            }
        }
    }
}

pub fn call(params: Value) -> Call {
    Call {
        scenario: command::NAME.parse().unwrap(),
        bundle: command::bundle(),
        function: command::FUNCTION.parse().unwrap(),
        params,
        mode: Mode::Apply,
        limits: Limits {
            timeout: Span::from_secs(60),
            output_bytes: 1 << 20,
            retry: 0,
        },
        expect: Default::default(),
        secrets: None,
    }
}

pub fn with_timeout(mut request: Request, timeout: Span) -> Request {
    if let Ask::Call(call) = &mut request.ask {
        call.limits.timeout = timeout;
    }
    request
}

pub async fn until(what: &str, ready: &mut dyn FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !ready() {
        assert!(Instant::now() < end, "waited too long for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Whether a process with that id runs.
pub fn lives(pid_file: &Path) -> bool {
    let pid: u32 = std::fs::read_to_string(pid_file)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    muster_agent::host::proc::Process::read(pid).is_some_and(|p| p.is_alive())
}

/// How many lines a file has; none when it does not exist.
pub fn lines(path: &Path) -> usize {
    std::fs::read_to_string(path).map_or(0, |text| text.lines().count())
}
