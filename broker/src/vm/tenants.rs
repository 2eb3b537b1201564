//! Whom machines belong to, and public keys that have names.

use std::collections::BTreeMap;

use muster_protocol::api::{AccountView, PutAccount, PutSshKey, SshKeyView};
use muster_protocol::names::{AccountName, PrincipalName, SshKeyName, VmName};
use muster_protocol::problem::{Kind, Problem};
use muster_protocol::text::nearest;
use muster_protocol::units::Timestamp;
use muster_protocol::vm::{SshKey, is_private_key};
use serde::{Deserialize, Serialize};

use super::error::VmError;
use super::machines::Machines;
use super::records::Life;
use super::shelf::{Shelf, ShelfError, Stored};
use crate::authz::Authorized;
use crate::lease::Lease;
use crate::store::kv::{Kv, KvError};

/// The keys of the values in `muster_cluster`.
const SSH_KEYS: &str = "ssh_keys";
const ACCOUNTS: &str = "accounts";
/// Most keys that have names, and most accounts.
const MAX_SSH_KEYS: usize = 500;
const MAX_ACCOUNTS: usize = 2_000;
/// Longest note, in characters.
const MAX_NOTE: usize = 200;
/// Machines that are named in one answer.
const NAMED: usize = 5;

/// A key that has a name.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct StoredSshKey {
    key: SshKey,
    by: PrincipalName,
    added: Timestamp,
}

/// An account that was declared.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct StoredAccount {
    note: Option<String>,
    by: PrincipalName,
    declared: Timestamp,
}

/// The values of `muster_cluster`.
pub type StoredSshKeys = Stored<SshKeyName, StoredSshKey>;
/// The values of `muster_cluster`.
pub type StoredAccounts = Stored<AccountName, StoredAccount>;

/// Both of them. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Tenants {
    ssh_keys: Shelf<SshKeyName, StoredSshKey>,
    accounts: Shelf<AccountName, StoredAccount>,
}

/// Why something about accounts or keys failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TenantsError {
    /// No such key.
    #[error("there is no ssh key `{0}`; muster ssh-key list shows them")]
    NoSshKey(SshKeyName),
    /// The name is taken.
    #[error("`{0}` is another key already; take another name, or remove that one first")]
    SshKeyThere(SshKeyName),
    /// No such account.
    #[error("there is no account `{0}`; muster account list shows them")]
    NoAccount(AccountName),
    /// Machines are its own.
    #[error("account `{name}` has {count} machines: {}; destroy them first", .some.join(", "))]
    AccountUsed {
        /// Which account.
        name: AccountName,
        /// How many.
        count: usize,
        /// Some of them.
        some: Vec<String>,
    },
    /// Nobody declared it, but machines are its own.
    #[error("nobody has declared account `{0}`; there is nothing to remove")]
    NotDeclared(AccountName),
    /// A text that is too long, or none that a terminal should see.
    #[error("a note is one line; give at most {MAX_NOTE} characters")]
    Note,
    /// Storing.
    #[error(transparent)]
    Shelf(#[from] ShelfError),
}

impl From<TenantsError> for crate::http::ApiError {
    fn from(error: TenantsError) -> Self {
        let kind = match &error {
            TenantsError::Shelf(ShelfError::Store(_)) => return Self::storage(&error),
            TenantsError::NoSshKey(_)
            | TenantsError::NoAccount(_)
            | TenantsError::NotDeclared(_) => Kind::NotFound,
            TenantsError::SshKeyThere(_)
            | TenantsError::AccountUsed { .. }
            | TenantsError::Shelf(ShelfError::Full) => Kind::Conflict,
            TenantsError::Note => Kind::InvalidRequest,
            TenantsError::Shelf(_) => Kind::Unavailable,
        };
        let text = error.to_string();
        match text.rsplit_once("; ") {
            Some((title, hint)) => Problem::new(kind, title).hint(hint).into(),
            None => Problem::new(kind, text).into(),
        }
    }
}

impl Tenants {
    /// Reads what there is.
    ///
    /// # Errors
    /// [`KvError`].
    pub async fn load(
        ssh_keys: Kv<StoredSshKeys>,
        accounts: Kv<StoredAccounts>,
        lease: Lease,
    ) -> Result<Self, KvError> {
        Ok(Self {
            ssh_keys: Shelf::load(ssh_keys, SSH_KEYS, MAX_SSH_KEYS, lease.clone()).await?,
            accounts: Shelf::load(accounts, ACCOUNTS, MAX_ACCOUNTS, lease).await?,
        })
    }

    /// Keys as lines: names stand for the keys that have them.
    ///
    /// # Errors
    /// [`VmError`]: there is no key of a name, or a secret among them.
    pub(super) fn lines(&self, keys: Vec<String>) -> Result<Vec<String>, VmError> {
        let known = self.ssh_keys.all();
        let line = |text: String| {
            if is_private_key(&text) {
                return Err(VmError::PrivateKey);
            }
            // A key itself has blanks in it.
            let Ok(name) = text.parse::<SshKeyName>() else {
                return Ok(text);
            };
            match known.get(&name) {
                Some(stored) => Ok(stored.key.to_string()),
                None => {
                    let near = nearest(name.as_str(), known.keys().map(|key| key.as_str()));
                    let near = near.map(str::to_owned);
                    Err(VmError::NoSshKey { name, near })
                }
            }
        };
        keys.into_iter().map(line).collect()
    }

    /// Whether machines can be an account's: of those that were declared, as
    /// soon as any was.
    ///
    /// # Errors
    /// [`VmError::NoAccount`].
    pub(super) fn owns(&self, account: Option<&AccountName>) -> Result<(), VmError> {
        let known = self.accounts.all();
        match account.filter(|name| !known.is_empty() && !known.contains_key(*name)) {
            None => Ok(()),
            Some(name) => {
                let near = nearest(name.as_str(), known.keys().map(|key| key.as_str()));
                Err(VmError::NoAccount {
                    name: name.clone(),
                    near: near.map(str::to_owned),
                })
            }
        }
    }
}

impl StoredSshKey {
    fn view(&self, name: &SshKeyName) -> SshKeyView {
        SshKeyView {
            name: name.clone(),
            fingerprint: self.key.fingerprint(),
            key: self.key.clone(),
            by: self.by.clone(),
            added: self.added,
        }
    }
}

impl Machines {
    /// All keys that have names.
    #[must_use]
    pub fn ssh_keys(&self) -> Vec<SshKeyView> {
        let all = self.parts().tenants.ssh_keys.all();
        all.iter().map(|(name, stored)| stored.view(name)).collect()
    }

    /// One of them.
    ///
    /// # Errors
    /// [`TenantsError::NoSshKey`].
    pub fn ssh_key(&self, name: &SshKeyName) -> Result<SshKeyView, TenantsError> {
        let all = self.parts().tenants.ssh_keys.all();
        let stored = all.get(name);
        stored
            .map(|stored| stored.view(name))
            .ok_or_else(|| TenantsError::NoSshKey(name.clone()))
    }

    /// Keeps a key under a name. The same again changes nothing.
    ///
    /// # Errors
    /// [`TenantsError`]; nothing was changed.
    pub async fn put_ssh_key(
        &self,
        put: Authorized<(SshKeyName, PutSshKey)>,
    ) -> Result<SshKeyView, TenantsError> {
        let by = put.principal().clone();
        let (name, PutSshKey { key }) = put.into_inner();
        let stored = StoredSshKey {
            key,
            by: by.clone(),
            added: Timestamp::now(),
        };
        let put = |all: &mut StoredSshKeys| match all.get(&name) {
            Some(there) if there.key == stored.key => Ok(((there.view(&name), false), false)),
            Some(_) => Err(TenantsError::SshKeyThere(name.clone())),
            None => {
                all.insert(name.clone(), stored.clone());
                Ok(((stored.view(&name), true), true))
            }
        };
        let (view, news) = self.parts().tenants.ssh_keys.change(put).await?;
        if news {
            let text = format!("{by} added the ssh key {name}: {}", view.fingerprint);
            self.says("ssh_key.changed", name.as_str(), text).await;
        }
        Ok(view)
    }

    /// Forgets a key. Machines that were made with it keep it.
    ///
    /// # Errors
    /// [`TenantsError`]; nothing was changed.
    pub async fn remove_ssh_key(&self, name: Authorized<SshKeyName>) -> Result<(), TenantsError> {
        let by = name.principal().clone();
        let name = name.into_inner();
        let remove = |all: &mut StoredSshKeys| match all.remove(&name) {
            Some(_) => Ok(((), true)),
            None => Err(TenantsError::NoSshKey(name.clone())),
        };
        self.parts().tenants.ssh_keys.change(remove).await?;
        let text = format!("{by} removed the ssh key {name}");
        self.says("ssh_key.changed", name.as_str(), text).await;
        Ok(())
    }

    /// Whether something can be an account's: of those that were declared, as
    /// soon as any was.
    ///
    /// # Errors
    /// [`VmError::NoAccount`].
    pub fn has_account(&self, account: &AccountName) -> Result<(), VmError> {
        self.parts().tenants.owns(Some(account))
    }

    /// All accounts, with what their machines have.
    #[must_use]
    pub fn accounts(&self) -> Vec<AccountView> {
        let mut all: BTreeMap<AccountName, AccountView> = BTreeMap::new();
        let empty = |name: &AccountName| AccountView {
            name: name.clone(),
            note: None,
            machines: 0,
            cpus: 0,
            memory: muster_protocol::vm::Size(0),
            disk: muster_protocol::vm::Size(0),
            by: None,
            declared: None,
        };
        for (name, stored) in self.parts().tenants.accounts.all().iter() {
            all.insert(
                name.clone(),
                AccountView {
                    note: stored.note.clone(),
                    by: Some(stored.by.clone()),
                    declared: Some(stored.declared),
                    ..empty(name)
                },
            );
        }
        for held in self.parts().records.all() {
            let wish = &held.vm.wish;
            let Some(name) = wish.account.as_ref() else {
                continue;
            };
            if matches!(held.vm.life, Life::Gone { .. }) {
                continue;
            }
            let view = all.entry(name.clone()).or_insert_with(|| empty(name));
            view.machines += 1;
            view.cpus = view.cpus.saturating_add(u32::from(wish.cpus));
            view.memory.0 = view.memory.0.saturating_add(wish.memory.0);
            view.disk.0 = view.disk.0.saturating_add(wish.disk.0);
        }
        all.into_values().collect()
    }

    /// Declares an account, or changes its note.
    ///
    /// # Errors
    /// [`TenantsError`]; nothing was changed.
    pub async fn put_account(
        &self,
        put: Authorized<(AccountName, PutAccount)>,
    ) -> Result<AccountView, TenantsError> {
        let by = put.principal().clone();
        let (name, PutAccount { note }) = put.into_inner();
        let fits =
            |note: &String| note.chars().count() <= MAX_NOTE && !note.chars().any(char::is_control);
        if !note.as_ref().is_none_or(fits) {
            return Err(TenantsError::Note);
        }
        let stored = StoredAccount {
            note,
            by: by.clone(),
            declared: Timestamp::now(),
        };
        let put = |all: &mut StoredAccounts| match all.get_mut(&name) {
            Some(there) if there.note == stored.note => Ok((false, false)),
            Some(there) => {
                there.note = stored.note.clone();
                Ok((true, true))
            }
            None => {
                all.insert(name.clone(), stored.clone());
                Ok::<_, TenantsError>((true, true))
            }
        };
        if self.parts().tenants.accounts.change(put).await? {
            let text = format!("{by} declared account {name}");
            self.says("account.changed", name.as_str(), text).await;
        }
        let found = self.accounts().into_iter().find(|view| view.name == name);
        found.ok_or(TenantsError::NoAccount(name))
    }

    /// Forgets an account that no machine is of.
    ///
    /// # Errors
    /// [`TenantsError`]; nothing was changed.
    pub async fn remove_account(&self, name: Authorized<AccountName>) -> Result<(), TenantsError> {
        let by = name.principal().clone();
        let name = name.into_inner();
        // Nothing new becomes its own meanwhile.
        let _one = self.0.making.lock().await;
        let is_its = |name: &AccountName| {
            let all = self.parts().records.all().into_iter();
            let its = all.filter(|held| {
                held.vm.wish.account.as_ref() == Some(name)
                    && !matches!(held.vm.life, Life::Gone { .. })
            });
            its.map(|held| held.vm.name.clone())
                .collect::<Vec<VmName>>()
        };
        let remove = |all: &mut StoredAccounts| {
            let its = is_its(&name);
            if !all.contains_key(&name) {
                return Err(if its.is_empty() {
                    TenantsError::NoAccount(name.clone())
                } else {
                    TenantsError::NotDeclared(name.clone())
                });
            }
            if !its.is_empty() {
                return Err(TenantsError::AccountUsed {
                    name: name.clone(),
                    count: its.len(),
                    some: its.iter().take(NAMED).map(ToString::to_string).collect(),
                });
            }
            all.remove(&name);
            Ok(((), true))
        };
        self.parts().tenants.accounts.change(remove).await?;
        let text = format!("{by} removed account {name}");
        self.says("account.changed", name.as_str(), text).await;
        Ok(())
    }

    async fn says(&self, kind: &str, subject: &str, text: String) {
        self.parts().events.emit(kind, subject, text).await;
    }
}
