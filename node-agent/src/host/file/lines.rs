//! Single lines of a file: what else is in it stays as it is, byte by byte,
//! with its ends of lines.

use std::fs::{File, Metadata};
use std::path::Path;

use muster_protocol::envelope::Mode;
use muster_scenarios::node::Change;
use regex::Regex;

use super::attributes::Wanted;
use super::walk::Place;
use super::{FileError, Found, NEW_FILE, changed, diff, is_directory, look, place, replace};

/// A file of text, and where it is.
struct Text {
    place: Option<Place>,
    text: String,
    old: Option<(File, Metadata)>,
}

impl Text {
    fn read(path: &Path, mode: Mode) -> Result<Self, FileError> {
        let place = place(path, mode)?;
        let (bytes, old) = match look(place.as_ref())? {
            Found::Directory { .. } => return Err(is_directory(path)),
            Found::Nothing => (Vec::new(), None),
            Found::File {
                file,
                bytes,
                metadata,
            } => (bytes, Some((file, metadata))),
        };
        let text = String::from_utf8(bytes).map_err(|_| FileError::NotText(path.to_owned()))?;
        Ok(Self { place, text, old })
    }

    fn change(
        &self,
        new: &str,
        backup: bool,
        mode: Mode,
        summary: &str,
    ) -> Result<Change, FileError> {
        if let (Mode::Apply, Some(place)) = (mode, &self.place) {
            let wanted = match &self.old {
                Some((_, metadata)) => Wanted::default().or_those_of(metadata),
                None => Wanted::default().or_mode(NEW_FILE),
            };
            let old = self.old.as_ref().map(|(file, _)| file);
            replace(place, new.as_bytes(), &wanted, old, backup)?;
        }
        let diff = diff::lines(self.text.as_bytes(), new.as_bytes());
        Ok(changed(mode, summary, diff))
    }
}

/// A line without its end, and the end.
fn split(line: &str) -> (&str, &str) {
    let bare = line.strip_suffix('\n').unwrap_or(line);
    let bare = bare.strip_suffix('\r').unwrap_or(bare);
    line.split_at(bare.len())
}

/// The file has this line: in the place of the last that matches `replaces`,
/// else at its end.
pub(super) fn have(
    path: &Path,
    text: &str,
    replaces: Option<&Regex>,
    backup: bool,
    mode: Mode,
) -> Result<Change, FileError> {
    let file = Text::read(path, mode)?;
    let lines: Vec<&str> = file.text.split_inclusive('\n').collect();
    if lines.iter().any(|line| split(line).0 == text) {
        return Ok(Change::Unchanged);
    }
    let matches = |line: &&str| replaces.is_some_and(|pattern| pattern.is_match(split(line).0));
    let at = lines.iter().rposition(matches);
    let ends = lines.first().map(|line| split(line).1);
    let end = ends.filter(|end| !end.is_empty()).unwrap_or("\n");
    let mut new = String::with_capacity(file.text.len() + text.len() + 2);
    for (number, line) in lines.iter().enumerate() {
        let (mut bare, own) = split(line);
        if at == Some(number) {
            bare = text;
        }
        new.push_str(bare);
        // The last one may have none.
        new.push_str(if own.is_empty() { end } else { own });
    }
    if at.is_none() {
        new.push_str(text);
        new.push_str(end);
    }
    let summary = match (file.old.is_some(), at) {
        (false, _) => "created",
        (true, Some(_)) => "line replaced",
        (true, None) => "line added",
    };
    file.change(&new, backup, mode, summary)
}

/// What is to go out of a file.
pub(super) enum Which<'a> {
    /// Lines that are this text.
    Is(&'a str),
    /// Lines in which this is found.
    Matches(&'a Regex),
}

/// The file has no such line. One that is not there has none.
pub(super) fn have_not(
    path: &Path,
    which: &Which<'_>,
    backup: bool,
    mode: Mode,
) -> Result<Change, FileError> {
    let file = Text::read(path, mode)?;
    let goes = |line: &&str| {
        let (bare, _) = split(line);
        match which {
            Which::Is(text) => bare == *text,
            Which::Matches(pattern) => pattern.is_match(bare),
        }
    };
    let lines = || file.text.split_inclusive('\n');
    let gone = lines().filter(goes).count();
    if gone == 0 {
        return Ok(Change::Unchanged);
    }
    let new: String = lines().filter(|line| !goes(line)).collect();
    let summary = match gone {
        1 => "line removed".to_owned(),
        gone => format!("{gone} lines removed"),
    };
    file.change(&new, backup, mode, &summary)
}
