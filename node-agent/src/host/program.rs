//! The agent's own executable: which it is, putting another one in its place
//! and the old one back, and becoming it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use muster_protocol::release::{Inspected, Inspector, ReleaseId};
use process_wrap::tokio::{CommandWrap, ProcessSession};
use tokio::io::AsyncReadExt as _;

/// What this process executes, also when the file was replaced.
const SELF: &str = "/proc/self/exe";
/// Bytes read at a time.
const PIECE: usize = 256 * 1024;
/// Most bytes of what a program says that are read.
const MAX_SAID: u64 = 16 * 1024;

/// The path of this process's executable. While another file has taken its
/// place, the path is still that place.
///
/// # Errors
/// Where `/proc` does not tell.
pub fn own_path() -> io::Result<PathBuf> {
    let path = std::env::current_exe()?;
    let bytes = path.as_os_str().as_bytes();
    Ok(match bytes.strip_suffix(b" (deleted)") {
        Some(plain) => OsString::from_vec(plain.to_vec()).into(),
        None => path,
    })
}

/// Where the executable that was replaced is kept.
#[must_use]
pub fn kept_path(executable: &Path) -> PathBuf {
    let mut name = executable.as_os_str().to_owned();
    name.push(".old");
    name.into()
}

/// What a file is.
///
/// # Errors
/// When it cannot be read.
pub fn inspect(path: &Path) -> io::Result<Inspected> {
    let mut file = File::open(path)?;
    let mut inspector = Inspector::new();
    let mut piece = vec![0; PIECE];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(inspector.finish()),
            n => inspector.push(&piece[..n]),
        }
    }
}

/// The hash of what this process executes.
///
/// # Errors
/// When it cannot be read.
pub fn own_id() -> io::Result<ReleaseId> {
    inspect(Path::new(SELF)).map(|seen| seen.id)
}

/// Puts `new` in the place of `executable`, and keeps the old one beside it.
/// At every moment there is a whole executable in that place.
///
/// # Errors
/// Nothing has changed then, but for the copy of the old one.
pub fn swap(executable: &Path, new: &Path) -> io::Result<()> {
    let kept = kept_path(executable);
    keep(executable, &kept)?;
    fs::rename(new, executable)?;
    sync_dir(executable)
}

/// Puts the executable with that hash back. Does nothing when it is there.
///
/// # Errors
/// When there is none with that hash any more, or it cannot be put there.
pub fn put_back(executable: &Path, wanted: ReleaseId) -> io::Result<()> {
    if inspect(executable).is_ok_and(|seen| seen.id == wanted) {
        return Ok(());
    }
    let kept = kept_path(executable);
    let candidates = [kept.as_path(), Path::new(SELF)];
    let source = candidates
        .into_iter()
        .find(|path| inspect(path).is_ok_and(|seen| seen.id == wanted))
        .ok_or_else(|| {
            io::Error::other(format!(
                "{} is not the executable {} any more",
                kept.display(),
                wanted.short()
            ))
        })?;
    let part = beside(executable, "back");
    let _ = fs::remove_file(&part);
    copy(source, &part)?;
    fs::rename(&part, executable)?;
    sync_dir(executable)
}

/// A second name for a file, or a copy where the file system has no such.
fn keep(file: &Path, kept: &Path) -> io::Result<()> {
    let part = beside(file, "keep");
    let _ = fs::remove_file(&part);
    if fs::hard_link(file, &part).is_err() {
        copy(file, &part)?;
    }
    fs::rename(&part, kept)?;
    // Renaming one name of a file over another of the same file does nothing.
    let _ = fs::remove_file(&part);
    sync_dir(kept)
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::copy(from, to)?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o755))?;
    File::open(to)?.sync_all()
}

/// A hidden name in the same directory.
#[must_use]
pub fn beside(executable: &Path, mark: &str) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(executable.file_name().unwrap_or_default());
    name.push(".");
    name.push(mark);
    executable.with_file_name(name)
}

fn sync_dir(file: &Path) -> io::Result<()> {
    File::open(file.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// Whether others than root and the agent's own user could change what is in
/// the executable's place.
///
/// # Errors
/// When its directory cannot be looked at.
pub fn is_private(executable: &Path) -> io::Result<bool> {
    let dir = executable.parent().unwrap_or(Path::new("/"));
    let meta = fs::metadata(dir)?;
    let me = rustix::process::geteuid().as_raw();
    let sticky = meta.mode() & 0o1000 != 0;
    Ok((meta.uid() == 0 || meta.uid() == me) && (meta.mode() & 0o002 == 0 || sticky))
}

/// What a program said, and how it ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Said {
    /// Whether it ended well.
    pub well: bool,
    /// Standard output, as far as it is read.
    pub out: String,
    /// The last line of standard error, for people.
    pub error: String,
}

/// Runs a program that is to say something and end soon.
///
/// # Errors
/// When it cannot be started or does not end in time; it is killed then.
pub async fn ask(program: &Path, args: &[OsString], within: Duration) -> io::Result<Said> {
    let mut child = tokio::process::Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let work = async {
        let (out, err, status) = tokio::join!(read_some(out), read_some(err), child.wait());
        let status = status?;
        let last = err.lines().rfind(|line| !line.trim().is_empty());
        Ok(Said {
            well: status.success(),
            error: match last {
                Some(line) => muster_protocol::text::printable(line, 300),
                None => status.to_string(),
            },
            out,
        })
    };
    tokio::time::timeout(within, work)
        .await
        .unwrap_or_else(|_| {
            Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("it did not end within {} s", within.as_secs()),
            ))
        })
}

async fn read_some(pipe: Option<impl tokio::io::AsyncRead + Unpin>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        let _ = (&mut pipe).take(MAX_SAID).read_to_end(&mut bytes).await;
        // A program that says more must not wait for a reader.
        let _ = tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Runs a program that does its work and ends soon, with this process's
/// output for its own: what it leaves behind may go on writing to it.
///
/// # Errors
/// When it cannot be started, does not end in time, or does not end well.
pub async fn run(program: &Path, args: &[OsString], within: Duration) -> io::Result<()> {
    let mut child = tokio::process::Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    match tokio::time::timeout(within, child.wait()).await {
        Ok(status) => match status? {
            status if status.success() => Ok(()),
            status => Err(io::Error::other(status.to_string())),
        },
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("it did not end within {} s", within.as_secs()),
        )),
    }
}

/// Starts a program that outlives this one: in a session of its own, and
/// without anybody who waits for it.
///
/// # Errors
/// When it cannot be started.
pub fn detach(program: &Path, args: &[OsString]) -> io::Result<u32> {
    let mut command = CommandWrap::with_new(program, |command| {
        command.args(args).stdin(Stdio::null());
    });
    command.wrap(ProcessSession);
    let child = command.spawn()?;
    Ok(child.id().unwrap_or_default())
}

/// Becomes a program: the same process, with these arguments. Returns only
/// when that fails.
pub fn become_program(program: &Path, first: &OsString, args: &[OsString]) -> io::Error {
    std::process::Command::new(program)
        .arg0(first)
        .args(args)
        .exec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(path: &Path) -> ReleaseId {
        inspect(path).expect("there").id
    }

    #[test]
    fn an_executable_is_replaced_and_put_back() {
        let dir = tempfile::tempdir().expect("directory");
        let exe = dir.path().join("agent");
        let new = dir.path().join(".agent.new");
        for round in 0..2 {
            fs::write(&exe, "old").expect("written");
            fs::write(&new, format!("new {round}")).expect("written");
            let (old_id, new_id) = (id(&exe), id(&new));
            swap(&exe, &new).expect("swapped");
            assert_eq!((id(&exe), id(&kept_path(&exe))), (new_id, old_id));
            assert!(!new.exists());
            for _ in 0..2 {
                put_back(&exe, old_id).expect("back");
                assert_eq!(id(&exe), old_id);
            }
            let error = put_back(&exe, new_id).expect_err("gone").to_string();
            assert!(error.contains(&new_id.short()), "{error}");
            assert_eq!(id(&exe), old_id);
        }
        let left: Vec<_> = fs::read_dir(dir.path())
            .expect("listed")
            .flatten()
            .map(|e| e.file_name())
            .collect();
        assert_eq!(left.len(), 2, "{left:?}");
    }

    #[tokio::test]
    async fn a_program_that_hangs_is_no_trap() {
        let sh = Path::new("/bin/sh");
        let args = |script: &str| ["-c".into(), OsString::from(script)];
        let said = ask(
            sh,
            &args("echo a; echo why >&2; exit 3"),
            Duration::from_secs(20),
        )
        .await
        .expect("ends");
        assert_eq!(
            (said.well, said.out.as_str(), said.error.as_str()),
            (false, "a\n", "why")
        );
        let error = ask(sh, &args("exec sleep 600"), Duration::from_millis(100))
            .await
            .expect_err("hangs");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
