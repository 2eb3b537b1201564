//! Whether packets that cross a bridge are shown to the rules at all: two
//! switches of `br_netfilter`, for each network namespace its own.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::{Command, Stdio};

const SWITCHES: [&str; 2] = ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"];

/// Why they cannot be on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SwitchError {
    /// The kernel has no `br_netfilter`.
    #[error(
        "the kernel shows bridged packets to no rules: there is no {path}; `modprobe br_netfilter`, and see that it is loaded at boot (/etc/modules-load.d)"
    )]
    Missing {
        /// The switch.
        path: PathBuf,
    },
    /// It does not let us.
    #[error(
        "{path} cannot be set to 1: {source}; the agent must be root in the network namespace of the machines"
    )]
    Set {
        /// The switch.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn path(switch: &str) -> PathBuf {
    // Of the network namespace of the thread that looks.
    PathBuf::from("/proc/sys/net/bridge").join(switch)
}

/// Sees that both are on; what was otherwise, as lines of a difference.
pub(crate) fn ensure() -> Result<Vec<String>, SwitchError> {
    let mut all = Vec::new();
    for switch in SWITCHES {
        let path = path(switch);
        let value = match fs::read_to_string(&path) {
            Ok(value) => value,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(SwitchError::Missing { path });
            }
            Err(source) => return Err(SwitchError::Set { path, source }),
        };
        if value.trim() == "1" {
            continue;
        }
        if let Err(source) = fs::write(&path, "1") {
            return Err(SwitchError::Set { path, source });
        }
        all.push(format!("- net.bridge.{switch} = 1"));
        all.push(format!("+ net.bridge.{switch} = {}", value.trim()));
    }
    Ok(all)
}

/// Has the kernel load what the switches belong to, where it is a module that
/// is not loaded. Whether it is there afterwards is asked of the switches.
pub(crate) fn load() {
    if path(SWITCHES[0]).exists() {
        return;
    }
    let mut modprobe = Command::new("modprobe");
    modprobe.args(["-q", "br_netfilter"]);
    let silent = modprobe.stdin(Stdio::null()).stdout(Stdio::null());
    // A kernel without modules has none of this, and no modprobe either.
    let _ = silent.stderr(Stdio::null()).status();
}
