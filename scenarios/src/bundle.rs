//! A scenario as it is stored and sent: a script with its templates and
//! files, under one hash.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use muster_protocol::envelope::BundleHash;
use muster_protocol::text::printable;
use sha2::{Digest as _, Sha256};

/// Most bytes of the script.
pub const MAX_SCRIPT: usize = 256 * 1024;
/// Most files, the script counted.
pub const MAX_FILES: usize = 256;
/// Most bytes of everything together.
pub const MAX_BYTES: usize = 4 * 1024 * 1024;
/// Most bytes of a path.
const MAX_PATH: usize = 200;
/// The script's path in every bundle, so that its hash does not depend on
/// what its author's file was called.
pub const SCRIPT: &str = "scenario.rhai";

/// A path inside a bundle: relative, with `/`, of plain names. It can never
/// leave the directory into which a bundle is unpacked.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct BundlePath(String);

impl BundlePath {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BundlePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for BundlePath {
    type Err = BundleError;

    fn from_str(text: &str) -> Result<Self, BundleError> {
        let fail = |why| {
            Err(BundleError::Path {
                path: printable(text, 80),
                why,
            })
        };
        if text.len() > MAX_PATH {
            return fail("it is longer than 200 bytes");
        }
        for part in text.split('/') {
            let plain = part
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
            if part.is_empty() || !plain || part.starts_with('.') || part.starts_with('-') {
                return fail(
                    "each part takes letters, digits, `.`, `_` and `-`, and begins with a letter, a digit or `_`",
                );
            }
        }
        Ok(Self(text.to_owned()))
    }
}

/// Why something is no bundle.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BundleError {
    /// A file's name.
    #[error("`{path}` cannot be a file of a scenario: {why}")]
    Path {
        /// It.
        path: String,
        /// Why not.
        why: &'static str,
    },
    /// No script.
    #[error("there is no script `{SCRIPT}`")]
    NoScript,
    /// The script is not UTF-8.
    #[error("the script is not UTF-8 text (byte {0})")]
    NotText(usize),
    /// Over a limit.
    #[error("{what}: {found}, at most {most} are allowed")]
    TooLarge {
        /// What.
        what: &'static str,
        /// How much there is.
        found: usize,
        /// How much there may be.
        most: usize,
    },
}

/// A scenario's content. Equal content has an equal hash, whatever its author
/// called the files it came from.
#[derive(Clone, Eq, PartialEq)]
pub struct Bundle {
    script: String,
    files: BTreeMap<BundlePath, Vec<u8>>,
    hash: BundleHash,
}

impl fmt::Debug for Bundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bundle")
            .field("hash", &self.hash)
            .field("files", &self.files.keys().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

impl Bundle {
    /// From a script and the files beside it, which do not hold the script.
    ///
    /// # Errors
    /// [`BundleError`]: a limit.
    pub fn new(script: String, files: BTreeMap<BundlePath, Vec<u8>>) -> Result<Self, BundleError> {
        let at_most = |what, found, most| {
            if found > most {
                Err(BundleError::TooLarge { what, found, most })
            } else {
                Ok(())
            }
        };
        at_most("bytes of the script", script.len(), MAX_SCRIPT)?;
        at_most("files", files.len() + 1, MAX_FILES)?;
        let bytes = script.len() + files.values().map(Vec::len).sum::<usize>();
        at_most("bytes of all files", bytes, MAX_BYTES)?;
        if files.keys().any(|path| path.as_str() == SCRIPT) {
            return Err(BundleError::Path {
                path: SCRIPT.to_owned(),
                why: "it is the script itself",
            });
        }
        let hash = hash(&script, &files);
        Ok(Self {
            script,
            files,
            hash,
        })
    }

    /// The script's text.
    #[must_use]
    pub fn script(&self) -> &str {
        &self.script
    }

    /// What the script of the scenario with this name is called in messages:
    /// `deploy.rhai` where it is all that there is, as people write it then,
    /// and `deploy/scenario.rhai` in a directory.
    #[must_use]
    pub fn script_file(&self, name: &str) -> String {
        if self.files.is_empty() {
            format!("{name}.rhai")
        } else {
            format!("{name}/{SCRIPT}")
        }
    }

    /// Everything but the script.
    #[must_use]
    pub fn files(&self) -> &BTreeMap<BundlePath, Vec<u8>> {
        &self.files
    }

    /// What pins it.
    #[must_use]
    pub fn hash(&self) -> BundleHash {
        self.hash
    }

    /// The bytes in which it is stored and sent; [`Bundle::unpack`] reads
    /// them. They are what is hashed.
    #[must_use]
    pub fn pack(&self) -> Vec<u8> {
        pack(&self.script, &self.files)
    }

    /// Reads what [`Bundle::pack`] wrote, if it is the bundle of this hash: a
    /// run's is pinned for its life.
    ///
    /// # Errors
    /// [`UnpackError`]: another bundle, hostile or damaged bytes.
    pub fn unpack_as(bytes: &[u8], hash: BundleHash) -> Result<Self, UnpackError> {
        let found = BundleHash::of(bytes);
        if found != hash {
            return Err(UnpackError::Another {
                wanted: hash,
                found,
            });
        }
        Self::unpack(bytes)
    }

    /// Reads what [`Bundle::pack`] wrote.
    ///
    /// # Errors
    /// [`UnpackError`]: hostile or damaged bytes.
    pub fn unpack(bytes: &[u8]) -> Result<Self, UnpackError> {
        // A head for each file comes on top of what the files hold.
        if bytes.len() > MAX_BYTES + MAX_FILES * (MAX_PATH + 16) {
            return Err(UnpackError::Damaged("it is too long"));
        }
        let mut rest = bytes
            .strip_prefix(MAGIC)
            .ok_or(UnpackError::Damaged("it does not begin like one"))?;
        let mut files = BTreeMap::new();
        let mut before: Option<BundlePath> = None;
        while !rest.is_empty() {
            let path = std::str::from_utf8(take(&mut rest)?)
                .map_err(|_| UnpackError::Damaged("a path is not text"))?
                .parse::<BundlePath>()?;
            if before.as_ref().is_some_and(|before| *before >= path) {
                return Err(UnpackError::Damaged("its files are not in order"));
            }
            before = Some(path.clone());
            files.insert(path, take(&mut rest)?.to_vec());
        }
        let script = SCRIPT.parse::<BundlePath>()?;
        let script = files.remove(&script).ok_or(BundleError::NoScript)?;
        let script = String::from_utf8(script)
            .map_err(|e| BundleError::NotText(e.utf8_error().valid_up_to()))?;
        Ok(Self::new(script, files)?)
    }
}

/// Why bytes are no packed bundle.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum UnpackError {
    /// Not of the form.
    #[error("this is no packed scenario: {0}")]
    Damaged(&'static str),
    /// Not the one that was asked for.
    #[error(
        "the scenario has changed: {wanted} is wanted, this is {found}; fetch it anew, or run the new version"
    )]
    Another {
        /// What was asked for.
        wanted: BundleHash,
        /// What it is.
        found: BundleHash,
    },
    /// Of the form, and not allowed.
    #[error(transparent)]
    Bundle(#[from] BundleError),
}

/// In front of every packed bundle: names the form and its version.
const MAGIC: &[u8] = b"muster bundle 1\0";

fn pack(script: &str, files: &BTreeMap<BundlePath, Vec<u8>>) -> Vec<u8> {
    let mut all: BTreeMap<&str, &[u8]> = files
        .iter()
        .map(|(path, data)| (path.as_str(), data.as_slice()))
        .collect();
    all.insert(SCRIPT, script.as_bytes());
    let mut out = MAGIC.to_vec();
    for (path, data) in all {
        for part in [path.as_bytes(), data] {
            // Limits keep every length far below 4 GiB.
            let length = u32::try_from(part.len()).unwrap_or(u32::MAX);
            out.extend_from_slice(&length.to_be_bytes());
            out.extend_from_slice(part);
        }
    }
    out
}

fn hash(script: &str, files: &BTreeMap<BundlePath, Vec<u8>>) -> BundleHash {
    BundleHash(Sha256::digest(pack(script, files)).into())
}

/// The next length and as many bytes.
fn take<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], UnpackError> {
    const CUT: UnpackError = UnpackError::Damaged("it is cut short");
    let (length, after) = rest.split_first_chunk::<4>().ok_or(CUT)?;
    let length = usize::try_from(u32::from_be_bytes(*length)).map_err(|_| CUT)?;
    let (part, after) = after.split_at_checked(length).ok_or(CUT)?;
    *rest = after;
    Ok(part)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn files(of: &[(&str, &str)]) -> BTreeMap<BundlePath, Vec<u8>> {
        of.iter()
            .map(|(path, data)| (path.parse().expect("a path"), data.as_bytes().to_vec()))
            .collect()
    }

    fn bundle(script: &str, of: &[(&str, &str)]) -> Bundle {
        Bundle::new(script.to_owned(), files(of)).expect("a bundle")
    }

    #[test]
    fn a_script_is_called_as_people_write_it() {
        let alone = bundle("a", &[]);
        assert_eq!(alone.script_file("deploy"), "deploy.rhai");
        let among = bundle("a", &[("templates/x", "b")]);
        assert_eq!(among.script_file("deploy"), "deploy/scenario.rhai");
    }

    #[test]
    fn every_byte_and_every_name_counts_in_the_hash() {
        let one = bundle("a", &[("templates/x", "bc")]);
        let others = [
            bundle("a", &[]),
            bundle("b", &[("templates/x", "bc")]),
            bundle("a", &[("templates/y", "bc")]),
            bundle("a", &[("templates/x", "b")]),
            bundle("a", &[("templates/xb", "c")]),
        ];
        for other in &others {
            assert_ne!(one.hash(), other.hash(), "{other:?}");
        }
        assert_eq!(one.hash(), bundle("a", &[("templates/x", "bc")]).hash());
        // It is in every journal of a run: it must not change by accident.
        insta::assert_snapshot!(one.hash(), @"00161b75077a82229c7b49afd8cc8e36f9368924d630d0922c7e38fc90fc52c4");
    }

    #[test]
    fn a_path_never_leaves_the_bundle() {
        for bad in [
            "",
            "/etc/passwd",
            "..",
            "a/../b",
            "a//b",
            "a/",
            ".git/config",
            "a b",
            "a\0",
            "-rf",
            "a\\b",
            "é",
        ] {
            assert!(bad.parse::<BundlePath>().is_err(), "{bad:?}");
        }
        for good in ["a", "templates/nginx.conf.j2", "files/A_b-1.tar.gz"] {
            assert!(good.parse::<BundlePath>().is_ok(), "{good}");
        }
        assert!(Bundle::new(String::new(), files(&[(SCRIPT, "x")])).is_err());
    }

    #[test]
    fn a_bundle_that_changed_is_another() {
        let one = bundle("a", &[("templates/x", "bc")]);
        assert_eq!(Bundle::unpack_as(&one.pack(), one.hash()), Ok(one.clone()));
        let mut bytes = one.pack();
        *bytes.last_mut().expect("it has bytes") ^= 1;
        let error = Bundle::unpack_as(&bytes, one.hash()).expect_err("it is another");
        assert!(error.to_string().starts_with("the scenario has changed: "));
    }

    #[test]
    fn limits_are_named() {
        let large = Bundle::new("x".repeat(MAX_SCRIPT + 1), BTreeMap::new());
        assert_eq!(
            large.expect_err("too large").to_string(),
            "bytes of the script: 262145, at most 262144 are allowed"
        );
        let many = (0..MAX_FILES)
            .map(|n| (format!("f{n}").parse().expect("a path"), Vec::new()))
            .collect();
        assert!(Bundle::new(String::new(), many).is_err());
        let heavy = BTreeMap::from([("f".parse().expect("a path"), vec![0; MAX_BYTES])]);
        assert!(Bundle::new("x".into(), heavy).is_err());
    }

    proptest! {
        #[test]
        fn what_is_packed_comes_back(script in ".{0,40}", data in proptest::collection::vec(any::<u8>(), 0..50)) {
            let files = BTreeMap::from([("templates/a".parse().expect("a path"), data)]);
            let one = Bundle::new(script, files).expect("a bundle");
            prop_assert_eq!(Bundle::unpack(&one.pack()), Ok(one.clone()));
            prop_assert_eq!(BundleHash::of(&one.pack()), one.hash());
        }

        #[test]
        fn hostile_bytes_are_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let mut packed = MAGIC.to_vec();
            packed.extend(&bytes);
            if let Ok(read) = Bundle::unpack(&packed) {
                // There is one form only: nobody can give one bundle two hashes.
                prop_assert_eq!(read.pack(), packed);
            }
        }
    }
}
