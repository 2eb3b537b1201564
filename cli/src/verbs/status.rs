//! `muster status` and `muster whoami`

use clap::Args;
use muster_protocol::api::{BrokerPlace, BrokerView, Space, Status};
use muster_protocol::text::printable_line;
use muster_protocol::units::{Size, Timestamp};

use crate::Context;
use crate::failure::{Failure, NOT_ALL};
use crate::ui::time::{ago, moment};
use crate::ui::{Paint, count, thousands};
use crate::verbs::now;

/// Arguments of `muster status`.
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `muster whoami`.
#[derive(Args, Debug)]
pub struct WhoamiArgs {
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Shows how the installation is.
///
/// # Errors
/// [`Failure`].
pub async fn run(context: &Context, args: &StatusArgs) -> Result<u8, Failure> {
    let status = context.client()?.status().await?;
    if args.json {
        context.term.json(&status)?;
    } else {
        context
            .term
            .say(&render(&status, context.term.out, now()))?;
    }
    Ok(if status.findings.is_empty() {
        0
    } else {
        NOT_ALL
    })
}

/// A few lines for people.
#[must_use]
pub fn render(status: &Status, paint: Paint, now: Timestamp) -> String {
    let active = if status.active {
        "active"
    } else {
        "standing by"
    };
    let nats = match (&status.nats_version, status.nats_connected) {
        (Some(version), true) => format!("connected, version {}", printable_line(version)),
        (None, true) => "connected".into(),
        (_, false) => paint.bad("not connected"),
    };
    let nodes: Vec<String> = status
        .nodes
        .iter()
        .filter(|(_, n)| **n > 0)
        .map(|(state, n)| format!("{n} {}", state.as_str()))
        .collect();
    let total: u32 = status.nodes.values().sum();
    let brokers = brokers(&status.brokers, paint, now);
    let skew = status.time.duration_since(now).as_secs();
    let clock = if skew.abs() >= 2 {
        format!("{skew:+} s from here")
    } else {
        "as here".into()
    };
    let mut out = format!(
        "broker   {active}, version {}, epoch {}, keys of epoch {}\n{brokers}cluster  {}\nNATS     {nats}\nnodes    {}{}{}\nruns     {} open\nclock    {clock}\n",
        printable_line(&status.version),
        status.epoch,
        status.key_epoch,
        status.cluster,
        count(total as usize, "node"),
        if nodes.is_empty() { "" } else { ": " },
        nodes.join(", "),
        status.open_runs,
    );
    for space in &status.space {
        out.push_str(&room(space, paint));
    }
    if let Some(line) = removed(status) {
        out.push_str(&line);
    }
    for finding in &status.findings {
        out.push_str(&format!(
            "{} {}\n  {}\n",
            paint.bad("!"),
            printable_line(&finding.what),
            printable_line(&finding.hint)
        ));
    }
    out
}

/// `  runs    1.2 GiB of 4 GiB (30%), 120,413 messages`
fn room(space: &Space, paint: Paint) -> String {
    let mut text = Size::new(space.bytes).shown();
    if let Some(limit) = space.limit {
        let percent = space.percent().unwrap_or(0);
        text.push_str(&format!(" of {} ({percent}%)", Size::new(limit).shown()));
    }
    if let Some(count) = space.count {
        text.push_str(&format!(", {} messages", thousands(count)));
    }
    if space.alarm_since.is_some() {
        text = paint.bad(&text);
    }
    format!("room     {}: {text}\n", printable_line(&space.what))
}

/// What retention has removed, if anything.
fn removed(status: &Status) -> Option<String> {
    let removed = &status.removed;
    let mut parts = Vec::new();
    if removed.outputs > 0 {
        parts.push(format!("the output of {} runs", thousands(removed.outputs)));
    }
    if removed.runs > 0 {
        let to = removed
            .runs_to
            .map_or_else(String::new, |at| format!(" that ended by {}", moment(at)));
        parts.push(format!("{} whole runs{to}", thousands(removed.runs)));
    }
    if parts.is_empty() {
        return None;
    }
    Some(format!("removed  by retention: {}\n", parts.join(", ")))
}

/// A line for each broker, when there are several.
fn brokers(all: &[BrokerView], paint: Paint, now: Timestamp) -> String {
    if all.len() < 2 {
        return String::new();
    }
    let width = all
        .iter()
        .map(|one| printable_line(&one.url).chars().count())
        .max()
        .unwrap_or_default();
    let mut out = String::new();
    for one in all {
        let since = |what: &str| match one.since {
            Some(since) => format!("{what} since {}", moment(since)),
            None => what.to_owned(),
        };
        let place = match (one.place, one.heard) {
            (BrokerPlace::Active, _) => since("active"),
            (BrokerPlace::Standby, _) => since("standing by"),
            (BrokerPlace::Away, Some(heard)) => {
                paint.bad(&format!("not there, last heard {}", ago(heard, now)))
            }
            (BrokerPlace::Away, None) => paint.bad("not there"),
        };
        let version = match &one.version {
            Some(version) if one.place != BrokerPlace::Away => {
                format!(", version {}", printable_line(version))
            }
            _ => String::new(),
        };
        let url = printable_line(&one.url);
        let pad = width.saturating_sub(url.chars().count());
        out.push_str(&format!("  {url}{:pad$}  {place}{version}\n", ""));
    }
    out
}

/// Shows who the token stands for.
///
/// # Errors
/// [`Failure`].
pub async fn whoami(context: &Context, args: &WhoamiArgs) -> Result<u8, Failure> {
    let found = context.sources.find()?;
    let me = found.client()?.whoami().await?;
    if args.json {
        context.term.json(&me)?;
    } else {
        context.term.line(&format!(
            "{} ({}), by token {} from {}, at {} from {}",
            me.principal, me.role, me.token, found.token_from, found.url, found.url_from
        ))?;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_protocol::api::{Finding, Presence};

    #[test]
    fn status_in_a_few_lines() {
        let status = Status {
            version: "0.1.0".into(),
            cluster: muster_protocol::ids::ClusterId::from_bytes([3; 16]),
            active: true,
            epoch: 4,
            key_epoch: 2,
            nats_version: Some("2.9.10".into()),
            nats_connected: true,
            nodes: [(Presence::Up, 23), (Presence::Down, 1), (Presence::Late, 0)].into(),
            open_runs: 1,
            brokers: Vec::new(),
            time: "2026-11-21T06:00:09Z".parse().expect("time"),
            space: vec![
                Space {
                    what: "runs".into(),
                    bytes: 3_500 << 20,
                    limit: Some(4 << 30),
                    count: Some(120_413),
                    alarm_since: "2026-11-20T00:00:00Z".parse().ok(),
                },
                Space {
                    what: "store".into(),
                    bytes: 4_100 << 20,
                    limit: None,
                    count: None,
                    alarm_since: None,
                },
            ],
            removed: muster_protocol::api::Removed {
                runs: 3,
                outputs: 1_412,
                runs_to: "2026-08-20T10:00:00Z".parse().ok(),
            },
            findings: vec![Finding {
                what: "web-19 has been down for 4 min".into(),
                hint: "look at its agent: systemctl status muster-agent".into(),
            }],
        };
        let now = "2026-11-21T06:00:00Z".parse().expect("time");
        insta::assert_snapshot!(render(&status, Paint::plain(), now));
    }
}
