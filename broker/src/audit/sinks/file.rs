//! A file that is only appended to.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::Out;

/// See the module. It is opened for each delivery, so that it may be rotated.
pub(super) struct FileSink {
    path: PathBuf,
}

impl FileSink {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Appends, and returns when the disk has it.
    pub(super) async fn deliver(&mut self, lines: Vec<Out>) -> Result<(), String> {
        let path = self.path.clone();
        let written = tokio::task::spawn_blocking(move || {
            append(&path, &lines).map_err(|e| format!("cannot write {}: {e}", path.display()))
        });
        written.await.map_err(|e| e.to_string())?
    }
}

fn append(path: &Path, lines: &[Out]) -> std::io::Result<()> {
    let mut file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .open(path)?;
    let mut text = String::new();
    if ends_in_half_a_line(path)? {
        text.push('\n');
    }
    for line in lines {
        text.push_str(&line.text);
        text.push('\n');
    }
    file.write_all(text.as_bytes())?;
    file.sync_data()
}

/// A crash may have cut the last line.
fn ends_in_half_a_line(path: &Path) -> std::io::Result<bool> {
    let Ok(mut file) = File::open(path) else {
        // It may be that it can only be written.
        return Ok(false);
    };
    if file.metadata()?.len() == 0 || !file.metadata()?.is_file() {
        return Ok(false);
    }
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last != *b"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_whole_also_behind_one_that_was_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sink");
        std::fs::write(&path, "half a li").unwrap();
        let line = |text: &str| Out {
            text: text.to_owned(),
            is_checkpoint: false,
            count: 1,
        };
        let mut sink = FileSink::new(path.clone());
        sink.deliver(vec![line("one"), line("two")]).await.unwrap();
        sink.deliver(vec![line("three")]).await.unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, "half a li\none\ntwo\nthree\n");
        let mut none = FileSink::new(dir.path().join("no/such"));
        assert!(none.deliver(vec![line("x")]).await.is_err());
    }
}
