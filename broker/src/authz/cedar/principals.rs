//! `principals.toml`: who there is, and in which groups.

use std::collections::{BTreeMap, BTreeSet};

use muster_protocol::api::{PrincipalKind, Role};
use muster_protocol::names::{NetworkName, PrincipalName};
use muster_protocol::text::printable;
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
    /// Whose a services account of a chat network is, in small letters.
    accounts: BTreeMap<(NetworkName, String), PrincipalName>,
    groups: BTreeSet<String>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
struct Named {
    kind: PrincipalKind,
    groups: BTreeSet<String>,
    role: Role,
}

/// Longest account, in bytes.
const MAX_ACCOUNT: usize = 64;
/// Most accounts of a principal.
const MAX_ACCOUNTS: usize = 20;

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
    /// Its services accounts in chat networks, as `network:account`.
    #[serde(default)]
    irc: Vec<Spanned<String>>,
    /// What it may do where it comes without a token of its own: from a chat.
    #[serde(default)]
    role: Option<Role>,
    /// For people who read the file.
    #[serde(default, rename = "about")]
    _about: Option<String>,
}

/// `ops:ana`.
fn account(text: &str) -> Result<(NetworkName, String), String> {
    let wrong =
        |why: String| format!("an account is written network:account, as in ops:ana; {why}");
    let (network, account) = text
        .split_once(':')
        .ok_or_else(|| wrong("there is no `:`".to_owned()))?;
    let network = network.parse().map_err(|e| wrong(format!("{e}")))?;
    let plain = |c: char| c.is_ascii_graphic() && !matches!(c, ':' | ',' | '!' | '@' | '*');
    if account.is_empty() || account.len() > MAX_ACCOUNT || !account.chars().all(plain) {
        return Err(wrong(format!(
            "`{}` is no name of an account",
            printable(account, 80)
        )));
    }
    Ok((network, account.to_ascii_lowercase()))
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
        let mut accounts: BTreeMap<(NetworkName, String), PrincipalName> = BTreeMap::new();
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
                    if entry.irc.len() > MAX_ACCOUNTS {
                        let message = format!("a principal has at most {MAX_ACCOUNTS} accounts");
                        faults.push(fault(PRINCIPALS_FILE, text, at(name.span()), message));
                    }
                    for written in &entry.irc {
                        let message = match account(written.get_ref()) {
                            Err(message) => message,
                            Ok(account) => match accounts.insert(account, principal.clone()) {
                                Some(other) if other != principal => {
                                    format!("this is an account of `{other}` already")
                                }
                                _ => continue,
                            },
                        };
                        let span = at(written.span());
                        faults.push(fault(PRINCIPALS_FILE, text, span, message));
                    }
                    let (kind, role) = (entry.kind, entry.role.unwrap_or(Role::Member));
                    named.insert(principal, Named { kind, groups, role });
                }
                Err(error) => {
                    let span = at(name.span());
                    faults.push(fault(PRINCIPALS_FILE, text, span, error.to_string()));
                }
            }
        }
        if faults.is_empty() {
            Ok(Self {
                named,
                accounts,
                groups,
            })
        } else {
            Err(faults)
        }
    }

    /// What a principal is; `None` where nothing names it.
    #[must_use]
    pub fn kind(&self, name: &PrincipalName) -> Option<PrincipalKind> {
        self.named.get(name).map(|named| named.kind)
    }

    /// Whose a services account of a chat network is; nobody's where nothing
    /// says so. Networks do not tell capital and small letters apart.
    #[must_use]
    pub fn by_account(&self, network: &NetworkName, account: &str) -> Option<&PrincipalName> {
        let key = (network.clone(), account.to_ascii_lowercase());
        self.accounts.get(&key)
    }

    /// The role of a principal that comes without a token of its own.
    #[must_use]
    pub fn role(&self, name: &PrincipalName) -> Role {
        self.named
            .get(name)
            .map_or(Role::Member, |named| named.role)
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
