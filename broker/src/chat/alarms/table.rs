//! Which alarms there are, each with a small number that people name it by:
//! pure. The table is folded from the events.

use std::collections::BTreeMap;
use std::time::Duration;

use muster_protocol::api::ClusterEvent;
use muster_protocol::names::PrincipalName;
use muster_protocol::text::printable;
use muster_protocol::units::{Timestamp, elapsed};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::events::glob::Glob;
use crate::events::kinds;

/// Most alarms that are known at a time; the ones that are over go first, then
/// the oldest.
const MOST: usize = 500;
/// Most members of one alarm that are remembered by name.
const MOST_MEMBERS: usize = 2_000;
/// And of all alarms together.
const ALL_MEMBERS: usize = 10_000;
/// Most silences.
pub const MOST_SILENCES: usize = 100;
/// Numbers begin again behind this one.
const LAST_NUMBER: u32 = 9_999;
/// An alarm that is over is shown for so long.
const SHOWN: Duration = Duration::from_secs(3_600);
/// One of which nothing was heard for so long is forgotten: what has no end of
/// its own …
const FORGOTTEN: Duration = Duration::from_secs(86_400);
/// … and what has one that may have been missed.
const FORGOTTEN_WITH_END: Duration = Duration::from_secs(7 * 86_400);
/// Longest key, name and member, in characters.
const MAX_WORD: usize = 100;

/// Whether it is over.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It fires.
    Firing,
    /// It is over.
    Resolved,
}

/// Somebody looks after it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Acked {
    /// Who.
    pub by: PrincipalName,
    /// Since when.
    pub at: Timestamp,
}

/// An alarm.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Alarm {
    /// What people name it by.
    pub number: u32,
    /// What it is known by.
    key: String,
    /// The kind of event.
    pub kind: String,
    /// What it is called: `DiskFull`, `web-02 down`.
    pub name: String,
    /// Whether it is over.
    pub state: State,
    /// Since when it is so.
    pub since: Timestamp,
    /// When something was last heard of it.
    heard: Timestamp,
    /// When it was last said, if it was since it fires.
    said: Option<Timestamp>,
    /// Who looks after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acked: Option<Acked>,
    /// Until when nothing is said of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silenced_until: Option<Timestamp>,
    /// What fires: what it is known by, and what it is called.
    pub members: BTreeMap<String, String>,
}

/// Nothing is said of alarms that this fits.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Silence {
    /// Over names, kinds, nodes and instances.
    pub pattern: String,
    /// Until when.
    pub until: Timestamp,
    /// Who wanted it.
    pub by: PrincipalName,
}

/// All of them, as they are stored.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Table {
    /// The last number that was given.
    last: u32,
    /// By number.
    pub alarms: BTreeMap<u32, Alarm>,
    /// What is silenced by pattern.
    pub silences: Vec<Silence>,
    /// Events up to here are in it.
    seq: u64,
    /// Which numbering that is of.
    numbering: String,
}

/// What is to be said of an alarm because of an event.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum How {
    /// It fires, and did not before.
    New,
    /// It fires still, and was not said for long.
    Again,
    /// So many more of it fire.
    More(usize),
    /// So many of it are over, others fire.
    Fewer(usize),
    /// It is over.
    Over,
}

/// What an event has come to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Told {
    /// Which alarm.
    pub number: u32,
    /// What is to be said.
    pub how: How,
    /// How many of it fire now.
    pub firing: usize,
    /// For how long it fires, or has fired.
    pub lasted: Duration,
}

/// What came of an event.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Came {
    /// It is about no alarm, or about one that is not known.
    Nothing,
    /// It is about an alarm, and nothing is to be said.
    Quiet,
    /// It is to be said.
    Told(Told),
}

/// What an event says of alarms.
enum Says {
    Fires {
        key: String,
        name: String,
        members: BTreeMap<String, String>,
    },
    /// These are over; all when none is named.
    Over { key: String, members: Vec<String> },
    /// These nodes are there again.
    NodesUp(Vec<String>),
}

fn text<'a>(value: &'a Value, name: &str) -> Option<&'a str> {
    value.get(name)?.as_str().filter(|text| !text.is_empty())
}

/// The nodes that an event about nodes is of.
pub fn nodes_of(event: &ClusterEvent) -> Vec<String> {
    match event.fields.get("names").and_then(Value::as_array) {
        Some(names) => names
            .iter()
            .filter_map(Value::as_str)
            .take(MOST_MEMBERS)
            .map(|name| printable(name, MAX_WORD))
            .collect(),
        None => vec![printable(&event.subject, MAX_WORD)],
    }
}

fn says(event: &ClusterEvent) -> Option<Says> {
    let kind = event.kind.as_str();
    match kind {
        "alarm.firing" | "alarm.resolved" => {
            let group = event.fields.get("group").and_then(Value::as_str);
            let key = format!("{} {}", event.source, group.unwrap_or(&event.subject));
            let alarms = event.fields.get("alarms").and_then(Value::as_array);
            let members = alarms.into_iter().flatten().take(MOST_MEMBERS);
            let members: BTreeMap<String, String> = members
                .filter_map(|alarm| {
                    let print = text(alarm, "fingerprint")?;
                    let called = text(alarm, "instance").or_else(|| text(alarm, "name"));
                    let called = printable(called.unwrap_or_default(), MAX_WORD);
                    Some((printable(print, MAX_WORD), called))
                })
                .collect();
            Some(if kind == "alarm.firing" {
                // Whoever puts one in by hand may name it in its data alone.
                let own = event.fields.get("name").and_then(Value::as_str);
                let name = match event.subject.as_str() {
                    "" => own.unwrap_or("an alarm"),
                    subject => subject,
                };
                let name = printable(name, MAX_WORD);
                Says::Fires { key, name, members }
            } else {
                Says::Over {
                    key,
                    members: members.into_keys().collect(),
                }
            })
        }
        "node.down" => {
            let nodes = nodes_of(event);
            let name = match nodes.as_slice() {
                [one] => format!("{one} down"),
                _ => format!("{} down", printable(&event.subject, MAX_WORD)),
            };
            let members = nodes.into_iter().map(|node| (node.clone(), node));
            Some(Says::Fires {
                key: format!("node.down {}", event.id),
                name,
                members: members.collect(),
            })
        }
        "node.up" | "node.removed" => Some(Says::NodesUp(nodes_of(event))),
        "alarm.acked" | "alarm.silenced" => None,
        "alarm.space-cleared" => Some(Says::Over {
            key: format!("alarm.space {}", event.subject),
            members: Vec::new(),
        }),
        _ if kind.starts_with("alarm.") && kinds::is_own(kind) => {
            let what = kind.trim_start_matches("alarm.");
            Some(Says::Fires {
                key: format!("{kind} {}", event.subject),
                name: printable(&format!("{what} {}", event.subject), MAX_WORD),
                members: BTreeMap::new(),
            })
        }
        _ => None,
    }
}

/// Whether an event says something of alarms.
#[must_use]
pub fn is_about_alarms(event: &ClusterEvent) -> bool {
    says(event).is_some()
}

impl Alarm {
    fn words(&self) -> impl Iterator<Item = &str> {
        let own = [self.name.as_str(), self.kind.as_str()];
        own.into_iter()
            .chain(self.members.values().map(String::as_str))
    }

    fn has_end(&self) -> bool {
        matches!(
            self.kind.as_str(),
            "alarm.firing" | "node.down" | "alarm.space"
        )
    }

    fn is_forgotten(&self, now: Timestamp) -> bool {
        let age = elapsed(self.heard, now);
        match self.state {
            State::Resolved => age > SHOWN,
            State::Firing if self.has_end() => age > FORGOTTEN_WITH_END,
            State::Firing => age > FORGOTTEN,
        }
    }

    fn told(&self, how: How, now: Timestamp) -> Told {
        Told {
            number: self.number,
            how,
            firing: self.members.len(),
            lasted: elapsed(self.since, now),
        }
    }
}

impl Table {
    /// Whether what an event says is in it already.
    #[must_use]
    pub fn has(&self, event: &ClusterEvent, numbering: &str) -> bool {
        self.numbering == numbering && event.seq <= self.seq
    }

    /// Takes an event; `repeat`: how long an alarm that still fires is not
    /// said again.
    pub fn apply(
        &mut self,
        event: &ClusterEvent,
        numbering: &str,
        repeat: Duration,
        now: Timestamp,
    ) -> Came {
        let Some(says) = says(event) else {
            return Came::Nothing;
        };
        // The clock of whoever sent it says nothing.
        let now = event.at.min(now);
        self.tidy(now);
        numbering.clone_into(&mut self.numbering);
        self.seq = event.seq;
        match says {
            Says::Fires { key, name, members } => {
                self.fires(&event.kind, key, name, members, repeat, now)
            }
            Says::Over { key, members } => {
                let found = self.alarms.values().find(|alarm| alarm.key == key);
                match found.map(|alarm| alarm.number) {
                    Some(number) => self.over(number, &members, now),
                    None => Came::Nothing,
                }
            }
            Says::NodesUp(nodes) => self.nodes_up(&nodes, now),
        }
    }

    fn fires(
        &mut self,
        kind: &str,
        key: String,
        name: String,
        mut members: BTreeMap<String, String>,
        repeat: Duration,
        now: Timestamp,
    ) -> Came {
        let held: usize = self.alarms.values().map(|a| a.members.len()).sum();
        while members.len() > ALL_MEMBERS.saturating_sub(held).max(1) {
            members.pop_last();
        }
        let key = printable(&key, 4 * MAX_WORD);
        let found = self.alarms.values().find(|alarm| alarm.key == key);
        let number = match found.map(|alarm| alarm.number) {
            Some(number) => number,
            None => self.begin(kind, key, name.clone(), now),
        };
        let Some(alarm) = self.alarms.get_mut(&number) else {
            return Came::Nothing;
        };
        if alarm.state == State::Resolved {
            alarm.since = now;
            alarm.acked = None;
            alarm.said = None;
        }
        alarm.state = State::Firing;
        alarm.heard = now;
        alarm.name = name;
        let before = alarm.members.len();
        alarm.members.extend(members);
        while alarm.members.len() > MOST_MEMBERS {
            alarm.members.pop_last();
        }
        let more = alarm.members.len() - before;
        if self.is_silenced(number, now) {
            return Came::Quiet;
        }
        let Some(alarm) = self.alarms.get_mut(&number) else {
            return Came::Nothing;
        };
        let how = match alarm.said {
            // Also one that began while it was silenced.
            None if alarm.acked.is_none() => How::New,
            None => return Came::Quiet,
            Some(_) if more > 0 => How::More(more),
            Some(said) if alarm.acked.is_none() && elapsed(said, now) >= repeat => How::Again,
            Some(_) => return Came::Quiet,
        };
        alarm.said = Some(now);
        Came::Told(alarm.told(how, now))
    }

    fn begin(&mut self, kind: &str, key: String, name: String, now: Timestamp) -> u32 {
        while self.alarms.len() >= MOST {
            let oldest = self
                .alarms
                .values()
                .min_by_key(|alarm| (alarm.state == State::Firing, alarm.heard));
            let Some(number) = oldest.map(|alarm| alarm.number) else {
                break;
            };
            self.alarms.remove(&number);
        }
        loop {
            self.last = if self.last >= LAST_NUMBER {
                1
            } else {
                self.last + 1
            };
            if !self.alarms.contains_key(&self.last) {
                break;
            }
        }
        let number = self.last;
        let alarm = Alarm {
            number,
            key,
            kind: kind.to_owned(),
            name,
            state: State::Firing,
            since: now,
            heard: now,
            said: None,
            acked: None,
            silenced_until: None,
            members: BTreeMap::new(),
        };
        self.alarms.insert(number, alarm);
        number
    }

    /// Some of an alarm are over; all of it when none is named.
    fn over(&mut self, number: u32, members: &[String], now: Timestamp) -> Came {
        let silenced = self.is_silenced(number, now);
        let Some(alarm) = self.alarms.get_mut(&number) else {
            return Came::Nothing;
        };
        if alarm.state == State::Resolved {
            return Came::Quiet;
        }
        let before = alarm.members.len();
        for member in members {
            alarm.members.remove(member);
        }
        let fewer = before - alarm.members.len();
        alarm.heard = now;
        if !alarm.members.is_empty() && !members.is_empty() {
            return if silenced || fewer == 0 || alarm.said.is_none() {
                Came::Quiet
            } else {
                Came::Told(alarm.told(How::Fewer(fewer), now))
            };
        }
        let told = alarm.told(How::Over, now);
        // What nobody was told of is over for nobody.
        let quiet = silenced || alarm.said.is_none();
        alarm.members.clear();
        alarm.state = State::Resolved;
        alarm.since = now;
        alarm.silenced_until = None;
        if quiet { Came::Quiet } else { Came::Told(told) }
    }

    /// Nodes are there again: what is said of them is said of the last of the
    /// alarms that they were in.
    fn nodes_up(&mut self, nodes: &[String], now: Timestamp) -> Came {
        let down: Vec<u32> = self
            .alarms
            .values()
            .filter(|alarm| alarm.kind == "node.down" && alarm.state == State::Firing)
            .filter(|alarm| nodes.iter().any(|node| alarm.members.contains_key(node)))
            .map(|alarm| alarm.number)
            .collect();
        let mut came = Came::Nothing;
        for number in down {
            let one = self.over(number, nodes, now);
            if !matches!((&came, &one), (Came::Told(_), Came::Quiet)) {
                came = one;
            }
        }
        came
    }

    /// Whether nothing is said of it now.
    fn is_silenced(&self, number: u32, now: Timestamp) -> bool {
        let Some(alarm) = self.alarms.get(&number) else {
            return false;
        };
        alarm.silenced_until.is_some_and(|until| until > now)
            || self.silences.iter().any(|silence| {
                silence.until > now
                    && silence
                        .pattern
                        .parse::<Glob>()
                        .is_ok_and(|glob| alarm.words().any(|word| glob.fits(word)))
            })
    }

    /// Forgets what nobody needs any more.
    pub fn tidy(&mut self, now: Timestamp) {
        self.alarms.retain(|_, alarm| !alarm.is_forgotten(now));
        self.silences.retain(|silence| silence.until > now);
    }
}
