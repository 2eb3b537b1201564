//! Revoked NATS credentials: kept in `muster_cluster`, pushed to the servers.

use std::sync::{Arc, Mutex as StdMutex, PoisonError};

use muster_protocol::units::Span;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::link::BROKER_ISSUED_AT;
use crate::nats::admin::{AdminError, SystemClient};
use crate::nats::jwt::{
    AccountClaims, JetStreamLimits, JwtError, UnixSeconds, next_issued_at, verify,
};
use crate::nats::keys::{NatsKeys, UserKey};
use crate::nats::revocations::Revocations;
use crate::store::kv::{Kv, KvError};

/// The key in the bucket.
const KEY: &str = "account";
/// How many users of earlier brokers are kept out, the newest: a connection of
/// one before them was closed so many takeovers ago, and its key was in that
/// one process only.
const MAX_SHUT_OUT: usize = 64;

/// What is in the bucket.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct AccountValue {
    /// When the newest claims were issued, seconds.
    issued_at: UnixSeconds,
    /// Who is revoked up to when.
    revocations: Revocations,
}

impl AccountValue {
    /// Everything that is revoked here or there.
    pub(crate) fn and(mut self, other: Self) -> Self {
        self.issued_at = self.issued_at.max(other.issued_at);
        self.revocations.add(other.revocations);
        self
    }

    /// Nobody but these, void up to those times.
    pub(crate) fn void(users: impl IntoIterator<Item = (UserKey, UnixSeconds)>) -> Self {
        let mut value = Self::default();
        for (user, until) in users {
            value.revocations.revoke(user, until);
        }
        value
    }

    /// The same, with all JWTs void that were issued up to `until`, whoever's
    /// they are but a broker's.
    pub(crate) fn nobody_before(mut self, until: UnixSeconds) -> Self {
        self.revocations.compact(until.saturating_add(1));
        self.issued_at = self.issued_at.max(until);
        self
    }
}

/// Why a revocation is not in force.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AccountError {
    /// Not stored.
    #[error("the revocation could not be stored: {0}")]
    Store(#[from] KvError),
    /// Stored, and not with all servers; it is tried again.
    #[error("the revocation is stored, but not every NATS server has it yet: {0}")]
    Push(#[from] AdminError),
    /// The account key cannot sign.
    #[error("the account's claims cannot be signed: {0}")]
    Sign(#[from] JwtError),
}

/// Seconds since the epoch, now.
pub(crate) fn now_seconds() -> UnixSeconds {
    u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or(0)
}

/// The claims of muster's NATS account.
#[derive(Debug)]
pub(super) struct Accounts {
    keys: Arc<NatsKeys>,
    system: SystemClient,
    bucket: Kv<AccountValue>,
    life: Span,
    /// Everything that is to be revoked. Many changes at once travel in one
    /// push.
    wanted: StdMutex<Revocations>,
    /// What the servers have.
    pushed: Mutex<Pushed>,
}

#[derive(Debug)]
struct Pushed {
    revision: u64,
    value: AccountValue,
    /// The servers may not have `value` yet.
    dirty: bool,
    /// The servers were asked whom they keep out.
    asked: bool,
}

impl Accounts {
    /// What is stored; [`Accounts::settle`] gives it to the servers.
    pub(super) async fn load(
        keys: Arc<NatsKeys>,
        system: SystemClient,
        bucket: Kv<AccountValue>,
        life: Span,
    ) -> Result<Self, AccountError> {
        let (value, revision) = bucket
            .get(KEY)
            .await?
            .map_or_else(Default::default, |entry| (entry.value, entry.revision));
        Ok(Self {
            keys,
            system,
            bucket,
            life,
            wanted: StdMutex::new(value.revocations.clone()),
            pushed: Mutex::new(Pushed {
                revision,
                value,
                dirty: true,
                asked: false,
            }),
        })
    }

    /// These stay out, whatever the bucket says: nodes of which it is known
    /// that all their JWTs up to that time are void. [`Accounts::settle`] gives
    /// it to the servers, if it is news.
    pub(super) fn keep_out(&self, nodes: impl IntoIterator<Item = (UserKey, UnixSeconds)>) {
        // What ended long ago needs nobody to void it.
        let oldest = self.oldest();
        self.want(|wanted| {
            for (user, until) in nodes {
                if until >= oldest {
                    wanted.revoke(user, until);
                }
            }
        });
    }

    /// Voids all JWTs of `user` issued up to `until`. When this returns, every
    /// server closes its connections.
    pub(super) async fn revoke(
        &self,
        user: UserKey,
        until: UnixSeconds,
    ) -> Result<(), AccountError> {
        self.want(|wanted| wanted.revoke(user.clone(), until));
        let mut pushed = self.pushed.lock().await;
        if !pushed.dirty && pushed.value.revocations.revokes(&user, until) {
            return Ok(());
        }
        self.push(&mut pushed).await
    }

    /// Has every server close the connections of these users of a broker and
    /// of whoever the store has `lost` to be revoked, keep them out, and
    /// returns when they do: the revision of what is stored and pushed by
    /// then.
    ///
    /// # Errors
    /// [`AccountError`]: not all of them do yet.
    pub(super) async fn shut_out(
        &self,
        users: &[UserKey],
        lost: Option<AccountValue>,
    ) -> Result<u64, AccountError> {
        // Later than what any broker's credentials claim to be issued, and
        // rising, so that the newest are known.
        let until = BROKER_ISSUED_AT.saturating_add(now_seconds());
        let AccountValue {
            issued_at,
            revocations,
        } = lost.unwrap_or_default();
        self.want(|wanted| {
            wanted.add(revocations);
            for user in users {
                wanted.revoke(user.clone(), until);
            }
            wanted.keep_newest(BROKER_ISSUED_AT, MAX_SHUT_OUT);
        });
        let mut pushed = self.pushed.lock().await;
        pushed.value.issued_at = pushed.value.issued_at.max(issued_at);
        self.push(&mut pushed).await?;
        Ok(pushed.revision)
    }

    /// The servers have what the bucket held at this revision: when that is
    /// what was read, nothing is left to be given to them. `None`: whatever
    /// was read is on its way.
    pub(super) async fn was_settled(&self, revision: Option<u64>) {
        let mut pushed = self.pushed.lock().await;
        let more = self.want(|wanted| *wanted != pushed.value.revocations);
        pushed.dirty &= more || revision.is_some_and(|revision| pushed.revision != revision);
    }

    /// Gives the servers what they may not have yet. `true` when there was
    /// something.
    pub(super) async fn settle(&self) -> Result<bool, AccountError> {
        let mut pushed = self.pushed.lock().await;
        if !pushed.dirty {
            return Ok(false);
        }
        self.push(&mut pushed).await.map(|()| true)
    }

    /// Whether every server has everything.
    pub(super) fn is_settled(&self) -> bool {
        self.pushed.try_lock().is_ok_and(|pushed| !pushed.dirty)
    }

    async fn push(&self, pushed: &mut Pushed) -> Result<(), AccountError> {
        if !pushed.asked {
            self.ask_servers().await?;
            pushed.asked = true;
        }
        match self.push_after(pushed, pushed.value.issued_at).await {
            // A server has newer ones than the bucket knows: the bucket was
            // set back in time.
            Err(AccountError::Push(AdminError::Outdated { have, .. })) => {
                self.push_after(pushed, have).await
            }
            other => other,
        }
    }

    /// What the servers keep out, and the bucket does not know because it was
    /// set back in time, stays out: newer claims would let it in again.
    async fn ask_servers(&self) -> Result<(), AccountError> {
        let account = self.keys.account_key();
        let Some(jwt) = self.system.account_claims(&account).await? else {
            return Ok(());
        };
        // Those of a strange operator are refused when ours are given.
        let Ok(claims) = verify(&jwt) else {
            return Ok(());
        };
        if claims.issuer != self.keys.operator().public_key() {
            return Ok(());
        }
        let Some(revoked) = claims.nats.get("revocations") else {
            return Ok(());
        };
        match Revocations::deserialize(revoked) {
            Ok(revoked) => self.want(|wanted| wanted.add(revoked)),
            Err(error) => {
                tracing::error!(%error, "whom the NATS servers keep out cannot be read");
            }
        }
        Ok(())
    }

    /// All JWTs of nodes that were issued before have ended; an hour more, for
    /// clocks that are apart.
    fn oldest(&self) -> UnixSeconds {
        now_seconds().saturating_sub(self.life.get().as_secs() + 3600)
    }

    async fn push_after(
        &self,
        pushed: &mut Pushed,
        previous: UnixSeconds,
    ) -> Result<(), AccountError> {
        let now = now_seconds();
        // Those of brokers are issued in the far future, so that this never
        // reaches them.
        let oldest = self.oldest();
        let revocations = self.want(|wanted| {
            wanted.compact(oldest);
            wanted.clone()
        });
        let issued_at = next_issued_at(now, Some(previous));
        let value = AccountValue {
            issued_at,
            revocations,
        };
        // Stored first: what a server has is never more than what a new
        // broker will know.
        let written = match pushed.revision {
            0 => self.bucket.create(KEY, &value).await,
            known => self.bucket.update(KEY, &value, known).await,
        };
        match written {
            Ok(revision) => pushed.revision = revision,
            Err(error) => match self.bucket.get(KEY).await? {
                Some(entry) if entry.value == value => pushed.revision = entry.revision,
                other => {
                    pushed.revision = other.map_or(0, |entry| entry.revision);
                    pushed.dirty = true;
                    return Err(error.into());
                }
            },
        }
        pushed.value = value;
        pushed.dirty = true;
        let claims = AccountClaims {
            name: ACCOUNT_NAME.into(),
            account: self.keys.account_key(),
            issued_at: pushed.value.issued_at,
            jetstream: Some(JetStreamLimits::default()),
            revocations: pushed.value.revocations.clone(),
        };
        let jwt = claims.sign(self.keys.operator())?;
        // Both at once: a takeover waits for them.
        let (account, system) = tokio::join!(
            self.system.push_account_claims(&jwt),
            self.push_system(&pushed.value)
        );
        account?;
        system?;
        pushed.dirty = false;
        Ok(())
    }

    /// The users of brokers that are shut out are so from the system account,
    /// too: through it claims are pushed.
    async fn push_system(&self, value: &AccountValue) -> Result<(), AccountError> {
        let revocations = value.revocations.since(BROKER_ISSUED_AT);
        if revocations.is_empty() {
            return Ok(());
        }
        let mut issued_at = value.issued_at;
        loop {
            let claims = AccountClaims {
                name: SYSTEM_NAME.into(),
                account: self.keys.system_key(),
                issued_at,
                jetstream: None,
                revocations: revocations.clone(),
            };
            let jwt = claims.sign(self.keys.operator())?;
            match self.system.push_account_claims(&jwt).await {
                Err(AdminError::Outdated { have, .. }) if have >= issued_at => {
                    issued_at = next_issued_at(now_seconds(), Some(have));
                }
                other => return Ok(other?),
            }
        }
    }

    fn want<T>(&self, change: impl FnOnce(&mut Revocations) -> T) -> T {
        change(&mut self.wanted.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Name of the system account, for people.
pub(crate) const SYSTEM_NAME: &str = "system";
/// Name of muster's account, for people.
pub(crate) const ACCOUNT_NAME: &str = "muster";
