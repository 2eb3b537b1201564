//! Texts that are secret: API tokens and invites.

use std::fmt;
use std::str::FromStr;

use crate::ids::{base32, from_base32, random_bytes};
use crate::keys::Fingerprint;

/// A secret that cannot print.
#[derive(Clone, Eq, PartialEq)]
pub struct Secret(zeroize::Zeroizing<String>);

impl Secret {
    /// Wraps it.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(zeroize::Zeroizing::new(text.into()))
    }

    /// The text, to be sent or written where it belongs.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// For the few messages that carry a secret to where it belongs:
/// `#[serde(with = "exposed")]`. A field without it cannot be written.
pub(crate) mod exposed {
    use serde::{Deserialize as _, Deserializer, Serializer};

    use super::Secret;

    pub(crate) fn serialize<S: Serializer>(secret: &Secret, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(secret.expose())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Secret, D::Error> {
        String::deserialize(from).map(Secret::new)
    }
}

/// Why a text is not a token.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("this is not a muster {0}")]
pub struct TokenError(&'static str);

/// The text of an API token: `mt1_<id>_<secret>`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ApiToken {
    /// Public name of the token.
    pub id: String,
    /// 128 random bits; only their SHA-256 is stored.
    pub secret: Secret,
}

impl ApiToken {
    /// A new random token.
    #[must_use]
    pub fn generate() -> Self {
        Self {
            id: base32(&random_bytes::<5>()),
            secret: Secret::new(base32(&random_bytes::<16>())),
        }
    }

    /// The text that its owner keeps.
    #[must_use]
    pub fn text(&self) -> Secret {
        Secret::new(format!("mt1_{}_{}", self.id, self.secret.expose()))
    }
}

impl FromStr for ApiToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let fail = TokenError("API token");
        let (id, secret) = text
            .strip_prefix("mt1_")
            .and_then(|r| r.split_once('_'))
            .ok_or(fail)?;
        from_base32::<5>(id).ok_or(fail)?;
        from_base32::<16>(secret).ok_or(fail)?;
        Ok(Self {
            id: id.to_owned(),
            secret: Secret::new(secret),
        })
    }
}

/// The text of an invite: `mi1_<id>_<secret>_<root key fingerprint>`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct InviteToken {
    /// Public name of the invite.
    pub id: String,
    /// 128 random bits; only their SHA-256 is stored.
    pub secret: Secret,
    /// The root key that the node is to trust.
    pub root: Fingerprint,
}

impl InviteToken {
    /// A new random invite into the cluster of that root key.
    #[must_use]
    pub fn generate(root: Fingerprint) -> Self {
        Self {
            id: base32(&random_bytes::<5>()),
            secret: Secret::new(base32(&random_bytes::<16>())),
            root,
        }
    }

    /// The text that the node is given.
    #[must_use]
    pub fn text(&self) -> Secret {
        Secret::new(format!(
            "mi1_{}_{}_{}",
            self.id,
            self.secret.expose(),
            self.root
        ))
    }
}

impl FromStr for InviteToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let fail = TokenError("invite");
        let mut parts = text.strip_prefix("mi1_").ok_or(fail)?.split('_');
        let (Some(id), Some(secret), Some(root), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(fail);
        };
        from_base32::<5>(id).ok_or(fail)?;
        from_base32::<16>(secret).ok_or(fail)?;
        Ok(Self {
            id: id.to_owned(),
            secret: Secret::new(secret),
            root: root.parse().map_err(|_| fail)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_round_trip_and_do_not_print() {
        let token = ApiToken::generate();
        assert_eq!(token.text().expose().parse(), Ok(token.clone()));
        assert!(!format!("{token:?}").contains(token.secret.expose()));
        let invite =
            InviteToken::generate(crate::keys::PrivateKey::generate().public().fingerprint());
        assert_eq!(invite.text().expose().parse(), Ok(invite));
        for bad in [
            "",
            "mt1_",
            "mt1_a_b",
            "mt1__",
            "mi1_x_y_z",
            "mt1_00000000_é",
        ] {
            assert!(bad.parse::<ApiToken>().is_err(), "{bad}");
            assert!(bad.parse::<InviteToken>().is_err(), "{bad}");
        }
    }
}
