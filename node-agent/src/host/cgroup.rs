//! A control group for each command, where the system lets the agent make
//! one: nothing that the command starts can leave it without root's help.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Names begin so.
const PREFIX: &str = "muster-";

/// Where control groups can be made.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Cgroups(PathBuf);

/// One control group.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Cgroup(PathBuf);

impl Cgroups {
    /// Looks for a place below the agent's own group where one can be made:
    /// version 2 first, then the `freezer` or `pids` hierarchy of version 1.
    #[must_use]
    pub fn detect() -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        candidates(&mounts, &groups).into_iter().find_map(|base| {
            let probe = base.join(format!("{PREFIX}probe-{}", std::process::id()));
            let works = fs::create_dir(&probe).is_ok() && probe.join("cgroup.procs").exists();
            let _ = fs::remove_dir(&probe);
            works.then_some(Self(base))
        })
    }

    /// Makes one.
    ///
    /// # Errors
    /// What the system says.
    pub fn make(&self, name: &str) -> io::Result<Cgroup> {
        let path = self.0.join(format!("{PREFIX}{name}"));
        match fs::create_dir(&path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }?;
        Ok(Cgroup(path))
    }

    /// Removes groups that nothing lives in any more, such as those of
    /// daemons that a command had left behind.
    pub fn sweep(&self) {
        let Ok(entries) = fs::read_dir(&self.0) else {
            return;
        };
        for entry in entries.flatten() {
            if entry.file_name().to_string_lossy().starts_with(PREFIX) {
                // The kernel refuses while something is inside.
                let _ = fs::remove_dir(entry.path());
            }
        }
    }
}

impl Cgroup {
    /// A group that the journal remembers; `None` for anything that does not
    /// look like one.
    #[must_use]
    pub fn remembered(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        let plausible = path.starts_with("/sys/fs/cgroup")
            && name.starts_with(PREFIX)
            && !path
                .components()
                .any(|c| c == std::path::Component::ParentDir)
            && path.join("cgroup.procs").exists();
        plausible.then(|| Self(path.to_owned()))
    }

    /// Its directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Moves a process in; what it starts from now on is in too.
    ///
    /// # Errors
    /// What the system says.
    pub fn add(&self, pid: u32) -> io::Result<()> {
        fs::write(self.0.join("cgroup.procs"), pid.to_string())
    }

    /// The processes inside.
    #[must_use]
    pub fn members(&self) -> Vec<u32> {
        let text = fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// Kills all inside in one go, where the kernel can.
    pub fn kill(&self) {
        let _ = fs::write(self.0.join("cgroup.kill"), "1");
    }

    /// Removes it, if nothing is inside.
    pub fn remove(&self) {
        let _ = fs::remove_dir(&self.0);
    }
}

fn candidates(mounts: &str, groups: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for controller in ["", "freezer", "pids"] {
        // `0::/path` is version 2, `7:freezer:/path` version 1.
        let own = groups.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':');
            let (_, names, path) = (parts.next()?, parts.next()?, parts.next()?);
            let matches = if controller.is_empty() {
                names.is_empty()
            } else {
                names.split(',').any(|n| n == controller)
            };
            matches.then_some(path)
        });
        let mount = mounts.lines().find_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let mut right = right.split(' ');
            let kind = right.next()?;
            let options = right.nth(1)?;
            let matches = if controller.is_empty() {
                kind == "cgroup2"
            } else {
                kind == "cgroup" && options.split(',').any(|o| o == controller)
            };
            if !matches {
                return None;
            }
            let mut left = left.split(' ').skip(3);
            Some((left.next()?, left.next()?))
        });
        if let (Some(own), Some((root, mount))) = (own, mount) {
            // In a container the mount shows a part of the tree only.
            let below = own.strip_prefix(root.trim_end_matches('/')).unwrap_or(own);
            found.push(Path::new(mount).join(below.trim_start_matches('/')));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_found_where_they_are_mounted() {
        let mounts = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
37 31 0:34 / /sys/fs/cgroup/freezer rw,relatime - cgroup cgroup rw,freezer
39 31 0:36 /docker/x /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:1 - cgroup2 cgroup2 rw
";
        let groups = "8:pids:/docker/x/y\n6:freezer:/\n0::/system.slice/muster-agent.service\n";
        assert_eq!(
            candidates(mounts, groups),
            [
                PathBuf::from("/sys/fs/cgroup/unified/system.slice/muster-agent.service"),
                PathBuf::from("/sys/fs/cgroup/freezer/"),
                PathBuf::from("/sys/fs/cgroup/pids/y"),
            ]
        );
        assert!(candidates("", "").is_empty());
    }

    #[test]
    fn only_a_group_of_ours_is_remembered() {
        for bad in [
            "/etc/passwd",
            "/sys/fs/cgroup/system.slice",
            "/sys/fs/cgroup/../../muster-x",
            "/",
        ] {
            assert_eq!(Cgroup::remembered(Path::new(bad)), None, "{bad}");
        }
    }
}
