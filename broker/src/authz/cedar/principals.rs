//! `principals.toml`: who there is, and in which groups.

use std::collections::{BTreeMap, BTreeSet};

use muster_protocol::api::PrincipalKind;
use muster_protocol::names::PrincipalName;
use muster_scenarios::fault::{Fault, nearest};
use serde::Deserialize;
use toml::Spanned;

use super::PRINCIPALS_FILE;
use super::faults::fault;

/// Most principals and groups, and most groups that a principal is in.
const MAX_NAMES: usize = 10_000;
const MAX_GROUPS: usize = 100;
/// Longest name of a group.
const MAX_GROUP: usize = 64;

/// Who there is. Principals that it does not name may still ask: they are in
/// no group.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Principals {
    named: BTreeMap<PrincipalName, Named>,
    groups: BTreeSet<String>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
struct Named {
    kind: PrincipalKind,
    groups: BTreeSet<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    groups: BTreeMap<Spanned<String>, Group>,
    #[serde(default)]
    principals: BTreeMap<Spanned<String>, Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    /// For people who read the file.
    #[serde(default, rename = "about")]
    _about: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    kind: PrincipalKind,
    #[serde(default)]
    groups: Vec<Spanned<String>>,
    /// For people who read the file.
    #[serde(default, rename = "about")]
    _about: Option<String>,
}

impl Principals {
    /// Reads the file.
    ///
    /// # Errors
    /// Everything that is wrong in it.
    pub(super) fn parse(text: &str) -> Result<Self, Vec<Fault>> {
        let at = |span: std::ops::Range<usize>| Some((span.start, span.len()));
        let file: File = toml::from_str(text).map_err(|error| {
            let span = error.span().and_then(at);
            vec![fault(PRINCIPALS_FILE, text, span, error.message())]
        })?;
        let mut faults = Vec::new();
        if file.principals.len() > MAX_NAMES || file.groups.len() > MAX_NAMES {
            let most = format!("at most {MAX_NAMES} principals and as many groups are kept");
            faults.push(fault(PRINCIPALS_FILE, text, None, most));
        }
        let mut groups = BTreeSet::new();
        for name in file.groups.keys() {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:@".contains(c);
            let text_of = name.get_ref();
            if text_of.is_empty() || text_of.len() > MAX_GROUP || !text_of.chars().all(plain) {
                let message = format!(
                    "a group's name has 1 to {MAX_GROUP} letters, digits and any of `-_.:@`"
                );
                faults.push(fault(PRINCIPALS_FILE, text, at(name.span()), message));
            }
            groups.insert(text_of.clone());
        }
        let mut named = BTreeMap::new();
        for (name, entry) in file.principals {
            if entry.groups.len() > MAX_GROUPS {
                let message = format!("a principal is in at most {MAX_GROUPS} groups");
                faults.push(fault(PRINCIPALS_FILE, text, at(name.span()), message));
            }
            for group in &entry.groups {
                if !groups.contains(group.get_ref()) {
                    let message = format!("there is no group `{}`", group.get_ref());
                    let mut wrong = fault(PRINCIPALS_FILE, text, at(group.span()), message);
                    wrong.hint = Some(
                        did_you_mean(group.get_ref(), groups.iter())
                            .unwrap_or_else(|| format!("declare it: [groups.{}]", group.get_ref())),
                    );
                    faults.push(wrong);
                }
            }
            let groups = entry.groups.into_iter().map(Spanned::into_inner).collect();
            match name.get_ref().parse::<PrincipalName>() {
                Ok(principal) => {
                    let kind = entry.kind;
                    named.insert(principal, Named { kind, groups });
                }
                Err(error) => {
                    let span = at(name.span());
                    faults.push(fault(PRINCIPALS_FILE, text, span, error.to_string()));
                }
            }
        }
        if faults.is_empty() {
            Ok(Self { named, groups })
        } else {
            Err(faults)
        }
    }

    /// What a principal is; `None` where nothing names it.
    #[must_use]
    pub fn kind(&self, name: &PrincipalName) -> Option<PrincipalKind> {
        self.named.get(name).map(|named| named.kind)
    }

    /// The groups that a principal is in.
    pub fn groups_of(&self, name: &PrincipalName) -> impl Iterator<Item = &String> {
        self.named
            .get(name)
            .into_iter()
            .flat_map(|named| &named.groups)
    }

    /// All that are named.
    pub fn names(&self) -> impl Iterator<Item = &PrincipalName> {
        self.named.keys()
    }

    /// How many are named.
    #[must_use]
    pub fn len(&self) -> usize {
        self.named.len()
    }

    /// Whether none is named.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.named.is_empty()
    }

    /// Why a policy cannot speak of that group.
    pub(super) fn no_group(&self, name: &str) -> Option<(String, Option<String>)> {
        if self.groups.contains(name) {
            return None;
        }
        let message = format!("there is no group `{name}` in {PRINCIPALS_FILE}");
        Some((message, did_you_mean(name, self.groups.iter())))
    }

    /// Why a policy cannot speak of that principal.
    pub(super) fn no_principal(&self, name: &str) -> Option<(String, Option<String>)> {
        if name
            .parse()
            .is_ok_and(|name: PrincipalName| self.named.contains_key(&name))
        {
            return None;
        }
        let message = format!("there is no principal `{name}` in {PRINCIPALS_FILE}");
        let near = nearest(name, self.named.keys().map(PrincipalName::as_str));
        Some((message, near.map(|near| format!("did you mean `{near}`?"))))
    }
}

fn did_you_mean<'a>(name: &str, all: impl Iterator<Item = &'a String>) -> Option<String> {
    let near = nearest(name, all.map(String::as_str))?;
    Some(format!("did you mean `{near}`?"))
}
