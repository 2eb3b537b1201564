//! All nodes together: what they share, and how they begin and end.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use muster_agent::identity::{AnswerError, open_answer};
use muster_client::{Client, ClientError};
use muster_protocol::ids::InstanceId;
use muster_protocol::keys::{KeyListError, Purpose, SignedText};
use muster_protocol::units::elapsed;
use muster_protocol::wire::{CredentialsAnswer, CredentialsRequest, proof_text};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde::Serialize;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::connection::Address;
use crate::enrol::Clients;
use crate::hypervisors::{Has, Hypervisors};
use crate::limits::resident_kib;
use crate::node::{Habits, Member, Node};
use crate::orders::Orders;
use crate::session::Life;
use crate::store::{Common, Store, StoreError};
use crate::witness::Testimony;

/// Nodes that connect and say hello at once when the fleet begins.
const RAMP: usize = 128;
/// Fewest seconds between two complaints in the log.
const COMPLAIN_EVERY: Duration = Duration::from_secs(10);
/// How long the fleet may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(20);

/// Why the fleet cannot begin, or a node cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// The broker over HTTP.
    #[error("no fresh credentials: {0}")]
    Client(#[from] ClientError),
    /// Its answer.
    #[error("fresh credentials are refused: {0}")]
    Answer(#[from] AnswerError),
    /// They cannot be kept.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The certificate authority of NATS.
    #[error("the certificate authority of NATS is not usable: {0}")]
    Tls(String),
}

/// What the nodes of a fleet share.
pub struct Fleet {
    /// Where NATS is.
    pub nats: Address,
    /// Lets few nodes begin at once.
    pub ramp: Arc<Semaphore>,
    /// Stands for the machine's boot id.
    pub boot_id: String,
    /// Lives that are over.
    pub ended: AtomicU32,
    clients: Option<Clients>,
    root: muster_protocol::keys::PublicKey,
    fetching: Semaphore,
    store: Store,
    last: Mutex<Vec<Last>>,
    begun: Instant,
    welcomed_now: AtomicU32,
    welcomed_ever: AtomicU32,
    news: Notify,
    complaints: Mutex<Complaints>,
}

/// When something happened to a node last.
#[derive(Clone, Copy, Debug, Default)]
struct Last {
    connected: Option<Instant>,
    welcomed: Option<Instant>,
}

/// How close together the same thing happened to many nodes, the last time
/// that it happened to each.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Wave {
    /// To how many.
    pub nodes: usize,
    /// Milliseconds since the fleet was made, to the first one.
    pub from_ms: u64,
    /// The same, to the last one.
    pub to_ms: u64,
    /// Most nodes within any 100 ms.
    pub most_in_100_ms: usize,
}

impl Wave {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let ms = |at: Option<&Duration>| {
            at.map_or(0, |at| u64::try_from(at.as_millis()).unwrap_or(u64::MAX))
        };
        let mut from = 0;
        let within = (0..times.len()).map(|to| {
            while times[to] - times[from] > Duration::from_millis(100) {
                from += 1;
            }
            to + 1 - from
        });
        let most_in_100_ms = within.max().unwrap_or(0);
        Self {
            nodes: times.len(),
            from_ms: ms(times.first()),
            to_ms: ms(times.last()),
            most_in_100_ms,
        }
    }
}

#[derive(Default)]
struct Complaints {
    said: Option<Instant>,
    unsaid: u64,
}

impl Fleet {
    /// For so many nodes. Without clients credentials cannot be renewed.
    ///
    /// # Errors
    /// [`FleetError::Tls`].
    pub fn new(
        nodes: usize,
        common: &Common,
        clients: Option<Clients>,
        store: Store,
    ) -> Result<Arc<Self>, FleetError> {
        let tls = common.nats_ca.as_deref().map(trusting).transpose()?;
        Ok(Arc::new(Self {
            nats: Address {
                urls: common.nats_urls.clone(),
                tls,
            },
            ramp: Arc::new(Semaphore::new(RAMP)),
            boot_id: InstanceId::random().to_string(),
            ended: AtomicU32::new(0),
            clients,
            root: common.root,
            fetching: Semaphore::new(32),
            store,
            last: Mutex::new(vec![Last::default(); nodes]),
            begun: Instant::now(),
            welcomed_now: AtomicU32::new(0),
            welcomed_ever: AtomicU32::new(0),
            news: Notify::new(),
            complaints: Mutex::default(),
        }))
    }

    /// A node was welcomed on a new connection.
    pub fn welcomed(&self) {
        self.welcomed_now.fetch_add(1, Ordering::Relaxed);
    }

    /// The broker has answered a node's hello, also by a welcome that is not
    /// its first on a connection.
    pub fn greeted(&self, node: u32) {
        let mut last = self.last();
        if let Some(last) = last.get_mut(node as usize)
            && last.welcomed.replace(Instant::now()).is_none()
        {
            self.welcomed_ever.fetch_add(1, Ordering::Relaxed);
            self.news.notify_one();
        }
    }

    /// A node has a connection.
    pub fn connected(&self, node: u32) {
        if let Some(last) = self.last().get_mut(node as usize) {
            last.connected = Some(Instant::now());
        }
    }

    fn last(&self) -> MutexGuard<'_, Vec<Last>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the nodes' newest connections and welcomes lie in time.
    fn waves(&self) -> (Wave, Wave) {
        let last = self.last();
        let wave = |at: fn(&Last) -> Option<Instant>| {
            let times = last.iter().filter_map(at);
            Wave::of(times.map(|at| at.duration_since(self.begun)).collect())
        };
        (wave(|last| last.connected), wave(|last| last.welcomed))
    }

    /// A node that was welcomed is no longer connected.
    pub fn gone(&self) {
        self.welcomed_now.fetch_sub(1, Ordering::Relaxed);
    }

    /// How many are welcomed now.
    #[must_use]
    pub fn present(&self) -> u32 {
        self.welcomed_now.load(Ordering::Relaxed)
    }

    /// Returns when so many different nodes have been welcomed.
    pub async fn all_welcomed(&self, nodes: u32) {
        loop {
            let news = self.news.notified();
            if self.welcomed_ever.load(Ordering::Relaxed) >= nodes {
                return;
            }
            news.await;
        }
    }

    /// Says what is wrong, but not once for each of thousands of nodes.
    pub fn complain(&self, what: &str) {
        let mut complaints = self
            .complaints
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if complaints
            .said
            .is_some_and(|at| now.duration_since(at) < COMPLAIN_EVERY)
        {
            complaints.unsaid += 1;
            return;
        }
        let unsaid = std::mem::take(&mut complaints.unsaid);
        complaints.said = Some(now);
        let what = muster_protocol::text::printable(what, 300);
        warn!(unsaid, "{what}");
    }

    /// Asks the broker for fresh credentials, a few nodes at a time. A broker
    /// whose key list is older than the member's is given the newest list of
    /// `orders` and asked once more, as the agent does.
    ///
    /// # Errors
    /// [`FleetError::Client`].
    pub async fn fetch(
        &self,
        member: &Member,
        orders: &Orders,
    ) -> Result<CredentialsAnswer, FleetError> {
        let Some(clients) = &self.clients else {
            return Err(ClientError::Setup {
                why: "this fleet has no broker to ask".into(),
            }
            .into());
        };
        // It is closed never.
        let _permit = self.fetching.acquire().await;
        let client = clients.of(member.serial.0);
        let answer = self.ask(client, member, None).await?;
        match member.list.successor(&answer.keys) {
            Err(KeyListError::Older { ours, theirs }) if theirs < ours => {
                let held = orders.list_with(None);
                Ok(self.ask(client, member, held).await?)
            }
            _ => Ok(answer),
        }
    }

    async fn ask(
        &self,
        client: &Client,
        member: &Member,
        held: Option<SignedText>,
    ) -> Result<CredentialsAnswer, ClientError> {
        let challenge = client.challenge().await?.challenge;
        let text = proof_text(&self.root, &challenge, &member.keys.nats.public_key());
        let request = CredentialsRequest {
            serial: member.serial,
            challenge,
            proof: member.keys.identity.sign(Purpose::NodeProof, &text),
            keys: held,
        };
        client.agent_credentials(&request).await
    }

    /// Gives a member what the broker answered, if it is to be believed.
    ///
    /// # Errors
    /// [`FleetError`]; the member is as it was.
    pub fn take(&self, member: &mut Member, answer: &CredentialsAnswer) -> Result<(), FleetError> {
        let list = member
            .list
            .successor(&answer.keys)
            .map_err(AnswerError::from)?;
        let (list, fresh) = open_answer(list, answer, &member.keys.identity.public())?;
        if fresh.serial != member.serial {
            return Err(AnswerError::Other("serial").into());
        }
        let older = !elapsed(fresh.issued, member.issued).is_zero();
        let (ours, theirs) = (member.assignment.revision, fresh.assignment.revision);
        if older && theirs < ours {
            return Err(AnswerError::Older { ours, theirs }.into());
        }
        let name = &fresh.assignment.name;
        self.store.update(name, &answer.keys, Some(&fresh))?;
        member.list = list;
        member.assignment = fresh.assignment;
        member.jwt = fresh.jwt;
        member.issued = fresh.issued;
        member.expires = fresh.expires;
        Ok(())
    }

    /// Keeps a newer key list that a member has taken.
    pub fn keep_keys(&self, member: &Member, keys: &SignedText) {
        let name = &member.assignment.name;
        if let Err(e) = self.store.update(name, keys, None) {
            self.complain(&e.to_string());
        }
    }
}

fn trusting(pem: &str) -> Result<rustls::ClientConfig, FleetError> {
    let bad = |e: &dyn std::fmt::Display| FleetError::Tls(e.to_string());
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|e| bad(&e))?;
        roots.add(certificate).map_err(|e| bad(&e))?;
    }
    Ok(rustls::ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth())
}

/// A fleet that lives.
pub struct Running {
    /// What its nodes share.
    pub fleet: Arc<Fleet>,
    habits: Arc<Habits>,
    nodes: u32,
    stop: CancellationToken,
    lives: JoinSet<()>,
    begun: Instant,
    kib_before: u64,
    /// How long it took until all were welcomed, once they were.
    welcomed_ms: AtomicU64,
    /// How long the enrolment took.
    pub enrolled_ms: u64,
    /// Hypervisors beside the nodes.
    pub hypervisors: Option<Hypervisors>,
}

/// What a fleet has done, for programs.
#[derive(Clone, Debug, Serialize)]
pub struct Statistics {
    /// How many nodes.
    pub nodes: u32,
    /// How many are welcomed now.
    pub welcomed: u32,
    /// Milliseconds of the enrolment; 0 when all identities were there.
    pub enrolled_ms: u64,
    /// Milliseconds from the first connection until all were welcomed; 0
    /// when they are not.
    pub welcomed_ms: u64,
    /// Memory of this process, in KiB.
    pub resident_kib: u64,
    /// Of that, what each node takes.
    pub kib_per_node: f64,
    /// Connections that were made.
    pub connects: u64,
    /// Connections that ended by themselves.
    pub losses: u64,
    /// The newest connection of each node.
    pub latest_connects: Wave,
    /// The newest welcome of each node.
    pub latest_welcomes: Wave,
    /// Connections that were refused for their credentials.
    pub unauthorized: u64,
    /// Connections that the simulation ended.
    pub dropped: u64,
    /// Hellos that were refused.
    pub hellos_refused: u64,
    /// Pings answered.
    pub pongs: u64,
    /// Acknowledgements.
    pub accepted: u64,
    /// Outcomes sent, repetitions counted.
    pub reports: u64,
    /// Outcomes that the broker has.
    pub stored: u64,
    /// Outcomes that the broker does not want.
    pub unwanted: u64,
    /// Fresh credentials.
    pub renewals: u64,
    /// Newer key lists.
    pub key_lists: u64,
    /// What each simulated hypervisor has.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hypervisors: Vec<Has>,
    /// What the witness says.
    #[serde(flatten)]
    pub testimony: Testimony,
}

impl Running {
    /// Lets all members live.
    #[must_use]
    pub fn begin(fleet: Arc<Fleet>, members: Vec<Member>, habits: Arc<Habits>) -> Self {
        let kib_before = resident_kib();
        let stop = CancellationToken::new();
        let mut lives = JoinSet::new();
        let nodes = u32::try_from(members.len()).unwrap_or(u32::MAX);
        for (index, member) in (0..).zip(members) {
            let node = Node::new(index, member, habits.clone());
            let life = Life::new(node, fleet.clone());
            lives.spawn(Box::new(life).run(stop.clone()));
        }
        Self {
            fleet,
            habits,
            nodes,
            stop,
            lives,
            begun: Instant::now(),
            kib_before,
            welcomed_ms: AtomicU64::new(0),
            enrolled_ms: 0,
            hypervisors: None,
        }
    }

    /// Returns how long it took, when all are welcomed.
    pub async fn ready(&self) -> Duration {
        self.fleet.all_welcomed(self.nodes).await;
        if let Some(hypervisors) = &self.hypervisors {
            hypervisors.ready().await;
        }
        let took = self.begun.elapsed();
        let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX).max(1);
        let _ = self
            .welcomed_ms
            .compare_exchange(0, ms, Ordering::Relaxed, Ordering::Relaxed);
        took
    }

    /// What it has done so far.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        let tally = &self.habits.witness.tally;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let resident = resident_kib();
        let (latest_connects, latest_welcomes) = self.fleet.waves();
        Statistics {
            latest_connects,
            latest_welcomes,
            nodes: self.nodes,
            welcomed: self.fleet.present(),
            enrolled_ms: self.enrolled_ms,
            welcomed_ms: self.welcomed_ms.load(Ordering::Relaxed),
            resident_kib: resident,
            kib_per_node: crate::floor::per_node(
                resident.saturating_sub(self.kib_before),
                self.nodes,
            ),
            connects: get(&tally.connects),
            losses: get(&tally.losses),
            unauthorized: get(&tally.unauthorized),
            dropped: get(&tally.dropped),
            hellos_refused: get(&tally.hellos_refused),
            pongs: get(&tally.pongs),
            accepted: get(&tally.accepted),
            reports: get(&tally.reports),
            stored: get(&tally.stored),
            unwanted: get(&tally.unwanted),
            renewals: get(&tally.renewals),
            key_lists: get(&tally.key_lists),
            hypervisors: self
                .hypervisors
                .as_ref()
                .map(Hypervisors::have)
                .unwrap_or_default(),
            testimony: self.habits.witness.testimony(),
        }
    }

    /// Lets all say goodbye, and returns what they have done.
    pub async fn end(mut self) -> Statistics {
        let statistics = self.statistics();
        self.stop.cancel();
        let all = async { while self.lives.join_next().await.is_some() {} };
        if tokio::time::timeout(GOODBYE, all).await.is_err() {
            warn!("some nodes did not end in time and are cut off");
        }
        if let Some(hypervisors) = &mut self.hypervisors {
            hypervisors.end().await;
        }
        let after = self.statistics();
        // The memory and the presence of the living count.
        Statistics {
            welcomed: statistics.welcomed,
            resident_kib: statistics.resident_kib,
            kib_per_node: statistics.kib_per_node,
            ..after
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wave_is_as_high_as_its_fullest_moment() {
        assert_eq!(Wave::of(Vec::new()), Wave::default());
        let at = |ms: &[u64]| ms.iter().copied().map(Duration::from_millis).collect();
        let wave = Wave::of(at(&[900, 20, 100, 121, 130, 500, 599, 600]));
        assert_eq!((wave.nodes, wave.from_ms, wave.to_ms), (8, 20, 900));
        // 500, 599 and 600; 20 and 121 are too far apart.
        assert_eq!(wave.most_in_100_ms, 3);
    }
}
