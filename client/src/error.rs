//! What can go wrong between a client and the broker.

use std::path::PathBuf;
use std::time::Duration;

use muster_protocol::api::Readiness;
use muster_protocol::problem::{Kind, Problem};

/// Why there is no answer, or not the one that was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The URL cannot be used.
    #[error("`{url}` is not the URL of a broker: {why}")]
    Url {
        /// As given.
        url: String,
        /// Why not.
        why: String,
    },
    /// An id that is none.
    #[error("`{text}` is not an id: letters and digits are expected")]
    Reference {
        /// As given.
        text: String,
    },
    /// The file with the certificate authority cannot be used.
    #[error("cannot use the certificate authority in {path}: {why}")]
    CaFile {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// A broker that does not serve now.
    #[error("{}", .0.reason().unwrap_or_else(|| "the broker serves".into()))]
    NotReady(Readiness),
    /// Nobody listens.
    #[error("no broker listens at {url} (connection refused)")]
    Refused {
        /// Where.
        url: String,
    },
    /// No way to the host: its name, the network.
    #[error("cannot reach the broker at {url}: {why}")]
    Connect {
        /// Where.
        url: String,
        /// The cause.
        why: String,
    },
    /// TLS failed.
    #[error("no safe connection to {url}: {why}")]
    Tls {
        /// Where.
        url: String,
        /// The cause.
        why: String,
    },
    /// The other end does not speak as the URL says: in TLS, or without.
    #[error("{url} {}", if *.tls { "does not speak TLS" } else { "answers, but not in plain HTTP" })]
    Scheme {
        /// As given.
        url: String,
        /// Whether the URL asks for TLS.
        tls: bool,
    },
    /// No answer in time.
    #[error("the broker at {url} did not answer {what} within {}", seconds(*.after))]
    Timeout {
        /// Where.
        url: String,
        /// Which request.
        what: String,
        /// How long was waited.
        after: Duration,
    },
    /// The connection ended in the middle.
    #[error("the connection to {url} ended during {what}: {why}")]
    Lost {
        /// Where.
        url: String,
        /// Which request.
        what: String,
        /// The cause.
        why: String,
    },
    /// An answer that no broker gives.
    #[error("{url} answered {what} with {status}, but not as a muster broker does: {why}")]
    Garbage {
        /// Where.
        url: String,
        /// Which request.
        what: String,
        /// HTTP status.
        status: u16,
        /// What is wrong with it.
        why: String,
    },
    /// No answer, however often it was asked for.
    #[error("it is not known whether {what} was carried out: {why}")]
    Unsure {
        /// Which request.
        what: String,
        /// The last error.
        why: Box<ClientError>,
    },
    /// The events of a run cannot be followed any further.
    #[error("the events of the run were lost and not found again for {}: {why}", seconds(*.after))]
    EventsLost {
        /// How long was tried.
        after: Duration,
        /// The last cause.
        why: String,
    },
    /// The cluster's events cannot be followed any further.
    #[error("the cluster's events were lost and not found again for {}: {why}", seconds(*.after))]
    FollowingLost {
        /// How long was tried.
        after: Duration,
        /// The last cause.
        why: String,
    },
    /// The broker's own word.
    #[error("{}", .0.title)]
    Problem(Box<Problem>),
    /// The client itself could not be built.
    #[error("cannot build the HTTP client: {why}")]
    Setup {
        /// The cause.
        why: String,
    },
}

fn seconds(time: Duration) -> String {
    format!("{} s", time.as_secs_f64().ceil())
}

impl ClientError {
    /// Exit code of the command line.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Url { .. } | Self::CaFile { .. } | Self::Reference { .. } => 2,
            Self::Problem(problem) => problem.kind.exit_code(),
            _ => 5,
        }
    }

    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Problem(problem) => return problem.hint.clone(),
            Self::Url { .. } => "write it like https://muster.example.org:7878".into(),
            Self::Reference { .. } => "copy it from the list: `muster runs`, `muster token list`".into(),
            Self::CaFile { .. } => "it must be a readable PEM file; the broker keeps its own in `ca.pem` of its state".into(),
            Self::Refused { .. } => {
                "is it running? start one with `muster up`, or name another with --url or MUSTER_URL".into()
            }
            Self::NotReady(_) => "its log says more; `muster doctor` looks closer".into(),
            Self::Connect { .. } => "check the host name and the network; `muster doctor` looks closer".into(),
            Self::Tls { .. } => {
                "name the broker's certificate authority with --ca-file, or check that the URL is the right one".into()
            }
            Self::Scheme { url, tls: false } => format!(
                "a broker that listens beyond its own machine speaks TLS: write {}",
                url.replacen("http:", "https:", 1)
            ),
            Self::Scheme { url, tls: true } => format!(
                "write {} if it is your broker; it speaks plain HTTP only on its own machine",
                url.replacen("https:", "http:", 1)
            ),
            Self::Timeout { .. } | Self::Lost { .. } => "try again; `muster doctor` looks closer".into(),
            Self::Garbage { .. } => "is the URL that of a muster broker, and of the same version?".into(),
            Self::Unsure { .. } => "before you ask for it again, look whether it is there: `muster runs`".into(),
            Self::EventsLost { .. } => "the run goes on; look again with `muster runs watch`".into(),
            Self::FollowingLost { .. } => "go on with `muster events --after SEQ --follow`; `muster doctor` looks closer".into(),
            Self::Setup { .. } => return None,
        })
    }

    /// The kind of the broker's problem, if it is one.
    #[must_use]
    pub fn kind(&self) -> Option<Kind> {
        match self {
            Self::Problem(problem) => Some(problem.kind),
            _ => None,
        }
    }

    /// Whether the same request may work later without a change.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Refused { .. }
            | Self::NotReady(_)
            | Self::Connect { .. }
            | Self::Timeout { .. }
            | Self::Lost { .. } => true,
            // A proxy in front of a broker that restarts answers in its own words.
            Self::Garbage { status, .. } => matches!(status, 502..=504),
            Self::Problem(problem) => {
                matches!(
                    problem.kind,
                    Kind::Unavailable | Kind::RateLimited | Kind::Internal
                )
            }
            _ => false,
        }
    }

    /// From what the HTTP library says.
    pub(crate) fn from_reqwest(
        error: &reqwest::Error,
        url: &str,
        what: &str,
        after: Duration,
    ) -> Self {
        let mut causes: Vec<&(dyn std::error::Error + 'static)> = vec![error];
        let mut last = String::new();
        let mut refused = false;
        let (mut plain, mut in_tls) = (false, false);
        let mut tls = None;
        // Nobody's chain is so long; a cycle would be.
        for _ in 0..64 {
            let Some(e) = causes.pop() else { break };
            last = e.to_string();
            causes.extend(e.source());
            if let Some(io) = e.downcast_ref::<std::io::Error>() {
                refused |= io.kind() == std::io::ErrorKind::ConnectionRefused;
                // An io::Error does not give its content as its source, but
                // the source of its content.
                causes.extend(
                    io.get_ref()
                        .map(|inner| inner as &(dyn std::error::Error + 'static)),
                );
            }
            // It answers with a TLS alert, which is no version of HTTP.
            in_tls |= last.contains("invalid HTTP version");
            if let Some(rustls) = e.downcast_ref::<rustls::Error>() {
                plain |= matches!(
                    rustls,
                    rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType)
                );
                tls = Some(rustls.to_string());
            }
        }
        let url = url.to_owned();
        let what = what.to_owned();
        if plain || (in_tls && url.starts_with("http:")) {
            Self::Scheme { url, tls: plain }
        } else if let Some(why) = tls {
            Self::Tls { url, why }
        } else if refused {
            Self::Refused { url }
        } else if error.is_timeout() {
            Self::Timeout { url, what, after }
        } else if error.is_connect() {
            Self::Connect { url, why: last }
        } else if error.is_builder() {
            Self::Setup { why: last }
        } else {
            Self::Lost {
                url,
                what,
                why: last,
            }
        }
    }
}
