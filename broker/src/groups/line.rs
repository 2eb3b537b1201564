//! What one hypervisor was told of groups, and what it has said: pure.
//!
//! One change is on its way at a time. What is not acknowledged is sent again,
//! ever more rarely; who answers that it holds something else than it was told
//! is told everything.

use std::time::Duration;

use muster_protocol::firewall::{
    Change, GroupsAnswer, GroupsMark, GroupsUpdate, MAX_UPDATE, MembersChange,
};
use serde::Serialize;

use super::model::Wanted;

/// How long an answer may take, the first time.
const ANSWER: Duration = Duration::from_secs(1);
/// The longest time between two attempts.
const LONGEST: Duration = Duration::from_secs(30);
/// So often a change is sent again before everything is told anew.
const TIMES: u32 = 3;
/// What an update has beside its change, in bytes; generous.
const FRAME: usize = 1_024;
/// Prefixes in one piece of a list.
const PIECE: usize = 1_000;

/// Something that is on its way.
#[derive(Clone, Debug)]
struct Flight {
    updates: Vec<GroupsUpdate>,
    wanted: Wanted,
    generation: u64,
}

impl Flight {
    fn is_whole(&self) -> bool {
        self.updates
            .first()
            .is_none_or(|first| first.base.is_none())
    }

    /// What is held when all of it has arrived.
    fn mark(&self) -> Option<GroupsMark> {
        self.updates.last().map(|last| last.mark)
    }

    /// Whether that is held before all of it has arrived.
    fn comes_before(&self, held: Option<GroupsMark>) -> bool {
        let before = self.updates.iter().map(|update| update.base);
        before.into_iter().any(|base| base == held)
    }
}

/// What was told and heard. Times are since the broker began.
#[derive(Clone, Debug, Default)]
pub(super) struct Line {
    wanted: Wanted,
    generation: u64,
    /// What it has said that it holds.
    confirmed: Option<(GroupsMark, Wanted, u64)>,
    flight: Option<Flight>,
    /// What its kernel was told, as it said.
    force: Option<GroupsMark>,
    /// The newest generation that its kernel was told.
    in_force: u64,
    sequence: u64,
    tries: u32,
    /// Not before.
    next: Duration,
    /// It has connected anew, and has not said what it holds.
    unheard: bool,
}

impl Line {
    /// It is to hold that from now on.
    pub(super) fn want(&mut self, wanted: Wanted, generation: u64) {
        self.wanted = wanted;
        self.generation = generation;
        self.catch_up();
    }

    /// What it has confirmed may be what is wanted, again or still.
    fn catch_up(&mut self) {
        if self.flight.is_some() {
            return;
        }
        if let Some((mark, wanted, generation)) = &mut self.confirmed
            && *wanted == self.wanted
        {
            *generation = self.generation;
            if self.force == Some(*mark) {
                self.in_force = self.in_force.max(*generation);
            }
        }
    }

    /// In which generation it was changed last.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether what was wanted in that generation is in force, or something
    /// later.
    pub(super) fn is_in_force(&self, generation: u64) -> bool {
        self.in_force >= generation
    }

    /// When there may be something to send; none when there is nothing.
    pub(super) fn due(&self) -> Option<Duration> {
        let confirmed = self.confirmed.as_ref();
        let is_held = confirmed.is_some_and(|(_, held, _)| *held == self.wanted);
        let idle = self.flight.is_none() && is_held && !self.unheard;
        (!idle).then_some(self.next)
    }

    /// What is to be sent now.
    pub(super) fn send(&mut self, now: Duration, epoch: u64) -> Vec<GroupsUpdate> {
        if self.due().is_none_or(|due| due > now) {
            return Vec::new();
        }
        // It was to say what it holds by now.
        if std::mem::take(&mut self.unheard) && self.flight.is_none() {
            self.confirmed = None;
        }
        self.tries = self.tries.saturating_add(1);
        self.next = now + pause(self.tries);
        if let Some(flight) = &self.flight
            && !flight.is_whole()
            && flight.updates.len() == 1
            && self.tries <= TIMES
        {
            return flight.updates.clone();
        }
        if self.flight.take().is_some() {
            self.confirmed = None;
        }
        let base = self.confirmed.as_ref();
        let change = match base {
            Some((_, held, _)) => held.change_to(&self.wanted),
            None => Wanted::default().change_to(&self.wanted),
        };
        let mut base = base.map(|(mark, ..)| *mark);
        let parts = split(change);
        let last = parts.len() - 1;
        let mut updates = Vec::with_capacity(parts.len());
        for (at, change) in parts.into_iter().enumerate() {
            self.sequence += 1;
            let mark = GroupsMark {
                epoch,
                sequence: self.sequence,
            };
            updates.push(GroupsUpdate {
                base,
                mark,
                more: at < last,
                change,
            });
            base = Some(mark);
        }
        self.flight = Some(Flight {
            updates: updates.clone(),
            wanted: self.wanted.clone(),
            generation: self.generation,
        });
        updates
    }

    /// It says what it holds.
    pub(super) fn heard(&mut self, answer: &GroupsAnswer, now: Duration) {
        self.force = answer.in_force;
        match self.flight.take() {
            Some(flight) if answer.held == flight.mark() => {
                if let Some(mark) = answer.held {
                    self.confirmed = Some((mark, flight.wanted, flight.generation));
                }
                (self.tries, self.next) = (0, now);
            }
            // On its way still, or lost: then it is sent again.
            Some(flight) if flight.is_whole() || flight.comes_before(answer.held) => {
                self.flight = Some(flight);
            }
            Some(_) => self.anew(now),
            None => match &self.confirmed {
                Some((mark, ..)) if Some(*mark) == answer.held => {
                    // An answer comes for each message; one of before says
                    // nothing of whether something is due.
                }
                Some(_) => self.anew(now),
                None => {}
            },
        }
        self.unheard = false;
        if let Some((mark, _, generation)) = &self.confirmed
            && self.force == Some(*mark)
        {
            self.in_force = self.in_force.max(*generation);
        }
        self.catch_up();
    }

    /// It is told everything: at once, unless that was so a moment ago.
    fn anew(&mut self, now: Duration) {
        self.confirmed = None;
        self.tries = self.tries.saturating_add(1);
        if self.tries == 1 {
            self.next = now;
        } else {
            self.next = self.next.max(now + pause(self.tries - 1));
        }
    }

    /// It has connected: it says what it holds, unless that is lost.
    pub(super) fn greeted(&mut self, now: Duration) {
        self.tries = 0;
        if self.flight.is_none() && self.confirmed.is_none() {
            self.next = now;
        } else {
            self.unheard = true;
            self.next = now + ANSWER;
        }
    }
}

/// How long an answer may take after so many attempts.
fn pause(tries: u32) -> Duration {
    let doubled = ANSWER.saturating_mul(1 << tries.saturating_sub(1).min(5));
    doubled.min(LONGEST)
}

fn bytes(value: &impl Serialize) -> usize {
    serde_json::to_vec(value).map_or(MAX_UPDATE, |bytes| bytes.len())
}

/// A change in parts, each with room for what is around it; one at least.
fn split(whole: Change) -> Vec<Change> {
    let room = MAX_UPDATE - FRAME;
    if bytes(&whole) <= room {
        return vec![whole];
    }
    let mut pieces = Vec::new();
    let one = |change: Change, pieces: &mut Vec<Change>| pieces.push(change);
    for (tap, interface) in whole.interfaces {
        let change = Change {
            interfaces: [(tap, interface)].into(),
            ..Change::default()
        };
        one(change, &mut pieces);
    }
    for (group, rules) in whole.groups {
        let change = Change {
            groups: [(group, rules)].into(),
            ..Change::default()
        };
        one(change, &mut pieces);
    }
    for (of, members) in whole.members {
        let of = |change: MembersChange| Change {
            members: [(of.clone(), change)].into(),
            ..Change::default()
        };
        if members.gone || (members.add.is_empty() && members.remove.is_empty()) {
            one(of(members), &mut pieces);
            continue;
        }
        // What goes goes first: what comes may be in the place of it.
        let listed = |all: std::collections::BTreeSet<_>| -> Vec<_> { all.into_iter().collect() };
        for piece in listed(members.remove).chunks(PIECE) {
            let change = MembersChange {
                remove: piece.iter().copied().collect(),
                ..MembersChange::default()
            };
            one(of(change), &mut pieces);
        }
        for piece in listed(members.add).chunks(PIECE) {
            let change = MembersChange {
                add: piece.iter().copied().collect(),
                ..MembersChange::default()
            };
            one(of(change), &mut pieces);
        }
    }
    let mut parts: Vec<Change> = Vec::new();
    let mut used = room;
    for piece in pieces {
        let size = bytes(&piece);
        match parts.last_mut() {
            Some(part) if used + size <= room => {
                used += size;
                join(part, piece);
            }
            _ => {
                used = size;
                parts.push(piece);
            }
        }
    }
    parts
}

/// Both in one. Of the same list a part goes and then a part comes, or only
/// one of the two.
fn join(into: &mut Change, piece: Change) {
    into.interfaces.extend(piece.interfaces);
    into.groups.extend(piece.groups);
    for (of, change) in piece.members {
        let both = into.members.entry(of).or_default();
        both.gone |= change.gone;
        both.add.extend(change.add);
        both.remove.extend(change.remove);
    }
}
