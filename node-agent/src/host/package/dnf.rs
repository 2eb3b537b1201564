//! dnf and rpm.

use std::time::{Duration, Instant};

use muster_protocol::envelope::Mode;
use muster_protocol::text::printable;
use muster_protocol::units::Span;
use muster_scenarios::node::{Change, PackageWish};

use super::{PackageError, changed, summary};
use crate::host::tools::{Answer, Tool, Tools};

/// Versions that are named to somebody who asked for another one.
const MAX_VERSIONS: usize = 8;
/// How often a lock is tried that dnf does not wait for.
const TRY_EVERY: Duration = Duration::from_secs(1);

pub(super) struct Dnf<'a> {
    tools: &'a Tools,
    name: &'a str,
    wait: Span,
}

/// A version as rpm has it.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Evr {
    epoch: String,
    version: String,
    release: String,
}

impl Evr {
    /// Reads `epoch:version-release`, the epoch being left out where it is 0.
    fn read(text: &str) -> Option<Self> {
        let (epoch, rest) = text.split_once(':').unwrap_or(("0", text));
        let (version, release) = rest.rsplit_once('-')?;
        let epoch = if matches!(epoch, "" | "(none)") {
            "0"
        } else {
            epoch
        };
        Some(Self {
            epoch: epoch.to_owned(),
            version: version.to_owned(),
            release: release.to_owned(),
        })
    }

    fn shown(&self) -> String {
        let rest = format!("{}-{}", self.version, self.release);
        if self.epoch == "0" {
            rest
        } else {
            format!("{}:{rest}", self.epoch)
        }
    }

    /// Whether somebody who asked for `wanted` means this one: the release
    /// and the epoch may be left out.
    fn is(&self, wanted: &str) -> bool {
        let rest = format!("{}-{}", self.version, self.release);
        wanted == self.version
            || wanted == rest
            || wanted == format!("{}:{rest}", self.epoch)
            || wanted == format!("{}:{}", self.epoch, self.version)
    }
}

impl<'a> Dnf<'a> {
    pub(super) fn new(tools: &'a Tools, name: &'a str, wait: Span) -> Self {
        Self { tools, name, wait }
    }

    /// The change, and the version that is there after it.
    pub(super) fn ensure(
        &self,
        wish: &PackageWish,
        mode: Mode,
    ) -> Result<(Change, Option<String>), PackageError> {
        let before = self.installed()?;
        let shown = before.as_ref().map(Evr::shown);
        let unchanged = Ok((Change::Unchanged, shown.clone()));
        let target = match (wish, &before) {
            (PackageWish::Absent, None) => return unchanged,
            (PackageWish::Absent, Some(_)) => return self.remove(shown, mode),
            (PackageWish::Installed, Some(_)) => return unchanged,
            (PackageWish::Version { version }, Some(now)) if now.is(version) => return unchanged,
            (PackageWish::Installed | PackageWish::Latest, None) => self
                .available()?
                .into_iter()
                .next()
                .ok_or(PackageError::Unknown)?,
            // dnf may know newer ones that a pin or a module hides; it is
            // asked what it would do.
            (PackageWish::Latest, Some(_)) => match self.update()? {
                Some(newer) => newer,
                None => return unchanged,
            },
            (PackageWish::Version { version }, _) => self.version(version)?,
        };
        let after = target.shown();
        if shown.as_ref() == Some(&after) {
            return unchanged;
        }
        let change = changed(
            mode,
            summary(shown.as_deref(), Some(&after)),
            difference(self.name, shown.as_deref(), Some(&after)),
        );
        if mode == Mode::Check {
            return Ok((change, Some(after)));
        }
        let what = format!("{}-{after}", self.name);
        let verb = match (wish, &before) {
            (PackageWish::Version { .. }, Some(_)) => self.direction(&after)?,
            (_, Some(_)) => "upgrade",
            (_, None) => "install",
        };
        self.act(verb, &what)?;
        match self.installed()? {
            Some(now) if now == target => Ok((change, Some(after))),
            found => Err(PackageError::NotSo {
                what: "dnf",
                found: match found {
                    Some(now) => format!("{} is installed", now.shown()),
                    None => "it is not installed".to_owned(),
                },
            }),
        }
    }

    fn installed(&self) -> Result<Option<Evr>, PackageError> {
        let format = "%{EPOCHNUM}:%{VERSION}-%{RELEASE}\\n";
        let tool = Tool::new("rpm")
            .args(["-q", "--qf", format, "--", self.name])
            .env("LC_ALL", "C");
        let answer = self.tools.run(tool)?;
        if answer.exit == Some(1) {
            return Ok(None);
        }
        if !answer.is_well() {
            return Err(failed("rpm -q", &answer));
        }
        // The newest is last where several are kept, as of a kernel.
        let text = answer.text();
        Ok(text
            .lines()
            .filter_map(|line| Evr::read(line.trim()))
            .next_back())
    }

    /// What the sources have, newest first.
    fn available(&self) -> Result<Vec<Evr>, PackageError> {
        let tool = self.dnf(&[
            "repoquery",
            "--qf",
            "%{epoch}:%{version}-%{release}\\n",
            self.name,
        ]);
        let answer = self.tools.run(tool)?;
        if !answer.is_well() {
            return Err(self.not_done("dnf repoquery", &answer));
        }
        let text = answer.text();
        let mut all: Vec<Evr> = text
            .lines()
            .filter_map(|line| Evr::read(line.trim()))
            .collect();
        all.reverse();
        all.dedup();
        Ok(all)
    }

    /// The version to which dnf would go from the one that is there.
    fn update(&self) -> Result<Option<Evr>, PackageError> {
        let answer = self.tools.run(self.dnf(&["check-update", self.name]))?;
        match answer.exit {
            Some(0) => Ok(None),
            Some(100) => {
                let text = answer.text();
                let found = text.lines().find_map(|line| {
                    let mut words = line.split_ascii_whitespace();
                    let (name, _arch) = words.next()?.rsplit_once('.')?;
                    let version = Evr::read(words.next()?)?;
                    (name == self.name).then_some(version)
                });
                Ok(found)
            }
            _ => Err(self.not_done("dnf check-update", &answer)),
        }
    }

    fn version(&self, wanted: &str) -> Result<Evr, PackageError> {
        let all = self.available()?;
        if let Some(found) = all.iter().find(|one| one.is(wanted)) {
            return Ok(found.clone());
        }
        if all.is_empty() {
            return Err(PackageError::Unknown);
        }
        let known: Vec<String> = all.iter().take(MAX_VERSIONS).map(Evr::shown).collect();
        Err(PackageError::NoSuchVersion {
            wanted: wanted.to_owned(),
            known: printable(&known.join(", "), 300),
        })
    }

    /// `dnf install` does not go back to an older version.
    fn direction(&self, after: &str) -> Result<&'static str, PackageError> {
        let newer = self.update()?.is_some_and(|newest| newest.shown() == after);
        if newer {
            return Ok("upgrade");
        }
        let all = self.available()?;
        let place = |shown: &str| all.iter().position(|one| one.shown() == shown);
        let now = self.installed()?.map(|now| now.shown()).unwrap_or_default();
        Ok(match (place(after), place(&now)) {
            (Some(after), Some(now)) if after < now => "upgrade",
            _ => "downgrade",
        })
    }

    fn remove(
        &self,
        before: Option<String>,
        mode: Mode,
    ) -> Result<(Change, Option<String>), PackageError> {
        let change = changed(
            mode,
            summary(before.as_deref(), None),
            difference(self.name, before.as_deref(), None),
        );
        // Who needs it goes with it, as far as dnf is concerned.
        let tool = Tool::new("rpm")
            .args(["-e", "--test", "--", self.name])
            .env("LC_ALL", "C");
        let answer = self.tools.run(tool)?;
        if !answer.is_well() {
            let said = String::from_utf8_lossy(&answer.stderr);
            let needed: Vec<&str> = said
                .lines()
                .filter_map(|line| line.rsplit_once("needed by "))
                .map(|(_, who)| who.trim().trim_start_matches("(installed) "))
                .collect();
            if needed.is_empty() {
                return Err(failed("rpm -e --test", &answer));
            }
            return Err(PackageError::WouldRemove(printable(
                &needed.join(", "),
                300,
            )));
        }
        if mode == Mode::Apply {
            self.act("remove", self.name)?;
            if let Some(now) = self.installed()? {
                return Err(PackageError::NotSo {
                    what: "dnf",
                    found: format!("{} is still installed", now.shown()),
                });
            }
        }
        Ok((change, None))
    }

    /// Changes something; dnf itself waits for its lock, rpm's is tried again.
    fn act(&self, verb: &'static str, what: &str) -> Result<(), PackageError> {
        let begun = Instant::now();
        loop {
            let tool = self.dnf(&[verb, what]).shown();
            let answer = self.tools.run(tool)?;
            if answer.is_well() {
                return Ok(());
            }
            if !is_locked(&answer) || begun.elapsed() >= self.wait.get() {
                return Err(self.not_done(&format!("dnf {verb}"), &answer));
            }
            self.tools
                .wait(async { tokio::time::sleep(TRY_EVERY).await })?;
        }
    }

    fn dnf(&self, arguments: &[&str]) -> Tool {
        Tool::new("dnf")
            .args(["-y", "-q", "--color=never"])
            .args(arguments.to_vec())
            .env("LC_ALL", "C")
    }

    fn not_done(&self, what: &str, answer: &Answer) -> PackageError {
        if is_locked(answer) {
            return PackageError::Locked {
                waited: self.wait,
                complaint: answer.complaint(),
            };
        }
        failed(what, answer)
    }
}

fn difference(name: &str, before: Option<&str>, after: Option<&str>) -> Vec<String> {
    let line = |mark: char, version: &str| printable(&format!("{mark}{name} {version}"), 300);
    let before = before.map(|version| line('-', version));
    let after = after.map(|version| line('+', version));
    before.into_iter().chain(after).collect()
}

fn failed(what: &str, answer: &Answer) -> PackageError {
    PackageError::Failed {
        what: what.to_owned(),
        complaint: answer.complaint(),
    }
}

fn is_locked(answer: &Answer) -> bool {
    let said = String::from_utf8_lossy(&answer.stderr);
    said.contains("can't create transaction lock")
        || said.contains("Failed to obtain the transaction lock")
}
