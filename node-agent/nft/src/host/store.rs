//! What is known of changes, on the disk.
//!
//! ```text
//! lock                    held by the agent as long as it makes a change
//! change.NUMBER.json      a change in flight
//! deadline.NUMBER         until when it can be confirmed
//! undoing.NUMBER.json     a change that is taken back
//! confirmed.json          the change whose rules are to be in force
//! history/NUMBER.json     what was tried, and what was before it
//! history/NUMBER.end.json how it ended
//! ```
//!
//! A change is decided by renaming its `change.NUMBER.json`, once. All else
//! of its end can be lost without harm.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use muster_protocol::firewall::host::Resolved;
use muster_protocol::text::printable;
use muster_protocol::units::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tracing::warn;

/// How many changes are kept.
pub(super) const KEPT: usize = 50;
/// Most bytes of a file that are read.
const MAX_FILE: u64 = 64 << 20;

/// Why what is known of changes cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The operating system said no.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error(
        "{path} is damaged: {why}; what is in force stays in force, and a start of the machine puts nothing in force from it; {}", mend(.path)
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// In which way.
        why: String,
    },
}

/// What people can do about a file.
fn mend(path: &Path) -> &'static str {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    match name.starts_with("change.") || name.starts_with("undoing.") {
        true => "it is of a change that was in flight: move it away",
        false => {
            "move it away, with the `confirmed.json` by which the confirmed rules are known (or the `change.NUMBER.json` of a change in flight), and put the node's rules in force again"
        }
    }
}

impl StoreError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}

/// Which change: the text of its run and step, or of whatever made it.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ChangeId(String);

/// Why a text is no change.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{0}` names no change; it takes 1 to 100 letters, digits and `._:/-`")]
pub struct ChangeIdError(String);

impl fmt::Display for ChangeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for ChangeId {
    type Err = ChangeIdError;

    fn from_str(text: &str) -> Result<Self, ChangeIdError> {
        let fits = (1..=100).contains(&text.len());
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"._:/-".contains(&b);
        match fits && text.bytes().all(plain) {
            true => Ok(Self(text.to_owned())),
            false => Err(ChangeIdError(printable(text, 40))),
        }
    }
}

impl Serialize for ChangeId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ChangeId {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Who put old rules back.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// The agent that had made the change.
    Agent,
    /// The guard.
    Guard,
    /// The next start of the agent, or of the machine.
    Restore,
}

impl By {
    /// Who tries again when it failed.
    pub(super) fn tries_again(self) -> &'static str {
        match self {
            Self::Agent | Self::Guard => {
                "the guard goes on trying, and so does the next start of the agent or `muster-agent firewall-restore`"
            }
            // Nobody stands guard at a start.
            Self::Restore => {
                "the next start of the agent tries again, and so does `muster-agent firewall-restore`"
            }
        }
    }
}

/// How a change ended.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Ended {
    /// Its rules stay.
    Confirmed {
        /// When.
        at: Timestamp,
    },
    /// Its rules were in force for a while.
    RolledBack {
        /// When.
        at: Timestamp,
        /// For how long, in milliseconds.
        after_ms: u64,
        /// Why they did not stay.
        why: String,
        /// Who put the old ones back.
        by: By,
    },
    /// Its rules were never in force.
    NotApplied {
        /// When.
        at: Timestamp,
        /// Why.
        why: String,
    },
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Confirmed { .. } => f.write_str("confirmed"),
            Self::RolledBack { after_ms, why, .. } => {
                let secs = Duration::from_millis(*after_ms).as_secs();
                write!(f, "rolled back after {secs} s; {why}")
            }
            Self::NotApplied { why, .. } => write!(f, "not applied: {why}"),
        }
    }
}

/// A change, as people see it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Entry {
    /// Its number on this node; rises.
    pub number: u64,
    /// Which.
    pub change: ChangeId,
    /// When it was begun.
    pub at: Timestamp,
    /// What was tried.
    pub rules: Resolved,
    /// The same as text.
    pub text: String,
    /// What it changed, rule by rule.
    pub difference: Vec<String>,
    /// How it ended; nothing while it has not, or when it is not known.
    pub ended: Option<Ended>,
    /// Whether its rules are those that are to be in force.
    pub in_force: bool,
}

/// What was tried, and what was before it.
///
/// Another version may have written more into it, as into the other files:
/// what is not known is no reason to be without rules.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Record {
    pub(super) number: u64,
    pub(super) change: ChangeId,
    pub(super) at: Timestamp,
    pub(super) within_ms: u64,
    pub(super) rules: Resolved,
    pub(super) text: String,
    pub(super) difference: Vec<String>,
    /// The table as it was; nothing when there was none.
    pub(super) old: Option<String>,
}

/// What of a record is needed to put rules in force again. The rules need not
/// be such as this version would take.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Kept {
    pub(super) number: u64,
    pub(super) change: ChangeId,
    pub(super) at: Timestamp,
    #[serde(default)]
    pub(super) within_ms: u64,
    pub(super) text: String,
    pub(super) old: Option<String>,
    #[serde(default)]
    rules: Value,
}

impl Kept {
    /// The table without its raw lines, if there are any.
    pub(super) fn without_raw(&self) -> Option<String> {
        let rules = self.rules.pointer("/rules/rules")?.as_array()?;
        let mut raw: BTreeMap<&str, usize> = BTreeMap::new();
        for rule in rules.iter().filter_map(|rule| rule.get("raw")?.as_str()) {
            *raw.entry(rule.trim_matches(' ')).or_default() += 1;
        }
        // A line that is there more often is one of muster's own, too.
        let is_raw = |line: &str| {
            let times = || self.text.lines().filter(|own| own.trim() == line).count();
            raw.get(line).is_some_and(|&known| known >= times())
        };
        let kept: Vec<&str> = self
            .text
            .lines()
            .filter(|line| !is_raw(line.trim()))
            .collect();
        (!raw.is_empty()).then(|| format!("{}\n", kept.join("\n")))
    }
}

impl From<&Record> for Kept {
    fn from(record: &Record) -> Self {
        Self {
            number: record.number,
            change: record.change.clone(),
            at: record.at,
            within_ms: record.within_ms,
            text: record.text.clone(),
            old: record.old.clone(),
            rules: serde_json::to_value(&record.rules).unwrap_or_default(),
        }
    }
}

/// A change in flight.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Marker {
    pub(super) number: u64,
    pub(super) change: ChangeId,
    /// Nobody else's, ever: the name of the chain that stands for it.
    pub(super) token: String,
    /// Of which start of the machine its times are.
    pub(super) boot_id: String,
    /// When it was begun, in milliseconds since then.
    pub(super) begun_ms: u64,
    /// Until when it can be confirmed at most.
    pub(super) latest_ms: u64,
}

#[derive(Deserialize, Serialize)]
struct End {
    ended: Ended,
    /// The table, when it was confirmed.
    listing: Option<String>,
}

/// How a change was decided.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Decided {
    /// By this call.
    Now,
    /// It was before.
    Before,
}

/// Held as long as a change is made.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

/// The directory.
#[derive(Clone, Debug)]
pub(super) struct Store {
    dir: PathBuf,
}

impl Store {
    /// Opens it, or makes it, for its owner alone.
    pub(super) fn open(dir: &Path) -> Result<Self, StoreError> {
        let store = Self {
            dir: dir.to_owned(),
        };
        let history = store.dir.join("history");
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&history)
            .map_err(StoreError::io("cannot make", &history))?;
        store.lock_file()?;
        Ok(store)
    }

    /// What is there already; nothing is made.
    pub(super) fn existing(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
        }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    fn lock_file(&self) -> Result<File, StoreError> {
        let path = self.dir.join("lock");
        OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&path)
            .map_err(StoreError::io("cannot open", &path))
    }

    /// Takes the lock, unless somebody has it.
    pub(super) fn lock(&self) -> Result<Option<Lock>, StoreError> {
        let file = self.lock_file()?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Lock { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(e)) => {
                Err(StoreError::io("cannot lock", &self.dir.join("lock"))(e))
            }
        }
    }

    pub(super) fn change_path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("change.{number}.json"))
    }

    pub(super) fn undoing_path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("undoing.{number}.json"))
    }

    fn deadline_path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("deadline.{number}"))
    }

    fn record_path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("history/{number}.json"))
    }

    fn end_path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("history/{number}.end.json"))
    }

    /// Names like `PREFIX.NUMBER.json` in a directory, sorted.
    fn numbers(&self, dir: &Path, prefix: &str) -> Result<Vec<u64>, StoreError> {
        let entries = fs::read_dir(dir).map_err(StoreError::io("cannot read", dir))?;
        let number = |name: &str| -> Option<u64> {
            let name = name.strip_prefix(prefix)?.strip_suffix(".json")?;
            name.parse().ok()
        };
        let mut numbers: Vec<u64> = entries
            .flatten()
            .filter_map(|entry| number(entry.file_name().to_str()?))
            .collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// The number of the next change.
    pub(super) fn next(&self) -> Result<u64, StoreError> {
        let known = self.numbers(&self.dir.join("history"), "")?;
        let now = self.marker("confirmed.json")?.map_or(0, |m| m.number);
        Ok(known.last().copied().unwrap_or(0).max(now) + 1)
    }

    /// Writes down what is to be tried, and then that it is.
    pub(super) fn begin(&self, record: &Record, marker: &Marker) -> Result<(), StoreError> {
        self.write(&self.record_path(record.number), record)?;
        self.write(&self.change_path(marker.number), marker)
    }

    /// Says until when it can be confirmed.
    pub(super) fn set_deadline(&self, number: u64, at_ms: u64) -> Result<(), StoreError> {
        self.write(&self.deadline_path(number), &at_ms)
    }

    /// Until when it can be confirmed, once that is said: then its rules may
    /// be in force.
    pub(super) fn deadline_set(&self, number: u64) -> Option<u64> {
        self.read(&self.deadline_path(number)).ok().flatten()
    }

    /// Takes that away.
    pub(super) fn forget_deadline(&self, number: u64) {
        let _ = fs::remove_file(self.deadline_path(number));
    }

    /// Until when it can be confirmed at most.
    pub(super) fn deadline(&self, marker: &Marker) -> u64 {
        let set = self.deadline_set(marker.number);
        set.unwrap_or(marker.latest_ms).min(marker.latest_ms)
    }

    /// A change in flight.
    pub(super) fn in_flight(&self) -> Result<Option<Marker>, StoreError> {
        self.newest("change.")
    }

    /// A change that is being taken back.
    pub(super) fn undoing(&self) -> Result<Option<Marker>, StoreError> {
        self.newest("undoing.")
    }

    fn newest(&self, prefix: &str) -> Result<Option<Marker>, StoreError> {
        match self.numbers(&self.dir, prefix)?.last() {
            Some(number) => self.marker(&format!("{prefix}{number}.json")),
            None => Ok(None),
        }
    }

    fn marker(&self, name: &str) -> Result<Option<Marker>, StoreError> {
        self.read(&self.dir.join(name))
    }

    /// Decides that the rules stay.
    pub(super) fn confirm(&self, marker: &Marker) -> Result<Decided, StoreError> {
        self.decide(marker, &self.dir.join("confirmed.json"))
    }

    /// Decides that they do not.
    pub(super) fn refuse(&self, marker: &Marker) -> Result<Decided, StoreError> {
        self.decide(marker, &self.undoing_path(marker.number))
    }

    fn decide(&self, marker: &Marker, to: &Path) -> Result<Decided, StoreError> {
        let from = self.change_path(marker.number);
        match fs::rename(&from, to) {
            Ok(()) => {
                // Renamed it is, for all who look. Only a machine that loses
                // its power at this moment may find it as it was.
                if let Err(e) = self.sync(&self.dir) {
                    warn!(change = %marker.change, "how a change was decided may not be on the disk yet: {e}");
                }
                Ok(Decided::Now)
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Decided::Before),
            Err(e) => Err(StoreError::io("cannot rename", &from)(e)),
        }
    }

    /// Whether it is being taken back.
    pub(super) fn is_undoing(&self, number: u64) -> bool {
        self.undoing_path(number).exists()
    }

    /// Whether nothing is known of it any more.
    pub(super) fn is_forgotten(&self, number: u64) -> bool {
        let gone = |path: PathBuf| matches!(path.try_exists(), Ok(false));
        gone(self.record_path(number)) && gone(self.end_path(number))
    }

    /// Whether its rules are those that are to be in force.
    pub(super) fn is_confirmed(&self, number: u64) -> bool {
        let confirmed = self.marker("confirmed.json").ok().flatten();
        confirmed.is_some_and(|marker| marker.number == number)
    }

    /// Writes down how it ended, as far as the disk lets it, and that it has.
    pub(super) fn end(
        &self,
        number: u64,
        ended: &Ended,
        listing: Option<String>,
    ) -> Result<(), StoreError> {
        let end = End {
            ended: ended.clone(),
            listing,
        };
        let written = self.write(&self.end_path(number), &end);
        // A disk that is full still takes files away.
        self.forget_deadline(number);
        let undoing = self.undoing_path(number);
        match fs::remove_file(&undoing) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(StoreError::io("cannot remove", &undoing)(e));
            }
            _ => {}
        }
        self.sync(&self.dir)?;
        self.prune();
        written
    }

    /// How it ended.
    pub(super) fn ended(&self, number: u64) -> Option<Ended> {
        let end = self.read::<End>(&self.end_path(number)).ok().flatten();
        end.map(|end| end.ended)
    }

    /// The table as it was when the change was confirmed.
    pub(super) fn listing(&self, number: u64) -> Result<Option<String>, StoreError> {
        let end = self.read::<End>(&self.end_path(number))?;
        Ok(end.and_then(|end| end.listing))
    }

    /// What was tried.
    pub(super) fn record(&self, number: u64) -> Result<Record, StoreError> {
        self.of_number(number, |record: &Record| record.number)
    }

    /// What of it is needed to put rules in force again.
    pub(super) fn kept(&self, number: u64) -> Result<Kept, StoreError> {
        self.of_number(number, |kept: &Kept| kept.number)
    }

    fn of_number<T: DeserializeOwned>(
        &self,
        number: u64,
        own: impl Fn(&T) -> u64,
    ) -> Result<T, StoreError> {
        let path = self.record_path(number);
        match self.read(&path)? {
            Some(record) if own(&record) == number => Ok(record),
            Some(_) => Err(StoreError::Damaged {
                path,
                why: "it is of another change".into(),
            }),
            None => Err(StoreError::Damaged {
                path,
                why: "it is not there".into(),
            }),
        }
    }

    /// The change whose rules are to be in force.
    pub(super) fn confirmed(&self) -> Result<Option<Record>, StoreError> {
        match self.marker("confirmed.json")? {
            Some(marker) => self.record(marker.number).map(Some),
            None => Ok(None),
        }
    }

    /// What of that change is needed to put its rules in force.
    pub(super) fn confirmed_kept(&self) -> Result<Option<Kept>, StoreError> {
        match self.marker("confirmed.json")? {
            Some(marker) => self.kept(marker.number).map(Some),
            None => Ok(None),
        }
    }

    /// For people.
    pub(super) fn entry(&self, record: Record) -> Entry {
        let in_force = self.is_confirmed(record.number);
        let ended = self.ended(record.number);
        Entry {
            number: record.number,
            // Its end could not be written down.
            ended: ended.or(in_force.then_some(Ended::Confirmed { at: record.at })),
            change: record.change,
            at: record.at,
            rules: record.rules,
            text: record.text,
            difference: record.difference,
            in_force,
        }
    }

    /// The last changes, the newest first.
    pub(super) fn history(&self) -> Result<Vec<Entry>, StoreError> {
        let numbers = self.numbers(&self.dir.join("history"), "")?;
        let records = numbers.into_iter().rev().take(KEPT);
        Ok(records
            .filter_map(|number| self.record(number).ok())
            .map(|record| self.entry(record))
            .collect())
    }

    /// Forgets what is too old.
    fn prune(&self) {
        let Ok(numbers) = self.numbers(&self.dir.join("history"), "") else {
            return;
        };
        let confirmed = self.marker("confirmed.json").ok().flatten();
        let confirmed = confirmed.map(|marker| marker.number);
        for number in numbers.into_iter().rev().skip(KEPT) {
            // What is in force is needed at the next start.
            if Some(number) != confirmed {
                let _ = fs::remove_file(self.record_path(number));
                let _ = fs::remove_file(self.end_path(number));
            }
        }
    }

    /// A file that is whole, or not there.
    pub(super) fn write<T: Serialize>(&self, path: &Path, value: &T) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec(value).map_err(|e| StoreError::Io {
            action: "cannot write",
            path: path.to_owned(),
            source: e.into(),
        })?;
        let mut part = path.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        let written = || -> io::Result<()> {
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&part)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            fs::rename(&part, path)
        };
        if let Err(e) = written() {
            let _ = fs::remove_file(&part);
            return Err(StoreError::io("cannot write", path)(e));
        }
        self.sync(path.parent().unwrap_or(&self.dir))
    }

    fn sync(&self, dir: &Path) -> Result<(), StoreError> {
        let synced = File::open(dir).and_then(|dir| dir.sync_all());
        synced.map_err(StoreError::io("cannot write", dir))
    }

    fn read<T: DeserializeOwned>(&self, path: &Path) -> Result<Option<T>, StoreError> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(StoreError::io("cannot read", path)(e)),
        };
        let mut bytes = Vec::new();
        file.take(MAX_FILE)
            .read_to_end(&mut bytes)
            .map_err(StoreError::io("cannot read", path))?;
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|e| StoreError::Damaged {
                path: path.to_owned(),
                why: e.to_string(),
            })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

    use super::*;

    #[test]
    fn what_was_renamed_is_decided() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path()).expect("opened");
        let marker = Marker {
            number: 1,
            change: "run/0".parse().expect("a change"),
            token: "a".into(),
            boot_id: "b".into(),
            begun_ms: 0,
            latest_ms: 1,
        };
        let path = store.change_path(1);
        store.write(&path, &marker).expect("written");
        // It can be renamed in there, and not be opened to be synced.
        let mode = |mode| fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode));
        mode(0o300).expect("set");
        let own = store.clone();
        let confirm = std::thread::spawn(move || {
            let none = CapabilitySet::empty();
            let none = CapabilitySets {
                effective: none,
                permitted: none,
                inheritable: none,
            };
            set_capabilities(None, none).expect("it may have fewer");
            assert!(own.sync(&own.dir).is_err());
            own.confirm(&marker)
        });
        let decided = confirm.join().expect("it does not panic");
        mode(0o700).expect("set");
        assert_eq!(decided.expect("decided"), Decided::Now);
        assert!(store.is_confirmed(1));
    }
}
