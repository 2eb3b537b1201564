//! A connection that is registered: pure, one message in, lines and news out.

mod batches;
mod lines;
mod own;
mod rooms;

use std::sync::Arc;
use std::time::Instant;

use irc::proto::{CapSubCommand, Command, Message};
use muster_protocol::text::printable;
use muster_protocol::units::Timestamp;

use self::batches::Batches;
pub(super) use self::own::doubled;
use self::own::{Own, Seek};
use self::rooms::Rooms;
use super::features::Features;
use super::message::{Source, account, line, numeric, tag};
use super::register::Registered;
use super::sent::Sent;
use super::{Caps, Heard, NetworkSettings, Ready, Send, Target, Users};

/// What comes of a message.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Out {
    /// To be sent to the server.
    Send(String),
    /// To be told.
    Tell(Heard),
    /// The connection is of no use any more: why.
    Fail(String),
}

/// When something happens.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    /// For pauses.
    pub(super) instant: Instant,
    /// For comparing with what the server says.
    pub(super) time: Timestamp,
}

/// A registered connection.
#[derive(Debug)]
pub(super) struct Live {
    settings: Arc<NetworkSettings>,
    caps: Caps,
    agreed: Vec<String>,
    features: Features,
    own: Own,
    seek: Seek,
    users: Users,
    rooms: Rooms,
    batches: Batches,
    sent: Sent,
    warned_of_clock: bool,
}

impl Live {
    /// Begins: asks for the channels and says that it is ready.
    pub(super) fn begin(
        settings: Arc<NetworkSettings>,
        users: Users,
        registered: Registered,
        now: Now,
    ) -> (Self, Vec<Out>) {
        let Registered {
            nick,
            from,
            caps,
            agreed,
            features,
        } = registered;
        users.lock().reset(features.casemapping);
        let own = Own::new(nick, from, &settings.username);
        let mut live = Self {
            seek: Seek::new(now.instant),
            rooms: Rooms::new(&settings, features.casemapping),
            batches: Batches::default(),
            sent: Sent::default(),
            warned_of_clock: false,
            settings,
            caps,
            agreed,
            features,
            own,
            users,
        };
        let mut out = Vec::new();
        if let Some(mode) = live.features.bot_mode {
            out.push(send("MODE", &[&live.own.nick, &format!("+{mode}")]));
        }
        live.rooms.ask_all(now.instant, &mut out);
        out.push(Out::Tell(Heard::Ready(Ready {
            nick: live.own.nick.clone(),
            mask_bytes: live.own.mask_bytes(),
            caps: live.caps,
            line_bytes: live.features.line_bytes,
            casemapping: live.features.casemapping,
            network: live.features.network.clone(),
        })));
        live.look_for_nick(now.instant, &mut out);
        (live, out)
    }

    /// Takes a message.
    pub(super) fn step(&mut self, message: &Message, now: Now) -> Vec<Out> {
        let mut out = Vec::new();
        if self.batches.is_past(tag(message, "batch")) {
            // What is played back happened to somebody else.
            return out;
        }
        match &message.command {
            Command::PING(text, second) => {
                let text = second.as_ref().unwrap_or(text);
                out.push(send("PONG", &[text]));
            }
            Command::PONG(first, second) => {
                let text = second.as_ref().unwrap_or(first);
                if let Some(token) = self.sent.pong(text) {
                    out.push(Out::Tell(Heard::Pong { token }));
                }
            }
            Command::ERROR(why) => out.push(Out::Fail(format!(
                "the server closed the connection: {}",
                printable(why, 200)
            ))),
            Command::CAP(_, CapSubCommand::DEL, first, second) => {
                self.taken_back(second.as_ref().or(first.as_ref()), &mut out);
            }
            Command::BATCH(reference, kind, args) => {
                self.batch(message, reference, kind.as_ref(), args.as_deref(), &mut out);
            }
            command => match (numeric(command), Source::of(message)) {
                (Some((code, args)), _) => self.numeric(message, code, args, now, &mut out),
                (None, Some(who)) => self.somebody(message, &who, now, &mut out),
                // Of a server: nothing that a server says by itself counts.
                (None, None) => self.labeled_answer(message, &mut out),
            },
        }
        out
    }

    /// What the broker's side wants sent.
    pub(super) fn send(&mut self, what: &Send) -> Vec<Out> {
        match what {
            Send::Privmsg {
                target,
                text,
                token,
            } => self.send_line(target, text, *token),
            Send::Multiline {
                target,
                lines,
                token,
            } => self.send_lines(target, lines, *token),
            Send::Ping { token } => {
                let text = self.sent.ping(Some(*token));
                vec![send("PING", &[&text])]
            }
        }
    }

    /// Asks whether the server is still there.
    pub(super) fn watch(&mut self) -> String {
        line("PING", &[&self.sent.ping(None)])
    }

    /// Time went by.
    pub(super) fn tick(&mut self, now: Now) -> Vec<Out> {
        let mut out = Vec::new();
        self.rooms
            .tick(&self.settings.timing, now.instant, &mut out);
        self.look_for_nick(now.instant, &mut out);
        out
    }

    /// The server takes back what was agreed on. What is known and what can be
    /// sent depends on it: a new connection is clearer than half of one.
    fn taken_back(&self, names: Option<&String>, out: &mut Vec<Out>) {
        let names = names.map_or("", String::as_str);
        let one = names
            .split_ascii_whitespace()
            .find(|name| self.agreed.iter().any(|a| a == name));
        if let Some(name) = one {
            out.push(Out::Fail(format!("the server takes back {name}")));
        }
    }

    fn somebody(&mut self, message: &Message, who: &Source<'_>, now: Now, out: &mut Vec<Out>) {
        let own = self.is_own(who.nick);
        match &message.command {
            Command::PRIVMSG(target, text) if own => self.echo(message, target, text, out),
            Command::PRIVMSG(target, text) => self.line(message, who, target, text, now, out),
            Command::JOIN(channels, account_word, _) => {
                let known = self.account_at_join(account_word.as_deref());
                for channel in channels.split(',') {
                    if own {
                        self.own_join(who, channel, now, out);
                    } else if let Some(name) = self.rooms.name(channel) {
                        self.users.lock().joined(who, &name, known);
                    }
                }
            }
            Command::PART(channels, _) => {
                for channel in channels.split(',') {
                    self.gone_from(who.nick, channel, now, out);
                }
            }
            Command::KICK(channels, nicks, _) => {
                let mut channels = channels.split(',').cycle();
                for nick in nicks.split(',') {
                    if let Some(channel) = channels.next() {
                        self.gone_from(nick, channel, now, out);
                    }
                }
            }
            Command::QUIT(_) => {
                self.users.lock().quit(who.nick);
                self.name_left(who.nick, now.instant, out);
            }
            Command::NICK(to) if own => self.own_nick(to, out),
            Command::NICK(to) => {
                self.users.lock().renamed(who, to);
                self.name_left(who.nick, now.instant, out);
            }
            Command::ACCOUNT(word) if self.caps.account_notify => {
                if own && account(word).is_none() && self.settings.sasl.is_some() {
                    tracing::warn!(
                        network = %self.settings.name,
                        "services say that the bot is not logged in any more"
                    );
                }
                self.users.lock().account(who, account(word));
            }
            Command::CHGHOST(user, host) => {
                if own {
                    self.own_from(format!("{user}@{host}"), out);
                } else {
                    self.users.lock().moved(who, user, host);
                }
            }
            // Whoever is invited somewhere is not told where to go; notices
            // are not answered and change nothing, whoever they seem to be of.
            _ => self.labeled_answer(message, out),
        }
    }

    /// What a JOIN says of the account: only where it does, and where it is
    /// told when that ends.
    fn account_at_join<'a>(&self, word: Option<&'a str>) -> Option<Option<&'a str>> {
        (self.caps.extended_join && self.caps.account_notify)
            .then(|| word.map(account))
            .flatten()
    }

    fn gone_from(&mut self, nick: &str, channel: &str, now: Now, out: &mut Vec<Out>) {
        let Some(name) = self.rooms.name(channel) else {
            return;
        };
        if self.is_own(nick) {
            self.users.lock().channel_lost(&name);
            self.rooms
                .lost(&name, &self.settings.timing, now.instant, out);
        } else {
            self.users.lock().left(nick, &name);
        }
    }

    fn own_join(&mut self, who: &Source<'_>, channel: &str, now: Now, out: &mut Vec<Out>) {
        if let Some(from) = who.from() {
            self.own_from(from, out);
        }
        match self.rooms.name(channel) {
            Some(name) => self.rooms.entered(&name, now.instant, out),
            // Put where the operators do not want it.
            None => out.push(send("PART", &[channel])),
        }
    }

    fn numeric(
        &mut self,
        message: &Message,
        code: u16,
        args: &[String],
        now: Now,
        out: &mut Vec<Out>,
    ) {
        let words: Vec<&str> = args.iter().map(String::as_str).collect();
        match (code, words.as_slice()) {
            (5, [_, .., _]) => {
                // It may say more later, but what was told does not change.
            }
            // Who is in a channel.
            (353, [_, _, channel, names]) => self.names(channel, names),
            (366, [_, channel, ..]) => {
                if let Some(name) = self.rooms.name(channel) {
                    self.rooms
                        .ask_who(name, self.features.whox, now.instant, out);
                }
            }
            (352, [_, _, user, host, _, nick, ..]) => {
                let who = Source { nick, user, host };
                if !self.is_own(nick) {
                    self.users.lock().described(&who, None);
                }
            }
            (354, [_, rooms::WHO_MARK, _, user, host, nick, _, word]) => {
                let known = self.caps.account_notify.then(|| account(word));
                let who = Source { nick, user, host };
                if !self.is_own(nick) {
                    self.users.lock().described(&who, known);
                }
            }
            (315, _) => self.rooms.who_ended(self.features.whox, now.instant, out),
            // The own host is another one.
            (396, [_, host, ..]) => {
                let from = match (host.contains('@'), self.own.user()) {
                    (true, _) => Some((*host).to_owned()),
                    (false, Some(user)) => Some(format!("{user}@{host}")),
                    (false, None) => None,
                };
                if let Some(from) = from {
                    self.own_from(from, out);
                }
            }
            // Who is there, and who is not.
            (303, [_, there @ ..]) => {
                let wanted = self.fold(&self.settings.nick);
                let there = there.iter().flat_map(|names| names.split(' '));
                if !there.map(|n| self.fold(n)).any(|n| n == wanted) {
                    self.take_nick(now.instant, out);
                }
            }
            (731, [_, names, ..]) => {
                for name in names.split(',') {
                    let nick = name.split('!').next().unwrap_or(name).to_owned();
                    self.name_left(&nick, now.instant, out);
                }
            }
            // A channel does not let the bot in.
            (403 | 405 | 437 | 471 | 473 | 474 | 475 | 476 | 477, [_, channel, .., why])
                if self.rooms.is_asked(channel) =>
            {
                self.rooms
                    .refused(channel, why, &self.settings, now.instant);
            }
            // A line was not passed on.
            (
                401 | 403 | 404 | 405 | 407 | 408 | 415 | 477 | 482 | 486 | 489 | 492 | 531 | 716,
                [_, target, .., why],
            ) => self.line_refused(message, target, code, why, out),
            _ => self.labeled_answer(message, out),
        }
    }

    fn names(&mut self, channel: &str, names: &str) {
        let Some(name) = self.rooms.name(channel) else {
            return;
        };
        for entry in names.split(' ').filter(|n| !n.is_empty()) {
            let entry = entry.trim_start_matches(|c| self.features.signs.contains(c));
            let (nick, from) = entry.split_once('!').unwrap_or((entry, ""));
            let (user, host) = from.split_once('@').unwrap_or(("", ""));
            if !nick.is_empty() && !self.is_own(nick) {
                let who = Source { nick, user, host };
                self.users.lock().joined(&who, &name, None);
            }
        }
    }

    fn fold(&self, name: &str) -> String {
        self.features.casemapping.fold(name)
    }

    fn is_own(&self, nick: &str) -> bool {
        self.fold(nick) == self.fold(&self.own.nick)
    }
}

/// A line of the protocol to the server.
fn send(verb: &str, args: &[&str]) -> Out {
    Out::Send(line(verb, args))
}

/// A channel or person as it is written in a line, if it can only be read as
/// that.
fn safe_target(target: &Target) -> Option<&str> {
    let text = target.as_str();
    let good = !text.is_empty()
        && text.len() <= 100
        && !text.contains(|c: char| c.is_control() || c.is_whitespace() || c == ',')
        && match target {
            Target::Channel(_) => true,
            Target::Nick(_) => !text.starts_with(['#', '&', '+', '!', ':', '$', '@', '%', '~']),
        };
    good.then_some(text)
}

#[cfg(test)]
mod tests;
