//! The scenarios that came with muster, read once for the life of the process.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use muster_protocol::envelope::BundleHash;
use muster_protocol::names::{PrincipalName, ScenarioName};
use muster_protocol::units::Timestamp;
use muster_scenarios::check::check_bundle;
use muster_scenarios::stock::{self, STOCK};

use super::{LibraryError, Loaded, Version};

/// One of them.
#[derive(Debug)]
pub(super) struct Stock {
    pub(super) loaded: Arc<Loaded>,
    pub(super) packed: Bytes,
}

fn all() -> &'static BTreeMap<ScenarioName, Stock> {
    static ALL: OnceLock<BTreeMap<ScenarioName, Stock>> = OnceLock::new();
    ALL.get_or_init(|| STOCK.iter().filter_map(|(name, _)| read(name)).collect())
}

/// A test reads all of them, so that none is left out.
fn read(text: &str) -> Option<(ScenarioName, Stock)> {
    let name: ScenarioName = text.parse().ok()?;
    let by: PrincipalName = "muster".parse().expect("a constant name");
    let bundle = stock::bundle(text)?.ok()?;
    let manifest = match check_bundle(&format!("{text}.rhai"), &bundle) {
        Ok(manifest) => manifest,
        Err(faults) => {
            tracing::error!(scenario = text, ?faults, "a stock scenario is left out");
            return None;
        }
    };
    let packed = Bytes::from(bundle.pack());
    let version = Version {
        name: name.clone(),
        version: muster_protocol::api::STOCK_VERSION,
        hash: bundle.hash(),
        bytes: packed.len() as u64,
        by,
        at: Timestamp::UNIX_EPOCH,
        note: None,
        about: manifest.about.clone(),
    };
    let loaded = Arc::new(Loaded {
        version,
        bundle,
        manifest,
    });
    Some((name, Stock { loaded, packed }))
}

/// Reads them, off the threads that serve.
pub(super) async fn prepare() -> Result<(), LibraryError> {
    tokio::task::spawn_blocking(|| {
        let _ = all();
    })
    .await?;
    Ok(())
}

pub(super) fn versions() -> impl Iterator<Item = &'static Version> {
    all().values().map(|stock| &stock.loaded.version)
}

pub(super) fn version(name: &ScenarioName) -> Option<&'static Version> {
    all().get(name).map(|stock| &stock.loaded.version)
}

pub(super) fn by_hash(hash: BundleHash) -> Option<&'static Stock> {
    all()
        .values()
        .find(|stock| stock.loaded.version.hash == hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_them_are_sound() {
        assert_eq!(all().len(), STOCK.len());
    }
}
