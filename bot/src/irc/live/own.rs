//! What the bot is called, and how it gets the name that it wants.

use std::time::{Duration, Instant};

use super::{Heard, Live, Out, send};

/// The bot as others see it.
#[derive(Debug)]
pub(super) struct Own {
    pub(super) nick: String,
    /// `user@host`, once the server said it.
    from: Option<String>,
    /// Bytes of it as long as it did not: what they can be at most.
    most: usize,
}

impl Own {
    pub(super) fn new(nick: String, from: Option<String>, username: &str) -> Self {
        // A sign before the name, the `@`, and the longest host there is.
        let most = 1 + username.len() + 1 + 63;
        Self { nick, from, most }
    }

    /// Bytes of `:nick!user@host `.
    pub(super) fn mask_bytes(&self) -> usize {
        let from = self.from.as_ref().map_or(self.most, String::len);
        1 + self.nick.len() + 1 + from + 1
    }

    pub(super) fn user(&self) -> Option<&str> {
        self.from.as_deref()?.split_once('@').map(|(user, _)| user)
    }
}

/// The search for the wanted name.
#[derive(Debug)]
pub(super) struct Seek {
    /// When to ask again whether it is free.
    look: Instant,
    /// Not to be tried before.
    pause: Instant,
    tries: u32,
    watching: bool,
}

impl Seek {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            look: now,
            pause: now,
            tries: 0,
            watching: false,
        }
    }
}

impl Live {
    /// Asks whether the wanted name is free, when it is time to.
    pub(super) fn look_for_nick(&mut self, now: Instant, out: &mut Vec<Out>) {
        if self.is_own(&self.settings.nick) || now < self.seek.look {
            return;
        }
        self.seek.look = now + self.settings.timing.look;
        if self.features.monitor && !self.seek.watching {
            self.seek.watching = true;
            out.push(send("MONITOR", &["+", &self.settings.nick]));
        } else {
            out.push(send("ISON", &[&self.settings.nick]));
        }
    }

    /// Nobody is called that any more.
    pub(super) fn name_left(&mut self, nick: &str, now: Instant, out: &mut Vec<Out>) {
        if self.fold(nick) == self.fold(&self.settings.nick) {
            self.take_nick(now, out);
        }
    }

    /// Takes the wanted name, ever more rarely while that fails.
    pub(super) fn take_nick(&mut self, now: Instant, out: &mut Vec<Out>) {
        if self.is_own(&self.settings.nick) || now < self.seek.pause {
            return;
        }
        let timing = &self.settings.timing;
        self.seek.pause = now + doubled(timing.pause_least, self.seek.tries, timing.pause_most);
        self.seek.tries += 1;
        out.push(send("NICK", &[&self.settings.nick]));
    }

    /// The server takes another name for the bot.
    pub(super) fn own_nick(&mut self, nick: &str, out: &mut Vec<Out>) {
        nick.clone_into(&mut self.own.nick);
        if self.is_own(&self.settings.nick) {
            self.seek.tries = 0;
        }
        out.push(Out::Tell(Heard::Nick(nick.to_owned())));
        out.push(Out::Tell(Heard::Mask(self.own.mask_bytes())));
    }

    /// The server shows another `user@host` for the bot.
    pub(super) fn own_from(&mut self, from: String, out: &mut Vec<Out>) {
        if self.own.from.as_ref() == Some(&from) {
            return;
        }
        let before = self.own.mask_bytes();
        self.own.from = Some(from);
        let now = self.own.mask_bytes();
        if now != before {
            out.push(Out::Tell(Heard::Mask(now)));
        }
    }
}

/// A pause that doubles with each time, up to the longest.
pub(in crate::irc) fn doubled(least: Duration, times: u32, most: Duration) -> Duration {
    least
        .saturating_mul(1u32.checked_shl(times).unwrap_or(u32::MAX))
        .min(most)
}
