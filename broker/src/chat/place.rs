//! Where something is said, as it is written in settings.

use std::fmt;
use std::str::FromStr;

use muster_protocol::api::ChatPlace;
use muster_protocol::chat::ChannelName;
use muster_protocol::names::NetworkName;
use muster_protocol::text::printable;

/// A channel of a network: `ops/#dev`.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct ChannelAt {
    /// The network.
    pub network: NetworkName,
    /// The channel.
    pub channel: ChannelName,
}

impl ChannelAt {
    /// To everybody there.
    #[must_use]
    pub fn place(&self) -> ChatPlace {
        ChatPlace {
            network: self.network.clone(),
            channel: Some(self.channel.clone()),
            person: None,
        }
    }
}

/// Why a text names no channel of a network.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{text}` is no channel of a network: {why}; write it like `ops/#dev`")]
pub struct ChannelAtError {
    text: String,
    why: String,
}

impl FromStr for ChannelAt {
    type Err = ChannelAtError;

    fn from_str(text: &str) -> Result<Self, ChannelAtError> {
        let fail = |why: String| ChannelAtError {
            text: printable(text, 80),
            why,
        };
        let (network, channel) = text
            .split_once('/')
            .ok_or_else(|| fail("it does not say which network".to_owned()))?;
        Ok(Self {
            network: network.parse().map_err(|e| fail(format!("{e}")))?,
            channel: channel.parse().map_err(|e| fail(format!("{e}")))?,
        })
    }
}

impl fmt::Display for ChannelAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.channel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_is_one_of_a_network() {
        let dev: ChannelAt = "ops/#Dev".parse().unwrap();
        assert_eq!(dev.to_string(), "ops/#dev");
        for bad in [
            "#dev", "ops", "ops/", "ops/dev", "/#dev", "ops/#a b", "o s/#dev",
        ] {
            let error = bad.parse::<ChannelAt>().unwrap_err().to_string();
            assert!(error.contains("ops/#dev"), "{error}");
        }
    }
}
