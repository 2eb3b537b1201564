//! The record of who did what: a chain of hashes that anybody can compute
//! again, and checkpoints of it that a broker key has signed.
//!
//! A line is one JSON text. Lines of the chain are [`Record`]s: each holds the
//! hash over the exact bytes of the line before it, so that none can be
//! changed, dropped, added or moved without changing all that follow. A
//! [`Checkpoint`] says how long the chain was at some time, and its head. Who
//! keeps one where the broker cannot write can prove later whether the chain
//! that the broker shows is the one that it was.
//!
//! What is read again is read as text: a record of a newer muster, with fields
//! that are not known here, verifies like any other.

#[cfg(test)]
mod tests;
mod verify;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use crate::envelope::{BundleHash, Mode};
use crate::ids::{ClusterId, RunId};
use crate::keys::{PrivateKey, PublicKey, Purpose, SignedText};
use crate::names::{NodeName, PrincipalName, ScenarioName};
use crate::nodeset::NodeSet;
use crate::text_form::text_form;
use crate::units::Timestamp;

pub use self::verify::{Anchor, Fault, FaultKind, Outside, OutsideError, Report, Verifier};

/// In front of what is hashed, so that no other hash of muster is one of
/// these.
const PREFIX: &[u8] = b"muster/1/audit\0";

/// Longest line that is read, in bytes.
pub const MAX_LINE: usize = 512 * 1024;

/// SHA-256 over a record and thereby over all before it; hex in text.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Head([u8; 32]);

impl Head {
    /// What stands before the first record.
    pub const START: Self = Self([0; 32]);

    /// The hash of a line, without its line end.
    #[must_use]
    pub fn of(line: &[u8]) -> Self {
        let mut hash = Sha256::new();
        hash.update(PREFIX);
        hash.update(line);
        Self(hash.finalize().into())
    }
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Head({self})")
    }
}

/// A text that is not 64 hexadecimal digits.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a hash of the record is 64 hexadecimal digits")]
pub struct HeadError;

impl FromStr for Head {
    type Err = HeadError;

    fn from_str(text: &str) -> Result<Self, HeadError> {
        let bytes = data_encoding::HEXLOWER.decode(text.as_bytes());
        let bytes = bytes.ok().and_then(|b| b.try_into().ok());
        bytes.map(Self).ok_or(HeadError)
    }
}

text_form!(Head);

/// Who it was, as the door established it.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Who {
    /// The principal; absent where nobody could be established.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<PrincipalName>,
    /// The role of the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// The id of the token, never its text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Through which door.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub door: Option<String>,
    /// Where exactly: an address, a schedule, a hook with its delivery.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub origin: Option<Value>,
}

/// One node set of a run.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, utoipa::ToSchema)]
pub struct SetAbout {
    /// Its name in the scenario.
    pub name: String,
    /// How many nodes.
    pub count: u32,
    /// Which, by serial.
    pub nodes: NodeSet,
}

/// What it was about; what does not apply is absent.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize, utoipa::ToSchema)]
pub struct About {
    /// The run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunId>,
    /// The scenario.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scenario: Option<ScenarioName>,
    /// Which version of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    /// Its bundle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundle: Option<BundleHash>,
    /// Apply or check.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// Parameters; secret ones are marks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub params: Option<Value>,
    /// Every declared node set.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sets: Vec<SetAbout>,
    /// The predicate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicate: Option<String>,
    /// Method and path of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// One node, where it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeName>,
    /// How a run ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<String>,
    /// How many nodes of an ended run came to which outcome.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub outcomes: BTreeMap<String, u32>,
    /// What else there is to say, by the kind of action.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    #[schema(value_type = Object)]
    pub more: Map<String, Value>,
}

/// What was answered, or that it simply happened.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It was allowed, and went on after this was written.
    Allowed,
    /// It was not.
    Denied,
    /// Nobody was asked: the end of a run, a gap that was found.
    Noted,
}

impl Verdict {
    /// The word, as in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::Noted => "noted",
        }
    }
}

/// What goes into the record, before it has its place in it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Entry {
    /// When, by the broker's clock.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// Who.
    #[serde(default)]
    pub who: Who,
    /// Did what: a word that stays.
    pub action: String,
    /// Allowed or not.
    pub verdict: Verdict,
    /// Why not; by which policies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// How often, up to `until`; once where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<u64>,
    /// The last time, where it was more than once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub until: Option<Timestamp>,
    /// What it was about. Boxed: most of it is absent mostly.
    #[serde(default)]
    pub about: Box<About>,
}

/// One line of the chain.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Record {
    /// Its number, from 1, without a gap.
    pub n: u64,
    /// The hash of the record before it; [`Head::START`] for the first.
    pub prev: Head,
    /// What it says.
    #[serde(flatten)]
    pub entry: Entry,
}

/// How long the chain was, and its head.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Checkpoint {
    /// The cluster.
    pub cluster: ClusterId,
    /// The epoch of the broker that signed.
    pub epoch: u64,
    /// How many records there were: the number of the last one.
    pub count: u64,
    /// The hash of that one.
    pub head: Head,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// Everything up to here was removed because of its age: the chain that
    /// is shown begins behind it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cut: bool,
}

impl Checkpoint {
    /// Signs it.
    #[must_use]
    pub fn sign(&self, key: &PrivateKey) -> SignedText {
        SignedText::sign(key, Purpose::AuditCheckpoint, self)
    }
}

/// Whose signatures count, as an export says it. It is no proof: the
/// fingerprint of the root key has to be known from elsewhere.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, utoipa::ToSchema)]
pub struct TrustLine {
    /// The root key of the cluster.
    pub root: PublicKey,
    /// The list of broker keys, signed by it.
    pub keys: SignedText,
}

/// A line of a stream, a sink's file or an export.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(tag = "audit", rename_all = "snake_case")]
pub enum Line {
    /// A part of the chain.
    Record(Box<Record>),
    /// A checkpoint of it.
    Checkpoint(SignedText),
    /// Whose signatures count.
    Trust(Box<TrustLine>),
}

/// The end of a chain: what the next record builds on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Tail {
    /// How many records there are.
    pub count: u64,
    /// The hash of the last one.
    pub head: Head,
}

impl Tail {
    /// No record yet.
    pub const START: Self = Self {
        count: 0,
        head: Head::START,
    };

    /// Appends: the exact text of the next line.
    ///
    /// # Panics
    /// Never: every record has a JSON form.
    #[must_use]
    pub fn append(&mut self, entry: Entry) -> String {
        let record = Record {
            n: self.count + 1,
            prev: self.head,
            entry,
        };
        let line = Line::Record(Box::new(record));
        let text = serde_json::to_string(&line).expect("a record has a JSON form");
        self.count += 1;
        self.head = Head::of(text.as_bytes());
        text
    }

    /// The tail after these lines of a message, if they say one: that of the
    /// last record, or of a checkpoint behind it.
    #[must_use]
    pub fn after_lines(text: &str) -> Option<Self> {
        text.lines()
            .rev()
            .find_map(|line| match serde_json::from_str::<Line>(line).ok()? {
                Line::Record(record) => Some(Self {
                    count: record.n,
                    head: Head::of(line.as_bytes()),
                }),
                Line::Checkpoint(signed) => {
                    let said: Checkpoint = serde_json::from_str(&signed.text).ok()?;
                    (!said.cut).then_some(Self {
                        count: said.count,
                        head: said.head,
                    })
                }
                Line::Trust(_) => None,
            })
    }
}
