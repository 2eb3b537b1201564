//! Running a program as another user than the agent's own.

use std::collections::BTreeMap;
use std::ffi::CString;

use muster_protocol::text::printable;
use nix::unistd::{User, getgrouplist};

/// Gives up root for good and becomes the program; from util-linux, which
/// every Linux has. The agent does not do it itself, because between two
/// system calls a thread of its own would be in that user's hands.
const SETPRIV: &str = "setpriv";
/// Sets what must not be set before that.
const ENV: &str = "env";
/// Where these two are looked for, whatever a script says in `PATH`: they
/// begin as root.
const PLACES: [&str; 4] = ["/usr/bin", "/bin", "/usr/sbin", "/sbin"];

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
    /// What becomes another user.
    #[error(
        "this node has no program `{0}`, by which another user is become (looked in /usr/bin and the like)"
    )]
    NoProgram(&'static str),
    /// A program that would be taken for a variable.
    #[error("`{0}` cannot be run as another user with this environment: its name has a `=`")]
    Name(String),
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

    /// A program and its arguments as this user, from an environment that is
    /// the program's.
    ///
    /// # Errors
    /// [`AccountError`]: it cannot be done here.
    pub(super) fn dress(
        &self,
        argv: Vec<String>,
        environment: &mut BTreeMap<String, String>,
    ) -> Result<Vec<String>, AccountError> {
        let groups: Vec<String> = self.groups.iter().map(u32::to_string).collect();
        let groups = if groups.is_empty() {
            "--clear-groups".to_owned()
        } else {
            format!("--groups={}", groups.join(","))
        };
        let mut dressed = vec![
            find(SETPRIV)?,
            format!("--reuid={}", self.uid),
            format!("--regid={}", self.gid),
            groups,
            "--inh-caps=-all".to_owned(),
            "--".to_owned(),
        ];
        // Else a library in the user's own directory would be root's for a
        // moment.
        let early: Vec<String> = environment
            .keys()
            .filter(|name| is_heard_early(name))
            .cloned()
            .collect();
        if !early.is_empty() {
            dressed.push(find(ENV)?);
            if argv.first().is_some_and(|program| program.contains('=')) {
                return Err(AccountError::Name(printable(&argv[0], 60)));
            }
        }
        for name in early {
            if let Some(value) = environment.remove(&name) {
                dressed.push(format!("{name}={value}"));
            }
        }
        dressed.extend(argv);
        Ok(dressed)
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

fn find(program: &'static str) -> Result<String, AccountError> {
    PLACES
        .iter()
        .map(|place| format!("{place}/{program}"))
        .find(|path| std::path::Path::new(path).exists())
        .ok_or(AccountError::NoProgram(program))
}

/// Variables that the C library obeys before a program has begun: those that
/// it takes away from programs that gain rights.
fn is_heard_early(name: &str) -> bool {
    const NAMES: [&str; 10] = [
        "GCONV_PATH",
        "GETCONF_DIR",
        "HOSTALIASES",
        "LOCALDOMAIN",
        "LOCPATH",
        "NIS_PATH",
        "NLSPATH",
        "RESOLV_HOST_CONF",
        "RES_OPTIONS",
        "TZDIR",
    ];
    const STARTS: [&str; 3] = ["LD_", "GLIBC_", "MALLOC_"];
    NAMES.contains(&name) || STARTS.iter().any(|start| name.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_begins_as_root_takes_nothing_from_the_script() {
        let account = Account {
            name: "app".into(),
            uid: 1000,
            gid: 1000,
            groups: vec![1000, 50],
            home: "/home/app".into(),
            shell: "/bin/sh".into(),
        };
        let all = [
            ("LD_PRELOAD", "/home/app/evil.so"),
            ("PATH", "/home/app/bin"),
            ("TOKEN", "geheim"),
        ];
        let mut environment = all
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
        let argv = ["tool", "-x"].map(str::to_owned).to_vec();
        let dressed = account.dress(argv, &mut environment).expect("it is done");
        let plain: Vec<&str> = dressed
            .iter()
            .map(|word| {
                word.rsplit_once("bin/")
                    .map_or(word.as_str(), |(_, name)| name)
            })
            .collect();
        assert_eq!(
            plain,
            [
                "setpriv",
                "--reuid=1000",
                "--regid=1000",
                "--groups=1000,50",
                "--inh-caps=-all",
                "--",
                "env",
                "LD_PRELOAD=/home/app/evil.so",
                "tool",
                "-x"
            ]
        );
        // It is absolute, so that no PATH counts, and nobody sees the secret.
        assert!(dressed[0].starts_with('/') && dressed[6].starts_with('/'));
        assert!(!environment.contains_key("LD_PRELOAD"));
        assert_eq!(environment["TOKEN"], "geheim");
    }
}
