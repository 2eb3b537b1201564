//! Keys, signatures, and whom a node believes.
//!
//! The root key of a cluster signs one thing: the [`KeyList`], which says
//! which broker keys may sign requests. Lists have a rising epoch, and a node
//! never goes back to an older one. What is signed is always exact bytes with
//! a prefix that names their purpose, so that a signature made for one thing
//! can never be shown as a signature of another.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE64URL_NOPAD;
use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest as _, Sha256};

use crate::ids::{ClusterId, base32, random_bytes};
use crate::text_form::text_form;
use crate::units::Timestamp;

/// What a signature is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Purpose {
    /// A request to nodes, by a broker key.
    Request,
    /// The list of broker keys, by the root key.
    KeyList,
    /// The answer to an enrolment or a credentials request, by a broker key.
    Credentials,
    /// A node's proof that it holds its key, over a challenge.
    NodeProof,
    /// The certificate authority of the cluster, by the root key.
    Authority,
    /// A node's encryption key, by its identity key.
    SealKey,
    /// How long the record of what was done is, and its head, by a broker key.
    AuditCheckpoint,
    /// That nothing new is to be begun on the nodes, or that it may be again,
    /// by a broker key.
    Freeze,
}

impl Purpose {
    fn prefix(self) -> &'static [u8] {
        match self {
            Self::Request => b"muster/1/request\0",
            Self::KeyList => b"muster/1/key-list\0",
            Self::Credentials => b"muster/1/credentials\0",
            Self::NodeProof => b"muster/1/node-proof\0",
            Self::Authority => b"muster/1/authority\0",
            Self::SealKey => b"muster/1/seal-key\0",
            Self::AuditCheckpoint => b"muster/1/audit-checkpoint\0",
            Self::Freeze => b"muster/1/freeze\0",
        }
    }

    fn message(self, bytes: &[u8]) -> Vec<u8> {
        [self.prefix(), bytes].concat()
    }
}

/// A signature that does not hold, or a key that is none.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum KeyError {
    /// Not 32 bytes of base64url, or not a point of the curve.
    #[error("this is not an ed25519 public key")]
    NotAKey,
    /// Not 64 bytes of base64url.
    #[error("this is not an ed25519 signature")]
    NotASignature,
    /// The bytes were changed, or another key signed them.
    #[error("the signature does not match")]
    Mismatch,
    /// The key's own signature holds, but nobody says that this key counts.
    #[error("the key that signed is not one that is trusted here")]
    Untrusted,
    /// Signed, but the content cannot be read.
    #[error("the signature matches, but what it signs cannot be read")]
    Unreadable,
}

/// A private signing key. It has no `Display`, and `Debug` hides it.
#[derive(Clone)]
pub struct PrivateKey(SigningKey);

impl PrivateKey {
    /// A new random key.
    #[must_use]
    pub fn generate() -> Self {
        Self(SigningKey::from_bytes(&random_bytes()))
    }

    /// From its 32-byte seed.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// The seed, to be stored in a file that only its owner reads.
    #[must_use]
    pub fn seed(&self) -> zeroize::Zeroizing<[u8; 32]> {
        zeroize::Zeroizing::new(self.0.to_bytes())
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    /// A detached signature over exactly these bytes, for one purpose.
    #[must_use]
    pub fn sign(&self, purpose: Purpose, bytes: &[u8]) -> Signature {
        Signature(self.0.sign(&purpose.message(bytes)).to_bytes())
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey({}, [redacted])", self.public().id())
    }
}

/// A public ed25519 key; base64url in text.
#[derive(Clone, Copy, Eq, PartialEq)]
pub struct PublicKey(VerifyingKey);

impl PublicKey {
    /// Checks a signature, strictly: no small-order keys, no malleable forms.
    ///
    /// # Errors
    /// [`KeyError::Mismatch`].
    pub fn verify(
        &self,
        purpose: Purpose,
        bytes: &[u8],
        signature: &Signature,
    ) -> Result<(), KeyError> {
        let signature = ed25519_dalek::Signature::from_bytes(&signature.0);
        self.0
            .verify_strict(&purpose.message(bytes), &signature)
            .map_err(|_| KeyError::Mismatch)
    }

    /// The key's id: the first 64 bits of its SHA-256.
    #[must_use]
    pub fn id(&self) -> KeyId {
        let digest = Sha256::digest(self.0.as_bytes());
        let mut id = [0; 8];
        id.copy_from_slice(&digest[..8]);
        KeyId(id)
    }

    /// 128 bits that stand for the key in an invite.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        let digest = Sha256::digest(self.0.as_bytes());
        let mut print = [0; 16];
        print.copy_from_slice(&digest[..16]);
        Fingerprint(print)
    }

    /// The 32 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64URL_NOPAD.encode(self.0.as_bytes()))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let bytes = decode(text).ok_or(KeyError::NotAKey)?;
        VerifyingKey::from_bytes(&bytes)
            .map(Self)
            .map_err(|_| KeyError::NotAKey)
    }
}

/// A detached signature; base64url in text.
#[derive(Clone, Copy, Eq, PartialEq)]
pub struct Signature([u8; 64]);

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64URL_NOPAD.encode(&self.0))
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signature({self})")
    }
}

impl FromStr for Signature {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        decode(text).map(Self).ok_or(KeyError::NotASignature)
    }
}

/// Short name of a public key.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct KeyId([u8; 8]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&base32(&self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}

impl FromStr for KeyId {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        crate::ids::from_base32(text)
            .map(Self)
            .ok_or(KeyError::NotAKey)
    }
}

/// 128 bits of a key's SHA-256, in an invite.
#[derive(Clone, Copy, Eq, PartialEq)]
pub struct Fingerprint([u8; 16]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&base32(&self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

impl FromStr for Fingerprint {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        crate::ids::from_base32(text)
            .map(Self)
            .ok_or(KeyError::NotAKey)
    }
}

fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    BASE64URL_NOPAD
        .decode(text.as_bytes())
        .ok()?
        .try_into()
        .ok()
}

text_form!(PublicKey, Signature, KeyId, Fingerprint);

/// JSON text with a detached signature over exactly that text.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignedText {
    /// The signed JSON, as text.
    pub text: String,
    /// The key that signed.
    pub key: KeyId,
    /// The signature over the bytes of `text`.
    pub signature: Signature,
}

impl SignedText {
    /// Signs the JSON form of `value`.
    ///
    /// # Panics
    /// When `value` has no JSON form, which no type of this crate lacks.
    #[must_use]
    pub fn sign<T: Serialize>(key: &PrivateKey, purpose: Purpose, value: &T) -> Self {
        let text = serde_json::to_string(value).expect("signed types have a JSON form");
        let signature = key.sign(purpose, text.as_bytes());
        Self {
            text,
            key: key.public().id(),
            signature,
        }
    }

    /// The content, if this key signed it for this purpose.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn open<T: DeserializeOwned>(
        &self,
        key: &PublicKey,
        purpose: Purpose,
    ) -> Result<T, KeyError> {
        if key.id() != self.key {
            return Err(KeyError::Untrusted);
        }
        key.verify(purpose, self.text.as_bytes(), &self.signature)?;
        serde_json::from_str(&self.text).map_err(|_| KeyError::Unreadable)
    }
}

/// Whether a broker key may sign.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BrokerKeyState {
    /// Requests signed with it are obeyed.
    Active,
    /// Never again.
    Revoked,
}

/// One broker key in the list.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BrokerKey {
    /// The public key.
    pub key: PublicKey,
    /// Whether it may sign.
    pub state: BrokerKeyState,
    /// When it came onto the list.
    #[schema(value_type = String, format = DateTime)]
    pub added: Timestamp,
}

/// Whom the nodes of a cluster obey, signed by the root key.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KeyList {
    /// The cluster it is for.
    pub cluster: ClusterId,
    /// Rises with every change; a node refuses a lower one.
    pub epoch: u64,
    /// The root key that signs this list.
    pub root: PublicKey,
    /// The broker keys, revoked ones kept.
    pub keys: Vec<BrokerKey>,
    /// When it was signed.
    #[schema(value_type = String, format = DateTime)]
    pub issued: Timestamp,
}

/// Why a key list is not taken.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum KeyListError {
    /// The signature or the content.
    #[error("the key list is refused: {0}")]
    Key(#[from] KeyError),
    /// Another cluster's.
    #[error("the key list is for cluster {theirs}, this node belongs to {ours}")]
    Cluster {
        /// The node's cluster.
        ours: ClusterId,
        /// The list's.
        theirs: ClusterId,
    },
    /// An older list than the one held.
    #[error("the key list has epoch {theirs}, this node has already seen {ours}")]
    Older {
        /// The epoch held.
        ours: u64,
        /// The epoch offered.
        theirs: u64,
    },
}

impl KeyList {
    /// Signs the list with the root key.
    #[must_use]
    pub fn sign(&self, root: &PrivateKey) -> SignedText {
        SignedText::sign(root, Purpose::KeyList, self)
    }

    /// Reads a list that this root key signed.
    ///
    /// # Errors
    /// [`KeyListError::Key`] when the root key did not sign it.
    pub fn open(signed: &SignedText, root: &PublicKey) -> Result<Self, KeyListError> {
        let list: Self = signed.open(root, Purpose::KeyList)?;
        if list.root != *root {
            return Err(KeyError::Untrusted.into());
        }
        Ok(list)
    }

    /// Reads a list that is to replace this one. The same list again is fine.
    ///
    /// # Errors
    /// [`KeyListError`]: not signed by this list's root, another cluster's,
    /// or older.
    pub fn successor(&self, signed: &SignedText) -> Result<Self, KeyListError> {
        let next = Self::open(signed, &self.root)?;
        if next.cluster != self.cluster {
            return Err(KeyListError::Cluster {
                ours: self.cluster,
                theirs: next.cluster,
            });
        }
        if next.epoch < self.epoch || (next.epoch == self.epoch && next != *self) {
            return Err(KeyListError::Older {
                ours: self.epoch,
                theirs: next.epoch,
            });
        }
        Ok(next)
    }

    /// The key with that id, whatever its state.
    #[must_use]
    pub fn find(&self, id: KeyId) -> Option<&BrokerKey> {
        self.keys.iter().find(|k| k.key.id() == id)
    }

    /// Opens a text that one of the active keys signed.
    ///
    /// # Errors
    /// [`KeyError::Untrusted`] for a key that is revoked or not on the list.
    pub fn open_signed<T: DeserializeOwned>(
        &self,
        signed: &SignedText,
        purpose: Purpose,
    ) -> Result<T, KeyError> {
        match self.find(signed.key) {
            Some(k) if k.state == BrokerKeyState::Active => signed.open(&k.key, purpose),
            _ => Err(KeyError::Untrusted),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(root: &PrivateKey, epoch: u64) -> KeyList {
        KeyList {
            cluster: ClusterId::from_bytes([1; 16]),
            epoch,
            root: root.public(),
            keys: vec![],
            issued: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn a_signature_is_for_one_purpose_one_key_and_those_bytes() {
        let key = PrivateKey::generate();
        let signature = key.sign(Purpose::Request, b"abc");
        let public = key.public();
        assert_eq!(public.verify(Purpose::Request, b"abc", &signature), Ok(()));
        assert!(public.verify(Purpose::KeyList, b"abc", &signature).is_err());
        assert!(public.verify(Purpose::Request, b"abd", &signature).is_err());
        assert!(
            PrivateKey::generate()
                .public()
                .verify(Purpose::Request, b"abc", &signature)
                .is_err()
        );
    }

    #[test]
    fn key_lists_only_go_forward() {
        let root = PrivateKey::generate();
        let held = list(&root, 5);
        assert!(held.successor(&list(&root, 6).sign(&root)).is_ok());
        assert!(held.successor(&held.sign(&root)).is_ok());
        assert_eq!(
            held.successor(&list(&root, 4).sign(&root)),
            Err(KeyListError::Older { ours: 5, theirs: 4 })
        );
        // Two different lists of one epoch: the first one seen stays.
        let mut other = list(&root, 5);
        other.issued = Timestamp::MAX;
        assert!(held.successor(&other.sign(&root)).is_err());
        let stranger = PrivateKey::generate();
        assert!(held.successor(&list(&stranger, 9).sign(&stranger)).is_err());
        assert!(held.successor(&list(&root, 9).sign(&stranger)).is_err());
        let mut foreign = list(&root, 9);
        foreign.cluster = ClusterId::from_bytes([2; 16]);
        assert!(matches!(
            held.successor(&foreign.sign(&root)),
            Err(KeyListError::Cluster { .. })
        ));
    }

    #[test]
    fn a_private_key_does_not_print() {
        let key = PrivateKey::from_seed(&[7; 32]);
        let shown = format!("{key:?}");
        assert!(shown.contains("[redacted]"), "{shown}");
        assert!(!shown.contains(&BASE64URL_NOPAD.encode(&[7; 32])));
    }
}
