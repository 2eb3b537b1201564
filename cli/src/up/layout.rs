//! Where things are below the state directory, and whose turn it is.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::failure::{Failure, NOT_ALL, USAGE};

/// The paths of one `muster up`.
#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
}

/// The right to run `muster up` on a state directory, for as long as the
/// process lives.
#[derive(Debug)]
pub struct UpLock {
    _file: File,
}

impl Layout {
    /// Of a directory that exists.
    ///
    /// # Errors
    /// The directories below it cannot be made, or its path is odd.
    pub fn new(root: &Path) -> Result<Self, Failure> {
        let fail = |path: &Path, e: std::io::Error| {
            Failure::new(
                NOT_ALL,
                format!("cannot use the state directory {}: {e}", path.display()),
            )
        };
        // Children are recognised by their arguments: one spelling only.
        let root = std::fs::canonicalize(root).map_err(|e| fail(root, e))?;
        if root.to_str().is_none() {
            return Err(
                Failure::new(USAGE, format!("the path {} is not UTF-8", root.display()))
                    .hint("give a state directory with a plain name"),
            );
        }
        for name in ["run", "log", "agents"] {
            let path = root.join(name);
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path)
                .map_err(|e| fail(&path, e))?;
        }
        Ok(Self { root })
    }

    /// The directory itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The log of a part.
    #[must_use]
    pub fn log(&self, part: &str) -> PathBuf {
        self.root.join("log").join(format!("{part}.log"))
    }

    /// The note that a part runs.
    #[must_use]
    pub fn note(&self, part: &str) -> PathBuf {
        self.root.join("run").join(format!("{part}.json"))
    }

    /// The state of an agent.
    #[must_use]
    pub fn agent(&self, name: &str) -> PathBuf {
        self.root.join("agents").join(name)
    }

    /// The executable of an agent.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.root.join("programs").join(name).join("muster-agent")
    }

    /// The configuration of an agent.
    #[must_use]
    pub fn agent_config(&self, name: &str) -> PathBuf {
        self.root.join("agents").join(format!("{name}.toml"))
    }

    /// What `--node` said of a node the last time.
    #[must_use]
    pub fn spec(&self, name: &str) -> PathBuf {
        self.root.join("run").join(format!("{name}.spec"))
    }

    /// The names of agents that an earlier start has noted as running.
    #[must_use]
    pub fn noted_agents(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.root.join("run")) else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter_map(|e| {
                let name = e.file_name().into_string().ok()?;
                name.strip_prefix(AGENT)?
                    .strip_suffix(".json")
                    .map(str::to_owned)
            })
            .collect()
    }

    /// Takes the directory for this process.
    ///
    /// # Errors
    /// Another `muster up` runs on it.
    pub fn lock(&self) -> Result<UpLock, Failure> {
        let path = self.root.join("up.lock");
        let fail = |e: std::io::Error| {
            Failure::new(NOT_ALL, format!("cannot lock {}: {e}", path.display()))
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(fail)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let _ = (&mut file).take(20).read_to_string(&mut pid);
                let pid = pid.trim();
                let known = !pid.is_empty() && pid.bytes().all(|b| b.is_ascii_digit());
                let whose = if known {
                    format!(" (process {pid})")
                } else {
                    String::new()
                };
                return Err(Failure::new(
                    USAGE,
                    format!("another `muster up`{whose} runs on {}", self.root.display()),
                )
                .hint(
                    "use that one, end it first, or give this one a state directory of its own",
                ));
            }
            Err(TryLockError::Error(e)) => return Err(fail(e)),
        }
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(fail)?;
        Ok(UpLock { _file: file })
    }
}

/// In front of an agent's name in the names of its files: a node may be
/// called `broker`.
pub const AGENT: &str = "agent-";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ui::Paint;

    #[test]
    fn a_second_up_is_told_whose_turn_it_is() {
        let dir = tempfile::tempdir().expect("directory");
        let layout = Layout::new(dir.path()).expect("layout");
        let lock = layout.lock().expect("first");
        let error = layout.lock().expect_err("second").render(Paint::plain());
        assert!(
            error.contains(&format!("process {}", std::process::id())),
            "{error}"
        );
        drop(lock);
        assert!(layout.lock().is_ok());
    }
}
