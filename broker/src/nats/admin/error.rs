//! Why administering NATS servers failed.

use crate::nats::jwt::UnixSeconds;
use crate::nats::keys::AccountKey;
use crate::nats::version::VersionError;

/// Why administering the servers failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdminError {
    /// No connection.
    #[error("cannot connect to NATS at {url} as its administrator: {source}{hint}")]
    Connect {
        /// Where.
        url: String,
        /// What the client said.
        source: async_nats::ConnectError,
        /// What to do, when it is known.
        hint: &'static str,
    },
    /// Not a version muster works with.
    #[error(transparent)]
    Version(#[from] VersionError),
    /// It lets everybody in, so it cannot keep nodes apart.
    #[error(
        "the NATS server at {url} asks nobody for credentials: it has no operator, and is not set up for muster; see `muster nats-config`"
    )]
    Open {
        /// Where.
        url: String,
    },
    /// A text that is not an account's claims.
    #[error("these are not the claims of a NATS account: {0}")]
    NotClaims(String),
    /// The servers have newer claims already.
    #[error(
        "the NATS servers have newer claims of the account {account} (issued {have}) than these (issued {got}); read them and build on them: is another broker active?"
    )]
    Outdated {
        /// The account.
        account: AccountKey,
        /// Issue time of the servers' claims.
        have: UnixSeconds,
        /// Issue time of the new claims.
        got: UnixSeconds,
    },
    /// The account belongs to another operator.
    #[error(
        "the NATS servers know the account {account} under another operator key; this state directory is not the one that set the servers up"
    )]
    OtherOperator {
        /// The account.
        account: AccountKey,
    },
    /// Nobody listens for claims.
    #[error(
        "the NATS server does not take account claims; its configuration needs `resolver {{ type: full }}`: see `muster nats-config`"
    )]
    NoResolver,
    /// A server refused the claims.
    #[error("the NATS server {server} refused the account claims: {reason}")]
    Refused {
        /// Name of the server.
        server: String,
        /// What it said.
        reason: String,
    },
    /// Some servers did not say that they have the claims.
    #[error("these NATS servers did not confirm the new account claims: {}; a removed node may still be connected to them; it is tried again", .missing.join(", "))]
    Unconfirmed {
        /// Names or ids of the servers.
        missing: Vec<String>,
    },
    /// The server is too old for this.
    #[error("NATS server {version} cannot {what}; version {needed} can")]
    Unsupported {
        /// Its version.
        version: String,
        /// What was wanted.
        what: &'static str,
        /// First version that can.
        needed: &'static str,
    },
    /// No answer, or a broken connection.
    #[error("the NATS server did not answer ({what}): {reason}")]
    NoAnswer {
        /// What was asked.
        what: &'static str,
        /// What the client said.
        reason: String,
    },
    /// An answer that makes no sense.
    #[error("cannot understand the NATS server's answer ({what}): {source}")]
    Answer {
        /// What was asked.
        what: &'static str,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}
