//! Our tables in the kernel: how they are made to be what they should be, and
//! what is found of them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::net::IpAddr;

use muster_firewall::groups::objects::{
    Count, Difference, Key, Kind, Listed, ListedRule, NAME, Name, Objects, Table,
};
use muster_firewall::groups::{bare, update, whole};
use serde::Deserialize;
use tracing::warn;

use super::listing::Listing;
use crate::netlink::{Element, Family, Kernel};
use crate::nft::{Nft, NftError};

/// More objects than this are not listed one by one.
const ONE_BY_ONE: usize = 64;
/// How often a listing is begun anew because somebody changes rules meanwhile.
const TRIES: usize = 5;

/// Why the kernel is not as it should be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TableError {
    /// By `nft`.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// Directly.
    #[error(
        "the kernel does not take rules: {0}; is the agent root, and does the kernel have nf_tables?"
    )]
    Kernel(#[from] io::Error),
}

/// What is found of them.
#[derive(Debug)]
pub(crate) enum Look {
    /// All is as it was left.
    Same,
    /// Somebody changed them: they are this now.
    Changed(Listing),
}

/// The tables.
#[derive(Debug)]
pub(crate) struct Tables {
    nft: Nft,
    /// What they list when nobody has changed them. Nothing when that is not
    /// known.
    expected: Option<Listing>,
    /// The generation at which that was so.
    generation: u32,
    /// Whether that is otherwise than what was said of it.
    is_new: bool,
    counts: BTreeMap<Name, Count>,
}

fn family(table: Table) -> Family {
    match table {
        Table::Bridge => Family::Bridge,
        Table::Inet => Family::Inet,
    }
}

impl Tables {
    pub(crate) fn new(nft: Nft) -> Self {
        Self {
            nft,
            expected: None,
            generation: 0,
            is_new: false,
            counts: BTreeMap::new(),
        }
    }

    /// What they list when nobody has changed them.
    pub(crate) fn expected(&self) -> Option<&Listing> {
        self.expected.as_ref()
    }

    /// What they list now is right.
    pub(crate) fn expect(&mut self, listing: Listing, generation: u32) {
        self.expected = Some(listing);
        self.generation = generation;
        self.is_new = true;
    }

    /// Whether what they list is otherwise than what was said of it.
    pub(crate) fn is_new(&self) -> bool {
        self.is_new
    }

    /// It was said.
    pub(crate) fn is_said(&mut self) {
        self.is_new = false;
    }

    /// Both tables as they are listed, and the generation that they are of.
    pub(crate) fn list(&self) -> Result<(Listing, u32), TableError> {
        let mut generation = Kernel::open()?.generation()?;
        let mut tries = TRIES;
        loop {
            let mut listing = Listing::default();
            for table in Table::ALL {
                if let Some(text) = self.table(table)? {
                    listing.read(family(table), &text);
                }
            }
            let now = Kernel::open()?.generation()?;
            tries -= 1;
            // Somebody changes his own tables all the time: then what was
            // listed is looked at again soon.
            if now == generation || tries == 0 {
                return Ok((listing, generation));
            }
            generation = now;
        }
    }

    /// The listing of a table, if it is there.
    fn table(&self, table: Table) -> Result<Option<String>, TableError> {
        match self.nft.ask(&["-s", "list", "table", table.family(), NAME]) {
            Ok(text) => Ok(Some(text)),
            Err(refused @ NftError::Refused { .. }) => {
                let all = self.nft.ask(&["list", "tables"])?;
                match all.lines().any(|line| line == format!("table {table}")) {
                    true => Err(refused.into()),
                    false => Ok(None),
                }
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Whether they are there, whatever is in them.
    pub(crate) fn are_there(&self) -> Result<bool, TableError> {
        let all = self.nft.ask(&["list", "tables"])?;
        let there = |table: &Table| all.lines().any(|line| line == format!("table {table}"));
        Ok(Table::ALL.iter().all(there))
    }

    /// Tables that let nothing pass.
    pub(crate) fn bare(&mut self) -> Result<(), TableError> {
        self.expected = None;
        Ok(self.nft.apply(&bare())?)
    }

    /// Whether they have been changed by somebody else since they were last
    /// looked at. One short message to the kernel when nobody did anything.
    pub(crate) fn look(&mut self) -> Result<Look, TableError> {
        let Some(expected) = &self.expected else {
            return Ok(Look::Same);
        };
        if Kernel::open()?.generation()? == self.generation {
            return Ok(Look::Same);
        }
        let (listing, generation) = self.list()?;
        if listing == *expected {
            self.generation = generation;
            return Ok(Look::Same);
        }
        Ok(Look::Changed(listing))
    }

    /// Replaces both, whatever they are; counters go on.
    pub(crate) fn replace(&mut self, objects: &Objects) -> Result<(), TableError> {
        self.expected = None;
        if let Err(e) = self.count() {
            warn!(
                "the counters of the rules are not read, they go on from an earlier reading: {e}"
            );
        }
        self.counts
            .retain(|name, _| objects.counters.contains(name));
        self.nft.apply(&whole(objects, &self.counts))?;
        let (listing, generation) = self.list()?;
        self.expect(listing, generation);
        Ok(())
    }

    /// Changes what differs, in one transaction, right after a look that found
    /// all the same; false when what they are afterwards is not known, because
    /// somebody else changed rules meanwhile.
    pub(crate) fn change(&mut self, difference: &Difference) -> Result<bool, TableError> {
        if difference.is_empty() {
            return Ok(true);
        }
        if self.elements(difference)? {
            return Ok(true);
        }
        let listed = self.rules(difference)?;
        let Some(mut expected) = self.expected.take() else {
            return Ok(false);
        };
        let before = self.generation;
        if let Err(e) = self.nft.apply(&update(difference, &listed)) {
            // Nothing was changed.
            self.expected = Some(expected);
            return Err(e.into());
        }
        let after = Kernel::open()?.generation()?;
        if after != before.wrapping_add(1) {
            return Ok(false);
        }
        let texts = self.touched(difference, &mut expected)?;
        if Kernel::open()?.generation()? != after {
            return Ok(false);
        }
        match texts {
            true => {}
            false => {
                // More than one by one.
                let (listing, generation) = self.list()?;
                if generation != after {
                    return Ok(false);
                }
                expected = listing;
            }
        }
        self.expect(expected, after);
        Ok(true)
    }

    /// What is listed now of what was touched; false when that is so much
    /// that all should be listed.
    fn touched(&self, d: &Difference, expected: &mut Listing) -> Result<bool, TableError> {
        for name in &d.chains_gone {
            expected.remove(family(name.table), "chain", &name.name);
        }
        for name in &d.sets_gone {
            for word in ["set", "map"] {
                expected.remove(family(name.table), word, &name.name);
            }
        }
        for name in &d.counters_gone {
            expected.remove(family(name.table), "counter", &name.name);
        }
        let chains = d.chains_new.keys().chain(d.chains_changed.keys());
        let chains = chains.map(|name| ("chain", name));
        let sets = d.sets_new.iter().map(|(name, set)| (set.kind.word(), name));
        let kinds = d.kinds.iter().map(|(name, kind)| (kind.word(), name));
        let counters = d.counters_new.iter().map(|name| ("counter", name));
        let all: Vec<_> = chains.chain(sets).chain(kinds).chain(counters).collect();
        if all.len() > ONE_BY_ONE {
            return Ok(false);
        }
        let mut questions = String::new();
        for (word, name) in &all {
            expected.remove(family(name.table), word, &name.name);
            let _ = writeln!(questions, "list {word} {name}");
        }
        let text = self.nft.ask_by_text(&["-s"], &questions)?;
        expected.read_tables(&text);
        Ok(true)
    }

    /// Tells the kernel directly, when nothing but plain addresses come and go.
    fn elements(&mut self, d: &Difference) -> Result<bool, TableError> {
        let plain = |kind: &Kind| matches!(kind, Kind::Ipv4 | Kind::Ipv6);
        let is_plain = d.is_elements_only() && d.kinds.values().all(plain);
        let tables: Vec<Table> = d.kinds.keys().map(|name| name.table).collect();
        let Some(table) = tables.first().copied() else {
            return Ok(false);
        };
        let (true, Some(expected)) = (
            is_plain && tables.iter().all(|other| *other == table),
            &mut self.expected,
        ) else {
            return Ok(false);
        };
        let mut all = Vec::new();
        for (of, comes) in [(&d.elements_gone, false), (&d.elements_new, true)] {
            for (name, elements) in of {
                for key in elements.keys() {
                    let Some(address) = address(key) else {
                        return Ok(false);
                    };
                    all.push(Element {
                        set: name.name.clone(),
                        address,
                        comes,
                    });
                }
            }
        }
        Kernel::open()?.elements(family(table), NAME, &all)?;
        // What somebody has changed is found at the next look: it is not the
        // number of our own transactions then.
        for element in all {
            let text = element.address.to_string();
            expected.element(family(table), &element.set, &text, element.comes);
        }
        self.generation = self.generation.wrapping_add(1);
        self.is_new = true;
        Ok(true)
    }

    /// The handles of the rules that may be replaced one by one.
    fn rules(&self, difference: &Difference) -> Result<Listed, TableError> {
        let mut listed = Listed::new();
        let mut questions = String::new();
        for name in difference.to_list() {
            listed.insert(name.clone(), Vec::new());
            let _ = writeln!(questions, "list chain {name}");
        }
        if listed.is_empty() {
            return Ok(listed);
        }
        let text = self.nft.ask_by_text(&["-a"], &questions)?;
        handles(&text, &mut listed);
        Ok(listed)
    }

    /// What the rules have counted until now.
    pub(crate) fn count(&mut self) -> Result<&BTreeMap<Name, Count>, TableError> {
        #[derive(Deserialize)]
        struct Answer {
            nftables: Vec<Item>,
        }
        #[derive(Deserialize)]
        struct Item {
            counter: Option<Counter>,
        }
        #[derive(Deserialize)]
        struct Counter {
            name: String,
            packets: u64,
            bytes: u64,
        }
        let table = Table::Inet;
        let question = ["-j", "list", "counters", "table", table.family(), NAME];
        let text = match self.nft.ask(&question) {
            Ok(text) => text,
            // There is no such table.
            Err(NftError::Refused { .. }) if !self.are_there()? => return Ok(&self.counts),
            Err(e) => return Err(e.into()),
        };
        let answer: Answer = serde_json::from_str(&text).map_err(io::Error::other)?;
        for counter in answer.nftables.into_iter().filter_map(|item| item.counter) {
            let name = Name::new(table, counter.name);
            let count = self.counts.entry(name).or_default();
            // Somebody may have made the table anew, or reset it.
            count.packets = count.packets.max(counter.packets);
            count.bytes = count.bytes.max(counter.bytes);
        }
        Ok(&self.counts)
    }
}

fn address(key: &Key) -> Option<IpAddr> {
    match key {
        Key::Net(net) if net.prefix_len() == net.max_prefix_len() => Some(net.addr()),
        _ => None,
    }
}

/// Reads the rules of chains as they are listed with their handles.
fn handles(text: &str, listed: &mut Listed) {
    let mut table = None;
    let mut chain = None;
    for line in text.lines() {
        let depth = line.bytes().take_while(|b| *b == b'\t').count();
        let line = line.trim();
        let (said, handle) = line.rsplit_once(" # handle ").unwrap_or((line, ""));
        match depth {
            0 => {
                let is = |of: &Table| said == format!("table {of} {{");
                table = Table::ALL
                    .into_iter()
                    .find(is)
                    .or(table.filter(|_| said == "}"));
            }
            1 => {
                let name = said
                    .strip_prefix("chain ")
                    .and_then(|rest| rest.strip_suffix(" {"));
                chain = name.zip(table).map(|(name, table)| Name::new(table, name));
            }
            _ => {
                let rules = chain.as_ref().and_then(|chain| listed.get_mut(chain));
                let (Some(rules), Ok(handle)) = (rules, handle.parse()) else {
                    continue;
                };
                let comment = said.rsplit_once(" comment \"").map(|(_, rest)| rest);
                let comment = comment.and_then(|rest| rest.strip_suffix('"'));
                rules.push(ListedRule {
                    handle,
                    comment: comment.unwrap_or_default().to_owned(),
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_are_read_of_the_chains_that_were_asked_for() {
        let text = "table inet muster_groups { # handle 7
\tchain in-web { # handle 12
\t\tip saddr @m4 counter name \"n-web-1\" accept comment \"1 00ff\" # handle 40
\t\ttcp dport 80 accept # handle 41
\t}
}
table inet muster_groups { # handle 7
\tchain other { # handle 13
\t\taccept comment \"x\" # handle 50
\t}
}
";
        let name = Name::new(Table::Inet, "in-web");
        let mut listed = Listed::from([(name.clone(), Vec::new())]);
        handles(text, &mut listed);
        let rule = |handle, comment: &str| ListedRule {
            handle,
            comment: comment.to_owned(),
        };
        assert_eq!(
            listed,
            Listed::from([(name, vec![rule(40, "1 00ff"), rule(41, "")])])
        );
    }
}
