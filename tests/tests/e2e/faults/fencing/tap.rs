//! Everything that is said in muster's NATS account, as it was said; and a
//! way to say something there, with the cluster's own keys.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use async_nats::HeaderMap;
use futures_util::StreamExt as _;
use muster_broker::nats::credentials::Credentials;
use muster_broker::nats::jwt::UserClaims;
use muster_broker::nats::keys::NatsKeys;
use muster_broker::nats::permissions::broker_permissions;
use muster_broker::state_dir::StateDir;
use muster_protocol::envelope::{KEY_HEADER, Request, SIGNATURE_HEADER};
use muster_protocol::keys::{KeyId, KeyList, PrivateKey, SignedText};
use muster_tests::wait_for;

/// Later than everything that is revoked for nodes.
const FAR: u64 = 32_503_680_000;

/// One message.
#[derive(Clone, Debug)]
pub(super) struct Word {
    pub(super) at: Instant,
    pub(super) subject: String,
    pub(super) reply: String,
    pub(super) key: Option<KeyId>,
    pub(super) payload: Vec<u8>,
}

impl Word {
    /// Whether it changes what JetStream holds.
    pub(super) fn writes(&self) -> bool {
        let starts = |prefix: &str| self.subject.starts_with(prefix);
        starts("$KV.")
            || starts("m1.run.")
            || starts("m1.event")
            || [".PURGE.", ".DELETE.", ".MSG.DELETE.", "STREAM.UPDATE."]
                .iter()
                .any(|what| starts("$JS.API.STREAM") && self.subject.contains(what))
    }

    /// The signed request that it is.
    pub(super) fn request(&self) -> Option<Request> {
        self.subject
            .starts_with("m1.do.")
            .then(|| serde_json::from_slice(&self.payload).ok())?
    }

    /// Which broker's connection it came from, as its inbox tells.
    pub(super) fn from(&self) -> Option<&str> {
        self.reply
            .strip_prefix("_INBOX.muster.broker.")?
            .split('.')
            .next()
    }
}

/// A user of the account who hears everything.
pub(super) struct Tap {
    words: Arc<Mutex<Vec<Word>>>,
    client: async_nats::Client,
    runtime: tokio::runtime::Runtime,
}

impl Tap {
    pub(super) fn open(state: &Path, port: u16) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let keys = NatsKeys::load(&state.join("keys")).expect("the cluster's keys");
        let user = Credentials::issue(keys.account(), |user| UserClaims {
            name: "muster-tap".to_owned(),
            user,
            issued_at: FAR,
            expires_at: None,
            permissions: broker_permissions(),
            max_subscriptions: None,
            max_payload: None,
        })
        .expect("credentials");
        let words = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&words);
        let client = runtime.block_on(async {
            let client = user
                .connect_options()
                .custom_inbox_prefix("_INBOX.muster.tap")
                .connect(format!("nats://127.0.0.1:{port}"))
                .await
                .expect("a connection");
            let mut all = client.subscribe(">").await.expect("a subscription");
            client.flush().await.expect("the server answers");
            tokio::spawn(async move {
                while let Some(message) = all.next().await {
                    let header = |name: &str| {
                        let value = message.headers.as_ref()?.get(name)?;
                        Some(value.as_str().to_owned())
                    };
                    let word = Word {
                        at: Instant::now(),
                        subject: message.subject.to_string(),
                        reply: message.reply.map(|r| r.to_string()).unwrap_or_default(),
                        key: header(KEY_HEADER).and_then(|key| key.parse().ok()),
                        payload: message.payload.to_vec(),
                    };
                    lock(&heard).push(word);
                }
            });
            client
        });
        Self {
            words,
            client,
            runtime,
        }
    }

    /// Everything heard since then.
    pub(super) fn since(&self, at: Instant) -> Vec<Word> {
        let words = lock(&self.words);
        words.iter().filter(|w| w.at >= at).cloned().collect()
    }

    /// Waits until something is said.
    pub(super) fn wait<T>(&self, what: &str, find: impl Fn(&Word) -> Option<T>) -> T {
        wait_for(what, || lock(&self.words).iter().rev().find_map(&find))
            .unwrap_or_else(|e| panic!("{e}"))
    }

    /// Says a request, signed with a broker's key.
    pub(super) fn say(&self, subject: &str, request: &Request, key: &PrivateKey) {
        let sealed = request.seal(key);
        let mut headers = HeaderMap::new();
        headers.insert(KEY_HEADER, sealed.key.to_string());
        headers.insert(SIGNATURE_HEADER, sealed.signature.to_string());
        self.runtime.block_on(async {
            self.client
                .publish_with_headers(subject.to_owned(), headers, sealed.bytes.into())
                .await
                .expect("it is sent");
            self.client.flush().await.expect("the server answers");
        });
    }
}

/// The signing key of a broker, from its state directory.
pub(super) fn signing_key(state: &Path, id: KeyId) -> PrivateKey {
    let dir = StateDir::open(state).expect("a state directory");
    let signed: SignedText = dir
        .load("key-list.json")
        .expect("it can be read")
        .expect("it is there");
    let root = dir.root().expect("the cluster").key.public();
    let list = KeyList::open(&signed, &root).expect("the root key signed it");
    let key = list.find(id).expect("it is on the list");
    dir.broker_key(&key.key)
        .expect("it can be read")
        .expect("this broker has it")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
