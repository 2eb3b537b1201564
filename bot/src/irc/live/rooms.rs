//! The channels that the bot is to be in.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use muster_protocol::api::Secret;
use muster_protocol::chat::ChannelName;
use muster_protocol::text::printable;

use super::own::doubled;
use super::{Heard, Out, send};
use crate::irc::{Casemapping, NetworkSettings, Timing};

/// Marks the answers to our own questions.
pub(super) const WHO_MARK: &str = "774";
/// How long the server may take to answer a JOIN or WHO.
const ANSWER: Duration = Duration::from_secs(30);
/// Longest line of a JOIN, in bytes.
const MAX_JOIN: usize = 400;

#[derive(Debug)]
enum Presence {
    /// The server was asked.
    Asked(Instant),
    /// The bot is there.
    In(Instant),
    /// It is not; when it is tried again.
    Out(Instant),
}

#[derive(Debug)]
struct Room {
    name: ChannelName,
    key: Option<Secret>,
    presence: Presence,
    /// How often it was lost or refused, without having lasted in between.
    failures: u32,
}

/// The channels of a network.
#[derive(Debug)]
pub(super) struct Rooms {
    case: Casemapping,
    rooms: HashMap<String, Room>,
    /// Whose members are still to be asked about.
    who: VecDeque<ChannelName>,
    /// Since when an answer is awaited.
    asking: Option<Instant>,
}

impl Rooms {
    pub(super) fn new(settings: &NetworkSettings, case: Casemapping) -> Self {
        let now = Instant::now();
        let room = |c: &crate::irc::ChannelSettings| {
            let room = Room {
                name: c.name.clone(),
                key: c.key.clone(),
                presence: Presence::Out(now),
                failures: 0,
            };
            (case.fold(c.name.as_str()), room)
        };
        Self {
            case,
            rooms: settings.channels.iter().map(room).collect(),
            who: VecDeque::new(),
            asking: None,
        }
    }

    /// The channel that the server means, if the bot is to be there.
    pub(super) fn name(&self, text: &str) -> Option<ChannelName> {
        self.rooms
            .get(&self.case.fold(text))
            .map(|r| r.name.clone())
    }

    /// Asks for all of them, in few lines.
    pub(super) fn ask_all(&mut self, now: Instant, out: &mut Vec<Out>) {
        let mut keyed: Vec<(String, Option<String>)> = self
            .rooms
            .values_mut()
            .map(|room| {
                room.presence = Presence::Asked(now);
                let key = room.key.as_ref().map(|k| k.expose().to_owned());
                (room.name.to_string(), key)
            })
            .collect();
        // Keys belong to the first names of a line.
        keyed.sort_by_key(|(name, key)| (key.is_none(), name.clone()));
        let (mut names, mut keys) = (String::new(), String::new());
        for (name, key) in keyed {
            let more = name.len() + key.as_ref().map_or(0, String::len) + 2;
            if !names.is_empty() && names.len() + keys.len() + more > MAX_JOIN {
                join(&mut names, &mut keys, out);
            }
            for (list, part) in [(&mut names, Some(name)), (&mut keys, key)] {
                if let Some(part) = part {
                    if !list.is_empty() {
                        list.push(',');
                    }
                    list.push_str(&part);
                }
            }
        }
        join(&mut names, &mut keys, out);
    }

    /// Whether an answer to a JOIN of that channel is awaited.
    pub(super) fn is_asked(&self, text: &str) -> bool {
        self.rooms
            .get(&self.case.fold(text))
            .is_some_and(|r| matches!(r.presence, Presence::Asked(_)))
    }

    /// The bot is there now.
    pub(super) fn entered(&mut self, name: &ChannelName, now: Instant, out: &mut Vec<Out>) {
        if let Some(room) = self.rooms.get_mut(&self.case.fold(name.as_str())) {
            room.presence = Presence::In(now);
            out.push(Out::Tell(Heard::Joined(name.clone())));
        }
    }

    /// It was thrown out.
    pub(super) fn lost(
        &mut self,
        name: &ChannelName,
        timing: &Timing,
        now: Instant,
        out: &mut Vec<Out>,
    ) {
        if let Some(room) = self.rooms.get_mut(&self.case.fold(name.as_str())) {
            if let Presence::In(since) = room.presence {
                // Whoever was there for long is not thrown out again and again.
                if now.duration_since(since) > timing.pause_most {
                    room.failures = 0;
                }
                out.push(Out::Tell(Heard::Left(name.clone())));
            }
            room.presence = Presence::Out(now + pause(room.failures, timing));
            room.failures += 1;
        }
    }

    /// It is not let in.
    pub(super) fn refused(
        &mut self,
        text: &str,
        why: &str,
        settings: &NetworkSettings,
        now: Instant,
    ) {
        if let Some(room) = self.rooms.get_mut(&self.case.fold(text)) {
            let pause = pause(room.failures, &settings.timing);
            tracing::warn!(
                network = %settings.name,
                channel = %room.name,
                "the server does not let the bot in: {}; tried again in {} s",
                printable(why, 200),
                pause.as_secs()
            );
            room.presence = Presence::Out(now + pause);
            room.failures += 1;
        }
    }

    /// Tries again what it is time for.
    pub(super) fn tick(&mut self, timing: &Timing, now: Instant, out: &mut Vec<Out>) {
        for room in self.rooms.values_mut() {
            match room.presence {
                Presence::Out(again) if again <= now => {
                    room.presence = Presence::Asked(now);
                    let mut keys = room.key.as_ref().map_or("", |k| k.expose()).to_owned();
                    join(&mut room.name.to_string(), &mut keys, out);
                }
                Presence::Asked(since) if now.duration_since(since) > ANSWER => {
                    room.presence = Presence::Out(now + pause(room.failures, timing));
                    room.failures += 1;
                }
                _ => {}
            }
        }
        if self
            .asking
            .is_some_and(|since| now.duration_since(since) > ANSWER)
        {
            self.asking = None;
        }
    }

    /// The names of a channel are known: asks who they are, one channel after
    /// the other.
    pub(super) fn ask_who(
        &mut self,
        name: ChannelName,
        whox: bool,
        now: Instant,
        out: &mut Vec<Out>,
    ) {
        if !self.who.contains(&name) {
            self.who.push_back(name);
        }
        if self.asking.is_none() {
            self.who_ended(whox, now, out);
        }
    }

    /// An answer is complete: asks for the next.
    pub(super) fn who_ended(&mut self, whox: bool, now: Instant, out: &mut Vec<Out>) {
        self.asking = None;
        if let Some(name) = self.who.pop_front() {
            self.asking = Some(now);
            let fields = format!("%tcuhnaf,{WHO_MARK}");
            out.push(if whox {
                send("WHO", &[name.as_str(), &fields])
            } else {
                send("WHO", &[name.as_str()])
            });
        }
    }
}

fn pause(failures: u32, timing: &Timing) -> Duration {
    doubled(timing.pause_least, failures, timing.pause_most)
}

fn join(names: &mut String, keys: &mut String, out: &mut Vec<Out>) {
    if names.is_empty() {
        return;
    }
    out.push(if keys.is_empty() {
        send("JOIN", &[names])
    } else {
        send("JOIN", &[names, keys])
    });
    names.clear();
    keys.clear();
}
