//! `muster backup`

use std::fs::{self, File};
use std::io::{BufReader, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use clap::Args;
use muster_broker::backup::format::{Head, Manifest, check};
use muster_broker::backup::restore::unfinished;
use serde_json::json;

use crate::Context;
use crate::failure::{Failure, NOT_ALL};
use crate::ui::count;

/// Arguments of `muster backup`.
#[derive(Args, Debug)]
#[command(after_help = "\
It holds every secret of the cluster: whoever reads it can command every node. Keep it
where only administrators can read it, and encrypted where others could.
It does not hold the state of agents; they are not touched by a restore.")]
pub struct BackupArgs {
    /// File to write; it must not exist yet
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Does it.
///
/// # Errors
/// [`Failure`]; there is no file then.
pub async fn run(context: &Context, args: &BackupArgs) -> Result<u8, Failure> {
    let client = context.client()?;
    let path = &args.file;
    if path.exists() {
        return Err(taken(path));
    }
    let temporary = unfinished(path);
    let written = write(&client, &temporary, path).await;
    let (head, manifest, bytes) = match written {
        Ok(written) => written,
        Err(failure) => {
            let _ = fs::remove_file(&temporary);
            return Err(failure);
        }
    };
    if args.json {
        context.term.json(&json!({
            "type": "backup",
            "file": path,
            "bytes": bytes,
            "cluster": head.cluster,
            "made": head.made,
            "broker_epoch": head.broker_epoch,
            "key_epoch": head.key_epoch,
            "parts": manifest.parts,
        }))?;
    } else {
        context.term.line(&format!(
            "{}: {bytes} bytes, {} of cluster {}",
            path.display(),
            count(manifest.parts.len(), "part"),
            head.cluster,
        ))?;
        context.term.note(
            "it holds every secret of the cluster: whoever reads it can command every node. Only you \
             can read it now (mode 600); keep it so",
        );
    }
    Ok(0)
}

fn taken(path: &Path) -> Failure {
    Failure::usage(format!("{} exists already", path.display()))
        .hint("a backup never writes over anything; give another name")
}

fn cannot(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(NOT_ALL, format!("cannot write {}: {error}", path.display()))
}

async fn write(
    client: &muster_client::Client,
    temporary: &Path,
    path: &Path,
) -> Result<(Head, Manifest, u64), Failure> {
    let mut pieces = client.backup().await?;
    let mut file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(temporary)
        .map_err(|e| cannot(path, &e))?;
    let mut bytes = 0;
    while let Some(piece) = pieces.next().await? {
        file.write_all(&piece).map_err(|e| cannot(path, &e))?;
        bytes += piece.len() as u64;
    }
    file.sync_all().map_err(|e| cannot(path, &e))?;
    // As it is on the disk, not as it came.
    let read = File::open(temporary).map_err(|e| cannot(path, &e))?;
    let (head, manifest) = check(BufReader::new(read)).map_err(|e| {
        Failure::new(NOT_ALL, "the broker did not send a whole backup")
            .detail(e.to_string())
            .hint("its log says why; try again")
    })?;
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    match renameat_with(CWD, temporary, CWD, path, RenameFlags::NOREPLACE) {
        Ok(()) => {}
        Err(rustix::io::Errno::EXIST) => return Err(taken(path)),
        // A file system that cannot promise it.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            fs::rename(temporary, path).map_err(|e| cannot(path, &e))?;
        }
        Err(e) => return Err(cannot(path, &e.into())),
    }
    let dir = path
        .parent()
        .filter(|dir| !dir.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|e| cannot(path, &e))?;
    Ok((head, manifest, bytes))
}
