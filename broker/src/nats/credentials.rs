//! What a NATS user connects with: a signed claim and the key it names.

use std::fmt;
use std::sync::Arc;

use async_nats::{AuthError, ConnectOptions};
use nkeys::KeyPair;

use super::jwt::{JwtError, UserClaims};
use super::keys::UserKey;

/// A user's JWT with the key pair that it belongs to.
#[derive(Clone)]
pub struct Credentials {
    jwt: String,
    key: Arc<KeyPair>,
}

impl Credentials {
    /// A new random user key with a claim for it, signed by `account`.
    /// `claims` gets the public key and returns what is signed.
    ///
    /// # Errors
    /// [`JwtError`] when the account's pair cannot sign.
    pub fn issue(
        account: &KeyPair,
        claims: impl FnOnce(UserKey) -> UserClaims,
    ) -> Result<Self, JwtError> {
        let key = KeyPair::new_user();
        let public = UserKey::of(&key).expect("new_user makes a user key");
        let jwt = claims(public).sign(account)?;
        Ok(Self {
            jwt,
            key: Arc::new(key),
        })
    }

    /// A JWT that somebody issued for a key that we hold.
    #[must_use]
    pub fn new(jwt: String, key: Arc<KeyPair>) -> Self {
        Self { jwt, key }
    }

    /// The user's JWT.
    #[must_use]
    pub fn jwt(&self) -> &str {
        &self.jwt
    }

    /// The user's public key.
    #[must_use]
    pub fn public_key(&self) -> String {
        self.key.public_key()
    }

    /// Options that authenticate with these credentials.
    #[must_use]
    pub fn connect_options(&self) -> ConnectOptions {
        let key = Arc::clone(&self.key);
        ConnectOptions::with_jwt(self.jwt.clone(), move |nonce| {
            let key = Arc::clone(&key);
            async move { key.sign(&nonce).map_err(AuthError::new) }
        })
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("public_key", &self.key.public_key())
            .field("seed", &"[redacted]")
            .finish()
    }
}
