//! Identifiers: random ones for runs, rising ones for nodes.

use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

use data_encoding::{Encoding, Specification};
use serde::{Deserialize, Serialize};

use crate::text_form::text_form;

/// Crockford's base 32 in lower case: no `i`, `l`, `o`, `u`, so that an id can
/// be read aloud and typed from a screen.
static BASE32: LazyLock<Encoding> = LazyLock::new(|| {
    let mut spec = Specification::new();
    spec.symbols.push_str("0123456789abcdefghjkmnpqrstvwxyz");
    spec.translate.from.push_str("ABCDEFGHJKMNPQRSTVWXYZoOiIlL");
    spec.translate.to.push_str("abcdefghjkmnpqrstvwxyz001111");
    spec.check_trailing_bits = false;
    spec.encoding().expect("the specification is a constant")
});

pub(crate) fn base32(bytes: &[u8]) -> String {
    BASE32.encode(bytes)
}

pub(crate) fn from_base32<const N: usize>(text: &str) -> Option<[u8; N]> {
    BASE32.decode(text.as_bytes()).ok()?.try_into().ok()
}

/// `N` bytes from the operating system's random source.
///
/// # Panics
/// When the operating system has no random source: nothing that muster does
/// is safe then.
#[must_use]
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}

/// Why a text is not an id.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{text}` is not {what}: {why}")]
pub struct IdError {
    what: &'static str,
    text: String,
    why: &'static str,
}

impl IdError {
    fn new(what: &'static str, text: &str, why: &'static str) -> Self {
        let text = crate::text::printable(text, 60);
        Self { what, text, why }
    }
}

macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub struct $name([u8; 16]);

        impl $name {
            /// A new random id.
            #[must_use]
            pub fn random() -> Self {
                Self(random_bytes())
            }

            /// The sixteen bytes.
            #[must_use]
            pub fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }

            /// From sixteen bytes, for tests and derived ids.
            #[must_use]
            pub fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&base32(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                from_base32(text)
                    .map(Self)
                    .ok_or_else(|| IdError::new($what, text, "26 letters and digits are expected"))
            }
        }

        text_form!($name, "^[0-9a-z]{26}$", 26);
    };
}

random_id! {
    /// One execution of a scenario. People see [`RunId::short`].
    RunId, "a run id"
}
random_id! {
    /// One muster installation: a root key and everything that trusts it.
    ClusterId, "a cluster id"
}
random_id! {
    /// One start of an agent process. Two live instances with one node key
    /// are a cloned machine.
    InstanceId, "an instance id"
}
random_id! {
    /// What a node chooses for a local run; see [`LocalNonce::run_id`].
    LocalNonce, "the nonce of a local run"
}
random_id! {
    /// A plan that waits for a confirmation.
    PlanId, "a plan id"
}

/// Fewest characters of an id that people are shown.
pub const SHORT_LEN: usize = 4;

impl RunId {
    /// The first four characters: what people see while that is unambiguous.
    #[must_use]
    pub fn short(&self) -> String {
        self.prefix(SHORT_LEN)
    }

    /// The first `len` characters.
    #[must_use]
    pub fn prefix(&self, len: usize) -> String {
        let mut text = self.to_string();
        text.truncate(len);
        text
    }
}

impl LocalNonce {
    /// The id of the run: the node and the broker derive the same one, before
    /// they talk. The serial is in it, and it comes out of a hash, so that a
    /// node can name neither another node's run nor one that exists.
    #[must_use]
    pub fn run_id(&self, cluster: ClusterId, node: Serial) -> RunId {
        use sha2::{Digest as _, Sha256};
        let mut hash = Sha256::new();
        hash.update(b"muster/1/local-run\0");
        hash.update(cluster.as_bytes());
        hash.update(node.0.to_be_bytes());
        hash.update(self.as_bytes());
        let hash: [u8; 32] = hash.finalize().into();
        let mut id = [0; 16];
        id.copy_from_slice(&hash[..16]);
        RunId::from_bytes(id)
    }
}

impl PlanId {
    /// The first four characters.
    #[must_use]
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.truncate(SHORT_LEN);
        text
    }
}

/// The enrolment serial of a node: given once, never used again, also when
/// the node is removed or its machine replaced. It is the node's bit in a
/// [`crate::nodeset::NodeSet`] and its place in NATS subjects.
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
#[serde(transparent)]
pub struct Serial(pub u32);

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Serial {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        // `u32::from_str` takes a leading `+`, and leading zeros would give
        // one node two subjects.
        let plain =
            text.bytes().all(|b| b.is_ascii_digit()) && !(text.len() > 1 && text.starts_with('0'));
        match text.parse() {
            Ok(serial) if plain => Ok(Self(serial)),
            _ => Err(IdError::new(
                "an enrolment serial",
                text,
                "a number is expected",
            )),
        }
    }
}

/// What a node answers for exactly once: one step of one run.
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
pub struct RequestId {
    /// The run.
    pub run: RunId,
    /// The step inside the run, from 0.
    pub step: u32,
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.run, self.step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_round_trip_and_forgive_what_people_mistype() {
        let id = RunId::random();
        let text = id.to_string();
        assert_eq!(text.len(), 26);
        assert_eq!(text.parse(), Ok(id));
        assert_eq!(text.to_uppercase().parse(), Ok(id));
        let o = text.replace('0', "o").replace('1', "l");
        assert_eq!(o.parse(), Ok(id));
        assert!("".parse::<RunId>().is_err());
        assert!("u".repeat(26).parse::<RunId>().is_err());
        assert!("0".repeat(27).parse::<RunId>().is_err());
    }

    #[test]
    fn a_local_runs_id_belongs_to_its_node_and_cluster() {
        let (nonce, cluster) = (LocalNonce::random(), ClusterId::random());
        let id = nonce.run_id(cluster, Serial(7));
        assert_eq!(id, nonce.run_id(cluster, Serial(7)));
        assert_ne!(id, nonce.run_id(cluster, Serial(8)));
        assert_ne!(id, nonce.run_id(ClusterId::random(), Serial(7)));
        assert_ne!(id.as_bytes(), nonce.as_bytes());
    }

    #[test]
    fn a_serial_has_one_spelling() {
        assert_eq!("17".parse(), Ok(Serial(17)));
        assert_eq!("0".parse(), Ok(Serial(0)));
        for bad in ["", "+1", "-1", "01", "1.5", "99999999999", "٣"] {
            assert!(bad.parse::<Serial>().is_err(), "{bad}");
        }
    }
}
