//! The clean environment of a command: the same on every node, whatever the
//! agent was started from.

use std::collections::BTreeMap;

use muster_protocol::ids::{RequestId, Serial};
use muster_protocol::names::NodeName;

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The user that the agent, and so a command, runs as.
#[derive(Clone, Debug, Eq, PartialEq)]
struct User {
    name: String,
    home: String,
    shell: String,
}

impl User {
    fn current() -> Self {
        let uid = rustix::process::getuid().as_raw();
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        Self::find(&passwd, uid)
    }

    fn find(passwd: &str, uid: u32) -> Self {
        let uid = uid.to_string();
        for line in passwd.lines() {
            let fields: Vec<&str> = line.split(':').collect();
            if let [name, _, id, _, _, home, shell] = fields[..]
                && id == uid
            {
                let or =
                    |text: &str, other: &str| if text.is_empty() { other } else { text }.to_owned();
                return Self {
                    name: name.to_owned(),
                    home: or(home, "/"),
                    shell: or(shell, "/bin/sh"),
                };
            }
        }
        Self {
            name: uid,
            home: "/".into(),
            shell: "/bin/sh".into(),
        }
    }
}

/// What every command on this node gets.
#[derive(Clone, Debug)]
pub struct Environment {
    base: BTreeMap<String, String>,
}

impl Environment {
    /// The clean base, with the configured additions on top.
    #[must_use]
    pub fn new(additions: &BTreeMap<String, String>) -> Self {
        let user = User::current();
        let mut base = BTreeMap::from([
            ("PATH".to_owned(), PATH.to_owned()),
            ("HOME".to_owned(), user.home),
            ("USER".to_owned(), user.name.clone()),
            ("LOGNAME".to_owned(), user.name),
            ("SHELL".to_owned(), user.shell),
            ("LANG".to_owned(), "C.UTF-8".to_owned()),
            ("TERM".to_owned(), "dumb".to_owned()),
        ]);
        base.extend(additions.iter().map(|(k, v)| (k.clone(), v.clone())));
        Self { base }
    }

    /// The base alone.
    #[must_use]
    pub fn base(&self) -> &BTreeMap<String, String> {
        &self.base
    }

    /// For one step: the base, what the command may want to know, and the
    /// marks by which its processes are found again.
    #[must_use]
    pub fn for_step(
        &self,
        request: RequestId,
        serial: Serial,
        name: &NodeName,
    ) -> BTreeMap<String, String> {
        let mut all = self.base.clone();
        all.insert("MUSTER_RUN".into(), request.run.to_string());
        all.insert("MUSTER_STEP".into(), request.step.to_string());
        all.insert("MUSTER_NODE".into(), name.to_string());
        for mark in marks(request, serial) {
            if let Some((key, value)) = mark.split_once('=') {
                all.insert(key.to_owned(), value.to_owned());
            }
        }
        all
    }
}

/// The marks of a step's processes. The serial is among them because several
/// agents may run on one machine, all asked by one request.
#[must_use]
pub fn marks(request: RequestId, serial: Serial) -> Vec<String> {
    vec![
        format!("MUSTER_REQUEST={request}"),
        format!("MUSTER_SERIAL={serial}"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_comes_from_the_system_not_from_who_started_the_agent() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nops:x:1000:1000::/home/ops:\n";
        assert_eq!(User::find(passwd, 0).home, "/root");
        assert_eq!(User::find(passwd, 1000).shell, "/bin/sh");
        assert_eq!(User::find(passwd, 7).name, "7");
    }
}
