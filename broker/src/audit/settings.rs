//! What can be set about the record.

use std::path::PathBuf;

use muster_protocol::units::Span;
use serde::{Deserialize, Serialize};

/// Most sinks.
const MOST_SINKS: usize = 8;

/// How the record is kept, and where else it is written.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuditConfig {
    /// Age at which records go. What goes first is said by a signed
    /// checkpoint.
    pub keep: Span,
    /// A checkpoint is signed after so many records at the latest, and a
    /// minute after the last one in any case.
    pub checkpoint_every: u32,
    /// Where records and checkpoints are also written, out of the broker's
    /// reach.
    pub sinks: Vec<SinkConfig>,
}

impl Default for AuditConfig {
    fn default() -> Self {
        Self {
            keep: Span::from_secs(400 * 86_400),
            checkpoint_every: 100,
            sinks: Vec::new(),
        }
    }
}

/// One place outside.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case", tag = "kind")]
pub enum SinkConfig {
    /// A file that is only ever appended to: one JSON text a line.
    File {
        /// The file. It should be where the broker cannot change what is
        /// written: `chattr +a`, another machine's disk.
        path: PathBuf,
    },
    /// A syslog, as RFC 5424 has it.
    Syslog {
        /// `/dev/log`, `udp://HOST:PORT` or `tcp://HOST:PORT`.
        to: String,
        /// Whether whole records are written, too, or checkpoints alone.
        #[serde(default = "yes")]
        records: bool,
    },
    /// An HTTP server that takes JSON lines by POST.
    Http {
        /// Where: `https://`, or `http://` on this machine.
        url: String,
        /// A file with a bearer token.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        token_file: Option<PathBuf>,
    },
}

fn yes() -> bool {
    true
}

/// Where a syslog is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum SyslogTo {
    /// A datagram socket of this machine.
    Local(PathBuf),
    /// Datagrams, unacknowledged.
    Udp(String),
    /// A stream with counted frames (RFC 6587).
    Tcp(String),
}

impl SyslogTo {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let place = |rest: &str| {
            let (host, port) = rest.rsplit_once(':')?;
            let port = port.parse::<u16>().ok()?;
            (!host.is_empty() && port > 0).then(|| rest.to_owned())
        };
        if let Some(rest) = text.strip_prefix("udp://") {
            place(rest).map(Self::Udp)
        } else if let Some(rest) = text.strip_prefix("tcp://") {
            place(rest).map(Self::Tcp)
        } else {
            text.starts_with('/').then(|| Self::Local(text.into()))
        }
    }
}

impl SinkConfig {
    /// What it is called, in events and in the names of files.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::File { path } => format!("file {}", path.display()),
            Self::Syslog { to, .. } => format!("syslog {to}"),
            Self::Http { url, .. } => format!("http {url}"),
        }
    }

    fn check(&self) -> Result<(), String> {
        match self {
            Self::File { path } if !path.is_absolute() => Err(format!(
                "has a file `{}`; write its whole path, from `/` on",
                path.display()
            )),
            Self::Syslog { to, .. } if SyslogTo::parse(to).is_none() => Err(format!(
                "has a syslog at `{to}`; write /dev/log, udp://HOST:PORT or tcp://HOST:PORT"
            )),
            Self::Http { url, .. } => {
                let local = ["http://127.0.0.1", "http://[::1]", "http://localhost"];
                let fine = |prefix: &&str| {
                    url.strip_prefix(*prefix)
                        .is_some_and(|rest| rest.is_empty() || rest.starts_with([':', '/']))
                };
                if url.len() > "https://".len() && url.starts_with("https://")
                    || local.iter().any(fine)
                {
                    Ok(())
                } else {
                    Err(format!(
                        "has an HTTP server at `{url}`; write https://…, or http:// for this machine alone"
                    ))
                }
            }
            Self::File { .. } | Self::Syslog { .. } => Ok(()),
        }
    }
}

impl AuditConfig {
    /// What cannot be: the setting, and why.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        if self.keep < Span::from_secs(3_600) {
            return Err(("audit.keep", "must be at least an hour".into()));
        }
        if !(1..=100_000).contains(&self.checkpoint_every) {
            return Err((
                "audit.checkpoint_every",
                "must be between 1 and 100000".into(),
            ));
        }
        if self.sinks.len() > MOST_SINKS {
            return Err(("audit.sinks", format!("must be at most {MOST_SINKS}")));
        }
        for (i, sink) in self.sinks.iter().enumerate() {
            sink.check().map_err(|why| ("audit.sinks", why))?;
            if self.sinks[..i]
                .iter()
                .any(|other| other.name() == sink.name())
            {
                return Err(("audit.sinks", format!("names {} twice", sink.name())));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_a_sink_is_refused() {
        let with = |text: &str| -> Result<AuditConfig, String> {
            let config: AuditConfig = toml::from_str(text).map_err(|e| e.to_string())?;
            config.check().map_err(|(_, why)| why)?;
            Ok(config)
        };
        let good = "[[sinks]]\nkind='file'\npath='/var/log/a'\n[[sinks]]\nkind='syslog'\nto='/dev/log'\n\
            [[sinks]]\nkind='http'\nurl='https://a.example/x'\n[[sinks]]\nkind='syslog'\nto='udp://[::1]:514'";
        assert_eq!(with(good).unwrap().sinks.len(), 4);
        for bad in [
            "keep='1s'",
            "checkpoint_every=0",
            "[[sinks]]\nkind='file'\npath='audit'",
            "[[sinks]]\nkind='file'\npath='/a'\nmode=3",
            "[[sinks]]\nkind='syslog'\nto='udp://here'",
            "[[sinks]]\nkind='http'\nurl='http://127.0.0.1.evil.example/'",
            "[[sinks]]\nkind='http'\nurl='http://a.example/'",
            "[[sinks]]\nkind='file'\npath='/a'\n[[sinks]]\nkind='file'\npath='/a'",
        ] {
            assert!(with(bad).is_err(), "{bad}");
        }
    }
}
