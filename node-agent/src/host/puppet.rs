//! Puppet: a manifest of its own, or what the Puppet server has for the node.
//!
//! What became of it is read from Puppet's own report and summary, not from
//! what it prints.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use muster_protocol::envelope::Mode;
use muster_protocol::text::printable;
use muster_scenarios::node::{Change, HostError, Performed, PuppetRun};
use serde_json::json;

use super::tools::{Answer, Tool, ToolError, Tools};

const PUPPET: &str = "puppet";
/// Where Puppet's own packages put it.
const ELSEWHERE: &str = "/opt/puppetlabs/bin/puppet";
/// Most bytes of a report that are read: those of the beginning and the end
/// of a large one are not told apart.
const MAX_REPORT: u64 = 64 << 20;
/// Most bytes of a summary.
const MAX_SUMMARY: u64 = 1 << 20;
/// Most errors that are passed on.
const MAX_ERRORS: usize = 3;
/// Most lines of what Puppet changed that are passed on.
const MAX_LINES: usize = 200;

/// Why Puppet did not do what it was to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PuppetError {
    /// It is not there.
    #[error("this node has no puppet (looked in PATH and {ELSEWHERE})")]
    Missing,
    /// Something of it failed.
    #[error("{failed} of {total} resources failed{said}")]
    Resources {
        /// How many.
        failed: u64,
        /// Of how many.
        total: u64,
        /// `": "` and its errors.
        said: String,
    },
    /// It did not come as far as that.
    #[error("{0}")]
    Failed(String),
    /// There is no report of this run.
    #[error("puppet ended with {0}, and left no report that says what it did")]
    NoReport(String),
    /// A file of ours.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// It did not run to its end.
    #[error(transparent)]
    Tool(#[from] ToolError),
}

impl From<PuppetError> for HostError {
    fn from(error: PuppetError) -> Self {
        match error {
            PuppetError::Tool(ToolError::Stopped) => Self::Stopped,
            other => Self::Failed(other.to_string()),
        }
    }
}

/// What Puppet says of a run.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Report {
    /// `changed`, `unchanged` or `failed`.
    status: String,
    total: u64,
    changed: u64,
    failed: u64,
    out_of_sync: u64,
}

/// Runs Puppet; a dry run is its `--noop`.
///
/// # Errors
/// [`PuppetError`].
pub fn perform(tools: &Tools, run: &PuppetRun, mode: Mode) -> Result<Performed, PuppetError> {
    let puppet = if tools.has(PUPPET) {
        PUPPET
    } else if Path::new(ELSEWHERE).exists() {
        ELSEWHERE
    } else {
        return Err(PuppetError::Missing);
    };
    let scratch = tempfile::Builder::new()
        .prefix("muster-puppet-")
        // The manifest may hold what nobody else is to read.
        .permissions(fs::Permissions::from_mode(0o700))
        .tempdir()
        .map_err(io("make a directory for Puppet's report"))?;
    let begun = SystemTime::now();
    let own = Files {
        report: scratch.path().join("report.yaml"),
        summary: scratch.path().join("summary.yaml"),
    };
    let (tool, files) = match run {
        PuppetRun::Apply { manifest } => {
            let path = scratch.path().join("manifest.pp");
            let mut file = fs::File::create_new(&path).map_err(io("write the manifest"))?;
            file.write_all(manifest.as_bytes())
                .map_err(io("write the manifest"))?;
            let tool = dressed(puppet, "apply", mode)
                .args(own.arguments())
                .args([path.display().to_string()]);
            (tool, own)
        }
        PuppetRun::Agent => {
            let tool = dressed(puppet, "agent", mode).args([
                "--onetime",
                "--no-daemonize",
                "--no-splay",
                "--no-usecacheonfailure",
                "--verbose",
            ]);
            match mode {
                // What watches the node's Puppet must see a real run there.
                Mode::Apply => (tool, standard(tools, puppet)?),
                Mode::Check => (tool.args(own.arguments()), own),
            }
        }
    };
    let answer = tools.run(tool)?;
    let report = files.read(begun);
    judge(&answer, report, mode)
}

fn dressed(puppet: &str, verb: &str, mode: Mode) -> Tool {
    let mut tool = Tool::new(puppet)
        .args([verb, "--detailed-exitcodes", "--color=false", "--show_diff"])
        .env("LC_ALL", "C.UTF-8")
        .shown();
    if mode == Mode::Check {
        tool = tool.args(["--noop"]);
    }
    tool
}

struct Files {
    report: PathBuf,
    summary: PathBuf,
}

impl Files {
    fn arguments(&self) -> [String; 4] {
        [
            "--lastrunreport".to_owned(),
            self.report.display().to_string(),
            "--lastrunfile".to_owned(),
            self.summary.display().to_string(),
        ]
    }

    /// The report of a run that began then; `None` when there is none, or
    /// only that of an earlier run.
    fn read(&self, begun: SystemTime) -> Option<Report> {
        let report = recent(&self.report, begun, MAX_REPORT)?;
        let summary = recent(&self.summary, begun, MAX_SUMMARY)?;
        let numbers = sections(&summary);
        let number = |key: &str| {
            let found = numbers.get(&("resources".to_owned(), key.to_owned()));
            found.and_then(|text| text.parse().ok()).unwrap_or(0)
        };
        Some(Report {
            status: top(&report, "status")?,
            total: number("total"),
            changed: number("changed"),
            failed: number("failed") + number("failed_to_restart"),
            out_of_sync: number("out_of_sync"),
        })
    }
}

/// Where Puppet keeps the report of the agent's last run.
fn standard(tools: &Tools, puppet: &str) -> Result<Files, PuppetError> {
    let tool = Tool::new(puppet)
        .args([
            "config",
            "print",
            "--section",
            "agent",
            "lastrunreport",
            "lastrunfile",
        ])
        .env("LC_ALL", "C.UTF-8");
    let answer = tools.run(tool)?;
    let text = answer.text();
    let value = |key: &str| {
        text.lines().find_map(|line| {
            let (name, value) = line.split_once('=')?;
            (name.trim() == key).then(|| PathBuf::from(value.trim()))
        })
    };
    match (value("lastrunreport"), value("lastrunfile")) {
        (Some(report), Some(summary)) => Ok(Files { report, summary }),
        _ => Err(PuppetError::Failed(format!(
            "puppet does not say where its reports are: {}",
            answer.complaint()
        ))),
    }
}

fn recent(path: &Path, begun: SystemTime, most: u64) -> Option<String> {
    let file = fs::File::open(path).ok()?;
    let metadata = file.metadata().ok()?;
    // File systems round times down.
    let slack = std::time::Duration::from_secs(2);
    let fresh = metadata.modified().ok()? + slack >= begun;
    if !fresh || metadata.len() > most {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// A plain value at the top of a YAML document. Everything deeper is
/// indented or in a list, so that no text of a manifest can pass for one.
fn top(text: &str, key: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let value = line.strip_prefix(key)?.strip_prefix(':')?;
        Some(value.trim().trim_matches(['"', '\'']).to_owned())
    })
}

/// The two levels of a summary: `resources:` and, below it, `  changed: 1`.
fn sections(text: &str) -> BTreeMap<(String, String), String> {
    let mut all = BTreeMap::new();
    let mut section = String::new();
    for line in text.lines() {
        let Some((key, value)) = line.split_once(':') else {
            continue;
        };
        if !line.starts_with(' ') {
            section = key.trim().to_owned();
        } else {
            let key = key.trim().trim_matches(['"', '\'']).to_owned();
            all.insert((section.clone(), key), value.trim().to_owned());
        }
    }
    all
}

fn judge(answer: &Answer, report: Option<Report>, mode: Mode) -> Result<Performed, PuppetError> {
    let errors = errors(answer);
    let Some(report) = report else {
        // Such as: another run of the agent goes on, or a syntax error.
        if errors.is_empty() {
            let how = answer.complaint();
            return Err(PuppetError::NoReport(how));
        }
        return Err(PuppetError::Failed(printable(&errors.join("; "), 400)));
    };
    let failed_exit = !matches!(answer.exit, Some(0 | 2));
    if report.failed > 0 {
        return Err(PuppetError::Resources {
            failed: report.failed,
            total: report.total,
            said: match errors.is_empty() {
                true => String::new(),
                false => format!(": {}", printable(&errors.join("; "), 400)),
            },
        });
    }
    if report.status == "failed" || failed_exit {
        let text = if errors.is_empty() {
            answer.complaint()
        } else {
            printable(&errors.join("; "), 400)
        };
        return Err(PuppetError::Failed(text));
    }
    let differs = match mode {
        Mode::Apply => report.changed,
        Mode::Check => report.out_of_sync,
    };
    let summary = format!("{differs} of {} resources", report.total);
    let change = match (differs, mode) {
        (0, _) => Change::Unchanged,
        (_, Mode::Apply) => Change::Changed {
            summary,
            diff: lines(answer),
        },
        (_, Mode::Check) => Change::WouldChange {
            summary,
            diff: lines(answer),
        },
    };
    Ok(Performed {
        change: Some(change),
        value: json!({
            "status": report.status,
            "total": report.total,
            "changed": report.changed,
            "out_of_sync": report.out_of_sync,
        }),
    })
}

/// What Puppet complains of: its resources, else its last words.
fn errors(answer: &Answer) -> Vec<String> {
    let mut all = said(answer, "Error: ");
    // Facts that it cannot find out are said each time they are looked at.
    let mut seen = std::collections::HashSet::new();
    all.retain(|line| seen.insert(line.clone()));
    let of_resources = |line: &String| line.starts_with("/Stage[");
    if all.iter().any(of_resources) {
        all.retain(of_resources);
        all.truncate(MAX_ERRORS);
    } else {
        all.drain(..all.len().saturating_sub(MAX_ERRORS));
    }
    all
}

/// Lines that begin so, of both streams.
fn said(answer: &Answer, start: &str) -> Vec<String> {
    let all = [&answer.stderr, &answer.stdout];
    let lines = all.map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    lines
        .iter()
        .flat_map(|text| text.lines())
        .filter_map(|line| line.strip_prefix(start))
        .map(|line| printable(line, 300))
        .collect()
}

/// What Puppet says of each resource, and the differences of files.
fn lines(answer: &Answer) -> Vec<String> {
    let text = answer.text();
    let mut lines: Vec<String> = text
        .lines()
        .filter(|line| {
            line.starts_with("Notice: /Stage[")
                || (line.starts_with(['+', '-', ' ']) && !line.trim().is_empty())
        })
        // The names of temporary files differ each time.
        .filter(|line| !line.starts_with("--- ") && !line.starts_with("+++ "))
        .map(|line| printable(line.trim_start_matches("Notice: "), 300))
        .collect();
    if lines.len() > MAX_LINES {
        let more = lines.len() - MAX_LINES;
        lines.truncate(MAX_LINES);
        lines.push(format!("… {more} more lines"));
    }
    lines
}

fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> PuppetError {
    move |source| PuppetError::Io { what, source }
}

#[cfg(test)]
mod tests;
