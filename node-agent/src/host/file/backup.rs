//! What a file was like before: kept beside it, and put back.

use std::fs;
use std::io;
use std::path::Path;

use muster_protocol::envelope::Mode;
use muster_scenarios::node::Change;

use super::attributes::Wanted;
use super::walk::Place;
use super::{FileError, Found, changed, diff, io as failed, is_directory, look, place, replace};

/// Backups of one file within one second.
const MAX_BACKUPS: u32 = 100;

/// Gives the file a second name: it is there before the new one is.
pub(super) fn keep(place: &Place) -> Result<(), FileError> {
    let time = stamp();
    for n in 0..MAX_BACKUPS {
        let suffix = match n {
            0 => format!(".{time}.bak"),
            n => format!(".{time}.{n}.bak"),
        };
        match fs::hard_link(place.at(), place.beside(&suffix)) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(failed("keep a copy of", &place.path)(e)),
        }
    }
    Err(failed("keep a copy of", &place.path)(
        io::ErrorKind::AlreadyExists.into(),
    ))
}

/// The file is as its newest backup is: content, owner and mode. The backup
/// stays, so that the same again changes nothing.
pub(super) fn restore(path: &Path, mode: Mode) -> Result<Change, FileError> {
    let none = || FileError::NoBackup(path.to_owned());
    let place = place(path, mode)?.ok_or_else(none)?;
    let suffix = newest(&place)?.ok_or_else(none)?;
    let kept = place.sibling(&suffix)?;
    // Where others can put a file, they can put one that looks like a backup.
    if !place.guarded {
        return Err(FileError::Path {
            path: kept.path,
            why: "others than root can put files into its directory, so it may not be what was kept; look at it and \
                  copy it by hand",
        });
    }
    let Found::File {
        file: source,
        bytes: text,
        metadata: was,
    } = look(Some(&kept))?
    else {
        return Err(none());
    };
    let wanted = Wanted::default().or_those_of(&was);
    match look(Some(&place))? {
        Found::Directory { .. } => Err(is_directory(path)),
        Found::Nothing => {
            if mode == Mode::Apply {
                replace(&place, &text, &wanted, Some(&source), false)?;
            }
            let diff = diff::lines(b"", &text);
            Ok(changed(mode, &format!("created from {suffix}"), diff))
        }
        Found::File {
            file,
            bytes,
            metadata,
        } => {
            let mut said = wanted.differences(&metadata);
            let same = bytes == text;
            if same && said.is_empty() {
                return Ok(Change::Unchanged);
            }
            if mode == Mode::Apply {
                if same {
                    wanted.apply(&file, path)?;
                } else {
                    replace(&place, &text, &wanted, Some(&source), false)?;
                }
            }
            if !same {
                said.insert(0, format!("content of {suffix}"));
            }
            let diff = diff::lines(&bytes, &text);
            Ok(changed(mode, &said.join(", "), diff))
        }
    }
}

/// What the newest backup's name has after that of the file.
fn newest(place: &Place) -> Result<Option<String>, FileError> {
    let read = failed("read the directory of", &place.path);
    let mut best: Option<(String, u32)> = None;
    for entry in fs::read_dir(place.directory()).map_err(read)? {
        let name = entry
            .map_err(failed("read the directory of", &place.path))?
            .file_name();
        let bytes = name.as_encoded_bytes();
        let kept = bytes
            .strip_prefix(place.name().as_encoded_bytes())
            .and_then(|rest| std::str::from_utf8(rest).ok())
            .and_then(kept);
        best = best.max(kept);
    }
    Ok(best.map(|(time, n)| match n {
        0 => format!(".{time}.bak"),
        n => format!(".{time}.{n}.bak"),
    }))
}

/// The time and the number in `.20261121T101500Z.1.bak`.
fn kept(suffix: &str) -> Option<(String, u32)> {
    let inner = suffix.strip_prefix('.')?.strip_suffix(".bak")?;
    let (time, n) = match inner.split_once('.') {
        None => (inner, 0),
        Some((time, n)) => (time, n.parse().ok().filter(|n| *n > 0)?),
    };
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let (day, clock) = time.strip_suffix('Z')?.split_once('T')?;
    (day.len() == 8 && clock.len() == 6 && digits(day) && digits(clock))
        .then(|| (time.to_owned(), n))
}

/// The time in a backup's name: `20261121T101500Z`.
fn stamp() -> String {
    let now = muster_protocol::units::Timestamp::now().to_string();
    let seconds = now.split('.').next().unwrap_or_default();
    let mut stamp: String = seconds
        .chars()
        .filter(|c| c.is_ascii_alphanumeric())
        .collect();
    if !stamp.ends_with('Z') {
        stamp.push('Z');
    }
    stamp
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_backup_is_read_as_it_is_made() {
        assert_eq!(kept(&format!(".{}.bak", stamp())), Some((stamp(), 0)));
        let time = "20261121T101500Z";
        assert_eq!(kept(&format!(".{time}.12.bak")), Some((time.into(), 12)));
        for other in [
            ".bak",
            ".20261121T101500Z",
            ".20261121T101500Z.0.bak",
            ".20261121T101500Z.x.bak",
            ".2026-11-21T101500Z.bak",
            ".old.20261121T101500Z.bak",
            "20261121T101500Z.bak",
        ] {
            assert_eq!(kept(other), None, "{other}");
        }
    }
}
