//! What a hypervisor holds of groups, on disk: a log that updates are appended
//! to, each synced before anything is done with it. It is written anew, as one
//! record, when it has grown.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use muster_protocol::firewall::{GroupsMark, GroupsUpdate, Holding};
use muster_protocol::names::TapName;
use serde::{Deserialize, Serialize};

/// The first line: which form the rest has.
const HEADER: &str = "muster groups 1\n";
const NAME: &str = "groups.log";
const NEW: &str = "groups.log.new";
const DAMAGED: &str = "groups.log.damaged";
const LOCK: &str = "groups.lock";
/// Below this size it is not worth writing anew.
const SMALL: u64 = 1 << 20;
/// The lock may be held a moment longer than its owner is there: by a program
/// that he was just starting.
const LOCK_WITHIN: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// One line of it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub(crate) enum Record {
    /// All that was held at that moment.
    Held {
        /// Which state.
        mark: GroupsMark,
        /// What.
        holding: Holding,
        /// The numbers of its interfaces.
        ids: BTreeMap<TapName, u16>,
    },
    /// What changed.
    Update(GroupsUpdate),
}

/// What was read of it.
#[derive(Debug)]
pub(crate) enum Found {
    /// These, whole.
    Records(Vec<Record>),
    /// It is damaged before its end, and was put aside.
    Damaged {
        /// Where it is now.
        aside: PathBuf,
    },
}

/// Why it cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// A file.
    #[error(
        "what is held of groups cannot be kept in {path}: {source}; see whether the disk is full or read-only"
    )]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Somebody else has it.
    #[error(
        "{path} is another process's; only one agent can hold the groups of a hypervisor, see `fuser {path}`"
    )]
    Locked {
        /// The lock.
        path: PathBuf,
    },
    /// What should be written cannot be.
    #[error("what is held of groups cannot be written: {0}")]
    Text(#[from] serde_json::Error),
}

/// The file, open and nobody else's.
#[derive(Debug)]
pub(crate) struct Log {
    dir: PathBuf,
    file: File,
    length: u64,
    /// Its length when it was written anew.
    first: u64,
    /// Whether the directory is to be synced before anything is relied on: the
    /// file was renamed, and that may not be on disk.
    is_loose: bool,
    /// Has the directory's own entries on disk.
    sync: fn(&Path) -> io::Result<()>,
    _lock: File,
}

impl Log {
    /// Whether there is one.
    pub(crate) fn is_there(dir: &Path) -> bool {
        dir.join(NAME).exists()
    }

    /// Opens it, or begins it. An end that was not written whole is cut off.
    pub(crate) fn open(dir: &Path) -> Result<(Self, Found), LogError> {
        let at = |path: PathBuf| move |source| LogError::File { path, source };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(at(dir.to_owned()))?;
        let lock = lock(&dir.join(LOCK))?;
        let path = dir.join(NAME);
        let mut file = open(&path).map_err(at(path.clone()))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(at(path.clone()))?;
        let (found, good) = match read(&bytes) {
            Some((records, good)) => (Found::Records(records), good),
            None => {
                let aside = dir.join(DAMAGED);
                fs::rename(&path, &aside).map_err(at(path.clone()))?;
                file = open(&path).map_err(at(path.clone()))?;
                (Found::Damaged { aside }, 0)
            }
        };
        let mut log = Self {
            dir: dir.to_owned(),
            file,
            length: u64::try_from(good).unwrap_or(u64::MAX),
            first: 0,
            is_loose: true,
            sync,
            _lock: lock,
        };
        log.begin().map_err(at(path))?;
        Ok((log, found))
    }

    /// Cuts off what is no record, and writes the header where it is missing.
    fn begin(&mut self) -> io::Result<()> {
        let header = u64::try_from(HEADER.len()).unwrap_or(u64::MAX);
        if self.length < header {
            self.length = 0;
        }
        self.file.set_len(self.length)?;
        if self.length == 0 {
            self.file.rewind()?;
            self.file.write_all(HEADER.as_bytes())?;
            self.length = header;
        }
        self.file.seek(SeekFrom::Start(self.length))?;
        self.file.sync_all()?;
        self.first = header;
        self.tie()
    }

    /// Sees that the file is found under its name when the machine goes down.
    fn tie(&mut self) -> io::Result<()> {
        if self.is_loose {
            (self.sync)(&self.dir)?;
            self.is_loose = false;
        }
        Ok(())
    }

    /// Puts what is there aside, because it cannot be used, and begins anew;
    /// where it is now.
    pub(crate) fn put_aside(&mut self) -> Result<PathBuf, LogError> {
        let (path, aside) = (self.dir.join(NAME), self.dir.join(DAMAGED));
        let mut anew = || -> io::Result<()> {
            fs::rename(&path, &aside)?;
            self.file = open(&path)?;
            self.length = 0;
            self.is_loose = true;
            self.begin()
        };
        let done = anew();
        done.map_err(self.fail())?;
        Ok(aside)
    }

    fn fail(&self) -> impl Fn(io::Error) -> LogError {
        let path = self.dir.join(NAME);
        move |source| LogError::File {
            path: path.clone(),
            source,
        }
    }

    /// Appends a record: it is on disk afterwards, or nothing of it is.
    pub(crate) fn append(&mut self, record: &Record) -> Result<(), LogError> {
        let line = line(record)?;
        self.tie().map_err(self.fail())?;
        let done = self
            .file
            .write_all(&line)
            .and_then(|()| self.file.sync_data());
        if let Err(source) = done {
            // What cannot be taken back is not followed by a line end, or is
            // a whole record that nobody was told of.
            let _ = self.file.set_len(self.length);
            let _ = self.file.seek(SeekFrom::Start(self.length));
            return Err(self.fail()(source));
        }
        self.length += u64::try_from(line.len()).unwrap_or(0);
        Ok(())
    }

    /// Whether it has grown so much that writing it anew is worth it.
    pub(crate) fn is_long(&self) -> bool {
        self.length > SMALL.max(self.first.saturating_mul(4))
    }

    /// Writes it anew: as this record alone.
    pub(crate) fn replace(&mut self, record: &Record) -> Result<(), LogError> {
        let line = line(record)?;
        let (new, path) = (self.dir.join(NEW), self.dir.join(NAME));
        let write = || -> io::Result<File> {
            let _ = fs::remove_file(&new);
            let mut file = open(&new)?;
            file.write_all(HEADER.as_bytes())?;
            file.write_all(&line)?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            Ok(file)
        };
        // From here on it is the file of that name, whatever fails then.
        self.file = write().map_err(self.fail())?;
        self.length = u64::try_from(HEADER.len() + line.len()).unwrap_or(0);
        self.first = self.length;
        self.is_loose = true;
        self.tie().map_err(self.fail())
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

fn lock(path: &Path) -> Result<File, LogError> {
    let fail = |source| LogError::File {
        path: path.to_owned(),
        source,
    };
    let file = open(path).map_err(fail)?;
    let until = Instant::now() + LOCK_WITHIN;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < until => sleep(LOOK_EVERY),
            Err(TryLockError::WouldBlock) => {
                return Err(LogError::Locked {
                    path: path.to_owned(),
                });
            }
            Err(TryLockError::Error(source)) => return Err(fail(source)),
        }
    }
}

/// Has the directory's own entries on disk.
fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn line(record: &Record) -> Result<Vec<u8>, LogError> {
    let text = serde_json::to_string(record)?;
    Ok(format!("{:08x} {text}\n", checksum(text.as_bytes())).into_bytes())
}

/// The records, and how many bytes they and the header are. What is after
/// that is an end that was not written whole. Nothing when it is damaged
/// before its end.
fn read(bytes: &[u8]) -> Option<(Vec<Record>, usize)> {
    let Some(mut rest) = bytes.strip_prefix(HEADER.as_bytes()) else {
        let cut = HEADER.as_bytes().starts_with(bytes);
        return cut.then(|| (Vec::new(), 0));
    };
    let mut all = Vec::new();
    let mut good = HEADER.len();
    while let Some(end) = rest.iter().position(|b| *b == b'\n') {
        let (line, after) = (&rest[..end], &rest[end + 1..]);
        match record(line) {
            Some(record) => all.push(record),
            None if after.is_empty() => break,
            None => return None,
        }
        good += end + 1;
        rest = after;
    }
    Some((all, good))
}

fn record(line: &[u8]) -> Option<Record> {
    let text = std::str::from_utf8(line).ok()?;
    let (sum, text) = text.split_once(' ')?;
    let sum = u32::from_str_radix(sum, 16).ok()?;
    if sum != checksum(text.as_bytes()) {
        return None;
    }
    serde_json::from_str(text).ok()
}

/// CRC-32, as in Ethernet frames.
fn checksum(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut at = 0;
        while at < 256 {
            let (mut value, mut bit) = (at as u32, 0);
            while bit < 8 {
                value = (value >> 1) ^ (0xedb8_8320 & (value & 1).wrapping_neg());
                bit += 1;
            }
            table[at] = value;
            at += 1;
        }
        table
    };
    !bytes.iter().fold(!0, |sum, byte| {
        let at = (sum ^ u32::from(*byte)) & 0xff;
        (sum >> 8) ^ TABLE[at as usize]
    })
}

#[cfg(test)]
mod tests {
    use muster_protocol::firewall::{Change, MembersChange};

    use super::*;

    fn update(sequence: u64) -> Record {
        let change = MembersChange {
            gone: false,
            add: [format!("10.0.0.{sequence}/32").parse().expect("a prefix")].into(),
            remove: [].into(),
        };
        let mark = |sequence| GroupsMark { epoch: 1, sequence };
        Record::Update(GroupsUpdate {
            base: (sequence > 1).then(|| mark(sequence - 1)),
            mark: mark(sequence),
            more: false,
            change: Change {
                members: BTreeMap::from([("group:lb".parse().expect("a group"), change)]),
                ..Change::default()
            },
        })
    }

    fn found(dir: &Path) -> (Log, Vec<Record>) {
        match Log::open(dir).expect("opens") {
            (log, Found::Records(all)) => (log, all),
            (_, Found::Damaged { .. }) => panic!("damaged"),
        }
    }

    #[test]
    fn what_was_appended_is_read_whatever_the_end_looks_like() {
        let dir = tempfile::tempdir().expect("a directory");
        let (mut log, none) = found(dir.path());
        assert!(none.is_empty());
        let mut ends = vec![usize::try_from(log.length).expect("short")];
        for sequence in 1..=3 {
            log.append(&update(sequence)).expect("appends");
            ends.push(usize::try_from(log.length).expect("short"));
        }
        drop(log);
        let path = dir.path().join(NAME);
        let bytes = fs::read(&path).expect("a file");
        assert_eq!(ends.last(), Some(&bytes.len()));
        for length in 0..=bytes.len() {
            fs::write(&path, &bytes[..length]).expect("write");
            let (mut log, all) = found(dir.path());
            let whole = ends.iter().filter(|end| **end <= length).count();
            assert_eq!(all.len(), whole.saturating_sub(1), "{length} bytes");
            // And it goes on from there.
            log.append(&update(9)).expect("appends");
            drop(log);
            let (_, again) = found(dir.path());
            assert_eq!(again.last(), Some(&update(9)));
            assert_eq!(again.len(), all.len() + 1);
        }
    }

    #[test]
    fn a_damaged_middle_is_put_aside_and_a_damaged_end_is_cut() {
        let dir = tempfile::tempdir().expect("a directory");
        let (mut log, _) = found(dir.path());
        let header = usize::try_from(log.length).expect("short");
        for sequence in 1..=3 {
            log.append(&update(sequence)).expect("appends");
        }
        drop(log);
        let path = dir.path().join(NAME);
        let bytes = fs::read(&path).expect("a file");
        let last = bytes[..bytes.len() - 1].iter().rposition(|b| *b == b'\n');
        let last = last.expect("three lines") + 1;
        for at in header..bytes.len() - 1 {
            let mut other = bytes.clone();
            other[at] ^= 0x10;
            fs::write(&path, &other).expect("write");
            let (_, read) = Log::open(dir.path()).expect("opens");
            match read {
                Found::Records(all) => {
                    // Without the line end before it, the last two are one.
                    assert!(at + 1 >= last, "byte {at}");
                    assert_eq!(all.len(), if at < last { 1 } else { 2 });
                }
                Found::Damaged { aside } => {
                    // A line end in the last record makes two of it.
                    assert!(at < last || other[at] == b'\n', "byte {at}");
                    assert_eq!(fs::read(aside).expect("kept"), other);
                    assert!(found(dir.path()).1.is_empty());
                }
            }
        }
        fs::write(&path, "something else\n").expect("write");
        let (_, read) = Log::open(dir.path()).expect("opens");
        assert!(matches!(read, Found::Damaged { .. }));
    }

    #[test]
    fn one_process_has_it_and_it_is_written_anew() {
        let dir = tempfile::tempdir().expect("a directory");
        let (mut log, _) = found(dir.path());
        let locked = Log::open(dir.path()).expect_err("locked");
        assert!(matches!(locked, LogError::Locked { .. }), "{locked}");
        let mut number = 0;
        while !log.is_long() {
            number += 1;
            log.append(&update(number % 200 + 1)).expect("appends");
        }
        let held = Record::Held {
            mark: GroupsMark {
                epoch: 1,
                sequence: number,
            },
            holding: Holding::default(),
            ids: BTreeMap::new(),
        };
        log.replace(&held).expect("is replaced");
        assert!(!log.is_long());
        log.append(&update(1)).expect("appends");
        drop(log);
        assert_eq!(found(dir.path()).1, [held, update(1)]);
        assert_eq!(checksum(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn what_comes_after_a_half_done_replacement_is_not_lost() {
        let dir = tempfile::tempdir().expect("a directory");
        let (mut log, _) = found(dir.path());
        log.append(&update(1)).expect("appends");
        log.sync = |_| Err(io::ErrorKind::StorageFull.into());
        // The new file has its name; whether that is on disk is not known.
        log.replace(&update(2)).expect_err("not synced");
        log.append(&update(3)).expect_err("it may be lost");
        log.sync = sync;
        log.append(&update(4)).expect("appends");
        drop(log);
        assert_eq!(found(dir.path()).1, [update(2), update(4)]);
    }
}
