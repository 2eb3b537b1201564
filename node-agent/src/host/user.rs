//! User accounts, by the distribution's own tools.

use muster_protocol::envelope::Mode;
use muster_protocol::text::printable;
use muster_scenarios::node::{Change, HostError, Performed, UserWish};
use serde_json::Value;

use super::tools::{Tool, ToolError, Tools};

/// Longest name that the tools take.
const MAX_NAME: usize = 32;

/// Why an account is not as it is wanted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UserError {
    /// It can be no user's name.
    #[error(
        "`{0}` is not the name of a user or a group: small letters, digits, `_` and `-`, a letter or `_` first"
    )]
    Name(String),
    /// A path that no account can have.
    #[error("`{0}` is not an absolute path without `:`")]
    Path(String),
    /// A tool failed.
    #[error("{what}: {complaint}")]
    Failed {
        /// Which.
        what: &'static str,
        /// What it said.
        complaint: String,
    },
    /// A tool did not run to its end.
    #[error(transparent)]
    Tool(#[from] ToolError),
}

impl From<UserError> for HostError {
    fn from(error: UserError) -> Self {
        match error {
            UserError::Tool(ToolError::Stopped) => Self::Stopped,
            other => Self::Failed(other.to_string()),
        }
    }
}

struct Entry {
    home: String,
    shell: String,
    groups: Vec<String>,
}

/// Has an account so, or says what it would do.
///
/// # Errors
/// [`UserError`].
pub fn perform(
    tools: &Tools,
    name: &str,
    wish: &UserWish,
    mode: Mode,
) -> Result<Performed, UserError> {
    check_name(name)?;
    let change = match wish {
        UserWish::Absent => absent(tools, name, mode)?,
        UserWish::Present {
            shell,
            home,
            groups,
            system,
        } => {
            for path in shell.iter().chain(home) {
                if !path.starts_with('/') || path.contains([':', '\n', '\0']) {
                    return Err(UserError::Path(printable(path, 80)));
                }
            }
            for group in groups {
                check_name(group)?;
            }
            let wanted = Wanted {
                shell: shell.as_deref(),
                home: home.as_deref(),
                groups,
                system: *system,
            };
            match look(tools, name)? {
                None => add(tools, name, &wanted, mode)?,
                Some(now) => change(tools, name, &now, &wanted, mode)?,
            }
        }
    };
    Ok(Performed {
        change: Some(change),
        value: Value::Null,
    })
}

struct Wanted<'a> {
    shell: Option<&'a str>,
    home: Option<&'a str>,
    groups: &'a [String],
    system: bool,
}

fn check_name(name: &str) -> Result<(), UserError> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
    let well = name.len() <= MAX_NAME
        && name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.chars().all(plain);
    if well {
        return Ok(());
    }
    Err(UserError::Name(printable(name, 60)))
}

fn look(tools: &Tools, name: &str) -> Result<Option<Entry>, UserError> {
    // getent asks whatever the node gets its users from.
    let answer = tools.run(Tool::new("getent").args(["passwd", name]))?;
    match answer.exit {
        Some(0) => {}
        Some(2) => return Ok(None),
        _ => return Err(failed("getent", &answer)),
    }
    let text = answer.text();
    let fields: Vec<&str> = text.trim_end().split(':').collect();
    let [_, _, _, _, _, home, shell] = fields[..] else {
        return Err(UserError::Failed {
            what: "getent",
            complaint: format!("`{}` is no account", printable(&text, 80)),
        });
    };
    let answer = tools.run(Tool::new("id").args(["-Gn", "--", name]))?;
    if !answer.is_well() {
        return Err(failed("id", &answer));
    }
    Ok(Some(Entry {
        home: home.to_owned(),
        shell: shell.to_owned(),
        groups: answer
            .text()
            .split_whitespace()
            .map(str::to_owned)
            .collect(),
    }))
}

fn add(tools: &Tools, name: &str, wanted: &Wanted<'_>, mode: Mode) -> Result<Change, UserError> {
    let mut diff = vec![format!("+user {name}")];
    let mut tool = Tool::new("useradd");
    if wanted.system {
        tool = tool.args(["--system"]);
    } else {
        tool = tool.args(["--create-home"]);
    }
    if let Some(home) = wanted.home {
        diff.push(format!("+home {home}"));
        tool = tool.args(["--home-dir", home]);
    }
    if let Some(shell) = wanted.shell {
        diff.push(format!("+shell {shell}"));
        tool = tool.args(["--shell", shell]);
    }
    if !wanted.groups.is_empty() {
        let groups = wanted.groups.join(",");
        diff.push(format!("+groups {groups}"));
        tool = tool.args(["--groups", &groups]);
    }
    run(tools, "useradd", tool, name, mode)?;
    Ok(changed(mode, "created", diff))
}

fn change(
    tools: &Tools,
    name: &str,
    now: &Entry,
    wanted: &Wanted<'_>,
    mode: Mode,
) -> Result<Change, UserError> {
    let mut diff = Vec::new();
    let mut said = Vec::new();
    let mut tool = Tool::new("usermod");
    for (what, option, is, should) in [
        ("home", "--home", &now.home, wanted.home),
        ("shell", "--shell", &now.shell, wanted.shell),
    ] {
        if let Some(should) = should.filter(|should| should != is) {
            diff.extend([format!("-{what} {is}"), format!("+{what} {should}")]);
            said.push(what);
            tool = tool.args([option, should]);
        }
    }
    let missing: Vec<&str> = wanted
        .groups
        .iter()
        .map(String::as_str)
        .filter(|group| !now.groups.iter().any(|is| is == group))
        .collect();
    if !missing.is_empty() {
        let groups = missing.join(",");
        diff.push(format!("+groups {groups}"));
        said.push("groups");
        // Those that it is in already are not taken away.
        tool = tool.args(["--append", "--groups", &groups]);
    }
    if said.is_empty() {
        return Ok(Change::Unchanged);
    }
    run(tools, "usermod", tool, name, mode)?;
    Ok(changed(mode, &said.join(", "), diff))
}

fn absent(tools: &Tools, name: &str, mode: Mode) -> Result<Change, UserError> {
    if look(tools, name)?.is_none() {
        return Ok(Change::Unchanged);
    }
    // Its files stay: nobody asked for them to go.
    run(tools, "userdel", Tool::new("userdel"), name, mode)?;
    Ok(changed(mode, "removed", vec![format!("-user {name}")]))
}

fn run(
    tools: &Tools,
    what: &'static str,
    tool: Tool,
    name: &str,
    mode: Mode,
) -> Result<(), UserError> {
    if mode == Mode::Check {
        return Ok(());
    }
    let answer = tools.run(tool.args(["--", name]).env("LC_ALL", "C").shown())?;
    if answer.is_well() {
        return Ok(());
    }
    Err(failed(what, &answer))
}

fn failed(what: &'static str, answer: &super::tools::Answer) -> UserError {
    UserError::Failed {
        what,
        complaint: answer.complaint(),
    }
}

fn changed(mode: Mode, summary: &str, diff: Vec<String>) -> Change {
    let summary = summary.to_owned();
    match mode {
        Mode::Apply => Change::Changed { summary, diff },
        Mode::Check => Change::WouldChange { summary, diff },
    }
}

#[cfg(test)]
mod tests;
