//! Where exactly a request came from.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::api::{ChatPerson, ChatPlace};
use crate::chat::{ChannelName, Proof};
use crate::ids::RunId;
use crate::names::{NetworkName, ScheduleName};
use crate::units::Timestamp;

/// Where exactly a request came from: for policies, and for the record.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// Not known: a run that was read back from its journal.
    #[default]
    Unknown,
    /// The other end of the connection.
    Address(IpAddr),
    /// The time of this schedule had come.
    Schedule(ScheduleName),
    /// A webhook was delivered, and a trigger made a run of it.
    Hook {
        /// The name of the hook.
        hook: String,
        /// The sender's id of the delivery.
        delivery: String,
        /// The trigger.
        trigger: String,
        /// The event that the delivery became.
        event: String,
    },
    /// Somebody wrote it in a chat network.
    Chat {
        /// The network.
        network: NetworkName,
        /// The services account that the network's server vouches for.
        account: Option<String>,
        /// What they are called there now: shown, never judged.
        nick: String,
        /// The channel; absent where it was written to the bot alone.
        channel: Option<ChannelName>,
        /// In which unbroken time of being seen: for an answer to somebody
        /// without an account.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sight: Option<String>,
        /// Which line it was.
        line: String,
        /// What shows that it is really they.
        proof: Proof,
    },
    /// The `main` of a run asks.
    Run {
        /// Which run.
        run: RunId,
        /// When that run was asked for.
        asked: Timestamp,
        /// Where that came from.
        whence: Box<Origin>,
    },
}

impl Origin {
    /// Whether nothing is known.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        *self == Self::Unknown
    }

    /// Where somebody who asked in a chat network is answered.
    #[must_use]
    pub fn chat_place(&self) -> Option<ChatPlace> {
        let Self::Chat {
            network,
            account,
            nick,
            channel,
            sight,
            ..
        } = self
        else {
            return None;
        };
        Some(ChatPlace {
            network: network.clone(),
            channel: channel.clone(),
            person: Some(ChatPerson {
                nick: nick.clone(),
                account: account.clone(),
                sight: sight.clone(),
            }),
        })
    }

    /// Where it began: of what the `main` of a run asks, where that run came
    /// from, and when it was asked for.
    #[must_use]
    pub fn beginning(&self) -> (&Self, Option<Timestamp>) {
        let (mut origin, mut at) = (self, None);
        while let Self::Run { asked, whence, .. } = origin {
            (origin, at) = (whence, Some(*asked));
        }
        (origin, at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_main_asks_came_from_where_its_run_came_from() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let run = |asked: &str, whence: Origin| Origin::Run {
            run: RunId::from_bytes([1; 16]),
            asked: at(asked),
            whence: Box::new(whence),
        };
        let first = Origin::Schedule("nightly".parse().unwrap());
        assert_eq!(first.beginning(), (&first, None));
        let inner = run("2026-11-01T10:00:00Z", first.clone());
        let outer = run("2026-11-01T11:00:00Z", inner);
        assert_eq!(
            outer.beginning(),
            (&first, Some(at("2026-11-01T10:00:00Z")))
        );
        let text = serde_json::to_string(&outer).unwrap();
        assert_eq!(serde_json::from_str::<Origin>(&text).unwrap(), outer);
    }
}
