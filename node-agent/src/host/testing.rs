#![allow(clippy::print_stdout, reason = "a skipped test says so")]
//! What the tests of the host's modules have in common: a directory for
//! programs that only pretend, and [`Tools`] that run them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use muster_protocol::run::Stream;
use muster_scenarios::node::{Change, Performed};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::tools::{Said, Shared, Tools};

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A place for a test.
pub(crate) struct Bench {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) environment: BTreeMap<String, String>,
    pub(crate) timeout: Duration,
    pub(crate) cancel: CancellationToken,
}

/// What a run of tools said.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    pub(crate) out: String,
    pub(crate) err: String,
    pub(crate) started: usize,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let bin = dir.path().join("bin");
        fs::create_dir(&bin).expect("a directory");
        let path = format!("{}:{PATH}", bin.display());
        let here = dir.path().display().to_string();
        Self {
            dir,
            environment: BTreeMap::from([
                ("PATH".to_owned(), path),
                ("BENCH".to_owned(), here),
                ("HOME".to_owned(), "/root".to_owned()),
            ]),
            timeout: Duration::from_secs(300),
            cancel: CancellationToken::new(),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        fs::write(&path, text).expect("written");
        path
    }

    /// A program on PATH. `$BENCH` is the bench's directory.
    pub(crate) fn fake(&self, name: &str, script: &str) {
        let path = self.write(&format!("bin/{name}"), &format!("#!/bin/sh\n{script}\n"));
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("a mode");
    }

    /// Lines that fakes have written into `$BENCH/log`, and takes them away.
    pub(crate) fn log(&self) -> Vec<String> {
        let path = self.path("log");
        let text = fs::read_to_string(&path).unwrap_or_default();
        let _ = fs::remove_file(path);
        text.lines().map(str::to_owned).collect()
    }

    /// Does something that blocks with tools, and hears all they say.
    pub(crate) async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Tools) -> T + Send + 'static,
    ) -> (T, Heard) {
        let (said, mut hearing) = mpsc::channel(8);
        let tools = Tools::new(Shared {
            runtime: Handle::current(),
            environment: self.environment.clone(),
            marks: vec![format!(
                "MUSTER_REQUEST=bench-{}",
                self.dir.path().display()
            )],
            cgroups: None,
            cgroup_name: String::new(),
            kill_grace: Duration::from_secs(1),
            deadline: Instant::now() + self.timeout,
            cancel: self.cancel.clone(),
            output_bytes: 1 << 20,
            said,
        });
        let working = tokio::task::spawn_blocking(move || work(&tools));
        let mut heard = Heard::default();
        while let Some(said) = hearing.recv().await {
            match said {
                Said::Started { noted, .. } => {
                    heard.started += 1;
                    let _ = noted.send(());
                }
                Said::Output(stream, data) => {
                    let text = String::from_utf8_lossy(&data).into_owned();
                    match stream {
                        Stream::Stdout => heard.out.push_str(&text),
                        Stream::Stderr => heard.err.push_str(&text),
                        Stream::Note => {}
                    }
                }
                Said::Note(_) => {}
            }
        }
        (working.await.expect("it did not panic"), heard)
    }
}

/// A change as one text.
pub(crate) fn shown(performed: &Performed) -> String {
    match &performed.change {
        None => "nothing to change".to_owned(),
        Some(Change::Unchanged) => "unchanged".to_owned(),
        Some(Change::Changed { summary, diff }) => format!("changed: {summary} {diff:?}"),
        Some(Change::WouldChange { summary, diff }) => format!("would: {summary} {diff:?}"),
    }
}

/// Whether a program is on this machine; says so when a test is skipped for
/// want of it.
pub(crate) fn have(program: &str) -> bool {
    let there = PATH
        .split(':')
        .any(|dir| Path::new(dir).join(program).exists());
    if !there {
        println!("SKIPPED: there is no {program} on this machine");
    }
    there
}

/// Whether this is root; says so when a test is skipped for want of it.
pub(crate) fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("SKIPPED: this needs root");
    }
    root
}
