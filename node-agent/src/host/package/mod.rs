//! Packages of the distribution, by apt or dnf, whichever the node has.
//!
//! What is asked for is all that is done: a transaction that would take away
//! something else is refused, in a dry run too.

mod apt;
mod dnf;

use std::sync::atomic::AtomicBool;

use muster_protocol::envelope::Mode;
use muster_protocol::text::printable;
use muster_protocol::units::Span;
use muster_scenarios::node::{Change, HostError, PackageWish, Performed};
use serde_json::{Value, json};

use super::tools::{Tool, ToolError, Tools};

/// How long the package manager's lock is waited for when nothing is said.
pub const LOCK_WAIT: Span = Span::from_secs(120);
/// Longest name or version.
const MAX_NAME: usize = 200;

/// Why a package is not as it is wanted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PackageError {
    /// It can be no package's name.
    #[error("`{0}` is not the name of a package")]
    Name(String),
    /// It can be no version.
    #[error("`{0}` is not a version of a package")]
    Version(String),
    /// Neither apt nor dnf.
    #[error("this node has neither apt-get nor dnf, so packages cannot be managed here")]
    NoManager,
    /// The sources do not have it.
    #[error("this node's package sources have no package of that name")]
    Unknown,
    /// The sources do not have that version.
    #[error("this node's package sources do not have {wanted}; they have {known}")]
    NoSuchVersion {
        /// What was asked for.
        wanted: String,
        /// What there is, newest first.
        known: String,
    },
    /// Something else would go.
    #[error("it would also remove {0}; remove that by name first, if it is to go")]
    WouldRemove(String),
    /// Another process has the lock for longer than it is waited for.
    #[error("the package manager is busy, and was for {waited}: {complaint}")]
    Locked {
        /// How long it was waited for.
        waited: Span,
        /// Who holds it, as far as it is said.
        complaint: String,
    },
    /// The package manager failed.
    #[error("{what}: {complaint}")]
    Failed {
        /// What was run.
        what: String,
        /// What it said.
        complaint: String,
    },
    /// It says that it did, and it is not so.
    #[error("{what} said that all is well, but {found}")]
    NotSo {
        /// What was run.
        what: &'static str,
        /// What is there instead.
        found: String,
    },
    /// The package manager did not run to its end.
    #[error(transparent)]
    Tool(#[from] ToolError),
}

impl From<PackageError> for HostError {
    fn from(error: PackageError) -> Self {
        match error {
            PackageError::Tool(ToolError::Stopped) => Self::Stopped,
            other => Self::Failed(other.to_string()),
        }
    }
}

/// The packages of this node, for one step.
#[derive(Debug, Default)]
pub struct Packages {
    /// The lists of the sources were fetched by this step.
    fresh: AtomicBool,
}

impl Packages {
    /// Has a package so, or says what it would do. `wait` is how long another
    /// process may hold the package manager's lock.
    ///
    /// # Errors
    /// [`PackageError`].
    pub fn perform(
        &self,
        tools: &Tools,
        name: &str,
        wish: &PackageWish,
        wait: Span,
        mode: Mode,
    ) -> Result<Performed, PackageError> {
        check_name(name)?;
        if let PackageWish::Version { version } = wish {
            check_version(version)?;
        }
        let (change, version) = match manager(tools)? {
            Manager::Apt => apt::Apt::new(tools, name, wait, &self.fresh).ensure(wish, mode)?,
            Manager::Dnf => dnf::Dnf::new(tools, name, wait).ensure(wish, mode)?,
        };
        Ok(Performed {
            change: Some(change),
            value: version.map_or(Value::Null, |version| json!({ "version": version })),
        })
    }
}

enum Manager {
    Apt,
    Dnf,
}

/// Who manages this node's packages. Either can be installed as a package of
/// the other's; then it is who has itself in its database.
fn manager(tools: &Tools) -> Result<Manager, PackageError> {
    let apt = tools.has("apt-get") && tools.has("dpkg-query");
    let dnf = tools.has("dnf") && tools.has("rpm");
    match (apt, dnf) {
        (true, false) => Ok(Manager::Apt),
        (false, true) => Ok(Manager::Dnf),
        (false, false) => Err(PackageError::NoManager),
        (true, true) => {
            let asked = Tool::new("dpkg-query").args(["-W", "--", "dpkg"]);
            let own = tools.run(asked)?.is_well();
            Ok(if own { Manager::Apt } else { Manager::Dnf })
        }
    }
}

/// A name that no package manager takes for an option, a pattern, a file or a
/// removal.
fn check_name(name: &str) -> Result<(), PackageError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "+._:-".contains(c);
    let well = name.len() <= MAX_NAME
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && !name.ends_with('-')
        && name.chars().all(plain);
    if well {
        return Ok(());
    }
    Err(PackageError::Name(printable(name, 60)))
}

fn check_version(version: &str) -> Result<(), PackageError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "+._:~^-".contains(c);
    let well = version.len() <= MAX_NAME
        && version.starts_with(|c: char| c.is_ascii_alphanumeric())
        && version.chars().all(plain);
    if well {
        return Ok(());
    }
    Err(PackageError::Version(printable(version, 60)))
}

fn changed(mode: Mode, summary: String, diff: Vec<String>) -> Change {
    match mode {
        Mode::Apply => Change::Changed { summary, diff },
        Mode::Check => Change::WouldChange { summary, diff },
    }
}

/// `1.4.1 → 1.4.2`, `installed 1.4.2`, `removed 1.4.1`.
fn summary(before: Option<&str>, after: Option<&str>) -> String {
    match (before, after) {
        (Some(before), Some(after)) => format!("{before} → {after}"),
        (None, Some(after)) => format!("installed {after}"),
        (Some(before), None) => format!("removed {before}"),
        (None, None) => "nothing".to_owned(),
    }
}

#[cfg(test)]
mod tests;
