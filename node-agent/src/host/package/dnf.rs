//! dnf and rpm.

use std::cmp::Ordering;
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

    /// As rpm compares them.
    fn compare(&self, other: &Self) -> Ordering {
        compare(&self.epoch, &other.epoch)
            .then_with(|| compare(&self.version, &other.version))
            .then_with(|| compare(&self.release, &other.release))
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
            // `upgrade` does not go back to an older one.
            (PackageWish::Version { .. }, Some(now)) if target.compare(now).is_lt() => "downgrade",
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
            "%{epoch}:%{version}-%{release}\n",
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
        // dnf sorts them as words.
        all.sort_by(|a, b| b.compare(a));
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
            // What it needed stays: nobody asked for that to go.
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
            .args(["--setopt=clean_requirements_on_remove=False"])
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

/// rpm's order of versions: runs of digits and of letters are compared one
/// after the other, `~` is before everything, also the end, and `^` right
/// after the end.
fn compare(a: &str, b: &str) -> Ordering {
    fn skip(text: &str) -> &str {
        text.trim_start_matches(|c: char| !c.is_ascii_alphanumeric() && c != '~' && c != '^')
    }
    fn run(text: &str, digits: bool) -> (&str, &str) {
        let end = text
            .find(|c: char| !c.is_ascii_alphanumeric() || c.is_ascii_digit() != digits)
            .unwrap_or(text.len());
        text.split_at(end)
    }
    let (mut a, mut b) = (skip(a), skip(b));
    loop {
        for (mark, first) in [('~', Ordering::Less), ('^', Ordering::Greater)] {
            match (a.strip_prefix(mark), b.strip_prefix(mark)) {
                (Some(rest_a), Some(rest_b)) => return compare(rest_a, rest_b),
                // A `^` is before whatever else could come.
                (Some(_), None) if mark == '^' && !b.is_empty() => return Ordering::Less,
                (None, Some(_)) if mark == '^' && !a.is_empty() => return Ordering::Greater,
                (Some(_), None) => return first,
                (None, Some(_)) => return first.reverse(),
                (None, None) => {}
            }
        }
        if a.is_empty() || b.is_empty() {
            return a.len().cmp(&b.len());
        }
        let digits = a.starts_with(|c: char| c.is_ascii_digit());
        let ((run_a, rest_a), (run_b, rest_b)) = (run(a, digits), run(b, digits));
        if run_b.is_empty() {
            // Numbers are newer than words.
            return if digits {
                Ordering::Greater
            } else {
                Ordering::Less
            };
        }
        let order = if digits {
            let (x, y) = (run_a.trim_start_matches('0'), run_b.trim_start_matches('0'));
            x.len().cmp(&y.len()).then_with(|| x.cmp(y))
        } else {
            run_a.cmp(run_b)
        };
        if order.is_ne() {
            return order;
        }
        (a, b) = (skip(rest_a), skip(rest_b));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_in_rpms_own_order() {
        // Each is older than the next.
        let sorted = [
            "0:1.0~rc1-1",
            "0:1.0-1",
            "0:1.0^git1-1",
            "0:1.0.1-1",
            "0:1.a-1",
            "0:1.9-1",
            "0:1.10-1",
            "0:1.10-2.el9",
            "0:1.10-10.el9",
            "1:0.1-1",
        ];
        // A word is older than a number: 1.a is before 1.0.1 for rpm.
        let mut all: Vec<Evr> = sorted.iter().filter_map(|t| Evr::read(t)).collect();
        all.sort_by(Evr::compare);
        let shown: Vec<String> = all.iter().map(Evr::shown).collect();
        assert_eq!(
            shown,
            [
                "1.a-1",
                "1.0~rc1-1",
                "1.0-1",
                "1.0^git1-1",
                "1.0.1-1",
                "1.9-1",
                "1.10-1",
                "1.10-2.el9",
                "1.10-10.el9",
                "1:0.1-1"
            ]
        );
        for (a, b) in [("1.01", "1.1"), ("1_0", "1.0"), ("1.0", "1.0")] {
            assert_eq!(compare(a, b), Ordering::Equal, "{a} {b}");
        }
        for (a, b) in [
            ("1.0^", "1.0"),
            ("1.0.1", "1.0^2"),
            ("2", "10~"),
            ("1a", "1"),
        ] {
            let order = compare(a, b);
            let reverse = compare(b, a);
            assert_eq!(order, reverse.reverse(), "{a} {b}");
        }
        assert_eq!(compare("1.0^", "1.0"), Ordering::Greater);
        assert_eq!(compare("1.0.1", "1.0^2"), Ordering::Greater);
        assert_eq!(compare("2", "10~"), Ordering::Less);
        assert_eq!(compare("1a", "1"), Ordering::Greater);
    }
}
