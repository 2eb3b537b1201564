//! The disk that a machine finds at its first start: a small FAT file system
//! labelled `CIDATA`, with cloud-init's files and, for muster's own machines,
//! `muster.env` beside them.

use std::fs::{File, OpenOptions};
use std::io::{self, Cursor, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};
use muster_protocol::vm::{Enrol, SeedText};
use zeroize::Zeroizing;

/// How an agent enrols itself; taken out once it has.
pub(super) const ENROL: &str = "muster.env";
/// The other files, in the order in which they are written. The secret one is
/// last, so that the others stay where they are when it goes: the guest may
/// have them open.
const FILES: [&str; 4] = ["meta-data", "user-data", "vendor-data", "network-config"];
/// As `blkid` shows it.
const LABEL: [u8; 11] = *b"CIDATA     ";
/// Room for the file system itself.
const SPARE: usize = 64 << 10;
/// Sizes are whole numbers of this.
const STEP: usize = 64 << 10;
/// Most bytes of a seed that is read.
const MAX_SEED: u64 = 64 << 20;
/// Most bytes of all texts together.
const MAX_TEXTS: usize = 8 << 20;

/// Why there is no seed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SeedError {
    /// What is to enrol it cannot be written so that a shell reads it.
    #[error("the seed cannot be written: {0} has a character that muster.env cannot hold")]
    Env(&'static str),
    /// Too much.
    #[error("the seed has {0} bytes; a seed has at most {MAX_TEXTS}")]
    Large(usize),
    /// The file.
    #[error("the seed {path}: {source}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It is none of ours.
    #[error("{} is not a seed of muster's, and is left as it is: {source}", path.display())]
    Strange {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        source: io::Error,
    },
}

/// A file and what is in it.
type Text = (&'static str, Zeroizing<Vec<u8>>);

/// `muster.env`, which a shell reads.
fn env(enrol: &Enrol) -> Result<Zeroizing<Vec<u8>>, SeedError> {
    let plain =
        |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic() && c != '\'');
    if enrol.brokers.is_empty() || !enrol.brokers.iter().all(|url| plain(url)) {
        return Err(SeedError::Env("a broker's address"));
    }
    if !plain(enrol.token.expose()) {
        return Err(SeedError::Env("the token"));
    }
    let text = format!(
        "MUSTER_BROKERS='{}'\nMUSTER_TOKEN='{}'\n",
        enrol.brokers.join(" "),
        enrol.token.expose()
    );
    Ok(Zeroizing::new(text.into_bytes()))
}

fn texts(seed: &SeedText) -> Result<Vec<Text>, SeedError> {
    let contents = [
        seed.meta_data.as_str(),
        seed.user_data.expose(),
        &seed.vendor_data,
        &seed.network_config,
    ];
    let bytes = |text: &str| Zeroizing::new(text.as_bytes().to_vec());
    let mut all: Vec<Text> = FILES.into_iter().zip(contents.map(bytes)).collect();
    if let Some(enrol) = &seed.enrol {
        all.push((ENROL, env(enrol)?));
    }
    let total = all.iter().map(|(_, text)| text.len()).sum();
    if total > MAX_TEXTS {
        return Err(SeedError::Large(total));
    }
    Ok(all)
}

/// The bytes of a file system of that size with these files.
fn file_system(texts: &[Text], size: usize) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut disk = Zeroizing::new(vec![0; size]);
    let options = FormatVolumeOptions::new().volume_label(LABEL);
    fatfs::format_volume(Cursor::new(disk.as_mut_slice()), options)?;
    {
        let fs = FileSystem::new(Cursor::new(disk.as_mut_slice()), FsOptions::new())?;
        for (name, text) in texts {
            let mut file = fs.root_dir().create_file(name)?;
            file.write_all(text)?;
            file.flush()?;
        }
        fs.unmount()?;
    }
    Ok(disk)
}

/// The bytes of the disk.
fn disk(seed: &SeedText) -> Result<Zeroizing<Vec<u8>>, SeedError> {
    let texts = texts(seed)?;
    let total: usize = texts.iter().map(|(_, text)| text.len()).sum();
    // A cluster that is begun is taken, and the tables are small beside it.
    let size = (total + total / 8 + SPARE).next_multiple_of(STEP);
    file_system(&texts, size).map_err(|source| SeedError::File {
        path: PathBuf::from("in memory"),
        source,
    })
}

/// Writes a seed, readable by nobody else; what was there before is replaced.
///
/// # Errors
/// [`SeedError`].
pub(super) fn write(path: &Path, seed: &SeedText) -> Result<(), SeedError> {
    let disk = disk(seed)?;
    super::files::replace(path, &disk, 0o600).map_err(|source| SeedError::File {
        path: path.to_owned(),
        source,
    })
}

/// Reads the files of a seed; those that there are.
fn read(file: &mut File) -> io::Result<(usize, Vec<Text>)> {
    let length = file.metadata()?.len();
    if length > MAX_SEED {
        return Err(io::Error::other("it is too large"));
    }
    let mut disk = Zeroizing::new(Vec::new());
    file.seek(SeekFrom::Start(0))?;
    file.take(MAX_SEED).read_to_end(&mut disk)?;
    let size = disk.len();
    let fs = FileSystem::new(Cursor::new(disk.as_mut_slice()), FsOptions::new())?;
    let mut all = Vec::new();
    for name in FILES.into_iter().chain([ENROL]) {
        let dir = fs.root_dir();
        let mut text = Zeroizing::new(Vec::new());
        match dir.open_file(name) {
            Ok(found) => found.take(MAX_SEED).read_to_end(&mut text)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        all.push((name, text));
    }
    Ok((size, all))
}

fn open(path: &Path, write: bool) -> io::Result<Option<File>> {
    let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits();
    let opened = OpenOptions::new()
        .read(true)
        .write(write)
        .custom_flags(flags.cast_signed())
        .open(path);
    match opened {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Whether a seed has something in it that is to be taken out. What is not
/// there has not.
///
/// # Errors
/// [`SeedError`].
pub(super) fn is_secret(path: &Path) -> Result<bool, SeedError> {
    let fail = |source| SeedError::File {
        path: path.to_owned(),
        source,
    };
    let Some(mut file) = open(path, false).map_err(fail)? else {
        return Ok(false);
    };
    let strange = |source| SeedError::Strange {
        path: path.to_owned(),
        source,
    };
    let (_, texts) = read(&mut file).map_err(strange)?;
    Ok(texts.iter().any(|(name, _)| *name == ENROL))
}

/// What is at once written to a disk, whole or not at all.
const SECTOR: usize = 512;

/// What turns a seed into another one, in an order in which it is a seed of
/// muster's after each of them: from its end to its beginning, so that what a
/// file held is gone before its name, and its name before it counts as free.
fn changes<'a>(old: &'a [u8], new: &'a [u8]) -> Vec<(u64, &'a [u8])> {
    let sectors = old.chunks(SECTOR).zip(new.chunks(SECTOR)).enumerate();
    let differ = sectors.filter(|(_, (old, new))| old != new);
    let mut all: Vec<_> = differ
        .map(|(at, (_, new))| ((at * SECTOR) as u64, new))
        .collect();
    all.reverse();
    all
}

/// Takes the secret out, in place: QEMU has the file open, and the guest may
/// have, too. Another file in its place would leave them the old one, with the
/// secret in it. Whether there was one.
///
/// # Errors
/// [`SeedError`].
pub(super) fn strip(path: &Path) -> Result<bool, SeedError> {
    let fail = |source| SeedError::File {
        path: path.to_owned(),
        source,
    };
    let Some(mut file) = open(path, true).map_err(fail)? else {
        return Ok(false);
    };
    let strange = |source| SeedError::Strange {
        path: path.to_owned(),
        source,
    };
    let (size, mut texts) = read(&mut file).map_err(strange)?;
    let mut old = Zeroizing::new(Vec::new());
    file.seek(SeekFrom::Start(0))
        .and_then(|_| (&file).take(MAX_SEED).read_to_end(&mut old))
        .map_err(fail)?;
    let before = texts.len();
    texts.retain(|(name, _)| *name != ENROL);
    if texts.len() == before {
        return Ok(false);
    }
    // Made anew as a whole: nothing of what was freed is left anywhere in it.
    let disk = file_system(&texts, size).map_err(strange)?;
    for (at, sector) in changes(&old, &disk) {
        // Each on the disk before the next: the power may go, too.
        file.write_all_at(sector, at)
            .and_then(|()| file.sync_data())
            .map_err(fail)?;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    use muster_protocol::api::Secret;

    use super::*;

    fn text(user_data: &str) -> SeedText {
        SeedText {
            vendor_data: "#cloud-config\n{}\n".into(),
            user_data: Secret::new(user_data),
            meta_data: "{\"instance-id\":\"x\"}\n".into(),
            network_config: "{\"version\":2}\n".into(),
            enrol: Some(Enrol {
                brokers: vec!["https://a.example:7878".into(), "https://b.example".into()],
                token: Secret::new("mi1_secretsecret"),
            }),
        }
    }

    fn holds(path: &Path, needle: &str) -> bool {
        let bytes = std::fs::read(path).expect("a seed");
        bytes
            .windows(needle.len())
            .any(|window| window == needle.as_bytes())
    }

    #[test]
    fn the_secret_goes_in_place_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("seed.img");
        let long = format!("#!/bin/sh\n# {}", "x".repeat(100_000));
        write(&path, &text(&long)).expect("written");
        let before = std::fs::metadata(&path).expect("there");
        assert_eq!(before.permissions().mode() & 0o777, 0o600);
        assert!(holds(&path, "MUSTER_TOKEN='mi1_secretsecret'\n"));
        assert!(holds(
            &path,
            "MUSTER_BROKERS='https://a.example:7878 https://b.example'\n"
        ));
        assert!(is_secret(&path).expect("read"));
        let old = std::fs::read(&path).expect("a seed");

        assert!(strip(&path).expect("stripped"));
        let after = std::fs::metadata(&path).expect("there");
        assert_eq!((before.ino(), before.len()), (after.ino(), after.len()));
        assert!(!holds(&path, "secretsecret"));
        assert!(!is_secret(&path).expect("read"));
        // What the guest may have read stays where it was.
        let new = std::fs::read(&path).expect("a seed");
        let place = |bytes: &[u8]| bytes.windows(9).position(|w| w == b"#!/bin/sh");
        assert_eq!(place(&old), place(&new));
        let mut file = File::open(&path).expect("opened");
        let (_, texts) = read(&mut file).expect("read");
        let names: Vec<&str> = texts.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, FILES);
        assert_eq!(texts[1].1.as_slice(), long.as_bytes());
        assert!(!strip(&path).expect("again"));
        assert!(!strip(&dir.path().join("none")).expect("not there"));
    }

    #[test]
    fn whoever_is_killed_in_the_middle_leaves_a_seed_without_the_secret_or_with_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("seed.img");
        let user_data = format!("#!/bin/sh\n# {}", "x".repeat(2_000));
        let seed = SeedText {
            enrol: Some(Enrol {
                brokers: (0..60)
                    .map(|n| format!("https://broker-{n}.example:7878"))
                    .collect(),
                token: Secret::new("mi1_secretsecret"),
            }),
            ..text(&user_data)
        };
        write(&path, &seed).expect("written");
        let old = std::fs::read(&path).expect("a seed");
        assert!(strip(&path).expect("stripped"));
        let new = std::fs::read(&path).expect("a seed");
        let all = changes(&old, &new);
        assert!(all.len() > 5, "{}", all.len());
        for killed_after in 0..=all.len() {
            let mut part = old.clone();
            for (at, sector) in &all[..killed_after] {
                let at = usize::try_from(*at).expect("small");
                part[at..at + sector.len()].copy_from_slice(sector);
            }
            std::fs::write(&path, &part).expect("written");
            let mut file = File::open(&path).expect("opened");
            let (_, texts) = read(&mut file).expect("it is a seed");
            let others = texts.iter().filter(|(name, _)| *name != ENROL);
            let names: Vec<&str> = others.map(|(name, _)| *name).collect();
            assert_eq!(names, FILES, "{killed_after}");
            assert_eq!(texts[1].1.as_slice(), user_data.as_bytes());
            let left = is_secret(&path).expect("read");
            // What is not named any more is not there any more.
            assert!(left || !holds(&path, "secretsecret"), "{killed_after}");
            assert_eq!(strip(&path).expect("again"), left, "{killed_after}");
            assert!(!holds(&path, "secretsecret") && !holds(&path, "broker-"));
            assert!(!is_secret(&path).expect("read"));
        }
    }

    #[test]
    fn what_is_no_seed_is_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("seed.img");
        std::fs::write(&path, vec![0x55; 4096]).expect("written");
        assert!(matches!(strip(&path), Err(SeedError::Strange { .. })));
        assert_eq!(std::fs::read(&path).expect("there"), vec![0x55; 4096]);
        let link = dir.path().join("link.img");
        std::os::unix::fs::symlink(&path, &link).expect("linked");
        assert!(matches!(strip(&link), Err(SeedError::File { .. })));
    }

    #[test]
    fn nothing_that_a_shell_would_obey_gets_into_it() {
        for bad in ["a'b", "a\nb", "a b", ""] {
            let mut seed = text("");
            let enrol = seed.enrol.as_mut().expect("one");
            enrol.token = Secret::new(bad);
            assert!(matches!(texts(&seed), Err(SeedError::Env(_))), "{bad}");
            let mut seed = text("");
            let enrol = seed.enrol.as_mut().expect("one");
            enrol.brokers = vec![bad.to_owned()];
            assert!(matches!(texts(&seed), Err(SeedError::Env(_))), "{bad}");
        }
    }

    #[test]
    fn the_system_reads_it() {
        // Where there are the tools.
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("seed.img");
        write(&path, &text("")).expect("written");
        let Ok(said) = std::process::Command::new("blkid")
            .arg("-p")
            .arg(&path)
            .output()
        else {
            println!("SKIPPED: there is no blkid on this machine");
            return;
        };
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        assert!(
            said.contains("LABEL=\"CIDATA\"") && said.contains("vfat"),
            "{said}"
        );
    }
}
