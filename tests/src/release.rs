//! Releases for tests: copies of executables with another marker in them.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use muster_protocol::release::{MARKER_BYTES, Release};

use crate::bin;

/// Writes a copy of one of our executables with a changed marker, and says
/// where. It is a real second version: everything that asks a program what it
/// is reads the marker.
///
/// # Errors
/// When it has no marker, or the copy cannot be written.
pub fn release(dir: &Path, program: &str, change: impl FnOnce(&mut Release)) -> Result<PathBuf> {
    let mut bytes = std::fs::read(bin(program))?;
    let (at, mut about) = bytes
        .windows(2)
        .enumerate()
        .filter(|(_, start)| *start == b"\xf7m")
        .find_map(|(at, _)| {
            let about = Release::read(bytes.get(at..at + MARKER_BYTES)?)?;
            Some((at, about))
        })
        .with_context(|| format!("{program} has no release marker"))?;
    let arch = about.build.arch.clone();
    change(&mut about);
    bytes[at..at + MARKER_BYTES].copy_from_slice(&about.marker()?);
    if about.build.arch != arch {
        ensure!(about.build.arch == "aarch64", "no other is needed");
        bytes[18..20].copy_from_slice(&183u16.to_le_bytes());
    }
    let path = dir.join(format!("{program}-{}-{}", about.version, about.build.arch));
    std::fs::write(&path, bytes)?;
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    Ok(path)
}

/// The same, with only another version.
///
/// # Errors
/// As [`release`].
pub fn version(dir: &Path, program: &str, version: &str) -> Result<PathBuf> {
    let version = version.parse()?;
    release(dir, program, |about| about.version = version)
}
