//! Custom facts, from files and programs that the machine's owner has put
//! into a directory.

use std::fs::{self, Metadata};
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use muster_protocol::run::Stream;
use muster_protocol::text::printable;
use muster_protocol::wire::MAX_FACTS;
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use super::Source;
use crate::host::environment::Environment;
use crate::host::proc::Process;
use crate::host::process::{self, Sink, Spec, Why};

/// How long a program may take.
const PROGRAM_WITHIN: Duration = Duration::from_secs(10);
/// Programs that run at once.
const AT_ONCE: usize = 4;
/// Most files that are looked at.
const MAX_FILES: usize = 200;

/// What a directory says, and what is wrong with it.
pub(super) async fn gather(dir: &Path, environment: &Environment) -> (Vec<Source>, Vec<String>) {
    let (paths, mut notes) = list(dir);
    let read: Vec<Result<Option<Source>, String>> = futures_util::stream::iter(paths)
        .map(|path| async move {
            let name = file_name(&path);
            match facts_of(&path, environment).await {
                Ok(facts) => Ok(facts.map(|facts| Source { name, facts })),
                Err(why) => Err(format!("{name}: {why}")),
            }
        })
        // In order, so that the first file wins, always the same.
        .buffered(AT_ONCE)
        .collect()
        .await;
    let mut files = Vec::new();
    for result in read {
        match result {
            Ok(file) => files.extend(file),
            Err(note) => notes.push(note),
        }
    }
    (files, notes)
}

fn file_name(path: &Path) -> String {
    printable(&path.file_name().unwrap_or_default().to_string_lossy(), 60)
}

/// The files in it, by name.
fn list(dir: &Path) -> (Vec<PathBuf>, Vec<String>) {
    let shown = printable(&dir.display().to_string(), 100);
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Default::default(),
        Err(e) => return (Vec::new(), vec![format!("{shown} cannot be read: {e}")]),
    };
    let mut paths: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            !name.starts_with('.') && !name.ends_with('~') && path.is_file()
        })
        .collect();
    paths.sort();
    let mut notes = Vec::new();
    if paths.len() > MAX_FILES {
        notes.push(format!(
            "{shown} has {} files; only the first {MAX_FILES} are read",
            paths.len()
        ));
        paths.truncate(MAX_FILES);
    }
    (paths, notes)
}

/// The facts of one file; `None` for one that is of no kind known here.
async fn facts_of(
    path: &Path,
    environment: &Environment,
) -> Result<Option<Map<String, Value>>, String> {
    let meta = fs::metadata(path).map_err(|e| format!("cannot be read: {e}"))?;
    let extension = path.extension().and_then(|e| e.to_str());
    let executable = meta.permissions().mode() & 0o111 != 0;
    match extension {
        _ if executable => {
            trusted(&meta)?;
            let output = execute(path, environment).await?;
            program_output(&output).map(Some)
        }
        Some("json") => json(&read(path)?).map(Some),
        Some("toml") => toml_facts(&read(path)?).map(Some),
        _ => Ok(None),
    }
}

/// A program that somebody else could have written is not run.
fn trusted(meta: &Metadata) -> Result<(), String> {
    let me = rustix::process::geteuid().as_raw();
    if meta.uid() != 0 && meta.uid() != me {
        return Err(format!(
            "is not run: it belongs to user {}, not to root or the agent's user",
            meta.uid()
        ));
    }
    if meta.permissions().mode() & 0o002 != 0 {
        return Err("is not run: everybody may write to it".into());
    }
    Ok(())
}

fn read(path: &Path) -> Result<String, String> {
    let file = fs::File::open(path).map_err(|e| format!("cannot be read: {e}"))?;
    let mut bytes = Vec::new();
    file.take(MAX_FACTS as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| format!("cannot be read: {e}"))?;
    if bytes.len() > MAX_FACTS {
        return Err(format!("has more than {MAX_FACTS} bytes"));
    }
    String::from_utf8(bytes).map_err(|_| "is not UTF-8".to_owned())
}

fn json(text: &str) -> Result<Map<String, Value>, String> {
    match serde_json::from_str(text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err("is JSON, but not an object".into()),
        Err(e) => Err(format!("is not JSON: {e}")),
    }
}

fn toml_facts(text: &str) -> Result<Map<String, Value>, String> {
    let table: toml::Table = text
        .parse()
        .map_err(|e: toml::de::Error| format!("is not TOML: {}", e.message()))?;
    match serde_json::to_value(table) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err("is not a table".into()),
        Err(e) => Err(format!("holds what no fact can: {e}")),
    }
}

/// JSON, or lines of `key=value`.
fn program_output(output: &[u8]) -> Result<Map<String, Value>, String> {
    let text = std::str::from_utf8(output).map_err(|_| "printed what is not UTF-8".to_owned())?;
    if text.trim_start().starts_with('{') {
        return json(text).map_err(|why| format!("printed what {why}"));
    }
    let mut facts = Map::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (key, value) = line.split_once('=').ok_or_else(|| {
            format!(
                "printed `{}` in line {}, which is neither JSON nor key=value",
                printable(line, 40),
                number + 1
            )
        })?;
        facts.insert(key.trim().to_owned(), Value::from(value.trim()));
    }
    Ok(facts)
}

async fn execute(path: &Path, environment: &Environment) -> Result<Vec<u8>, String> {
    let mut variables = environment.base().clone();
    let mark = format!("MUSTER_FACT={}-{}", std::process::id(), path.display());
    if let Some((key, value)) = mark.split_once('=') {
        variables.insert(key.to_owned(), value.to_owned());
    }
    let spec = Spec {
        program: path.display().to_string(),
        arguments: Vec::new(),
        environment: variables,
        directory: None,
        input: None,
        marks: vec![mark],
        cgroup: None,
        timeout: PROGRAM_WITHIN,
        kill_grace: Duration::from_millis(500),
        output_bytes: MAX_FACTS as u64,
    };
    let mut collected = Collected::default();
    let end = process::run(&spec, &mut collected, &CancellationToken::new())
        .await
        .map_err(|e| format!("could not be run: {e}"))?;
    match (end.why, end.exit()) {
        (Why::TimedOut(_), _) => Err(format!(
            "ran longer than {} s and was ended",
            PROGRAM_WITHIN.as_secs()
        )),
        _ if end.truncated => Err(format!("printed more than {MAX_FACTS} bytes")),
        (_, Some(0)) => Ok(collected.stdout),
        (_, Some(code)) => Err(format!(
            "ended with exit code {code}: {}",
            first_line(&collected.stderr)
        )),
        (_, None) => Err("was ended by a signal".into()),
    }
}

fn first_line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    printable(text.lines().next().unwrap_or_default(), 80)
}

#[derive(Default)]
struct Collected {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Sink for Collected {
    fn started<'a>(&'a mut self, _: &'a Process, _: Option<&'a Path>) -> BoxFuture<'a, ()> {
        Box::pin(std::future::ready(()))
    }

    fn output(&mut self, stream: Stream, data: Bytes) -> BoxFuture<'_, ()> {
        match stream {
            Stream::Stdout => self.stdout.extend_from_slice(&data),
            Stream::Stderr => self.stderr.extend_from_slice(&data),
            Stream::Note => {}
        }
        Box::pin(std::future::ready(()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use serde_json::json;

    fn put(dir: &Path, name: &str, text: &str, mode: u32) {
        let path = dir.join(name);
        fs::write(&path, text).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("mode set");
    }

    #[tokio::test]
    async fn files_and_programs_give_facts_and_bad_ones_give_notes() {
        let dir = tempfile::tempdir().expect("tempdir");
        put(dir.path(), "a.json", r#"{"rack": "r03"}"#, 0o644);
        put(
            dir.path(),
            "b.toml",
            "units = 42\n[bmc]\nip = \"192.0.2.7\"\n",
            0o644,
        );
        put(
            dir.path(),
            "c.sh",
            "#!/bin/sh\necho 'site = gva2'\necho\necho '# x'\necho a=b=c\n",
            0o755,
        );
        put(
            dir.path(),
            "d",
            "#!/bin/sh\necho '{\"pci\": [1, 2]}'\n",
            0o755,
        );
        put(dir.path(), "e.json", "{", 0o644);
        put(
            dir.path(),
            "f.sh",
            "#!/bin/sh\necho broken >&2; exit 3\n",
            0o755,
        );
        put(dir.path(), "g.sh", "#!/bin/sh\necho no facts here\n", 0o755);
        put(dir.path(), "h.sh", "#!/bin/sh\necho x=1\n", 0o777);
        put(dir.path(), "i.json", "[1]", 0o644);
        put(dir.path(), "README", "not a fact", 0o644);
        put(dir.path(), ".hidden.json", "{", 0o644);
        let environment = Environment::new(&BTreeMap::new());
        let (files, notes) = gather(dir.path(), &environment).await;
        let all: Vec<Value> = files.into_iter().map(|f| Value::Object(f.facts)).collect();
        assert_eq!(
            all,
            [
                json!({"rack": "r03"}),
                json!({"units": 42, "bmc": {"ip": "192.0.2.7"}}),
                json!({"site": "gva2", "a": "b=c"}),
                json!({"pci": [1, 2]}),
            ]
        );
        assert_eq!(notes.len(), 5, "{notes:?}");
        assert!(notes[0].starts_with("e.json: is not JSON"), "{notes:?}");
        assert_eq!(notes[1], "f.sh: ended with exit code 3: broken");
        assert!(notes[2].contains("`no facts here` in line 1"), "{notes:?}");
        assert_eq!(notes[3], "h.sh: is not run: everybody may write to it");
        assert_eq!(notes[4], "i.json: is JSON, but not an object");
    }

    #[tokio::test]
    async fn no_directory_is_no_facts() {
        let environment = Environment::new(&BTreeMap::new());
        let (files, notes) = gather(Path::new("/nonexistent/facts.d"), &environment).await;
        assert!(files.is_empty() && notes.is_empty());
    }
}
