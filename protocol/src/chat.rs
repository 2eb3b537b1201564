//! Chat without any network's protocol: where something was written, what
//! shows who wrote it, and the grammar of what can be written.

pub mod alias;
pub mod command;
pub mod words;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::text::printable;
use crate::text_form::text_form;

/// Longest name of a channel, in bytes.
pub const MAX_CHANNEL: usize = 64;

/// Why a text is not the name of a channel.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{text}` is not a channel: {why}")]
pub struct ChannelError {
    text: String,
    why: &'static str,
}

/// A channel of a chat network, such as `#ops`, in small letters: a network
/// does not tell capital and small ones apart.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ChannelName(Arc<str>);

impl ChannelName {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ChannelName {
    type Err = ChannelError;

    fn from_str(text: &str) -> Result<Self, ChannelError> {
        let fail = |why| {
            Err(ChannelError {
                text: printable(text, 80),
                why,
            })
        };
        if !text.starts_with(['#', '&', '+', '!']) {
            return fail("it begins with `#`, `&`, `+` or `!`");
        }
        if text.len() < 2 || text.len() > MAX_CHANNEL {
            return fail("it has 2 to 64 bytes");
        }
        if text
            .chars()
            .any(|c| c.is_control() || c.is_whitespace() || matches!(c, ',' | ':' | '\u{7f}'))
        {
            return fail("it has no space, comma, colon or control character");
        }
        Ok(Self(text.to_ascii_lowercase().into()))
    }
}

impl fmt::Display for ChannelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for ChannelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

text_form!(ChannelName, "^[#&+!][^ ,:]+$".to_owned(), MAX_CHANNEL);

/// What shows that a line is really of whom it seems to be. Later ones are
/// stronger.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    Deserialize,
    Eq,
    Hash,
    Ord,
    PartialEq,
    PartialOrd,
    Serialize,
    utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Proof {
    /// Nothing does.
    #[default]
    None,
    /// A one-time link that ties this very connection to a person.
    Link,
    /// The server said some time ago that this connection is logged in, and
    /// nothing was heard since that ends it.
    Tracked,
    /// The server says so on the line itself.
    Tag,
    /// A one-time code of that person's own device.
    Code,
}

impl Proof {
    /// All of them, the weakest first.
    pub const ALL: [Self; 5] = [Self::None, Self::Link, Self::Tracked, Self::Tag, Self::Code];

    /// The word, as in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Link => "link",
            Self::Tracked => "tracked",
            Self::Tag => "tag",
            Self::Code => "code",
        }
    }
}

/// A text as one word of the grammar.
#[must_use]
pub fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./:,%@+".contains(c);
    if !text.is_empty() && !text.starts_with("--") && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_are_names_and_nothing_else() {
        assert_eq!("#Ops".parse::<ChannelName>().unwrap().as_str(), "#ops");
        for bad in [
            "",
            "ops",
            "#",
            "#a b",
            "#a,b",
            "#a\r\nQUIT",
            "#a:b",
            "#\u{7}x",
        ] {
            assert!(bad.parse::<ChannelName>().is_err(), "{bad:?}");
        }
        assert!(Proof::Code > Proof::Tag && Proof::Tracked > Proof::Link);
    }
}
