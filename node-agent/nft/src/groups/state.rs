//! What is held, as a fold of updates: the same for those that come and for
//! those that are read from the log.

use muster_firewall::groups::Refused as Rules;
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
    Rules(#[from] Rules),
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

/// What an update is for.
#[derive(Clone, Copy)]
enum From<'a> {
    /// Nothing: it begins anew.
    Nothing,
    /// The parts of the next state.
    Staged(&'a Held),
    /// What is held whole.
    Held(&'a Held),
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

    /// What an update is for: the parts of the next state, else what is held
    /// whole. (Parts that did not become whole are in the log, and are nobody's
    /// when what was held before them goes on.)
    fn from(&self, base: Option<GroupsMark>) -> Result<From<'_>, Refused> {
        let Some(base) = base else {
            return Ok(From::Nothing);
        };
        let is_base = |held: &&Held| held.mark == base;
        let staged = self.staged.as_ref().filter(is_base).map(From::Staged);
        let held = || self.held.as_ref().filter(is_base).map(From::Held);
        staged.or_else(held).ok_or(Refused::Base)
    }

    /// What an update would do. Nothing is changed.
    pub(crate) fn step(&self, update: &GroupsUpdate) -> Result<Step, Refused> {
        let from = self.from(update.base)?;
        if let (From::Held(held), false) = (from, update.more)
            && members_only(&held.holding, &update.change)
        {
            limits(&held.holding, &update.change)?;
            apart(&held.holding, &update.change)?;
            let (before, after) = named(&held.holding, &update.change);
            return Ok(Step::Members { before, after });
        }
        let nothing = Holding::default();
        let before = match from {
            From::Nothing => &nothing,
            From::Staged(held) | From::Held(held) => &held.holding,
        };
        limits(before, &update.change)?;
        if update.more {
            return Ok(Step::Part);
        }
        let mut holding = before.clone();
        holding.apply(&update.change);
        let next = Held {
            mark: update.mark,
            holding,
        };
        // What was in force is not looked at once more.
        let part = match from {
            From::Held(_) => Some(&update.change),
            From::Nothing | From::Staged(_) => None,
        };
        muster_firewall::groups::check(&next.holding, part)?;
        let held = self.held.as_ref().map_or(&nothing, |held| &held.holding);
        let change = match part {
            Some(change) => change.clone(),
            None => held.change_to(&next.holding),
        };
        let mut ids = self.ids.clone();
        ids.assign_all(next.holding.interfaces.keys())?;
        Ok(Step::Whole { next, ids, change })
    }

    /// Does it: what there is to put in force then, if there is.
    pub(crate) fn take(&mut self, update: &GroupsUpdate, step: Step) -> Option<Taken> {
        match step {
            Step::Part => {
                let mut holding = match self.from(update.base) {
                    Ok(From::Staged(_)) => self.staged.take().map(|held| held.holding),
                    Ok(From::Held(held)) => Some(held.holding.clone()),
                    Ok(From::Nothing) | Err(_) => None,
                }
                .unwrap_or_default();
                holding.apply(&update.change);
                self.staged = Some(Held {
                    mark: update.mark,
                    holding,
                });
                None
            }
            Step::Members { before, after } => {
                self.staged = None;
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

/// Whether no single address that comes is in a prefix that is held. None of
/// those goes with it.
fn apart(holding: &Holding, change: &Change) -> Result<(), Refused> {
    for (of, change) in &change.members {
        let Some(held) = holding.members.get(of) else {
            continue;
        };
        for net in &change.add {
            // None of them is in another one: it is the last before it, or none.
            let last = held.range(..net).next_back();
            if let Some(first) = last.filter(|first| first.contains(net)) {
                return Err(Refused::Rules(Rules::Members {
                    members: of.clone(),
                    first: *first,
                    second: *net,
                }));
            }
        }
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn mark(sequence: u64) -> GroupsMark {
        GroupsMark { epoch: 1, sequence }
    }

    fn update(base: Option<u64>, next: u64, more: bool, change: Value) -> GroupsUpdate {
        GroupsUpdate {
            base: base.map(mark),
            mark: mark(next),
            more,
            change: serde_json::from_value(change).expect("a change"),
        }
    }

    fn interface(number: u8, groups: &[&str]) -> Value {
        json!({
            "machine": format!("0c7e1a52-93b4-8d3f-a1c2-5d6e7f8091{number:02x}"),
            "name": format!("vm-{number}"), "bridge": "br0",
            "mac": format!("52:54:00:00:00:{number:02x}"),
            "addresses": [format!("10.7.0.{number}")], "groups": groups,
        })
    }

    /// As the engine does it: what is refused leaves no parts.
    fn take(state: &mut State, update: &GroupsUpdate) -> Result<Option<Taken>, Refused> {
        state.release();
        match state.step(update) {
            Ok(step) => Ok(state.take(update, step)),
            Err(e) => {
                if e != Refused::Base {
                    state.unstage();
                }
                Err(e)
            }
        }
    }

    #[test]
    fn an_address_in_a_prefix_that_is_held_is_refused() {
        let rule = json!({"id": 1, "direction": "ingress", "traffic": "any", "peer": "group:lb"});
        let all = json!({"groups": {"web": [rule]}, "members": {"group:lb": {
            "add": ["10.0.0.0/8", "192.0.2.1/32"],
        }}});
        let mut state = State::default();
        assert!(take(&mut state, &update(None, 1, false, all)).is_ok());
        let add =
            |address: &str| json!({"members": {"group:lb": {"add": ["192.0.2.1/32", address]}}});
        let held = state.clone();
        let one = update(Some(1), 2, false, add("10.1.2.3/32"));
        let refused = take(&mut state, &one).map_or_else(|e| e.to_string(), |_| "taken".to_owned());
        assert_eq!(
            refused,
            "10.1.2.3/32 of group:lb has bits behind its prefix, or is a part of 10.0.0.0/8"
        );
        assert_eq!(state, held);
        let one = update(Some(1), 2, false, add("11.1.2.3/32"));
        assert!(take(&mut state, &one).is_ok());
    }

    #[test]
    fn the_log_of_what_was_taken_is_what_is_held() {
        let rules =
            json!([{"id": 1, "direction": "ingress", "traffic": "tcp 80", "peer": "group:lb"}]);
        let parts = [
            json!({"interfaces": {"mt1": interface(1, &["web"]), "mt2": interface(2, &[])}}),
            json!({"groups": {"web": rules}, "members": {"group:lb": {"add": ["10.0.0.1/32"]}}}),
            json!({"members": {"group:lb": {"add": ["10.0.0.2/32"], "remove": ["10.0.0.1/32"]}}}),
            json!({"members": {"group:lb": {"add": ["10.1.0.0/16"]}}}),
            json!({"interfaces": {"mt2": null}}),
            json!({"interfaces": {"mt3": interface(3, &["web"])}}),
            json!({"interfaces": {"mt4": interface(4, &["db"])}}),
            json!({"groups": {"web": null}}),
            json!({}),
        ];
        for seed in 1..400_u64 {
            let mut chance = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mut below = |limit: u64| {
                chance ^= chance << 13;
                chance ^= chance >> 7;
                chance ^= chance << 17;
                (chance >> 20) % limit
            };
            let (mut state, mut log) = (State::default(), Vec::new());
            let mut marks = vec![None];
            for next in 1..25 {
                let back = marks.len() - 1 - below(marks.len().min(3) as u64) as usize;
                let base = match below(4) {
                    0 => None,
                    1 => marks[back],
                    _ => state.mark().map(|mark| mark.sequence),
                };
                let part = parts[below(parts.len() as u64) as usize].clone();
                let update = update(base, next, below(3) == 0, part);
                let before = state.clone();
                match take(&mut state, &update) {
                    Ok(taken) => {
                        log.push(Record::Update(update.clone()));
                        marks.push(Some(next));
                        let held = state.held.as_ref();
                        assert_eq!(held.map(|held| held.mark) == Some(mark(next)), !update.more);
                        if let (Some(taken), Some(held)) = (taken, held) {
                            let mut made = taken.before.clone().unwrap_or_default();
                            made.apply(&taken.change);
                            assert_eq!(made, taken.after.unwrap_or_else(|| held.holding.clone()));
                        }
                    }
                    Err(_) => assert_eq!(state.held, before.held),
                }
                let mut read = State::read(log.clone()).expect("what was taken is read");
                // Numbers of those that are gone are free at the next update.
                let mut now = state.clone();
                read.release();
                now.release();
                assert_eq!((read.held, read.ids), (now.held, now.ids), "seed {seed}");
                if below(6) == 0 {
                    log = state.record().map_or(log, |record| vec![record]);
                }
            }
        }
    }

    #[test]
    fn what_is_too_much_is_refused() {
        let mut state = State::default();
        let said = |state: &mut State, change: Value| {
            take(state, &update(None, 1, false, change))
                .map(drop)
                .expect_err("refused")
                .to_string()
        };
        let rule =
            |n: usize| json!({"id": n, "direction": "ingress", "traffic": "any", "peer": "any"});
        let rules = |count: usize| (1..=count).map(rule).collect::<Vec<_>>();
        insta::assert_snapshot!(said(&mut state, json!({"groups": {"web": rules(1_001)}})), @"1001 rules of a group; a hypervisor holds at most 1000");
        let groups: serde_json::Map<_, _> =
            (0..10_001).map(|n| (format!("g{n}"), json!([]))).collect();
        insta::assert_snapshot!(said(&mut state, json!({"groups": groups})), @"10001 groups; a hypervisor holds at most 10000");
        let thousand = rules(1_000);
        let groups: serde_json::Map<_, _> = (0..201)
            .map(|n| (format!("g{n}"), json!(thousand)))
            .collect();
        insta::assert_snapshot!(said(&mut state, json!({"groups": groups})), @"201000 rules; a hypervisor holds at most 200000");
        insta::assert_snapshot!(said(&mut state, json!({"interfaces": {"mt1": interface(1, &["web"])}})), @"interface mt1 is in the group `web`, of which nothing is known");
        insta::assert_snapshot!(said(&mut state, json!({"interfaces": {"eth0": interface(1, &[])}})), @"`eth0` is no interface of a machine: their names begin with `mt`");
        assert_eq!(state, State::default());
    }
}
