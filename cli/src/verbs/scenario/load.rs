//! From a path to a bundle.

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use muster_protocol::text::printable;
use muster_scenarios::bundle::{Bundle, BundlePath, MAX_BYTES, MAX_FILES, SCRIPT};

use crate::failure::Failure;

/// A scenario that was read from disk.
#[derive(Debug)]
pub(super) struct Loaded {
    /// What people would call it: the file's name without its end, or the
    /// directory's.
    pub(super) name: String,
    /// What its script is called in messages.
    pub(super) file: String,
    pub(super) bundle: Bundle,
}

/// Reads a script, or a directory with one. Names that begin with a dot are
/// left out, as editors and version control make them.
///
/// # Errors
/// What cannot be read, or cannot be part of a scenario.
pub(super) fn load(path: &Path) -> Result<Loaded, Failure> {
    let about = fs::metadata(path).map_err(|e| cannot_read(path, &e))?;
    let (script, files) = if about.is_dir() {
        (path.join(SCRIPT), beside(path)?)
    } else {
        (path.to_owned(), BTreeMap::new())
    };
    let text = read(&script).map_err(|e| match e.kind() {
        ErrorKind::NotFound => {
            let path = shown(path);
            Failure::usage(format!("{path}: there is no `{SCRIPT}` in this directory"))
                .hint("name the script itself, or call it so")
        }
        _ => cannot_read(&script, &e),
    })?;
    let text = String::from_utf8(text).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Failure::usage(format!(
            "{}: this is not UTF-8 text (byte {at})",
            shown(&script)
        ))
    })?;
    let bundle =
        Bundle::new(text, files).map_err(|e| Failure::usage(format!("{}: {e}", shown(path))))?;
    Ok(Loaded {
        name: name(path, about.is_dir()),
        file: shown(&script),
        bundle,
    })
}

/// All of these.
///
/// # Errors
/// As [`load`], for the first that cannot be read.
pub(super) fn load_all(paths: &[PathBuf]) -> Result<Vec<Loaded>, Failure> {
    paths.iter().map(|path| load(path)).collect()
}

fn shown(path: &Path) -> String {
    printable(&path.to_string_lossy(), 300)
}

fn name(path: &Path, whole: bool) -> String {
    let full = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name = if whole {
        full.file_name()
    } else {
        full.file_stem()
    };
    printable(&name.unwrap_or_default().to_string_lossy(), 80)
}

fn cannot_read(path: &Path, error: &std::io::Error) -> Failure {
    Failure::usage(format!("{}: it cannot be read: {error}", shown(path)))
}

/// A regular file, no more of it than a bundle may hold and one byte, which
/// is the mistake.
fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let file = fs::File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("it is no regular file"));
    }
    let mut data = Vec::new();
    file.take(MAX_BYTES as u64 + 1).read_to_end(&mut data)?;
    Ok(data)
}

/// Everything in a directory but the script.
fn beside(root: &Path) -> Result<BTreeMap<BundlePath, Vec<u8>>, Failure> {
    let mut files = BTreeMap::new();
    let mut bytes = 0;
    let mut open = vec![(root.to_owned(), String::new())];
    while let Some((directory, prefix)) = open.pop() {
        let entries = fs::read_dir(&directory).map_err(|e| cannot_read(&directory, &e))?;
        for entry in entries {
            let entry = entry.map_err(|e| cannot_read(&directory, &e))?;
            let (path, raw) = (entry.path(), entry.file_name());
            let Some(name) = raw.to_str() else {
                return Err(Failure::usage(format!(
                    "{}: the name is not UTF-8 text",
                    shown(&path)
                )));
            };
            if name.starts_with('.') {
                continue;
            }
            let inside = format!("{prefix}{name}");
            let kind = entry.file_type().map_err(|e| cannot_read(&path, &e))?;
            if kind.is_dir() {
                open.push((path, format!("{inside}/")));
                continue;
            }
            if inside == SCRIPT {
                continue;
            }
            if !kind.is_file() {
                return Err(Failure::usage(format!(
                    "{}: a scenario holds plain files only, and no links",
                    shown(&path)
                )));
            }
            let inside: BundlePath = inside
                .parse()
                .map_err(|e| Failure::usage(format!("{}: {e}", shown(root))))?;
            let data = read(&path).map_err(|e| cannot_read(&path, &e))?;
            bytes += data.len();
            files.insert(inside, data);
            if files.len() >= MAX_FILES || bytes > MAX_BYTES {
                return Err(Failure::usage(format!(
                    "{}: a scenario has at most {MAX_FILES} files and {} MiB",
                    shown(root),
                    MAX_BYTES / (1024 * 1024)
                ))
                .hint("is this the directory of one scenario?"));
            }
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn write(root: &Path, path: &str, data: &[u8]) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("a directory")).expect("it can be made");
        fs::write(path, data).expect("it can be written");
    }

    fn failure(path: &Path, root: &Path) -> String {
        let failure = load(path).expect_err("it is no scenario");
        assert_eq!(failure.code, crate::failure::USAGE);
        failure.message.replace(&shown(root), "ROOT")
    }

    #[test]
    fn a_directory_is_a_scenario_with_all_that_lies_in_it() {
        let place = tempfile::tempdir().expect("a directory");
        let root = place.path().join("deploy");
        write(&root, SCRIPT, b"scenario(\"x\"); fn run(p) {}");
        write(&root, "templates/a.j2", b"a");
        write(&root, "files/deep/b", b"b");
        write(&root, ".git/config", b"no");
        let loaded = load(&root).unwrap_or_else(|e| panic!("{e:?}"));
        assert_eq!(loaded.name, "deploy");
        assert!(loaded.file.ends_with("deploy/scenario.rhai"));
        let paths: Vec<&str> = loaded
            .bundle
            .files()
            .keys()
            .map(BundlePath::as_str)
            .collect();
        assert_eq!(paths, ["files/deep/b", "templates/a.j2"]);
        // The script alone is the script alone.
        let alone = load(&root.join(SCRIPT)).unwrap_or_else(|e| panic!("{e:?}"));
        assert!(alone.bundle.files().is_empty());
        assert_eq!(alone.name, "scenario");
    }

    #[test]
    fn what_cannot_be_part_of_it_is_said() {
        let place = tempfile::tempdir().expect("a directory");
        let root = place.path();
        assert!(failure(&root.join("nowhere"), root).contains("it cannot be read"));
        assert_eq!(
            failure(root, root),
            "ROOT: there is no `scenario.rhai` in this directory"
        );
        write(root, SCRIPT, b"x \xff");
        assert_eq!(
            failure(root, root),
            "ROOT/scenario.rhai: this is not UTF-8 text (byte 2)"
        );
        write(root, SCRIPT, b"x");
        symlink("/etc/passwd", root.join("link")).expect("it can be made");
        assert_eq!(
            failure(root, root),
            "ROOT/link: a scenario holds plain files only, and no links"
        );
        fs::remove_file(root.join("link")).expect("it is there");
        write(root, "a b", b"x");
        assert!(failure(root, root).contains("`a b` cannot be a file of a scenario"));
        fs::remove_file(root.join("a b")).expect("it is there");
        write(root, "big", &vec![0; MAX_BYTES]);
        write(root, "more", b"xx");
        assert!(failure(root, root).contains("at most 256 files and 4 MiB"));
        fs::remove_file(root.join("big")).expect("it is there");
        for n in 0..MAX_FILES {
            write(root, &format!("many/{n}"), b"");
        }
        assert!(failure(root, root).contains("at most 256 files and 4 MiB"));
    }
}
