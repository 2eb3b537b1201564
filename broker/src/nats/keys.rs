//! The nkeys that make a NATS installation muster's own: operator, system
//! account and muster account.
//!
//! They are kept in ONE file, so that a crash while they are first written
//! can never leave an operator without its accounts.

use std::fmt;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use nkeys::{KeyPair, KeyPairType};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

/// Name of the key file inside the directory given to [`NatsKeys::load`].
pub const KEY_FILE: &str = "nats-keys.json";

/// A key file is three seeds; anything larger is not one.
const MAX_KEY_FILE: u64 = 4096;

/// Why keys could not be read, written or parsed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// There is no key file yet.
    #[error(
        "there is no NATS key file at {path}; `muster up` or `muster broker` makes one at its first start"
    )]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The file or its directory could not be read or written.
    #[error("cannot {action} the NATS key file {path}: {source}")]
    Io {
        /// `read`, `write`, ...
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Somebody besides the owner may read the file.
    #[error(
        "the NATS key file {path} has mode {mode:o}, others may read it; `chmod 600` it, and if somebody else could have read it, replace the keys"
    )]
    TooOpen {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file is not what muster wrote.
    #[error(
        "the NATS key file {path} is damaged ({what}); restore it from a backup: without it no node can be enrolled or removed"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it; never contains key material.
        what: String,
    },
    /// A text is not a public nkey of the wanted kind.
    #[error("`{text}` is not {wanted}")]
    NotAKey {
        /// What was given, shortened and escaped.
        text: String,
        /// For example "the public key of a NATS user (U...)".
        wanted: &'static str,
    },
}

macro_rules! public_key {
    ($(#[$doc:meta])* $name:ident, $kind:pat, $wanted:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The key as NATS writes it: prefix letter and base32.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = KeyError;

            fn from_str(text: &str) -> Result<Self, KeyError> {
                // from_public_key checks alphabet, length, prefix and checksum.
                match KeyPair::from_public_key(text) {
                    Ok(key) if matches!(key.key_pair_type(), $kind) && key.public_key() == text => {
                        Ok(Self(text.to_owned()))
                    }
                    _ => Err(KeyError::NotAKey {
                        text: text.chars().take(64).flat_map(char::escape_default).collect(),
                        wanted: $wanted,
                    }),
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = KeyError;

            fn try_from(text: String) -> Result<Self, KeyError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(key: $name) -> String {
                key.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }
    };
}

public_key!(
    /// Public nkey of an operator (`O...`).
    OperatorKey,
    KeyPairType::Operator,
    "the public key of a NATS operator (O...)"
);
public_key!(
    /// Public nkey of an account (`A...`).
    AccountKey,
    KeyPairType::Account,
    "the public key of a NATS account (A...)"
);
public_key!(
    /// Public nkey of a user (`U...`): what a node, a broker or an
    /// administrator connects with.
    UserKey,
    KeyPairType::User,
    "the public key of a NATS user (U...)"
);

impl UserKey {
    /// The public half of a user's key pair. `None` for a pair of another kind.
    #[must_use]
    pub fn of(pair: &KeyPair) -> Option<Self> {
        matches!(pair.key_pair_type(), KeyPairType::User).then(|| Self(pair.public_key()))
    }
}

/// Operator, system-account and muster-account key pairs.
pub struct NatsKeys {
    operator: KeyPair,
    system: KeyPair,
    account: KeyPair,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    version: u32,
    operator: String,
    system: String,
    account: String,
}

impl Drop for KeyFile {
    fn drop(&mut self) {
        self.operator.zeroize();
        self.system.zeroize();
        self.account.zeroize();
    }
}

impl NatsKeys {
    /// Three new random keys.
    #[must_use]
    pub fn generate() -> Self {
        Self {
            operator: KeyPair::new_operator(),
            system: KeyPair::new_account(),
            account: KeyPair::new_account(),
        }
    }

    /// Reads the keys from `dir`.
    ///
    /// # Errors
    /// [`KeyError::Missing`] when there is no key file, else why it cannot be used.
    pub fn load(dir: &Path) -> Result<Self, KeyError> {
        let path = dir.join(KEY_FILE);
        let io = |source| KeyError::Io {
            action: "read",
            path: path.clone(),
            source,
        };
        let file = match fs::File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(KeyError::Missing { path });
            }
            Err(e) => return Err(io(e)),
        };
        let mode = file.metadata().map_err(io)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(KeyError::TooOpen { path, mode });
        }
        let mut text = Zeroizing::new(String::new());
        file.take(MAX_KEY_FILE)
            .read_to_string(&mut text)
            .map_err(io)?;
        let damaged = |what: String| KeyError::Damaged {
            path: path.clone(),
            what,
        };
        // Category and place only: serde's message could quote a seed.
        let file: KeyFile = serde_json::from_str(&text).map_err(|e| {
            damaged(format!(
                "not a key file, line {} column {}",
                e.line(),
                e.column()
            ))
        })?;
        if file.version != 1 {
            return Err(damaged(format!(
                "version {}, this muster knows version 1",
                file.version
            )));
        }
        let seed = |name: &str, seed: &str, kind: fn(&KeyPairType) -> bool| {
            KeyPair::from_seed(seed)
                .ok()
                .filter(|pair| kind(&pair.key_pair_type()))
                .ok_or_else(|| damaged(format!("the {name} seed is not valid")))
        };
        Ok(Self {
            operator: seed("operator", &file.operator, |k| {
                matches!(k, KeyPairType::Operator)
            })?,
            system: seed("system account", &file.system, |k| {
                matches!(k, KeyPairType::Account)
            })?,
            account: seed("account", &file.account, |k| {
                matches!(k, KeyPairType::Account)
            })?,
        })
    }

    /// Writes the keys into `dir`, which must exist, with mode 0600. All or
    /// nothing: an existing key file is never overwritten, a crash leaves none
    /// or a whole one.
    ///
    /// # Errors
    /// [`KeyError::Io`]; with `AlreadyExists` when there is a key file already.
    pub fn store(&self, dir: &Path) -> Result<(), KeyError> {
        let path = dir.join(KEY_FILE);
        let io = |source| KeyError::Io {
            action: "write",
            path: path.clone(),
            source,
        };
        let seed = |pair: &KeyPair| pair.seed().map_err(|e| io(io::Error::other(e.to_string())));
        let file = KeyFile {
            version: 1,
            operator: seed(&self.operator)?,
            system: seed(&self.system)?,
            account: seed(&self.account)?,
        };
        let text = Zeroizing::new(serde_json::to_vec_pretty(&file).map_err(|e| io(e.into()))?);
        let temporary = dir.join(format!(".{KEY_FILE}.{}", std::process::id()));
        let written = (|| {
            match fs::remove_file(&temporary) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            let mut out = fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&temporary)?;
            out.write_all(&text)?;
            out.sync_all()?;
            // A hard link, unlike a rename, fails if the name is taken.
            fs::hard_link(&temporary, &path)
        })();
        let _ = fs::remove_file(&temporary);
        written.map_err(io)?;
        fs::File::open(dir).and_then(|d| d.sync_all()).map_err(io)
    }

    /// Loads the keys, or makes and stores new ones when there are none. When
    /// two processes race, both end up with the keys of the one that won.
    ///
    /// # Errors
    /// As [`NatsKeys::load`] and [`NatsKeys::store`].
    pub fn load_or_create(dir: &Path) -> Result<Self, KeyError> {
        match Self::load(dir) {
            Err(KeyError::Missing { .. }) => {}
            other => return other,
        }
        let keys = Self::generate();
        match keys.store(dir) {
            Ok(()) => Ok(keys),
            Err(KeyError::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {
                Self::load(dir)
            }
            Err(e) => Err(e),
        }
    }

    /// The same keys once more, for several servers of a test.
    #[cfg(test)]
    pub(crate) fn copy(&self) -> Self {
        let copy = |pair: &KeyPair| KeyPair::from_seed(&pair.seed().unwrap()).unwrap();
        Self {
            operator: copy(&self.operator),
            system: copy(&self.system),
            account: copy(&self.account),
        }
    }

    /// The operator's pair: signs account claims.
    #[must_use]
    pub fn operator(&self) -> &KeyPair {
        &self.operator
    }

    /// The system account's pair: signs the users that administer the server.
    #[must_use]
    pub fn system(&self) -> &KeyPair {
        &self.system
    }

    /// The muster account's pair: signs nodes and brokers.
    #[must_use]
    pub fn account(&self) -> &KeyPair {
        &self.account
    }

    /// Public key of the operator.
    #[must_use]
    pub fn operator_key(&self) -> OperatorKey {
        OperatorKey(self.operator.public_key())
    }

    /// Public key of the system account.
    #[must_use]
    pub fn system_key(&self) -> AccountKey {
        AccountKey(self.system.public_key())
    }

    /// Public key of the muster account.
    #[must_use]
    pub fn account_key(&self) -> AccountKey {
        AccountKey(self.account.public_key())
    }
}

impl fmt::Debug for NatsKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsKeys")
            .field("operator", &self.operator_key())
            .field("system", &self.system_key())
            .field("account", &self.account_key())
            .field("seeds", &"[redacted]")
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_keys_come_back_and_the_file_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let made = NatsKeys::load_or_create(dir.path()).unwrap();
        let back = NatsKeys::load_or_create(dir.path()).unwrap();
        assert_eq!(made.operator_key(), back.operator_key());
        assert_eq!(made.system_key(), back.system_key());
        assert_eq!(made.account_key(), back.account_key());
        let path = dir.path().join(KEY_FILE);
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        // Nothing else is left lying about.
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn existing_keys_are_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let first = NatsKeys::generate();
        first.store(dir.path()).unwrap();
        let refused = NatsKeys::generate().store(dir.path()).unwrap_err();
        assert!(
            matches!(refused, KeyError::Io { ref source, .. } if source.kind() == io::ErrorKind::AlreadyExists)
        );
        assert_eq!(
            NatsKeys::load(dir.path()).unwrap().account_key(),
            first.account_key()
        );
    }

    #[test]
    fn a_file_others_may_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        NatsKeys::generate().store(dir.path()).unwrap();
        let path = dir.path().join(KEY_FILE);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(
            NatsKeys::load(dir.path()),
            Err(KeyError::TooOpen { mode: 0o640, .. })
        ));
    }

    #[test]
    fn damage_is_named_without_showing_a_seed() {
        let dir = tempfile::tempdir().unwrap();
        let keys = NatsKeys::generate();
        keys.store(dir.path()).unwrap();
        let path = dir.path().join(KEY_FILE);
        let text = fs::read_to_string(&path).unwrap();
        let seed = keys.account().seed().unwrap();
        // The account's seed where the operator's belongs, then cut short.
        for bad in [
            text.replace(&keys.operator().seed().unwrap(), &seed),
            text[..text.len() / 2].to_owned(),
            text.replace("\"version\": 1", "\"version\": 2"),
        ] {
            fs::write(&path, &bad).unwrap();
            let error = NatsKeys::load(dir.path()).unwrap_err();
            assert!(matches!(error, KeyError::Damaged { .. }), "{error}");
            assert!(!error.to_string().contains(&seed));
        }
        assert!(matches!(
            NatsKeys::load(&dir.path().join("none")),
            Err(KeyError::Missing { .. })
        ));
    }

    #[test]
    fn debug_shows_no_seed() {
        let keys = NatsKeys::generate();
        let shown = format!("{keys:?}");
        assert!(shown.contains("[redacted]"));
        for pair in [keys.operator(), keys.system(), keys.account()] {
            assert!(!shown.contains(&pair.seed().unwrap()));
        }
    }

    #[test]
    fn public_keys_are_checked() {
        let user = KeyPair::new_user();
        assert!(user.public_key().parse::<UserKey>().is_ok());
        assert!(user.public_key().parse::<AccountKey>().is_err());
        assert!(user.seed().unwrap().parse::<UserKey>().is_err());
        for bad in [
            "",
            "U",
            "U\u{1b}[31m",
            &user.public_key()[1..],
            &format!("{} ", user.public_key()),
        ] {
            let error = bad.parse::<UserKey>().unwrap_err().to_string();
            assert!(!error.contains('\u{1b}'), "{error}");
        }
        // One changed letter breaks the checksum.
        let mut changed = user.public_key().into_bytes();
        changed[20] = if changed[20] == b'A' { b'B' } else { b'A' };
        assert!(
            String::from_utf8(changed)
                .unwrap()
                .parse::<UserKey>()
                .is_err()
        );
    }
}
