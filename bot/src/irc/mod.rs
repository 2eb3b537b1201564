//! One IRC network: a connection that is kept, who is seen on it, and which
//! lines are for the bot. Nothing here knows the broker.
//!
//! [`connect`] gives two channels and a handle. One task owns the connection,
//! registers, logs in, joins, and connects again for ever by itself.

mod addressed;
mod features;
mod keep;
mod lines;
mod live;
mod message;
mod register;
mod sasl;
mod sent;
mod settings;
mod stream;
mod users;

use std::time::Duration;

use muster_protocol::api::Speaker;
use muster_protocol::chat::ChannelName;
use muster_protocol::units::Timestamp;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub use settings::{
    ChannelFile, ChannelSettings, Identity, KeyedChannel, NetworkFile, NetworkSettings, Pin, Sasl,
    SaslFile, SettingsError, Timing, TlsSettings,
};
pub use users::Users;

/// What a connection tells. What it tells comes in the order in which it
/// happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Heard {
    /// Registered, logged in where that is asked for, and the channels were
    /// asked to be joined. What was sent before it is not sent any more.
    Ready(Ready),
    /// The bot is in that channel now.
    Joined(ChannelName),
    /// The bot is not in that channel any more.
    Left(ChannelName),
    /// What the server puts before lines of ours has this many bytes now. See
    /// [`Ready::mask_bytes`].
    Mask(usize),
    /// The server takes another name for us now.
    Nick(String),
    /// A line for the bot.
    Line(Line),
    /// The server showed us a line of ours as others see it.
    Echo {
        /// What it was sent with.
        token: u64,
    },
    /// The server refused a line of ours: nobody saw it.
    Refused {
        /// What it was sent with.
        token: u64,
        /// What the server said.
        why: String,
    },
    /// The server answered a PING of ours: what was sent before it has been
    /// dealt with.
    Pong {
        /// What it was sent with.
        token: u64,
    },
    /// The connection is gone, or an attempt to make one failed. What was sent
    /// without [`Heard::Echo`] or [`Heard::Pong`] is in doubt; what is sent
    /// before the next [`Heard::Ready`] is dropped.
    Gone {
        /// Why, in words.
        why: String,
        /// After how long it is tried again.
        again_in: Duration,
    },
}

/// What is known of a connection when it begins.
#[derive(Clone, Debug, PartialEq)]
pub struct Ready {
    /// The own name, as the server took it.
    pub nick: String,
    /// Bytes of `:nick!user@host `, which the server puts before each line of
    /// ours: they count towards [`Ready::line_bytes`].
    pub mask_bytes: usize,
    /// What the server can.
    pub caps: Caps,
    /// Longest line that others get, in bytes, with CR and LF.
    pub line_bytes: usize,
    /// Which letters are the same.
    pub casemapping: Casemapping,
    /// What the network calls itself, if it says so.
    pub network: Option<String>,
}

/// What was agreed on with the server.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Caps {
    /// Lines of ours come back: [`Heard::Echo`].
    pub echo_message: bool,
    /// They come back with the label that they were sent with.
    pub labeled_response: bool,
    /// Lines say when they were written.
    pub server_time: bool,
    /// Lines have tags.
    pub message_tags: bool,
    /// Lines say which account wrote them.
    pub account_tag: bool,
    /// The server tells when somebody logs in or out.
    pub account_notify: bool,
    /// The server tells with which account somebody joins.
    pub extended_join: bool,
    /// Several lines can be sent as one.
    pub multiline: Option<Multiline>,
}

/// How much can be sent as one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Multiline {
    /// Bytes of all lines together.
    pub max_bytes: usize,
    /// Lines.
    pub max_lines: usize,
}

/// Which letters of names a network does not tell apart.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Casemapping {
    /// `a` to `z`.
    Ascii,
    /// Those, and `{}|^` are the small ones of `[]\~`.
    #[default]
    Rfc1459,
    /// Those, but `^` is not the small one of `~`.
    StrictRfc1459,
}

impl Casemapping {
    /// The name as it is compared.
    #[must_use]
    pub fn fold(self, name: &str) -> String {
        name.chars()
            .map(|c| match (self, c) {
                (Self::Rfc1459, '~') => '^',
                (Self::Rfc1459 | Self::StrictRfc1459, '[') => '{',
                (Self::Rfc1459 | Self::StrictRfc1459, ']') => '}',
                (Self::Rfc1459 | Self::StrictRfc1459, '\\') => '|',
                (_, c) => c.to_ascii_lowercase(),
            })
            .collect()
    }
}

/// A line that is for the bot.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// The server's id of it, or one that was made when it was read.
    pub id: String,
    /// The channel; absent where it was written to the bot alone.
    pub channel: Option<ChannelName>,
    /// Who wrote it.
    pub speaker: Speaker,
    /// When it was read.
    pub heard: Timestamp,
    /// When it was written, as the server says.
    pub server_time: Option<Timestamp>,
    /// The line without the sign or name that it began with; exactly as it was
    /// written otherwise. At most 8,192 bytes.
    pub text: String,
}

/// What a connection takes: exact lines. One with CR, LF or NUL in it, or to a
/// target that would be read as something else, is never sent:
/// [`Heard::Refused`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Send {
    /// One line. It is not split: longer ones are cut by the server.
    Privmsg {
        /// To whom.
        target: Target,
        /// The line.
        text: String,
        /// What [`Heard::Echo`] gives back.
        token: u64,
    },
    /// Several lines as one. Only where [`Caps::multiline`] is there.
    Multiline {
        /// To whom.
        target: Target,
        /// The lines.
        lines: Vec<String>,
        /// What [`Heard::Echo`] gives back.
        token: u64,
    },
    /// Asks for a [`Heard::Pong`].
    Ping {
        /// What it gives back.
        token: u64,
    },
}

/// To whom something is sent.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Target {
    /// A channel.
    Channel(ChannelName),
    /// Whoever is called that now. See [`Users::nick_of`].
    Nick(String),
}

impl Target {
    /// As in a line.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Channel(name) => name.as_str(),
            Self::Nick(nick) => nick,
        }
    }
}

/// A network: what goes in, what comes out, and who is there.
#[derive(Debug)]
pub struct Connection {
    /// What is to be sent. Taken at any time; dropped while there is no
    /// connection.
    pub send: mpsc::Sender<Send>,
    /// What is heard. It ends when the connection was asked to stop.
    pub heard: mpsc::Receiver<Heard>,
    /// Who is there.
    pub users: Users,
}

/// How many things may wait in each direction.
const WAITING: usize = 1_024;

/// Keeps a connection to a network until it is asked to stop.
#[must_use]
pub fn connect(settings: NetworkSettings, stop: CancellationToken) -> Connection {
    let (send, to_send) = mpsc::channel(WAITING);
    let (hear, heard) = mpsc::channel(WAITING);
    let users = Users::default();
    tokio::spawn(keep::keep(settings, users.clone(), to_send, hear, stop));
    Connection { send, heard, users }
}

#[cfg(test)]
mod tests;
