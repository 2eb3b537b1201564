//! All that a bot knows in one network, and what it does about what it hears:
//! pure. Time is handed in, and what is to be done is handed out ([`Act`]).

mod feed;
mod lines;
mod speak;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use muster_client::Key;
use muster_protocol::api::{ChatLine, ChatPerson, Say, Urgency};
use muster_protocol::chat::ChannelName;
use muster_protocol::names::NetworkName;

use crate::flight::Flight;
use crate::intake::{Asker, Intake};
use crate::irc::{Heard, Line, Ready, Send};
use crate::ledger::{Ledger, Saved, Seq};
use crate::more::{More, Rest};
use crate::queue::{Item, Next, Pace, Queue, To, Unit, Who};
use crate::render::{Frame, Style};
use crate::{render, split};

/// How long something waits for a channel or a person that is not there, while
/// there is a connection.
pub const PATIENCE: Duration = Duration::from_secs(600);
/// How often it is looked what has waited too long.
const SWEEP: Duration = Duration::from_secs(30);
/// What came about longer ago than this says when it is said.
const OLD: Duration = Duration::from_secs(300);
/// Most bytes that wait to be said before no more lines are taken.
const MOST_BYTES: usize = 4 << 20;
/// Most items that wait to be said before no more lines are taken.
const MOST_ITEMS: usize = 16_384;
/// Most news that wait for one target; the others are counted.
const MOST_NEWS_THERE: usize = 32;
/// Most news that wait in all.
const MOST_NEWS: usize = 256;
/// Most that waits for a channel that the bot is not in.
const MOST_CLOSED: usize = 64;
/// Notes are said where fewer than so many items wait.
const ROOM: usize = 4;
/// What the bot's mask is taken for as long as there is no connection: the
/// longest that servers let through.
const MASK: usize = 120;
/// Longest line on the wire where the server says nothing else.
const LINE: usize = 512;

/// Who is called what now. See [`crate::irc::Users::nick_of`].
pub type NickOf = Box<dyn Fn(&ChatPerson) -> Option<String> + std::marker::Send>;

/// What is to be done.
#[derive(Debug)]
pub enum Act {
    /// Hand it to the connection.
    Send(Send),
    /// Put it on disk, and say [`Voice::saved`].
    Save(Saved),
    /// Tell the broker, and say [`Voice::answered`].
    Ask {
        /// Who is answered.
        asker: Asker,
        /// What they wrote.
        line: Box<ChatLine>,
        /// Names the request.
        key: Key,
    },
}

/// By what something that waits is known.
#[derive(Clone, Debug)]
enum Tag {
    /// Somebody wrote something. Not said any more after that moment: then
    /// nobody knows who has the nick.
    Reply { until: Option<Instant> },
    /// It has places in the feed.
    Feed(Arc<[Seq]>),
}

impl Tag {
    fn seqs(&self) -> &[Seq] {
        match self {
            Self::Reply { .. } => &[],
            Self::Feed(seqs) => seqs,
        }
    }
}

/// The connection.
#[derive(Debug)]
enum Link {
    Down,
    Up(Box<Up>),
}

#[derive(Debug)]
struct Up {
    since: Instant,
    ready: Ready,
    channels: BTreeSet<ChannelName>,
}

/// A line that is with the broker.
#[derive(Debug)]
struct Asked {
    line: Line,
    since: Instant,
    /// It was said that it takes long.
    told: bool,
}

/// One network.
pub struct Voice {
    network: NetworkName,
    style: Style,
    several_brokers: bool,
    nick_of: NickOf,
    link: Link,
    queue: Queue<Tag>,
    flight: Flight<Tag>,
    ledger: Ledger,
    intake: Intake,
    asked: BTreeMap<Asker, Asked>,
    more: More,
    notes: words::Notes,
    /// Next, as soon as the disk knows that it is begun.
    held: Option<Next<Tag>>,
    saving: bool,
    stopping: bool,
    swept: Option<Instant>,
}

/// Settings of a network's voice.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What the operators call it.
    pub network: NetworkName,
    /// How fast it speaks.
    pub pace: Pace,
    /// How that looks.
    pub style: Style,
    /// There is more than one broker: what one of them did not answer, another
    /// one may have been asked again.
    pub several_brokers: bool,
}

impl Voice {
    /// Goes on from what is on disk.
    #[must_use]
    pub fn new(settings: Settings, saved: Saved, nick_of: NickOf) -> Self {
        Self {
            network: settings.network,
            style: settings.style,
            several_brokers: settings.several_brokers,
            nick_of,
            link: Link::Down,
            queue: Queue::new(settings.pace),
            flight: Flight::default(),
            ledger: Ledger::new(saved),
            intake: Intake::default(),
            asked: BTreeMap::new(),
            more: More::default(),
            notes: words::Notes::default(),
            held: None,
            saving: false,
            stopping: false,
            swept: None,
        }
    }

    /// From where to follow the feed.
    #[must_use]
    pub fn resume(&self) -> Option<String> {
        self.ledger.resume()
    }

    /// The connection told something.
    pub fn heard(&mut self, heard: Heard, now: Instant) {
        match heard {
            Heard::Ready(ready) => {
                // Whatever was under way went with the connection before.
                self.lost(now);
                tracing::info!(network = %self.network, nick = %ready.nick, "connected");
                self.link = Link::Up(Box::new(Up {
                    since: now,
                    ready,
                    channels: BTreeSet::new(),
                }));
            }
            Heard::Gone { why, again_in } => {
                tracing::warn!(
                    network = %self.network, why,
                    again_in = format!("{:.0?}", again_in),
                    "not connected"
                );
                self.link = Link::Down;
                self.lost(now);
            }
            Heard::Joined(channel) => {
                if let Link::Up(up) = &mut self.link {
                    tracing::info!(network = %self.network, %channel, "joined");
                    up.channels.insert(channel);
                }
            }
            Heard::Left(channel) => {
                if let Link::Up(up) = &mut self.link {
                    tracing::warn!(network = %self.network, %channel, "not in the channel any more");
                    up.channels.remove(&channel);
                }
            }
            Heard::Mask(bytes) => {
                if let Link::Up(up) = &mut self.link {
                    up.ready.mask_bytes = bytes;
                }
            }
            Heard::Nick(nick) => {
                if let Link::Up(up) = &mut self.link {
                    up.ready.nick = nick;
                }
            }
            Heard::Line(line) => self.line(line, now),
            Heard::Echo { token } => {
                if let Some(next) = self.flight.settled(token) {
                    self.settle(&next);
                }
            }
            Heard::Refused { token, why } => {
                if let Some(next) = self.flight.settled(token) {
                    tracing::warn!(
                        network = %self.network, to = ?next.to, why,
                        "the server did not take a line"
                    );
                    self.settle(&next);
                }
            }
            Heard::Pong { token } => {
                let echo = self.echoes();
                for next in self.flight.ponged(token) {
                    if echo {
                        tracing::warn!(
                            network = %self.network, to = ?next.to,
                            "the server did not show us a line of ours: perhaps nobody saw it"
                        );
                    }
                    self.settle(&next);
                }
            }
        }
    }

    /// What is to be done now; to be called until there is nothing.
    pub fn next(&mut self, now: Instant) -> Option<Act> {
        self.tick(now);
        if let Some(act) = self.ask(now) {
            return Some(act);
        }
        self.speak(now)
    }

    /// When [`Voice::next`] has something to do, if nothing is heard before.
    #[must_use]
    pub fn due(&self, now: Instant) -> Option<Instant> {
        let mut due = vec![self.intake.due()];
        let slow = self.asked.values().filter(|a| !a.told);
        due.push(slow.map(|a| a.since + crate::intake::PATIENCE).min());
        if let Link::Up(_) = &self.link {
            due.push(self.flight.ping_due(self.echoes(), now));
            if !self.saving && self.flight.len() < crate::flight::MOST {
                due.push(self.queue.due(now, |to| self.is_open(to)));
            }
            let swept = self.swept.map_or(now, |at| at + SWEEP);
            due.push((!self.queue.is_empty()).then_some(swept));
        }
        due.into_iter().flatten().min()
    }

    /// The bot is to end: nothing new is begun, and what was asked for is
    /// still answered.
    pub fn stop(&mut self, now: Instant) {
        self.stopping = true;
        for line in self.intake.clear() {
            self.note(&line, words::STOPPING.to_owned());
        }
        // It is said after the next start.
        self.queue
            .retain(|item| matches!(item.tag, Tag::Reply { .. }));
        if self
            .held
            .take_if(|n| matches!(n.tag, Tag::Feed(_)))
            .is_some()
        {
            tracing::debug!(network = %self.network, "something is said after the next start");
        }
        self.tick(now);
    }

    /// Whether nothing that can be said is left, and all of it has arrived.
    #[must_use]
    pub fn is_quiet(&self, now: Instant) -> bool {
        let waits = self.queue.due(now, |to| self.is_open(to)).is_some();
        let up = matches!(self.link, Link::Up(_));
        let speaking = up && (waits || self.held.is_some() || !self.flight.is_empty());
        !speaking && !self.saving && self.asked.is_empty() && self.notes.is_empty()
    }

    /// What should be on disk and is not.
    pub fn unsaved(&mut self) -> Option<Saved> {
        self.ledger.changed()
    }

    fn echoes(&self) -> bool {
        matches!(&self.link, Link::Up(up) if up.ready.caps.echo_message)
    }

    /// Whether something can be said there now.
    fn is_open(&self, to: &To) -> bool {
        is_open(&self.link, &self.nick_of, to)
    }

    /// Bytes of a line to a target of that name.
    fn budget(&self, target: &str) -> usize {
        match &self.link {
            Link::Up(up) => split::budget(up.ready.line_bytes, up.ready.mask_bytes, target),
            Link::Down => split::budget(LINE, MASK, target),
        }
    }

    /// Puts something into the queue, as lines. What is too much for now is
    /// kept for `asker`, or for all in the channel.
    fn put(&mut self, put: Put<'_>, now: Instant) {
        let target = match &put.to {
            To::Channel(channel) => channel.as_str(),
            To::Person(who) => &who.nick,
        };
        let frame = Frame {
            nick: put.nick,
            again: put.again,
            ago: put.ago,
            budget: self.budget(target),
            prefixed: matches!(put.to, To::Channel(_)),
        };
        let rendered = match put.what {
            What::Says(says) => render::render(says, &self.style, &frame),
            What::Rest(rest) => {
                let about = rest.about.as_deref();
                render::render_more(rest.lines, rest.lost, about, &self.style, &frame)
            }
        };
        let channel = match &put.to {
            To::Channel(channel) => Some(channel.clone()),
            To::Person(_) => None,
        };
        let rest = Rest {
            about: put.about.clone(),
            lines: rendered.rest,
            lost: rendered.lost,
        };
        self.more.keep(channel, put.asker, rest, now);
        let item = Item {
            units: self.units(rendered.lines),
            supersedes: matches!(put.tag, Tag::Feed(_)),
            to: put.to,
            urgency: put.urgency,
            about: put.about,
            tag: put.tag,
        };
        for tag in self.queue.push(item, now) {
            self.ledger.done(tag.seqs());
        }
    }

    /// One message for all lines where the server takes that.
    fn units(&self, lines: Vec<String>) -> std::collections::VecDeque<Unit> {
        if let Link::Up(up) = &self.link
            && let Some(most) = up.ready.caps.multiline
            && (2..=most.max_lines).contains(&lines.len())
            && lines.iter().map(|l| l.len() + 1).sum::<usize>() <= most.max_bytes
        {
            return [Unit::Block(lines)].into();
        }
        lines.into_iter().map(Unit::Line).collect()
    }

    /// What is due because time has passed.
    fn tick(&mut self, now: Instant) {
        for line in self.intake.late(now) {
            self.note(&line, words::LATE.to_owned());
        }
        let mut slow = Vec::new();
        for asked in self.asked.values_mut() {
            let long = now.saturating_duration_since(asked.since) >= crate::intake::PATIENCE;
            if long && !asked.told {
                asked.told = true;
                slow.push(asked.line.clone());
            }
        }
        for line in slow {
            self.note(&line, words::SLOW.to_owned());
        }
        self.sweep(now);
        let queue = &self.queue;
        let ripe = self
            .notes
            .ripe(|to, urgency| queue.waiting(to, urgency) < ROOM);
        for ripe in ripe {
            let tag = match ripe.seqs {
                Some(seqs) => Tag::Feed(seqs),
                None => Tag::Reply {
                    until: until(&ripe.to, now),
                },
            };
            self.put(
                Put {
                    to: ripe.to,
                    nick: ripe.nick.as_deref(),
                    urgency: ripe.say.urgency,
                    about: None,
                    what: What::Says(std::slice::from_ref(&ripe.say)),
                    again: false,
                    ago: None,
                    asker: None,
                    tag,
                },
                now,
            );
        }
    }

    /// Gives up what nobody is there for.
    fn sweep(&mut self, now: Instant) {
        let Link::Up(up) = &self.link else { return };
        if self.swept.is_some_and(|at| now < at + SWEEP) {
            return;
        }
        self.swept = Some(now);
        let since = up.since;
        let (link, nick_of) = (&self.link, &self.nick_of);
        let open = |to: &To| is_open(link, nick_of, to);
        let gone = self.queue.give_up(now, since, PATIENCE, open);
        for item in gone {
            tracing::warn!(
                network = %self.network, to = ?item.to, about = item.about,
                "not said: nobody was there for it within 10 minutes"
            );
            self.ledger.done(item.tag.seqs());
        }
    }

    /// What was under way when the connection went may have arrived.
    fn lost(&mut self, now: Instant) {
        let mut lost = self.flight.gone();
        let mut seen = BTreeSet::new();
        for next in &mut lost {
            if !seen.insert(next.item) {
                continue;
            }
            match &mut next.unit {
                Unit::Line(line) => *line = render::again(line),
                Unit::Block(lines) => {
                    if let Some(line) = lines.first_mut() {
                        *line = render::again(line);
                    }
                }
            }
        }
        lost.extend(self.held.take());
        self.queue.put_back(lost, now);
    }

    /// It arrived, or never will.
    fn settle(&mut self, next: &Next<Tag>) {
        if next.last {
            self.ledger.done(next.tag.seqs());
        }
    }
}

/// Whether something can be said there now.
fn is_open(link: &Link, nick_of: &NickOf, to: &To) -> bool {
    let Link::Up(up) = link else {
        return false;
    };
    match to {
        To::Channel(channel) => up.channels.contains(channel),
        To::Person(who) => nick(nick_of, who).is_some(),
    }
}

/// What somebody is called now, if they are there.
fn nick(nick_of: &NickOf, who: &Who) -> Option<String> {
    if who.account.is_none() && who.sight.is_none() {
        // Nothing is seen of them: they have just written, under this name.
        return Some(who.nick.clone());
    }
    nick_of(&who.into()).or_else(|| {
        // Logged out since, but the same connection all the time.
        let account = None;
        who.sight.as_ref()?;
        nick_of(&ChatPerson {
            account,
            ..who.into()
        })
    })
}

/// Something to be put into the queue.
struct Put<'a> {
    to: To,
    nick: Option<&'a str>,
    urgency: Urgency,
    about: Option<String>,
    what: What<'a>,
    again: bool,
    ago: Option<Duration>,
    asker: Option<String>,
    tag: Tag,
}

enum What<'a> {
    Says(&'a [Say]),
    Rest(Rest),
}

/// Until when a reply may go to a nick of which nothing is seen.
fn until(to: &To, now: Instant) -> Option<Instant> {
    match to {
        To::Person(who) if who.account.is_none() && who.sight.is_none() => {
            Some(now + Duration::from_secs(30))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
