//! Who owns a file, and who may do what with it.

use std::fs::{File, Metadata, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown};
use std::path::Path;

use muster_protocol::text::printable;
use muster_scenarios::node::FileAttributes;
use nix::unistd::{Gid, Group, Uid, User};
use rustix::fs::{XattrFlags, fgetxattr, flistxattr, fsetxattr};

use super::{FileError, bits, io};

/// Largest list of attributes, and largest attribute, that the kernel has.
const MAX_EXTENDED: usize = 64 * 1024;

/// Why nobody is known by a name.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AttributeError {
    /// No such user.
    #[error("this node has no user `{0}`")]
    User(String),
    /// No such group.
    #[error("this node has no group `{0}`")]
    Group(String),
    /// The system's list cannot be read.
    #[error("the users of this node cannot be read: {0}")]
    Lookup(String),
}

/// What is wanted, in numbers; `None` is left as it is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Wanted {
    mode: Option<u32>,
    owner: Option<u32>,
    group: Option<u32>,
}

impl Wanted {
    pub(super) fn of(attributes: &FileAttributes) -> Result<Self, AttributeError> {
        Ok(Self {
            mode: attributes.mode,
            owner: attributes.owner.as_deref().map(user).transpose()?,
            group: attributes.group.as_deref().map(group).transpose()?,
        })
    }

    /// The same, with this mode where none is wanted.
    pub(super) fn or_mode(self, mode: u32) -> Self {
        Self {
            mode: self.mode.or(Some(mode)),
            ..self
        }
    }

    /// The same, with those of a file where none is wanted.
    pub(super) fn or_those_of(self, metadata: &Metadata) -> Self {
        Self {
            mode: self.mode.or(Some(bits(metadata))),
            owner: self.owner.or(Some(metadata.uid())),
            group: self.group.or(Some(metadata.gid())),
        }
    }

    /// What is not so, for people: `mode 0644 → 0600`.
    pub(super) fn differences(&self, metadata: &Metadata) -> Vec<String> {
        let mut said = Vec::new();
        let now = bits(metadata);
        if let Some(mode) = self.mode.filter(|mode| *mode != now) {
            said.push(format!("mode {now:04o} → {mode:04o}"));
        }
        if let Some(owner) = self.owner.filter(|owner| *owner != metadata.uid()) {
            said.push(format!(
                "owner {} → {}",
                user_name(metadata.uid()),
                user_name(owner)
            ));
        }
        if let Some(group) = self.group.filter(|group| *group != metadata.gid()) {
            said.push(format!(
                "group {} → {}",
                group_name(metadata.gid()),
                group_name(group)
            ));
        }
        said
    }

    /// What is wanted, for people.
    pub(super) fn shown(&self) -> String {
        let mut said = Vec::new();
        said.extend(self.mode.map(|mode| format!("mode {mode:04o}")));
        said.extend(self.owner.map(|id| format!("owner {}", user_name(id))));
        said.extend(self.group.map(|id| format!("group {}", group_name(id))));
        said.join(", ")
    }

    /// Has it so. `path` is for messages: what is changed is the very file
    /// that was opened.
    pub(super) fn apply(&self, file: &File, path: &Path) -> Result<(), FileError> {
        if self.owner.is_some() || self.group.is_some() {
            fchown(file, self.owner, self.group).map_err(io("change the owner of", path))?;
        }
        // After the owner: a change of owner clears set-user-id.
        if let Some(mode) = self.mode {
            file.set_permissions(Permissions::from_mode(mode))
                .map_err(io("change the mode of", path))?;
        }
        Ok(())
    }
}

/// Gives a new file the access list, the security label and the users' own
/// attributes of the one that it replaces, as far as the file system has such
/// things. Capabilities of an executable are not among them: its content is
/// another one.
pub(super) fn copy_extended(old: &File, new: &File) {
    let mut names = vec![0; MAX_EXTENDED];
    let Ok(length) = flistxattr(old, &mut names[..]) else {
        return;
    };
    for name in names[..length].split(|byte| *byte == 0) {
        let wanted = name == b"security.selinux"
            || name == b"system.posix_acl_access"
            || name.starts_with(b"user.");
        if !wanted {
            continue;
        }
        let mut value = vec![0; MAX_EXTENDED];
        if let Ok(length) = fgetxattr(old, name, &mut value[..]) {
            let _ = fsetxattr(new, name, &value[..length], XattrFlags::empty());
        }
    }
}

fn user(name: &str) -> Result<u32, AttributeError> {
    if let Ok(id) = name.parse() {
        return Ok(id);
    }
    match User::from_name(name) {
        Ok(Some(user)) => Ok(user.uid.as_raw()),
        Ok(None) => Err(AttributeError::User(printable(name, 60))),
        Err(error) => Err(AttributeError::Lookup(error.to_string())),
    }
}

fn group(name: &str) -> Result<u32, AttributeError> {
    if let Ok(id) = name.parse() {
        return Ok(id);
    }
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        Ok(None) => Err(AttributeError::Group(printable(name, 60))),
        Err(error) => Err(AttributeError::Lookup(error.to_string())),
    }
}

fn user_name(id: u32) -> String {
    match User::from_uid(Uid::from_raw(id)) {
        Ok(Some(user)) => user.name,
        _ => id.to_string(),
    }
}

fn group_name(id: u32) -> String {
    match Group::from_gid(Gid::from_raw(id)) {
        Ok(Some(group)) => group.name,
        _ => id.to_string(),
    }
}
