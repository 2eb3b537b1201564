//! Chat: what was heard in a network, and what is to be said there.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::chat::ChannelName;
use crate::names::NetworkName;
use crate::units::Timestamp;

/// Longest line that is taken, in bytes.
pub const MAX_CHAT_LINE: usize = 8_192;

/// How the server knows that a connection is logged in to services.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Vouched {
    /// It says so on this very line.
    Tag,
    /// It said so before, and nothing ended it since.
    Tracked,
}

/// A services account, as the server of the network tells it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChatAccount {
    /// Its name.
    pub name: String,
    /// How that is known.
    pub vouched: Vouched,
}

/// Who wrote a line.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Speaker {
    /// What they are called now. It proves nothing.
    pub nick: String,
    /// `nick!user@host`.
    pub mask: String,
    /// Stands for the time in which this connection was seen without a break:
    /// another one as soon as it changes its nick, parts or quits, or the
    /// witness loses its own connection. Absent where they share no channel
    /// with the witness: nothing would be seen of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sight: Option<String>,
    /// The account that they are logged in to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<ChatAccount>,
}

/// A line that was heard: `POST /v1/chat/lines`. A bot is a witness: it says
/// what it heard, and what comes of it is the broker's to decide.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChatLine {
    /// The server's id of the line, or one that the witness made: a line with
    /// the same id does nothing a second time.
    pub id: String,
    /// Where.
    pub network: NetworkName,
    /// The channel; absent where it was written to the witness alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub channel: Option<ChannelName>,
    /// Who.
    pub speaker: Speaker,
    /// When the witness heard it.
    #[schema(value_type = String, format = DateTime)]
    pub heard: Timestamp,
    /// When it was written, as the server says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub server_time: Option<Timestamp>,
    /// The command, without the sign or name that it began with: exactly as
    /// it was written otherwise.
    pub line: String,
}

/// What something said is like: which may wait for which.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Urgency {
    /// Something is wrong: before everything else.
    Alarm,
    /// Somebody waits for it.
    Reply,
    /// How far something is: only the newest of a run counts.
    Progress,
    /// What happened.
    News,
}

/// How something is meant, for colours and symbols.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Tone {
    /// As it is.
    #[default]
    Plain,
    /// It went well.
    Good,
    /// Look at it.
    Warn,
    /// It went wrong.
    Bad,
}

/// Something to be said: plain text, one sentence a line, without control
/// characters; as long as it is. Whoever says it cuts it to what its network
/// takes, and keeps what is too much for `!more`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Say {
    /// What may wait.
    pub urgency: Urgency,
    /// How it is meant.
    #[serde(default)]
    pub tone: Tone,
    /// What it is about, as people name it: the short id of a run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub about: Option<String>,
    /// The lines.
    pub lines: Vec<String>,
    /// Where the rest is to be seen: a URL, or a command to type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
}

/// What came of a line.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChatAnswer {
    /// To be said where the line was heard, in this order. More may follow
    /// over `GET /v1/chat/feed`.
    pub says: Vec<Say>,
}

/// A person in a network, to whom something is to be said.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChatPerson {
    /// What they were called when they asked.
    pub nick: String,
    /// Their account: whoever has it now is meant, whatever the nick.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// Without an account: the sight in which they asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sight: Option<String>,
}

/// Where something is to be said.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChatPlace {
    /// The network.
    pub network: NetworkName,
    /// The channel; to the person alone where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub channel: Option<ChannelName>,
    /// Who asked for it: named in a channel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub person: Option<ChatPerson>,
}

/// Something that is to be said without that somebody has just asked:
/// `GET /v1/chat/feed`, server-sent, whose ids are places to go on from.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Utterance {
    /// The same whenever it is told again.
    pub id: String,
    /// Where.
    pub place: ChatPlace,
    /// What.
    pub say: Say,
    /// When it came about.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
}

/// A one-time code that links whoever writes it to the one who asked for it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChatLink {
    /// To be written to the bot alone: `link CODE`.
    pub code: String,
    /// Until when it works.
    #[schema(value_type = String, format = DateTime)]
    pub until: Timestamp,
}

/// Asks for a device for one-time codes.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ChatDeviceRequest {
    /// In place of the one before.
    pub replace: bool,
}

/// A device for one-time codes (TOTP, RFC 6238): the only time that it is
/// seen.
#[derive(Clone, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChatDevice {
    /// The secret in base 32.
    pub secret: String,
    /// The same as a URL, as devices read it.
    pub url: String,
}

impl std::fmt::Debug for ChatDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ChatDevice([redacted])")
    }
}
