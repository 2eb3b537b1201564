//! The scenarios that come with muster: there in every cluster, under their
//! names, until somebody stores others under these.

use std::collections::BTreeMap;

use crate::bundle::{Bundle, BundleError};

macro_rules! stock {
    ($($name:literal),+ $(,)?) => {
        &[$(($name, include_str!(concat!("../library/", $name, ".rhai")))),+]
    };
}

/// Name and script of each, by name.
pub const STOCK: &[(&str, &str)] = stock![
    "add-web-node",
    "build",
    "collect-facts",
    "deploy",
    "firewall-diff",
    "firewall-history",
    "firewall-rollback",
    "firewall-show",
    "maintenance-page",
    "ping",
    "publish-package",
    "puppet-run",
    "reboot",
    "restart-service",
    "rolling-restart",
    "upgrade-packages",
    "vm-console",
    "vm-create",
    "vm-destroy",
    "vm-exec",
    "vm-power",
    "vm-resize",
    "vm-snapshot",
    "vm-undelete",
    "web-node",
];

/// The stock scenario of that name.
///
/// # Errors
/// [`BundleError`]: never, which a test sees to.
pub fn bundle(name: &str) -> Option<Result<Bundle, BundleError>> {
    let (_, script) = STOCK.iter().find(|(stock, _)| *stock == name)?;
    Some(Bundle::new((*script).to_owned(), BTreeMap::new()))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use muster_protocol::names::ScenarioName;

    #[test]
    fn every_file_of_the_library_is_there_under_a_name_that_can_be_one() {
        let library = Path::new(env!("CARGO_MANIFEST_DIR")).join("library");
        let mut files: Vec<String> = std::fs::read_dir(library)
            .expect("the library")
            .map(|entry| {
                let path = entry.expect("an entry").path();
                let name = path.file_stem().expect("a name");
                name.to_string_lossy().into_owned()
            })
            .collect();
        files.sort();
        let names: Vec<&str> = STOCK.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, files);
        for name in names {
            name.parse::<ScenarioName>().expect("a name");
            assert!(bundle(name).expect("it is there").is_ok());
        }
        assert!(bundle("command").is_none());
    }
}
