//! Short names for longer commands. An alias is made of words, never of text:
//! what is filled in stays one value, whatever is in it.

use std::collections::BTreeMap;

use super::words::{Word, WordsError, words};
use crate::text::printable;

/// Most words of an alias.
const MAX_TEMPLATE: usize = 50;
/// Most aliases.
pub const MAX_ALIASES: usize = 500;
/// The highest `$n`.
const MOST: usize = 9;

/// Why something is no alias.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum AliasError {
    /// Not a word that can be typed.
    #[error("an alias is one word of small letters, digits, `-` and `_`, not `{0}`")]
    Name(String),
    /// It would hide a command.
    #[error("`{0}` is a command by itself; choose another name")]
    Taken(String),
    /// Not words.
    #[error("alias `{name}`: {error}")]
    Words {
        /// The alias.
        name: String,
        /// Why.
        error: WordsError,
    },
    /// Nothing in it.
    #[error("alias `{0}` stands for nothing")]
    Empty(String),
    /// The first word decides what is done.
    #[error("alias `{0}` begins with something that is filled in; begin it with a command")]
    Verb(String),
    /// A gap in the numbers.
    #[error("alias `{name}` uses ${used} but not ${missing}")]
    Gap {
        /// The alias.
        name: String,
        /// The highest one.
        used: usize,
        /// The one that is not there.
        missing: usize,
    },
    /// Too long.
    #[error("alias `{0}` has more than {MAX_TEMPLATE} words")]
    Long(String),
}

/// Why an alias cannot be filled in.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ExpandError {
    /// Too few values.
    #[error("{name} needs {}: {usage}", .what.join(" and "))]
    Missing {
        /// The alias.
        name: String,
        /// What is missing, by its names.
        what: Vec<String>,
        /// How it is written.
        usage: String,
    },
    /// A flag where a value belongs.
    #[error(
        "`{flag}` would become the {what} of {name}: write the {what} first ({usage}), or quote it if you mean it"
    )]
    Flag {
        /// The alias.
        name: String,
        /// What was written.
        flag: String,
        /// What it would become.
        what: String,
        /// How it is written.
        usage: String,
    },
}

/// An alias.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Alias {
    name: String,
    text: String,
    template: Vec<Word>,
    /// What each value is called.
    values: Vec<String>,
}

impl Alias {
    /// Reads `text` as what `name` stands for; `taken` says whether a word is
    /// a command already.
    ///
    /// # Errors
    /// [`AliasError`].
    pub fn new(name: &str, text: &str, taken: impl Fn(&str) -> bool) -> Result<Self, AliasError> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_".contains(c);
        let begins = name.starts_with(|c: char| c.is_ascii_lowercase());
        if name.len() > 40 || !begins || !name.chars().all(plain) {
            return Err(AliasError::Name(printable(name, 60)));
        }
        let name = name.to_owned();
        if taken(&name) {
            return Err(AliasError::Taken(name));
        }
        let template = match words(text) {
            Ok(template) => template,
            Err(error) => return Err(AliasError::Words { name, error }),
        };
        let Some(verb) = template.first() else {
            return Err(AliasError::Empty(name));
        };
        if verb.as_str().contains('$') {
            return Err(AliasError::Verb(name));
        }
        if template.len() > MAX_TEMPLATE {
            return Err(AliasError::Long(name));
        }
        let uses = |n: usize| {
            let mark = format!("${n}");
            template.iter().find(|word| word.as_str().contains(&mark))
        };
        let used = (1..=MOST).rev().find(|n| uses(*n).is_some()).unwrap_or(0);
        let mut values = Vec::new();
        for n in 1..=used {
            let Some(word) = uses(n) else {
                return Err(AliasError::Gap {
                    name,
                    used,
                    missing: n,
                });
            };
            let called = word
                .pair()
                .map(|(key, _)| key)
                .or_else(|| word.flag().map(|(flag, _)| flag));
            values.push(called.map_or_else(|| format!("value {n}"), str::to_owned));
        }
        Ok(Self {
            name,
            text: text.to_owned(),
            template,
            values,
        })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it stands for, as it was written.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// `deploy VERSION …`.
    #[must_use]
    pub fn usage(&self) -> String {
        let mut usage = self.name.clone();
        for value in &self.values {
            usage.push(' ');
            usage.push_str(&value.to_ascii_uppercase().replace(' ', ""));
        }
        usage
    }

    /// The command that it stands for, with the words that were written behind
    /// it: the first ones are its values, the others follow as they are.
    ///
    /// # Errors
    /// [`ExpandError`].
    pub fn expand(&self, given: Vec<Word>) -> Result<Vec<Word>, ExpandError> {
        if given.len() < self.values.len() {
            return Err(ExpandError::Missing {
                name: self.name.clone(),
                what: self.values[given.len()..].to_vec(),
                usage: self.usage(),
            });
        }
        let mut given = given.into_iter();
        let values: Vec<Word> = given.by_ref().take(self.values.len()).collect();
        for (value, what) in values.iter().zip(&self.values) {
            if value.flag().is_some() || value.is_end_of_flags() {
                return Err(ExpandError::Flag {
                    name: self.name.clone(),
                    flag: printable(value.as_str(), 40),
                    what: what.clone(),
                    usage: self.usage(),
                });
            }
        }
        let values: Vec<&str> = values.iter().map(Word::as_str).collect();
        let filled = self.template.iter().map(|word| {
            if word.as_str().contains('$') {
                word.filled(&values)
            } else {
                word.clone()
            }
        });
        Ok(filled.chain(given).collect())
    }
}

/// All aliases of a cluster.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Aliases(BTreeMap<String, Alias>);

impl Aliases {
    /// Reads them all.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn new(
        named: &BTreeMap<String, String>,
        taken: impl Fn(&str) -> bool,
    ) -> Result<Self, Vec<AliasError>> {
        let (mut all, mut wrong) = (BTreeMap::new(), Vec::new());
        for (name, text) in named.iter().take(MAX_ALIASES) {
            match Alias::new(name, text, &taken) {
                Ok(alias) => {
                    all.insert(name.clone(), alias);
                }
                Err(error) => wrong.push(error),
            }
        }
        if wrong.is_empty() {
            Ok(Self(all))
        } else {
            Err(wrong)
        }
    }

    /// The one of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Alias> {
        self.0.get(name)
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Alias> {
        self.0.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deploy() -> Alias {
        Alias::new("deploy", "run deploy version=$1", |_| false).unwrap()
    }

    fn expanded(alias: &Alias, line: &str) -> Vec<Word> {
        alias.expand(words(line).unwrap()).unwrap()
    }

    #[test]
    fn a_value_stays_one_value() {
        let alias = deploy();
        assert_eq!(alias.usage(), "deploy VERSION");
        for (line, value) in [
            ("1.4.2", "1.4.2"),
            ("'1.4.2 --on role=db'", "1.4.2 --on role=db"),
            ("'--on'", "--on"),
            ("k=v", "k=v"),
            ("'$1'", "$1"),
            ("'a b' ", "a b"),
        ] {
            let words = expanded(&alias, line);
            assert_eq!(words.len(), 3, "{line}");
            assert_eq!(words[2].pair(), Some(("version", value)), "{line}");
        }
        let words = expanded(&alias, "1.4.2 --on zone=gva2 batch=2");
        assert_eq!(words[3].flag(), Some(("on", None)));
        assert_eq!(words[5].pair(), Some(("batch", "2")));
    }

    #[test]
    fn values_do_not_fill_each_other() {
        let alias = Alias::new("x", "run y a=$1 b=$2 c=$1$2", |_| false).unwrap();
        let words = expanded(&alias, "'$2' '$1'");
        assert_eq!(words[2].pair(), Some(("a", "$2")));
        assert_eq!(words[3].pair(), Some(("b", "$1")));
        assert_eq!(words[4].pair(), Some(("c", "$2$1")));
    }

    #[test]
    fn what_is_missing_or_misplaced_is_said() {
        let alias = deploy();
        let said = |line: &str| alias.expand(words(line).unwrap()).unwrap_err().to_string();
        assert_eq!(said(""), "deploy needs version: deploy VERSION");
        assert!(said("--on x").starts_with("`--on` would become the version of deploy"));
        let wrong = |text: &str| Alias::new("a", text, |_| false).unwrap_err().to_string();
        assert_eq!(wrong("run x a=$2"), "alias `a` uses $2 but not $1");
        assert_eq!(wrong(" "), "alias `a` stands for nothing");
        assert!(wrong("$1 x").contains("begin it with a command"));
        assert!(wrong("run 'x").contains("never closed"));
        assert!(Alias::new("run", "ping", |word| word == "run").is_err());
        assert!(Alias::new("No", "ping", |_| false).is_err());
    }
}
