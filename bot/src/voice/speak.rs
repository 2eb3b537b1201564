//! What goes to the connection, and what the disk knows before it does.

use std::time::Instant;

use super::{Act, Link, Tag, Voice, is_open, nick};
use crate::irc::{Send, Target};
use crate::queue::{Next, To, Unit};
use crate::split::split;
use crate::{clean, flight};

impl Voice {
    /// The next line, a PING, or what is to be put on disk.
    pub(super) fn speak(&mut self, now: Instant) -> Option<Act> {
        while !self.saving && self.flight.len() < flight::MOST {
            let Some(next) = self.next_line(now) else {
                break;
            };
            if let Tag::Reply { until: Some(until) } = next.tag
                && now > until
            {
                tracing::warn!(network = %self.network, to = ?next.to, "not said: it took too long");
                continue;
            }
            // What may have been said must be known before it may have been.
            if self.ledger.begin(next.tag.seqs())
                && let Some(saved) = self.ledger.changed()
            {
                self.held = Some(next);
                self.saving = true;
                return Some(Act::Save(saved));
            }
            if let Some(send) = self.send(next, now) {
                return Some(Act::Send(send));
            }
        }
        if let Link::Up(_) = &self.link {
            let due = self.flight.ping_due(self.echoes(), now);
            if due.is_some_and(|at| at <= now) {
                let token = self.flight.pinged(now);
                return Some(Act::Send(Send::Ping { token }));
            }
        }
        if self.saving {
            return None;
        }
        let saved = self.ledger.changed()?;
        self.saving = true;
        Some(Act::Save(saved))
    }

    /// What was to be on disk is there, or cannot be.
    pub fn saved(&mut self, there: bool) {
        self.saving = false;
        if !there {
            // An alarm that is not said is worse than one that is said twice
            // without a mark.
            tracing::error!(
                network = %self.network,
                "what is said cannot be written down: after a crash it may be said again without a mark"
            );
        }
    }

    /// What could not be handed over is next again.
    pub fn unsent(&mut self, token: u64, now: Instant) {
        if let Some(next) = self.flight.settled(token) {
            self.queue.put_back(vec![next], now);
        }
    }

    fn next_line(&mut self, now: Instant) -> Option<Next<Tag>> {
        if let Link::Down = &self.link {
            return None;
        }
        if let Some(next) = self.held.take() {
            return Some(next);
        }
        let (link, nick_of) = (&self.link, &self.nick_of);
        self.queue.next(now, |to| is_open(link, nick_of, to))
    }

    /// Makes what is sent of it; `None` when there is nobody any more.
    fn send(&mut self, mut next: Next<Tag>, now: Instant) -> Option<Send> {
        let target = match &next.to {
            To::Channel(channel) => Target::Channel(channel.clone()),
            To::Person(who) => match nick(&self.nick_of, who) {
                Some(nick) => Target::Nick(nick),
                None => {
                    self.queue.put_back(vec![next], now);
                    return None;
                }
            },
        };
        self.fit(&mut next, target.as_str(), now);
        let token = self.flight.token();
        let send = match next.unit.clone() {
            Unit::Line(text) => Send::Privmsg {
                target,
                text,
                token,
            },
            Unit::Block(lines) => Send::Multiline {
                target,
                lines,
                token,
            },
        };
        self.flight.sent(next, now);
        Some(send)
    }

    /// The connection can be another one since it was cut: with another mask,
    /// or without messages of several lines. What does not fit is next.
    fn fit(&mut self, next: &mut Next<Tag>, target: &str, now: Instant) {
        let budget = self.budget(target);
        let multiline = matches!(&self.link, Link::Up(up) if up.ready.caps.multiline.is_some());
        let lines = match &next.unit {
            Unit::Line(line) if line.len() > budget => vec![line.clone()],
            Unit::Block(lines) if !multiline || lines.iter().any(|l| l.len() > budget) => {
                lines.clone()
            }
            _ => return,
        };
        let mut units = Vec::new();
        for line in lines {
            // Room for the sign before what would begin like a command.
            for (n, piece) in split(&line, budget, budget.saturating_sub(4))
                .into_iter()
                .enumerate()
            {
                units.push(match n {
                    0 => piece.to_owned(),
                    _ => clean::guard(piece).into_owned(),
                });
            }
        }
        let mut units = units.into_iter().map(Unit::Line);
        let Some(first) = units.next() else { return };
        let rest: Vec<Next<Tag>> = units
            .map(|unit| Next {
                unit,
                ..next.clone()
            })
            .collect();
        next.unit = first;
        if !rest.is_empty() {
            next.last = false;
            self.queue.put_back(rest, now);
        }
    }
}
