//! Our tables in the kernel: how they are made to be what they should be, and
//! what is found of them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use muster_firewall::groups::objects::{
    Count, Difference, Key, Kind, Listed, ListedRule, NAME, Name, Objects, Table,
};
use muster_firewall::groups::{bare, update, whole};
use tracing::warn;

use super::listing::Listing;
use crate::netlink::{Element, Family, Kernel};
use crate::nft::{Nft, NftError};

/// More objects than this are not listed one by one.
const ONE_BY_ONE: usize = 64;
/// A listing is followed by a rest so many times as long, and at most so
/// long: what somebody changes is put right within 2 s.
const REST: u32 = 4;
const MOST_REST: Duration = Duration::from_millis(800);
/// How often in a row our own change is made anew because somebody changes
/// rules before it is listed.
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

/// Whether it is known what they list when they are right.
#[derive(Debug)]
pub(crate) enum Settled {
    /// It is.
    Known,
    /// Somebody changed rules right after we did, his own or ours: it may not
    /// be what we made of them. They are this now.
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
    /// What is to be listed before that is known.
    unlisted: Option<Unlisted>,
    /// How often in a row it could not be listed, because somebody changes
    /// rules all the time.
    restless: usize,
    /// They are not listed again before.
    rest: Instant,
    /// Whether that is otherwise than what was said of it.
    is_new: bool,
    counts: BTreeMap<Name, Count>,
}

/// After a change of our own, which is answered before it is listed.
#[derive(Debug)]
struct Unlisted {
    /// What is known of the rest.
    known: Listing,
    /// For `nft`; everything when absent.
    questions: Option<String>,
    /// The generation right after it.
    generation: u32,
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
            unlisted: None,
            restless: 0,
            rest: Instant::now(),
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
        self.unlisted = None;
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

    /// Both tables as they are listed, and the generation before it: what
    /// somebody changes meanwhile is found by that at the next look.
    pub(crate) fn list(&self) -> Result<(Listing, u32), TableError> {
        let generation = Kernel::open()?.generation()?;
        let mut listing = Listing::default();
        for table in Table::ALL {
            if let Some(text) = self.table(table)? {
                listing.read(family(table), &text);
            }
        }
        Ok((listing, generation))
    }

    /// The listing of a table, if it is there.
    fn table(&self, table: Table) -> Result<Option<String>, TableError> {
        match self.nft.ask(&["-s", "list", "table", table.family(), NAME]) {
            Ok(text) => Ok(Some(text)),
            Err(refused @ NftError::Refused { .. }) => {
                match Kernel::open()?.has_table(family(table), NAME)? {
                    true => Err(refused.into()),
                    false => Ok(None),
                }
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Whether they are there, whatever is in them.
    pub(crate) fn are_there(&self) -> Result<bool, TableError> {
        for table in Table::ALL {
            if !Kernel::open()?.has_table(family(table), NAME)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Tables that let nothing pass.
    pub(crate) fn bare(&mut self) -> Result<(), TableError> {
        self.expected = None;
        Ok(self.nft.apply(&bare())?)
    }

    /// Whether they have been changed by somebody else since they were last
    /// looked at. One short message to the kernel when nobody did anything.
    /// Unless it is wanted at once, not too often.
    pub(crate) fn look(&mut self, at_once: bool) -> Result<Look, TableError> {
        let Some(expected) = &self.expected else {
            return Ok(Look::Same);
        };
        let now = Instant::now();
        let is_later = !at_once && now < self.rest;
        if is_later || Kernel::open()?.generation()? == self.generation {
            return Ok(Look::Same);
        }
        let (listing, generation) = self.list()?;
        // Others may change their own tables all the time.
        self.rest = Instant::now() + (now.elapsed() * REST).min(MOST_REST);
        if listing == *expected {
            self.generation = generation;
            return Ok(Look::Same);
        }
        Ok(Look::Changed(listing))
    }

    /// Replaces both, whatever they are; counters go on. What they list then
    /// is to be settled.
    pub(crate) fn replace(&mut self, objects: &Objects) -> Result<(), TableError> {
        self.expected = None;
        self.unlisted = None;
        if let Err(e) = self.count() {
            warn!("the counters of the rules go on from an earlier reading: {e}");
        }
        self.counts
            .retain(|name, _| objects.counters.contains(name));
        let before = Kernel::open()?.generation()?;
        self.nft.apply(&whole(objects, &self.counts))?;
        self.unlisted = Some(Unlisted {
            known: Listing::default(),
            questions: None,
            generation: before.wrapping_add(1),
        });
        Ok(())
    }

    /// Lists what was not listed since it was changed.
    pub(crate) fn settle(&mut self) -> Result<Settled, TableError> {
        let Some(unlisted) = &self.unlisted else {
            return Ok(Settled::Known);
        };
        let before = Kernel::open()?.generation()?;
        let listing = match &unlisted.questions {
            Some(questions) => match self.nft.ask_by_text(&["-s"], questions) {
                Ok(text) => {
                    let mut listing = unlisted.known.clone();
                    listing.read_tables(&text);
                    listing
                }
                // Somebody took away what was put there just now.
                Err(NftError::Refused { .. }) => return Ok(Settled::Changed(self.list()?.0)),
                Err(e) => return Err(e.into()),
            },
            None => self.list()?.0,
        };
        let after = Kernel::open()?.generation()?;
        if after != unlisted.generation && self.restless < TRIES {
            self.restless += 1;
            return Ok(Settled::Changed(self.list()?.0));
        }
        self.restless = 0;
        self.expect(listing, before);
        Ok(Settled::Known)
    }

    /// Changes what differs, in one transaction, right after a look that found
    /// all the same; false when what they are afterwards is not known, because
    /// somebody else changed rules meanwhile. What they list is to be settled.
    pub(crate) fn change(&mut self, difference: &Difference) -> Result<bool, TableError> {
        if difference.is_empty() {
            return Ok(true);
        }
        if self.elements(difference)? {
            return Ok(true);
        }
        let listed = self.rules(difference)?;
        let Some(expected) = self.expected.take() else {
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
        self.unlisted = Some(unlisted(difference, expected, after));
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
        for element in all {
            let text = element.address.to_string();
            expected.element(family(table), &element.set, &text, element.comes);
        }
        // If it is another number, somebody did something, too: then it is
        // found at the next look what that was.
        let next = self.generation.wrapping_add(1);
        if Kernel::open()?.generation()? == next {
            self.generation = next;
        }
        self.is_new = true;
        Ok(true)
    }

    /// The handles of the rules that may be replaced one by one.
    fn rules(&self, difference: &Difference) -> Result<Listed, TableError> {
        let mut all = Listed::new();
        for name in difference.to_list() {
            let rules = all.entry(name.clone()).or_default();
            let (family, chain) = (family(name.table), name.name.as_str());
            Kernel::open()?.rules(family, NAME, chain, |handle, comment| {
                let comment = comment.to_owned();
                rules.push(ListedRule { handle, comment });
            })?;
        }
        Ok(all)
    }

    /// What the rules have counted until now.
    pub(crate) fn count(&mut self) -> Result<&BTreeMap<Name, Count>, TableError> {
        let (table, counts) = (Table::Inet, &mut self.counts);
        Kernel::open()?.counters(family(table), NAME, |name, packets, bytes| {
            let count = counts.entry(Name::new(table, name)).or_default();
            // Somebody may have made the table anew, or reset it.
            count.packets = count.packets.max(packets);
            count.bytes = count.bytes.max(bytes);
        })?;
        Ok(&self.counts)
    }
}

/// What is to be listed after a change.
fn unlisted(d: &Difference, mut known: Listing, generation: u32) -> Unlisted {
    let gone = d.chains_gone.iter().map(|name| ("chain", name));
    let gone = gone.chain(d.sets_gone.iter().map(|name| ("set", name)));
    let gone = gone.chain(d.counters_gone.iter().map(|name| ("counter", name)));
    for (word, name) in gone {
        known.remove(family(name.table), word, &name.name);
    }
    let chains = d.chains_new.keys().chain(d.chains_changed.keys());
    let chains = chains.map(|name| ("chain", name));
    let sets = d.sets_new.iter().map(|(name, set)| (set.kind.word(), name));
    let kinds = d.kinds.iter().map(|(name, kind)| (kind.word(), name));
    let counters = d.counters_new.iter().map(|name| ("counter", name));
    let all: Vec<_> = chains.chain(sets).chain(kinds).chain(counters).collect();
    if all.len() > ONE_BY_ONE {
        return Unlisted {
            known,
            questions: None,
            generation,
        };
    }
    let mut questions = String::new();
    for (word, name) in &all {
        known.remove(family(name.table), word, &name.name);
        let _ = writeln!(questions, "list {word} {name}");
    }
    Unlisted {
        known,
        questions: Some(questions),
        generation,
    }
}

fn address(key: &Key) -> Option<IpAddr> {
    match key {
        Key::Net(net) if net.prefix_len() == net.max_prefix_len() => Some(net.addr()),
        _ => None,
    }
}
