//! Secret parameters on their way to one node.
//!
//! Each start of an agent makes an encryption key that is nowhere but in its
//! memory, and offers the public half in its hello, signed by the node's
//! identity key ([`SealOffer`]). A broker seals the secrets of a request to
//! that key ([`SecretBox`]), for each node apart, and sends the box beside the
//! signed request, in a header of its own ([`SECRETS_HEADER`]): the request is
//! kept by the node, as the proof of what was ordered, and the box is not. The
//! request names the box by its hash, so that nobody can put another one in
//! its place.
//!
//! Because the key ends with the agent, what was sent cannot be opened later
//! by whoever comes to hold the disk of the node.

use std::fmt;
use std::str::FromStr;

use crypto_box::aead::OsRng;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::ids::{InstanceId, Serial};
use crate::keys::{KeyError, PrivateKey, PublicKey, Purpose, Signature};
use crate::text_form::text_form;

/// NATS header with the secret parameters of a request, sealed.
pub const SECRETS_HEADER: &str = "Muster-Secrets";
/// Most bytes of the secret parameters of one run, as JSON.
pub const MAX_SECRETS: usize = 48 * 1024;
/// What is sealed is filled up to a multiple of this, so that its length does
/// not tell how long a password is.
const FILL: usize = 512;
/// Most bytes of a sealed box: the content, and what sealing adds.
const MAX_BOX: usize = MAX_SECRETS + FILL + 64;

/// The public half of a node's encryption key (X25519); base64url in text.
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
pub struct SealKey([u8; 32]);

/// The private half. It has no text form, and `Debug` hides it.
#[derive(Clone)]
pub struct OpenKey(crypto_box::SecretKey);

/// Secrets, sealed to one node: opaque to everybody else. Base64url in text.
#[derive(Clone, Eq, PartialEq)]
pub struct SecretBox(Vec<u8>);

/// SHA-256 over a [`SecretBox`]; base64url in text.
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
pub struct BoxHash([u8; 32]);

/// A node's encryption key as its agent offers it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SealOffer {
    /// The key.
    pub key: SealKey,
    /// By the identity key, over node, start of the agent, and key.
    pub proof: Signature,
}

/// Why secrets cannot be sealed or opened.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SealError {
    /// Not a key, a box or a hash at all.
    #[error("this is no sealed box, or no key for one")]
    Text,
    /// More than is taken.
    #[error("the secret parameters have {bytes} bytes; a run takes {MAX_SECRETS}")]
    TooLarge {
        /// As JSON.
        bytes: usize,
    },
    /// Sealed to another key, or altered.
    #[error("the secret parameters are not sealed to this start of the agent; start the run anew")]
    NotOurs,
    /// The box is not the one that the request names.
    #[error("the secret parameters are not those that were signed for")]
    Other,
    /// Sealed, and no parameters.
    #[error("what is sealed cannot be read")]
    Unreadable,
}

impl OpenKey {
    /// A new random key.
    #[must_use]
    pub fn generate() -> Self {
        Self(crypto_box::SecretKey::generate(&mut OsRng))
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> SealKey {
        SealKey(self.0.public_key().to_bytes())
    }

    /// The public half as a hello offers it.
    #[must_use]
    pub fn offer(&self, identity: &PrivateKey, node: Serial, instance: InstanceId) -> SealOffer {
        let key = self.public();
        let proof = identity.sign(Purpose::SealKey, &offered(node, instance, key));
        SealOffer { key, proof }
    }

    /// What is in a box that a request names by its hash.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn open(&self, sealed: &SecretBox, hash: BoxHash) -> Result<Map<String, Value>, SealError> {
        if sealed.hash() != hash {
            return Err(SealError::Other);
        }
        let bytes = self.0.unseal(&sealed.0).map_err(|_| SealError::NotOurs)?;
        let bytes = Zeroizing::new(bytes);
        serde_json::from_slice(&bytes).map_err(|_| SealError::Unreadable)
    }
}

impl fmt::Debug for OpenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OpenKey([redacted])")
    }
}

fn offered(node: Serial, instance: InstanceId, key: SealKey) -> Vec<u8> {
    format!("{node}:{instance}:{key}").into_bytes()
}

impl SealOffer {
    /// The key, when the node's identity key says that it is this start's.
    ///
    /// # Errors
    /// [`KeyError::Mismatch`].
    pub fn checked(
        &self,
        identity: &PublicKey,
        node: Serial,
        instance: InstanceId,
    ) -> Result<SealKey, KeyError> {
        let bytes = offered(node, instance, self.key);
        identity.verify(Purpose::SealKey, &bytes, &self.proof)?;
        Ok(self.key)
    }
}

impl SecretBox {
    /// Seals secret parameters, by name, to one node.
    ///
    /// # Errors
    /// [`SealError::TooLarge`].
    pub fn seal(secrets: &Map<String, Value>, to: SealKey) -> Result<Self, SealError> {
        let mut bytes = Zeroizing::new(serde_json::to_vec(secrets).unwrap_or_default());
        if bytes.len() > MAX_SECRETS {
            return Err(SealError::TooLarge { bytes: bytes.len() });
        }
        // JSON takes blanks at its end.
        let filled = bytes.len().next_multiple_of(FILL);
        bytes.resize(filled, b' ');
        let key = crypto_box::PublicKey::from_bytes(to.0);
        let sealed = key.seal(&mut OsRng, &bytes).map_err(|_| SealError::Text)?;
        Ok(Self(sealed))
    }

    /// By which a request names it.
    #[must_use]
    pub fn hash(&self) -> BoxHash {
        BoxHash(Sha256::digest(&self.0).into())
    }
}

impl fmt::Display for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::BASE64URL_NOPAD.encode(&self.0))
    }
}

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealKey({self})")
    }
}

impl fmt::Display for BoxHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::BASE64URL_NOPAD.encode(&self.0))
    }
}

impl fmt::Debug for BoxHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BoxHash({self})")
    }
}

impl fmt::Display for SecretBox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::BASE64URL_NOPAD.encode(&self.0))
    }
}

impl fmt::Debug for SecretBox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretBox({} bytes)", self.0.len())
    }
}

fn decoded(text: &str) -> Result<Vec<u8>, SealError> {
    if text.len() > MAX_BOX / 3 * 4 + 4 {
        return Err(SealError::Text);
    }
    let bytes = data_encoding::BASE64URL_NOPAD.decode(text.as_bytes());
    bytes.map_err(|_| SealError::Text)
}

impl FromStr for SealKey {
    type Err = SealError;

    fn from_str(text: &str) -> Result<Self, SealError> {
        let bytes = decoded(text)?.try_into();
        bytes.map(Self).map_err(|_| SealError::Text)
    }
}

impl FromStr for BoxHash {
    type Err = SealError;

    fn from_str(text: &str) -> Result<Self, SealError> {
        let bytes = decoded(text)?.try_into();
        bytes.map(Self).map_err(|_| SealError::Text)
    }
}

impl FromStr for SecretBox {
    type Err = SealError;

    fn from_str(text: &str) -> Result<Self, SealError> {
        decoded(text).map(Self)
    }
}

text_form!(SealKey, BoxHash);

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn secrets(value: Value) -> Map<String, Value> {
        value.as_object().cloned().expect("a map")
    }

    #[test]
    fn what_is_sealed_to_a_node_is_opened_by_that_node_alone() {
        let (ours, other) = (OpenKey::generate(), OpenKey::generate());
        let all = secrets(json!({"token": "geheim-42", "pin": 4711}));
        let sealed = SecretBox::seal(&all, ours.public()).expect("sealed");
        let text = sealed.to_string();
        let sealed: SecretBox = text.parse().expect("reads");
        let hash = sealed.hash();
        assert_eq!(ours.open(&sealed, hash), Ok(all.clone()));
        assert_eq!(other.open(&sealed, hash), Err(SealError::NotOurs));
        // Never the same twice, and the length tells nothing.
        let short = secrets(json!({"token": "x"}));
        let again = SecretBox::seal(&all, ours.public()).expect("sealed");
        let short = SecretBox::seal(&short, ours.public()).expect("sealed");
        assert_ne!(sealed, again);
        assert_eq!(sealed.0.len(), short.0.len());
        // Another box than the one that was signed for.
        assert_eq!(ours.open(&again, hash), Err(SealError::Other));
        let mut altered = sealed.clone();
        altered.0[40] ^= 1;
        assert_eq!(ours.open(&altered, altered.hash()), Err(SealError::NotOurs));
        for shown in [format!("{ours:?}"), format!("{sealed:?}"), text] {
            assert!(!shown.contains("geheim"), "{shown}");
        }
        let large = secrets(json!({"token": "x".repeat(MAX_SECRETS)}));
        assert!(matches!(
            SecretBox::seal(&large, ours.public()),
            Err(SealError::TooLarge { .. })
        ));
        for bad in ["", "%", "AAAA"] {
            let sealed = bad.parse::<SecretBox>();
            assert!(sealed.is_err() || sealed.is_ok_and(|s| ours.open(&s, s.hash()).is_err()));
        }
    }

    #[test]
    fn a_key_counts_only_for_the_node_and_the_start_that_signed_for_it() {
        let identity = PrivateKey::generate();
        let (node, instance) = (Serial(7), InstanceId::random());
        let key = OpenKey::generate();
        let offer = key.offer(&identity, node, instance);
        let public = identity.public();
        assert_eq!(offer.checked(&public, node, instance), Ok(key.public()));
        assert!(offer.checked(&public, Serial(8), instance).is_err());
        assert!(offer.checked(&public, node, InstanceId::random()).is_err());
        let stranger = PrivateKey::generate().public();
        assert!(offer.checked(&stranger, node, instance).is_err());
        let mut swapped = offer;
        swapped.key = OpenKey::generate().public();
        assert!(swapped.checked(&public, node, instance).is_err());
    }
}
