//! What new machines are called: pure.

use std::collections::BTreeMap;

use muster_protocol::names::{LabelKey, LabelValue, NameError, VmName};
use muster_protocol::text::printable;

use crate::enroll::{PatternError, expand};

/// Most machines that are asked for at once.
pub const MAX_AT_ONCE: u32 = 500;

/// Why there are no names.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NamesError {
    /// As in invites.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// One of them is none.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Too many.
    #[error("{0} machines at once are too many; at most {MAX_AT_ONCE}")]
    TooMany(usize),
    /// None.
    #[error("no machine was asked for; a count is at least 1")]
    None,
    /// In braces is neither a range nor a label.
    #[error(
        "`{{{0}}}` is neither a range like {{01..40}}, nor a label of the hypervisor, nor {{n}}"
    )]
    NotALabel(String),
    /// Names of the place of several machines need a number.
    #[error("`{0}` names one machine in each place; put {{n}} into it, for the lowest free number")]
    NoNumber(String),
}

/// The names of new machines.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Names {
    /// These.
    Listed(Vec<VmName>),
    /// They follow from the place of each.
    Placed {
        /// How.
        pattern: Pattern,
        /// How many.
        count: u32,
    },
}

/// A name that follows from a place.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Pattern(Vec<Part>);

#[derive(Clone, Debug, Eq, PartialEq)]
enum Part {
    Text(String),
    Label(LabelKey),
    Number,
}

impl Names {
    /// Reads a name, or a pattern of names.
    ///
    /// # Errors
    /// [`NamesError`].
    pub fn parse(text: &str, count: Option<u32>) -> Result<Self, NamesError> {
        if count == Some(0) {
            return Err(NamesError::None);
        }
        let many = count.unwrap_or(1);
        if many > MAX_AT_ONCE {
            return Err(NamesError::TooMany(many as usize));
        }
        if !text.contains(['{', '}']) && many == 1 {
            return Ok(Self::Listed(vec![text.parse()?]));
        }
        // Else one of the two would be read as the other.
        if text.contains("..") || !text.contains('{') {
            let names = expand(text, count)?;
            if names.len() > MAX_AT_ONCE as usize {
                return Err(NamesError::TooMany(names.len()));
            }
            let names: Result<Vec<VmName>, NameError> =
                names.iter().map(|name| name.as_str().parse()).collect();
            return Ok(Self::Listed(names?));
        }
        let pattern = Pattern::parse(text)?;
        if many > 1 && !pattern.0.contains(&Part::Number) {
            return Err(NamesError::NoNumber(printable(text, 80)));
        }
        Ok(Self::Placed {
            pattern,
            count: many,
        })
    }

    /// How many.
    #[must_use]
    pub fn count(&self) -> usize {
        match self {
            Self::Listed(names) => names.len(),
            Self::Placed { count, .. } => *count as usize,
        }
    }

    /// Labels that a hypervisor must have.
    #[must_use]
    pub fn labels(&self) -> Vec<LabelKey> {
        match self {
            Self::Listed(_) => Vec::new(),
            Self::Placed { pattern, .. } => pattern.labels().cloned().collect(),
        }
    }
}

impl Pattern {
    fn parse(text: &str) -> Result<Self, NamesError> {
        let broken = || PatternError::NotARange(printable(text, 80));
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, more)) = rest.split_once('{') {
            let (inside, after) = more.split_once('}').ok_or_else(broken)?;
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            }
            parts.push(if inside == "n" {
                Part::Number
            } else {
                let key = inside.parse();
                Part::Label(key.map_err(|_| NamesError::NotALabel(printable(inside, 40)))?)
            });
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        Ok(Self(parts))
    }

    fn labels(&self) -> impl Iterator<Item = &LabelKey> {
        self.0.iter().filter_map(|part| match part {
            Part::Label(key) => Some(key),
            Part::Text(_) | Part::Number => None,
        })
    }

    /// The name at a place: with the lowest number, where there is one in it,
    /// that makes one nobody has.
    ///
    /// # Errors
    /// [`NameError`]: what comes of it is no name.
    pub fn at(
        &self,
        labels: &BTreeMap<LabelKey, LabelValue>,
        taken: impl Fn(&VmName) -> bool,
    ) -> Result<VmName, NameError> {
        let mut number = 1u32;
        loop {
            let mut text = String::new();
            for part in &self.0 {
                match part {
                    Part::Text(part) => text.push_str(part),
                    Part::Label(key) => {
                        text.push_str(labels.get(key).map_or("", LabelValue::as_str));
                    }
                    Part::Number => text.push_str(&number.to_string()),
                }
            }
            let name: VmName = text.parse()?;
            if !self.0.contains(&Part::Number) || !taken(&name) || number == u32::MAX {
                return Ok(name);
            }
            number += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(text: &str, count: Option<u32>) -> Result<Vec<String>, String> {
        match Names::parse(text, count) {
            Ok(Names::Listed(names)) => Ok(names.iter().map(ToString::to_string).collect()),
            Ok(other) => Err(format!("{other:?}")),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn names_and_ranges() {
        assert_eq!(listed("web-03", None), Ok(vec!["web-03".into()]));
        let two = vec!["web-09".to_owned(), "web-10".to_owned()];
        assert_eq!(listed("web-{09..10}", None), Ok(two.clone()));
        assert_eq!(listed("web-{09..10}", Some(2)), Ok(two));
        for (text, count) in [
            ("web", Some(0)),
            ("web", Some(3)),
            ("web-{1..501}", None),
            ("web-{n", None),
            ("web-{Zone}", None),
            ("{zone}", Some(2)),
            ("{zone}-{1..3}", None),
            ("", None),
            ("../x", None),
            ("<x/>", None),
            ("ä", None),
        ] {
            assert!(Names::parse(text, count).is_err(), "{text}");
        }
        assert!(Names::parse(&"x".repeat(300), None).is_err());
    }

    #[test]
    fn a_name_of_the_place_takes_the_lowest_free_number() {
        let Ok(Names::Placed { pattern, count: 2 }) = Names::parse("{zone}-{rack}-h{n}", Some(2))
        else {
            panic!("a pattern");
        };
        let label = |k: &str, v: &str| (k.parse().unwrap(), v.parse().unwrap());
        let labels = BTreeMap::from([label("zone", "gva2"), label("rack", "r03")]);
        let taken = ["gva2-r03-h1", "gva2-r03-h3"];
        let name = pattern.at(&labels, |name| taken.contains(&name.as_str()));
        assert_eq!(name.unwrap().as_str(), "gva2-r03-h2");
        // What the label holds can be no part of a name.
        let odd = BTreeMap::from([label("zone", "Gva:2"), label("rack", "r03")]);
        assert!(pattern.at(&odd, |_| false).is_err());
    }
}
