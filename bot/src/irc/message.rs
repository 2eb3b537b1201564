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
mod tests {
    use super::*;

    #[test]
    fn parts_of_messages_are_found() {
        let message: Message = "@account=ana;msgid=x;account=bob :n!u@h PRIVMSG #a :hi"
            .parse()
            .unwrap();
        assert_eq!(tag(&message, "account"), Some("bob"));
        assert_eq!(tag(&message, "time"), None);
        assert!(has_tag(&message, "msgid") && !has_tag(&message, "batch"));
        let source = Source::of(&message).unwrap();
        assert_eq!((source.nick, source.mask()), ("n", "n!u@h".to_owned()));
        let server: Message = ":irc.example 001 me :hello".parse().unwrap();
        assert_eq!(Source::of(&server), None);
        assert_eq!(
            numeric(&server.command).map(|(n, a)| (n, a.len())),
            Some((1, 2))
        );
        let whox: Message = ":s 354 me 9 #a u h n H 0".parse().unwrap();
        assert_eq!(
            numeric(&whox.command).map(|(n, a)| (n, a.len())),
            Some((354, 8))
        );
        assert_eq!(
            (account("0"), account("*"), account("ana")),
            (None, None, Some("ana"))
        );
    }

    #[test]
    fn what_is_sent_is_one_line() {
        assert_eq!(line("PING", &["a b"]), "PING :a b");
        assert_eq!(line("JOIN", &["#a", "k\r\nQUIT"]), "JOIN #a kQUIT");
        assert_eq!(line("PASS", &[":x"]), "PASS ::x");
        assert_eq!(line("QUIT", &[]), "QUIT");
    }

    proptest::proptest! {
        #[test]
        fn nothing_that_is_received_panics(text in "[@:]?[ -~\u{e9}\r]{0,80}( :)?[ -~]{0,20}") {
            if let Ok(message) = text.parse::<Message>() {
                let _ = (Source::of(&message), tag(&message, "a"), numeric(&message.command));
            }
        }

        #[test]
        fn no_command_that_is_received_panics(
            verb in "MODE|BATCH|CAP|METADATA|KICK|NICKSERV|354|353|005|PRIVMSG",
            args in proptest::collection::vec("[+-]?[#a-zA-Z0-9=*]{0,6}", 0..20),
        ) {
            let _ = format!(":s {verb} {}", args.join(" ")).parse::<Message>();
        }
    }
}
