//! What the operator says about a network: as it is in the file
//! ([`NetworkFile`]), and with everything read and checked
//! ([`NetworkSettings`]).

mod file;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use muster_protocol::api::Secret;
use muster_protocol::chat::{ChannelError, ChannelName};
use muster_protocol::names::NetworkName;
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};

pub use file::{ChannelFile, KeyedChannel, NetworkFile, SaslFile};

/// How the bot logs in to services.
#[derive(Clone, Debug)]
pub enum Sasl {
    /// By a password.
    Plain {
        /// The account.
        account: String,
        /// Its password.
        password: Secret,
    },
    /// By the own certificate.
    External {
        /// The account; else the one that the certificate belongs to.
        account: Option<String>,
    },
}

impl Sasl {
    /// Its name on the wire.
    #[must_use]
    pub fn mechanism(&self) -> &'static str {
        match self {
            Self::Plain { .. } => "PLAIN",
            Self::External { .. } => "EXTERNAL",
        }
    }
}

/// A channel to be in.
#[derive(Clone, Debug)]
pub struct ChannelSettings {
    /// Its name.
    pub name: ChannelName,
    /// Its key.
    pub key: Option<Secret>,
}

/// SHA-256 of the one certificate that is accepted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Pin(pub [u8; 32]);

impl FromStr for Pin {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let hex = text
            .strip_prefix("sha256:")
            .ok_or("it begins with `sha256:`")?;
        // As openssl prints it, too.
        let hex = hex.replace(':', "").to_ascii_lowercase();
        data_encoding::HEXLOWER
            .decode(hex.as_bytes())
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .map(Self)
            .ok_or("it has 64 hexadecimal digits behind `sha256:`")
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", data_encoding::HEXLOWER.encode(&self.0))
    }
}

/// How the connection is encrypted.
#[derive(Clone, Debug)]
pub struct TlsSettings {
    /// The name that the certificate must be for.
    pub server_name: ServerName<'static>,
    /// Who may have signed it; those of this machine where absent.
    pub roots: Option<RootCertStore>,
    /// The one certificate that is accepted.
    pub pin: Option<Pin>,
    /// The own certificate and its key.
    pub identity: Option<Identity>,
}

/// A certificate of the bot, with its key.
pub struct Identity {
    /// The certificate and those who signed it.
    pub chain: Vec<CertificateDer<'static>>,
    /// The key.
    pub key: PrivateKeyDer<'static>,
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Self {
            chain: self.chain.clone(),
            key: self.key.clone_key(),
        }
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity([redacted])")
    }
}

/// How long things may take. Only tests have others than these.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// From connecting to having joined.
    pub attempt: Duration,
    /// When nothing was heard for so long, the server is asked.
    pub silence: Duration,
    /// When it does not answer for so long, the connection counts as gone.
    pub answer: Duration,
    /// The pause before the first new attempt; it doubles.
    pub pause_least: Duration,
    /// The longest pause.
    pub pause_most: Duration,
    /// How often it is looked whether the wanted name is free, and whether a
    /// channel lets the bot in again.
    pub look: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            attempt: Duration::from_secs(60),
            silence: Duration::from_secs(90),
            answer: Duration::from_secs(30),
            pause_least: Duration::from_secs(2),
            pause_most: Duration::from_secs(300),
            look: Duration::from_secs(60),
        }
    }
}

/// A network, read and checked.
#[derive(Clone, Debug)]
pub struct NetworkSettings {
    /// What the operators call it.
    pub name: NetworkName,
    /// Host of the server: a name or an address, without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// How the connection is encrypted; not at all where absent.
    pub tls: Option<TlsSettings>,
    /// The name that is wanted.
    pub nick: String,
    /// Names that are tried in turn while that one is taken.
    pub alt_nicks: Vec<String>,
    /// The part before the `@` of the own mask.
    pub username: String,
    /// Shown to people who look the bot up.
    pub realname: String,
    /// Where it goes.
    pub channels: Vec<ChannelSettings>,
    /// How it logs in; it does not where absent.
    pub sasl: Option<Sasl>,
    /// The password of the server itself.
    pub server_password: Option<Secret>,
    /// What a command begins with.
    pub prefix: String,
    /// How long things may take.
    pub timing: Timing,
}

/// What is wrong with the settings of a network.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A value cannot be used.
    #[error("network {network}: {setting} = `{value}`: {why}")]
    Value {
        /// Which network.
        network: NetworkName,
        /// Which setting.
        setting: &'static str,
        /// What it is.
        value: String,
        /// Why it cannot be, and what can.
        why: &'static str,
    },
    /// A file cannot be used.
    #[error("network {network}: {setting}: {}: {why}", path.display())]
    File {
        /// Which network.
        network: NetworkName,
        /// Which setting names it.
        setting: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A channel is none.
    #[error("network {network}: channels: {source}")]
    Channel {
        /// Which network.
        network: NetworkName,
        /// Why.
        source: ChannelError,
    },
    /// Settings contradict each other.
    #[error("network {network}: {why}")]
    Together {
        /// Which network.
        network: NetworkName,
        /// What and what to do.
        why: &'static str,
    },
}

#[cfg(test)]
mod tests;
