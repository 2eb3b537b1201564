//! What waits to be said: who is next, and when.
//!
//! Pure: time is handed in. Each target has a lane. Between lanes the more
//! urgent line is first, and among equally urgent ones the lane that has
//! waited longest since its last line. Within a lane what is equally urgent
//! keeps its order, and what was begun is ended before anything else is said
//! there: lines that belong together stay together.
//!
//! An alarm goes before everything, but not for ever: after
//! eight lines that went before something less urgent, what has waited
//! longest is next.

mod bucket;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use muster_protocol::api::{ChatPerson, Urgency};
use muster_protocol::chat::ChannelName;

pub use self::bucket::Bucket;

/// After so many more urgent lines one goes to whoever waits longest.
const OVERTAKEN: u32 = 8;

/// To whom something is said.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum To {
    /// Everybody in a channel.
    Channel(ChannelName),
    /// One person alone: found anew when it is said.
    Person(Who),
}

/// A person, as [`ChatPerson`], with an order.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Who {
    /// The account: whoever has it is meant.
    pub account: Option<String>,
    /// Without an account, the sight.
    pub sight: Option<String>,
    /// The nick at that time.
    pub nick: String,
}

impl From<&ChatPerson> for Who {
    fn from(person: &ChatPerson) -> Self {
        Self {
            account: person.account.clone(),
            sight: person.sight.clone(),
            nick: person.nick.clone(),
        }
    }
}

impl From<&Who> for ChatPerson {
    fn from(who: &Who) -> Self {
        Self {
            nick: who.nick.clone(),
            account: who.account.clone(),
            sight: who.sight.clone(),
        }
    }
}

/// What is sent at once.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Unit {
    /// One line.
    Line(String),
    /// Several lines in one message of several lines.
    Block(Vec<String>),
}

impl Unit {
    /// How many lines people see.
    #[must_use]
    pub fn lines(&self) -> usize {
        match self {
            Self::Line(_) => 1,
            Self::Block(lines) => lines.len(),
        }
    }

    fn cost(&self) -> u32 {
        u32::try_from(self.lines()).unwrap_or(u32::MAX)
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Line(line) => line.len(),
            Self::Block(lines) => lines.iter().map(String::len).sum(),
        }
    }
}

/// Something to be said, whole.
#[derive(Clone, Debug)]
pub struct Item<T> {
    /// To whom.
    pub to: To,
    /// Before what.
    pub urgency: Urgency,
    /// The run.
    pub about: Option<String>,
    /// The lines, at least one.
    pub units: VecDeque<Unit>,
    /// It is newer than what waits to be said of the progress of its run.
    pub supersedes: bool,
    /// Whatever whoever put it in wants to know it by.
    pub tag: T,
}

/// What is to be sent now.
#[derive(Clone, Debug)]
pub struct Next<T> {
    /// The same for all units of an item.
    pub item: u64,
    /// To whom.
    pub to: To,
    /// What.
    pub unit: Unit,
    /// Whether the item ends with it.
    pub last: bool,
    /// How urgent it was.
    pub urgency: Urgency,
    /// Of which run.
    pub about: Option<String>,
    /// As it was put in.
    pub tag: T,
}

#[derive(Debug)]
struct Waiting<T> {
    id: u64,
    since: Instant,
    item: Item<T>,
}

#[derive(Debug)]
struct Lane<T> {
    /// Begun, and ended before anything else.
    current: Option<Waiting<T>>,
    waiting: [VecDeque<Waiting<T>>; 4],
    /// Number of the turn in which it was served last.
    served: u64,
}

impl<T> Lane<T> {
    fn new(served: u64) -> Self {
        Self {
            current: None,
            waiting: [const { VecDeque::new() }; 4],
            served,
        }
    }

    fn is_empty(&self) -> bool {
        self.current.is_none() && self.waiting.iter().all(VecDeque::is_empty)
    }

    fn all(&self) -> impl Iterator<Item = &Waiting<T>> {
        self.current.iter().chain(self.waiting.iter().flatten())
    }

    /// What would be said next there, and where it is: `None` for what is
    /// begun already, else queue and position.
    fn head(&self, told: &Told, now: Instant, order: Order) -> Option<Head<'_, T>> {
        if let Some(waiting) = &self.current {
            return Some(Head { at: None, waiting });
        }
        let heads = self.waiting.iter().enumerate().filter_map(|(queue, all)| {
            let ready = |w: &Waiting<T>| told.ready(&w.item, now) <= now;
            let place = all.iter().position(ready)?;
            Some(((queue, place), &all[place]))
        });
        let (at, waiting) = match order {
            Order::Urgent => heads.min_by_key(|((queue, _), _)| *queue),
            Order::Longest => heads.min_by_key(|(_, w)| w.since),
        }?;
        Some(Head {
            at: Some(at),
            waiting,
        })
    }
}

struct Head<'a, T> {
    at: Option<(usize, usize)>,
    waiting: &'a Waiting<T>,
}

/// When progress was last told, of which run and where.
#[derive(Debug)]
struct Told {
    every: Duration,
    at: BTreeMap<(To, String), Instant>,
}

impl Told {
    fn ready<T>(&self, item: &Item<T>, now: Instant) -> Instant {
        match (item.urgency, &item.about) {
            (Urgency::Progress, Some(about)) => {
                let last = self.at.get(&(item.to.clone(), about.clone()));
                last.map_or(now, |at| (*at + self.every).max(now))
            }
            _ => now,
        }
    }

    fn told<T>(&mut self, next: &Next<T>, now: Instant) {
        if let (Urgency::Progress, Some(about)) = (next.urgency, &next.about) {
            let every = self.every;
            self.at.retain(|_, at| *at + every > now);
            self.at.insert((next.to.clone(), about.clone()), now);
        }
    }
}

/// How fast, and how often.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Lines at once.
    pub burst: u32,
    /// Time between two lines after that.
    pub every: Duration,
    /// Time between two lines of progress of one run in one place.
    pub progress: Duration,
}

/// What waits to be said in a network.
#[derive(Debug)]
pub struct Queue<T> {
    bucket: Bucket,
    lanes: BTreeMap<To, Lane<T>>,
    told: Told,
    next_id: u64,
    turn: u64,
    overtaken: u32,
    bytes: usize,
    items: usize,
}

impl<T: Clone> Queue<T> {
    /// Nothing waits.
    #[must_use]
    pub fn new(pace: Pace) -> Self {
        Self {
            bucket: Bucket::new(pace.burst, pace.every),
            lanes: BTreeMap::new(),
            told: Told {
                every: pace.progress,
                at: BTreeMap::new(),
            },
            next_id: 0,
            turn: 0,
            overtaken: 0,
            bytes: 0,
            items: 0,
        }
    }

    /// How much waits, in bytes of text.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many items wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.items
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items == 0
    }

    /// How many items of that urgency wait for that target.
    #[must_use]
    pub fn waiting(&self, to: &To, urgency: Urgency) -> usize {
        self.lanes.get(to).map_or(0, |lane| {
            lane.waiting[index(urgency)].len()
                + usize::from(
                    lane.current
                        .as_ref()
                        .is_some_and(|w| w.item.urgency == urgency),
                )
        })
    }

    /// How many items of that urgency wait, for whomever.
    #[must_use]
    pub fn waiting_in_all(&self, urgency: Urgency) -> usize {
        let lanes = self.lanes.values();
        lanes.map(|lane| lane.waiting[index(urgency)].len()).sum()
    }

    /// Puts something at the end of its lane. Given back are the tags of what
    /// is not said any more because this is newer.
    pub fn push(&mut self, item: Item<T>, now: Instant) -> Vec<T> {
        if item.units.is_empty() {
            return vec![item.tag];
        }
        let id = self.next_id;
        self.next_id += 1;
        let (turn, to) = (self.turn, item.to.clone());
        let lane = self.lanes.entry(to).or_insert_with(|| Lane::new(turn));
        let new = Waiting {
            id,
            since: now,
            item,
        };
        let same = |old: &Waiting<T>| old.item.about == new.item.about;
        let progress = &mut lane.waiting[index(Urgency::Progress)];
        if new.item.about.is_some() && new.item.urgency == Urgency::Progress {
            // The newest takes the place of the one before, and its turn.
            if let Some(old) = progress.iter_mut().find(|old| same(old)) {
                self.bytes += bytes(&new.item);
                self.bytes -= bytes(&old.item);
                let since = old.since;
                let old = std::mem::replace(old, Waiting { since, ..new });
                return vec![old.item.tag];
            }
        }
        let mut gone = Vec::new();
        if new.item.about.is_some() && new.item.supersedes {
            progress.retain_mut(|old| {
                if old.item.about != new.item.about {
                    return true;
                }
                self.items -= 1;
                self.bytes -= bytes(&old.item);
                gone.push(old.item.tag.clone());
                false
            });
        }
        self.items += 1;
        self.bytes += bytes(&new.item);
        lane.waiting[index(new.item.urgency)].push_back(new);
        gone
    }

    /// Puts back what was given out by [`Queue::next`] and did not arrive, in
    /// that order: it is next in its lane. Units of one item are one item again.
    pub fn put_back(&mut self, lost: Vec<Next<T>>, now: Instant) {
        for next in lost.into_iter().rev() {
            let lane = self
                .lanes
                .entry(next.to.clone())
                .or_insert_with(|| Lane::new(0));
            self.bytes += next.unit.bytes();
            let queue = &mut lane.waiting[index(next.urgency)];
            if let Some(current) = lane.current.as_mut().filter(|w| w.id == next.item) {
                current.item.units.push_front(next.unit);
            } else if let Some(first) = queue.front_mut().filter(|w| w.id == next.item) {
                first.item.units.push_front(next.unit);
            } else {
                self.items += 1;
                queue.push_front(Waiting {
                    id: next.item,
                    since: now,
                    item: Item {
                        to: next.to,
                        urgency: next.urgency,
                        about: next.about,
                        units: VecDeque::from([next.unit]),
                        supersedes: false,
                        tag: next.tag,
                    },
                });
            }
        }
    }

    /// What may be said now, of targets that are `open`. It is out of the
    /// queue, and its tokens are out of the bucket.
    pub fn next(&mut self, now: Instant, open: impl Fn(&To) -> bool) -> Option<Next<T>> {
        if self.lanes.is_empty() || self.bucket.ready(1, now) > now {
            return None;
        }
        let (to, at, order) = self.choose(now, &open)?;
        let lane = self.lanes.get_mut(&to)?;
        let cost = match at {
            None => lane.current.as_ref(),
            Some((queue, place)) => lane.waiting[queue].get(place),
        }
        .and_then(|w| w.item.units.front())?
        .cost();
        if !self.bucket.take(cost, now) {
            return None;
        }
        if let Some((queue, place)) = at {
            lane.current = lane.waiting[queue].remove(place);
        }
        let current = lane.current.as_mut()?;
        let unit = current.item.units.pop_front()?;
        self.bytes -= unit.bytes();
        let item = &current.item;
        let next = Next {
            item: current.id,
            to: to.clone(),
            unit,
            last: item.units.is_empty(),
            urgency: item.urgency,
            about: item.about.clone(),
            tag: item.tag.clone(),
        };
        self.turn += 1;
        lane.served = self.turn;
        if next.last {
            lane.current = None;
            self.items -= 1;
        }
        if lane.is_empty() {
            self.lanes.remove(&to);
        }
        self.told.told(&next, now);
        let overtakes = order == Order::Urgent && self.is_overtaken(next.urgency, &open);
        self.overtaken = if overtakes { self.overtaken + 1 } else { 0 };
        Some(next)
    }

    /// When [`Queue::next`] has something, if nothing changes; `None` when
    /// nothing waits for a target that is open.
    #[must_use]
    pub fn due(&self, now: Instant, open: impl Fn(&To) -> bool) -> Option<Instant> {
        if let Some((to, at, _)) = self.choose(now, &open) {
            let lane = self.lanes.get(&to)?;
            let waiting = match at {
                None => lane.current.as_ref()?,
                Some((queue, place)) => lane.waiting[queue].get(place)?,
            };
            let cost = waiting.item.units.front()?.cost();
            return Some(self.bucket.ready(cost, now));
        }
        // Nothing but progress that was told a moment ago.
        let lanes = self.lanes.iter().filter(|(to, _)| open(to));
        let all = lanes.flat_map(|(_, lane)| lane.all());
        all.map(|w| self.told.ready(&w.item, now)).min()
    }

    /// Takes out what has waited longer than `patience` for a target that is
    /// not open, and says what that was. `since` is the moment before which
    /// no time counts.
    pub fn give_up(
        &mut self,
        now: Instant,
        since: Instant,
        patience: Duration,
        open: impl Fn(&To) -> bool,
    ) -> Vec<Item<T>> {
        let late = |w: &Waiting<T>| now.saturating_duration_since(w.since.max(since)) > patience;
        self.take_out(|to, w| !open(to) && late(w))
    }

    /// Takes out everything that `keep` does not want, and says what that was.
    pub fn retain(&mut self, keep: impl Fn(&Item<T>) -> bool) -> Vec<Item<T>> {
        self.take_out(|_, w| !keep(&w.item))
    }

    fn take_out(&mut self, which: impl Fn(&To, &Waiting<T>) -> bool) -> Vec<Item<T>> {
        let mut gone = Vec::new();
        for (to, lane) in &mut self.lanes {
            gone.extend(lane.current.take_if(|w| which(to, w)).map(|w| w.item));
            for queue in &mut lane.waiting {
                for w in std::mem::take(queue) {
                    if which(to, &w) {
                        gone.push(w.item);
                    } else {
                        queue.push_back(w);
                    }
                }
            }
        }
        self.items -= gone.len();
        self.bytes -= gone.iter().map(bytes).sum::<usize>();
        self.lanes.retain(|_, lane| !lane.is_empty());
        gone
    }

    /// Which lane is next, what of it, and by which rule.
    #[allow(clippy::type_complexity)]
    fn choose(
        &self,
        now: Instant,
        open: &impl Fn(&To) -> bool,
    ) -> Option<(To, Option<(usize, usize)>, Order)> {
        let order = if self.overtaken >= OVERTAKEN {
            Order::Longest
        } else {
            Order::Urgent
        };
        let mut heads: Vec<_> = self
            .lanes
            .iter()
            .filter_map(|(to, lane)| {
                let head = lane.head(&self.told, now, order)?;
                // What is begun is hurried by what waits behind it.
                let behind = lane.waiting.iter().flatten().map(|w| w.item.urgency);
                let behind = behind.min().filter(|_| head.at.is_none());
                let own = head.waiting.item.urgency;
                let urgency = behind.map_or(own, |u| u.min(own));
                Some((to, head.at, urgency, head.waiting.since, lane.served))
            })
            .collect();
        match order {
            Order::Urgent => heads.sort_by_key(|(_, _, urgency, _, served)| (*urgency, *served)),
            Order::Longest => heads.sort_by_key(|(_, _, _, since, served)| (*since, *served)),
        }
        // Asking who is there costs more than all of the rest.
        let best = heads.into_iter().find(|(to, ..)| open(to));
        best.map(|(to, at, ..)| (to.clone(), at, order))
    }

    /// Whether something less urgent than that still waits.
    fn is_overtaken(&self, by: Urgency, open: &impl Fn(&To) -> bool) -> bool {
        let mut lanes = self.lanes.iter();
        lanes.any(|(to, lane)| lane.all().any(|w| w.item.urgency > by) && open(to))
    }
}

/// By which rule the next is chosen.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Order {
    Urgent,
    Longest,
}

fn index(urgency: Urgency) -> usize {
    match urgency {
        Urgency::Alarm => 0,
        Urgency::Reply => 1,
        Urgency::Progress => 2,
        Urgency::News => 3,
    }
}

fn bytes<T>(item: &Item<T>) -> usize {
    item.units.iter().map(Unit::bytes).sum()
}

#[cfg(test)]
mod tests;
