//! NATS operator-mode claims, signed by muster itself.
//!
//! The format is that of nats-io/jwt, version 2: a JWT with algorithm
//! `ed25519-nkey`, whose `jti` is the SHA-512/256 of the standard claims in
//! base32. Everything here is a pure function of its arguments: time comes
//! from the caller, and the same claims always give the same text.

use data_encoding::BASE64URL_NOPAD;
use nkeys::{KeyPair, KeyPairType};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha512_256};

use super::keys::{AccountKey, UserKey};
use super::permissions::{Permissions, SubjectRules};
pub use super::revocations::Revocations;

/// Seconds since the Unix epoch. Claims know no finer grain.
pub type UnixSeconds = u64;

/// NATS writes "no limit" as -1; a missing or zero limit means none is left.
const NO_LIMIT: i64 = -1;

/// Why a claim could not be signed or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JwtError {
    /// The signing key cannot sign this kind of claim.
    #[error("a {claim} claim must be signed by {wanted}, not by {got}")]
    WrongSigner {
        /// `operator`, `account` or `user`.
        claim: &'static str,
        /// Who may sign it.
        wanted: &'static str,
        /// Public key that was given.
        got: String,
    },
    /// The key pair holds no private half.
    #[error("cannot sign with {key}: {reason}")]
    CannotSign {
        /// Public key.
        key: String,
        /// What the key library said.
        reason: String,
    },
    /// The claims could not be written as JSON.
    #[error("cannot encode the claims: {0}")]
    Encode(serde_json::Error),
    /// More than servers take.
    #[error(
        "the claims of account `{name}` are {bytes} bytes, NATS servers take {MAX_JWT}: {revocations} revocations are too many; give the nodes with the oldest credentials new ones, so that revocations can be dropped"
    )]
    TooLarge {
        /// Name of the account.
        name: String,
        /// Size of the JWT in bytes.
        bytes: usize,
        /// How many users are revoked one by one.
        revocations: usize,
    },
    /// A text is not a NATS JWT, or its signature is wrong.
    #[error("this is not a valid NATS JWT: {0}")]
    Invalid(&'static str),
}

/// What an operator says about itself (self-signed).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperatorClaims {
    /// A name for people.
    pub name: String,
    /// The account whose users may administer the servers.
    pub system_account: AccountKey,
    /// When the claim is made.
    pub issued_at: UnixSeconds,
}

/// What the operator says about an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountClaims {
    /// A name for people.
    pub name: String,
    /// The account.
    pub account: AccountKey,
    /// When the claim is made. Servers keep the newest of two claims, at a
    /// grain of one second: see [`next_issued_at`].
    pub issued_at: UnixSeconds,
    /// JetStream limits; `None` for an account without JetStream.
    pub jetstream: Option<JetStreamLimits>,
    /// Whose JWTs are void, and up to which issue time.
    pub revocations: Revocations,
}

/// How much JetStream an account may use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct JetStreamLimits {
    /// Bytes of memory storage; `None` for what the server has.
    pub memory_bytes: Option<u64>,
    /// Bytes of disk storage; `None` for what the server has.
    pub disk_bytes: Option<u64>,
}

/// What an account says about a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserClaims {
    /// A name for people; appears in connection events of some servers.
    pub name: String,
    /// The user.
    pub user: UserKey,
    /// When the claim is made.
    pub issued_at: UnixSeconds,
    /// When it ends; `None` for never.
    pub expires_at: Option<UnixSeconds>,
    /// What the user may publish and subscribe to.
    pub permissions: Permissions,
    /// How many subscriptions a connection may hold; `None` for no limit.
    pub max_subscriptions: Option<u32>,
    /// Largest message in bytes that the user may send; `None` for what the
    /// server allows.
    pub max_payload: Option<u32>,
}

/// The largest JWT, in bytes, that every server takes; newer ones refuse more.
/// It holds about eleven thousand revocations: see [`Revocations::compact`].
pub const MAX_JWT: usize = 1024 * 1024;

/// The issue time for a claim that replaces one of `previous`: now, but always
/// later than it. Claims have a grain of one second, and of two claims with
/// the same time a server may keep either; a revocation at
/// `next_issued_at(..) - 1` voids every older claim and not the new one.
#[must_use]
pub fn next_issued_at(now: UnixSeconds, previous: Option<UnixSeconds>) -> UnixSeconds {
    previous.map_or(now, |p| now.max(p.saturating_add(1)))
}

// ---- the wire format -------------------------------------------------------

/// Field order is that of `ClaimsData` in nats-io/jwt: `jti` hashes it.
#[derive(Serialize)]
struct Envelope<'a, N> {
    #[serde(skip_serializing_if = "Option::is_none")]
    exp: Option<UnixSeconds>,
    #[serde(skip_serializing_if = "Option::is_none")]
    jti: Option<String>,
    iat: UnixSeconds,
    iss: &'a str,
    name: &'a str,
    sub: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    nats: Option<N>,
}

#[derive(Serialize)]
struct OperatorBody<'a> {
    system_account: &'a AccountKey,
    #[serde(rename = "type")]
    kind: &'static str,
    version: u8,
}

#[derive(Serialize)]
struct AccountBody<'a> {
    limits: AccountLimits,
    #[serde(skip_serializing_if = "Revocations::is_empty")]
    revocations: &'a Revocations,
    #[serde(rename = "type")]
    kind: &'static str,
    version: u8,
}

#[derive(Serialize)]
struct AccountLimits {
    subs: i64,
    data: i64,
    payload: i64,
    imports: i64,
    exports: i64,
    wildcards: bool,
    // Only JWTs prove possession of a key.
    disallow_bearer: bool,
    conn: i64,
    leaf: i64,
    #[serde(skip_serializing_if = "Option::is_none", flatten)]
    jetstream: Option<JetStreamBody>,
}

#[derive(Serialize)]
struct JetStreamBody {
    mem_storage: i64,
    disk_storage: i64,
    streams: i64,
    consumer: i64,
}

#[derive(Serialize)]
struct UserBody<'a> {
    #[serde(rename = "pub")]
    publish: &'a SubjectRules,
    #[serde(rename = "sub")]
    subscribe: &'a SubjectRules,
    subs: i64,
    data: i64,
    payload: i64,
    // No MQTT, websocket or leaf node with a muster credential: each has
    // rules of its own for what a subject means.
    allowed_connection_types: [&'static str; 1],
    #[serde(rename = "type")]
    kind: &'static str,
    version: u8,
}

impl OperatorClaims {
    /// The signed JWT.
    ///
    /// # Errors
    /// [`JwtError::WrongSigner`] unless `operator` is an operator's pair.
    pub fn sign(&self, operator: &KeyPair) -> Result<String, JwtError> {
        require(operator, "operator", "the operator itself", |k| {
            matches!(k, KeyPairType::Operator)
        })?;
        let key = operator.public_key();
        let body = OperatorBody {
            system_account: &self.system_account,
            kind: "operator",
            version: 2,
        };
        sign(operator, &self.name, &key, self.issued_at, None, body)
    }
}

impl AccountClaims {
    /// The signed JWT.
    ///
    /// # Errors
    /// [`JwtError::WrongSigner`] unless `operator` is an operator's pair,
    /// [`JwtError::TooLarge`] for too many revocations.
    pub fn sign(&self, operator: &KeyPair) -> Result<String, JwtError> {
        require(operator, "account", "an operator", |k| {
            matches!(k, KeyPairType::Operator)
        })?;
        let limit =
            |bytes: Option<u64>| bytes.map_or(NO_LIMIT, |b| i64::try_from(b).unwrap_or(i64::MAX));
        let body = AccountBody {
            limits: AccountLimits {
                subs: NO_LIMIT,
                data: NO_LIMIT,
                payload: NO_LIMIT,
                imports: NO_LIMIT,
                exports: NO_LIMIT,
                wildcards: true,
                disallow_bearer: true,
                conn: NO_LIMIT,
                leaf: NO_LIMIT,
                jetstream: self.jetstream.map(|js| JetStreamBody {
                    mem_storage: limit(js.memory_bytes),
                    disk_storage: limit(js.disk_bytes),
                    streams: NO_LIMIT,
                    consumer: NO_LIMIT,
                }),
            },
            revocations: &self.revocations,
            kind: "account",
            version: 2,
        };
        let jwt = sign(
            operator,
            &self.name,
            self.account.as_str(),
            self.issued_at,
            None,
            body,
        )?;
        if jwt.len() > MAX_JWT {
            return Err(JwtError::TooLarge {
                name: self.name.clone(),
                bytes: jwt.len(),
                revocations: self.revocations.len(),
            });
        }
        Ok(jwt)
    }
}

impl UserClaims {
    /// The signed JWT.
    ///
    /// # Errors
    /// [`JwtError::WrongSigner`] unless `account` is an account's pair.
    pub fn sign(&self, account: &KeyPair) -> Result<String, JwtError> {
        require(account, "user", "an account", |k| {
            matches!(k, KeyPairType::Account)
        })?;
        let body = UserBody {
            publish: &self.permissions.publish,
            subscribe: &self.permissions.subscribe,
            subs: self.max_subscriptions.map_or(NO_LIMIT, i64::from),
            data: NO_LIMIT,
            payload: self.max_payload.map_or(NO_LIMIT, i64::from),
            allowed_connection_types: ["STANDARD"],
            kind: "user",
            version: 2,
        };
        sign(
            account,
            &self.name,
            self.user.as_str(),
            self.issued_at,
            self.expires_at,
            body,
        )
    }
}

fn require(
    pair: &KeyPair,
    claim: &'static str,
    wanted: &'static str,
    ok: fn(&KeyPairType) -> bool,
) -> Result<(), JwtError> {
    if ok(&pair.key_pair_type()) {
        Ok(())
    } else {
        Err(JwtError::WrongSigner {
            claim,
            wanted,
            got: pair.public_key(),
        })
    }
}

fn sign<N: Serialize>(
    signer: &KeyPair,
    name: &str,
    subject: &str,
    issued_at: UnixSeconds,
    expires_at: Option<UnixSeconds>,
    body: N,
) -> Result<String, JwtError> {
    let issuer = signer.public_key();
    let mut claims = Envelope::<N> {
        exp: expires_at,
        jti: None,
        iat: issued_at,
        iss: &issuer,
        name,
        sub: subject,
        nats: None,
    };
    let unnamed = serde_json::to_vec(&claims).map_err(JwtError::Encode)?;
    claims.jti = Some(base32(&Sha512_256::digest(&unnamed)));
    claims.nats = Some(body);
    let header = BASE64URL_NOPAD.encode(br#"{"typ":"JWT","alg":"ed25519-nkey"}"#);
    let payload = BASE64URL_NOPAD.encode(&serde_json::to_vec(&claims).map_err(JwtError::Encode)?);
    let signed = format!("{header}.{payload}");
    let signature = signer
        .sign(signed.as_bytes())
        .map_err(|e| JwtError::CannotSign {
            key: issuer.clone(),
            reason: e.to_string(),
        })?;
    Ok(format!("{signed}.{}", BASE64URL_NOPAD.encode(&signature)))
}

/// RFC 4648 base32 without padding.
fn base32(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let mut out = String::with_capacity(bytes.len().div_ceil(5) * 8);
    let (mut bits, mut held) = (0u32, 0u32);
    for &byte in bytes {
        bits = (bits << 8) | u32::from(byte);
        held += 8;
        while held >= 5 {
            held -= 5;
            out.push(char::from(ALPHABET[((bits >> held) & 31) as usize]));
        }
    }
    if held > 0 {
        out.push(char::from(ALPHABET[((bits << (5 - held)) & 31) as usize]));
    }
    out
}

/// The standard claims of a JWT whose signature was found good.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Verified {
    /// Who signed.
    #[serde(rename = "iss")]
    pub issuer: String,
    /// Who it is about.
    #[serde(rename = "sub")]
    pub subject: String,
    /// Name for people.
    #[serde(default)]
    pub name: String,
    /// When it was made.
    #[serde(rename = "iat")]
    pub issued_at: UnixSeconds,
    /// When it ends.
    #[serde(rename = "exp", default)]
    pub expires_at: Option<UnixSeconds>,
    /// The claim's id.
    #[serde(rename = "jti", default)]
    pub id: String,
    /// The part that differs by kind.
    pub nats: serde_json::Value,
}

/// Checks form and signature of a JWT by its own issuer's key. Whether that
/// issuer is to be trusted, and whether the claim has expired or was revoked,
/// is for the caller to say.
///
/// # Errors
/// [`JwtError::Invalid`].
pub fn verify(jwt: &str) -> Result<Verified, JwtError> {
    let (signed, signature) = jwt
        .rsplit_once('.')
        .ok_or(JwtError::Invalid("no signature"))?;
    let (header, payload) = signed
        .split_once('.')
        .ok_or(JwtError::Invalid("no payload"))?;
    let decode = |part: &str| {
        BASE64URL_NOPAD
            .decode(part.as_bytes())
            .map_err(|_| JwtError::Invalid("a part is not base64"))
    };
    #[derive(Deserialize)]
    struct Header {
        alg: String,
    }
    let header: Header = serde_json::from_slice(&decode(header)?)
        .map_err(|_| JwtError::Invalid("the header is not JSON"))?;
    if header.alg != "ed25519-nkey" {
        return Err(JwtError::Invalid("the algorithm is not ed25519-nkey"));
    }
    let claims: Verified = serde_json::from_slice(&decode(payload)?)
        .map_err(|_| JwtError::Invalid("the claims are not those of NATS"))?;
    KeyPair::from_public_key(&claims.issuer)
        .map_err(|_| JwtError::Invalid("the issuer is not a key"))?
        .verify(signed.as_bytes(), &decode(signature)?)
        .map_err(|_| JwtError::Invalid("the signature is wrong"))?;
    Ok(claims)
}

#[cfg(test)]
mod tests;
