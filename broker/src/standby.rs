//! What another broker of the cluster needs: given by the active one, and
//! made into a state directory.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use muster_protocol::api::StandbyKit;
use muster_protocol::ids::ClusterId;
use muster_protocol::keys::{BrokerKeyState, KeyList, SignedText};

use crate::config::{Config, ConfigError, NatsCa};
use crate::state_dir::{FORMAT, StateDir, StateDirError, make_dir, read_private, write_atomic};

/// The authority of the NATS servers, beside the settings.
const NATS_CA: &str = "nats-ca.pem";
/// The files that every broker of the cluster has.
const NEEDED: [&str; 5] = [
    "keys/cluster.json",
    "keys/nats-keys.json",
    "keys/ca.key",
    "keys/ca.pem",
    "key-list.json",
];
/// Most bytes of all files of a kit.
const MAX_KIT: usize = 4 << 20;

/// Why there is no kit.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KitError {
    /// A file of this broker.
    #[error(transparent)]
    State(#[from] StateDirError),
    /// The settings.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The authority of the NATS servers.
    #[error("cannot read {}: {error}", .path.display())]
    NatsCa {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The list of keys.
    #[error("the list of keys has no JSON form: {0}")]
    Json(#[from] serde_json::Error),
    /// A file that must be there is not.
    #[error("{} is not there", .0.display())]
    Missing(PathBuf),
}

/// Puts together what another broker needs.
///
/// # Errors
/// [`KitError`].
pub fn kit(
    config: &Config,
    cluster: ClusterId,
    list: &KeyList,
    signed: &SignedText,
) -> Result<StandbyKit, KitError> {
    let state = StateDir::open(&config.state)?;
    let mut files = BTreeMap::new();
    for path in NEEDED {
        if path == "key-list.json" {
            files.insert(path.to_owned(), serde_json::to_string(signed)?);
            continue;
        }
        let full = state.path().join(path);
        let text = read(&full)?.ok_or(KitError::Missing(full))?;
        files.insert(path.to_owned(), text);
    }
    // So that both sign with one key, and a takeover needs no new one.
    for key in &list.keys {
        let path = format!("keys/broker-{}.key", key.key.id());
        if key.state == BrokerKeyState::Active
            && let Some(text) = read(&state.path().join(&path))?
        {
            files.insert(path, text);
        }
    }
    let nats_ca = match &config.nats.ca {
        NatsCa::File(path) => {
            Some(
                std::fs::read_to_string(path).map_err(|error| KitError::NatsCa {
                    path: path.clone(),
                    error,
                })?,
            )
        }
        NatsCa::Own | NatsCa::System => None,
    };
    Ok(StandbyKit {
        format: FORMAT,
        cluster,
        files,
        settings: config.to_toml()?,
        nats_ca,
    })
}

fn read(path: &Path) -> Result<Option<String>, StateDirError> {
    Ok(read_private(path)?.map(|text| text.as_str().to_owned()))
}

/// Why no state directory was made of a kit.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InstallError {
    /// Of another version of muster.
    #[error(
        "the other broker has a state directory of format {0}, this muster knows {FORMAT}; use the same version of muster on both"
    )]
    Format(u32),
    /// Something else than a broker gives.
    #[error("this is not what a broker gives ({0}); is the URL that of a muster broker?")]
    Strange(String),
    /// Something is there.
    #[error("{} is not empty; name a directory that is not there yet", .0.display())]
    NotEmpty(PathBuf),
    /// The directory.
    #[error(transparent)]
    State(#[from] StateDirError),
    /// The settings.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// What is this broker's own.
#[derive(Clone, Debug)]
pub struct Own {
    /// Where it listens.
    pub listen: SocketAddr,
    /// More names for its certificates.
    pub names: Vec<String>,
    /// Where it is reached; found out when `None`.
    pub url: Option<String>,
}

/// Makes a state directory for another broker of the cluster, with its
/// configuration `broker.toml` in it, and returns that.
///
/// # Errors
/// [`InstallError`]; what was written until then is left, and useless.
pub fn install(kit: &StandbyKit, dir: &Path, own: Own) -> Result<Config, InstallError> {
    if kit.format != FORMAT {
        return Err(InstallError::Format(kit.format));
    }
    for path in NEEDED {
        if !kit.files.contains_key(path) {
            return Err(InstallError::Strange(format!("without {path}")));
        }
    }
    if let Some(path) = kit.files.keys().find(|path| !is_ours(path)) {
        let path = muster_protocol::text::printable(path, 60);
        return Err(InstallError::Strange(format!("with a file `{path}`")));
    }
    if kit.files.values().map(String::len).sum::<usize>() > MAX_KIT {
        return Err(InstallError::Strange("larger than any".into()));
    }
    let place = Path::new("the other broker's settings");
    let mut config = Config::parse(&kit.settings, place)?;
    let empty = match std::fs::read_dir(dir) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    };
    if !empty {
        return Err(InstallError::NotEmpty(dir.to_owned()));
    }
    make_dir(dir)?;
    let dir = &std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    let state = StateDir::open(dir)?;
    config.state = dir.to_owned();
    config.listen = own.listen;
    config.names = own.names;
    config.url = own.url.unwrap_or_default();
    if let Some(pem) = &kit.nats_ca {
        let path = dir.join(NATS_CA);
        write_atomic(&path, pem.as_bytes(), 0o644)?;
        config.nats.ca = NatsCa::File(path);
    }
    for (path, text) in &kit.files {
        write_atomic(&state.path().join(path), text.as_bytes(), 0o600)?;
    }
    // What was written is what is there.
    let root = state.root()?;
    if root.cluster != kit.cluster {
        return Err(InstallError::Strange("of another cluster".into()));
    }
    let text = config.to_toml()?;
    // As it will be read.
    let config = Config::parse(&text, &dir.join("broker.toml"))?;
    write_atomic(&dir.join("broker.toml"), text.as_bytes(), 0o600)?;
    Ok(config)
}

/// Whether a broker writes a file there. A kit comes over the network: it
/// must not write anywhere else.
fn is_ours(path: &str) -> bool {
    NEEDED.contains(&path)
        || path
            .strip_prefix("keys/broker-")
            .and_then(|rest| rest.strip_suffix(".key"))
            .is_some_and(|id| !id.is_empty() && id.bytes().all(|b| b.is_ascii_alphanumeric()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::Authority;
    use crate::nats::keys::NatsKeys;
    use crate::tls::Ca;

    fn own() -> Own {
        Own {
            listen: ([127, 0, 0, 1], 7979).into(),
            names: Vec::new(),
            url: None,
        }
    }

    fn given(dir: &Path) -> (Config, StandbyKit) {
        let state = StateDir::open(dir).unwrap();
        let root = state.root().unwrap();
        NatsKeys::load_or_create(&state.keys()).unwrap();
        Ca::open(&state, root.cluster).unwrap();
        let (_, authority) = Authority::in_memory();
        state.store_broker_key(&authority.signer().key).unwrap();
        let config = Config {
            state: dir.to_owned(),
            confirm_above: 7,
            ..Config::default()
        };
        let kit = kit(
            &config,
            root.cluster,
            &authority.list(),
            &authority.signed_list(),
        )
        .unwrap();
        (config, kit)
    }

    #[test]
    fn another_broker_gets_the_keys_and_settings_and_nothing_else() {
        let tmp = tempfile::tempdir().unwrap();
        let (_, kit) = given(&tmp.path().join("one"));
        assert_eq!(kit.files.len(), NEEDED.len() + 1);
        assert!(!format!("{kit:?}").contains("BEGIN"));
        let two = tmp.path().join("two");
        let config = install(&kit, &two, own()).unwrap();
        assert_eq!((config.confirm_above, config.listen.port()), (7, 7979));
        let state = StateDir::open(&two).unwrap();
        assert_eq!(state.root().unwrap().cluster, kit.cluster);
        assert!(!two.join("holder.json").exists() && !two.join("admin.token").exists());
        assert!(matches!(
            install(&kit, &two, own()),
            Err(InstallError::NotEmpty(_))
        ));
    }

    #[test]
    fn what_no_broker_gives_is_not_written() {
        let tmp = tempfile::tempdir().unwrap();
        let (_, kit) = given(&tmp.path().join("one"));
        for path in [
            "../x",
            "/etc/passwd",
            "keys/broker-../../x.key",
            "keys/broker-.key",
            "holder.json",
        ] {
            let mut bad = kit.clone();
            bad.files.insert(path.into(), "x".into());
            let two = tmp.path().join("two");
            let said = install(&bad, &two, own()).unwrap_err().to_string();
            assert!(said.contains("not what a broker gives"), "{said}");
            assert!(!two.exists());
        }
        let mut newer = kit.clone();
        newer.format += 1;
        assert!(install(&newer, &tmp.path().join("two"), own()).is_err());
        let mut less = kit;
        less.files.remove("keys/ca.key");
        assert!(install(&less, &tmp.path().join("two"), own()).is_err());
    }
}
