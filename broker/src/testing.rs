//! A whole broker for tests: real NATS server, real HTTP.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use muster_protocol::keys::{KeyList, PrivateKey, Purpose};
use muster_protocol::wire::{Credentials, CredentialsAnswer, Trust, proof_text};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, NatsConfig};
use crate::nats::keys::NatsKeys;
use crate::nats::testing::{PATIENCE, TestServer};
use crate::serve::{ServeError, serve};
use crate::state_dir::StateDir;

/// Waits until `ready` gives something, for as long as anything may take.
pub(crate) async fn wait_for<T>(what: &str, mut ready: impl AsyncFnMut() -> Option<T>) -> T {
    let waits = async {
        loop {
            if let Some(value) = ready().await {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let waited = timeout(PATIENCE, waits).await;
    waited.unwrap_or_else(|_| panic!("waited in vain: {what}"))
}

/// A broker in this process.
pub(crate) struct TestBroker {
    pub(crate) port: u16,
    pub(crate) token: String,
    cancel: CancellationToken,
    task: JoinHandle<Result<(), ServeError>>,
}

/// A state directory whose NATS keys are the server's.
pub(crate) fn state_for(server: &TestServer, path: &Path) -> StateDir {
    let state = StateDir::open(path).unwrap();
    // A broker that is started again has them.
    if NatsKeys::load(&state.keys()).is_err() {
        server.keys.store(&state.keys()).unwrap();
    }
    state
}

/// Settings for a broker on that directory and server.
pub(crate) fn config_for(server: &TestServer, path: &Path) -> Config {
    Config {
        state: path.to_owned(),
        nats: NatsConfig {
            urls: vec![server.url()],
            ..NatsConfig::default()
        },
        ..Config::default()
    }
}

impl TestBroker {
    /// Starts a broker and waits until it is active.
    pub(crate) async fn start(server: &TestServer, path: &Path) -> Self {
        let mut broker = Self::begin(config_for(server, path)).await;
        broker.wait_active().await;
        broker.read_token(path);
        broker
    }

    /// Takes the admin token of that state directory.
    pub(crate) fn read_token(&mut self, path: &Path) {
        self.token = std::fs::read_to_string(path.join("admin.token"))
            .unwrap_or_default()
            .trim()
            .to_owned();
    }

    /// Starts a broker and waits for nothing.
    pub(crate) async fn begin(config: Config) -> Self {
        crate::init_log(crate::config::LogFormat::Human);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let cancel = CancellationToken::new();
        let task = tokio::spawn(serve(config, listener, cancel.clone()));
        Self {
            port,
            token: String::new(),
            cancel,
            task,
        }
    }

    pub(crate) async fn wait_active(&self) {
        wait_for("the broker is active", async || {
            assert!(!self.task.is_finished(), "the broker has ended");
            (self.send("GET", "/readyz", None, None).await.0 == 200).then_some(())
        })
        .await;
    }

    /// Ends it in good order.
    pub(crate) async fn stop(self) {
        self.cancel.cancel();
        let ended = timeout(PATIENCE, self.task).await;
        ended.expect("the broker stops").unwrap().unwrap();
    }

    /// Ends it as a crash would, as far as the lease is concerned.
    pub(crate) async fn crash(self) {
        self.task.abort();
        let _ = self.task.await;
    }

    /// Waits for its end.
    pub(crate) async fn ended(self) -> Result<(), ServeError> {
        timeout(PATIENCE, self.task)
            .await
            .expect("the broker ends")
            .unwrap()
    }

    /// A request with the admin token.
    pub(crate) async fn call(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        self.send(method, path, Some(&self.token), body).await
    }

    /// A request; the answer's status and JSON.
    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        token: Option<&str>,
        body: Option<Value>,
    ) -> (u16, Value) {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n");
        if let Some(token) = token {
            head += &format!("Authorization: Bearer {token}\r\n");
        }
        let body = body.map(|b| b.to_string()).unwrap_or_default();
        if !body.is_empty() {
            head += "Content-Type: application/json\r\n";
        }
        head += &format!("Content-Length: {}\r\n\r\n", body.len());
        let (status, _, text) = self.raw(&[head.as_bytes(), body.as_bytes()].concat()).await;
        (status, serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    /// Bytes as they are; status, head and body of the answer.
    pub(crate) async fn raw(&self, bytes: &[u8]) -> (u16, String, String) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        // The server may answer and close before it has read everything.
        let _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        if timeout(PATIENCE, stream.read_to_end(&mut answer))
            .await
            .is_err()
        {
            let (asked, answer) = (bytes.escape_ascii(), answer.escape_ascii());
            panic!("no whole answer to {asked}, only: {answer}");
        }
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|s| s.parse().ok())
            .unwrap_or(0);
        (status, head.to_owned(), body.to_owned())
    }

    /// One invite; its token.
    pub(crate) async fn invite(&self, body: Value) -> String {
        let (status, answer) = self.call("POST", "/v1/invites", Some(body)).await;
        assert_eq!(status, 201, "{answer}");
        answer["invites"][0]["token"].as_str().unwrap().to_owned()
    }
}

/// The keys of a machine.
pub(crate) struct TestNode {
    pub(crate) key: PrivateKey,
    pub(crate) nats: Arc<nkeys::KeyPair>,
}

/// Credentials that were checked as an agent checks them.
pub(crate) struct Joined {
    pub(crate) credentials: Credentials,
    pub(crate) keys: KeyList,
}

impl TestNode {
    pub(crate) fn new() -> Self {
        Self {
            key: PrivateKey::generate(),
            nats: Arc::new(nkeys::KeyPair::new_user()),
        }
    }

    async fn proof(&self, broker: &TestBroker) -> (Trust, String, String) {
        let (status, trust) = broker.send("GET", "/v1/trust", None, None).await;
        assert_eq!(status, 200);
        let trust: Trust = serde_json::from_value(trust).unwrap();
        let (status, challenge) = broker.send("POST", "/v1/agent/challenge", None, None).await;
        assert_eq!(status, 200);
        let challenge = challenge["challenge"].as_str().unwrap().to_owned();
        let text = proof_text(&trust.root, &challenge, &self.nats.public_key());
        let proof = self.key.sign(Purpose::NodeProof, &text).to_string();
        (trust, challenge, proof)
    }

    /// Tries to enrol; the answer as it came.
    pub(crate) async fn try_enroll(&self, broker: &TestBroker, token: &str) -> (u16, Value) {
        let (_, challenge, proof) = self.proof(broker).await;
        let body = json!({
            "token": token, "node_key": self.key.public(), "nats_key": self.nats.public_key(),
            "challenge": challenge, "proof": proof,
        });
        broker.send("POST", "/v1/enroll", None, Some(body)).await
    }

    /// Enrols.
    pub(crate) async fn enroll(&self, broker: &TestBroker, token: &str) -> Joined {
        let (status, answer) = self.try_enroll(broker, token).await;
        assert_eq!(status, 200, "{answer}");
        self.check(broker, answer).await
    }

    /// Tries to get fresh credentials; the answer as it came.
    pub(crate) async fn try_refresh(&self, broker: &TestBroker, serial: u32) -> (u16, Value) {
        let (_, challenge, proof) = self.proof(broker).await;
        let body = json!({ "serial": serial, "challenge": challenge, "proof": proof });
        broker
            .send("POST", "/v1/agent/credentials", None, Some(body))
            .await
    }

    /// Asks for the seed of a machine; the answer as it came.
    pub(crate) async fn ask_seed(
        &self,
        broker: &TestBroker,
        serial: u32,
        machine: &str,
    ) -> (u16, Value) {
        let (_, challenge, proof) = self.proof(broker).await;
        let body =
            json!({ "serial": serial, "challenge": challenge, "proof": proof, "machine": machine });
        broker
            .send("POST", "/v1/agent/seed", None, Some(body))
            .await
    }

    /// Asks something about its firewall; the answer as it came.
    pub(crate) async fn ask_firewall(
        &self,
        broker: &TestBroker,
        (serial, what): (u32, &str),
        mut body: Value,
    ) -> (u16, Value) {
        let (_, challenge, proof) = self.proof(broker).await;
        body["serial"] = serial.into();
        body["challenge"] = challenge.into();
        body["proof"] = proof.into();
        let path = format!("/v1/agent/firewall/{what}");
        broker.send("POST", &path, None, Some(body)).await
    }

    /// Gets fresh credentials.
    pub(crate) async fn refresh(&self, broker: &TestBroker, serial: u32) -> Joined {
        let (status, answer) = self.try_refresh(broker, serial).await;
        assert_eq!(status, 200, "{answer}");
        self.check(broker, answer).await
    }

    async fn check(&self, broker: &TestBroker, answer: Value) -> Joined {
        let (trust, _, _) = self.proof(broker).await;
        let answer: CredentialsAnswer = serde_json::from_value(answer).unwrap();
        let keys = KeyList::open(&answer.keys, &trust.root).unwrap();
        let credentials: Credentials = keys
            .open_signed(&answer.credentials, Purpose::Credentials)
            .unwrap();
        assert_eq!(credentials.node_key, self.key.public());
        Joined { credentials, keys }
    }

    /// Connects to NATS as an agent does, without coming back by itself.
    pub(crate) async fn connect(
        &self,
        joined: &Joined,
    ) -> Result<async_nats::Client, async_nats::ConnectError> {
        let jwt = joined.credentials.jwt.clone();
        crate::nats::credentials::Credentials::new(jwt, Arc::clone(&self.nats))
            .connect_options()
            .custom_inbox_prefix(muster_protocol::subject::inbox_prefix(
                joined.credentials.serial,
            ))
            .max_reconnects(1)
            .connect(&joined.credentials.nats_urls)
            .await
    }
}

/// Waits until the server has ended this connection for good.
pub(crate) async fn wait_closed(client: &async_nats::Client) {
    wait_for("the connection ends", async || {
        (client.connection_state() != async_nats::connection::State::Connected).then_some(())
    })
    .await;
}
