//! Versions of nats-server, and the oldest one muster works with.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::str::FromStr;
use std::time::Duration;

use async_nats::Client;
use tokio::process::Command;
use tokio::time::timeout;

/// Where Debian keeps it: not on the PATH of everybody.
const SYSTEM_DIRECTORIES: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// How long a server may take to say its version.
const PATIENCE: Duration = Duration::from_secs(10);

/// The oldest nats-server that muster works with.
pub const MINIMUM: ServerVersion = ServerVersion {
    major: 2,
    minor: 9,
    patch: 0,
};

/// Version of a nats-server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerVersion {
    /// First number.
    pub major: u32,
    /// Second number.
    pub minor: u32,
    /// Third number.
    pub patch: u32,
}

/// Why a version cannot be worked with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VersionError {
    /// The text holds no version.
    #[error("`{text}` is not a nats-server version (like 2.10.27)")]
    NotAVersion {
        /// The text, shortened and escaped.
        text: String,
    },
    /// There is no such program, or it does not run.
    #[error(
        "cannot run {program}: {reason}; install it: `apt install nats-server` on Debian 12 and newer, else https://github.com/nats-io/nats-server/releases"
    )]
    NotInstalled {
        /// The program.
        program: String,
        /// Why not.
        reason: String,
    },
    /// Older than [`MINIMUM`].
    #[error(
        "the NATS server is version {found}, muster needs {MINIMUM} or newer; upgrade nats-server (Debian 12 and newer have it in `apt install nats-server`)"
    )]
    TooOld {
        /// What was found.
        found: ServerVersion,
    },
}

impl ServerVersion {
    /// Refuses a version below [`MINIMUM`].
    ///
    /// # Errors
    /// [`VersionError::TooOld`].
    pub fn require_minimum(self) -> Result<Self, VersionError> {
        if self < MINIMUM {
            Err(VersionError::TooOld { found: self })
        } else {
            Ok(self)
        }
    }
}

/// Version of the server that a client is connected to; never below
/// [`MINIMUM`].
///
/// # Errors
/// [`VersionError::TooOld`], [`VersionError::NotAVersion`].
pub fn connected(client: &Client) -> Result<ServerVersion, VersionError> {
    client
        .server_info()
        .version
        .parse::<ServerVersion>()?
        .require_minimum()
}

/// The `nats-server` of this machine: from `path` (the value of `PATH`), else
/// where systems keep their daemons.
#[must_use]
pub fn locate(path: Option<&OsStr>) -> Option<PathBuf> {
    let listed = path.map(|path| std::env::split_paths(path).collect::<Vec<_>>());
    listed
        .unwrap_or_default()
        .into_iter()
        // An empty entry means the current directory: never start that one.
        .filter(|dir| dir.is_absolute())
        .chain(SYSTEM_DIRECTORIES.iter().map(PathBuf::from))
        .map(|dir| dir.join("nats-server"))
        .find(|program| program.is_file())
}

/// Version of an installed server program; never below [`MINIMUM`].
///
/// # Errors
/// [`VersionError`]: does not run, says nothing sensible, or is too old.
pub async fn installed(program: &Path) -> Result<ServerVersion, VersionError> {
    let fails = |reason: String| VersionError::NotInstalled {
        program: program.display().to_string(),
        reason,
    };
    let run = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let said = timeout(PATIENCE, run)
        .await
        .map_err(|_| fails("it does not answer".into()))?
        .map_err(|e| fails(e.to_string()))?;
    String::from_utf8_lossy(&said.stdout)
        .parse::<ServerVersion>()?
        .require_minimum()
}

/// Accepts `2.9.10`, `v2.10.27-preview.1`, and the whole line that
/// `nats-server --version` prints.
impl FromStr for ServerVersion {
    type Err = VersionError;

    fn from_str(text: &str) -> Result<Self, VersionError> {
        let bad = || VersionError::NotAVersion {
            text: text
                .chars()
                .take(80)
                .flat_map(char::escape_default)
                .collect(),
        };
        let word = text.split_whitespace().last().ok_or_else(bad)?;
        let numbers = word.strip_prefix('v').unwrap_or(word);
        let numbers = numbers.split(['-', '+']).next().unwrap_or(numbers);
        let mut parts = numbers.split('.').map(str::parse::<u32>);
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(Ok(major)), Some(Ok(minor)), Some(Ok(patch)), None) => Ok(Self {
                major,
                minor,
                patch,
            }),
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for ServerVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_servers_say() {
        let v = |s: &str| s.parse::<ServerVersion>().map(|v| v.to_string());
        assert_eq!(v("2.9.10").unwrap(), "2.9.10");
        assert_eq!(v("nats-server: v2.9.10\n").unwrap(), "2.9.10");
        assert_eq!(v("v2.11.0-preview.2").unwrap(), "2.11.0");
        for bad in ["", "2.9", "nats", "2.9.x", "2.9.1.4", "99999999999.1.1"] {
            assert!(v(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn old_servers_are_refused_with_the_way_out() {
        let old: ServerVersion = "2.8.4".parse().unwrap();
        let said = old.require_minimum().unwrap_err().to_string();
        assert!(
            said.contains("2.8.4") && said.contains("2.9.0") && said.contains("apt"),
            "{said}"
        );
        assert!(
            "2.9.0"
                .parse::<ServerVersion>()
                .unwrap()
                .require_minimum()
                .is_ok()
        );
        assert!("2.10.0".parse::<ServerVersion>().unwrap() > "2.9.10".parse().unwrap());
    }

    #[tokio::test]
    async fn the_installed_server_is_found_and_good_enough() {
        let program = locate(std::env::var_os("PATH").as_deref()).unwrap();
        installed(&program).await.unwrap();
    }

    #[tokio::test]
    async fn a_missing_program_says_how_to_get_it() {
        let said = installed(Path::new("/nonexistent/nats-server"))
            .await
            .unwrap_err()
            .to_string();
        assert!(
            said.contains("/nonexistent/nats-server") && said.contains("apt install"),
            "{said}"
        );
        let odd = installed(Path::new("/bin/true")).await.unwrap_err();
        assert!(matches!(odd, VersionError::NotAVersion { .. }), "{odd}");
    }

    #[test]
    fn the_current_directory_is_never_searched() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("nats-server"), "").unwrap();
        let found = |path: &str| locate(Some(OsStr::new(path)));
        assert_eq!(
            found(dir.path().to_str().unwrap()),
            Some(dir.path().join("nats-server"))
        );
        assert!(found(".:").is_none_or(|p| p.is_absolute()));
    }
}
