//! The built-in scenario `agent-upgrade`: an agent replaces its own
//! executable, and finishes its step as the new one.

use muster_protocol::PROTOCOL_VERSION;
use muster_protocol::envelope::BundleHash;
use muster_protocol::release::{MAX_RELEASE, Release, ReleaseId, Version};
use muster_protocol::text::printable;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Its name.
pub const NAME: &str = "agent-upgrade";
/// Its only function.
pub const FUNCTION: &str = "upgrade";
/// The capability that a node must grant.
pub const CAPABILITY: &str = "upgrade";

/// The hash that stands for this version of the built-in scenario.
#[must_use]
pub fn bundle() -> BundleHash {
    BundleHash::of(b"muster built-in agent-upgrade 1")
}

/// To which release. Everything that a node holds the bytes against is in
/// here, and so in the signed request.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Upgrade {
    /// SHA-256 of the executable.
    pub release: ReleaseId,
    /// Its size in bytes.
    pub size: u64,
    /// What it says about itself.
    pub about: Release,
    /// An older version than the node's is meant.
    #[serde(default)]
    pub allow_downgrade: bool,
}

/// What a person or a program asks for: the broker completes it with what it
/// knows of the release.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct UpgradeRequest {
    /// SHA-256 of the executable.
    pub release: ReleaseId,
    /// An older version than the node's is meant.
    #[serde(default)]
    pub allow_downgrade: bool,
}

/// Why the parameters are refused.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum UpgradeError {
    /// Not of the form.
    #[error("the parameters of `agent-upgrade` are {{\"release\": \"<sha256>\"}}: {0}")]
    Shape(String),
    /// Empty, or larger than any release.
    #[error("a release of {0} bytes is not taken; at most {MAX_RELEASE} are")]
    Size(u64),
    /// It could never take part.
    #[error("release {version} speaks protocol {theirs}, this side speaks {PROTOCOL_VERSION}")]
    Protocol {
        /// Which.
        version: Version,
        /// Its protocol.
        theirs: u32,
    },
}

impl UpgradeRequest {
    /// Reads what was asked for.
    ///
    /// # Errors
    /// [`UpgradeError::Shape`].
    pub fn from_params(params: &Value) -> Result<Self, UpgradeError> {
        Self::deserialize(params).map_err(|e| shape(&e))
    }
}

fn shape(error: &serde_json::Error) -> UpgradeError {
    UpgradeError::Shape(printable(&error.to_string(), 200))
}

impl Upgrade {
    /// Reads and checks parameters.
    ///
    /// # Errors
    /// [`UpgradeError`]; the same on both sides.
    pub fn from_params(params: &Value) -> Result<Self, UpgradeError> {
        let upgrade = Self::deserialize(params).map_err(|e| shape(&e))?;
        if upgrade.size == 0 || upgrade.size > MAX_RELEASE {
            return Err(UpgradeError::Size(upgrade.size));
        }
        if upgrade.about.protocol != PROTOCOL_VERSION {
            return Err(UpgradeError::Protocol {
                version: upgrade.about.version.clone(),
                theirs: upgrade.about.protocol,
            });
        }
        Ok(upgrade)
    }

    /// One line for people.
    #[must_use]
    pub fn title(&self) -> String {
        printable(
            &format!(
                "upgrade muster-agent to {} ({}, {})",
                self.about.version,
                self.about.build.platform(),
                self.release.short()
            ),
            120,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn params() -> Value {
        json!({
            "release": ReleaseId::of(b"x"), "size": 1_000,
            "about": {
                "program": "muster-agent", "version": "0.2.0", "protocol": PROTOCOL_VERSION,
                "capabilities": ["command"],
                "build": {"os": "linux", "arch": "x86_64", "state": 1, "journal": 1},
            },
        })
    }

    #[test]
    fn what_cannot_work_is_refused_on_both_sides() {
        let upgrade = Upgrade::from_params(&params()).expect("fine");
        assert_eq!(
            upgrade.title(),
            "upgrade muster-agent to 0.2.0 (x86_64-linux, 2d711642b726)"
        );
        let with = |path: &str, value: Value| {
            let mut all = params();
            *all.pointer_mut(path).expect("there") = value;
            Upgrade::from_params(&all).expect_err("refused")
        };
        assert_eq!(with("/size", json!(0)), UpgradeError::Size(0));
        assert!(matches!(
            with("/size", json!(u64::MAX)),
            UpgradeError::Size(_)
        ));
        assert!(matches!(
            with("/about/protocol", json!(2)),
            UpgradeError::Protocol { .. }
        ));
        for (path, value) in [
            ("/release", json!("abc")),
            ("/about/version", json!("new")),
            ("/about", json!(null)),
        ] {
            assert!(
                matches!(with(path, value), UpgradeError::Shape(_)),
                "{path}"
            );
        }
    }
}
