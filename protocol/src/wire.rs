//! What a node says, and what it is told in reply.
//!
//! The NATS server has checked that the serial in the subject is the
//! sender's. Everything else in a message is only what the node claims.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::envelope::{BundleHash, Mode};
use crate::freeze::FreezeMark;
use crate::ids::{ClusterId, InstanceId, LocalNonce, RequestId, RunId, Serial};
use crate::keys::{PublicKey, Signature, SignedText};
use crate::names::{FunctionName, LabelKey, LabelValue, NodeName, RoleName, ScenarioName};
use crate::release::{Build, ReleaseId};
use crate::run::{LocalRun, NodeResult, Stream};
use crate::seal::SealOffer;
use crate::units::{Span, Timestamp};

/// Most bytes of any one message from a node.
pub const MAX_MESSAGE: usize = 256 * 1024;
/// Most bytes of a node's facts.
pub const MAX_FACTS: usize = 64 * 1024;
/// Most bytes of output in one chunk.
pub const MAX_CHUNK: usize = 32 * 1024;
/// How often a node says that it is there, unless it is told otherwise.
pub const BEAT_EVERY: Span = Span::from_secs(5);

/// What the operators have given a node: the part of its identity that it
/// believes and cannot choose. Rises in `revision` with every change.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Assignment {
    /// Rises with every change of name, roles or labels.
    pub revision: u64,
    /// Its name.
    pub name: NodeName,
    /// Its roles, sorted.
    pub roles: Vec<RoleName>,
    /// Its labels.
    pub labels: BTreeMap<LabelKey, LabelValue>,
}

/// Everything a node needs to connect: the answer to an enrolment and to
/// [`CredentialsRequest`], signed by a broker key for
/// [`crate::keys::Purpose::Credentials`].
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Credentials {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node's serial.
    pub serial: Serial,
    /// The identity key this is for.
    pub node_key: PublicKey,
    /// Name, roles, labels.
    pub assignment: Assignment,
    /// Where NATS is, in the order to try.
    pub nats_urls: Vec<String>,
    /// The brokers' URLs, for the next renewal; empty when there is only one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub brokers: Vec<String>,
    /// The certificate authority of the NATS server, PEM, when it has TLS.
    pub nats_ca: Option<String>,
    /// The NATS user JWT for the node's NATS key.
    pub jwt: String,
    /// When the JWT ends; it is renewed at half of its life.
    pub expires: Timestamp,
    /// When this was issued, by the broker's clock.
    pub issued: Timestamp,
}

/// `GET /v1/trust`: what can be known of a cluster before trusting it. The
/// invite's fingerprint says whether the root key is the right one.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Trust {
    /// The root key.
    pub root: PublicKey,
    /// The key list, signed by the root key.
    pub keys: SignedText,
    /// [`Authority`], signed by the root key: the certificate authority of
    /// the broker's HTTPS.
    pub authority: SignedText,
}

/// The cluster's certificate authority.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Authority {
    /// The cluster.
    pub cluster: ClusterId,
    /// The certificate, PEM; `None` where the broker speaks plain HTTP on
    /// loopback only.
    pub certificate: Option<String>,
}

/// `POST /v1/enroll`: a node presents its invite and its keys.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EnrollRequest {
    /// The invite's text.
    pub token: String,
    /// The node's identity key.
    pub node_key: PublicKey,
    /// The node's NATS user key (an nkey that begins with `U`).
    pub nats_key: String,
    /// A challenge from `POST /v1/agent/challenge`.
    pub challenge: String,
    /// By the identity key, over [`proof_text`].
    pub proof: Signature,
}

/// `POST /v1/agent/credentials`: an enrolled node asks for fresh credentials.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CredentialsRequest {
    /// The node's serial.
    pub serial: Serial,
    /// A challenge from `POST /v1/agent/challenge`.
    pub challenge: String,
    /// By the identity key, over [`proof_text`].
    pub proof: Signature,
    /// The key list that the node holds, when the broker has answered with an
    /// older one: the broker has gone back in time and is to take it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<SignedText>,
}

/// What the broker answers to both: [`Credentials`] signed by a broker key,
/// and the key list that says that the key counts.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CredentialsAnswer {
    /// [`Credentials`], signed.
    pub credentials: SignedText,
    /// The key list, signed by the root key.
    pub keys: SignedText,
}

/// The bytes that a node signs to prove that it holds its identity key:
/// bound to the cluster's root key, the one-use challenge and the NATS key.
#[must_use]
pub fn proof_text(root: &PublicKey, challenge: &str, nats_key: &str) -> Vec<u8> {
    // Lengths in front, so that no two different triples give the same bytes.
    format!(
        "{root}:{}:{challenge}:{}:{nats_key}",
        challenge.len(),
        nats_key.len()
    )
    .into_bytes()
}

/// First message on every new connection, answered by [`Welcome`]. A node
/// executes nothing before it was welcomed.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// Protocol version.
    pub protocol: u32,
    /// Version of the agent.
    pub version: String,
    /// This start of the agent.
    pub instance: InstanceId,
    /// The machine's boot id.
    pub boot_id: String,
    /// The node's clock.
    pub time: Timestamp,
    /// The revision of the assignment it holds.
    pub revision: u64,
    /// The epoch of the key list it holds.
    pub key_epoch: u64,
    /// The highest broker epoch it has seen.
    pub broker_epoch: u64,
    /// What it can do: `command`, `shell`, …
    pub capabilities: Vec<String>,
    /// What it was built for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build: Option<Build>,
    /// How far its journal is, so that each side can find out whether the
    /// other has gone back in time. Absent from agents that cannot say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub journal: Option<JournalMark>,
    /// To what secret parameters for this start of the agent are sealed.
    /// Absent from agents that take none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seal: Option<SealOffer>,
    /// What it knows of a freeze. Absent from agents that cannot be frozen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freeze: Option<FreezeMark>,
}

/// What an agent says about itself in its [`Hello`]: what the broker judges
/// before it sends anything.
#[derive(
    Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, utoipa::ToSchema,
)]
#[serde(deny_unknown_fields)]
pub struct AgentInfo {
    /// Its version.
    pub version: String,
    /// The protocol that it speaks.
    pub protocol: u32,
    /// What its node grants.
    pub capabilities: Vec<String>,
    /// Platform and state, where it said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build: Option<Build>,
}

/// Longest word in an [`AgentInfo`], in bytes.
const MAX_WORD: usize = 64;
/// Most capabilities in an [`AgentInfo`].
const MAX_CAPABILITIES: usize = 32;

impl Hello {
    /// What it says about the agent, cut to what is ever kept.
    #[must_use]
    pub fn agent(&self) -> AgentInfo {
        let word = |text: &str| crate::text::printable(text, MAX_WORD);
        AgentInfo {
            version: word(&self.version),
            protocol: self.protocol,
            capabilities: self
                .capabilities
                .iter()
                .take(MAX_CAPABILITIES)
                .map(|c| word(c))
                .collect(),
            build: self.build.as_ref().map(|build| Build {
                os: word(&build.os),
                arch: word(&build.arch),
                ..build.clone()
            }),
        }
    }
}

/// `POST /v1/agent/release`: an enrolled node asks for the bytes of a release,
/// from `from` on.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReleaseRequest {
    /// The node's serial.
    pub serial: Serial,
    /// A challenge from `POST /v1/agent/challenge`.
    pub challenge: String,
    /// By the identity key, over [`proof_text`].
    pub proof: Signature,
    /// Which.
    pub release: ReleaseId,
    /// The first byte that is wanted.
    #[serde(default)]
    pub from: u64,
}

/// `POST /v1/agent/image`: a hypervisor asks for the bytes of a disk image,
/// from `from` on.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageRequest {
    /// The node's serial.
    pub serial: Serial,
    /// A challenge from `POST /v1/agent/challenge`.
    pub challenge: String,
    /// By the identity key, over [`proof_text`].
    pub proof: Signature,
    /// Which.
    pub image: crate::vm::Sha256,
    /// The first byte that is wanted.
    #[serde(default)]
    pub from: u64,
}

/// An answer to [`ImageRequest`], as JSON: the bytes are not in the cluster.
/// Whoever asked fetches them there, without anything that says who it is.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageAt {
    /// `https://…` or `http://…`.
    pub url: String,
}

/// `POST /v1/agent/seed`: a hypervisor asks for the seed of a machine that it
/// is to make, a [`crate::vm::SeedText`]. The invite in it is a new one each
/// time, and the one before works no more.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SeedRequest {
    /// The node's serial.
    pub serial: Serial,
    /// A challenge from `POST /v1/agent/challenge`.
    pub challenge: String,
    /// By the identity key, over [`proof_text`].
    pub proof: Signature,
    /// Which machine.
    pub machine: crate::vm::VmId,
}

/// How far a node's own journal is.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct JournalMark {
    /// Rises with every start of the agent and every request that it writes
    /// down. A node that says less than it has said before has gone back.
    pub position: u64,
    /// The newest steps whose outcomes a broker has acknowledged, at most
    /// [`MAX_MARKS`]. A broker that does not know one has gone back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub acknowledged: Vec<Acknowledged>,
}

/// A step whose outcome a broker has said that it has.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Acknowledged {
    /// Which.
    pub request: RequestId,
    /// When the node received it, by its own clock.
    pub received: Timestamp,
}

/// Most steps in a [`JournalMark`].
pub const MAX_MARKS: usize = 8;

/// The reply to [`Hello`].
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "answer", deny_unknown_fields)]
#[expect(
    clippy::large_enum_variant,
    reason = "there is one for each connection of a node, and it is read at once"
)]
pub enum Welcome {
    /// Take part.
    Welcome {
        /// The broker's clock.
        time: Timestamp,
        /// The key list, when the node's is older.
        keys: Option<SignedText>,
        /// The revision of the assignment: a node with a lower one fetches
        /// its credentials again.
        revision: u64,
        /// How often to beat.
        beat_every: Span,
        /// This broker has gone back in time, or may have: report again what
        /// was acknowledged. Only to nodes that say [`Hello::journal`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        recall: Option<Recall>,
        /// The node's list of broker keys is newer than this broker's: send
        /// it. Only to nodes that say [`Hello::journal`].
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        wants_keys: bool,
        /// The node has gone back in time: it must not follow a call that was
        /// signed before this moment, because it may have followed it before.
        /// Only to nodes that say [`Hello::journal`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        follow_after: Option<Timestamp>,
        /// Whether anything may be begun, a [`crate::freeze::Freeze`] that a
        /// broker key signed. Only to nodes that say [`Hello::freeze`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        freeze: Option<SignedText>,
    },
    /// Stay out; ask again after `retry_after`.
    Refused {
        /// For the node's log.
        reason: String,
        /// When to ask again.
        retry_after: Span,
    },
}

/// What a broker that has gone back in time asks of a node: every outcome that
/// was acknowledged after `since` is reported once more, oldest first, as if
/// it had not been.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Recall {
    /// Which recall: a node does the same one once.
    pub id: InstanceId,
    /// From when on the broker's knowledge may have gaps, by its own clock.
    pub since: Timestamp,
}

/// Sent every few seconds.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Beat {
    /// This start of the agent.
    pub instance: InstanceId,
    /// The node's clock.
    pub time: Timestamp,
    /// The revision of the assignment it holds.
    pub revision: u64,
    /// Steps that run now.
    pub running: u32,
    /// Messages refused since the start, by [`crate::envelope::Refusal::kind`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub refused: BTreeMap<String, u64>,
    /// [`JournalMark::position`] now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<u64>,
}

/// The node's facts, whole, when they changed. Answered with an empty reply
/// when stored.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Facts {
    /// A JSON object; dots in a predicate's name go down into it.
    pub facts: serde_json::Map<String, Value>,
    /// Custom facts that were left out because a label has their name, and
    /// other things that the operator should know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// The answer to [`crate::envelope::Ask::Ping`].
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Pong {
    /// Of the ping.
    pub request: RequestId,
    /// This start of the agent.
    pub instance: InstanceId,
    /// [`JournalMark::position`] now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<u64>,
}

/// The request is in the node's journal and will run. Sent when the step has
/// not ended within a few hundred milliseconds; a quick one sends only its
/// outcome. Also the answer to a repeat while the step runs.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Accepted {
    /// Of the request.
    pub request: RequestId,
}

/// In front of a chunk of output: NATS header [`OUTPUT_HEADER`], as JSON.
/// The payload is the bytes as the program wrote them.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct OutputHead {
    /// Of the request.
    pub request: RequestId,
    /// Rises by one from 0 over both streams of a step on a node.
    pub chunk: u32,
    /// Which stream.
    pub stream: Stream,
}

/// The NATS header that carries [`OutputHead`].
pub const OUTPUT_HEADER: &str = "Muster-Output";

/// A node asks for the bytes of a bundle that a request names, from a place
/// on. Answered by a part of them, below a [`BundleHead`] in the NATS header
/// [`BUNDLE_HEADER`].
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct BundleRequest {
    /// Which.
    pub bundle: BundleHash,
    /// The first byte that it lacks.
    pub from: u64,
}

/// What the payload of the answer to a [`BundleRequest`] is.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "answer", deny_unknown_fields)]
pub enum BundleHead {
    /// Bytes of the packed bundle, as many as fit into an answer.
    Part {
        /// Where in it they begin.
        from: u64,
        /// How many bytes it has.
        bytes: u64,
    },
    /// Too much is asked for now; to be asked again in a moment.
    Busy,
    /// There is none, and asking again is of no use.
    None {
        /// Why, for people.
        reason: String,
    },
}

/// The NATS header that carries [`BundleHead`], as JSON.
pub const BUNDLE_HEADER: &str = "Muster-Bundle";
/// Most bytes of a bundle in one answer.
pub const BUNDLE_PART: usize = 512 * 1024;

/// How a step ended, from the node's journal. Sent until [`OutcomeAnswer::Stored`]
/// comes back; then kept for another day.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct OutcomeReport {
    /// Of the request.
    pub request: RequestId,
    /// What happened; its `serial` is the sender's own.
    pub result: NodeResult,
    /// How many chunks of output it sent.
    pub chunks: u32,
    /// Small output travels here instead of in chunks of its own; `chunks`
    /// counts these too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inline: Vec<InlineChunk>,
}

/// Most bytes of output that travel inside an outcome report.
pub const MAX_INLINE: usize = 8 * 1024;

/// A chunk of output inside an [`OutcomeReport`].
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct InlineChunk {
    /// Its number.
    pub chunk: u32,
    /// Which stream.
    pub stream: Stream,
    /// The bytes.
    pub data: crate::run::Data,
}

/// The reply to [`OutcomeReport`].
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "answer", deny_unknown_fields)]
pub enum OutcomeAnswer {
    /// It is in the run's journal (or one that came first is): it need not be
    /// sent again.
    Stored,
    /// These chunks of output have not arrived: send them, then the report
    /// again.
    Missing {
        /// Their numbers.
        chunks: Vec<u32>,
    },
    /// The broker does not know the run and never will.
    Unknown,
    /// The broker does not know the run, and would write it down again: send
    /// the request as it was signed ([`crate::subject::NodeSays::Proof`]),
    /// then the report again. Only to nodes that say [`Hello::journal`].
    Prove,
}

/// The reply to [`crate::subject::NodeSays::Proof`]: the signed request of a
/// run that the broker has lost, its bytes and headers as they came.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "answer", deny_unknown_fields)]
pub enum ProofAnswer {
    /// The run is in its journal again: report the outcome.
    Taken,
    /// This broker has never heard of the key that signed it. The list of
    /// keys that names it, signed by the root key, would tell
    /// ([`crate::subject::NodeSays::Keys`]); then send this again.
    UnknownKey,
    /// Not now.
    Later {
        /// When to send it again.
        retry_after: Span,
    },
    /// Never.
    Refused {
        /// For the node's log.
        reason: String,
    },
}

/// The reply to [`crate::subject::NodeSays::Keys`]: a list of broker keys that
/// the node holds, signed by the root key.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "answer", deny_unknown_fields)]
pub enum KeysAnswer {
    /// The broker knows what it says.
    Taken,
    /// It is not this cluster's.
    Refused {
        /// For the node's log.
        reason: String,
    },
}

/// A run that somebody started on the node itself (`muster-agent local run`)
/// and that has ended. Sent, oldest first, until [`LocalAnswer::Stored`] comes
/// back. The broker writes it down as a run of its own, once, under the id
/// that both sides derive from the nonce; see [`LocalNonce::run_id`].
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct LocalReport {
    /// From which its id follows.
    pub nonce: LocalNonce,
    /// Who, when, why: the node's words.
    pub local: LocalRun,
    /// What ran, where it is a function of a scenario; else the built-in
    /// `command`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call: Option<LocalCall>,
    /// Its parameters, at most [`MAX_LOCAL_PARAMS`] bytes as JSON.
    pub params: Value,
    /// Execution time that was allowed.
    pub timeout: Span,
    /// How it ended; its `serial` is the sender's own.
    pub result: NodeResult,
    /// The beginning of the output, at most [`MAX_LOCAL_OUTPUT`] bytes; the
    /// rest stays in the node's journal, and `result.truncated` says so.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub output: Vec<InlineChunk>,
}

/// What of a scenario ran in a local run. The bundle was on the node; the
/// broker may never have seen it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct LocalCall {
    /// What it is called there.
    pub scenario: ScenarioName,
    /// Its bundle.
    pub bundle: BundleHash,
    /// Which function of it.
    pub function: FunctionName,
    /// Whether it was a dry run.
    pub mode: Mode,
}

/// Most bytes of a local run's parameters as JSON.
pub const MAX_LOCAL_PARAMS: usize = 32 * 1024;
/// Most bytes of a local run's output that are reported.
pub const MAX_LOCAL_OUTPUT: usize = 64 * 1024;
/// Most pieces in which they are reported.
pub const MAX_LOCAL_CHUNKS: usize = 256;
/// Longest reason of a local run, in characters.
pub const MAX_WHY: usize = 500;

/// The reply to [`LocalReport`].
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "answer", deny_unknown_fields)]
pub enum LocalAnswer {
    /// It is in the journal as this run, from this report or an earlier one.
    Stored {
        /// The id, as the node derives it too.
        run: RunId,
    },
    /// Not now: this node has reported as many as it may for a while.
    Later {
        /// When to report again.
        retry_after: Span,
    },
    /// This broker cannot take it; a newer one may.
    Refused {
        /// For the node's log.
        reason: String,
    },
}

/// The agent ends in good order.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Bye {
    /// This start of the agent.
    pub instance: InstanceId,
}
