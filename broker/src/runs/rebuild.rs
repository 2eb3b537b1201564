//! Runs that the store has lost: written down again from the signed requests
//! that nodes keep.
//!
//! A node cannot invent or alter such a run: the request is exact bytes under
//! the signature of one of this cluster's brokers. It says who asked for what
//! on which nodes. How it ended on each of them comes from that node itself,
//! as always. Nothing of such a run is ever sent again: what the lost journal
//! said of batches and of nodes that were not reached is not known.
//!
//! A run that was removed on purpose stays away: because of its age, or
//! because the stream was full ([`Purged`]).

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::Subject;
use bytes::Bytes;
use muster_protocol::envelope::{Ask, Incoming, MAX_SKEW, Refusal, Request};
use muster_protocol::ids::{InstanceId, Serial};
use muster_protocol::keys::KeyId;
use muster_protocol::names::NodeName;
use muster_protocol::nodeset::NodeSet;
use muster_protocol::note::Expected;
use muster_protocol::run::{
    Gates, NodePhase, NodeResult, Outcome, Rebuilt, RunEvent, RunOptions, RunSpec, RunState,
    TARGETS_PER_EVENT, Target,
};
use muster_protocol::units::{Span, Timestamp, after, elapsed};
use muster_protocol::wire::{Acknowledged, MAX_MARKS, ProofAnswer, Recall};
use muster_scenarios::command::{self, Command};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::doubt::Doubts;
use super::engine::{Engine, lock};
use super::index::Known;
use super::journal::{Folded, Journal, JournalError, ReadError, fold};
use super::task::{Task, ToRun};
use crate::authority::PastKey;
use crate::inventory::NodeRecord;
use crate::presence::Older;
use crate::store::kv::{BucketConfig, Kv, KvError, ensure_bucket};
use crate::store::stream::StreamError;

/// Proofs that are looked at at a time; who comes meanwhile asks again.
const AT_ONCE: usize = 32;
/// When.
const LATER: Span = Span::from_secs(1);
/// Runs that are open at a time before no lost one is taken up any more:
/// people want to run something, too.
const MOST_OPEN: usize = 500;
/// Most nodes of a run that is written down again.
const MOST_NODES: usize = 200_000;
/// From how far back a node is asked to report, when it is not known since
/// when something is missing: nodes keep what they reported for a day.
const NODES_KEEP: Duration = Duration::from_secs(86_400);
/// Of so many runs that were written down again is told one by one.
const MOST_TOLD: u32 = 200;
/// How long the open runs may take to hear that a node has forgotten.
const HEARD_WITHIN: Duration = Duration::from_secs(5);

/// A signed request as a node sends it back.
#[derive(Clone, Debug)]
pub(crate) struct Proof {
    /// The header, as received.
    pub(crate) key: Option<String>,
    /// The header, as received.
    pub(crate) signature: Option<String>,
    /// The payload.
    pub(crate) bytes: Bytes,
}

/// Who proves what.
#[derive(Debug)]
pub(super) struct Lost {
    /// This time of being active, for what it asks of single nodes.
    id: InstanceId,
    busy: Mutex<HashSet<Serial>>,
    /// One run is written down at a time; how many were.
    writing: tokio::sync::Mutex<u32>,
    /// Runs that were perhaps sent.
    pub(super) doubts: Doubts,
}

impl Default for Lost {
    fn default() -> Self {
        Self {
            id: InstanceId::random(),
            busy: Mutex::default(),
            writing: tokio::sync::Mutex::default(),
            doubts: Doubts::default(),
        }
    }
}

/// Takes a node off the list, however its proof ends.
struct Seat {
    engine: Engine,
    node: Serial,
}

impl Drop for Seat {
    fn drop(&mut self) {
        lock(&self.engine.0.lost.busy).remove(&self.node);
    }
}

/// Why a run is not written down again now.
#[derive(Debug, thiserror::Error)]
enum RebuildError {
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Store(#[from] StreamError),
}

impl Engine {
    /// Whether this broker does not know of some of these outcomes, which it,
    /// or one before it, has said that it has. `None` while it has not read
    /// its journals.
    pub(crate) async fn lacks(&self, node: Serial, marks: &[Acknowledged]) -> Option<bool> {
        self.0.active()?;
        for mark in marks.iter().take(MAX_MARKS) {
            let run = mark.request.run;
            if mark.request.step != 0 {
                continue;
            }
            let known = {
                let index = lock(&self.0.index);
                index.get(run).map(|brief| brief.state.is_final())
            };
            let lacks = match known {
                Some(true) => false,
                // Its beginning is all that is here.
                Some(false) if self.claims(run) => true,
                None => !self.was_removed(mark.received),
                // It is open here: perhaps because its end was lost.
                Some(false) => match self.state(run).await {
                    Ok(state) => state
                        .nodes
                        .get(&node)
                        .is_some_and(|node| !matches!(node.phase, NodePhase::Done(_))),
                    Err(_) => false,
                },
            };
            if lacks {
                tracing::warn!(%node, %run, "a node was told that this run's outcome is stored, and it is not");
                return Some(true);
            }
        }
        Some(false)
    }

    /// What a node is asked that this broker [lacks](Engine::lacks) something
    /// of.
    pub(crate) fn recall(&self) -> Recall {
        let since = Timestamp::now().checked_sub(NODES_KEEP);
        Recall {
            id: self.0.lost.id,
            since: since.unwrap_or(Timestamp::MIN),
        }
    }

    /// Whether a run of that age may have been removed on purpose.
    fn was_removed(&self, at: Timestamp) -> bool {
        let shared = &self.0;
        let oldest = Timestamp::now().checked_sub(shared.settings.max_age);
        oldest.is_ok_and(|oldest| at < oldest) || shared.purged.covers(at)
    }

    /// A node has gone back in time: what it may have begun of the open runs
    /// is not sent to it again, and its outcome there is `unknown`. Whether
    /// all of them have heard it; if not, the node must not take part yet.
    pub(crate) async fn forgot(&self, node: Serial, older: Older) -> bool {
        if self.0.active().is_none() {
            return false;
        }
        let open: Vec<_> = lock(&self.0.open)
            .values()
            .map(|open| open.inbox.clone())
            .collect();
        let heard = async {
            for inbox in open {
                let (tell, told) = oneshot::channel();
                // A task that has ended has nothing to send any more.
                if inbox
                    .send(ToRun::Forgot { node, older, tell })
                    .await
                    .is_ok()
                {
                    let _ = told.await;
                }
            }
        };
        timeout(HEARD_WITHIN, heard).await.is_ok()
    }

    /// A node shows a request of a run that is not known here. One of a node
    /// at a time.
    pub(crate) fn prove(&self, node: Arc<NodeRecord>, proof: Proof, reply: Option<Subject>) {
        if self.0.active().is_none() {
            return;
        }
        let seat = {
            let mut busy = lock(&self.0.lost.busy);
            (busy.len() < AT_ONCE && busy.insert(node.serial)).then(|| Seat {
                engine: self.clone(),
                node: node.serial,
            })
        };
        let this = self.clone();
        self.0.tasks.spawn(async move {
            let answer = match seat {
                None => ProofAnswer::Later { retry_after: LATER },
                Some(_seat) => match this.take_proof(&node, &proof).await {
                    Ok(answer) => answer,
                    Err(error) => {
                        tracing::warn!(node = %node.assignment.name, %error, "a run that was lost is not written down yet");
                        return;
                    }
                },
            };
            if let Some(reply) = &reply {
                this.0.bus.reply(node.serial, reply, &answer).await;
            }
        });
    }

    async fn take_proof(
        &self,
        node: &NodeRecord,
        proof: &Proof,
    ) -> Result<ProofAnswer, RebuildError> {
        let shared = &self.0;
        let authority = shared.bus.authority();
        let mut past = None;
        let message = Incoming {
            key: proof.key.as_deref(),
            signature: proof.signature.as_deref(),
            bytes: &proof.bytes,
        };
        let opened = message.authentic(|id| {
            let key = authority.past_key(id).ok_or(Refusal::UnknownKey(id))?;
            past = Some(key);
            Ok(key.key)
        });
        let refused = |reason: String| {
            tracing::warn!(node = %node.assignment.name, reason, "a proof of a run is refused");
            Ok(ProofAnswer::Refused { reason })
        };
        let (request, key) = match (opened, past) {
            (Ok(opened), Some(past)) => {
                if let Err(reason) = self.judge(&opened.0, &past, node.serial) {
                    return refused(reason);
                }
                opened
            }
            (Err(Refusal::UnknownKey(_)), _) | (Ok(_), None) => return Ok(ProofAnswer::UnknownKey),
            (Err(why), _) => return refused(why.to_string()),
        };
        let run = request.run;
        let mut count = shared.lost.writing.lock().await;
        let known = lock(&shared.index).first(run).is_some();
        if known && !self.claims(run) {
            return Ok(ProofAnswer::Taken);
        }
        let Some((epoch, _)) = shared.active() else {
            return Ok(ProofAnswer::Later { retry_after: LATER });
        };
        if lock(&shared.open).len() >= MOST_OPEN {
            return Ok(ProofAnswer::Later { retry_after: LATER });
        }
        let Some(mut spec) = spec(&request, key, node.serial) else {
            return refused("the request is no call".to_owned());
        };
        spec.part_of = lock(&shared.index).names(run);
        if known && !self.was_sent(run).await? {
            // Its time was up in this moment.
            return Ok(ProofAnswer::Taken);
        }
        let lease = shared.bus.lease().clone();
        let mut journal = Journal::new(shared.js.clone(), lease, epoch, run, 0);
        let created = RunEvent::Created {
            spec: Box::new(spec),
        };
        let folded = match journal.append(&created).await {
            Ok(first) => Folded {
                state: RunState::begin(&created).expect("it is a `created`"),
                first,
                last: first,
            },
            // It is there, and the index does not know it.
            Err(JournalError::Conflict(_)) => fold(&shared.js, run, 1).await?,
            Err(error) => return Err(error.into()),
        };
        lock(&shared.index).insert(Known::new(&folded.state, folded.first));
        tracing::warn!(
            %run, node = %node.assignment.name, principal = %request.principal, issued = %request.issued,
            nodes = request.frozen().len(), "a run that was lost is written down again"
        );
        let short = lock(&shared.index).short(run);
        let ended = folded.state.phase.is_final();
        let text = format!(
            "run {short} of {} at {} was lost here; it is written down again from what {} had kept",
            request.principal, request.issued, node.assignment.name
        );
        if ended {
            shared.remember(&Arc::new(folded.state));
        } else {
            self.open(folded, Vec::new());
        }
        *count = count.saturating_add(1);
        if *count < MOST_TOLD {
            shared.events.emit("run.rebuilt", &short, text).await;
        } else if *count == MOST_TOLD {
            let text = format!(
                "{MOST_TOLD} runs that were lost here are written down again; of more nothing is said here"
            );
            shared.events.emit("run.rebuilt", "runs", text).await;
        }
        // Last: it may end this session.
        shared
            .past
            .run_was_lost(&node.assignment.name, request.issued, &shared.events)
            .await;
        Ok(ProofAnswer::Taken)
    }

    /// Whether a request that a broker of this cluster signed is one of a run
    /// that should be known here.
    fn judge(&self, request: &Request, key: &PastKey, node: Serial) -> Result<(), String> {
        let cluster = self.0.bus.authority().signer().cluster;
        let now = Timestamp::now();
        if request.cluster != cluster {
            return Err("the request is of another cluster".to_owned());
        }
        if !request.set.contains(node) {
            return Err("the request is not for this node".to_owned());
        }
        if request.step != 0 || !matches!(request.ask, Ask::Call(_)) {
            return Err("the request is no call of a run".to_owned());
        }
        let frozen = request.frozen();
        if frozen.len() > MOST_NODES || !request.set.iter().all(|node| frozen.contains(node)) {
            return Err("the request's set makes no sense".to_owned());
        }
        if after(now, MAX_SKEW) < request.issued {
            return Err("the request is of the future".to_owned());
        }
        if created(request) > after(request.issued, MAX_SKEW) {
            return Err("the request is older than its run".to_owned());
        }
        if self.was_removed(created(request)) {
            return Err("the run was removed, because of its age or for want of room".to_owned());
        }
        // No broker signed with it any more: somebody who took it did.
        if key.void_since.is_some_and(|void| request.issued > void) {
            return Err("the request was signed with a key that was revoked before".to_owned());
        }
        Ok(())
    }
}

impl Task {
    /// Writes what is missing at the beginning of the journal of a run that
    /// the store had lost.
    pub(super) async fn write_down_again(&mut self, rebuilt: &Rebuilt) -> Result<(), JournalError> {
        let snapshot = self.engine.0.inventory.snapshot();
        let missing: Vec<Target> = rebuilt
            .set
            .iter()
            .filter(|serial| !self.state.nodes.contains_key(serial))
            .map(|serial| {
                let node = snapshot.get(serial);
                let name = node.map_or_else(|| stand_in(serial), |n| n.assignment.name.clone());
                Target::new(serial, name)
            })
            .collect();
        for nodes in missing.chunks(TARGETS_PER_EVENT) {
            let nodes = nodes.to_vec();
            self.store(RunEvent::Targets { nodes }).await?;
        }
        let waiting: NodeSet = self
            .state
            .nodes
            .iter()
            .filter(|(_, node)| matches!(node.phase, NodePhase::Waiting))
            .map(|(serial, _)| *serial)
            .collect();
        if !waiting.is_empty() {
            // To some of them perhaps nothing was sent. Nobody knows, and
            // nobody may send it now.
            self.store(RunEvent::Intent {
                batch: 0,
                nodes: waiting,
                at: self.state.spec.created,
            })
            .await?;
        }
        let waited = elapsed(rebuilt.at, Timestamp::now());
        let until = self
            .now()
            .plus(self.engine.0.settings.lost_within.saturating_sub(waited));
        self.delivery.none_before(until);
        Ok(())
    }
}

/// What a node of a lost run has as its outcome that did not report.
pub(super) fn lost_for_good(serial: Serial) -> NodeResult {
    NodeResult::new(
        serial,
        Outcome::Unknown,
        "what was known of it here is lost, because the store went back in time, and it has not reported again",
    )
}

/// The outcome of a node in a run of which it has forgotten whether it ran.
pub(super) fn forgotten(serial: Serial, older: Older) -> NodeResult {
    NodeResult::new(
        serial,
        Outcome::Unknown,
        format!(
            "sent, and the node has gone back in time since (its journal was at {}, it is at {}): whether it ran is forgotten",
            older.was, older.is
        ),
    )
}

/// A name for a node that is not in the inventory.
fn stand_in(serial: Serial) -> NodeName {
    format!("node-{serial}")
        .parse()
        .expect("`node-` and a number are a name")
}

/// When the run of a request was created, or at least this copy of it.
fn created(request: &Request) -> Timestamp {
    request.created.unwrap_or(request.issued)
}

/// The run that a request is of, as far as it says; `None` when it is no call.
fn spec(request: &Request, key: KeyId, node: Serial) -> Option<RunSpec> {
    let Ask::Call(call) = &request.ask else {
        return None;
    };
    let title = if call.scenario.as_str() == command::NAME {
        Command::from_params(&call.params).ok().map(|c| c.title())
    } else {
        None
    };
    let set = request.frozen().clone();
    Some(RunSpec {
        id: request.run,
        principal: request.principal.clone(),
        door: request.door,
        scenario: call.scenario.clone(),
        version: None,
        bundle: call.bundle,
        function: call.function.clone(),
        params: call.params.clone(),
        mode: call.mode,
        title: title.unwrap_or_else(|| format!("{} {}", call.scenario, call.function)),
        predicate: request.predicate.clone(),
        targets: u32::try_from(set.len()).unwrap_or(u32::MAX),
        options: RunOptions {
            timeout: call.limits.timeout,
            deliver_within: super::request::DELIVER_WITHIN,
            batch: None,
            max_failures: None,
            max_failures_by: BTreeMap::new(),
            wait_down: false,
            output_bytes: call.limits.output_bytes,
            retry: call.limits.retry,
        },
        expect: Expected::default(),
        gates: Gates::default(),
        retry_of: None,
        left_out: 0,
        local: None,
        main: None,
        part_of: None,
        takes_back: false,
        chat: None,
        rebuilt: Some(Box::new(Rebuilt {
            node,
            key,
            set,
            at: Timestamp::now(),
        })),
        created: created(request),
    })
}

/// Up to when runs were removed because the stream was full: in
/// `muster_cluster`, so that they stay away.
#[derive(Debug, Default)]
pub(super) struct Purged {
    until: Mutex<Option<Timestamp>>,
    bucket: Mutex<Option<Kv<Timestamp>>>,
}

impl Purged {
    const KEY: &str = "purged";

    /// Reads what NATS knows of it.
    ///
    /// # Errors
    /// [`KvError`].
    pub(super) async fn load(&self, js: &async_nats::jetstream::Context) -> Result<(), KvError> {
        let bucket: Kv<Timestamp> =
            Box::pin(ensure_bucket(js, BucketConfig::new("muster_cluster"))).await?;
        let until = bucket.get(Self::KEY).await?.map(|entry| entry.value);
        *lock(&self.until) = until;
        *lock(&self.bucket) = Some(bucket);
        Ok(())
    }

    /// Whether a run that was created at `at` may have been removed.
    pub(super) fn covers(&self, at: Timestamp) -> bool {
        lock(&self.until).is_some_and(|until| at <= until)
    }

    /// All ended runs that were created up to `at` are being removed. Before
    /// the first of them goes.
    pub(super) async fn up_to(&self, at: Timestamp) {
        if self.covers(at) {
            return;
        }
        *lock(&self.until) = Some(at);
        let bucket = lock(&self.bucket).clone();
        if let Some(bucket) = bucket
            && let Err(error) = bucket.put(Self::KEY, &at).await
        {
            tracing::warn!(%error, "up to when runs were removed could not be stored");
        }
    }
}
