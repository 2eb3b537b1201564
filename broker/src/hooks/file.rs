//! The file in which webhooks, triggers and routes are declared: read whole,
//! with all its mistakes at once.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use muster_protocol::api::{HookKind, Secret};
use muster_protocol::chat::alias::Aliases;
use muster_protocol::chat::command;
use muster_protocol::names::{BuildName, HookName, RouteName, TriggerName};
use muster_protocol::units::{Size, Span};
use serde::Deserialize;
use toml::Value;

use super::rate::Rate;
use crate::chat::builds::declared::{Build, RawBuild};
use crate::chat::settings::{RawChat, Settings};
use crate::routes::{RawRoute, Route};
use crate::triggers::{RawTrigger, Trigger};

/// Largest body that a webhook takes when nothing is said.
const MAX_BODY: u64 = 5 << 20;
/// Largest one that can be said: what GitHub sends at most.
const MOST_BODY: u64 = 25 << 20;
/// Most bytes of the file.
const MAX_FILE: u64 = 4 << 20;
/// Longest secret, in bytes.
const MAX_SECRET: usize = 1_024;
/// Shortest secret, in bytes.
const MIN_SECRET: usize = 8;
/// Most webhooks, triggers and routes, each.
const MOST: usize = 500;
/// Deliveries that a webhook takes when nothing is said.
const RATE: Rate = Rate::new(600, 60);
/// How far from now a delivery may have been signed when nothing is said.
const MAX_SKEW: Duration = Duration::from_secs(300);

/// Why the file cannot be used: everything that is wrong with it.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the webhooks, triggers and routes in {} cannot be used:{}", .path.display(), lines(.mistakes))]
pub struct FileError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong, one line each.
    pub mistakes: Vec<String>,
}

fn lines(mistakes: &[String]) -> String {
    mistakes.iter().map(|m| format!("\n  {m}")).collect()
}

/// What is declared.
#[derive(Clone, Debug)]
pub struct Declared {
    /// Most bytes of a body.
    pub max_body: usize,
    /// The webhooks.
    pub hooks: BTreeMap<HookName, Hook>,
    /// The triggers.
    pub triggers: BTreeMap<TriggerName, Trigger>,
    /// The routes.
    pub routes: BTreeMap<RouteName, Route>,
    /// Builds that can be asked for in chat.
    pub builds: BTreeMap<BuildName, Build>,
    /// Short names for what is typed in chats.
    pub aliases: Aliases,
    /// What is set about chat.
    pub chat: Settings,
}

impl Default for Declared {
    fn default() -> Self {
        Self {
            max_body: MAX_BODY as usize,
            hooks: BTreeMap::new(),
            triggers: BTreeMap::new(),
            routes: BTreeMap::new(),
            builds: BTreeMap::new(),
            aliases: Aliases::default(),
            chat: Settings::default(),
        }
    }
}

/// A webhook.
#[derive(Clone, Debug)]
pub struct Hook {
    /// What it understands.
    pub kind: HookKind,
    /// One, or two while one is replaced.
    pub secrets: Vec<Secret>,
    /// How many deliveries it takes.
    pub rate: Rate,
    /// How far from now a delivery may have been signed.
    pub max_skew: Duration,
}

/// How the files looked when they were read: what looks the same is not read
/// again.
pub type Look = Vec<(PathBuf, Option<(SystemTime, u64, u64)>)>;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHook {
    kind: HookKind,
    secret: Option<String>,
    secret_file: Option<PathBuf>,
    previous_secret: Option<String>,
    previous_secret_file: Option<PathBuf>,
    rate: Option<String>,
    max_skew: Option<Span>,
}

/// Reads secrets that a file names, and remembers which files that were.
#[derive(Debug)]
pub struct Secrets<'a> {
    /// The folder of the file.
    folder: &'a Path,
    /// Others may read the file.
    readable: bool,
    look: Look,
}

impl Secrets<'_> {
    /// One secret: written in the file, or in a file of its own.
    ///
    /// # Errors
    /// What is wrong, for people.
    pub fn read(
        &mut self,
        name: &str,
        inline: Option<String>,
        file: Option<PathBuf>,
    ) -> Result<Option<Secret>, String> {
        let text = match (inline, file) {
            (None, None) => return Ok(None),
            (Some(_), Some(_)) => {
                return Err(format!("`{name}` and `{name}_file`: only one of them"));
            }
            (Some(text), None) => {
                if self.readable {
                    return Err(format!(
                        "`{name}` is written in a file that everybody can read: chmod o-r it, or use `{name}_file`"
                    ));
                }
                text
            }
            (None, Some(file)) => self.file(name, &file)?,
        };
        let text = text.trim_end_matches(['\n', '\r']).to_owned();
        if text.trim().is_empty() {
            return Err(format!("`{name}` is empty: anybody could sign with it"));
        }
        if text.len() < MIN_SECRET {
            return Err(format!(
                "`{name}` has {} bytes, at least {MIN_SECRET} are needed; `openssl rand -hex 32` makes a good one",
                text.len()
            ));
        }
        if text.len() > MAX_SECRET {
            return Err(format!("`{name}` has more than {MAX_SECRET} bytes"));
        }
        Ok(Some(Secret::new(text)))
    }

    /// The text of a file that others must not read.
    fn file(&mut self, name: &str, file: &Path) -> Result<String, String> {
        let path = self.folder.join(file);
        let fail = |why: String| format!("`{name}_file` {}: {why}", path.display());
        let about = std::fs::metadata(&path).map_err(|e| fail(e.to_string()))?;
        self.look.push((path.clone(), stamp(&about)));
        if about.mode() & 0o007 != 0 {
            return Err(fail(
                "everybody can read or write it: chmod o-rwx it".into(),
            ));
        }
        if about.len() > 2 * MAX_SECRET as u64 {
            return Err(fail("it is too large for a secret".into()));
        }
        std::fs::read_to_string(&path).map_err(|e| fail(e.to_string()))
    }

    /// The text of any other file.
    ///
    /// # Errors
    /// What is wrong, for people.
    pub fn text(&mut self, name: &str, file: &Path, most: u64) -> Result<String, String> {
        let path = self.folder.join(file);
        let fail = |why: String| format!("`{name}` {}: {why}", path.display());
        let about = std::fs::metadata(&path).map_err(|e| fail(e.to_string()))?;
        self.look.push((path.clone(), stamp(&about)));
        if about.len() > most {
            return Err(fail(format!("it has more than {most} bytes")));
        }
        std::fs::read_to_string(&path).map_err(|e| fail(e.to_string()))
    }
}

fn stamp(about: &std::fs::Metadata) -> Option<(SystemTime, u64, u64)> {
    Some((about.modified().ok()?, about.len(), about.ino()))
}

/// How those files look now.
#[must_use]
pub fn look_at(paths: &Look) -> Look {
    let now = |path: &PathBuf| std::fs::metadata(path).ok().as_ref().and_then(stamp);
    paths
        .iter()
        .map(|(path, _)| (path.clone(), now(path)))
        .collect()
}

/// Reads the file, and everything that it names. How it looked comes back
/// also when it cannot be used.
pub fn load(path: &Path) -> (Result<Declared, FileError>, Look) {
    let mut look = vec![(path.to_owned(), None)];
    look = look_at(&look);
    let fail = |mistakes| FileError {
        path: path.to_owned(),
        mistakes,
    };
    let about = match std::fs::metadata(path) {
        Ok(about) => about,
        Err(error) => return (Err(fail(vec![error.to_string()])), look),
    };
    let mut mistakes = Vec::new();
    if about.mode() & 0o002 != 0 {
        mistakes.push("everybody can write it: chmod o-w it".to_owned());
    }
    if about.len() > MAX_FILE {
        mistakes.push(format!("it has more than {MAX_FILE} bytes"));
        return (Err(fail(mistakes)), look);
    }
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => return (Err(fail(vec![error.to_string()])), look),
    };
    let mut secrets = Secrets {
        folder: path.parent().unwrap_or(Path::new(".")),
        readable: about.mode() & 0o004 != 0,
        look: Vec::new(),
    };
    let declared = parse(&text, &mut secrets, &mut mistakes);
    look.append(&mut secrets.look);
    if mistakes.is_empty() {
        (Ok(declared), look)
    } else {
        (Err(fail(mistakes)), look)
    }
}

fn parse(text: &str, secrets: &mut Secrets<'_>, mistakes: &mut Vec<String>) -> Declared {
    let mut declared = Declared::default();
    let mut table: toml::Table = match toml::from_str(text) {
        Ok(table) => table,
        Err(error) => {
            mistakes.push(error.to_string().trim_end().replace('\n', "\n  "));
            return declared;
        }
    };
    if let Some(value) = table.remove("max_body") {
        match value.try_into::<Size>() {
            Ok(size) if (1..=MOST_BODY).contains(&size.get()) => {
                declared.max_body = usize::try_from(size.get()).unwrap_or(usize::MAX);
            }
            _ => mistakes.push("max_body: a size such as `5MiB`, at most 25MiB".to_owned()),
        }
    }
    if let Some(value) = table.remove("chat") {
        let checked = value
            .try_into::<RawChat>()
            .map_err(|error| vec![error.message().to_owned()])
            .and_then(Settings::checked);
        match checked {
            Ok(settings) => declared.chat = settings,
            Err(wrong) => mistakes.extend(wrong.into_iter().map(|m| format!("chat: {m}"))),
        }
    }
    let mut sections = Sections { mistakes };
    declared.hooks = sections.read("hooks", &mut table, |name, raw: RawHook| {
        hook(name, raw, secrets)
    });
    declared.triggers = sections.read("triggers", &mut table, |name, raw: RawTrigger| {
        Trigger::checked(name, raw)
    });
    declared.routes = sections.read("routes", &mut table, |_: &RouteName, raw: RawRoute| {
        Route::checked(raw, secrets)
    });
    declared.builds = sections.read("builds", &mut table, |_: &BuildName, raw: RawBuild| {
        Build::checked(raw, secrets)
    });
    if let Some(value) = table.remove("aliases") {
        match aliases(value) {
            Ok(aliases) => declared.aliases = aliases,
            Err(wrong) => mistakes.extend(wrong.into_iter().map(|m| format!("aliases: {m}"))),
        }
    }
    for name in table.keys() {
        mistakes.push(format!(
            "`{name}` is unknown; there are `max_body`, `builds`, `chat`, `aliases`, `hooks`, `triggers` and `routes`"
        ));
    }
    for (name, trigger) in &declared.triggers {
        if let Some(hook) = trigger.when.hook()
            && !declared.hooks.contains_key(hook)
        {
            mistakes.push(format!("triggers.{name}: there is no webhook `{hook}`"));
        }
    }
    declared
}

fn aliases(value: Value) -> Result<Aliases, Vec<String>> {
    let named: BTreeMap<String, String> = value.try_into().map_err(|_| {
        vec!["each is a line such as deploy = \"run deploy version=$1\"".to_owned()]
    })?;
    let taken = |word: &str| command::find(word).is_some();
    Aliases::new(&named, taken).map_err(|wrong| wrong.iter().map(ToString::to_string).collect())
}

struct Sections<'a> {
    mistakes: &'a mut Vec<String>,
}

impl Sections<'_> {
    /// One section: each entry by itself, so that all mistakes are said.
    fn read<N, R, T>(
        &mut self,
        section: &str,
        table: &mut toml::Table,
        mut check: impl FnMut(&N, R) -> Result<T, Vec<String>>,
    ) -> BTreeMap<N, T>
    where
        N: std::str::FromStr<Err: std::fmt::Display> + Ord,
        R: serde::de::DeserializeOwned,
    {
        let mut read = BTreeMap::new();
        let entries = match table.remove(section) {
            None => return read,
            Some(Value::Table(entries)) => entries,
            Some(_) => {
                let example = format!("[{section}.NAME]");
                self.mistakes
                    .push(format!("{section}: its entries are written {example}"));
                return read;
            }
        };
        if entries.len() > MOST {
            self.mistakes
                .push(format!("{section}: at most {MOST} are possible"));
        }
        for (name, value) in entries {
            let parsed = match name.parse::<N>() {
                Ok(parsed) => parsed,
                Err(error) => {
                    self.mistakes.push(format!("{section}.{name}: {error}"));
                    continue;
                }
            };
            let checked = value
                .try_into::<R>()
                .map_err(|error| vec![error.message().to_owned()])
                .and_then(|raw| check(&parsed, raw));
            match checked {
                Ok(entry) => drop(read.insert(parsed, entry)),
                Err(wrong) => {
                    let wrong = wrong.into_iter().map(|m| format!("{section}.{name}: {m}"));
                    self.mistakes.extend(wrong);
                }
            }
        }
        read
    }
}

fn hook(_: &HookName, raw: RawHook, secrets: &mut Secrets<'_>) -> Result<Hook, Vec<String>> {
    let mut wrong = Vec::new();
    let mut keep = Vec::new();
    match secrets.read("secret", raw.secret, raw.secret_file) {
        Ok(Some(secret)) => keep.push(secret),
        Ok(None) => wrong.push("it needs a `secret` or a `secret_file`".to_owned()),
        Err(error) => wrong.push(error),
    }
    let previous = (raw.previous_secret, raw.previous_secret_file);
    match secrets.read("previous_secret", previous.0, previous.1) {
        Ok(secret) => keep.extend(secret),
        Err(error) => wrong.push(error),
    }
    let rate = raw.rate.as_deref().map_or(Ok(RATE), str::parse);
    let max_skew = raw.max_skew.map_or(MAX_SKEW, Span::get);
    if max_skew.is_zero() || max_skew > Duration::from_secs(3_600) {
        wrong.push("`max_skew` is a time of at most 1h".to_owned());
    }
    match rate {
        Ok(rate) if wrong.is_empty() => Ok(Hook {
            kind: raw.kind,
            secrets: keep,
            rate,
            max_skew,
        }),
        Ok(_) => Err(wrong),
        Err(error) => {
            wrong.push(format!("`rate`: {error}"));
            Err(wrong)
        }
    }
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
