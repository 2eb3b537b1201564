//! Which lines are for the bot. Pure.

use super::Casemapping;

/// Longest text that is passed on, in bytes.
const MAX_TEXT: usize = 8_192;

/// How the bot is called.
#[derive(Clone, Copy, Debug)]
pub(super) struct Called<'a> {
    /// Its name now.
    pub(super) nick: &'a str,
    /// What a command begins with.
    pub(super) prefix: &'a str,
    /// Which letters of names are the same.
    pub(super) case: Casemapping,
}

impl Called<'_> {
    /// What a line in a channel wants of the bot: the part behind the sign or
    /// the name, exactly as it is.
    pub(super) fn in_channel<'t>(&self, text: &'t str) -> Option<&'t str> {
        let command = match self.behind_name(text) {
            Some(rest) => self.behind_sign(rest).or(Some(rest)),
            None => self.behind_sign(text),
        };
        command.filter(|command| usable(command))
    }

    /// What a line to the bot alone wants of it: neither sign nor name is
    /// needed.
    pub(super) fn in_private<'t>(&self, text: &'t str) -> Option<&'t str> {
        let rest = self.behind_name(text).unwrap_or(text);
        let command = self.behind_sign(rest).unwrap_or(rest);
        usable(command).then_some(command)
    }

    /// Behind the sign, if a word follows it at once: `!` alone, `!!` and
    /// `!?` are how people talk.
    fn behind_sign<'t>(&self, text: &'t str) -> Option<&'t str> {
        let rest = text.strip_prefix(self.prefix)?;
        rest.starts_with(char::is_alphanumeric).then_some(rest)
    }

    /// Behind `name:` or `name,`.
    fn behind_name<'t>(&self, text: &'t str) -> Option<&'t str> {
        let at = text.find([':', ','])?;
        let (name, rest) = text.split_at(at);
        (self.case.fold(name) == self.case.fold(self.nick))
            .then(|| rest[1..].trim_start_matches([' ', '\t']))
    }
}

/// Whether that can be a command at all: not a CTCP request, not too long.
fn usable(command: &str) -> bool {
    command.len() <= MAX_TEXT
        && command.chars().any(|c| !c.is_whitespace())
        && !command.starts_with('\u{1}')
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALLED: Called<'_> = Called {
        nick: "muster",
        prefix: "!",
        case: Casemapping::Ascii,
    };

    #[test]
    fn a_sign_or_the_name_makes_a_command() {
        for (text, want) in [
            ("!deploy 1.4.2", Some("deploy 1.4.2")),
            ("muster: deploy  1.4.2 ", Some("deploy  1.4.2 ")),
            ("Muster, nodes", Some("nodes")),
            ("muster:nodes", Some("nodes")),
            ("muster: !nodes", Some("nodes")),
            ("!8k2d", Some("8k2d")),
            ("muster: \"quoted\" x", Some("\"quoted\" x")),
            ("!", None),
            ("!!", None),
            ("!?", None),
            ("! deploy", None),
            ("wow!deploy", None),
            ("muster", None),
            ("muster:", None),
            ("muster:  ", None),
            ("musters: deploy", None),
            ("tell muster: deploy", None),
            (" !deploy", None),
            ("\u{1}ACTION !deploy\u{1}", None),
            ("muster: \u{1}x", None),
            ("\u{3}4!deploy", None),
            ("", None),
        ] {
            assert_eq!(CALLED.in_channel(text), want, "{text:?}");
        }
        assert_eq!(CALLED.in_channel(&format!("!{}", "x".repeat(8_193))), None);
    }

    #[test]
    fn alone_with_the_bot_everything_is_one() {
        for (text, want) in [
            ("!deploy 1", Some("deploy 1")),
            ("deploy 1", Some("deploy 1")),
            ("muster: link ABC", Some("link ABC")),
            ("see: this", Some("see: this")),
            ("\u{1}VERSION\u{1}", None),
            ("   ", None),
        ] {
            assert_eq!(CALLED.in_private(text), want, "{text:?}");
        }
    }

    #[test]
    fn names_are_the_same_as_the_server_says() {
        let called = Called {
            nick: "mus[r]",
            case: Casemapping::Rfc1459,
            ..CALLED
        };
        assert_eq!(called.in_channel("MUS{R}: nodes"), Some("nodes"));
        assert_eq!(
            Called {
                case: Casemapping::Ascii,
                ..called
            }
            .in_channel("MUS{R}: nodes"),
            None
        );
    }
}
