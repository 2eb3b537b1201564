//! What is held, as a fold of updates: the same for those that come and for
//! those that are read from the log.

use muster_firewall::groups::ids::{Full, Ids};
use muster_protocol::firewall::{
    Change, GroupsMark, GroupsUpdate, Holding, MAX_GROUP_RULES, MembersChange,
};

use super::log::Record;

/// Most interfaces of a hypervisor.
pub const MAX_INTERFACES: usize = 8_192;
/// Most groups that its interfaces are in.
pub const MAX_GROUPS: usize = 10_000;
/// Most rules of all of them.
pub const MAX_RULES: usize = 200_000;
/// Most addresses that their rules name.
pub const MAX_MEMBERS: usize = 2_000_000;

/// Why an update is not taken.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// It says what changes of something else than is held.
    #[error("it is not for what is held here")]
    Base,
    /// Its interfaces have no numbers.
    #[error(transparent)]
    Full(#[from] Full),
    /// It cannot be said to the kernel.
    #[error(transparent)]
    Rules(#[from] muster_firewall::groups::Refused),
    /// It is too much.
    #[error("{count} {what}; a hypervisor holds at most {most}")]
    Many {
        /// How many.
        count: usize,
        /// Of what.
        what: &'static str,
        /// What is held at most.
        most: usize,
    },
}

/// What is held, whole.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Held {
    pub(crate) mark: GroupsMark,
    pub(crate) holding: Holding,
}

/// All that is known.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct State {
    /// The last that was complete.
    pub(crate) held: Option<Held>,
    /// The next one, of which parts are missing.
    staged: Option<Held>,
    /// The numbers of the interfaces that are held whole.
    pub(crate) ids: Ids,
}

/// What an update does, before it is done.
#[derive(Debug)]
pub(crate) enum Step {
    /// Another part follows.
    Part,
    /// Only single addresses come and go, of what is held already: nothing
    /// else of it is looked at.
    Members {
        /// Of what is held, those that are named, before it.
        before: Holding,
        /// And after it.
        after: Holding,
    },
    /// All of this is held then.
    Whole {
        next: Held,
        ids: Ids,
        /// What differs from what was held; from nothing when nothing was.
        change: Change,
    },
}

/// What was taken, to be put in force.
#[derive(Debug)]
pub(crate) struct Taken {
    /// What was held before; nothing when nothing was. When `after` is there,
    /// only what the change names.
    pub(crate) before: Option<Holding>,
    /// Of what is held now, what the change names; all of it when absent.
    pub(crate) after: Option<Holding>,
    /// What changed.
    pub(crate) change: Change,
}

impl State {
    /// What the next update must be for.
    pub(crate) fn mark(&self) -> Option<GroupsMark> {
        self.staged
            .as_ref()
            .or(self.held.as_ref())
            .map(|held| held.mark)
    }

    /// What an update would do. Nothing is changed.
    pub(crate) fn step(&self, update: &GroupsUpdate) -> Result<Step, Refused> {
        let before = match update.base {
            None => None,
            Some(base) => {
                let before = self.staged.as_ref().or(self.held.as_ref());
                Some(
                    before
                        .filter(|held| held.mark == base)
                        .ok_or(Refused::Base)?,
                )
            }
        };
        if let (Some(held), None, false) = (before, &self.staged, update.more)
            && members_only(&held.holding, &update.change)
        {
            limits(&held.holding, &update.change)?;
            let (before, after) = named(&held.holding, &update.change);
            return Ok(Step::Members { before, after });
        }
        let nothing = Holding::default();
        let from = before.map_or(&nothing, |held| &held.holding);
        limits(from, &update.change)?;
        if update.more {
            return Ok(Step::Part);
        }
        let mut holding = from.clone();
        holding.apply(&update.change);
        let next = Held {
            mark: update.mark,
            holding,
        };
        let part = update
            .base
            .and(self.staged.is_none().then_some(&update.change));
        muster_firewall::groups::check(&next.holding, part)?;
        let held = self.held.as_ref();
        let change = match (&self.staged, update.base) {
            (None, Some(_)) => update.change.clone(),
            _ => held
                .map_or(&nothing, |held| &held.holding)
                .change_to(&next.holding),
        };
        let mut ids = self.ids.clone();
        ids.assign_all(next.holding.interfaces.keys())?;
        Ok(Step::Whole { next, ids, change })
    }

    /// Does it: what there is to put in force then, if there is.
    pub(crate) fn take(&mut self, update: &GroupsUpdate, step: Step) -> Option<Taken> {
        match step {
            Step::Part => {
                let held = self.staged.take().or_else(|| self.held.clone());
                let held = update.base.and(held).map(|held| held.holding);
                let mut holding = held.unwrap_or_default();
                holding.apply(&update.change);
                self.staged = Some(Held {
                    mark: update.mark,
                    holding,
                });
                None
            }
            Step::Members { before, after } => {
                let held = self.held.as_mut()?;
                held.holding.apply(&update.change);
                held.mark = update.mark;
                Some(Taken {
                    before: Some(before),
                    after: Some(after),
                    change: update.change.clone(),
                })
            }
            Step::Whole { next, ids, change } => {
                self.staged = None;
                self.ids = ids;
                let before = self.held.replace(next);
                Some(Taken {
                    before: before.map(|held| held.holding),
                    after: None,
                    change,
                })
            }
        }
    }

    /// Gives numbers of interfaces that are gone free. Once the kernel knows
    /// them no more, and at the same place in each reading of the log: before
    /// the next update.
    pub(crate) fn release(&mut self) {
        let Some(held) = &self.held else { return };
        let gone = self.ids.iter().map(|(tap, _)| tap);
        let gone = gone.filter(|tap| !held.holding.interfaces.contains_key(*tap));
        for tap in gone.cloned().collect::<Vec<_>>() {
            self.ids.release(&tap);
        }
    }

    /// Forgets the parts of what is not complete.
    pub(crate) fn unstage(&mut self) {
        self.staged = None;
    }

    /// What the log says.
    pub(crate) fn read(records: Vec<Record>) -> Result<Self, Refused> {
        let mut state = Self::default();
        for record in records {
            match record {
                Record::Held { mark, holding, ids } => {
                    muster_firewall::groups::check(&holding, None)?;
                    let mut ids: Ids = ids.into_iter().collect();
                    ids.assign_all(holding.interfaces.keys())?;
                    let held = Some(Held { mark, holding });
                    state = Self {
                        held,
                        staged: None,
                        ids,
                    };
                }
                Record::Update(update) => {
                    state.release();
                    let step = state.step(&update)?;
                    state.take(&update, step);
                }
            }
        }
        Ok(state)
    }

    /// All of it as one record; nothing while parts are missing.
    pub(crate) fn record(&self) -> Option<Record> {
        match (&self.held, &self.staged) {
            (Some(held), None) => Some(Record::Held {
                mark: held.mark,
                holding: held.holding.clone(),
                ids: self.ids.iter().map(|(tap, n)| (tap.clone(), n)).collect(),
            }),
            _ => None,
        }
    }
}

/// Whether nothing but addresses come and go, of whom some are held.
fn members_only(holding: &Holding, change: &Change) -> bool {
    let single = |change: &MembersChange| {
        let mut all = change.add.iter().chain(&change.remove);
        !change.gone && all.all(|net| net.prefix_len() == net.max_prefix_len())
    };
    let mut members = change.members.iter();
    change.interfaces.is_empty()
        && change.groups.is_empty()
        && members.all(|(of, change)| single(change) && holding.members.contains_key(of))
}

/// The addresses that a change names, as far as they are held, and what they
/// are then.
fn named(holding: &Holding, change: &Change) -> (Holding, Holding) {
    let mut before = Holding::default();
    for (of, change) in &change.members {
        let Some(held) = holding.members.get(of) else {
            continue;
        };
        let all = change.add.iter().chain(&change.remove);
        let all = all.filter(|net| held.contains(*net)).copied().collect();
        before.members.insert(of.clone(), all);
    }
    let mut after = before.clone();
    after.apply(change);
    (before, after)
}

fn bound(count: usize, what: &'static str, most: usize) -> Result<(), Refused> {
    match count > most {
        true => Err(Refused::Many { count, what, most }),
        false => Ok(()),
    }
}

/// What is held after it, or a little more than that: what comes twice may
/// count twice.
fn limits(holding: &Holding, change: &Change) -> Result<(), Refused> {
    let new = change
        .interfaces
        .iter()
        .filter(|(_, value)| value.is_some());
    let new = new.filter(|(tap, _)| !holding.interfaces.contains_key(*tap));
    let interfaces = holding.interfaces.len() + new.count();
    bound(interfaces, "interfaces", MAX_INTERFACES)?;
    let come = || {
        change
            .groups
            .iter()
            .filter_map(|(name, rules)| Some((name, rules.as_ref()?)))
    };
    let longest = come().map(|(_, rules)| rules.len()).max().unwrap_or(0);
    bound(longest, "rules of a group", MAX_GROUP_RULES)?;
    let stay = holding
        .groups
        .iter()
        .filter(|(name, _)| !change.groups.contains_key(*name));
    let all = || stay.clone().chain(come());
    bound(all().count(), "groups", MAX_GROUPS)?;
    bound(
        all().map(|(_, rules)| rules.len()).sum(),
        "rules",
        MAX_RULES,
    )?;
    let members: usize = holding.members.values().map(|all| all.len()).sum();
    let come: usize = change.members.values().map(|change| change.add.len()).sum();
    bound(members + come, "addresses", MAX_MEMBERS)
}
