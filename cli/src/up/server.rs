//! The nats-server on this machine.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use muster_broker::nats::version::ServerVersion;

use crate::failure::{Failure, NOT_ALL};

/// A nats-server that can be used.
#[derive(Clone, Debug)]
pub struct Server {
    /// Where it is.
    pub path: PathBuf,
    /// Its version.
    pub version: ServerVersion,
}

/// Finds nats-server on PATH; `MUSTER_NATS_SERVER` names another.
///
/// # Errors
/// There is none, or it is too old: names the package.
pub fn find() -> Result<Server, Failure> {
    let named = std::env::var_os("MUSTER_NATS_SERVER")
        .filter(|v| !v.is_empty())
        .map(PathBuf::from);
    let path = named.or_else(|| on_path("nats-server")).ok_or_else(|| {
        Failure::new(NOT_ALL, "there is no nats-server on PATH").hint(
            "install it: `apt install nats-server` (Debian 12 or newer), or from https://nats.io/download; it needs version 2.9 or newer",
        )
    })?;
    let fail = |why: String| {
        Failure::new(NOT_ALL, format!("cannot use {}: {why}", path.display()))
            .hint("install it again: `apt install nats-server`")
    };
    let said = Command::new(&path)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .map_err(|e| fail(e.to_string()))?;
    let text = String::from_utf8_lossy(&said.stdout);
    let version: ServerVersion = text.parse().map_err(|e| fail(format!("{e}")))?;
    let version = version.require_minimum().map_err(|e| fail(e.to_string()))?;
    // The name under which it shows as a process is the one that counts later.
    let path = std::fs::canonicalize(&path).unwrap_or(path);
    Ok(Server { path, version })
}

/// Where a program is. Debian keeps servers in /usr/sbin, which a user's PATH
/// may lack.
fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/local/sbin", "/usr/local/bin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|file| {
            rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok() && file.is_file()
        })
}
