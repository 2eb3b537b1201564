//! The signed request, and what a node checks before it obeys.
//!
//! The payload is signed as sent: exact bytes, the signature and the key id
//! in NATS headers. [`Gate::check`] is the one door to execution.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::ids::{ClusterId, RequestId, RunId, Serial};
use crate::keys::{
    BrokerKeyState, KeyId, KeyList, PrivateKey, PublicKey, Purpose, Signature, SignedText,
};
use crate::names::{FunctionName, PrincipalName, ScenarioName};
use crate::nodeset::NodeSet;
use crate::note::Expected;
use crate::seal::BoxHash;
use crate::text_form::text_form;
use crate::units::{Span, Timestamp, after, elapsed};
use crate::wire::Recall;

/// NATS header with the signature.
pub const SIGNATURE_HEADER: &str = "Muster-Signature";
/// NATS header with the id of the key that signed.
pub const KEY_HEADER: &str = "Muster-Key";
/// How far the clocks of broker and node may be apart.
pub const MAX_SKEW: Duration = Duration::from_secs(30);
/// Longest time between `issued` and `start_before`.
pub const MAX_START_WINDOW: Duration = Duration::from_secs(60);
/// How much older than the newest request of the same key one may be.
pub const MAX_AGE_BEHIND: Duration = Duration::from_secs(90);
/// Most bytes of a payload that are looked at.
pub const MAX_PAYLOAD: usize = 1024 * 1024;

/// SHA-256 over a scenario bundle; hex in text.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct BundleHash(pub [u8; 32]);

impl BundleHash {
    /// The hash of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

impl fmt::Display for BundleHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for BundleHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BundleHash({self})")
    }
}

/// A text that is not 64 hexadecimal digits.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a bundle hash is 64 hexadecimal digits")]
pub struct BundleHashError;

impl FromStr for BundleHash {
    type Err = BundleHashError;

    fn from_str(text: &str) -> Result<Self, BundleHashError> {
        let bytes = data_encoding::HEXLOWER.decode(text.as_bytes());
        let bytes = bytes.ok().and_then(|b| b.try_into().ok());
        bytes.map(Self).ok_or(BundleHashError)
    }
}

text_form!(BundleHash);

/// The door a run came through.
#[derive(
    Clone,
    Copy,
    Debug,
    Deserialize,
    Eq,
    Hash,
    Ord,
    PartialEq,
    PartialOrd,
    Serialize,
    utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Door {
    /// The `muster` command.
    Cli,
    /// The HTTP API, by anything else.
    Http,
    /// The broker itself, such as a recovery.
    Broker,
    /// A schedule, when its time had come.
    Schedule,
    /// A webhook, by a trigger.
    Hook,
    /// A chat network, by a bot that has heard it there.
    Irc,
    /// The node's own shell: it ran there without the broker, and was
    /// reported later.
    Local,
}

impl Door {
    /// All doors.
    pub const ALL: [Self; 7] = [
        Self::Cli,
        Self::Http,
        Self::Broker,
        Self::Schedule,
        Self::Hook,
        Self::Irc,
        Self::Local,
    ];

    /// The word, as in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cli => "cli",
            Self::Http => "http",
            Self::Broker => "broker",
            Self::Schedule => "schedule",
            Self::Hook => "hook",
            Self::Irc => "irc",
            Self::Local => "local",
        }
    }
}

impl fmt::Display for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Whether a call acts or only says what it would do.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Do it.
    #[default]
    Apply,
    /// Say what would change.
    Check,
}

/// What bounds a call on one node.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Execution time, on the node's monotonic clock.
    pub timeout: Span,
    /// Bytes of output kept, all streams together.
    pub output_bytes: u64,
    /// How often a function of a scenario is tried again after it failed,
    /// inside the same `timeout`.
    #[serde(default, skip_serializing_if = "crate::run::is_zero")]
    pub retry: u32,
}

/// A function of a scenario, called with parameters.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Call {
    /// Which scenario, for people; the hash decides.
    pub scenario: ScenarioName,
    /// The bundle to run.
    pub bundle: BundleHash,
    /// Which function of it.
    pub function: FunctionName,
    /// Its parameters.
    pub params: Value,
    /// Apply or check.
    pub mode: Mode,
    /// Bounds.
    pub limits: Limits,
    /// What a dry run said on the nodes: each makes it once more before it
    /// changes anything, and declines (a reason that begins with
    /// [`DRIFTED`]) where it comes out otherwise.
    #[serde(default, skip_serializing_if = "Expected::is_empty")]
    pub expect: Expected,
    /// The secret parameters that came with the request, in a header of
    /// their own: a node keeps the request, and must not keep them. By this
    /// hash the signature covers them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secrets: Option<BoxHash>,
}

/// How the reason of a node begins that declines because a dry run does not
/// come out any more as it was shown.
pub const DRIFTED: &str = "drifted: ";

/// What a request asks for.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "do", deny_unknown_fields)]
pub enum Ask {
    /// Execute, once.
    Call(Call),
    /// End the step with this request's id, if it runs; answered by its
    /// outcome.
    Cancel,
    /// Answer with [`crate::wire::Pong`].
    Ping,
    /// Fetch new credentials: the assignment has changed to this revision.
    Refresh {
        /// The revision that the broker holds.
        revision: u64,
    },
    /// Report again what was acknowledged: a broker has gone back in time.
    Recall(Recall),
    /// Begin nothing new, or begin it again: a [`crate::freeze::Freeze`].
    Freeze {
        /// Signed by a broker key.
        freeze: SignedText,
    },
    /// What the machines' interfaces of a hypervisor may say and hear.
    Groups(Box<crate::firewall::GroupsUpdate>),
    /// Connect to a node whose firewall has changed, and answer with
    /// [`crate::firewall::Probed`].
    Probe(crate::firewall::ProbeAsk),
    /// Take this key list.
    Keys {
        /// Signed by the root key.
        list: SignedText,
    },
}

/// The signed payload.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Protocol version, [`crate::PROTOCOL_VERSION`].
    pub v: u32,
    /// The cluster it is for.
    pub cluster: ClusterId,
    /// The epoch of the active broker's lease.
    pub epoch: u64,
    /// With `step`, the id that a node answers for once. A ping has a random
    /// one.
    pub run: RunId,
    /// The step of the run.
    pub step: u32,
    /// Who is to obey: the frozen set, or a part of it.
    pub set: NodeSet,
    /// The frozen set where `set` is only a part of it: one batch, or the
    /// nodes that are asked again. Nobody obeys because of it; it says to a
    /// broker that has lost the run whose outcomes there are to find.
    #[serde(default, skip_serializing_if = "NodeSet::is_empty")]
    pub whole: NodeSet,
    /// When the run was created, for a broker that has lost it. Absent where
    /// there is no run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<Timestamp>,
    /// The predicate that gave the set; it must still hold on the node.
    pub predicate: String,
    /// When this copy was signed.
    pub issued: Timestamp,
    /// When execution must have begun, at most a minute after `issued`.
    pub start_before: Timestamp,
    /// Who asks.
    pub principal: PrincipalName,
    /// Through which door.
    pub door: Door,
    /// It takes back what a run has done, and was promised when that began: a
    /// node that is frozen does it all the same. Said only while there is a
    /// freeze.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub promised: bool,
    /// What is asked.
    pub ask: Ask,
}

impl Request {
    /// The id that a node answers for once.
    #[must_use]
    pub fn id(&self) -> RequestId {
        RequestId {
            run: self.run,
            step: self.step,
        }
    }

    /// The frozen set of the run that this request is of.
    #[must_use]
    pub fn frozen(&self) -> &NodeSet {
        if self.whole.is_empty() {
            &self.set
        } else {
            &self.whole
        }
    }

    /// Signs: the exact bytes to send, and the signature over them.
    ///
    /// # Panics
    /// Never: every request has a JSON form.
    #[must_use]
    pub fn seal(&self, key: &PrivateKey) -> Sealed {
        let bytes = serde_json::to_vec(self).expect("a request has a JSON form");
        let signature = key.sign(Purpose::Request, &bytes);
        Sealed {
            bytes,
            key: key.public().id(),
            signature,
        }
    }
}

/// A request as it travels.
#[derive(Clone, Debug, PartialEq)]
pub struct Sealed {
    /// The payload.
    pub bytes: Vec<u8>,
    /// Header [`KEY_HEADER`].
    pub key: KeyId,
    /// Header [`SIGNATURE_HEADER`].
    pub signature: Signature,
}

/// Why a node does not do what a message asks.
///
/// The first group cannot be attributed to the broker and is never answered,
/// only counted: an answer would tell a stranger something, and could be made
/// to flood. The second group is answered with `declined` and this reason.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// No or unreadable headers.
    #[error("the message carries no signature")]
    Unsigned,
    /// Over [`MAX_PAYLOAD`].
    #[error("the message has {0} bytes")]
    TooLarge(usize),
    /// Not on the key list.
    #[error("key {0} is not on this node's key list")]
    UnknownKey(KeyId),
    /// On the list, revoked.
    #[error("key {0} is revoked")]
    RevokedKey(KeyId),
    /// Altered or forged.
    #[error("the signature does not match")]
    BadSignature,
    /// Signed, but not a request that this version knows.
    #[error("the request cannot be read: {0}")]
    Unreadable(String),
    /// Another cluster's broker.
    #[error("the request is for cluster {0}")]
    WrongCluster(ClusterId),
    /// This node is not addressed.
    #[error("this node is not in the request's set")]
    NotInSet,
    /// A broker that has lost its lease.
    #[error("the request has epoch {theirs}, this node has already seen {ours}")]
    LowerEpoch {
        /// Highest seen.
        ours: u64,
        /// In the request.
        theirs: u64,
    },
    /// `start_before` more than a minute after `issued`.
    #[error("the request may start for longer than {} s", MAX_START_WINDOW.as_secs())]
    Window,

    /// Answered: older than what this key has said since. It is repeated by
    /// somebody, or the broker's clock went back.
    #[error(
        "late or clocks apart: the request was issued {behind} s before the newest one from its key; it was \
         sent again, or the broker's clock went back"
    )]
    Replayed {
        /// Seconds behind.
        behind: u64,
    },
    /// Answered: the message is late, or a clock is off.
    #[error(
        "late or clocks apart: this node's clock reads {now}, the request may start until {start_before}"
    )]
    Late {
        /// The node's clock.
        now: Timestamp,
        /// The request's limit.
        start_before: Timestamp,
    },
    /// Answered: issued in the node's future, so a clock is off.
    #[error("clocks apart: this node's clock reads {now}, the request was issued at {issued}")]
    Early {
        /// The node's clock.
        now: Timestamp,
        /// When the broker says it signed.
        issued: Timestamp,
    },
}

impl Refusal {
    /// Whether the broker is told. Only what the broker certainly signed, for
    /// this node, in its present epoch, is answered.
    #[must_use]
    pub fn is_answered(&self) -> bool {
        matches!(
            self,
            Self::Replayed { .. } | Self::Late { .. } | Self::Early { .. }
        )
    }

    /// A word for counters and logs.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Unsigned => "unsigned",
            Self::TooLarge(_) => "too_large",
            Self::UnknownKey(_) => "unknown_key",
            Self::RevokedKey(_) => "revoked_key",
            Self::BadSignature => "bad_signature",
            Self::Unreadable(_) => "unreadable",
            Self::WrongCluster(_) => "wrong_cluster",
            Self::NotInSet => "not_in_set",
            Self::LowerEpoch { .. } => "lower_epoch",
            Self::Replayed { .. } => "replayed",
            Self::Window => "window",
            Self::Late { .. } => "late",
            Self::Early { .. } => "early",
        }
    }
}

/// What a node remembers of the requests it has seen, kept on its disk.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct HighWater {
    /// Highest broker epoch seen.
    pub epoch: u64,
    /// Newest `issued` seen from each key.
    pub newest: BTreeMap<KeyId, Timestamp>,
}

/// A message from the wire, not yet believed.
#[derive(Clone, Copy, Debug)]
pub struct Incoming<'a> {
    /// [`KEY_HEADER`], as received.
    pub key: Option<&'a str>,
    /// [`SIGNATURE_HEADER`], as received.
    pub signature: Option<&'a str>,
    /// The payload.
    pub bytes: &'a [u8],
}

impl Incoming<'_> {
    /// The request, if a key that `known` returns has signed exactly these
    /// bytes. Says nothing about whether it is to be obeyed.
    ///
    /// # Errors
    /// What `known` says, or [`Refusal::Unsigned`], [`Refusal::TooLarge`],
    /// [`Refusal::BadSignature`], [`Refusal::Unreadable`].
    pub fn authentic(
        self,
        known: impl FnOnce(KeyId) -> Result<PublicKey, Refusal>,
    ) -> Result<(Request, KeyId), Refusal> {
        let (Some(key), Some(signature)) = (self.key, self.signature) else {
            return Err(Refusal::Unsigned);
        };
        if self.bytes.len() > MAX_PAYLOAD {
            return Err(Refusal::TooLarge(self.bytes.len()));
        }
        let (Ok(id), Ok(signature)) = (key.parse::<KeyId>(), signature.parse::<Signature>()) else {
            return Err(Refusal::Unsigned);
        };
        if known(id)?
            .verify(Purpose::Request, self.bytes, &signature)
            .is_err()
        {
            return Err(Refusal::BadSignature);
        }
        let request = serde_json::from_slice(self.bytes)
            .map_err(|e| Refusal::Unreadable(crate::text::printable(&e.to_string(), 200)))?;
        Ok((request, id))
    }
}

/// Who is asked to obey: what a node holds its requests against.
#[derive(Clone, Copy, Debug)]
pub struct Gate<'a> {
    /// The cluster's key list.
    pub keys: &'a KeyList,
    /// This node.
    pub node: Serial,
    /// What it has seen.
    pub seen: &'a HighWater,
}

/// A refusal, with the request when it is authentic.
#[derive(Clone, Debug, PartialEq)]
pub struct Refused {
    /// Why.
    pub why: Refusal,
    /// The request, when a trusted key signed it.
    pub request: Option<Box<Request>>,
}

impl Gate<'_> {
    /// Checks a message in the order in which a hostile one is cheapest to
    /// refuse. On success the caller stores [`HighWater::advanced`] *before*
    /// it acts, looks the request id up in its journal, and checks the
    /// predicate and its own capabilities.
    ///
    /// # Errors
    /// [`Refused`]; nothing may be executed then.
    pub fn check(&self, message: Incoming<'_>, now: Timestamp) -> Result<Request, Refused> {
        let known = |id| match self.keys.find(id) {
            None => Err(Refusal::UnknownKey(id)),
            Some(key) if key.state == BrokerKeyState::Revoked => Err(Refusal::RevokedKey(id)),
            Some(key) => Ok(key.key),
        };
        let (request, id) = message
            .authentic(known)
            .map_err(|why| Refused { why, request: None })?;
        match self.judge(&request, id, now) {
            Ok(()) => Ok(request),
            Err(why) => Err(Refused {
                why,
                request: Some(Box::new(request)),
            }),
        }
    }

    fn judge(&self, request: &Request, key: KeyId, now: Timestamp) -> Result<(), Refusal> {
        if request.cluster != self.keys.cluster {
            return Err(Refusal::WrongCluster(request.cluster));
        }
        if !request.set.contains(self.node) {
            return Err(Refusal::NotInSet);
        }
        if request.epoch < self.seen.epoch {
            return Err(Refusal::LowerEpoch {
                ours: self.seen.epoch,
                theirs: request.epoch,
            });
        }
        if request.start_before > after(request.issued, MAX_START_WINDOW) {
            return Err(Refusal::Window);
        }
        if let Some(newest) = self.seen.newest.get(&key) {
            let behind = elapsed(request.issued, *newest);
            if behind > MAX_AGE_BEHIND {
                return Err(Refusal::Replayed {
                    behind: behind.as_secs(),
                });
            }
        }
        if now > after(request.start_before, MAX_SKEW) {
            return Err(Refusal::Late {
                now,
                start_before: request.start_before,
            });
        }
        if after(now, MAX_SKEW) < request.issued {
            return Err(Refusal::Early {
                now,
                issued: request.issued,
            });
        }
        Ok(())
    }
}

impl HighWater {
    /// What to remember after `request` was accepted from `key`; `None` when
    /// nothing changes that must reach the disk. The newest `issued` is kept
    /// to a grain of ten seconds, so that a busy node does not write for each
    /// request; the window for a replay is that much wider.
    #[must_use]
    pub fn advanced(&self, request: &Request, key: KeyId) -> Option<Self> {
        let newest = self.newest.get(&key);
        let moved = newest.is_none_or(|n| elapsed(*n, request.issued) >= Duration::from_secs(10));
        if request.epoch <= self.epoch && !moved {
            return None;
        }
        let mut next = self.clone();
        next.epoch = next.epoch.max(request.epoch);
        if newest.is_none_or(|n| *n < request.issued) {
            next.newest.insert(key, request.issued);
        }
        Some(next)
    }
}

#[cfg(test)]
mod tests;
