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
/// What could not be put in force is tried again before its time when somebody
/// changes rules meanwhile or takes ours away, but not more often than this.
const DISTURBED: Duration = Duration::from_secs(1);
/// Where nothing was ever held, so often it is seen whether this machine can
/// have groups, with that long between: a machine that starts is slow.
const CHANCES: u32 = 3;
const BETWEEN: Duration = Duration::from_secs(1);

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

/// Connections that are to be looked at.
#[derive(Debug)]
struct Looking {
    /// Whose.
    concern: Concern,
    /// Whether they were looked at once.
    is_second: bool,
    /// Not before.
    due: Instant,
    /// It failed: so long it was waited for the next time.
    wait: Option<Duration>,
}

/// How long is waited after one more failure.
fn longer(wait: Option<Duration>) -> Duration {
    wait.map_or(AGAIN[0], |wait| (wait * 2).min(AGAIN[1]))
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
    /// When that failed last, and the generation of the rules after it.
    failed: Option<(Instant, u32)>,
    /// Whose connections are to be looked at.
    concern: Option<Looking>,
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
        let was_held = Log::is_there(&setting.dir);
        let chances = if was_held { 1 } else { CHANCES };
        let unable = able_in(&nft, chances).err();
        let unable = match unable {
            Some(e) if !was_held => return Err(e),
            unable => unable,
        };
        let mut engine = Self::begin(&setting.dir, nft)?;
        if let Some(e) = unable {
            if engine.state.held.is_none() {
                return Err(e);
            }
            // Tables are there that have to be looked after.
            warn!("security groups are held here and looked after, though: {e}");
        }
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
        let (mut log, found) = Log::open(dir)?;
        let state = match found {
            Found::Records(all) => match State::read(all) {
                Ok(state) => state,
                Err(e) => {
                    // What is appended to it could not be used either.
                    let aside = log.put_aside()?;
                    let aside = aside.display();
                    warn!(
                        "what was held of groups cannot be used ({e}) and now is {aside}; it is asked for anew"
                    );
                    State::default()
                }
            },
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
            failed: None,
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
        if is_own {
            return;
        }
        self.failed = generation().ok().map(|generation| (now, generation));
        if self.again.is_some_and(|(when, _)| when > now) {
            return;
        }
        let wait = longer(self.again.map(|(_, wait)| wait));
        self.again = Some((now + wait, wait));
    }

    /// Whether somebody has changed rules, his own or ours, since ours could
    /// not be put in force.
    fn is_disturbed(&self) -> Result<bool, ForceError> {
        let Some((_, then)) = self.failed.filter(|(when, _)| when.elapsed() >= DISTURBED) else {
            return Ok(false);
        };
        Ok(generation().is_ok_and(|now| now != then) || !self.tables.are_there()?)
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
            Some((when, _)) if Instant::now() < when && !self.is_disturbed()? => return Ok(()),
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
        let before = self.concern.take();
        let wait = before.as_ref().and_then(|looking| looking.wait);
        let mut all = before.map(|looking| looking.concern).unwrap_or_default();
        all.join(concern);
        self.concern = Some(Looking {
            concern: all,
            is_second: false,
            due: Instant::now(),
            wait,
        });
    }

    /// Whether connections are to be looked at in a moment.
    pub(crate) fn is_busy(&self) -> bool {
        let looking = self.concern.as_ref();
        looking.is_some_and(|looking| looking.wait.is_none())
    }

    /// Ends connections that are not allowed any more.
    pub(crate) fn flows(&mut self) {
        self.flows_by(Instant::now(), Concern::see_to);
    }

    fn flows_by(
        &mut self,
        now: Instant,
        see_to: impl FnOnce(&Concern, &Holding) -> io::Result<Ended>,
    ) {
        let (Some(looking), Some(held)) = (&mut self.concern, &self.state.held) else {
            return;
        };
        if now < looking.due {
            return;
        }
        self.looked = now;
        match see_to(&looking.concern, &held.holding) {
            Ok(ended) => {
                if ended != Ended::default() {
                    info!(
                        "connections: {} not allowed any more, {} allowed again, {} of addresses that are gone",
                        ended.withdrawn, ended.resumed, ended.forgotten
                    );
                }
                if looking.is_second {
                    self.concern = None;
                } else {
                    looking.is_second = true;
                    looking.due = now + SECOND_LOOK;
                    looking.wait = None;
                }
            }
            Err(e) => {
                let wait = longer(looking.wait);
                looking.wait = Some(wait);
                looking.due = now + wait;
                warn!("connections that are not allowed any more may go on: {e}");
            }
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
            .is_none_or(|looking| looking.is_second)
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

/// The generation of the kernel's rules.
fn generation() -> io::Result<u32> {
    Kernel::open()?.generation()
}

/// Whether all that is needed is there; asked again where `nft` was only slow.
fn able_in(nft: &Nft, chances: u32) -> Result<(), Unable> {
    for _ in 1..chances {
        match able(nft) {
            Err(Unable::Nft(e @ (NftError::Hangs { .. } | NftError::Start { .. }))) => {
                warn!("it is seen again whether there can be security groups: {e}");
                std::thread::sleep(BETWEEN);
            }
            done => return done,
        }
    }
    able(nft)
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

#[cfg(test)]
mod tests;
