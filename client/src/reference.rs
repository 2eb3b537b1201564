//! What stands in a path for a run, an invite or a token.

use std::fmt;
use std::str::FromStr;

use crate::ClientError;

/// An id, or the beginning of a run's id, as a person typed it. Letters and
/// digits only, so that it is one segment of a path whatever it is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Reference(String);

impl Reference {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Reference {
    type Err = ClientError;

    fn from_str(text: &str) -> Result<Self, ClientError> {
        let fits =
            !text.is_empty() && text.len() <= 40 && text.bytes().all(|b| b.is_ascii_alphanumeric());
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(ClientError::Reference {
                text: muster_protocol::text::printable(text, 40),
            })
        }
    }
}

impl From<muster_protocol::ids::RunId> for Reference {
    fn from(run: muster_protocol::ids::RunId) -> Self {
        Self(run.to_string())
    }
}

impl From<muster_protocol::keys::KeyId> for Reference {
    fn from(key: muster_protocol::keys::KeyId) -> Self {
        Self(key.to_string())
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_one_path_segment() {
        assert!("7f3k".parse::<Reference>().is_ok());
        for bad in [
            "",
            "..",
            ".",
            "a/b",
            "a b",
            "a?b",
            "%2e",
            "é",
            &"a".repeat(41),
        ] {
            assert!(bad.parse::<Reference>().is_err(), "{bad:?}");
        }
    }
}
