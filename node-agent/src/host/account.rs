//! Running a program as another user than the agent's own.

use std::collections::BTreeMap;
use std::ffi::CString;

use muster_protocol::text::printable;
use nix::unistd::{User, getgrouplist};

/// Gives up root for good and becomes the program; from util-linux, which
/// every Linux has. The agent does not do it itself, because between two
/// system calls a thread of its own would be in that user's hands.
const SETPRIV: &str = "setpriv";

/// A user of this node, with the groups that it is in.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Account {
    name: String,
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    home: String,
    shell: String,
}

/// Why nobody can be run as.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AccountError {
    /// No such user.
    #[error("this node has no user `{0}`")]
    Unknown(String),
    /// The system's list cannot be read.
    #[error("the users of this node cannot be read: {0}")]
    Lookup(String),
    /// The agent is not root.
    #[error("the agent does not run as root here, so it cannot become `{0}`")]
    NotRoot(String),
}

impl Account {
    /// Looks a user up by name or number. `None` is the agent's own user,
    /// which it need not become.
    ///
    /// # Errors
    /// [`AccountError`].
    pub fn find(name: &str) -> Result<Option<Self>, AccountError> {
        let shown = || printable(name, 60);
        let found = match name.parse::<u32>() {
            Ok(uid) => User::from_uid(uid.into()),
            Err(_) => User::from_name(name),
        };
        let user = found
            .map_err(|e| AccountError::Lookup(e.to_string()))?
            .ok_or_else(|| AccountError::Unknown(shown()))?;
        let own = rustix::process::geteuid();
        if user.uid.as_raw() == own.as_raw() {
            return Ok(None);
        }
        if !own.is_root() {
            return Err(AccountError::NotRoot(shown()));
        }
        let c_name =
            CString::new(user.name.as_str()).map_err(|_| AccountError::Unknown(shown()))?;
        let groups =
            getgrouplist(&c_name, user.gid).map_err(|e| AccountError::Lookup(e.to_string()))?;
        Ok(Some(Self {
            uid: user.uid.as_raw(),
            gid: user.gid.as_raw(),
            groups: groups.iter().map(|group| group.as_raw()).collect(),
            home: user.dir.display().to_string(),
            shell: user.shell.display().to_string(),
            name: user.name,
        }))
    }

    /// What stands before a program and its arguments.
    pub(super) fn prefix(&self) -> Vec<String> {
        let groups: Vec<String> = self.groups.iter().map(u32::to_string).collect();
        let groups = if groups.is_empty() {
            "--clear-groups".to_owned()
        } else {
            format!("--groups={}", groups.join(","))
        };
        vec![
            SETPRIV.to_owned(),
            format!("--reuid={}", self.uid),
            format!("--regid={}", self.gid),
            groups,
            "--inh-caps=-all".to_owned(),
            "--".to_owned(),
        ]
    }

    /// Has an environment say who it is.
    pub(super) fn set(&self, environment: &mut BTreeMap<String, String>) {
        for (name, value) in [
            ("USER", &self.name),
            ("LOGNAME", &self.name),
            ("HOME", &self.home),
            ("SHELL", &self.shell),
        ] {
            environment.insert(name.to_owned(), value.clone());
        }
    }
}
