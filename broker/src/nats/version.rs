//! Versions of nats-server, and the oldest one muster works with.

use std::fmt;
use std::str::FromStr;

/// The oldest nats-server that muster works with.
pub const MINIMUM: ServerVersion = ServerVersion {
    major: 2,
    minor: 9,
    patch: 0,
};

/// Version of a nats-server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerVersion {
    /// First number.
    pub major: u32,
    /// Second number.
    pub minor: u32,
    /// Third number.
    pub patch: u32,
}

/// Why a version cannot be worked with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VersionError {
    /// The text holds no version.
    #[error("`{text}` is not a nats-server version (like 2.10.27)")]
    NotAVersion {
        /// The text, shortened and escaped.
        text: String,
    },
    /// Older than [`MINIMUM`].
    #[error(
        "the NATS server is version {found}, muster needs {MINIMUM} or newer; upgrade nats-server (Debian 12 and newer have it in `apt install nats-server`)"
    )]
    TooOld {
        /// What was found.
        found: ServerVersion,
    },
}

impl ServerVersion {
    /// Refuses a version below [`MINIMUM`].
    ///
    /// # Errors
    /// [`VersionError::TooOld`].
    pub fn require_minimum(self) -> Result<Self, VersionError> {
        if self < MINIMUM {
            Err(VersionError::TooOld { found: self })
        } else {
            Ok(self)
        }
    }
}

/// Accepts `2.9.10`, `v2.10.27-preview.1`, and the whole line that
/// `nats-server --version` prints.
impl FromStr for ServerVersion {
    type Err = VersionError;

    fn from_str(text: &str) -> Result<Self, VersionError> {
        let bad = || VersionError::NotAVersion {
            text: text
                .chars()
                .take(80)
                .flat_map(char::escape_default)
                .collect(),
        };
        let word = text.split_whitespace().last().ok_or_else(bad)?;
        let numbers = word.strip_prefix('v').unwrap_or(word);
        let numbers = numbers.split(['-', '+']).next().unwrap_or(numbers);
        let mut parts = numbers.split('.').map(str::parse::<u32>);
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(Ok(major)), Some(Ok(minor)), Some(Ok(patch)), None) => Ok(Self {
                major,
                minor,
                patch,
            }),
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for ServerVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_servers_say() {
        let v = |s: &str| s.parse::<ServerVersion>().map(|v| v.to_string());
        assert_eq!(v("2.9.10").unwrap(), "2.9.10");
        assert_eq!(v("nats-server: v2.9.10\n").unwrap(), "2.9.10");
        assert_eq!(v("v2.11.0-preview.2").unwrap(), "2.11.0");
        for bad in ["", "2.9", "nats", "2.9.x", "2.9.1.4", "99999999999.1.1"] {
            assert!(v(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn old_servers_are_refused_with_the_way_out() {
        let old: ServerVersion = "2.8.4".parse().unwrap();
        let said = old.require_minimum().unwrap_err().to_string();
        assert!(
            said.contains("2.8.4") && said.contains("2.9.0") && said.contains("apt"),
            "{said}"
        );
        assert!(
            "2.9.0"
                .parse::<ServerVersion>()
                .unwrap()
                .require_minimum()
                .is_ok()
        );
        assert!("2.10.0".parse::<ServerVersion>().unwrap() > "2.9.10".parse().unwrap());
    }
}
