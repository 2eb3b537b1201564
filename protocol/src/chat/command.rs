//! What can be said to muster in a chat: words become a [`Command`], or an
//! error that says how it is written.

mod doors;
pub mod machines;
mod spelled;

use std::collections::BTreeMap;

use self::machines::{FAMILIES, MachineCommand};
use super::alias::{Aliases, ExpandError};
use super::words::{Word, WordsError, words};
use crate::api::MAX_CHAT_LINE;
use crate::text::{nearest, printable};
use crate::units::Span;

/// A command of the grammar, for help.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Verb {
    /// The word.
    pub name: &'static str,
    /// What follows it.
    pub usage: &'static str,
    /// What it does.
    pub about: &'static str,
}

const fn verb(name: &'static str, usage: &'static str, about: &'static str) -> Verb {
    Verb { name, usage, about }
}

/// All commands, in the order in which help shows them.
pub const VERBS: &[Verb] = &[
    verb(
        "run",
        "NAME [k=v ...] [--on PREDICATE] [--batch N] [--dry-run]",
        "plan a scenario, and run it once it is confirmed",
    ),
    verb("cmd", "PREDICATE -- COMMAND", "run a command on nodes"),
    verb("ping", "[PREDICATE]", "ask nodes for a sign of life"),
    verb(
        "nodes",
        "[PREDICATE]",
        "which nodes there are, and how they are",
    ),
    verb("match", "PREDICATE", "which nodes a predicate means"),
    verb("runs", "[N]", "the last runs"),
    verb("last", "", "your last run"),
    verb("show", "[RUN]", "how a run is, and what its nodes said"),
    verb("more", "", "the rest of the last answer"),
    verb("diff", "[RUN]", "what a plan would change"),
    verb("yes", "[RUN]", "confirm your plan"),
    verb("no", "[RUN]", "drop your plan"),
    verb("approve", "RUN", "let somebody else's run begin"),
    verb("answer", "RUN TEXT", "answer what a run asks"),
    verb("cancel", "RUN", "end a run"),
    verb(
        "retry",
        "RUN [failed|all]",
        "run it again, where it did not succeed",
    ),
    verb("build", "NAME [k=v ...]", "start a build"),
    verb(
        "vm",
        "create|list|show|start|stop|destroy|... VM",
        "virtual machines",
    ),
    verb("image", "list", "disk images"),
    verb("network", "list", "networks of machines"),
    verb("hypervisor", "list|cordon|drain|uncordon", "hypervisors"),
    verb(
        "firewall",
        "show|history|diff|rollback NODE [--run RUN]",
        "a node's own firewall",
    ),
    verb("ack", "ALARM", "say that you look after an alarm"),
    verb(
        "silence",
        "ALARM TIME",
        "hear nothing of an alarm for so long",
    ),
    verb("alarms", "", "what is wrong now"),
    verb("freeze", "WHY", "stop everything new on all nodes"),
    verb("thaw", "", "end a freeze"),
    verb("who", "", "who you are to muster"),
    verb("help", "[NAME]", "what you may do"),
];

/// The command of that name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Verb> {
    VERBS.iter().find(|verb| verb.name == name)
}

/// A stored scenario, as somebody wants to run it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct RunCommand {
    /// Its name, as it was written.
    pub name: String,
    /// Its parameters.
    pub params: BTreeMap<String, String>,
    /// On which of its nodes.
    pub on: Option<String>,
    /// Which version.
    pub version: Option<u32>,
    /// Nodes at a time.
    pub batch: Option<String>,
    /// Failures after which it stops.
    pub max_failures: Option<String>,
    /// Only so many nodes.
    pub limit: Option<String>,
    /// Time on each node.
    pub timeout: Option<Span>,
    /// Only say what would change.
    pub dry_run: bool,
    /// Ask nothing.
    pub yes: bool,
    /// Names that no node has are meant.
    pub allow_unknown: bool,
}

/// A command on nodes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OnNodes {
    /// Which nodes.
    pub predicate: String,
    /// What runs: the program and its arguments.
    pub argv: Vec<String>,
    /// Ask nothing.
    pub yes: bool,
    /// Names that no node has are meant.
    pub allow_unknown: bool,
}

/// Which nodes of a run are to do it again.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Again {
    /// Those on which it did not succeed.
    #[default]
    Failed,
    /// All of them.
    All,
}

/// What somebody wants.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Run a stored scenario.
    Run(RunCommand),
    /// Run a command on nodes.
    OnNodes(OnNodes),
    /// Ping these nodes; all when absent.
    Ping(Option<String>),
    /// List these nodes; all when absent.
    Nodes(Option<String>),
    /// Resolve a predicate.
    Match(String),
    /// The last runs, so many.
    Runs(usize),
    /// The asker's last run.
    Last,
    /// A run; the asker's last one when absent.
    Show(Option<String>),
    /// The rest of the last answer: whoever speaks knows it.
    More,
    /// What a plan would change.
    Diff(Option<String>),
    /// Confirm a plan.
    Yes(Option<String>),
    /// Drop a plan.
    No(Option<String>),
    /// Approve a run.
    Approve(String),
    /// Answer what a run asks.
    Answer {
        /// The run.
        run: String,
        /// The answer.
        answer: String,
    },
    /// End a run.
    Cancel(String),
    /// Run something again.
    Retry {
        /// The run.
        run: String,
        /// On which of its nodes.
        which: Again,
    },
    /// Start a build.
    Build {
        /// Its name.
        name: String,
        /// Its parameters.
        params: BTreeMap<String, String>,
    },
    /// Machines, and what they are made of.
    Machines(MachineCommand),
    /// Look after an alarm.
    Ack(String),
    /// Hear nothing of an alarm for a time.
    Silence {
        /// The alarm.
        alarm: String,
        /// How long.
        time: Span,
    },
    /// What is wrong now.
    Alarms,
    /// Stop everything new.
    Freeze(String),
    /// End a freeze.
    Thaw,
    /// Who the asker is.
    Who,
    /// What the asker may do; or how one thing is written.
    Help(Option<String>),
}

impl Command {
    /// The verb that it is.
    #[must_use]
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Run(_) => "run",
            Self::OnNodes(_) => "cmd",
            Self::Ping(_) => "ping",
            Self::Nodes(_) => "nodes",
            Self::Match(_) => "match",
            Self::Runs(_) => "runs",
            Self::Last => "last",
            Self::Show(_) => "show",
            Self::More => "more",
            Self::Diff(_) => "diff",
            Self::Yes(_) => "yes",
            Self::No(_) => "no",
            Self::Approve(_) => "approve",
            Self::Answer { .. } => "answer",
            Self::Cancel(_) => "cancel",
            Self::Retry { .. } => "retry",
            Self::Build { .. } => "build",
            Self::Machines(machines) => machines.family(),
            Self::Ack(_) => "ack",
            Self::Silence { .. } => "silence",
            Self::Alarms => "alarms",
            Self::Freeze(_) => "freeze",
            Self::Thaw => "thaw",
            Self::Who => "who",
            Self::Help(_) => "help",
        }
    }
}

/// What a line says.
#[derive(Clone, Debug, PartialEq)]
pub struct Said {
    /// What is wanted.
    pub command: Command,
    /// The one-time code that came with it (`--code 123456`).
    pub code: Option<String>,
    /// The alias that it was written as.
    pub alias: Option<String>,
}

/// Why a line is no command.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CommandError {
    /// Nothing was said.
    #[error("what is it? try `help`")]
    Empty,
    /// Too long.
    #[error("the line has more than {MAX_CHAT_LINE} bytes")]
    Long,
    /// Not words.
    #[error(transparent)]
    Words(#[from] WordsError),
    /// An alias without its values.
    #[error(transparent)]
    Alias(#[from] ExpandError),
    /// No such command.
    #[error("there is no command `{name}`{}", .near.as_ref().map_or_else(|| "; `help` says what there is".to_owned(), |near| format!("; did you mean `{near}`?")))]
    Unknown {
        /// What was written.
        name: String,
        /// What may have been meant.
        near: Option<String>,
    },
    /// No such flag.
    #[error("{verb} has no `--{flag}`{}", .near.as_ref().map_or_else(|| format!("; it is written `{verb} {usage}`"), |near| format!("; did you mean `--{near}`?")))]
    Flag {
        /// The command.
        verb: &'static str,
        /// What was written.
        flag: String,
        /// What may have been meant.
        near: Option<String>,
        /// How it is written.
        usage: &'static str,
    },
    /// A file of whoever writes.
    #[error(
        "`--{flag}` names a file, and what is in it has no place in a chat: type it in a shell: muster {verb} ... --{flag} FILE"
    )]
    File {
        /// The command.
        verb: &'static str,
        /// The flag.
        flag: &'static str,
    },
    /// Something is missing, too much, or not what it should be.
    #[error("{why}: {verb} {usage}")]
    Usage {
        /// What is wrong.
        why: String,
        /// The command.
        verb: &'static str,
        /// How it is written.
        usage: &'static str,
    },
}

/// Reads a line. A first word that is neither a command nor an alias is a
/// scenario where `scenarios` has one of that name.
///
/// # Errors
/// [`CommandError`].
pub fn read<'a>(
    line: &str,
    aliases: &'a Aliases,
    scenarios: impl Iterator<Item = &'a str> + Clone,
) -> Result<Said, CommandError> {
    if line.len() > MAX_CHAT_LINE {
        return Err(CommandError::Long);
    }
    let mut words = words(line)?;
    if words.is_empty() {
        return Err(CommandError::Empty);
    }
    let first = words.remove(0);
    let mut alias = None;
    // Where the words of the line begin that a predicate may be taken from.
    let mut text = line;
    let mut name = first.as_str().to_ascii_lowercase();
    if find(&name).is_none()
        && let Some(found) = aliases.get(&name)
    {
        alias = Some(name);
        words = found.expand(words)?;
        name = words.remove(0).into_string();
        // Its words are not all in the line.
        text = "";
    }
    let Some(verb) = find(&name) else {
        if scenarios.clone().any(|scenario| scenario == name) {
            words.insert(0, Word::literal(name));
            let rest = Rest::new(find("run").unwrap_or(&VERBS[0]), words, text)?;
            return rest.said(alias);
        }
        let known = VERBS.iter().map(|verb| verb.name);
        let known = known.chain(aliases.iter().map(|alias| alias.name()));
        let near = nearest(&name, known.chain(scenarios)).map(str::to_owned);
        let name = printable(first.as_str(), 40);
        return Err(CommandError::Unknown { name, near });
    };
    let verb = match FAMILIES.contains(&verb.name) {
        true => of_family(verb, &mut words)?,
        false => verb,
    };
    Rest::new(verb, words, text)?.said(alias)
}

/// What is meant by the word behind `vm`, `image` and the like.
fn of_family(family: &'static Verb, words: &mut Vec<Word>) -> Result<&'static Verb, CommandError> {
    let all = || machines::of_family(family.name).filter_map(|verb| verb.name.split(' ').nth(1));
    if words.is_empty() {
        let all: Vec<&str> = all().collect();
        return Err(CommandError::Usage {
            why: format!("one of {} belongs behind it", all.join(", ")),
            verb: family.name,
            usage: family.usage,
        });
    }
    let word = words.remove(0);
    let small = word.as_str().to_ascii_lowercase();
    machines::find(family.name, &small).ok_or_else(|| {
        let near = nearest(&small, all());
        CommandError::Unknown {
            name: format!("{} {}", family.name, printable(word.as_str(), 40)),
            near: near.map(|near| format!("{} {near}", family.name)),
        }
    })
}

/// Flags that take a value, by command; the others are there or not.
fn valued(verb: &str) -> &'static [&'static str] {
    if let Some(flags) = machines::valued(verb) {
        return flags;
    }
    match verb {
        "run" => &[
            "on",
            "version",
            "batch",
            "max-failures",
            "limit",
            "timeout",
            "code",
        ],
        "firewall" => &["run", "code"],
        "nodes" | "match" | "runs" | "last" | "show" | "more" | "diff" | "alarms" | "who"
        | "help" => &[],
        _ => &["code"],
    }
}

fn switches(verb: &str) -> &'static [&'static str] {
    match verb {
        "run" => &["dry-run", "yes", "allow-unknown"],
        "cmd" => &["yes", "allow-unknown"],
        "firewall" => &["yes"],
        verb => machines::switches(verb),
    }
}

/// What follows a verb, sorted.
struct Rest<'a> {
    verb: &'static Verb,
    line: &'a str,
    /// Neither flag nor pair.
    plain: Vec<Word>,
    pairs: Vec<(String, String)>,
    flags: BTreeMap<&'static str, String>,
    /// Flags that can be given more than once.
    lists: BTreeMap<&'static str, Vec<String>>,
    /// Behind `--`, if there was one.
    behind: Option<Vec<Word>>,
    /// Where in the line that `--` is.
    dashes: usize,
}

impl<'a> Rest<'a> {
    fn new(verb: &'static Verb, given: Vec<Word>, line: &'a str) -> Result<Self, CommandError> {
        let mut rest = Self {
            verb,
            line,
            plain: Vec::new(),
            pairs: Vec::new(),
            flags: BTreeMap::new(),
            lists: BTreeMap::new(),
            behind: None,
            dashes: 0,
        };
        let takes_pairs = matches!(verb.name, "run" | "build" | "vm provision");
        let mut given = given.into_iter();
        while let Some(word) = given.next() {
            if word.is_end_of_flags() {
                rest.dashes = word.span().start;
                rest.behind = Some(given.by_ref().collect());
            } else if let Some((flag, value)) = word.flag() {
                rest.flag(flag, value, &mut given)?;
            } else if let Some((name, value)) = word.pair().filter(|_| takes_pairs) {
                rest.pairs.push((name.to_owned(), value.to_owned()));
            } else {
                rest.plain.push(word);
            }
        }
        Ok(rest)
    }

    fn wrong(&self, why: impl Into<String>) -> CommandError {
        CommandError::Usage {
            why: why.into(),
            verb: self.verb.name,
            usage: self.verb.usage,
        }
    }

    fn flag(
        &mut self,
        flag: &str,
        value: Option<&str>,
        given: &mut impl Iterator<Item = Word>,
    ) -> Result<(), CommandError> {
        let verb = self.verb;
        let (valued, switches) = (valued(verb.name), switches(verb.name));
        if let Some(known) = switches.iter().find(|known| **known == flag) {
            if value.is_some() {
                return Err(self.wrong(format!("`--{known}` takes no value")));
            }
            self.flags.insert(known, String::new());
            return Ok(());
        }
        let repeated = machines::repeated(verb.name);
        let mut all = valued.iter().chain(repeated);
        let Some(known) = all.find(|known| **known == flag) else {
            if let Some(file) = machines::files(verb.name).iter().find(|f| **f == flag) {
                return Err(CommandError::File {
                    verb: verb.name,
                    flag: file,
                });
            }
            let near = nearest(flag, valued.iter().chain(repeated).chain(switches).copied());
            return Err(CommandError::Flag {
                verb: verb.name,
                flag: printable(flag, 40),
                near: near.map(str::to_owned),
                usage: verb.usage,
            });
        };
        let value = match value {
            Some(value) => value.to_owned(),
            None => match given.next() {
                Some(word) if word.flag().is_none() && !word.is_end_of_flags() => {
                    word.into_string()
                }
                _ => return Err(self.wrong(format!("`--{known}` needs a value"))),
            },
        };
        if repeated.contains(known) {
            self.lists.entry(known).or_default().push(value);
        } else if self.flags.insert(known, value).is_some() {
            return Err(self.wrong(format!("`--{known}` is given twice")));
        }
        Ok(())
    }

    fn said(mut self, alias: Option<String>) -> Result<Said, CommandError> {
        let code = self.flags.remove("code");
        let command = self.command()?;
        Ok(Said {
            command,
            code,
            alias,
        })
    }

    /// Nothing is left over.
    fn done(&self) -> Result<(), CommandError> {
        if let Some(word) = self.plain.first() {
            return Err(self.wrong(format!("`{}` is too much", printable(word.as_str(), 40))));
        }
        if self.behind.is_some() {
            return Err(self.wrong("`--` means nothing here"));
        }
        Ok(())
    }

    fn next(&mut self) -> Option<String> {
        (!self.plain.is_empty()).then(|| self.plain.remove(0).into_string())
    }

    fn need(&mut self, what: &str) -> Result<String, CommandError> {
        self.next()
            .filter(|word| !word.is_empty())
            .ok_or_else(|| self.wrong(format!("{what} is missing")))
    }

    /// All that is left, as one text.
    fn text(&mut self) -> Option<String> {
        let words: Vec<String> = self.plain.drain(..).map(Word::into_string).collect();
        let text = words.join(" ");
        (!text.trim().is_empty()).then_some(text)
    }

    /// The predicate: one quoted word, or everything as it was written, whose
    /// quotes are the predicate's own.
    fn predicate(&mut self, until: usize) -> Option<String> {
        let words = std::mem::take(&mut self.plain);
        match words.as_slice() {
            [] => None,
            [one] => Some(one.as_str().to_owned()),
            [first, .., last] if !self.line.is_empty() => {
                let (from, to) = (first.span().start, last.span().end.min(until));
                self.line.get(from..to).map(str::to_owned)
            }
            all => Some(all.iter().map(Word::as_str).collect::<Vec<_>>().join(" ")),
        }
    }

    fn params(&mut self) -> Result<BTreeMap<String, String>, CommandError> {
        let mut params = BTreeMap::new();
        for (name, value) in std::mem::take(&mut self.pairs) {
            if params.insert(name.clone(), value).is_some() {
                return Err(self.wrong(format!("`{}` is given twice", printable(&name, 40))));
            }
        }
        Ok(params)
    }

    fn command(mut self) -> Result<Command, CommandError> {
        let command = match self.verb.name {
            "run" => self.run()?,
            "cmd" => self.on_nodes()?,
            "ping" => Command::Ping(self.predicate(usize::MAX)),
            "nodes" => Command::Nodes(self.predicate(usize::MAX)),
            "match" => Command::Match(
                self.predicate(usize::MAX)
                    .ok_or_else(|| self.wrong("the predicate is missing"))?,
            ),
            "runs" => Command::Runs(match self.next() {
                None => 5,
                Some(text) => match text.parse::<usize>() {
                    Ok(count @ 1..=50) => count,
                    _ => return Err(self.wrong("how many is a number from 1 to 50")),
                },
            }),
            "last" => Command::Last,
            "show" => Command::Show(self.next()),
            "more" => Command::More,
            "diff" => Command::Diff(self.next()),
            "yes" => Command::Yes(self.next()),
            "no" => Command::No(self.next()),
            "approve" => Command::Approve(self.need("the run")?),
            "cancel" => Command::Cancel(self.need("the run")?),
            "firewall" => self.firewall()?,
            "answer" => {
                let run = self.need("the run")?;
                let answer = self
                    .text()
                    .ok_or_else(|| self.wrong("the answer is missing"))?;
                Command::Answer { run, answer }
            }
            "retry" => {
                let run = self.need("the run")?;
                let which = match self.next().as_deref() {
                    None | Some("failed") => Again::Failed,
                    Some("all") => Again::All,
                    Some(_) => return Err(self.wrong("`failed` or `all`")),
                };
                Command::Retry { run, which }
            }
            "build" => {
                let name = self.need("the build")?;
                let params = self.params()?;
                Command::Build { name, params }
            }
            "ack" => Command::Ack(self.need("the alarm")?),
            "silence" => {
                let alarm = self.need("the alarm")?;
                let time = self.need("how long")?;
                let time = time
                    .parse()
                    .map_err(|e| self.wrong(format!("how long: {e}")))?;
                Command::Silence { alarm, time }
            }
            "alarms" => Command::Alarms,
            "freeze" => Command::Freeze(
                self.text()
                    .ok_or_else(|| self.wrong("say why, everybody will read it"))?,
            ),
            "thaw" => Command::Thaw,
            "who" => Command::Who,
            verb if verb.contains(' ') => Command::Machines(self.machines()?),
            _ => Command::Help(self.text()),
        };
        self.done()?;
        Ok(command)
    }

    fn on_nodes(&mut self) -> Result<Command, CommandError> {
        let Some(behind) = self.behind.take() else {
            return Err(self.wrong("a ` -- ` belongs between nodes and command"));
        };
        let predicate = self
            .predicate(self.dashes)
            .ok_or_else(|| self.wrong("it says no nodes (`*` for all)"))?;
        let argv: Vec<String> = behind.into_iter().map(Word::into_string).collect();
        if argv.first().is_none_or(String::is_empty) {
            return Err(self.wrong("the command is missing"));
        }
        Ok(Command::OnNodes(OnNodes {
            predicate: predicate.trim().to_owned(),
            argv,
            yes: self.flags.contains_key("yes"),
            allow_unknown: self.flags.contains_key("allow-unknown"),
        }))
    }

    fn run(&mut self) -> Result<Command, CommandError> {
        let name = self.need("the scenario")?;
        if let Some(word) = self.plain.first() {
            let word = printable(word.as_str(), 40);
            return Err(self.wrong(format!("`{word}` has no name, as in version={word}")));
        }
        let params = self.params()?;
        let mut flag = |name: &str| self.flags.remove(name);
        let (version, timeout) = (flag("version"), flag("timeout"));
        let mut run = RunCommand {
            name,
            params,
            on: flag("on"),
            batch: flag("batch"),
            max_failures: flag("max-failures"),
            limit: flag("limit"),
            dry_run: flag("dry-run").is_some(),
            yes: flag("yes").is_some(),
            allow_unknown: flag("allow-unknown").is_some(),
            version: None,
            timeout: None,
        };
        if let Some(text) = version {
            let number = text.trim_start_matches('v').parse();
            run.version = Some(number.map_err(|_| self.wrong("`--version` is a number"))?);
        }
        if let Some(text) = timeout {
            let time = text.parse();
            run.timeout = Some(time.map_err(|e| self.wrong(format!("`--timeout`: {e}")))?);
        }
        Ok(Command::Run(run))
    }
}

#[cfg(test)]
mod tests;
