//! API tokens: shown once, stored hashed, revoked at once.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use muster_protocol::api::{ApiToken, Role, TokenCreated, TokenRequest, TokenView};
use muster_protocol::names::PrincipalName;
use muster_protocol::units::{Span, Timestamp, after};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::events::Events;
use crate::lease::Lease;
use crate::secrets::SecretHash;
use crate::state_dir::{StateDirError, write_atomic};
use crate::store::kv::{Kv, KvError};

/// How long a token lives when nobody says.
const DEFAULT_LIFE: Span = Span::from_secs(90 * 86_400);
/// How long the first admin token lives.
const ADMIN_LIFE: Span = Span::from_secs(3_650 * 86_400);
/// Most tokens at a time, expired ones not counted.
const MAX_TOKENS: usize = 10_000;

/// A value of `muster_tokens`; the key is the token's id.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct StoredToken {
    hash: SecretHash,
    principal: PrincipalName,
    role: Role,
    created: Timestamp,
    expires: Timestamp,
    by: PrincipalName,
}

/// Why something about tokens failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokensError {
    /// No such token.
    #[error("there is no token {0}; `muster token list` shows them")]
    NoToken(String),
    /// It would lock everybody out.
    #[error(
        "token {0} is the last one with the role admin; make another first: `muster token create --role admin`"
    )]
    LastAdmin(String),
    /// A token that would never work.
    #[error("a token must live for at least a second")]
    NoLife,
    /// Too many.
    #[error("there are {MAX_TOKENS} tokens already; revoke some first")]
    TooMany,
    /// This broker may not write now.
    #[error("this broker is not the active one now; try again in a few seconds")]
    NotActive,
    /// NATS.
    #[error("the tokens could not be read or written: {0}")]
    Store(#[from] KvError),
    /// The disk.
    #[error(transparent)]
    State(#[from] StateDirError),
}

/// Why somebody is not let in. All alike outside; the reason is for the log.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refused {
    /// Not the text of a token.
    #[error("not a token")]
    NotAToken,
    /// No token of that id.
    #[error("an unknown or revoked token")]
    Unknown,
    /// The id is right, the secret is not.
    #[error("a wrong secret")]
    WrongSecret,
    /// It was good once.
    #[error("an expired token")]
    Expired,
}

/// Whom a token stands for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Bearer {
    /// The principal.
    pub principal: PrincipalName,
    /// Its role.
    pub role: Role,
    /// The token's id.
    pub id: String,
}

/// All tokens. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Tokens(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    bucket: Kv<StoredToken>,
    lease: Lease,
    events: Events,
    held: RwLock<BTreeMap<String, (StoredToken, u64)>>,
    writing: Mutex<()>,
}

impl Tokens {
    /// Reads the tokens.
    ///
    /// # Errors
    /// [`TokensError::Store`].
    pub async fn load(
        bucket: Kv<StoredToken>,
        lease: Lease,
        events: Events,
    ) -> Result<Self, TokensError> {
        let entries = bucket.list().await?.entries;
        let held = entries
            .into_iter()
            .map(|e| (e.key, (e.value, e.revision)))
            .collect();
        let (held, writing) = (RwLock::new(held), Mutex::new(()));
        Ok(Self(Arc::new(Inner {
            bucket,
            lease,
            events,
            held,
            writing,
        })))
    }

    /// Makes an admin token and writes it to `path`, mode 0600, when there is
    /// none that works. Whether it did.
    ///
    /// # Errors
    /// [`TokensError`].
    pub async fn ensure_admin(&self, path: &Path) -> Result<bool, TokensError> {
        let _one = self.0.writing.lock().await;
        // A file that is missing was taken away on purpose; one that holds no
        // token at all is damaged, and whoever can write it owns the keys
        // beside it anyway.
        let damaged = std::fs::read(path).is_ok_and(|bytes| {
            let text = std::str::from_utf8(&bytes).unwrap_or_default();
            text.trim().parse::<ApiToken>().is_err()
        });
        if self.admins(Timestamp::now()) > 0 && !damaged {
            return Ok(false);
        }
        let token = ApiToken::generate();
        // The file first: a token that nobody has would lock everybody out.
        write_atomic(
            path,
            format!("{}\n", token.text().expose()).as_bytes(),
            0o600,
        )?;
        let admin: PrincipalName = "admin".parse().expect("a constant name");
        self.store(&token, admin.clone(), Role::Admin, ADMIN_LIFE, admin)
            .await?;
        Ok(true)
    }

    /// Makes a token.
    ///
    /// # Errors
    /// [`TokensError`].
    pub async fn create(
        &self,
        request: TokenRequest,
        by: &PrincipalName,
    ) -> Result<TokenCreated, TokensError> {
        let life = request.expires.unwrap_or(DEFAULT_LIFE);
        if life.get().as_secs() == 0 {
            return Err(TokensError::NoLife);
        }
        let _one = self.0.writing.lock().await;
        self.sweep().await;
        if self.held().len() >= MAX_TOKENS {
            return Err(TokensError::TooMany);
        }
        let token = ApiToken::generate();
        let text = format!(
            "{by} made a token ({}) for {}",
            request.role, request.principal
        );
        let view = self
            .store(&token, request.principal, request.role, life, by.clone())
            .await?;
        self.0.events.emit("token.created", &token.id, text).await;
        Ok(TokenCreated {
            token: token.text().expose().to_owned(),
            view,
        })
    }

    /// Revokes a token: it stops working before this returns.
    ///
    /// # Errors
    /// [`TokensError::NoToken`], [`TokensError::LastAdmin`], and others.
    pub async fn revoke(&self, id: &str, by: &PrincipalName) -> Result<(), TokensError> {
        let _one = self.0.writing.lock().await;
        let now = Timestamp::now();
        let (token, revision) = self
            .held()
            .get(id)
            .cloned()
            .ok_or_else(|| TokensError::NoToken(id.to_owned()))?;
        let works = token.expires > now;
        if works && token.role == Role::Admin && self.admins(now) == 1 {
            return Err(TokensError::LastAdmin(id.to_owned()));
        }
        self.active()?;
        // Here at once, also when NATS is slow; on an error it comes back.
        self.held_mut().remove(id);
        if let Err(error) = self.0.bucket.delete(id, revision).await {
            match self.0.bucket.get(id).await {
                Ok(None) => {}
                _ => {
                    self.held_mut().insert(id.to_owned(), (token, revision));
                    return Err(error.into());
                }
            }
        }
        let text = format!(
            "{by} revoked the token of {} ({})",
            token.principal, token.role
        );
        self.0.events.emit("token.revoked", id, text).await;
        Ok(())
    }

    /// All tokens that work, oldest first, without their secrets.
    #[must_use]
    pub fn list(&self) -> Vec<TokenView> {
        let now = Timestamp::now();
        let held = self.held();
        let mut views: Vec<_> = held
            .iter()
            .filter(|(_, (token, _))| token.expires > now)
            .map(|(id, (token, _))| view(id, token))
            .collect();
        views.sort_by(|a, b| (a.created, &a.id).cmp(&(b.created, &b.id)));
        views
    }

    /// Whom a token stands for.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn authenticate(&self, text: &str, now: Timestamp) -> Result<Bearer, Refused> {
        let token: ApiToken = text.parse().map_err(|_| Refused::NotAToken)?;
        let held = self.held();
        let (stored, _) = held.get(&token.id).ok_or(Refused::Unknown)?;
        if !stored.hash.fits(&token.secret) {
            return Err(Refused::WrongSecret);
        }
        if stored.expires <= now {
            return Err(Refused::Expired);
        }
        Ok(Bearer {
            principal: stored.principal.clone(),
            role: stored.role,
            id: token.id,
        })
    }

    async fn store(
        &self,
        token: &ApiToken,
        principal: PrincipalName,
        role: Role,
        life: Span,
        by: PrincipalName,
    ) -> Result<TokenView, TokensError> {
        self.active()?;
        let created = Timestamp::now();
        let expires = after(created, life.get());
        let hash = SecretHash::of(&token.secret);
        let stored = StoredToken {
            hash,
            principal,
            role,
            created,
            expires,
            by,
        };
        let revision = self.0.bucket.create(&token.id, &stored).await?;
        let shown = view(&token.id, &stored);
        self.held_mut().insert(token.id.clone(), (stored, revision));
        Ok(shown)
    }

    /// Throws away what expired more than a day ago.
    async fn sweep(&self) {
        let now = Timestamp::now();
        let old: Vec<_> = self
            .held()
            .iter()
            .filter(|(_, (token, _))| {
                after(token.expires, std::time::Duration::from_secs(86_400)) < now
            })
            .map(|(id, (_, revision))| (id.clone(), *revision))
            .collect();
        for (id, revision) in old {
            if self.0.bucket.delete(&id, revision).await.is_ok() {
                self.held_mut().remove(&id);
            }
        }
    }

    fn admins(&self, now: Timestamp) -> usize {
        self.held()
            .values()
            .filter(|(t, _)| t.role == Role::Admin && t.expires > now)
            .count()
    }

    fn active(&self) -> Result<u64, TokensError> {
        self.0.lease.epoch().ok_or(TokensError::NotActive)
    }

    fn held(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<String, (StoredToken, u64)>> {
        self.0.held.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn held_mut(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<String, (StoredToken, u64)>> {
        self.0.held.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn view(id: &str, token: &StoredToken) -> TokenView {
    TokenView {
        id: id.to_owned(),
        principal: token.principal.clone(),
        role: token.role,
        created: token.created,
        expires: token.expires,
    }
}
