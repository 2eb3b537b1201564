//! The terminal: what it is, and writing to it.

use std::cell::Cell;
use std::io::{ErrorKind, IsTerminal, Write};

use crate::failure::{Failure, NOT_ALL};

/// Colours, or none.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Paint(bool);

impl Paint {
    /// No colours.
    #[must_use]
    pub fn plain() -> Self {
        Self(false)
    }

    /// Colours.
    #[must_use]
    pub fn colours() -> Self {
        Self(true)
    }

    /// Whether there are colours.
    #[must_use]
    pub fn is_on(self) -> bool {
        self.0
    }

    fn wrap(self, code: &str, text: &str) -> String {
        if self.0 && !text.is_empty() {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    /// Names, heads.
    #[must_use]
    pub fn strong(self, text: &str) -> String {
        self.wrap("1", text)
    }

    /// What matters less.
    #[must_use]
    pub fn dim(self, text: &str) -> String {
        self.wrap("2", text)
    }

    /// Well.
    #[must_use]
    pub fn good(self, text: &str) -> String {
        self.wrap("32", text)
    }

    /// To be looked at.
    #[must_use]
    pub fn odd(self, text: &str) -> String {
        self.wrap("33", text)
    }

    /// Not well.
    #[must_use]
    pub fn bad(self, text: &str) -> String {
        self.wrap("31", text)
    }
}

/// What the process speaks to.
#[derive(Debug)]
pub struct Term {
    /// Standard output is a terminal.
    pub out_tty: bool,
    /// Standard error is a terminal.
    pub err_tty: bool,
    /// Standard input is a terminal: there is somebody to ask.
    pub in_tty: bool,
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Colours on standard output.
    pub out: Paint,
    /// Colours on standard error.
    pub err: Paint,
    closed: Cell<bool>,
}

/// Columns when there is no terminal to ask: nothing is cut then.
const UNBOUNDED: usize = 10_000;

impl Term {
    /// Of this process. Colours only on a terminal, never with `NO_COLOR` or
    /// `TERM=dumb`.
    #[must_use]
    pub fn detect() -> Self {
        let out_tty = std::io::stdout().is_terminal();
        let err_tty = std::io::stderr().is_terminal();
        let set = |name| std::env::var_os(name).is_some_and(|v| !v.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|t| t == "dumb");
        let colours = !set("NO_COLOR") && !dumb;
        let size = rustix::termios::tcgetwinsize(std::io::stdout())
            .or_else(|_| rustix::termios::tcgetwinsize(std::io::stderr()))
            .ok()
            .filter(|s| s.ws_col > 0);
        let (columns, rows) =
            size.map_or((80, 24), |s| (usize::from(s.ws_col), usize::from(s.ws_row)));
        Self {
            out_tty,
            err_tty: err_tty && !dumb,
            in_tty: std::io::stdin().is_terminal(),
            width: if out_tty { columns.max(40) } else { UNBOUNDED },
            height: rows,
            out: Paint(colours && out_tty),
            err: Paint(colours && err_tty),
            closed: Cell::new(false),
        }
    }

    /// Writes a result to standard output, at once. A reader that went away
    /// (`| head`) is no error; see [`Term::closed`].
    ///
    /// # Errors
    /// Any other error: the results would be incomplete without a word.
    pub fn say(&self, text: &str) -> Result<(), Failure> {
        if self.closed.get() {
            return Ok(());
        }
        let mut out = std::io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == ErrorKind::BrokenPipe => {
                self.closed.set(true);
                Ok(())
            }
            Err(e) => Err(
                Failure::new(NOT_ALL, format!("cannot write the results: {e}"))
                    .hint("is the disk of the file that they go to full?"),
            ),
        }
    }

    /// As [`Term::say`], with a line break.
    ///
    /// # Errors
    /// As [`Term::say`].
    pub fn line(&self, text: &str) -> Result<(), Failure> {
        self.say(&format!("{text}\n"))
    }

    /// One JSON value as a line.
    ///
    /// # Errors
    /// As [`Term::say`].
    pub fn json<T: serde::Serialize>(&self, value: &T) -> Result<(), Failure> {
        let text = serde_json::to_string(value)
            .map_err(|e| Failure::new(NOT_ALL, format!("cannot write the results as JSON: {e}")))?;
        self.line(&text)
    }

    /// Whether nobody reads standard output any more.
    #[must_use]
    pub fn closed(&self) -> bool {
        self.closed.get()
    }

    /// Writes progress or a note to standard error. Nobody there to read it
    /// is no reason to stop.
    pub fn note(&self, text: &str) {
        let mut err = std::io::stderr().lock();
        let _ = err
            .write_all(text.as_bytes())
            .and_then(|()| err.write_all(b"\n"));
    }

    /// Asks for what nobody is to see, not even on this terminal.
    ///
    /// # Errors
    /// When standard input is no terminal, or cannot be read.
    pub fn hidden(&self, prompt: &str) -> Result<String, Failure> {
        use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
        let mut err = std::io::stderr().lock();
        let _ = err.write_all(prompt.as_bytes()).and_then(|()| err.flush());
        let input = std::io::stdin();
        let before = tcgetattr(&input).map_err(std::io::Error::from)?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        tcsetattr(&input, OptionalActions::Flush, &quiet).map_err(std::io::Error::from)?;
        let mut answer = String::new();
        let read = input.read_line(&mut answer);
        let _ = tcsetattr(&input, OptionalActions::Now, &before);
        let _ = err.write_all(b"\n");
        read?;
        Ok(answer.trim_end_matches(['\r', '\n']).to_owned())
    }

    /// Asks a yes-or-no question on standard error; only a plain yes is one.
    ///
    /// # Errors
    /// When standard input cannot be read.
    pub fn ask(&self, question: &str) -> Result<bool, Failure> {
        let mut err = std::io::stderr().lock();
        let _ = err
            .write_all(question.as_bytes())
            .and_then(|()| err.write_all(b" [y/N] "))
            .and_then(|()| err.flush());
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer)?;
        if !answer.ends_with('\n') {
            // End of input: the prompt's line is still open.
            let _ = err.write_all(b"\n");
        }
        Ok(matches!(
            answer.trim().to_ascii_lowercase().as_str(),
            "y" | "yes"
        ))
    }
}
