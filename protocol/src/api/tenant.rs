//! Whom machines belong to, and whose keys open them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::names::{AccountName, PrincipalName, SshKeyName};
use crate::units::Timestamp;
use crate::vm::{Size, SshKey};

/// Keeps a public key under a name. A name is never given another key: remove
/// it first.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PutSshKey {
    /// The line of a file like `id_ed25519.pub`.
    pub key: SshKey,
}

/// A public key that has a name.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct SshKeyView {
    /// Its name.
    pub name: SshKeyName,
    /// The key.
    pub key: SshKey,
    /// As `ssh-keygen -l` shows it.
    pub fingerprint: String,
    /// Who added it.
    pub by: PrincipalName,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub added: Timestamp,
}

/// Declares an account, or changes what is noted of it.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PutAccount {
    /// What people should know of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// An account, and what its machines have. One that nobody declared is there
/// as long as machines are its own.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct AccountView {
    /// Its name.
    pub name: AccountName,
    /// What people should know of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Machines that are its own; those that were destroyed and whose disk is
    /// kept, too.
    pub machines: u32,
    /// Their processors.
    pub cpus: u32,
    /// Their memory.
    pub memory: Size,
    /// Their disks.
    pub disk: Size,
    /// Who declared it; none where nobody has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<PrincipalName>,
    /// When.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub declared: Option<Timestamp>,
}
