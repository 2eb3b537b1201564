//! Reading what a server sends: the parsing is `irc-proto`'s, what is here
//! names the parts that are used.

use irc::proto::{Command, Message, Prefix};

/// Whom a message is from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Source<'a> {
    /// The name.
    pub(super) nick: &'a str,
    /// The part behind `!`; empty where it was not sent.
    pub(super) user: &'a str,
    /// The part behind `@`; empty where it was not sent.
    pub(super) host: &'a str,
}

impl<'a> Source<'a> {
    /// Who sent it; `None` for a server.
    pub(super) fn of(message: &'a Message) -> Option<Self> {
        match message.prefix.as_ref()? {
            Prefix::ServerName(_) => None,
            Prefix::Nickname(nick, user, host) => {
                (!nick.is_empty()).then_some(Self { nick, user, host })
            }
        }
    }

    /// `user@host`, where both were sent.
    pub(super) fn from(&self) -> Option<String> {
        (!self.user.is_empty() && !self.host.is_empty())
            .then(|| format!("{}@{}", self.user, self.host))
    }

    /// `nick!user@host`, or what of it was sent.
    pub(super) fn mask(&self) -> String {
        match self.from() {
            Some(from) => format!("{}!{from}", self.nick),
            None => self.nick.to_owned(),
        }
    }
}

/// The value of a tag of the server; an empty one counts as absent, and of
/// several the last counts.
pub(super) fn tag<'a>(message: &'a Message, name: &str) -> Option<&'a str> {
    message
        .tags
        .iter()
        .flatten()
        .rev()
        .find(|tag| tag.0 == name)
        .and_then(|tag| tag.1.as_deref())
        .filter(|value| !value.is_empty())
}

/// Whether a message has that tag, with a value or without.
pub(super) fn has_tag(message: &Message, name: &str) -> bool {
    message.tags.iter().flatten().any(|tag| tag.0 == name)
}

/// The number of a numeric answer and what it says, the own name first.
pub(super) fn numeric(command: &Command) -> Option<(u16, &[String])> {
    match command {
        Command::Response(response, args) => Some((*response as u16, args)),
        Command::Raw(verb, args) if verb.len() == 3 => Some((verb.parse().ok()?, args)),
        _ => None,
    }
}

/// The account that a word stands for: `*` and `0` are nobody's.
pub(super) fn account(word: &str) -> Option<&str> {
    (!matches!(word, "" | "*" | "0")).then_some(word)
}

/// A message of one verb and its arguments, the last of which may have spaces.
/// Nothing that could end the line gets into it.
pub(super) fn line(verb: &str, args: &[&str]) -> String {
    let mut line = verb.to_owned();
    let last = args.len().saturating_sub(1);
    for (at, arg) in args.iter().enumerate() {
        line.push(' ');
        if at == last && (arg.is_empty() || arg.starts_with(':') || arg.contains(' ')) {
            line.push(':');
        }
        line.extend(arg.chars().filter(|c| !matches!(c, '\r' | '\n' | '\0')));
    }
    line
}

#[cfg(test)]
mod tests;
