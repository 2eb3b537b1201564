//! What is held is put in force, and stays so. Everything here may wait for
//! the disk, the kernel and `nft`; it has a thread of its own.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use muster_firewall::groups::objects::{Count, WITHDRAWN, counter_of};
use muster_firewall::groups::{bare, objects, touched};
use muster_protocol::firewall::{GroupsAnswer, GroupsMark, GroupsUpdate, Holding, RuleId};
use muster_protocol::names::GroupName;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::flows::{Concern, Ended};
use super::listing::Listing;
use super::log::{Found, Log, LogError, Record};
use super::state::{Refused, State, Taken};
use super::sysctl::{self, SwitchError};
use super::tables::{Look, Settled, TableError, Tables};
use super::{Setting, Unable};
use crate::conntrack::Connections;
use crate::netlink::Kernel;
use crate::nft::{Nft, NftError};

/// What the kernel listed when it was last right.
const LISTED: &str = "groups.listed";
/// The time until what could not be put in force is tried again, from the
/// first time to the last.
const AGAIN: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(30)];
/// A connection may begin by the old rules in the moment before the new ones
/// are there, and be followed in the moment after: they are looked at twice.
const SECOND_LOOK: Duration = Duration::from_millis(300);
/// Connections that were withdrawn are looked at again so often.
const WITHDRAWN_AGAIN: Duration = Duration::from_secs(10);
/// What is listed is written down when nothing changes for so long.
const QUIET: Duration = Duration::from_secs(1);

/// Why what is held is not in force.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ForceError {
    /// The tables.
    #[error(transparent)]
    Tables(#[from] TableError),
    /// The switches of the bridge.
    #[error(transparent)]
    Switches(#[from] SwitchError),
    /// What is held cannot be written down.
    #[error(transparent)]
    Log(#[from] LogError),
    /// An update that cannot be.
    #[error("an update of the groups is not taken: {0}")]
    Refused(#[from] Refused),
}

/// What was listed when all was right, so that a process that begins knows
/// whether it still is.
#[derive(Debug, Deserialize, Eq, PartialEq, Serialize)]
struct Listed {
    mark: GroupsMark,
    digest: String,
}

#[derive(Debug)]
pub(crate) struct Engine {
    dir: PathBuf,
    log: Log,
    state: State,
    tables: Tables,
    /// What the kernel has been told.
    in_force: Option<GroupsMark>,
    problem: Option<String>,
    repaired: Vec<String>,
    /// Whether there is something to say that was not said.
    news: bool,
    /// When to try again, and how long to wait after that.
    again: Option<(Instant, Duration)>,
    /// Whose connections are to be looked at, and when they were for the
    /// first time.
    concern: Option<(Concern, Option<Instant>)>,
    /// What the file of it says.
    listed: Option<Listed>,
    /// When the tables were changed last.
    changed: Instant,
    /// When connections were looked at last.
    looked: Instant,
}

impl Engine {
    /// Looks whether all that is needed is there, and puts in force what is
    /// held, if it is not already.
    pub(crate) fn start(setting: &Setting) -> Result<Self, Unable> {
        let nft = Nft::new(&setting.nft).within(setting.nft_within);
        able(&nft)?;
        let mut engine = Self::begin(&setting.dir, nft)?;
        if let Err(e) = engine.first() {
            engine.fail(&e);
        }
        Ok(engine)
    }

    /// Before there is a network: a table that lets nothing pass, and then
    /// what was held when this machine went down.
    pub(crate) fn boot(dir: &Path, nft: Nft) -> Result<(), ForceError> {
        sysctl::load();
        let mut tables = Tables::new(nft.clone());
        if !tables.are_there()? {
            tables.bare()?;
        }
        let mut engine = Self::begin(dir, nft)?;
        engine.first()?;
        engine.end();
        Ok(())
    }

    /// Reads what is held. Nothing is put in force.
    fn begin(dir: &Path, nft: Nft) -> Result<Self, LogError> {
        let (log, found) = Log::open(dir)?;
        let state = match found {
            Found::Records(all) => State::read(all).unwrap_or_else(|e| {
                warn!("what was held of groups cannot be used, it is asked for anew: {e}");
                State::default()
            }),
            Found::Damaged { aside } => {
                let aside = aside.display();
                warn!("what was held of groups is damaged and now {aside}; it is asked for anew");
                State::default()
            }
        };
        Ok(Self {
            dir: dir.to_owned(),
            log,
            state,
            tables: Tables::new(nft),
            in_force: None,
            problem: None,
            repaired: Vec::new(),
            news: false,
            again: None,
            concern: None,
            listed: read_listed(&dir.join(LISTED)),
            changed: Instant::now(),
            looked: Instant::now(),
        })
    }

    /// Puts in force what is held, if it is not already.
    fn first(&mut self) -> Result<(), ForceError> {
        self.switches()?;
        let mark = self.state.held.as_ref().map(|held| held.mark);
        if mark.is_none() && !self.tables.are_there()? {
            self.tables.bare()?;
        }
        let (listing, generation) = self.tables.list()?;
        let digest = format!("{:032x}", listing.digest());
        // What is there stays as long as it is not known what should be.
        if mark.is_none_or(|mark| self.listed == Some(Listed { mark, digest })) {
            self.tables.expect(listing, generation);
            self.in_force = mark;
        } else {
            self.replace()?;
        }
        if self.log.is_long() {
            self.compact();
        }
        Ok(())
    }

    /// What is said of all this.
    pub(crate) fn answer(&self) -> GroupsAnswer {
        GroupsAnswer {
            held: self.state.mark(),
            in_force: self.in_force,
            problem: self.problem.clone(),
            repaired: self.repaired.clone(),
        }
    }

    /// What is held, whole.
    pub(crate) fn holding(&self) -> Option<(GroupsMark, Holding)> {
        let held = self.state.held.as_ref()?;
        Some((held.mark, held.holding.clone()))
    }

    /// What the rules have counted.
    pub(crate) fn counters(&mut self) -> Result<BTreeMap<(GroupName, RuleId), Count>, TableError> {
        let counts = self.tables.count()?;
        let all = counts.iter();
        Ok(all
            .filter_map(|(name, count)| Some((counter_of(&name.name)?, *count)))
            .collect())
    }

    /// Takes an update: on disk first, then in force.
    pub(crate) fn update(&mut self, update: &GroupsUpdate) -> GroupsAnswer {
        self.repaired.clear();
        match self.try_update(update) {
            Ok(()) => {}
            Err(ForceError::Refused(Refused::Base)) => {}
            Err(e) => self.fail(&e),
        }
        self.answer()
    }

    fn try_update(&mut self, update: &GroupsUpdate) -> Result<(), ForceError> {
        if self.again.is_none() {
            self.settle()?;
        }
        self.state.release();
        let step = match self.state.step(update) {
            Ok(step) => step,
            Err(e) => {
                if e != Refused::Base {
                    // What it was the last part of is of no use without it.
                    self.state.unstage();
                }
                return Err(e.into());
            }
        };
        self.log.append(&Record::Update(update.clone()))?;
        if let Some(taken) = self.state.take(update, step) {
            self.force(&taken)?;
        }
        if self.log.is_long() {
            self.compact();
        }
        Ok(())
    }

    /// Puts what was taken in force.
    fn force(&mut self, taken: &Taken) -> Result<(), ForceError> {
        let Some(held) = &self.state.held else {
            return Ok(());
        };
        let mark = held.mark;
        // Only what is known can be changed; else all of it is replaced.
        let is_known = self.tables.expected().is_some();
        let change = &taken.change;
        let after = taken.after.as_ref().unwrap_or(&held.holding);
        let known = taken.before.as_ref().filter(|_| self.again.is_none());
        let known = known.filter(|_| is_known && self.in_force.is_some());
        let difference = known.map(|before| touched(before, after, change, &self.state.ids));
        let concern = match &taken.before {
            Some(before) => Concern::of(before, &held.holding, change),
            None => Concern::first(&held.holding),
        };
        self.concern(concern);
        let is_done = match (difference, self.tables.look(true)) {
            (Some(difference), Ok(Look::Same)) => {
                self.tables.change(&difference).unwrap_or_else(|e| {
                    warn!("the groups' rules are replaced, as they could not be changed: {e}");
                    false
                })
            }
            (_, Ok(Look::Changed(found))) => {
                self.note(&found);
                false
            }
            (..) => false,
        };
        if !is_done {
            return self.replace();
        }
        self.is_in_force(mark);
        Ok(())
    }

    fn is_in_force(&mut self, mark: GroupsMark) {
        self.in_force = Some(mark);
        self.problem = None;
        self.again = None;
        self.changed = Instant::now();
        self.news = true;
    }

    /// Puts all that is held in force, whatever is there.
    fn replace(&mut self) -> Result<(), ForceError> {
        self.switches()?;
        let Some(held) = &self.state.held else {
            self.tables.bare()?;
            let (listing, generation) = self.tables.list()?;
            self.tables.expect(listing, generation);
            self.again = None;
            return Ok(());
        };
        let mark = held.mark;
        let all = objects(&held.holding, &self.state.ids);
        let concern = Concern::all(&held.holding);
        self.tables.replace(&all)?;
        self.is_in_force(mark);
        self.concern(concern);
        Ok(())
    }

    fn fail(&mut self, error: &ForceError) {
        let text = error.to_string();
        if self.problem.as_ref() != Some(&text) {
            warn!("the groups that are held are not in force: {text}");
            self.problem = Some(text);
            self.news = true;
        }
        let is_own = matches!(error, ForceError::Log(_) | ForceError::Refused(_));
        let now = Instant::now();
        // What was not even written down is said again by who said it.
        if is_own || self.again.is_some_and(|(when, _)| when > now) {
            return;
        }
        let wait = self
            .again
            .map_or(AGAIN[0], |(_, wait)| (wait * 2).min(AGAIN[1]));
        self.again = Some((now + wait, wait));
    }

    fn switches(&mut self) -> Result<(), ForceError> {
        let lines = sysctl::ensure()?;
        if !lines.is_empty() && self.in_force.is_some() {
            let told = lines.join(", ");
            warn!("somebody had switched off the bridge's filter: {told}");
            self.repaired.extend(lines);
            self.news = true;
        }
        Ok(())
    }

    fn note(&mut self, found: &Listing) {
        let expected = self.tables.expected();
        let lines = expected
            .map(|all| all.difference(found))
            .unwrap_or_default();
        let told = lines.join(", ");
        warn!("somebody had changed the rules of the groups: {told}");
        self.repaired.extend(lines);
        self.news = true;
    }

    /// Looks whether all is as it should be, and does what was left to do;
    /// whether there is something new to say.
    pub(crate) fn tick(&mut self) -> bool {
        let said = std::mem::take(&mut self.repaired);
        self.news = false;
        if let Err(e) = self.watch() {
            self.fail(&e);
        }
        let is_quiet = self.concern.is_none() && self.state.held.is_some();
        if is_quiet && self.looked.elapsed() >= WITHDRAWN_AGAIN {
            self.concern(Concern::withdrawn());
        }
        self.flows();
        if self.concern.is_none() && self.changed.elapsed() >= QUIET {
            self.remember();
        }
        if !self.news {
            // It was said, and is the newest that there is to say.
            self.repaired = said;
        }
        self.news
    }

    fn watch(&mut self) -> Result<(), ForceError> {
        self.switches()?;
        match self.again {
            Some((when, _)) if Instant::now() < when => return Ok(()),
            Some(_) => self.replace()?,
            None => {}
        }
        self.settle()?;
        if let Look::Changed(found) = self.tables.look(false)? {
            self.note(&found);
            self.replace()?;
        }
        Ok(())
    }

    /// Sees that it is known what the tables list when they are right.
    fn settle(&mut self) -> Result<(), ForceError> {
        let mut first = None;
        while let Settled::Changed(found) = self.tables.settle()? {
            first.get_or_insert(found);
            self.replace()?;
        }
        // Whose change it was is seen by what it is when it is right.
        match first {
            Some(found) if self.tables.expected().is_some_and(|all| *all != found) => {
                self.note(&found);
            }
            _ => {}
        }
        Ok(())
    }

    fn concern(&mut self, concern: Concern) {
        if concern.is_nobody() {
            return;
        }
        let (mut all, _) = self.concern.take().unwrap_or_default();
        all.join(concern);
        self.concern = Some((all, None));
    }

    /// Whether connections are still to be looked at.
    pub(crate) fn is_busy(&self) -> bool {
        self.concern.is_some()
    }

    /// Ends connections that are not allowed any more.
    pub(crate) fn flows(&mut self) {
        let (Some((concern, first)), Some(held)) = (&mut self.concern, &self.state.held) else {
            return;
        };
        let now = Instant::now();
        if first.is_some_and(|first| now < first + SECOND_LOOK) {
            return;
        }
        let holding = &held.holding;
        self.looked = now;
        match concern.see_to(holding) {
            Ok(ended) => {
                if ended != Ended::default() {
                    info!(
                        "connections: {} not allowed any more, {} allowed again, {} of addresses that are gone",
                        ended.withdrawn, ended.resumed, ended.forgotten
                    );
                }
                match first {
                    Some(_) => self.concern = None,
                    None => *first = Some(now),
                }
            }
            // They are looked at again at the next tick.
            Err(e) => warn!("connections that are not allowed any more may go on: {e}"),
        }
    }

    /// Writes the log anew.
    fn compact(&mut self) {
        let Some(record) = self.state.record() else {
            return;
        };
        if let Err(e) = self.log.replace(&record) {
            warn!("the log of the groups is not written anew, it grows: {e}");
        }
    }

    /// The last that is done.
    pub(crate) fn end(mut self) {
        if let Err(e) = self.settle() {
            warn!("what the kernel lists of the groups is not known: {e}");
        }
        // Else the next process looks at all connections.
        self.flows();
        if self
            .concern
            .as_ref()
            .is_none_or(|(_, first)| first.is_some())
        {
            self.remember();
        }
    }

    /// Writes down what is listed while all is right.
    fn remember(&mut self) {
        let (Some(mark), Some(expected)) = (self.in_force, self.tables.expected()) else {
            return;
        };
        let is_said = self
            .listed
            .as_ref()
            .is_some_and(|listed| listed.mark == mark);
        if is_said && !self.tables.is_new() {
            return;
        }
        let digest = format!("{:032x}", expected.digest());
        let listed = Listed { mark, digest };
        if self.listed.as_ref() != Some(&listed)
            && let Err(e) = write_listed(&self.dir, &listed)
        {
            // The next process replaces the tables, then.
            warn!("what the kernel lists of the groups is not written down: {e}");
        }
        self.listed = Some(listed);
        self.tables.is_said();
    }
}

/// Whether all that is needed is there: said once, before anything is done.
fn able(nft: &Nft) -> Result<(), Unable> {
    sysctl::load();
    let kernel = Kernel::open().map_err(Unable::Kernel)?;
    kernel.generation().map_err(Unable::Kernel)?;
    match nft.check(&bare()) {
        Ok(()) => {}
        Err(e @ NftError::Refused { .. }) => return Err(Unable::Rules(e)),
        Err(e) => return Err(Unable::Nft(e)),
    }
    sysctl::ensure()?;
    let connections = Connections::open().and_then(|all| all.marked(WITHDRAWN, |_| false));
    connections.map(drop).map_err(Unable::Connections)
}

fn read_listed(path: &Path) -> Option<Listed> {
    serde_json::from_str(&fs::read_to_string(path).ok()?).ok()
}

/// Not synced: when the machine goes down, so do the tables.
fn write_listed(dir: &Path, listed: &Listed) -> io::Result<()> {
    let new = dir.join(LISTED).with_extension("new");
    fs::write(&new, serde_json::to_string(listed)?)?;
    fs::rename(new, dir.join(LISTED))
}
