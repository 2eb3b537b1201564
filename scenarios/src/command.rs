//! The built-in scenario `command`: run a program, or a line of shell.

use muster_protocol::envelope::BundleHash;
use muster_protocol::text::printable;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Its name.
pub const NAME: &str = "command";
/// Its only function.
pub const FUNCTION: &str = "run";
/// Longest single argument: the kernel's `MAX_ARG_STRLEN` is 131,072 bytes
/// with the terminating zero.
pub const MAX_ARGUMENT: usize = 131_071;
/// Most bytes of all arguments together, so that a request stays well below
/// the largest NATS message.
pub const MAX_ARGUMENTS: usize = 512 * 1024;

/// The hash that stands for this version of the built-in scenario.
#[must_use]
pub fn bundle() -> BundleHash {
    BundleHash::of(b"muster built-in command 1")
}

/// What to run. The JSON form is `{"argv": ["nginx", "-v"]}` or
/// `{"shell": "uptime | wc"}`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// A program and its arguments, run as they are: no shell sees them.
    Argv(Vec<String>),
    /// A line for `/bin/sh -c`.
    Shell(String),
}

/// Why the parameters are refused.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CommandError {
    /// Not of the form.
    #[error("the parameters of `command` are {{\"argv\": [...]}} or {{\"shell\": \"...\"}}: {0}")]
    Shape(String),
    /// No program, or an empty one.
    #[error("there is no command to run; write it after `--`")]
    Empty,
    /// Over the kernel's limit.
    #[error(
        "argument {index} has {bytes} bytes; the kernel takes at most {MAX_ARGUMENT}: put it in a file on the nodes"
    )]
    ArgumentTooLong {
        /// Which, the program being 0.
        index: usize,
        /// Its length.
        bytes: usize,
    },
    /// Over [`MAX_ARGUMENTS`].
    #[error("the arguments have {0} bytes together; at most {MAX_ARGUMENTS} can be sent")]
    TooLong(usize),
    /// A zero byte, which no argument can hold.
    #[error("argument {0} holds a zero byte, which the kernel would cut at")]
    Zero(usize),
}

impl Command {
    /// Reads and checks parameters.
    ///
    /// # Errors
    /// [`CommandError`]; the same on both sides.
    pub fn from_params(params: &Value) -> Result<Self, CommandError> {
        let command: Self = Self::deserialize(params)
            .map_err(|e| CommandError::Shape(printable(&e.to_string(), 200)))?;
        command.check()?;
        Ok(command)
    }

    fn check(&self) -> Result<(), CommandError> {
        let argv = self.argv();
        if argv.first().is_none_or(|program| program.is_empty())
            || matches!(self, Self::Shell(s) if s.trim().is_empty())
        {
            return Err(CommandError::Empty);
        }
        for (index, arg) in argv.iter().enumerate() {
            if arg.len() > MAX_ARGUMENT {
                return Err(CommandError::ArgumentTooLong {
                    index,
                    bytes: arg.len(),
                });
            }
            if arg.contains('\0') {
                return Err(CommandError::Zero(index));
            }
        }
        let total: usize = argv.iter().map(|a| a.len()).sum();
        if total > MAX_ARGUMENTS {
            return Err(CommandError::TooLong(total));
        }
        Ok(())
    }

    /// Program and arguments as they are executed.
    #[must_use]
    pub fn argv(&self) -> Vec<&str> {
        match self {
            Self::Argv(argv) => argv.iter().map(String::as_str).collect(),
            Self::Shell(line) => vec!["/bin/sh", "-c", line],
        }
    }

    /// The capability that a node must grant.
    #[must_use]
    pub fn capability(&self) -> &'static str {
        match self {
            Self::Argv(_) => "command",
            Self::Shell(_) => "shell",
        }
    }

    /// One line for people, escaped and cut to 120 characters.
    #[must_use]
    pub fn title(&self) -> String {
        let line = match self {
            Self::Shell(line) => line.clone(),
            Self::Argv(argv) => argv
                .iter()
                .map(|arg| {
                    let plain = !arg.is_empty()
                        && arg
                            .chars()
                            .all(|c| c.is_alphanumeric() || "-_./:=,@%+".contains(c));
                    if plain {
                        arg.clone()
                    } else {
                        format!("'{}'", arg.replace('\'', r"'\''"))
                    }
                })
                .collect::<Vec<_>>()
                .join(" "),
        };
        printable(&line, 120)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn parameters_are_checked_before_anything_runs() {
        let read = |v: Value| Command::from_params(&v);
        assert_eq!(
            read(json!({"argv": ["nginx", "-v"]})),
            Ok(Command::Argv(vec!["nginx".into(), "-v".into()]))
        );
        assert_eq!(read(json!({"argv": []})), Err(CommandError::Empty));
        assert_eq!(read(json!({"argv": [""]})), Err(CommandError::Empty));
        assert_eq!(read(json!({"shell": "  "})), Err(CommandError::Empty));
        assert_eq!(
            read(json!({"argv": ["a", "b\0c"]})),
            Err(CommandError::Zero(1))
        );
        for bad in [
            json!(null),
            json!({"argv": "ls"}),
            json!({"argv": ["a"], "shell": "b"}),
            json!({"cmd": []}),
        ] {
            assert!(
                matches!(read(bad.clone()), Err(CommandError::Shape(_))),
                "{bad}"
            );
        }
        assert!(read(json!({"argv": ["a", "x".repeat(MAX_ARGUMENT)]})).is_ok());
        assert_eq!(
            read(json!({"argv": ["a", "x".repeat(MAX_ARGUMENT + 1)]})),
            Err(CommandError::ArgumentTooLong {
                index: 1,
                bytes: 131_072
            })
        );
        let many = vec!["x".repeat(100_000); 6];
        assert_eq!(
            read(json!({ "argv": many })),
            Err(CommandError::TooLong(600_000))
        );
    }

    #[test]
    fn a_title_shows_the_words_apart_and_never_an_escape() {
        let title =
            |argv: &[&str]| Command::Argv(argv.iter().map(|s| (*s).to_owned()).collect()).title();
        assert_eq!(title(&["echo", "a b", "it's"]), r"echo 'a b' 'it'\''s'");
        assert_eq!(title(&["echo", "\x1b[2J"]), "echo '\\x1b[2J'");
    }
}
