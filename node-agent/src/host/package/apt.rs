//! apt and dpkg.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use muster_protocol::envelope::Mode;
use muster_protocol::text::printable;
use muster_protocol::units::Span;
use muster_scenarios::node::{Change, PackageWish};

use super::{PackageError, changed, summary};
use crate::host::tools::{Answer, Tool, ToolError, Tools};

/// Versions that are named to somebody who asked for another one.
const MAX_VERSIONS: usize = 8;
/// Packages of one transaction that are named.
const MAX_NAMED: usize = 200;
/// How often the lock of the lists is tried; apt waits only for dpkg's.
const TRY_EVERY: Duration = Duration::from_secs(1);

pub(super) struct Apt<'a> {
    tools: &'a Tools,
    name: &'a str,
    wait: Span,
    /// The lists were fetched by this step.
    fresh: &'a AtomicBool,
}

/// What the sources have.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Policy {
    /// What apt would install.
    candidate: Option<String>,
    /// All of them, newest first.
    versions: Vec<String>,
}

/// What apt would do.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Transaction {
    diff: Vec<String>,
    removed: Vec<String>,
}

impl<'a> Apt<'a> {
    pub(super) fn new(tools: &'a Tools, name: &'a str, wait: Span, fresh: &'a AtomicBool) -> Self {
        Self {
            tools,
            name,
            wait,
            fresh,
        }
    }

    /// The change, and the version that is there after it.
    pub(super) fn ensure(
        &self,
        wish: &PackageWish,
        mode: Mode,
    ) -> Result<(Change, Option<String>), PackageError> {
        let before = self.installed()?;
        let target = match (wish, &before) {
            (PackageWish::Absent, None) => return Ok((Change::Unchanged, None)),
            (PackageWish::Absent, Some(_)) => return self.remove(before, mode),
            (PackageWish::Installed, Some(_)) => return Ok((Change::Unchanged, before)),
            (PackageWish::Version { version }, Some(now)) if version == now => {
                return Ok((Change::Unchanged, before));
            }
            (PackageWish::Installed, None) => self.candidate(mode)?,
            (PackageWish::Latest, _) => {
                if mode == Mode::Apply {
                    self.update()?;
                }
                self.candidate(mode)?
            }
            (PackageWish::Version { version }, _) => self.version(version, mode)?,
        };
        if before.as_ref() == Some(&target) {
            return Ok((Change::Unchanged, before));
        }
        self.install(wish, before, target, mode)
    }

    /// The version that is installed, whole.
    fn installed(&self) -> Result<Option<String>, PackageError> {
        let tool = Tool::new("dpkg-query")
            .args([
                "-W",
                "-f=${db:Status-Status} ${Version}\\n",
                "--",
                self.name,
            ])
            .env("LC_ALL", "C");
        let answer = self.tools.run(tool)?;
        // 1 says that it is not known; anything else is a mistake.
        if !matches!(answer.exit, Some(0 | 1)) {
            return Err(failed("dpkg-query", &answer));
        }
        let text = answer.text();
        let found = text
            .lines()
            .find_map(|line| line.strip_prefix("installed "));
        Ok(found.map(|version| version.trim().to_owned()))
    }

    /// What apt would install; the lists are fetched when they do not have
    /// it.
    fn candidate(&self, mode: Mode) -> Result<String, PackageError> {
        if let Some(candidate) = self.policy()?.candidate {
            return Ok(candidate);
        }
        self.update_for(mode)?;
        self.policy()?.candidate.ok_or(PackageError::Unknown)
    }

    /// That version, if the sources have it.
    fn version(&self, wanted: &str, mode: Mode) -> Result<String, PackageError> {
        if self.policy()?.versions.iter().any(|known| known == wanted) {
            return Ok(wanted.to_owned());
        }
        self.update_for(mode)?;
        let policy = self.policy()?;
        if policy.versions.iter().any(|known| known == wanted) {
            return Ok(wanted.to_owned());
        }
        if policy.versions.is_empty() {
            return Err(PackageError::Unknown);
        }
        let known = &policy.versions[..policy.versions.len().min(MAX_VERSIONS)];
        Err(PackageError::NoSuchVersion {
            wanted: wanted.to_owned(),
            known: printable(&known.join(", "), 300),
        })
    }

    fn policy(&self) -> Result<Policy, PackageError> {
        let tool = Tool::new("apt-cache")
            .args(["policy", "--", self.name])
            .env("LC_ALL", "C");
        let answer = self.tools.run(tool)?;
        if !answer.is_well() {
            return Err(failed("apt-cache policy", &answer));
        }
        Ok(read_policy(&answer.text(), self.name))
    }

    /// Fetches the lists, where something is to be done and it was not just
    /// done. A dry run goes by those that are there.
    fn update_for(&self, mode: Mode) -> Result<(), PackageError> {
        if mode == Mode::Apply {
            self.update()?;
        }
        Ok(())
    }

    fn update(&self) -> Result<(), PackageError> {
        if self.fresh.load(Ordering::Relaxed) {
            return Ok(());
        }
        let begun = Instant::now();
        loop {
            let answer = self.tools.run(self.apt_get(&["update"]).shown())?;
            if answer.is_well() {
                self.fresh.store(true, Ordering::Relaxed);
                return Ok(());
            }
            if !is_locked(&answer) {
                return Err(failed("apt-get update", &answer));
            }
            if begun.elapsed() >= self.wait.get() {
                return Err(self.locked(&answer));
            }
            self.tools
                .wait(async { tokio::time::sleep(TRY_EVERY).await })?;
        }
    }

    fn install(
        &self,
        wish: &PackageWish,
        before: Option<String>,
        target: String,
        mode: Mode,
    ) -> Result<(Change, Option<String>), PackageError> {
        let what = format!("{}={target}", self.name);
        let mut arguments = vec!["install"];
        // Whoever names a version means it, also when it is an older one.
        if matches!(wish, PackageWish::Version { .. }) {
            arguments.push("--allow-downgrades");
        }
        arguments.extend(["--", &what]);
        let transaction = self.simulate(&arguments)?;
        if !transaction.removed.is_empty() {
            return Err(would_remove(&transaction.removed));
        }
        let change = changed(
            mode,
            summary(before.as_deref(), Some(&target)),
            transaction.diff,
        );
        if mode == Mode::Check {
            return Ok((change, Some(target)));
        }
        arguments.insert(1, "--no-remove");
        let answer = self.act(&arguments)?;
        if !answer.is_well() && is_gone(&answer) && !self.fresh.load(Ordering::Relaxed) {
            // The lists name a file that the source has replaced since. What
            // is wanted is looked for again in the new ones.
            self.update()?;
            return self.ensure(wish, mode);
        }
        if !answer.is_well() {
            return Err(self.not_done("apt-get install", &answer));
        }
        match self.installed()? {
            Some(now) if now == target => Ok((change, Some(now))),
            Some(now) => Err(PackageError::NotSo {
                what: "apt-get",
                found: format!("{now} is installed"),
            }),
            None => Err(PackageError::NotSo {
                what: "apt-get",
                found: "it is not installed".to_owned(),
            }),
        }
    }

    fn remove(
        &self,
        before: Option<String>,
        mode: Mode,
    ) -> Result<(Change, Option<String>), PackageError> {
        let arguments = ["remove", "--", self.name];
        let transaction = self.simulate(&arguments)?;
        let plain = self.name.split(':').next().unwrap_or_default();
        let others: Vec<String> = transaction
            .removed
            .into_iter()
            .filter(|other| other.split(':').next() != Some(plain))
            .collect();
        if !others.is_empty() {
            return Err(would_remove(&others));
        }
        let change = changed(mode, summary(before.as_deref(), None), transaction.diff);
        if mode == Mode::Apply {
            let answer = self.act(&arguments)?;
            if !answer.is_well() {
                return Err(self.not_done("apt-get remove", &answer));
            }
            if let Some(now) = self.installed()? {
                return Err(PackageError::NotSo {
                    what: "apt-get",
                    found: format!("{now} is still installed"),
                });
            }
        }
        Ok((change, None))
    }

    fn simulate(&self, arguments: &[&str]) -> Result<Transaction, PackageError> {
        let tool = self.apt_get(&["--simulate"]).args(arguments.to_vec());
        let answer = self.tools.run(tool)?;
        if !answer.is_well() {
            return Err(failed(&format!("apt-get {}", arguments[0]), &answer));
        }
        Ok(read_transaction(&answer.text()))
    }

    fn act(&self, arguments: &[&str]) -> Result<Answer, ToolError> {
        self.tools.run(self.apt_get(arguments).shown())
    }

    fn apt_get(&self, arguments: &[&str]) -> Tool {
        let wait = self.wait.get().as_secs();
        Tool::new("apt-get")
            .args(["-y", "-q"])
            .args([
                "-o".to_owned(),
                format!("DPkg::Lock::Timeout={wait}"),
                "-o".to_owned(),
                "Dpkg::Use-Pty=0".to_owned(),
                // What an operator has changed in a configuration file stays.
                "-o".to_owned(),
                "Dpkg::Options::=--force-confdef".to_owned(),
                "-o".to_owned(),
                "Dpkg::Options::=--force-confold".to_owned(),
            ])
            .args(arguments.to_vec())
            .env("LC_ALL", "C")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("APT_LISTCHANGES_FRONTEND", "none")
            // It would ask, or restart what nobody asked to be restarted.
            .env("NEEDRESTART_MODE", "l")
    }

    fn not_done(&self, what: &str, answer: &Answer) -> PackageError {
        if is_locked(answer) {
            return self.locked(answer);
        }
        failed(what, answer)
    }

    fn locked(&self, answer: &Answer) -> PackageError {
        // Said while apt waits, on a line that is written over and over.
        let text = answer.text();
        let holder = text
            .rsplit(['\r', '\n'])
            .find(|line| line.contains("held by process"));
        let complaint = match holder {
            Some(line) => {
                let line = line.trim_start_matches("Waiting for cache lock: ");
                printable(line.split("...").next().unwrap_or_default(), 300)
            }
            None => complaint(answer),
        };
        PackageError::Locked {
            waited: self.wait,
            complaint,
        }
    }
}

fn would_remove(others: &[String]) -> PackageError {
    PackageError::WouldRemove(printable(&others.join(", "), 300))
}

fn failed(what: &str, answer: &Answer) -> PackageError {
    PackageError::Failed {
        what: what.to_owned(),
        complaint: complaint(answer),
    }
}

/// apt's own errors, where it has said some.
fn complaint(answer: &Answer) -> String {
    let said = String::from_utf8_lossy(&answer.stderr);
    let errors: Vec<&str> = said
        .lines()
        .filter_map(|line| line.strip_prefix("E: "))
        .collect();
    if errors.is_empty() {
        return answer.complaint();
    }
    printable(&errors.join("; "), 400)
}

fn is_locked(answer: &Answer) -> bool {
    let said = String::from_utf8_lossy(&answer.stderr);
    said.contains("Could not get lock") || said.contains("Unable to acquire the dpkg frontend lock")
}

/// The source has another version by now.
fn is_gone(answer: &Answer) -> bool {
    let said = String::from_utf8_lossy(&answer.stderr);
    said.contains("404  Not Found")
        || said.contains("Unable to fetch some archives")
        || said.contains("Hash Sum mismatch")
}

/// Reads what `apt-cache policy` says of one package. To a name that it does
/// not know it answers with others that are like it.
fn read_policy(text: &str, name: &str) -> Policy {
    let mut policy = Policy::default();
    let plain = name.split(':').next().unwrap_or_default();
    let mut ours = false;
    let mut table = false;
    // Versions that only the node itself has are no choice.
    let mut version: Option<String> = None;
    for line in text.lines() {
        if let Some(head) = line.strip_suffix(':').filter(|_| !line.starts_with(' ')) {
            ours = head == name || head == plain;
            table = false;
            continue;
        }
        if !ours {
            continue;
        }
        let trimmed = line.trim();
        if let Some(candidate) = trimmed.strip_prefix("Candidate: ") {
            policy.candidate = (candidate != "(none)").then(|| candidate.to_owned());
        } else if trimmed == "Version table:" {
            table = true;
        } else if table {
            let indent = line.len() - line.trim_start().len();
            let row = trimmed.strip_prefix("*** ").unwrap_or(trimmed);
            // Rows of versions are less far in than rows of sources.
            if trimmed.starts_with("*** ") || indent <= 5 {
                version = row.split(' ').next().map(str::to_owned);
            } else if !row.ends_with("/dpkg/status")
                && let Some(version) = version.take()
            {
                policy.versions.push(version);
            }
        }
    }
    policy
}

/// Reads what `apt-get --simulate` says that it would do.
fn read_transaction(text: &str) -> Transaction {
    let mut transaction = Transaction::default();
    for line in text.lines() {
        let Some((verb, rest)) = line.split_once(' ') else {
            continue;
        };
        let mut words = rest.split(' ');
        let Some(name) = words.next() else { continue };
        let old = rest
            .split_once('[')
            .filter(|(before, _)| !before.contains('('))
            .and_then(|(_, after)| after.split(']').next());
        let new = rest
            .split_once('(')
            .and_then(|(_, after)| after.split([' ', ')']).next());
        let mut diff = |mark: char, version: Option<&str>| {
            if let Some(version) = version {
                transaction
                    .diff
                    .push(printable(&format!("{mark}{name} {version}"), 300));
            }
        };
        match verb {
            "Inst" => {
                diff('-', old);
                diff('+', new);
            }
            "Remv" | "Purg" => {
                diff('-', old);
                transaction.removed.push(name.to_owned());
            }
            _ => {}
        }
    }
    if transaction.diff.len() > MAX_NAMED {
        let more = transaction.diff.len() - MAX_NAMED;
        transaction.diff.truncate(MAX_NAMED);
        transaction.diff.push(format!("… {more} more"));
    }
    transaction
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_apt_says_is_read() {
        let policy = read_policy(
            "webapp:
  Installed: 1.4.1
  Candidate: 1.4.2
  Version table:
     1.4.2 500
        500 http://deb.example.org stable/main amd64 Packages
 *** 1.4.1 100
        100 /var/lib/dpkg/status
     1.4.0 500
        500 http://deb.example.org stable/main amd64 Packages
        500 http://mirror.example.org stable/main amd64 Packages
webapp2:
  Installed: (none)
  Candidate: 9
  Version table:
     9 500
        500 http://deb.example.org stable/main amd64 Packages
",
            "webapp",
        );
        assert_eq!(policy.candidate.as_deref(), Some("1.4.2"));
        assert_eq!(policy.versions, ["1.4.2", "1.4.0"]);
        let none = "x:\n  Installed: (none)\n  Candidate: (none)\n  Version table:\n";
        let none = read_policy(none, "x:amd64");
        assert_eq!(none, Policy::default());
        assert_eq!(read_policy("", "x"), Policy::default());
        let transaction = read_transaction(
            "NOTE: This is only a simulation!
Reading package lists...
Remv old [2.0]
Inst libfoo [1.0] (1.1 Debian:12/stable [amd64]) []
Inst webapp (1.4.2 Debian:12/stable [all])
Conf libfoo (1.1 Debian:12/stable [amd64])
",
        );
        assert_eq!(
            transaction.diff,
            ["-old 2.0", "-libfoo 1.0", "+libfoo 1.1", "+webapp 1.4.2"]
        );
        assert_eq!(transaction.removed, ["old"]);
        assert_eq!(read_transaction("Inst\nInst \nRemv x\n").removed, ["x"]);
    }
}
