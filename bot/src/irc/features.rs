//! What a server says of itself: capabilities that it offers, and the tokens
//! of its numeric 005.

use std::collections::BTreeMap;

use super::{Caps, Casemapping, Multiline};

/// The capabilities that are asked for where they are offered; `sasl` only
/// where the bot is to log in.
const WANTED: [&str; 13] = [
    "account-notify",
    "account-tag",
    "batch",
    "cap-notify",
    "chghost",
    "draft/multiline",
    "echo-message",
    "extended-join",
    "labeled-response",
    "message-tags",
    "multi-prefix",
    "sasl",
    "server-time",
];
/// Most capabilities and bytes of them that are listened to.
const MAX_OFFERS: usize = 300;
const MAX_OFFER_BYTES: usize = 16_384;

/// What a server offers.
#[derive(Debug, Default)]
pub(super) struct Offers {
    offers: BTreeMap<String, Option<String>>,
    bytes: usize,
    lines: usize,
}

impl Offers {
    /// Adds a line of them; whether there is still room.
    pub(super) fn add(&mut self, line: &str) -> bool {
        self.bytes += line.len();
        self.lines += 1;
        if self.bytes > MAX_OFFER_BYTES || self.lines > MAX_OFFERS {
            return false;
        }
        for word in line.split_ascii_whitespace() {
            let (name, value) = match word.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (word, None),
            };
            self.offers.insert(name.to_owned(), value);
        }
        self.offers.len() <= MAX_OFFERS
    }

    /// What is asked for.
    pub(super) fn wanted(&self, sasl: bool) -> Vec<String> {
        WANTED
            .iter()
            .filter(|name| self.offers.contains_key(**name) && (sasl || **name != "sasl"))
            // These two mean nothing without batches.
            .filter(|name| {
                !matches!(**name, "draft/multiline" | "labeled-response")
                    || self.offers.contains_key("batch")
            })
            .map(|name| (*name).to_owned())
            .collect()
    }

    /// The mechanisms by which one can log in: `None` where it is not offered
    /// at all, and an empty text where the server does not say which.
    pub(super) fn sasl(&self) -> Option<&str> {
        let value = self.offers.get("sasl")?;
        Some(value.as_deref().unwrap_or(""))
    }

    /// What these capabilities together mean.
    pub(super) fn caps(&self, agreed: &[String]) -> Caps {
        let has = |name: &str| agreed.iter().any(|a| a == name);
        let echo_message = has("echo-message");
        Caps {
            echo_message,
            // Labels come back on echoes.
            labeled_response: has("labeled-response") && has("batch") && echo_message,
            server_time: has("server-time"),
            message_tags: has("message-tags"),
            account_tag: has("account-tag"),
            account_notify: has("account-notify"),
            extended_join: has("extended-join"),
            multiline: (has("draft/multiline") && has("batch"))
                .then(|| self.multiline())
                .flatten(),
        }
    }

    fn multiline(&self) -> Option<Multiline> {
        let value = self.offers.get("draft/multiline")?.as_deref()?;
        let number = |key: &str| {
            value.split(',').find_map(|part| {
                let (name, number) = part.split_once('=')?;
                (name == key).then(|| number.parse::<usize>().ok())?
            })
        };
        Some(Multiline {
            max_bytes: number("max-bytes")?.min(65_536),
            // A server need not say.
            max_lines: number("max-lines").unwrap_or(8).clamp(1, 100),
        })
    }
}

/// What is used of numeric 005.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Features {
    pub(super) casemapping: Casemapping,
    pub(super) line_bytes: usize,
    pub(super) network: Option<String>,
    pub(super) whox: bool,
    pub(super) monitor: bool,
    /// Signs before names in lists of names.
    pub(super) signs: String,
    /// The mode by which a bot says that it is one.
    pub(super) bot_mode: Option<char>,
}

impl Default for Features {
    fn default() -> Self {
        Self {
            casemapping: Casemapping::default(),
            line_bytes: 512,
            network: None,
            whox: false,
            monitor: false,
            signs: "~&@%+!".to_owned(),
            bot_mode: None,
        }
    }
}

impl Features {
    /// Takes the tokens of one 005: what stands between the own name and the
    /// sentence at its end.
    pub(super) fn take(&mut self, tokens: &[String]) {
        for token in tokens {
            let (name, value) = token.trim().split_once('=').unwrap_or((token.trim(), ""));
            match name {
                "CASEMAPPING" => {
                    self.casemapping = match value {
                        "ascii" => Casemapping::Ascii,
                        "rfc1459-strict" | "strict-rfc1459" => Casemapping::StrictRfc1459,
                        _ => Casemapping::Rfc1459,
                    };
                }
                "LINELEN" => {
                    if let Ok(bytes) = value.parse::<usize>() {
                        self.line_bytes = bytes.clamp(512, 8_192);
                    }
                }
                "NETWORK" if !value.is_empty() => {
                    self.network = Some(muster_protocol::text::printable(value, 60));
                }
                "WHOX" => self.whox = true,
                "MONITOR" => self.monitor = true,
                "PREFIX" => {
                    if let Some((_, signs)) = value.split_once(')') {
                        for sign in signs.chars().take(16) {
                            if !self.signs.contains(sign) && !sign.is_alphanumeric() {
                                self.signs.push(sign);
                            }
                        }
                    }
                }
                "BOT" => self.bot_mode = value.chars().next().filter(char::is_ascii_alphabetic),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_offered_is_wanted_and_only_what_was_agreed_is_there() {
        let mut offers = Offers::default();
        assert!(offers.add("sasl=PLAIN,EXTERNAL labeled-response echo-message account-tag x/y"));
        assert_eq!(offers.wanted(false), ["account-tag", "echo-message"]);
        assert!(offers.add("batch draft/multiline=max-bytes=4096,max-lines=24"));
        let wanted = offers.wanted(true);
        assert!(
            wanted.iter().any(|w| w == "sasl") && wanted.len() == 6,
            "{wanted:?}"
        );
        assert_eq!(offers.sasl(), Some("PLAIN,EXTERNAL"));
        let caps = offers.caps(&wanted);
        let multiline = Multiline {
            max_bytes: 4096,
            max_lines: 24,
        };
        assert_eq!(caps.multiline, Some(multiline));
        assert!(caps.labeled_response && caps.account_tag && !caps.server_time);
        let less = offers.caps(&["labeled-response".into(), "batch".into()]);
        assert!(!less.labeled_response && !less.echo_message);
    }

    #[test]
    fn an_endless_list_is_not_listened_to() {
        let mut offers = Offers::default();
        let lines = (0..).take_while(|n| offers.add(&format!("cap{n}"))).count();
        assert!(lines <= MAX_OFFERS);
        let mut empty = Offers::default();
        assert!((0..).take_while(|_| empty.add("")).count() <= MAX_OFFERS);
    }

    #[test]
    fn a_server_describes_itself() {
        let mut features = Features::default();
        let tokens = [
            "CASEMAPPING=ascii",
            "LINELEN=2048",
            "NETWORK=Test",
            "WHOX",
            "MONITOR=30",
            "PREFIX=(Yqaohv)!~&@%+",
            "BOT=B ",
            "LINELEN=nonsense",
            "=",
            "",
        ];
        features.take(&tokens.map(str::to_owned));
        assert_eq!(features.casemapping, Casemapping::Ascii);
        assert_eq!(features.line_bytes, 2048);
        assert!(features.whox && features.monitor);
        assert_eq!(
            (features.bot_mode, features.network.as_deref()),
            (Some('B'), Some("Test"))
        );
        features.take(&["LINELEN=9".to_owned(), "LINELEN=99999999".to_owned()]);
        assert_eq!(features.line_bytes, 8_192);
    }
}
