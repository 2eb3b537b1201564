//! What is inside of a machine, by its QEMU guest agent, and what it wrote to
//! its console. Both are a stranger's words.

use std::fs::OpenOptions;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use data_encoding::BASE64;
use muster_libvirt::message::{Domain, FailureKind};
use muster_protocol::envelope::Mode;
use muster_protocol::text::printable;
use muster_protocol::units::Span;
use muster_protocol::vm::{GuestState, VmId};
use muster_scenarios::node::{Change, Performed};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::machines::{Done, Inner, VmError, left};
use super::virt::{Asking, Virt};

/// How long a guest agent has for one answer.
const ANSWER_SECONDS: u32 = 5;
/// How long it has to say that it is there.
const PING_SECONDS: u32 = 2;
/// Between two looks at a program in a guest: the first, and the longest.
const LOOKS: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// Most bytes of one stream of a program in a guest.
const MAX_OUTPUT: usize = 256 << 10;
/// Most bytes that are read of a console's log.
const MAX_LOG: u64 = 256 << 10;
/// Most lines of it that are given, and characters of each.
const MAX_LINES: (usize, usize) = (2_000, 500);

/// Why nothing is heard of the inside of a machine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GuestError {
    /// There is no agent.
    #[error(
        "no QEMU guest agent answers in it; install qemu-guest-agent in the machine and start it"
    )]
    NoAgent,
    /// The agent says no.
    #[error("the guest agent in it says: {0}")]
    Said(String),
    /// The agent says something else.
    #[error("the guest agent in it answers something that it should not: {0}")]
    Strange(String),
    /// Too long.
    #[error("the program in it still ran after {0}; it goes on")]
    Late(Span),
    /// No program.
    #[error("there is no program to run: give its path and its arguments")]
    NoProgram,
}

#[derive(Deserialize)]
struct Begun {
    pid: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Status {
    exited: bool,
    #[serde(default)]
    exitcode: Option<i64>,
    #[serde(default)]
    signal: Option<i64>,
    #[serde(default)]
    out_data: Option<String>,
    #[serde(default)]
    err_data: Option<String>,
    #[serde(default)]
    out_truncated: bool,
    #[serde(default)]
    err_truncated: bool,
}

/// Text of what a program wrote, and whether there was more.
fn output(data: Option<String>) -> Result<(String, bool), GuestError> {
    let data = data.unwrap_or_default();
    let bytes = BASE64
        .decode(data.as_bytes())
        .map_err(|_| GuestError::Strange("output that is not Base64".to_owned()))?;
    let kept = &bytes[..bytes.len().min(MAX_OUTPUT)];
    Ok((
        String::from_utf8_lossy(kept).into_owned(),
        kept.len() < bytes.len(),
    ))
}

impl Inner {
    /// Asks the guest agent something.
    async fn agent(&self, id: VmId, command: Value, seconds: u32) -> Done<Value> {
        let ask: Asking<'_, dyn Virt> = Asking(&*self.guests);
        let text = match ask.guest_agent(id, command.to_string(), seconds).await {
            Ok(text) => text,
            Err(e) if e.is(FailureKind::NoAgent) => return Err(GuestError::NoAgent.into()),
            Err(e) => return Err(e.into()),
        };
        let strange = || GuestError::Strange(printable(&text, 200));
        let answer: Value = serde_json::from_str(&text).map_err(|_| strange())?;
        if let Some(error) = answer.get("error") {
            let words = error.get("desc").and_then(Value::as_str);
            let words = words.map_or_else(|| error.to_string(), str::to_owned);
            return Err(GuestError::Said(printable(&words, 300)).into());
        }
        let value = answer.get("return").cloned().ok_or_else(strange)?;
        Ok(value)
    }

    async fn running(&self, id: VmId) -> Done<Domain> {
        let domain = self.there(id).await?;
        if domain.state == GuestState::Running {
            Ok(domain)
        } else {
            Err(VmError::NotRunning)
        }
    }

    pub(super) async fn guest_ping(&self, id: VmId, mode: Mode) -> Done<Performed> {
        let domain = match self.look(id).await? {
            Some(domain) => domain,
            // A dry run has made none.
            None if mode == Mode::Check => {
                return Ok(Performed {
                    change: None,
                    value: true.into(),
                });
            }
            None => return Err(VmError::Missing(id)),
        };
        let mut answers = false;
        if domain.state == GuestState::Running {
            let ping = json!({ "execute": "guest-ping" });
            answers = match self.agent(id, ping, PING_SECONDS).await {
                Ok(_) => true,
                // Whatever is in it does not answer as an agent does: no more
                // follows from what it says.
                Err(VmError::Guest(_)) => false,
                // Another one may have ended it meanwhile.
                Err(VmError::Virt(e)) if e.is(FailureKind::State) || e.is(FailureKind::Other) => {
                    false
                }
                Err(e) => return Err(e),
            };
        }
        Ok(Performed {
            change: None,
            value: answers.into(),
        })
    }

    pub(super) async fn guest_exec(
        &self,
        id: VmId,
        argv: &[String],
        timeout: Span,
        mode: Mode,
    ) -> Done<Performed> {
        let Some((program, arguments)) = argv.split_first() else {
            return Err(GuestError::NoProgram.into());
        };
        self.running(id).await?;
        // Not its arguments: a secret that is cut is none that can be masked.
        let summary = "a program ran in it".to_owned();
        if mode == Mode::Check {
            let change = Change::WouldChange {
                summary: "a program in it".to_owned(),
                diff: Vec::new(),
            };
            return Ok(Performed {
                change: Some(change),
                value: Value::Null,
            });
        }
        let begun_at = Instant::now();
        let exec = json!({
            "execute": "guest-exec",
            "arguments": { "path": program, "arg": arguments, "capture-output": true },
        });
        let strange = |what: &Value| GuestError::Strange(printable(&what.to_string(), 200));
        let said = self.agent(id, exec, ANSWER_SECONDS).await?;
        let begun: Begun = serde_json::from_value(said.clone()).map_err(|_| strange(&said))?;
        let look = json!({
            "execute": "guest-exec-status",
            "arguments": { "pid": begun.pid },
        });
        let mut pause = LOOKS.0;
        let status = loop {
            let said = self.agent(id, look.clone(), ANSWER_SECONDS).await?;
            let short = || GuestError::Strange("no status of the program".to_owned());
            let status: Status = serde_json::from_value(said).map_err(|_| short())?;
            if status.exited {
                break status;
            }
            let rest = left(begun_at, timeout);
            if rest.is_zero() {
                return Err(GuestError::Late(timeout).into());
            }
            tokio::time::sleep(pause.min(rest)).await;
            pause = (pause * 2).min(LOOKS.1);
        };
        let (stdout, more_out) = output(status.out_data)?;
        let (stderr, more_err) = output(status.err_data)?;
        let truncated = more_out || more_err || status.out_truncated || status.err_truncated;
        Ok(Performed {
            change: Some(Change::Changed {
                summary,
                diff: Vec::new(),
            }),
            value: json!({
                "exit": status.exitcode,
                "signal": status.signal,
                "stdout": stdout,
                "stderr": stderr,
                "truncated": truncated,
            }),
        })
    }

    pub(super) fn console_log(&self, id: VmId, lines: u32) -> Done<Performed> {
        let name = format!("muster-{id}.log");
        let path = self.setting.console.join(name);
        let text = last_lines(&path, lines as usize).map_err(|source| VmError::File {
            path: PathBuf::from(&path),
            source,
        })?;
        Ok(Performed {
            change: None,
            value: text.into(),
        })
    }
}

/// The end of a file, so that a person can read it: lines without anything
/// that a terminal would obey. Nothing where there is no file.
fn last_lines(path: &Path, lines: usize) -> io::Result<String> {
    let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits();
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(flags.cast_signed())
        .open(path);
    let mut file = match opened {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        Err(e) => return Err(e),
    };
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(MAX_LOG)))?;
    let mut bytes = Vec::new();
    file.take(MAX_LOG).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<String> = text
        .lines()
        .map(|line| printable(strip_colours(line).trim_end(), MAX_LINES.1))
        .collect();
    let begin = all.len().saturating_sub(lines.min(MAX_LINES.0));
    Ok(all[begin..].join("\n"))
}

/// A line without the sequences by which terminals are coloured and cleared.
fn strip_colours(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        if c == '\u{1b}' && chars.peek() == Some(&'[') {
            chars.next();
            for c in chars.by_ref() {
                if c.is_ascii_alphabetic() || c == '~' {
                    break;
                }
            }
        } else {
            out.push(c);
        }
    }
    out
}
