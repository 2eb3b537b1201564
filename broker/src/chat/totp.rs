//! One-time codes of a person's own device (TOTP, RFC 6238), for a chat whose
//! server vouches for nobody, and for what needs more than its word.
//!
//! The secret of a device is not stored: it follows from the cluster's root
//! key and a salt that is. A code counts once: the last one that did is stored
//! before what it is for is done.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use data_encoding::BASE32_NOPAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use muster_protocol::api::Secret;
use muster_protocol::ids::random_bytes;
use muster_protocol::names::PrincipalName;
use muster_protocol::units::{Timestamp, after};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use totp_rs::{Builder, Totp};
use zeroize::Zeroizing;

use crate::lease::Lease;
use crate::state_dir::Root;
use crate::store::kv::{Kv, KvError};

/// Wrong codes after which nobody may try for a while.
const TRIES: u32 = 5;
/// That while.
const PAUSE: Duration = Duration::from_secs(300);

/// A value of `muster_totp`; the key is the principal's name.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct StoredTotp {
    /// Whose.
    principal: PrincipalName,
    /// What the secret follows from, besides the root key.
    salt: String,
    /// When it was made.
    created: Timestamp,
    /// The time step of the last code that counted.
    used: u64,
}

/// Why a code does not count, or a device cannot be added.
#[derive(Debug, thiserror::Error)]
pub enum TotpError {
    /// There is no device.
    #[error("{0} has no device for codes: `muster irc totp` adds one")]
    NoDevice(PrincipalName),
    /// There is one already.
    #[error("{0} has a device already: `muster irc totp --replace` ends it and adds another one")]
    Already(PrincipalName),
    /// Not the code of now.
    #[error("that code is wrong; a code counts for 30 seconds")]
    Wrong,
    /// It was used before.
    #[error("that code was used already: wait for the next one")]
    Used,
    /// Too many wrong ones.
    #[error("too many wrong codes: try again in five minutes")]
    TooMany,
    /// This broker may not write now.
    #[error("this broker is not the active one now; try again in a few seconds")]
    NotActive,
    /// NATS.
    #[error("the devices could not be read or written: {0}")]
    Store(#[from] KvError),
    /// The library refuses the secret.
    #[error("no secret can be made: {0}")]
    Secret(String),
}

/// The devices. Cheap to clone.
#[derive(Clone)]
pub struct Totps(Arc<Inner>);

struct Inner {
    bucket: Kv<StoredTotp>,
    lease: Lease,
    root: Zeroizing<[u8; 32]>,
    wrong: Mutex<HashMap<PrincipalName, (u32, Timestamp)>>,
}

impl std::fmt::Debug for Totps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Totps").finish_non_exhaustive()
    }
}

/// What a device needs: shown once.
#[derive(Clone, Debug)]
pub struct Device {
    /// The secret in base 32, as people type it.
    pub secret: Secret,
    /// The same as a URL, as devices read it.
    pub url: Secret,
}

impl Totps {
    /// The devices in that bucket.
    #[must_use]
    pub(crate) fn new(bucket: Kv<StoredTotp>, lease: Lease, root: &Root) -> Self {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(&*root.key.seed()).expect("a key of any length will do");
        mac.update(b"muster totp 1");
        Self(Arc::new(Inner {
            bucket,
            lease,
            root: Zeroizing::new(mac.finalize().into_bytes().into()),
            wrong: Mutex::default(),
        }))
    }

    fn secret(&self, principal: &PrincipalName, salt: &str) -> Zeroizing<[u8; 20]> {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(&*self.0.root).expect("a key of any length will do");
        mac.update(principal.as_str().as_bytes());
        mac.update(b"\0");
        mac.update(salt.as_bytes());
        let long: Zeroizing<[u8; 32]> = Zeroizing::new(mac.finalize().into_bytes().into());
        let mut secret = Zeroizing::new([0; 20]);
        secret.copy_from_slice(&long[..20]);
        secret
    }

    fn totp(&self, stored: &StoredTotp) -> Result<Totp, TotpError> {
        let secret = self.secret(&stored.principal, &stored.salt);
        let builder = Builder::new().with_secret(&secret[..]);
        builder
            .build()
            .map_err(|e| TotpError::Secret(e.to_string()))
    }

    /// Adds a device for a principal; in place of the one before with
    /// `replace`.
    ///
    /// # Errors
    /// [`TotpError`].
    pub async fn add(
        &self,
        principal: &PrincipalName,
        replace: bool,
        now: Timestamp,
    ) -> Result<Device, TotpError> {
        if self.0.lease.epoch().is_none() {
            return Err(TotpError::NotActive);
        }
        let place = principal.as_str();
        let before = self.0.bucket.get(place).await?;
        if before.is_some() && !replace {
            return Err(TotpError::Already(principal.clone()));
        }
        let stored = StoredTotp {
            principal: principal.clone(),
            salt: BASE32_NOPAD.encode(&random_bytes::<16>()),
            created: now,
            used: 0,
        };
        match before {
            Some(before) => {
                self.0
                    .bucket
                    .update(place, &stored, before.revision)
                    .await?;
            }
            None => {
                self.0.bucket.create(place, &stored).await?;
            }
        }
        let secret = self.secret(principal, &stored.salt);
        let text = BASE32_NOPAD.encode(&secret[..]);
        let label = principal
            .as_str()
            .replace(':', "%3A")
            .replace('/', "%2F")
            .replace('@', "%40");
        let url = format!("otpauth://totp/muster:{label}?secret={text}&issuer=muster");
        Ok(Device {
            secret: Secret::new(text),
            url: Secret::new(url),
        })
    }

    /// Ends a principal's device.
    ///
    /// # Errors
    /// [`TotpError`].
    pub async fn remove(&self, principal: &PrincipalName) -> Result<(), TotpError> {
        if self.0.lease.epoch().is_none() {
            return Err(TotpError::NotActive);
        }
        let place = principal.as_str();
        let found = self.0.bucket.get(place).await?;
        let found = found.ok_or_else(|| TotpError::NoDevice(principal.clone()))?;
        self.0.bucket.delete(place, found.revision).await?;
        Ok(())
    }

    /// Takes a code: it counts, once.
    ///
    /// # Errors
    /// [`TotpError`].
    pub async fn take(
        &self,
        principal: &PrincipalName,
        code: &str,
        now: Timestamp,
    ) -> Result<(), TotpError> {
        if self.0.lease.epoch().is_none() {
            return Err(TotpError::NotActive);
        }
        if self.tries(principal, now) >= TRIES {
            return Err(TotpError::TooMany);
        }
        let place = principal.as_str();
        let found = self.0.bucket.get(place).await?;
        let found = found.ok_or_else(|| TotpError::NoDevice(principal.clone()))?;
        let mut stored = found.value;
        let seconds = u64::try_from(now.as_second()).unwrap_or(0);
        let Some(step) = self.totp(&stored)?.check(code, seconds) else {
            self.was_wrong(principal, now);
            return Err(TotpError::Wrong);
        };
        if step <= stored.used {
            return Err(TotpError::Used);
        }
        stored.used = step;
        // Somebody else who shows the same code at the same time comes too
        // late.
        match self.0.bucket.update(place, &stored, found.revision).await {
            Ok(_) => {}
            Err(KvError::Conflict { .. }) => return Err(TotpError::Used),
            Err(error) => return Err(error.into()),
        }
        self.wrong().remove(principal);
        Ok(())
    }

    fn wrong(&self) -> std::sync::MutexGuard<'_, HashMap<PrincipalName, (u32, Timestamp)>> {
        self.0.wrong.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tries(&self, principal: &PrincipalName, now: Timestamp) -> u32 {
        let mut wrong = self.wrong();
        wrong.retain(|_, (_, until)| *until > now);
        wrong.get(principal).map_or(0, |(tries, _)| *tries)
    }

    fn was_wrong(&self, principal: &PrincipalName, now: Timestamp) {
        let mut wrong = self.wrong();
        let entry = wrong
            .entry(principal.clone())
            .or_insert((0, after(now, PAUSE)));
        entry.0 += 1;
        entry.1 = after(now, PAUSE);
    }
}
