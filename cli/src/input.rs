//! Files that a command line or a stack names: regular ones, and no more of
//! them than is wanted. Nobody waits for a pipe that nobody writes to, or
//! reads a device that never ends.

use std::fmt::Display;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

use muster_protocol::text::printable;
use rustix::fs::OFlags;

/// Most bytes of a file of public keys.
pub(crate) const MAX_KEYS: usize = 256 * 1024;

/// Opens a regular file.
///
/// # Errors
/// It cannot be opened, or it is none: then what it is.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_file() {
        return Ok(file);
    }
    let is = match kind {
        kind if kind.is_dir() => "a directory",
        kind if kind.is_fifo() => "a pipe",
        _ => "a device",
    };
    Err(io::Error::other(format!("it is no file, but {is}")))
}

/// The text of a file of at most so many bytes.
///
/// # Errors
/// What is wrong with which file.
pub(crate) fn text(path: &Path, most: usize) -> Result<String, String> {
    let wrong = |why: &dyn Display| {
        let shown = printable(&path.display().to_string(), 200);
        format!("cannot read {shown}: {why}")
    };
    let file = open(path).map_err(|e| wrong(&e))?;
    let mut data = Vec::new();
    file.take(most as u64 + 1)
        .read_to_end(&mut data)
        .map_err(|e| wrong(&e))?;
    if data.len() > most {
        return Err(wrong(&format!("it has more than {most} bytes")));
    }
    String::from_utf8(data).map_err(|_| wrong(&"it is no text in UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    #[test]
    fn what_is_no_file_is_refused_at_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name);
        let read = |name: &str| {
            text(&path(name), 4).map_err(|why| why.rsplit_once(": ").map(|w| w.1.to_owned()))
        };
        std::fs::write(path("four"), "four").expect("written");
        std::fs::write(path("fiver"), "fiver").expect("written");
        std::fs::write(path("bytes"), [0xff]).expect("written");
        std::fs::create_dir(path("dir")).expect("made");
        mknodat(
            CWD,
            path("pipe"),
            FileType::Fifo,
            Mode::RUSR | Mode::WUSR,
            0,
        )
        .expect("made");
        std::os::unix::fs::symlink("/dev/zero", path("zero")).expect("made");
        assert_eq!(read("four").as_deref(), Ok("four"));
        let said = |name: &str| read(name).expect_err("refused").expect("why");
        assert_eq!(said("fiver"), "it has more than 4 bytes");
        assert_eq!(said("bytes"), "it is no text in UTF-8");
        assert_eq!(said("dir"), "it is no file, but a directory");
        assert_eq!(said("pipe"), "it is no file, but a pipe");
        assert_eq!(said("zero"), "it is no file, but a device");
        // A file that says nothing of its length.
        assert!(text(Path::new("/proc/self/status"), 4).is_err());
    }
}
