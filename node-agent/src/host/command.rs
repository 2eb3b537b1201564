//! Programs and lines of shell that a script runs.

use std::path::Path;

use muster_protocol::envelope::Mode;
use muster_protocol::text::printable;
use muster_scenarios::node::{Change, HostError, Performed, Run, RunWhat};
use serde_json::{Value, json};

use super::account::{Account, AccountError};
use super::tools::{Answer, Tool, ToolError, Tools};

/// Why a program of a script did not do what it was to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// It failed.
    #[error("{0}")]
    Failed(String),
    /// Its directory.
    #[error("the directory `{0}` does not exist")]
    Directory(String),
    /// As whom.
    #[error(transparent)]
    Account(#[from] AccountError),
    /// It did not run to its end.
    #[error(transparent)]
    Tool(#[from] ToolError),
}

impl From<CommandError> for HostError {
    fn from(error: CommandError) -> Self {
        match error {
            CommandError::Tool(ToolError::Stopped) => Self::Stopped,
            other => Self::Failed(other.to_string()),
        }
    }
}

/// Runs it, unless `creates` or `only_if` says that there is no need. In a
/// dry run only `only_if` runs, and what says that it changes nothing.
///
/// # Errors
/// [`CommandError`].
pub fn perform(tools: &Tools, run: &Run, mode: Mode) -> Result<Performed, CommandError> {
    if let Some(path) = &run.creates
        && Path::new(path).symlink_metadata().is_ok()
    {
        return Ok(skipped());
    }
    // In a dry run nobody made it yet.
    if let Some(directory) = &run.cwd
        && !Path::new(directory).is_dir()
        && mode == Mode::Apply
    {
        return Err(CommandError::Directory(printable(directory, 200)));
    }
    let account = match run.user.as_deref().map(Account::find) {
        None => None,
        Some(Ok(account)) => account,
        // One that an earlier call would have made.
        Some(Err(AccountError::Unknown(_))) if mode == Mode::Check => return Ok(would_run()),
        Some(Err(e)) => return Err(e.into()),
    };
    let dressed = |program: &str, arguments: &[String]| {
        Tool::new(program)
            .args(arguments)
            .envs(&run.env)
            .directory(run.cwd.as_deref())
            .account(account.clone())
    };
    if let Some([program, arguments @ ..]) = run.only_if.as_deref() {
        let asked = dressed(program, arguments).timeout(run.timeout);
        if !tools.run(asked)?.is_well() {
            return Ok(skipped());
        }
    }
    if mode == Mode::Check && run.changes {
        return Ok(would_run());
    }
    let argv: Vec<String> = match &run.what {
        RunWhat::Argv(argv) => argv.clone(),
        RunWhat::Shell(line) => vec!["/bin/sh".into(), "-c".into(), line.clone()],
    };
    let Some((program, arguments)) = argv.split_first() else {
        return Err(CommandError::Failed("there is nothing to run".into()));
    };
    let tool = dressed(program, arguments)
        .input(run.stdin.as_deref())
        .timeout(run.timeout)
        .shown();
    let answer = tools.run(tool)?;
    let well = answer.exit.is_some_and(|code| run.ok.contains(&code));
    if !well {
        return Err(CommandError::Failed(answer.complaint()));
    }
    let code = answer.exit.unwrap_or_default();
    let change = run.changes.then(|| Change::Changed {
        summary: format!("ran, exit code {code}"),
        diff: Vec::new(),
    });
    Ok(Performed {
        change,
        value: value(&answer),
    })
}

fn value(answer: &Answer) -> Value {
    json!({
        "exit": answer.exit,
        "stdout": answer.text(),
        "stderr": String::from_utf8_lossy(&answer.stderr),
        "skipped": false,
        "truncated": answer.truncated,
    })
}

fn nothing() -> Value {
    json!({"exit": 0, "stdout": "", "stderr": "", "skipped": true, "truncated": false})
}

fn skipped() -> Performed {
    Performed {
        change: Some(Change::Unchanged),
        value: nothing(),
    }
}

fn would_run() -> Performed {
    Performed {
        change: Some(Change::WouldChange {
            summary: "would run".into(),
            diff: Vec::new(),
        }),
        value: nothing(),
    }
}

#[cfg(test)]
mod tests;
