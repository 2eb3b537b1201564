//! What an agent's executable says about itself, without being run.
//!
//! Each `muster-agent` holds a marker: [`MARKER_BYTES`] bytes with its
//! version, what it speaks, which state it can read, and the platform it was
//! built for. Command line, broker and agent read it by scanning the file, so
//! that nothing that was uploaded is ever executed to find out what it is.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::text_form::text_form;

/// Size of a marker.
pub const MARKER_BYTES: usize = 512;
/// Largest executable that is taken as a release, in bytes.
pub const MAX_RELEASE: u64 = 256 << 20;
/// The program whose releases these are.
pub const PROGRAM: &str = "muster-agent";
/// Longest version, in bytes.
const MAX_VERSION: usize = 40;
/// Most capabilities in a marker.
const MAX_CAPABILITIES: usize = 32;
/// How a marker begins. What follows must be one, or it does not count: this
/// very text is in every program that looks for markers.
const HEAD: &[u8] = b"\xf7muster release\n";
/// How it ends.
const TAIL: &[u8] = b"\nend of release\xf7";

/// A marker of these parts of a JSON object, filled up with spaces: for a
/// `static` in the agent.
///
/// # Panics
/// When the parts do not fit: at compile time, where it is used.
#[must_use]
pub const fn marker(parts: &[&str]) -> [u8; MARKER_BYTES] {
    let mut out = [b' '; MARKER_BYTES];
    let mut at = 0;
    let mut i = 0;
    while i < HEAD.len() {
        out[at] = HEAD[i];
        at += 1;
        i += 1;
    }
    let mut part = 0;
    while part < parts.len() {
        let bytes = parts[part].as_bytes();
        let mut i = 0;
        while i < bytes.len() {
            out[at] = bytes[i];
            at += 1;
            i += 1;
        }
        part += 1;
    }
    assert!(at + TAIL.len() <= MARKER_BYTES, "the marker is too long");
    let mut i = 0;
    while i < TAIL.len() {
        out[MARKER_BYTES - TAIL.len() + i] = TAIL[i];
        i += 1;
    }
    out
}

/// A number from 0 to 9 as text, for [`marker`].
///
/// # Panics
/// Above 9: at compile time, where it is used.
#[must_use]
pub const fn digit(number: u32) -> &'static str {
    const DIGITS: [&str; 10] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
    DIGITS[number as usize]
}

/// A version: `1.4.2`, or `1.5.0-rc.1` before `1.5.0`.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Version {
    numbers: [u32; 3],
    pre: Option<String>,
}

/// A text that is no version.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a version is three numbers, such as 1.4.2, or 1.5.0-rc.1")]
pub struct VersionError;

impl FromStr for Version {
    type Err = VersionError;

    fn from_str(text: &str) -> Result<Self, VersionError> {
        if text.len() > MAX_VERSION {
            return Err(VersionError);
        }
        let (numbers, pre) = match text.split_once('-') {
            Some((numbers, pre)) => (numbers, Some(pre)),
            None => (text, None),
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '-';
        if pre.is_some_and(|p| p.is_empty() || !p.chars().all(plain)) {
            return Err(VersionError);
        }
        let mut parts = numbers.split('.').map(|part| {
            let digits = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
            let zero = part.len() > 1 && part.starts_with('0');
            (digits && !zero).then(|| part.parse().ok()).flatten()
        });
        let mut next = || parts.next().flatten().ok_or(VersionError);
        let numbers = [next()?, next()?, next()?];
        if parts.next().is_some() {
            return Err(VersionError);
        }
        Ok(Self {
            numbers,
            pre: pre.map(str::to_owned),
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch] = self.numbers;
        let text = match &self.pre {
            Some(pre) => format!("{major}.{minor}.{patch}-{pre}"),
            None => format!("{major}.{minor}.{patch}"),
        };
        f.pad(&text)
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        let pre = |version: &Self| {
            // Numbers go by size and before words.
            version.pre.as_ref().map(|pre| {
                pre.split('.')
                    .map(|part| {
                        let number = part.parse::<u64>().ok();
                        (number.is_none(), number, part.to_owned())
                    })
                    .collect::<Vec<_>>()
            })
        };
        self.numbers
            .cmp(&other.numbers)
            .then_with(|| match (pre(self), pre(other)) {
                (None, None) => Ordering::Equal,
                (None, Some(_)) => Ordering::Greater,
                (Some(_), None) => Ordering::Less,
                (Some(a), Some(b)) => a.cmp(&b),
            })
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// SHA-256 over the whole file of a release: its identity.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ReleaseId([u8; 32]);

impl ReleaseId {
    /// Of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The beginning, for people.
    #[must_use]
    pub fn short(&self) -> String {
        self.to_string()[..12].to_owned()
    }
}

impl fmt::Display for ReleaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for ReleaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReleaseId({self})")
    }
}

/// A text that is not 64 hexadecimal digits.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a release is named by 64 hexadecimal digits: the SHA-256 of its file")]
pub struct ReleaseIdError;

impl FromStr for ReleaseId {
    type Err = ReleaseIdError;

    fn from_str(text: &str) -> Result<Self, ReleaseIdError> {
        let bytes = data_encoding::HEXLOWER.decode(text.as_bytes());
        let bytes = bytes.ok().and_then(|b| b.try_into().ok());
        bytes.map(Self).ok_or(ReleaseIdError)
    }
}

text_form!(Version, ReleaseId);

/// What a program was built for, and which state of an agent it can use.
#[derive(
    Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, utoipa::ToSchema,
)]
#[serde(deny_unknown_fields)]
pub struct Build {
    /// Operating system: `linux`.
    pub os: String,
    /// Processor: `x86_64`, `aarch64`, …
    pub arch: String,
    /// Highest format of the state directory that it reads.
    pub state: u32,
    /// Highest format of the journal that it reads.
    pub journal: u32,
}

impl Build {
    /// `x86_64-linux`.
    #[must_use]
    pub fn platform(&self) -> String {
        format!("{}-{}", self.arch, self.os)
    }
}

/// What a marker says.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// Always [`PROGRAM`].
    pub program: String,
    /// Its version.
    pub version: Version,
    /// The protocol that it speaks.
    pub protocol: u32,
    /// What it can do, before its node's policy takes something away.
    pub capabilities: Vec<String>,
    /// Platform and state.
    pub build: Build,
}

/// Why a file is not taken as a release.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ReleaseError {
    /// No marker in it.
    #[error("it is not a muster-agent: it holds no release marker")]
    NoMarker,
    /// Several that differ.
    #[error("it holds several different release markers")]
    Ambiguous,
    /// Another program, or a marker that makes no sense.
    #[error("its release marker is not one of a muster-agent: {0}")]
    Strange(String),
    /// Not an executable.
    #[error("it is not an ELF executable")]
    NotElf,
    /// Header and marker disagree.
    #[error("its marker says {marker}, its ELF header says {elf}")]
    Machine {
        /// By the marker.
        marker: String,
        /// By the header.
        elf: String,
    },
}

impl Release {
    /// A marker that says this.
    ///
    /// # Errors
    /// When it does not fit.
    pub fn marker(&self) -> Result<[u8; MARKER_BYTES], ReleaseError> {
        let json = serde_json::to_string(self).map_err(|e| ReleaseError::Strange(e.to_string()))?;
        if json.len() > MARKER_BYTES - HEAD.len() - TAIL.len() {
            return Err(ReleaseError::Strange("it is too long".into()));
        }
        Ok(marker(&[&json]))
    }

    /// Reads a marker; `None` when these bytes are none.
    #[must_use]
    pub fn read(marker: &[u8]) -> Option<Self> {
        if marker.len() != MARKER_BYTES {
            return None;
        }
        let json = marker.strip_prefix(HEAD)?.strip_suffix(TAIL)?;
        serde_json::from_slice(json).ok()
    }

    fn check(&self) -> Result<(), ReleaseError> {
        let word = |text: &str| {
            !text.is_empty()
                && text.len() <= 32
                && text
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
        };
        let strange = |what: &str| Err(ReleaseError::Strange(what.to_owned()));
        if self.program != PROGRAM {
            return strange("it names another program");
        }
        if !word(&self.build.os) || !word(&self.build.arch) {
            return strange("its platform is no word");
        }
        if self.capabilities.len() > MAX_CAPABILITIES || !self.capabilities.iter().all(|c| word(c))
        {
            return strange("its capabilities are no words");
        }
        Ok(())
    }
}

/// Reads a file piece by piece: what it is, and its hash.
#[derive(Clone, Debug, Default)]
pub struct Inspector {
    hash: Sha256,
    size: u64,
    header: Vec<u8>,
    rest: Vec<u8>,
    found: Vec<Release>,
    ambiguous: bool,
}

/// What an [`Inspector`] has seen.
#[derive(Clone, Debug, PartialEq)]
pub struct Inspected {
    /// The file's hash.
    pub id: ReleaseId,
    /// Its size in bytes.
    pub size: u64,
    /// What it says about itself.
    pub release: Result<Release, ReleaseError>,
}

/// ELF header up to `e_machine`.
const ELF_HEADER: usize = 20;

impl Inspector {
    /// Nothing read yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The next piece.
    pub fn push(&mut self, piece: &[u8]) {
        self.hash.update(piece);
        self.size += piece.len() as u64;
        let missing = ELF_HEADER.saturating_sub(self.header.len());
        self.header.extend(piece.iter().take(missing));
        // A marker may lie across pieces.
        self.rest.extend_from_slice(piece);
        let mut from = 0;
        while let Some(at) = find(&self.rest[from..], HEAD).map(|at| from + at) {
            let Some(candidate) = self.rest.get(at..at + MARKER_BYTES) else {
                break;
            };
            if let Some(release) = Release::read(candidate)
                && !self.found.contains(&release)
            {
                self.ambiguous |= !self.found.is_empty();
                self.found = vec![release];
            }
            from = at + 1;
        }
        let keep = self.rest.len().min(MARKER_BYTES - 1);
        self.rest.drain(..self.rest.len() - keep);
    }

    /// What was read.
    #[must_use]
    pub fn finish(self) -> Inspected {
        let release = self.judge();
        Inspected {
            id: ReleaseId(self.hash.finalize().into()),
            size: self.size,
            release,
        }
    }

    fn judge(&self) -> Result<Release, ReleaseError> {
        if self.ambiguous {
            return Err(ReleaseError::Ambiguous);
        }
        let release = self.found.first().ok_or(ReleaseError::NoMarker)?;
        release.check()?;
        let elf = machine(&self.header).ok_or(ReleaseError::NotElf)?;
        if elf != release.build.arch {
            return Err(ReleaseError::Machine {
                marker: release.build.arch.clone(),
                elf,
            });
        }
        Ok(release.clone())
    }
}

/// The processor that an ELF header names, in Rust's words.
fn machine(header: &[u8]) -> Option<String> {
    let rest = header.strip_prefix(b"\x7fELF")?;
    let bytes: [u8; 2] = header.get(18..20)?.try_into().ok()?;
    // EI_DATA: 1 is little-endian.
    let number = match rest.get(1)? {
        1 => u16::from_le_bytes(bytes),
        2 => u16::from_be_bytes(bytes),
        _ => return None,
    };
    Some(match number {
        3 => "x86".into(),
        40 => "arm".into(),
        62 => "x86_64".into(),
        183 => "aarch64".into(),
        243 => "riscv64".into(),
        21 => "powerpc64".into(),
        22 => "s390x".into(),
        other => format!("machine {other}"),
    })
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let (first, last) = (needle[0], haystack.len().checked_sub(needle.len())?);
    let mut from = 0;
    while from <= last {
        let at = from + haystack[from..=last].iter().position(|b| *b == first)?;
        if haystack[at..].starts_with(needle) {
            return Some(at);
        }
        from = at + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn release() -> Release {
        Release {
            program: PROGRAM.into(),
            version: "1.4.2".parse().expect("a version"),
            protocol: 1,
            capabilities: vec!["command".into(), "upgrade".into()],
            build: Build {
                os: "linux".into(),
                arch: "x86_64".into(),
                state: 1,
                journal: 1,
            },
        }
    }

    fn file(markers: &[&[u8]]) -> Vec<u8> {
        let mut bytes = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0".to_vec();
        bytes.extend(vec![0xf7; 1_000]);
        for marker in markers {
            bytes.extend_from_slice(marker);
            bytes.extend_from_slice(b"some code");
            // As the program that looks for it holds it.
            bytes.extend_from_slice(HEAD);
            bytes.extend_from_slice(TAIL);
        }
        bytes
    }

    fn inspect(bytes: &[u8], piece: usize) -> Inspected {
        let mut inspector = Inspector::new();
        for piece in bytes.chunks(piece) {
            inspector.push(piece);
        }
        inspector.finish()
    }

    #[test]
    fn a_file_is_known_however_it_comes() {
        let marker = release().marker().expect("fits");
        let bytes = file(&[&marker]);
        for piece in [1, 7, 511, 512, 513, bytes.len()] {
            let seen = inspect(&bytes, piece);
            assert_eq!(seen.release, Ok(release()), "{piece}");
            assert_eq!(
                (seen.id, seen.size),
                (ReleaseId::of(&bytes), bytes.len() as u64)
            );
        }
        // The same marker twice is one.
        assert_eq!(
            inspect(&file(&[&marker, &marker]), 100).release,
            Ok(release())
        );
    }

    #[test]
    fn what_is_no_release_is_said_to_be_none() {
        let error = |bytes: &[u8]| inspect(bytes, 300).release.expect_err("none");
        assert_eq!(error(b""), ReleaseError::NoMarker);
        assert_eq!(error(&file(&[])), ReleaseError::NoMarker);
        let marker = release().marker().expect("fits");
        assert_eq!(error(&marker), ReleaseError::NotElf);
        let mut other = release();
        other.version = "1.4.3".parse().expect("a version");
        let second = other.marker().expect("fits");
        assert_eq!(error(&file(&[&marker, &second])), ReleaseError::Ambiguous);
        other.build.arch = "aarch64".into();
        assert_eq!(
            error(&file(&[&other.marker().expect("fits")])).to_string(),
            "its marker says aarch64, its ELF header says x86_64"
        );
        other.program = "muster".into();
        let error = error(&file(&[&other.marker().expect("fits")]));
        assert!(matches!(error, ReleaseError::Strange(_)), "{error}");
    }

    #[test]
    fn versions_are_compared_as_people_do() {
        let v = |text: &str| text.parse::<Version>().expect("a version");
        let rising = [
            "0.1.0",
            "0.1.1",
            "0.2.0-alpha",
            "0.2.0-alpha.1",
            "0.2.0-rc.2",
            "0.2.0-rc.10",
            "0.2.0",
            "0.10.0",
            "1.0.0",
        ];
        for pair in rising.windows(2) {
            assert!(v(pair[0]) < v(pair[1]), "{pair:?}");
        }
        for bad in [
            "",
            "1",
            "1.2",
            "1.2.3.4",
            "v1.2.3",
            "1.2.-3",
            "01.2.3",
            "1.2.3-",
            "1.2.3-\u{1b}",
        ] {
            assert!(bad.parse::<Version>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..3_000), piece in 1usize..700) {
            let seen = inspect(&bytes, piece);
            prop_assert_eq!(seen.id, ReleaseId::of(&bytes));
        }
    }
}
