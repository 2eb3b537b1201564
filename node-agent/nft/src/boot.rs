//! A machine that starts: both its firewalls are in force before its network
//! is there, each whatever becomes of the other.

use std::path::Path;

use crate::groups::{self, ForceError, LogError};
use crate::host::{self, HostError, Restored};

/// What a start has found and done.
#[derive(Debug)]
#[must_use = "either may have failed"]
pub struct Booted {
    /// The node's own firewall.
    pub host: Result<Restored, HostError>,
    /// What machines may say and hear.
    pub groups: Result<Guests, ForceError>,
}

/// What machines may say and hear after it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Guests {
    /// Nothing was ever held here, and nothing was done.
    None,
    /// An agent runs, who looks after it; all is left to it.
    Busy,
    /// What was last held, or nothing when that is not known.
    Closed,
}

impl Booted {
    /// What failed, as one text.
    #[must_use]
    pub fn failed(&self) -> Option<String> {
        let host = self.host.as_ref().err().map(ToString::to_string);
        let groups = self.groups.as_ref().err();
        let groups = groups.map(|e| format!("the security groups are not in force: {e}"));
        let all: Vec<String> = host.into_iter().chain(groups).collect();
        (!all.is_empty()).then(|| all.join("\n"))
    }
}

/// Before there is a network, an agent or a broker: what the node itself lets
/// pass, and what its machines may say and hear, as it was last held in
/// `groups`. One that fails is no reason to leave the other one out. Blocks.
pub fn boot(host: &host::Setting, groups: &Path) -> Booted {
    Booted {
        host: host::restore(host),
        groups: guests(host, groups),
    }
}

fn guests(host: &host::Setting, dir: &Path) -> Result<Guests, ForceError> {
    if !dir.is_dir() {
        return Ok(Guests::None);
    }
    match groups::boot(dir, host.nft.program()) {
        Ok(()) => Ok(Guests::Closed),
        Err(ForceError::Log(LogError::Locked { .. })) => Ok(Guests::Busy),
        Err(e) => Err(e),
    }
}
