//! `muster-agent status`.

use std::fmt::Write as _;
use std::path::PathBuf;

use muster_protocol::units::Timestamp;

use crate::agent::JOURNAL_FILE;
use crate::cli::{Failure, print};
use crate::config::Config;
use crate::identity::{Enrolled, Identity};
use crate::journal::{Counts, Db};
use crate::state::{StateDir, StateError};

/// Arguments of `status`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The state directory
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// The configuration
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

/// Says what this machine is.
///
/// # Errors
/// [`Failure`]; also when it is not enrolled.
pub fn main(args: &Args) -> Result<(), Failure> {
    let config = Config::load(args.config.as_deref(), args.state.as_deref())
        .map_err(|e| Failure::new(2, &e))?;
    let fail = |e: StateError| Failure::new(1, &e);
    let dir = StateDir::open(&config.state).map_err(fail)?;
    let enrolled = Identity::load(&dir).map_err(fail)?.now();
    let journal = dir.path(JOURNAL_FILE);
    let counts = if journal.exists() {
        Db::counts_of(&journal).map_err(|e| Failure::new(1, &e))?
    } else {
        Counts::default()
    };
    let running = match dir.lock() {
        Ok(_) => None,
        Err(StateError::Locked { holder, .. }) => {
            Some(holder.trim().trim_matches(['(', ')']).to_owned())
        }
        Err(e) => return Err(fail(e)),
    };
    if args.json {
        print(&json(&enrolled, &counts, running.is_some()));
    } else {
        print(&text(
            &enrolled,
            &counts,
            running.as_deref(),
            Timestamp::now(),
        ));
    }
    Ok(())
}

fn text(enrolled: &Enrolled, counts: &Counts, running: Option<&str>, now: Timestamp) -> String {
    let credentials = &enrolled.stored.credentials;
    let assignment = &credentials.assignment;
    let roles: Vec<&str> = assignment.roles.iter().map(|r| r.as_str()).collect();
    let labels: Vec<String> = assignment
        .labels
        .iter()
        .map(|(k, v)| format!("{k}={v}"))
        .collect();
    let or_none = |text: String| {
        if text.is_empty() {
            "none".to_owned()
        } else {
            text
        }
    };
    let expired = if credentials.expires < now {
        " (over)"
    } else {
        ""
    };
    let mut out = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(out, "{name:<12}{value}");
    };
    line(
        "node",
        &format!("{} (serial {})", assignment.name, credentials.serial),
    );
    line("roles", &or_none(roles.join(", ")));
    line("labels", &or_none(labels.join(", ")));
    line("cluster", &credentials.cluster.to_string());
    line("broker", &enrolled.stored.brokers().join(", "));
    line("NATS", &or_none(credentials.nats_urls.join(", ")));
    line(
        "credentials",
        &format!(
            "revision {}, until {}{expired}",
            assignment.revision, credentials.expires
        ),
    );
    line(
        "agent",
        &running.map_or("not running".to_owned(), |pid| {
            format!("running {pid}").trim().to_owned()
        }),
    );
    line(
        "journal",
        &format!(
            "{} open, {} outcomes to send, {} acknowledged, {} bytes of output",
            counts.open, counts.unacknowledged, counts.acknowledged, counts.output_bytes
        ),
    );
    out
}

fn json(enrolled: &Enrolled, counts: &Counts, running: bool) -> String {
    let credentials = &enrolled.stored.credentials;
    let value = serde_json::json!({
        "assignment": credentials.assignment,
        "serial": credentials.serial,
        "cluster": credentials.cluster,
        "broker": enrolled.stored.url,
        "brokers": enrolled.stored.brokers(),
        "nats": credentials.nats_urls,
        "expires": credentials.expires,
        "key_epoch": enrolled.keys.epoch,
        "running": running,
        "journal": {
            "open": counts.open,
            "unacknowledged": counts.unacknowledged,
            "acknowledged": counts.acknowledged,
            "output_bytes": counts.output_bytes,
        },
    });
    format!("{value}\n")
}
